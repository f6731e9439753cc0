/* The control socket's file and its explain and issue handlers, asked over the socket itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/state_fixture.h"
#include "zt/base/str.h"
#include "zt/app/ctl_server.h"
#include "zt/base/mem.h"
#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64], path[96], previous[112], reply[65536];
static struct zt_loop *loop;
static struct zt_config config;

/* A CA that signs with fixed texts, from the loop. */
struct fake_ca {
    struct zt_ca ca;
    struct zt_task task;
    struct zt_ca_request *request;
    char identity[ZT_IDENTITY_MAX];
    bool refuse;
};
static struct fake_ca ca;

static void on_ca_task(struct zt_task *t)
{
    static const char *const chain[] = {"LEAF\n", "INTERMEDIATE\n", "ROOTS\n"};
    struct zt_ca_reply good = {.code = ZT_OK, .chain_pem = chain, .n_chain = 3};
    struct zt_ca_reply bad = {.code = ZT_IDENTITY, .error = "not today"};
    ca.request->done(ca.request, ca.refuse ? &bad : &good);
}

static void fake_sign(struct zt_ca *c, struct zt_ca_request *r, const char *identity, const char *csr_pem, uint64_t ttl_s)
{
    ca.request = r;
    zt_fmt(ca.identity, sizeof ca.identity, "%s", identity);
    assert_non_null(strstr(csr_pem, "BEGIN CERTIFICATE REQUEST"));
    assert_int_equal(ttl_s, 3600);
    zt_loop_soon(loop, &ca.task);
}

static const struct zt_ca_ops fake_ops = {.sign = fake_sign};

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/zt-ctl-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/ctl", dir);
    snprintf(previous, sizeof previous, "%s.prev", path);
    loop = zt_loop_new("control");
    ca = (struct fake_ca){.ca.ops = &fake_ops, .task.run = on_ca_task};
    config = (struct zt_config){.node_name = (char *)(uintptr_t)STATE_NODE, .secret_ttl_s = 3600};
    return state_setup(state);
}

static int teardown(void **state)
{
    zt_loop_free(loop);
    unlink(path);
    rmdir(dir); /* fails when a test left something */
    assert_int_equal(access(dir, F_OK), -1);
    return state_teardown(state);
}

static struct zt_ctl_server *serve(struct zt_store *store)
{
    struct zt_ctl_server *s = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_ctl_sources sources = {.state = {.config = &config, .store = store, .helper = loop}, .ca = &ca.ca};
    assert_int_equal(zt_ctl_server_new(loop, path, &sources, &s, &err), ZT_OK);
    return s;
}

static int connect_to(const char *where)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    zt_fmt(sa.sun_path, sizeof sa.sun_path, "%s", where);
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0)
        return fd;
    close(fd);
    return -1;
}

/* One request with the loop turned by hand; the status, with the body as JSON. */
static int ask(const char *method, const char *target, json_t **body)
{
    char request[1024];
    size_t len = 0;
    int fd = connect_to(path);
    assert_true(fd >= 0);
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, target);
    assert_int_equal(write(fd, request, strlen(request)), strlen(request));
    for (int i = 0; i < 20000; i++) {
        zt_loop_run_once(loop, false);
        ssize_t n = read(fd, reply + len, sizeof reply - 1 - len);
        if (n == 0)
            break;
        if (n > 0)
            len += (size_t)n;
        else
            usleep(100);
    }
    close(fd);
    reply[len] = '\0';
    const char *end = strstr(reply, "\r\n\r\n");
    assert_non_null(end);
    *body = json_loads(end + 4, 0, NULL);
    return (int)strtol(reply + 9, NULL, 10);
}

static const char *text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ---- the file ---- */

static void ctl_socket_is_0600_and_goes_at_exit(void **state)
{
    struct stat st;
    struct zt_ctl_server *s = serve(*state);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0600);
    zt_ctl_server_free(s);
    assert_int_equal(access(path, F_OK), -1);
}

static void ctl_socket_that_nobody_serves_is_replaced(void **state)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int stale = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    assert_int_equal(bind(stale, (struct sockaddr *)&sa, sizeof sa), 0);
    close(stale);
    struct zt_ctl_server *s = serve(*state);
    int fd = connect_to(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(access(previous, F_OK), -1);
    zt_ctl_server_free(s);
}

static void ctl_socket_of_a_live_daemon_is_moved_aside_and_each_removes_its_own(void **state)
{
    struct zt_ctl_server *old = serve(*state), *new = serve(*state);
    int fd = connect_to(previous);
    assert_true(fd >= 0);
    close(fd);
    zt_ctl_server_free(old);
    assert_int_equal(access(previous, F_OK), -1);
    assert_int_equal(access(path, F_OK), 0);
    zt_ctl_server_free(new);
    assert_int_equal(access(path, F_OK), -1);
}

static void ctl_path_that_is_no_socket_is_an_error_and_stays(void **state)
{
    struct zt_ctl_server *s = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_ctl_sources sources = {.state = {.config = &config, .store = *state}};
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(zt_ctl_server_new(loop, path, &sources, &s, &err), ZT_IO);
    assert_non_null(strstr(err.text, "is not a socket"));
    assert_int_equal(access(path, F_OK), 0);
}

static void ctl_path_that_cannot_be_made_says_what_to_do(void **state)
{
    static const char *const bad[] = {"/nonexistent-directory/ctl",
                                      "/tmp/0123456789012345678901234567890123456789012345678901234567890123456789"
                                      "0123456789012345678901234567890123456789"};
    for (int i = 0; i < 2; i++) {
        struct zt_ctl_server *s = NULL;
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_ctl_sources sources = {.state = {.config = &config, .store = *state}};
        assert_int_equal(zt_ctl_server_new(loop, bad[i], &sources, &s, &err), ZT_IO);
        assert_non_null(strstr(err.text, "ZTUNNELD_CTL_SOCKET"));
    }
}

/* ---- issue ---- */

static void ctl_issue_returns_chain_key_and_roots(void **state)
{
    json_t *body;
    struct zt_ctl_server *s = serve(*state);
    assert_int_equal(ask("POST", "/v1/ca/issue?id=spiffe://td/ns/a/sa/b", &body), 200);
    assert_string_equal(ca.identity, "spiffe://td/ns/a/sa/b");
    assert_string_equal(text(body, "chain"), "LEAF\nINTERMEDIATE\n");
    assert_string_equal(text(body, "roots"), "ROOTS\n");
    assert_non_null(strstr(text(body, "key"), "BEGIN PRIVATE KEY"));
    json_decref(body);
    zt_ctl_server_free(s);
}

static void ctl_issue_refuses_what_is_no_identity_and_passes_the_cas_reason_on(void **state)
{
    json_t *body;
    struct zt_ctl_server *s = serve(*state);
    assert_int_equal(ask("POST", "/v1/ca/issue?id=spiffe://td/ns/a", &body), 400);
    json_decref(body);
    assert_int_equal(ask("POST", "/v1/ca/issue", &body), 400);
    json_decref(body);
    assert_int_equal(ask("GET", "/v1/ca/issue?id=spiffe://td/ns/a/sa/b", &body), 405);
    ca.refuse = true;
    assert_int_equal(ask("POST", "/v1/ca/issue?id=spiffe://td/ns/a/sa/b", &body), 500);
    assert_non_null(strstr(text(body, "error"), "not today"));
    json_decref(body);
    zt_ctl_server_free(s);
}

/* ---- explain ---- */

static void put_mesh(struct zt_store *s)
{
    state_put(s, WORKLOAD("c//Pod/ns1/sleep", .ns = "ns1", .name = "sleep", .service_account = "sleep", IPS("10.0.0.1"),
                          .protocol = ZT_PROTOCOL_HBONE, .node = STATE_NODE));
    state_put(s, WORKLOAD("c//Pod/ns2/echo", .ns = "ns2", .name = "echo", .service_account = "echo", IPS("10.0.0.2"),
                          .protocol = ZT_PROTOCOL_HBONE, .node = "other", SERVES(MEMBER("ns2", "echo.ns2.svc", {80, 8080}))));
    state_put_service(s, SERVICE("ns2", "echo.ns2.svc", VIPS("10.96.0.1"), PORTS({80, 8080})));
}

static void ctl_explain_shows_route_and_whose_verdict_it_is(void **state)
{
    json_t *body;
    struct zt_ctl_server *s = serve(*state);
    put_mesh(*state);
    assert_int_equal(ask("GET", "/v1/explain?src=ns1/sleep&dst=echo.ns2.svc:80", &body), 200);
    const json_t *route = json_object_get(body, "route"), *authz = json_object_get(body, "authorization");
    assert_string_equal(text(body, "destination"), "10.96.0.1:80");
    assert_string_equal(text(route, "protocol"), "HBONE");
    assert_string_equal(text(route, "nextHop"), "10.0.0.2:15008");
    assert_string_equal(text(route, "authority"), "10.0.0.2:8080");
    assert_string_equal(text(authz, "decidedBy"), "the other node");
    assert_string_equal(text(authz, "node"), "other");
    assert_string_equal(text(authz, "verdict"), "allow");
    assert_true(json_array_size(json_object_get(body, "steps")) > 0);
    json_decref(body);
    zt_ctl_server_free(s);
}

static void ctl_explain_names_the_policy_that_refuses(void **state)
{
    json_t *body;
    struct zt_ctl_server *s = serve(*state);
    put_mesh(*state);
    state_put_policy(*state, &(struct zt_policy){.scope = ZT_POLICY_NAMESPACE, .action = ZT_POLICY_ALLOW, .key = "ns2/none",
                                                 .ns = "ns2", .name = "none"});
    assert_int_equal(ask("GET", "/v1/explain?src=ns1/sleep&dst=10.0.0.2:8080", &body), 200);
    const json_t *authz = json_object_get(body, "authorization");
    assert_string_equal(text(authz, "verdict"), "deny");
    assert_string_equal(text(authz, "reason"), "allow policies exist, but none allowed");
    assert_non_null(strstr(json_string_value(json_array_get(json_object_get(authz, "steps"), 0)), "ns2/none"));
    json_decref(body);
    zt_ctl_server_free(s);
}

static void ctl_explain_says_what_is_wrong_with_the_question(void **state)
{
    static const struct {
        const char *target, *error;
        int status;
    } cases[] = {
        {"/v1/explain", "NAMESPACE/POD", 400},
        {"/v1/explain?src=ns1&dst=1.2.3.4:80", "NAMESPACE/POD", 400},
        {"/v1/explain?src=ns1/&dst=1.2.3.4:80", "NAMESPACE/POD", 400},
        {"/v1/explain?src=ns1/nobody&dst=1.2.3.4:80", "no workload ns1/nobody", 404},
        {"/v1/explain?src=ns1/sleep", "ADDRESS:PORT", 400},
        {"/v1/explain?src=ns1/sleep&dst=1.2.3.4", "ADDRESS:PORT", 400},
        {"/v1/explain?src=ns1/sleep&dst=1.2.3.4:0", "not a port", 400},
        {"/v1/explain?src=ns1/sleep&dst=1.2.3.4:70000", "not a port", 400},
        {"/v1/explain?src=ns1/sleep&dst=nohost:80", "nohost is neither", 404},
    };
    struct zt_ctl_server *s = serve(*state);
    put_mesh(*state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *body;
        assert_int_equal(ask("GET", cases[i].target, &body), cases[i].status);
        assert_non_null(strstr(text(body, "error"), cases[i].error));
        json_decref(body);
    }
    zt_ctl_server_free(s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ctl_socket_is_0600_and_goes_at_exit),
        TEST(ctl_socket_that_nobody_serves_is_replaced),
        TEST(ctl_socket_of_a_live_daemon_is_moved_aside_and_each_removes_its_own),
        TEST(ctl_path_that_is_no_socket_is_an_error_and_stays),
        TEST(ctl_path_that_cannot_be_made_says_what_to_do),
        TEST(ctl_issue_returns_chain_key_and_roots),
        TEST(ctl_issue_refuses_what_is_no_identity_and_passes_the_cas_reason_on),
        TEST(ctl_explain_shows_route_and_whose_verdict_it_is),
        TEST(ctl_explain_names_the_policy_that_refuses),
        TEST(ctl_explain_says_what_is_wrong_with_the_question),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
