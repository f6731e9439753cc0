/* Shared inside src/state only: how records are built and buried, the store's entries and indexes,
 * and the lookups that expect the lock to be held already.
 *
 * Two rules hold everywhere below:
 *  - functions named zt_index_* change the store and want the write lock;
 *  - functions named zt_find_* and zt_lb_* read it, want at least the read lock, and return
 * borrowed (until the lock is released). */
#ifndef ZT_STATE_IMPL_H
#define ZT_STATE_IMPL_H

#include "zt/base/map.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/state/route.h"
#include "zt/state/store.h"
#include <pthread.h>

#define ZT_RECORD_TEXT_MAX 2048                 /* bytes of any one string of a record */
#define ZT_RECORD_BYTES_MAX (64u * 1024 * 1024) /* of one record, all in */
#define ZT_WORKLOAD_SERVICES_MAX 4096           /* attaching is quadratic in this number */
#define ZT_ORIGINS 2

/* ---- record.c: one allocation per record, shared strings, the graveyard ---- */

/* Lays a record out twice: first measuring (base NULL), then for real. Only the second pass writes
 * or takes string references. */
struct zt_builder {
    char *base;    /* the record, or NULL while measuring */
    size_t used;   /* bytes */
    bool too_long; /* some text exceeds ZT_RECORD_TEXT_MAX */
};
/* Room for n elements; NULL while measuring or when n is 0. */
void *zt_builder_take(struct zt_builder *b, size_t n, size_t size, size_t align);
/* The same, filled from src. */
void *zt_builder_copy(struct zt_builder *b, const void *src, size_t n, size_t size, size_t align);
/* A string inside the record; NULL and "" become a static "". */
const char *zt_builder_text(struct zt_builder *b, const char *s);
/* A string many records share; the record's fini releases it with zt_text_release. */
const char *zt_builder_shared(struct zt_builder *b, const char *s);
typedef const char *(*zt_builder_text_fn)(struct zt_builder *b, const char *s);
void zt_text_release(const char *shared);
size_t zt_text_count(void); /* distinct shared strings alive, for tests */

/* Memory for a record of size bytes, zeroed. fini releases what the record holds, when its memory
 * is about to be freed. */
void *zt_record_new(size_t size, void (*fini)(void *record));
/* Nobody holds the record any more: to the graveyard. Thread: any. */
void zt_record_bury(void *record);
/* Frees the graveyard. Thread: any but a worker. */
void zt_record_collect(void);

/* ---- policy.c, policy_filter.c ---- */

/* A request with its identity taken apart once. Borrows the request. */
struct zt_subject {
    const struct zt_authz_request *request;
    const char *principal; /* identity without the scheme, or NULL: no (usable) identity */
    size_t principal_len;
    struct zt_identity_view view;
    uint64_t principal_bit, ns_bit, port_bit; /* for filters of lists */
};
struct zt_subject zt_subject_of(const struct zt_authz_request *r);
/* zt_policy_matches for many policies and one subject. */
bool zt_policy_matches_subject(const struct zt_policy *p, const struct zt_subject *s);

/* What must at least hold for a rule to match, in a form that costs a nanosecond and lies together for all rules of a policy. */
struct zt_rule_filter {
    uint8_t kind; /* enum in policy_filter.c; 0: the rule itself must be looked at */
    uint8_t n;    /* bytes of value */
    uint16_t at;  /* their place in the text */
    uint32_t mask;
    uint64_t value;
};
struct zt_rule_filter zt_rule_filter_of(const struct zt_rule *r);
bool zt_rule_holds(const struct zt_rule *r, const struct zt_subject *s); /* without its filter */
uint64_t zt_filter_bit(const char *text, size_t len); /* of a text in a list's 64 bits */

/* ---- index.c: entries and indexes ---- */

/* The big tables are cut into shards by the key's hash: a table that doubles moves all its items
 * under the write lock, and a million at once would be fifty milliseconds in which nobody routes.
 */
#define ZT_SHARD_BITS 6
#define ZT_SHARDS (1u << ZT_SHARD_BITS)
static inline uint32_t zt_shard_of(uint32_t hash)
{
    return hash >> (32 - ZT_SHARD_BITS); /* the tables themselves use the low bits */
}

/* Several items under one key of bytes, in no order that matters. */
struct zt_multi {
    UT_hash_handle hh;
    union {
        void *one;   /* n == 1 */
        void **many; /* n > 1, or cap > 0 */
    } items;
    uint32_t n, cap;
    char key[];
};
struct zt_multi_map {
    struct zt_multi *shards[ZT_SHARDS];
};
static inline void *zt_multi_at(const struct zt_multi *m, uint32_t i)
{
    return m->cap ? m->items.many[i] : m->items.one;
}

/* A workload as endpoint of a service. */
struct zt_endpoint {
    struct zt_workload_entry *owner;
    struct zt_service_entry *service;
    uint32_t index;    /* which of the workload's services */
    uint32_t position; /* in service->endpoints */
};

/* All that is known under one uid. The record of the highest origin is the live one; the others
 * wait behind it. */
struct zt_workload_entry {
    UT_hash_handle hh; /* key: the live record's uid */
    struct zt_workload *records[ZT_ORIGINS];
    struct zt_endpoint *endpoints;
    uint64_t sequence; /* of the latest insert */
    uint32_t generation[ZT_ORIGINS];
    uint32_t n_endpoints;
    /* What this node's connections make of it; changed under the read lock. */
    atomic_uint n_open;       /* connections */
    atomic_uint avoid_until_s; /* monotonic; 0: no reason to avoid it */
};
struct zt_service_entry {
    UT_hash_handle hh;
    struct zt_service *records[ZT_ORIGINS]; /* both NULL: staged, only endpoints are known */
    struct zt_endpoint **endpoints;
    uint64_t sequence; /* of the first insert */
    uint32_t generation[ZT_ORIGINS];
    uint32_t n_endpoints, cap_endpoints;
    const char *hostname; /* points into key */
    char key[];           /* "namespace" NUL "hostname" NUL */
};
struct zt_policy_entry {
    UT_hash_handle hh; /* key: the live record's key */
    struct zt_policy *records[ZT_ORIGINS];
    uint32_t generation[ZT_ORIGINS];
};
static inline struct zt_workload *zt_entry_workload(const struct zt_workload_entry *e)
{
    return e->records[ZT_ORIGIN_XDS] ? e->records[ZT_ORIGIN_XDS] : e->records[ZT_ORIGIN_FILE];
}
static inline struct zt_service *zt_entry_service(const struct zt_service_entry *e)
{
    return e->records[ZT_ORIGIN_XDS] ? e->records[ZT_ORIGIN_XDS] : e->records[ZT_ORIGIN_FILE];
}
static inline struct zt_policy *zt_entry_policy(const struct zt_policy_entry *e)
{
    return e->records[ZT_ORIGIN_XDS] ? e->records[ZT_ORIGIN_XDS] : e->records[ZT_ORIGIN_FILE];
}

/* Which prefix lengths a network's CIDR services use: a lookup tries only those, longest first. */
struct zt_cidr_lengths {
    UT_hash_handle hh;
    uint32_t n[2][129]; /* services per family (IPv4 first) and length */
    uint32_t total;
    char network[];
};
/* How many local workloads run under an identity. */
struct zt_identity_use {
    UT_hash_handle hh;
    uint32_t n;
    char text[];
};

struct zt_store {
    pthread_rwlock_t lock;       /* everything below but the configuration */
    pthread_mutex_t apply_mutex; /* one batch at a time; taken before lock */
    char *network, *node, *preferred_namespace;
    bool authz_info_logging;

    struct zt_workload_entry *workloads[ZT_SHARDS];
    struct zt_service_entry *services;
    struct zt_policy_entry *policies;
    struct zt_multi_map by_address; /* (ip, network) -> workload entries, host network excepted */
    struct zt_multi_map
        by_host;               /* (namespace, hostname) -> workload entries that have a hostname */
    struct zt_multi_map local; /* (namespace, service account, name) -> local workload entries */
    struct zt_multi_map service_by_host; /* hostname -> service entries */
    struct zt_multi_map service_by_vip;  /* (ip, network) -> service entries */
    struct zt_multi_map service_by_cidr; /* (prefix, network) -> service entries */
    struct zt_multi_map policy_by_ns;    /* namespace, "" for global -> policy entries */
    struct zt_cidr_lengths *cidr_lengths;
    struct zt_identity_use *identities;
    uint64_t sequence;
    uint32_t generation;
    size_t n_workloads, n_services, n_policies; /* live records */
};

/* A composed key. */
#define ZT_KEY_MAX (3 * ZT_RECORD_TEXT_MAX + 8)
struct zt_key {
    size_t len; /* 0: did not fit, nothing can be found under it */
    char bytes[ZT_KEY_MAX];
};
void zt_key_texts(struct zt_key *k, const char *a, const char *b,
                  const char *c); /* c may be NULL */
void zt_key_address(struct zt_key *k, const char *network, const struct zt_ip *ip);
void zt_key_cidr(struct zt_key *k, const char *network, const struct zt_ip *ip, uint8_t bits);
const struct zt_multi *zt_multi_find(const struct zt_multi_map *map, const struct zt_key *k);

bool zt_workload_is_local(const struct zt_store *s, const struct zt_workload *w);
/* Sets the record of an origin (NULL takes it away) and brings every index up to date. Takes the
 * record. *old and *live are the visible records before and after; old is retained (release it),
 * live borrowed; both may be the same or NULL. */
void zt_index_set_workload(struct zt_store *s, const char *uid, enum zt_origin o,
                           struct zt_workload *w, struct zt_workload **old,
                           struct zt_workload **live);
/* True when something changed. */
bool zt_index_set_service(struct zt_store *s, const char *ns, const char *hostname,
                          enum zt_origin o, struct zt_service *v);
bool zt_index_set_policy(struct zt_store *s, const char *key, enum zt_origin o,
                         struct zt_policy *p);
void zt_index_clear(struct zt_store *s);

/* ---- endpoint.c ---- */
void zt_index_attach(struct zt_store *s, struct zt_workload_entry *e, const struct zt_workload *w);
void zt_index_detach(struct zt_store *s, struct zt_workload_entry *e);
struct zt_service_entry *zt_index_service_entry(struct zt_store *s, const char *ns,
                                                const char *hostname);
/* Frees the entry when it holds neither a record nor endpoints. */
void zt_index_service_release(struct zt_store *s, struct zt_service_entry *e);
/* The endpoint that a workload is of a service, or NULL. */
const struct zt_endpoint *zt_find_endpoint(const struct zt_workload_entry *e,
                                           const struct zt_service_entry *v);
/* A workload's port map for a service, wherever it comes from (workload or file service). False:
 * not an endpoint. */
bool zt_find_endpoint_ports(struct zt_store *s, const struct zt_service_entry *v, const char *uid,
                            const struct zt_port_map **ports, unsigned *n);

/* ---- lookup.c ---- */
struct zt_workload_entry *zt_find_uid(struct zt_store *s, const char *uid);
/* The entry, staged ones included. */
struct zt_service_entry *zt_find_service_entry(struct zt_store *s, const char *ns,
                                               const char *hostname);
/* Only one that has arrived. */
struct zt_service_entry *zt_find_service(struct zt_store *s, const char *ns, const char *hostname);
struct zt_service_entry *zt_find_service_by_hostname(struct zt_store *s, const char *hostname,
                                                     const char *client_ns);
/* The same for a name asked by DNS: only services that a name can mean (with a VIP, or ending in kube_suffix, ".svc.<domain>"), and
 * the preferred namespace counts. */
struct zt_service_entry *zt_find_service_by_dns_name(struct zt_store *s, const char *hostname,
                                                     const char *client_ns, const char *kube_suffix);
struct zt_service_entry *zt_find_service_at(struct zt_store *s, const char *network,
                                            const struct zt_ip *ip, const char *client_ns);
struct zt_workload *zt_find_workload_at(struct zt_store *s, const char *network,
                                        const struct zt_ip *ip);
struct zt_workload *zt_find_workload_by_host(struct zt_store *s, const char *ns,
                                             const char *hostname);

/* ---- lb.c: spec/controlplane §4.9 to §4.11 ---- */
enum zt_lb_use {
    ZT_LB_FOR_TRAFFIC,
    ZT_LB_FOR_WAYPOINT
}; /* the spec's Standard and Waypoint mode */
enum zt_lb_result {
    ZT_LB_FOUND,
    ZT_LB_NOTHING,
    ZT_LB_ORIGINAL /* passthrough: where the client wanted to go */
};
struct zt_upstream {
    struct zt_workload *workload;
    struct zt_service_entry *service; /* or NULL: found by its own address */
    uint16_t port;                    /* target port */
    bool alternatives;                /* another endpoint could have been picked */
};
struct zt_lb_query {
    const struct zt_workload *src;
    uint16_t port;
    enum zt_lb_use use;
    const char *const *tried; /* uids that are not picked */
    unsigned n_tried;
    struct zt_str *trace; /* or NULL */
};
bool zt_lb_pick(struct zt_store *s, struct zt_service_entry *v, const struct zt_lb_query *q,
                struct zt_upstream *out);
enum zt_lb_result zt_lb_upstream(struct zt_store *s, const char *network, const struct zt_ip *ip,
                                 const struct zt_lb_query *q, struct zt_upstream *out);
/* Which of the workload's addresses serves a client that asked for `wanted`. False: none usable. */
bool zt_lb_choose_ip(const struct zt_upstream *u, const struct zt_ip *wanted, struct zt_ip *out);
/* Spreads load; protects nothing. Thread: any. */
uint64_t zt_lb_random(void);
/* An index into weights by chance, in proportion; -1 when all are zero. */
int zt_lb_sample(const struct zt_weighted_waypoint *list, unsigned n);

/* ---- trace ---- */
#define ZT_TRACE(trace, ...)                                                                       \
    do {                                                                                           \
        if (trace)                                                                                 \
            zt_str_addf((trace), __VA_ARGS__);                                                     \
    } while (0)

#endif
