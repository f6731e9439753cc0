/* ztctl's commands against a server on a unix socket that says what the test wants said. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "ctl/client.h"
#include "support/http_fixture.h"
#include "zt/base/mem.h"
#include "zt/ctl/ctl.h"
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64], path[96], out[65536], err[4096];
static struct zt_loop *loop;
static struct zt_http1 *server;
static const char *answer;
static unsigned answer_status;
static char seen[1024]; /* the parameters of the last request */

static void on_request(void *arg, struct zt_http1_request *r)
{
    static const char *const keys[] = {"src", "dst", "id"};
    seen[0] = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *value = zt_http1_request_query(r, keys[i]);
        size_t len = strlen(seen);
        if (value)
            snprintf(seen + len, sizeof seen - len, "%s=%s;", keys[i], value);
    }
    zt_http1_reply_text(r, answer_status, "application/json", answer);
}

static void start_server(void *arg)
{
    zt_http1_start(server);
}

static void free_server(void *arg)
{
    zt_http1_free(server);
}

static int listen_unix(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    return bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 8) == 0 ? fd : -1;
}

static int setup(void **state)
{
    struct zt_error e = ZT_ERROR_INIT;
    snprintf(dir, sizeof dir, "/tmp/zt-ctl-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/ctl", dir);
    answer_status = 200;
    loop = zt_loop_new("daemon");
    if (zt_http1_new(loop, "ctl", NULL, NULL, &server, &e) != ZT_OK || zt_loop_start(loop, &e) != ZT_OK)
        return -1;
    zt_http1_route(server, "/v1/status", ZT_HTTP1_GET, on_request, NULL);
    zt_http1_route(server, "/v1/explain", ZT_HTTP1_GET, on_request, NULL);
    zt_http1_route(server, "/v1/ca/issue", ZT_HTTP1_POST, on_request, NULL);
    zt_http1_listen(server, listen_unix(), path);
    http_on_loop(loop, start_server, NULL);
    return 0;
}

static int teardown(void **state)
{
    char command[128];
    http_on_loop(loop, free_server, NULL);
    zt_loop_stop(loop);
    zt_loop_join(loop);
    zt_loop_free(loop);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

/* Runs ztctl with up to six words after --socket PATH; the exit code, with what it said in out and err. */
static int ztctl(const char *a, const char *b, const char *c, const char *d, const char *e)
{
    const char *words[] = {"ztctl", "--socket", path, a, b, c, d, e};
    char *argv[8];
    int argc = 0;
    for (; argc < 8 && words[argc]; argc++)
        argv[argc] = strdup(words[argc]);
    memset(out, 0, sizeof out);
    memset(err, 0, sizeof err);
    FILE *out_file = fmemopen(out, sizeof out - 1, "w"), *err_file = fmemopen(err, sizeof err - 1, "w");
    int code = zt_ctl_main(argc, argv, out_file, err_file);
    fclose(out_file);
    fclose(err_file);
    while (argc > 0)
        free(argv[--argc]);
    return code;
}

static const char status_answer[] =
    "{\"ready\":false,\"pending\":\"workload proxy manager\",\"mode\":\"shared\",\"node\":\"n1\",\"draining\":true,"
    "\"uptimeMs\":3723000,\"workers\":2,\"memoryLiveBytes\":1048576,\"openFds\":7,\"version\":{\"version\":\"0.1\"},"
    "\"state\":{\"workloads\":3,\"services\":2,\"policies\":1},"
    "\"pods\":[{\"uid\":\"u1\",\"namespace\":\"ns1\",\"name\":\"sl\\u001beep\",\"state\":\"Up\",\"worker\":1,"
    "\"connectionsIn\":1,\"connectionsOut\":22,\"tunnelsIn\":3,\"tunnelsOut\":4},"
    "{\"uid\":\"u2\",\"namespace\":\"ns1\",\"name\":\"late\",\"state\":\"Pending\",\"reason\":\"port in use\"}],"
    "\"certificates\":[{\"identity\":\"spiffe://td/ns/a/sa/b\",\"state\":\"Available\",\"expirationTime\":\"2030\"}]}";

static void ctl_status_is_a_table_safe_for_a_terminal(void **state)
{
    answer = status_answer;
    assert_int_equal(ztctl("status", NULL, NULL, NULL, NULL), ZT_CTL_OK);
    assert_non_null(strstr(out, "ztunneld 0.1, node n1, shared mode, up 1h2m, 2 workers, DRAINING\n"));
    assert_non_null(strstr(out, "ready: no, pending: workload proxy manager\n"));
    assert_non_null(strstr(out, "3 workloads, 2 services, 1 policies\n"));
    assert_non_null(strstr(out, "ns1/sl?eep   Up        1        1          22"));
    assert_non_null(strstr(out, "ns1/late     Pending   -"));
    assert_non_null(strstr(out, "spiffe://td/ns/a/sa/b   2030          -      Available\n"));
    assert_null(strchr(out, '\x1b'));
    assert_string_equal(err, "");
}

static void ctl_pods_says_why_a_pod_is_pending(void **state)
{
    answer = status_answer;
    assert_int_equal(ztctl("pods", NULL, NULL, NULL, NULL), ZT_CTL_OK);
    assert_memory_equal(out, "POD ", 4);
    assert_non_null(strstr(out, "u2    port in use\n"));
    assert_null(strstr(out, "CERTIFICATE"));
    assert_int_equal(ztctl("-o", "json", "pods", NULL, NULL), ZT_CTL_OK);
    json_t *got = json_loads(out, 0, NULL);
    assert_int_equal(json_array_size(got), 2);
    json_decref(got);
}

static void ctl_status_json_is_the_answer_in_ascii(void **state)
{
    answer = status_answer;
    assert_int_equal(ztctl("-o", "json", "status", NULL, NULL), ZT_CTL_OK);
    json_t *got = json_loads(out, 0, NULL), *want = json_loads(status_answer, 0, NULL);
    assert_true(json_equal(got, want));
    json_decref(got);
    json_decref(want);
    for (const char *p = out; *p; p++)
        assert_true(*p == '\n' || (*p >= ' ' && *p <= '~'));
}

static void ctl_explain_passes_its_arguments_whole(void **state)
{
    answer = "{\"source\":\"ns1/sleep\",\"destination\":\"10.0.0.1:80\",\"steps\":[\"one\",\"two\"],"
             "\"route\":{\"protocol\":\"HBONE\",\"nextHop\":\"10.0.0.2:15008\",\"authority\":\"10.0.0.2:8080\","
             "\"expectedIdentities\":[\"spiffe://a\"],\"viaWaypoint\":false},"
             "\"authorization\":{\"decidedBy\":\"the other node\",\"node\":\"n2\",\"verdict\":\"deny\",\"reason\":\"none\"}}";
    assert_int_equal(ztctl("explain", "ns1/sl eep&x", "[fd00::1]:80", NULL, NULL), ZT_CTL_OK);
    assert_string_equal(seen, "src=ns1/sl eep&x;dst=[fd00::1]:80;");
    assert_non_null(strstr(out, "  1. one\n  2. two\n  => HBONE to 10.0.0.2:15008, CONNECT 10.0.0.2:8080\n"));
    assert_non_null(strstr(out, "authorization: the other node decides (n2)\n"));
    assert_non_null(strstr(out, "  => deny: none\n"));
}

static void ctl_explain_shows_a_route_that_fails(void **state)
{
    answer = "{\"source\":\"a/b\",\"destination\":\"10.0.0.1:80\",\"steps\":[],\"routeError\":\"no healthy upstream: x\"}";
    assert_int_equal(ztctl("explain", "a/b", "10.0.0.1:80", NULL, NULL), ZT_CTL_OK);
    assert_non_null(strstr(out, "  => fails: no healthy upstream: x\n"));
}

static void check_file(const char *name, const char *text)
{
    char file[256], content[64] = "";
    struct stat st;
    snprintf(file, sizeof file, "%s/new/%s", dir, name);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    FILE *f = fopen(file, "r");
    assert_true(fread(content, 1, sizeof content - 1, f) > 0);
    fclose(f);
    assert_string_equal(content, text);
}

static void ctl_issue_writes_three_private_files_and_replaces_them(void **state)
{
    char target[128];
    snprintf(target, sizeof target, "%s/new", dir);
    answer = "{\"chain\":\"CHAIN1\",\"key\":\"KEY1\",\"roots\":\"ROOTS1\"}";
    assert_int_equal(ztctl("ca", "issue", "spiffe://td/ns/a/sa/b", target, NULL), ZT_CTL_OK);
    assert_string_equal(seen, "id=spiffe://td/ns/a/sa/b;");
    answer = "{\"chain\":\"CHAIN2\",\"key\":\"KEY2\",\"roots\":\"ROOTS2\"}";
    assert_int_equal(ztctl("ca", "issue", "spiffe://td/ns/a/sa/b", target, NULL), ZT_CTL_OK);
    check_file("cert-chain.pem", "CHAIN2");
    check_file("key.pem", "KEY2");
    check_file("root-cert.pem", "ROOTS2");
    assert_string_equal(out, "");
}

static void ctl_issue_writes_nothing_of_an_answer_that_lacks_a_part(void **state)
{
    char target[128];
    snprintf(target, sizeof target, "%s/new", dir);
    answer = "{\"chain\":\"CHAIN\",\"roots\":\"ROOTS\"}";
    assert_int_equal(ztctl("ca", "issue", "spiffe://td/ns/a/sa/b", target, NULL), ZT_CTL_REFUSED);
    assert_int_equal(access(target, F_OK), -1);
    answer = "{\"chain\":\"CHAIN\",\"key\":\"KEY\",\"roots\":\"ROOTS\"}";
    assert_int_equal(ztctl("ca", "issue", "spiffe://td/ns/a/sa/b", "/nonexistent/dir", NULL), ZT_CTL_REFUSED);
    assert_non_null(strstr(err, "/nonexistent/dir"));
}

static void ctl_error_of_the_daemon_is_shown_and_exits_1(void **state)
{
    answer = "{\"error\":\"no such pod\\u001b[2J\"}";
    answer_status = 404;
    assert_int_equal(ztctl("status", NULL, NULL, NULL, NULL), ZT_CTL_REFUSED);
    assert_string_equal(err, "ztctl: no such pod?[2J\n");
    answer = "not json";
    answer_status = 200;
    assert_int_equal(ztctl("status", NULL, NULL, NULL, NULL), ZT_CTL_REFUSED);
    assert_string_equal(err, "ztctl: the daemon's answer is not JSON\n");
    answer = "";
    answer_status = 500;
    assert_int_equal(ztctl("status", NULL, NULL, NULL, NULL), ZT_CTL_REFUSED);
    assert_non_null(strstr(err, "HTTP status 500"));
}

static void ctl_daemon_that_is_not_there_exits_3_and_says_what_to_do(void **state)
{
    char where[128];
    snprintf(where, sizeof where, "%s/nothing", dir);
    assert_int_equal(ztctl("--socket", where, "status", NULL, NULL), ZT_CTL_UNREACHABLE);
    assert_non_null(strstr(err, where));
    assert_non_null(strstr(err, "is ztunneld running here?"));
    assert_string_equal(out, "");
}

static void ctl_wrong_usage_exits_2(void **state)
{
    static const char *const cases[][4] = {
        {NULL},         {"bogus"},        {"status", "extra"}, {"explain", "a/b"},
        {"ca"},         {"ca", "revoke"}, {"ca", "issue", "x"}, {"-o", "yaml", "status"},
        {"status", "-o"}, {"--bogus"},    {"--socket"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ztctl(cases[i][0], cases[i][1], cases[i][2], cases[i][3], NULL), ZT_CTL_USAGE);
        assert_non_null(strstr(err, "see ztctl help"));
    }
}

static void ctl_help_and_version_need_no_daemon(void **state)
{
    assert_int_equal(ztctl("help", NULL, NULL, NULL, NULL), ZT_CTL_OK);
    assert_non_null(strstr(out, "exit status:"));
    assert_int_equal(ztctl("--help", NULL, NULL, NULL, NULL), ZT_CTL_OK);
    assert_int_equal(ztctl("version", NULL, NULL, NULL, NULL), ZT_CTL_OK);
    assert_int_equal(strncmp(out, "ztctl ", 6), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ctl_status_is_a_table_safe_for_a_terminal),
        TEST(ctl_pods_says_why_a_pod_is_pending), TEST(ctl_status_json_is_the_answer_in_ascii),
        TEST(ctl_explain_passes_its_arguments_whole),
        TEST(ctl_explain_shows_a_route_that_fails),
        TEST(ctl_issue_writes_three_private_files_and_replaces_them),
        TEST(ctl_issue_writes_nothing_of_an_answer_that_lacks_a_part),
        TEST(ctl_error_of_the_daemon_is_shown_and_exits_1),
        TEST(ctl_daemon_that_is_not_there_exits_3_and_says_what_to_do),
        TEST(ctl_wrong_usage_exits_2),
        TEST(ctl_help_and_version_need_no_daemon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
