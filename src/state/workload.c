/* Workload and service records: validation of a template and its immutable copy.
 *
 * Workloads share the strings that repeat across a cluster (namespace, node, service names...), for
 * there may be a million of them; only uid, name and addresses are a workload's own, and the name
 * is usually the tail of the uid. Services keep all their text inside the record. */
#include "state_impl.h"

#include "zt/base/log.h"
#include <string.h>

/* The fields of a workload that are shared strings. */
#define SHARED_FIELDS(X)                                                                           \
    X(ns)                                                                                          \
    X(service_account)                                                                             \
    X(trust_domain)                                                                                \
    X(network)                                                                                     \
    X(node)                                                                                        \
    X(cluster_id)                                                                                  \
    X(workload_name)                                                                               \
    X(workload_type)                                                                               \
    X(canonical_name)                                                                              \
    X(canonical_revision)                                                                          \
    X(hostname)                                                                                    \
    X(region)                                                                                      \
    X(zone)                                                                                        \
    X(subzone)

static void lay_gateway(struct zt_builder *b, zt_builder_text_fn text,
                        const struct zt_gateway_ref *in, struct zt_gateway_ref *out)
{
    struct zt_gateway_ref g = *in;
    g.network = text(b, in->network);
    g.ns = text(b, in->ns);
    g.hostname = text(b, in->hostname);
    if (out)
        *out = g;
}

static const struct zt_gateway_ref *lay_gateway_opt(struct zt_builder *b, zt_builder_text_fn text,
                                                    const struct zt_gateway_ref *in)
{
    if (!in)
        return NULL;
    struct zt_gateway_ref *out =
        zt_builder_take(b, 1, sizeof *out, _Alignof(struct zt_gateway_ref));
    lay_gateway(b, text, in, out);
    return out;
}

static const char *const *lay_texts(struct zt_builder *b, zt_builder_text_fn text,
                                    const char *const *in, size_t n)
{
    const char **out = zt_builder_take(b, n, sizeof *out, _Alignof(const char *));
    for (size_t i = 0; i < n; i++) {
        const char *t = text(b, in[i]);
        if (out)
            out[i] = t;
    }
    return out;
}

static const struct zt_port_map *lay_ports(struct zt_builder *b, const struct zt_port_map *in,
                                           size_t n)
{
    return zt_builder_copy(b, in, n, sizeof *in, _Alignof(struct zt_port_map));
}

static const struct zt_workload_service *lay_memberships(struct zt_builder *b,
                                                         const struct zt_workload *t)
{
    struct zt_workload_service *out =
        zt_builder_take(b, t->n_services, sizeof *out, _Alignof(struct zt_workload_service));
    for (size_t i = 0; i < t->n_services; i++) {
        struct zt_workload_service m = t->services[i];
        m.ns = zt_builder_shared(b, m.ns);
        m.hostname = zt_builder_shared(b, m.hostname);
        m.ports = lay_ports(b, m.ports, m.n_ports);
        if (out)
            out[i] = m;
    }
    return out;
}

/* A pod's uid ends in its name ("cluster//Pod/namespace/name"): one copy will do. */
static const char *lay_name(struct zt_builder *b, const char *uid_in, const char *uid,
                            const char *name)
{
    size_t uid_len = strlen(uid_in), name_len = name ? strlen(name) : 0;
    if (name_len > 0 && name_len <= uid_len &&
        memcmp(uid_in + uid_len - name_len, name, name_len) == 0)
        return b->base ? uid + uid_len - name_len : "";
    return zt_builder_text(b, name);
}

static void lay_workload(struct zt_builder *b, const struct zt_workload *t)
{
    struct zt_workload w = *t;
    struct zt_workload *out = zt_builder_take(b, 1, sizeof w, _Alignof(struct zt_workload));
    w.uid = zt_builder_text(b, t->uid);
    w.name = lay_name(b, t->uid, w.uid, t->name);
#define X(field) w.field = zt_builder_shared(b, t->field);
    SHARED_FIELDS(X)
#undef X
    w.services = lay_memberships(b, t);
    w.policies = lay_texts(b, zt_builder_shared, t->policies, t->n_policies);
    w.waypoint = lay_gateway_opt(b, zt_builder_shared, t->waypoint);
    w.network_gateway = lay_gateway_opt(b, zt_builder_shared, t->network_gateway);
    w.ips = zt_builder_copy(b, t->ips, t->n_ips, sizeof *t->ips, _Alignof(struct zt_ip));
    if (!out)
        return;
    *out = w;
    atomic_init(&out->refs, 1);
}

static void release_gateway(const struct zt_gateway_ref *g)
{
    if (!g)
        return;
    zt_text_release(g->network);
    zt_text_release(g->ns);
    zt_text_release(g->hostname);
}

static void workload_fini(void *record)
{
    const struct zt_workload *w = record;
#define X(field) zt_text_release(w->field);
    SHARED_FIELDS(X)
#undef X
    for (size_t i = 0; i < w->n_services; i++) {
        zt_text_release(w->services[i].ns);
        zt_text_release(w->services[i].hostname);
    }
    for (size_t i = 0; i < w->n_policies; i++)
        zt_text_release(w->policies[i]);
    release_gateway(w->waypoint);
    release_gateway(w->network_gateway);
}

static enum zt_err check_ip(const char *what, const char *name, const struct zt_ip *ip,
                            struct zt_error *err)
{
    if (ip->family == ZT_IPV4 || ip->family == ZT_IPV6)
        return ZT_OK;
    return zt_error_set(err, ZT_INVALID, "%s %.128s: address of no known family", what, name);
}

static enum zt_err check_gateway(const char *what, const char *name, const struct zt_gateway_ref *g,
                                 struct zt_error *err)
{
    if (!g || g->ip.family != ZT_IP_NONE || (g->hostname && *g->hostname))
        return ZT_OK;
    return zt_error_set(err, ZT_INVALID, "%s %.128s: nonempty gateway address is missing address",
                        what, name);
}

static enum zt_err check_size(const char *what, const char *name, const struct zt_builder *b,
                              struct zt_error *err)
{
    if (b->too_long)
        return zt_error_set(err, ZT_INVALID, "%s %.128s: text of more than %d bytes", what, name,
                            ZT_RECORD_TEXT_MAX);
    if (b->used > ZT_RECORD_BYTES_MAX)
        return zt_error_set(err, ZT_INVALID, "%s %.128s: too many entries", what, name);
    return ZT_OK;
}

enum zt_err zt_workload_new(const struct zt_workload *template, struct zt_workload **out,
                            struct zt_error *err)
{
    const struct zt_workload *t = template;
    *out = NULL;
    if (!t->uid || !*t->uid)
        return zt_error_set(err, ZT_INVALID, "workload without uid");
    if (t->n_services > ZT_WORKLOAD_SERVICES_MAX)
        return zt_error_set(err, ZT_INVALID, "workload %.128s: more than %d services", t->uid,
                            ZT_WORKLOAD_SERVICES_MAX);
    enum zt_err e = check_gateway("workload", t->uid, t->waypoint, err);
    if (e == ZT_OK)
        e = check_gateway("workload", t->uid, t->network_gateway, err);
    for (size_t i = 0; e == ZT_OK && i < t->n_ips; i++)
        e = check_ip("workload", t->uid, &t->ips[i], err);
    if (e != ZT_OK)
        return e;
    struct zt_builder b = {0};
    lay_workload(&b, t);
    if ((e = check_size("workload", t->uid, &b, err)) != ZT_OK)
        return e;
    *out = zt_record_new(b.used, workload_fini);
    b = (struct zt_builder){.base = (char *)*out};
    lay_workload(&b, t);
    return ZT_OK;
}

struct zt_workload *zt_workload_ref(const struct zt_workload *w)
{
    struct zt_workload *own = (struct zt_workload *)(uintptr_t)w; /* only the count changes */
    if (own)
        atomic_fetch_add_explicit(&own->refs, 1, memory_order_relaxed);
    return own;
}

void zt_workload_unref(const struct zt_workload *w)
{
    struct zt_workload *own = (struct zt_workload *)(uintptr_t)w;
    if (own && atomic_fetch_sub_explicit(&own->refs, 1, memory_order_acq_rel) == 1)
        zt_record_bury(own);
}

bool zt_workload_identity(const struct zt_workload *w, char out[static ZT_IDENTITY_MAX])
{
    return zt_identity_format(out, w->trust_domain, w->ns, w->service_account);
}

int zt_port_map_find(const struct zt_port_map *ports, unsigned n, uint16_t service_port)
{
    for (unsigned i = 0; i < n; i++)
        if (ports[i].service_port == service_port)
            return ports[i].target_port;
    return -1;
}

/* ---- services ---- */

static const struct zt_vip *lay_vips(struct zt_builder *b, const struct zt_service *t)
{
    struct zt_vip *out = zt_builder_take(b, t->n_vips, sizeof *out, _Alignof(struct zt_vip));
    for (size_t i = 0; i < t->n_vips; i++) {
        struct zt_vip v = t->vips[i];
        v.network = zt_builder_text(b, v.network);
        v.exact = v.cidr.prefix_bits == (v.cidr.ip.family == ZT_IPV4 ? 32 : 128);
        if (out)
            out[i] = v;
    }
    return out;
}

static const struct zt_static_endpoint *lay_endpoints(struct zt_builder *b,
                                                      const struct zt_service *t)
{
    struct zt_static_endpoint *out =
        zt_builder_take(b, t->n_endpoints, sizeof *out, _Alignof(struct zt_static_endpoint));
    for (size_t i = 0; i < t->n_endpoints; i++) {
        struct zt_static_endpoint e = t->endpoints[i];
        e.workload_uid = zt_builder_text(b, e.workload_uid);
        e.ports = lay_ports(b, e.ports, e.n_ports);
        if (out)
            out[i] = e;
    }
    return out;
}

static const struct zt_weighted_waypoint *lay_weighted(struct zt_builder *b,
                                                       const struct zt_service *t)
{
    struct zt_weighted_waypoint *out = zt_builder_take(b, t->n_weighted_waypoints, sizeof *out,
                                                       _Alignof(struct zt_weighted_waypoint));
    for (size_t i = 0; i < t->n_weighted_waypoints; i++) {
        lay_gateway(b, zt_builder_text, &t->weighted_waypoints[i].destination,
                    out ? &out[i].destination : NULL);
        if (out)
            out[i].weight = t->weighted_waypoints[i].weight;
    }
    return out;
}

static void lay_service(struct zt_builder *b, const struct zt_service *t)
{
    struct zt_service v = *t;
    struct zt_service *out = zt_builder_take(b, 1, sizeof v, _Alignof(struct zt_service));
    v.name = zt_builder_text(b, t->name);
    v.ns = zt_builder_text(b, t->ns);
    v.hostname = zt_builder_text(b, t->hostname);
    v.vips = lay_vips(b, t);
    v.ports = lay_ports(b, t->ports, t->n_ports);
    v.sans = lay_texts(b, zt_builder_text, t->sans, t->n_sans);
    v.waypoint = lay_gateway_opt(b, zt_builder_text, t->waypoint);
    v.weighted_waypoints = lay_weighted(b, t);
    v.endpoints = lay_endpoints(b, t);
    if (!out)
        return;
    *out = v;
    atomic_init(&out->refs, 1);
}

static enum zt_err check_service(const struct zt_service *t, struct zt_error *err)
{
    if (!t->hostname || !*t->hostname)
        return zt_error_set(err, ZT_INVALID, "service without hostname");
    if (t->lb_mode > ZT_LB_PASSTHROUGH || t->ip_families > ZT_FAMILIES_DUAL ||
        t->n_lb_scopes > sizeof t->lb_scopes)
        return zt_error_set(err, ZT_INVALID, "service %.128s: load balancing out of range",
                            t->hostname);
    for (size_t i = 0; i < t->n_lb_scopes; i++)
        if (t->lb_scopes[i] < ZT_SCOPE_REGION || t->lb_scopes[i] > ZT_SCOPE_NETWORK)
            return zt_error_set(err, ZT_INVALID, "service %.128s: unknown routing preference",
                                t->hostname);
    for (size_t i = 0; i < t->n_vips; i++) {
        const struct zt_cidr *c = &t->vips[i].cidr;
        enum zt_err e = check_ip("service", t->hostname, &c->ip, err);
        if (e != ZT_OK)
            return e;
        if (c->prefix_bits > (c->ip.family == ZT_IPV4 ? 32 : 128))
            return zt_error_set(err, ZT_INVALID, "service %.128s: invalid cidr: prefix too long",
                                t->hostname);
    }
    enum zt_err e = check_gateway("service", t->hostname, t->waypoint, err);
    for (size_t i = 0; e == ZT_OK && i < t->n_weighted_waypoints; i++)
        e = check_gateway("service", t->hostname, &t->weighted_waypoints[i].destination, err);
    return e;
}

/* Names that will never be accepted are no reason to refuse the service, but somebody should know.
 */
static void warn_of_sans(const struct zt_service *t)
{
    size_t n_bad = 0;
    for (size_t i = 0; i < t->n_sans; i++)
        n_bad += !t->sans[i] || !zt_identity_parse(t->sans[i], strlen(t->sans[i]), NULL);
    if (n_bad > 0)
        zt_log_warn("state", "service %s: %zu subject alternative names are no SPIFFE ids, skipped",
                    t->hostname, n_bad);
    if (t->n_sans - n_bad > ZT_ROUTE_SANS_MAX - 1)
        zt_log_warn("state",
                    "service %s: more than %d subject alternative names, the rest is ignored",
                    t->hostname, ZT_ROUTE_SANS_MAX - 1);
}

enum zt_err zt_service_new(const struct zt_service *template, struct zt_service **out,
                           struct zt_error *err)
{
    *out = NULL;
    enum zt_err e = check_service(template, err);
    if (e != ZT_OK)
        return e;
    struct zt_builder b = {0};
    lay_service(&b, template);
    if ((e = check_size("service", template->hostname, &b, err)) != ZT_OK)
        return e;
    *out = zt_record_new(b.used, NULL);
    b = (struct zt_builder){.base = (char *)*out};
    lay_service(&b, template);
    warn_of_sans(template);
    return ZT_OK;
}

struct zt_service *zt_service_ref(const struct zt_service *s)
{
    struct zt_service *own = (struct zt_service *)(uintptr_t)s;
    if (own)
        atomic_fetch_add_explicit(&own->refs, 1, memory_order_relaxed);
    return own;
}

void zt_service_unref(const struct zt_service *s)
{
    struct zt_service *own = (struct zt_service *)(uintptr_t)s;
    if (own && atomic_fetch_sub_explicit(&own->refs, 1, memory_order_acq_rel) == 1)
        zt_record_bury(own);
}
