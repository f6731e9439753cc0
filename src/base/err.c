/* The table of run-time outcomes and bounded error texts.
 * Invariant: a zt_error's text is NUL-terminated and never longer than its array, whatever the
 * format produced. */
#include "zt/base/err.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 24

struct err_row {
    const char *name, *flag, *prefix;
    unsigned status;
};

static const struct err_row rows[ZT_ERR_N] = {
#define X(n, f, s, p) [ZT_##n] = {.name = #n, .flag = f, .status = s, .prefix = p},
    ZT_ERR_TABLE(X)
#undef X
};

static char lower_names[ZT_ERR_N][NAME_MAX_BYTES];
static pthread_once_t lower_once = PTHREAD_ONCE_INIT;

static void fill_lower_names(void)
{
    for (unsigned i = 0; i < ZT_ERR_N; i++) {
        size_t n = 0;
        for (; rows[i].name[n] && n + 1 < NAME_MAX_BYTES; n++)
            lower_names[i][n] = (char)tolower((unsigned char)rows[i].name[n]);
        lower_names[i][n] = '\0';
    }
}

static const struct err_row *row_of(enum zt_err e)
{
    ZT_ASSERT((unsigned)e < ZT_ERR_N);
    return &rows[e];
}

const char *zt_err_name(enum zt_err e)
{
    ZT_ASSERT((unsigned)e < ZT_ERR_N);
    pthread_once(&lower_once, fill_lower_names);
    return lower_names[e];
}

const char *zt_err_flag(enum zt_err e)
{
    return row_of(e)->flag;
}

unsigned zt_err_status(enum zt_err e)
{
    return row_of(e)->status;
}

const char *zt_err_prefix(enum zt_err e)
{
    return row_of(e)->prefix;
}

const char *zt_errno_text(int errnum, char *buf, unsigned long size)
{
    char scratch[128];
    const char *text = strerror_r(errnum, scratch, sizeof scratch);
    snprintf(buf, size, "%s (os error %d)", text, errnum);
    return buf;
}

enum zt_err zt_error_set(struct zt_error *err, enum zt_err code, const char *fmt, ...)
{
    if (!err)
        return code;
    /* The arguments may point into err->text itself, so the text is made elsewhere first. */
    char text[ZT_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->code = code;
    memcpy(err->text, text, sizeof text);
    return code;
}

enum zt_err zt_error_set_errno(struct zt_error *err, enum zt_err code, int errnum, const char *fmt,
                               ...)
{
    if (!err)
        return code;
    char what[ZT_ERROR_TEXT_MAX], why[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return zt_error_set(err, code, "%s: %s", what, zt_errno_text(errnum, why, sizeof why));
}

enum zt_err zt_error_wrap(struct zt_error *err, const char *fmt, ...)
{
    ZT_ASSERT(err);
    char what[ZT_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return zt_error_set(err, err->code, "%s: %s", what, err->text);
}

void zt_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "BUG: %s:%d: %s\n", file, line, what);
    fflush(stderr);
    abort();
}
