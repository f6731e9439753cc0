/* The values that workloads, services and policies share (spec/controlplane §4.2 to §4.4), and the
 * texts of their rejects, which istiod shows. */
#include "xds_impl.h"

#include "zt/base/map.h"
#include <string.h>

#define FEW_PORTS 16 /* compared pairwise; more get a bitmap */

bool zt_xds_no_memory(struct zt_error *err)
{
    zt_error_set(err, ZT_INVALID, "resource too large");
    return false;
}

bool zt_xds_unknown_enum(int value, struct zt_error *err)
{
    zt_error_set(err, ZT_INVALID, "decode error: unknown enumeration value %d", value);
    return false;
}

bool zt_xds_list_fits(size_t n, const char *what, struct zt_error *err)
{
    if (n <= ZT_XDS_LIST_MAX)
        return true;
    zt_error_set(err, ZT_INVALID, "more than %d %s", ZT_XDS_LIST_MAX, what);
    return false;
}

bool zt_xds_port_fits(uint32_t port, struct zt_error *err)
{
    if (port <= UINT16_MAX)
        return true;
    zt_error_set(err, ZT_INVALID, "invalid port: %u", port);
    return false;
}

bool zt_xds_ip(const ProtobufCBinaryData *bytes, struct zt_ip *out, struct zt_error *err)
{
    *out = zt_ip_from_bytes(bytes->data, bytes->len);
    if (out->family != ZT_IP_NONE)
        return true;
    zt_error_set(err, ZT_INVALID, "failed to parse address, had %zu bytes", bytes->len);
    return false;
}

bool zt_xds_cidr(const ProtobufCBinaryData *bytes, bool has_length, uint32_t length,
                 struct zt_cidr *out, struct zt_error *err)
{
    if (!zt_xds_ip(bytes, &out->ip, err))
        return zt_error_wrap(err, "invalid cidr"), false;
    uint32_t width = (uint32_t)bytes->len * 8, mapped = 0;
    if (out->ip.family == ZT_IPV4 && width == 128)
        mapped = 96;
    if (!has_length)
        length = width;
    if (length > width || length < mapped) {
        zt_error_set(err, ZT_INVALID, "invalid cidr: prefix length %u", length);
        return false;
    }
    out->prefix_bits = (uint8_t)(length - mapped);
    return true;
}

/* Keeps the last of those with equal service ports, in the order of the message. */
static size_t drop_doubles(struct zt_port_map *ports, size_t n)
{
    uint8_t seen[8192];
    size_t to = n;
    if (n > FEW_PORTS)
        memset(seen, 0, sizeof seen);
    for (size_t i = n; i-- > 0;) {
        uint16_t port = ports[i].service_port;
        bool again = false;
        if (n > FEW_PORTS) {
            again = seen[port / 8] & (1u << (port % 8));
            seen[port / 8] |= (uint8_t)(1u << (port % 8));
        } else {
            for (size_t k = to; k < n && !again; k++)
                again = ports[k].service_port == port;
        }
        if (!again)
            ports[--to] = ports[i];
    }
    memmove(ports, ports + to, (n - to) * sizeof *ports);
    return n - to;
}

bool zt_xds_ports(struct zt_arena *a, Istio__Workload__Port *const *in, size_t n,
                  const struct zt_port_map **out, unsigned *n_out, struct zt_error *err)
{
    *out = NULL;
    *n_out = 0;
    if (n == 0)
        return true;
    if (!zt_xds_list_fits(n, "ports", err))
        return false;
    struct zt_port_map *ports = zt_arena_take(a, n, sizeof *ports);
    if (!ports)
        return zt_xds_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        if (!zt_xds_port_fits(in[i]->service_port, err) ||
            !zt_xds_port_fits(in[i]->target_port, err))
            return false;
        ports[i] =
            (struct zt_port_map){(uint16_t)in[i]->service_port, (uint16_t)in[i]->target_port};
    }
    *out = ports;
    *n_out = (unsigned)drop_doubles(ports, n);
    return true;
}

bool zt_xds_gateway(const Istio__Workload__GatewayAddress *in, struct zt_gateway_ref *out,
                    struct zt_error *err)
{
    *out = (struct zt_gateway_ref){.hbone_mtls_port = (uint16_t)in->hbone_mtls_port};
    if (!zt_xds_port_fits(in->hbone_mtls_port, err))
        return false;
    switch (in->destination_case) {
    case ISTIO__WORKLOAD__GATEWAY_ADDRESS__DESTINATION_HOSTNAME:
        out->ns = in->hostname->namespace_;
        out->hostname = in->hostname->hostname;
        return true; /* an empty one is refused with the record */
    case ISTIO__WORKLOAD__GATEWAY_ADDRESS__DESTINATION_ADDRESS:
        out->network = in->address->network;
        return zt_xds_ip(&in->address->address, &out->ip, err);
    default:
        zt_error_set(err, ZT_INVALID, "nonempty gateway address is missing address");
        return false;
    }
}

bool zt_xds_optional_gateway(struct zt_arena *a, const Istio__Workload__GatewayAddress *in,
                             const struct zt_gateway_ref **out, struct zt_error *err)
{
    *out = NULL;
    if (!in)
        return true;
    struct zt_gateway_ref *g = zt_arena_take(a, 1, sizeof *g);
    if (!g)
        return zt_xds_no_memory(err);
    *out = g;
    return zt_xds_gateway(in, g, err);
}
