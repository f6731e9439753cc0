/* Certificate signing requests: a fresh P-256 key and a PKCS#10 request for one identity
 * (spec/controlplane §6.1). Thread: any. */
#ifndef ZT_SECRETS_CSR_H
#define ZT_SECRETS_CSR_H

#include "zt/base/err.h"

struct zt_csr {
    char *pem; /* "CERTIFICATE REQUEST": empty subject, one critical URI SAN, ECDSA with SHA-256;
                  owned */
    char *key_pem; /* PKCS#8; owned, wiped by fini; never written to disk, never logged */
};

/* identity: borrowed until return. On failure out is zeroed. Errors: ZT_TLS with the library's
 * reason. */
enum zt_err zt_csr_init(struct zt_csr *out, const char *identity, struct zt_error *err);
/* Wipes the key. Legal on a zeroed struct, and twice. */
void zt_csr_fini(struct zt_csr *c);

#endif
