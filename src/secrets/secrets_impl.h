/* The inside of the secret manager: secrets.c is the table and the doors, fetch.c decides what is
 * fetched when. */
#ifndef ZT_SECRETS_SECRETS_IMPL_H
#define ZT_SECRETS_SECRETS_IMPL_H

#include "zt/base/map.h"
#include "zt/secrets/csr.h"
#include "zt/secrets/secrets.h"
#include <pthread.h>

enum zt_secret_state {
    ZT_SECRET_ABSENT, /* forgotten; kept a while for its back-off, or until its call ends */
    ZT_SECRET_INITIALIZING,
    ZT_SECRET_AVAILABLE,
    ZT_SECRET_UNAVAILABLE,
};

struct zt_secret {
    /* Under the manager's lock, written by control only. */
    UT_hash_handle hh;
    char *identity;
    enum zt_secret_state state;
    struct zt_tls_cred *cred; /* AVAILABLE */
    char *error;              /* UNAVAILABLE */

    /* Control only. */
    struct zt_secrets *secrets;
    struct zt_link waiters;   /* zt_secret_request.link */
    struct zt_link list_link; /* on queue, or on lingering */
    enum zt_secret_priority priority;
    uint64_t due_ms;      /* on queue: not before; on lingering: gone after */
    uint64_t sequence;    /* order among equals */
    uint64_t last_csr_ms; /* 0 = never */
    uint64_t failing_since_ms;
    unsigned n_failures; /* in a row */

    bool in_flight;
    struct zt_csr csr;
    struct zt_ca_request call;
    ev_timer call_timer;
};

struct zt_secret_request {
    struct zt_msg answer;
    struct zt_link link; /* on asks, then on a secret's waiters */
    struct zt_secrets *secrets;
    struct zt_loop *asker;
    zt_secret_done_fn done;
    void *owner; /* asker's loop only; NULL = nobody waits any more */
    char *identity;
    enum zt_secret_priority priority;
    struct zt_tls_cred *cred;
    struct zt_error err;
};

struct zt_secrets {
    struct zt_secrets_config config;
    pthread_mutex_t lock;

    /* Under lock. */
    struct zt_secret *table;
    struct zt_link asks; /* requests not yet seen by control */
    unsigned n_requests; /* not yet answered */
    bool wake_posted, closed;

    struct zt_msg wake;
    ev_timer timer;           /* the next thing to do that lies in the future */
    struct zt_link queue;     /* to be fetched */
    struct zt_link lingering; /* ABSENT and not in flight */
    uint64_t next_sequence;
    unsigned n_in_flight;
    uint64_t n_csrs, n_csrs_failed;
};

/* fetch.c; all on the control loop. */
void zt_secret_enqueue(struct zt_secret *s, enum zt_secret_priority priority, uint64_t delay_ms);
void zt_secret_unqueue(struct zt_secret *s);
void zt_secret_linger(struct zt_secret *s);
void zt_secret_abort(struct zt_secret *s); /* ends a call in flight without a result */
void zt_secrets_advance(struct zt_secrets *m);
void zt_secrets_on_timer(struct ev_loop *ev, ev_timer *w, int revents);

/* Seconds from now_s until a certificate is due for renewal: half of its life; 0 when that has
 * passed, or when it is not valid (yet). */
int64_t zt_secret_renewal_delay_s(int64_t not_before_s, int64_t not_after_s, int64_t now_s);
/* The delay after the n-th failure in a row (n >= 1), failing for span_ms. random: uniform over its
 * type. */
uint64_t zt_secret_backoff_ms(unsigned n, uint64_t span_ms, uint32_t random);

/* secrets.c */
void zt_secret_publish(struct zt_secret *s,
                       struct zt_tls_cred *cred); /* takes cred; state AVAILABLE */
void zt_secret_publish_error(struct zt_secret *s, const char *text); /* state UNAVAILABLE */
/* Answers everybody who waits: with cred (borrowed) or text. */
void zt_secret_answer_all(struct zt_secret *s, struct zt_tls_cred *cred, const char *text);
void zt_secret_delete(struct zt_secret *s); /* takes s out of the table and frees it */

#endif
