/* What the TLS files share: the credential's insides, verification, the per-handshake state that OpenSSL's callbacks find, and
 * the constructor of the TLS stream. Only src/net/tls*.c and tests include this. */
#ifndef ZT_NET_TLS_IMPL_H
#define ZT_NET_TLS_IMPL_H

#include "zt/base/identity.h"
#include "zt/loop/loop.h"
#include "zt/net/stream.h"
#include "zt/net/tls_cred.h"
#include "zt/net/tls_record.h"
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>

struct zt_tls_cred {
    atomic_uint refs;
    SSL_CTX *client, *server; /* immutable once published */
    X509_STORE *anchors;
    STACK_OF(X509) *roots; /* the same certificates, to look at without the store's lock */
    struct zt_tls_cert_info *infos; /* chain, then roots */
    unsigned n_chain, n_roots;
    char *identity;     /* "" when the leaf has no SPIFFE id */
    char *trust_domain; /* of identity; "" likewise */
    int64_t not_before_s, not_after_s;
};

/* ---- SPIFFE identities of a certificate (tls_verify.c) ---- */

struct zt_tls_sans {
    GENERAL_NAMES *names; /* owned */
    int at;
};
/* ZT_OK (also without the extension: then next finds nothing) or ZT_INVALID: the extension does not decode or is there twice. */
enum zt_err zt_tls_sans_open(struct zt_tls_sans *s, const X509 *cert);
/* The next URI SAN that is a SPIFFE identity, in order. False at the end. */
bool zt_tls_sans_next(struct zt_tls_sans *s, char identity[static ZT_IDENTITY_MAX]);
void zt_tls_sans_close(struct zt_tls_sans *s);

/* ---- verification (tls_verify.c) ---- */

struct zt_tls_verify {
    const struct zt_tls_cred *cred; /* borrowed: anchors, own trust domain */
    bool peer_is_client;            /* usage clientAuth and the trust domain rule; else serverAuth and the list */
    char **sans;                    /* expected identities of a server */
    unsigned n_sans;
    char identity[ZT_IDENTITY_MAX]; /* out: what zt_tls_peer shows */
    struct zt_error err;            /* out: ZT_TLS_HANDSHAKE or ZT_IDENTITY */
};
/* A store whose paths are built by the rules on top of tls_verify.c. Returns owned. */
X509_STORE *zt_tls_anchors_new(STACK_OF(X509) *roots);
/* A path to an anchor, then the SPIFFE rules. Returns X509_V_OK or the code that makes OpenSSL send the right alert. */
int zt_tls_verify_peer(struct zt_tls_verify *v, X509 *leaf, STACK_OF(X509) *presented);

/* ---- what the context callbacks find behind an SSL (tls_handshake.c) ---- */

struct zt_tls_pending {
    struct zt_tls_verify verify;
    uint8_t client_secret[ZT_TLS_SECRET_BYTES_MAX], server_secret[ZT_TLS_SECRET_BYTES_MAX];
    uint8_t client_secret_len, server_secret_len; /* bytes; 0: not seen yet */
};
int zt_tls_on_verify(X509_STORE_CTX *ctx, void *arg);
void zt_tls_on_keylog(const SSL *ssl, const char *line);
int zt_tls_on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len,
                   void *arg);

/* ---- the stream (tls.c) ---- */

/* Takes lower and the keys (in and out are empty afterwards). client: which end we are. Returns owned. */
struct zt_stream *zt_tls_stream_new(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_dir *in,
                                    struct zt_tls_dir *out, bool client);
/* The reverse: takes the stream apart. ZT_OK: s is gone, *lower is the caller's, and a stream made from lower and these keys
 * goes on where s stopped, in this process or another. ZT_AGAIN: bytes are in hand, or a direction has ended; s stays. */
enum zt_err zt_tls_stream_export(struct zt_stream *s, struct zt_stream **lower, struct zt_tls_keys *in,
                                 struct zt_tls_keys *out, bool *client);
/* The live record state; for tests, to move a sequence number. Borrowed (until close). */
void zt_tls_stream_dirs(struct zt_stream *s, struct zt_tls_dir **in, struct zt_tls_dir **out);

#endif
