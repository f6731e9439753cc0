/* Durations (spec/interfaces §2.5): terms of an unsigned integer and a unit, added up; white space and plus signs between terms; a
 * last term without a unit is seconds. The multiplication of the reference's syntax is left out. */
#include "zt/config/config.h"

#include <string.h>
#include <strings.h>

#define UNIT_MAX 12 /* letters, NUL not counted */

struct unit {
    const char *name;
    uint64_t ns;
};
#define US UINT64_C(1000)
#define MS (1000 * US)
#define S (1000 * MS)
#define M (60 * S)
#define H (60 * M)
#define D (24 * H)
static const struct unit units[] = {
    {"y", 365 * D},        {"year", 365 * D},       {"years", 365 * D}, {"mon", 30 * D},      {"month", 30 * D},
    {"months", 30 * D},    {"w", 7 * D},            {"week", 7 * D},    {"weeks", 7 * D},     {"d", D},
    {"day", D},            {"days", D},             {"h", H},           {"hr", H},            {"hour", H},
    {"hours", H},          {"m", M},                {"min", M},         {"minute", M},        {"minutes", M},
    {"s", S},              {"sec", S},              {"second", S},      {"seconds", S},       {"ms", MS},
    {"msec", MS},          {"millisecond", MS},     {"milliseconds", MS}, {"us", US},         {"\xc2\xb5s", US},
    {"usec", US},          {"microsecond", US},     {"microseconds", US}, {"ns", 1},          {"nsec", 1},
    {"nanosecond", 1},     {"nanoseconds", 1},
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static const char *skip_spaces(const char *p)
{
    while (is_space(*p))
        p++;
    return p;
}

static bool is_unit_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80);
}

/* Moves *p over the unit's letters. */
static bool find_unit(const char **p, uint64_t *ns)
{
    const char *begin = *p;
    while (is_unit_char(**p))
        (*p)++;
    size_t n = (size_t)(*p - begin);
    for (size_t i = 0; n <= UNIT_MAX && i < sizeof units / sizeof *units; i++) {
        if (strlen(units[i].name) == n && strncasecmp(units[i].name, begin, n) == 0) {
            *ns = units[i].ns;
            return true;
        }
    }
    return false;
}

/* One term; moves *p over it and the white space after it. *bare: it had no unit. */
static bool read_term(const char **p, uint64_t *ns, bool *bare, const char **reason)
{
    uint64_t value = 0, unit = S;
    if (**p < '0' || **p > '9') {
        *reason = "expected an unsigned integer";
        return false;
    }
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(**p - '0'), &value)) {
            *reason = "the number is too large";
            return false;
        }
    }
    *bare = !is_unit_char(**p);
    if (!*bare && !find_unit(p, &unit)) {
        *reason = "unknown unit";
        return false;
    }
    if (__builtin_mul_overflow(value, unit, ns)) {
        *reason = "the duration is too long";
        return false;
    }
    *p = skip_spaces(*p);
    return true;
}

bool zt_duration_parse(const char *text, uint64_t *ms, const char **reason)
{
    uint64_t total = 0;
    const char *p = skip_spaces(text);
    if (!*p) {
        *reason = "a duration must not be empty";
        return false;
    }
    for (;;) {
        uint64_t term = 0;
        bool bare = false;
        if (!read_term(&p, &term, &bare, reason))
            return false;
        if (__builtin_add_overflow(total, term, &total)) {
            *reason = "the duration is too long";
            return false;
        }
        if (!*p)
            break;
        if (*p == '.' || *p == '*') {
            *reason = *p == '.' ? "fractions are not accepted" : "multiplication is not accepted";
            return false;
        }
        if (bare && *p != '+') {
            *reason = "only the last term may lack a unit";
            return false;
        }
        if (*p == '+')
            p = skip_spaces(p + 1);
    }
    *ms = total / MS + (total % MS != 0);
    return true;
}
