/* One try: a question to one upstream, by UDP from a socket of its own, again by TCP when the answer was cut.
 *
 *   state       on                                     to
 *   UDP         the answer                             ended (answered, refused)
 *               the answer, cut                        TCP
 *               refused port, too many wrong answers   ended (failed)
 *   TCP         connected, sent, length, message       ended
 *               anything else                          ended (failed)
 *
 * What a liar off the path has to guess: the socket is connected, so the kernel takes datagrams of the upstream's address only; port
 * and id are random per try, and the question must be repeated. What does not fit is ignored and counted. */
#include "dns_impl.h"

#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define UPSTREAM_PORT 53
#define WRONG_MAX 32            /* ignored answers to one try */
#define RECEIVES_PER_TURN 8
#define TCP_CONNECT_MS 5000
#define PATIENCE_MIN_MS 30
#define PATIENCE_MAX_MS 1000
#define PATIENCE_UNKNOWN_MS 250
#define FAILURES_DOWN 3         /* in a row, then it is asked last */
#define DOWN_MS 5000
#define SLOW_MS 8               /* below that upstreams are equal; then each doubling counts */

/* ---- health ---- */

void dns_upstreams_init(struct zt_dns_worker *w)
{
    const struct zt_dns_config *c = &w->dns->config;
    for (unsigned i = 0; i < c->n_upstreams; i++)
        w->upstreams[i].addr = (struct zt_addr){c->upstreams[i], UPSTREAM_PORT};
}

static uint32_t load(const atomic_uint_fast32_t *v)
{
    return (uint32_t)atomic_load_explicit(v, memory_order_relaxed);
}

static uint64_t badness(const struct zt_dns_worker *w, unsigned i)
{
    const struct dns_upstream *u = &w->upstreams[i];
    uint64_t down = zt_loop_now_ms(w->loop) < u->down_until_ms, slowness = 0;
    for (uint32_t ms = load(&u->srtt_us) / 1000; ms >= SLOW_MS; ms /= 2)
        slowness++;
    return down << 16 | slowness << 8 | i; /* of about equals the first of the file */
}

unsigned dns_upstream_nth(const struct zt_dns_worker *w, unsigned n)
{
    unsigned total = w->dns->config.n_upstreams;
    for (unsigned i = 0; i < total; i++) {
        unsigned before = 0;
        for (unsigned k = 0; k < total; k++)
            before += badness(w, k) < badness(w, i);
        if (before == n % total)
            return i;
    }
    return 0;
}

unsigned dns_upstream_patience_ms(const struct dns_upstream *u)
{
    uint32_t srtt_ms = load(&u->srtt_us) / 1000;
    if (load(&u->srtt_us) == 0)
        return PATIENCE_UNKNOWN_MS;
    return 3 * srtt_ms < PATIENCE_MIN_MS ? PATIENCE_MIN_MS : 3 * srtt_ms > PATIENCE_MAX_MS ? PATIENCE_MAX_MS : 3 * srtt_ms;
}

static struct dns_upstream *upstream_of(const struct dns_try *t)
{
    return &t->flight->w->upstreams[t->upstream];
}

static void note_success(struct dns_try *t)
{
    struct dns_upstream *u = upstream_of(t);
    uint64_t took = zt_clock_mono_us() - t->sent_us;
    uint32_t sample = took > 10000000 ? 10000000 : took == 0 ? 1 : (uint32_t)took, old = load(&u->srtt_us);
    atomic_store_explicit(&u->srtt_us, old ? old - old / 8 + sample / 8 + 1 : sample, memory_order_relaxed);
    atomic_store_explicit(&u->failures, 0, memory_order_relaxed);
    u->down_until_ms = 0;
}

static void note_failure(struct dns_try *t)
{
    struct dns_upstream *u = upstream_of(t);
    if (atomic_fetch_add_explicit(&u->failures, 1, memory_order_relaxed) + 1 >= FAILURES_DOWN)
        u->down_until_ms = zt_loop_now_ms(t->flight->w->loop) + DOWN_MS;
}

/* ---- the end ---- */

static struct ev_loop *ev_of(const struct dns_try *t)
{
    return zt_loop_ev(t->flight->w->loop);
}

static void close_try(struct dns_try *t)
{
    zt_dial_cancel(&t->dial);
    ev_io_stop(ev_of(t), &t->io);
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
    zt_free(t->in);
    t->in = NULL;
    t->flight = NULL;
}

void dns_try_cancel(struct dns_try *t, bool gave_up)
{
    if (!t->flight)
        return;
    if (gave_up)
        note_failure(t);
    close_try(t);
}

static void fail(struct dns_try *t)
{
    struct dns_flight *f = t->flight;
    note_failure(t);
    close_try(t);
    dns_flight_try_ended(f, t, TRY_FAILED, NULL, 0, NULL);
}

/* A whole answer. wire is not the try's memory. */
static void finish(struct dns_try *t, const uint8_t *wire, size_t len, const struct zt_dns_facts *facts)
{
    struct dns_flight *f = t->flight;
    enum try_end end = facts->rcode == ZT_DNS_NOERROR || facts->rcode == ZT_DNS_NXDOMAIN ? TRY_ANSWERED : TRY_REFUSED;
    if (end == TRY_ANSWERED)
        note_success(t);
    else
        note_failure(t);
    if (facts->rcode == ZT_DNS_FORMERR && t->edns)
        upstream_of(t)->no_edns = true; /* older than EDNS: the next try does without */
    close_try(t);
    dns_flight_try_ended(f, t, end, wire, len, facts);
}

/* ---- by TCP ---- */

static void on_tcp_readable(struct dns_try *t)
{
    struct zt_dns_worker *w = t->flight->w;
    size_t need = t->in_len < 2 ? 2 : 2 + (size_t)(t->in[0] << 8 | t->in[1]);
    ssize_t n = recv(t->fd, t->in + t->in_len, need - t->in_len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        fail(t);
        return;
    }
    t->in_len += (size_t)n;
    if (t->in_len == 2 && need == 2)
        t->in = zt_realloc(t->in, 2 + (size_t)(t->in[0] << 8 | t->in[1]) + 1);
    if (t->in_len < 2 || t->in_len < 2 + (size_t)(t->in[0] << 8 | t->in[1]))
        return;
    struct zt_dns_facts facts;
    size_t len = t->in_len - 2;
    if (!zt_dns_response_parse(t->in + 2, len, &t->flight->q, t->id, &facts) || facts.truncated) {
        fail(t);
        return;
    }
    memcpy(w->wire, t->in + 2, len);
    finish(t, w->wire, len, &facts);
}

static void on_tcp(struct ev_loop *ev, ev_io *io, int revents)
{
    struct dns_try *t = zt_container_of(io, struct dns_try, io);
    if (t->out_sent == t->out_len) {
        on_tcp_readable(t);
        return;
    }
    ssize_t n = send(t->fd, t->out + t->out_sent, t->out_len - t->out_sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        fail(t);
        return;
    }
    t->out_sent += n > 0 ? (size_t)n : 0;
    if (t->out_sent == t->out_len) {
        ev_io_stop(ev, io);
        ev_io_set(io, t->fd, EV_READ);
        ev_io_start(ev, io);
    }
}

static void on_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct dns_try *t = zt_container_of(d, struct dns_try, dial);
    if (fd < 0) {
        fail(t);
        return;
    }
    t->fd = fd;
    t->in = zt_zalloc(2);
    ev_io_init(&t->io, on_tcp, fd, EV_WRITE);
    ev_io_start(ev_of(t), &t->io);
}

static void turn_to_tcp(struct dns_try *t)
{
    struct dns_flight *f = t->flight;
    ev_io_stop(ev_of(t), &t->io);
    close(t->fd);
    t->fd = -1;
    t->tcp = true;
    zt_dial_start(&t->dial, f->w->loop, f->netns, &upstream_of(t)->addr, NULL, &f->sock, TCP_CONNECT_MS, on_dialled);
}

/* ---- by UDP ---- */

/* Takes one datagram. False: no more of them, or the try has ended. */
static bool receive(struct dns_try *t)
{
    struct zt_dns_worker *w = t->flight->w;
    struct zt_dns_facts facts;
    ssize_t n = recv(t->fd, w->wire, sizeof w->wire, 0);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail(t); /* nobody listens there (ICMP) */
        return false;
    }
    if (!zt_dns_response_parse(w->wire, (size_t)n, &t->flight->q, t->id, &facts)) {
        atomic_fetch_add_explicit(&w->dns->n_ignored, 1, memory_order_relaxed);
        if (++t->n_wrong < WRONG_MAX)
            return true;
        fail(t);
    } else if (facts.truncated) {
        turn_to_tcp(t);
    } else {
        finish(t, w->wire, (size_t)n, &facts);
    }
    return false;
}

static void on_udp(struct ev_loop *ev, ev_io *io, int revents)
{
    struct dns_try *t = zt_container_of(io, struct dns_try, io);
    for (int i = 0; i < RECEIVES_PER_TURN && receive(t); i++)
        ;
}

bool dns_try_start(struct dns_try *t, struct dns_flight *f, unsigned upstream)
{
    struct dns_upstream *u = &f->w->upstreams[upstream];
    *t = (struct dns_try){.flight = f, .upstream = upstream, .fd = -1, .edns = !u->no_edns, .sent_us = zt_clock_mono_us()};
    ZT_ASSERT(getrandom(&t->id, sizeof t->id, 0) == (ssize_t)sizeof t->id);
    atomic_fetch_add_explicit(&u->n_queries, 1, memory_order_relaxed);
    size_t len = zt_dns_query_write(&f->q, t->id, t->edns, t->out + 2);
    t->out[0] = (uint8_t)(len >> 8);
    t->out[1] = (uint8_t)len;
    t->out_len = 2 + len;
    t->fd = zt_sock_connect_udp(f->netns, &u->addr, &f->sock);
    ev_io_init(&t->io, on_udp, t->fd, EV_READ);
    if (t->fd < 0 || send(t->fd, t->out + 2, len, MSG_NOSIGNAL) < 0) {
        dns_try_cancel(t, true);
        return false;
    }
    ev_io_start(ev_of(t), &t->io);
    return true;
}
