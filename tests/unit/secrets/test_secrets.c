/* The secret manager (spec/controlplane §6.4, §6.5, §9.6). The test thread is the control loop; the
 * CA is real, behind a wrapper that can delay, fail and fall silent. */
#include "zt/secrets/secrets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "secrets/secrets_impl.h"
#include "support/ca_faulty.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/secrets/ca_local.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_MS 60000 /* sanitizers on a busy machine; nothing waits this long when all is well */
/* With the CA's backdating of 120 s, half life is one second away: ttl/2 - 60 s. */
#define TTL_RENEWED_AT_ONCE 122

static struct zt_loop *loop;
static struct zt_ca *local;
static struct ca_faulty *ca;
static struct zt_secrets *secrets;
static char dir[64];
static ev_timer tick;

static void on_tick(struct ev_loop *ev, ev_timer *w, int revents)
{
}

static void start_manager_of_dedicated_mode(void)
{
    zt_secrets_free(secrets);
    secrets = zt_secrets_new(&(struct zt_secrets_config){
        .loop = loop, .ca = &ca->ca, .ttl_s = 86400, .any_san = true});
}

static void start_manager(unsigned csrs_max, uint64_t call_timeout_ms)
{
    zt_secrets_free(secrets);
    struct zt_secrets_config config = {.loop = loop,
                                       .ca = &ca->ca,
                                       .ttl_s = 86400,
                                       .csrs_max = csrs_max,
                                       .call_timeout_ms = call_timeout_ms};
    secrets = zt_secrets_new(&config);
}

static int setup(void **state)
{
    zt_fmt(dir, sizeof dir, "/tmp/zt-secrets-test-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    loop = zt_loop_new("zt-test");
    ev_timer_init(&tick, on_tick, 0.002, 0.002);
    ev_timer_start(zt_loop_ev(loop), &tick);
    if (zt_ca_local_open(loop, dir, &local, NULL) != ZT_OK)
        return -1;
    ca = ca_faulty_new(loop, local);
    start_manager(0, 0);
    return 0;
}

static int teardown(void **state)
{
    char path[128];
    zt_secrets_free(secrets);
    secrets = NULL;
    ev_timer_stop(zt_loop_ev(loop), &tick);
    zt_ca_free(&ca->ca);
    zt_ca_free(local);
    zt_loop_free(loop);
    zt_fmt(path, sizeof path, "%s/root.pem", dir);
    unlink(path);
    zt_fmt(path, sizeof path, "%s/root-cert.pem", dir);
    unlink(path);
    return rmdir(dir);
}

/* Runs the loop until cond holds; fails the test when it does not. */
#define run_until(cond)                                                                            \
    do {                                                                                           \
        uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;                                          \
        while (!(cond)) {                                                                          \
            if (zt_clock_mono_ms() > deadline)                                                     \
                fail_msg("did not happen: %s", #cond);                                             \
            zt_loop_run_once(loop, true);                                                          \
        }                                                                                          \
    } while (0)

static void run_for(uint64_t ms)
{
    uint64_t end = zt_clock_mono_ms() + ms;
    while (zt_clock_mono_ms() < end)
        zt_loop_run_once(loop, true);
}

struct asker {
    bool answered;
    struct zt_tls_cred *cred;
    char error[256];
    struct zt_secret_request *request;
};

static void on_cred(void *owner, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct asker *a = owner;
    assert_false(a->answered);
    a->answered = true;
    a->cred = cred;
    if (err)
        zt_fmt(a->error, sizeof a->error, "%s", err->text);
}

static enum zt_err ask(struct asker *a, const char *id, enum zt_secret_priority priority)
{
    struct zt_error err = ZT_ERROR_INIT;
    *a = (struct asker){0};
    enum zt_err e =
        zt_secrets_get(secrets, id, priority, loop, on_cred, a, &a->request, &a->cred, &err);
    assert_false(a->answered);
    zt_fmt(a->error, sizeof a->error, "%s", err.text);
    return e;
}

/* Asks and waits; an answer at once is fine too. */
static void fetch(struct asker *a, const char *id)
{
    if (ask(a, id, ZT_SECRET_REALTIME) == ZT_AGAIN)
        run_until(a->answered);
}

static void drop(struct asker *a)
{
    zt_tls_cred_unref(a->cred);
    a->cred = NULL;
}

static const char *name(unsigned i)
{
    static char texts[8][64];
    char *text = texts[i % 8];
    zt_fmt(text, sizeof texts[0], "spiffe://td/ns/ns1/sa/sa%u", i);
    return text;
}

static const char *serial(const struct zt_tls_cred *cred)
{
    unsigned n_chain, n_roots;
    return zt_tls_cred_certs(cred, &n_chain, &n_roots)->serial_decimal;
}

static struct zt_secrets_stats stats(void)
{
    struct zt_secrets_stats s;
    zt_secrets_stats(secrets, &s);
    return s;
}

struct dump {
    unsigned n;
    char text[4096];
};

static void dump_one(void *arg, const struct zt_secret_info *info)
{
    struct dump *d = arg;
    size_t len = strlen(d->text);
    d->n++;
    zt_fmt(d->text + len, sizeof d->text - len, "%s=%s%s\n", info->identity, info->state,
           info->cred ? "+" : "");
}

static struct dump dump(void)
{
    struct dump d = {0};
    zt_secrets_each(secrets, dump_one, &d);
    return d;
}

static void test_unused_cleanup(void **state)
{
    assert_int_equal(stats().n_csrs, 0);
}

static void fetch_certificate(void **state)
{
    struct asker a;
    assert_int_equal(ask(&a, name(1), ZT_SECRET_REALTIME), ZT_AGAIN);
    run_until(a.answered);
    assert_non_null(a.cred);
    assert_string_equal(zt_tls_cred_identity(a.cred), name(1));
    drop(&a);
    assert_int_equal(ask(&a, name(1), ZT_SECRET_REALTIME), ZT_OK);
    drop(&a);
    assert_int_equal(ca->n_calls, 1);
}

static void test_duplicate_requests(void **state)
{
    struct asker a[4];
    ca->delay_ms = 50;
    for (int i = 0; i < 4; i++)
        assert_int_equal(ask(&a[i], name(1), ZT_SECRET_REALTIME), ZT_AGAIN);
    for (int i = 0; i < 4; i++)
        run_until(a[i].answered);
    assert_int_equal(ca->n_calls, 1);
    for (int i = 0; i < 4; i++) {
        assert_ptr_equal(a[i].cred, a[0].cred);
        zt_tls_cred_unref(a[i].cred);
    }
}

static void test_concurrency(void **state)
{
    struct asker a[4];
    start_manager(4, 0);
    ca->delay_ms = 300;
    uint64_t begin = zt_clock_mono_ms();
    for (unsigned i = 0; i < 4; i++)
        ask(&a[i], name(i), ZT_SECRET_REALTIME);
    for (int i = 0; i < 4; i++)
        run_until(a[i].answered);
    assert_true(zt_clock_mono_ms() - begin < 4 * 300); /* one after the other would take that long */
    assert_int_equal(ca->n_open_max, 4);
    for (int i = 0; i < 4; i++)
        drop(&a[i]);
}

/* A8: 300 identities at once, never more than 8 calls. */
static void test_concurrency_never_exceeds_eight_csrs(void **state)
{
    enum { N = 300 };
    ca->delay_ms = 1;
    for (unsigned i = 0; i < N; i++)
        zt_secrets_prefetch(secrets, name(i));
    assert_int_equal(stats().n_csrs_in_flight, ZT_SECRETS_CSRS_MAX);
    run_until(stats().n_available == N);
    assert_int_equal(ca->n_open_max, ZT_SECRETS_CSRS_MAX);
    assert_int_equal(ca->n_calls, N);
}

static void test_priority(void **state)
{
    struct asker a[4];
    start_manager(1, 0);
    ca->delay_ms = 20;
    ask(&a[0], name(0), ZT_SECRET_WARMUP);
    run_until(ca->n_calls == 1); /* in flight: is not pre-empted */
    ask(&a[1], name(1), ZT_SECRET_BACKGROUND);
    ask(&a[2], name(2), ZT_SECRET_WARMUP);
    ask(&a[3], name(3), ZT_SECRET_REALTIME);
    for (int i = 0; i < 4; i++)
        run_until(a[i].answered);
    static const unsigned order[] = {0, 3, 2, 1};
    for (int i = 0; i < 4; i++) {
        assert_string_equal(ca->asked[i], name(order[i]));
        drop(&a[i]);
    }
}

static void test_warmup_new(void **state)
{
    struct asker a;
    start_manager(1, 0);
    ca->delay_ms = 20;
    for (unsigned i = 0; i < 4; i++)
        zt_secrets_prefetch(secrets, name(i));
    ask(&a, name(7), ZT_SECRET_REALTIME);
    run_until(a.answered);
    assert_string_equal(ca->asked[0], name(0));
    assert_string_equal(ca->asked[1], name(7));
    drop(&a);
}

static void test_warmup_existing(void **state)
{
    struct asker a;
    start_manager(1, 0);
    ca->delay_ms = 20;
    for (unsigned i = 0; i < 4; i++)
        zt_secrets_prefetch(secrets, name(i));
    ask(&a, name(3), ZT_SECRET_REALTIME);
    run_until(a.answered);
    assert_string_equal(ca->asked[1], name(3));
    drop(&a);
    run_until(stats().n_available == 4);
    assert_int_equal(ca->n_calls, 4);
}

static void test_cache_refresh(void **state)
{
    struct asker first, second = {0};
    ca->ttl_s = TTL_RENEWED_AT_ONCE;
    fetch(&first, name(1));
    ca->ttl_s = 0;
    run_until(ca->n_calls == 2 && stats().n_csrs_in_flight == 0);
    fetch(&second, name(1));
    assert_string_not_equal(serial(first.cred), serial(second.cred));
    assert_true(zt_tls_cred_not_before_s(second.cred) >= zt_tls_cred_not_before_s(first.cred));
    drop(&first);
    drop(&second);
}

static void test_certificate_retention_on_refresh_failure(void **state)
{
    struct asker first, second;
    ca->ttl_s = TTL_RENEWED_AT_ONCE;
    fetch(&first, name(1));
    ca->fail_text = "signing gRPC error (x): y";
    run_until(stats().n_csrs_failed >= 1);
    assert_int_equal(stats().n_available, 1);
    assert_int_equal(ask(&second, name(1), ZT_SECRET_REALTIME), ZT_OK);
    assert_string_equal(serial(first.cred), serial(second.cred));
    drop(&first);
    drop(&second);
}

static void failed_renewal_of_an_ended_certificate_makes_it_unavailable(void **state)
{
    struct asker a;
    ca->ttl_s = TTL_RENEWED_AT_ONCE;
    fetch(&a, name(1));
    drop(&a);
    ca->fail_text = "down";
    zt_clock_test_advance_ms(600000);
    assert_int_equal(ask(&a, name(1), ZT_SECRET_REALTIME),
                     ZT_OK); /* until the renewal has been tried */
    drop(&a);
    assert_true(stats().expiry_known && stats().expiry_in_s < 0);
    run_until(stats().n_unavailable == 1);
    assert_int_equal(ask(&a, name(1), ZT_SECRET_REALTIME), ZT_IDENTITY);
    zt_clock_test_advance_ms(-600000);
}

static void test_backoff_resets_on_successful_fetch_after_failure(void **state)
{
    struct asker a;
    ca->fail_text = "signing gRPC error (The service is currently unavailable): no";
    fetch(&a, name(1));
    assert_null(a.cred);
    assert_string_equal(a.error, ca->fail_text);
    ca->fail_text = NULL;
    uint64_t begin = zt_clock_mono_ms();
    assert_int_equal(ask(&a, name(1), ZT_SECRET_REALTIME), ZT_IDENTITY); /* no retry is triggered */
    assert_string_equal(a.error, "signing gRPC error (The service is currently unavailable): no");
    assert_int_equal(ca->n_calls, 1);
    run_until(stats().n_available == 1);
    assert_in_range(zt_clock_mono_ms() - begin, 500, 3000);
    fetch(&a, name(1));
    assert_non_null(a.cred);
    drop(&a);
}

static void backoff_doubles_with_jitter_up_to_its_cap(void **state)
{
    assert_int_equal(zt_secret_backoff_ms(1, 0, UINT32_MAX / 2), 999);
    for (unsigned n = 1; n <= 40; n++) {
        uint64_t middle = n >= 9 ? 150000 : 1000ull << (n - 1);
        uint64_t low = zt_secret_backoff_ms(n, 0, 0), high = zt_secret_backoff_ms(n, 0, UINT32_MAX);
        assert_int_equal(low, middle * 4 / 5);
        assert_true(high <= middle * 6 / 5 && high <= 150000 && high > low);
    }
    assert_int_equal(zt_secret_backoff_ms(3, ZT_SECRETS_BACKOFF_SPAN_MS, 0), 150000);
}

static void cert_expiration(void **state)
{
    assert_int_equal(zt_secret_renewal_delay_s(1000, 3000, 1000), 1000);
    assert_int_equal(zt_secret_renewal_delay_s(1000, 3000, 1900), 100);
    assert_int_equal(zt_secret_renewal_delay_s(1000, 3000, 2500), 0);
    assert_int_equal(zt_secret_renewal_delay_s(1000, 3000, 3000), 0); /* expired */
    assert_int_equal(zt_secret_renewal_delay_s(1000, 3000, 900), 0);  /* not yet valid */
}

static void csrs_of_one_identity_keep_a_second_between_them(void **state)
{
    struct asker a;
    ca->ttl_s = 1; /* half life is long past */
    fetch(&a, name(1));
    drop(&a);
    run_for(1500);
    assert_in_range(ca->n_calls, 2, 3);
}

static void test_forget(void **state)
{
    struct asker a;
    fetch(&a, name(1));
    drop(&a);
    assert_int_equal(dump().n, 1);
    zt_secrets_forget(secrets, name(1));
    assert_int_equal(dump().n, 0);
    fetch(&a, name(1)); /* wanted again: fetched again */
    assert_non_null(a.cred);
    drop(&a);
    assert_int_equal(ca->n_calls, 2);
}

static void test_forget_pending(void **state)
{
    struct asker a;
    ca->delay_ms = 50;
    ask(&a, name(1), ZT_SECRET_REALTIME);
    run_until(ca->n_calls == 1);
    zt_secrets_forget(secrets, name(1));
    run_until(a.answered);
    assert_null(a.cred);
    assert_string_equal(a.error, "the identity is no longer needed");
    run_until(stats().n_csrs_in_flight == 0);
    assert_int_equal(dump().n, 0);
    assert_int_equal(stats().n_available, 0);
}

static void forgotten_identity_wanted_again_uses_the_call_in_flight(void **state)
{
    struct asker a;
    ca->delay_ms = 50;
    zt_secrets_prefetch(secrets, name(1));
    zt_secrets_forget(secrets, name(1));
    fetch(&a, name(1));
    assert_non_null(a.cred);
    assert_int_equal(ca->n_calls, 1);
    drop(&a);
}

static void forgotten_identities_leave_no_entry_behind(void **state)
{
    for (unsigned i = 0; i < 50; i++)
        zt_secrets_prefetch(secrets, name(i));
    run_until(stats().n_available == 50);
    for (unsigned i = 0; i < 50; i++)
        zt_secrets_forget(secrets, name(i));
    run_until(HASH_COUNT(secrets->table) == 0);
}

static void empty_chain(void **state)
{
    struct asker a;
    ca->empty_chain = true;
    fetch(&a, name(1));
    assert_string_equal(a.error, "chain returned from CA is empty for: spiffe://td/ns/ns1/sa/sa1");
}

static void chain_without_roots_is_refused(void **state)
{
    struct asker a;
    ca->no_roots = true;
    fetch(&a, name(1));
    assert_non_null(strstr(a.error, "no root certificate present"));
}

static void wrong_identity(void **state)
{
    struct asker a;
    ca->sign_as = "spiffe://td/ns/other/sa/other";
    fetch(&a, name(1));
    assert_string_equal(a.error, "did not find expected SAN: spiffe://td/ns/ns1/sa/sa1");
}

/* P18 */
static void dedicated_mode_takes_another_san_with_a_warning(void **state)
{
    struct asker a;
    start_manager_of_dedicated_mode();
    ca->sign_as = "spiffe://td/ns/other/sa/other";
    fetch(&a, name(1));
    assert_non_null(a.cred);
    assert_string_equal(zt_tls_cred_identity(a.cred), ca->sign_as);
    zt_tls_cred_unref(a.cred);
}

static void invalid_identity_is_refused_at_once(void **state)
{
    struct asker a;
    assert_int_equal(ask(&a, "nonsense", ZT_SECRET_REALTIME), ZT_IDENTITY);
    assert_string_equal(a.error, "invalid spiffe identity: nonsense");
    assert_int_equal(stats().n_csrs, 0);
}

/* A9 */
static void silent_ca_does_not_block_other_identities(void **state)
{
    struct asker a[2];
    start_manager(2, 200);
    ca->silent = true;
    ask(&a[0], name(0), ZT_SECRET_REALTIME);
    run_until(ca->n_calls == 1);
    ca->silent = false;
    fetch(&a[1], name(1));
    assert_non_null(a[1].cred);
    drop(&a[1]);
    run_until(a[0].answered);
    assert_string_equal(a[0].error, "signing error: no answer within 200 ms");
    assert_int_equal(ca->n_cancelled, 1);
}

static void cancelled_request_is_not_answered_and_leaks_nothing(void **state)
{
    struct asker a;
    ca->delay_ms = 20;
    ask(&a, name(1), ZT_SECRET_REALTIME);
    zt_secret_request_cancel(a.request);
    run_until(stats().n_available == 1);
    run_for(10);
    assert_false(a.answered);
}

static void free_answers_who_still_waits(void **state)
{
    struct asker a, b;
    ca->silent = true;
    ask(&a, name(1), ZT_SECRET_REALTIME);
    run_until(ca->n_calls == 1);
    ask(&b, name(2), ZT_SECRET_REALTIME); /* not seen by control yet */
    zt_secrets_free(secrets);
    secrets = NULL;
    run_until(a.answered && b.answered);
    assert_string_equal(a.error, "the identity is no longer needed");
    assert_string_equal(b.error, "the identity is no longer needed");
}

static void dump_is_sorted_and_words_the_states(void **state)
{
    ca->fail_identity = "spiffe://td/ns/ns1/sa/sa2";
    ca->fail_text = "down";
    zt_secrets_prefetch(secrets, name(3));
    zt_secrets_prefetch(secrets, name(2));
    run_until(stats().n_available == 1 && stats().n_unavailable == 1);
    ca->silent = true;
    zt_secrets_prefetch(secrets, name(1));
    struct dump d = dump();
    assert_string_equal(d.text, "spiffe://td/ns/ns1/sa/sa1=Initializing\n"
                                "spiffe://td/ns/ns1/sa/sa2=Unavailable: down\n"
                                "spiffe://td/ns/ns1/sa/sa3=Available+\n");
    assert_int_equal(stats().n_initializing, 1);
    assert_in_range(stats().expiry_in_s, 86390, 86400);
}

/* ---- several threads ----------------------------------------------------------------------------
 */

enum { CLIENTS = 8, IDENTITIES = 100 };

struct client {
    struct zt_loop *loop;
    struct zt_msg start;
    unsigned n_left;
    struct client_ask {
        struct client *client;
        struct zt_secret_request *request;
    } asks[IDENTITIES];
    _Atomic unsigned n_good, done;
};

static void count(struct client *c, struct zt_tls_cred *cred)
{
    atomic_fetch_add(&c->n_good, cred != NULL);
    zt_tls_cred_unref(cred);
    if (--c->n_left == 0)
        atomic_store(&c->done, 1);
}

static void on_client_cred(void *owner, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct client_ask *a = owner;
    zt_loop_assert_owner(a->client->loop);
    count(a->client, cred);
}

static void on_client_start(struct zt_msg *msg)
{
    struct client *c = zt_container_of(msg, struct client, start);
    for (unsigned i = 0; i < IDENTITIES; i++) {
        char id[64];
        struct zt_tls_cred *cred = NULL;
        zt_fmt(id, sizeof id, "spiffe://td/ns/ns1/sa/sa%u", i);
        c->asks[i].client = c;
        if (zt_secrets_get(secrets, id, ZT_SECRET_REALTIME, c->loop, on_client_cred, &c->asks[i],
                           &c->asks[i].request, &cred, NULL) != ZT_AGAIN)
            count(c, cred);
    }
}

static void test_stress_caching(void **state)
{
    struct client *clients = zt_new_n(struct client, CLIENTS);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i].loop = zt_loop_new("zt-client");
        clients[i].start.run = on_client_start;
        clients[i].n_left = IDENTITIES;
        assert_int_equal(zt_loop_start(clients[i].loop, NULL), ZT_OK);
        zt_loop_post(clients[i].loop, &clients[i].start);
    }
    for (int i = 0; i < CLIENTS; i++)
        run_until(atomic_load(&clients[i].done));
    assert_int_equal(stats().n_available, IDENTITIES);
    assert_int_equal(ca->n_calls, IDENTITIES);
    for (int i = 0; i < CLIENTS; i++) {
        assert_int_equal(atomic_load(&clients[i].n_good), IDENTITIES);
        zt_loop_stop(clients[i].loop);
        zt_loop_join(clients[i].loop);
        zt_loop_free(clients[i].loop);
    }
    zt_free(clients);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_unused_cleanup),
        T(fetch_certificate),
        T(test_duplicate_requests),
        T(test_concurrency),
        T(test_concurrency_never_exceeds_eight_csrs),
        T(test_priority),
        T(test_warmup_new),
        T(test_warmup_existing),
        T(test_cache_refresh),
        T(test_certificate_retention_on_refresh_failure),
        T(failed_renewal_of_an_ended_certificate_makes_it_unavailable),
        T(test_backoff_resets_on_successful_fetch_after_failure),
        T(backoff_doubles_with_jitter_up_to_its_cap),
        T(cert_expiration),
        T(csrs_of_one_identity_keep_a_second_between_them),
        T(test_forget),
        T(test_forget_pending),
        T(forgotten_identity_wanted_again_uses_the_call_in_flight),
        T(forgotten_identities_leave_no_entry_behind),
        T(empty_chain),
        T(chain_without_roots_is_refused),
        T(wrong_identity),
        T(dedicated_mode_takes_another_san_with_a_warning),
        T(invalid_identity_is_refused_at_once),
        T(silent_ca_does_not_block_other_identities),
        T(cancelled_request_is_not_answered_and_leaks_nothing),
        T(free_answers_who_still_waits),
        T(dump_is_sorted_and_words_the_states),
        T(test_stress_caching),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
