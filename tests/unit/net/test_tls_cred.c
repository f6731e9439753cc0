/* Credentials: what is accepted, what is shown, what is refused and with which words. */
#include "net/tls_impl.h"
#include "support/tls_test.h"
#include "zt/base/mem.h"
#include <openssl/pem.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define ID "spiffe://cluster.local/ns/ns1/sa/sleep"

struct pki {
    struct zt_test_cert *root, *mid, *leaf;
    char *chain, *key, *roots;
};

static struct pki pki_new(const struct zt_test_cert_opts *leaf_opts)
{
    struct pki p;
    struct zt_test_cert_opts mid = {.cn = "mid", .ca = true};
    p.root = zt_test_root_named("root");
    p.mid = zt_test_issue(p.root, &mid);
    p.leaf = zt_test_issue(p.mid, leaf_opts);
    p.chain = zt_test_certs_pem((const struct zt_test_cert *const[]){p.leaf, p.mid}, 2);
    p.roots = zt_test_certs_pem((const struct zt_test_cert *const[]){p.root}, 1);
    p.key = zt_test_key_pem(p.leaf);
    return p;
}

static void pki_free(struct pki *p)
{
    zt_test_cert_free(p->root);
    zt_test_cert_free(p->mid);
    zt_test_cert_free(p->leaf);
    zt_free(p->chain);
    zt_free(p->roots);
    zt_free(p->key);
}

static struct pki pki_usual(void)
{
    struct zt_test_cert_opts o = {.uri = ID};
    return pki_new(&o);
}

static void expect_refused(const char *chain, const char *key, const char *roots, const char *identity, enum zt_err want,
                           const char *words)
{
    struct zt_tls_cred *c = (struct zt_tls_cred *)8;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_tls_cred_new(chain, key, roots, identity, &(struct zt_tls_profile){0}, &c, &err), want);
    assert_null(c);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void cred_shows_chain_and_roots(void **state)
{
    struct pki p = pki_usual();
    struct zt_tls_cred *c;
    unsigned n_chain, n_roots;
    assert_int_equal(zt_tls_cred_new(p.chain, p.key, p.roots, ID, &(struct zt_tls_profile){0}, &c, NULL), ZT_OK);
    const struct zt_tls_cert_info *infos = zt_tls_cred_certs(c, &n_chain, &n_roots);
    assert_int_equal(n_chain, 2);
    assert_int_equal(n_roots, 1);
    assert_string_equal(infos[2].pem, p.roots);
    assert_true(strncmp(infos[0].pem, p.chain, strlen(infos[0].pem)) == 0);
    assert_int_equal(strspn(infos[0].serial_decimal, "0123456789"), strlen(infos[0].serial_decimal));
    assert_int_equal(infos[0].not_after_s - infos[0].not_before_s, 86400 + 3600);
    assert_int_equal(zt_tls_cred_not_before_s(c), infos[0].not_before_s);
    assert_int_equal(zt_tls_cred_not_after_s(c), infos[0].not_after_s);
    assert_string_equal(zt_tls_cred_identity(c), ID);
    zt_tls_cred_unref(c);
    pki_free(&p);
}

static void cred_is_counted(void **state)
{
    struct pki p = pki_usual();
    struct zt_tls_cred *c;
    assert_int_equal(zt_tls_cred_new(p.chain, p.key, p.roots, NULL, &(struct zt_tls_profile){0}, &c, NULL), ZT_OK);
    assert_ptr_equal(zt_tls_cred_ref(c), c);
    zt_tls_cred_unref(c);
    assert_string_equal(zt_tls_cred_identity(c), ID);
    zt_tls_cred_unref(c);
    zt_tls_cred_unref(NULL);
    pki_free(&p);
}

static void cred_of_another_identity_is_refused(void **state)
{
    struct pki p = pki_usual();
    expect_refused(p.chain, p.key, p.roots, "spiffe://cluster.local/ns/ns1/sa/other", ZT_IDENTITY,
                   "did not find expected SAN: spiffe://cluster.local/ns/ns1/sa/other");
    pki_free(&p);
}

static void cred_identity_is_the_first_uri(void **state)
{
    static const char *const uris[] = {"spiffe://cluster.local/ns/ns1/sa/first", ID};
    struct zt_test_cert_opts o = {.dns = "x", .uris = uris, .n_uris = 2};
    struct pki p = pki_new(&o);
    expect_refused(p.chain, p.key, p.roots, ID, ZT_IDENTITY, "did not find expected SAN");
    pki_free(&p);
}

static void cred_without_spiffe_id_has_an_empty_identity(void **state)
{
    struct zt_test_cert_opts o = {.dns = "host", .uri = "https://example.com/"};
    struct pki p = pki_new(&o);
    struct zt_tls_cred *c;
    assert_int_equal(zt_tls_cred_new(p.chain, p.key, p.roots, NULL, &(struct zt_tls_profile){0}, &c, NULL), ZT_OK);
    assert_string_equal(zt_tls_cred_identity(c), "");
    zt_tls_cred_unref(c);
    pki_free(&p);
}

static void cred_with_a_foreign_key_is_refused(void **state)
{
    struct pki p = pki_usual(), other = pki_usual();
    expect_refused(p.chain, other.key, p.roots, ID, ZT_TLS, "private key does not belong to the certificate");
    pki_free(&p);
    pki_free(&other);
}

static void cred_says_which_part_is_wrong(void **state)
{
    struct pki p = pki_usual();
    expect_refused("", p.key, p.roots, ID, ZT_TLS, "certificate chain: no certificate");
    expect_refused(p.chain, p.key, "", ID, ZT_TLS, "roots: no certificate");
    expect_refused(p.chain, "", p.roots, ID, ZT_TLS, "private key:");
    expect_refused(p.chain, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", p.roots, ID, ZT_TLS,
                   "private key:");
    expect_refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", p.key, p.roots, ID, ZT_TLS,
                   "certificate chain: certificate 1:");
    p.chain[strlen(p.chain) - 40] = 0; /* cut inside the last line */
    expect_refused(p.chain, p.key, p.roots, ID, ZT_TLS, "certificate chain: certificate 2:");
    pki_free(&p);
}

/* A terminal prompt would stop the daemon. */
static void cred_never_asks_for_a_passphrase(void **state)
{
    struct pki p = pki_usual();
    BIO *bio = BIO_new(BIO_s_mem());
    char *data, secret[] = "secret";
    PEM_write_bio_PKCS8PrivateKey(bio, p.leaf->key, EVP_aes_128_cbc(), secret, 6, NULL, NULL);
    long n = BIO_get_mem_data(bio, &data);
    char *encrypted = zt_strndup(data, (size_t)n);
    expect_refused(p.chain, encrypted, p.roots, ID, ZT_TLS, "private key:");
    zt_free(encrypted);
    BIO_free(bio);
    pki_free(&p);
}

static void cred_chain_of_too_many_is_refused(void **state)
{
    struct pki p = pki_usual();
    const struct zt_test_cert *many[ZT_TLS_CHAIN_MAX + 1];
    for (unsigned i = 0; i <= ZT_TLS_CHAIN_MAX; i++)
        many[i] = p.leaf;
    char *pem = zt_test_certs_pem(many, ZT_TLS_CHAIN_MAX + 1);
    expect_refused(pem, p.key, p.roots, ID, ZT_TLS, "more than 16 certificates");
    zt_free(pem);
    pki_free(&p);
}

static void cred_text_of_too_many_bytes_is_refused(void **state)
{
    struct pki p = pki_usual();
    char *big = zt_zalloc(ZT_TLS_PEM_BYTES_MAX + 2);
    memset(big, '\n', ZT_TLS_PEM_BYTES_MAX + 1);
    expect_refused(p.chain, p.key, big, ID, ZT_TLS, "roots: more than 262144 bytes");
    zt_free(big);
    pki_free(&p);
}

static void cred_with_a_weak_key_is_refused(void **state)
{
    struct zt_test_cert_opts o = {.uri = ID, .key = ZT_TEST_RSA1024};
    struct pki p = pki_new(&o);
    expect_refused(p.chain, p.key, p.roots, ID, ZT_TLS, "certificate and key: ee key too small");
    pki_free(&p);
}

static void cred_takes_every_usual_key(void **state)
{
    static const enum zt_test_key keys[] = {ZT_TEST_P256, ZT_TEST_P384, ZT_TEST_ED25519, ZT_TEST_RSA2048};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        struct zt_test_cert_opts o = {.uri = ID, .key = keys[i]};
        struct pki p = pki_new(&o);
        struct zt_tls_cred *c;
        assert_int_equal(zt_tls_cred_new(p.chain, p.key, p.roots, ID, &(struct zt_tls_profile){.tls12 = true}, &c, NULL), ZT_OK);
        zt_tls_cred_unref(c);
        pki_free(&p);
    }
}

/* ---- SAN reading ---- */

static void sans_list_spiffe_uris_in_order(void **state)
{
    static const char *const uris[] = {"https://x/", "spiffe://td/ns/a/sa/b", "spiffe://td/ns/a", "spiffe://td/ns/c/sa/d"};
    struct zt_test_cert_opts o = {.dns = "spiffe://td/ns/dns/sa/dns", .uris = uris, .n_uris = 4};
    struct pki p = pki_new(&o);
    struct zt_tls_sans sans;
    char id[ZT_IDENTITY_MAX];
    assert_int_equal(zt_tls_sans_open(&sans, p.leaf->cert), ZT_OK);
    assert_true(zt_tls_sans_next(&sans, id));
    assert_string_equal(id, "spiffe://td/ns/a/sa/b");
    assert_true(zt_tls_sans_next(&sans, id));
    assert_string_equal(id, "spiffe://td/ns/c/sa/d");
    assert_false(zt_tls_sans_next(&sans, id));
    zt_tls_sans_close(&sans);
    pki_free(&p);
}

static void sans_that_do_not_decode_are_an_error(void **state)
{
    struct zt_test_cert_opts o = {.broken_san = true};
    struct pki p = pki_new(&o);
    struct zt_tls_sans sans;
    assert_int_equal(zt_tls_sans_open(&sans, p.leaf->cert), ZT_INVALID);
    zt_tls_sans_close(&sans);
    pki_free(&p);
}

static void sans_too_long_for_an_identity_are_skipped(void **state)
{
    char uri[ZT_IDENTITY_MAX + 100] = "spiffe://td/ns/a/sa/";
    memset(uri + strlen(uri), 'x', ZT_IDENTITY_MAX);
    struct zt_test_cert_opts o = {.uri = uri};
    struct pki p = pki_new(&o);
    struct zt_tls_sans sans;
    char id[ZT_IDENTITY_MAX];
    assert_int_equal(zt_tls_sans_open(&sans, p.leaf->cert), ZT_OK);
    assert_false(zt_tls_sans_next(&sans, id));
    zt_tls_sans_close(&sans);
    pki_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cred_shows_chain_and_roots),
        cmocka_unit_test(cred_is_counted),
        cmocka_unit_test(cred_of_another_identity_is_refused),
        cmocka_unit_test(cred_identity_is_the_first_uri),
        cmocka_unit_test(cred_without_spiffe_id_has_an_empty_identity),
        cmocka_unit_test(cred_with_a_foreign_key_is_refused),
        cmocka_unit_test(cred_says_which_part_is_wrong),
        cmocka_unit_test(cred_never_asks_for_a_passphrase),
        cmocka_unit_test(cred_chain_of_too_many_is_refused),
        cmocka_unit_test(cred_text_of_too_many_bytes_is_refused),
        cmocka_unit_test(cred_with_a_weak_key_is_refused),
        cmocka_unit_test(cred_takes_every_usual_key),
        cmocka_unit_test(sans_list_spiffe_uris_in_order),
        cmocka_unit_test(sans_that_do_not_decode_are_an_error),
        cmocka_unit_test(sans_too_long_for_an_identity_are_skipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
