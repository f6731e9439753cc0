/* Typed look-ups in the environment, with the error texts of spec/interfaces §2.4, and the sorted maps of strings.
 * Unset and "not UTF-8" are the same; empty is a value. */
#include "config/config_impl.h"

#include "zt/base/mem.h"
#include <string.h>

bool zt_env_is_utf8(const char *text)
{
    size_t len = strlen(text);
    for (size_t at = 0; at < len;) {
        uint32_t code = 0;
        size_t used = zt_utf8_next(text + at, len - at, &code);
        if (used == 0)
            return false;
        at += used;
    }
    return true;
}

const char *zt_env_get(const struct env *e, const char *name)
{
    size_t n = strlen(name);
    for (char *const *v = e->vars; v && *v; v++)
        if (strncmp(*v, name, n) == 0 && (*v)[n] == '=')
            return zt_env_is_utf8(*v + n + 1) ? *v + n + 1 : NULL;
    return NULL;
}

bool zt_env_fail(const struct env *e, const char *name, const char *value, const char *reason)
{
    zt_error_set(e->err, ZT_INVALID, "invalid env var %s=%.200s (%s)", name, value, reason);
    return false;
}

bool zt_env_bool(const struct env *e, const char *name, bool *out)
{
    const char *value = zt_env_get(e, name);
    if (!value)
        return true;
    *out = strcmp(value, "true") == 0;
    if (!*out && strcmp(value, "false") != 0)
        return zt_env_fail(e, name, value, "provided string was not `true` or `false`");
    return true;
}

const char *zt_number_parse(const char *text, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    if (!*text)
        return "cannot parse integer from empty string";
    const char *p = *text == '+' && text[1] ? text + 1 : text;
    for (const char *q = p; *q; q++)
        if (*q < '0' || *q > '9')
            return "invalid digit found in string";
    for (; *p; p++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
            return "number too large to fit in target type";
    if (value > max)
        return "number too large to fit in target type";
    *out = value;
    return NULL;
}

bool zt_env_u64(const struct env *e, const char *name, uint64_t min, uint64_t max, uint64_t *out)
{
    const char *value = zt_env_get(e, name);
    if (!value)
        return true;
    /* A bound that is not the type's has a reason of its own. */
    uint64_t type_max = max <= UINT16_MAX ? UINT16_MAX : max <= UINT32_MAX ? UINT32_MAX : UINT64_MAX;
    uint64_t number = 0;
    const char *reason = zt_number_parse(value, type_max, &number);
    if (reason)
        return zt_env_fail(e, name, value, reason);
    if (number < min || number > max) {
        char text[80];
        zt_fmt(text, sizeof text, "must be between %llu and %llu", (unsigned long long)min, (unsigned long long)max);
        return zt_env_fail(e, name, value, text);
    }
    *out = number;
    return true;
}

bool zt_env_u32(const struct env *e, const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t number = *out;
    if (!zt_env_u64(e, name, min, max, &number))
        return false;
    *out = (uint32_t)number;
    return true;
}

bool zt_env_duration(const struct env *e, const char *name, uint64_t *ms)
{
    const char *value = zt_env_get(e, name), *reason = NULL;
    if (!value || zt_duration_parse(value, ms, &reason))
        return true;
    return zt_env_fail(e, name, value, reason);
}

void zt_env_str(const struct env *e, const char *name, const char *fallback, char **out)
{
    const char *value = zt_env_get(e, name);
    *out = zt_strdup(value ? value : fallback);
}

/* ---- maps of strings ------------------------------------------------------------------------------ */

void zt_pairs_put(struct zt_config_pair **list, unsigned *n, const char *key, const char *value)
{
    unsigned at = 0;
    while (at < *n && strcmp((*list)[at].key, key) < 0)
        at++;
    if (at < *n && strcmp((*list)[at].key, key) == 0) {
        char *old = (*list)[at].value;
        (*list)[at].value = zt_strdup(value);
        zt_free(old);
        return;
    }
    *list = zt_realloc(*list, (*n + 1) * sizeof **list);
    memmove(*list + at + 1, *list + at, (*n - at) * sizeof **list);
    (*list)[at] = (struct zt_config_pair){.key = zt_strdup(key), .value = zt_strdup(value)};
    (*n)++;
}

const char *zt_pairs_get(const struct zt_config_pair *list, unsigned n, const char *key)
{
    for (unsigned i = 0; i < n; i++)
        if (strcmp(list[i].key, key) == 0)
            return list[i].value;
    return NULL;
}

void zt_pairs_free(struct zt_config_pair *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        zt_free(list[i].key);
        zt_free(list[i].value);
    }
    zt_free(list);
}
