/* The pods of this node, from ZDS to the proxy. No state of its own beyond the wiring: the table of pods is zt_pods'. */
#include "app/pods_feed.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"

struct zt_pods_feed {
    struct zt_pods_owner owner;
    struct zt_pods *pods;
    struct zt_proxy *proxy;
    struct zt_ready *ready;
    void (*fatal)(void *arg, const struct zt_error *why);
    void *arg;
    struct zt_metrics_shard *shard;
    bool draining;
};

/* ---- metrics (spec/inpod §2.10) ---- */

static const struct zt_metric_family active_family = {
    .name = "workload_manager_active_proxy_count",
    .help = "The total number current workloads with active proxies (unstable).",
    .type = ZT_METRIC_GAUGE};
static const struct zt_metric_family pending_family = {
    .name = "workload_manager_pending_proxy_count",
    .help = "The total number current workloads with pending proxies (unstable).",
    .type = ZT_METRIC_GAUGE};
static const struct zt_metric_family started_family = {
    .name = "workload_manager_proxies_started",
    .help = "The total number of proxies that were started (unstable).",
    .type = ZT_METRIC_COUNTER};
static const struct zt_metric_family stopped_family = {
    .name = "workload_manager_proxies_stopped",
    .help = "The total number of proxies that were stopped (unstable).",
    .type = ZT_METRIC_COUNTER};
static const char *const failure_labels[] = {"reason"};
static const struct zt_metric_family failures_family = {
    .name = "workload_manager_proxy_start_failures",
    .help = "The total number of failed attempts to start a proxy, by reason (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = failure_labels,
    .n_labels = 1};

static double n_active(void *arg)
{
    struct zt_pods_feed *f = arg;
    return zt_pods_stats(f->pods).n_active;
}

static double n_pending(void *arg)
{
    struct zt_pods_feed *f = arg;
    return zt_pods_stats(f->pods).n_pending;
}

static double n_started(void *arg)
{
    struct zt_pods_feed *f = arg;
    return (double)zt_pods_stats(f->pods).n_started;
}

static double n_stopped(void *arg)
{
    struct zt_pods_feed *f = arg;
    return (double)zt_pods_stats(f->pods).n_stopped;
}

/* ---- callbacks of zt_pods ---- */

static enum zt_err on_add(struct zt_pods_owner *o, const char *uid, const struct zt_pod_info *info, struct zt_netns *ns,
                          struct zt_error *err)
{
    struct zt_pods_feed *f = zt_container_of(o, struct zt_pods_feed, owner);
    struct zt_pod_id id = {.uid = uid, .ns = info->ns, .name = info->name, .service_account = info->service_account};
    if (!f->proxy)
        return ZT_OK;
    return zt_proxy_add_pod(f->proxy, ZT_POD_CAPTURED, &id, ns, err);
}

static void on_remove(struct zt_pods_owner *o, const char *uid)
{
    struct zt_pods_feed *f = zt_container_of(o, struct zt_pods_feed, owner);
    if (f->proxy)
        zt_proxy_remove_pod(f->proxy, uid);
}

static void on_ready(struct zt_pods_owner *o, bool ready, const char *why)
{
    struct zt_pods_feed *f = zt_container_of(o, struct zt_pods_feed, owner);
    if (ready && !f->draining) {
        zt_ready_complete(f->ready, ZT_READY_PODS);
        return;
    }
    zt_ready_pend(f->ready, ZT_READY_PODS);
    zt_ready_explain(f->ready, ZT_READY_PODS, why);
}

static void on_start_failed(struct zt_pods_owner *o, const struct zt_error *why)
{
    struct zt_pods_feed *f = zt_container_of(o, struct zt_pods_feed, owner);
    const char *reason = why->text;
    struct zt_metric_series *s = zt_metric_series_get(f->shard, &failures_family, &reason, 1);
    zt_metric_add(s, 1);
    zt_metric_series_put(s);
}

static void on_fatal(struct zt_pods_owner *o, const struct zt_error *why)
{
    struct zt_pods_feed *f = zt_container_of(o, struct zt_pods_feed, owner);
    f->fatal(f->arg, why);
}

/* ---- life ---- */

struct zt_pods_feed *zt_pods_feed_new(struct zt_loop *l, const struct zt_pods_config *config, struct zt_ready *ready,
                                      struct zt_metrics *metrics, void (*fatal)(void *arg, const struct zt_error *why),
                                      void *arg)
{
    struct zt_pods_feed *f = zt_new(struct zt_pods_feed);
    f->owner = (struct zt_pods_owner){on_add, on_remove, on_ready, on_start_failed, on_fatal};
    f->ready = ready;
    f->fatal = fatal;
    f->arg = arg;
    f->pods = zt_pods_new(l, config, &f->owner);
    zt_metrics_register_fn(metrics, &active_family, n_active, f);
    zt_metrics_register_fn(metrics, &pending_family, n_pending, f);
    zt_metrics_register_fn(metrics, &started_family, n_started, f);
    zt_metrics_register_fn(metrics, &stopped_family, n_stopped, f);
    zt_metrics_register(metrics, &failures_family);
    f->shard = zt_metrics_shard_new(metrics);
    return f;
}

void zt_pods_feed_start(struct zt_pods_feed *f, struct zt_proxy *proxy)
{
    f->proxy = proxy;
    zt_pods_start(f->pods);
}

void zt_pods_feed_stop(struct zt_pods_feed *f)
{
    f->draining = true;
    zt_log_info("inpod::workloadmanager", "drain requested");
    zt_pods_stop(f->pods);
}

void zt_pods_feed_free(struct zt_pods_feed *f)
{
    if (!f)
        return;
    zt_pods_free(f->pods);
    zt_free(f);
}

const struct zt_pods *zt_pods_feed_pods(const struct zt_pods_feed *f)
{
    return f->pods;
}
