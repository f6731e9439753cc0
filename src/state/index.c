/* The store's indexes: what is reachable under which key, kept true by zt_index_set_*.
 *
 * Invariants:
 *  - an index holds entries, not records; an entry is reachable under exactly the keys its live
 * record names;
 *  - one slot per origin: the record of the highest origin is live, a lower one waits in its slot
 * and takes over when the higher one is removed. So xDS wins over the file, and the file's record
 * comes back;
 *  - lists under a key are in no order; lookups decide by sequence numbers, so removal may swap. */
#include "state_impl.h"

#include <string.h>

/* ---- keys ---- */

static void key_add(struct zt_key *k, const void *bytes, size_t n)
{
    if (k->len == SIZE_MAX || n > sizeof k->bytes - k->len) {
        k->len = SIZE_MAX;
        return;
    }
    memcpy(k->bytes + k->len, bytes, n);
    k->len += n;
}

static void key_end(struct zt_key *k)
{
    if (k->len == SIZE_MAX)
        k->len = 0;
}

void zt_key_texts(struct zt_key *k, const char *a, const char *b, const char *c)
{
    k->len = 0;
    key_add(k, a, strlen(a) + 1);
    key_add(k, b, strlen(b) + 1);
    if (c)
        key_add(k, c, strlen(c) + 1);
    key_end(k);
}

void zt_key_address(struct zt_key *k, const char *network, const struct zt_ip *ip)
{
    k->len = 0;
    key_add(k, &ip->family, 1);
    key_add(k, ip->bytes, ip->family == ZT_IPV4 ? 4 : 16);
    key_add(k, network, strlen(network));
    key_end(k);
}

void zt_key_cidr(struct zt_key *k, const char *network, const struct zt_ip *ip, uint8_t bits)
{
    uint8_t masked[16];
    size_t n = ip->family == ZT_IPV4 ? 4 : 16;
    for (size_t i = 0; i < n; i++) {
        unsigned keep = bits >= 8 * (i + 1) ? 8 : bits > 8 * i ? bits - 8 * i : 0;
        masked[i] = (uint8_t)(ip->bytes[i] & (0xff00u >> keep));
    }
    k->len = 0;
    key_add(k, &ip->family, 1);
    key_add(k, &bits, 1);
    key_add(k, masked, n);
    key_add(k, network, strlen(network));
    key_end(k);
}

/* ---- many items under one key ---- */

static struct zt_multi *multi_find(const struct zt_multi_map *map, const struct zt_key *k,
                                   uint32_t *hash)
{
    struct zt_multi *m = NULL;
    if (k->len == 0)
        return NULL;
    *hash = zt_map_hash(k->bytes, k->len);
    HASH_FIND_BYHASHVALUE(hh, map->shards[zt_shard_of(*hash)], k->bytes, k->len, *hash, m);
    return m;
}

const struct zt_multi *zt_multi_find(const struct zt_multi_map *map, const struct zt_key *k)
{
    uint32_t hash;
    return multi_find(map, k, &hash);
}

static void multi_add(struct zt_multi_map *map, const struct zt_key *k, void *item)
{
    ZT_ASSERT(k->len > 0); /* record texts are bounded, so their keys fit */
    uint32_t hash = 0;
    struct zt_multi *m = multi_find(map, k, &hash);
    if (!m) {
        m = zt_zalloc(sizeof *m + k->len);
        memcpy(m->key, k->bytes, k->len);
        m->items.one = item;
        m->n = 1;
        HASH_ADD_KEYPTR_BYHASHVALUE(hh, map->shards[zt_shard_of(hash)], m->key, k->len, hash, m);
        return;
    }
    if (m->n >= m->cap) {
        uint32_t cap = m->cap ? m->cap * 2 : 4;
        void **many = zt_realloc(m->cap ? m->items.many : NULL, cap * sizeof *many);
        if (!m->cap)
            many[0] = m->items.one;
        m->items.many = many;
        m->cap = cap;
    }
    m->items.many[m->n++] = item;
}

static void multi_free(struct zt_multi_map *map, struct zt_multi *m)
{
    HASH_DEL(map->shards[zt_shard_of(m->hh.hashv)], m);
    if (m->cap)
        zt_free(m->items.many);
    zt_free(m);
}

static void multi_remove(struct zt_multi_map *map, const struct zt_key *k, const void *item)
{
    uint32_t hash;
    struct zt_multi *m = multi_find(map, k, &hash);
    ZT_ASSERT(m);
    uint32_t i = 0;
    while (i < m->n && zt_multi_at(m, i) != item)
        i++;
    ZT_ASSERT(i < m->n);
    if (m->n == 1) {
        multi_free(map, m);
        return;
    }
    m->items.many[i] = m->items.many[--m->n];
}

static void multi_set(struct zt_multi_map *map, const struct zt_key *k, void *item, bool present)
{
    if (present)
        multi_add(map, k, item);
    else
        multi_remove(map, k, item);
}

static void multi_clear(struct zt_multi_map *map)
{
    for (uint32_t i = 0; i < ZT_SHARDS; i++)
        while (map->shards[i])
            multi_free(map, map->shards[i]);
}

/* ---- workloads ---- */

bool zt_workload_is_local(const struct zt_store *s, const struct zt_workload *w)
{
    return !s->node || strcmp(s->node, w->node) == 0;
}

static void index_addresses(struct zt_store *s, struct zt_workload_entry *e,
                            const struct zt_workload *w, bool add)
{
    if (w->host_network)
        return;
    struct zt_key k;
    for (size_t i = 0; i < w->n_ips; i++) {
        zt_key_address(&k, w->network, &w->ips[i]);
        multi_set(&s->by_address, &k, e, add);
    }
}

static bool same_addresses(const struct zt_workload *a, const struct zt_workload *b)
{
    if (a->host_network != b->host_network || a->n_ips != b->n_ips ||
        strcmp(a->network, b->network) != 0)
        return false;
    for (size_t i = 0; i < a->n_ips; i++)
        if (!zt_ip_equal(&a->ips[i], &b->ips[i]))
            return false;
    return true;
}

static void count_identity(struct zt_store *s, const struct zt_workload *w, bool add)
{
    char text[ZT_IDENTITY_MAX];
    if (!zt_workload_identity(w, text))
        return;
    struct zt_identity_use *u;
    HASH_FIND(hh, s->identities, text, strlen(text), u);
    if (add) {
        if (!u) {
            u = zt_zalloc(sizeof *u + strlen(text) + 1);
            memcpy(u->text, text, strlen(text));
            HASH_ADD_KEYPTR(hh, s->identities, u->text, strlen(text), u);
        }
        u->n++;
    } else if (u && --u->n == 0) {
        HASH_DEL(s->identities, u);
        zt_free(u);
    }
}

static void index_local(struct zt_store *s, struct zt_workload_entry *e,
                        const struct zt_workload *w, bool add)
{
    struct zt_key k;
    if (*w->hostname) {
        zt_key_texts(&k, w->ns, w->hostname, NULL);
        multi_set(&s->by_host, &k, e, add);
    }
    if (!zt_workload_is_local(s, w))
        return;
    count_identity(s, w, add);
    zt_key_texts(&k, w->ns, w->service_account, w->name);
    multi_set(&s->local, &k, e, add);
}

static bool same_services(const struct zt_workload *a, const struct zt_workload *b)
{
    if (a->n_services != b->n_services)
        return false;
    for (size_t i = 0; i < a->n_services; i++)
        if (strcmp(a->services[i].hostname, b->services[i].hostname) != 0 ||
            strcmp(a->services[i].ns, b->services[i].ns) != 0)
            return false;
    return true;
}

/* Most updates change neither addresses nor services: those indexes are then left alone. */
static void reindex_workload(struct zt_store *s, struct zt_workload_entry *e,
                             const struct zt_workload *old, const struct zt_workload *live)
{
    bool keep_addresses = old && live && same_addresses(old, live);
    bool keep_services = old && live && same_services(old, live);
    if (old) {
        if (!keep_addresses)
            index_addresses(s, e, old, false);
        index_local(s, e, old, false);
        if (!keep_services)
            zt_index_detach(s, e);
    }
    if (live) {
        if (!keep_addresses)
            index_addresses(s, e, live, true);
        index_local(s, e, live, true);
        if (!keep_services)
            zt_index_attach(s, e, live);
        e->sequence = ++s->sequence;
        e->hh.key = live->uid; /* equal bytes; the old record's copy may go away */
    }
}

void zt_index_set_workload(struct zt_store *s, const char *uid, enum zt_origin o,
                           struct zt_workload *w, struct zt_workload **old,
                           struct zt_workload **live)
{
    *old = *live = NULL;
    struct zt_workload_entry *e = zt_find_uid(s, uid);
    if (!e) {
        if (!w)
            return;
        size_t len = strlen(w->uid);
        uint32_t hash = zt_map_hash(w->uid, len);
        e = zt_new(struct zt_workload_entry);
        HASH_ADD_KEYPTR_BYHASHVALUE(hh, s->workloads[zt_shard_of(hash)], w->uid, len, hash, e);
    }
    struct zt_workload *before = zt_entry_workload(e), *replaced = e->records[o];
    e->records[o] = w;
    e->generation[o] = s->generation;
    struct zt_workload *after = zt_entry_workload(e);
    *old = zt_workload_ref(before);
    *live = after;
    if (before != after) {
        reindex_workload(s, e, before, after);
        s->n_workloads += (size_t) !!after - (size_t) !!before;
    }
    if (!after) {
        HASH_DEL(s->workloads[zt_shard_of(e->hh.hashv)], e);
        zt_free(e);
    }
    zt_workload_unref(replaced);
}

/* ---- services ---- */

static void count_cidr(struct zt_store *s, const struct zt_vip *v, bool add)
{
    struct zt_cidr_lengths *c;
    size_t len = strlen(v->network);
    HASH_FIND(hh, s->cidr_lengths, v->network, len, c);
    if (!c) {
        c = zt_zalloc(sizeof *c + len + 1);
        memcpy(c->network, v->network, len);
        HASH_ADD_KEYPTR(hh, s->cidr_lengths, c->network, len, c);
    }
    uint32_t change = add ? 1 : (uint32_t)-1;
    c->n[v->cidr.ip.family == ZT_IPV6][v->cidr.prefix_bits] += change;
    c->total += change;
    if (c->total == 0) {
        HASH_DEL(s->cidr_lengths, c);
        zt_free(c);
    }
}

static void index_service(struct zt_store *s, struct zt_service_entry *e,
                          const struct zt_service *v, bool add)
{
    struct zt_key k;
    zt_key_texts(&k, v->hostname, "", NULL);
    multi_set(&s->service_by_host, &k, e, add);
    for (size_t i = 0; i < v->n_vips; i++) {
        const struct zt_vip *vip = &v->vips[i];
        struct zt_multi_map *map = vip->exact ? &s->service_by_vip : &s->service_by_cidr;
        if (vip->exact)
            zt_key_address(&k, vip->network, &vip->cidr.ip);
        else
            zt_key_cidr(&k, vip->network, &vip->cidr.ip, vip->cidr.prefix_bits);
        multi_set(map, &k, e, add);
        if (!vip->exact)
            count_cidr(s, vip, add);
    }
}

bool zt_index_set_service(struct zt_store *s, const char *ns, const char *hostname,
                          enum zt_origin o, struct zt_service *v)
{
    struct zt_service_entry *e =
        v ? zt_index_service_entry(s, ns, hostname) : zt_find_service_entry(s, ns, hostname);
    if (!e)
        return false;
    struct zt_service *before = zt_entry_service(e), *replaced = e->records[o];
    e->records[o] = v;
    e->generation[o] = s->generation;
    struct zt_service *after = zt_entry_service(e);
    if (before != after) {
        if (before)
            index_service(s, e, before, false);
        else
            e->sequence = ++s->sequence;
        if (after)
            index_service(s, e, after, true);
        s->n_services += (size_t) !!after - (size_t) !!before;
    }
    zt_index_service_release(s, e);
    zt_service_unref(replaced);
    return before != after;
}

/* ---- policies ---- */

static void index_policy(struct zt_store *s, struct zt_policy_entry *e, const struct zt_policy *p,
                         bool add)
{
    if (p->scope == ZT_POLICY_SELECTOR)
        return; /* reachable by key only */
    struct zt_key k;
    zt_key_texts(&k, p->scope == ZT_POLICY_GLOBAL ? "" : p->ns, "", NULL);
    multi_set(&s->policy_by_ns, &k, e, add);
}

bool zt_index_set_policy(struct zt_store *s, const char *key, enum zt_origin o, struct zt_policy *p)
{
    struct zt_policy_entry *e;
    HASH_FIND(hh, s->policies, key, strlen(key), e);
    if (!e) {
        if (!p)
            return false;
        e = zt_new(struct zt_policy_entry);
        HASH_ADD_KEYPTR(hh, s->policies, p->key, strlen(p->key), e);
    }
    struct zt_policy *before = zt_entry_policy(e), *replaced = e->records[o];
    e->records[o] = p;
    e->generation[o] = s->generation;
    struct zt_policy *after = zt_entry_policy(e);
    bool changed = before != after;
    if (changed) {
        if (before)
            index_policy(s, e, before, false);
        if (after) {
            index_policy(s, e, after, true);
            e->hh.key = after->key;
        }
        s->n_policies += (size_t) !!after - (size_t) !!before;
    }
    if (!after) {
        HASH_DEL(s->policies, e);
        zt_free(e);
    }
    zt_policy_unref(replaced);
    return changed;
}

/* ---- the end ---- */

static void clear_workloads(struct zt_store *s)
{
    for (uint32_t i = 0; i < ZT_SHARDS; i++) {
        struct zt_workload_entry *w;
        while ((w = s->workloads[i])) {
            zt_index_detach(s, w);
            HASH_DEL(s->workloads[i], w);
            for (int o = 0; o < ZT_ORIGINS; o++)
                zt_workload_unref(w->records[o]);
            zt_free(w);
        }
    }
}

void zt_index_clear(struct zt_store *s)
{
    clear_workloads(s);
    struct zt_service_entry *v, *v_next;
    HASH_ITER(hh, s->services, v, v_next)
    {
        for (int o = 0; o < ZT_ORIGINS; o++) {
            zt_service_unref(v->records[o]);
            v->records[o] = NULL;
        }
        zt_index_service_release(s, v);
    }
    struct zt_policy_entry *p, *p_next;
    HASH_ITER(hh, s->policies, p, p_next)
    {
        HASH_DEL(s->policies, p);
        for (int o = 0; o < ZT_ORIGINS; o++)
            zt_policy_unref(p->records[o]);
        zt_free(p);
    }
    multi_clear(&s->by_address);
    multi_clear(&s->by_host);
    multi_clear(&s->local);
    multi_clear(&s->service_by_host);
    multi_clear(&s->service_by_vip);
    multi_clear(&s->service_by_cidr);
    multi_clear(&s->policy_by_ns);
    struct zt_cidr_lengths *c, *c_next;
    HASH_ITER(hh, s->cidr_lengths, c, c_next)
    {
        HASH_DEL(s->cidr_lengths, c);
        zt_free(c);
    }
    struct zt_identity_use *u, *u_next;
    HASH_ITER(hh, s->identities, u, u_next)
    {
        HASH_DEL(s->identities, u);
        zt_free(u);
    }
}
