/* Questions from control to every worker at once. Private to src/proxy. */
#ifndef ZT_PROXY_ASK_H
#define ZT_PROXY_ASK_H

#include "proxy_impl.h"

/* on_worker runs on each worker, on_done on control when all have answered, or when the proxy stops first. The parts come home in any
 * case, possibly after the proxy is gone. */
struct zt_ask;
struct zt_ask_part {
    struct zt_msg msg;
    struct zt_ask *ask;
    struct zt_worker *w;
    void *result;
};
struct zt_ask {
    struct zt_link link; /* zt_proxy.asks, until on_done */
    struct zt_proxy *p;  /* not to be looked into once given up */
    unsigned n, left;
    bool given_up;
    void (*on_worker)(struct zt_ask_part *part);
    void (*on_done)(struct zt_ask *a);
    void (*free_result)(void *result); /* of a part; NULL: it has none */
    void (*result)(void);              /* whom on_done tells */
    void *arg;
    void *question; /* what on_worker may read; owned, zt_free */
    struct zt_ask_part parts[];
};

/* Fill in what is needed, then send: the ask belongs to itself from there. Thread: control. */
struct zt_ask *zt_ask_new(struct zt_proxy *p, void (*on_worker)(struct zt_ask_part *), void (*on_done)(struct zt_ask *), void *arg);
void zt_ask_send(struct zt_ask *a);
/* The workers have stopped: whoever asked is told now, while what he works with is still there. */
void zt_asks_give_up(struct zt_proxy *p);

#endif
