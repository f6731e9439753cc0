/* The native nftables back end: one table of our own, replaced whole in one transaction (spec/inpod §4.8).
 *
 * "table X; delete table X; table X {...}" in one input of nft is one transaction: the kernel shows either the old rules
 * or the new ones, and a run killed at any moment has done all or nothing. The order of the rules within nat_pre and nat_out carries meaning. */
#include "redirect_impl.h"
#include <string.h>

#define TABLE "inet ztunneld"
#define SCRIPT_MAX 16384
#define NOT_SYN "  tcp flags & (fin|syn|rst|ack) != syn accept\n"
#define NOT_PROXY "meta mark and 0xfff != 0x539"

static void raw_chains(struct zt_str *s)
{
    zt_str_addf(s,
                "chain raw_pre { type filter hook prerouting priority -300; policy accept;\n"
                "  udp sport 53 " NOT_PROXY " ct zone set %d\n}\n"
                "chain raw_out { type filter hook output priority -300; policy accept;\n"
                "  udp dport 53 meta mark and 0xfff == 0x539 ct zone set %d\n}\n",
                DNS_ZONE, DNS_ZONE);
}

/* What the proxy sends through lo marks its connection; replies of such a connection are marked again and so re-routed to
 * lo. The output chain must be of type route, or the changed mark re-routes nothing. */
static void mangle_chains(struct zt_str *s)
{
    zt_str_add(s, "chain mangle_pre { type filter hook prerouting priority -150; policy accept;\n"
                  "  meta mark and 0xfff == 0x539 ct mark set ct mark and 0xfffff000 or 0x111\n}\n"
                  "chain mangle_out { type route hook output priority -150; policy accept;\n"
                  "  ct mark and 0xfff == 0x111 meta mark set ct mark\n}\n");
}

/* One rule for each family wanted: head, then the match with that family's address, then tail. */
static void per_family(struct zt_str *s, bool ipv6, const char *head, const char *match, const char *v4, const char *v6,
                       const char *tail)
{
    zt_str_addf(s, "  %s ip %s %s %s\n", head, match, v4, tail);
    if (ipv6)
        zt_str_addf(s, "  %s ip6 %s %s %s\n", head, match, v6, tail);
}

static void nat_pre(struct zt_str *s, const struct zt_redirect_plan *p)
{
    char tail[128];
    zt_str_add(s, "chain nat_pre { type nat hook prerouting priority -100; policy accept;\n");
    if (p->keep_established)
        zt_str_add(s, NOT_SYN);
    for (unsigned i = 0; i < p->n_interfaces; i++)
        zt_str_addf(s, "  iifname \"%s\" meta l4proto tcp redirect to :%d\n", p->interfaces[i], PORT_OUTBOUND);
    if (!p->ingress_mode) {
        per_family(s, p->ipv6, "meta l4proto tcp", "saddr", PROBE_V4, PROBE_V6, "accept");
        zt_fmt(tail, sizeof tail, "tcp dport != %d " NOT_PROXY " redirect to :%d", PORT_HBONE, PORT_INBOUND_PLAIN);
        per_family(s, p->ipv6, "", "daddr !=", "127.0.0.1", "::1", tail);
    }
    zt_str_add(s, "}\n");
}

static void nat_out(struct zt_str *s, const struct zt_redirect_plan *p)
{
    char tail[128];
    zt_str_add(s, "chain nat_out { type nat hook output priority -100; policy accept;\n");
    if (p->keep_established)
        zt_str_add(s, NOT_SYN);
    per_family(s, p->ipv6, "meta l4proto tcp", "daddr", PROBE_V4, PROBE_V6, "accept");
    if (p->dns_capture) {
        zt_str_addf(s, "  oifname != \"lo\" " NOT_PROXY " udp dport 53 redirect to :%d\n", PORT_DNS);
        zt_fmt(tail, sizeof tail, "tcp dport 53 " NOT_PROXY " redirect to :%d", PORT_DNS);
        per_family(s, p->ipv6, "", "daddr !=", "127.0.0.1", "::1", tail);
    }
    zt_str_add(s, "  meta l4proto tcp meta mark and 0xfff == 0x111 accept\n");
    per_family(s, p->ipv6, "oifname \"lo\"", "daddr !=", "127.0.0.1", "::1", "accept");
    zt_fmt(tail, sizeof tail, NOT_PROXY " redirect to :%d", PORT_OUTBOUND);
    per_family(s, p->ipv6, "meta l4proto tcp", "daddr !=", "127.0.0.1", "::1", tail);
    zt_str_add(s, "}\n");
}

enum zt_err zt_nft_run(const char *script, uint64_t deadline_ms, struct zt_error *err)
{
    static const char *const argv[] = {"nft", "-f", "-", NULL};
    struct program p = {.argv = argv, .input = script, .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    return e == ZT_INVALID ? ZT_IO : e;
}

static enum zt_err nft_apply(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err)
{
    struct zt_str s;
    zt_str_init(&s, SCRIPT_MAX);
    zt_str_add(&s, "table " TABLE "\ndelete table " TABLE "\ntable " TABLE " {\n");
    if (plan->dns_capture)
        raw_chains(&s);
    mangle_chains(&s);
    nat_pre(&s, plan);
    nat_out(&s, plan);
    zt_str_add(&s, "}\n");
    ZT_ASSERT(!s.overflow);
    enum zt_err e = zt_nft_run(zt_str_cstr(&s), deadline_ms, err);
    zt_str_fini(&s);
    return e;
}

/* nft list fails alike for "no such table" and for anything else, so absence is looked up first. */
static enum zt_err table_is_there(const char *table, uint64_t deadline_ms, bool *there, struct zt_error *err)
{
    static const char *const argv[] = {"nft", "list", "tables", NULL};
    char wanted[64];
    struct zt_str s;
    zt_str_init(&s, DUMP_MAX);
    zt_str_add(&s, "\n");
    struct program p = {.argv = argv, .output = &s, .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    zt_fmt(wanted, sizeof wanted, "\ntable inet %s\n", table);
    *there = e == ZT_OK && strstr(zt_str_cstr(&s), wanted);
    zt_str_fini(&s);
    return e == ZT_INVALID ? ZT_IO : e;
}

enum zt_err zt_nft_list(const char *table, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    const char *const argv[] = {"nft", "-s", "-n", "list", "table", "inet", table, NULL};
    struct program p = {.argv = argv, .output = out, .deadline_ms = deadline_ms};
    bool there;
    enum zt_err e = table_is_there(table, deadline_ms, &there, err);
    if (e == ZT_OK && there)
        e = zt_program_run(&p, NULL, err);
    return e == ZT_INVALID ? ZT_IO : e;
}

static enum zt_err nft_dump(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    return zt_nft_list("ztunneld", deadline_ms, out, err);
}

static enum zt_err nft_remove(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err)
{
    /* adding first makes absence no error */
    return zt_nft_run("table " TABLE "\ndelete table " TABLE "\n", deadline_ms, err);
}

const struct backend zt_backend_nft = {"nft", nft_apply, nft_dump, nft_remove};
