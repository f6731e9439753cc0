/* Records: what a template becomes, what is refused, and that nothing outlives its last reference.
 */
#include "support/state_fixture.h"

#include "state/state_impl.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct zt_workload *make(const struct zt_workload *t)
{
    struct zt_workload *w;
    assert_int_equal(zt_workload_new(t, &w, NULL), ZT_OK);
    return w;
}

static int collect(void **state)
{
    (void)state;
    zt_record_collect();
    assert_int_equal(zt_text_count(), 0);
    return 0;
}

static void workload_is_a_deep_copy(void **state)
{
    (void)state;
    char uid[] = "c//Pod/ns1/echo", host[] = "echo.ns1", policy[] = "ns1/deny";
    struct zt_port_map ports[] = {{80, 8080}, {81, 8081}};
    struct zt_workload_service service = {
        .ns = "ns1", .hostname = host, .ports = ports, .n_ports = 2};
    const char *policies[] = {policy};
    struct zt_workload *w = make(WORKLOAD(
        uid, .ns = "ns1", IPS("10.0.0.1", "fd00::1"), .services = &service, .n_services = 1,
        .policies = policies, .n_policies = 1, .waypoint = GATEWAY_HOST("ns1", "way", 15008)));
    memset(uid, 'x', sizeof uid - 1);
    memset(host, 'x', sizeof host - 1);
    memset(policy, 'x', sizeof policy - 1);
    memset(ports, 0, sizeof ports);
    assert_string_equal(w->uid, "c//Pod/ns1/echo");
    assert_string_equal(w->name, "echo");
    assert_string_equal(w->services[0].hostname, "echo.ns1");
    assert_int_equal(zt_port_map_find(w->services[0].ports, w->services[0].n_ports, 81), 8081);
    assert_int_equal(zt_port_map_find(w->services[0].ports, w->services[0].n_ports, 82), -1);
    assert_string_equal(w->policies[0], "ns1/deny");
    assert_string_equal(w->waypoint->hostname, "way");
    assert_null(w->network_gateway);
    assert_string_equal(w->region, ""); /* absent text is "", never NULL */
    zt_workload_unref(w);
}

static void workload_name_that_ends_the_uid_is_stored_once(void **state)
{
    (void)state;
    struct zt_workload *a = make(WORKLOAD("c//Pod/ns1/echo"));
    struct zt_workload *b = make(WORKLOAD("c//Pod/ns1/echo", .name = "other"));
    assert_ptr_equal(a->name, a->uid + strlen("c//Pod/ns1/"));
    assert_string_equal(b->name, "other");
    zt_workload_unref(a);
    zt_workload_unref(b);
}

static void workloads_share_repeated_strings(void **state)
{
    (void)state;
    struct zt_workload *a = make(WORKLOAD("a", .ns = "one-namespace"));
    struct zt_workload *b = make(WORKLOAD("b", .ns = "one-namespace"));
    assert_ptr_equal(a->ns, b->ns);
    zt_workload_unref(a);
    zt_record_collect();
    assert_string_equal(b->ns, "one-namespace");
    zt_workload_unref(b);
}

static void workload_without_uid_is_refused(void **state)
{
    (void)state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_workload *w;
    assert_int_equal(zt_workload_new(WORKLOAD(""), &w, &err), ZT_INVALID);
    assert_string_equal(err.text, "workload without uid");
    assert_null(w);
}

static void workload_text_beyond_the_limit_is_refused(void **state)
{
    (void)state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_workload *w;
    char text[ZT_RECORD_TEXT_MAX + 2];
    memset(text, 'n', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_int_equal(zt_workload_new(WORKLOAD("w", .ns = text), &w, &err), ZT_INVALID);
    text[ZT_RECORD_TEXT_MAX] = '\0';
    assert_int_equal(zt_workload_new(WORKLOAD("w", .ns = text), &w, &err), ZT_OK);
    zt_workload_unref(w);
    struct zt_workload many = *WORKLOAD("w", .n_services = ZT_WORKLOAD_SERVICES_MAX + 1);
    assert_int_equal(zt_workload_new(&many, &w, &err), ZT_INVALID);
}

static void workload_gateway_without_destination_is_refused(void **state)
{
    (void)state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_gateway_ref nowhere = {.hbone_mtls_port = 15008};
    struct zt_workload *w;
    assert_int_equal(zt_workload_new(WORKLOAD("w", .waypoint = &nowhere), &w, &err), ZT_INVALID);
    assert_non_null(strstr(err.text, "nonempty gateway address is missing address"));
    assert_int_equal(zt_workload_new(WORKLOAD("w", .network_gateway = &nowhere), &w, &err),
                     ZT_INVALID);
}

static void workload_identity_uses_its_own_trust_domain(void **state)
{
    (void)state;
    char text[ZT_IDENTITY_MAX];
    struct zt_workload *w =
        make(WORKLOAD("w", .trust_domain = "td", .ns = "n", .service_account = "s"));
    assert_true(zt_workload_identity(w, text));
    assert_string_equal(text, "spiffe://td/ns/n/sa/s");
    zt_workload_unref(w);
    /* A file may leave the trust domain out: it stays empty. */
    w = make(WORKLOAD("w", .trust_domain = NULL, .ns = "n", .service_account = NULL));
    assert_true(zt_workload_identity(w, text));
    assert_string_equal(text, "spiffe:///ns/n/sa/");
    zt_workload_unref(w);
}

static void workload_lives_until_its_last_reference(void **state)
{
    (void)state;
    struct zt_workload *w = make(WORKLOAD("w", .ns = "n"));
    assert_ptr_equal(zt_workload_ref(w), w);
    zt_workload_unref(w);
    zt_record_collect();
    assert_string_equal(w->ns, "n");
    zt_workload_unref(w);
    assert_int_equal(zt_text_count() > 0,
                     1); /* buried, not freed: a worker may be the one who dropped it */
    zt_workload_unref(NULL);
}

static void service_vip_is_exact_at_full_width_only(void **state)
{
    (void)state;
    struct zt_service *v;
    assert_int_equal(
        zt_service_new(SERVICE("ns", "h", VIPS("10.0.0.1", "10.0.0.0/31", "fd00::1", "fd00::/127")),
                       &v, NULL),
        ZT_OK);
    assert_true(v->vips[0].exact);
    assert_false(v->vips[1].exact);
    assert_true(v->vips[2].exact);
    assert_false(v->vips[3].exact);
    zt_service_unref(v);
}

static void service_out_of_range_is_refused(void **state)
{
    (void)state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_service *v;
    struct zt_vip bad = {.network = "", .cidr = {.ip = state_ip("10.0.0.1"), .prefix_bits = 33}};
    struct zt_vip none = {.network = "", .cidr = {.prefix_bits = 0}};
    struct zt_weighted_waypoint nowhere = {.weight = 1};
    assert_int_equal(zt_service_new(SERVICE("ns", ""), &v, &err), ZT_INVALID);
    assert_int_equal(zt_service_new(SERVICE("ns", "h", .vips = &bad, .n_vips = 1), &v, &err),
                     ZT_INVALID);
    assert_int_equal(zt_service_new(SERVICE("ns", "h", .vips = &none, .n_vips = 1), &v, &err),
                     ZT_INVALID);
    assert_int_equal(
        zt_service_new(SERVICE("ns", "h", .lb_scopes = {0}, .n_lb_scopes = 1), &v, &err),
        ZT_INVALID);
    assert_int_equal(
        zt_service_new(SERVICE("ns", "h", .lb_scopes = {7}, .n_lb_scopes = 1), &v, &err),
        ZT_INVALID);
    assert_int_equal(zt_service_new(SERVICE("ns", "h", .n_lb_scopes = 9), &v, &err), ZT_INVALID);
    assert_int_equal(zt_service_new(SERVICE("ns", "h", .lb_mode = 9), &v, &err), ZT_INVALID);
    assert_int_equal(zt_service_new(SERVICE("ns", "h", .weighted_waypoints = &nowhere,
                                            .n_weighted_waypoints = 1),
                                    &v, &err),
                     ZT_INVALID);
    assert_null(v);
}

/* ---- byte_to_ipaddr_*: addresses of records are 4 or 16 bytes ---- */

static void check_bytes(const uint8_t *bytes, size_t n, const char *text)
{
    char buf[ZT_IP_TEXT_MAX];
    struct zt_ip ip = zt_ip_from_bytes(bytes, n);
    struct zt_workload *w;
    if (!text) {
        assert_int_equal(ip.family, ZT_IP_NONE);
        assert_int_equal(zt_workload_new(WORKLOAD("w", .ips = &ip, .n_ips = 1), &w, NULL),
                         ZT_INVALID);
        return;
    }
    assert_string_equal(zt_ip_format(&ip, buf), text);
    w = make(WORKLOAD("w", .ips = &ip, .n_ips = 1));
    assert_true(zt_ip_equal(&w->ips[0], &ip));
    zt_workload_unref(w);
}

static void byte_to_ipaddr_garbage_is_refused(void **state)
{
    (void)state;
    const uint8_t bytes[] = "not an address";
    check_bytes(bytes, 5, NULL);
    check_bytes(bytes, 12, NULL);
}

static void byte_to_ipaddr_empty_is_refused(void **state)
{
    (void)state;
    check_bytes((const uint8_t *)"", 0, NULL);
}

static void byte_to_ipaddr_unspecified(void **state)
{
    (void)state;
    check_bytes((const uint8_t[4]){0}, 4, "0.0.0.0");
}

static void byte_to_ipaddr_v4_loopback(void **state)
{
    (void)state;
    check_bytes((const uint8_t[4]){127, 0, 0, 1}, 4, "127.0.0.1");
}

static void byte_to_ipaddr_v4_happy(void **state)
{
    (void)state;
    check_bytes((const uint8_t[4]){1, 2, 3, 4}, 4, "1.2.3.4");
}

static void byte_to_ipaddr_v6_happy(void **state)
{
    (void)state;
    check_bytes((const uint8_t[16]){0x20, 0x01, 0x0d, 0xb8, [15] = 0x24}, 16, "2001:db8::24");
}

static void byte_to_ipaddr_v6_loopback(void **state)
{
    (void)state;
    check_bytes((const uint8_t[16]){[15] = 1}, 16, "::1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(workload_is_a_deep_copy, collect),
        cmocka_unit_test_teardown(workload_name_that_ends_the_uid_is_stored_once, collect),
        cmocka_unit_test_teardown(workloads_share_repeated_strings, collect),
        cmocka_unit_test_teardown(workload_without_uid_is_refused, collect),
        cmocka_unit_test_teardown(workload_text_beyond_the_limit_is_refused, collect),
        cmocka_unit_test_teardown(workload_gateway_without_destination_is_refused, collect),
        cmocka_unit_test_teardown(workload_identity_uses_its_own_trust_domain, collect),
        cmocka_unit_test_teardown(workload_lives_until_its_last_reference, collect),
        cmocka_unit_test_teardown(service_vip_is_exact_at_full_width_only, collect),
        cmocka_unit_test_teardown(service_out_of_range_is_refused, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_garbage_is_refused, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_empty_is_refused, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_unspecified, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_v4_loopback, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_v4_happy, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_v6_happy, collect),
        cmocka_unit_test_teardown(byte_to_ipaddr_v6_loopback, collect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
