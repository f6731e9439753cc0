/* A scripted gRPC server for tests (spec/controlplane §8, L1): TLS on 127.0.0.1, any method, no
 * protobuf. Calls stay readable until the server is freed. It has a thread of its own; the test
 * runs its loop and looks from outside, or hands over a script that runs on the server's thread.
 * Thread: any, but for the script. */
#ifndef ZT_TESTS_GRPC_SERVER_H
#define ZT_TESTS_GRPC_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GRPC_SERVER_CALLS_MAX 4096

struct grpc_server_rig;
struct grpc_server_call;

/* What the server does by itself. Runs on the server's thread; may use the functions below on its
 * call. */
struct grpc_server_script {
    void (*on_call)(void *arg, struct grpc_server_call *call);
    void (*on_message)(void *arg, struct grpc_server_call *call, const void *bytes, size_t n);
    void *arg;
};

struct grpc_server_opts {
    const char *chain_pem, *key_pem; /* borrowed until return */
    const char
        *token; /* borrowed until free: another one is answered UNAUTHENTICATED; NULL = any */
    struct grpc_server_script script;
    unsigned port;                         /* 0 = any */
    unsigned age_max_ms, age_max_grace_ms; /* GOAWAY after; 0 = never */
    unsigned receive_bytes_max;            /* 0 = the library's 4 MiB, which is istiod's too */
    bool lazy_read;                        /* reads nothing until grpc_server_call_read */
};

/* Returns owned. */
struct grpc_server_rig *grpc_server_rig_new(const struct grpc_server_opts *o);
/* Cuts every connection. NULL is legal. */
void grpc_server_rig_free(struct grpc_server_rig *s);
unsigned grpc_server_rig_port(const struct grpc_server_rig *s);
/* Changes the token that is let in. */
void grpc_server_rig_set_token(struct grpc_server_rig *s, const char *token);
/* Calls accepted so far, refused ones not counted; and the i-th of them, borrowed until free. */
unsigned grpc_server_rig_calls(struct grpc_server_rig *s);
unsigned grpc_server_rig_refused(struct grpc_server_rig *s);
struct grpc_server_call *grpc_server_rig_call(struct grpc_server_rig *s, unsigned i);

const char *grpc_server_call_method(struct grpc_server_call *c); /* borrowed until free */
const char *grpc_server_call_host(struct grpc_server_call *c); /* :authority; borrowed until free */
const char *
grpc_server_call_peer(struct grpc_server_call *c); /* "ipv4:...": one per connection; borrowed */
/* A request header, borrowed until free; NULL = absent. n: how many of that name, may be NULL. */
const char *grpc_server_call_header(struct grpc_server_call *c, const char *name, unsigned *n);
/* Messages received so far, and the i-th; borrowed until free. */
unsigned grpc_server_call_messages(struct grpc_server_call *c);
const void *grpc_server_call_message(struct grpc_server_call *c, unsigned i, size_t *n);
/* The client went away or cancelled; or our status is out. */
bool grpc_server_call_closed(struct grpc_server_call *c);

/* Queues a message; then the end of the call. */
void grpc_server_call_send(struct grpc_server_call *c, const void *bytes, size_t n);
void grpc_server_call_end(struct grpc_server_call *c, int code, const char *text);
unsigned grpc_server_call_unsent(struct grpc_server_call *c);
/* With lazy_read: reads one message. */
void grpc_server_call_read(struct grpc_server_call *c);

#endif
