/* The streaming JSON writer.
 * Invariants: a value inside an object follows a key; containers are closed in order. Breaking
 * either is a bug of the caller. */
#include "zt/base/json.h"

#include "zt/base/err.h"
#include <string.h>

void zt_json_init(struct zt_json *j, struct zt_str *out, bool pretty)
{
    *j = (struct zt_json){.out = out, .pretty = pretty};
}

static void new_line(struct zt_json *j)
{
    if (!j->pretty)
        return;
    zt_str_add_char(j->out, '\n');
    for (unsigned i = 0; i < j->depth; i++)
        zt_str_add_n(j->out, "  ", 2);
}

/* What comes before a member: a comma, a line break. A value right after its key needs neither. */
static void before_value(struct zt_json *j)
{
    if (j->after_key) {
        j->after_key = false;
        return;
    }
    if (j->depth == 0)
        return;
    if (j->used[j->depth - 1])
        zt_str_add_char(j->out, ',');
    j->used[j->depth - 1] = true;
    new_line(j);
}

static void open_container(struct zt_json *j, char c)
{
    before_value(j);
    ZT_ASSERT(j->depth < ZT_JSON_DEPTH_MAX);
    j->used[j->depth++] = false;
    zt_str_add_char(j->out, c);
}

static void close_container(struct zt_json *j, char c)
{
    ZT_ASSERT(j->depth > 0 && !j->after_key);
    bool used = j->used[--j->depth];
    if (used)
        new_line(j);
    zt_str_add_char(j->out, c);
}

void zt_json_object(struct zt_json *j)
{
    open_container(j, '{');
}

void zt_json_object_end(struct zt_json *j)
{
    close_container(j, '}');
}

void zt_json_array(struct zt_json *j)
{
    open_container(j, '[');
}

void zt_json_array_end(struct zt_json *j)
{
    close_container(j, ']');
}

static void add_quoted(struct zt_str *out, const char *value, size_t len)
{
    zt_str_add_char(out, '"');
    zt_json_escape(out, value, len);
    zt_str_add_char(out, '"');
}

void zt_json_key(struct zt_json *j, const char *key)
{
    ZT_ASSERT(!j->after_key);
    before_value(j);
    add_quoted(j->out, key, strlen(key));
    zt_str_add(j->out, j->pretty ? ": " : ":");
    j->after_key = true;
}

void zt_json_str(struct zt_json *j, const char *value)
{
    zt_json_strn(j, value, value ? strlen(value) : 0);
}

void zt_json_strn(struct zt_json *j, const char *value, size_t len)
{
    if (!value) {
        zt_json_null(j);
        return;
    }
    before_value(j);
    add_quoted(j->out, value, len);
}

void zt_json_u64(struct zt_json *j, uint64_t value)
{
    before_value(j);
    zt_str_add_u64(j->out, value);
}

void zt_json_bool(struct zt_json *j, bool value)
{
    before_value(j);
    zt_str_add(j->out, value ? "true" : "false");
}

void zt_json_null(struct zt_json *j)
{
    before_value(j);
    zt_str_add(j->out, "null");
}

void zt_json_key_str(struct zt_json *j, const char *key, const char *value)
{
    zt_json_key(j, key);
    zt_json_str(j, value);
}

void zt_json_key_u64(struct zt_json *j, const char *key, uint64_t value)
{
    zt_json_key(j, key);
    zt_json_u64(j, value);
}

void zt_json_key_bool(struct zt_json *j, const char *key, bool value)
{
    zt_json_key(j, key);
    zt_json_bool(j, value);
}

size_t zt_json_escape_next(const char *value, size_t len, char out[static ZT_JSON_ESCAPE_MAX],
                           size_t *used)
{
    uint32_t code;
    *used = zt_utf8_next(value, len, &code);
    if (*used == 0) {
        *used = 1;
        memcpy(out, "\xef\xbf\xbd", 3); /* U+FFFD */
        return 3;
    }
    static const char short_from[] = "\"\\\b\f\n\r\t", short_to[] = "\"\\bfnrt";
    const char *hit = *used == 1 && code ? strchr(short_from, (int)code) : NULL;
    if (hit) {
        out[0] = '\\';
        out[1] = short_to[hit - short_from];
        return 2;
    }
    if (code < 0x20) {
        static const char hex[] = "0123456789abcdef";
        memcpy(out, "\\u00", 4);
        out[4] = hex[code >> 4];
        out[5] = hex[code & 15];
        return 6;
    }
    memcpy(out, value, *used);
    return *used;
}

void zt_json_escape(struct zt_str *out, const char *value, size_t len)
{
    size_t plain = 0; /* start of the run not yet copied */
    for (size_t at = 0, used; at < len; at += used) {
        uint8_t c = (uint8_t)value[at];
        used = 1;
        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\')
            continue;
        char escaped[ZT_JSON_ESCAPE_MAX];
        size_t n = zt_json_escape_next(value + at, len - at, escaped, &used);
        zt_str_add_n(out, value + plain, at - plain);
        zt_str_add_n(out, escaped, n);
        plain = at + used;
    }
    zt_str_add_n(out, value + plain, len - plain);
}
