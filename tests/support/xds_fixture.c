/* See xds_fixture.h. */
#include "support/xds_fixture.h"

#include "rpc/rpc_impl.h"
#include "zt/base/mem.h"
#include "zt/xds/delta.h"
#include <string.h>

static struct zt_rpc library; /* only counts */

static char *text_of(const char *s)
{
    return (char *)(uintptr_t)s;
}

static void put_varint(struct zt_str *s, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        zt_str_add_char(s, (char)(uint8_t)(v | 0x80));
    zt_str_add_char(s, (char)v);
}

void xds_put_bytes(struct zt_str *s, unsigned number, const void *bytes, size_t n)
{
    put_varint(s, number << 3 | 2);
    put_varint(s, n);
    zt_str_add_n(s, bytes, n);
}

static void put_text(struct zt_str *s, unsigned number, const char *text)
{
    xds_put_bytes(s, number, text, strlen(text));
}

void xds_response_init(struct zt_str *s, const char *type_url, const char *nonce)
{
    zt_str_init(s, 300u << 20);
    put_text(s, 4, type_url);
    put_text(s, 5, nonce);
}

void xds_response_raw(struct zt_str *s, const char *name, const char *version, const void *payload,
                      size_t n)
{
    struct zt_str any, resource;
    zt_str_init(&any, 300u << 20);
    zt_str_init(&resource, 300u << 20);
    put_text(&resource, 1, version);
    if (payload) {
        put_text(&any, 1, "type.googleapis.com/any");
        xds_put_bytes(&any, 2, payload, n);
        xds_put_bytes(&resource, 2, any.data, any.len);
    }
    put_text(&resource, 3, name);
    xds_put_bytes(s, 2, resource.data, resource.len);
    zt_str_fini(&any);
    zt_str_fini(&resource);
}

void xds_response_add(struct zt_str *s, const char *name, const char *version,
                      const ProtobufCMessage *payload)
{
    size_t n = protobuf_c_message_get_packed_size(payload);
    uint8_t *bytes = zt_zalloc(n + 1);
    protobuf_c_message_pack(payload, bytes);
    xds_response_raw(s, name, version, bytes, n);
    zt_free(bytes);
}

void xds_response_address(struct zt_str *s, const char *version, Istio__Workload__Workload *w)
{
    Istio__Workload__Address a = ISTIO__WORKLOAD__ADDRESS__INIT;
    a.type_case = ISTIO__WORKLOAD__ADDRESS__TYPE_WORKLOAD;
    a.workload = w;
    xds_response_add(s, w->uid, version, &a.base);
}

void xds_response_service(struct zt_str *s, const char *version, Istio__Workload__Service *v)
{
    Istio__Workload__Address a = ISTIO__WORKLOAD__ADDRESS__INIT;
    char name[512];
    a.type_case = ISTIO__WORKLOAD__ADDRESS__TYPE_SERVICE;
    a.service = v;
    zt_fmt(name, sizeof name, "%s/%s", v->namespace_, v->hostname);
    xds_response_add(s, name, version, &a.base);
}

void xds_response_policy(struct zt_str *s, Istio__Security__Authorization *p)
{
    char name[512];
    zt_fmt(name, sizeof name, "%s/%s", p->namespace_, p->name);
    xds_response_add(s, name, "", &p->base);
}

void xds_response_remove(struct zt_str *s, const char *name)
{
    put_text(s, 6, name);
}

void xds_response_pod(struct zt_str *s, const char *uid, const char *version, const uint8_t ip[4],
                      const char *service)
{
    Istio__Workload__Workload w = ISTIO__WORKLOAD__WORKLOAD__INIT;
    Istio__Workload__Workload__ServicesEntry entry =
        ISTIO__WORKLOAD__WORKLOAD__SERVICES_ENTRY__INIT;
    Istio__Workload__Workload__ServicesEntry *entries[] = {&entry};
    Istio__Workload__PortList list = ISTIO__WORKLOAD__PORT_LIST__INIT;
    Istio__Workload__Port port = ISTIO__WORKLOAD__PORT__INIT;
    Istio__Workload__Port *ports[] = {&port};
    ProtobufCBinaryData address = {4, (uint8_t *)(uintptr_t)ip};
    port.service_port = 80;
    port.target_port = 8080;
    list.ports = ports;
    list.n_ports = 1;
    entry.key = text_of(service);
    entry.value = &list;
    w.uid = text_of(uid);
    w.name = text_of("pod");
    w.namespace_ = text_of("ns1");
    w.addresses = &address;
    w.n_addresses = 1;
    w.tunnel_protocol = ISTIO__WORKLOAD__TUNNEL_PROTOCOL__HBONE;
    w.services = entries;
    w.n_services = service ? 1 : 0;
    xds_response_address(s, version, &w);
}

void xds_response_vip(struct zt_str *s, const char *ns, const char *host, const char *version,
                      const uint8_t ip[4])
{
    Istio__Workload__Service v = ISTIO__WORKLOAD__SERVICE__INIT;
    Istio__Workload__NetworkAddress address = ISTIO__WORKLOAD__NETWORK_ADDRESS__INIT;
    Istio__Workload__NetworkAddress *addresses[] = {&address};
    Istio__Workload__Port port = ISTIO__WORKLOAD__PORT__INIT;
    Istio__Workload__Port *ports[] = {&port};
    address.address = (ProtobufCBinaryData){4, (uint8_t *)(uintptr_t)ip};
    port.service_port = 80;
    port.target_port = 8080;
    v.name = v.hostname = text_of(host);
    v.namespace_ = text_of(ns);
    v.addresses = addresses;
    v.n_addresses = 1;
    v.ports = ports;
    v.n_ports = 1;
    xds_response_service(s, version, &v);
}

void xds_response_deny_port(struct zt_str *s, const char *ns, const char *name, uint32_t port)
{
    Istio__Security__Authorization p = ISTIO__SECURITY__AUTHORIZATION__INIT;
    Istio__Security__Rule rule = ISTIO__SECURITY__RULE__INIT, *rules[] = {&rule};
    Istio__Security__Clause clause = ISTIO__SECURITY__CLAUSE__INIT, *clauses[] = {&clause};
    Istio__Security__Match match = ISTIO__SECURITY__MATCH__INIT, *matches[] = {&match};
    match.destination_ports = &port;
    match.n_destination_ports = 1;
    clause.matches = matches;
    clause.n_matches = 1;
    rule.clauses = clauses;
    rule.n_clauses = 1;
    p.rules = rules;
    p.n_rules = 1;
    p.name = text_of(name);
    p.namespace_ = text_of(ns);
    p.scope = ISTIO__SECURITY__SCOPE__NAMESPACE;
    p.action = ISTIO__SECURITY__ACTION__DENY;
    xds_response_policy(s, &p);
}

struct zt_rpc_message *xds_message(const void *bytes, size_t n, size_t slice_bytes)
{
    if (slice_bytes == 0 || slice_bytes > n)
        slice_bytes = n ? n : 1;
    size_t n_slices = (n + slice_bytes - 1) / slice_bytes;
    grpc_slice *slices = zt_new_n(grpc_slice, n_slices + 1);
    for (size_t i = 0; i < n_slices; i++) {
        size_t at = i * slice_bytes, part = n - at < slice_bytes ? n - at : slice_bytes;
        slices[i] = grpc_slice_from_copied_buffer((const char *)bytes + at, part);
    }
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(slices, n_slices);
    for (size_t i = 0; i < n_slices; i++)
        grpc_slice_unref(slices[i]);
    zt_free(slices);
    return zt_rpc_message_new(&library, buffer);
}

unsigned xds_messages_alive(void)
{
    return atomic_load(&library.n_messages);
}
