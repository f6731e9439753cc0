/* Between the CNI client and the data plane: what ZDS says becomes pods of the proxy, its readiness becomes a task of the node's, its
 * counters become metrics. Private to app. Thread: control. */
#ifndef ZT_APP_PODS_FEED_H
#define ZT_APP_PODS_FEED_H

#include "zt/base/metrics.h"
#include "zt/cni/pods.h"
#include "zt/ops/ready.h"
#include "zt/proxy/proxy.h"

struct zt_pods_feed;

/* Registers the workload_manager families; borrows l, ready and metrics until free. fatal runs when the CNI daemon broke the protocol.
 * Returns owned. */
struct zt_pods_feed *zt_pods_feed_new(struct zt_loop *l, const struct zt_pods_config *config, struct zt_ready *ready,
                                      struct zt_metrics *metrics, void (*fatal)(void *arg, const struct zt_error *why),
                                      void *arg);
/* Connects. proxy NULL (ENABLE_PROXY=false): pods are acknowledged and nothing is opened in them. Borrows proxy until free. */
void zt_pods_feed_start(struct zt_pods_feed *f, struct zt_proxy *proxy);
/* Drain: the ZDS connection ends, readiness stays pending. */
void zt_pods_feed_stop(struct zt_pods_feed *f);
void zt_pods_feed_free(struct zt_pods_feed *f); /* NULL is legal */
/* Borrowed (until free). */
const struct zt_pods *zt_pods_feed_pods(const struct zt_pods_feed *f);

#endif
