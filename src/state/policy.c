/* Authorization policies: the record, and whether a request matches one (spec/dataplane §6.1 to
 * §6.3).
 *
 * Rules are ORed, clauses of a rule ANDed, matches of a clause ORed, fields of a match ANDed,
 * values of a field ORed; every field has a negative twin none of whose values may match. The empty
 * cases are where mistakes become holes: policy without rules: never · rule without clauses: always
 * · clause without matches: true · match without any field: skipped · clause of such matches only:
 * false. */
#include "state_impl.h"

#include <string.h>

#define SPIFFE_SCHEME "spiffe://"

/* ---- the record ---- */

static const struct zt_string_match *lay_strings(struct zt_builder *b,
                                                 const struct zt_string_match *in, size_t n)
{
    struct zt_string_match *out =
        zt_builder_take(b, n, sizeof *out, _Alignof(struct zt_string_match));
    for (size_t i = 0; i < n; i++) {
        struct zt_string_match m = in[i];
        m.value = zt_builder_text(b, m.value);
        if (out)
            out[i] = m;
    }
    return out;
}

static const struct zt_sa_match *lay_accounts(struct zt_builder *b, const struct zt_sa_match *in,
                                              size_t n)
{
    struct zt_sa_match *out = zt_builder_take(b, n, sizeof *out, _Alignof(struct zt_sa_match));
    for (size_t i = 0; i < n; i++) {
        struct zt_sa_match m = {.ns = zt_builder_text(b, in[i].ns),
                                .service_account = zt_builder_text(b, in[i].service_account)};
        if (out)
            out[i] = m;
    }
    return out;
}

static struct zt_match lay_match(struct zt_builder *b, const struct zt_match *t)
{
    struct zt_match m = *t;
    for (int neg = 0; neg < 2; neg++) {
        m.namespaces[neg] = lay_strings(b, t->namespaces[neg], t->n_namespaces[neg]);
        m.principals[neg] = lay_strings(b, t->principals[neg], t->n_principals[neg]);
        m.service_accounts[neg] =
            lay_accounts(b, t->service_accounts[neg], t->n_service_accounts[neg]);
        m.source_ips[neg] = zt_builder_copy(b, t->source_ips[neg], t->n_source_ips[neg],
                                            sizeof(struct zt_cidr), _Alignof(struct zt_cidr));
        m.destination_ips[neg] =
            zt_builder_copy(b, t->destination_ips[neg], t->n_destination_ips[neg],
                            sizeof(struct zt_cidr), _Alignof(struct zt_cidr));
        m.destination_ports[neg] = zt_builder_copy(
            b, t->destination_ports[neg], t->n_destination_ports[neg], sizeof(uint16_t), 2);
    }
    return m;
}

static struct zt_clause lay_clause(struct zt_builder *b, const struct zt_clause *t)
{
    struct zt_match *out = zt_builder_take(b, t->n_matches, sizeof *out, _Alignof(struct zt_match));
    for (size_t i = 0; i < t->n_matches; i++) {
        struct zt_match m = lay_match(b, &t->matches[i]);
        if (out)
            out[i] = m;
    }
    return (struct zt_clause){.matches = out, .n_matches = t->n_matches};
}

static struct zt_rule lay_rule(struct zt_builder *b, const struct zt_rule *t)
{
    struct zt_clause *out =
        zt_builder_take(b, t->n_clauses, sizeof *out, _Alignof(struct zt_clause));
    for (size_t i = 0; i < t->n_clauses; i++) {
        struct zt_clause c = lay_clause(b, &t->clauses[i]);
        if (out)
            out[i] = c;
    }
    return (struct zt_rule){.clauses = out, .n_clauses = t->n_clauses};
}

static void lay_policy(struct zt_builder *b, const struct zt_policy *t)
{
    struct zt_policy p = *t;
    struct zt_policy *out = zt_builder_take(b, 1, sizeof p, _Alignof(struct zt_policy));
    p.key = zt_builder_text(b, t->key);
    p.ns = zt_builder_text(b, t->ns);
    p.name = zt_builder_text(b, t->name);
    struct zt_rule_filter *filters =
        zt_builder_take(b, t->n_rules, sizeof *filters, _Alignof(struct zt_rule_filter));
    struct zt_rule *rules = zt_builder_take(b, t->n_rules, sizeof *rules, _Alignof(struct zt_rule));
    for (size_t i = 0; i < t->n_rules; i++) {
        struct zt_rule r = lay_rule(b, &t->rules[i]);
        if (!rules)
            continue;
        rules[i] = r;
        filters[i] = zt_rule_filter_of(&r);
    }
    p.rules = rules;
    p.filters = filters;
    if (!out)
        return;
    *out = p;
    atomic_init(&out->refs, 1);
}

static bool strings_are_known(const struct zt_string_match *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].kind > ZT_MATCH_PRESENCE)
            return false;
    return true;
}

static bool cidrs_are_valid(const struct zt_cidr *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t family = list[i].ip.family;
        if ((family != ZT_IPV4 && family != ZT_IPV6) ||
            list[i].prefix_bits > (family == ZT_IPV4 ? 32 : 128))
            return false;
    }
    return true;
}

/* A value that could never match is refused with its policy, not dropped: dropping the only value
 * of a list would widen an ALLOW or void a negation (spec/controlplane §4.4). */
static bool match_is_valid(const struct zt_match *m)
{
    for (int neg = 0; neg < 2; neg++)
        if (!strings_are_known(m->namespaces[neg], m->n_namespaces[neg]) ||
            !strings_are_known(m->principals[neg], m->n_principals[neg]) ||
            !cidrs_are_valid(m->source_ips[neg], m->n_source_ips[neg]) ||
            !cidrs_are_valid(m->destination_ips[neg], m->n_destination_ips[neg]))
            return false;
    return true;
}

static enum zt_err check_policy(const struct zt_policy *t, struct zt_error *err)
{
    if (!t->key || !*t->key)
        return zt_error_set(err, ZT_INVALID, "policy without key");
    if (t->scope > ZT_POLICY_SELECTOR || t->action > ZT_POLICY_DENY)
        return zt_error_set(err, ZT_INVALID, "policy %.128s: unknown scope or action", t->key);
    for (size_t r = 0; r < t->n_rules; r++)
        for (size_t c = 0; c < t->rules[r].n_clauses; c++)
            for (size_t m = 0; m < t->rules[r].clauses[c].n_matches; m++)
                if (!match_is_valid(&t->rules[r].clauses[c].matches[m]))
                    return zt_error_set(err, ZT_INVALID,
                                        "policy %.128s: rule %zu: unusable address or string match",
                                        t->key, r);
    return ZT_OK;
}

enum zt_err zt_policy_new(const struct zt_policy *template, struct zt_policy **out,
                          struct zt_error *err)
{
    *out = NULL;
    enum zt_err e = check_policy(template, err);
    if (e != ZT_OK)
        return e;
    struct zt_builder b = {0};
    lay_policy(&b, template);
    if (b.too_long || b.used > ZT_RECORD_BYTES_MAX)
        return zt_error_set(err, ZT_INVALID, "policy %.128s: too large", template->key);
    *out = zt_record_new(b.used, NULL);
    b = (struct zt_builder){.base = (char *)*out};
    lay_policy(&b, template);
    return ZT_OK;
}

struct zt_policy *zt_policy_ref(const struct zt_policy *p)
{
    struct zt_policy *own = (struct zt_policy *)(uintptr_t)p; /* only the count changes */
    if (own)
        atomic_fetch_add_explicit(&own->refs, 1, memory_order_relaxed);
    return own;
}

void zt_policy_unref(const struct zt_policy *p)
{
    struct zt_policy *own = (struct zt_policy *)(uintptr_t)p;
    if (own && atomic_fetch_sub_explicit(&own->refs, 1, memory_order_acq_rel) == 1)
        zt_record_bury(own);
}

/* ---- matching ---- */

struct zt_subject zt_subject_of(const struct zt_authz_request *r)
{
    struct zt_subject s = {.request = r};
    /* An identity that does not parse counts as none: it must not satisfy "some identity". */
    if (r->identity && zt_identity_parse(r->identity, strlen(r->identity), &s.view)) {
        s.principal = r->identity + strlen(SPIFFE_SCHEME);
        s.principal_len = strlen(s.principal);
        s.principal_bit = zt_filter_bit(s.principal, s.principal_len);
    } else {
        s.view = (struct zt_identity_view){0};
    }
    s.ns_bit = zt_filter_bit(s.view.ns, s.view.ns_len);
    s.port_bit = zt_filter_bit((const char *)&r->dst.port, sizeof r->dst.port);
    return s;
}

static bool string_matches(const struct zt_string_match *m, const char *text, size_t len)
{
    size_t n = strlen(m->value);
    switch ((enum zt_match_kind)m->kind) {
    case ZT_MATCH_EXACT:
        return n == len && memcmp(m->value, text, n) == 0;
    case ZT_MATCH_PREFIX:
        return n <= len && memcmp(m->value, text, n) == 0;
    case ZT_MATCH_SUFFIX:
        return n <= len && memcmp(m->value, text + len - n, n) == 0;
    case ZT_MATCH_PRESENCE:
        return len > 0;
    }
    return false;
}

static bool any_string(const struct zt_string_match *list, size_t n, const char *text, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (string_matches(&list[i], text, len))
            return true;
    return false;
}

static bool any_namespace(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    return any_string(m->namespaces[neg], m->n_namespaces[neg], s->principal ? s->view.ns : "",
                      s->principal ? s->view.ns_len : 0);
}

static bool any_principal(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    return s->principal &&
           any_string(m->principals[neg], m->n_principals[neg], s->principal, s->principal_len);
}

static bool text_is(const char *value, const char *text, size_t len)
{
    return strlen(value) == len && memcmp(value, text, len) == 0;
}

static bool any_account(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    if (!s->principal)
        return false;
    for (size_t i = 0; i < m->n_service_accounts[neg]; i++) {
        const struct zt_sa_match *a = &m->service_accounts[neg][i];
        if (text_is(a->ns, s->view.ns, s->view.ns_len) &&
            text_is(a->service_account, s->view.sa, s->view.sa_len))
            return true;
    }
    return false;
}

static bool any_cidr(const struct zt_cidr *list, size_t n, const struct zt_ip *ip)
{
    for (size_t i = 0; i < n; i++)
        if (zt_cidr_contains(&list[i], ip))
            return true;
    return false;
}

static bool any_source_ip(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    return any_cidr(m->source_ips[neg], m->n_source_ips[neg], &s->request->src.ip);
}

static bool any_destination_ip(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    return any_cidr(m->destination_ips[neg], m->n_destination_ips[neg], &s->request->dst.ip);
}

static bool any_destination_port(const struct zt_match *m, int neg, const struct zt_subject *s)
{
    for (size_t i = 0; i < m->n_destination_ports[neg]; i++)
        if (m->destination_ports[neg][i] == s->request->dst.port)
            return true;
    return false;
}

static const struct field {
    const char *names[2];
    bool (*any)(const struct zt_match *m, int neg, const struct zt_subject *s);
    size_t counts; /* offset of the field's n_...[2] in struct zt_match */
} fields[] = {
    {{"destination_ips", "not_destination_ips"},
     any_destination_ip,
     offsetof(struct zt_match, n_destination_ips)},
    {{"source_ips", "not_source_ips"}, any_source_ip, offsetof(struct zt_match, n_source_ips)},
    {{"destination_ports", "not_destination_ports"},
     any_destination_port,
     offsetof(struct zt_match, n_destination_ports)},
    {{"service_accounts", "not_service_accounts"},
     any_account,
     offsetof(struct zt_match, n_service_accounts)},
    {{"principals", "not_principals"}, any_principal, offsetof(struct zt_match, n_principals)},
    {{"namespaces", "not_namespaces"}, any_namespace, offsetof(struct zt_match, n_namespaces)},
};
#define N_FIELDS (sizeof fields / sizeof fields[0])

/* Does the match hold? If not, *failed names the first field that did not (NULL: no field is set).
 */
static bool match_holds(const struct zt_match *m, const struct zt_subject *s, const char **failed,
                        unsigned *n_passed)
{
    *failed = NULL;
    *n_passed = 0;
    bool any_set = false;
    for (size_t i = 0; i < N_FIELDS; i++) {
        const uint16_t *n = (const uint16_t *)(const void *)((const char *)m + fields[i].counts);
        for (int neg = 0; neg < 2; neg++) {
            if (n[neg] == 0)
                continue;
            any_set = true;
            if (fields[i].any(m, neg, s) == (neg == 1)) {
                *failed = fields[i].names[neg];
                return false;
            }
            ++*n_passed;
        }
    }
    return any_set;
}

/* If not, *failed is the first failing field of the match that came furthest. */
static bool clause_holds(const struct zt_clause *c, const struct zt_subject *s, const char **failed)
{
    *failed = NULL;
    if (c->n_matches == 0)
        return true;
    unsigned furthest = 0;
    for (size_t i = 0; i < c->n_matches; i++) {
        const char *field;
        unsigned n_passed;
        if (match_holds(&c->matches[i], s, &field, &n_passed))
            return true;
        if (field && (!*failed || n_passed > furthest)) {
            *failed = field;
            furthest = n_passed;
        }
    }
    return false;
}

bool zt_policy_explain(const struct zt_policy *p, const struct zt_authz_request *r,
                       struct zt_policy_miss *miss)
{
    struct zt_subject s = zt_subject_of(r);
    *miss = (struct zt_policy_miss){.rule = -1, .clause = -1};
    for (size_t i = 0; i < p->n_rules; i++) {
        const struct zt_rule *rule = &p->rules[i];
        const char *field = NULL;
        size_t c = 0;
        while (c < rule->n_clauses && clause_holds(&rule->clauses[c], &s, &field))
            c++;
        if (c == rule->n_clauses) {
            *miss = (struct zt_policy_miss){.rule = (int)i, .clause = -1};
            return true;
        }
        if ((int)c > miss->clause)
            *miss = (struct zt_policy_miss){.rule = (int)i, .clause = (int)c, .field = field};
    }
    return false;
}

bool zt_rule_holds(const struct zt_rule *r, const struct zt_subject *s)
{
    const char *field;
    for (size_t i = 0; i < r->n_clauses; i++)
        if (!clause_holds(&r->clauses[i], s, &field))
            return false;
    return true;
}

bool zt_policy_matches(const struct zt_policy *p, const struct zt_authz_request *r)
{
    struct zt_subject s = zt_subject_of(r);
    return zt_policy_matches_subject(p, &s);
}
