/* The log filter: RUST_LOG directives (spec/interfaces §7.1), string prefix match, longest target
 * wins. */
#include "log_impl.h"

#include "zt/base/str.h"
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MODULE_PREFIX "ztunnel::"

static const char *const level_names[] = {"off", "error", "warn", "info", "debug", "trace"};

const char *zt_log_level_name(enum zt_log_level level)
{
    return level_names[level];
}

const char *zt_log_scope_prefix(const char *scope)
{
    static const char *const special[] = {"access", "dns", "ztunnel"};
    for (unsigned i = 0; i < sizeof special / sizeof *special; i++)
        if (strcmp(scope, special[i]) == 0)
            return "";
    return MODULE_PREFIX;
}

/* Names in any case, digits 0 to 5; an empty text means error. */
static bool parse_level(const char *text, size_t len, enum zt_log_level *out)
{
    if (len == 0) {
        *out = ZT_LOG_ERROR;
        return true;
    }
    if (len == 1 && text[0] >= '0' && text[0] <= '5') {
        *out = (enum zt_log_level)(text[0] - '0');
        return true;
    }
    for (unsigned i = 0; i < sizeof level_names / sizeof *level_names; i++) {
        if (strlen(level_names[i]) == len && strncasecmp(text, level_names[i], len) == 0) {
            *out = (enum zt_log_level)i;
            return true;
        }
    }
    return false;
}

/* Rendering order: longer targets first, equal lengths in descending order; the empty target is
 * last by itself. */
static int compare_targets(const char *a, const char *b)
{
    size_t la = strlen(a), lb = strlen(b);
    return la != lb ? (la > lb ? -1 : 1) : strcmp(b, a);
}

static enum zt_err insert(struct zt_log_filter *f, const char *target, size_t len,
                          enum zt_log_level level, struct zt_error *err)
{
    struct zt_log_directive d = {.level = level};
    if (len >= sizeof d.target)
        return zt_error_set(err, ZT_INVALID, "log filter: a target is longer than %u bytes",
                            ZT_LOG_TARGET_MAX - 1);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)target[i] < 0x20 || target[i] == 0x7f)
            return zt_error_set(err, ZT_INVALID, "log filter: a target has control characters");
    memcpy(d.target, target, len);
    unsigned at = 0;
    int order = 1;
    while (at < f->n && (order = compare_targets(d.target, f->directives[at].target)) > 0)
        at++;
    if (at == f->n || order != 0) {
        if (f->n == ZT_LOG_DIRECTIVES_MAX)
            return zt_error_set(err, ZT_INVALID, "log filter: more than %d directives",
                                ZT_LOG_DIRECTIVES_MAX);
        memmove(&f->directives[at + 1], &f->directives[at], (f->n - at) * sizeof d);
        f->n++;
    }
    f->directives[at] = d;
    return ZT_OK;
}

static enum zt_err add_directive(struct zt_log_filter *f, const char *text, size_t len,
                                 struct zt_error *err)
{
    const char *equals = memchr(text, '=', len);
    enum zt_log_level level;
    if (!equals) {
        if (parse_level(text, len, &level))
            return insert(f, "", 0, level, err);
        return insert(f, text, len, ZT_LOG_TRACE, err);
    }
    size_t target_len = (size_t)(equals - text), level_len = len - target_len - 1;
    if (memchr(equals + 1, '=', level_len))
        return zt_error_set(err, ZT_INVALID, "invalid filter directive: too many '=' in `%.*s`",
                            (int)len, text);
    if (!parse_level(equals + 1, level_len, &level))
        return zt_error_set(err, ZT_INVALID, "invalid filter directive: unknown level in `%.*s`",
                            (int)len, text);
    return insert(f, text, target_len, level, err);
}

enum zt_err zt_log_filter_add(struct zt_log_filter *f, const char *spec, struct zt_error *err)
{
    for (const char *at = spec;;) {
        size_t len = strcspn(at, ",");
        enum zt_err e = add_directive(f, at, len, err);
        if (e != ZT_OK || at[len] == '\0')
            return e;
        at += len + 1;
    }
}

/* Is target a prefix of prefix + scope? */
static bool matches(const char *target, const char *prefix, const char *scope)
{
    for (; *target && *prefix; target++, prefix++)
        if (*target != *prefix)
            return false;
    for (; *target; target++, scope++)
        if (*target != *scope)
            return false;
    return true;
}

enum zt_log_level zt_log_filter_level(const struct zt_log_filter *f, const char *scope)
{
    const char *prefix = zt_log_scope_prefix(scope);
    for (unsigned i = 0; i < f->n; i++)
        if (matches(f->directives[i].target, prefix, scope))
            return f->directives[i].level;
    return ZT_LOG_OFF;
}

enum zt_log_level zt_log_filter_max(const struct zt_log_filter *f)
{
    enum zt_log_level max = ZT_LOG_OFF;
    for (unsigned i = 0; i < f->n; i++)
        if (f->directives[i].level > max)
            max = f->directives[i].level;
    return max;
}

void zt_log_filter_text(const struct zt_log_filter *f, char *buf, size_t size)
{
    size_t len = 0;
    buf[0] = '\0';
    for (unsigned i = 0; i < f->n && len < size; i++) {
        const struct zt_log_directive *d = &f->directives[i];
        if (!zt_fmt(buf + len, size - len, "%s%s%s%s", i ? "," : "", d->target,
                    d->target[0] ? "=" : "", level_names[d->level]))
            return;
        len += strlen(buf + len);
    }
}
