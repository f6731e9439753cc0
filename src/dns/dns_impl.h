/* Shared by the files of src/dns. A server and what hangs off it belong to one worker's loop; only the cache and the
 * table of leads are shared. */
#ifndef ZT_DNS_IMPL_H
#define ZT_DNS_IMPL_H

#include "zt/base/clock.h"
#include "zt/base/list.h"
#include "zt/base/log.h"
#include "zt/base/map.h"
#include "zt/dns/dns.h"
#include "zt/net/tcp.h"

#include <errno.h>
#include <string.h>

/* What two questions have in common that share an answer. The scope is at the end of the bytes. */
struct dns_key {
    size_t len, scope_len;
    uint8_t bytes[ZT_DNS_KEY_MAX];
};

/* ---- cache.c ---- */

struct dns_cache;
enum dns_freshness { DNS_MISS, DNS_FRESH, DNS_STALE };
struct dns_cached {
    enum dns_freshness freshness;
    size_t len;
    uint32_t age_s;
    bool retry_later; /* stale, and the upstreams failed lately */
};
struct dns_cache_stats {
    uint64_t entries, bytes, hits, misses, stale;
};
struct dns_cache *dns_cache_new(void);
void dns_cache_free(struct dns_cache *c);
/* Copies the answer into out (ZT_DNS_MESSAGE_MAX bytes). Thread: any, all of these. */
struct dns_cached dns_cache_get(struct dns_cache *c, const struct dns_key *k, uint8_t *out);
void dns_cache_put(struct dns_cache *c, const struct dns_key *k, const uint8_t *wire, size_t len, uint32_t ttl_s);
void dns_cache_failed(struct dns_cache *c, const struct dns_key *k); /* the stale one may serve for a while unasked */
void dns_cache_count_stale(struct dns_cache *c);
struct dns_cache_stats dns_cache_stats(struct dns_cache *c);

/* ---- the process and its workers ---- */

struct zt_dns {
    struct zt_dns_config config;
    struct zt_store *store;
    struct dns_cache *cache;
    struct dns_leads *leads;
    struct dns_hosts *hosts;
    struct zt_dns_worker *workers; /* list, for the dump; made before any runs */
    atomic_uint_fast64_t n_coalesced, n_hedged, n_limited, n_ignored;
};

/* An upstream as a worker sees it. The atomics are read by the dump. */
struct dns_upstream {
    struct zt_addr addr;
    atomic_uint_fast32_t srtt_us; /* 0: unknown */
    atomic_uint_fast32_t failures; /* in a row */
    atomic_uint_fast64_t n_queries;
    uint64_t down_until_ms;
    bool no_edns; /* it said FORMERR to EDNS */
};

#define BATCH 32
#define BATCH_BYTES (ZT_DNS_REQUEST_MAX + 1) /* one more: longer ones show */
struct zt_dns_worker {
    struct zt_dns *dns;
    struct zt_dns_worker *next;
    struct zt_loop *loop;
    struct zt_metrics_shard *shard;
    struct dns_upstream upstreams[ZT_DNS_UPSTREAMS_MAX];
    struct dns_flight *flights; /* by key */
    struct zt_link all_flights;
    struct zt_name_answer answer;  /* scratch, as all below */
    uint8_t reply[2 + ZT_DNS_MESSAGE_MAX], wire[ZT_DNS_MESSAGE_MAX];
    uint8_t batch[BATCH][BATCH_BYTES];
};

/* ---- server.c: listeners and TCP connections ---- */

struct dns_listener {
    struct zt_dns_server *server;
    int fd; /* -1: none */
    bool tcp;
    ev_io io;
    ev_timer backoff; /* TCP: out of descriptors */
};
enum { LISTENERS = 4 }; /* UDP and TCP, two addresses */

struct zt_dns_server {
    struct zt_dns_worker *w;
    const char *ns, *name, *service_account;
    char scope[ZT_DNS_SCOPE_MAX + 1]; /* "NAMESPACE/SERVICE-ACCOUNT", who shares its answers; "": the daemon itself */
    struct zt_netns *netns;
    struct zt_sock_opts sock;
    bool listens, draining, stopped;
    void (*on_idle)(void *arg);
    void *arg;
    struct dns_listener listeners[LISTENERS];
    struct zt_link requests; /* zt_dns_request.server_link */
    struct zt_link conns;
    struct zt_link flights; /* those that it began: dns_flight.begun_link */
    unsigned n_requests, n_conns, n_writing, n_flights; /* n_writing: connections with a part of an answer to write */
    double tokens; /* forwards left in the bucket */
    uint64_t tokens_ms;
    struct zt_metric_series *series[2][2]; /* of A and AAAA, by UDP and TCP; NULL: not resolved yet */
};

/* Where an answer goes. */
enum dns_origin_kind { ORIGIN_UDP, ORIGIN_TCP, ORIGIN_LOOKUP };
struct dns_origin {
    enum dns_origin_kind kind;
    struct dns_listener *listener; /* UDP */
    struct zt_addr peer;           /* UDP */
    struct dns_conn *conn;         /* TCP */
    struct zt_dns_lookup *lookup;
};
void dns_conn_reply(struct dns_conn *c, size_t len); /* w->reply holds 2 free bytes and the message */
void dns_conn_waits_for(struct dns_conn *c, struct zt_dns_request *r);
/* Something is over that a drain waits for. */
void dns_server_less_to_do(struct zt_dns_server *s);

/* ---- request.c: what a question gets ---- */

struct zt_dns_request {
    struct zt_link server_link, flight_link;
    struct zt_dns_server *server;
    struct zt_dns_query q;
    struct dns_origin origin;
    struct zt_workload *client; /* retained; NULL: not known yet, or the daemon asks */
    struct dns_flight *flight;
    ev_timer timer; /* until the workload is known; until it asks on its own instead of waiting for another pod's flight */
    struct zt_task task; /* a lookup answered from the state */
    uint64_t started_us;
};
/* A message that came in. */
void dns_handle(struct zt_dns_server *s, const struct dns_origin *o, const uint8_t *wire, size_t len);
struct zt_dns_request *dns_request_new(struct zt_dns_server *s, const struct dns_origin *o, const struct zt_dns_query *q,
                                       struct zt_workload *client); /* takes client */
void dns_request_free(struct zt_dns_request *r);
/* How a forwarded question ended; these free the request. */
void dns_request_answered(struct zt_dns_request *r, const uint8_t *wire, size_t len, uint32_t age_s, bool stale);
void dns_request_failed(struct zt_dns_request *r, const char *why);
void dns_request_state_changed(struct zt_dns_request *r);

/* ---- forward.c: one flight for all that ask the same ---- */

#define TRIES_AT_ONCE 3
struct dns_flight;
void dns_forward(struct zt_dns_request *r); /* ends in dns_request_answered or _failed, possibly at once */
void dns_forward_leave(struct zt_dns_request *r);
void dns_flights_drop(struct zt_dns_worker *w);
void dns_flight_told(struct dns_flight *f, const uint8_t *wire, size_t len); /* by the one it follows; wire NULL: that got nothing */

/* ---- lead.c: which flight asks, of those on several workers ---- */

struct dns_leads *dns_leads_new(void);
void dns_leads_free(struct dns_leads *t); /* after all flights */
/* True: f leads. False: it follows; dns_flight_told runs once, later, or dns_lead_leave. */
bool dns_lead_take(struct dns_flight *f);
void dns_lead_end(struct dns_flight *f, const uint8_t *wire, size_t len); /* tells the followers; nothing when f does not lead */
void dns_lead_leave(struct dns_flight *f); /* nothing when f does not follow, or was told */

/* ---- upstream.c: one try at one upstream ---- */

enum try_end {
    TRY_ANSWERED, /* wire is the whole answer */
    TRY_REFUSED,  /* wire says no: another upstream may know better */
    TRY_FAILED,
};
struct dns_try {
    struct dns_flight *flight; /* NULL: free */
    unsigned upstream;
    int fd;
    ev_io io;
    struct zt_dial dial;
    uint64_t sent_us;
    uint16_t id;
    bool edns, tcp;
    unsigned n_wrong;
    uint8_t out[2 + ZT_DNS_QUERY_BYTES_MAX];
    size_t out_len, out_sent;
    uint8_t *in; /* TCP */
    size_t in_len;
};
struct dns_flight {
    UT_hash_handle hh;
    struct zt_link all_link, begun_link;
    struct zt_dns_worker *w;
    struct zt_dns_server *beginner; /* NULL: it has stopped */
    struct dns_lead *lead;   /* not NULL: asks for other workers' flights too */
    struct dns_place *place; /* not NULL: follows one of another worker */
    struct zt_netns *netns;
    struct zt_sock_opts sock;
    struct zt_dns_query q;
    struct zt_link requests;
    struct dns_try tries[TRIES_AT_ONCE];
    unsigned n_started, next_upstream;
    ev_timer step, deadline, stale_timer;
    uint8_t *refusal; /* the last "no" */
    size_t refusal_len;
    bool hashed, refreshes; /* refreshes: goes on although nobody waits */
    struct dns_key key;
};
void dns_upstreams_init(struct zt_dns_worker *w);
/* The n-th best upstream now. */
unsigned dns_upstream_nth(const struct zt_dns_worker *w, unsigned n);
/* When to stop waiting for it alone. */
unsigned dns_upstream_patience_ms(const struct dns_upstream *u);
/* False: no socket. Otherwise dns_flight_try_ended runs once, later, or dns_try_cancel. */
bool dns_try_start(struct dns_try *t, struct dns_flight *f, unsigned upstream);
void dns_try_cancel(struct dns_try *t, bool gave_up); /* gave_up: it had its time */
void dns_flight_try_ended(struct dns_flight *f, struct dns_try *t, enum try_end end, const uint8_t *wire, size_t len,
                          const struct zt_dns_facts *facts);

/* ---- telemetry.c ---- */

void dns_count_request(struct zt_dns_server *s, const struct zt_dns_query *q, bool tcp, const struct zt_workload *client);
void dns_count_limited(struct zt_dns_server *s, const struct zt_workload *client);
void dns_count_forwarded(const struct zt_dns_request *r, bool failed);
void dns_forget_series(struct zt_dns_server *s);
/* endpoints: records of the answer that are not addresses from the state. error: NULL, or what a failed forward failed of. */
void dns_log(const struct zt_dns_query *q, const struct zt_workload *client, const char *result, unsigned endpoints, const char *error);

/* ---- host.c ---- */
struct dns_hosts;
struct dns_hosts *dns_hosts_read(const char *path);
void dns_hosts_free(struct dns_hosts *h);

#endif
