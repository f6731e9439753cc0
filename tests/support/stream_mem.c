/* Two ends, one allocation, freed when both are closed. Each end owns the bytes on their way *to*
 * it:
 *
 *     data[off .. off+shown)      peek has revealed them
 *     data[off+shown .. off+len)  written, not revealed yet
 *
 * end is what a reader meets behind data; it is set by the other end's shutdown or close, or
 * injected. */
#include "support/stream_mem.h"
#include "zt/base/mem.h"
#include <string.h>

#define CAPACITY_DEFAULT_BYTES (64 * 1024)
#define PIECE_MAX_BYTES 2000

struct mem_pair;

struct mem_end {
    struct zt_stream base;
    struct mem_pair *pair;
    struct mem_end *other;
    struct zt_task soon;
    uint8_t *data;
    size_t off, len, shown, reported; /* reported: how much the owner has seen */
    enum zt_err end, write_error, closed_why;
    unsigned wanted;
    bool end_reported, shut, closed, blocked, writes_blocked, writable_due;
};

struct mem_pair {
    struct zt_deferred deferred;
    struct zt_loop *loop;
    struct zt_mem_opts opts;
    uint32_t random;
    struct mem_end ends[2];
};

static const struct zt_stream_ops mem_ops;

static struct mem_end *from_stream(const struct zt_stream *s)
{
    ZT_ASSERT(s->ops == &mem_ops);
    struct mem_end *e = zt_container_of((struct zt_stream *)(uintptr_t)s, struct mem_end, base);
    ZT_ASSERT(!e->closed);
    return e;
}

static size_t random_up_to(struct mem_pair *p, size_t max)
{
    p->random = p->random * 1664525u + 1013904223u;
    return 1 + (p->random >> 8) % max;
}

static bool unseen(const struct mem_end *e)
{
    return e->len > e->reported || (e->end != ZT_OK && !e->end_reported);
}

static void update(struct mem_end *e)
{
    if (!e->closed && (((e->wanted & ZT_STREAM_READABLE) && unseen(e)) || e->writable_due))
        zt_loop_soon(e->pair->loop, &e->soon);
}

static void on_soon(struct zt_task *task)
{
    struct mem_end *e = zt_container_of(task, struct mem_end, soon);
    unsigned events = 0;
    if ((e->wanted & ZT_STREAM_READABLE) && unseen(e))
        events |= ZT_STREAM_READABLE;
    if ((e->wanted & ZT_STREAM_WRITABLE) && e->writable_due)
        events |= ZT_STREAM_WRITABLE;
    e->writable_due = false;
    update(e);
    if (events)
        e->base.owner->on_ready(e->base.owner, &e->base, events);
}

/* A write would be taken again. */
static void wake_writer(struct mem_end *e)
{
    if (!e->blocked)
        return;
    e->blocked = false;
    e->writable_due = (e->wanted & ZT_STREAM_WRITABLE) != 0;
    update(e);
}

static enum zt_err mem_peek(struct zt_stream *s, size_t seen, uint8_t **data, size_t *len)
{
    struct mem_end *e = from_stream(s);
    if (e->shown <= seen && e->len > e->shown) {
        size_t more = e->len - e->shown;
        size_t piece = e->pair->opts.delivery == ZT_MEM_ALL ? more
                       : e->pair->opts.delivery == ZT_MEM_BYTE
                           ? 1
                           : random_up_to(e->pair, PIECE_MAX_BYTES);
        e->shown += piece < more ? piece : more;
    }
    if (e->shown > seen) {
        *data = e->data + e->off;
        *len = e->reported = e->shown;
        return ZT_OK;
    }
    if (e->end == ZT_OK || e->len > e->shown)
        return ZT_AGAIN;
    e->end_reported = true;
    return e->end;
}

static void mem_consume(struct zt_stream *s, size_t n)
{
    struct mem_end *e = from_stream(s);
    ZT_ASSERT(n <= e->shown);
    e->off += n;
    e->len -= n;
    e->shown -= n;
    e->reported = e->reported > n ? e->reported - n : 0;
    if (n > 0 && !e->other->writes_blocked)
        wake_writer(e->other);
    update(e);
}

static enum zt_err mem_writev(struct zt_stream *s, const struct iovec *iov, int n_iov,
                              size_t *accepted)
{
    struct mem_end *e = from_stream(s), *to = e->other;
    size_t room = e->pair->opts.capacity_bytes - to->len;
    *accepted = 0;
    ZT_ASSERT(!e->shut);
    if (e->write_error != ZT_OK)
        return e->write_error;
    if (to->closed)
        return ZT_RESET;
    if (e->writes_blocked)
        room = 0;
    size_t total = 0;
    for (int i = 0; i < n_iov; i++)
        total += iov[i].iov_len;
    if (total == 0)
        return ZT_OK;
    size_t take = total < room ? total : room;
    if (e->pair->opts.delivery == ZT_MEM_RANDOM && take > 1)
        take = random_up_to(e->pair, take);
    if (to->off + to->len + take > e->pair->opts.capacity_bytes) {
        memmove(to->data, to->data + to->off, to->len);
        to->off = 0;
    }
    for (int i = 0; i < n_iov && *accepted < take; i++) {
        size_t n = iov[i].iov_len < take - *accepted ? iov[i].iov_len : take - *accepted;
        memcpy(to->data + to->off + to->len, iov[i].iov_base, n);
        to->len += n;
        *accepted += n;
    }
    update(to);
    if (*accepted == total)
        return ZT_OK;
    if (*accepted < room) { /* cut by chance only */
        e->writable_due = (e->wanted & ZT_STREAM_WRITABLE) != 0;
        update(e);
    }
    e->blocked = true;
    return *accepted ? ZT_OK : ZT_AGAIN;
}

static enum zt_err mem_shutdown_write(struct zt_stream *s)
{
    struct mem_end *e = from_stream(s);
    if (e->shut)
        return ZT_OK;
    e->shut = true;
    if (e->write_error != ZT_OK)
        return e->write_error;
    if (e->other->end == ZT_OK)
        e->other->end = ZT_EOF;
    update(e->other);
    return ZT_OK;
}

static void mem_want(struct zt_stream *s, unsigned events)
{
    struct mem_end *e = from_stream(s);
    unsigned added = events & ~e->wanted;
    e->wanted = events;
    if (added & ZT_STREAM_READABLE) {
        e->reported = 0;
        e->end_reported = false;
    }
    if (added & ZT_STREAM_WRITABLE) {
        bool room = e->pair->opts.capacity_bytes > e->other->len && !e->writes_blocked;
        e->writable_due = room || e->other->closed || e->write_error != ZT_OK;
        e->blocked = !e->writable_due;
    }
    if (!(events & ZT_STREAM_WRITABLE))
        e->writable_due = false;
    update(e);
}

static bool mem_flushed(struct zt_stream *s)
{
    return true;
}

static void free_pair(struct zt_deferred *d)
{
    struct mem_pair *p = zt_container_of(d, struct mem_pair, deferred);
    zt_free(p->ends[0].data);
    zt_free(p->ends[1].data);
    zt_free(p);
}

static void mem_close(struct zt_stream *s, enum zt_err why)
{
    struct mem_end *e = from_stream(s), *other = e->other;
    e->closed = true;
    e->closed_why = why;
    zt_task_cancel(&e->soon);
    if (other->closed) {
        zt_loop_defer_free(e->pair->loop, &e->pair->deferred);
        return;
    }
    if (other->end == ZT_OK)
        other->end = why == ZT_OK ? ZT_EOF : ZT_RESET;
    wake_writer(other);
    update(other);
}

static const struct zt_stream_ops mem_ops = {
    .kind = "mem",
    .peek = mem_peek,
    .consume = mem_consume,
    .writev = mem_writev,
    .shutdown_write = mem_shutdown_write,
    .want = mem_want,
    .flushed = mem_flushed,
    .close = mem_close,
};

void zt_mem_pair(struct zt_loop *l, const struct zt_mem_opts *o, struct zt_stream **a,
                 struct zt_stream **b)
{
    struct mem_pair *p = zt_new(struct mem_pair);
    p->loop = l;
    p->deferred.free = free_pair;
    if (o)
        p->opts = *o;
    if (p->opts.capacity_bytes == 0)
        p->opts.capacity_bytes = CAPACITY_DEFAULT_BYTES;
    p->random = p->opts.seed;
    for (int i = 0; i < 2; i++) {
        struct mem_end *e = &p->ends[i];
        e->base.ops = &mem_ops;
        e->pair = p;
        e->other = &p->ends[1 - i];
        e->soon.run = on_soon;
        e->data = zt_new_n(uint8_t, p->opts.capacity_bytes);
    }
    *a = &p->ends[0].base;
    *b = &p->ends[1].base;
}

void zt_mem_inject_read_end(struct zt_stream *s, enum zt_err e)
{
    struct mem_end *end = from_stream(s);
    end->end = e;
    end->end_reported = false;
    update(end);
}

void zt_mem_inject_write_error(struct zt_stream *s, enum zt_err e)
{
    struct mem_end *end = from_stream(s);
    end->write_error = e;
    wake_writer(end);
}

void zt_mem_block_writes(struct zt_stream *s, bool on)
{
    struct mem_end *end = from_stream(s);
    end->writes_blocked = on;
    if (!on)
        wake_writer(end);
}

size_t zt_mem_unread_by_other(const struct zt_stream *s)
{
    return from_stream(s)->other->len;
}

bool zt_mem_other_closed(const struct zt_stream *s, enum zt_err *why)
{
    const struct mem_end *other = from_stream(s)->other;
    if (why && other->closed)
        *why = other->closed_why;
    return other->closed;
}

bool zt_mem_other_shut(const struct zt_stream *s)
{
    const struct mem_end *other = from_stream(s)->other;
    return other->shut || (other->closed && other->closed_why == ZT_OK);
}
