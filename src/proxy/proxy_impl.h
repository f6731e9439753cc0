/* Shared by the files of src/proxy: worker, pod, listener, connection. Everything here belongs to one worker's loop. */
#ifndef ZT_PROXY_IMPL_H
#define ZT_PROXY_IMPL_H

#include "zt/base/metrics.h"
#include "zt/base/log.h"
#include "zt/net/tcp.h"
#include "zt/proxy/conn.h"
#include "zt/proxy/hbone_pool.h"
#include "zt/proxy/hbone_server.h"
#include "zt/proxy/limits.h"
#include "zt/proxy/proxy.h"
#include "zt/proxy/relay.h"
#include "zt/proxy/vitals.h"
#include "recorder.h"
#include <errno.h>
#include <string.h>

#define ZT_ACCEPTS_PER_TURN 64
#define ZT_ACCEPT_BACKOFF_MS 100
#define ZT_TRIM_CONNS_MIN 256   /* a peak worth giving memory back for */
#define ZT_TRIM_DELAY_MS 5000   /* after the fall: it may be a pause */

struct zt_worker {
    struct zt_proxy *proxy;
    unsigned index;
    struct zt_loop *loop;
    struct zt_metrics_shard *shard;
    struct zt_dns_worker *dns;
    struct zt_dns_server *own_dns; /* for hostnames of workloads: asks from our own namespace, unmarked */
    struct zt_link pods; /* zt_pod.worker_link */
    struct zt_msg state_msg;
    atomic_uint state_flags; /* what changed since the message was posted; 0 = not posted */
    struct zt_task judge_task; /* judging open connections again, a slice a turn */
    uint64_t judge_round;    /* connections judged in this round carry it */
    struct zt_metric_series *sockets_source, *sockets_destination; /* NULL before the first socket */
    struct zt_log_gate failover_gate;
    struct zt_log_gate fd_gate; /* out of descriptors: one line a second */
    struct zt_log_gate limit_gates[ZT_LIMIT_N];
    struct zt_task revoke_task; /* tunnels held against new revocation lists, a pod a turn */
    ev_timer drain_timer;
    struct zt_drain_request *drain; /* NULL: not draining, or done */
    struct zt_task drain_task;
    uint64_t next_conn_id;
    unsigned n_conns, peak_conns; /* open now; most since memory was last given back */
    ev_timer trim_timer;
    struct zt_recorder recorder;
    struct zt_vitals vitals;
    int newest_fd; /* the last descriptor the data path got */
    struct zt_link refusals; /* refusal.c */
    unsigned n_refusals;
};

struct zt_proxy {
    struct zt_proxy_config config;
    struct zt_loop *control;
    struct zt_store *store;
    struct zt_secrets *secrets;
    struct zt_metrics *metrics;
    struct zt_dns *dns;
    struct zt_netns *own_netns;
    struct zt_worker *workers;
    unsigned *pods_per_worker; /* control's count, for choosing homes */
    struct zt_pod_handle *handles; /* by uid; control's table */
    char *traced[8];                /* pods that are traced, by slot (recorder.c) */
    struct zt_link asks;           /* questions to all workers that are not answered yet */
    unsigned n_drains_left;
    void (*drained)(void *arg);
    void *drained_arg;
    bool serving; /* the gate is open: pods are adopted as they come */
    bool stopped; /* the workers are joined */
    bool draining;
};

enum zt_listener_kind { ZT_LISTEN_HBONE, ZT_LISTEN_PASSTHROUGH, ZT_LISTEN_OUTBOUND, ZT_LISTEN_SOCKS5, ZT_LISTEN_N };

struct zt_listener {
    struct zt_pod *pod;
    int fd; /* -1: none */
    bool transparent;
    ev_io io;
    ev_timer backoff;
};

enum zt_pod_state { ZT_POD_NEW, ZT_POD_RUNNING, ZT_POD_DRAINING, ZT_POD_CLOSED };

/* One pod's whole proxy. Made by control with its sockets, then owned by its home worker until control asks for its end. */
struct zt_pod {
    struct zt_worker *w;
    struct zt_link worker_link;
    enum zt_pod_kind kind;
    enum zt_pod_state state;
    char *uid, *ns, *name, *service_account;
    struct zt_netns *netns;
    struct zt_sock_opts sock; /* the configuration's, as this kind of pod needs them */
    struct zt_listener listeners[ZT_LISTEN_N];
    struct zt_dns_server *dns; /* NULL: there is none */
    struct zt_hbone_pool *pool;
    struct zt_link servers; /* zt_hbone_server's link: tunnels in, handshakes included */
    struct zt_link socks;   /* SOCKS5 negotiations */
    struct zt_link conns;   /* zt_conn.pod_link */
    struct zt_cred_source cred_source;
    struct zt_tls_keylog *keylog; /* or NULL */
    struct zt_link creds;   /* credential requests that wait for the workload record */
    struct zt_limits limits;
    struct zt_dial_quota dials;
    struct zt_h2_budget queued;
    unsigned n_conns;
    uint8_t trace_slot;       /* 0: not traced */
    bool revoke_due;           /* its tunnels have not been held against the newest revocation lists */
    uint16_t next_source_port; /* passthrough.c */
};

/* telemetry.c: the series of a connection's label set; each holds a reference. */
struct zt_traffic_series {
    struct zt_metric_series *opened, *received, *sent;
};
void zt_telemetry_series(const struct zt_conn *c, const char *flags, struct zt_traffic_series *out);
/* A connection asked DNS for a workload's hostname. */
void zt_telemetry_resolved(const struct zt_pod *pod, const struct zt_workload *src, const char *hostname);
void zt_telemetry_failover(struct zt_worker *w); /* a connection moved on to another endpoint */
void zt_telemetry_closed(const struct zt_conn *c, const char *flags);
/* n connections or tunnels refused or cut because a certificate is on a revocation list. */
void zt_telemetry_revoked(struct zt_metrics_shard *s, bool source, unsigned n);
/* A tunnel whose certificates the lists say nothing reliable about. shard NULL: not counted. */
void zt_telemetry_untracked(struct zt_metrics_shard *s, bool source);

/* pod.c */
struct zt_pod *zt_pod_new(struct zt_proxy *p, struct zt_worker *home, enum zt_pod_kind kind, const struct zt_pod_id *id,
                          struct zt_netns *netns, struct zt_error *err); /* Thread: control */
/* The ports refuse from now on, whatever the worker is busy with. Thread: control, before the drain: until then the worker leaves the
 * listeners' descriptors alone. */
void zt_pod_refuse(struct zt_pod *pod);
void zt_pod_start(struct zt_pod *pod);                       /* adoption by the home worker */
void zt_pod_drain(struct zt_pod *pod);                       /* graceful */
bool zt_pod_idle(const struct zt_pod *pod);                  /* nothing left that a drain waits for */
void zt_pod_close(struct zt_pod *pod, enum zt_err why);      /* cuts what is left */
void zt_pod_free(struct zt_pod *pod);                        /* after close, or before start on control */
void zt_pod_state_changed(struct zt_pod *pod);               /* connections waiting for their workload look again */
struct zt_workload *zt_pod_workload(struct zt_pod *pod);     /* retained, or NULL */
/* The workload's identity as certificates carry it: trust domain from its record, the rest from the CNI. */
bool zt_pod_identity(const struct zt_pod *pod, const struct zt_workload *w, char out[static ZT_IDENTITY_MAX]);
/* "<sa>.<ns> (<name>)", the text for a workload that stays unknown. */
void zt_pod_unknown_error(const struct zt_pod *pod, struct zt_error *err);
struct zt_baggage zt_workload_baggage(const struct zt_workload *w); /* borrows from w */
const char *zt_component_name(enum zt_listener_kind k);
/* Our own ports: nothing may be sent there on a pod's behalf. */
unsigned zt_illegal_ports(const struct zt_proxy *p, uint16_t out[static 4]);
bool zt_port_is_illegal(const struct zt_proxy *p, uint16_t port);

void zt_pod_tunnel_gone(struct zt_pod *pod, struct zt_hbone_server *s); /* a tunnel into the pod has ended: its place is free */
/* Tunnels, either way, whose peer's certificate is revoked by now are cut. */
void zt_pod_revoke(struct zt_pod *pod);
/* A place for one more connection; false: it is to be turned away, and that has been counted. peer NULL: the pod itself made it. The
 * place is given back by zt_conn_end, or by a SOCKS5 negotiation (socks5.c). */
bool zt_pod_admits(struct zt_pod *pod, const struct zt_ip *peer);
void zt_pod_shed(struct zt_pod *pod, enum zt_limit limit); /* counts one that was turned away */
/* What a failed dial means: code, or ZT_LIMIT where the pod has too many under way. */
enum zt_err zt_pod_dial_error(struct zt_pod *pod, int errnum, enum zt_err code, struct zt_error *err);

/* worker.c */
/* An accepted socket of a listener: +1, and -1 at its end. The gauge exists from the first one on (spec/interfaces §6.2). */
void zt_worker_count_socket(struct zt_worker *w, bool source, int by);
void zt_worker_conn_began(struct zt_worker *w);
void zt_worker_conn_ended(struct zt_worker *w);
void zt_worker_pod_idle(struct zt_worker *w); /* a pod may have become idle: the drain looks */
/* Out of descriptors or of source ports: one line a second says so. */
void zt_worker_exhausted(struct zt_worker *w, int errnum);

/* pod_creds.c: the pod's credential, for its pool and its tunnels in. */
void zt_pod_creds_init(struct zt_pod *pod);
void zt_pod_creds_fini(struct zt_pod *pod);
void zt_pod_creds_state_changed(struct zt_pod *pod);

/* refusal.c: both take fd; the client gets RST, whatever it had sent. */
void zt_client_reset(int fd);
void zt_client_refuse(struct zt_worker *w, int fd); /* once it had time to see that it is connected */
void zt_client_refusals_end(struct zt_worker *w);   /* none is held any longer */

/* tcp_flow.c: a flow that begins with an accepted socket. */
enum zt_flow_state { ZT_FLOW_WAITING, ZT_FLOW_SETTING_UP, ZT_FLOW_RELAYING, ZT_FLOW_ENDED };

#define OUTBOUND_DIALS_MAX 3 /* endpoints that one connection tries */

/* What is needed only until the relay starts; freed then. */
struct zt_flow_setup {
    struct zt_tcp_flow *flow;
    ev_timer wait;
    struct zt_dial dial;
    struct zt_hbone_request request;
    struct zt_dns_host host; /* of a workload that has only a hostname */
    struct zt_route route;
    struct zt_h2_header headers[6];
    struct zt_str baggage, forwarded;
    char traceparent[ZT_TRACEPARENT_LEN + 1];
    uint64_t dial_started_ms; /* of the first endpoint's */
    char *tried[OUTBOUND_DIALS_MAX - 1]; /* uids of those that could not be dialled */
    unsigned n_tried;
};
struct zt_tcp_flow {
    struct zt_conn conn;
    int client_fd; /* -1 once the relay has it */
    uint8_t state; /* enum zt_flow_state */
    bool preserve_source;
    struct zt_flow_setup *setup; /* NULL once the relay runs */
    void (*begin)(struct zt_tcp_flow *f, struct zt_workload *local);
    void (*dial_failed)(struct zt_tcp_flow *f, const struct zt_error *err); /* NULL: it ends the flow */
    struct zt_relay relay;
};
/* Takes fd. */
struct zt_tcp_flow *zt_tcp_flow_new(struct zt_pod *pod, enum zt_conn_flow kind, int fd, const struct zt_addr *client,
                                    const struct zt_addr *dst);
/* Calls begin_fn as soon as the pod's workload is known (borrowed during the call), possibly at once. */
void zt_tcp_flow_start(struct zt_tcp_flow *f, void (*begin_fn)(struct zt_tcp_flow *f, struct zt_workload *local));
void zt_tcp_flow_dial(struct zt_tcp_flow *f, const struct zt_addr *to, const struct zt_addr *source, unsigned timeout_ms);
void zt_tcp_flow_relay(struct zt_tcp_flow *f, struct zt_stream *up); /* takes up */
void zt_tcp_flow_fail(struct zt_tcp_flow *f, enum zt_err code, const struct zt_error *err); /* ends it; ZT_OK: in order */

/* socks5.c: the negotiation in front of an outbound connection. Takes fd. */
void zt_socks5_accept(struct zt_pod *pod, int fd, const struct zt_addr *client);
void zt_socks5_close_all(struct zt_pod *pod);

/* The three flows. fd is taken. */
/* A connection to dst, however we learned of it. */
void zt_outbound_begin(struct zt_pod *pod, int fd, const struct zt_addr *client, const struct zt_addr *dst);
void zt_outbound_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent);
void zt_passthrough_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent, bool preserve_source);
/* A CONNECT on a tunnel (wired to hbone_server). */
extern const struct zt_hbone_server_ops zt_inbound_ops;

#endif
