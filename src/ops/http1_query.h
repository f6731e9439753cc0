/* The target of a request: its path as sent, and its form-decoded parameters. Private to ops. Thread: owner. */
#ifndef ZT_OPS_HTTP1_QUERY_H
#define ZT_OPS_HTTP1_QUERY_H

#define ZT_HTTP1_PARAMS_MAX 32 /* more are ignored */

struct zt_http1_query {
    char *path; /* owned; parameters point into the same memory */
    struct {
        const char *key, *value;
    } params[ZT_HTTP1_PARAMS_MAX];
    unsigned n_params;
};

/* target is copied: "/path?a=b" or "http://host/path?a=b". */
void zt_http1_query_init(struct zt_http1_query *q, const char *target);
void zt_http1_query_fini(struct zt_http1_query *q);
/* The last value of key; "" when it stands without "="; NULL when absent. */
const char *zt_http1_query_find(const struct zt_http1_query *q, const char *key);

#endif
