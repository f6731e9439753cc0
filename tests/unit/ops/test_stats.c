/* The metrics server (spec/interfaces §6.1, checks C31 to C33 of §11). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/http_fixture.h"
#include "zt/base/mem.h"
#include "zt/ops/stats.h"
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define PROMETHEUS_ACCEPT                                                                          \
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;" \
    "q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1"

static struct http_fixture f;
static struct zt_metrics *metrics;
static struct zt_stats stats;
static int n_refreshes;
static char reply[65536];

static void refresh(void *arg, void (*done)(void *), void *done_arg)
{
    n_refreshes++;
    done(done_arg);
}

static void routes(struct zt_http1 *s, void *arg)
{
    stats = (struct zt_stats){.metrics = metrics, .refresh = refresh};
    zt_stats_routes(s, &stats);
}

static int setup(void **state)
{
    n_refreshes = 0;
    metrics = zt_metrics_new();
    zt_stats_register_process(metrics, "unknown");
    http_fixture_start(&f, routes, NULL);
    return 0;
}

static int teardown(void **state)
{
    http_fixture_stop(&f);
    zt_metrics_free(metrics);
    return 0;
}

static void stats_C31_two_paths_one_document(void **state)
{
    static const char *const paths[] = {"/metrics", "/stats/prometheus"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(http_ask(f.port, "GET", paths[i], NULL, reply, sizeof reply), 200);
        assert_non_null(strcasestr(reply, "content-type: text/plain; charset=utf-8\r\n"));
        assert_non_null(strstr(reply, "# TYPE process_open_fds gauge\n"));
        http_dechunk(reply, strlen(reply));
        assert_string_equal(reply + strlen(reply) - 6, "# EOF\n");
    }
    assert_int_equal(http_ask(f.port, "GET", "/foo", NULL, reply, sizeof reply), 404);
}

static void stats_refresh_runs_once_per_scrape(void **state)
{
    http_ask(f.port, "GET", "/metrics", NULL, reply, sizeof reply);
    http_ask(f.port, "GET", "/metrics", NULL, reply, sizeof reply);
    assert_int_equal(n_refreshes, 2);
}

static void stats_C33_build_family_and_process_families(void **state)
{
    http_ask(f.port, "GET", "/metrics", NULL, reply, sizeof reply);
    assert_non_null(strstr(reply, "# HELP istio_build Istio component build info.\n"));
    assert_non_null(strstr(reply, "\nistio_build{component=\"ztunnel\",tag=\"unknown\"} 1\n"));
    const char *fds = strstr(reply, "\nprocess_open_fds ");
    assert_non_null(fds);
    assert_true(strtol(fds + 18, NULL, 10) > 3);
    assert_non_null(strstr(reply, "\nprocess_max_fds "));
    assert_null(strstr(reply, "istio_tcp_"));
}

static void stats_C32_openmetrics_content_type_when_accepted(void **state)
{
    http_ask(f.port, "GET", "/metrics", "Accept: " PROMETHEUS_ACCEPT "\r\n", reply, sizeof reply);
    assert_non_null(strcasestr(reply, "content-type: application/openmetrics-text;charset=utf-8;version=1.0.0\r\n"));
    assert_string_equal(zt_stats_content_type("text/plain, Application/OpenMetrics-Text;q=0.1"),
                        "application/openmetrics-text;charset=utf-8;version=1.0.0");
    assert_string_equal(zt_stats_content_type("application/openmetrics-textual"), "text/plain; charset=utf-8");
    assert_string_equal(zt_stats_content_type(NULL), "text/plain; charset=utf-8");
}

static void stats_C32_gzip_body_decodes_to_the_document(void **state)
{
    static char plain[65536];
    int fd = http_connect(f.port);
    http_send(fd, "GET /metrics HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n");
    bool closed;
    size_t len = http_read_all(fd, reply, sizeof reply, 5000, &closed);
    close(fd);
    assert_non_null(strcasestr(reply, "content-encoding: gzip\r\n"));
    assert_non_null(strcasestr(reply, "vary: accept-encoding\r\n"));
    len = http_dechunk(reply, len);
    const char *body = http_body(reply);
    z_stream z = {0};
    assert_int_equal(inflateInit2(&z, 31), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)body;
    z.avail_in = (uInt)(len - (size_t)(body - reply));
    z.next_out = (Bytef *)plain;
    z.avail_out = sizeof plain - 1;
    assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
    plain[z.total_out] = '\0';
    inflateEnd(&z);
    assert_non_null(strstr(plain, "istio_build{"));
    assert_string_equal(plain + z.total_out - 6, "# EOF\n");
}

static void stats_encoding_follows_q_values(void **state)
{
    static const struct {
        const char *accept;
        enum zt_encoding expected;
    } cases[] = {
        {NULL, ZT_ENCODING_IDENTITY},
        {"", ZT_ENCODING_IDENTITY},
        {"gzip", ZT_ENCODING_GZIP},
        {"GZIP;q=0.5, br", ZT_ENCODING_GZIP},
        {"gzip;q=0", ZT_ENCODING_IDENTITY},
        {"identity, gzip;q=0.5", ZT_ENCODING_IDENTITY},
        {"identity;q=0.2, gzip;q=0.5", ZT_ENCODING_GZIP},
        {"br, zstd", ZT_ENCODING_IDENTITY},
        {"*", ZT_ENCODING_GZIP},
        {"identity;q=0", ZT_ENCODING_NONE},
        {"*;q=0", ZT_ENCODING_NONE},
        {"*;q=0, gzip", ZT_ENCODING_GZIP},
        {";;;q=,,q=;gzip", ZT_ENCODING_IDENTITY},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(zt_stats_encoding(cases[i].accept), cases[i].expected);
    assert_int_equal(http_ask(f.port, "GET", "/metrics", "Accept-Encoding: identity;q=0\r\n", reply, sizeof reply), 406);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(stats_C31_two_paths_one_document, setup, teardown),
        cmocka_unit_test_setup_teardown(stats_refresh_runs_once_per_scrape, setup, teardown),
        cmocka_unit_test_setup_teardown(stats_C33_build_family_and_process_families, setup, teardown),
        cmocka_unit_test_setup_teardown(stats_C32_openmetrics_content_type_when_accepted, setup, teardown),
        cmocka_unit_test_setup_teardown(stats_C32_gzip_body_decodes_to_the_document, setup, teardown),
        cmocka_unit_test_setup_teardown(stats_encoding_follows_q_values, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
