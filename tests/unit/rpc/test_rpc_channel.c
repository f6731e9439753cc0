/* Connections of the control plane (spec/controlplane §1.1 to §1.6): addresses, names, roots, TLS,
 * token and headers, and when a new connection is made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "support/net_fixture.h"
#include "support/rpc_rig.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct rpc_rig rig;
static struct zt_rpc_channel_config config; /* a working one; tests change it */

static int setup(void **state)
{
    rpc_rig_init(&rig, NULL, NULL);
    config = rpc_rig_config(&rig);
    return 0;
}

/* As istiod's: no name but its own. */
static int setup_istiod_name(void **state)
{
    rpc_rig_init(&rig, NULL, &(struct zt_test_cert_opts){.dns = "istiod.istio-system.svc"});
    config = rpc_rig_config(&rig);
    return 0;
}

static int setup_expired(void **state)
{
    rpc_rig_init(&rig, NULL,
                 &(struct zt_test_cert_opts){
                     .dns = "localhost", .not_before_s = -7200, .not_after_s = -3600});
    config = rpc_rig_config(&rig);
    return 0;
}

static int setup_token(void **state)
{
    rpc_rig_init(&rig, &(struct grpc_server_opts){.token = "token-1"}, NULL);
    config = rpc_rig_config(&rig);
    return 0;
}

static int teardown(void **state)
{
    rpc_rig_fini(&rig);
    return 0;
}

static struct zt_rpc_channel *channel(void)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_rpc_channel *c;
    if (zt_rpc_channel_new(rig.rpc, &config, &c, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return c;
}

/* One unary call; the server, when it is reached, answers with a message. Returns the status. */
static enum zt_rpc_code ask(struct zt_rpc_channel *c, char text[static ZT_RPC_STATUS_TEXT_MAX])
{
    struct rpc_log log = {0};
    unsigned before = rig.server ? grpc_server_rig_calls(rig.server) : 0;
    rpc_log_unary(&log, &rig, c, 4000);
    for (unsigned i = 0; i < 1000 && log.n_status == 0; i++) {
        zt_test_run_for_ms(rig.loop, 5);
        if (rig.server && grpc_server_rig_calls(rig.server) > before) {
            struct grpc_server_call *s = grpc_server_rig_call(rig.server, before++);
            grpc_server_call_send(s, "m", 1);
            grpc_server_call_end(s, ZT_RPC_OK, "");
        }
    }
    assert_int_equal(log.n_status, 1);
    enum zt_rpc_code code = log.status.code;
    zt_fmt(text, ZT_RPC_STATUS_TEXT_MAX, "%s", log.status.text);
    rpc_log_fini(&log);
    return code;
}

static void assert_works(struct zt_rpc_channel *c)
{
    char text[ZT_RPC_STATUS_TEXT_MAX];
    if (ask(c, text) != ZT_RPC_OK)
        fail_msg("%s", text);
}

/* The connection is not made; the text says why. */
static void assert_unavailable(struct zt_rpc_channel *c, const char *why)
{
    char text[ZT_RPC_STATUS_TEXT_MAX];
    assert_int_equal(ask(c, text), ZT_RPC_UNAVAILABLE);
    if (!strstr(text, why))
        fail_msg("no \"%s\" in: %s", why, text);
    assert_int_equal(grpc_server_rig_calls(rig.server), 0);
}

/* A call that does not even begin. */
static void assert_fails_here(struct zt_rpc_channel *c, enum zt_err code, const char *why)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_rpc_call *call;
    assert_int_equal(
        zt_rpc_stream_open(c, "/test.Service/Stream", &rpc_log_events, &err, &call, &err), code);
    if (!strstr(err.text, why))
        fail_msg("no \"%s\" in: %s", why, err.text);
}

static struct grpc_server_call *last_call(void)
{
    unsigned n = grpc_server_rig_calls(rig.server);
    assert_true(n > 0);
    return grpc_server_rig_call(rig.server, n - 1);
}

/* ---- addresses ---- */

static void rpc_addresses_are_judged_at_once(void **state)
{
    static const struct {
        const char *text;
        bool ok;
    } rows[] = {
        {"https://istiod.istio-system.svc:15012", true},
        {"istiod.istio-system.svc:15012", true},
        {"HTTPS://istiod", true},
        {"https://istiod:15012/path?query#fragment", true},
        {"10.0.0.1:15012", true},
        {"https://[2001:db8::1]:15012", true},
        {"[::1]", true},
        {"istiod.istio-system.svc.:15012", true},
        {"http://istiod:15010", false},
        {"unix:///run/istiod", false},
        {"dns://istiod", false},
        {"", false},
        {"https://", false},
        {"https:///path", false},
        {"https://:15012", false},
        {"https://istiod:", false},
        {"https://istiod:0", false},
        {"https://istiod:65536", false},
        {"https://istiod:15012x", false},
        {"https://user@istiod:15012", false},
        {"https://is tiod:15012", false},
        {"https://istiod\r\nx: y", false},
        {"https://2001:db8::1:15012", false},
        {"https://[10.0.0.1]:15012", false},
        {"https://[::1", false},
        {"https://[::1]15012", false},
        {"https://istiod..svc", false},
        {"https://istiod,other:15012", false},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_rpc_channel *c = NULL;
        config.address = rows[i].text;
        enum zt_err e = zt_rpc_channel_new(rig.rpc, &config, &c, &err);
        if (e != (rows[i].ok ? ZT_OK : ZT_INVALID))
            fail_msg("%s: %s", rows[i].text, err.text);
        zt_rpc_channel_free(c);
    }
}

static void rpc_plaintext_is_refused_with_its_reason(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_rpc_channel *c;
    config.address = "http://localhost:15010";
    assert_int_equal(zt_rpc_channel_new(rig.rpc, &config, &c, &err), ZT_INVALID);
    assert_non_null(strstr(err.text, "https only"));
}

static void rpc_alternative_name_must_be_a_name(void **state)
{
    static const char *const bad[] = {"", "a b", "x/y", "spiffe://td"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_rpc_channel *c;
        config.alt_hostname = bad[i];
        assert_int_equal(zt_rpc_channel_new(rig.rpc, &config, &c, &err), ZT_INVALID);
    }
}

static void rpc_authority_is_the_address_as_written(void **state)
{
    char address[64];
    zt_fmt(address, sizeof address, "localhost:%u/ignored", grpc_server_rig_port(rig.server));
    config.address = address;
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    *strchr(address, '/') = 0;
    assert_string_equal(grpc_server_call_host(last_call()), address);
    zt_rpc_channel_free(c);
}

/* ---- names ---- */

static void rpc_ip_address_needs_an_ip_san(void **state)
{
    char address[64];
    zt_fmt(address, sizeof address, "https://127.0.0.1:%u", grpc_server_rig_port(rig.server));
    config.address = address;
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    zt_rpc_channel_free(c);
}

static void rpc_wrong_name_is_refused(void **state)
{
    struct zt_rpc_channel *c = channel();
    assert_unavailable(c, "does not name localhost");
    zt_rpc_channel_free(c);
}

static void rpc_alternative_name_is_accepted_behind_the_original(void **state)
{
    config.alt_hostname = "istiod.istio-system.svc";
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    assert_int_equal(strncmp(grpc_server_call_host(last_call()), "localhost:", 10), 0);
    zt_rpc_channel_free(c);
}

static void rpc_wrong_alternative_name_is_refused(void **state)
{
    config.alt_hostname = "other.istio-system.svc";
    struct zt_rpc_channel *c = channel();
    assert_unavailable(c, "does not name localhost or other.istio-system.svc");
    zt_rpc_channel_free(c);
}

/* An alternative name adds; it replaces nothing. */
static void rpc_original_name_counts_beside_an_alternative(void **state)
{
    config.alt_hostname = "istiod.istio-system.svc";
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    zt_rpc_channel_free(c);
}

/* ---- roots ---- */

static void rpc_foreign_root_is_refused(void **state)
{
    struct zt_test_cert *other = zt_test_root_named("other root");
    char *pem = zt_test_certs_pem((const struct zt_test_cert *const[]){other}, 1);
    config.root_ca = pem;
    config.alt_hostname = "localhost"; /* changes nothing: the chain is judged first */
    struct zt_rpc_channel *c = channel();
    assert_unavailable(c, "");
    zt_rpc_channel_free(c);
    zt_free(pem);
    zt_test_cert_free(other);
}

static void rpc_expired_certificate_is_refused(void **state)
{
    struct zt_rpc_channel *c = channel();
    assert_unavailable(c, "");
    zt_rpc_channel_free(c);
}

static void rpc_root_file_may_appear_after_the_start(void **state)
{
    char path[200];
    zt_fmt(path, sizeof path, "%s/root-cert.pem", rig.dir);
    config.root_ca = path;
    for (unsigned fresh = 0; fresh < 2; fresh++) {
        unlink(path);
        config.fresh = fresh;
        struct zt_rpc_channel *c = channel();
        assert_fails_here(c, ZT_IO, "root-cert.pem");
        rpc_rig_write(&rig, "root-cert.pem", "");
        assert_fails_here(c, ZT_TLS, "no certificate found");
        rpc_rig_write(&rig, "root-cert.pem", rig.root_pem);
        assert_works(c);
        zt_rpc_channel_free(c);
    }
}

static void rpc_bad_roots_trust_nothing(void **state)
{
    static const struct {
        const char *pem, *why;
    } rows[] = {
        {"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", ""},
        {"-----BEGIN CERTIFICATE-----\nMIIB\n", "broken PEM"},
        {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate found"},
        {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no certificate found"},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        config.root_ca = rows[i].pem;
        struct zt_rpc_channel *c = channel();
        assert_fails_here(c, ZT_TLS, rows[i].why);
        zt_rpc_channel_free(c);
    }
}

/* The one behind it still counts. */
static void rpc_unparsable_root_is_skipped(void **state)
{
    struct zt_str pem;
    zt_str_init(&pem, 65536);
    zt_str_addf(&pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n%s",
                rig.root_pem);
    config.root_ca = zt_str_cstr(&pem);
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    zt_rpc_channel_free(c);
    zt_str_fini(&pem);
}

/* SYSTEM is what the system trusts, and the mesh's root is not among it. */
static void rpc_system_roots_are_the_systems(void **state)
{
    const char *path = rpc_rig_write(&rig, "system.pem", rig.root_pem);
    config.root_ca = "SYSTEM";
    setenv("SSL_CERT_FILE", path, 1);
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    zt_rpc_channel_free(c);
    struct zt_test_cert *other = zt_test_root_named("other root");
    char *pem = zt_test_certs_pem((const struct zt_test_cert *const[]){other}, 1);
    rpc_rig_write(&rig, "system.pem", pem);
    c = channel();
    char text[ZT_RPC_STATUS_TEXT_MAX];
    assert_int_equal(ask(c, text), ZT_RPC_UNAVAILABLE);
    zt_rpc_channel_free(c);
    unsetenv("SSL_CERT_FILE");
    zt_free(pem);
    zt_test_cert_free(other);
}

/* ---- connections ---- */

static void rpc_fresh_dials_for_each_call(void **state)
{
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    char *first = zt_strdup(grpc_server_call_peer(last_call()));
    assert_works(c);
    assert_string_not_equal(grpc_server_call_peer(last_call()), first);
    zt_free(first);
    zt_rpc_channel_free(c);
}

/* root_cert_manager_dirty_flag_api, file_cert_starts_clean: an unchanged file means no new
 * connection, a changed one does, once. */
static void rpc_root_cert_manager_dirty_flag_api_new_roots_new_connection(void **state)
{
    config.root_ca = rpc_rig_write(&rig, "root.pem", rig.root_pem);
    config.fresh = false;
    struct zt_rpc_channel *c = channel();
    char *peers[4];
    for (unsigned i = 0; i < 4; i++) {
        if (i == 2) {
            struct zt_test_cert *second = zt_test_root_named("second root");
            char *pem =
                zt_test_certs_pem((const struct zt_test_cert *const[]){rig.root, second}, 2);
            rpc_rig_write(&rig, "root.pem", pem);
            zt_free(pem);
            zt_test_cert_free(second);
        } else {
            rpc_rig_write(&rig, "root.pem", i < 2 ? rig.root_pem : ""); /* i 3: see below */
        }
        assert_works(c);
        peers[i] = zt_strdup(grpc_server_call_peer(last_call()));
    }
    assert_string_equal(peers[0], peers[1]);
    assert_string_not_equal(peers[1], peers[2]);
    assert_string_equal(peers[2], peers[3]); /* a file without roots: the old connection stays */
    for (unsigned i = 0; i < 4; i++)
        zt_free(peers[i]);
    zt_rpc_channel_free(c);
}

/* static_cert_is_never_dirty: roots given as text are read once. */
static void rpc_static_roots_keep_their_connection(void **state)
{
    config.fresh = false;
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    char *peer = zt_strdup(grpc_server_call_peer(last_call()));
    assert_works(c);
    assert_string_equal(grpc_server_call_peer(last_call()), peer);
    zt_free(peer);
    zt_rpc_channel_free(c);
}

/* The mesh's root is exchanged while we run. */
static void rpc_rotated_roots_are_followed(void **state)
{
    for (unsigned fresh = 0; fresh < 2; fresh++) {
        config.root_ca = rpc_rig_write(&rig, "root.pem", rig.root_pem);
        config.fresh = fresh;
        struct zt_rpc_channel *c = channel();
        char text[ZT_RPC_STATUS_TEXT_MAX];
        assert_works(c);
        rpc_rig_renew_certs(&rig);
        rpc_rig_restart(&rig);
        assert_int_equal(ask(c, text), ZT_RPC_UNAVAILABLE);
        rpc_rig_write(&rig, "root.pem", rig.root_pem);
        assert_works(c);
        zt_rpc_channel_free(c);
    }
}

/* No waiting for the library's own back-off: the caller has one. */
static void rpc_refused_connection_is_tried_anew_at_once(void **state)
{
    for (unsigned fresh = 0; fresh < 2; fresh++) {
        config.fresh = fresh;
        struct zt_rpc_channel *c = channel();
        char text[ZT_RPC_STATUS_TEXT_MAX];
        rpc_rig_stop(&rig);
        assert_int_equal(ask(c, text), ZT_RPC_UNAVAILABLE);
        assert_non_null(strstr(text, "Connection refused"));
        assert_int_equal(ask(c, text), ZT_RPC_UNAVAILABLE);
        rpc_rig_restart(&rig);
        assert_works(c);
        zt_rpc_channel_free(c);
    }
}

static void rpc_unknown_host_is_unavailable(void **state)
{
    config.address = "https://no-such-host.invalid:15012";
    struct zt_rpc_channel *c = channel();
    assert_unavailable(c, "no-such-host.invalid");
    zt_rpc_channel_free(c);
}

/* It takes connections and never says a word. */
static void rpc_mute_server_is_ended_by_the_deadline(void **state)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    char address[64];
    zt_fmt(address, sizeof address, "https://127.0.0.1:%u", ntohs(sa.sin_port));
    config.address = address;
    struct zt_rpc_channel *c = channel();
    struct rpc_log log = {0};
    rpc_log_unary(&log, &rig, c, 300);
    rpc_log_wait_status(&log);
    assert_int_equal(log.status.code, ZT_RPC_DEADLINE_EXCEEDED);
    rpc_log_fini(&log);
    zt_rpc_channel_free(c);
    close(fd);
}

/* ---- TLS ---- */

/* An OpenSSL server that takes one connection and notes what the client offers. */
struct tls_server {
    SSL_CTX *ctx;
    int fd;
    pthread_t thread;
    char sni[256];
    bool shook_hands, client_cert, offers_h2;
};

static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_bytes,
                   const unsigned char *in, unsigned in_bytes, void *arg)
{
    static const uint8_t h2[] = "\2h2";
    struct tls_server *s = arg;
    s->offers_h2 = SSL_select_next_proto((unsigned char **)(uintptr_t)out, out_bytes, h2, 3, in,
                                         in_bytes) == OPENSSL_NPN_NEGOTIATED;
    return s->offers_h2 ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static void *serve_one(void *arg)
{
    struct tls_server *s = arg;
    int fd = accept(s->fd, NULL, NULL);
    SSL *ssl = SSL_new(s->ctx);
    SSL_set_fd(ssl, fd);
    s->shook_hands = SSL_accept(ssl) == 1;
    const char *sni = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    zt_fmt(s->sni, sizeof s->sni, "%s", sni ? sni : "");
    X509 *cert = SSL_get1_peer_certificate(ssl);
    s->client_cert = cert;
    X509_free(cert);
    SSL_free(ssl);
    close(fd);
    return NULL;
}

static int accept_any(int ok, X509_STORE_CTX *ctx)
{
    return 1;
}

static unsigned tls_server_start(struct tls_server *s, int version_max)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    *s = (struct tls_server){.ctx = SSL_CTX_new(TLS_server_method())};
    SSL_CTX_set_max_proto_version(s->ctx, version_max);
    SSL_CTX_use_certificate(s->ctx, rig.leaf->cert);
    SSL_CTX_use_PrivateKey(s->ctx, rig.leaf->key);
    SSL_CTX_set_verify(s->ctx, SSL_VERIFY_PEER, accept_any); /* asks for a certificate, as istiod */
    SSL_CTX_set_alpn_select_cb(s->ctx, on_alpn, s);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(s->fd, 8), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&sa, &len), 0);
    assert_int_equal(pthread_create(&s->thread, NULL, serve_one, s), 0);
    return ntohs(sa.sin_port);
}

static void tls_server_meet(struct tls_server *s, int version_max, const char *host)
{
    char address[64];
    zt_fmt(address, sizeof address, "https://%s:%u", host, tls_server_start(s, version_max));
    config.address = address;
    struct zt_rpc_channel *c = channel();
    struct rpc_log log = {0};
    rpc_log_unary(&log, &rig, c, 1000);
    rpc_log_wait_status(&log);
    assert_int_not_equal(log.status.code, ZT_RPC_OK);
    rpc_log_fini(&log);
    zt_rpc_channel_free(c);
    pthread_join(s->thread, NULL);
    close(s->fd);
    SSL_CTX_free(s->ctx);
}

static void rpc_tls_offers_name_and_h2_and_no_certificate(void **state)
{
    struct tls_server s;
    tls_server_meet(&s, TLS1_3_VERSION, "localhost");
    assert_true(s.shook_hands);
    assert_string_equal(s.sni, "localhost");
    assert_true(s.offers_h2);
    assert_false(s.client_cert);
}

static void rpc_tls_1_2_is_refused(void **state)
{
    struct tls_server s;
    tls_server_meet(&s, TLS1_2_VERSION, "localhost");
    assert_false(s.shook_hands);
}

/* ---- token and headers ---- */

static void rpc_token_and_cluster_go_with_each_call(void **state)
{
    unsigned n;
    config.token = "secret-token";
    config.cluster_id = "cluster-7";
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    assert_string_equal(grpc_server_call_header(last_call(), "authorization", &n),
                        "Bearer secret-token");
    assert_int_equal(n, 1);
    assert_string_equal(grpc_server_call_header(last_call(), "clusterid", &n), "cluster-7");
    assert_int_equal(n, 1);
    zt_rpc_channel_free(c);
}

static void rpc_without_token_there_is_no_cluster(void **state)
{
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    assert_null(grpc_server_call_header(last_call(), "authorization", NULL));
    assert_null(grpc_server_call_header(last_call(), "clusterid", NULL));
    zt_rpc_channel_free(c);
}

static void rpc_token_file_is_read_for_each_call(void **state)
{
    char text[ZT_RPC_STATUS_TEXT_MAX];
    config.token = rpc_rig_write(&rig, "token", "token-1\n");
    config.fresh = false;
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    grpc_server_rig_set_token(rig.server, "token-2"); /* the first has expired */
    assert_int_equal(ask(c, text), ZT_RPC_UNAUTHENTICATED);
    assert_string_equal(text, "authentication failure");
    rpc_rig_write(&rig, "token", "token-2");
    assert_works(c);
    zt_rpc_channel_free(c);
}

static void rpc_unusable_token_ends_the_call_here(void **state)
{
    char path[200];
    zt_fmt(path, sizeof path, "%s/token", rig.dir);
    config.token = path; /* not there yet */
    struct zt_rpc_channel *c = channel();
    assert_fails_here(c, ZT_IDENTITY, "cannot read token file");
    rpc_rig_write(&rig, "token", "");
    assert_fails_here(c, ZT_IDENTITY, "token file exists, but was empty");
    rpc_rig_write(&rig, "token", " \n");
    assert_fails_here(c, ZT_IDENTITY, "token file exists, but was empty");
    rpc_rig_write(&rig, "token", "a\r\nx-injected: b");
    assert_fails_here(c, ZT_IDENTITY, "not legal in a header");
    rpc_rig_write(&rig, "token", "t\xc3\xb6ken");
    assert_fails_here(c, ZT_IDENTITY, "not legal in a header");
    char *large = zt_zalloc(ZT_RPC_TOKEN_BYTES_MAX + 1);
    memset(large, 'a', ZT_RPC_TOKEN_BYTES_MAX);
    rpc_rig_write(&rig, "token", large);
    assert_fails_here(c, ZT_IDENTITY, "longer than");
    zt_free(large);
    rpc_rig_write(&rig, "token", "token-1");
    assert_works(c);
    zt_rpc_channel_free(c);
}

static void rpc_extra_headers_go_along_and_replace_nothing(void **state)
{
    static const struct zt_rpc_header headers[] = {
        {"X_Team", "mesh"}, {"Authorization", "Basic other"}, {"CLUSTERID", "other"}};
    unsigned n;
    config.headers = headers;
    config.n_headers = 3;
    config.token = "token";
    struct zt_rpc_channel *c = channel();
    assert_works(c);
    assert_string_equal(grpc_server_call_header(last_call(), "x_team", NULL), "mesh");
    assert_string_equal(grpc_server_call_header(last_call(), "authorization", &n), "Bearer token");
    assert_int_equal(n, 1);
    assert_string_equal(grpc_server_call_header(last_call(), "clusterid", &n), "Kubernetes");
    assert_int_equal(n, 1);
    zt_rpc_channel_free(c);
    config.token = NULL;
    c = channel();
    assert_works(c);
    assert_string_equal(grpc_server_call_header(last_call(), "authorization", &n), "Basic other");
    zt_rpc_channel_free(c);
}

static void rpc_header_injection_is_refused(void **state)
{
    static const struct zt_rpc_header bad[] = {
        {"", "v"},         {"a b", "v"},          {"a:b", "v"},    {":path", "/"},
        {"x\r\ny", "v"},   {"x-bin", "v"},        {"te", "x"},     {"Content-Type", "x"},
        {"host", "x"},     {"grpc-timeout", "1"}, {"x", "a\r\nb"}, {"x", "a\nb"},
        {"x", "\xc3\xb6"}, {"user-agent", "x"},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_rpc_channel *c;
        config.headers = &bad[i];
        config.n_headers = 1;
        if (zt_rpc_channel_new(rig.rpc, &config, &c, &err) != ZT_INVALID)
            fail_msg("%s: %s", bad[i].name, bad[i].value);
    }
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_rpc_channel *c;
    config.n_headers = 0;
    config.cluster_id = "a\r\nb";
    assert_int_equal(zt_rpc_channel_new(rig.rpc, &config, &c, &err), ZT_INVALID);
}

/* ---- namespaces ---- */

/* The first test: the library has no threads yet that a child would lack. */
static void rpc_call_from_a_pods_namespace_is_a_bug(void **state)
{
    int status;
    zt_test_need_root();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct zt_rpc_call *call;
        struct zt_rpc_channel *c;
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_loop *loop = zt_loop_new("zt-test");
        struct zt_rpc *rpc;
        struct zt_rpc_channel_config plain = {
            .address = "localhost:1", .root_ca = "none", .receive_bytes_max = 1000, .fresh = true};
        if (!freopen("/dev/null", "w", stderr) || zt_rpc_new(loop, false, &rpc, &err) != ZT_OK ||
            zt_rpc_channel_new(rpc, &plain, &c, &err) != ZT_OK ||
            zt_rpc_stream_open(c, "/a/b", &rpc_log_events, c, &call, &err) != ZT_IO ||
            unshare(CLONE_NEWNET) != 0)
            _exit(1);
        zt_rpc_stream_open(c, "/a/b", &rpc_log_events, c, &call, &err);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define WITH(how, f) cmocka_unit_test_setup_teardown(f, setup_##how, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rpc_call_from_a_pods_namespace_is_a_bug),
        CASE(rpc_addresses_are_judged_at_once),
        CASE(rpc_plaintext_is_refused_with_its_reason),
        CASE(rpc_alternative_name_must_be_a_name),
        CASE(rpc_authority_is_the_address_as_written),
        CASE(rpc_ip_address_needs_an_ip_san),
        WITH(istiod_name, rpc_wrong_name_is_refused),
        WITH(istiod_name, rpc_alternative_name_is_accepted_behind_the_original),
        WITH(istiod_name, rpc_wrong_alternative_name_is_refused),
        CASE(rpc_original_name_counts_beside_an_alternative),
        CASE(rpc_foreign_root_is_refused),
        WITH(expired, rpc_expired_certificate_is_refused),
        CASE(rpc_root_file_may_appear_after_the_start),
        CASE(rpc_bad_roots_trust_nothing),
        CASE(rpc_unparsable_root_is_skipped),
        CASE(rpc_system_roots_are_the_systems),
        CASE(rpc_fresh_dials_for_each_call),
        CASE(rpc_root_cert_manager_dirty_flag_api_new_roots_new_connection),
        CASE(rpc_static_roots_keep_their_connection),
        CASE(rpc_rotated_roots_are_followed),
        CASE(rpc_refused_connection_is_tried_anew_at_once),
        CASE(rpc_unknown_host_is_unavailable),
        CASE(rpc_mute_server_is_ended_by_the_deadline),
        CASE(rpc_tls_offers_name_and_h2_and_no_certificate),
        CASE(rpc_tls_1_2_is_refused),
        CASE(rpc_token_and_cluster_go_with_each_call),
        CASE(rpc_without_token_there_is_no_cluster),
        WITH(token, rpc_token_file_is_read_for_each_call),
        WITH(token, rpc_unusable_token_ends_the_call_here),
        CASE(rpc_extra_headers_go_along_and_replace_nothing),
        CASE(rpc_header_injection_is_refused),
    };
    return cmocka_run_group_tests_name("rpc_channel", tests, NULL, NULL);
}
