/* The TCP kind of zt_stream, and dialling.
 *
 * Invariants:
 * - buf is held only while unread bytes are in it; the unread bytes are buf[off .. off+len), always
 * in one piece.
 * - The kernel is asked only when there is reason to think it has something: `drained` (the last
 * recv came back short, no readiness since) answers without a system call, `blocked` (the last send
 * was cut short) likewise.
 * - The read watcher runs as long as READABLE is wanted and the end has not been met; it is not
 * started and stopped per chunk. It is paused only when the largest buffer is full, until something
 * is consumed.
 * - The end (end != ZT_OK) is sticky and shown after the bytes before it. So is an error that a
 * write met: the kernel tells it once, a later recv would say 0 and make a reset look like an
 * orderly end.
 *
 * Read readiness has two sources: the watcher (bytes in the kernel, level triggered) and, for what
 * is already here but was not shown yet (bytes beyond `shown`, the end), a task at the end of the
 * turn. */
#include "zt/net/tcp.h"
#include "zt/base/mem.h"
#include "zt/net/fd_guard.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct tcp_stream {
    struct zt_stream base;
    struct zt_loop *loop;
    ev_io read_io, write_io;
    struct zt_task soon;
    uint8_t *buf;                  /* NULL when nothing is unread */
    uint32_t off, len, shown;      /* bytes; shown: how many of len the owner has seen */
    int fd;                        /* -1 once closed */
    uint8_t buf_class, next_class; /* enum zt_buf_class: of buf; for the next one */
    uint8_t end;                   /* enum zt_err: how reading ended, ZT_OK while it has not */
    uint8_t failed;                /* enum zt_err: the error a write met */
    uint8_t wanted;                /* ZT_STREAM_READABLE, ZT_STREAM_WRITABLE */
    bool end_shown, drained, full; /* full: reading pauses until something is consumed */
    bool blocked, writable_due;    /* writable_due: WRITABLE is owed by `soon` */
    bool shut;
};

_Static_assert(sizeof(struct tcp_stream) < 256, "an idle connection has two of these");

static const struct zt_stream_ops tcp_ops;

static struct tcp_stream *from_stream(struct zt_stream *s)
{
    ZT_ASSERT(s->ops == &tcp_ops);
    return zt_container_of(s, struct tcp_stream, base);
}

static enum zt_err from_errno(int errnum)
{
    switch (errnum) {
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
        return ZT_RESET;
    case ETIMEDOUT:
        return ZT_TIMEOUT;
    default:
        return ZT_IO;
    }
}

/* ---- readiness ---- */

static bool unseen(const struct tcp_stream *t)
{
    return t->len > t->shown || (t->end != ZT_OK && !t->end_shown);
}

static void update_interest(struct tcp_stream *t)
{
    struct ev_loop *ev = zt_loop_ev(t->loop);
    bool read = (t->wanted & ZT_STREAM_READABLE) && t->end == ZT_OK && !t->full;
    if (read && !ev_is_active(&t->read_io))
        ev_io_start(ev, &t->read_io);
    else if (!read && ev_is_active(&t->read_io))
        ev_io_stop(ev, &t->read_io);
    bool write = (t->wanted & ZT_STREAM_WRITABLE) && t->blocked;
    if (write && !ev_is_active(&t->write_io))
        ev_io_start(ev, &t->write_io);
    else if (!write && ev_is_active(&t->write_io))
        ev_io_stop(ev, &t->write_io);
    if (((t->wanted & ZT_STREAM_READABLE) && unseen(t)) || t->writable_due)
        zt_loop_soon(t->loop, &t->soon);
}

static void on_soon(struct zt_task *task)
{
    struct tcp_stream *t = zt_container_of(task, struct tcp_stream, soon);
    unsigned events = 0;
    if ((t->wanted & ZT_STREAM_READABLE) && unseen(t)) {
        events |= ZT_STREAM_READABLE;
        zt_loop_soon(t->loop, task); /* until it has been seen */
    }
    if (t->writable_due)
        events |= ZT_STREAM_WRITABLE;
    t->writable_due = false;
    if (events)
        t->base.owner->on_ready(t->base.owner, &t->base, events);
}

static void on_readable(struct ev_loop *ev, ev_io *w, int revents)
{
    struct tcp_stream *t = zt_container_of(w, struct tcp_stream, read_io);
    t->drained = false;
    t->base.owner->on_ready(t->base.owner, &t->base, ZT_STREAM_READABLE);
}

/* WRITABLE is told once per block; the next one follows the next block. */
static void on_writable(struct ev_loop *ev, ev_io *w, int revents)
{
    struct tcp_stream *t = zt_container_of(w, struct tcp_stream, write_io);
    t->blocked = false;
    ev_io_stop(ev, w);
    t->base.owner->on_ready(t->base.owner, &t->base, ZT_STREAM_WRITABLE);
}

/* Newly wanted READABLE forgets what was shown: a new owner has seen nothing. */
static void tcp_want(struct zt_stream *s, unsigned events)
{
    struct tcp_stream *t = from_stream(s);
    unsigned added = events & ~t->wanted;
    t->wanted = (uint8_t)events;
    if (added & ZT_STREAM_READABLE) {
        t->shown = 0;
        t->end_shown = false;
    }
    if (added & ZT_STREAM_WRITABLE && !t->blocked)
        t->writable_due = true;
    if (!(events & ZT_STREAM_WRITABLE))
        t->writable_due = false;
    update_interest(t);
}

/* ---- reading ---- */

static void buf_release(struct tcp_stream *t)
{
    if (!t->buf)
        return;
    zt_loop_buf_put(t->loop, t->buf, (enum zt_buf_class)t->buf_class);
    t->buf = NULL;
    t->off = t->len = t->shown = 0;
}

/* Moves the unread bytes into a larger buffer. */
static void buf_grow(struct tcp_stream *t, enum zt_buf_class larger_class)
{
    uint8_t *larger = zt_loop_buf_get(t->loop, larger_class);
    memcpy(larger, t->buf + t->off, t->len);
    zt_loop_buf_put(t->loop, t->buf, (enum zt_buf_class)t->buf_class);
    t->buf = larger;
    t->off = 0;
    t->buf_class = (uint8_t)larger_class;
}

/* Makes room behind the unread bytes; returns how much, 0 when the largest buffer is full of unread
 * bytes. */
static size_t buf_room(struct tcp_stream *t)
{
    if (!t->buf) {
        t->buf_class = t->next_class;
        t->buf = zt_loop_buf_get(t->loop, (enum zt_buf_class)t->buf_class);
    }
    size_t size = zt_buf_class_bytes((enum zt_buf_class)t->buf_class);
    if (t->len == size && t->next_class <= t->buf_class && t->buf_class < ZT_BUF_LARGE)
        t->next_class = t->buf_class + 1;
    if (t->next_class > t->buf_class) {
        buf_grow(t, (enum zt_buf_class)t->next_class);
        size = zt_buf_class_bytes((enum zt_buf_class)t->buf_class);
    }
    if (t->off > 0 && size - t->off - t->len < size / 2) {
        memmove(t->buf, t->buf + t->off, t->len);
        t->off = 0;
    }
    return size - t->off - t->len;
}

/* The next buffer follows the traffic: up when a recv fills what it was given, down when one brings
 * little. */
static void adapt(struct tcp_stream *t, size_t got, size_t room)
{
    if (got == room && t->buf_class < ZT_BUF_LARGE)
        t->next_class = t->buf_class + 1;
    else if (got < room && t->next_class > ZT_BUF_SMALL &&
             got < zt_buf_class_bytes((enum zt_buf_class)(t->next_class - 1)) / 2)
        t->next_class--;
}

static void set_end(struct tcp_stream *t, enum zt_err end)
{
    t->end = (uint8_t)end;
    if (t->len == 0)
        buf_release(t);
    update_interest(t);
}

/* The kernel gave nothing: n is 0 (the end) or -1 (errno tells). */
static enum zt_err no_more(struct tcp_stream *t, ssize_t n)
{
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        t->drained = true;
        if (t->len == 0)
            buf_release(t);
        return ZT_AGAIN;
    }
    if (n < 0)
        set_end(t, from_errno(errno));
    else
        set_end(t, t->failed ? (enum zt_err)t->failed : ZT_EOF);
    return (enum zt_err)t->end;
}

/* One recv. ZT_OK: there are more bytes than before. */
static enum zt_err receive(struct tcp_stream *t)
{
    size_t room = buf_room(t);
    if (room == 0) {
        t->full = true;
        update_interest(t);
        return ZT_AGAIN;
    }
    ssize_t n;
    do
        n = recv(t->fd, t->buf + t->off + t->len, room, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        t->len += (uint32_t)n;
        t->drained = (size_t)n < room;
        adapt(t, (size_t)n, room);
        return ZT_OK;
    }
    return no_more(t, n);
}

static enum zt_err tcp_peek(struct zt_stream *s, size_t seen, uint8_t **data, size_t *len)
{
    struct tcp_stream *t = from_stream(s);
    enum zt_err e = ZT_OK;
    if (t->len <= seen) {
        if (t->end != ZT_OK)
            e = (enum zt_err)t->end;
        else if (t->drained && ev_is_active(&t->read_io))
            e = ZT_AGAIN; /* the watcher will say when asking is worth a system call */
        else
            e = receive(t);
    }
    if (e == ZT_OK) {
        *data = t->buf + t->off;
        *len = t->shown = t->len;
    } else if (e != ZT_AGAIN) {
        t->end_shown = true;
    }
    return e;
}

static void tcp_consume(struct zt_stream *s, size_t n)
{
    struct tcp_stream *t = from_stream(s);
    ZT_ASSERT(n <= t->len);
    t->off += (uint32_t)n;
    t->len -= (uint32_t)n;
    t->shown = t->shown > n ? t->shown - (uint32_t)n : 0;
    if (t->len == 0)
        buf_release(t);
    if (t->full && n > 0)
        t->full = false;
    update_interest(t); /* bytes received beyond those shown, or the end behind them */
}

/* ---- writing ---- */

/* n of total bytes went to the kernel, or -1 and errno tells. */
static enum zt_err wrote(struct tcp_stream *t, ssize_t n, size_t total, size_t *accepted)
{
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        enum zt_err e = from_errno(errno);
        /* EPIPE tells of our own end, or comes after the peer's FIN: reading goes on. */
        if (errno != EPIPE)
            t->failed = (uint8_t)e;
        return e;
    }
    t->blocked = n < 0 || (size_t)n < total;
    if (t->blocked)
        update_interest(t);
    if (n < 0)
        return ZT_AGAIN;
    *accepted = (size_t)n;
    return ZT_OK;
}

static enum zt_err tcp_writev(struct zt_stream *s, const struct iovec *iov, int n_iov,
                              size_t *accepted)
{
    struct tcp_stream *t = from_stream(s);
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n_iov};
    size_t total = 0;
    ssize_t n;
    *accepted = 0;
    if (t->failed)
        return (enum zt_err)t->failed;
    if (t->blocked && ev_is_active(&t->write_io))
        return ZT_AGAIN;
    for (int i = 0; i < n_iov; i++)
        total += iov[i].iov_len;
    if (total == 0)
        return ZT_OK;
    do
        n = sendmsg(t->fd, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return wrote(t, n, total, accepted);
}

static enum zt_err tcp_shutdown_write(struct zt_stream *s)
{
    struct tcp_stream *t = from_stream(s);
    if (t->shut)
        return ZT_OK;
    t->shut = true;
    return shutdown(t->fd, SHUT_WR) == 0 ? ZT_OK : from_errno(errno);
}

/* Everything accepted is the kernel's. */
static bool tcp_flushed(struct zt_stream *s)
{
    return true;
}

static void tcp_close(struct zt_stream *s, enum zt_err why)
{
    struct tcp_stream *t = from_stream(s);
    struct ev_loop *ev = zt_loop_ev(t->loop);
    ZT_ASSERT(t->fd >= 0);
    ev_io_stop(ev, &t->read_io);
    ev_io_stop(ev, &t->write_io);
    zt_task_cancel(&t->soon);
    buf_release(t);
    if (why != ZT_OK) {
        struct linger reset = {.l_onoff = 1, .l_linger = 0};
        setsockopt(t->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    close(t->fd);
    t->fd = -1;
    zt_loop_defer_zt_free(t->loop, t);
}

static const struct zt_stream_ops tcp_ops = {
    .kind = "tcp",
    .peek = tcp_peek,
    .consume = tcp_consume,
    .writev = tcp_writev,
    .shutdown_write = tcp_shutdown_write,
    .want = tcp_want,
    .flushed = tcp_flushed,
    .close = tcp_close,
};

struct zt_stream *zt_tcp_stream_new(struct zt_loop *l, int fd, struct zt_stream_owner *owner)
{
    struct tcp_stream *t = zt_new(struct tcp_stream);
    t->base.ops = &tcp_ops;
    t->base.owner = owner;
    t->loop = l;
    t->fd = fd;
    t->soon.run = on_soon;
    ev_io_init(&t->read_io, on_readable, fd, EV_READ);
    ev_io_init(&t->write_io, on_writable, fd, EV_WRITE);
    return &t->base;
}

int zt_tcp_stream_fd(const struct zt_stream *s)
{
    if (s->ops != &tcp_ops)
        return -1;
    return from_stream((struct zt_stream *)(uintptr_t)s)->fd;
}

/* ---- from socket to socket ---- */

struct zt_pipe *zt_tcp_pipe_open(struct zt_stream *reader, const struct zt_stream *writer)
{
    if (reader->ops != &tcp_ops || writer->ops != &tcp_ops || from_stream(reader)->len > 0)
        return NULL;
    struct zt_loop *loop = from_stream(reader)->loop;
    struct zt_pipe *p = zt_loop_pipe_get(loop);
    if (p && !zt_fd_guard_allows(p->write_fd)) {
        p->held = 1; /* it is not kept */
        zt_loop_pipe_put(loop, p);
        p = NULL;
    }
    return p;
}

void zt_tcp_pipe_close(struct zt_stream *reader, struct zt_pipe *p)
{
    zt_loop_pipe_put(from_stream(reader)->loop, p);
}

enum zt_err zt_tcp_pipe_fill(struct zt_stream *reader, struct zt_pipe *p)
{
    struct tcp_stream *t = from_stream(reader);
    ZT_ASSERT(p->held == 0 && t->len == 0);
    if (t->end != ZT_OK) {
        t->end_shown = true;
        return (enum zt_err)t->end;
    }
    if (t->drained && ev_is_active(&t->read_io))
        return ZT_AGAIN;
    ssize_t n;
    do
        n = splice(t->fd, NULL, p->write_fd, NULL, ZT_PIPE_BYTES, SPLICE_F_NONBLOCK);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        enum zt_err e = no_more(t, n);
        t->end_shown = e != ZT_AGAIN;
        return e;
    }
    p->held = (size_t)n;
    return ZT_OK;
}

enum zt_err zt_tcp_pipe_drain(struct zt_stream *writer, struct zt_pipe *p, size_t *accepted)
{
    struct tcp_stream *t = from_stream(writer);
    *accepted = 0;
    if (t->failed)
        return (enum zt_err)t->failed;
    if (t->blocked && ev_is_active(&t->write_io))
        return ZT_AGAIN;
    ssize_t n;
    do
        n = splice(p->read_fd, NULL, t->fd, NULL, p->held, SPLICE_F_NONBLOCK);
    while (n < 0 && errno == EINTR);
    enum zt_err e = wrote(t, n, p->held, accepted);
    p->held -= *accepted;
    return e;
}

/* ---- dialling ----
 *
 *   idle -> connecting (io, timer) -> idle, done(fd, 0) | done(-1, errnum)
 *        -> failing (timer at 0)   -> idle, done(-1, errnum)
 *
 * failing: connect failed at once; d->fd is -errno. */

static void dial_stop(struct zt_dial *d)
{
    ev_io_stop(zt_loop_ev(d->loop), &d->io);
    ev_timer_stop(zt_loop_ev(d->loop), &d->timer);
    d->loop = NULL;
    if (d->quota)
        d->quota->now--;
    d->quota = NULL;
}

/* False: the quota is used up. */
static bool dial_take_place(struct zt_dial *d, struct zt_dial_quota *q)
{
    if (q && q->now >= q->max) {
        q->n_refused++;
        return false;
    }
    d->quota = q;
    if (q)
        q->now++;
    return true;
}

static void dial_finish(struct zt_dial *d, int errnum)
{
    int fd = d->fd;
    dial_stop(d);
    d->fd = -1;
    if (errnum != 0 && fd >= 0) {
        close(fd);
        fd = -1;
    }
    d->done(d, errnum == 0 ? fd : -1, errnum);
}

static void on_dial_ready(struct ev_loop *ev, ev_io *w, int revents)
{
    struct zt_dial *d = zt_container_of(w, struct zt_dial, io);
    int errnum = 0;
    socklen_t len = sizeof errnum;
    if (getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &errnum, &len) != 0)
        errnum = errno;
    dial_finish(d, errnum);
}

static void on_dial_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_dial *d = zt_container_of(w, struct zt_dial, timer);
    dial_finish(d, d->fd < 0 ? -d->fd : ETIMEDOUT);
}

void zt_dial_start(struct zt_dial *d, struct zt_loop *l, struct zt_netns *ns,
                   const struct zt_addr *dst, const struct zt_addr *source,
                   const struct zt_sock_opts *o, unsigned timeout_ms,
                   void (*done)(struct zt_dial *d, int fd, int errnum))
{
    ZT_ASSERT(!d->loop);
    d->loop = l;
    d->done = done;
    d->fd = dial_take_place(d, o->quota) ? zt_sock_connect(ns, dst, source, o) : -EDQUOT;
    if (d->fd >= 0 && !zt_fd_guard_allows(d->fd)) {
        close(d->fd);
        d->fd = -EMFILE;
    }
    ev_io_init(&d->io, on_dial_ready, d->fd, EV_WRITE);
    ev_timer_init(&d->timer, on_dial_timer, d->fd < 0 ? 0. : timeout_ms / 1e3, 0.);
    ev_timer_start(zt_loop_ev(l), &d->timer);
    if (d->fd >= 0)
        ev_io_start(zt_loop_ev(l), &d->io);
}

bool zt_dial_errno_is_ours(int errnum)
{
    return errnum == EMFILE || errnum == ENFILE || errnum == EADDRNOTAVAIL || errnum == ENOMEM || errnum == ENOBUFS || errnum == EACCES || errnum == EDQUOT ||
           errnum == EPERM;
}

void zt_dial_cancel(struct zt_dial *d)
{
    if (!d->loop)
        return;
    dial_stop(d);
    if (d->fd >= 0)
        close(d->fd);
    d->fd = -1;
}
