/* The iptables back end, in both its kinds: chains ZT_PRE and ZT_OUT in raw, mangle and nat, and one jump to each from the
 * built-in chain (spec/inpod §4.8).
 *
 * One iptables-restore per family: chains declared with ":" are emptied and filled again in the commit of their table, so applying
 * twice leaves one copy. The jumps are a second step, because --noflush only appends: they are counted in a listing, and those that are
 * missing are added. A run killed between the two leaves chains that nothing leads to, which the next run completes. */
#include "redirect_impl.h"
#include <string.h>

#define PAYLOAD_MAX 16384
#define JUMPS_MAX 16 /* equal jumps removed in one go */
#define NOT_PROXY "-m mark ! --mark 0x539/0xfff"

/* The programs of one kind. */
struct kind {
    const char *tool[2], *restore[2], *save[2]; /* IPv4, IPv6 */
};
static const struct kind kind_nft = {
    {"iptables-nft", "ip6tables-nft"},
    {"iptables-nft-restore", "ip6tables-nft-restore"},
    {"iptables-nft-save", "ip6tables-nft-save"},
};
static const struct kind kind_legacy = {
    {"iptables-legacy", "ip6tables-legacy"},
    {"iptables-legacy-restore", "ip6tables-legacy-restore"},
    {"iptables-legacy-save", "ip6tables-legacy-save"},
};
struct family {
    const char *loopback, *probe;
};
static const struct family families[2] = {{"127.0.0.1/32", PROBE_V4 "/32"}, {"::1/128", PROBE_V6 "/128"}};
static const char *const tables[] = {"raw", "mangle", "nat"};
static const char *const hooks[] = {"PREROUTING", "OUTPUT"};
static const char *const chains[] = {"ZT_PRE", "ZT_OUT"};
#define N_TABLES 3

static const char chain_heads[] = ":ZT_PRE - [0:0]\n:ZT_OUT - [0:0]\n";

static void raw_table(struct zt_str *s, const struct zt_redirect_plan *p)
{
    zt_str_addf(s, "*raw\n%s", chain_heads);
    if (p->dns_capture)
        zt_str_addf(s,
                    "-A ZT_OUT -p udp -m udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone %d\n"
                    "-A ZT_PRE -p udp -m udp --sport 53 " NOT_PROXY " -j CT --zone %d\n",
                    DNS_ZONE, DNS_ZONE);
    zt_str_add(s, "COMMIT\n");
}

static void mangle_table(struct zt_str *s)
{
    zt_str_addf(s,
                "*mangle\n%s"
                "-A ZT_PRE -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n"
                "-A ZT_OUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n"
                "COMMIT\n",
                chain_heads);
}

static void nat_table(struct zt_str *s, const struct zt_redirect_plan *p, const struct family *f)
{
    zt_str_addf(s, "*nat\n%s", chain_heads);
    if (p->keep_established)
        zt_str_add(s, "-A ZT_PRE -p tcp -m tcp ! --syn -j ACCEPT\n-A ZT_OUT -p tcp -m tcp ! --syn -j ACCEPT\n");
    for (unsigned i = 0; i < p->n_interfaces; i++)
        zt_str_addf(s, "-A ZT_PRE -i %s -p tcp -j REDIRECT --to-ports %d\n", p->interfaces[i], PORT_OUTBOUND);
    if (!p->ingress_mode)
        zt_str_addf(s,
                    "-A ZT_PRE -s %s -p tcp -j ACCEPT\n"
                    "-A ZT_PRE ! -d %s -p tcp -m tcp ! --dport %d " NOT_PROXY " -j REDIRECT --to-ports %d\n",
                    f->probe, f->loopback, PORT_HBONE, PORT_INBOUND_PLAIN);
    zt_str_addf(s, "-A ZT_OUT -d %s -p tcp -j ACCEPT\n", f->probe);
    if (p->dns_capture)
        zt_str_addf(s,
                    "-A ZT_OUT ! -o lo -p udp -m udp --dport 53 " NOT_PROXY " -j REDIRECT --to-ports %d\n"
                    "-A ZT_OUT ! -d %s -p tcp -m tcp --dport 53 " NOT_PROXY " -j REDIRECT --to-ports %d\n",
                    PORT_DNS, f->loopback, PORT_DNS);
    zt_str_addf(s,
                "-A ZT_OUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n"
                "-A ZT_OUT ! -d %s -o lo -j ACCEPT\n"
                "-A ZT_OUT ! -d %s -p tcp " NOT_PROXY " -j REDIRECT --to-ports %d\n"
                "COMMIT\n",
                f->loopback, f->loopback, PORT_OUTBOUND);
}

/* Without DNS capture there is no raw table of ours. */
static unsigned first_table(const struct zt_redirect_plan *p)
{
    return p->dns_capture ? 0 : 1;
}

/* iptables -t T -C|-A|-D HOOK -j CHAIN, or -F|-X CHAIN. ZT_INVALID: it said no. */
static enum zt_err tool(const char *program, const char *table, const char *verb, const char *hook, const char *chain,
                        uint64_t deadline_ms, struct zt_error *err)
{
    const char *const with_hook[] = {program, "-w", "5", "-t", table, verb, hook, "-j", chain, NULL};
    const char *const without[] = {program, "-w", "5", "-t", table, verb, chain, NULL};
    struct program p = {.argv = hook ? with_hook : without, .deadline_ms = deadline_ms};
    return zt_program_run(&p, NULL, err);
}

/* The lines of a listing that speak of our chains, with their table; packet counters left out. */
static void keep_ours(const char *listing, const char *program, struct zt_str *out)
{
    const char *table = "?";
    size_t table_len = 1;
    while (*listing) {
        size_t n = strcspn(listing, "\n");
        char line[512];
        zt_fmt(line, sizeof line, "%.*s", (int)(n < sizeof line - 1 ? n : sizeof line - 1), listing);
        if (line[0] == '*') {
            table = listing + 1;
            table_len = n - 1;
        } else if (strstr(line, "ZT_PRE") || strstr(line, "ZT_OUT")) {
            char *counters = strstr(line, " [");
            if (line[0] == ':' && counters)
                *counters = '\0';
            zt_str_addf(out, "%s: %.*s: %s\n", program, (int)table_len, table, line);
        }
        listing += n + (listing[n] == '\n');
    }
}

static enum zt_err dump_family(const struct kind *k, int family, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    const char *const argv[] = {k->save[family], NULL};
    struct zt_str s;
    zt_str_init(&s, DUMP_MAX);
    struct program p = {.argv = argv, .output = &s, .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    if (e == ZT_OK)
        keep_ours(zt_str_cstr(&s), k->tool[family], out);
    zt_str_fini(&s);
    return e == ZT_INVALID ? ZT_IO : e;
}

static enum zt_err dump(const struct kind *k, const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_str *out,
                        struct zt_error *err)
{
    enum zt_err e = ZT_OK;
    for (int i = 0; i < (plan->ipv6 ? 2 : 1) && e == ZT_OK; i++)
        e = dump_family(k, i, deadline_ms, out, err);
    return e;
}

static enum zt_err remove_table(const char *program, const char *table, uint64_t deadline_ms, struct zt_error *err)
{
    for (int h = 0; h < 2; h++) {
        enum zt_err e = ZT_OK;
        for (int i = 0; i < JUMPS_MAX && e == ZT_OK; i++)
            e = tool(program, table, "-D", hooks[h], chains[h], deadline_ms, err);
        /* ZT_INVALID is "no such jump" and "no such chain": what could not be removed shows in the listing afterwards */
        if (e == ZT_INVALID)
            e = tool(program, table, "-F", NULL, chains[h], deadline_ms, err);
        if (e == ZT_OK || e == ZT_INVALID)
            e = tool(program, table, "-X", NULL, chains[h], deadline_ms, err);
        if (e != ZT_OK && e != ZT_INVALID)
            return e;
    }
    return ZT_OK;
}

/* How many lines of a listing (as keep_ours makes it) are that jump. */
static unsigned count_jumps(const char *listing, const char *program, const char *table, const char *hook, const char *chain)
{
    char line[128];
    unsigned n = 0;
    zt_fmt(line, sizeof line, "%s: %s: -A %s -j %s\n", program, table, hook, chain);
    for (const char *at = listing; (at = strstr(at, line)); at += strlen(line))
        n++;
    return n;
}

/* One jump from each built-in chain, whatever number a killed run or somebody else left. */
static enum zt_err settle_jumps(const struct zt_redirect_plan *plan, const char *program, const char *listing, uint64_t deadline_ms,
                                struct zt_error *err)
{
    for (unsigned t = first_table(plan); t < N_TABLES; t++) {
        for (int h = 0; h < 2; h++) {
            unsigned n = count_jumps(listing, program, tables[t], hooks[h], chains[h]);
            enum zt_err e = n ? ZT_OK : tool(program, tables[t], "-A", hooks[h], chains[h], deadline_ms, err);
            for (; n > 1 && e == ZT_OK; n--)
                e = tool(program, tables[t], "-D", hooks[h], chains[h], deadline_ms, err);
            if (e != ZT_OK)
                return e == ZT_INVALID ? ZT_IO : e;
        }
    }
    return ZT_OK;
}

static enum zt_err apply_family(const struct kind *k, const struct zt_redirect_plan *plan, int family, uint64_t deadline_ms,
                                struct zt_error *err)
{
    const char *const argv[] = {k->restore[family], "--noflush", NULL};
    struct zt_str s;
    zt_str_init(&s, PAYLOAD_MAX);
    if (plan->dns_capture)
        raw_table(&s, plan);
    mangle_table(&s);
    nat_table(&s, plan, &families[family]);
    ZT_ASSERT(!s.overflow);
    struct program p = {.argv = argv, .input = zt_str_cstr(&s), .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    zt_str_fini(&s);
    if (e != ZT_OK)
        return e == ZT_INVALID ? ZT_IO : e;
    zt_str_init(&s, DUMP_MAX);
    e = dump_family(k, family, deadline_ms, &s, err);
    if (e == ZT_OK)
        e = settle_jumps(plan, k->tool[family], zt_str_cstr(&s), deadline_ms, err);
    if (e == ZT_OK && !plan->dns_capture && strstr(zt_str_cstr(&s), ": raw: "))
        e = remove_table(k->tool[family], "raw", deadline_ms, err);
    zt_str_fini(&s);
    return e;
}

static enum zt_err apply(const struct kind *k, const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err)
{
    enum zt_err e = ZT_OK;
    for (int i = 0; i < (plan->ipv6 ? 2 : 1) && e == ZT_OK; i++)
        e = apply_family(k, plan, i, deadline_ms, err);
    return e;
}

static enum zt_err remove_all(const struct kind *k, const struct zt_redirect_plan *plan, uint64_t deadline_ms,
                              struct zt_error *err)
{
    struct zt_str left;
    enum zt_err e = ZT_OK;
    for (int i = 0; i < (plan->ipv6 ? 2 : 1); i++)
        for (int t = 0; t < N_TABLES && e == ZT_OK; t++)
            e = remove_table(k->tool[i], tables[t], deadline_ms, err);
    if (e != ZT_OK)
        return e;
    zt_str_init(&left, DUMP_MAX);
    e = dump(k, plan, deadline_ms, &left, err);
    if (e == ZT_OK && left.len)
        e = zt_error_set(err, ZT_IO, "could not be removed: %s", zt_str_cstr(&left));
    zt_str_fini(&left);
    return e;
}

static enum zt_err nft_apply(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_error *err)
{
    return apply(&kind_nft, p, deadline_ms, err);
}
static enum zt_err nft_dump(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    return dump(&kind_nft, p, deadline_ms, out, err);
}
static enum zt_err nft_remove(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_error *err)
{
    return remove_all(&kind_nft, p, deadline_ms, err);
}
static enum zt_err legacy_apply(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_error *err)
{
    return apply(&kind_legacy, p, deadline_ms, err);
}
static enum zt_err legacy_dump(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    return dump(&kind_legacy, p, deadline_ms, out, err);
}
static enum zt_err legacy_remove(const struct zt_redirect_plan *p, uint64_t deadline_ms, struct zt_error *err)
{
    return remove_all(&kind_legacy, p, deadline_ms, err);
}

const struct backend zt_backend_iptables_nft = {"iptables-nft", nft_apply, nft_dump, nft_remove};
const struct backend zt_backend_iptables_legacy = {"iptables-legacy", legacy_apply, legacy_dump, legacy_remove};
