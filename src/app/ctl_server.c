/* The control socket: its file, its peers, its routes.
 *
 * The file is bound under a name of its own and renamed into place, so that there is always either the old socket or the new one. We
 * remember its inode: at exit we remove only what is ours, wherever a later daemon may have moved it. */
#include "app/ctl_impl.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/net/unix_sock.h"
#include "zt/ops/admin.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 16

struct zt_ctl_server {
    struct zt_http1 *http;
    struct zt_ctl_sources sources;
    char path[ZT_UNIX_PATH_MAX];
    struct zt_unix_file file;
};

/* ---- who may speak ---- */

static bool admit(void *arg, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
        return false;
    if (peer.uid == 0 || peer.uid == geteuid())
        return true;
    zt_log_warn("ctl", "refused a control connection of uid %u", (unsigned)peer.uid);
    return false;
}

/* ---- the file ---- */

static bool path_with(const char *path, const char *suffix, char out[static ZT_UNIX_PATH_MAX])
{
    return zt_fmt(out, ZT_UNIX_PATH_MAX, "%s%s", path, suffix);
}

/* Whatever is at path: a socket of a daemon that lives keeps a name, anything else that is a socket goes; a file that is none is an error. */
static enum zt_err clear_path(const char *path, struct zt_error *err)
{
    struct stat st;
    char previous[ZT_UNIX_PATH_MAX];
    if (lstat(path, &st) != 0)
        return ZT_OK;
    if (!S_ISSOCK(st.st_mode))
        return zt_error_set(err, ZT_IO, "%s is not a socket; remove it or set ZTUNNELD_CTL_SOCKET", path);
    if (!zt_unix_is_served(path, SOCK_STREAM) || !path_with(path, ".prev", previous))
        return ZT_OK; /* the rename below replaces it */
    if (rename(path, previous) != 0)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot move %s aside", path);
    zt_log_info("ctl", "another daemon serves %s; it stays reachable at %s", path, previous);
    return ZT_OK;
}

static enum zt_err open_socket(struct zt_ctl_server *s, const char *path, int *fd, struct zt_error *err)
{
    char temporary[ZT_UNIX_PATH_MAX], suffix[32];
    snprintf(suffix, sizeof suffix, ".%d", (int)getpid());
    if (!path_with(path, suffix, temporary) || !zt_fmt(s->path, sizeof s->path, "%s", path))
        return zt_error_set(err, ZT_IO, "the path %s is too long for a socket; set ZTUNNELD_CTL_SOCKET", path);
    enum zt_err e = clear_path(path, err);
    if (e != ZT_OK)
        return e;
    unlink(temporary); /* of a process that had our id */
    if (zt_unix_listen(temporary, SOCK_STREAM, BACKLOG, fd, &s->file, NULL) != ZT_OK)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot make %s; set ZTUNNELD_CTL_SOCKET to a path in a directory that exists",
                                  path);
    if (rename(temporary, path) == 0)
        return ZT_OK;
    e = zt_error_set_errno(err, ZT_IO, errno, "cannot put %s in place", path);
    unlink(temporary);
    close(*fd);
    return e;
}

void zt_ctl_server_unlink(struct zt_ctl_server *s)
{
    char previous[ZT_UNIX_PATH_MAX];
    if (!s)
        return;
    zt_unix_unlink(s->path, &s->file);
    if (path_with(s->path, ".prev", previous))
        zt_unix_unlink(previous, &s->file);
}

/* ---- life ---- */

void zt_ctl_reply_error(struct zt_http1_request *r, unsigned status, const char *fmt, ...)
{
    struct zt_str body;
    struct zt_json j;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, false);
    zt_json_object(&j);
    zt_json_key_str(&j, "error", text);
    zt_json_object_end(&j);
    zt_http1_reply(r, status, "application/json", &body);
    zt_str_fini(&body);
}

bool zt_ctl_number(struct zt_http1_request *r, const char *key, unsigned long otherwise, unsigned long most, unsigned long *out)
{
    const char *text = zt_http1_request_query(r, key);
    char *end;
    *out = otherwise;
    if (!text)
        return true;
    errno = 0;
    *out = strtoul(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && errno == 0 && *out <= most)
        return true;
    zt_ctl_reply_error(r, 400, "%s is a number up to %lu, not %s", key, most, text);
    return false;
}

void zt_ctl_write_steps(struct zt_json *j, struct zt_str *trace)
{
    zt_json_key(j, "steps");
    zt_json_array(j);
    for (const char *line = zt_str_cstr(trace); *line;) {
        size_t len = strcspn(line, "\n");
        if (len)
            zt_json_strn(j, line, len);
        line += len;
        line += *line == '\n';
    }
    zt_json_array_end(j);
}

void zt_ctl_reply_json(struct zt_http1_request *r, struct zt_str *body)
{
    if (body->overflow)
        zt_ctl_reply_error(r, 500, "the answer is too large");
    else
        zt_http1_reply(r, 200, "application/json", body);
    zt_str_fini(body);
}

void zt_ctl_pages(struct zt_http1 *admin, const struct zt_ctl_sources *sources)
{
    void *arg = (void *)(uintptr_t)sources;
    zt_http1_route(admin, "/v1/status", ZT_HTTP1_GET, zt_ctl_on_status, arg);
    zt_http1_route(admin, "/v1/connections", ZT_HTTP1_GET, zt_ctl_on_connections, arg);
    zt_http1_route(admin, "/v1/denials", ZT_HTTP1_GET, zt_ctl_on_denials, arg);
}

enum zt_err zt_ctl_server_new(struct zt_loop *l, const char *path, const struct zt_ctl_sources *sources,
                              struct zt_ctl_server **out, struct zt_error *err)
{
    struct zt_ctl_server *s = zt_new(struct zt_ctl_server);
    int fd;
    s->sources = *sources;
    enum zt_err e = zt_http1_new(l, "ctl", admit, NULL, &s->http, err);
    if (e == ZT_OK)
        e = open_socket(s, path, &fd, err);
    if (e != ZT_OK) {
        zt_http1_free(s->http);
        zt_free(s);
        return e;
    }
    zt_http1_route(s->http, "/v1/status", ZT_HTTP1_GET, zt_ctl_on_status, &s->sources);
    zt_http1_route(s->http, "/v1/explain", ZT_HTTP1_GET, zt_ctl_on_explain, &s->sources);
    zt_http1_route(s->http, "/v1/dns", ZT_HTTP1_GET, zt_ctl_on_dns, &s->sources);
    zt_http1_route(s->http, "/v1/connections", ZT_HTTP1_GET, zt_ctl_on_connections, &s->sources);
    zt_http1_route(s->http, "/v1/policies", ZT_HTTP1_GET, zt_ctl_on_policies, &s->sources);
    zt_http1_route(s->http, "/v1/denials", ZT_HTTP1_GET, zt_ctl_on_denials, &s->sources);
    zt_http1_route(s->http, "/v1/trace", ZT_HTTP1_GET | ZT_HTTP1_POST, zt_ctl_on_trace, &s->sources);
    zt_admin_logging_route(s->http);
    zt_dump_route(s->http, &s->sources.state);
    zt_http1_route(s->http, "/v1/ca/issue", ZT_HTTP1_POST, zt_ctl_on_issue, &s->sources);
    zt_http1_listen(s->http, fd, path);
    zt_http1_start(s->http);
    *out = s;
    return ZT_OK;
}

void zt_ctl_server_drain(struct zt_ctl_server *s, void (*done)(void *arg), void *arg)
{
    zt_ctl_server_unlink(s);
    zt_http1_drain(s->http, done, arg);
}

void zt_ctl_server_free(struct zt_ctl_server *s)
{
    if (!s)
        return;
    zt_ctl_server_unlink(s);
    zt_http1_free(s->http);
    zt_free(s);
}
