/* The bounded string, UTF-8, and the small things beside it: list, map, memory, clock. */
#include "zt/base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "zt/base/clock.h"
#include "zt/base/list.h"
#include "zt/base/map.h"
#include "zt/base/mem.h"
#include <string.h>

static void str_keeps_a_prefix_and_says_overflow(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 5);
    zt_str_add(&s, "abc");
    assert_false(s.overflow);
    zt_str_add(&s, "defg");
    zt_str_add(&s, "h");
    assert_true(s.overflow);
    assert_string_equal(zt_str_cstr(&s), "abcde");
    zt_str_clear(&s);
    assert_false(s.overflow);
    zt_str_fini(&s);
}

static void str_adds_numbers_and_long_formats(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 4096);
    zt_str_add_u64(&s, 0);
    zt_str_add_u64(&s, UINT64_MAX);
    zt_str_addf(&s, "%0*d", 1000, 7);
    assert_int_equal(s.len, 1 + 20 + 1000);
    assert_memory_equal(s.data, "018446744073709551615000", 24);
    zt_str_fini(&s);
}

static void str_take_leaves_an_empty_string_behind(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 10);
    char *none = zt_str_take(&s);
    assert_string_equal(none, "");
    zt_str_add(&s, "x");
    char *one = zt_str_take(&s);
    assert_string_equal(one, "x");
    assert_int_equal(s.len, 0);
    zt_free(none);
    zt_free(one);
    zt_str_fini(&s);
}

static void utf8_refuses_overlong_surrogate_and_cut_sequences(void **state)
{
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc3",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xff",
                                      "\xe2\x82"};
    uint32_t c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(zt_utf8_next(bad[i], strlen(bad[i]), &c), 0);
    assert_int_equal(zt_utf8_next("\xe2\x82\xac", 3, &c), 3);
    assert_int_equal(c, 0x20ac);
    assert_int_equal(zt_utf8_next("\xf0\x9f\x98\x80", 4, &c), 4);
    assert_int_equal(c, 0x1f600);
}

struct node {
    int value;
    struct zt_link link;
};

static void list_splice_keeps_order_and_empties_the_source(void **state)
{
    struct zt_link a = ZT_LIST_INIT(a), b = ZT_LIST_INIT(b);
    struct node n[4] = {{.value = 1}, {.value = 2}, {.value = 3}, {.value = 4}};
    zt_list_push_back(&a, &n[0].link);
    zt_list_push_back(&b, &n[1].link);
    zt_list_push_back(&b, &n[2].link);
    zt_list_splice(&a, &b);
    zt_list_push_front(&a, &n[3].link);
    assert_true(zt_list_empty(&b));
    int sum = 0;
    zt_list_each (l, &a)
        sum = sum * 10 + zt_container_of(l, struct node, link)->value;
    assert_int_equal(sum, 4123);
    zt_list_remove(&n[1].link);
    zt_list_remove(&n[1].link);
    assert_false(zt_link_linked(&n[1].link));
}

struct row {
    uint32_t key;
    UT_hash_handle hh;
};

static void map_finds_every_key_among_many(void **state)
{
    enum { N = 5000 };
    struct row *table = NULL, *rows = zt_new_n(struct row, N), *hit;
    for (uint32_t i = 0; i < N; i++) {
        rows[i].key = i;
        HASH_ADD(hh, table, key, sizeof rows[i].key, &rows[i]);
    }
    for (uint32_t i = 0; i < N; i++) {
        HASH_FIND(hh, table, &i, sizeof i, hit);
        assert_ptr_equal(hit, &rows[i]);
    }
    uint32_t none = N;
    HASH_FIND(hh, table, &none, sizeof none, hit);
    assert_null(hit);
    HASH_CLEAR(hh, table);
    zt_free(rows);
}

static void mem_live_bytes_follow_allocations(void **state)
{
    enum { SIZE = 4 * 1024 * 1024 };
    size_t before = zt_mem_live_bytes();
    char *p = zt_zalloc(SIZE);
    assert_in_range(zt_mem_live_bytes() - before, SIZE, SIZE + SIZE / 4);
    zt_wipe_free(p, SIZE);
    assert_true(zt_mem_live_bytes() < before + SIZE / 2);
}

static void mem_strndup_stops_at_the_nul(void **state)
{
    char *s = zt_strndup("ab\0cd", 5);
    assert_string_equal(s, "ab");
    zt_free(s);
    assert_null(zt_strdup(NULL));
}

static void clock_formats_utc_with_six_digits(void **state)
{
    char buf[ZT_TIME_TEXT_MAX];
    assert_string_equal(zt_clock_format_us(1787220000123456, buf), "2026-08-20T10:00:00.123456Z");
    assert_string_equal(zt_clock_format_us(-1, buf), "1969-12-31T23:59:59.999999Z");
    assert_string_equal(zt_clock_format_s(0, buf), "1970-01-01T00:00:00Z");
}

static void clock_moves_all_clocks_together_when_told(void **state)
{
    uint64_t mono = zt_clock_mono_ms();
    int64_t wall = zt_clock_wall_us();
    zt_clock_test_advance_ms(3600000);
    assert_true(zt_clock_mono_ms() >= mono + 3600000);
    assert_true(zt_clock_wall_us() >= wall + 3600000000);
    zt_clock_test_advance_ms(-3600000);
    assert_true(zt_clock_mono_ms() < mono + 60000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(str_keeps_a_prefix_and_says_overflow),
        cmocka_unit_test(str_adds_numbers_and_long_formats),
        cmocka_unit_test(str_take_leaves_an_empty_string_behind),
        cmocka_unit_test(utf8_refuses_overlong_surrogate_and_cut_sequences),
        cmocka_unit_test(list_splice_keeps_order_and_empties_the_source),
        cmocka_unit_test(map_finds_every_key_among_many),
        cmocka_unit_test(mem_live_bytes_follow_allocations),
        cmocka_unit_test(mem_strndup_stops_at_the_nul),
        cmocka_unit_test(clock_formats_utc_with_six_digits),
        cmocka_unit_test(clock_moves_all_clocks_together_when_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
