/* How a worker's tunnels fare, as metrics: open tunnels, pool hits, handshakes and their time. A handful of series per worker, held for
 * good. A NULL vitals counts nothing (tests). Thread: the worker. */
#ifndef ZT_PROXY_VITALS_H
#define ZT_PROXY_VITALS_H

#include "zt/base/metrics.h"

struct zt_vitals {
    struct zt_metric_series *tunnels[2];             /* by outbound */
    struct zt_metric_series *pool[2];                /* by hit */
    struct zt_metric_series *handshakes[2][2];       /* by client, ok */
    struct zt_metric_series *resumed[2];             /* by client */
    struct zt_metric_series *handshake_seconds[2];   /* by client */
};

/* Registers the families. Thread: control, before workers start. */
void zt_vitals_register_metrics(struct zt_metrics *m);
void zt_vitals_init(struct zt_vitals *v, struct zt_metrics_shard *s); /* Thread: any, before the worker runs */
/* A tunnel opened (by 1) or ended (by -1). */
void zt_vitals_tunnel(struct zt_vitals *v, bool outbound, int by);
/* Somebody wanted a tunnel; hit: one was open. */
void zt_vitals_pool(struct zt_vitals *v, bool hit);
/* A TLS handshake ended; started_us: when it began, zt_clock_mono_us. */
void zt_vitals_handshake(struct zt_vitals *v, bool client, bool ok, bool resumed, uint64_t started_us);

#endif
