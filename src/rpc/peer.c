/* Who the server must be (spec/controlplane §1.1, §1.2).
 *
 * The library verifies chain and validity against the roots. The name is checked here, on one of
 * the library's threads, right after the handshake: the address's host, and only if that fails the
 * alternative name. SNI and :authority never change. */
#include "rpc_impl.h"

#include "zt/base/addr.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

struct check {
    grpc_tls_certificate_verifier_external base;
    char *host, *alt; /* alt may be NULL */
    /* Taken by each thread that comes and goes; as zt_rpc_op.handed. */
    atomic_uint handed;
};

static void hand_over(struct check *c)
{
    atomic_load_explicit(&c->handed, memory_order_acquire);
    atomic_fetch_add_explicit(&c->handed, 1, memory_order_release);
}

static bool names(X509 *cert, const char *host)
{
    struct zt_ip ip;
    if (!host)
        return false;
    if (zt_ip_parse(host, &ip))
        return X509_check_ip_asc(cert, host, 0) == 1;
    size_t len = strlen(host);
    if (host[len - 1] == '.')
        len--;
    return X509_check_host(cert, host, len,
                           X509_CHECK_FLAG_NEVER_CHECK_SUBJECT |
                               X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS,
                           NULL) == 1;
}

/* Thread: the library's. Always answers at once. */
static int on_verify(void *user_data, grpc_tls_custom_verification_check_request *request,
                     grpc_tls_on_custom_verification_check_done_cb callback, void *callback_arg,
                     grpc_status_code *sync_status, char **sync_error_details)
{
    (void)callback, (void)callback_arg;
    struct check *c = user_data;
    hand_over(c);
    const char *pem = request->peer_info.peer_cert;
    BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    bool ok = cert && (names(cert, c->host) || names(cert, c->alt));
    X509_free(cert);
    BIO_free(bio);
    ERR_clear_error(); /* the library looks at this thread's queue after its own calls */
    *sync_status = ok ? GRPC_STATUS_OK : GRPC_STATUS_UNAUTHENTICATED;
    if (!ok) {
        char text[600];
        zt_fmt(text, sizeof text, "the server's certificate does not name %s%s%s", c->host,
               c->alt ? " or " : "", c->alt ? c->alt : "");
        *sync_error_details = gpr_strdup(text);
    }
    hand_over(c);
    return 1;
}

static void on_cancel(void *user_data, grpc_tls_custom_verification_check_request *request)
{
    (void)user_data, (void)request; /* nothing is ever on its way */
}

/* Thread: the library's. */
static void on_destruct(void *user_data)
{
    struct check *c = user_data;
    hand_over(c);
    zt_free(c->host);
    zt_free(c->alt);
    zt_free(c);
}

grpc_channel_credentials *zt_rpc_creds_new(const char *roots_pem, const char *host, const char *alt)
{
    struct check *c = zt_new(struct check);
    c->host = zt_strdup(host);
    c->alt = zt_strdup(alt);
    c->base.user_data = c;
    c->base.verify = on_verify;
    c->base.cancel = on_cancel;
    c->base.destruct = on_destruct;
    hand_over(c);
    grpc_tls_certificate_verifier *verifier =
        grpc_tls_certificate_verifier_external_create(&c->base);
    grpc_tls_certificate_provider *provider =
        grpc_tls_certificate_provider_static_data_create(roots_pem, NULL);
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();
    grpc_tls_credentials_options_set_certificate_provider(options, provider);
    grpc_tls_credentials_options_watch_root_certs(options);
    grpc_tls_credentials_options_set_verify_server_cert(options, 1);
    grpc_tls_credentials_options_set_certificate_verifier(options, verifier);
    /* The name was checked above; this would check again, against :authority alone. */
    grpc_tls_credentials_options_set_check_call_host(options, 0);
    grpc_channel_credentials *creds = grpc_tls_credentials_create(options);
    grpc_tls_certificate_verifier_release(verifier);
    grpc_tls_certificate_provider_release(provider);
    return creds;
}
