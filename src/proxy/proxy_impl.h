/* Shared by the files of src/proxy: worker, pod, listener, connection. Everything here belongs to one worker's loop. */
#ifndef ZT_PROXY_IMPL_H
#define ZT_PROXY_IMPL_H

#include "zt/base/metrics.h"
#include "zt/net/tcp.h"
#include "zt/proxy/conn.h"
#include "zt/proxy/hbone_pool.h"
#include "zt/proxy/hbone_server.h"
#include "zt/proxy/proxy.h"
#include "zt/proxy/relay.h"

#define ZT_ACCEPTS_PER_TURN 64
#define ZT_ACCEPT_BACKOFF_MS 100

struct zt_worker {
    struct zt_proxy *proxy;
    unsigned index;
    struct zt_loop *loop;
    struct zt_metrics_shard *shard;
    struct zt_link pods; /* zt_pod.worker_link */
    struct zt_msg state_msg;
    atomic_uint state_flags; /* what changed since the message was posted; 0 = not posted */
    struct zt_task judge_task; /* judging open connections again, a slice a turn */
    uint64_t judge_round;    /* connections judged in this round carry it */
    struct zt_metric_series *sockets_source, *sockets_destination;
    struct zt_log_gate fd_gate; /* out of descriptors: one line a second */
    ev_timer drain_timer;
    struct zt_drain_request *drain;
    uint64_t next_conn_id;
    int newest_fd; /* the last descriptor the data path got */
};

struct zt_proxy {
    struct zt_proxy_config config;
    struct zt_loop *control;
    struct zt_store *store;
    struct zt_secrets *secrets;
    struct zt_metrics *metrics;
    struct zt_worker *workers;
    unsigned *pods_per_worker; /* control's count, for choosing homes */
    struct zt_pod_handle *handles; /* by uid; control's table */
    unsigned n_drains_left;
    void (*drained)(void *arg);
    void *drained_arg;
    bool draining;
};

enum zt_listener_kind { ZT_LISTEN_HBONE, ZT_LISTEN_PASSTHROUGH, ZT_LISTEN_OUTBOUND, ZT_LISTEN_N };

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
    struct zt_hbone_pool *pool;
    struct zt_link servers; /* zt_hbone_server's link: tunnels in, handshakes included */
    struct zt_link conns;   /* zt_conn.pod_link */
    struct zt_link creds;   /* credential requests on their way */
    unsigned n_conns;
};

/* telemetry.c: the series of a connection's label set; each holds a reference. */
struct zt_traffic_series {
    struct zt_metric_series *opened, *received, *sent;
};
void zt_telemetry_series(const struct zt_conn *c, const char *flags, struct zt_traffic_series *out);
void zt_telemetry_closed(const struct zt_conn *c, const char *flags);

/* pod.c */
struct zt_pod *zt_pod_new(struct zt_proxy *p, struct zt_worker *home, enum zt_pod_kind kind, const struct zt_pod_id *id,
                          struct zt_netns *netns, struct zt_error *err); /* Thread: control */
void zt_pod_start(struct zt_pod *pod);                       /* adoption by the home worker */
void zt_pod_drain(struct zt_pod *pod);                       /* graceful */
bool zt_pod_idle(const struct zt_pod *pod);                  /* nothing left that a drain waits for */
void zt_pod_close(struct zt_pod *pod, enum zt_err why);      /* cuts what is left */
void zt_pod_free(struct zt_pod *pod);                        /* after close, or before start on control */
void zt_pod_state_changed(struct zt_pod *pod);               /* connections waiting for their workload look again */
struct zt_workload *zt_pod_workload(struct zt_pod *pod);     /* retained, or NULL */
/* The workload's identity as certificates carry it: trust domain from its record, the rest from the CNI. */
bool zt_pod_identity(const struct zt_pod *pod, const struct zt_workload *w, char out[static ZT_IDENTITY_MAX]);
const char *zt_component_name(enum zt_listener_kind k);
bool zt_port_is_illegal(const struct zt_proxy *p, uint16_t port);

/* worker.c */
void zt_worker_pod_idle(struct zt_worker *w); /* a pod may have become idle: the drain looks */
void zt_worker_no_descriptors(struct zt_worker *w, const char *what);

/* The three flows. fd is taken. */
void zt_outbound_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent);
void zt_passthrough_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent, bool preserve_source);
/* A CONNECT on a tunnel (wired to hbone_server). */
extern const struct zt_hbone_server_ops zt_inbound_ops;

#endif
