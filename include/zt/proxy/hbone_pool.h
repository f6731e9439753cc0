/* A pod's pool of outgoing HBONE tunnels (spec/dataplane §3.5): found by source identity, expected identities, next hop and client
 * address. One flight per key makes a tunnel, and everybody who waits for that key shares its result, good or bad.
 * A tunnel that carried its maximum of streams leaves the pool for good; an unused one is forgotten after a while; one that
 * nobody holds says GOAWAY and closes.
 *
 * Double HBONE (spec/dataplane §2.7, departed from): a key with `inner` names tunnels inside streams of the outer tunnel of the same key. Each
 * starts with a CONNECT on an outer one, which the gateway leads to an endpoint of its choice. They are pooled too, a few side by
 * side and not for long, so that connections spread over the endpoints without a handshake each.
 * Thread: the pod's worker. */
#ifndef ZT_PROXY_HBONE_POOL_H
#define ZT_PROXY_HBONE_POOL_H

#include "zt/base/addr.h"
#include "zt/base/metrics.h"
#include "zt/h2/h2_session.h"
#include "zt/net/sock.h"
#include "zt/proxy/cred_source.h"
#include "zt/proxy/vitals.h"

struct zt_hbone_pool;
struct zt_pod;

#define ZT_POOL_TUNNELS_MAX 500 /* idle tunnels kept; beyond it the least recently used is forgotten */
#define ZT_POOL_WAITERS_MAX 10000 /* per key, waiting for one flight; more fail with ZT_LIMIT */
#define ZT_POOL_FLIGHTS_MAX 32    /* per key; more than one only when the waiters do not fit into one tunnel */

/* Inner tunnels of one service behind one gateway: so many side by side, one of them drawn for each connection; each leaves the pool after so
 * many streams in all, or at this age. */
#define ZT_POOL_INNER_TUNNELS_MAX 8
#define ZT_POOL_INNER_STREAMS_MAX 100
#define ZT_POOL_INNER_AGE_MAX_MS 30000

struct zt_hbone_pool_config { /* copied; pointers borrowed (as long as the pool) */
    struct zt_loop *loop;
    struct zt_h2_config h2;
    struct zt_netns *netns;
    struct zt_sock_opts sock;
    struct zt_cred_source *creds;
    struct zt_tls_keylog *keylog; /* or NULL */
    struct zt_vitals *vitals;     /* or NULL */
    unsigned streams_max;         /* POOL_MAX_STREAMS_PER_CONNECTION */
    unsigned unused_timeout_ms;   /* POOL_UNUSED_RELEASE_TIMEOUT */
    unsigned connect_timeout_ms;  /* one budget for credential, TCP, TLS and SETTINGS; another for the answer to CONNECT */
    bool crl;                     /* revocation lists are configured: paths are kept, to be held against new ones */
    struct zt_metrics_shard *shard; /* or NULL */
    struct zt_pod *pod;           /* whose dials are counted; or NULL */
};

struct zt_hbone_inner { /* borrowed during the call */
    const char *authority; /* of both CONNECTs: which service */
    char *const *sans;     /* accepted from the endpoint; none: nobody can pass */
    unsigned n_sans;
};

struct zt_hbone_key { /* borrowed during the call */
    const char *src_identity;
    char *const *sans; /* order matters */
    unsigned n_sans;
    struct zt_addr next_hop;
    struct zt_ip src_ip;
    const struct zt_hbone_inner *inner; /* NULL: a single tunnel */
};

/* One CONNECT wanted. Embed it; zeroed by its maker. */
struct zt_hbone_request {
    struct zt_link link;
    struct zt_h2_request h2;
    struct zt_hbone_pool *pool;
    void *key, *tunnel;                 /* the pool's: what it waits for; where it was sent */
    struct zt_h2_stream *stream;
    const struct zt_h2_header *headers; /* borrowed until done: a request may be sent again on another tunnel */
    unsigned n_headers;
    unsigned patience_ms; /* set by the caller: it waits no longer for a tunnel to be set up; 0: as long as that takes */
    ev_timer timer;
    uint8_t state, tries, error; /* the pool's; error: enum zt_err of one that failed in connect */
    bool set_up_failed;          /* in done: TCP, TLS or HTTP/2 could not be set up, for no fault of anybody's identity: an other peer may serve */
    const char *peer_identity;   /* in done, ZT_OK: who took it, by its certificate (the inner one's of two); borrowed during the call */
    /* Exactly once, never from inside connect. err->code ZT_OK: st is the stream (taken), status was 200, h its headers (borrowed during
     * the call). Otherwise st is NULL: ZT_IDENTITY, ZT_NETWORK_POLICY, ZT_IO, ZT_TIMEOUT, ZT_H2_HANDSHAKE, ZT_H2,
     * ZT_HTTP_STATUS ("401 Unauthorized"), ZT_LIMIT, ZT_POOL_DRAINING. */
    void (*done)(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h, const struct zt_error *err);
};

struct zt_hbone_pool *zt_hbone_pool_new(const struct zt_hbone_pool_config *c); /* returns owned */
/* Drops every tunnel at once; requests on their way get ZT_POOL_DRAINING, streams see an error. */
void zt_hbone_pool_free(struct zt_hbone_pool *p);
/* headers: the complete CONNECT block, pseudo headers first; with `inner`, that of the inner one: the outer one's is the same without
 * x-forwarded-network. */
void zt_hbone_pool_connect(struct zt_hbone_pool *p, const struct zt_hbone_key *key, const struct zt_h2_header *headers,
                           unsigned n_headers, struct zt_hbone_request *r);
/* done does not run afterwards; an open stream is reset. Legal after done and on a zeroed one. */
void zt_hbone_request_cancel(struct zt_hbone_request *r);
/* Tunnels open now, in the pool or not; those in flight included. */
unsigned zt_hbone_pool_tunnels(const struct zt_hbone_pool *p);
/* Cuts the tunnels whose server's certificate is on a revocation list by now: streams see ZT_REVOKED, requests get it. Returns how many. */
unsigned zt_hbone_pool_revoke(struct zt_hbone_pool *p);
/* Idle tunnels say GOAWAY and close, others after their last stream. New requests still work. */
void zt_hbone_pool_drain(struct zt_hbone_pool *p);

#endif
