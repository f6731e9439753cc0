/* Copies both ways between two streams.
 *
 * Invariants:
 * - A direction that copies holds no bytes: what its reader showed and its writer did not take stays unread in
 * the reader. One that has a pipe holds what is in it, and reads nothing until that is gone: its end is met
 * with the pipe empty, and `bytes` counts what the writer took either way.
 * - READABLE is wanted of a reader exactly while its direction is open and not waiting for the
 * writer; WRITABLE of a writer exactly while the direction that ends in it waits. Whatever a reader
 * has left when a turn's budget is used up makes it ready again next turn (zt/net/stream.h), so no
 * task of our own is needed.
 * - A callback of the owner, and so the end of this struct's life, is the last thing any function
 * does.
 *
 * A direction, named by its reader (side.ended, side.waiting, side.err):
 *
 *   state    event                          next
 *   open     bytes, writer takes all        open
 *   open     bytes, writer takes less       waiting
 *   waiting  writer WRITABLE                open
 *   open     reader EOF, RESET              ended, writer shut down (failed: err CLOSING)
 *   open     reader any other error         lost
 *   waiting  reader was cut                 lost
 *   open     writer RESET                   ended (err RESET if the writer is a tunnel)
 *   open     writer any other error         lost
 *
 * Both ended: close both in order, done. One lost: close both with the error (a socket sees RST,
 * because bytes may be missing), done. The whole table, with frames and segments:
 * docs/halfclose.md. */
#include "zt/proxy/relay.h"
#include "zt/base/mem.h"
#include "zt/net/tcp.h"

static struct zt_relay_side *other_side(struct zt_relay *r, const struct zt_relay_side *s)
{
    return s == &r->down ? &r->up : &r->down;
}

/* ---- the end ---- */

/* more: what the stream itself says about it, or NULL. */
static void set_lost(struct zt_error *err, enum zt_err code, enum zt_err e, const char *more)
{
    switch (e) {
    case ZT_TIMEOUT:
        zt_error_set(err, code, "io error: Connection timed out (os error 110)");
        break;
    case ZT_IO:
        zt_error_set(err, code, "io error: connection failed");
        break;
    case ZT_H2:
        zt_error_set(err, code, "h2 failed: %s", more ? more : "stream lost");
        break;
    case ZT_REVOKED:
        zt_error_set(err, ZT_REVOKED, "%s", ""); /* of the whole tunnel, whichever direction noticed */
        break;
    case ZT_LIMIT:
        zt_error_set(err, ZT_LIMIT, "bytes queued for the pod");
        break;
    default:
        zt_error_set(err, code, "%s", zt_err_name(e));
        break;
    }
}

static const char *more_text(const struct zt_relay *r)
{
    const char *text = zt_stream_error_text(r->up.tunnel ? r->up.stream : r->down.stream);
    return text ? text : zt_stream_error_text(r->up.tunnel ? r->down.stream : r->up.stream);
}

/* The connection's error: the send direction's before the receive direction's. */
static void verdict(const struct zt_relay *r, struct zt_error *err)
{
    bool send = r->down.err != ZT_OK;
    enum zt_err e = (enum zt_err)(send ? r->down.err : r->up.err);
    enum zt_err code = send ? ZT_SEND : ZT_RECEIVE;
    if (e == ZT_OK) {
        err->code = ZT_OK;
        err->text[0] = '\0';
    } else if (e == ZT_CLOSING) {
        zt_error_set(err, ZT_CLOSING, "stream no longer needed");
    } else if (e == ZT_RESET) {
        zt_error_set(err, code, "%s disconnected before all data was written",
                     send ? "destination" : "client");
    } else {
        set_lost(err, code, e, more_text(r));
    }
}

static void drop_pipe(struct zt_relay_side *reader)
{
    if (reader->pipe)
        zt_tcp_pipe_close(reader->stream, reader->pipe);
    reader->pipe = NULL;
}

static void close_both(struct zt_relay *r, enum zt_err why)
{
    struct zt_stream *down = r->down.stream, *up = r->up.stream;
    drop_pipe(&r->down);
    drop_pipe(&r->up);
    r->down.stream = r->up.stream = NULL;
    zt_stream_close(down, why);
    zt_stream_close(up, why);
}

static void finish(struct zt_relay *r, enum zt_err why)
{
    struct zt_error err;
    verdict(r, &err);
    close_both(r, why);
    r->done(r, &err);
}

void zt_relay_abort(struct zt_relay *r, enum zt_err why)
{
    ZT_ASSERT(why != ZT_OK);
    close_both(r, why);
}

/* ---- one direction ---- */

/* The reader has nothing more. */
static void end_in_order(struct zt_relay_side *reader, struct zt_relay_side *writer)
{
    reader->ended = true;
    enum zt_err e = zt_stream_shutdown_write(writer->stream);
    if (e != ZT_OK && (e != ZT_RESET || writer->tunnel))
        reader->err = ZT_CLOSING;
}

/* Hands the writer what the reader shows. The reader's end or error, the writer's error (*writing), ZT_AGAIN: it did not take all. */
static enum zt_err move_shown(struct zt_relay_side *reader, struct zt_relay_side *writer, bool *writing)
{
    struct iovec iov;
    uint8_t *data;
    size_t accepted = 0;
    enum zt_err e = zt_stream_peek(reader->stream, 0, &data, &iov.iov_len);
    if (e != ZT_OK)
        return e;
    *writing = true;
    iov.iov_base = data;
    e = zt_stream_writev(writer->stream, &iov, 1, &accepted);
    if (e != ZT_OK)
        return e;
    *reader->bytes += accepted;
    zt_stream_consume(reader->stream, accepted);
    return accepted == iov.iov_len ? ZT_OK : ZT_AGAIN;
}

/* The same through the pipe. */
static enum zt_err move_spliced(struct zt_relay_side *reader, struct zt_relay_side *writer, bool *writing)
{
    size_t accepted;
    enum zt_err e = ZT_OK;
    if (reader->pipe->held == 0)
        e = zt_tcp_pipe_fill(reader->stream, reader->pipe);
    if (e != ZT_OK)
        return e;
    *writing = true;
    e = zt_tcp_pipe_drain(writer->stream, reader->pipe, &accepted);
    *reader->bytes += accepted;
    return e == ZT_OK && reader->pipe->held > 0 ? ZT_AGAIN : e;
}

/* What a turn moved tells how the next one moves it. A pipe is kept over turns only with bytes in it. */
static void choose_way(struct zt_relay_side *reader, uint64_t moved)
{
    if (moved >= ZT_RELAY_SPLICE_BYTES)
        reader->bulk = true;
    else if (moved < ZT_RELAY_SPLICE_LEAST_BYTES && !reader->waiting)
        reader->bulk = false;
    if (reader->pipe && (reader->pipe->held == 0 || reader->ended))
        drop_pipe(reader);
}

/* Moves bytes until one side has enough or the turn is over. Returns ZT_OK, or the error by which the connection was lost. */
static enum zt_err copy(struct zt_relay_side *reader, struct zt_relay_side *writer)
{
    uint64_t start = *reader->bytes;
    if (reader->bulk && !reader->pipe)
        reader->pipe = zt_tcp_pipe_open(reader->stream, writer->stream);
    while (!reader->ended && *reader->bytes - start < ZT_RELAY_TURN_BYTES) {
        bool writing = false;
        enum zt_err e = reader->pipe ? move_spliced(reader, writer, &writing) : move_shown(reader, writer, &writing);
        if (e == ZT_AGAIN) {
            reader->waiting = writing;
            break;
        }
        if (!writing && (e == ZT_EOF || e == ZT_RESET)) {
            end_in_order(reader, writer);
        } else if (e == ZT_RESET) { /* nothing can be delivered any more; the other direction may have its end still to come */
            reader->ended = true;
            reader->err = writer->tunnel ? ZT_RESET : ZT_OK;
        } else if (e != ZT_OK) {
            return e;
        }
    }
    choose_way(reader, *reader->bytes - start);
    return ZT_OK;
}

/* ---- both ---- */

static void tell_wanted(struct zt_relay *r, struct zt_relay_side *s)
{
    unsigned wanted = 0;
    if (!s->ended && !s->waiting)
        wanted |= ZT_STREAM_READABLE;
    if (other_side(r, s)->waiting)
        wanted |= ZT_STREAM_WRITABLE;
    if (wanted == s->wanted)
        return;
    s->wanted = (uint8_t)wanted;
    zt_stream_want(s->stream, wanted);
}

/* A reader that tells READABLE unasked was cut: that error. ZT_OK: it was not. */
static enum zt_err cut_by(struct zt_relay_side *s)
{
    uint8_t *data;
    size_t len;
    enum zt_err e = zt_stream_peek(s->stream, 0, &data, &len);
    return e == ZT_AGAIN || e == ZT_EOF || e == ZT_RESET ? ZT_OK : e;
}

static void on_side_ready(struct zt_relay *r, struct zt_relay_side *s, unsigned events)
{
    struct zt_relay_side *other = other_side(r, s);
    enum zt_err e = ZT_OK;
    if ((events & ZT_STREAM_WRITABLE) && other->waiting) {
        other->waiting = false;
        e = copy(other, s);
        if (e != ZT_OK)
            other->err = (uint8_t)e;
    }
    if (e == ZT_OK && (events & ZT_STREAM_READABLE)) {
        e = s->waiting || s->ended ? cut_by(s) : copy(s, other);
        if (e != ZT_OK)
            s->err = (uint8_t)e;
    }
    if (e != ZT_OK || (s->ended && other->ended)) {
        finish(r, e);
        return;
    }
    tell_wanted(r, s);
    tell_wanted(r, other);
}

static void on_down_ready(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
    struct zt_relay *r = zt_container_of(o, struct zt_relay, down.owner);
    on_side_ready(r, &r->down, events);
}

static void on_up_ready(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
    struct zt_relay *r = zt_container_of(o, struct zt_relay, up.owner);
    on_side_ready(r, &r->up, events);
}

void zt_relay_start(struct zt_relay *r, const struct zt_relay_ends *ends, zt_relay_done_fn done)
{
    *r = (struct zt_relay){
        .down = {.owner.on_ready = on_down_ready,
                 .stream = ends->down,
                 .bytes = ends->received,
                 .tunnel = ends->down_tunnel},
        .up = {.owner.on_ready = on_up_ready,
               .stream = ends->up,
               .bytes = ends->sent,
               .tunnel = ends->up_tunnel},
        .done = done,
    };
    zt_stream_own(r->down.stream, &r->down.owner);
    zt_stream_own(r->up.stream, &r->up.owner);
    tell_wanted(r, &r->down);
    tell_wanted(r, &r->up);
}
