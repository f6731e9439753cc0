/* What the files of this folder share. Everything runs on the control loop, but the pump and the
 * peer check, which say so. */
#ifndef ZT_RPC_RPC_IMPL_H
#define ZT_RPC_RPC_IMPL_H

#include "zt/base/list.h"
#include "zt/rpc/rpc.h"
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define ZT_RPC_SCOPE "rpc"

/* rpc.c */
struct zt_rpc {
    struct zt_loop *loop;
    grpc_completion_queue *queue;
    pthread_t pump;
    bool closing; /* the pump has ended */
    unsigned n_channels;
    unsigned n_owned; /* calls that somebody still has to free */
    unsigned n_calls; /* calls with memory, freed ones on their way back included */
    atomic_uint n_messages;
    dev_t netns_dev; /* the namespace of zt_rpc_new */
    ino_t netns_ino;
};

/* A batch that was given to the library: its tag. The pump posts it back. */
struct zt_rpc_op {
    struct zt_msg msg;
    struct zt_rpc_call *call;
    void (*done)(struct zt_rpc_call *call, bool ok);
    bool ok, busy;
    /* Counts hand-overs: control to pump. The library orders the two as well, but by means that a
     * race detector cannot see through its machine code. */
    atomic_uint handed;
};

/* The caller is in the namespace the library was started in, or the process stops. */
void zt_rpc_assert_netns(const struct zt_rpc *r);
/* Releases the library when r is closing and the last call is gone. */
void zt_rpc_release(struct zt_rpc *r);

/* target.c: what an address means. */
struct zt_rpc_target {
    char *authority; /* as written: :authority, and the TLS name is its host */
    char *host;      /* without brackets */
    char *uri;       /* for the library's resolver */
};
/* On failure out is zeroed. */
enum zt_err zt_rpc_target_parse(struct zt_rpc_target *out, const char *address,
                                struct zt_error *err);
void zt_rpc_target_fini(struct zt_rpc_target *t);
/* A DNS name or an IP address. */
bool zt_rpc_host_is_valid(const char *host);

/* roots.c: the certificates in a root setting, normalised: every one parses. Returns owned PEM;
 * NULL with err set. */
char *zt_rpc_roots_read(const char *setting, struct zt_error *err);

/* peer.c: credentials that trust roots_pem and accept a server certificate that names host, or else
 * alt (NULL = none). Returns owned. */
grpc_channel_credentials *zt_rpc_creds_new(const char *roots_pem, const char *host,
                                           const char *alt);

/* metadata.c: the headers of one call. */
struct zt_rpc_headers {
    struct zt_rpc_header *extra; /* owned, checked, lower-cased */
    unsigned n_extra;
    char *token_path; /* owned; NULL = token */
    char *token;      /* owned, wiped; NULL with token_path NULL = none */
    char *cluster_id; /* owned; may be NULL */
};
enum zt_err zt_rpc_headers_init(struct zt_rpc_headers *h, const struct zt_rpc_channel_config *c,
                                struct zt_error *err);
void zt_rpc_headers_fini(struct zt_rpc_headers *h);
/* Reads the token. Errors: ZT_IDENTITY. On success *out is an array of *n, owned. */
enum zt_err zt_rpc_metadata_new(const struct zt_rpc_headers *h, grpc_metadata **out, size_t *n,
                                struct zt_error *err);
void zt_rpc_metadata_free(grpc_metadata *m, size_t n);

/* channel.c: a connection, or the will to make one; shared by the channel and its calls. */
struct zt_rpc_link {
    grpc_channel *channel;
    unsigned refs;
    bool failed; /* a call could not be served over it: the next call gets a new one */
};
struct zt_rpc_channel {
    struct zt_rpc *rpc;
    struct zt_rpc_target target;
    struct zt_rpc_headers headers;
    char *root_ca, *alt_hostname;
    unsigned receive_bytes_max;
    bool fresh;
    unsigned n_calls;           /* owned calls */
    struct zt_rpc_link *shared; /* the connection in use; NULL = none yet, or fresh */
    char *roots_pem;            /* what it trusts */
    bool roots_failing;         /* said so already */
};
/* The connection for the next call. Returns owned (one ref); NULL with err set. */
struct zt_rpc_link *zt_rpc_channel_link(struct zt_rpc_channel *c, struct zt_error *err);
void zt_rpc_link_unref(struct zt_rpc_link *l);

/* message.c. Takes buffer; returns owned. */
struct zt_rpc_message *zt_rpc_message_new(struct zt_rpc *r, grpc_byte_buffer *buffer);

#endif
