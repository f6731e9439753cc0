/* A misbehaving CA. The inner CA signs at once; its reply is copied and held back until the delay
 * is over. */
#include "support/ca_faulty.h"

#include "zt/base/mem.h"
#include <string.h>

struct held_call {
    struct zt_link calls_link;
    struct ca_faulty *owner;
    struct zt_ca_request *request; /* the asker's */
    struct zt_ca_request inner;
    bool inner_open;
    ev_timer timer;
    enum zt_err code;
    char *error;
    char *chain[4];
    unsigned n_chain;
};

static void drop(struct held_call *c)
{
    if (c->inner_open)
        zt_ca_cancel(c->owner->inner, &c->inner);
    ev_timer_stop(zt_loop_ev(c->owner->loop), &c->timer);
    zt_list_remove(&c->calls_link);
    c->owner->n_open--;
    c->request->pending = NULL;
    zt_free(c->error);
    for (unsigned i = 0; i < c->n_chain; i++)
        zt_free(c->chain[i]);
    zt_free(c);
}

static void on_delay_over(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct held_call *c = zt_container_of(w, struct held_call, timer);
    struct held_call copy = *c;
    *c->chain = NULL;
    c->n_chain = 0;
    c->error = NULL;
    drop(c);
    struct zt_ca_reply reply = {.code = copy.code,
                                .error = copy.error,
                                .chain_pem = (const char *const *)copy.chain,
                                .n_chain = copy.n_chain};
    copy.request->done(copy.request, &reply);
    zt_free(copy.error);
    for (unsigned i = 0; i < copy.n_chain; i++)
        zt_free(copy.chain[i]);
}

static void hold(struct held_call *c)
{
    ev_timer_init(&c->timer, on_delay_over, (double)c->owner->delay_ms / 1000, 0);
    ev_now_update(zt_loop_ev(c->owner->loop));
    ev_timer_start(zt_loop_ev(c->owner->loop), &c->timer);
}

static void on_inner_done(struct zt_ca_request *r, const struct zt_ca_reply *reply)
{
    struct held_call *c = zt_container_of(r, struct held_call, inner);
    c->inner_open = false;
    c->code = reply->code;
    c->error = zt_strdup(reply->error);
    if (!c->owner->empty_chain)
        c->n_chain = c->owner->no_roots ? 1 : reply->n_chain;
    ZT_ASSERT(c->n_chain <= 4);
    for (unsigned i = 0; i < c->n_chain; i++)
        c->chain[i] = zt_strdup(reply->chain_pem[i]);
    hold(c);
}

static void sign(struct zt_ca *ca, struct zt_ca_request *r, const char *identity,
                 const char *csr_pem, uint64_t ttl_s)
{
    struct ca_faulty *f = zt_container_of(ca, struct ca_faulty, ca);
    struct held_call *c = zt_new(struct held_call);
    ZT_ASSERT(f->n_calls < CA_FAULTY_LOG_MAX);
    f->asked[f->n_calls++] = zt_strdup(identity);
    if (++f->n_open > f->n_open_max)
        f->n_open_max = f->n_open;
    c->owner = f;
    c->request = r;
    r->pending = c;
    zt_list_push_back(&f->calls, &c->calls_link);
    if (f->silent)
        return;
    if (f->fail_text && (!f->fail_identity || strcmp(f->fail_identity, identity) == 0)) {
        c->code = ZT_TLS;
        c->error = zt_strdup(f->fail_text);
        hold(c);
        return;
    }
    c->inner.done = on_inner_done;
    c->inner_open = true;
    zt_ca_sign(f->inner, &c->inner, f->sign_as ? f->sign_as : identity, csr_pem,
               f->ttl_s ? f->ttl_s : ttl_s);
}

static void cancel(struct zt_ca *ca, struct zt_ca_request *r)
{
    zt_container_of(ca, struct ca_faulty, ca)->n_cancelled++;
    drop(r->pending);
}

static void free_faulty(struct zt_ca *ca)
{
    struct ca_faulty *f = zt_container_of(ca, struct ca_faulty, ca);
    ZT_ASSERT(zt_list_empty(&f->calls));
    for (unsigned i = 0; i < f->n_calls; i++)
        zt_free(f->asked[i]);
    zt_free(f);
}

static const struct zt_ca_ops ops = {.sign = sign, .cancel = cancel, .free = free_faulty};

struct ca_faulty *ca_faulty_new(struct zt_loop *loop, struct zt_ca *inner)
{
    struct ca_faulty *f = zt_new(struct ca_faulty);
    f->ca.ops = &ops;
    f->loop = loop;
    f->inner = inner;
    zt_list_init(&f->calls);
    return f;
}
