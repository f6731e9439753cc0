/* Against the openssl program as it is installed: s_server and s_client, over real sockets, with files. */
#include "support/net_fixture.h"
#include "support/tls_rig.h"
#include "zt/base/mem.h"
#include "zt/net/tcp.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define OUR_ID "spiffe://cluster.local/ns/ns1/sa/ours"
#define THEIR_ID "spiffe://cluster.local/ns/ns2/sa/theirs"

struct rig {
    struct zt_loop *loop;
    struct zt_test_cert *root, *leaf; /* leaf: theirs */
    struct zt_tls_cred *cred;
    struct zt_tls_end end;
    char dir[64];
    pid_t child;
    uint64_t wanted; /* bytes to be received */
    int fd;          /* a socket that waits to be connectable */
    struct sockaddr_in addr;
};

static void write_file(const struct rig *r, const char *name, char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", r->dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    zt_free(text);
}

static void rig_open(struct rig *r, bool tls12)
{
    memset(r, 0, sizeof(*r));
    signal(SIGPIPE, SIG_IGN);
    r->loop = zt_loop_new("test");
    r->root = zt_test_root_named("root");
    r->leaf = zt_test_leaf(r->root, THEIR_ID);
    struct zt_test_cert *ours = zt_test_leaf(r->root, OUR_ID);
    r->cred = zt_test_cred((const struct zt_test_cert *const[]){ours}, 1, (const struct zt_test_cert *const[]){r->root}, 1,
                           tls12);
    zt_test_cert_free(ours);
    zt_tls_end_init(&r->end);
    snprintf(r->dir, sizeof r->dir, "/tmp/zt-tls-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    write_file(r, "root.pem", zt_test_certs_pem((const struct zt_test_cert *const[]){r->root}, 1));
    write_file(r, "cert.pem", zt_test_certs_pem((const struct zt_test_cert *const[]){r->leaf}, 1));
    write_file(r, "key.pem", zt_test_key_pem(r->leaf));
    r->fd = -1;
}

static void rig_free(struct rig *r)
{
    char path[128];
    static const char *const files[] = {"root.pem", "cert.pem", "key.pem", "in", "out", "log"};
    if (r->child > 0) {
        kill(r->child, SIGKILL);
        waitpid(r->child, NULL, 0);
    }
    zt_tls_end_close(&r->end);
    zt_tls_cred_unref(r->cred);
    zt_test_cert_free(r->root);
    zt_test_cert_free(r->leaf);
    zt_test_run_for_ms(r->loop, 5);
    zt_loop_free(r->loop);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", r->dir, files[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(r->dir), 0);
}

/* Runs openssl in the rig's directory, input from "in", output to "out". It needs -nbio: with blocking sockets and input that
 * is ready at once it may write the handshake's end and then wait for it in a read, for ever. */
static void run_openssl(struct rig *r, char *const *argv)
{
    r->child = fork();
    assert_true(r->child >= 0);
    if (r->child > 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failing test leaves nobody behind */
    if (chdir(r->dir))
        _exit(126);
    int in = open("in", O_RDONLY | O_CREAT, 0600), out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int log = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(in, 0);
    dup2(out, 1);
    dup2(log, 2);
    execvp("openssl", argv);
    _exit(127);
}

/* A loopback address in *addr: that of the listening socket returned, or one that was free a moment ago (-1). */
static int any_socket(struct sockaddr_in *addr, bool listening)
{
    socklen_t len = sizeof(*addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(bind(fd, (struct sockaddr *)addr, len), 0);
    if (listening)
        assert_int_equal(listen(fd, 1), 0);
    getsockname(fd, (struct sockaddr *)addr, &len);
    if (!listening) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool can_connect(void *arg)
{
    struct rig *r = arg;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&r->addr, sizeof(r->addr))) {
        close(fd);
        usleep(10000);
        return false;
    }
    r->fd = fd;
    return true;
}

static bool is_done(void *arg)
{
    return ((struct rig *)arg)->end.n_done;
}

static bool has_received(void *arg)
{
    struct rig *r = arg;
    return r->end.received >= r->wanted;
}

static bool has_exchanged(void *arg)
{
    struct rig *r = arg;
    return has_received(r) && r->end.sent >= r->end.to_send;
}

static bool has_ended(void *arg)
{
    return ((struct rig *)arg)->end.read_end;
}

static void make_pattern_file(const struct rig *r, const char *name, size_t n)
{
    char path[128];
    const uint8_t *bytes;
    assert_true(zt_tls_pattern(0, &bytes) >= n);
    snprintf(path, sizeof(path), "%s/%s", r->dir, name);
    FILE *f = fopen(path, "w");
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void expect_pattern_file(const struct rig *r, const char *name, size_t n)
{
    char path[128], *got = zt_zalloc(n + 1);
    const uint8_t *bytes;
    zt_tls_pattern(0, &bytes);
    snprintf(path, sizeof(path), "%s/%s", r->dir, name);
    FILE *f = fopen(path, "r");
    assert_int_equal(fread(got, 1, n + 1, f), n);
    fclose(f);
    assert_memory_equal(got, bytes, n);
    zt_free(got);
}

static void connect_to_s_server(const char *version, char *suites_option, char *suite)
{
    struct rig r;
    char port[32], version_option[16];
    rig_open(&r, true);
    any_socket(&r.addr, false);
    snprintf(port, sizeof(port), "127.0.0.1:%d", ntohs(r.addr.sin_port));
    snprintf(version_option, sizeof(version_option), "-%s", version);
    char *argv[] = {"openssl", "s_server", "-accept", port,     "-cert",  "cert.pem", "-key", "key.pem",
                    "-CAfile", "root.pem", "-Verify", "3",      "-verify_return_error", "-alpn", "h2", "-quiet", "-nbio",
                    "-naccept", "1", "-nbio", /* or it waits for our bytes before it has sent its own */
                    version_option, suites_option, suite, NULL};
    make_pattern_file(&r, "in", 300000);
    run_openssl(&r, argv);
    assert_true(zt_test_run_until(r.loop, can_connect, &r));
    fcntl(r.fd, F_SETFL, O_NONBLOCK);
    zt_tls_end_connect(&r.end, r.loop, zt_tcp_stream_new(r.loop, r.fd, NULL), r.cred, THEIR_ID);
    assert_true(zt_test_run_until(r.loop, is_done, &r));
    if (!r.end.s)
        fail_msg("%s", r.end.err.text);
    assert_true(r.end.alpn_h2);
    r.wanted = 300000; /* behind two tickets with TLS 1.3 */
    zt_tls_end_go(&r.end, 0, false);
    assert_true(zt_test_run_until(r.loop, has_received, &r));
    assert_false(r.end.mismatch);
    rig_free(&r);
}

static void openssl_s_server_tls13_aes256(void **state)
{
    connect_to_s_server("tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384");
}

static void openssl_s_server_tls13_aes128(void **state)
{
    connect_to_s_server("tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256");
}

static void openssl_s_server_tls12(void **state)
{
    connect_to_s_server("tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384");
}

/* Runs s_client against us until the handshake is over, one way or the other. */
static void accept_s_client(struct rig *r, const char *version, bool with_cert)
{
    char port[32], version_option[16];
    rig_open(r, true);
    int listener = any_socket(&r->addr, true);
    snprintf(port, sizeof(port), "127.0.0.1:%d", ntohs(r->addr.sin_port));
    snprintf(version_option, sizeof(version_option), "-%s", version);
    char *argv[] = {"openssl", "s_client", "-connect", port,  "-CAfile", "root.pem", "-verify_return_error", "-alpn",
                    "h2",      "-quiet", "-nbio",  "-noservername", version_option, with_cert ? "-cert" : NULL, "cert.pem",
                    "-key", "key.pem", NULL};
    make_pattern_file(r, "in", 200000);
    run_openssl(r, argv);
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    close(listener);
    assert_true(fd >= 0);
    zt_tls_end_accept(&r->end, r->loop, zt_tcp_stream_new(r->loop, fd, NULL), r->cred);
    assert_true(zt_test_run_until(r->loop, is_done, r));
}

static void serve_s_client(const char *version)
{
    struct rig r;
    accept_s_client(&r, version, true);
    if (!r.end.s)
        fail_msg("%s", r.end.err.text);
    assert_string_equal(r.end.identity, THEIR_ID);
    r.wanted = 200000;
    zt_tls_end_go(&r.end, 250000, false);
    assert_true(zt_test_run_until(r.loop, has_exchanged, &r)); /* our close_notify would end its sending too */
    assert_false(r.end.mismatch);
    zt_stream_shutdown_write(r.end.s);
    int status;
    assert_true(zt_test_run_until(r.loop, has_ended, &r)); /* it answers our close_notify by leaving */
    assert_int_equal(waitpid(r.child, &status, 0), r.child);
    r.child = 0;
    expect_pattern_file(&r, "out", 250000);
    rig_free(&r);
}

static void openssl_s_client_tls13(void **state)
{
    serve_s_client("tls1_3");
}

static void openssl_s_client_tls12(void **state)
{
    serve_s_client("tls1_2");
}

static void openssl_s_client_without_certificate_is_refused(void **state)
{
    struct rig r;
    accept_s_client(&r, "tls1_3", false);
    assert_null(r.end.s);
    assert_string_equal(r.end.err.text, "peer did not return a certificate");
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(openssl_s_server_tls13_aes256),
        cmocka_unit_test(openssl_s_server_tls13_aes128),
        cmocka_unit_test(openssl_s_server_tls12),
        cmocka_unit_test(openssl_s_client_tls13),
        cmocka_unit_test(openssl_s_client_tls12),
        cmocka_unit_test(openssl_s_client_without_certificate_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
