/* Workloads, services and staged endpoints as JSON (policies are in dump_policy.c). Objects with data for keys - ports, endpoints - are
 * sorted as text here, because clients and diffs rely on ascending byte order and "443" comes before "80". */
#include "app/dump_records.h"
#include "zt/base/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_TEXT_MAX 6
#define NAME_TEXT_MAX 1024

static void key_str_unless_empty(struct zt_json *j, const char *key, const char *value)
{
    if (value && *value)
        zt_json_key_str(j, key, value);
}

/* "first/second" */
static void write_pair(struct zt_json *j, const char *first, const char *second)
{
    struct zt_str s;
    zt_str_init(&s, NAME_TEXT_MAX);
    zt_str_addf(&s, "%s/%s", first ? first : "", second ? second : "");
    zt_json_strn(j, zt_str_cstr(&s), s.len);
    zt_str_fini(&s);
}

/* ---- ports ---- */

static int compare_ports(const void *a, const void *b)
{
    const struct zt_port_map *x = a, *y = b;
    char xt[PORT_TEXT_MAX], yt[PORT_TEXT_MAX];
    snprintf(xt, sizeof xt, "%u", x->service_port);
    snprintf(yt, sizeof yt, "%u", y->service_port);
    return strcmp(xt, yt);
}

static void write_ports(struct zt_json *j, const struct zt_port_map *ports, unsigned n)
{
    struct zt_port_map *sorted = zt_new_n(struct zt_port_map, n ? n : 1);
    char key[PORT_TEXT_MAX];
    if (n)
        memcpy(sorted, ports, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_ports);
    zt_json_object(j);
    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof key, "%u", sorted[i].service_port);
        zt_json_key_u64(j, key, sorted[i].target_port);
    }
    zt_json_object_end(j);
    zt_free(sorted);
}

/* ---- gateways ---- */

static void write_gateway(struct zt_json *j, const struct zt_gateway_ref *g)
{
    char ip[ZT_IP_TEXT_MAX];
    zt_json_object(j);
    zt_json_key(j, "destination");
    if (g->ip.family != ZT_IP_NONE)
        write_pair(j, g->network, zt_ip_format(&g->ip, ip));
    else
        write_pair(j, g->ns, g->hostname);
    zt_json_key_u64(j, "hboneMtlsPort", g->hbone_mtls_port);
    zt_json_object_end(j);
}

static void key_gateway(struct zt_json *j, const char *key, const struct zt_gateway_ref *g)
{
    if (!g)
        return;
    zt_json_key(j, key);
    write_gateway(j, g);
}

/* ---- workloads ---- */

static void write_app_tunnel(struct zt_json *j, const struct zt_workload *w)
{
    zt_json_key(j, "applicationTunnel");
    zt_json_object(j);
    zt_json_key(j, "port");
    if (w->app_tunnel_port)
        zt_json_u64(j, w->app_tunnel_port);
    else
        zt_json_null(j);
    zt_json_key_str(j, "protocol", w->app_tunnel == ZT_APP_TUNNEL_PROXY ? "PROXY" : "NONE");
    zt_json_object_end(j);
}

static void write_workload_policies(struct zt_json *j, const struct zt_workload *w)
{
    zt_json_key(j, "authorizationPolicies");
    zt_json_array(j);
    for (unsigned i = 0; i < w->n_policies; i++)
        zt_json_str(j, w->policies[i]);
    zt_json_array_end(j);
}

static void write_locality(struct zt_json *j, const struct zt_workload *w)
{
    zt_json_key(j, "locality");
    zt_json_object(j);
    zt_json_key_str(j, "region", w->region);
    zt_json_key_str(j, "subzone", w->subzone);
    zt_json_key_str(j, "zone", w->zone);
    zt_json_object_end(j);
}

static int compare_workload_services(const void *a, const void *b)
{
    const struct zt_workload_service *const *x = a, *const *y = b;
    int c = strcmp((*x)->ns, (*y)->ns);
    return c ? c : strcmp((*x)->hostname, (*y)->hostname);
}

static void write_workload_services(struct zt_json *j, const struct zt_workload *w, bool local_form)
{
    unsigned n = w->n_services;
    const struct zt_workload_service **sorted = zt_new_n(const struct zt_workload_service *, n ? n : 1);
    for (unsigned i = 0; i < n; i++)
        sorted[i] = &w->services[i];
    qsort(sorted, n, sizeof *sorted, compare_workload_services);
    zt_json_key(j, "services");
    (local_form ? zt_json_object : zt_json_array)(j);
    for (unsigned i = 0; i < n; i++) {
        if (local_form) {
            struct zt_str name;
            zt_str_init(&name, NAME_TEXT_MAX);
            zt_str_addf(&name, "%s/%s", sorted[i]->ns, sorted[i]->hostname);
            zt_json_key(j, zt_str_cstr(&name));
            zt_str_fini(&name);
            write_ports(j, sorted[i]->ports, sorted[i]->n_ports);
        } else {
            write_pair(j, sorted[i]->ns, sorted[i]->hostname);
        }
    }
    (local_form ? zt_json_object_end : zt_json_array_end)(j);
    zt_free(sorted);
}

static void write_ips(struct zt_json *j, const struct zt_workload *w)
{
    char ip[ZT_IP_TEXT_MAX];
    zt_json_key(j, "workloadIps");
    zt_json_array(j);
    for (unsigned i = 0; i < w->n_ips; i++)
        zt_json_str(j, zt_ip_format(&w->ips[i], ip));
    zt_json_array_end(j);
}

void zt_dump_workload(struct zt_json *j, const struct zt_workload *w, bool local_form)
{
    zt_json_object(j);
    if (w->has_app_tunnel)
        write_app_tunnel(j, w);
    if (w->n_policies)
        write_workload_policies(j, w);
    key_str_unless_empty(j, "canonicalName", w->canonical_name);
    key_str_unless_empty(j, "canonicalRevision", w->canonical_revision);
    zt_json_key_u64(j, "capacity", w->capacity);
    zt_json_key_str(j, "clusterId", w->cluster_id);
    key_str_unless_empty(j, "hostname", w->hostname);
    if (w->has_locality)
        write_locality(j, w);
    zt_json_key_str(j, "name", w->name);
    zt_json_key_str(j, "namespace", w->ns);
    if (w->native_tunnel)
        zt_json_key_bool(j, "nativeTunnel", true);
    key_str_unless_empty(j, "network", w->network);
    key_gateway(j, "networkGateway", w->network_gateway);
    zt_json_key_str(j, "networkMode", w->host_network ? "HostNetwork" : "Standard");
    key_str_unless_empty(j, "node", w->node);
    zt_json_key_str(j, "protocol", w->protocol == ZT_PROTOCOL_HBONE ? "HBONE" : "TCP");
    key_str_unless_empty(j, "serviceAccount", w->service_account);
    if (w->n_services || local_form)
        write_workload_services(j, w, local_form);
    zt_json_key_str(j, "status", w->healthy ? "Healthy" : "Unhealthy");
    key_str_unless_empty(j, "trustDomain", w->trust_domain);
    key_str_unless_empty(j, "uid", w->uid);
    key_gateway(j, "waypoint", w->waypoint);
    write_ips(j, w);
    key_str_unless_empty(j, "workloadName", w->workload_name);
    key_str_unless_empty(j, "workloadType", w->workload_type);
    zt_json_object_end(j);
}

/* ---- endpoints ---- */

struct endpoint {
    char *uid;
    struct zt_port_map *ports;
    unsigned n_ports;
    bool healthy;
};

struct endpoints {
    struct endpoint *list;
    size_t n, cap;
};

static void on_endpoint(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n_ports, bool healthy)
{
    struct endpoints *e = arg;
    if (e->n == e->cap) {
        e->cap = e->cap ? 2 * e->cap : 16;
        e->list = zt_realloc(e->list, e->cap * sizeof *e->list);
    }
    struct endpoint *new = &e->list[e->n++];
    *new = (struct endpoint){.uid = zt_strdup(uid), .n_ports = n_ports, .healthy = healthy};
    new->ports = zt_new_n(struct zt_port_map, n_ports ? n_ports : 1);
    if (n_ports)
        memcpy(new->ports, ports, n_ports * sizeof *ports);
}

static int compare_endpoints(const void *a, const void *b)
{
    const struct endpoint *x = a, *y = b;
    return strcmp(x->uid, y->uid);
}

static void endpoints_fini(struct endpoints *e)
{
    for (size_t i = 0; i < e->n; i++) {
        zt_free(e->list[i].uid);
        zt_free(e->list[i].ports);
    }
    zt_free(e->list);
    *e = (struct endpoints){0};
}

static void write_endpoints(struct zt_json *j, struct endpoints *e)
{
    if (e->n)
        qsort(e->list, e->n, sizeof *e->list, compare_endpoints);
    zt_json_object(j);
    for (size_t i = 0; i < e->n; i++) {
        zt_json_key(j, e->list[i].uid);
        zt_json_object(j);
        zt_json_key(j, "port");
        write_ports(j, e->list[i].ports, e->list[i].n_ports);
        zt_json_key_str(j, "status", e->list[i].healthy ? "Healthy" : "Unhealthy");
        zt_json_key_str(j, "workloadUid", e->list[i].uid);
        zt_json_object_end(j);
    }
    zt_json_object_end(j);
}

/* ---- services ---- */

static void write_vips(struct zt_json *j, const struct zt_service *s, bool exact)
{
    char text[ZT_CIDR_TEXT_MAX];
    for (unsigned i = 0; i < s->n_vips; i++) {
        const struct zt_vip *v = &s->vips[i];
        if (v->exact != exact)
            continue;
        if (exact) {
            write_pair(j, v->network, zt_ip_format(&v->cidr.ip, text));
            continue;
        }
        zt_json_object(j);
        zt_json_key_str(j, "cidr", zt_cidr_format(&v->cidr, text));
        zt_json_key_str(j, "network", v->network);
        zt_json_object_end(j);
    }
}

static bool has_cidr_vips(const struct zt_service *s)
{
    for (unsigned i = 0; i < s->n_vips; i++)
        if (!s->vips[i].exact)
            return true;
    return false;
}

static void write_load_balancer(struct zt_json *j, const struct zt_service *s)
{
    static const char *const modes[] = {"Standard", "Standard", "Strict", "Failover", "Passthrough"};
    static const char *const scopes[] = {"", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"};
    zt_json_key(j, "loadBalancer");
    zt_json_object(j);
    zt_json_key_str(j, "healthPolicy", s->lb_allow_all ? "AllowAll" : "OnlyHealthy");
    zt_json_key_str(j, "mode", modes[s->lb_mode]);
    zt_json_key(j, "routingPreferences");
    zt_json_array(j);
    for (unsigned i = 0; i < s->n_lb_scopes; i++)
        zt_json_str(j, scopes[s->lb_scopes[i]]);
    zt_json_array_end(j);
    zt_json_object_end(j);
}

static void write_weighted_waypoints(struct zt_json *j, const struct zt_service *s)
{
    zt_json_key(j, "weightedWaypoints");
    zt_json_array(j);
    for (unsigned i = 0; i < s->n_weighted_waypoints; i++) {
        zt_json_object(j);
        key_gateway(j, "destination", &s->weighted_waypoints[i].destination);
        zt_json_key_u64(j, "weight", s->weighted_waypoints[i].weight);
        zt_json_object_end(j);
    }
    zt_json_array_end(j);
}

static void write_service_endpoints(struct zt_json *j, struct zt_store *store, const struct zt_service *s)
{
    struct endpoints e = {0};
    zt_store_each_endpoint(store, s->ns, s->hostname, on_endpoint, &e);
    zt_json_key(j, "endpoints");
    write_endpoints(j, &e);
    endpoints_fini(&e);
}

static void key_array(struct zt_json *j, const char *key, const char *const *list, unsigned n)
{
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++)
        zt_json_str(j, list[i]);
    zt_json_array_end(j);
}

void zt_dump_service(struct zt_json *j, struct zt_store *store, const struct zt_service *s)
{
    static const char *const families[] = {NULL, "IPv4", "IPv6", "Dual"};
    zt_json_object(j);
    zt_json_key_bool(j, "canonical", s->canonical);
    if (has_cidr_vips(s)) {
        zt_json_key(j, "cidrVips");
        zt_json_array(j);
        write_vips(j, s, false);
        zt_json_array_end(j);
    }
    write_service_endpoints(j, store, s);
    zt_json_key_str(j, "hostname", s->hostname);
    key_str_unless_empty(j, "ipFamilies", families[s->ip_families]);
    if (s->lb_mode != ZT_LB_NONE)
        write_load_balancer(j, s);
    zt_json_key_str(j, "name", s->name);
    zt_json_key_str(j, "namespace", s->ns);
    zt_json_key(j, "ports");
    write_ports(j, s->ports, s->n_ports);
    key_array(j, "subjectAltNames", s->sans, s->n_sans);
    zt_json_key(j, "vips");
    zt_json_array(j);
    write_vips(j, s, true);
    zt_json_array_end(j);
    zt_json_key_str(j, "visibility", s->namespace_visible_only ? "Namespace" : "Public");
    key_gateway(j, "waypoint", s->waypoint);
    if (s->n_weighted_waypoints)
        write_weighted_waypoints(j, s);
    zt_json_object_end(j);
}

/* ---- staged services ---- */

struct staged {
    char *name; /* "ns/hostname" */
    struct endpoints endpoints;
};

struct staged_list {
    struct staged *list;
    size_t n, cap;
};

static void on_staged(void *arg, const char *ns, const char *hostname)
{
    struct staged_list *s = arg;
    struct zt_str name;
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->list = zt_realloc(s->list, s->cap * sizeof *s->list);
    }
    zt_str_init(&name, NAME_TEXT_MAX);
    zt_str_addf(&name, "%s/%s", ns, hostname);
    s->list[s->n++] = (struct staged){.name = zt_str_take(&name)};
    zt_str_fini(&name);
}

static void on_staged_endpoint(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n_ports,
                               bool healthy)
{
    struct staged_list *s = arg;
    on_endpoint(&s->list[s->n - 1].endpoints, uid, ports, n_ports, healthy);
}

static int compare_staged(const void *a, const void *b)
{
    const struct staged *x = a, *y = b;
    return strcmp(x->name, y->name);
}

void zt_dump_staged(struct zt_json *j, struct zt_store *store)
{
    struct staged_list s = {0};
    zt_store_each_staged(store, on_staged, on_staged_endpoint, &s);
    if (s.n)
        qsort(s.list, s.n, sizeof *s.list, compare_staged);
    zt_json_object(j);
    for (size_t i = 0; i < s.n; i++) {
        zt_json_key(j, s.list[i].name);
        write_endpoints(j, &s.list[i].endpoints);
        endpoints_fini(&s.list[i].endpoints);
        zt_free(s.list[i].name);
    }
    zt_json_object_end(j);
    zt_free(s.list);
}
