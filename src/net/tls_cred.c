/* Credentials: PEM texts to two immutable OpenSSL contexts and a store of trust anchors.
 *
 * Invariants: after zt_tls_cred_new returned, nothing in a credential changes but its reference count and the sessions that are kept
 * with it (tls_session.c, under a lock of their own), so that any number of loops may start handshakes from it. The key lives in the contexts only; no copy of its text is made. */
#include "net/tls_impl.h"
#include "zt/base/mem.h"
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>
#include <time.h>

static const char suites_13[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
static const char suites_12[] = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
                                "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256";
/* Libraries before 3.5 do not know the last one. */
static const char groups_with_pq[] = "X25519:P-256:P-384:X25519MLKEM768";
static const char group_pq[] = "X25519MLKEM768";
static const char groups_classic[] = "X25519:P-256:P-384";
static const char signature_algorithms[] =
    "ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512:ed25519:"
    "rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"
    "rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512";

/* Drops what OpenSSL left in its thread's queue and words the first entry. */
static const char *library_text(void)
{
    unsigned long first = ERR_peek_error();
    const char *reason = first ? ERR_reason_error_string(first) : NULL;
    ERR_clear_error();
    return reason ? reason : "unknown error";
}

/* ---- PEM ------------------------------------------------------------------------------------- */

/* Without this OpenSSL would ask the terminal. */
static int no_passphrase(char *buf, int size, int writing, void *arg)
{
    return -1;
}

static BIO *text_bio(const char *pem, const char *what, struct zt_error *err)
{
    size_t len = strnlen(pem, ZT_TLS_PEM_BYTES_MAX + 1);
    if (len > ZT_TLS_PEM_BYTES_MAX) {
        zt_error_set(err, ZT_TLS, "%s: more than %d bytes", what, ZT_TLS_PEM_BYTES_MAX);
        return NULL;
    }
    BIO *bio = BIO_new_mem_buf(pem, (int)len);
    ZT_ASSERT(bio);
    return bio;
}

/* Returns owned, 1..ZT_TLS_CHAIN_MAX certificates; NULL with err set. */
static STACK_OF(X509) *parse_certs(const char *pem, const char *what, struct zt_error *err)
{
    BIO *bio = text_bio(pem, what, err);
    if (!bio)
        return NULL;
    STACK_OF(X509) *certs = sk_X509_new_null();
    enum zt_err e = ZT_OK;
    X509 *cert;

    ZT_ASSERT(certs);
    ERR_clear_error();
    while (!e && (cert = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL))) {
        ZT_ASSERT(sk_X509_push(certs, cert));
        if (sk_X509_num(certs) > ZT_TLS_CHAIN_MAX)
            e = zt_error_set(err, ZT_TLS, "%s: more than %d certificates", what, ZT_TLS_CHAIN_MAX);
    }
    if (!e && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
        e = zt_error_set(err, ZT_TLS, "%s: certificate %d: %s", what, sk_X509_num(certs) + 1, library_text());
    if (!e && sk_X509_num(certs) == 0)
        e = zt_error_set(err, ZT_TLS, "%s: no certificate", what);
    ERR_clear_error();
    BIO_free(bio);
    if (!e)
        return certs;
    sk_X509_pop_free(certs, X509_free);
    return NULL;
}

static EVP_PKEY *parse_key(const char *pem, struct zt_error *err)
{
    BIO *bio = text_bio(pem, "private key", err);
    if (!bio)
        return NULL;
    ERR_clear_error();
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    if (!key)
        zt_error_set(err, ZT_TLS, "private key: %s", library_text());
    BIO_free(bio);
    return key;
}

static char *cert_pem(X509 *cert)
{
    char *data;
    BIO *bio = BIO_new(BIO_s_mem());
    ZT_ASSERT(bio && PEM_write_bio_X509(bio, cert) == 1);
    long n = BIO_get_mem_data(bio, &data);
    char *pem = zt_strndup(data, (size_t)n);
    BIO_free(bio);
    return pem;
}

static char *serial_decimal(const X509 *cert)
{
    BIGNUM *bn = ASN1_INTEGER_to_BN(X509_get0_serialNumber(cert), NULL);
    char *text = bn ? BN_bn2dec(bn) : NULL;
    char *out = zt_strdup(text ? text : "0");
    OPENSSL_free(text);
    BN_free(bn);
    return out;
}

static bool time_s(const ASN1_TIME *t, int64_t *out)
{
    struct tm tm;
    if (ASN1_TIME_to_tm(t, &tm) != 1)
        return false;
    *out = timegm(&tm);
    return true;
}

/* Fills infos[at..] from certs. */
static enum zt_err describe(struct zt_tls_cert_info *infos, STACK_OF(X509) *certs, const char *what, struct zt_error *err)
{
    for (int i = 0; i < sk_X509_num(certs); i++) {
        X509 *cert = sk_X509_value(certs, i);
        infos[i].pem = cert_pem(cert);
        infos[i].serial_decimal = serial_decimal(cert);
        if (!time_s(X509_get0_notBefore(cert), &infos[i].not_before_s) ||
            !time_s(X509_get0_notAfter(cert), &infos[i].not_after_s))
            return zt_error_set(err, ZT_TLS, "%s: certificate %d: bad validity time", what, i + 1);
    }
    return ZT_OK;
}

/* ---- contexts -------------------------------------------------------------------------------- */

static bool set_groups(SSL_CTX *ctx, bool pqc)
{
    if (SSL_CTX_set1_groups_list(ctx, pqc ? group_pq : groups_with_pq) == 1)
        return true;
    ERR_clear_error();
    return !pqc && SSL_CTX_set1_groups_list(ctx, groups_classic) == 1;
}

bool zt_tls_pqc_available(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    ZT_ASSERT(ctx);
    bool ok = set_groups(ctx, true);
    ERR_clear_error();
    SSL_CTX_free(ctx);
    return ok;
}

static bool set_protocol(SSL_CTX *ctx, bool server, const struct zt_tls_profile *profile)
{
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_NO_AUTO_CHAIN | SSL_MODE_RELEASE_BUFFERS);
    zt_tls_session_callbacks(ctx, server);
    SSL_CTX_set_max_early_data(ctx, 0);
    SSL_CTX_set_security_level(ctx, 2);
    /* With SSL_OP_NO_TICKET a TLS 1.3 "ticket" is the number of a session that we keep. PQC has no group in TLS 1.2. */
    return SSL_CTX_set_num_tickets(ctx, 1) == 1 &&
              SSL_CTX_set_min_proto_version(ctx, profile->tls12 && !profile->pqc ? TLS1_2_VERSION : TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_ciphersuites(ctx, suites_13) == 1 && SSL_CTX_set_cipher_list(ctx, suites_12) == 1 &&
              SSL_CTX_set1_sigalgs_list(ctx, signature_algorithms) == 1 && set_groups(ctx, profile->pqc);
}

/* chain: leaf first. */
static bool set_certificate(SSL_CTX *ctx, STACK_OF(X509) *chain, EVP_PKEY *key)
{
    if (SSL_CTX_use_certificate(ctx, sk_X509_value(chain, 0)) != 1 || SSL_CTX_use_PrivateKey(ctx, key) != 1)
        return false;
    for (int i = 1; i < sk_X509_num(chain); i++)
        if (SSL_CTX_add1_chain_cert(ctx, sk_X509_value(chain, i)) != 1)
            return false;
    return SSL_CTX_check_private_key(ctx) == 1;
}

static bool set_client_ca_names(SSL_CTX *ctx, STACK_OF(X509) *roots)
{
    STACK_OF(X509_NAME) *names = sk_X509_NAME_new_null();
    ZT_ASSERT(names);
    for (int i = 0; i < sk_X509_num(roots); i++) {
        X509_NAME *name = X509_get_subject_name(sk_X509_value(roots, i));
        bool known = false;
        for (int j = 0; j < sk_X509_NAME_num(names); j++)
            known |= X509_NAME_cmp(sk_X509_NAME_value(names, j), name) == 0;
        if (known)
            continue;
        X509_NAME *copy = X509_NAME_dup(name);
        ZT_ASSERT(copy && sk_X509_NAME_push(names, copy));
    }
    SSL_CTX_set_client_CA_list(ctx, names); /* takes names */
    return true;
}

static SSL_CTX *context_new(bool server, const struct zt_tls_profile *profile, STACK_OF(X509) *chain, EVP_PKEY *key, STACK_OF(X509) *roots,
                            struct zt_error *err)
{
    static const unsigned char h2_only[] = {2, 'h', '2'};
    SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

    ZT_ASSERT(ctx);
    bool ok = set_protocol(ctx, server, profile) && set_certificate(ctx, chain, key);
    if (ok && server) {
        SSL_CTX_set_alpn_select_cb(ctx, zt_tls_on_alpn, NULL);
        ok = set_client_ca_names(ctx, roots);
    } else if (ok) {
        ok = SSL_CTX_set_alpn_protos(ctx, h2_only, sizeof(h2_only)) == 0; /* 0 is success here */
    }
    if (!ok) {
        zt_error_set(err, ZT_TLS, "certificate and key: %s", library_text());
        SSL_CTX_free(ctx);
        return NULL;
    }
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(ctx, zt_tls_on_verify, NULL);
    SSL_CTX_set_keylog_callback(ctx, zt_tls_on_keylog);
    return ctx;
}

/* ---- identity -------------------------------------------------------------------------------- */

/* True when the first URI SAN of cert is exactly `identity`. */
static bool first_uri_is(const X509 *cert, const char *identity)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    bool match = false;
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI)
            continue;
        size_t len = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        match = len == strlen(identity) &&
                memcmp(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier), identity, len) == 0;
        break;
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    return match;
}

static void set_identity(struct zt_tls_cred *c, const X509 *leaf)
{
    struct zt_tls_sans sans;
    struct zt_identity_view view;
    char text[ZT_IDENTITY_MAX];

    if (!zt_tls_sans_open(&sans, leaf) && zt_tls_sans_next(&sans, text) &&
        zt_identity_parse(text, strlen(text), &view)) {
        c->identity = zt_strdup(text);
        c->trust_domain = zt_strndup(view.trust_domain, view.trust_domain_len);
    } else {
        c->identity = zt_strdup("");
        c->trust_domain = zt_strdup("");
    }
    zt_tls_sans_close(&sans);
}

/* ---- the credential -------------------------------------------------------------------------- */

static enum zt_err fill(struct zt_tls_cred *c, STACK_OF(X509) *chain, EVP_PKEY *key, STACK_OF(X509) *roots,
                        const char *identity, const struct zt_tls_profile *profile, struct zt_error *err)
{
    X509 *leaf = sk_X509_value(chain, 0);
    enum zt_err e;

    if (X509_check_private_key(leaf, key) != 1) {
        ERR_clear_error();
        return zt_error_set(err, ZT_TLS, "private key does not belong to the certificate");
    }
    if (identity && !first_uri_is(leaf, identity))
        return zt_error_set(err, ZT_IDENTITY, "did not find expected SAN: %s", identity);
    c->n_chain = (unsigned)sk_X509_num(chain);
    c->n_roots = (unsigned)sk_X509_num(roots);
    c->infos = zt_new_n(struct zt_tls_cert_info, c->n_chain + c->n_roots);
    if ((e = describe(c->infos, chain, "certificate chain", err)) ||
        (e = describe(c->infos + c->n_chain, roots, "roots", err)))
        return e;
    c->not_before_s = c->infos[0].not_before_s;
    c->not_after_s = c->infos[0].not_after_s;
    set_identity(c, leaf);
    ZT_ASSERT(c->roots = X509_chain_up_ref(roots));
    c->anchors = zt_tls_anchors_new(roots);
    if (!(c->client = context_new(false, profile, chain, key, roots, err)) ||
        !(c->server = context_new(true, profile, chain, key, roots, err)))
        return ZT_TLS;
    return ZT_OK;
}

enum zt_err zt_tls_cred_new(const char *chain_pem, const char *key_pem, const char *roots_pem, const char *identity,
                            const struct zt_tls_profile *profile, struct zt_tls_cred **out, struct zt_error *err)
{
    STACK_OF(X509) *chain = parse_certs(chain_pem, "certificate chain", err);
    STACK_OF(X509) *roots = chain ? parse_certs(roots_pem, "roots", err) : NULL;
    EVP_PKEY *key = roots ? parse_key(key_pem, err) : NULL;
    enum zt_err e = ZT_TLS;

    *out = NULL;
    if (key) {
        struct zt_tls_cred *c = zt_new(struct zt_tls_cred);
        atomic_init(&c->refs, 1);
        c->sessions = zt_tls_sessions_new();
        e = fill(c, chain, key, roots, identity, profile, err);
        if (e)
            zt_tls_cred_unref(c);
        else
            *out = c;
    }
    EVP_PKEY_free(key);
    sk_X509_pop_free(chain, X509_free);
    sk_X509_pop_free(roots, X509_free);
    return e;
}

struct zt_tls_cred *zt_tls_cred_ref(struct zt_tls_cred *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void zt_tls_cred_unref(struct zt_tls_cred *c)
{
    if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
        return;
    zt_tls_sessions_free(c->sessions);
    SSL_CTX_free(c->client);
    SSL_CTX_free(c->server);
    X509_STORE_free(c->anchors);
    sk_X509_pop_free(c->roots, X509_free);
    for (unsigned i = 0; c->infos && i < c->n_chain + c->n_roots; i++) {
        zt_free(c->infos[i].pem);
        zt_free(c->infos[i].serial_decimal);
    }
    zt_free(c->infos);
    zt_free(c->identity);
    zt_free(c->trust_domain);
    zt_free(c);
}

const char *zt_tls_cred_identity(const struct zt_tls_cred *c)
{
    return c->identity;
}

int64_t zt_tls_cred_not_before_s(const struct zt_tls_cred *c)
{
    return c->not_before_s;
}

int64_t zt_tls_cred_not_after_s(const struct zt_tls_cred *c)
{
    return c->not_after_s;
}

const struct zt_tls_cert_info *zt_tls_cred_certs(const struct zt_tls_cred *c, unsigned *n_chain, unsigned *n_roots)
{
    *n_chain = c->n_chain;
    *n_roots = c->n_roots;
    return c->infos;
}
