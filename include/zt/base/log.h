/* Structured log (spec/interfaces §7): one line per fact, plain (tabs) or JSON, to stdout.
 *
 * A line is formatted by the caller into a thread-local buffer and copied into one bounded queue; a writer thread
 * writes it. A full queue drops the line and counts it: a log never blocks a loop. Messages are constants; data goes into fields.
 *
 *     if (zt_log_on(ZT_LOG_DEBUG, "proxy::outbound")) {
 *         struct zt_log_line l;
 *         zt_log_begin(&l, ZT_LOG_DEBUG, "proxy::outbound", "route");
 *         zt_log_str(&l, "dst.service", host);     // quoted
 *         zt_log_raw(&l, "dst.addr", addr_text);   // bare
 *         zt_log_u64(&l, "bytes", n);
 *         zt_log_end(&l);
 *     }
 *     zt_log_info("app", "received signal %s", name);   // no fields
 *
 * Scopes are targets without "ztunnel::" ("proxy::inbound", "xds::client", "access"); the module scopes get that prefix
 * where the spec says so (JSON, filter matching). Thread: any. */
#ifndef ZT_BASE_LOG_H
#define ZT_BASE_LOG_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum zt_log_level { ZT_LOG_OFF = 0, ZT_LOG_ERROR, ZT_LOG_WARN, ZT_LOG_INFO, ZT_LOG_DEBUG, ZT_LOG_TRACE };

#define ZT_LOG_LINE_MAX 8192      /* bytes; longer lines are cut and end in "..." (the config dump line is exempt) */
#define ZT_LOG_QUEUE_BYTES 4194304 /* bytes of lines waiting for the writer */

struct zt_log_line {
    enum zt_log_level level;
    const char *scope;   /* borrowed until zt_log_end */
    const char *message; /* borrowed until zt_log_end */
    bool json, first;
};

/* Parses the filter (RUST_LOG syntax, spec/interfaces §7.1) and starts the writer. filter NULL = unset.
 * Errors: ZT_INVALID with a text. Call once, before any thread. */
enum zt_err zt_log_start(const char *filter, bool json, struct zt_error *err);
/* Flushes for at most a second and stops the writer. */
void zt_log_stop(void);
/* Replaces the filter: start-up filter or current one, then the comma-joined directives of add (may be NULL).
 * Thread: control. Errors: ZT_INVALID, the filter stays. */
enum zt_err zt_log_filter_change(bool from_startup, const char *add, struct zt_error *err);
/* The filter as /logging prints it. buf is NUL-terminated. */
void zt_log_filter_render(char *buf, size_t size);
size_t zt_log_queued_bytes(void); /* waiting for the writer now */
uint64_t zt_log_dropped(void); /* lines lost because the queue was full */

/* Would a line of this level and scope be written? Ask before collecting fields. */
bool zt_log_on(enum zt_log_level level, const char *scope);

/* Starts a line in the calling thread's buffer: lines of one thread do not nest. message: NULL for an event without one. */
void zt_log_begin(struct zt_log_line *l, enum zt_log_level level, const char *scope, const char *message);
/* Adds a span, outermost first ("proxy", "wl", "ns/name"); right after begin only. key NULL: no field. The same name again
 * adds a field to the span: inbound{id=.. peer=..}. */
void zt_log_span(struct zt_log_line *l, const char *name, const char *key, const char *value);
/* Fields. Control characters in a value are escaped in every form, blanks in a raw one too: text of a peer can neither start a
 * line nor a field. */
void zt_log_str(struct zt_log_line *l, const char *key, const char *value); /* NULL is left out */
void zt_log_raw(struct zt_log_line *l, const char *key, const char *value); /* NULL is left out */
void zt_log_u64(struct zt_log_line *l, const char *key, uint64_t value);
void zt_log_bool(struct zt_log_line *l, const char *key, bool value);
void zt_log_end(struct zt_log_line *l);

/* A message without fields, of any length that fits the queue. Newlines in the text are kept only when fmt itself has one (the
 * configuration dump: "running with config: \n%s"); otherwise they are escaped like all control characters. */
__attribute__((format(printf, 3, 4))) void zt_log_text(enum zt_log_level level, const char *scope,
                                                       const char *fmt, ...);
#define zt_log_error(scope, ...) ZT_LOG_IF(ZT_LOG_ERROR, scope, __VA_ARGS__)
#define zt_log_warn(scope, ...) ZT_LOG_IF(ZT_LOG_WARN, scope, __VA_ARGS__)
#define zt_log_info(scope, ...) ZT_LOG_IF(ZT_LOG_INFO, scope, __VA_ARGS__)
#define zt_log_debug(scope, ...) ZT_LOG_IF(ZT_LOG_DEBUG, scope, __VA_ARGS__)
#define ZT_LOG_IF(level, scope, ...)                                                               \
    do {                                                                                           \
        if (zt_log_on((level), (scope)))                                                           \
            zt_log_text((level), (scope), __VA_ARGS__);                                            \
    } while (0)

/* A gate for peer-caused lines: at most `burst` a second pass; the first line after a quiet second tells how many were
 * held back. Embed one per kind of line. Thread: owner. */
struct zt_log_gate {
    uint64_t second;
    uint32_t passed, suppressed;
};
/* True when the line may be written; *suppressed is how many were not since the last one (field "suppressed"). */
bool zt_log_gate_pass(struct zt_log_gate *g, uint32_t burst, uint32_t *suppressed);

#endif
