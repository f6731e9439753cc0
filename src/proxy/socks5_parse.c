/* What each message of the client means:
 *
 *   state      message                               to
 *   GREETING   version, number of methods            METHODS
 *   METHODS    "no authentication" is among them     REQUEST (CHOSEN)
 *   REQUEST    CONNECT, address type                 ADDRESS, NAME_LEN
 *   NAME_LEN   the name's length                     ADDRESS
 *   ADDRESS    address or name, and port             DONE (CONNECT, RESOLVE)
 *   any        a violation                           DONE (REFUSE) */
#include "socks5_parse.h"

#include "zt/base/str.h"
#include <string.h>

enum { VERSION = 5, NO_AUTHENTICATION = 0, COMMAND_CONNECT = 1 };
enum { TYPE_IPV4 = 1, TYPE_NAME = 3, TYPE_IPV6 = 4 };

static enum zt_socks5_step expect(struct zt_socks5_parse *p, enum zt_socks5_state state, unsigned bytes)
{
    p->state = state;
    p->have = 0;
    p->need = bytes;
    return ZT_SOCKS5_MORE;
}

static enum zt_socks5_step refuse(struct zt_socks5_parse *p, const char *why)
{
    p->state = ZT_SOCKS5_DONE;
    p->why = why;
    return ZT_SOCKS5_REFUSE;
}

void zt_socks5_parse_init(struct zt_socks5_parse *p)
{
    *p = (struct zt_socks5_parse){0};
    expect(p, ZT_SOCKS5_GREETING, 2);
}

static enum zt_socks5_step on_greeting(struct zt_socks5_parse *p)
{
    if (p->in[0] != VERSION)
        return refuse(p, "not version 5");
    return p->in[1] == 0 ? refuse(p, "no methods") : expect(p, ZT_SOCKS5_METHODS, p->in[1]);
}

static enum zt_socks5_step on_methods(struct zt_socks5_parse *p)
{
    if (!memchr(p->in, NO_AUTHENTICATION, p->need))
        return refuse(p, "the client does not offer to go without authentication");
    expect(p, ZT_SOCKS5_REQUEST, 4);
    return ZT_SOCKS5_CHOSEN;
}

static enum zt_socks5_step on_request(struct zt_socks5_parse *p)
{
    p->type = p->in[3];
    if (p->in[0] != VERSION)
        return refuse(p, "not version 5");
    if (p->in[1] != COMMAND_CONNECT)
        return refuse(p, "only CONNECT is served");
    switch (p->type) {
    case TYPE_IPV4:
        return expect(p, ZT_SOCKS5_ADDRESS, 4 + 2);
    case TYPE_IPV6:
        return expect(p, ZT_SOCKS5_ADDRESS, 16 + 2);
    case TYPE_NAME:
        return expect(p, ZT_SOCKS5_NAME_LEN, 1);
    default:
        return refuse(p, "unknown address type");
    }
}

static bool is_utf8(const char *text, size_t len)
{
    uint32_t code;
    size_t n;
    for (size_t at = 0; at < len; at += n)
        if ((n = zt_utf8_next(text + at, len - at, &code)) == 0)
            return false;
    return true;
}

static enum zt_socks5_step on_address(struct zt_socks5_parse *p)
{
    unsigned len = p->need - 2;
    p->state = ZT_SOCKS5_DONE;
    p->dst.port = (uint16_t)(p->in[len] << 8 | p->in[len + 1]);
    if (p->type != TYPE_NAME) {
        p->dst.ip = zt_ip_from_bytes(p->in, len);
        return ZT_SOCKS5_CONNECT;
    }
    memcpy(p->host, p->in, len);
    p->host[len] = '\0';
    if (strlen(p->host) != len || !is_utf8(p->host, len))
        return refuse(p, "the name is not valid UTF-8");
    return zt_ip_parse(p->host, &p->dst.ip) ? ZT_SOCKS5_CONNECT : ZT_SOCKS5_RESOLVE; /* an address may be written as a name */
}

enum zt_socks5_step zt_socks5_parse_step(struct zt_socks5_parse *p)
{
    switch (p->state) {
    case ZT_SOCKS5_GREETING:
        return on_greeting(p);
    case ZT_SOCKS5_METHODS:
        return on_methods(p);
    case ZT_SOCKS5_REQUEST:
        return on_request(p);
    case ZT_SOCKS5_NAME_LEN:
        return p->in[0] == 0 ? refuse(p, "an empty name") : expect(p, ZT_SOCKS5_ADDRESS, p->in[0] + 2u);
    case ZT_SOCKS5_ADDRESS:
        return on_address(p);
    case ZT_SOCKS5_DONE:
        break;
    }
    return refuse(p, "nothing more is expected");
}
