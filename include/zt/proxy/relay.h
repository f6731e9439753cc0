/* Copies both ways between two streams until both directions have ended (spec/dataplane §7, docs/halfclose.md). It joins any two
 * kinds and knows nothing else. Bytes go from the reader's borrowed buffer straight into the writer; what the writer does not take
 * stays with the reader, so a stalled side costs one buffer and one window. No allocation.
 * Thread: owner loop. */
#ifndef ZT_PROXY_RELAY_H
#define ZT_PROXY_RELAY_H

#include "zt/loop/loop.h"
#include "zt/net/stream.h"

#define ZT_RELAY_TURN_BYTES (512 * 1024) /* per direction and turn; then others get theirs */

struct zt_relay;

/* One direction. Private. */
struct zt_relay_half {
    struct zt_stream_owner owner; /* of the stream this half reads from */
    uint64_t *bytes;              /* payload bytes written; borrowed */
    enum zt_err read_err, write_err;
    uint8_t state;
};

/* Embed it; zeroed by its maker. down is who connected to us, up is whom we dialled. */
struct zt_relay {
    struct zt_loop *loop;
    struct zt_stream *down, *up;
    struct zt_relay_half to_up, to_down;
    struct zt_task task;
    void (*done)(struct zt_relay *r, const struct zt_error *err);
};

/* Takes both streams. *received counts down to up, *sent up to down (borrowed until done). done runs exactly once, never from inside
 * this call, when both streams are closed: err->code ZT_OK, or the connection's result as spec/dataplane §7.2 says (the send
 * direction's error before the receive direction's; ZT_SEND, ZT_RECEIVE, ZT_CLOSING with text). The relay's memory may be freed in it. */
void zt_relay_start(struct zt_relay *r, struct zt_loop *l, struct zt_stream *down, struct zt_stream *up, uint64_t *received,
                    uint64_t *sent, void (*done)(struct zt_relay *r, const struct zt_error *err));
/* Ends it now: both streams are closed with why (a reset where why is not ZT_OK). done does not run. Legal when not started. */
void zt_relay_abort(struct zt_relay *r, enum zt_err why);

#endif
