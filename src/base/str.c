/* The bounded string builder, and UTF-8 checking for whoever prints text of peers.
 * Invariants: len <= max; data is NULL or has cap bytes with data[len] == NUL; after an overflow
 * nothing is appended any more, so that what is there is a prefix of what was meant. */
#include "zt/base/str.h"

#include "zt/base/mem.h"
#include <stdio.h>
#include <string.h>

#define FIRST_CAP 128 /* bytes */

void zt_str_init(struct zt_str *s, size_t max)
{
    *s = (struct zt_str){.max = max};
}

void zt_str_fini(struct zt_str *s)
{
    zt_free(s->data);
    zt_str_init(s, s->max);
}

void zt_str_clear(struct zt_str *s)
{
    s->len = 0;
    s->overflow = false;
    if (s->data)
        s->data[0] = '\0';
}

/* Makes room for n more bytes and the NUL; n is within max already. */
static void reserve(struct zt_str *s, size_t n)
{
    size_t need = s->len + n + 1;
    if (need <= s->cap)
        return;
    size_t cap = s->cap ? s->cap : FIRST_CAP;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (cap > s->max && need <= s->max)
        cap = s->max + 1;
    s->data = zt_realloc(s->data, cap);
    s->cap = cap;
}

void zt_str_add_n(struct zt_str *s, const void *bytes, size_t n)
{
    if (s->overflow || n == 0)
        return;
    if (n > s->max - s->len) {
        n = s->max - s->len;
        s->overflow = true;
    }
    reserve(s, n);
    memcpy(s->data + s->len, bytes, n);
    s->len += n;
    s->data[s->len] = '\0';
}

void zt_str_add(struct zt_str *s, const char *text)
{
    zt_str_add_n(s, text, strlen(text));
}

void zt_str_add_char(struct zt_str *s, char c)
{
    zt_str_add_n(s, &c, 1);
}

void zt_str_add_u64(struct zt_str *s, uint64_t v)
{
    char digits[20], *at = digits + sizeof digits;
    do {
        *--at = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    zt_str_add_n(s, at, (size_t)(digits + sizeof digits - at));
}

void zt_str_addf(struct zt_str *s, const char *fmt, ...)
{
    char small[256];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof small) {
        zt_str_add_n(s, small, (size_t)n);
    } else if (n >= 0) {
        char *large = zt_realloc(NULL, (size_t)n + 1);
        vsnprintf(large, (size_t)n + 1, fmt, again);
        zt_str_add_n(s, large, (size_t)n);
        zt_free(large);
    }
    va_end(again);
}

const char *zt_str_cstr(struct zt_str *s)
{
    return s->data ? s->data : "";
}

char *zt_str_take(struct zt_str *s)
{
    char *data = s->data ? s->data : zt_strdup("");
    zt_str_init(s, s->max);
    return data;
}

bool zt_fmt(char *buf, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(buf, size, fmt, args);
    va_end(args);
    return n >= 0 && (size_t)n < size;
}

size_t zt_utf8_next(const char *text, size_t len, uint32_t *code)
{
    const uint8_t *b = (const uint8_t *)text;
    if (len == 0)
        return 0;
    if (b[0] < 0x80) {
        *code = b[0];
        return 1;
    }
    size_t n = b[0] >= 0xf0 ? 4 : b[0] >= 0xe0 ? 3 : 2;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (b[0] < 0xc2 || b[0] > 0xf4 || n > len)
        return 0;
    uint32_t c = b[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((b[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (b[i] & 0x3fu);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *code = c;
    return n;
}
