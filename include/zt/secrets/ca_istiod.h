/* istiod as the CA: CreateCertificate over gRPC (spec/controlplane §6.2, §6.3).
 *
 * Where the daemon asks for other identities than its own (shared mode), the request names them as
 * ImpersonatedIdentity; the bearer token and the cluster's name come with the channel. Every call
 * has a time limit. A request that cannot be sent, because token or roots cannot be read, is
 * answered at the end of the turn like any other failure. Thread: control. */
#ifndef ZT_SECRETS_CA_ISTIOD_H
#define ZT_SECRETS_CA_ISTIOD_H

#include "zt/rpc/rpc.h"
#include "zt/secrets/ca.h"

#define ZT_CA_ISTIOD_TIMEOUT_MS 9500 /* one call: a little less than the secret manager's limit */
#define ZT_CA_ISTIOD_CHAIN_MAX 64    /* elements of a reply; a longer one is refused */

struct zt_ca_istiod_config {
    struct zt_loop *loop;           /* control; borrowed until free */
    struct zt_rpc_channel *channel; /* taken */
    bool impersonate;               /* shared mode; false: the certificate is the token's own */
    uint64_t timeout_ms;            /* 0 = ZT_CA_ISTIOD_TIMEOUT_MS */
};

/* config is copied. Returns owned; free it with zt_ca_free, before zt_rpc_free. */
struct zt_ca *zt_ca_istiod_new(const struct zt_ca_istiod_config *config);

#endif
