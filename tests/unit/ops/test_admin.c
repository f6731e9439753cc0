/* The admin pages (spec/interfaces §4.1, §4.2, checks C23, C24, C26 of §11). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/http_fixture.h"
#include "zt/base/log.h"
#include "zt/ops/admin.h"
#include <cmocka.h>
#include <string.h>

static struct http_fixture f;
static char reply[65536];
static int n_quits;

static void on_quit(void *arg)
{
    n_quits++;
}

static struct zt_admin_quit quit = {.fn = on_quit};

static void routes(struct zt_http1 *s, void *arg)
{
    zt_admin_routes(s, &quit);
}

static int setup(void **state)
{
    n_quits = 0;
    http_fixture_start(&f, routes, NULL);
    return 0;
}

static int teardown(void **state)
{
    http_fixture_stop(&f);
    return 0;
}

static int start_log(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    return zt_log_start(NULL, false, &err) == ZT_OK ? 0 : -1;
}

static int stop_log(void **state)
{
    zt_log_stop();
    return 0;
}

static void admin_index_links_six_paths(void **state)
{
    static const char *const links[] = {"config_dump", "logging", "quitquitquit", "debug/pprof/profile",
                                        "debug/pprof/heap", "debug/pprof/heap/profiling"};
    assert_int_equal(http_ask(f.port, "GET", "/", NULL, reply, sizeof reply), 200);
    assert_non_null(strcasestr(reply, "content-type: text/html; charset=utf-8\r\n"));
    assert_non_null(strstr(reply, "<title>Ztunnel Admin</title>"));
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        char href[64];
        zt_fmt(href, sizeof href, "<a href=\"%s\">", links[i]);
        assert_non_null(strstr(reply, href));
    }
}

static void admin_logging_C23_get_is_405_and_post_reports(void **state)
{
    assert_int_equal(http_ask(f.port, "GET", "/logging", NULL, reply, sizeof reply), 405);
    assert_int_equal(strncmp(http_body(reply), "Invalid HTTP method\n ", 21), 0);
    assert_int_equal(http_ask(f.port, "POST", "/logging", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,info\n");
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,info\n");
}

static void admin_logging_C24_changes_refuses_and_resets(void **state)
{
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=access=debug,info", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,access=debug,info\n");
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=bogus", NULL, reply, sizeof reply), 400);
    assert_int_equal(strncmp(http_body(reply), "Invalid level provided: bogus\n", 30), 0);
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=access=loud", NULL, reply, sizeof reply), 400);
    assert_int_equal(strncmp(http_body(reply), "Failed to set new level: ", 25), 0);
    assert_int_equal(http_ask(f.port, "POST", "/logging?reset", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,info\n");
    assert_int_equal(http_ask(f.port, "POST", "/logging?reset&level=debug", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,debug\n");
    http_ask(f.port, "POST", "/logging?reset", NULL, reply, sizeof reply);
}

static void admin_logging_takes_the_colon_form_too(void **state)
{
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=access:debug", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "current log level is hickory_server::server=off,access=debug,info\n");
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=ztunnel::debug", NULL, reply, sizeof reply), 400);
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=DEBUG", NULL, reply, sizeof reply), 400);
    assert_int_equal(http_ask(f.port, "POST", "/logging?level=info,", NULL, reply, sizeof reply), 400);
    http_ask(f.port, "POST", "/logging?reset", NULL, reply, sizeof reply);
}

static void admin_quit_C26_needs_post(void **state)
{
    assert_int_equal(http_ask(f.port, "GET", "/quitquitquit", NULL, reply, sizeof reply), 405);
    assert_string_equal(http_body(reply), "");
    assert_int_equal(n_quits, 0);
    assert_int_equal(http_ask(f.port, "POST", "/quitquitquit", NULL, reply, sizeof reply), 200);
    assert_string_equal(http_body(reply), "shutdown now\n");
    assert_int_equal(n_quits, 1);
}

static void admin_pprof_checks_its_parameters(void **state)
{
    static const struct {
        const char *target;
        int status;
        const char *body;
    } cases[] = {
        {"/debug/pprof/profile?seconds=0", 400, "invalid seconds value; expected 1-300\n"},
        {"/debug/pprof/profile?seconds=301", 400, "invalid seconds value; expected 1-300\n"},
        {"/debug/pprof/profile?seconds=99999999999999999999", 400, "invalid seconds value; expected 1-300\n"},
        {"/debug/pprof/profile?seconds=1x", 400, "invalid seconds value; expected 1-300\n"},
        {"/debug/pprof/profile?seconds=1&frequency=1001", 400, "invalid frequency value; expected 1-1000\n"},
        {"/debug/pprof/heap", 500, "jemalloc not enabled"},
        {"/debug/pprof/heap/profiling?activate=maybe", 400,
         "invalid activate value \"maybe\"; expected true or false\n"},
        {"/debug/pprof/heap/profiling?activate=true", 500, "jemalloc not enabled"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(http_ask(f.port, "GET", cases[i].target, NULL, reply, sizeof reply), cases[i].status);
        assert_string_equal(http_body(reply), cases[i].body);
    }
    assert_int_equal(http_ask(f.port, "GET", "/debug/pprof/profile", NULL, reply, sizeof reply), 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(admin_index_links_six_paths, setup, teardown),
        cmocka_unit_test_setup_teardown(admin_logging_C23_get_is_405_and_post_reports, setup, teardown),
        cmocka_unit_test_setup_teardown(admin_logging_C24_changes_refuses_and_resets, setup, teardown),
        cmocka_unit_test_setup_teardown(admin_logging_takes_the_colon_form_too, setup, teardown),
        cmocka_unit_test_setup_teardown(admin_quit_C26_needs_post, setup, teardown),
        cmocka_unit_test_setup_teardown(admin_pprof_checks_its_parameters, setup, teardown),
    };
    return cmocka_run_group_tests(tests, start_log, stop_log);
}
