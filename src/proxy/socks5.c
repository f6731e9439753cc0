/* SOCKS5 (RFC 1928, spec/dataplane §9): a negotiation, then an outbound connection like any other. Off by default.
 *
 *   state      on                                    to
 *   GREETING   version and number of methods         METHODS
 *   METHODS    "no authentication" is among them     REQUEST (answered 05 00)
 *   REQUEST    CONNECT, address type                 ADDRESS, NAME_LEN
 *   NAME_LEN   the name's length                     ADDRESS
 *   ADDRESS    address or name, and port             connected, or RESOLVING
 *   RESOLVING  the name has an address               connected
 *   any        violation, time over, end             failed: answered 05 <code>, closed
 *
 * Each state reads exactly the bytes it needs, so that what the client sends behind its request stays in the socket for the relay. */
#include "proxy_impl.h"

#include <unistd.h>

enum { VERSION = 5, NO_AUTHENTICATION = 0, COMMAND_CONNECT = 1 };
enum { TYPE_IPV4 = 1, TYPE_NAME = 3, TYPE_IPV6 = 4 };
enum { REPLY_OK = 0, REPLY_IO = 1, REPLY_UNREACHABLE = 4, REPLY_VIOLATION = 7 };

#define NEGOTIATION_MS 10000
#define DISCARDS_MAX 16
#define MESSAGE_MAX (255 + 2) /* a name and a port are the longest read at once; a list of methods has at most 255 */

enum socks5_state { GREETING, METHODS, REQUEST, NAME_LEN, ADDRESS, RESOLVING };
struct zt_socks5 {
    struct zt_link link; /* zt_pod.socks */
    struct zt_pod *pod;
    int fd;
    enum socks5_state state;
    struct zt_addr client, dst;
    ev_io io;
    ev_timer timer;
    struct zt_dns_lookup lookup;
    uint8_t type;
    unsigned have, need; /* bytes of in */
    uint8_t in[MESSAGE_MAX];
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

static bool reply(struct zt_socks5 *s, uint8_t code)
{
    const uint8_t message[] = {VERSION, code, 0, TYPE_IPV4, 0, 0, 0, 0, 0, 0};
    return send(s->fd, message, sizeof message, MSG_NOSIGNAL) == (ssize_t)sizeof message;
}

static void refuse(struct zt_socks5 *s, uint8_t code, const char *why)
{
    char client[ZT_ADDR_TEXT_MAX];
    zt_log_debug("proxy::socks5", "negotiation with %s failed: %s", zt_addr_format(&s->client, client), why);
    reply(s, code);
    shutdown(s->fd, SHUT_WR);
    for (int i = 0; i < DISCARDS_MAX && recv(s->fd, s->in, sizeof s->in, 0) > 0; i++)
        ; /* bytes left unread would turn the close into a reset, which may overtake the reply */
    close(s->fd);
    detach(s);
}

static void connected(struct zt_socks5 *s)
{
    struct zt_pod *pod = s->pod;
    if (!reply(s, REPLY_OK)) { /* a socket that does not even take ten bytes */
        close(s->fd);
        detach(s);
        return;
    }
    struct zt_addr client = s->client, dst = s->dst;
    int fd = s->fd;
    ev_io_stop(ev_of(s), &s->io);
    zt_outbound_begin(pod, fd, &client, &dst);
    detach(s);
}

/* ---- names ---- */

static void on_looked_up(struct zt_dns_lookup *l)
{
    struct zt_socks5 *s = zt_container_of(l, struct zt_socks5, lookup);
    if (l->n_ips == 0) {
        refuse(s, REPLY_UNREACHABLE, l->answered ? "dns response had no valid IP addresses" : "dns: no answer");
        return;
    }
    s->dst.ip = l->ips[0];
    connected(s);
}

static bool is_utf8(const char *text, size_t len)
{
    uint32_t code;
    size_t n;
    for (size_t at = 0; at < len; at += n)
        if ((n = zt_utf8_next(text + at, len - at, &code)) == 0)
            return false;
    return true;
}

static void resolve(struct zt_socks5 *s, const char *name, size_t len)
{
    char host[256];
    if (!is_utf8(name, len) || memchr(name, '\0', len)) {
        refuse(s, REPLY_VIOLATION, "the name is not valid UTF-8");
        return;
    }
    if (!s->pod->dns) {
        refuse(s, REPLY_VIOLATION, "a name needs the DNS proxy, which is off");
        return;
    }
    memcpy(host, name, len);
    host[len] = '\0';
    if (zt_ip_parse(host, &s->dst.ip)) { /* an address written as a name */
        connected(s);
        return;
    }
    ev_io_stop(ev_of(s), &s->io);
    s->state = RESOLVING;
    s->lookup.done = on_looked_up;
    if (!zt_dns_lookup_start(&s->lookup, s->pod->dns, host, (enum zt_family)s->client.ip.family))
        refuse(s, REPLY_UNREACHABLE, "dns: this is no name");
}

/* ---- the messages ---- */

static void expect(struct zt_socks5 *s, enum socks5_state state, unsigned bytes)
{
    s->state = state;
    s->have = 0;
    s->need = bytes;
}

static void on_methods(struct zt_socks5 *s)
{
    static const uint8_t chosen[] = {VERSION, NO_AUTHENTICATION};
    if (!memchr(s->in, NO_AUTHENTICATION, s->need))
        refuse(s, REPLY_VIOLATION, "the client does not offer to go without authentication");
    else if (send(s->fd, chosen, sizeof chosen, MSG_NOSIGNAL) != (ssize_t)sizeof chosen)
        refuse(s, REPLY_IO, "cannot write");
    else
        expect(s, REQUEST, 4);
}

static void on_request(struct zt_socks5 *s)
{
    s->type = s->in[3];
    if (s->in[0] != VERSION)
        refuse(s, REPLY_VIOLATION, "not version 5");
    else if (s->in[1] != COMMAND_CONNECT)
        refuse(s, REPLY_VIOLATION, "only CONNECT is served");
    else if (s->type == TYPE_IPV4)
        expect(s, ADDRESS, 4 + 2);
    else if (s->type == TYPE_IPV6)
        expect(s, ADDRESS, 16 + 2);
    else if (s->type == TYPE_NAME)
        expect(s, NAME_LEN, 1);
    else
        refuse(s, REPLY_VIOLATION, "unknown address type");
}

static void on_address(struct zt_socks5 *s)
{
    unsigned len = s->need - 2;
    s->dst.port = (uint16_t)(s->in[len] << 8 | s->in[len + 1]);
    if (s->type == TYPE_NAME) {
        resolve(s, (const char *)s->in, len);
        return;
    }
    s->dst.ip = zt_ip_from_bytes(s->in, len);
    connected(s);
}

static void on_message(struct zt_socks5 *s)
{
    switch (s->state) {
    case GREETING:
        if (s->in[0] != VERSION || s->in[1] == 0)
            refuse(s, REPLY_VIOLATION, s->in[0] != VERSION ? "not version 5" : "no methods");
        else
            expect(s, METHODS, s->in[1]);
        break;
    case METHODS:
        on_methods(s);
        break;
    case REQUEST:
        on_request(s);
        break;
    case NAME_LEN:
        if (s->in[0] == 0)
            refuse(s, REPLY_VIOLATION, "an empty name");
        else
            expect(s, ADDRESS, s->in[0] + 2u);
        break;
    case ADDRESS:
        on_address(s);
        break;
    case RESOLVING:
        break;
    }
}

static void on_readable(struct ev_loop *ev, ev_io *io, int revents)
{
    struct zt_socks5 *s = zt_container_of(io, struct zt_socks5, io);
    while (ev_is_active(&s->io)) {
        ssize_t n = recv(s->fd, s->in + s->have, s->need - s->have, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            refuse(s, REPLY_IO, n == 0 ? "the client ended it" : "cannot read");
            return;
        }
        s->have += (unsigned)n;
        if (s->have == s->need)
            on_message(s);
    }
}

static void on_time_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    refuse(zt_container_of(t, struct zt_socks5, timer), REPLY_IO, "it took too long");
}

void zt_socks5_accept(struct zt_pod *pod, int fd, const struct zt_addr *client)
{
    struct zt_socks5 *s = zt_new(struct zt_socks5);
    s->pod = pod;
    s->fd = fd;
    s->client = *client;
    expect(s, GREETING, 2);
    zt_list_push_back(&pod->socks, &s->link);
    ev_io_init(&s->io, on_readable, fd, EV_READ);
    ev_io_start(ev_of(s), &s->io);
    ev_timer_init(&s->timer, on_time_over, NEGOTIATION_MS / 1000.0, 0.);
    ev_timer_start(ev_of(s), &s->timer);
}

void zt_socks5_close_all(struct zt_pod *pod)
{
    struct zt_link *link;
    while ((link = zt_list_first(&pod->socks))) {
        struct zt_socks5 *s = zt_container_of(link, struct zt_socks5, link);
        close(s->fd);
        detach(s);
    }
}
