/* Text for terminals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "ctl/term.h"
#include "zt/base/mem.h"
#include <cmocka.h>
#include <string.h>

static void term_safe_leaves_nothing_that_steers_a_terminal(void **state)
{
    static const struct {
        const char *text, *safe;
    } cases[] = {
        {"plain", "plain"},
        {"", ""},
        {NULL, "-"},
        {"a\x1b[31mred", "a?[31mred"},
        {"line\nbreak\ttab\r", "line?break?tab?"},
        {"del\x7f", "del?"},
        {"c1 \xc2\x9b", "c1 ?"},                 /* CSI as one character */
        {"bidi \xe2\x80\xae", "bidi ?"},         /* right-to-left override */
        {"\xe2\x80\x8bhidden", "?hidden"},       /* zero width */
        {"\xef\xbb\xbf" "bom", "?bom"},
        {"\xff\xfe", "??"},
        {"\xc0\xaf", "??"},                      /* overlong */
        {"\xed\xa0\x80", "???"},                 /* surrogate */
        {"cut \xe2\x82", "cut ??"},
        {"Gr\xc3\xbc\xc3\x9f" "e \xe2\x82\xac \xf0\x9f\x98\x80", "Gr\xc3\xbc\xc3\x9f" "e \xe2\x82\xac \xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *safe = zt_term_safe(cases[i].text);
        assert_string_equal(safe, cases[i].safe);
        zt_free(safe);
    }
}

static void term_table_aligns_by_characters(void **state)
{
    struct zt_term_table t;
    char out[256] = "";
    FILE *f = fmemopen(out, sizeof out, "w");
    zt_term_table_init(&t, 2);
    zt_term_table_cell(&t, "NAME");
    zt_term_table_cell(&t, "X");
    zt_term_table_cell(&t, "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9");
    zt_term_table_cellf(&t, "%d", 5);
    zt_term_table_cell(&t, NULL);
    zt_term_table_cell(&t, "");
    zt_term_table_print(&t, f);
    fclose(f);
    assert_string_equal(out, "NAME    X\n\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9   5\n-       -\n");
    zt_term_table_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(term_safe_leaves_nothing_that_steers_a_terminal),
        cmocka_unit_test(term_table_aligns_by_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
