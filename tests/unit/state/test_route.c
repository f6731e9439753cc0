/* The outbound decision tree: every row of spec/dataplane §2.2 and §13.1. */
#include "support/state_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SOURCE_UID "cluster1//v1/Pod/ns1/source"

/* The client's workload. */
static void put_source(struct zt_store *s)
{
    state_put(s, WORKLOAD(SOURCE_UID, .ns = "ns1", .service_account = "source-sa",
                          IPS("10.9.0.1", "fd09::1"), .node = STATE_NODE));
}

static enum zt_err route_from(struct zt_store *s, const char *src_uid, const char *client,
                              const char *dst, struct zt_route *r, struct zt_error *err)
{
    struct zt_workload *src = zt_store_find_workload(s, src_uid);
    assert_non_null(src);
    struct zt_route_query q = {.src = src, .client = state_addr(client), .dst = state_addr(dst)};
    enum zt_err e = zt_route_resolve(s, &q, r, err);
    zt_workload_unref(src);
    return e;
}

static void assert_route(const struct zt_route *r, enum zt_route_kind kind, const char *authority,
                         const char *next_hop)
{
    char text[ZT_ADDR_TEXT_MAX];
    assert_int_equal(r->kind, kind);
    assert_string_equal(r->authority, authority);
    assert_string_equal(zt_addr_format(&r->next_hop, text), next_hop);
}

/* Resolves and checks kind, authority and next hop; the route is left for more checks. */
static void expect(struct zt_store *s, const char *dst, enum zt_route_kind kind,
                   const char *authority, const char *next_hop, struct zt_route *r)
{
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_err e = route_from(s, SOURCE_UID, "10.9.0.1:34567", dst, r, &err);
    if (e != ZT_OK)
        fail_msg("%s: %s", zt_err_name(e), err.text);
    assert_route(r, kind, authority, next_hop);
}

static void expect_only(struct zt_store *s, const char *dst, enum zt_route_kind kind,
                        const char *authority, const char *next_hop)
{
    struct zt_route r;
    expect(s, dst, kind, authority, next_hop, &r);
    zt_route_fini(&r);
}

static void expect_refused(struct zt_store *s, const char *dst, enum zt_err code, const char *text)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_route r;
    assert_int_equal(route_from(s, SOURCE_UID, "10.9.0.1:34567", dst, &r, &err), code);
    assert_string_equal(err.text, text);
    assert_null(r.dst_workload);
    assert_null(r.sans);
}

static void build_request_unknown_dest_is_passthrough(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    expect(s, "1.2.3.4:80", ZT_ROUTE_TCP, "", "1.2.3.4:80", &r);
    assert_null(r.dst_workload);
    assert_null(r.dst_service);
    assert_int_equal(r.n_sans, 0);
    zt_route_fini(&r);
}

static void build_request_wrong_network_without_gateway_is_refused(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("Kubernetes//Pod/default/remote", .network = "remote", IPS("10.22.1.1"),
                          .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect_refused(s, "127.0.0.3:80", ZT_NO_DESTINATION,
                   "Workload{remote with uid Kubernetes//Pod/default/remote (HBONE)}");
}

static void put_remote_endpoint(struct zt_store *s, const struct zt_gateway_ref *gateway)
{
    state_put(s, WORKLOAD("remote-split-horizon", .network = "remote", .network_gateway = gateway,
                          .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
}

static void build_request_double_hbone_gateway_by_ip(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 SANS("spiffe://cluster.local/ns/far/sa/app", "not a spiffe id")));
    put_remote_endpoint(s, GATEWAY_IP("remote", "10.22.1.1", 15009));
    state_put(s, WORKLOAD("remote-gateway", .network = "remote", IPS("10.22.1.1"), .ns = "gw",
                          .service_account = "gw", .protocol = ZT_PROTOCOL_HBONE));
    expect(s, "127.0.0.3:80", ZT_ROUTE_DOUBLE_HBONE, "example.com:80", "10.22.1.1:15009", &r);
    assert_int_equal(r.n_sans, 1);
    assert_string_equal(r.sans[0], "spiffe://cluster.local/ns/gw/sa/gw");
    assert_int_equal(r.n_inner_sans, 1);
    assert_string_equal(r.inner_sans[0], "spiffe://cluster.local/ns/far/sa/app");
    assert_string_equal(r.dst_workload->uid, "remote-gateway");
    assert_string_equal(r.dst_service->hostname, "example.com");
    zt_route_fini(&r);
}

static void build_request_double_hbone_gateway_by_hostname(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    put_remote_endpoint(s, GATEWAY_HOST("gw", "ew.gw", 15008));
    state_put_service(s, SERVICE("gw", "ew.gw", VIPS("127.0.0.9"), PORTS({15008, 15108})));
    state_put(s, WORKLOAD("ew-pod", .network = "remote", IPS("10.22.1.2"), .ns = "gw",
                          .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("gw", "ew.gw", {15008, 15208}))));
    expect_only(s, "127.0.0.3:80", ZT_ROUTE_DOUBLE_HBONE, "example.com:80", "10.22.1.2:15208");
}

static void build_request_double_hbone_remote_waypoint(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 .waypoint = GATEWAY_HOST("ns1", "waypoint.com", 15008)));
    state_put_service(s, SERVICE("ns1", "waypoint.com", VIPS("127.0.0.4"), PORTS({15008, 15008}),
                                 SANS("spiffe://cluster.local/ns/far/sa/waypoint")));
    state_put(s, WORKLOAD("remote-waypoint", .network = "remote", .protocol = ZT_PROTOCOL_HBONE,
                          .network_gateway = GATEWAY_IP("remote", "10.22.1.1", 15009),
                          SERVES(MEMBER("ns1", "waypoint.com", {15008, 15008}))));
    state_put(s, WORKLOAD("remote-gateway", .network = "remote", IPS("10.22.1.1")));
    expect(s, "127.0.0.3:80", ZT_ROUTE_DOUBLE_HBONE, "example.com:80", "10.22.1.1:15009", &r);
    assert_string_equal(r.inner_sans[0], "spiffe://cluster.local/ns/far/sa/waypoint");
    zt_route_fini(&r);
}

static void route_double_hbone_of_unknown_gateway_is_refused(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    put_remote_endpoint(s, GATEWAY_IP("remote", "10.22.1.1", 15009));
    expect_refused(s, "127.0.0.3:80", ZT_UNKNOWN_GATEWAY, "remote/10.22.1.1:15009");
}

static void route_to_workload_of_other_network_without_service_is_refused(void **state)
{
    struct zt_store *s = *state;
    /* The store's network is "", the client's is "other": the address is known there only to the
     * upstream step. */
    state_put(s, WORKLOAD(SOURCE_UID, .ns = "ns1", IPS("10.9.0.1"), .network = "other"));
    state_put(s, WORKLOAD("there", IPS("10.1.1.1"), .network = ""));
    state_put_service(s,
                      SERVICE("ns1", "elsewhere", VIPS_IN("other", "10.1.1.1"), PORTS({80, 80})));
    state_put(s, WORKLOAD("third", IPS("10.1.1.2"), .network = "third",
                          SERVES(MEMBER("ns1", "elsewhere", {80, 80}))));
    expect_refused(s, "10.1.1.1:80", ZT_NO_SERVICE, "10.1.1.1:80");
}

static void build_request_failover_to_remote(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 .lb_mode = ZT_LB_FAILOVER, .lb_scopes = {ZT_SCOPE_NETWORK},
                                 .n_lb_scopes = 1));
    put_remote_endpoint(s, GATEWAY_IP("remote", "10.22.1.1", 15009));
    state_put(s, WORKLOAD("remote-gateway", .network = "remote", IPS("10.22.1.1")));
    state_put(s, WORKLOAD("near", IPS("10.0.0.5"), .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    for (int i = 0; i < 20; i++)
        expect_only(s, "127.0.0.3:80", ZT_ROUTE_HBONE, "10.0.0.5:8080", "10.0.0.5:15008");
    state_put(s, WORKLOAD("near", IPS("10.0.0.5"), .protocol = ZT_PROTOCOL_HBONE, .healthy = false,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    for (int i = 0; i < 20; i++)
        expect_only(s, "127.0.0.3:80", ZT_ROUTE_DOUBLE_HBONE, "example.com:80", "10.22.1.1:15009");
}

static void check_known_dest(struct zt_store *s, const char *node, enum zt_protocol protocol)
{
    struct zt_route r;
    put_source(s);
    state_put(s, WORKLOAD("cluster1//v1/Pod/ns1/dst", IPS("10.0.0.2"), .node = node,
                          .protocol = protocol, .ns = "ns1", .service_account = "dst-sa"));
    if (protocol == ZT_PROTOCOL_HBONE)
        expect(s, "10.0.0.2:80", ZT_ROUTE_HBONE, "10.0.0.2:80", "10.0.0.2:15008", &r);
    else
        expect(s, "10.0.0.2:80", ZT_ROUTE_TCP, "", "10.0.0.2:80", &r);
    assert_string_equal(r.dst_workload->name, "dst");
    assert_int_equal(r.n_sans, protocol == ZT_PROTOCOL_HBONE ? 1 : 0);
    if (r.n_sans)
        assert_string_equal(r.sans[0], "spiffe://cluster.local/ns/ns1/sa/dst-sa");
    zt_route_fini(&r);
}

static void build_request_known_dest_remote_node_tcp(void **state)
{
    check_known_dest(*state, "remote-node", ZT_PROTOCOL_TCP);
}

static void build_request_known_dest_remote_node_hbone(void **state)
{
    check_known_dest(*state, "remote-node", ZT_PROTOCOL_HBONE);
}

static void build_request_known_dest_local_node_tcp(void **state)
{
    check_known_dest(*state, STATE_NODE, ZT_PROTOCOL_TCP);
}

static void build_request_known_dest_local_node_hbone_has_no_shortcut(void **state)
{
    check_known_dest(*state, STATE_NODE, ZT_PROTOCOL_HBONE);
}

static void build_request_source_waypoint_is_ignored(void **state)
{
    struct zt_store *s = *state;
    state_put(
        s, WORKLOAD(SOURCE_UID, IPS("10.9.0.1"), .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    state_put(
        s, WORKLOAD("waypoint", IPS("10.0.0.10"), .ns = "ns1", .service_account = "waypoint-sa"));
    expect_only(s, "127.0.0.1:80", ZT_ROUTE_TCP, "", "127.0.0.1:80");
}

static void put_waypoint_pod(struct zt_store *s)
{
    state_put(
        s, WORKLOAD("waypoint", IPS("10.0.0.10"), .ns = "ns1", .service_account = "waypoint-sa"));
}

static void build_request_destination_waypoint(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    put_waypoint_pod(s);
    state_put(s, WORKLOAD("dst", IPS("10.0.0.2"), .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    expect(s, "10.0.0.2:80", ZT_ROUTE_HBONE, "10.0.0.2:80", "10.0.0.10:15008", &r);
    assert_true(r.via_waypoint);
    assert_string_equal(r.dst_workload->uid, "waypoint");
    assert_string_equal(r.sans[0], "spiffe://cluster.local/ns/ns1/sa/waypoint-sa");
    zt_route_fini(&r);
}

static void build_request_destination_waypoint_mismatch_ip(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put(s, WORKLOAD("waypoint", IPS("ff06::c4", "10.0.0.10")));
    state_put(s, WORKLOAD("dst", IPS("ff06::c3"), .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    expect_only(s, "[ff06::c3]:80", ZT_ROUTE_HBONE, "[ff06::c3]:80", "10.0.0.10:15008");
}

static void build_request_destination_svc_waypoint_keeps_vip(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    put_waypoint_pod(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3"), PORTS({80, 8080}),
                                 .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    expect(s, "10.96.0.3:80", ZT_ROUTE_HBONE, "10.96.0.3:80", "10.0.0.10:15008", &r);
    assert_string_equal(r.dst_service->hostname, "example.com");
    zt_route_fini(&r);
}

static void route_waypoint_by_hostname_uses_mapped_port_and_service_sans(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "waypoint.ns1", VIPS("10.96.0.9"), PORTS({15008, 15018}),
                                 SANS("spiffe://cluster.local/ns/ns1/sa/other")));
    state_put(s,
              WORKLOAD("waypoint", IPS("fd00::10", "10.0.0.10"), .service_account = "waypoint-sa",
                       SERVES(MEMBER("ns1", "waypoint.ns1", {15008, 15018}))));
    state_put_service(s,
                      SERVICE("ns1", "example.com", VIPS("10.96.0.3", "fd96::3"), PORTS({80, 8080}),
                              .waypoint = GATEWAY_HOST("ns1", "waypoint.ns1", 15008)));
    expect(s, "10.96.0.3:80", ZT_ROUTE_HBONE, "10.96.0.3:80", "10.0.0.10:15018", &r);
    assert_int_equal(r.n_sans, 2);
    assert_string_equal(r.sans[0], "spiffe://cluster.local/ns/ns1/sa/other");
    assert_string_equal(r.sans[1], "spiffe://cluster.local/ns/default/sa/waypoint-sa");
    zt_route_fini(&r);
    /* By hostname the original destination's family decides. */
    expect_only(s, "[fd96::3]:80", ZT_ROUTE_HBONE, "[fd96::3]:80", "[fd00::10]:15018");
}

static void route_unknown_waypoint_never_goes_direct(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3"), PORTS({80, 8080}),
                                 .waypoint = GATEWAY_HOST("ns1", "gone", 15008)));
    state_put(s, WORKLOAD("echo", IPS("10.0.0.2"), SERVES(MEMBER("ns1", "example.com", {80, 8080})),
                          .waypoint = GATEWAY_IP("", "10.0.0.99", 15008)));
    expect_refused(s, "10.96.0.3:80", ZT_UNKNOWN_WAYPOINT, "ns1/gone:15008");
    expect_refused(s, "10.0.0.2:80", ZT_UNKNOWN_WAYPOINT, "/10.0.0.99:15008");
}

static void route_waypoint_itself_goes_direct(void **state)
{
    struct zt_store *s = *state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_route r;
    state_put_service(s, SERVICE("ns1", "waypoint.ns1", VIPS("10.96.0.9"), PORTS({15008, 15008})));
    state_put(s, WORKLOAD("way-pod", IPS("10.0.0.10"), .service_account = "waypoint-sa",
                          SERVES(MEMBER("ns1", "waypoint.ns1", {15008, 15008}))));
    state_put(s, WORKLOAD("by-host", IPS("10.0.0.2"),
                          .waypoint = GATEWAY_HOST("ns1", "waypoint.ns1", 15008)));
    state_put(s,
              WORKLOAD("by-vip", IPS("10.0.0.3"), .waypoint = GATEWAY_IP("", "10.96.0.9", 15008)));
    state_put(s,
              WORKLOAD("by-ip", IPS("10.0.0.4"), .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    const char *targets[] = {"10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(route_from(s, "way-pod", "10.0.0.10:5000", targets[i], &r, &err), ZT_OK);
        assert_route(&r, ZT_ROUTE_TCP, "", targets[i]);
        zt_route_fini(&r);
        /* The same identity from another address is not the waypoint. */
        assert_int_equal(route_from(s, "way-pod", "10.0.0.11:5000", targets[i], &r, &err), ZT_OK);
        assert_route(&r, ZT_ROUTE_HBONE, targets[i], "10.0.0.10:15008");
        zt_route_fini(&r);
    }
}

static void route_service_traffic_never_uses_workload_waypoint(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    put_waypoint_pod(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("echo", IPS("10.0.0.2"), .waypoint = GATEWAY_IP("", "10.0.0.10", 15008),
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect_only(s, "10.96.0.3:80", ZT_ROUTE_TCP, "", "10.0.0.2:8080");
    expect_only(s, "10.0.0.2:8080", ZT_ROUTE_HBONE, "10.0.0.2:8080", "10.0.0.10:15008");
}

static void route_weighted_waypoints_are_sampled(void **state)
{
    struct zt_store *s = *state;
    struct zt_weighted_waypoint list[2] = {{*GATEWAY_IP("", "10.0.0.10", 15008), 0},
                                           {*GATEWAY_IP("", "10.0.0.11", 15008), 3}};
    put_source(s);
    put_waypoint_pod(s);
    state_put(s, WORKLOAD("waypoint-2", IPS("10.0.0.11")));
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3"), PORTS({80, 8080}),
                                 .weighted_waypoints = list, .n_weighted_waypoints = 2,
                                 .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    for (int i = 0; i < 20; i++)
        expect_only(s, "10.96.0.3:80", ZT_ROUTE_HBONE, "10.96.0.3:80", "10.0.0.11:15008");
    list[1].weight = 0; /* nothing to sample: the single waypoint */
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3"), PORTS({80, 8080}),
                                 .weighted_waypoints = list, .n_weighted_waypoints = 2,
                                 .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    expect_only(s, "10.96.0.3:80", ZT_ROUTE_HBONE, "10.96.0.3:80", "10.0.0.10:15008");
}

static void build_request_empty_service_is_refused(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    expect_refused(s, "127.0.0.3:80", ZT_NO_UPSTREAM, "127.0.0.3:80");
    expect_refused(s, "127.0.0.3:81", ZT_NO_UPSTREAM, "127.0.0.3:81");
}

static void build_request_target_port_named(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 0})));
    state_put(s,
              WORKLOAD("maps", IPS("127.0.1.1"), SERVES(MEMBER("ns1", "example.com", {80, 1000}))));
    state_put(s, WORKLOAD("maps-not", IPS("127.0.1.2"),
                          SERVES({.ns = "ns1", .hostname = "example.com"})));
    for (int i = 0; i < 20; i++)
        expect_only(s, "127.0.0.3:80", ZT_ROUTE_TCP, "", "127.0.1.1:1000");
}

static void build_request_host_network(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("other-on-node", IPS("127.0.1.1"), .host_network = true));
    state_put(s, WORKLOAD("endpoint-on-node", IPS("127.0.1.1"), .host_network = true,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect(s, "127.0.0.3:80", ZT_ROUTE_TCP, "", "127.0.1.1:8080", &r);
    assert_string_equal(r.dst_workload->uid, "endpoint-on-node");
    zt_route_fini(&r);
    expect(s, "127.0.1.1:80", ZT_ROUTE_TCP, "", "127.0.1.1:80", &r);
    assert_null(r.dst_workload);
    zt_route_fini(&r);
}

static void multiple_address_workload_keeps_the_family(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    state_put_service(
        s, SERVICE("ns1", "example.com", VIPS("10.96.0.3", "fd96::3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("dual", IPS("10.0.0.2", "fd00::2"), .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect_only(s, "10.96.0.3:80", ZT_ROUTE_HBONE, "10.0.0.2:8080", "10.0.0.2:15008");
    expect_only(s, "[fd96::3]:80", ZT_ROUTE_HBONE, "[fd00::2]:8080", "[fd00::2]:15008");
    expect_only(s, "[fd00::2]:80", ZT_ROUTE_HBONE, "[fd00::2]:80", "[fd00::2]:15008");
}

static void service_ip_families_force_or_keep_the_family(void **state)
{
    struct zt_store *s = *state;
    const struct {
        enum zt_ip_families families;
        const char *dst, *hop;
    } rows[] = {
        {ZT_FAMILIES_IPV6, "10.96.0.3:80", "[fd00::2]:8080"},
        {ZT_FAMILIES_IPV4, "[fd96::3]:80", "10.0.0.2:8080"},
        {ZT_FAMILIES_DUAL, "10.96.0.3:80", "10.0.0.2:8080"},
        {ZT_FAMILIES_DUAL, "[fd96::3]:80", "[fd00::2]:8080"},
        {ZT_FAMILIES_AUTO, "[fd96::3]:80", "[fd00::2]:8080"},
    };
    put_source(s);
    state_put(s, WORKLOAD("dual", IPS("10.0.0.2", "fd00::2"),
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        state_put_service(s, SERVICE("ns1", "example.com", VIPS("10.96.0.3", "fd96::3"),
                                     PORTS({80, 8080}), .ip_families = rows[i].families));
        expect_only(s, rows[i].dst, ZT_ROUTE_TCP, "", rows[i].hop);
    }
}

static void build_request_passthrough_svc(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 .lb_mode = ZT_LB_PASSTHROUGH));
    state_put(s, WORKLOAD("endpoint", IPS("127.0.1.1"),
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect(s, "127.0.0.3:80", ZT_ROUTE_TCP, "", "127.0.0.3:80", &r);
    assert_null(r.dst_workload);
    assert_null(r.dst_service);
    zt_route_fini(&r);
}

static void build_request_passthrough_svc_with_waypoint(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    put_waypoint_pod(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 .lb_mode = ZT_LB_PASSTHROUGH,
                                 .waypoint = GATEWAY_IP("", "10.0.0.10", 15008)));
    expect_only(s, "127.0.0.3:80", ZT_ROUTE_HBONE, "127.0.0.3:80", "10.0.0.10:15008");
}

static void route_hostname_only_endpoint_needs_dns(void **state)
{
    struct zt_store *s = *state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_route r;
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("by-name", .hostname = "db.example.org",
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    assert_int_equal(route_from(s, SOURCE_UID, "10.9.0.1:34567", "127.0.0.3:80", &r, &err), ZT_OK);
    assert_true(r.needs_dns);
    assert_int_equal(r.next_hop.ip.family, ZT_IP_NONE);
    assert_int_equal(r.next_hop.port, 8080);
    assert_string_equal(r.dst_workload->hostname, "db.example.org");
    zt_route_fini(&r);
}

static void route_workload_without_any_address_is_refused(void **state)
{
    struct zt_store *s = *state;
    put_source(s);
    /* Same network, no address, no name: not even a candidate. */
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("nothing", SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect_refused(s, "127.0.0.3:80", ZT_NO_UPSTREAM, "127.0.0.3:80");
}

static void route_names_at_most_64_identities(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    char text[80][64];
    const char *sans[80];
    for (int i = 0; i < 80; i++) {
        assert_true(zt_fmt(text[i], sizeof text[i], "spiffe://cluster.local/ns/n/sa/a%d", i));
        sans[i] = text[i];
    }
    put_source(s);
    state_put_service(s, SERVICE("ns1", "example.com", VIPS("127.0.0.3"), PORTS({80, 8080}),
                                 .sans = sans, .n_sans = 80));
    state_put(s, WORKLOAD("echo", IPS("10.0.0.2"), .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns1", "example.com", {80, 8080}))));
    expect(s, "127.0.0.3:80", ZT_ROUTE_HBONE, "10.0.0.2:8080", "10.0.0.2:15008", &r);
    assert_int_equal(r.n_sans, ZT_ROUTE_SANS_MAX);
    assert_string_equal(r.sans[ZT_ROUTE_SANS_MAX - 1],
                        "spiffe://cluster.local/ns/default/sa/default");
    zt_route_fini(&r);
}

static void route_trace_tells_the_steps(void **state)
{
    struct zt_store *s = *state;
    struct zt_route r;
    struct zt_str trace;
    put_source(s);
    state_put_service(s, SERVICE("ns2", "echo.ns2", VIPS("10.96.0.10"), PORTS({80, 8080})));
    state_put(s, WORKLOAD("echo-v1", .ns = "ns2", IPS("10.0.0.2"), .protocol = ZT_PROTOCOL_HBONE,
                          SERVES(MEMBER("ns2", "echo.ns2", {80, 8080}))));
    zt_str_init(&trace, 4096);
    struct zt_workload *src = zt_store_find_workload(s, SOURCE_UID);
    struct zt_route_query q = {.src = src, .dst = state_addr("10.96.0.10:80"), .trace = &trace};
    assert_int_equal(zt_route_resolve(s, &q, &r, NULL), ZT_OK);
    assert_string_equal(zt_str_cstr(&trace),
                        "service ns2/echo.ns2 by address 10.96.0.10:80\n"
                        "no waypoint\n"
                        "endpoint echo-v1 port 8080 chosen among 1 (weight 1 of 1, 0 connections)\n"
                        "protocol HBONE, tunnel to 10.0.0.2:15008\n"
                        "expected identities: spiffe://cluster.local/ns/ns2/sa/default\n");
    zt_route_fini(&r);
    zt_str_clear(&trace);
    q.dst = state_addr("10.96.0.10:81");
    assert_int_equal(zt_route_resolve(s, &q, &r, NULL), ZT_NO_UPSTREAM);
    assert_string_equal(zt_str_cstr(&trace), "service ns2/echo.ns2 by address 10.96.0.10:81\n"
                                             "no waypoint\n"
                                             "service echo.ns2 does not list port 81\n"
                                             "refused: no healthy upstream: 10.96.0.10:81\n");
    zt_str_fini(&trace);
    zt_workload_unref(src);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STATE_TEST(build_request_unknown_dest_is_passthrough),
        STATE_TEST(build_request_wrong_network_without_gateway_is_refused),
        STATE_TEST(build_request_double_hbone_gateway_by_ip),
        STATE_TEST(build_request_double_hbone_gateway_by_hostname),
        STATE_TEST(build_request_double_hbone_remote_waypoint),
        STATE_TEST(route_double_hbone_of_unknown_gateway_is_refused),
        STATE_TEST(route_to_workload_of_other_network_without_service_is_refused),
        STATE_TEST(build_request_failover_to_remote),
        STATE_TEST(build_request_known_dest_remote_node_tcp),
        STATE_TEST(build_request_known_dest_remote_node_hbone),
        STATE_TEST(build_request_known_dest_local_node_tcp),
        STATE_TEST(build_request_known_dest_local_node_hbone_has_no_shortcut),
        STATE_TEST(build_request_source_waypoint_is_ignored),
        STATE_TEST(build_request_destination_waypoint),
        STATE_TEST(build_request_destination_waypoint_mismatch_ip),
        STATE_TEST(build_request_destination_svc_waypoint_keeps_vip),
        STATE_TEST(route_waypoint_by_hostname_uses_mapped_port_and_service_sans),
        STATE_TEST(route_unknown_waypoint_never_goes_direct),
        STATE_TEST(route_waypoint_itself_goes_direct),
        STATE_TEST(route_service_traffic_never_uses_workload_waypoint),
        STATE_TEST(route_weighted_waypoints_are_sampled),
        STATE_TEST(build_request_empty_service_is_refused),
        STATE_TEST(build_request_target_port_named),
        STATE_TEST(build_request_host_network),
        STATE_TEST(multiple_address_workload_keeps_the_family),
        STATE_TEST(service_ip_families_force_or_keep_the_family),
        STATE_TEST(build_request_passthrough_svc),
        STATE_TEST(build_request_passthrough_svc_with_waypoint),
        STATE_TEST(route_hostname_only_endpoint_needs_dns),
        STATE_TEST(route_workload_without_any_address_is_refused),
        STATE_TEST(route_names_at_most_64_identities),
        STATE_TEST(route_trace_tells_the_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
