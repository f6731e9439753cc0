/* The text of HBONE headers (spec/dataplane §3.4, §4.4, §11). What comes from a peer is bounded by the limits in hbone.h before
 * anything is allocated, and may hold any octet but NUL. */
#include "zt/h2/hbone.h"

#include "zt/base/mem.h"
#include <string.h>
#include <sys/random.h>

/* ---- baggage ---- */

static void add_member(struct zt_str *out, size_t start, const char *key, const char *value)
{
    if (!value || !*value)
        return;
    if (out->len > start)
        zt_str_add_char(out, ',');
    zt_str_addf(out, "%s=%s", key, value);
}

void zt_baggage_format(const struct zt_baggage *b, struct zt_str *out)
{
    size_t start = out->len;
    add_member(out, start, "k8s.cluster.name", b->cluster);
    add_member(out, start, "k8s.namespace.name", b->ns);
    if (b->workload_type && *b->workload_type) {
        char key[64];
        if (zt_fmt(key, sizeof key, "k8s.%s.name", b->workload_type))
            add_member(out, start, key, b->workload_name);
    }
    add_member(out, start, "service.name", b->service_name);
    add_member(out, start, "service.version", b->service_version);
    add_member(out, start, "cloud.region", b->region);
    add_member(out, start, "cloud.availability_zone", b->zone);
}

static void set_member(struct zt_baggage *b, const char *key, const char *value)
{
    static const struct {
        const char *key, *type;
    } workloads[] = {{"k8s.deployment.name", "deployment"},
                     {"k8s.cronjob.name", "cronjob"},
                     {"k8s.job.name", "job"},
                     {"k8s.pod.name", "pod"}};
    if (!*value)
        value = NULL;
    if (strcmp(key, "k8s.cluster.name") == 0)
        b->cluster = value;
    else if (strcmp(key, "k8s.namespace.name") == 0)
        b->ns = value;
    else if (strcmp(key, "service.name") == 0)
        b->service_name = value;
    else if (strcmp(key, "service.version") == 0)
        b->service_version = value;
    else if (strcmp(key, "cloud.region") == 0)
        b->region = value;
    else if (strcmp(key, "cloud.availability_zone") == 0)
        b->zone = value;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++) {
        if (strcmp(key, workloads[i].key) == 0) {
            b->workload_name = value;
            b->workload_type = workloads[i].type;
        }
    }
}

/* "key=value=ignored"; a member without '=' is none. member is cut up in place. */
static void parse_member(struct zt_baggage *b, char *member)
{
    char *value = strchr(member, '=');
    if (!value)
        return;
    *value++ = 0;
    value[strcspn(value, "=")] = 0;
    set_member(b, member, value);
}

/* What a header value may hold to count as text: visible ASCII, space and tab. */
static bool is_text(const char *s)
{
    for (; *s; s++) {
        if ((*s < ' ' && *s != '\t') || *s > '~')
            return false;
    }
    return true;
}

bool zt_baggage_parse(const struct zt_h2_headers *h, struct zt_baggage_parsed *out)
{
    struct zt_str all;
    memset(out, 0, sizeof *out);
    zt_str_init(&all, ZT_BAGGAGE_BYTES_MAX);
    for (unsigned i = 0; i < h->n; i++) {
        if (strcmp(h->list[i].name, "baggage") != 0)
            continue;
        if (!is_text(h->list[i].value)) {
            zt_str_fini(&all);
            return false;
        }
        if (all.len > 0)
            zt_str_add_char(&all, ',');
        zt_str_add(&all, h->list[i].value);
    }
    if (all.overflow) {
        zt_str_fini(&all);
        return false;
    }
    if (all.len == 0) {
        zt_str_fini(&all);
        return true;
    }
    out->store = zt_str_take(&all);
    for (char *member = out->store, *next; member; member = next) {
        next = strchr(member, ',');
        if (next)
            *next++ = 0;
        parse_member(&out->b, member);
    }
    return true;
}

void zt_baggage_parsed_fini(struct zt_baggage_parsed *p)
{
    zt_free(p->store);
    memset(p, 0, sizeof *p);
}

/* ---- forwarded ---- */

void zt_forwarded_format(const struct zt_addr *client, const char *host, struct zt_str *out)
{
    char text[ZT_ADDR_TEXT_MAX];
    zt_str_addf(out, "for=\"%s\"", zt_addr_format(client, text));
    if (host)
        zt_str_addf(out, ";host=%s", host);
}

bool zt_forwarded_parse_host(const char *value, char out[static ZT_HOSTNAME_MAX])
{
    if (!is_text(value))
        return false;
    for (const char *p = value; *p;) {
        p += strspn(p, " \t;");
        size_t len = strcspn(p, ";");
        const char *next = p + len;
        if (len >= 5 && memcmp(p, "host=", 5) == 0) {
            p += 5, len -= 5;
            while (len > 0 && (p[len - 1] == ' ' || p[len - 1] == '\t'))
                len--;
            if (len >= 2 && p[0] == '"' && p[len - 1] == '"')
                p++, len -= 2;
            if (len == 0 || len >= ZT_HOSTNAME_MAX)
                return false;
            memcpy(out, p, len);
            out[len] = 0;
            return true;
        }
        p = next;
    }
    return false;
}

/* ---- traceparent ---- */

static char *put_hex(char *p, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        *p++ = digits[bytes[i] >> 4];
        *p++ = digits[bytes[i] & 15];
    }
    return p;
}

void zt_traceparent_new(char out[static ZT_TRACEPARENT_LEN + 1])
{
    uint8_t id[24]; /* trace, then span */
    ssize_t n = getrandom(id, sizeof id, 0); /* this few bytes are never cut short */
    ZT_ASSERT(n == (ssize_t)sizeof id);
    memcpy(out, "00-", 3);
    char *p = put_hex(out + 3, id, 16);
    *p++ = '-';
    p = put_hex(p, id + 16, 8);
    memcpy(p, "-00", 4);
}
