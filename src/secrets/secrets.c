/* The secret manager's table and its doors. When what is fetched is decided in fetch.c.
 *
 * Invariants:
 *  - The table and the state, credential and error of its entries change on control only, under the
 * lock; workers read under it.
 *  - A request is at any time on exactly one of: asks, the waiters of one entry, a mailbox. It is
 * freed on its asker's loop, always by its answer, so neither side ever holds a pointer to what the
 * other has freed.
 *  - An entry waits only while it is Initializing; it leaves that state by answering everybody. */
#include "secrets_impl.h"

#include "zt/base/clock.h"
#include "zt/base/identity.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <string.h>

static const char text_forgotten[] = "the identity is no longer needed";

/* ---- answers -----------------------------------------------------------------------------------
 */

static void free_request(struct zt_secret_request *r)
{
    zt_tls_cred_unref(r->cred);
    zt_free(r->identity);
    zt_free(r);
}

/* On the asker's loop. */
static void on_answer(struct zt_msg *msg)
{
    struct zt_secret_request *r = zt_container_of(msg, struct zt_secret_request, answer);
    void *owner = r->owner;
    zt_secret_done_fn done = r->done;
    struct zt_tls_cred *cred = r->cred;
    struct zt_error err = r->err;
    if (owner)
        r->cred = NULL;
    free_request(r);
    if (owner)
        done(owner, cred, cred ? NULL : &err);
}

static void answer(struct zt_secret_request *r, struct zt_tls_cred *cred, const char *text)
{
    struct zt_secrets *m = r->secrets;
    pthread_mutex_lock(&m->lock);
    m->n_requests--;
    pthread_mutex_unlock(&m->lock);
    r->cred = cred ? zt_tls_cred_ref(cred) : NULL;
    if (!cred)
        zt_error_set(&r->err, ZT_IDENTITY, "%s", text ? text : "");
    zt_loop_post(r->asker, &r->answer);
}

void zt_secret_answer_all(struct zt_secret *s, struct zt_tls_cred *cred, const char *text)
{
    struct zt_link *l;
    while ((l = zt_list_pop_front(&s->waiters)))
        answer(zt_container_of(l, struct zt_secret_request, link), cred, text);
}

void zt_secret_request_cancel(struct zt_secret_request *r)
{
    r->owner = NULL;
}

/* ---- the table ---------------------------------------------------------------------------------
 */

/* Under the lock, or on control. */
static struct zt_secret *find(struct zt_secrets *m, const char *identity)
{
    struct zt_secret *s = NULL;
    HASH_FIND_STR(m->table, identity, s);
    return s;
}

/* Puts cred (taken) and error (taken) in the entry and drops what was there; old credentials die
 * outside the lock. */
static void set_state(struct zt_secret *s, enum zt_secret_state state, struct zt_tls_cred *cred,
                      char *error)
{
    pthread_mutex_lock(&s->secrets->lock);
    struct zt_tls_cred *old_cred = s->cred;
    char *old_error = s->error;
    s->state = state;
    s->cred = cred;
    s->error = error;
    pthread_mutex_unlock(&s->secrets->lock);
    zt_tls_cred_unref(old_cred);
    zt_free(old_error);
}

void zt_secret_publish(struct zt_secret *s, struct zt_tls_cred *cred)
{
    set_state(s, ZT_SECRET_AVAILABLE, cred, NULL);
}

void zt_secret_publish_error(struct zt_secret *s, const char *text)
{
    set_state(s, ZT_SECRET_UNAVAILABLE, NULL, zt_strdup(text));
}

void zt_secret_delete(struct zt_secret *s)
{
    struct zt_secrets *m = s->secrets;
    ZT_ASSERT(zt_list_empty(&s->waiters) && !s->in_flight);
    zt_list_remove(&s->list_link);
    pthread_mutex_lock(&m->lock);
    HASH_DEL(m->table, s);
    pthread_mutex_unlock(&m->lock);
    zt_tls_cred_unref(s->cred);
    zt_free(s->error);
    zt_free(s->identity);
    zt_free(s);
}

/* The entry of an identity that somebody wants, made or revived when need be. NULL: too many. */
static struct zt_secret *manage(struct zt_secrets *m, const char *identity,
                                enum zt_secret_priority priority)
{
    struct zt_secret *s = find(m, identity);
    if (!s) {
        if (HASH_COUNT(m->table) >= ZT_SECRETS_IDENTITIES_MAX)
            return NULL;
        s = zt_new(struct zt_secret);
        s->secrets = m;
        s->identity = zt_strdup(identity);
        zt_list_init(&s->waiters);
        pthread_mutex_lock(&m->lock);
        HASH_ADD_KEYPTR(hh, m->table, s->identity, strlen(s->identity), s);
        pthread_mutex_unlock(&m->lock);
    }
    if (s->state == ZT_SECRET_ABSENT) {
        zt_list_remove(&s->list_link); /* from lingering */
        set_state(s, ZT_SECRET_INITIALIZING, NULL, NULL);
    }
    if (s->state == ZT_SECRET_INITIALIZING)
        zt_secret_enqueue(s, priority, 0);
    return s;
}

/* One request, on control: the state may have moved on since the worker looked. */
static void take_request(struct zt_secrets *m, struct zt_secret_request *r)
{
    struct zt_secret *s = manage(m, r->identity, r->priority);
    if (!s)
        answer(r, NULL, "too many identities");
    else if (s->state == ZT_SECRET_AVAILABLE)
        answer(r, s->cred, NULL);
    else if (s->state == ZT_SECRET_UNAVAILABLE)
        answer(r, NULL, s->error);
    else
        zt_list_push_back(&s->waiters, &r->link);
}

static void on_wake(struct zt_msg *msg)
{
    struct zt_secrets *m = zt_container_of(msg, struct zt_secrets, wake);
    struct zt_link asks, *l;
    zt_list_init(&asks);
    pthread_mutex_lock(&m->lock);
    m->wake_posted = false;
    zt_list_splice(&asks, &m->asks);
    bool closed = m->closed;
    pthread_mutex_unlock(&m->lock);
    if (closed) { /* zt_secrets_free left the memory to this message */
        pthread_mutex_destroy(&m->lock);
        zt_free(m);
        return;
    }
    while ((l = zt_list_pop_front(&asks)))
        take_request(m, zt_container_of(l, struct zt_secret_request, link));
    zt_secrets_advance(m);
}

/* ---- doors -------------------------------------------------------------------------------------
 */

struct zt_secrets *zt_secrets_new(const struct zt_secrets_config *config)
{
    struct zt_secrets *m = zt_new(struct zt_secrets);
    m->config = *config;
    if (!m->config.call_timeout_ms)
        m->config.call_timeout_ms = ZT_SECRETS_CALL_TIMEOUT_MS;
    if (!m->config.csrs_max)
        m->config.csrs_max = ZT_SECRETS_CSRS_MAX;
    pthread_mutex_init(&m->lock, NULL);
    zt_list_init(&m->asks);
    zt_list_init(&m->queue);
    zt_list_init(&m->lingering);
    m->wake.run = on_wake;
    ev_timer_init(&m->timer, zt_secrets_on_timer, 0, 0);
    return m;
}

void zt_secrets_free(struct zt_secrets *m)
{
    if (!m)
        return;
    struct zt_secret *s, *next;
    struct zt_link *l;
    ev_timer_stop(zt_loop_ev(m->config.loop), &m->timer);
    HASH_ITER(hh, m->table, s, next)
    {
        zt_secret_abort(s);
        zt_secret_answer_all(s, NULL, text_forgotten);
        zt_secret_delete(s);
    }
    /* No thread asks any more, so the list is ours. */
    while ((l = zt_list_pop_front(&m->asks)))
        answer(zt_container_of(l, struct zt_secret_request, link), NULL, text_forgotten);
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    bool message_frees = m->wake_posted;
    pthread_mutex_unlock(&m->lock);
    if (message_frees)
        return;
    pthread_mutex_destroy(&m->lock);
    zt_free(m);
}

static enum zt_err ask(struct zt_secrets *m, struct zt_secret_request *r, struct zt_error *err)
{
    pthread_mutex_lock(&m->lock);
    if (m->n_requests >= ZT_SECRETS_REQUESTS_MAX) {
        pthread_mutex_unlock(&m->lock);
        free_request(r);
        return zt_error_set(err, ZT_LIMIT, "too many connections wait for certificates");
    }
    m->n_requests++;
    zt_list_push_back(&m->asks, &r->link);
    if (!m->wake_posted) {
        m->wake_posted = true;
        zt_loop_post(m->config.loop, &m->wake);
    }
    pthread_mutex_unlock(&m->lock);
    return ZT_AGAIN;
}

enum zt_err zt_secrets_get(struct zt_secrets *m, const char *identity,
                           enum zt_secret_priority priority, struct zt_loop *asker,
                           zt_secret_done_fn done, void *owner, struct zt_secret_request **request,
                           struct zt_tls_cred **cred, struct zt_error *err)
{
    pthread_mutex_lock(&m->lock);
    struct zt_secret *s = find(m, identity);
    if (s && s->state == ZT_SECRET_AVAILABLE) {
        *cred = zt_tls_cred_ref(s->cred);
        pthread_mutex_unlock(&m->lock);
        return ZT_OK;
    }
    if (s && s->state == ZT_SECRET_UNAVAILABLE) {
        zt_error_set(err, ZT_IDENTITY, "%s", s->error);
        pthread_mutex_unlock(&m->lock);
        return ZT_IDENTITY;
    }
    pthread_mutex_unlock(&m->lock);
    if (!zt_identity_parse(identity, strlen(identity), NULL))
        return zt_error_set(err, ZT_IDENTITY, "invalid spiffe identity: %s", identity);
    ZT_ASSERT(owner);
    struct zt_secret_request *r = zt_new(struct zt_secret_request);
    r->secrets = m;
    r->answer.run = on_answer;
    r->asker = asker;
    r->done = done;
    r->owner = owner;
    r->identity = zt_strdup(identity);
    r->priority = priority;
    enum zt_err e = ask(m, r, err);
    *request = e == ZT_AGAIN ? r : NULL;
    return e;
}

void zt_secrets_prefetch(struct zt_secrets *m, const char *identity)
{
    zt_loop_assert_owner(m->config.loop);
    if (!zt_identity_parse(identity, strlen(identity), NULL))
        return;
    manage(m, identity, ZT_SECRET_WARMUP);
    zt_secrets_advance(m);
}

void zt_secrets_forget(struct zt_secrets *m, const char *identity)
{
    zt_loop_assert_owner(m->config.loop);
    struct zt_secret *s = find(m, identity);
    if (!s || s->state == ZT_SECRET_ABSENT)
        return;
    zt_secret_unqueue(s);
    set_state(s, ZT_SECRET_ABSENT, NULL, NULL);
    zt_secret_answer_all(s, NULL, text_forgotten);
    if (!s->in_flight) /* otherwise the end of the call decides */
        zt_secret_linger(s);
    zt_secrets_advance(m);
}

static int compare_identities(const struct zt_secret *a, const struct zt_secret *b)
{
    return strcmp(a->identity, b->identity);
}

void zt_secrets_each(struct zt_secrets *m, zt_secret_info_fn fn, void *arg)
{
    zt_loop_assert_owner(m->config.loop);
    pthread_mutex_lock(&m->lock);
    HASH_SRT(hh, m->table, compare_identities);
    pthread_mutex_unlock(&m->lock);
    for (struct zt_secret *s = m->table; s; s = s->hh.next) {
        if (s->state == ZT_SECRET_ABSENT)
            continue;
        char text[ZT_ERROR_TEXT_MAX + 32];
        struct zt_secret_info info = {.identity = s->identity, .cred = s->cred, .state = text};
        if (s->state == ZT_SECRET_UNAVAILABLE)
            zt_fmt(text, sizeof text, "Unavailable: %s", s->error);
        else
            zt_fmt(text, sizeof text, "%s",
                   s->state == ZT_SECRET_AVAILABLE ? "Available" : "Initializing");
        fn(arg, &info);
    }
}

void zt_secrets_stats(struct zt_secrets *m, struct zt_secrets_stats *out)
{
    zt_loop_assert_owner(m->config.loop);
    int64_t now_s = zt_clock_wall_us() / 1000000;
    *out = (struct zt_secrets_stats){
        .n_csrs_in_flight = m->n_in_flight, .n_csrs = m->n_csrs, .n_csrs_failed = m->n_csrs_failed};
    for (struct zt_secret *s = m->table; s; s = s->hh.next) {
        out->n_initializing += s->state == ZT_SECRET_INITIALIZING;
        out->n_unavailable += s->state == ZT_SECRET_UNAVAILABLE;
        if (s->state != ZT_SECRET_AVAILABLE)
            continue;
        out->n_available++;
        int64_t left = zt_tls_cred_not_after_s(s->cred) - now_s;
        if (!out->expiry_known || left < out->expiry_in_s)
            out->expiry_in_s = left;
        out->expiry_known = true;
    }
}
