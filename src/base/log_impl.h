/* What the files of the log share: the filter (log_filter.c) and the queue with its writer
 * (log_queue.c). */
#ifndef ZT_BASE_LOG_IMPL_H
#define ZT_BASE_LOG_IMPL_H

#include "zt/base/log.h"
#include <stddef.h>

#define ZT_LOG_DIRECTIVES_MAX 256
#define ZT_LOG_TARGET_MAX 128 /* bytes, NUL included */

struct zt_log_directive {
    char target[ZT_LOG_TARGET_MAX]; /* empty: the default of all targets */
    enum zt_log_level level;
};

/* Sorted as it is rendered: longest target first, so that the first match is the right one. A plain
 * value. */
struct zt_log_filter {
    unsigned n;
    struct zt_log_directive directives[ZT_LOG_DIRECTIVES_MAX];
};

/* The full target of a scope: "ztunnel::" before module scopes, nothing before the special ones.
 * Returns borrowed (forever): the prefix, empty for special scopes. Thread: any. */
const char *zt_log_scope_prefix(const char *scope);
const char *zt_log_level_name(enum zt_log_level level); /* returns borrowed (forever) */

/* Adds the comma-joined directives of spec; a later one replaces an earlier one of the same target.
 * Errors: ZT_INVALID; f is then half changed, so parse into a copy. Thread: any. */
enum zt_err zt_log_filter_add(struct zt_log_filter *f, const char *spec, struct zt_error *err);
enum zt_log_level zt_log_filter_level(const struct zt_log_filter *f, const char *scope);
enum zt_log_level zt_log_filter_max(const struct zt_log_filter *f);
void zt_log_filter_text(const struct zt_log_filter *f, char *buf, size_t size);

/* Starts the writer thread. Errors: ZT_IO. Thread: main. */
enum zt_err zt_log_queue_start(struct zt_error *err);
/* Queues len bytes, a whole line; drops and counts when the queue is full. Does nothing while no
 * writer runs. Thread: any. */
void zt_log_queue_push(const char *line, size_t len);
/* Waits for the queue to drain, at most wait_ms. Thread: main. */
void zt_log_queue_stop(unsigned wait_ms);

#endif
