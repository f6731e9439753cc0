/* Certificates made in the process, right and wrong ones, and credentials from them. Nothing is read from or written to disk.
 * All keys are fresh; making an RSA key takes a moment, so the default is P-256. Thread: any (each object one thread). */
#ifndef ZT_TESTS_TLS_TEST_H
#define ZT_TESTS_TLS_TEST_H

#include "zt/net/tls_cred.h"
#include <openssl/x509.h>

enum zt_test_key { ZT_TEST_P256 = 0, ZT_TEST_P384, ZT_TEST_P224, ZT_TEST_ED25519, ZT_TEST_RSA2048, ZT_TEST_RSA1024 };
enum zt_test_eku {
    ZT_TEST_EKU_BOTH = 0, /* serverAuth and clientAuth, as the mesh's CAs issue them */
    ZT_TEST_EKU_ABSENT,
    ZT_TEST_EKU_SERVER,
    ZT_TEST_EKU_CLIENT,
    ZT_TEST_EKU_OTHER, /* codeSigning */
    ZT_TEST_EKU_ANY,   /* anyExtendedKeyUsage */
};

/* All zero: a v3 P-256 leaf, valid from an hour ago for a day, no SAN. */
struct zt_test_cert_opts {
    const char *cn;          /* NULL: empty subject for a leaf, "test" for a CA */
    const char *const *uris; /* URI SANs, in order; n_uris of them */
    unsigned n_uris;
    const char *uri; /* one more URI SAN, first: the usual case */
    const char *dns; /* a DNS SAN, before the URIs */
    const char *ip;  /* an IP SAN, behind it */
    int64_t not_before_s, not_after_s; /* relative to now; 0: the default */
    enum zt_test_key key;
    enum zt_test_eku eku;       /* CAs have none unless it is set to something else than BOTH */
    bool ca;                    /* basicConstraints CA:TRUE */
    bool v1;                    /* X.509 v1: no extensions */
    bool sha1;                  /* signed with SHA-1 */
    bool critical_unknown;      /* carries an unknown critical extension */
    bool no_cert_sign;          /* a CA whose keyUsage lacks keyCertSign */
    bool broken_san;            /* a subjectAltName that does not decode */
    int path_len;               /* CA: pathLenConstraint + 1; 0: none */
};

struct zt_test_cert {
    X509 *cert;
    EVP_PKEY *key;
};

/* A self-signed CA. Returns owned. */
struct zt_test_cert *zt_test_root(const struct zt_test_cert_opts *o);
struct zt_test_cert *zt_test_root_named(const char *cn);
/* Returns owned. */
struct zt_test_cert *zt_test_issue(const struct zt_test_cert *issuer, const struct zt_test_cert_opts *o);
/* A leaf with one SPIFFE identity. Returns owned. */
struct zt_test_cert *zt_test_leaf(const struct zt_test_cert *issuer, const char *identity);
void zt_test_cert_free(struct zt_test_cert *c); /* NULL is legal */

/* PEM of n certificates, in order. Returns owned (zt_free). */
char *zt_test_certs_pem(const struct zt_test_cert *const *certs, unsigned n);
/* PKCS#8 PEM. Returns owned (zt_free). */
char *zt_test_key_pem(const struct zt_test_cert *c);

/* A revocation list in PEM, signed by issuer. Returns owned (zt_free). */
struct zt_test_crl_opts {
    const struct zt_test_cert *const *revoked; /* their serial numbers; n_revoked of them */
    unsigned n_revoked;
    const struct zt_test_cert *signer; /* NULL: the issuer; another key makes a list that does not verify */
    bool no_next_update, delta;
    const char *scope; /* issuing distribution point in OpenSSL's notation, or NULL */
};
char *zt_test_crl(const struct zt_test_cert *issuer, const struct zt_test_crl_opts *o);

/* chain: leaf first. Aborts the test when the credential is refused. Returns owned. */
struct zt_tls_cred *zt_test_cred(const struct zt_test_cert *const *chain, unsigned n_chain,
                                 const struct zt_test_cert *const *roots, unsigned n_roots, bool tls12);
/* The usual case: a fresh leaf with this identity straight from root, trusting root. Returns owned. */
struct zt_tls_cred *zt_test_cred_of(const struct zt_test_cert *root, const char *identity);

#endif
