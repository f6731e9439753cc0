/* Error texts and the table. */
#include "zt/base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

static void err_names_are_the_codes_in_lower_case(void **state)
{
    assert_string_equal(zt_err_name(ZT_POLICY_REJECTED), "policy_rejected");
    assert_string_equal(zt_err_name(ZT_OK), "ok");
}

static void err_rows_carry_flag_status_and_prefix(void **state)
{
    assert_string_equal(zt_err_flag(ZT_REVOKED), "CERT_REVOKED");
    assert_int_equal(zt_err_status(ZT_POLICY_REJECTED), 401);
    assert_int_equal(zt_err_status(ZT_AUTHORITY), 400);
    assert_string_equal(zt_err_prefix(ZT_IDENTITY), "identity error: ");
}

static void error_set_without_an_object_returns_the_code(void **state)
{
    assert_int_equal(zt_error_set(NULL, ZT_LIMIT, "x"), ZT_LIMIT);
}

static void error_text_is_cut_at_its_limit(void **state)
{
    char big[2 * ZT_ERROR_TEXT_MAX];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_IO, "%s", big);
    assert_int_equal(strlen(err.text), ZT_ERROR_TEXT_MAX - 1);
}

static void error_wrap_puts_the_outer_name_first_and_keeps_the_code(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set_errno(&err, ZT_IO, ENOENT, "open %s", "/x");
    assert_int_equal(zt_error_wrap(&err, "config"), ZT_IO);
    assert_string_equal(err.text, "config: open /x: No such file or directory (os error 2)");
}

static void error_set_may_quote_its_own_text(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_IO, "inner");
    zt_error_set(&err, ZT_TLS, "outer: %s", err.text);
    assert_string_equal(err.text, "outer: inner");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_names_are_the_codes_in_lower_case),
        cmocka_unit_test(err_rows_carry_flag_status_and_prefix),
        cmocka_unit_test(error_set_without_an_object_returns_the_code),
        cmocka_unit_test(error_text_is_cut_at_its_limit),
        cmocka_unit_test(error_wrap_puts_the_outer_name_first_and_keeps_the_code),
        cmocka_unit_test(error_set_may_quote_its_own_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
