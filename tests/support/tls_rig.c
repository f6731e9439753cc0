/* See tls_rig.h. */
#include "support/tls_rig.h"
#include "zt/base/mem.h"
#include <string.h>

#define PATTERN_BYTES 1000003 /* prime, so that no chunk size hides a shift */
#define TURN_BYTES (1024 * 1024)

size_t zt_tls_pattern(uint64_t at, const uint8_t **bytes)
{
    static uint8_t pattern[PATTERN_BYTES];
    if (pattern[0] == 0) {
        uint32_t x = 1;
        for (size_t i = 0; i < PATTERN_BYTES; i++) {
            x = x * 1664525 + 1013904223;
            pattern[i] = (uint8_t)(x >> 24);
        }
        pattern[0] = 1;
    }
    *bytes = pattern + at % PATTERN_BYTES;
    return PATTERN_BYTES - at % PATTERN_BYTES;
}

static size_t piece(struct zt_tls_end *e, size_t n)
{
    if (e->chunk_max == 0 || n <= 1)
        return n;
    e->random = e->random * 1664525 + 1013904223;
    size_t limit = 1 + (e->random >> 8) % e->chunk_max;
    return n < limit ? n : limit;
}

static void want(struct zt_tls_end *e)
{
    unsigned events = 0;
    if (!e->read_end && !e->stop_reading)
        events |= ZT_STREAM_READABLE;
    if (e->sent < e->to_send && !e->write_end)
        events |= ZT_STREAM_WRITABLE;
    zt_stream_want(e->s, events);
}

static void read_some(struct zt_tls_end *e)
{
    size_t turn = 0;
    while (turn < TURN_BYTES) {
        uint8_t *data;
        const uint8_t *expected;
        size_t len;
        enum zt_err err = zt_stream_peek(e->s, 0, &data, &len);
        if (err == ZT_AGAIN)
            return;
        if (err) {
            e->read_end = err;
            return;
        }
        size_t n = piece(e, len), same = zt_tls_pattern(e->received, &expected);
        if (n > same)
            n = same;
        e->mismatch |= memcmp(data, expected, n) != 0;
        zt_stream_consume(e->s, n);
        e->received += n;
        turn += n;
    }
}

static void write_some(struct zt_tls_end *e)
{
    size_t turn = 0;
    while (e->sent < e->to_send && turn < TURN_BYTES) {
        struct iovec iov[3];
        uint64_t at = e->sent;
        int n_iov = 0;
        for (; n_iov < 3 && at < e->to_send; n_iov++) {
            const uint8_t *bytes;
            size_t n = zt_tls_pattern(at, &bytes);
            if (n > e->to_send - at)
                n = (size_t)(e->to_send - at);
            n = piece(e, n);
            iov[n_iov] = (struct iovec){(void *)(uintptr_t)bytes, n};
            at += n;
        }
        size_t accepted = 0;
        enum zt_err err = zt_stream_writev(e->s, iov, n_iov, &accepted);
        e->sent += accepted;
        turn += accepted;
        if (err == ZT_AGAIN)
            return;
        if (err) {
            e->write_end = err;
            return;
        }
    }
    if (e->sent == e->to_send && e->shut_when_sent) {
        e->write_end = ZT_EOF;
        zt_stream_shutdown_write(e->s);
    } else if (e->sent < e->to_send) { /* the turn is used up: ask again */
        zt_stream_want(e->s, 0);
    }
}

static void on_ready(struct zt_stream_owner *owner, struct zt_stream *s, unsigned events)
{
    struct zt_tls_end *e = zt_container_of(owner, struct zt_tls_end, owner);
    ZT_ASSERT(s == e->s);
    e->n_readable += (events & ZT_STREAM_READABLE) != 0;
    e->n_writable += (events & ZT_STREAM_WRITABLE) != 0;
    if (events & ZT_STREAM_READABLE)
        read_some(e);
    if (events & ZT_STREAM_WRITABLE)
        write_some(e);
    want(e);
}

void zt_tls_end_init(struct zt_tls_end *e)
{
    memset(e, 0, sizeof(*e));
    e->owner.on_ready = on_ready;
}

void zt_tls_end_on_done(void *arg, struct zt_stream *s, const struct zt_tls_peer *peer, const struct zt_error *err)
{
    struct zt_tls_end *e = arg;
    e->n_done++;
    e->handshake = NULL;
    e->s = s;
    e->err = *err;
    if (!s)
        return;
    e->alpn_h2 = peer->alpn_h2;
        e->resumed = peer->resumed;
    strncpy(e->identity, peer->identity, sizeof(e->identity) - 1);
    zt_stream_own(s, &e->owner);
}

void zt_tls_end_connect(struct zt_tls_end *e, struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                        const char *san)
{
    e->handshake = zt_tls_connect(l, lower, cred, &san, san != NULL, &e->at, 5000, zt_tls_end_on_done, e);
}

void zt_tls_end_accept(struct zt_tls_end *e, struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred)
{
    e->handshake = zt_tls_accept(l, lower, cred, 5000, zt_tls_end_on_done, e);
}

void zt_tls_end_go(struct zt_tls_end *e, uint64_t to_send, bool shut_when_sent)
{
    e->to_send = to_send;
    e->shut_when_sent = shut_when_sent;
    if (to_send == 0 && shut_when_sent) {
        e->write_end = ZT_EOF;
        zt_stream_shutdown_write(e->s);
    }
    want(e);
}

void zt_tls_end_close(struct zt_tls_end *e)
{
    zt_tls_handshake_cancel(e->handshake);
    zt_stream_close(e->s, ZT_OK);
    e->handshake = NULL;
    e->s = NULL;
}

/* ---- foreign ---- */

static void on_info(const SSL *ssl, int where, int value)
{
    struct zt_tls_foreign *f = SSL_get_app_data(ssl);
    if (where == SSL_CB_READ_ALERT)
        f->alert = value & 255;
}

static int accept_any(X509_STORE_CTX *ctx, void *arg)
{
    return 1;
}

void zt_tls_foreign_pump(struct zt_tls_foreign *f)
{
    uint8_t *data, buf[4096];
    size_t len, accepted;
    int n;
    enum zt_err e;

    while (!(e = zt_stream_peek(f->s, 0, &data, &len))) {
        BIO_write(SSL_get_rbio(f->ssl), data, (int)len);
        zt_stream_consume(f->s, len);
    }
    if (e != ZT_AGAIN)
        f->read_end = e;
    if (!SSL_is_init_finished(f->ssl))
        SSL_do_handshake(f->ssl);
    if (SSL_is_init_finished(f->ssl))
        SSL_peek(f->ssl, buf, 1); /* takes alerts and KeyUpdates */
    while ((n = BIO_read(SSL_get_wbio(f->ssl), buf, sizeof(buf))) > 0) {
        struct iovec iov = {buf, (size_t)n};
        if (zt_stream_writev(f->s, &iov, 1, &accepted) || accepted != (size_t)n)
            break; /* the other end is gone; tests of foreign ends stay far below any limit */
    }
}

static void on_foreign_ready(struct zt_stream_owner *owner, struct zt_stream *s, unsigned events)
{
    struct zt_tls_foreign *f = zt_container_of(owner, struct zt_tls_foreign, owner);
    zt_tls_foreign_pump(f);
    if (f->read_end)
        zt_stream_want(f->s, 0);
}

void zt_tls_foreign_init(struct zt_tls_foreign *f, bool client, const struct zt_test_cert *cert)
{
    memset(f, 0, sizeof(*f));
    f->owner.on_ready = on_foreign_ready;
    f->alert = -1;
    f->ctx = SSL_CTX_new(client ? TLS_client_method() : TLS_server_method());
    ZT_ASSERT(f->ctx);
    SSL_CTX_set_verify(f->ctx, SSL_VERIFY_PEER, NULL); /* a server asks for a certificate */
    SSL_CTX_set_cert_verify_callback(f->ctx, accept_any, NULL);
    if (cert) {
        SSL_CTX_use_certificate(f->ctx, cert->cert);
        SSL_CTX_use_PrivateKey(f->ctx, cert->key);
    }
}

void zt_tls_foreign_start(struct zt_tls_foreign *f, struct zt_stream *s)
{
    f->s = s;
    f->ssl = SSL_new(f->ctx);
    SSL_set_app_data(f->ssl, f);
    SSL_set_info_callback(f->ssl, on_info);
    SSL_set_bio(f->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    if (SSL_CTX_get_ssl_method(f->ctx) == TLS_client_method())
        SSL_set_connect_state(f->ssl);
    else
        SSL_set_accept_state(f->ssl);
    zt_stream_own(s, &f->owner);
    zt_stream_want(s, ZT_STREAM_READABLE);
    zt_tls_foreign_pump(f);
}

void zt_tls_foreign_fini(struct zt_tls_foreign *f)
{
    zt_stream_close(f->s, ZT_OK);
    SSL_free(f->ssl);
    SSL_CTX_free(f->ctx);
    memset(f, 0, sizeof(*f));
}
