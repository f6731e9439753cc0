/* GET /v1/status: what an operator asks first. One object; keys sorted, as in the dump. */
#include "app/ctl_impl.h"
#include "app/dump_certs.h"
#include "zt/app/version.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/ops/stats.h"
#include <stdlib.h>
#include <string.h>

struct status {
    const struct zt_ctl_sources *sources;
    struct zt_http1_request *request;
    const struct zt_proxy_snapshot *snap;
    struct zt_json json;
    struct zt_str body;
};

static int compare_pods(const void *key, const void *element)
{
    return strcmp(key, ((const struct zt_proxy_pod_info *)element)->uid);
}

static const struct zt_proxy_pod_info *find_pod(const struct zt_proxy_snapshot *snap, const char *uid)
{
    return snap->n_pods ? bsearch(uid, snap->pods, snap->n_pods, sizeof *snap->pods, compare_pods) : NULL;
}

static void count_directions(const struct zt_proxy_pod_info *p, unsigned *in, unsigned *out)
{
    *in = *out = 0;
    for (unsigned i = 0; i < p->n_conns; i++)
        p->conns[i].inbound ? ++*in : ++*out;
}

static void write_pod(struct zt_json *j, const char *uid, const struct zt_pod_info *info, const char *pending,
                      const struct zt_proxy_pod_info *p)
{
    unsigned in, out;
    zt_json_object(j);
    if (p) {
        count_directions(p, &in, &out);
        zt_json_key_u64(j, "connectionsIn", in);
        zt_json_key_u64(j, "connectionsOut", out);
    }
    zt_json_key_str(j, "name", info->name);
    zt_json_key_str(j, "namespace", info->ns);
    if (pending)
        zt_json_key_str(j, "reason", pending);
    zt_json_key_str(j, "serviceAccount", info->service_account);
    zt_json_key_str(j, "state", pending ? "Pending" : "Up");
    if (p) {
        zt_json_key_u64(j, "tunnelsIn", p->n_tunnels_in);
        zt_json_key_u64(j, "tunnelsOut", p->n_tunnels_out);
    }
    zt_json_key_str(j, "uid", uid);
    if (p)
        zt_json_key_u64(j, "worker", p->worker);
    zt_json_object_end(j);
}

static void on_pod(void *arg, const char *uid, const struct zt_pod_info *info, const char *pending)
{
    struct status *s = arg;
    write_pod(&s->json, uid, info, pending, pending ? NULL : find_pod(s->snap, uid));
}

/* Shared mode: the pods that the CNI named. Dedicated mode: the one there is. */
static void write_pods(struct status *s)
{
    zt_json_key(&s->json, "pods");
    zt_json_array(&s->json);
    if (s->sources->state.pods)
        zt_pods_each(s->sources->state.pods, on_pod, s);
    for (unsigned i = 0; i < s->snap->n_pods && !s->sources->state.pods; i++) {
        const struct zt_proxy_pod_info *p = &s->snap->pods[i];
        struct zt_pod_info info = {.name = p->name, .ns = p->ns, .service_account = p->service_account};
        write_pod(&s->json, p->uid, &info, NULL, p);
    }
    zt_json_array_end(&s->json);
}

static void write_certificates(struct status *s)
{
    struct zt_dump_certs *certs = zt_dump_certs_new(s->sources->state.secrets);
    zt_json_key(&s->json, "certificates");
    zt_json_array(&s->json);
    for (size_t i = 0; zt_dump_certs_write_short(certs, i, &s->json); i++)
        ;
    zt_json_array_end(&s->json);
    zt_dump_certs_free(certs);
}

static void write_readiness(struct status *s)
{
    struct zt_str pending;
    zt_str_init(&pending, 1024);
    bool ready = zt_ready_check(s->sources->ready, &pending);
    zt_json_key_str(&s->json, "pending", zt_str_cstr(&pending));
    write_pods(s);
    zt_json_key_bool(&s->json, "ready", ready);
    zt_str_fini(&pending);
}

static void write_counts(struct status *s)
{
    size_t workloads, services, policies;
    zt_store_counts(s->sources->state.store, &workloads, &services, &policies);
    zt_json_key(&s->json, "state");
    zt_json_object(&s->json);
    zt_json_key_u64(&s->json, "policies", policies);
    zt_json_key_u64(&s->json, "services", services);
    zt_json_key_u64(&s->json, "workloads", workloads);
    zt_json_object_end(&s->json);
}

/* By the names that the counter and the log lines have for them. */
static void write_limits(struct status *s)
{
    zt_json_key(&s->json, "limits");
    zt_json_object(&s->json);
    for (enum zt_limit l = 0; l < ZT_LIMIT_N; l++)
        zt_json_key_u64(&s->json, zt_limit_name(l), s->snap->limits->max[l]);
    zt_json_object_end(&s->json);
}

static void on_snapshot(void *arg, const struct zt_proxy_snapshot *snap)
{
    struct status *s = arg;
    struct zt_json *j = &s->json;
    const struct zt_config *config = s->sources->state.config;
    if (!snap) {
        zt_ctl_reply_error(s->request, 503, "shutting down");
        zt_str_fini(&s->body);
        zt_free(s);
        return;
    }
    s->snap = snap;
    zt_store_collect(s->sources->state.store);
    zt_json_object(j);
    write_certificates(s);
    zt_json_key_bool(j, "draining", *s->sources->draining);
    write_limits(s);
    zt_json_key_u64(j, "logLinesDropped", zt_log_dropped());
    zt_json_key_u64(j, "memoryLiveBytes", zt_mem_live_bytes());
    zt_json_key_str(j, "mode", config->mode == ZT_MODE_SHARED ? "shared" : "dedicated");
    zt_json_key_str(j, "node", config->node_name);
    zt_json_key_u64(j, "openFds", zt_stats_open_fds());
    write_readiness(s);
    write_counts(s);
    zt_json_key_u64(j, "uptimeMs", zt_clock_mono_ms() - s->sources->start_ms);
    zt_json_key(j, "version");
    zt_version_write_json(j);
    zt_json_key_u64(j, "workers", config->worker_threads);
    zt_json_object_end(j);
    zt_ctl_reply_json(s->request, &s->body);
    zt_free(s);
}

void zt_ctl_on_status(void *arg, struct zt_http1_request *r)
{
    struct status *s = zt_new(struct status);
    s->sources = arg;
    s->request = r;
    zt_str_init(&s->body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&s->json, &s->body, true);
    zt_proxy_snapshot(s->sources->state.proxy, on_snapshot, s);
}
