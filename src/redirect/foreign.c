/* Whose rules are in this namespace? Ours by any back end, so that what a run with another back end left is found; istio-cni's above
 * all. Its marks are chains named ISTIO_* (iptables, both kinds) and nftables tables named
 * istio-ambient-* (spec/inpod §4.5, §4.6). Where they are, two sets of rules would stack and neither side's cleanup would know of
 * the other's, so nothing is programmed.
 *
 * Doubt counts as yes: legacy iptables tables that cannot be listed refuse the namespace. */
#include "redirect_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define WORD_MAX 64 /* bytes of the offending name that go into the message */

/* The first word of text that starts with prefix, right after `before`. */
static bool find_name(const char *text, const char *before, const char *prefix, char word[static WORD_MAX])
{
    char needle[WORD_MAX];
    zt_fmt(needle, sizeof needle, "%s%s", before, prefix);
    const char *at = strstr(text, needle);
    if (!at)
        return false;
    at += strlen(before);
    size_t n = strcspn(at, " \t\n{");
    zt_fmt(word, WORD_MAX, "%.*s", (int)(n < WORD_MAX - 1 ? n : WORD_MAX - 1), at);
    return true;
}

static enum zt_err found(struct zt_error *err, const char *kind, const char *word)
{
    return zt_error_set(err, ZT_EXISTS,
                        "%s %s is there: istio-cni manages this namespace, nothing was programmed; remove the pod from "
                        "istio-cni first (label istio.io/dataplane-mode=none)",
                        kind, word);
}

/* iptables-nft keeps its chains in nftables, so this sees them too. */
static enum zt_err probe_nft(uint64_t deadline_ms, bool ours[static N_BACKENDS], struct zt_error *err)
{
    static const char *const argv[] = {"nft", "list", "chains", NULL};
    struct zt_str s;
    char word[WORD_MAX];
    zt_str_init(&s, DUMP_MAX);
    struct program p = {.argv = argv, .output = &s, .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    if (e == ZT_INVALID)
        e = ZT_IO;
    const char *text = zt_str_cstr(&s);
    if (e == ZT_OK && find_name(text, "chain ", "ISTIO_", word))
        e = found(err, "chain", word);
    else if (e == ZT_OK && find_name(text, "table inet ", "istio-ambient-", word))
        e = found(err, "nftables table", word);
    ours[ZT_REDIRECT_NFT] = find_name(text, "table inet ", "ztunneld", word);
    ours[ZT_REDIRECT_IPTABLES_NFT] = find_name(text, "chain ", "ZT_", word);
    zt_str_fini(&s);
    return e;
}

/* Are there legacy tables of that family in this namespace? The file exists only where the module is loaded. */
static bool legacy_tables(const char *names_path)
{
    char c;
    int fd = open(names_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno != ENOENT;
    bool any = read(fd, &c, 1) != 0;
    close(fd);
    return any;
}

static enum zt_err probe_legacy(const char *names_path, const char *save, uint64_t deadline_ms, bool *ours, struct zt_error *err)
{
    const char *const argv[] = {save, NULL};
    struct zt_str s;
    char word[WORD_MAX];
    if (!legacy_tables(names_path))
        return ZT_OK;
    zt_str_init(&s, DUMP_MAX);
    struct program p = {.argv = argv, .output = &s, .deadline_ms = deadline_ms};
    enum zt_err e = zt_program_run(&p, NULL, err);
    if (e == ZT_INVALID)
        e = ZT_IO;
    if (e == ZT_NOT_FOUND)
        e = zt_error_set(err, ZT_EXISTS,
                         "legacy iptables tables are there and %s is not installed: cannot tell whether they are istio-cni's", save);
    else if (e == ZT_OK && find_name(zt_str_cstr(&s), ":", "ISTIO_", word))
        e = found(err, "chain", word);
    *ours |= find_name(zt_str_cstr(&s), ":", "ZT_", word);
    zt_str_fini(&s);
    return e;
}

enum zt_err zt_rules_probe(uint64_t deadline_ms, bool ours[static N_BACKENDS], struct zt_error *err)
{
    bool *legacy = &ours[ZT_REDIRECT_IPTABLES_LEGACY];
    *legacy = false;
    /* self, not thread-self: this process has one thread, and it entered the namespace */
    enum zt_err e = probe_nft(deadline_ms, ours, err);
    if (e == ZT_OK)
        e = probe_legacy("/proc/self/net/ip_tables_names", "iptables-legacy-save", deadline_ms, legacy, err);
    if (e == ZT_OK)
        e = probe_legacy("/proc/self/net/ip6_tables_names", "ip6tables-legacy-save", deadline_ms, legacy, err);
    return e;
}
