/* A DNS message from anybody. The first byte says what it is: 0, a question of a pod, which is answered in every way there is; otherwise an
 * upstream's answer to the question that it repeats. What goes out keeps to its limits and is a message again. */
#include "zt/base/mem.h"
#include "zt/dns/msg.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t out[ZT_DNS_MESSAGE_MAX];

/* What we say to a question repeats it, or nothing, and is an answer. */
static void check_reply(const struct zt_dns_query *q, size_t len, size_t limit)
{
    struct zt_dns_facts facts;
    ZT_ASSERT(len >= 12 && len <= limit);
    if (q->name_len && q->opcode == 0)
        ZT_ASSERT(zt_dns_response_parse(out, len, q, q->id, &facts));
}

static void fuzz_question(const uint8_t *data, size_t size)
{
    static struct zt_ip ips[64];
    struct zt_dns_query q;
    struct zt_name_answer a = {.ips = ips, .n_ips = 64, .cap = 64};
    enum zt_dns_rcode rcode = ZT_DNS_NOERROR;
    enum zt_dns_verdict v = zt_dns_query_parse(data, size, &q, &rcode);
    if (v == ZT_DNS_DROP)
        return;
    ZT_ASSERT((v == ZT_DNS_ERROR) == (rcode != ZT_DNS_NOERROR));
    check_reply(&q, zt_dns_reply_error(&q, v == ZT_DNS_OK ? ZT_DNS_SERVFAIL : rcode, out), ZT_DNS_UDP_PLAIN);
    if (v != ZT_DNS_OK)
        return;
    ZT_ASSERT(q.name_len > 0 && strlen(q.name) < sizeof q.name);
    uint8_t question[ZT_DNS_QUERY_BYTES_MAX], key[ZT_DNS_KEY_MAX];
    ZT_ASSERT(zt_dns_query_write(&q, 1, true, question) <= sizeof question);
    ZT_ASSERT(zt_dns_query_key(&q, "ns/sa", key) <= sizeof key);
    zt_free(zt_dns_query_name_text(&q));
    q.type = q.type % 2 ? ZT_DNS_A : ZT_DNS_AAAA;
    for (unsigned i = 0; i < 64; i++)
        ips[i] = zt_ip_loopback(q.type == ZT_DNS_A ? ZT_IPV4 : ZT_IPV6);
    zt_fmt(a.owner, sizeof a.owner, "%s", q.opcode % 2 ? "owner.example" : "");
    size_t limit = zt_dns_reply_limit(&q, false);
    check_reply(&q, zt_dns_reply_addresses(&q, &a, limit, out), limit);
}

static void fuzz_answer(const uint8_t *data, size_t size)
{
    struct zt_dns_query q;
    struct zt_dns_facts facts;
    struct zt_ip ips[8];
    enum zt_dns_rcode rcode;
    uint8_t question[512];
    size_t n = size < sizeof question ? size : sizeof question;
    if (n < 12)
        return;
    memcpy(question, data, n);
    question[2] &= 0x01; /* as a question, without its records */
    question[3] = 0;
    memset(question + 6, 0, 6);
    uint16_t id = (uint16_t)(data[0] << 8 | data[1]);
    if (zt_dns_query_parse(question, n, &q, &rcode) != ZT_DNS_OK || !zt_dns_response_parse(data, size, &q, id, &facts))
        return;
    ZT_ASSERT(zt_dns_response_addresses(data, size, &q, ips, 8) <= 8);
    for (int edns = 0; edns < 2; edns++) {
        q.edns = edns;
        q.payload = 600;
        size_t limit = zt_dns_reply_limit(&q, false);
        check_reply(&q, zt_dns_reply_forwarded(&q, data, size, 5, false, limit, out), limit);
        check_reply(&q, zt_dns_reply_forwarded(&q, data, size, 5, true, ZT_DNS_MESSAGE_MAX, out), ZT_DNS_MESSAGE_MAX);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > ZT_DNS_MESSAGE_MAX)
        return 0;
    if (data[0] == 0)
        fuzz_question(data + 1, size - 1);
    else
        fuzz_answer(data + 1, size - 1);
    return 0;
}
