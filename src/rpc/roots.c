/* Root certificates of the control plane (spec/controlplane §1.2).
 *
 * Invariant: what leaves here holds at least one certificate and only certificates that parse. The
 * library would stop at the first that does not, and an empty set must mean "trust nothing", not
 * "the default roots".
 *
 * A setting without a PEM header is a path, whether the file exists yet or not: it is tried again
 * with every connection (decision P1). */
#include "rpc_impl.h"

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PEM_HEADER "-----BEGIN "

/* The whole file, NUL-terminated. Returns owned; NULL with err set. */
static char *read_file(const char *path, struct zt_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        zt_error_set_errno(err, ZT_IO, errno, "cannot read root certificates %.200s", path);
        return NULL;
    }
    struct zt_str text;
    zt_str_init(&text, ZT_RPC_ROOTS_BYTES_MAX);
    char chunk[16384];
    ssize_t n;
    while ((n = read(fd, chunk, sizeof chunk)) > 0 && !text.overflow)
        zt_str_add_n(&text, chunk, (size_t)n);
    if (n < 0)
        zt_error_set_errno(err, ZT_IO, errno, "cannot read root certificates %.200s", path);
    else if (text.overflow)
        zt_error_set(err, ZT_IO, "root certificates %.200s: more than %u bytes", path,
                     ZT_RPC_ROOTS_BYTES_MAX);
    close(fd);
    if (n == 0 && !text.overflow) {
        zt_str_cstr(&text);
        return zt_str_take(&text);
    }
    zt_str_fini(&text);
    return NULL;
}

/* Adds one PEM block when it is a certificate that parses. */
static bool add_certificate(BIO *out, const char *name, const uint8_t *der, long len)
{
    X509 *cert = NULL;
    const uint8_t *p = der;
    if (strcmp(name, PEM_STRING_X509) == 0 || strcmp(name, PEM_STRING_X509_OLD) == 0)
        cert = d2i_X509(NULL, &p, len);
    else if (strcmp(name, PEM_STRING_X509_TRUSTED) == 0)
        cert = d2i_X509_AUX(NULL, &p, len);
    bool ok = cert && PEM_write_bio_X509(out, cert) == 1;
    X509_free(cert);
    return ok;
}

/* what: for messages. Returns owned; NULL with err set. */
static char *normalise(const char *pem, const char *what, struct zt_error *err)
{
    BIO *in = BIO_new_mem_buf(pem, -1), *out = BIO_new(BIO_s_mem());
    ZT_ASSERT(in && out);
    char *name, *header, *result = NULL;
    uint8_t *der;
    long len;
    unsigned n = 0;
    ERR_clear_error();
    while (PEM_read_bio(in, &name, &header, &der, &len) == 1) {
        n += add_certificate(out, name, der, len);
        OPENSSL_free(name);
        OPENSSL_free(header);
        OPENSSL_free(der);
        ERR_clear_error();
    }
    unsigned long reason = ERR_peek_last_error();
    bool at_end =
        ERR_GET_LIB(reason) == ERR_LIB_PEM && ERR_GET_REASON(reason) == PEM_R_NO_START_LINE;
    ERR_clear_error();
    if (!at_end) {
        zt_error_set(err, ZT_TLS, "root certificates %.200s: broken PEM", what);
    } else if (n == 0) {
        zt_error_set(err, ZT_TLS, "root certificates %.200s: no certificate found", what);
    } else {
        char *data;
        long size = BIO_get_mem_data(out, &data);
        result = zt_strndup(data, (size_t)size);
    }
    BIO_free(in);
    BIO_free(out);
    return result;
}

/* The file with the operating system's roots. Returns borrowed; NULL with err set. */
static const char *system_path(struct zt_error *err)
{
    const char *paths[] = {
        getenv(X509_get_default_cert_file_env()),
        "/etc/ssl/certs/ca-certificates.crt", /* Debian, Alpine, distroless */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, RHEL */
        "/etc/ssl/ca-bundle.pem",             /* SUSE */
        X509_get_default_cert_file(),
    };
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++)
        if (paths[i] && access(paths[i], R_OK) == 0)
            return paths[i];
    zt_error_set(err, ZT_IO, "this system has no root certificates");
    return NULL;
}

char *zt_rpc_roots_read(const char *setting, struct zt_error *err)
{
    if (strstr(setting, PEM_HEADER))
        return normalise(setting, "given as text", err);
    const char *path = strcmp(setting, "SYSTEM") == 0 ? system_path(err) : setting;
    char *text = path ? read_file(path, err) : NULL;
    char *result = text ? normalise(text, path, err) : NULL;
    zt_free(text);
    return result;
}
