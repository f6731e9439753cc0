/* What signs certificates: the interface behind which the local CA and the istiod client stand
 * (spec/controlplane §6.2, §6.3). Embed struct zt_ca first and fill in ops. Thread: control. */
#ifndef ZT_SECRETS_CA_H
#define ZT_SECRETS_CA_H

#include "zt/base/err.h"
#include <stdint.h>

struct zt_ca;

/* What came back. Everything is borrowed until done returns; texts are not checked yet: the secret
 * manager does that. */
struct zt_ca_reply {
    enum zt_err code;             /* ZT_OK, or error says why not */
    const char *error;            /* as the admin dump shows it: "signing gRPC error (...): ..." */
    const char *const *chain_pem; /* leaf, intermediates, last the bundle of roots; n_chain texts */
    unsigned n_chain;
};

/* One request. Embed it; it must stay where it is until done or cancel. */
struct zt_ca_request {
    /* Runs exactly once, never from inside sign, not at all after cancel. */
    void (*done)(struct zt_ca_request *r, const struct zt_ca_reply *reply);
    void *pending; /* the CA's */
};

struct zt_ca_ops {
    /* Asks for a certificate of `identity` over the key in csr_pem, valid for ttl_s seconds. Texts
     * are borrowed until return. */
    void (*sign)(struct zt_ca *ca, struct zt_ca_request *r, const char *identity,
                 const char *csr_pem, uint64_t ttl_s);
    /* r is on its way; its done does not run any more. */
    void (*cancel)(struct zt_ca *ca, struct zt_ca_request *r);
    /* Takes ca. No request is on its way. */
    void (*free)(struct zt_ca *ca);
};

struct zt_ca {
    const struct zt_ca_ops *ops;
};

static inline void zt_ca_sign(struct zt_ca *ca, struct zt_ca_request *r, const char *identity,
                              const char *csr_pem, uint64_t ttl_s)
{
    ca->ops->sign(ca, r, identity, csr_pem, ttl_s);
}
static inline void zt_ca_cancel(struct zt_ca *ca, struct zt_ca_request *r)
{
    ca->ops->cancel(ca, r);
}
/* NULL is legal. */
static inline void zt_ca_free(struct zt_ca *ca)
{
    if (ca)
        ca->ops->free(ca);
}

#endif
