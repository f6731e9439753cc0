/* The daemon's end of ZDS (spec/inpod §1.3).
 *
 * Invariants: while an acknowledgement waits to be sent nothing is read, so each request is
 * answered before the next is looked at. The path is resolved on every attempt: the CNI daemon
 * unlinks and makes its socket anew. Nothing blocks.
 *
 *   state       event                                     next
 *   WAITING     timer, connect fails                      WAITING (connect back-off)
 *   WAITING     timer, connected, hello sent              CONNECTED
 *   WAITING     timer, connected, hello not sent          WAITING (talk back-off)
 *   CONNECTED   request, acknowledged                     CONNECTED
 *   CONNECTED   request, acknowledgement has to wait      ANSWERING
 *   ANSWERING   writable                                  CONNECTED
 *   CONNECTED   packet that is no request: error ack      WAITING (at once)
 *   any         EOF, I/O error                            WAITING (at once; talk back-off if
 *                                                         it never sent a request)
 *   any         verdict FATAL, acknowledged best effort   OVER
 *
 * connect() on AF_UNIX either connects at once or leaves nothing in progress (EAGAIN: the backlog
 * is full), so a failed attempt of any kind is simply made again. */
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/cni/zds.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SCOPE "inpod::workloadmanager"
#define CONNECT_BACKOFF_FIRST_MS 20
#define TALK_BACKOFF_FIRST_MS 5
#define BACKOFF_MAX_MS 15000
#define REQUESTS_PER_TURN 16

enum client_state { CLIENT_WAITING, CLIENT_CONNECTED, CLIENT_ANSWERING, CLIENT_OVER };

struct zt_zds_client {
    struct zt_deferred deferred;
    struct zt_loop *loop;
    struct zt_zds_client_owner *owner;
    char *path;
    enum client_state state;
    int fd; /* -1 unless connected */
    ev_io io;
    ev_timer timer;
    unsigned connect_backoff_ms, talk_backoff_ms;
    bool talked; /* this connection has brought a request */
    bool freed;
    uint8_t ack[ZT_ZDS_PACKET_BYTES_MAX]; /* ANSWERING */
    size_t ack_len;
};

static void free_client(struct zt_deferred *d)
{
    struct zt_zds_client *c = zt_container_of(d, struct zt_zds_client, deferred);
    zt_free(c->path);
    zt_free(c);
}

static void close_socket(struct zt_zds_client *c)
{
    ev_io_stop(zt_loop_ev(c->loop), &c->io);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void watch(struct zt_zds_client *c, int events)
{
    struct ev_loop *ev = zt_loop_ev(c->loop);
    ev_io_stop(ev, &c->io);
    ev_io_set(&c->io, c->fd, events);
    ev_io_start(ev, &c->io);
}

static void wait_ms(struct zt_zds_client *c, unsigned ms)
{
    c->state = CLIENT_WAITING;
    ev_timer_stop(zt_loop_ev(c->loop), &c->timer);
    ev_timer_set(&c->timer, ms / 1e3, 0.);
    ev_timer_start(zt_loop_ev(c->loop), &c->timer);
}

/* Returns the wait and doubles it for the next time. */
static unsigned next_backoff(unsigned *backoff_ms)
{
    unsigned ms = *backoff_ms;
    *backoff_ms = ms * 2 < BACKOFF_MAX_MS ? ms * 2 : BACKOFF_MAX_MS;
    return ms;
}

/* The connection has ended. A peer that accepts and never talks must not make us spin. */
static void disconnect(struct zt_zds_client *c)
{
    close_socket(c);
    wait_ms(c, c->talked ? 0 : next_backoff(&c->talk_backoff_ms));
    c->owner->on_disconnected(c->owner);
}

static void end_for_good(struct zt_zds_client *c, const char *ack_text)
{
    struct zt_error why;
    zt_error_set(&why, ZT_INVALID, "%s", ack_text);
    c->state = CLIENT_OVER;
    close_socket(c);
    c->owner->on_fatal(c->owner, &why);
}

/* ---- requests ---- */

/* Sends the acknowledgement in c->ack. False: not connected any more, or it has to wait. */
static bool send_ack(struct zt_zds_client *c)
{
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_err e = zt_zds_send(c->fd, c->ack, c->ack_len, -1, &err);
    if (e == ZT_OK) {
        c->state = CLIENT_CONNECTED;
        return true;
    }
    if (e == ZT_AGAIN) {
        c->state = CLIENT_ANSWERING;
        watch(c, EV_WRITE);
        return false;
    }
    zt_log_warn(SCOPE, "failure to acknowledge: %s", err.text);
    disconnect(c);
    return false;
}

/* Best effort, for a connection that ends anyway. */
static void send_last_ack(struct zt_zds_client *c, const char *text)
{
    c->ack_len = zt_zds_encode_ack(text, c->ack);
    (void)zt_zds_send(c->fd, c->ack, c->ack_len, -1, NULL);
}

static void refuse_packet(struct zt_zds_client *c, const struct zt_error *err)
{
    char text[ZT_ZDS_ACK_TEXT_MAX];
    zt_fmt(text, sizeof text, "failure to read message : %s", err->text);
    zt_log_warn(SCOPE, "%s", text);
    send_last_ack(c, text);
    disconnect(c);
}

/* False: stop reading. */
static bool read_one(struct zt_zds_client *c)
{
    struct zt_zds_request r;
    struct zt_error err = ZT_ERROR_INIT;
    char text[ZT_ZDS_ACK_TEXT_MAX] = "";
    enum zt_err e = zt_zds_recv_request(c->fd, &r, &err);
    if (e == ZT_AGAIN)
        return false;
    if (e == ZT_INVALID) {
        refuse_packet(c, &err);
        return false;
    }
    if (e != ZT_OK) {
        if (e == ZT_EOF)
            zt_log_info(SCOPE, "the CNI daemon closed the connection");
        else
            zt_log_warn(SCOPE, "connection to the CNI daemon lost: %s", err.text);
        disconnect(c);
        return false;
    }
    c->talked = true;
    enum zt_zds_verdict verdict = c->owner->on_request(c->owner, &r, text);
    if (c->freed)
        return false;
    if (verdict == ZT_ZDS_FATAL) {
        send_last_ack(c, text);
        end_for_good(c, text);
        return false;
    }
    c->ack_len = zt_zds_encode_ack(text, c->ack);
    return send_ack(c);
}

static void on_io(struct ev_loop *ev, ev_io *w, int revents)
{
    struct zt_zds_client *c = zt_container_of(w, struct zt_zds_client, io);
    if (c->state == CLIENT_ANSWERING) {
        if (!send_ack(c))
            return;
        watch(c, EV_READ);
    }
    for (unsigned i = 0; i < REQUESTS_PER_TURN && read_one(c); i++)
        ;
}

/* ---- connecting ---- */

/* The connected descriptor or -errno. */
static int connect_path(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (!zt_fmt(sa.sun_path, sizeof sa.sun_path, "%s", path))
        return -ENAMETOOLONG;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0)
        return fd;
    int errnum = errno;
    close(fd);
    return -errnum;
}

static void say_hello(struct zt_zds_client *c)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    size_t len = zt_zds_encode_hello(ZT_ZDS_VERSION, buf);
    c->talked = false;
    enum zt_err e = zt_zds_send(c->fd, buf, len, -1, &err);
    if (e != ZT_OK) {
        zt_log_warn(SCOPE, "failure to announce ourselves to the CNI daemon: %s",
                    e == ZT_AGAIN ? "it does not read" : err.text);
        disconnect(c);
        return;
    }
    c->state = CLIENT_CONNECTED;
    watch(c, EV_READ);
    c->owner->on_connected(c->owner);
}

static void on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_zds_client *c = zt_container_of(w, struct zt_zds_client, timer);
    c->fd = connect_path(c->path);
    if (c->fd >= 0) {
        c->connect_backoff_ms = CONNECT_BACKOFF_FIRST_MS;
        say_hello(c);
        return;
    }
    char text[128];
    unsigned ms = next_backoff(&c->connect_backoff_ms);
    zt_log_warn(
        SCOPE,
        "failure to connect to the CNI node agent over %s, is the node agent healthy? details: %s, "
        "next attempt in %u ms",
        c->path, zt_errno_text(-c->fd, text, sizeof text), ms);
    c->fd = -1;
    wait_ms(c, ms);
}

struct zt_zds_client *zt_zds_client_new(struct zt_loop *l, const char *path,
                                        struct zt_zds_client_owner *owner)
{
    struct zt_zds_client *c = zt_new(struct zt_zds_client);
    c->deferred.free = free_client;
    c->loop = l;
    c->owner = owner;
    c->path = zt_strdup(path);
    c->fd = -1;
    c->connect_backoff_ms = CONNECT_BACKOFF_FIRST_MS;
    c->talk_backoff_ms = TALK_BACKOFF_FIRST_MS;
    ev_init(&c->io, on_io);
    ev_init(&c->timer, on_timer);
    wait_ms(c, 0);
    return c;
}

void zt_zds_client_settled(struct zt_zds_client *c)
{
    c->talk_backoff_ms = TALK_BACKOFF_FIRST_MS;
}

void zt_zds_client_free(struct zt_zds_client *c)
{
    if (!c)
        return;
    close_socket(c);
    ev_timer_stop(zt_loop_ev(c->loop), &c->timer);
    c->freed = true;
    c->state = CLIENT_OVER;
    zt_loop_defer_free(c->loop, &c->deferred);
}
