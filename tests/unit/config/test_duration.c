/* Durations (spec/interfaces §2.5). */
#include "zt/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define S UINT64_C(1000)

static void duration_terms_are_added(void **state)
{
    static const struct {
        const char *text;
        uint64_t ms;
    } cases[] = {
        {"5m", 300 * S},          {"1h 30m", 5400 * S},    {"1m31s", 91 * S},       {"3m+31", 211 * S},
        {"30", 30 * S},           {"0", 0},                {" 2s ", 2 * S},         {"1m 5", 65 * S},
        {"250ms", 250},           {"10MS", 10},            {"1H", 3600 * S},        {"2hours", 7200 * S},
        {"1d", 86400 * S},        {"1w", 604800 * S},      {"1mon", 2592000 * S},   {"1y", 31536000 * S},
        {"1hr", 3600 * S},        {"3min", 180 * S},       {"7sec", 7 * S},         {"3 + 4", 7 * S},
        {"1500us", 2},            {"1ns", 1},              {"2\xc2\xb5s", 1},       {"1m+1s+1ms", 61 * S + 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t ms = 99;
        const char *reason = NULL;
        if (!zt_duration_parse(cases[i].text, &ms, &reason) || ms != cases[i].ms)
            fail_msg("`%s` gave %llu (%s)", cases[i].text, (unsigned long long)ms, reason ? reason : "no reason");
    }
}

static void duration_nonsense_is_refused_with_a_reason(void **state)
{
    static const char *const cases[] = {
        "",     " ",    "1.5s", "-1s", "s",    "5 m",  "1m*10", "5x",  "+5", "5m+", "99999999999999999999s",
        "18446744073709551615y", "1m 30 s", "0x10", "5mins!", "1ms 2 3", "30 1m",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t ms = 0;
        const char *reason = NULL;
        if (zt_duration_parse(cases[i], &ms, &reason))
            fail_msg("`%s` was read as %llu", cases[i], (unsigned long long)ms);
        assert_non_null(reason);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(duration_terms_are_added),
        cmocka_unit_test(duration_nonsense_is_refused_with_a_reason),
    };
    return cmocka_run_group_tests_name("duration", tests, NULL, NULL);
}
