/* The table of spec/dataplane §3.2: which chains are accepted, for both roles, and with which alert the others are refused. */
#include "net/tls_impl.h"
#include "support/tls_test.h"
#include "zt/base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define ID "spiffe://cluster.local/ns/ns1/sa/sleep"
#define OTHER_ID "spiffe://cluster.local/ns/ns1/sa/other"
#define FOREIGN_ID "spiffe://other.domain/ns/ns1/sa/sleep"
#define MIDS_MAX 8

/* What OpenSSL turns into alerts 42, 43, 45, 46, 48. */
enum { BAD = X509_V_ERR_CERT_REJECTED,
       USAGE = X509_V_ERR_INVALID_PURPOSE,
       EXPIRED = X509_V_ERR_CERT_HAS_EXPIRED,
       UNKNOWN = X509_V_ERR_SUBJECT_ISSUER_MISMATCH,
       ISSUER = X509_V_ERR_CERT_CHAIN_TOO_LONG };

struct chain {
    struct zt_test_cert *root, *mids[MIDS_MAX], *leaf;
    unsigned n_mids;
    STACK_OF(X509) *presented; /* as a peer sends it: leaf, then intermediates from the leaf upwards */
};

/* Intermediates all from the same options, but each with its own name. */
static struct chain chain_new(const struct zt_test_cert_opts *root, unsigned n_mids, const struct zt_test_cert_opts *mid,
                              const struct zt_test_cert_opts *leaf)
{
    static const char *const names[MIDS_MAX] = {"m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"};
    struct chain c = {.n_mids = n_mids, .presented = sk_X509_new_null()};
    struct zt_test_cert_opts o = {.cn = "root"};
    c.root = zt_test_root(root ? root : &o);
    struct zt_test_cert *issuer = c.root;
    for (unsigned i = 0; i < n_mids; i++) {
        struct zt_test_cert_opts m = {.ca = true};
        if (mid)
            m = *mid;
        m.cn = names[i];
        issuer = c.mids[i] = zt_test_issue(issuer, &m);
    }
    c.leaf = zt_test_issue(issuer, leaf);
    sk_X509_push(c.presented, c.leaf->cert);
    for (unsigned i = n_mids; i-- > 0;)
        sk_X509_push(c.presented, c.mids[i]->cert);
    return c;
}

static void chain_free(struct chain *c)
{
    sk_X509_free(c->presented);
    for (unsigned i = 0; i < c->n_mids; i++)
        zt_test_cert_free(c->mids[i]);
    zt_test_cert_free(c->leaf);
    zt_test_cert_free(c->root);
}

/* One verdict. roots: what the verifier trusts; its own identity is ID. */
static int judge(struct chain *c, const struct zt_test_cert *const *roots, unsigned n_roots, bool peer_is_client,
                 struct zt_tls_verify *v)
{
    char expected[] = ID, *sans[] = {expected};
    struct zt_test_cert *own = zt_test_leaf(c->root, ID);
    struct zt_tls_cred *cred = zt_test_cred((const struct zt_test_cert *const[]){own}, 1, roots, n_roots, false);
    memset(v, 0, sizeof(*v));
    v->cred = cred;
    v->peer_is_client = peer_is_client;
    v->sans = sans;
    v->n_sans = 1;
    int code = zt_tls_verify_peer(v, c->leaf->cert, c->presented);
    zt_tls_path_unref(v->path);
    v->path = NULL;
    zt_tls_cred_unref(cred);
    zt_test_cert_free(own);
    return code;
}

/* The same verdict in both roles. */
static void expect(struct chain *c, const struct zt_test_cert *const *roots, unsigned n_roots, int want)
{
    struct zt_tls_verify v;
    for (int peer_is_client = 0; peer_is_client < 2; peer_is_client++) {
        int code = judge(c, roots, n_roots, peer_is_client, &v);
        if (code != want)
            fail_msg("peer_is_client %d: %d instead of %d (%s)", peer_is_client, code, want, v.err.text);
        if (want == X509_V_OK)
            assert_string_equal(v.identity, ID);
        else
            assert_true(v.err.code != ZT_OK && v.err.text[0] && v.identity[0] == 0);
    }
}

static void expect_chain(const struct zt_test_cert_opts *root, unsigned n_mids, const struct zt_test_cert_opts *mid,
                         const struct zt_test_cert_opts *leaf, int want)
{
    struct chain c = chain_new(root, n_mids, mid, leaf);
    expect(&c, (const struct zt_test_cert *const[]){c.root}, 1, want);
    chain_free(&c);
}

static void verify_leaf_below_root_is_accepted(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
}

static void verify_leaf_below_intermediates_is_accepted(void **state)
{
    expect_chain(NULL, 2, NULL, &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
}

static void verify_expired_leaf_is_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .not_before_s = -7200, .not_after_s = -60}, EXPIRED);
}

static void verify_leaf_not_yet_valid_is_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .not_before_s = 3600}, EXPIRED);
}

static void verify_expired_intermediate_is_refused(void **state)
{
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .not_before_s = -7200, .not_after_s = -60},
                 &(struct zt_test_cert_opts){.uri = ID}, EXPIRED);
}

static void verify_expired_root_still_validates(void **state)
{
    expect_chain(&(struct zt_test_cert_opts){.not_before_s = -7200, .not_after_s = -60}, 0, NULL,
                 &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
    expect_chain(&(struct zt_test_cert_opts){.not_before_s = -7200, .not_after_s = -60}, 1, NULL,
                 &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
}

static void verify_root_path_length_does_not_count(void **state)
{
    expect_chain(&(struct zt_test_cert_opts){.path_len = 1}, 2, NULL, &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
}

static void verify_intermediate_path_length_counts(void **state)
{
    expect_chain(NULL, 2, &(struct zt_test_cert_opts){.ca = true, .path_len = 1}, &(struct zt_test_cert_opts){.uri = ID}, BAD);
}

static void verify_v1_root_is_an_anchor(void **state)
{
    expect_chain(&(struct zt_test_cert_opts){.v1 = true}, 0, NULL, &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
}

static void verify_anchor_need_not_be_self_signed(void **state)
{
    struct chain c = chain_new(NULL, 1, NULL, &(struct zt_test_cert_opts){.uri = ID});
    expect(&c, (const struct zt_test_cert *const[]){c.mids[0]}, 1, X509_V_OK);
    chain_free(&c);
}

/* ... and then its expiry does not count either. */
static void verify_expired_intermediate_as_anchor_validates(void **state)
{
    struct chain c = chain_new(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .not_before_s = -7200, .not_after_s = -60},
                               &(struct zt_test_cert_opts){.uri = ID});
    expect(&c, (const struct zt_test_cert *const[]){c.mids[0]}, 1, X509_V_OK);
    chain_free(&c);
}

static void verify_leaf_as_its_own_anchor_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    expect(&c, (const struct zt_test_cert *const[]){c.leaf}, 1, ISSUER);
    chain_free(&c);
}

static void verify_unknown_root_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 1, NULL, &(struct zt_test_cert_opts){.uri = ID});
    struct zt_test_cert *other = zt_test_root_named("somebody else");
    expect(&c, (const struct zt_test_cert *const[]){other}, 1, ISSUER);
    zt_test_cert_free(other);
    chain_free(&c);
}

static void verify_root_of_the_same_name_and_another_key_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    struct zt_test_cert *other = zt_test_root_named("root");
    expect(&c, (const struct zt_test_cert *const[]){other}, 1, ISSUER);
    zt_test_cert_free(other);
    chain_free(&c);
}

/* multi_root: two concatenated roots, of the same name even; peers signed by either are accepted, in either order. */
static void verify_multi_root(void **state)
{
    struct chain a = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    struct chain b = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    expect(&a, (const struct zt_test_cert *const[]){a.root, b.root}, 2, X509_V_OK);
    expect(&a, (const struct zt_test_cert *const[]){b.root, a.root}, 2, X509_V_OK);
    expect(&b, (const struct zt_test_cert *const[]){a.root, b.root}, 2, X509_V_OK);
    expect(&b, (const struct zt_test_cert *const[]){b.root, a.root}, 2, X509_V_OK);
    chain_free(&a);
    chain_free(&b);
}

/* A presented certificate of the issuer's name that did not sign the leaf hides nothing. */
static void verify_junk_intermediate_is_ignored(void **state)
{
    struct chain c = chain_new(NULL, 1, NULL, &(struct zt_test_cert_opts){.uri = ID});
    struct zt_test_cert *junk = zt_test_root_named("m0");
    sk_X509_insert(c.presented, junk->cert, 1);
    expect(&c, (const struct zt_test_cert *const[]){c.root}, 1, X509_V_OK);
    zt_test_cert_free(junk);
    chain_free(&c);
}

static void verify_missing_intermediate_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 1, NULL, &(struct zt_test_cert_opts){.uri = ID});
    sk_X509_pop(c.presented);
    expect(&c, (const struct zt_test_cert *const[]){c.root}, 1, ISSUER);
    chain_free(&c);
}

static void verify_six_intermediates_are_the_most(void **state)
{
    expect_chain(NULL, 6, NULL, &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
    expect_chain(NULL, 7, NULL, &(struct zt_test_cert_opts){.uri = ID}, ISSUER);
}

static void verify_too_many_presented_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    for (int i = 0; i < ZT_TLS_CHAIN_MAX; i++)
        sk_X509_push(c.presented, c.root->cert);
    expect(&c, (const struct zt_test_cert *const[]){c.root}, 1, ISSUER);
    chain_free(&c);
}

static void verify_eku_counts_only_when_present(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .eku = ZT_TEST_EKU_ABSENT}, X509_V_OK);
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .eku = ZT_TEST_EKU_OTHER}, USAGE);
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .eku = ZT_TEST_EKU_ANY}, USAGE);
}

static void verify_eku_is_that_of_the_role(void **state)
{
    struct chain server = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .eku = ZT_TEST_EKU_SERVER});
    struct chain client = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .eku = ZT_TEST_EKU_CLIENT});
    struct zt_tls_verify v;
    assert_int_equal(judge(&server, (const struct zt_test_cert *const[]){server.root}, 1, false, &v), X509_V_OK);
    assert_int_equal(judge(&server, (const struct zt_test_cert *const[]){server.root}, 1, true, &v), USAGE);
    assert_int_equal(judge(&client, (const struct zt_test_cert *const[]){client.root}, 1, true, &v), X509_V_OK);
    assert_int_equal(judge(&client, (const struct zt_test_cert *const[]){client.root}, 1, false, &v), USAGE);
    chain_free(&server);
    chain_free(&client);
}

static void verify_eku_of_intermediate_counts(void **state)
{
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .eku = ZT_TEST_EKU_OTHER},
                 &(struct zt_test_cert_opts){.uri = ID}, USAGE);
}

static void verify_key_usage_of_ca_is_ignored(void **state)
{
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .no_cert_sign = true},
                 &(struct zt_test_cert_opts){.uri = ID}, X509_V_OK);
    expect_chain(&(struct zt_test_cert_opts){.no_cert_sign = true}, 0, NULL, &(struct zt_test_cert_opts){.uri = ID},
                 X509_V_OK);
}

static void verify_ca_as_leaf_is_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .ca = true}, BAD);
}

static void verify_leaf_as_ca_is_refused(void **state)
{
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = false}, &(struct zt_test_cert_opts){.uri = ID}, BAD);
}

static void verify_v1_leaf_and_intermediate_are_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.v1 = true}, BAD);
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.v1 = true}, &(struct zt_test_cert_opts){.uri = ID}, BAD);
}

static void verify_weak_keys_and_sha1_are_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .key = ZT_TEST_RSA1024}, BAD);
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .key = ZT_TEST_P224}, BAD);
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .key = ZT_TEST_RSA1024},
                 &(struct zt_test_cert_opts){.uri = ID}, BAD);
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .sha1 = true}, BAD);
}

static void verify_other_keys_are_accepted(void **state)
{
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .key = ZT_TEST_RSA2048},
                 &(struct zt_test_cert_opts){.uri = ID, .key = ZT_TEST_ED25519}, X509_V_OK);
    expect_chain(NULL, 1, &(struct zt_test_cert_opts){.ca = true, .key = ZT_TEST_ED25519},
                 &(struct zt_test_cert_opts){.uri = ID, .key = ZT_TEST_P384}, X509_V_OK);
}

static void verify_unknown_critical_extension_is_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID, .critical_unknown = true}, BAD);
}

/* ---- identities ---- */

static void expect_text(struct chain *c, bool peer_is_client, const char *want)
{
    struct zt_tls_verify v;
    assert_int_equal(judge(c, (const struct zt_test_cert *const[]){c->root}, 1, peer_is_client, &v), UNKNOWN);
    assert_int_equal(v.err.code, ZT_IDENTITY);
    assert_string_equal(v.err.text, want);
}

static void verify_server_san_must_match_exactly(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = OTHER_ID});
    expect_text(&c, false,
                "identity verification error: peer did not present the expected SAN (" ID "), got " OTHER_ID);
    chain_free(&c);
}

static void verify_one_of_several_server_sans_suffices(void **state)
{
    static const char *const uris[] = {"https://example.com/", FOREIGN_ID, OTHER_ID, ID};
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.dns = "x", .uris = uris, .n_uris = 4});
    struct zt_tls_verify v;
    assert_int_equal(judge(&c, (const struct zt_test_cert *const[]){c.root}, 1, false, &v), X509_V_OK);
    assert_string_equal(v.identity, ID);
    chain_free(&c);
}

static void verify_got_list_has_every_spiffe_san(void **state)
{
    static const char *const uris[] = {"https://example.com/", FOREIGN_ID, OTHER_ID};
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uris = uris, .n_uris = 3});
    expect_text(&c, false,
                "identity verification error: peer did not present the expected SAN (" ID "), got " FOREIGN_ID "," OTHER_ID);
    chain_free(&c);
}

static void verify_server_without_expected_list_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = ID});
    struct zt_tls_cred *cred = zt_test_cred_of(c.root, ID);
    struct zt_tls_verify v = {.cred = cred};
    assert_int_equal(zt_tls_verify_peer(&v, c.leaf->cert, c.presented), UNKNOWN);
    zt_tls_path_unref(v.path);
    v.path = NULL;
    assert_string_equal(v.err.text, "identity verification error: peer did not present the expected SAN (), got " ID);
    zt_tls_cred_unref(cred);
    chain_free(&c);
}

static void verify_client_of_another_trust_domain_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = FOREIGN_ID});
    expect_text(&c, true,
                "identity verification error: peer did not present the expected trustdomain (cluster.local), got " FOREIGN_ID);
    chain_free(&c);
}

static void verify_client_without_spiffe_san_is_refused(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.dns = "host"});
    expect_text(&c, true,
                "identity verification error: peer did not present the expected trustdomain (cluster.local), got ");
    chain_free(&c);
}

/* spec/dataplane §4.1: the identity is the first SPIFFE SAN, also when a later one has our trust domain. */
static void verify_client_identity_is_its_first_san(void **state)
{
    static const char *const uris[] = {FOREIGN_ID, ID};
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uris = uris, .n_uris = 2});
    struct zt_tls_verify v;
    assert_int_equal(judge(&c, (const struct zt_test_cert *const[]){c.root}, 1, true, &v), X509_V_OK);
    assert_string_equal(v.identity, FOREIGN_ID);
    chain_free(&c);
}

static void verify_trust_domain_rule_needs_an_own_identity(void **state)
{
    struct chain c = chain_new(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = FOREIGN_ID});
    struct zt_tls_cred *cred = zt_test_cred_of(c.root, "https://no.spiffe/");
    struct zt_tls_verify v = {.cred = cred, .peer_is_client = true};
    assert_int_equal(zt_tls_verify_peer(&v, c.leaf->cert, c.presented), X509_V_OK);
    zt_tls_path_unref(v.path);
    v.path = NULL;
    assert_string_equal(v.identity, FOREIGN_ID);
    zt_tls_cred_unref(cred);
    chain_free(&c);
}

static void verify_broken_san_is_refused(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.broken_san = true}, BAD);
}

/* The path comes first: a stranger learns nothing about whom we expect. */
static void verify_path_is_judged_before_identity(void **state)
{
    expect_chain(NULL, 0, NULL, &(struct zt_test_cert_opts){.uri = OTHER_ID, .not_before_s = -7200, .not_after_s = -60},
                 EXPIRED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verify_leaf_below_root_is_accepted),
        cmocka_unit_test(verify_leaf_below_intermediates_is_accepted),
        cmocka_unit_test(verify_expired_leaf_is_refused),
        cmocka_unit_test(verify_leaf_not_yet_valid_is_refused),
        cmocka_unit_test(verify_expired_intermediate_is_refused),
        cmocka_unit_test(verify_expired_root_still_validates),
        cmocka_unit_test(verify_root_path_length_does_not_count),
        cmocka_unit_test(verify_intermediate_path_length_counts),
        cmocka_unit_test(verify_v1_root_is_an_anchor),
        cmocka_unit_test(verify_anchor_need_not_be_self_signed),
        cmocka_unit_test(verify_expired_intermediate_as_anchor_validates),
        cmocka_unit_test(verify_leaf_as_its_own_anchor_is_refused),
        cmocka_unit_test(verify_unknown_root_is_refused),
        cmocka_unit_test(verify_root_of_the_same_name_and_another_key_is_refused),
        cmocka_unit_test(verify_multi_root),
        cmocka_unit_test(verify_junk_intermediate_is_ignored),
        cmocka_unit_test(verify_missing_intermediate_is_refused),
        cmocka_unit_test(verify_six_intermediates_are_the_most),
        cmocka_unit_test(verify_too_many_presented_is_refused),
        cmocka_unit_test(verify_eku_counts_only_when_present),
        cmocka_unit_test(verify_eku_is_that_of_the_role),
        cmocka_unit_test(verify_eku_of_intermediate_counts),
        cmocka_unit_test(verify_key_usage_of_ca_is_ignored),
        cmocka_unit_test(verify_ca_as_leaf_is_refused),
        cmocka_unit_test(verify_leaf_as_ca_is_refused),
        cmocka_unit_test(verify_v1_leaf_and_intermediate_are_refused),
        cmocka_unit_test(verify_weak_keys_and_sha1_are_refused),
        cmocka_unit_test(verify_other_keys_are_accepted),
        cmocka_unit_test(verify_unknown_critical_extension_is_refused),
        cmocka_unit_test(verify_server_san_must_match_exactly),
        cmocka_unit_test(verify_one_of_several_server_sans_suffices),
        cmocka_unit_test(verify_got_list_has_every_spiffe_san),
        cmocka_unit_test(verify_server_without_expected_list_is_refused),
        cmocka_unit_test(verify_client_of_another_trust_domain_is_refused),
        cmocka_unit_test(verify_client_without_spiffe_san_is_refused),
        cmocka_unit_test(verify_client_identity_is_its_first_san),
        cmocka_unit_test(verify_trust_domain_rule_needs_an_own_identity),
        cmocka_unit_test(verify_broken_san_is_refused),
        cmocka_unit_test(verify_path_is_judged_before_identity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
