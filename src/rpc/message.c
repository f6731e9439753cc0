/* Received messages: a view of the library's slices, and a reader that walks them.
 * Invariants: a message is never changed; a reader's slice index points at a slice with bytes left,
 * or behind the last. */
#include "rpc_impl.h"

#include "zt/base/mem.h"
#include <string.h>

struct zt_rpc_message {
    struct zt_rpc *rpc;
    grpc_byte_buffer *buffer; /* raw and not compressed: the channel accepts nothing else */
};

struct zt_rpc_message *zt_rpc_message_new(struct zt_rpc *r, grpc_byte_buffer *buffer)
{
    struct zt_rpc_message *m = zt_new(struct zt_rpc_message);
    m->rpc = r;
    m->buffer = buffer;
    atomic_fetch_add(&r->n_messages, 1);
    return m;
}

void zt_rpc_message_free(struct zt_rpc_message *m)
{
    if (!m)
        return;
    struct zt_rpc *r = m->rpc;
    grpc_byte_buffer_destroy(m->buffer);
    zt_free(m);
    atomic_fetch_sub(&r->n_messages, 1);
}

static const grpc_slice_buffer *slices(const struct zt_rpc_message *m)
{
    return &m->buffer->data.raw.slice_buffer;
}

size_t zt_rpc_message_bytes(const struct zt_rpc_message *m)
{
    return slices(m)->length;
}

unsigned zt_rpc_message_slices(const struct zt_rpc_message *m)
{
    return (unsigned)slices(m)->count;
}

const uint8_t *zt_rpc_message_slice(const struct zt_rpc_message *m, unsigned i, size_t *n)
{
    const grpc_slice *s = &slices(m)->slices[i];
    ZT_ASSERT(i < slices(m)->count);
    *n = GRPC_SLICE_LENGTH(*s);
    return GRPC_SLICE_START_PTR(*s);
}

/* ---- reader ---- */

void zt_rpc_reader_init(struct zt_rpc_reader *r, const struct zt_rpc_message *m)
{
    *r = (struct zt_rpc_reader){.message = m, .left = zt_rpc_message_bytes(m)};
}

void zt_rpc_reader_fini(struct zt_rpc_reader *r)
{
    zt_free(r->scratch);
    *r = (struct zt_rpc_reader){0};
}

/* What is left of the current slice; moves on to one that has something. Call with left > 0 only.
 */
static const uint8_t *current(struct zt_rpc_reader *r, size_t *n)
{
    for (;;) {
        size_t len;
        const uint8_t *p = zt_rpc_message_slice(r->message, r->slice, &len);
        *n = len - r->offset;
        if (*n > 0)
            return p + r->offset;
        r->slice++;
        r->offset = 0;
    }
}

static void advance(struct zt_rpc_reader *r, size_t n)
{
    r->offset += n;
    r->left -= n;
}

static void grow_scratch(struct zt_rpc_reader *r, size_t n)
{
    if (r->scratch_bytes >= n)
        return;
    size_t size = r->scratch_bytes ? r->scratch_bytes : 4096;
    while (size < n)
        size *= 2;
    r->scratch = zt_realloc(r->scratch, size);
    r->scratch_bytes = size;
}

const uint8_t *zt_rpc_reader_take(struct zt_rpc_reader *r, size_t n)
{
    static const uint8_t nothing;
    if (n > r->left)
        return NULL;
    if (n == 0)
        return &nothing;
    size_t have;
    const uint8_t *p = current(r, &have);
    if (have >= n) {
        advance(r, n);
        return p;
    }
    grow_scratch(r, n); /* no more than the message, which has a limit */
    for (size_t got = 0; got < n;) {
        p = current(r, &have);
        size_t part = have < n - got ? have : n - got;
        memcpy(r->scratch + got, p, part);
        advance(r, part);
        got += part;
    }
    return r->scratch;
}

int zt_rpc_reader_byte(struct zt_rpc_reader *r)
{
    size_t have;
    if (r->left == 0)
        return -1;
    int byte = *current(r, &have);
    advance(r, 1);
    return byte;
}

bool zt_rpc_reader_skip(struct zt_rpc_reader *r, size_t n)
{
    if (n > r->left)
        return false;
    while (n > 0) {
        size_t have;
        current(r, &have);
        size_t part = have < n ? have : n;
        advance(r, part);
        n -= part;
    }
    return true;
}
