/* What counting (metrics.c) and writing (metrics_text.c) share. */
#ifndef ZT_BASE_METRICS_IMPL_H
#define ZT_BASE_METRICS_IMPL_H

#include "zt/base/list.h"
#include "zt/base/map.h"
#include "zt/base/metrics.h"
#include <pthread.h>

#define ZT_METRIC_VALUE_MAX 1024 /* bytes of one label value before escaping; longer ones are cut */
#define ZT_METRIC_TEXT_MAX ((size_t)ZT_METRIC_LABELS_MAX * 4 * ZT_METRIC_VALUE_MAX)

/* A registered family. */
struct zt_metric_entry {
    struct zt_link families_link;
    const struct zt_metric_family *family;
    unsigned index; /* of registration */
    zt_metric_fn fn;
    void *arg;
    UT_hash_handle hh;
};

struct zt_metrics {
    struct zt_link families; /* in the order of registration */
    struct zt_metric_entry *by_pointer;
    unsigned n_families;
    pthread_mutex_t lock; /* guards shards, which only grows */
    struct zt_link shards;
    _Atomic uint64_t next_born; /* of series */
    _Atomic uint64_t n_evicted, n_folded; /* label sets */
};

struct zt_metrics_shard {
    struct zt_metrics *metrics;
    struct zt_link shards_link;
    pthread_mutex_t lock;
    struct zt_metric_set *sets;
    struct zt_link idle; /* sets without a reference, the one unused for longest first */
    struct zt_link series[ZT_METRIC_FAMILIES_MAX]; /* by family; cursors of scrapes among them */
    struct zt_str key;   /* scratch */
    unsigned n_scrapes;  /* that look at this shard now: remove nothing */
    unsigned n_series;
};

/* One combination of labels, and the series that have it. */
struct zt_metric_set {
    struct zt_metrics_shard *shard;
    struct zt_metric_series *series; /* of different families */
    struct zt_link idle_link;
    uint64_t idle_since_ms;
    uint32_t refs;
    size_t text_len;
    const char *key; /* the address of the label names, then the rendered labels: a="b",c="d" */
    UT_hash_handle hh;
};

struct zt_metric_series {
    struct zt_metric_set *set; /* NULL: a scrape's cursor */
    struct zt_metric_series *next_in_set;
    struct zt_link family_link;
    const struct zt_metric_family *family;
    uint64_t born;
    _Atomic uint64_t value;   /* counter; gauge as two's complement; histogram: bits of the sum */
    _Atomic uint64_t counts[]; /* histogram: n_buckets + 1, not cumulative */
};

static inline const char *zt_metric_set_text(const struct zt_metric_set *set)
{
    return set->key + sizeof(void *);
}

/* metrics_text.c: the key of a set. */
void zt_metric_render_key(struct zt_str *key, const struct zt_metric_family *f, const char *const *values, unsigned n,
                          const char *instead);

/* What one sample of the exposition adds up. */
struct zt_metric_sum {
    uint64_t value;
    double seconds; /* histogram: sum of what was observed */
    uint64_t counts[ZT_METRIC_BUCKETS_MAX + 1];
};
void zt_metric_sum_add(struct zt_metric_sum *sum, const struct zt_metric_series *series);
/* The series of the same family and labels in another shard, whose lock is held; or NULL. */
const struct zt_metric_series *zt_metric_find_equal(const struct zt_metrics_shard *s, const struct zt_metric_series *series);

#endif
