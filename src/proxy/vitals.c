/* See vitals.h. */
#include "zt/proxy/vitals.h"

#include "zt/base/clock.h"

static const char *const direction_label[] = {"direction"};
static const char *const result_label[] = {"result"};
static const char *const role_label[] = {"role"};
static const char *const role_labels[] = {"role", "result"};
static const double handshake_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10};

static const struct zt_metric_family family_tunnels = {
    .name = "ztunneld_tunnels",
    .help = "The current number of open HBONE tunnels (unstable).",
    .type = ZT_METRIC_GAUGE,
    .labels = direction_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_pool = {
    .name = "ztunneld_pool_requests",
    .help = "The total number of outgoing connections that asked the pool for a tunnel; a hit found one open (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = result_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_handshakes = {
    .name = "ztunneld_tls_handshakes",
    .help = "The total number of TLS handshakes of tunnels (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = role_labels,
    .n_labels = 2,
};
static const struct zt_metric_family family_resumed = {
    .name = "ztunneld_tls_handshakes_resumed",
    .help = "The total number of TLS handshakes of tunnels that resumed a session (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = role_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_seconds = {
    .name = "ztunneld_tls_handshake_duration_seconds",
    .help = "Time of successful TLS handshakes of tunnels (unstable).",
    .unit = "seconds",
    .type = ZT_METRIC_HISTOGRAM,
    .labels = role_label,
    .n_labels = 1,
    .buckets = handshake_bounds,
    .n_buckets = sizeof(handshake_bounds) / sizeof(handshake_bounds[0]),
};

void zt_vitals_register_metrics(struct zt_metrics *m)
{
    zt_metrics_register(m, &family_tunnels);
    zt_metrics_register(m, &family_pool);
    zt_metrics_register(m, &family_handshakes);
    zt_metrics_register(m, &family_resumed);
    zt_metrics_register(m, &family_seconds);
}

void zt_vitals_init(struct zt_vitals *v, struct zt_metrics_shard *s)
{
    static const char *const directions[] = {"inbound", "outbound"}, *const hits[] = {"miss", "hit"};
    static const char *const roles[] = {"server", "client"}, *const results[] = {"failed", "ok"};
    for (int i = 0; i < 2; i++) {
        v->tunnels[i] = zt_metric_series_get(s, &family_tunnels, &directions[i], 1);
        v->pool[i] = zt_metric_series_get(s, &family_pool, &hits[i], 1);
        v->resumed[i] = zt_metric_series_get(s, &family_resumed, &roles[i], 1);
        v->handshake_seconds[i] = zt_metric_series_get(s, &family_seconds, &roles[i], 1);
        for (int k = 0; k < 2; k++) {
            const char *const values[] = {roles[i], results[k]};
            v->handshakes[i][k] = zt_metric_series_get(s, &family_handshakes, values, 2);
        }
    }
}

void zt_vitals_tunnel(struct zt_vitals *v, bool outbound, int by)
{
    if (v)
        zt_metric_gauge_add(v->tunnels[outbound], by);
}

void zt_vitals_pool(struct zt_vitals *v, bool hit)
{
    if (v)
        zt_metric_add(v->pool[hit], 1);
}

void zt_vitals_handshake(struct zt_vitals *v, bool client, bool ok, bool resumed, uint64_t started_us)
{
    if (!v)
        return;
    zt_metric_add(v->handshakes[client][ok], 1);
    if (resumed)
        zt_metric_add(v->resumed[client], 1);
    if (ok)
        zt_metric_observe(v->handshake_seconds[client], (double)(zt_clock_mono_us() - started_us) / 1e6);
}
