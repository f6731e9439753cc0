/* What is fetched, and when (spec/controlplane §6.5). Control loop only.
 *
 * An entry's course:
 *
 *   state          event                     next state     and
 *   ABSENT         wanted                    INITIALIZING   queue with the asker's priority
 *   INITIALIZING   wanted again              INITIALIZING   priority may rise, if queued
 *   any            call answered well        AVAILABLE      answer all, queue Background at half
 * life INITIALIZING   call failed               UNAVAILABLE    answer all, queue Background after
 * back-off AVAILABLE      call failed, cert valid   AVAILABLE      queue Background after back-off,
 * at the cert's end at the latest AVAILABLE      call failed, cert ended   UNAVAILABLE    queue
 * Background after back-off UNAVAILABLE    call failed               UNAVAILABLE    queue
 * Background after back-off any            forgotten                 ABSENT         answer all; a
 * call in flight goes on, its result is discarded unless the identity is wanted again before it
 * comes
 *
 * Invariants: an entry is queued, in flight, or lingering, never two of them; at most csrs_max are
 * in flight; between two calls of one entry lie ZT_SECRETS_CSR_SPACING_MS. The queue is short
 * (identities of one node), so it is searched, not sorted. */
#include "secrets_impl.h"

#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <string.h>
#include <sys/random.h>

#define SCOPE "identity::manager"
#define END_OF_CERT "-----END CERTIFICATE-----"

/* ---- times -------------------------------------------------------------------------------------
 */

int64_t zt_secret_renewal_delay_s(int64_t not_before_s, int64_t not_after_s, int64_t now_s)
{
    if (now_s < not_before_s || now_s >= not_after_s)
        return 0;
    int64_t half = not_before_s + (not_after_s - not_before_s) / 2;
    return half > now_s ? half - now_s : 0;
}

uint64_t zt_secret_backoff_ms(unsigned n, uint64_t span_ms, uint32_t random)
{
    if (span_ms >= ZT_SECRETS_BACKOFF_SPAN_MS)
        return ZT_SECRETS_BACKOFF_MAX_MS;
    uint64_t delay =
        n > 8 ? ZT_SECRETS_BACKOFF_MAX_MS : (uint64_t)ZT_SECRETS_BACKOFF_MIN_MS << (n - 1);
    if (delay > ZT_SECRETS_BACKOFF_MAX_MS)
        delay = ZT_SECRETS_BACKOFF_MAX_MS;
    delay = delay * 4 / 5 + delay * 2 / 5 * random / UINT32_MAX;
    return delay < ZT_SECRETS_BACKOFF_MAX_MS ? delay : ZT_SECRETS_BACKOFF_MAX_MS;
}

static uint32_t random_u32(void)
{
    uint32_t r;
    ZT_ASSERT(getrandom(&r, sizeof r, 0) == (ssize_t)sizeof r);
    return r;
}

static int64_t wall_s(void)
{
    return zt_clock_wall_us() / 1000000;
}

/* Half life, up to 5 % of that earlier: the certificates of a node that were fetched together drift
 * apart. */
static uint64_t renewal_delay_ms(const struct zt_tls_cred *cred)
{
    int64_t begin = zt_tls_cred_not_before_s(cred), end = zt_tls_cred_not_after_s(cred);
    uint64_t delay = (uint64_t)zt_secret_renewal_delay_s(begin, end, wall_s()) * 1000;
    uint64_t jitter =
        end > begin ? (uint64_t)(end - begin) * 1000 / 2 / 20 * random_u32() / UINT32_MAX : 0;
    return delay > jitter ? delay - jitter : 0;
}

/* ---- the queue ---------------------------------------------------------------------------------
 */

void zt_secret_unqueue(struct zt_secret *s)
{
    zt_list_remove(&s->list_link);
}

void zt_secret_enqueue(struct zt_secret *s, enum zt_secret_priority priority, uint64_t delay_ms)
{
    struct zt_secrets *m = s->secrets;
    if (s->in_flight)
        return;
    uint64_t due = zt_clock_mono_ms() + delay_ms;
    if (s->last_csr_ms && due < s->last_csr_ms + ZT_SECRETS_CSR_SPACING_MS)
        due = s->last_csr_ms + ZT_SECRETS_CSR_SPACING_MS;
    if (zt_link_linked(&s->list_link)) { /* queued already: it can only rise */
        if (priority <= s->priority)
            return;
        zt_list_remove(&s->list_link);
        if (due > s->due_ms)
            due = s->due_ms;
    }
    s->priority = priority;
    s->due_ms = due;
    s->sequence = m->next_sequence++;
    zt_list_push_back(&m->queue, &s->list_link);
}

void zt_secret_linger(struct zt_secret *s)
{
    s->due_ms = zt_clock_mono_ms() +
                (s->n_failures ? ZT_SECRETS_BACKOFF_MAX_MS : ZT_SECRETS_CSR_SPACING_MS);
    zt_list_push_back(&s->secrets->lingering, &s->list_link);
}

static bool goes_before(const struct zt_secret *a, const struct zt_secret *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->sequence < b->sequence;
}

/* The best entry that is due, or NULL. */
static struct zt_secret *pick(struct zt_secrets *m, uint64_t now)
{
    struct zt_secret *best = NULL;
    zt_list_each (l, &m->queue) {
        struct zt_secret *s = zt_container_of(l, struct zt_secret, list_link);
        if (s->due_ms <= now && (!best || goes_before(s, best)))
            best = s;
    }
    return best;
}

/* ---- one call ----------------------------------------------------------------------------------
 */

static void end_call(struct zt_secret *s)
{
    ev_timer_stop(zt_loop_ev(s->secrets->config.loop), &s->call_timer);
    zt_csr_fini(&s->csr);
    s->in_flight = false;
    s->secrets->n_in_flight--;
}

static void succeed(struct zt_secret *s, struct zt_tls_cred *cred)
{
    s->n_failures = 0;
    zt_secret_publish(s, cred);
    zt_secret_answer_all(s, cred, NULL);
    zt_secret_enqueue(s, ZT_SECRET_BACKGROUND, renewal_delay_ms(cred));
    if (zt_log_on(ZT_LOG_DEBUG, SCOPE)) {
        char end[ZT_TIME_TEXT_MAX];
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_DEBUG, SCOPE, "certificate fetched");
        zt_log_raw(&l, "id", s->identity);
        zt_log_raw(&l, "valid_until", zt_clock_format_s(zt_tls_cred_not_after_s(cred), end));
        zt_log_end(&l);
    }
}

static void log_failure(struct zt_secret *s, const char *text, bool kept, uint64_t delay_ms)
{
    int64_t quarter_s =
        s->cred ? (zt_tls_cred_not_after_s(s->cred) - zt_tls_cred_not_before_s(s->cred)) / 4 : 0;
    bool early = kept && zt_tls_cred_not_after_s(s->cred) - wall_s() > quarter_s;
    enum zt_log_level level = early ? ZT_LOG_INFO : ZT_LOG_WARN; /* before it hurts */
    if (!zt_log_on(level, SCOPE))
        return;
    char message[ZT_ERROR_TEXT_MAX + 256], end[ZT_TIME_TEXT_MAX], next[ZT_TIME_TEXT_MAX];
    if (kept)
        zt_fmt(message, sizeof message,
               "certificate renewal failed (%s); retaining existing valid certificate until %s; "
               "next retry at %s",
               text, zt_clock_format_s(zt_tls_cred_not_after_s(s->cred), end),
               zt_clock_format_s(wall_s() + (int64_t)(delay_ms / 1000), next));
    else
        zt_fmt(message, sizeof message,
               "certificate fetch failed (%s) and no valid existing certificate; will retry in "
               "%llu.%03us",
               text, (unsigned long long)(delay_ms / 1000), (unsigned)(delay_ms % 1000));
    struct zt_log_line l;
    zt_log_begin(&l, level, SCOPE, message);
    zt_log_raw(&l, "id", s->identity);
    zt_log_end(&l);
}

static void fail(struct zt_secret *s, const char *text)
{
    uint64_t now = zt_clock_mono_ms();
    s->secrets->n_csrs_failed++;
    if (s->n_failures++ == 0)
        s->failing_since_ms = now;
    if (s->state == ZT_SECRET_ABSENT)
        return;
    uint64_t delay = zt_secret_backoff_ms(s->n_failures, now - s->failing_since_ms, random_u32());
    int64_t left_s = s->cred ? zt_tls_cred_not_after_s(s->cred) - wall_s() : 0;
    bool kept = left_s > 0;
    if (kept && delay > (uint64_t)left_s * 1000)
        delay = (uint64_t)left_s * 1000;
    log_failure(s, text, kept, delay);
    if (!kept) {
        zt_secret_publish_error(s, text);
        zt_secret_answer_all(s, NULL, text);
    }
    zt_secret_enqueue(s, ZT_SECRET_BACKGROUND, delay);
}

/* Adds the first certificate of a PEM text, with a newline behind it. */
static void add_first_cert(struct zt_str *out, const char *pem)
{
    const char *end = strstr(pem, END_OF_CERT);
    zt_str_add_n(out, pem, end ? (size_t)(end - pem) + sizeof END_OF_CERT - 1 : strlen(pem));
    zt_str_add_char(out, '\n');
}

/* The parts of a reply that has them, judged. Returns owned; NULL with err set. */
static struct zt_tls_cred *join(struct zt_secret *s, const struct zt_ca_reply *reply,
                                struct zt_error *err)
{
    const struct zt_secrets_config *config = &s->secrets->config;
    struct zt_tls_cred *cred = NULL;
    struct zt_error inner = ZT_ERROR_INIT;
    struct zt_str chain;
    zt_str_init(&chain, ZT_TLS_PEM_BYTES_MAX);
    for (unsigned i = 0; i + 1 < reply->n_chain; i++)
        add_first_cert(&chain, reply->chain_pem[i]);
    enum zt_err e =
        zt_tls_cred_new(zt_str_cstr(&chain), s->csr.key_pem, reply->chain_pem[reply->n_chain - 1],
                        config->any_san ? NULL : s->identity, &config->profile, &cred, &inner);
    if (e == ZT_OK)
        e = zt_tls_cred_check(cred, &inner);
    if (e == ZT_IDENTITY)
        zt_error_set(err, e, "did not find expected SAN: %s", s->identity);
    else if (e != ZT_OK)
        zt_error_set(err, ZT_IDENTITY, "failed to create CSR: %s", inner.text);
    else if (strcmp(zt_tls_cred_identity(cred), s->identity) != 0)
        zt_log_warn(SCOPE, "expected identity %s, got %s", s->identity, zt_tls_cred_identity(cred));
    zt_str_fini(&chain);
    if (e == ZT_OK)
        return cred;
    zt_tls_cred_unref(cred);
    return NULL;
}

/* A credential from a reply and the key of this call. Returns owned; NULL with the text of §6.6 in
 * err. */
static struct zt_tls_cred *build_cred(struct zt_secret *s, const struct zt_ca_reply *reply,
                                      struct zt_error *err)
{
    if (reply->code != ZT_OK) {
        zt_error_set(err, ZT_IDENTITY, "%s", reply->error ? reply->error : "signing error");
    } else if (reply->n_chain == 0) {
        zt_error_set(err, ZT_IDENTITY, "chain returned from CA is empty for: %s", s->identity);
    } else if (reply->n_chain == 1) {
        zt_log_warn(SCOPE, "no chain certs for: %s", s->identity);
        zt_error_set(err, ZT_IDENTITY,
                     "failed to create CSR: invalid root certificate: no root certificate present");
    } else if (reply->n_chain > ZT_TLS_CHAIN_MAX) {
        zt_error_set(err, ZT_IDENTITY, "failed to create CSR: more than %d certificates",
                     ZT_TLS_CHAIN_MAX);
    } else {
        return join(s, reply, err);
    }
    return NULL;
}

/* The end of every call, however it came. */
static void finish(struct zt_secret *s, const struct zt_ca_reply *reply)
{
    struct zt_secrets *m = s->secrets;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_tls_cred *cred = build_cred(s, reply, &err);
    end_call(s);
    if (!cred)
        fail(s, err.text);
    else if (s->state != ZT_SECRET_ABSENT)
        succeed(s, cred);
    else
        zt_tls_cred_unref(cred);
    if (s->state == ZT_SECRET_ABSENT)
        zt_secret_linger(s);
    zt_secrets_advance(m);
}

static void on_reply(struct zt_ca_request *r, const struct zt_ca_reply *reply)
{
    finish(zt_container_of(r, struct zt_secret, call), reply);
}

static void on_call_timeout(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct zt_secret *s = zt_container_of(w, struct zt_secret, call_timer);
    struct zt_secrets *m = s->secrets;
    char text[96];
    zt_fmt(text, sizeof text, "signing error: no answer within %llu ms",
           (unsigned long long)m->config.call_timeout_ms);
    zt_ca_cancel(m->config.ca, &s->call);
    finish(s, &(struct zt_ca_reply){.code = ZT_TIMEOUT, .error = text});
}

void zt_secret_abort(struct zt_secret *s)
{
    if (!s->in_flight)
        return;
    zt_ca_cancel(s->secrets->config.ca, &s->call);
    end_call(s);
}

static void start(struct zt_secret *s)
{
    struct zt_secrets *m = s->secrets;
    struct zt_error err = ZT_ERROR_INIT;
    zt_list_remove(&s->list_link);
    s->last_csr_ms = zt_clock_mono_ms();
    m->n_csrs++;
    if (zt_csr_init(&s->csr, s->identity, &err) != ZT_OK) {
        zt_error_wrap(&err, "failed to create CSR");
        fail(s, err.text);
        return;
    }
    s->in_flight = true;
    m->n_in_flight++;
    s->call = (struct zt_ca_request){.done = on_reply};
    ev_timer_init(&s->call_timer, on_call_timeout, (double)m->config.call_timeout_ms / 1000, 0);
    ev_timer_start(zt_loop_ev(m->config.loop), &s->call_timer);
    zt_ca_sign(m->config.ca, &s->call, s->identity, s->csr.pem, m->config.ttl_s);
}

/* ---- the machine -------------------------------------------------------------------------------
 */

static void reap(struct zt_secrets *m, uint64_t now)
{
    zt_list_each_safe (l, &m->lingering) {
        struct zt_secret *s = zt_container_of(l, struct zt_secret, list_link);
        if (s->due_ms <= now)
            zt_secret_delete(s);
    }
}

static void earliest(const struct zt_link *list, uint64_t *best)
{
    zt_list_each (l, list) {
        const struct zt_secret *s = zt_container_of(l, struct zt_secret, list_link);
        if (s->due_ms < *best)
            *best = s->due_ms;
    }
}

/* Starts what may be started and arms the timer for the next thing that lies in the future. */
void zt_secrets_advance(struct zt_secrets *m)
{
    struct ev_loop *ev = zt_loop_ev(m->config.loop);
    uint64_t now = zt_clock_mono_ms(), next = UINT64_MAX;
    struct zt_secret *s;
    reap(m, now);
    while (m->n_in_flight < m->config.csrs_max && (s = pick(m, now)))
        start(s);
    if (m->n_in_flight < m->config.csrs_max) /* otherwise the end of a call comes first */
        earliest(&m->queue, &next);
    earliest(&m->lingering, &next);
    ev_timer_stop(ev, &m->timer);
    if (next == UINT64_MAX)
        return;
    ev_now_update(ev);
    ev_timer_set(&m->timer, next > now ? (double)(next - now) / 1000 : 0, 0);
    ev_timer_start(ev, &m->timer);
}

void zt_secrets_on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    zt_secrets_advance(zt_container_of(w, struct zt_secrets, timer));
}
