/* The record layer against libssl: an SSL object with memory BIOs is the peer, our zt_tls_dir pair stands where the other SSL
 * object was when the handshake ended. */
#include "support/tls_test.h"
#include "zt/base/mem.h"
#include "zt/net/tls_record.h"
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct secrets {
    uint8_t client[ZT_TLS_SECRET_BYTES_MAX], server[ZT_TLS_SECRET_BYTES_MAX];
    size_t client_len, server_len;
};

/* peer is libssl; we are the other role. */
struct setup {
    SSL_CTX *ctx[2];
    SSL *peer;
    struct zt_tls_dir in, out;
};

static struct secrets captured;

static void capture(const SSL *ssl, const char *line)
{
    const char *hex = strrchr(line, ' ') + 1;
    long n;
    unsigned char *bytes = OPENSSL_hexstr2buf(hex, &n);
    if (strncmp(line, "CLIENT_TRAFFIC_SECRET_0", 23) == 0)
        memcpy(captured.client, bytes, captured.client_len = (size_t)n);
    else if (strncmp(line, "SERVER_TRAFFIC_SECRET_0", 23) == 0)
        memcpy(captured.server, bytes, captured.server_len = (size_t)n);
    OPENSSL_free(bytes);
}

static void move_bytes(SSL *from, SSL *to)
{
    uint8_t buf[4096];
    int n;
    while ((n = BIO_read(SSL_get_wbio(from), buf, sizeof(buf))) > 0)
        BIO_write(SSL_get_rbio(to), buf, n);
}

static void take_keys(struct setup *s, SSL *ours, bool we_are_client)
{
    uint16_t suite = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(ours));
    struct zt_tls_dir *client = we_are_client ? &s->out : &s->in, *server = we_are_client ? &s->in : &s->out;
    if (SSL_version(ours) == TLS1_3_VERSION) {
        assert_int_equal(zt_tls_dir_init_secret(client, suite, captured.client, captured.client_len, we_are_client, NULL),
                         ZT_OK);
        assert_int_equal(zt_tls_dir_init_secret(server, suite, captured.server, captured.server_len, !we_are_client, NULL),
                         ZT_OK);
        return;
    }
    uint8_t master[48], client_random[32], server_random[32];
    struct zt_tls_keys client_keys, server_keys;
    SSL_SESSION_get_master_key(SSL_get_session(ours), master, sizeof(master));
    SSL_get_client_random(ours, client_random, sizeof(client_random));
    SSL_get_server_random(ours, server_random, sizeof(server_random));
    assert_int_equal(
        zt_tls_keys_from_master(suite, master, client_random, server_random, &client_keys, &server_keys, NULL), ZT_OK);
    assert_int_equal(zt_tls_dir_init_keys(client, &client_keys, we_are_client, NULL), ZT_OK);
    assert_int_equal(zt_tls_dir_init_keys(server, &server_keys, !we_are_client, NULL), ZT_OK);
}

static struct setup set_up(int version, const char *suite, bool we_are_client)
{
    struct setup s = {0};
    struct zt_test_cert *root = zt_test_root_named("root"), *leaf = zt_test_leaf(root, NULL);
    SSL *ends[2]; /* client, server */

    for (int i = 0; i < 2; i++) {
        s.ctx[i] = SSL_CTX_new(i ? TLS_server_method() : TLS_client_method());
        SSL_CTX_set_min_proto_version(s.ctx[i], version);
        SSL_CTX_set_max_proto_version(s.ctx[i], version);
        SSL_CTX_set_num_tickets(s.ctx[i], 0);
        SSL_CTX_set_options(s.ctx[i], SSL_OP_NO_TICKET);
        assert_int_equal(version == TLS1_3_VERSION ? SSL_CTX_set_ciphersuites(s.ctx[i], suite)
                                                   : SSL_CTX_set_cipher_list(s.ctx[i], suite),
                         1);
        SSL_CTX_set_keylog_callback(s.ctx[i], capture);
        if (i) {
            SSL_CTX_use_certificate(s.ctx[i], leaf->cert);
            SSL_CTX_use_PrivateKey(s.ctx[i], leaf->key);
        }
        ends[i] = SSL_new(s.ctx[i]);
        SSL_set_bio(ends[i], BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    }
    SSL_set_connect_state(ends[0]);
    SSL_set_accept_state(ends[1]);
    for (int i = 0; i < 10; i++) {
        SSL_do_handshake(ends[0]);
        move_bytes(ends[0], ends[1]);
        SSL_do_handshake(ends[1]);
        move_bytes(ends[1], ends[0]);
    }
    assert_true(SSL_is_init_finished(ends[0]) && SSL_is_init_finished(ends[1]));
    take_keys(&s, ends[we_are_client ? 0 : 1], we_are_client);
    s.peer = ends[we_are_client ? 1 : 0];
    SSL_free(ends[we_are_client ? 0 : 1]);
    zt_test_cert_free(leaf);
    zt_test_cert_free(root);
    return s;
}

static struct setup set_up_13(void)
{
    return set_up(TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384", true);
}

static void tear_down(struct setup *s)
{
    SSL_free(s->peer);
    SSL_CTX_free(s->ctx[0]);
    SSL_CTX_free(s->ctx[1]);
    zt_tls_dir_fini(&s->in);
    zt_tls_dir_fini(&s->out);
}

/* All that the peer has written. */
static size_t from_peer(struct setup *s, uint8_t *buf, size_t size)
{
    int n = BIO_read(SSL_get_wbio(s->peer), buf, (int)size);
    return n > 0 ? (size_t)n : 0;
}

static void peer_writes(struct setup *s, const void *bytes, size_t n)
{
    assert_int_equal(SSL_write(s->peer, bytes, (int)n), (int)n);
}

/* Opens exactly one record with this plaintext. */
static void expect_record(struct setup *s, uint8_t *rec, size_t len, enum zt_tls_content want_type, const void *want,
                          size_t want_len)
{
    size_t record_len, plain_len;
    uint8_t *plain, alert;
    enum zt_tls_content type;
    assert_int_equal(zt_tls_record_open(&s->in, rec, len, &record_len, &plain, &plain_len, &type, &alert), ZT_OK);
    assert_int_equal(record_len, len);
    assert_int_equal(type, want_type);
    assert_int_equal(plain_len, want_len);
    assert_memory_equal(plain, want, want_len);
}

static void expect_refused(struct zt_tls_dir *d, uint8_t *rec, size_t len, uint8_t want_alert)
{
    size_t record_len, plain_len;
    uint8_t *plain, alert;
    enum zt_tls_content type;
    assert_int_equal(zt_tls_record_open(d, rec, len, &record_len, &plain, &plain_len, &type, &alert), ZT_TLS);
    assert_int_equal(alert, want_alert);
}

static void we_write(struct setup *s, enum zt_tls_content type, const void *bytes, size_t n)
{
    uint8_t rec[ZT_TLS_PLAIN_BYTES_MAX + ZT_TLS_RECORD_OVERHEAD_MAX];
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    size_t len = zt_tls_record_seal(&s->out, type, &iov, 1, n, rec);
    assert_true(len > n);
    BIO_write(SSL_get_rbio(s->peer), rec, (int)len);
}

static void expect_peer_reads(struct setup *s, const void *want, size_t n)
{
    uint8_t buf[ZT_TLS_PLAIN_BYTES_MAX];
    assert_int_equal(SSL_read(s->peer, buf, sizeof(buf)), (int)n);
    assert_memory_equal(buf, want, n);
}

/* Every size that matters, both directions, alternating. */
static void exchange(struct setup *s)
{
    static const size_t sizes[] = {1, 2, 15, 16, 17, 100, 1000, 16383, 16384};
    static uint8_t bytes[ZT_TLS_PLAIN_BYTES_MAX], rec[ZT_TLS_RECORD_BYTES_MAX];
    RAND_bytes(bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        peer_writes(s, bytes, sizes[i]);
        expect_record(s, rec, from_peer(s, rec, sizeof(rec)), ZT_TLS_APPDATA, bytes, sizes[i]);
        we_write(s, ZT_TLS_APPDATA, bytes, sizes[i]);
        expect_peer_reads(s, bytes, sizes[i]);
    }
}

static void check_exchange(int version, const char *suite)
{
    for (int we_are_client = 0; we_are_client < 2; we_are_client++) {
        struct setup s = set_up(version, suite, we_are_client);
        exchange(&s);
        tear_down(&s);
    }
}

static void record_agrees_with_libssl_aes256_sha384(void **state)
{
    check_exchange(TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384");
}

static void record_agrees_with_libssl_aes128_sha256(void **state)
{
    check_exchange(TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256");
}

static void record_agrees_with_libssl_tls12_aes256(void **state)
{
    check_exchange(TLS1_2_VERSION, "ECDHE-ECDSA-AES256-GCM-SHA384");
}

static void record_agrees_with_libssl_tls12_aes128(void **state)
{
    check_exchange(TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256");
}

static void record_padding_is_stripped(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[2048];
    SSL_set_block_padding(s.peer, 1024);
    peer_writes(&s, "padded", 6);
    size_t len = from_peer(&s, rec, sizeof(rec));
    assert_true(len > 1000);
    expect_record(&s, rec, len, ZT_TLS_APPDATA, "padded", 6);
    tear_down(&s);
}

static void record_of_padding_only_is_unexpected(void **state)
{
    struct setup s = set_up_13();
    struct zt_tls_dir mirror;
    uint8_t rec[64], zeros[8] = {0};
    struct iovec iov = {zeros, sizeof(zeros)};
    struct zt_tls_keys k = s.in.k;
    assert_int_equal(zt_tls_dir_init_keys(&mirror, &k, true, NULL), ZT_OK);
    size_t len = zt_tls_record_seal(&mirror, (enum zt_tls_content)0, &iov, 1, sizeof(zeros), rec);
    expect_refused(&s.in, rec, len, ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    zt_tls_dir_fini(&mirror);
    tear_down(&s);
}

static void record_seals_from_pieces(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[128];
    char a[] = "one", b[] = "", c[] = "two", d[] = "three and not this";
    struct iovec iov[] = {{a, 3}, {b, 0}, {c, 3}, {d, sizeof(d)}};
    size_t len = zt_tls_record_seal(&s.out, ZT_TLS_APPDATA, iov, 4, 11, rec);
    assert_int_equal(len, ZT_TLS_HEADER_BYTES + 11 + 1 + 16);
    BIO_write(SSL_get_rbio(s.peer), rec, (int)len);
    expect_peer_reads(&s, "onetwothree", 11);
    tear_down(&s);
}

static void record_key_update_of_peer_is_followed(void **state)
{
    static const uint8_t update[] = {24, 0, 0, 1, SSL_KEY_UPDATE_NOT_REQUESTED};
    struct setup s = set_up_13();
    uint8_t rec[128];
    for (int round = 0; round < 3; round++) {
        SSL_key_update(s.peer, SSL_KEY_UPDATE_NOT_REQUESTED);
        assert_int_equal(SSL_do_handshake(s.peer), 1);
        expect_record(&s, rec, from_peer(&s, rec, sizeof(rec)), ZT_TLS_HANDSHAKE_MSG, update, sizeof(update));
        assert_int_equal(zt_tls_dir_update(&s.in, false), ZT_OK);
        exchange(&s);
    }
    tear_down(&s);
}

static void record_key_update_of_ours_is_followed_by_libssl(void **state)
{
    static const uint8_t update[] = {24, 0, 0, 1, SSL_KEY_UPDATE_NOT_REQUESTED};
    struct setup s = set_up_13();
    for (int round = 0; round < 3; round++) {
        we_write(&s, ZT_TLS_HANDSHAKE_MSG, update, sizeof(update));
        assert_int_equal(zt_tls_dir_update(&s.out, true), ZT_OK);
        assert_int_equal(s.out.k.seq, 0);
        exchange(&s);
    }
    tear_down(&s);
}

static void record_tls12_has_no_key_update(void **state)
{
    struct setup s = set_up(TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256", true);
    assert_int_equal(zt_tls_dir_update(&s.in, false), ZT_TLS);
    exchange(&s);
    tear_down(&s);
}

static void record_truncated_anywhere_waits(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[128], copy[128], *plain, alert;
    size_t record_len, plain_len;
    enum zt_tls_content type;
    peer_writes(&s, "hello", 5);
    size_t len = from_peer(&s, rec, sizeof(rec));
    for (size_t n = 0; n < len; n++) {
        memcpy(copy, rec, n);
        assert_int_equal(zt_tls_record_open(&s.in, copy, n, &record_len, &plain, &plain_len, &type, &alert), ZT_AGAIN);
        assert_memory_equal(copy, rec, n);
    }
    expect_record(&s, rec, len, ZT_TLS_APPDATA, "hello", 5);
    tear_down(&s);
}

static void record_corrupted_anywhere_is_refused_and_wiped(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[128], copy[128];
    size_t record_len, plain_len;
    uint8_t *plain, alert;
    enum zt_tls_content type;
    peer_writes(&s, "hello", 5);
    size_t len = from_peer(&s, rec, sizeof(rec));
    for (size_t i = 0; i < len * 8; i++) {
        memcpy(copy, rec, len);
        copy[i / 8] ^= (uint8_t)(1 << i % 8);
        enum zt_err e = zt_tls_record_open(&s.in, copy, len, &record_len, &plain, &plain_len, &type, &alert);
        assert_true(e == ZT_TLS || (e == ZT_AGAIN && (i / 8 == 3 || i / 8 == 4))); /* a longer length only waits */
        assert_null(memmem(copy, sizeof(copy), "hello", 5));
        assert_int_equal(s.in.k.seq, 0);
    }
    tear_down(&s);
}

static void record_replayed_is_refused(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[128], copy[128];
    peer_writes(&s, "hello", 5);
    size_t len = from_peer(&s, rec, sizeof(rec));
    memcpy(copy, rec, len);
    expect_record(&s, rec, len, ZT_TLS_APPDATA, "hello", 5);
    expect_refused(&s.in, copy, len, ZT_TLS_ALERT_BAD_RECORD_MAC);
    tear_down(&s);
}

static void record_oversized_is_refused_by_its_header(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[5] = {23, 3, 3, 0x41, 0x01}; /* 16384 + 257 */
    expect_refused(&s.in, rec, sizeof(rec), ZT_TLS_ALERT_RECORD_OVERFLOW);
    rec[3] = rec[4] = 0xff;
    expect_refused(&s.in, rec, sizeof(rec), ZT_TLS_ALERT_RECORD_OVERFLOW);
    tear_down(&s);
}

/* Legal as ciphertext, one byte too much as plaintext. */
static void record_with_too_much_plaintext_is_refused(void **state)
{
    static uint8_t rec[ZT_TLS_RECORD_BYTES_MAX];
    struct setup s = set_up_13();
    struct zt_tls_keys k = s.in.k;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    const size_t n = ZT_TLS_PLAIN_BYTES_MAX + 2; /* content and type */
    int done;
    memcpy(rec, (uint8_t[]){23, 3, 3, (n + 16) >> 8, (n + 16) & 255}, 5);
    memset(rec + 5, 'x', n - 1);
    rec[5 + n - 1] = 23;
    EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, k.key, k.iv); /* number 0: the nonce is the iv */
    EVP_EncryptUpdate(ctx, NULL, &done, rec, 5);
    EVP_EncryptUpdate(ctx, rec + 5, &done, rec + 5, (int)n);
    EVP_EncryptFinal_ex(ctx, rec + 5 + n, &done);
    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, rec + 5 + n);
    EVP_CIPHER_CTX_free(ctx);
    expect_refused(&s.in, rec, 5 + n + 16, ZT_TLS_ALERT_RECORD_OVERFLOW);
    tear_down(&s);
}

static void record_too_short_for_a_tag_is_refused(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[5 + 16] = {23, 3, 3, 0, 16};
    expect_refused(&s.in, rec, sizeof(rec), ZT_TLS_ALERT_BAD_RECORD_MAC);
    tear_down(&s);
}

static void record_of_plaintext_kinds_is_unexpected(void **state)
{
    struct setup s = set_up_13();
    uint8_t ccs[] = {20, 3, 3, 0, 1, 1}, alert[] = {21, 3, 3, 0, 2, 2, 40}, http[] = "GET / HTTP/1.1\r\n";
    expect_refused(&s.in, ccs, sizeof(ccs), ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    expect_refused(&s.in, alert, sizeof(alert), ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    expect_refused(&s.in, http, sizeof(http), ZT_TLS_ALERT_UNEXPECTED_MESSAGE);
    tear_down(&s);
}

static void record_state_survives_export_and_import(void **state)
{
    static const struct {
        int version;
        const char *suite;
    } cases[] = {{TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384"},
                 {TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"},
                 {TLS1_2_VERSION, "ECDHE-ECDSA-AES256-GCM-SHA384"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct setup s = set_up(cases[i].version, cases[i].suite, true);
        for (int round = 0; round < 2; round++) {
            exchange(&s);
            struct zt_tls_keys in = s.in.k, out = s.out.k;
            zt_tls_dir_fini(&s.in);
            zt_tls_dir_fini(&s.out);
            assert_true(in.seq > 0 && out.seq > 0);
            assert_int_equal(zt_tls_dir_init_keys(&s.in, &in, false, NULL), ZT_OK);
            assert_int_equal(zt_tls_dir_init_keys(&s.out, &out, true, NULL), ZT_OK);
        }
        exchange(&s);
        tear_down(&s);
    }
}

static void record_import_refuses_state_that_cannot_be(void **state)
{
    struct setup s = set_up_13();
    struct zt_tls_dir d;
    struct zt_tls_keys k = s.in.k;
    struct zt_error err = ZT_ERROR_INIT;
    k.suite = 0x1303;
    assert_int_equal(zt_tls_dir_init_keys(&d, &k, false, &err), ZT_TLS);
    k = s.in.k;
    k.key_len = 16;
    assert_int_equal(zt_tls_dir_init_keys(&d, &k, false, &err), ZT_TLS);
    k = s.in.k;
    k.version = ZT_TLS_1_2;
    assert_int_equal(zt_tls_dir_init_keys(&d, &k, false, &err), ZT_TLS);
    assert_int_equal(zt_tls_dir_init_secret(&d, 0x1302, k.secret, 32, false, &err), ZT_TLS);
    tear_down(&s);
}

static void record_number_never_wraps(void **state)
{
    struct setup s = set_up_13();
    uint8_t rec[64];
    struct iovec iov = {rec, 0};
    s.out.k.seq = UINT64_MAX;
    assert_int_equal(zt_tls_record_seal(&s.out, ZT_TLS_APPDATA, &iov, 1, 0, rec), 0);
    tear_down(&s);
}

static void record_fini_wipes_and_is_idempotent(void **state)
{
    struct setup s = set_up_13();
    struct zt_tls_dir zero = {0};
    zt_tls_dir_fini(&s.in);
    assert_memory_equal(&s.in, &zero, sizeof(zero));
    zt_tls_dir_fini(&s.in);
    tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_agrees_with_libssl_aes256_sha384),
        cmocka_unit_test(record_agrees_with_libssl_aes128_sha256),
        cmocka_unit_test(record_agrees_with_libssl_tls12_aes256),
        cmocka_unit_test(record_agrees_with_libssl_tls12_aes128),
        cmocka_unit_test(record_padding_is_stripped),
        cmocka_unit_test(record_of_padding_only_is_unexpected),
        cmocka_unit_test(record_seals_from_pieces),
        cmocka_unit_test(record_key_update_of_peer_is_followed),
        cmocka_unit_test(record_key_update_of_ours_is_followed_by_libssl),
        cmocka_unit_test(record_tls12_has_no_key_update),
        cmocka_unit_test(record_truncated_anywhere_waits),
        cmocka_unit_test(record_corrupted_anywhere_is_refused_and_wiped),
        cmocka_unit_test(record_replayed_is_refused),
        cmocka_unit_test(record_oversized_is_refused_by_its_header),
        cmocka_unit_test(record_with_too_much_plaintext_is_refused),
        cmocka_unit_test(record_too_short_for_a_tag_is_refused),
        cmocka_unit_test(record_of_plaintext_kinds_is_unexpected),
        cmocka_unit_test(record_state_survives_export_and_import),
        cmocka_unit_test(record_import_refuses_state_that_cannot_be),
        cmocka_unit_test(record_number_never_wraps),
        cmocka_unit_test(record_fini_wipes_and_is_idempotent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
