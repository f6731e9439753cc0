/* One incoming HBONE tunnel: credential, TLS accept, HTTP/2.
 *
 *   state    | leaves by
 *   CRED     | credential -> TLS; error, timeout -> failed
 *   TLS      | handshake done -> OPEN; error, timeout -> failed
 *   OPEN     | session over -> closed
 *   any      | close -> gone
 *
 * One budget (handshake_timeout_ms) covers CRED and TLS. The struct belongs to itself: it leaves the owner's list and is freed after
 * on_failed, on_closed or close. */
#include "zt/proxy/hbone_server.h"

#include "proxy_impl.h"

#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/net/tcp.h"
#include "zt/net/tls.h"
#include "zt/net/tls_keylog.h"

enum server_state { SERVER_CRED, SERVER_TLS, SERVER_OPEN, SERVER_GONE };

struct zt_hbone_server {
    struct zt_link link; /* in config.list */
    struct zt_hbone_server_config config;
    struct zt_addr peer, local;
    struct zt_stream_owner idle_owner; /* of the socket while the credential is awaited: nothing is wanted from it */
    struct zt_stream *tcp;             /* CRED only */
    struct zt_cred_request cred;
    struct zt_tls_handshake *tls; /* TLS only */
    struct zt_h2_owner h2_owner;
    struct zt_h2_session *h2; /* OPEN only */
    struct zt_task start;
    ev_timer budget;
    char *identity;
    struct zt_tls_path *path; /* OPEN, with revocation lists; else NULL */
    uint64_t started_ms, tls_started_us;
    enum server_state state;
    bool draining;
};

static void server_free(struct zt_hbone_server *s)
{
    if (s->state == SERVER_OPEN)
        zt_vitals_tunnel(s->config.vitals, false, -1);
    s->state = SERVER_GONE;
    zt_list_remove(&s->link);
    zt_task_cancel(&s->start);
    ev_timer_stop(zt_loop_ev(s->config.loop), &s->budget);
    s->config.creds->cancel(s->config.creds, &s->cred);
    zt_tls_path_unref(s->path);
    zt_loop_defer_zt_free(s->config.loop, s->identity);
    zt_loop_defer_zt_free(s->config.loop, s);
}

static void fail(struct zt_hbone_server *s, const struct zt_error *err)
{
    zt_stream_close(s->tcp, ZT_OK);
    s->tcp = NULL;
    zt_tls_handshake_cancel(s->tls);
    s->tls = NULL;
    s->config.ops->on_failed(s, err);
    if (s->state != SERVER_GONE)
        server_free(s);
}

/* ---- open ---- */

static void on_request(struct zt_h2_owner *o, struct zt_h2_stream *st, const struct zt_h2_headers *h)
{
    struct zt_hbone_server *s = zt_container_of(o, struct zt_hbone_server, h2_owner);
    s->config.ops->on_connect(s, st, h);
}

static void on_closed(struct zt_h2_owner *o, const struct zt_error *why)
{
    struct zt_hbone_server *s = zt_container_of(o, struct zt_hbone_server, h2_owner);
    s->h2 = NULL;
    s->config.ops->on_closed(s);
    if (s->state != SERVER_GONE)
        server_free(s);
}

/* ---- handshake ---- */

/* Keeps what the client's certificate was verified with. The lists may have changed since, and whoever looked for tunnels to cut then did
 * not find this one; false: that was so, and it is gone. Takes tls when false. */
static bool track(struct zt_hbone_server *s, struct zt_stream *tls, struct zt_tls_path *path)
{
    struct zt_error err = ZT_ERROR_INIT;
    switch (zt_tls_path_check(path)) {
    case ZT_OK:
        break;
    case ZT_REVOKED:
        zt_stream_close(tls, ZT_REVOKED);
        zt_error_set(&err, ZT_REVOKED, "invalid peer certificate: revoked");
        fail(s, &err);
        return false;
    default:
        zt_telemetry_untracked(s->config.shard, false);
    }
    s->path = zt_tls_path_ref(path);
    return true;
}

static void on_tls_done(void *arg, struct zt_stream *tls, const struct zt_tls_peer *peer, const struct zt_error *err)
{
    struct zt_hbone_server *s = arg;
    s->tls = NULL;
    zt_vitals_handshake(s->config.vitals, false, err->code == ZT_OK, peer && peer->resumed, s->tls_started_us);
    ev_timer_stop(zt_loop_ev(s->config.loop), &s->budget);
    if (err->code != ZT_OK) {
        struct zt_error why = *err;
        if (why.code != ZT_REVOKED) /* the peer's fault, a wrong trust domain included (spec/interfaces §7.6) */
            why.code = ZT_TLS_HANDSHAKE;
        fail(s, &why);
        return;
    }
    if (s->config.crl && !track(s, tls, peer->path))
        return;
    s->identity = zt_strdup(peer->identity);
    s->state = SERVER_OPEN;
    zt_vitals_tunnel(s->config.vitals, false, 1);
    s->h2 = zt_h2_session_new(s->config.loop, ZT_H2_SERVER, &s->config.h2, tls, &s->h2_owner);
    if (s->draining)
        zt_h2_session_drain(s->h2);
}

/* Takes cred. */
static void start_tls(struct zt_hbone_server *s, struct zt_tls_cred *cred)
{
    uint64_t passed = zt_loop_now_ms(s->config.loop) - s->started_ms;
    unsigned left = passed < s->config.handshake_timeout_ms ? s->config.handshake_timeout_ms - (unsigned)passed : 1;
    struct zt_stream *tcp = s->tcp;
    s->tcp = NULL;
    s->state = SERVER_TLS;
    s->tls_started_us = zt_clock_mono_us();
    ev_timer_stop(zt_loop_ev(s->config.loop), &s->budget); /* the handshake has its own timer */
    s->tls = zt_tls_accept(s->config.loop, tcp, cred, left, on_tls_done, s);
    zt_tls_handshake_keylog(s->tls, s->config.keylog);
    zt_tls_cred_unref(cred);
}

static void on_cred(struct zt_cred_request *r, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct zt_hbone_server *s = zt_container_of(r, struct zt_hbone_server, cred);
    if (cred)
        start_tls(s, cred);
    else
        fail(s, err);
}

static void on_start(struct zt_task *task)
{
    struct zt_hbone_server *s = zt_container_of(task, struct zt_hbone_server, start);
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_tls_cred *cred = NULL;
    enum zt_err e = s->config.creds->get(s->config.creds, NULL, &s->cred, &cred, &err);
    if (e == ZT_OK)
        start_tls(s, cred);
    else if (e != ZT_AGAIN)
        fail(s, &err);
}

static void on_budget(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_hbone_server *s = zt_container_of(w, struct zt_hbone_server, budget);
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_IDENTITY, "timed out waiting for the certificate");
    s->config.creds->cancel(s->config.creds, &s->cred);
    fail(s, &err);
}

static void on_nothing(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
}

/* ---- the owner's calls ---- */

struct zt_hbone_server *zt_hbone_server_accept(const struct zt_hbone_server_config *c, int fd, const struct zt_addr *peer,
                                               const struct zt_addr *local)
{
    struct zt_hbone_server *s = zt_new(struct zt_hbone_server);
    s->config = *c;
    s->peer = *peer;
    s->local = *local;
    s->idle_owner.on_ready = on_nothing;
    s->tcp = zt_tcp_stream_new(c->loop, fd, &s->idle_owner);
    s->cred.done = on_cred;
    s->h2_owner = (struct zt_h2_owner){.on_request = on_request, .on_closed = on_closed};
    s->start.run = on_start;
    s->started_ms = zt_loop_now_ms(c->loop);
    zt_list_push_back(c->list, &s->link);
    ev_timer_init(&s->budget, on_budget, c->handshake_timeout_ms / 1e3, 0);
    ev_timer_start(zt_loop_ev(c->loop), &s->budget);
    zt_loop_soon(c->loop, &s->start);
    return s;
}

struct zt_hbone_server *zt_hbone_server_from_link(struct zt_link *l)
{
    return zt_container_of(l, struct zt_hbone_server, link);
}

void *zt_hbone_server_owner(const struct zt_hbone_server *s)
{
    return s->config.owner;
}

const struct zt_addr *zt_hbone_server_peer(const struct zt_hbone_server *s)
{
    return &s->peer;
}

const struct zt_addr *zt_hbone_server_local(const struct zt_hbone_server *s)
{
    return &s->local;
}

const char *zt_hbone_server_identity(const struct zt_hbone_server *s)
{
    return s->identity ? s->identity : "";
}

bool zt_hbone_server_revoked(const struct zt_hbone_server *s)
{
    return s->state == SERVER_OPEN && s->path && zt_tls_path_check(s->path) == ZT_REVOKED;
}

void zt_hbone_server_drain(struct zt_hbone_server *s)
{
    if (s->draining || s->state == SERVER_GONE)
        return;
    s->draining = true;
    if (s->h2)
        zt_h2_session_drain(s->h2);
}

void zt_hbone_server_close(struct zt_hbone_server *s, enum zt_err why)
{
    if (s->state == SERVER_GONE)
        return;
    zt_stream_close(s->tcp, why);
    zt_tls_handshake_cancel(s->tls);
    if (s->h2)
        zt_h2_session_close(s->h2, why);
    s->tcp = NULL;
    s->tls = NULL;
    s->h2 = NULL;
    server_free(s);
}
