/* The log: filter, plain and JSON lines, limits, the queue. Each test reads back what the writer
 * wrote to standard output. */
#include "zt/base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int saved_stdout = -1;
static FILE *captured;

static void capture(const char *filter, bool json)
{
    struct zt_error err = ZT_ERROR_INIT;
    fflush(stdout);
    captured = tmpfile();
    saved_stdout = dup(STDOUT_FILENO);
    dup2(fileno(captured), STDOUT_FILENO);
    assert_int_equal(zt_log_start(filter, json, &err), ZT_OK);
}

/* Stops the log. Returns owned: everything written. */
static char *finish(void)
{
    zt_log_stop();
    dup2(saved_stdout, STDOUT_FILENO);
    close(saved_stdout);
    long n = lseek(fileno(captured), 0, SEEK_END);
    char *text = zt_zalloc((size_t)n + 1);
    assert_int_equal(pread(fileno(captured), text, (size_t)n, 0), n);
    fclose(captured);
    return text;
}

/* The part of a plain line behind the time. */
static const char *after_time(const char *line)
{
    assert_int_equal(line[26], 'Z');
    return line + 28;
}

static void filter_is(const char *directives, const char *rendered)
{
    char buf[512];
    capture(directives, false);
    zt_log_filter_render(buf, sizeof buf);
    zt_free(finish());
    assert_string_equal(buf, rendered);
}

static void log_filter_defaults_and_rendering(void **state)
{
    filter_is(NULL, "hickory_server::server=off,info");
    filter_is("", "hickory_server::server=off,error");
    filter_is("3,a=DEBUG,bb=0,ab=trace", "hickory_server::server=off,bb=off,ab=trace,a=debug,info");
    filter_is("warning", "hickory_server::server=off,warning=trace");
    filter_is("x=info,x=warn", "hickory_server::server=off,x=warn");
}

static void log_filter_refuses_bad_directives(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_log_start("a=b=c", false, &err), ZT_INVALID);
    assert_int_equal(zt_log_start("a=loud", false, &err), ZT_INVALID);
    assert_int_equal(zt_log_start("a\nb=info", false, &err), ZT_INVALID);
}

static void log_filter_matches_prefixes_of_the_full_target(void **state)
{
    capture("ztunnel::xds=debug,access=off,warn", false);
    assert_true(zt_log_on(ZT_LOG_DEBUG, "xds::client"));
    assert_false(zt_log_on(ZT_LOG_TRACE, "xds::client"));
    assert_false(zt_log_on(ZT_LOG_ERROR, "access"));
    assert_true(zt_log_on(ZT_LOG_WARN, "proxy::outbound"));
    assert_false(zt_log_on(ZT_LOG_INFO, "ztunnel"));
    zt_free(finish());
    capture("ztunnel=debug", false);
    assert_true(zt_log_on(ZT_LOG_DEBUG, "proxy::outbound"));
    assert_true(zt_log_on(ZT_LOG_DEBUG, "ztunnel"));
    assert_false(zt_log_on(ZT_LOG_ERROR, "access"));
    zt_free(finish());
}

static void log_filter_change_adds_to_current_or_startup(void **state)
{
    char buf[256];
    capture(NULL, false);
    assert_int_equal(zt_log_filter_change(false, "access=debug,info", NULL), ZT_OK);
    zt_log_filter_render(buf, sizeof buf);
    assert_string_equal(buf, "hickory_server::server=off,access=debug,info");
    assert_true(zt_log_on(ZT_LOG_DEBUG, "access"));
    assert_int_equal(zt_log_filter_change(false, "a=b=c", NULL), ZT_INVALID);
    assert_true(zt_log_on(ZT_LOG_DEBUG, "access"));
    assert_int_equal(zt_log_filter_change(true, NULL, NULL), ZT_OK);
    assert_false(zt_log_on(ZT_LOG_DEBUG, "access"));
    zt_free(finish());
}

static void log_plain_line_has_tabs_spans_and_typed_fields(void **state)
{
    capture(NULL, false);
    struct zt_log_line l;
    zt_log_begin(&l, ZT_LOG_INFO, "proxy::inbound", "connection complete");
    zt_log_span(&l, "proxy", "wl", "ns/pod");
    zt_log_span(&l, "inbound", "id", "7");
    zt_log_span(&l, "inbound", "peer", "1.2.3.4:5");
    zt_log_raw(&l, "src.addr", "10.0.0.1:80");
    zt_log_str(&l, "none", NULL);
    zt_log_str(&l, "error", "a \"b\"\\");
    zt_log_u64(&l, "bytes", 12);
    zt_log_bool(&l, "transparent", true);
    zt_log_end(&l);
    char *text = finish();
    assert_string_equal(
        after_time(text),
        "info\tproxy::inbound:proxy{wl=ns/pod}:inbound{id=7 peer=1.2.3.4:5}\t"
        "connection complete\tsrc.addr=10.0.0.1:80 error=\"a \\\"b\\\"\\\\\" bytes=12 "
        "transparent=true\n");
    zt_free(text);
}

static void log_plain_line_without_fields_or_message(void **state)
{
    capture(NULL, false);
    zt_log_info("app", "in-pod mode %s", "enabled");
    struct zt_log_line l;
    zt_log_begin(&l, ZT_LOG_INFO, "dns", NULL);
    zt_log_str(&l, "query", "A");
    zt_log_end(&l);
    char *text = finish();
    char *second = strchr(text, '\n') + 1;
    assert_string_equal(after_time(second), "info\tdns\tquery=\"A\"\n");
    second[0] = '\0';
    assert_string_equal(after_time(text), "info\tapp\tin-pod mode enabled\t\n");
    zt_free(text);
}

static void log_json_line_has_keys_in_order_and_full_target(void **state)
{
    capture(NULL, true);
    struct zt_log_line l;
    zt_log_begin(&l, ZT_LOG_INFO, "xds::client", "Stream established");
    zt_log_span(&l, "xds", "id", "1");
    zt_log_u64(&l, "n", 5);
    zt_log_raw(&l, "dst.addr", "1.2.3.4:5");
    zt_log_end(&l);
    char *text = finish();
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    static const char *const keys[] = {"level", "time", "scope", "message", "n", "dst.addr", "xds"};
    size_t i = 0;
    for (void *it = json_object_iter(j); it; it = json_object_iter_next(j, it))
        assert_string_equal(json_object_iter_key(it), keys[i++]);
    assert_int_equal(i, 7);
    assert_string_equal(json_string_value(json_object_get(j, "scope")), "ztunnel::xds::client");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "xds"), "id")), 1);
    json_decref(j);
    zt_free(text);
}

static void log_values_of_peers_never_start_a_line_or_field(void **state)
{
    static const char evil[] =
        "x\n2026-01-01T00:00:00.000000Z\terror\ta\x1b[31m\xc2\x9b\xe2\x80\xae\xff\r";
    for (int json = 0; json < 2; json++) {
        capture(NULL, json);
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_INFO, "access", evil);
        zt_log_span(&l, "proxy", "wl", evil);
        zt_log_str(&l, "a", evil);
        zt_log_raw(&l, "b", "x y=1\n");
        zt_log_end(&l);
        zt_log_info("access", "%s", evil);
        char *text = finish();
        unsigned lines = 0, tabs = 0;
        for (const char *c = text; *c; c++) {
            lines += *c == '\n';
            tabs += *c == '\t';
            assert_true(*c == '\n' || *c == '\t' || (unsigned char)*c >= 0x20);
        }
        assert_int_equal(lines, 2);
        assert_int_equal(tabs, json ? 0 : 8);
        if (!json) {
            assert_non_null(strstr(text, " b=x\\u{20}y=1\\n\n"));
            assert_non_null(strstr(text, "\\u{1b}[31m\\u{9b}\\u{202e}\xef\xbf\xbd\\r"));
        }
        zt_free(text);
    }
}

static void log_long_lines_are_cut_and_json_stays_valid(void **state)
{
    char *big = zt_zalloc(3 * ZT_LOG_LINE_MAX);
    memset(big, '\"', 3 * ZT_LOG_LINE_MAX - 1);
    for (int json = 0; json < 2; json++) {
        capture(NULL, json);
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_INFO, "app", "m");
        zt_log_span(&l, "proxy", "wl", "ns/pod");
        zt_log_str(&l, "big", big);
        zt_log_u64(&l, "after", 1);
        zt_log_str(&l, "after2", "x");
        zt_log_end(&l);
        char *text = finish();
        size_t len = strlen(text);
        assert_in_range(len, ZT_LOG_LINE_MAX / 2, ZT_LOG_LINE_MAX);
        if (json) {
            json_t *j = json_loads(text, 0, NULL);
            assert_non_null(j);
            assert_null(json_object_get(j, "after"));
            assert_non_null(json_object_get(j, "proxy"));
            json_decref(j);
        } else {
            assert_string_equal(text + len - 4, "...\n");
        }
        zt_free(text);
    }
    zt_free(big);
}

static void log_text_of_several_lines_may_be_longer_than_a_line(void **state)
{
    enum { N = 20000 };
    char *dump = zt_zalloc(2 * N + 1);
    for (int i = 0; i < N; i++)
        memcpy(dump + 2 * i, "a\n", 2);
    capture(NULL, false);
    zt_log_info("ztunnel", "running with config: \n%s", dump);
    char *text = finish();
    assert_non_null(strstr(text, dump));
    zt_free(text);
    capture(NULL, true);
    zt_log_info("ztunnel", "running with config: \n%s", dump);
    text = finish();
    json_t *j = json_loads(text, 0, NULL);
    assert_int_equal(json_string_length(json_object_get(j, "message")), 2 * N + 22);
    json_decref(j);
    zt_free(text);
    zt_free(dump);
}

static void log_full_queue_drops_and_counts_without_blocking(void **state)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    int before = dup(STDOUT_FILENO);
    dup2(ends[1], STDOUT_FILENO);
    assert_int_equal(zt_log_start(NULL, false, NULL), ZT_OK);
    uint64_t dropped = zt_log_dropped();
    char big[4000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    for (unsigned i = 0; i < 2 * ZT_LOG_QUEUE_BYTES / sizeof big; i++) {
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_INFO, "app", "m");
        zt_log_str(&l, "big", big);
        zt_log_end(&l);
    }
    assert_true(zt_log_dropped() - dropped > 500);
    uint64_t start = zt_clock_mono_ms();
    close(ends[0]); /* the writer gives the bytes up: no reader will come */
    zt_log_stop();
    assert_true(zt_clock_mono_ms() - start < 1500);
    dup2(before, STDOUT_FILENO);
    close(before);
    close(ends[1]);
}

static size_t resident_bytes(void)
{
    unsigned long size, resident;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void log_backlog_that_was_written_is_given_back(void **state)
{
    enum { BACKLOG = ZT_LOG_QUEUE_BYTES / 4 * 3 };
    static char big[4000], sink[65536];
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    int before = dup(STDOUT_FILENO);
    dup2(ends[1], STDOUT_FILENO);
    assert_int_equal(zt_log_start(NULL, false, NULL), ZT_OK);
    memset(big, 'x', sizeof big - 1);
    size_t idle = resident_bytes();
    for (unsigned i = 0; i < BACKLOG / sizeof big; i++) {
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_INFO, "app", "m");
        zt_log_str(&l, "big", big);
        zt_log_end(&l);
    }
    size_t full = resident_bytes();
    assert_true(full > idle + BACKLOG / 2);
    for (size_t got = 0; got < BACKLOG;) /* each line is longer than its field */
        got += (size_t)read(ends[0], sink, sizeof sink);
    uint64_t deadline = zt_clock_mono_ms() + 10000;
    while (resident_bytes() > full - BACKLOG / 2 && zt_clock_mono_ms() < deadline)
        usleep(1000);
    assert_true(resident_bytes() <= full - BACKLOG / 2);
    close(ends[0]);
    zt_log_stop();
    dup2(before, STDOUT_FILENO);
    close(before);
    close(ends[1]);
}

static void log_sleeping_writer_is_woken_by_a_line(void **state)
{
    struct timespec pause = {.tv_nsec = 20000000};
    capture(NULL, false);
    for (int line = 1; line <= 3; line++) {
        nanosleep(&pause, NULL); /* the writer has nothing to do and sleeps */
        off_t before = lseek(fileno(captured), 0, SEEK_END);
        zt_log_info("app", "line");
        for (int i = 0; i < 200 && lseek(fileno(captured), 0, SEEK_END) == before; i++)
            nanosleep(&pause, NULL);
        assert_true(lseek(fileno(captured), 0, SEEK_END) > before);
    }
    zt_free(finish());
}

static void log_gate_passes_a_burst_a_second_and_tells_what_it_held(void **state)
{
    struct zt_log_gate g = {0};
    uint32_t held;
    zt_clock_test_advance_ms(1000 - (int64_t)(zt_clock_mono_ms() % 1000));
    for (int i = 0; i < 3; i++)
        assert_true(zt_log_gate_pass(&g, 3, &held));
    for (int i = 0; i < 5; i++)
        assert_false(zt_log_gate_pass(&g, 3, &held));
    zt_clock_test_advance_ms(1000);
    assert_true(zt_log_gate_pass(&g, 3, &held));
    assert_int_equal(held, 5);
    assert_true(zt_log_gate_pass(&g, 3, &held));
    assert_int_equal(held, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_filter_defaults_and_rendering),
        cmocka_unit_test(log_filter_refuses_bad_directives),
        cmocka_unit_test(log_filter_matches_prefixes_of_the_full_target),
        cmocka_unit_test(log_filter_change_adds_to_current_or_startup),
        cmocka_unit_test(log_plain_line_has_tabs_spans_and_typed_fields),
        cmocka_unit_test(log_plain_line_without_fields_or_message),
        cmocka_unit_test(log_json_line_has_keys_in_order_and_full_target),
        cmocka_unit_test(log_values_of_peers_never_start_a_line_or_field),
        cmocka_unit_test(log_long_lines_are_cut_and_json_stays_valid),
        cmocka_unit_test(log_text_of_several_lines_may_be_longer_than_a_line),
        cmocka_unit_test(log_full_queue_drops_and_counts_without_blocking),
        cmocka_unit_test(log_backlog_that_was_written_is_given_back),
        cmocka_unit_test(log_sleeping_writer_is_woken_by_a_line),
        cmocka_unit_test(log_gate_passes_a_burst_a_second_and_tells_what_it_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
