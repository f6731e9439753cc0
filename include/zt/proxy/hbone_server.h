/* One incoming HBONE tunnel, from the accepted socket on (spec/dataplane §4.1-4.3, §4.9): credential, TLS accept, HTTP/2, CONNECT
 * requests handed to the owner. Thread: the pod's worker. */
#ifndef ZT_PROXY_HBONE_SERVER_H
#define ZT_PROXY_HBONE_SERVER_H

#include "zt/base/addr.h"
#include "zt/base/metrics.h"
#include "zt/h2/h2_session.h"
#include "zt/proxy/cred_source.h"
#include "zt/proxy/vitals.h"

struct zt_hbone_server;

struct zt_hbone_server_ops {
    /* A request; the callee owns the stream from here (answers with zt_h2_respond or resets it). */
    void (*on_connect)(struct zt_hbone_server *s, struct zt_h2_stream *st, const struct zt_h2_headers *h);
    /* It never became a tunnel. ZT_IDENTITY: no credential of our own in time; ZT_TLS_HANDSHAKE, ZT_REVOKED: the handshake. The server is
     * gone after the call. */
    void (*on_failed)(struct zt_hbone_server *s, const struct zt_error *err);
    /* The tunnel is over; every stream has been told. The server is gone after the call. */
    void (*on_closed)(struct zt_hbone_server *s);
};

struct zt_hbone_server_config { /* copied; pointers borrowed (as long as the server) */
    struct zt_loop *loop;
    struct zt_h2_config h2;
    struct zt_cred_source *creds;
    struct zt_tls_keylog *keylog;      /* or NULL */
    struct zt_vitals *vitals;          /* or NULL */
    unsigned handshake_timeout_ms; /* credential and TLS together */
    const struct zt_hbone_server_ops *ops;
    struct zt_link *list;          /* the server links itself here until it is gone */
    void *owner;                   /* the pod */
    bool crl;                      /* revocation lists are configured: the peer's path is kept, to be held against new ones */
    struct zt_metrics_shard *shard; /* or NULL */
};

/* Takes fd. peer and local are canonical. No callback runs from inside. Returns borrowed: it belongs to itself and is linked into c->list. */
struct zt_hbone_server *zt_hbone_server_accept(const struct zt_hbone_server_config *c, int fd, const struct zt_addr *peer,
                                               const struct zt_addr *local);
struct zt_hbone_server *zt_hbone_server_from_link(struct zt_link *l);
void *zt_hbone_server_owner(const struct zt_hbone_server *s);
const struct zt_addr *zt_hbone_server_peer(const struct zt_hbone_server *s);
const struct zt_addr *zt_hbone_server_local(const struct zt_hbone_server *s);
/* The client's SPIFFE id from its certificate; "" before the handshake. Borrowed. */
const char *zt_hbone_server_identity(const struct zt_hbone_server *s);
/* An open tunnel whose client's certificate is on a revocation list by now. */
bool zt_hbone_server_revoked(const struct zt_hbone_server *s);
/* Graceful: GOAWAY as §4.9; one still in its handshake goes on and is drained when it is through. */
void zt_hbone_server_drain(struct zt_hbone_server *s);
/* Ends it now: streams are told why; neither on_failed nor on_closed runs. */
void zt_hbone_server_close(struct zt_hbone_server *s, enum zt_err why);

#endif
