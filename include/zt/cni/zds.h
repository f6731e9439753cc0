/* ZDS, the protocol by which a CNI daemon tells a node's proxy about pods (spec/inpod §1): one
 * protobuf message per packet of an AF_UNIX SOCK_SEQPACKET connection, at most 1024 bytes; an Add
 * is accompanied by one descriptor of the pod's network namespace. The proxy sends one hello; then
 * the CNI daemon sends requests, and each is answered by one acknowledgement, matched by position.
 *
 * Three parts: messages and packets (zds.c); the client, used by the daemon through zt/cni/pods.h
 * (zds_client.c); the server, used by the node agent and by tests (zds_server.c). Thread: control
 * (messages and packets: any). */
#ifndef ZT_CNI_ZDS_H
#define ZT_CNI_ZDS_H

#include "zt/base/err.h"
#include "zt/loop/loop.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZT_ZDS_PACKET_BYTES_MAX 1024
/* Bytes, NUL included; an acknowledgement with it still fits a packet. */
#define ZT_ZDS_ACK_TEXT_MAX 1001
#define ZT_ZDS_VERSION 1
#define ZT_ZDS_TIMEOUT_MS 5000 /* server: hello, and each acknowledgement */
#define ZT_ZDS_PEERS_MAX 16    /* server: connections at a time; further ones are closed at once */

/* ---- messages ---- */

enum zt_zds_kind { ZT_ZDS_ADD = 1, ZT_ZDS_DEL, ZT_ZDS_SNAPSHOT_SENT, ZT_ZDS_KEEP };

struct zt_pod_info { /* NUL-terminated text, borrowed (as long as what holds it) */
    const char *name, *ns, *service_account;
};

/* One request. To encode: point the fields at your text. Decoded: they point into `text`, so do not
 * copy the struct. */
struct zt_zds_request {
    enum zt_zds_kind kind;
    const char *uid;         /* Kubernetes metadata.uid, opaque; NULL for SNAPSHOT_SENT */
    bool has_info;           /* ADD: workload_info is there */
    struct zt_pod_info info; /* ADD with has_info */
    int netns_fd; /* ADD: the descriptor, else -1. Sending borrows it; after receiving it is owned
                     by the receiver */
    char text[ZT_ZDS_PACKET_BYTES_MAX + 8];
};

/* Encoders write at most ZT_ZDS_PACKET_BYTES_MAX bytes and return how many; 0 when the message does
 * not fit. */
size_t zt_zds_encode_request(const struct zt_zds_request *r,
                             uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX]);
size_t zt_zds_encode_hello(unsigned version, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX]);
/* error "" = ok; a longer text than ZT_ZDS_ACK_TEXT_MAX - 1 is cut. */
size_t zt_zds_encode_ack(const char *error, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX]);
/* Decoders: ZT_INVALID with a text ("no payload", "invalid message"). netns_fd of out is set to -1.
 */
enum zt_err zt_zds_decode_request(const uint8_t *bytes, size_t len, struct zt_zds_request *out,
                                  struct zt_error *err);
enum zt_err zt_zds_decode_hello(const uint8_t *bytes, size_t len, unsigned *version,
                                struct zt_error *err);
enum zt_err zt_zds_decode_ack(const uint8_t *bytes, size_t len,
                              char error[static ZT_ZDS_ACK_TEXT_MAX], struct zt_error *err);

/* ---- packets: non-blocking sockets only ---- */

/* Sends one packet; fd -1 = none, otherwise borrowed. ZT_AGAIN; ZT_RESET (the peer is gone); ZT_IO.
 */
enum zt_err zt_zds_send(int sock, const uint8_t *bytes, size_t len, int fd, struct zt_error *err);
/* Receives one packet. *fd: the one descriptor that came with it (owned), or -1. ZT_AGAIN; ZT_EOF;
 * ZT_RESET, ZT_IO; ZT_INVALID: longer than ZT_ZDS_PACKET_BYTES_MAX or more than one descriptor (all
 * are closed). */
enum zt_err zt_zds_recv(int sock, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX], size_t *len, int *fd,
                        struct zt_error *err);
/* Receives and decodes a request; an Add has exactly one descriptor, nothing else has any
 * (spec/inpod §1.4), else ZT_INVALID and the descriptor is closed. Otherwise as zt_zds_recv. */
enum zt_err zt_zds_recv_request(int sock, struct zt_zds_request *out, struct zt_error *err);

/* ---- client: connect, hello, one acknowledgement per request; again until stopped ---- */

enum zt_zds_verdict {
    ZT_ZDS_ANSWER, /* acknowledge, go on */
    ZT_ZDS_FATAL,  /* a protocol error: acknowledge, disconnect for good, on_fatal */
};

struct zt_zds_client;
/* Embed it. Calling zt_zds_client_free from a callback is legal. */
struct zt_zds_client_owner {
    /* Connected, hello sent: what the last connection said about a snapshot is void. */
    void (*on_connected)(struct zt_zds_client_owner *o);
    /* The connection, or the attempt to say hello, has ended; another attempt follows by itself. */
    void (*on_disconnected)(struct zt_zds_client_owner *o);
    /* One request, to be dealt with completely. Takes r->netns_fd. ack is "" (ok) on entry. */
    enum zt_zds_verdict (*on_request)(struct zt_zds_client_owner *o, struct zt_zds_request *r,
                                      char ack[static ZT_ZDS_ACK_TEXT_MAX]);
    /* After a FATAL verdict was sent and the connection closed; why is what the acknowledgement
     * said. Last callback. */
    void (*on_fatal)(struct zt_zds_client_owner *o, const struct zt_error *why);
};

/* path is copied. owner is borrowed (until free). The first attempt is made from the loop, at once.
 * Back-off after failed attempts: 20 ms doubling to 15 s. Returns owned. */
struct zt_zds_client *zt_zds_client_new(struct zt_loop *l, const char *path,
                                        struct zt_zds_client_owner *owner);
/* The owner is ready: the back-off for peers that connect but do not talk starts from its beginning
 * again. */
void zt_zds_client_settled(struct zt_zds_client *c);
/* Closes the connection, unread requests stay unread; no callback runs. NULL is legal. */
void zt_zds_client_free(struct zt_zds_client *c);

/* ---- server ---- */

struct zt_zds_server; /* the listening socket */
struct zt_zds_peer;   /* one connected proxy that has said hello; ends with on_gone or
                         zt_zds_peer_close */

/* Embed it in what you keep per proxy. Calling zt_zds_peer_request or _close from a callback is
 * legal. */
struct zt_zds_peer_owner {
    /* The answer to the one request under way; error "" = ok. Borrowed (during the call). */
    void (*on_ack)(struct zt_zds_peer_owner *o, struct zt_zds_peer *p, const char *error);
    /* Connection lost, acknowledgement late (5 s) or garbage, a packet nobody asked for. p is dead;
     * a request under way is undecided. */
    void (*on_gone)(struct zt_zds_peer_owner *o, struct zt_zds_peer *p, const struct zt_error *why);
};
struct zt_zds_server_owner {
    /* A proxy has said hello. Returns the peer's owner, borrowed (until on_gone, peer_close or
     * server_free). NULL: close it. */
    struct zt_zds_peer_owner *(*on_hello)(struct zt_zds_server_owner *o, struct zt_zds_peer *p,
                                          unsigned version);
};

/* Listens at path (copied) as zt_unix_listen does: a socket that nobody serves is replaced; one that
 * is served (another CNI agent: its pods would be dropped by the daemon) is an error, as anything
 * else there. owner is borrowed (until free). Returns owned, or NULL with err (ZT_IO, ZT_EXISTS,
 * ZT_INVALID: path too long). */
struct zt_zds_server *zt_zds_server_new(struct zt_loop *l, const char *path,
                                        struct zt_zds_server_owner *owner, struct zt_error *err);
/* Tests: another time limit than ZT_ZDS_TIMEOUT_MS, for connections accepted from now on. */
void zt_zds_server_set_timeout(struct zt_zds_server *s, unsigned timeout_ms);
/* Closes every connection (no callback) and the listener; unlinks the path if it is still ours.
 * NULL is legal. */
void zt_zds_server_free(struct zt_zds_server *s);

/* Sends one request and waits for its acknowledgement: on_ack or on_gone follows, never from inside
 * this call. Only one at a time: asserts that none is under way. netns_fd is borrowed (during the
 * call). Errors: ZT_INVALID, the message does not fit a packet or an Add has no descriptor (nothing
 * was sent, no callback follows). */
enum zt_err zt_zds_peer_request(struct zt_zds_peer *p, const struct zt_zds_request *r);
bool zt_zds_peer_busy(const struct zt_zds_peer *p); /* a request is under way */
void zt_zds_peer_close(struct zt_zds_peer *p);      /* no callback runs afterwards */

#endif
