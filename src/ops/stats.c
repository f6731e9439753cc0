/* The metrics server: one document for both paths, content negotiation, gzip.
 *
 * The document is produced while the client takes it: what a scrape holds is a piece of text and, for gzip, zlib's window. A client that is
 * too slow is cut, because the registry cannot forget anything while a scrape looks at it. */
#include "zt/ops/stats.h"
#include "zt/base/clock.h"
#include "zt/base/err.h"
#include "zt/base/mem.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <zlib.h>

#define PIECE_BYTES 65536        /* of text, between two looks at the loop */
#define GZIP_LEVEL 1 /* labels repeat: more effort costs much and gains little */
#define GZIP_WINDOW_BITS (15 + 16) /* 16: a gzip wrapper instead of zlib's */
#define OPENMETRICS "application/openmetrics-text"

/* ---- families about the process ---- */

unsigned zt_stats_open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n ? n - 1 : 0; /* the directory itself */
}

static double open_fds(void *arg)
{
    return zt_stats_open_fds();
}

static double max_fds(void *arg)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 0;
    return r.rlim_cur == RLIM_INFINITY ? 9223372036854775807. : (double)r.rlim_cur;
}

static const struct zt_metric_family open_fds_family = {
    .name = "process_open_fds", .help = "Number of open file descriptors", .type = ZT_METRIC_GAUGE};
static const struct zt_metric_family max_fds_family = {
    .name = "process_max_fds", .help = "Maximum number of file descriptors", .type = ZT_METRIC_GAUGE};
static const char *const build_labels[] = {"component", "tag"};
static const struct zt_metric_family build_family = {.name = "istio_build",
                                                     .help = "Istio component build info.",
                                                     .type = ZT_METRIC_GAUGE,
                                                     .labels = build_labels,
                                                     .n_labels = 2};

void zt_stats_register_process(struct zt_metrics *m, const char *tag)
{
    zt_metrics_register_fn(m, &open_fds_family, open_fds, NULL);
    zt_metrics_register_fn(m, &max_fds_family, max_fds, NULL);
    zt_metrics_register(m, &build_family);
    const char *values[] = {"ztunnel", tag};
    /* The reference to the series is kept for good: it stays in the exposition until exit. */
    zt_metric_gauge_set(zt_metric_series_get(zt_metrics_shard_new(m), &build_family, values, 2), 1);
}

/* ---- negotiation ---- */

/* The next element of a comma-separated list: its name without parameters to *name and *len, its q-value to *q. Returns where to
 * go on, NULL at the end. */
static const char *next_element(const char *p, const char **name, size_t *len, double *q)
{
    p += strspn(p, " \t,");
    if (!*p)
        return NULL;
    *name = p;
    size_t element = strcspn(p, ",");
    *len = strcspn(p, ",; \t");
    *q = 1.;
    for (const char *at = p; (at = memchr(at, ';', element - (size_t)(at - p)));) {
        at++;
        at += strspn(at, " \t");
        if (strncasecmp(at, "q=", 2) == 0)
            *q = strtod(at + 2, NULL);
        if (at >= p + element)
            break;
    }
    return p + element;
}

static bool is_word(const char *name, size_t len, const char *word)
{
    return len == strlen(word) && strncasecmp(name, word, len) == 0;
}

const char *zt_stats_content_type(const char *accept)
{
    const char *name;
    size_t len;
    double q;
    for (const char *p = accept; p && (p = next_element(p, &name, &len, &q));)
        if (is_word(name, len, OPENMETRICS))
            return OPENMETRICS ";charset=utf-8;version=1.0.0";
    return "text/plain; charset=utf-8";
}

enum zt_encoding zt_stats_encoding(const char *accept_encoding)
{
    const char *name;
    size_t len;
    double q, gzip = -1., identity = -1., any = -1.;
    for (const char *p = accept_encoding; p && (p = next_element(p, &name, &len, &q));) {
        if (is_word(name, len, "gzip") || is_word(name, len, "x-gzip"))
            gzip = q;
        else if (is_word(name, len, "identity"))
            identity = q;
        else if (is_word(name, len, "*"))
            any = q;
    }
    if (gzip < 0.)
        gzip = any < 0. ? 0. : any;
    /* Identity is acceptable unless it is refused, by name or by "*;q=0" (RFC 9110 §12.5.3). */
    bool identity_ok = identity >= 0. ? identity > 0. : any != 0.;
    if (gzip > 0. && (identity < gzip || !identity_ok || identity < 0.))
        return ZT_ENCODING_GZIP;
    return identity_ok ? ZT_ENCODING_IDENTITY : ZT_ENCODING_NONE;
}

/* ---- requests ---- */

static enum zt_encoding choose_encoding(struct zt_http1_request *r)
{
    struct zt_str value;
    zt_str_init(&value, ZT_HTTP1_HEAD_BYTES_MAX);
    bool given = zt_http1_request_header(r, "accept-encoding", &value);
    enum zt_encoding e = given ? zt_stats_encoding(zt_str_cstr(&value)) : ZT_ENCODING_IDENTITY;
    zt_str_fini(&value);
    return e;
}

static const char *choose_content_type(struct zt_http1_request *r)
{
    struct zt_str value;
    zt_str_init(&value, ZT_HTTP1_HEAD_BYTES_MAX);
    zt_http1_request_header(r, "accept", &value);
    const char *type = zt_stats_content_type(zt_str_cstr(&value));
    zt_str_fini(&value);
    return type;
}

/* ---- the document ---- */

struct document {
    struct zt_metrics_scrape *scrape;
    uint64_t started_ms;
    bool packed, more; /* more: of the text */
    z_stream z;
    struct zt_str text;
};

static void document_free(void *arg)
{
    struct document *d = arg;
    zt_metrics_scrape_free(d->scrape);
    if (d->packed)
        deflateEnd(&d->z);
    zt_str_fini(&d->text);
    zt_free(d);
}

/* Packs what is in d->text, and at the end of it all closes the gzip stream. Flushed every time: labels pack so well that zlib would
 * otherwise swallow megabytes in one turn before it gives something to send. */
static void pack(struct document *d, struct zt_str *piece)
{
    unsigned char out[16384];
    d->z.next_in = (Bytef *)(uintptr_t)zt_str_cstr(&d->text);
    d->z.avail_in = (uInt)d->text.len;
    do {
        d->z.next_out = out;
        d->z.avail_out = sizeof out;
        deflate(&d->z, d->more ? Z_SYNC_FLUSH : Z_FINISH);
        zt_str_add_n(piece, out, sizeof out - d->z.avail_out);
    } while (d->z.avail_out == 0);
}

static bool next_packed(struct document *d, struct zt_str *piece)
{
    zt_str_clear(&d->text);
    d->more = zt_metrics_scrape_next(d->scrape, &d->text, PIECE_BYTES);
    pack(d, piece);
    return d->more;
}

static bool next_piece(void *arg, struct zt_str *piece)
{
    struct document *d = arg;
    if (zt_clock_mono_ms() - d->started_ms > ZT_STATS_SCRAPE_MS_MAX) {
        piece->overflow = true; /* cut: the client must not take this for all */
        return false;
    }
    if (d->packed)
        return next_packed(d, piece);
    return zt_metrics_scrape_next(d->scrape, piece, PIECE_BYTES);
}

/* The counters are fresh: the document. */
static void answer(struct zt_stats *st, struct zt_http1_request *r)
{
    enum zt_encoding encoding = choose_encoding(r);
    if (encoding == ZT_ENCODING_NONE) {
        zt_http1_reply_text(r, 406, NULL, "");
        return;
    }
    struct document *d = zt_new(struct document);
    d->started_ms = zt_clock_mono_ms();
    d->more = true;
    zt_str_init(&d->text, ZT_HTTP1_PIECE_BYTES_MAX);
    d->packed = encoding == ZT_ENCODING_GZIP &&
                deflateInit2(&d->z, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW_BITS, 8, Z_DEFAULT_STRATEGY) == Z_OK;
    d->scrape = zt_metrics_scrape_new(st->metrics);
    zt_http1_reply_header(r, "vary", "accept-encoding");
    if (d->packed)
        zt_http1_reply_header(r, "content-encoding", "gzip");
    zt_http1_reply_stream(r, 200, choose_content_type(r), next_piece, document_free, d);
}

struct scrape {
    struct zt_stats *stats;
    struct zt_http1_request *request;
};

static void on_refreshed(void *arg)
{
    struct scrape *scrape = arg;
    answer(scrape->stats, scrape->request);
    zt_free(scrape);
}

static void on_stats(void *arg, struct zt_http1_request *r)
{
    struct zt_stats *st = arg;
    if (!st->refresh) {
        answer(st, r);
        return;
    }
    struct scrape *scrape = zt_new(struct scrape);
    *scrape = (struct scrape){st, r};
    st->refresh(st->arg, on_refreshed, scrape);
}

void zt_stats_routes(struct zt_http1 *s, struct zt_stats *st)
{
    zt_http1_route(s, "/metrics", ZT_HTTP1_ANY, on_stats, st);
    zt_http1_route(s, "/stats/prometheus", ZT_HTTP1_ANY, on_stats, st);
}
