/* Socket options, listeners, original destination.
 *
 * Invariant: what leaves here is close-on-exec, non-blocking, and carries the packet mark where the
 * configuration wants one; a socket without its mark would be captured again by the pod's rules.
 * Namespace membership is only needed for socket(): a socket stays bound to the namespace it was
 * made in, so everything else happens from outside. */
#include "zt/net/sock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/net/handover.h"
#include "zt/net/fd_guard.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

/* From linux/in.h, linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h, which clash with
 * the C library's headers. */
#define OPT_ORIGINAL_DST 80
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) == 0 ? 0 : -errno;
}

static int set_mark(int fd, const struct zt_sock_opts *o)
{
    return o->mark ? set_int(fd, SOL_SOCKET, SO_MARK, (int)o->mark) : 0;
}

/* Best effort by specification: a kernel that refuses a value keeps its own. */
static void set_keepalive(int fd, const struct zt_sock_opts *o)
{
    if (o->keepalive) {
        set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)o->keepalive_idle_s);
        set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, (int)o->keepalive_interval_s);
        set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, (int)o->keepalive_retries);
    }
    if (o->user_timeout) {
        uint64_t ms = 1000ull * (o->keepalive_idle_s +
                                 (uint64_t)o->keepalive_retries * o->keepalive_interval_s);
        set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, ms > INT32_MAX ? INT32_MAX : (int)ms);
    }
}

/* ---- listeners ---- */

static int set_transparent(int fd, enum zt_orig_src wish, bool *transparent)
{
    *transparent = false;
    if (wish == ZT_ORIG_SRC_NEVER)
        return 0;
    /* The IPv4-level option also on an IPv6 socket, as the reference does: it is the probe for the
     * capability. */
    int rc = set_int(fd, SOL_IP, IP_TRANSPARENT, 1);
    *transparent = rc == 0;
    return wish == ZT_ORIG_SRC_ALWAYS ? rc : 0;
}

static int prepare_listener(int fd, bool v6, const struct zt_sock_opts *o, bool *transparent)
{
    int rc = 0;
    if (v6)
        rc = set_int(fd, SOL_IPV6, IPV6_V6ONLY, 0);
    if (rc == 0 && o->mark_listeners)
        rc = set_mark(fd, o);
    if (rc == 0)
        rc = set_transparent(fd, o->orig_src, transparent);
    if (rc != 0)
        return rc;
    if (!o->reuse_port)
        return set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    rc = set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    if (rc != 0)
        zt_log_warn("proxy", "SO_REUSEPORT failed (errno %d), rolling upgrades will not overlap",
                    -rc);
    return 0;
}

static int bind_and_listen(int fd, const struct sockaddr *sa, socklen_t len)
{
    if (bind(fd, sa, len) != 0 || listen(fd, ZT_SOCK_BACKLOG) != 0)
        return -errno;
    return 0;
}

/* One attempt in one family: the descriptor or -errno. */
static int listen_wildcard(struct zt_netns *ns, bool v6, uint16_t port,
                           const struct zt_sock_opts *o, bool *transparent)
{
    struct sockaddr_in6 sa6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in sa4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = zt_netns_socket(ns, v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        return fd;
    int rc = prepare_listener(fd, v6, o, transparent);
    if (rc == 0)
        rc = v6 ? bind_and_listen(fd, (struct sockaddr *)&sa6, sizeof sa6)
                : bind_and_listen(fd, (struct sockaddr *)&sa4, sizeof sa4);
    if (rc == 0) {
        if (o->reuse_port)
            zt_handover_enable(fd);
        return fd;
    }
    close(fd);
    return rc;
}

enum zt_err zt_sock_listen(struct zt_netns *ns, uint16_t port, const struct zt_sock_opts *o,
                           int *fd, bool *transparent, struct zt_error *err)
{
    bool v6 = o->ipv6;
    int rc = listen_wildcard(ns, v6, port, o, transparent);
    if (rc == -EAFNOSUPPORT && v6) { /* booted with ipv6.disable=1 */
        v6 = false;
        rc = listen_wildcard(ns, v6, port, o, transparent);
    }
    if (rc < 0)
        return zt_error_set_errno(err, ZT_IO, -rc, "failed to bind to address %s:%u",
                                  v6 ? "[::]" : "0.0.0.0", port);
    *fd = rc;
    return ZT_OK;
}

/* A socket on one address inside ns, bound. Returns the descriptor or -errno. */
static int bind_at(struct zt_netns *ns, int type, const struct zt_addr *a, const struct zt_sock_opts *o, bool *transparent)
{
    struct sockaddr_storage ss;
    socklen_t len = zt_addr_to_sockaddr(a, &ss);
    int fd = zt_netns_socket(ns, ss.ss_family, type, 0);
    if (fd < 0)
        return fd;
    int rc = prepare_listener(fd, false, o, transparent);
    if (rc == 0 && bind(fd, (struct sockaddr *)&ss, len) != 0)
        rc = -errno;
    if (rc == 0 && type == SOCK_STREAM && listen(fd, ZT_SOCK_BACKLOG) != 0)
        rc = -errno;
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

enum zt_err zt_sock_listen_at(struct zt_netns *ns, const struct zt_addr *a, const struct zt_sock_opts *o, int *fd,
                              bool *transparent, struct zt_error *err)
{
    char text[ZT_ADDR_TEXT_MAX];
    int rc = bind_at(ns, SOCK_STREAM, a, o, transparent);
    if (rc < 0)
        return zt_error_set_errno(err, ZT_IO, -rc, "failed to bind to address %s", zt_addr_format(a, text));
    *fd = rc;
    return ZT_OK;
}

enum zt_err zt_sock_bind_udp(struct zt_netns *ns, const struct zt_addr *a, const struct zt_sock_opts *o, int *fd, bool *missing,
                             struct zt_error *err)
{
    char text[ZT_ADDR_TEXT_MAX];
    bool transparent;
    struct zt_sock_opts plain = *o;
    plain.orig_src = ZT_ORIG_SRC_NEVER;
    int rc = bind_at(ns, SOCK_DGRAM, a, &plain, &transparent);
    *missing = rc == -EADDRNOTAVAIL || rc == -EAFNOSUPPORT;
    if (rc < 0)
        return zt_error_set_errno(err, ZT_IO, -rc, "failed to bind to address %s (UDP)", zt_addr_format(a, text));
    *fd = rc;
    return ZT_OK;
}

int zt_sock_connect_udp(struct zt_netns *ns, const struct zt_addr *dst, const struct zt_sock_opts *o)
{
    struct sockaddr_storage ss;
    socklen_t len = zt_addr_to_sockaddr(dst, &ss);
    int fd = zt_netns_socket(ns, ss.ss_family, SOCK_DGRAM, 0);
    if (fd < 0)
        return fd;
    int rc = set_mark(fd, o);
    if (rc == 0 && !zt_fd_guard_allows(fd))
        rc = -EMFILE;
    if (rc == 0 && connect(fd, (struct sockaddr *)&ss, len) != 0)
        rc = -errno;
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

enum zt_err zt_sock_listen_addr(const struct zt_addr *a, int *fd, struct zt_error *err)
{
    struct sockaddr_storage ss;
    socklen_t len = zt_addr_to_sockaddr(a, &ss);
    char text[ZT_ADDR_TEXT_MAX];
    int s = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = s >= 0 ? set_int(s, SOL_SOCKET, SO_REUSEADDR, 1) : -errno;
    if (rc == 0 && ss.ss_family == AF_INET6 && zt_ip_is_unspecified(&a->ip))
        rc = set_int(s, SOL_IPV6, IPV6_V6ONLY, 0);
    if (rc == 0)
        rc = bind_and_listen(s, (struct sockaddr *)&ss, len);
    if (rc == 0) {
        *fd = s;
        return ZT_OK;
    }
    if (s >= 0)
        close(s);
    return zt_error_set_errno(err, ZT_IO, -rc, "failed to bind to address %s",
                              zt_addr_format(a, text));
}

int zt_sock_setup_accepted(int fd, const struct zt_sock_opts *o, bool keepalive)
{
    int rc = set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (rc == 0 && keepalive)
        set_keepalive(fd, o);
    return rc;
}

/* ---- connecting ---- */

/* Binds to (source, port chosen at connect): without NO_PORT the kernel searches a port that is
 * free for every destination, which takes milliseconds once TIME_WAITs pile up, and runs out at
 * 28,000 connections instead of that many per destination. */
static int bind_source(int fd, const struct zt_addr *source)
{
    struct sockaddr_storage ss;
    socklen_t len = zt_addr_to_sockaddr(source, &ss);
    bool v6 = source->ip.family == ZT_IPV6;
    int rc =
        v6 ? set_int(fd, SOL_IPV6, IPV6_TRANSPARENT, 1) : set_int(fd, SOL_IP, IP_TRANSPARENT, 1);
    if (rc == 0)
        rc = v6 ? set_int(fd, SOL_IPV6, IPV6_FREEBIND, 1) : set_int(fd, SOL_IP, IP_FREEBIND, 1);
    if (rc == 0)
        rc = source->port ? set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1)
                          : set_int(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (rc == 0 && bind(fd, (struct sockaddr *)&ss, len) != 0)
        rc = -errno;
    return rc;
}

static int prepare_outgoing(int fd, const struct zt_addr *source, const struct zt_sock_opts *o)
{
    int rc = set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (rc == 0)
        rc = set_mark(fd, o);
    if (rc == 0)
        set_keepalive(fd, o);
    if (rc == 0 && source)
        rc = bind_source(fd, source);
    return rc;
}

/* One try. source is not the destination. */
static int connect_from(struct zt_netns *ns, const struct zt_addr *dst, const struct zt_addr *source,
                        const struct zt_sock_opts *o)
{
    struct sockaddr_storage ss;
    bool v6 = (source ? source->ip.family : dst->ip.family) == ZT_IPV6;
    socklen_t len = v6 ? zt_addr_to_sockaddr6(dst, &ss) : zt_addr_to_sockaddr(dst, &ss);
    int fd = zt_netns_socket(ns, v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        return fd;
    int rc = prepare_outgoing(fd, source, o);
    if (rc == 0 && connect(fd, (struct sockaddr *)&ss, len) != 0 && errno != EINPROGRESS)
        rc = -errno;
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

int zt_sock_connect(struct zt_netns *ns, const struct zt_addr *dst, const struct zt_addr *source,
                    const struct zt_sock_opts *o)
{
    if (source && (source->ip.family == ZT_IP_NONE || zt_ip_equal(&source->ip, &dst->ip)))
        source = NULL; /* a hairpin: the application would see itself either way, and a spoofed loop
                          confuses it */
    int rc = connect_from(ns, dst, source, o);
    if (!source || source->port == 0 || (rc != -EADDRINUSE && rc != -EADDRNOTAVAIL))
        return rc;
    struct zt_addr any_port = {.ip = source->ip};
    return connect_from(ns, dst, &any_port, o);
}

/* ---- addresses of a socket ---- */

struct zt_addr zt_sock_local(int fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    if (getsockname(fd, (struct sockaddr *)&ss, &len) != 0)
        return (struct zt_addr){0};
    return zt_addr_from_sockaddr((struct sockaddr *)&ss);
}

struct zt_addr zt_sock_peer(int fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    if (getpeername(fd, (struct sockaddr *)&ss, &len) != 0)
        return (struct zt_addr){0};
    return zt_addr_from_sockaddr((struct sockaddr *)&ss);
}

struct zt_addr zt_sock_original_dst(int fd, bool transparent)
{
    static const int levels[] = {SOL_IP, SOL_IPV6};
    int errors[2] = {0};
    for (int i = 0; i < 2; i++) {
        struct sockaddr_storage ss = {0};
        socklen_t len = sizeof ss;
        if (getsockopt(fd, levels[i], OPT_ORIGINAL_DST, &ss, &len) == 0)
            return zt_addr_from_sockaddr((struct sockaddr *)&ss);
        errors[i] = errno;
    }
    static _Thread_local struct zt_log_gate gate; /* anyone who reaches the port can cause this */
    uint32_t suppressed;
    if (!transparent && zt_log_gate_pass(&gate, 1, &suppressed))
        zt_log_warn("proxy",
                    "no original destination (errno %d for IPv4, %d for IPv6), using the local "
                    "address suppressed=%u",
                    errors[0], errors[1], suppressed);
    return zt_sock_local(fd);
}
