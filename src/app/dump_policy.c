/* Authorization policies as JSON (spec/interfaces §4.4): rules of clauses of matches, empty lists left out. */
#include "app/dump_records.h"

static void write_string_matches(struct zt_json *j, const char *key, const struct zt_string_match *list, unsigned n)
{
    static const char *const kinds[] = {"Exact", "Prefix", "Suffix", "Presence"};
    if (n == 0)
        return;
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++) {
        zt_json_object(j);
        zt_json_key(j, kinds[list[i].kind]);
        if (list[i].kind == ZT_MATCH_PRESENCE) {
            zt_json_array(j);
            zt_json_array_end(j);
        } else {
            zt_json_str(j, list[i].value);
        }
        zt_json_object_end(j);
    }
    zt_json_array_end(j);
}

static void write_cidrs(struct zt_json *j, const char *key, const struct zt_cidr *list, unsigned n)
{
    char text[ZT_CIDR_TEXT_MAX];
    if (n == 0)
        return;
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++)
        zt_json_str(j, zt_cidr_format(&list[i], text));
    zt_json_array_end(j);
}

static void write_port_list(struct zt_json *j, const char *key, const uint16_t *list, unsigned n)
{
    if (n == 0)
        return;
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++)
        zt_json_u64(j, list[i]);
    zt_json_array_end(j);
}

static void write_accounts(struct zt_json *j, const char *key, const struct zt_sa_match *list, unsigned n)
{
    if (n == 0)
        return;
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++) {
        zt_json_object(j);
        zt_json_key_str(j, "namespace", list[i].ns);
        zt_json_key_str(j, "serviceAccount", list[i].service_account);
        zt_json_object_end(j);
    }
    zt_json_array_end(j);
}

static void write_match(struct zt_json *j, const struct zt_match *m)
{
    zt_json_object(j);
    write_cidrs(j, "destinationIps", m->destination_ips[0], m->n_destination_ips[0]);
    write_port_list(j, "destinationPorts", m->destination_ports[0], m->n_destination_ports[0]);
    write_string_matches(j, "namespaces", m->namespaces[0], m->n_namespaces[0]);
    write_cidrs(j, "notDestinationIps", m->destination_ips[1], m->n_destination_ips[1]);
    write_port_list(j, "notDestinationPorts", m->destination_ports[1], m->n_destination_ports[1]);
    write_string_matches(j, "notNamespaces", m->namespaces[1], m->n_namespaces[1]);
    write_string_matches(j, "notPrincipals", m->principals[1], m->n_principals[1]);
    write_accounts(j, "notServiceAccounts", m->service_accounts[1], m->n_service_accounts[1]);
    write_cidrs(j, "notSourceIps", m->source_ips[1], m->n_source_ips[1]);
    write_string_matches(j, "principals", m->principals[0], m->n_principals[0]);
    write_accounts(j, "serviceAccounts", m->service_accounts[0], m->n_service_accounts[0]);
    write_cidrs(j, "sourceIps", m->source_ips[0], m->n_source_ips[0]);
    zt_json_object_end(j);
}

void zt_dump_policy(struct zt_json *j, const struct zt_policy *p)
{
    static const char *const scopes[] = {"Global", "Namespace", "WorkloadSelector"};
    zt_json_object(j);
    zt_json_key_str(j, "action", p->action == ZT_POLICY_DENY ? "Deny" : "Allow");
    zt_json_key_bool(j, "dryRun", p->dry_run);
    zt_json_key_str(j, "name", p->name);
    zt_json_key_str(j, "namespace", p->ns);
    zt_json_key(j, "rules");
    zt_json_array(j);
    for (uint32_t r = 0; r < p->n_rules; r++) {
        zt_json_array(j);
        for (uint32_t c = 0; c < p->rules[r].n_clauses; c++) {
            const struct zt_clause *clause = &p->rules[r].clauses[c];
            zt_json_array(j);
            for (uint32_t m = 0; m < clause->n_matches; m++)
                write_match(j, &clause->matches[m]);
            zt_json_array_end(j);
        }
        zt_json_array_end(j);
    }
    zt_json_array_end(j);
    zt_json_key_str(j, "scope", scopes[p->scope]);
    zt_json_object_end(j);
}
