/* Socket options, listeners, original destination (spec/dataplane §1). Functions return descriptors, close-on-exec and
 * non-blocking, or -errno. Thread: any. */
#ifndef ZT_NET_SOCK_H
#define ZT_NET_SOCK_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/net/netns.h"

#define ZT_SOCK_BACKLOG 1024

/* How many connects may be under way together. */
struct zt_dial_quota {
    uint64_t max, now;
    uint64_t n_refused; /* ever */
};

/* What the configuration says about sockets; a plain value. */
struct zt_sock_opts {
    bool keepalive;
    unsigned keepalive_idle_s, keepalive_interval_s, keepalive_retries;
    bool user_timeout;
    unsigned mark;         /* SO_MARK; 0 = none */
    bool mark_listeners;   /* shared mode */
    bool reuse_port;       /* INPOD_PORT_REUSE, listeners only; otherwise SO_REUSEADDR */
    bool ipv6;             /* IPV6_ENABLED: wildcard listeners bind [::] with IPV6_V6ONLY=0 */
    enum zt_orig_src { ZT_ORIG_SRC_AUTO, ZT_ORIG_SRC_ALWAYS, ZT_ORIG_SRC_NEVER } orig_src;
    struct zt_dial_quota *quota; /* zt_dial_start's; borrowed, its owner's loop only; NULL: none */
};

/* A listener on the wildcard address inside ns, listening. *transparent: IP_TRANSPARENT was set (ENABLE_ORIG_SRC).
 * On EAFNOSUPPORT (no IPv6 in the kernel) falls back to 0.0.0.0. Errors: text "failed to bind to address <addr>: <os>". */
enum zt_err zt_sock_listen(struct zt_netns *ns, uint16_t port, const struct zt_sock_opts *o, int *fd,
                           bool *transparent, struct zt_error *err);
/* A listener on one address (admin, readiness); no mark, SO_REUSEADDR. */
enum zt_err zt_sock_listen_addr(const struct zt_addr *a, int *fd, struct zt_error *err);

/* As zt_sock_listen, on one address. */
enum zt_err zt_sock_listen_at(struct zt_netns *ns, const struct zt_addr *a, const struct zt_sock_opts *o, int *fd,
                              bool *transparent, struct zt_error *err);
/* A UDP socket on one address inside ns, with the listeners' options. *missing: the namespace does not have the address. */
enum zt_err zt_sock_bind_udp(struct zt_netns *ns, const struct zt_addr *a, const struct zt_sock_opts *o, int *fd, bool *missing,
                             struct zt_error *err);
/* A UDP socket inside ns that talks to dst only, marked, on a port of the kernel's choice. Returns the descriptor or -errno (-EMFILE
 * also for one of the reserve). */
int zt_sock_connect_udp(struct zt_netns *ns, const struct zt_addr *dst, const struct zt_sock_opts *o);
/* TCP_NODELAY, and keepalive and user timeout when asked. Returns 0 or -errno (nodelay or mark failed). */
int zt_sock_setup_accepted(int fd, const struct zt_sock_opts *o, bool keepalive);

/* Starts a connect inside ns. source may be NULL; otherwise freebind source preservation (spec/dataplane §1.6; a failure to bind is
 * a failure, never a silent unspoofed dial: spec/dataplane §16). Its port 0: the kernel's choice at connect, with
 * IP_BIND_ADDRESS_NO_PORT; another: that port, or the kernel's choice when it is taken for this destination.
 * Returns the descriptor (connected or in progress) or -errno. */
int zt_sock_connect(struct zt_netns *ns, const struct zt_addr *dst, const struct zt_addr *source,
                    const struct zt_sock_opts *o);

/* Original destination of an accepted socket (spec/dataplane §1.5), canonical. Never fails: falls back to the local address. */
struct zt_addr zt_sock_original_dst(int fd, bool transparent);
struct zt_addr zt_sock_local(int fd); /* canonical; family NONE on error */
struct zt_addr zt_sock_peer(int fd);

#endif
