/* Short words for state tests: records written as literals with sensible defaults, put into a store
 * one at a time.
 *
 *     state_put(s, WORKLOAD("cluster1//Pod/ns1/echo", IPS("10.0.0.1"), .protocol =
 * ZT_PROTOCOL_HBONE)); state_put_service(s, SERVICE("ns1", "echo.ns1", VIPS("10.96.0.1"),
 * PORTS({80, 8080})));
 *
 * A literal lives until the end of the block it is written in. Failures abort the test. */
#ifndef ZT_TESTS_STATE_FIXTURE_H
#define ZT_TESTS_STATE_FIXTURE_H

#include "zt/state/route.h"
#include "zt/state/store.h"

#pragma GCC diagnostic ignored "-Woverride-init" /* that is how the defaults work */
#pragma GCC diagnostic ignored "-Woverride-init-side-effects"

#define STATE_NODE "local-node"

#define STATE_COUNT(type, ...) (sizeof((type[]){__VA_ARGS__}) / sizeof(type))
#define STATE_LIST(field, type, ...)                                                               \
    .field = (const type[]){__VA_ARGS__}, .n_##field = STATE_COUNT(type, __VA_ARGS__)

#define IPS(...)                                                                                   \
    .ips = state_ips((struct zt_ip[STATE_COUNT(const char *, __VA_ARGS__)]){0},                    \
                     (const char *const[]){__VA_ARGS__}, STATE_COUNT(const char *, __VA_ARGS__)),  \
    .n_ips = STATE_COUNT(const char *, __VA_ARGS__)
#define PORTS(...) STATE_LIST(ports, struct zt_port_map, __VA_ARGS__)
/* What a workload serves: MEMBER(ns, hostname, {80, 8080}, ...) inside SERVES(...). */
#define MEMBER(ns_, hostname_, ...)                                                                \
    {                                                                                              \
        .ns = ns_, .hostname = hostname_, PORTS(__VA_ARGS__)                                       \
    }
#define SERVES(...) STATE_LIST(services, struct zt_workload_service, __VA_ARGS__)
#define POLICIES(...) STATE_LIST(policies, char *const, __VA_ARGS__)
#define SANS(...) STATE_LIST(sans, char *const, __VA_ARGS__)
/* VIPs and CIDRs of network "": VIPS("10.0.0.1", "10.1.0.0/16"). */
#define VIPS(...) VIPS_IN("", __VA_ARGS__)
#define VIPS_IN(network_, ...)                                                                     \
    .vips =                                                                                        \
        state_vips((struct zt_vip[STATE_COUNT(const char *, __VA_ARGS__)]){0}, network_,           \
                   (const char *const[]){__VA_ARGS__}, STATE_COUNT(const char *, __VA_ARGS__)),    \
    .n_vips = STATE_COUNT(const char *, __VA_ARGS__)
#define GATEWAY_IP(network_, ip_, port_)                                                           \
    (&(struct zt_gateway_ref){.ip = state_ip(ip_), .network = network_, .hbone_mtls_port = port_})
#define GATEWAY_HOST(ns_, hostname_, port_)                                                        \
    (&(struct zt_gateway_ref){.ns = ns_, .hostname = hostname_, .hbone_mtls_port = port_})

#define WORKLOAD(uid_, ...)                                                                        \
    (&(struct zt_workload){.uid = uid_,                                                            \
                           .name = state_tail(uid_),                                               \
                           .ns = "default",                                                        \
                           .service_account = "default",                                           \
                           .trust_domain = "cluster.local",                                        \
                           .cluster_id = "Kubernetes",                                             \
                           .capacity = 1,                                                          \
                           .healthy = true,                                                        \
                           __VA_ARGS__})
#define SERVICE(ns_, hostname_, ...)                                                               \
    (&(struct zt_service){.ns = ns_, .hostname = hostname_, .name = hostname_, __VA_ARGS__})

struct zt_ip state_ip(const char *text);
struct zt_addr state_addr(const char *text);
struct zt_cidr state_cidr(const char *text);
const char *state_tail(const char *uid); /* after the last '/' */
const struct zt_ip *state_ips(struct zt_ip *out, const char *const *text, size_t n);
const struct zt_vip *state_vips(struct zt_vip *out, const char *network, const char *const *text,
                                size_t n);

/* cmocka setup and teardown: *state is a store of network "" on STATE_NODE. The teardown asserts
 * that no record is left over. */
int state_setup(void **state);
int state_teardown(void **state);
#define STATE_TEST(f) cmocka_unit_test_setup_teardown(f, state_setup, state_teardown)

/* One change, applied; xDS unless it says otherwise. */
void state_put(struct zt_store *s, const struct zt_workload *w);
void state_put_service(struct zt_store *s, const struct zt_service *v);
void state_put_policy(struct zt_store *s, const struct zt_policy *p);
void state_put_from(struct zt_store *s, enum zt_origin o, const struct zt_workload *w);
void state_remove(struct zt_store *s, const char *uid);
void state_remove_service(struct zt_store *s, const char *ns, const char *hostname);
void state_remove_policy(struct zt_store *s, const char *key);
/* Into a batch. */
void state_add(struct zt_batch *b, const struct zt_workload *w);
void state_add_service(struct zt_batch *b, const struct zt_service *v);
void state_add_policy(struct zt_batch *b, const struct zt_policy *p);
/* Applies and forgets what it did. */
void state_apply(struct zt_store *s, struct zt_batch *b);

/* Endpoints of a service, staged or not; healthy ones only if asked. */
size_t state_endpoints(struct zt_store *s, const char *ns, const char *hostname, bool healthy_only);
size_t state_staged(struct zt_store *s); /* services with staged endpoints */
/* Hostname of the service at an address, or NULL; namespace before it: "ns/hostname". Static
 * buffer. */
const char *state_service_at(struct zt_store *s, const char *network, const char *ip,
                             const char *client_ns);
const char *state_service_named(struct zt_store *s, const char *hostname, const char *client_ns);
const char *state_uid_at(struct zt_store *s, const char *network, const char *ip);

#endif
