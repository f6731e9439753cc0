/* Preloaded into a daemon under test: a pause before a listening TCP socket is closed, so that connections gather in its queue after it
 * was emptied. With ZT_TEST_NO_HANDOVER nothing may be attached to a group of listeners either. */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAUSE_US 50000

int close(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");
    int listening = 0, saved = errno;
    socklen_t len = sizeof listening;
    struct sockaddr_storage sa = {0};
    socklen_t sa_len = sizeof sa;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening &&
        getsockname(fd, (struct sockaddr *)&sa, &sa_len) == 0 && sa.ss_family != AF_UNIX)
        usleep(PAUSE_US);
    errno = saved;
    return real(fd);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    int (*real)(int, int, int, const void *, socklen_t) =
        (int (*)(int, int, int, const void *, socklen_t))dlsym(RTLD_NEXT, "setsockopt");
    if (level == SOL_SOCKET && option == SO_ATTACH_REUSEPORT_EBPF && getenv("ZT_TEST_NO_HANDOVER")) {
        errno = EPERM;
        return -1;
    }
    return real(fd, level, option, value, len);
}
