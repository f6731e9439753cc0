/* See tls_test.h. OpenSSL failures are bugs of the test and abort. */
#include "support/tls_test.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

static EVP_PKEY *make_key(enum zt_test_key kind)
{
    EVP_PKEY *key = kind == ZT_TEST_P256      ? EVP_EC_gen("P-256")
                    : kind == ZT_TEST_P384    ? EVP_EC_gen("P-384")
                    : kind == ZT_TEST_P224    ? EVP_EC_gen("P-224")
                    : kind == ZT_TEST_ED25519 ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")
                    : kind == ZT_TEST_RSA2048 ? EVP_RSA_gen(2048)
                                              : EVP_RSA_gen(1024);
    ZT_ASSERT(key);
    return key;
}

static void add_ext(X509 *cert, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, NULL, cert, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ZT_ASSERT(ext && X509_add_ext(cert, ext, -1) == 1);
    X509_EXTENSION_free(ext);
}

static void add_raw_ext(X509 *cert, const char *oid, bool critical, const char *bytes, int n)
{
    ASN1_OBJECT *obj = OBJ_txt2obj(oid, 0);
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    ZT_ASSERT(obj && value && ASN1_OCTET_STRING_set(value, (const unsigned char *)bytes, n) == 1);
    X509_EXTENSION *ext = X509_EXTENSION_create_by_OBJ(NULL, obj, critical, value);
    ZT_ASSERT(ext && X509_add_ext(cert, ext, -1) == 1);
    X509_EXTENSION_free(ext);
    ASN1_OCTET_STRING_free(value);
    ASN1_OBJECT_free(obj);
}

static void push_name(GENERAL_NAMES *names, int type, const char *text)
{
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *value = ASN1_IA5STRING_new();
    ZT_ASSERT(name && value && ASN1_STRING_set(value, text, -1) == 1);
    GENERAL_NAME_set0_value(name, type, value);
    ZT_ASSERT(sk_GENERAL_NAME_push(names, name));
}

static void add_san(X509 *cert, const struct zt_test_cert_opts *o)
{
    if (o->broken_san) {
        add_raw_ext(cert, "subjectAltName", false, "\x30\x05\x86\x7f", 4);
        return;
    }
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    ZT_ASSERT(names);
    if (o->dns)
        push_name(names, GEN_DNS, o->dns);
    if (o->ip) {
        GENERAL_NAME *name = GENERAL_NAME_new();
        ASN1_OCTET_STRING *value = a2i_IPADDRESS(o->ip);
        ZT_ASSERT(name && value);
        GENERAL_NAME_set0_value(name, GEN_IPADD, value);
        ZT_ASSERT(sk_GENERAL_NAME_push(names, name));
    }
    if (o->uri)
        push_name(names, GEN_URI, o->uri);
    for (unsigned i = 0; i < o->n_uris; i++)
        push_name(names, GEN_URI, o->uris[i]);
    if (sk_GENERAL_NAME_num(names) > 0)
        ZT_ASSERT(X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 1, 0) == 1);
    GENERAL_NAMES_free(names);
}

static void add_extensions(X509 *cert, const struct zt_test_cert_opts *o)
{
    static const char *const eku[] = {"serverAuth,clientAuth", NULL, "serverAuth", "clientAuth", "codeSigning",
                                      "anyExtendedKeyUsage"};
    char constraints[64] = "critical,CA:TRUE";

    if (o->ca && o->path_len)
        snprintf(constraints, sizeof(constraints), "critical,CA:TRUE,pathlen:%d", o->path_len - 1);
    add_ext(cert, NID_basic_constraints, o->ca ? constraints : "critical,CA:FALSE");
    add_ext(cert, NID_key_usage,
            !o->ca            ? "critical,digitalSignature,keyEncipherment"
            : o->no_cert_sign ? "critical,cRLSign"
                              : "critical,keyCertSign,cRLSign");
    if (eku[o->eku] && !(o->ca && o->eku == ZT_TEST_EKU_BOTH))
        add_ext(cert, NID_ext_key_usage, eku[o->eku]);
    add_san(cert, o);
    if (o->critical_unknown)
        add_raw_ext(cert, "1.3.6.1.4.1.99999.1", true, "\x05\x00", 2);
}

static struct zt_test_cert *make(const struct zt_test_cert *issuer, const struct zt_test_cert_opts *o)
{
    static unsigned long serial = 1000;
    struct zt_test_cert *c = zt_new(struct zt_test_cert);
    time_t now = (time_t)(zt_clock_wall_us() / 1000000);
    const char *cn = o->cn ? o->cn : o->ca ? "test" : NULL;

    c->key = make_key(o->key);
    c->cert = X509_new();
    ZT_ASSERT(c->cert && X509_set_version(c->cert, o->v1 ? X509_VERSION_1 : X509_VERSION_3));
    ASN1_INTEGER_set_uint64(X509_get_serialNumber(c->cert), ++serial);
    ASN1_TIME_set(X509_getm_notBefore(c->cert), now + (o->not_before_s ? o->not_before_s : -3600));
    ASN1_TIME_set(X509_getm_notAfter(c->cert), now + (o->not_after_s ? o->not_after_s : 86400));
    if (cn)
        X509_NAME_add_entry_by_txt(X509_get_subject_name(c->cert), "CN", MBSTRING_ASC, (const unsigned char *)cn, -1, -1,
                                   0);
    X509_set_issuer_name(c->cert, X509_get_subject_name(issuer ? issuer->cert : c->cert));
    X509_set_pubkey(c->cert, c->key);
    if (!o->v1)
        add_extensions(c->cert, o);
    EVP_PKEY *signer = issuer ? issuer->key : c->key;
    const EVP_MD *md = EVP_PKEY_is_a(signer, "ED25519") ? NULL : o->sha1 ? EVP_sha1() : EVP_sha256();
    ZT_ASSERT(X509_sign(c->cert, signer, md) > 0);
    return c;
}

struct zt_test_cert *zt_test_root(const struct zt_test_cert_opts *o)
{
    struct zt_test_cert_opts copy = *o;
    copy.ca = true;
    return make(NULL, &copy);
}

struct zt_test_cert *zt_test_root_named(const char *cn)
{
    struct zt_test_cert_opts o = {.cn = cn, .ca = true};
    return make(NULL, &o);
}

struct zt_test_cert *zt_test_issue(const struct zt_test_cert *issuer, const struct zt_test_cert_opts *o)
{
    return make(issuer, o);
}

struct zt_test_cert *zt_test_leaf(const struct zt_test_cert *issuer, const char *identity)
{
    struct zt_test_cert_opts o = {.uri = identity};
    return make(issuer, &o);
}

void zt_test_cert_free(struct zt_test_cert *c)
{
    if (!c)
        return;
    X509_free(c->cert);
    EVP_PKEY_free(c->key);
    zt_free(c);
}

static char *take_text(BIO *bio)
{
    char *data;
    long n = BIO_get_mem_data(bio, &data);
    char *text = zt_strndup(data, (size_t)n);
    BIO_free(bio);
    return text;
}

char *zt_test_certs_pem(const struct zt_test_cert *const *certs, unsigned n)
{
    BIO *bio = BIO_new(BIO_s_mem());
    for (unsigned i = 0; i < n; i++)
        ZT_ASSERT(PEM_write_bio_X509(bio, certs[i]->cert) == 1);
    return take_text(bio);
}

char *zt_test_key_pem(const struct zt_test_cert *c)
{
    BIO *bio = BIO_new(BIO_s_mem());
    ZT_ASSERT(PEM_write_bio_PKCS8PrivateKey(bio, c->key, NULL, NULL, 0, NULL, NULL) == 1);
    return take_text(bio);
}

static void crl_add_ext(X509_CRL *crl, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, NULL, NULL, NULL, crl, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ZT_ASSERT(ext && X509_CRL_add_ext(crl, ext, -1) == 1);
    X509_EXTENSION_free(ext);
}

char *zt_test_crl(const struct zt_test_cert *issuer, const struct zt_test_crl_opts *o)
{
    X509_CRL *crl = X509_CRL_new();
    ASN1_TIME *now = ASN1_TIME_set(NULL, (time_t)(zt_clock_wall_us() / 1000000));
    ASN1_INTEGER *number = ASN1_INTEGER_new();
    ZT_ASSERT(crl && now && number && ASN1_INTEGER_set(number, 1) && X509_CRL_set_version(crl, X509_CRL_VERSION_2));
    X509_CRL_set_issuer_name(crl, X509_get_subject_name(issuer->cert));
    X509_CRL_set1_lastUpdate(crl, now);
    if (!o->no_next_update)
        X509_CRL_set1_nextUpdate(crl, now); /* past at once: the end of a list does not count */
    for (unsigned i = 0; i < o->n_revoked; i++) {
        X509_REVOKED *r = X509_REVOKED_new();
        X509_REVOKED_set_serialNumber(r, X509_get_serialNumber(o->revoked[i]->cert));
        X509_REVOKED_set_revocationDate(r, now);
        ZT_ASSERT(X509_CRL_add0_revoked(crl, r) == 1);
    }
    ZT_ASSERT(X509_CRL_add1_ext_i2d(crl, NID_crl_number, number, 0, 0) == 1);
    if (o->delta)
        ZT_ASSERT(X509_CRL_add1_ext_i2d(crl, NID_delta_crl, number, 1, 0) == 1);
    if (o->scope)
        crl_add_ext(crl, NID_issuing_distribution_point, o->scope);
    X509_CRL_sort(crl);
    ZT_ASSERT(X509_CRL_sign(crl, (o->signer ? o->signer : issuer)->key, EVP_sha256()) > 0);
    BIO *bio = BIO_new(BIO_s_mem());
    ZT_ASSERT(PEM_write_bio_X509_CRL(bio, crl) == 1);
    ASN1_TIME_free(now);
    ASN1_INTEGER_free(number);
    X509_CRL_free(crl);
    return take_text(bio);
}

struct zt_tls_cred *zt_test_cred(const struct zt_test_cert *const *chain, unsigned n_chain,
                                 const struct zt_test_cert *const *roots, unsigned n_roots, bool tls12)
{
    char *chain_pem = zt_test_certs_pem(chain, n_chain), *roots_pem = zt_test_certs_pem(roots, n_roots);
    char *key_pem = zt_test_key_pem(chain[0]);
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_tls_cred *cred;

    if (zt_tls_cred_new(chain_pem, key_pem, roots_pem, NULL, &(struct zt_tls_profile){.tls12 = tls12}, &cred, &err)) {
        fprintf(stderr, "test credential: %s\n", err.text);
        zt_bug(__FILE__, __LINE__, "test credential");
    }
    zt_free(chain_pem);
    zt_free(roots_pem);
    zt_free(key_pem);
    return cred;
}

struct zt_tls_cred *zt_test_cred_of(const struct zt_test_cert *root, const char *identity)
{
    struct zt_test_cert *leaf = zt_test_leaf(root, identity);
    struct zt_tls_cred *cred =
        zt_test_cred((const struct zt_test_cert *const[]){leaf}, 1, (const struct zt_test_cert *const[]){root}, 1, false);
    zt_test_cert_free(leaf);
    return cred;
}
