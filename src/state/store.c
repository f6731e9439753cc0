/* The store: its life, batches, and applying them.
 *
 * A batch is built without any lock and applied by one thread at a time (apply_mutex). Order within
 * one batch: policies put and removed, all under one hold of the lock; workloads and services in
 * the batch's order, at most ZT_BATCH_LOCK_RECORDS_MAX per hold; of a complete batch, what its
 * origin delivered earlier and not now: workloads, services, then policies. Policies arrive before
 * the workloads that name them and leave after those that named them: a policy that is missing for
 * a moment would be a door open for a moment. Memory of what was replaced goes to the graveyard and
 * is freed after the last hold, not under it. */
#include "state_impl.h"

#include <string.h>

enum change_kind {
    PUT_WORKLOAD,
    PUT_SERVICE,
    PUT_POLICY,
    REMOVE_WORKLOAD,
    REMOVE_SERVICE,
    REMOVE_POLICY
};

struct change {
    enum change_kind kind;
    union {
        struct zt_workload *workload;
        struct zt_service *service;
        struct zt_policy *policy;
        char *key; /* of a service: "namespace" NUL "hostname" NUL */
    };
};

struct zt_batch {
    enum zt_origin origin;
    bool complete;
    struct change *changes;
    size_t n, cap;
};

/* ---- batches ---- */

struct zt_batch *zt_batch_new(enum zt_origin origin)
{
    struct zt_batch *b = zt_new(struct zt_batch);
    b->origin = origin;
    return b;
}

/* Drops what the change still holds; applied changes hold nothing. */
static void change_fini(struct change *c)
{
    switch (c->kind) {
    case PUT_WORKLOAD:
        zt_workload_unref(c->workload);
        break;
    case PUT_SERVICE:
        zt_service_unref(c->service);
        break;
    case PUT_POLICY:
        zt_policy_unref(c->policy);
        break;
    case REMOVE_WORKLOAD:
    case REMOVE_SERVICE:
    case REMOVE_POLICY:
        zt_free(c->key);
        break;
    }
}

void zt_batch_free(struct zt_batch *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < b->n; i++)
        change_fini(&b->changes[i]);
    zt_free(b->changes);
    zt_free(b);
}

static struct change *batch_add(struct zt_batch *b, enum change_kind kind)
{
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 16;
        b->changes = zt_realloc(b->changes, b->cap * sizeof *b->changes);
    }
    struct change *c = &b->changes[b->n++];
    c->kind = kind;
    return c;
}

/* A record carries its batch's origin; nobody else sees it yet, so this is no change to a published
 * record. */
void zt_batch_put_workload(struct zt_batch *b, struct zt_workload *w)
{
    w->origin = (uint8_t)b->origin;
    batch_add(b, PUT_WORKLOAD)->workload = w;
}

void zt_batch_put_service(struct zt_batch *b, struct zt_service *v)
{
    v->origin = (uint8_t)b->origin;
    batch_add(b, PUT_SERVICE)->service = v;
}

void zt_batch_put_policy(struct zt_batch *b, struct zt_policy *p)
{
    p->origin = (uint8_t)b->origin;
    batch_add(b, PUT_POLICY)->policy = p;
}

void zt_batch_remove_workload(struct zt_batch *b, const char *uid)
{
    batch_add(b, REMOVE_WORKLOAD)->key = zt_strdup(uid);
}

void zt_batch_remove_service(struct zt_batch *b, const char *ns, const char *hostname)
{
    size_t ns_size = strlen(ns) + 1, hostname_size = strlen(hostname) + 1;
    char *key = zt_zalloc(ns_size + hostname_size);
    memcpy(key, ns, ns_size);
    memcpy(key + ns_size, hostname, hostname_size);
    batch_add(b, REMOVE_SERVICE)->key = key;
}

void zt_batch_remove_policy(struct zt_batch *b, const char *key)
{
    batch_add(b, REMOVE_POLICY)->key = zt_strdup(key);
}

void zt_batch_set_complete(struct zt_batch *b)
{
    b->complete = true;
}

size_t zt_batch_size(const struct zt_batch *b)
{
    return b->n;
}

/* ---- the store's life ---- */

struct zt_store *zt_store_new(const struct zt_store_config *c)
{
    struct zt_store *s = zt_new(struct zt_store);
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    /* glibc's default starves writers for as long as readers keep coming. */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&s->lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    pthread_mutex_init(&s->apply_mutex, NULL);
    s->network = zt_strdup(c->network ? c->network : "");
    s->node = zt_strdup(c->node);
    s->preferred_namespace = zt_strdup(c->preferred_namespace);
    s->authz_info_logging = c->authz_info_logging;
    return s;
}

void zt_store_free(struct zt_store *s)
{
    if (!s)
        return;
    zt_index_clear(s);
    zt_record_collect();
    pthread_rwlock_destroy(&s->lock);
    pthread_mutex_destroy(&s->apply_mutex);
    zt_free(s->network);
    zt_free(s->node);
    zt_free(s->preferred_namespace);
    zt_free(s);
}

const char *zt_store_network(const struct zt_store *s)
{
    return s->network;
}

void zt_store_collect(struct zt_store *s)
{
    (void)s; /* one graveyard per process: a record does not know its store */
    zt_record_collect();
}

/* ---- what a batch did ---- */

/* An identity that a local workload gained or lost. */
struct hint {
    UT_hash_handle hh;
    bool arrived, left;
    char text[];
};

/* The work of one zt_store_apply. */
struct apply {
    struct zt_store *store;
    enum zt_origin origin;
    struct zt_store_changes *out;
    struct hint *hints;
};

static void hint_set(struct apply *a, const struct zt_workload *w, bool arrived)
{
    char text[ZT_IDENTITY_MAX];
    if (!zt_workload_identity(w, text))
        return;
    struct hint *h;
    size_t len = strlen(text);
    HASH_FIND(hh, a->hints, text, len, h);
    if (!h) {
        h = zt_zalloc(sizeof *h + len + 1);
        memcpy(h->text, text, len);
        HASH_ADD_KEYPTR(hh, a->hints, h->text, len, h);
    }
    if (arrived)
        h->arrived = true;
    else
        h->left = true;
}

/* spec/controlplane §6.4: only a node that knows its name asks for certificates ahead of need. */
static bool wants_prefetch(const struct zt_store *s, const struct zt_workload *w)
{
    return s->node && strcmp(s->node, w->node) == 0 &&
           (w->protocol == ZT_PROTOCOL_HBONE || w->native_tunnel);
}

static bool same_policies(const struct zt_workload *a, const struct zt_workload *b)
{
    if (a->n_policies != b->n_policies || strcmp(a->ns, b->ns) != 0)
        return false;
    for (size_t i = 0; i < a->n_policies; i++)
        if (strcmp(a->policies[i], b->policies[i]) != 0)
            return false;
    return true;
}

static void note_workload(struct apply *a, const struct zt_workload *old,
                          const struct zt_workload *live)
{
    if (old == live)
        return;
    a->out->n_workloads++;
    bool live_local = live && zt_workload_is_local(a->store, live);
    if (live_local && (old ? !same_policies(old, live) : live->n_policies > 0))
        a->out->policies = true;
    if (live && wants_prefetch(a->store, live))
        hint_set(a, live, true);
    if (old && zt_workload_is_local(a->store, old))
        hint_set(a, old, false); /* judged at the end: the identity may still be in use */
}

/* Turns the hints into lists: what arrived and is in use, what left and is in use no more. */
static void fill_hints(struct apply *a)
{
    size_t n = HASH_COUNT(a->hints), n_prefetch = 0, n_forget = 0;
    a->out->prefetch = zt_new_n(char *, n + 1);
    a->out->forget = zt_new_n(char *, n + 1);
    struct hint *h, *next;
    HASH_ITER(hh, a->hints, h, next)
    {
        struct zt_identity_use *use;
        HASH_FIND(hh, a->store->identities, h->text, strlen(h->text), use);
        if (use && h->arrived)
            a->out->prefetch[n_prefetch++] = zt_strdup(h->text);
        else if (!use && h->left)
            a->out->forget[n_forget++] = zt_strdup(h->text);
        HASH_DEL(a->hints, h);
        zt_free(h);
    }
}

static void free_list(char **list)
{
    for (size_t i = 0; list && list[i]; i++)
        zt_free(list[i]);
    zt_free(list);
}

void zt_store_changes_fini(struct zt_store_changes *c)
{
    free_list(c->prefetch);
    free_list(c->forget);
    *c = (struct zt_store_changes){0};
}

/* ---- applying ---- */

static void set_workload(struct apply *a, const char *uid, struct zt_workload *w)
{
    struct zt_workload *old, *live;
    zt_index_set_workload(a->store, uid, a->origin, w, &old, &live);
    note_workload(a, old, live);
    zt_workload_unref(old);
}

static void set_service(struct apply *a, const char *ns, const char *hostname, struct zt_service *v)
{
    if (zt_index_set_service(a->store, ns, hostname, a->origin, v))
        a->out->n_services++;
}

static void set_policy(struct apply *a, const char *key, struct zt_policy *p)
{
    if (!zt_index_set_policy(a->store, key, a->origin, p))
        return;
    a->out->n_policies++;
    a->out->policies = true;
}

static bool is_policy_change(const struct change *c)
{
    return c->kind == PUT_POLICY || c->kind == REMOVE_POLICY;
}

static void apply_policies(struct apply *a, struct zt_batch *b)
{
    pthread_rwlock_wrlock(&a->store->lock);
    for (size_t i = 0; i < b->n; i++) {
        struct change *c = &b->changes[i];
        if (c->kind == PUT_POLICY) {
            set_policy(a, c->policy->key, c->policy);
            c->policy = NULL; /* the store's now */
        } else if (c->kind == REMOVE_POLICY) {
            set_policy(a, c->key, NULL);
        }
    }
    pthread_rwlock_unlock(&a->store->lock);
}

static void apply_address(struct apply *a, struct change *c)
{
    switch (c->kind) {
    case PUT_WORKLOAD:
        set_workload(a, c->workload->uid, c->workload);
        c->workload = NULL;
        break;
    case PUT_SERVICE:
        set_service(a, c->service->ns, c->service->hostname, c->service);
        c->service = NULL;
        break;
    case REMOVE_WORKLOAD:
        set_workload(a, c->key, NULL);
        break;
    case REMOVE_SERVICE:
        set_service(a, c->key, c->key + strlen(c->key) + 1, NULL);
        break;
    case PUT_POLICY:
    case REMOVE_POLICY:
        break;
    }
}

/* Calls step(i) for 0..n-1 under the write lock, let go every ZT_BATCH_LOCK_RECORDS_MAX steps so
 * that readers get their turn. */
typedef void (*step_fn)(struct apply *a, void *arg, size_t i);
static void in_pieces(struct apply *a, size_t n, step_fn step, void *arg)
{
    for (size_t i = 0; i < n;) {
        size_t end = n - i > ZT_BATCH_LOCK_RECORDS_MAX ? i + ZT_BATCH_LOCK_RECORDS_MAX : n;
        pthread_rwlock_wrlock(&a->store->lock);
        for (; i < end; i++)
            step(a, arg, i);
        pthread_rwlock_unlock(&a->store->lock);
    }
}

static void step_address(struct apply *a, void *arg, size_t i)
{
    struct zt_batch *b = arg;
    if (!is_policy_change(&b->changes[i]))
        apply_address(a, &b->changes[i]);
}

static void step_remove_workload(struct apply *a, void *arg, size_t i)
{
    struct zt_workload_entry *const *stale = arg;
    set_workload(a, stale[i]->hh.key, NULL);
}

static void step_remove_service(struct apply *a, void *arg, size_t i)
{
    struct zt_service_entry *const *stale = arg;
    set_service(a, stale[i]->key, stale[i]->hostname, NULL);
}

/* The sweeps look at the tables without the lock: apply_mutex keeps every other writer away, and
 * readers do not matter. */
static void sweep_workloads(struct apply *a)
{
    struct zt_store *s = a->store;
    struct zt_workload_entry **stale = zt_new_n(struct zt_workload_entry *, s->n_workloads + 1);
    size_t n = 0;
    for (uint32_t i = 0; i < ZT_SHARDS; i++)
        for (struct zt_workload_entry *e = s->workloads[i]; e; e = e->hh.next)
            if (e->records[a->origin] && e->generation[a->origin] != s->generation)
                stale[n++] = e;
    in_pieces(a, n, step_remove_workload, stale);
    zt_free(stale);
}

static void sweep_services(struct apply *a)
{
    struct zt_store *s = a->store;
    struct zt_service_entry **stale =
        zt_new_n(struct zt_service_entry *, HASH_COUNT(s->services) + 1);
    size_t n = 0;
    for (struct zt_service_entry *e = s->services; e; e = e->hh.next)
        if (e->records[a->origin] && e->generation[a->origin] != s->generation)
            stale[n++] = e;
    in_pieces(a, n, step_remove_service, stale);
    zt_free(stale);
}

static void sweep_policies(struct apply *a)
{
    struct zt_store *s = a->store;
    struct zt_policy_entry *e, *next;
    pthread_rwlock_wrlock(&s->lock);
    HASH_ITER(hh, s->policies, e, next)
    {
        if (e->records[a->origin] && e->generation[a->origin] != s->generation)
            set_policy(a, e->hh.key, NULL);
    }
    pthread_rwlock_unlock(&s->lock);
}

void zt_store_apply(struct zt_store *s, struct zt_batch *b, struct zt_store_changes *out)
{
    struct apply a = {.store = s, .origin = b->origin, .out = out};
    *out = (struct zt_store_changes){0};
    pthread_mutex_lock(&s->apply_mutex);
    s->generation++; /* read by appliers only */
    apply_policies(&a, b);
    in_pieces(&a, b->n, step_address, b);
    if (b->complete) {
        sweep_workloads(&a);
        sweep_services(&a);
        sweep_policies(&a);
    }
    fill_hints(&a);
    pthread_mutex_unlock(&s->apply_mutex);
    zt_batch_free(b);
    zt_record_collect();
}
