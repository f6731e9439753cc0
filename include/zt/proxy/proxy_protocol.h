/* The PROXY protocol v2 header for application tunnels (spec/dataplane §4.8). Pure. Thread: any. */
#ifndef ZT_PROXY_PROXY_PROTOCOL_H
#define ZT_PROXY_PROXY_PROTOCOL_H

#include "zt/base/addr.h"
#include "zt/base/identity.h"

#define ZT_PROXY_HEADER_MAX (16 + 36 + 3 + ZT_IDENTITY_MAX) /* bytes */

/* Writes the header for a connection src -> dst with TLV 0xD0 = identity (left out when NULL or ""). Mixed families: unspecified, TLV only.
 * Returns its length in bytes. */
size_t zt_proxy_header_write(uint8_t out[static ZT_PROXY_HEADER_MAX], const struct zt_addr *src, const struct zt_addr *dst,
                             const char *identity);

#endif
