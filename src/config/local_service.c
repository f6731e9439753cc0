/* A service of the local file (spec/controlplane §5.1, validity of §4.3), with the endpoints that a file may give directly. */
#include "config/local_impl.h"

#include <stdlib.h>
#include <string.h>

#define BIT(f) (UINT64_C(1) << (f))

enum field {
    F_NAME,
    F_NAMESPACE,
    F_HOSTNAME,
    F_VIPS,
    F_PORTS,
    F_CIDR_VIPS,
    F_ENDPOINTS,
    F_SANS,
    F_WAYPOINT,
    F_WEIGHTED_WAYPOINTS,
    F_LOAD_BALANCER,
    F_IP_FAMILIES,
    F_CANONICAL,
    F_VISIBILITY,
};
static const char *const names[] = {
    [F_NAME] = "name",
    [F_NAMESPACE] = "namespace",
    [F_HOSTNAME] = "hostname",
    [F_VIPS] = "vips",
    [F_PORTS] = "ports",
    [F_CIDR_VIPS] = "cidrVips",
    [F_ENDPOINTS] = "endpoints",
    [F_SANS] = "subjectAltNames",
    [F_WAYPOINT] = "waypoint",
    [F_WEIGHTED_WAYPOINTS] = "weightedWaypoints",
    [F_LOAD_BALANCER] = "loadBalancer",
    [F_IP_FAMILIES] = "ipFamilies",
    [F_CANONICAL] = "canonical",
    [F_VISIBILITY] = "visibility",
    NULL,
};
#define REQUIRED (BIT(F_NAME) | BIT(F_NAMESPACE) | BIT(F_HOSTNAME) | BIT(F_VIPS) | BIT(F_PORTS))

/* A service on its way: vips and cidrVips go into one array, whichever comes first. */
struct draft {
    struct zt_service service;
    struct zt_vip *vips;
    size_t n_vips, vips_cap;
};

static struct zt_vip *add_vip(struct zt_yaml *r, struct draft *d)
{
    if (!zt_local_room(r, d->n_vips, ZT_LOCAL_LIST_MAX))
        return NULL;
    d->vips = zt_scratch_grow(&r->scratch, d->vips, d->n_vips, &d->vips_cap, sizeof *d->vips);
    return &d->vips[d->n_vips++];
}

static bool is_host_prefix(const struct zt_cidr *c)
{
    return c->prefix_bits == (c->ip.family == ZT_IPV4 ? 32 : 128);
}

static bool read_vips(struct zt_yaml *r, struct draft *d)
{
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        struct zt_vip *v = add_vip(r, d);
        struct zt_yaml_text t;
        if (!v || !zt_yaml_text(r, &t))
            return false;
        const char *slash = strchr(t.value, '/');
        if (t.tag || !slash || !zt_ip_parse(slash + 1, &v->cidr.ip))
            return zt_yaml_fail(r, "`%.64s` is not <network>/<ip> (without a network: /<ip>)", t.value);
        v->network = zt_scratch_dup(&r->scratch, t.value, (size_t)(slash - t.value));
        v->cidr.prefix_bits = v->cidr.ip.family == ZT_IPV4 ? 32 : 128;
        v->exact = true;
    }
    return !r->failed;
}

static bool read_cidr_vips(struct zt_yaml *r, struct draft *d)
{
    static const char *const keys[] = {"network", "cidr", NULL};
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        struct zt_vip *v = add_vip(r, d);
        uint64_t seen = 0;
        if (!v || !zt_yaml_map(r))
            return false;
        for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
            if (!(f == 0 ? zt_yaml_string(r, &v->network) : zt_local_cidr(r, &v->cidr)))
                return false;
        if (!zt_yaml_require(r, keys, seen, BIT(0) | BIT(1)))
            return false;
        v->exact = is_host_prefix(&v->cidr);
    }
    return !r->failed;
}

static bool read_endpoint(struct zt_yaml *r, struct zt_static_endpoint *e)
{
    static const char *const keys[] = {"workloadUid", "port", "status", NULL};
    uint64_t seen = 0;
    e->healthy = true;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;) {
        bool ok = f == 0   ? zt_yaml_name(r, &e->workload_uid)
                  : f == 1 ? zt_local_ports(r, &e->ports, &e->n_ports)
                           : zt_local_healthy(r, &e->healthy);
        if (!ok)
            return false;
    }
    return zt_yaml_require(r, keys, seen, BIT(0) | BIT(1));
}

static int compare_uids(const void *a, const void *b)
{
    const struct zt_static_endpoint *const *x = a, *const *y = b;
    return strcmp((*x)->workload_uid, (*y)->workload_uid);
}

/* Two endpoints of one workload would shadow each other. */
static bool check_endpoints_differ(struct zt_yaml *r, const struct zt_static_endpoint *list, size_t n)
{
    const struct zt_static_endpoint **sorted = zt_scratch_alloc(&r->scratch, n * sizeof *sorted);
    for (size_t i = 0; i < n; i++)
        sorted[i] = &list[i];
    qsort(sorted, n, sizeof *sorted, compare_uids);
    for (size_t i = 1; i < n; i++)
        if (compare_uids(&sorted[i - 1], &sorted[i]) == 0)
            return zt_yaml_fail(r, "endpoint `%.128s` is given twice", sorted[i]->workload_uid);
    return true;
}

static bool read_endpoints(struct zt_yaml *r, struct zt_service *v)
{
    struct zt_static_endpoint *list = NULL;
    size_t n = 0, cap = 0;
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        if (!zt_local_room(r, n, ZT_LOCAL_ENDPOINTS_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!read_endpoint(r, &list[n++]))
            return false;
    }
    if (r->failed)
        return false;
    v->endpoints = list;
    v->n_endpoints = (uint32_t)n;
    return n < 2 || check_endpoints_differ(r, list, n);
}

static bool read_weighted_waypoint(struct zt_yaml *r, void *element)
{
    static const char *const keys[] = {"destination", "weight", NULL};
    struct zt_weighted_waypoint *w = element;
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
        if (!(f == 0 ? zt_local_gateway(r, &w->destination) : zt_yaml_u32(r, UINT32_MAX, &w->weight)))
            return false;
    return zt_yaml_require(r, keys, seen, BIT(0) | BIT(1));
}

static bool read_scopes(struct zt_yaml *r, struct zt_service *v)
{
    static const char *const scopes[] = {"Region", "Zone", "Subzone", "Node", "Cluster", "Network", NULL};
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        unsigned scope = 0;
        if (!zt_local_room(r, v->n_lb_scopes, sizeof v->lb_scopes) || !zt_yaml_enum(r, scopes, &scope))
            return false;
        v->lb_scopes[v->n_lb_scopes++] = (uint8_t)(ZT_SCOPE_REGION + scope);
    }
    return !r->failed;
}

static bool read_load_balancer(struct zt_yaml *r, struct zt_service *v)
{
    static const char *const keys[] = {"routingPreferences", "mode", "healthPolicy", NULL};
    static const char *const modes[] = {"Standard", "Strict", "Failover", "Passthrough", NULL};
    static const char *const health[] = {"OnlyHealthy", "AllowAll", NULL};
    uint64_t seen = 0;
    unsigned mode = 0, policy = 0;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;) {
        bool ok = f == 0   ? read_scopes(r, v)
                  : f == 1 ? zt_yaml_enum(r, modes, &mode)
                           : zt_yaml_enum(r, health, &policy);
        if (!ok)
            return false;
    }
    v->lb_mode = (uint8_t)(ZT_LB_STANDARD + mode);
    v->lb_allow_all = policy == 1;
    return zt_yaml_require(r, keys, seen, BIT(0) | BIT(1) | BIT(2));
}

static bool read_ip_families(struct zt_yaml *r, struct zt_service *v)
{
    static const char *const families[] = {"IPv4", "IPv6", "Dual", NULL};
    unsigned which = 0;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_enum(r, families, &which))
        return false;
    v->ip_families = (uint8_t)(ZT_FAMILIES_IPV4 + which);
    return true;
}

static bool read_visibility(struct zt_yaml *r, struct zt_service *v)
{
    static const char *const words[] = {"Public", "Namespace", NULL};
    unsigned which = 0;
    if (!zt_yaml_enum(r, words, &which))
        return false;
    v->namespace_visible_only = which == 1;
    return true;
}

static bool read_ports(struct zt_yaml *r, struct zt_service *v)
{
    unsigned n = 0;
    if (!zt_local_ports(r, &v->ports, &n))
        return false;
    v->n_ports = (uint16_t)n;
    return true;
}

static bool read_field(struct zt_yaml *r, struct draft *d, int f)
{
    struct zt_service *v = &d->service;
    switch (f) {
    case F_NAME:
        return zt_yaml_string(r, &v->name);
    case F_NAMESPACE:
        return zt_yaml_string(r, &v->ns);
    case F_HOSTNAME:
        return zt_yaml_name(r, &v->hostname);
    case F_VIPS:
        return read_vips(r, d);
    case F_PORTS:
        return read_ports(r, v);
    case F_CIDR_VIPS:
        return read_cidr_vips(r, d);
    case F_ENDPOINTS:
        return read_endpoints(r, v);
    case F_SANS:
        return zt_local_strings(r, &v->sans, &v->n_sans);
    case F_WAYPOINT:
        return zt_local_optional_gateway(r, &v->waypoint);
    case F_WEIGHTED_WAYPOINTS:
        v->weighted_waypoints = ZT_LOCAL_LIST(r, struct zt_weighted_waypoint, read_weighted_waypoint, &v->n_weighted_waypoints);
        return !r->failed;
    case F_LOAD_BALANCER:
        return read_load_balancer(r, v);
    case F_IP_FAMILIES:
        return read_ip_families(r, v);
    case F_CANONICAL:
        return zt_yaml_bool(r, &v->canonical);
    default:
        return read_visibility(r, v);
    }
}

bool zt_local_service(struct zt_yaml *r, struct zt_service **out)
{
    struct draft d = {.service = {.origin = ZT_ORIGIN_FILE, .name = "", .ns = "", .hostname = ""}};
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, names, &seen)) >= 0;)
        if (!read_field(r, &d, f))
            return false;
    if (!zt_yaml_require(r, names, seen, REQUIRED))
        return false;
    d.service.vips = d.vips;
    d.service.n_vips = (uint16_t)d.n_vips;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_service_new(&d.service, out, &err) != ZT_OK)
        return zt_yaml_fail(r, "%s", err.text);
    return true;
}
