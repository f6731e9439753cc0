/* The inside of a loop: loop.c runs it, buf.c keeps its buffers, pipe.c its pipes. */
#ifndef ZT_LOOP_LOOP_IMPL_H
#define ZT_LOOP_LOOP_IMPL_H

#include "zt/loop/loop.h"
#include <pthread.h>
#include <stdatomic.h>

#define ZT_BUF_CLASSES 3

/* A free buffer is its own list node. */
struct zt_free_buf {
    struct zt_free_buf *next;
};

struct zt_loop_bufs {
    struct zt_free_buf *free[ZT_BUF_CLASSES];
    _Atomic size_t free_bytes; /* over all classes; at most ZT_BUF_FREE_MAX_BYTES. The owner alone writes */
    _Atomic size_t lent_bytes;
};

struct zt_loop {
    const char *name;
    struct ev_loop *ev;
    ev_async wake;
    ev_prepare prepare;
    ev_check check;
    ev_idle busy; /* active while tasks wait */
    uint64_t now_ms;
    struct zt_link tasks;
    struct zt_link deferred;
    struct zt_loop_bufs bufs;
    struct zt_link pipes; /* zt_pipe.link: the free ones */
    unsigned n_pipes;     /* free and lent; at most ZT_PIPES_MAX */
    ev_timer pipe_timer;  /* active while a pipe is free */
    _Atomic pthread_t owner;
    pthread_t thread;
    _Atomic bool stop;
    pthread_mutex_t mailbox_lock;
    struct zt_link mailbox;
};

/* Runs the messages posted so far; false when there were none. Thread: owner. */
bool zt_loop_mailbox_run(struct zt_loop *l);

/* The contracts of zt_loop_buf_get and _put. Thread: owner. */
uint8_t *zt_loop_bufs_get(struct zt_loop_bufs *b, enum zt_buf_class c);
void zt_loop_bufs_put(struct zt_loop_bufs *b, uint8_t *buf, enum zt_buf_class c);
void zt_loop_bufs_free(struct zt_loop_bufs *b);
void zt_loop_pipes_init(struct zt_loop *l);
void zt_loop_pipes_free(struct zt_loop *l); /* the free ones */

#endif
