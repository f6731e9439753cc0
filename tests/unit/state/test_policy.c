/* Policy matching: spec/dataplane §6.1 to §6.3 and the rows of §13.5. */
#include "support/state_fixture.h"

#include "state/state_impl.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define IDENTITY "spiffe://td/ns/namespace/sa/account"

/* A list for a field of a match: F(namespaces, 0, struct zt_string_match, {...}). neg 1 is the not_
 * twin. */
#define F(field, neg, type, ...)                                                                   \
    .field[neg] = (const type[]){__VA_ARGS__}, .n_##field[neg] = STATE_COUNT(type, __VA_ARGS__)
#define STRINGS(field, neg, ...) F(field, neg, struct zt_string_match, __VA_ARGS__)
#define EXACT(v)                                                                                   \
    {                                                                                              \
        ZT_MATCH_EXACT, v                                                                          \
    }
#define MATCH(...) (&(const struct zt_match){__VA_ARGS__})

static struct zt_authz_request tls_request(void)
{
    return (struct zt_authz_request){.src = state_addr("127.0.0.1:1234"),
                                     .dst = state_addr("127.0.0.2:8080"),
                                     .identity = IDENTITY};
}

static struct zt_authz_request plain_request(void)
{
    struct zt_authz_request r = tls_request();
    r.identity = NULL;
    return r;
}

static bool rules_match(const struct zt_rule *rules, unsigned n, const struct zt_authz_request *r)
{
    struct zt_policy *p;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_policy_new(
            &(struct zt_policy){
                .key = "ns/p", .ns = "ns", .name = "p", .rules = rules, .n_rules = n},
            &p, &err) != ZT_OK)
        fail_msg("%s", err.text);
    bool yes = zt_policy_matches(p, r);
    zt_policy_unref(p);
    zt_record_collect();
    return yes;
}

static bool clauses_match(const struct zt_clause *clauses, unsigned n,
                          const struct zt_authz_request *r)
{
    return rules_match(&(struct zt_rule){.clauses = clauses, .n_clauses = n}, 1, r);
}

static bool matches(const struct zt_match *m, const struct zt_authz_request *r)
{
    return clauses_match(&(struct zt_clause){.matches = m, .n_matches = 1}, 1, r);
}

/* With and without identity. */
static void check(const struct zt_match *m, bool with_tls, bool with_plaintext)
{
    struct zt_authz_request tls = tls_request(), plain = plain_request();
    assert_int_equal(matches(m, &tls), with_tls);
    assert_int_equal(matches(m, &plain), with_plaintext);
}

static void rbac_empty_policy_without_rules_never_matches(void **state)
{
    (void)state;
    struct zt_authz_request r = tls_request();
    assert_false(rules_match(NULL, 0, &r));
}

static void rbac_empty_policy_rule_without_clauses_matches_everything(void **state)
{
    (void)state;
    struct zt_authz_request r = plain_request();
    assert_true(clauses_match(NULL, 0, &r));
}

static void rbac_empty_policy_clause_without_matches_is_true(void **state)
{
    (void)state;
    struct zt_authz_request r = plain_request();
    assert_true(clauses_match(&(struct zt_clause){0}, 1, &r));
}

static void rbac_empty_policy_single_empty_match_never_matches(void **state)
{
    (void)state;
    const struct zt_match two[2] = {0};
    struct zt_authz_request r = tls_request();
    assert_false(matches(two, &r));
    assert_false(clauses_match(&(struct zt_clause){.matches = two, .n_matches = 2}, 1, &r));
}

static void rbac_nesting_clauses_are_anded_matches_are_ored(void **state)
{
    (void)state;
    const struct zt_match namespaces[] = {{STRINGS(namespaces, 0, EXACT("a"))},
                                          {STRINGS(namespaces, 0, EXACT("b"))}};
    const struct zt_match ports[] = {{F(destination_ports, 0, uint16_t, 80)}};
    const struct zt_clause clauses[] = {{namespaces, 2}, {ports, 1}};
    struct zt_authz_request r = tls_request();
    r.dst.port = 80;
    r.identity = "spiffe://td/ns/b/sa/account";
    assert_true(clauses_match(clauses, 2, &r));
    r.identity = "spiffe://td/ns/a/sa/account";
    assert_true(clauses_match(clauses, 2, &r));
    r.identity = "spiffe://td/ns/bad/sa/account";
    assert_false(clauses_match(clauses, 2, &r));
    r.identity = "spiffe://td/ns/b/sa/account";
    r.dst.port = 12345;
    assert_false(clauses_match(clauses, 2, &r));
}

static void rbac_multi_rule_rules_are_ored(void **state)
{
    (void)state;
    const struct zt_match a = {STRINGS(namespaces, 0, EXACT("a"))},
                          b = {STRINGS(namespaces, 0, EXACT("b"))};
    const struct zt_clause ca = {&a, 1}, cb = {&b, 1};
    const struct zt_rule rules[] = {{&ca, 1}, {&cb, 1}};
    struct zt_authz_request r = tls_request();
    r.identity = "spiffe://td/ns/b/sa/account";
    assert_true(rules_match(rules, 2, &r));
    r.identity = "spiffe://td/ns/c/sa/account";
    assert_false(rules_match(rules, 2, &r));
}

static void rbac_fields_of_a_match_are_anded_and_values_ored(void **state)
{
    (void)state;
    check(MATCH(STRINGS(namespaces, 0, EXACT("x"), EXACT("namespace")),
                F(destination_ports, 0, uint16_t, 1, 8080)),
          true, false);
    check(MATCH(STRINGS(namespaces, 0, EXACT("namespace")), F(destination_ports, 0, uint16_t, 1)),
          false, false);
    check(MATCH(STRINGS(namespaces, 0, EXACT("namespace")),
                STRINGS(namespaces, 1, EXACT("namespace"))),
          false, false);
}

static void rbac_namespaces(void **state)
{
    (void)state;
    check(MATCH(STRINGS(namespaces, 0, EXACT("namespace"))), true, false);
    check(MATCH(STRINGS(namespaces, 0, EXACT("bad"))), false, false);
}

static void rbac_not_namespaces(void **state)
{
    (void)state;
    check(MATCH(STRINGS(namespaces, 1, EXACT("namespace"))), false, true);
    check(MATCH(STRINGS(namespaces, 1, EXACT("bad"))), true, true);
}

static void rbac_service_accounts(void **state)
{
    (void)state;
    check(MATCH(F(service_accounts, 0, struct zt_sa_match, {"namespace", "account"})), true, false);
    check(MATCH(F(service_accounts, 0, struct zt_sa_match, {"bad", "account"})), false, false);
    check(MATCH(F(service_accounts, 0, struct zt_sa_match, {"namespace", "bad"})), false, false);
}

static void rbac_not_service_accounts(void **state)
{
    (void)state;
    check(MATCH(F(service_accounts, 1, struct zt_sa_match, {"namespace", "account"})), false, true);
    check(MATCH(F(service_accounts, 1, struct zt_sa_match, {"namespace", "bad"})), true, true);
}

static void rbac_principals(void **state)
{
    (void)state;
    check(MATCH(STRINGS(principals, 0, EXACT("td/ns/namespace/sa/account"))), true, false);
    check(MATCH(STRINGS(principals, 0, EXACT("td/ns/namespace/sa/bad"))), false, false);
    /* With the scheme it never matches. */
    check(MATCH(STRINGS(principals, 0, EXACT(IDENTITY))), false, false);
    check(MATCH(STRINGS(principals, 0, {ZT_MATCH_PRESENCE, ""})), true, false);
    /* No identity matches no principal, not even a pattern that matches everything. */
    check(MATCH(STRINGS(principals, 0, {ZT_MATCH_PREFIX, ""})), true, false);
}

static void rbac_not_principals(void **state)
{
    (void)state;
    check(MATCH(STRINGS(principals, 1, EXACT("td/ns/namespace/sa/account"))), false, true);
    check(MATCH(STRINGS(principals, 1, EXACT("td/ns/namespace/sa/bad"))), true, true);
    /* Strict mTLS: "anybody without an identity". */
    check(MATCH(STRINGS(principals, 1, {ZT_MATCH_PRESENCE, ""})), false, true);
}

static void rbac_identity_that_does_not_parse_is_none(void **state)
{
    (void)state;
    struct zt_authz_request r = tls_request();
    r.identity = "spiffe://td/other/form";
    assert_true(matches(MATCH(STRINGS(principals, 1, {ZT_MATCH_PRESENCE, ""})), &r));
    assert_false(matches(MATCH(STRINGS(principals, 0, {ZT_MATCH_PRESENCE, ""})), &r));
}

static void check_ip(const struct zt_match *positive, const struct zt_match *negative, bool inside)
{
    check(positive, inside, inside);
    check(negative, !inside, !inside);
}

static void rbac_source_ips_and_not_source_ips(void **state)
{
    (void)state;
    check_ip(MATCH(F(source_ips, 0, struct zt_cidr, state_cidr("127.0.0.1/32"))),
             MATCH(F(source_ips, 1, struct zt_cidr, state_cidr("127.0.0.1/32"))), true);
    check_ip(MATCH(F(source_ips, 0, struct zt_cidr, state_cidr("127.0.0.2/32"))),
             MATCH(F(source_ips, 1, struct zt_cidr, state_cidr("127.0.0.2/32"))), false);
    check_ip(MATCH(F(source_ips, 0, struct zt_cidr, state_cidr("::/0"))),
             MATCH(F(source_ips, 1, struct zt_cidr, state_cidr("::/0"))), false);
}

static void rbac_destination_ips_and_not_destination_ips(void **state)
{
    (void)state;
    check_ip(MATCH(F(destination_ips, 0, struct zt_cidr, state_cidr("127.0.0.2/32"))),
             MATCH(F(destination_ips, 1, struct zt_cidr, state_cidr("127.0.0.2/32"))), true);
    check_ip(MATCH(F(destination_ips, 0, struct zt_cidr, state_cidr("127.0.0.1/32"))),
             MATCH(F(destination_ips, 1, struct zt_cidr, state_cidr("127.0.0.1/32"))), false);
}

static void rbac_cidr_range_ignores_host_bits(void **state)
{
    (void)state;
    const struct zt_match *m =
        MATCH(F(destination_ips, 0, struct zt_cidr, state_cidr("127.0.0.1/24")));
    struct zt_authz_request r = tls_request();
    assert_true(matches(m, &r));
    r.dst = state_addr("127.0.0.4:8080");
    assert_true(matches(m, &r));
    r.dst = state_addr("127.0.1.4:8080");
    assert_false(matches(m, &r));
}

static void rbac_destination_ports_and_not_destination_ports(void **state)
{
    (void)state;
    check(MATCH(F(destination_ports, 0, uint16_t, 8080)), true, true);
    check(MATCH(F(destination_ports, 0, uint16_t, 80)), false, false);
    check(MATCH(F(destination_ports, 1, uint16_t, 8080)), false, false);
    check(MATCH(F(destination_ports, 1, uint16_t, 80)), true, true);
}

static void rbac_string_match(void **state)
{
    (void)state;
    const struct {
        struct zt_string_match m;
        const char *ns;
        bool yes;
    } rows[] = {
        {{ZT_MATCH_EXACT, "exact"}, "exact", true},
        {{ZT_MATCH_EXACT, "exact"}, "not-exact", false},
        {{ZT_MATCH_EXACT, "exact"}, "", false},
        {{ZT_MATCH_PREFIX, "pre"}, "prefix", true},
        {{ZT_MATCH_PREFIX, "pre"}, "not-prefix", false},
        {{ZT_MATCH_PREFIX, "pre"}, "", false},
        {{ZT_MATCH_SUFFIX, "fix"}, "suffix", true},
        {{ZT_MATCH_SUFFIX, "fix"}, "suffix-not", false},
        {{ZT_MATCH_SUFFIX, "fix"}, "", false},
        {{ZT_MATCH_PRESENCE, ""}, "any", true},
        {{ZT_MATCH_PRESENCE, ""}, "", false},
        {{ZT_MATCH_PREFIX, ""}, "", true},
        {{ZT_MATCH_SUFFIX, "longer than it"}, "it", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char identity[128];
        struct zt_authz_request r = tls_request();
        assert_true(zt_fmt(identity, sizeof identity, "spiffe://td/ns/%s/sa/a", rows[i].ns));
        r.identity = identity;
        assert_int_equal(matches(MATCH(STRINGS(namespaces, 0, rows[i].m)), &r), rows[i].yes);
    }
}

static void rbac_prefix_of_nothing_matches_no_identity_for_namespaces(void **state)
{
    (void)state;
    check(MATCH(STRINGS(namespaces, 0, {ZT_MATCH_PREFIX, ""})), true, true);
}

static void policy_with_unusable_values_is_refused_not_widened(void **state)
{
    (void)state;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_policy *p;
    const struct zt_match bad[] = {
        {F(source_ips, 0, struct zt_cidr, {.prefix_bits = 8})},
        {F(destination_ips, 1, struct zt_cidr, {.ip = state_ip("10.0.0.1"), .prefix_bits = 40})},
        {STRINGS(principals, 1, {9, "x"})},
    };
    for (size_t i = 0; i < 3; i++) {
        const struct zt_clause c = {&bad[i], 1};
        const struct zt_rule rule = {&c, 1};
        struct zt_policy t = {.key = "ns/p", .rules = &rule, .n_rules = 1};
        assert_int_equal(zt_policy_new(&t, &p, &err), ZT_INVALID);
        assert_null(p);
    }
    assert_int_equal(zt_policy_new(&(struct zt_policy){.key = ""}, &p, &err), ZT_INVALID);
    assert_int_equal(zt_policy_new(&(struct zt_policy){.key = "k", .scope = 3}, &p, &err),
                     ZT_INVALID);
    assert_int_equal(zt_policy_new(&(struct zt_policy){.key = "k", .action = 2}, &p, &err),
                     ZT_INVALID);
}

static void policy_explain_names_the_furthest_rule_and_first_failed_field(void **state)
{
    (void)state;
    const struct zt_match ns = {STRINGS(namespaces, 0, EXACT("bad"))};
    const struct zt_match here = {STRINGS(namespaces, 0, EXACT("namespace"))};
    const struct zt_match port = {F(destination_ports, 0, uint16_t, 80),
                                  STRINGS(namespaces, 1, EXACT("namespace"))};
    const struct zt_clause first[] = {{&ns, 1}}, second[] = {{&here, 1}, {&port, 1}};
    const struct zt_rule rules[] = {{first, 1}, {second, 2}};
    struct zt_policy *p;
    struct zt_policy_miss miss;
    struct zt_authz_request r = tls_request();
    assert_int_equal(
        zt_policy_new(&(struct zt_policy){.key = "k", .rules = rules, .n_rules = 2}, &p, NULL),
        ZT_OK);
    assert_false(zt_policy_explain(p, &r, &miss));
    assert_int_equal(miss.rule, 1);
    assert_int_equal(miss.clause, 1);
    assert_string_equal(miss.field, "destination_ports");
    r.dst.port = 80;
    assert_false(zt_policy_explain(p, &r, &miss));
    assert_string_equal(miss.field, "not_namespaces");
    zt_policy_unref(p);
}

static int collect(void **state)
{
    (void)state;
    zt_record_collect();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rbac_empty_policy_without_rules_never_matches),
        cmocka_unit_test(rbac_empty_policy_rule_without_clauses_matches_everything),
        cmocka_unit_test(rbac_empty_policy_clause_without_matches_is_true),
        cmocka_unit_test(rbac_empty_policy_single_empty_match_never_matches),
        cmocka_unit_test(rbac_nesting_clauses_are_anded_matches_are_ored),
        cmocka_unit_test(rbac_multi_rule_rules_are_ored),
        cmocka_unit_test(rbac_fields_of_a_match_are_anded_and_values_ored),
        cmocka_unit_test(rbac_namespaces),
        cmocka_unit_test(rbac_not_namespaces),
        cmocka_unit_test(rbac_service_accounts),
        cmocka_unit_test(rbac_not_service_accounts),
        cmocka_unit_test(rbac_principals),
        cmocka_unit_test(rbac_not_principals),
        cmocka_unit_test(rbac_identity_that_does_not_parse_is_none),
        cmocka_unit_test(rbac_source_ips_and_not_source_ips),
        cmocka_unit_test(rbac_destination_ips_and_not_destination_ips),
        cmocka_unit_test(rbac_cidr_range_ignores_host_bits),
        cmocka_unit_test(rbac_destination_ports_and_not_destination_ports),
        cmocka_unit_test(rbac_string_match),
        cmocka_unit_test(rbac_prefix_of_nothing_matches_no_identity_for_namespaces),
        cmocka_unit_test(policy_with_unusable_values_is_refused_not_widened),
        cmocka_unit_test(policy_explain_names_the_furthest_rule_and_first_failed_field),
    };
    return cmocka_run_group_tests(tests, NULL, collect);
}
