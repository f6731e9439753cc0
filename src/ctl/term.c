/* Names of pods and policies come from a cluster's users. Shown to root in a terminal they must stay text. */
#include "ctl/term.h"
#include "zt/base/err.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

/* The length of the character at p and its code point; 0 when it is not UTF-8. */
static size_t decode(const unsigned char *p, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = *p < 0x80 ? 1 : (*p & 0xe0) == 0xc0 ? 2 : (*p & 0xf0) == 0xe0 ? 3 : (*p & 0xf8) == 0xf0 ? 4 : 0;
    if (len == 0)
        return 0;
    *code = len == 1 ? *p : *p & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (p[i] & 0x3f);
    }
    return *code >= least[len] && *code <= 0x10ffff && (*code < 0xd800 || *code > 0xdfff) ? len : 0;
}

static int is_harmful(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

char *zt_term_safe(const char *text)
{
    struct zt_str s;
    uint32_t code = 0;
    if (!text)
        return zt_strdup("-");
    zt_str_init(&s, strlen(text) + 1);
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        size_t len = decode(p, &code);
        if (len == 0 || is_harmful(code))
            zt_str_add_char(&s, '?');
        else
            zt_str_add_n(&s, p, len);
        p += len ? len : 1;
    }
    char *safe = s.len ? zt_str_take(&s) : zt_strdup("");
    zt_str_fini(&s);
    return safe;
}

void zt_term_print(FILE *out, const char *text)
{
    char *safe = zt_term_safe(text);
    fputs(safe, out);
    zt_free(safe);
}

/* Characters, not bytes. */
static size_t width(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

void zt_term_table_init(struct zt_term_table *t, unsigned n_columns)
{
    ZT_ASSERT(n_columns > 0 && n_columns <= ZT_TERM_COLUMNS_MAX);
    *t = (struct zt_term_table){.n_columns = n_columns};
}

void zt_term_table_cell(struct zt_term_table *t, const char *text)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        t->cells = zt_realloc(t->cells, t->cap * sizeof *t->cells);
    }
    t->cells[t->n++] = zt_term_safe(text && *text ? text : NULL);
}

void zt_term_table_cellf(struct zt_term_table *t, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    zt_term_table_cell(t, text);
}

void zt_term_table_print(const struct zt_term_table *t, FILE *out)
{
    size_t widths[ZT_TERM_COLUMNS_MAX] = {0};
    for (size_t i = 0; i < t->n; i++) {
        size_t w = width(t->cells[i]);
        if (w > widths[i % t->n_columns])
            widths[i % t->n_columns] = w;
    }
    for (size_t i = 0; i < t->n; i++) {
        unsigned column = (unsigned)(i % t->n_columns);
        fputs(t->cells[i], out);
        if (column + 1 == t->n_columns)
            fputc('\n', out);
        else
            fprintf(out, "%*s", (int)(widths[column] - width(t->cells[i]) + 3), "");
    }
}

void zt_term_table_fini(struct zt_term_table *t)
{
    for (size_t i = 0; i < t->n; i++)
        zt_free(t->cells[i]);
    zt_free(t->cells);
    *t = (struct zt_term_table){0};
}
