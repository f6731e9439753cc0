/* The cache keeps to its bounds, and who asks for much of it takes nothing from those who ask for little. */
#include "dns/dns_impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static uint8_t message[ZT_DNS_MESSAGE_MAX];

/* The n-th question of a scope; its answer is its number. */
static struct dns_key key_of(const char *scope, unsigned n)
{
    struct zt_dns_query q;
    char name[ZT_NAME_TEXT_MAX];
    struct dns_key k = {.scope_len = strlen(scope)};
    zt_fmt(name, sizeof name, "name%u.example.com", n);
    assert_true(zt_dns_query_from_text(name, ZT_DNS_A, &q));
    k.len = zt_dns_query_key(&q, scope, k.bytes);
    return k;
}

static void put(struct dns_cache *c, const char *scope, unsigned n, size_t len)
{
    struct dns_key k = key_of(scope, n);
    memcpy(message, &n, sizeof n);
    dns_cache_put(c, &k, message, len, 3600);
}

static bool has(struct dns_cache *c, const char *scope, unsigned n)
{
    unsigned got;
    struct dns_key k = key_of(scope, n);
    bool there = dns_cache_get(c, &k, message).freshness == DNS_FRESH;
    memcpy(&got, message, sizeof got);
    assert_true(!there || got == n);
    return there;
}

static void the_cache_holds_8192_answers_and_the_newest_of_them(void **state)
{
    struct dns_cache *c = dns_cache_new();
    for (unsigned i = 0; i < ZT_DNS_CACHE_ENTRIES_MAX; i++)
        put(c, "ns/sa", i, 100);
    assert_int_equal(dns_cache_stats(c).entries, ZT_DNS_CACHE_ENTRIES_MAX);
    assert_true(has(c, "ns/sa", 0)); /* and so it is not the oldest any more */
    put(c, "ns/sa", ZT_DNS_CACHE_ENTRIES_MAX, 100);
    assert_int_equal(dns_cache_stats(c).entries, ZT_DNS_CACHE_ENTRIES_MAX);
    assert_true(has(c, "ns/sa", 0) && has(c, "ns/sa", ZT_DNS_CACHE_ENTRIES_MAX));
    assert_false(has(c, "ns/sa", 1));
    dns_cache_free(c);
}

static void the_cache_holds_8_mb_of_large_answers(void **state)
{
    struct dns_cache *c = dns_cache_new();
    for (unsigned i = 0; i < 1000; i++)
        put(c, "ns/sa", i, ZT_DNS_MESSAGE_MAX);
    struct dns_cache_stats s = dns_cache_stats(c);
    assert_true(s.bytes <= ZT_DNS_CACHE_BYTES_MAX && s.bytes > ZT_DNS_CACHE_BYTES_MAX - 2 * ZT_DNS_MESSAGE_MAX);
    assert_in_range(s.entries, 100, 127);
    dns_cache_free(c);
}

static void one_identity_does_not_evict_another_s_answers(void **state)
{
    struct dns_cache *c = dns_cache_new();
    for (unsigned i = 0; i < 100; i++)
        put(c, "quiet/sa", i, 400);
    for (unsigned i = 0; i < 3 * ZT_DNS_CACHE_ENTRIES_MAX; i++)
        put(c, "busy/sa", i, 100);
    for (unsigned i = 0; i < 100; i++)
        assert_true(has(c, "quiet/sa", i));
    assert_int_equal(dns_cache_stats(c).entries, ZT_DNS_CACHE_ENTRIES_MAX); /* all the rest is the busy one's */
    for (unsigned i = 0; i < 1000; i++) /* two that want everything get the same */
        put(c, i % 2 ? "greedy/sa" : "quiet/sa", i, ZT_DNS_MESSAGE_MAX);
    unsigned n[2] = {0};
    for (unsigned i = 0; i < 1000; i++)
        n[i % 2] += has(c, i % 2 ? "greedy/sa" : "quiet/sa", i);
    assert_in_range(n[0], n[1] - 20, n[1] + 20);
    dns_cache_free(c);
}

static void an_answer_is_replaced_and_what_may_not_be_kept_is_not(void **state)
{
    struct dns_cache *c = dns_cache_new();
    struct dns_key k = key_of("ns/sa", 1);
    put(c, "ns/sa", 1, 100);
    put(c, "ns/sa", 1, 200);
    assert_int_equal(dns_cache_stats(c).entries, 1);
    assert_int_equal(dns_cache_get(c, &k, message).len, 200);
    assert_false(has(c, "ns/other", 1));
    k = key_of("ns/sa", 2);
    dns_cache_put(c, &k, message, 100, 0);
    assert_int_equal(dns_cache_get(c, &k, message).freshness, DNS_MISS);
    dns_cache_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_holds_8192_answers_and_the_newest_of_them),
        cmocka_unit_test(the_cache_holds_8_mb_of_large_answers),
        cmocka_unit_test(one_identity_does_not_evict_another_s_answers),
        cmocka_unit_test(an_answer_is_replaced_and_what_may_not_be_kept_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
