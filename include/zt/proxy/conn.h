/* One proxied connection, whatever the flow: who, where, counters, first error (docs/architecture.md, idea 4).
 * A flow (outbound, inbound, passthrough) embeds it. zt_conn_end writes the access line and the metrics exactly once
 * (spec/dataplane §7.3, §11; spec/interfaces §6.3, §7.5). Thread: the pod's worker. */
#ifndef ZT_PROXY_CONN_H
#define ZT_PROXY_CONN_H

#include "zt/base/metrics.h"
#include "zt/h2/hbone.h"
#include "zt/loop/loop.h"
#include "zt/state/store.h"

struct zt_pod;
struct zt_conn;

enum zt_conn_flow { ZT_FLOW_OUTBOUND, ZT_FLOW_INBOUND, ZT_FLOW_PASSTHROUGH };

struct zt_conn_ops {
    /* Ends the flow now; the flow calls zt_conn_end with why. */
    void (*abort)(struct zt_conn *c, enum zt_err why);
    /* The state store changed: a flow that waits for its workload looks again. */
    void (*state_changed)(struct zt_conn *c);
};

struct zt_conn {
    struct zt_link pod_link;
    const struct zt_conn_ops *ops;
    struct zt_pod *pod;
    uint64_t id;
    uint8_t flow;            /* enum zt_conn_flow */
    bool routed;             /* outbound: destination known, so its end is a result and no early denial */
    bool opened;             /* context known: counted and logged as opened */
    bool mtls;               /* security policy mutual_tls */
    bool judged;             /* inbound: passed authorization, to be judged again on changes */
    uint8_t protocol;        /* enum zt_conn_protocol */
    uint64_t judge_round;
    uint64_t start_ms;       /* loop time */
    struct zt_addr src;      /* the client (inbound HBONE: the TLS peer) */
    struct zt_addr original_dst; /* what the client asked for (inbound HBONE: L:15008) */
    struct zt_addr dst;      /* next hop dialled; inbound: the application's address that policy looks at */
    char *hbone_addr;        /* authority, or NULL; owned */
    char *forwarded_host;    /* inbound: host of the forwarded header, or NULL; owned */
    char *src_identity, *dst_identity; /* or NULL; owned */
    struct zt_workload *src_workload, *dst_workload; /* retained, or NULL */
    struct zt_service *dst_service;                  /* retained, or NULL */
    struct zt_baggage_parsed *baggage;               /* or NULL; owned. Inbound: describes a source that has no record. Outbound: what the far
                                                        end of a double tunnel said of itself; it replaces dst_workload, the gateway */
    /* Payload bytes: received from the client, sent to it. */
    uint64_t bytes_received, bytes_sent;
    uint64_t counted_received, counted_sent; /* already in the metrics */
    struct zt_metric_series *received, *sent;
    enum zt_err err;         /* the first error */
    char *err_text;          /* its text without the prefix, or NULL; owned */
};
enum zt_conn_protocol { ZT_CONN_TCP, ZT_CONN_HBONE, ZT_CONN_DOUBLE_HBONE };

/* Links it into the pod and gives it an id. The struct is zeroed by its maker. */
void zt_conn_init(struct zt_conn *c, struct zt_pod *pod, enum zt_conn_flow flow, const struct zt_conn_ops *ops);
/* The context is complete: counts "opened", makes the byte series, writes the debug line. */
void zt_conn_open(struct zt_conn *c);
/* Remembers the first error; err may be NULL (then only the code). Later ones are ignored. */
void zt_conn_fail(struct zt_conn *c, enum zt_err code, const struct zt_error *err);
/* The end: the access line, metrics (or the early-denial line when it was never opened), then releases everything it owns and unlinks.
 * The struct's memory stays the flow's. */
void zt_conn_end(struct zt_conn *c);
/* Outbound, before it was opened: another destination will be described. */
void zt_conn_forget_destination(struct zt_conn *c);
/* Adds what flowed since the last time to the byte series. */
void zt_conn_count(struct zt_conn *c);
/* The "connection failed" line (early denial): no metrics. */
void zt_conn_log_denied(const struct zt_addr *src, const struct zt_addr *dst, bool outbound, const char *error);
/* Registers the traffic families. Thread: control. */
void zt_conn_register_metrics(struct zt_metrics *m);
struct zt_metric_series *zt_conn_sockets_gauge(struct zt_metrics_shard *s, bool source);
/* The log text of the error: prefix and text. */
void zt_conn_error_text(const struct zt_conn *c, struct zt_str *out);

#endif
