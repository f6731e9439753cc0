/* Shared by h2_session.c (life, sending, pings), h2_recv.c (nghttp2's callbacks and what arrives), h2_mem.c and h2_stream.c (the pipe).
 * Nobody else includes this. */
#ifndef ZT_H2_IMPL_H
#define ZT_H2_IMPL_H

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/h2/h2_session.h"
#include <nghttp2/nghttp2.h>

#define H2_RECORD_BYTES 16384       /* a TLS record's plaintext: frames end where records end */
#define H2_DATA_FRAME_BYTES 65536   /* our longest DATA frame, header included: four whole records */
#define H2_FRAME_HEADER_BYTES 9
#define H2_GATHER_BYTES 2048        /* control frames of a turn that share one write */
#define H2_IOV_MAX 16               /* pieces of one lower write */
#define H2_READ_GATHER_BYTES (192 * 1024) /* read together before any of it is handed out */
#define H2_CHUNKS_MAX 32            /* DATA pieces noted before they are handed out */
#define H2_READ_OUT_MS 1000          /* to read what is left after a write has failed */
#define H2_READ_TURN_BYTES (256 * 1024)

/* Limits against floods (spec/dataplane §4.3). */
#define H2_CONTINUATIONS_MAX 8      /* of one header block */
#define H2_BLOCK_BYTES_MAX (256 * 1024) /* header blocks of a session waiting for their owner */
#define H2_PENDING_RESETS_MAX 20    /* streams reset by the peer before their request was handed out */
#define H2_LOCAL_RESETS_MAX 1024    /* streams that we reset for the peer's errors, per connection */
#define H2_EARLY_RESETS_BURST 1000  /* streams reset by the peer before their answer has left: a bucket ... */
#define H2_EARLY_RESETS_PER_S 33    /* ... and its refill */
#define H2_REFUSED_MAX 8            /* told REFUSED_STREAM per read; the rest learns from the GOAWAY */
#define H2_EMPTY_DATA_MAX 128       /* in a row, without END_STREAM */
#define H2_CHUNK_COST_BYTES 512     /* of a turn's reading, for each DATA piece handed out: many tiny ones end the turn, too */
#define H2_CONTROL_PER_S 2000       /* PING, SETTINGS, PRIORITY and the like */
#define H2_OUTBOUND_ACKS_MAX 256    /* PING and SETTINGS acknowledgements waiting to be written */

/* Where one DATA piece lies in the lower stream's buffer. Valid until the lower stream is asked again. */
struct h2_chunk {
    struct zt_h2_stream *st; /* NULL: closed meanwhile */
    uint8_t *data;
    size_t len;
};

struct h2_flood { /* leaky counters */
    uint64_t second;
    uint32_t control;
    uint32_t early_resets;
    uint32_t pending_resets, local_resets;
    uint16_t empty_data, continuations;
};

struct zt_h2_session {
    struct zt_loop *loop;
    struct zt_stream *lower; /* NULL when over */
    struct zt_stream_owner lower_owner;
    struct zt_h2_owner *owner; /* NULL when nobody is to be told any more */
    nghttp2_session *ng;       /* NULL when over */
    void *frame_buf;           /* nghttp2's, mapped (h2_mem.c) */
    struct zt_h2_config cfg;
    struct zt_task task; /* the pump, at the end of the turn */
    ev_timer ping;
    struct zt_link streams; /* all_link: with their owner, or orphans that still have an END_STREAM to send */
    struct zt_link ready;   /* ready_link: something to tell */
    struct zt_link writers; /* writer_link: WRITABLE is wanted; first come, first served */
    struct h2_chunk *chunks; /* during a read only */
    unsigned n_chunks, next_chunk;
    unsigned n_streams;
    uint8_t *spill; /* framed bytes the lower stream did not take yet; a ZT_BUF_MEDIUM */
    uint32_t spill_off, spill_len;
    uint8_t *gather; /* on send's stack */
    uint32_t gather_len;
    struct zt_h2_stream *writing; /* the stream inside pipe writev */
    struct zt_h2_stream *block_st; /* whose header block is arriving */
    struct zt_str block;           /* name NUL value NUL ... */
    unsigned block_n;
    size_t waiting_block_bytes, queued_bytes;
    int32_t refused[H2_REFUSED_MAX]; /* streams that came after the final GOAWAY; during a read only */
    unsigned n_refused;
    int32_t last_peer_stream; /* server: highest stream id seen */
    uint32_t n_incoming;      /* server: requests that nghttp2 holds open */
    struct h2_flood flood;
    struct zt_error *why; /* set when failed; NULL = in order */
    enum zt_h2_role role;
    uint8_t lower_want;
    bool failed;         /* must end; the pump does it */
    bool over;           /* lower and ng are gone; streams may remain */
    bool closed;         /* by its owner */
    bool released;       /* its memory is on its way out */
    bool write_failed;   /* the lower stream takes nothing any more; spill stays */
    bool flooded;        /* found by a callback */
    bool sending, pumping;
    bool goaway_received, draining, final_goaway;
    bool settings_received, settings_told, goaway_told;
    bool settings_sent;
    bool unfed; /* the last read left bytes that the lower stream had shown: the next turn goes on with them */
    bool stream_closed;  /* on_stream_closed is due */
    bool check_writers;
    bool ping_waiting;   /* for the PONG */
};

struct zt_h2_stream {
    struct zt_stream pipe;
    struct zt_h2_session *s;
    struct zt_link all_link, ready_link, writer_link;
    struct zt_link holder_link; /* zt_h2_budget.holders, while it has a queue */
    struct zt_h2_request *request; /* client, until answered */
    void (*on_abort)(void *arg);   /* server, until answered */
    void *abort_arg;
    char *block; /* a received header block, until told */
    uint32_t block_bytes;
    uint16_t block_n;
    uint16_t n_chunks; /* noted, not handed out yet */
    int32_t id;
    uint32_t code;     /* of the reset, valid when !open and neither end in order */
    uint8_t *direct;   /* unread bytes in the lower stream's buffer; only while its owner is being told, queue empty */
    size_t direct_len;
    uint8_t *queue;    /* unread bytes that the owner did not take at once */
    size_t queue_off, queue_len, queue_cap;
    size_t shown;      /* of the unread bytes, how many its owner has seen */
    uint32_t credit;   /* consumed, not returned to the peer's window yet */
    const struct iovec *out; /* the caller's memory, during writev only */
    int n_out;
    size_t out_off, out_left, out_done;
    enum zt_err end;   /* how receiving ended; ZT_OK = it has not */
    uint8_t want;
    bool end_shown;
    bool write_due;    /* WRITABLE is owed: newly wanted, or the last write was cut short */
    bool open;         /* nghttp2 has it */
    bool answered;     /* client: final status seen; server: zt_h2_respond */
    bool handed_out;   /* server: on_request has run */
    bool shut;         /* END_STREAM wanted */
    bool end_sent;
    bool closed;       /* by its owner */
    bool abort_told;
    bool carrier;      /* zt_h2_stream_carry */
};

/* h2_session.c */
void h2_session_fail(struct zt_h2_session *s, enum zt_err code, const char *text);
void h2_session_soon(struct zt_h2_session *s);  /* the pump runs at the end of this turn */
void h2_session_send(struct zt_h2_session *s);
void h2_session_put(struct zt_h2_session *s, struct iovec *iov, int n_iov);
bool h2_session_blocked(const struct zt_h2_session *s);
bool h2_session_any_open(const struct zt_h2_session *s); /* a stream of it is unfinished */
void h2_session_release(struct zt_h2_session *s); /* frees it when over and without streams */
void h2_session_tell_ready(struct zt_h2_session *s);
void h2_session_pong(struct zt_h2_session *s, const uint8_t payload[8]);

/* h2_recv.c */
nghttp2_mem h2_mem(struct zt_h2_session *s); /* h2_mem.c; borrows s (until nghttp2's session is deleted) */
nghttp2_session *h2_recv_new(struct zt_h2_session *s);
void h2_recv_read(struct zt_h2_session *s);

/* h2_stream.c */
struct zt_h2_stream *h2_stream_new(struct zt_h2_session *s, int32_t id);
void h2_stream_mark(struct zt_h2_stream *st); /* something to tell */
void h2_stream_tell(struct zt_h2_stream *st);
void h2_stream_deliver(struct zt_h2_stream *st, uint8_t *data, size_t len, bool tell);
/* nghttp2 has closed it, or the session is over (code: HTTP/2 error code). */
void h2_stream_gone(struct zt_h2_stream *st, uint32_t code, enum zt_err end);
void h2_stream_ended(struct zt_h2_stream *st);    /* END_STREAM received */
void h2_stream_end_sent(struct zt_h2_stream *st); /* END_STREAM sent */
bool h2_stream_writable(const struct zt_h2_stream *st);
void h2_stream_drop(struct zt_h2_stream *st);     /* unlinks and frees */
ssize_t h2_stream_source(nghttp2_session *ng, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
                         nghttp2_data_source *source, void *user);
int h2_stream_send_data(nghttp2_session *ng, nghttp2_frame *frame, const uint8_t *header, size_t length,
                        nghttp2_data_source *source, void *user);
ssize_t h2_stream_frame_length(nghttp2_session *ng, uint8_t type, int32_t id, int32_t session_window,
                               int32_t stream_window, uint32_t frame_max, void *user);
uint32_t h2_reset_code(const struct zt_h2_stream *st, enum zt_err why);
enum zt_err h2_reset_meaning(uint32_t code);

#endif
