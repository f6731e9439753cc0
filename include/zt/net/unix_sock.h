/* Listening unix sockets with a file: ZDS and the control sockets. The file is 0600 from its first moment; one that nobody serves any
 * more (a killed process leaves it) is replaced, one that is served and a file of another kind are left alone. Thread: any. */
#ifndef ZT_NET_UNIX_SOCK_H
#define ZT_NET_UNIX_SOCK_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <sys/stat.h>

#define ZT_UNIX_PATH_MAX 108 /* bytes, NUL included: the kernel's */

/* Which file is ours; a plain value. All zero: none. */
struct zt_unix_file {
    dev_t dev;
    ino_t ino;
};

/* type: SOCK_STREAM or SOCK_SEQPACKET. *fd is owned, close-on-exec, non-blocking. path is borrowed (during the call). Errors: ZT_EXISTS
 * (served by somebody, or no socket), ZT_INVALID (path too long), ZT_IO (errno tells why). */
enum zt_err zt_unix_listen(const char *path, int type, int backlog, int *fd, struct zt_unix_file *file, struct zt_error *err);
/* Does anybody listen there? Connects for a moment, without waiting. path is borrowed (during the call). */
bool zt_unix_is_served(const char *path, int type);
/* Removes path if file is what it names; a successor's stays. path is borrowed (during the call). */
void zt_unix_unlink(const char *path, const struct zt_unix_file *file);

#endif
