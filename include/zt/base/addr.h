/* IP addresses, socket addresses, prefixes. Values: copy them freely. Ports are host order everywhere outside sockaddr.
 * An IPv4-mapped IPv6 address is turned into plain IPv4 by every function that makes a zt_ip (spec/dataplane §0, §14 row 11).
 * Thread: any. */
#ifndef ZT_BASE_ADDR_H
#define ZT_BASE_ADDR_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum zt_family { ZT_IP_NONE = 0, ZT_IPV4 = 4, ZT_IPV6 = 6 };

struct zt_ip {
    uint8_t family;    /* enum zt_family */
    uint8_t bytes[16]; /* network order; the first 4 for IPv4, the rest zero */
};
struct zt_addr {
    struct zt_ip ip;
    uint16_t port; /* host order */
};
struct zt_cidr {
    struct zt_ip ip;
    uint8_t prefix_bits;
};

#define ZT_IP_TEXT_MAX 46   /* bytes, NUL included */
#define ZT_ADDR_TEXT_MAX 54 /* "[ipv6]:65535", NUL included */
#define ZT_CIDR_TEXT_MAX 50
#define ZT_HOSTNAME_MAX 254 /* NUL included */

/* n must be 4 or 16; anything else is ZT_IP_NONE. */
struct zt_ip zt_ip_from_bytes(const uint8_t *bytes, size_t n);
bool zt_ip_parse(const char *text, struct zt_ip *out);
const char *zt_ip_format(const struct zt_ip *ip, char buf[static ZT_IP_TEXT_MAX]); /* returns borrowed: buf */
bool zt_ip_equal(const struct zt_ip *a, const struct zt_ip *b);
bool zt_ip_is_loopback(const struct zt_ip *ip);
bool zt_ip_is_unspecified(const struct zt_ip *ip);
struct zt_ip zt_ip_loopback(enum zt_family family);

/* "1.2.3.4:80", "[::1]:80". */
bool zt_addr_parse(const char *text, struct zt_addr *out);
const char *zt_addr_format(const struct zt_addr *a, char buf[static ZT_ADDR_TEXT_MAX]); /* returns borrowed: buf */
/* "ip:port" or "[v6]:port" (canonicalised) sets addr; otherwise "host:port" sets host and addr.port with addr.ip none.
 * False: neither (spec/dataplane §4.4). */
bool zt_authority_parse(const char *text, struct zt_addr *addr, char host[static ZT_HOSTNAME_MAX]);
bool zt_addr_equal(const struct zt_addr *a, const struct zt_addr *b);
struct zt_addr zt_addr_from_sockaddr(const struct sockaddr *sa); /* family NONE for others */
socklen_t zt_addr_to_sockaddr(const struct zt_addr *a, struct sockaddr_storage *out);
/* The same as an AF_INET6 sockaddr (v4-mapped for IPv4). */
socklen_t zt_addr_to_sockaddr6(const struct zt_addr *a, struct sockaddr_storage *out);

/* Host bits are allowed and ignored by contains. A missing "/n" is a host prefix. */
bool zt_cidr_parse(const char *text, struct zt_cidr *out);
const char *zt_cidr_format(const struct zt_cidr *c, char buf[static ZT_CIDR_TEXT_MAX]); /* returns borrowed: buf */
/* Families must agree. */
bool zt_cidr_contains(const struct zt_cidr *c, const struct zt_ip *ip);

#endif
