/* The wire format: what comes in is understood or refused as the RFCs say, what goes out fits. */
#include "zt/base/mem.h"
#include "zt/dns/msg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- messages as bytes ---- */

struct bytes {
    uint8_t data[ZT_DNS_MESSAGE_MAX];
    size_t len;
};

static void put(struct bytes *b, const void *data, size_t n)
{
    memcpy(b->data + b->len, data, n);
    b->len += n;
}

static void put16(struct bytes *b, unsigned v)
{
    const uint8_t two[] = {(uint8_t)(v >> 8), (uint8_t)v};
    put(b, two, 2);
}

static void put_header(struct bytes *b, unsigned id, unsigned flags, unsigned qd, unsigned an, unsigned ns, unsigned ar)
{
    b->len = 0;
    put16(b, id);
    put16(b, flags);
    put16(b, qd);
    put16(b, an);
    put16(b, ns);
    put16(b, ar);
}

static void put_name(struct bytes *b, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, ".");
        uint8_t len = (uint8_t)n;
        put(b, &len, 1);
        put(b, text, n);
        text += n + (text[n] == '.');
    }
    put(b, "", 1);
}

static void put_question(struct bytes *b, const char *name, unsigned type)
{
    put_name(b, name);
    put16(b, type);
    put16(b, 1);
}

static void put_opt(struct bytes *b, unsigned payload, unsigned version, unsigned flags)
{
    put(b, "", 1);
    put16(b, 41);
    put16(b, payload);
    put16(b, version);
    put16(b, flags);
    put16(b, 0);
}

/* A record whose owner is the question's name. */
static void put_record(struct bytes *b, unsigned type, uint32_t ttl, const void *data, size_t n)
{
    put16(b, 0xc00c);
    put16(b, type);
    put16(b, 1);
    put16(b, ttl >> 16);
    put16(b, ttl & 0xffff);
    put16(b, (unsigned)n);
    put(b, data, n);
}

static const uint8_t address[4] = {192, 0, 2, 1};

static void ask(const char *name, unsigned type, struct zt_dns_query *q)
{
    struct bytes b;
    enum zt_dns_rcode rcode;
    put_header(&b, 7, 0x0100, 1, 0, 0, 0);
    put_question(&b, name, type);
    assert_int_equal(zt_dns_query_parse(b.data, b.len, q, &rcode), ZT_DNS_OK);
}

static unsigned count_at(const uint8_t *wire, unsigned field)
{
    return (unsigned)(wire[field] << 8 | wire[field + 1]);
}

static struct zt_name_answer *answer_of(unsigned n, const char *owner)
{
    static struct zt_name_answer a;
    static struct zt_ip ips[ZT_NAME_IPS_MAX];
    a = (struct zt_name_answer){.ips = ips, .n_ips = n, .cap = ZT_NAME_IPS_MAX};
    for (unsigned i = 0; i < n; i++)
        ips[i] = (struct zt_ip){ZT_IPV4, {10, 0, (uint8_t)(i >> 8), (uint8_t)i}};
    zt_fmt(a.owner, sizeof a.owner, "%s", owner);
    return &a;
}

/* ---- answers of ours ---- */

static void record_found(void **state)
{
    struct zt_dns_query q;
    uint8_t out[ZT_DNS_UDP_PLAIN];
    ask("Echo.ns2", ZT_DNS_A, &q);
    assert_string_equal(q.name, "echo.ns2");
    size_t len = zt_dns_reply_addresses(&q, answer_of(1, ""), sizeof out, out);
    assert_int_equal(count_at(out, 0), 7);
    assert_int_equal(out[2], 0x80 | 0x04 | 0x01); /* QR AA RD */
    assert_int_equal(out[3], 0x80);               /* RA, NOERROR */
    assert_int_equal(count_at(out, 6), 1);
    assert_int_equal(len, 12 + 10 + 4 + 16);
    assert_memory_equal(out + 12, "\4Echo\3ns2", 10); /* as asked */
    const uint8_t record[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 0};
    assert_memory_equal(out + 26, record, sizeof record);
}

static void large_response(void **state)
{
    struct zt_dns_query q;
    static uint8_t out[ZT_DNS_MESSAGE_MAX];
    ask("large.com", ZT_DNS_A, &q);
    q.edns = true;
    q.payload = 1232;
    assert_int_equal(zt_dns_reply_limit(&q, false), 1232);
    size_t len = zt_dns_reply_addresses(&q, answer_of(256, ""), 1232, out);
    assert_true(len <= 1232 && (out[2] & 2));
    assert_int_equal(count_at(out, 6), 74);
    len = zt_dns_reply_addresses(&q, answer_of(256, ""), zt_dns_reply_limit(&q, true), out);
    assert_int_equal(count_at(out, 6), 256);
    assert_false(out[2] & 2);
    assert_int_equal(len, 12 + 15 + 256 * 16 + 11);
}

static void an_alias_leaves_room_for_itself(void **state)
{
    struct zt_dns_query q;
    uint8_t out[ZT_DNS_UDP_PLAIN];
    ask("db.ns1.svc.cluster.local", ZT_DNS_A, &q);
    size_t len = zt_dns_reply_addresses(&q, answer_of(200, "db"), ZT_DNS_UDP_PLAIN, out);
    assert_true(len <= ZT_DNS_UDP_PLAIN && len > ZT_DNS_UDP_PLAIN - 32);
    assert_true(out[2] & 2);
}

static void an_alias_that_does_not_fit_at_all_is_cut(void **state)
{
    struct zt_dns_query q;
    uint8_t out[ZT_DNS_UDP_PLAIN];
    char owner[ZT_NAME_TEXT_MAX] = "", name[ZT_NAME_TEXT_MAX];
    while (strlen(owner) < 230)
        zt_fmt(owner + strlen(owner), sizeof owner - strlen(owner), "%s%03zu", *owner ? "." : "", strlen(owner));
    zt_fmt(name, sizeof name, "%s.n.svc.cluster.local", owner);
    ask(name, ZT_DNS_A, &q);
    size_t len = zt_dns_reply_addresses(&q, answer_of(3, owner), ZT_DNS_UDP_PLAIN, out);
    assert_int_equal(len, 12 + q.name_len + 4);
    assert_true(out[2] & 2);
    assert_int_equal(count_at(out, 6), 0);
}

static void without_edns_a_datagram_has_512_bytes_and_never_more_than_4096(void **state)
{
    struct zt_dns_query q;
    ask("a.b", ZT_DNS_A, &q);
    assert_int_equal(zt_dns_reply_limit(&q, false), 512);
    q.edns = true;
    q.payload = 65535;
    assert_int_equal(zt_dns_reply_limit(&q, false), 4096);
    assert_int_equal(zt_dns_reply_limit(&q, true), 65535);
}

/* ---- bad questions ---- */

#define VERDICT(bytes, expected_verdict, expected_rcode)                                                                 \
    do {                                                                                                                \
        struct zt_dns_query parsed;                                                                                     \
        enum zt_dns_rcode said = ZT_DNS_NOERROR;                                                                       \
        assert_int_equal(zt_dns_query_parse((bytes)->data, (bytes)->len, &parsed, &said), expected_verdict);           \
        assert_int_equal(said, expected_rcode);                                                                        \
    } while (0)

static void what_is_no_question_is_dropped(void **state)
{
    struct bytes b;
    put_header(&b, 1, 0x8100, 1, 0, 0, 0);
    put_question(&b, "a.b", 1);
    VERDICT(&b, ZT_DNS_DROP, ZT_DNS_NOERROR); /* an answer */
    b.len = 11;
    b.data[2] = 1;
    VERDICT(&b, ZT_DNS_DROP, ZT_DNS_NOERROR); /* half a header */
}

static void other_operations_and_many_questions_are_refused(void **state)
{
    struct bytes b;
    put_header(&b, 1, 0x2800, 1, 0, 0, 0); /* UPDATE */
    put_question(&b, "a.b", 1);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_NOTIMP);
    put_header(&b, 1, 0x0100, 2, 0, 0, 0);
    put_question(&b, "a.b", 1);
    put_question(&b, "a.b", 28);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_SERVFAIL);
    put_header(&b, 1, 0x0100, 0, 0, 0, 0);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_SERVFAIL);
}

static void loops_and_oversized_names_are_format_errors(void **state)
{
    struct bytes b;
    put_header(&b, 1, 0x0100, 1, 0, 0, 0);
    put16(&b, 0xc00c); /* itself */
    put16(&b, 1);
    put16(&b, 1);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_FORMERR);
    put_header(&b, 1, 0x0100, 1, 0, 0, 0);
    for (int i = 0; i < 5; i++)
        put(&b, "\77aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 64);
    put(&b, "\0\0\1\0\1", 5);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_FORMERR);
    put_header(&b, 1, 0x0100, 1, 0, 0, 0);
    put(&b, "\100abc", 4); /* a label type nobody uses */
    put(&b, "\0\0\1\0\1", 5);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_FORMERR);
    put_header(&b, 1, 0x0100, 1, 0, 0, 1);
    put_question(&b, "a.b", 1); /* the additional record is missing */
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_FORMERR);
}

static void edns_is_read_once_and_in_its_first_version(void **state)
{
    struct bytes b;
    struct zt_dns_query q;
    enum zt_dns_rcode rcode;
    put_header(&b, 1, 0x0110, 1, 0, 0, 1);
    put_question(&b, "a.b", 1);
    put_opt(&b, 100, 0, 0x8000);
    assert_int_equal(zt_dns_query_parse(b.data, b.len, &q, &rcode), ZT_DNS_OK);
    assert_true(q.edns && q.dnssec_ok && q.payload == 512 && q.rd && q.cd);
    put_opt(&b, 100, 0, 0);
    b.data[11] = 2;
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_FORMERR);
    put_header(&b, 1, 0x0100, 1, 0, 0, 1);
    put_question(&b, "a.b", 1);
    put_opt(&b, 1232, 1, 0);
    VERDICT(&b, ZT_DNS_ERROR, ZT_DNS_BADVERS);
    assert_int_equal(zt_dns_query_parse(b.data, b.len, &q, &rcode), ZT_DNS_ERROR);
    uint8_t out[ZT_DNS_UDP_PLAIN];
    size_t len = zt_dns_reply_error(&q, rcode, out);
    assert_int_equal(out[3] & 0xf, 0); /* BADVERS is 16: its high bits are in the OPT */
    assert_int_equal(out[len - 6], 1);
}

static void a_format_error_repeats_no_question(void **state)
{
    struct bytes b;
    struct zt_dns_query q;
    enum zt_dns_rcode rcode;
    uint8_t out[ZT_DNS_UDP_PLAIN];
    put_header(&b, 9, 0x0100, 1, 0, 0, 0);
    put(&b, "\3ab", 3);
    assert_int_equal(zt_dns_query_parse(b.data, b.len, &q, &rcode), ZT_DNS_ERROR);
    assert_int_equal(zt_dns_reply_error(&q, rcode, out), 12);
    assert_int_equal(count_at(out, 0), 9);
    assert_int_equal(out[3], ZT_DNS_FORMERR); /* and RA is 0 */
}

/* ---- answers of upstreams ---- */

static void put_answer(struct bytes *b, unsigned id, unsigned flags, const char *name, unsigned n)
{
    put_header(b, id, flags, 1, n, 0, 0);
    put_question(b, name, ZT_DNS_A);
    for (unsigned i = 0; i < n; i++)
        put_record(b, ZT_DNS_A, 60 + i, address, 4);
}

static void answers_to_other_questions_are_ignored(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    struct zt_dns_facts f;
    ask("a.example", ZT_DNS_A, &q);
    put_answer(&b, 5, 0x8180, "A.Example", 1);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f)); /* case does not count */
    assert_false(zt_dns_response_parse(b.data, b.len, &q, 6, &f));
    put_answer(&b, 5, 0x8180, "b.example", 1);
    assert_false(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    put_answer(&b, 5, 0x0180, "a.example", 1); /* a question */
    assert_false(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    put_answer(&b, 5, 0x8180, "a.example", 1);
    assert_false(zt_dns_response_parse(b.data, b.len - 1, &q, 5, &f));
    q.type = ZT_DNS_AAAA;
    assert_false(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
}

static void lifetimes_are_the_least_ttl_and_the_soa_s_for_a_no(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    struct zt_dns_facts f;
    ask("a.example", ZT_DNS_A, &q);
    put_answer(&b, 5, 0x8180, "a.example", 3);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    assert_int_equal(f.ttl_s, 60);
    const uint8_t soa[22] = {0, 0, [21] = 45};
    put_header(&b, 5, 0x8183, 1, 0, 1, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put_record(&b, 6, 900, soa, sizeof soa);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    assert_int_equal(f.rcode, ZT_DNS_NXDOMAIN);
    assert_int_equal(f.ttl_s, 45);
    put_header(&b, 5, 0x8183, 1, 0, 0, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    assert_int_equal(f.ttl_s, 0); /* a no without SOA is not kept */
    put_header(&b, 5, 0x8182, 1, 0, 1, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put_record(&b, 6, 900, soa, sizeof soa);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    assert_int_equal(f.ttl_s, 0); /* nor is a failure */
    put_header(&b, 5, 0x8180, 1, 1, 0, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put_record(&b, ZT_DNS_A, 0x80000001u, address, 4); /* RFC 2181 §8 */
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    assert_int_equal(f.ttl_s, 0);
}

static void a_forwarded_answer_carries_the_client_s_id_case_flags_and_options(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    struct zt_dns_facts f;
    uint8_t out[1232];
    ask("A.exAmple", ZT_DNS_A, &q);
    q.edns = true;
    q.payload = 1232;
    put_answer(&b, 5, 0x85a0, "a.example", 2); /* AA AD set */
    b.data[11] = 1;
    put_opt(&b, 4096, 0, 0);
    assert_true(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
    size_t len = zt_dns_reply_forwarded(&q, b.data, b.len, 10, false, sizeof out, out);
    assert_int_equal(len, b.len); /* their OPT for ours */
    assert_int_equal(count_at(out, 0), 7);
    assert_memory_equal(out + 12, "\1A\7exAmple", 10);
    assert_false(out[2] & 0x04 || out[3] & 0x20); /* neither AA nor AD */
    assert_int_equal(count_at(out, 10), 1);
    assert_int_equal(count_at(out, len - 8), 1232);
    assert_int_equal(out[27 + 9], 50); /* aged */
    q.edns = false;
    len = zt_dns_reply_forwarded(&q, b.data, b.len, 1000, true, 512, out);
    assert_int_equal(len, b.len - 11);
    assert_int_equal(out[27 + 9], 30); /* stale */
    assert_int_equal(count_at(out, 10), 0);
}

static void a_forwarded_answer_is_cut_between_records(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    uint8_t out[512];
    ask("a.example", ZT_DNS_A, &q);
    put_answer(&b, 5, 0x8180, "a.example", 100);
    size_t len = zt_dns_reply_forwarded(&q, b.data, b.len, 0, false, sizeof out, out);
    assert_true(len <= sizeof out && len > sizeof out - 16);
    assert_true(out[2] & 2);
    assert_int_equal(len, 27 + 16 * count_at(out, 6));
}

static void a_message_of_pointer_chains_is_refused_quickly(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    struct zt_dns_facts f;
    ask("a.example", ZT_DNS_A, &q);
    put_header(&b, 5, 0x8180, 1, 1000, 0, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put16(&b, 0xc00c);
    size_t first = b.len - 2;
    put(&b, "\0\20\0\1\0\0\0\1\37\100", 10); /* a TXT of 8000 bytes: pointers, each to the one before */
    size_t at = b.len;
    for (unsigned i = 0; i < 4000; i++)
        put16(&b, 0xc000 | (unsigned)(i == 0 ? first : at + 2 * (i - 1)));
    for (unsigned i = 1; i < 1000; i++) {
        put16(&b, 0xc000 | (unsigned)(at + 2 * 3999));
        put(&b, "\0\20\0\1\0\0\0\1\0\0", 10);
    }
    assert_false(zt_dns_response_parse(b.data, b.len, &q, 5, &f));
}

static void addresses_are_found_behind_aliases_and_nowhere_else(void **state)
{
    static struct bytes b;
    struct zt_dns_query q;
    struct zt_ip ips[4];
    ask("a.example", ZT_DNS_A, &q);
    put_header(&b, 5, 0x8180, 1, 3, 0, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put_record(&b, ZT_DNS_CNAME, 60, "\1b\300\16", 4); /* b.example */
    put_name(&b, "b.example");
    put(&b, "\0\1\0\1\0\0\0\74\0\4\12\0\0\1", 14);
    put_name(&b, "evil.example");
    put(&b, "\0\1\0\1\0\0\0\74\0\4\12\6\6\6", 14);
    assert_int_equal(zt_dns_response_addresses(b.data, b.len, &q, ips, 4), 1);
    assert_int_equal(ips[0].bytes[3], 1);
    /* a circle of aliases ends */
    put_header(&b, 5, 0x8180, 1, 1, 0, 0);
    put_question(&b, "a.example", ZT_DNS_A);
    put_record(&b, ZT_DNS_CNAME, 60, "\300\14", 2);
    assert_int_equal(zt_dns_response_addresses(b.data, b.len, &q, ips, 4), 0);
}

/* ---- small things ---- */

static void questions_share_an_answer_only_when_all_that_matters_agrees(void **state)
{
    struct zt_dns_query a, b;
    uint8_t ka[ZT_DNS_KEY_MAX], kb[ZT_DNS_KEY_MAX];
    ask("a.example", ZT_DNS_A, &a);
    ask("A.EXAMPLE", ZT_DNS_A, &b);
    size_t len = zt_dns_query_key(&a, "ns/sa", ka);
    assert_int_equal(zt_dns_query_key(&b, "ns/sa", kb), len);
    assert_memory_equal(ka, kb, len);
    assert_true(zt_dns_query_key(&b, "ns/sb", kb) == len && memcmp(ka, kb, len) != 0); /* another identity */
    b.dnssec_ok = true;
    assert_true(zt_dns_query_key(&b, "ns/sa", kb) == len && memcmp(ka, kb, len) != 0);
    b = a;
    b.cd = true;
    assert_true(zt_dns_query_key(&b, "ns/sa", kb) == len && memcmp(ka, kb, len) != 0);
}

static void names_that_no_host_has_are_forwarded_and_never_matched(void **state)
{
    struct zt_dns_query q;
    ask("a b.example", ZT_DNS_A, &q);
    assert_string_equal(q.name, "");
    assert_true(q.name_len > 0);
    char *text = zt_dns_query_name_text(&q);
    assert_non_null(strstr(text, "example."));
    zt_free(text);
    assert_false(zt_dns_query_from_text("", ZT_DNS_A, &q));
    assert_false(zt_dns_query_from_text("a..b", ZT_DNS_A, &q));
    assert_true(zt_dns_query_from_text("a.b", ZT_DNS_A, &q));
    assert_string_equal(q.name, "a.b");
}

static void types_have_names_or_none(void **state)
{
    assert_string_equal(zt_dns_type_name(28), "AAAA");
    assert_string_equal(zt_dns_type_name(65), "HTTPS");
    assert_null(zt_dns_type_name(65000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_found),
        cmocka_unit_test(large_response),
        cmocka_unit_test(an_alias_leaves_room_for_itself),
        cmocka_unit_test(an_alias_that_does_not_fit_at_all_is_cut),
        cmocka_unit_test(without_edns_a_datagram_has_512_bytes_and_never_more_than_4096),
        cmocka_unit_test(what_is_no_question_is_dropped),
        cmocka_unit_test(other_operations_and_many_questions_are_refused),
        cmocka_unit_test(loops_and_oversized_names_are_format_errors),
        cmocka_unit_test(edns_is_read_once_and_in_its_first_version),
        cmocka_unit_test(a_format_error_repeats_no_question),
        cmocka_unit_test(answers_to_other_questions_are_ignored),
        cmocka_unit_test(lifetimes_are_the_least_ttl_and_the_soa_s_for_a_no),
        cmocka_unit_test(a_forwarded_answer_carries_the_client_s_id_case_flags_and_options),
        cmocka_unit_test(a_forwarded_answer_is_cut_between_records),
        cmocka_unit_test(a_message_of_pointer_chains_is_refused_quickly),
        cmocka_unit_test(addresses_are_found_behind_aliases_and_nowhere_else),
        cmocka_unit_test(questions_share_an_answer_only_when_all_that_matters_agrees),
        cmocka_unit_test(names_that_no_host_has_are_forwarded_and_never_matched),
        cmocka_unit_test(types_have_names_or_none),
    };
    return cmocka_run_group_tests_name("msg", tests, NULL, NULL);
}
