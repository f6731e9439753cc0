/* The PROXY protocol v2 header, octet by octet (spec/dataplane §4.8). */
#include "zt/proxy/proxy_protocol.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static struct zt_addr addr(const char *text)
{
    struct zt_addr a;
    assert_true(zt_addr_parse(text, &a));
    return a;
}

static void ipv4_header_carries_addresses_and_spiffe_tlv(void **state)
{
    static const uint8_t want[] = {0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, 0x21, 0x11, 0x00, 12 + 3 + 4,
                                   10,   1,    0,    1,    10,   2,    0,    9,    0x1F, 0x90, 0x00, 0x50, 0xD0, 0x00, 0x04, 'a', 'b', 'c', 'd'};
    uint8_t out[ZT_PROXY_HEADER_MAX];
    struct zt_addr src = addr("10.1.0.1:8080"), dst = addr("10.2.0.9:80");
    assert_int_equal(zt_proxy_header_write(out, &src, &dst, "abcd"), sizeof(want));
    assert_memory_equal(out, want, sizeof(want));
}

static void ipv6_header_has_its_family_and_36_bytes(void **state)
{
    uint8_t out[ZT_PROXY_HEADER_MAX];
    struct zt_addr src = addr("[2001:db8::1]:1"), dst = addr("[2001:db8::2]:2");
    assert_int_equal(zt_proxy_header_write(out, &src, &dst, NULL), 16 + 36);
    assert_int_equal(out[13], 0x21);
    assert_int_equal(out[14] << 8 | out[15], 36);
}

static void mixed_families_are_unspecified_with_tlv_only(void **state)
{
    uint8_t out[ZT_PROXY_HEADER_MAX];
    struct zt_addr src = addr("[2001:db8::1]:1"), dst = addr("10.0.0.1:2");
    assert_int_equal(zt_proxy_header_write(out, &src, &dst, "x"), 16 + 3 + 1);
    assert_int_equal(out[13], 0x01);
    assert_int_equal(out[16], 0xD0);
}

static void no_identity_leaves_the_tlv_out(void **state)
{
    uint8_t out[ZT_PROXY_HEADER_MAX];
    struct zt_addr src = addr("10.1.0.1:1"), dst = addr("10.1.0.2:2");
    assert_int_equal(zt_proxy_header_write(out, &src, &dst, ""), 16 + 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ipv4_header_carries_addresses_and_spiffe_tlv),
        cmocka_unit_test(ipv6_header_has_its_family_and_36_bytes),
        cmocka_unit_test(mixed_families_are_unspecified_with_tlv_only),
        cmocka_unit_test(no_identity_leaves_the_tlv_out),
    };
    return cmocka_run_group_tests_name("proxy_protocol", tests, NULL, NULL);
}
