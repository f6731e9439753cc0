/* Records as JSON: the forms of spec/interfaces §4.4, field by field; keys sorted, defaults left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "app/dump_records.h"
#include "support/state_fixture.h"
#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static struct zt_str text;
static struct zt_json json;

static void begin(void)
{
    zt_str_init(&text, 1 << 20);
    zt_json_init(&json, &text, false);
}

/* The text is what sorting its keys gives, and equals `expected` (written with any spacing and quotes as '). */
static void check(const char *expected)
{
    json_t *parsed = json_loads(zt_str_cstr(&text), 0, NULL);
    assert_non_null(parsed);
    char *sorted = json_dumps(parsed, JSON_SORT_KEYS | JSON_COMPACT);
    assert_string_equal(zt_str_cstr(&text), sorted);
    char *quoted = strdup(expected);
    for (char *p = quoted; (p = strchr(p, '\''));)
        *p = '"';
    json_t *want = json_loads(quoted, 0, NULL);
    assert_non_null(want);
    char *want_sorted = json_dumps(want, JSON_SORT_KEYS | JSON_COMPACT);
    assert_string_equal(zt_str_cstr(&text), want_sorted);
    free(want_sorted);
    free(quoted);
    free(sorted);
    json_decref(want);
    json_decref(parsed);
    zt_str_fini(&text);
}

static struct zt_workload *full_workload(enum zt_origin origin)
{
    struct zt_workload *w;
    struct zt_error err = ZT_ERROR_INIT;
    const struct zt_workload *t =
        WORKLOAD("Kubernetes//Pod/shop/web-5d4c", .origin = (uint8_t)origin, .protocol = ZT_PROTOCOL_HBONE, .native_tunnel = true,
                 .has_locality = true, .region = "r1", .zone = "z1", .has_app_tunnel = true,
                 .app_tunnel = ZT_APP_TUNNEL_PROXY, .app_tunnel_port = 15088, .ns = "shop", .service_account = "web",
                 .network = "net1", .node = "worker-1", .workload_name = "web", .workload_type = "deployment",
                 .canonical_name = "web", .canonical_revision = "v1", .hostname = "web-5d4c.example.com",
                 IPS("10.1.1.7", "fd00::7"), POLICIES("shop/no-batch"),
                 SERVES(MEMBER("shop", "web.shop.svc.cluster.local", {80, 8080}, {443, 8443}),
                        MEMBER("shop", "late.shop.svc.cluster.local", {81, 8081})),
                 .waypoint = GATEWAY_IP("net1", "10.96.77.1", 15008),
                 .network_gateway = GATEWAY_HOST("shop", "gw.shop.svc", 15009));
    assert_int_equal(zt_workload_new(t, &w, &err), ZT_OK);
    return w;
}

#define FULL_BEFORE_SERVICES                                                                       \
    "{'applicationTunnel':{'port':15088,'protocol':'PROXY'},'authorizationPolicies':['shop/no-batch'],"                \
    "'canonicalName':'web','canonicalRevision':'v1','capacity':1,'clusterId':'Kubernetes','hostname':"                 \
    "'web-5d4c.example.com','locality':{'region':'r1','subzone':'','zone':'z1'},'name':'web-5d4c','namespace':'shop'," \
    "'nativeTunnel':true,'network':'net1','networkGateway':{'destination':'shop/gw.shop.svc','hboneMtlsPort':15009},"  \
    "'networkMode':'Standard','node':'worker-1','protocol':'HBONE','serviceAccount':'web','services':"
#define FULL_AFTER_SERVICES                                                                        \
    ",'status':'Healthy','trustDomain':'cluster.local','uid':'Kubernetes//Pod/shop/web-5d4c','waypoint':"              \
    "{'destination':'net1/10.96.77.1','hboneMtlsPort':15008},'workloadIps':['10.1.1.7','fd00::7'],'workloadName':"     \
    "'web','workloadType':'deployment'}"

static void dump_workload_with_everything(void **state)
{
    struct zt_workload *w = full_workload(ZT_ORIGIN_XDS);
    begin();
    zt_dump_workload(&json, w, false);
    check(FULL_BEFORE_SERVICES "['shop/late.shop.svc.cluster.local','shop/web.shop.svc.cluster.local']" FULL_AFTER_SERVICES);
    zt_workload_unref(w);
}

static void dump_workload_in_a_files_form_maps_services_to_ports(void **state)
{
    struct zt_workload *w = full_workload(ZT_ORIGIN_FILE);
    begin();
    zt_dump_workload(&json, w, true);
    check(FULL_BEFORE_SERVICES "{'shop/late.shop.svc.cluster.local':{'81':8081},'shop/web.shop.svc.cluster.local':"
                               "{'443':8443,'80':8080}}" FULL_AFTER_SERVICES);
    zt_workload_unref(w);
}

static void dump_workload_leaves_defaults_out(void **state)
{
    struct zt_workload *w;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_workload_new(&(struct zt_workload){.uid = "u", .capacity = 1}, &w, &err), ZT_OK);
    begin();
    zt_dump_workload(&json, w, false);
    check("{'capacity':1,'clusterId':'','name':'','namespace':'','networkMode':'Standard','protocol':'TCP',"
          "'status':'Unhealthy','uid':'u','workloadIps':[]}");
    zt_workload_unref(w);
}

static void dump_service_with_everything(void **state)
{
    struct zt_store *store = *state;
    state_put_service(store, SERVICE("shop", "web.shop.svc.cluster.local", .name = "web", .canonical = true,
                                     VIPS_IN("net1", "10.96.14.3", "240.240.0.0/16"), PORTS({80, 8080}, {443, 0}),
                                     SANS("spiffe://cluster.local/ns/shop/sa/web"), .lb_mode = ZT_LB_FAILOVER,
                                     .n_lb_scopes = 3, .lb_scopes = {ZT_SCOPE_NETWORK, ZT_SCOPE_REGION, ZT_SCOPE_ZONE},
                                     .ip_families = ZT_FAMILIES_DUAL,
                                     .waypoint = GATEWAY_HOST("shop", "waypoint.shop.svc", 15008)));
    state_put(store, WORKLOAD("k//Pod/shop/web-2", .ns = "shop", IPS("10.1.1.8"), .healthy = false,
                              SERVES(MEMBER("shop", "web.shop.svc.cluster.local", {80, 8080}))));
    state_put(store, WORKLOAD("k//Pod/shop/web-1", .ns = "shop", IPS("10.1.1.7"),
                              SERVES(MEMBER("shop", "web.shop.svc.cluster.local", {80, 8080}, {443, 8443}))));
    size_t n;
    struct zt_service **list = zt_store_snapshot_services(store, &n);
    assert_int_equal(n, 1);
    begin();
    zt_dump_service(&json, store, list[0]);
    check("{'canonical':true,'cidrVips':[{'cidr':'240.240.0.0/16','network':'net1'}],'endpoints':{"
          "'k//Pod/shop/web-1':{'port':{'443':8443,'80':8080},'status':'Healthy','workloadUid':'k//Pod/shop/web-1'},"
          "'k//Pod/shop/web-2':{'port':{'80':8080},'status':'Unhealthy','workloadUid':'k//Pod/shop/web-2'}},"
          "'hostname':'web.shop.svc.cluster.local','ipFamilies':'Dual','loadBalancer':{'healthPolicy':'OnlyHealthy',"
          "'mode':'Failover','routingPreferences':['Network','Region','Zone']},'name':'web','namespace':'shop',"
          "'ports':{'443':0,'80':8080},'subjectAltNames':['spiffe://cluster.local/ns/shop/sa/web'],"
          "'vips':['net1/10.96.14.3'],'visibility':'Public','waypoint':{'destination':'shop/waypoint.shop.svc',"
          "'hboneMtlsPort':15008}}");
    zt_store_snapshot_services_free(list, n);
}

static void dump_staged_names_services_that_have_not_arrived(void **state)
{
    struct zt_store *store = *state;
    state_put(store, WORKLOAD("k//Pod/shop/web-1", .ns = "shop", IPS("10.1.1.7"),
                              SERVES(MEMBER("shop", "zz.shop.svc", {80, 8080}), MEMBER("shop", "aa.shop.svc", {81, 8081}))));
    begin();
    zt_dump_staged(&json, store);
    check("{'shop/aa.shop.svc':{'k//Pod/shop/web-1':{'port':{'81':8081},'status':'Healthy','workloadUid':"
          "'k//Pod/shop/web-1'}},'shop/zz.shop.svc':{'k//Pod/shop/web-1':{'port':{'80':8080},'status':'Healthy',"
          "'workloadUid':'k//Pod/shop/web-1'}}}");
}

static void dump_policy_with_every_field(void **state)
{
    static const struct zt_string_match prefix[] = {{ZT_MATCH_PREFIX, "batch-"}}, exact[] = {{ZT_MATCH_EXACT, "batch-ok"}},
                                        suffix[] = {{ZT_MATCH_SUFFIX, "/sa/trusted"}}, any[] = {{ZT_MATCH_PRESENCE, ""}};
    static const uint16_t ports[] = {8080}, other_ports[] = {9999};
    static const struct zt_sa_match accounts[] = {{"batch-1", "runner"}}, other_accounts[] = {{"batch-1", "ok"}};
    struct zt_cidr cidrs[] = {state_cidr("10.1.0.0/16"), state_cidr("10.1.9.9/32"), state_cidr("10.2.0.0/24"),
                              state_cidr("10.2.0.1/32")};
    struct zt_match matches[] = {
        {.namespaces = {prefix, exact}, .n_namespaces = {1, 1}, .principals = {any, suffix}, .n_principals = {1, 1},
         .source_ips = {&cidrs[2], &cidrs[3]}, .n_source_ips = {1, 1}, .destination_ips = {&cidrs[0], &cidrs[1]},
         .n_destination_ips = {1, 1}, .destination_ports = {ports, other_ports}, .n_destination_ports = {1, 1},
         .service_accounts = {accounts, other_accounts}, .n_service_accounts = {1, 1}},
        {.n_namespaces = {0, 0}},
    };
    struct zt_clause clauses[] = {{matches, 2}};
    struct zt_rule rules[] = {{clauses, 1}, {NULL, 0}};
    struct zt_policy *p, template = {.scope = ZT_POLICY_SELECTOR, .action = ZT_POLICY_DENY, .key = "shop/no-batch",
                                     .ns = "shop", .name = "no-batch", .rules = rules, .n_rules = 2};
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_policy_new(&template, &p, &err), ZT_OK);
    begin();
    zt_dump_policy(&json, p);
    check("{'action':'Deny','dryRun':false,'name':'no-batch','namespace':'shop','rules':[[[{'destinationIps':"
          "['10.1.0.0/16'],'destinationPorts':[8080],'namespaces':[{'Prefix':'batch-'}],'notDestinationIps':"
          "['10.1.9.9/32'],'notDestinationPorts':[9999],'notNamespaces':[{'Exact':'batch-ok'}],'notPrincipals':"
          "[{'Suffix':'/sa/trusted'}],'notServiceAccounts':[{'namespace':'batch-1','serviceAccount':'ok'}],"
          "'notSourceIps':['10.2.0.1/32'],'principals':[{'Presence':[]}],'serviceAccounts':[{'namespace':'batch-1',"
          "'serviceAccount':'runner'}],'sourceIps':['10.2.0.0/24']},{}]],[]],'scope':'WorkloadSelector'}");
    zt_policy_unref(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dump_workload_with_everything),
        cmocka_unit_test(dump_workload_in_a_files_form_maps_services_to_ports),
        cmocka_unit_test(dump_workload_leaves_defaults_out),
        STATE_TEST(dump_service_with_everything),
        STATE_TEST(dump_staged_names_services_that_have_not_arrived),
        cmocka_unit_test(dump_policy_with_every_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
