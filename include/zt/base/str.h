/* A bounded string builder: appends until max, then sets overflow and drops the rest. Thread: owner. */
#ifndef ZT_BASE_STR_H
#define ZT_BASE_STR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct zt_str {
    char *data;     /* NUL-terminated when len > 0 or after zt_str_cstr; owned */
    size_t len;     /* bytes, NUL not counted */
    size_t cap;     /* bytes allocated */
    size_t max;     /* bytes that len may reach */
    bool overflow;  /* something was dropped */
};

void zt_str_init(struct zt_str *s, size_t max);
void zt_str_fini(struct zt_str *s);
void zt_str_clear(struct zt_str *s);
void zt_str_add(struct zt_str *s, const char *text);
void zt_str_add_n(struct zt_str *s, const void *bytes, size_t n);
void zt_str_add_char(struct zt_str *s, char c);
void zt_str_add_u64(struct zt_str *s, uint64_t v);
__attribute__((format(printf, 2, 3))) void zt_str_addf(struct zt_str *s, const char *fmt, ...);
const char *zt_str_cstr(struct zt_str *s); /* returns borrowed (until the next change) */
char *zt_str_take(struct zt_str *s);       /* returns owned; s is empty afterwards */

/* snprintf that says whether all of it fitted. */
__attribute__((format(printf, 3, 4))) bool zt_fmt(char *buf, size_t size, const char *fmt, ...);

/* Decodes the first character of text. Returns its length in bytes, 0 when it is no valid UTF-8 (or len is 0). */
size_t zt_utf8_next(const char *text, size_t len, uint32_t *code);

#endif
