/* Network namespaces by descriptor.
 *
 * Invariants: every thread of the process lives in one namespace, home, and is there whenever it is
 * not inside enter/leave below; between the two nothing runs but the one call that had to. A thread
 * that cannot go home would tunnel one pod's bytes with another pod's sockets, so that aborts. The
 * descriptor of home is opened once and kept for the life of the process: going home must work
 * without free descriptors. */
#include "zt/net/netns.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Per thread: /proc/self would show the main thread's. */
#define OWN_PATH "/proc/thread-self/ns/net"

struct zt_netns {
    atomic_uint refs;
    int fd;
    bool home; /* made by zt_netns_own: no setns needed */
    dev_t dev;
    ino_t ino;
};

static atomic_int home_fd_kept = -1;

/* The kept descriptor, or -errno. */
static int home_fd(void)
{
    int fd = atomic_load(&home_fd_kept);
    if (fd >= 0)
        return fd;
    fd = open(OWN_PATH, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int none = -1;
    if (!atomic_compare_exchange_strong(&home_fd_kept, &none, fd)) {
        close(fd); /* another thread was first */
        fd = none;
    }
    return fd;
}

struct zt_netns *zt_netns_new(int fd)
{
    struct zt_netns *ns = zt_new(struct zt_netns);
    struct stat st;
    atomic_init(&ns->refs, 1);
    ns->fd = fd;
    if (fstat(fd, &st) == 0) {
        ns->dev = st.st_dev;
        ns->ino = st.st_ino;
    }
    return ns;
}

enum zt_err zt_netns_own(struct zt_netns **out, struct zt_error *err)
{
    int fd = home_fd();
    if (fd >= 0) {
        fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            fd = -errno;
    }
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, -fd, "failed to open %s", OWN_PATH);
    *out = zt_netns_new(fd);
    (*out)->home = true;
    return ZT_OK;
}

struct zt_netns *zt_netns_ref(struct zt_netns *ns)
{
    atomic_fetch_add_explicit(&ns->refs, 1, memory_order_relaxed);
    return ns;
}

void zt_netns_unref(struct zt_netns *ns)
{
    if (!ns || atomic_fetch_sub_explicit(&ns->refs, 1, memory_order_acq_rel) != 1)
        return;
    close(ns->fd);
    zt_free(ns);
}

int zt_netns_fd(const struct zt_netns *ns)
{
    return ns->fd;
}

bool zt_netns_same(const struct zt_netns *a, const struct zt_netns *b)
{
    return a->dev == b->dev && a->ino == b->ino;
}

dev_t zt_netns_dev(const struct zt_netns *ns)
{
    return ns->dev;
}

ino_t zt_netns_ino(const struct zt_netns *ns)
{
    return ns->ino;
}

static int enter(const struct zt_netns *ns)
{
    if (ns->home)
        return 0;
    int home = home_fd(); /* known before leaving it */
    if (home < 0)
        return home;
    return setns(ns->fd, CLONE_NEWNET) == 0 ? 0 : -errno;
}

static void leave(const struct zt_netns *ns)
{
    if (!ns->home)
        ZT_ASSERT(setns(atomic_load(&home_fd_kept), CLONE_NEWNET) == 0);
}

int zt_netns_socket(struct zt_netns *ns, int domain, int type, int protocol)
{
    int rc = enter(ns);
    if (rc < 0)
        return rc;
    int fd = socket(domain, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
    rc = fd >= 0 ? fd : -errno;
    leave(ns);
    return rc;
}

int zt_netns_run(struct zt_netns *ns, int (*fn)(void *arg), void *arg)
{
    int rc = enter(ns);
    if (rc < 0)
        return rc;
    rc = fn(arg);
    leave(ns);
    return rc;
}

enum zt_err zt_netns_probe(unsigned packet_mark, struct zt_error *err)
{
    int home = home_fd();
    if (home < 0)
        return zt_error_set_errno(err, ZT_IO, -home, "failed to open %s", OWN_PATH);
    if (setns(home, CLONE_NEWNET) != 0)
        return zt_error_set_errno(err, ZT_IO, errno,
                                  "failed to set netns (CAP_SYS_ADMIN is needed)");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "failed to make a socket");
    int rc = setsockopt(fd, SOL_SOCKET, SO_MARK, &packet_mark, sizeof packet_mark) == 0 ? 0 : errno;
    close(fd);
    if (rc != 0)
        return zt_error_set_errno(
            err, ZT_IO, rc, "failed to set a packet mark (CAP_NET_RAW or CAP_NET_ADMIN is needed)");
    return ZT_OK;
}
