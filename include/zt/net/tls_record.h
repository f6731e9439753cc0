/* The TLS record layer after the handshake (RFC 8446 §5; RFC 5246 §6.2.3 and RFC 5288 for TLS 1.2): AES-GCM with the
 * traffic keys, in place, many records a call. Its whole state is a value that can be exported, which is what handing a live
 * connection to another process needs. No I/O, no allocation. Thread: owner. */
#ifndef ZT_NET_TLS_RECORD_H
#define ZT_NET_TLS_RECORD_H

#include "zt/base/err.h"
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define ZT_TLS_PLAIN_BYTES_MAX 16384            /* plaintext of one record */
#define ZT_TLS_RECORD_OVERHEAD_MAX (5 + 8 + 1 + 16) /* header, 1.2 explicit nonce, content type, tag */
#define ZT_TLS_SECRET_BYTES_MAX 48

/* One direction's exportable state. */
struct zt_tls_keys {
    uint16_t version;       /* 0x0304 or 0x0303 */
    uint16_t suite;         /* IANA cipher suite */
    uint8_t secret[ZT_TLS_SECRET_BYTES_MAX]; /* 1.3: traffic secret, for KeyUpdate; 1.2: unused */
    uint8_t secret_len;
    uint8_t key[32], key_len;
    uint8_t iv[12];         /* 1.2: the first 4 bytes are the salt */
    uint64_t seq;           /* number of the next record */
};

struct zt_tls_dir {
    struct zt_tls_keys k;
    EVP_CIPHER_CTX *ctx;
};

enum zt_tls_content { ZT_TLS_CCS = 20, ZT_TLS_ALERT = 21, ZT_TLS_HANDSHAKE_MSG = 22, ZT_TLS_APPDATA = 23 };

/* From a TLS 1.3 traffic secret. */
enum zt_err zt_tls_dir_init_secret(struct zt_tls_dir *d, uint16_t suite, const uint8_t *secret, size_t secret_len,
                                   bool seal, struct zt_error *err);
/* From exported state (also TLS 1.2). */
enum zt_err zt_tls_dir_init_keys(struct zt_tls_dir *d, const struct zt_tls_keys *k, bool seal, struct zt_error *err);
void zt_tls_dir_fini(struct zt_tls_dir *d); /* wipes; idempotent */
/* The next generation (KeyUpdate, RFC 8446 §7.2). */
enum zt_err zt_tls_dir_update(struct zt_tls_dir *d, bool seal);

/* Opens the record at rec (len bytes available) in place. ZT_OK: *record_len bytes were one record, plaintext at
 * *plain/*plain_len. ZT_AGAIN: not a whole record yet. Errors: ZT_TLS (bad record; *alert to send). */
enum zt_err zt_tls_record_open(struct zt_tls_dir *d, uint8_t *rec, size_t len, size_t *record_len, uint8_t **plain,
                               size_t *plain_len, enum zt_tls_content *type, uint8_t *alert);
/* Seals up to ZT_TLS_PLAIN_BYTES_MAX bytes gathered from iov into out (room for n + overhead). Returns the record's length, 0 on failure. */
size_t zt_tls_record_seal(struct zt_tls_dir *d, enum zt_tls_content type, const struct iovec *iov, int n_iov,
                          size_t n, uint8_t *out);

#endif
