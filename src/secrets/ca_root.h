/* The root of the local CA on disk. */
#ifndef ZT_SECRETS_CA_ROOT_H
#define ZT_SECRETS_CA_ROOT_H

#include "zt/base/err.h"
#include <openssl/x509.h>
#include <stdbool.h>
#include <stdint.h>

struct zt_ca_root {
    EVP_PKEY *key;  /* owned */
    X509 *cert;     /* owned */
    char *cert_pem; /* owned */
};

/* Reads DIR/root.pem, making directory and file when absent. The errors of zt_ca_local_open.
 * Thread: control. */
enum zt_err zt_ca_root_open(struct zt_ca_root *out, const char *dir, struct zt_error *err);
void zt_ca_root_fini(struct zt_ca_root *r); /* legal on a zeroed struct */
/* A random positive serial number and a validity from now - back_s to now + ahead_s. False on
 * failure. Thread: any. */
bool zt_ca_stamp(X509 *cert, int64_t back_s, int64_t ahead_s);
/* Adds an extension in OpenSSL's configuration syntax. False on failure. Thread: any. */
bool zt_ca_add_extension(X509 *cert, X509 *issuer, int nid, const char *value);

#endif
