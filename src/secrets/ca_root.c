/* The root of the local CA on disk: one file with key and certificate.
 *
 * Atomic creation: the file is written whole under a name of its own, synced, and then linked to
 * root.pem. link() fails when that name exists, so of any number of daemons exactly one wins and
 * all others read the winner's file. Nobody ever sees a half-written root, and a crash leaves at
 * most a stray temporary file. */
#include "ca_root.h"

#include "x509_impl.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/secrets/ca_local.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOT_FILE "root.pem"
#define CERT_FILE "root-cert.pem"
#define ROOT_BYTES_MAX 65536
#define HEX_BYTES 16 /* random bytes in a temporary name */

void zt_ca_root_fini(struct zt_ca_root *r)
{
    EVP_PKEY_free(r->key);
    X509_free(r->cert);
    zt_free(r->cert_pem);
    *r = (struct zt_ca_root){0};
}

/* ---- certificate -------------------------------------------------------------------------------
 */

bool zt_ca_stamp(X509 *cert, int64_t back_s, int64_t ahead_s)
{
    unsigned char bytes[16];
    time_t now = (time_t)(zt_clock_wall_us() / 1000000);
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return false;
    bytes[0] = (bytes[0] & 0x7f) | 0x40; /* positive, always 16 bytes */
    BIGNUM *serial = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool ok = serial && BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(cert)) &&
              ASN1_TIME_set(X509_getm_notBefore(cert), now - (time_t)back_s) &&
              ASN1_TIME_set(X509_getm_notAfter(cert), now + (time_t)ahead_s);
    BN_free(serial);
    return ok;
}

bool zt_ca_add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = ext && X509_add_ext(cert, ext, -1) == 1;
    X509_EXTENSION_free(ext);
    return ok;
}

static bool fill_root(X509 *cert, EVP_PKEY *key)
{
    X509_NAME *name = X509_NAME_new();
    bool ok = name &&
              X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC,
                                         (const unsigned char *)"ztunneld local CA (insecure)", -1,
                                         -1, 0) == 1 &&
              X509_set_version(cert, X509_VERSION_3) == 1 &&
              X509_set_subject_name(cert, name) == 1 && X509_set_issuer_name(cert, name) == 1 &&
              X509_set_pubkey(cert, key) == 1 &&
              zt_ca_stamp(cert, ZT_CA_LOCAL_BACKDATE_S, (int64_t)ZT_CA_LOCAL_ROOT_DAYS * 86400) &&
              zt_ca_add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE") &&
              zt_ca_add_extension(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
              zt_ca_add_extension(cert, cert, NID_subject_key_identifier, "hash") &&
              X509_sign(cert, key, EVP_sha256()) > 0;
    X509_NAME_free(name);
    return ok;
}

/* Key and certificate of a new root as one text. Returns owned (of zt_wipe_free); NULL with err
 * set. */
static char *make_root_text(struct zt_error *err)
{
    ERR_clear_error();
    EVP_PKEY *key = zt_x509_new_key();
    X509 *cert = X509_new();
    char *text = NULL;
    if (key && cert && fill_root(cert, key)) {
        char *key_pem = zt_x509_key_pem(key), *cert_pem = zt_x509_cert_pem(cert);
        size_t size = strlen(key_pem) + strlen(cert_pem) + 1;
        text = zt_zalloc(size);
        zt_fmt(text, size, "%s%s", key_pem, cert_pem);
        zt_wipe_free(key_pem, strlen(key_pem));
        zt_free(cert_pem);
    } else {
        zt_x509_error(err, ZT_TLS, "local CA: cannot make a root");
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    return text;
}

/* ---- files -------------------------------------------------------------------------------------
 */

/* Makes the directory when absent. Returns a descriptor, or -1 with err set. */
static int open_dir(const char *dir, struct zt_error *err)
{
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        zt_error_set_errno(
            err, ZT_IO, errno,
            "local CA: cannot create directory %s (create its parent, or set LOCAL_CA_PATH)", dir);
        return -1;
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        zt_error_set_errno(err, ZT_IO, errno, "local CA: cannot open directory %s", dir);
    } else if (st.st_uid != geteuid() && st.st_uid != 0) {
        zt_error_set(
            err, ZT_INVALID,
            "local CA: directory %s belongs to user %u; use one of your own (LOCAL_CA_PATH)", dir,
            (unsigned)st.st_uid);
    } else if (st.st_mode & 022) {
        zt_error_set(err, ZT_INVALID,
                     "local CA: others may write to directory %s; chmod 700 it, or use another",
                     dir);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool write_whole(int fd, const char *text, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, text, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        text += done;
        n -= (size_t)done;
    }
    return fsync(fd) == 0;
}

/* Writes text under a new name in dir. tmp_name gets the name. */
static enum zt_err write_tmp(int dir_fd, const char *dir, const char *text,
                             char tmp_name[static 64], struct zt_error *err)
{
    unsigned char bytes[HEX_BYTES];
    ZT_ASSERT(RAND_bytes(bytes, sizeof bytes) == 1);
    zt_fmt(tmp_name, 64, ".tmp-");
    for (unsigned i = 0; i < HEX_BYTES; i++)
        zt_fmt(tmp_name + 5 + 2 * i, 3, "%02x", bytes[i]);
    int fd = openat(dir_fd, tmp_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "local CA: cannot write to directory %s", dir);
    bool ok = write_whole(fd, text, strlen(text));
    int why = errno;
    close(fd);
    if (ok)
        return ZT_OK;
    unlinkat(dir_fd, tmp_name, 0);
    return zt_error_set_errno(err, ZT_IO, why, "local CA: cannot write to directory %s", dir);
}

/* Makes root.pem unless somebody else was first; either way there is one afterwards. */
static enum zt_err create_root(int dir_fd, const char *dir, struct zt_error *err)
{
    char tmp[64];
    char *text = make_root_text(err);
    if (!text)
        return ZT_TLS;
    enum zt_err e = write_tmp(dir_fd, dir, text, tmp, err);
    zt_wipe_free(text, strlen(text));
    if (e != ZT_OK)
        return e;
    int rc = linkat(dir_fd, tmp, dir_fd, ROOT_FILE, 0), why = errno;
    unlinkat(dir_fd, tmp, 0);
    if (rc != 0 && why != EEXIST)
        return zt_error_set_errno(err, ZT_IO, why, "local CA: cannot create %s/%s", dir, ROOT_FILE);
    fsync(dir_fd); /* the name survives a crash */
    return ZT_OK;
}

/* Reads root.pem into text (ROOT_BYTES_MAX + 1). ZT_NOT_FOUND when there is none. */
static enum zt_err read_root(int dir_fd, const char *dir, char *text, struct zt_error *err)
{
    int fd = openat(dir_fd, ROOT_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return ZT_NOT_FOUND;
    struct stat st;
    enum zt_err e = ZT_OK;
    if (fd < 0 || fstat(fd, &st) != 0)
        e = zt_error_set_errno(err, ZT_IO, errno, "local CA: cannot read %s/%s", dir, ROOT_FILE);
    else if (!S_ISREG(st.st_mode) || st.st_size > ROOT_BYTES_MAX)
        e = zt_error_set(err, ZT_INVALID,
                         "local CA: %s/%s is no PEM file; remove it, a new root will be made", dir,
                         ROOT_FILE);
    else if ((st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & 077))
        e = zt_error_set(err, ZT_INVALID,
                         "local CA: %s/%s holds a private key that others may read or that is not "
                         "yours; chown and chmod 600 it",
                         dir, ROOT_FILE);
    size_t len = 0;
    while (e == ZT_OK && len < ROOT_BYTES_MAX) {
        ssize_t n = read(fd, text + len, ROOT_BYTES_MAX - len);
        if (n < 0 && errno != EINTR)
            e = zt_error_set_errno(err, ZT_IO, errno, "local CA: cannot read %s/%s", dir,
                                   ROOT_FILE);
        if (n == 0)
            break;
        len += n > 0 ? (size_t)n : 0;
    }
    text[len] = '\0';
    if (fd >= 0)
        close(fd);
    return e;
}

static int no_passphrase(char *buf, int size, int writing, void *arg)
{
    return -1; /* without this OpenSSL would ask the terminal */
}

/* Is what was read usable? Returns NULL, or what is wrong. */
static const char *parse_root(struct zt_ca_root *out, const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    ZT_ASSERT(bio);
    out->key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    bio = BIO_new_mem_buf(text, -1);
    ZT_ASSERT(bio);
    out->cert = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    ERR_clear_error();
    char group[32] = "";
    if (!out->key)
        return "has no readable private key";
    EVP_PKEY_get_group_name(out->key, group, sizeof group, NULL);
    if (strcmp(group, "prime256v1") != 0)
        return "has a key that is not P-256";
    if (!out->cert)
        return "has no readable certificate";
    if (X509_check_private_key(out->cert, out->key) != 1) {
        ERR_clear_error();
        return "has a key and a certificate that do not belong together";
    }
    if (X509_check_ca(out->cert) != 1)
        return "has a certificate that is not a CA's";
    time_t now = (time_t)(zt_clock_wall_us() / 1000000);
    if (X509_cmp_time(X509_get0_notAfter(out->cert), &now) < 0)
        return "has expired";
    out->cert_pem = zt_x509_cert_pem(out->cert);
    return NULL;
}

/* For other programs; every daemon writes the same bytes, so it does not matter who is last. */
static enum zt_err publish_cert(int dir_fd, const char *dir, const char *cert_pem,
                                struct zt_error *err)
{
    char tmp[64];
    enum zt_err e = write_tmp(dir_fd, dir, cert_pem, tmp, err);
    if (e == ZT_OK && renameat(dir_fd, tmp, dir_fd, CERT_FILE) != 0) {
        e = zt_error_set_errno(err, ZT_IO, errno, "local CA: cannot write %s/%s", dir, CERT_FILE);
        unlinkat(dir_fd, tmp, 0);
    }
    return e;
}

enum zt_err zt_ca_root_open(struct zt_ca_root *out, const char *dir, struct zt_error *err)
{
    *out = (struct zt_ca_root){0};
    int dir_fd = open_dir(dir, err);
    if (dir_fd < 0)
        return err ? err->code : ZT_IO;
    char *text = zt_zalloc(ROOT_BYTES_MAX + 1);
    enum zt_err e = read_root(dir_fd, dir, text, err);
    if (e == ZT_NOT_FOUND) {
        e = create_root(dir_fd, dir, err);
        if (e == ZT_OK && (e = read_root(dir_fd, dir, text, err)) == ZT_NOT_FOUND)
            zt_error_set(err, e, "local CA: %s/%s was removed while it was being made; start again",
                         dir, ROOT_FILE);
    }
    const char *wrong = e == ZT_OK ? parse_root(out, text) : NULL;
    if (wrong)
        e = zt_error_set(err, ZT_INVALID,
                         "local CA: %s/%s %s; put a P-256 key and its CA certificate there, or "
                         "remove it and a new root will be made",
                         dir, ROOT_FILE, wrong);
    if (e == ZT_OK)
        e = publish_cert(dir_fd, dir, out->cert_pem, err);
    zt_wipe_free(text, ROOT_BYTES_MAX + 1);
    close(dir_fd);
    if (e != ZT_OK)
        zt_ca_root_fini(out);
    return e;
}
