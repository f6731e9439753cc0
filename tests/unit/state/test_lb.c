/* Endpoint selection: spec/controlplane §4.9 and the rows test_load_balance,
 * find_upstream_port_mappings, test_sample_weighted_waypoint. */
#include "support/state_fixture.h"

#include "state/state_impl.h"
#include "zt/base/clock.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define DRAWS 400

/* Which of the workloads were drawn, by the letter their uid begins with, sorted; "" for none. */
struct drawn {
    unsigned n[26];
    unsigned none;
    uint16_t port;
};

static struct drawn draw(struct zt_store *s, const char *src_uid, const char *hostname,
                         uint16_t port, enum zt_lb_use use)
{
    struct drawn d = {0};
    struct zt_lb_query q = {.port = port, .use = use};
    pthread_rwlock_rdlock(&s->lock);
    q.src = zt_entry_workload(zt_find_uid(s, src_uid));
    struct zt_service_entry *v = zt_find_service_by_hostname(s, hostname, NULL);
    for (int i = 0; i < DRAWS; i++) {
        struct zt_upstream u;
        if (!zt_lb_pick(s, v, &q, &u)) {
            d.none++;
            continue;
        }
        d.n[u.workload->uid[0] - 'a']++;
        d.port = u.port;
    }
    pthread_rwlock_unlock(&s->lock);
    return d;
}

static void expect_drawn(struct zt_store *s, const char *hostname, enum zt_lb_use use,
                         const char *letters)
{
    char got[27];
    size_t n = 0;
    struct drawn d = draw(s, "src", hostname, 80, use);
    for (int i = 0; i < 26; i++)
        if (d.n[i])
            got[n++] = (char)('a' + i);
    got[n] = '\0';
    assert_string_equal(got, letters);
    assert_int_equal(d.none, *letters ? 0 : DRAWS);
}

/* test_load_balance: a source and endpoints that share more or less with it. */
#define MEMBERS                                                                                    \
    SERVES(MEMBER("ns", "any", {80, 80}), MEMBER("ns", "strict", {80, 80}),                        \
           MEMBER("ns", "failover", {80, 80}))
#define AT(network_, region_, zone_) .network = network_, .region = region_, .zone = zone_

static int setup_balance(void **state)
{
    state_setup(state);
    struct zt_store *s = *state;
    const uint8_t scopes[] = {ZT_SCOPE_NETWORK, ZT_SCOPE_REGION, ZT_SCOPE_ZONE};
    struct zt_service v = *SERVICE("ns", "any", PORTS({80, 80}));
    state_put_service(s, &v);
    memcpy(v.lb_scopes, scopes, sizeof scopes);
    v.n_lb_scopes = 3;
    v.hostname = "strict";
    v.lb_mode = ZT_LB_STRICT;
    state_put_service(s, &v);
    v.hostname = "failover";
    v.lb_mode = ZT_LB_FAILOVER;
    state_put_service(s, &v);
    state_put(s, WORKLOAD("src", AT("network", "reg", "zone"), IPS("10.9.0.1")));
    /* Never a choice: no address, and not behind a gateway elsewhere. */
    state_put(s, WORKLOAD("no-ip", AT("network", "reg", "zone"), MEMBERS));
    return 0;
}

static void test_load_balance_any_takes_all(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", AT("", "", ""), IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", AT("network", "reg", "zone"), IPS("10.0.0.2"), MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "ab");
}

static void test_load_balance_strict_none_or_full_match(void **state)
{
    struct zt_store *s = *state;
    expect_drawn(s, "strict", ZT_LB_FOR_TRAFFIC, "");
    state_put(s, WORKLOAD("a", AT("network", "reg", "other"), IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", AT("far", "reg", "zone"), IPS("10.0.0.2"), MEMBERS));
    expect_drawn(s, "strict", ZT_LB_FOR_TRAFFIC, "");
    state_put(s, WORKLOAD("c", AT("network", "reg", "zone"), IPS("10.0.0.3"), MEMBERS));
    expect_drawn(s, "strict", ZT_LB_FOR_TRAFFIC, "c");
}

static void test_load_balance_failover_ranks_by_what_is_shared(void **state)
{
    struct zt_store *s = *state;
    /* Nothing in common: any. */
    state_put(s, WORKLOAD("a", AT("far", "other", "other"), IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", AT("far", "other", "zone"), IPS("10.0.0.2"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "ab");
    /* Region and zone in another network. */
    state_put(s, WORKLOAD("c", AT("far", "reg", "other"), IPS("10.0.0.3"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "c");
    state_put(s, WORKLOAD("d", AT("far", "reg", "zone"), IPS("10.0.0.4"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "d");
    /* Any endpoint of our network outranks every other network. */
    state_put(s, WORKLOAD("e", AT("network", "other", "zone"), IPS("10.0.0.5"), MEMBERS));
    state_put(s, WORKLOAD("f", AT("network", "other", "other"), IPS("10.0.0.6"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "ef");
    state_put(s, WORKLOAD("g", AT("network", "reg", "other"), IPS("10.0.0.7"), MEMBERS));
    state_put(s, WORKLOAD("h", AT("network", "reg", "another"), IPS("10.0.0.8"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "gh");
    state_put(s, WORKLOAD("i", AT("network", "reg", "zone"), IPS("10.0.0.9"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "i");
}

static void test_load_balance_remote_without_address_needs_a_gateway(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", AT("far", "", ""), MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "");
    state_put(s, WORKLOAD("a", AT("far", "", ""),
                          .network_gateway = GATEWAY_IP("far", "1.2.3.4", 15008), MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "a");
}

static void test_load_balance_endpoint_of_unknown_workload_is_ignored(void **state)
{
    struct zt_store *s = *state;
    const struct zt_static_endpoint list[] = {{.workload_uid = "unknown", .healthy = true},
                                              {.workload_uid = "a", .healthy = true},
                                              {.workload_uid = "b", .healthy = false}};
    state_put_service(
        s, SERVICE("ns", "static", PORTS({80, 81}), .endpoints = list, .n_endpoints = 3));
    expect_drawn(s, "static", ZT_LB_FOR_TRAFFIC, "");
    state_put(s, WORKLOAD("a", IPS("10.0.0.1")));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2")));
    expect_drawn(s, "static", ZT_LB_FOR_TRAFFIC, "a");
    assert_int_equal(draw(s, "src", "static", 80, ZT_LB_FOR_TRAFFIC).port, 81);
}

static void lb_node_and_cluster_scopes_stop_at_the_first_mismatch(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "node", PORTS({80, 80}), .lb_mode = ZT_LB_FAILOVER,
                                 .lb_scopes = {ZT_SCOPE_CLUSTER, ZT_SCOPE_SUBZONE, ZT_SCOPE_NODE},
                                 .n_lb_scopes = 3));
    state_put(s, WORKLOAD("src", IPS("10.9.0.1"), .node = "n1", .subzone = "s1"));
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .node = "n1", .subzone = "s2",
                          SERVES(MEMBER("ns", "node", {80, 80}))));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), .node = "n1", .subzone = "s1", .cluster_id = "c2",
                          SERVES(MEMBER("ns", "node", {80, 80}))));
    expect_drawn(s, "node", ZT_LB_FOR_TRAFFIC, "a");
    state_put(s, WORKLOAD("c", IPS("10.0.0.3"), .node = "n2", .subzone = "s1",
                          SERVES(MEMBER("ns", "node", {80, 80}))));
    expect_drawn(s, "node", ZT_LB_FOR_TRAFFIC, "c");
}

static void lb_passthrough_service_reached_by_hostname_takes_all(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "pass", PORTS({80, 80}), .lb_mode = ZT_LB_PASSTHROUGH,
                                 .lb_scopes = {ZT_SCOPE_NODE}, .n_lb_scopes = 1));
    state_put(s,
              WORKLOAD("a", IPS("10.0.0.1"), .node = "x", SERVES(MEMBER("ns", "pass", {80, 80}))));
    state_put(s,
              WORKLOAD("b", IPS("10.0.0.2"), .node = "y", SERVES(MEMBER("ns", "pass", {80, 80}))));
    expect_drawn(s, "pass", ZT_LB_FOR_TRAFFIC, "ab");
}

static void lb_capacity_is_the_weight_and_zero_is_never_picked(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .capacity = 3, MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), .capacity = 1, MEMBERS));
    state_put(s, WORKLOAD("c", IPS("10.0.0.3"), .capacity = 0, MEMBERS));
    struct drawn d = draw(s, "src", "any", 80, ZT_LB_FOR_TRAFFIC);
    assert_int_equal(d.n[2], 0);
    assert_in_range(d.n[0], DRAWS * 3 / 4 - 60, DRAWS * 3 / 4 + 60); /* seven standard deviations */
    assert_int_equal(d.n[0] + d.n[1], DRAWS);
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .capacity = 0, MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), .capacity = 0, MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "");
}

static void lb_huge_capacities_do_not_overflow(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .capacity = UINT32_MAX, MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), .capacity = UINT32_MAX, MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "ab");
}

static void lb_health_is_judged_when_picking(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .healthy = false, MEMBERS));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "");
    state_put_service(s, SERVICE("ns", "any", PORTS({80, 80}), .lb_allow_all = true));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "a");
    state_put_service(s, SERVICE("ns", "any", PORTS({80, 80})));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "");
}

static void find_upstream_port_mappings_endpoint_mapping(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "named", PORTS({80, 0})));
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), SERVES(MEMBER("ns", "named", {80, 9090}))));
    assert_int_equal(draw(s, "src", "named", 80, ZT_LB_FOR_TRAFFIC).port, 9090);
}

static void find_upstream_port_mappings_service_mapping(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "mapped", PORTS({80, 8080})));
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), SERVES({.ns = "ns", .hostname = "mapped"})));
    assert_int_equal(draw(s, "src", "mapped", 80, ZT_LB_FOR_TRAFFIC).port, 8080);
}

static void find_upstream_port_mappings_app_tunnel(void **state)
{
    struct zt_store *s = *state;
    state_put_service(s, SERVICE("ns", "tunnel", PORTS({80, 0})));
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .has_app_tunnel = true, .app_tunnel_port = 15088,
                          SERVES({.ns = "ns", .hostname = "tunnel"})));
    assert_int_equal(draw(s, "src", "tunnel", 80, ZT_LB_FOR_WAYPOINT).port, 80);
    assert_int_equal(draw(s, "src", "tunnel", 81, ZT_LB_FOR_WAYPOINT).port, 81);
    /* Ordinary traffic wants a mapping. */
    assert_int_equal(draw(s, "src", "tunnel", 80, ZT_LB_FOR_TRAFFIC).none, DRAWS);
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .has_app_tunnel = true,
                          SERVES({.ns = "ns", .hostname = "tunnel"})));
    assert_int_equal(draw(s, "src", "tunnel", 80, ZT_LB_FOR_WAYPOINT).none, DRAWS);
}

static void test_sample_weighted_waypoint(void **state)
{
    (void)state;
    struct zt_weighted_waypoint list[2] = {0};
    assert_int_equal(zt_lb_sample(NULL, 0), -1);
    assert_int_equal(zt_lb_sample(list, 2), -1);
    list[1].weight = 1;
    for (int i = 0; i < DRAWS; i++)
        assert_int_equal(zt_lb_sample(list, 2), 1);
    list[0].weight = 75;
    list[1].weight = 25;
    int first = 0;
    for (int i = 0; i < 10000; i++)
        first += zt_lb_sample(list, 2) == 0;
    assert_in_range(first, 7200, 7800);
}

/* ---- who is drawn among equals, and who is left out ---- */

static void open_on(struct zt_store *s, const char *uid, unsigned n)
{
    while (n-- > 0)
        zt_store_endpoint_opened(s, uid);
}

static void lb_the_better_of_two_by_open_connections(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), MEMBERS));
    open_on(s, "a", 2);
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "b");
    open_on(s, "b", 3);
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "a");
    state_put(s, WORKLOAD("c", IPS("10.0.0.3"), MEMBERS));
    struct drawn d = draw(s, "src", "any", 80, ZT_LB_FOR_TRAFFIC);
    assert_int_equal(d.n['b' - 'a'], 0); /* it loses against either */
    assert_in_range(d.n['c' - 'a'], DRAWS * 5 / 9, DRAWS * 7 / 9);
    /* A connection that ends counts no more, and none is counted below zero. */
    for (int i = 0; i < 5; i++) {
        zt_store_endpoint_closed(s, "a");
        zt_store_endpoint_closed(s, "b");
    }
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "abc");
}

static void lb_only_equal_capacity_competes(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), .capacity = 4, MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), .capacity = 4, MEMBERS));
    state_put(s, WORKLOAD("c", IPS("10.0.0.3"), .capacity = 2, MEMBERS));
    open_on(s, "a", 9);
    open_on(s, "c", 99);
    struct drawn d = draw(s, "src", "any", 80, ZT_LB_FOR_TRAFFIC);
    assert_int_equal(d.n[0], 0);
    assert_in_range(d.n[1], DRAWS * 7 / 10, DRAWS * 9 / 10);
    assert_in_range(d.n[2], DRAWS / 10, DRAWS * 3 / 10);
}

static void lb_who_just_failed_is_the_last_resort(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", AT("network", "reg", "zone"), IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", AT("network", "reg", "zone"), IPS("10.0.0.2"), MEMBERS));
    state_put(s, WORKLOAD("c", AT("far", "other", "other"), IPS("10.0.0.3"), MEMBERS));
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "ab");
    zt_store_endpoint_failed(s, "a");
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "b");
    zt_store_endpoint_failed(s, "b");
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "c");
    zt_store_endpoint_failed(s, "c");
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "ab"); /* nobody else is there */
    expect_drawn(s, "strict", ZT_LB_FOR_TRAFFIC, "ab");
    zt_clock_test_advance_ms((ZT_STORE_AVOID_S - 2) * 1000);
    zt_store_endpoint_failed(s, "a");
    zt_clock_test_advance_ms(3000);
    expect_drawn(s, "failover", ZT_LB_FOR_TRAFFIC, "b"); /* forgiven */
}

static void lb_a_failed_gateway_stands_for_all_behind_it(void **state)
{
    struct zt_store *s = *state;
    state_put(s, WORKLOAD("a", AT("east", "", ""), MEMBERS, .network_gateway = GATEWAY_IP("east", "10.1.0.1", 15008)));
    state_put(s, WORKLOAD("b", AT("east", "", ""), MEMBERS, .network_gateway = GATEWAY_IP("east", "10.1.0.1", 15008)));
    state_put(s, WORKLOAD("c", AT("west", "", ""), MEMBERS, .network_gateway = GATEWAY_IP("west", "10.2.0.1", 15008)));
    state_put(s, WORKLOAD("gw-east", .network = "east", IPS("10.1.0.1")));
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "abc");
    zt_store_endpoint_failed(s, "gw-east");
    expect_drawn(s, "any", ZT_LB_FOR_TRAFFIC, "c");
}

static void lb_who_was_tried_is_not_picked_again(void **state)
{
    struct zt_store *s = *state;
    const char *tried[] = {"a", "b"};
    struct zt_upstream u;
    state_put(s, WORKLOAD("a", IPS("10.0.0.1"), MEMBERS));
    state_put(s, WORKLOAD("b", IPS("10.0.0.2"), MEMBERS));
    pthread_rwlock_rdlock(&s->lock);
    struct zt_lb_query q = {.port = 80, .tried = tried, .src = zt_entry_workload(zt_find_uid(s, "src"))};
    struct zt_service_entry *v = zt_find_service_by_hostname(s, "any", NULL);
    assert_true(zt_lb_pick(s, v, &q, &u));
    assert_true(u.alternatives);
    q.n_tried = 1;
    assert_true(zt_lb_pick(s, v, &q, &u));
    assert_string_equal(u.workload->uid, "b");
    assert_false(u.alternatives);
    q.n_tried = 2;
    assert_false(zt_lb_pick(s, v, &q, &u));
    pthread_rwlock_unlock(&s->lock);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup_balance, state_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_load_balance_any_takes_all),
        TEST(test_load_balance_strict_none_or_full_match),
        TEST(test_load_balance_failover_ranks_by_what_is_shared),
        TEST(test_load_balance_remote_without_address_needs_a_gateway),
        TEST(test_load_balance_endpoint_of_unknown_workload_is_ignored),
        TEST(lb_node_and_cluster_scopes_stop_at_the_first_mismatch),
        TEST(lb_passthrough_service_reached_by_hostname_takes_all),
        TEST(lb_capacity_is_the_weight_and_zero_is_never_picked),
        TEST(lb_huge_capacities_do_not_overflow),
        TEST(lb_health_is_judged_when_picking),
        TEST(find_upstream_port_mappings_endpoint_mapping),
        TEST(find_upstream_port_mappings_service_mapping),
        TEST(find_upstream_port_mappings_app_tunnel),
        TEST(lb_the_better_of_two_by_open_connections),
        TEST(lb_only_equal_capacity_competes),
        TEST(lb_who_just_failed_is_the_last_resort),
        TEST(lb_a_failed_gateway_stands_for_all_behind_it),
        TEST(lb_who_was_tried_is_not_picked_again),
        cmocka_unit_test(test_sample_weighted_waypoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
