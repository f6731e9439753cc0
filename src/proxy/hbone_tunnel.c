/* One outgoing HBONE tunnel of the pool: credential, TCP (or, for an inner one, a stream of an outer tunnel), TLS, HTTP/2.
 *
 *   state    | leaves by
 *   CRED     | credential -> DIAL; error -> failed
 *   DIAL     | connected, or the gateway's 200 -> TLS; error -> failed
 *   TLS      | done -> SETTINGS; error -> failed
 *   SETTINGS | the peer's SETTINGS -> OPEN; session over -> failed
 *   OPEN     | session over -> GONE
 *   failed   : waiters that the flights left cannot serve share the error; GONE
 *
 * One budget (connect_timeout_ms) covers all until OPEN; what an inner one asks of the outer has the outer's own budgets, and this one begins
 * anew behind it. The first waiter's CONNECT goes out with the preface; the others wait for the
 * SETTINGS, which say how many streams there may be. */
#include "hbone_pool_impl.h"

#include "zt/base/clock.h"
#include "zt/net/tls_keylog.h"
#include <errno.h>
#include <string.h>

static struct zt_loop *loop_of(const struct pool_tunnel *t)
{
    return t->key->pool->config.loop;
}

static void unref_cred(struct pool_tunnel *t)
{
    zt_tls_cred_unref(t->cred);
    t->cred = NULL;
}

static void flight_landed(struct pool_tunnel *t)
{
    zt_list_remove(&t->key_link);
    t->key->n_flights--;
}

static void drop_outer_headers(struct pool_tunnel *t)
{
    for (unsigned i = 0; i < t->n_outer_headers; i++) {
        zt_free((char *)(uintptr_t)t->outer_headers[i].name);
        zt_free((char *)(uintptr_t)t->outer_headers[i].value);
    }
    zt_free(t->outer_headers);
    t->outer_headers = NULL;
    t->n_outer_headers = 0;
}

/* Unlinks and frees; the key stays with the caller. */
static void tunnel_free(struct pool_tunnel *t)
{
    struct pool_key *key = t->key;
    struct zt_hbone_pool *p = key->pool;
    ZT_ASSERT(zt_list_empty(&t->requests));
    if (t->state < TUNNEL_OPEN)
        flight_landed(t);
    pool_unlink(t);
    if (t->state == TUNNEL_OPEN)
        zt_vitals_tunnel(p->config.vitals, true, -1);
    t->state = TUNNEL_GONE;
    ev_timer_stop(zt_loop_ev(p->config.loop), &t->timer);
    zt_task_cancel(&t->start);
    p->config.creds->cancel(p->config.creds, &t->cred_request);
    zt_dial_cancel(&t->dial);
    zt_hbone_request_cancel(&t->outer);
    zt_tls_handshake_cancel(t->tls);
    unref_cred(t);
    drop_outer_headers(t);
    zt_loop_defer_zt_free(p->config.loop, t->identity);
    zt_tls_path_unref(t->path);
    zt_list_remove(&t->all_link);
    p->n_tunnels--;
    key->n_tunnels--;
    zt_loop_defer_zt_free(p->config.loop, t);
}

void pool_tunnel_drop(struct pool_tunnel *t, enum zt_err why)
{
    if (t->h2)
        zt_h2_session_close(t->h2, why);
    t->h2 = NULL;
    tunnel_free(t);
}

/* One flight, shared failure. Other flights of the key keep the waiters that they can serve. set_up: see zt_hbone_request. */
static void flight_failed(struct pool_tunnel *t, const struct zt_error *err, bool set_up)
{
    struct pool_key *key = t->key;
    struct zt_error why = *err;
    pool_requests_wait_again(t); /* the one that was sent ahead shares it too */
    if (t->h2)
        zt_h2_session_close(t->h2, ZT_H2);
    t->h2 = NULL;
    tunnel_free(t);
    pool_fail_waiters(key, key->n_flights * pool_streams_max(key), &why, set_up);
}

bool pool_tunnel_revoked(const struct pool_tunnel *t)
{
    return t->path && zt_tls_path_check(t->path) == ZT_REVOKED;
}

/* ---- HTTP/2 ---- */

static void on_settings(struct zt_h2_owner *o)
{
    struct pool_tunnel *t = zt_container_of(o, struct pool_tunnel, h2_owner);
    if (pool_tunnel_revoked(t)) { /* since the handshake */
        struct zt_error err = {.code = ZT_REVOKED};
        zt_telemetry_revoked(t->key->pool->config.shard, true, 1);
        flight_failed(t, &err, false);
        return;
    }
    flight_landed(t);
    t->state = TUNNEL_OPEN;
    zt_vitals_tunnel(t->key->pool->config.vitals, true, 1);
    ev_timer_stop(zt_loop_ev(loop_of(t)), &t->timer);
    pool_settled(t);
}

static void on_stream_closed(struct zt_h2_owner *o)
{
    struct pool_tunnel *t = zt_container_of(o, struct pool_tunnel, h2_owner);
    if (t->state == TUNNEL_OPEN)
        pool_stream_closed(t);
}

static void on_goaway(struct zt_h2_owner *o)
{
    struct pool_tunnel *t = zt_container_of(o, struct pool_tunnel, h2_owner);
    pool_tunnel_leave(t);
}

static void on_closed(struct zt_h2_owner *o, const struct zt_error *why)
{
    struct pool_tunnel *t = zt_container_of(o, struct pool_tunnel, h2_owner);
    t->h2 = NULL;
    if (t->state == TUNNEL_SETTINGS) {
        struct zt_error err = ZT_ERROR_INIT;
        zt_error_set(&err, ZT_H2_HANDSHAKE, "%s", why->text[0] ? why->text : "connection closed by the peer");
        flight_failed(t, &err, why->code != ZT_TLS);
        return;
    }
    struct pool_key *key = t->key;
    tunnel_free(t);
    pool_key_release(key);
}

/* ---- TLS, TCP, credential ---- */

static unsigned budget_left_ms(const struct pool_tunnel *t)
{
    uint64_t passed = zt_loop_now_ms(loop_of(t)) - t->started_ms, budget = t->key->pool->config.connect_timeout_ms;
    return passed < budget ? (unsigned)(budget - passed) : 1;
}

static void on_tls_done(void *arg, struct zt_stream *s, const struct zt_tls_peer *peer, const struct zt_error *err)
{
    struct pool_tunnel *t = arg;
    t->tls = NULL;
    zt_vitals_handshake(t->key->pool->config.vitals, true, err->code == ZT_OK, peer && peer->resumed, t->tls_started_us);
    if (err->code != ZT_OK) {
        struct zt_error why = *err;
        if (why.code == ZT_REVOKED) {
            zt_telemetry_revoked(t->key->pool->config.shard, true, 1);
            why.text[0] = '\0'; /* its prefix says it all */
        } else /* spec/dataplane §2.10: client TLS failures land in "io error" */
            why.code = ZT_IO;
        flight_failed(t, &why, err->code == ZT_TLS_HANDSHAKE || err->code == ZT_TIMEOUT);
        return;
    }
    t->identity = zt_strdup(peer->identity ? peer->identity : "");
    if (t->key->pool->config.crl) {
        t->path = zt_tls_path_ref(peer->path);
        if (zt_tls_path_check(t->path) == ZT_TLS)
            zt_telemetry_untracked(t->key->pool->config.shard, true);
    }
    t->state = TUNNEL_SETTINGS;
    t->h2_owner = (struct zt_h2_owner){.on_settings = on_settings,
                                       .on_stream_closed = on_stream_closed,
                                       .on_goaway = on_goaway,
                                       .on_closed = on_closed};
    t->h2 = zt_h2_session_new(loop_of(t), ZT_H2_CLIENT, &t->key->pool->config.h2, s, &t->h2_owner);
    pool_send_first_waiter(t);
}

/* Takes lower. */
static void start_tls(struct pool_tunnel *t, struct zt_stream *lower)
{
    const struct pool_key *key = t->key;
    t->state = TUNNEL_TLS;
    t->tls_started_us = zt_clock_mono_us();
    t->tls = zt_tls_connect(loop_of(t), lower, t->cred, (const char *const *)key->sans, key->n_sans, &key->next_hop,
                            budget_left_ms(t), on_tls_done, t);
    zt_tls_handshake_keylog(t->tls, t->key->pool->config.keylog);
    unref_cred(t);
}

static void on_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct pool_tunnel *t = zt_container_of(d, struct pool_tunnel, dial);
    if (fd < 0) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_pod *pod = t->key->pool->config.pod;
        char text[128];
        enum zt_err code = errnum == ETIMEDOUT ? ZT_NETWORK_POLICY : ZT_IO;
        if (pod)
            zt_pod_dial_error(pod, errnum, code, &err);
        else
            zt_error_set(&err, code, "%s", zt_errno_text(errnum, text, sizeof text));
        flight_failed(t, &err, !zt_dial_errno_is_ours(errnum));
        return;
    }
    start_tls(t, zt_tcp_stream_new(loop_of(t), fd, NULL));
}

static void on_outer(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h,
                     const struct zt_error *err)
{
    struct pool_tunnel *t = zt_container_of(r, struct pool_tunnel, outer);
    drop_outer_headers(t);
    if (err->code != ZT_OK) {
        flight_failed(t, err, r->set_up_failed);
        return;
    }
    t->started_ms = zt_loop_now_ms(loop_of(t));
    ev_timer_again(zt_loop_ev(loop_of(t)), &t->timer);
    zt_h2_stream_carry(st);
    start_tls(t, zt_h2_stream_pipe(st));
}

static void start_outer(struct pool_tunnel *t)
{
    const struct pool_key *key = t->key;
    const struct zt_hbone_key outer = {
        .src_identity = key->src_identity,
        .sans = key->outer_sans,
        .n_sans = key->n_outer_sans,
        .next_hop = key->next_hop,
        .src_ip = key->src_ip,
    };
    ev_timer_stop(zt_loop_ev(loop_of(t)), &t->timer);
    t->outer.done = on_outer;
    zt_hbone_pool_connect(key->pool, &outer, t->outer_headers, t->n_outer_headers, &t->outer);
}

/* Takes cred. */
static void start_dial(struct pool_tunnel *t, struct zt_tls_cred *cred)
{
    const struct zt_hbone_pool_config *c = &t->key->pool->config;
    t->cred = cred;
    t->state = TUNNEL_DIAL;
    if (t->key->inner)
        start_outer(t);
    else
        zt_dial_start(&t->dial, c->loop, c->netns, &t->key->next_hop, NULL, &c->sock, budget_left_ms(t), on_dialled);
}

static void on_cred(struct zt_cred_request *r, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct pool_tunnel *t = zt_container_of(r, struct pool_tunnel, cred_request);
    if (cred)
        start_dial(t, cred);
    else
        flight_failed(t, err, false);
}

static void on_start(struct zt_task *task)
{
    struct pool_tunnel *t = zt_container_of(task, struct pool_tunnel, start);
    struct zt_cred_source *creds = t->key->pool->config.creds;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_tls_cred *cred = NULL;
    enum zt_err e = creds->get(creds, t->key->src_identity, &t->cred_request, &cred, &err);
    if (e == ZT_OK)
        start_dial(t, cred);
    else if (e != ZT_AGAIN)
        flight_failed(t, &err, false);
}

/* Says what took too long. False: our own credential. */
static bool describe_late(const struct pool_tunnel *t, struct zt_error *err)
{
    char text[128];
    switch (t->state) {
    case TUNNEL_CRED:
        zt_error_set(err, ZT_IDENTITY, "timed out waiting for the certificate of %s", t->key->src_identity);
        break;
    case TUNNEL_DIAL:
        zt_error_set(err, ZT_NETWORK_POLICY, "%s", zt_errno_text(ETIMEDOUT, text, sizeof text));
        break;
    case TUNNEL_TLS:
        zt_error_set(err, ZT_TIMEOUT, "tls handshake timed out");
        break;
    default:
        zt_error_set(err, ZT_H2_HANDSHAKE, "timed out waiting for SETTINGS");
        break;
    }
    return t->state != TUNNEL_CRED;
}

bool pool_flight_late(const struct pool_key *key, struct zt_error *err)
{
    struct zt_link *link = zt_list_first(&key->flights);
    if (link)
        return describe_late(zt_container_of(link, struct pool_tunnel, key_link), err);
    zt_error_set(err, ZT_TIMEOUT, "no tunnel was set up in time");
    return true;
}

/* DIAL and TLS have timers of their own that end first; this one is for what has none. */
static void on_budget(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct pool_tunnel *t = zt_container_of(w, struct pool_tunnel, timer);
    struct zt_error err = ZT_ERROR_INIT;
    bool set_up = describe_late(t, &err);
    flight_failed(t, &err, set_up);
}

/* What the gateway is told: the block of the request that makes the tunnel, without what belongs to the inner one. The tunnel outlives that
 * request, so it keeps a copy. */
static void copy_outer_headers(struct pool_tunnel *t, const struct zt_hbone_request *r)
{
    t->outer_headers = zt_new_n(struct zt_h2_header, r->n_headers);
    for (unsigned i = 0; i < r->n_headers; i++) {
        if (strcmp(r->headers[i].name, "x-forwarded-network") != 0)
            t->outer_headers[t->n_outer_headers++] =
                (struct zt_h2_header){zt_strdup(r->headers[i].name), zt_strdup(r->headers[i].value)};
    }
}

void pool_flight_start(struct pool_key *key)
{
    struct zt_hbone_pool *p = key->pool;
    struct pool_tunnel *t = zt_new(struct pool_tunnel);
    t->key = key;
    t->state = TUNNEL_CRED;
    t->started_ms = zt_loop_now_ms(p->config.loop);
    t->cred_request.done = on_cred;
    t->start.run = on_start;
    zt_list_init(&t->requests);
    if (key->inner)
        copy_outer_headers(t, zt_container_of(zt_list_first(&key->waiters), struct zt_hbone_request, link));
    zt_list_push_back(&p->tunnels, &t->all_link);
    zt_list_push_back(&key->flights, &t->key_link);
    p->n_tunnels++;
    key->n_flights++;
    key->n_tunnels++;
    ev_timer_init(&t->timer, on_budget, p->config.connect_timeout_ms / 1e3, p->config.connect_timeout_ms / 1e3);
    ev_timer_start(zt_loop_ev(p->config.loop), &t->timer);
    zt_loop_soon(p->config.loop, &t->start);
}
