/* The records of the state store: workloads, services, gateways (spec/controlplane §3.3, §4.2, §4.3). Immutable after
 * publication and ref-counted; a connection keeps the version it looked up. Strings are owned by their record; "" where the
 * source had nothing. A record is one allocation with its strings where possible: a node may hold a million.
 * Thread: any (refs are atomic); the last unref, on whatever thread, puts the memory into a graveyard that control empties (zt_store_collect). */
#ifndef ZT_STATE_WORKLOAD_H
#define ZT_STATE_WORKLOAD_H

#include "zt/base/addr.h"
#include "zt/base/identity.h"
#include <stdatomic.h>

enum zt_protocol { ZT_PROTOCOL_TCP, ZT_PROTOCOL_HBONE };
enum zt_origin { ZT_ORIGIN_FILE, ZT_ORIGIN_XDS }; /* who delivered a record; xDS wins where keys clash */

/* A waypoint or network gateway: by address (ip.family set) or by hostname. */
struct zt_gateway_ref {
    struct zt_ip ip;
    const char *network;  /* by address */
    const char *ns, *hostname; /* by hostname */
    uint16_t hbone_mtls_port;
};

struct zt_port_map { /* service port -> target port; target 0 = named port (services only) */
    uint16_t service_port, target_port;
};

/* One service that a workload is an endpoint of. */
struct zt_workload_service {
    const char *ns, *hostname;
    const struct zt_port_map *ports;
    unsigned n_ports;
};

enum zt_app_tunnel { ZT_APP_TUNNEL_NONE, ZT_APP_TUNNEL_PROXY };

struct zt_workload {
    atomic_uint refs;
    uint8_t origin;   /* enum zt_origin */
    uint8_t protocol; /* enum zt_protocol */
    bool host_network, healthy, native_tunnel, has_locality, has_app_tunnel;
    uint8_t app_tunnel;       /* enum zt_app_tunnel */
    uint16_t app_tunnel_port; /* 0 = unset */
    uint32_t capacity;
    const char *uid, *name, *ns, *service_account, *trust_domain, *network, *node, *cluster_id;
    const char *workload_name, *workload_type, *canonical_name, *canonical_revision, *hostname;
    const char *region, *zone, *subzone;
    const struct zt_ip *ips;
    const struct zt_workload_service *services;
    const char *const *policies; /* "ns/name" of selector policies */
    const struct zt_gateway_ref *waypoint, *network_gateway; /* or NULL */
    uint16_t n_ips, n_services, n_policies;
};

enum zt_lb_mode { ZT_LB_NONE, ZT_LB_STANDARD, ZT_LB_STRICT, ZT_LB_FAILOVER, ZT_LB_PASSTHROUGH }; /* NONE: no block */
enum zt_lb_scope { ZT_SCOPE_REGION = 1, ZT_SCOPE_ZONE, ZT_SCOPE_SUBZONE, ZT_SCOPE_NODE, ZT_SCOPE_CLUSTER, ZT_SCOPE_NETWORK };
enum zt_ip_families { ZT_FAMILIES_AUTO, ZT_FAMILIES_IPV4, ZT_FAMILIES_IPV6, ZT_FAMILIES_DUAL };

struct zt_vip { /* exact when cidr.prefix_bits is the family's width */
    const char *network;
    struct zt_cidr cidr;
    bool exact;
};
struct zt_weighted_waypoint {
    struct zt_gateway_ref destination;
    uint32_t weight;
};
/* An endpoint given inside a local file's service (spec/controlplane §5.1); others come from workloads. */
struct zt_static_endpoint {
    const char *workload_uid;
    const struct zt_port_map *ports;
    unsigned n_ports;
    bool healthy;
};

struct zt_service {
    atomic_uint refs;
    uint8_t origin;
    uint8_t lb_mode;        /* enum zt_lb_mode */
    bool lb_allow_all;      /* health policy */
    uint8_t n_lb_scopes, lb_scopes[8];
    uint8_t ip_families;    /* enum zt_ip_families */
    bool canonical, namespace_visible_only;
    const char *name, *ns, *hostname;
    const struct zt_vip *vips;
    const struct zt_port_map *ports;
    const char *const *sans;
    const struct zt_gateway_ref *waypoint; /* or NULL */
    const struct zt_weighted_waypoint *weighted_waypoints;
    const struct zt_static_endpoint *endpoints;
    uint16_t n_vips, n_ports, n_sans, n_weighted_waypoints;
    uint32_t n_endpoints;
};

/* Builds a record: set the fields of a template (borrowed, counts included), get an owned immutable copy with one reference. All
 * strings may be NULL (becomes ""). Errors: ZT_INVALID with a text (empty uid, too many entries, text too long). */
enum zt_err zt_workload_new(const struct zt_workload *template, struct zt_workload **out, struct zt_error *err);
enum zt_err zt_service_new(const struct zt_service *template, struct zt_service **out, struct zt_error *err);
struct zt_workload *zt_workload_ref(const struct zt_workload *w);
void zt_workload_unref(const struct zt_workload *w); /* NULL is legal */
struct zt_service *zt_service_ref(const struct zt_service *s);
void zt_service_unref(const struct zt_service *s);

/* spiffe://<td>/ns/<ns>/sa/<sa>. False when it does not fit. */
bool zt_workload_identity(const struct zt_workload *w, char out[static ZT_IDENTITY_MAX]);
/* The target port of a service port in a map; -1 when not listed. */
int zt_port_map_find(const struct zt_port_map *ports, unsigned n, uint16_t service_port);

#endif
