/* The OpenMetrics text (spec/interfaces §6.1). Label values are escaped and made valid UTF-8: one
 * bad byte from a peer would make the scraper refuse the whole document. */
#include "metrics_impl.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_label_value(struct zt_str *out, const char *value)
{
    size_t len = strlen(value);
    for (size_t at = 0, used; at < len; at += used) {
        uint32_t code;
        used = zt_utf8_next(value + at, len - at, &code);
        if (used == 0) {
            used = 1;
            zt_str_add(out, "\xef\xbf\xbd"); /* U+FFFD */
        } else if (code == '\n') {
            zt_str_add(out, "\\n");
        } else if (code == '\\' || code == '"') {
            zt_str_add_char(out, '\\');
            zt_str_add_char(out, (char)code);
        } else {
            zt_str_add_n(out, value + at, used);
        }
    }
}

/* The shortest text that reads back as the same number, with at least one decimal. */
static void add_float(struct zt_str *out, double d)
{
    if (isnan(d) || isinf(d)) {
        zt_str_add(out, isnan(d) ? "NaN" : d > 0 ? "+Inf" : "-Inf");
        return;
    }
    char buf[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, d);
        if (strtod(buf, NULL) == d) /* NOLINT: equality is the point */
            break;
    }
    zt_str_add(out, buf);
    if (!strpbrk(buf, ".e"))
        zt_str_add(out, ".0");
}

/* name + suffix + {labels}, with le first when it is given. Ends with a blank. */
static void add_sample_name(struct zt_str *out, const struct zt_metric_family *f,
                            const char *suffix, const double *le, const struct zt_metric_series *s)
{
    zt_str_add(out, f->name);
    zt_str_add(out, suffix);
    unsigned n = s ? s->n_values : 0;
    if (le || n) {
        zt_str_add_char(out, '{');
        if (le) {
            zt_str_add(out, "le=\"");
            add_float(out, *le);
            zt_str_add(out, "\"");
        }
        const char *value = s ? s->key + sizeof(void *) : NULL;
        for (unsigned i = 0; i < n; i++) {
            zt_str_add(out, i || le ? "," : "");
            zt_str_add(out, f->labels[i]);
            zt_str_add(out, "=\"");
            add_label_value(out, value);
            zt_str_add_char(out, '"');
            value += strlen(value) + 1;
        }
        zt_str_add_char(out, '}');
    }
    zt_str_add_char(out, ' ');
}

static void add_histogram(struct zt_str *out, const struct zt_metric_family *f,
                          const struct zt_metric_sum *sum)
{
    uint64_t total = 0;
    for (unsigned i = 0; i <= f->n_buckets; i++)
        total += sum->counts[i];
    add_sample_name(out, f, "_sum", NULL, sum->series);
    add_float(out, sum->seconds);
    zt_str_add_char(out, '\n');
    add_sample_name(out, f, "_count", NULL, sum->series);
    zt_str_addf(out, "%" PRIu64 "\n", total);
    uint64_t cumulative = 0;
    for (unsigned i = 0; i <= f->n_buckets; i++) {
        double le = i < f->n_buckets ? f->buckets[i] : INFINITY;
        cumulative += sum->counts[i];
        add_sample_name(out, f, "_bucket", &le, sum->series);
        zt_str_addf(out, "%" PRIu64 "\n", cumulative);
    }
}

static void add_head(struct zt_str *out, const struct zt_metric_family *f)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    zt_str_addf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name, types[f->type]);
    if (f->unit)
        zt_str_addf(out, "# UNIT %s %s\n", f->name, f->unit);
}

/* Durations are floats even when they are whole; all other computed values print as integers when
 * they are. */
static void add_computed(struct zt_str *out, const struct zt_metric_family *f, double value)
{
    static const char seconds[] = "_seconds";
    size_t len = strlen(f->name), tail = sizeof seconds - 1;
    bool duration = len > tail && strcmp(f->name + len - tail, seconds) == 0;
    if (!duration && fabs(value) < 1e15 && value == floor(value))
        zt_str_addf(out, "%.0f", value);
    else
        add_float(out, value);
}

static void add_family(struct zt_str *out, const struct zt_metric_entry *entry)
{
    const struct zt_metric_family *f = entry->family;
    const char *suffix = f->type == ZT_METRIC_COUNTER ? "_total" : "";
    if (!entry->fn && zt_list_empty(&entry->sums))
        return;
    add_head(out, f);
    if (entry->fn) {
        add_sample_name(out, f, suffix, NULL, NULL);
        add_computed(out, f, entry->fn(entry->arg));
        zt_str_add_char(out, '\n');
    }
    zt_list_each (l, &entry->sums) {
        const struct zt_metric_sum *sum = zt_container_of(l, struct zt_metric_sum, sums_link);
        if (f->type == ZT_METRIC_HISTOGRAM) {
            add_histogram(out, f, sum);
            continue;
        }
        add_sample_name(out, f, suffix, NULL, sum->series);
        if (f->type == ZT_METRIC_GAUGE)
            zt_str_addf(out, "%" PRId64 "\n", (int64_t)sum->value);
        else
            zt_str_addf(out, "%" PRIu64 "\n", sum->value);
    }
}

void zt_metrics_write(struct zt_metrics *m, struct zt_str *out)
{
    struct zt_metric_sums sums;
    zt_metric_sums_take(m, &sums);
    zt_list_each (l, &m->families)
        add_family(out, zt_container_of(l, struct zt_metric_entry, families_link));
    zt_metric_sums_drop(m, &sums);
    zt_str_add(out, "# EOF\n");
}
