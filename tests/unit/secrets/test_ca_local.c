/* The local CA: its root on disk, what it signs, what it says about a directory it cannot use. */
#include "zt/secrets/ca_local.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/secrets/csr.h"
#include <dirent.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char identity[] = "spiffe://td/ns/ns1/sa/sa1";
static struct zt_loop *loop;
static char base[64], dir[96], root_path[128], cert_path[128];

static int setup(void **state)
{
    zt_fmt(base, sizeof base, "/tmp/zt-ca-test-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    zt_fmt(dir, sizeof dir, "%s/ca", base);
    zt_fmt(root_path, sizeof root_path, "%s/root.pem", dir);
    zt_fmt(cert_path, sizeof cert_path, "%s/root-cert.pem", dir);
    loop = zt_loop_new("zt-test");
    return 0;
}

static int teardown(void **state)
{
    zt_loop_free(loop);
    unlink(root_path);
    unlink(cert_path);
    rmdir(dir);
    return rmdir(base); /* fails when something else was left behind */
}

static mode_t mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 07777;
}

/* Returns owned. */
static char *read_file(const char *path)
{
    char *text = zt_zalloc(65536);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && read(fd, text, 65535) > 0);
    close(fd);
    return text;
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    fchmod(fd, mode);
    close(fd);
}

static struct zt_ca *open_ok(void)
{
    struct zt_ca *ca = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_ca_local_open(loop, dir, &ca, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return ca;
}

static void open_fails(enum zt_err code, const char *text)
{
    struct zt_ca *ca = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_ca_local_open(loop, dir, &ca, &err), code);
    if (!strstr(err.text, text) || !strstr(err.text, dir))
        fail_msg("unexpected text: %s", err.text);
    assert_null(ca);
}

struct answer {
    struct zt_ca_request request;
    unsigned n;
    enum zt_err code;
    unsigned n_chain;
    char *leaf, *roots, *error;
};

static void on_done(struct zt_ca_request *r, const struct zt_ca_reply *reply)
{
    struct answer *a = zt_container_of(r, struct answer, request);
    a->n++;
    a->code = reply->code;
    a->n_chain = reply->n_chain;
    a->error = zt_strdup(reply->error);
    if (reply->n_chain) {
        a->leaf = zt_strdup(reply->chain_pem[0]);
        a->roots = zt_strdup(reply->chain_pem[reply->n_chain - 1]);
    }
}

static void drop_answer(struct answer *a)
{
    zt_free(a->leaf);
    zt_free(a->roots);
    zt_free(a->error);
}

static struct answer sign(struct zt_ca *ca, const char *id, uint64_t ttl_s)
{
    struct answer a = {.request.done = on_done};
    struct zt_csr csr;
    assert_int_equal(zt_csr_init(&csr, identity, NULL), ZT_OK);
    zt_ca_sign(ca, &a.request, id, csr.pem, ttl_s);
    assert_int_equal(a.n, 0); /* never from inside sign */
    zt_loop_run_once(loop, false);
    assert_int_equal(a.n, 1);
    zt_csr_fini(&csr);
    return a;
}

static X509 *parse_cert(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(cert);
    return cert;
}

static void ca_local_creates_directory_and_root_with_private_access_bits(void **state)
{
    mode_t before = umask(0);
    zt_ca_free(open_ok());
    umask(before);
    assert_int_equal(mode_of(dir), 0700);
    assert_int_equal(mode_of(root_path), 0600);
    assert_int_equal(mode_of(cert_path), 0600);
}

static void ca_local_keeps_the_root_it_finds(void **state)
{
    zt_ca_free(open_ok());
    char *first = read_file(root_path);
    zt_ca_free(open_ok());
    char *second = read_file(root_path);
    assert_string_equal(first, second);
    zt_free(first);
    zt_free(second);
}

static void ca_local_started_many_times_at_once_ends_with_one_root(void **state)
{
    enum { N = 8 };
    pid_t pids[N];
    int go[2];
    assert_int_equal(pipe(go), 0);
    for (int i = 0; i < N; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            char c, mine[160];
            close(go[1]);
            (void)!read(go[0], &c, 1); /* all start when the pipe closes */
            struct zt_ca *ca = NULL;
            if (zt_ca_local_open(loop, dir, &ca, NULL) != ZT_OK)
                _exit(1);
            struct answer a = sign(ca, identity, 60);
            zt_fmt(mine, sizeof mine, "%s/%d", base, i);
            write_file(mine, a.roots, 0600);
            _exit(0);
        }
    }
    close(go[0]);
    close(go[1]);
    for (int i = 0; i < N; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    char *published = read_file(cert_path);
    for (int i = 0; i < N; i++) {
        char mine[160];
        zt_fmt(mine, sizeof mine, "%s/%d", base, i);
        char *root = read_file(mine);
        assert_string_equal(root, published);
        zt_free(root);
        unlink(mine);
    }
    zt_free(published);
}

static void ca_local_leaf_is_a_spiffe_certificate_of_the_root(void **state)
{
    struct zt_ca *ca = open_ok();
    struct answer a = sign(ca, identity, 3600);
    assert_int_equal(a.code, ZT_OK);
    assert_int_equal(a.n_chain, 2);
    X509 *leaf = parse_cert(a.leaf), *root = parse_cert(a.roots);
    X509_STORE *store = X509_STORE_new();
    X509_STORE_add_cert(store, root);
    for (int server = 0; server < 2; server++) {
        X509_STORE_CTX *ctx = X509_STORE_CTX_new();
        X509_STORE_CTX_init(ctx, store, leaf, NULL);
        X509_STORE_CTX_set_purpose(ctx, server ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT);
        assert_int_equal(X509_verify_cert(ctx), 1);
        X509_STORE_CTX_free(ctx);
    }
    assert_int_equal(X509_NAME_entry_count(X509_get_subject_name(leaf)), 0);
    int critical = 0;
    GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, &critical, NULL);
    assert_int_equal(critical, 1);
    assert_int_equal(sk_GENERAL_NAME_num(names), 1);
    GENERAL_NAME *name = sk_GENERAL_NAME_value(names, 0);
    assert_memory_equal(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier), identity,
                        strlen(identity));
    GENERAL_NAMES_free(names);
    int days, seconds;
    assert_int_equal(
        ASN1_TIME_diff(&days, &seconds, X509_get0_notBefore(leaf), X509_get0_notAfter(leaf)), 1);
    assert_int_equal(seconds, 3600 + ZT_CA_LOCAL_BACKDATE_S);
    time_t soon = time(NULL) - ZT_CA_LOCAL_BACKDATE_S + 5,
           past = time(NULL) - ZT_CA_LOCAL_BACKDATE_S - 5;
    assert_int_equal(X509_cmp_time(X509_get0_notBefore(leaf), &soon), -1);
    assert_int_equal(X509_cmp_time(X509_get0_notBefore(leaf), &past), 1);
    X509_STORE_free(store);
    X509_free(leaf);
    X509_free(root);
    drop_answer(&a);
    zt_ca_free(ca);
}

static void ca_local_refuses_lifetimes_and_names_it_cannot_sign(void **state)
{
    struct zt_ca *ca = open_ok();
    struct answer a = sign(ca, identity, 0), b = sign(ca, identity, ZT_CA_LOCAL_TTL_MAX_S + 1);
    struct answer c = sign(ca, "cluster.local/ns/a/sa/b", 60);
    assert_int_not_equal(a.code, ZT_OK);
    assert_int_not_equal(b.code, ZT_OK);
    assert_int_not_equal(c.code, ZT_OK);
    assert_int_equal(strncmp(a.error, "signing error: ", 15), 0);
    drop_answer(&a);
    drop_answer(&b);
    drop_answer(&c);
    zt_ca_free(ca);
}

static void ca_local_refuses_a_broken_request(void **state)
{
    struct zt_ca *ca = open_ok();
    struct answer a = {.request.done = on_done};
    zt_ca_sign(ca, &a.request, identity, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", 60);
    zt_loop_run_once(loop, false);
    assert_int_equal(a.code, ZT_TLS);
    assert_int_equal(strncmp(a.error, "signing error: bad certificate request", 38), 0);
    drop_answer(&a);
    zt_ca_free(ca);
}

static void ca_local_cancelled_call_is_not_answered(void **state)
{
    struct zt_ca *ca = open_ok();
    struct answer a = {.request.done = on_done};
    struct zt_csr csr;
    assert_int_equal(zt_csr_init(&csr, identity, NULL), ZT_OK);
    zt_ca_sign(ca, &a.request, identity, csr.pem, 60);
    zt_ca_cancel(ca, &a.request);
    zt_loop_run_once(loop, false);
    assert_int_equal(a.n, 0);
    zt_csr_fini(&csr);
    zt_ca_free(ca);
}

static void ca_local_says_what_is_wrong_with_the_root_file(void **state)
{
    zt_ca_free(open_ok());
    char *good = read_file(root_path);
    char *cert = strstr(good, "-----BEGIN CERTIFICATE-----");
    assert_non_null(cert);

    write_file(root_path, "garbage\n", 0600);
    open_fails(ZT_INVALID, "has no readable private key");
    write_file(root_path, cert, 0600);
    open_fails(ZT_INVALID, "has no readable private key");

    struct zt_csr other;
    assert_int_equal(zt_csr_init(&other, identity, NULL), ZT_OK);
    write_file(root_path, other.key_pem, 0600);
    open_fails(ZT_INVALID, "has no readable certificate");
    struct zt_str mixed;
    zt_str_init(&mixed, 65536);
    zt_str_addf(&mixed, "%s%s", other.key_pem, cert);
    write_file(root_path, zt_str_cstr(&mixed), 0600);
    open_fails(ZT_INVALID, "do not belong together");
    zt_str_fini(&mixed);
    zt_csr_fini(&other);

    EVP_PKEY *wrong = EVP_EC_gen("P-384");
    BIO *bio = BIO_new(BIO_s_mem());
    char *data;
    PEM_write_bio_PKCS8PrivateKey(bio, wrong, NULL, NULL, 0, NULL, NULL);
    long n = BIO_get_mem_data(bio, &data);
    char *pem = zt_strndup(data, (size_t)n);
    write_file(root_path, pem, 0600);
    open_fails(ZT_INVALID, "not P-256");
    zt_free(pem);
    BIO_free(bio);
    EVP_PKEY_free(wrong);

    write_file(root_path, good, 0644);
    open_fails(ZT_INVALID, "chmod 600");
    write_file(root_path, good, 0600);
    zt_ca_free(open_ok());
    zt_free(good);
}

static void ca_local_says_what_is_wrong_with_the_directory(void **state)
{
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(chmod(dir, 0777), 0);
    open_fails(ZT_INVALID, "others may write");
    assert_int_equal(rmdir(dir), 0);
    write_file(dir, "x", 0600);
    open_fails(ZT_IO, "cannot open directory");
    unlink(dir);
    assert_int_equal(symlink("/tmp", dir), 0);
    open_fails(ZT_IO, "cannot open directory");
    unlink(dir);
    char saved[sizeof dir];
    memcpy(saved, dir, sizeof dir);
    zt_fmt(dir, sizeof dir, "%s/none/ca", base);
    open_fails(ZT_IO, "create its parent");
    memcpy(dir, saved, sizeof dir);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(ca_local_creates_directory_and_root_with_private_access_bits),
        T(ca_local_keeps_the_root_it_finds),
        T(ca_local_started_many_times_at_once_ends_with_one_root),
        T(ca_local_leaf_is_a_spiffe_certificate_of_the_root),
        T(ca_local_refuses_lifetimes_and_names_it_cannot_sign),
        T(ca_local_refuses_a_broken_request),
        T(ca_local_cancelled_call_is_not_answered),
        T(ca_local_says_what_is_wrong_with_the_root_file),
        T(ca_local_says_what_is_wrong_with_the_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
