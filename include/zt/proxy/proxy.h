/* The data plane's face towards control: workers, pods, drain. Control opens a pod's listeners inside its namespace and
 * hands them to the pod's home worker; adoption cannot fail. Thread: control unless said otherwise. */
#ifndef ZT_PROXY_PROXY_H
#define ZT_PROXY_PROXY_H

#include "zt/base/json.h"
#include "zt/base/metrics.h"
#include "zt/dns/dns.h"
#include "zt/h2/h2_session.h"
#include "zt/net/sock.h"
#include "zt/proxy/limits.h"
#include "zt/secrets/secrets.h"
#include "zt/state/route.h"

#define ZT_PORT_OUTBOUND 15001
#define ZT_PORT_PASSTHROUGH 15006
#define ZT_PORT_HBONE 15008
#define ZT_PORT_SOCKS5 15080

struct zt_proxy;

/* Everything the data plane is told about the configuration; copied, strings too. */
struct zt_proxy_config {
    unsigned n_workers;
    struct zt_sock_opts sock;
    struct zt_h2_config h2_client, h2_server;
    unsigned pool_max_streams;
    unsigned pool_unused_timeout_ms;
    unsigned drain_deadline_ms;
    unsigned local_workload_wait_ms; /* 5000 */
    unsigned connect_timeout_ms;     /* 10000: TCP, TLS, HTTP/2 set-up, CONNECT answer, each stage of either role */
    const char *network, *cluster_id;
    bool enabled; /* ENABLE_PROXY: without it pods get the DNS proxy only */
    bool response_baggage, localhost_app_tunnel, socks5;
    struct zt_dns_config dns;
    struct zt_tls_keylog *keylog;    /* borrowed until zt_proxy_stop; NULL: none */
    const char *keylog_pods;         /* whose secrets go there: "ns/name,ns/name" */
    unsigned descriptors_reserved;   /* 64: the data path stops at the limit minus these */
    bool crl;                        /* CRL_PATH: open tunnels are held against new revocation lists */
    struct zt_limits_config limits;
};

/* Borrows store, secrets, metrics (until free). Starts the workers. Returns owned, or NULL with err. */
struct zt_proxy *zt_proxy_new(const struct zt_proxy_config *c, struct zt_loop *control, struct zt_store *store,
                              struct zt_secrets *secrets, struct zt_metrics *metrics, struct zt_error *err);
/* Stops the workers: whatever is open is dropped. Their loops are still there, so that answers under way find their mailbox; free
 * whoever answers (secrets) between stop and free. NULL is legal. */
void zt_proxy_stop(struct zt_proxy *p);
/* Stops, and frees everything. NULL is legal. */
void zt_proxy_free(struct zt_proxy *p);
struct zt_loop *zt_proxy_worker_loop(struct zt_proxy *p, unsigned i);

struct zt_pod_id { /* borrowed text */
    const char *uid, *ns, *name, *service_account;
};
enum zt_pod_kind {
    ZT_POD_CAPTURED,  /* 15008, 15006, 15001, DNS and SOCKS5 where enabled, in the pod's namespace */
    ZT_POD_SELF,      /* only 15008, in our own namespace (spec/inpod §2.9) */
    ZT_POD_DEDICATED, /* as captured, in our own namespace, without marks on listeners */
};
/* Opens the listeners and starts the pod; before zt_proxy_serve connections wait in the listeners' queues. netns is borrowed (retained inside). Errors: which listener and why; nothing is left open. */
enum zt_err zt_proxy_add_pod(struct zt_proxy *p, enum zt_pod_kind kind, const struct zt_pod_id *id, struct zt_netns *netns,
                             struct zt_error *err);
/* The gate opens, once: what decisions need is there, the pods' connections are accepted from now on. */
void zt_proxy_serve(struct zt_proxy *p);
/* Immediate: on return the ports refuse; the home worker cuts the connections. Unknown uids are ignored. */
void zt_proxy_remove_pod(struct zt_proxy *p, const char *uid);

/* The state changed: waiting connections look again; with policies, open inbound connections are judged again. Coalesced. Thread: any. */
void zt_proxy_state_changed(struct zt_proxy *p, bool policies);

/* New revocation lists were published (zt_tls_crl_load): tunnels, either way, whose peer they revoke are cut. Thread: any. */
void zt_proxy_crl_changed(struct zt_proxy *p);

/* Graceful end of every pod: listeners are drained and closed at once, tunnels get GOAWAY, connections go on until the deadline, then are
 * cut. done runs once, on control, when all is closed. */
void zt_proxy_drain(struct zt_proxy *p, void (*done)(void *arg), void *arg);

/* Brings the byte counters of open connections into the metrics; done runs on control, from zt_proxy_stop at the latest. Before a scrape. */
void zt_proxy_count(struct zt_proxy *p, void (*done)(void *arg), void *arg);

/* Bytes of I/O buffers of all workers: lent to connections, and kept free. Thread: any. */
void zt_proxy_buffers(const struct zt_proxy *p, size_t *lent, size_t *kept);
/* What the DNS proxy holds, as members of an open object (zt_dns_dump). */
void zt_proxy_dns_dump(struct zt_proxy *p, struct zt_json *j);
/* What the state says about a name (zt_dns_resolve). */
bool zt_proxy_dns_resolve(struct zt_proxy *p, const struct zt_workload *client, const char *name, enum zt_family family,
                          struct zt_str *trace, struct zt_name_answer *out);

/* What all workers hold now: one message to each, answered by message; result runs on control (the snapshot is borrowed during the
 * call; NULL when zt_proxy_stop came first). */
struct zt_proxy_conn_info { /* owned text inside the snapshot */
    const char *src, *original_dst, *actual_dst, *protocol; /* original_dst may be NULL */
    bool inbound;
    uint64_t id, bytes_received, bytes_sent, age_ms;
    const char *peer_identity; /* or NULL */
};
struct zt_proxy_pod_info {
    const char *uid, *ns, *name, *service_account;
    unsigned worker, n_tunnels_out, n_tunnels_in, n_conns;
    const struct zt_proxy_conn_info *conns;
};
struct zt_proxy_snapshot {
    const struct zt_proxy_pod_info *pods; /* sorted by uid */
    unsigned n_pods;
    const struct zt_limits_config *limits; /* of each pod */
};
typedef void (*zt_proxy_dump_fn)(void *arg, const struct zt_proxy_snapshot *snap);
void zt_proxy_snapshot(struct zt_proxy *p, zt_proxy_dump_fn result, void *arg);

#endif
