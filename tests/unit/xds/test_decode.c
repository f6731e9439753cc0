/* Conversions of single resources: what is taken over, defaulted, refused, and with which text. */
#include "support/xds_fixture.h"
#include "xds/xds_impl.h"
#include "zt/base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct zt_arena arena;
static struct zt_error err;

static int setup(void **state)
{
    zt_arena_init(&arena);
    err = (struct zt_error)ZT_ERROR_INIT;
    return 0;
}

static int teardown(void **state)
{
    zt_arena_fini(&arena);
    return 0;
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

static ProtobufCBinaryData bytes(const char *s, size_t n)
{
    return (ProtobufCBinaryData){n, (uint8_t *)(uintptr_t)s};
}

static Istio__Workload__Workload a_workload(void)
{
    Istio__Workload__Workload w = ISTIO__WORKLOAD__WORKLOAD__INIT;
    w.uid = text("c//Pod/ns1/a");
    return w;
}

static Istio__Workload__Service a_service(void)
{
    Istio__Workload__Service v = ISTIO__WORKLOAD__SERVICE__INIT;
    v.namespace_ = text("ns1");
    v.hostname = text("svc.example");
    return v;
}

static void workload_is(const Istio__Workload__Workload *in, const char *reject)
{
    struct zt_workload *w;
    enum zt_err e = zt_xds_workload(&arena, in, &w, &err);
    assert_int_equal(e, reject ? ZT_INVALID : ZT_OK);
    if (reject)
        assert_string_equal(err.text, reject);
    zt_workload_unref(w);
}

static void service_is(const Istio__Workload__Service *in, const char *reject)
{
    struct zt_service *v;
    enum zt_err e = zt_xds_service(&arena, in, &v, &err);
    assert_int_equal(e, reject ? ZT_INVALID : ZT_OK);
    if (reject)
        assert_string_equal(err.text, reject);
    zt_service_unref(v);
}

static struct zt_workload *convert(const Istio__Workload__Workload *in)
{
    struct zt_workload *w;
    if (zt_xds_workload(&arena, in, &w, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return w;
}

static struct zt_service *convert_service(const Istio__Workload__Service *in)
{
    struct zt_service *v;
    if (zt_xds_service(&arena, in, &v, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return v;
}

static void workload_defaults_fill_what_is_empty(void **state)
{
    Istio__Workload__Workload in = a_workload();
    in.workload_type = (Istio__Workload__WorkloadType)77; /* unknown: a label only */
    struct zt_workload *w = convert(&in);
    assert_string_equal(w->trust_domain, "cluster.local");
    assert_string_equal(w->service_account, "default");
    assert_string_equal(w->cluster_id, "Kubernetes");
    assert_string_equal(w->workload_type, "deployment");
    assert_int_equal(w->capacity, 1);
    assert_true(w->healthy);
    assert_int_equal(w->protocol, ZT_PROTOCOL_TCP);
    assert_false(w->has_locality);
    zt_workload_unref(w);
}

static void workload_capacity_zero_is_kept(void **state)
{
    Istio__Workload__Workload in = a_workload();
    Google__Protobuf__UInt32Value zero = GOOGLE__PROTOBUF__UINT32_VALUE__INIT;
    in.capacity = &zero;
    struct zt_workload *w = convert(&in);
    assert_int_equal(w->capacity, 0);
    zt_workload_unref(w);
}

static void byte_to_ipaddr_garbage_and_empty(void **state)
{
    Istio__Workload__Workload in = a_workload();
    ProtobufCBinaryData address = bytes("abc", 3);
    in.addresses = &address;
    in.n_addresses = 1;
    workload_is(&in, "failed to parse address, had 3 bytes");
    address = bytes("", 0);
    workload_is(&in, "failed to parse address, had 0 bytes");
    address = bytes("\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x01", 16);
    struct zt_workload *w = convert(&in);
    assert_int_equal(w->ips[0].family, ZT_IPV4); /* mapped */
    zt_workload_unref(w);
}

static void workload_unknown_enums_are_refused(void **state)
{
    Istio__Workload__Workload in = a_workload();
    in.tunnel_protocol = ISTIO__WORKLOAD__TUNNEL_PROTOCOL__LEGACY_ISTIO_MTLS;
    workload_is(&in, "unknown enum: unsupported tunnel protocol: legacy istio mtls");
    in.tunnel_protocol = (Istio__Workload__TunnelProtocol)9;
    workload_is(&in, "decode error: unknown enumeration value 9");
    in = a_workload();
    in.network_mode = (Istio__Workload__NetworkMode)7;
    workload_is(&in, "decode error: unknown enumeration value 7");
    in = a_workload();
    in.status = (Istio__Workload__WorkloadStatus)-1;
    workload_is(&in, "decode error: unknown enumeration value -1");
    in = a_workload();
    Istio__Workload__ApplicationTunnel tunnel = ISTIO__WORKLOAD__APPLICATION_TUNNEL__INIT;
    in.application_tunnel = &tunnel;
    tunnel.protocol = (Istio__Workload__ApplicationTunnel__Protocol)5;
    workload_is(&in, "decode error: unknown enumeration value 5");
}

static void workload_without_uid_is_refused(void **state)
{
    Istio__Workload__Workload in = ISTIO__WORKLOAD__WORKLOAD__INIT;
    workload_is(&in, "workload without uid");
}

static void gateway_needs_a_destination_and_a_port_that_fits(void **state)
{
    Istio__Workload__Workload in = a_workload();
    Istio__Workload__GatewayAddress g = ISTIO__WORKLOAD__GATEWAY_ADDRESS__INIT;
    Istio__Workload__NetworkAddress address = ISTIO__WORKLOAD__NETWORK_ADDRESS__INIT;
    in.waypoint = &g;
    workload_is(&in, "nonempty gateway address is missing address");
    g.destination_case = ISTIO__WORKLOAD__GATEWAY_ADDRESS__DESTINATION_ADDRESS;
    g.address = &address;
    workload_is(&in, "failed to parse address, had 0 bytes");
    address.address = bytes("\x0a\0\0\x01", 4);
    address.network = text("net");
    g.hbone_mtls_port = 65536;
    workload_is(&in, "invalid port: 65536");
    g.hbone_mtls_port = 15008;
    struct zt_workload *w = convert(&in);
    assert_string_equal(w->waypoint->network, "net");
    assert_int_equal(w->waypoint->hbone_mtls_port, 15008);
    zt_workload_unref(w);
}

static void ports_over_65535_are_refused_and_the_last_of_equal_ones_wins(void **state)
{
    Istio__Workload__Service in = a_service();
    Istio__Workload__Port a = ISTIO__WORKLOAD__PORT__INIT, b = a, *ports[40];
    in.ports = ports;
    in.n_ports = 2;
    ports[0] = &a;
    ports[1] = &b;
    a.service_port = 80;
    a.target_port = 65536;
    service_is(&in, "invalid port: 65536");
    a.target_port = 1;
    b.service_port = 80;
    b.target_port = 0;                                         /* a named port */
    for (in.n_ports = 2; in.n_ports <= 40; in.n_ports += 38) { /* few and many */
        for (size_t i = 0; i < in.n_ports; i++)
            ports[i] = i + 1 == in.n_ports ? &b : &a;
        struct zt_service *v = convert_service(&in);
        assert_int_equal(v->n_ports, 1);
        assert_int_equal(v->ports[0].target_port, 0);
        zt_service_unref(v);
    }
}

static void services_of_a_workload_split_at_the_first_slash_and_the_last_double_wins(void **state)
{
    Istio__Workload__Workload in = a_workload();
    Istio__Workload__PortList list = ISTIO__WORKLOAD__PORT_LIST__INIT;
    Istio__Workload__Port port = ISTIO__WORKLOAD__PORT__INIT, *ports[] = {&port};
    Istio__Workload__Workload__ServicesEntry a = ISTIO__WORKLOAD__WORKLOAD__SERVICES_ENTRY__INIT;
    Istio__Workload__Workload__ServicesEntry b = a, c = a, *entries[] = {&a, &b, &c};
    port.service_port = 80;
    port.target_port = 8080;
    list.ports = ports;
    list.n_ports = 1;
    a.key = c.key = text("ns/host/x");
    c.value = &list;
    b.key = text("other/host");
    in.services = entries;
    in.n_services = 3;
    struct zt_workload *w = convert(&in);
    assert_int_equal(w->n_services, 2);
    assert_string_equal(w->services[1].ns, "ns");
    assert_string_equal(w->services[1].hostname, "host/x");
    assert_int_equal(w->services[1].n_ports, 1);
    zt_workload_unref(w);
}

static void service_addresses_are_vips_or_prefixes(void **state)
{
    Istio__Workload__Service in = a_service();
    Istio__Workload__NetworkAddress a = ISTIO__WORKLOAD__NETWORK_ADDRESS__INIT, *list[] = {&a};
    in.addresses = list;
    in.n_addresses = 1;
    a.address = bytes("\x0a\0\0\0", 4);
    struct zt_service *v = convert_service(&in);
    assert_true(v->vips[0].exact);
    zt_service_unref(v);
    a.prefix_case = ISTIO__WORKLOAD__NETWORK_ADDRESS__PREFIX_LENGTH;
    for (a.length = 0; a.length <= 32; a.length += 8) { /* 0 that is present is /0 */
        v = convert_service(&in);
        assert_int_equal(v->vips[0].cidr.prefix_bits, a.length);
        assert_int_equal(v->vips[0].exact, a.length == 32);
        zt_service_unref(v);
    }
    a.length = 33;
    service_is(&in, "invalid cidr: prefix length 33");
    a.address = bytes("\x0a", 1);
    service_is(&in, "invalid cidr: failed to parse address, had 1 bytes");
}

static void service_load_balancing_refuses_what_it_does_not_know(void **state)
{
    Istio__Workload__Service in = a_service();
    Istio__Workload__LoadBalancing lb = ISTIO__WORKLOAD__LOAD_BALANCING__INIT;
    Istio__Workload__LoadBalancing__Scope scopes[] = {
        ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__REGION,
        ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__UNSPECIFIED_SCOPE};
    struct zt_service *v = convert_service(&in);
    assert_int_equal(v->lb_mode, ZT_LB_NONE);
    zt_service_unref(v);
    in.load_balancing = &lb;
    lb.routing_preference = scopes;
    lb.n_routing_preference = 1;
    v = convert_service(&in);
    assert_int_equal(v->lb_mode, ZT_LB_STANDARD);
    assert_int_equal(v->lb_scopes[0], ZT_SCOPE_REGION);
    zt_service_unref(v);
    lb.n_routing_preference = 2;
    service_is(&in, "decode error: unknown enumeration value 0");
    scopes[1] = (Istio__Workload__LoadBalancing__Scope)7;
    service_is(&in, "decode error: unknown enumeration value 7");
    lb.n_routing_preference = 0;
    lb.mode = (Istio__Workload__LoadBalancing__Mode)4;
    service_is(&in, "decode error: unknown enumeration value 4");
    lb.mode = ISTIO__WORKLOAD__LOAD_BALANCING__MODE__PASSTHROUGH;
    lb.health_policy = (Istio__Workload__LoadBalancing__HealthPolicy)2;
    service_is(&in, "decode error: unknown enumeration value 2");
    in.load_balancing = NULL;
    in.ip_families = (Istio__Workload__IPFamilies)4;
    service_is(&in, "decode error: unknown enumeration value 4");
}

static void service_of_unknown_visibility_is_public(void **state)
{
    Istio__Workload__Service in = a_service();
    in.visibility = (Istio__Workload__Service__Visibility)9;
    struct zt_service *v = convert_service(&in);
    assert_false(v->namespace_visible_only);
    zt_service_unref(v);
}

static void weighted_waypoint_needs_a_destination(void **state)
{
    Istio__Workload__Service in = a_service();
    Istio__Workload__WeightedWaypoint w = ISTIO__WORKLOAD__WEIGHTED_WAYPOINT__INIT, *list[] = {&w};
    in.weighted_waypoints = list;
    in.n_weighted_waypoints = 1;
    service_is(&in, "nonempty gateway address is missing address");
}

/* ---- policies ---- */

struct policy {
    Istio__Security__Authorization a;
    Istio__Security__Rule rule, *rules[1];
    Istio__Security__Clause clause, *clauses[1];
    Istio__Security__Match match, *matches[1];
};

static void policy_init(struct policy *p)
{
    istio__security__authorization__init(&p->a);
    istio__security__rule__init(&p->rule);
    istio__security__clause__init(&p->clause);
    istio__security__match__init(&p->match);
    p->a.rules = p->rules;
    p->a.n_rules = 1;
    p->rules[0] = &p->rule;
    p->rule.clauses = p->clauses;
    p->rule.n_clauses = 1;
    p->clauses[0] = &p->clause;
    p->clause.matches = p->matches;
    p->clause.n_matches = 1;
    p->matches[0] = &p->match;
    p->a.namespace_ = text("ns1");
    p->a.name = text("p");
}

static void policy_is(const struct policy *p, const char *reject)
{
    struct zt_policy *out;
    enum zt_err e = zt_xds_policy(&arena, "ns1/p", &p->a, &out, &err);
    assert_int_equal(e, reject ? ZT_INVALID : ZT_OK);
    if (reject)
        assert_string_equal(err.text, reject);
    zt_policy_unref(out);
}

static void policy_that_cannot_be_evaluated_is_refused_whole(void **state)
{
    struct policy p;
    Istio__Security__StringMatch s = ISTIO__SECURITY__STRING_MATCH__INIT, *strings[] = {&s};
    Istio__Security__Address a = ISTIO__SECURITY__ADDRESS__INIT, *addresses[] = {&a};
    uint32_t port = 65536;
    policy_init(&p);
    p.match.not_principals = strings;
    p.match.n_not_principals = 1;
    policy_is(&p, "string match of no known kind");
    policy_init(&p);
    p.match.source_ips = addresses;
    p.match.n_source_ips = 1;
    policy_is(&p, "invalid cidr: failed to parse address, had 0 bytes");
    a.address = bytes("\x0a\0\0\0", 4);
    a.length = 33;
    policy_is(&p, "invalid cidr: prefix length 33");
    policy_init(&p);
    p.match.destination_ports = &port;
    p.match.n_destination_ports = 1;
    policy_is(&p, "invalid port: 65536");
    policy_init(&p);
    p.a.scope = (Istio__Security__Scope)3;
    policy_is(&p, "decode error: unknown enumeration value 3");
    policy_init(&p);
    p.a.action = (Istio__Security__Action)2;
    policy_is(&p, "decode error: unknown enumeration value 2");
}

static void policy_keeps_every_kind_of_match(void **state)
{
    struct policy p;
    Istio__Security__StringMatch exact = ISTIO__SECURITY__STRING_MATCH__INIT, prefix = exact,
                                 suffix = exact, presence = exact;
    Istio__Security__StringMatch *strings[] = {&exact, &prefix, &suffix, &presence};
    Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;
    struct zt_policy *out;
    exact.match_type_case = ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_EXACT;
    exact.exact = text("td/ns/a/sa/b");
    prefix.match_type_case = ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_PREFIX;
    prefix.prefix = text("td/");
    suffix.match_type_case = ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_SUFFIX;
    suffix.suffix = text("/b");
    presence.match_type_case = ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_PRESENCE;
    presence.presence = &empty;
    policy_init(&p);
    p.match.principals = strings;
    p.match.n_principals = 4;
    p.a.action = ISTIO__SECURITY__ACTION__DENY;
    p.a.dry_run = true;
    assert_int_equal(zt_xds_policy(&arena, "key", &p.a, &out, &err), ZT_OK);
    const struct zt_match *m = &out->rules[0].clauses[0].matches[0];
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(m->principals[0][i].kind, i);
    assert_int_equal(out->action, ZT_POLICY_DENY);
    assert_true(out->dry_run);
    assert_string_equal(out->key, "key");
    zt_policy_unref(out);
}

/* ---- limits ---- */

static void arena_gives_nothing_beyond_its_limit(void **state)
{
    assert_non_null(zt_arena_take(&arena, 1, 1000));
    assert_null(zt_arena_take(&arena, SIZE_MAX / 2, 8));
    assert_null(zt_arena_take(&arena, 1, ZT_XDS_ARENA_BYTES_MAX));
    assert_true(arena.exhausted);
    zt_arena_reset(&arena);
    assert_false(arena.exhausted);
    assert_non_null(zt_arena_take(&arena, 0, 8));
}

/* Two bytes each on the wire, a hundred in memory. */
static void resource_that_blows_up_is_refused(void **state)
{
    size_t n_matches = 7u << 20, at = 0;
    uint8_t *clause = zt_zalloc(2 * n_matches + 64);
    struct zt_str rule, policy;
    for (size_t i = 0; i < n_matches; i++) {
        clause[at++] = 0x12;
        clause[at++] = 0;
    }
    zt_str_init(&rule, 64u << 20);
    zt_str_init(&policy, 64u << 20);
    xds_put_bytes(&rule, 1, clause, at);
    xds_put_bytes(&policy, 5, rule.data, rule.len);
    struct zt_xds_resource r = {
        .name = "x", .version = "", .value = (uint8_t *)policy.data, .n_value = policy.len};
    struct zt_xds_record record;
    bool decoding;
    assert_int_equal(zt_xds_convert(&arena, ZT_XDS_AUTHORIZATION, &r, &record, &decoding, &err),
                     ZT_INVALID);
    assert_non_null(strstr(err.text, "resource too large"));
    zt_free(clause);
    zt_str_fini(&rule);
    zt_str_fini(&policy);
}

static void held_names_survive_growth_and_removal(void **state)
{
    struct zt_xds_held h = {0};
    char name[32];
    for (unsigned i = 0; i < 5000; i++) {
        zt_fmt(name, sizeof name, "name-%u", i);
        zt_xds_held_put(&h, name, "v1", 1);
        zt_xds_held_put(&h, name, i % 2 ? "version-2" : "", 2);
    }
    for (unsigned i = 0; i < 5000; i += 3) {
        zt_fmt(name, sizeof name, "name-%u", i);
        assert_true(zt_xds_held_remove(&h, name));
        assert_false(zt_xds_held_remove(&h, name));
    }
    for (unsigned i = 0; i < 5000; i++) {
        zt_fmt(name, sizeof name, "name-%u", i);
        assert_int_equal(zt_xds_held_has(&h, name), i % 3 != 0);
    }
    struct zt_str s;
    zt_str_init(&s, 1 << 20);
    zt_xds_held_write(&h, &s);
    assert_int_equal(s.len, h.wire_bytes);
    zt_str_fini(&s);
    zt_xds_held_fini(&h);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(workload_defaults_fill_what_is_empty),
        TEST(workload_capacity_zero_is_kept),
        TEST(byte_to_ipaddr_garbage_and_empty),
        TEST(workload_unknown_enums_are_refused),
        TEST(workload_without_uid_is_refused),
        TEST(gateway_needs_a_destination_and_a_port_that_fits),
        TEST(ports_over_65535_are_refused_and_the_last_of_equal_ones_wins),
        TEST(services_of_a_workload_split_at_the_first_slash_and_the_last_double_wins),
        TEST(service_addresses_are_vips_or_prefixes),
        TEST(service_load_balancing_refuses_what_it_does_not_know),
        TEST(service_of_unknown_visibility_is_public),
        TEST(weighted_waypoint_needs_a_destination),
        TEST(policy_that_cannot_be_evaluated_is_refused_whole),
        TEST(policy_keeps_every_kind_of_match),
        TEST(arena_gives_nothing_beyond_its_limit),
        TEST(resource_that_blows_up_is_refused),
        TEST(held_names_survive_growth_and_removal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
