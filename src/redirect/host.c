/* The node's table of probes. "table X; delete table X; table X {...}" is one transaction, as in nft.c.
 *
 * Just before priority 100: whatever else on the node gives what leaves it another source (masquerading for services, for instance) would
 * otherwise come first, and nat asks one chain only. The sets are of intervals because those are listed in order, so that listings of
 * equal sets are equal. */
#include "zt/redirect/host.h"
#include "redirect_impl.h"
#include "zt/base/mem.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLE "inet ztunneld-host"
#define SCRIPT_MAX (2u << 20)
#define ARGUMENTS_MAX 16384 /* bytes of a process's arguments that are looked at */
#define STATUS_MAX 8192

/* ---- the kubelet ---- */

/* Bytes of /proc/PID/name, NUL-terminated; 0 when it cannot be read. */
static size_t read_of(const char *pid, const char *name, char *buf, size_t cap)
{
    char path[64];
    zt_fmt(path, sizeof path, "/proc/%.20s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, cap - 1);
    if (fd >= 0)
        close(fd);
    buf[n > 0 ? n : 0] = '\0';
    return n > 0 ? (size_t)n : 0;
}

static bool says_kubelet(const char *pid)
{
    char *arguments = zt_zalloc(ARGUMENTS_MAX);
    size_t n = read_of(pid, "cmdline", arguments, ARGUMENTS_MAX);
    for (size_t i = 0; i < n; i++)
        arguments[i] = arguments[i] ? (char)tolower((unsigned char)arguments[i]) : ' ';
    bool yes = strstr(arguments, "kubelet") != NULL;
    zt_free(arguments);
    return yes;
}

/* A process of a container has a second number, in its own PID namespace. */
static bool is_of_the_node(const char *pid)
{
    char status[STATUS_MAX];
    read_of(pid, "status", status, sizeof status);
    const char *numbers = strstr(status, "\nNSpid:\t");
    if (!numbers)
        return false;
    numbers += strlen("\nNSpid:\t");
    return numbers[strcspn(numbers, "\t\n")] == '\n';
}

static bool is_kubelet(const char *pid)
{
    char name[64];
    size_t n = read_of(pid, "comm", name, sizeof name);
    if (n)
        name[strcspn(name, "\n")] = '\0';
    bool k3s = strcmp(name, "k3s") == 0, kubelet = strcmp(name, "kubelet") == 0 || strcmp(name, "kubelite") == 0;
    return (k3s || (kubelet && says_kubelet(pid))) && is_of_the_node(pid); /* anybody may take the name */
}

bool zt_redirect_find_kubelet(uid_t *out)
{
    DIR *proc = opendir("/proc");
    struct stat st;
    bool found = false;
    for (const struct dirent *d; proc && !found && (d = readdir(proc));)
        if (isdigit((unsigned char)d->d_name[0]) && is_kubelet(d->d_name) && fstatat(dirfd(proc), d->d_name, &st, 0) == 0) {
            *out = st.st_uid;
            found = true;
        }
    if (proc)
        closedir(proc);
    return found;
}

/* ---- the table ---- */

static void set_of(struct zt_str *s, const struct zt_redirect_host *h, enum zt_family family, const char *name, const char *type)
{
    char text[ZT_IP_TEXT_MAX];
    unsigned n = 0;
    zt_str_addf(s, "  set %s {\n    type %s\n    flags interval\n", name, type);
    for (unsigned i = 0; i < h->n_ips; i++)
        if (h->ips[i].family == family)
            zt_str_addf(s, "%s %s", n++ ? "," : "    elements = {", zt_ip_format(&h->ips[i], text));
    zt_str_add(s, n ? " }\n  }\n" : "  }\n");
}

static enum zt_err apply(const struct zt_redirect_host *h, uint64_t deadline_ms, struct zt_error *err)
{
    struct zt_str s;
    zt_str_init(&s, SCRIPT_MAX);
    zt_str_add(&s, "table " TABLE "\ndelete table " TABLE "\ntable " TABLE " {\n");
    set_of(&s, h, ZT_IPV4, "pods-v4", "ipv4_addr");
    set_of(&s, h, ZT_IPV6, "pods-v6", "ipv6_addr");
    zt_str_addf(&s,
                "  chain postrouting { type nat hook postrouting priority 99; policy accept;\n"
                "    meta l4proto tcp meta skuid %u ip daddr @pods-v4 snat ip to " PROBE_V4 "\n"
                "    meta l4proto tcp meta skuid %u ip6 daddr @pods-v6 snat ip6 to " PROBE_V6 "\n  }\n}\n",
                (unsigned)h->prober, (unsigned)h->prober);
    enum zt_err e = s.overflow ? zt_error_set(err, ZT_LIMIT, "too many addresses of pods") : zt_nft_run(zt_str_cstr(&s), deadline_ms, err);
    zt_str_fini(&s);
    return e;
}

static enum zt_err list(uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    return zt_nft_list("ztunneld-host", deadline_ms, out, err);
}

static enum zt_err list_wanted(const void *arg, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    enum zt_err e = apply(arg, deadline_ms, err);
    return e == ZT_OK ? list(deadline_ms, out, err) : e;
}

static enum zt_err remove_table(uint64_t deadline_ms, struct zt_error *err)
{
    struct zt_str there;
    zt_str_init(&there, SCRIPT_MAX);
    enum zt_err e = list(deadline_ms, &there, err);
    if (e == ZT_OK && there.len)
        e = zt_nft_run("delete table " TABLE "\n", deadline_ms, err);
    zt_str_fini(&there);
    return e;
}

static void check(const struct zt_redirect_host *h, uint64_t deadline_ms, struct zt_redirect_result *out)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_str there;
    zt_str_init(&there, SCRIPT_MAX);
    enum zt_err e = list(deadline_ms, &there, &err);
    if (e == ZT_OK)
        e = zt_rules_compare(list_wanted, h, zt_str_cstr(&there), "", deadline_ms, out, &err);
    if (e != ZT_OK)
        zt_rules_result(out, e, &err);
    zt_str_fini(&there);
}

static void in_child(const void *arg, enum zt_redirect_verb verb, uint64_t deadline_ms, struct zt_redirect_result *out)
{
    struct zt_error err = ZT_ERROR_INIT;
    if (verb == ZT_REDIRECT_CHECK)
        check(arg, deadline_ms, out);
    else
        zt_rules_result(out, verb == ZT_REDIRECT_APPLY ? apply(arg, deadline_ms, &err) : remove_table(deadline_ms, &err), &err);
}

enum zt_err zt_redirect_host_start(const struct zt_redirect_host *h, enum zt_redirect_verb verb, struct zt_redirect_job **out,
                                   struct zt_error *err)
{
    return zt_job_start(-1, in_child, h, verb, out, err);
}
