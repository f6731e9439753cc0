/* See tls_keylog.h. A line is one write to a descriptor in append mode: lines of several threads do not mix. */
#include "zt/net/tls_keylog.h"
#include "net/tls_impl.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct zt_tls_keylog {
    int fd;
};

enum zt_err zt_tls_keylog_open(const char *path, struct zt_tls_keylog **out, struct zt_error *err)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "SSLKEYLOGFILE: cannot open %s", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (st.st_mode & 077) || st.st_uid != geteuid()) {
        close(fd);
        return zt_error_set(err, ZT_IO, "SSLKEYLOGFILE: %s must be a file of our own that nobody else may read (mode 0600)", path);
    }
    *out = zt_new(struct zt_tls_keylog);
    (*out)->fd = fd;
    return ZT_OK;
}

void zt_tls_keylog_free(struct zt_tls_keylog *k)
{
    if (!k)
        return;
    close(k->fd);
    zt_free(k);
}

void zt_tls_keylog_write(struct zt_tls_keylog *k, const char *line)
{
    struct iovec parts[] = {{(void *)(uintptr_t)line, strlen(line)}, {(void *)(uintptr_t)"\n", 1}};
    if (k && writev(k->fd, parts, 2) < 0)
        return; /* a full disk: debugging is no reason to fail a handshake */
}
