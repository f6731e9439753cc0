/* Retained, sorted copies of everything, for the dump. The lock is held for the copying of pointers
 * only; sorting comes after. */
#include "state_impl.h"

#include <stdlib.h>
#include <string.h>

static int workload_order(const void *a, const void *b)
{
    return strcmp((*(struct zt_workload *const *)a)->uid, (*(struct zt_workload *const *)b)->uid);
}

struct zt_workload **zt_store_snapshot_workloads(struct zt_store *s, size_t *n)
{
    *n = 0;
    pthread_rwlock_rdlock(&s->lock);
    struct zt_workload **list = zt_new_n(struct zt_workload *, s->n_workloads + 1);
    for (uint32_t i = 0; i < ZT_SHARDS; i++)
        for (const struct zt_workload_entry *e = s->workloads[i]; e; e = e->hh.next)
            list[(*n)++] = zt_workload_ref(zt_entry_workload(e));
    pthread_rwlock_unlock(&s->lock);
    qsort(list, *n, sizeof *list, workload_order);
    return list;
}

struct ordered_service {
    struct zt_service *v;
    uint64_t sequence;
};

static int service_order(const void *a, const void *b)
{
    const struct ordered_service *x = a, *y = b;
    int by_host = strcmp(x->v->hostname, y->v->hostname);
    return by_host ? by_host : (x->sequence > y->sequence) - (x->sequence < y->sequence);
}

struct zt_service **zt_store_snapshot_services(struct zt_store *s, size_t *n)
{
    *n = 0;
    pthread_rwlock_rdlock(&s->lock);
    struct ordered_service *ordered = zt_new_n(struct ordered_service, s->n_services + 1);
    for (const struct zt_service_entry *e = s->services; e; e = e->hh.next)
        if (zt_entry_service(e))
            ordered[(*n)++] =
                (struct ordered_service){zt_service_ref(zt_entry_service(e)), e->sequence};
    pthread_rwlock_unlock(&s->lock);
    qsort(ordered, *n, sizeof *ordered, service_order);
    struct zt_service **list = zt_new_n(struct zt_service *, *n + 1);
    for (size_t i = 0; i < *n; i++)
        list[i] = ordered[i].v;
    zt_free(ordered);
    return list;
}

static int policy_order(const void *a, const void *b)
{
    return strcmp((*(struct zt_policy *const *)a)->key, (*(struct zt_policy *const *)b)->key);
}

struct zt_policy **zt_store_snapshot_policies(struct zt_store *s, size_t *n)
{
    *n = 0;
    pthread_rwlock_rdlock(&s->lock);
    struct zt_policy **list = zt_new_n(struct zt_policy *, s->n_policies + 1);
    for (const struct zt_policy_entry *e = s->policies; e; e = e->hh.next)
        list[(*n)++] = zt_policy_ref(zt_entry_policy(e));
    pthread_rwlock_unlock(&s->lock);
    qsort(list, *n, sizeof *list, policy_order);
    return list;
}

void zt_store_snapshot_workloads_free(struct zt_workload **list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        zt_workload_unref(list[i]);
    zt_free(list);
}

void zt_store_snapshot_services_free(struct zt_service **list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        zt_service_unref(list[i]);
    zt_free(list);
}

void zt_store_snapshot_policies_free(struct zt_policy **list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        zt_policy_unref(list[i]);
    zt_free(list);
}
