/* The daemon from start to stop. `steps` below is the start order, read from top to bottom; the stop order is the same list upwards.
 *
 *   STARTING --loop runs--> SERVING --SIGTERM, SIGINT, quitquitquit--> DRAINING --proxies done--> FINISHING --> (loop stops, exit 0)
 *   SERVING, DRAINING --the CNI broke its protocol--> FINISHING (exit 1)
 * DRAINING: the operators' listeners are closed, pods drain to their deadline, the control socket still answers. FINISHING: requests in
 * progress get their answers, for at most a second. */
#include "zt/app/app.h"
#include "app/control_plane.h"
#include "app/crl_feed.h"
#include "app/listen.h"
#include "app/pods_feed.h"
#include "app/proxy_config.h"
#include "app/state_feed.h"
#include "app/upkeep.h"
#include "zt/app/ctl_server.h"
#include "zt/app/dump.h"
#include "zt/app/signals.h"
#include "zt/app/version.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/config/dump.h"
#include "zt/config/local.h"
#include "zt/net/tls_keylog.h"
#include "zt/net/tls_cred.h"
#include "zt/ops/admin.h"
#include "zt/ops/ready.h"
#include "zt/ops/stats.h"
#include "zt/proxy/conn.h"
#include "zt/secrets/ca_local.h"
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define READY_PORT 15021
#define FINISH_S 1.
#define UNSERVED_MAX 32
#define SELF_UID "self"
#define DEDICATED_UID "dedicated"
#define DEFAULT_MARK 1337

enum phase { STARTING, SERVING, DRAINING, FINISHING };

struct app {
    const struct zt_config *config;
    uint64_t start_ms;
    enum phase phase;
    int exit_code;
    bool draining; /* DRAINING or later; what status shows */
    struct zt_loop *control;
    struct zt_store *store;
    struct zt_metrics *metrics;
    struct zt_control_plane *control_plane;
    struct zt_ca *ca;
    struct zt_secrets *secrets;
    struct zt_ready *ready;
    struct zt_pods_feed *pods; /* shared mode */
    struct zt_proxy *proxy;
    struct zt_ready_server *ready_server;
    struct zt_state_feed *feed;
    struct zt_crl_feed *crl;
    struct zt_local_watch *watch;
    struct zt_http1 *admin, *stats_server;
    struct zt_ctl_server *ctl;
    struct zt_tls_keylog *keylog; /* NULL: off */
    struct zt_netns *own_netns;
    struct zt_dump_sources dump_sources;
    struct zt_ctl_sources ctl_sources;
    struct zt_admin_quit quit;
    struct zt_stats stats;
    struct zt_upkeep upkeep;
    struct zt_signals signals;
    ev_timer finish_timer;
    unsigned n_http_busy; /* servers that may have requests in progress; at 0 the loop stops */
};

static bool is_shared(const struct app *a)
{
    return a->config->mode == ZT_MODE_SHARED;
}

/* ---- the end ---- */

static void on_finish_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    zt_loop_stop(zt_container_of(w, struct app, finish_timer)->control);
}

static void on_http_drained(void *arg)
{
    struct app *a = arg;
    if (--a->n_http_busy == 0)
        zt_loop_stop(a->control);
}

static void finish(struct app *a)
{
    if (a->phase == FINISHING)
        return;
    a->phase = FINISHING;
    if (a->ctl)
        zt_ctl_server_drain(a->ctl, on_http_drained, a);
    else
        on_http_drained(a);
    ev_timer_init(&a->finish_timer, on_finish_timer, FINISH_S, 0.);
    ev_timer_start(zt_loop_ev(a->control), &a->finish_timer);
}

static void on_proxy_drained(void *arg)
{
    finish(arg);
}

static void close_operator_servers(struct app *a)
{
    a->draining = true;
    a->n_http_busy = 3; /* admin, stats; ctl, which drains when the proxies are done */
    zt_ready_server_drain(a->ready_server);
    zt_http1_drain(a->admin, on_http_drained, a);
    zt_http1_drain(a->stats_server, on_http_drained, a);
}

static void begin_drain(struct app *a)
{
    if (a->phase != SERVING)
        return;
    a->phase = DRAINING;
    close_operator_servers(a);
    if (a->pods)
        zt_pods_feed_stop(a->pods);
    zt_proxy_drain(a->proxy, on_proxy_drained, a);
}

static void on_shutdown_signal(void *arg)
{
    begin_drain(arg);
}

static void on_abort_signal(void *arg)
{
    struct app *a = arg;
    zt_ctl_server_unlink(a->ctl);
    zt_log_stop();
    _exit(0);
}

static void on_quit(void *arg)
{
    struct app *a = arg;
    zt_log_info("app", "received explicit shutdown signal");
    zt_signals_note_shutdown(&a->signals);
    begin_drain(a);
}

static void on_cni_fatal(void *arg, const struct zt_error *why)
{
    struct app *a = arg;
    zt_log_error("inpod::workloadmanager", "WorkloadProxyManager run error: %s", why->text);
    a->exit_code = 1;
    zt_signals_note_shutdown(&a->signals);
    if (!a->draining)
        close_operator_servers(a);
    finish(a);
}

/* ---- log lines and limits ---- */

static void raise_descriptor_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) {
        zt_log_warn("app", "failed to read the file descriptor limits");
        return;
    }
    rlim_t soft = r.rlim_cur;
    r.rlim_cur = r.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &r) == 0)
        zt_log_info("app", "set file descriptor limits from %llu to %llu", (unsigned long long)soft,
                    (unsigned long long)r.rlim_max);
    else
        zt_log_warn("app", "failed to set file descriptor limits from %llu to %llu", (unsigned long long)soft,
                    (unsigned long long)r.rlim_max);
}

static void warn_unserved(const struct zt_config *c)
{
    char *texts[UNSERVED_MAX];
    unsigned n = zt_config_unserved(c, texts, UNSERVED_MAX);
    for (unsigned i = 0; i < n; i++) {
        zt_log_warn("config", "%s", texts[i]);
        zt_free(texts[i]);
    }
}

static enum zt_err start_announce(struct app *a, struct zt_error *err)
{
    struct zt_str s;
    zt_str_init(&s, 1 << 20);
    zt_version_write(&s);
    zt_log_info("ztunnel", "version: %s", zt_str_cstr(&s));
    raise_descriptor_limit();
    zt_str_clear(&s);
    zt_config_write_yaml(a->config, &s);
    zt_log_info("ztunnel", "running with config: \n%s", zt_str_cstr(&s));
    zt_str_fini(&s);
    warn_unserved(a->config);
    return ZT_OK;
}

/* ---- state, metrics, certificates ---- */

static enum zt_err start_store(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    a->store = zt_store_new(&(struct zt_store_config){
        .network = c->network,
        .node = c->node_name,
        .preferred_namespace = c->preferred_service_namespace,
        .authz_info_logging = c->authz_info_logging,
    });
    return ZT_OK;
}

static void stop_store(struct app *a)
{
    zt_store_free(a->store);
}

static enum zt_err start_metrics(struct app *a, struct zt_error *err)
{
    a->metrics = zt_metrics_new();
    zt_stats_register_process(a->metrics, a->config->istio_version);
    zt_xds_register_metrics(a->metrics);
    zt_conn_register_metrics(a->metrics);
    zt_dns_register_metrics(a->metrics, a->config->dns_proxy);
    return ZT_OK;
}

static void stop_metrics(struct app *a)
{
    zt_metrics_free(a->metrics);
}

static enum zt_err start_control_plane(struct app *a, struct zt_error *err)
{
    return zt_control_plane_new(a->control, a->config, &a->control_plane, err);
}

static void stop_control_plane(struct app *a)
{
    zt_control_plane_free(a->control_plane);
}

static enum zt_err open_ca(struct app *a, struct zt_error *err)
{
    const char *path = a->config->local_ca_path;
    if (!path)
        return zt_control_plane_ca(a->control_plane, &a->ca, err);
    zt_log_warn("secrets", "certificates come from a local CA in %s: for development, not for production", path);
    return zt_ca_local_open(a->control, path, &a->ca, err);
}

static enum zt_err start_secrets(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    if (c->pqc && !zt_tls_pqc_available())
        return zt_error_set(err, ZT_UNSUPPORTED,
                            "COMPLIANCE_POLICY=pqc takes X25519MLKEM768, which this OpenSSL does not know (3.5 does): unset "
                            "COMPLIANCE_POLICY to run without it");
    enum zt_err e = open_ca(a, err);
    if (e != ZT_OK)
        return e;
    a->secrets = zt_secrets_new(&(struct zt_secrets_config){
        .loop = a->control,
        .ca = a->ca,
        .ttl_s = c->secret_ttl_s,
        .profile = {.tls12 = c->tls12, .pqc = c->pqc},
        .any_san = !is_shared(a) && !c->local_ca_path,
    });
    a->upkeep = (struct zt_upkeep){
        .loop = a->control,
        .metrics = a->metrics,
        .secrets = a->secrets,
        .control_plane = a->control_plane,
        .retention_ms = c->metrics_retention_ms,
    };
    zt_upkeep_register(&a->upkeep);
    return ZT_OK;
}

static void stop_secrets(struct app *a)
{
    zt_secrets_free(a->secrets);
    zt_ca_free(a->ca);
}

/* ---- readiness and pods: the tasks ---- */

static enum zt_err start_tasks(struct app *a, struct zt_error *err)
{
    a->ready = zt_ready_new(a->start_ms);
    zt_ready_pend(a->ready, ZT_READY_STATE);
    if (a->config->enable_proxy)
        zt_ready_pend(a->ready, ZT_READY_PROXY);
    if (a->config->dns_proxy)
        zt_ready_pend(a->ready, ZT_READY_DNS);
    if (!is_shared(a))
        return ZT_OK;
    zt_ready_pend(a->ready, ZT_READY_PODS);
    struct zt_pods_config pods = {
        .socket_path = a->config->inpod_uds,
        .retry_ms = (unsigned)a->config->zds_retry_ms,
    };
    a->pods = zt_pods_feed_new(a->control, &pods, a->ready, a->metrics, on_cni_fatal, a);
    return ZT_OK;
}

static void stop_tasks(struct app *a)
{
    zt_pods_feed_free(a->pods);
    zt_ready_free(a->ready);
}

/* ---- the data plane ---- */

/* Off unless pods are named, and never silent. */
static enum zt_err open_keylog(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    if (c->keylog_path && !c->keylog_pods)
        zt_log_warn("app", "SSLKEYLOGFILE has no effect: name the pods in ZTUNNELD_KEYLOG_PODS");
    if (!c->keylog_pods)
        return ZT_OK;
    zt_log_warn("app", "KEY LOG IS ON: TLS secrets of %s are written to %s; end this when you have seen enough", c->keylog_pods,
                c->keylog_path);
    return zt_tls_keylog_open(c->keylog_path, &a->keylog, err);
}

static enum zt_err start_proxy(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    struct zt_proxy_config p = zt_proxy_config_of(c);
    enum zt_err e = open_keylog(a, err);
    if (e != ZT_OK)
        return e;
    p.keylog = a->keylog;
    p.keylog_pods = c->keylog_pods;
    zt_log_info("app", "%s", is_shared(a) ? "shared proxy mode - in-pod mode enabled" : "proxy mode enabled");
    a->proxy = zt_proxy_new(&p, a->control, a->store, a->secrets, a->metrics, err);
    return a->proxy ? ZT_OK : ZT_IO;
}

/* The workers end: nobody asks for certificates any more, but answers under way still find their loop. What the workers told control
 * last is read while everything it may touch is there. */
static void stop_proxy(struct app *a)
{
    zt_proxy_stop(a->proxy);
    zt_loop_run_once(a->control, false);
}

static void free_proxy(struct app *a)
{
    zt_proxy_free(a->proxy);
    zt_tls_keylog_free(a->keylog);
}

/* ---- readiness server: worker 0 answers ---- */

static enum zt_err start_readiness(struct app *a, struct zt_error *err)
{
    char address[ZT_ADDR_TEXT_MAX];
    int fd;
    enum zt_err e = zt_listen_wildcard(a->config->ipv6, READY_PORT, &fd, address, err);
    if (e != ZT_OK)
        return e;
    e = zt_ready_serve(a->ready, zt_proxy_worker_loop(a->proxy, 0), fd, address, &a->ready_server, err);
    if (e != ZT_OK)
        close(fd);
    return e;
}

static void stop_readiness(struct app *a)
{
    zt_ready_server_free(a->ready_server);
}

/* ---- the local file ---- */

static void on_applied(void *arg, const struct zt_store_changes *changes)
{
    struct app *a = arg;
    for (char **id = changes->prefetch; is_shared(a) && id && *id; id++)
        zt_secrets_prefetch(a->secrets, *id);
    for (char **id = changes->forget; id && *id; id++)
        zt_secrets_forget(a->secrets, *id);
    zt_proxy_state_changed(a->proxy, changes->policies);
}

static void log_loaded(const char *message, const struct zt_local_info *info)
{
    struct zt_log_line l;
    if (!zt_log_on(ZT_LOG_INFO, "xds"))
        return;
    zt_log_begin(&l, ZT_LOG_INFO, "xds", message);
    zt_log_u64(&l, "num_workloads", info->n_workloads);
    zt_log_u64(&l, "num_policies", info->n_policies);
    zt_log_end(&l);
}

static void on_file_changed(void *arg, struct zt_batch *batch, const struct zt_local_info *info, const struct zt_error *err)
{
    struct app *a = arg;
    if (!batch) {
        zt_log_error("xds", "local config refused, what worked before goes on: %s", err->text);
        return;
    }
    log_loaded("local config reloaded", info);
    zt_state_feed_put(a->feed, batch);
}

/* The watch is told what the first load saw, so that no change falls between the two. */
static enum zt_err start_state(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    struct zt_local_info info;
    struct zt_batch *batch = NULL;
    enum zt_err e = ZT_OK;
    a->feed = zt_state_feed_new(a->control, a->store, on_applied, a, err);
    if (!a->feed)
        return ZT_IO;
    if (c->local_xds_path)
        e = zt_local_load(c->local_xds_path, &batch, &info, err);
    else if (c->local_xds)
        e = zt_local_parse("LOCAL_XDS", c->local_xds, strlen(c->local_xds), &batch, &info, err);
    if (e != ZT_OK || !batch)
        return e;
    zt_state_feed_put_now(a->feed, batch);
    log_loaded("local config initialized", &info);
    if (c->local_xds_path)
        e = zt_local_watch_start(a->control, c->local_xds_path, &info, on_file_changed, a, &a->watch, err);
    return e;
}

static void stop_state(struct app *a)
{
    zt_local_watch_stop(a->watch);
    zt_state_feed_free(a->feed);
}

/* ---- xDS ---- */

static void open_gate(struct app *a);

static void on_xds_applied(void *arg, const struct zt_store_changes *changes)
{
    struct app *a = arg;
    zt_store_collect(a->store);
    on_applied(a, changes);
}

static void on_xds_synced(void *arg)
{
    open_gate(arg);
}

static enum zt_err start_crl(struct app *a, struct zt_error *err)
{
    if (a->config->crl_path)
        a->crl = zt_crl_feed_new(a->control, zt_state_feed_loop(a->feed), a->proxy, a->config->crl_path);
    return ZT_OK;
}

static void stop_crl(struct app *a)
{
    zt_crl_feed_free(a->crl);
}

static enum zt_err start_xds(struct app *a, struct zt_error *err)
{
    static const struct zt_xds_events events = {.on_applied = on_xds_applied, .on_synced = on_xds_synced};
    if (!a->config->xds_address)
        return ZT_OK;
    return zt_control_plane_start_xds(a->control_plane, zt_state_feed_loop(a->feed), a->store, a->metrics, &events, a, err);
}

static void stop_xds(struct app *a)
{
    zt_control_plane_stop_xds(a->control_plane);
}

/* ---- operators' servers ---- */

static enum zt_err bind_admin(struct app *a, struct zt_error *err)
{
    enum zt_err e = zt_http1_new(a->control, "admin", NULL, NULL, &a->admin, err);
    if (e == ZT_OK)
        e = zt_listen_loopback(a->admin, a->config->ipv6_localhost, a->config->admin_port, err);
    return e;
}

/* Bound early, served once everything is up: until then connections wait in the kernel. */
static enum zt_err serve_admin(struct app *a, struct zt_error *err)
{
    a->quit = (struct zt_admin_quit){on_quit, a};
    a->dump_sources = (struct zt_dump_sources){
        .config = a->config,
        .store = a->store,
        .secrets = a->secrets,
        .proxy = a->proxy,
        .pods = a->pods ? zt_pods_feed_pods(a->pods) : NULL,
        .helper = zt_state_feed_loop(a->feed),
    };
    a->ctl_sources = (struct zt_ctl_sources){
        .state = a->dump_sources,
        .ready = a->ready,
        .ca = a->config->local_ca_path ? a->ca : NULL, /* istiod is not asked for keys that leave this process */
        .start_ms = a->start_ms,
        .draining = &a->draining,
    };
    zt_admin_routes(a->admin, &a->quit);
    zt_dump_route(a->admin, &a->dump_sources);
    zt_ctl_pages(a->admin, &a->ctl_sources);
    zt_http1_start(a->admin);
    return ZT_OK;
}

static void stop_admin(struct app *a)
{
    zt_http1_free(a->admin);
}

static void refresh_stats(void *arg, void (*done)(void *done_arg), void *done_arg)
{
    struct app *a = arg;
    zt_proxy_count(a->proxy, done, done_arg);
}

static enum zt_err start_stats(struct app *a, struct zt_error *err)
{
    char address[ZT_ADDR_TEXT_MAX];
    int fd;
    enum zt_err e = zt_http1_new(a->control, "stats", NULL, NULL, &a->stats_server, err);
    if (e == ZT_OK)
        e = zt_listen_wildcard(a->config->ipv6, a->config->stats_port, &fd, address, err);
    if (e != ZT_OK)
        return e;
    a->stats = (struct zt_stats){a->metrics, refresh_stats, a};
    a->upkeep.proxy = a->proxy;
    zt_upkeep_start(&a->upkeep);
    zt_stats_routes(a->stats_server, &a->stats);
    zt_http1_listen(a->stats_server, fd, address);
    zt_http1_start(a->stats_server);
    return ZT_OK;
}

static void stop_stats(struct app *a)
{
    zt_upkeep_stop(&a->upkeep);
    zt_http1_free(a->stats_server);
}

/* Without its socket ztctl does not work; pods do. */
static enum zt_err start_ctl(struct app *a, struct zt_error *err)
{
    struct zt_error why = ZT_ERROR_INIT;
    if (zt_ctl_server_new(a->control, a->config->ctl_socket, &a->ctl_sources, &a->ctl, &why) != ZT_OK)
        zt_log_warn("ctl", "ztctl will not reach this daemon: %s", why.text);
    return ZT_OK;
}

static void stop_ctl(struct app *a)
{
    zt_ctl_server_free(a->ctl);
}

/* ---- pods ---- */

static enum zt_err start_probe(struct app *a, struct zt_error *err)
{
    if (!is_shared(a))
        return ZT_OK;
    return zt_netns_probe(a->config->packet_mark ? a->config->packet_mark : DEFAULT_MARK, err);
}

static enum zt_err add_own_pod(struct app *a, enum zt_pod_kind kind, const struct zt_pod_id *id, struct zt_error *err)
{
    enum zt_err e = zt_netns_own(&a->own_netns, err);
    return e == ZT_OK ? zt_proxy_add_pod(a->proxy, kind, id, a->own_netns, err) : e;
}

static void complete_proxy_tasks(struct app *a)
{
    zt_ready_complete(a->ready, ZT_READY_DNS);
    zt_ready_complete(a->ready, ZT_READY_PROXY);
}

/* Bound early, served when the gate opens: until then connections wait in the kernel. */
static enum zt_err start_own_pods(struct app *a, struct zt_error *err)
{
    const struct zt_config *c = a->config;
    enum zt_err e = ZT_OK;
    if (!is_shared(a)) {
        struct zt_pod_id id = {DEDICATED_UID, c->workload_ns, c->workload_name, c->workload_sa};
        e = add_own_pod(a, ZT_POD_DEDICATED, &id, err);
    } else if (c->enable_proxy && c->pod_namespace && c->service_account && c->pod_name) {
        struct zt_pod_id id = {SELF_UID, c->pod_namespace, c->pod_name, c->service_account};
        e = add_own_pod(a, ZT_POD_SELF, &id, err);
    }
    if (!is_shared(a) && e == ZT_OK)
        complete_proxy_tasks(a);
    return e;
}

static void stop_own_pods(struct app *a)
{
    zt_netns_unref(a->own_netns);
}

/* The whole state is here: connections can be judged. Before that nobody is served, and the CNI is not even asked for pods. With xDS
 * the gate opens at the first complete sync. */
static void open_gate(struct app *a)
{
    if (a->phase != STARTING && a->phase != SERVING)
        return;
    zt_ready_complete(a->ready, ZT_READY_STATE);
    zt_proxy_serve(a->proxy);
    if (a->pods)
        zt_pods_feed_start(a->pods, a->proxy);
}

/* In shared mode the proxy as such is ready now: it waits for pods. */
static enum zt_err start_pods(struct app *a, struct zt_error *err)
{
    complete_proxy_tasks(a);
    if (!a->config->xds_address)
        open_gate(a);
    return ZT_OK;
}

static enum zt_err start_signals(struct app *a, struct zt_error *err)
{
    a->signals.on_shutdown = on_shutdown_signal;
    a->signals.on_abort = on_abort_signal;
    a->signals.arg = a;
    zt_signals_start(&a->signals, a->control);
    return ZT_OK;
}

static void stop_signals(struct app *a)
{
    ev_timer_stop(zt_loop_ev(a->control), &a->finish_timer);
    zt_signals_stop(&a->signals);
}

/* ---- the order ---- */

static const struct step {
    const char *what; /* before the cause of a failure; NULL: the cause says it all */
    enum zt_err (*start)(struct app *a, struct zt_error *err); /* or NULL */
    void (*stop)(struct app *a); /* or NULL; legal after a start that failed half-way */
} steps[] = {
    {NULL, start_announce, NULL},
    {NULL, start_store, stop_store},
    {NULL, start_metrics, stop_metrics},
    {NULL, start_control_plane, stop_control_plane},
    {NULL, NULL, free_proxy},
    {NULL, start_secrets, stop_secrets},
    {NULL, start_tasks, stop_tasks},
    {NULL, start_proxy, stop_proxy},
    {"readiness server starts", start_readiness, stop_readiness},
    {NULL, start_state, stop_state},
    {NULL, start_crl, stop_crl},
    {NULL, start_xds, stop_xds},
    {"admin server starts", bind_admin, stop_admin},
    {NULL, start_own_pods, stop_own_pods},
    {NULL, start_probe, NULL},
    {NULL, serve_admin, NULL},
    {NULL, start_ctl, stop_ctl},
    {"stats server starts", start_stats, stop_stats},
    {NULL, start_pods, NULL},
    {NULL, start_signals, stop_signals},
};
#define N_STEPS (sizeof steps / sizeof *steps)

static void print_failure(const char *what, const struct zt_error *err)
{
    zt_log_stop(); /* what led to it comes first */
    if (what)
        fprintf(stderr, "Error: %s\n\nCaused by:\n    %s\n", what, err->text);
    else
        fprintf(stderr, "Error: %s\n", err->text);
}

int zt_app_run(const struct zt_config *config, uint64_t start_ms)
{
    struct app a = {.config = config, .start_ms = start_ms, .control = zt_loop_new("control")};
    struct zt_error err = ZT_ERROR_INIT;
    size_t n_started = 0;
    enum zt_err e = ZT_OK;
    for (; n_started < N_STEPS && e == ZT_OK; n_started++)
        if (steps[n_started].start)
            e = steps[n_started].start(&a, &err);
    if (e != ZT_OK) {
        print_failure(steps[n_started - 1].what, &err);
        a.exit_code = 1;
    } else {
        a.phase = SERVING;
        zt_loop_run(a.control);
    }
    while (n_started-- > 0)
        if (steps[n_started].stop)
            steps[n_started].stop(&a);
    zt_loop_free(a.control);
    return a.exit_code;
}
