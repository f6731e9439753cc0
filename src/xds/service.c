/* A service as istiod describes it to the record of the store (spec/controlplane §4.3). */
#include "xds_impl.h"

static bool convert_vips(struct zt_arena *a, const Istio__Workload__Service *in,
                         struct zt_service *v, struct zt_error *err)
{
    if (!zt_xds_list_fits(in->n_addresses, "addresses", err))
        return false;
    struct zt_vip *vips = zt_arena_take(a, in->n_addresses, sizeof *vips);
    if (!vips)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < in->n_addresses; i++) {
        const Istio__Workload__NetworkAddress *from = in->addresses[i];
        bool has_length = from->prefix_case == ISTIO__WORKLOAD__NETWORK_ADDRESS__PREFIX_LENGTH;
        vips[i] = (struct zt_vip){.network = from->network};
        if (!zt_xds_cidr(&from->address, has_length, has_length ? from->length : 0, &vips[i].cidr,
                         err))
            return false;
        vips[i].exact = vips[i].cidr.prefix_bits == (vips[i].cidr.ip.family == ZT_IPV4 ? 32 : 128);
    }
    v->vips = vips;
    v->n_vips = (uint16_t)in->n_addresses;
    return true;
}

static bool convert_ports(struct zt_arena *a, const Istio__Workload__Service *in,
                          struct zt_service *v, struct zt_error *err)
{
    unsigned n = 0;
    if (!zt_xds_ports(a, in->ports, in->n_ports, &v->ports, &n, err))
        return false;
    v->n_ports = (uint16_t)n;
    return true;
}

static bool convert_weighted(struct zt_arena *a, const Istio__Workload__Service *in,
                             struct zt_service *v, struct zt_error *err)
{
    size_t n = in->n_weighted_waypoints;
    if (!zt_xds_list_fits(n, "weighted waypoints", err))
        return false;
    struct zt_weighted_waypoint *list = zt_arena_take(a, n, sizeof *list);
    if (!list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const Istio__Workload__WeightedWaypoint *from = in->weighted_waypoints[i];
        static const Istio__Workload__GatewayAddress nothing =
            ISTIO__WORKLOAD__GATEWAY_ADDRESS__INIT;
        list[i].weight = from->weight;
        if (!zt_xds_gateway(from->destination ? from->destination : &nothing, &list[i].destination,
                            err))
            return false;
    }
    v->weighted_waypoints = list;
    v->n_weighted_waypoints = (uint16_t)n;
    return true;
}

/* The numbers of mode and scope are ours, too, but for the mode's zero. */
static bool convert_load_balancing(const Istio__Workload__LoadBalancing *in, struct zt_service *v,
                                   struct zt_error *err)
{
    static const uint8_t modes[] = {
        [ISTIO__WORKLOAD__LOAD_BALANCING__MODE__UNSPECIFIED_MODE] = ZT_LB_STANDARD,
        [ISTIO__WORKLOAD__LOAD_BALANCING__MODE__STRICT] = ZT_LB_STRICT,
        [ISTIO__WORKLOAD__LOAD_BALANCING__MODE__FAILOVER] = ZT_LB_FAILOVER,
        [ISTIO__WORKLOAD__LOAD_BALANCING__MODE__PASSTHROUGH] = ZT_LB_PASSTHROUGH,
    };
    static const uint8_t scopes[] = {
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__REGION] = ZT_SCOPE_REGION,
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__ZONE] = ZT_SCOPE_ZONE,
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__SUBZONE] = ZT_SCOPE_SUBZONE,
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__NODE] = ZT_SCOPE_NODE,
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__CLUSTER] = ZT_SCOPE_CLUSTER,
        [ISTIO__WORKLOAD__LOAD_BALANCING__SCOPE__NETWORK] = ZT_SCOPE_NETWORK,
    };
    if (!in)
        return true;
    int mode = (int)in->mode, health = (int)in->health_policy;
    if (mode < 0 || mode >= (int)sizeof modes)
        return zt_xds_unknown_enum(mode, err);
    if (health != ISTIO__WORKLOAD__LOAD_BALANCING__HEALTH_POLICY__ONLY_HEALTHY &&
        health != ISTIO__WORKLOAD__LOAD_BALANCING__HEALTH_POLICY__ALLOW_ALL)
        return zt_xds_unknown_enum(health, err);
    if (in->n_routing_preference > sizeof v->lb_scopes) {
        zt_error_set(err, ZT_INVALID, "more than %zu routing preferences", sizeof v->lb_scopes);
        return false;
    }
    for (size_t i = 0; i < in->n_routing_preference; i++) {
        int scope = (int)in->routing_preference[i];
        if (scope <= 0 || scope >= (int)sizeof scopes) /* unspecified is refused as well */
            return zt_xds_unknown_enum(scope, err);
        v->lb_scopes[i] = scopes[scope];
    }
    v->n_lb_scopes = (uint8_t)in->n_routing_preference;
    v->lb_mode = modes[mode];
    v->lb_allow_all = health == ISTIO__WORKLOAD__LOAD_BALANCING__HEALTH_POLICY__ALLOW_ALL;
    return true;
}

static bool convert_families(int value, struct zt_service *v, struct zt_error *err)
{
    static const uint8_t families[] = {
        [ISTIO__WORKLOAD__IPFAMILIES__AUTOMATIC] = ZT_FAMILIES_AUTO,
        [ISTIO__WORKLOAD__IPFAMILIES__IPV4_ONLY] = ZT_FAMILIES_IPV4,
        [ISTIO__WORKLOAD__IPFAMILIES__IPV6_ONLY] = ZT_FAMILIES_IPV6,
        [ISTIO__WORKLOAD__IPFAMILIES__DUAL] = ZT_FAMILIES_DUAL,
    };
    if (value < 0 || value >= (int)sizeof families)
        return zt_xds_unknown_enum(value, err);
    v->ip_families = families[value];
    return true;
}

enum zt_err zt_xds_service(struct zt_arena *a, const Istio__Workload__Service *in,
                           struct zt_service **out, struct zt_error *err)
{
    struct zt_service v = {
        .origin = ZT_ORIGIN_XDS,
        .name = in->name,
        .ns = in->namespace_,
        .hostname = in->hostname,
        .sans = (const char *const *)in->subject_alt_names,
        .n_sans = (uint16_t)in->n_subject_alt_names,
        .canonical = in->canonical,
        /* a value we do not know is public, as the reference has it */
        .namespace_visible_only =
            (int)in->visibility == ISTIO__WORKLOAD__SERVICE__VISIBILITY__NAMESPACE,
    };
    *out = NULL;
    if (!convert_vips(a, in, &v, err) || !convert_ports(a, in, &v, err) ||
        !zt_xds_list_fits(in->n_subject_alt_names, "subject alternative names", err) ||
        !zt_xds_optional_gateway(a, in->waypoint, &v.waypoint, err) ||
        !convert_weighted(a, in, &v, err) || !convert_load_balancing(in->load_balancing, &v, err) ||
        !convert_families((int)in->ip_families, &v, err))
        return ZT_INVALID;
    return zt_service_new(&v, out, err);
}
