/* The CNI daemon's end of ZDS, for the node agent and for tests (spec/inpod §3.2).
 *
 * Invariants: one request under way per peer, because acknowledgements carry no id; a late or
 * unexpected packet ends the connection, so that an answer is never taken for another question's. A
 * peer has one deadline at a time.
 *
 *   state     event                         next
 *   NEW       hello, owner given            IDLE
 *   IDLE      zt_zds_peer_request           SENDING
 *   SENDING   writable, packet sent         AWAITING
 *   AWAITING  acknowledgement               IDLE, on_ack
 *   any       anything else, deadline       gone: on_gone (NEW: nobody is told) */
#include "zt/base/list.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/cni/zds.h"
#include "zt/net/unix_sock.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SCOPE "cni::zds"
#define BACKLOG 16
#define ACCEPT_PAUSE_S 1. /* out of descriptors */

struct zt_zds_server {
    struct zt_deferred deferred;
    struct zt_loop *loop;
    struct zt_zds_server_owner *owner;
    char *path;
    struct zt_unix_file file;
    int fd;
    ev_io io;
    ev_timer pause;
    struct zt_link peers;
    unsigned n_peers, timeout_ms;
    struct zt_log_gate gate;
};

enum peer_state { PEER_NEW, PEER_IDLE, PEER_SENDING, PEER_AWAITING, PEER_GONE };

struct zt_zds_peer {
    struct zt_deferred deferred;
    struct zt_link server_link;
    struct zt_zds_server *server;
    struct zt_zds_peer_owner *owner; /* NULL while NEW */
    enum peer_state state;
    int fd;
    ev_io io;
    ev_timer deadline;
    uint8_t out[ZT_ZDS_PACKET_BYTES_MAX]; /* SENDING */
    size_t out_len;
    int out_fd; /* owned, -1 = none */
};

/* ---- peers ---- */

static struct ev_loop *ev_of(struct zt_zds_peer *p)
{
    return zt_loop_ev(p->server->loop);
}

static void free_peer(struct zt_deferred *d)
{
    zt_free(zt_container_of(d, struct zt_zds_peer, deferred));
}

static void drop_out_fd(struct zt_zds_peer *p)
{
    if (p->out_fd >= 0)
        close(p->out_fd);
    p->out_fd = -1;
}

static void watch(struct zt_zds_peer *p, int events)
{
    ev_io_stop(ev_of(p), &p->io);
    ev_io_set(&p->io, p->fd, events);
    ev_io_start(ev_of(p), &p->io);
}

static void set_deadline(struct zt_zds_peer *p, unsigned ms)
{
    ev_timer_stop(ev_of(p), &p->deadline);
    if (ms == 0)
        return;
    ev_timer_set(&p->deadline, ms / 1e3, 0.);
    ev_timer_start(ev_of(p), &p->deadline);
}

void zt_zds_peer_close(struct zt_zds_peer *p)
{
    if (p->state == PEER_GONE)
        return;
    p->state = PEER_GONE;
    ev_io_stop(ev_of(p), &p->io);
    ev_timer_stop(ev_of(p), &p->deadline);
    drop_out_fd(p);
    close(p->fd);
    zt_list_remove(&p->server_link);
    p->server->n_peers--;
    zt_loop_defer_free(p->server->loop, &p->deferred);
}

static void gone(struct zt_zds_peer *p, const struct zt_error *why)
{
    struct zt_zds_peer_owner *o = p->owner;
    zt_zds_peer_close(p);
    if (o)
        o->on_gone(o, p, why);
}

static void on_deadline(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_zds_peer *p = zt_container_of(w, struct zt_zds_peer, deadline);
    struct zt_error why;
    zt_error_set(&why, ZT_TIMEOUT, "%s",
                 p->state == PEER_NEW ? "no hello in time" : "no acknowledgement in time");
    gone(p, &why);
}

/* The packet under way. False: gone, or it has to wait. */
static bool send_out(struct zt_zds_peer *p)
{
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_err e = zt_zds_send(p->fd, p->out, p->out_len, p->out_fd, &err);
    if (e == ZT_AGAIN)
        return false;
    if (e != ZT_OK) {
        gone(p, &err);
        return false;
    }
    drop_out_fd(p);
    p->state = PEER_AWAITING;
    watch(p, EV_READ);
    return true;
}

static enum zt_err take_hello(struct zt_zds_peer *p, const uint8_t *bytes, size_t len,
                              struct zt_error *err)
{
    unsigned version = 0;
    enum zt_err e = zt_zds_decode_hello(bytes, len, &version, err);
    if (e != ZT_OK)
        return e;
    p->state = PEER_IDLE;
    set_deadline(p, 0);
    p->owner = p->server->owner->on_hello(p->server->owner, p, version);
    if (!p->owner)
        zt_zds_peer_close(p);
    return ZT_OK;
}

static enum zt_err take_ack(struct zt_zds_peer *p, const uint8_t *bytes, size_t len,
                            struct zt_error *err)
{
    char text[ZT_ZDS_ACK_TEXT_MAX];
    enum zt_err e = zt_zds_decode_ack(bytes, len, text, err);
    if (e != ZT_OK)
        return e;
    p->state = PEER_IDLE;
    set_deadline(p, 0);
    p->owner->on_ack(p->owner, p, text);
    return ZT_OK;
}

static void read_one(struct zt_zds_peer *p)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    size_t len = 0;
    int fd = -1;
    enum zt_err e = zt_zds_recv(p->fd, buf, &len, &fd, &err);
    if (e == ZT_AGAIN)
        return;
    if (e == ZT_EOF)
        zt_error_set(&err, ZT_EOF, "connection closed");
    if (fd >= 0) { /* a proxy has none to give */
        close(fd);
        e = zt_error_set(&err, ZT_INVALID, "unexpected file descriptor");
    }
    if (e == ZT_OK && p->state == PEER_NEW)
        e = take_hello(p, buf, len, &err);
    else if (e == ZT_OK && p->state == PEER_AWAITING)
        e = take_ack(p, buf, len, &err);
    else if (e == ZT_OK)
        e = zt_error_set(&err, ZT_INVALID, "unexpected packet");
    if (e != ZT_OK)
        gone(p, &err);
}

static void on_peer_io(struct ev_loop *ev, ev_io *w, int revents)
{
    struct zt_zds_peer *p = zt_container_of(w, struct zt_zds_peer, io);
    if ((revents & EV_WRITE) && p->state == PEER_SENDING && !send_out(p))
        return;
    if (revents & EV_READ)
        read_one(p);
}

enum zt_err zt_zds_peer_request(struct zt_zds_peer *p, const struct zt_zds_request *r)
{
    ZT_ASSERT(p->state == PEER_IDLE);
    p->out_len = zt_zds_encode_request(r, p->out);
    if (p->out_len == 0)
        return ZT_INVALID;
    if (r->kind == ZT_ZDS_ADD) {
        p->out_fd = r->netns_fd >= 0 ? fcntl(r->netns_fd, F_DUPFD_CLOEXEC, 0) : -1;
        if (p->out_fd < 0)
            return ZT_INVALID;
    }
    p->state = PEER_SENDING;
    set_deadline(p, p->server->timeout_ms);
    watch(p, EV_READ | EV_WRITE);
    return ZT_OK;
}

bool zt_zds_peer_busy(const struct zt_zds_peer *p)
{
    return p->state == PEER_SENDING || p->state == PEER_AWAITING;
}

/* ---- the listener ---- */

static void take_peer(struct zt_zds_server *s, int fd)
{
    if (s->n_peers == ZT_ZDS_PEERS_MAX) {
        uint32_t suppressed;
        close(fd);
        if (zt_log_gate_pass(&s->gate, 1, &suppressed))
            zt_log_warn(SCOPE, "more than %d connections, refused suppressed=%u", ZT_ZDS_PEERS_MAX,
                        suppressed);
        return;
    }
    struct zt_zds_peer *p = zt_new(struct zt_zds_peer);
    p->deferred.free = free_peer;
    p->server = s;
    p->fd = fd;
    p->out_fd = -1;
    zt_list_push_back(&s->peers, &p->server_link);
    s->n_peers++;
    ev_init(&p->io, on_peer_io);
    ev_init(&p->deadline, on_deadline);
    watch(p, EV_READ);
    set_deadline(p, s->timeout_ms);
}

static void on_accept(struct ev_loop *ev, ev_io *w, int revents)
{
    struct zt_zds_server *s = zt_container_of(w, struct zt_zds_server, io);
    for (unsigned i = 0; i < ZT_ZDS_PEERS_MAX; i++) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take_peer(s, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            ev_io_stop(ev, w); /* the listener survives; it would spin otherwise */
            ev_timer_set(&s->pause, ACCEPT_PAUSE_S, 0.);
            ev_timer_start(ev, &s->pause);
            return;
        } else {
            return;
        }
    }
}

static void on_pause_over(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_zds_server *s = zt_container_of(w, struct zt_zds_server, pause);
    ev_io_start(ev, &s->io);
}

static void free_server(struct zt_deferred *d)
{
    struct zt_zds_server *s = zt_container_of(d, struct zt_zds_server, deferred);
    zt_free(s->path);
    zt_free(s);
}

struct zt_zds_server *zt_zds_server_new(struct zt_loop *l, const char *path,
                                        struct zt_zds_server_owner *owner, struct zt_error *err)
{
    struct zt_zds_server *s = zt_new(struct zt_zds_server);
    s->deferred.free = free_server;
    s->loop = l;
    s->owner = owner;
    s->path = zt_strdup(path);
    s->timeout_ms = ZT_ZDS_TIMEOUT_MS;
    s->fd = -1;
    zt_list_init(&s->peers);
    ev_init(&s->io, on_accept);
    ev_init(&s->pause, on_pause_over);
    if (zt_unix_listen(path, SOCK_SEQPACKET, BACKLOG, &s->fd, &s->file, err) != ZT_OK) {
        zt_zds_server_free(s);
        return NULL;
    }
    ev_io_set(&s->io, s->fd, EV_READ);
    ev_io_start(zt_loop_ev(l), &s->io);
    return s;
}

void zt_zds_server_set_timeout(struct zt_zds_server *s, unsigned timeout_ms)
{
    s->timeout_ms = timeout_ms;
}

void zt_zds_server_free(struct zt_zds_server *s)
{
    if (!s)
        return;
    zt_list_each_safe (it, &s->peers)
        zt_zds_peer_close(zt_container_of(it, struct zt_zds_peer, server_link));
    ev_io_stop(zt_loop_ev(s->loop), &s->io);
    ev_timer_stop(zt_loop_ev(s->loop), &s->pause);
    if (s->fd >= 0)
        close(s->fd);
    zt_unix_unlink(s->path, &s->file);
    zt_loop_defer_free(s->loop, &s->deferred);
}
