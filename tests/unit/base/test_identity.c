/* SPIFFE identity texts (spec/controlplane §4.12). */
#include "zt/base/identity.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

static bool parses(const char *text)
{
    return zt_identity_parse(text, strlen(text), NULL);
}

static void identity_from_string(void **state)
{
    static const char text[] = "spiffe://cluster.local/ns/shop/sa/web";
    struct zt_identity_view v;
    assert_true(zt_identity_parse(text, sizeof text - 1, &v));
    assert_int_equal(v.trust_domain_len, 13);
    assert_memory_equal(v.trust_domain, "cluster.local", 13);
    assert_int_equal(v.ns_len, 4);
    assert_memory_equal(v.ns, "shop", 4);
    assert_int_equal(v.sa_len, 3);
    assert_memory_equal(v.sa, "web", 3);
}

static void identity_from_string_refuses_other_shapes(void **state)
{
    static const char *const bad[] = {"",
                                      "spiffe://",
                                      "spiffe://td",
                                      "spiffe://td/ns/a/sa",
                                      "spiffe://td/ns/a/sa/b/c",
                                      "spiffe://td/xx/a/sa/b",
                                      "spiffe://td/ns/a/xx/b",
                                      "http://td/ns/a/sa/b",
                                      "SPIFFE://td/ns/a/sa/b",
                                      " spiffe://td/ns/a/sa/b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(parses(bad[i]));
}

static void identity_pieces_may_be_empty_or_dotted(void **state)
{
    assert_true(parses("spiffe:///ns//sa/"));
    assert_true(parses("spiffe://a.b/ns/c.d/sa/e..f"));
}

static void identity_with_a_nul_inside_does_not_parse(void **state)
{
    static const char text[] = "spiffe://td/ns/a/sa/b\0.evil";
    assert_false(zt_identity_parse(text, sizeof text - 1, NULL));
}

static void identity_longer_than_the_limit_does_not_parse(void **state)
{
    char text[ZT_IDENTITY_MAX + 1] = "spiffe://td/ns/a/sa/";
    memset(text + 20, 'b', sizeof text - 20);
    assert_false(zt_identity_parse(text, ZT_IDENTITY_MAX, NULL));
    assert_true(zt_identity_parse(text, ZT_IDENTITY_MAX - 1, NULL));
}

static void identity_format_says_when_it_does_not_fit(void **state)
{
    char buf[ZT_IDENTITY_MAX], big[ZT_IDENTITY_MAX];
    assert_true(zt_identity_format(buf, "td", "a", "b"));
    assert_string_equal(buf, "spiffe://td/ns/a/sa/b");
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    assert_false(zt_identity_format(buf, "td", "a", big));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_from_string),
        cmocka_unit_test(identity_from_string_refuses_other_shapes),
        cmocka_unit_test(identity_pieces_may_be_empty_or_dotted),
        cmocka_unit_test(identity_with_a_nul_inside_does_not_parse),
        cmocka_unit_test(identity_longer_than_the_limit_does_not_parse),
        cmocka_unit_test(identity_format_says_when_it_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
