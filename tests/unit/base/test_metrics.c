/* Families, shards and the exposition (spec/interfaces §6.1). */
#include "zt/base/metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <string.h>

static const char *const url_label[] = {"url"};
static const char *const two_labels[] = {"component", "tag"};
static const double bounds[] = {0.0005, 0.1, 1, 5};
static const struct zt_metric_family bytes_family = {
    .name = "istio_xds_message_bytes",
    .help = "Total number of bytes received (unstable).",
    .unit = "bytes",
    .type = ZT_METRIC_COUNTER,
    .labels = url_label,
    .n_labels = 1,
};
static const struct zt_metric_family build_family = {
    .name = "istio_build",
    .help = "Istio component build info.",
    .type = ZT_METRIC_GAUGE,
    .labels = two_labels,
    .n_labels = 2,
};
static const struct zt_metric_family time_family = {
    .name = "request_duration_seconds",
    .help = "Time (unstable).",
    .unit = "seconds",
    .type = ZT_METRIC_HISTOGRAM,
    .labels = url_label,
    .n_labels = 1,
    .buckets = bounds,
    .n_buckets = 4,
};
static const struct zt_metric_family fds_family = {
    .name = "process_open_fds", .help = "open descriptors", .type = ZT_METRIC_GAUGE};
static const struct zt_metric_family busy_family = {
    .name = "worker_busy_seconds", .help = "busy", .type = ZT_METRIC_COUNTER};

static struct zt_str text;

static const char *scrape(struct zt_metrics *m)
{
    zt_str_fini(&text);
    zt_str_init(&text, 1 << 20);
    zt_metrics_write(m, &text);
    return zt_str_cstr(&text);
}

static void metrics_without_samples_are_left_out(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    assert_string_equal(scrape(m), "# EOF\n");
    zt_metrics_free(m);
}

static void metrics_exposition_is_the_one_of_the_specification(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &build_family);
    zt_metrics_register(m, &bytes_family);
    struct zt_metrics_shard *s = zt_metrics_shard_new(m);
    const char *url = "type.googleapis.com/istio.workload.Address";
    const char *const build[] = {"ztunnel", "1.31-dev"};
    struct zt_metric_series *a = zt_metric_series_get(s, &bytes_family, &url, 1);
    struct zt_metric_series *b = zt_metric_series_get(s, &build_family, build, 2);
    zt_metric_add(a, 5120);
    zt_metric_gauge_set(b, 1);
    zt_metric_series_put(a);
    zt_metric_series_put(b);
    assert_string_equal(
        scrape(m),
        "# HELP istio_build Istio component build info.\n# TYPE istio_build gauge\n"
        "istio_build{component=\"ztunnel\",tag=\"1.31-dev\"} 1\n"
        "# HELP istio_xds_message_bytes Total number of bytes received (unstable).\n"
        "# TYPE istio_xds_message_bytes counter\n# UNIT istio_xds_message_bytes bytes\n"
        "istio_xds_message_bytes_total{url=\"type.googleapis.com/istio.workload.Address\"} 5120\n"
        "# EOF\n");
    zt_metrics_free(m);
}

static void metrics_equal_labels_of_several_shards_are_one_sample(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    const char *url = "u";
    for (int i = 0; i < 3; i++) {
        struct zt_metrics_shard *s = zt_metrics_shard_new(m);
        struct zt_metric_series *a = zt_metric_series_get(s, &bytes_family, &url, 1);
        assert_ptr_equal(a, zt_metric_series_get(s, &bytes_family, &url, 1));
        zt_metric_add(a, 2);
        zt_metric_series_put(a);
        zt_metric_series_put(a);
    }
    assert_non_null(strstr(scrape(m), "_total{url=\"u\"} 6\n"));
    zt_metrics_free(m);
}

static void metrics_gauges_may_fall_below_zero(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &build_family);
    struct zt_metric_series *a =
        zt_metric_series_get(zt_metrics_shard_new(m), &build_family, NULL, 0);
    zt_metric_gauge_add(a, 3);
    zt_metric_gauge_add(a, -5);
    assert_non_null(strstr(scrape(m), "istio_build -2\n"));
    zt_metrics_free(m);
}

static void metrics_label_values_are_escaped_and_made_utf8(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    const char *evil = "a\"b\\c\nd\xff";
    zt_metric_series_put(zt_metric_series_get(zt_metrics_shard_new(m), &bytes_family, &evil, 1));
    assert_non_null(strstr(scrape(m), "{url=\"a\\\"b\\\\c\\nd\xef\xbf\xbd\"} 0\n"));
    zt_metrics_free(m);
}

static void metrics_histogram_is_sum_count_then_cumulative_buckets(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &time_family);
    const char *url = "u";
    struct zt_metric_series *a =
        zt_metric_series_get(zt_metrics_shard_new(m), &time_family, &url, 1);
    zt_metric_observe(a, 0.0005);
    zt_metric_observe(a, 0.5);
    zt_metric_observe(a, 9.5);
    assert_non_null(strstr(scrape(m),
                           "_sum{url=\"u\"} 10.0005\n"
                           "request_duration_seconds_count{url=\"u\"} 3\n"
                           "request_duration_seconds_bucket{le=\"0.0005\",url=\"u\"} 1\n"
                           "request_duration_seconds_bucket{le=\"0.1\",url=\"u\"} 1\n"
                           "request_duration_seconds_bucket{le=\"1.0\",url=\"u\"} 2\n"
                           "request_duration_seconds_bucket{le=\"5.0\",url=\"u\"} 2\n"
                           "request_duration_seconds_bucket{le=\"+Inf\",url=\"u\"} 3\n"));
    zt_metrics_free(m);
}

static double seven(void *arg)
{
    return arg ? *(double *)arg : 7;
}

static void metrics_computed_values_are_asked_at_scrape_time(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    double busy = 2;
    zt_metrics_register_fn(m, &fds_family, seven, NULL);
    zt_metrics_register_fn(m, &busy_family, seven, &busy);
    assert_non_null(strstr(scrape(m), "\nprocess_open_fds 7\n"));
    assert_non_null(strstr(scrape(m), "\nworker_busy_seconds_total 2.0\n"));
    zt_metrics_free(m);
}

static void metrics_no_value_is_no_sample(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    double none = NAN;
    zt_metrics_register_fn(m, &busy_family, seven, &none);
    assert_string_equal(scrape(m), "# EOF\n");
    zt_metrics_free(m);
}

static const char *scrape_large(struct zt_metrics *m)
{
    zt_str_fini(&text);
    zt_str_init(&text, 64 << 20);
    zt_metrics_write(m, &text);
    return zt_str_cstr(&text);
}

static struct zt_metric_series *get_u(struct zt_metrics_shard *s, const struct zt_metric_family *f, const char *value)
{
    return zt_metric_series_get(s, f, &value, 1);
}

/* Reaches ZT_METRIC_SETS_MAX twice: with all sets in use, then with idle ones. */
static void metrics_full_shard_folds_the_longest_unused_and_keeps_its_sum(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    zt_metrics_register(m, &time_family);
    zt_metrics_register_own(m);
    struct zt_metrics_shard *s = zt_metrics_shard_new(m);
    struct zt_metric_series *first = NULL;
    char name[24];
    for (unsigned i = 0; i < ZT_METRIC_SETS_MAX; i++) {
        zt_fmt(name, sizeof name, "u%u", i);
        struct zt_metric_series *a = get_u(s, &bytes_family, name);
        first = first ? first : a;
    }
    struct zt_metric_series *x = get_u(s, &bytes_family, "x");
    assert_ptr_equal(get_u(s, &bytes_family, "y"), x);
    zt_metric_add(x, 5);
    struct zt_metric_series *time = get_u(s, &time_family, "u0");
    zt_metric_observe(time, 0.5);
    zt_metric_add(first, 7);
    zt_metric_series_put(first);
    zt_metric_series_put(time);
    assert_ptr_not_equal(get_u(s, &bytes_family, "z"), x);
    const char *all = scrape_large(m);
    assert_non_null(strstr(all, "istio_xds_message_bytes_total{url=\"overflow\"} 12\n"));
    assert_non_null(strstr(all, "request_duration_seconds_sum{url=\"overflow\"} 0.5\n"));
    assert_non_null(strstr(all, "request_duration_seconds_bucket{le=\"1.0\",url=\"overflow\"} 1\n"));
    assert_non_null(strstr(all, "{url=\"z\"} 0\n"));
    assert_null(strstr(all, "{url=\"u0\"}"));
    assert_non_null(strstr(all, "ztunneld_metric_label_sets_folded_total 3\n"));
    zt_metrics_free(m);
}

static void metrics_unused_label_sets_are_evicted_and_held_ones_never(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    zt_metrics_register(m, &time_family);
    zt_metrics_register_own(m);
    struct zt_metrics_shard *s = zt_metrics_shard_new(m);
    zt_metric_series_put(get_u(s, &bytes_family, "gone"));
    struct zt_metric_series *held = get_u(s, &bytes_family, "held");
    zt_metric_series_put(get_u(s, &time_family, "held")); /* the set is held by its other series */
    zt_metrics_evict(m, 3600000, 100);
    assert_non_null(strstr(scrape(m), "{url=\"gone\"}"));
    zt_metrics_evict(m, 0, 100);
    const char *all = scrape(m);
    assert_null(strstr(all, "{url=\"gone\"}"));
    assert_non_null(strstr(all, "istio_xds_message_bytes_total{url=\"held\"} 0\n"));
    assert_non_null(strstr(all, "request_duration_seconds_count{url=\"held\"} 0\n"));
    assert_non_null(strstr(all, "ztunneld_metric_label_sets_evicted_total 1\n"));
    assert_non_null(strstr(all, "ztunneld_metric_series 2\n"));
    zt_metric_series_put(held);
    zt_metrics_free(m);
}

static void metrics_scrape_in_pieces_writes_each_series_once(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    struct zt_metrics_shard *s[3];
    struct zt_str piece;
    char name[24], line[80];
    for (int i = 0; i < 3; i++) {
        s[i] = zt_metrics_shard_new(m);
        for (int k = 0; k < 300; k++) {
            zt_fmt(name, sizeof name, "u%d", k + 100 * i);
            struct zt_metric_series *a = get_u(s[i], &bytes_family, name);
            zt_metric_add(a, 1);
            zt_metric_series_put(a);
        }
    }
    struct zt_metrics_scrape *one = zt_metrics_scrape_new(m), *two = zt_metrics_scrape_new(m);
    zt_str_fini(&text);
    zt_str_init(&text, 1 << 20);
    zt_str_init(&piece, 1 << 20);
    bool more = true;
    for (int i = 0; more; i++) {
        more = zt_metrics_scrape_next(one, &text, 100);
        if (i % 3 == 0)
            zt_metrics_scrape_next(two, &piece, 100);
        zt_fmt(name, sizeof name, "late%d", i);
        zt_metric_series_put(get_u(s[i % 3], &bytes_family, name));
        zt_metrics_evict(m, 0, 100);
    }
    zt_metrics_scrape_free(two); /* half-way */
    zt_metrics_scrape_free(one);
    for (int k = 0; k < 500; k++) {
        zt_fmt(line, sizeof line, "_total{url=\"u%d\"} %d\n", k, 1 + (k >= 100 && k < 400) + (k >= 200 && k < 300));
        const char *at = strstr(zt_str_cstr(&text), line);
        assert_non_null(at);
        assert_null(strstr(at + 1, line));
    }
    assert_null(strstr(zt_str_cstr(&text), "late"));
    assert_null(strstr(strstr(zt_str_cstr(&text), "# TYPE") + 1, "# TYPE"));
    assert_non_null(strstr(scrape(m), "late"));
    zt_str_fini(&piece);
    zt_metrics_free(m);
}

static _Atomic bool counting;

static void *count_in_shard(void *arg)
{
    struct zt_metrics_shard *s = arg;
    char name[24];
    const char *value = name;
    for (unsigned i = 0; i < 20000; i++) {
        zt_fmt(name, sizeof name, "u%u", i % 500);
        struct zt_metric_series *a = zt_metric_series_get(s, &bytes_family, &value, 1);
        zt_metric_add(a, 1);
        zt_metric_series_put(a);
    }
    atomic_store(&counting, false);
    return NULL;
}

static void metrics_scrape_runs_beside_a_counting_worker_and_loses_nothing(void **state)
{
    struct zt_metrics *m = zt_metrics_new();
    zt_metrics_register(m, &bytes_family);
    struct zt_metrics_shard *s = zt_metrics_shard_new(m);
    pthread_t worker;
    atomic_store(&counting, true);
    assert_int_equal(pthread_create(&worker, NULL, count_in_shard, s), 0);
    while (atomic_load(&counting))
        assert_non_null(strstr(scrape(m), "# EOF\n"));
    pthread_join(worker, NULL);
    assert_non_null(strstr(scrape(m), "{url=\"u499\"} 40\n"));
    zt_metrics_free(m);
}

static int drop_text(void **state)
{
    zt_str_fini(&text);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metrics_without_samples_are_left_out),
        cmocka_unit_test(metrics_exposition_is_the_one_of_the_specification),
        cmocka_unit_test(metrics_equal_labels_of_several_shards_are_one_sample),
        cmocka_unit_test(metrics_gauges_may_fall_below_zero),
        cmocka_unit_test(metrics_label_values_are_escaped_and_made_utf8),
        cmocka_unit_test(metrics_histogram_is_sum_count_then_cumulative_buckets),
        cmocka_unit_test(metrics_computed_values_are_asked_at_scrape_time),
        cmocka_unit_test(metrics_scrape_runs_beside_a_counting_worker_and_loses_nothing),
        cmocka_unit_test(metrics_full_shard_folds_the_longest_unused_and_keeps_its_sum),
        cmocka_unit_test(metrics_unused_label_sets_are_evicted_and_held_ones_never),
        cmocka_unit_test(metrics_scrape_in_pieces_writes_each_series_once),
        cmocka_unit_test(metrics_no_value_is_no_sample),
    };
    return cmocka_run_group_tests(tests, NULL, drop_text);
}
