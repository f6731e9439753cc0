/* Which endpoint of a service serves a connection (spec/controlplane §4.9 to §4.11).
 *
 * Every connection is decided anew, without affinity. Candidates are filtered, ranked by the
 * service's mode, and one of the best is drawn in proportion to its capacity. One pass, constant
 * memory: the winner so far is replaced by a candidate of weight w with probability w / (total so
 * far), which gives every candidate its share.
 *
 * Two departures from the specification. The winner has a rival of the same rank and capacity, drawn
 * as well, and whichever of both has fewer connections of this node serves. And who could not be
 * dialled a moment ago is left out as long as anybody else is there. */
#include "state_impl.h"

#include "zt/base/clock.h"
#include <string.h>
#include <sys/random.h>

/* xorshift64*, seeded once per thread. Spreads load; protects nothing. */
uint64_t zt_lb_random(void)
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
    return weight > 0 && zt_lb_random() % total < weight;
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
    const struct zt_workload_entry *entry;
    struct zt_workload *workload;
    const struct zt_port_map *ports;
    unsigned n_ports;
};

/* What is looked for, and what has been found so far. */
struct search {
    struct zt_store *store;
    const struct zt_lb_query *query;
    const struct zt_service *service;
    int target; /* the service's target port; 0 named, -1 not listed */
    bool ranked, strict;
    bool last_resort;       /* those that just failed count too */
    const struct candidate *rival_of; /* not NULL: only who has its capacity, and not itself */
    unsigned now_s;
    struct candidate best, rival;
    int best_rank;
    uint64_t total; /* weights of the candidates of best_rank */
    unsigned n_best;
    bool mixed;        /* their capacities differ: the rival is none yet */
    unsigned n_usable; /* of any rank, who just failed included */
    unsigned n_avoided;
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

static bool was_tried(const struct search *f, const struct zt_workload *w)
{
    for (unsigned i = 0; i < f->query->n_tried; i++)
        if (strcmp(f->query->tried[i], w->uid) == 0)
            return true;
    return false;
}

static bool just_failed(const struct search *f, const struct zt_workload_entry *e)
{
    return atomic_load_explicit(&e->avoid_until_s, memory_order_relaxed) > f->now_s;
}

/* Who stands for the candidate when it is dialled: the gateway, if it is in another network and the
 * gateway is known by address. */
static const struct zt_workload_entry *dialled(const struct search *f, const struct candidate *c)
{
    const struct zt_gateway_ref *g = c->workload->network_gateway;
    if (!g || g->ip.family == ZT_IP_NONE || strcmp(c->workload->network, f->query->src->network) == 0)
        return c->entry;
    const struct zt_workload *w = zt_find_workload_at(f->store, g->network, &g->ip);
    return w ? zt_find_uid(f->store, w->uid) : c->entry;
}

/* Takes c into the draw. For equal weights it comes to a random place in a row: at the first it is
 * the winner, and the old one its rival; at the second it is the rival. */
static void enter(struct search *f, const struct candidate *c)
{
    uint64_t weight = c->workload->capacity;
    f->mixed |= f->best.workload && f->best.workload->capacity != weight;
    f->n_best++;
    f->total += weight;
    if (weight == 0)
        return;
    uint64_t place = zt_lb_random() % f->total;
    if (place < weight) {
        f->rival = f->best;
        f->best = *c;
    } else if (place < 2 * weight) {
        f->rival = *c;
    }
}

static void consider(struct search *f, const struct candidate *c, bool healthy)
{
    if (!(healthy || f->service->lb_allow_all) || !is_usable(f, c))
        return;
    int rank = rank_of(f, c->workload);
    if (rank < 0)
        return;
    const struct zt_workload_entry *e = dialled(f, c);
    if (was_tried(f, zt_entry_workload(e)))
        return;
    f->n_usable++;
    if (!f->last_resort && just_failed(f, e)) {
        f->n_avoided++;
        return;
    }
    if (f->rival_of && (c->workload == f->rival_of->workload ||
                        c->workload->capacity != f->rival_of->workload->capacity))
        return;
    if (rank < f->best_rank)
        return;
    if (rank > f->best_rank) {
        f->best_rank = rank;
        f->total = 0;
        f->n_best = 0;
        f->mixed = false;
        f->best = f->rival = (struct candidate){0};
    }
    enter(f, c);
}

static void consider_all(struct search *f, struct zt_store *s, const struct zt_service_entry *v)
{
    for (uint32_t i = 0; i < v->n_endpoints; i++) {
        const struct zt_endpoint *ep = v->endpoints[i];
        struct zt_workload *w = zt_entry_workload(ep->owner);
        const struct zt_workload_service *m = &w->services[ep->index];
        consider(f, &(struct candidate){ep->owner, w, m->ports, m->n_ports}, w->healthy);
    }
    for (uint32_t i = 0; i < f->service->n_endpoints; i++) {
        const struct zt_static_endpoint *e = &f->service->endpoints[i];
        const struct zt_workload_entry *owner = zt_find_uid(s, e->workload_uid);
        if (owner && !zt_find_endpoint(owner, v))
            consider(f, &(struct candidate){owner, zt_entry_workload(owner), e->ports, e->n_ports},
                     e->healthy);
    }
}

static unsigned n_open(const struct candidate *c)
{
    return atomic_load_explicit(&c->entry->n_open, memory_order_relaxed);
}

/* Draws the winner, and lets it stand against its rival. */
static void draw(struct search *f, struct zt_store *s, const struct zt_service_entry *v)
{
    struct search again = *f;
    consider_all(f, s, v);
    if (!f->best.workload && f->n_avoided > 0) {
        again.last_resort = true;
        *f = again;
        consider_all(f, s, v);
    }
    if (f->mixed && f->best.workload) {
        again.rival_of = &f->best;
        again.last_resort = f->last_resort;
        again.best_rank = f->best_rank;
        consider_all(&again, s, v);
        f->rival = again.best;
    }
    if (f->rival.workload && n_open(&f->rival) < n_open(&f->best))
        f->best = f->rival;
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
        .store = s,
        .query = q,
        .now_s = (unsigned)(zt_clock_mono_ms() / 1000),
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
    draw(&f, s, v);
    uint16_t port = f.best.workload ? target_port(&f, &f.best) : 0;
    if (port == 0) {
        ZT_TRACE(q->trace, "no endpoint of %s can be used (%u known)\n", service->hostname,
                 v->n_endpoints + service->n_endpoints);
        return false;
    }
    *out = (struct zt_upstream){.workload = f.best.workload,
                                .service = v,
                                .port = port,
                                .alternatives = f.n_usable > 1};
    if (f.n_avoided > 0)
        ZT_TRACE(q->trace, "%u more could not be reached a moment ago\n", f.n_avoided);
    ZT_TRACE(q->trace, "endpoint %s port %u chosen among %u (weight %u of %llu, %u connections)\n",
             out->workload->uid, port, f.n_best, out->workload->capacity,
             (unsigned long long)f.total, n_open(&f.best));
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
