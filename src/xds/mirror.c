/* The mirror: applies responses to the store piece by piece and remembers which names and versions
 * are held (spec/controlplane §2.3, §2.5, §2.6, §4.5).
 *
 *   idle --begin--> RESOURCES --> REMOVED --> SWEEP --> DONE --end--> idle
 *
 * Invariants: the held table of a type changes as its records reach the batch, and the batch is in
 * the store before the response is over. A rejected resource leaves record and held version as they
 * were, but counts as mentioned: a sweep spares it. Authorization is one batch, so that policies
 * change at once; addresses go in batches of at most ZT_BATCH_LOCK_RECORDS_MAX. */
#include "xds_impl.h"

#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <string.h>

#define SCOPE "xds"
#define TRIM_BYTES (8u << 20) /* a response that leaves so much free memory behind */
#define MORE_TEXT_BYTES 64 /* room for "; and N more" */

enum phase { IDLE, RESOURCES, REMOVED, SWEEP, DONE };
enum { RESPONSE_RESOURCES = 2, RESPONSE_REMOVED = 6, WIRE_BYTES = 2 };

/* Reasons of one kind, joined. */
struct reasons {
    struct zt_str text;
    size_t n_more; /* that did not fit */
};

struct zt_xds_mirror {
    struct zt_store *store;
    struct zt_xds_held held[ZT_XDS_TYPES];
    bool sweep[ZT_XDS_TYPES]; /* the next response holds everything there is */
    uint32_t mark;            /* of the response in hand */
    struct zt_arena arena;
    /* the response in hand */
    enum phase phase;
    struct zt_rpc_message *message;
    struct zt_rpc_reader reader;
    struct zt_xds_header header;
    struct zt_error malformed;
    struct zt_batch *batch;
    struct reasons refused, undecodable;
    uint64_t n_bytes;
    const char **stale; /* names to sweep */
    size_t n_stale, i_stale;
};

struct zt_xds_mirror *zt_xds_mirror_new(struct zt_store *store)
{
    struct zt_xds_mirror *m = zt_new(struct zt_xds_mirror);
    m->store = store;
    zt_arena_init(&m->arena);
    zt_str_init(&m->refused.text, ZT_XDS_NACK_BYTES_MAX / 2);
    zt_str_init(&m->undecodable.text, ZT_XDS_NACK_BYTES_MAX / 2);
    return m;
}

void zt_xds_mirror_free(struct zt_xds_mirror *m)
{
    if (!m)
        return;
    zt_xds_mirror_drop(m);
    zt_arena_fini(&m->arena);
    zt_str_fini(&m->refused.text);
    zt_str_fini(&m->undecodable.text);
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES; t++)
        zt_xds_held_fini(&m->held[t]);
    zt_free(m);
}

uint8_t *zt_xds_mirror_initial(struct zt_xds_mirror *m, enum zt_xds_type type, const uint8_t *node,
                               size_t n_node, bool without_versions, size_t *n, size_t *n_held)
{
    const struct zt_xds_held *held = &m->held[type];
    bool too_long = held->wire_bytes + n_node > ZT_XDS_REQUEST_BYTES_MAX;
    /* A table that is empty has nothing to sweep, either. */
    m->sweep[type] = held->n > 0 && (without_versions || too_long);
    if (m->sweep[type])
        held = NULL;
    *n_held = held ? held->n : 0;
    return zt_xds_initial_pack(node, n_node, type, held, n);
}

/* ---- rejects ---- */

/* Appends text as UTF-8: what was cut in the middle of a character ends there. */
static void add_text(struct zt_str *s, const char *text)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len;) {
        uint32_t code;
        size_t n = zt_utf8_next(text + i, len - i, &code);
        zt_str_add_n(s, n ? text + i : "?", n ? n : 1);
        i += n ? n : 1;
    }
}

static void reject(struct zt_xds_mirror *m, const char *name, bool decoding,
                   const struct zt_error *why)
{
    struct reasons *r = decoding ? &m->undecodable : &m->refused;
    if (r->text.len + strlen(name) + strlen(why->text) + MORE_TEXT_BYTES > r->text.max) {
        r->n_more++;
        return;
    }
    if (r->text.len > 0)
        zt_str_add(&r->text, "; ");
    add_text(&r->text, *name ? name : "(unnamed)");
    zt_str_add(&r->text, ": ");
    add_text(&r->text, why->text);
}

static void finish_reasons(struct zt_str *out, struct reasons *r)
{
    if (r->text.len == 0)
        return;
    if (out->len > 0)
        zt_str_add(out, "; ");
    zt_str_add(out, zt_str_cstr(&r->text));
    if (r->n_more > 0)
        zt_str_addf(out, "; and %zu more", r->n_more);
}

/* ---- resources ---- */

static void log_received(const struct zt_xds_header *h)
{
    struct zt_log_line l;
    if (!zt_log_on(ZT_LOG_DEBUG, "xds::client"))
        return;
    zt_log_begin(&l, ZT_LOG_DEBUG, "xds::client", "received response");
    zt_log_str(&l, "type_url", h->type_url);
    zt_log_u64(&l, "size", h->n_resources);
    zt_log_u64(&l, "removes", h->n_removed);
    zt_log_end(&l);
}

static void put_record(struct zt_xds_mirror *m, const char *name, struct zt_xds_record *r)
{
    if (r->policy) {
        zt_log_info(SCOPE, "handling RBAC update %s/%s", r->policy->ns, r->policy->name);
        zt_batch_put_policy(m->batch, r->policy);
        return;
    }
    zt_log_debug(SCOPE, "handling insert %s", name);
    if (r->workload)
        zt_batch_put_workload(m->batch, r->workload);
    else
        zt_batch_put_service(m->batch, r->service);
}

static void take_resource(struct zt_xds_mirror *m, const uint8_t *p, size_t n)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_xds_resource r;
    struct zt_xds_record record;
    bool decoding = true;
    struct zt_xds_held *held = &m->held[m->header.type];
    zt_arena_reset(&m->arena);
    enum zt_err e = zt_xds_resource_read(&m->arena, p, n, &r, &err);
    m->n_bytes += r.n_value;
    if (e == ZT_OK)
        e = zt_xds_convert(&m->arena, m->header.type, &r, &record, &decoding, &err);
    if (e == ZT_OK)
        put_record(m, r.name, &record);
    else
        reject(m, r.name, decoding, &err);
    zt_xds_held_put(held, r.name, e == ZT_OK ? r.version : NULL, m->mark);
}

static void take_too_long(struct zt_xds_mirror *m, size_t n)
{
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_INVALID, "decode: resource of %zu bytes, more than %u", n,
                 ZT_XDS_RESOURCE_BYTES_MAX);
    reject(m, "", true, &err);
    zt_rpc_reader_skip(&m->reader, n);
    m->sweep[m->header.type] = false; /* its name is not known: nothing may be swept */
}

/* ---- removals ---- */

/* spec/controlplane §2.6: a workload's uid, or else a service. */
static void remove_address(struct zt_xds_mirror *m, const char *name, bool was_held)
{
    struct zt_workload *w = zt_store_find_workload(m->store, name);
    const char *slash = strchr(name, '/');
    if (w && w->origin == ZT_ORIGIN_XDS) {
        zt_batch_remove_workload(m->batch, name);
    } else if (!slash) {
        zt_log_warn(SCOPE, "cannot remove %s: neither a workload nor the name of a service", name);
    } else if (!strchr(slash + 1, '/')) {
        char *ns = zt_strndup(name, (size_t)(slash - name));
        if (!was_held)
            zt_log_warn(SCOPE, "cannot remove the service %s: it is unknown", name);
        zt_batch_remove_service(m->batch, ns, slash + 1);
        zt_free(ns);
    }
    zt_workload_unref(w);
}

static void remove_name(struct zt_xds_mirror *m, const char *name)
{
    enum zt_xds_type type = m->header.type;
    bool was_held = zt_xds_held_has(&m->held[type], name);
    zt_log_debug(SCOPE, "received delete resource %s/%s", zt_xds_type_url(type), name);
    if (type == ZT_XDS_AUTHORIZATION) {
        zt_log_info(SCOPE, "handling RBAC delete %s", name);
        zt_batch_remove_policy(m->batch, name);
    } else {
        zt_log_debug(SCOPE, "handling delete %s", name);
        remove_address(m, name, was_held);
    }
    zt_xds_held_remove(&m->held[type], name); /* name may lie in the entry: last */
}

static void take_removed(struct zt_xds_mirror *m, const uint8_t *p, size_t n)
{
    zt_arena_reset(&m->arena);
    const char *name =
        n <= ZT_XDS_NAME_BYTES_MAX && zt_wire_is_text(p, n) ? zt_arena_text(&m->arena, p, n) : NULL;
    if (name && *name)
        remove_name(m, name);
    else
        zt_log_warn(SCOPE, "a removed resource has no usable name");
}

/* ---- pieces ---- */

bool zt_xds_mirror_begin(struct zt_xds_mirror *m, struct zt_rpc_message *message)
{
    ZT_ASSERT(m->phase == IDLE);
    m->message = message;
    m->malformed = (struct zt_error)ZT_ERROR_INIT;
    m->phase = DONE;
    m->mark++;
    if (zt_xds_header_read(message, &m->header, &m->malformed) != ZT_OK)
        return false;
    log_received(&m->header);
    zt_rpc_reader_init(&m->reader, message);
    m->phase = RESOURCES;
    if (m->header.type == ZT_XDS_UNKNOWN) {
        zt_log_error("xds::client", "unknown type %s", m->header.type_url);
        m->phase = DONE;
        return true;
    }
    m->batch = zt_batch_new(ZT_ORIGIN_XDS);
    return true;
}

/* Up to a batch of the fields of this phase. False: there are no more. */
static bool take_fields(struct zt_xds_mirror *m)
{
    uint32_t wanted = m->phase == RESOURCES ? RESPONSE_RESOURCES : RESPONSE_REMOVED;
    struct zt_wire_field f;
    bool bad;
    for (unsigned n = 0; n < ZT_BATCH_LOCK_RECORDS_MAX;) {
        if (!zt_wire_next_of_message(&m->reader, &f, &bad))
            return false;
        if (f.type != WIRE_BYTES)
            continue;
        if (f.number != wanted) {
            zt_rpc_reader_skip(&m->reader, f.value);
            continue;
        }
        n++;
        if (m->phase == RESOURCES && f.value > ZT_XDS_RESOURCE_BYTES_MAX) {
            take_too_long(m, f.value);
            continue;
        }
        const uint8_t *p = zt_rpc_reader_take(&m->reader, f.value);
        if (m->phase == RESOURCES)
            take_resource(m, p, f.value);
        else
            take_removed(m, p, f.value);
    }
    return true;
}

static bool take_stale(struct zt_xds_mirror *m)
{
    for (unsigned n = 0; n < ZT_BATCH_LOCK_RECORDS_MAX; n++) {
        if (m->i_stale == m->n_stale)
            return false;
        remove_name(m, m->stale[m->i_stale++]);
    }
    return true;
}

static void enter(struct zt_xds_mirror *m, enum phase phase)
{
    m->phase = phase;
    if (phase == REMOVED) {
        zt_rpc_reader_fini(&m->reader);
        zt_rpc_reader_init(&m->reader, m->message);
    } else if (phase == SWEEP && m->sweep[m->header.type]) {
        m->stale = zt_xds_held_unmarked(&m->held[m->header.type], m->mark, &m->n_stale);
        zt_log_info(SCOPE, "%s: %zu resources vanished while there was no stream",
                    m->header.type_url, m->n_stale);
    } else if (phase == DONE) {
        m->sweep[m->header.type] = false;
    }
}

static void apply(struct zt_xds_mirror *m, struct zt_store_changes *changes)
{
    if (zt_batch_size(m->batch) == 0)
        return;
    zt_store_apply(m->store, m->batch, changes);
    m->batch = zt_batch_new(ZT_ORIGIN_XDS);
}

bool zt_xds_mirror_step(struct zt_xds_mirror *m, struct zt_store_changes *changes)
{
    *changes = (struct zt_store_changes){0};
    if (m->phase == DONE)
        return false;
    bool more = m->phase == SWEEP ? take_stale(m) : take_fields(m);
    if (!more)
        enter(m, m->phase + 1);
    if (m->header.type == ZT_XDS_ADDRESS || m->phase == DONE)
        apply(m, changes);
    return m->phase != DONE;
}

/* Forgets the response in hand. */
static void clear(struct zt_xds_mirror *m)
{
    zt_rpc_reader_fini(&m->reader);
    zt_xds_header_fini(&m->header);
    bool large = m->message && zt_rpc_message_bytes(m->message) >= TRIM_BYTES;
    zt_rpc_message_free(m->message);
    m->message = NULL;
    if (large)
        zt_mem_trim(); /* the library's memory lies between ours */
    zt_batch_free(m->batch);
    m->batch = NULL;
    zt_str_clear(&m->refused.text);
    zt_str_clear(&m->undecodable.text);
    m->refused.n_more = m->undecodable.n_more = 0;
    m->n_bytes = 0;
    zt_free(m->stale);
    m->stale = NULL;
    m->n_stale = m->i_stale = 0;
    m->phase = IDLE;
}

void zt_xds_mirror_end(struct zt_xds_mirror *m, struct zt_xds_outcome *out)
{
    struct zt_str nack;
    ZT_ASSERT(m->phase == DONE);
    *out = (struct zt_xds_outcome){.type = m->header.type, .n_bytes = m->n_bytes};
    out->malformed = m->malformed;
    out->type_url = zt_strdup(m->header.type_url);
    out->nonce = zt_strdup(m->header.nonce);
    zt_str_init(&nack, 2 * ZT_XDS_NACK_BYTES_MAX);
    finish_reasons(&nack, &m->refused);
    finish_reasons(&nack, &m->undecodable);
    out->nack = nack.len > 0 ? zt_str_take(&nack) : NULL;
    zt_str_fini(&nack);
    clear(m);
}

void zt_xds_mirror_drop(struct zt_xds_mirror *m)
{
    if (m->phase != IDLE)
        clear(m);
}

void zt_xds_outcome_fini(struct zt_xds_outcome *o)
{
    zt_free(o->type_url);
    zt_free(o->nonce);
    zt_free(o->nack);
    *o = (struct zt_xds_outcome){0};
}
