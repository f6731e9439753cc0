/* A pair of zt_streams joined in memory: what one writes, the other reads. Delivers everything at
 * once, one byte at a time, or in random pieces; refuses more than a bounded number of bytes, so
 * that back-pressure can be tested; ends and errors can be injected. Follows the contract of
 * zt/net/stream.h exactly: callbacks never from inside a call. Thread: owner loop. */
#ifndef ZT_TESTS_STREAM_MEM_H
#define ZT_TESTS_STREAM_MEM_H

#include "zt/loop/loop.h"
#include "zt/net/stream.h"

enum zt_mem_delivery {
    ZT_MEM_ALL,    /* a peek shows all there is */
    ZT_MEM_BYTE,   /* every peek that needs more shows one byte more */
    ZT_MEM_RANDOM, /* pieces of 1..2000 bytes shown, writes cut to random prefixes */
};

struct zt_mem_opts {
    size_t capacity_bytes; /* per direction, unread bytes; 0 = 64 KiB. TLS on top needs
                              ZT_STREAM_PEEK_BYTES_MIN */
    enum zt_mem_delivery delivery;
    uint32_t seed; /* RANDOM; 0 is legal */
};

/* o may be NULL: everything at once, 64 KiB. Owners may be NULL until something is wanted. Both
 * ends are owned by the caller. */
void zt_mem_pair(struct zt_loop *l, const struct zt_mem_opts *o, struct zt_stream **a,
                 struct zt_stream **b);

/* s reads what was queued, then `e` (ZT_EOF, ZT_RESET, ...), whatever the other end does. */
void zt_mem_inject_read_end(struct zt_stream *s, enum zt_err e);
/* Writes on s fail with e from now on. */
void zt_mem_inject_write_error(struct zt_stream *s, enum zt_err e);
/* s accepts nothing while on. */
void zt_mem_block_writes(struct zt_stream *s, bool on);

/* What s has written that the other end has not consumed. */
size_t zt_mem_unread_by_other(const struct zt_stream *s);
/* The other end has been closed; *why (may be NULL) tells how. */
bool zt_mem_other_closed(const struct zt_stream *s, enum zt_err *why);
/* The other end has shut its writing side down (or closed in order). */
bool zt_mem_other_shut(const struct zt_stream *s);

#endif
