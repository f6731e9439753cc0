/* The metrics server, 15020: /metrics and /stats/prometheus (spec/interfaces §6), and the families about the process itself. */
#ifndef ZT_OPS_STATS_H
#define ZT_OPS_STATS_H

#include "zt/base/metrics.h"
#include "zt/ops/http1.h"

#define ZT_STATS_SCRAPE_MS_MAX 60000 /* a client that has not taken the document by then is cut */

/* Registers process_open_fds, process_max_fds and istio_build{component="ztunnel",tag=<tag>}. tag is copied.
 * Thread: control, before anything else is registered (order of exposition). */
void zt_stats_register_process(struct zt_metrics *m, const char *tag);
struct zt_stats {
    struct zt_metrics *metrics;
    /* Brings counters up to date before a scrape; done(done_arg) runs once, on the loop. NULL: nothing to do. */
    void (*refresh)(void *arg, void (*done)(void *done_arg), void *done_arg);
    void *arg;
};
/* Adds the two routes. Borrows st and its metrics until the server is freed and every refresh is done. */
void zt_stats_routes(struct zt_http1 *s, struct zt_stats *st);
/* Descriptors open now; also for status. Thread: any. */
unsigned zt_stats_open_fds(void);

/* Content negotiation, open for tests. accept: the Accept header's values joined with commas, or NULL. */
const char *zt_stats_content_type(const char *accept);
enum zt_encoding { ZT_ENCODING_IDENTITY, ZT_ENCODING_GZIP, ZT_ENCODING_NONE }; /* NONE: nothing acceptable, 406 */
enum zt_encoding zt_stats_encoding(const char *accept_encoding);

#endif
