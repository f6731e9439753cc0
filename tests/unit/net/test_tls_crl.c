/* Revocation lists: what a file may hold, and what the set says about verified paths (spec/dataplane §12). The names of the reference's
 * tests are kept where a case has one. */
#include "net/tls_impl.h"
#include "support/tls_test.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <openssl/pem.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ID "spiffe://cluster.local/ns/ns1/sa/sleep"

static char file[] = "/tmp/zt-test-crl-XXXXXX";

static void write_file(const void *data, size_t len)
{
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
}

static enum zt_err load_text(const char *text, unsigned *n)
{
    struct zt_error err = ZT_ERROR_INIT;
    write_file(text, strlen(text));
    return zt_tls_crl_load(file, n, &err);
}

/* Publishes one list of issuer. */
static void publish_list(const struct zt_test_cert *issuer, const struct zt_test_crl_opts *o)
{
    unsigned n;
    char *pem = zt_test_crl(issuer, o);
    assert_int_equal(load_text(pem, &n), ZT_OK);
    assert_int_equal(n, 1);
    zt_free(pem);
}

static void revoke_one(const struct zt_test_cert *issuer, const struct zt_test_cert *cert)
{
    publish_list(issuer, &(struct zt_test_crl_opts){.revoked = &cert, .n_revoked = 1});
}

/* Root, intermediate, leaf, verified. */
struct pki {
    struct zt_test_cert *root, *mid, *leaf, *own;
    struct zt_tls_cred *cred;
    struct zt_tls_verify v;
    int code;
};

static void verify(struct pki *p, const struct zt_test_cert *extra)
{
    char expected[] = ID, *sans[] = {expected};
    STACK_OF(X509) *presented = sk_X509_new_null();
    sk_X509_push(presented, p->leaf->cert);
    if (extra)
        sk_X509_push(presented, extra->cert);
    sk_X509_push(presented, p->mid->cert);
    zt_tls_path_unref(p->v.path);
    p->v = (struct zt_tls_verify){.cred = p->cred, .sans = sans, .n_sans = 1};
    p->code = zt_tls_verify_peer(&p->v, p->leaf->cert, presented);
    p->v.sans = NULL;
    sk_X509_free(presented);
}

static struct pki pki_new(void)
{
    struct pki p = {.root = zt_test_root_named("root")};
    p.mid = zt_test_issue(p.root, &(struct zt_test_cert_opts){.cn = "mid", .ca = true});
    p.leaf = zt_test_leaf(p.mid, ID);
    p.own = zt_test_leaf(p.root, ID);
    p.cred = zt_test_cred((const struct zt_test_cert *const[]){p.own}, 1, (const struct zt_test_cert *const[]){p.root}, 1, false);
    return p;
}

static void pki_free(struct pki *p)
{
    zt_tls_path_unref(p->v.path);
    zt_tls_cred_unref(p->cred);
    zt_test_cert_free(p->root);
    zt_test_cert_free(p->mid);
    zt_test_cert_free(p->leaf);
    zt_test_cert_free(p->own);
    zt_tls_crl_clear();
}

static void expect_revoked(const struct pki *p)
{
    assert_int_equal(p->code, X509_V_ERR_CERT_REVOKED); /* the alert is certificate_revoked */
    assert_int_equal(p->v.err.code, ZT_REVOKED);
    assert_string_equal(p->v.identity, "");
}

/* ---- the file ---- */

static void test_crl_manager_missing_file(void **state)
{
    struct zt_error err = ZT_ERROR_INIT;
    unsigned n;
    assert_int_equal(zt_tls_crl_load("/nonexistent/crl.pem", &n, &err), ZT_NOT_FOUND);
    assert_string_equal(err.text, "/nonexistent/crl.pem: No such file or directory (os error 2)");
}

static void test_crl_manager_invalid_file(void **state)
{
    unsigned n;
    assert_int_equal(load_text("nonsense", &n), ZT_INVALID);
    assert_int_equal(load_text("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", &n), ZT_INVALID);
}

static void test_crl_manager_empty_file(void **state)
{
    unsigned n = 7;
    assert_int_equal(load_text("", &n), ZT_OK);
    assert_int_equal(n, 0);
    assert_int_equal(load_text("-----BEGIN OTHER-----\nAAAA\n-----END OTHER-----\n", &n), ZT_OK);
    assert_int_equal(n, 0);
}

static void test_crl_manager_valid_crl(void **state)
{
    struct zt_test_cert *root = zt_test_root_named("root");
    char *pem = zt_test_crl(root, &(struct zt_test_crl_opts){0});
    size_t len = strlen(pem);
    char *twice = zt_zalloc(2 * len + 1);
    unsigned n;
    memcpy(twice, pem, len);
    memcpy(twice + len, pem, len + 1);
    assert_int_equal(load_text(pem, &n), ZT_OK);
    assert_int_equal(n, 1);
    assert_int_equal(load_text(twice, &n), ZT_OK);
    assert_int_equal(n, 2);
    zt_free(twice);
    zt_free(pem);
    zt_test_cert_free(root);
    zt_tls_crl_clear();
}

static void crl_in_der_is_taken(void **state)
{
    struct zt_test_cert *root = zt_test_root_named("root");
    struct zt_error err = ZT_ERROR_INIT;
    char *pem = zt_test_crl(root, &(struct zt_test_crl_opts){0});
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509_CRL *crl = PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL);
    unsigned char *der = NULL;
    int len = i2d_X509_CRL(crl, &der);
    unsigned n;
    write_file(der, (size_t)len);
    assert_int_equal(zt_tls_crl_load(file, &n, &err), ZT_OK);
    assert_int_equal(n, 1);
    OPENSSL_free(der);
    X509_CRL_free(crl);
    BIO_free(bio);
    zt_free(pem);
    zt_test_cert_free(root);
    zt_tls_crl_clear();
}

static void crl_of_an_unsupported_kind_refuses_the_file(void **state)
{
    static const struct zt_test_crl_opts kinds[] = {
        {.no_next_update = true},
        {.delta = true},
        {.scope = "critical,indirectCRL:TRUE"},
        {.scope = "critical,onlysomereasons:keyCompromise"},
    };
    struct zt_test_cert *root = zt_test_root_named("root");
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char *pem = zt_test_crl(root, &kinds[i]);
        unsigned n;
        assert_int_equal(load_text(pem, &n), ZT_INVALID);
        zt_free(pem);
    }
    zt_test_cert_free(root);
}

static void crl_that_does_not_load_leaves_the_set_in_force(void **state)
{
    struct pki p = pki_new();
    unsigned n;
    revoke_one(p.mid, p.leaf);
    assert_int_equal(load_text("nonsense", &n), ZT_INVALID);
    verify(&p, NULL);
    expect_revoked(&p);
    pki_free(&p);
}

/* ---- handshakes ---- */

static void outbound_rejects_revoked_server_cert(void **state)
{
    struct pki p = pki_new();
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_OK);
    revoke_one(p.mid, p.leaf);
    verify(&p, NULL);
    expect_revoked(&p);
    pki_free(&p);
}

static void outbound_rejects_revoked_intermediate_cert(void **state)
{
    struct pki p = pki_new();
    revoke_one(p.root, p.mid);
    verify(&p, NULL);
    expect_revoked(&p);
    pki_free(&p);
}

static void crl_of_another_issuer_says_nothing(void **state)
{
    struct pki p = pki_new();
    revoke_one(p.root, p.leaf); /* the leaf's serial, but not below the root */
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_OK);
    pki_free(&p);
}

/* The serial of the list is the serial of the certificate, octet for octet, and so are the names. */
static void parse_cert_matches_webpki_crl_encoding(void **state)
{
    struct pki p = pki_new();
    ASN1_INTEGER *serial = ASN1_INTEGER_new();
    BIGNUM *bn = NULL;
    assert_true(BN_hex2bn(&bn, "00FF0102030405060708090A0B0C0D0E0F101112131415"));
    BN_to_ASN1_INTEGER(bn, serial);
    X509_set_serialNumber(p.leaf->cert, serial);
    X509_sign(p.leaf->cert, p.mid->key, EVP_sha256());
    revoke_one(p.mid, p.leaf);
    verify(&p, NULL);
    expect_revoked(&p);
    BN_free(bn);
    ASN1_INTEGER_free(serial);
    pki_free(&p);
}

static void crl_with_a_wrong_signature_fails_the_path(void **state)
{
    struct pki p = pki_new();
    publish_list(p.mid, &(struct zt_test_crl_opts){.signer = p.root});
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_ERR_CERT_REJECTED);
    assert_int_equal(p.v.err.code, ZT_TLS_HANDSHAKE);
    pki_free(&p);
}

static void crl_scope_is_honoured(void **state)
{
    struct pki p = pki_new();
    const struct zt_test_cert *leaf = p.leaf, *mid = p.mid;
    publish_list(p.mid, &(struct zt_test_crl_opts){.revoked = &leaf, .n_revoked = 1, .scope = "critical,onlyCA:TRUE"});
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_OK);
    publish_list(p.mid, &(struct zt_test_crl_opts){.revoked = &leaf, .n_revoked = 1, .scope = "critical,onlyuser:TRUE"});
    verify(&p, NULL);
    expect_revoked(&p);
    publish_list(p.root, &(struct zt_test_crl_opts){.revoked = &mid, .n_revoked = 1, .scope = "critical,onlyuser:TRUE"});
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_OK);
    publish_list(p.mid, &(struct zt_test_crl_opts){.revoked = &leaf, .n_revoked = 1, .scope = "critical,fullname:URI:http://crl/1"});
    verify(&p, NULL); /* the leaf names no place */
    assert_int_equal(p.code, X509_V_OK);
    pki_free(&p);
}

static void first_list_of_an_issuer_counts(void **state)
{
    struct pki p = pki_new();
    const struct zt_test_cert *leaf = p.leaf;
    char *clean = zt_test_crl(p.mid, &(struct zt_test_crl_opts){0});
    char *revoked = zt_test_crl(p.mid, &(struct zt_test_crl_opts){.revoked = &leaf, .n_revoked = 1});
    char *both = zt_zalloc(strlen(clean) + strlen(revoked) + 1);
    unsigned n;
    memcpy(both, clean, strlen(clean));
    memcpy(both + strlen(clean), revoked, strlen(revoked));
    assert_int_equal(load_text(both, &n), ZT_OK);
    verify(&p, NULL);
    assert_int_equal(p.code, X509_V_OK);
    zt_free(clean);
    zt_free(revoked);
    zt_free(both);
    pki_free(&p);
}

/* The path that was built counts, not what the peer sent along. */
static void index_routes_by_verified_path_ignoring_presented_junk_intermediate(void **state)
{
    struct pki p = pki_new();
    struct zt_test_cert *junk = zt_test_root_named("mid");
    revoke_one(p.mid, p.leaf);
    verify(&p, junk);
    expect_revoked(&p);
    zt_tls_crl_clear();
    verify(&p, junk);
    assert_int_equal(p.code, X509_V_OK);
    assert_int_equal(sk_X509_num(p.v.path->certs), 3);
    zt_test_cert_free(junk);
    pki_free(&p);
}

/* ---- open tunnels: the path is asked again ---- */

static void wait_for_revocation_resolves_on_webpki_revocation(void **state)
{
    struct pki p = pki_new();
    verify(&p, NULL);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_OK);
    revoke_one(p.mid, p.leaf);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_REVOKED);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_REVOKED); /* again */
    pki_free(&p);
}

static void wait_for_revocation_resolves_on_intermediate_revocation(void **state)
{
    struct pki p = pki_new();
    verify(&p, NULL);
    revoke_one(p.root, p.mid);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_REVOKED);
    pki_free(&p);
}

static void revoked_after_reload_decision(void **state)
{
    struct pki p = pki_new();
    struct zt_test_cert *other = zt_test_leaf(p.mid, ID);
    verify(&p, NULL);
    revoke_one(p.mid, other); /* a new generation that is none of its business */
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_OK);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_OK); /* remembered */
    revoke_one(p.mid, p.leaf);
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_REVOKED);
    zt_test_cert_free(other);
    pki_free(&p);
}

/* Two intermediates of one name: the list of one says nothing about the other's leaves. */
static void index_dn_collision_only_revoked_subtree_drops(void **state)
{
    struct pki a = pki_new();
    struct pki b = {.root = zt_test_root_named("root2")};
    b.mid = zt_test_issue(b.root, &(struct zt_test_cert_opts){.cn = "mid", .ca = true});
    b.leaf = zt_test_leaf(b.mid, ID);
    b.own = zt_test_leaf(b.root, ID);
    b.cred = zt_test_cred((const struct zt_test_cert *const[]){b.own}, 1, (const struct zt_test_cert *const[]){b.root}, 1, false);
    verify(&a, NULL);
    verify(&b, NULL);
    revoke_one(a.root, a.mid);
    assert_int_equal(zt_tls_path_check(a.v.path), ZT_REVOKED);
    assert_int_equal(zt_tls_path_check(b.v.path), ZT_OK);
    pki_free(&b);
    pki_free(&a);
}

/* An expired certificate below a list that clears it is not "revoked": only the list counts for an open tunnel. */
static void end_of_validity_does_not_revoke_an_open_tunnel(void **state)
{
    struct pki p = pki_new();
    verify(&p, NULL);
    zt_clock_test_advance_ms(INT64_C(1000) * 200000);
    publish_list(p.mid, &(struct zt_test_crl_opts){0});
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_OK);
    zt_clock_test_advance_ms(INT64_C(-1000) * 200000);
    pki_free(&p);
}

static void index_bulk_drop_through_multiple_ia_levels(void **state)
{
    struct pki p = pki_new();
    struct zt_test_cert *low = zt_test_issue(p.mid, &(struct zt_test_cert_opts){.cn = "low", .ca = true});
    struct zt_test_cert *high = p.mid;
    zt_test_cert_free(p.leaf);
    p.leaf = zt_test_leaf(low, ID);
    p.mid = low;
    verify(&p, high);
    assert_int_equal(p.code, X509_V_OK);
    revoke_one(p.root, high); /* two levels above the leaf */
    assert_int_equal(zt_tls_path_check(p.v.path), ZT_REVOKED);
    zt_test_cert_free(high);
    pki_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crl_manager_missing_file),
        cmocka_unit_test(test_crl_manager_invalid_file),
        cmocka_unit_test(test_crl_manager_empty_file),
        cmocka_unit_test(test_crl_manager_valid_crl),
        cmocka_unit_test(crl_in_der_is_taken),
        cmocka_unit_test(crl_of_an_unsupported_kind_refuses_the_file),
        cmocka_unit_test(crl_that_does_not_load_leaves_the_set_in_force),
        cmocka_unit_test(outbound_rejects_revoked_server_cert),
        cmocka_unit_test(outbound_rejects_revoked_intermediate_cert),
        cmocka_unit_test(crl_of_another_issuer_says_nothing),
        cmocka_unit_test(parse_cert_matches_webpki_crl_encoding),
        cmocka_unit_test(crl_with_a_wrong_signature_fails_the_path),
        cmocka_unit_test(crl_scope_is_honoured),
        cmocka_unit_test(first_list_of_an_issuer_counts),
        cmocka_unit_test(index_routes_by_verified_path_ignoring_presented_junk_intermediate),
        cmocka_unit_test(wait_for_revocation_resolves_on_webpki_revocation),
        cmocka_unit_test(wait_for_revocation_resolves_on_intermediate_revocation),
        cmocka_unit_test(revoked_after_reload_decision),
        cmocka_unit_test(index_dn_collision_only_revoked_subtree_drops),
        cmocka_unit_test(end_of_validity_does_not_revoke_an_open_tunnel),
        cmocka_unit_test(index_bulk_drop_through_multiple_ia_levels),
    };
    int fd = mkstemp(file);
    if (fd < 0)
        return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    return failed;
}
