/* Metrics: families, series, exposition (spec/interfaces §6).
 *
 * A worker counts in its own shard: finding a series locks that shard's table (once per connection), adding to one is a relaxed
 * atomic add with no other writer. A scrape walks all shards, a piece at a time, and sums series with equal labels.
 * Series with equal labels share one label set, rendered once. A set that nobody refers to is idle: it is evicted some time after its
 * last use (zt_metrics_evict), or folded into its families' overflow series when its shard is full.
 * Labels come from bounded sources only; values are escaped in the exposition. Thread: as said. */
#ifndef ZT_BASE_METRICS_H
#define ZT_BASE_METRICS_H

#include "zt/base/str.h"
#include <stdatomic.h>

enum zt_metric_type { ZT_METRIC_COUNTER, ZT_METRIC_GAUGE, ZT_METRIC_HISTOGRAM };

#define ZT_METRIC_LABELS_MAX 32
#define ZT_METRIC_BUCKETS_MAX 16
#define ZT_METRIC_FAMILIES_MAX 96
#define ZT_METRIC_SETS_MAX 50000 /* label sets per shard; beyond it the one unused for longest is folded: its sums go on in the series
                                    whose label values are "overflow". With all in use new ones count there from the beginning */

/* A family's description; static storage. */
struct zt_metric_family {
    const char *name; /* as in the TYPE line, without _total */
    const char *help; /* with its final period */
    const char *unit; /* or NULL */
    enum zt_metric_type type;
    const char *const *labels; /* n_labels names; a series may leave trailing ones out */
    unsigned n_labels;
    const double *buckets; /* upper bounds, histograms only */
    unsigned n_buckets;
};

struct zt_metric_series; /* lives until its label set is evicted or folded, which takes that no reference is held */
struct zt_metrics;       /* the registry; one per process */
struct zt_metrics_shard;

struct zt_metrics *zt_metrics_new(void); /* returns owned */
void zt_metrics_free(struct zt_metrics *m);
/* Registers a family; exposition order is registration order. f is borrowed (forever). Thread: control, before workers start. */
void zt_metrics_register(struct zt_metrics *m, const struct zt_metric_family *f);
/* A value computed at scrape time (gauge or counter); NAN: there is none now, and no sample. fn runs on the scraping thread. */
typedef double (*zt_metric_fn)(void *arg);
void zt_metrics_register_fn(struct zt_metrics *m, const struct zt_metric_family *f, zt_metric_fn fn, void *arg);

/* Returns owned by the registry. Thread: control. */
struct zt_metrics_shard *zt_metrics_shard_new(struct zt_metrics *m);
/* Finds or makes a series. values: n label values, NULL or "" prints as "unknown" for families that say so by their caller's
 * choice (pass the word). Takes a reference. Thread: the shard's worker. */
struct zt_metric_series *zt_metric_series_get(struct zt_metrics_shard *s, const struct zt_metric_family *f,
                                              const char *const *values, unsigned n);
void zt_metric_series_put(struct zt_metric_series *s); /* drops the reference; NULL is legal */

/* Counting: a reference is held. Thread: any. */
void zt_metric_add(struct zt_metric_series *s, uint64_t n);
void zt_metric_gauge_add(struct zt_metric_series *s, int64_t n);
void zt_metric_gauge_set(struct zt_metric_series *s, int64_t v);
void zt_metric_observe(struct zt_metric_series *s, double v);

/* Forgets label sets that nobody has used for retention_ms, at most `most` of them per shard (more follow with the next call). Does
 * nothing to a shard that a scrape is looking at. Thread: control. */
void zt_metrics_evict(struct zt_metrics *m, uint64_t retention_ms, unsigned most);
/* Registers the registry's own families: series now, evicted, folded. Thread: control. */
void zt_metrics_register_own(struct zt_metrics *m);

/* One scrape, in pieces. Series made after its begin are left to the next one. Thread: control. */
struct zt_metrics_scrape;
struct zt_metrics_scrape *zt_metrics_scrape_new(struct zt_metrics *m); /* returns owned; borrows m until free */
/* Appends at least `bytes` bytes of the document, or its end: "# EOF\n". False: that was the end. */
bool zt_metrics_scrape_next(struct zt_metrics_scrape *s, struct zt_str *out, size_t bytes);
void zt_metrics_scrape_free(struct zt_metrics_scrape *s);
/* The whole document at once. */
void zt_metrics_write(struct zt_metrics *m, struct zt_str *out);

#endif
