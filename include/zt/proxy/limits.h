/* What one pod, and one peer of it, may take of a node: connections, tunnels, pending dials, handshakes per second, bytes queued. The
 * defaults are far above normal use (docs/configuration.md has the table). At a limit the newest comer is turned away, counted, and logged
 * once a second; who is already served does not notice.
 * Thread: the pod's worker. */
#ifndef ZT_PROXY_LIMITS_H
#define ZT_PROXY_LIMITS_H

#include "zt/base/addr.h"
#include "zt/base/metrics.h"
#include "zt/base/log.h"
#include <stdbool.h>

enum zt_limit {
    ZT_LIMIT_POD_CONNECTIONS,  /* either direction, one per CONNECT stream or accepted socket */
    ZT_LIMIT_POD_TUNNELS,      /* into the pod, handshakes included */
    ZT_LIMIT_POD_HANDSHAKES,   /* TLS handshakes begun by others, per second */
    ZT_LIMIT_POD_DIALS,        /* connects under way on the pod's behalf */
    ZT_LIMIT_POD_QUEUED_BYTES, /* received for readers that do not read */
    ZT_LIMIT_PEER_CONNECTIONS, /* as for the pod, from one client address */
    ZT_LIMIT_PEER_TUNNELS,
    ZT_LIMIT_PEER_HANDSHAKES,
    ZT_LIMIT_N,
};

struct zt_limits_config {
    uint64_t max[ZT_LIMIT_N]; /* each at least 1 */
};

/* A bucket that holds one second's worth. */
struct zt_rate {
    double tokens;
    uint64_t last_ms; /* 0: not used yet, full */
};
/* True when one more is within per_s. */
bool zt_rate_take(struct zt_rate *r, uint64_t per_s, uint64_t now_ms);

struct zt_limit_peer;

struct zt_limits { /* embedded in the pod */
    const struct zt_limits_config *config;
    uint64_t n_connections, n_tunnels;
    struct zt_rate handshakes;
    struct zt_limit_peer *peers; /* by address */
    unsigned n_peers;
    uint64_t swept_ms;
};

void zt_limits_init(struct zt_limits *l, const struct zt_limits_config *config); /* borrows config (until fini) */
void zt_limits_fini(struct zt_limits *l);
/* Takes a connection's place. peer NULL: one that the pod makes. False: *hit says which limit was reached, and no place was taken. */
bool zt_limits_connection(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms, enum zt_limit *hit);
void zt_limits_connection_end(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms);
/* Takes a tunnel's place, and one of this second's handshakes. */
bool zt_limits_tunnel(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms, enum zt_limit *hit);
void zt_limits_tunnel_end(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms);
/* Addresses remembered now. */
unsigned zt_limits_peers(const struct zt_limits *l);

const char *zt_limit_name(enum zt_limit limit); /* the label's value */
/* Registers the counter. Thread: control. */
void zt_limits_register_metrics(struct zt_metrics *m);
/* Counts that somebody was turned away; the line about it is written at most once a second per gate. */
void zt_limits_shed(struct zt_metrics_shard *shard, struct zt_log_gate *gate, enum zt_limit limit, const char *pod, uint64_t max);

#endif
