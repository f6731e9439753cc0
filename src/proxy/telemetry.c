/* The traffic metrics and their labels (spec/dataplane §11.2, spec/interfaces §6.2 and §6.3). A connection resolves its label set when
 * it opens and once more when it closes with another flag; nothing here runs per chunk. */
#include "proxy_impl.h"

enum { /* the order on the wire */
    L_REPORTER,
    L_SRC_WORKLOAD, L_SRC_CANONICAL_SERVICE, L_SRC_CANONICAL_REVISION, L_SRC_NAMESPACE, L_SRC_PRINCIPAL, L_SRC_APP,
    L_SRC_VERSION, L_SRC_CLUSTER,
    L_DST_SERVICE, L_DST_SERVICE_NAMESPACE, L_DST_SERVICE_NAME,
    L_DST_WORKLOAD, L_DST_CANONICAL_SERVICE, L_DST_CANONICAL_REVISION, L_DST_NAMESPACE, L_DST_PRINCIPAL, L_DST_APP,
    L_DST_VERSION, L_DST_CLUSTER,
    L_PROTOCOL, L_FLAGS, L_SECURITY,
    L_SRC_REGION, L_SRC_ZONE, L_DST_REGION, L_DST_ZONE,
    L_N,
};

static const char *const traffic_labels[L_N] = {
    "reporter",
    "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
    "source_principal", "source_app", "source_version", "source_cluster",
    "destination_service", "destination_service_namespace", "destination_service_name",
    "destination_workload", "destination_canonical_service", "destination_canonical_revision",
    "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
    "destination_cluster",
    "request_protocol", "response_flags", "connection_security_policy",
    "source_region", "source_zone", "destination_region", "destination_zone",
};

#define TRAFFIC_FAMILY(var, name_, help_, unit_)                                                                        \
    static const struct zt_metric_family var = {                                                                        \
        .name = name_, .help = help_, .unit = unit_, .type = ZT_METRIC_COUNTER, .labels = traffic_labels, .n_labels = L_N}

TRAFFIC_FAMILY(family_opened, "istio_tcp_connections_opened", "The total number of TCP connections opened.", NULL);
TRAFFIC_FAMILY(family_closed, "istio_tcp_connections_closed", "The total number of TCP connections closed.", NULL);
TRAFFIC_FAMILY(family_received, "istio_tcp_received_bytes",
               "The size of total bytes received during request in case of a TCP connection.", NULL);
TRAFFIC_FAMILY(family_sent, "istio_tcp_sent_bytes",
               "The size of total bytes sent during response in case of a TCP connection.", NULL);
TRAFFIC_FAMILY(family_failed, "istio_tcp_connections_failed",
               "The total number of TCP connections that failed to establish or were terminated (unstable).", NULL);

static const char *const reporter_label[] = {"reporter"};
static const struct zt_metric_family family_sockets = {
    .name = "istio_tcp_sockets_open",
    .help = "The current number of open accepted TCP sockets (unstable).",
    .type = ZT_METRIC_GAUGE,
    .labels = reporter_label,
    .n_labels = 1,
};

static const char *const on_demand_labels[] = {
    "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace", "source_principal",
    "source_app", "source_version", "source_cluster", "hostname",
};
static const struct zt_metric_family family_on_demand = {
    .name = "istio_on_demand_dns",
    .help = "The total number of requests that needed the address of a hostname from DNS (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = on_demand_labels,
    .n_labels = sizeof(on_demand_labels) / sizeof(on_demand_labels[0]),
};

static const struct zt_metric_family family_failovers = {
    .name = "ztunneld_outbound_failovers",
    .help = "Outbound connections that moved on to another endpoint because one could not be dialled (unstable).",
    .type = ZT_METRIC_COUNTER,
};

static const struct zt_metric_family family_revoked = {
    .name = "istio_crl_policy_rejections",
    .help = "The total number of connections rejected by certificate revocation lists (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = reporter_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_untracked = {
    .name = "istio_crl_untracked_connections",
    .help = "The total number of connections that could not be tracked for certificate revocation (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = reporter_label,
    .n_labels = 1,
};

void zt_conn_register_metrics(struct zt_metrics *m)
{
    zt_metrics_register(m, &family_failovers);
    zt_metrics_register(m, &family_opened);
    zt_metrics_register(m, &family_closed);
    zt_metrics_register(m, &family_received);
    zt_metrics_register(m, &family_sent);
    zt_metrics_register(m, &family_failed);
    zt_metrics_register(m, &family_sockets);
    zt_metrics_register(m, &family_on_demand);
    zt_metrics_register(m, &family_revoked);
    zt_metrics_register(m, &family_untracked);
    zt_limits_register_metrics(m);
    zt_vitals_register_metrics(m);
}

static void count_reporter(struct zt_metrics_shard *s, const struct zt_metric_family *f, bool source, unsigned n)
{
    const char *value = source ? "source" : "destination";
    if (!s || !n)
        return;
    struct zt_metric_series *series = zt_metric_series_get(s, f, &value, 1);
    zt_metric_add(series, n);
    zt_metric_series_put(series);
}

void zt_telemetry_revoked(struct zt_metrics_shard *s, bool source, unsigned n)
{
    count_reporter(s, &family_revoked, source, n);
}

void zt_telemetry_untracked(struct zt_metrics_shard *s, bool source)
{
    count_reporter(s, &family_untracked, source, 1);
}

struct zt_metric_series *zt_conn_sockets_gauge(struct zt_metrics_shard *s, bool source)
{
    const char *value = source ? "source" : "destination";
    return zt_metric_series_get(s, &family_sockets, &value, 1);
}

void zt_telemetry_failover(struct zt_worker *w)
{
    struct zt_metric_series *s = zt_metric_series_get(w->shard, &family_failovers, NULL, 0);
    zt_metric_add(s, 1);
    zt_metric_series_put(s);
}

static const char *known(const char *s)
{
    return s && *s ? s : "unknown";
}

/* A record describes a side: app and version repeat the canonical name and revision. */
static void label_workload(const char **v, int first, const struct zt_workload *w)
{
    v[first] = known(w->workload_name);
    v[first + 1] = known(w->canonical_name);
    v[first + 2] = known(w->canonical_revision);
    v[first + 3] = known(w->ns);
    v[first + 5] = known(w->canonical_name);
    v[first + 6] = known(w->canonical_revision);
    v[first + 7] = known(w->cluster_id);
}

void zt_telemetry_resolved(const struct zt_pod *pod, const struct zt_workload *src, const char *hostname)
{
    const char *v[9];
    char principal[ZT_IDENTITY_MAX];
    label_workload(v, 0, src);
    v[4] = zt_workload_identity(src, principal) ? principal : "unknown";
    v[8] = hostname;
    struct zt_metric_series *s = zt_metric_series_get(pod->w->shard, &family_on_demand, v, 9);
    zt_metric_add(s, 1);
    zt_metric_series_put(s);
}

/* Baggage does: app is the workload's name. */
static void label_baggage(const char **v, int first, const struct zt_baggage *b)
{
    v[first] = known(b->workload_name);
    v[first + 1] = known(b->service_name);
    v[first + 2] = known(b->service_version);
    v[first + 3] = known(b->ns);
    v[first + 5] = known(b->workload_name);
    v[first + 6] = known(b->service_version);
    v[first + 7] = known(b->cluster);
}

/* Fills v; dst_principal is storage for the destination's identity. Returns how many labels the series has. */
static unsigned fill_labels(const struct zt_conn *c, const char *flags, const char *v[static L_N],
                            char dst_principal[static ZT_IDENTITY_MAX])
{
    for (int i = 0; i < L_N; i++)
        v[i] = "unknown";
    v[L_REPORTER] = c->flow == ZT_FLOW_OUTBOUND ? "source" : "destination";
    v[L_PROTOCOL] = "tcp";
    v[L_FLAGS] = flags;
    v[L_SECURITY] = c->mtls ? "mutual_tls" : "unknown";
    /* Baggage stands for a source without a record, and for whom a gateway chose. */
    const struct zt_baggage *src = !c->src_workload && c->baggage ? &c->baggage->b : NULL;
    const struct zt_baggage *dst = c->flow == ZT_FLOW_OUTBOUND && c->baggage ? &c->baggage->b : NULL;
    if (c->src_workload)
        label_workload(v, L_SRC_WORKLOAD, c->src_workload);
    else if (src)
        label_baggage(v, L_SRC_WORKLOAD, src);
    if (c->mtls)
        v[L_SRC_PRINCIPAL] = known(c->src_identity);
    if (c->dst_service) {
        v[L_DST_SERVICE] = known(c->dst_service->hostname);
        v[L_DST_SERVICE_NAMESPACE] = known(c->dst_service->ns);
        v[L_DST_SERVICE_NAME] = known(c->dst_service->name);
    }
    if (dst)
        label_baggage(v, L_DST_WORKLOAD, dst);
    else if (c->dst_workload)
        label_workload(v, L_DST_WORKLOAD, c->dst_workload);
    if (c->protocol == ZT_CONN_DOUBLE_HBONE)
        v[L_DST_PRINCIPAL] = known(c->dst_identity);
    else if (c->dst_workload && zt_workload_identity(c->dst_workload, dst_principal))
        v[L_DST_PRINCIPAL] = dst_principal;
    if (!c->src_workload && !c->baggage && !c->dst_workload)
        return L_SRC_REGION; /* neither side is described: no locality labels */
    if (c->src_workload || src) {
        v[L_SRC_REGION] = known(src ? src->region : c->src_workload->region);
        v[L_SRC_ZONE] = known(src ? src->zone : c->src_workload->zone);
    }
    if (c->dst_workload || dst) {
        v[L_DST_REGION] = known(dst ? dst->region : c->dst_workload->region);
        v[L_DST_ZONE] = known(dst ? dst->zone : c->dst_workload->zone);
    }
    return L_N;
}

void zt_telemetry_series(const struct zt_conn *c, const char *flags, struct zt_traffic_series *out)
{
    const char *v[L_N];
    char principal[ZT_IDENTITY_MAX];
    unsigned n = fill_labels(c, flags, v, principal);
    struct zt_metrics_shard *s = c->pod->w->shard;
    out->opened = zt_metric_series_get(s, &family_opened, v, n);
    out->received = zt_metric_series_get(s, &family_received, v, n);
    out->sent = zt_metric_series_get(s, &family_sent, v, n);
}

void zt_telemetry_closed(const struct zt_conn *c, const char *flags)
{
    const char *v[L_N];
    char principal[ZT_IDENTITY_MAX];
    unsigned n = fill_labels(c, flags, v, principal);
    struct zt_metrics_shard *s = c->pod->w->shard;
    struct zt_metric_series *closed = zt_metric_series_get(s, &family_closed, v, n);
    zt_metric_add(closed, 1);
    zt_metric_series_put(closed);
    if (flags[0] == '-' && !flags[1])
        return;
    struct zt_metric_series *failed = zt_metric_series_get(s, &family_failed, v, n);
    zt_metric_add(failed, 1);
    zt_metric_series_put(failed);
}
