/* Metrics and the log line of the DNS proxy (spec/dataplane §10.5, spec/interfaces §6 and §7). The series that nearly every question
 * adds to are kept by the server; the others are looked up. */
#include "dns_impl.h"

#include <ctype.h>

static const char *const labels[] = {"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"};
enum { N_LABELS = 4 };
static const double buckets[] = {0.0005, 0.001, 0.01, 0.1, 1.0, 5.0};

#define COUNTER(var, name_, help_)                                                                                      \
    static const struct zt_metric_family var = {                                                                        \
        .name = name_, .help = help_, .type = ZT_METRIC_COUNTER, .labels = labels, .n_labels = N_LABELS}

COUNTER(requests, "istio_dns_requests", "Total number of DNS requests (unstable).");
COUNTER(upstream_requests, "istio_dns_upstream_requests", "Total number of DNS requests forwarded to upstream (unstable).");
COUNTER(upstream_failures, "istio_dns_upstream_failures", "Total number of DNS requests forwarded to upstream that failed (unstable).");
static const struct zt_metric_family upstream_duration = {
    .name = "istio_dns_upstream_request_duration_seconds",
    .help = "Total time in seconds that a DNS request took to get its answer from upstream (unstable).",
    .unit = "seconds",
    .type = ZT_METRIC_HISTOGRAM,
    .labels = labels,
    .n_labels = N_LABELS,
    .buckets = buckets,
    .n_buckets = sizeof buckets / sizeof *buckets,
};
static const struct zt_metric_family limited = {
    .name = "istio_dns_limited_requests",
    .help = "Total number of DNS requests refused because the pod had too many under way (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = labels + 2,
    .n_labels = 2,
};

void zt_dns_register_metrics(struct zt_metrics *m, bool proxy)
{
    if (!proxy)
        return;
    zt_metrics_register(m, &requests);
    zt_metrics_register(m, &upstream_requests);
    zt_metrics_register(m, &upstream_failures);
    zt_metrics_register(m, &upstream_duration);
    zt_metrics_register(m, &limited);
}

static const char *known(const char *s)
{
    return s && *s ? s : "unknown";
}

/* Types without a name share one label: a client must not be able to make sixty thousand. */
static const char *type_label(uint16_t type, char out[static 16])
{
    const char *name = zt_dns_type_name(type);
    size_t n = 0;
    for (; name && name[n] && n < 15; n++)
        out[n] = (char)tolower((unsigned char)name[n]);
    out[n] = '\0';
    return known(out);
}

static struct zt_metric_series *series(const struct zt_dns_server *s, const struct zt_metric_family *f, const struct zt_dns_query *q,
                                       bool tcp, const struct zt_workload *client)
{
    char type[16];
    const char *values[N_LABELS] = {type_label(q->type, type), tcp ? "tcp" : "udp", known(client ? client->canonical_name : NULL),
                                    known(client ? client->canonical_revision : NULL)};
    return zt_metric_series_get(s->w->shard, f, values, N_LABELS);
}

void dns_count_request(struct zt_dns_server *s, const struct zt_dns_query *q, bool tcp, const struct zt_workload *client)
{
    bool kept = client && (q->type == ZT_DNS_A || q->type == ZT_DNS_AAAA);
    struct zt_metric_series **slot = &s->series[q->type == ZT_DNS_AAAA][tcp];
    struct zt_metric_series *own = kept && *slot ? *slot : series(s, &requests, q, tcp, client);
    zt_metric_add(own, 1);
    if (kept)
        *slot = own;
    else
        zt_metric_series_put(own);
}

void dns_forget_series(struct zt_dns_server *s)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            zt_metric_series_put(s->series[i][k]);
            s->series[i][k] = NULL;
        }
    }
}

void dns_count_limited(struct zt_dns_server *s, const struct zt_workload *client)
{
    atomic_fetch_add_explicit(&s->w->dns->n_limited, 1, memory_order_relaxed);
    const char *values[] = {known(client ? client->canonical_name : NULL), known(client ? client->canonical_revision : NULL)};
    struct zt_metric_series *m = zt_metric_series_get(s->w->shard, &limited, values, 2);
    zt_metric_add(m, 1);
    zt_metric_series_put(m);
}

static void add(const struct zt_dns_request *r, const struct zt_metric_family *f)
{
    struct zt_metric_series *m = series(r->server, f, &r->q, r->origin.kind == ORIGIN_TCP, r->client);
    zt_metric_add(m, 1);
    zt_metric_series_put(m);
}

void dns_count_forwarded(const struct zt_dns_request *r, bool failed)
{
    if (r->origin.kind == ORIGIN_LOOKUP)
        return;
    add(r, &upstream_requests);
    if (failed)
        add(r, &upstream_failures);
    struct zt_metric_series *m = series(r->server, &upstream_duration, &r->q, r->origin.kind == ORIGIN_TCP, r->client);
    zt_metric_observe(m, (double)(zt_clock_mono_us() - r->started_us) / 1e6);
    zt_metric_series_put(m);
}

void dns_log(const struct zt_dns_query *q, const struct zt_workload *client, const char *result, unsigned endpoints, const char *error)
{
    if (!zt_log_on(ZT_LOG_DEBUG, "dns"))
        return;
    struct zt_log_line l;
    char text[160];
    char *domain = zt_dns_query_name_text(q);
    const char *type = zt_dns_type_name(q->type);
    zt_fmt(text, sizeof text, "forwarding failed (%s)", error ? error : "");
    zt_log_begin(&l, ZT_LOG_DEBUG, "dns", NULL);
    zt_log_str(&l, "src.workload", client ? client->name : "unknown");
    zt_log_str(&l, "src.namespace", client ? client->ns : "unknown");
    zt_log_str(&l, "query", type ? type : "unknown");
    zt_log_str(&l, "domain", domain);
    zt_log_str(&l, "result", result ? result : text);
    zt_log_u64(&l, "endpoints", endpoints);
    zt_log_end(&l);
    zt_free(domain);
}
