/* The local xDS document: input in pieces, the root object, the value forms shared by its records.
 *
 * Invariants: one record is under construction at a time, in the reader's scratch memory; a finished one belongs to the batch. Two
 * records with one key refuse the document: which of them should count is not for us to guess. */
#include "config/local_impl.h"

#include "zt/base/map.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES 65536
#define LOAD_ATTEMPTS 5
#define LOAD_PAUSE_MS 20

/* ---- input -------------------------------------------------------------------------------------- */

/* A text or a file, handed to libyaml in pieces and hashed on the way. */
struct input {
    const char *text; /* what is left of the text or of the chunk; borrowed */
    size_t left;      /* bytes */
    int fd;           /* -1: text only */
    int errnum;       /* a read that failed */
    atomic_bool *cancel;
    struct zt_local_info *info;
    char *chunk; /* owned, CHUNK_BYTES; NULL for a text */
};

static void add_to_hash(struct zt_local_info *info, const char *bytes, size_t n)
{
    info->hash = (info->hash ^ zt_map_hash(bytes, n)) * UINT64_C(0x9e3779b97f4a7c15) + n;
    info->bytes += n;
}

/* The next piece of the file; false at its end or on a failure. */
static bool refill(struct input *in)
{
    size_t n = 0;
    if (in->cancel && atomic_load_explicit(in->cancel, memory_order_relaxed))
        in->errnum = ECANCELED;
    while (n < CHUNK_BYTES && !in->errnum) {
        ssize_t got = read(in->fd, in->chunk + n, CHUNK_BYTES - n);
        if (got < 0 && errno != EINTR)
            in->errnum = errno;
        if (got == 0)
            break;
        if (got > 0)
            n += (size_t)got;
    }
    if (in->errnum || n == 0)
        return false;
    add_to_hash(in->info, in->chunk, n);
    if (in->info->bytes > ZT_LOCAL_BYTES_MAX)
        in->errnum = EFBIG;
    in->text = in->chunk;
    in->left = n;
    return !in->errnum;
}

static int on_read(void *arg, unsigned char *buffer, size_t size, size_t *n_read)
{
    struct input *in = arg;
    *n_read = 0;
    if (in->left == 0 && in->fd >= 0)
        refill(in);
    if (in->errnum)
        return 0;
    *n_read = in->left < size ? in->left : size;
    if (*n_read) { /* an empty file has no text at all */
        memcpy(buffer, in->text, *n_read);
        in->text += *n_read;
    }
    in->left -= *n_read;
    return 1;
}

/* ---- records seen ------------------------------------------------------------------------------- */

/* A set of records by their keys: open addressing, at most half full. */
struct seen {
    struct seen_slot {
        const void *record; /* borrowed from the batch; NULL = free */
        uint32_t hash;
    } *slots;
    size_t n, cap; /* cap: 0 or a power of two */
    bool (*same)(const void *a, const void *b);
};

static struct seen_slot *seen_find(const struct seen *s, const void *record, uint32_t hash)
{
    size_t i = hash & (s->cap - 1);
    while (s->slots[i].record && (s->slots[i].hash != hash || !s->same(s->slots[i].record, record)))
        i = (i + 1) & (s->cap - 1);
    return &s->slots[i];
}

static void seen_double(struct seen *s)
{
    struct seen old = *s;
    s->cap = old.cap ? old.cap * 2 : 64;
    s->slots = zt_new_n(struct seen_slot, s->cap);
    for (size_t i = 0; i < old.cap; i++)
        if (old.slots[i].record)
            *seen_find(s, old.slots[i].record, old.slots[i].hash) = old.slots[i];
    zt_free(old.slots);
}

/* False when a record with its key is there already. */
static bool seen_add(struct seen *s, const void *record, uint32_t hash)
{
    if (s->n * 2 >= s->cap)
        seen_double(s);
    struct seen_slot *slot = seen_find(s, record, hash);
    if (slot->record)
        return false;
    *slot = (struct seen_slot){.record = record, .hash = hash};
    s->n++;
    return true;
}

static bool same_workload(const void *a, const void *b)
{
    const struct zt_workload *x = a, *y = b;
    return strcmp(x->uid, y->uid) == 0;
}

static bool same_service(const void *a, const void *b)
{
    const struct zt_service *x = a, *y = b;
    return strcmp(x->hostname, y->hostname) == 0 && strcmp(x->ns, y->ns) == 0;
}

static bool same_policy(const void *a, const void *b)
{
    const struct zt_policy *x = a, *y = b;
    return strcmp(x->key, y->key) == 0;
}

static uint32_t hash_text(const char *text)
{
    return zt_map_hash(text, strlen(text));
}

/* ---- shared value forms ------------------------------------------------------------------------- */

bool zt_local_room(struct zt_yaml *r, size_t n, size_t max)
{
    return n < max ? true : zt_yaml_fail(r, "more than %zu entries", max);
}

bool zt_local_u16(struct zt_yaml *r, uint16_t *out)
{
    uint32_t value = 0;
    if (!zt_yaml_u32(r, UINT16_MAX, &value))
        return false;
    *out = (uint16_t)value;
    return true;
}

static bool has_port(const struct zt_port_map *list, size_t n, uint32_t port)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].service_port == port)
            return true;
    return false;
}

bool zt_local_ports(struct zt_yaml *r, const struct zt_port_map **out, unsigned *n_out)
{
    struct zt_port_map *list = NULL;
    size_t n = 0, cap = 0;
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        uint32_t port = 0;
        if (!zt_yaml_digits(key.value, key.len, UINT16_MAX, &port) || port == 0)
            return zt_yaml_fail(r, "a port is a number from 1 to 65535");
        if (has_port(list, n, port))
            return zt_yaml_fail(r, "the key is given twice");
        if (!zt_local_room(r, n, LOCAL_PORTS_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        list[n].service_port = (uint16_t)port;
        if (!zt_local_u16(r, &list[n++].target_port))
            return false;
    }
    *out = list;
    *n_out = (unsigned)n;
    return !r->failed;
}

void *zt_local_list(struct zt_yaml *r, size_t size, zt_local_element_fn *read, uint16_t *n_out)
{
    uint8_t *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return NULL;
    for (; zt_yaml_item(r); n++) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return NULL;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, size);
        if (!read(r, list + n * size))
            return NULL;
    }
    *n_out = (uint16_t)n;
    return r->failed ? NULL : list;
}

static bool read_name(struct zt_yaml *r, void *element)
{
    return zt_yaml_name(r, element);
}

bool zt_local_strings(struct zt_yaml *r, const char *const **out, uint16_t *n)
{
    *out = ZT_LOCAL_LIST(r, const char *, read_name, n);
    return !r->failed;
}

bool zt_local_ip(struct zt_yaml *r, struct zt_ip *out)
{
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    return !t.tag && zt_ip_parse(t.value, out) ? true : zt_yaml_fail(r, "`%.64s` is not an IP address", t.value);
}

bool zt_local_cidr(struct zt_yaml *r, struct zt_cidr *out)
{
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    return !t.tag && zt_cidr_parse(t.value, out) ? true : zt_yaml_fail(r, "invalid cidr: `%.64s`", t.value);
}

bool zt_local_healthy(struct zt_yaml *r, bool *out)
{
    static const char *const words[] = {"Healthy", "Unhealthy", NULL};
    unsigned which = 0;
    if (!zt_yaml_enum(r, words, &which))
        return false;
    *out = which == 0;
    return true;
}

bool zt_local_host_key(struct zt_yaml *r, const char *text, const char **ns, const char **hostname)
{
    const char *slash = strchr(text, '/');
    if (!slash || slash == text || !slash[1])
        return zt_yaml_fail(r, "failed to parse namespaced hostname: `%.128s` (expected <namespace>/<hostname>)", text);
    *ns = zt_scratch_dup(&r->scratch, text, (size_t)(slash - text));
    *hostname = zt_scratch_dup(&r->scratch, slash + 1, strlen(slash + 1));
    return true;
}

/* <network>/<ip> if what follows the first slash is an address, else <namespace>/<hostname>. */
static bool read_destination(struct zt_yaml *r, struct zt_gateway_ref *g)
{
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    if (t.tag)
        return zt_yaml_fail(r, "unexpected tag %.64s", t.tag);
    const char *slash = strchr(t.value, '/');
    if (!slash || !zt_ip_parse(slash + 1, &g->ip)) {
        g->ip.family = ZT_IP_NONE;
        return zt_local_host_key(r, t.value, &g->ns, &g->hostname);
    }
    g->network = zt_scratch_dup(&r->scratch, t.value, (size_t)(slash - t.value));
    return true;
}

bool zt_local_gateway(struct zt_yaml *r, struct zt_gateway_ref *out)
{
    static const char *const keys[] = {"destination", "hboneMtlsPort", NULL};
    uint64_t seen = 0;
    *out = (struct zt_gateway_ref){0};
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
        if (!(f == 0 ? read_destination(r, out) : zt_local_u16(r, &out->hbone_mtls_port)))
            return false;
    return zt_yaml_require(r, keys, seen, 3);
}

bool zt_local_optional_gateway(struct zt_yaml *r, const struct zt_gateway_ref **out)
{
    if (zt_yaml_null(r))
        return true;
    struct zt_gateway_ref *g = zt_scratch_alloc(&r->scratch, sizeof *g);
    *out = g;
    return zt_local_gateway(r, g);
}

/* ---- the document ------------------------------------------------------------------------------- */

struct document {
    struct zt_yaml reader;
    struct zt_batch *batch;
    struct zt_local_info *info;
    struct seen workloads, services, policies;
};

static bool is_duplicate(struct document *d, struct seen *seen, const void *record, uint32_t hash, const char *key)
{
    if (seen_add(seen, record, hash))
        return false;
    zt_yaml_fail(&d->reader, "`%.128s` is given twice", key);
    return true;
}

static bool read_one_workload(struct document *d)
{
    struct zt_workload *w = NULL;
    if (!zt_local_workload(&d->reader, &w))
        return false;
    zt_batch_put_workload(d->batch, w);
    d->info->n_workloads++;
    return !is_duplicate(d, &d->workloads, w, hash_text(w->uid), w->uid);
}

static bool read_one_service(struct document *d)
{
    struct zt_service *v = NULL;
    if (!zt_local_service(&d->reader, &v))
        return false;
    zt_batch_put_service(d->batch, v);
    d->info->n_services++;
    return !is_duplicate(d, &d->services, v, hash_text(v->hostname) ^ (hash_text(v->ns) << 1), v->hostname);
}

static bool read_one_policy(struct document *d)
{
    struct zt_policy *p = NULL;
    if (!zt_local_policy(&d->reader, &p))
        return false;
    zt_batch_put_policy(d->batch, p);
    d->info->n_policies++;
    return !is_duplicate(d, &d->policies, p, hash_text(p->key), p->key);
}

static bool read_list(struct document *d, bool (*read_one)(struct document *d))
{
    struct zt_yaml *r = &d->reader;
    if (zt_yaml_null(r)) /* "policies:" with nothing under it is a common way to write an empty list */
        return true;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        zt_scratch_reset(&r->scratch);
        if (!zt_local_room(r, zt_batch_size(d->batch), ZT_LOCAL_RECORDS_MAX) || !read_one(d))
            return false;
    }
    return !r->failed;
}

static bool read_root(struct document *d)
{
    static const char *const names[] = {"workloads", "policies", "services", NULL};
    static bool (*const readers[])(struct document *d) = {read_one_workload, read_one_policy, read_one_service};
    struct zt_yaml *r = &d->reader;
    uint64_t seen = 0;
    bool empty = false;
    if (!zt_yaml_begin(r, &empty))
        return false;
    if (empty) /* a truncated file must not take every policy away */
        return zt_yaml_fail(r, "the document is empty (a configuration without records is {})");
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, names, &seen)) >= 0;)
        if (!read_list(d, readers[f]))
            return false;
    return !r->failed && zt_yaml_end(r);
}

static enum zt_err read_document(const char *name, struct input *in, struct zt_batch **out, struct zt_error *err)
{
    struct zt_error own = ZT_ERROR_INIT;
    struct document *d = zt_new(struct document);
    d->batch = zt_batch_new(ZT_ORIGIN_FILE);
    d->info = in->info;
    d->workloads.same = same_workload;
    d->services.same = same_service;
    d->policies.same = same_policy;
    zt_yaml_init(&d->reader, name, ZT_LOCAL_DEPTH_MAX, ZT_LOCAL_SCALAR_BYTES_MAX, &own);
    yaml_parser_set_input(&d->reader.parser, on_read, in);
    bool ok = read_root(d);
    if (ok) {
        zt_batch_set_complete(d->batch);
        *out = d->batch;
    } else {
        zt_batch_free(d->batch);
    }
    zt_free(d->workloads.slots);
    zt_free(d->services.slots);
    zt_free(d->policies.slots);
    zt_yaml_fini(&d->reader);
    zt_free(d);
    if (ok)
        return ZT_OK;
    if (in->errnum)
        return zt_error_set_errno(err, ZT_IO, in->errnum, "%s", name);
    return zt_error_set(err, own.code, "%s", own.text);
}

enum zt_err zt_local_parse(const char *name, const char *text, size_t len, struct zt_batch **out,
                           struct zt_local_info *info, struct zt_error *err)
{
    struct zt_local_info own = {0};
    struct input in = {.text = text, .left = len, .fd = -1, .info = &own};
    if (len > ZT_LOCAL_BYTES_MAX)
        return zt_error_set(err, ZT_INVALID, "%s: more than %u bytes", name, ZT_LOCAL_BYTES_MAX);
    for (size_t at = 0; at < len; at += CHUNK_BYTES)
        add_to_hash(&own, text + at, len - at < CHUNK_BYTES ? len - at : CHUNK_BYTES);
    enum zt_err e = read_document(name, &in, out, err);
    if (info)
        *info = own;
    return e;
}

/* ---- files -------------------------------------------------------------------------------------- */

static enum zt_err open_input(const char *path, struct input *in, struct stat *st, struct zt_error *err)
{
    in->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in->fd < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "%s: the local xDS file (LOCAL_XDS_PATH) cannot be read", path);
    enum zt_err e = ZT_OK;
    if (fstat(in->fd, st) != 0)
        e = zt_error_set_errno(err, ZT_IO, errno, "%s", path);
    else if (!S_ISREG(st->st_mode))
        e = zt_error_set(err, ZT_INVALID, "%s: not a regular file", path);
    else if (st->st_size > (off_t)ZT_LOCAL_BYTES_MAX)
        e = zt_error_set(err, ZT_INVALID, "%s: more than %u bytes", path, ZT_LOCAL_BYTES_MAX);
    if (e != ZT_OK) {
        close(in->fd);
        return e;
    }
    in->chunk = zt_zalloc(CHUNK_BYTES);
    return ZT_OK;
}

/* Was somebody writing while we read? */
static bool has_changed(const struct input *in, const struct stat *before)
{
    struct stat now;
    return fstat(in->fd, &now) != 0 || now.st_size != before->st_size ||
           now.st_mtim.tv_sec != before->st_mtim.tv_sec || now.st_mtim.tv_nsec != before->st_mtim.tv_nsec;
}

static void close_input(struct input *in)
{
    close(in->fd);
    zt_free(in->chunk);
}

enum zt_err zt_local_load_once(const char *path, atomic_bool *cancel, struct zt_batch **out,
                               struct zt_local_info *info, struct zt_error *err)
{
    struct stat before;
    *info = (struct zt_local_info){0};
    struct input in = {.cancel = cancel, .info = info};
    enum zt_err e = open_input(path, &in, &before, err);
    if (e != ZT_OK)
        return e;
    struct zt_batch *batch = NULL;
    e = read_document(path, &in, &batch, err);
    if (has_changed(&in, &before)) {
        if (batch)
            zt_batch_free(batch);
        e = zt_error_set(err, ZT_AGAIN, "%s: changed while it was read", path);
    } else if (e == ZT_OK) {
        *out = batch;
    } else {
        while (!in.errnum && refill(&in)) /* the rest, so that the hash covers the whole content */
            continue;
    }
    close_input(&in);
    return e;
}

enum zt_err zt_local_hash(const char *path, atomic_bool *cancel, struct zt_local_info *info, struct zt_error *err)
{
    struct stat before;
    *info = (struct zt_local_info){0};
    struct input in = {.cancel = cancel, .info = info};
    enum zt_err e = open_input(path, &in, &before, err);
    if (e != ZT_OK)
        return e;
    while (refill(&in))
        continue;
    if (in.errnum)
        e = zt_error_set_errno(err, ZT_IO, in.errnum, "%s", path);
    else if (has_changed(&in, &before))
        e = zt_error_set(err, ZT_AGAIN, "%s: changed while it was read", path);
    close_input(&in);
    return e;
}

enum zt_err zt_local_load(const char *path, struct zt_batch **out, struct zt_local_info *info, struct zt_error *err)
{
    struct zt_local_info own;
    enum zt_err e = ZT_AGAIN;
    for (int i = 0; i < LOAD_ATTEMPTS && e == ZT_AGAIN; i++) {
        if (i > 0)
            usleep(LOAD_PAUSE_MS * 1000);
        e = zt_local_load_once(path, NULL, out, info ? info : &own, err);
    }
    return e;
}
