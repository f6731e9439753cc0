/* What proxy.c (control) asks of a worker. */
#ifndef ZT_PROXY_WORKER_H
#define ZT_PROXY_WORKER_H

#include "proxy_impl.h"

/* A drain on its way: to the worker, and back when all its pods are idle or cut. Owned by control. */
struct zt_drain_request {
    struct zt_msg msg;
    struct zt_worker *worker;
    unsigned deadline_ms;
    void (*on_drained)(struct zt_msg *m); /* runs on control */
};

/* Makes the loop and starts its thread. Thread: control. */
enum zt_err zt_worker_init(struct zt_worker *w, struct zt_proxy *p, unsigned index, struct zt_error *err);
void zt_worker_quit(struct zt_worker *w); /* its pods are gone: the loop ends. Thread: worker */
/* After the loop's thread has been joined. Thread: control. */
void zt_worker_fini(struct zt_worker *w);
void zt_worker_state_changed(struct zt_worker *w, bool policies); /* Thread: any */
void zt_worker_crl_changed(struct zt_worker *w); /* Thread: any */
void zt_worker_drain(struct zt_worker *w, struct zt_drain_request *d); /* Thread: control */

#endif
