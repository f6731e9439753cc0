/* Control's face of the data plane: questions to the workers, stopping while they are on their way, pods before and after the gate. */
#include "support/net_fixture.h"
#include "zt/base/mem.h"
#include "zt/proxy/conn.h"
#include "zt/proxy/proxy.h"
#include <setjmp.h>
#include <stdarg.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

struct rig {
    struct zt_loop *control;
    struct zt_store *store;
    struct zt_metrics *metrics;
    struct zt_proxy *proxy;
    unsigned n_results, n_counted;
    bool had_snapshot, drained;
};

static int setup(void **state)
{
    struct rig *r = zt_new(struct rig);
    const struct zt_limits_config limits = {.max = {100, 100, 100, 100, 1 << 20, 100, 100, 100}};
    const struct zt_proxy_config c = {.limits = limits, .n_workers = 2, .enabled = true, .pool_max_streams = 100, .descriptors_reserved = 64};
    const struct zt_store_config store = {.network = "net1"};
    r->control = zt_loop_new("control");
    r->store = zt_store_new(&store);
    r->metrics = zt_metrics_new();
    zt_conn_register_metrics(r->metrics);
    r->proxy = zt_proxy_new(&c, r->control, r->store, NULL, r->metrics, NULL);
    assert_non_null(r->proxy);
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    struct rig *r = *state;
    zt_proxy_free(r->proxy);
    zt_store_free(r->store);
    zt_metrics_free(r->metrics);
    zt_loop_free(r->control); /* answers that were on their way arrive here */
    zt_free(r);
    return 0;
}

static void on_snapshot(void *arg, const struct zt_proxy_snapshot *snap)
{
    struct rig *r = arg;
    r->n_results++;
    r->had_snapshot = snap;
}

static void on_counted(void *arg)
{
    ((struct rig *)arg)->n_counted++;
}

static void questions_are_answered_once(void **state)
{
    struct rig *r = *state;
    zt_proxy_snapshot(r->proxy, on_snapshot, r);
    zt_proxy_count(r->proxy, on_counted, r);
    assert_int_equal(r->n_results + r->n_counted, 0);
    while (!r->n_results || !r->n_counted)
        zt_loop_run_once(r->control, true);
    assert_true(r->had_snapshot);
    zt_proxy_stop(r->proxy);
    assert_int_equal(r->n_results, 1);
    assert_int_equal(r->n_counted, 1);
}

static void stopping_answers_the_questions_under_way(void **state)
{
    struct rig *r = *state;
    zt_proxy_snapshot(r->proxy, on_snapshot, r);
    zt_proxy_count(r->proxy, on_counted, r);
    zt_proxy_stop(r->proxy);
    assert_int_equal(r->n_results, 1);
    assert_false(r->had_snapshot);
    assert_int_equal(r->n_counted, 1);
}

/* ---- pods ---- */

static const struct zt_pod_id pod_id = {"u", "ns", "name", "sa"};

static struct zt_netns *add_pod(struct rig *r)
{
    struct zt_error err = ZT_ERROR_INIT;
    zt_test_need_root();
    struct zt_netns *ns = zt_netns_new(zt_test_netns_fd());
    assert_int_equal(zt_proxy_add_pod(r->proxy, ZT_POD_CAPTURED, &pod_id, ns, &err), ZT_OK);
    return ns;
}

/* A connected, blocking client, or -errno. */
static int client_of(struct zt_netns *ns, uint16_t port)
{
    const struct zt_sock_opts opts = {0};
    struct zt_addr a = {.ip.family = ZT_IPV4, .ip.bytes = {127, 0, 0, 1}, .port = port};
    int fd = zt_sock_connect(ns, &a, NULL, &opts);
    if (fd >= 0 && zt_sock_peer(fd).ip.family == ZT_IP_NONE) { /* refused already */
        close(fd);
        return -ECONNREFUSED;
    }
    return fd;
}

/* What a read says within the time: >= 0 bytes, or -errno (EAGAIN: nothing happened). */
static int read_within(int fd, unsigned ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    poll(&p, 1, (int)ms);
    ssize_t n = recv(fd, &byte, 1, 0);
    return n >= 0 ? (int)n : -errno;
}

static void connections_before_the_gate_wait_and_are_served_after_it(void **state)
{
    struct rig *r = *state;
    struct zt_netns *ns = add_pod(r);
    int fd = client_of(ns, ZT_PORT_OUTBOUND);
    assert_true(fd >= 0);
    assert_int_equal(read_within(fd, 100), -EAGAIN);
    zt_proxy_serve(r->proxy);
    assert_int_not_equal(read_within(fd, 5000), -EAGAIN); /* nobody knows this workload: it is ended */
    close(fd);
    zt_netns_unref(ns);
}

static void on_drained(void *arg)
{
    ((struct rig *)arg)->drained = true;
}

static void drain_before_the_gate_closes_the_ports(void **state)
{
    struct rig *r = *state;
    struct zt_netns *ns = add_pod(r);
    zt_proxy_drain(r->proxy, on_drained, r);
    assert_int_equal(client_of(ns, ZT_PORT_OUTBOUND), -ECONNREFUSED);
    while (!r->drained)
        zt_loop_run_once(r->control, true);
    zt_netns_unref(ns);
}

static void ports_refuse_when_a_removal_returns(void **state)
{
    struct rig *r = *state;
    struct zt_netns *ns = add_pod(r);
    zt_proxy_remove_pod(r->proxy, pod_id.uid); /* one that was never served */
    assert_int_equal(client_of(ns, ZT_PORT_HBONE), -ECONNREFUSED);
    zt_proxy_serve(r->proxy);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(zt_proxy_add_pod(r->proxy, ZT_POD_CAPTURED, &pod_id, ns, NULL), ZT_OK);
        zt_proxy_remove_pod(r->proxy, pod_id.uid);
        assert_int_equal(client_of(ns, ZT_PORT_HBONE), -ECONNREFUSED);
    }
    zt_netns_unref(ns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(questions_are_answered_once, setup, teardown),
        cmocka_unit_test_setup_teardown(stopping_answers_the_questions_under_way, setup, teardown),
        cmocka_unit_test_setup_teardown(connections_before_the_gate_wait_and_are_served_after_it, setup, teardown),
        cmocka_unit_test_setup_teardown(drain_before_the_gate_closes_the_ports, setup, teardown),
        cmocka_unit_test_setup_teardown(ports_refuse_when_a_removal_returns, setup, teardown),
    };
    return cmocka_run_group_tests_name("proxy", tests, NULL, NULL);
}
