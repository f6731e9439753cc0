/* A certificate, its key and its roots into a directory. Every file is written under another name, synced and renamed, so that a reader
 * sees the old content or the new one. The key comes first: a program that watches the chain finds the key that belongs to it. */
#include "ctl/issue.h"
#include "zt/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES_MAX 4096

static int write_all(int fd, const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t n = write(fd, text, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        text += n;
        left -= (size_t)n;
    }
    return fsync(fd) == 0 ? 0 : -errno;
}

/* 0 or -errno. The temporary name is ours alone: O_EXCL refuses what somebody else put there. */
static int write_file(int dir, const char *name, const char *text)
{
    char temporary[64];
    snprintf(temporary, sizeof temporary, ".%s.%d", name, (int)getpid());
    int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int rc = write_all(fd, text);
    close(fd);
    if (rc == 0 && renameat(dir, temporary, dir, name) != 0)
        rc = -errno;
    if (rc != 0)
        unlinkat(dir, temporary, 0);
    return rc;
}

enum zt_err zt_ctl_write_certificate(const json_t *reply, const char *dir, struct zt_error *err)
{
    static const struct {
        const char *key, *file;
    } parts[] = {{"key", "key.pem"}, {"chain", "cert-chain.pem"}, {"roots", "root-cert.pem"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!json_string_value(json_object_get(reply, parts[i].key)))
            return zt_error_set(err, ZT_INVALID, "the daemon's answer lacks \"%s\"", parts[i].key);
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot make the directory %s", dir);
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot open the directory %s", dir);
    int rc = 0;
    size_t i = 0;
    for (; i < sizeof parts / sizeof *parts && rc == 0; i++)
        rc = write_file(dir_fd, parts[i].file, json_string_value(json_object_get(reply, parts[i].key)));
    if (rc == 0)
        fsync(dir_fd);
    close(dir_fd);
    return rc == 0 ? ZT_OK : zt_error_set_errno(err, ZT_IO, -rc, "cannot write %s/%s", dir, parts[i - 1].file);
}
