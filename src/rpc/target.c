/* Addresses of the control plane (spec/controlplane §1.1).
 *
 *   [https://] authority [/ anything]      authority: name | ipv4 | [ipv6], each with ":port" or
 * not
 *
 * Invariant: a parsed authority holds no byte that could end a header or a URI. */
#include "rpc_impl.h"

#include "zt/base/addr.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <string.h>
#include <strings.h>

#define DEFAULT_PORT 443
#define AUTHORITY_BYTES_MAX 300
#define NAME_BYTES_MAX 253
#define LABEL_BYTES_MAX 63

static bool is_dns_name(const char *name)
{
    size_t len = strlen(name), label = 0;
    if (len > 0 && name[len - 1] == '.')
        len--;
    if (len == 0 || len > NAME_BYTES_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (c == '.') {
            if (label == 0)
                return false;
            label = 0;
        } else if (!(alnum || c == '-' || c == '_') || ++label > LABEL_BYTES_MAX) {
            return false;
        }
    }
    return label > 0;
}

bool zt_rpc_host_is_valid(const char *host)
{
    struct zt_ip ip;
    return zt_ip_parse(host, &ip) || is_dns_name(host);
}

/* "" is the default. */
static bool parse_port(const char *text, unsigned *port)
{
    *port = *text ? 0 : DEFAULT_PORT;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || p - text >= 5)
            return false;
        *port = *port * 10 + (unsigned)(*p - '0');
    }
    return *port > 0 && *port <= 65535;
}

/* Cuts authority into host (owned) and port. */
static bool split(const char *authority, char **host, unsigned *port, bool *brackets)
{
    const char *end, *rest;
    *brackets = authority[0] == '[';
    if (*brackets) {
        end = strchr(authority, ']');
        rest = end ? end + 1 : NULL;
    } else {
        end = strchr(authority, ':');
        if (!end)
            end = authority + strlen(authority);
        rest = end;
    }
    if (!rest || (*rest && *rest != ':') || (*rest == ':' && !rest[1]))
        return false;
    if (!parse_port(*rest ? rest + 1 : rest, port))
        return false;
    *host = zt_strndup(authority + *brackets, (size_t)(end - authority) - *brackets);
    return true;
}

static char *library_uri(const char *host, unsigned port)
{
    struct zt_ip ip;
    struct zt_str s;
    zt_str_init(&s, AUTHORITY_BYTES_MAX + 32);
    if (!zt_ip_parse(host, &ip))
        zt_str_addf(&s, "dns:///%s:%u", host, port);
    else if (strchr(host, ':'))
        zt_str_addf(&s, "ipv6:%%5B%s%%5D:%u", host, port);
    else
        zt_str_addf(&s, "ipv4:%s:%u", host, port);
    return zt_str_take(&s);
}

enum zt_err zt_rpc_target_parse(struct zt_rpc_target *out, const char *address,
                                struct zt_error *err)
{
    *out = (struct zt_rpc_target){0};
    const char *rest = address, *scheme_end = strstr(address, "://");
    if (scheme_end) {
        if (scheme_end - address != 5 || strncasecmp(address, "https", 5) != 0)
            return zt_error_set(err, ZT_INVALID, "%.200s: https only", address);
        rest = scheme_end + 3;
    }
    size_t len = strcspn(rest, "/?#");
    unsigned port;
    bool brackets;
    struct zt_ip ip;
    if (len == 0 || len > AUTHORITY_BYTES_MAX)
        return zt_error_set(err, ZT_INVALID, "%.200s: no host", address);
    out->authority = zt_strndup(rest, len);
    bool ok = split(out->authority, &out->host, &port, &brackets) &&
              (brackets ? strchr(out->host, ':') && zt_ip_parse(out->host, &ip)
                        : zt_rpc_host_is_valid(out->host));
    if (!ok) {
        zt_rpc_target_fini(out);
        return zt_error_set(err, ZT_INVALID, "%.200s: not an address of the form https://host:port",
                            address);
    }
    out->uri = library_uri(out->host, port);
    return ZT_OK;
}

void zt_rpc_target_fini(struct zt_rpc_target *t)
{
    zt_free(t->authority);
    zt_free(t->host);
    zt_free(t->uri);
    *t = (struct zt_rpc_target){0};
}
