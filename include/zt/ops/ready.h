/* Readiness: a set of named tasks that must be complete (spec/interfaces §5), and the server of 15021.
 * The set is thread-safe: control completes, worker 0 answers, so a busy control loop does not fail a probe. */
#ifndef ZT_OPS_READY_H
#define ZT_OPS_READY_H

#include "zt/loop/loop.h"
#include "zt/base/str.h"

#define ZT_READY_TASKS_MAX 16
#define ZT_READY_WHY_MAX 512 /* bytes, NUL included */

#define ZT_READY_STATE "state manager"
#define ZT_READY_PROXY "proxy"
#define ZT_READY_DNS "dns proxy"
#define ZT_READY_PODS "workload proxy manager"

struct zt_ready;

/* start_ms: the monotonic time that completion lines count from. Returns owned. */
struct zt_ready *zt_ready_new(uint64_t start_ms);
void zt_ready_free(struct zt_ready *r);
/* Makes a task pending; one that is pending already stays so. name is borrowed (forever). Thread: any. */
void zt_ready_pend(struct zt_ready *r, const char *name);
/* Says in one line why a pending task is not complete; the answer's body and zt_ready_why give it. "" = nothing to say. Copied, cut at
 * its limit; lost when the task completes. Thread: any. */
void zt_ready_explain(struct zt_ready *r, const char *name, const char *why);
/* Completes a task and logs it; one that is not pending is left alone. Thread: any. */
void zt_ready_complete(struct zt_ready *r, const char *name);
/* True when nothing is pending; otherwise the pending names, sorted, joined with ", ", are appended to pending (may be NULL).
 * Thread: any. */
bool zt_ready_check(struct zt_ready *r, struct zt_str *pending);
/* Appends a line "<name>: <why>" for every pending task that was explained. Thread: any. */
void zt_ready_why(struct zt_ready *r, struct zt_str *lines);

/* The server. Takes fd (listening) and serves it on worker's loop, which must run; borrows r until zt_ready_server_free.
 * Thread: control. Errors: ZT_IO. */
struct zt_ready_server;
enum zt_err zt_ready_serve(struct zt_ready *r, struct zt_loop *worker, int fd, const char *address,
                           struct zt_ready_server **out, struct zt_error *err);
/* Closes the listener soon; returns at once. Thread: control. */
void zt_ready_server_drain(struct zt_ready_server *s);
/* Waits until the worker has let go of it; the loop must still run. NULL is legal. Thread: control. */
void zt_ready_server_free(struct zt_ready_server *s);

#endif
