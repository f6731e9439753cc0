/* gRPC over TLS to the control plane (spec/controlplane §1): the only user of gRPC core.
 *
 * One pump thread for the process takes completions from the library and posts them to the control
 * loop; everything else - channels, calls, callbacks - lives on the control loop.
 *
 *     zt_rpc_new(control, false, &rpc, &err);               // before any setns, before other
 * threads zt_rpc_channel_new(rpc, &config, &channel, &err);     // parses; nothing is dialled yet
 *     zt_rpc_stream_open(channel, "/pkg.Service/Method", &events, me, &call, &err);
 *     zt_rpc_call_send(call, bytes, n);                     // at once: it is queued until the
 * connection stands
 *     ... on_message(me, m) ... zt_rpc_call_next(call) ... on_message ... on_status(me, &status)
 *     zt_rpc_call_free(call);
 *
 * Shutting down: free the calls, the messages and the channels, then zt_rpc_free, then the control
 * loop. A failed attempt is not repeated in here and nothing waits for a server: whoever calls
 * backs off. */
#ifndef ZT_RPC_RPC_H
#define ZT_RPC_RPC_H

#include "zt/loop/loop.h"
#include <stddef.h>

#define ZT_RPC_CONNECT_TIMEOUT_MS 5000 /* TCP and TLS, over all addresses of the name */
#define ZT_RPC_IDLE_TIMEOUT_MS 90000   /* a shared connection without a call is closed after this */
#define ZT_RPC_UNARY_RECEIVE_BYTES (4u << 20) /* receive_bytes_max of the CA */
#define ZT_RPC_ADS_RECEIVE_BYTES (200u << 20) /* receive_bytes_max of the ADS stream */
#define ZT_RPC_SEND_BYTES_MAX (16u << 20) /* queued on one call; a single message may be as large  \
                                           */
#define ZT_RPC_SEND_MESSAGES_MAX 1024     /* queued on one call */
#define ZT_RPC_TOKEN_BYTES_MAX 65536
#define ZT_RPC_ROOTS_BYTES_MAX (4u << 20)
#define ZT_RPC_HEADERS_MAX 64
#define ZT_RPC_STATUS_TEXT_MAX 1024 /* bytes with NUL; longer texts are cut */

struct zt_rpc;
struct zt_rpc_channel;
struct zt_rpc_call;
struct zt_rpc_message;

/* ---- the library and its thread ---- */

/* Starts gRPC and the pump. loop: the control loop; borrowed until free. tls12: TLS 1.2 is offered
 * too (process-wide: the first call decides). The namespace of the calling thread is the one that
 * all connections are made in. Returns owned in *out. Thread: control, before other threads exist
 * and before any setns. Errors: ZT_IO. */
enum zt_err zt_rpc_new(struct zt_loop *loop, bool tls12, struct zt_rpc **out, struct zt_error *err);
/* Takes r; NULL is legal. All calls, messages and channels have been freed. Waits for the pump
 * (milliseconds); what is left is released by the control loop when it runs the last messages, at
 * the latest in zt_loop_free. Thread: control. */
void zt_rpc_free(struct zt_rpc *r);

/* ---- channels ---- */

struct zt_rpc_header {
    const char *name, *value;
};

/* Everything is borrowed during zt_rpc_channel_new and copied. */
struct zt_rpc_channel_config {
    const char
        *address; /* XDS_ADDRESS, CA_ADDRESS: "https://host:port", "host:port", "https://[::1]" */
    const char *root_ca; /* "SYSTEM", PEM text, or a path (which may appear and change later) */
    const char *alt_hostname; /* accepted besides the address's host; NULL = none */
    const char
        *token; /* AUTH_TOKEN: a path (re-read for every call) or the token itself; NULL = none */
    const char *cluster_id;              /* header clusterid; sent only together with a token */
    const struct zt_rpc_header *headers; /* XDS_HEADER_*, CA_HEADER_*; names are lower-cased */
    unsigned n_headers;
    unsigned receive_bytes_max; /* one message */
    bool fresh; /* a new connection for each call (ADS); false: one connection, kept and shared (CA)
                 */
};

/* Checks address, headers and alternative name; neither reads files nor connects. Returns owned in
 * *out. Errors: ZT_INVALID with a text that names the culprit ("http" is refused: https only).
 * Thread: control. */
enum zt_err zt_rpc_channel_new(struct zt_rpc *r, const struct zt_rpc_channel_config *config,
                               struct zt_rpc_channel **out, struct zt_error *err);
/* Takes c; NULL is legal. Its calls have been freed. Thread: control. */
void zt_rpc_channel_free(struct zt_rpc_channel *c);

/* ---- status ---- */

/* The numbers are gRPC's; others that a peer sends count as UNKNOWN. */
enum zt_rpc_code {
    ZT_RPC_OK = 0,
    ZT_RPC_CANCELLED = 1,
    ZT_RPC_UNKNOWN = 2,
    ZT_RPC_INVALID_ARGUMENT = 3,
    ZT_RPC_DEADLINE_EXCEEDED = 4,
    ZT_RPC_NOT_FOUND = 5,
    ZT_RPC_ALREADY_EXISTS = 6,
    ZT_RPC_PERMISSION_DENIED = 7,
    ZT_RPC_RESOURCE_EXHAUSTED = 8,
    ZT_RPC_FAILED_PRECONDITION = 9,
    ZT_RPC_ABORTED = 10,
    ZT_RPC_OUT_OF_RANGE = 11,
    ZT_RPC_UNIMPLEMENTED = 12,
    ZT_RPC_INTERNAL = 13,
    ZT_RPC_UNAVAILABLE = 14,
    ZT_RPC_DATA_LOSS = 15,
    ZT_RPC_UNAUTHENTICATED = 16,
};

struct zt_rpc_status {
    enum zt_rpc_code code;
    char
        text[ZT_RPC_STATUS_TEXT_MAX]; /* the peer's or the library's; "" possible; NUL-terminated */
};

/* "UNAVAILABLE". Returns borrowed (forever). Thread: any. */
const char *zt_rpc_code_name(enum zt_rpc_code code);
/* "The service is currently unavailable" (spec/interfaces §7.6). Returns borrowed (forever).
 * Thread: any. */
const char *zt_rpc_code_sentence(enum zt_rpc_code code);

/* ---- calls ---- */

/* What a call tells its owner; all on the control loop, never from inside a function of this
 * header. After zt_rpc_call_free none runs any more. */
struct zt_rpc_events {
    /* Takes m (zt_rpc_message_free, by any thread). The next message of a stream is not read from
     * the connection before zt_rpc_call_next: flow control reaches the server. A unary call gets
     * its one message only with status OK. */
    void (*on_message)(void *owner, struct zt_rpc_message *m);
    /* The end, exactly once and last. status: borrowed until return. Also when the connection could
     * not be made. */
    void (*on_status)(void *owner, const struct zt_rpc_status *status);
};

/* Both begin a call of method ("/package.Service/Method"; borrowed until return) with fresh
 * metadata. events: borrowed until zt_rpc_call_free. owner: handed back. Returns owned in *out; the
 * first message is asked for. Thread: control, in the namespace of zt_rpc_new (anything else is a
 * bug and stops the process). Errors, with nothing dialled and no callback: ZT_IDENTITY = the token
 * ("token file exists, but was empty", unreadable, not legal in a header): counts as a connection
 * error; ZT_IO, ZT_TLS = roots cannot be read or hold no certificate. Where a shared connection
 * exists already, a failure of the roots is logged and the connection kept. */
enum zt_err zt_rpc_stream_open(struct zt_rpc_channel *c, const char *method,
                               const struct zt_rpc_events *events, void *owner,
                               struct zt_rpc_call **out, struct zt_error *err);
/* request: n bytes, borrowed until return. timeout_ms: of the whole call, more than 0; then
 * DEADLINE_EXCEEDED. */
enum zt_err zt_rpc_unary_start(struct zt_rpc_channel *c, const char *method, const void *request,
                               size_t n, uint64_t timeout_ms, const struct zt_rpc_events *events,
                               void *owner, struct zt_rpc_call **out, struct zt_error *err);

/* Queues one message of a stream; bytes are copied (borrowed until return). Messages go out in
 * order, one at a time, as the server's flow control permits. Errors: ZT_LIMIT = queue full, the
 * message is dropped and the stream no longer useful; ZT_EOF = the stream has ended. Thread:
 * control. */
enum zt_err zt_rpc_call_send(struct zt_rpc_call *call, const void *bytes, size_t n);
/* Asks for the next message of a stream; once per message received (an extra call does nothing).
 * Thread: control. */
void zt_rpc_call_next(struct zt_rpc_call *call);
/* Half-closes the stream when everything queued is sent. Thread: control. */
void zt_rpc_call_finish(struct zt_rpc_call *call);
/* Takes call; cancels it when it has not ended. Legal at any time, inside its callbacks too; NULL
 * is legal. Thread: control. */
void zt_rpc_call_free(struct zt_rpc_call *call);

/* ---- messages ---- */

/* A received message as the library holds it: a row of slices, none of them copied. Immutable: any
 * thread may read it, the pieces keep their addresses until free. */
size_t zt_rpc_message_bytes(const struct zt_rpc_message *m);
unsigned zt_rpc_message_slices(const struct zt_rpc_message *m);
/* The i-th slice, i < zt_rpc_message_slices. Returns borrowed (until zt_rpc_message_free); *n
 * bytes, may be 0. */
const uint8_t *zt_rpc_message_slice(const struct zt_rpc_message *m, unsigned i, size_t *n);
/* Takes m; NULL is legal. Thread: any. */
void zt_rpc_message_free(struct zt_rpc_message *m);

/* Walks a message. Embed it; one thread. */
struct zt_rpc_reader {
    const struct zt_rpc_message *message; /* borrowed until fini */
    unsigned slice;      /* where we are: index of the slice, bytes of it that are behind us */
    size_t offset, left; /* left: bytes of the message not yet read */
    uint8_t *scratch;    /* owned: pieces that straddle slices */
    size_t scratch_bytes;
};

void zt_rpc_reader_init(struct zt_rpc_reader *r,
                        const struct zt_rpc_message *m); /* m: borrowed until fini */
void zt_rpc_reader_fini(struct zt_rpc_reader *r);
/* The next n bytes in one piece: straight from a slice where they lie in one, else copied to the
 * scratch buffer. Returns borrowed (until the next take on this reader); NULL when fewer than n are
 * left, nothing is consumed then. n 0 is legal. */
const uint8_t *zt_rpc_reader_take(struct zt_rpc_reader *r, size_t n);
/* One byte, or -1 at the end. */
int zt_rpc_reader_byte(struct zt_rpc_reader *r);
/* False when fewer than n are left; nothing is consumed then. */
bool zt_rpc_reader_skip(struct zt_rpc_reader *r, size_t n);

#endif
