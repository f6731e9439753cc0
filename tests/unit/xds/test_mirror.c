/* Responses into the store, without threads: decoding, partial success, held versions, removal,
 * sweep. */
#include "support/xds_fixture.h"
#include "xds/xds_impl.h"
#include "zt/base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct rig {
    struct zt_store *store;
    struct zt_xds_mirror *mirror;
    struct zt_str response;
    struct zt_xds_outcome outcome;
    size_t steps;
};

static int setup(void **state)
{
    struct rig *r = zt_new(struct rig);
    r->store = zt_store_new(&(struct zt_store_config){.network = ""});
    r->mirror = zt_xds_mirror_new(r->store);
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    struct rig *r = *state;
    zt_xds_outcome_fini(&r->outcome);
    zt_str_fini(&r->response);
    zt_xds_mirror_free(r->mirror);
    zt_store_free(r->store);
    zt_free(r);
    assert_int_equal(xds_messages_alive(), 0);
    return 0;
}

static void begin(struct rig *r, enum zt_xds_type type)
{
    zt_str_fini(&r->response);
    xds_response_init(&r->response, zt_xds_type_url(type), "nonce");
}

/* Applies the response; returns the text of the NACK, NULL = accepted. */
static const char *apply_sliced(struct rig *r, size_t slice_bytes)
{
    struct zt_store_changes changes;
    zt_xds_outcome_fini(&r->outcome);
    r->steps = 0;
    if (zt_xds_mirror_begin(r->mirror,
                            xds_message(r->response.data, r->response.len, slice_bytes))) {
        bool more = true;
        while (more) {
            more = zt_xds_mirror_step(r->mirror, &changes);
            zt_store_changes_fini(&changes);
            r->steps++;
        }
    }
    zt_xds_mirror_end(r->mirror, &r->outcome);
    return r->outcome.nack;
}

static const char *apply(struct rig *r)
{
    return apply_sliced(r, 0);
}

static bool has_workload(struct rig *r, const char *uid)
{
    struct zt_workload *w = zt_store_find_workload(r->store, uid);
    zt_workload_unref(w);
    return w;
}

static size_t n_policies(struct rig *r)
{
    size_t w, s, p;
    zt_store_counts(r->store, &w, &s, &p);
    return p;
}

static void count_one(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n,
                      bool healthy)
{
    if (healthy)
        (*(unsigned *)arg)++;
}

static unsigned n_endpoints(struct rig *r, const char *ns, const char *host)
{
    unsigned n = 0;
    zt_store_each_endpoint(r->store, ns, host, count_one, &n);
    return n;
}

/* The initial request of a type, unpacked. Free with the generated function. */
static Envoy__Service__Discovery__V3__DeltaDiscoveryRequest *
initial(struct rig *r, enum zt_xds_type type, bool without_versions)
{
    size_t n, n_held;
    uint8_t *bytes = zt_xds_mirror_initial(r->mirror, type, (const uint8_t *)"", 0,
                                           without_versions, &n, &n_held);
    Envoy__Service__Discovery__V3__DeltaDiscoveryRequest *q =
        envoy__service__discovery__v3__delta_discovery_request__unpack(NULL, n, bytes);
    zt_free(bytes);
    assert_non_null(q);
    assert_int_equal(q->n_initial_resource_versions, n_held);
    return q;
}

static void free_request(Envoy__Service__Discovery__V3__DeltaDiscoveryRequest *q)
{
    envoy__service__discovery__v3__delta_discovery_request__free_unpacked(q, NULL);
}

static void expect_held(struct rig *r, enum zt_xds_type type, const char *name, const char *version)
{
    Envoy__Service__Discovery__V3__DeltaDiscoveryRequest *q = initial(r, type, false);
    const char *found = NULL;
    for (size_t i = 0; i < q->n_initial_resource_versions; i++)
        if (strcmp(q->initial_resource_versions[i]->key, name) == 0)
            found = q->initial_resource_versions[i]->value;
    if (version) {
        assert_non_null(found);
        assert_string_equal(found, version);
    } else {
        assert_null(found);
    }
    free_request(q);
}

static const uint8_t ip1[] = {10, 0, 0, 1}, ip2[] = {10, 0, 0, 2}, vip[] = {10, 96, 0, 1};

static void fifty_pods_and_service(struct rig *r, unsigned service_at)
{
    char uid[64];
    begin(r, ZT_XDS_ADDRESS);
    for (unsigned i = 0; i < 50; i++) {
        uint8_t ip[] = {10, 0, 1, (uint8_t)i};
        if (i == service_at)
            xds_response_vip(&r->response, "ns1", "svc.example", "v1", vip);
        zt_fmt(uid, sizeof uid, "c//Pod/ns1/p%u", i);
        xds_response_pod(&r->response, uid, "v1", ip, "ns1/svc.example");
    }
}

static void batch_groups_endpoints_per_service(void **state)
{
    struct rig *r = *state;
    fifty_pods_and_service(r, 25);
    assert_null(apply(r));
    assert_int_equal(n_endpoints(r, "ns1", "svc.example"), 50);
}

static void batch_service_before_workloads(void **state)
{
    struct rig *r = *state;
    fifty_pods_and_service(r, 0);
    assert_null(apply(r));
    assert_int_equal(n_endpoints(r, "ns1", "svc.example"), 50);
}

static void batch_filters_unhealthy(void **state)
{
    struct rig *r = *state;
    Istio__Workload__Workload w = ISTIO__WORKLOAD__WORKLOAD__INIT;
    Istio__Workload__Workload__ServicesEntry e = ISTIO__WORKLOAD__WORKLOAD__SERVICES_ENTRY__INIT;
    Istio__Workload__Workload__ServicesEntry *list[] = {&e};
    char uid[] = "c//Pod/ns1/sick", key[] = "ns1/svc.example";
    begin(r, ZT_XDS_ADDRESS);
    xds_response_vip(&r->response, "ns1", "svc.example", "v1", vip);
    xds_response_pod(&r->response, "c//Pod/ns1/well", "v1", ip1, key);
    w.uid = uid;
    w.status = ISTIO__WORKLOAD__WORKLOAD_STATUS__UNHEALTHY;
    e.key = key;
    w.services = list;
    w.n_services = 1;
    xds_response_address(&r->response, "v1", &w);
    assert_null(apply(r));
    assert_int_equal(n_endpoints(r, "ns1", "svc.example"), 1);
}

static void batch_partial_failure(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_vip(&r->response, "ns1", "svc.example", "v1", vip);
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v1", ip1, "ns1/svc.example");
    xds_response_pod(&r->response, "c//Pod/ns1/bad", "v1", ip1, "no-slash");
    xds_response_pod(&r->response, "c//Pod/ns1/b", "v1", ip2, "ns1/svc.example");
    assert_string_equal(apply(r), "c//Pod/ns1/bad: failed to parse namespaced hostname: no-slash");
    assert_int_equal(n_endpoints(r, "ns1", "svc.example"), 2);
    assert_false(has_workload(r, "c//Pod/ns1/bad"));
}

static void remove_drops_endpoint(void **state)
{
    struct rig *r = *state;
    fifty_pods_and_service(r, 0);
    apply(r);
    begin(r, ZT_XDS_ADDRESS);
    xds_response_remove(&r->response, "c//Pod/ns1/p7");
    assert_null(apply(r));
    assert_int_equal(n_endpoints(r, "ns1", "svc.example"), 49);
    expect_held(r, ZT_XDS_ADDRESS, "c//Pod/ns1/p7", NULL);
}

static void removal_resolves_uid_then_service(void **state)
{
    struct rig *r = *state;
    size_t w, s, p;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_vip(&r->response, "ns1", "svc.example", "v1", vip);
    xds_response_remove(&r->response, "c//Pod/ns1/unknown"); /* ignored */
    xds_response_remove(&r->response, "nothing");
    assert_null(apply(r));
    begin(r, ZT_XDS_ADDRESS);
    xds_response_remove(&r->response, "ns1/svc.example");
    assert_null(apply(r));
    zt_store_counts(r->store, &w, &s, &p);
    assert_int_equal(s, 0);
}

/* A1: rejects of the handler first, then what does not decode, and nothing else. */
static void a1_nack_lists_rejects_before_decode_failures(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_raw(&r->response, "junk", "v1", "\xff\xff", 2);
    xds_response_pod(&r->response, "c//Pod/ns1/good", "v1", ip1, NULL);
    xds_response_pod(&r->response, "c//Pod/ns1/bad", "v1", ip1, "no-slash");
    const char *nack = apply(r);
    assert_non_null(nack);
    assert_ptr_equal(
        nack, strstr(nack, "c//Pod/ns1/bad: failed to parse namespaced hostname: no-slash; junk: "
                           "decode: "));
    assert_null(strstr(nack, "good"));
    assert_true(has_workload(r, "c//Pod/ns1/good"));
}

/* A2: the old object stays in force, and its version listed. */
static void a2_rejected_update_keeps_old_object_and_version(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v1", ip1, NULL);
    apply(r);
    begin(r, ZT_XDS_ADDRESS);
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v2", ip2, "no-slash");
    assert_non_null(apply(r));
    struct zt_workload *w = zt_store_find_workload(r->store, "c//Pod/ns1/a");
    assert_non_null(w);
    assert_int_equal(w->ips[0].bytes[3], 1);
    zt_workload_unref(w);
    expect_held(r, ZT_XDS_ADDRESS, "c//Pod/ns1/a", "v1");
}

static void payload_missing_is_named(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_raw(&r->response, "x", "v1", NULL, 0);
    xds_response_raw(&r->response, "y", "v1", "", 0);
    assert_string_equal(apply(r), "y: unknown address type; x: XDS payload without resource");
}

static void malformed_outer_message_is_no_response(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v1", ip1, NULL);
    r->response.len -= 1;
    apply(r);
    assert_int_equal(r->outcome.malformed.code, ZT_INVALID);
    assert_false(has_workload(r, "c//Pod/ns1/a"));
}

static void malformed_resource_spares_its_neighbours(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    xds_put_bytes(&r->response, 2, "\x1a\x05name", 6); /* its name is longer than it */
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v1", ip1, NULL);
    const char *nack = apply(r);
    assert_non_null(nack);
    assert_non_null(strstr(nack, "malformed bytes in Resource"));
    assert_true(has_workload(r, "c//Pod/ns1/a"));
}

static void text_with_nul_or_bad_utf8_is_rejected(void **state)
{
    struct rig *r = *state;
    /* Address{workload{uid = "a\0b"}}, Address{workload{uid = "\xff"}} */
    begin(r, ZT_XDS_ADDRESS);
    xds_response_raw(&r->response, "nul", "v1",
                     "\x0a\x06\xa2\x01\x03"
                     "a\0b",
                     8);
    xds_response_raw(&r->response, "utf8", "v1", "\x0a\x04\xa2\x01\x01\xff", 6);
    const char *nack = apply(r);
    assert_non_null(nack);
    assert_non_null(strstr(nack, "nul: decode: Workload.uid"));
    assert_non_null(strstr(nack, "utf8: decode: Workload.uid"));
}

/* A11 */
static void a11_unknown_fields_are_accepted(void **state)
{
    struct rig *r = *state;
    struct zt_str w;
    Istio__Workload__Workload pod = ISTIO__WORKLOAD__WORKLOAD__INIT;
    char uid[] = "c//Pod/ns1/new";
    uint8_t packed[64];
    pod.uid = uid;
    size_t n = istio__workload__workload__pack(&pod, packed);
    zt_str_init(&w, 1024);
    zt_str_add_n(&w, packed, n);
    xds_put_bytes(&w, 26, "\x0a\x03new\x12\x04\x0a\x02?!", 11); /* an extension of any type */
    xds_put_bytes(&w, 900, "later", 5);
    struct zt_str address;
    zt_str_init(&address, 2048);
    xds_put_bytes(&address, 1, w.data, w.len);
    xds_put_bytes(&address, 77, "later", 5);
    begin(r, ZT_XDS_ADDRESS);
    xds_put_bytes(&r->response, 7, "\x0a\x02{}", 4);
    xds_put_bytes(&r->response, 99, "later", 5);
    xds_response_raw(&r->response, uid, "v1", address.data, address.len);
    assert_null(apply(r));
    assert_true(has_workload(r, uid));
    zt_str_fini(&w);
    zt_str_fini(&address);
}

static void every_slicing_gives_the_same(void **state)
{
    struct rig *r = *state;
    for (size_t slice = 1; slice < 40; slice += 3) {
        char uid[64];
        zt_fmt(uid, sizeof uid, "c//Pod/ns1/s%zu", slice);
        begin(r, ZT_XDS_ADDRESS);
        xds_response_pod(&r->response, uid, "v1", ip1, "ns1/svc.example");
        assert_null(apply_sliced(r, slice));
        assert_true(has_workload(r, uid));
    }
}

static void unknown_type_is_accepted(void **state)
{
    struct rig *r = *state;
    zt_str_fini(&r->response);
    xds_response_init(&r->response, "type.googleapis.com/other", "n7");
    xds_response_raw(&r->response, "x", "v1", "\xff", 1);
    assert_null(apply(r));
    assert_string_equal(r->outcome.type_url, "type.googleapis.com/other");
    assert_string_equal(r->outcome.nonce, "n7");
}

static void fifty_thousand_resources_in_one_response(void **state)
{
    struct rig *r = *state;
    size_t w, s, p;
    begin(r, ZT_XDS_ADDRESS);
    for (unsigned i = 0; i < 50000; i++) {
        char uid[64];
        uint8_t ip[] = {10, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i};
        zt_fmt(uid, sizeof uid, "cluster1//Pod/ns1/pod-%u", i);
        xds_response_pod(&r->response, uid, "0123456789abcdef", ip, "ns1/svc.example");
    }
    assert_null(apply_sliced(r, 16384));
    zt_store_counts(r->store, &w, &s, &p);
    assert_int_equal(w, 50000);
    assert_true(r->steps >= 50); /* pieces of at most a thousand */
    assert_true(r->outcome.n_bytes > 50000 * 40);
    /* That many names make a request that istiod would refuse: none are listed, and what the next
     * response lacks goes. */
    begin(r, ZT_XDS_ADDRESS);
    for (unsigned i = 0; i < 10000; i++) {
        char uid[512];
        zt_fmt(uid, sizeof uid, "%0400u", i); /* long names get there sooner */
        xds_response_pod(&r->response, uid, "1", ip1, NULL);
    }
    assert_null(apply(r));
    Envoy__Service__Discovery__V3__DeltaDiscoveryRequest *q = initial(r, ZT_XDS_ADDRESS, false);
    assert_int_equal(q->n_initial_resource_versions, 0);
    free_request(q);
    begin(r, ZT_XDS_ADDRESS);
    xds_response_pod(&r->response, "cluster1//Pod/ns1/pod-7", "2", ip1, NULL);
    xds_response_pod(&r->response, "cluster1//Pod/ns1/pod-8", "2", ip1, "no-slash");
    assert_non_null(apply(r));
    zt_store_counts(r->store, &w, &s, &p);
    assert_int_equal(w, 2); /* the rejected one was mentioned: its old version stays */
    expect_held(r, ZT_XDS_ADDRESS, "cluster1//Pod/ns1/pod-8", "0123456789abcdef");
}

static void sweep_of_policies_removes_what_vanished(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_AUTHORIZATION);
    xds_response_deny_port(&r->response, "ns1", "old", 80);
    xds_response_deny_port(&r->response, "ns1", "kept", 80);
    assert_null(apply(r));
    free_request(initial(r, ZT_XDS_AUTHORIZATION, true));
    begin(r, ZT_XDS_AUTHORIZATION);
    xds_response_deny_port(&r->response, "ns1", "kept", 80);
    assert_null(apply(r));
    assert_int_equal(n_policies(r), 1);
    begin(r, ZT_XDS_AUTHORIZATION); /* once only */
    xds_response_deny_port(&r->response, "ns1", "more", 80);
    assert_null(apply(r));
    assert_int_equal(n_policies(r), 2);
}

static void file_record_survives_removal_of_its_xds_twin(void **state)
{
    struct rig *r = *state;
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_FILE);
    struct zt_workload *w;
    struct zt_store_changes changes = {0};
    assert_int_equal(
        zt_workload_new(&(struct zt_workload){.uid = "c//Pod/ns1/a", .node = "file"}, &w, NULL),
        ZT_OK);
    zt_batch_put_workload(b, w);
    zt_store_apply(r->store, b, &changes);
    zt_store_changes_fini(&changes);
    begin(r, ZT_XDS_ADDRESS);
    xds_response_pod(&r->response, "c//Pod/ns1/a", "v1", ip1, NULL);
    apply(r);
    w = zt_store_find_workload(r->store, "c//Pod/ns1/a");
    assert_int_equal(w->origin, ZT_ORIGIN_XDS);
    zt_workload_unref(w);
    begin(r, ZT_XDS_ADDRESS);
    xds_response_remove(&r->response, "c//Pod/ns1/a");
    apply(r);
    w = zt_store_find_workload(r->store, "c//Pod/ns1/a");
    assert_non_null(w);
    assert_int_equal(w->origin, ZT_ORIGIN_FILE);
    zt_workload_unref(w);
}

static void nack_of_many_is_bounded_text(void **state)
{
    struct rig *r = *state;
    begin(r, ZT_XDS_ADDRESS);
    for (unsigned i = 0; i < 5000; i++)
        xds_response_raw(&r->response, "c//Pod/some-namespace/\xc3\xa4", "v", "\xff", 1);
    const char *nack = apply(r);
    assert_non_null(nack);
    assert_true(strlen(nack) <= ZT_XDS_NACK_BYTES_MAX);
    assert_non_null(strstr(nack, " more"));
    assert_true(zt_wire_is_text((const uint8_t *)nack, strlen(nack)));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(batch_groups_endpoints_per_service),
        TEST(batch_service_before_workloads),
        TEST(batch_filters_unhealthy),
        TEST(batch_partial_failure),
        TEST(remove_drops_endpoint),
        TEST(removal_resolves_uid_then_service),
        TEST(a1_nack_lists_rejects_before_decode_failures),
        TEST(a2_rejected_update_keeps_old_object_and_version),
        TEST(payload_missing_is_named),
        TEST(malformed_outer_message_is_no_response),
        TEST(malformed_resource_spares_its_neighbours),
        TEST(text_with_nul_or_bad_utf8_is_rejected),
        TEST(a11_unknown_fields_are_accepted),
        TEST(every_slicing_gives_the_same),
        TEST(unknown_type_is_accepted),
        TEST(fifty_thousand_resources_in_one_response),
        TEST(sweep_of_policies_removes_what_vanished),
        TEST(file_record_survives_removal_of_its_xds_twin),
        TEST(nack_of_many_is_bounded_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
