/* The text of HBONE headers: baggage, forwarded, traceparent. */
#include "zt/base/mem.h"
#include "zt/h2/hbone.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct zt_h2_headers block(struct zt_h2_header *list, unsigned n)
{
    return (struct zt_h2_headers){list, n};
}

static void baggage_parser(void **state)
{
    struct zt_h2_header list[] = {{"baggage", "k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,"
                                              "service.name=N2,service.version=V1,cloud.region=R,cloud.availability_zone=Z"}};
    struct zt_h2_headers h = block(list, 1);
    struct zt_baggage_parsed p;
    assert_true(zt_baggage_parse(&h, &p));
    assert_string_equal(p.b.cluster, "K1");
    assert_string_equal(p.b.ns, "NS1");
    assert_string_equal(p.b.workload_type, "deployment");
    assert_string_equal(p.b.workload_name, "N1");
    assert_string_equal(p.b.service_name, "N2");
    assert_string_equal(p.b.service_version, "V1");
    assert_string_equal(p.b.region, "R");
    assert_string_equal(p.b.zone, "Z");
    zt_baggage_parsed_fini(&p);
}

static void baggage_parser_empty_values(void **state)
{
    struct zt_h2_header list[] = {{"baggage", "k8s.cluster.name=,k8s.namespace.name=,service.name=,junk,=x,service.version=V=W"}};
    struct zt_h2_headers h = block(list, 1);
    struct zt_baggage_parsed p;
    assert_true(zt_baggage_parse(&h, &p));
    assert_null(p.b.cluster);
    assert_null(p.b.ns);
    assert_null(p.b.service_name);
    assert_string_equal(p.b.service_version, "V"); /* further pieces are ignored */
    zt_baggage_parsed_fini(&p);
}

static void baggage_parser_multiline(void **state)
{
    struct zt_h2_header list[] = {{"baggage", "k8s.cluster.name=K1,service.name=first"},
                                  {"other", "service.name=no"},
                                  {"baggage", "k8s.pod.name=P"},
                                  {"baggage", "service.name=last"}};
    struct zt_h2_headers h = block(list, 4);
    struct zt_baggage_parsed p;
    assert_true(zt_baggage_parse(&h, &p));
    assert_string_equal(p.b.cluster, "K1");
    assert_string_equal(p.b.workload_name, "P");
    assert_string_equal(p.b.service_name, "last");
    zt_baggage_parsed_fini(&p);
}

static void baggage_parser_no_header(void **state)
{
    struct zt_h2_headers h = block(NULL, 0);
    struct zt_baggage_parsed p;
    assert_true(zt_baggage_parse(&h, &p));
    assert_null(p.b.cluster);
    assert_null(p.b.workload_name);
    assert_null(p.b.zone);
    zt_baggage_parsed_fini(&p);
}

static void baggage_that_is_not_ascii_is_no_baggage(void **state)
{
    struct zt_h2_header list[] = {{"baggage", "service.name=ok"}, {"baggage", "k8s.cluster.name=\xc3\xa9"}};
    struct zt_h2_headers h = block(list, 2);
    struct zt_baggage_parsed p;
    assert_false(zt_baggage_parse(&h, &p));
    assert_null(p.b.service_name);
}

static void baggage_beyond_its_limit_is_no_baggage(void **state)
{
    char value[ZT_BAGGAGE_BYTES_MAX + 2];
    memset(value, 'a', sizeof value - 1);
    value[sizeof value - 1] = 0;
    struct zt_h2_header list[] = {{"baggage", value}};
    struct zt_h2_headers h = block(list, 1);
    struct zt_baggage_parsed p;
    assert_false(zt_baggage_parse(&h, &p));
    value[ZT_BAGGAGE_BYTES_MAX] = 0;
    assert_true(zt_baggage_parse(&h, &p));
    zt_baggage_parsed_fini(&p);
}

static void round_trip(const struct zt_baggage *b, const char *text)
{
    struct zt_str s;
    struct zt_baggage_parsed p;
    zt_str_init(&s, ZT_BAGGAGE_BYTES_MAX);
    zt_baggage_format(b, &s);
    assert_string_equal(zt_str_cstr(&s), text);
    struct zt_h2_header list[] = {{"baggage", zt_str_cstr(&s)}};
    struct zt_h2_headers h = block(list, 1);
    assert_true(zt_baggage_parse(&h, &p));
    const char *want[] = {b->cluster, b->ns, b->workload_name, b->service_name, b->service_version, b->region, b->zone};
    const char *got[] = {p.b.cluster, p.b.ns, p.b.workload_name, p.b.service_name, p.b.service_version, p.b.region, p.b.zone};
    for (unsigned i = 0; i < 7; i++) {
        if (want[i])
            assert_string_equal(got[i], want[i]);
        else
            assert_null(got[i]);
    }
    zt_baggage_parsed_fini(&p);
    zt_str_fini(&s);
}

static void baggage_header_val_can_be_parsed(void **state)
{
    struct zt_baggage none = {0};
    struct zt_baggage all = {"c", "n", "deployment", "w", "s", "v", "r", "z"};
    struct zt_baggage some = {.ns = "n", .workload_type = "pod", .workload_name = "p", .zone = "z"};
    round_trip(&none, "");
    round_trip(&all, "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=w,service.name=s,service.version=v,"
                     "cloud.region=r,cloud.availability_zone=z");
    round_trip(&some, "k8s.namespace.name=n,k8s.pod.name=p,cloud.availability_zone=z");
}

static void build_forwarded(void **state)
{
    static const struct {
        const char *addr, *host, *text;
    } cases[] = {{"127.0.0.1:80", NULL, "for=\"127.0.0.1:80\""},
                 {"127.0.0.1:80", "example.com", "for=\"127.0.0.1:80\";host=example.com"},
                 {"[::1]:80", NULL, "for=\"[::1]:80\""},
                 {"[::1]:80", "example.com", "for=\"[::1]:80\";host=example.com"}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_addr a;
        struct zt_str s;
        zt_str_init(&s, 512);
        assert_true(zt_addr_parse(cases[i].addr, &a));
        zt_forwarded_format(&a, cases[i].host, &s);
        assert_string_equal(zt_str_cstr(&s), cases[i].text);
        zt_str_fini(&s);
    }
}

static void test_parse_forwarded_host(void **state)
{
    static const struct {
        const char *value, *host;
    } cases[] = {{"host=example.com", "example.com"},
                 {"for=\"1.2.3.4:80\"; host=example.com ;proto=tcp", "example.com"},
                 {"for=1;host=\"example.com\"", "example.com"},
                 {"for=1;host=\"", "\""},
                 {"for=1", NULL},
                 {"", NULL},
                 {"host=", NULL},
                 {"host=\"\"", NULL},
                 {"xhost=a", NULL},
                 {"host=ex\xc3\xa4mple", NULL}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char host[ZT_HOSTNAME_MAX];
        assert_int_equal(zt_forwarded_parse_host(cases[i].value, host), cases[i].host != NULL);
        if (cases[i].host)
            assert_string_equal(host, cases[i].host);
    }
}

static void forwarded_host_longer_than_a_hostname_is_none(void **state)
{
    char value[5 + ZT_HOSTNAME_MAX + 1] = "host=", host[ZT_HOSTNAME_MAX];
    memset(value + 5, 'a', ZT_HOSTNAME_MAX);
    value[5 + ZT_HOSTNAME_MAX] = 0;
    assert_false(zt_forwarded_parse_host(value, host));
    value[5 + ZT_HOSTNAME_MAX - 1] = 0;
    assert_true(zt_forwarded_parse_host(value, host));
}

static void traceparent_is_fresh_and_well_formed(void **state)
{
    char a[ZT_TRACEPARENT_LEN + 1], b[ZT_TRACEPARENT_LEN + 1];
    zt_traceparent_new(a);
    zt_traceparent_new(b);
    assert_int_equal(strlen(a), ZT_TRACEPARENT_LEN);
    for (unsigned i = 0; i < ZT_TRACEPARENT_LEN; i++)
        assert_true(i == 2 || i == 35 || i == 52 ? a[i] == '-' : strchr("0123456789abcdef", a[i]) != NULL);
    assert_memory_equal(a, "00-", 3);
    assert_string_equal(a + 52, "-00");
    assert_string_not_equal(a, b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(baggage_parser),
        cmocka_unit_test(baggage_parser_empty_values),
        cmocka_unit_test(baggage_parser_multiline),
        cmocka_unit_test(baggage_parser_no_header),
        cmocka_unit_test(baggage_that_is_not_ascii_is_no_baggage),
        cmocka_unit_test(baggage_beyond_its_limit_is_no_baggage),
        cmocka_unit_test(baggage_header_val_can_be_parsed),
        cmocka_unit_test(build_forwarded),
        cmocka_unit_test(test_parse_forwarded_host),
        cmocka_unit_test(forwarded_host_longer_than_a_hostname_is_none),
        cmocka_unit_test(traceparent_is_fresh_and_well_formed),
    };
    return cmocka_run_group_tests_name("hbone", tests, NULL, NULL);
}
