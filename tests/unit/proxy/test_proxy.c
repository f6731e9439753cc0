/* Control's face of the data plane without pods: questions to the workers, and stopping while they are on their way. */
#include "zt/base/mem.h"
#include "zt/proxy/proxy.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct rig {
    struct zt_loop *control;
    struct zt_store *store;
    struct zt_metrics *metrics;
    struct zt_proxy *proxy;
    unsigned n_results, n_counted;
    bool had_snapshot;
};

static int setup(void **state)
{
    struct rig *r = zt_new(struct rig);
    const struct zt_proxy_config c = {.n_workers = 2, .pool_max_streams = 100, .descriptors_reserved = 64};
    const struct zt_store_config store = {.network = "net1"};
    r->control = zt_loop_new("control");
    r->store = zt_store_new(&store);
    r->metrics = zt_metrics_new();
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(questions_are_answered_once, setup, teardown),
        cmocka_unit_test_setup_teardown(stopping_answers_the_questions_under_way, setup, teardown),
    };
    return cmocka_run_group_tests_name("proxy", tests, NULL, NULL);
}
