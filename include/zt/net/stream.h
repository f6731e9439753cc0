/* One byte pipe: the only polymorphism of the data path. Kinds: TCP (tcp.h), TLS over any stream (tls.h), an HTTP/2 stream
 * (zt/h2/h2_session.h); tests add an in-memory one. The relay joins two and knows nothing else.
 *
 * Reading borrows: peek shows all unread bytes in one contiguous piece that stays valid until the next call on the stream or the
 * return to the loop, whichever is first (what arrives later may move an HTTP/2 stream's bytes); the caller may change them in place (TLS opens records there). consume tells how many are done with. An idle stream holds no buffer.
 * Writing accepts: writev takes a prefix of the bytes given and is done with the caller's memory when it returns.
 * The system call may come later, at the end of the loop's turn.
 *
 * Readiness: on_ready runs on the owner loop, never from inside a call on the stream, and only for wanted events. It is
 * (One exception: a stream that was cut, with what was unread dropped, tells READABLE to an owner that waits for another stream.) It is
 * level-like: as long as READABLE is wanted and peek would give something not seen yet (bytes, end, error), it runs again next turn.
 * Calling a method from on_ready, close included, is legal.
 * Ownership: one owner (struct zt_stream_owner embedded in it). Thread: owner loop. */
#ifndef ZT_NET_STREAM_H
#define ZT_NET_STREAM_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define ZT_STREAM_READABLE 1u
#define ZT_STREAM_WRITABLE 2u

/* Every kind can show at least this many bytes in one piece: a TLS record with room to spare. */
#define ZT_STREAM_PEEK_BYTES_MIN (17 * 1024)

struct zt_stream;

struct zt_stream_owner {
    void (*on_ready)(struct zt_stream_owner *owner, struct zt_stream *s, unsigned events);
};

struct zt_stream_ops {
    const char *kind;
    enum zt_err (*peek)(struct zt_stream *s, size_t seen, uint8_t **data, size_t *len);
    void (*consume)(struct zt_stream *s, size_t n);
    enum zt_err (*writev)(struct zt_stream *s, const struct iovec *iov, int n_iov, size_t *accepted);
    enum zt_err (*shutdown_write)(struct zt_stream *s);
    void (*want)(struct zt_stream *s, unsigned events);
    bool (*flushed)(struct zt_stream *s);
    void (*close)(struct zt_stream *s, enum zt_err why);
    const char *(*error_text)(struct zt_stream *s); /* may be NULL */
};

struct zt_stream {
    const struct zt_stream_ops *ops;
    struct zt_stream_owner *owner; /* borrowed (until close or zt_stream_own) */
};

/* Shows all unread bytes when there are more than `seen` of them; otherwise tries to get more first (one system call at
 * most). ZT_OK: *len > seen. ZT_AGAIN: nothing beyond `seen` now. ZT_EOF: the peer ended in order, and everything up to the end
 * has been seen. ZT_RESET or another error: likewise, bytes received before it are shown first. seen = 0 for a plain read. */
static inline enum zt_err zt_stream_peek(struct zt_stream *s, size_t seen, uint8_t **data, size_t *len)
{
    return s->ops->peek(s, seen, data, len);
}
static inline void zt_stream_consume(struct zt_stream *s, size_t n)
{
    s->ops->consume(s, n);
}
/* Takes a prefix; *accepted says how much. ZT_OK: at least one byte. ZT_AGAIN: none, WRITABLE follows when wanted. Errors are
 * final for the direction. */
static inline enum zt_err zt_stream_writev(struct zt_stream *s, const struct iovec *iov, int n_iov,
                                           size_t *accepted)
{
    return s->ops->writev(s, iov, n_iov, accepted);
}
/* Ends our direction after everything accepted: FIN, close_notify, END_STREAM. Idempotent. Never ZT_AGAIN: what cannot go out now goes
 * out later. */
static inline enum zt_err zt_stream_shutdown_write(struct zt_stream *s)
{
    return s->ops->shutdown_write(s);
}
/* The set of events that on_ready shall run for; replaces the previous set. */
static inline void zt_stream_want(struct zt_stream *s, unsigned events)
{
    s->ops->want(s, events);
}
/* True when everything accepted (and the end, if shut down) has been handed to the layer below, down to the kernel. */
static inline bool zt_stream_flushed(struct zt_stream *s)
{
    return s->ops->flushed(s);
}
/* More about the error that peek or writev gave ("stream reset: REFUSED_STREAM"), or NULL. Returns borrowed (until close). */
static inline const char *zt_stream_error_text(struct zt_stream *s)
{
    return s->ops->error_text ? s->ops->error_text(s) : NULL;
}
/* Immediate in effect, deferred in memory: no callback runs afterwards, the pointer is dead for the caller.
 * why = ZT_OK: in order (flushes what was accepted, best effort, then FIN/close_notify). Otherwise abortive: TCP resets
 * (RST), an HTTP/2 stream is reset with the code of docs/halfclose.md, nothing more is flushed. NULL is legal. */
static inline void zt_stream_close(struct zt_stream *s, enum zt_err why)
{
    if (s)
        s->ops->close(s, why);
}
/* Hands the stream to another owner; wanted events are cleared. */
static inline void zt_stream_own(struct zt_stream *s, struct zt_stream_owner *owner)
{
    s->ops->want(s, 0);
    s->owner = owner;
}

#endif
