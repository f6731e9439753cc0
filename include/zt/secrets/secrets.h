/* The secret manager: one certificate per workload identity, fetched once for all who ask, renewed
 * at half life (spec/controlplane §6.4, §6.5).
 *
 * All decisions are made on the control loop. Workers only look into the table under the manager's
 * lock; who finds nothing there leaves a request, and the answer comes back as a message to the
 * loop that asked.
 *
 *     enum zt_err e = zt_secrets_get(s, id, ZT_SECRET_REALTIME, my_loop, on_cred, me, &me->request,
 * &cred, &err); ZT_OK: cred is here.  ZT_AGAIN: on_cred(me, ...) follows.  else: err->text says
 * why. When `me` goes away first: zt_secret_request_cancel(me->request). */
#ifndef ZT_SECRETS_SECRETS_H
#define ZT_SECRETS_SECRETS_H

#include "zt/loop/loop.h"
#include "zt/net/tls_cred.h"
#include "zt/secrets/ca.h"

#define ZT_SECRETS_CSRS_MAX 8            /* in flight at a time */
#define ZT_SECRETS_CALL_TIMEOUT_MS 10000 /* one CA call */
#define ZT_SECRETS_CSR_SPACING_MS 1000   /* between two CSRs of one identity */
#define ZT_SECRETS_BACKOFF_MIN_MS 1000   /* first retry; doubles, with 20 % jitter */
#define ZT_SECRETS_BACKOFF_MAX_MS 150000
#define ZT_SECRETS_BACKOFF_SPAN_MS                                                                 \
    900000 /* after failing this long the delay is the maximum, without jitter */
#define ZT_SECRETS_IDENTITIES_MAX 20000 /* managed at a time */
#define ZT_SECRETS_REQUESTS_MAX 65536   /* waiting at a time, over all identities */

struct zt_secrets;
struct zt_secret_request; /* a question on its way; freed on the asker's loop after its answer */

enum zt_secret_priority { ZT_SECRET_BACKGROUND, ZT_SECRET_WARMUP, ZT_SECRET_REALTIME };

struct zt_secrets_config {
    struct zt_loop *loop;     /* the control loop; borrowed until free */
    struct zt_ca *ca;         /* borrowed until free */
    uint64_t ttl_s;           /* asked for; SECRET_TTL */
    uint64_t call_timeout_ms; /* 0 = ZT_SECRETS_CALL_TIMEOUT_MS */
    unsigned csrs_max;        /* 0 = ZT_SECRETS_CSRS_MAX */
    struct zt_tls_profile profile; /* of the credentials */
    bool any_san; /* the CA decides who we are (dedicated mode): another SAN is a warning */
};

/* config is copied. Returns owned. Thread: control. */
struct zt_secrets *zt_secrets_new(const struct zt_secrets_config *config);
/* Calls in flight are cancelled; who still waits is answered "the identity is no longer needed". No
 * thread may ask any more, and the loops of those who asked must still exist: free them afterwards
 * (which runs the answers). NULL is legal. Thread: control. */
void zt_secrets_free(struct zt_secrets *s);

/* Exactly one of cred (taken by the callee) and err (borrowed until return). Never from inside
 * zt_secrets_get. Thread: the asker's loop. */
typedef void (*zt_secret_done_fn)(void *owner, struct zt_tls_cred *cred,
                                  const struct zt_error *err);

/* The credential of an identity, even when it is past its end. identity: borrowed until return.
 * ZT_OK: *cred is retained, returned owned. ZT_AGAIN: *request is set, done runs later on `asker`
 * with `owner` (not NULL). Errors: ZT_IDENTITY with the text of spec §6.6 (the last failure, at
 * once, while there is no certificate); ZT_LIMIT. Thread: any; with ZT_AGAIN the loop `asker` must
 * be the caller's. */
enum zt_err zt_secrets_get(struct zt_secrets *s, const char *identity,
                           enum zt_secret_priority priority, struct zt_loop *asker,
                           zt_secret_done_fn done, void *owner, struct zt_secret_request **request,
                           struct zt_tls_cred **cred, struct zt_error *err);
/* done does not run any more. The request frees itself when its answer arrives. Thread: the asker's
 * loop. */
void zt_secret_request_cancel(struct zt_secret_request *r);

/* Begins to manage an identity, with Warmup priority. identity: borrowed until return. Thread:
 * control. */
void zt_secrets_prefetch(struct zt_secrets *s, const char *identity);
/* Stops managing it; who waits is answered "the identity is no longer needed". Thread: control. */
void zt_secrets_forget(struct zt_secrets *s, const char *identity);

/* One managed identity for the admin dump. Borrowed until the callback returns. */
struct zt_secret_info {
    const char *identity;
    const char *state;        /* "Initializing", "Available", "Unavailable: <error>" */
    struct zt_tls_cred *cred; /* NULL unless Available; ref it to keep it */
};
typedef void (*zt_secret_info_fn)(void *arg, const struct zt_secret_info *info);
/* Calls fn for each, by identity in ascending order. fn must not call the manager. Thread: control.
 */
void zt_secrets_each(struct zt_secrets *s, zt_secret_info_fn fn, void *arg);

struct zt_secrets_stats {
    unsigned n_initializing, n_available, n_unavailable, n_csrs_in_flight;
    bool expiry_known;   /* false without any certificate */
    int64_t expiry_in_s; /* until the first certificate ends; negative when it has ended */
    uint64_t n_csrs;     /* started since the beginning */
    uint64_t n_csrs_failed;
};
/* Thread: control. */
void zt_secrets_stats(struct zt_secrets *s, struct zt_secrets_stats *out);

#endif
