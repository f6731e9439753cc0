/* The registry: families, shards, label sets and series (the exposition is in metrics_text.c).
 *
 * Invariants:
 *  - Families are registered before the workers start; afterwards the family table is read without a lock.
 *  - A shard's lock guards its table, its lists and every reference count. The values are atomics and need no lock.
 *  - A set with a reference is never freed before its shard. Without one it sits on the idle list, oldest first; from there it is
 *    evicted, or folded when the shard is full. While a scrape looks at the shard neither happens: a series that the scrape has
 *    written must still be found when another shard's equal comes up.
 *  - A shard holds at most ZT_METRIC_SETS_MAX sets, and one overflow set for each list of label names. */
#include "metrics_impl.h"

#include "zt/base/clock.h"
#include "zt/base/err.h"
#include <string.h>

#define OVERFLOW "overflow"

struct zt_metrics *zt_metrics_new(void)
{
    struct zt_metrics *m = zt_new(struct zt_metrics);
    zt_list_init(&m->families);
    zt_list_init(&m->shards);
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

static void free_set(struct zt_metric_set *set)
{
    struct zt_metric_series *series, *next;
    for (series = set->series; series; series = next) {
        next = series->next_in_set;
        zt_list_remove(&series->family_link);
        set->shard->n_series--;
        zt_free(series);
    }
    HASH_DEL(set->shard->sets, set);
    zt_list_remove(&set->idle_link);
    zt_free(set);
}

static void free_shard(struct zt_metrics_shard *s)
{
    struct zt_metric_set *set, *next;
    HASH_ITER(hh, s->sets, set, next)
    {
        free_set(set);
    }
    pthread_mutex_destroy(&s->lock);
    zt_str_fini(&s->key);
    zt_free(s);
}

void zt_metrics_free(struct zt_metrics *m)
{
    if (!m)
        return;
    struct zt_link *l;
    while ((l = zt_list_pop_front(&m->shards)))
        free_shard(zt_container_of(l, struct zt_metrics_shard, shards_link));
    HASH_CLEAR(hh, m->by_pointer);
    while ((l = zt_list_pop_front(&m->families)))
        zt_free(zt_container_of(l, struct zt_metric_entry, families_link));
    pthread_mutex_destroy(&m->lock);
    zt_free(m);
}

void zt_metrics_register_fn(struct zt_metrics *m, const struct zt_metric_family *f, zt_metric_fn fn,
                            void *arg)
{
    ZT_ASSERT(f->n_labels <= ZT_METRIC_LABELS_MAX && f->n_buckets <= ZT_METRIC_BUCKETS_MAX);
    ZT_ASSERT(m->n_families < ZT_METRIC_FAMILIES_MAX);
    struct zt_metric_entry *entry = NULL;
    HASH_FIND_PTR(m->by_pointer, &f, entry);
    ZT_ASSERT(!entry);
    entry = zt_new(struct zt_metric_entry);
    entry->family = f;
    entry->index = m->n_families++;
    entry->fn = fn;
    entry->arg = arg;
    zt_list_push_back(&m->families, &entry->families_link);
    HASH_ADD_PTR(m->by_pointer, family, entry);
}

void zt_metrics_register(struct zt_metrics *m, const struct zt_metric_family *f)
{
    zt_metrics_register_fn(m, f, NULL, NULL);
}

struct zt_metrics_shard *zt_metrics_shard_new(struct zt_metrics *m)
{
    struct zt_metrics_shard *s = zt_new(struct zt_metrics_shard);
    s->metrics = m;
    zt_list_init(&s->idle);
    for (unsigned i = 0; i < ZT_METRIC_FAMILIES_MAX; i++)
        zt_list_init(&s->series[i]);
    pthread_mutex_init(&s->lock, NULL);
    zt_str_init(&s->key, ZT_METRIC_TEXT_MAX);
    pthread_mutex_lock(&m->lock);
    zt_list_push_back(&m->shards, &s->shards_link);
    pthread_mutex_unlock(&m->lock);
    return s;
}

/* ---- finding and making ---- */

static struct zt_metric_set *find_set(struct zt_metrics_shard *s)
{
    struct zt_metric_set *set = NULL;
    HASH_FIND(hh, s->sets, s->key.data, s->key.len, set);
    return set;
}

static struct zt_metric_set *add_set(struct zt_metrics_shard *s)
{
    struct zt_metric_set *set = zt_zalloc(sizeof *set + s->key.len);
    char *key = (char *)(set + 1);
    memcpy(key, s->key.data, s->key.len);
    set->shard = s;
    set->key = key;
    set->text_len = s->key.len - sizeof(void *);
    HASH_ADD_KEYPTR(hh, s->sets, set->key, s->key.len, set);
    return set;
}

static struct zt_metric_series *series_of(struct zt_metric_set *set, const struct zt_metric_family *f)
{
    struct zt_metric_series *series = set->series;
    while (series && series->family != f)
        series = series->next_in_set;
    return series;
}

static struct zt_metric_series *add_series(struct zt_metric_set *set, const struct zt_metric_entry *entry)
{
    const struct zt_metric_family *f = entry->family;
    size_t counts = f->type == ZT_METRIC_HISTOGRAM ? f->n_buckets + 1 : 0;
    struct zt_metric_series *series = zt_zalloc(sizeof *series + counts * sizeof series->counts[0]);
    struct zt_metrics_shard *s = set->shard;
    series->set = set;
    series->family = f;
    series->born = atomic_fetch_add(&s->metrics->next_born, 1);
    series->next_in_set = set->series;
    set->series = series;
    zt_list_push_back(&s->series[entry->index], &series->family_link);
    s->n_series++;
    return series;
}

static const struct zt_metric_entry *entry_of(const struct zt_metrics *m, const struct zt_metric_family *f)
{
    struct zt_metric_entry *entry = NULL;
    HASH_FIND_PTR(m->by_pointer, &f, entry);
    ZT_ASSERT(entry);
    return entry;
}

/* The overflow set for a family's labels; it stays. */
static struct zt_metric_set *overflow_set(struct zt_metrics_shard *s, const struct zt_metric_family *f)
{
    zt_metric_render_key(&s->key, f, NULL, f->n_labels, OVERFLOW);
    struct zt_metric_set *set = find_set(s);
    if (set)
        return set;
    set = add_set(s);
    set->refs = 1; /* ours */
    return set;
}

static void merge_into(struct zt_metric_series *to, const struct zt_metric_series *from)
{
    struct zt_metric_sum sum = {0};
    zt_metric_sum_add(&sum, from);
    if (to->family->type != ZT_METRIC_HISTOGRAM) {
        zt_metric_add(to, sum.value);
        return;
    }
    for (unsigned i = 0; i <= to->family->n_buckets; i++)
        atomic_fetch_add_explicit(&to->counts[i], sum.counts[i], memory_order_relaxed);
    zt_metric_sum_add(&sum, to);
    uint64_t bits;
    memcpy(&bits, &sum.seconds, sizeof bits);
    atomic_store_explicit(&to->value, bits, memory_order_relaxed);
}

/* The sums of a set go on in the overflow series: totals over a family never fall. */
static void fold(struct zt_metrics_shard *s, struct zt_metric_set *set)
{
    for (struct zt_metric_series *from = set->series; from; from = from->next_in_set) {
        struct zt_metric_set *overflow = overflow_set(s, from->family);
        struct zt_metric_series *to = series_of(overflow, from->family);
        merge_into(to ? to : add_series(overflow, entry_of(s->metrics, from->family)), from);
    }
    free_set(set);
}

/* A new set, or the overflow set when there is no room. The key is rendered. */
static struct zt_metric_set *new_set(struct zt_metrics_shard *s, const struct zt_metric_family *f, const char *const *values,
                                     unsigned n)
{
    if (HASH_COUNT(s->sets) < ZT_METRIC_SETS_MAX)
        return add_set(s);
    atomic_fetch_add_explicit(&s->metrics->n_folded, 1, memory_order_relaxed);
    struct zt_link *oldest = s->n_scrapes ? NULL : zt_list_first(&s->idle);
    if (!oldest)
        return overflow_set(s, f);
    fold(s, zt_container_of(oldest, struct zt_metric_set, idle_link));
    zt_metric_render_key(&s->key, f, values, n, NULL);
    return add_set(s);
}

struct zt_metric_series *zt_metric_series_get(struct zt_metrics_shard *s,
                                              const struct zt_metric_family *f,
                                              const char *const *values, unsigned n)
{
    const struct zt_metric_entry *entry = entry_of(s->metrics, f);
    ZT_ASSERT(n <= f->n_labels);
    pthread_mutex_lock(&s->lock);
    zt_metric_render_key(&s->key, f, values, n, NULL);
    struct zt_metric_set *set = find_set(s);
    if (!set)
        set = new_set(s, f, values, n);
    struct zt_metric_series *series = series_of(set, f);
    if (!series)
        series = add_series(set, entry);
    if (set->refs++ == 0)
        zt_list_remove(&set->idle_link);
    pthread_mutex_unlock(&s->lock);
    return series;
}

void zt_metric_series_put(struct zt_metric_series *series)
{
    if (!series)
        return;
    struct zt_metric_set *set = series->set;
    struct zt_metrics_shard *s = set->shard;
    pthread_mutex_lock(&s->lock);
    ZT_ASSERT(set->refs > 0);
    if (--set->refs == 0) {
        set->idle_since_ms = zt_clock_mono_ms();
        zt_list_push_back(&s->idle, &set->idle_link);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- forgetting ---- */

static void evict_from(struct zt_metrics_shard *s, uint64_t until_ms, unsigned most)
{
    struct zt_link *l;
    pthread_mutex_lock(&s->lock);
    while (!s->n_scrapes && most-- > 0 && (l = zt_list_first(&s->idle))) {
        struct zt_metric_set *set = zt_container_of(l, struct zt_metric_set, idle_link);
        if (set->idle_since_ms > until_ms)
            break;
        free_set(set);
        atomic_fetch_add_explicit(&s->metrics->n_evicted, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&s->lock);
}

void zt_metrics_evict(struct zt_metrics *m, uint64_t retention_ms, unsigned most)
{
    uint64_t now_ms = zt_clock_mono_ms();
    if (now_ms < retention_ms)
        return;
    pthread_mutex_lock(&m->lock);
    zt_list_each (l, &m->shards)
        evict_from(zt_container_of(l, struct zt_metrics_shard, shards_link), now_ms - retention_ms, most);
    pthread_mutex_unlock(&m->lock);
}

/* ---- the registry's own families ---- */

static const struct zt_metric_family series_family = {
    .name = "ztunneld_metric_series", .help = "The current number of series in all workers (unstable).", .type = ZT_METRIC_GAUGE};
static const struct zt_metric_family evicted_family = {
    .name = "ztunneld_metric_label_sets_evicted",
    .help = "The total number of label sets forgotten because nobody had used them for long (unstable).",
    .type = ZT_METRIC_COUNTER};
static const struct zt_metric_family folded_family = {
    .name = "ztunneld_metric_label_sets_folded",
    .help = "The total number of label sets counted under \"overflow\" because there were too many (unstable).",
    .type = ZT_METRIC_COUNTER};

static double count_series(void *arg)
{
    struct zt_metrics *m = arg;
    double n = 0;
    pthread_mutex_lock(&m->lock);
    zt_list_each (l, &m->shards) {
        struct zt_metrics_shard *s = zt_container_of(l, struct zt_metrics_shard, shards_link);
        pthread_mutex_lock(&s->lock);
        n += s->n_series;
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&m->lock);
    return n;
}

static double count_evicted(void *arg)
{
    return (double)atomic_load(&((struct zt_metrics *)arg)->n_evicted);
}

static double count_folded(void *arg)
{
    return (double)atomic_load(&((struct zt_metrics *)arg)->n_folded);
}

void zt_metrics_register_own(struct zt_metrics *m)
{
    zt_metrics_register_fn(m, &series_family, count_series, m);
    zt_metrics_register_fn(m, &evicted_family, count_evicted, m);
    zt_metrics_register_fn(m, &folded_family, count_folded, m);
}

/* ---- values ---- */

void zt_metric_add(struct zt_metric_series *s, uint64_t n)
{
    atomic_fetch_add_explicit(&s->value, n, memory_order_relaxed);
}

void zt_metric_gauge_add(struct zt_metric_series *s, int64_t n)
{
    atomic_fetch_add_explicit(&s->value, (uint64_t)n, memory_order_relaxed);
}

void zt_metric_gauge_set(struct zt_metric_series *s, int64_t v)
{
    atomic_store_explicit(&s->value, (uint64_t)v, memory_order_relaxed);
}

static double bits_to_double(uint64_t bits)
{
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static uint64_t double_to_bits(double d)
{
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    return bits;
}

void zt_metric_observe(struct zt_metric_series *s, double v)
{
    unsigned i = 0;
    while (i < s->family->n_buckets && v > s->family->buckets[i])
        i++;
    atomic_fetch_add_explicit(&s->counts[i], 1, memory_order_relaxed);
    uint64_t old = atomic_load_explicit(&s->value, memory_order_relaxed), sum;
    do
        sum = double_to_bits(bits_to_double(old) + v);
    while (!atomic_compare_exchange_weak_explicit(&s->value, &old, sum, memory_order_relaxed,
                                                  memory_order_relaxed));
}

void zt_metric_sum_add(struct zt_metric_sum *sum, const struct zt_metric_series *series)
{
    uint64_t value = atomic_load_explicit(&series->value, memory_order_relaxed);
    if (series->family->type != ZT_METRIC_HISTOGRAM) {
        sum->value += value;
        return;
    }
    sum->seconds += bits_to_double(value);
    for (unsigned i = 0; i <= series->family->n_buckets; i++)
        sum->counts[i] += atomic_load_explicit(&series->counts[i], memory_order_relaxed);
}

const struct zt_metric_series *zt_metric_find_equal(const struct zt_metrics_shard *s, const struct zt_metric_series *series)
{
    struct zt_metric_set *set = NULL;
    HASH_FIND_BYHASHVALUE(hh, s->sets, series->set->key, series->set->text_len + sizeof(void *), series->set->hh.hashv, set);
    return set ? series_of(set, series->family) : NULL;
}
