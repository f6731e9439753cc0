/* The TLS record layer after the handshake (RFC 8446 §5; RFC 5246 §6.2.3 and RFC 5288 for TLS 1.2): AES-GCM with the
 * traffic keys, in place. Its whole state is a value (struct zt_tls_keys) that can be exported, which is what handing a live
 * connection to another process needs. No I/O, no allocation after init. Thread: owner. */
#ifndef ZT_NET_TLS_RECORD_H
#define ZT_NET_TLS_RECORD_H

#include "zt/base/err.h"
#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define ZT_TLS_HEADER_BYTES 5
#define ZT_TLS_PLAIN_BYTES_MAX 16384                /* plaintext of one record */
#define ZT_TLS_RECORD_OVERHEAD_MAX (5 + 8 + 1 + 16) /* header, 1.2 explicit nonce, content type, tag */
/* The largest record that is accepted, header included: 1.3 allows 256 bytes of padding and tag on top. */
#define ZT_TLS_RECORD_BYTES_MAX (ZT_TLS_HEADER_BYTES + ZT_TLS_PLAIN_BYTES_MAX + 256)
#define ZT_TLS_SECRET_BYTES_MAX 48
#define ZT_TLS_MASTER_BYTES 48 /* TLS 1.2 master secret */
#define ZT_TLS_RANDOM_BYTES 32 /* client and server random */

#define ZT_TLS_1_2 0x0303
#define ZT_TLS_1_3 0x0304

/* A sender changes its keys after this many records: 2^23 full records are 128 GiB, well before the 2^24.5 of RFC 8446 §5.5.
 * TLS 1.2 cannot change keys; there the limit is the sequence number itself. */
#define ZT_TLS_SEQ_UPDATE (UINT64_C(1) << 23)

/* One direction's exportable state. Secret: wipe copies. */
struct zt_tls_keys {
    uint64_t seq;                            /* number of the next record */
    uint16_t version;                        /* ZT_TLS_1_3 or ZT_TLS_1_2 */
    uint16_t suite;                          /* IANA cipher suite */
    uint8_t secret_len, key_len;             /* bytes; secret_len is 0 in 1.2 */
    uint8_t secret[ZT_TLS_SECRET_BYTES_MAX]; /* 1.3: traffic secret, for KeyUpdate */
    uint8_t key[32];
    uint8_t iv[12]; /* 1.2: the first 4 bytes are the salt */
};

struct zt_tls_dir {
    struct zt_tls_keys k;
    EVP_CIPHER_CTX *ctx; /* keyed once; only the nonce changes per record */
};

/* Content types; alerts (RFC 8446 §6) that this layer and its user send or expect. */
enum zt_tls_content { ZT_TLS_CCS = 20, ZT_TLS_ALERT = 21, ZT_TLS_HANDSHAKE_MSG = 22, ZT_TLS_APPDATA = 23 };
enum zt_tls_alert {
    ZT_TLS_ALERT_CLOSE_NOTIFY = 0,
    ZT_TLS_ALERT_UNEXPECTED_MESSAGE = 10,
    ZT_TLS_ALERT_BAD_RECORD_MAC = 20,
    ZT_TLS_ALERT_RECORD_OVERFLOW = 22,
    ZT_TLS_ALERT_ILLEGAL_PARAMETER = 47,
    ZT_TLS_ALERT_DECODE_ERROR = 50,
    ZT_TLS_ALERT_INTERNAL_ERROR = 80,
    ZT_TLS_ALERT_USER_CANCELED = 90,
};

/* From a TLS 1.3 traffic secret, at sequence number 0. Errors: ZT_TLS (suite not ours, wrong length). */
enum zt_err zt_tls_dir_init_secret(struct zt_tls_dir *d, uint16_t suite, const uint8_t *secret, size_t secret_len,
                                   bool seal, struct zt_error *err);
/* From exported state (also TLS 1.2). Errors: ZT_TLS (state that cannot be). */
enum zt_err zt_tls_dir_init_keys(struct zt_tls_dir *d, const struct zt_tls_keys *k, bool seal, struct zt_error *err);
void zt_tls_dir_fini(struct zt_tls_dir *d); /* wipes; idempotent */
/* The next generation (KeyUpdate, RFC 8446 §7.2); the sequence number starts again. Errors: ZT_TLS (1.2). */
enum zt_err zt_tls_dir_update(struct zt_tls_dir *d, bool seal);

/* TLS 1.2: both directions' keys from the master secret (RFC 5246 §6.3), at sequence number 1: the Finished was 0. */
enum zt_err zt_tls_keys_from_master(uint16_t suite, const uint8_t master[static ZT_TLS_MASTER_BYTES],
                                    const uint8_t client_random[static ZT_TLS_RANDOM_BYTES],
                                    const uint8_t server_random[static ZT_TLS_RANDOM_BYTES],
                                    struct zt_tls_keys *client_write, struct zt_tls_keys *server_write,
                                    struct zt_error *err);

/* Opens the record at rec (len bytes available) in place. ZT_OK: *record_len bytes were one record, plaintext at
 * *plain (*plain_len bytes) inside it, returns borrowed (until rec changes). ZT_AGAIN: not a whole record yet. Errors: ZT_TLS (*alert is to be sent); final, and a record that
 * can never be valid is refused from its first 5 bytes on. */
enum zt_err zt_tls_record_open(struct zt_tls_dir *d, uint8_t *rec, size_t len, size_t *record_len, uint8_t **plain,
                               size_t *plain_len, enum zt_tls_content *type, uint8_t *alert);
/* Seals the first n bytes gathered from iov, at most ZT_TLS_PLAIN_BYTES_MAX, into out (room for n + overhead).
 * out must not overlap them. Returns the record's length, 0 on failure. */
size_t zt_tls_record_seal(struct zt_tls_dir *d, enum zt_tls_content type, const struct iovec *iov, int n_iov,
                          size_t n, uint8_t *out);

#endif
