/* The descriptor reserve. One number, set once before the workers start. */
#include "zt/net/fd_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

/* Within this many numbers of the limit a probe is worth its two system calls. */
#define GUARD_PROBE_NEAR 512

static atomic_int guard_max = INT_MAX;

void zt_fd_guard_set(unsigned reserved)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur == RLIM_INFINITY || r.rlim_cur > INT_MAX) {
        guard_max = INT_MAX;
        return;
    }
    /* A limit too small for the reserve still leaves the data path half of it. */
    int limit = (int)r.rlim_cur;
    guard_max = limit > 2 * (int)reserved ? limit - (int)reserved : limit / 2;
}

bool zt_fd_guard_allows(int fd)
{
    return fd < atomic_load_explicit(&guard_max, memory_order_relaxed);
}

bool zt_fd_guard_room(int last)
{
    int max = atomic_load_explicit(&guard_max, memory_order_relaxed);
    if (max == INT_MAX || last < max - GUARD_PROBE_NEAR)
        return true;
    int fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return errno != EMFILE && errno != ENFILE;
    close(fd);
    return fd < max;
}
