/* The local xDS document (spec/controlplane §5): what is accepted, and every way to be refused, with its position. */
#include "zt/config/local.h"

#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/state/route.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* The example of spec/controlplane §5.2. */
static const char example[] =
    "workloads:\n"
    "- uid: cluster1//Pod/default/client\n"
    "  name: client\n"
    "  namespace: default\n"
    "  serviceAccount: client\n"
    "  trustDomain: cluster.local\n"
    "  workloadIps: [\"10.1.0.1\"]\n"
    "  protocol: HBONE\n"
    "  node: node-a\n"
    "  network: \"\"\n"
    "  clusterId: Kubernetes\n"
    "  canonicalName: client\n"
    "  canonicalRevision: v1\n"
    "  workloadName: client\n"
    "  workloadType: deployment\n"
    "  locality: {region: r1, zone: z1, subzone: \"\"}\n"
    "  services: {}\n"
    "- uid: cluster1//Pod/default/server-1\n"
    "  name: server-1\n"
    "  namespace: default\n"
    "  serviceAccount: server\n"
    "  trustDomain: cluster.local\n"
    "  workloadIps: [\"10.1.0.2\", \"fd00::2\"]\n"
    "  protocol: HBONE\n"
    "  node: node-a\n"
    "  capacity: 2\n"
    "  authorizationPolicies: [\"default/only-client\"]\n"
    "  services:\n"
    "    \"default/server.default.svc.cluster.local\": {80: 8080}\n"
    "policies:\n"
    "- name: only-client\n"
    "  namespace: default\n"
    "  scope: WorkloadSelector\n"
    "  action: Allow\n"
    "  dryRun: false\n"
    "  rules:\n"
    "  - - - principals: [!Exact cluster.local/ns/default/sa/client]\n"
    "        destinationPorts: [8080]\n"
    "services:\n"
    "- name: server\n"
    "  namespace: default\n"
    "  hostname: server.default.svc.cluster.local\n"
    "  vips: [\"/10.2.0.1\"]\n"
    "  ports: {80: 8080}\n"
    "  canonical: true\n"
    "  subjectAltNames: [spiffe://cluster.local/ns/default/sa/other]\n"
    "  loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: OnlyHealthy}\n";

static struct zt_batch *parse_ok(const char *text, struct zt_local_info *info)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_batch *b = NULL;
    if (zt_local_parse("f", text, strlen(text), &b, info, &err) != ZT_OK)
        fail_msg("%s\n%s", err.text, text);
    return b;
}

/* A store with the document in it. */
static struct zt_store *store_of(const char *text)
{
    struct zt_store_config config = {.network = ""};
    struct zt_store *s = zt_store_new(&config);
    struct zt_store_changes changes;
    zt_store_apply(s, parse_ok(text, NULL), &changes);
    zt_store_changes_fini(&changes);
    return s;
}

static void refused(const char *expected, const char *text)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_batch *b = NULL;
    if (zt_local_parse("f", text, strlen(text), &b, NULL, &err) == ZT_OK)
        fail_msg("accepted:\n%s", text);
    assert_int_equal(err.code, ZT_INVALID);
    assert_null(b);
    if (!strstr(err.text, expected))
        fail_msg("expected \"%s\" in \"%s\" for:\n%.400s", expected, err.text, text);
}

static void local_client(void **state)
{
    struct zt_local_info info;
    zt_batch_free(parse_ok(example, &info));
    assert_int_equal(info.n_workloads, 2);
    assert_int_equal(info.n_services, 1);
    assert_int_equal(info.n_policies, 1);
    struct zt_store *s = store_of(example);
    struct zt_ip ip;
    assert_true(zt_ip_parse("10.1.0.2", &ip));
    struct zt_workload *w = zt_store_workload_at(s, "", &ip);
    assert_non_null(w);
    assert_string_equal(w->uid, "cluster1//Pod/default/server-1");
    assert_int_equal(w->capacity, 2);
    assert_int_equal(w->protocol, ZT_PROTOCOL_HBONE);
    assert_int_equal(w->n_ips, 2);
    assert_string_equal(w->policies[0], "default/only-client");
    assert_int_equal(w->origin, ZT_ORIGIN_FILE);
    assert_true(zt_ip_parse("10.2.0.1", &ip));
    struct zt_service *v = zt_store_service_at(s, "", &ip, "default");
    assert_non_null(v);
    assert_int_equal(zt_port_map_find(v->ports, v->n_ports, 80), 8080);
    assert_int_equal(zt_store_endpoint_port(s, v, w->uid, 80), 8080);
    assert_string_equal(v->sans[0], "spiffe://cluster.local/ns/default/sa/other");
    assert_int_equal(v->lb_mode, ZT_LB_FAILOVER);
    assert_int_equal(v->lb_scopes[0], ZT_SCOPE_NETWORK);
    assert_int_equal(v->n_lb_scopes, 3);
    zt_service_unref(v);
    zt_workload_unref(w);
    zt_store_free(s);
}

static void local_client_network_remote_service_reaches_default_network_workloads(void **state)
{
    struct zt_store *s = store_of("workloads:\n"
                                  "- {uid: a, namespace: ns, workloadIps: [127.0.0.2], services: {ns/h: {80: 8080}}}\n"
                                  "services:\n"
                                  "- {name: h, namespace: ns, hostname: h, vips: [remote/127.0.1.1], ports: {80: 80}}\n");
    struct zt_ip ip;
    assert_true(zt_ip_parse("127.0.1.1", &ip));
    struct zt_service *v = zt_store_service_at(s, "remote", &ip, "ns");
    assert_non_null(v);
    assert_null(zt_store_service_at(s, "", &ip, "ns"));
    assert_int_equal(zt_store_endpoint_port(s, v, "a", 80), 8080);
    zt_service_unref(v);
    zt_store_free(s);
}

static void omitted_fields_have_the_file_s_defaults(void **state)
{
    struct zt_store *s = store_of("workloads: [{workloadIps: [10.0.0.1], namespace: default, services: {}, name: p}]");
    struct zt_workload *w = zt_store_find_workload(s, "Kubernetes//Pod/default/p");
    char id[ZT_IDENTITY_MAX];
    assert_non_null(w);
    assert_true(w->healthy);
    assert_int_equal(w->capacity, 1);
    assert_int_equal(w->protocol, ZT_PROTOCOL_TCP);
    assert_false(w->host_network || w->native_tunnel || w->has_locality || w->has_app_tunnel);
    assert_string_equal(w->cluster_id, "");
    assert_true(zt_workload_identity(w, id));
    assert_string_equal(id, "spiffe:///ns/default/sa/");
    zt_workload_unref(w);
    zt_store_free(s);
}

static void every_field_of_a_workload_is_read(void **state)
{
    struct zt_store *s = store_of(
        "workloads:\n- uid: u\n  name: n\n  namespace: ns\n  workloadIps: ['::ffff:10.0.0.1']\n  services: {a/b/c: {'80': 1, 443: 0}}\n"
        "  networkMode: HostNetwork\n  status: Unhealthy\n  nativeTunnel: true\n  network: net1\n  hostname: h.example\n"
        "  applicationTunnel: {protocol: PROXY, port: 15088}\n  waypoint: {destination: ns/wp.svc, hboneMtlsPort: 15008}\n"
        "  networkGateway: {destination: net1/10.9.9.9, hboneMtlsPort: 15009}\n  locality: {region: r, zone: z, subzone: s}\n");
    struct zt_workload *w = zt_store_find_workload(s, "u");
    assert_non_null(w);
    assert_true(w->host_network && w->native_tunnel && w->has_app_tunnel && w->has_locality);
    assert_false(w->healthy);
    assert_int_equal(w->app_tunnel, ZT_APP_TUNNEL_PROXY);
    assert_int_equal(w->app_tunnel_port, 15088);
    assert_int_equal(w->ips[0].family, ZT_IPV4); /* a mapped address is IPv4 */
    assert_string_equal(w->waypoint->ns, "ns");
    assert_string_equal(w->waypoint->hostname, "wp.svc");
    assert_int_equal(w->waypoint->ip.family, ZT_IP_NONE);
    assert_string_equal(w->network_gateway->network, "net1");
    assert_int_equal(w->network_gateway->ip.family, ZT_IPV4);
    assert_int_equal(w->network_gateway->hbone_mtls_port, 15009);
    assert_string_equal(w->services[0].ns, "a");
    assert_string_equal(w->services[0].hostname, "b/c");
    assert_int_equal(w->services[0].n_ports, 2);
    assert_int_equal(zt_port_map_find(w->services[0].ports, 2, 80), 1);
    assert_string_equal(w->subzone, "s");
    zt_workload_unref(w);
    zt_store_free(s);
}

static void every_field_of_a_service_is_read(void **state)
{
    struct zt_store *s = store_of(
        "services:\n- name: n\n  namespace: ns\n  hostname: h\n  vips: [/10.0.0.1]\n  ports: {80: 0}\n"
        "  cidrVips: [{network: net1, cidr: 240.0.0.0/8}, {network: '', cidr: 10.0.0.9/32}]\n"
        "  endpoints: {e1: {workloadUid: e1, port: {80: 8080}, status: Unhealthy}, e2: {workloadUid: e2, port: {}}}\n"
        "  waypoint: {destination: /10.1.1.1, hboneMtlsPort: 15008}\n"
        "  weightedWaypoints: [{destination: {destination: ns/w, hboneMtlsPort: 1}, weight: 10}]\n"
        "  loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: AllowAll}\n"
        "  ipFamilies: Dual\n  visibility: Namespace\n  canonical: true\n");
    struct zt_service *v = zt_store_service_by_hostname(s, "h", "ns");
    assert_non_null(v);
    assert_int_equal(v->n_vips, 3);
    assert_true(v->vips[0].exact);
    assert_false(v->vips[1].exact);
    assert_string_equal(v->vips[1].network, "net1");
    assert_true(v->vips[2].exact);
    assert_int_equal(v->n_endpoints, 2);
    assert_false(v->endpoints[0].healthy);
    assert_true(v->endpoints[1].healthy);
    assert_int_equal(v->waypoint->hbone_mtls_port, 15008);
    assert_int_equal(v->weighted_waypoints[0].weight, 10);
    assert_int_equal(v->lb_mode, ZT_LB_PASSTHROUGH);
    assert_true(v->lb_allow_all && v->canonical && v->namespace_visible_only);
    assert_int_equal(v->ip_families, ZT_FAMILIES_DUAL);
    zt_service_unref(v);
    zt_store_free(s);
}

#define POLICY(rules) "policies: [{name: p, namespace: ns, scope: Global, action: Deny, dryRun: true, rules: " rules "}]"

static struct zt_policy *only_policy(struct zt_store *s)
{
    size_t n = 0;
    struct zt_policy **list = zt_store_snapshot_policies(s, &n);
    assert_int_equal(n, 1);
    struct zt_policy *p = zt_policy_ref(list[0]);
    zt_store_snapshot_policies_free(list, n);
    return p;
}

static void string_matches_come_tagged_or_as_a_map(void **state)
{
    struct zt_store *s = store_of(POLICY(
        "[[[{principals: [!Exact a, !Prefix b, !Suffix 'c', !Presence []], notPrincipals: [{Exact: a}, {Prefix: 'b'}, {Suffix: c}, "
        "{Presence: []}], namespaces: [{Presence: {}}, {Presence: null}, !Presence {}, !Presence , {Exact: ''}]}]]]"));
    struct zt_policy *p = only_policy(s);
    const struct zt_match *m = &p->rules[0].clauses[0].matches[0];
    assert_string_equal(p->key, "ns/p");
    assert_true(p->dry_run);
    assert_int_equal(p->action, ZT_POLICY_DENY);
    for (int side = 0; side < 2; side++) {
        assert_int_equal(m->n_principals[side], 4);
        for (int i = 0; i < 4; i++)
            assert_int_equal(m->principals[side][i].kind, ZT_MATCH_EXACT + i);
        assert_string_equal(m->principals[side][2].value, "c");
    }
    assert_int_equal(m->n_namespaces[0], 5);
    for (int i = 0; i < 4; i++)
        assert_int_equal(m->namespaces[0][i].kind, ZT_MATCH_PRESENCE);
    zt_policy_unref(p);
    zt_store_free(s);
}

static void every_field_of_a_match_is_read(void **state)
{
    struct zt_store *s = store_of(POLICY("[[[{sourceIps: [10.0.0.0/8, '::/0'], notSourceIps: [10.1.1.1], destinationIps: [1.2.3.4/32], "
                                         "notDestinationIps: [0.0.0.0/0], destinationPorts: [80, 65535], notDestinationPorts: [1], "
                                         "serviceAccounts: [{namespace: a, serviceAccount: b}], "
                                         "notServiceAccounts: [{namespace: c, serviceAccount: d}]}, {}], []], []]"));
    struct zt_policy *p = only_policy(s);
    assert_int_equal(p->n_rules, 2);
    assert_int_equal(p->rules[0].n_clauses, 2);
    assert_int_equal(p->rules[0].clauses[0].n_matches, 2);
    assert_int_equal(p->rules[1].n_clauses, 0);
    const struct zt_match *m = p->rules[0].clauses[0].matches;
    assert_int_equal(m->n_source_ips[0], 2);
    assert_int_equal(m->source_ips[0][0].prefix_bits, 8);
    assert_int_equal(m->source_ips[1][0].prefix_bits, 32); /* a bare address is a host */
    assert_int_equal(m->destination_ips[1][0].prefix_bits, 0);
    assert_int_equal(m->destination_ports[0][1], 65535);
    assert_string_equal(m->service_accounts[0][0].service_account, "b");
    assert_string_equal(m->service_accounts[1][0].ns, "c");
    zt_policy_unref(p);
    zt_store_free(s);
}

static void json_is_accepted_as_far_as_it_is_yaml(void **state)
{
    zt_batch_free(parse_ok("{\"workloads\": [{\"uid\": \"u\", \"workloadIps\": [\"10.0.0.1\"], \"namespace\": \"n\", \"waypoint\": null,\n"
                           " \"services\": {\"a/b\": {\"80\": 8080}}}], \"policies\": [], \"services\": []}",
                           NULL));
    zt_batch_free(parse_ok("{}", NULL));
    zt_batch_free(parse_ok("workloads:\npolicies:\nservices:\n", NULL));
}

static void a_batch_of_the_file_is_complete(void **state)
{
    struct zt_store *s = store_of(example);
    struct zt_store_changes changes;
    zt_store_apply(s, parse_ok("{}", NULL), &changes);
    zt_store_changes_fini(&changes);
    size_t w, v, p;
    zt_store_counts(s, &w, &v, &p);
    assert_int_equal(w + v + p, 0);
    zt_store_free(s);
}

#define WORKLOAD(rest) "workloads:\n- {uid: u, namespace: n, workloadIps: [], services: {}" rest "}\n"
#define SERVICE(rest) "services:\n- {name: n, namespace: n, hostname: h, vips: [], ports: {}" rest "}\n"
#define MATCH(m) POLICY("[[[" m "]]]")

static void errors_name_file_line_column_path_and_reason(void **state)
{
    refused("f:3:3: workloads[1].bogus: unknown key", "workloads:\n- {uid: u, namespace: n, workloadIps: [], services: {}}\n- bogus: 1\n");
    refused("f:2:64: workloads[0].services.a/b.80: expected a number from 0 to 65535, found `70000`",
            "workloads:\n- {uid: u, namespace: n, workloadIps: [], services: {a/b: {80: 70000}}}\n");
    refused("f:1:1: the document is empty", "");
    refused("f:2:1: the document is empty", "# only this\n");
    refused("f:1:9: found unexpected end of stream (while scanning a quoted scalar that began in line 1)", "\"open: [");
}

static void syntax_and_structure_errors_refuse_the_document(void **state)
{
    refused("f:1:1: the document is empty", "~");
    refused("f:1:1: expected a map, found a list", "[]");
    refused("expected a map, found a single value", "hello");
    refused("bogus: unknown key", "bogus: []");
    refused("workloads: the key is given twice", "workloads: []\nworkloads: []\n");
    refused("only one YAML document", "{}\n---\n{}\n");
    refused("anchors and aliases are not accepted", "workloads: &a []\nservices: *a\n");
    refused("anchors and aliases are not accepted", "workloads: *a\n");
    refused("unexpected tag !x", "workloads: !x []\n");
    refused("unexpected tag !x", WORKLOAD(", name: !x y"));
    refused("unexpected tag !x", "!x workloads: []\n");
    refused("a key must be a single value", "[a]: []\n");
    refused("workloads: expected a list, found a map", "workloads: {}\n");
    refused("workloads[0]: expected a map, found a single value", "workloads: [x]\n");
    refused("a value with a NUL byte", WORKLOAD(", name: \"a\\0b\""));
    refused("invalid", "workloads: [\xff]\n");
    refused("f:2:1: workloads: did not find expected node content", "workloads: [\n- a\n");
}

static void workload_errors_refuse_the_document(void **state)
{
    refused("f:2:3: workloads[0]: missing key `workloadIps`", "workloads:\n- {uid: u, namespace: n, services: {}}\n");
    refused("missing key `namespace`", "workloads:\n- {uid: u, workloadIps: [], services: {}}\n");
    refused("missing key `services`", "workloads:\n- {uid: u, namespace: n, workloadIps: []}\n");
    refused("needs a `uid`, a `name` or an address", "workloads: [{namespace: n, workloadIps: [], services: {}}]");
    refused("workloadIps[0]: `10.0.0.256` is not an IP address", "workloads: [{namespace: n, workloadIps: [10.0.0.256], services: {}}]");
    refused("workloadIps: expected a list, found nothing", "workloads:\n- namespace: n\n  services: {}\n  workloadIps:\n");
    refused("failed to parse namespaced hostname: `ab`", "workloads: [{namespace: n, workloadIps: [], services: {ab: {}}}]");
    refused("failed to parse namespaced hostname", "workloads: [{namespace: n, workloadIps: [], services: {/b: {}}}]");
    refused("a port is a number from 1 to 65535", "workloads: [{namespace: n, workloadIps: [], services: {a/b: {65536: 1}}}]");
    refused("a port is a number from 1 to 65535", "workloads: [{namespace: n, workloadIps: [], services: {a/b: {http: 1}}}]");
    refused("the key is given twice", "workloads: [{namespace: n, workloadIps: [], services: {a/b: {1: 1, \"1\": 2}}}]");
    refused("the key is given twice", "workloads: [{namespace: n, workloadIps: [], services: {a/b: {}, a/b: {}}}]");
    refused("found `8080`", "workloads: [{namespace: n, workloadIps: [], services: {a/b: {80: \"8080\"}}}]");
    refused("protocol: `hbone` is not one of `TCP`, `HBONE`", WORKLOAD(", protocol: hbone"));
    refused("networkMode: `x` is not one of `Standard`, `HostNetwork`", WORKLOAD(", networkMode: x"));
    refused("status: `x` is not one of `Healthy`, `Unhealthy`", WORKLOAD(", status: x"));
    refused("nativeTunnel: expected true or false, found `yes`", WORKLOAD(", nativeTunnel: yes"));
    refused("expected true or false", WORKLOAD(", nativeTunnel: \"true\""));
    refused("applicationTunnel: missing key `protocol`", WORKLOAD(", applicationTunnel: {port: 1}"));
    refused("`x` is not one of `NONE`, `PROXY`", WORKLOAD(", applicationTunnel: {protocol: x}"));
    refused("port: expected a number from 0 to 65535", WORKLOAD(", applicationTunnel: {protocol: PROXY, port: 65536}"));
    refused("locality: missing key `subzone`", WORKLOAD(", locality: {region: r, zone: z}"));
    refused("locality.planet: unknown key", WORKLOAD(", locality: {planet: r}"));
    refused("capacity: expected a number from 0 to 4294967295", WORKLOAD(", capacity: 4294967296"));
    refused("capacity: expected a number", WORKLOAD(", capacity: -1"));
    refused("authorizationPolicies[0]: must not be empty", WORKLOAD(", authorizationPolicies: ['']"));
    refused("waypoint: missing key `hboneMtlsPort`", WORKLOAD(", waypoint: {destination: a/b}"));
    refused("waypoint: missing key `destination`", WORKLOAD(", waypoint: {hboneMtlsPort: 1}"));
    refused("waypoint.destination: failed to parse", WORKLOAD(", waypoint: {destination: ab, hboneMtlsPort: 1}"));
    refused("hboneMtlsPort: expected a number", WORKLOAD(", networkGateway: {destination: a/b, hboneMtlsPort: 99999}"));
    refused("waypoint.x: unknown key", WORKLOAD(", waypoint: {x: 1}"));
    refused("workloads[1]: `u` is given twice", "workloads: [{uid: u, namespace: n, workloadIps: [], services: {}}, "
                                                "{uid: u, namespace: n, workloadIps: [], services: {}}]");
}

static void service_errors_refuse_the_document(void **state)
{
    refused("missing key `hostname`", "services: [{name: n, namespace: n, vips: [], ports: {}}]");
    refused("missing key `vips`", "services: [{name: n, namespace: n, hostname: h, ports: {}}]");
    refused("missing key `ports`", "services: [{name: n, namespace: n, hostname: h, vips: []}]");
    refused("hostname: must not be empty", "services: [{name: n, namespace: n, hostname: '', vips: [], ports: {}}]");
    refused("vips[0]: `10.0.0.1` is not <network>/<ip>", "services: [{name: n, namespace: n, hostname: h, vips: [10.0.0.1], ports: {}}]");
    refused("is not <network>/<ip>", "services: [{name: n, namespace: n, hostname: h, vips: [/10.0.0.0/8], ports: {}}]");
    refused("ports.0: a port is a number", "services: [{name: n, namespace: n, hostname: h, vips: [], ports: {0: 1}}]");
    refused("services[0].bogus: unknown key", SERVICE(", bogus: 1"));
    refused("cidrVips[0].cidr: invalid cidr: `10.0.0.0/33`", SERVICE(", cidrVips: [{network: '', cidr: 10.0.0.0/33}]"));
    refused("cidrVips[0]: missing key `network`", SERVICE(", cidrVips: [{cidr: 10.0.0.0/8}]"));
    refused("cidrVips[0].x: unknown key", SERVICE(", cidrVips: [{x: 1}]"));
    refused("endpoints.e: missing key `workloadUid`", SERVICE(", endpoints: {e: {port: {}}}"));
    refused("endpoints.e: missing key `port`", SERVICE(", endpoints: {e: {workloadUid: u}}"));
    refused("endpoints.e.x: unknown key", SERVICE(", endpoints: {e: {x: u}}"));
    refused("endpoints: endpoint `u` is given twice",
            SERVICE(", endpoints: {a: {workloadUid: u, port: {}}, b: {workloadUid: u, port: {}}}"));
    refused("subjectAltNames[0]: must not be empty", SERVICE(", subjectAltNames: ['']"));
    refused("weightedWaypoints[0]: missing key `weight`",
            SERVICE(", weightedWaypoints: [{destination: {destination: a/b, hboneMtlsPort: 1}}]"));
    refused("weightedWaypoints[0].x: unknown key", SERVICE(", weightedWaypoints: [{x: 1}]"));
    refused("loadBalancer: missing key `healthPolicy`", SERVICE(", loadBalancer: {routingPreferences: [], mode: Strict}"));
    refused("`Planet` is not one of `Region`", SERVICE(", loadBalancer: {routingPreferences: [Planet]}"));
    refused("more than 8 entries", SERVICE(", loadBalancer: {routingPreferences: [Node,Node,Node,Node,Node,Node,Node,Node,Node]}"));
    refused("mode: `failover` is not one of", SERVICE(", loadBalancer: {mode: failover}"));
    refused("healthPolicy: `x` is not one of", SERVICE(", loadBalancer: {healthPolicy: x}"));
    refused("loadBalancer.x: unknown key", SERVICE(", loadBalancer: {x: 1}"));
    refused("ipFamilies: `IPv5` is not one of", SERVICE(", ipFamilies: IPv5"));
    refused("visibility: `x` is not one of", SERVICE(", visibility: x"));
    refused("canonical: expected true or false", SERVICE(", canonical: 1"));
    refused("`h` is given twice", "services: [{name: a, namespace: n, hostname: h, vips: [], ports: {}}, "
                                  "{name: b, namespace: n, hostname: h, vips: [], ports: {}}]");
}

static void policy_errors_refuse_the_document(void **state)
{
    static const char *const keys[] = {"name: p", "namespace: n", "scope: Global", "action: Deny", "dryRun: true", "rules: []"};
    for (int left_out = 0; left_out < 6; left_out++) {
        char text[256] = "policies: [{", expected[64];
        for (int i = 0; i < 6; i++)
            if (i != left_out)
                snprintf(text + strlen(text), sizeof text - strlen(text), "%s, ", keys[i]);
        snprintf(text + strlen(text), sizeof text - strlen(text), "}]");
        snprintf(expected, sizeof expected, "missing key `%.*s`", (int)strcspn(keys[left_out], ":"), keys[left_out]);
        refused(expected, text);
    }
    refused("scope: `x` is not one of", "policies: [{scope: x}]");
    refused("action: `Audit` is not one of `Allow`, `Deny`", "policies: [{action: Audit}]");
    refused("rules: expected a list, found nothing", "policies:\n- rules:\n");
    refused("rules[0]: expected a list, found a map", POLICY("[{}]"));
    refused("rules[0][0]: expected a list, found a map", POLICY("[[{}]]"));
    refused("rules[0][0][0]: expected a map, found a list", POLICY("[[[[]]]]"));
    refused("princpals: unknown key", MATCH("{princpals: []}"));
    refused("principals: expected a list, found nothing", MATCH("{principals: }"));
    refused("expected a string match: !Exact x", MATCH("{principals: [bare]}"));
    refused("expected a string match: !Exact x", MATCH("{principals: [!Regex x]}"));
    refused("expected a string match: !Exact x", MATCH("{principals: [{Regex: x}]}"));
    refused("expected a string match: !Exact x", MATCH("{principals: [{}]}"));
    refused("a string match has one key", MATCH("{principals: [{Exact: x, Prefix: y}]}"));
    refused("the value is missing", MATCH("{principals: [!Exact ]}"));
    refused("expected an empty list", MATCH("{principals: [!Presence [x]]}"));
    refused("expected an empty list", MATCH("{principals: [{Presence: x}]}"));
    refused("invalid cidr: `10.0.0.0/33`", MATCH("{sourceIps: [10.0.0.0/33]}"));
    refused("invalid cidr: `nonsense`", MATCH("{notDestinationIps: [nonsense]}"));
    refused("expected a number from 0 to 65535", MATCH("{destinationPorts: [65536]}"));
    refused("missing key `serviceAccount`", MATCH("{serviceAccounts: [{namespace: a}]}"));
    refused("x: unknown key", MATCH("{serviceAccounts: [{x: a}]}"));
    refused("`n/p` is given twice", "policies: [{name: p, namespace: n, scope: Global, action: Deny, dryRun: true, rules: []}, "
                                    "{name: p, namespace: n, scope: Global, action: Deny, dryRun: true, rules: []}]");
}

static void limits_are_reached_and_held(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 1 << 24);
    zt_str_add(&s, "workloads: [{uid: u, namespace: n, workloadIps: [], services: {}, name: ");
    for (int i = 0; i < ZT_LOCAL_SCALAR_BYTES_MAX + 1; i++)
        zt_str_add_char(&s, 'x');
    zt_str_add(&s, "}]");
    refused("a value of more than 4096 bytes", zt_str_cstr(&s));
    zt_str_clear(&s);
    zt_str_add(&s, POLICY("[[[{destinationPorts: [1"));
    s.len = strlen(s.data) - strlen("}]"); /* reopen what the macro closed */
    for (int i = 0; i < ZT_LOCAL_LIST_MAX; i++)
        zt_str_add(&s, ",1");
    zt_str_add(&s, "]}]]]}]");
    refused("destinationPorts[65535]: more than 65535 entries", zt_str_cstr(&s));
    zt_str_fini(&s);
    refused("found a list", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[");
}

static void a_document_cut_anywhere_is_refused_or_whole_records(void **state)
{
    struct zt_local_info whole;
    zt_batch_free(parse_ok(example, &whole));
    for (size_t len = 0; len < sizeof example - 1; len++) {
        struct zt_batch *b = NULL;
        struct zt_local_info info;
        struct zt_error err = ZT_ERROR_INIT;
        if (zt_local_parse("f", example, len, &b, &info, &err) == ZT_OK) {
            assert_true(info.n_workloads <= whole.n_workloads && info.n_policies <= whole.n_policies);
            assert_int_not_equal(info.hash, whole.hash);
            zt_batch_free(b);
        } else {
            assert_memory_equal(err.text, "f:", 2);
        }
    }
}

static void a_file_is_read_and_named_in_errors(void **state)
{
    char path[] = "/tmp/zt-local-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, example, strlen(example)), (ssize_t)strlen(example));
    struct zt_batch *b = NULL;
    struct zt_local_info from_file, from_text;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_local_load(path, &b, &from_file, &err), ZT_OK);
    zt_batch_free(b);
    zt_batch_free(parse_ok(example, &from_text));
    assert_int_equal(from_file.hash, from_text.hash);
    assert_int_equal(from_file.bytes, strlen(example));
    assert_int_equal(ftruncate(fd, 14), 0);
    b = NULL;
    assert_int_equal(zt_local_load(path, &b, NULL, &err), ZT_INVALID);
    assert_memory_equal(err.text, path, strlen(path));
    close(fd);
    unlink(path);
    assert_int_equal(zt_local_load(path, &b, NULL, &err), ZT_IO);
    assert_non_null(strstr(err.text, "LOCAL_XDS_PATH"));
    assert_non_null(strstr(err.text, "No such file or directory"));
    assert_int_equal(zt_local_load("/tmp", &b, NULL, &err), ZT_INVALID);
    assert_null(b);
}

static void a_hundred_thousand_workloads_load_in_bounded_memory(void **state)
{
    struct zt_str s;
    zt_str_init(&s, 1u << 28);
    zt_str_add(&s, "workloads:\n");
    for (unsigned i = 0; i < 100000; i++)
        zt_str_addf(&s,
                    "- uid: cluster1//Pod/ns%u/pod-%u\n  name: pod-%u\n  namespace: ns%u\n  serviceAccount: default\n"
                    "  trustDomain: cluster.local\n  workloadIps: [\"10.%u.%u.%u\"]\n  protocol: HBONE\n  node: node-%u\n"
                    "  services:\n    \"ns%u/svc-%u.ns%u.svc.cluster.local\": {80: 8080}\n",
                    i % 100, i, i, i % 100, i >> 16, i >> 8 & 255, i & 255, i % 200, i % 100, i % 1000, i % 100);
    struct zt_local_info info;
    uint64_t before_ms = zt_clock_mono_ms();
    struct zt_batch *b = parse_ok(zt_str_cstr(&s), &info);
    uint64_t took_ms = zt_clock_mono_ms() - before_ms;
    print_message("100,000 workloads, %zu bytes: %llu ms\n", s.len, (unsigned long long)took_ms);
    assert_int_equal(info.n_workloads, 100000);
    assert_true(took_ms < 30000); /* sanitizers and a busy machine; tests/bench has the real figure */
    zt_batch_free(b);
    zt_str_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(local_client),
        cmocka_unit_test(local_client_network_remote_service_reaches_default_network_workloads),
        cmocka_unit_test(omitted_fields_have_the_file_s_defaults),
        cmocka_unit_test(every_field_of_a_workload_is_read),
        cmocka_unit_test(every_field_of_a_service_is_read),
        cmocka_unit_test(string_matches_come_tagged_or_as_a_map),
        cmocka_unit_test(every_field_of_a_match_is_read),
        cmocka_unit_test(json_is_accepted_as_far_as_it_is_yaml),
        cmocka_unit_test(a_batch_of_the_file_is_complete),
        cmocka_unit_test(errors_name_file_line_column_path_and_reason),
        cmocka_unit_test(syntax_and_structure_errors_refuse_the_document),
        cmocka_unit_test(workload_errors_refuse_the_document),
        cmocka_unit_test(service_errors_refuse_the_document),
        cmocka_unit_test(policy_errors_refuse_the_document),
        cmocka_unit_test(limits_are_reached_and_held),
        cmocka_unit_test(a_document_cut_anywhere_is_refused_or_whole_records),
        cmocka_unit_test(a_file_is_read_and_named_in_errors),
        cmocka_unit_test(a_hundred_thousand_workloads_load_in_bounded_memory),
    };
    return cmocka_run_group_tests_name("local", tests, NULL, NULL);
}
