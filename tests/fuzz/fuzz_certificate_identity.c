/* A certificate from a hostile peer or CA: parsing, SAN extraction, verification, and the same bytes as PEM of a credential.
 *
 * Input: DER of a certificate. It is judged as leaf and as intermediate against a fixed anchor made once. */
#include "net/tls_impl.h"
#include "support/tls_test.h"
#include "zt/base/mem.h"
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>

#define ID "spiffe://cluster.local/ns/ns1/sa/sleep"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct zt_tls_cred *own;
static char *own_key;

static void set_up(void)
{
    struct zt_test_cert *root = zt_test_root_named("root"), *leaf = zt_test_leaf(root, ID);
    own = zt_test_cred((const struct zt_test_cert *const[]){leaf}, 1, (const struct zt_test_cert *const[]){root}, 1, false);
    own_key = zt_test_key_pem(leaf);
    zt_test_cert_free(leaf);
    zt_test_cert_free(root);
}

static void read_sans(const X509 *cert)
{
    struct zt_tls_sans sans;
    char identity[ZT_IDENTITY_MAX];
    if (zt_tls_sans_open(&sans, cert) == ZT_OK)
        while (zt_tls_sans_next(&sans, identity))
            ZT_ASSERT(strlen(identity) < ZT_IDENTITY_MAX && zt_identity_parse(identity, strlen(identity), NULL));
    zt_tls_sans_close(&sans);
}

static void judge(X509 *cert)
{
    char expected[] = ID, *sans[] = {expected};
    STACK_OF(X509) *presented = sk_X509_new_null();
    sk_X509_push(presented, cert);
    sk_X509_push(presented, cert);
    for (int peer_is_client = 0; peer_is_client < 2; peer_is_client++) {
        struct zt_tls_verify v = {.cred = own, .peer_is_client = peer_is_client, .sans = sans, .n_sans = 1};
        /* Nobody has signed it with the anchor's key. */
        ZT_ASSERT(zt_tls_verify_peer(&v, cert, presented) != X509_V_OK);
        ZT_ASSERT(v.err.code != ZT_OK);
    }
    sk_X509_free(presented);
}

static void use_as_credential(X509 *cert)
{
    struct zt_tls_cred *cred;
    struct zt_error err;
    char *pem;
    BIO *bio = BIO_new(BIO_s_mem());
    if (PEM_write_bio_X509(bio, cert) == 1) {
        long n = BIO_get_mem_data(bio, &pem);
        char *text = zt_strndup(pem, (size_t)n);
        ZT_ASSERT(zt_tls_cred_new(text, own_key, text, ID, &(struct zt_tls_profile){.tls12 = true}, &cred, &err) != ZT_OK); /* not its key */
        zt_free(text);
    }
    BIO_free(bio);
    ERR_clear_error();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 1 << 20)
        return 0;
    if (!own)
        set_up();
    const unsigned char *at = data;
    X509 *cert = d2i_X509(NULL, &at, (long)size);
    if (cert) {
        read_sans(cert);
        judge(cert);
        use_as_credential(cert);
        X509_free(cert);
    }
    ERR_clear_error();
    return 0;
}
