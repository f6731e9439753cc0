/* The handlers behind the control socket. Private to app. Thread: control. */
#ifndef ZT_APP_CTL_IMPL_H
#define ZT_APP_CTL_IMPL_H

#include "zt/app/ctl_server.h"

#define ZT_CTL_REPLY_BYTES_MAX (64u * 1024 * 1024)

/* zt_http1 handlers; arg: struct zt_ctl_sources. */
void zt_ctl_on_status(void *arg, struct zt_http1_request *r);
void zt_ctl_on_explain(void *arg, struct zt_http1_request *r);
void zt_ctl_on_issue(void *arg, struct zt_http1_request *r);

/* {"error": text} */
__attribute__((format(printf, 3, 4))) void zt_ctl_reply_error(struct zt_http1_request *r, unsigned status,
                                                              const char *fmt, ...);

#endif
