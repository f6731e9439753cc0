/* The store: indexes, batches, origins, endpoints in any order of arrival, what a batch reports,
 * readers beside a writer, and what a hundred thousand workloads cost. Rows of spec/controlplane
 * §9.2, §9.4, §9.5 and spec/dataplane §13.6. */
#include "support/state_fixture.h"

#include "state/state_impl.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define assert_at(s, network, ip, ns, expected)                                                    \
    do {                                                                                           \
        const char *found = state_service_at(s, network, ip, ns);                                  \
        assert_string_equal(found ? found : "none", expected);                                     \
    } while (0)
#define assert_named(s, host, ns, expected)                                                        \
    do {                                                                                           \
        const char *found = state_service_named(s, host, ns);                                      \
        assert_string_equal(found ? found : "none", expected);                                     \
    } while (0)
#define assert_uid_at(s, network, ip, expected)                                                    \
    do {                                                                                           \
        const char *found = state_uid_at(s, network, ip);                                          \
        assert_string_equal(found ? found : "none", expected);                                     \
    } while (0)

/* ---- services by address and name ---- */

static void lookup_address_finds_workload_service_or_nothing(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("w", IPS("10.0.0.1")));
    state_put_service(s, SERVICE("ns", "host", VIPS("10.96.0.1")));
    assert_uid_at(s, "", "10.0.0.1", "w");
    assert_uid_at(s, "other", "10.0.0.1", "none");
    assert_uid_at(s, "", "10.0.0.2", "none");
    assert_at(s, "", "10.96.0.1", NULL, "ns/host");
    assert_named(s, "host", NULL, "ns/host");
    assert_named(s, "HOST", NULL, "none");
    assert_named(s, "absent", NULL, "none");
}

static void shared_vip_different_namespaces(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "a", VIPS("10.0.0.1")));
    state_put_service(s, SERVICE("ns2", "b", VIPS("10.0.0.1")));
    assert_at(s, "", "10.0.0.1", "ns1", "ns1/a");
    assert_at(s, "", "10.0.0.1", "ns2", "ns2/b");
    assert_at(s, "", "10.0.0.1", "ns3", "ns1/a");
    assert_at(s, "", "10.0.0.1", NULL, "ns1/a");
    state_remove_service(s, "ns1", "a");
    assert_at(s, "", "10.0.0.1", "ns1", "ns2/b");
    state_remove_service(s, "ns2", "b");
    assert_at(s, "", "10.0.0.1", "ns1", "none");
}

static void two_services_of_one_namespace_share_a_vip(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "a", VIPS("10.0.0.1")));
    state_put_service(s, SERVICE("ns1", "b", VIPS("10.0.0.1")));
    assert_at(s, "", "10.0.0.1", "ns1", "ns1/a");
    state_remove_service(s, "ns1", "a");
    assert_at(s, "", "10.0.0.1", "ns1", "ns1/b");
}

static void canonical_service_wins_among_strangers(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "h", VIPS("10.0.0.1")));
    state_put_service(s, SERVICE("ns2", "h", VIPS("10.0.0.1"), .canonical = true));
    state_put_service(s, SERVICE("ns3", "h", VIPS("10.0.0.1"), .canonical = true));
    assert_at(s, "", "10.0.0.1", "ns9", "ns3/h"); /* the last canonical one */
    assert_at(s, "", "10.0.0.1", NULL, "ns3/h");
    assert_named(s, "h", "ns9", "ns3/h");
    assert_named(s, "h", "ns1", "ns1/h"); /* the client's namespace wins at once */
    /* An update does not change its place in the order. */
    state_put_service(s, SERVICE("ns2", "h", VIPS("10.0.0.1"), .canonical = true));
    assert_named(s, "h", "ns9", "ns3/h");
}

static void namespace_visibility_vip(void **state)
{
    struct zt_store *s = *state;
    state_put_service(
        s, SERVICE("ns1", "a", VIPS("10.0.0.1", "10.1.0.0/16"), .namespace_visible_only = true));
    const char *addresses[] = {"10.0.0.1", "10.1.2.3"};
    for (int i = 0; i < 2; i++) {
        assert_at(s, "", addresses[i], "ns1", "ns1/a");
        assert_at(s, "", addresses[i], "ns2", "none");
        assert_at(s, "", addresses[i], NULL, "ns1/a");
    }
}

static void namespace_visibility_host(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "h", .namespace_visible_only = true));
    state_put_service(s, SERVICE("ns2", "h"));
    assert_named(s, "h", "ns1", "ns1/h");
    assert_named(s, "h", "ns2", "ns2/h");
    assert_named(s, "h", "ns3", "ns2/h");
    state_remove_service(s, "ns2", "h");
    assert_named(s, "h", "ns3", "none");
    assert_named(s, "h", NULL, "ns1/h");
}

static void visibility_filtered_exact_vip_falls_through_to_cidr(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "exact", VIPS("10.0.0.1"), .namespace_visible_only = true));
    state_put_service(s, SERVICE("ns2", "cidr", VIPS("10.0.0.0/24")));
    assert_at(s, "", "10.0.0.1", "ns1", "ns1/exact");
    assert_at(s, "", "10.0.0.1", "ns3", "ns2/cidr");
}

static void cidr_match_v4_and_cidr_match_v6(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "four", VIPS("10.1.2.3/20"))); /* host bits are ignored */
    state_put_service(s, SERVICE("ns", "six", VIPS("2001:db8::/33")));
    assert_at(s, "", "10.1.0.1", "ns", "ns/four");
    assert_at(s, "", "10.1.15.255", "ns", "ns/four");
    assert_at(s, "", "10.1.16.0", "ns", "none");
    assert_at(s, "", "2001:db8:7fff::1", "ns", "ns/six");
    assert_at(s, "", "2001:db8:8000::1", "ns", "none");
}

static void longest_prefix_match_v4_and_longest_prefix_match_v6(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "wide", VIPS("10.0.0.0/8", "2001:db8::/32")));
    state_put_service(s, SERVICE("ns", "narrow", VIPS("10.1.0.0/16", "2001:db8:1::/48")));
    state_put_service(s, SERVICE("ns", "all", VIPS("0.0.0.0/0")));
    assert_at(s, "", "10.1.2.3", "ns", "ns/narrow");
    assert_at(s, "", "10.2.2.3", "ns", "ns/wide");
    assert_at(s, "", "11.2.2.3", "ns", "ns/all");
    assert_at(s, "", "2001:db8:1::5", "ns", "ns/narrow");
    assert_at(s, "", "2001:db8:2::5", "ns", "ns/wide");
}

static void dual_stack_cidr(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "both", VIPS("10.0.0.0/24", "fd00::/64")));
    assert_at(s, "", "10.0.0.9", "ns", "ns/both");
    assert_at(s, "", "fd00::9", "ns", "ns/both");
}

static void cidr_family_mismatch(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "four", VIPS("0.0.0.0/0")));
    assert_at(s, "", "::1", "ns", "none");
    state_remove_service(s, "ns", "four");
    state_put_service(s, SERVICE("ns", "six", VIPS("::/0")));
    assert_at(s, "", "1.2.3.4", "ns", "none");
}

static void exact_v4_with_cidr_v6(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "mixed", VIPS("10.0.0.1", "fd00::/64")));
    assert_at(s, "", "10.0.0.1", "ns", "ns/mixed");
    assert_at(s, "", "10.0.0.2", "ns", "none");
    assert_at(s, "", "fd00::2", "ns", "ns/mixed");
}

static void exact_match_priority_over_cidr_v4_and_v6(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "cidr", VIPS("10.0.0.0/24", "fd00::/64")));
    state_put_service(s, SERVICE("other", "exact", VIPS("10.0.0.1", "fd00::1")));
    assert_at(s, "", "10.0.0.1", "ns", "other/exact");
    assert_at(s, "", "fd00::1", "ns", "other/exact");
    assert_at(s, "", "10.0.0.2", "ns", "ns/cidr");
}

static void cidr_network_scoping(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "here", VIPS_IN("net1", "10.0.0.0/24", "10.9.9.9")));
    assert_at(s, "net1", "10.0.0.1", "ns", "ns/here");
    assert_at(s, "net2", "10.0.0.1", "ns", "none");
    assert_at(s, "", "10.9.9.9", "ns", "none");
}

static void cidr_remove_cleanup(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "cidr", VIPS("10.0.0.0/24", "10.0.0.0/16")));
    state_put_service(s, SERVICE("ns", "cidr", VIPS("10.0.0.0/16")));
    assert_at(s, "", "10.0.0.1", "ns", "ns/cidr");
    state_remove_service(s, "ns", "cidr");
    assert_at(s, "", "10.0.0.1", "ns", "none");
    assert_null(s->cidr_lengths);
    for (size_t i = 0; i < ZT_SHARDS; i++)
        assert_null(s->service_by_cidr.shards[i]);
    assert_null(s->services);
}

static void overlapping_cidr_different_namespaces(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "a", VIPS("10.0.0.0/24")));
    state_put_service(s, SERVICE("ns2", "b", VIPS("10.0.0.0/24")));
    assert_at(s, "", "10.0.0.1", "ns1", "ns1/a");
    assert_at(s, "", "10.0.0.1", "ns2", "ns2/b");
    state_remove_service(s, "ns1", "a");
    assert_at(s, "", "10.0.0.1", "ns1", "ns2/b");
}

static void cidr_namespace_preferred_over_cidr_specificity(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns1", "wide", VIPS("10.0.0.0/8")));
    state_put_service(s, SERVICE("ns2", "narrow", VIPS("10.1.0.0/16")));
    assert_at(s, "", "10.1.0.1", "ns1", "ns1/wide");
    assert_at(s, "", "10.1.0.1", "ns2", "ns2/narrow");
    assert_at(s, "", "10.1.0.1", "ns3", "ns2/narrow");
}

static void cidr_service_keeps_its_endpoints_current(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "cidr", VIPS("10.0.0.0/24")));
    for (int i = 0; i < 5; i++) {
        state_put(s, WORKLOAD("w", IPS("10.9.0.1"), SERVES(MEMBER("ns", "cidr", {80, 80}))));
        state_remove(s, "w");
    }
    assert_int_equal(state_endpoints(s, "ns", "cidr", false), 0);
    state_put(s, WORKLOAD("x", IPS("10.9.0.2"), SERVES(MEMBER("ns", "cidr", {80, 80}))));
    assert_int_equal(state_endpoints(s, "ns", "cidr", false), 1);
}

/* ---- endpoints ---- */

static void apply_endpoints_stages_and_filters_on_flush(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("good", IPS("10.0.0.1"), SERVES(MEMBER("ns", "svc", {80, 80}))));
    state_put(s, WORKLOAD("bad", .healthy = false, SERVES(MEMBER("ns", "svc", {80, 80}))));
    assert_int_equal(state_staged(s), 1);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 2); /* staged unfiltered */
    assert_named(s, "svc", NULL, "none");
    state_put_service(s, SERVICE("ns", "svc", PORTS({80, 80})));
    assert_int_equal(state_staged(s), 0);
    assert_int_equal(state_endpoints(s, "ns", "svc", true), 1);
}

static void apply_endpoints_staged_removals(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 80}))));
    state_put(s, WORKLOAD("b", SERVES(MEMBER("ns", "svc", {80, 80}))));
    state_remove(s, "unknown");
    state_remove(s, "a");
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 1);
    state_remove(s, "b");
    assert_int_equal(state_staged(s), 0);
    assert_null(s->services);
}

static void apply_endpoints_present_unhealthy_reinsert_evicts(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "svc", PORTS({80, 80})));
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 80}))));
    assert_int_equal(state_endpoints(s, "ns", "svc", true), 1);
    state_put(s, WORKLOAD("a", .healthy = false, SERVES(MEMBER("ns", "svc", {80, 80}))));
    assert_int_equal(state_endpoints(s, "ns", "svc", true), 0);
}

static uint16_t port_of(struct zt_store *s, const char *hostname, const char *uid, uint16_t port)
{
    struct zt_service *v = zt_store_service_by_hostname(s, hostname, NULL);
    assert_non_null(v);
    uint16_t target = zt_store_endpoint_port(s, v, uid, port);
    zt_service_unref(v);
    return target;
}

static void apply_endpoints_present_removal_applied_before_upsert(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "svc", PORTS({80, 80})));
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 8080}))));
    assert_int_equal(port_of(s, "svc", "a", 80), 8080);
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    zt_batch_remove_workload(b, "a");
    state_add(b, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 9090}))));
    state_apply(s, b);
    assert_int_equal(port_of(s, "svc", "a", 80), 9090);
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 9091})))); /* and by plain update */
    assert_int_equal(port_of(s, "svc", "a", 80), 9091);
    assert_int_equal(port_of(s, "svc", "a", 81), 0);
    assert_int_equal(port_of(s, "svc", "other", 80), 0);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 1);
}

static void endpoint_listed_twice_is_one(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "svc", PORTS({80, 80})));
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc", {80, 1}), MEMBER("ns", "svc", {80, 2}))));
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 1);
    assert_int_equal(port_of(s, "svc", "a", 80), 1);
}

static void fill_batch(struct zt_batch *b, int from, int to)
{
    for (int i = from; i < to; i++) {
        char uid[32];
        assert_true(zt_fmt(uid, sizeof uid, "w%d", i));
        struct zt_ip ip = {ZT_IPV4, {10, 0, (uint8_t)(i >> 8), (uint8_t)i}};
        state_add(b, WORKLOAD(uid, .ips = &ip, .n_ips = 1, .healthy = i % 10 != 9,
                              SERVES(MEMBER("ns", "svc", {80, 80}))));
    }
}

static void batch_groups_endpoints_per_service(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    struct zt_store_changes c;
    fill_batch(b, 0, 25);
    state_add_service(b, SERVICE("ns", "svc", PORTS({80, 80})));
    fill_batch(b, 25, 50);
    assert_int_equal(zt_batch_size(b), 51);
    zt_store_apply(s, b, &c);
    assert_int_equal(c.n_workloads, 50);
    assert_int_equal(c.n_services, 1);
    assert_false(c.policies);
    zt_store_changes_fini(&c);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 50);
    assert_int_equal(state_staged(s), 0);
}

static void batch_service_before_workloads_and_batch_filters_unhealthy(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_service(b, SERVICE("ns", "svc", PORTS({80, 80})));
    fill_batch(b, 0, 50);
    state_apply(s, b);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 50);
    assert_int_equal(state_endpoints(s, "ns", "svc", true), 45);
}

static void batch_partial_failure_rejects_only_the_bad_record(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    struct zt_workload *bad;
    state_add_service(b, SERVICE("ns", "svc", PORTS({80, 80})));
    fill_batch(b, 0, 1);
    assert_int_equal(
        zt_workload_new(WORKLOAD("bad", .ips = &(struct zt_ip){0}, .n_ips = 1), &bad, NULL),
        ZT_INVALID);
    fill_batch(b, 1, 2);
    state_apply(s, b);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 2);
}

static void remove_drops_endpoint(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_service(b, SERVICE("ns", "svc", PORTS({80, 80})));
    fill_batch(b, 0, 3);
    state_apply(s, b);
    state_remove(s, "w1");
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 2);
}

static void batch_not_applied_is_freed_whole(void **state)
{
    (void)state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_service(b, SERVICE("ns", "svc"));
    fill_batch(b, 0, 3);
    zt_batch_remove_policy(b, "p");
    zt_batch_remove_service(b, "ns", "svc");
    zt_batch_free(b);
    zt_batch_free(NULL);
}

/* ---- the long scenarios of spec/controlplane §9.5 ---- */

static void workload_information(void **state)
{
    struct zt_store *s = *state;
    state_remove(s, "invalid");
    state_remove(s, "");
    state_remove_service(s, "no", "such");
    state_put(s, WORKLOAD("a", IPS("127.0.0.1"), .name = "some name"));
    assert_uid_at(s, "", "127.0.0.1", "a");
    assert_uid_at(s, "", "127.0.0.2", "none");
    state_remove(s, "a");
    assert_uid_at(s, "", "127.0.0.1", "none");
    /* Workload before service: staged. */
    state_put(s,
              WORKLOAD("a", IPS("127.0.0.1"),
                       SERVES(MEMBER("ns", "svc1", {80, 8080}), MEMBER("ns", "svc2", {80, 80}))));
    assert_int_equal(state_staged(s), 2);
    state_put_service(s, SERVICE("ns", "svc1", VIPS("127.0.1.1"), PORTS({80, 80})));
    assert_int_equal(state_staged(s), 1);
    assert_int_equal(state_endpoints(s, "ns", "svc1", true), 1);
    /* An update carries the endpoints over and changes the VIPs. */
    state_put_service(s, SERVICE("ns", "svc1", VIPS("127.0.1.2", "127.0.1.3"), PORTS({80, 80})));
    assert_int_equal(state_endpoints(s, "ns", "svc1", true), 1);
    assert_at(s, "", "127.0.1.1", NULL, "none");
    assert_at(s, "", "127.0.1.2", NULL, "ns/svc1");
    assert_at(s, "", "127.0.1.3", NULL, "ns/svc1");
    assert_named(s, "svc1", NULL, "ns/svc1");
    /* The workload leaves the service, or falls ill. */
    state_put(s, WORKLOAD("a", IPS("127.0.0.1"), SERVES(MEMBER("ns", "svc2", {80, 80}))));
    assert_int_equal(state_endpoints(s, "ns", "svc1", false), 0);
    state_put(s, WORKLOAD("a", IPS("127.0.0.1"), .healthy = false,
                          SERVES(MEMBER("ns", "svc1", {80, 80}))));
    assert_int_equal(state_endpoints(s, "ns", "svc1", true), 0);
    assert_int_equal(state_staged(s), 0);
    /* The service goes: no index knows it. The endpoint is kept for its return. */
    state_remove_service(s, "ns", "svc1");
    assert_at(s, "", "127.0.1.2", NULL, "none");
    assert_named(s, "svc1", NULL, "none");
    assert_int_equal(state_staged(s), 1);
    state_put_service(s, SERVICE("ns", "svc1", PORTS({80, 80})));
    assert_int_equal(state_endpoints(s, "ns", "svc1", false), 1);
}

static void overlapping_workload_ip(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("cluster//networking.istio.io/WorkloadEntry/ns/we", IPS("10.0.0.1"),
                          .protocol = ZT_PROTOCOL_HBONE));
    state_put(s, WORKLOAD("cluster//Pod/ns/pod", IPS("10.0.0.1")));
    assert_uid_at(s, "", "10.0.0.1", "cluster//Pod/ns/pod");
    state_put(s, WORKLOAD("cluster//networking.istio.io/WorkloadEntry/ns/we", IPS("10.0.0.1")));
    assert_uid_at(s, "", "10.0.0.1", "cluster//Pod/ns/pod");
    state_put(s, WORKLOAD("cluster//Pod/ns/pod", IPS("10.0.0.1")));
    struct zt_key k;
    struct zt_ip ip = state_ip("10.0.0.1");
    zt_key_address(&k, "", &ip);
    assert_int_equal(zt_multi_find(&s->by_address, &k)->n, 2); /* re-inserted, not duplicated */
    state_remove(s, "cluster//Pod/ns/pod");
    assert_uid_at(s, "", "10.0.0.1", "cluster//networking.istio.io/WorkloadEntry/ns/we");
    /* Ties: the latest inserted, an update counting as insertion. */
    state_put(s, WORKLOAD("x", IPS("10.0.0.1")));
    assert_uid_at(s, "", "10.0.0.1", "x");
    state_put(s, WORKLOAD("cluster//networking.istio.io/WorkloadEntry/ns/we", IPS("10.0.0.1")));
    assert_uid_at(s, "", "10.0.0.1", "cluster//networking.istio.io/WorkloadEntry/ns/we");
}

#define SICK_AND_WELL SERVES(MEMBER("ns", "all", {80, 80}), MEMBER("ns", "normal", {80, 80}))

static void unhealthy_workloads_and_unhealthy_workloads_staged_keep_all(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("well", SICK_AND_WELL));
    state_put(s, WORKLOAD("sick", .healthy = false, SICK_AND_WELL));
    state_put_service(s, SERVICE("ns", "all", PORTS({80, 80}), .lb_allow_all = true));
    state_put_service(s, SERVICE("ns", "normal", PORTS({80, 80})));
    /* All are kept, so a change of the health policy needs no workload sent again; picking filters
     * (test_lb). */
    assert_int_equal(state_endpoints(s, "ns", "all", false), 2);
    assert_int_equal(state_endpoints(s, "ns", "normal", true), 1);
}

static void staged_services_cleanup(void **state)
{
    struct zt_store *s = *state;
    state_put(
        s, WORKLOAD("a", SERVES(MEMBER("ns", "svc1", {80, 80}), MEMBER("ns", "svc2", {80, 80}))));
    assert_int_equal(state_staged(s), 2);
    state_put(s, WORKLOAD("a", SERVES(MEMBER("ns", "svc2", {80, 80}))));
    assert_int_equal(state_staged(s), 1);
    state_remove(s, "a");
    assert_int_equal(state_staged(s), 0);
}

static void test_wait_for_workload_finds_the_local_one_only(void **state)
{
    struct zt_store *s = *state;
    state_put(
        s, WORKLOAD("here", .ns = "n", .name = "pod", .service_account = "sa", .node = STATE_NODE));
    state_put(
        s, WORKLOAD("there", .ns = "n", .name = "far", .service_account = "sa", .node = "other"));
    struct zt_workload *w = zt_store_find_local(s, "n", "pod", "sa");
    assert_string_equal(w->uid, "here");
    zt_workload_unref(w);
    assert_null(zt_store_find_local(s, "n", "far", "sa"));
    assert_null(zt_store_find_local(s, "n", "pod", "other"));
    assert_null(zt_store_find_local(s, "m", "pod", "sa"));
}

static void every_workload_is_local_where_the_node_is_not_named(void **state)
{
    (void)state;
    struct zt_store *s = zt_store_new(&(struct zt_store_config){.network = "net"});
    assert_string_equal(zt_store_network(s), "net");
    state_put(
        s, WORKLOAD("there", .ns = "n", .name = "far", .service_account = "sa", .node = "other"));
    struct zt_workload *w = zt_store_find_local(s, "n", "far", "sa");
    assert_non_null(w);
    zt_workload_unref(w);
    zt_store_free(s);
}

/* ---- origins ---- */

static void apply_file(struct zt_store *s, const char *uid, const char *uid2)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_FILE);
    if (uid)
        state_add(b, WORKLOAD(uid, IPS("10.0.0.1"), .name = "file",
                              SERVES(MEMBER("ns", "svc", {80, 80}))));
    if (uid2)
        state_add(b, WORKLOAD(uid2, IPS("10.0.0.2"), .name = "file"));
    state_add_service(b, SERVICE("ns", uid ? uid : "none"));
    state_add_policy(b, &(struct zt_policy){.key = uid ? uid : "none", .ns = "ns", .name = "p"});
    zt_batch_set_complete(b);
    state_apply(s, b);
}

static void assert_name(struct zt_store *s, const char *uid, const char *name)
{
    struct zt_workload *w = zt_store_find_workload(s, uid);
    assert_string_equal(w ? w->name : "none", name);
    zt_workload_unref(w);
}

static void reload_of_the_file_replaces_file_records_only(void **state)
{
    struct zt_store *s = *state;
    size_t w, v, p;
    state_put(s, WORKLOAD("x", IPS("10.0.0.9"), .name = "xds"));
    state_put_policy(s, &(struct zt_policy){.key = "x", .ns = "ns", .name = "x"});
    state_put_service(s, SERVICE("ns", "xds"));
    apply_file(s, "a", "b");
    zt_store_counts(s, &w, &v, &p);
    assert_int_equal(w, 3);
    assert_int_equal(v, 2);
    assert_int_equal(p, 2);
    apply_file(s, "b", "c");
    assert_name(s, "a", "none");
    assert_name(s, "b", "file");
    assert_name(s, "c", "file");
    assert_name(s, "x", "xds");
    assert_named(s, "a", NULL, "none");
    assert_named(s, "b", NULL, "ns/b");
    assert_named(s, "xds", NULL, "ns/xds");
    zt_store_counts(s, &w, &v, &p);
    assert_int_equal(w, 3);
    assert_int_equal(v, 2);
    assert_int_equal(p, 2);
}

static void xds_wins_over_the_file_and_the_file_comes_back(void **state)
{
    struct zt_store *s = *state;
    apply_file(s, "a", NULL);
    state_put(s, WORKLOAD("a", IPS("10.0.0.7"), .name = "xds"));
    assert_name(s, "a", "xds");
    assert_uid_at(s, "", "10.0.0.7", "a");
    assert_uid_at(s, "", "10.0.0.1", "none");
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 0);
    apply_file(s, "a", NULL); /* a file record never displaces one from xDS */
    assert_name(s, "a", "xds");
    state_remove(s, "a"); /* xDS takes back its own only */
    assert_name(s, "a", "file");
    assert_uid_at(s, "", "10.0.0.1", "a");
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 1);
    state_remove(s, "a");
    assert_name(s, "a", "file");
    state_put(s, WORKLOAD("a", .name = "xds"));
    apply_file(s, NULL, NULL); /* gone from the file while shadowed */
    assert_name(s, "a", "xds");
    state_remove(s, "a");
    assert_name(s, "a", "none");
}

static void services_and_policies_are_shadowed_likewise(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_FILE);
    state_add_service(b, SERVICE("ns", "svc", VIPS("10.0.0.1")));
    state_add_policy(b, &(struct zt_policy){.key = "k", .ns = "ns", .name = "file"});
    state_apply(s, b);
    state_put_service(s, SERVICE("ns", "svc", VIPS("10.0.0.2")));
    state_put_policy(s, &(struct zt_policy){.key = "k", .ns = "ns", .name = "xds"});
    assert_at(s, "", "10.0.0.1", NULL, "none");
    assert_at(s, "", "10.0.0.2", NULL, "ns/svc");
    size_t n;
    struct zt_policy **list = zt_store_snapshot_policies(s, &n);
    assert_int_equal(n, 1);
    assert_string_equal(list[0]->name, "xds");
    assert_int_equal(list[0]->origin, ZT_ORIGIN_XDS);
    zt_store_snapshot_policies_free(list, n);
    state_remove_service(s, "ns", "svc");
    state_remove_policy(s, "k");
    assert_at(s, "", "10.0.0.1", NULL, "ns/svc");
    list = zt_store_snapshot_policies(s, &n);
    assert_string_equal(list[0]->name, "file");
    zt_store_snapshot_policies_free(list, n);
}

/* ---- what a batch reports ---- */

#define LOCAL(uid_, sa_, ...)                                                                      \
    WORKLOAD(uid_, .ns = "n", .service_account = sa_, .node = STATE_NODE,                          \
             .protocol = ZT_PROTOCOL_HBONE, __VA_ARGS__)

static struct zt_store_changes apply_one(struct zt_store *s, const struct zt_workload *w,
                                         const char *remove)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    struct zt_store_changes c;
    if (remove)
        zt_batch_remove_workload(b, remove);
    if (w)
        state_add(b, w);
    zt_store_apply(s, b, &c);
    return c;
}

static void expect_hints(struct zt_store *s, const struct zt_workload *w, const char *remove,
                         const char *prefetch, const char *forget)
{
    struct zt_store_changes c = apply_one(s, w, remove);
    assert_string_equal(c.prefetch[0] ? c.prefetch[0] : "", prefetch);
    assert_string_equal(c.forget[0] ? c.forget[0] : "", forget);
    zt_store_changes_fini(&c);
}

static void hints_follow_identities_of_local_workloads(void **state)
{
    struct zt_store *s = *state;
    const char *a = "spiffe://cluster.local/ns/n/sa/a", *b = "spiffe://cluster.local/ns/n/sa/b";
    expect_hints(s, LOCAL("1", "a"), NULL, a, "");
    expect_hints(s, LOCAL("2", "a"), NULL, a, "");
    expect_hints(s, NULL, "1", "", ""); /* still used by 2 */
    expect_hints(s, LOCAL("2", "b"), NULL, b,
                 a); /* A10: an identity changed by update is forgotten */
    expect_hints(s, LOCAL("2", "b"), "2", b, ""); /* removed and put again in one batch */
    expect_hints(s, NULL, "2", "", b);
    expect_hints(s, LOCAL("3", "a", .protocol = ZT_PROTOCOL_TCP), NULL, "", "");
    expect_hints(s, LOCAL("4", "a", .protocol = ZT_PROTOCOL_TCP, .native_tunnel = true), NULL, a,
                 "");
    expect_hints(s, LOCAL("5", "c", .node = "elsewhere"), NULL, "", "");
    expect_hints(s, NULL, "5", "", "");
}

static void changes_say_when_connections_must_be_judged_again(void **state)
{
    struct zt_store *s = *state;
    struct zt_store_changes c = apply_one(s, LOCAL("1", "a"), NULL);
    assert_false(c.policies);
    zt_store_changes_fini(&c);
    c = apply_one(s, LOCAL("1", "a", POLICIES("n/p")), NULL);
    assert_true(c.policies);
    zt_store_changes_fini(&c);
    c = apply_one(s, LOCAL("1", "a", POLICIES("n/p"), IPS("1.2.3.4")), NULL);
    assert_false(c.policies);
    zt_store_changes_fini(&c);
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    zt_batch_remove_policy(b, "unknown");
    zt_store_apply(s, b, &c);
    assert_false(c.policies);
    assert_int_equal(c.n_policies, 0);
    zt_store_changes_fini(&c);
    b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_policy(b, &(struct zt_policy){.key = "k"});
    zt_store_apply(s, b, &c);
    assert_true(c.policies);
    assert_int_equal(c.n_policies, 1);
    zt_store_changes_fini(&c);
}

/* ---- snapshots ---- */

static void snapshots_are_sorted_and_retained(void **state)
{
    struct zt_store *s = *state;
    size_t n;
    state_put(s, WORKLOAD("b"));
    state_put(s, WORKLOAD("a"));
    state_put_service(s, SERVICE("ns2", "h"));
    state_put_service(s, SERVICE("ns1", "h"));
    state_put_service(s, SERVICE("ns9", "a"));
    struct zt_workload **w = zt_store_snapshot_workloads(s, &n);
    assert_int_equal(n, 2);
    state_remove(s, "a");
    assert_string_equal(w[0]->uid, "a");
    assert_string_equal(w[1]->uid, "b");
    zt_store_snapshot_workloads_free(w, n);
    struct zt_service **v = zt_store_snapshot_services(s, &n);
    assert_int_equal(n, 3);
    assert_string_equal(v[0]->ns, "ns9");
    assert_string_equal(v[1]->ns, "ns2"); /* by hostname, then by insertion */
    assert_string_equal(v[2]->ns, "ns1");
    zt_store_snapshot_services_free(v, n);
}

/* ---- threads ---- */

struct reader {
    struct zt_store *store;
    atomic_bool *stop;
    unsigned n_bad;
    atomic_uint n_done;
};

static void *read_on(void *arg)
{
    struct reader *r = arg;
    struct zt_ip vip = state_ip("10.96.0.1");
    while (!atomic_load(r->stop)) {
        struct zt_workload *src = zt_store_find_workload(r->store, "src");
        struct zt_route_query q = {
            .src = src, .client = state_addr("10.9.0.1:1"), .dst = state_addr("10.96.0.1:80")};
        struct zt_route route;
        struct zt_authz_request a = {.src = q.client, .dst = q.dst};
        if (zt_route_resolve(r->store, &q, &route, NULL) == ZT_OK) {
            /* All versions of an endpoint agree with themselves: ip 10.0.0.N goes with capacity N.
             */
            if (route.dst_workload &&
                route.dst_workload->capacity != route.dst_workload->ips[0].bytes[3])
                r->n_bad++;
            zt_route_fini(&route);
        }
        if (zt_authz_decide(r->store, src, &a, NULL, NULL) != ZT_OK)
            r->n_bad++;
        zt_service_unref(zt_store_service_at(r->store, "", &vip, "default"));
        zt_workload_unref(src);
        atomic_fetch_add(&r->n_done, 1);
    }
    return NULL;
}

#define ROUNDS_MIN 300
#define ROUNDS_MAX 1000000 /* tens of seconds: far more than a reader needs on any machine */
#define READS_MIN 100

static bool all_have_read(const struct reader *readers, int n)
{
    for (int i = 0; i < n; i++)
        if (atomic_load(&readers[i].n_done) < READS_MIN)
            return false;
    return true;
}

static void readers_see_whole_records_beside_a_writer(void **state)
{
    struct zt_store *s = *state;
    atomic_bool stop = false;
    struct reader readers[3];
    pthread_t threads[3];
    static const char *const ips[] = {"10.0.0.1", "10.0.0.2", "10.0.0.3"};
    state_put(s, WORKLOAD("src", IPS("10.9.0.1"), POLICIES("k")));
    for (int i = 0; i < 3; i++) {
        readers[i] = (struct reader){.store = s, .stop = &stop};
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readers[i]), 0);
    }
    /* A writer without a pause must not starve the readers, nor they it. */
    for (int i = 0; i < ROUNDS_MIN || (!all_have_read(readers, 3) && i < ROUNDS_MAX); i++) {
        struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
        state_add_service(b, SERVICE("default", "svc", VIPS("10.96.0.1"), PORTS({80, 80})));
        for (int w = 0; w < 3; w++)
            state_add(b, WORKLOAD(i % 2 ? "even" : "odd",
                                  .ips = &(struct zt_ip){state_ip(ips[w]).family,
                                                         {10, 0, 0, (uint8_t)(w + 1)}},
                                  .n_ips = 1, .capacity = (uint32_t)w + 1,
                                  SERVES(MEMBER("default", "svc", {80, 80}))));
        state_add_policy(b, &(struct zt_policy){.key = "k", .action = ZT_POLICY_DENY});
        if (i % 5 == 0)
            zt_batch_remove_service(b, "default", "svc");
        if (i % 7 == 0)
            zt_batch_remove_workload(b, "even");
        state_apply(s, b);
        zt_store_collect(s);
    }
    bool fair = all_have_read(readers, 3);
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].n_bad, 0);
    }
    assert_true(fair);
}

/* ---- size ---- */

/* This thread's processor time: the wall clock of a busy machine says nothing about the store. */
static uint64_t cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

#define MANY 100000
#define BYTES_PER_WORKLOAD_MAX                                                                     \
    1000                   /* the target is 800; sanitizers' allocators round differently */
#define APPLY_MS_MAX 20000 /* generous: sanitizers are ten times slower */

static struct zt_batch *many_workloads(void)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    for (int i = 0; i < MANY; i++) {
        char uid[80], name[40], owner[24], ns[16], sa[16], node[16], host[64];
        assert_true(zt_fmt(owner, sizeof owner, "app-%d", i / 20));
        assert_true(zt_fmt(name, sizeof name, "%s-7d9f8b6c5-%05x", owner, i));
        assert_true(zt_fmt(ns, sizeof ns, "ns-%d", i / 500));
        assert_true(zt_fmt(sa, sizeof sa, "sa-%d", i / 20));
        assert_true(zt_fmt(node, sizeof node, "node-%d", i % 1000));
        assert_true(zt_fmt(host, sizeof host, "%s.%s.svc.cluster.local", owner, ns));
        assert_true(zt_fmt(uid, sizeof uid, "Kubernetes//Pod/%s/%s", ns, name));
        struct zt_ip ip = {ZT_IPV4, {10, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i}};
        state_add(b, WORKLOAD(uid, .ns = ns, .service_account = sa, .node = node,
                              .workload_name = owner, .workload_type = "deployment",
                              .canonical_name = owner, .canonical_revision = "v1",
                              .protocol = ZT_PROTOCOL_HBONE, .ips = &ip, .n_ips = 1,
                              .region = "region", .zone = "zone-a",
                              SERVES(MEMBER(ns, host, {80, 8080}, {443, 8443}))));
    }
    return b;
}

static void a_hundred_thousand_workloads_are_applied_fast_and_small(void **state)
{
    struct zt_store *s = *state;
    size_t before = zt_mem_live_bytes();
    uint64_t t0 = cpu_ms();
    struct zt_batch *b = many_workloads();
    uint64_t t1 = cpu_ms();
    state_apply(s, b);
    uint64_t t2 = cpu_ms();
    size_t bytes = (zt_mem_live_bytes() - before) / MANY;
    state_apply(s, many_workloads()); /* all again, as a reconnect sends it */
    uint64_t t3 = cpu_ms();
    printf("%d workloads: built in %llu ms, applied in %llu ms, built and applied again in %llu "
           "ms, %zu bytes each\n",
           MANY, (unsigned long long)(t1 - t0), (unsigned long long)(t2 - t1),
           (unsigned long long)(t3 - t2), bytes);
    size_t n, services, policies;
    zt_store_counts(s, &n, &services, &policies);
    assert_int_equal(n, MANY);
    assert_true(bytes < BYTES_PER_WORKLOAD_MAX);
    assert_true(t3 - t0 < APPLY_MS_MAX);
}

static void ten_thousand_endpoints_of_one_service_come_and_go_in_linear_time(void **state)
{
    struct zt_store *s = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_FILE);
    uint64_t t0 = cpu_ms();
    state_add_service(b, SERVICE("ns", "svc", PORTS({80, 80})));
    fill_batch(b, 0, 10000);
    zt_batch_set_complete(b);
    state_apply(s, b);
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 10000);
    b = zt_batch_new(ZT_ORIGIN_FILE);
    zt_batch_set_complete(b);
    state_apply(s, b);
    uint64_t took = cpu_ms() - t0;
    assert_int_equal(state_endpoints(s, "ns", "svc", false), 0);
    assert_null(s->services);
    printf("10000 endpoints: in and out in %llu ms\n", (unsigned long long)took);
    assert_true(took < 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STATE_TEST(lookup_address_finds_workload_service_or_nothing),
        STATE_TEST(shared_vip_different_namespaces),
        STATE_TEST(two_services_of_one_namespace_share_a_vip),
        STATE_TEST(canonical_service_wins_among_strangers),
        STATE_TEST(namespace_visibility_vip),
        STATE_TEST(namespace_visibility_host),
        STATE_TEST(visibility_filtered_exact_vip_falls_through_to_cidr),
        STATE_TEST(cidr_match_v4_and_cidr_match_v6),
        STATE_TEST(longest_prefix_match_v4_and_longest_prefix_match_v6),
        STATE_TEST(dual_stack_cidr),
        STATE_TEST(cidr_family_mismatch),
        STATE_TEST(exact_v4_with_cidr_v6),
        STATE_TEST(exact_match_priority_over_cidr_v4_and_v6),
        STATE_TEST(cidr_network_scoping),
        STATE_TEST(cidr_remove_cleanup),
        STATE_TEST(overlapping_cidr_different_namespaces),
        STATE_TEST(cidr_namespace_preferred_over_cidr_specificity),
        STATE_TEST(cidr_service_keeps_its_endpoints_current),
        STATE_TEST(apply_endpoints_stages_and_filters_on_flush),
        STATE_TEST(apply_endpoints_staged_removals),
        STATE_TEST(apply_endpoints_present_unhealthy_reinsert_evicts),
        STATE_TEST(apply_endpoints_present_removal_applied_before_upsert),
        STATE_TEST(endpoint_listed_twice_is_one),
        STATE_TEST(batch_groups_endpoints_per_service),
        STATE_TEST(batch_service_before_workloads_and_batch_filters_unhealthy),
        STATE_TEST(batch_partial_failure_rejects_only_the_bad_record),
        STATE_TEST(remove_drops_endpoint),
        STATE_TEST(batch_not_applied_is_freed_whole),
        STATE_TEST(workload_information),
        STATE_TEST(overlapping_workload_ip),
        STATE_TEST(unhealthy_workloads_and_unhealthy_workloads_staged_keep_all),
        STATE_TEST(staged_services_cleanup),
        STATE_TEST(test_wait_for_workload_finds_the_local_one_only),
        STATE_TEST(every_workload_is_local_where_the_node_is_not_named),
        STATE_TEST(reload_of_the_file_replaces_file_records_only),
        STATE_TEST(xds_wins_over_the_file_and_the_file_comes_back),
        STATE_TEST(services_and_policies_are_shadowed_likewise),
        STATE_TEST(hints_follow_identities_of_local_workloads),
        STATE_TEST(changes_say_when_connections_must_be_judged_again),
        STATE_TEST(snapshots_are_sorted_and_retained),
        STATE_TEST(readers_see_whole_records_beside_a_writer),
        STATE_TEST(a_hundred_thousand_workloads_are_applied_fast_and_small),
        STATE_TEST(ten_thousand_endpoints_of_one_service_come_and_go_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
