/* Session resumption, TLS 1.3, stateful: what goes over the wire is a number, the session stays here (RFC 8446 §2.2, §4.6.1).
 *
 * Invariants:
 * - Sessions belong to a credential and die with it: a new certificate, key or root bundle begins with none. Within it a client's are
 *   found by the identities that it expects and the address that it dials, a server's by the number that it gave out.
 * - Each is used once: it leaves the table when it is offered or asked for, and the handshake that used it brings the next.
 * - With each is kept the path that its peer's certificate was verified with, and zt_tls_verify_again judges that before the session is
 *   offered (client) or accepted (server). What does not pass is dropped, and a full handshake decides.
 * - The lock guards the table only.
 *
 * A client learns its ticket after the handshake, when its records are already opened by the record layer. So libssl is kept until
 * the first record has come, is shown a copy of that one, and is freed. */
#include "net/tls_impl.h"
#include "zt/base/clock.h"
#include "zt/base/list.h"
#include "zt/base/map.h"
#include "zt/base/mem.h"
#include <openssl/err.h>
#include <pthread.h>
#include <string.h>

#define SLOTS 8 /* sessions that a client keeps for one server: so many handshakes may be resumed together. The key's last byte */
#define TICKET_RECORD_BYTES_MAX 4096 /* a longer first record is none of a ticket */

struct session {
    UT_hash_handle hh;
    struct zt_link age_link; /* table.by_age, oldest first */
    SSL_SESSION *session;
    struct zt_tls_path *path;
    uint64_t kept_ms;
    size_t key_len;
    uint8_t key[];
};

struct table {
    struct session *sessions;
    struct zt_link by_age;
    unsigned n;
};

struct zt_tls_sessions {
    pthread_mutex_t lock;
    struct table tables[2]; /* server, client */
};

/* ---- the tables --------------------------------------------------------------------------------- */

struct zt_tls_sessions *zt_tls_sessions_new(void)
{
    struct zt_tls_sessions *c = zt_new(struct zt_tls_sessions);
    pthread_mutex_init(&c->lock, NULL);
    zt_list_init(&c->tables[0].by_age);
    zt_list_init(&c->tables[1].by_age);
    return c;
}

static void session_unlink(struct table *t, struct session *s)
{
    HASH_DELETE(hh, t->sessions, s);
    zt_list_remove(&s->age_link);
    t->n--;
}

static void session_free(struct session *s)
{
    if (!s)
        return;
    SSL_SESSION_free(s->session);
    zt_tls_path_unref(s->path);
    zt_free(s);
}

void zt_tls_sessions_free(struct zt_tls_sessions *c)
{
    struct zt_link *link;
    if (!c)
        return;
    for (int i = 0; i < 2; i++) {
        while ((link = zt_list_first(&c->tables[i].by_age))) {
            struct session *s = zt_container_of(link, struct session, age_link);
            session_unlink(&c->tables[i], s);
            session_free(s);
        }
    }
    pthread_mutex_destroy(&c->lock);
    zt_free(c);
}

/* Unlinks and returns it, or NULL. */
static struct session *table_take(struct table *t, const void *key, size_t key_len)
{
    struct session *s;
    HASH_FIND(hh, t->sessions, key, key_len, s);
    if (s)
        session_unlink(t, s);
    return s;
}

/* The first free one, else the last. */
static void choose_slot(const struct table *t, struct session *s)
{
    uint8_t *slot = &s->key[s->key_len - 1];
    struct session *there;
    for (*slot = 0; *slot < SLOTS - 1; ++*slot) {
        HASH_FIND(hh, t->sessions, s->key, s->key_len, there);
        if (!there)
            return;
    }
}

void zt_tls_sessions_put(struct zt_tls_sessions *c, bool client, const void *key, size_t key_len, SSL_SESSION *session,
                         struct zt_tls_path *path)
{
    struct table *t = &c->tables[client];
    struct session *s = zt_zalloc(sizeof(*s) + key_len), *oldest = NULL;
    s->session = session;
    s->path = zt_tls_path_ref(path);
    s->kept_ms = zt_clock_mono_ms();
    s->key_len = key_len;
    memcpy(s->key, key, key_len);

    pthread_mutex_lock(&c->lock);
    if (client)
        choose_slot(t, s);
    struct session *same = table_take(t, s->key, key_len);
    if (t->n >= ZT_TLS_SESSIONS_MAX) {
        oldest = zt_container_of(zt_list_first(&t->by_age), struct session, age_link);
        session_unlink(t, oldest);
    }
    HASH_ADD_KEYPTR(hh, t->sessions, s->key, s->key_len, s);
    zt_list_push_back(&t->by_age, &s->age_link);
    t->n++;
    pthread_mutex_unlock(&c->lock);
    session_free(same);
    session_free(oldest);
}

SSL_SESSION *zt_tls_sessions_take(struct zt_tls_sessions *c, bool client, const void *key, size_t key_len,
                                  struct zt_tls_path **path)
{
    uint8_t probe[ZT_TLS_SESSION_KEY_MAX];
    struct session *s = NULL;
    ZT_ASSERT(key_len > 0 && key_len <= sizeof(probe));
    memcpy(probe, key, key_len);
    pthread_mutex_lock(&c->lock);
    for (unsigned slot = 0; !s && slot < (client ? SLOTS : 1); slot++) {
        if (client)
            probe[key_len - 1] = (uint8_t)slot;
        s = table_take(&c->tables[client], probe, key_len);
    }
    pthread_mutex_unlock(&c->lock);
    if (!s || zt_clock_mono_ms() - s->kept_ms > UINT64_C(1000) * ZT_TLS_SESSION_AGE_S) {
        session_free(s);
        return NULL;
    }
    SSL_SESSION *session = s->session;
    *path = s->path;
    zt_free(s);
    return session;
}

unsigned zt_tls_sessions_count(struct zt_tls_sessions *c, bool client)
{
    pthread_mutex_lock(&c->lock);
    unsigned n = c->tables[client].n;
    pthread_mutex_unlock(&c->lock);
    return n;
}

/* With a session stays all that its peer presented. A peer that presents a lot is not worth the memory. */
static bool is_small(SSL *ssl)
{
    STACK_OF(X509) *chain = SSL_get_peer_cert_chain(ssl);
    int bytes = i2d_X509(SSL_get0_peer_certificate(ssl), NULL);
    for (int i = 0; i < sk_X509_num(chain); i++)
        bytes += i2d_X509(sk_X509_value(chain, i), NULL);
    return bytes <= ZT_TLS_SESSION_PEER_BYTES_MAX;
}

/* ---- server ------------------------------------------------------------------------------------- */

/* A ticket was written: the session is under the number that it carries. */
static int on_server_session(SSL *ssl, SSL_SESSION *session)
{
    struct zt_tls_pending *p = zt_tls_pending_of(ssl);
    unsigned len;
    const unsigned char *id = SSL_SESSION_get_id(session, &len);
    if (!p || SSL_SESSION_get_protocol_version(session) != TLS1_3_VERSION)
        return 0;
    p->n_tickets++;
    if (!p->verify.path || !is_small(ssl))
        return 0;
    zt_tls_sessions_put(p->verify.cred->sessions, false, id, len, session, p->verify.path);
    return 1; /* taken */
}

static SSL_SESSION *on_server_lookup(SSL *ssl, const unsigned char *id, int len, int *copy)
{
    struct zt_tls_pending *p = zt_tls_pending_of(ssl);
    struct zt_tls_path *path;
    *copy = 0; /* libssl gets our reference */
    if (!p || p->verify.path)
        return NULL;
    SSL_SESSION *session = zt_tls_sessions_take(p->verify.cred->sessions, false, id, (size_t)len, &path);
    if (session && !zt_tls_verify_again(&p->verify, path)) {
        zt_tls_path_unref(path);
        SSL_SESSION_free(session);
        session = NULL;
    }
    return session;
}

/* ---- client ------------------------------------------------------------------------------------- */

struct zt_tls_ticket {
    SSL *ssl;
    struct zt_tls_cred *cred;
    struct zt_tls_path *path;
    char *key;
    size_t key_len;
};

static int ticket_index;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_once(void)
{
    ticket_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    ZT_ASSERT(ticket_index >= 0);
}

static int on_client_session(SSL *ssl, SSL_SESSION *session)
{
    struct zt_tls_ticket *t = SSL_get_ex_data(ssl, ticket_index);
    if (!t || !SSL_SESSION_is_resumable(session) || !is_small(ssl))
        return 0;
    zt_tls_sessions_put(t->cred->sessions, true, t->key, t->key_len, session, t->path);
    return 1; /* taken */
}

struct zt_tls_ticket *zt_tls_ticket_new(SSL *ssl, struct zt_tls_cred *cred, struct zt_tls_path *path, char *key, size_t key_len)
{
    struct zt_tls_ticket *t = zt_new(struct zt_tls_ticket);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_null());
    ZT_ASSERT(in && out && SSL_set_ex_data(ssl, ticket_index, t));
    SSL_set_bio(ssl, in, out);
    *t = (struct zt_tls_ticket){ssl, zt_tls_cred_ref(cred), zt_tls_path_ref(path), key, key_len};
    return t;
}

void zt_tls_ticket_offer(struct zt_tls_ticket *t, const uint8_t *record, size_t len)
{
    char byte;
    if (len > TICKET_RECORD_BYTES_MAX || BIO_write(SSL_get_rbio(t->ssl), record, (int)len) != (int)len)
        return;
    ERR_clear_error();
    SSL_peek(t->ssl, &byte, 1); /* takes the ticket in; anything else is the record layer's */
    ERR_clear_error();
}

void zt_tls_ticket_free(struct zt_tls_ticket *t)
{
    if (!t)
        return;
    SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* not broken: the session stays good */
    SSL_free(t->ssl);
    zt_tls_cred_unref(t->cred);
    zt_tls_path_unref(t->path);
    zt_free(t->key);
    zt_free(t);
}

/* ---- contexts ----------------------------------------------------------------------------------- */

void zt_tls_session_callbacks(SSL_CTX *ctx, bool server)
{
    static const unsigned char context[] = "hbone"; /* libssl wants one where clients are verified */
    pthread_once(&once, init_once);
    SSL_CTX_set_session_cache_mode(ctx, (server ? SSL_SESS_CACHE_SERVER : SSL_SESS_CACHE_CLIENT) | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_set_timeout(ctx, ZT_TLS_SESSION_AGE_S);
    if (server) {
        ZT_ASSERT(SSL_CTX_set_session_id_context(ctx, context, sizeof(context) - 1) == 1);
        SSL_CTX_sess_set_new_cb(ctx, on_server_session);
        SSL_CTX_sess_set_get_cb(ctx, on_server_lookup);
    } else {
        SSL_CTX_sess_set_new_cb(ctx, on_client_session);
    }
}
