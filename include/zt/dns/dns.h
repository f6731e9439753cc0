/* The DNS proxy (spec/dataplane §10): pods' questions, answered from the state or forwarded with a cache, and the same machinery for
 * names that the daemon itself needs (§2.6, §9).
 *
 *   zt_dns         one per process: configuration, the cache all workers share
 *   zt_dns_worker  one per worker loop: questions under way upstream, health of the upstreams
 *   zt_dns_server  one per pod: its listeners and questions, on the pod's home worker; one without listeners asks for the daemon */
#ifndef ZT_DNS_DNS_H
#define ZT_DNS_DNS_H

#include "zt/base/json.h"
#include "zt/base/metrics.h"
#include "zt/dns/msg.h"
#include "zt/loop/loop.h"
#include "zt/net/sock.h"

#define ZT_DNS_PORT 15053
#define ZT_DNS_UPSTREAMS_MAX 8
#define ZT_DNS_CACHE_ENTRIES_MAX 8192
#define ZT_DNS_CACHE_BYTES_MAX (8u << 20)
#define ZT_DNS_POD_REQUESTS_MAX 256  /* of a pod, waiting for an upstream or for its workload record; more get SERVFAIL */
#define ZT_DNS_POD_CONNS_MAX 64      /* TCP connections of a pod; more are closed at once */
#define ZT_DNS_POD_FORWARD_RATE 2000 /* questions a second that a pod may have sent upstream, with bursts of as many */

struct zt_dns;
struct zt_dns_worker;
struct zt_dns_server;

struct zt_dns_config { /* copied, text too */
    bool proxy;                 /* pods get listeners */
    struct zt_addr listen;      /* family ZT_IP_NONE: both loopback addresses, with this port */
    const char *domain;         /* CLUSTER_DOMAIN */
    bool ipv6;                  /* IPV6_ENABLED: AAAA is answered */
    bool ipv6_loopback;         /* ... and our own loopback has it: pods may get a listener on ::1 */
    struct zt_ip upstreams[ZT_DNS_UPSTREAMS_MAX]; /* resolv.conf; port 53 */
    unsigned n_upstreams;
    unsigned timeout_s, attempts, ndots;
    const char *const *search;
    unsigned n_search;
    bool own_search;            /* dedicated mode: the client's resolver appends these, not a pod's three */
    unsigned local_workload_wait_ms;
    const char *hosts_path;     /* of names that the daemon itself asks for */
};

/* Borrows store (until free). Returns owned. Thread: control. */
struct zt_dns *zt_dns_new(const struct zt_dns_config *c, struct zt_store *store);
void zt_dns_free(struct zt_dns *d); /* after its workers; NULL is legal */
void zt_dns_register_metrics(struct zt_metrics *m, bool proxy);

/* Borrows loop and shard. Returns owned. Thread: control, before the loop runs; free: after it ended. */
struct zt_dns_worker *zt_dns_worker_new(struct zt_dns *d, struct zt_loop *l, struct zt_metrics_shard *shard);
/* Drops what is under way, after the servers have stopped. Thread: worker. */
void zt_dns_worker_stop(struct zt_dns_worker *w);
void zt_dns_worker_free(struct zt_dns_worker *w); /* NULL is legal */

struct zt_dns_server_config { /* text is borrowed until zt_dns_server_free */
    const char *ns, *name, *service_account;
    struct zt_netns *netns;     /* retained inside */
    struct zt_sock_opts sock;
    bool listen;                /* false: for lookups only */
    void (*on_idle)(void *arg); /* while draining: nothing is under way any more. May be NULL */
    void *arg;
};
/* Opens the listeners. Errors: which and why; nothing stays open. Thread: control. */
enum zt_err zt_dns_server_new(struct zt_dns_worker *w, const struct zt_dns_server_config *c, struct zt_dns_server **out,
                              struct zt_error *err);
/* Thread: worker, all of these. */
void zt_dns_server_start(struct zt_dns_server *s);
void zt_dns_server_state_changed(struct zt_dns_server *s);
/* Its TCP ports accept no more, at once; the worker closes them. Thread: control. */
void zt_dns_server_refuse(struct zt_dns_server *s);
void zt_dns_server_drain(struct zt_dns_server *s); /* takes no new questions; those under way are answered */
bool zt_dns_server_idle(const struct zt_dns_server *s);
void zt_dns_server_stop(struct zt_dns_server *s);  /* drops what is under way; lookups end with nothing */
void zt_dns_server_free(struct zt_dns_server *s);  /* after stop, or before start on control; NULL is legal */

/* The addresses of a name. Embed it. */
#define ZT_DNS_LOOKUP_IPS_MAX 16
struct zt_dns_request;
struct zt_dns_lookup {
    void (*done)(struct zt_dns_lookup *l);
    struct zt_ip ips[ZT_DNS_LOOKUP_IPS_MAX]; /* the result; none: the name has none, or there was no answer */
    unsigned n_ips;
    bool answered; /* there was an answer, addresses or not */
    struct zt_dns_request *request; /* NULL: not under way */
};
/* As the pod of s would be answered (SOCKS5). done runs once, never from inside this call, not after cancel. False: host is no name. */
bool zt_dns_lookup_start(struct zt_dns_lookup *l, struct zt_dns_server *s, const char *host, enum zt_family family);
void zt_dns_lookup_cancel(struct zt_dns_lookup *l); /* legal when idle (zeroed) */

/* A name asked for by the daemon itself (spec/dataplane §2.6): hosts file, search list, A and AAAA at once. s: without listeners, in
 * the daemon's namespace. Embed it. */
struct zt_dns_host {
    void (*done)(struct zt_dns_host *h);
    bool found;
    bool answered; /* not found: some answer came, but no address */
    struct zt_ip ip; /* by chance one of the wished family, else one of the other */
    /* private */
    struct zt_dns_server *server;
    enum zt_family wish;
    unsigned step, n_pending;
    struct zt_dns_lookup a, aaaa;
    struct zt_task task;
    char name[ZT_NAME_TEXT_MAX];
};
/* done as above; host too long or no name at all ends with nothing found. */
void zt_dns_host_start(struct zt_dns_host *h, struct zt_dns_server *s, const char *host, enum zt_family wish);
void zt_dns_host_cancel(struct zt_dns_host *h); /* legal when idle (zeroed) */

/* What the state says about a name, lower case and without its final dot: zt_names_resolve as configured. Thread: any. */
bool zt_dns_resolve(struct zt_dns *d, const struct zt_workload *client, const char *name, enum zt_family family, struct zt_str *trace,
                    struct zt_name_answer *out);
/* What the cache and the upstreams are like, for ztctl: writes members of an open object. Thread: any. */
void zt_dns_dump(struct zt_dns *d, struct zt_json *j);

#endif
