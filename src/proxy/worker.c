/* A worker: a loop with the pods it is home to. Control reaches it by message only; what it tells control goes back by message.
 * Judging open connections after a change goes in slices, so that no turn is long. */
#include "proxy_impl.h"
#include "worker.h"

#include "zt/base/log.h"

#define JUDGE_SLICE 500 /* connections judged per turn */

/* ---- the state changed ---- */

#define CHANGED 1u
#define CHANGED_POLICIES 2u
#define CHANGED_CRL 4u

static void log_late_rejection(const struct zt_conn *c)
{
    char src[ZT_ADDR_TEXT_MAX], dst[ZT_ADDR_TEXT_MAX];
    zt_log_info("proxy::connection_manager",
                "connection %s(%s)->%s (%s) closed because it's no longer allowed after a policy update",
                zt_addr_format(&c->src, src), c->mtls && c->src_identity ? c->src_identity : "None",
                zt_addr_format(&c->dst, dst), c->dst_workload ? c->dst_workload->uid : "");
}

static void judge_again(struct zt_conn *c, struct zt_store *store)
{
    const struct zt_authz_request r = {.src = c->src, .dst = c->dst, .identity = c->mtls ? c->src_identity : NULL};
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_authz_decide(store, c->dst_workload, &r, NULL, &err) == ZT_OK)
        return;
    log_late_rejection(c);
    c->ops->abort(c, ZT_POLICY_CHANGED);
}

/* Judges the next slice of a pod. Returns how many were judged. */
static unsigned judge_pod(struct zt_worker *w, struct zt_pod *pod, unsigned most)
{
    unsigned n = 0;
    zt_list_each_safe(link, &pod->conns) {
        struct zt_conn *c = zt_container_of(link, struct zt_conn, pod_link);
        if (!c->judged || c->judge_round == w->judge_round)
            continue;
        if (n == most)
            break;
        c->judge_round = w->judge_round;
        judge_again(c, w->proxy->store);
        n++;
    }
    return n;
}

static void run_judge(struct zt_task *t)
{
    struct zt_worker *w = zt_container_of(t, struct zt_worker, judge_task);
    unsigned left = JUDGE_SLICE;
    zt_list_each_safe(link, &w->pods) {
        left -= judge_pod(w, zt_container_of(link, struct zt_pod, worker_link), left);
        if (!left) {
            zt_loop_soon(w->loop, &w->judge_task);
            return;
        }
    }
}

static void run_revoke(struct zt_task *t)
{
    struct zt_worker *w = zt_container_of(t, struct zt_worker, revoke_task);
    zt_list_each_safe(link, &w->pods) {
        struct zt_pod *pod = zt_container_of(link, struct zt_pod, worker_link);
        if (!pod->revoke_due)
            continue;
        pod->revoke_due = false;
        zt_pod_revoke(pod);
        zt_loop_soon(w->loop, &w->revoke_task); /* the next pod in the next turn */
        return;
    }
}

static void begin_revoke(struct zt_worker *w)
{
    zt_list_each(link, &w->pods)
        zt_container_of(link, struct zt_pod, worker_link)->revoke_due = true;
    zt_loop_soon(w->loop, &w->revoke_task);
}

static void on_state_changed(struct zt_msg *m)
{
    struct zt_worker *w = zt_container_of(m, struct zt_worker, state_msg);
    unsigned flags = atomic_exchange(&w->state_flags, 0);
    if (flags & CHANGED_CRL)
        begin_revoke(w);
    if (!(flags & (CHANGED | CHANGED_POLICIES)))
        return;
    zt_list_each_safe(link, &w->pods)
        zt_pod_state_changed(zt_container_of(link, struct zt_pod, worker_link));
    if (flags & CHANGED_POLICIES) {
        w->judge_round++;
        zt_loop_soon(w->loop, &w->judge_task);
    }
}

static void note_change(struct zt_worker *w, unsigned flags)
{
    if (!atomic_fetch_or(&w->state_flags, flags))
        zt_loop_post(w->loop, &w->state_msg);
}

void zt_worker_state_changed(struct zt_worker *w, bool policies)
{
    note_change(w, CHANGED | (policies ? CHANGED_POLICIES : 0));
}

void zt_worker_crl_changed(struct zt_worker *w)
{
    note_change(w, CHANGED_CRL);
}

void zt_worker_count_socket(struct zt_worker *w, bool source, int by)
{
    struct zt_metric_series **gauge = source ? &w->sockets_source : &w->sockets_destination;
    if (!*gauge)
        *gauge = zt_conn_sockets_gauge(w->shard, source);
    zt_metric_gauge_add(*gauge, by);
}

/* ---- out of something ---- */

void zt_worker_exhausted(struct zt_worker *w, int errnum)
{
    uint32_t suppressed;
    char os[128];
    if (!zt_log_gate_pass(&w->fd_gate, 1, &suppressed) || !zt_log_on(ZT_LOG_WARN, "proxy"))
        return;
    struct zt_log_line l;
    zt_log_begin(&l, ZT_LOG_WARN, "proxy",
                 errnum == EADDRNOTAVAIL
                     ? "no free source port for a connection that keeps the client's address; it was refused"
                     : "out of file descriptors, new connections wait; raise the limit (RLIMIT_NOFILE)");
    zt_log_str(&l, "error", zt_errno_text(errnum, os, sizeof(os)));
    if (suppressed)
        zt_log_u64(&l, "suppressed", suppressed);
    zt_log_end(&l);
}

/* ---- memory after a peak ---- */

/* The allocator keeps what many connections needed; when most are gone it is given back. One timer, only after a peak. */
static void on_trim(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_worker *w = zt_container_of(t, struct zt_worker, trim_timer);
    w->peak_conns = w->n_conns;
    zt_loop_buf_trim(w->loop);
    zt_mem_trim();
}

void zt_worker_conn_began(struct zt_worker *w)
{
    if (++w->n_conns > w->peak_conns)
        w->peak_conns = w->n_conns;
}

void zt_worker_conn_ended(struct zt_worker *w)
{
    w->n_conns--;
    if (w->peak_conns >= ZT_TRIM_CONNS_MIN && w->n_conns <= w->peak_conns / 4 && !ev_is_active(&w->trim_timer)) {
        ev_timer_set(&w->trim_timer, ZT_TRIM_DELAY_MS / 1000.0, 0.);
        ev_timer_start(zt_loop_ev(w->loop), &w->trim_timer);
    }
    zt_worker_pod_idle(w);
}

/* ---- drain ---- */

static bool all_idle(const struct zt_worker *w)
{
    zt_list_each(link, &w->pods) {
        if (!zt_pod_idle(zt_container_of(link, struct zt_pod, worker_link)))
            return false;
    }
    return true;
}

static void drain_finished(struct zt_worker *w)
{
    struct zt_drain_request *d = w->drain;
    w->drain = NULL;
    ev_timer_stop(zt_loop_ev(w->loop), &w->drain_timer);
    d->msg.run = d->on_drained;
    zt_loop_post(w->proxy->control, &d->msg);
}

static void run_drain_check(struct zt_task *t)
{
    struct zt_worker *w = zt_container_of(t, struct zt_worker, drain_task);
    if (w->drain && all_idle(w))
        drain_finished(w);
}

void zt_worker_pod_idle(struct zt_worker *w)
{
    if (w->drain)
        zt_loop_soon(w->loop, &w->drain_task); /* never from inside a connection's end */
}

static void log_forced(const char *component)
{
    struct zt_log_line l;
    if (!zt_log_on(ZT_LOG_WARN, "drain"))
        return;
    zt_log_begin(&l, ZT_LOG_WARN, "drain", "drain duration expired with pending connections, forcefully shutting down");
    zt_log_str(&l, "component", component);
    zt_log_end(&l);
}

static void log_what_pends(struct zt_worker *w)
{
    bool outbound = false, inbound = false, passthrough = false;
    zt_list_each(pl, &w->pods) {
        struct zt_pod *pod = zt_container_of(pl, struct zt_pod, worker_link);
        inbound |= !zt_list_empty(&pod->servers);
        zt_list_each(cl, &pod->conns) {
            struct zt_conn *c = zt_container_of(cl, struct zt_conn, pod_link);
            outbound |= c->flow == ZT_FLOW_OUTBOUND;
            passthrough |= c->flow == ZT_FLOW_PASSTHROUGH;
        }
    }
    if (inbound)
        log_forced(zt_component_name(ZT_LISTEN_HBONE));
    if (passthrough)
        log_forced(zt_component_name(ZT_LISTEN_PASSTHROUGH));
    if (outbound)
        log_forced(zt_component_name(ZT_LISTEN_OUTBOUND));
}

static void on_drain_deadline(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_worker *w = zt_container_of(t, struct zt_worker, drain_timer);
    log_what_pends(w);
    struct zt_link *link;
    while ((link = zt_list_first(&w->pods))) {
        struct zt_pod *pod = zt_container_of(link, struct zt_pod, worker_link);
        zt_pod_close(pod, ZT_DRAINED); /* unlinks it; control still frees it */
    }
    drain_finished(w);
}

static void on_drain(struct zt_msg *m)
{
    struct zt_drain_request *d = zt_container_of(m, struct zt_drain_request, msg);
    struct zt_worker *w = d->worker;
    w->drain = d;
    zt_list_each_safe(link, &w->pods) zt_pod_drain(zt_container_of(link, struct zt_pod, worker_link));
    ev_timer_init(&w->drain_timer, on_drain_deadline, d->deadline_ms / 1000.0, 0.);
    ev_timer_start(zt_loop_ev(w->loop), &w->drain_timer);
    zt_worker_pod_idle(w);
}

void zt_worker_drain(struct zt_worker *w, struct zt_drain_request *d)
{
    d->worker = w;
    d->msg.run = on_drain;
    zt_loop_post(w->loop, &d->msg);
}

/* ---- made and unmade by control ---- */

enum zt_err zt_worker_init(struct zt_worker *w, struct zt_proxy *p, unsigned index, struct zt_error *err)
{
    static const char *const names[] = {"ztunnel-0", "ztunnel-1", "ztunnel-2",  "ztunnel-3",  "ztunnel-4",  "ztunnel-5",
                                        "ztunnel-6", "ztunnel-7", "ztunnel-8",  "ztunnel-9",  "ztunnel-10", "ztunnel-11",
                                        "ztunnel-12", "ztunnel-13", "ztunnel-14", "ztunnel-15"};
    w->proxy = p;
    w->index = index;
    w->loop = zt_loop_new(index < sizeof(names) / sizeof(names[0]) ? names[index] : "ztunnel-n");
    w->shard = zt_metrics_shard_new(p->metrics);
    zt_vitals_init(&w->vitals, w->shard);
    w->state_msg.run = on_state_changed;
    w->judge_task.run = run_judge;
    w->revoke_task.run = run_revoke;
    w->drain_task.run = run_drain_check;
    zt_list_init(&w->pods);
    zt_list_init(&w->refusals);
    ev_init(&w->trim_timer, on_trim);
    w->dns = zt_dns_worker_new(p->dns, w->loop, w->shard);
    struct zt_sock_opts unmarked = p->config.sock;
    unmarked.mark = 0;
    const struct zt_dns_server_config own = {.netns = p->own_netns, .sock = unmarked};
    enum zt_err e = zt_dns_server_new(w->dns, &own, &w->own_dns, err);
    return e == ZT_OK ? zt_loop_start(w->loop, err) : e;
}

void zt_worker_quit(struct zt_worker *w)
{
    zt_dns_server_stop(w->own_dns);
    zt_dns_worker_stop(w->dns);
    zt_loop_stop(w->loop);
}

void zt_worker_fini(struct zt_worker *w)
{
    zt_client_refusals_end(w);
    zt_metric_series_put(w->sockets_source);
    zt_metric_series_put(w->sockets_destination);
    zt_dns_server_free(w->own_dns);
    zt_dns_worker_free(w->dns);
    zt_loop_free(w->loop);
    zt_recorder_fini(&w->recorder);
}
