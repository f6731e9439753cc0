/* Log lines: plain (tab separated) or JSON (spec/interfaces §7.2, §7.3).
 *
 * Invariants: a line is built in this thread's buffer and always ends in exactly one '\n'. Whatever
 * a value holds, it cannot start a line of its own: control characters are escaped in every form. A
 * line that would pass its limit is cut: the value that does not fit ends in "...", what would come
 * after it is left out, and a JSON line stays valid JSON. */
#include "zt/base/log.h"

#include "log_impl.h"
#include "zt/base/clock.h"
#include "zt/base/json.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_DIRECTIVES "hickory_server::server=off"
#define SPANS_MAX 1024           /* bytes of JSON spans, kept until the end of the line */
#define RESERVE (SPANS_MAX + 32) /* bytes after the limit for what closes a line */
#define TEXT_EXPANSION 6         /* a byte becomes at most this many when escaped: \u{1b} */
#define FLUSH_MS 1000

/* How a value is made harmless in a plain line. */
enum escape {
    ESCAPE_QUOTED,  /* inside quotes: quotes and backslashes too */
    ESCAPE_RAW,     /* bare: blanks too, they separate fields */
    ESCAPE_MESSAGE, /* the message column */
    ESCAPE_LINES,   /* the message column of a text of several lines */
};

/* The line being built. One per thread; lines do not nest. */
struct out {
    char *buf;
    size_t len, limit; /* bytes; buf has RESERVE more than limit */
    bool cut, head_done;
    enum escape message_escape;
    const char *span; /* name of the last span */
    size_t spans_len;
    char spans[SPANS_MAX];
};

static _Thread_local struct out out;
static _Thread_local char line_buf[ZT_LOG_LINE_MAX];

static pthread_rwlock_t filter_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct zt_log_filter filter, startup_filter;
static _Atomic int filter_max = ZT_LOG_OFF; /* most lines are refused by this alone */
static bool json_lines;

/* ---- filter ------------------------------------------------------------------------------------
 */

enum zt_err zt_log_start(const char *directives, bool json, struct zt_error *err)
{
    struct zt_log_filter *f = zt_new(struct zt_log_filter);
    enum zt_err e = zt_log_filter_add(f, DEFAULT_DIRECTIVES, err);
    if (e == ZT_OK)
        e = zt_log_filter_add(f, directives ? directives : "info", err);
    if (e == ZT_OK)
        e = zt_log_queue_start(err);
    if (e == ZT_OK) {
        pthread_rwlock_wrlock(&filter_lock);
        filter = startup_filter = *f;
        atomic_store(&filter_max, (int)zt_log_filter_max(f));
        json_lines = json;
        pthread_rwlock_unlock(&filter_lock);
    }
    zt_free(f);
    return e;
}

void zt_log_stop(void)
{
    zt_log_queue_stop(FLUSH_MS);
}

enum zt_err zt_log_filter_change(bool from_startup, const char *add, struct zt_error *err)
{
    struct zt_log_filter *f = zt_new(struct zt_log_filter);
    pthread_rwlock_wrlock(&filter_lock);
    *f = from_startup ? startup_filter : filter;
    enum zt_err e = add ? zt_log_filter_add(f, add, err) : ZT_OK;
    if (e == ZT_OK) {
        filter = *f;
        atomic_store(&filter_max, (int)zt_log_filter_max(f));
    }
    pthread_rwlock_unlock(&filter_lock);
    zt_free(f);
    return e;
}

void zt_log_filter_render(char *buf, size_t size)
{
    pthread_rwlock_rdlock(&filter_lock);
    zt_log_filter_text(&filter, buf, size);
    pthread_rwlock_unlock(&filter_lock);
}

bool zt_log_on(enum zt_log_level level, const char *scope)
{
    if ((int)level > atomic_load_explicit(&filter_max, memory_order_relaxed))
        return false;
    pthread_rwlock_rdlock(&filter_lock);
    bool on = level <= zt_log_filter_level(&filter, scope);
    pthread_rwlock_unlock(&filter_lock);
    return on;
}

/* ---- bytes into the line -----------------------------------------------------------------------
 */

static void force(const char *bytes, size_t n)
{
    memcpy(out.buf + out.len, bytes, n);
    out.len += n;
}

/* All or nothing; nothing at all once the line is cut. */
static void put(const char *bytes, size_t n)
{
    if (out.cut || n > out.limit - out.len) {
        out.cut = true;
        return;
    }
    force(bytes, n);
}

static void put_text(const char *text)
{
    put(text, strlen(text));
}

/* Characters that move the cursor or hide: C0, DEL, C1, separators, zero-width and direction marks.
 */
static bool is_invisible(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

/* One character in the manner of Rust's Debug. buf has 16 bytes. Returns the bytes written. */
static size_t escape_next(enum escape how, const char *value, size_t len, char *buf, size_t *used)
{
    uint32_t code;
    *used = zt_utf8_next(value, len, &code);
    if (*used == 0) {
        *used = 1;
        memcpy(buf, "\xef\xbf\xbd", 3); /* U+FFFD */
        return 3;
    }
    char letter = code == '\n'   ? 'n'
                  : code == '\r' ? 'r'
                  : code == '\t' ? 't'
                  : code == '\0' ? '0'
                                 : '\0';
    if (how == ESCAPE_QUOTED && (code == '"' || code == '\\'))
        letter = (char)code;
    if (letter && !(how == ESCAPE_LINES && code == '\n')) {
        buf[0] = '\\';
        buf[1] = letter;
        return 2;
    }
    if ((is_invisible(code) && code != '\n') || (how == ESCAPE_RAW && code == ' '))
        return (size_t)snprintf(buf, 16, "\\u{%x}", (unsigned)code);
    memcpy(buf, value, *used);
    return *used;
}

/* How much of value stands for itself in every form: most of most values, and then nothing is looked at twice. */
static size_t plain_run(const char *value)
{
    size_t n = 0;
    while (value[n] > ' ' && value[n] < 0x7f && value[n] != '"' && value[n] != '\\')
        n++;
    return n;
}

static void put_escaped(enum escape how, const char *value)
{
    size_t len = strlen(value), n;
    for (size_t at = 0, used; at < len && !out.cut; at += used) {
        used = plain_run(value + at);
        if (used > 0 && used <= out.limit - out.len) {
            put(value + at, used);
            continue;
        }
        char buf[16];
        n = escape_next(how, value + at, len - at, buf, &used);
        put(buf, n);
    }
}

/* A JSON string. When the limit falls inside, it is closed behind "...". */
static void put_json_string(const char *value)
{
    put("\"", 1);
    if (out.cut)
        return;
    size_t len = strlen(value);
    for (size_t at = 0, used; at < len && !out.cut; at += used) {
        char buf[ZT_JSON_ESCAPE_MAX];
        used = plain_run(value + at);
        if (used > 0 && used <= out.limit - out.len) {
            put(value + at, used);
            continue;
        }
        size_t n = zt_json_escape_next(value + at, len - at, buf, &used);
        put(buf, n);
    }
    if (out.cut)
        force("...", 3);
    force("\"", 1);
}

/* ---- lines -------------------------------------------------------------------------------------
 */

static void begin_in(struct zt_log_line *l, char *buf, size_t limit, enum zt_log_level level,
                     const char *scope, const char *message, enum escape message_escape)
{
    char now[ZT_TIME_TEXT_MAX];
    zt_clock_format_us(zt_clock_wall_us(), now);
    *l = (struct zt_log_line){
        .level = level, .scope = scope, .message = message, .json = json_lines, .first = true};
    out.buf = buf;
    out.limit = limit;
    out.len = out.spans_len = 0;
    out.cut = out.head_done = false;
    out.message_escape = message_escape;
    out.span = NULL;
    if (l->json) {
        put_text("{\"level\":\"");
        put_text(zt_log_level_name(level));
        put_text("\",\"time\":\"");
        put_text(now);
        put_text("\",\"scope\":\"");
        put_text(zt_log_scope_prefix(scope));
        put_text(scope);
        put("\"", 1);
    } else {
        put_text(now);
        put("\t", 1);
        put_text(zt_log_level_name(level));
        put("\t", 1);
        put_text(scope);
    }
}

void zt_log_begin(struct zt_log_line *l, enum zt_log_level level, const char *scope,
                  const char *message)
{
    begin_in(l, line_buf, sizeof line_buf - RESERVE, level, scope, message, ESCAPE_MESSAGE);
}

/* A short decimal number is a number in JSON too; a long run of digits is an id that looks like
 * one. */
static bool is_number(const char *value)
{
    size_t n = strspn(value, "0123456789");
    return n > 0 && n <= 15 && value[n] == '\0' && (n == 1 || value[0] != '0');
}

static void json_span(bool same, const char *name, const char *key, const char *value)
{
    struct zt_str s;
    zt_str_init(&s, SPANS_MAX - 1);
    if (same)
        zt_str_add(&s, ",");
    else
        zt_str_addf(&s, ",\"%s\":{", name);
    if (key) {
        bool number = is_number(value);
        zt_str_addf(&s, number ? "\"%s\":" : "\"%s\":\"", key);
        zt_json_escape(&s, value, strlen(value));
        if (!number)
            zt_str_add(&s, "\"");
    }
    zt_str_add(&s, "}");
    size_t at = out.spans_len - (same ? 1 : 0);   /* over the closing brace of the span before */
    if (!s.overflow && s.len <= SPANS_MAX - at) { /* a span that does not fit is left out whole */
        memcpy(out.spans + at, zt_str_cstr(&s), s.len);
        out.spans_len = at + s.len;
        out.span = name;
    }
    zt_str_fini(&s);
}

void zt_log_span(struct zt_log_line *l, const char *name, const char *key, const char *value)
{
    ZT_ASSERT(!out.head_done);
    if (!value)
        key = NULL;
    bool same = out.span && key && strcmp(out.span, name) == 0;
    if (l->json) {
        json_span(same, name, key, value);
        return;
    }
    if (same && out.buf[out.len - 1] == '}') {
        out.len--;
        put(" ", 1);
    } else {
        put(":", 1);
        put_text(name);
        if (key)
            put("{", 1);
    }
    if (key) {
        put_text(key);
        put("=", 1);
        put_escaped(ESCAPE_RAW, value);
        put("}", 1);
    }
    out.span = name;
}

/* The message, once: it comes after the spans in a plain line. */
static void finish_head(struct zt_log_line *l)
{
    if (out.head_done)
        return;
    out.head_done = true;
    if (l->json) {
        if (l->message) {
            put_text(",\"message\":");
            put_json_string(l->message);
        }
        return;
    }
    put("\t", 1);
    if (l->message) {
        put_escaped(out.message_escape, l->message);
        put("\t", 1);
    }
}

/* Everything of a field before its value. False: the line is full, and as it was before. */
static bool open_field(struct zt_log_line *l, const char *key)
{
    finish_head(l);
    size_t before = out.len;
    if (l->json) {
        put(",\"", 2);
        put_text(key);
        put("\":", 2);
    } else {
        if (!l->first)
            put(" ", 1);
        put_text(key);
        put("=", 1);
    }
    if (out.cut)
        out.len = before;
    l->first = false;
    return !out.cut;
}

void zt_log_str(struct zt_log_line *l, const char *key, const char *value)
{
    if (!value || !open_field(l, key))
        return;
    if (l->json) {
        put_json_string(value);
        return;
    }
    put("\"", 1);
    put_escaped(ESCAPE_QUOTED, value);
    put("\"", 1);
}

void zt_log_raw(struct zt_log_line *l, const char *key, const char *value)
{
    if (!value || !open_field(l, key))
        return;
    if (l->json)
        put_json_string(value);
    else
        put_escaped(ESCAPE_RAW, value);
}

/* The value of a number or boolean: forced, because the reserve has room for it and a key without a
 * value is no JSON. */
static void bare_value(struct zt_log_line *l, const char *key, const char *value)
{
    size_t before = out.len;
    if (!open_field(l, key))
        return;
    put_text(value);
    if (out.cut)
        out.len = before;
}

void zt_log_u64(struct zt_log_line *l, const char *key, uint64_t value)
{
    char digits[24];
    zt_fmt(digits, sizeof digits, "%llu", (unsigned long long)value);
    finish_head(l);
    bare_value(l, key, digits);
}

void zt_log_bool(struct zt_log_line *l, const char *key, bool value)
{
    finish_head(l);
    bare_value(l, key, value ? "true" : "false");
}

void zt_log_end(struct zt_log_line *l)
{
    finish_head(l);
    if (l->json) {
        force(out.spans, out.spans_len);
        force("}", 1);
    } else if (out.cut) {
        force("...", 3);
    }
    force("\n", 1);
    zt_log_queue_push(out.buf, out.len);
}

void zt_log_text(enum zt_log_level level, const char *scope, const char *fmt, ...)
{
    char small[1024];
    /* The format is a constant of ours: a newline in it says that the text has several lines. */
    enum escape how = strchr(fmt, '\n') ? ESCAPE_LINES : ESCAPE_MESSAGE;
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    struct zt_log_line l;
    if (n >= 0 && (size_t)n < sizeof small) {
        begin_in(&l, line_buf, sizeof line_buf - RESERVE, level, scope, small, how);
        zt_log_end(&l);
    } else if (n >= 0) {
        size_t size = (size_t)n + 1, limit = size * TEXT_EXPANSION + ZT_LOG_TARGET_MAX + 256;
        char *text = zt_realloc(NULL, size), *buf = zt_realloc(NULL, limit + RESERVE);
        vsnprintf(text, size, fmt, again);
        begin_in(&l, buf, limit, level, scope, text, how);
        zt_log_end(&l);
        zt_free(text);
        zt_free(buf);
        out.buf = line_buf;
    }
    va_end(again);
}

/* ---- gate --------------------------------------------------------------------------------------
 */

bool zt_log_gate_pass(struct zt_log_gate *g, uint32_t burst, uint32_t *suppressed)
{
    uint64_t now = zt_clock_mono_ms() / 1000;
    *suppressed = 0;
    if (g->second != now) {
        g->second = now;
        g->passed = 0;
    }
    if (g->passed >= burst) {
        g->suppressed++;
        return false;
    }
    g->passed++;
    *suppressed = g->suppressed;
    g->suppressed = 0;
    return true;
}
