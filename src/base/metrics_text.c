/* The OpenMetrics text (spec/interfaces §6.1), written in pieces. Label values are escaped and made valid UTF-8: one bad byte from a
 * peer would make the scraper refuse the whole document.
 *
 * A scrape stands at a family, a shard, and a cursor in that shard's list of the family's series. Between two pieces the cursor stays in
 * the list, and series come (they are younger than the scrape: not its business) but do not go: every shard is held while the scrape
 * lasts. So a series is written exactly once, where the first shard that has it comes up, with the sum over all shards. */
#include "metrics_impl.h"

#include "zt/base/err.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARDS_MAX 1100 /* a worker each, at most 1024, and a few more */

/* ---- labels: rendered once, when a set is looked for ---- */

static bool is_plain(unsigned char c)
{
    return c >= ' ' && c < 0x7f && c != '"' && c != '\\';
}

static void add_label_value(struct zt_str *out, const char *value)
{
    size_t len = strnlen(value, ZT_METRIC_VALUE_MAX);
    for (size_t at = 0, used; at < len; at += used) {
        uint32_t code;
        for (used = 0; at + used < len && is_plain((unsigned char)value[at + used]); used++)
            ;
        if (used > 0) {
            zt_str_add_n(out, value + at, used);
            continue;
        }
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

void zt_metric_render_key(struct zt_str *key, const struct zt_metric_family *f, const char *const *values, unsigned n,
                          const char *instead)
{
    zt_str_clear(key);
    zt_str_add_n(key, &f->labels, sizeof f->labels);
    for (unsigned i = 0; i < n; i++) {
        if (i)
            zt_str_add_char(key, ',');
        zt_str_add(key, f->labels[i]);
        zt_str_add_n(key, "=\"", 2);
        add_label_value(key, instead ? instead : values[i] ? values[i] : "");
        zt_str_add_char(key, '"');
    }
}

/* ---- numbers ---- */

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
static void add_sample_name(struct zt_str *out, const struct zt_metric_family *f, const char *suffix, const double *le,
                            const struct zt_metric_set *set)
{
    size_t len = set ? set->text_len : 0;
    zt_str_add(out, f->name);
    zt_str_add(out, suffix);
    if (le || len) {
        zt_str_add_char(out, '{');
        if (le) {
            zt_str_add(out, "le=\"");
            add_float(out, *le);
            zt_str_add(out, len ? "\"," : "\"");
        }
        if (len)
            zt_str_add_n(out, zt_metric_set_text(set), len);
        zt_str_add_char(out, '}');
    }
    zt_str_add_char(out, ' ');
}

static void add_histogram(struct zt_str *out, const struct zt_metric_series *series, const struct zt_metric_sum *sum)
{
    const struct zt_metric_family *f = series->family;
    uint64_t total = 0;
    for (unsigned i = 0; i <= f->n_buckets; i++)
        total += sum->counts[i];
    add_sample_name(out, f, "_sum", NULL, series->set);
    add_float(out, sum->seconds);
    zt_str_add_char(out, '\n');
    add_sample_name(out, f, "_count", NULL, series->set);
    zt_str_addf(out, "%" PRIu64 "\n", total);
    uint64_t cumulative = 0;
    for (unsigned i = 0; i <= f->n_buckets; i++) {
        double le = i < f->n_buckets ? f->buckets[i] : INFINITY;
        cumulative += sum->counts[i];
        add_sample_name(out, f, "_bucket", &le, series->set);
        zt_str_addf(out, "%" PRIu64 "\n", cumulative);
    }
}

static void add_series(struct zt_str *out, const struct zt_metric_series *series, const struct zt_metric_sum *sum)
{
    const struct zt_metric_family *f = series->family;
    if (f->type == ZT_METRIC_HISTOGRAM) {
        add_histogram(out, series, sum);
        return;
    }
    uint64_t value = sum->value;
    add_sample_name(out, f, f->type == ZT_METRIC_COUNTER ? "_total" : "", NULL, series->set);
    if (f->type == ZT_METRIC_GAUGE && value >> 63) {
        zt_str_add_char(out, '-');
        value = -value;
    }
    zt_str_add_u64(out, value);
    zt_str_add_char(out, '\n');
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

static void add_value(struct zt_str *out, const struct zt_metric_family *f, double value)
{
    add_head(out, f);
    add_sample_name(out, f, f->type == ZT_METRIC_COUNTER ? "_total" : "", NULL, NULL);
    add_computed(out, f, value);
    zt_str_add_char(out, '\n');
}

/* ---- a scrape ---- */

struct zt_metrics_scrape {
    struct zt_metrics *metrics;
    struct zt_metrics_shard *shards[SHARDS_MAX];
    unsigned n_shards, shard;
    struct zt_link *family; /* families_link, or the list's head: the end */
    struct zt_metric_series cursor;
    uint64_t before; /* series born before this are written */
    bool headed;     /* the family has its head */
};

struct zt_metrics_scrape *zt_metrics_scrape_new(struct zt_metrics *m)
{
    struct zt_metrics_scrape *s = zt_new(struct zt_metrics_scrape);
    s->metrics = m;
    s->family = m->families.next;
    pthread_mutex_lock(&m->lock);
    zt_list_each (l, &m->shards) {
        ZT_ASSERT(s->n_shards < SHARDS_MAX);
        struct zt_metrics_shard *shard = zt_container_of(l, struct zt_metrics_shard, shards_link);
        s->shards[s->n_shards++] = shard;
        pthread_mutex_lock(&shard->lock);
        shard->n_scrapes++;
        pthread_mutex_unlock(&shard->lock);
    }
    pthread_mutex_unlock(&m->lock);
    s->before = atomic_load(&m->next_born);
    return s;
}

void zt_metrics_scrape_free(struct zt_metrics_scrape *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < s->n_shards; i++) {
        pthread_mutex_lock(&s->shards[i]->lock);
        s->shards[i]->n_scrapes--;
        if (i == s->shard)
            zt_list_remove(&s->cursor.family_link);
        pthread_mutex_unlock(&s->shards[i]->lock);
    }
    zt_free(s);
}

/* Adds what other shards have of it. False: an earlier shard had it, so it is written already. Series are not removed while we look, so
 * the one at hand may be read without its shard's lock. */
static bool add_up(const struct zt_metrics_scrape *s, const struct zt_metric_series *series, struct zt_metric_sum *sum)
{
    zt_metric_sum_add(sum, series);
    for (unsigned i = 0; i < s->n_shards; i++) {
        if (i == s->shard)
            continue;
        pthread_mutex_lock(&s->shards[i]->lock);
        const struct zt_metric_series *other = zt_metric_find_equal(s->shards[i], series);
        pthread_mutex_unlock(&s->shards[i]->lock);
        if (!other || other->born >= s->before)
            continue;
        if (i < s->shard)
            return false;
        zt_metric_sum_add(sum, other);
    }
    return true;
}

/* The cursor's next series; NULL at the end of the shard's list, where the cursor leaves it. */
static const struct zt_metric_series *advance(struct zt_metrics_scrape *s, struct zt_link *list)
{
    struct zt_link *cursor = &s->cursor.family_link;
    const struct zt_metric_series *found = NULL;
    struct zt_metrics_shard *shard = s->shards[s->shard];
    pthread_mutex_lock(&shard->lock);
    if (!zt_link_linked(cursor))
        zt_list_push_front(list, cursor);
    while (!found && cursor->next != list) {
        struct zt_link *next = cursor->next;
        zt_list_remove(cursor);
        zt_list_push_front(next, cursor);
        const struct zt_metric_series *series = zt_container_of(next, struct zt_metric_series, family_link);
        if (series->set && series->born < s->before)
            found = series;
    }
    if (!found)
        zt_list_remove(cursor);
    pthread_mutex_unlock(&shard->lock);
    return found;
}

static void next_family(struct zt_metrics_scrape *s)
{
    s->family = s->family->next;
    s->headed = false;
    s->shard = 0;
}

/* One sample, or one step towards it. */
static void write_some(struct zt_metrics_scrape *s, struct zt_str *out)
{
    const struct zt_metric_entry *entry = zt_container_of(s->family, struct zt_metric_entry, families_link);
    const struct zt_metric_family *f = entry->family;
    struct zt_metric_sum sum = {0};
    if (entry->fn) {
        double value = entry->fn(entry->arg);
        if (!isnan(value))
            add_value(out, f, value);
        next_family(s);
        return;
    }
    if (s->shard == s->n_shards) {
        next_family(s);
        return;
    }
    const struct zt_metric_series *series = advance(s, &s->shards[s->shard]->series[entry->index]);
    if (!series) {
        s->shard++;
        return;
    }
    if (!add_up(s, series, &sum))
        return;
    if (!s->headed)
        add_head(out, f);
    s->headed = true;
    add_series(out, series, &sum);
}

bool zt_metrics_scrape_next(struct zt_metrics_scrape *s, struct zt_str *out, size_t bytes)
{
    size_t enough = out->len + bytes;
    while (s->family != &s->metrics->families && out->len < enough && !out->overflow)
        write_some(s, out);
    if (s->family != &s->metrics->families)
        return true;
    zt_str_add(out, "# EOF\n");
    return false;
}

void zt_metrics_write(struct zt_metrics *m, struct zt_str *out)
{
    struct zt_metrics_scrape *s = zt_metrics_scrape_new(m);
    while (zt_metrics_scrape_next(s, out, SIZE_MAX / 2) && !out->overflow)
        ;
    zt_metrics_scrape_free(s);
}
