/* A zt_http1 server on a loop thread of its own, on loopback, and a blocking client that talks to it in raw bytes. */
#ifndef ZT_TESTS_HTTP_FIXTURE_H
#define ZT_TESTS_HTTP_FIXTURE_H

#include "zt/ops/http1.h"

struct http_fixture {
    struct zt_loop *loop;
    struct zt_http1 *server;
    uint16_t port;
};

/* Runs fn(arg) on the loop's thread and waits for it. */
void http_on_loop(struct zt_loop *l, void (*fn)(void *arg), void *arg);
/* routes(server, arg) adds routes before the server starts. */
void http_fixture_start(struct http_fixture *f, void (*routes)(struct zt_http1 *s, void *arg), void *arg);
void http_fixture_stop(struct http_fixture *f);
/* A listening socket on 127.0.0.1 and its port. */
int http_listen_loopback(uint16_t *port);
/* A connected, blocking socket with a receive timeout of 10 s. */
int http_connect(uint16_t port);
void http_send(int fd, const char *text);
/* Reads until the peer ends or timeout_ms pass; out is NUL-terminated. Returns the length; *closed: the peer ended. */
size_t http_read_all(int fd, char *out, size_t size, int timeout_ms, bool *closed);
/* Reads one answer: head, and as much body as content-length says (chunked: to the last chunk). Returns the status, 0 on none. */
int http_read_reply(int fd, char *out, size_t size);
/* A fresh connection, "<method> <target> HTTP/1.1", one answer. Returns the status. */
int http_ask(uint16_t port, const char *method, const char *target, const char *extra_headers, char *out, size_t size);
/* Takes the framing of a chunked body away, in place; other replies stay. Returns the new length. */
size_t http_dechunk(char *reply, size_t len);
/* The part after the head. */
const char *http_body(const char *reply);

#endif
