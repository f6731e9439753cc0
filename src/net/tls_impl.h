/* What the TLS files share: the credential's insides, verification, sessions kept for resumption, the per-handshake state that
 * OpenSSL's callbacks find, and the constructor of the TLS stream. Only src/net/tls*.c and tests include this. */
#ifndef ZT_NET_TLS_IMPL_H
#define ZT_NET_TLS_IMPL_H

#include "zt/base/identity.h"
#include "zt/loop/loop.h"
#include "zt/net/stream.h"
#include "zt/base/addr.h"
#include "zt/net/tls_cred.h"
#include "zt/net/tls_crl.h"
#include "zt/net/tls_record.h"
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>

struct zt_tls_sessions;

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
    struct zt_tls_sessions *sessions; /* resumable ones of both roles; they go with the credential */
};

/* ---- the path of a verified peer (tls_crl.c) ---- */

struct zt_tls_path {
    atomic_uint refs;
    STACK_OF(X509) *certs; /* as built: leaf, intermediates, anchor */
    int64_t not_after_s;   /* the earliest end of validity, the anchor's left out */
    _Atomic uint64_t clean_in; /* the generation of lists that found nothing revoked; 0: none */
};
/* Takes certs. Returns owned. */
struct zt_tls_path *zt_tls_path_new(STACK_OF(X509) *certs, int64_t not_after_s);

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
    struct zt_tls_path *path;       /* out: owned, or NULL */
    struct zt_error err;            /* out: ZT_TLS_HANDSHAKE, ZT_REVOKED or ZT_IDENTITY */
};
/* A store whose paths are built by the rules on top of tls_verify.c. Returns owned. */
X509_STORE *zt_tls_anchors_new(STACK_OF(X509) *roots);
/* A path to an anchor, then the SPIFFE rules. Returns X509_V_OK or the code that makes OpenSSL send the right alert. */
int zt_tls_verify_peer(struct zt_tls_verify *v, X509 *leaf, STACK_OF(X509) *presented);
/* The same for a peer whose path these anchors have verified before, in a handshake that is being resumed: everything that can have
 * changed since (validity, revocation, identities, trust domain) is looked at again; signatures are not. True: v shows the peer as
 * after zt_tls_verify_peer, and has taken path. False: nothing happened, path is still the caller's. */
bool zt_tls_verify_again(struct zt_tls_verify *v, struct zt_tls_path *path);

/* ---- sessions kept for resumption (tls_session.c) ---- */

#define ZT_TLS_SESSIONS_MAX 1024      /* per role of a credential; the oldest makes room */
#define ZT_TLS_SESSION_AGE_S 3600     /* older ones are not resumed */
#define ZT_TLS_SESSION_KEY_MAX 4096   /* bytes of identities that a session is found by */
#define ZT_TLS_SESSION_PEER_BYTES_MAX 16384 /* of certificates; a session with a peer that presents more is not kept */

struct zt_tls_sessions *zt_tls_sessions_new(void); /* returns owned. Thread: any, also below */
void zt_tls_sessions_free(struct zt_tls_sessions *c); /* NULL is legal */
/* Keeps a session under key: a server's in place of what is there, a client's beside a few others (the key's last byte is ours to
 * change). Takes session, retains path. */
void zt_tls_sessions_put(struct zt_tls_sessions *c, bool client, const void *key, size_t key_len, SSL_SESSION *session,
                         struct zt_tls_path *path);
/* Takes one out: each is used once. Returns owned, with its path owned in *path; NULL: none. */
SSL_SESSION *zt_tls_sessions_take(struct zt_tls_sessions *c, bool client, const void *key, size_t key_len,
                                  struct zt_tls_path **path);
unsigned zt_tls_sessions_count(struct zt_tls_sessions *c, bool client);

/* A client's wait for the ticket that follows a handshake. libssl is shown the first record; then it goes, whatever that was. */
struct zt_tls_ticket;
/* Takes ssl and key. Retains cred and path. Returns owned. */
struct zt_tls_ticket *zt_tls_ticket_new(SSL *ssl, struct zt_tls_cred *cred, struct zt_tls_path *path, char *key, size_t key_len);
/* Shows it the whole first record, still sealed. */
void zt_tls_ticket_offer(struct zt_tls_ticket *t, const uint8_t *record, size_t len);
void zt_tls_ticket_free(struct zt_tls_ticket *t); /* NULL is legal */
/* ---- what the context callbacks find behind an SSL (tls_handshake.c) ---- */

struct zt_tls_pending {
    struct zt_tls_verify verify;
    struct zt_tls_keylog *keylog; /* borrowed; NULL: secrets stay here */
    uint8_t client_secret[ZT_TLS_SECRET_BYTES_MAX], server_secret[ZT_TLS_SECRET_BYTES_MAX];
    uint8_t client_secret_len, server_secret_len; /* bytes; 0: not seen yet */
    uint8_t n_tickets; /* server: NewSessionTickets written, one record each */
};
struct zt_tls_pending *zt_tls_pending_of(const SSL *ssl);
int zt_tls_on_verify(X509_STORE_CTX *ctx, void *arg);
void zt_tls_on_keylog(const SSL *ssl, const char *line);
void zt_tls_keylog_write(struct zt_tls_keylog *k, const char *line); /* k NULL: nothing */
int zt_tls_on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len,
                   void *arg);
/* What a context of either role needs for stateful resumption. */
void zt_tls_session_callbacks(SSL_CTX *ctx, bool server);

/* ---- the stream (tls.c) ---- */

/* Takes lower and the keys (in and out are empty afterwards). client: which end we are. Returns owned. */
struct zt_stream *zt_tls_stream_new(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_dir *in,
                                    struct zt_tls_dir *out, bool client);
/* The first record from the peer is shown to ticket, which the stream takes. */
void zt_tls_stream_await_ticket(struct zt_stream *s, struct zt_tls_ticket *ticket);
/* The reverse: takes the stream apart. ZT_OK: s is gone, *lower is the caller's, and a stream made from lower and these keys
 * goes on where s stopped, in this process or another. ZT_AGAIN: bytes are in hand, or a direction has ended; s stays. */
enum zt_err zt_tls_stream_export(struct zt_stream *s, struct zt_stream **lower, struct zt_tls_keys *in,
                                 struct zt_tls_keys *out, bool *client);
/* The live record state; for tests, to move a sequence number. Borrowed (until close). */
void zt_tls_stream_dirs(struct zt_stream *s, struct zt_tls_dir **in, struct zt_tls_dir **out);

#endif
