/* Places of a pod and of its peers: who is turned away, and that every place comes back. */
#include "zt/proxy/limits.h"
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const struct zt_limits_config config = {.max = {
                                                   [ZT_LIMIT_POD_CONNECTIONS] = 5,
                                                   [ZT_LIMIT_POD_TUNNELS] = 4,
                                                   [ZT_LIMIT_POD_HANDSHAKES] = 6,
                                                   [ZT_LIMIT_POD_DIALS] = 1,
                                                   [ZT_LIMIT_POD_QUEUED_BYTES] = 1,
                                                   [ZT_LIMIT_PEER_CONNECTIONS] = 3,
                                                   [ZT_LIMIT_PEER_TUNNELS] = 2,
                                                   [ZT_LIMIT_PEER_HANDSHAKES] = 5,
                                               }};
#define NOW 1000000

static struct zt_ip ip_of(uint32_t n)
{
    uint8_t bytes[4] = {10, (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n};
    return zt_ip_from_bytes(bytes, 4);
}

static void peer_over_its_connections_is_turned_away_alone(void **state)
{
    struct zt_limits l;
    struct zt_ip a = ip_of(1), b = ip_of(2);
    enum zt_limit hit;
    zt_limits_init(&l, &config);
    for (int i = 0; i < 3; i++)
        assert_true(zt_limits_connection(&l, &a, NOW, &hit));
    assert_false(zt_limits_connection(&l, &a, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_PEER_CONNECTIONS);
    assert_true(zt_limits_connection(&l, &b, NOW, &hit));
    zt_limits_connection_end(&l, &a, NOW);
    assert_true(zt_limits_connection(&l, &a, NOW, &hit));
    zt_limits_fini(&l);
}

static void pod_over_its_connections_turns_everybody_away(void **state)
{
    struct zt_limits l;
    struct zt_ip a = ip_of(1);
    enum zt_limit hit;
    zt_limits_init(&l, &config);
    for (int i = 0; i < 5; i++)
        assert_true(zt_limits_connection(&l, NULL, NOW, &hit));
    assert_false(zt_limits_connection(&l, &a, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_POD_CONNECTIONS);
    assert_false(zt_limits_connection(&l, NULL, NOW, &hit));
    zt_limits_connection_end(&l, NULL, NOW);
    assert_true(zt_limits_connection(&l, &a, NOW, &hit));
    zt_limits_fini(&l);
}

static void tunnels_are_limited_per_peer_and_pod(void **state)
{
    struct zt_limits l;
    struct zt_ip a = ip_of(1), b = ip_of(2), c = ip_of(3);
    enum zt_limit hit;
    zt_limits_init(&l, &config);
    assert_true(zt_limits_tunnel(&l, &a, NOW, &hit) && zt_limits_tunnel(&l, &a, NOW, &hit));
    assert_false(zt_limits_tunnel(&l, &a, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_PEER_TUNNELS);
    assert_true(zt_limits_tunnel(&l, &b, NOW, &hit) && zt_limits_tunnel(&l, &b, NOW, &hit));
    assert_false(zt_limits_tunnel(&l, &c, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_POD_TUNNELS);
    zt_limits_fini(&l);
}

static void handshakes_are_limited_per_second(void **state)
{
    struct zt_limits l;
    struct zt_ip a = ip_of(1), b = ip_of(2);
    enum zt_limit hit;
    zt_limits_init(&l, &config);
    for (int i = 0; i < 5; i++) {
        assert_true(zt_limits_tunnel(&l, &a, NOW, &hit));
        zt_limits_tunnel_end(&l, &a, NOW);
    }
    assert_false(zt_limits_tunnel(&l, &a, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_PEER_HANDSHAKES);
    assert_true(zt_limits_tunnel(&l, &b, NOW, &hit)); /* the pod's sixth */
    assert_false(zt_limits_tunnel(&l, &b, NOW, &hit));
    assert_int_equal(hit, ZT_LIMIT_POD_HANDSHAKES);
    assert_true(zt_limits_tunnel(&l, &a, NOW + 1000, &hit));
    zt_limits_fini(&l);
}

static void rate_allows_its_burst_and_then_its_pace(void **state)
{
    struct zt_rate r = {0};
    unsigned n = 0;
    for (uint64_t ms = NOW; ms < NOW + 10000; ms++)
        n += zt_rate_take(&r, 100, ms);
    assert_in_range(n, 100 + 990, 100 + 1001);
}

/* Addresses that come and go leave nothing behind. */
static void idle_peers_are_forgotten(void **state)
{
    struct zt_limits l;
    struct zt_limits_config wide = config;
    enum zt_limit hit;
    for (int i = 0; i < ZT_LIMIT_N; i++)
        wide.max[i] = 1000000;
    zt_limits_init(&l, &wide);
    for (uint32_t i = 0; i < 100000; i++) {
        struct zt_ip ip = ip_of(i);
        assert_true(zt_limits_tunnel(&l, &ip, NOW + i, &hit));
        zt_limits_tunnel_end(&l, &ip, NOW + i);
    }
    assert_true(zt_limits_peers(&l) < 4000);
    zt_limits_fini(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peer_over_its_connections_is_turned_away_alone),
        cmocka_unit_test(pod_over_its_connections_turns_everybody_away),
        cmocka_unit_test(tunnels_are_limited_per_peer_and_pod),
        cmocka_unit_test(handshakes_are_limited_per_second),
        cmocka_unit_test(rate_allows_its_burst_and_then_its_pace),
        cmocka_unit_test(idle_peers_are_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
