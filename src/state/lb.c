/* Which endpoint of a service serves a connection (spec/controlplane §4.9 to §4.11).
 *
 * Every connection is decided anew: no affinity, no outlier detection. Candidates are filtered,
 * ranked by the service's mode, and one of the best is drawn in proportion to its capacity. One
 * pass, constant memory: the winner so far is replaced by a candidate of weight w with probability
 * w / (total so far), which gives every candidate its share. */
#include "state_impl.h"

#include <string.h>
#include <sys/random.h>

/* xorshift64*, seeded once per thread. Spreads load; protects nothing. */
static uint64_t chance(void)
{
    static _Thread_local uint64_t x;
    while (x == 0)
        if (getrandom(&x, sizeof x, 0) != (ssize_t)sizeof x)
            x = (uint64_t)(uintptr_t)&x; /* before the kernel's pool is ready: any spread will do */
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return x * 0x2545f4914f6cdd1dULL;
}

/* True with probability weight / total. */
static bool chance_of(uint64_t weight, uint64_t total)
{
    return weight > 0 && chance() % total < weight;
}

int zt_lb_sample(const struct zt_weighted_waypoint *list, unsigned n)
{
    uint64_t total = 0;
    int picked = -1;
    for (unsigned i = 0; i < n; i++) {
        total += list[i].weight;
        if (chance_of(list[i].weight, total))
            picked = (int)i;
    }
    return picked;
}

/* An endpoint under consideration. */
struct candidate {
    struct zt_workload *workload;
    const struct zt_port_map *ports;
    unsigned n_ports;
};

/* What is looked for, and what has been found so far. */
struct search {
    const struct zt_lb_query *query;
    const struct zt_service *service;
    int target; /* the service's target port; 0 named, -1 not listed */
    bool ranked, strict;
    struct candidate best;
    int best_rank;
    uint64_t total; /* weights of the candidates of best_rank */
    unsigned n_best;
};

static bool is_usable(const struct search *f, const struct candidate *c)
{
    const struct zt_workload *w = c->workload;
    if (w->n_ips == 0 && !*w->hostname &&
        (!w->network_gateway || strcmp(w->network, f->query->src->network) == 0))
        return false;
    if (f->query->use == ZT_LB_FOR_TRAFFIC)
        return f->target != 0 || zt_port_map_find(c->ports, c->n_ports, f->query->port) > 0;
    return f->target >= 0 || w->has_app_tunnel;
}

static bool scope_matches(enum zt_lb_scope scope, const struct zt_workload *a,
                          const struct zt_workload *b)
{
    switch (scope) {
    case ZT_SCOPE_REGION:
        return strcmp(a->region, b->region) == 0;
    case ZT_SCOPE_ZONE:
        return strcmp(a->zone, b->zone) == 0;
    case ZT_SCOPE_SUBZONE:
        return strcmp(a->subzone, b->subzone) == 0;
    case ZT_SCOPE_NODE:
        return strcmp(a->node, b->node) == 0;
    case ZT_SCOPE_CLUSTER:
        return strcmp(a->cluster_id, b->cluster_id) == 0;
    case ZT_SCOPE_NETWORK:
        return strcmp(a->network, b->network) == 0;
    }
    return false;
}

/* Consecutive matches along the preferences; -1: strict and not all match. A leading NETWORK
 * outweighs all the rest together, so that another network is the last resort, and yet the nearest
 * in it is preferred. */
static int rank_of(const struct search *f, const struct zt_workload *w)
{
    if (!f->ranked)
        return 0;
    const struct zt_service *v = f->service;
    int matched = 0;
    bool same_network_first = false;
    for (int i = 0; i < v->n_lb_scopes; i++) {
        enum zt_lb_scope scope = v->lb_scopes[i];
        bool leading_network = i == 0 && scope == ZT_SCOPE_NETWORK;
        if (scope_matches(scope, f->query->src, w)) {
            matched++;
            same_network_first |= leading_network;
        } else if (!leading_network) {
            break;
        }
    }
    if (f->strict && matched < v->n_lb_scopes)
        return -1;
    return matched + (same_network_first ? v->n_lb_scopes - 1 : 0);
}

static void consider(struct search *f, const struct candidate *c, bool healthy)
{
    if (!(healthy || f->service->lb_allow_all) || !is_usable(f, c))
        return;
    int rank = rank_of(f, c->workload);
    if (rank < f->best_rank || rank < 0)
        return;
    if (rank > f->best_rank) {
        f->best_rank = rank;
        f->total = 0;
        f->n_best = 0;
        f->best = (struct candidate){0};
    }
    f->n_best++;
    f->total += c->workload->capacity;
    if (chance_of(c->workload->capacity, f->total))
        f->best = *c;
}

static void consider_all(struct search *f, struct zt_store *s, const struct zt_service_entry *v)
{
    for (uint32_t i = 0; i < v->n_endpoints; i++) {
        const struct zt_endpoint *ep = v->endpoints[i];
        struct zt_workload *w = zt_entry_workload(ep->owner);
        const struct zt_workload_service *m = &w->services[ep->index];
        consider(f, &(struct candidate){w, m->ports, m->n_ports}, w->healthy);
    }
    for (uint32_t i = 0; i < f->service->n_endpoints; i++) {
        const struct zt_static_endpoint *e = &f->service->endpoints[i];
        const struct zt_workload_entry *owner = zt_find_uid(s, e->workload_uid);
        if (owner && !zt_find_endpoint(owner, v))
            consider(f, &(struct candidate){zt_entry_workload(owner), e->ports, e->n_ports},
                     e->healthy);
    }
}

/* Endpoint mapping, else the service's, else (an application tunnel with a port of its own) the
 * port as asked for. 0: none. */
static uint16_t target_port(const struct search *f, const struct candidate *c)
{
    int mapped = zt_port_map_find(c->ports, c->n_ports, f->query->port);
    if (mapped > 0)
        return (uint16_t)mapped;
    if (f->target > 0)
        return (uint16_t)f->target;
    return c->workload->has_app_tunnel && c->workload->app_tunnel_port ? f->query->port : 0;
}

bool zt_lb_pick(struct zt_store *s, struct zt_service_entry *v, const struct zt_lb_query *q,
                struct zt_upstream *out)
{
    const struct zt_service *service = zt_entry_service(v);
    struct search f = {
        .query = q,
        .service = service,
        .target = zt_port_map_find(service->ports, service->n_ports, q->port),
        .ranked = service->lb_mode == ZT_LB_STRICT || service->lb_mode == ZT_LB_FAILOVER,
        .strict = service->lb_mode == ZT_LB_STRICT,
        .best_rank = -1,
    };
    if (f.target < 0 && q->use == ZT_LB_FOR_TRAFFIC) {
        ZT_TRACE(q->trace, "service %s does not list port %u\n", service->hostname, q->port);
        return false;
    }
    consider_all(&f, s, v);
    uint16_t port = f.best.workload ? target_port(&f, &f.best) : 0;
    if (port == 0) {
        ZT_TRACE(q->trace, "no endpoint of %s can be used (%u known)\n", service->hostname,
                 v->n_endpoints + service->n_endpoints);
        return false;
    }
    *out = (struct zt_upstream){.workload = f.best.workload, .service = v, .port = port};
    ZT_TRACE(q->trace, "endpoint %s port %u chosen among %u (weight %u of %llu)\n",
             out->workload->uid, port, f.n_best, out->workload->capacity,
             (unsigned long long)f.total);
    return true;
}

enum zt_lb_result zt_lb_upstream(struct zt_store *s, const char *network, const struct zt_ip *ip,
                                 const struct zt_lb_query *q, struct zt_upstream *out)
{
    *out = (struct zt_upstream){0};
    struct zt_service_entry *v = zt_find_service_at(s, network, ip, q->src->ns);
    if (v) {
        if (zt_entry_service(v)->lb_mode == ZT_LB_PASSTHROUGH)
            return ZT_LB_ORIGINAL;
        return zt_lb_pick(s, v, q, out) ? ZT_LB_FOUND : ZT_LB_NOTHING;
    }
    out->workload = zt_find_workload_at(s, network, ip);
    out->port = q->port;
    return out->workload ? ZT_LB_FOUND : ZT_LB_NOTHING;
}

static bool family_is_allowed(const struct zt_service_entry *v, const struct zt_ip *ip)
{
    uint8_t families = v ? zt_entry_service(v)->ip_families : ZT_FAMILIES_AUTO;
    return !(families == ZT_FAMILIES_IPV4 && ip->family != ZT_IPV4) &&
           !(families == ZT_FAMILIES_IPV6 && ip->family != ZT_IPV6);
}

bool zt_lb_choose_ip(const struct zt_upstream *u, const struct zt_ip *wanted, struct zt_ip *out)
{
    const struct zt_workload *w = u->workload;
    const struct zt_ip *first = NULL, *of_family = NULL;
    for (size_t i = 0; i < w->n_ips; i++) {
        const struct zt_ip *ip = &w->ips[i];
        if (zt_ip_equal(ip, wanted)) {
            *out = *ip;
            return true;
        }
        if (!family_is_allowed(u->service, ip))
            continue;
        if (!first)
            first = ip;
        if (!of_family && ip->family == wanted->family)
            of_family = ip;
    }
    if (!first)
        return false;
    *out = of_family ? *of_family : *first;
    return true;
}
