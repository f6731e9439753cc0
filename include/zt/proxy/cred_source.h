/* How the pool and the server of a pod get the pod's credential without knowing where it comes from. pod_creds.c implements it over
 * zt_secrets; tests hand out fixed ones. Thread: worker. */
#ifndef ZT_PROXY_CRED_SOURCE_H
#define ZT_PROXY_CRED_SOURCE_H

#include "zt/base/list.h"
#include "zt/net/tls_cred.h"

/* A question on its way. Embed it; zeroed by its maker. */
struct zt_cred_request {
    struct zt_link link;
    void *pending; /* the source's */
    /* Exactly one of cred (taken by the callee) and err. Never from inside get. */
    void (*done)(struct zt_cred_request *r, struct zt_tls_cred *cred, const struct zt_error *err);
};

struct zt_cred_source {
    /* ZT_OK: *cred is retained, done does not run. ZT_AGAIN: done follows. Otherwise ZT_IDENTITY with its text.
     * identity NULL: that of the source's own workload (servers). */
    enum zt_err (*get)(struct zt_cred_source *s, const char *identity, struct zt_cred_request *r, struct zt_tls_cred **cred,
                       struct zt_error *err);
    /* done does not run afterwards. Legal on a request that is not on its way. */
    void (*cancel)(struct zt_cred_source *s, struct zt_cred_request *r);
};

#endif
