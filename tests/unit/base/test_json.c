/* The JSON writer. */
#include "zt/base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

static void json_pretty_has_two_space_indent_and_tight_empty_containers(void **state)
{
    struct zt_str s;
    struct zt_json j;
    zt_str_init(&s, 4096);
    zt_json_init(&j, &s, true);
    zt_json_object(&j);
    zt_json_key(&j, "a");
    zt_json_array(&j);
    zt_json_u64(&j, 1);
    zt_json_u64(&j, 2);
    zt_json_array_end(&j);
    zt_json_key(&j, "b");
    zt_json_object(&j);
    zt_json_object_end(&j);
    zt_json_key(&j, "c");
    zt_json_array(&j);
    zt_json_array_end(&j);
    zt_json_key_str(&j, "d", NULL);
    zt_json_key_bool(&j, "e", true);
    zt_json_object_end(&j);
    assert_string_equal(zt_str_cstr(&s), "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n"
                                         "  \"c\": [],\n  \"d\": null,\n  \"e\": true\n}");
    zt_str_fini(&s);
}

static void json_compact_has_no_blanks(void **state)
{
    struct zt_str s;
    struct zt_json j;
    zt_str_init(&s, 4096);
    zt_json_init(&j, &s, false);
    zt_json_array(&j);
    for (int i = 0; i < 2; i++) {
        zt_json_object(&j);
        zt_json_key_u64(&j, "k", (uint64_t)i);
        zt_json_object_end(&j);
    }
    zt_json_array_end(&j);
    assert_string_equal(zt_str_cstr(&s), "[{\"k\":0},{\"k\":1}]");
    zt_str_fini(&s);
}

static void json_escapes_what_must_be_and_replaces_invalid_utf8(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 4096);
    static const char text[] = "a\"\\\b\f\n\r\t\x01\x7f\xff\xe2\x82\xac\0z";
    zt_json_escape(&s, text, sizeof text - 1);
    assert_string_equal(zt_str_cstr(&s),
                        "a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\x7f\xef\xbf\xbd\xe2\x82\xac\\u0000z");
    zt_str_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_pretty_has_two_space_indent_and_tight_empty_containers),
        cmocka_unit_test(json_compact_has_no_blanks),
        cmocka_unit_test(json_escapes_what_must_be_and_replaces_invalid_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
