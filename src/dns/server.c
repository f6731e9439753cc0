/* A pod's listeners: datagrams in batches, and TCP connections with one question at a time.
 *
 * A TCP connection:
 *   state     on                                   to
 *   READING   a whole message                      ANSWERING
 *             idle for 5 s, garbage, its end       closed
 *   ANSWERING the answer is written                READING (what was pipelined is looked at first)
 *             cannot be written for 5 s            closed
 * It stops reading while a question is being answered, so that a client pays for its own pipeline. */
#include "dns_impl.h"

#include "zt/net/fd_guard.h"
#include <sys/socket.h>
#include <unistd.h>

#define TCP_IDLE_MS 5000
#define ACCEPTS_PER_TURN 16
#define BACKOFF_MS 100
#define ANSWER_WAIT_MS 60000 /* longer than any upstream may take: only a bound */

struct dns_conn {
    struct zt_link link;
    struct zt_dns_server *server;
    int fd;
    ev_io io;
    ev_timer idle;
    struct zt_task task; /* to go on with what was pipelined */
    struct zt_dns_request *request; /* waits for its answer */
    bool eof;
    uint8_t *out; /* what the socket did not take, or NULL */
    size_t out_len, out_sent, in_len;
    uint8_t in[2 + ZT_DNS_REQUEST_MAX];
};

static struct ev_loop *ev_of(const struct zt_dns_server *s)
{
    return zt_loop_ev(s->w->loop);
}

/* ---- TCP ---- */

void dns_server_less_to_do(struct zt_dns_server *s)
{
    if (s->draining && zt_dns_server_idle(s) && s->on_idle)
        s->on_idle(s->arg);
}

/* Nothing is left to write, or nobody to write it to. */
static void written(struct dns_conn *c)
{
    if (!c->out)
        return;
    zt_free(c->out);
    c->out = NULL;
    c->server->n_writing--;
    dns_server_less_to_do(c->server);
}

static void conn_close(struct dns_conn *c)
{
    struct zt_dns_server *s = c->server;
    if (c->fd < 0)
        return;
    ev_io_stop(ev_of(s), &c->io);
    ev_timer_stop(ev_of(s), &c->idle);
    zt_task_cancel(&c->task);
    close(c->fd);
    c->fd = -1;
    if (c->request) {
        c->request->origin.conn = NULL;
        dns_request_free(c->request);
    }
    zt_list_remove(&c->link);
    s->n_conns--;
    written(c);
    zt_loop_defer_zt_free(s->w->loop, c);
}

static void watch(struct dns_conn *c, int events)
{
    ev_io_stop(ev_of(c->server), &c->io);
    if (!events)
        return;
    ev_io_set(&c->io, c->fd, events);
    ev_io_start(ev_of(c->server), &c->io);
}

static void set_idle(struct dns_conn *c, unsigned ms)
{
    ev_timer_stop(ev_of(c->server), &c->idle);
    ev_timer_set(&c->idle, ms / 1000.0, 0.);
    ev_timer_start(ev_of(c->server), &c->idle);
}

void dns_conn_waits_for(struct dns_conn *c, struct zt_dns_request *r)
{
    c->request = r;
}

/* The answer is out, or there is none: the next question, from the end of this turn on. */
static void go_on(struct dns_conn *c)
{
    set_idle(c, TCP_IDLE_MS);
    zt_loop_soon(c->server->w->loop, &c->task);
}

void dns_conn_reply(struct dns_conn *c, size_t len)
{
    uint8_t *reply = c->server->w->reply;
    if (len == 0) {
        go_on(c);
        return;
    }
    reply[0] = (uint8_t)(len >> 8);
    reply[1] = (uint8_t)len;
    len += 2;
    ssize_t n = send(c->fd, reply, len, MSG_NOSIGNAL);
    size_t sent = n < 0 ? 0 : (size_t)n;
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        c->eof = true;
        c->in_len = 0;
        go_on(c);
        return;
    }
    if (sent == len) {
        go_on(c);
        return;
    }
    c->out_len = len - sent;
    c->out_sent = 0;
    c->out = zt_zalloc(c->out_len);
    memcpy(c->out, reply + sent, c->out_len);
    c->server->n_writing++;
    set_idle(c, TCP_IDLE_MS);
    watch(c, EV_WRITE);
}

static void write_more(struct dns_conn *c)
{
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        conn_close(c);
        return;
    }
    c->out_sent += n > 0 ? (size_t)n : 0;
    if (c->out_sent < c->out_len)
        return;
    watch(c, 0);
    go_on(c);
    written(c);
}

/* Handles the question that is complete, if any; otherwise reads on. */
static void run_next(struct zt_task *t)
{
    struct dns_conn *c = zt_container_of(t, struct dns_conn, task);
    struct zt_dns_server *s = c->server;
    size_t len = c->in_len < 2 ? 0 : (size_t)(c->in[0] << 8 | c->in[1]);
    uint8_t message[ZT_DNS_REQUEST_MAX];
    if (len > ZT_DNS_REQUEST_MAX) {
        conn_close(c); /* no question is that long */
        return;
    }
    if (c->in_len < 2 || c->in_len < 2 + len) {
        if (c->eof || (s->draining && c->in_len == 0))
            conn_close(c);
        else
            watch(c, EV_READ);
        return;
    }
    const struct dns_origin o = {.kind = ORIGIN_TCP, .conn = c};
    watch(c, 0);
    memcpy(message, c->in + 2, len);
    c->in_len -= 2 + len;
    memmove(c->in, c->in + 2 + len, c->in_len);
    set_idle(c, ANSWER_WAIT_MS);
    dns_handle(s, &o, message, len);
}

static void on_conn(struct ev_loop *ev, ev_io *io, int revents)
{
    struct dns_conn *c = zt_container_of(io, struct dns_conn, io);
    if (revents & EV_WRITE) {
        write_more(c);
        return;
    }
    ssize_t n = recv(c->fd, c->in + c->in_len, sizeof c->in - c->in_len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        conn_close(c);
        return;
    }
    c->in_len += (size_t)n;
    run_next(&c->task);
}

static void on_idle(struct ev_loop *ev, ev_timer *t, int revents)
{
    conn_close(zt_container_of(t, struct dns_conn, idle));
}

static void conn_new(struct zt_dns_server *s, int fd)
{
    if (s->n_conns == ZT_DNS_POD_CONNS_MAX || zt_sock_setup_accepted(fd, &s->sock, true) < 0) {
        if (s->n_conns == ZT_DNS_POD_CONNS_MAX)
            dns_count_limited(s, NULL);
        close(fd);
        return;
    }
    struct dns_conn *c = zt_new(struct dns_conn);
    c->server = s;
    c->fd = fd;
    c->task.run = run_next;
    zt_list_push_back(&s->conns, &c->link);
    s->n_conns++;
    ev_init(&c->idle, on_idle);
    ev_io_init(&c->io, on_conn, fd, EV_READ);
    ev_io_start(ev_of(s), &c->io);
    set_idle(c, TCP_IDLE_MS);
}

static void on_acceptable(struct ev_loop *ev, ev_io *io, int revents)
{
    struct dns_listener *l = zt_container_of(io, struct dns_listener, io);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0 && zt_fd_guard_allows(fd)) {
            conn_new(l->server, fd);
            continue;
        }
        bool full = fd >= 0 || errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        if (fd >= 0)
            close(fd);
        if (full) { /* instead of spinning */
            ev_io_stop(ev, &l->io);
            ev_timer_set(&l->backoff, BACKOFF_MS / 1000.0, 0.);
            ev_timer_start(ev, &l->backoff);
        }
        return;
    }
}

static void on_backoff_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct dns_listener *l = zt_container_of(t, struct dns_listener, backoff);
    if (l->fd >= 0)
        ev_io_start(ev, &l->io);
}

/* ---- UDP ---- */

/* An address that nobody can have sent from (spec/dataplane §10.1). */
static bool is_forged(const struct zt_addr *a)
{
    static const uint8_t broadcast[4] = {255, 255, 255, 255};
    return a->ip.family == ZT_IP_NONE || a->port == 0 || zt_ip_is_unspecified(&a->ip) ||
           (a->ip.family == ZT_IPV4 && memcmp(a->ip.bytes, broadcast, sizeof broadcast) == 0);
}

/* One batch a turn: a flooding pod shares the loop with the others. */
static void on_datagrams(struct ev_loop *ev, ev_io *io, int revents)
{
    struct dns_listener *l = zt_container_of(io, struct dns_listener, io);
    struct zt_dns_worker *w = l->server->w;
    struct mmsghdr m[BATCH];
    struct iovec iov[BATCH];
    struct sockaddr_storage from[BATCH];
    for (int i = 0; i < BATCH; i++) {
        iov[i] = (struct iovec){w->batch[i], BATCH_BYTES};
        m[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &iov[i], .msg_iovlen = 1};
    }
    int n = recvmmsg(l->fd, m, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n && l->fd >= 0; i++) {
        const struct dns_origin o = {.kind = ORIGIN_UDP, .listener = l, .peer = zt_addr_from_sockaddr((struct sockaddr *)&from[i])};
        if (!is_forged(&o.peer))
            dns_handle(l->server, &o, w->batch[i], m[i].msg_len);
    }
}

/* ---- life ---- */

static void close_listener(struct dns_listener *l)
{
    if (l->fd < 0)
        return;
    ev_io_stop(ev_of(l->server), &l->io);
    ev_timer_stop(ev_of(l->server), &l->backoff);
    close(l->fd);
    l->fd = -1;
}

/* a: where it listens, or NULL. */
static void log_life(const struct zt_dns_server *s, const char *message, const struct zt_addr *a)
{
    struct zt_log_line l;
    char text[ZT_ADDR_TEXT_MAX], owner[600];
    if (!zt_log_on(ZT_LOG_INFO, "dns::server"))
        return;
    zt_fmt(owner, sizeof owner, "%s/%s", s->ns, s->name);
    zt_log_begin(&l, ZT_LOG_INFO, "dns::server", message);
    zt_log_span(&l, "dns_proxy", "wl", owner);
    if (a) {
        zt_log_raw(&l, "address", zt_addr_format(a, text));
        zt_log_str(&l, "component", "dns");
    }
    zt_log_end(&l);
}

/* Both kinds on one address. optional: an address that is not there is left out. */
static enum zt_err open_at(struct zt_dns_server *s, int index, const struct zt_addr *a, bool optional, struct zt_error *err)
{
    struct dns_listener *l = &s->listeners[index];
    bool missing = false, transparent;
    enum zt_err e = zt_sock_bind_udp(s->netns, a, &s->sock, &l[0].fd, &missing, err);
    if (e == ZT_OK)
        e = zt_sock_listen_at(s->netns, a, &s->sock, &l[1].fd, &transparent, err);
    if (e != ZT_OK && missing && optional) {
        if (err)
            *err = (struct zt_error)ZT_ERROR_INIT;
        return ZT_OK;
    }
    if (e == ZT_OK)
        log_life(s, "starting local DNS server", a);
    return e;
}

static enum zt_err open_all(struct zt_dns_server *s, struct zt_error *err)
{
    const struct zt_dns_config *c = &s->w->dns->config;
    if (c->listen.ip.family != ZT_IP_NONE)
        return open_at(s, 0, &c->listen, false, err);
    struct zt_addr a = {zt_ip_loopback(ZT_IPV4), c->listen.port};
    enum zt_err e = open_at(s, 0, &a, false, err);
    a.ip = zt_ip_loopback(ZT_IPV6);
    return e == ZT_OK && c->ipv6_loopback ? open_at(s, 2, &a, true, err) : e;
}

static enum zt_err set_scope(struct zt_dns_server *s, struct zt_error *err)
{
    if (!s->name || zt_fmt(s->scope, sizeof s->scope, "%s/%s", s->ns, s->service_account))
        return ZT_OK;
    return zt_error_set(err, ZT_INVALID, "namespace and service account of %s have more than %d bytes", s->name, ZT_DNS_SCOPE_MAX - 1);
}

/* All that an idle pod costs here, beside its sockets. */
_Static_assert(sizeof(struct zt_dns_server) <= 6 * 1024, "at most 6 KB per pod");

enum zt_err zt_dns_server_new(struct zt_dns_worker *w, const struct zt_dns_server_config *c, struct zt_dns_server **out,
                              struct zt_error *err)
{
    struct zt_dns_server *s = zt_new(struct zt_dns_server);
    s->w = w;
    s->ns = c->ns;
    s->name = c->name;
    s->service_account = c->service_account;
    s->netns = zt_netns_ref(c->netns);
    s->sock = c->sock;
    s->sock.orig_src = ZT_ORIG_SRC_NEVER;
    s->sock.quota = NULL; /* the pod's; a flight may outlive it, and has a limit of its own */
    s->listens = c->listen;
    s->on_idle = c->on_idle;
    s->arg = c->arg;
    s->tokens = ZT_DNS_POD_FORWARD_RATE;
    zt_list_init(&s->requests);
    zt_list_init(&s->conns);
    zt_list_init(&s->flights);
    for (int i = 0; i < LISTENERS; i++) {
        s->listeners[i].server = s;
        s->listeners[i].fd = -1;
        s->listeners[i].tcp = i % 2;
    }
    enum zt_err e = set_scope(s, err);
    if (e == ZT_OK && c->listen)
        e = open_all(s, err);
    if (e == ZT_OK)
        *out = s;
    else
        zt_dns_server_free(s);
    return e;
}

void zt_dns_server_start(struct zt_dns_server *s)
{
    s->tokens_ms = zt_loop_now_ms(s->w->loop);
    for (int i = 0; i < LISTENERS; i++) {
        struct dns_listener *l = &s->listeners[i];
        ev_io_init(&l->io, l->tcp ? on_acceptable : on_datagrams, l->fd, EV_READ);
        ev_init(&l->backoff, on_backoff_over);
        if (l->fd >= 0)
            ev_io_start(ev_of(s), &l->io);
    }
}

void zt_dns_server_state_changed(struct zt_dns_server *s)
{
    dns_forget_series(s);
    zt_list_each_safe(link, &s->requests) dns_request_state_changed(zt_container_of(link, struct zt_dns_request, server_link));
}

void zt_dns_server_refuse(struct zt_dns_server *s)
{
    for (int i = 0; i < LISTENERS; i++)
        if (s->listeners[i].tcp && s->listeners[i].fd >= 0)
            shutdown(s->listeners[i].fd, SHUT_RDWR);
}

/* What waits in the sockets is taken in first: once the listener is closed the kernel drops it. UDP listeners stay until the answers
 * are out, as those are sent from them, but read no more. */
void zt_dns_server_drain(struct zt_dns_server *s)
{
    if (s->draining || !s->listens)
        return;
    log_life(s, "shutting down the DNS server", NULL);
    for (int i = 0; i < LISTENERS; i++) {
        struct dns_listener *l = &s->listeners[i];
        if (l->fd < 0)
            continue;
        if (l->tcp) {
            on_acceptable(ev_of(s), &l->io, EV_READ);
            close_listener(l);
        } else {
            on_datagrams(ev_of(s), &l->io, EV_READ);
            ev_io_stop(ev_of(s), &l->io);
        }
    }
    s->draining = true;
    zt_list_each_safe(link, &s->conns) {
        struct dns_conn *c = zt_container_of(link, struct dns_conn, link);
        if (!c->request && !c->out && !zt_link_linked(&c->task.task_link))
            run_next(&c->task);
    }
}

bool zt_dns_server_idle(const struct zt_dns_server *s)
{
    return s->n_requests == 0 && s->n_writing == 0;
}

void zt_dns_server_stop(struct zt_dns_server *s)
{
    struct zt_link *link;
    if (s->stopped)
        return;
    s->stopped = true;
    for (int i = 0; i < LISTENERS; i++)
        close_listener(&s->listeners[i]);
    while ((link = zt_list_first(&s->conns)))
        conn_close(zt_container_of(link, struct dns_conn, link));
    while ((link = zt_list_first(&s->requests)))
        dns_request_free(zt_container_of(link, struct zt_dns_request, server_link));
    while ((link = zt_list_pop_front(&s->flights))) /* other pods wait for them, or the cache */
        zt_container_of(link, struct dns_flight, begun_link)->beginner = NULL;
    dns_forget_series(s);
    if (s->draining)
        log_life(s, "dns server drained", NULL);
}

void zt_dns_server_free(struct zt_dns_server *s)
{
    if (!s)
        return;
    for (int i = 0; i < LISTENERS; i++)
        if (s->listeners[i].fd >= 0)
            close(s->listeners[i].fd);
    zt_netns_unref(s->netns);
    zt_free(s);
}
