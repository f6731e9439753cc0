/* Network namespaces by descriptor (spec/inpod §2.2). A zt_netns is ref-counted: whoever may still open sockets in it holds one.
 * Membership is per thread: enter, socket(), leave, nothing between; a failure to return home aborts the process. */
#ifndef ZT_NET_NETNS_H
#define ZT_NET_NETNS_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <sys/types.h>

struct zt_netns;

/* Takes fd (on failure too: it is closed). The descriptor need not be a network namespace: that shows when it is entered. Returns owned. */
struct zt_netns *zt_netns_new(int fd);
/* The namespace of the calling thread. Sockets made through it need no setns. Errors: ZT_IO. */
enum zt_err zt_netns_own(struct zt_netns **out, struct zt_error *err);
struct zt_netns *zt_netns_ref(struct zt_netns *ns); /* Thread: any */
void zt_netns_unref(struct zt_netns *ns);           /* Thread: any; NULL is legal */
int zt_netns_fd(const struct zt_netns *ns);         /* borrowed */
/* The same namespace: equal st_dev and st_ino. */
bool zt_netns_same(const struct zt_netns *a, const struct zt_netns *b);
dev_t zt_netns_dev(const struct zt_netns *ns);
ino_t zt_netns_ino(const struct zt_netns *ns);

/* socket(domain, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol) inside ns. Returns a descriptor >= 0 or -errno. Thread: any. */
int zt_netns_socket(struct zt_netns *ns, int domain, int type, int protocol);
/* Runs fn(arg) inside ns on this thread; fn must not start threads or block. Returns fn's value or -errno. */
int zt_netns_run(struct zt_netns *ns, int (*fn)(void *arg), void *arg);
/* The start-up probe of spec/inpod §2.1: setns to the current namespace and SO_MARK must work. Errors name the capability. */
enum zt_err zt_netns_probe(unsigned packet_mark, struct zt_error *err);

#endif
