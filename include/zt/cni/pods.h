/* The daemon's pods: what ZDS says about them, and a proxy for each (spec/inpod §1.3-1.7).
 *
 * Connects to the CNI daemon's socket for as long as it lives, keeps the table of pods across
 * connections, reconciles it with each connection's snapshot, retries pods whose listeners could
 * not be opened, and says when the node is ready. The proxies themselves belong to whoever is
 * behind the callbacks. Thread: control. */
#ifndef ZT_CNI_PODS_H
#define ZT_CNI_PODS_H

#include "zt/cni/zds.h"
#include "zt/net/netns.h"

/* Up and pending together; an Add beyond it is refused and not retried. */
#define ZT_PODS_MAX 4096
#define ZT_PODS_RETRY_MS 5000
#define ZT_PODS_WHY_MAX 512 /* bytes, NUL included */

struct zt_pods;

/* Embed it. No callback runs from inside a function below; add and remove must not call those
 * either. */
struct zt_pods_owner {
    /* Opens the pod's listeners in ns and starts serving. All arguments are borrowed (during the
     * call; retain ns). An error means nothing was left open: the pod is pending and add is called
     * again. Must not wait for anything: the CNI daemon gives 5 s. */
    enum zt_err (*add)(struct zt_pods_owner *o, const char *uid, const struct zt_pod_info *info,
                       struct zt_netns *ns, struct zt_error *err);
    /* Ends the pod's proxy at once; uid was added before. */
    void (*remove)(struct zt_pods_owner *o, const char *uid);
    /* Readiness, or what stands in its way, changed. It starts as not ready; runs only on changes.
     * Ready: a snapshot was received on the present connection, and no pod is pending. why: one
     * line about the pods that are; "" with none. */
    void (*on_ready)(struct zt_pods_owner *o, bool ready, const char *why);
    /* A pod could not be started; why says no pod's name. NULL is legal. */
    void (*on_start_failed)(struct zt_pods_owner *o, const struct zt_error *why);
    /* The CNI daemon broke the protocol: the process is to exit with 1 (a restart gives a clean
     * snapshot). Last callback. */
    void (*on_fatal)(struct zt_pods_owner *o, const struct zt_error *why);
};

struct zt_pods_config {
    const char *socket_path; /* INPOD_UDS; copied */
    unsigned retry_ms;       /* 0 = ZT_PODS_RETRY_MS */
};

/* owner is borrowed (until free). Nothing happens before start. Returns owned. */
struct zt_pods *zt_pods_new(struct zt_loop *l, const struct zt_pods_config *c,
                            struct zt_pods_owner *owner);
/* Connects, and keeps connecting. To be called once the configuration is there (spec/inpod §1.3
 * point 1). */
void zt_pods_start(struct zt_pods *p);
/* Drain: the ZDS connection ends, nothing is read any more, pods stay as they are; on_ready(false)
 * follows from the loop. */
void zt_pods_stop(struct zt_pods *p);
/* Does not call remove. NULL is legal. */
void zt_pods_free(struct zt_pods *p);

/* A snapshot was received on the present connection and no pod is pending: what on_ready says,
 * without its delay. */
bool zt_pods_ready(const struct zt_pods *p);

/* The metrics of spec/inpod §2.10. */
struct zt_pods_stats {
    unsigned n_active;             /* gauge: pods up */
    unsigned n_pending;            /* gauge: pods whose start failed and awaits its retry */
    uint64_t n_started, n_stopped; /* counters: proxies started and ended */
};
struct zt_pods_stats zt_pods_stats(const struct zt_pods *p);

/* The admin dump, sorted by uid. pending: why the pod could not be started, NULL when it is up. fn
 * must not change the table; text is borrowed (during the call). */
typedef void (*zt_pods_each_fn)(void *arg, const char *uid, const struct zt_pod_info *info,
                                const char *pending);
void zt_pods_each(const struct zt_pods *p, zt_pods_each_fn fn, void *arg);

#endif
