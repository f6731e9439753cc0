/* The pieces of X.509 that requests and the local CA share. Thread: any. */
#ifndef ZT_SECRETS_X509_IMPL_H
#define ZT_SECRETS_X509_IMPL_H

#include "zt/base/err.h"
#include <openssl/x509v3.h>

/* Empties OpenSSL's error queue of this thread and sets err: "what: reason". */
enum zt_err zt_x509_error(struct zt_error *err, enum zt_err code, const char *what);
/* A fresh P-256 key. Returns owned; NULL with the reason in OpenSSL's queue. */
EVP_PKEY *zt_x509_new_key(void);
/* The critical subjectAltName with one URI. Returns owned; NULL with the reason in OpenSSL's queue.
 */
X509_EXTENSION *zt_x509_uri_san(const char *uri);
/* PEM texts, NUL-terminated. Return owned (of zt_free; a key's text of zt_wipe_free). */
char *zt_x509_key_pem(EVP_PKEY *key);
char *zt_x509_cert_pem(X509 *cert);

#endif
