/* Names asked by DNS: the text rules of spec/dataplane §10.3, and what they find in a store. */
#include "support/state_fixture.h"
#include "zt/base/mem.h"
#include "zt/state/names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define DOMAIN "cluster.local"

static void check_expansions(const char *name, const char *first, const char *second)
{
    char out[ZT_NAME_EXPANSIONS_MAX][ZT_NAME_TEXT_MAX];
    unsigned n = zt_names_expand(name, "ns1", DOMAIN, out);
    assert_int_equal(n, (first != NULL) + (second != NULL));
    if (first)
        assert_string_equal(out[0], first);
    if (second)
        assert_string_equal(out[1], second);
}

static void test_to_kube_fqdns(void **state)
{
    check_expansions("name", "name.ns1.svc.cluster.local", NULL);
    check_expansions("name.ns2", "name.ns2.svc.cluster.local", "name.ns2.ns1.svc.cluster.local");
    check_expansions("name.ns2.svc", "name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local");
    check_expansions("pod.name.ns2.svc", "pod.name.ns2.svc.cluster.local", NULL);
    check_expansions("name.ns2.svc.cluster.local", NULL, NULL);
    check_expansions("www.google.com", "www.google.com.svc.cluster.local", NULL);
    check_expansions("a.b.c.d", NULL, NULL);
}

static void a_name_that_grows_too_long_is_no_expansion(void **state)
{
    char name[254], out[ZT_NAME_EXPANSIONS_MAX][ZT_NAME_TEXT_MAX];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(zt_names_expand(name, "ns1", DOMAIN, out), 0);
}

static void test_get_wildcards(void **state)
{
    char out[ZT_NAME_TEXT_MAX];
    assert_true(zt_names_wildcard("a.b.c", 0, out));
    assert_string_equal(out, "*.b.c");
    assert_true(zt_names_wildcard("a.b.c", 1, out));
    assert_string_equal(out, "*.c");
    assert_false(zt_names_wildcard("a.b.c", 2, out));
    assert_false(zt_names_wildcard("a", 0, out));
}

static void test_has_domain(void **state)
{
    size_t rest;
    assert_true(zt_names_has_domain("www.google.com", "google.com", &rest));
    assert_true(zt_names_has_domain("www.google.com", "com", &rest));
    assert_false(zt_names_has_domain("google.com", "google.com", &rest));
    assert_false(zt_names_has_domain("notgoogle.com", "google.com", &rest));
    assert_false(zt_names_has_domain(".google.com", "google.com", &rest));
    assert_false(zt_names_has_domain("google.com", "www.google.com", &rest));
    assert_false(zt_names_has_domain("google.com", "", &rest));
}

static void test_trim_domain(void **state)
{
    size_t rest;
    assert_true(zt_names_has_domain("echo.ns2.svc.cluster.local", "svc.cluster.local", &rest));
    assert_int_equal(rest, strlen("echo.ns2"));
}

/* ---- what is found ---- */

static bool ask_with(struct zt_store *s, const char *ns, const char *name, const char *const *search, unsigned n_search,
                     struct zt_name_answer *out)
{
    struct zt_workload *client;
    assert_int_equal(zt_workload_new(WORKLOAD("c//Pod/x/client", .ns = ns, .network = "nw1"), &client, NULL), ZT_OK);
    const struct zt_name_query q = {
        .name = name, .family = ZT_IPV4, .client = client, .domain = DOMAIN, .search = search, .n_search = n_search};
    bool ours = zt_names_resolve(s, &q, out);
    zt_workload_unref(client);
    return ours;
}

static void search_domains(void **state)
{
    const struct zt_store_config c = {.network = "nw1"};
    struct zt_store *s = zt_store_new(&c);
    struct zt_name_answer a = {0};
    state_put_service(s, SERVICE("ns1", "example.com", VIPS_IN("nw1", "9.9.9.9")));
    assert_true(ask_with(s, "ns1", "example.com.ns1.svc.cluster.local", NULL, 0, &a));
    assert_string_equal(a.owner, "example.com");
    assert_true(ask_with(s, "ns1", "example.com.svc.cluster.local", NULL, 0, &a));
    assert_true(ask_with(s, "ns1", "example.com.cluster.local", NULL, 0, &a));
    assert_false(ask_with(s, "ns2", "example.com.ns1.svc.cluster.local", NULL, 0, &a)); /* not a search domain of its pods */
    assert_false(ask_with(s, "ns1", "example.com.corp.test", NULL, 0, &a));
    /* dedicated mode: resolv.conf's, and only those */
    static const char *const own[] = {"corp.test"};
    assert_true(ask_with(s, "ns1", "example.com.corp.test", own, 1, &a));
    assert_false(ask_with(s, "ns1", "example.com.ns1.svc.cluster.local", own, 1, &a));
    zt_name_answer_fini(&a);
    zt_store_free(s);
}

static void lookup_namespace_visible_service_other_ns_same_ns(void **state)
{
    const struct zt_store_config c = {.network = "nw1"};
    struct zt_store *s = zt_store_new(&c);
    struct zt_name_answer a = {0};
    state_put_service(s, SERVICE("ns1", "private.io", VIPS_IN("nw1", "9.9.9.9"), .namespace_visible_only = true));
    assert_true(ask_with(s, "ns1", "private.io", NULL, 0, &a));
    assert_int_equal(a.n_ips, 1);
    assert_false(ask_with(s, "ns2", "private.io", NULL, 0, &a));
    zt_name_answer_fini(&a);
    zt_store_free(s);
}

static void endpoints_that_get_no_traffic_are_no_answer(void **state)
{
    const struct zt_store_config c = {.network = "nw1"};
    struct zt_store *s = zt_store_new(&c);
    struct zt_name_answer a = {0};
    state_put_service(s, SERVICE("ns1", "db.ns1.svc.cluster.local"));
    state_put(s, WORKLOAD("c//Pod/ns1/up", IPS("10.0.0.1"), SERVES(MEMBER("ns1", "db.ns1.svc.cluster.local", {80, 80}))));
    state_put(s, WORKLOAD("c//Pod/ns1/down", .healthy = false, IPS("10.0.0.2"),
                          SERVES(MEMBER("ns1", "db.ns1.svc.cluster.local", {80, 80}))));
    assert_true(ask_with(s, "ns1", "db", NULL, 0, &a));
    assert_int_equal(a.n_ips, 1);
    assert_int_equal(a.ips[0].bytes[3], 1);
    zt_name_answer_fini(&a);
    zt_store_free(s);
}

static void a_workload_answers_to_a_name_of_its_own_in_its_namespace(void **state)
{
    const struct zt_store_config c = {.network = "nw1"};
    struct zt_store *s = zt_store_new(&c);
    struct zt_name_answer a = {0};
    state_put(s, WORKLOAD("c//Pod/ns1/vm", .ns = "ns1", .network = "nw1", .hostname = "vm.example.com", IPS("10.0.0.3")));
    state_put(s, WORKLOAD("c//Pod/ns1/alias", .ns = "ns1", .network = "nw1", .hostname = "elsewhere.example.com"));
    assert_true(ask_with(s, "ns1", "vm.example.com", NULL, 0, &a));
    assert_int_equal(a.n_ips, 1);
    assert_false(ask_with(s, "ns2", "vm.example.com", NULL, 0, &a));
    assert_false(ask_with(s, "ns1", "elsewhere.example.com", NULL, 0, &a)); /* only DNS knows its address */
    zt_name_answer_fini(&a);
    zt_store_free(s);
}

static void the_longest_name_with_the_most_labels_is_bounded_work(void **state)
{
    const struct zt_store_config c = {.network = "nw1"};
    struct zt_store *s = zt_store_new(&c);
    struct zt_name_answer a = {0};
    char name[ZT_NAME_TEXT_MAX] = "";
    for (int i = 0; i < 117; i++)
        strncat(name, "a.", 3);
    strncat(name, "svc.cluster.local", 18);
    assert_false(ask_with(s, "ns1", name, NULL, 0, &a));
    zt_name_answer_fini(&a);
    zt_store_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_to_kube_fqdns),
        cmocka_unit_test(a_name_that_grows_too_long_is_no_expansion),
        cmocka_unit_test(test_get_wildcards),
        cmocka_unit_test(test_has_domain),
        cmocka_unit_test(test_trim_domain),
        cmocka_unit_test(search_domains),
        cmocka_unit_test(lookup_namespace_visible_service_other_ns_same_ns),
        cmocka_unit_test(endpoints_that_get_no_traffic_are_no_answer),
        cmocka_unit_test(a_workload_answers_to_a_name_of_its_own_in_its_namespace),
        cmocka_unit_test(the_longest_name_with_the_most_labels_is_bounded_work),
    };
    return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
