/* TLS records with AES-GCM: open and seal one record, derive and change keys.
 *
 * Invariants: a zt_tls_dir seals or opens, never both. Its sequence number counts every record of the current key, whatever the
 * content type, and never repeats: it fails before it would wrap. The EVP context is keyed when a key is installed and
 * afterwards only ever gets a new nonce. */
#include "zt/net/tls_record.h"
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <string.h>

#define TAG_BYTES 16
#define EXPLICIT_NONCE_BYTES 8 /* 1.2 */
#define SALT_BYTES 4           /* 1.2 */
#define AAD_BYTES_MAX 13

struct suite {
    uint16_t id, version;
    uint8_t key_len, secret_len;
};

static const struct suite suites[] = {
    {0x1302, ZT_TLS_1_3, 32, 48}, /* TLS_AES_256_GCM_SHA384 */
    {0x1301, ZT_TLS_1_3, 16, 32}, /* TLS_AES_128_GCM_SHA256 */
    {0xc02c, ZT_TLS_1_2, 32, 48}, /* ECDHE-ECDSA-AES256-GCM-SHA384; 1.2: secret_len is the PRF's hash only */
    {0xc02b, ZT_TLS_1_2, 16, 32}, /* ECDHE-ECDSA-AES128-GCM-SHA256 */
    {0xc030, ZT_TLS_1_2, 32, 48}, /* ECDHE-RSA-AES256-GCM-SHA384 */
    {0xc02f, ZT_TLS_1_2, 16, 32}, /* ECDHE-RSA-AES128-GCM-SHA256 */
};

static const struct suite *suite_find(uint16_t id, uint16_t version)
{
    for (size_t i = 0; i < sizeof(suites) / sizeof(suites[0]); i++)
        if (suites[i].id == id && suites[i].version == version)
            return &suites[i];
    return NULL;
}

static const EVP_MD *suite_hash(const struct suite *s)
{
    return s->secret_len == 48 ? EVP_sha384() : EVP_sha256();
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* HKDF-Expand-Label with an empty context (RFC 8446 §7.1). Never more than one hash long here, so HKDF-Expand is one HMAC. */
static bool expand_label(const struct suite *s, const uint8_t *secret, const char *label, uint8_t *out, size_t out_len)
{
    uint8_t info[32], block[EVP_MAX_MD_SIZE];
    size_t label_len = strlen(label), n = 0;
    unsigned block_len = 0;

    ZT_ASSERT(out_len <= s->secret_len && label_len <= 16);
    info[n++] = 0;
    info[n++] = (uint8_t)out_len;
    info[n++] = (uint8_t)(6 + label_len);
    memcpy(info + n, "tls13 ", 6);
    memcpy(info + n + 6, label, label_len);
    n += 6 + label_len;
    info[n++] = 0; /* context length */
    info[n++] = 1; /* HKDF block counter */
    bool ok = HMAC(suite_hash(s), secret, s->secret_len, info, n, block, &block_len) && block_len >= out_len;
    if (ok)
        memcpy(out, block, out_len);
    OPENSSL_cleanse(block, sizeof(block));
    return ok;
}

static bool derive_key_iv(const struct suite *s, struct zt_tls_keys *k)
{
    return expand_label(s, k->secret, "key", k->key, k->key_len) &&
           expand_label(s, k->secret, "iv", k->iv, sizeof(k->iv));
}

static bool install_key(struct zt_tls_dir *d, bool seal)
{
    if (!d->ctx)
        d->ctx = EVP_CIPHER_CTX_new();
    /* 12 bytes of nonce are GCM's default. */
    return d->ctx && EVP_CipherInit_ex(d->ctx, d->k.key_len == 32 ? EVP_aes_256_gcm() : EVP_aes_128_gcm(), NULL,
                                       d->k.key, NULL, seal) == 1;
}

enum zt_err zt_tls_dir_init_secret(struct zt_tls_dir *d, uint16_t suite, const uint8_t *secret, size_t secret_len,
                                   bool seal, struct zt_error *err)
{
    const struct suite *s = suite_find(suite, ZT_TLS_1_3);

    memset(d, 0, sizeof(*d));
    if (!s || secret_len != s->secret_len)
        return zt_error_set(err, ZT_TLS, "cipher suite 0x%04x with a secret of %zu bytes", suite, secret_len);
    d->k.version = ZT_TLS_1_3;
    d->k.suite = suite;
    d->k.key_len = s->key_len;
    d->k.secret_len = s->secret_len;
    memcpy(d->k.secret, secret, secret_len);
    if (derive_key_iv(s, &d->k) && install_key(d, seal))
        return ZT_OK;
    zt_tls_dir_fini(d);
    return zt_error_set(err, ZT_TLS, "key derivation failed");
}

enum zt_err zt_tls_dir_init_keys(struct zt_tls_dir *d, const struct zt_tls_keys *k, bool seal, struct zt_error *err)
{
    const struct suite *s = suite_find(k->suite, k->version);

    memset(d, 0, sizeof(*d));
    if (!s || k->key_len != s->key_len || k->secret_len != (s->version == ZT_TLS_1_3 ? s->secret_len : 0))
        return zt_error_set(err, ZT_TLS, "record state of an unknown cipher suite 0x%04x", k->suite);
    d->k = *k;
    if (install_key(d, seal))
        return ZT_OK;
    zt_tls_dir_fini(d);
    return zt_error_set(err, ZT_TLS, "key set-up failed");
}

void zt_tls_dir_fini(struct zt_tls_dir *d)
{
    EVP_CIPHER_CTX_free(d->ctx); /* wipes its key schedule */
    OPENSSL_cleanse(d, sizeof(*d));
}

enum zt_err zt_tls_dir_update(struct zt_tls_dir *d, bool seal)
{
    const struct suite *s = suite_find(d->k.suite, ZT_TLS_1_3);
    uint8_t next[ZT_TLS_SECRET_BYTES_MAX];

    if (!s)
        return ZT_TLS;
    bool ok = expand_label(s, d->k.secret, "traffic upd", next, s->secret_len);
    if (ok) {
        memcpy(d->k.secret, next, s->secret_len);
        d->k.seq = 0;
        ok = derive_key_iv(s, &d->k) && install_key(d, seal);
    }
    OPENSSL_cleanse(next, sizeof(next));
    return ok ? ZT_OK : ZT_TLS;
}

static bool tls1_prf(const struct suite *s, const uint8_t *master, const uint8_t *seed, size_t seed_len, uint8_t *out,
                     size_t out_len)
{
    /* The parameters want mutable pointers and do not write through them. */
    char *hash = (char *)(uintptr_t)(s->secret_len == 48 ? "SHA384" : "SHA256");
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, hash, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SECRET, (void *)(uintptr_t)master, ZT_TLS_MASTER_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SEED, (void *)(uintptr_t)seed, seed_len),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "TLS1-PRF", NULL);
    EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    bool ok = ctx && EVP_KDF_derive(ctx, out, out_len, params) == 1;
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    return ok;
}

enum zt_err zt_tls_keys_from_master(uint16_t suite, const uint8_t master[static ZT_TLS_MASTER_BYTES],
                                    const uint8_t client_random[static ZT_TLS_RANDOM_BYTES],
                                    const uint8_t server_random[static ZT_TLS_RANDOM_BYTES],
                                    struct zt_tls_keys *client_write, struct zt_tls_keys *server_write,
                                    struct zt_error *err)
{
    static const char label[] = "key expansion";
    enum { LABEL_LEN = sizeof(label) - 1 };
    const struct suite *s = suite_find(suite, ZT_TLS_1_2);
    uint8_t seed[LABEL_LEN + 2 * ZT_TLS_RANDOM_BYTES], block[2 * 32 + 2 * SALT_BYTES];

    memset(client_write, 0, sizeof(*client_write));
    memset(server_write, 0, sizeof(*server_write));
    if (!s)
        return zt_error_set(err, ZT_TLS, "cipher suite 0x%04x", suite);
    memcpy(seed, label, LABEL_LEN);
    memcpy(seed + LABEL_LEN, server_random, ZT_TLS_RANDOM_BYTES);
    memcpy(seed + LABEL_LEN + ZT_TLS_RANDOM_BYTES, client_random, ZT_TLS_RANDOM_BYTES);
    if (!tls1_prf(s, master, seed, sizeof(seed), block, 2u * s->key_len + 2 * SALT_BYTES))
        return zt_error_set(err, ZT_TLS, "key derivation failed");
    for (unsigned i = 0; i < 2; i++) { /* client key, server key, client salt, server salt */
        struct zt_tls_keys *k = i ? server_write : client_write;
        k->version = ZT_TLS_1_2;
        k->suite = suite;
        k->key_len = s->key_len;
        k->seq = 1;
        memcpy(k->key, block + i * s->key_len, s->key_len);
        memcpy(k->iv, block + 2u * s->key_len + i * SALT_BYTES, SALT_BYTES);
    }
    OPENSSL_cleanse(block, sizeof(block));
    return ZT_OK;
}

/* ---- records --------------------------------------------------------------------------------- */

static void put_be64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

/* Sets the nonce of the next record and gives GCM the additional data. explicit_nonce: 1.2 only. */
static bool begin_record(struct zt_tls_dir *d, const uint8_t *header, const uint8_t *explicit_nonce, size_t plain_len)
{
    uint8_t nonce[12], aad[AAD_BYTES_MAX];
    size_t aad_len;
    int n;

    if (d->k.seq == UINT64_MAX)
        return false;
    memcpy(nonce, d->k.iv, sizeof(nonce));
    if (d->k.version == ZT_TLS_1_3) {
        uint8_t seq[8];
        put_be64(seq, d->k.seq);
        for (int i = 0; i < 8; i++)
            nonce[4 + i] ^= seq[i];
        memcpy(aad, header, aad_len = ZT_TLS_HEADER_BYTES);
    } else {
        memcpy(nonce + SALT_BYTES, explicit_nonce, EXPLICIT_NONCE_BYTES);
        put_be64(aad, d->k.seq);
        memcpy(aad + 8, header, 3);
        aad[11] = (uint8_t)(plain_len >> 8);
        aad[12] = (uint8_t)plain_len;
        aad_len = 13;
    }
    return EVP_CipherInit_ex(d->ctx, NULL, NULL, NULL, nonce, -1) == 1 &&
           EVP_CipherUpdate(d->ctx, NULL, &n, aad, (int)aad_len) == 1;
}

static enum zt_err refuse(uint8_t *alert, enum zt_tls_alert why)
{
    *alert = (uint8_t)why;
    return ZT_TLS;
}

/* What can be told from the header alone. */
static enum zt_err check_header(const struct zt_tls_dir *d, const uint8_t *rec, size_t body_len, uint8_t *alert)
{
    bool v13 = d->k.version == ZT_TLS_1_3;

    /* After the handshake 1.3 has application data on the outside only; a CCS is as wrong as anything (RFC 8446 §5). */
    if (v13 ? rec[0] != ZT_TLS_APPDATA : rec[0] < ZT_TLS_CCS || rec[0] > ZT_TLS_APPDATA)
        return refuse(alert, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    if (rec[1] != 3 || rec[2] != 3)
        return refuse(alert, ZT_TLS_ALERT_DECODE_ERROR);
    if (body_len > (v13 ? ZT_TLS_PLAIN_BYTES_MAX + 256u
                        : ZT_TLS_PLAIN_BYTES_MAX + EXPLICIT_NONCE_BYTES + TAG_BYTES))
        return refuse(alert, ZT_TLS_ALERT_RECORD_OVERFLOW);
    if (body_len < TAG_BYTES + (v13 ? 1u : EXPLICIT_NONCE_BYTES))
        return refuse(alert, ZT_TLS_ALERT_BAD_RECORD_MAC);
    return ZT_OK;
}

/* 1.3: the last byte that is not zero is the content type, the zeros after it are padding. */
static enum zt_err strip_padding(const uint8_t *plain, size_t *plain_len, enum zt_tls_content *type, uint8_t *alert)
{
    size_t n = *plain_len;

    while (n > 0 && plain[n - 1] == 0)
        n--;
    if (n == 0)
        return refuse(alert, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    *type = plain[n - 1];
    *plain_len = n - 1;
    if (*type < ZT_TLS_ALERT || *type > ZT_TLS_APPDATA)
        return refuse(alert, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    return ZT_OK;
}

enum zt_err zt_tls_record_open(struct zt_tls_dir *d, uint8_t *rec, size_t len, size_t *record_len, uint8_t **plain,
                               size_t *plain_len, enum zt_tls_content *type, uint8_t *alert)
{
    bool v13 = d->k.version == ZT_TLS_1_3;
    size_t skip = ZT_TLS_HEADER_BYTES + (v13 ? 0 : EXPLICIT_NONCE_BYTES);
    int n, last;

    *alert = 0;
    if (len < ZT_TLS_HEADER_BYTES)
        return ZT_AGAIN;
    size_t body_len = (size_t)rec[3] << 8 | rec[4];
    enum zt_err e = check_header(d, rec, body_len, alert);
    if (e)
        return e;
    if (len < ZT_TLS_HEADER_BYTES + body_len)
        return ZT_AGAIN;

    *record_len = ZT_TLS_HEADER_BYTES + body_len;
    *plain = rec + skip;
    *plain_len = *record_len - skip - TAG_BYTES;
    *type = rec[0];
    if (!begin_record(d, rec, rec + ZT_TLS_HEADER_BYTES, *plain_len) ||
        EVP_CipherUpdate(d->ctx, *plain, &n, *plain, (int)*plain_len) != 1 ||
        EVP_CIPHER_CTX_ctrl(d->ctx, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, rec + *record_len - TAG_BYTES) != 1 ||
        EVP_CipherFinal_ex(d->ctx, *plain + n, &last) != 1) {
        OPENSSL_cleanse(*plain, *plain_len); /* nobody may look at what was not authentic */
        return refuse(alert, ZT_TLS_ALERT_BAD_RECORD_MAC);
    }
    d->k.seq++;
    if (v13 && (e = strip_padding(*plain, plain_len, type, alert)))
        return e;
    if (*plain_len > ZT_TLS_PLAIN_BYTES_MAX)
        return refuse(alert, ZT_TLS_ALERT_RECORD_OVERFLOW);
    return ZT_OK;
}

/* Encrypts n bytes gathered from iov to out. Returns where the output ends, NULL on failure. */
static uint8_t *seal_gather(struct zt_tls_dir *d, const struct iovec *iov, int n_iov, size_t n, uint8_t *out)
{
    int done;

    for (int i = 0; i < n_iov && n > 0; i++) {
        size_t piece = iov[i].iov_len < n ? iov[i].iov_len : n;
        if (piece == 0)
            continue;
        if (EVP_CipherUpdate(d->ctx, out, &done, iov[i].iov_base, (int)piece) != 1)
            return NULL;
        out += piece;
        n -= piece;
    }
    return n == 0 ? out : NULL;
}

size_t zt_tls_record_seal(struct zt_tls_dir *d, enum zt_tls_content type, const struct iovec *iov, int n_iov,
                          size_t n, uint8_t *out)
{
    bool v13 = d->k.version == ZT_TLS_1_3;
    size_t body_len = n + TAG_BYTES + (v13 ? 1 : EXPLICIT_NONCE_BYTES);
    uint8_t *at = out + ZT_TLS_HEADER_BYTES, inner_type = (uint8_t)type;
    int done;

    ZT_ASSERT(n <= ZT_TLS_PLAIN_BYTES_MAX);
    out[0] = v13 ? ZT_TLS_APPDATA : (uint8_t)type;
    out[1] = out[2] = 3;
    out[3] = (uint8_t)(body_len >> 8);
    out[4] = (uint8_t)body_len;
    if (!v13) {
        /* The sequence number is unique under this key. The Finished that the handshake library sent took a random 64-bit
         * nonce: meeting it is as likely as guessing a key half. */
        put_be64(at, d->k.seq);
        at += EXPLICIT_NONCE_BYTES;
    }
    if (!begin_record(d, out, out + ZT_TLS_HEADER_BYTES, n) || !(at = seal_gather(d, iov, n_iov, n, at)))
        return 0;
    if (v13 && EVP_CipherUpdate(d->ctx, at++, &done, &inner_type, 1) != 1)
        return 0;
    if (EVP_CipherFinal_ex(d->ctx, at, &done) != 1 ||
        EVP_CIPHER_CTX_ctrl(d->ctx, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, at) != 1)
        return 0;
    d->k.seq++;
    return ZT_TLS_HEADER_BYTES + body_len;
}
