/* The node's cache of what upstreams answered: whole messages by question and flags. What depends on who asks - the names of the state -
 * is never in here, and a key has the asker's scope (forward.c): pods of another identity never get what one of them may have forged.
 *
 *   fresh   until its TTL is over
 *   stale   STALE_KEEP longer: served only while the upstreams fail (RFC 8767)
 *
 * When it is full, the scope that holds the most bytes loses what it has not used for longest: whoever keeps to his part is not evicted by
 * others, and may have all of it while nobody else wants any.
 *
 * One mutex for all workers; it is held for a hash lookup and a copy, and a walk over the scopes when something has to go. */
#include "dns_impl.h"

#include <pthread.h>

#define STALE_KEEP_MS (24ull * 3600 * 1000)
#define RETRY_PAUSE_MS 30000 /* a stale answer serves that long before the upstreams are tried again (RFC 8767 §5) */

/* What one scope holds; it goes with its last entry. */
struct share {
    UT_hash_handle hh;
    struct zt_link lru; /* the oldest first */
    size_t bytes, scope_len;
    uint8_t scope[];
};

struct entry {
    UT_hash_handle hh;
    struct zt_link lru_link;
    struct share *share;
    uint64_t stored_ms, expires_ms, retry_ms;
    size_t len;
    uint8_t *wire; /* behind the key */
    size_t key_len;
    uint8_t key[];
};

struct dns_cache {
    pthread_mutex_t mutex;
    struct entry *entries;
    struct share *shares;
    struct dns_cache_stats stats;
};

struct dns_cache *dns_cache_new(void)
{
    struct dns_cache *c = zt_new(struct dns_cache);
    pthread_mutex_init(&c->mutex, NULL);
    return c;
}

static size_t size_of(const struct entry *e)
{
    return sizeof *e + e->key_len + e->len;
}

static struct share *share_of(struct dns_cache *c, const struct dns_key *k)
{
    struct share *s;
    const uint8_t *scope = k->bytes + k->len - k->scope_len;
    HASH_FIND(hh, c->shares, scope, k->scope_len, s);
    if (s)
        return s;
    s = zt_zalloc(sizeof *s + k->scope_len);
    s->scope_len = k->scope_len;
    memcpy(s->scope, scope, k->scope_len);
    zt_list_init(&s->lru);
    HASH_ADD(hh, c->shares, scope, k->scope_len, s);
    return s;
}

static void drop(struct dns_cache *c, struct entry *e)
{
    struct share *s = e->share;
    HASH_DEL(c->entries, e);
    zt_list_remove(&e->lru_link);
    c->stats.entries--;
    c->stats.bytes -= size_of(e);
    s->bytes -= size_of(e);
    zt_free(e);
    if (zt_list_empty(&s->lru)) {
        HASH_DEL(c->shares, s);
        zt_free(s);
    }
}

static void drop_one(struct dns_cache *c)
{
    struct share *largest = c->shares;
    for (struct share *s = largest; s; s = s->hh.next)
        if (s->bytes > largest->bytes)
            largest = s;
    drop(c, zt_container_of(zt_list_first(&largest->lru), struct entry, lru_link));
}

void dns_cache_free(struct dns_cache *c)
{
    while (c->shares)
        drop_one(c);
    pthread_mutex_destroy(&c->mutex);
    zt_free(c);
}

static struct entry *find(struct dns_cache *c, const struct dns_key *k)
{
    struct entry *e;
    HASH_FIND(hh, c->entries, k->bytes, k->len, e);
    return e;
}

struct dns_cached dns_cache_get(struct dns_cache *c, const struct dns_key *k, uint8_t *out)
{
    struct dns_cached got = {DNS_MISS};
    uint64_t now = zt_clock_mono_ms();
    pthread_mutex_lock(&c->mutex);
    struct entry *e = find(c, k);
    if (e && now >= e->expires_ms + STALE_KEEP_MS) {
        drop(c, e);
        e = NULL;
    }
    if (e) {
        zt_list_remove(&e->lru_link);
        zt_list_push_back(&e->share->lru, &e->lru_link);
        memcpy(out, e->wire, e->len);
        got = (struct dns_cached){.freshness = now < e->expires_ms ? DNS_FRESH : DNS_STALE, .len = e->len,
                                  .age_s = (uint32_t)((now - e->stored_ms) / 1000), .retry_later = now < e->retry_ms};
    }
    c->stats.hits += got.freshness == DNS_FRESH;
    c->stats.misses += got.freshness != DNS_FRESH;
    pthread_mutex_unlock(&c->mutex);
    return got;
}

void dns_cache_put(struct dns_cache *c, const struct dns_key *k, const uint8_t *wire, size_t len, uint32_t ttl_s)
{
    if (ttl_s == 0)
        return;
    struct entry *e = zt_zalloc(sizeof *e + k->len + len);
    e->key_len = k->len;
    e->wire = e->key + k->len;
    e->len = len;
    memcpy(e->key, k->bytes, k->len);
    memcpy(e->wire, wire, len);
    e->stored_ms = zt_clock_mono_ms();
    e->expires_ms = e->stored_ms + ttl_s * 1000ull;
    pthread_mutex_lock(&c->mutex);
    struct entry *old = find(c, k);
    if (old)
        drop(c, old);
    e->share = share_of(c, k);
    HASH_ADD(hh, c->entries, key, k->len, e);
    zt_list_push_back(&e->share->lru, &e->lru_link);
    c->stats.entries++;
    c->stats.bytes += size_of(e);
    e->share->bytes += size_of(e);
    while (c->stats.entries > ZT_DNS_CACHE_ENTRIES_MAX || c->stats.bytes > ZT_DNS_CACHE_BYTES_MAX)
        drop_one(c);
    pthread_mutex_unlock(&c->mutex);
}

void dns_cache_failed(struct dns_cache *c, const struct dns_key *k)
{
    pthread_mutex_lock(&c->mutex);
    struct entry *e = find(c, k);
    if (e)
        e->retry_ms = zt_clock_mono_ms() + RETRY_PAUSE_MS;
    pthread_mutex_unlock(&c->mutex);
}

void dns_cache_count_stale(struct dns_cache *c)
{
    pthread_mutex_lock(&c->mutex);
    c->stats.stale++;
    pthread_mutex_unlock(&c->mutex);
}

struct dns_cache_stats dns_cache_stats(struct dns_cache *c)
{
    pthread_mutex_lock(&c->mutex);
    struct dns_cache_stats s = c->stats;
    pthread_mutex_unlock(&c->mutex);
    return s;
}
