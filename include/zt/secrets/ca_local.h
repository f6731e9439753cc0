/* A CA in a directory, for development: a P-256 root that signs SPIFFE leaf certificates in this
 * process. Nodes that share the directory share the root. Its user says at start that it is
 * insecure.
 *
 * DIR/root.pem       private key and certificate of the root, one file so that they cannot be mixed
 * up; 0600 DIR/root-cert.pem  the certificate alone, for other programs; written anew at every
 * start; 0600
 *
 * Thread: control. */
#ifndef ZT_SECRETS_CA_LOCAL_H
#define ZT_SECRETS_CA_LOCAL_H

#include "zt/loop/loop.h"
#include "zt/secrets/ca.h"

#define ZT_CA_LOCAL_ROOT_DAYS 3650
#define ZT_CA_LOCAL_BACKDATE_S 120 /* a leaf's notBefore lies this long before its signing */
#define ZT_CA_LOCAL_TTL_MAX_S (90UL * 24 * 3600) /* longer requests are refused */

/* Opens the CA in dir, making directory (0700) and root when they are absent; of two processes that
 * start at once both end with the same root. dir: borrowed until return. Returns owned in *out.
 * What is there is checked: owner, access bits, key type, that key and certificate belong together,
 * that the certificate is a CA and not expired. Errors: ZT_IO, ZT_INVALID or ZT_TLS with what,
 * where and what to do. */
enum zt_err zt_ca_local_open(struct zt_loop *control, const char *dir, struct zt_ca **out,
                             struct zt_error *err);

#endif
