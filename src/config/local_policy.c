/* An authorization policy of the local file: rules of clauses of matches (spec/controlplane §5.1, §4.4).
 *
 * What does not read as meant refuses the document: an entry dropped from a list, or an unknown key skipped inside a match, would
 * make an Allow policy wider. String matches come as a tagged scalar (`!Exact x`) or as a map of one key (`{Exact: x}`). */
#include "config/local_impl.h"

#include "zt/base/str.h"
#include <string.h>

#define BIT(f) (UINT64_C(1) << (f))

static const char *const kinds[] = {
    [ZT_MATCH_EXACT] = "Exact",
    [ZT_MATCH_PREFIX] = "Prefix",
    [ZT_MATCH_SUFFIX] = "Suffix",
    [ZT_MATCH_PRESENCE] = "Presence",
    NULL,
};

static bool find_kind(const char *text, uint8_t *kind)
{
    for (uint8_t i = 0; kinds[i]; i++) {
        if (strcmp(kinds[i], text) == 0) {
            *kind = i;
            return true;
        }
    }
    return false;
}

static bool fail_form(struct zt_yaml *r)
{
    return zt_yaml_fail(r, "expected a string match: !Exact x, !Prefix x, !Suffix x or !Presence []");
}

/* The value after the kind is known. */
static bool read_match_value(struct zt_yaml *r, struct zt_string_match *m)
{
    if (m->kind == ZT_MATCH_PRESENCE) {
        m->value = "";
        return zt_yaml_empty(r);
    }
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    if (t.plain && t.len == 0) /* "!Prefix" cut off here would match everything */
        return zt_yaml_fail(r, "the value is missing");
    m->value = zt_scratch_dup(&r->scratch, t.value, t.len);
    return true;
}

/* {Exact: x} */
static bool read_match_map(struct zt_yaml *r, struct zt_string_match *m)
{
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    if (!zt_yaml_key(r, &key) || !find_kind(key.value, &m->kind))
        return fail_form(r);
    if (!zt_yaml_at_scalar(r) && m->kind != ZT_MATCH_PRESENCE)
        return fail_form(r);
    if (zt_yaml_tag(r))
        return fail_form(r);
    if (!read_match_value(r, m))
        return false;
    return zt_yaml_key(r, &key) ? zt_yaml_fail(r, "a string match has one key") : !r->failed;
}

static bool read_string_match(struct zt_yaml *r, void *element)
{
    struct zt_string_match *m = element;
    const char *tag = zt_yaml_tag(r);
    if (tag)
        return tag[0] == '!' && find_kind(tag + 1, &m->kind) ? read_match_value(r, m) : fail_form(r);
    return zt_yaml_at_map(r) ? read_match_map(r, m) : fail_form(r);
}

static bool read_cidr(struct zt_yaml *r, void *element)
{
    return zt_local_cidr(r, element);
}

static bool read_port(struct zt_yaml *r, void *element)
{
    return zt_local_u16(r, element);
}

static bool read_account(struct zt_yaml *r, void *element)
{
    static const char *const keys[] = {"namespace", "serviceAccount", NULL};
    struct zt_sa_match *m = element;
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
        if (!zt_yaml_string(r, f == 0 ? &m->ns : &m->service_account))
            return false;
    return zt_yaml_require(r, keys, seen, BIT(0) | BIT(1));
}

/* Each positive list is followed by its negative twin. */
static const char *const match_names[] = {
    "namespaces",         "notNamespaces",       "principals",       "notPrincipals",
    "sourceIps",          "notSourceIps",        "destinationIps",   "notDestinationIps",
    "destinationPorts",   "notDestinationPorts", "serviceAccounts",  "notServiceAccounts",
    NULL,
};

static bool read_match(struct zt_yaml *r, void *element)
{
    struct zt_match *m = element;
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, match_names, &seen)) >= 0;) {
        unsigned side = (unsigned)f % 2;
        switch (f / 2) {
        case 0:
            m->namespaces[side] = ZT_LOCAL_LIST(r, struct zt_string_match, read_string_match, &m->n_namespaces[side]);
            break;
        case 1:
            m->principals[side] = ZT_LOCAL_LIST(r, struct zt_string_match, read_string_match, &m->n_principals[side]);
            break;
        case 2:
            m->source_ips[side] = ZT_LOCAL_LIST(r, struct zt_cidr, read_cidr, &m->n_source_ips[side]);
            break;
        case 3:
            m->destination_ips[side] = ZT_LOCAL_LIST(r, struct zt_cidr, read_cidr, &m->n_destination_ips[side]);
            break;
        case 4:
            m->destination_ports[side] = ZT_LOCAL_LIST(r, uint16_t, read_port, &m->n_destination_ports[side]);
            break;
        default:
            m->service_accounts[side] = ZT_LOCAL_LIST(r, struct zt_sa_match, read_account, &m->n_service_accounts[side]);
            break;
        }
    }
    return !r->failed;
}

static bool read_clause(struct zt_yaml *r, void *element)
{
    struct zt_clause *c = element;
    uint16_t n = 0;
    c->matches = ZT_LOCAL_LIST(r, struct zt_match, read_match, &n);
    c->n_matches = n;
    return !r->failed;
}

static bool read_rule(struct zt_yaml *r, void *element)
{
    struct zt_rule *rule = element;
    uint16_t n = 0;
    rule->clauses = ZT_LOCAL_LIST(r, struct zt_clause, read_clause, &n);
    rule->n_clauses = n;
    return !r->failed;
}

static bool read_rules(struct zt_yaml *r, struct zt_policy *p)
{
    uint16_t n = 0;
    p->rules = ZT_LOCAL_LIST(r, struct zt_rule, read_rule, &n);
    p->n_rules = n;
    return !r->failed;
}

enum field { F_NAME, F_NAMESPACE, F_SCOPE, F_ACTION, F_RULES, F_DRY_RUN };
static const char *const names[] = {
    [F_NAME] = "name",     [F_NAMESPACE] = "namespace", [F_SCOPE] = "scope",
    [F_ACTION] = "action", [F_RULES] = "rules",         [F_DRY_RUN] = "dryRun",
    NULL,
};
static const char *const scopes[] = {
    [ZT_POLICY_GLOBAL] = "Global", [ZT_POLICY_NAMESPACE] = "Namespace", [ZT_POLICY_SELECTOR] = "WorkloadSelector", NULL};
static const char *const actions[] = {[ZT_POLICY_ALLOW] = "Allow", [ZT_POLICY_DENY] = "Deny", NULL};

static bool read_field(struct zt_yaml *r, struct zt_policy *p, int f)
{
    unsigned word = 0;
    switch (f) {
    case F_NAME:
        return zt_yaml_name(r, &p->name);
    case F_NAMESPACE:
        return zt_yaml_string(r, &p->ns);
    case F_SCOPE:
        if (!zt_yaml_enum(r, scopes, &word))
            return false;
        p->scope = (uint8_t)word;
        return true;
    case F_ACTION:
        if (!zt_yaml_enum(r, actions, &word))
            return false;
        p->action = (uint8_t)word;
        return true;
    case F_RULES:
        return read_rules(r, p);
    default:
        return zt_yaml_bool(r, &p->dry_run);
    }
}

bool zt_local_policy(struct zt_yaml *r, struct zt_policy **out)
{
    struct zt_policy p = {.origin = ZT_ORIGIN_FILE, .name = "", .ns = ""};
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, names, &seen)) >= 0;)
        if (!read_field(r, &p, f))
            return false;
    if (!zt_yaml_require(r, names, seen, BIT(F_DRY_RUN + 1) - 1))
        return false;
    size_t size = strlen(p.ns) + strlen(p.name) + 2;
    char *key = zt_scratch_alloc(&r->scratch, size);
    zt_fmt(key, size, "%s/%s", p.ns, p.name);
    p.key = key;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_policy_new(&p, out, &err) != ZT_OK)
        return zt_yaml_fail(r, "%s", err.text);
    return true;
}
