/* One proxied connection: its record, its access line, its share of the metrics.
 *
 * Life:  init -> (early end: one "connection failed" line, no metrics)
 *             -> open (counted, "connection opened") -> bytes -> end ("connection complete", counted once)
 *
 * The flow that embeds the record owns its memory; this file owns what hangs off it. */
#include "proxy_impl.h"

#include "zt/base/log.h"
#include <string.h>

void zt_conn_init(struct zt_conn *c, struct zt_pod *pod, enum zt_conn_flow flow, const struct zt_conn_ops *ops)
{
    struct zt_worker *w = pod->w;
    c->ops = ops;
    c->pod = pod;
    c->flow = (uint8_t)flow;
    /* The worker's number in the top byte keeps ids unique without sharing a counter. */
    c->id = ((uint64_t)w->index << 56) | ++w->next_conn_id;
    c->start_ms = zt_loop_now_ms(w->loop);
    zt_list_push_back(&pod->conns, &c->pod_link);
    pod->n_conns++;
    zt_worker_conn_began(w);
}

void zt_conn_fail(struct zt_conn *c, enum zt_err code, const struct zt_error *err)
{
    if (c->err != ZT_OK || code == ZT_OK)
        return;
    c->err = code;
    if (err && err->text[0])
        c->err_text = zt_strdup(err->text);
    zt_trace(c, "error: %s%s", zt_err_prefix(code), c->err_text ? c->err_text : "");
    if (code == ZT_POLICY_REJECTED || code == ZT_POLICY_CHANGED)
        zt_record_denial(c, code, err);
}

void zt_conn_error_text(const struct zt_conn *c, struct zt_str *out)
{
    zt_str_add(out, zt_err_prefix(c->err));
    if (c->err_text)
        zt_str_add(out, c->err_text);
}

/* ---- the access log (spec/interfaces §7.5) ---- */

static const char *or_null(const char *s)
{
    return s && *s ? s : NULL;
}

/* The pod's name, else the canonical service. */
static const char *workload_log_name(const struct zt_workload *w)
{
    return *w->name ? w->name : or_null(w->canonical_name);
}

/* One end as the log names it; NULLs where nothing is known. */
struct end_names {
    const char *workload, *ns, *cluster;
};

static struct end_names names_of_record(const struct zt_workload *w)
{
    if (!w)
        return (struct end_names){0};
    return (struct end_names){workload_log_name(w), or_null(w->ns), or_null(w->cluster_id)};
}

static struct end_names names_of_baggage(const struct zt_baggage *b)
{
    return (struct end_names){or_null(b->workload_name) ? b->workload_name : or_null(b->service_name), or_null(b->ns),
                              or_null(b->cluster)};
}

static void log_source(struct zt_log_line *l, const struct zt_conn *c)
{
    bool by_baggage = !c->src_workload && c->baggage;
    struct end_names n = by_baggage ? names_of_baggage(&c->baggage->b) : names_of_record(c->src_workload);
    zt_log_str(l, "src.workload", n.workload);
    zt_log_str(l, "src.namespace", n.ns);
    if (c->mtls)
        zt_log_str(l, "src.identity", or_null(c->src_identity));
    zt_log_str(l, "src.cluster", n.cluster);
}

static void log_destination(struct zt_log_line *l, const struct zt_conn *c)
{
    char addr[ZT_ADDR_TEXT_MAX];
    const struct zt_addr *shown = c->flow == ZT_FLOW_INBOUND ? &c->original_dst : &c->dst;
    zt_log_raw(l, "dst.addr", zt_addr_format(shown, addr));
    zt_log_raw(l, "dst.hbone_addr", c->hbone_addr);
    if (c->dst_service)
        zt_log_str(l, "dst.service", or_null(c->dst_service->hostname));
    bool by_baggage = c->flow == ZT_FLOW_OUTBOUND && c->baggage;
    struct end_names n = by_baggage ? names_of_baggage(&c->baggage->b) : names_of_record(c->dst_workload);
    zt_log_str(l, "dst.workload", n.workload);
    zt_log_str(l, "dst.namespace", n.ns);
    if (c->mtls)
        zt_log_str(l, "dst.identity", or_null(c->dst_identity));
    zt_log_str(l, "dst.cluster", n.cluster);
}

static void log_access(const struct zt_conn *c, enum zt_log_level level, const char *message, bool complete)
{
    if (!zt_log_on(level, "access"))
        return;
    struct zt_log_line l;
    char addr[ZT_ADDR_TEXT_MAX];
    bool outbound = c->flow == ZT_FLOW_OUTBOUND;
    zt_log_begin(&l, level, "access", message);
    zt_log_raw(&l, "src.addr", zt_addr_format(&c->src, addr));
    log_source(&l, c);
    log_destination(&l, c);
    zt_log_str(&l, "direction", outbound ? "outbound" : "inbound");
    if (complete) {
        zt_log_u64(&l, "bytes_sent", outbound ? c->bytes_received : c->bytes_sent);
        zt_log_u64(&l, "bytes_recv", outbound ? c->bytes_sent : c->bytes_received);
        char duration[32];
        zt_fmt(duration, sizeof(duration), "%llums",
               (unsigned long long)(zt_loop_now_ms(c->pod->w->loop) - c->start_ms));
        zt_log_str(&l, "duration", duration);
    }
    if (complete && c->err != ZT_OK) {
        struct zt_str text;
        zt_str_init(&text, 2 * ZT_ERROR_TEXT_MAX);
        zt_conn_error_text(c, &text);
        zt_log_str(&l, "error", zt_str_cstr(&text));
        zt_str_fini(&text);
    }
    zt_log_end(&l);
}

void zt_conn_log_denied(const struct zt_addr *src, const struct zt_addr *dst, bool outbound, const char *error)
{
    if (!zt_log_on(ZT_LOG_WARN, "access"))
        return;
    struct zt_log_line l;
    char text[ZT_ADDR_TEXT_MAX];
    zt_log_begin(&l, ZT_LOG_WARN, "access", "connection failed");
    zt_log_raw(&l, "src.addr", zt_addr_format(src, text));
    zt_log_raw(&l, "dst.addr", zt_addr_format(dst, text));
    zt_log_str(&l, "direction", outbound ? "outbound" : "inbound");
    zt_log_str(&l, "error", error);
    zt_log_end(&l);
}

/* ---- open and end ---- */

void zt_conn_open(struct zt_conn *c)
{
    ZT_ASSERT(!c->opened);
    c->opened = true;
    struct zt_traffic_series s;
    zt_telemetry_series(c, "-", &s);
    zt_metric_add(s.opened, 1);
    zt_metric_series_put(s.opened);
    c->received = s.received;
    c->sent = s.sent;
    log_access(c, ZT_LOG_DEBUG, "connection opened", false);
}

void zt_conn_count(struct zt_conn *c)
{
    if (!c->opened)
        return;
    if (c->bytes_received != c->counted_received)
        zt_metric_add(c->received, c->bytes_received - c->counted_received);
    if (c->bytes_sent != c->counted_sent)
        zt_metric_add(c->sent, c->bytes_sent - c->counted_sent);
    c->counted_received = c->bytes_received;
    c->counted_sent = c->bytes_sent;
}

static void end_opened(struct zt_conn *c)
{
    zt_conn_count(c);
    zt_metric_series_put(c->received);
    zt_metric_series_put(c->sent);
    zt_telemetry_closed(c, zt_err_flag(c->err));
    log_access(c, c->err == ZT_OK ? ZT_LOG_INFO : ZT_LOG_ERROR, "connection complete", true);
}

static void end_denied(struct zt_conn *c)
{
    struct zt_str text;
    zt_str_init(&text, 2 * ZT_ERROR_TEXT_MAX);
    zt_conn_error_text(c, &text);
    const struct zt_addr *shown = c->flow == ZT_FLOW_INBOUND || !c->dst.port ? &c->original_dst : &c->dst;
    zt_conn_log_denied(&c->src, shown, c->flow == ZT_FLOW_OUTBOUND, zt_str_cstr(&text));
    zt_str_fini(&text);
}

void zt_conn_forget_destination(struct zt_conn *c)
{
    if (c->flow == ZT_FLOW_OUTBOUND && c->dst_workload)
        zt_store_endpoint_closed(c->pod->w->proxy->store, c->dst_workload->uid);
    zt_workload_unref(c->dst_workload);
    c->dst_workload = NULL;
    zt_service_unref(c->dst_service);
    c->dst_service = NULL;
    zt_free(c->hbone_addr);
    c->hbone_addr = NULL;
    zt_free(c->dst_identity);
    c->dst_identity = NULL;
}

void zt_conn_end(struct zt_conn *c)
{
    struct zt_pod *pod = c->pod;
    if (c->routed && !c->opened)
        zt_conn_open(c);
    if (c->opened)
        end_opened(c);
    else if (c->err != ZT_OK)
        end_denied(c);
    zt_trace(c, "closed after %llu ms, %llu bytes from the client, %llu to it",
             (unsigned long long)(zt_loop_now_ms(pod->w->loop) - c->start_ms), (unsigned long long)c->bytes_received,
             (unsigned long long)c->bytes_sent);
    zt_list_remove(&c->pod_link);
    zt_limits_connection_end(&pod->limits, c->flow == ZT_FLOW_OUTBOUND ? NULL : &c->src.ip, zt_loop_now_ms(pod->w->loop));
    pod->n_conns--;
    zt_workload_unref(c->src_workload);
    zt_conn_forget_destination(c);
    if (c->baggage) {
        zt_baggage_parsed_fini(c->baggage);
        zt_free(c->baggage);
    }
    zt_free(c->forwarded_host);
    zt_free(c->src_identity);
    zt_free(c->err_text);
    c->pod = NULL; /* nothing reachable may lead back here */
    zt_worker_conn_ended(pod->w);
}
