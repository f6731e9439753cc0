/* The handshake: libssl over the lower stream until its traffic secrets can move into the record layer.
 *
 *   state       entered when                         left when
 *   STEPPING    start                                libssl is done -> FLUSHING; it fails -> CLOSED
 *   FLUSHING    done, our last flight not yet taken  lower took it all -> CLOSED (success)
 *   CLOSED      done was called, or cancelled        (memory goes at the end of the turn)
 * The deadline runs through STEPPING and FLUSHING.
 *
 * Invariants:
 * - libssl reads exactly what it asks for: without read-ahead that is a record header, then its body. What the peer sent beyond
 *   its last handshake record stays unread in the lower stream, where the record layer finds it.
 * - Sequence numbers: with TLS 1.3 both directions start at 0 under the application secrets, because libssl returns before it reads
 *   another record; our server has written its NewSessionTickets by then, one record each, and continues behind them. With TLS 1.2 the
 *   Finished was number 0.
 * - Secrets come by the keylog callback into the handshake's own memory and are wiped with it; they are never logged, but for pods
 *   whose key log is on (tls_keylog.h). */
#include "zt/net/tls_keylog.h"
#include "zt/net/tls.h"
#include "net/tls_impl.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <openssl/err.h>
#include <pthread.h>
#include <string.h>

#define HANDSHAKE_BYTES_MAX (256 * 1024) /* from the peer; as much again is the most we write */
#define DISCARD_READS_MAX 4

enum state { STEPPING = 0, FLUSHING, CLOSED };

struct zt_tls_handshake {
    struct zt_stream_owner owner; /* of lower */
    struct zt_loop *loop;
    struct zt_stream *lower;
    struct zt_tls_cred *cred;
    SSL *ssl;
    ev_timer deadline;
    struct zt_task step_task;
    enum state state;
    bool client;
    uint8_t *out;                 /* bytes of libssl that lower has not taken */
    size_t out_len, out_sent, out_cap;
    size_t in_bytes;              /* read from the peer so far */
    enum zt_err lower_err;        /* how reading or writing lower failed */
    struct zt_tls_pending pending;
    unsigned timeout_ms;
    zt_tls_done_fn done;
    void *arg;
    char *session_key; /* client: what the session is kept under; NULL: it is not kept */
    size_t session_key_len;
};

/* ---- the BIO between libssl and the lower stream -------------------------------------------------- */

static int bio_read(BIO *bio, char *buf, size_t size, size_t *n_read)
{
    struct zt_tls_handshake *h = BIO_get_data(bio);
    uint8_t *data;
    size_t len;

    BIO_clear_retry_flags(bio);
    *n_read = 0;
    if (h->lower_err || size == 0)
        return 0;
    enum zt_err e = zt_stream_peek(h->lower, 0, &data, &len);
    if (e == ZT_AGAIN) {
        BIO_set_retry_read(bio);
        return 0;
    }
    if (!e && h->in_bytes >= HANDSHAKE_BYTES_MAX)
        e = ZT_LIMIT;
    if (e) {
        h->lower_err = e;
        return 0;
    }
    if (len > size)
        len = size;
    memcpy(buf, data, len);
    zt_stream_consume(h->lower, len);
    h->in_bytes += len;
    *n_read = len;
    return 1;
}

/* Collects: one flight is one write on the lower stream. */
static int bio_write(BIO *bio, const char *buf, size_t size, size_t *n_written)
{
    struct zt_tls_handshake *h = BIO_get_data(bio);

    BIO_clear_retry_flags(bio);
    *n_written = 0;
    if (h->out_len + size > HANDSHAKE_BYTES_MAX) {
        h->lower_err = ZT_LIMIT;
        return 0;
    }
    if (h->out_len + size > h->out_cap) {
        h->out_cap = h->out_len + size < 4096 ? 4096 : 2 * (h->out_len + size);
        h->out = zt_realloc(h->out, h->out_cap);
    }
    memcpy(h->out + h->out_len, buf, size);
    h->out_len += size;
    *n_written = size;
    return 1;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
    return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_DUP;
}

static BIO_METHOD *bio_method;
static int pending_index;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_once(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "zt_stream");
    ZT_ASSERT(bio_method && BIO_meth_set_read_ex(bio_method, bio_read) && BIO_meth_set_write_ex(bio_method, bio_write) &&
              BIO_meth_set_ctrl(bio_method, bio_ctrl));
    pending_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    ZT_ASSERT(pending_index >= 0);
}

/* ---- callbacks of the context ------------------------------------------------------------------------ */

struct zt_tls_pending *zt_tls_pending_of(const SSL *ssl)
{
    return SSL_get_ex_data(ssl, pending_index);
}

int zt_tls_on_verify(X509_STORE_CTX *ctx, void *arg)
{
    const SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
    int code = zt_tls_verify_peer(&zt_tls_pending_of(ssl)->verify, X509_STORE_CTX_get0_cert(ctx),
                                  X509_STORE_CTX_get0_untrusted(ctx));
    X509_STORE_CTX_set_error(ctx, code);
    return code == X509_V_OK;
}

int zt_tls_on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len,
                   void *arg)
{
    for (unsigned i = 0; i < in_len; i += 1u + in[i]) {
        if (in[i] == 2 && in_len - i > 2 && in[i + 1] == 'h' && in[i + 2] == '2') {
            *out = in + i + 1;
            *out_len = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL; /* no_application_protocol */
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Returns bytes written, 0 when the text is not hexadecimal or does not fit. */
static uint8_t parse_hex(const char *text, uint8_t *out, size_t size)
{
    size_t n = 0;
    for (; text[0] && text[1]; text += 2) {
        int high = hex_digit(text[0]), low = hex_digit(text[1]);
        if (high < 0 || low < 0 || n == size)
            return 0;
        out[n++] = (uint8_t)(high << 4 | low);
    }
    return text[0] ? 0 : (uint8_t)n;
}

/* "<label> <client random> <secret>", in hexadecimal. */
void zt_tls_on_keylog(const SSL *ssl, const char *line)
{
    struct zt_tls_pending *p = zt_tls_pending_of(ssl);
    size_t label_len = strcspn(line, " ");
    const char *secret = strrchr(line, ' ');

    if (!p || !secret)
        return;
    zt_tls_keylog_write(p->keylog, line);
    if (label_len == 23 && memcmp(line, "CLIENT_TRAFFIC_SECRET_0", label_len) == 0)
        p->client_secret_len = parse_hex(secret + 1, p->client_secret, sizeof(p->client_secret));
    else if (label_len == 23 && memcmp(line, "SERVER_TRAFFIC_SECRET_0", label_len) == 0)
        p->server_secret_len = parse_hex(secret + 1, p->server_secret, sizeof(p->server_secret));
}

/* ---- ends -------------------------------------------------------------------------------------------- */

static void free_pending(struct zt_tls_handshake *h)
{
    for (unsigned i = 0; i < h->pending.verify.n_sans; i++)
        zt_free(h->pending.verify.sans[i]);
    zt_free(h->pending.verify.sans);
    zt_tls_path_unref(h->pending.verify.path);
    zt_free(h->session_key);
    OPENSSL_cleanse(&h->pending, sizeof(h->pending));
    zt_free(h->out);
    h->out = NULL;
}

/* Everything but the lower stream, which has been given away or closed. */
static void dispose(struct zt_tls_handshake *h)
{
    ZT_ASSERT(h->state != CLOSED);
    h->state = CLOSED;
    ev_timer_stop(zt_loop_ev(h->loop), &h->deadline);
    zt_task_cancel(&h->step_task);
    SSL_free(h->ssl);
    h->ssl = NULL;
    free_pending(h);
    zt_tls_cred_unref(h->cred);
    h->lower = NULL;
    zt_loop_defer_zt_free(h->loop, h);
}

/* Offers lower what libssl wrote. */
static void flush_out(struct zt_tls_handshake *h)
{
    while (h->out_sent < h->out_len && !h->lower_err) {
        struct iovec iov = {h->out + h->out_sent, h->out_len - h->out_sent};
        size_t n = 0;
        enum zt_err e = zt_stream_writev(h->lower, &iov, 1, &n);
        if (e == ZT_AGAIN)
            return;
        if (e)
            h->lower_err = e;
        h->out_sent += n;
    }
    h->out_len = h->out_sent = 0;
}

/* Calls done; nothing of h may be touched afterwards. The alert libssl wrote goes out first, as far as it goes. */
static void fail(struct zt_tls_handshake *h, const struct zt_error *err)
{
    zt_tls_done_fn done = h->done;
    void *arg = h->arg;
    struct zt_error copy = *err;
    uint8_t *data;
    size_t len;

    flush_out(h);
    /* A socket closed over unread bytes answers with a reset that may overtake the alert. */
    for (int i = 0; i < DISCARD_READS_MAX && !zt_stream_peek(h->lower, 0, &data, &len); i++)
        zt_stream_consume(h->lower, len);
    zt_stream_close(h->lower, ZT_OK);
    dispose(h);
    done(arg, NULL, NULL, &copy);
}

/* ---- success ----------------------------------------------------------------------------------------- */

static enum zt_err keys_13(struct zt_tls_handshake *h, uint16_t suite, struct zt_tls_dir *client, struct zt_tls_dir *server,
                           struct zt_error *err)
{
    const struct zt_tls_pending *p = &h->pending;
    enum zt_err e = zt_tls_dir_init_secret(client, suite, p->client_secret, p->client_secret_len, h->client, err);
    if (!e)
        e = zt_tls_dir_init_secret(server, suite, p->server_secret, p->server_secret_len, !h->client, err);
    server->k.seq = p->n_tickets;
    return e;
}

static enum zt_err keys_12(struct zt_tls_handshake *h, uint16_t suite, struct zt_tls_dir *client, struct zt_tls_dir *server,
                           struct zt_error *err)
{
    uint8_t master[ZT_TLS_MASTER_BYTES], client_random[ZT_TLS_RANDOM_BYTES], server_random[ZT_TLS_RANDOM_BYTES];
    struct zt_tls_keys client_keys, server_keys;
    enum zt_err e = ZT_TLS;

    if (SSL_SESSION_get_master_key(SSL_get_session(h->ssl), master, sizeof(master)) != sizeof(master) ||
        SSL_get_client_random(h->ssl, client_random, sizeof(client_random)) != sizeof(client_random) ||
        SSL_get_server_random(h->ssl, server_random, sizeof(server_random)) != sizeof(server_random))
        zt_error_set(err, ZT_TLS, "no master secret");
    else if (!(e = zt_tls_keys_from_master(suite, master, client_random, server_random, &client_keys, &server_keys, err)) &&
             !(e = zt_tls_dir_init_keys(client, &client_keys, h->client, err)))
        e = zt_tls_dir_init_keys(server, &server_keys, !h->client, err);
    OPENSSL_cleanse(master, sizeof(master));
    OPENSSL_cleanse(&client_keys, sizeof(client_keys));
    OPENSSL_cleanse(&server_keys, sizeof(server_keys));
    return e;
}

/* libssl stays with the stream until the server's ticket has come. To libssl a connection that is freed without a shutdown is a broken
 * one, whose session must not be resumed; but this one goes on without it. */
static void await_ticket(struct zt_tls_handshake *h, struct zt_stream *s)
{
    SSL_set_shutdown(h->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    if (!h->session_key || SSL_version(h->ssl) != TLS1_3_VERSION)
        return;
    SSL_set_ex_data(h->ssl, pending_index, NULL);
    SSL_set_shutdown(h->ssl, SSL_SENT_SHUTDOWN); /* it still reads */
    zt_tls_stream_await_ticket(s, zt_tls_ticket_new(h->ssl, h->cred, h->pending.verify.path, h->session_key, h->session_key_len));
    h->ssl = NULL;
    h->session_key = NULL;
}

static void succeed(struct zt_tls_handshake *h)
{
    struct zt_tls_dir client = {0}, server = {0};
    struct zt_error err = ZT_ERROR_INIT;
    uint16_t suite = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(h->ssl));
    enum zt_err e = SSL_version(h->ssl) == TLS1_3_VERSION ? keys_13(h, suite, &client, &server, &err)
                                                          : keys_12(h, suite, &client, &server, &err);
    if (e) {
        zt_tls_dir_fini(&client);
        zt_tls_dir_fini(&server);
        zt_error_set(&err, ZT_TLS_HANDSHAKE, "record keys: %s", err.text[0] ? err.text : "none");
        fail(h, &err);
        return;
    }

    const unsigned char *alpn;
    unsigned alpn_len;
    char identity[ZT_IDENTITY_MAX];
    zt_tls_done_fn done = h->done;
    void *arg = h->arg;

    SSL_get0_alpn_selected(h->ssl, &alpn, &alpn_len);
    memcpy(identity, h->pending.verify.identity, sizeof(identity));
    struct zt_tls_path *path = zt_tls_path_ref(h->pending.verify.path);
    struct zt_tls_peer peer = {identity, alpn_len == 2 && memcmp(alpn, "h2", 2) == 0, SSL_session_reused(h->ssl) == 1, path};
    struct zt_stream *s = zt_tls_stream_new(h->loop, h->lower, h->client ? &server : &client,
                                            h->client ? &client : &server, h->client);
    await_ticket(h, s);
    dispose(h);
    done(arg, s, &peer, &err);
    zt_tls_path_unref(path);
}

/* ---- steps ------------------------------------------------------------------------------------------- */

/* Why the handshake failed, in this order: our verdict on the peer, the transport, what libssl says. */
static void describe_failure(const struct zt_tls_handshake *h, struct zt_error *err)
{
    unsigned long first = ERR_peek_error();
    const char *reason = first ? ERR_reason_error_string(first) : NULL;

    if (h->pending.verify.err.code)
        *err = h->pending.verify.err;
    else if (h->lower_err == ZT_LIMIT)
        zt_error_set(err, ZT_TLS_HANDSHAKE, "more than %d bytes of handshake", HANDSHAKE_BYTES_MAX);
    else if (h->lower_err == ZT_EOF)
        zt_error_set(err, ZT_TLS_HANDSHAKE, "peer closed the connection during the handshake");
    else if (h->lower_err == ZT_RESET)
        zt_error_set(err, ZT_TLS_HANDSHAKE, "peer reset the connection during the handshake");
    else if (h->lower_err)
        zt_error_set(err, ZT_TLS_HANDSHAKE, "%s during the handshake", zt_err_name(h->lower_err));
    else
        zt_error_set(err, ZT_TLS_HANDSHAKE, "%s", reason ? reason : "handshake failed");
}

static void update_interest(struct zt_tls_handshake *h)
{
    unsigned events = h->state == STEPPING ? ZT_STREAM_READABLE : 0;
    if (h->out_len > 0)
        events |= ZT_STREAM_WRITABLE;
    zt_stream_want(h->lower, events);
}

/* The only place that drives libssl. The last statement of every path may have freed h. */
static void step(struct zt_tls_handshake *h)
{
    struct zt_error err = ZT_ERROR_INIT;

    if (h->state == STEPPING) {
        ERR_clear_error();
        int rc = SSL_do_handshake(h->ssl);
        if (rc == 1) {
            h->state = FLUSHING;
        } else if (SSL_get_error(h->ssl, rc) != SSL_ERROR_WANT_READ || h->lower_err) {
            describe_failure(h, &err);
            ERR_clear_error();
            fail(h, &err);
            return;
        }
    }
    flush_out(h);
    if (h->lower_err) {
        describe_failure(h, &err);
        fail(h, &err);
    } else if (h->state == FLUSHING && h->out_len == 0) {
        succeed(h);
    } else {
        update_interest(h);
    }
}

static void on_lower_ready(struct zt_stream_owner *owner, struct zt_stream *s, unsigned events)
{
    step(zt_container_of(owner, struct zt_tls_handshake, owner));
}

static void on_step_task(struct zt_task *task)
{
    step(zt_container_of(task, struct zt_tls_handshake, step_task));
}

static void on_deadline(struct ev_loop *loop, ev_timer *timer, int revents)
{
    struct zt_tls_handshake *h = zt_container_of(timer, struct zt_tls_handshake, deadline);
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_TIMEOUT, "tls handshake not finished within %u ms", h->timeout_ms);
    fail(h, &err);
}

static struct zt_tls_handshake *handshake_new(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                                              bool client, unsigned timeout_ms, zt_tls_done_fn done, void *arg)
{
    struct zt_tls_handshake *h = zt_new(struct zt_tls_handshake);

    pthread_once(&once, init_once);
    h->owner.on_ready = on_lower_ready;
    h->loop = l;
    h->lower = lower;
    h->cred = zt_tls_cred_ref(cred);
    h->client = client;
    h->timeout_ms = timeout_ms;
    h->done = done;
    h->arg = arg;
    h->pending.verify.cred = cred;
    h->pending.verify.peer_is_client = !client;

    h->ssl = SSL_new(client ? cred->client : cred->server);
    BIO *bio = BIO_new(bio_method);
    ZT_ASSERT(h->ssl && bio && SSL_set_ex_data(h->ssl, pending_index, &h->pending));
    BIO_set_data(bio, h);
    BIO_set_init(bio, 1);
    SSL_set_bio(h->ssl, bio, bio);
    if (client)
        SSL_set_connect_state(h->ssl);
    else
        SSL_set_accept_state(h->ssl);

    zt_stream_own(lower, &h->owner);
    ev_timer_init(&h->deadline, on_deadline, timeout_ms / 1000.0, 0);
    ev_timer_start(zt_loop_ev(l), &h->deadline);
    h->step_task.run = on_step_task;
    zt_loop_soon(l, &h->step_task);
    return h;
}

/* The address and the expected identities; our own identity is the credential's. */
static void set_session_key(struct zt_tls_handshake *h, const struct zt_addr *at)
{
    struct zt_str key;
    zt_str_init(&key, ZT_TLS_SESSION_KEY_MAX);
    zt_str_add_n(&key, &at->ip, sizeof(at->ip));
    zt_str_add_n(&key, &at->port, sizeof(at->port));
    for (unsigned i = 0; i < h->pending.verify.n_sans; i++) {
        zt_str_add(&key, h->pending.verify.sans[i]);
        zt_str_add_char(&key, 0);
    }
    zt_str_add_char(&key, 0); /* which of several sessions */
    if (key.len < ZT_TLS_SESSION_KEY_MAX - 1) { /* not cut */
        h->session_key_len = key.len;
        h->session_key = zt_str_take(&key);
    }
    zt_str_fini(&key);
}

/* Offers the session that was kept for this server, if its certificate would still be accepted. */
static void offer_session(struct zt_tls_handshake *h)
{
    struct zt_tls_path *path;
    SSL_SESSION *session =
        h->session_key ? zt_tls_sessions_take(h->cred->sessions, true, h->session_key, h->session_key_len, &path) : NULL;
    if (!session)
        return;
    if (zt_tls_verify_again(&h->pending.verify, path))
        ZT_ASSERT(SSL_set_session(h->ssl, session) == 1);
    else
        zt_tls_path_unref(path);
    SSL_SESSION_free(session);
}

struct zt_tls_handshake *zt_tls_connect(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                                        const char *const *sans, unsigned n_sans, const struct zt_addr *at,
                                        unsigned timeout_ms, zt_tls_done_fn done, void *arg)
{
    struct zt_tls_handshake *h = handshake_new(l, lower, cred, true, timeout_ms, done, arg);
    h->pending.verify.sans = zt_new_n(char *, n_sans + 1);
    h->pending.verify.n_sans = n_sans;
    for (unsigned i = 0; i < n_sans; i++)
        h->pending.verify.sans[i] = zt_strdup(sans[i]);
    if (at)
        set_session_key(h, at);
    offer_session(h);
    return h;
}

struct zt_tls_handshake *zt_tls_accept(struct zt_loop *l, struct zt_stream *lower, struct zt_tls_cred *cred,
                                       unsigned timeout_ms, zt_tls_done_fn done, void *arg)
{
    return handshake_new(l, lower, cred, false, timeout_ms, done, arg);
}

void zt_tls_handshake_keylog(struct zt_tls_handshake *h, struct zt_tls_keylog *k)
{
    h->pending.keylog = k;
}

void zt_tls_handshake_cancel(struct zt_tls_handshake *h)
{
    if (!h)
        return;
    zt_stream_close(h->lower, ZT_RESET);
    dispose(h);
}
