/* TLS as a stream over any stream. The handshake is OpenSSL's (tls_handshake.c); afterwards its traffic secrets move into the
 * record layer (tls_record.h), the SSL object is freed, and records are opened and sealed in place.
 * Thread: owner loop. */
#ifndef ZT_NET_TLS_H
#define ZT_NET_TLS_H

#include "zt/base/addr.h"
#include "zt/loop/loop.h"
#include "zt/net/stream.h"
#include "zt/net/tls_cred.h"
#include "zt/net/tls_crl.h"

#define ZT_TLS_HANDSHAKE_TIMEOUT_MS 10000

struct zt_tls_handshake;

/* What a finished handshake yields. */
struct zt_tls_peer {
    const char *identity; /* client role: the SAN that matched; server role: the first SPIFFE SAN of the client. Borrowed (during the callback) */
    bool alpn_h2;         /* ALPN agreed on h2; false: nothing was agreed (tolerated) */
    bool resumed;         /* a session was resumed; everything about the peer was checked again */
    struct zt_tls_path *path; /* what its certificate was verified with. Borrowed (during the callback); retain it to ask again */
};

/* done runs exactly once, never from inside start. ZT_OK: s is the TLS stream (taken by the callee), peer is valid.
 * Otherwise s is NULL, the lower stream is closed, and err says why: ZT_TLS_HANDSHAKE (library text), ZT_IDENTITY for an
 * "identity verification error: ..." text, ZT_TIMEOUT, ZT_REVOKED. */
typedef void (*zt_tls_done_fn)(void *arg, struct zt_stream *s, const struct zt_tls_peer *peer,
                               const struct zt_error *err);

/* Client: verifies the server's chain against the credential's roots and requires one of `sans` exactly (none: always fails).
 * at: whom lower leads to; a session is kept under it and resumed the next time. NULL: none is.
 * Takes lower; borrows cred (retains it), sans (copies) and at (during the call). timeout_ms bounds it all. */
struct zt_tls_handshake *zt_tls_connect(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                                        const char *const *sans, unsigned n_sans, const struct zt_addr *at,
                                        unsigned timeout_ms, zt_tls_done_fn done, void *arg);
/* Server: requires a client certificate that chains to the credential's roots with a SPIFFE SAN of the credential's trust domain. */
struct zt_tls_handshake *zt_tls_accept(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                                       unsigned timeout_ms, zt_tls_done_fn done, void *arg);
/* Ends it without a callback; closes the lower stream. NULL is legal. */
void zt_tls_handshake_cancel(struct zt_tls_handshake *h);

#endif
