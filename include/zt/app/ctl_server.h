/* The daemon's end of ztctl: HTTP/1 over a unix socket, for root and the daemon's own user only. It lives until exit, also while draining.
 *
 *   GET  /v1/status                        readiness, pods, certificates, counts
 *   GET  /v1/explain?src=NS/NAME&dst=A:P   what would happen to this connection (A: address or service hostname)
 *   GET  /v1/dns?src=NS/NAME&name=HOST    the DNS proxy's cache and upstreams; with both, what the pod would be told about the name
 *   GET  /v1/connections?pod=&peer=&sort=bytes|age&limit=   open connections; pod: NS/NAME or NAME, peer: part of an address or identity
 *   GET  /v1/policies                      every policy, as in the dump
 *   GET  /v1/denials?n=                    the last refused connections, newest first, and what refused them
 *   GET  /v1/trace?pod=NS/NAME             its recorded events; POST starts, POST with stop= ends it
 *   /logging, /config_dump                 as the admin server (spec/interfaces §4)
 *   POST /v1/ca/issue?id=SPIFFE-ID         a certificate of the local CA: {"chain", "key", "roots"}, PEM
 * Errors are JSON too: {"error": "..."} with status 400, 404, 500 or 503. Thread: control. */
#ifndef ZT_APP_CTL_SERVER_H
#define ZT_APP_CTL_SERVER_H

#include "zt/app/dump.h"
#include "zt/ops/ready.h"
#include "zt/secrets/ca.h"

struct zt_ctl_server;

struct zt_ctl_sources { /* all borrowed until the server is drained */
    struct zt_dump_sources state;
    struct zt_ready *ready;
    struct zt_ca *ca; /* NULL: no certificates to issue */
    uint64_t start_ms;
    const bool *draining;
};

/* Binds path (0600). A socket file that nobody serves is replaced; one of another daemon that lives is moved to "<path>.prev", where its
 * owner can still be reached (an upgrade runs two daemons side by side). Errors: ZT_IO with what to do. */
enum zt_err zt_ctl_server_new(struct zt_loop *l, const char *path, const struct zt_ctl_sources *sources,
                              struct zt_ctl_server **out, struct zt_error *err);
/* The read-only pages that the admin server's home page asks: /v1/status, /v1/connections, /v1/denials. Borrows sources until that server
 * is drained. */
void zt_ctl_pages(struct zt_http1 *admin, const struct zt_ctl_sources *sources);
/* done as zt_http1_drain; what is in progress finishes. */
void zt_ctl_server_drain(struct zt_ctl_server *s, void (*done)(void *arg), void *arg);
/* Removes the socket file, if it is still ours. Also before an immediate exit. NULL is legal. */
void zt_ctl_server_unlink(struct zt_ctl_server *s);
void zt_ctl_server_free(struct zt_ctl_server *s); /* unlinks; NULL is legal */

#endif
