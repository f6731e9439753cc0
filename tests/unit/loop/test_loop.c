/* The loop: mailbox, tasks, deferred free, buffers, and that idle means idle. */
#include "zt/loop/loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <stdatomic.h>
#include <string.h>
#include <time.h>

struct counter {
    struct zt_loop *loop;
    struct zt_msg msg;
    struct zt_task task;
    struct zt_deferred deferred;
    int order, runs;
    bool again;
};

static int next_order;

static void on_task(struct zt_task *t)
{
    struct counter *c = zt_container_of(t, struct counter, task);
    c->order = ++next_order;
    c->runs++;
    if (c->again)
        zt_loop_soon(c->loop, t);
}

static void on_msg(struct zt_msg *m)
{
    struct counter *c = zt_container_of(m, struct counter, msg);
    zt_loop_assert_owner(c->loop);
    c->order = ++next_order;
    c->runs++;
}

static void on_stop_msg(struct zt_msg *m)
{
    struct counter *c = zt_container_of(m, struct counter, msg);
    c->runs++;
    zt_loop_stop(c->loop);
}

static void on_deferred(struct zt_deferred *d)
{
    zt_container_of(d, struct counter, deferred)->order = ++next_order;
}

static void loop_messages_of_one_sender_run_in_order_on_the_owner(void **state)
{
    enum { N = 1000 };
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter *c = zt_new_n(struct counter, N);
    struct zt_error err = ZT_ERROR_INIT;
    next_order = 0;
    assert_int_equal(zt_loop_start(l, &err), ZT_OK);
    for (int i = 0; i < N; i++) {
        c[i].loop = l;
        c[i].msg.run = i == N - 1 ? on_stop_msg : on_msg;
        zt_loop_post(l, &c[i].msg);
    }
    zt_loop_join(l);
    for (int i = 0; i < N - 1; i++)
        assert_int_equal(c[i].order, i + 1);
    assert_int_equal(c[N - 1].runs, 1);
    zt_free(c);
    zt_loop_free(l);
}

static void loop_owner_is_the_running_thread_only(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    assert_true(zt_loop_is_owner(l));
    struct counter c = {.loop = l, .msg.run = on_msg};
    assert_int_equal(zt_loop_start(l, NULL), ZT_OK);
    zt_loop_post(l, &c.msg);
    struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; i < 1000 && zt_loop_is_owner(l); i++)
        nanosleep(&pause, NULL);
    assert_false(zt_loop_is_owner(l));
    zt_loop_stop(l);
    zt_loop_join(l);
    assert_true(zt_loop_is_owner(l));
    zt_loop_free(l);
}

static void loop_task_runs_once_however_often_it_is_queued(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter c = {.loop = l, .task.run = on_task};
    zt_loop_soon(l, &c.task);
    zt_loop_soon(l, &c.task);
    zt_loop_run_once(l, true); /* a queued task keeps it from blocking */
    assert_int_equal(c.runs, 1);
    zt_loop_run_once(l, false);
    assert_int_equal(c.runs, 1);
    zt_loop_free(l);
}

static void loop_cancelled_task_does_not_run(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter c = {.loop = l, .task.run = on_task};
    zt_task_cancel(&c.task);
    zt_loop_soon(l, &c.task);
    zt_task_cancel(&c.task);
    zt_loop_run_once(l, false);
    assert_int_equal(c.runs, 0);
    zt_loop_free(l);
}

static void on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    ev_break(ev, EVBREAK_ALL);
    w->data = ev;
}

static void loop_endless_task_does_not_starve_timers_and_messages(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter c = {.loop = l, .task.run = on_task, .again = true};
    struct counter stop = {.loop = l, .msg.run = on_stop_msg};
    zt_loop_soon(l, &c.task);
    zt_loop_post(l, &stop.msg);
    zt_loop_run(l);
    assert_int_equal(stop.runs, 1);
    assert_true(c.runs >= 1);
    zt_task_cancel(&c.task);
    zt_loop_free(l);
}

static void loop_deferred_memory_goes_after_the_tasks_of_the_turn(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter c = {.loop = l, .task.run = on_task};
    struct counter d = {.deferred.free = on_deferred};
    next_order = 0;
    zt_loop_defer_free(l, &d.deferred);
    zt_loop_defer_zt_free(l, zt_zalloc(10));
    zt_loop_soon(l, &c.task);
    zt_loop_run_once(l, false);
    assert_int_equal(c.order, 1);
    assert_int_equal(d.order, 2);
    zt_loop_free(l);
}

static void loop_free_runs_messages_that_are_left(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    struct counter c = {.loop = l, .msg.run = on_msg};
    zt_loop_post(l, &c.msg);
    zt_loop_defer_zt_free(l, zt_zalloc(10));
    zt_loop_free(l);
    assert_int_equal(c.runs, 1);
}

static void count_prepare(struct ev_loop *ev, ev_prepare *w, int revents)
{
    atomic_fetch_add((_Atomic int *)w->data, 1);
}

static void loop_that_is_idle_does_not_wake_up(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    _Atomic int turns = 0;
    ev_prepare p;
    ev_prepare_init(&p, count_prepare);
    p.data = &turns;
    ev_prepare_start(zt_loop_ev(l), &p);
    struct counter c = {.loop = l, .task.run = on_task};
    zt_loop_soon(l, &c.task);
    assert_int_equal(zt_loop_start(l, NULL), ZT_OK);
    struct timespec pause = {.tv_nsec = 300000000};
    nanosleep(&pause, NULL);
    assert_in_range(atomic_load(&turns), 1, 2);
    zt_loop_stop(l);
    zt_loop_join(l);
    ev_prepare_stop(zt_loop_ev(l), &p);
    zt_loop_free(l);
}

static void loop_time_is_refreshed_every_iteration(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    zt_clock_test_advance_ms(5000);
    uint64_t stale = zt_loop_now_ms(l);
    zt_loop_run_once(l, false);
    assert_true(zt_loop_now_ms(l) >= stale + 5000);
    zt_clock_test_advance_ms(-5000);
    ev_timer t;
    ev_timer_init(&t, on_timer, 0.01, 0);
    t.data = NULL;
    ev_timer_start(zt_loop_ev(l), &t);
    zt_loop_run_once(l, true);
    assert_non_null(t.data);
    zt_loop_free(l);
}

static void loop_buffers_are_reused_and_capped(void **state)
{
    struct zt_loop *l = zt_loop_new("zt-test");
    uint8_t *a = zt_loop_buf_get(l, ZT_BUF_SMALL);
    memset(a, 1, zt_buf_class_bytes(ZT_BUF_SMALL));
    zt_loop_buf_put(l, a, ZT_BUF_SMALL);
    assert_ptr_equal(zt_loop_buf_get(l, ZT_BUF_SMALL), a);
    zt_loop_buf_put(l, a, ZT_BUF_SMALL);
    enum { N = 2 * ZT_BUF_FREE_MAX_BYTES / ZT_BUF_LARGE_BYTES };
    uint8_t *many[N];
    size_t before = zt_mem_live_bytes();
    for (int i = 0; i < N; i++)
        many[i] = zt_loop_buf_get(l, ZT_BUF_LARGE);
    for (int i = 0; i < N; i++)
        zt_loop_buf_put(l, many[i], ZT_BUF_LARGE);
    assert_true(zt_mem_live_bytes() - before <= ZT_BUF_FREE_MAX_BYTES);
    zt_loop_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loop_messages_of_one_sender_run_in_order_on_the_owner),
        cmocka_unit_test(loop_owner_is_the_running_thread_only),
        cmocka_unit_test(loop_task_runs_once_however_often_it_is_queued),
        cmocka_unit_test(loop_cancelled_task_does_not_run),
        cmocka_unit_test(loop_endless_task_does_not_starve_timers_and_messages),
        cmocka_unit_test(loop_deferred_memory_goes_after_the_tasks_of_the_turn),
        cmocka_unit_test(loop_free_runs_messages_that_are_left),
        cmocka_unit_test(loop_that_is_idle_does_not_wake_up),
        cmocka_unit_test(loop_time_is_refreshed_every_iteration),
        cmocka_unit_test(loop_buffers_are_reused_and_capped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
