/* Addresses as values.
 * Invariant: every zt_ip made here is canonical (no IPv4-mapped IPv6) and has zero bytes after its
 * address, so that a memcmp of the whole struct and a hash over it are meaningful. */
#include "zt/base/addr.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

struct zt_ip zt_ip_from_bytes(const uint8_t *bytes, size_t n)
{
    struct zt_ip ip = {0};
    if (n == 16 && memcmp(bytes, mapped_prefix, sizeof mapped_prefix) == 0) {
        bytes += sizeof mapped_prefix;
        n = 4;
    }
    if (n == 4 || n == 16) {
        ip.family = n == 4 ? ZT_IPV4 : ZT_IPV6;
        memcpy(ip.bytes, bytes, n);
    }
    return ip;
}

bool zt_ip_parse(const char *text, struct zt_ip *out)
{
    uint8_t bytes[16];
    if (inet_pton(AF_INET, text, bytes) == 1)
        *out = zt_ip_from_bytes(bytes, 4);
    else if (inet_pton(AF_INET6, text, bytes) == 1)
        *out = zt_ip_from_bytes(bytes, 16);
    else
        return false;
    return true;
}

const char *zt_ip_format(const struct zt_ip *ip, char buf[static ZT_IP_TEXT_MAX])
{
    buf[0] = '\0';
    if (ip->family == ZT_IPV4)
        inet_ntop(AF_INET, ip->bytes, buf, ZT_IP_TEXT_MAX);
    else if (ip->family == ZT_IPV6)
        inet_ntop(AF_INET6, ip->bytes, buf, ZT_IP_TEXT_MAX);
    return buf;
}

bool zt_ip_equal(const struct zt_ip *a, const struct zt_ip *b)
{
    return a->family == b->family && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

bool zt_ip_is_loopback(const struct zt_ip *ip)
{
    if (ip->family == ZT_IPV4)
        return ip->bytes[0] == 127;
    struct zt_ip loopback = zt_ip_loopback(ZT_IPV6);
    return zt_ip_equal(ip, &loopback);
}

bool zt_ip_is_unspecified(const struct zt_ip *ip)
{
    static const uint8_t zero[16];
    return ip->family != ZT_IP_NONE && memcmp(ip->bytes, zero, sizeof zero) == 0;
}

struct zt_ip zt_ip_loopback(enum zt_family family)
{
    struct zt_ip ip = {.family = (uint8_t)family};
    if (family == ZT_IPV4) {
        ip.bytes[0] = 127;
        ip.bytes[3] = 1;
    } else if (family == ZT_IPV6) {
        ip.bytes[15] = 1;
    }
    return ip;
}

/* Decimal digits only, no sign, no blank, no more than max. */
static bool parse_number(const char *text, unsigned max, unsigned *out)
{
    unsigned value = 0;
    size_t n = 0;
    for (; text[n]; n++) {
        if (text[n] < '0' || text[n] > '9')
            return false;
        value = value * 10 + (unsigned)(text[n] - '0');
        if (value > max)
            return false;
    }
    *out = value;
    return n > 0;
}

/* Copies text[0..n) into a buffer for zt_ip_parse; false when it cannot be an address. */
static bool parse_ip_part(const char *text, size_t n, struct zt_ip *out)
{
    char buf[ZT_IP_TEXT_MAX];
    if (n == 0 || n >= sizeof buf)
        return false;
    memcpy(buf, text, n);
    buf[n] = '\0';
    return zt_ip_parse(buf, out);
}

bool zt_addr_parse(const char *text, struct zt_addr *out)
{
    const char *colon = strrchr(text, ':');
    unsigned port;
    struct zt_ip ip;
    if (!colon || !parse_number(colon + 1, UINT16_MAX, &port))
        return false;
    size_t n = (size_t)(colon - text);
    if (text[0] == '[') {
        if (n < 2 || text[n - 1] != ']' || !memchr(text, ':', n) ||
            !parse_ip_part(text + 1, n - 2, &ip))
            return false;
    } else if (memchr(text, ':', n) || !parse_ip_part(text, n, &ip)) {
        return false; /* an IPv6 address without brackets is ambiguous */
    }
    *out = (struct zt_addr){.ip = ip, .port = (uint16_t)port};
    return true;
}

bool zt_authority_parse(const char *text, struct zt_addr *addr, char host[static ZT_HOSTNAME_MAX])
{
    unsigned port;
    host[0] = '\0';
    if (zt_addr_parse(text, addr))
        return true;
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._");
    if (n == 0 || n >= ZT_HOSTNAME_MAX || text[n] != ':' ||
        !parse_number(text + n + 1, UINT16_MAX, &port))
        return false;
    *addr = (struct zt_addr){.port = (uint16_t)port};
    memcpy(host, text, n);
    host[n] = '\0';
    return true;
}

const char *zt_addr_format(const struct zt_addr *a, char buf[static ZT_ADDR_TEXT_MAX])
{
    char ip[ZT_IP_TEXT_MAX];
    zt_ip_format(&a->ip, ip);
    snprintf(buf, ZT_ADDR_TEXT_MAX, a->ip.family == ZT_IPV6 ? "[%s]:%u" : "%s:%u", ip,
             (unsigned)a->port);
    return buf;
}

bool zt_addr_equal(const struct zt_addr *a, const struct zt_addr *b)
{
    return a->port == b->port && zt_ip_equal(&a->ip, &b->ip);
}

struct zt_addr zt_addr_from_sockaddr(const struct sockaddr *sa)
{
    struct zt_addr a = {0};
    if (sa->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, sa, sizeof in);
        a.ip = zt_ip_from_bytes((const uint8_t *)&in.sin_addr, 4);
        a.port = ntohs(in.sin_port);
    } else if (sa->sa_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, sa, sizeof in6);
        a.ip = zt_ip_from_bytes(in6.sin6_addr.s6_addr, 16);
        a.port = ntohs(in6.sin6_port);
    }
    return a;
}

socklen_t zt_addr_to_sockaddr(const struct zt_addr *a, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (a->ip.family == ZT_IPV4) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(a->port)};
        memcpy(&in.sin_addr, a->ip.bytes, 4);
        memcpy(out, &in, sizeof in);
        return sizeof in;
    }
    return zt_addr_to_sockaddr6(a, out);
}

socklen_t zt_addr_to_sockaddr6(const struct zt_addr *a, struct sockaddr_storage *out)
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(a->port)};
    if (a->ip.family == ZT_IPV4) {
        memcpy(in6.sin6_addr.s6_addr, mapped_prefix, sizeof mapped_prefix);
        memcpy(in6.sin6_addr.s6_addr + sizeof mapped_prefix, a->ip.bytes, 4);
    } else {
        memcpy(in6.sin6_addr.s6_addr, a->ip.bytes, 16);
    }
    memset(out, 0, sizeof *out);
    memcpy(out, &in6, sizeof in6);
    return sizeof in6;
}

bool zt_cidr_parse(const char *text, struct zt_cidr *out)
{
    const char *slash = strchr(text, '/');
    size_t n = slash ? (size_t)(slash - text) : strlen(text);
    struct zt_ip ip;
    if (!parse_ip_part(text, n, &ip))
        return false;
    bool mapped = ip.family == ZT_IPV4 && memchr(text, ':', n);
    unsigned width = ip.family == ZT_IPV4 ? 32 : 128;
    unsigned bits = width;
    if (slash && !parse_number(slash + 1, mapped ? 128 : width, &bits))
        return false;
    if (slash && mapped) {
        if (bits < 96) /* would cover more than IPv4: no canonical form */
            return false;
        bits -= 96;
    }
    *out = (struct zt_cidr){.ip = ip, .prefix_bits = (uint8_t)bits};
    return true;
}

const char *zt_cidr_format(const struct zt_cidr *c, char buf[static ZT_CIDR_TEXT_MAX])
{
    char ip[ZT_IP_TEXT_MAX];
    snprintf(buf, ZT_CIDR_TEXT_MAX, "%s/%u", zt_ip_format(&c->ip, ip), (unsigned)c->prefix_bits);
    return buf;
}

bool zt_cidr_contains(const struct zt_cidr *c, const struct zt_ip *ip)
{
    if (c->ip.family != ip->family || ip->family == ZT_IP_NONE)
        return false;
    unsigned whole = c->prefix_bits / 8, rest = c->prefix_bits % 8;
    if (whole > sizeof ip->bytes || memcmp(c->ip.bytes, ip->bytes, whole) != 0)
        return false;
    if (rest == 0 || whole == sizeof ip->bytes)
        return true;
    uint8_t mask = (uint8_t)(0xff << (8 - rest));
    return ((c->ip.bytes[whole] ^ ip->bytes[whole]) & mask) == 0;
}
