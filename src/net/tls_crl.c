/* The set of revocation lists, and verified paths held against it.
 *
 * Invariants:
 * - A set never changes after its publication, except that each list remembers the last issuer whose signature on it was verified: that
 *   is a public key operation, and nearly always the same one.
 * - A path remembers the generation of the set that found nothing wrong with it, so that asking again is one comparison.
 * - The lock guards the pointer to the set and those memories; nothing is parsed or verified under it.
 *
 * Lists of a kind that the reference does not understand (version 1, no nextUpdate, delta, indirect, some reasons only, unknown critical
 * extensions) are errors of the file. */
#include "zt/net/tls_crl.h"
#include "net/tls_impl.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEM_START "-----BEGIN"

struct list {
    X509_CRL *crl;
    ISSUING_DIST_POINT *scope; /* NULL: everything of its issuer */
    X509 *signer;              /* whose signature was found right; guarded by the lock */
};

struct crl_set {
    atomic_uint refs;
    uint64_t generation;
    unsigned n;
    struct list *lists;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct crl_set *current; /* NULL: none */
static _Atomic uint64_t generation; /* of current; moves with every publication */

static void set_unref(struct crl_set *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < s->n; i++) {
        X509_CRL_free(s->lists[i].crl);
        ISSUING_DIST_POINT_free(s->lists[i].scope);
        X509_free(s->lists[i].signer);
    }
    zt_free(s->lists);
    zt_free(s);
}

static struct crl_set *set_get(void)
{
    pthread_mutex_lock(&lock);
    struct crl_set *s = current;
    if (s)
        atomic_fetch_add(&s->refs, 1);
    pthread_mutex_unlock(&lock);
    return s;
}

/* Takes s. */
static void publish(struct crl_set *s)
{
    pthread_mutex_lock(&lock);
    struct crl_set *old = current;
    uint64_t next = atomic_load(&generation) + 1;
    if (s)
        s->generation = next;
    current = s;
    atomic_store(&generation, next);
    pthread_mutex_unlock(&lock);
    set_unref(old);
}

void zt_tls_crl_clear(void)
{
    publish(NULL);
}

/* ---- reading ------------------------------------------------------------------------------------ */

static const char *unsupported(X509_CRL *crl, const ISSUING_DIST_POINT *scope)
{
    const STACK_OF(X509_EXTENSION) *extensions = X509_CRL_get0_extensions(crl);
    if (X509_CRL_get_version(crl) != X509_CRL_VERSION_2)
        return "not a version 2 list";
    if (!X509_CRL_get0_nextUpdate(crl))
        return "no nextUpdate";
    if (sk_X509_EXTENSION_num(extensions) <= 0)
        return "no extensions";
    if (X509_CRL_get_ext_by_NID(crl, NID_delta_crl, -1) >= 0)
        return "a delta list";
    if (scope && (scope->indirectCRL > 0 || scope->onlyattr > 0 || scope->onlysomereasons))
        return "an indirect or partial list";
    for (int i = 0; i < sk_X509_EXTENSION_num(extensions); i++) {
        X509_EXTENSION *e = sk_X509_EXTENSION_value(extensions, i);
        int nid = OBJ_obj2nid(X509_EXTENSION_get_object(e));
        if (X509_EXTENSION_get_critical(e) && nid != NID_issuing_distribution_point && nid != NID_crl_number &&
            nid != NID_authority_key_identifier)
            return "an unknown critical extension";
    }
    return NULL;
}

/* OpenSSL sorts a list when it is first asked. A long one takes a while, and who asks is in a handshake on a worker. */
static void sort_entries(X509_CRL *crl)
{
    X509_REVOKED *none;
    ASN1_INTEGER *any = ASN1_INTEGER_new();
    ZT_ASSERT(any);
    X509_CRL_get0_by_serial(crl, &none, any);
    ASN1_INTEGER_free(any);
}

/* Takes crl. */
static enum zt_err set_add(struct crl_set *s, X509_CRL *crl, struct zt_error *err)
{
    int why;
    ISSUING_DIST_POINT *scope = X509_CRL_get_ext_d2i(crl, NID_issuing_distribution_point, &why, NULL);
    const char *text = !scope && why != -1 ? "an issuing distribution point that does not decode" : unsupported(crl, scope);

    if (!text)
        sort_entries(crl);
    s->lists = zt_realloc(s->lists, (s->n + 1) * sizeof(*s->lists));
    s->lists[s->n++] = (struct list){crl, scope, NULL};
    return text ? zt_error_set(err, ZT_INVALID, "list %u: %s", s->n, text) : ZT_OK;
}

static enum zt_err parse_pem(struct crl_set *s, BIO *bio, struct zt_error *err)
{
    X509_CRL *crl;
    enum zt_err e = ZT_OK;
    while (!e && (crl = PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL)))
        e = set_add(s, crl, err);
    if (!e && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
        e = zt_error_set(err, ZT_INVALID, "list %u: does not decode", s->n + 1);
    return e;
}

static enum zt_err parse(struct crl_set *s, const uint8_t *data, size_t len, struct zt_error *err)
{
    const unsigned char *at = data;
    enum zt_err e = ZT_OK;
    ERR_clear_error();
    if (len >= strlen(PEM_START) && memcmp(data, PEM_START, strlen(PEM_START)) == 0) {
        BIO *bio = BIO_new_mem_buf(data, (int)len);
        ZT_ASSERT(bio);
        e = parse_pem(s, bio, err);
        BIO_free(bio);
    } else if (len > 0) {
        X509_CRL *crl = d2i_X509_CRL(NULL, &at, (long)len);
        if (crl)
            e = set_add(s, crl, err);
        if (!e && (!crl || at != data + len))
            e = zt_error_set(err, ZT_INVALID, "neither PEM nor one list in DER");
    }
    ERR_clear_error();
    return e;
}

/* Returns owned in *out. */
static enum zt_err read_file(const char *path, uint8_t **out, size_t *len, struct zt_error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return zt_error_set_errno(err, errno == ENOENT ? ZT_NOT_FOUND : ZT_IO, errno, "%s", path);
    enum zt_err e = ZT_OK;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        e = zt_error_set(err, ZT_IO, "%s: not a file", path);
    else if (st.st_size > ZT_TLS_CRL_BYTES_MAX)
        e = zt_error_set(err, ZT_INVALID, "%s: more than %d bytes", path, ZT_TLS_CRL_BYTES_MAX);
    if (!e) {
        size_t size = (size_t)st.st_size + 1, n = 0;
        ssize_t got = 0;
        *out = zt_zalloc(size);
        while (n < size && (got = read(fd, *out + n, size - n)) > 0)
            n += (size_t)got;
        *len = n;
        if (got < 0)
            e = zt_error_set_errno(err, ZT_IO, errno, "%s", path);
        else if (n == size)
            e = zt_error_set(err, ZT_INVALID, "%s: is still being written", path);
    }
    close(fd);
    return e;
}

enum zt_err zt_tls_crl_load(const char *path, unsigned *n_lists, struct zt_error *err)
{
    uint8_t *data = NULL;
    size_t len = 0;
    enum zt_err e = read_file(path, &data, &len, err);
    if (!e) {
        struct crl_set *s = zt_new(struct crl_set);
        atomic_init(&s->refs, 1);
        e = parse(s, data, len, err);
        *n_lists = s->n;
        if (!e)
            publish(s);
        else
            set_unref(s);
        if (e)
            zt_error_wrap(err, "%s", path);
    }
    zt_free(data);
    return e;
}

/* ---- asking ------------------------------------------------------------------------------------- */

static bool same_name(const X509_NAME *a, const X509_NAME *b)
{
    const unsigned char *der_a, *der_b;
    size_t len_a, len_b;
    return X509_NAME_get0_der(a, &der_a, &len_a) && X509_NAME_get0_der(b, &der_b, &len_b) && len_a == len_b &&
           memcmp(der_a, der_b, len_a) == 0;
}

static bool shares_uri(const GENERAL_NAMES *a, const GENERAL_NAMES *b)
{
    for (int i = 0; i < sk_GENERAL_NAME_num(a); i++) {
        const GENERAL_NAME *x = sk_GENERAL_NAME_value(a, i);
        for (int k = 0; x->type == GEN_URI && k < sk_GENERAL_NAME_num(b); k++) {
            const GENERAL_NAME *y = sk_GENERAL_NAME_value(b, k);
            if (y->type == GEN_URI &&
                ASN1_STRING_cmp(x->d.uniformResourceIdentifier, y->d.uniformResourceIdentifier) == 0)
                return true;
        }
    }
    return false;
}

/* The list names places where it is published: the certificate must name one of them. */
static bool is_published_for(const ISSUING_DIST_POINT *scope, const X509 *cert)
{
    if (!scope->distpoint)
        return true;
    if (scope->distpoint->type != 0) /* relative to the issuer: the reference does not know it */
        return false;
    CRL_DIST_POINTS *points = X509_get_ext_d2i(cert, NID_crl_distribution_points, NULL, NULL);
    bool found = false;
    for (int i = 0; i < sk_DIST_POINT_num(points); i++) {
        const DIST_POINT *p = sk_DIST_POINT_value(points, i);
        if (p->distpoint && p->distpoint->type == 0)
            found |= shares_uri(scope->distpoint->name.fullname, p->distpoint->name.fullname);
    }
    CRL_DIST_POINTS_free(points);
    return found;
}

static bool is_authoritative(const struct list *l, const X509 *cert, bool is_leaf)
{
    if (!same_name(X509_CRL_get_issuer(l->crl), X509_get_issuer_name(cert)))
        return false;
    if (!l->scope)
        return true;
    if (is_leaf ? l->scope->onlyCA > 0 : l->scope->onlyuser > 0)
        return false;
    return is_published_for(l->scope, cert);
}

static bool weak_digest(const X509_CRL *crl)
{
    int digest = NID_undef, key;
    return OBJ_find_sigid_algs(X509_CRL_get_signature_nid(crl), &digest, &key) == 1 && (digest == NID_sha1 || digest == NID_md5);
}

/* anchor: of an anchor only name and key count. */
static bool is_signed_by(struct list *l, X509 *issuer, bool anchor)
{
    pthread_mutex_lock(&lock);
    bool known = l->signer && X509_cmp(l->signer, issuer) == 0;
    pthread_mutex_unlock(&lock);
    if (known)
        return true;
    EVP_PKEY *key = X509_get0_pubkey(issuer);
    if (!key || (!anchor && !(X509_get_key_usage(issuer) & KU_CRL_SIGN)) || weak_digest(l->crl) ||
        X509_CRL_verify(l->crl, key) != 1)
        return false;
    X509_up_ref(issuer);
    pthread_mutex_lock(&lock);
    X509 *old = l->signer;
    l->signer = issuer;
    pthread_mutex_unlock(&lock);
    X509_free(old);
    return true;
}

static enum zt_err check_cert(const struct crl_set *s, STACK_OF(X509) *certs, int at)
{
    X509 *cert = sk_X509_value(certs, at), *issuer = sk_X509_value(certs, at + 1);
    for (unsigned i = 0; i < s->n; i++) {
        struct list *l = &s->lists[i];
        X509_REVOKED *entry;
        if (!is_authoritative(l, cert, at == 0))
            continue;
        if (!is_signed_by(l, issuer, at + 2 == sk_X509_num(certs)))
            return ZT_TLS;
        return X509_CRL_get0_by_serial(l->crl, &entry, X509_get0_serialNumber(cert)) == 1 ? ZT_REVOKED : ZT_OK;
    }
    return ZT_OK;
}

/* ---- paths -------------------------------------------------------------------------------------- */

struct zt_tls_path *zt_tls_path_new(STACK_OF(X509) *certs, int64_t not_after_s)
{
    struct zt_tls_path *p = zt_new(struct zt_tls_path);
    atomic_init(&p->refs, 1);
    p->certs = certs;
    p->not_after_s = not_after_s;
    return p;
}

struct zt_tls_path *zt_tls_path_ref(struct zt_tls_path *p)
{
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    return p;
}

void zt_tls_path_unref(struct zt_tls_path *p)
{
    if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1)
        return;
    sk_X509_pop_free(p->certs, X509_free);
    zt_free(p);
}

enum zt_err zt_tls_path_check(const struct zt_tls_path *p)
{
    if (atomic_load_explicit(&p->clean_in, memory_order_relaxed) == atomic_load(&generation))
        return ZT_OK;
    struct crl_set *s = set_get();
    if (!s)
        return ZT_OK;
    enum zt_err e = ZT_OK;
    for (int i = 0; !e && i + 1 < sk_X509_num(p->certs); i++)
        e = check_cert(s, p->certs, i);
    ERR_clear_error();
    if (!e) /* a memory of the answer, not part of the value */
        atomic_store_explicit(&((struct zt_tls_path *)(uintptr_t)p)->clean_in, s->generation, memory_order_relaxed);
    set_unref(s);
    return e;
}
