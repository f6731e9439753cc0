/* HTTP/2 for HBONE: the only user of nghttp2. A session runs over any zt_stream (TLS in practice) in one of two roles; its CONNECT
 * streams are zt_streams.
 *
 * nghttp2 callbacks only note facts; the session's pump acts on them and flushes. Submit anywhere, send in one place:
 * what a turn produces goes out in one write at the end of the turn.
 * Flow control: the connection window is credited on receipt, a stream's window when its owner consumes (spec/dataplane §16): a
 * stalled reader costs one stream window and slows no other stream.
 * Thread: owner loop. */
#ifndef ZT_H2_H2_SESSION_H
#define ZT_H2_H2_SESSION_H

#include "zt/base/list.h"
#include "zt/loop/loop.h"
#include "zt/net/stream.h"

struct zt_h2_session;
struct zt_h2_stream;

enum zt_h2_role { ZT_H2_CLIENT, ZT_H2_SERVER };

/* Bytes that streams of several sessions of one loop hold for owners that do not read them. Over max, the stream that began to hold some
 * last is reset with ENHANCE_YOUR_CALM, and its owner sees ZT_LIMIT. */
struct zt_h2_budget {
    size_t max, used;
    struct zt_link holders; /* streams, in the order in which they began */
    void (*on_shed)(struct zt_h2_budget *b);
};

struct zt_h2_config {
    uint32_t stream_window_bytes;     /* HTTP2_STREAM_WINDOW_SIZE */
    uint32_t connection_window_bytes; /* HTTP2_CONNECTION_WINDOW_SIZE */
    uint32_t frame_bytes;             /* SETTINGS_MAX_FRAME_SIZE */
    uint32_t header_table_bytes;      /* HPACK table, 4096 */
    uint32_t streams_max;             /* server: SETTINGS_MAX_CONCURRENT_STREAMS (200); client: assumed before the peer's SETTINGS */
    uint32_t ping_interval_ms;        /* 10000; 0 = no liveness pings */
    uint32_t ping_timeout_ms;         /* 20000 */
    struct zt_h2_budget *budget;      /* borrowed (until the last stream is closed); NULL: none */
};

struct zt_h2_header { /* borrowed NUL-terminated text */
    const char *name, *value;
};
#define ZT_H2_HEADERS_MAX 64           /* of one block; more: 431-like reset */
#define ZT_H2_CLIENT_HEADER_BYTES 16384 /* SETTINGS_MAX_HEADER_LIST_SIZE we announce */
#define ZT_H2_SERVER_HEADER_BYTES 65536

#define ZT_H2_DATA_STEP_BYTES (16384 - 9) /* payload of a DATA frame that fills one TLS record with its header */

struct zt_h2_headers { /* a received block; names in lower case; values may hold any octet but NUL; repeated ones in order */
    struct zt_h2_header *list;
    unsigned n;
};
/* First value of name, or NULL. Returns borrowed (as long as the block). */
const char *zt_h2_headers_find(const struct zt_h2_headers *h, const char *name);

/* What the session tells its owner. Embed it. Callbacks run from the loop, never from inside a call on the session. */
struct zt_h2_owner {
    /* Server: a request has arrived (pseudo headers are in h as ":method", ":authority", ...; borrowed during the call). The callee
     * answers now or later, with zt_h2_respond or by closing the pipe; it owns the stream from here. */
    void (*on_request)(struct zt_h2_owner *o, struct zt_h2_stream *st, const struct zt_h2_headers *h);
    /* The number of open streams fell. May be NULL. */
    void (*on_stream_closed)(struct zt_h2_owner *o);
    /* The peer's first SETTINGS have arrived: it speaks HTTP/2, and streams_max is known. May be NULL. */
    void (*on_settings)(struct zt_h2_owner *o);
    /* The peer sent GOAWAY: no new streams. Streams it did not process get on_response with ZT_AGAIN. May be NULL. */
    void (*on_goaway)(struct zt_h2_owner *o);
    /* The session is over (EOF, error, ping timeout, close after drain); all streams have been told; it is freed after the call.
     * Does not run after zt_h2_session_close. */
    void (*on_closed)(struct zt_h2_owner *o, const struct zt_error *why);
};

/* Takes lower. cfg is copied. owner is borrowed (until on_closed or close). Writes preface and SETTINGS. Returns owned. */
struct zt_h2_session *zt_h2_session_new(struct zt_loop *l, enum zt_h2_role role, const struct zt_h2_config *cfg,
                                        struct zt_stream *lower, struct zt_h2_owner *owner);
/* Streams open now, requests waiting for an answer included. */
unsigned zt_h2_session_streams(const struct zt_h2_session *s);
/* Client: a new stream may be opened (alive, no GOAWAY either way). */
bool zt_h2_session_usable(const struct zt_h2_session *s);
/* The session has ended; its streams may still hold what was received. */
bool zt_h2_session_over(const struct zt_h2_session *s);
/* The peer's SETTINGS_MAX_CONCURRENT_STREAMS, or the configured guess. */
uint32_t zt_h2_session_peer_streams_max(const struct zt_h2_session *s);
/* Graceful end: server GOAWAY(2^31-1) + PING, then GOAWAY(last); client GOAWAY. Closes when the last stream ends; on_closed tells. */
void zt_h2_session_drain(struct zt_h2_session *s);
/* Ends it now: GOAWAY(NO_ERROR) best effort, open streams get `why`, then the lower stream is closed. on_closed does not run. */
void zt_h2_session_close(struct zt_h2_session *s, enum zt_err why);
/* Bytes held for this session and its streams (queues), for accounting. */
size_t zt_h2_session_queued_bytes(const struct zt_h2_session *s);

/* ---- streams ----
 *
 * How a stream's pipe ends (docs/halfclose.md). Reading: END_STREAM, and RST_STREAM with NO_ERROR, CANCEL or CONNECT_ERROR, give ZT_EOF
 * after the data; STREAM_CLOSED gives ZT_RESET; any other code, and the loss of the session, give ZT_H2; zt_h2_session_close gives its
 * why, the budget ZT_LIMIT. Writing to a stream that is gone:
 * the same, with ZT_RESET in place of ZT_EOF. Closing the pipe before both sides ended sends RST_STREAM: INTERNAL_ERROR
 * where `why` says that the transfer was cut, else NO_ERROR for a server that had sent END_STREAM, else CANCEL. */

/* Client: the answer. err ZT_OK: final status and headers (borrowed during the call). ZT_AGAIN: the peer proved by GOAWAY or
 * REFUSED_STREAM that it did not process the request; it may be tried elsewhere. Otherwise failed (ZT_H2...). On anything but ZT_OK the
 * stream is closed already. */
struct zt_h2_request {
    void (*on_response)(struct zt_h2_request *r, struct zt_h2_stream *st, unsigned status,
                        const struct zt_h2_headers *h, const struct zt_error *err);
};
/* Client: sends a request without END_STREAM. headers are copied. r is borrowed (until on_response or the stream is closed).
 * NULL when the session is not usable. The stream is owned by the caller: end it through its pipe. */
struct zt_h2_stream *zt_h2_request(struct zt_h2_session *s, const struct zt_h2_header *headers, unsigned n,
                                   struct zt_h2_request *r);
/* Server: the answer. end = END_STREAM with it (the stream is over for the caller: do not use it again). */
void zt_h2_respond(struct zt_h2_stream *st, unsigned status, const struct zt_h2_header *headers, unsigned n, bool end);
/* The stream as a byte pipe; valid as long as the stream. Closing the pipe closes the stream. */
struct zt_stream *zt_h2_stream_pipe(struct zt_h2_stream *st);
/* The stream carries a connection whose owner relies on bytes that it was shown and has not consumed (TLS opens records in place), and
 * which may outlive the budget. Its bytes are never dropped, and the budget leaves it alone. Such an owner reads all that comes, so
 * there are few. */
void zt_h2_stream_carry(struct zt_h2_stream *st);
/* Server: tells the owner of a request that the peer reset it (or the session died) before zt_h2_respond. NULL: not interested. The
 * stream must still be closed by its owner. */
void zt_h2_stream_on_abort(struct zt_h2_stream *st, void (*fn)(void *arg), void *arg);

#endif
