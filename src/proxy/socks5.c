/* SOCKS5 (RFC 1928, spec/dataplane §9): a negotiation, then an outbound connection like any other. Off by default.
 *
 *   state        on                                  to
 *   NEGOTIATING  the request is an address           connected: answered, and outbound's from here on
 *                the request is a name               RESOLVING
 *   RESOLVING    the name has an address             connected
 *   any          violation, time over, end           refused: answered 05 <code>, closed
 *
 * A negotiation holds a place among the pod's connections, which it gives back for the connection that follows.
 *
 * What the client sends behind its request stays in the socket for the relay: no more is read than the negotiation needs. */
#include "proxy_impl.h"
#include "socks5_parse.h"

#include <unistd.h>

#define NEGOTIATION_MS 10000
#define DISCARDS_MAX 16

struct zt_socks5 {
    struct zt_link link; /* zt_pod.socks */
    struct zt_pod *pod;
    int fd;
    struct zt_addr client;
    ev_io io;
    ev_timer timer;
    struct zt_dns_lookup lookup;
    struct zt_socks5_parse parse;
};

static struct ev_loop *ev_of(const struct zt_socks5 *s)
{
    return zt_loop_ev(s->pod->w->loop);
}

/* Lets go of everything but the descriptor. */
static void detach(struct zt_socks5 *s)
{
    struct zt_worker *w = s->pod->w;
    ev_io_stop(ev_of(s), &s->io);
    ev_timer_stop(ev_of(s), &s->timer);
    zt_dns_lookup_cancel(&s->lookup);
    zt_list_remove(&s->link);
    zt_loop_defer_zt_free(w->loop, s); /* we may be inside one of its callbacks */
    zt_worker_pod_idle(w);
}

static void give_place_back(struct zt_socks5 *s)
{
    zt_limits_connection_end(&s->pod->limits, NULL, zt_loop_now_ms(s->pod->w->loop));
}

static void drop(struct zt_socks5 *s)
{
    give_place_back(s);
    close(s->fd);
    detach(s);
}

static bool reply(struct zt_socks5 *s, enum zt_socks5_reply code)
{
    const uint8_t message[] = {5, (uint8_t)code, 0, 1, 0, 0, 0, 0, 0, 0};
    return send(s->fd, message, sizeof message, MSG_NOSIGNAL) == (ssize_t)sizeof message;
}

static void refuse(struct zt_socks5 *s, enum zt_socks5_reply code, const char *why)
{
    char client[ZT_ADDR_TEXT_MAX];
    zt_log_debug("proxy::socks5", "negotiation with %s failed: %s", zt_addr_format(&s->client, client), why);
    reply(s, code);
    shutdown(s->fd, SHUT_WR);
    for (int i = 0; i < DISCARDS_MAX && recv(s->fd, s->parse.in, sizeof s->parse.in, 0) > 0; i++)
        ; /* bytes left unread would turn the close into a reset, which may overtake the reply */
    drop(s);
}

static void connected(struct zt_socks5 *s)
{
    if (!reply(s, ZT_SOCKS5_OK)) { /* a socket that does not even take ten bytes */
        drop(s);
        return;
    }
    ev_io_stop(ev_of(s), &s->io);
    give_place_back(s);
    zt_outbound_begin(s->pod, s->fd, &s->client, &s->parse.dst);
    detach(s);
}

/* ---- names ---- */

static void on_looked_up(struct zt_dns_lookup *l)
{
    struct zt_socks5 *s = zt_container_of(l, struct zt_socks5, lookup);
    if (l->n_ips == 0) {
        refuse(s, ZT_SOCKS5_UNREACHABLE, l->answered ? "dns response had no valid IP addresses" : "dns: no answer");
        return;
    }
    s->parse.dst.ip = l->ips[0];
    connected(s);
}

static void resolve(struct zt_socks5 *s)
{
    if (!s->pod->dns) {
        refuse(s, ZT_SOCKS5_VIOLATION, "a name needs the DNS proxy, which is off");
        return;
    }
    ev_io_stop(ev_of(s), &s->io);
    s->lookup.done = on_looked_up;
    if (!zt_dns_lookup_start(&s->lookup, s->pod->dns, s->parse.host, (enum zt_family)s->client.ip.family))
        refuse(s, ZT_SOCKS5_UNREACHABLE, "dns: this is no name");
}

/* ---- the negotiation ---- */

static void choose_method(struct zt_socks5 *s)
{
    static const uint8_t chosen[] = {5, 0};
    if (send(s->fd, chosen, sizeof chosen, MSG_NOSIGNAL) != (ssize_t)sizeof chosen)
        refuse(s, ZT_SOCKS5_IO, "cannot write");
}

static void on_message(struct zt_socks5 *s)
{
    switch (zt_socks5_parse_step(&s->parse)) {
    case ZT_SOCKS5_MORE:
        break;
    case ZT_SOCKS5_CHOSEN:
        choose_method(s);
        break;
    case ZT_SOCKS5_CONNECT:
        connected(s);
        break;
    case ZT_SOCKS5_RESOLVE:
        resolve(s);
        break;
    case ZT_SOCKS5_REFUSE:
        refuse(s, ZT_SOCKS5_VIOLATION, s->parse.why);
        break;
    }
}

static void on_readable(struct ev_loop *ev, ev_io *io, int revents)
{
    struct zt_socks5 *s = zt_container_of(io, struct zt_socks5, io);
    struct zt_socks5_parse *p = &s->parse;
    while (ev_is_active(&s->io)) {
        ssize_t n = recv(s->fd, p->in + p->have, p->need - p->have, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            refuse(s, ZT_SOCKS5_IO, n == 0 ? "the client ended it" : "cannot read");
            return;
        }
        p->have += (unsigned)n;
        if (p->have == p->need)
            on_message(s);
    }
}

static void on_time_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    refuse(zt_container_of(t, struct zt_socks5, timer), ZT_SOCKS5_IO, "it took too long");
}

void zt_socks5_accept(struct zt_pod *pod, int fd, const struct zt_addr *client)
{
    if (!zt_pod_admits(pod, NULL)) {
        zt_client_reset(fd);
        return;
    }
    struct zt_socks5 *s = zt_new(struct zt_socks5);
    s->pod = pod;
    s->fd = fd;
    s->client = *client;
    zt_socks5_parse_init(&s->parse);
    zt_list_push_back(&pod->socks, &s->link);
    ev_io_init(&s->io, on_readable, fd, EV_READ);
    ev_io_start(ev_of(s), &s->io);
    ev_timer_init(&s->timer, on_time_over, NEGOTIATION_MS / 1000.0, 0.);
    ev_timer_start(ev_of(s), &s->timer);
}

void zt_socks5_close_all(struct zt_pod *pod)
{
    struct zt_link *link;
    while ((link = zt_list_first(&pod->socks)))
        drop(zt_container_of(link, struct zt_socks5, link));
}
