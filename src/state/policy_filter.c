/* Filters of rules: a decision with a thousand policies reads these, sixteen bytes a rule, instead of the rules.
 *
 * Invariant: a filter may pass a rule that does not match, but never holds back one that does. It is made from one clause of the rule (they
 * are ANDed) that consists of one match (they are ORed), from one positive list of it (fields are ANDed): a single value gives a piece of
 * text, a port or a prefix to compare, several exact values give a set of bits. What fits none of this is looked at itself. */
#include "state_impl.h"

#include <string.h>

enum {
    LOOK = 0,
    PRINCIPAL_IS, /* so long, and ends with these bytes */
    PRINCIPAL_HAS, /* these bytes at this place */
    PRINCIPAL_ENDS,
    PRINCIPAL_AMONG,
    NS_IS,
    NS_HAS,
    NS_ENDS,
    NS_AMONG,
    PORT_IS,
    PORT_AMONG,
    SOURCE_IN, /* IPv4 */
    DESTINATION_IN,
};

#define PORT_TOO 0x10000u /* in mask, of kinds of text: the port below must be right as well */

uint64_t zt_filter_bit(const char *text, size_t len)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)text[i]) * 16777619u;
    return UINT64_C(1) << (hash >> 26);
}

/* n bytes, at most 8. */
static inline uint64_t piece(const char *text, unsigned n)
{
    uint64_t value = 0;
    if (n == sizeof value)
        memcpy(&value, text, sizeof value);
    else
        for (unsigned i = 0; i < n; i++)
            value |= (uint64_t)(uint8_t)text[i] << (8 * i);
    return value;
}

/* ---- making ---- */

static struct zt_rule_filter of_text(const struct zt_string_match *m, bool ns)
{
    size_t len = strlen(m->value);
    uint8_t n = len < 8 ? (uint8_t)len : 8;
    uint8_t base = ns ? NS_IS - PRINCIPAL_IS : 0;
    struct zt_rule_filter f = {.n = n, .at = (uint16_t)(len - n), .value = piece(m->value + len - n, n)};
    if (n == 0 || len > UINT16_MAX || m->kind == ZT_MATCH_PRESENCE)
        return (struct zt_rule_filter){0};
    f.kind = (uint8_t)(base + (m->kind == ZT_MATCH_EXACT    ? PRINCIPAL_IS
                               : m->kind == ZT_MATCH_PREFIX ? PRINCIPAL_HAS
                                                            : PRINCIPAL_ENDS));
    return f;
}

static struct zt_rule_filter of_texts(const struct zt_string_match *list, size_t n, bool ns)
{
    struct zt_rule_filter f = {.kind = ns ? NS_AMONG : PRINCIPAL_AMONG};
    if (n == 1)
        return of_text(list, ns);
    for (size_t i = 0; i < n; i++) {
        if (list[i].kind != ZT_MATCH_EXACT)
            return (struct zt_rule_filter){0};
        f.value |= zt_filter_bit(list[i].value, strlen(list[i].value));
    }
    return f;
}

static struct zt_rule_filter of_ports(const uint16_t *list, size_t n)
{
    struct zt_rule_filter f = {.kind = n == 1 ? PORT_IS : PORT_AMONG, .value = n == 1 ? list[0] : 0};
    for (size_t i = 0; n > 1 && i < n; i++)
        f.value |= zt_filter_bit((const char *)&list[i], sizeof list[i]);
    return f;
}

static uint32_t v4(const struct zt_ip *ip)
{
    return (uint32_t)ip->bytes[0] << 24 | (uint32_t)ip->bytes[1] << 16 | (uint32_t)ip->bytes[2] << 8 | ip->bytes[3];
}

static struct zt_rule_filter of_cidr(const struct zt_cidr *c, uint8_t kind)
{
    if (c->ip.family != ZT_IPV4)
        return (struct zt_rule_filter){0};
    uint32_t mask = c->prefix_bits ? UINT32_MAX << (32 - c->prefix_bits) : 0;
    return (struct zt_rule_filter){.kind = kind, .mask = mask, .value = v4(&c->ip) & mask};
}

/* The most telling list first. */
static struct zt_rule_filter of_match(const struct zt_match *m)
{
    struct zt_rule_filter f = {0};
    if (m->n_principals[0])
        f = of_texts(m->principals[0], m->n_principals[0], false);
    if (!f.kind && m->n_service_accounts[0] == 1) {
        const struct zt_string_match sa = {ZT_MATCH_SUFFIX, m->service_accounts[0]->service_account};
        f = of_text(&sa, false);
    }
    if (!f.kind && m->n_source_ips[0] == 1)
        f = of_cidr(m->source_ips[0], SOURCE_IN);
    if (!f.kind && m->n_namespaces[0])
        f = of_texts(m->namespaces[0], m->n_namespaces[0], true);
    if (f.kind && f.kind < PORT_IS && m->n_destination_ports[0] == 1)
        f.mask = PORT_TOO | m->destination_ports[0][0];
    if (!f.kind && m->n_destination_ports[0])
        f = of_ports(m->destination_ports[0], m->n_destination_ports[0]);
    if (!f.kind && m->n_destination_ips[0] == 1)
        f = of_cidr(m->destination_ips[0], DESTINATION_IN);
    return f;
}

struct zt_rule_filter zt_rule_filter_of(const struct zt_rule *r)
{
    struct zt_rule_filter f = {0};
    for (size_t i = 0; !f.kind && i < r->n_clauses; i++)
        if (r->clauses[i].n_matches == 1)
            f = of_match(r->clauses[i].matches);
    return f;
}

/* ---- asking ---- */

static inline bool has(const struct zt_rule_filter *f, const char *text, size_t len, size_t at)
{
    return at + f->n <= len && piece(text + at, f->n) == f->value;
}

static inline bool ends(const struct zt_rule_filter *f, const char *text, size_t len)
{
    return len >= f->n && piece(text + len - f->n, f->n) == f->value;
}

static inline bool within(const struct zt_rule_filter *f, const struct zt_ip *ip)
{
    return ip->family == ZT_IPV4 && (v4(ip) & f->mask) == f->value;
}

static inline bool passes(const struct zt_rule_filter *f, const struct zt_subject *s)
{
    if (f->kind < PORT_IS && f->mask && f->mask != (PORT_TOO | s->request->dst.port))
        return false;
    switch (f->kind) {
    case PRINCIPAL_IS:
        return s->principal_len == (size_t)f->at + f->n && has(f, s->principal, s->principal_len, f->at);
    case PRINCIPAL_HAS:
        return has(f, s->principal, s->principal_len, f->at);
    case PRINCIPAL_ENDS:
        return ends(f, s->principal, s->principal_len);
    case PRINCIPAL_AMONG:
        return f->value & s->principal_bit;
    case NS_IS:
        return s->view.ns_len == (size_t)f->at + f->n && has(f, s->view.ns, s->view.ns_len, f->at);
    case NS_HAS:
        return has(f, s->view.ns, s->view.ns_len, f->at);
    case NS_ENDS:
        return ends(f, s->view.ns, s->view.ns_len);
    case NS_AMONG:
        return f->value & s->ns_bit;
    case PORT_IS:
        return f->value == s->request->dst.port;
    case PORT_AMONG:
        return f->value & s->port_bit;
    case SOURCE_IN:
        return within(f, &s->request->src.ip);
    case DESTINATION_IN:
        return within(f, &s->request->dst.ip);
    default:
        return true;
    }
}

bool zt_policy_matches_subject(const struct zt_policy *p, const struct zt_subject *s)
{
    for (size_t i = 0; i < p->n_rules; i++)
        if (passes(&p->filters[i], s) && zt_rule_holds(&p->rules[i], s))
            return true;
    return false;
}
