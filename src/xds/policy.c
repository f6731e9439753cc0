/* An authorization policy as istiod describes it to the record of the store (spec/controlplane
 * §4.4).
 *
 * Fails closed: a value that cannot be evaluated refuses the policy, and the one it would replace
 * stays. Dropping it from its list instead would widen an ALLOW or void a negation. */
#include "xds_impl.h"

static bool convert_string(const Istio__Security__StringMatch *in, struct zt_string_match *out,
                           struct zt_error *err)
{
    switch (in->match_type_case) {
    case ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_EXACT:
        *out = (struct zt_string_match){ZT_MATCH_EXACT, in->exact};
        return true;
    case ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_PREFIX:
        *out = (struct zt_string_match){ZT_MATCH_PREFIX, in->prefix};
        return true;
    case ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_SUFFIX:
        *out = (struct zt_string_match){ZT_MATCH_SUFFIX, in->suffix};
        return true;
    case ISTIO__SECURITY__STRING_MATCH__MATCH_TYPE_PRESENCE:
        *out = (struct zt_string_match){ZT_MATCH_PRESENCE, ""};
        return true;
    default:
        zt_error_set(err, ZT_INVALID, "string match of no known kind");
        return false;
    }
}

static bool convert_strings(struct zt_arena *a, Istio__Security__StringMatch *const *in, size_t n,
                            const struct zt_string_match **out, uint16_t *n_out,
                            struct zt_error *err)
{
    if (!zt_xds_list_fits(n, "values", err))
        return false;
    struct zt_string_match *list = zt_arena_take(a, n, sizeof *list);
    if (!list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++)
        if (!convert_string(in[i], &list[i], err))
            return false;
    *out = list;
    *n_out = (uint16_t)n;
    return true;
}

static bool convert_cidrs(struct zt_arena *a, Istio__Security__Address *const *in, size_t n,
                          const struct zt_cidr **out, uint16_t *n_out, struct zt_error *err)
{
    if (!zt_xds_list_fits(n, "values", err))
        return false;
    struct zt_cidr *list = zt_arena_take(a, n, sizeof *list);
    if (!list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++)
        if (!zt_xds_cidr(&in[i]->address, true, in[i]->length, &list[i], err))
            return false;
    *out = list;
    *n_out = (uint16_t)n;
    return true;
}

static bool convert_ports(struct zt_arena *a, const uint32_t *in, size_t n, const uint16_t **out,
                          uint16_t *n_out, struct zt_error *err)
{
    if (!zt_xds_list_fits(n, "values", err))
        return false;
    uint16_t *list = zt_arena_take(a, n, sizeof *list);
    if (!list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        if (!zt_xds_port_fits(in[i], err))
            return false;
        list[i] = (uint16_t)in[i];
    }
    *out = list;
    *n_out = (uint16_t)n;
    return true;
}

static bool convert_accounts(struct zt_arena *a, Istio__Security__ServiceAccountMatch *const *in,
                             size_t n, const struct zt_sa_match **out, uint16_t *n_out,
                             struct zt_error *err)
{
    if (!zt_xds_list_fits(n, "values", err))
        return false;
    struct zt_sa_match *list = zt_arena_take(a, n, sizeof *list);
    if (!list)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++)
        list[i] = (struct zt_sa_match){in[i]->namespace_, in[i]->serviceaccount};
    *out = list;
    *n_out = (uint16_t)n;
    return true;
}

static bool convert_match(struct zt_arena *a, const Istio__Security__Match *in, struct zt_match *m,
                          struct zt_error *err)
{
    *m = (struct zt_match){0};
    return convert_strings(a, in->namespaces, in->n_namespaces, &m->namespaces[0],
                           &m->n_namespaces[0], err) &&
           convert_strings(a, in->not_namespaces, in->n_not_namespaces, &m->namespaces[1],
                           &m->n_namespaces[1], err) &&
           convert_strings(a, in->principals, in->n_principals, &m->principals[0],
                           &m->n_principals[0], err) &&
           convert_strings(a, in->not_principals, in->n_not_principals, &m->principals[1],
                           &m->n_principals[1], err) &&
           convert_cidrs(a, in->source_ips, in->n_source_ips, &m->source_ips[0],
                         &m->n_source_ips[0], err) &&
           convert_cidrs(a, in->not_source_ips, in->n_not_source_ips, &m->source_ips[1],
                         &m->n_source_ips[1], err) &&
           convert_cidrs(a, in->destination_ips, in->n_destination_ips, &m->destination_ips[0],
                         &m->n_destination_ips[0], err) &&
           convert_cidrs(a, in->not_destination_ips, in->n_not_destination_ips,
                         &m->destination_ips[1], &m->n_destination_ips[1], err) &&
           convert_ports(a, in->destination_ports, in->n_destination_ports,
                         &m->destination_ports[0], &m->n_destination_ports[0], err) &&
           convert_ports(a, in->not_destination_ports, in->n_not_destination_ports,
                         &m->destination_ports[1], &m->n_destination_ports[1], err) &&
           convert_accounts(a, in->service_accounts, in->n_service_accounts,
                            &m->service_accounts[0], &m->n_service_accounts[0], err) &&
           convert_accounts(a, in->not_service_accounts, in->n_not_service_accounts,
                            &m->service_accounts[1], &m->n_service_accounts[1], err);
}

static bool convert_clause(struct zt_arena *a, const Istio__Security__Clause *in,
                           struct zt_clause *c, struct zt_error *err)
{
    struct zt_match *list = zt_arena_take(a, in->n_matches, sizeof *list);
    if (!list || in->n_matches > UINT32_MAX)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < in->n_matches; i++)
        if (!convert_match(a, in->matches[i], &list[i], err))
            return false;
    *c = (struct zt_clause){list, (uint32_t)in->n_matches};
    return true;
}

static bool convert_rule(struct zt_arena *a, const Istio__Security__Rule *in, struct zt_rule *r,
                         struct zt_error *err)
{
    struct zt_clause *list = zt_arena_take(a, in->n_clauses, sizeof *list);
    if (!list || in->n_clauses > UINT32_MAX)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < in->n_clauses; i++)
        if (!convert_clause(a, in->clauses[i], &list[i], err))
            return false;
    *r = (struct zt_rule){list, (uint32_t)in->n_clauses};
    return true;
}

static bool convert_rules(struct zt_arena *a, const Istio__Security__Authorization *in,
                          struct zt_policy *p, struct zt_error *err)
{
    struct zt_rule *list = zt_arena_take(a, in->n_rules, sizeof *list);
    if (!list || in->n_rules > UINT32_MAX)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < in->n_rules; i++)
        if (!convert_rule(a, in->rules[i], &list[i], err))
            return false;
    p->rules = list;
    p->n_rules = (uint32_t)in->n_rules;
    return true;
}

enum zt_err zt_xds_policy(struct zt_arena *a, const char *key,
                          const Istio__Security__Authorization *in, struct zt_policy **out,
                          struct zt_error *err)
{
    static const uint8_t scopes[] = {
        [ISTIO__SECURITY__SCOPE__GLOBAL] = ZT_POLICY_GLOBAL,
        [ISTIO__SECURITY__SCOPE__NAMESPACE] = ZT_POLICY_NAMESPACE,
        [ISTIO__SECURITY__SCOPE__WORKLOAD_SELECTOR] = ZT_POLICY_SELECTOR,
    };
    int scope = (int)in->scope, action = (int)in->action;
    struct zt_policy p = {
        .origin = ZT_ORIGIN_XDS,
        .key = key,
        .ns = in->namespace_,
        .name = in->name,
        .dry_run = in->dry_run,
    };
    *out = NULL;
    if (scope < 0 || scope >= (int)sizeof scopes)
        return zt_xds_unknown_enum(scope, err), ZT_INVALID;
    if (action != ISTIO__SECURITY__ACTION__ALLOW && action != ISTIO__SECURITY__ACTION__DENY)
        return zt_xds_unknown_enum(action, err), ZT_INVALID;
    p.scope = scopes[scope];
    p.action = action == ISTIO__SECURITY__ACTION__DENY ? ZT_POLICY_DENY : ZT_POLICY_ALLOW;
    if (!convert_rules(a, in, &p, err))
        return ZT_INVALID;
    return zt_policy_new(&p, out, err);
}
