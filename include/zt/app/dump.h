/* GET /config_dump (spec/interfaces §4.4): everything the daemon knows, as one pretty-printed JSON document with sorted keys, produced
 * piece by piece as the client takes it. A service's endpoints are those of the moment it is written. Thread: control. */
#ifndef ZT_APP_DUMP_H
#define ZT_APP_DUMP_H

#include "zt/cni/pods.h"
#include "zt/config/config.h"
#include "zt/ops/http1.h"
#include "zt/proxy/proxy.h"
#include "zt/secrets/secrets.h"
#include "zt/state/store.h"

#define ZT_DUMP_CONNECTIONS_BYTES_MAX (256u * 1024 * 1024) /* of workloadState; more: the dump answers 500 */

/* Where a dump looks; all borrowed until the servers that use it are drained. */
struct zt_dump_sources {
    const struct zt_config *config;
    struct zt_store *store;
    struct zt_secrets *secrets;
    struct zt_proxy *proxy;
    const struct zt_pods *pods; /* NULL in dedicated mode: no workloadState */
    struct zt_loop *helper;     /* a thread that may take long: it sorts the records of a big mesh */
};

/* Adds /config_dump to a server. */
void zt_dump_route(struct zt_http1 *s, const struct zt_dump_sources *sources);

#endif
