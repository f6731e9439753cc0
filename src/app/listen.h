/* The addresses of the operators' servers (spec/interfaces §3). Private to app. Thread: control. */
#ifndef ZT_APP_LISTEN_H
#define ZT_APP_LISTEN_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/ops/http1.h"

/* A socket listening on the wildcard address: [::] for both families when ipv6 and the kernel has it, else 0.0.0.0. Returns it owned in
 * *fd; address: its text. Errors: "failed to bind to address <addr>: <os>". */
enum zt_err zt_listen_wildcard(bool ipv6, uint16_t port, int *fd, char address[static ZT_ADDR_TEXT_MAX],
                               struct zt_error *err);
/* Adds 127.0.0.1 and, with ipv6 (IPV6_ENABLED and loopback has it), ::1 to a server that has not started. */
enum zt_err zt_listen_loopback(struct zt_http1 *s, bool ipv6, uint16_t port, struct zt_error *err);

#endif
