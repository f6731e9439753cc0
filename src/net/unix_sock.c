/* Listening unix sockets with a file.
 *
 * Invariants: the mode is set on the socket before bind gives it a name, so that no moment exists in which others may connect; nothing
 * here waits, also for a peer whose backlog is full. */
#include "zt/net/unix_sock.h"
#include "zt/base/str.h"
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_MODE 0600

static bool address_of(const char *path, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    return zt_fmt(out->sun_path, sizeof out->sun_path, "%s", path);
}

static int open_socket(int type)
{
    return socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

bool zt_unix_is_served(const char *path, int type)
{
    struct sockaddr_un sa;
    if (!address_of(path, &sa))
        return false;
    int fd = open_socket(type);
    /* EAGAIN: its backlog is full. EPROTOTYPE: somebody listens, for another kind of socket. */
    bool served = fd >= 0 && (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0 || errno == EAGAIN || errno == EPROTOTYPE);
    if (fd >= 0)
        close(fd);
    return served;
}

static enum zt_err clear_path(const char *path, int type, struct zt_error *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return ZT_OK; /* bind says what else is wrong */
    if (!S_ISSOCK(st.st_mode))
        return zt_error_set(err, ZT_EXISTS, "%s is there and is not a socket: remove it, or choose another path", path);
    if (zt_unix_is_served(path, type))
        return zt_error_set(err, ZT_EXISTS, "%s is served by another process: stop that one, or choose another path", path);
    if (unlink(path) != 0)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot remove %s", path);
    return ZT_OK;
}

enum zt_err zt_unix_listen(const char *path, int type, int backlog, int *fd, struct zt_unix_file *file, struct zt_error *err)
{
    struct sockaddr_un sa;
    struct stat st;
    if (!address_of(path, &sa))
        return zt_error_set(err, ZT_INVALID, "the path of a socket has at most %d bytes: %s", ZT_UNIX_PATH_MAX - 1, path);
    enum zt_err e = clear_path(path, type, err);
    if (e != ZT_OK)
        return e;
    int s = open_socket(type);
    if (s >= 0 && fchmod(s, SOCKET_MODE) == 0 && bind(s, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(s, backlog) == 0 &&
        stat(path, &st) == 0) {
        *file = (struct zt_unix_file){st.st_dev, st.st_ino};
        *fd = s;
        return ZT_OK;
    }
    int why = errno;
    if (s >= 0)
        close(s);
    zt_error_set_errno(err, ZT_IO, why, "cannot listen at %s", path);
    errno = why;
    return ZT_IO;
}

void zt_unix_unlink(const char *path, const struct zt_unix_file *file)
{
    struct stat st;
    if (file->ino != 0 && lstat(path, &st) == 0 && st.st_dev == file->dev && st.st_ino == file->ino)
        unlink(path);
}
