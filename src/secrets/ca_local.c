/* The local CA: signs on the control loop (P-256: tens of microseconds), answers at the end of the
 * turn. Invariant: every call on its way is on `calls` and owns its reply, so that cancel and free
 * find it. */
#include "zt/secrets/ca_local.h"

#include "ca_root.h"
#include "x509_impl.h"
#include "zt/base/identity.h"
#include "zt/base/mem.h"
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>

#define CSR_BYTES_MAX 65536

struct ca_local {
    struct zt_ca ca;
    struct zt_loop *loop;
    struct zt_ca_root root;
    struct zt_link calls;
};

struct call {
    struct zt_link calls_link;
    struct zt_task task;
    struct zt_ca_request *request;
    char *leaf_pem; /* owned; NULL: error says why */
    struct zt_error error;
    struct ca_local *ca;
};

static void free_call(struct call *c)
{
    zt_task_cancel(&c->task);
    zt_list_remove(&c->calls_link);
    zt_free(c->leaf_pem);
    zt_free(c);
}

static void on_answer(struct zt_task *task)
{
    struct call *c = zt_container_of(task, struct call, task);
    const char *chain[] = {c->leaf_pem, c->ca->root.cert_pem};
    struct zt_ca_reply reply = {.code = ZT_OK, .chain_pem = chain, .n_chain = 2};
    if (!c->leaf_pem)
        reply = (struct zt_ca_reply){.code = ZT_TLS, .error = c->error.text};
    struct zt_ca_request *request = c->request;
    request->pending = NULL;
    zt_list_remove(&c->calls_link);
    request->done(request, &reply);
    free_call(c);
}

/* The public key of a request whose self-signature holds. Returns owned; NULL with err set. */
static EVP_PKEY *read_csr(const char *pem, struct zt_error *err)
{
    size_t len = strnlen(pem, CSR_BYTES_MAX + 1);
    BIO *bio = len <= CSR_BYTES_MAX ? BIO_new_mem_buf(pem, (int)len) : NULL;
    X509_REQ *req = bio ? PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL) : NULL;
    EVP_PKEY *key = req ? X509_REQ_get_pubkey(req) : NULL;
    if (key && X509_REQ_verify(req, key) != 1) {
        EVP_PKEY_free(key);
        key = NULL;
    }
    if (!key)
        zt_x509_error(err, ZT_TLS, "signing error: bad certificate request");
    X509_REQ_free(req);
    BIO_free(bio);
    return key;
}

static bool add_san(X509 *cert, const char *identity)
{
    X509_EXTENSION *san = zt_x509_uri_san(identity);
    bool ok = san && X509_add_ext(cert, san, -1) == 1;
    X509_EXTENSION_free(san);
    return ok;
}

/* A leaf for identity over key. The names of the request do not count: who asks here has been asked
 * already. Returns owned PEM; NULL with err set. */
static char *sign_leaf(struct ca_local *ca, const char *identity, EVP_PKEY *key, uint64_t ttl_s,
                       struct zt_error *err)
{
    X509 *cert = X509_new(), *root = ca->root.cert;
    char *pem = NULL;
    bool ok = cert && X509_set_version(cert, X509_VERSION_3) == 1 &&
              X509_set_issuer_name(cert, X509_get_subject_name(root)) == 1 &&
              X509_set_pubkey(cert, key) == 1 &&
              zt_ca_stamp(cert, ZT_CA_LOCAL_BACKDATE_S, (int64_t)ttl_s) &&
              zt_ca_add_extension(cert, root, NID_basic_constraints, "critical,CA:FALSE") &&
              zt_ca_add_extension(cert, root, NID_key_usage, "critical,digitalSignature") &&
              zt_ca_add_extension(cert, root, NID_ext_key_usage, "serverAuth,clientAuth") &&
              zt_ca_add_extension(cert, root, NID_authority_key_identifier, "keyid") &&
              add_san(cert, identity) && X509_sign(cert, ca->root.key, EVP_sha256()) > 0;
    if (ok)
        pem = zt_x509_cert_pem(cert);
    else
        zt_x509_error(err, ZT_TLS, "signing error");
    X509_free(cert);
    return pem;
}

static void sign(struct zt_ca *base, struct zt_ca_request *r, const char *identity,
                 const char *csr_pem, uint64_t ttl_s)
{
    struct ca_local *ca = zt_container_of(base, struct ca_local, ca);
    zt_loop_assert_owner(ca->loop);
    struct call *c = zt_new(struct call);
    c->ca = ca;
    c->request = r;
    c->task.run = on_answer;
    r->pending = c;
    zt_list_push_back(&ca->calls, &c->calls_link);
    ERR_clear_error();
    if (!zt_identity_parse(identity, strlen(identity), NULL)) {
        zt_error_set(&c->error, ZT_IDENTITY, "signing error: no SPIFFE identity: %s", identity);
    } else if (ttl_s == 0 || ttl_s > ZT_CA_LOCAL_TTL_MAX_S) {
        zt_error_set(&c->error, ZT_INVALID,
                     "signing error: lifetime of %llu s is not between 1 s and 90 days",
                     (unsigned long long)ttl_s);
    } else {
        EVP_PKEY *key = read_csr(csr_pem, &c->error);
        if (key)
            c->leaf_pem = sign_leaf(ca, identity, key, ttl_s, &c->error);
        EVP_PKEY_free(key);
    }
    zt_loop_soon(ca->loop, &c->task);
}

static void cancel(struct zt_ca *base, struct zt_ca_request *r)
{
    (void)base;
    ZT_ASSERT(r->pending);
    free_call(r->pending);
    r->pending = NULL;
}

static void free_ca(struct zt_ca *base)
{
    struct ca_local *ca = zt_container_of(base, struct ca_local, ca);
    ZT_ASSERT(zt_list_empty(&ca->calls));
    zt_ca_root_fini(&ca->root);
    zt_free(ca);
}

static const struct zt_ca_ops ops = {.sign = sign, .cancel = cancel, .free = free_ca};

enum zt_err zt_ca_local_open(struct zt_loop *control, const char *dir, struct zt_ca **out,
                             struct zt_error *err)
{
    struct zt_error local = ZT_ERROR_INIT;
    struct ca_local *ca = zt_new(struct ca_local);
    ca->ca.ops = &ops;
    ca->loop = control;
    zt_list_init(&ca->calls);
    enum zt_err e = zt_ca_root_open(&ca->root, dir, err ? err : &local);
    if (e != ZT_OK) {
        zt_free(ca);
        return e;
    }
    *out = &ca->ca;
    return ZT_OK;
}
