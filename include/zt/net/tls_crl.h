/* Certificate revocation lists (spec/dataplane §12). One set for the process, immutable once published and replaced whole by a
 * reload; every handshake consults it, and whoever keeps a tunnel open asks again after a reload.
 *
 * Semantics: leaf and intermediates are looked up; only the first list of their issuer, in file order, whose scope covers them
 * counts; no such list means not revoked; a list's expiry does not count; a list that its issuer did not sign fails the path. */
#ifndef ZT_NET_TLS_CRL_H
#define ZT_NET_TLS_CRL_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <stddef.h>

#define ZT_TLS_CRL_BYTES_MAX (64 * 1024 * 1024) /* of the file */

struct zt_tls_path;

/* Reads the file, DER or PEM with any number of lists, and publishes what it holds. An empty file is an empty set. On failure the set
 * that was there stays. Errors: ZT_NOT_FOUND (no such file), ZT_IO, ZT_INVALID (what, and which list). Thread: any; blocks on the
 * file. */
enum zt_err zt_tls_crl_load(const char *path, unsigned *n_lists, struct zt_error *err);
/* Forgets the set. Thread: any. */
void zt_tls_crl_clear(void);

/* What the set says about a verified path now: ZT_OK, ZT_REVOKED, or ZT_TLS (a list with a wrong signature). Thread: any. */
enum zt_err zt_tls_path_check(const struct zt_tls_path *p);
/* Returns owned: one more reference. */
struct zt_tls_path *zt_tls_path_ref(struct zt_tls_path *p); /* Thread: any */
void zt_tls_path_unref(struct zt_tls_path *p);              /* Thread: any; NULL is legal */

#endif
