/* A CA for tests that wraps another one and misbehaves on demand: delay, failure, silence, strange
 * replies (spec/controlplane §5.3). It also records the order in which identities were asked for.
 * Thread: the loop's owner. */
#ifndef ZT_TESTS_CA_FAULTY_H
#define ZT_TESTS_CA_FAULTY_H

#include "zt/loop/loop.h"
#include "zt/secrets/ca.h"

#define CA_FAULTY_LOG_MAX 1024

struct ca_faulty {
    struct zt_ca ca;
    struct zt_ca *inner; /* borrowed */
    struct zt_loop *loop;

    /* Settings; change them at any time, they hold for the calls that come after. */
    uint64_t delay_ms;         /* before the reply */
    uint64_t ttl_s;            /* in place of the one asked for; 0 = as asked */
    const char *fail_text;     /* every call fails with this; NULL = works */
    const char *fail_identity; /* only this one fails; NULL = all */
    const char *sign_as;       /* the certificate names this identity */
    bool silent;               /* never answers */
    bool empty_chain, no_roots;

    /* What happened. */
    unsigned n_calls, n_open, n_open_max, n_cancelled;
    char *asked[CA_FAULTY_LOG_MAX]; /* n_calls identities, in order; owned */
    struct zt_link calls;
};

/* Returns owned; frees itself by zt_ca_free(&f->ca), inner not included. */
struct ca_faulty *ca_faulty_new(struct zt_loop *loop, struct zt_ca *inner);

#endif
