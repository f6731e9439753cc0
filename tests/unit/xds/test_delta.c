/* The ADS client against a scripted gRPC server: TLS, threads and back-off are real. */
#include "support/rpc_rig.h"
#include "support/xds_fixture.h"
#include "xds/xds_impl.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/state/route.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <cmocka.h>

#define LIMIT_MS 20000
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TURN_US_MAX 50000 /* the sanitizer takes a multiple */
#else
#define TURN_US_MAX 5000
#endif

typedef Envoy__Service__Discovery__V3__DeltaDiscoveryRequest pb_request;

struct rig {
    struct rpc_rig rpc;
    struct zt_loop *apply;
    struct zt_store *store;
    struct zt_metrics *metrics;
    struct zt_rpc_channel *channel;
    struct zt_xds *xds;
    unsigned n_synced, n_applied;
    size_t workloads_at_sync;
    bool denied_80_at_sync, denied_81_at_sync;
    int64_t longest_turn_us;
};

static const uint8_t ip1[] = {10, 0, 0, 1}, ip2[] = {10, 0, 0, 2};

static bool denied(struct rig *r, uint16_t port)
{
    struct zt_workload *w = zt_store_find_workload(r->store, "c//Pod/ns1/a");
    struct zt_authz_request q = {.dst = {.port = port}};
    struct zt_error err = ZT_ERROR_INIT;
    zt_addr_parse("10.0.0.9:1", &q.src);
    q.dst.ip = zt_ip_from_bytes(ip1, 4);
    assert_non_null(w);
    bool is = zt_authz_decide(r->store, w, &q, NULL, &err) != ZT_OK;
    zt_workload_unref(w);
    return is;
}

static void on_applied(void *arg, const struct zt_store_changes *changes)
{
    struct rig *r = arg;
    r->n_applied++;
}

static void on_synced(void *arg)
{
    struct rig *r = arg;
    size_t services, policies;
    r->n_synced++;
    zt_store_counts(r->store, &r->workloads_at_sync, &services, &policies);
    if (policies == 0)
        return;
    r->denied_80_at_sync = denied(r, 80);
    r->denied_81_at_sync = denied(r, 81);
}

static const struct zt_xds_events events = {.on_applied = on_applied, .on_synced = on_synced};

static void start(struct rig *r, const struct zt_rpc_channel_config *config)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_xds_pair metadata[] = {{"CLUSTER_ID", "c1"}, {"LABELS", "replaced"}};
    struct zt_xds_pair json[] = {{"LABELS", "{\"a\": [1, true, null, \"x\"]}"}, {"BAD", "{"}};
    struct zt_xds_config node = {
        .instance_ip = "10.1.1.1",
        .pod_name = "ztunnel-x",
        .pod_namespace = "istio-system",
        .node_name = "node1",
        .metadata = metadata,
        .n_metadata = 2,
        .metadata_json = json,
        .n_metadata_json = 2,
    };
    assert_int_equal(zt_rpc_channel_new(r->rpc.rpc, config, &r->channel, &err), ZT_OK);
    r->xds = zt_xds_new(r->rpc.loop, r->apply, r->store, &zt_xds_over_rpc, r->channel, &node,
                        r->metrics, &events, r);
    zt_xds_start(r->xds);
}

static int setup(void **state)
{
    struct rig *r = zt_new(struct rig);
    struct zt_error err = ZT_ERROR_INIT;
    rpc_rig_init(&r->rpc, NULL, NULL);
    r->store = zt_store_new(&(struct zt_store_config){.network = ""});
    r->metrics = zt_metrics_new();
    zt_xds_register_metrics(r->metrics);
    r->apply = zt_loop_new("apply");
    if (zt_loop_start(r->apply, &err) != ZT_OK)
        return -1;
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    struct rig *r = *state;
    zt_xds_free(r->xds);
    zt_rpc_channel_free(r->channel);
    zt_loop_stop(r->apply);
    zt_loop_join(r->apply);
    zt_loop_free(r->apply);
    rpc_rig_fini(&r->rpc);
    zt_store_free(r->store);
    zt_metrics_free(r->metrics);
    zt_free(r);
    return 0;
}

static void start_default(struct rig *r)
{
    struct zt_rpc_channel_config c = rpc_rig_config(&r->rpc);
    c.receive_bytes_max = ZT_RPC_ADS_RECEIVE_BYTES;
    start(r, &c);
}

static int64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* One turn; its processor time is what counts, for the machine may be busy. */
static void turn(struct rig *r)
{
    int64_t begin = cpu_us();
    zt_loop_run_once(r->rpc.loop, false);
    int64_t took = cpu_us() - begin;
    if (took > r->longest_turn_us)
        r->longest_turn_us = took;
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

#define WAIT(condition)                                                                            \
    do {                                                                                           \
        uint64_t end_ = now_ms() + LIMIT_MS;                                                       \
        while (!(condition)) {                                                                     \
            if (now_ms() > end_)                                                                   \
                fail_msg("not within %d ms: %s", LIMIT_MS, #condition);                            \
            turn(r);                                                                               \
        }                                                                                          \
    } while (0)

/* The i-th request that the call received, unpacked. */
static pb_request *request(struct rig *r, struct grpc_server_call *c, unsigned i)
{
    size_t n;
    WAIT(grpc_server_call_messages(c) > i);
    const void *bytes = grpc_server_call_message(c, i, &n);
    pb_request *q = envoy__service__discovery__v3__delta_discovery_request__unpack(NULL, n, bytes);
    assert_non_null(q);
    return q;
}

static void done(pb_request *q)
{
    envoy__service__discovery__v3__delta_discovery_request__free_unpacked(q, NULL);
}

static struct grpc_server_call *stream(struct rig *r, unsigned n)
{
    WAIT(grpc_server_rig_calls(r->rpc.server) >= n);
    return grpc_server_rig_call(r->rpc.server, n - 1);
}

static void respond(struct grpc_server_call *c, struct zt_str *s)
{
    grpc_server_call_send(c, s->data, s->len);
    zt_str_fini(s);
}

static void send_pod(struct grpc_server_call *c, const char *nonce, const char *uid,
                     const char *version, const uint8_t *ip)
{
    struct zt_str s;
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, nonce);
    xds_response_pod(&s, uid, version, ip, NULL);
    respond(c, &s);
}

static void send_empty(struct grpc_server_call *c, const char *type, const char *nonce)
{
    struct zt_str s;
    xds_response_init(&s, type, nonce);
    respond(c, &s);
}

/* Fails unless request i is an ACK (nack NULL) or a NACK with this text of this nonce. */
static void expect_answer(struct rig *r, struct grpc_server_call *c, unsigned i, const char *nonce,
                          const char *nack)
{
    pb_request *q = request(r, c, i);
    assert_string_equal(q->response_nonce, nonce);
    assert_int_equal(q->n_resource_names_subscribe + q->n_resource_names_unsubscribe +
                         q->n_initial_resource_versions,
                     0);
    assert_null(q->node);
    if (nack) {
        assert_non_null(q->error_detail);
        assert_string_equal(q->error_detail->message, nack);
        assert_int_equal(q->error_detail->code, 3);
    } else {
        assert_null(q->error_detail);
    }
    done(q);
}

static bool has_workload(struct rig *r, const char *uid)
{
    struct zt_workload *w = zt_store_find_workload(r->store, uid);
    zt_workload_unref(w);
    return w;
}

static void expect_metric(struct rig *r, const char *line)
{
    struct zt_str s;
    zt_str_init(&s, 1 << 20);
    zt_metrics_write(r->metrics, &s);
    if (!strstr(zt_str_cstr(&s), line))
        fail_msg("no \"%s\" in\n%s", line, zt_str_cstr(&s));
    zt_str_fini(&s);
}

/* ---- cases ---- */

static void initial_requests_name_node_and_both_types(void **state)
{
    struct rig *r = *state;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    assert_string_equal(grpc_server_call_method(c), ZT_XDS_METHOD);
    for (unsigned i = 0; i < 2; i++) {
        pb_request *q = request(r, c, i);
        assert_string_equal(q->type_url, i ? ZT_XDS_TYPE_AUTHORIZATION : ZT_XDS_TYPE_ADDRESS);
        assert_int_equal(q->n_resource_names_subscribe + q->n_resource_names_unsubscribe, 0);
        assert_string_equal(q->response_nonce, "");
        assert_non_null(q->node);
        assert_string_equal(q->node->id, "ztunnel~10.1.1.1~ztunnel-x.istio-system~istio-system."
                                         "svc.cluster.local");
        done(q);
    }
}

static const Google__Protobuf__Value *metadata(const pb_request *q, const char *key)
{
    for (size_t i = 0; i < q->node->metadata->n_fields; i++)
        if (strcmp(q->node->metadata->fields[i]->key, key) == 0)
            return q->node->metadata->fields[i]->value;
    return NULL;
}

static void test_json_to_value(void **state)
{
    struct rig *r = *state;
    start_default(r);
    pb_request *q = request(r, stream(r, 1), 0);
    assert_string_equal(metadata(q, "NAMESPACE")->string_value, "istio-system");
    assert_string_equal(metadata(q, "INSTANCE_IPS")->string_value, "10.1.1.1");
    assert_string_equal(metadata(q, "CLUSTER_ID")->string_value, "c1");
    assert_null(metadata(q, "BAD"));
    const Google__Protobuf__Value *labels = metadata(q, "LABELS");
    assert_int_equal(labels->kind_case, GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE);
    Google__Protobuf__Value *list = labels->struct_value->fields[0]->value;
    assert_int_equal(list->kind_case, GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE);
    assert_int_equal(list->list_value->n_values, 4);
    assert_true(list->list_value->values[0]->number_value == 1.0);
    assert_true(list->list_value->values[1]->bool_value);
    assert_int_equal(list->list_value->values[2]->kind_case,
                     GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE);
    assert_string_equal(list->list_value->values[3]->string_value, "x");
    done(q);
}

static void test_that_caches_are_warm_before_unblocked(void **state)
{
    struct rig *r = *state;
    struct zt_str s;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    send_pod(c, "n1", "c//Pod/ns1/a", "v1", ip1);
    expect_answer(r, c, 2, "n1", NULL);
    assert_int_equal(r->n_synced, 0);
    xds_response_init(&s, ZT_XDS_TYPE_AUTHORIZATION, "n2");
    xds_response_deny_port(&s, "ns1", "deny", 80);
    respond(c, &s);
    expect_answer(r, c, 3, "n2", NULL);
    WAIT(r->n_synced == 1);
    assert_int_equal(r->workloads_at_sync, 1);
    assert_true(r->denied_80_at_sync);
    assert_false(r->denied_81_at_sync);
    expect_metric(r,
                  "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"} 1");
    expect_metric(
        r, "istio_xds_message_bytes_total{url=\"type.googleapis.com/istio.workload.Address\"}");
}

static void a3_nacked_first_response_keeps_the_gate_shut(void **state)
{
    struct rig *r = *state;
    struct zt_str s;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    send_empty(c, ZT_XDS_TYPE_AUTHORIZATION, "n1");
    expect_answer(r, c, 2, "n1", NULL);
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, "n2");
    xds_response_raw(&s, "x", "v1", "", 0);
    respond(c, &s);
    expect_answer(r, c, 3, "n2", "x: unknown address type");
    assert_int_equal(r->n_synced, 0);
    send_empty(c, ZT_XDS_TYPE_ADDRESS, "n3");
    expect_answer(r, c, 4, "n3", NULL);
    WAIT(r->n_synced == 1);
}

static void test_reconnect_echoes_retained_versions(void **state)
{
    struct rig *r = *state;
    struct zt_str s;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    pb_request *q = request(r, c, 0);
    assert_int_equal(q->n_initial_resource_versions, 0);
    done(q);
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, "n1");
    xds_response_pod(&s, "c//Pod/ns1/good", "v7", ip1, NULL);
    xds_response_raw(&s, "bad", "v1", "\xff", 1);
    respond(c, &s);
    q = request(r, c, 2);
    assert_non_null(q->error_detail);
    done(q);
    grpc_server_call_end(c, 14, "gone");
    uint64_t cut = now_ms();
    c = stream(r, 2);
    assert_true(now_ms() - cut < 5000); /* a stream that worked is opened again at once */
    q = request(r, c, 0);
    assert_int_equal(q->n_initial_resource_versions, 1);
    assert_string_equal(q->initial_resource_versions[0]->key, "c//Pod/ns1/good");
    assert_string_equal(q->initial_resource_versions[0]->value, "v7");
    done(q);
    q = request(r, c, 1);
    assert_int_equal(q->n_initial_resource_versions, 0);
    done(q);
    expect_metric(r, "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 1");
}

static void test_add_abort_remove(void **state)
{
    struct rig *r = *state;
    struct zt_str s;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    send_pod(c, "n1", "c//Pod/ns1/a", "v1", ip1);
    expect_answer(r, c, 2, "n1", NULL);
    grpc_server_call_end(c, 10, "abort");
    c = stream(r, 2);
    assert_true(has_workload(r, "c//Pod/ns1/a"));
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, "n2");
    xds_response_remove(&s, "c//Pod/ns1/a");
    respond(c, &s);
    expect_answer(r, c, 2, "n2", NULL);
    assert_false(has_workload(r, "c//Pod/ns1/a"));
    expect_metric(r, "istio_xds_connection_terminations_total{reason=\"Error\"} 1");
}

static void resource_exhausted_before_an_answer_sweeps_instead_of_naming(void **state)
{
    struct rig *r = *state;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    send_pod(c, "n1", "c//Pod/ns1/a", "v1", ip1);
    expect_answer(r, c, 2, "n1", NULL);
    grpc_server_call_end(c, 14, "");
    c = stream(r, 2);
    pb_request *q = request(r, c, 0);
    assert_int_equal(q->n_initial_resource_versions, 1);
    done(q);
    grpc_server_call_end(c, 8, "too large");
    c = stream(r, 3);
    q = request(r, c, 0);
    assert_int_equal(q->n_initial_resource_versions, 0);
    done(q);
    send_pod(c, "n2", "c//Pod/ns1/b", "v1", ip2);
    expect_answer(r, c, 2, "n2", NULL);
    assert_false(has_workload(r, "c//Pod/ns1/a"));
    assert_true(has_workload(r, "c//Pod/ns1/b"));
    expect_metric(r, "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 1");
}

static void bytes_that_are_no_response_end_the_stream(void **state)
{
    struct rig *r = *state;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    send_pod(c, "n1", "c//Pod/ns1/a", "v1", ip1);
    expect_answer(r, c, 2, "n1", NULL);
    grpc_server_call_send(c, "\xff\xff", 2);
    WAIT(grpc_server_call_closed(c));
    stream(r, 2);
    assert_true(has_workload(r, "c//Pod/ns1/a"));
}

static void completed_stream_is_opened_again_without_a_hot_loop(void **state)
{
    struct rig *r = *state;
    start_default(r);
    for (unsigned i = 1; i <= 5; i++)
        grpc_server_call_end(stream(r, i), 0, "");
    uint64_t begin = now_ms();
    unsigned calls = grpc_server_rig_calls(r->rpc.server);
    while (now_ms() < begin + 100)
        turn(r);
    assert_true(grpc_server_rig_calls(r->rpc.server) <= calls + 1);
    expect_metric(r, "istio_xds_connection_terminations_total{reason=\"Complete\"}");
}

/* A4 */
static void a4_root_and_token_files_are_read_at_each_attempt(void **state)
{
    struct rig *r = *state;
    struct zt_rpc_channel_config c = rpc_rig_config(&r->rpc);
    grpc_server_rig_set_token(r->rpc.server, "second");
    char *token = zt_strdup(rpc_rig_write(&r->rpc, "token", "first\n"));
    char *root = zt_strdup(rpc_rig_write(&r->rpc, "root.pem", ""));
    c.token = token;
    c.root_ca = root;
    start(r, &c);
    uint64_t begin = now_ms();
    while (now_ms() < begin + 60)
        turn(r);
    assert_int_equal(grpc_server_rig_calls(r->rpc.server), 0);
    rpc_rig_write(&r->rpc, "root.pem", r->rpc.root_pem);
    WAIT(grpc_server_rig_refused(r->rpc.server) > 0);
    rpc_rig_write(&r->rpc, "token", "second\n");
    stream(r, 1);
    zt_free(token);
    zt_free(root);
}

/* ---- nobody waits long ---- */

/* A reader of its own thread. The machine may be busy: a wait counts as far as the writer worked
 * meanwhile, and one in which the reader was set aside by others does not count. */
struct reader {
    struct rig *rig;
    pthread_t thread;
    struct zt_msg hello;
    clockid_t writer;
    atomic_bool known, stop;
    int64_t longest_us;
    unsigned n;
};

static int64_t clock_us(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static long n_set_aside(void)
{
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    return u.ru_nivcsw;
}

static void on_hello(struct zt_msg *m)
{
    struct reader *reader = zt_container_of(m, struct reader, hello);
    pthread_getcpuclockid(pthread_self(), &reader->writer);
    atomic_store(&reader->known, true);
}

static void *read_on(void *arg)
{
    struct reader *reader = arg;
    struct zt_ip ip = zt_ip_from_bytes(ip1, 4);
    while (!atomic_load(&reader->stop)) {
        long aside = n_set_aside();
        int64_t began = clock_us(CLOCK_MONOTONIC), worked = clock_us(reader->writer);
        zt_workload_unref(zt_store_workload_at(reader->rig->store, "", &ip));
        worked = clock_us(reader->writer) - worked;
        int64_t waited = clock_us(CLOCK_MONOTONIC) - began;
        int64_t both = waited < worked ? waited : worked;
        if (both > reader->longest_us && n_set_aside() == aside)
            reader->longest_us = both;
        reader->n++;
    }
    return NULL;
}

static void reader_start(struct reader *reader, struct rig *r)
{
    *reader = (struct reader){.rig = r, .hello.run = on_hello};
    zt_loop_post(r->apply, &reader->hello);
    WAIT(atomic_load(&reader->known));
    assert_int_equal(pthread_create(&reader->thread, NULL, read_on, reader), 0);
}

static void reader_stop(struct reader *reader)
{
    atomic_store(&reader->stop, true);
    pthread_join(reader->thread, NULL);
    if (reader->longest_us > TURN_US_MAX)
        fail_msg("a reader waited %lld us", (long long)reader->longest_us);
    assert_true(reader->n > 100);
}

/* Neither the control loop nor a reader, from the empty tables on. */
static void no_turn_and_no_reader_waits_long_while_200000_resources_are_applied(void **state)
{
    enum { PART = 50000, PARTS = 4 };
    struct rig *r = *state;
    struct reader reader;
    size_t w, v, p;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    reader_start(&reader, r);
    for (unsigned part = 0; part < PARTS; part++) {
        struct zt_str s;
        char nonce[8];
        zt_fmt(nonce, sizeof nonce, "n%u", part);
        xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, nonce);
        for (unsigned i = part * PART; i < (part + 1) * PART; i++) {
            char uid[64], service[32];
            uint8_t ip[] = {10, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i};
            zt_fmt(uid, sizeof uid, "cluster1//Pod/ns1/pod-%u", i);
            zt_fmt(service, sizeof service, "ns1/svc%u.example", i / 10);
            xds_response_pod(&s, uid, "0123456789abcdef", ip, service);
        }
        respond(c, &s);
        r->longest_turn_us = 0;
        expect_answer(r, c, 2 + part, nonce, NULL);
        if (r->longest_turn_us > TURN_US_MAX)
            fail_msg("a turn of %lld us", (long long)r->longest_turn_us);
    }
    reader_stop(&reader);
    zt_store_counts(r->store, &w, &v, &p);
    assert_int_equal(w, PART * PARTS);
    assert_true(r->n_applied >= PART * PARTS / ZT_BATCH_LOCK_RECORDS_MAX);
}

static void big_response(struct rig *r, struct grpc_server_call *c, const char *nonce, size_t mib)
{
    struct zt_str s;
    char *name = zt_zalloc(1 << 20);
    memset(name, 'x', (1 << 20) - 64);
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, nonce);
    xds_response_pod(&s, nonce, "v1", ip1, NULL);
    for (size_t i = 0; i < mib; i++)
        xds_put_bytes(&s, 100, name, 1 << 20); /* a field that we do not know */
    zt_free(name);
    respond(c, &s);
}

static void a12_response_of_150_mib_is_accepted_201_ends_the_stream(void **state)
{
    struct rig *r = *state;
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    big_response(r, c, "n1", 150);
    expect_answer(r, c, 2, "n1", NULL);
    big_response(r, c, "n2", 201);
    c = stream(r, 2);
    pb_request *q = request(r, c, 0);
    assert_int_equal(q->n_initial_resource_versions, 1);
    done(q);
    assert_true(has_workload(r, "n1"));
    assert_false(has_workload(r, "n2"));
}

static void freed_in_the_middle_of_a_response(void **state)
{
    struct rig *r = *state;
    struct zt_str s;
    xds_response_init(&s, ZT_XDS_TYPE_ADDRESS, "n1");
    for (unsigned i = 0; i < 20000; i++) {
        char uid[64];
        zt_fmt(uid, sizeof uid, "cluster1//Pod/ns1/pod-%u", i);
        xds_response_pod(&s, uid, "v", ip1, NULL);
    }
    start_default(r);
    struct grpc_server_call *c = stream(r, 1);
    respond(c, &s);
    WAIT(r->n_applied > 0);
    zt_xds_free(r->xds); /* the sanitizer looks at the rest */
    r->xds = NULL;
    unsigned n = r->n_applied;
    for (unsigned i = 0; i < 50; i++)
        turn(r);
    assert_int_equal(r->n_applied, n);
}

/* ---- back-off, over a transport that fails ---- */

static uint64_t attempts[16];
static unsigned n_attempts;

static enum zt_err refuse(struct zt_rpc_channel *channel, const char *method,
                          const struct zt_rpc_events *e, void *owner, struct zt_rpc_call **out,
                          struct zt_error *err)
{
    if (n_attempts < 16)
        attempts[n_attempts++] = now_ms();
    return zt_error_set(err, ZT_IDENTITY, "token file exists, but was empty");
}
static void free_nothing(struct zt_rpc_call *call)
{
    assert_null(call);
}
static const struct zt_xds_transport refusing = {.open = refuse, .free = free_nothing};

static void a5_back_off_doubles_from_twenty_ms(void **state)
{
    struct rig *r = *state;
    struct zt_xds_config node = {0};
    n_attempts = 0;
    r->xds =
        zt_xds_new(r->rpc.loop, r->apply, r->store, &refusing, NULL, &node, r->metrics, &events, r);
    zt_xds_start(r->xds);
    WAIT(n_attempts == 7);
    for (unsigned i = 1; i < 7; i++) {
        uint64_t gap = attempts[i] - attempts[i - 1], want = 10u << i;
        if (gap + 2 < want)
            fail_msg("attempt %u came after %llu ms, not %llu", i + 1, (unsigned long long)gap,
                     (unsigned long long)want);
    }
    expect_metric(r, "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 7");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(initial_requests_name_node_and_both_types),
        TEST(test_json_to_value),
        TEST(test_that_caches_are_warm_before_unblocked),
        TEST(a3_nacked_first_response_keeps_the_gate_shut),
        TEST(test_reconnect_echoes_retained_versions),
        TEST(test_add_abort_remove),
        TEST(resource_exhausted_before_an_answer_sweeps_instead_of_naming),
        TEST(bytes_that_are_no_response_end_the_stream),
        TEST(completed_stream_is_opened_again_without_a_hot_loop),
        TEST(a4_root_and_token_files_are_read_at_each_attempt),
        TEST(a5_back_off_doubles_from_twenty_ms),
        TEST(no_turn_and_no_reader_waits_long_while_200000_resources_are_applied),
        TEST(freed_in_the_middle_of_a_response),
        TEST(a12_response_of_150_mib_is_accepted_201_ends_the_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
