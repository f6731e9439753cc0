/* The PROXY protocol v2 header: signature, command, addresses, one TLV with the peer's SPIFFE id. */
#include "zt/proxy/proxy_protocol.h"

#include <string.h>

#define TLV_SPIFFE_ID 0xD0

static const uint8_t signature[12] = {0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A};

static uint8_t *put16(uint8_t *p, size_t v)
{
    *p++ = (uint8_t)(v >> 8);
    *p++ = (uint8_t)v;
    return p;
}

size_t zt_proxy_header_write(uint8_t out[static ZT_PROXY_HEADER_MAX], const struct zt_addr *src, const struct zt_addr *dst,
                             const char *identity)
{
    bool same = src->ip.family == dst->ip.family && src->ip.family != ZT_IP_NONE;
    size_t ip_bytes = !same ? 0 : src->ip.family == ZT_IPV4 ? 4 : 16;
    size_t id_bytes = identity ? strnlen(identity, ZT_IDENTITY_MAX) : 0;
    uint8_t *p = out;
    memcpy(p, signature, sizeof(signature));
    p += sizeof(signature);
    *p++ = 0x21; /* version 2, PROXY */
    *p++ = !same ? 0x01 : src->ip.family == ZT_IPV4 ? 0x11 : 0x21;
    p = put16(p, (ip_bytes ? 2 * ip_bytes + 4 : 0) + (id_bytes ? 3 + id_bytes : 0));
    if (ip_bytes) {
        memcpy(p, src->ip.bytes, ip_bytes);
        memcpy(p + ip_bytes, dst->ip.bytes, ip_bytes);
        p = put16(put16(p + 2 * ip_bytes, src->port), dst->port);
    }
    if (id_bytes) {
        *p++ = TLV_SPIFFE_ID;
        p = put16(p, id_bytes);
        memcpy(p, identity, id_bytes);
        p += id_bytes;
    }
    return (size_t)(p - out);
}
