/* What one workload identity needs for TLS: its certificate chain, its key, its roots, as two immutable OpenSSL contexts
 * (spec/dataplane §3.1, §3.2, §4.2). Ref-counted; renewal makes a new one; sessions keep the one they began with. */
#ifndef ZT_NET_TLS_CRED_H
#define ZT_NET_TLS_CRED_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZT_TLS_CHAIN_MAX 16      /* certificates in a chain or root bundle */
#define ZT_TLS_PEM_BYTES_MAX (256 * 1024)

struct zt_tls_cred;

/* Choices of the configuration (spec/dataplane §12.6). */
struct zt_tls_profile {
    bool tls12; /* TLS 1.2 too */
    bool pqc;   /* only X25519MLKEM768, and so only TLS 1.3 */
};
/* The library knows X25519MLKEM768 (OpenSSL 3.5 and later). Thread: any. */
bool zt_tls_pqc_available(void);

/* One certificate as the admin dump shows it. */
struct zt_tls_cert_info {
    char *pem;                      /* PEM text, LF; borrowed from the cred */
    char *serial_decimal;           /* borrowed from the cred */
    int64_t not_before_s, not_after_s; /* since the epoch, UTC */
};

/* Builds a credential. chain_pem: leaf, then intermediates. key_pem: PKCS#8. roots_pem: one or more roots. All borrowed.
 * Checks: everything parses, key and leaf agree, the leaf's first URI SAN is `identity` (NULL: not checked).
 * Errors: ZT_TLS or ZT_IDENTITY with a text that says which part is wrong. */
enum zt_err zt_tls_cred_new(const char *chain_pem, const char *key_pem, const char *roots_pem,
                            const char *identity, const struct zt_tls_profile *profile, struct zt_tls_cred **out,
                            struct zt_error *err);
struct zt_tls_cred *zt_tls_cred_ref(struct zt_tls_cred *c); /* Thread: any */
void zt_tls_cred_unref(struct zt_tls_cred *c);              /* Thread: any; NULL is legal */

/* What a peer with the same roots would say of it now, whichever end it is: the chain leads to one of them, is in its dates and
 * may be used so. Errors: ZT_TLS with the reason. Thread: any. */
enum zt_err zt_tls_cred_check(const struct zt_tls_cred *c, struct zt_error *err);

const char *zt_tls_cred_identity(const struct zt_tls_cred *c); /* the leaf's SPIFFE id or ""; borrowed */
int64_t zt_tls_cred_not_before_s(const struct zt_tls_cred *c);
int64_t zt_tls_cred_not_after_s(const struct zt_tls_cred *c);
/* n_chain certificates (leaf first) then n_roots. Borrowed. */
const struct zt_tls_cert_info *zt_tls_cred_certs(const struct zt_tls_cred *c, unsigned *n_chain, unsigned *n_roots);

#endif
