/* The DNS proxy for people: what a pod gets for a name, the cache, the upstreams. */
#include "ctl/show.h"
#include "ctl/term.h"

static long long number_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void print(FILE *out, const char *before, const json_t *text, const char *after)
{
    const char *s = json_string_value(text);
    fputs(before, out);
    zt_term_print(out, s ? s : "-");
    fputs(after, out);
}

static void show_addresses(const json_t *answer, const char *key, const char *heading, FILE *out)
{
    size_t i;
    const json_t *ip, *list = json_object_get(answer, key);
    fputs(heading, out);
    json_array_foreach(list, i, ip)
        print(out, i ? ", " : "", ip, "");
    fputs(json_array_size(list) ? "\n" : "none\n", out);
}

static void show_answer(const json_t *answer, FILE *out)
{
    size_t i;
    const json_t *step;
    print(out, "source:    ", json_object_get(answer, "source"), "\n");
    print(out, "name:      ", json_object_get(answer, "name"), "\n");
    json_array_foreach(json_object_get(answer, "steps"), i, step)
        print(out, "  tried    ", step, "\n");
    if (!json_is_true(json_object_get(answer, "fromState"))) {
        fputs("answer:    not in the state: forwarded to the upstreams\n\n", out);
        return;
    }
    print(out, "answer:    ", json_object_get(answer, "matched"), "\n");
    if (json_object_get(answer, "alias"))
        print(out, "alias of:  ", json_object_get(answer, "alias"), "\n");
    show_addresses(answer, "a", "A:         ", out);
    show_addresses(answer, "aaaa", "AAAA:      ", out);
    fputc('\n', out);
}

static void show_upstreams(const json_t *list, FILE *out)
{
    static const char *const names[] = {"UPSTREAM", "QUERIES", "FAILURES IN A ROW", "LATENCY"};
    struct zt_term_table t;
    size_t i;
    const json_t *u;
    zt_term_table_init(&t, 4);
    for (int k = 0; k < 4; k++)
        zt_term_table_cell(&t, names[k]);
    json_array_foreach(list, i, u)
    {
        zt_term_table_cell(&t, json_string_value(json_object_get(u, "address")));
        zt_term_table_cellf(&t, "%lld", number_of(u, "queries"));
        zt_term_table_cellf(&t, "%lld", number_of(u, "failuresInARow"));
        zt_term_table_cellf(&t, "%.1f ms", (double)number_of(u, "latencyUs") / 1000.);
    }
    zt_term_table_print(&t, out);
    zt_term_table_fini(&t);
}

void zt_ctl_show_dns(const json_t *dns, FILE *out)
{
    const json_t *cache = json_object_get(dns, "cache");
    if (json_object_get(dns, "answer"))
        show_answer(json_object_get(dns, "answer"), out);
    fprintf(out, "cache:     %lld of %lld answers, %lld of %lld bytes; %lld hits, %lld misses, %lld served stale\n", number_of(cache, "entries"),
            number_of(cache, "entriesMax"), number_of(cache, "bytes"), number_of(cache, "bytesMax"), number_of(cache, "hits"),
            number_of(cache, "misses"), number_of(cache, "staleServed"));
    fprintf(out, "questions: %lld shared another one's answer, %lld were asked again, %lld were refused by a pod's limit\n",
            number_of(dns, "coalesced"), number_of(dns, "askedAgain"), number_of(dns, "limited"));
    fprintf(out, "answers:   %lld ignored (not to our question)\n\n", number_of(dns, "ignoredAnswers"));
    show_upstreams(json_object_get(dns, "upstreams"), out);
}
