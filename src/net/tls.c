/* The TLS stream: records opened in place inside the lower stream's buffer, records sealed from the caller's memory.
 *
 * Reading. The front of the lower stream's unread bytes is the *run*: records that have been opened and not wholly consumed.
 *
 *     lower's unread bytes   | run: run_len                                   | not opened yet
 *                            | ...dead... | plaintext: plain_len | ...dead... | record | record | part of a record
 *                                         ^ plain_off
 *
 * Usually the run is one record: shown, consumed, and gone with one consume on the lower stream. Only when the owner has seen
 * all of the plaintext and wants more beside it, the next record's plaintext is moved up to follow it.
 *
 * Writing. Records are sealed into one output buffer, which goes to the lower stream once, at the end of the turn, or earlier
 * when it is full. The buffer is held only while something in it waits.
 *
 *   direction   open -> ended: in_end says how (ZT_EOF: close_notify, ZT_RESET: an end without one, ZT_TLS: bad record or alert)
 *               open -> shut (close_notify sealed) -> out_err once a write failed; out_err is final
 *
 * Invariants: sequence numbers move only in tls_record.c. After a fatal alert in either direction both directions are over.
 * Records without application data (alerts, KeyUpdates, tickets, empty ones) are counted: IDLE_RECORDS_MAX of them in a row end
 * the connection. Handshake messages are never buffered beyond their header.
 *
 * Memory of an idle stream: this object (384 bytes) and two EVP contexts with their key schedules (1,168 bytes each
 * with OpenSSL 3.0); no buffer, no SSL object. */
#include "zt/net/tls.h"
#include "net/tls_impl.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <openssl/crypto.h>
#include <openssl/ssl3.h>
#include <string.h>

#define LOG_SCOPE "tls"
#define IDLE_RECORDS_MAX 64  /* in a row, without application data */
#define CONTROL_BYTES 256    /* of every output buffer, kept free for alerts and KeyUpdates */
#define LINGER_S 5.0         /* how long an orderly close tries to get its last bytes out */
#define HS_NEW_SESSION_TICKET 4
#define HS_KEY_UPDATE 24
#define HS_HEADER_BYTES 4

_Static_assert(ZT_BUF_SMALL_BYTES >= ZT_TLS_PLAIN_BYTES_MAX + ZT_TLS_RECORD_OVERHEAD_MAX + CONTROL_BYTES,
               "the smallest output buffer holds a whole record");

/* Output on its way down. It outlives the stream for a while after an orderly close. */
struct output {
    struct zt_stream *lower;
    struct zt_loop *loop;
    uint8_t *buf; /* NULL when nothing waits */
    size_t begin, end;
    uint8_t class, next_class; /* enum zt_buf_class: of buf; of the next one, which follows the traffic */
    bool blocked;              /* lower did not take everything */
};

struct tls_stream {
    struct zt_stream base;
    struct zt_stream_owner lower_owner;
    struct output out;
    struct zt_task soon;
    struct zt_tls_dir in_dir, out_dir;
    struct zt_tls_ticket *ticket;         /* waits for the first record; NULL afterwards */
    size_t run_len, plain_off, plain_len; /* see above */
    uint32_t hs_skip;                     /* bytes of a handshake message still to be ignored */
    uint8_t hs_header[HS_HEADER_BYTES], hs_header_len;
    uint8_t idle_records;
    uint8_t in_end, out_err; /* enum zt_err */
    uint8_t wanted;
    bool client;
    bool unopened;          /* lower showed bytes beyond the run that were not looked at in vain */
    bool end_due;           /* in_end has not been returned to the owner */
    bool write_blocked;     /* the owner was refused; WRITABLE is due once there is room */
    bool writable_due;
    bool update_due;        /* the peer asked for our KeyUpdate */
    bool shut;              /* close_notify is sealed */
    bool lower_shut;
};

static const struct zt_stream_ops tls_ops;

static struct tls_stream *from_stream(struct zt_stream *s)
{
    ZT_ASSERT(s->ops == &tls_ops);
    return zt_container_of(s, struct tls_stream, base);
}

/* ---- output ---------------------------------------------------------------------------------- */

static size_t output_waiting(const struct output *o)
{
    return o->end - o->begin;
}

static void output_release(struct output *o)
{
    if (o->buf) {
        o->next_class = o->end > ZT_BUF_SMALL_BYTES ? ZT_BUF_LARGE : ZT_BUF_SMALL;
        zt_loop_buf_put(o->loop, o->buf, (enum zt_buf_class)o->class);
    }
    o->buf = NULL;
    o->begin = o->end = 0;
    o->blocked = false;
}

/* Offers everything to lower. ZT_OK: all taken. ZT_AGAIN: some waits. */
static enum zt_err output_flush(struct output *o)
{
    while (output_waiting(o) > 0) {
        struct iovec iov = {o->buf + o->begin, output_waiting(o)};
        size_t n = 0;
        enum zt_err e = zt_stream_writev(o->lower, &iov, 1, &n);
        o->blocked = e == ZT_AGAIN;
        if (e)
            return e;
        o->begin += n;
    }
    output_release(o);
    return ZT_OK;
}

/* Moves what waits into the largest buffer: cheaper than a system call for a small one, and the sign of bulk. */
static void output_grow(struct output *o)
{
    uint8_t *larger = zt_loop_buf_get(o->loop, ZT_BUF_LARGE);
    memcpy(larger, o->buf + o->begin, output_waiting(o));
    zt_loop_buf_put(o->loop, o->buf, (enum zt_buf_class)o->class);
    o->buf = larger;
    o->class = ZT_BUF_LARGE;
    o->end = output_waiting(o);
    o->begin = 0;
}

/* Room behind what waits. A new buffer is chosen for `expected` bytes; an existing one is rearranged when it has not `wanted`. */
static size_t output_room(struct output *o, size_t expected, size_t wanted)
{
    if (!o->buf) {
        o->class = expected <= ZT_BUF_SMALL_BYTES    ? ZT_BUF_SMALL
                   : expected <= ZT_BUF_MEDIUM_BYTES ? ZT_BUF_MEDIUM
                                                     : ZT_BUF_LARGE;
        if (o->class < o->next_class && expected > CONTROL_BYTES)
            o->class = o->next_class;
        o->buf = zt_loop_buf_get(o->loop, (enum zt_buf_class)o->class);
    }
    size_t size = zt_buf_class_bytes((enum zt_buf_class)o->class);
    if (size - o->end < wanted && o->class < ZT_BUF_LARGE) {
        output_grow(o);
        size = ZT_BUF_LARGE_BYTES;
    } else if (size - o->end < wanted && o->begin >= size / 2) {
        memmove(o->buf, o->buf + o->begin, output_waiting(o));
        o->end = output_waiting(o);
        o->begin = 0;
    }
    return size - o->end;
}

/* Seals a record of at most 16 bytes out of the control reserve. */
static bool seal_control(struct tls_stream *t, enum zt_tls_content type, const uint8_t *bytes, size_t n)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    size_t need = n + ZT_TLS_RECORD_OVERHEAD_MAX;

    if (t->out_err || output_room(&t->out, need, need) < need)
        return false;
    size_t len = zt_tls_record_seal(&t->out_dir, type, &iov, 1, n, t->out.buf + t->out.end);
    t->out.end += len;
    return len > 0;
}

static void seal_alert(struct tls_stream *t, uint8_t level, uint8_t alert)
{
    uint8_t body[2] = {level, alert};
    if (!t->shut)
        seal_control(t, ZT_TLS_ALERT, body, sizeof(body));
    t->shut = true;
}

/* Our keys change after this record. Only into an empty or at least not crowded buffer: a peer that asks again and again
 * while it does not read gets one answer for all. */
static enum zt_err seal_key_update(struct tls_stream *t)
{
    static const uint8_t update_not_requested[] = {HS_KEY_UPDATE, 0, 0, 1, 0};

    t->update_due = false;
    if (!seal_control(t, ZT_TLS_HANDSHAKE_MSG, update_not_requested, sizeof(update_not_requested)) ||
        zt_tls_dir_update(&t->out_dir, true))
        return ZT_TLS;
    return ZT_OK;
}

static bool update_is_due(const struct tls_stream *t)
{
    return t->out_dir.k.version == ZT_TLS_1_3 && !t->shut &&
           (t->update_due || t->out_dir.k.seq >= ZT_TLS_SEQ_UPDATE);
}

/* ---- readiness --------------------------------------------------------------------------------- */

static bool may_write(const struct tls_stream *t)
{
    return t->out_err || output_waiting(&t->out) <= ZT_BUF_LARGE_BYTES / 2;
}

static bool read_is_due(const struct tls_stream *t)
{
    return (t->wanted & ZT_STREAM_READABLE) && (t->unopened || t->end_due);
}

/* There is something for push to do. */
static bool push_is_due(const struct tls_stream *t)
{
    return !t->out_err && ((output_waiting(&t->out) > 0 && !t->out.blocked) || (t->update_due && !t->out.blocked) ||
                           (t->shut && !t->lower_shut));
}

static void arm(struct tls_stream *t)
{
    if (read_is_due(t) || (t->writable_due && (t->wanted & ZT_STREAM_WRITABLE)) || push_is_due(t))
        zt_loop_soon(t->out.loop, &t->soon);
}

static void update_interest(struct tls_stream *t)
{
    unsigned events = 0;
    if ((t->wanted & ZT_STREAM_READABLE) && !t->in_end)
        events |= ZT_STREAM_READABLE;
    if (t->out.blocked)
        events |= ZT_STREAM_WRITABLE;
    zt_stream_want(t->out.lower, events);
    arm(t);
}

static void note_room(struct tls_stream *t)
{
    if (t->write_blocked && may_write(t)) {
        t->write_blocked = false;
        t->writable_due = true;
    }
}

/* Nothing more can be written; the owner learns by its next call, and is woken when it waits for room. */
static void end_output(struct tls_stream *t, enum zt_err why)
{
    t->out_err = (uint8_t)why;
    output_release(&t->out);
    note_room(t);
}

/* Whatever is due downwards. */
static void push(struct tls_stream *t)
{
    if (t->out_err)
        return;
    enum zt_err e = output_flush(&t->out);
    if (!e && update_is_due(t)) {
        e = seal_key_update(t);
        if (!e)
            e = output_flush(&t->out);
    }
    if (!e && t->shut && !t->lower_shut) {
        t->lower_shut = true;
        e = zt_stream_shutdown_write(t->out.lower);
    }
    if (e && e != ZT_AGAIN)
        end_output(t, e);
    else
        note_room(t);
}

/* Calls the owner, last of all. */
static void tell(struct tls_stream *t, unsigned events)
{
    if (t->writable_due && (t->wanted & ZT_STREAM_WRITABLE)) {
        t->writable_due = false;
        events |= ZT_STREAM_WRITABLE;
    }
    update_interest(t);
    events &= t->wanted;
    if (events)
        t->base.owner->on_ready(t->base.owner, &t->base, events);
}

static void on_soon(struct zt_task *task)
{
    struct tls_stream *t = zt_container_of(task, struct tls_stream, soon);
    if (push_is_due(t))
        push(t);
    tell(t, read_is_due(t) ? ZT_STREAM_READABLE : 0);
}

static void on_lower_ready(struct zt_stream_owner *owner, struct zt_stream *lower, unsigned events)
{
    struct tls_stream *t = zt_container_of(owner, struct tls_stream, lower_owner);
    if (events & ZT_STREAM_WRITABLE)
        push(t);
    tell(t, events & ZT_STREAM_READABLE);
}

static void tls_want(struct zt_stream *s, unsigned events)
{
    struct tls_stream *t = from_stream(s);
    unsigned added = events & ~t->wanted;
    t->wanted = (uint8_t)events;
    if (added & ZT_STREAM_READABLE) /* a new owner has seen nothing; lower says again what it holds */
        t->end_due = t->in_end != ZT_OK;
    if (added & ZT_STREAM_WRITABLE) {
        t->writable_due = may_write(t);
        t->write_blocked = !t->writable_due;
    }
    if (!(events & ZT_STREAM_WRITABLE))
        t->writable_due = false;
    update_interest(t);
}

/* ---- reading ----------------------------------------------------------------------------------- */

static void end_input(struct tls_stream *t, enum zt_err how)
{
    t->in_end = (uint8_t)how;
    t->end_due = true;
    t->unopened = false;
}

/* The connection is over in both directions; tells the peer why, if it can. */
static void fail_input(struct tls_stream *t, uint8_t alert)
{
    zt_log_debug(LOG_SCOPE, "bad record from the peer, alert %u sent", alert);
    seal_alert(t, SSL3_AL_FATAL, alert);
    output_flush(&t->out);
    end_output(t, ZT_TLS);
    end_input(t, ZT_TLS);
}

static void take_alert(struct tls_stream *t, const uint8_t *body, size_t len)
{
    if (len != 2) {
        fail_input(t, ZT_TLS_ALERT_DECODE_ERROR);
    } else if (body[1] == ZT_TLS_ALERT_CLOSE_NOTIFY) {
        end_input(t, ZT_EOF);
    } else if (body[1] != ZT_TLS_ALERT_USER_CANCELED) { /* a close_notify follows that one */
        zt_log_debug(LOG_SCOPE, "alert %u from the peer", body[1]);
        end_output(t, ZT_TLS);
        end_input(t, ZT_TLS);
    }
}

/* The message whose header is complete. left: bytes of the record behind the header. Returns bytes used, or -1. */
static int take_message(struct tls_stream *t, const uint8_t *body, size_t left, uint8_t *alert)
{
    uint32_t len = (uint32_t)t->hs_header[1] << 16 | (uint32_t)t->hs_header[2] << 8 | t->hs_header[3];

    t->hs_header_len = 0;
    *alert = ZT_TLS_ALERT_UNEXPECTED_MESSAGE;
    if (t->hs_header[0] == HS_NEW_SESSION_TICKET && t->client) { /* of a foreign server: we do not resume */
        uint32_t now = len < left ? len : (uint32_t)left;
        t->hs_skip = len - now;
        return (int)now;
    }
    /* Keys change behind it, so it must end its record (RFC 8446 §5.1). */
    if (t->hs_header[0] != HS_KEY_UPDATE || left != 1)
        return -1;
    if (len != 1) {
        *alert = ZT_TLS_ALERT_DECODE_ERROR;
        return -1;
    }
    if (body[0] > 1) {
        *alert = ZT_TLS_ALERT_ILLEGAL_PARAMETER;
        return -1;
    }
    if (zt_tls_dir_update(&t->in_dir, false)) {
        *alert = ZT_TLS_ALERT_INTERNAL_ERROR;
        return -1;
    }
    t->update_due |= body[0] == 1 && !t->shut;
    return 1;
}

/* A record of handshake messages or parts of them. A KeyUpdate cut in two records is refused: nobody does that. */
static void take_handshake(struct tls_stream *t, const uint8_t *body, size_t len)
{
    uint8_t alert = ZT_TLS_ALERT_UNEXPECTED_MESSAGE;

    if (len == 0 || t->in_dir.k.version != ZT_TLS_1_3) { /* 1.2: renegotiation, which nobody of ours does */
        fail_input(t, alert);
        return;
    }
    while (len > 0) {
        if (t->hs_skip > 0) {
            uint32_t now = t->hs_skip < len ? t->hs_skip : (uint32_t)len;
            t->hs_skip -= now;
            body += now;
            len -= now;
            continue;
        }
        t->hs_header[t->hs_header_len++] = *body++;
        len--;
        if (t->hs_header_len < HS_HEADER_BYTES)
            continue;
        int used = take_message(t, body, len, &alert);
        if (used < 0) {
            fail_input(t, alert);
            return;
        }
        body += used;
        len -= (size_t)used;
    }
}

/* A record that is not the application's, or an empty one. */
static void take_control(struct tls_stream *t, enum zt_tls_content type, const uint8_t *body, size_t len)
{
    if (++t->idle_records > IDLE_RECORDS_MAX)
        fail_input(t, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    else if (type != ZT_TLS_HANDSHAKE_MSG && (t->hs_skip > 0 || t->hs_header_len > 0)) /* RFC 8446 §5.1: no interleaving */
        fail_input(t, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    else if (type == ZT_TLS_ALERT)
        take_alert(t, body, len);
    else if (type == ZT_TLS_HANDSHAKE_MSG)
        take_handshake(t, body, len);
    else if (type != ZT_TLS_APPDATA)
        fail_input(t, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
}

/* The first record, once it is whole: it may be the ticket. */
static void offer_ticket(struct tls_stream *t, const uint8_t *rec, size_t len)
{
    size_t record_len = len < ZT_TLS_HEADER_BYTES ? SIZE_MAX : ZT_TLS_HEADER_BYTES + ((size_t)rec[3] << 8 | rec[4]);
    if (!t->ticket || len < record_len)
        return;
    zt_tls_ticket_offer(t->ticket, rec, record_len);
    zt_tls_ticket_free(t->ticket);
    t->ticket = NULL;
}

/* Opens the record behind the run and adds it to it. ZT_OK: there is more plaintext than before, or in_end is set.
 * ZT_AGAIN: no whole record there. */
static enum zt_err open_next(struct tls_stream *t, uint8_t *data, size_t len)
{
    enum zt_tls_content type;
    uint8_t *plain, alert;
    size_t record_len, plain_len;

    while (!t->in_end) {
        offer_ticket(t, data + t->run_len, len - t->run_len);
        enum zt_err e = zt_tls_record_open(&t->in_dir, data + t->run_len, len - t->run_len, &record_len, &plain, &plain_len,
                                           &type, &alert);
        if (e == ZT_AGAIN)
            return ZT_AGAIN;
        if (e) {
            fail_input(t, alert);
            return ZT_OK;
        }
        t->run_len += record_len;
        if (type == ZT_TLS_APPDATA && plain_len > 0 && t->hs_skip == 0 && t->hs_header_len == 0) {
            t->idle_records = 0;
            if (t->plain_len == 0)
                t->plain_off = (size_t)(plain - data);
            else
                memmove(data + t->plain_off + t->plain_len, plain, plain_len);
            t->plain_len += plain_len;
            return ZT_OK;
        }
        take_control(t, type, plain, plain_len);
    }
    return ZT_OK;
}

/* Gives dead bytes of the run back to lower: all of it when no plaintext is left; else, after moving the plaintext to the end
 * of the run, what is before it. */
static void trim_run(struct tls_stream *t, uint8_t *data)
{
    size_t dead = t->run_len - t->plain_len;

    if (dead == 0)
        return;
    if (t->plain_len > 0)
        memmove(data + dead, data + t->plain_off, t->plain_len);
    t->run_len = t->plain_len;
    t->plain_off = 0;
    zt_stream_consume(t->out.lower, dead);
}

/* One more record. ZT_OK: as open_next, and *data is where lower's bytes are; else as zt_stream_peek. */
static enum zt_err read_more(struct tls_stream *t, uint8_t **data)
{
    size_t seen = 0, len;

    /* First what is there already; then, when that ends in a part of a record, what lower can add to it. */
    for (int round = 0; round < 2; round++) {
        enum zt_err e = zt_stream_peek(t->out.lower, seen, data, &len);
        if (e == ZT_AGAIN)
            break;
        if (e) {
            end_input(t, e == ZT_EOF ? ZT_RESET : e); /* no close_notify came: not an orderly end */
            return ZT_OK;
        }
        if (open_next(t, *data, len) == ZT_OK) {
            t->unopened = !t->in_end && len > t->run_len;
            if (t->in_end && t->plain_len == 0)
                trim_run(t, *data); /* lower need not hold a buffer for an alert */
            return ZT_OK;
        }
        seen = len - (t->run_len - t->plain_len);
        trim_run(t, *data);
    }
    t->unopened = false;
    return ZT_AGAIN;
}

static enum zt_err tls_peek(struct zt_stream *s, size_t seen, uint8_t **data, size_t *len)
{
    struct tls_stream *t = from_stream(s);
    uint8_t *lower_data = NULL;
    size_t lower_len;

    if (t->plain_len <= seen && !t->in_end) {
        enum zt_err e = read_more(t, &lower_data);
        if (t->in_end)
            update_interest(t);
        else
            arm(t);
        if (e)
            return e;
    }
    if (t->plain_len <= seen) {
        t->end_due = false;
        return (enum zt_err)t->in_end;
    }
    if (!lower_data && zt_stream_peek(t->out.lower, 0, &lower_data, &lower_len))
        zt_bug(__FILE__, __LINE__, "opened records have gone from the lower stream");
    *data = lower_data + t->plain_off;
    *len = t->plain_len;
    return ZT_OK;
}

static void tls_consume(struct zt_stream *s, size_t n)
{
    struct tls_stream *t = from_stream(s);

    ZT_ASSERT(n <= t->plain_len);
    t->plain_off += n;
    t->plain_len -= n;
    if (t->plain_len > 0 || t->run_len == 0)
        return;
    size_t run_len = t->run_len;
    t->run_len = t->plain_off = 0;
    zt_stream_consume(t->out.lower, run_len);
}

/* ---- writing ----------------------------------------------------------------------------------- */

#define PIECES_MAX 64 /* of the caller's memory in one record */

/* A position in the caller's iovec. */
struct gather {
    const struct iovec *iov;
    int n_iov;
    size_t offset; /* into the first one */
};

/* The next bytes, at most max of them, as pieces; returns how many bytes. */
static size_t gather_next(struct gather *g, size_t max, struct iovec pieces[PIECES_MAX], int *n_pieces)
{
    size_t taken = 0;

    *n_pieces = 0;
    while (taken < max && *n_pieces < PIECES_MAX && g->n_iov > 0) {
        size_t left = g->iov->iov_len - g->offset, piece = left < max - taken ? left : max - taken;
        if (piece > 0)
            pieces[(*n_pieces)++] = (struct iovec){(uint8_t *)g->iov->iov_base + g->offset, piece};
        taken += piece;
        g->offset += piece;
        if (g->offset == g->iov->iov_len) {
            g->iov++;
            g->n_iov--;
            g->offset = 0;
        }
    }
    return taken;
}

/* Room for one more record of n bytes and the control reserve; pushes when the largest buffer is full. */
static bool make_room(struct tls_stream *t, size_t n, size_t expected)
{
    size_t need = n + ZT_TLS_RECORD_OVERHEAD_MAX + CONTROL_BYTES;

    if (output_room(&t->out, expected, need) >= need)
        return true;
    if (!t->out.blocked)
        push(t);
    return !t->out_err && output_room(&t->out, expected, need) >= need;
}

static enum zt_err tls_writev(struct zt_stream *s, const struct iovec *iov, int n_iov, size_t *accepted)
{
    struct tls_stream *t = from_stream(s);
    struct gather g = {iov, n_iov, 0};
    struct iovec pieces[PIECES_MAX];
    size_t total = 0;
    int n_pieces;

    *accepted = 0;
    if (t->out_err || t->shut)
        return t->out_err ? (enum zt_err)t->out_err : ZT_RESET;
    for (int i = 0; i < n_iov; i++)
        total += iov[i].iov_len;
    size_t expected = total + (total / ZT_TLS_PLAIN_BYTES_MAX + 1) * ZT_TLS_RECORD_OVERHEAD_MAX + CONTROL_BYTES;
    while (*accepted < total) {
        size_t n = total - *accepted < ZT_TLS_PLAIN_BYTES_MAX ? total - *accepted : ZT_TLS_PLAIN_BYTES_MAX;
        if (!make_room(t, n, expected)) {
            t->write_blocked = true;
            break;
        }
        n = gather_next(&g, n, pieces, &n_pieces);
        size_t len = zt_tls_record_seal(&t->out_dir, ZT_TLS_APPDATA, pieces, n_pieces, n, t->out.buf + t->out.end);
        if (len == 0 || (t->out.end += len, update_is_due(t) && seal_key_update(t))) {
            end_output(t, ZT_TLS);
            break;
        }
        *accepted += n;
    }
    if (t->write_blocked || t->out_err)
        update_interest(t);
    else
        arm(t);
    if (*accepted > 0 || total == 0)
        return ZT_OK;
    return t->out_err ? (enum zt_err)t->out_err : ZT_AGAIN;
}

static enum zt_err tls_shutdown_write(struct zt_stream *s)
{
    struct tls_stream *t = from_stream(s);

    if (t->out_err)
        return (enum zt_err)t->out_err;
    seal_alert(t, SSL3_AL_WARNING, ZT_TLS_ALERT_CLOSE_NOTIFY);
    arm(t);
    return ZT_OK;
}

static bool tls_flushed(struct zt_stream *s)
{
    const struct tls_stream *t = from_stream(s);

    return t->out_err ||
           (output_waiting(&t->out) == 0 && (!t->shut || t->lower_shut) && zt_stream_flushed(t->out.lower));
}

/* ---- closing ----------------------------------------------------------------------------------- */

/* What is left of a stream that was closed in order while lower could not take its last bytes. */
struct lingering {
    struct zt_stream_owner owner;
    struct output out;
    ev_timer timer;
    ev_cleanup loop_ends;
};

static void linger_end(struct lingering *g, enum zt_err why)
{
    struct zt_loop *loop = g->out.loop;

    ev_timer_stop(zt_loop_ev(loop), &g->timer);
    ev_cleanup_stop(zt_loop_ev(loop), &g->loop_ends);
    output_release(&g->out);
    zt_stream_close(g->out.lower, why);
    zt_loop_defer_zt_free(loop, g);
}

static void on_linger_ready(struct zt_stream_owner *owner, struct zt_stream *lower, unsigned events)
{
    struct lingering *g = zt_container_of(owner, struct lingering, owner);
    enum zt_err e = output_flush(&g->out);
    if (e != ZT_AGAIN)
        linger_end(g, e);
}

static void on_linger_timer(struct ev_loop *loop, ev_timer *timer, int revents)
{
    linger_end(zt_container_of(timer, struct lingering, timer), ZT_TIMEOUT);
}

/* Nobody else knows of it. */
static void on_loop_ends(struct ev_loop *loop, ev_cleanup *w, int revents)
{
    linger_end(zt_container_of(w, struct lingering, loop_ends), ZT_TIMEOUT);
}

/* Takes out, lower included. */
static void linger_start(struct output *out)
{
    struct lingering *g = zt_new(struct lingering);

    g->owner.on_ready = on_linger_ready;
    g->out = *out;
    out->buf = NULL;
    zt_stream_own(g->out.lower, &g->owner);
    zt_stream_want(g->out.lower, ZT_STREAM_WRITABLE);
    ev_timer_init(&g->timer, on_linger_timer, LINGER_S, 0);
    ev_timer_start(zt_loop_ev(g->out.loop), &g->timer);
    ev_cleanup_init(&g->loop_ends, on_loop_ends);
    ev_cleanup_start(zt_loop_ev(g->out.loop), &g->loop_ends);
}

static void tls_close(struct zt_stream *s, enum zt_err why)
{
    struct tls_stream *t = from_stream(s);
    struct zt_loop *loop = t->out.loop;

    ZT_ASSERT(t->out.lower);
    zt_task_cancel(&t->soon);
    if (why == ZT_OK && !t->out_err) {
        seal_alert(t, SSL3_AL_WARNING, ZT_TLS_ALERT_CLOSE_NOTIFY);
        t->lower_shut = true; /* closing says it all */
        push(t);
    }
    if (why == ZT_OK && output_waiting(&t->out) > 0) {
        linger_start(&t->out);
    } else {
        output_release(&t->out);
        zt_stream_close(t->out.lower, why ? why : (enum zt_err)t->out_err);
    }
    t->out.lower = NULL;
    zt_tls_ticket_free(t->ticket);
    zt_tls_dir_fini(&t->in_dir);
    zt_tls_dir_fini(&t->out_dir);
    zt_loop_defer_zt_free(loop, t);
}

static const struct zt_stream_ops tls_ops = {
    .kind = "tls",
    .peek = tls_peek,
    .consume = tls_consume,
    .writev = tls_writev,
    .shutdown_write = tls_shutdown_write,
    .want = tls_want,
    .flushed = tls_flushed,
    .close = tls_close,
};

struct zt_stream *zt_tls_stream_new(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_dir *in,
                                    struct zt_tls_dir *out, bool client)
{
    struct tls_stream *t = zt_new(struct tls_stream);

    t->base.ops = &tls_ops;
    t->lower_owner.on_ready = on_lower_ready;
    t->out.lower = lower;
    t->out.loop = l;
    t->soon.run = on_soon;
    t->in_dir = *in;
    t->out_dir = *out;
    OPENSSL_cleanse(in, sizeof(*in));
    OPENSSL_cleanse(out, sizeof(*out));
    t->client = client;
    zt_stream_own(lower, &t->lower_owner);
    return &t->base;
}

void zt_tls_stream_await_ticket(struct zt_stream *s, struct zt_tls_ticket *ticket)
{
    from_stream(s)->ticket = ticket;
}

enum zt_err zt_tls_stream_export(struct zt_stream *s, struct zt_stream **lower, struct zt_tls_keys *in,
                                 struct zt_tls_keys *out, bool *client)
{
    struct tls_stream *t = from_stream(s);
    struct zt_loop *loop = t->out.loop;

    if (output_waiting(&t->out) > 0 || t->run_len > 0 || t->hs_skip > 0 || t->hs_header_len > 0 || t->update_due ||
        t->in_end || t->out_err || t->shut)
        return ZT_AGAIN;
    zt_task_cancel(&t->soon);
    zt_stream_want(t->out.lower, 0);
    *lower = t->out.lower;
    *in = t->in_dir.k;
    *out = t->out_dir.k;
    *client = t->client;
    t->out.lower = NULL;
    zt_tls_ticket_free(t->ticket);
    zt_tls_dir_fini(&t->in_dir);
    zt_tls_dir_fini(&t->out_dir);
    zt_loop_defer_zt_free(loop, t);
    return ZT_OK;
}

void zt_tls_stream_dirs(struct zt_stream *s, struct zt_tls_dir **in, struct zt_tls_dir **out)
{
    struct tls_stream *t = from_stream(s);
    *in = &t->in_dir;
    *out = &t->out_dir;
}
