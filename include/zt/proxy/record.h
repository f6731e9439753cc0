/* What a worker remembers for the operator: the last denials, and the events of connections of pods that are traced.
 * Both are rings of fixed size per worker; they outlive the pods. Nothing is allocated before the first denial, or while no pod is traced.
 * Thread: control; the rings themselves belong to the workers, which answer by message. */
#ifndef ZT_PROXY_RECORD_H
#define ZT_PROXY_RECORD_H

#include "zt/base/addr.h"
#include "zt/proxy/proxy.h"

#define ZT_DENIALS_MAX 128        /* per worker; the oldest goes */
#define ZT_TRACE_EVENTS_MAX 4096  /* per worker; the oldest goes */
#define ZT_TRACE_TEXT_MAX 192     /* bytes of one event, NUL included; longer ones are cut */
#define ZT_TRACE_PODS_MAX 8       /* traced at a time */
#define ZT_POD_NAME_MAX 512       /* "namespace/name", NUL included */

struct zt_denial {
    int64_t time_us; /* wall time */
    bool inbound, mtls, late; /* late: an open connection, after a policy change */
    char pod[ZT_POD_NAME_MAX];
    struct zt_addr src, dst;
    char identity[ZT_IDENTITY_MAX]; /* the client's, or "" */
    char reason[ZT_ERROR_TEXT_MAX]; /* as in the access line */
    struct zt_authz_why why;
};
/* newest first, at most `most`; borrowed during the call. list NULL: zt_proxy_stop came first. */
typedef void (*zt_denials_fn)(void *arg, const struct zt_denial *const *list, unsigned n);
void zt_proxy_denials(struct zt_proxy *p, unsigned most, zt_denials_fn result, void *arg);

enum zt_trace_op { ZT_TRACE_READ, ZT_TRACE_START, ZT_TRACE_STOP };
struct zt_trace_event {
    int64_t time_us; /* wall time */
    uint64_t serial; /* order within a worker */
    uint64_t conn;   /* zt_conn.id; 0: the pod itself */
    uint8_t slot;    /* which of the traced pods; private */
    char text[ZT_TRACE_TEXT_MAX];
};
struct zt_trace { /* borrowed during the call */
    const struct zt_trace_event *const *events; /* by time */
    unsigned n_events;
    bool on;            /* recording, after the operation */
    uint64_t n_lost;    /* events of all pods that were overwritten since tracing began */
};
/* trace NULL: zt_proxy_stop came first. */
typedef void (*zt_trace_fn)(void *arg, const struct zt_trace *trace);
/* pod: "namespace/name"; borrowed until return. Starting one that is traced already, and stopping one that is not, changes nothing. Stopping
 * forgets the pod's events. Errors: ZT_LIMIT when ZT_TRACE_PODS_MAX others are traced, ZT_INVALID; result does not run then. */
enum zt_err zt_proxy_trace(struct zt_proxy *p, const char *pod, enum zt_trace_op op, zt_trace_fn result, void *arg,
                           struct zt_error *err);

#endif
