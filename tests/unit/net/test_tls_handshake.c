/* Handshakes: between two of ours, with foreign libssl ends, and with whatever else comes in. */
#include "support/net_fixture.h"
#include "support/stream_mem.h"
#include "support/tls_rig.h"
#include "zt/base/mem.h"
#include "zt/net/tcp.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define CLIENT_ID "spiffe://cluster.local/ns/ns1/sa/client"
#define SERVER_ID "spiffe://cluster.local/ns/ns2/sa/server"

struct rig {
    struct zt_loop *loop;
    struct zt_test_cert *root, *leaf; /* leaf: for foreign ends, CLIENT_ID */
    struct zt_tls_cred *client_cred, *server_cred;
    struct zt_stream *lower[2];
    struct zt_tls_end client, server;
};

static struct rig rig_new(const struct zt_mem_opts *opts)
{
    struct rig r = {.loop = zt_loop_new("test"), .root = zt_test_root_named("root")};
    r.leaf = zt_test_leaf(r.root, CLIENT_ID);
    r.client_cred = zt_test_cred_of(r.root, CLIENT_ID);
    r.server_cred = zt_test_cred_of(r.root, SERVER_ID);
    zt_mem_pair(r.loop, opts, &r.lower[0], &r.lower[1]);
    zt_tls_end_init(&r.client);
    zt_tls_end_init(&r.server);
    return r;
}

static void rig_free(struct rig *r)
{
    zt_tls_end_close(&r->client);
    zt_tls_end_close(&r->server);
    zt_tls_cred_unref(r->client_cred);
    zt_tls_cred_unref(r->server_cred);
    zt_test_cert_free(r->root);
    zt_test_cert_free(r->leaf);
    zt_test_run_for_ms(r->loop, 5);
    zt_loop_free(r->loop);
}

static bool both_done(void *arg)
{
    struct rig *r = arg;
    return r->client.n_done && r->server.n_done;
}

static bool client_done(void *arg)
{
    return ((struct rig *)arg)->client.n_done;
}

static bool server_done(void *arg)
{
    return ((struct rig *)arg)->server.n_done;
}

static void shake(struct rig *r, const char *expected_san)
{
    zt_tls_end_accept(&r->server, r->loop, r->lower[1], r->server_cred);
    zt_tls_end_connect(&r->client, r->loop, r->lower[0], r->client_cred, expected_san);
    assert_true(zt_test_run_until(r->loop, both_done, r));
}

static bool both_received(void *arg)
{
    struct rig *r = arg;
    return r->client.received == r->server.to_send && r->server.received == r->client.to_send;
}

static void expect_traffic(struct rig *r)
{
    zt_tls_end_go(&r->client, 100000, false);
    zt_tls_end_go(&r->server, 50000, false);
    assert_true(zt_test_run_until(r->loop, both_received, r));
    assert_false(r->client.mismatch || r->server.mismatch);
}

static void expect_shaken(struct rig *r)
{
    assert_non_null(r->client.s);
    assert_non_null(r->server.s);
    assert_int_equal(r->client.n_done, 1);
    assert_int_equal(r->server.n_done, 1);
    assert_string_equal(r->client.identity, SERVER_ID);
    assert_string_equal(r->server.identity, CLIENT_ID);
    assert_true(r->client.alpn_h2 && r->server.alpn_h2);
}

static void handshake_yields_streams_and_identities(void **state)
{
    struct rig r = rig_new(NULL);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_tls_end_connect(&r.client, r.loop, r.lower[0], r.client_cred, SERVER_ID);
    assert_int_equal(r.client.n_done + r.server.n_done, 0); /* nothing from inside start */
    assert_true(zt_test_run_until(r.loop, both_done, &r));
    expect_shaken(&r);
    assert_string_equal(r.client.s->ops->kind, "tls");
    expect_traffic(&r);
    rig_free(&r);
}

static void handshake_survives_delivery_byte_by_byte(void **state)
{
    struct rig r = rig_new(&(struct zt_mem_opts){.delivery = ZT_MEM_BYTE});
    shake(&r, SERVER_ID);
    expect_shaken(&r);
    zt_tls_end_go(&r.client, 3000, false);
    zt_tls_end_go(&r.server, 3000, false);
    assert_true(zt_test_run_until(r.loop, both_received, &r));
    assert_false(r.client.mismatch || r.server.mismatch);
    rig_free(&r);
}

static void handshake_survives_random_pieces(void **state)
{
    for (uint32_t seed = 1; seed <= 10; seed++) {
        struct rig r = rig_new(&(struct zt_mem_opts){.delivery = ZT_MEM_RANDOM, .seed = seed});
        shake(&r, SERVER_ID);
        expect_shaken(&r);
        expect_traffic(&r);
        rig_free(&r);
    }
}

static void handshake_agrees_on_tls12_with_a_foreign_end(void **state)
{
    static const char *const suites[] = {"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"};
    for (int i = 0; i < 4; i++) {
        struct rig r = rig_new(NULL);
        struct zt_tls_foreign f;
        struct zt_test_cert *own = zt_test_leaf(r.root, SERVER_ID);
        struct zt_tls_cred *cred = zt_test_cred((const struct zt_test_cert *const[]){own}, 1,
                                                (const struct zt_test_cert *const[]){r.root}, 1, true);
        bool foreign_is_client = i & 1;
        zt_tls_foreign_init(&f, foreign_is_client, r.leaf);
        SSL_CTX_set_max_proto_version(f.ctx, TLS1_2_VERSION);
        SSL_CTX_set_cipher_list(f.ctx, suites[i / 2]);
        if (foreign_is_client)
            zt_tls_end_accept(&r.server, r.loop, r.lower[1], cred);
        else
            zt_tls_end_connect(&r.server, r.loop, r.lower[1], cred, CLIENT_ID);
        zt_tls_foreign_start(&f, r.lower[0]);
        assert_true(zt_test_run_until(r.loop, server_done, &r));
        if (!r.server.s)
            fail_msg("%s", r.server.err.text);
        assert_string_equal(r.server.identity, CLIENT_ID);
        assert_false(r.server.alpn_h2); /* nothing was agreed, and that is tolerated */
        const uint8_t *pattern;
        zt_tls_pattern(0, &pattern);
        SSL_write(f.ssl, pattern, 1000);
        zt_tls_foreign_pump(&f);
        zt_tls_end_go(&r.server, 1000, false);
        zt_test_run_for_ms(r.loop, 20);
        assert_int_equal(r.server.received, 1000);
        assert_false(r.server.mismatch);
        uint8_t got[2000];
        assert_int_equal(SSL_read(f.ssl, got, sizeof(got)), 1000);
        assert_memory_equal(got, pattern, 1000);
        zt_tls_foreign_fini(&f);
        zt_tls_cred_unref(cred);
        zt_test_cert_free(own);
        rig_free(&r);
    }
}

static void handshake_refuses_tls12_unless_allowed(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    zt_tls_foreign_init(&f, true, r.leaf);
    SSL_CTX_set_max_proto_version(f.ctx, TLS1_2_VERSION);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_tls_foreign_start(&f, r.lower[0]);
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, ZT_TLS_HANDSHAKE);
    assert_string_equal(r.server.err.text, "unsupported protocol");
    zt_tls_foreign_pump(&f);
    assert_int_equal(f.alert, SSL_AD_PROTOCOL_VERSION);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

/* ---- what is agreed on ---- */

static void handshake_prefers_x25519_and_aes256_and_sends_no_sni(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    zt_tls_foreign_init(&f, false, r.leaf);
    zt_tls_end_connect(&r.client, r.loop, r.lower[1], r.client_cred, CLIENT_ID);
    zt_tls_foreign_start(&f, r.lower[0]);
    assert_true(zt_test_run_until(r.loop, client_done, &r));
    assert_non_null(r.client.s);
    zt_test_run_for_ms(r.loop, 5);
    assert_true(SSL_is_init_finished(f.ssl));
    assert_int_equal(SSL_get_negotiated_group(f.ssl), NID_X25519);
    assert_string_equal(SSL_get_cipher(f.ssl), "TLS_AES_256_GCM_SHA384");
    assert_null(SSL_get_servername(f.ssl, TLSEXT_NAMETYPE_host_name));
    assert_false(SSL_session_reused(f.ssl));
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

/* Runs a foreign client against our server. */
static void accept_foreign(struct rig *r, const struct zt_test_cert *cert, const char *alpn, unsigned alpn_len,
                                            struct zt_tls_foreign *f)
{
    zt_tls_foreign_init(f, true, cert);
    if (alpn)
        SSL_CTX_set_alpn_protos(f->ctx, (const unsigned char *)alpn, alpn_len);
    zt_tls_end_accept(&r->server, r->loop, r->lower[1], r->server_cred);
    zt_tls_foreign_start(f, r->lower[0]);
    assert_true(zt_test_run_until(r->loop, server_done, r));
    zt_tls_foreign_pump(f);

}

static void handshake_server_selects_h2_among_others(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    accept_foreign(&r, r.leaf, "\x08http/1.1\x02h2", 12, &f);
    assert_non_null(r.server.s);
    assert_true(r.server.alpn_h2);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static void handshake_server_refuses_other_protocols_only(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    accept_foreign(&r, r.leaf, "\x08http/1.1", 9, &f);
    assert_null(r.server.s);
    assert_string_equal(r.server.err.text, "no application protocol");
    assert_int_equal(f.alert, SSL_AD_NO_APPLICATION_PROTOCOL);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static void handshake_server_accepts_no_alpn(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    accept_foreign(&r, r.leaf, NULL, 0, &f);
    assert_non_null(r.server.s);
    assert_false(r.server.alpn_h2);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

/* ---- refusals, with their alerts ---- */

static void handshake_server_requires_a_client_certificate(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    accept_foreign(&r, NULL, NULL, 0, &f);
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, ZT_TLS_HANDSHAKE);
    assert_string_equal(r.server.err.text, "peer did not return a certificate");
    assert_int_equal(f.alert, SSL_AD_CERTIFICATE_REQUIRED);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static void expect_client_refused(const struct zt_test_cert_opts *o, bool other_root, int alert, enum zt_err code,
                                  const char *words)
{
    struct rig r = rig_new(NULL);
    struct zt_tls_foreign f;
    struct zt_test_cert *stranger = zt_test_root_named("stranger");
    struct zt_test_cert *cert = zt_test_issue(other_root ? stranger : r.root, o);
    accept_foreign(&r, cert, NULL, 0, &f);
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, code);
    assert_non_null(strstr(r.server.err.text, words));
    assert_int_equal(f.alert, alert);
    zt_test_cert_free(cert);
    zt_test_cert_free(stranger);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static void handshake_refusals_send_the_right_alert(void **state)
{
    expect_client_refused(&(struct zt_test_cert_opts){.uri = CLIENT_ID, .not_before_s = -7200, .not_after_s = -60}, false,
                          SSL_AD_CERTIFICATE_EXPIRED, ZT_TLS_HANDSHAKE, "certificate has expired");
    expect_client_refused(&(struct zt_test_cert_opts){.uri = CLIENT_ID, .not_before_s = 3600}, false,
                          SSL_AD_CERTIFICATE_EXPIRED, ZT_TLS_HANDSHAKE, "not yet valid");
    expect_client_refused(&(struct zt_test_cert_opts){.uri = CLIENT_ID}, true, SSL_AD_UNKNOWN_CA, ZT_TLS_HANDSHAKE,
                          "invalid peer certificate");
    expect_client_refused(&(struct zt_test_cert_opts){.uri = CLIENT_ID, .eku = ZT_TEST_EKU_SERVER}, false,
                          SSL_AD_UNSUPPORTED_CERTIFICATE, ZT_TLS_HANDSHAKE, "extended key usage");
    expect_client_refused(&(struct zt_test_cert_opts){.uri = CLIENT_ID, .ca = true}, false, SSL_AD_BAD_CERTIFICATE,
                          ZT_TLS_HANDSHAKE, "CA certificate used as leaf");
    expect_client_refused(&(struct zt_test_cert_opts){.uri = "spiffe://other/ns/a/sa/b"}, false,
                          SSL_AD_CERTIFICATE_UNKNOWN, ZT_IDENTITY, "expected trustdomain (cluster.local), got spiffe://other");
}

static void handshake_client_refuses_another_identity(void **state)
{
    struct rig r = rig_new(NULL);
    shake(&r, CLIENT_ID);
    assert_null(r.client.s);
    assert_int_equal(r.client.err.code, ZT_IDENTITY);
    assert_string_equal(r.client.err.text, "identity verification error: peer did not present the expected SAN (" CLIENT_ID
                                           "), got " SERVER_ID);
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, ZT_TLS_HANDSHAKE);
    assert_string_equal(r.server.err.text, "sslv3 alert certificate unknown");
    rig_free(&r);
}

static void handshake_client_without_expectation_is_refused(void **state)
{
    struct rig r = rig_new(NULL);
    shake(&r, NULL);
    assert_null(r.client.s);
    assert_int_equal(r.client.err.code, ZT_IDENTITY);
    rig_free(&r);
}

/* With TLS 1.3 the client has finished before the server judges (spec/dataplane §3.2): it learns by reading. */
static void handshake_server_verdict_reaches_the_client_as_a_read_error(void **state)
{
    struct rig r = rig_new(NULL);
    struct zt_test_cert *stranger = zt_test_root_named("stranger"), *leaf = zt_test_leaf(stranger, CLIENT_ID);
    struct zt_tls_cred *cred = zt_test_cred((const struct zt_test_cert *const[]){leaf}, 1,
                                            (const struct zt_test_cert *const[]){r.root}, 1, false);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_tls_end_connect(&r.client, r.loop, r.lower[0], cred, SERVER_ID);
    assert_true(zt_test_run_until(r.loop, both_done, &r));
    assert_null(r.server.s);
    assert_non_null(r.client.s);
    zt_tls_end_go(&r.client, 0, false);
    zt_test_run_for_ms(r.loop, 20);
    assert_int_equal(r.client.read_end, ZT_TLS);
    zt_tls_cred_unref(cred);
    zt_test_cert_free(leaf);
    zt_test_cert_free(stranger);
    rig_free(&r);
}

/* ---- what is not TLS ---- */

static void expect_garbage_refused(const void *bytes, size_t n, const char *text)
{
    struct rig r = rig_new(NULL);
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    size_t accepted;
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    assert_int_equal(zt_stream_writev(r.lower[0], &iov, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, n);
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, ZT_TLS_HANDSHAKE);
    if (text)
        assert_string_equal(r.server.err.text, text);
    assert_true(zt_mem_other_closed(r.lower[0], NULL));
    zt_stream_close(r.lower[0], ZT_OK);
    rig_free(&r);
}

static void handshake_plaintext_http_is_refused_in_words(void **state)
{
    static const char get[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", h2[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    expect_garbage_refused(get, sizeof(get) - 1, "http request");
    expect_garbage_refused(h2, sizeof(h2) - 1, NULL);
}

static void handshake_garbage_is_refused(void **state)
{
    uint8_t noise[600];
    uint32_t x = 7;
    for (int round = 0; round < 50; round++) {
        for (size_t i = 0; i < sizeof(noise); i++)
            noise[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
        if (round % 2) { /* looks like a handshake record at first */
            memcpy(noise, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9);
        }
        expect_garbage_refused(noise, sizeof(noise), NULL);
    }
}

static void handshake_peer_that_hangs_up_is_told_apart(void **state)
{
    struct rig r = rig_new(NULL);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_stream_close(r.lower[0], ZT_OK);
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_string_equal(r.server.err.text, "peer closed the connection during the handshake");
    rig_free(&r);

    r = rig_new(NULL);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_stream_close(r.lower[0], ZT_RESET);
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_string_equal(r.server.err.text, "peer reset the connection during the handshake");
    rig_free(&r);
}

/* ---- time and cancelling ---- */

static void handshake_with_a_silent_peer_times_out(void **state)
{
    struct rig r = rig_new(NULL);
    r.server.handshake = zt_tls_accept(r.loop, r.lower[1], r.server_cred, 50, zt_tls_end_on_done, &r.server);
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_int_equal(r.server.err.code, ZT_TIMEOUT);
    assert_string_equal(r.server.err.text, "tls handshake not finished within 50 ms");
    assert_true(zt_mem_other_closed(r.lower[0], NULL));
    zt_stream_close(r.lower[0], ZT_OK);
    rig_free(&r);
}

/* A byte now and then does not prolong it. */
static void handshake_with_a_slow_peer_times_out(void **state)
{
    struct rig r = rig_new(NULL);
    static uint8_t hello[] = {22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3};
    r.server.handshake = zt_tls_accept(r.loop, r.lower[1], r.server_cred, 60, zt_tls_end_on_done, &r.server);
    for (size_t i = 0; i < sizeof(hello) && !r.server.n_done; i++) {
        size_t accepted;
        zt_stream_writev(r.lower[0], &(struct iovec){hello + i, 1}, 1, &accepted);
        zt_test_run_for_ms(r.loop, 10);
    }
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    assert_int_equal(r.server.err.code, ZT_TIMEOUT);
    zt_stream_close(r.lower[0], ZT_OK);
    rig_free(&r);
}

static void handshake_cancelled_calls_nobody(void **state)
{
    for (int turns = 0; turns < 4; turns++) {
        struct rig r = rig_new(NULL);
        zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
        zt_tls_end_connect(&r.client, r.loop, r.lower[0], r.client_cred, SERVER_ID);
        for (int i = 0; i < turns && r.client.handshake && r.server.handshake; i++)
            zt_loop_run_once(r.loop, false);
        bool was_running = r.server.handshake;
        zt_tls_handshake_cancel(r.server.handshake);
        r.server.handshake = NULL;
        zt_test_run_for_ms(r.loop, 10);
        if (was_running) {
            assert_int_equal(r.server.n_done, 0);
            assert_int_equal(r.client.n_done, 1);
        }
        rig_free(&r);
    }
    zt_tls_handshake_cancel(NULL);
}

static void handshake_blocked_writes_wait(void **state)
{
    struct rig r = rig_new(NULL);
    zt_mem_block_writes(r.lower[1], true);
    zt_tls_end_accept(&r.server, r.loop, r.lower[1], r.server_cred);
    zt_tls_end_connect(&r.client, r.loop, r.lower[0], r.client_cred, SERVER_ID);
    zt_test_run_for_ms(r.loop, 20);
    assert_int_equal(r.client.n_done + r.server.n_done, 0);
    zt_mem_block_writes(r.lower[1], false);
    assert_true(zt_test_run_until(r.loop, both_done, &r));
    expect_shaken(&r);
    rig_free(&r);
}

/* A lower stream that is TCP, both ends in this process; and bytes right behind the handshake are not lost. */
static void handshake_over_tcp_leaves_later_bytes_to_the_stream(void **state)
{
    struct rig r = rig_new(NULL);
    int a, b;
    zt_stream_close(r.lower[0], ZT_OK);
    zt_stream_close(r.lower[1], ZT_OK);
    zt_test_tcp_pair(&a, &b);
    r.lower[0] = zt_tcp_stream_new(r.loop, a, NULL);
    r.lower[1] = zt_tcp_stream_new(r.loop, b, NULL);
    zt_tls_end_connect(&r.client, r.loop, r.lower[0], r.client_cred, SERVER_ID);
    struct zt_tls_handshake *accept =
        zt_tls_accept(r.loop, r.lower[1], r.server_cred, 5000, zt_tls_end_on_done, &r.server);
    r.server.handshake = accept;
    assert_true(zt_test_run_until(r.loop, client_done, &r));
    zt_tls_end_go(&r.client, 70000, true); /* may reach the server together with the Finished */
    assert_true(zt_test_run_until(r.loop, server_done, &r));
    expect_shaken(&r);
    zt_tls_end_go(&r.server, 0, false);
    assert_true(zt_test_run_until(r.loop, both_received, &r));
    assert_false(r.server.mismatch);
    rig_free(&r);
}

static void handshake_failures_leak_no_descriptor_and_no_memory(void **state)
{
    unsigned fds = 0;
    for (int round = 0; round < 3; round++) {
        handshake_client_refuses_another_identity(NULL);
        handshake_garbage_is_refused(NULL);
        if (round == 0)
            fds = zt_test_open_fds();
    }
    assert_int_equal(zt_test_open_fds(), fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handshake_yields_streams_and_identities),
        cmocka_unit_test(handshake_survives_delivery_byte_by_byte),
        cmocka_unit_test(handshake_survives_random_pieces),
        cmocka_unit_test(handshake_agrees_on_tls12_with_a_foreign_end),
        cmocka_unit_test(handshake_refuses_tls12_unless_allowed),
        cmocka_unit_test(handshake_prefers_x25519_and_aes256_and_sends_no_sni),
        cmocka_unit_test(handshake_server_selects_h2_among_others),
        cmocka_unit_test(handshake_server_refuses_other_protocols_only),
        cmocka_unit_test(handshake_server_accepts_no_alpn),
        cmocka_unit_test(handshake_server_requires_a_client_certificate),
        cmocka_unit_test(handshake_refusals_send_the_right_alert),
        cmocka_unit_test(handshake_client_refuses_another_identity),
        cmocka_unit_test(handshake_client_without_expectation_is_refused),
        cmocka_unit_test(handshake_server_verdict_reaches_the_client_as_a_read_error),
        cmocka_unit_test(handshake_plaintext_http_is_refused_in_words),
        cmocka_unit_test(handshake_garbage_is_refused),
        cmocka_unit_test(handshake_peer_that_hangs_up_is_told_apart),
        cmocka_unit_test(handshake_with_a_silent_peer_times_out),
        cmocka_unit_test(handshake_with_a_slow_peer_times_out),
        cmocka_unit_test(handshake_cancelled_calls_nobody),
        cmocka_unit_test(handshake_blocked_writes_wait),
        cmocka_unit_test(handshake_over_tcp_leaves_later_bytes_to_the_stream),
        cmocka_unit_test(handshake_failures_leak_no_descriptor_and_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
