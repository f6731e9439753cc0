/* One CONNECT stream as a byte pipe.
 *
 * Invariants:
 * - Unread bytes are in one piece: either `direct` (in the lower stream's buffer, only while the owner is being told) or the queue,
 *   never both. The queue is bounded by the stream window, which nghttp2 enforces, and freed when empty.
 * - Writing frames at once, from the caller's memory; nothing accepted waits here. Only END_STREAM may wait.
 * - A struct whose owner has closed it stays as an orphan while its END_STREAM has not gone out, then it is freed.
 *
 *   receiving: open -> END_STREAM or a reset that means an ordinary end: EOF | other reset: error | session lost: error
 *   sending:   open -> shut (END_STREAM wanted) -> end_sent
 *
 * What the owner is told, in this order: the header block, failure (request or abort), readiness. */
#include "h2_impl.h"

#include <stdio.h>
#include <string.h>

#define QUEUE_BYTES_MIN 4096

static const struct zt_stream_ops pipe_ops;

static struct zt_h2_stream *from_pipe(struct zt_stream *p)
{
    ZT_ASSERT(p->ops == &pipe_ops);
    return zt_container_of(p, struct zt_h2_stream, pipe);
}

/* ---- reset codes (docs/halfclose.md) ---- */

static bool is_cut(enum zt_err why)
{
    return why == ZT_POLICY_CHANGED || why == ZT_POLICY_REJECTED || why == ZT_REVOKED || why == ZT_DRAINED ||
           why == ZT_POOL_DRAINING || why == ZT_H2 || why == ZT_IO || why == ZT_TIMEOUT;
}

uint32_t h2_reset_code(const struct zt_h2_stream *st, enum zt_err why)
{
    if (is_cut(why))
        return NGHTTP2_INTERNAL_ERROR; /* the peer must not take the rest for the whole */
    return st->s->role == ZT_H2_SERVER && st->end_sent ? NGHTTP2_NO_ERROR : NGHTTP2_CANCEL;
}

enum zt_err h2_reset_meaning(uint32_t code)
{
    switch (code) {
    case NGHTTP2_NO_ERROR:
    case NGHTTP2_CANCEL:
    case NGHTTP2_CONNECT_ERROR:
        return ZT_EOF;
    case NGHTTP2_STREAM_CLOSED:
        return ZT_RESET;
    default:
        return ZT_H2;
    }
}

/* ---- life ---- */

struct zt_h2_stream *h2_stream_new(struct zt_h2_session *s, int32_t id)
{
    struct zt_h2_stream *st = zt_new(struct zt_h2_stream);
    st->pipe.ops = &pipe_ops;
    st->s = s;
    st->id = id;
    st->open = true;
    zt_list_push_back(&s->streams, &st->all_link);
    s->n_streams++;
    return st;
}

static void queue_account(struct zt_h2_stream *st, size_t cap)
{
    struct zt_h2_budget *b = st->carrier ? NULL : st->s->cfg.budget;
    st->s->queued_bytes += cap - st->queue_cap;
    if (b) {
        b->used += cap - st->queue_cap;
        if (!cap)
            zt_list_remove(&st->holder_link);
        else if (!zt_link_linked(&st->holder_link))
            zt_list_push_back(&b->holders, &st->holder_link);
    }
    st->queue_cap = cap;
}

static void queue_free(struct zt_h2_stream *st)
{
    zt_free(st->queue);
    queue_account(st, 0);
    st->queue = NULL;
    st->queue_off = st->queue_len = 0;
}

static void block_free(struct zt_h2_stream *st)
{
    if (!st->block)
        return;
    st->s->waiting_block_bytes -= st->block_bytes;
    zt_free(st->block);
    st->block = NULL;
}

static void forget_chunks(struct zt_h2_stream *st)
{
    struct zt_h2_session *s = st->s;
    for (unsigned i = s->next_chunk; st->n_chunks > 0 && i < s->n_chunks; i++) {
        if (s->chunks[i].st == st) {
            s->chunks[i].st = NULL;
            st->n_chunks--;
        }
    }
}

/* What was received is not to be delivered any more. */
static void drop_unread(struct zt_h2_stream *st)
{
    queue_free(st);
    forget_chunks(st);
    st->shown = 0;
    st->end_shown = false;
}

/* Its owner is done with it: nothing is told any more. */
static void detach_owner(struct zt_h2_stream *st)
{
    ZT_ASSERT(!st->closed);
    st->closed = true;
    st->request = NULL;
    st->on_abort = NULL;
    st->want = 0;
    st->direct = NULL;
    st->direct_len = 0;
    forget_chunks(st);
    block_free(st);
    queue_free(st);
    zt_list_remove(&st->ready_link);
    zt_list_remove(&st->writer_link);
    st->s->n_streams--;
    st->s->stream_closed = true;
    h2_session_soon(st->s);
}

static void stream_free(struct zt_h2_stream *st)
{
    struct zt_h2_session *s = st->s;
    zt_list_remove(&st->all_link);
    zt_loop_defer_zt_free(s->loop, st);
    h2_session_release(s);
}

void h2_stream_drop(struct zt_h2_stream *st)
{
    detach_owner(st);
    stream_free(st);
}

void h2_stream_mark(struct zt_h2_stream *st)
{
    if (!zt_link_linked(&st->ready_link))
        zt_list_push_back(&st->s->ready, &st->ready_link);
    h2_session_soon(st->s);
}

/* The owner leaves. An END_STREAM that was promised goes out first; nghttp2 then closes the stream, or end_sent resets it. */
static void leave(struct zt_h2_stream *st, enum zt_err why)
{
    struct zt_h2_session *s = st->s;
    bool wait_for_end = st->open && st->shut && !st->end_sent && !is_cut(why);
    detach_owner(st);
    if (wait_for_end)
        return;
    if (st->open) {
        st->open = false;
        nghttp2_session_set_stream_user_data(s->ng, st->id, NULL);
        nghttp2_submit_rst_stream(s->ng, NGHTTP2_FLAG_NONE, st->id, h2_reset_code(st, why));
    }
    stream_free(st);
}

void h2_stream_gone(struct zt_h2_stream *st, uint32_t code, enum zt_err end)
{
    struct zt_h2_session *s = st->s;
    if (!st->open)
        return;
    st->open = false;
    st->code = code;
    if (st->closed) {
        stream_free(st);
        return;
    }
    if (s->role == ZT_H2_SERVER && !st->handed_out) {
        h2_stream_drop(st); /* nobody has heard of it */
        return;
    }
    if (end == ZT_REVOKED && !st->carrier) { /* not a byte more of it */
        drop_unread(st);
        st->end = end;
    }
    if (st->end == ZT_OK)
        st->end = end != ZT_OK ? end : h2_reset_meaning(code);
    h2_stream_mark(st);
}

void h2_stream_ended(struct zt_h2_stream *st)
{
    if (st->closed || st->end != ZT_OK)
        return;
    st->end = ZT_EOF;
    h2_stream_mark(st);
}

void h2_stream_end_sent(struct zt_h2_stream *st)
{
    st->end_sent = true;
    if (st->closed && st->end == ZT_OK) /* nobody will read the rest */
        nghttp2_submit_rst_stream(st->s->ng, NGHTTP2_FLAG_NONE, st->id, h2_reset_code(st, ZT_OK));
}

/* ---- telling the owner ---- */

static void fill_headers(struct zt_h2_stream *st, struct zt_h2_header list[static ZT_H2_HEADERS_MAX])
{
    const char *p = st->block;
    for (unsigned i = 0; i < st->block_n; i++) {
        list[i].name = p;
        p += strlen(p) + 1;
        list[i].value = p;
        p += strlen(p) + 1;
    }
}

static unsigned status_of(const struct zt_h2_headers *h)
{
    const char *text = zt_h2_headers_find(h, ":status");
    unsigned status = 0;
    for (unsigned i = 0; text && i < 3 && text[i] >= '0' && text[i] <= '9'; i++)
        status = status * 10 + (unsigned)(text[i] - '0');
    return status;
}

static void tell_headers(struct zt_h2_stream *st)
{
    struct zt_h2_session *s = st->s;
    struct zt_h2_header list[ZT_H2_HEADERS_MAX];
    struct zt_h2_headers h = {list, st->block_n};
    char *block = st->block;
    fill_headers(st, list);
    st->block = NULL;
    s->waiting_block_bytes -= st->block_bytes;
    if (s->role == ZT_H2_SERVER) {
        st->handed_out = true;
        if (s->owner)
            s->owner->on_request(s->owner, st, &h);
        else
            leave(st, ZT_H2);
    } else {
        struct zt_h2_request *r = st->request;
        struct zt_error ok = ZT_ERROR_INIT;
        st->request = NULL;
        st->answered = true;
        r->on_response(r, st, status_of(&h), &h, &ok);
    }
    zt_free(block);
}

/* The request will not be answered any more. */
static void tell_no_response(struct zt_h2_stream *st)
{
    struct zt_h2_request *r = st->request;
    struct zt_error err = ZT_ERROR_INIT;
    if (st->end == ZT_REVOKED)
        err.code = ZT_REVOKED;
    else if (st->code == NGHTTP2_REFUSED_STREAM) /* also how nghttp2 closes what a GOAWAY leaves out */
        zt_error_set(&err, ZT_AGAIN, "stream not processed by the peer");
    else if (st->s->over && st->s->why)
        err = *st->s->why;
    else
        zt_error_set(&err, ZT_H2, "stream ended before the response: %s", nghttp2_http2_strerror(st->code));
    if (err.code == ZT_OK)
        zt_error_set(&err, ZT_H2, "connection closed");
    st->request = NULL;
    h2_stream_drop(st);
    r->on_response(r, NULL, 0, NULL, &err);
}

static size_t unread(const struct zt_h2_stream *st)
{
    return st->direct_len + st->queue_len;
}

static bool readable(const struct zt_h2_stream *st)
{
    return unread(st) > st->shown || (st->end != ZT_OK && !st->end_shown && st->n_chunks == 0);
}

bool h2_stream_writable(const struct zt_h2_stream *st)
{
    const struct zt_h2_session *s = st->s;
    if (!st->open)
        return true; /* writing tells the error */
    if (s->spill || s->over || (s->role == ZT_H2_SERVER && !st->answered))
        return false;
    return nghttp2_session_get_remote_window_size(s->ng) > 0 &&
           nghttp2_session_get_stream_remote_window_size(s->ng, st->id) > 0;
}

static void tell_ready(struct zt_h2_stream *st)
{
    unsigned events = 0;
    bool cut = (st->end == ZT_LIMIT || st->end == ZT_REVOKED) && !st->end_shown && st->pipe.owner;
    if (((st->want & ZT_STREAM_READABLE) || cut) && readable(st))
        events |= ZT_STREAM_READABLE;
    if ((st->want & ZT_STREAM_WRITABLE) && st->write_due && h2_stream_writable(st)) {
        events |= ZT_STREAM_WRITABLE;
        st->write_due = false;
    }
    if (!events)
        return;
    st->pipe.owner->on_ready(st->pipe.owner, &st->pipe, events);
    if (!st->closed && (st->want & ZT_STREAM_READABLE) && readable(st))
        h2_stream_mark(st); /* until it has been seen */
}

void h2_stream_tell(struct zt_h2_stream *st)
{
    if (st->block) {
        tell_headers(st);
        if (st->closed)
            return;
    }
    if (st->s->role == ZT_H2_CLIENT && st->request) {
        if (!st->open || st->end != ZT_OK)
            tell_no_response(st);
        return;
    }
    if (!st->open && !st->answered && st->on_abort && !st->abort_told) {
        st->abort_told = true;
        st->on_abort(st->abort_arg);
        return;
    }
    tell_ready(st);
}

/* ---- receiving ---- */

/* Doubles, but never beyond the window, which is all there can be. */
static size_t queue_grown(const struct zt_h2_stream *st, size_t need)
{
    size_t cap = st->queue_cap ? st->queue_cap : QUEUE_BYTES_MIN, window = st->s->cfg.stream_window_bytes;
    while (cap < need)
        cap *= 2;
    return cap > window && need <= window ? window : cap;
}

/* Resets the stream and drops what waits in it: its owner does not read, and others need the room. */
static void shed(struct zt_h2_stream *st)
{
    struct zt_h2_session *s = st->s;
    drop_unread(st);
    st->end = ZT_LIMIT;
    st->code = NGHTTP2_ENHANCE_YOUR_CALM;
    if (st->open) {
        st->open = false;
        nghttp2_session_set_stream_user_data(s->ng, st->id, NULL);
        nghttp2_submit_rst_stream(s->ng, NGHTTP2_FLAG_NONE, st->id, st->code);
    }
    s->cfg.budget->on_shed(s->cfg.budget);
    h2_stream_mark(st);
}

static void shed_newest(struct zt_h2_budget *b)
{
    while (b && b->used > b->max && !zt_list_empty(&b->holders))
        shed(zt_container_of(zt_list_last(&b->holders), struct zt_h2_stream, holder_link));
}

/* The stream, and others, may have been shed afterwards. */
static void queue_add(struct zt_h2_stream *st, const uint8_t *data, size_t len)
{
    size_t need = st->queue_len + len;
    if (st->queue_off + need > st->queue_cap && st->queue_off > 0 && (need > st->queue_cap || st->queue_off >= st->queue_cap / 2)) {
        memmove(st->queue, st->queue + st->queue_off, st->queue_len);
        st->queue_off = 0;
    }
    if (st->queue_off + need > st->queue_cap) {
        size_t cap = queue_grown(st, st->queue_off + need);
        st->queue = zt_realloc(st->queue, cap);
        queue_account(st, cap);
    }
    memcpy(st->queue + st->queue_off + st->queue_len, data, len);
    st->queue_len = need;
    shed_newest(st->s->cfg.budget);
}

void h2_stream_deliver(struct zt_h2_stream *st, uint8_t *data, size_t len, bool tell)
{
    st->n_chunks--;
    if (st->closed)
        return;
    if (!tell || st->queue_len > 0 || !(st->want & ZT_STREAM_READABLE)) {
        queue_add(st, data, len);
        h2_stream_mark(st);
        return;
    }
    st->direct = data;
    st->direct_len = len;
    tell_ready(st);
    if (!st->closed && st->direct_len > 0) {
        data = st->direct;
        len = st->direct_len;
        st->direct_len = 0;
        queue_add(st, data, len);
    }
    st->direct = NULL;
}

static enum zt_err pipe_peek(struct zt_stream *p, size_t seen, uint8_t **data, size_t *len)
{
    struct zt_h2_stream *st = from_pipe(p);
    if (unread(st) > seen) {
        *data = st->direct_len > 0 ? st->direct : st->queue + st->queue_off;
        *len = st->shown = unread(st);
        return ZT_OK;
    }
    if (st->end == ZT_OK || st->n_chunks > 0)
        return ZT_AGAIN;
    st->end_shown = true;
    return st->end;
}

/* Credit goes back in quarters of the window: few WINDOW_UPDATEs, and the peer always has most of its window. */
static void give_credit(struct zt_h2_stream *st, size_t n)
{
    struct zt_h2_session *s = st->s;
    st->credit += (uint32_t)n;
    if (!st->open || st->end != ZT_OK || st->credit < s->cfg.stream_window_bytes / 4)
        return;
    nghttp2_submit_window_update(s->ng, NGHTTP2_FLAG_NONE, st->id, (int32_t)st->credit);
    st->credit = 0;
    h2_session_soon(s);
}

static void pipe_consume(struct zt_stream *p, size_t n)
{
    struct zt_h2_stream *st = from_pipe(p);
    ZT_ASSERT(n <= unread(st));
    if (st->direct_len > 0) {
        st->direct += n;
        st->direct_len -= n;
    } else {
        st->queue_off += n;
        st->queue_len -= n;
        if (st->queue_len == 0)
            queue_free(st);
    }
    st->shown = st->shown > n ? st->shown - n : 0;
    give_credit(st, n);
    if ((st->want & ZT_STREAM_READABLE) && readable(st))
        h2_stream_mark(st);
}

/* ---- sending ---- */

static enum zt_err write_error(const struct zt_h2_stream *st)
{
    enum zt_err e = st->end != ZT_EOF && st->end != ZT_OK ? st->end : h2_reset_meaning(st->code);
    return e == ZT_EOF ? ZT_RESET : e;
}

/* Takes as much as fills whole TLS records, counting what is gathered in front of it; less than a record, all of it. */
static size_t frame_bytes(const struct zt_h2_session *s, size_t available, size_t length)
{
    size_t n = available < length ? available : length;
    size_t lead = s->gather_len + H2_FRAME_HEADER_BYTES;
    size_t records = (lead + n) / H2_RECORD_BYTES;
    return records > 0 && records * H2_RECORD_BYTES > lead ? records * H2_RECORD_BYTES - lead : n;
}

ssize_t h2_stream_source(nghttp2_session *ng, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
                         nghttp2_data_source *source, void *user)
{
    struct zt_h2_session *s = user;
    struct zt_h2_stream *st = source->ptr;
    if (st == s->writing && st->out_left > 0 && !s->spill) {
        size_t room = st->out_left, gathered = 0;
        int first = 0;
        size_t skip = st->out_off;
        while (skip >= st->out[first].iov_len)
            skip -= st->out[first++].iov_len;
        for (int i = first; i < st->n_out && i < first + H2_IOV_MAX - 2; i++)
            gathered += st->out[i].iov_len - (i == first ? skip : 0);
        if (gathered < room)
            room = gathered;
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
        return (ssize_t)frame_bytes(s, room, length);
    }
    if (!st->shut)
        return NGHTTP2_ERR_DEFERRED;
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    return 0;
}

int h2_stream_send_data(nghttp2_session *ng, nghttp2_frame *frame, const uint8_t *header, size_t length,
                        nghttp2_data_source *source, void *user)
{
    struct zt_h2_session *s = user;
    struct zt_h2_stream *st = source->ptr;
    struct iovec iov[H2_IOV_MAX];
    int n = 0, i = 0;
    size_t skip = st->out_off, left = length;
    ZT_ASSERT(frame->data.padlen == 0 && length <= st->out_left);
    if (s->gather_len > 0)
        iov[n++] = (struct iovec){s->gather, s->gather_len};
    iov[n++] = (struct iovec){(void *)(uintptr_t)header, H2_FRAME_HEADER_BYTES};
    while (skip >= st->out[i].iov_len)
        skip -= st->out[i++].iov_len;
    for (; left > 0; i++, skip = 0) {
        size_t part = st->out[i].iov_len - skip;
        if (part > left)
            part = left;
        ZT_ASSERT(n < H2_IOV_MAX);
        iov[n++] = (struct iovec){(uint8_t *)st->out[i].iov_base + skip, part};
        left -= part;
    }
    s->gather_len = 0;
    st->out_off += length;
    st->out_left -= length;
    st->out_done += length;
    h2_session_put(s, iov, n);
    return s->spill ? NGHTTP2_ERR_PAUSE : 0;
}

ssize_t h2_stream_frame_length(nghttp2_session *ng, uint8_t type, int32_t id, int32_t session_window,
                               int32_t stream_window, uint32_t frame_max, void *user)
{
    struct zt_h2_session *s = user;
    size_t length = H2_RECORD_BYTES;
    /* nghttp2 sizes its own buffer after this, so ask for more than the default only when there is more. */
    if (s->writing && s->writing->id == id && s->writing->out_left > H2_RECORD_BYTES)
        length = H2_DATA_FRAME_BYTES - H2_FRAME_HEADER_BYTES;
    return (ssize_t)(length < frame_max ? length : frame_max);
}

static enum zt_err pipe_writev(struct zt_stream *p, const struct iovec *iov, int n_iov, size_t *accepted)
{
    struct zt_h2_stream *st = from_pipe(p);
    struct zt_h2_session *s = st->s;
    *accepted = 0;
    if (!st->open)
        return write_error(st);
    ZT_ASSERT(!st->shut);
    st->out = iov;
    st->n_out = n_iov;
    st->out_off = st->out_left = st->out_done = 0;
    for (int i = 0; i < n_iov; i++)
        st->out_left += iov[i].iov_len;
    if (st->out_left == 0)
        return ZT_OK;
    if (h2_stream_writable(st) && !s->sending) {
        s->writing = st;
        nghttp2_session_resume_data(s->ng, st->id);
        h2_session_send(s);
        s->writing = NULL;
    }
    *accepted = st->out_done;
    st->write_due = st->out_left > 0;
    st->out = NULL;
    if (*accepted > 0)
        return ZT_OK;
    return st->open ? ZT_AGAIN : write_error(st);
}

static enum zt_err pipe_shutdown_write(struct zt_stream *p)
{
    struct zt_h2_stream *st = from_pipe(p);
    if (st->shut)
        return ZT_OK;
    if (!st->open) {
        st->shut = true;
        return st->code == NGHTTP2_NO_ERROR || st->code == NGHTTP2_CONNECT_ERROR ? ZT_OK : write_error(st);
    }
    st->shut = true;
    nghttp2_session_resume_data(st->s->ng, st->id);
    h2_session_soon(st->s);
    return ZT_OK;
}

static void pipe_want(struct zt_stream *p, unsigned events)
{
    struct zt_h2_stream *st = from_pipe(p);
    unsigned added = events & ~(unsigned)st->want;
    st->want = (uint8_t)events;
    if (added & ZT_STREAM_READABLE) { /* a new owner has seen nothing */
        st->shown = 0;
        st->end_shown = false;
    }
    if ((events & ZT_STREAM_READABLE) && readable(st))
        h2_stream_mark(st);
    if (!(events & ZT_STREAM_WRITABLE)) {
        zt_list_remove(&st->writer_link);
        return;
    }
    if (added & ZT_STREAM_WRITABLE)
        st->write_due = true;
    if (!zt_link_linked(&st->writer_link))
        zt_list_push_back(&st->s->writers, &st->writer_link);
    if (st->write_due && h2_stream_writable(st))
        h2_stream_mark(st);
}

static bool pipe_flushed(struct zt_stream *p)
{
    struct zt_h2_stream *st = from_pipe(p);
    if (!st->open)
        return true;
    return !st->s->spill && (!st->shut || st->end_sent) && zt_stream_flushed(st->s->lower);
}

static void pipe_close(struct zt_stream *p, enum zt_err why)
{
    leave(from_pipe(p), why);
}

static const char *pipe_error_text(struct zt_stream *p)
{
    const struct zt_h2_stream *st = from_pipe(p);
    if (st->s->over && st->s->why)
        return st->s->why->text;
    return st->open ? NULL : nghttp2_http2_strerror(st->code);
}

static const struct zt_stream_ops pipe_ops = {
    .error_text = pipe_error_text,
    .kind = "h2",
    .peek = pipe_peek,
    .consume = pipe_consume,
    .writev = pipe_writev,
    .shutdown_write = pipe_shutdown_write,
    .want = pipe_want,
    .flushed = pipe_flushed,
    .close = pipe_close,
};

/* ---- requests and responses ---- */

const char *zt_h2_headers_find(const struct zt_h2_headers *h, const char *name)
{
    for (unsigned i = 0; i < h->n; i++) {
        if (strcmp(h->list[i].name, name) == 0)
            return h->list[i].value;
    }
    return NULL;
}

static nghttp2_nv make_nv(const char *name, const char *value)
{
    return (nghttp2_nv){.name = (uint8_t *)(uintptr_t)name,
                        .value = (uint8_t *)(uintptr_t)value,
                        .namelen = strlen(name),
                        .valuelen = strlen(value),
                        .flags = NGHTTP2_NV_FLAG_NONE};
}

struct zt_h2_stream *zt_h2_request(struct zt_h2_session *s, const struct zt_h2_header *headers, unsigned n,
                                   struct zt_h2_request *r)
{
    nghttp2_nv nv[ZT_H2_HEADERS_MAX];
    ZT_ASSERT(n <= ZT_H2_HEADERS_MAX);
    if (!zt_h2_session_usable(s))
        return NULL;
    for (unsigned i = 0; i < n; i++)
        nv[i] = make_nv(headers[i].name, headers[i].value);
    struct zt_h2_stream *st = h2_stream_new(s, 0);
    nghttp2_data_provider source = {.source.ptr = st, .read_callback = h2_stream_source};
    st->request = r;
    st->id = nghttp2_submit_request(s->ng, NULL, nv, n, &source, st);
    if (st->id < 0) { /* out of stream ids */
        h2_stream_drop(st);
        return NULL;
    }
    h2_session_soon(s);
    return st;
}

void zt_h2_respond(struct zt_h2_stream *st, unsigned status, const struct zt_h2_header *headers, unsigned n, bool end)
{
    nghttp2_nv nv[ZT_H2_HEADERS_MAX];
    char text[16];
    ZT_ASSERT(n < ZT_H2_HEADERS_MAX && !st->answered && st->s->role == ZT_H2_SERVER && status >= 200 && status < 600);
    snprintf(text, sizeof text, "%u", status);
    nv[0] = make_nv(":status", text);
    for (unsigned i = 0; i < n; i++)
        nv[i + 1] = make_nv(headers[i].name, headers[i].value);
    st->answered = true;
    if (st->open) {
        nghttp2_data_provider source = {.source.ptr = st, .read_callback = h2_stream_source};
        nghttp2_submit_response(st->s->ng, st->id, nv, n + 1, end ? NULL : &source);
        h2_session_soon(st->s);
    }
    if (end) {
        st->shut = true;
        leave(st, ZT_OK);
    } else if (st->write_due && (st->want & ZT_STREAM_WRITABLE)) {
        h2_stream_mark(st);
    }
}

void zt_h2_stream_carry(struct zt_h2_stream *st)
{
    size_t cap = st->queue_cap;
    queue_account(st, 0);
    st->carrier = true;
    queue_account(st, cap);
}

struct zt_stream *zt_h2_stream_pipe(struct zt_h2_stream *st)
{
    return &st->pipe;
}

void zt_h2_stream_on_abort(struct zt_h2_stream *st, void (*fn)(void *arg), void *arg)
{
    st->on_abort = fn;
    st->abort_arg = arg;
    if (fn && !st->open)
        h2_stream_mark(st);
}
