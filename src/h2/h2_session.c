/* An HTTP/2 session over a zt_stream: its life, sending, pings and drain.
 *
 * Invariants:
 * - nghttp2 is fed in one place (h2_recv.c) and asked for output in one (h2_session_send). Its callbacks note facts; owners are told
 *   by the pump, which runs after every read and at the end of a turn in which something was submitted.
 * - Bytes that were framed always go out in order: what the lower stream does not take is copied into `spill` (at most one
 *   gather buffer and one frame), and nothing more is framed until the spill is empty.
 * - Control frames of a turn gather on the stack and share one lower write with the DATA that follows them.
 * - The struct outlives its lower stream until the last of its streams is closed by its owner.
 *
 *   state     | leaves by
 *   open      | drain -> draining; failure, GOAWAY without streams, close -> over
 *   draining  | last stream closed and the final GOAWAY sent -> over
 *   over      | last stream closed by its owner -> freed
 *
 * Liveness: a PING ping_interval_ms after the start and after each PONG; no PONG within ping_timeout_ms ends the session. The
 * timer is the only thing that wakes an idle session. */
#include "h2_impl.h"

#include <string.h>

_Static_assert(H2_GATHER_BYTES + H2_DATA_FRAME_BYTES <= ZT_BUF_MEDIUM_BYTES, "the spill holds a gather buffer and a frame");

static const uint8_t drain_payload[8] = {'d', 'r', 'a', 'i', 'n', 'i', 'n', 'g'};
static const uint8_t ping_payload[8] = {'a', 'l', 'i', 'v', 'e', '?', 0, 0};

void h2_session_soon(struct zt_h2_session *s)
{
    zt_loop_soon(s->loop, &s->task);
}

/* The first failure wins; the pump acts on it. */
void h2_session_fail(struct zt_h2_session *s, enum zt_err code, const char *text)
{
    if (!s->failed && !s->over) {
        s->failed = true;
        s->why = zt_new(struct zt_error);
        zt_error_set(s->why, code, "%s", text);
    }
    h2_session_soon(s);
}

/* ---- sending ---- */

static void arm_ping(struct zt_h2_session *s, uint32_t ms)
{
    ev_timer_stop(zt_loop_ev(s->loop), &s->ping);
    ev_timer_set(&s->ping, ms / 1e3, 0);
    ev_timer_start(zt_loop_ev(s->loop), &s->ping);
}

bool h2_session_blocked(const struct zt_h2_session *s)
{
    return s->spill != NULL;
}

static void spill_add(struct zt_h2_session *s, const struct iovec *iov, int n_iov, size_t skip)
{
    if (!s->spill) {
        s->spill = zt_loop_buf_get(s->loop, ZT_BUF_MEDIUM);
        s->spill_off = s->spill_len = 0;
        h2_session_soon(s); /* which asks for WRITABLE */
    }
    for (int i = 0; i < n_iov; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - skip;
        ZT_ASSERT(s->spill_off + s->spill_len + n <= ZT_BUF_MEDIUM_BYTES);
        memcpy(s->spill + s->spill_off + s->spill_len, (uint8_t *)iov[i].iov_base + skip, n);
        s->spill_len += (uint32_t)n;
        skip = 0;
    }
}

static void spill_release(struct zt_h2_session *s)
{
    if (s->spill)
        zt_loop_buf_put(s->loop, s->spill, ZT_BUF_MEDIUM);
    s->spill = NULL;
    s->spill_off = s->spill_len = 0;
}

/* Nothing can be written any more, but what the peer sent before it left (a GOAWAY, the end of a transfer) may still be
 * unread: reading will meet the end, and the timer sees to it if it does not. */
static void lower_write_failed(struct zt_h2_session *s)
{
    if (s->write_failed)
        return;
    s->write_failed = true;
    arm_ping(s, H2_READ_OUT_MS);
}

/* Writes all of iov, spilling what the lower stream does not take. */
void h2_session_put(struct zt_h2_session *s, struct iovec *iov, int n_iov)
{
    size_t taken = 0, total = 0;
    for (int i = 0; i < n_iov; i++)
        total += iov[i].iov_len;
    if (!s->spill) {
        enum zt_err e = zt_stream_writev(s->lower, iov, n_iov, &taken);
        if (e != ZT_OK && e != ZT_AGAIN)
            lower_write_failed(s);
    }
    if (taken < total)
        spill_add(s, iov, n_iov, taken);
}

static void gather_flush(struct zt_h2_session *s)
{
    struct iovec iov = {s->gather, s->gather_len};
    s->gather_len = 0;
    if (iov.iov_len > 0)
        h2_session_put(s, &iov, 1);
}

static void gather_add(struct zt_h2_session *s, const uint8_t *data, size_t n)
{
    if (n > H2_GATHER_BYTES - s->gather_len)
        gather_flush(s);
    if (n <= H2_GATHER_BYTES - s->gather_len) {
        memcpy(s->gather + s->gather_len, data, n);
        s->gather_len += (uint32_t)n;
        return;
    }
    struct iovec iov = {(void *)(uintptr_t)data, n};
    h2_session_put(s, &iov, 1);
}

/* nghttp2 ends a connection whose peer opens more streams than it was told; RFC 9113 §5.1.2 lets us refuse the stream alone. So
 * nghttp2 believes in a larger number (submit_settings), the frame says the one that h2_recv.c holds the peer to. It is the first
 * that is gathered. */
static void announce_streams_max(struct zt_h2_session *s)
{
    uint8_t *entry = s->gather + H2_FRAME_HEADER_BYTES, *end = s->gather + s->gather_len;
    s->settings_sent = true;
    for (; s->role == ZT_H2_SERVER && end - entry >= 6; entry += 6) {
        if ((entry[0] << 8 | entry[1]) != NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
            continue;
        for (int i = 0; i < 4; i++)
            entry[2 + i] = (uint8_t)(s->cfg.streams_max >> (24 - 8 * i));
    }
}

/* Asks nghttp2 for all it has to send, until the lower stream is full. */
void h2_session_send(struct zt_h2_session *s)
{
    uint8_t gather[H2_GATHER_BYTES];
    if (s->failed || s->over || s->spill || s->sending)
        return;
    s->sending = true;
    s->gather = gather;
    s->gather_len = 0;
    while (!s->failed && !s->spill) {
        const uint8_t *data;
        ssize_t n = nghttp2_session_mem_send(s->ng, &data);
        if (n < 0)
            h2_session_fail(s, ZT_H2, nghttp2_strerror((int)n));
        if (n <= 0)
            break;
        gather_add(s, data, (size_t)n);
        if (!s->settings_sent)
            announce_streams_max(s);
    }
    gather_flush(s);
    s->gather = NULL;
    s->sending = false;
}

static void spill_flush(struct zt_h2_session *s)
{
    while (s->spill && !s->failed && !s->write_failed) {
        struct iovec iov = {s->spill + s->spill_off, s->spill_len};
        size_t taken;
        enum zt_err e = zt_stream_writev(s->lower, &iov, 1, &taken);
        if (e == ZT_AGAIN)
            return;
        if (e != ZT_OK) {
            lower_write_failed(s);
            return;
        }
        s->spill_off += (uint32_t)taken;
        s->spill_len -= (uint32_t)taken;
        if (s->spill_len == 0) {
            spill_release(s);
            s->check_writers = true;
        }
    }
}

/* ---- telling owners ---- */

void h2_session_tell_ready(struct zt_h2_session *s)
{
    struct zt_link batch, *link;
    zt_list_init(&batch);
    zt_list_splice(&batch, &s->ready);
    while ((link = zt_list_pop_front(&batch)))
        h2_stream_tell(zt_container_of(link, struct zt_h2_stream, ready_link));
}

/* First come, first served; who was told goes to the end of the line. */
static void tell_writers(struct zt_h2_session *s)
{
    struct zt_link batch, *link;
    if (!s->check_writers || s->spill)
        return;
    s->check_writers = false;
    zt_list_init(&batch);
    zt_list_splice(&batch, &s->writers);
    while ((link = zt_list_first(&batch)) && !s->spill) {
        struct zt_h2_stream *st = zt_container_of(link, struct zt_h2_stream, writer_link);
        zt_list_remove(link);
        zt_list_push_back(&s->writers, link);
        if (st->write_due && h2_stream_writable(st))
            h2_stream_tell(st);
    }
    zt_list_splice(&batch, &s->writers); /* those not reached stay in front */
    zt_list_splice(&s->writers, &batch);
}

/* ---- the end ---- */

void h2_session_release(struct zt_h2_session *s)
{
    if (!s->over || !zt_list_empty(&s->streams) || s->pumping || s->released)
        return;
    s->released = true;
    zt_task_cancel(&s->task);
    zt_free(s->why);
    s->why = NULL;
    zt_loop_defer_zt_free(s->loop, s);
}

/* Detaches from everything below. Streams learn `end`. */
static void make_over(struct zt_h2_session *s, enum zt_err end, enum zt_err lower_why)
{
    bool pumping = s->pumping;
    s->pumping = true; /* nobody releases it below */
    s->over = true;
    ev_timer_stop(zt_loop_ev(s->loop), &s->ping);
    for (unsigned i = s->next_chunk; i < s->n_chunks; i++) /* they lie in the lower stream's buffer */
        if (s->chunks[i].st)
            h2_stream_deliver(s->chunks[i].st, s->chunks[i].data, s->chunks[i].len, false);
    s->next_chunk = s->n_chunks;
    zt_list_each_safe(link, &s->streams)
    {
        struct zt_h2_stream *st = zt_container_of(link, struct zt_h2_stream, all_link);
        h2_stream_gone(st, NGHTTP2_INTERNAL_ERROR, end);
    }
    spill_release(s);
    zt_str_fini(&s->block);
    nghttp2_session_del(s->ng);
    s->ng = NULL;
    struct zt_stream *lower = s->lower;
    s->lower = NULL;
    zt_stream_close(lower, lower_why);
    s->pumping = pumping;
}

/* nghttp2 wants neither way: a GOAWAY either way and no stream left, or a protocol error that it has answered. */
static bool finished(const struct zt_h2_session *s)
{
    return !s->spill && !s->write_failed && !nghttp2_session_want_write(s->ng) && !nghttp2_session_want_read(s->ng);
}

bool h2_session_any_open(const struct zt_h2_session *s)
{
    zt_list_each(link, &s->streams)
    {
        if (zt_container_of(link, struct zt_h2_stream, all_link)->open)
            return true;
    }
    return false;
}

/* The session ended by itself: GOAWAY and leave. */
static void end_session(struct zt_h2_session *s)
{
    struct zt_error why = ZT_ERROR_INIT;
    if (!s->why && h2_session_any_open(s)) { /* streams that wait for an answer are told the same */
        s->why = zt_new(struct zt_error);
        zt_error_set(s->why, s->settings_received ? ZT_H2 : ZT_H2_HANDSHAKE, "connection ended by a protocol error");
    }
    if (s->why)
        why = *s->why;
    /* A client drops a silent connection at once; a server lets its GOAWAY go out. */
    make_over(s, ZT_H2, why.code == ZT_TIMEOUT && s->role == ZT_H2_CLIENT ? ZT_TIMEOUT : ZT_OK);
    h2_session_tell_ready(s);
    struct zt_h2_owner *owner = s->owner;
    s->owner = NULL;
    if (owner)
        owner->on_closed(owner, &why);
}

static void tell_owner(struct zt_h2_session *s)
{
    if (s->settings_received && !s->settings_told) {
        s->settings_told = true;
        if (s->owner && s->owner->on_settings)
            s->owner->on_settings(s->owner);
    }
    if (s->goaway_received && !s->goaway_told) {
        s->goaway_told = true;
        if (s->owner && s->owner->on_goaway)
            s->owner->on_goaway(s->owner);
    }
    if (s->stream_closed) {
        s->stream_closed = false;
        if (s->owner && s->owner->on_stream_closed)
            s->owner->on_stream_closed(s->owner);
    }
}

static void want_lower(struct zt_h2_session *s)
{
    unsigned want = ZT_STREAM_READABLE | (s->spill && !s->write_failed ? ZT_STREAM_WRITABLE : 0);
    if (want != s->lower_want)
        zt_stream_want(s->lower, want);
    s->lower_want = (uint8_t)want;
}

static void pump(struct zt_h2_session *s)
{
    if (s->pumping)
        return;
    s->pumping = true;
    if (!s->over)
        spill_flush(s);
    if (!s->failed || s->over) /* a request that came before a failure is not worth starting */
        h2_session_tell_ready(s);
    if (!s->over)
        tell_writers(s);
    tell_owner(s);
    if (!s->over) {
        h2_session_send(s);
        if (s->failed || finished(s))
            end_session(s);
        else
            want_lower(s);
    }
    s->pumping = false;
    if (!zt_list_empty(&s->ready) || (s->check_writers && !s->over && !s->spill))
        h2_session_soon(s);
    h2_session_release(s);
}

static void read_and_tell(struct zt_h2_session *s)
{
    s->pumping = true; /* keeps s alive while its streams are told */
    h2_recv_read(s);
    s->pumping = false;
}

static void on_task(struct zt_task *task)
{
    struct zt_h2_session *s = zt_container_of(task, struct zt_h2_session, task);
    if (s->unfed && !s->over && !s->failed)
        read_and_tell(s);
    pump(s);
}

static void on_lower_ready(struct zt_stream_owner *o, struct zt_stream *lower, unsigned events)
{
    struct zt_h2_session *s = zt_container_of(o, struct zt_h2_session, lower_owner);
    if (events & ZT_STREAM_READABLE)
        read_and_tell(s);
    /* Output of the whole turn goes out together, at its end. */
    h2_session_soon(s);
}

/* ---- liveness ---- */

static void on_ping_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_h2_session *s = zt_container_of(w, struct zt_h2_session, ping);
    if (s->write_failed) {
        h2_session_fail(s, ZT_H2, "connection lost while writing");
    } else if (!s->ping_waiting) {
        s->ping_waiting = true;
        nghttp2_submit_ping(s->ng, NGHTTP2_FLAG_NONE, ping_payload);
        arm_ping(s, s->cfg.ping_timeout_ms);
    } else {
        if (s->role == ZT_H2_SERVER) {
            nghttp2_submit_goaway(s->ng, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(s->ng),
                                  NGHTTP2_NO_ERROR, NULL, 0);
            h2_session_send(s);
        }
        h2_session_fail(s, ZT_TIMEOUT, "ping timed out");
    }
    h2_session_soon(s);
}

/* Any PONG shows that the peer lives. That of the drain's PING says that it has everything sent before: a client sees the first GOAWAY, and
 * a server has the last bytes of its streams, which a gateway between could drop with a connection that ends too early. */
void h2_session_pong(struct zt_h2_session *s, const uint8_t payload[8])
{
    if (s->ping_waiting && !s->write_failed) {
        s->ping_waiting = false;
        arm_ping(s, s->cfg.ping_interval_ms);
    }
    if (s->draining && !s->final_goaway && memcmp(payload, drain_payload, sizeof drain_payload) == 0) {
        s->final_goaway = true;
        nghttp2_submit_goaway(s->ng, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(s->ng),
                              NGHTTP2_NO_ERROR, NULL, 0);
    }
}

/* ---- the owner's calls ---- */

static void submit_settings(struct zt_h2_session *s)
{
    const struct zt_h2_config *c = &s->cfg;
    nghttp2_settings_entry iv[6];
    size_t n = 0;
    if (s->role == ZT_H2_CLIENT)
        iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0};
    else
        iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                           c->streams_max + 2 * H2_LOCAL_RESETS_MAX}; /* announce_streams_max */
    iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, c->stream_window_bytes};
    iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_FRAME_SIZE, c->frame_bytes};
    iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
                                       s->role == ZT_H2_CLIENT ? ZT_H2_CLIENT_HEADER_BYTES : ZT_H2_SERVER_HEADER_BYTES};
    if (c->header_table_bytes != NGHTTP2_DEFAULT_HEADER_TABLE_SIZE)
        iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_HEADER_TABLE_SIZE, c->header_table_bytes};
    ZT_ASSERT(nghttp2_submit_settings(s->ng, NGHTTP2_FLAG_NONE, iv, n) == 0);
    if (c->connection_window_bytes > NGHTTP2_INITIAL_CONNECTION_WINDOW_SIZE)
        nghttp2_session_set_local_window_size(s->ng, NGHTTP2_FLAG_NONE, 0, (int32_t)c->connection_window_bytes);
}

struct zt_h2_session *zt_h2_session_new(struct zt_loop *l, enum zt_h2_role role, const struct zt_h2_config *cfg,
                                        struct zt_stream *lower, struct zt_h2_owner *owner)
{
    struct zt_h2_session *s = zt_new(struct zt_h2_session);
    s->loop = l;
    s->role = role;
    s->cfg = *cfg;
    s->owner = owner;
    s->lower = lower;
    s->lower_owner.on_ready = on_lower_ready;
    s->task.run = on_task;
    zt_list_init(&s->streams);
    zt_list_init(&s->ready);
    zt_list_init(&s->writers);
    zt_str_init(&s->block, role == ZT_H2_CLIENT ? ZT_H2_CLIENT_HEADER_BYTES : ZT_H2_SERVER_HEADER_BYTES);
    s->ng = h2_recv_new(s);
    submit_settings(s);
    ev_timer_init(&s->ping, on_ping_timer, 0, 0);
    if (cfg->ping_interval_ms)
        arm_ping(s, cfg->ping_interval_ms);
    zt_stream_own(lower, &s->lower_owner);
    want_lower(s);
    h2_session_soon(s);
    return s;
}

unsigned zt_h2_session_streams(const struct zt_h2_session *s)
{
    return s->n_streams;
}

bool zt_h2_session_usable(const struct zt_h2_session *s)
{
    return s->role == ZT_H2_CLIENT && !s->over && !s->failed && !s->draining && !s->goaway_received &&
           nghttp2_session_check_request_allowed(s->ng);
}

bool zt_h2_session_over(const struct zt_h2_session *s)
{
    return s->over;
}

uint32_t zt_h2_session_peer_streams_max(const struct zt_h2_session *s)
{
    if (s->over || !s->settings_received)
        return s->cfg.streams_max;
    return nghttp2_session_get_remote_settings(s->ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

void zt_h2_session_drain(struct zt_h2_session *s)
{
    if (s->over || s->failed || s->draining)
        return;
    s->draining = true;
    if (s->role == ZT_H2_SERVER)
        nghttp2_submit_shutdown_notice(s->ng);
    nghttp2_submit_ping(s->ng, NGHTTP2_FLAG_NONE, drain_payload);
    h2_session_soon(s);
}

void zt_h2_session_close(struct zt_h2_session *s, enum zt_err why)
{
    s->owner = NULL;
    if (s->over || s->closed)
        return;
    s->closed = true;
    if (!s->failed) {
        zt_list_each(link, &s->streams)
        {
            struct zt_h2_stream *st = zt_container_of(link, struct zt_h2_stream, all_link);
            if (st->end == ZT_OK)
                st->end = why == ZT_OK ? ZT_H2 : why; /* before the resets are sent, which would mean an ordinary end */
            if (st->open && why != ZT_OK)
                nghttp2_submit_rst_stream(s->ng, NGHTTP2_FLAG_NONE, st->id, h2_reset_code(st, why));
        }
        int32_t last = s->role == ZT_H2_SERVER ? nghttp2_session_get_last_proc_stream_id(s->ng) : 0;
        nghttp2_submit_goaway(s->ng, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0);
        h2_session_send(s);
    }
    make_over(s, why == ZT_OK ? ZT_H2 : why, ZT_OK);
    h2_session_soon(s);
}

size_t zt_h2_session_queued_bytes(const struct zt_h2_session *s)
{
    return s->queued_bytes + (s->spill ? ZT_BUF_MEDIUM_BYTES : 0);
}
