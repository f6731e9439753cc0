/* A client of SOCKS5, whatever it sends: the parser asks for a bounded number of bytes, ends after a bounded number of steps, and what it
 * lets through is an address or a name without NUL. */
#include "proxy/socks5_parse.h"
#include "zt/base/err.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct zt_socks5_parse p;
    enum zt_socks5_step step = ZT_SOCKS5_MORE;
    unsigned n_steps = 0;
    zt_socks5_parse_init(&p);
    while (step == ZT_SOCKS5_MORE || step == ZT_SOCKS5_CHOSEN) {
        ZT_ASSERT(p.need > 0 && p.need <= sizeof p.in && p.have == 0 && ++n_steps <= 5);
        if (size < p.need)
            return 0;
        memcpy(p.in, data, p.need);
        p.have = p.need;
        data += p.need;
        size -= p.need;
        step = zt_socks5_parse_step(&p);
    }
    ZT_ASSERT(p.state == ZT_SOCKS5_DONE);
    if (step == ZT_SOCKS5_CONNECT)
        ZT_ASSERT(p.dst.ip.family != ZT_IP_NONE);
    if (step == ZT_SOCKS5_RESOLVE)
        ZT_ASSERT(p.host[0] && memchr(p.host, '\0', sizeof p.host));
    if (step == ZT_SOCKS5_REFUSE)
        ZT_ASSERT(p.why);
    return 0;
}
