/* The operator's end of the control socket: one request, its answer copied to stdout and stderr. The protocol is in control.c. */
#include "agent_impl.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES 16384

static int dial(const char *path, struct zt_error *err)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (!zt_fmt(at.sun_path, sizeof at.sun_path, "%s", path)) {
        zt_error_set(err, ZT_INVALID, "%s: longer than %zu bytes", path, sizeof at.sun_path - 1);
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return fd;
    if (errno == EACCES || errno == EPERM)
        zt_error_set_errno(err, ZT_CONNECT, errno, "%s: only root and the agent's own user may ask", path);
    else
        zt_error_set_errno(err, ZT_CONNECT, errno, "%s: no agent answers; is \"ztcni run\" running, with the same --ctl?", path);
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool send_words(int fd, const char *const *words, unsigned n_words)
{
    char request[CONTROL_REQUEST_MAX];
    size_t len = 0;
    for (unsigned i = 0; i < n_words; i++) {
        size_t n = strlen(words[i]) + 1;
        if (len + n >= sizeof request)
            return false;
        memcpy(request + len, words[i], n);
        len += n;
    }
    return send(fd, request, len, MSG_NOSIGNAL) == (ssize_t)len && shutdown(fd, SHUT_WR) == 0;
}

/* True: this was the last line. */
static bool take_line(char *line, int *exit_code)
{
    line[strcspn(line, "\n")] = '\0';
    switch (line[0]) {
    case CONTROL_OUT:
        puts(line + 1);
        return false;
    case CONTROL_ERR:
        fprintf(stderr, "ztcni: %s\n", line + 1);
        return false;
    case CONTROL_EXIT:
        *exit_code = (int)strtol(line + 1, NULL, 10) & 0xff;
        return true;
    default:
        return false;
    }
}

enum zt_err zt_agent_call(const char *ctl_path, const char *const *words, unsigned n_words, int *exit_code, struct zt_error *err)
{
    char line[LINE_MAX_BYTES];
    bool ended = false;
    int fd = dial(ctl_path, err);
    if (fd < 0)
        return err->code;
    if (!send_words(fd, words, n_words)) {
        close(fd);
        return zt_error_set(err, ZT_IO, "%s: the request could not be sent", ctl_path);
    }
    FILE *in = fdopen(fd, "r");
    ZT_ASSERT(in);
    while (!ended && fgets(line, sizeof line, in))
        ended = take_line(line, exit_code);
    fclose(in);
    fflush(stdout);
    return ended ? ZT_OK : zt_error_set(err, ZT_IO, "%s: the agent ended the connection without an answer", ctl_path);
}
