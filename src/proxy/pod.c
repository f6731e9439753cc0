/* One pod's proxy: its listeners, its connections, its tunnels, its end.
 *
 *   state     on                                            to
 *   NEW       adopted by the home worker                    RUNNING
 *   RUNNING   drain: listeners emptied and closed, GOAWAY   DRAINING
 *   any       close: everything that is left is cut         CLOSED
 *
 * Control makes it with its sockets open; from adoption on only the home worker touches it. */
#include "proxy_impl.h"

#include "zt/base/log.h"
#include "zt/net/fd_guard.h"
#include "zt/proxy/record.h"
#include <unistd.h>

static const struct {
    uint16_t port;
    const char *component; /* the log's name for it (spec/interfaces §7.4) */
    const char *scope;
} listener_info[ZT_LISTEN_N] = {
    [ZT_LISTEN_HBONE] = {ZT_PORT_HBONE, "inbound", "proxy::inbound"},
    [ZT_LISTEN_PASSTHROUGH] = {ZT_PORT_PASSTHROUGH, "inbound plaintext", "proxy::inbound_passthrough"},
    [ZT_LISTEN_OUTBOUND] = {ZT_PORT_OUTBOUND, "outbound", "proxy::outbound"},
    [ZT_LISTEN_SOCKS5] = {ZT_PORT_SOCKS5, "socks5", "proxy::socks5"},
};

/* ---- made by control ---- */

static struct zt_sock_opts opts_for(const struct zt_sock_opts *configured, enum zt_pod_kind kind)
{
    struct zt_sock_opts o = *configured;
    if (kind == ZT_POD_SELF) {
        /* Our own namespace has no redirection: no mark, no overlap, and the client's address is not ours to use. */
        o.mark = 0;
        o.reuse_port = false;
        o.orig_src = ZT_ORIG_SRC_NEVER;
    }
    if (kind == ZT_POD_DEDICATED) {
        o.mark_listeners = false;
        o.reuse_port = false;
    }
    return o;
}

static void log_listening(const struct zt_pod *pod, enum zt_listener_kind k)
{
    if (!zt_log_on(ZT_LOG_INFO, listener_info[k].scope))
        return;
    struct zt_log_line l;
    char text[ZT_ADDR_TEXT_MAX], owner[600];
    struct zt_addr a = zt_sock_local(pod->listeners[k].fd);
    zt_fmt(owner, sizeof(owner), "%s/%s", pod->ns, pod->name);
    zt_log_begin(&l, ZT_LOG_INFO, listener_info[k].scope, "listener established");
    zt_log_span(&l, "proxy", "wl", owner);
    zt_log_raw(&l, "address", zt_addr_format(&a, text));
    zt_log_str(&l, "component", listener_info[k].component);
    zt_log_bool(&l, "transparent", pod->listeners[k].transparent);
    zt_log_end(&l);
}

static bool is_wanted(const struct zt_pod *pod, enum zt_listener_kind k)
{
    const struct zt_proxy_config *c = &pod->w->proxy->config;
    if (pod->kind == ZT_POD_SELF)
        return k == ZT_LISTEN_HBONE;
    return c->enabled && (k != ZT_LISTEN_SOCKS5 || c->socks5);
}

static enum zt_err open_listeners(struct zt_pod *pod, struct zt_error *err)
{
    const struct zt_addr socks5 = {zt_ip_loopback(ZT_IPV4), ZT_PORT_SOCKS5};
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        struct zt_listener *l = &pod->listeners[k];
        if (!is_wanted(pod, (enum zt_listener_kind)k))
            continue;
        enum zt_err e = k == ZT_LISTEN_SOCKS5
                            ? zt_sock_listen_at(pod->netns, &socks5, &pod->sock, &l->fd, &l->transparent, err)
                            : zt_sock_listen(pod->netns, listener_info[k].port, &pod->sock, &l->fd, &l->transparent, err);
        if (e != ZT_OK)
            return e;
        log_listening(pod, (enum zt_listener_kind)k);
    }
    return ZT_OK;
}

/* Streams of the pod hold more than they may: one was reset. */
static void on_queued_shed(struct zt_h2_budget *b)
{
    zt_pod_shed(zt_container_of(b, struct zt_pod, queued), ZT_LIMIT_POD_QUEUED_BYTES);
}

static void init_limits(struct zt_pod *pod)
{
    const struct zt_limits_config *c = &pod->w->proxy->config.limits;
    zt_limits_init(&pod->limits, c);
    pod->dials.max = c->max[ZT_LIMIT_POD_DIALS];
    pod->sock.quota = &pod->dials;
    pod->queued.max = c->max[ZT_LIMIT_POD_QUEUED_BYTES];
    pod->queued.on_shed = on_queued_shed;
    zt_list_init(&pod->queued.holders);
}

static void dns_became_idle(void *arg)
{
    zt_worker_pod_idle(((struct zt_pod *)arg)->w);
}

/* Our own tunnel end asks nobody. */
static enum zt_err open_dns(struct zt_pod *pod, struct zt_error *err)
{
    const struct zt_dns_server_config c = {
        .ns = pod->ns,
        .name = pod->name,
        .service_account = pod->service_account,
        .netns = pod->netns,
        .sock = pod->sock,
        .listen = pod->w->proxy->config.dns.proxy,
        .on_idle = dns_became_idle,
        .arg = pod,
    };
    return pod->kind == ZT_POD_SELF || !c.listen ? ZT_OK : zt_dns_server_new(pod->w->dns, &c, &pod->dns, err);
}

/* Secrets of named pods only. The line comes with every such pod: a key log must not be forgotten. */
static struct zt_tls_keylog *keylog_for(const struct zt_proxy *p, const struct zt_pod_id *id)
{
    char name[ZT_POD_NAME_MAX];
    if (!p->config.keylog || !zt_fmt(name, sizeof(name), "%s/%s", id->ns, id->name))
        return NULL;
    size_t len = strlen(name);
    for (const char *at = p->config.keylog_pods; (at = strstr(at, name)); at += len) {
        if ((at == p->config.keylog_pods || at[-1] == ',') && (!at[len] || at[len] == ',')) {
            zt_log_warn("proxy", "the TLS secrets of %s are written to SSLKEYLOGFILE: whoever has that file can read its tunnels", name);
            return p->config.keylog;
        }
    }
    return NULL;
}

struct zt_pod *zt_pod_new(struct zt_proxy *p, struct zt_worker *home, enum zt_pod_kind kind, const struct zt_pod_id *id,
                          struct zt_netns *netns, struct zt_error *err)
{
    struct zt_pod *pod = zt_new(struct zt_pod);
    pod->w = home;
    pod->kind = kind;
    pod->uid = zt_strdup(id->uid);
    pod->ns = zt_strdup(id->ns);
    pod->name = zt_strdup(id->name);
    pod->service_account = zt_strdup(id->service_account);
    pod->netns = zt_netns_ref(netns);
    pod->keylog = keylog_for(p, id);
    pod->sock = opts_for(&p->config.sock, kind);
    zt_list_init(&pod->servers);
    zt_list_init(&pod->socks);
    zt_list_init(&pod->conns);
    zt_list_init(&pod->creds);
    init_limits(pod);
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        pod->listeners[k].pod = pod;
        pod->listeners[k].fd = -1;
    }
    if (open_listeners(pod, err) == ZT_OK && open_dns(pod, err) == ZT_OK)
        return pod;
    zt_pod_free(pod);
    return NULL;
}

void zt_pod_refuse(struct zt_pod *pod)
{
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        if (pod->listeners[k].fd >= 0)
            shutdown(pod->listeners[k].fd, SHUT_RDWR); /* a listener no more; the worker closes it */
    }
    if (pod->dns)
        zt_dns_server_refuse(pod->dns);
}

void zt_pod_free(struct zt_pod *pod)
{
    if (!pod)
        return;
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        if (pod->listeners[k].fd >= 0)
            close(pod->listeners[k].fd);
    }
    zt_dns_server_free(pod->dns);
    zt_netns_unref(pod->netns);
    zt_limits_fini(&pod->limits);
    zt_free(pod->uid);
    zt_free(pod->ns);
    zt_free(pod->name);
    zt_free(pod->service_account);
    zt_free(pod);
}

/* ---- limits ---- */

void zt_pod_shed(struct zt_pod *pod, enum zt_limit limit)
{
    zt_limits_shed(pod->w->shard, &pod->w->limit_gates[limit], limit, pod->uid, pod->limits.config->max[limit]);
}

bool zt_pod_admits(struct zt_pod *pod, const struct zt_ip *peer)
{
    enum zt_limit hit;
    if (zt_limits_connection(&pod->limits, peer, zt_loop_now_ms(pod->w->loop), &hit))
        return true;
    zt_pod_shed(pod, hit);
    return false;
}

enum zt_err zt_pod_dial_error(struct zt_pod *pod, int errnum, enum zt_err code, struct zt_error *err)
{
    char os[128];
    if (errnum == EDQUOT) {
        zt_pod_shed(pod, ZT_LIMIT_POD_DIALS);
        return zt_error_set(err, ZT_LIMIT, "pending dials of the pod");
    }
    if (errnum == EMFILE || errnum == EADDRNOTAVAIL)
        zt_worker_exhausted(pod->w, errnum);
    return zt_error_set(err, code, "%s", zt_errno_text(errnum, os, sizeof(os)));
}

void zt_pod_tunnel_gone(struct zt_pod *pod, struct zt_hbone_server *s)
{
    zt_worker_count_socket(pod->w, false, -1);
    zt_limits_tunnel_end(&pod->limits, &zt_hbone_server_peer(s)->ip, zt_loop_now_ms(pod->w->loop));
}

/* ---- accepting ---- */

static void accept_hbone(struct zt_pod *pod, int fd, const struct zt_addr *client)
{
    const struct zt_proxy_config *cfg = &pod->w->proxy->config;
    enum zt_limit hit;
    if (!zt_limits_tunnel(&pod->limits, &client->ip, zt_loop_now_ms(pod->w->loop), &hit)) {
        zt_pod_shed(pod, hit);
        zt_client_reset(fd);
        return;
    }
    struct zt_hbone_server_config c = {
        .loop = pod->w->loop,
        .h2 = cfg->h2_server,
        .shard = pod->w->shard,
        .crl = cfg->crl,
        .creds = &pod->cred_source,
        .keylog = pod->keylog,
        .vitals = &pod->w->vitals,
        .handshake_timeout_ms = cfg->connect_timeout_ms,
        .ops = &zt_inbound_ops,
        .list = &pod->servers,
        .owner = pod,
    };
    c.h2.budget = &pod->queued;
    struct zt_addr local = zt_sock_local(fd);
    zt_worker_count_socket(pod->w, false, 1);
    struct zt_hbone_server *s = zt_hbone_server_accept(&c, fd, client, &local);
    if (pod->state == ZT_POD_DRAINING)
        zt_hbone_server_drain(s);
}

static void accepted(struct zt_listener *l, int fd, const struct zt_addr *client)
{
    struct zt_pod *pod = l->pod;
    enum zt_listener_kind k = (enum zt_listener_kind)(l - pod->listeners);
    /* HBONE has its own liveness probe, PING; the others rely on keep-alive (spec/dataplane §1.3). */
    bool keepalive = k != ZT_LISTEN_HBONE && k != ZT_LISTEN_SOCKS5;
    if (client->ip.family == ZT_IP_NONE || zt_sock_setup_accepted(fd, &pod->sock, keepalive) < 0) {
        close(fd); /* the client is gone already */
        return;
    }
    if (k == ZT_LISTEN_HBONE)
        accept_hbone(pod, fd, client);
    else if (k == ZT_LISTEN_OUTBOUND)
        zt_outbound_accept(pod, fd, client, l->transparent);
    else if (k == ZT_LISTEN_SOCKS5)
        zt_socks5_accept(pod, fd, client);
    else
        zt_passthrough_accept(pod, fd, client, l->transparent, l->transparent);
}

static void pause_listener(struct zt_listener *l, int errnum)
{
    struct ev_loop *ev = zt_loop_ev(l->pod->w->loop);
    zt_worker_exhausted(l->pod->w, errnum);
    ev_io_stop(ev, &l->io);
    ev_timer_set(&l->backoff, ZT_ACCEPT_BACKOFF_MS / 1000.0, 0.);
    ev_timer_start(ev, &l->backoff);
}

/* Accepts one. Returns 0, or the errno that ends this turn (EAGAIN: the queue is empty). */
static int accept_one(struct zt_listener *l)
{
    struct zt_worker *w = l->pod->w;
    if (!zt_fd_guard_room(w->newest_fd))
        return EMFILE;
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    int fd = accept4(l->fd, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        struct zt_addr client = zt_addr_from_sockaddr((struct sockaddr *)&sa);
        w->newest_fd = fd;
        accepted(l, fd, &client);
        return 0;
    }
    switch (errno) {
    case EAGAIN:
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        return errno;
    case EINVAL: /* zt_pod_refuse; the end follows */
        return EAGAIN;
    default:
        return 0; /* this connection is gone (ECONNABORTED and friends, accept(2)); the listener lives on */
    }
}

static void on_acceptable(struct ev_loop *ev, ev_io *io, int revents)
{
    struct zt_listener *l = zt_container_of(io, struct zt_listener, io);
    int stop = 0;
    for (int i = 0; i < ZT_ACCEPTS_PER_TURN && !stop && l->fd >= 0; i++)
        stop = accept_one(l);
    if (stop && stop != EAGAIN)
        pause_listener(l, stop);
}

static void on_backoff_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_listener *l = zt_container_of(t, struct zt_listener, backoff);
    if (l->fd >= 0)
        ev_io_start(ev, &l->io);
}

static void close_listener(struct zt_listener *l)
{
    struct ev_loop *ev = zt_loop_ev(l->pod->w->loop);
    if (l->fd < 0)
        return;
    ev_io_stop(ev, &l->io);
    ev_timer_stop(ev, &l->backoff);
    close(l->fd);
    l->fd = -1;
}

/* Closing a listener resets what waits in its queue: take that in first (spec/inpod §2.8). Who keeps connecting meanwhile must not
 * keep us here: no more than the queue holds. */
static void drain_listener(struct zt_listener *l)
{
    int stop = 0;
    for (int i = 0; i <= ZT_SOCK_BACKLOG && !stop && l->fd >= 0; i++)
        stop = accept_one(l);
    close_listener(l);
}

/* ---- life on the worker ---- */

void zt_pod_start(struct zt_pod *pod)
{
    const struct zt_proxy_config *cfg = &pod->w->proxy->config;
    struct ev_loop *ev = zt_loop_ev(pod->w->loop);
    ZT_ASSERT(pod->state == ZT_POD_NEW);
    pod->state = ZT_POD_RUNNING;
    zt_list_push_back(&pod->w->pods, &pod->worker_link);
    zt_pod_creds_init(pod);
    zt_recorder_pod(pod);
    struct zt_hbone_pool_config pool = {
        .loop = pod->w->loop,
        .h2 = cfg->h2_client,
        .netns = pod->netns,
        .sock = pod->sock,
        .creds = &pod->cred_source,
        .keylog = pod->keylog,
        .vitals = &pod->w->vitals,
        .streams_max = cfg->pool_max_streams,
        .unused_timeout_ms = cfg->pool_unused_timeout_ms,
        .connect_timeout_ms = cfg->connect_timeout_ms,
        .shard = pod->w->shard,
        .crl = cfg->crl,
        .pod = pod,
    };
    pool.h2.budget = &pod->queued;
    pod->pool = zt_hbone_pool_new(&pool);
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        struct zt_listener *l = &pod->listeners[k];
        ev_init(&l->io, on_acceptable);
        ev_init(&l->backoff, on_backoff_over);
        if (l->fd < 0)
            continue;
        ev_io_set(&l->io, l->fd, EV_READ);
        ev_io_start(ev, &l->io);
    }
    if (pod->dns)
        zt_dns_server_start(pod->dns);
}

void zt_pod_state_changed(struct zt_pod *pod)
{
    zt_pod_creds_state_changed(pod);
    if (pod->dns)
        zt_dns_server_state_changed(pod->dns);
    zt_list_each_safe(link, &pod->conns) {
        struct zt_conn *c = zt_container_of(link, struct zt_conn, pod_link);
        c->ops->state_changed(c);
    }
}

void zt_pod_revoke(struct zt_pod *pod)
{
    unsigned n = 0;
    zt_list_each_safe(link, &pod->servers) {
        struct zt_hbone_server *s = zt_hbone_server_from_link(link);
        if (!zt_hbone_server_revoked(s))
            continue;
        zt_hbone_server_close(s, ZT_REVOKED);
        zt_pod_tunnel_gone(pod, s);
        n++;
    }
    zt_telemetry_revoked(pod->w->shard, false, n);
    zt_telemetry_revoked(pod->w->shard, true, pod->pool ? zt_hbone_pool_revoke(pod->pool) : 0);
    zt_worker_pod_idle(pod->w);
}

void zt_pod_drain(struct zt_pod *pod)
{
    if (pod->state != ZT_POD_RUNNING)
        return;
    pod->state = ZT_POD_DRAINING;
    for (int k = 0; k < ZT_LISTEN_N; k++)
        drain_listener(&pod->listeners[k]);
    if (pod->dns)
        zt_dns_server_drain(pod->dns);
    zt_list_each_safe(link, &pod->servers) zt_hbone_server_drain(zt_hbone_server_from_link(link));
    zt_hbone_pool_drain(pod->pool);
}

bool zt_pod_idle(const struct zt_pod *pod)
{
    return pod->state != ZT_POD_RUNNING && zt_list_empty(&pod->conns) && zt_list_empty(&pod->servers) &&
           zt_list_empty(&pod->socks) && (!pod->dns || zt_dns_server_idle(pod->dns));
}

void zt_pod_close(struct zt_pod *pod, enum zt_err why)
{
    if (pod->state == ZT_POD_CLOSED)
        return;
    pod->state = ZT_POD_CLOSED;
    for (int k = 0; k < ZT_LISTEN_N; k++)
        close_listener(&pod->listeners[k]);
    zt_socks5_close_all(pod);
    if (pod->dns)
        zt_dns_server_stop(pod->dns);
    struct zt_link *link;
    while ((link = zt_list_first(&pod->conns))) {
        struct zt_conn *c = zt_container_of(link, struct zt_conn, pod_link);
        c->ops->abort(c, why);
    }
    while ((link = zt_list_first(&pod->servers))) {
        struct zt_hbone_server *s = zt_hbone_server_from_link(link);
        zt_hbone_server_close(s, why);
        zt_pod_tunnel_gone(pod, s);
    }
    zt_hbone_pool_free(pod->pool);
    pod->pool = NULL;
    zt_pod_creds_fini(pod);
    zt_list_remove(&pod->worker_link);
}

/* ---- what others ask about the pod ---- */

struct zt_workload *zt_pod_workload(struct zt_pod *pod)
{
    return zt_store_find_local(pod->w->proxy->store, pod->ns, pod->name, pod->service_account);
}

bool zt_pod_identity(const struct zt_pod *pod, const struct zt_workload *w, char out[static ZT_IDENTITY_MAX])
{
    return zt_identity_format(out, w->trust_domain, pod->ns, pod->service_account);
}

void zt_pod_unknown_error(const struct zt_pod *pod, struct zt_error *err)
{
    zt_error_set(err, ZT_NO_WORKLOAD, "%s.%s (%s)", pod->service_account, pod->ns, pod->name);
}

const char *zt_component_name(enum zt_listener_kind k)
{
    return listener_info[k].component;
}

unsigned zt_illegal_ports(const struct zt_proxy *p, uint16_t out[static 4])
{
    unsigned n = 0;
    out[n++] = ZT_PORT_OUTBOUND;
    out[n++] = ZT_PORT_PASSTHROUGH;
    out[n++] = ZT_PORT_HBONE;
    if (p->config.socks5)
        out[n++] = ZT_PORT_SOCKS5;
    return n;
}

bool zt_port_is_illegal(const struct zt_proxy *p, uint16_t port)
{
    uint16_t ports[4];
    unsigned n = zt_illegal_ports(p, ports);
    for (unsigned i = 0; i < n; i++) {
        if (ports[i] == port)
            return true;
    }
    return false;
}

struct zt_baggage zt_workload_baggage(const struct zt_workload *w)
{
    return (struct zt_baggage){
        .cluster = w->cluster_id,
        .ns = w->ns,
        .workload_type = w->workload_type,
        .workload_name = w->workload_name,
        .service_name = w->canonical_name,
        .service_version = w->canonical_revision,
        .region = w->region,
        .zone = w->zone,
    };
}
