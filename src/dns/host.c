/* Names that the daemon asks for itself: the hosts file, then the resolver as its own resolv.conf says - search list by ndots, A and
 * AAAA at once (spec/dataplane §2.6). */
#include "dns_impl.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>

#define HOSTS_MAX 4096 /* names; more are ignored */
#define LINE_MAX_BYTES 1024

struct host_entry {
    char name[ZT_NAME_TEXT_MAX];
    struct zt_ip ip;
};
struct dns_hosts {
    struct host_entry *entries;
    unsigned n, cap;
};

static void add_name(struct dns_hosts *h, const char *name, const struct zt_ip *ip)
{
    if (h->n == HOSTS_MAX)
        return;
    if (h->n == h->cap) {
        h->cap = h->cap ? 2 * h->cap : 16;
        h->entries = zt_realloc(h->entries, h->cap * sizeof *h->entries);
    }
    if (zt_fmt(h->entries[h->n].name, ZT_NAME_TEXT_MAX, "%s", name))
        h->entries[h->n++].ip = *ip;
}

/* The next word of *rest, NUL-terminated in place; "" at the end. */
static char *next_word(char **rest)
{
    char *word = *rest + strspn(*rest, " \t");
    char *end = word + strcspn(word, " \t");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

static void read_line(struct dns_hosts *h, char *line)
{
    struct zt_ip ip;
    char *word;
    line[strcspn(line, "#\r\n")] = '\0';
    if (!zt_ip_parse(next_word(&line), &ip))
        return;
    while (*(word = next_word(&line))) {
        for (char *c = word; *c; c++)
            *c = (char)tolower((unsigned char)*c);
        add_name(h, word, &ip);
    }
}

struct dns_hosts *dns_hosts_read(const char *path)
{
    struct dns_hosts *h = zt_new(struct dns_hosts);
    char line[LINE_MAX_BYTES];
    FILE *f = path ? fopen(path, "re") : NULL;
    while (f && fgets(line, sizeof line, f))
        read_line(h, line);
    if (f)
        fclose(f);
    return h;
}

void dns_hosts_free(struct dns_hosts *h)
{
    zt_free(h->entries);
    zt_free(h);
}

/* ---- choosing ---- */

static const struct zt_ip *pick(const struct zt_ip *ips, unsigned n)
{
    unsigned r = 0;
    if (getrandom(&r, sizeof r, GRND_NONBLOCK) < 0)
        r = 0;
    return n > 0 ? &ips[r % n] : NULL;
}

static void choose(struct zt_dns_host *h, const struct zt_ip *v4, unsigned n4, const struct zt_ip *v6, unsigned n6)
{
    const struct zt_ip *a = pick(v4, n4), *b = pick(v6, n6);
    const struct zt_ip *best = h->wish == ZT_IPV6 ? (b ? b : a) : (a ? a : b);
    h->found = best;
    if (best)
        h->ip = *best;
}

static bool find_in_hosts(struct zt_dns_host *h)
{
    const struct dns_hosts *hosts = h->server->w->dns->hosts;
    bool ipv6 = h->server->w->dns->config.ipv6;
    struct zt_ip ips[2][ZT_DNS_LOOKUP_IPS_MAX];
    unsigned n[2] = {0};
    for (unsigned i = 0; i < hosts->n; i++) {
        const struct host_entry *e = &hosts->entries[i];
        bool v6 = e->ip.family == ZT_IPV6;
        if (strcmp(e->name, h->name) == 0 && n[v6] < ZT_DNS_LOOKUP_IPS_MAX && (ipv6 || !v6))
            ips[v6][n[v6]++] = e->ip;
    }
    choose(h, ips[0], n[0], ips[1], n[1]);
    return h->found;
}

/* ---- asking ---- */

/* The name of a step: as it is first when it has enough dots, last otherwise, the search domains between. False: no more. */
static bool step_name(const struct zt_dns_host *h, unsigned step, char out[static ZT_NAME_TEXT_MAX])
{
    const struct zt_dns_config *c = &h->server->w->dns->config;
    unsigned dots = 0;
    size_t len = strlen(h->name);
    bool whole = len > 0 && h->name[len - 1] == '.';
    for (size_t i = 0; i < len; i++)
        dots += h->name[i] == '.';
    unsigned n_search = whole ? 0 : c->n_search, bare_at = whole || dots >= c->ndots ? 0 : n_search;
    if (step > n_search)
        return false;
    if (step == bare_at)
        return zt_fmt(out, ZT_NAME_TEXT_MAX, "%s", h->name);
    if (!zt_fmt(out, ZT_NAME_TEXT_MAX, "%s.%s", h->name, c->search[bare_at == 0 ? step - 1 : step]))
        out[0] = '\0';
    return true;
}

static void lookups_done(struct zt_dns_host *h);

static void on_a(struct zt_dns_lookup *l)
{
    lookups_done(zt_container_of(l, struct zt_dns_host, a));
}

static void on_aaaa(struct zt_dns_lookup *l)
{
    lookups_done(zt_container_of(l, struct zt_dns_host, aaaa));
}

static bool ask(struct zt_dns_host *h)
{
    char name[ZT_NAME_TEXT_MAX];
    while (step_name(h, h->step++, name)) {
        h->a = (struct zt_dns_lookup){.done = on_a};
        h->aaaa = (struct zt_dns_lookup){.done = on_aaaa};
        h->n_pending = zt_dns_lookup_start(&h->a, h->server, name, ZT_IPV4);
        if (h->server->w->dns->config.ipv6)
            h->n_pending += zt_dns_lookup_start(&h->aaaa, h->server, name, ZT_IPV6);
        if (h->n_pending)
            return true;
    }
    return false;
}

static void lookups_done(struct zt_dns_host *h)
{
    if (--h->n_pending)
        return;
    h->answered |= h->a.answered || h->aaaa.answered;
    choose(h, h->a.ips, h->a.n_ips, h->aaaa.ips, h->aaaa.n_ips);
    if (h->found || !ask(h))
        h->done(h);
}

static void run_done(struct zt_task *t)
{
    struct zt_dns_host *h = zt_container_of(t, struct zt_dns_host, task);
    h->done(h);
}

void zt_dns_host_start(struct zt_dns_host *h, struct zt_dns_server *s, const char *host, enum zt_family wish)
{
    h->server = s;
    h->wish = wish;
    h->found = h->answered = false;
    h->step = h->n_pending = 0;
    bool fits = zt_fmt(h->name, sizeof h->name, "%s", host);
    for (char *c = h->name; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    if (fits && !find_in_hosts(h) && ask(h))
        return;
    h->task.run = run_done;
    zt_loop_soon(s->w->loop, &h->task);
}

void zt_dns_host_cancel(struct zt_dns_host *h)
{
    zt_dns_lookup_cancel(&h->a);
    zt_dns_lookup_cancel(&h->aaaa);
    zt_task_cancel(&h->task);
}
