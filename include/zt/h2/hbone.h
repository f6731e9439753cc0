/* The text of HBONE: CONNECT request headers, baggage, forwarded, traceparent (spec/dataplane §3.4, §4.4, §11).
 * Pure functions over text. Thread: any. */
#ifndef ZT_H2_HBONE_H
#define ZT_H2_HBONE_H

#include "zt/base/addr.h"
#include "zt/base/str.h"
#include "zt/h2/h2_session.h"

#define ZT_BAGGAGE_BYTES_MAX 4096
#define ZT_TRACEPARENT_LEN 55

/* Workload metadata as baggage carries it; NULL or "" = absent. Borrowed text. */
struct zt_baggage {
    const char *cluster, *ns, *workload_type, *workload_name, *service_name, *service_version, *region, *zone;
};
/* Appends the header value; fixed order, absent values left out. */
void zt_baggage_format(const struct zt_baggage *b, struct zt_str *out);
/* Parses all baggage headers of a block into owned text; free with zt_baggage_parsed_fini. False: not ASCII or longer than the
 * limit, and nothing to free. */
struct zt_baggage_parsed {
    struct zt_baggage b; /* borrowed from store */
    char *store;
};
bool zt_baggage_parse(const struct zt_h2_headers *h, struct zt_baggage_parsed *out);
void zt_baggage_parsed_fini(struct zt_baggage_parsed *p);

/* `for="ip:port"` and `;host=name` when host is not NULL. */
void zt_forwarded_format(const struct zt_addr *client, const char *host, struct zt_str *out);
/* The host of a forwarded header into out; false when there is none. */
bool zt_forwarded_parse_host(const char *value, char out[static ZT_HOSTNAME_MAX]);

/* A fresh random traceparent, NUL-terminated. */
void zt_traceparent_new(char out[static ZT_TRACEPARENT_LEN + 1]);

#endif
