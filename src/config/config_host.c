/* What the configuration learns from the host: CPUs (spec/interfaces §2.3), the resolver's file, IPv6 on the loopback interface. */
#include "config/config_impl.h"

#include "zt/base/mem.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- worker threads ------------------------------------------------------------------------------- */

#define THREADS_MAX 1024u /* a larger wish is cut */

/* A plain positive number, fractions and exponents allowed; no hex, no "inf". */
static bool parse_positive(const char *text, size_t len, double *out)
{
    char copy[64];
    if (len == 0 || len >= sizeof copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (strspn(copy, "0123456789.eE+-") != len)
        return false;
    char *end = NULL;
    double value = strtod(copy, &end);
    if (*end || !isfinite(value) || value <= 0)
        return false;
    *out = value;
    return true;
}

static unsigned round_up(double positive)
{
    if (positive >= THREADS_MAX)
        return THREADS_MAX;
    unsigned whole = (unsigned)positive;
    return whole < positive ? whole + 1 : whole;
}

/* "2", "1.5", "500m", rounded up; 0 = unset. */
static bool read_quantity(const struct env *e, const char *name, unsigned *out)
{
    const char *value = zt_env_get(e, name);
    double cpus = 0;
    *out = 0;
    if (!value)
        return true;
    size_t len = strlen(value);
    bool milli = len > 0 && value[len - 1] == 'm';
    if (!parse_positive(value, milli ? len - 1 : len, &cpus))
        return zt_env_fail(e, name, value, "must be a positive CPU quantity");
    *out = round_up(milli ? cpus / 1000 : cpus);
    return true;
}

static bool read_wish(const struct env *e, unsigned cpu_count, unsigned *out)
{
    static const char name[] = "ZTUNNEL_WORKER_THREADS";
    const char *value = zt_env_get(e, name);
    if (!value)
        return true;
    size_t len = strlen(value);
    if (len && value[len - 1] == '%') {
        double percent = 0;
        if (strspn(value, "0123456789.+-eE") != len - 1 || len == 1)
            return zt_env_fail(e, name, value, "invalid percentage: invalid float literal");
        if (!parse_positive(value, len - 1, &percent) || percent > 100)
            return zt_env_fail(e, name, value, "percentage must be between 0 and 100");
        *out = round_up(cpu_count * percent / 100);
        return true;
    }
    uint64_t number = 0;
    const char *reason = zt_number_parse(value, UINT64_MAX, &number);
    if (reason) {
        char text[96];
        zt_fmt(text, sizeof text, "invalid number: %s", reason);
        return zt_env_fail(e, name, value, text);
    }
    *out = number == 0 ? cpu_count : number < THREADS_MAX ? (unsigned)number : THREADS_MAX;
    return true;
}

static unsigned max2(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

bool zt_host_threads(struct zt_config *c, const struct env *e, const struct mesh *m)
{
    unsigned limit = 0, request = 0;
    uint64_t node_limit = 0;
    if (!read_quantity(e, "ZTUNNEL_RESOURCE_CPU_LIMIT", &limit) ||
        !read_quantity(e, "ZTUNNEL_RESOURCE_CPU_REQUEST", &request) ||
        !zt_env_u64(e, "ZTUNNEL_CPU_LIMIT", 0, UINT64_MAX, &node_limit))
        return false;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned cpus = limit ? limit : online > 0 ? (unsigned)online : 1;
    if (!limit && zt_env_get(e, "ZTUNNEL_CPU_LIMIT"))
        cpus = node_limit < THREADS_MAX ? max2((unsigned)node_limit, 1) : THREADS_MAX;
    c->cpu_count = cpus;
    unsigned threads;
    if (m->has_concurrency)
        threads = m->concurrency ? m->concurrency : cpus;
    else if (limit)
        threads = max2(limit, request);
    else
        threads = max2(max2((cpus + 3) / 4, request), 2);
    if (!read_wish(e, cpus, &threads))
        return false;
    c->worker_threads = threads < THREADS_MAX ? max2(threads, 1) : THREADS_MAX;
    return true;
}

/* ---- resolv.conf ---------------------------------------------------------------------------------- */

#define RESOLV_LINE_MAX 2048

/* Cuts the next word off *rest; NULL when there is none. */
static char *next_word(char **rest)
{
    char *word = *rest + strspn(*rest, " \t");
    char *end = word + strcspn(word, " \t");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return *word ? word : NULL;
}

static void clear_search(struct zt_config *c)
{
    for (unsigned i = 0; i < c->n_search_domains; i++)
        zt_free(c->search_domains[i]);
    c->n_search_domains = 0;
}

/* The last search line counts. */
static void read_search(struct zt_config *c, char **rest)
{
    clear_search(c);
    if (!c->search_domains)
        c->search_domains = zt_new_n(char *, ZT_CONFIG_SEARCH_MAX);
    for (char *word; (word = next_word(rest)) && c->n_search_domains < ZT_CONFIG_SEARCH_MAX;)
        c->search_domains[c->n_search_domains++] = zt_strdup(word);
}

static void read_option(const char *word, const char *name, unsigned max, unsigned *out)
{
    uint64_t value = 0;
    size_t n = strlen(name);
    if (strncmp(word, name, n) == 0 && word[n] == ':' && !zt_number_parse(word + n + 1, UINT32_MAX, &value))
        *out = value < max ? (unsigned)value : max;
}

static bool read_nameserver(struct zt_config *c, const char *word)
{
    struct zt_ip ip;
    char text[ZT_IP_TEXT_MAX];
    size_t n = word ? strcspn(word, "%") : 0; /* a zone does not matter to us */
    if (n == 0 || n >= sizeof text)
        return false;
    memcpy(text, word, n);
    text[n] = '\0';
    if (!zt_ip_parse(text, &ip))
        return false;
    if (c->n_nameservers < ZT_CONFIG_NAMESERVERS_MAX)
        c->nameservers[c->n_nameservers++] = ip;
    return true;
}

/* Unknown keywords are ignored, as the C library does. */
static bool read_resolv_line(struct zt_config *c, char *line)
{
    char *rest = line;
    line[strcspn(line, "#;\r\n")] = '\0';
    const char *keyword = next_word(&rest);
    if (!keyword)
        return true;
    if (strcmp(keyword, "nameserver") == 0)
        return read_nameserver(c, next_word(&rest));
    if (strcmp(keyword, "search") == 0) {
        read_search(c, &rest);
    } else if (strcmp(keyword, "domain") == 0) {
        zt_free(c->resolv_domain);
        c->resolv_domain = zt_strdup(next_word(&rest));
    } else if (strcmp(keyword, "options") == 0) {
        for (const char *word; (word = next_word(&rest));) {
            read_option(word, "ndots", 15, &c->resolv_ndots);
            read_option(word, "timeout", 30, &c->resolv_timeout_s);
            read_option(word, "attempts", 5, &c->resolv_attempts);
        }
    }
    return true;
}

enum zt_err zt_host_resolv(struct zt_config *c, const char *path, struct zt_error *err)
{
    char line[RESOLV_LINE_MAX];
    FILE *f = fopen(path, "re");
    if (!f)
        return zt_error_set_errno(err, ZT_IO, errno, "%s", path);
    enum zt_err e = ZT_OK;
    for (unsigned number = 1; e == ZT_OK && fgets(line, sizeof line, f); number++)
        if (!read_resolv_line(c, line))
            e = zt_error_set(err, ZT_INVALID, "%s:%u: a nameserver needs an IP address", path, number);
    if (e == ZT_OK && ferror(f))
        e = zt_error_set_errno(err, ZT_IO, errno, "%s", path);
    fclose(f);
    if (e == ZT_OK && c->n_nameservers == 0)
        e = zt_error_set(err, ZT_INVALID, "%s: no nameserver", path);
    return e;
}

bool zt_host_has_ipv6_loopback(void)
{
    FILE *f = fopen("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "re");
    if (!f)
        return true;
    int c = fgetc(f);
    fclose(f);
    return c != '1';
}

bool zt_is_dns_name(const char *text)
{
    size_t len = strlen(text), label = 0;
    if (len && text[len - 1] == '.')
        len--;
    if (len == 0 || len > 253)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
        if (c == '.' ? label == 0 : !letter || ++label > 63)
            return false;
        if (c == '.')
            label = 0;
    }
    return label > 0;
}
