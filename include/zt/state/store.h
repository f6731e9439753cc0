/* The state store: all workloads, services and policies under one read-write lock, writers preferred (spec/controlplane §4).
 * Readers lock inside the call and get retained records; nobody is called back under the lock.
 *
 * Endpoint tables belong to the store's service entries, not to the service records: a workload's arrival changes one entry, in any
 * order of arrival (staged endpoints), and health is filtered at pick time. */
#ifndef ZT_STATE_STORE_H
#define ZT_STATE_STORE_H

#include "zt/state/policy.h"
#include "zt/state/workload.h"

struct zt_store;

struct zt_store_config { /* strings are copied */
    const char *network;              /* NETWORK */
    const char *node;                 /* NODE_NAME, NULL = unset: every workload counts as local */
    const char *preferred_namespace;  /* PREFERED_SERVICE_NAMESPACE, or NULL; for names asked by DNS only (names.h) */
    bool authz_info_logging;          /* AUTHZ_POLICY_INFO_LOGGING: decision lines at info instead of debug */
};

struct zt_store *zt_store_new(const struct zt_store_config *c); /* returns owned */
void zt_store_free(struct zt_store *s);
const char *zt_store_network(const struct zt_store *s);

/* ---- changes: prepared without the lock, applied in batches. Thread: apply or control ---- */

/* Origins (spec/controlplane §5, departed from): every key has one slot per origin. A record from xDS hides the file's; when xDS removes its
 * record the file's is visible again. A removal takes away its own origin's record only. */
struct zt_batch; /* an ordered list of changes; owned by its maker until applied */
#define ZT_BATCH_LOCK_RECORDS_MAX 250 /* records per lock hold: under a millisecond, 3 ms when tables grow */

struct zt_batch *zt_batch_new(enum zt_origin origin);
void zt_batch_free(struct zt_batch *b);
void zt_batch_put_workload(struct zt_batch *b, struct zt_workload *w); /* takes */
void zt_batch_put_service(struct zt_batch *b, struct zt_service *v);   /* takes */
void zt_batch_put_policy(struct zt_batch *b, struct zt_policy *p);     /* takes */
void zt_batch_remove_workload(struct zt_batch *b, const char *uid);
void zt_batch_remove_service(struct zt_batch *b, const char *ns, const char *hostname);
void zt_batch_remove_policy(struct zt_batch *b, const char *key);
/* This batch is all there is of its origin: whatever else that origin delivered before is removed (a file's reload). */
void zt_batch_set_complete(struct zt_batch *b);
size_t zt_batch_size(const struct zt_batch *b);

/* What a batch did, for the signals that follow. */
struct zt_store_changes {
    size_t n_workloads, n_services, n_policies; /* inserted, replaced or removed */
    bool policies;  /* open connections must be judged again (policies or a workload's policy list changed) */
    /* Certificate hints (spec/controlplane §6.4): identities of local HBONE workloads that arrived, and those whose last
     * local workload left. Owned; NULL-terminated lists. */
    char **prefetch, **forget;
};
/* Applies and frees the batch: policies as a whole, then addresses in pieces of at most ZT_BATCH_LOCK_RECORDS_MAX records per lock
 * hold; what a complete batch removes goes last, policies at the very end, so that no listed policy is missing for a moment. */
void zt_store_apply(struct zt_store *s, struct zt_batch *b, struct zt_store_changes *out);
void zt_store_changes_fini(struct zt_store_changes *c);
/* Frees records whose last reference a worker dropped. Thread: control, now and then. */
void zt_store_collect(struct zt_store *s);

/* ---- lookups. Thread: any. Records are returned owned (retained) or NULL ---- */

/* The local workload of a pod by the triple the CNI gave (spec/controlplane §4.8 find_by_info). */
struct zt_workload *zt_store_find_local(struct zt_store *s, const char *ns, const char *name, const char *service_account);
struct zt_workload *zt_store_find_workload(struct zt_store *s, const char *uid);
struct zt_workload *zt_store_workload_at(struct zt_store *s, const char *network, const struct zt_ip *ip);
/* Best service by hostname as client_ns sees it. */
struct zt_service *zt_store_service_by_hostname(struct zt_store *s, const char *hostname, const char *client_ns);
struct zt_service *zt_store_service_at(struct zt_store *s, const char *network, const struct zt_ip *ip, const char *client_ns);
/* The endpoint port map's answer for a workload in a service: target port, 0 = not mapped. */
uint16_t zt_store_endpoint_port(struct zt_store *s, const struct zt_service *v, const char *workload_uid, uint16_t service_port);
/* Inbound telemetry (spec/dataplane §11.3): the service meant by host (may be NULL) or guessed by the destination port. `only`: the service
 * named in the authority, or NULL for all services of the workload. */
struct zt_service *zt_store_guess_service(struct zt_store *s, const struct zt_workload *w, const struct zt_service *only,
                                          const char *host, uint16_t dst_port);
/* Are we (workload w, address local) the waypoint of ip? (spec/dataplane §4.5 step 4) */
bool zt_store_is_waypoint_of(struct zt_store *s, const struct zt_workload *w, const struct zt_ip *local, const struct zt_ip *ip);

/* ---- what this node's connections make of an endpoint: zt_route_resolve prefers few connections, and who has not just failed.
 * Unknown uids are ignored. Thread: any ---- */
#define ZT_STORE_AVOID_S 10 /* an endpoint that could not be dialled is the last choice for so long */
void zt_store_endpoint_opened(struct zt_store *s, const char *uid);
void zt_store_endpoint_closed(struct zt_store *s, const char *uid);
void zt_store_endpoint_failed(struct zt_store *s, const char *uid);

/* How many records are live now. */
void zt_store_counts(struct zt_store *s, size_t *workloads, size_t *services, size_t *policies);

/* ---- walking everything, for the dump: a retained, sorted snapshot. Free the arrays with the functions below. Thread: control ---- */
struct zt_workload **zt_store_snapshot_workloads(struct zt_store *s, size_t *n); /* by uid */
struct zt_service **zt_store_snapshot_services(struct zt_store *s, size_t *n);   /* by hostname, then insertion */
struct zt_policy **zt_store_snapshot_policies(struct zt_store *s, size_t *n);    /* by key */
void zt_store_snapshot_workloads_free(struct zt_workload **list, size_t n);
void zt_store_snapshot_services_free(struct zt_service **list, size_t n);
void zt_store_snapshot_policies_free(struct zt_policy **list, size_t n);
/* Calls fn for every endpoint of a service known or staged now; returned text is borrowed during the call. The lock is NOT held
 * during fn (a copy is walked). */
typedef void (*zt_endpoint_fn)(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n_ports, bool healthy);
void zt_store_each_endpoint(struct zt_store *s, const char *ns, const char *hostname, zt_endpoint_fn fn, void *arg);
/* The same for services that have not arrived: fn_service names one, fn its endpoints. */
typedef void (*zt_staged_fn)(void *arg, const char *ns, const char *hostname);
void zt_store_each_staged(struct zt_store *s, zt_staged_fn fn_service, zt_endpoint_fn fn, void *arg);

#endif
