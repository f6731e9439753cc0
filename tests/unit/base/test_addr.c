/* Parsing, formatting and matching of addresses. */
#include "zt/base/addr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <string.h>

static void ip_parse_turns_mapped_addresses_into_plain_ipv4(void **state)
{
    struct zt_ip mapped, plain;
    assert_true(zt_ip_parse("::ffff:10.1.2.3", &mapped));
    assert_true(zt_ip_parse("10.1.2.3", &plain));
    assert_int_equal(mapped.family, ZT_IPV4);
    assert_memory_equal(&mapped, &plain, sizeof plain);
}

static void ip_from_bytes_refuses_other_lengths(void **state)
{
    uint8_t bytes[16] = {1};
    for (size_t n = 0; n <= 16; n++)
        if (n != 4 && n != 16)
            assert_int_equal(zt_ip_from_bytes(bytes, n).family, ZT_IP_NONE);
}

static void ip_parse_refuses_what_is_no_address(void **state)
{
    static const char *const bad[] = {"",      "1.2.3", "1.2.3.4.5", "256.1.1.1", "fe80::1%eth0",
                                      "[::1]", "::1 ",  "01.2.3.4x", "g::"};
    struct zt_ip ip;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(zt_ip_parse(bad[i], &ip));
}

static void ip_loopback_covers_127_and_only_one_ipv6_address(void **state)
{
    struct zt_ip ip;
    assert_true(zt_ip_parse("127.9.9.9", &ip) && zt_ip_is_loopback(&ip));
    assert_true(zt_ip_parse("::1", &ip) && zt_ip_is_loopback(&ip));
    assert_true(zt_ip_parse("::2", &ip) && !zt_ip_is_loopback(&ip));
    assert_true(zt_ip_parse("0.0.0.0", &ip) && zt_ip_is_unspecified(&ip));
}

static void addr_parse_and_format_round_trip(void **state)
{
    static const char *const texts[] = {"1.2.3.4:80", "[2001:db8::1]:65535", "[::1]:0"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct zt_addr a;
        char buf[ZT_ADDR_TEXT_MAX];
        assert_true(zt_addr_parse(texts[i], &a));
        assert_string_equal(zt_addr_format(&a, buf), texts[i]);
    }
}

static void addr_parse_refuses_ports_and_brackets_that_are_wrong(void **state)
{
    static const char *const bad[] = {"1.2.3.4",    "1.2.3.4:",     "1.2.3.4:65536", "1.2.3.4:+1",
                                      "1.2.3.4: 1", "::1:80",       "[1.2.3.4]:80",  "[::1]80",
                                      "[::1:80",    "[]:80",        ":80",           "host:80",
                                      "[::1]]:80",  "1.2.3.4:0x10", "[:80"};
    struct zt_addr a;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(zt_addr_parse(bad[i], &a));
}

static void addr_sockaddr_forms_round_trip(void **state)
{
    static const char *const texts[] = {"10.0.0.1:15008", "[2001:db8::1]:80"};
    for (size_t i = 0; i < 2; i++) {
        struct zt_addr a, back;
        struct sockaddr_storage ss;
        assert_true(zt_addr_parse(texts[i], &a));
        zt_addr_to_sockaddr(&a, &ss);
        back = zt_addr_from_sockaddr((struct sockaddr *)&ss);
        assert_true(zt_addr_equal(&a, &back));
        assert_int_equal(zt_addr_to_sockaddr6(&a, &ss), sizeof(struct sockaddr_in6));
        assert_int_equal(ss.ss_family, AF_INET6);
        back = zt_addr_from_sockaddr((struct sockaddr *)&ss);
        assert_true(zt_addr_equal(&a, &back));
    }
}

static void cidr_contains_compares_prefix_bits_only(void **state)
{
    static const struct {
        const char *cidr, *ip;
        bool in;
    } cases[] = {
        {"10.1.2.3/8", "10.255.0.1", true},
        {"10.0.0.0/9", "10.128.0.0", false},
        {"10.0.0.0/9", "10.127.0.0", true},
        {"0.0.0.0/0", "8.8.8.8", true},
        {"0.0.0.0/0", "::1", false},
        {"1.2.3.4", "1.2.3.4", true},
        {"1.2.3.4", "1.2.3.5", false},
        {"2001:db8::/33", "2001:db8:7fff::1", true},
        {"2001:db8::/33", "2001:db8:8000::1", false},
        {"::/0", "2001::1", true},
        {"::1/128", "::1", true},
        {"::ffff:10.0.0.0/104", "10.1.1.1", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_cidr c;
        struct zt_ip ip;
        assert_true(zt_cidr_parse(cases[i].cidr, &c));
        assert_true(zt_ip_parse(cases[i].ip, &ip));
        assert_int_equal(zt_cidr_contains(&c, &ip), cases[i].in);
    }
}

static void cidr_parse_refuses_prefixes_beyond_the_family(void **state)
{
    static const char *const bad[] = {"1.2.3.4/33", "::1/129",           "1.2.3.4/",   "1.2.3.4/-1",
                                      "/8",         "::ffff:1.2.3.4/95", "1.2.3.4/8/8"};
    struct zt_cidr c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(zt_cidr_parse(bad[i], &c));
}

static void authority_is_an_address_or_a_host_with_a_port(void **state)
{
    static const struct {
        const char *text, *addr, *host;
        unsigned port;
    } cases[] = {{"10.0.0.1:80", "10.0.0.1:80", "", 80},
                 {"[2001:db8::1]:8080", "[2001:db8::1]:8080", "", 8080},
                 {"[::ffff:10.0.0.1]:80", "10.0.0.1:80", "", 80}, /* spec/dataplane §14 row 11 */
                 {"echo.ns2.svc.cluster.local:80", NULL, "echo.ns2.svc.cluster.local", 80}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_addr a;
        char host[ZT_HOSTNAME_MAX], text[ZT_ADDR_TEXT_MAX];
        assert_true(zt_authority_parse(cases[i].text, &a, host));
        assert_string_equal(host, cases[i].host);
        assert_int_equal(a.port, cases[i].port);
        if (cases[i].addr)
            assert_string_equal(zt_addr_format(&a, text), cases[i].addr);
        else
            assert_int_equal(a.ip.family, ZT_IP_NONE);
    }
}

static void authority_that_is_neither_is_refused(void **state)
{
    static const char *const cases[] = {"",        "host",         "host:",  ":80",   "host:65536",
                                        "host:8a", "user@host:80", "::1:80", "[::1]", "10.0.0.1",
                                        "a b:80",  "host:-1",      "[x]:80"};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_addr a;
        char host[ZT_HOSTNAME_MAX];
        assert_false(zt_authority_parse(cases[i], &a, host));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ip_parse_turns_mapped_addresses_into_plain_ipv4),
        cmocka_unit_test(ip_from_bytes_refuses_other_lengths),
        cmocka_unit_test(ip_parse_refuses_what_is_no_address),
        cmocka_unit_test(ip_loopback_covers_127_and_only_one_ipv6_address),
        cmocka_unit_test(addr_parse_and_format_round_trip),
        cmocka_unit_test(addr_parse_refuses_ports_and_brackets_that_are_wrong),
        cmocka_unit_test(addr_sockaddr_forms_round_trip),
        cmocka_unit_test(cidr_contains_compares_prefix_bits_only),
        cmocka_unit_test(cidr_parse_refuses_prefixes_beyond_the_family),
        cmocka_unit_test(authority_is_an_address_or_a_host_with_a_port),
        cmocka_unit_test(authority_that_is_neither_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
