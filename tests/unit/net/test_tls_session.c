/* Resumption: the second handshake between two identities is short, and nothing that has changed since the first gets past it. */
#include "net/tls_impl.h"
#include "support/net_fixture.h"
#include "support/stream_mem.h"
#include "support/tls_rig.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define CLIENT_ID "spiffe://cluster.local/ns/ns1/sa/client"
#define SERVER_ID "spiffe://cluster.local/ns/ns2/sa/server"
#define OTHER_ID "spiffe://cluster.local/ns/ns2/sa/other"

struct rig {
    struct zt_loop *loop;
    struct zt_test_cert *root, *client_leaf, *server_leaf;
    struct zt_tls_cred *client_cred, *server_cred;
    struct zt_tls_end client, server;
    struct zt_addr at;
    uint64_t bytes; /* that converse sends each way */
};

static struct zt_tls_cred *cred_of(const struct rig *r, const struct zt_test_cert *leaf, bool tls12)
{
    return zt_test_cred((const struct zt_test_cert *const[]){leaf}, 1, (const struct zt_test_cert *const[]){r->root}, 1, tls12);
}

static struct rig rig_new(void)
{
    struct rig r = {.loop = zt_loop_new("test"), .bytes = 50000, .root = zt_test_root_named("root")};
    r.client_leaf = zt_test_leaf(r.root, CLIENT_ID);
    r.server_leaf = zt_test_leaf(r.root, SERVER_ID);
    r.client_cred = cred_of(&r, r.client_leaf, false);
    r.server_cred = cred_of(&r, r.server_leaf, false);
    zt_addr_parse("10.0.0.1:15008", &r.at);
    return r;
}

static void rig_free(struct rig *r)
{
    zt_tls_cred_unref(r->client_cred);
    zt_tls_cred_unref(r->server_cred);
    zt_test_cert_free(r->root);
    zt_test_cert_free(r->client_leaf);
    zt_test_cert_free(r->server_leaf);
    zt_test_run_for_ms(r->loop, 5);
    zt_loop_free(r->loop);
    zt_tls_crl_clear();
}

static bool both_done(void *arg)
{
    struct rig *r = arg;
    return r->client.n_done && r->server.n_done;
}

static bool both_received(void *arg)
{
    struct rig *r = arg;
    return r->client.received == r->server.to_send && r->server.received == r->client.to_send;
}

/* One connection from start to end, with bytes both ways if both ends accept. True: it was resumed. */
static bool converse(struct rig *r, const char *san, const struct zt_mem_opts *opts)
{
    struct zt_stream *lower[2];
    zt_mem_pair(r->loop, opts, &lower[0], &lower[1]);
    zt_tls_end_init(&r->client);
    zt_tls_end_init(&r->server);
    r->client.at = r->at;
    zt_tls_end_accept(&r->server, r->loop, lower[1], r->server_cred);
    zt_tls_end_connect(&r->client, r->loop, lower[0], r->client_cred, san);
    assert_true(zt_test_run_until(r->loop, both_done, r));
    bool resumed = r->client.resumed;
    if (r->client.s && r->server.s) {
        assert_int_equal(r->client.resumed, r->server.resumed);
        assert_string_equal(r->client.identity, SERVER_ID);
        assert_string_equal(r->server.identity, CLIENT_ID);
        assert_true(r->client.alpn_h2 && r->server.alpn_h2);
        zt_tls_end_go(&r->client, r->bytes, false);
        zt_tls_end_go(&r->server, r->bytes, false);
        assert_true(zt_test_run_until(r->loop, both_received, r));
        assert_false(r->client.mismatch || r->server.mismatch);
    }
    zt_tls_end_close(&r->client);
    zt_tls_end_close(&r->server);
    return resumed;
}

static void second_handshake_is_resumed(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    for (int i = 0; i < 3; i++)
        assert_true(converse(&r, SERVER_ID, NULL));
    assert_int_equal(zt_tls_sessions_count(r.client_cred->sessions, true), 1);
    assert_int_equal(zt_tls_sessions_count(r.server_cred->sessions, false), 1);
    rig_free(&r);
}

static void resumption_survives_delivery_in_pieces(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, &(struct zt_mem_opts){.delivery = ZT_MEM_BYTE}));
    for (uint32_t seed = 1; seed < 10; seed++)
        assert_true(converse(&r, SERVER_ID, &(struct zt_mem_opts){.delivery = ZT_MEM_RANDOM, .seed = seed}));
    rig_free(&r);
}

static void session_is_kept_per_pair_of_identities_and_address(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    r.at.port++;
    assert_false(converse(&r, SERVER_ID, NULL)); /* another server */
    zt_tls_cred_unref(r.client_cred);
    r.client_cred = cred_of(&r, r.client_leaf, false);
    assert_false(converse(&r, SERVER_ID, NULL)); /* another credential of the same identity */
    assert_true(converse(&r, SERVER_ID, NULL));
    rig_free(&r);
}

static struct zt_test_cert *bulky_leaf(const struct zt_test_cert *root, const char *identity)
{
    enum { NAMES = ZT_TLS_SESSION_PEER_BYTES_MAX / 32 };
    static const char *names[NAMES];
    for (int i = 0; i < NAMES; i++)
        names[i] = "https://example.com/a/name/of/some/length";
    return zt_test_issue(root, &(struct zt_test_cert_opts){.uri = identity, .uris = names, .n_uris = NAMES});
}

static void session_with_a_peer_that_presents_a_lot_is_not_kept(void **state)
{
    for (int bulky_client = 0; bulky_client < 2; bulky_client++) {
        struct rig r = rig_new();
        struct zt_test_cert *leaf = bulky_leaf(r.root, bulky_client ? CLIENT_ID : SERVER_ID);
        struct zt_tls_cred **cred = bulky_client ? &r.client_cred : &r.server_cred;
        zt_tls_cred_unref(*cred);
        *cred = cred_of(&r, leaf, false);
        for (int i = 0; i < 2; i++)
            assert_false(converse(&r, SERVER_ID, NULL));
        assert_int_equal(zt_tls_sessions_count(r.client_cred->sessions, true), bulky_client ? 1 : 0);
        assert_int_equal(zt_tls_sessions_count(r.server_cred->sessions, false), bulky_client ? 0 : 2);
        zt_test_cert_free(leaf);
        rig_free(&r);
    }
}

static void other_expected_identity_is_not_served_by_a_session(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_false(converse(&r, OTHER_ID, NULL));
    assert_null(r.client.s);
    assert_int_equal(r.client.err.code, ZT_IDENTITY);
    rig_free(&r);
}

static void server_with_a_new_credential_knows_no_session(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    zt_tls_cred_unref(r.server_cred);
    r.server_cred = cred_of(&r, r.server_leaf, false); /* a new certificate or root bundle does the same */
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_non_null(r.client.err.code == ZT_OK ? &r : NULL);
    assert_true(converse(&r, SERVER_ID, NULL));
    rig_free(&r);
}

static void publish_revoked(const struct rig *r, const struct zt_test_cert *cert)
{
    char path[] = "/tmp/zt-test-session-XXXXXX", *pem = zt_test_crl(r->root, &(struct zt_test_crl_opts){.revoked = &cert, .n_revoked = 1});
    unsigned n;
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, pem, strlen(pem)) == (ssize_t)strlen(pem));
    close(fd);
    assert_int_equal(zt_tls_crl_load(path, &n, NULL), ZT_OK);
    unlink(path);
    zt_free(pem);
}

static void revoked_server_is_not_resumed(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    publish_revoked(&r, r.server_leaf);
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_null(r.client.s);
    assert_int_equal(r.client.err.code, ZT_REVOKED);
    rig_free(&r);
}

static void revoked_client_is_not_resumed(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    publish_revoked(&r, r.client_leaf);
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_null(r.server.s);
    assert_int_equal(r.server.err.code, ZT_REVOKED);
    rig_free(&r);
}

/* Ends in ten minutes; resumption may go on until then, whatever a session's age. */
static void expired_certificate_is_not_resumed(void **state)
{
    struct rig r = rig_new();
    zt_test_cert_free(r.client_leaf);
    r.client_leaf = zt_test_issue(r.root, &(struct zt_test_cert_opts){.uri = CLIENT_ID, .not_after_s = 600});
    zt_tls_cred_unref(r.client_cred);
    r.client_cred = cred_of(&r, r.client_leaf, false);
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_true(converse(&r, SERVER_ID, NULL));
    zt_clock_test_advance_ms(610 * 1000);
    assert_false(converse(&r, SERVER_ID, NULL));
    zt_clock_test_advance_ms(-610 * 1000);
    assert_null(r.server.s);
    assert_string_equal(r.server.err.text, "invalid peer certificate: certificate has expired");
    rig_free(&r);
}

static void old_session_is_not_resumed(void **state)
{
    struct rig r = rig_new();
    assert_false(converse(&r, SERVER_ID, NULL));
    zt_clock_test_advance_ms(INT64_C(1000) * (ZT_TLS_SESSION_AGE_S + 1));
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_int_equal(r.client.err.code, ZT_OK);
    zt_clock_test_advance_ms(INT64_C(-1000) * (ZT_TLS_SESSION_AGE_S + 1));
    rig_free(&r);
}

static void path_is_judged_again_by_trust_domain(void **state)
{
    struct rig r = rig_new();
    struct zt_test_cert *foreign = zt_test_leaf(r.root, "spiffe://other.domain/ns/ns1/sa/client");
    STACK_OF(X509) *certs = sk_X509_new_null();
    X509_up_ref(foreign->cert);
    X509_up_ref(r.root->cert);
    sk_X509_push(certs, foreign->cert);
    sk_X509_push(certs, r.root->cert);
    struct zt_tls_path *path = zt_tls_path_new(certs, INT64_MAX);
    struct zt_tls_verify v = {.cred = r.server_cred, .peer_is_client = true};
    assert_false(zt_tls_verify_again(&v, path));
    assert_int_equal(v.err.code, ZT_OK); /* the full handshake judges */
    zt_tls_path_unref(path);
    zt_test_cert_free(foreign);
    rig_free(&r);
}

static void session_is_used_once(void **state)
{
    struct rig r = rig_new();
    struct zt_stream *lower[2][2];
    struct zt_tls_end client[2], server[2];
    converse(&r, SERVER_ID, NULL);
    for (int i = 0; i < 2; i++) {
        zt_mem_pair(r.loop, NULL, &lower[i][0], &lower[i][1]);
        zt_tls_end_init(&client[i]);
        zt_tls_end_init(&server[i]);
        client[i].at = r.at;
        zt_tls_end_accept(&server[i], r.loop, lower[i][1], r.server_cred);
        zt_tls_end_connect(&client[i], r.loop, lower[i][0], r.client_cred, SERVER_ID);
    }
    zt_test_run_for_ms(r.loop, 50);
    assert_true(client[0].s && client[1].s);
    assert_true(client[0].resumed);
    assert_false(client[1].resumed);
    for (int i = 0; i < 2; i++) { /* what follows the handshake brings the next sessions */
        zt_tls_end_go(&client[i], 0, false);
        zt_tls_end_go(&server[i], 1, false);
    }
    zt_test_run_for_ms(r.loop, 50);
    assert_int_equal(zt_tls_sessions_count(r.client_cred->sessions, true), 2); /* for two at once, next time */
    for (int i = 0; i < 2; i++) {
        zt_tls_end_close(&client[i]);
        zt_tls_end_close(&server[i]);
    }
    rig_free(&r);
}

static void sessions_of_a_credential_are_bounded(void **state)
{
    struct rig r = rig_new();
    STACK_OF(X509) *certs = sk_X509_new_null();
    struct zt_tls_path *path = zt_tls_path_new(certs, INT64_MAX), *got;
    for (uint32_t i = 0; i < ZT_TLS_SESSIONS_MAX + 10; i++)
        zt_tls_sessions_put(r.server_cred->sessions, false, &i, sizeof(i), SSL_SESSION_new(), path);
    assert_int_equal(zt_tls_sessions_count(r.server_cred->sessions, false), ZT_TLS_SESSIONS_MAX);
    uint32_t first = 0, last = ZT_TLS_SESSIONS_MAX + 9;
    assert_null(zt_tls_sessions_take(r.server_cred->sessions, false, &first, sizeof(first), &got));
    SSL_SESSION *newest = zt_tls_sessions_take(r.server_cred->sessions, false, &last, sizeof(last), &got);
    assert_non_null(newest);
    SSL_SESSION_free(newest);
    zt_tls_path_unref(got);
    zt_tls_path_unref(path);
    rig_free(&r);
}

/* TLS 1.2 goes on without. */
static void tls12_is_not_resumed(void **state)
{
    struct rig r = rig_new();
    zt_tls_cred_unref(r.server_cred);
    r.server_cred = cred_of(&r, r.server_leaf, true);
    SSL_CTX_set_max_proto_version(r.server_cred->server, TLS1_2_VERSION);
    zt_tls_cred_unref(r.client_cred);
    r.client_cred = cred_of(&r, r.client_leaf, true);
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_false(converse(&r, SERVER_ID, NULL));
    assert_int_equal(r.client.err.code, ZT_OK);
    rig_free(&r);
}

/* Our server's ticket is a number, no session in an envelope. */
static void ticket_is_a_number(void **state)
{
    struct rig r = rig_new();
    struct zt_stream *lower[2];
    struct zt_tls_foreign f;
    const unsigned char *ticket;
    size_t len = 0;
    zt_mem_pair(r.loop, NULL, &lower[0], &lower[1]);
    zt_tls_end_init(&r.server);
    zt_tls_foreign_init(&f, true, r.client_leaf);
    zt_tls_end_accept(&r.server, r.loop, lower[1], r.server_cred);
    zt_tls_foreign_start(&f, lower[0]);
    zt_test_run_for_ms(r.loop, 30);
    assert_non_null(r.server.s);
    SSL_SESSION_get0_ticket(SSL_get0_session(f.ssl), &ticket, &len);
    assert_int_equal(len, 32);
    zt_tls_end_close(&r.server);
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Both ends in one process: a resumed handshake must cost clearly less than a full one. */
static void resumed_handshake_is_cheaper(void **state)
{
    struct rig r = rig_new();
    double full = 0, resumed = 0, at;
    r.bytes = 1;
    for (int i = 0; i < 50; i++) {
        zt_tls_cred_unref(r.client_cred);
        r.client_cred = cred_of(&r, r.client_leaf, false);
        at = cpu_ms();
        assert_false(converse(&r, SERVER_ID, NULL));
        full += cpu_ms() - at;
        at = cpu_ms();
        assert_true(converse(&r, SERVER_ID, NULL));
        resumed += cpu_ms() - at;
    }
    print_message("a handshake, CPU of each end: full %.3f ms, resumed %.3f ms\n", full / 100, resumed / 100);
    assert_true(resumed < full);
    rig_free(&r);
}

static void pqc_profile_takes_one_group_or_is_unavailable(void **state)
{
    struct zt_test_cert *root = zt_test_root_named("root"), *leaf = zt_test_leaf(root, CLIENT_ID);
    char *chain = zt_test_certs_pem((const struct zt_test_cert *const[]){leaf}, 1), *key = zt_test_key_pem(leaf);
    char *roots = zt_test_certs_pem((const struct zt_test_cert *const[]){root}, 1);
    struct zt_tls_cred *cred;
    enum zt_err e = zt_tls_cred_new(chain, key, roots, NULL, &(struct zt_tls_profile){.pqc = true, .tls12 = true}, &cred, NULL);
    if (zt_tls_pqc_available()) {
        assert_int_equal(e, ZT_OK);
        assert_int_equal(SSL_CTX_get_min_proto_version(cred->client), TLS1_3_VERSION);
        zt_tls_cred_unref(cred);
    } else {
        assert_int_equal(e, ZT_TLS); /* never a weaker one instead */
    }
    zt_free(chain);
    zt_free(key);
    zt_free(roots);
    zt_test_cert_free(root);
    zt_test_cert_free(leaf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(second_handshake_is_resumed),
        cmocka_unit_test(resumption_survives_delivery_in_pieces),
        cmocka_unit_test(session_is_kept_per_pair_of_identities_and_address),
        cmocka_unit_test(session_with_a_peer_that_presents_a_lot_is_not_kept),
        cmocka_unit_test(other_expected_identity_is_not_served_by_a_session),
        cmocka_unit_test(server_with_a_new_credential_knows_no_session),
        cmocka_unit_test(revoked_server_is_not_resumed),
        cmocka_unit_test(revoked_client_is_not_resumed),
        cmocka_unit_test(expired_certificate_is_not_resumed),
        cmocka_unit_test(old_session_is_not_resumed),
        cmocka_unit_test(path_is_judged_again_by_trust_domain),
        cmocka_unit_test(session_is_used_once),
        cmocka_unit_test(sessions_of_a_credential_are_bounded),
        cmocka_unit_test(tls12_is_not_resumed),
        cmocka_unit_test(ticket_is_a_number),
        cmocka_unit_test(resumed_handshake_is_cheaper),
        cmocka_unit_test(pqc_profile_takes_one_group_or_is_unavailable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
