/* Both ends of a control-plane connection for tests: a root, a scripted gRPC server with a
 * certificate from it (localhost, 127.0.0.1), a loop and the gRPC client. And a recorder of what a
 * call says. Thread: the test's. */
#ifndef ZT_TESTS_RPC_RIG_H
#define ZT_TESTS_RPC_RIG_H

#include "support/grpc_server.h"
#include "support/tls_test.h"
#include "zt/rpc/rpc.h"

struct rpc_rig {
    struct zt_loop *loop;
    struct zt_rpc *rpc;
    struct zt_test_cert *root, *leaf;
    char *root_pem, *chain_pem, *key_pem;
    struct grpc_server_opts opts; /* for rpc_rig_restart */
    struct grpc_server_rig *server;
    char address[64]; /* "https://localhost:port" */
    char dir[64];     /* a private directory, removed with its files at the end */
};

/* o: NULL = defaults; certificates are filled in. cert: NULL = names localhost and 127.0.0.1. */
void rpc_rig_init(struct rpc_rig *r, const struct grpc_server_opts *o,
                  const struct zt_test_cert_opts *cert);
/* Channels and calls are freed. */
void rpc_rig_fini(struct rpc_rig *r);
/* Ends the server; starts one on the same port with the leaf that is there. */
void rpc_rig_stop(struct rpc_rig *r);
void rpc_rig_restart(struct rpc_rig *r);
/* A new root and a leaf from it; for the next restart. */
void rpc_rig_renew_certs(struct rpc_rig *r);
/* A configuration that works: fresh connections, roots as text, no token. Borrows from r. */
struct zt_rpc_channel_config rpc_rig_config(const struct rpc_rig *r);
/* dir/name with this content. Returns borrowed (until the next call with this name): the path. */
const char *rpc_rig_write(struct rpc_rig *r, const char *name, const char *text);

#define RPC_LOG_MAX 64

struct rpc_log {
    struct rpc_rig *rig;
    struct zt_rpc_call *call; /* NULL when freed */
    struct zt_rpc_message *messages[RPC_LOG_MAX];
    unsigned n_messages;
    struct zt_rpc_status status;
    unsigned n_status;
    bool hold;            /* does not ask for the next message by itself */
    bool free_on_message; /* frees the call inside on_message */
    bool drop;            /* frees messages at once */
};

extern const struct zt_rpc_events rpc_log_events; /* owner: struct rpc_log * */

/* Begin a call and record it; fail the test when it cannot begin. */
void rpc_log_open(struct rpc_log *l, struct rpc_rig *r, struct zt_rpc_channel *c);
void rpc_log_unary(struct rpc_log *l, struct rpc_rig *r, struct zt_rpc_channel *c,
                   uint64_t timeout_ms);
/* Frees call and messages. */
void rpc_log_fini(struct rpc_log *l);
/* Run the loop until it happened; fail the test after 25 s. */
void rpc_log_wait_messages(struct rpc_log *l, unsigned n);
void rpc_log_wait_status(struct rpc_log *l);
/* Until the server has accepted n calls; returns the last of them. */
struct grpc_server_call *rpc_rig_wait_call(struct rpc_rig *r, unsigned n);
/* Until the server's call has n messages, or is closed. */
void rpc_rig_wait_received(struct rpc_rig *r, struct grpc_server_call *c, unsigned n);
void rpc_rig_wait_closed(struct rpc_rig *r, struct grpc_server_call *c);

#endif
