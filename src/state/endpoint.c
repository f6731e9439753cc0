/* Endpoints: which workloads stand behind which service.
 *
 * A service entry exists from the first mention of its name, by a service record or by a workload,
 * whichever comes first; so "staged" is no state of its own but an entry without a record. All
 * endpoints are kept, healthy or not, and filtered when one is picked.
 *
 * Invariant: endpoint e of service v satisfies v->endpoints[e->position] == e; attaching and
 * detaching cost O(1) each, so ten thousand endpoints of one service arrive in linear time. */
#include "state_impl.h"

#include "zt/base/clock.h"

#include <stdlib.h>
#include <string.h>

struct zt_service_entry *zt_index_service_entry(struct zt_store *s, const char *ns,
                                                const char *hostname)
{
    struct zt_key k;
    struct zt_service_entry *e;
    zt_key_texts(&k, ns, hostname, NULL);
    ZT_ASSERT(k.len > 0); /* record texts are bounded */
    HASH_FIND(hh, s->services, k.bytes, k.len, e);
    if (e)
        return e;
    e = zt_zalloc(sizeof *e + k.len);
    memcpy(e->key, k.bytes, k.len);
    e->hostname = e->key + strlen(ns) + 1;
    HASH_ADD_KEYPTR(hh, s->services, e->key, k.len, e);
    return e;
}

void zt_index_service_release(struct zt_store *s, struct zt_service_entry *e)
{
    if (zt_entry_service(e) || e->n_endpoints > 0)
        return;
    HASH_DEL(s->services, e);
    zt_free(e->endpoints);
    zt_free(e);
}

static void service_push(struct zt_service_entry *v, struct zt_endpoint *ep)
{
    if (v->n_endpoints == v->cap_endpoints) {
        v->cap_endpoints = v->cap_endpoints ? v->cap_endpoints * 2 : 4;
        v->endpoints = zt_realloc(v->endpoints, v->cap_endpoints * sizeof *v->endpoints);
    }
    ep->service = v;
    ep->position = v->n_endpoints;
    v->endpoints[v->n_endpoints++] = ep;
}

void zt_index_attach(struct zt_store *s, struct zt_workload_entry *e, const struct zt_workload *w)
{
    ZT_ASSERT(!e->endpoints);
    if (w->n_services == 0)
        return;
    e->endpoints = zt_new_n(struct zt_endpoint, w->n_services);
    for (uint32_t i = 0; i < w->n_services; i++) {
        struct zt_service_entry *v =
            zt_index_service_entry(s, w->services[i].ns, w->services[i].hostname);
        if (zt_find_endpoint(e, v))
            continue; /* listed twice: one endpoint, the first one's ports */
        struct zt_endpoint *ep = &e->endpoints[e->n_endpoints++];
        ep->owner = e;
        ep->index = i;
        service_push(v, ep);
    }
}

void zt_index_detach(struct zt_store *s, struct zt_workload_entry *e)
{
    for (uint32_t i = 0; i < e->n_endpoints; i++) {
        struct zt_endpoint *ep = &e->endpoints[i];
        struct zt_service_entry *v = ep->service;
        ZT_ASSERT(v->endpoints[ep->position] == ep);
        struct zt_endpoint *last = v->endpoints[--v->n_endpoints];
        v->endpoints[ep->position] = last;
        last->position = ep->position;
        zt_index_service_release(s, v);
    }
    zt_free(e->endpoints);
    e->endpoints = NULL;
    e->n_endpoints = 0;
}

const struct zt_endpoint *zt_find_endpoint(const struct zt_workload_entry *e,
                                           const struct zt_service_entry *v)
{
    for (uint32_t i = 0; i < e->n_endpoints; i++)
        if (e->endpoints[i].service == v)
            return &e->endpoints[i];
    return NULL;
}

bool zt_find_endpoint_ports(struct zt_store *s, const struct zt_service_entry *v, const char *uid,
                            const struct zt_port_map **ports, unsigned *n)
{
    const struct zt_workload_entry *e = zt_find_uid(s, uid);
    const struct zt_endpoint *ep = e ? zt_find_endpoint(e, v) : NULL;
    if (ep) {
        const struct zt_workload_service *m = &zt_entry_workload(e)->services[ep->index];
        *ports = m->ports;
        *n = m->n_ports;
        return true;
    }
    const struct zt_service *record = zt_entry_service(v);
    for (size_t i = 0; record && i < record->n_endpoints; i++) {
        if (strcmp(record->endpoints[i].workload_uid, uid) != 0)
            continue;
        *ports = record->endpoints[i].ports;
        *n = record->endpoints[i].n_ports;
        return true;
    }
    return false;
}

/* ---- load and luck ---- */

void zt_store_endpoint_opened(struct zt_store *s, const char *uid)
{
    pthread_rwlock_rdlock(&s->lock);
    struct zt_workload_entry *e = zt_find_uid(s, uid);
    if (e)
        atomic_fetch_add_explicit(&e->n_open, 1, memory_order_relaxed);
    pthread_rwlock_unlock(&s->lock);
}

void zt_store_endpoint_closed(struct zt_store *s, const char *uid)
{
    pthread_rwlock_rdlock(&s->lock);
    struct zt_workload_entry *e = zt_find_uid(s, uid);
    unsigned n = e ? atomic_load_explicit(&e->n_open, memory_order_relaxed) : 0;
    /* A workload that went away and came back began at none. */
    while (n > 0 && !atomic_compare_exchange_weak(&e->n_open, &n, n - 1))
        ;
    pthread_rwlock_unlock(&s->lock);
}

void zt_store_endpoint_failed(struct zt_store *s, const char *uid)
{
    unsigned until = (unsigned)(zt_clock_mono_ms() / 1000) + ZT_STORE_AVOID_S;
    pthread_rwlock_rdlock(&s->lock);
    struct zt_workload_entry *e = zt_find_uid(s, uid);
    if (e)
        atomic_store_explicit(&e->avoid_until_s, until, memory_order_relaxed);
    pthread_rwlock_unlock(&s->lock);
}

/* ---- walking, on copies ---- */

struct endpoint_copy {
    struct zt_workload *w; /* retained, or NULL: given by the service's record */
    const char *uid;
    const struct zt_port_map *ports;
    unsigned n_ports;
    bool healthy;
};

static int by_uid(const void *a, const void *b)
{
    return strcmp(((const struct endpoint_copy *)a)->uid, ((const struct endpoint_copy *)b)->uid);
}

/* Copies the table of a service and retains what the copy points to. */
static struct endpoint_copy *copy_endpoints(struct zt_store *s, const struct zt_service_entry *v,
                                            const struct zt_service *record, size_t *n)
{
    size_t n_static = record ? record->n_endpoints : 0;
    struct endpoint_copy *list = zt_new_n(struct endpoint_copy, v->n_endpoints + n_static + 1);
    *n = 0;
    for (uint32_t i = 0; i < v->n_endpoints; i++) {
        struct zt_workload *w = zt_workload_ref(zt_entry_workload(v->endpoints[i]->owner));
        const struct zt_workload_service *m = &w->services[v->endpoints[i]->index];
        list[(*n)++] = (struct endpoint_copy){w, w->uid, m->ports, m->n_ports, w->healthy};
    }
    for (size_t i = 0; i < n_static; i++) {
        const struct zt_static_endpoint *e = &record->endpoints[i];
        const struct zt_workload_entry *w = zt_find_uid(s, e->workload_uid);
        if (w && zt_find_endpoint(w, v))
            continue; /* the workload itself says more */
        list[(*n)++] =
            (struct endpoint_copy){NULL, e->workload_uid, e->ports, e->n_ports, e->healthy};
    }
    return list;
}

void zt_store_each_endpoint(struct zt_store *s, const char *ns, const char *hostname,
                            zt_endpoint_fn fn, void *arg)
{
    struct endpoint_copy *list = NULL;
    struct zt_service *record = NULL;
    size_t n = 0;
    pthread_rwlock_rdlock(&s->lock);
    const struct zt_service_entry *v = zt_find_service_entry(s, ns, hostname);
    if (v) {
        record = zt_service_ref(zt_entry_service(v));
        list = copy_endpoints(s, v, record, &n);
    }
    pthread_rwlock_unlock(&s->lock);
    if (n > 1)
        qsort(list, n, sizeof *list, by_uid);
    for (size_t i = 0; i < n; i++) {
        fn(arg, list[i].uid, list[i].ports, list[i].n_ports, list[i].healthy);
        zt_workload_unref(list[i].w);
    }
    zt_service_unref(record);
    zt_free(list);
}

void zt_store_each_staged(struct zt_store *s, zt_staged_fn fn_service, zt_endpoint_fn fn, void *arg)
{
    size_t n = 0, cap = 0;
    char **keys = NULL;
    pthread_rwlock_rdlock(&s->lock);
    for (const struct zt_service_entry *v = s->services; v; v = v->hh.next) {
        if (zt_entry_service(v))
            continue;
        if (n == cap) {
            cap = cap ? cap * 2 : 16;
            keys = zt_realloc(keys, cap * sizeof *keys);
        }
        keys[n] = zt_zalloc(v->hh.keylen);
        memcpy(keys[n++], v->key, v->hh.keylen);
    }
    pthread_rwlock_unlock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        const char *ns = keys[i], *hostname = keys[i] + strlen(keys[i]) + 1;
        fn_service(arg, ns, hostname);
        zt_store_each_endpoint(s, ns, hostname, fn, arg);
        zt_free(keys[i]);
    }
    zt_free(keys);
}
