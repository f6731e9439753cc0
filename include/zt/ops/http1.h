/* A small HTTP/1 server on a zt_loop, for operators, probes and scrapers (spec/interfaces §3, "Common properties").
 * libmicrohttpd parses and writes; we accept (so that a full descriptor table pauses the listener instead of spinning), bound
 * the head's time and size, match paths, and lend the library's epoll descriptor to the loop: no thread, no idle wake-up.
 *
 * Thread: owner loop; new, route and listen may run on another thread before start. */
#ifndef ZT_OPS_HTTP1_H
#define ZT_OPS_HTTP1_H

#include "zt/base/str.h"
#include "zt/loop/loop.h"
#include <sys/types.h>

#define ZT_HTTP1_CONNS_MAX 256          /* per server; more are accepted and closed */
#define ZT_HTTP1_HEAD_BYTES_MAX 8192    /* a larger request head is answered 431 */
#define ZT_HTTP1_BODY_BYTES_MAX 65536   /* request bodies are thrown away; a longer one ends the connection */
#define ZT_HTTP1_HEAD_TIMEOUT_MS 2000   /* to a complete head, idle keep-alive time included */
#define ZT_HTTP1_STALL_TIMEOUT_MS 30000 /* a client that takes nothing of its answer */
#define ZT_HTTP1_LISTENERS_MAX 4
#define ZT_HTTP1_ROUTES_MAX 16

enum zt_http1_method { /* bits */
    ZT_HTTP1_GET = 1,
    ZT_HTTP1_HEAD = 2,
    ZT_HTTP1_POST = 4,
    ZT_HTTP1_OTHER = 8,
    ZT_HTTP1_ANY = 15,
};

struct zt_http1;
struct zt_http1_request; /* lives until it is answered */

/* A handler answers with one of the zt_http1_reply functions, at once or later (same thread). One that returns without an
 * answer owes it: nothing else frees the request. Borrows r until the answer. */
typedef void (*zt_http1_fn)(void *arg, struct zt_http1_request *r);
/* May this accepted socket be served? For peer credentials. */
typedef bool (*zt_http1_admit_fn)(void *arg, int fd);

/* component: for logs ("admin"); borrowed (forever). admit may be NULL. Returns owned. Errors: ZT_IO. */
enum zt_err zt_http1_new(struct zt_loop *l, const char *component, zt_http1_admit_fn admit, void *admit_arg,
                         struct zt_http1 **out, struct zt_error *err);
/* methods: bits; other methods get 405 with an empty body. path is matched exactly; borrowed (forever). */
void zt_http1_route(struct zt_http1 *s, const char *path, unsigned methods, zt_http1_fn fn, void *arg);
/* Asked before a handler runs: NULL lets the request pass, a text refuses it with 403 and this body. */
typedef const char *(*zt_http1_guard_fn)(const struct zt_http1_request *r);
void zt_http1_guard(struct zt_http1 *s, zt_http1_guard_fn guard);
/* Takes fd, a listening socket. address: for the log; borrowed (during the call). */
void zt_http1_listen(struct zt_http1 *s, int fd, const char *address);
/* Begins to accept; logs one "listener established" per listener. */
void zt_http1_start(struct zt_http1 *s);
/* Closes the listeners at once and idle connections soon; requests in progress finish. done (may be NULL) runs once, from the
 * loop, when no connection is left. Idempotent: a second call's done is ignored. */
void zt_http1_drain(struct zt_http1 *s, void (*done)(void *arg), void *arg);
/* Cuts everything. Requests not yet answered may be answered still; that frees them and reaches nobody. NULL is legal. */
void zt_http1_free(struct zt_http1 *s);
unsigned zt_http1_n_conns(const struct zt_http1 *s);

/* ---- a request; texts are borrowed until the answer ---- */

unsigned zt_http1_request_method(const struct zt_http1_request *r); /* one bit */
struct zt_loop *zt_http1_request_loop(const struct zt_http1_request *r); /* where it must be answered; borrowed (forever) */
/* The value of a query parameter, form-decoded; of repeated ones the last; NULL when absent. */
const char *zt_http1_request_query(const struct zt_http1_request *r, const char *key);
/* All values of a header joined by commas go to out; false when there is none. */
bool zt_http1_request_header(const struct zt_http1_request *r, const char *name, struct zt_str *out);

/* ---- the answer: exactly one of these ends the request ---- */

/* Adds a header to the answer that follows; at most 4, texts copied. */
void zt_http1_reply_header(struct zt_http1_request *r, const char *name, const char *value);
/* Takes body (left empty). content_type NULL: none. */
void zt_http1_reply(struct zt_http1_request *r, unsigned status, const char *content_type, struct zt_str *body);
/* The same; the body's memory is overwritten before it is freed. */
void zt_http1_reply_secret(struct zt_http1_request *r, unsigned status, const char *content_type, struct zt_str *body);
void zt_http1_reply_text(struct zt_http1_request *r, unsigned status, const char *content_type, const char *body);
/* The answer in pieces, asked for as the client takes them: next appends to piece and says whether more follows. done runs
 * exactly once, also when the client has gone; next does not run afterwards. Both run on the loop. */
typedef bool (*zt_http1_next_fn)(void *arg, struct zt_str *piece);
void zt_http1_reply_stream(struct zt_http1_request *r, unsigned status, const char *content_type,
                           zt_http1_next_fn next, void (*done)(void *arg), void *arg);
#define ZT_HTTP1_PIECE_BYTES_MAX (256u * 1024 * 1024) /* what one call of next may append */

#endif
