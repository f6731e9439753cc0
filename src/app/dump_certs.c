/* A retained copy of what the secret manager holds: the credentials by reference, the texts by value. */
#include "app/dump_certs.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <openssl/evp.h>
#include <string.h>

struct entry {
    char *identity, *state; /* "Available", ... */
    struct zt_tls_cred *cred; /* retained; NULL unless available */
};

struct zt_dump_certs {
    struct entry *list;
    size_t n, cap;
};

static void on_identity(void *arg, const struct zt_secret_info *info)
{
    struct zt_dump_certs *c = arg;
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 16;
        c->list = zt_realloc(c->list, c->cap * sizeof *c->list);
    }
    c->list[c->n++] = (struct entry){
        .identity = zt_strdup(info->identity),
        .state = zt_strdup(info->state),
        .cred = info->cred ? zt_tls_cred_ref(info->cred) : NULL,
    };
}

struct zt_dump_certs *zt_dump_certs_new(struct zt_secrets *secrets)
{
    struct zt_dump_certs *c = zt_new(struct zt_dump_certs);
    if (secrets)
        zt_secrets_each(secrets, on_identity, c);
    return c;
}

void zt_dump_certs_free(struct zt_dump_certs *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++) {
        zt_free(c->list[i].identity);
        zt_free(c->list[i].state);
        zt_tls_cred_unref(c->list[i].cred);
    }
    zt_free(c->list);
    zt_free(c);
}

static void write_base64(struct zt_json *j, const char *text)
{
    size_t len = strlen(text);
    unsigned char *out = zt_calloc(1, 4 * ((len + 2) / 3) + 1);
    int n = EVP_EncodeBlock(out, (const unsigned char *)text, (int)len); /* len: a certificate's, at most 256 KiB */
    zt_json_strn(j, (const char *)out, (size_t)n);
    zt_free(out);
}

static void write_certificates(struct zt_json *j, const char *key, const struct zt_tls_cert_info *list, unsigned n)
{
    char time[ZT_TIME_TEXT_MAX];
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++) {
        zt_json_object(j);
        zt_json_key_str(j, "expirationTime", zt_clock_format_s(list[i].not_after_s, time));
        zt_json_key(j, "pem");
        write_base64(j, list[i].pem);
        zt_json_key_str(j, "serialNumber", list[i].serial_decimal);
        zt_json_key_str(j, "validFrom", zt_clock_format_s(list[i].not_before_s, time));
        zt_json_object_end(j);
    }
    zt_json_array_end(j);
}

bool zt_dump_certs_write(const struct zt_dump_certs *c, size_t i, struct zt_json *j)
{
    if (i >= c->n)
        return false;
    const struct entry *e = &c->list[i];
    unsigned n_chain = 0, n_roots = 0;
    const struct zt_tls_cert_info *certs = NULL;
    if (e->cred)
        certs = zt_tls_cred_certs(e->cred, &n_chain, &n_roots);
    zt_json_object(j);
    write_certificates(j, "certChain", certs, n_chain);
    zt_json_key_str(j, "identity", e->identity);
    write_certificates(j, "rootCerts", certs ? certs + n_chain : NULL, n_roots);
    zt_json_key_str(j, "state", e->state);
    zt_json_object_end(j);
    return true;
}

bool zt_dump_certs_write_short(const struct zt_dump_certs *c, size_t i, struct zt_json *j)
{
    char time[ZT_TIME_TEXT_MAX];
    if (i >= c->n)
        return false;
    const struct entry *e = &c->list[i];
    zt_json_object(j);
    if (e->cred)
        zt_json_key_str(j, "expirationTime", zt_clock_format_s(zt_tls_cred_not_after_s(e->cred), time));
    zt_json_key_str(j, "identity", e->identity);
    zt_json_key_str(j, "state", e->state);
    if (e->cred)
        zt_json_key_str(j, "validFrom", zt_clock_format_s(zt_tls_cred_not_before_s(e->cred), time));
    zt_json_object_end(j);
    return true;
}
