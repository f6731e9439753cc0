/* The TCP kind of zt_stream: a connected socket, and dialling one. Thread: owner loop. */
#ifndef ZT_NET_TCP_H
#define ZT_NET_TCP_H

#include "zt/loop/loop.h"
#include "zt/net/sock.h"
#include "zt/net/stream.h"

#define ZT_CONNECT_TIMEOUT_MS 10000

/* Takes fd (connected, non-blocking). Returns owned: end it with zt_stream_close. */
struct zt_stream *zt_tcp_stream_new(struct zt_loop *l, int fd, struct zt_stream_owner *owner);
/* The descriptor of a TCP stream, for getsockopt; -1 for any other kind. Borrowed. */
int zt_tcp_stream_fd(const struct zt_stream *s);

/* From one TCP stream to another through a pipe of their loop: bytes that nobody looks at are never copied. A reader that holds
 * shown bytes is read out first. `held` of the pipe says what is on the way. */
/* Returns owned; NULL: not two TCP streams, the reader holds bytes, or no pipe is to be had. */
struct zt_pipe *zt_tcp_pipe_open(struct zt_stream *reader, const struct zt_stream *writer);
void zt_tcp_pipe_close(struct zt_stream *reader, struct zt_pipe *p); /* takes p; what it held is lost */
/* Fills the empty pipe; returns as zt_stream_peek. */
enum zt_err zt_tcp_pipe_fill(struct zt_stream *reader, struct zt_pipe *p);
/* Empties it as far as the writer takes it; returns as zt_stream_writev. */
enum zt_err zt_tcp_pipe_drain(struct zt_stream *writer, struct zt_pipe *p, size_t *accepted);

/* A connect in progress. Embed it. */
struct zt_dial {
    struct zt_loop *loop;
    struct zt_dial_quota *quota; /* one of it is taken while the dial is under way */
    int fd;
    ev_io io;
    ev_timer timer;
    void (*done)(struct zt_dial *d, int fd, int errnum);
};
/* Starts a connect; done runs exactly once, never from inside this call: fd >= 0 (taken by the callee) or errnum (ETIMEDOUT when
 * timeout_ms passed, EMFILE also when the descriptor would be one of the reserve: fd_guard.h; EDQUOT: no more dials within o->quota). After zt_dial_cancel it does not run. */
void zt_dial_start(struct zt_dial *d, struct zt_loop *l, struct zt_netns *ns, const struct zt_addr *dst,
                   const struct zt_addr *source, const struct zt_sock_opts *o, unsigned timeout_ms,
                   void (*done)(struct zt_dial *d, int fd, int errnum));
/* A failed dial says nothing about its target: we are out of descriptors, ports or memory, or a rule of ours forbids it. */
bool zt_dial_errno_is_ours(int errnum);
void zt_dial_cancel(struct zt_dial *d); /* legal when idle (zeroed) */

#endif
