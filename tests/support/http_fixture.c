/* See http_fixture.h. Plain blocking sockets on the client's side: what is under test is the server. */
#include "support/http_fixture.h"
#include "zt/base/mem.h"
#include "zt/net/sock.h"
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

struct call {
    struct zt_msg msg;
    void (*fn)(void *arg);
    void *arg;
    sem_t done;
};

static void on_call(struct zt_msg *m)
{
    struct call *c = zt_container_of(m, struct call, msg);
    c->fn(c->arg);
    sem_post(&c->done);
}

void http_on_loop(struct zt_loop *l, void (*fn)(void *arg), void *arg)
{
    struct call c = {.msg.run = on_call, .fn = fn, .arg = arg};
    sem_init(&c.done, 0, 0);
    zt_loop_post(l, &c.msg);
    while (sem_wait(&c.done) != 0)
        ;
    sem_destroy(&c.done);
}

int http_listen_loopback(uint16_t *port)
{
    struct zt_addr a = {.ip = zt_ip_loopback(ZT_IPV4)};
    struct zt_error err = ZT_ERROR_INIT;
    int fd;
    if (zt_sock_listen_addr(&a, &fd, &err) != ZT_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    *port = zt_sock_local(fd).port;
    return fd;
}

static void start_server(void *arg)
{
    zt_http1_start(arg);
}

static void free_server(void *arg)
{
    zt_http1_free(arg);
}

void http_fixture_start(struct http_fixture *f, void (*routes)(struct zt_http1 *s, void *arg), void *arg)
{
    struct zt_error err = ZT_ERROR_INIT;
    f->loop = zt_loop_new("http");
    if (zt_http1_new(f->loop, "test", NULL, NULL, &f->server, &err) != ZT_OK)
        abort();
    routes(f->server, arg);
    zt_http1_listen(f->server, http_listen_loopback(&f->port), "127.0.0.1:0");
    if (zt_loop_start(f->loop, &err) != ZT_OK)
        abort();
    http_on_loop(f->loop, start_server, f->server);
}

void http_fixture_stop(struct http_fixture *f)
{
    http_on_loop(f->loop, free_server, f->server);
    zt_loop_stop(f->loop);
    zt_loop_join(f->loop);
    zt_loop_free(f->loop);
}

int http_connect(uint16_t port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval timeout = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

void http_send(int fd, const char *text)
{
    size_t len = strlen(text);
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the server may have closed; the answer tells */
        text += n;
        len -= (size_t)n;
    }
}

size_t http_read_all(int fd, char *out, size_t size, int timeout_ms, bool *closed)
{
    size_t len = 0;
    *closed = false;
    while (len + 1 < size) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, timeout_ms) <= 0)
            break;
        ssize_t n = recv(fd, out + len, size - 1 - len, 0);
        if (n <= 0) {
            *closed = true;
            break;
        }
        len += (size_t)n;
    }
    out[len] = '\0';
    return len;
}

const char *http_body(const char *reply)
{
    const char *end = strstr(reply, "\r\n\r\n");
    return end ? end + 4 : "";
}

size_t http_dechunk(char *reply, size_t len)
{
    char *from = strstr(reply, "\r\n\r\n"), *chunked = strcasestr(reply, "\r\ntransfer-encoding: chunked"), *to;
    if (!from || !chunked || chunked > from)
        return len;
    from = to = from + 4;
    for (size_t n; from < reply + len && (n = strtoul(from, &from, 16)) > 0; from += n + 2) {
        from += 2; /* CR LF behind the size, and behind the chunk */
        memmove(to, from, n);
        to += n;
    }
    *to = '\0';
    return (size_t)(to - reply);
}

static bool is_whole(const char *reply, size_t len)
{
    const char *end = strstr(reply, "\r\n\r\n");
    if (!end)
        return false;
    const char *length = strcasestr(reply, "\r\ncontent-length:");
    if (length && length < end)
        return len >= (size_t)(end + 4 - reply) + strtoul(length + 17, NULL, 10);
    const char *chunked = strcasestr(reply, "\r\ntransfer-encoding: chunked");
    if (chunked && chunked < end)
        return len >= 5 && memcmp(reply + len - 5, "0\r\n\r\n", 5) == 0;
    return false;
}

int http_read_reply(int fd, char *out, size_t size)
{
    size_t len = 0;
    out[0] = '\0';
    while (len + 1 < size && !is_whole(out, len)) {
        ssize_t n = recv(fd, out + len, size - 1 - len, 0);
        if (n <= 0)
            break;
        len += (size_t)n;
        out[len] = '\0';
    }
    return strncmp(out, "HTTP/1.", 7) == 0 ? (int)strtol(out + 9, NULL, 10) : 0;
}

int http_ask(uint16_t port, const char *method, const char *target, const char *extra_headers, char *out, size_t size)
{
    char request[4096];
    int fd = http_connect(port);
    if (fd < 0)
        return -1;
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n", method, target,
             extra_headers ? extra_headers : "");
    http_send(fd, request);
    bool closed;
    size_t len = http_read_all(fd, out, size, 10000, &closed);
    close(fd);
    return len && strncmp(out, "HTTP/1.", 7) == 0 ? (int)strtol(out + 9, NULL, 10) : 0;
}
