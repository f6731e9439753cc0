/* A libev loop with what every thread of ours needs besides: a mailbox, deferred free, deferred calls, an owner check.
 * libev watchers are embedded in the structs that use them and used directly on zt_loop_ev(). An object lives and dies on
 * the loop that made it; what crosses threads is listed in docs/threading.md. */
#ifndef ZT_LOOP_LOOP_H
#define ZT_LOOP_LOOP_H

#include "zt/base/err.h"
#include "zt/base/list.h"
#include <ev.h>
#include <stdbool.h>
#include <stdint.h>

struct zt_loop;

/* A message: embed it, post it, get it back in run() on the loop's thread. Ownership moves with the message. */
struct zt_msg {
    struct zt_link mailbox_link;
    void (*run)(struct zt_msg *msg);
};

/* A call put off to the end of this iteration (before the loop sleeps). May be queued once at a time; queueing a queued
 * task does nothing; zt_task_cancel is legal at any time. */
struct zt_task {
    struct zt_link task_link;
    void (*run)(struct zt_task *task);
};

/* Memory handed over for release at the end of this iteration, after all callbacks of the turn. */
struct zt_deferred {
    struct zt_link deferred_link;
    void (*free)(struct zt_deferred *d);
};

/* name: for logs and the thread's name (15 bytes); borrowed (forever). Returns owned. */
struct zt_loop *zt_loop_new(const char *name);
/* The loop must not be running; whatever is deferred is freed, messages left are run. An object that nobody else would end then has
 * an ev_cleanup, which may close and defer but queue no task. */
void zt_loop_free(struct zt_loop *l);
struct ev_loop *zt_loop_ev(struct zt_loop *l);

/* Runs on the calling thread, which becomes the owner, until zt_loop_stop. */
void zt_loop_run(struct zt_loop *l);
/* Runs what is ready and returns. For tests. */
void zt_loop_run_once(struct zt_loop *l, bool block);
/* Starts a thread that runs the loop; it has all signals blocked. Errors: ZT_IO. */
enum zt_err zt_loop_start(struct zt_loop *l, struct zt_error *err);
/* Thread: any. The loop ends after the current iteration. */
void zt_loop_stop(struct zt_loop *l);
void zt_loop_join(struct zt_loop *l); /* after start */

/* Thread: any. Messages of one sender arrive in order. */
void zt_loop_post(struct zt_loop *l, struct zt_msg *msg);
/* Thread: owner. */
void zt_loop_soon(struct zt_loop *l, struct zt_task *task);
void zt_task_cancel(struct zt_task *task);
void zt_loop_defer_free(struct zt_loop *l, struct zt_deferred *d);
/* The convenience form: zt_free(p) at the end of the iteration. */
void zt_loop_defer_zt_free(struct zt_loop *l, void *p);
bool zt_loop_is_owner(const struct zt_loop *l);
#define zt_loop_assert_owner(l) ZT_ASSERT(zt_loop_is_owner(l))
/* The loop's cached monotonic time in ms: cheap, at most one iteration old. Thread: owner. */
uint64_t zt_loop_now_ms(const struct zt_loop *l);

/* I/O buffers: a capped free list per loop, so that an idle connection holds none. Three sizes; a taken buffer is returned
 * by zt_loop_buf_put. Thread: owner. */
enum zt_buf_class { ZT_BUF_SMALL, ZT_BUF_MEDIUM, ZT_BUF_LARGE };
#define ZT_BUF_SMALL_BYTES (18 * 1024)   /* holds one whole TLS record */
#define ZT_BUF_MEDIUM_BYTES (66 * 1024)
#define ZT_BUF_LARGE_BYTES (264 * 1024)
#define ZT_BUF_FREE_MAX_BYTES (4 * 1024 * 1024) /* kept per loop; more is given back to the allocator */
uint8_t *zt_loop_buf_get(struct zt_loop *l, enum zt_buf_class c); /* returns owned; not zeroed */
void zt_loop_buf_put(struct zt_loop *l, uint8_t *buf, enum zt_buf_class c);
size_t zt_buf_class_bytes(enum zt_buf_class c);
/* Gives what is free (pipes too) back to the system; what is taken stays taken. After a peak. Thread: owner. */
/* Bytes of buffers lent out and kept free. Thread: any. */
void zt_loop_buf_bytes(const struct zt_loop *l, size_t *lent, size_t *kept);
void zt_loop_buf_trim(struct zt_loop *l);

/* Pipes for splice(2), a capped number per loop: whoever gets none copies. Thread: owner. */
struct zt_pipe {
    struct zt_link link;
    int read_fd, write_fd;
    size_t held; /* bytes in it; the borrower keeps count */
};
#define ZT_PIPES_MAX 16             /* per loop, two descriptors each */
#define ZT_PIPE_BYTES (1024 * 1024) /* asked for; the system may give less */
struct zt_pipe *zt_loop_pipe_get(struct zt_loop *l); /* returns owned, empty; NULL: none is to be had */
void zt_loop_pipe_put(struct zt_loop *l, struct zt_pipe *p); /* takes p; with bytes in it, it is closed */

#endif
