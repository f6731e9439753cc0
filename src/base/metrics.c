/* The registry: families, shards and their series, sums for a scrape (the text itself is in
 * metrics_text.c).
 *
 * Invariants:
 *  - Families are registered before the workers start; afterwards the family table is read without
 * a lock.
 *  - A shard's lock guards its table, its list of idle series and every reference count. The values
 * are atomics and need no lock.
 *  - A series with a reference is never freed before its shard. Without one it sits on the idle
 * list, and the oldest idle one makes room when the shard is full; while a scrape looks at the
 * shard nothing is freed. */
#include "metrics_impl.h"

#include "zt/base/err.h"
#include <string.h>

struct zt_metrics *zt_metrics_new(void)
{
    struct zt_metrics *m = zt_new(struct zt_metrics);
    zt_list_init(&m->families);
    zt_list_init(&m->shards);
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

static void free_shard(struct zt_metrics_shard *s)
{
    struct zt_metric_series *series, *next;
    HASH_ITER(hh, s->table, series, next)
    {
        HASH_DEL(s->table, series);
        zt_free(series);
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
    struct zt_metric_entry *entry = NULL;
    HASH_FIND_PTR(m->by_pointer, &f, entry);
    ZT_ASSERT(!entry);
    entry = zt_new(struct zt_metric_entry);
    entry->family = f;
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
    pthread_mutex_init(&s->lock, NULL);
    zt_str_init(&s->key, ZT_METRIC_KEY_MAX);
    pthread_mutex_lock(&m->lock);
    zt_list_push_back(&m->shards, &s->shards_link);
    pthread_mutex_unlock(&m->lock);
    return s;
}

/* The key: the family's address, then every value with a NUL behind it. Equal keys are equal
 * series. */
static void build_key(struct zt_str *key, const struct zt_metric_family *f,
                      const char *const *values, unsigned n, const char *instead)
{
    zt_str_clear(key);
    zt_str_add_n(key, &f, sizeof f);
    for (unsigned i = 0; i < n; i++) {
        const char *value = instead ? instead : values[i] ? values[i] : "";
        zt_str_add_n(key, value, strnlen(value, ZT_METRIC_VALUE_MAX));
        zt_str_add_char(key, '\0');
    }
}

static struct zt_metric_series *find(struct zt_metrics_shard *s)
{
    struct zt_metric_series *series = NULL;
    HASH_FIND(hh, s->table, s->key.data, s->key.len, series);
    return series;
}

static struct zt_metric_series *add(struct zt_metrics_shard *s, const struct zt_metric_family *f,
                                    unsigned n)
{
    size_t counts = f->type == ZT_METRIC_HISTOGRAM ? f->n_buckets + 1 : 0;
    struct zt_metric_series *series =
        zt_zalloc(sizeof *series + counts * sizeof *series->counts + s->key.len);
    series->shard = s;
    series->family = f;
    series->n_values = n;
    series->counts = (_Atomic uint64_t *)(void *)(series + 1);
    series->key = (char *)(series + 1) + counts * sizeof *series->counts;
    series->key_len = s->key.len;
    memcpy(series->key, s->key.data, s->key.len);
    HASH_ADD_KEYPTR(hh, s->table, series->key, series->key_len, series);
    return series;
}

/* Makes room for one more series. False: all are in use. */
static bool make_room(struct zt_metrics_shard *s)
{
    if (HASH_COUNT(s->table) < ZT_METRIC_SERIES_MAX)
        return true;
    struct zt_link *l = s->scraped ? NULL : zt_list_pop_front(&s->idle);
    if (!l)
        return false;
    struct zt_metric_series *oldest = zt_container_of(l, struct zt_metric_series, idle_link);
    HASH_DEL(s->table, oldest);
    zt_free(oldest);
    return true;
}

struct zt_metric_series *zt_metric_series_get(struct zt_metrics_shard *s,
                                              const struct zt_metric_family *f,
                                              const char *const *values, unsigned n)
{
    struct zt_metric_entry *entry = NULL;
    HASH_FIND_PTR(s->metrics->by_pointer, &f, entry);
    ZT_ASSERT(entry && n <= f->n_labels);
    pthread_mutex_lock(&s->lock);
    build_key(&s->key, f, values, n, NULL);
    struct zt_metric_series *series = find(s);
    if (!series && !make_room(s)) {
        build_key(&s->key, f, values, n, "overflow");
        series = find(s);
    }
    if (!series)
        series = add(s, f, n);
    if (series->refs++ == 0)
        zt_list_remove(&series->idle_link);
    pthread_mutex_unlock(&s->lock);
    return series;
}

void zt_metric_series_put(struct zt_metric_series *series)
{
    if (!series)
        return;
    struct zt_metrics_shard *s = series->shard;
    pthread_mutex_lock(&s->lock);
    ZT_ASSERT(series->refs > 0);
    if (--series->refs == 0)
        zt_list_push_back(&s->idle, &series->idle_link);
    pthread_mutex_unlock(&s->lock);
}

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

/* ---- sums over all shards ----------------------------------------------------------------------
 */

static void sum_one(struct zt_metric_sums *sums, struct zt_metrics *m,
                    const struct zt_metric_series *series)
{
    struct zt_metric_sum *sum = NULL;
    HASH_FIND_BYHASHVALUE(hh, sums->table, series->key, series->key_len, series->hh.hashv, sum);
    if (!sum) {
        sum = zt_new(struct zt_metric_sum);
        sum->series = series;
        HASH_ADD_KEYPTR_BYHASHVALUE(hh, sums->table, series->key, series->key_len, series->hh.hashv,
                                    sum);
        struct zt_metric_entry *entry = NULL;
        HASH_FIND_PTR(m->by_pointer, &series->family, entry);
        zt_list_push_back(&entry->sums, &sum->sums_link);
    }
    uint64_t value = atomic_load_explicit(&series->value, memory_order_relaxed);
    if (series->family->type != ZT_METRIC_HISTOGRAM) {
        sum->value += value;
        return;
    }
    sum->seconds += bits_to_double(value);
    for (unsigned i = 0; i <= series->family->n_buckets; i++)
        sum->counts[i] += atomic_load_explicit(&series->counts[i], memory_order_relaxed);
}

/* Only the pointers are copied under the lock: a worker waits for that at most, not for the sums or
 * the text. */
static struct zt_metric_series **snapshot(struct zt_metrics_shard *s, size_t *n)
{
    pthread_mutex_lock(&s->lock);
    s->scraped = true;
    struct zt_metric_series **all = zt_new_n(struct zt_metric_series *, HASH_COUNT(s->table));
    *n = 0;
    for (struct zt_metric_series *it = s->table; it; it = it->hh.next)
        all[(*n)++] = it;
    pthread_mutex_unlock(&s->lock);
    return all;
}

void zt_metric_sums_take(struct zt_metrics *m, struct zt_metric_sums *sums)
{
    *sums = (struct zt_metric_sums){0};
    zt_list_each (f, &m->families)
        zt_list_init(&zt_container_of(f, struct zt_metric_entry, families_link)->sums);
    pthread_mutex_lock(&m->lock);
    zt_list_each (l, &m->shards) {
        size_t n;
        struct zt_metric_series **all =
            snapshot(zt_container_of(l, struct zt_metrics_shard, shards_link), &n);
        for (size_t i = 0; i < n; i++)
            sum_one(sums, m, all[i]);
        zt_free(all);
    }
    pthread_mutex_unlock(&m->lock);
}

void zt_metric_sums_drop(struct zt_metrics *m, struct zt_metric_sums *sums)
{
    struct zt_metric_sum *sum, *next;
    HASH_ITER(hh, sums->table, sum, next)
    {
        HASH_DEL(sums->table, sum);
        zt_free(sum);
    }
    pthread_mutex_lock(&m->lock);
    zt_list_each (l, &m->shards) {
        struct zt_metrics_shard *s = zt_container_of(l, struct zt_metrics_shard, shards_link);
        pthread_mutex_lock(&s->lock);
        s->scraped = false;
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&m->lock);
}
