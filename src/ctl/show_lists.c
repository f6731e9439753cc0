/* Lists for people: connections, top, policies, certificates, denials, traces. */
#include "ctl/show.h"
#include "ctl/term.h"
#include <stdbool.h>
#include <string.h>
#include <time.h>

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static long long number_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void heading(struct zt_term_table *t, const char *const *names, unsigned n)
{
    zt_term_table_init(t, n);
    for (unsigned i = 0; i < n; i++)
        zt_term_table_cell(t, names[i]);
}

static void print_table(struct zt_term_table *t, FILE *out)
{
    zt_term_table_print(t, out);
    zt_term_table_fini(t);
}

static void pod_cell(struct zt_term_table *t, const json_t *row)
{
    const char *ns = text_of(row, "namespace"), *name = text_of(row, "name");
    zt_term_table_cellf(t, "%s/%s", ns ? ns : "-", name ? name : "-");
}

/* 999 B, 1.2 KiB, 3.4 MiB, ... */
static void bytes_cell(struct zt_term_table *t, long long bytes, const char *suffix)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int unit = -1;
    for (; v >= 1024. && unit < 3; unit++)
        v /= 1024.;
    if (unit < 0)
        zt_term_table_cellf(t, "%lld B%s", bytes, suffix);
    else
        zt_term_table_cellf(t, "%.1f %s%s", v, units[unit], suffix);
}

static void seconds_cell(struct zt_term_table *t, long long s)
{
    if (s < 0)
        zt_term_table_cell(t, "expired");
    else if (s >= 86400)
        zt_term_table_cellf(t, "%lldd%lldh", s / 86400, s % 86400 / 3600);
    else if (s >= 3600)
        zt_term_table_cellf(t, "%lldh%lldm", s / 3600, s % 3600 / 60);
    else
        zt_term_table_cellf(t, "%lldm%llds", s / 60, s % 60);
}

/* ---- connections ---- */

/* Who the far end is, and where. */
static void peer_cells(struct zt_term_table *t, const json_t *c)
{
    const char *direction = text_of(c, "direction");
    bool inbound = direction && strcmp(direction, "inbound") == 0;
    zt_term_table_cell(t, inbound ? "in" : "out");
    zt_term_table_cell(t, text_of(c, inbound ? "src" : "originalDst"));
    zt_term_table_cell(t, text_of(c, "actualDst"));
    zt_term_table_cell(t, text_of(c, "protocol"));
    zt_term_table_cell(t, text_of(c, "peerIdentity"));
}

static void show_rest(const json_t *answer, FILE *out)
{
    long long total = number_of(answer, "total"), shown = (long long)json_array_size(json_object_get(answer, "connections"));
    if (total > shown)
        fprintf(out, "(%lld more; see --limit)\n", total - shown);
}

void zt_ctl_show_connections(const json_t *answer, FILE *out)
{
    static const char *const names[] = {"POD", "DIR", "PEER", "NEXT HOP", "PROTOCOL", "PEER IDENTITY", "FROM CLIENT", "TO CLIENT", "AGE"};
    const json_t *c, *list = json_object_get(answer, "connections");
    struct zt_term_table t;
    size_t i;
    if (json_array_size(list) == 0) {
        fputs("no connections\n", out);
        return;
    }
    heading(&t, names, 9);
    json_array_foreach(list, i, c)
    {
        pod_cell(&t, c);
        peer_cells(&t, c);
        bytes_cell(&t, number_of(c, "bytesFromClient"), "");
        bytes_cell(&t, number_of(c, "bytesToClient"), "");
        seconds_cell(&t, number_of(c, "ageMs") / 1000);
    }
    print_table(&t, out);
    show_rest(answer, out);
}

#define TOP_ROWS 40

void zt_ctl_show_top(const json_t *answer, FILE *out)
{
    static const char *const names[] = {"POD", "DIR", "PEER", "NEXT HOP", "PROTOCOL", "PEER IDENTITY", "RATE", "TOTAL"};
    const json_t *c, *list = json_object_get(answer, "connections");
    const json_t *best[TOP_ROWS] = {0};
    struct zt_term_table t;
    size_t i;
    json_array_foreach(list, i, c)
    {
        const json_t *at = c;
        for (unsigned k = 0; k < TOP_ROWS && at; k++) {
            if (best[k] && number_of(best[k], "bytesPerSecond") >= number_of(at, "bytesPerSecond"))
                continue;
            const json_t *down = best[k];
            best[k] = at;
            at = down;
        }
    }
    fprintf(out, "%lld connections\n", number_of(answer, "total"));
    heading(&t, names, 8);
    for (i = 0; i < TOP_ROWS && best[i]; i++) {
        pod_cell(&t, best[i]);
        peer_cells(&t, best[i]);
        bytes_cell(&t, number_of(best[i], "bytesPerSecond"), "/s");
        bytes_cell(&t, number_of(best[i], "bytesFromClient") + number_of(best[i], "bytesToClient"), "");
    }
    print_table(&t, out);
}

/* ---- policies ---- */

void zt_ctl_show_policies(const json_t *policies, FILE *out)
{
    static const char *const names[] = {"POLICY", "ACTION", "SCOPE", "RULES", "DRY RUN"};
    struct zt_term_table t;
    size_t i;
    const json_t *p;
    if (json_array_size(policies) == 0) {
        fputs("no policies\n", out);
        return;
    }
    heading(&t, names, 5);
    json_array_foreach(policies, i, p)
    {
        pod_cell(&t, p);
        zt_term_table_cell(&t, text_of(p, "action"));
        zt_term_table_cell(&t, text_of(p, "scope"));
        zt_term_table_cellf(&t, "%zu", json_array_size(json_object_get(p, "rules")));
        zt_term_table_cell(&t, json_is_true(json_object_get(p, "dryRun")) ? "yes" : "no");
    }
    print_table(&t, out);
}

/* ---- certificates ---- */

static void left_cell(struct zt_term_table *t, const char *time_text)
{
    struct tm tm = {0};
    if (time_text && strptime(time_text, "%Y-%m-%dT%H:%M:%SZ", &tm))
        seconds_cell(t, (long long)(timegm(&tm) - time(NULL)));
    else
        zt_term_table_cell(t, NULL);
}

void zt_ctl_show_certificates(const json_t *certificates, FILE *out)
{
    static const char *const names[] = {"CERTIFICATE OF", "VALID UNTIL", "LEFT", "STATE"};
    struct zt_term_table t;
    size_t i;
    const json_t *c;
    if (json_array_size(certificates) == 0) {
        fputs("no certificates\n", out);
        return;
    }
    heading(&t, names, 4);
    json_array_foreach(certificates, i, c)
    {
        zt_term_table_cell(&t, text_of(c, "identity"));
        zt_term_table_cell(&t, text_of(c, "expirationTime"));
        left_cell(&t, text_of(c, "expirationTime"));
        zt_term_table_cell(&t, text_of(c, "state"));
    }
    print_table(&t, out);
}

/* ---- denials ---- */

static void print_pair(FILE *out, const char *before, const char *text)
{
    fputs(before, out);
    zt_term_print(out, text);
}

/* "policy ns/name (Allow) comes closest: rule 1, clause 2, principals" */
static void show_why(const json_t *d, FILE *out)
{
    const char *action = text_of(d, "policyAction");
    if (!text_of(d, "policy"))
        return;
    bool denies = action && strcmp(action, "Deny") == 0;
    print_pair(out, denies ? "    policy " : "    the closest policy is ", text_of(d, "policy"));
    fprintf(out, denies ? " denies, by rule %lld" : ": rule %lld", number_of(d, "rule"));
    if (json_object_get(d, "clause"))
        fprintf(out, ", clause %lld", number_of(d, "clause"));
    if (text_of(d, "field"))
        print_pair(out, ", field ", text_of(d, "field"));
    fputc('\n', out);
}

void zt_ctl_show_denials(const json_t *denials, FILE *out)
{
    size_t i;
    const json_t *d;
    if (json_array_size(denials) == 0)
        fputs("no denials since the daemon started\n", out);
    json_array_foreach(denials, i, d)
    {
        print_pair(out, "", text_of(d, "time"));
        print_pair(out, "  ", text_of(d, "pod"));
        print_pair(out, ": ", text_of(d, "src"));
        if (text_of(d, "identity"))
            print_pair(out, " as ", text_of(d, "identity"));
        print_pair(out, " to ", text_of(d, "dst"));
        print_pair(out, "\n    ", text_of(d, "reason"));
        fputc('\n', out);
        show_why(d, out);
    }
}

/* ---- traces ---- */

void zt_ctl_show_event(const json_t *event, FILE *out)
{
    unsigned long long id = (unsigned long long)json_integer_value(json_object_get(event, "connection"));
    print_pair(out, "", text_of(event, "time"));
    fprintf(out, "  #%llu.%llu  ", id >> 56, id & 0xffffffffffffffULL); /* worker and number */
    print_pair(out, "", text_of(event, "event"));
    fputc('\n', out);
}

void zt_ctl_show_trace(const json_t *trace, FILE *out)
{
    size_t i;
    const json_t *event, *events = json_object_get(trace, "events");
    json_array_foreach(events, i, event)
        zt_ctl_show_event(event, out);
    if (number_of(trace, "lost"))
        fprintf(out, "(%lld older events have made room)\n", number_of(trace, "lost"));
    if (json_array_size(events) == 0)
        fputs("nothing recorded yet\n", out);
}
