/* The pool of outgoing HBONE tunnels: keys, who waits for them, which tunnel serves whom. How a tunnel comes to be is
 * hbone_tunnel.c.
 *
 * Invariants:
 * - A request is in exactly one place: its key's waiters, its tunnel's requests, the pool's failed list, or nowhere (done or never
 *   started).
 * - A pooled tunnel has room: fewer streams than its maximum (ours or the peer's, whichever is less). Who is full leaves the pool for
 *   good and closes after its last stream.
 * - Tunnels of a key rotate: the one that was used longest ago serves next.
 * - Inner tunnels of a service have ZT_POOL_INNER_TUNNELS_MAX keys, of which each request draws one. Such a key has one tunnel at a time in the
 *   pool, so there are never more side by side, and endpoints are met as the gateway deals them out.
 * - Requests are matched to tunnels at the end of the loop's turn, after everything that the kernel had to say in it was read: a tunnel
 *   whose end or GOAWAY had arrived by then is not handed out.
 * - A key lives while somebody waits for it or a tunnel of it exists.
 *
 *   request | leaves by
 *   WAITING | a tunnel has room -> SENT; its flight failed -> done
 *   SENT    | answered, timed out -> done; proof that the peer did nothing with it -> WAITING, once
 *   FAILED  | end of the turn -> done */
#include "hbone_pool_impl.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* ---- keys ---- */

static void add_sans(struct zt_str *out, char *const *sans, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        zt_str_add_char(out, 0);
        zt_str_add(out, sans[i]);
    }
}

static void key_bytes(const struct zt_hbone_key *k, unsigned slot, struct zt_str *out)
{
    zt_str_add_n(out, &k->next_hop.ip, sizeof k->next_hop.ip);
    zt_str_add_n(out, &k->next_hop.port, sizeof k->next_hop.port);
    zt_str_add_n(out, &k->src_ip, sizeof k->src_ip);
    zt_str_add(out, k->src_identity);
    add_sans(out, k->sans, k->n_sans);
    if (k->inner) {
        zt_str_add_n(out, "\0\n", 2); /* which is no identity */
        zt_str_add_char(out, (char)('0' + slot));
        zt_str_add(out, k->inner->authority);
        add_sans(out, k->inner->sans, k->inner->n_sans);
    }
}

static char **copy_sans(char *const *sans, unsigned n)
{
    char **copy = zt_new_n(char *, n ? n : 1);
    for (unsigned i = 0; i < n; i++)
        copy[i] = zt_strdup(sans[i]);
    return copy;
}

static void free_sans(char **sans, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        zt_free(sans[i]);
    zt_free(sans);
}

/* xorshift: spreads load, protects nothing. */
static unsigned draw_slot(struct zt_hbone_pool *p)
{
    p->chance ^= p->chance << 13;
    p->chance ^= p->chance >> 7;
    p->chance ^= p->chance << 17;
    return (unsigned)(p->chance >> 32) % ZT_POOL_INNER_TUNNELS_MAX;
}

static struct pool_key *key_new(struct zt_hbone_pool *p, const struct zt_hbone_key *k, struct zt_str *bytes)
{
    struct pool_key *key = zt_new(struct pool_key);
    key->pool = p;
    key->len = bytes->len;
    key->bytes = zt_str_take(bytes);
    key->next_hop = k->next_hop;
    key->src_ip = k->src_ip;
    key->src_identity = zt_strdup(k->src_identity);
    key->n_sans = k->inner ? k->inner->n_sans : k->n_sans;
    key->sans = copy_sans(k->inner ? k->inner->sans : k->sans, key->n_sans);
    if (k->inner) {
        key->inner = true;
        key->n_outer_sans = k->n_sans;
        key->outer_sans = copy_sans(k->sans, k->n_sans);
    }
    zt_list_init(&key->tunnels);
    zt_list_init(&key->flights);
    zt_list_init(&key->waiters);
    HASH_ADD_KEYPTR(hh, p->keys, key->bytes, key->len, key);
    return key;
}

static struct pool_key *key_get(struct zt_hbone_pool *p, const struct zt_hbone_key *k)
{
    struct pool_key *key;
    struct zt_str bytes;
    zt_str_init(&bytes, SIZE_MAX / 2); /* sums of identities that the control plane limits */
    key_bytes(k, k->inner ? draw_slot(p) : 0, &bytes);
    HASH_FIND(hh, p->keys, bytes.data, bytes.len, key);
    if (!key)
        key = key_new(p, k, &bytes);
    zt_str_fini(&bytes);
    return key;
}

void pool_key_release(struct pool_key *key)
{
    if (key->n_waiters || key->n_tunnels)
        return;
    HASH_DELETE(hh, key->pool->keys, key);
    zt_list_remove(&key->dirty_link);
    free_sans(key->sans, key->n_sans);
    free_sans(key->outer_sans, key->n_outer_sans);
    zt_free(key->src_identity);
    zt_free(key->bytes);
    zt_free(key);
}

void pool_key_dirty(struct pool_key *key)
{
    if (!zt_link_linked(&key->dirty_link))
        zt_list_push_back(&key->pool->dirty, &key->dirty_link);
    zt_loop_soon(key->pool->config.loop, &key->pool->task);
}

/* ---- requests ---- */

static void forget(struct zt_hbone_request *r)
{
    if (r->state == REQUEST_WAITING)
        ((struct pool_key *)r->key)->n_waiters--;
    zt_list_remove(&r->link);
    if (r->pool)
        ev_timer_stop(zt_loop_ev(r->pool->config.loop), &r->timer);
    r->state = REQUEST_IDLE;
    r->tunnel = NULL;
    r->stream = NULL;
}

static void finish(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h,
                   const struct zt_error *err)
{
    const struct pool_tunnel *t = r->state == REQUEST_SENT ? r->tunnel : NULL;
    forget(r);
    r->peer_identity = t ? t->identity : NULL; /* its memory stays until the end of the turn */
    r->done(r, st, h, err);
}

/* The flight goes on for those who wait longer. */
static void on_patience_over(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_hbone_request *r = zt_container_of(w, struct zt_hbone_request, timer);
    struct pool_key *key = r->key;
    struct zt_error err = ZT_ERROR_INIT;
    r->set_up_failed = pool_flight_late(key, &err);
    forget(r);
    pool_key_release(key);
    finish(r, NULL, NULL, &err);
}

static void wait_for_key(struct zt_hbone_request *r, struct pool_key *key, bool first)
{
    r->state = REQUEST_WAITING;
    r->key = key;
    key->n_waiters++;
    if (first)
        zt_list_push_front(&key->waiters, &r->link);
    else
        zt_list_push_back(&key->waiters, &r->link);
    if (r->patience_ms) {
        ev_timer_init(&r->timer, on_patience_over, r->patience_ms / 1e3, 0);
        ev_timer_start(zt_loop_ev(key->pool->config.loop), &r->timer);
    }
    pool_key_dirty(key);
}

/* done runs at the end of the turn. */
static void fail_later(struct zt_hbone_pool *p, struct zt_hbone_request *r, enum zt_err code)
{
    r->state = REQUEST_FAILED;
    r->error = (uint8_t)code;
    zt_list_push_back(&p->failed, &r->link);
    zt_loop_soon(p->config.loop, &p->task);
}

void pool_fail_waiters(struct pool_key *key, unsigned keep, const struct zt_error *err, bool set_up)
{
    struct zt_link batch, *link;
    zt_list_init(&batch);
    while (key->n_waiters > keep) {
        struct zt_hbone_request *r = zt_container_of(zt_list_pop_front(&key->waiters), struct zt_hbone_request, link);
        key->n_waiters--;
        r->state = REQUEST_FAILED;
        r->set_up_failed = set_up;
        zt_list_push_back(&batch, &r->link);
    }
    pool_key_release(key); /* the callbacks below may do anything, also to the pool */
    while ((link = zt_list_first(&batch)))
        finish(zt_container_of(link, struct zt_hbone_request, link), NULL, NULL, err);
}

static const char *reason_of(unsigned status)
{
    static const struct {
        unsigned status;
        const char *reason;
    } known[] = {{201, "Created"},               {202, "Accepted"},           {204, "No Content"},
                 {206, "Partial Content"},       {300, "Multiple Choices"},   {301, "Moved Permanently"},
                 {302, "Found"},                 {303, "See Other"},          {304, "Not Modified"},
                 {307, "Temporary Redirect"},    {308, "Permanent Redirect"}, {400, "Bad Request"},          {401, "Unauthorized"},       {403, "Forbidden"},
                 {404, "Not Found"},            {405, "Method Not Allowed"}, {408, "Request Timeout"},
                 {429, "Too Many Requests"},    {500, "Internal Server Error"}, {502, "Bad Gateway"},
                 {503, "Service Unavailable"},  {504, "Gateway Timeout"},    {431, "Request Header Fields Too Large"}};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].status == status)
            return known[i].reason;
    }
    return "<unknown status code>";
}

/* The peer did nothing with it: GOAWAY or REFUSED_STREAM proves that. A tunnel that had worked and is gone without a word counts too:
 * no byte of the connection had been sent, so asking once more is harmless. */
static bool may_retry(const struct zt_hbone_request *r, const struct pool_tunnel *t, const struct zt_error *err)
{
    if (r->tries > 0)
        return false;
    return err->code == ZT_AGAIN || (err->code == ZT_H2 && t->answered && zt_h2_session_over(t->h2));
}

static void on_response(struct zt_h2_request *h2, struct zt_h2_stream *st, unsigned status, const struct zt_h2_headers *h,
                        const struct zt_error *err)
{
    struct zt_hbone_request *r = zt_container_of(h2, struct zt_hbone_request, h2);
    struct pool_tunnel *t = r->tunnel;
    struct zt_error why = *err;
    if (err->code == ZT_OK) {
        t->answered = true;
        if (status != 200) {
            zt_stream_close(zt_h2_stream_pipe(st), ZT_OK);
            zt_error_set(&why, ZT_HTTP_STATUS, "%u %s", status, reason_of(status));
            st = NULL;
        }
        finish(r, st, h, &why);
        return;
    }
    if (may_retry(r, t, err)) {
        struct pool_key *key = t->key;
        pool_tunnel_leave(t); /* elsewhere, then */
        forget(r);
        r->tries++;
        wait_for_key(r, key, true);
        return;
    }
    if (why.code == ZT_AGAIN)
        why.code = ZT_H2;
    if (why.code == ZT_TLS)
        why.code = ZT_H2_HANDSHAKE;
    r->set_up_failed = err->code == ZT_H2_HANDSHAKE;
    finish(r, NULL, NULL, &why);
}

static void on_answer_timeout(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_hbone_request *r = zt_container_of(w, struct zt_hbone_request, timer);
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_TIMEOUT, "no answer to CONNECT within %u ms", r->pool->config.connect_timeout_ms);
    zt_stream_close(zt_h2_stream_pipe(r->stream), ZT_OK);
    finish(r, NULL, NULL, &err);
}

/* False: the tunnel cannot take it after all; r waits still. */
bool pool_send_first_waiter(struct pool_tunnel *t)
{
    struct pool_key *key = t->key;
    struct zt_hbone_pool *p = key->pool;
    struct zt_link *link = zt_list_first(&key->waiters);
    if (!link)
        return false;
    struct zt_hbone_request *r = zt_container_of(link, struct zt_hbone_request, link);
    r->h2.on_response = on_response;
    struct zt_h2_stream *st = zt_h2_request(t->h2, r->headers, r->n_headers, &r->h2);
    if (!st)
        return false;
    zt_list_remove(link);
    ev_timer_stop(zt_loop_ev(p->config.loop), &r->timer);
    key->n_waiters--;
    r->state = REQUEST_SENT;
    r->tunnel = t;
    r->stream = st;
    t->n_served++;
    zt_list_push_back(&t->requests, &r->link);
    ev_timer_init(&r->timer, on_answer_timeout, p->config.connect_timeout_ms / 1e3, 0);
    ev_timer_start(zt_loop_ev(p->config.loop), &r->timer);
    return true;
}

/* Takes back what was sent on a tunnel that is about to end; they are first in line. */
void pool_requests_wait_again(struct pool_tunnel *t)
{
    struct zt_link *link;
    while ((link = zt_list_first(&t->requests))) {
        struct zt_hbone_request *r = zt_container_of(link, struct zt_hbone_request, link);
        zt_stream_close(zt_h2_stream_pipe(r->stream), ZT_OK);
        forget(r);
        wait_for_key(r, t->key, true);
    }
}

/* ---- matching ---- */

unsigned pool_streams_max(const struct pool_key *key)
{
    return key->inner ? ZT_POOL_INNER_STREAMS_MAX : key->pool->config.streams_max;
}

static uint64_t end_of_use_ms(const struct pool_tunnel *t);

/* How many more streams may be opened: an inner tunnel counts all it ever carried. */
static unsigned room(const struct pool_tunnel *t)
{
    unsigned open = zt_h2_session_streams(t->h2), used = t->key->inner ? t->n_served : open;
    unsigned ours = pool_streams_max(t->key), theirs = zt_h2_session_peer_streams_max(t->h2);
    if (!zt_h2_session_usable(t->h2) || used >= ours || open >= theirs)
        return 0;
    if (t->pooled && zt_loop_now_ms(t->key->pool->config.loop) >= end_of_use_ms(t))
        return 0;
    return ours - used < theirs - open ? ours - used : theirs - open;
}

/* The tunnel of the key that waited longest and has room. It goes to the end of the line, or out when it is full with this one. */
static struct pool_tunnel *take_tunnel(struct pool_key *key)
{
    struct zt_link *link;
    while ((link = zt_list_first(&key->tunnels))) {
        struct pool_tunnel *t = zt_container_of(link, struct pool_tunnel, key_link);
        unsigned n = room(t);
        if (n == 0) {
            pool_tunnel_leave(t);
            continue;
        }
        pool_unlink(t);
        if (n > 1)
            pool_put_back(t);
        else
            ev_timer_stop(zt_loop_ev(key->pool->config.loop), &t->timer);
        return t;
    }
    return NULL;
}

static void serve(struct pool_key *key)
{
    struct pool_tunnel *t;
    while (key->n_waiters > 0 && (t = take_tunnel(key))) {
        if (!pool_send_first_waiter(t))
            pool_tunnel_leave(t);
    }
    unsigned per_tunnel = pool_streams_max(key), most = key->inner ? 1 : ZT_POOL_FLIGHTS_MAX;
    unsigned wanted = (key->n_waiters + per_tunnel - 1) / per_tunnel;
    if (wanted > most)
        wanted = most;
    while (key->n_flights < wanted)
        pool_flight_start(key);
    pool_key_release(key);
}

void pool_settled(struct pool_tunnel *t)
{
    if (room(t) > 0)
        pool_put_back(t);
    else
        pool_tunnel_leave(t);
    pool_key_dirty(t->key);
}

static void pool_dispose(struct zt_hbone_pool *p)
{
    zt_task_cancel(&p->task);
    zt_loop_defer_zt_free(p->config.loop, p);
}

static void on_task(struct zt_task *task)
{
    struct zt_hbone_pool *p = zt_container_of(task, struct zt_hbone_pool, task);
    struct zt_link *link;
    while (!p->freed && (link = zt_list_pop_front(&p->dirty)))
        serve(zt_container_of(link, struct pool_key, dirty_link));
    while ((link = zt_list_first(&p->failed))) {
        struct zt_hbone_request *r = zt_container_of(link, struct zt_hbone_request, link);
        struct zt_error err = ZT_ERROR_INIT;
        zt_error_set(&err, (enum zt_err)r->error, "%s", r->error == ZT_LIMIT ? "requests waiting for one tunnel" : "");
        finish(r, NULL, NULL, &err);
    }
    if (p->freed)
        pool_dispose(p);
}

/* ---- the pooled ones ---- */

/* When the pool forgets it. */
static uint64_t end_of_use_ms(const struct pool_tunnel *t)
{
    uint64_t unused = t->put_back_ms + t->key->pool->config.unused_timeout_ms, old = t->started_ms + ZT_POOL_INNER_AGE_MAX_MS;
    return t->key->inner && old < unused ? old : unused;
}

static void arm_unused(struct pool_tunnel *t)
{
    struct zt_loop *loop = t->key->pool->config.loop;
    uint64_t now = zt_loop_now_ms(loop), end = end_of_use_ms(t);
    ev_timer_set(&t->timer, end > now ? (double)(end - now) / 1e3 : 0, 0);
    ev_timer_start(zt_loop_ev(loop), &t->timer);
}

static void on_unused(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct pool_tunnel *t = zt_container_of(w, struct pool_tunnel, timer);
    if (zt_loop_now_ms(t->key->pool->config.loop) >= end_of_use_ms(t))
        pool_tunnel_leave(t);
    else
        arm_unused(t); /* it was used meanwhile */
}

void pool_put_back(struct pool_tunnel *t)
{
    struct zt_hbone_pool *p = t->key->pool;
    ZT_ASSERT(!t->pooled);
    t->pooled = true;
    t->put_back_ms = zt_loop_now_ms(p->config.loop);
    zt_list_push_back(&t->key->tunnels, &t->key_link);
    zt_list_push_back(&p->lru, &t->lru_link);
    p->n_pooled++;
    if (!ev_is_active(&t->timer)) {
        ev_init(&t->timer, on_unused);
        arm_unused(t);
    }
    if (p->n_pooled > ZT_POOL_TUNNELS_MAX)
        pool_tunnel_leave(zt_container_of(zt_list_first(&p->lru), struct pool_tunnel, lru_link));
}

void pool_unlink(struct pool_tunnel *t)
{
    if (!t->pooled)
        return;
    t->pooled = false;
    zt_list_remove(&t->key_link);
    zt_list_remove(&t->lru_link);
    t->key->pool->n_pooled--;
}

void pool_tunnel_leave(struct pool_tunnel *t)
{
    pool_unlink(t);
    if (t->state != TUNNEL_OPEN)
        return;
    ev_timer_stop(zt_loop_ev(t->key->pool->config.loop), &t->timer);
    if (zt_h2_session_streams(t->h2) == 0)
        zt_h2_session_drain(t->h2);
}

void pool_stream_closed(struct pool_tunnel *t)
{
    if (zt_h2_session_streams(t->h2) > 0)
        return;
    if (!t->pooled || t->key->pool->draining)
        pool_tunnel_leave(t);
}

/* Requests that a tunnel will not answer any more: done runs at the end of the turn. */
static void fail_requests(struct pool_tunnel *t, enum zt_err code)
{
    struct zt_link *link;
    while ((link = zt_list_first(&t->requests))) {
        struct zt_hbone_request *r = zt_container_of(link, struct zt_hbone_request, link);
        zt_stream_close(zt_h2_stream_pipe(r->stream), ZT_OK);
        forget(r);
        fail_later(t->key->pool, r, code);
    }
}

/* ---- the owner's calls ---- */

struct zt_hbone_pool *zt_hbone_pool_new(const struct zt_hbone_pool_config *c)
{
    struct zt_hbone_pool *p = zt_new(struct zt_hbone_pool);
    ZT_ASSERT(c->streams_max > 0);
    p->config = *c;
    p->config.h2.streams_max = c->streams_max; /* what we take the peer's limit to be before it says */
    ZT_ASSERT(getrandom(&p->chance, sizeof p->chance, 0) == (ssize_t)sizeof p->chance);
    p->chance |= 1;
    p->task.run = on_task;
    zt_list_init(&p->tunnels);
    zt_list_init(&p->lru);
    zt_list_init(&p->dirty);
    zt_list_init(&p->failed);
    return p;
}

void zt_hbone_pool_free(struct zt_hbone_pool *p)
{
    struct pool_key *key, *next;
    struct zt_link *link;
    if (!p)
        return;
    p->freed = true;
    HASH_ITER(hh, p->keys, key, next)
    {
        while ((link = zt_list_first(&key->waiters))) {
            struct zt_hbone_request *r = zt_container_of(link, struct zt_hbone_request, link);
            forget(r);
            fail_later(p, r, ZT_POOL_DRAINING);
        }
    }
    while ((link = zt_list_first(&p->tunnels))) {
        struct pool_tunnel *t = zt_container_of(link, struct pool_tunnel, all_link);
        fail_requests(t, ZT_POOL_DRAINING);
        pool_tunnel_drop(t, ZT_POOL_DRAINING);
    }
    HASH_ITER(hh, p->keys, key, next)
    {
        pool_key_release(key);
    }
    ZT_ASSERT(!p->keys);
    zt_loop_soon(p->config.loop, &p->task);
}

void zt_hbone_pool_connect(struct zt_hbone_pool *p, const struct zt_hbone_key *k, const struct zt_h2_header *headers,
                           unsigned n_headers, struct zt_hbone_request *r)
{
    ZT_ASSERT(r->state == REQUEST_IDLE && !p->freed);
    struct pool_key *key = key_get(p, k);
    r->pool = p;
    r->headers = headers;
    r->n_headers = n_headers;
    r->tries = 0;
    r->set_up_failed = false;
    r->peer_identity = NULL;
    zt_vitals_pool(p->config.vitals, !zt_list_empty(&key->tunnels) && key->n_waiters == 0);
    if (key->n_waiters >= ZT_POOL_WAITERS_MAX)
        fail_later(p, r, ZT_LIMIT);
    else
        wait_for_key(r, key, false);
}

void zt_hbone_request_cancel(struct zt_hbone_request *r)
{
    struct pool_key *key = r->state == REQUEST_WAITING ? r->key : NULL;
    struct zt_h2_stream *st = r->state == REQUEST_SENT ? r->stream : NULL;
    if (r->state == REQUEST_IDLE)
        return;
    forget(r);
    if (st)
        zt_stream_close(zt_h2_stream_pipe(st), ZT_OK);
    if (key)
        pool_key_release(key);
}

unsigned zt_hbone_pool_revoke(struct zt_hbone_pool *p)
{
    unsigned n = 0;
    zt_list_each_safe(link, &p->tunnels)
    {
        struct pool_tunnel *t = zt_container_of(link, struct pool_tunnel, all_link);
        struct pool_key *key = t->key;
        if (t->state != TUNNEL_OPEN || !pool_tunnel_revoked(t))
            continue;
        fail_requests(t, ZT_REVOKED);
        pool_tunnel_drop(t, ZT_REVOKED);
        pool_key_release(key);
        n++;
    }
    return n;
}

unsigned zt_hbone_pool_tunnels(const struct zt_hbone_pool *p)
{
    return p->n_tunnels;
}
void zt_hbone_pool_drain(struct zt_hbone_pool *p)
{
    p->draining = true;
    zt_list_each_safe(link, &p->lru)
    {
        pool_tunnel_leave(zt_container_of(link, struct pool_tunnel, lru_link));
    }
}
