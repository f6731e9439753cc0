/* What counting (metrics.c) and writing (metrics_text.c) share. */
#ifndef ZT_BASE_METRICS_IMPL_H
#define ZT_BASE_METRICS_IMPL_H

#include "zt/base/list.h"
#include "zt/base/map.h"
#include "zt/base/metrics.h"
#include <pthread.h>

#define ZT_METRIC_VALUE_MAX 1024 /* bytes of one label value; longer ones are cut */
#define ZT_METRIC_KEY_MAX (sizeof(void *) + ZT_METRIC_LABELS_MAX * (ZT_METRIC_VALUE_MAX + 1))

/* A registered family. */
struct zt_metric_entry {
    struct zt_link families_link;
    const struct zt_metric_family *family;
    zt_metric_fn fn;
    void *arg;
    struct zt_link sums; /* during a scrape */
    UT_hash_handle hh;
};

struct zt_metrics {
    struct zt_link families; /* in the order of registration */
    struct zt_metric_entry *by_pointer;
    pthread_mutex_t lock; /* guards shards */
    struct zt_link shards;
};

struct zt_metrics_shard {
    struct zt_metrics *metrics;
    struct zt_link shards_link;
    pthread_mutex_t lock;
    struct zt_metric_series *table;
    struct zt_link idle; /* series without a reference, oldest first */
    struct zt_str key;   /* scratch */
    bool scraped;        /* a scrape holds pointers: free nothing */
};

struct zt_metric_series {
    struct zt_metrics_shard *shard;
    const struct zt_metric_family *family;
    struct zt_link idle_link;
    uint32_t refs;
    unsigned n_values;
    _Atomic uint64_t value;   /* counter; gauge as two's complement; histogram: bits of the sum */
    _Atomic uint64_t *counts; /* histogram: n_buckets + 1, not cumulative */
    char *key;                /* family address, then n_values NUL-terminated label values */
    size_t key_len;
    UT_hash_handle hh;
};

/* One line of the exposition: series with equal labels in all shards, added up. */
struct zt_metric_sum {
    struct zt_link sums_link;
    const struct zt_metric_series *series; /* any of them; for the labels */
    uint64_t value;
    double seconds; /* histogram: sum of what was observed */
    uint64_t counts[ZT_METRIC_BUCKETS_MAX + 1];
    UT_hash_handle hh;
};

struct zt_metric_sums {
    struct zt_metric_sum *table;
};

/* Adds up all shards and hangs the sums on their families; keeps every series alive until drop.
 * Thread: control. */
void zt_metric_sums_take(struct zt_metrics *m, struct zt_metric_sums *sums);
void zt_metric_sums_drop(struct zt_metrics *m, struct zt_metric_sums *sums);

#endif
