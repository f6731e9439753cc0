/* See upkeep.h. */
#include "app/upkeep.h"
#include "zt/base/log.h"
#include <math.h>

#define EVICT_MOST 500     /* label sets per shard and turn */
#define PERIOD_MS_MAX 30000 /* between two looks; an eighth of the retention, if that is less */
#define PERIOD_MS_MIN 50

#define FAMILY(var, name_, type_, help_)                                                                                \
    static const struct zt_metric_family var = {.name = name_, .help = help_ " (unstable).", .type = type_}

FAMILY(family_available, "ztunneld_certificates_available", ZT_METRIC_GAUGE, "The current number of certificates in use");
FAMILY(family_unavailable, "ztunneld_certificates_unavailable", ZT_METRIC_GAUGE,
       "The current number of identities whose certificate could not be had");
FAMILY(family_expiry, "ztunneld_certificate_expiry_seconds", ZT_METRIC_GAUGE,
       "Seconds until the first certificate ends; negative when it has ended");
FAMILY(family_csrs, "ztunneld_certificate_requests", ZT_METRIC_COUNTER, "The total number of certificates asked for");
FAMILY(family_csrs_failed, "ztunneld_certificate_requests_failed", ZT_METRIC_COUNTER,
       "The total number of certificates asked for in vain");
FAMILY(family_xds_connected, "ztunneld_xds_connected", ZT_METRIC_GAUGE, "1 while the xDS stream is established, else 0");
FAMILY(family_xds_age, "ztunneld_xds_age_seconds", ZT_METRIC_GAUGE, "Seconds since the last xDS response, or since the client began");
FAMILY(family_log_queue, "ztunneld_log_queue_bytes", ZT_METRIC_GAUGE, "Bytes of log lines that wait for the writer");
FAMILY(family_log_dropped, "ztunneld_log_lines_dropped", ZT_METRIC_COUNTER,
       "The total number of log lines lost because the queue was full");
FAMILY(family_lent, "ztunneld_buffer_lent_bytes", ZT_METRIC_GAUGE, "Bytes of I/O buffers in use by connections");
FAMILY(family_kept, "ztunneld_buffer_free_bytes", ZT_METRIC_GAUGE, "Bytes of I/O buffers kept for the next use");

static struct zt_secrets_stats secrets_stats(void *arg)
{
    struct zt_secrets_stats s;
    zt_secrets_stats(((struct zt_upkeep *)arg)->secrets, &s);
    return s;
}

static double available(void *arg)
{
    return secrets_stats(arg).n_available;
}

static double unavailable(void *arg)
{
    return secrets_stats(arg).n_unavailable;
}

static double expiry(void *arg)
{
    struct zt_secrets_stats s = secrets_stats(arg);
    return s.expiry_known ? (double)s.expiry_in_s : NAN;
}

static double csrs(void *arg)
{
    return (double)secrets_stats(arg).n_csrs;
}

static double csrs_failed(void *arg)
{
    return (double)secrets_stats(arg).n_csrs_failed;
}

static double xds_connected(void *arg)
{
    const struct zt_xds *x = zt_control_plane_xds(((struct zt_upkeep *)arg)->control_plane);
    return x ? (double)zt_xds_is_connected(x) : NAN;
}

static double xds_age(void *arg)
{
    const struct zt_xds *x = zt_control_plane_xds(((struct zt_upkeep *)arg)->control_plane);
    return x ? (double)zt_xds_age_ms(x) / 1e3 : NAN;
}

static double log_queue(void *arg)
{
    return (double)zt_log_queued_bytes();
}

static double log_dropped(void *arg)
{
    return (double)zt_log_dropped();
}

static double lent(void *arg)
{
    size_t lent_bytes, free_bytes;
    zt_proxy_buffers(((struct zt_upkeep *)arg)->proxy, &lent_bytes, &free_bytes);
    return (double)lent_bytes;
}

static double kept(void *arg)
{
    size_t lent_bytes, free_bytes;
    zt_proxy_buffers(((struct zt_upkeep *)arg)->proxy, &lent_bytes, &free_bytes);
    return (double)free_bytes;
}

void zt_upkeep_register(struct zt_upkeep *u)
{
    static const struct {
        const struct zt_metric_family *family;
        zt_metric_fn fn;
    } all[] = {
        {&family_available, available},
        {&family_unavailable, unavailable},
        {&family_expiry, expiry},
        {&family_csrs, csrs},
        {&family_csrs_failed, csrs_failed},
        {&family_xds_connected, xds_connected},
        {&family_xds_age, xds_age},
        {&family_log_queue, log_queue},
        {&family_log_dropped, log_dropped},
        {&family_lent, lent},
        {&family_kept, kept},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        zt_metrics_register_fn(u->metrics, all[i].family, all[i].fn, u);
    zt_metrics_register_own(u->metrics);
}

static void on_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_upkeep *u = zt_container_of(w, struct zt_upkeep, timer);
    zt_metrics_evict(u->metrics, u->retention_ms, EVICT_MOST);
}

void zt_upkeep_start(struct zt_upkeep *u)
{
    uint64_t period_ms = u->retention_ms / 8;
    period_ms = period_ms > PERIOD_MS_MAX ? PERIOD_MS_MAX : period_ms < PERIOD_MS_MIN ? PERIOD_MS_MIN : period_ms;
    ev_timer_init(&u->timer, on_timer, (double)period_ms / 1e3, (double)period_ms / 1e3);
    ev_timer_start(zt_loop_ev(u->loop), &u->timer);
}

void zt_upkeep_stop(struct zt_upkeep *u)
{
    if (u->loop)
        ev_timer_stop(zt_loop_ev(u->loop), &u->timer);
}
