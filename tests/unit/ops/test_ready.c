/* The readiness set and its server (spec/interfaces §5, checks C19 to C21 of §11). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/http_fixture.h"
#include "zt/base/clock.h"
#include "zt/ops/ready.h"
#include <cmocka.h>
#include <string.h>
#include <unistd.h>

static void ready_set_lists_pending_tasks_sorted(void **state)
{
    struct zt_ready *r = zt_ready_new(zt_clock_mono_ms());
    struct zt_str s;
    zt_str_init(&s, 1024);
    assert_true(zt_ready_check(r, &s));
    zt_ready_pend(r, ZT_READY_PODS);
    zt_ready_pend(r, ZT_READY_STATE);
    zt_ready_pend(r, ZT_READY_PROXY);
    zt_ready_complete(r, ZT_READY_PROXY);
    assert_false(zt_ready_check(r, &s));
    assert_string_equal(zt_str_cstr(&s), "state manager, workload proxy manager");
    zt_str_fini(&s);
    zt_ready_free(r);
}

static void ready_task_may_return_and_twice_pending_is_once(void **state)
{
    struct zt_ready *r = zt_ready_new(zt_clock_mono_ms());
    zt_ready_pend(r, ZT_READY_PODS);
    zt_ready_pend(r, ZT_READY_PODS);
    zt_ready_complete(r, ZT_READY_PODS);
    assert_true(zt_ready_check(r, NULL));
    zt_ready_complete(r, ZT_READY_PODS); /* not pending: nothing happens */
    zt_ready_pend(r, ZT_READY_PODS);
    assert_false(zt_ready_check(r, NULL));
    zt_ready_free(r);
}

static void ready_says_why_a_task_is_pending(void **state)
{
    struct zt_ready *r = zt_ready_new(zt_clock_mono_ms());
    struct zt_str s;
    zt_str_init(&s, 1024);
    zt_ready_pend(r, ZT_READY_PODS);
    zt_ready_pend(r, ZT_READY_STATE);
    zt_ready_explain(r, ZT_READY_PODS, "pod a/b cannot be started");
    zt_ready_explain(r, ZT_READY_PROXY, "not pending: nothing to say");
    zt_ready_pend(r, ZT_READY_PODS); /* keeps what is known */
    zt_ready_why(r, &s);
    assert_string_equal(zt_str_cstr(&s), "workload proxy manager: pod a/b cannot be started\n");
    zt_ready_complete(r, ZT_READY_PODS);
    zt_ready_pend(r, ZT_READY_PODS); /* pending again for another reason */
    zt_str_clear(&s);
    zt_ready_why(r, &s);
    assert_string_equal(zt_str_cstr(&s), "");
    zt_str_fini(&s);
    zt_ready_free(r);
}

struct served {
    struct zt_loop *loop;
    struct zt_ready *ready;
    struct zt_ready_server *server;
    uint16_t port;
};

static void serve(struct served *s)
{
    struct zt_error err = ZT_ERROR_INIT;
    s->loop = zt_loop_new("worker");
    s->ready = zt_ready_new(zt_clock_mono_ms());
    assert_int_equal(zt_loop_start(s->loop, &err), ZT_OK);
    int fd = http_listen_loopback(&s->port);
    assert_int_equal(zt_ready_serve(s->ready, s->loop, fd, "127.0.0.1:0", &s->server, &err), ZT_OK);
}

static void unserve(struct served *s)
{
    zt_ready_server_free(s->server);
    zt_loop_stop(s->loop);
    zt_loop_join(s->loop);
    zt_loop_free(s->loop);
    zt_ready_free(s->ready);
}

static void ready_server_says_500_with_names_then_200(void **state)
{
    struct served s;
    char reply[4096];
    serve(&s);
    zt_ready_pend(s.ready, ZT_READY_PODS);
    zt_ready_pend(s.ready, ZT_READY_STATE);
    assert_int_equal(http_ask(s.port, "GET", "/healthz/ready", NULL, reply, sizeof reply), 500);
    assert_string_equal(http_body(reply), "not ready, pending: state manager, workload proxy manager\n");
    zt_ready_complete(s.ready, ZT_READY_STATE);
    zt_ready_complete(s.ready, ZT_READY_PODS);
    assert_int_equal(http_ask(s.port, "GET", "/healthz/ready", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "ready\n");
    assert_non_null(strcasestr(reply, "content-type: text/plain\r\n"));
    unserve(&s);
}

static void ready_server_C21_other_methods_405_other_paths_404(void **state)
{
    struct served s;
    char reply[4096];
    serve(&s);
    assert_int_equal(http_ask(s.port, "POST", "/healthz/ready", NULL, reply, sizeof reply), 405);
    assert_string_equal(http_body(reply), "");
    assert_int_equal(http_ask(s.port, "HEAD", "/healthz/ready", NULL, reply, sizeof reply), 405);
    assert_int_equal(http_ask(s.port, "GET", "/healthz", NULL, reply, sizeof reply), 404);
    assert_string_equal(http_body(reply), "");
    unserve(&s);
}

static void ready_server_refuses_connections_once_draining(void **state)
{
    struct served s;
    serve(&s);
    zt_ready_server_drain(s.server);
    zt_ready_server_drain(s.server);
    int fd = 0;
    for (int i = 0; i < 200 && fd >= 0; i++) {
        fd = http_connect(s.port);
        if (fd >= 0)
            close(fd);
        usleep(5000);
    }
    assert_int_equal(fd, -1);
    unserve(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ready_set_lists_pending_tasks_sorted),
        cmocka_unit_test(ready_task_may_return_and_twice_pending_is_once),
        cmocka_unit_test(ready_says_why_a_task_is_pending),
        cmocka_unit_test(ready_server_says_500_with_names_then_200),
        cmocka_unit_test(ready_server_C21_other_methods_405_other_paths_404),
        cmocka_unit_test(ready_server_refuses_connections_once_draining),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
