/* The header values of a CONNECT from anybody: the input is cut at line ends into values, each of which goes to every parser, and all
 * together they are the baggage headers of one block. */
#include "zt/base/mem.h"
#include "zt/h2/hbone.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse_one(const char *value)
{
    struct zt_addr addr;
    char host[ZT_HOSTNAME_MAX];
    memset(host, 'x', sizeof host);
    if (zt_authority_parse(value, &addr, host))
        ZT_ASSERT(memchr(host, 0, sizeof host) && (addr.ip.family != ZT_IP_NONE) == (host[0] == 0));
    memset(host, 'x', sizeof host);
    if (zt_forwarded_parse_host(value, host))
        ZT_ASSERT(memchr(host, 0, sizeof host) && host[0]);
}

/* What was parsed and is formatted again parses to the same. */
static void round_trip(const struct zt_baggage *b)
{
    struct zt_str text;
    struct zt_baggage_parsed again;
    zt_str_init(&text, 2 * ZT_BAGGAGE_BYTES_MAX);
    zt_baggage_format(b, &text);
    struct zt_h2_header header = {"baggage", zt_str_cstr(&text)};
    struct zt_h2_headers h = {&header, 1};
    if (text.len <= ZT_BAGGAGE_BYTES_MAX) {
        ZT_ASSERT(zt_baggage_parse(&h, &again));
        ZT_ASSERT(!b->ns == !again.b.ns && (!b->ns || strcmp(b->ns, again.b.ns) == 0));
        ZT_ASSERT(!b->workload_name == !again.b.workload_name);
        zt_baggage_parsed_fini(&again);
    }
    zt_str_fini(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct zt_h2_header list[ZT_H2_HEADERS_MAX];
    struct zt_h2_headers h = {list, 0};
    char *text = zt_strndup((const char *)data, size);
    struct zt_baggage_parsed parsed;
    for (char *line = text, *next; line && h.n < ZT_H2_HEADERS_MAX; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        parse_one(line);
        list[h.n++] = (struct zt_h2_header){"baggage", line};
    }
    if (zt_baggage_parse(&h, &parsed))
        round_trip(&parsed.b);
    zt_baggage_parsed_fini(&parsed);
    zt_free(text);
    return 0;
}
