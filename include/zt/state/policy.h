/* Authorization policies and their evaluation (spec/dataplane §6). Pure. Immutable, ref-counted. Thread: any. */
#ifndef ZT_STATE_POLICY_H
#define ZT_STATE_POLICY_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/base/identity.h"
#include "zt/state/workload.h"

enum zt_policy_scope { ZT_POLICY_GLOBAL, ZT_POLICY_NAMESPACE, ZT_POLICY_SELECTOR };
enum zt_policy_action { ZT_POLICY_ALLOW, ZT_POLICY_DENY };
enum zt_match_kind { ZT_MATCH_EXACT, ZT_MATCH_PREFIX, ZT_MATCH_SUFFIX, ZT_MATCH_PRESENCE };

struct zt_string_match {
    uint8_t kind; /* enum zt_match_kind */
    const char *value;
};
struct zt_sa_match {
    const char *ns, *service_account;
};
/* The fields of a match; each has a positive and a negative list, index 0 and 1. */
struct zt_match {
    const struct zt_string_match *namespaces[2], *principals[2];
    const struct zt_cidr *source_ips[2], *destination_ips[2];
    const uint16_t *destination_ports[2];
    const struct zt_sa_match *service_accounts[2];
    uint16_t n_namespaces[2], n_principals[2], n_source_ips[2], n_destination_ips[2], n_destination_ports[2],
        n_service_accounts[2];
};
struct zt_clause { /* matches ORed */
    const struct zt_match *matches;
    uint32_t n_matches;
};
struct zt_rule { /* clauses ANDed */
    const struct zt_clause *clauses;
    uint32_t n_clauses;
};
struct zt_rule_filter;
struct zt_policy { /* rules ORed */
    atomic_uint refs;
    uint8_t origin, scope, action;
    bool dry_run;
    const char *key; /* storage key: the xDS resource name, "ns/name" from a file */
    const char *ns, *name;
    const struct zt_rule *rules;
    uint32_t n_rules;
    const struct zt_rule_filter *filters; /* the record's own: one per rule (src/state/policy_filter.c); templates leave it NULL */
};

/* As zt_workload_new. */
enum zt_err zt_policy_new(const struct zt_policy *template, struct zt_policy **out, struct zt_error *err);
struct zt_policy *zt_policy_ref(const struct zt_policy *p);
void zt_policy_unref(const struct zt_policy *p);

/* What a decision looks at. */
struct zt_authz_request {
    struct zt_addr src, dst;   /* dst: the real application port */
    const char *identity;      /* the peer's SPIFFE id, or NULL for plaintext; borrowed */
};
/* Does the policy match, whatever its action? */
bool zt_policy_matches(const struct zt_policy *p, const struct zt_authz_request *r);

/* Where a policy stopped matching, for ztctl and why-denied: rule and clause that came furthest, and the name of the first field
 * that failed there. */
struct zt_policy_miss {
    int rule, clause;   /* -1: none */
    const char *field;  /* static text, or NULL */
};
bool zt_policy_explain(const struct zt_policy *p, const struct zt_authz_request *r, struct zt_policy_miss *miss);

/* Why a request is refused: the DENY policy that matches, or the ALLOW policy that came closest. */
struct zt_authz_why {
    char policy[2 * ZT_IDENTITY_MAX]; /* "ns/name"; "" when none is to blame */
    bool denies;                      /* it is a DENY policy, and matches by `rule` */
    int rule, clause;                 /* from 1; 0: none */
    const char *field;                /* of the clause: the first that failed; static text or NULL */
};

#endif
