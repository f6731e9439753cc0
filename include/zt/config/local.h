/* The local xDS source: a YAML file (or text) of workloads, services and policies (spec/controlplane §5), read by libyaml events
 * into a complete batch of origin FILE, one record at a time. Any mistake refuses the whole document with file, line, column,
 * the path of keys and the reason. */
#ifndef ZT_CONFIG_LOCAL_H
#define ZT_CONFIG_LOCAL_H

#include "zt/loop/loop.h"
#include "zt/state/store.h"

#define ZT_LOCAL_BYTES_MAX (512u * 1024 * 1024) /* of a document */
#define ZT_LOCAL_SCALAR_BYTES_MAX 4096          /* of one key or value */
#define ZT_LOCAL_DEPTH_MAX 16                   /* nested lists and maps */
#define ZT_LOCAL_LIST_MAX 65535                 /* entries of a list or map inside a record; endpoints: see below */
#define ZT_LOCAL_ENDPOINTS_MAX 1000000          /* of one service */
#define ZT_LOCAL_RECORDS_MAX 4000000            /* of a document */
#define ZT_LOCAL_SETTLE_MS 10                   /* the watch waits this long for events to stop */

/* What a document was. */
struct zt_local_info {
    uint64_t hash, bytes; /* tell one content from another */
    size_t n_workloads, n_services, n_policies;
};

/* Parses text (borrowed). name appears in errors: "<name>:<line>:<column>: <path>: reason". info may be NULL. Errors: ZT_INVALID.
 * Thread: any. */
enum zt_err zt_local_parse(const char *name, const char *text, size_t len, struct zt_batch **out,
                           struct zt_local_info *info, struct zt_error *err);
/* The same from a file, read in pieces. Errors: ZT_INVALID; ZT_IO; ZT_AGAIN when the file changed while it was read. */
enum zt_err zt_local_load(const char *path, struct zt_batch **out, struct zt_local_info *info, struct zt_error *err);

/* Watches the file (its directory: editors rename, ConfigMaps swap links) and loads every change on a thread of its own, off every
 * loop. A content seen before, good or bad, is not reported again. */
struct zt_local_watch;
/* result runs on the loop: batch (taken by the callee) with info, or NULL with err (what worked before goes on). */
typedef void (*zt_local_result_fn)(void *arg, struct zt_batch *batch, const struct zt_local_info *info,
                                   const struct zt_error *err);
/* loaded: what zt_local_load gave, borrowed (during the call), so that the same content is not loaded twice; NULL: the first load
 * is the watch's too. path is copied. Errors: ZT_IO. Thread: the loop's owner. */
enum zt_err zt_local_watch_start(struct zt_loop *l, const char *path, const struct zt_local_info *loaded,
                                 zt_local_result_fn result, void *arg, struct zt_local_watch **out, struct zt_error *err);
/* NULL is legal; a load under way is broken off and waited for; result does not run afterwards. Thread: the loop's owner. */
void zt_local_watch_stop(struct zt_local_watch *w);

#endif
