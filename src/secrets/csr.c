/* Keys, requests and the X.509 pieces shared with the local CA.
 * Invariant: the text of a private key lives in zt_csr.key_pem only; the buffers it passed through
 * are cleared by OpenSSL. */
#include "zt/secrets/csr.h"

#include "x509_impl.h"
#include "zt/base/mem.h"
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdbool.h>
#include <string.h>

enum zt_err zt_x509_error(struct zt_error *err, enum zt_err code, const char *what)
{
    unsigned long first = ERR_peek_error();
    const char *reason = first ? ERR_reason_error_string(first) : NULL;
    ERR_clear_error();
    return zt_error_set(err, code, "%s: %s", what, reason ? reason : "unknown error");
}

EVP_PKEY *zt_x509_new_key(void)
{
    return EVP_EC_gen("P-256");
}

X509_EXTENSION *zt_x509_uri_san(const char *uri)
{
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();
    ZT_ASSERT(names && name && text); /* allocation only */
    X509_EXTENSION *ext = NULL;
    if (ASN1_STRING_set(text, uri, (int)strlen(uri)) == 1) {
        GENERAL_NAME_set0_value(name, GEN_URI, text);
        ZT_ASSERT(sk_GENERAL_NAME_push(names, name) > 0);
        ext = X509V3_EXT_i2d(NID_subject_alt_name, 1, names);
    } else {
        ASN1_IA5STRING_free(text);
        GENERAL_NAME_free(name);
    }
    GENERAL_NAMES_free(names);
    return ext;
}

static char *bio_text(BIO *bio)
{
    char *data;
    long n = BIO_get_mem_data(bio, &data);
    return zt_strndup(data, (size_t)n);
}

char *zt_x509_key_pem(EVP_PKEY *key)
{
    BIO *bio = BIO_new(BIO_s_mem()); /* cleared when freed */
    ZT_ASSERT(bio && PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1);
    char *pem = bio_text(bio);
    BIO_free(bio);
    return pem;
}

char *zt_x509_cert_pem(X509 *cert)
{
    BIO *bio = BIO_new(BIO_s_mem());
    ZT_ASSERT(bio && PEM_write_bio_X509(bio, cert) == 1);
    char *pem = bio_text(bio);
    BIO_free(bio);
    return pem;
}

/* The request over key; NULL with the reason in OpenSSL's queue. Returns owned. */
static X509_REQ *build_request(EVP_PKEY *key, const char *identity)
{
    X509_REQ *req = X509_REQ_new();
    X509_EXTENSION *san = zt_x509_uri_san(identity);
    STACK_OF(X509_EXTENSION) *extensions = sk_X509_EXTENSION_new_null();
    bool ok = req && san && extensions && sk_X509_EXTENSION_push(extensions, san) > 0;
    if (ok)
        san = NULL; /* the stack's now */
    ok = ok && X509_REQ_set_version(req, X509_REQ_VERSION_1) == 1 &&
         X509_REQ_set_pubkey(req, key) == 1 && X509_REQ_add_extensions(req, extensions) == 1 &&
         X509_REQ_sign(req, key, EVP_sha256()) > 0;
    X509_EXTENSION_free(san);
    sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
    if (ok)
        return req;
    X509_REQ_free(req);
    return NULL;
}

enum zt_err zt_csr_init(struct zt_csr *out, const char *identity, struct zt_error *err)
{
    *out = (struct zt_csr){0};
    ERR_clear_error();
    EVP_PKEY *key = zt_x509_new_key();
    X509_REQ *req = key ? build_request(key, identity) : NULL;
    if (!req) {
        EVP_PKEY_free(key);
        return zt_x509_error(err, ZT_TLS, "certificate request");
    }
    BIO *bio = BIO_new(BIO_s_mem());
    ZT_ASSERT(bio && PEM_write_bio_X509_REQ(bio, req) == 1);
    out->pem = bio_text(bio);
    out->key_pem = zt_x509_key_pem(key);
    BIO_free(bio);
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return ZT_OK;
}

void zt_csr_fini(struct zt_csr *c)
{
    zt_free(c->pem);
    if (c->key_pem)
        zt_wipe_free(c->key_pem, strlen(c->key_pem));
    *c = (struct zt_csr){0};
}
