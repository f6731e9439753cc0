/* A workload as istiod describes it to the record of the store (spec/controlplane §4.2). */
#include "xds_impl.h"

#include <stdlib.h>
#include <string.h>

#define DEFAULT_TRUST_DOMAIN "cluster.local"
#define DEFAULT_SERVICE_ACCOUNT "default"
#define DEFAULT_CLUSTER "Kubernetes"

static const char *or_default(const char *text, const char *fallback)
{
    return *text ? text : fallback;
}

static bool convert_ips(struct zt_arena *a, const Istio__Workload__Workload *in,
                        struct zt_workload *w, struct zt_error *err)
{
    if (!zt_xds_list_fits(in->n_addresses, "addresses", err))
        return false;
    struct zt_ip *ips = zt_arena_take(a, in->n_addresses, sizeof *ips);
    if (!ips)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < in->n_addresses; i++)
        if (!zt_xds_ip(&in->addresses[i], &ips[i], err))
            return false;
    w->ips = ips;
    w->n_ips = (uint16_t)in->n_addresses;
    return true;
}

/* A map on the wire is a list in which the last of equal keys counts. */
struct place {
    const char *key;
    size_t index;
    bool dead;
};

static int by_key(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : (x->index > y->index) - (x->index < y->index);
}

static int by_index(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

static void kill_doubles(struct place *places, size_t n)
{
    if (n < 2)
        return;
    qsort(places, n, sizeof *places, by_key);
    for (size_t i = 0; i + 1 < n; i++)
        places[i].dead = strcmp(places[i].key, places[i + 1].key) == 0;
    qsort(places, n, sizeof *places, by_index);
}

static bool convert_service(struct zt_arena *a, const Istio__Workload__Workload__ServicesEntry *in,
                            struct zt_workload_service *s, struct zt_error *err)
{
    const char *slash = strchr(in->key, '/');
    if (!slash) {
        zt_error_set(err, ZT_INVALID, "failed to parse namespaced hostname: %.256s", in->key);
        return false;
    }
    s->ns = zt_arena_text(a, (const uint8_t *)in->key, (size_t)(slash - in->key));
    s->hostname = slash + 1;
    if (!s->ns)
        return zt_xds_no_memory(err);
    s->ports = NULL;
    s->n_ports = 0;
    return !in->value ||
           zt_xds_ports(a, in->value->ports, in->value->n_ports, &s->ports, &s->n_ports, err);
}

static bool convert_services(struct zt_arena *a, const Istio__Workload__Workload *in,
                             struct zt_workload *w, struct zt_error *err)
{
    size_t n = in->n_services, to = 0;
    if (!zt_xds_list_fits(n, "services", err))
        return false;
    struct place *places = zt_arena_take(a, n, sizeof *places);
    struct zt_workload_service *list = zt_arena_take(a, n, sizeof *list);
    if (!places || !list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++)
        places[i] = (struct place){.key = in->services[i]->key, .index = i};
    kill_doubles(places, n);
    for (size_t i = 0; i < n; i++)
        if (!places[i].dead && !convert_service(a, in->services[i], &list[to++], err))
            return false;
    w->services = list;
    w->n_services = (uint16_t)to;
    return true;
}

static bool convert_policies(const Istio__Workload__Workload *in, struct zt_workload *w,
                             struct zt_error *err)
{
    w->policies = (const char *const *)in->authorization_policies;
    w->n_policies = (uint16_t)in->n_authorization_policies;
    return zt_xds_list_fits(in->n_authorization_policies, "policies", err);
}

static bool convert_tunnel_protocol(int value, struct zt_workload *w, struct zt_error *err)
{
    switch (value) {
    case ISTIO__WORKLOAD__TUNNEL_PROTOCOL__NONE:
        w->protocol = ZT_PROTOCOL_TCP;
        return true;
    case ISTIO__WORKLOAD__TUNNEL_PROTOCOL__HBONE:
        w->protocol = ZT_PROTOCOL_HBONE;
        return true;
    case ISTIO__WORKLOAD__TUNNEL_PROTOCOL__LEGACY_ISTIO_MTLS:
        zt_error_set(err, ZT_INVALID,
                     "unknown enum: unsupported tunnel protocol: legacy istio mtls");
        return false;
    default:
        return zt_xds_unknown_enum(value, err);
    }
}

static bool convert_switch(int value, bool *one, struct zt_error *err)
{
    if (value != 0 && value != 1)
        return zt_xds_unknown_enum(value, err);
    *one = value == 1;
    return true;
}

/* An unknown type of workload is only a label: it counts as a deployment. */
static const char *type_name(int value)
{
    static const char *const names[] = {
        [ISTIO__WORKLOAD__WORKLOAD_TYPE__DEPLOYMENT] = "deployment",
        [ISTIO__WORKLOAD__WORKLOAD_TYPE__CRONJOB] = "cronjob",
        [ISTIO__WORKLOAD__WORKLOAD_TYPE__POD] = "pod",
        [ISTIO__WORKLOAD__WORKLOAD_TYPE__JOB] = "job",
    };
    return value >= 0 && value < (int)(sizeof names / sizeof *names) ? names[value] : names[0];
}

static bool convert_application_tunnel(const Istio__Workload__ApplicationTunnel *in,
                                       struct zt_workload *w, struct zt_error *err)
{
    bool proxy = false;
    if (!in)
        return true;
    if (!convert_switch((int)in->protocol, &proxy, err) || !zt_xds_port_fits(in->port, err))
        return false;
    w->has_app_tunnel = true;
    w->app_tunnel = proxy ? ZT_APP_TUNNEL_PROXY : ZT_APP_TUNNEL_NONE;
    w->app_tunnel_port = (uint16_t)in->port;
    return true;
}

static void convert_texts(const Istio__Workload__Workload *in, struct zt_workload *w)
{
    w->uid = in->uid;
    w->name = in->name;
    w->ns = in->namespace_;
    w->network = in->network;
    w->node = in->node;
    w->hostname = in->hostname;
    w->trust_domain = or_default(in->trust_domain, DEFAULT_TRUST_DOMAIN);
    w->service_account = or_default(in->service_account, DEFAULT_SERVICE_ACCOUNT);
    w->cluster_id = or_default(in->cluster_id, DEFAULT_CLUSTER);
    w->canonical_name = in->canonical_name;
    w->canonical_revision = in->canonical_revision;
    w->workload_name = in->workload_name;
    w->workload_type = type_name((int)in->workload_type);
    if (!in->locality)
        return;
    w->has_locality = true;
    w->region = in->locality->region;
    w->zone = in->locality->zone;
    w->subzone = in->locality->subzone;
}

enum zt_err zt_xds_workload(struct zt_arena *a, const Istio__Workload__Workload *in,
                            struct zt_workload **out, struct zt_error *err)
{
    struct zt_workload w = {.origin = ZT_ORIGIN_XDS, .native_tunnel = in->native_tunnel};
    bool unhealthy = false;
    *out = NULL;
    convert_texts(in, &w);
    w.capacity = in->capacity ? in->capacity->value : 1;
    if (!convert_ips(a, in, &w, err) ||
        !zt_xds_optional_gateway(a, in->waypoint, &w.waypoint, err) ||
        !zt_xds_optional_gateway(a, in->network_gateway, &w.network_gateway, err) ||
        !convert_application_tunnel(in->application_tunnel, &w, err) ||
        !convert_tunnel_protocol((int)in->tunnel_protocol, &w, err) ||
        !convert_switch((int)in->network_mode, &w.host_network, err) ||
        !convert_switch((int)in->status, &unhealthy, err) || !convert_services(a, in, &w, err) ||
        !convert_policies(in, &w, err))
        return ZT_INVALID;
    w.healthy = !unhealthy;
    return zt_workload_new(&w, out, err);
}
