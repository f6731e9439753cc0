/* The pod table, reconciled with the CNI daemon's snapshots (spec/inpod §1.3-1.6).
 *
 * Invariants:
 * - One record per uid. UP: the owner's add has succeeded and its remove has not been called.
 * PENDING: add has failed; the record holds what is needed to try again, and only the latest Add's
 * namespace, so a stale one is never tried.
 * - `named` marks what the present connection's snapshot has named; it means nothing once the
 * snapshot is complete.
 * - The retry timer is active exactly while connected with something pending.
 * - on_ready runs from a task, so never from inside a call or between a request and its
 * acknowledgement.
 *
 *   record    Add, same netns   Add, other netns
 *   none      start             start
 *   UP        named             stop, start
 *   PENDING   start             start (the new netns)
 *
 *   record    Del before / after the snapshot   snapshot ends, not named   new connection
 *   UP        unnamed / stop                    stop                       unnamed
 *   PENDING   drop                              (always named)             drop
 *
 * start: add; UP or PENDING. */
#include "zt/cni/pods.h"
#include "zt/base/log.h"
#include "zt/base/map.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCOPE "inpod::statemanager"

struct pod {
    char *uid, *name, *ns, *service_account;
    char *pending; /* why; NULL when up */
    struct zt_netns *netns;
    bool up, named;
    UT_hash_handle hh;
};

struct zt_pods {
    struct zt_zds_client_owner client_owner;
    struct zt_zds_client *client; /* NULL before start and after stop */
    struct zt_loop *loop;
    struct zt_pods_owner *owner;
    char *socket_path;
    unsigned retry_ms;
    struct pod *table; /* by uid */
    struct zt_pods_stats stats;
    bool connected, snapshot_received;
    bool ready_told; /* what on_ready said last */
    char why_told[ZT_PODS_WHY_MAX];
    struct zt_task ready_task;
    ev_timer retry;
};

/* ---- records ---- */

static struct pod *pod_find(const struct zt_pods *p, const char *uid)
{
    struct pod *pod = NULL;
    HASH_FIND(hh, p->table, uid, strlen(uid), pod);
    return pod;
}

static void pod_clear(struct pod *pod)
{
    zt_free(pod->name);
    zt_free(pod->ns);
    zt_free(pod->service_account);
    zt_free(pod->pending);
    pod->pending = NULL;
    zt_netns_unref(pod->netns);
}

/* Takes ns. */
static void pod_describe(struct pod *pod, const struct zt_pod_info *info, struct zt_netns *ns)
{
    pod_clear(pod);
    pod->name = zt_strdup(info->name);
    pod->ns = zt_strdup(info->ns);
    pod->service_account = zt_strdup(info->service_account);
    pod->netns = ns;
}

static struct zt_pod_info pod_info(const struct pod *pod)
{
    return (struct zt_pod_info){
        .name = pod->name, .ns = pod->ns, .service_account = pod->service_account};
}

/* A new record counts as pending. */
static struct pod *pod_new(struct zt_pods *p, const char *uid)
{
    struct pod *pod = zt_new(struct pod);
    pod->uid = zt_strdup(uid);
    HASH_ADD_KEYPTR(hh, p->table, pod->uid, strlen(pod->uid), pod);
    p->stats.n_pending++;
    return pod;
}

static void pod_stop(struct zt_pods *p, struct pod *pod)
{
    if (!pod->up)
        return;
    pod->up = false;
    p->stats.n_active--;
    p->stats.n_pending++;
    p->stats.n_stopped++;
    p->owner->remove(p->owner, pod->uid);
}

static void pod_drop(struct zt_pods *p, struct pod *pod)
{
    pod_stop(p, pod);
    p->stats.n_pending--;
    HASH_DEL(p->table, pod);
    pod_clear(pod);
    zt_free(pod->uid);
    zt_free(pod);
}

static enum zt_err pod_start(struct zt_pods *p, struct pod *pod, struct zt_error *err)
{
    struct zt_pod_info info = pod_info(pod);
    enum zt_err e = p->owner->add(p->owner, pod->uid, &info, pod->netns, err);
    if (e != ZT_OK) {
        zt_log_warn(SCOPE, "failed to start the proxy of %s/%s uid=%s: %s", pod->ns, pod->name,
                    pod->uid, err->text);
        zt_free(pod->pending);
        pod->pending = zt_strdup(err->text);
        if (p->owner->on_start_failed)
            p->owner->on_start_failed(p->owner, err);
        return e;
    }
    zt_free(pod->pending);
    pod->pending = NULL;
    pod->up = true;
    p->stats.n_active++;
    p->stats.n_pending--;
    p->stats.n_started++;
    return ZT_OK;
}

/* ---- readiness and the retry timer ---- */

bool zt_pods_ready(const struct zt_pods *p)
{
    return p->connected && p->snapshot_received && p->stats.n_pending == 0;
}

/* The pod that has waited longest speaks for all. */
static void explain(const struct zt_pods *p, char out[static ZT_PODS_WHY_MAX])
{
    const struct pod *pod = p->stats.n_pending ? p->table : NULL;
    out[0] = '\0';
    while (pod && !pod->pending)
        pod = pod->hh.next;
    if (pod && p->stats.n_pending > 1)
        zt_fmt(out, ZT_PODS_WHY_MAX, "%u pods cannot be started, among them %s/%s: %s",
               p->stats.n_pending, pod->ns, pod->name, pod->pending);
    else if (pod)
        zt_fmt(out, ZT_PODS_WHY_MAX, "pod %s/%s cannot be started: %s", pod->ns, pod->name,
               pod->pending);
}

static void tell_ready(struct zt_task *task)
{
    struct zt_pods *p = zt_container_of(task, struct zt_pods, ready_task);
    bool ready = zt_pods_ready(p);
    char why[ZT_PODS_WHY_MAX];
    explain(p, why);
    if (ready == p->ready_told && strcmp(why, p->why_told) == 0)
        return;
    p->ready_told = ready;
    zt_fmt(p->why_told, sizeof p->why_told, "%s", why);
    p->owner->on_ready(p->owner, ready, why);
}

/* After any change of the connection or the table. */
static void settle(struct zt_pods *p)
{
    struct ev_loop *ev = zt_loop_ev(p->loop);
    bool retry = p->connected && p->stats.n_pending > 0;
    if (retry && !ev_is_active(&p->retry)) {
        ev_timer_set(&p->retry, p->retry_ms / 1e3, 0.);
        ev_timer_start(ev, &p->retry);
    } else if (!retry) {
        ev_timer_stop(ev, &p->retry);
    }
    if (zt_pods_ready(p) && p->client)
        zt_zds_client_settled(p->client);
    if (zt_pods_ready(p) != p->ready_told || p->stats.n_pending || *p->why_told)
        zt_loop_soon(p->loop, &p->ready_task);
}

static void on_retry(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_pods *p = zt_container_of(w, struct zt_pods, retry);
    struct pod *pod, *next;
    HASH_ITER(hh, p->table, pod, next)
    {
        struct zt_error err = ZT_ERROR_INIT;
        if (!pod->up)
            pod_start(p, pod, &err);
    }
    settle(p);
}

/* ---- requests ---- */

static enum zt_zds_verdict protocol_error(char *ack, const char *what)
{
    zt_fmt(ack, ZT_ZDS_ACK_TEXT_MAX, "failure to process message : %s", what);
    return ZT_ZDS_FATAL;
}

static void start_failed(char *ack, const char *why)
{
    zt_fmt(ack, ZT_ZDS_ACK_TEXT_MAX, "failure to start proxy : %s", why);
}

/* Takes ns. */
static void add_pod(struct zt_pods *p, const struct zt_zds_request *r, struct zt_netns *ns,
                    char *ack)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct pod *pod = pod_find(p, r->uid);
    if (pod && pod->up && zt_netns_same(pod->netns, ns)) {
        pod->named = true;
        zt_netns_unref(ns);
        return;
    }
    if (!pod && HASH_COUNT(p->table) >= ZT_PODS_MAX) {
        zt_netns_unref(ns);
        start_failed(ack, "too many pods");
        return;
    }
    if (pod)
        pod_stop(p, pod);
    else
        pod = pod_new(p, r->uid);
    pod->named = true;
    pod_describe(pod, &r->info, ns);
    if (pod_start(p, pod, &err) != ZT_OK)
        start_failed(ack, err.text);
}

static enum zt_zds_verdict on_add(struct zt_pods *p, struct zt_zds_request *r, char *ack)
{
    if (!r->has_info) {
        close(r->netns_fd);
        return protocol_error(ack, "no workload info");
    }
    add_pod(p, r, zt_netns_new(r->netns_fd), ack);
    return ZT_ZDS_ANSWER;
}

static enum zt_zds_verdict on_keep(struct zt_pods *p, const struct zt_zds_request *r, char *ack)
{
    struct pod *pod = pod_find(p, r->uid);
    if (p->snapshot_received)
        return protocol_error(ack, "keep after the snapshot");
    if (pod)
        pod->named = true; /* an unknown uid has nothing that could be kept */
    return ZT_ZDS_ANSWER;
}

static enum zt_zds_verdict on_del(struct zt_pods *p, const struct zt_zds_request *r)
{
    struct pod *pod = pod_find(p, r->uid);
    if (!pod)
        return ZT_ZDS_ANSWER;
    if (pod->up && !p->snapshot_received)
        pod->named = false; /* goes when the snapshot is complete */
    else
        pod_drop(p, pod);
    return ZT_ZDS_ANSWER;
}

static enum zt_zds_verdict on_snapshot_sent(struct zt_pods *p, char *ack)
{
    struct pod *pod, *next;
    if (p->snapshot_received)
        return protocol_error(ack, "second snapshot");
    p->snapshot_received = true;
    HASH_ITER(hh, p->table, pod, next)
    {
        if (pod->up && !pod->named)
            pod_drop(p, pod);
    }
    return ZT_ZDS_ANSWER;
}

static enum zt_zds_verdict on_request(struct zt_zds_client_owner *o, struct zt_zds_request *r,
                                      char ack[static ZT_ZDS_ACK_TEXT_MAX])
{
    struct zt_pods *p = zt_container_of(o, struct zt_pods, client_owner);
    enum zt_zds_verdict v = ZT_ZDS_ANSWER;
    zt_log_debug(SCOPE, "ZDS request kind=%d uid=%s", (int)r->kind, r->uid ? r->uid : "");
    switch (r->kind) {
    case ZT_ZDS_ADD:
        v = on_add(p, r, ack);
        break;
    case ZT_ZDS_KEEP:
        v = on_keep(p, r, ack);
        break;
    case ZT_ZDS_DEL:
        v = on_del(p, r);
        break;
    case ZT_ZDS_SNAPSHOT_SENT:
        v = on_snapshot_sent(p, ack);
        break;
    }
    settle(p);
    return v;
}

/* ---- the connection ---- */

/* What was pending is forgotten: the new snapshot names it again, with a namespace that is alive.
 */
static void on_connected(struct zt_zds_client_owner *o)
{
    struct zt_pods *p = zt_container_of(o, struct zt_pods, client_owner);
    struct pod *pod, *next;
    p->connected = true;
    p->snapshot_received = false;
    HASH_ITER(hh, p->table, pod, next)
    {
        pod->named = false;
        if (!pod->up)
            pod_drop(p, pod);
    }
    settle(p);
}

static void on_disconnected(struct zt_zds_client_owner *o)
{
    struct zt_pods *p = zt_container_of(o, struct zt_pods, client_owner);
    p->connected = false;
    settle(p);
}

static void on_fatal(struct zt_zds_client_owner *o, const struct zt_error *why)
{
    struct zt_pods *p = zt_container_of(o, struct zt_pods, client_owner);
    p->connected = false;
    settle(p);
    zt_task_cancel(&p->ready_task); /* the process ends, this is the last it hears from us */
    p->owner->on_fatal(p->owner, why);
}

/* ---- life ---- */

struct zt_pods *zt_pods_new(struct zt_loop *l, const struct zt_pods_config *c,
                            struct zt_pods_owner *owner)
{
    struct zt_pods *p = zt_new(struct zt_pods);
    p->client_owner = (struct zt_zds_client_owner){.on_connected = on_connected,
                                                   .on_disconnected = on_disconnected,
                                                   .on_request = on_request,
                                                   .on_fatal = on_fatal};
    p->loop = l;
    p->owner = owner;
    p->socket_path = zt_strdup(c->socket_path);
    p->retry_ms = c->retry_ms ? c->retry_ms : ZT_PODS_RETRY_MS;
    p->ready_task.run = tell_ready;
    ev_init(&p->retry, on_retry);
    return p;
}

void zt_pods_start(struct zt_pods *p)
{
    ZT_ASSERT(!p->client);
    p->client = zt_zds_client_new(p->loop, p->socket_path, &p->client_owner);
}

void zt_pods_stop(struct zt_pods *p)
{
    zt_zds_client_free(p->client);
    p->client = NULL;
    p->connected = false;
    settle(p);
}

void zt_pods_free(struct zt_pods *p)
{
    struct pod *pod, *next;
    if (!p)
        return;
    zt_pods_stop(p);
    zt_task_cancel(&p->ready_task);
    HASH_ITER(hh, p->table, pod, next)
    {
        HASH_DEL(p->table, pod);
        pod_clear(pod);
        zt_free(pod->uid);
        zt_free(pod);
    }
    zt_free(p->socket_path);
    zt_free(p);
}

struct zt_pods_stats zt_pods_stats(const struct zt_pods *p)
{
    return p->stats;
}

static int by_uid(const void *a, const void *b)
{
    const struct pod *const *x = a, *const *y = b;
    return strcmp((*x)->uid, (*y)->uid);
}

void zt_pods_each(const struct zt_pods *p, zt_pods_each_fn fn, void *arg)
{
    size_t n = HASH_COUNT(p->table), i = 0;
    struct pod **sorted = zt_new_n(struct pod *, n + 1);
    for (struct pod *pod = p->table; pod; pod = pod->hh.next)
        sorted[i++] = pod;
    qsort(sorted, n, sizeof(struct pod *), by_uid);
    for (i = 0; i < n; i++) {
        struct zt_pod_info info = pod_info(sorted[i]);
        fn(arg, sorted[i]->uid, &info, sorted[i]->pending);
    }
    zt_free(sorted);
}
