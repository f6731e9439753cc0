/* The handlers behind the control socket. Private to app. Thread: control. */
#ifndef ZT_APP_CTL_IMPL_H
#define ZT_APP_CTL_IMPL_H

#include "zt/app/ctl_server.h"

#define ZT_CTL_REPLY_BYTES_MAX (64u * 1024 * 1024)

/* zt_http1 handlers; arg: struct zt_ctl_sources. */
void zt_ctl_on_status(void *arg, struct zt_http1_request *r);
void zt_ctl_on_explain(void *arg, struct zt_http1_request *r);
void zt_ctl_on_dns(void *arg, struct zt_http1_request *r);
void zt_ctl_on_connections(void *arg, struct zt_http1_request *r);
void zt_ctl_on_policies(void *arg, struct zt_http1_request *r);
void zt_ctl_on_denials(void *arg, struct zt_http1_request *r);
void zt_ctl_on_trace(void *arg, struct zt_http1_request *r);
void zt_ctl_on_issue(void *arg, struct zt_http1_request *r);

/* The workload of a pod of this node, as the data path finds it. Returns owned, or NULL. */
struct zt_workload *zt_ctl_local_workload(const struct zt_ctl_sources *sources, const char *ns, const char *name);
/* The number in a query parameter, or otherwise when it is absent. False, and answered, when it is no number up to most. */
bool zt_ctl_number(struct zt_http1_request *r, const char *key, unsigned long otherwise, unsigned long most, unsigned long *out);
/* A trace recorder's lines as the member "steps". */
void zt_ctl_write_steps(struct zt_json *j, struct zt_str *trace);
/* The JSON in body, or 500 when it did not fit. Takes body. */
void zt_ctl_reply_json(struct zt_http1_request *r, struct zt_str *body);
/* {"error": text} */
__attribute__((format(printf, 3, 4))) void zt_ctl_reply_error(struct zt_http1_request *r, unsigned status,
                                                              const char *fmt, ...);

#endif
