/* The wire format. Names, numbers and whole messages of ours go through ldns; what an upstream sent is kept as bytes and walked record
 * by record, so that types nobody knows pass unchanged.
 *
 * A message may make the library work: a name can be a chain of as many pointers as fit. is_sound_name bounds that before the
 * library sees the name, and the number of records is bounded too. */
#include "zt/dns/msg.h"
#include "zt/base/mem.h"

#include <ctype.h>
#include <ldns/ldns.h>
#include <string.h>

#define HEADER LDNS_HEADER_SIZE
#define OPT_BYTES 11      /* an OPT record without options */
#define POINTERS_MAX 16   /* per name */
#define ALIASES_MAX 16    /* CNAMEs followed */
#define TTL_MAX_S 86400   /* kept no longer, whatever the record says */
#define STALE_TTL_S 30

/* ---- walking over a message ---- */

/* Pointers are few, and each leads to a name that is over before this one begins (RFC 1035 §4.1.4): neither the header, nor a field of the
 * record that is changed, nor what is behind a cut is a part of it. */
static bool is_sound_name(const uint8_t *wire, size_t len, size_t at)
{
    size_t start = at, end = len;
    for (unsigned n = 0; at < end && wire[at] != 0;) {
        if (wire[at] < 0x40) {
            at += 1u + wire[at];
            continue;
        }
        if (wire[at] < 0xc0 || at + 1 >= end || ++n > POINTERS_MAX)
            return false;
        at = (size_t)(wire[at] & 0x3f) << 8 | wire[at + 1];
        if (at < HEADER || at >= start)
            return false;
        end = start;
        start = at;
    }
    return at < end;
}

/* Reads the name at *at and moves behind it. Returns owned, or NULL. */
static ldns_rdf *read_name(const uint8_t *wire, size_t len, size_t *at)
{
    ldns_rdf *name = NULL;
    if (!is_sound_name(wire, len, *at) || ldns_wire2dname(&name, wire, len, at) != LDNS_STATUS_OK)
        return NULL;
    return name;
}

struct record {
    size_t start, ttl_at, data_at, end;
    uint32_t ttl_s;
    uint16_t type, class;
    ldns_pkt_section section;
    ldns_rdf *owner; /* of the walk: until the next record */
};
struct walk {
    const uint8_t *wire;
    size_t len, at;
    unsigned left[3]; /* answer, authority, additional */
    struct record r;
};

static unsigned records_in(const uint8_t *wire)
{
    return (unsigned)LDNS_ANCOUNT(wire) + LDNS_NSCOUNT(wire) + LDNS_ARCOUNT(wire);
}

static void walk_begin(struct walk *w, const uint8_t *wire, size_t len, size_t question_end)
{
    *w = (struct walk){.wire = wire, .len = len, .at = question_end};
    w->left[0] = LDNS_ANCOUNT(wire);
    w->left[1] = LDNS_NSCOUNT(wire);
    w->left[2] = LDNS_ARCOUNT(wire);
}

static void walk_end(struct walk *w)
{
    ldns_rdf_deep_free(w->r.owner);
    w->r.owner = NULL;
}

/* 1: w->r is the next record; 0: there is none; -1: malformed. */
static int walk_next(struct walk *w)
{
    static const ldns_pkt_section sections[] = {LDNS_SECTION_ANSWER, LDNS_SECTION_AUTHORITY, LDNS_SECTION_ADDITIONAL};
    unsigned s = 0;
    walk_end(w);
    while (s < 3 && w->left[s] == 0)
        s++;
    if (s == 3)
        return 0;
    w->left[s]--;
    struct record *r = &w->r;
    r->section = sections[s];
    r->start = w->at;
    r->owner = read_name(w->wire, w->len, &w->at);
    if (!r->owner || w->at + 10 > w->len)
        return -1;
    r->type = ldns_read_uint16(w->wire + w->at);
    r->class = ldns_read_uint16(w->wire + w->at + 2);
    r->ttl_at = w->at + 4;
    r->ttl_s = ldns_read_uint32(w->wire + r->ttl_at);
    r->data_at = w->at + 10;
    r->end = r->data_at + ldns_read_uint16(w->wire + w->at + 8);
    w->at = r->end;
    return r->end <= w->len ? 1 : -1;
}

/* ---- questions that come in ---- */

/* A name that could be a host's, in lower case; otherwise "". */
static void host_text(const uint8_t *name, size_t len, char out[static ZT_NAME_TEXT_MAX])
{
    size_t n = 0;
    for (size_t at = 0; at < len && name[at] != 0; at += 1u + name[at]) {
        if (n > 0)
            out[n++] = '.';
        for (unsigned i = 1; i <= name[at]; i++) {
            uint8_t c = name[at + i];
            if (!isgraph(c) || c == '.' || c == '\\') {
                out[0] = '\0';
                return;
            }
            out[n++] = (char)tolower(c);
        }
    }
    out[n] = '\0';
}

static bool set_name(struct zt_dns_query *q, const ldns_rdf *name)
{
    size_t len = ldns_rdf_size(name);
    if (len == 0 || len > ZT_DNS_WIRE_NAME_MAX)
        return false;
    memcpy(q->wire_name, ldns_rdf_data(name), len);
    q->name_len = (uint8_t)len;
    host_text(q->wire_name, len, q->name);
    return true;
}

/* The question at HEADER; no pointer may be in its name, as there is nothing to point at. Returns its end, 0: malformed. */
static size_t read_question(const uint8_t *wire, size_t len, struct zt_dns_query *q)
{
    size_t at = HEADER;
    ldns_rdf *name = read_name(wire, len, &at);
    bool good = name && at - HEADER == ldns_rdf_size(name) && at + 4 <= len && set_name(q, name);
    ldns_rdf_deep_free(name);
    if (!good) {
        q->name_len = 0;
        return 0;
    }
    q->type = ldns_read_uint16(wire + at);
    q->qclass = ldns_read_uint16(wire + at + 2);
    return at + 4;
}

/* OPT among the records (RFC 6891): one at most, at the root. */
static enum zt_dns_rcode read_options(const uint8_t *wire, size_t len, size_t at, struct zt_dns_query *q)
{
    struct walk w;
    int got;
    enum zt_dns_rcode rcode = ZT_DNS_NOERROR;
    walk_begin(&w, wire, len, at);
    while ((got = walk_next(&w)) == 1) {
        if (w.r.type != LDNS_RR_TYPE_OPT)
            continue;
        if (q->edns || w.r.section != LDNS_SECTION_ADDITIONAL || ldns_rdf_size(w.r.owner) != 1) {
            got = -1;
            break;
        }
        q->edns = true;
        q->payload = w.r.class < ZT_DNS_UDP_PLAIN ? ZT_DNS_UDP_PLAIN : w.r.class;
        q->dnssec_ok = w.r.ttl_s & 0x8000;
        if ((w.r.ttl_s >> 16 & 0xff) != 0)
            rcode = ZT_DNS_BADVERS;
    }
    walk_end(&w);
    return got < 0 ? ZT_DNS_FORMERR : rcode;
}

enum zt_dns_verdict zt_dns_query_parse(const uint8_t *wire, size_t len, struct zt_dns_query *q, enum zt_dns_rcode *rcode)
{
    q->name_len = 0;
    q->name[0] = '\0';
    q->type = q->qclass = 0;
    q->edns = q->dnssec_ok = false;
    q->payload = ZT_DNS_UDP_PLAIN;
    if (len < HEADER || LDNS_QR_WIRE(wire))
        return ZT_DNS_DROP;
    q->id = LDNS_ID_WIRE(wire);
    q->opcode = LDNS_OPCODE_WIRE(wire);
    q->rd = LDNS_RD_WIRE(wire);
    q->cd = LDNS_CD_WIRE(wire);
    if (q->opcode != LDNS_PACKET_QUERY)
        *rcode = ZT_DNS_NOTIMP;
    else if (LDNS_QDCOUNT(wire) != 1)
        *rcode = ZT_DNS_SERVFAIL;
    else if (len > ZT_DNS_REQUEST_MAX)
        *rcode = ZT_DNS_FORMERR;
    else {
        size_t at = read_question(wire, len, q);
        *rcode = at == 0 ? ZT_DNS_FORMERR : read_options(wire, len, at, q);
    }
    if (*rcode == ZT_DNS_FORMERR)
        q->name_len = 0; /* what was not understood is not repeated */
    return *rcode == ZT_DNS_NOERROR ? ZT_DNS_OK : ZT_DNS_ERROR;
}

bool zt_dns_query_from_text(const char *host, uint16_t type, struct zt_dns_query *q)
{
    ldns_rdf *name = *host ? ldns_dname_new_frm_str(host) : NULL;
    *q = (struct zt_dns_query){.type = type, .qclass = LDNS_RR_CLASS_IN, .rd = true, .payload = ZT_DNS_UDP_PLAIN};
    bool good = name && set_name(q, name);
    ldns_rdf_deep_free(name);
    return good;
}

size_t zt_dns_query_key(const struct zt_dns_query *q, const char *scope, uint8_t out[static ZT_DNS_KEY_MAX])
{
    size_t scope_len = strlen(scope);
    ZT_ASSERT(scope_len <= ZT_DNS_SCOPE_MAX);
    ldns_write_uint16(out, q->type);
    ldns_write_uint16(out + 2, q->qclass);
    out[4] = (uint8_t)(q->rd | q->cd << 1 | q->dnssec_ok << 2);
    for (unsigned i = 0; i < q->name_len; i++) /* a label's length is below 'A' */
        out[5 + i] = (uint8_t)tolower(q->wire_name[i]);
    memcpy(out + 5 + q->name_len, scope, scope_len); /* the name says where it ends */
    return 5u + q->name_len + scope_len;
}

/* ---- messages of ours ---- */

/* Writes a packet that is known to fit. Takes p. */
static size_t write_packet(ldns_pkt *p, uint8_t *out, size_t max)
{
    ldns_buffer *b = ldns_buffer_new(ZT_DNS_UDP_PLAIN);
    ZT_ASSERT(b && ldns_pkt2buffer_wire(b, p) == LDNS_STATUS_OK);
    size_t len = ldns_buffer_position(b);
    if (len <= max)
        memcpy(out, ldns_buffer_begin(b), len);
    ldns_buffer_free(b);
    ldns_pkt_free(p);
    return len;
}

static ldns_rdf *name_of(const struct zt_dns_query *q)
{
    return ldns_rdf_new_frm_data(LDNS_RDF_TYPE_DNAME, q->name_len, q->wire_name);
}

static ldns_pkt *packet_new(const struct zt_dns_query *q, uint16_t id)
{
    ldns_pkt *p = ldns_pkt_new();
    ZT_ASSERT(p);
    ldns_pkt_set_id(p, id);
    ldns_pkt_set_opcode(p, (ldns_pkt_opcode)q->opcode);
    ldns_pkt_set_rd(p, q->rd);
    ldns_pkt_set_cd(p, q->cd);
    if (q->name_len == 0)
        return p;
    ldns_rr *question = ldns_rr_new();
    ldns_rr_set_question(question, true);
    ldns_rr_set_owner(question, name_of(q));
    ldns_rr_set_type(question, (ldns_rr_type)q->type);
    ldns_rr_set_class(question, (ldns_rr_class)q->qclass);
    ldns_pkt_push_rr(p, LDNS_SECTION_QUESTION, question);
    return p;
}

static ldns_pkt *reply_new(const struct zt_dns_query *q, enum zt_dns_rcode rcode)
{
    ldns_pkt *p = packet_new(q, q->id);
    ldns_pkt_set_qr(p, true);
    ldns_pkt_set_rcode(p, (uint8_t)(rcode & 0xf));
    return p;
}

size_t zt_dns_query_write(const struct zt_dns_query *q, uint16_t id, bool edns, uint8_t out[static ZT_DNS_QUERY_BYTES_MAX])
{
    ldns_pkt *p = packet_new(q, id);
    if (edns) {
        ldns_pkt_set_edns_udp_size(p, ZT_DNS_PAYLOAD);
        ldns_pkt_set_edns_do(p, q->dnssec_ok);
    }
    return write_packet(p, out, ZT_DNS_QUERY_BYTES_MAX);
}

size_t zt_dns_reply_limit(const struct zt_dns_query *q, bool tcp)
{
    if (tcp)
        return ZT_DNS_MESSAGE_MAX;
    size_t limit = q->edns ? q->payload : ZT_DNS_UDP_PLAIN;
    return limit > ZT_DNS_UDP_MAX ? ZT_DNS_UDP_MAX : limit;
}

size_t zt_dns_reply_error(const struct zt_dns_query *q, enum zt_dns_rcode rcode, uint8_t out[static ZT_DNS_UDP_PLAIN])
{
    ldns_pkt *p = reply_new(q, rcode);
    if (rcode == ZT_DNS_BADVERS) { /* can only be said in an OPT */
        ldns_pkt_set_edns_udp_size(p, q->payload);
        ldns_pkt_set_edns_extended_rcode(p, (uint8_t)(rcode >> 4));
    }
    return write_packet(p, out, ZT_DNS_UDP_PLAIN);
}

static void push(ldns_pkt *p, ldns_rdf *owner, ldns_rr_type type, ldns_rdf *data)
{
    ldns_rr *r = ldns_rr_new();
    ldns_rr_set_owner(r, owner);
    ldns_rr_set_type(r, type);
    ldns_rr_set_class(r, LDNS_RR_CLASS_IN);
    ldns_rr_set_ttl(r, ZT_DNS_TTL_S);
    ldns_rr_push_rdf(r, data);
    ldns_pkt_push_rr(p, LDNS_SECTION_ANSWER, r);
}

static size_t write_addresses(const struct zt_dns_query *q, const struct zt_name_answer *a, unsigned n, size_t limit, uint8_t *out)
{
    bool v6 = q->type == ZT_DNS_AAAA;
    ldns_rdf *owner = a->owner[0] ? ldns_dname_new_frm_str(a->owner) : name_of(q);
    ldns_pkt *p = reply_new(q, ZT_DNS_NOERROR);
    ldns_pkt_set_aa(p, true);
    ldns_pkt_set_ra(p, true);
    ldns_pkt_set_tc(p, n < a->n_ips);
    if (q->edns) {
        ldns_pkt_set_edns_udp_size(p, q->payload);
        ldns_pkt_set_edns_do(p, q->dnssec_ok);
    }
    if (a->owner[0] && a->n_ips > 0)
        push(p, name_of(q), LDNS_RR_TYPE_CNAME, ldns_rdf_clone(owner));
    for (unsigned i = 0; i < n; i++)
        push(p, ldns_rdf_clone(owner), (ldns_rr_type)q->type,
             ldns_rdf_new_frm_data(v6 ? LDNS_RDF_TYPE_AAAA : LDNS_RDF_TYPE_A, v6 ? 16 : 4, a->ips[i].bytes));
    ldns_rdf_deep_free(owner);
    return write_packet(p, out, limit);
}

/* Nothing but "ask by TCP". */
static size_t write_cut(const struct zt_dns_query *q, size_t limit, uint8_t *out)
{
    const struct zt_name_answer none = {0};
    size_t len = write_addresses(q, &none, 0, limit, out);
    LDNS_TC_SET(out);
    return len;
}

size_t zt_dns_reply_addresses(const struct zt_dns_query *q, const struct zt_name_answer *a, size_t limit, uint8_t *out)
{
    size_t each = q->type == ZT_DNS_AAAA ? 28 : 16; /* with the owner as a pointer */
    size_t fixed = HEADER + q->name_len + 4u + (q->edns ? OPT_BYTES : 0);
    size_t fit = (limit - fixed) / each;
    unsigned n = a->n_ips < fit ? a->n_ips : (unsigned)fit;
    for (;;) {
        size_t len = write_addresses(q, a, n, limit, out);
        if (len <= limit)
            return len;
        if (n == 0) /* not even the CNAME: a name of this length, a second one and 512 bytes */
            return write_cut(q, limit, out);
        size_t over = (len - limit + each - 1) / each; /* the CNAME's share */
        n = over < n ? n - (unsigned)over : 0;
    }
}

/* ---- answers of upstreams ---- */

static bool same_name(const uint8_t *a, const uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (tolower(a[i]) != tolower(b[i]))
            return false;
    return true;
}

/* The end of the question; 0: not ours. */
static size_t match_question(const uint8_t *wire, size_t len, const struct zt_dns_query *q)
{
    size_t end = HEADER + q->name_len + 4u;
    if (LDNS_QDCOUNT(wire) != 1 || len < end || !same_name(wire + HEADER, q->wire_name, q->name_len))
        return 0;
    bool same = ldns_read_uint16(wire + end - 4) == q->type && ldns_read_uint16(wire + end - 2) == q->qclass;
    return same ? end : 0;
}

static uint32_t usable_ttl(uint32_t ttl_s)
{
    if (ttl_s & 0x80000000u) /* RFC 2181 §8 */
        return 0;
    return ttl_s > TTL_MAX_S ? TTL_MAX_S : ttl_s;
}

/* How long a "no" holds: the lesser of the SOA's TTL and its last field (RFC 2308 §5). */
static uint32_t soa_ttl(const struct walk *w)
{
    if (w->r.end < w->r.data_at + 22) /* two names and five numbers */
        return 0;
    uint32_t minimum = usable_ttl(ldns_read_uint32(w->wire + w->r.end - 4));
    uint32_t ttl = usable_ttl(w->r.ttl_s);
    return minimum < ttl ? minimum : ttl;
}

bool zt_dns_response_parse(const uint8_t *wire, size_t len, const struct zt_dns_query *q, uint16_t id, struct zt_dns_facts *facts)
{
    if (len < HEADER || !LDNS_QR_WIRE(wire) || LDNS_ID_WIRE(wire) != id || LDNS_OPCODE_WIRE(wire) != LDNS_PACKET_QUERY)
        return false;
    *facts = (struct zt_dns_facts){.rcode = (enum zt_dns_rcode)LDNS_RCODE_WIRE(wire), .truncated = LDNS_TC_WIRE(wire),
                                   .n_answers = LDNS_ANCOUNT(wire)};
    if (LDNS_QDCOUNT(wire) == 0 && records_in(wire) == 0 && facts->rcode == ZT_DNS_FORMERR)
        return true; /* "did not understand" may come without the question */
    size_t at = match_question(wire, len, q);
    if (at == 0 || records_in(wire) > ZT_DNS_RECORDS_MAX)
        return false;
    if (facts->truncated)
        return true; /* is asked again by TCP; what is in here does not count */
    struct walk w;
    int got;
    uint32_t answer_ttl = TTL_MAX_S, soa = 0;
    walk_begin(&w, wire, len, at);
    while ((got = walk_next(&w)) == 1) {
        if (w.r.section == LDNS_SECTION_ANSWER && usable_ttl(w.r.ttl_s) < answer_ttl)
            answer_ttl = usable_ttl(w.r.ttl_s);
        if (w.r.section == LDNS_SECTION_AUTHORITY && w.r.type == LDNS_RR_TYPE_SOA)
            soa = soa_ttl(&w);
    }
    walk_end(&w);
    bool positive = facts->rcode == ZT_DNS_NOERROR && facts->n_answers > 0;
    if (positive)
        facts->ttl_s = answer_ttl;
    else if (facts->rcode == ZT_DNS_NOERROR || facts->rcode == ZT_DNS_NXDOMAIN)
        facts->ttl_s = soa;
    return got == 0;
}

static void set_header(const struct zt_dns_query *q, uint8_t *out, const unsigned kept[3], bool cut)
{
    ldns_write_uint16(out, q->id);
    LDNS_AA_CLR(out);
    LDNS_AD_CLR(out);
    LDNS_TC_CLR(out);
    LDNS_RA_SET(out);
    if (cut)
        LDNS_TC_SET(out);
    LDNS_RD_CLR(out);
    if (q->rd)
        LDNS_RD_SET(out);
    LDNS_CD_CLR(out);
    if (q->cd)
        LDNS_CD_SET(out);
    memcpy(out + HEADER, q->wire_name, q->name_len);
    for (unsigned s = 0; s < 3; s++)
        ldns_write_uint16(out + 6 + 2 * s, (uint16_t)kept[s]);
}

/* The client's own OPT. Returns the new length. */
static size_t append_opt(const struct zt_dns_query *q, uint8_t *out, size_t len)
{
    memset(out + len, 0, OPT_BYTES);
    ldns_write_uint16(out + len + 1, LDNS_RR_TYPE_OPT);
    ldns_write_uint16(out + len + 3, q->payload);
    if (q->dnssec_ok)
        out[len + 7] = 0x80;
    ldns_write_uint16(out + 10, (uint16_t)(LDNS_ARCOUNT(out) + 1));
    return len + OPT_BYTES;
}

/* Whole records are kept, as many as fit. They are read from the copy: what a name points to is as the client will find it, TTLs that are
 * changed included. An OPT ends the copy: what may stand behind it are additional records. */
size_t zt_dns_reply_forwarded(const struct zt_dns_query *q, const uint8_t *wire, size_t len, uint32_t age_s, bool stale, size_t limit,
                              uint8_t *out)
{
    size_t end = match_question(wire, len, q), room = limit - (q->edns ? OPT_BYTES : 0);
    if (end == 0) { /* an error that came without the question */
        enum zt_dns_rcode rcode = (enum zt_dns_rcode)LDNS_RCODE_WIRE(wire);
        return zt_dns_reply_error(q, rcode, out);
    }
    struct walk w;
    unsigned kept[3] = {0};
    int got;
    size_t have = len < room ? len : room;
    memcpy(out, wire, have);
    walk_begin(&w, out, have, end);
    while ((got = walk_next(&w)) == 1 && w.r.type != LDNS_RR_TYPE_OPT) {
        uint32_t ttl = usable_ttl(w.r.ttl_s);
        ldns_write_uint32(out + w.r.ttl_at, stale ? STALE_TTL_S : ttl > age_s ? ttl - age_s : 0);
        end = w.r.end;
        kept[w.r.section == LDNS_SECTION_ANSWER ? 0 : w.r.section == LDNS_SECTION_AUTHORITY ? 1 : 2]++;
    }
    walk_end(&w);
    set_header(q, out, kept, got < 0 && w.r.section != LDNS_SECTION_ADDITIONAL); /* without those it is whole (RFC 2181 §9) */
    return q->edns ? append_opt(q, out, end) : end;
}

/* Reads the alias that `name` is in the answer section, or NULL. */
static ldns_rdf *find_alias(const uint8_t *wire, size_t len, size_t at, const ldns_rdf *name)
{
    struct walk w;
    ldns_rdf *target = NULL;
    walk_begin(&w, wire, len, at);
    while (!target && walk_next(&w) == 1 && w.r.section == LDNS_SECTION_ANSWER) {
        size_t data = w.r.data_at;
        if (w.r.type == LDNS_RR_TYPE_CNAME && ldns_dname_compare(w.r.owner, name) == 0)
            target = read_name(wire, len, &data);
    }
    walk_end(&w);
    return target;
}

static unsigned collect(const uint8_t *wire, size_t len, size_t at, const ldns_rdf *name, uint16_t type, struct zt_ip *ips,
                        unsigned max)
{
    struct walk w;
    unsigned n = 0;
    size_t bytes = type == ZT_DNS_AAAA ? 16 : 4;
    walk_begin(&w, wire, len, at);
    while (n < max && walk_next(&w) == 1 && w.r.section == LDNS_SECTION_ANSWER)
        if (w.r.type == type && w.r.class == LDNS_RR_CLASS_IN && w.r.end - w.r.data_at == bytes &&
            ldns_dname_compare(w.r.owner, name) == 0)
            ips[n++] = zt_ip_from_bytes(wire + w.r.data_at, bytes);
    walk_end(&w);
    return n;
}

unsigned zt_dns_response_addresses(const uint8_t *wire, size_t len, const struct zt_dns_query *q, struct zt_ip *ips, unsigned max)
{
    size_t at = match_question(wire, len, q);
    ldns_rdf *name = at ? name_of(q) : NULL, *next = NULL;
    for (unsigned i = 0; name && i < ALIASES_MAX && (next = find_alias(wire, len, at, name)); i++) {
        ldns_rdf_deep_free(name);
        name = next;
    }
    unsigned n = name ? collect(wire, len, at, name, q->type, ips, max) : 0;
    ldns_rdf_deep_free(name);
    return n;
}

/* ---- words ---- */

const char *zt_dns_type_name(uint16_t type)
{
    const ldns_rr_descriptor *d = ldns_rr_descript(type);
    return d && d->_type == (ldns_rr_type)type && d->_name && strncmp(d->_name, "TYPE", 4) != 0 ? d->_name : NULL;
}

char *zt_dns_query_name_text(const struct zt_dns_query *q)
{
    ldns_rdf *name = name_of(q);
    char *text = ldns_rdf2str(name), *own = zt_strdup(text ? text : "");
    ldns_rdf_deep_free(name);
    LDNS_FREE(text);
    return own;
}

const char *zt_dns_rcode_name(enum zt_dns_rcode rcode)
{
    const ldns_lookup_table *t = ldns_lookup_by_id(ldns_rcodes, (int)rcode);
    return t ? t->name : "unknown";
}
