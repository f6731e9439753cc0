/* The daemons that are connected over ZDS: during an upgrade there are two. As istio-cni does (spec/inpod §3.2): a new connection
 * gets every announced pod and then the end of the snapshot; a new pod goes to the newest connection only; a withdrawn pod to
 * every connection. When the newest goes, the one before it is the newest again and is told everything anew (an Add of a pod that it
 * serves changes nothing).
 *
 * Each connection has a queue of what it has to be told, one request under way at a time. Invariant: whoever was asked to answer
 * for a pod's Del counts once in n_dels, and ends that count by its answer or by its end. */
#include "agent_impl.h"
#include "zt/base/log.h"
#include <string.h>

#define SCOPE "agent::zds"
#define QUEUE_MAX (4 * ZT_PODLIST_MAX) /* requests; a daemon that far behind starts again with a snapshot */

struct daemon_op {
    struct zt_link op_link;
    enum zt_zds_kind kind;
    char uid[ZT_PODLIST_UID_MAX + 1];
};

struct daemon {
    struct zt_link daemon_link;
    struct zt_zds_peer_owner owner;
    struct zt_agent *agent;
    struct zt_zds_peer *peer;
    struct zt_link ops; /* the first is under way when the peer is busy */
    unsigned n_ops;
    struct zt_task pump_task;
    struct zt_deferred deferred;
};

static struct daemon *newest(const struct zt_agent *a)
{
    return zt_list_empty(&a->daemons) ? NULL : zt_container_of(a->daemons.prev, struct daemon, daemon_link);
}

unsigned zt_daemons_count(const struct zt_agent *a)
{
    unsigned n = 0;
    zt_list_each(l, &a->daemons) n++;
    return n;
}

static struct zt_agent_pod *pod_by_uid(struct zt_agent *a, const char *uid)
{
    struct zt_agent_pod *p;
    HASH_FIND(hh, a->pods, uid, strlen(uid), p);
    return p;
}

static void op_done(struct daemon *d, struct daemon_op *op)
{
    zt_list_remove(&op->op_link);
    d->n_ops--;
    zt_free(op);
}

static void push(struct daemon *d, enum zt_zds_kind kind, const char *uid)
{
    struct daemon_op *op = zt_new(struct daemon_op);
    op->kind = kind;
    if (uid)
        zt_fmt(op->uid, sizeof op->uid, "%s", uid);
    zt_list_push_back(&d->ops, &op->op_link);
    d->n_ops++;
    zt_loop_soon(d->agent->loop, &d->pump_task);
}

static void deferred_free(struct zt_deferred *df)
{
    zt_free(zt_container_of(df, struct daemon, deferred));
}

/* The connection is no more (or never answers again): the Dels it owes count as answered. */
static void daemon_end(struct daemon *d)
{
    struct zt_agent *a = d->agent;
    bool was_newest = d == newest(a);
    zt_list_remove(&d->daemon_link);
    zt_task_cancel(&d->pump_task);
    zt_list_each_safe(l, &d->ops)
    {
        struct daemon_op *op = zt_container_of(l, struct daemon_op, op_link);
        struct zt_agent_pod *p = op->kind == ZT_ZDS_DEL ? pod_by_uid(a, op->uid) : NULL;
        op_done(d, op);
        if (p)
            zt_enrol_on_del_done(p);
    }
    zt_loop_defer_free(a->loop, &d->deferred);
    if (!was_newest || a->stopping)
        return;
    for (struct zt_agent_pod *p = a->pods; p; p = p->hh.next) {
        zt_enrol_on_newest_changed(p);
        if (zt_enrol_is_announced(p))
            zt_daemons_add(p);
    }
}

/* Fills r from the queue's head; false: nothing to send for it any more. */
static bool request_from(const struct daemon *d, const struct daemon_op *op, struct zt_zds_request *r)
{
    memset(r, 0, sizeof *r);
    r->kind = op->kind;
    r->uid = op->uid;
    r->netns_fd = -1;
    if (op->kind != ZT_ZDS_ADD)
        return true;
    const struct zt_agent_pod *p = pod_by_uid(d->agent, op->uid);
    if (!p || !zt_enrol_is_announced(p))
        return false;
    r->has_info = true;
    r->info = (struct zt_pod_info){.name = p->want.name, .ns = p->want.ns, .service_account = p->want.service_account};
    r->netns_fd = zt_netns_fd(p->ns);
    return true;
}

static void pump(struct zt_task *task)
{
    struct daemon *d = zt_container_of(task, struct daemon, pump_task);
    struct zt_zds_request r;
    if (d->n_ops > QUEUE_MAX) {
        zt_log_warn(SCOPE, "the daemon is %u requests behind, closing its connection", d->n_ops);
        zt_zds_peer_close(d->peer);
        daemon_end(d);
        return;
    }
    while (!zt_zds_peer_busy(d->peer) && d->n_ops) {
        struct daemon_op *op = zt_container_of(zt_list_first(&d->ops), struct daemon_op, op_link);
        if (request_from(d, op, &r) && zt_zds_peer_request(d->peer, &r) == ZT_OK)
            return;
        op_done(d, op); /* the pod left meanwhile (the limits of podlist.h make every message fit) */
    }
}

static void on_ack(struct zt_zds_peer_owner *o, struct zt_zds_peer *peer, const char *error)
{
    struct daemon *d = zt_container_of(o, struct daemon, owner);
    struct daemon_op op = *zt_container_of(zt_list_first(&d->ops), struct daemon_op, op_link);
    op_done(d, zt_container_of(zt_list_first(&d->ops), struct daemon_op, op_link));
    if (d->n_ops)
        zt_loop_soon(d->agent->loop, &d->pump_task);
    struct zt_agent_pod *p = op.kind == ZT_ZDS_SNAPSHOT_SENT ? NULL : pod_by_uid(d->agent, op.uid);
    if (op.kind == ZT_ZDS_SNAPSHOT_SENT)
        zt_log_info(SCOPE, "the daemon has the whole list");
    else if (p && op.kind == ZT_ZDS_ADD && d == newest(d->agent))
        zt_enrol_on_ack(p, error);
    else if (p && op.kind == ZT_ZDS_DEL)
        zt_enrol_on_del_done(p);
}

static void on_gone(struct zt_zds_peer_owner *o, struct zt_zds_peer *peer, const struct zt_error *why)
{
    struct daemon *d = zt_container_of(o, struct daemon, owner);
    zt_log_warn(SCOPE, "daemon disconnected: %s", why->text);
    daemon_end(d);
}

static struct zt_zds_peer_owner *on_hello(struct zt_zds_server_owner *o, struct zt_zds_peer *peer, unsigned version)
{
    struct zt_agent *a = zt_container_of(o, struct zt_agent, zds_owner);
    struct daemon *d = zt_new(struct daemon);
    d->owner.on_ack = on_ack;
    d->owner.on_gone = on_gone;
    d->agent = a;
    d->peer = peer;
    d->pump_task.run = pump;
    d->deferred.free = deferred_free;
    zt_list_init(&d->ops);
    zt_list_push_back(&a->daemons, &d->daemon_link);
    zt_log_info(SCOPE, "daemon connected, protocol version %u", version);
    for (struct zt_agent_pod *p = a->pods; p; p = p->hh.next) {
        zt_enrol_on_newest_changed(p);
        if (zt_enrol_is_announced(p))
            zt_daemons_add(p);
        else if (p->state == POD_PROBING)
            push(d, ZT_ZDS_KEEP, p->want.uid); /* a daemon that serves it from before our start must not drop it */
    }
    push(d, ZT_ZDS_SNAPSHOT_SENT, NULL);
    return &d->owner;
}

void zt_daemons_add(struct zt_agent_pod *p)
{
    struct daemon *d = newest(p->agent);
    if (!d || p->told)
        return;
    p->told = true;
    push(d, ZT_ZDS_ADD, p->want.uid);
}

void zt_daemons_del(struct zt_agent_pod *p)
{
    p->n_dels = 0;
    zt_list_each(l, &p->agent->daemons)
    {
        push(zt_container_of(l, struct daemon, daemon_link), ZT_ZDS_DEL, p->want.uid);
        p->n_dels++;
    }
}

enum zt_err zt_daemons_open(struct zt_agent *a, struct zt_error *err)
{
    zt_list_init(&a->daemons);
    a->zds_owner.on_hello = on_hello;
    a->zds = zt_zds_server_new(a->loop, a->o->socket_path, &a->zds_owner, err);
    return a->zds ? ZT_OK : err->code;
}

void zt_daemons_close(struct zt_agent *a)
{
    zt_zds_server_free(a->zds);
    a->zds = NULL;
    zt_list_each_safe(l, &a->daemons) daemon_end(zt_container_of(l, struct daemon, daemon_link));
}
