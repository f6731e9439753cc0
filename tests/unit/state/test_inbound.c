/* Where an inbound CONNECT goes: spec/dataplane §4.5, §4.6, §11.3 and the state half of §13.2. */
#include "support/state_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const uint16_t illegal_ports[] = {15001, 15006, 15008};

/* The upstream test's cast: a plain server, its namesake services, and three kinds of waypoint. */
static int setup(void **state)
{
    state_setup(state);
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("default", "waypoint", VIPS("10.10.10.1"), PORTS({80, 8080})));
    state_put_service(
        s, SERVICE("default", "server", VIPS("10.10.10.2", "fd10::2"), PORTS({80, 8080}, {81, 0})));
    state_put_service(s, SERVICE("default", "by-pod.svc", VIPS("10.10.10.3"), PORTS({80, 8080}),
                                 .waypoint = GATEWAY_IP("", "10.0.1.1", 15008)));
    state_put_service(s, SERVICE("default", "by-vip.svc", VIPS("10.10.10.4"), PORTS({80, 8080}),
                                 .waypoint = GATEWAY_IP("", "10.10.10.1", 15008)));
    state_put(s, WORKLOAD("waypoint", IPS("10.0.1.1"),
                          SERVES(MEMBER("default", "waypoint", {80, 8080}))));
    state_put(s, WORKLOAD("tunnel", IPS("10.0.1.3"), .has_app_tunnel = true,
                          .app_tunnel = ZT_APP_TUNNEL_PROXY, .app_tunnel_port = 15088));
    state_put(s,
              WORKLOAD("server", IPS("10.0.2.1"), SERVES(MEMBER("default", "server", {81, 9090}))));
    state_put(s, WORKLOAD("server-by-pod", IPS("10.0.2.2"),
                          .waypoint = GATEWAY_IP("", "10.0.1.1", 15008)));
    state_put(s, WORKLOAD("server-by-vip", IPS("10.0.2.3"),
                          .waypoint = GATEWAY_IP("", "10.10.10.1", 15008)));
    state_put(s, WORKLOAD("server-by-host", IPS("10.0.2.4"),
                          .waypoint = GATEWAY_HOST("default", "waypoint", 15008)));
    return 0;
}

static enum zt_err resolve(struct zt_store *s, const char *uid, const char *local_ip,
                           const char *authority, struct zt_inbound_target *t, struct zt_error *err)
{
    struct zt_workload *w = zt_store_find_workload(s, uid);
    assert_non_null(w);
    struct zt_inbound_query q = {.local = w,
                                 .local_ip = state_ip(local_ip),
                                 .authority = authority,
                                 .illegal_ports = illegal_ports,
                                 .n_illegal_ports = 3,
                                 .localhost_app_tunnel = true};
    enum zt_err e = zt_inbound_resolve(s, &q, t, err);
    zt_workload_unref(w);
    return e;
}

static void expect(struct zt_store *s, const char *uid, const char *local_ip, const char *authority,
                   const char *upstream, const char *tunnel_target)
{
    char text[ZT_ADDR_TEXT_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_inbound_target t;
    if (resolve(s, uid, local_ip, authority, &t, &err) != ZT_OK)
        fail_msg("%s: %s", authority, err.text);
    assert_string_equal(zt_addr_format(&t.upstream, text), upstream);
    assert_int_equal(t.proxy_protocol, tunnel_target != NULL);
    if (tunnel_target) {
        assert_string_equal(zt_addr_format(&t.tunnel_target, text), tunnel_target);
        assert_true(zt_ip_is_loopback(&t.dial.ip));
        assert_int_equal(t.dial.port, t.upstream.port);
    } else {
        assert_true(zt_addr_equal(&t.dial, &t.upstream));
    }
    zt_inbound_target_fini(&t);
}

static void expect_refused(struct zt_store *s, const char *uid, const char *local_ip,
                           const char *authority, enum zt_err code, const char *text)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_inbound_target t;
    assert_int_equal(resolve(s, uid, local_ip, authority, &t, &err), code);
    assert_string_equal(err.text, text);
    assert_null(t.service);
}

static void test_find_inbound_upstream_to_workload_no_waypoint(void **state)
{
    expect(*state, "server", "10.0.2.1", "10.0.2.1:80", "10.0.2.1:80", NULL);
}

static void test_find_inbound_upstream_svc_hostname_to_workload_no_waypoint(void **state)
{
    expect(*state, "server", "10.0.2.1", "server:80", "10.0.2.1:8080", NULL);
    /* The endpoint's own mapping of a named port. */
    expect(*state, "server", "10.0.2.1", "server:81", "10.0.2.1:9090", NULL);
}

static void test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_pod(void **state)
{
    expect(*state, "waypoint", "10.0.1.1", "10.0.2.2:80", "10.0.1.1:80", NULL);
}

static void test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_vip(void **state)
{
    expect(*state, "waypoint", "10.0.1.1", "10.0.2.3:80", "10.0.1.1:80", NULL);
}

static void
test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_hostname(void **state)
{
    expect(*state, "waypoint", "10.0.1.1", "10.0.2.4:80", "10.0.1.1:80", NULL);
}

static void test_find_inbound_upstream_to_workload_with_app_tunnel(void **state)
{
    expect(*state, "tunnel", "10.0.1.3", "10.0.2.2:80", "10.0.1.3:15088", "10.0.2.2:80");
}

static void test_find_inbound_upstream_to_service_with_waypoint_referenced_by_pod(void **state)
{
    expect(*state, "waypoint", "10.0.1.1", "10.10.10.3:80", "10.0.1.1:80", NULL);
}

static void test_find_inbound_upstream_to_service_with_waypoint_referenced_by_vip(void **state)
{
    expect(*state, "waypoint", "10.0.1.1", "10.10.10.4:80", "10.0.1.1:80", NULL);
}

static void test_find_inbound_upstream_to_service_with_app_tunnel(void **state)
{
    expect(*state, "tunnel", "10.0.1.3", "10.10.10.3:80", "10.0.1.3:15088", "10.10.10.3:80");
    /* By name: the VIP, IPv4 first, with the service port. */
    expect(*state, "tunnel", "10.0.1.3", "server:80", "10.0.1.3:15088", "10.10.10.2:80");
}

static void test_find_inbound_upstream_to_server_ip_mismatch(void **state)
{
    expect_refused(*state, "server", "10.0.2.1", "10.0.2.2:80", ZT_IP_MISMATCH,
                   "10.0.2.1 != 10.0.2.2");
    expect_refused(*state, "server", "10.0.2.1", "192.0.2.9:80", ZT_IP_MISMATCH,
                   "10.0.2.1 != 192.0.2.9");
}

static void test_find_inbound_upstream_to_waypoint_without_attachment(void **state)
{
    expect_refused(*state, "waypoint", "10.0.1.1", "10.0.2.1:80", ZT_IP_MISMATCH,
                   "10.0.1.1 != 10.0.2.1");
}

static void test_find_inbound_upstream_to_workload_via_waypoint_with_wrong_attachment(void **state)
{
    struct zt_store *s = *state;
    /* Only the service has the waypoint, its workload has none. */
    state_put(s, WORKLOAD("behind", IPS("10.0.2.9"),
                          SERVES(MEMBER("default", "by-pod.svc", {80, 8080}))));
    expect_refused(s, "waypoint", "10.0.1.1", "10.0.2.9:80", ZT_IP_MISMATCH,
                   "10.0.1.1 != 10.0.2.9");
}

static void test_find_inbound_upstream_to_service_via_waypoint_with_wrong_attachment(void **state)
{
    struct zt_store *s = *state;
    /* Only the workload has the waypoint, its service has none. */
    state_put_service(s, SERVICE("default", "bare.svc", VIPS("10.10.10.9"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("behind", IPS("10.0.2.9"), .waypoint = GATEWAY_IP("", "10.0.1.1", 15008),
                          SERVES(MEMBER("default", "bare.svc", {80, 8080}))));
    expect_refused(s, "waypoint", "10.0.1.1", "10.10.10.9:80", ZT_IP_MISMATCH,
                   "10.0.1.1 != 10.10.10.9");
}

static void inbound_hostname_that_cannot_be_resolved_is_refused(void **state)
{
    struct zt_store *s = *state;
    expect_refused(s, "server", "10.0.2.1", "nobody:80", ZT_NO_HOSTNAME, "nobody");
    expect_refused(s, "server", "10.0.2.1", "server:82", ZT_NO_PORT,
                   "server:82 found, but cannot resolve port");
    /* A named port that this workload does not map. */
    expect_refused(s, "waypoint", "10.0.1.1", "server:81", ZT_NO_PORT,
                   "server:81 found, but cannot resolve port");
    state_put_service(s, SERVICE("default", "headless", PORTS({80, 8080})));
    expect_refused(s, "tunnel", "10.0.1.3", "headless:80", ZT_NO_PORT,
                   "headless found, but has no IP addresses");
}

static void inbound_hostname_respects_visibility(void **state)
{
    struct zt_store *s = *state;
    state_put_service(
        s, SERVICE("other", "hidden", PORTS({80, 8080}), .namespace_visible_only = true));
    expect_refused(s, "server", "10.0.2.1", "hidden:80", ZT_NO_HOSTNAME, "hidden");
}

static void inbound_illegal_port_is_a_self_call(void **state)
{
    expect_refused(*state, "server", "10.0.2.1", "10.0.2.1:15008", ZT_SELF_CALL, "");
    expect_refused(*state, "server", "10.0.2.1", "10.0.2.1:15001", ZT_SELF_CALL, "");
    /* The application tunnel's port takes its place. */
    expect(*state, "tunnel", "10.0.1.3", "10.0.2.2:15008", "10.0.1.3:15088", "10.0.2.2:15008");
}

static void inbound_malformed_authority_is_refused(void **state)
{
    static const char *const bad[] = {
        "",         "host",        ":80",          "host:",    "host:65536",
        "host:8x",  "host:999999", "user@host:80", "ho st:80", "[fd00::1:80",
        "10.0.0.1", "a/b:80",      "host:80:90"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused(*state, "server", "10.0.2.1", bad[i], ZT_AUTHORITY, bad[i]);
    char huge[9000];
    memset(huge, 'h', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    memcpy(huge + sizeof huge - 4, ":80", 4);
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_inbound_target t;
    assert_int_equal(resolve(*state, "server", "10.0.2.1", huge, &t, &err), ZT_AUTHORITY);
}

static void inbound_v4_mapped_authority_is_plain_v4(void **state)
{
    expect(*state, "server", "10.0.2.1", "[::ffff:10.0.2.1]:80", "10.0.2.1:80", NULL);
}

static void check_guess(struct zt_store *s, const char *uid, const char *only, const char *host,
                        uint16_t port, const char *expected)
{
    struct zt_workload *w = zt_store_find_workload(s, uid);
    struct zt_service *o = only ? zt_store_service_by_hostname(s, only, NULL) : NULL;
    struct zt_service *v = zt_store_guess_service(s, w, o, host, port);
    assert_string_equal(v ? v->hostname : "none", expected);
    zt_workload_unref(w);
    zt_service_unref(o);
    zt_service_unref(v);
}

static void guess_service_by_host_then_by_port(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("default", "a.svc", PORTS({80, 8080})));
    state_put_service(s, SERVICE("default", "b.svc", PORTS({80, 8080}, {90, 0})));
    state_put(s, WORKLOAD("both", SERVES(MEMBER("default", "a.svc", {80, 8080}),
                                         MEMBER("default", "b.svc", {90, 9999}),
                                         MEMBER("default", "absent.svc", {1, 7777}))));
    check_guess(s, "both", NULL, "b.svc", 8080, "b.svc");  /* the forwarded host wins */
    check_guess(s, "both", NULL, "server", 8080, "a.svc"); /* not one of ours: by port, the first */
    check_guess(s, "both", NULL, NULL, 8080, "a.svc");
    check_guess(s, "both", NULL, NULL, 9999, "b.svc");    /* by the endpoint's mapping */
    check_guess(s, "both", NULL, NULL, 7777, "none");     /* a service that has not arrived */
    check_guess(s, "both", "b.svc", NULL, 8080, "b.svc"); /* the authority named it */
    check_guess(s, "both", "b.svc", "a.svc", 1, "none");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, state_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_find_inbound_upstream_to_workload_no_waypoint),
        TEST(test_find_inbound_upstream_svc_hostname_to_workload_no_waypoint),
        TEST(test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_pod),
        TEST(test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_vip),
        TEST(test_find_inbound_upstream_to_workload_with_waypoint_referenced_by_hostname),
        TEST(test_find_inbound_upstream_to_workload_with_app_tunnel),
        TEST(test_find_inbound_upstream_to_service_with_waypoint_referenced_by_pod),
        TEST(test_find_inbound_upstream_to_service_with_waypoint_referenced_by_vip),
        TEST(test_find_inbound_upstream_to_service_with_app_tunnel),
        TEST(test_find_inbound_upstream_to_server_ip_mismatch),
        TEST(test_find_inbound_upstream_to_waypoint_without_attachment),
        TEST(test_find_inbound_upstream_to_workload_via_waypoint_with_wrong_attachment),
        TEST(test_find_inbound_upstream_to_service_via_waypoint_with_wrong_attachment),
        TEST(inbound_hostname_that_cannot_be_resolved_is_refused),
        TEST(inbound_hostname_respects_visibility),
        TEST(inbound_illegal_port_is_a_self_call),
        TEST(inbound_malformed_authority_is_refused),
        TEST(inbound_v4_mapped_authority_is_plain_v4),
        TEST(guess_service_by_host_then_by_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
