/* Copies both ways between two streams until both directions have ended, or the connection is lost
 * (spec/dataplane §7; what each kind of end leads to is the table of docs/halfclose.md). Nothing is
 * copied or allocated on the way; between two sockets that move much at once, the bytes stay in the kernel: what one stream shows, the other is given, and only what it took
 * is consumed, so a stalled writer stops the reader. Embed it: it is small. Thread: owner loop (of
 * both streams). */
#ifndef ZT_PROXY_RELAY_H
#define ZT_PROXY_RELAY_H

#include "zt/net/stream.h"

/* Bytes copied in one direction before other connections have their turn. */
#define ZT_RELAY_TURN_BYTES (512 * 1024)
/* A direction between two sockets that moved this much in one turn goes through a pipe from then on, and copies again after a turn
 * with little: a pipe saves the copies of the bytes and costs its own handling. */
#define ZT_RELAY_SPLICE_BYTES (48 * 1024)
#define ZT_RELAY_SPLICE_LEAST_BYTES (8 * 1024)

struct zt_relay;
/* err: ZT_OK, or ZT_SEND (towards upstream), ZT_RECEIVE (towards downstream), ZT_CLOSING with the
 * text that belongs behind the code's prefix. Both streams are closed. The relay is not used
 * afterwards: its memory may be freed here. */
typedef void (*zt_relay_done_fn)(struct zt_relay *r, const struct zt_error *err);

struct zt_relay_side {
    struct zt_stream_owner owner;
    struct zt_stream *stream; /* owned; NULL once closed */
    /* Taken from this side and accepted by the other; borrowed (until done or abort). */
    uint64_t *bytes;
    struct zt_pipe *pipe; /* lent for the direction that reads here; NULL: it copies */
    uint8_t wanted; /* what the stream was last told */
    bool tunnel;    /* an HTTP/2 stream: being reset with bytes pending is an error */
    bool ended;     /* the direction that reads here is over */
    bool bulk;      /* the direction that reads here moves much at once */
    bool waiting;   /* the direction that reads here waits for the other side to take bytes */
    uint8_t err;    /* enum zt_err: how that direction failed: ZT_RESET (writer gone), ZT_CLOSING,
                       other (lost) */
};
struct zt_relay {
    struct zt_relay_side down, up;
    zt_relay_done_fn done;
};

struct zt_relay_ends {
    struct zt_stream *down, *up; /* taken */
    bool down_tunnel, up_tunnel; /* that side is an HTTP/2 stream */
    uint64_t *received, *sent;   /* payload bytes down to up, up to down; added to after each
                                    successful write; borrowed (as above) */
};

/* Starts copying what the streams show from now on, what they have buffered included. done runs
 * exactly once, never from inside this call, and not after zt_relay_abort. */
void zt_relay_start(struct zt_relay *r, const struct zt_relay_ends *ends, zt_relay_done_fn done);
/* Ends it now: both streams are closed with why (not ZT_OK), so sockets are reset. done does not
 * run. Legal on a zeroed or finished relay. */
void zt_relay_abort(struct zt_relay *r, enum zt_err why);

#endif
