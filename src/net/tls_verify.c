/* Verification of a peer's certificate chain, then of its SPIFFE identity (spec/dataplane §3.2, §4.2, §12.2).
 *
 * X509_verify_cert builds and checks the path; its habits are bent to those of the reference's verifier:
 *
 *   aspect                     here
 *   anchor                     (subject, key, name constraints) only: its validity, version, basicConstraints and other
 *                              extensions do not count, and it need not be self-signed
 *   issuers of the same name   told apart by signature, not by key identifiers
 *   keyUsage                   ignored
 *   EKU                        on leaf and intermediates; absent means any, present must contain ours (anyExtendedKeyUsage is
 *                              not ours)
 *   leaf                       v3, not a CA, not itself an anchor
 *   intermediates              v3, CA; at most six
 *   keys                       RSA 2048-8192, P-256/384/521, Ed25519; no SHA-1 (security level 2)
 *
 * Order: path and everything about certificates first, identities last. */
#include "net/tls_impl.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <string.h>
#include <time.h>

#define INTERMEDIATES_MAX 6
#define RSA_BITS_MIN 2048
#define RSA_BITS_MAX 8192
#define LIST_TEXT_MAX 200 /* bytes of a list of identities in an error text */

/* Codes for X509_STORE_CTX that OpenSSL turns into these alerts. */
#define V_BAD_CERTIFICATE X509_V_ERR_CERT_REJECTED               /* 42 */
#define V_UNSUPPORTED_CERTIFICATE X509_V_ERR_INVALID_PURPOSE     /* 43 */
#define V_CERTIFICATE_EXPIRED X509_V_ERR_CERT_HAS_EXPIRED        /* 45 */
#define V_CERTIFICATE_UNKNOWN X509_V_ERR_SUBJECT_ISSUER_MISMATCH /* 46 */
#define V_UNKNOWN_CA X509_V_ERR_CERT_CHAIN_TOO_LONG              /* 48 */

/* ---- SANs ------------------------------------------------------------------------------------ */

enum zt_err zt_tls_sans_open(struct zt_tls_sans *s, const X509 *cert)
{
    int why;
    s->at = 0;
    s->names = X509_get_ext_d2i(cert, NID_subject_alt_name, &why, NULL);
    ERR_clear_error();
    return s->names || why == -1 ? ZT_OK : ZT_INVALID; /* -1: not there; -2: there twice; else: does not decode */
}

bool zt_tls_sans_next(struct zt_tls_sans *s, char identity[static ZT_IDENTITY_MAX])
{
    while (s->names && s->at < sk_GENERAL_NAME_num(s->names)) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(s->names, s->at++);
        if (name->type != GEN_URI)
            continue;
        const char *text = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
        size_t len = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        /* A NUL inside would make two different names one C string. */
        if (len >= ZT_IDENTITY_MAX || memchr(text, 0, len) || !zt_identity_parse(text, len, NULL))
            continue;
        memcpy(identity, text, len);
        identity[len] = 0;
        return true;
    }
    return false;
}

void zt_tls_sans_close(struct zt_tls_sans *s)
{
    GENERAL_NAMES_free(s->names);
    s->names = NULL;
}

/* ---- path ------------------------------------------------------------------------------------ */

static unsigned count_subject(STACK_OF(X509) *certs, const X509_NAME *subject)
{
    unsigned n = 0;
    for (int i = 0; i < sk_X509_num(certs); i++)
        n += X509_NAME_cmp(X509_get_subject_name(sk_X509_value(certs, i)), subject) == 0;
    return n;
}

/* By name; where several certificates bear it (two roots of one organisation, say), by signature, since path building does
 * not come back to a candidate it has passed. At most 16 presented certificates times 6 levels: bounded. OpenSSL may hold the
 * store's lock here, so the store cannot be asked. */
static int is_issuer(X509_STORE_CTX *ctx, X509 *cert, X509 *issuer)
{
    const struct zt_tls_verify *v = X509_STORE_CTX_get_app_data(ctx);
    const X509_NAME *subject = X509_get_subject_name(issuer);
    if (X509_NAME_cmp(subject, X509_get_issuer_name(cert)) != 0)
        return 0;
    if (count_subject(X509_STORE_CTX_get0_untrusted(ctx), subject) + count_subject(v->cred->roots, subject) < 2)
        return 1;
    EVP_PKEY *key = X509_get0_pubkey(issuer);
    int ok = key && X509_verify(cert, key) == 1;
    ERR_clear_error();
    return ok;
}

X509_STORE *zt_tls_anchors_new(STACK_OF(X509) *roots)
{
    X509_STORE *store = X509_STORE_new();
    ZT_ASSERT(store);
    X509_STORE_set_check_issued(store, is_issuer);
    for (int i = 0; i < sk_X509_num(roots); i++)
        ZT_ASSERT(X509_STORE_add_cert(store, sk_X509_value(roots, i)) == 1); /* a duplicate is fine */
    return store;
}

/* 1: a CA by basicConstraints, 0: not, -1: the extension does not decode. */
static int basic_ca(const X509 *cert)
{
    int why;
    BASIC_CONSTRAINTS *bc = X509_get_ext_d2i(cert, NID_basic_constraints, &why, NULL);
    int ca = bc ? bc->ca != 0 : why == -1 ? 0 : -1;
    BASIC_CONSTRAINTS_free(bc);
    return ca;
}

static int on_path_error(int ok, X509_STORE_CTX *ctx)
{
    if (ok)
        return 1;
    STACK_OF(X509) *chain = X509_STORE_CTX_get0_chain(ctx);
    int depth = X509_STORE_CTX_get_error_depth(ctx);
    bool anchor = depth > 0 && depth == sk_X509_num(chain) - 1;

    switch (X509_STORE_CTX_get_error(ctx)) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_CERT_NOT_YET_VALID:
    case X509_V_ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD:
    case X509_V_ERR_ERROR_IN_CERT_NOT_AFTER_FIELD:
    case X509_V_ERR_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_UNHANDLED_CRITICAL_EXTENSION:
        return anchor;
    case X509_V_ERR_INVALID_CA: /* also for a keyUsage without keyCertSign */
        return anchor || basic_ca(sk_X509_value(chain, depth)) == 1;
    case X509_V_ERR_KEYUSAGE_NO_CERTSIGN:
        return 1;
    default:
        return 0;
    }
}

static bool key_is_allowed(X509 *cert)
{
    EVP_PKEY *key = X509_get0_pubkey(cert);
    char group[32];
    int bits;

    if (!key)
        return false;
    switch (EVP_PKEY_get_base_id(key)) {
    case EVP_PKEY_RSA:
    case EVP_PKEY_RSA_PSS:
        bits = EVP_PKEY_get_bits(key);
        return bits >= RSA_BITS_MIN && bits <= RSA_BITS_MAX;
    case EVP_PKEY_EC:
        return EVP_PKEY_get_utf8_string_param(key, OSSL_PKEY_PARAM_GROUP_NAME, group, sizeof(group), NULL) == 1 &&
               (!strcmp(group, "prime256v1") || !strcmp(group, "secp384r1") || !strcmp(group, "secp521r1"));
    case EVP_PKEY_ED25519:
        return true;
    default:
        return false;
    }
}

static bool usage_is_allowed(const X509 *cert, int wanted_nid)
{
    int why;
    EXTENDED_KEY_USAGE *usages = X509_get_ext_d2i(cert, NID_ext_key_usage, &why, NULL);
    bool ok = !usages && why == -1;
    for (int i = 0; usages && i < sk_ASN1_OBJECT_num(usages); i++)
        ok |= OBJ_obj2nid(sk_ASN1_OBJECT_value(usages, i)) == wanted_nid;
    EXTENDED_KEY_USAGE_free(usages);
    return ok;
}

#define OF_A_PEER "invalid peer certificate: "

static int reject(struct zt_tls_verify *v, int code, const char *text)
{
    zt_error_set(&v->err, ZT_TLS_HANDSHAKE, OF_A_PEER "%s", text);
    ERR_clear_error();
    return code;
}

/* What X509_verify_cert was not asked. chain: leaf ... anchor, as built. */
static int check_chain(struct zt_tls_verify *v, STACK_OF(X509) *chain)
{
    int n = sk_X509_num(chain), usage = v->peer_is_client ? NID_client_auth : NID_server_auth;

    if (n < 2)
        return reject(v, V_UNKNOWN_CA, "the certificate is itself an anchor");
    if (n > INTERMEDIATES_MAX + 2)
        return reject(v, V_UNKNOWN_CA, "too many intermediates");
    for (int i = 0; i < n; i++) {
        X509 *cert = sk_X509_value(chain, i);
        if (!key_is_allowed(cert))
            return reject(v, V_BAD_CERTIFICATE, "unsupported key");
        if (i == n - 1)
            break; /* nothing else of an anchor counts */
        if (X509_get_version(cert) != X509_VERSION_3)
            return reject(v, V_BAD_CERTIFICATE, "unsupported certificate version");
        if (basic_ca(cert) != (i > 0))
            return reject(v, V_BAD_CERTIFICATE, i ? "issuer is not a CA" : "a CA certificate used as leaf");
        if (!usage_is_allowed(cert, usage))
            return reject(v, V_UNSUPPORTED_CERTIFICATE, "extended key usage does not permit this role");
    }
    ERR_clear_error();
    return X509_V_OK;
}

static int alert_code(int error)
{
    switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return V_CERTIFICATE_EXPIRED;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return V_UNKNOWN_CA;
    default:
        return V_BAD_CERTIFICATE;
    }
}

/* When the first certificate of the path ends, the anchor's left out: an expired root still validates. */
static int64_t path_not_after_s(STACK_OF(X509) *certs)
{
    int64_t first = INT64_MAX;
    struct tm tm;
    for (int i = 0; i + 1 < sk_X509_num(certs); i++) {
        int64_t end = ASN1_TIME_to_tm(X509_get0_notAfter(sk_X509_value(certs, i)), &tm) == 1 ? timegm(&tm) : 0;
        if (end < first)
            first = end;
    }
    return first;
}

/* Takes certs, the path as it was built. */
static int check_revocation(struct zt_tls_verify *v, STACK_OF(X509) *certs)
{
    v->path = zt_tls_path_new(certs, path_not_after_s(certs));
    enum zt_err e = zt_tls_path_check(v->path);
    if (e == ZT_OK)
        return X509_V_OK;
    int code = reject(v, e == ZT_REVOKED ? X509_V_ERR_CERT_REVOKED : V_BAD_CERTIFICATE,
                      e == ZT_REVOKED ? "revoked" : "a revocation list is not signed by its issuer");
    v->err.code = e == ZT_REVOKED ? ZT_REVOKED : ZT_TLS_HANDSHAKE;
    return code;
}

static int verify_path(struct zt_tls_verify *v, X509 *leaf, STACK_OF(X509) *presented)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    ZT_ASSERT(ctx);
    if (sk_X509_num(presented) > ZT_TLS_CHAIN_MAX) {
        X509_STORE_CTX_free(ctx);
        return reject(v, V_UNKNOWN_CA, "too many certificates");
    }
    ZT_ASSERT(X509_STORE_CTX_init(ctx, v->cred->anchors, leaf, presented) == 1);
    X509_VERIFY_PARAM *param = X509_STORE_CTX_get0_param(ctx);
    X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_TRUSTED_FIRST);
    X509_VERIFY_PARAM_set_time(param, (time_t)(zt_clock_wall_us() / 1000000));
    X509_VERIFY_PARAM_set_auth_level(param, 2);
    X509_VERIFY_PARAM_set_depth(param, INTERMEDIATES_MAX);
    X509_STORE_CTX_set_verify_cb(ctx, on_path_error);
    X509_STORE_CTX_set_app_data(ctx, v);

    ERR_clear_error();
    int code;
    if (X509_verify_cert(ctx) == 1) {
        code = check_chain(v, X509_STORE_CTX_get0_chain(ctx));
        if (code == X509_V_OK)
            code = check_revocation(v, X509_STORE_CTX_get1_chain(ctx));
    } else {
        int error = X509_STORE_CTX_get_error(ctx);
        code = reject(v, alert_code(error), X509_verify_cert_error_string(error));
    }
    X509_STORE_CTX_free(ctx);
    return code;
}

/* ---- identities ------------------------------------------------------------------------------ */

static void list_add(struct zt_str *list, const char *item)
{
    if (list->len > 0)
        zt_str_add(list, ",");
    zt_str_add(list, item);
}

/* The texts of spec/interfaces §7.6. */
static int wrong_identity(struct zt_tls_verify *v, struct zt_str *got)
{
    struct zt_str expected;
    zt_str_init(&expected, LIST_TEXT_MAX);
    for (unsigned i = 0; i < v->n_sans; i++)
        list_add(&expected, v->sans[i]);
    if (v->peer_is_client)
        zt_error_set(&v->err, ZT_IDENTITY,
                     "identity verification error: peer did not present the expected trustdomain (%s), got %s",
                     v->cred->trust_domain, zt_str_cstr(got));
    else
        zt_error_set(&v->err, ZT_IDENTITY,
                     "identity verification error: peer did not present the expected SAN (%s), got %s",
                     zt_str_cstr(&expected), zt_str_cstr(got));
    zt_str_fini(&expected);
    return V_CERTIFICATE_UNKNOWN;
}

static bool is_expected(const struct zt_tls_verify *v, const char *identity)
{
    if (!v->peer_is_client) {
        for (unsigned i = 0; i < v->n_sans; i++)
            if (strcmp(v->sans[i], identity) == 0)
                return true;
        return false;
    }
    struct zt_identity_view view;
    if (v->cred->identity[0] == 0) /* without an identity of our own there is no trust domain to hold it against */
        return true;
    return zt_identity_parse(identity, strlen(identity), &view) &&
           view.trust_domain_len == strlen(v->cred->trust_domain) &&
           memcmp(view.trust_domain, v->cred->trust_domain, view.trust_domain_len) == 0;
}

/* Server: one of the expected list. Client: one with our trust domain; its identity is then its first one, whichever matched. */
static int verify_identity(struct zt_tls_verify *v, const X509 *leaf)
{
    struct zt_tls_sans sans;
    struct zt_str got;
    char identity[ZT_IDENTITY_MAX];
    bool found = false;
    int code = X509_V_OK;

    if (zt_tls_sans_open(&sans, leaf))
        return reject(v, V_BAD_CERTIFICATE, "subject alternative names do not parse");
    zt_str_init(&got, LIST_TEXT_MAX);
    while (!found && zt_tls_sans_next(&sans, identity)) {
        if (v->identity[0] == 0 || !v->peer_is_client)
            memcpy(v->identity, identity, sizeof(identity));
        found = is_expected(v, identity);
        list_add(&got, identity);
    }
    if (v->peer_is_client && v->cred->identity[0] == 0)
        found = true; /* also without any SPIFFE name: the identity stays empty and matches no principal */
    if (!found) {
        v->identity[0] = 0;
        code = wrong_identity(v, &got);
    }
    zt_str_fini(&got);
    zt_tls_sans_close(&sans);
    return code;
}

int zt_tls_verify_peer(struct zt_tls_verify *v, X509 *leaf, STACK_OF(X509) *presented)
{
    zt_tls_path_unref(v->path); /* of a session that was offered and not taken */
    v->path = NULL;
    v->identity[0] = 0;
    int code = verify_path(v, leaf, presented);
    return code == X509_V_OK ? verify_identity(v, leaf) : code;
}

bool zt_tls_verify_again(struct zt_tls_verify *v, struct zt_tls_path *path)
{
    ZT_ASSERT(!v->path);
    v->identity[0] = 0;
    bool ok = (int64_t)(zt_clock_wall_us() / 1000000) <= path->not_after_s && zt_tls_path_check(path) == ZT_OK &&
              verify_identity(v, sk_X509_value(path->certs, 0)) == X509_V_OK;
    if (ok) {
        v->path = path;
        return true;
    }
    v->identity[0] = 0;
    v->err = (struct zt_error)ZT_ERROR_INIT; /* a full handshake follows, and judges */
    return false;
}

/* ---- our own certificate, with a peer's eyes ---------------------------------------------------- */

enum zt_err zt_tls_cred_check(const struct zt_tls_cred *c, struct zt_error *err)
{
    STACK_OF(X509) *chain = NULL;
    X509 *leaf = SSL_CTX_get0_certificate(c->server);
    SSL_CTX_get0_chain_certs(c->server, &chain);
    for (int client = 0; client <= 1; client++) {
        struct zt_tls_verify v = {.cred = c, .peer_is_client = client};
        int code = verify_path(&v, leaf, chain);
        zt_tls_path_unref(v.path);
        if (code != X509_V_OK)
            return zt_error_set(err, ZT_TLS, "certificate chain: %s", v.err.text + sizeof OF_A_PEER - 1);
    }
    return ZT_OK;
}
