/* DNS messages: the only place that knows the wire format, and the only user of ldns. Every byte that comes in is hostile; lengths are
 * bytes, numbers host order. Thread: any. */
#ifndef ZT_DNS_MSG_H
#define ZT_DNS_MSG_H

#include "zt/base/addr.h"
#include "zt/state/names.h"

#define ZT_DNS_WIRE_NAME_MAX 255
#define ZT_DNS_MESSAGE_MAX 65535
#define ZT_DNS_REQUEST_MAX 4096     /* bytes of a request; a question and its options need a few hundred */
#define ZT_DNS_UDP_PLAIN 512        /* an answer by UDP to who has no EDNS (RFC 1035 §4.2.1) */
#define ZT_DNS_UDP_MAX 4096         /* whatever payload the client claims: what a forged source could be sent */
#define ZT_DNS_PAYLOAD 1232         /* what we tell upstreams: below every path's fragmentation */
#define ZT_DNS_QUERY_BYTES_MAX 320  /* of a question of ours */
#define ZT_DNS_TTL_S 30             /* of answers from the state */

enum { ZT_DNS_A = 1, ZT_DNS_CNAME = 5, ZT_DNS_AAAA = 28 };
enum zt_dns_rcode {
    ZT_DNS_NOERROR = 0, ZT_DNS_FORMERR = 1, ZT_DNS_SERVFAIL = 2, ZT_DNS_NXDOMAIN = 3, ZT_DNS_NOTIMP = 4, ZT_DNS_REFUSED = 5,
    ZT_DNS_BADVERS = 16,
};

/* A question with what matters of its header and options. A value. */
struct zt_dns_query {
    uint16_t id, type, qclass;
    uint8_t opcode;
    bool rd, cd;
    bool edns, dnssec_ok;
    uint16_t payload;           /* with EDNS: as claimed, at least 512 */
    uint8_t name_len;           /* bytes of wire_name; 0: no question was understood */
    uint8_t wire_name[ZT_DNS_WIRE_NAME_MAX]; /* as asked: case is kept */
    char name[ZT_NAME_TEXT_MAX];             /* lower case, no final dot; "" for what cannot be a host's name */
};

enum zt_dns_verdict {
    ZT_DNS_DROP,  /* no answer is due: too short, or itself an answer */
    ZT_DNS_ERROR, /* answer *rcode */
    ZT_DNS_OK,
};
enum zt_dns_verdict zt_dns_query_parse(const uint8_t *wire, size_t len, struct zt_dns_query *q, enum zt_dns_rcode *rcode);
/* A question of our own. False: host is no name. */
bool zt_dns_query_from_text(const char *host, uint16_t type, struct zt_dns_query *q);
/* The question as it goes upstream. Returns its length. */
size_t zt_dns_query_write(const struct zt_dns_query *q, uint16_t id, bool edns, uint8_t out[static ZT_DNS_QUERY_BYTES_MAX]);

/* Bytes that an answer to q may have: by its EDNS payload over UDP, all by TCP. */
size_t zt_dns_reply_limit(const struct zt_dns_query *q, bool tcp);
/* An answer without records. */
size_t zt_dns_reply_error(const struct zt_dns_query *q, enum zt_dns_rcode rcode, uint8_t out[static ZT_DNS_UDP_PLAIN]);
/* An authoritative answer: the addresses of a's family, behind a CNAME when a has an owner. What does not fit into limit is cut, with
 * TC. out holds limit bytes. */
size_t zt_dns_reply_addresses(const struct zt_dns_query *q, const struct zt_name_answer *a, size_t limit, uint8_t *out);

/* What an upstream's answer says. */
struct zt_dns_facts {
    enum zt_dns_rcode rcode;
    bool truncated;
    unsigned n_answers;
    uint32_t ttl_s; /* how long it may be kept (RFC 2308 for negative ones), 0: not at all */
};
/* False: no answer to this question (id, question, form): to be ignored. id: as sent. */
bool zt_dns_response_parse(const uint8_t *wire, size_t len, const struct zt_dns_query *q, uint16_t id, struct zt_dns_facts *facts);
/* An upstream's answer (parsed before) as the client gets it: its own id, question and flags, TTLs aged by age_s or, stale, all set to
 * 30 (RFC 8767 §4), its own OPT, cut to limit with TC. out holds limit bytes. */
size_t zt_dns_reply_forwarded(const struct zt_dns_query *q, const uint8_t *wire, size_t len, uint32_t age_s, bool stale, size_t limit,
                              uint8_t *out);
/* The addresses that q's name has in an answer to it, CNAMEs followed. Returns how many, at most max. */
unsigned zt_dns_response_addresses(const uint8_t *wire, size_t len, const struct zt_dns_query *q, struct zt_ip *ips, unsigned max);

/* Records of one message; more is malformed. */
#define ZT_DNS_RECORDS_MAX 4096

/* What two questions must have in common to share an answer. scope: who may share it, at most ZT_DNS_SCOPE_MAX bytes. Returns its
 * length. */
#define ZT_DNS_SCOPE_MAX 320
#define ZT_DNS_KEY_MAX (ZT_DNS_WIRE_NAME_MAX + 5 + ZT_DNS_SCOPE_MAX)
size_t zt_dns_query_key(const struct zt_dns_query *q, const char *scope, uint8_t out[static ZT_DNS_KEY_MAX]);

/* "A"; NULL for types without a name. Static text. */
const char *zt_dns_type_name(uint16_t type);
/* With the final dot, escaped (RFC 1035 §5.1). Returns owned. */
char *zt_dns_query_name_text(const struct zt_dns_query *q);
const char *zt_dns_rcode_name(enum zt_dns_rcode rcode); /* static text */

#endif
