/* What arrives: nghttp2's callbacks, which only note facts, and the reader, which feeds nghttp2 and then hands the facts out.
 *
 * A DATA payload is noted as a pointer into the lower stream's buffer (at most H2_CHUNKS_MAX of them, then nghttp2 is paused) and shown to
 * the stream's owner in place; only what the owner leaves is copied.
 * The connection window is credited on receipt, always: a reader that stalls holds back its own stream and no other.
 *
 * Floods end the session with GOAWAY(ENHANCE_YOUR_CALM): CONTINUATION, PING and SETTINGS, empty DATA, resets before the answer,
 * errors of the peer that we answer with RST_STREAM. */
#include "h2_impl.h"

#include <stdio.h>
#include <string.h>

static struct zt_h2_stream *stream_of(nghttp2_session *ng, int32_t id)
{
    return nghttp2_session_get_stream_user_data(ng, id);
}

/* ---- floods ---- */

static int flooded(struct zt_h2_session *s)
{
    s->flooded = true;
    return NGHTTP2_ERR_CALLBACK_FAILURE; /* ends mem_recv at once */
}

static void flood_tick(struct zt_h2_session *s)
{
    uint64_t second = zt_loop_now_ms(s->loop) / 1000, passed = second - s->flood.second;
    if (passed == 0)
        return;
    uint64_t drained = passed * H2_EARLY_RESETS_PER_S;
    s->flood.second = second;
    s->flood.control = 0;
    s->flood.early_resets = drained < s->flood.early_resets ? s->flood.early_resets - (uint32_t)drained : 0;
}

/* Resets a stream for the peer's fault. */
static int reset_for_error(struct zt_h2_session *s, int32_t id, uint32_t code)
{
    nghttp2_submit_rst_stream(s->ng, NGHTTP2_FLAG_NONE, id, code);
    return ++s->flood.local_resets > H2_LOCAL_RESETS_MAX ? flooded(s) : 0;
}

static int on_begin_frame(nghttp2_session *ng, const nghttp2_frame_hd *hd, void *user)
{
    struct zt_h2_session *s = user;
    if (hd->type == NGHTTP2_CONTINUATION)
        return ++s->flood.continuations > H2_CONTINUATIONS_MAX ? flooded(s) : 0;
    s->flood.continuations = 0;
    if (hd->type == NGHTTP2_DATA || hd->type == NGHTTP2_WINDOW_UPDATE || hd->type == NGHTTP2_RST_STREAM)
        return 0;
    if (hd->type != NGHTTP2_HEADERS) {
        flood_tick(s);
        return ++s->flood.control > H2_CONTROL_PER_S ? flooded(s) : 0;
    }
    /* After the final GOAWAY nghttp2 would ignore a new stream in silence; say so. */
    if (s->role == ZT_H2_SERVER && hd->stream_id > s->last_peer_stream) {
        s->last_peer_stream = hd->stream_id;
        if (s->final_goaway && (hd->stream_id & 1) && s->n_refused < H2_REFUSED_MAX)
            s->refused[s->n_refused++] = hd->stream_id; /* nghttp2 knows it only when the frame has been read */
    }
    return 0;
}

/* ---- headers ---- */

static int on_begin_headers(nghttp2_session *ng, const nghttp2_frame *frame, void *user)
{
    struct zt_h2_session *s = user;
    int32_t id = frame->hd.stream_id;
    s->block_st = NULL;
    s->block_n = 0;
    zt_str_clear(&s->block);
    if (s->role == ZT_H2_CLIENT) {
        s->block_st = stream_of(ng, id);
        return 0;
    }
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0; /* trailers */
    if (++s->n_incoming > s->cfg.streams_max || s->n_streams >= s->cfg.streams_max + H2_PENDING_RESETS_MAX ||
        s->waiting_block_bytes > H2_BLOCK_BYTES_MAX)
        return reset_for_error(s, id, NGHTTP2_REFUSED_STREAM);
    s->block_st = h2_stream_new(s, id);
    nghttp2_session_set_stream_user_data(ng, id, s->block_st);
    return 0;
}

static int on_header(nghttp2_session *ng, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
                     const uint8_t *value, size_t value_len, uint8_t flags, void *user)
{
    struct zt_h2_session *s = user;
    if (!s->block_st)
        return 0;
    bool fits = s->block_n < ZT_H2_HEADERS_MAX && s->block.len + name_len + value_len + 32 <= s->block.max;
    if (fits && !memchr(name, 0, name_len) && !memchr(value, 0, value_len)) {
        zt_str_add_n(&s->block, name, name_len);
        zt_str_add_char(&s->block, 0);
        zt_str_add_n(&s->block, value, value_len);
        zt_str_add_char(&s->block, 0);
        s->block_n++;
        return 0;
    }
    struct zt_h2_stream *st = s->block_st;
    s->block_st = NULL;
    if (s->role == ZT_H2_SERVER) {
        nghttp2_session_set_stream_user_data(ng, st->id, NULL);
        h2_stream_drop(st); /* nobody has heard of it */
    }
    return reset_for_error(s, frame->hd.stream_id, fits ? NGHTTP2_PROTOCOL_ERROR : NGHTTP2_ENHANCE_YOUR_CALM);
}

/* Final means 200 and up; 1xx and trailers are passed over. */
static bool is_final_response(const struct zt_str *block)
{
    return block->len > 9 && memcmp(block->data, ":status", 8) == 0 && block->data[8] >= '2';
}

static void take_block(struct zt_h2_session *s, const nghttp2_frame *frame)
{
    struct zt_h2_stream *st = s->block_st;
    s->block_st = NULL;
    if (!st || st->id != frame->hd.stream_id || st->block || st->closed)
        return;
    if (s->role == ZT_H2_CLIENT && (!st->request || !is_final_response(&s->block)))
        return;
    st->block_n = (uint16_t)s->block_n;
    st->block_bytes = (uint32_t)s->block.len;
    st->block = zt_str_take(&s->block);
    s->waiting_block_bytes += st->block_bytes;
    h2_stream_mark(st);
}

/* ---- frames ---- */

static int on_data_chunk(nghttp2_session *ng, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *user)
{
    struct zt_h2_session *s = user;
    struct zt_h2_stream *st = stream_of(ng, id);
    nghttp2_session_consume_connection(ng, len);
    s->flood.empty_data = 0;
    if (!st || st->closed)
        return 0;
    /* What follows a piece of the same stream is moved up to it, over the frame header between them: the owner gets one long piece and
     * needs one system call where there were many. */
    struct h2_chunk *last = s->n_chunks > 0 ? &s->chunks[s->n_chunks - 1] : NULL;
    if (last && last->st == st) {
        memmove(last->data + last->len, data, len);
        last->len += len;
        return 0;
    }
    st->n_chunks++;
    s->chunks[s->n_chunks++] = (struct h2_chunk){st, (uint8_t *)(uintptr_t)data, len};
    return s->n_chunks == H2_CHUNKS_MAX ? NGHTTP2_ERR_PAUSE : 0;
}

static int on_frame_recv(nghttp2_session *ng, const nghttp2_frame *frame, void *user)
{
    struct zt_h2_session *s = user;
    struct zt_h2_stream *st;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        take_block(s, frame);
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) && (st = stream_of(ng, frame->hd.stream_id)))
            h2_stream_ended(st);
        break;
    case NGHTTP2_DATA:
        if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
            if ((st = stream_of(ng, frame->hd.stream_id)))
                h2_stream_ended(st);
        } else if (frame->hd.length == frame->data.padlen && ++s->flood.empty_data > H2_EMPTY_DATA_MAX) {
            return flooded(s);
        }
        break;
    case NGHTTP2_RST_STREAM:
        st = stream_of(ng, frame->hd.stream_id);
        if (s->role != ZT_H2_SERVER || !st || (st->answered && !st->closed))
            break; /* of those that their owner has closed, nghttp2 knows only whose answer has not left */
        flood_tick(s);
        if (!st->handed_out && ++s->flood.pending_resets > H2_PENDING_RESETS_MAX)
            return flooded(s);
        if (++s->flood.early_resets > H2_EARLY_RESETS_BURST)
            return flooded(s);
        break;
    case NGHTTP2_SETTINGS:
        if (!(frame->hd.flags & NGHTTP2_FLAG_ACK))
            s->settings_received = s->check_writers = true;
        break;
    case NGHTTP2_WINDOW_UPDATE:
        s->check_writers = true;
        break;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK)
            h2_session_pong(s, frame->ping.opaque_data);
        break;
    case NGHTTP2_GOAWAY:
        s->goaway_received = true;
        break;
    }
    return 0;
}

static int on_invalid_frame(nghttp2_session *ng, const nghttp2_frame *frame, int error, void *user)
{
    struct zt_h2_session *s = user;
    return ++s->flood.local_resets > H2_LOCAL_RESETS_MAX ? flooded(s) : 0;
}

static int on_frame_send(nghttp2_session *ng, const nghttp2_frame *frame, void *user)
{
    bool carries_end = frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS;
    if (carries_end && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
        struct zt_h2_stream *st = stream_of(ng, frame->hd.stream_id);
        if (st)
            h2_stream_end_sent(st);
    }
    return 0;
}

/* A request that never went out: GOAWAY came first. nghttp2 has no stream for it, hence the search. */
static int on_frame_not_send(nghttp2_session *ng, const nghttp2_frame *frame, int error, void *user)
{
    struct zt_h2_session *s = user;
    if (frame->hd.type != NGHTTP2_HEADERS || s->role != ZT_H2_CLIENT)
        return 0;
    zt_list_each_safe(link, &s->streams)
    {
        struct zt_h2_stream *st = zt_container_of(link, struct zt_h2_stream, all_link);
        if (st->id == frame->hd.stream_id && st->open) {
            h2_stream_gone(st, NGHTTP2_REFUSED_STREAM, ZT_OK);
            break;
        }
    }
    return 0;
}

static int on_stream_close(nghttp2_session *ng, int32_t id, uint32_t code, void *user)
{
    struct zt_h2_session *s = user;
    struct zt_h2_stream *st = stream_of(ng, id);
    if (s->role == ZT_H2_SERVER && (id & 1))
        s->n_incoming--;
    if (s->block_st == st)
        s->block_st = NULL;
    if (st)
        h2_stream_gone(st, code, ZT_OK);
    return 0;
}

/* Frames of unknown types have been counted by on_begin_frame, which nghttp2 calls only for types that somebody claims; nothing is
 * done with them (RFC 9113 §4.1). */
static int on_unknown_frame(nghttp2_session *ng, void **payload, const nghttp2_frame_hd *hd, void *user)
{
    return NGHTTP2_ERR_CANCEL;
}

nghttp2_session *h2_recv_new(struct zt_h2_session *s)
{
    nghttp2_session_callbacks *cb;
    nghttp2_option *opt;
    nghttp2_session *ng;
    ZT_ASSERT(nghttp2_session_callbacks_new(&cb) == 0 && nghttp2_option_new(&opt) == 0);
    nghttp2_session_callbacks_set_on_begin_frame_callback(cb, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data_chunk);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame_recv);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
    nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_send);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(cb, on_frame_not_send);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
    nghttp2_session_callbacks_set_unpack_extension_callback(cb, on_unknown_frame);
    for (unsigned type = NGHTTP2_CONTINUATION + 1; type <= UINT8_MAX; type++)
        nghttp2_option_set_user_recv_extension_type(opt, (uint8_t)type);
    nghttp2_session_callbacks_set_send_data_callback(cb, h2_stream_send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(cb, h2_stream_frame_length);
    nghttp2_option_set_no_auto_window_update(opt, 1);
    nghttp2_option_set_no_closed_streams(opt, 1);
    nghttp2_option_set_max_outbound_ack(opt, H2_OUTBOUND_ACKS_MAX);
    nghttp2_option_set_max_deflate_dynamic_table_size(opt, s->cfg.header_table_bytes);
    if (s->role == ZT_H2_CLIENT)
        nghttp2_option_set_peer_max_concurrent_streams(opt, s->cfg.streams_max);
    /* Envoy ends every stream with a reset (spec/dataplane §15), so resets as such are no attack; ours are counted above. */
    nghttp2_option_set_max_continuations(opt, 2 * H2_CONTINUATIONS_MAX); /* on_begin_frame is stricter */
    nghttp2_option_set_stream_reset_rate_limit(opt, UINT32_MAX, UINT32_MAX);
    nghttp2_mem mem = h2_mem(s);
    int rc = s->role == ZT_H2_CLIENT ? nghttp2_session_client_new3(&ng, cb, s, opt, &mem)
                                     : nghttp2_session_server_new3(&ng, cb, s, opt, &mem);
    ZT_ASSERT(rc == 0);
    nghttp2_option_del(opt);
    nghttp2_session_callbacks_del(cb);
    return ng;
}

/* ---- reading ---- */

/* Hands out what the callbacks noted: header blocks first (they came before the data), then DATA, then ends. */
static void hand_out(struct zt_h2_session *s)
{
    h2_session_tell_ready(s);
    s->flood.pending_resets = 0;
    while (s->next_chunk < s->n_chunks) {
        struct h2_chunk *c = &s->chunks[s->next_chunk++];
        if (c->st)
            h2_stream_deliver(c->st, c->data, c->len, true);
    }
    s->next_chunk = s->n_chunks = 0;
}

static void fail_feed(struct zt_h2_session *s, ssize_t error)
{
    if (s->flooded || error == NGHTTP2_ERR_FLOODED) {
        nghttp2_session_terminate_session(s->ng, NGHTTP2_ENHANCE_YOUR_CALM);
        h2_session_send(s);
        h2_session_fail(s, ZT_H2, "too many frames without use from the peer");
        return;
    }
    h2_session_fail(s, ZT_H2, nghttp2_strerror((int)error));
}

static void spend(size_t *budget, size_t cost)
{
    *budget = cost < *budget ? *budget - cost : 0;
}

/* *fed: how much of data was taken, less than all of it when the turn's budget is used up. False: the session must not be touched
 * below any more. */
static bool feed(struct zt_h2_session *s, const uint8_t *data, size_t len, size_t *fed, size_t *budget)
{
    size_t off = 0;
    bool paused;
    do {
        ssize_t n = nghttp2_session_mem_recv(s->ng, data + off, len - off);
        if (n < 0) {
            fail_feed(s, n);
            return false;
        }
        off += (size_t)n;
        while (s->n_refused > 0)
            nghttp2_submit_rst_stream(s->ng, NGHTTP2_FLAG_NONE, s->refused[--s->n_refused], NGHTTP2_REFUSED_STREAM);
        paused = s->n_chunks == H2_CHUNKS_MAX;
        spend(budget, (size_t)n + s->n_chunks * H2_CHUNK_COST_BYTES);
        hand_out(s);
        if (s->over || s->failed)
            return false;
        if (*budget == 0 && off < len)
            break;
    } while (off < len || paused); /* a pause at the very end leaves the end of a frame to be noticed */
    *fed = off;
    return true;
}

static void lower_ended(struct zt_h2_session *s, enum zt_err e)
{
    bool fresh = !s->settings_received;
    enum zt_err code = fresh ? ZT_H2_HANDSHAKE : ZT_H2;
    if (e == ZT_EOF || e == ZT_RESET) {
        bool orderly = s->goaway_received || s->draining || s->role == ZT_H2_SERVER;
        if (e == ZT_EOF && orderly && !h2_session_any_open(s))
            code = ZT_OK;
        h2_session_fail(s, code, e == ZT_EOF ? "connection closed by the peer" : "connection reset by the peer");
    } else {
        char text[64];
        snprintf(text, sizeof text, "connection lost: %s", zt_err_name(e));
        h2_session_fail(s, fresh && e == ZT_TLS ? ZT_TLS : code, text); /* how a server of TLS 1.3 refuses our certificate */
    }
}

/* Shows what the lower stream has, and as long as more is to be had at once, more of it in the same piece: several records of
 * DATA are handed out together. */
static enum zt_err gather(struct zt_h2_session *s, uint8_t **data, size_t *len)
{
    enum zt_err e = zt_stream_peek(s->lower, 0, data, len);
    while (e == ZT_OK && *len < H2_READ_GATHER_BYTES) {
        if (zt_stream_peek(s->lower, *len, data, len) != ZT_OK)
            return zt_stream_peek(s->lower, 0, data, len); /* what was shown before is still unread */
    }
    return e;
}

void h2_recv_read(struct zt_h2_session *s)
{
    struct h2_chunk chunks[H2_CHUNKS_MAX];
    size_t budget = H2_READ_TURN_BYTES;
    s->chunks = chunks;
    s->unfed = false;
    while (budget > 0 && !s->over && !s->failed) {
        uint8_t *data;
        size_t len;
        enum zt_err e = gather(s, &data, &len);
        if (e == ZT_AGAIN)
            break;
        if (e != ZT_OK) {
            lower_ended(s, e);
            break;
        }
        size_t fed;
        if (!feed(s, data, len, &fed, &budget))
            break;
        zt_stream_consume(s->lower, fed);
        s->unfed = fed < len;
    }
    s->chunks = NULL;
    s->n_chunks = s->next_chunk = 0;
    if (s->unfed) /* the lower stream has shown these bytes and will not tell of them again */
        h2_session_soon(s);
}
