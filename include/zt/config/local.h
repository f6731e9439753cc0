/* The local xDS source: a YAML file (or text) of workloads, services and policies (spec/controlplane §5), read by libyaml events
 * into a complete batch of origin FILE. Any mistake refuses the whole document with file, line, column and reason. */
#ifndef ZT_CONFIG_LOCAL_H
#define ZT_CONFIG_LOCAL_H

#include "zt/loop/loop.h"
#include "zt/state/store.h"

#define ZT_LOCAL_BYTES_MAX (512u * 1024 * 1024)

/* Parses text (borrowed). name appears in errors: "<name>:<line>:<column>: reason". Errors: ZT_INVALID. Thread: any. */
enum zt_err zt_local_parse(const char *name, const char *text, size_t len, struct zt_batch **out, struct zt_error *err);
/* The same from a file. */
enum zt_err zt_local_load(const char *path, struct zt_batch **out, struct zt_error *err);

/* Watches the file (its directory: editors rename, ConfigMaps swap links) and loads every change on a thread of its own, off every
 * loop. */
struct zt_local_watch;
/* result runs on the loop: batch (taken by the callee) or NULL with err (what worked before goes on). */
typedef void (*zt_local_result_fn)(void *arg, struct zt_batch *batch, const struct zt_error *err);
enum zt_err zt_local_watch_start(struct zt_loop *l, const char *path, zt_local_result_fn result, void *arg,
                                 struct zt_local_watch **out, struct zt_error *err);
void zt_local_watch_stop(struct zt_local_watch *w); /* NULL is legal; result does not run afterwards */

#endif
