/* Two ends of a TLS connection on one loop: handshakes over any pair of streams, then bytes both ways, compared. Also a foreign
 * end: plain libssl with its own settings, driven over a zt_stream. Thread: owner loop. */
#ifndef ZT_TESTS_TLS_RIG_H
#define ZT_TESTS_TLS_RIG_H

#include "support/tls_test.h"
#include "zt/base/identity.h"
#include "zt/loop/loop.h"
#include "zt/net/tls.h"
#include <openssl/ssl.h>

struct zt_tls_end {
    struct zt_stream_owner owner;
    struct zt_tls_handshake *handshake; /* NULL once done */
    struct zt_stream *s;                /* NULL: not yet, failed, or closed */
    unsigned n_done;
    struct zt_error err;
    char identity[ZT_IDENTITY_MAX];
    bool alpn_h2, resumed;
    struct zt_addr at; /* client: whom its session is kept under */
    /* the transfer */
    uint64_t to_send, sent, received; /* bytes */
    enum zt_err read_end;             /* how reading ended; ZT_OK: it has not */
    enum zt_err write_end;
    bool shut_when_sent;
    bool stop_reading;
    bool mismatch;      /* received something else than the other side sent */
    unsigned n_readable, n_writable;
    size_t chunk_max;   /* of one writev or consume; 0: as much as there is */
    uint32_t random;
};

void zt_tls_end_init(struct zt_tls_end *e);
void zt_tls_end_connect(struct zt_tls_end *e, struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                        const char *san);
void zt_tls_end_accept(struct zt_tls_end *e, struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred);
/* zt_tls_done_fn; arg is the end. */
void zt_tls_end_on_done(void *arg, struct zt_stream *s, const struct zt_tls_peer *peer, const struct zt_error *err);
/* Starts sending to_send bytes of the pattern and reading. */
void zt_tls_end_go(struct zt_tls_end *e, uint64_t to_send, bool shut_when_sent);
void zt_tls_end_close(struct zt_tls_end *e);
/* The pattern that every end sends, from position at: returns how many bytes are contiguous there. */
size_t zt_tls_pattern(uint64_t at, const uint8_t **bytes);

/* A libssl end over a stream. */
struct zt_tls_foreign {
    struct zt_stream_owner owner;
    struct zt_stream *s;
    SSL_CTX *ctx;
    SSL *ssl;
    enum zt_err read_end;
    int alert; /* the last one received; -1: none */
};
/* cert NULL: no certificate. Verifies nothing. TLS 1.3 and 1.2, two tickets, ALPN as the caller sets on ctx before start. */
void zt_tls_foreign_init(struct zt_tls_foreign *f, bool client, const struct zt_test_cert *cert);
void zt_tls_foreign_start(struct zt_tls_foreign *f, struct zt_stream *s);
/* Moves bytes between the BIOs and the stream; call it until nothing happens (the loop does on readiness). */
void zt_tls_foreign_pump(struct zt_tls_foreign *f);
void zt_tls_foreign_fini(struct zt_tls_foreign *f);

#endif
