/* What is there once per process and per worker, and what it looks like from outside. */
#include "dns_impl.h"

static char **copy_list(const char *const *list, unsigned n)
{
    char **own = zt_new_n(char *, n + 1);
    for (unsigned i = 0; i < n; i++)
        own[i] = zt_strdup(list[i]);
    return own;
}

struct zt_dns *zt_dns_new(const struct zt_dns_config *c, struct zt_store *store)
{
    struct zt_dns *d = zt_new(struct zt_dns);
    d->config = *c;
    d->config.domain = zt_strdup(c->domain);
    d->config.search = (const char *const *)copy_list(c->search, c->n_search);
    d->config.hosts_path = NULL;
    d->store = store;
    d->cache = dns_cache_new();
    d->leads = dns_leads_new();
    d->hosts = dns_hosts_read(c->hosts_path);
    return d;
}

void zt_dns_free(struct zt_dns *d)
{
    if (!d)
        return;
    for (unsigned i = 0; i < d->config.n_search; i++)
        zt_free_const(d->config.search[i]);
    zt_free_const(d->config.search);
    zt_free_const(d->config.domain);
    dns_hosts_free(d->hosts);
    dns_leads_free(d->leads);
    dns_cache_free(d->cache);
    zt_free(d);
}

struct zt_dns_worker *zt_dns_worker_new(struct zt_dns *d, struct zt_loop *l, struct zt_metrics_shard *shard)
{
    struct zt_dns_worker *w = zt_new(struct zt_dns_worker);
    w->dns = d;
    w->loop = l;
    w->shard = shard;
    w->next = d->workers;
    d->workers = w;
    zt_list_init(&w->all_flights);
    dns_upstreams_init(w);
    return w;
}

void zt_dns_worker_stop(struct zt_dns_worker *w)
{
    dns_flights_drop(w);
}

void zt_dns_worker_free(struct zt_dns_worker *w)
{
    if (!w)
        return;
    zt_name_answer_fini(&w->answer);
    struct zt_dns_worker **at = &w->dns->workers;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    zt_free(w);
}

bool zt_dns_resolve(struct zt_dns *d, const struct zt_workload *client, const char *name, enum zt_family family, struct zt_str *trace,
                    struct zt_name_answer *out)
{
    const struct zt_dns_config *c = &d->config;
    const struct zt_name_query q = {
        .name = name,
        .family = family,
        .client = client,
        .domain = c->domain,
        .search = c->own_search ? c->search : NULL,
        .n_search = c->n_search,
        .trace = trace,
    };
    bool ours = zt_names_resolve(d->store, &q, out);
    if (family == ZT_IPV6 && !c->ipv6)
        out->n_ips = 0;
    return ours;
}

/* ---- dump ---- */

static uint64_t read_u64(const atomic_uint_fast64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void dump_upstream(const struct zt_dns *d, unsigned i, struct zt_json *j)
{
    char text[ZT_ADDR_TEXT_MAX];
    uint64_t queries = 0, failures = 0, latency = 0, n = 0;
    for (const struct zt_dns_worker *w = d->workers; w; w = w->next) {
        const struct dns_upstream *u = &w->upstreams[i];
        uint64_t srtt = atomic_load_explicit(&u->srtt_us, memory_order_relaxed);
        queries += read_u64(&u->n_queries);
        failures += atomic_load_explicit(&u->failures, memory_order_relaxed);
        latency += srtt;
        n += srtt > 0;
    }
    zt_json_object(j);
    zt_json_key_str(j, "address", zt_addr_format(&d->workers->upstreams[i].addr, text));
    zt_json_key_u64(j, "queries", queries);
    zt_json_key_u64(j, "failuresInARow", failures);
    zt_json_key_u64(j, "latencyUs", n ? latency / n : 0);
    zt_json_object_end(j);
}

void zt_dns_dump(struct zt_dns *d, struct zt_json *j)
{
    struct dns_cache_stats s = dns_cache_stats(d->cache);
    zt_json_key(j, "cache");
    zt_json_object(j);
    zt_json_key_u64(j, "entries", s.entries);
    zt_json_key_u64(j, "entriesMax", ZT_DNS_CACHE_ENTRIES_MAX);
    zt_json_key_u64(j, "bytes", s.bytes);
    zt_json_key_u64(j, "bytesMax", ZT_DNS_CACHE_BYTES_MAX);
    zt_json_key_u64(j, "hits", s.hits);
    zt_json_key_u64(j, "misses", s.misses);
    zt_json_key_u64(j, "staleServed", s.stale);
    zt_json_object_end(j);
    zt_json_key_u64(j, "coalesced", read_u64(&d->n_coalesced));
    zt_json_key_u64(j, "askedAgain", read_u64(&d->n_hedged));
    zt_json_key_u64(j, "limited", read_u64(&d->n_limited));
    zt_json_key_u64(j, "ignoredAnswers", read_u64(&d->n_ignored));
    zt_json_key(j, "upstreams");
    zt_json_array(j);
    for (unsigned i = 0; d->workers && i < d->config.n_upstreams; i++)
        dump_upstream(d, i, j);
    zt_json_array_end(j);
}
