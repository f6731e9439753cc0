/* Where an outbound connection goes: the decision tree of spec/dataplane §2.2 as one pure function over the store.
 * The data path and `ztctl explain` call the very same function; explain passes a recorder. Thread: any. */
#ifndef ZT_STATE_ROUTE_H
#define ZT_STATE_ROUTE_H

#include "zt/base/str.h"
#include "zt/state/store.h"

enum zt_route_kind {
    ZT_ROUTE_TCP,          /* plain TCP: passthrough, or a workload without HBONE */
    ZT_ROUTE_HBONE,        /* one tunnel: direct or to a waypoint */
    ZT_ROUTE_DOUBLE_HBONE, /* a tunnel to a network gateway with another inside */
};

#define ZT_AUTHORITY_MAX 264 /* "host:65535", NUL included */
#define ZT_ROUTE_SANS_MAX 64 /* expected identities; a service naming more: the rest is ignored with a warning */

struct zt_route {
    enum zt_route_kind kind;
    struct zt_addr next_hop;               /* what is dialled */
    char authority[ZT_AUTHORITY_MAX];      /* HBONE kinds; ":port" when needs_dns and direct: the address goes in front */
    struct zt_workload *dst_workload;      /* retained, or NULL: telemetry's destination (the next hop's workload) */
    struct zt_service *dst_service;        /* retained, or NULL: the service the client meant */
    char **sans;                           /* owned: identities accepted from the next hop, in pool-key order */
    unsigned n_sans;
    char **inner_sans;                     /* double HBONE: from the inner peer */
    unsigned n_inner_sans;
    bool alternatives;                     /* if next_hop cannot be dialled, asking again with its workload among the tried may find another */
    bool via_waypoint, needs_dns;          /* needs_dns: dst_workload has only a hostname: next_hop.ip is unset */
};

struct zt_route_query {
    const struct zt_workload *src;  /* the local workload; borrowed */
    struct zt_addr client;          /* as seen on the accepted socket */
    struct zt_addr dst;             /* original destination */
    const char *const *tried;       /* uids of workloads that this connection could not dial; borrowed */
    unsigned n_tried;
    struct zt_str *trace;           /* NULL, or one line per step for people ("service: ...\n") */
};

/* Errors: the early texts of spec/dataplane §2.10 (ZT_NO_UPSTREAM, ZT_UNKNOWN_WAYPOINT, ...). On error *out is empty. */
enum zt_err zt_route_resolve(struct zt_store *s, const struct zt_route_query *q, struct zt_route *out, struct zt_error *err);
void zt_route_fini(struct zt_route *r); /* legal on an empty one */

/* Where an inbound CONNECT goes (spec/dataplane §4.5, §4.6). */
struct zt_inbound_query {
    const struct zt_workload *local; /* borrowed */
    struct zt_ip local_ip;           /* L: where the tunnel arrived */
    const char *authority;           /* as received */
    const uint16_t *illegal_ports;
    unsigned n_illegal_ports;
    bool localhost_app_tunnel;       /* LOCALHOST_APP_TUNNEL */
};
struct zt_inbound_target {
    struct zt_addr upstream;       /* what policy looks at and (unless app_addr differs) what is dialled: L with the application's port */
    struct zt_addr dial;           /* what is dialled: loopback for an application tunnel */
    bool proxy_protocol;
    struct zt_addr tunnel_target;  /* PROXY header's destination */
    struct zt_service *service;    /* retained: named in the authority, or NULL */
};
enum zt_err zt_inbound_resolve(struct zt_store *s, const struct zt_inbound_query *q, struct zt_inbound_target *out,
                               struct zt_error *err);
void zt_inbound_target_fini(struct zt_inbound_target *t);

/* The authorization decision for a destination workload (spec/dataplane §6.5). ZT_OK or ZT_POLICY_REJECTED with the reason in err
 * ("explicitly denied by: ns/name", "allow policies exist, but none allowed"). Logs the decision lines of §6.5 (scope "state").
 * trace as above. The workload's *current* record is used when it is still known (spec/dataplane §14 row 5). */
enum zt_err zt_authz_decide(struct zt_store *s, const struct zt_workload *w, const struct zt_authz_request *r,
                            struct zt_str *trace, struct zt_error *err);
/* Why it refuses what it refuses: for operators, after the fact. why: filled in. Thread: any. */
void zt_authz_explain(struct zt_store *s, const struct zt_workload *w, const struct zt_authz_request *r, struct zt_authz_why *why);

#endif
