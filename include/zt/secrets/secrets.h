/* The certificates of this node's workloads: one credential per identity, fetched from a CA, renewed at half life
 * (spec/controlplane §6.4, §6.5). All decisions are taken on the control loop; workers read what is published under the manager's own lock.
 *
 *   state          on                                   to
 *   (absent)       asked for, or prefetch               INITIALIZING
 *   INITIALIZING   signed                               AVAILABLE
 *                  failed                               UNAVAILABLE (retried by back-off)
 *   AVAILABLE      renewed                              AVAILABLE (a new credential)
 *                  renewal failed, not expired          AVAILABLE (kept), retried by back-off
 *                  renewal failed, expired              UNAVAILABLE
 *   any            forgotten                            (absent); who waits is told */
#ifndef ZT_SECRETS_SECRETS_H
#define ZT_SECRETS_SECRETS_H

#include "zt/loop/loop.h"
#include "zt/net/tls_cred.h"
#include "zt/secrets/ca.h"

#define ZT_SECRETS_IN_FLIGHT_MAX 8 /* CSRs at once */

struct zt_secrets;

struct zt_secrets_config {
    uint64_t ttl_s;             /* SECRET_TTL */
    unsigned call_timeout_ms;   /* one CSR; 10000 */
    unsigned backoff_min_ms, backoff_max_ms; /* 1000, 150000 */
    unsigned spacing_min_ms;    /* between two CSRs of one identity; 1000 */
    bool tls12;
};

/* Lower is more urgent. */
enum zt_secrets_priority { ZT_SECRETS_REALTIME, ZT_SECRETS_WARMUP, ZT_SECRETS_BACKGROUND };

/* Borrows control and ca (until free). Returns owned. Thread: control. */
struct zt_secrets *zt_secrets_new(const struct zt_secrets_config *c, struct zt_loop *control, struct zt_ca *ca);
/* Requests still waiting are answered first. Thread: control. */
void zt_secrets_free(struct zt_secrets *s);

/* A question on its way. Made by zt_secrets_get, comes back to the asker's loop as a message exactly once and is freed after done. */
struct zt_secrets_request {
    struct zt_msg msg;
    struct zt_loop *loop;     /* the asker's */
    /* Runs on the asker's loop: cred (taken by the callee) or NULL with err. Does not run when owner is NULL. */
    void (*done)(struct zt_secrets_request *r, struct zt_tls_cred *cred, const struct zt_error *err);
    void *owner;              /* the asker's; set to NULL on its own loop to lose interest: that is cancelling */
    /* private */
    struct zt_link waiter_link;
    struct zt_tls_cred *cred;
    struct zt_error err;
};

/* ZT_OK: *cred is retained. ZT_AGAIN: *req is made (owned by the manager; set its done and owner before returning to the loop) and an
 * answer follows. Otherwise ZT_IDENTITY with its text: the last fetch failed, only the back-off retries. Thread: any, with a loop. */
enum zt_err zt_secrets_get(struct zt_secrets *s, const char *identity, enum zt_secrets_priority priority,
                           struct zt_loop *asker, struct zt_tls_cred **cred, struct zt_secrets_request **req,
                           struct zt_error *err);

/* Thread: control. */
void zt_secrets_prefetch(struct zt_secrets *s, const char *identity);
void zt_secrets_forget(struct zt_secrets *s, const char *identity);

enum zt_secrets_state { ZT_SECRETS_INITIALIZING, ZT_SECRETS_AVAILABLE, ZT_SECRETS_UNAVAILABLE };
struct zt_secrets_info { /* borrowed during the call */
    const char *identity;
    enum zt_secrets_state state;
    const char *error;              /* UNAVAILABLE, or a renewal that failed; else NULL */
    const struct zt_tls_cred *cred; /* AVAILABLE; else NULL */
};
/* Every managed identity, in order of its text. Thread: control. */
void zt_secrets_each(struct zt_secrets *s, void (*fn)(void *arg, const struct zt_secrets_info *info), void *arg);

#endif
