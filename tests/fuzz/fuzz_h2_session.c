/* An HTTP/2 session against a peer that sends anything. Input: one byte of choices, then the peer's bytes (behind the preface, for a
 * server). Bit 0: we are the client. Bit 1: bytes arrive in random pieces. Bit 2: readers stall. Bit 3: our side drains halfway.
 * Bit 4: the peer's end is closed by reset. At the end everything must have been told and nothing may be left. */
#include "support/h2_pair.h"
#include <string.h>

#define ENDS_MAX 16
#define PIECE_BYTES 4000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz {
    struct zt_loop *l;
    struct zt_stream *peer;
    struct h2_side side;
    struct h2_end ends[ENDS_MAX];
    unsigned n_ends;
    bool stall, peer_reset;
};

static struct fuzz *fuzzing; /* on_request has only the side */

static void on_request(struct zt_h2_owner *o, struct zt_h2_stream *st, const struct zt_h2_headers *h)
{
    struct fuzz *f = fuzzing;
    for (unsigned i = 0; i < h->n; i++)
        ZT_ASSERT(strlen(h->list[i].name) < ZT_H2_SERVER_HEADER_BYTES && strlen(h->list[i].value) < ZT_H2_SERVER_HEADER_BYTES);
    const char *method = zt_h2_headers_find(h, ":method");
    if (!method || strcmp(method, "CONNECT") != 0 || f->n_ends == ENDS_MAX) {
        zt_h2_respond(st, 400, NULL, 0, true);
        return;
    }
    struct h2_end *e = &f->ends[f->n_ends++];
    *e = (struct h2_end){.reading = !f->stall, .to_write = 3000, .end_after = f->n_ends % 2};
    if (f->n_ends % 3 != 0)
        zt_h2_respond(st, 200, NULL, 0, false);
    else
        e->to_write = 0, e->end_after = false;
    h2_end_attach(e, st);
}

static void feed(struct fuzz *f, const uint8_t *data, size_t size)
{
    while (size > 0) {
        struct iovec iov = {(void *)(uintptr_t)data, size < PIECE_BYTES ? size : PIECE_BYTES};
        size_t n;
        uint8_t *answer;
        enum zt_err e = zt_stream_writev(f->peer, &iov, 1, &n);
        if (e != ZT_OK && e != ZT_AGAIN)
            return;
        data += n, size -= n;
        h2_settle(f->l);
        if (zt_stream_peek(f->peer, 0, &answer, &n) == ZT_OK)
            zt_stream_consume(f->peer, n);
        if (e == ZT_AGAIN && f->side.closed)
            return;
    }
}

static void open_requests(struct fuzz *f)
{
    struct h2_pair p = {.l = f->l, .client = f->side};
    for (; f->n_ends < 3; f->n_ends++) {
        struct h2_end *e = &f->ends[f->n_ends];
        *e = (struct h2_end){.reading = !f->stall, .to_write = 3000, .end_after = f->n_ends == 1};
        h2_pair_connect(&p, e, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = {0};
    if (size < 1)
        return 0;
    uint8_t bits = data[0];
    bool client = bits & 1;
    struct zt_stream *lower;
    struct zt_mem_opts mem = {.capacity_bytes = 64 * 1024, .delivery = bits & 2 ? ZT_MEM_RANDOM : ZT_MEM_ALL, .seed = bits};
    f.l = zt_loop_new("fuzz");
    f.stall = bits & 4;
    fuzzing = &f;
    zt_mem_pair(f.l, &mem, &f.peer, &lower);
    h2_side_init(&f.side);
    f.side.owner.on_request = on_request;
    f.side.s = zt_h2_session_new(f.l, client ? ZT_H2_CLIENT : ZT_H2_SERVER, &h2_pair_config, lower, &f.side.owner);
    if (client)
        open_requests(&f);
    else
        feed(&f, (const uint8_t *)"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    size_t half = (bits & 8) ? (size - 1) / 2 : size - 1;
    feed(&f, data + 1, half);
    if ((bits & 8) && f.side.s)
        zt_h2_session_drain(f.side.s);
    feed(&f, data + 1 + half, size - 1 - half);
    zt_stream_close(f.peer, bits & 16 ? ZT_RESET : ZT_OK);
    h2_settle(f.l);
    ZT_ASSERT(f.side.closed && !f.side.s);
    for (unsigned i = 0; i < f.n_ends; i++) {
        ZT_ASSERT(!client || f.ends[i].answered);
        if (f.ends[i].st)
            h2_end_close(&f.ends[i], ZT_OK);
    }
    h2_settle(f.l);
    zt_loop_free(f.l);
    return 0;
}
