/* The admin server's own pages, 15000 (spec/interfaces §4): the page at /, /logging, /quitquitquit and /debug/pprof.
 * Dumps are added by app with zt_http1_route: ops knows no state. Thread: owner loop. */
#ifndef ZT_OPS_ADMIN_H
#define ZT_OPS_ADMIN_H

#include "zt/ops/http1.h"

/* fn runs on the loop for POST /quitquitquit, before its answer is sent; it must not free the server. */
struct zt_admin_quit {
    void (*fn)(void *arg);
    void *arg;
};
/* /logging alone, for the control socket. */
void zt_admin_logging_route(struct zt_http1 *s);
/* Adds the pages, and refuses requests that a browser was made to send: a Host that is not loopback, a POST of another origin.
 * Borrows quit until the server is freed. */
void zt_admin_routes(struct zt_http1 *s, struct zt_admin_quit *quit);

#endif
