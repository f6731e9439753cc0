/* The CA client against a scripted istiod: what is asked, what comes back, and every way to fail
 * (spec/controlplane §6, §9.6), alone and under the secret manager. */
#include "zt/secrets/ca_istiod.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ca.pb-c.h"
#include "support/net_fixture.h"
#include "support/rpc_rig.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/secrets/ca_local.h"
#include "zt/secrets/csr.h"
#include "zt/secrets/secrets.h"
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ID "spiffe://cluster.local/ns/ns1/sa/sleep"
#define OTHER_ID "spiffe://cluster.local/ns/ns1/sa/other"
#define OPAQUE "request impersonation authentication failure"

/* ---- a scripted istiod ---- */

enum manner {
    SIGN,
    SIGN_AS_OTHER,
    EMPTY_CHAIN,
    ONE_ELEMENT,
    JUNK_LEAF,
    GARBAGE,
    MANY,
    REFUSE,
    BUSY,
    SILENT
};

static struct {
    _Atomic(enum manner) manner;
    atomic_uint n_asked;
    pthread_mutex_t lock;
    char identity[256]; /* of the last request: ImpersonatedIdentity, "" = none */
    int64_t ttl_s;
    struct zt_test_cert *root; /* issues */
    char *root_pem;
} istiod;

static struct rpc_rig rig;
static struct zt_ca *ca;

/* A leaf for identity over the public key of the request. Returns owned PEM. */
static char *issue(const char *csr_pem, const char *identity)
{
    BIO *bio = BIO_new_mem_buf(csr_pem, -1);
    X509_REQ *req = PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL);
    BIO_free(bio);
    if (!req)
        return NULL;
    struct zt_test_cert_opts opts = {.uri = identity};
    struct zt_test_cert *made = zt_test_issue(istiod.root, &opts);
    EVP_PKEY *key = X509_REQ_get_pubkey(req);
    ZT_ASSERT(X509_set_pubkey(made->cert, key) == 1 &&
              X509_sign(made->cert, istiod.root->key, EVP_sha256()) > 0);
    char *pem = zt_test_certs_pem((const struct zt_test_cert *const[]){made}, 1);
    zt_test_cert_free(made);
    EVP_PKEY_free(key);
    X509_REQ_free(req);
    return pem;
}

static void answer(struct grpc_server_call *c, char **chain, size_t n)
{
    Istio__V1__Auth__IstioCertificateResponse r = ISTIO__V1__AUTH__ISTIO_CERTIFICATE_RESPONSE__INIT;
    r.cert_chain = chain;
    r.n_cert_chain = n;
    size_t size = istio__v1__auth__istio_certificate_response__get_packed_size(&r);
    uint8_t *bytes = zt_zalloc(size + 1);
    istio__v1__auth__istio_certificate_response__pack(&r, bytes);
    grpc_server_call_send(c, bytes, size);
    grpc_server_call_end(c, ZT_RPC_OK, "");
    zt_free(bytes);
}

static void note(const Istio__V1__Auth__IstioCertificateRequest *r)
{
    pthread_mutex_lock(&istiod.lock);
    istiod.identity[0] = 0;
    istiod.ttl_s = r->validity_duration;
    for (size_t i = 0; r->metadata && i < r->metadata->n_fields; i++)
        if (strcmp(r->metadata->fields[i]->key, "ImpersonatedIdentity") == 0)
            zt_fmt(istiod.identity, sizeof istiod.identity, "%s",
                   r->metadata->fields[i]->value->string_value);
    pthread_mutex_unlock(&istiod.lock);
    atomic_fetch_add(&istiod.n_asked, 1);
}

static void answer_in_manner(struct grpc_server_call *c, enum manner manner, const char *csr_pem,
                             const char *identity)
{
    char *leaf = issue(csr_pem, manner == SIGN_AS_OTHER ? OTHER_ID : identity);
    char *chain[ZT_CA_ISTIOD_CHAIN_MAX + 1] = {leaf, istiod.root_pem};
    switch (manner) {
    case SIGN:
    case SIGN_AS_OTHER:
        if (leaf)
            answer(c, chain, 2);
        else
            grpc_server_call_end(c, ZT_RPC_INVALID_ARGUMENT, "CSR is not properly signed");
        break;
    case EMPTY_CHAIN:
        answer(c, NULL, 0);
        break;
    case ONE_ELEMENT:
        answer(c, chain, 1);
        break;
    case JUNK_LEAF:
        answer(c, (char *[]){(char[]){"no certificate"}, istiod.root_pem}, 2);
        break;
    case GARBAGE:
        grpc_server_call_send(c, "\x0a\xff\xff\xff\xff\x0f", 6);
        grpc_server_call_end(c, ZT_RPC_OK, "");
        break;
    case MANY:
        for (unsigned i = 0; i <= ZT_CA_ISTIOD_CHAIN_MAX; i++)
            chain[i] = istiod.root_pem;
        answer(c, chain, ZT_CA_ISTIOD_CHAIN_MAX + 1);
        break;
    case REFUSE:
        grpc_server_call_end(c, ZT_RPC_UNAUTHENTICATED, OPAQUE);
        break;
    case BUSY:
        grpc_server_call_end(c, ZT_RPC_UNAVAILABLE, "CA is not ready");
        break;
    case SILENT:
        break;
    }
    zt_free(leaf);
}

/* On the server's thread. */
static void on_request(void *arg, struct grpc_server_call *c, const void *bytes, size_t n)
{
    Istio__V1__Auth__IstioCertificateRequest *r =
        istio__v1__auth__istio_certificate_request__unpack(NULL, n, bytes);
    ZT_ASSERT(r);
    note(r);
    const char *identity = istiod.identity[0] ? istiod.identity : ID;
    answer_in_manner(c, atomic_load(&istiod.manner), r->csr, identity);
    istio__v1__auth__istio_certificate_request__free_unpacked(r, NULL);
}

static struct zt_ca *new_ca(bool impersonate, uint64_t timeout_ms,
                            const struct zt_rpc_channel_config *changed)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_rpc_channel *channel;
    struct zt_rpc_channel_config config = changed ? *changed : rpc_rig_config(&rig);
    config.fresh = false;
    config.receive_bytes_max = ZT_RPC_UNARY_RECEIVE_BYTES;
    if (zt_rpc_channel_new(rig.rpc, &config, &channel, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return zt_ca_istiod_new(&(struct zt_ca_istiod_config){.loop = rig.loop,
                                                          .channel = channel,
                                                          .impersonate = impersonate,
                                                          .timeout_ms = timeout_ms});
}

static int setup(void **state)
{
    /* Before the server's thread. */
    memset(istiod.identity, 0, sizeof istiod.identity);
    atomic_store(&istiod.manner, SIGN);
    atomic_store(&istiod.n_asked, 0);
    pthread_mutex_init(&istiod.lock, NULL);
    istiod.root = zt_test_root_named("istiod");
    istiod.root_pem = zt_test_certs_pem((const struct zt_test_cert *const[]){istiod.root}, 1);
    rpc_rig_init(&rig,
                 &(struct grpc_server_opts){.token = "token", .script = {.on_message = on_request}},
                 NULL);
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    config.token = "token";
    ca = new_ca(true, 3000, &config);
    return 0;
}

static int teardown(void **state)
{
    zt_ca_free(ca);
    rpc_rig_fini(&rig);
    zt_test_cert_free(istiod.root);
    zt_free(istiod.root_pem);
    pthread_mutex_destroy(&istiod.lock);
    return 0;
}

/* ---- one request ---- */

struct ask {
    struct zt_ca_request request;
    struct zt_csr csr;
    unsigned n_done;
    enum zt_err code;
    char error[1400];
    char *chain[8]; /* owned */
    unsigned n_chain;
};

static void on_done(struct zt_ca_request *r, const struct zt_ca_reply *reply)
{
    struct ask *a = zt_container_of(r, struct ask, request);
    a->n_done++;
    a->code = reply->code;
    zt_fmt(a->error, sizeof a->error, "%s", reply->error ? reply->error : "");
    for (unsigned i = 0; i < reply->n_chain && i < 8; i++)
        a->chain[a->n_chain++] = zt_strdup(reply->chain_pem[i]);
}

static bool is_done(void *arg)
{
    return ((struct ask *)arg)->n_done > 0;
}

static void ask_start(struct ask *a, struct zt_ca *of)
{
    *a = (struct ask){.request.done = on_done};
    assert_int_equal(zt_csr_init(&a->csr, ID, NULL), ZT_OK);
    zt_ca_sign(of, &a->request, ID, a->csr.pem, 86400);
    assert_int_equal(a->n_done, 0);
}

static void ask_wait(struct ask *a)
{
    assert_true(zt_test_run_until(rig.loop, is_done, a));
    assert_int_equal(a->n_done, 1);
}

static void ask_fini(struct ask *a)
{
    zt_csr_fini(&a->csr);
    for (unsigned i = 0; i < a->n_chain; i++)
        zt_free(a->chain[i]);
}

static void assert_error(struct zt_ca *of, const char *text)
{
    struct ask a;
    ask_start(&a, of);
    ask_wait(&a);
    assert_int_not_equal(a.code, ZT_OK);
    if (strncmp(a.error, text, strlen(text)) != 0)
        fail_msg("not %s but %s", text, a.error);
    ask_fini(&a);
}

static void ca_istiod_fetch_certificate(void **state)
{
    struct ask a;
    ask_start(&a, ca);
    ask_wait(&a);
    if (a.code != ZT_OK)
        fail_msg("%s", a.error);
    assert_int_equal(a.n_chain, 2);
    assert_string_equal(a.chain[1], istiod.root_pem);
    struct zt_tls_cred *cred;
    assert_int_equal(zt_tls_cred_new(a.chain[0], a.csr.key_pem, a.chain[1], ID, &(struct zt_tls_profile){0}, &cred, NULL),
                     ZT_OK);
    zt_tls_cred_unref(cred);
    ask_fini(&a);
}

static void ca_istiod_request_names_identity_and_lifetime(void **state)
{
    struct ask a;
    ask_start(&a, ca);
    ask_wait(&a);
    struct grpc_server_call *c = grpc_server_rig_call(rig.server, 0);
    assert_string_equal(grpc_server_call_method(c),
                        "/istio.v1.auth.IstioCertificateService/CreateCertificate");
    assert_string_equal(grpc_server_call_header(c, "authorization", NULL), "Bearer token");
    assert_string_equal(grpc_server_call_header(c, "clusterid", NULL), "Kubernetes");
    pthread_mutex_lock(&istiod.lock);
    assert_string_equal(istiod.identity, ID);
    assert_int_equal(istiod.ttl_s, 86400);
    pthread_mutex_unlock(&istiod.lock);
    ask_fini(&a);
}

static void ca_istiod_dedicated_mode_impersonates_nobody(void **state)
{
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    struct ask a;
    config.token = "token";
    zt_ca_free(ca);
    ca = new_ca(false, 0, &config);
    ask_start(&a, ca);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_OK);
    size_t n;
    const void *bytes = grpc_server_call_message(grpc_server_rig_call(rig.server, 0), 0, &n);
    Istio__V1__Auth__IstioCertificateRequest *r =
        istio__v1__auth__istio_certificate_request__unpack(NULL, n, bytes);
    assert_null(r->metadata);
    istio__v1__auth__istio_certificate_request__free_unpacked(r, NULL);
    ask_fini(&a);
}

static void ca_istiod_calls_share_a_connection(void **state)
{
    struct ask a[20];
    for (unsigned i = 0; i < 20; i++)
        ask_start(&a[i], ca);
    for (unsigned i = 0; i < 20; i++) {
        if (!a[i].n_done)
            ask_wait(&a[i]);
        assert_int_equal(a[i].code, ZT_OK);
        assert_string_equal(grpc_server_call_peer(grpc_server_rig_call(rig.server, i)),
                            grpc_server_call_peer(grpc_server_rig_call(rig.server, 0)));
        ask_fini(&a[i]);
    }
}

/* ---- failures ---- */

static void ca_istiod_refusal_has_the_reference_text(void **state)
{
    atomic_store(&istiod.manner, REFUSE);
    assert_error(ca, "signing gRPC error (The request does not have valid authentication "
                     "credentials): " OPAQUE);
    atomic_store(&istiod.manner, BUSY);
    assert_error(ca, "signing gRPC error (The service is currently unavailable): CA is not ready");
}

static void ca_istiod_that_is_away_is_an_error_and_its_return_is_noticed(void **state)
{
    struct ask a;
    rpc_rig_stop(&rig);
    assert_error(ca, "signing gRPC error (The service is currently unavailable): ");
    rpc_rig_restart(&rig);
    ask_start(&a, ca);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_OK);
    ask_fini(&a);
}

static void ca_istiod_that_never_answers_is_ended(void **state)
{
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    config.token = "token";
    zt_ca_free(ca);
    ca = new_ca(true, 1000, &config); /* enough for the second call under a sanitizer */
    atomic_store(&istiod.manner, SILENT);
    struct ask a;
    ask_start(&a, ca);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_TIMEOUT);
    assert_non_null(
        strstr(a.error, "signing gRPC error (Deadline expired before operation could complete)"));
    ask_fini(&a);
    atomic_store(&istiod.manner, SIGN);
    ask_start(&a, ca);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_OK);
    ask_fini(&a);
}

static void ca_istiod_garbage_is_an_error(void **state)
{
    atomic_store(&istiod.manner, GARBAGE);
    assert_error(ca, "signing error: the CA's answer does not decode");
    atomic_store(&istiod.manner, MANY);
    assert_error(ca, "signing error: the CA's answer has too many certificates");
}

static void ca_istiod_expired_token_is_replaced_by_the_next_read(void **state)
{
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    config.token = rpc_rig_write(&rig, "token", "old");
    struct zt_ca *of = new_ca(true, 0, &config);
    assert_error(of, "signing gRPC error (The request does not have valid authentication "
                     "credentials): authentication failure");
    rpc_rig_write(&rig, "token", "");
    assert_error(of, "signing gRPC error (Unknown error): token file exists, but was empty");
    rpc_rig_write(&rig, "token", "token\n");
    struct ask a;
    ask_start(&a, of);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_OK);
    ask_fini(&a);
    zt_ca_free(of);
}

static void ca_istiod_missing_root_is_an_error_until_it_is_there(void **state)
{
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    char path[200];
    zt_fmt(path, sizeof path, "%s/root.pem", rig.dir);
    config.token = "token";
    config.root_ca = path;
    struct zt_ca *of = new_ca(true, 0, &config);
    assert_error(of, "signing gRPC error (Unknown error): cannot read root certificates");
    rpc_rig_write(&rig, "root.pem", rig.root_pem);
    struct ask a;
    ask_start(&a, of);
    ask_wait(&a);
    assert_int_equal(a.code, ZT_OK);
    ask_fini(&a);
    zt_ca_free(of);
}

static void ca_istiod_cancelled_calls_do_not_answer(void **state)
{
    struct ask sent, failed;
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    config.root_ca = "no-such-file";
    struct zt_ca *of = new_ca(true, 0, &config);
    atomic_store(&istiod.manner, SILENT);
    ask_start(&sent, ca);
    rpc_rig_wait_received(&rig, rpc_rig_wait_call(&rig, 1), 1);
    ask_start(&failed, of);
    zt_ca_cancel(ca, &sent.request);
    zt_ca_cancel(of, &failed.request);
    rpc_rig_wait_closed(&rig, grpc_server_rig_call(rig.server, 0));
    zt_test_run_for_ms(rig.loop, 50);
    assert_int_equal(sent.n_done, 0);
    assert_int_equal(failed.n_done, 0);
    ask_fini(&sent);
    ask_fini(&failed);
    zt_ca_free(of);
}

/* ---- under the secret manager ---- */

static struct {
    struct zt_secrets *secrets;
    unsigned n_answers;
    struct zt_tls_cred *cred;
    char error[ZT_ERROR_TEXT_MAX];
} manager;

static void on_cred(void *owner, struct zt_tls_cred *cred, const struct zt_error *err)
{
    manager.n_answers++;
    zt_tls_cred_unref(manager.cred);
    manager.cred = cred;
    zt_fmt(manager.error, sizeof manager.error, "%s", err ? err->text : "");
}

static bool has_answers(void *arg)
{
    return manager.n_answers >= *(unsigned *)arg;
}

static void manager_start(uint64_t call_timeout_ms)
{
    memset(&manager, 0, sizeof manager);
    manager.secrets = zt_secrets_new(&(struct zt_secrets_config){
        .loop = rig.loop, .ca = ca, .ttl_s = 86400, .call_timeout_ms = call_timeout_ms});
}

/* Asks for n identities "...sa/0" upwards, or for ID when n is 1; waits for all answers. */
static void manager_fetch(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        char id[128];
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_tls_cred *cred = NULL;
        struct zt_secret_request *request;
        zt_fmt(id, sizeof id, "spiffe://cluster.local/ns/ns1/sa/%u", i);
        assert_int_equal(zt_secrets_get(manager.secrets, n == 1 ? ID : id, ZT_SECRET_REALTIME,
                                        rig.loop, on_cred, &manager, &request, &cred, &err),
                         ZT_AGAIN);
    }
    assert_true(zt_test_run_until(rig.loop, has_answers, &n));
}

static void manager_stop(void)
{
    zt_tls_cred_unref(manager.cred);
    zt_secrets_free(manager.secrets);
}

static void assert_manager_error(enum manner manner, const char *text)
{
    atomic_store(&istiod.manner, manner);
    manager_start(0);
    manager_fetch(1);
    assert_null(manager.cred);
    if (!strstr(manager.error, text))
        fail_msg("not %s but %s", text, manager.error);
    manager_stop();
}

static void ca_istiod_manager_empty_chain(void **state)
{
    assert_manager_error(EMPTY_CHAIN, "chain returned from CA is empty for: " ID);
}

static void ca_istiod_manager_wrong_identity(void **state)
{
    assert_manager_error(SIGN_AS_OTHER, "did not find expected SAN: " ID);
}

static void ca_istiod_manager_chain_without_root(void **state)
{
    assert_manager_error(ONE_ELEMENT, "failed to create CSR: ");
}

static void ca_istiod_manager_leaf_that_is_none(void **state)
{
    assert_manager_error(JUNK_LEAF, "failed to create CSR: ");
}

static void ca_istiod_manager_rpc_error(void **state)
{
    assert_manager_error(REFUSE, "signing gRPC error (The request does not have valid "
                                 "authentication credentials): " OPAQUE);
}

/* The CA's own limit comes first, so that the error says what gRPC says. */
static void ca_istiod_manager_silent_ca_stops_nobody(void **state)
{
    struct zt_rpc_channel_config config = rpc_rig_config(&rig);
    config.token = "token";
    zt_ca_free(ca);
    ca = new_ca(true, 200, &config);
    assert_manager_error(SILENT, "signing gRPC error (Deadline expired");
}

static void ca_istiod_manager_many_identities_each_once(void **state)
{
    enum { N = 50 };
    manager_start(0);
    manager_fetch(N);
    assert_non_null(manager.cred);
    struct zt_secrets_stats stats;
    zt_secrets_stats(manager.secrets, &stats);
    assert_int_equal(stats.n_available, N);
    assert_int_equal(stats.n_csrs_failed, 0);
    assert_int_equal(atomic_load(&istiod.n_asked), N);
    manager_stop();
}

/* Calls in flight when the manager goes. */
static void ca_istiod_manager_ends_with_calls_on_their_way(void **state)
{
    atomic_store(&istiod.manner, SILENT);
    manager_start(0);
    zt_secrets_prefetch(manager.secrets, ID);
    zt_secrets_prefetch(manager.secrets, OTHER_ID);
    rpc_rig_wait_call(&rig, 2);
    manager_stop();
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(ca_istiod_fetch_certificate),
        CASE(ca_istiod_request_names_identity_and_lifetime),
        CASE(ca_istiod_dedicated_mode_impersonates_nobody),
        CASE(ca_istiod_calls_share_a_connection),
        CASE(ca_istiod_refusal_has_the_reference_text),
        CASE(ca_istiod_that_is_away_is_an_error_and_its_return_is_noticed),
        CASE(ca_istiod_that_never_answers_is_ended),
        CASE(ca_istiod_garbage_is_an_error),
        CASE(ca_istiod_expired_token_is_replaced_by_the_next_read),
        CASE(ca_istiod_missing_root_is_an_error_until_it_is_there),
        CASE(ca_istiod_cancelled_calls_do_not_answer),
        CASE(ca_istiod_manager_empty_chain),
        CASE(ca_istiod_manager_wrong_identity),
        CASE(ca_istiod_manager_chain_without_root),
        CASE(ca_istiod_manager_leaf_that_is_none),
        CASE(ca_istiod_manager_rpc_error),
        CASE(ca_istiod_manager_silent_ca_stops_nobody),
        CASE(ca_istiod_manager_many_identities_each_once),
        CASE(ca_istiod_manager_ends_with_calls_on_their_way),
    };
    return cmocka_run_group_tests_name("ca_istiod", tests, NULL, NULL);
}
