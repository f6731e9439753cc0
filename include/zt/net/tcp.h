/* The TCP kind of zt_stream: a connected socket, and dialling one. Thread: owner loop. */
#ifndef ZT_NET_TCP_H
#define ZT_NET_TCP_H

#include "zt/loop/loop.h"
#include "zt/net/sock.h"
#include "zt/net/stream.h"

#define ZT_CONNECT_TIMEOUT_MS 10000

/* Takes fd (connected, non-blocking). Returns owned: end it with zt_stream_close. */
struct zt_stream *zt_tcp_stream_new(struct zt_loop *l, int fd, struct zt_stream_owner *owner);
/* The descriptor of a TCP stream, for splice and getsockopt; -1 for any other kind. Borrowed. */
int zt_tcp_stream_fd(const struct zt_stream *s);

/* A connect in progress. Embed it. */
struct zt_dial {
    struct zt_loop *loop;
    int fd;
    ev_io io;
    ev_timer timer;
    void (*done)(struct zt_dial *d, int fd, int errnum);
};
/* Starts a connect; done runs exactly once, never from inside this call: fd >= 0 (taken by the callee) or errnum (ETIMEDOUT when
 * timeout_ms passed, EMFILE also when the descriptor would be one of the reserve: fd_guard.h). After zt_dial_cancel it does not run. */
void zt_dial_start(struct zt_dial *d, struct zt_loop *l, struct zt_netns *ns, const struct zt_addr *dst,
                   const struct zt_addr *source, const struct zt_sock_opts *o, unsigned timeout_ms,
                   void (*done)(struct zt_dial *d, int fd, int errnum));
void zt_dial_cancel(struct zt_dial *d); /* legal when idle (zeroed) */

#endif
