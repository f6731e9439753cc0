/* A workload of the local file (spec/controlplane §5.1, validity of §4.2). Unlike xDS, an omitted trust domain or account stays
 * empty. A workload without uid gets one from cluster, namespace and name (the reference lets all such workloads collide). */
#include "config/local_impl.h"

#include "zt/base/str.h"
#include <string.h>

enum field {
    F_IPS,
    F_NAMESPACE,
    F_SERVICES,
    F_UID,
    F_NAME,
    F_TRUST_DOMAIN,
    F_SERVICE_ACCOUNT,
    F_NETWORK,
    F_WORKLOAD_NAME,
    F_WORKLOAD_TYPE,
    F_CANONICAL_NAME,
    F_CANONICAL_REVISION,
    F_HOSTNAME,
    F_NODE,
    F_CLUSTER_ID,
    F_PROTOCOL,
    F_NETWORK_MODE,
    F_STATUS,
    F_NATIVE_TUNNEL,
    F_APPLICATION_TUNNEL,
    F_POLICIES,
    F_LOCALITY,
    F_CAPACITY,
    F_WAYPOINT,
    F_NETWORK_GATEWAY,
};
static const char *const names[] = {
    [F_IPS] = "workloadIps",
    [F_NAMESPACE] = "namespace",
    [F_SERVICES] = "services",
    [F_UID] = "uid",
    [F_NAME] = "name",
    [F_TRUST_DOMAIN] = "trustDomain",
    [F_SERVICE_ACCOUNT] = "serviceAccount",
    [F_NETWORK] = "network",
    [F_WORKLOAD_NAME] = "workloadName",
    [F_WORKLOAD_TYPE] = "workloadType",
    [F_CANONICAL_NAME] = "canonicalName",
    [F_CANONICAL_REVISION] = "canonicalRevision",
    [F_HOSTNAME] = "hostname",
    [F_NODE] = "node",
    [F_CLUSTER_ID] = "clusterId",
    [F_PROTOCOL] = "protocol",
    [F_NETWORK_MODE] = "networkMode",
    [F_STATUS] = "status",
    [F_NATIVE_TUNNEL] = "nativeTunnel",
    [F_APPLICATION_TUNNEL] = "applicationTunnel",
    [F_POLICIES] = "authorizationPolicies",
    [F_LOCALITY] = "locality",
    [F_CAPACITY] = "capacity",
    [F_WAYPOINT] = "waypoint",
    [F_NETWORK_GATEWAY] = "networkGateway",
    NULL,
};
#define BIT(f) (UINT64_C(1) << (f))
#define REQUIRED (BIT(F_IPS) | BIT(F_NAMESPACE) | BIT(F_SERVICES))

static bool read_ip(struct zt_yaml *r, void *element)
{
    return zt_local_ip(r, element);
}

static bool is_listed(const struct zt_workload_service *list, size_t n, const struct zt_workload_service *s)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].hostname, s->hostname) == 0 && strcmp(list[i].ns, s->ns) == 0)
            return true;
    return false;
}

static bool read_services(struct zt_yaml *r, struct zt_workload *w)
{
    struct zt_workload_service *list = NULL;
    size_t n = 0, cap = 0;
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        struct zt_workload_service s = {0};
        if (!zt_local_room(r, n, LOCAL_SERVICES_MAX) || !zt_local_host_key(r, key.value, &s.ns, &s.hostname))
            return false;
        if (is_listed(list, n, &s))
            return zt_yaml_fail(r, "the key is given twice");
        if (!zt_local_ports(r, &s.ports, &s.n_ports))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        list[n++] = s;
    }
    w->services = list;
    w->n_services = (uint16_t)n;
    return !r->failed;
}

static bool read_application_tunnel(struct zt_yaml *r, struct zt_workload *w)
{
    static const char *const keys[] = {"protocol", "port", NULL};
    static const char *const protocols[] = {[ZT_APP_TUNNEL_NONE] = "NONE", [ZT_APP_TUNNEL_PROXY] = "PROXY", NULL};
    uint64_t seen = 0;
    unsigned protocol = 0;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;) {
        bool ok = f == 0 ? zt_yaml_enum(r, protocols, &protocol)
                         : zt_yaml_null(r) || zt_local_u16(r, &w->app_tunnel_port);
        if (!ok)
            return false;
    }
    w->has_app_tunnel = true;
    w->app_tunnel = (uint8_t)protocol;
    return zt_yaml_require(r, keys, seen, BIT(0));
}

static bool read_locality(struct zt_yaml *r, struct zt_workload *w)
{
    static const char *const keys[] = {"region", "zone", "subzone", NULL};
    const char **const values[] = {&w->region, &w->zone, &w->subzone};
    uint64_t seen = 0;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
        if (!zt_yaml_string(r, values[f]))
            return false;
    w->has_locality = true;
    return zt_yaml_require(r, keys, seen, BIT(0) | BIT(1) | BIT(2));
}

static bool read_switch(struct zt_yaml *r, const char *off, const char *on, bool *out)
{
    const char *const words[] = {off, on, NULL};
    unsigned which = 0;
    if (!zt_yaml_enum(r, words, &which))
        return false;
    *out = which == 1;
    return true;
}

static bool read_protocol(struct zt_yaml *r, struct zt_workload *w)
{
    bool hbone = false;
    if (!read_switch(r, "TCP", "HBONE", &hbone))
        return false;
    w->protocol = hbone ? ZT_PROTOCOL_HBONE : ZT_PROTOCOL_TCP;
    return true;
}

/* The text fields by their key, or NULL when f is another kind of field. */
static const char **text_field(struct zt_workload *w, int f)
{
    switch (f) {
    case F_UID:
        return &w->uid;
    case F_NAME:
        return &w->name;
    case F_NAMESPACE:
        return &w->ns;
    case F_TRUST_DOMAIN:
        return &w->trust_domain;
    case F_SERVICE_ACCOUNT:
        return &w->service_account;
    case F_NETWORK:
        return &w->network;
    case F_WORKLOAD_NAME:
        return &w->workload_name;
    case F_WORKLOAD_TYPE:
        return &w->workload_type;
    case F_CANONICAL_NAME:
        return &w->canonical_name;
    case F_CANONICAL_REVISION:
        return &w->canonical_revision;
    case F_HOSTNAME:
        return &w->hostname;
    case F_NODE:
        return &w->node;
    case F_CLUSTER_ID:
        return &w->cluster_id;
    default:
        return NULL;
    }
}

static bool read_field(struct zt_yaml *r, struct zt_workload *w, int f)
{
    const char **text = text_field(w, f);
    if (text)
        return zt_yaml_string(r, text);
    switch (f) {
    case F_IPS:
        w->ips = ZT_LOCAL_LIST(r, struct zt_ip, read_ip, &w->n_ips);
        return !r->failed;
    case F_SERVICES:
        return read_services(r, w);
    case F_PROTOCOL:
        return read_protocol(r, w);
    case F_NETWORK_MODE:
        return read_switch(r, "Standard", "HostNetwork", &w->host_network);
    case F_STATUS:
        return zt_local_healthy(r, &w->healthy);
    case F_NATIVE_TUNNEL:
        return zt_yaml_bool(r, &w->native_tunnel);
    case F_APPLICATION_TUNNEL:
        return read_application_tunnel(r, w);
    case F_POLICIES:
        return zt_local_strings(r, &w->policies, &w->n_policies);
    case F_LOCALITY:
        return read_locality(r, w);
    case F_CAPACITY:
        return zt_yaml_u32(r, UINT32_MAX, &w->capacity);
    case F_WAYPOINT:
        return zt_local_optional_gateway(r, &w->waypoint);
    default:
        return zt_local_optional_gateway(r, &w->network_gateway);
    }
}

static bool make_uid(struct zt_yaml *r, struct zt_workload *w)
{
    char ip[ZT_IP_TEXT_MAX] = "";
    if (w->n_ips)
        zt_ip_format(&w->ips[0], ip);
    const char *what = *w->name ? w->name : ip;
    if (!*what)
        return zt_yaml_fail(r, "a workload needs a `uid`, a `name` or an address");
    size_t size = strlen(w->cluster_id) + strlen(w->ns) + strlen(what) + sizeof "Kubernetes//Pod//";
    char *uid = zt_scratch_alloc(&r->scratch, size);
    zt_fmt(uid, size, "%s//Pod/%s/%s", *w->cluster_id ? w->cluster_id : "Kubernetes", w->ns, what);
    w->uid = uid;
    return true;
}

bool zt_local_workload(struct zt_yaml *r, struct zt_workload **out)
{
    struct zt_workload w = {.origin = ZT_ORIGIN_FILE, .healthy = true, .capacity = 1};
    for (int f = 0; f <= F_CLUSTER_ID; f++)
        if (text_field(&w, f))
            *text_field(&w, f) = "";
    w.region = w.zone = w.subzone = "";
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, names, &seen)) >= 0;)
        if (!read_field(r, &w, f))
            return false;
    if (!zt_yaml_require(r, names, seen, REQUIRED) || (!*w.uid && !make_uid(r, &w)))
        return false;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_workload_new(&w, out, &err) != ZT_OK)
        return zt_yaml_fail(r, "%s", err.text);
    return true;
}
