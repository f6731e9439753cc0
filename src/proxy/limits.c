/* Places of a pod and of its peers.
 *
 * Invariants: a place that was taken is given back exactly once, by the same address. A peer's record exists while it holds a place or its
 * bucket is not full again; idle records are swept when the table grows, at most once a second, and the pod's own handshake rate bounds
 * how many can come meanwhile. */
#include "zt/proxy/limits.h"

#include "zt/base/map.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"

#define SWEEP_PEERS_MIN 1024

struct zt_limit_peer {
    UT_hash_handle hh;
    struct zt_ip ip;
    uint64_t n_connections, n_tunnels;
    struct zt_rate handshakes;
};

/* ---- rates -------------------------------------------------------------------------------------- */

static void rate_refill(struct zt_rate *r, uint64_t per_s, uint64_t now_ms)
{
    double full = (double)per_s;
    r->tokens = r->last_ms ? r->tokens + (double)(now_ms - r->last_ms) * full / 1e3 : full;
    if (r->tokens > full)
        r->tokens = full;
    r->last_ms = now_ms ? now_ms : 1;
}

bool zt_rate_take(struct zt_rate *r, uint64_t per_s, uint64_t now_ms)
{
    rate_refill(r, per_s, now_ms);
    if (r->tokens < 1)
        return false;
    r->tokens -= 1;
    return true;
}

/* ---- peers -------------------------------------------------------------------------------------- */

static bool peer_is_idle(struct zt_limits *l, struct zt_limit_peer *p, uint64_t now_ms)
{
    uint64_t per_s = l->config->max[ZT_LIMIT_PEER_HANDSHAKES];
    rate_refill(&p->handshakes, per_s, now_ms);
    return !p->n_connections && !p->n_tunnels && p->handshakes.tokens >= (double)per_s;
}

static void peer_forget(struct zt_limits *l, struct zt_limit_peer *p)
{
    HASH_DELETE(hh, l->peers, p);
    l->n_peers--;
    zt_free(p);
}

static void sweep(struct zt_limits *l, uint64_t now_ms)
{
    struct zt_limit_peer *p, *next;
    if (l->n_peers < SWEEP_PEERS_MIN || now_ms - l->swept_ms < 1000)
        return;
    l->swept_ms = now_ms;
    HASH_ITER(hh, l->peers, p, next)
    {
        if (peer_is_idle(l, p, now_ms))
            peer_forget(l, p);
    }
}

static struct zt_limit_peer *peer_find(struct zt_limits *l, const struct zt_ip *ip)
{
    struct zt_limit_peer *p;
    HASH_FIND(hh, l->peers, ip, sizeof(*ip), p);
    return p;
}

static struct zt_limit_peer *peer_get(struct zt_limits *l, const struct zt_ip *ip, uint64_t now_ms)
{
    struct zt_limit_peer *p = peer_find(l, ip);
    if (p)
        return p;
    sweep(l, now_ms);
    p = zt_new(struct zt_limit_peer);
    p->ip = *ip;
    HASH_ADD(hh, l->peers, ip, sizeof(p->ip), p);
    l->n_peers++;
    return p;
}

/* ---- places ------------------------------------------------------------------------------------- */

void zt_limits_init(struct zt_limits *l, const struct zt_limits_config *config)
{
    *l = (struct zt_limits){.config = config};
}

void zt_limits_fini(struct zt_limits *l)
{
    struct zt_limit_peer *p, *next;
    HASH_ITER(hh, l->peers, p, next)
    {
        peer_forget(l, p);
    }
}

static bool over(const struct zt_limits *l, uint64_t now, enum zt_limit limit, enum zt_limit *hit)
{
    if (now < l->config->max[limit])
        return false;
    *hit = limit;
    return true;
}

bool zt_limits_connection(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms, enum zt_limit *hit)
{
    struct zt_limit_peer *p = peer ? peer_get(l, peer, now_ms) : NULL;
    if (over(l, l->n_connections, ZT_LIMIT_POD_CONNECTIONS, hit) ||
        (p && over(l, p->n_connections, ZT_LIMIT_PEER_CONNECTIONS, hit)))
        return false;
    l->n_connections++;
    if (p)
        p->n_connections++;
    return true;
}

void zt_limits_connection_end(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms)
{
    struct zt_limit_peer *p = peer ? peer_find(l, peer) : NULL;
    ZT_ASSERT(l->n_connections > 0 && (!peer || (p && p->n_connections > 0)));
    l->n_connections--;
    if (!p)
        return;
    p->n_connections--;
    if (peer_is_idle(l, p, now_ms))
        peer_forget(l, p);
}

bool zt_limits_tunnel(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms, enum zt_limit *hit)
{
    struct zt_limit_peer *p = peer_get(l, peer, now_ms);
    if (over(l, l->n_tunnels, ZT_LIMIT_POD_TUNNELS, hit) || over(l, p->n_tunnels, ZT_LIMIT_PEER_TUNNELS, hit))
        return false;
    /* The peer's rate first: one that floods does not use up what the others may take. */
    *hit = ZT_LIMIT_PEER_HANDSHAKES;
    if (!zt_rate_take(&p->handshakes, l->config->max[ZT_LIMIT_PEER_HANDSHAKES], now_ms))
        return false;
    *hit = ZT_LIMIT_POD_HANDSHAKES;
    if (!zt_rate_take(&l->handshakes, l->config->max[ZT_LIMIT_POD_HANDSHAKES], now_ms))
        return false;
    l->n_tunnels++;
    p->n_tunnels++;
    return true;
}

void zt_limits_tunnel_end(struct zt_limits *l, const struct zt_ip *peer, uint64_t now_ms)
{
    struct zt_limit_peer *p = peer_find(l, peer);
    ZT_ASSERT(p && p->n_tunnels > 0 && l->n_tunnels > 0);
    l->n_tunnels--;
    p->n_tunnels--;
    if (peer_is_idle(l, p, now_ms))
        peer_forget(l, p);
}

unsigned zt_limits_peers(const struct zt_limits *l)
{
    return l->n_peers;
}

/* ---- what is seen of it ------------------------------------------------------------------------- */

static const char *const names[ZT_LIMIT_N] = {
    [ZT_LIMIT_POD_CONNECTIONS] = "pod_connections",   [ZT_LIMIT_POD_TUNNELS] = "pod_tunnels",
    [ZT_LIMIT_POD_HANDSHAKES] = "pod_handshakes",     [ZT_LIMIT_POD_DIALS] = "pod_dials",
    [ZT_LIMIT_POD_QUEUED_BYTES] = "pod_queued_bytes", [ZT_LIMIT_PEER_CONNECTIONS] = "peer_connections",
    [ZT_LIMIT_PEER_TUNNELS] = "peer_tunnels",         [ZT_LIMIT_PEER_HANDSHAKES] = "peer_handshakes",
};

static const char *const limit_label[] = {"limit"};
static const struct zt_metric_family family_reached = {
    .name = "ztunneld_limit_reached",
    .help = "The total number of connections, tunnels, dials and streams turned away at a limit (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = limit_label,
    .n_labels = 1,
};

const char *zt_limit_name(enum zt_limit limit)
{
    return names[limit];
}

void zt_limits_register_metrics(struct zt_metrics *m)
{
    zt_metrics_register(m, &family_reached);
}

void zt_limits_shed(struct zt_metrics_shard *shard, struct zt_log_gate *gate, enum zt_limit limit, const char *pod, uint64_t max)
{
    struct zt_metric_series *s = zt_metric_series_get(shard, &family_reached, &names[limit], 1);
    struct zt_log_line line;
    uint32_t suppressed;
    zt_metric_add(s, 1);
    zt_metric_series_put(s);
    if (!zt_log_gate_pass(gate, 1, &suppressed) || !zt_log_on(ZT_LOG_WARN, "proxy"))
        return;
    zt_log_begin(&line, ZT_LOG_WARN, "proxy", "limit reached, the newest is turned away");
    zt_log_str(&line, "limit", names[limit]);
    zt_log_u64(&line, "max", max);
    zt_log_str(&line, "pod", pod);
    if (suppressed)
        zt_log_u64(&line, "suppressed", suppressed);
    zt_log_end(&line);
}
