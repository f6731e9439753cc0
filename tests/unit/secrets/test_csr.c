/* Certificate signing requests (spec/controlplane §6.1). */
#include "zt/secrets/csr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

static const char identity[] = "spiffe://td/ns/ns1/sa/sa1";

static X509_REQ *parse(const struct zt_csr *csr)
{
    BIO *bio = BIO_new_mem_buf(csr->pem, -1);
    X509_REQ *req = PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(req);
    return req;
}

static EVP_PKEY *parse_key(const struct zt_csr *csr)
{
    assert_int_equal(strncmp(csr->key_pem, "-----BEGIN PRIVATE KEY-----\n", 28), 0);
    BIO *bio = BIO_new_mem_buf(csr->key_pem, -1);
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(key);
    return key;
}

static void test_csr_has_valid_signature_empty_subject_and_one_critical_san(void **state)
{
    struct zt_csr csr;
    assert_int_equal(zt_csr_init(&csr, identity, NULL), ZT_OK);
    X509_REQ *req = parse(&csr);
    assert_int_equal(X509_REQ_verify(req, X509_REQ_get0_pubkey(req)), 1);
    assert_int_equal(X509_REQ_get_signature_nid(req), NID_ecdsa_with_SHA256);
    assert_int_equal(X509_NAME_entry_count(X509_REQ_get_subject_name(req)), 0);
    STACK_OF(X509_EXTENSION) *exts = X509_REQ_get_extensions(req);
    assert_int_equal(sk_X509_EXTENSION_num(exts), 1);
    X509_EXTENSION *ext = sk_X509_EXTENSION_value(exts, 0);
    assert_int_equal(X509_EXTENSION_get_critical(ext), 1);
    assert_int_equal(OBJ_obj2nid(X509_EXTENSION_get_object(ext)), NID_subject_alt_name);
    GENERAL_NAMES *names = X509V3_EXT_d2i(ext);
    assert_int_equal(sk_GENERAL_NAME_num(names), 1);
    GENERAL_NAME *name = sk_GENERAL_NAME_value(names, 0);
    assert_int_equal(name->type, GEN_URI);
    assert_int_equal(ASN1_STRING_length(name->d.uniformResourceIdentifier), strlen(identity));
    assert_memory_equal(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier), identity,
                        strlen(identity));
    GENERAL_NAMES_free(names);
    sk_X509_EXTENSION_pop_free(exts, X509_EXTENSION_free);
    X509_REQ_free(req);
    zt_csr_fini(&csr);
    zt_csr_fini(&csr);
}

static void csr_key_is_a_fresh_p256_key_every_time(void **state)
{
    struct zt_csr a, b;
    assert_int_equal(zt_csr_init(&a, identity, NULL), ZT_OK);
    assert_int_equal(zt_csr_init(&b, identity, NULL), ZT_OK);
    EVP_PKEY *ka = parse_key(&a), *kb = parse_key(&b);
    X509_REQ *req = parse(&a);
    char group[32];
    assert_int_equal(EVP_PKEY_get_group_name(ka, group, sizeof group, NULL), 1);
    assert_string_equal(group, "prime256v1");
    assert_int_equal(EVP_PKEY_eq(ka, X509_REQ_get0_pubkey(req)), 1);
    assert_int_equal(EVP_PKEY_eq(ka, kb), 0);
    X509_REQ_free(req);
    EVP_PKEY_free(ka);
    EVP_PKEY_free(kb);
    zt_csr_fini(&a);
    zt_csr_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_csr_has_valid_signature_empty_subject_and_one_critical_san),
        cmocka_unit_test(csr_key_is_a_fresh_p256_key_every_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
