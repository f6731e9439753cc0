/* Shared by hbone_pool.c (keys, matching) and hbone_tunnel.c (how one tunnel comes to be and ends). Nobody else includes this. */
#ifndef ZT_PROXY_HBONE_POOL_IMPL_H
#define ZT_PROXY_HBONE_POOL_IMPL_H

#include "proxy_impl.h"
#include "zt/base/map.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/net/tcp.h"
#include "zt/net/tls.h"
#include "zt/proxy/hbone_pool.h"

enum request_state { REQUEST_IDLE, REQUEST_WAITING, REQUEST_SENT, REQUEST_FAILED };
enum tunnel_state { TUNNEL_CRED, TUNNEL_DIAL, TUNNEL_TLS, TUNNEL_SETTINGS, TUNNEL_OPEN, TUNNEL_GONE };

struct zt_hbone_pool {
    struct zt_hbone_pool_config config;
    struct pool_key *keys;  /* hash */
    struct zt_link tunnels; /* all_link */
    struct zt_link lru;     /* lru_link: the pooled ones, least recently put back first */
    struct zt_link dirty;   /* keys to look at */
    struct zt_link failed;  /* requests whose done is due */
    struct zt_task task;
    unsigned n_tunnels, n_pooled;
    uint64_t chance; /* state of the generator that draws inner keys */
    bool draining, freed;
};

struct pool_key {
    UT_hash_handle hh;
    struct zt_hbone_pool *pool;
    char *bytes; /* what is compared: all four fields */
    size_t len;
    char *src_identity;
    char **sans; /* of the peer whose tunnel this is */
    unsigned n_sans;
    bool inner;
    char **outer_sans; /* inner: of the gateway */
    unsigned n_outer_sans;
    struct zt_addr next_hop;
    struct zt_ip src_ip;
    struct zt_link tunnels; /* key_link: pooled, next to be used first */
    struct zt_link flights; /* key_link */
    struct zt_link waiters; /* requests */
    struct zt_link dirty_link;
    unsigned n_waiters, n_flights, n_tunnels;
};

struct pool_tunnel {
    struct pool_key *key;
    struct zt_link all_link, key_link, lru_link;
    struct zt_link requests; /* sent, not answered */
    struct zt_cred_request cred_request;
    struct zt_tls_cred *cred; /* DIAL only */
    struct zt_dial dial;
    struct zt_hbone_request outer; /* inner: takes the place of dial */
    struct zt_h2_header *outer_headers;
    unsigned n_outer_headers;
    struct zt_tls_handshake *tls;
    struct zt_tls_path *path; /* from SETTINGS on, with revocation lists; else NULL */
    struct zt_h2_owner h2_owner;
    struct zt_h2_session *h2; /* from SETTINGS on */
    struct zt_task start;
    ev_timer timer; /* in flight: the budget; pooled: unused */
    uint64_t started_ms, put_back_ms, tls_started_us;
    char *identity;     /* of the peer, from TLS on */
    unsigned n_served;  /* streams in all */
    uint8_t state;
    bool pooled;
    bool answered; /* a request came back with a status: it has worked */
};

/* hbone_tunnel.c */
bool pool_tunnel_revoked(const struct pool_tunnel *t);
void pool_flight_start(struct pool_key *key);
/* What to say when the key's tunnel takes too long. False: it waits for our own credential, so the peer is not to blame. */
bool pool_flight_late(const struct pool_key *key, struct zt_error *err);
/* Ends it at once; open streams get why. */
void pool_tunnel_drop(struct pool_tunnel *t, enum zt_err why);

/* hbone_pool.c */
bool pool_send_first_waiter(struct pool_tunnel *t);
void pool_requests_wait_again(struct pool_tunnel *t);
void pool_settled(struct pool_tunnel *t); /* its SETTINGS are here: it may serve */
void pool_stream_closed(struct pool_tunnel *t);
void pool_tunnel_leave(struct pool_tunnel *t); /* out of the pool for good; closes after its last stream */
void pool_put_back(struct pool_tunnel *t);
void pool_unlink(struct pool_tunnel *t);
void pool_key_release(struct pool_key *key);
void pool_key_dirty(struct pool_key *key);
/* Fails the oldest waiters until `keep` are left. set_up: as zt_hbone_request.set_up_failed. The key may be gone afterwards. */
void pool_fail_waiters(struct pool_key *key, unsigned keep, const struct zt_error *err, bool set_up);
/* How many streams a tunnel of the key may carry, as far as we are concerned. */
unsigned pool_streams_max(const struct pool_key *key);

#endif
