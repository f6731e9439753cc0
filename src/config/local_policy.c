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

static bool read_string_match(struct zt_yaml *r, struct zt_string_match *m)
{
    const char *tag = zt_yaml_tag(r);
    if (tag)
        return tag[0] == '!' && find_kind(tag + 1, &m->kind) ? read_match_value(r, m) : fail_form(r);
    return zt_yaml_at_map(r) ? read_match_map(r, m) : fail_form(r);
}

static bool read_string_matches(struct zt_yaml *r, const struct zt_string_match **out, uint16_t *n_out)
{
    struct zt_string_match *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!read_string_match(r, &list[n++]))
            return false;
    }
    *out = list;
    *n_out = (uint16_t)n;
    return !r->failed;
}

static bool read_cidrs(struct zt_yaml *r, const struct zt_cidr **out, uint16_t *n_out)
{
    struct zt_cidr *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!zt_local_cidr(r, &list[n++]))
            return false;
    }
    *out = list;
    *n_out = (uint16_t)n;
    return !r->failed;
}

static bool read_port_list(struct zt_yaml *r, const uint16_t **out, uint16_t *n_out)
{
    uint16_t *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!zt_local_u16(r, &list[n++]))
            return false;
    }
    *out = list;
    *n_out = (uint16_t)n;
    return !r->failed;
}

static bool read_accounts(struct zt_yaml *r, const struct zt_sa_match **out, uint16_t *n_out)
{
    static const char *const keys[] = {"namespace", "serviceAccount", NULL};
    struct zt_sa_match *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        uint64_t seen = 0;
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX) || !zt_yaml_map(r))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        struct zt_sa_match *m = &list[n++];
        for (int f; (f = zt_yaml_field(r, keys, &seen)) >= 0;)
            if (!zt_yaml_string(r, f == 0 ? &m->ns : &m->service_account))
                return false;
        if (!zt_yaml_require(r, keys, seen, BIT(0) | BIT(1)))
            return false;
    }
    *out = list;
    *n_out = (uint16_t)n;
    return !r->failed;
}

/* Each positive list is followed by its negative twin. */
static const char *const match_names[] = {
    "namespaces",         "notNamespaces",       "principals",       "notPrincipals",
    "sourceIps",          "notSourceIps",        "destinationIps",   "notDestinationIps",
    "destinationPorts",   "notDestinationPorts", "serviceAccounts",  "notServiceAccounts",
    NULL,
};

static bool read_match(struct zt_yaml *r, struct zt_match *m)
{
    uint64_t seen = 0;
    if (!zt_yaml_map(r))
        return false;
    for (int f; (f = zt_yaml_field(r, match_names, &seen)) >= 0;) {
        unsigned side = (unsigned)f % 2;
        bool ok;
        switch (f / 2) {
        case 0:
            ok = read_string_matches(r, &m->namespaces[side], &m->n_namespaces[side]);
            break;
        case 1:
            ok = read_string_matches(r, &m->principals[side], &m->n_principals[side]);
            break;
        case 2:
            ok = read_cidrs(r, &m->source_ips[side], &m->n_source_ips[side]);
            break;
        case 3:
            ok = read_cidrs(r, &m->destination_ips[side], &m->n_destination_ips[side]);
            break;
        case 4:
            ok = read_port_list(r, &m->destination_ports[side], &m->n_destination_ports[side]);
            break;
        default:
            ok = read_accounts(r, &m->service_accounts[side], &m->n_service_accounts[side]);
            break;
        }
        if (!ok)
            return false;
    }
    return !r->failed;
}

static bool read_clause(struct zt_yaml *r, struct zt_clause *c)
{
    struct zt_match *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!read_match(r, &list[n++]))
            return false;
    }
    *c = (struct zt_clause){.matches = list, .n_matches = (uint32_t)n};
    return !r->failed;
}

static bool read_rule(struct zt_yaml *r, struct zt_rule *rule)
{
    struct zt_clause *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!read_clause(r, &list[n++]))
            return false;
    }
    *rule = (struct zt_rule){.clauses = list, .n_clauses = (uint32_t)n};
    return !r->failed;
}

static bool read_rules(struct zt_yaml *r, struct zt_policy *p)
{
    struct zt_rule *list = NULL;
    size_t n = 0, cap = 0;
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        if (!zt_local_room(r, n, ZT_LOCAL_LIST_MAX))
            return false;
        list = zt_scratch_grow(&r->scratch, list, n, &cap, sizeof *list);
        if (!read_rule(r, &list[n++]))
            return false;
    }
    p->rules = list;
    p->n_rules = (uint32_t)n;
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
