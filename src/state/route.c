/* Where an outbound connection goes: the decision tree of spec/dataplane §2.2, as a function of the
 * store.
 *
 *   A  what is the address?  a service with a waypoint ........ tunnel to the waypoint
 *   B  pick the upstream     none, and not passthrough ........ refused
 *                            none ............................. plain TCP to where the client
 * wanted C  the upstream U        in another network ............... double tunnel through U's
 * gateway addressed itself, has a waypoint, and we are not that waypoint ..... tunnel to the
 * waypoint HBONE ............................ tunnel to U:15008 else .............................
 * plain TCP to U
 *
 * A waypoint or gateway that can not be resolved refuses the connection: traffic never falls back
 * to going direct. The whole decision is one hold of the read lock, so it sees one state. */
#include "state_impl.h"

#include <string.h>

#define HBONE_PORT 15008

/* One decision being made. */
struct router {
    struct zt_store *store;
    const struct zt_route_query *query;
    struct zt_route *out;
    struct zt_error *err;
    struct zt_service_entry *meant; /* step A: the service the client addressed, or NULL */
};

/* ---- expected identities ---- */

struct san_list {
    char **list;
    unsigned n;
};

static void san_add(struct san_list *l, const char *san)
{
    for (unsigned i = 0; i < l->n; i++)
        if (strcmp(l->list[i], san) == 0)
            return;
    if (!l->list)
        l->list = zt_new_n(char *, ZT_ROUTE_SANS_MAX);
    l->list[l->n++] = zt_strdup(san);
}

/* The service's names that are SPIFFE ids; one place is kept for the workload's. What is left out
 * was warned of when the service came (zt_service_new). */
static void san_add_service(struct san_list *l, const struct zt_service_entry *e)
{
    const struct zt_service *v = e ? zt_entry_service(e) : NULL;
    for (size_t i = 0; v && i < v->n_sans; i++) {
        if (l->n == ZT_ROUTE_SANS_MAX - 1)
            return;
        if (zt_identity_parse(v->sans[i], strlen(v->sans[i]), NULL))
            san_add(l, v->sans[i]);
    }
}

static void set_sans(struct router *r, const struct zt_upstream *u)
{
    char identity[ZT_IDENTITY_MAX];
    struct san_list l = {0};
    san_add_service(&l, u->service);
    if (zt_workload_identity(u->workload, identity))
        san_add(&l, identity);
    r->out->sans = l.list;
    r->out->n_sans = l.n;
    ZT_TRACE(r->query->trace, "expected identities:");
    for (unsigned i = 0; i < l.n; i++)
        ZT_TRACE(r->query->trace, " %s", l.list[i]);
    ZT_TRACE(r->query->trace, "\n");
}

static void set_inner_sans(struct router *r, const struct zt_upstream *u)
{
    struct san_list l = {0};
    san_add_service(&l, u->service);
    r->out->inner_sans = l.list;
    r->out->n_inner_sans = l.n;
    ZT_TRACE(r->query->trace, "expected identities inside:");
    for (unsigned i = 0; i < l.n; i++)
        ZT_TRACE(r->query->trace, " %s", l.list[i]);
    ZT_TRACE(r->query->trace, l.n ? "\n" : " none, so nobody can pass\n");
}

/* ---- pieces ---- */

static void set_destination(struct router *r, const struct zt_workload *w,
                            const struct zt_service_entry *v)
{
    r->out->dst_workload = zt_workload_ref(w);
    r->out->dst_service = v ? zt_service_ref(zt_entry_service(v)) : NULL;
}

static enum zt_err no_destination(struct router *r, const struct zt_workload *w)
{
    return zt_error_set(r->err, ZT_NO_DESTINATION, "Workload{%.128s with uid %.200s (%s)}", w->name,
                        w->uid, w->protocol == ZT_PROTOCOL_HBONE ? "HBONE" : "TCP");
}

/* Picks the address of the next hop. A workload with only a hostname is left to the caller's
 * resolver. */
static enum zt_err set_next_hop(struct router *r, const struct zt_upstream *u,
                                const struct zt_ip *wanted, uint16_t port)
{
    r->out->next_hop.port = port;
    if (zt_lb_choose_ip(u, wanted, &r->out->next_hop.ip))
        return ZT_OK;
    if (!*u->workload->hostname)
        return no_destination(r, u->workload);
    r->out->needs_dns = true;
    ZT_TRACE(r->query->trace, "address of %s is asked from DNS\n", u->workload->hostname);
    return ZT_OK;
}

static void trace_next_hop(struct router *r, const char *what)
{
    char text[ZT_ADDR_TEXT_MAX];
    if (r->query->trace && !r->out->needs_dns)
        zt_str_addf(r->query->trace, "%s %s\n", what, zt_addr_format(&r->out->next_hop, text));
}

static struct zt_lb_query lb_query(const struct router *r, uint16_t port, enum zt_lb_use use)
{
    return (struct zt_lb_query){.src = r->query->src,
                                .port = port,
                                .use = use,
                                .tried = r->query->tried,
                                .n_tried = r->query->n_tried,
                                .trace = r->query->trace};
}

/* A waypoint or gateway reference to an upstream. *wanted is the address its family is chosen by.
 */
static enum zt_err resolve_gateway(struct router *r, const struct zt_gateway_ref *g,
                                   enum zt_lb_use use, struct zt_upstream *out,
                                   struct zt_ip *wanted)
{
    enum zt_err unknown = use == ZT_LB_FOR_WAYPOINT ? ZT_UNKNOWN_WAYPOINT : ZT_UNKNOWN_GATEWAY;
    const char *what = use == ZT_LB_FOR_WAYPOINT ? "waypoint" : "gateway";
    struct zt_lb_query q = lb_query(r, g->hbone_mtls_port, use);
    if (g->ip.family != ZT_IP_NONE) {
        char text[ZT_IP_TEXT_MAX];
        zt_ip_format(&g->ip, text);
        ZT_TRACE(r->query->trace, "%s %s/%s:%u\n", what, g->network, text, g->hbone_mtls_port);
        *wanted = g->ip;
        if (zt_lb_upstream(r->store, g->network, &g->ip, &q, out) == ZT_LB_FOUND)
            return ZT_OK;
        return zt_error_set(r->err, unknown, "%s/%s:%u", g->network, text, g->hbone_mtls_port);
    }
    ZT_TRACE(r->query->trace, "%s %s/%s:%u\n", what, g->ns, g->hostname, g->hbone_mtls_port);
    *wanted = r->query->dst.ip;
    struct zt_service_entry *v = zt_find_service(r->store, g->ns, g->hostname);
    if (v && zt_lb_pick(r->store, v, &q, out))
        return ZT_OK;
    *out = (struct zt_upstream){.port = g->hbone_mtls_port};
    if (!v)
        out->workload = zt_find_workload_by_host(r->store, g->ns, g->hostname);
    return out->workload
               ? ZT_OK
               : zt_error_set(r->err, unknown, "%s/%s:%u", g->ns, g->hostname, g->hbone_mtls_port);
}

/* ---- the ways to go ---- */

static enum zt_err go_passthrough(struct router *r)
{
    r->out->kind = ZT_ROUTE_TCP;
    r->out->next_hop = r->query->dst;
    trace_next_hop(r, "passthrough: plain TCP to");
    return ZT_OK;
}

/* Through the gateway of `remote`, which stands for all that is behind it: neither hop knows which
 * endpoint will answer. */
static enum zt_err go_double(struct router *r, const struct zt_upstream *remote)
{
    char dst[ZT_ADDR_TEXT_MAX];
    if (!r->meant)
        return zt_error_set(r->err, ZT_NO_SERVICE, "%s", zt_addr_format(&r->query->dst, dst));
    ZT_TRACE(r->query->trace, "workload %s is in network \"%s\", we are in \"%s\"\n",
             remote->workload->uid, remote->workload->network, r->query->src->network);
    if (!remote->workload->network_gateway)
        return no_destination(r, remote->workload);
    struct zt_upstream gateway;
    struct zt_ip wanted;
    enum zt_err e =
        resolve_gateway(r, remote->workload->network_gateway, ZT_LB_FOR_TRAFFIC, &gateway, &wanted);
    if (e == ZT_OK)
        e = set_next_hop(r, &gateway, &wanted, gateway.port);
    if (e != ZT_OK)
        return e;
    r->out->kind = ZT_ROUTE_DOUBLE_HBONE;
    r->out->alternatives = remote->alternatives || gateway.alternatives;
    if (!zt_fmt(r->out->authority, sizeof r->out->authority, "%s:%u",
                zt_entry_service(r->meant)->hostname, r->query->dst.port))
        return no_destination(r, remote->workload);
    trace_next_hop(r, "protocol double HBONE through gateway");
    set_sans(r, &gateway);
    set_inner_sans(r, remote);
    set_destination(r, gateway.workload, r->meant);
    return ZT_OK;
}

static enum zt_err go_waypoint(struct router *r, const struct zt_upstream *waypoint,
                               const struct zt_ip *wanted, const struct zt_service_entry *service)
{
    enum zt_err e = set_next_hop(r, waypoint, wanted, waypoint->port);
    if (e != ZT_OK)
        return e;
    r->out->kind = ZT_ROUTE_HBONE;
    r->out->via_waypoint = true;
    r->out->alternatives = waypoint->alternatives;
    zt_addr_format(&r->query->dst, r->out->authority);
    trace_next_hop(r, "protocol HBONE to waypoint");
    set_sans(r, waypoint);
    set_destination(r, waypoint->workload, service);
    return ZT_OK;
}

static enum zt_err go_direct(struct router *r, const struct zt_upstream *u)
{
    bool hbone = u->workload->protocol == ZT_PROTOCOL_HBONE;
    enum zt_err e = set_next_hop(r, u, &r->query->dst.ip, u->port);
    if (e != ZT_OK)
        return e;
    set_destination(r, u->workload, u->service);
    r->out->alternatives = u->alternatives;
    if (!hbone) {
        r->out->kind = ZT_ROUTE_TCP;
        trace_next_hop(r, "protocol TCP (not tunnelled): plain TCP to");
        return ZT_OK;
    }
    r->out->kind = ZT_ROUTE_HBONE;
    if (r->out->needs_dns) /* the address goes in front once it is known */
        zt_fmt(r->out->authority, sizeof r->out->authority, ":%u", u->port);
    else
        zt_addr_format(&r->out->next_hop, r->out->authority);
    r->out->next_hop.port = HBONE_PORT;
    trace_next_hop(r, "protocol HBONE, tunnel to");
    set_sans(r, u);
    return ZT_OK;
}

/* ---- the tree ---- */

/* The waypoint of a service for this connection, or NULL. */
static const struct zt_gateway_ref *service_waypoint(const struct zt_service *v)
{
    int i = zt_lb_sample(v->weighted_waypoints, v->n_weighted_waypoints);
    return i >= 0 ? &v->weighted_waypoints[i].destination : v->waypoint;
}

static bool is_client(const struct router *r, const struct zt_workload *w)
{
    const struct zt_workload *src = r->query->src;
    if (strcmp(w->ns, src->ns) != 0 || strcmp(w->service_account, src->service_account) != 0 ||
        strcmp(w->trust_domain, src->trust_domain) != 0)
        return false;
    for (size_t i = 0; i < w->n_ips; i++)
        if (zt_ip_equal(&w->ips[i], &r->query->client.ip))
            return true;
    return false;
}

static bool client_is_endpoint(struct router *r, const struct zt_service_entry *v)
{
    for (uint32_t i = 0; i < v->n_endpoints; i++)
        if (is_client(r, zt_entry_workload(v->endpoints[i]->owner)))
            return true;
    const struct zt_service *record = zt_entry_service(v);
    for (uint32_t i = 0; i < record->n_endpoints; i++) {
        const struct zt_workload_entry *e =
            zt_find_uid(r->store, record->endpoints[i].workload_uid);
        if (e && is_client(r, zt_entry_workload(e)))
            return true;
    }
    return false;
}

/* Is the client the waypoint that g names? Then it has done its work and goes direct. */
static bool client_is_waypoint(struct router *r, const struct zt_gateway_ref *g)
{
    const struct zt_workload *w = NULL;
    const struct zt_service_entry *v = NULL;
    if (g->ip.family != ZT_IP_NONE) {
        w = zt_find_workload_at(r->store, g->network, &g->ip);
        if (!w)
            v = zt_find_service_at(r->store, g->network, &g->ip, NULL);
    } else {
        v = zt_find_service(r->store, g->ns, g->hostname);
        if (!v)
            w = zt_find_workload_by_host(r->store, g->ns, g->hostname);
    }
    return v ? client_is_endpoint(r, v) : w && is_client(r, w);
}

/* Step A: what did the client address? */
static void find_meant(struct router *r)
{
    const struct zt_route_query *q = r->query;
    char text[ZT_ADDR_TEXT_MAX];
    const struct zt_workload *w = zt_find_workload_at(r->store, r->store->network, &q->dst.ip);
    if (!w)
        r->meant = zt_find_service_at(r->store, r->store->network, &q->dst.ip, q->src->ns);
    if (!q->trace)
        return;
    zt_addr_format(&q->dst, text);
    if (r->meant)
        zt_str_addf(q->trace, "service %s/%s by address %s\n", zt_entry_service(r->meant)->ns,
                    zt_entry_service(r->meant)->hostname, text);
    else if (w)
        zt_str_addf(q->trace, "workload %s by address %s\n", w->uid, text);
    else
        zt_str_addf(q->trace, "address %s is not known to the mesh\n", text);
}

static enum zt_err through_waypoint(struct router *r, const struct zt_gateway_ref *g,
                                    const struct zt_service_entry *service)
{
    struct zt_upstream waypoint;
    struct zt_ip wanted;
    enum zt_err e = resolve_gateway(r, g, ZT_LB_FOR_WAYPOINT, &waypoint, &wanted);
    if (e != ZT_OK)
        return e;
    /* Only a service's waypoint may be in another network: the far gateway is told the service's
     * name. */
    if (r->meant && strcmp(waypoint.workload->network, r->query->src->network) != 0)
        return go_double(r, &waypoint);
    return go_waypoint(r, &waypoint, &wanted, service);
}

static enum zt_err to_upstream(struct router *r, const struct zt_upstream *u)
{
    if (strcmp(u->workload->network, r->query->src->network) != 0)
        return go_double(r, u);
    const struct zt_gateway_ref *waypoint = u->workload->waypoint;
    if (waypoint && !r->meant) {
        if (!client_is_waypoint(r, waypoint))
            return through_waypoint(r, waypoint, u->service);
        ZT_TRACE(r->query->trace, "we are its waypoint\n");
    } else if (!r->meant) {
        ZT_TRACE(r->query->trace, "no waypoint\n");
    }
    return go_direct(r, u);
}

static enum zt_err decide(struct router *r)
{
    const struct zt_route_query *q = r->query;
    char dst[ZT_ADDR_TEXT_MAX];
    find_meant(r);
    if (r->meant) {
        const struct zt_gateway_ref *g = service_waypoint(zt_entry_service(r->meant));
        if (g)
            return through_waypoint(r, g, r->meant);
        ZT_TRACE(q->trace, "no waypoint\n");
    }
    struct zt_upstream u;
    struct zt_lb_query lb = lb_query(r, q->dst.port, ZT_LB_FOR_TRAFFIC);
    if (zt_lb_upstream(r->store, q->src->network, &q->dst.ip, &lb, &u) == ZT_LB_FOUND)
        return to_upstream(r, &u);
    if (r->meant && zt_entry_service(r->meant)->lb_mode != ZT_LB_PASSTHROUGH)
        return zt_error_set(r->err, ZT_NO_UPSTREAM, "%s", zt_addr_format(&q->dst, dst));
    return go_passthrough(r);
}

enum zt_err zt_route_resolve(struct zt_store *s, const struct zt_route_query *q,
                             struct zt_route *out, struct zt_error *err)
{
    struct zt_error own = ZT_ERROR_INIT;
    struct router r = {.store = s, .query = q, .out = out, .err = err ? err : &own};
    *out = (struct zt_route){0};
    pthread_rwlock_rdlock(&s->lock);
    enum zt_err e = decide(&r);
    pthread_rwlock_unlock(&s->lock);
    if (e != ZT_OK) {
        ZT_TRACE(q->trace, "refused: %s%s\n", zt_err_prefix(e), r.err->text);
        zt_route_fini(out);
    }
    return e;
}

static void free_sans(char **list, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        zt_free(list[i]);
    zt_free(list);
}

void zt_route_fini(struct zt_route *r)
{
    zt_workload_unref(r->dst_workload);
    zt_service_unref(r->dst_service);
    free_sans(r->sans, r->n_sans);
    free_sans(r->inner_sans, r->n_inner_sans);
    *r = (struct zt_route){0};
}
