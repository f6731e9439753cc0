/* Lookups (spec/dataplane §2.3, spec/controlplane §4.8): the zt_find_* functions expect the lock,
 * the public ones take it and return retained records. */
#include "state_impl.h"

#include <string.h>

/* ---- under the lock ---- */

struct zt_workload_entry *zt_find_uid(struct zt_store *s, const char *uid)
{
    struct zt_workload_entry *e;
    size_t len = strlen(uid);
    uint32_t hash = zt_map_hash(uid, len);
    HASH_FIND_BYHASHVALUE(hh, s->workloads[zt_shard_of(hash)], uid, len, hash, e);
    return e;
}

struct zt_service_entry *zt_find_service_entry(struct zt_store *s, const char *ns,
                                               const char *hostname)
{
    struct zt_key k;
    struct zt_service_entry *e = NULL;
    zt_key_texts(&k, ns, hostname, NULL);
    if (k.len > 0)
        HASH_FIND(hh, s->services, k.bytes, k.len, e);
    return e;
}

struct zt_service_entry *zt_find_service(struct zt_store *s, const char *ns, const char *hostname)
{
    struct zt_service_entry *e = zt_find_service_entry(s, ns, hostname);
    return e && zt_entry_service(e) ? e : NULL;
}

static bool is_visible(const struct zt_service *v, const char *client_ns)
{
    return !client_ns || !v->namespace_visible_only || strcmp(v->ns, client_ns) == 0;
}

/* How strong a candidate is at one name or address. The list is in no order, so "first" and "last
 * seen" are told by sequence: the oldest in the client's namespace, else the youngest canonical
 * one, else (names asked by DNS) the one in the preferred namespace, else the oldest. Under a CIDR
 * canonical counts in the client's namespace too, and the oldest of equals wins. */
enum tie { BY_ORDER, BY_CIDR_RANK };
static bool is_better(const struct zt_service_entry *a, const struct zt_service_entry *b,
                      const char *client_ns, const char *preferred_ns, enum tie tie)
{
    if (!b)
        return true;
    const struct zt_service *va = zt_entry_service(a), *vb = zt_entry_service(b);
    bool a_own = client_ns && strcmp(va->ns, client_ns) == 0;
    bool b_own = client_ns && strcmp(vb->ns, client_ns) == 0;
    if (a_own != b_own)
        return a_own;
    if ((tie == BY_CIDR_RANK || !a_own) && va->canonical != vb->canonical)
        return va->canonical;
    bool a_preferred = preferred_ns && strcmp(va->ns, preferred_ns) == 0;
    bool b_preferred = preferred_ns && strcmp(vb->ns, preferred_ns) == 0;
    if (!a_own && !va->canonical && a_preferred != b_preferred)
        return a_preferred;
    return tie == BY_ORDER && !a_own && va->canonical ? a->sequence > b->sequence
                                                      : a->sequence < b->sequence;
}

static struct zt_service_entry *best_service(const struct zt_multi *m, const char *client_ns,
                                             enum tie tie)
{
    struct zt_service_entry *best = NULL;
    for (uint32_t i = 0; m && i < m->n; i++) {
        struct zt_service_entry *e = zt_multi_at(m, i);
        if (is_visible(zt_entry_service(e), client_ns) && is_better(e, best, client_ns, NULL, tie))
            best = e;
    }
    return best;
}

struct zt_service_entry *zt_find_service_by_hostname(struct zt_store *s, const char *hostname,
                                                     const char *client_ns)
{
    struct zt_key k;
    zt_key_texts(&k, hostname, "", NULL);
    return best_service(zt_multi_find(&s->service_by_host, &k), client_ns, BY_ORDER);
}

/* Does a name asked by DNS mean the service? One without an address of its own only where Kubernetes
 * has headless services: elsewhere nobody promised that we know all its endpoints. */
static bool is_nameable(const struct zt_service *v, const char *kube_suffix)
{
    size_t len = strlen(v->hostname), suffix = strlen(kube_suffix);
    return v->n_vips > 0 || (len > suffix && strcmp(v->hostname + len - suffix, kube_suffix) == 0);
}

struct zt_service_entry *zt_find_service_by_dns_name(struct zt_store *s, const char *hostname,
                                                     const char *client_ns, const char *kube_suffix)
{
    struct zt_key k;
    zt_key_texts(&k, hostname, "", NULL);
    const struct zt_multi *m = zt_multi_find(&s->service_by_host, &k);
    struct zt_service_entry *best = NULL;
    for (uint32_t i = 0; m && i < m->n; i++) {
        struct zt_service_entry *e = zt_multi_at(m, i);
        const struct zt_service *v = zt_entry_service(e);
        if (is_visible(v, client_ns) && is_nameable(v, kube_suffix) &&
            is_better(e, best, client_ns, s->preferred_namespace, BY_ORDER))
            best = e;
    }
    return best;
}

/* Rank of a CIDR service: in the client's namespace, then prefix length, then canonical; the oldest
 * of equals. */
static struct zt_service_entry *best_by_cidr(struct zt_store *s, const char *network,
                                             const struct zt_ip *ip, const char *client_ns)
{
    const struct zt_cidr_lengths *c;
    HASH_FIND(hh, s->cidr_lengths, network, strlen(network), c);
    if (!c)
        return NULL;
    const uint32_t *n = c->n[ip->family == ZT_IPV6];
    struct zt_service_entry *best = NULL;
    struct zt_key k;
    for (int bits = ip->family == ZT_IPV6 ? 128 : 32; bits >= 0; bits--) {
        if (n[bits] == 0)
            continue;
        zt_key_cidr(&k, network, ip, (uint8_t)bits);
        struct zt_service_entry *e =
            best_service(zt_multi_find(&s->service_by_cidr, &k), client_ns, BY_CIDR_RANK);
        if (!e)
            continue;
        if (client_ns && strcmp(zt_entry_service(e)->ns, client_ns) == 0)
            return e; /* nothing shorter can outrank it */
        if (!best)
            best = e; /* the longest; a shorter one wins only in the client's namespace */
    }
    return best;
}

struct zt_service_entry *zt_find_service_at(struct zt_store *s, const char *network,
                                            const struct zt_ip *ip, const char *client_ns)
{
    struct zt_key k;
    zt_key_address(&k, network, ip);
    struct zt_service_entry *e =
        best_service(zt_multi_find(&s->service_by_vip, &k), client_ns, BY_ORDER);
    return e ? e : best_by_cidr(s, network, ip, client_ns);
}

static int workload_rank(const struct zt_workload *w)
{
    return (strstr(w->uid, "//Pod/") ? 2 : 0) + (w->protocol == ZT_PROTOCOL_HBONE ? 1 : 0);
}

struct zt_workload *zt_find_workload_at(struct zt_store *s, const char *network,
                                        const struct zt_ip *ip)
{
    struct zt_key k;
    zt_key_address(&k, network, ip);
    const struct zt_multi *m = zt_multi_find(&s->by_address, &k);
    const struct zt_workload_entry *best = NULL;
    int best_rank = -1;
    for (uint32_t i = 0; m && i < m->n; i++) {
        const struct zt_workload_entry *e = zt_multi_at(m, i);
        int rank = workload_rank(zt_entry_workload(e));
        if (rank > best_rank || (rank == best_rank && e->sequence > best->sequence)) {
            best = e;
            best_rank = rank;
        }
    }
    return best ? zt_entry_workload(best) : NULL;
}

/* The latest inserted of several. */
static struct zt_workload *latest(const struct zt_multi *m)
{
    const struct zt_workload_entry *best = NULL;
    for (uint32_t i = 0; m && i < m->n; i++) {
        const struct zt_workload_entry *e = zt_multi_at(m, i);
        if (!best || e->sequence > best->sequence)
            best = e;
    }
    return best ? zt_entry_workload(best) : NULL;
}

struct zt_workload *zt_find_workload_by_host(struct zt_store *s, const char *ns,
                                             const char *hostname)
{
    struct zt_key k;
    zt_key_texts(&k, ns, hostname, NULL);
    return latest(zt_multi_find(&s->by_host, &k));
}

/* ---- public ---- */

/* Takes what was found under the lock out of it. */
static struct zt_workload *leave_with_workload(struct zt_store *s, const struct zt_workload *w)
{
    struct zt_workload *own = zt_workload_ref(w);
    pthread_rwlock_unlock(&s->lock);
    return own;
}

static struct zt_service *leave_with_service(struct zt_store *s, const struct zt_service_entry *e)
{
    struct zt_service *own = e ? zt_service_ref(zt_entry_service(e)) : NULL;
    pthread_rwlock_unlock(&s->lock);
    return own;
}

struct zt_workload *zt_store_find_local(struct zt_store *s, const char *ns, const char *name,
                                        const char *service_account)
{
    struct zt_key k;
    zt_key_texts(&k, ns, service_account, name);
    pthread_rwlock_rdlock(&s->lock);
    return leave_with_workload(s, latest(zt_multi_find(&s->local, &k)));
}

struct zt_workload *zt_store_find_workload(struct zt_store *s, const char *uid)
{
    pthread_rwlock_rdlock(&s->lock);
    const struct zt_workload_entry *e = zt_find_uid(s, uid);
    return leave_with_workload(s, e ? zt_entry_workload(e) : NULL);
}

struct zt_workload *zt_store_workload_at(struct zt_store *s, const char *network,
                                         const struct zt_ip *ip)
{
    pthread_rwlock_rdlock(&s->lock);
    return leave_with_workload(s, zt_find_workload_at(s, network, ip));
}

struct zt_service *zt_store_service_by_hostname(struct zt_store *s, const char *hostname,
                                                const char *client_ns)
{
    pthread_rwlock_rdlock(&s->lock);
    return leave_with_service(s, zt_find_service_by_hostname(s, hostname, client_ns));
}

struct zt_service *zt_store_service_at(struct zt_store *s, const char *network,
                                       const struct zt_ip *ip, const char *client_ns)
{
    pthread_rwlock_rdlock(&s->lock);
    return leave_with_service(s, zt_find_service_at(s, network, ip, client_ns));
}

static uint16_t mapped_port(struct zt_store *s, const struct zt_service_entry *e, const char *uid,
                            uint16_t service_port)
{
    const struct zt_port_map *ports;
    unsigned n;
    if (!zt_find_endpoint_ports(s, e, uid, &ports, &n))
        return 0;
    int target = zt_port_map_find(ports, n, service_port);
    return target > 0 ? (uint16_t)target : 0;
}

uint16_t zt_store_endpoint_port(struct zt_store *s, const struct zt_service *v,
                                const char *workload_uid, uint16_t service_port)
{
    pthread_rwlock_rdlock(&s->lock);
    const struct zt_service_entry *e = zt_find_service(s, v->ns, v->hostname);
    uint16_t port = e ? mapped_port(s, e, workload_uid, service_port) : 0;
    pthread_rwlock_unlock(&s->lock);
    return port;
}

/* Does some port of the service lead to dst_port at this workload? */
static bool serves_port(struct zt_store *s, const struct zt_service_entry *e, const char *uid,
                        uint16_t dst_port)
{
    const struct zt_service *v = zt_entry_service(e);
    const struct zt_port_map *ports;
    unsigned n = 0;
    if (!zt_find_endpoint_ports(s, e, uid, &ports, &n))
        n = 0;
    for (size_t i = 0; i < v->n_ports; i++) {
        if (v->ports[i].target_port == dst_port)
            return true;
        if (zt_port_map_find(ports, n, v->ports[i].service_port) == dst_port)
            return true;
    }
    return false;
}

static const struct zt_service_entry *guess(struct zt_store *s, const struct zt_workload *w,
                                            const struct zt_service *only, const char *host,
                                            uint16_t dst_port)
{
    size_t n = only ? 1 : w->n_services;
    for (int pass = host ? 0 : 1; pass < 2; pass++) /* by host, then by port */
        for (size_t i = 0; i < n; i++) {
            const char *ns = only ? only->ns : w->services[i].ns;
            const char *hostname = only ? only->hostname : w->services[i].hostname;
            const struct zt_service_entry *e = zt_find_service(s, ns, hostname);
            if (e &&
                (pass == 0 ? strcmp(hostname, host) == 0 : serves_port(s, e, w->uid, dst_port)))
                return e;
        }
    return NULL;
}

struct zt_service *zt_store_guess_service(struct zt_store *s, const struct zt_workload *w,
                                          const struct zt_service *only, const char *host,
                                          uint16_t dst_port)
{
    pthread_rwlock_rdlock(&s->lock);
    return leave_with_service(s, guess(s, w, only, host, dst_port));
}

/* The waypoint reference is us when it names a service we are an endpoint of, or an address of
 * ours. */
static bool is_us(struct zt_store *s, const struct zt_gateway_ref *g, const struct zt_workload *w,
                  const struct zt_ip *local)
{
    const struct zt_service_entry *v = NULL;
    const struct zt_workload *other = NULL;
    if (g->ip.family != ZT_IP_NONE) {
        other = zt_find_workload_at(s, g->network, &g->ip);
        if (!other)
            v = zt_find_service_at(s, g->network, &g->ip, NULL);
    } else {
        v = zt_find_service(s, g->ns, g->hostname);
        if (!v)
            other = zt_find_workload_by_host(s, g->ns, g->hostname);
    }
    const struct zt_port_map *ports;
    unsigned n;
    if (v)
        return zt_find_endpoint_ports(s, v, w->uid, &ports, &n);
    for (size_t i = 0; other && i < other->n_ips; i++)
        if (zt_ip_equal(&other->ips[i], local))
            return true;
    return false;
}

bool zt_store_is_waypoint_of(struct zt_store *s, const struct zt_workload *w,
                             const struct zt_ip *local, const struct zt_ip *ip)
{
    const struct zt_gateway_ref *waypoint = NULL;
    pthread_rwlock_rdlock(&s->lock);
    const struct zt_workload *target = zt_find_workload_at(s, s->network, ip);
    if (target) {
        waypoint = target->waypoint;
    } else {
        const struct zt_service_entry *v = zt_find_service_at(s, s->network, ip, NULL);
        if (v)
            waypoint = zt_entry_service(v)->waypoint;
    }
    bool yes = waypoint && is_us(s, waypoint, w, local);
    pthread_rwlock_unlock(&s->lock);
    return yes;
}

void zt_store_counts(struct zt_store *s, size_t *workloads, size_t *services, size_t *policies)
{
    pthread_rwlock_rdlock(&s->lock);
    *workloads = s->n_workloads;
    *services = s->n_services;
    *policies = s->n_policies;
    pthread_rwlock_unlock(&s->lock);
}
