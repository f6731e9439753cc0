/* The client's half of a SOCKS5 negotiation as a pure state machine (RFC 1928 §3, §4); socks5.c moves the bytes. */
#ifndef ZT_PROXY_SOCKS5_PARSE_H
#define ZT_PROXY_SOCKS5_PARSE_H

#include "zt/base/addr.h"

#define ZT_SOCKS5_READ_MAX (255 + 2) /* bytes: a name and a port are the longest read at once; methods are at most 255 */

enum zt_socks5_state { ZT_SOCKS5_GREETING, ZT_SOCKS5_METHODS, ZT_SOCKS5_REQUEST, ZT_SOCKS5_NAME_LEN, ZT_SOCKS5_ADDRESS, ZT_SOCKS5_DONE };
enum zt_socks5_reply { ZT_SOCKS5_OK = 0, ZT_SOCKS5_IO = 1, ZT_SOCKS5_UNREACHABLE = 4, ZT_SOCKS5_VIOLATION = 7 };
enum zt_socks5_step {
    ZT_SOCKS5_MORE,    /* read on */
    ZT_SOCKS5_CHOSEN,  /* answer 05 00, then read on */
    ZT_SOCKS5_CONNECT, /* to dst */
    ZT_SOCKS5_RESOLVE, /* host, then to it and dst.port */
    ZT_SOCKS5_REFUSE,  /* with a violation's code; why says which */
};

struct zt_socks5_parse {
    enum zt_socks5_state state;
    unsigned have, need; /* bytes of in; exactly `need` are read, so that what follows stays in the socket */
    uint8_t type;
    uint8_t in[ZT_SOCKS5_READ_MAX];
    struct zt_addr dst;
    char host[256];
    const char *why; /* static text */
};

void zt_socks5_parse_init(struct zt_socks5_parse *p);
/* have has reached need. */
enum zt_socks5_step zt_socks5_parse_step(struct zt_socks5_parse *p);

#endif
