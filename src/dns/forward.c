/* Forwarding: who asks what is not ours gets it from the cache, or waits for a flight, the one question upstream for all that ask the same.
 *
 *   flight      on                                             to
 *   FOLLOWING   another worker's flight has the answer         ended
 *               that one got none, or takes FOREIGN_PATIENCE   ASKING
 *   ASKING      an upstream answers, or the one it followed    ended
 *               nobody does                                    ended, with a stale answer, a refusal or none
 *   any         nobody waits for it any more                   ended, unless its stale answer was served: then it refreshes that
 *
 * A flight asks the best upstream; when that takes longer than usual it asks the next one too, and the first answer wins. When
 * nobody answers, an answer whose time is over is better than none (RFC 8767): after STALE_AFTER, or when all has failed.
 *
 * A flight starts in the namespace of the pod that asked first. What answers there is as honest as that pod - with CAP_NET_RAW it can see the
 * question and forge the answer - so flights and the cache are shared only within a scope: pods of one identity, or the daemon itself.
 * That pod's way out may also be barred: who waits for another pod's flight does so for FOREIGN_PATIENCE, then asks on its own. What a
 * flight costs counts for the pod that began it, even when that no longer waits. */
#include "dns_impl.h"

#define STALE_AFTER_MS 1800
#define FOREIGN_PATIENCE_MS 400
#define STEP_MS 1000 /* between further tries */

static struct ev_loop *ev_of(const struct dns_flight *f)
{
    return zt_loop_ev(f->w->loop);
}

/* Another one was asked because this one took longer than usual. */
static bool is_late(const struct dns_flight *f, const struct dns_try *t)
{
    unsigned patience_ms = dns_upstream_patience_ms(&f->w->upstreams[t->upstream]);
    return f->n_started > 1 && zt_clock_mono_us() - t->sent_us >= 1000ull * patience_ms;
}

static void flight_free(struct dns_flight *f)
{
    struct zt_dns_worker *w = f->w;
    dns_lead_end(f, NULL, 0);
    dns_lead_leave(f);
    for (int i = 0; i < TRIES_AT_ONCE; i++)
        dns_try_cancel(&f->tries[i], is_late(f, &f->tries[i]));
    ev_timer_stop(ev_of(f), &f->step);
    ev_timer_stop(ev_of(f), &f->deadline);
    ev_timer_stop(ev_of(f), &f->stale_timer);
    if (f->hashed)
        HASH_DEL(w->flights, f);
    f->hashed = false;
    zt_list_remove(&f->all_link);
    zt_list_remove(&f->begun_link);
    if (f->beginner)
        f->beginner->n_flights--;
    zt_netns_unref(f->netns);
    zt_free(f->refusal);
    zt_loop_defer_zt_free(w->loop, f); /* we may be inside one of its callbacks */
}

void dns_flights_drop(struct zt_dns_worker *w)
{
    struct zt_link *link;
    while ((link = zt_list_first(&w->all_flights)))
        flight_free(zt_container_of(link, struct dns_flight, all_link));
}

void dns_forward_leave(struct zt_dns_request *r)
{
    struct dns_flight *f = r->flight;
    if (!f)
        return;
    r->flight = NULL;
    zt_list_remove(&r->flight_link);
    if (zt_list_empty(&f->requests) && !f->refreshes)
        flight_free(f);
}

/* ---- its end ---- */

/* Everybody waiting gets the answer. The flight must not end by their leaving. */
static void deliver(struct dns_flight *f, const uint8_t *wire, size_t len, uint32_t age_s, bool stale)
{
    struct zt_link *link;
    f->refreshes = true;
    while ((link = zt_list_first(&f->requests)))
        dns_request_answered(zt_container_of(link, struct zt_dns_request, flight_link), wire, len, age_s, stale);
}

/* Has the cache something to fall back on? Then everybody gets it. */
static bool deliver_stale(struct dns_flight *f)
{
    struct dns_cached got = dns_cache_get(f->w->dns->cache, &f->key, f->w->wire);
    if (got.freshness == DNS_MISS)
        return false;
    deliver(f, f->w->wire, got.len, got.age_s, got.freshness == DNS_STALE);
    return true;
}

static void end_unanswered(struct dns_flight *f)
{
    struct zt_link *link;
    dns_cache_failed(f->w->dns->cache, &f->key);
    if (deliver_stale(f)) {
        flight_free(f);
        return;
    }
    if (f->refusal)
        deliver(f, f->refusal, f->refusal_len, 0, false);
    f->refreshes = true;
    while ((link = zt_list_first(&f->requests)))
        dns_request_failed(zt_container_of(link, struct zt_dns_request, flight_link), "no upstream answered");
    flight_free(f);
}

/* ---- tries ---- */

static unsigned tries_max(const struct dns_flight *f)
{
    const struct zt_dns_config *c = &f->w->dns->config;
    return c->attempts * c->n_upstreams;
}

static struct dns_try *slot_for_try(struct dns_flight *f)
{
    struct dns_try *oldest = &f->tries[0];
    for (int i = 0; i < TRIES_AT_ONCE; i++) {
        struct dns_try *t = &f->tries[i];
        if (!t->flight)
            return t;
        if (t->sent_us < oldest->sent_us)
            oldest = t;
    }
    dns_try_cancel(oldest, true);
    return oldest;
}

static bool any_out(const struct dns_flight *f)
{
    for (int i = 0; i < TRIES_AT_ONCE; i++)
        if (f->tries[i].flight)
            return true;
    return false;
}

static void set_step(struct dns_flight *f, unsigned ms)
{
    ev_timer_stop(ev_of(f), &f->step);
    ev_timer_set(&f->step, ms / 1000.0, 0.);
    ev_timer_start(ev_of(f), &f->step);
}

/* Starts the next try that can be started; without one the step timer finds out. */
static void start_next(struct dns_flight *f)
{
    while (f->n_started < tries_max(f)) {
        unsigned u = dns_upstream_nth(f->w, f->next_upstream++);
        bool first = f->n_started++ == 0;
        if (dns_try_start(slot_for_try(f), f, u)) {
            set_step(f, first ? dns_upstream_patience_ms(&f->w->upstreams[u]) : STEP_MS);
            return;
        }
    }
    if (!any_out(f))
        set_step(f, 0);
}

static void on_step(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct dns_flight *f = zt_container_of(t, struct dns_flight, step);
    if (f->n_started < tries_max(f)) {
        atomic_fetch_add_explicit(&f->w->dns->n_hedged, f->n_started > 0, memory_order_relaxed);
        start_next(f);
    } else if (!any_out(f)) {
        end_unanswered(f);
    }
}

static void on_deadline(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct dns_flight *f = zt_container_of(t, struct dns_flight, deadline);
    for (int i = 0; i < TRIES_AT_ONCE; i++)
        dns_try_cancel(&f->tries[i], true);
    end_unanswered(f);
}

static void on_stale_due(struct ev_loop *ev, ev_timer *t, int revents)
{
    deliver_stale(zt_container_of(t, struct dns_flight, stale_timer));
}

static void keep_refusal(struct dns_flight *f, const uint8_t *wire, size_t len)
{
    zt_free(f->refusal);
    f->refusal = zt_zalloc(len);
    f->refusal_len = len;
    memcpy(f->refusal, wire, len);
}

void dns_flight_try_ended(struct dns_flight *f, struct dns_try *t, enum try_end end, const uint8_t *wire, size_t len,
                          const struct zt_dns_facts *facts)
{
    if (end == TRY_ANSWERED) {
        dns_cache_put(f->w->dns->cache, &f->key, wire, len, facts->ttl_s);
        dns_lead_end(f, wire, len);
        deliver(f, wire, len, 0, false);
        flight_free(f);
        return;
    }
    if (end == TRY_REFUSED)
        keep_refusal(f, wire, len);
    if (end == TRY_REFUSED && facts->rcode == ZT_DNS_FORMERR && f->next_upstream > 0 && f->n_started < tries_max(f))
        f->next_upstream--; /* the same again, without EDNS */
    start_next(f);
}

void dns_flight_told(struct dns_flight *f, const uint8_t *wire, size_t len)
{
    if (wire) {
        deliver(f, wire, len, 0, false);
        flight_free(f);
    } else if (f->n_started == 0) {
        start_next(f);
    }
}

/* ---- its beginning ---- */

static struct dns_flight *flight_new(struct zt_dns_request *r, const struct dns_key *key, bool hashed)
{
    struct zt_dns_server *s = r->server;
    const struct zt_dns_config *c = &s->w->dns->config;
    struct dns_flight *f = zt_new(struct dns_flight);
    f->w = s->w;
    f->beginner = s;
    s->n_flights++;
    zt_list_push_back(&s->flights, &f->begun_link);
    f->netns = zt_netns_ref(s->netns);
    f->sock = s->sock;
    f->q = r->q;
    f->hashed = hashed;
    f->key = *key;
    zt_list_init(&f->requests);
    zt_list_push_back(&f->w->all_flights, &f->all_link);
    if (hashed)
        HASH_ADD(hh, f->w->flights, key.bytes, f->key.len, f);
    ev_init(&f->step, on_step);
    ev_timer_init(&f->stale_timer, on_stale_due, STALE_AFTER_MS / 1000.0, 0.);
    ev_timer_init(&f->deadline, on_deadline, (double)(c->timeout_s * c->attempts), 0.);
    ev_timer_start(ev_of(f), &f->deadline);
    if (hashed && !dns_lead_take(f)) {
        atomic_fetch_add_explicit(&f->w->dns->n_coalesced, 1, memory_order_relaxed);
        set_step(f, FOREIGN_PATIENCE_MS);
    } else {
        start_next(f);
    }
    return f;
}

static void join(struct zt_dns_request *r, struct dns_flight *f)
{
    r->flight = f;
    zt_list_push_back(&f->requests, &r->flight_link);
}

/* Another pod's flight takes long: its way out may be barred, ours may not. */
static void on_patience_over(struct ev_loop *ev, ev_timer *timer, int revents)
{
    struct zt_dns_request *r = zt_container_of(timer, struct zt_dns_request, timer);
    struct dns_flight *own = flight_new(r, &r->flight->key, false);
    dns_forward_leave(r);
    join(r, own);
}

void dns_forward(struct zt_dns_request *r)
{
    struct zt_dns_worker *w = r->server->w;
    struct dns_key key = {.scope_len = strlen(r->server->scope)};
    key.len = zt_dns_query_key(&r->q, r->server->scope, key.bytes);
    struct dns_cached got = dns_cache_get(w->dns->cache, &key, w->wire);
    if (got.freshness == DNS_FRESH || (got.freshness == DNS_STALE && got.retry_later)) {
        dns_request_answered(r, w->wire, got.len, got.age_s, got.freshness == DNS_STALE);
        return;
    }
    struct dns_flight *f;
    HASH_FIND(hh, w->flights, key.bytes, key.len, f);
    if (!f)
        f = flight_new(r, &key, true);
    else
        atomic_fetch_add_explicit(&w->dns->n_coalesced, 1, memory_order_relaxed);
    join(r, f);
    if (got.freshness == DNS_STALE && !ev_is_active(&f->stale_timer))
        ev_timer_start(ev_of(f), &f->stale_timer);
    if (f->beginner != r->server) {
        ev_timer_init(&r->timer, on_patience_over, FOREIGN_PATIENCE_MS / 1000.0, 0.);
        ev_timer_start(ev_of(f), &r->timer);
    }
}
