/* The headers of a call (spec/controlplane §1.3): extra ones, then the token and the cluster.
 * Invariants: the token is read anew for every call and its copies are wiped; no header that
 * belongs to the protocol can be set from outside; nothing that would break a header line gets to
 * the library. */
#include "rpc_impl.h"

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const char *const reserved[] = {
    "te",         "content-type",      "content-length", "user-agent", "host",
    "connection", "transfer-encoding", "upgrade",        "keep-alive", "proxy-connection",
};

static bool is_reserved(const char *name)
{
    for (unsigned i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (strcmp(name, reserved[i]) == 0)
            return true;
    return strncmp(name, "grpc-", 5) == 0;
}

static bool name_is_legal(const char *name)
{
    grpc_slice s = grpc_slice_from_static_string(name);
    return *name && *name != ':' && grpc_header_key_is_legal(s) && !grpc_is_binary_header(s);
}

static bool value_is_legal(const char *value)
{
    return grpc_header_nonbin_value_is_legal(grpc_slice_from_static_string(value));
}

static enum zt_err add_extra(struct zt_rpc_headers *h, const struct zt_rpc_header *from,
                             struct zt_error *err)
{
    char *name = zt_strdup(from->name);
    for (char *p = name; *p; p++)
        if (*p >= 'A' && *p <= 'Z')
            *p = (char)(*p - 'A' + 'a');
    if (!name_is_legal(name) || is_reserved(name)) {
        zt_error_set(err, ZT_INVALID, "header name %.100s cannot be set", name);
        zt_free(name);
        return ZT_INVALID;
    }
    if (!value_is_legal(from->value)) {
        zt_error_set(err, ZT_INVALID, "value of header %.100s is not legal", name);
        zt_free(name);
        return ZT_INVALID;
    }
    h->extra[h->n_extra++] = (struct zt_rpc_header){name, zt_strdup(from->value)};
    return ZT_OK;
}

/* A path when such a file exists, or when it looks like one that will. */
static void set_token(struct zt_rpc_headers *h, const char *token)
{
    if (access(token, F_OK) == 0 || token[0] == '/' || token[0] == '.')
        h->token_path = zt_strdup(token);
    else
        h->token = zt_strdup(token);
}

enum zt_err zt_rpc_headers_init(struct zt_rpc_headers *h, const struct zt_rpc_channel_config *c,
                                struct zt_error *err)
{
    *h = (struct zt_rpc_headers){0};
    if (c->n_headers > ZT_RPC_HEADERS_MAX)
        return zt_error_set(err, ZT_INVALID, "more than %u extra headers", ZT_RPC_HEADERS_MAX);
    if (c->cluster_id && !value_is_legal(c->cluster_id))
        return zt_error_set(err, ZT_INVALID, "the cluster's name is not legal in a header");
    h->extra = zt_new_n(struct zt_rpc_header, c->n_headers + 1);
    for (unsigned i = 0; i < c->n_headers; i++) {
        enum zt_err e = add_extra(h, &c->headers[i], err);
        if (e != ZT_OK) {
            zt_rpc_headers_fini(h);
            return e;
        }
    }
    h->cluster_id = zt_strdup(c->cluster_id);
    if (c->token && *c->token)
        set_token(h, c->token);
    return ZT_OK;
}

void zt_rpc_headers_fini(struct zt_rpc_headers *h)
{
    for (unsigned i = 0; i < h->n_extra; i++) {
        zt_free_const(h->extra[i].name);
        zt_free_const(h->extra[i].value);
    }
    zt_free(h->extra);
    zt_free(h->token_path);
    zt_free(h->cluster_id);
    if (h->token)
        zt_wipe_free(h->token, strlen(h->token));
    *h = (struct zt_rpc_headers){0};
}

#define BEARER "Bearer "
#define VALUE_BYTES (sizeof BEARER - 1 + ZT_RPC_TOKEN_BYTES_MAX + 1)

/* Reads up to size bytes. Returns how many, or -1 with err set. */
static ssize_t read_token(const char *path, char *buf, size_t size, struct zt_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    size_t got = 0;
    ssize_t n = -1;
    if (fd >= 0) {
        while (got < size && (n = read(fd, buf + got, size - got)) > 0)
            got += (size_t)n;
        if (got == size)
            n = 0;
    }
    if (n < 0)
        zt_error_set_errno(err, ZT_IDENTITY, errno, "cannot read token file %.200s", path);
    if (fd >= 0)
        close(fd);
    return n < 0 ? -1 : (ssize_t)got;
}

/* "Bearer ..." into value, NUL-terminated. */
static enum zt_err bearer(const struct zt_rpc_headers *h, char *value, struct zt_error *err)
{
    char *token = value + sizeof BEARER - 1;
    ssize_t n;
    memcpy(value, BEARER, sizeof BEARER);
    if (h->token_path) {
        n = read_token(h->token_path, token, ZT_RPC_TOKEN_BYTES_MAX, err);
        if (n < 0)
            return ZT_IDENTITY;
    } else {
        n = (ssize_t)strnlen(h->token, ZT_RPC_TOKEN_BYTES_MAX);
        memcpy(token, h->token, (size_t)n);
    }
    if (n == ZT_RPC_TOKEN_BYTES_MAX)
        return zt_error_set(err, ZT_IDENTITY, "token is longer than %u bytes",
                            ZT_RPC_TOKEN_BYTES_MAX - 1);
    while (n > 0 && strchr(" \t\r\n", token[n - 1])) /* a NUL is no end of text: refused below */
        n--;
    if (n == 0)
        return zt_error_set(err, ZT_IDENTITY, "token file exists, but was empty");
    token[n] = 0;
    if (strlen(token) != (size_t)n || !value_is_legal(token))
        return zt_error_set(err, ZT_IDENTITY, "token is not legal in a header");
    return ZT_OK;
}

static void add(grpc_metadata *list, size_t *n, const char *name, const char *value)
{
    list[*n].key = grpc_slice_from_copied_string(name);
    list[*n].value = grpc_slice_from_copied_string(value);
    (*n)++;
}

enum zt_err zt_rpc_metadata_new(const struct zt_rpc_headers *h, grpc_metadata **out, size_t *n,
                                struct zt_error *err)
{
    bool authenticated = h->token || h->token_path;
    char *value = NULL;
    if (authenticated) {
        value = zt_zalloc(VALUE_BYTES);
        enum zt_err e = bearer(h, value, err);
        if (e != ZT_OK) {
            zt_wipe_free(value, VALUE_BYTES);
            return e;
        }
    }
    grpc_metadata *list = zt_new_n(grpc_metadata, h->n_extra + 2);
    *n = 0;
    for (unsigned i = 0; i < h->n_extra; i++) {
        const char *name = h->extra[i].name;
        bool replaced = authenticated && (strcmp(name, "authorization") == 0 ||
                                          (strcmp(name, "clusterid") == 0 && h->cluster_id));
        if (!replaced)
            add(list, n, name, h->extra[i].value);
    }
    if (authenticated) {
        add(list, n, "authorization", value);
        if (h->cluster_id)
            add(list, n, "clusterid", h->cluster_id);
        zt_wipe_free(value, VALUE_BYTES);
    }
    *out = list;
    return ZT_OK;
}

void zt_rpc_metadata_free(grpc_metadata *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        grpc_slice_unref(m[i].key);
        grpc_slice_unref(m[i].value);
    }
    zt_free(m);
}
