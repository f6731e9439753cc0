/* The node's cache of what upstreams answered: whole messages by question and flags, least recently used first to go. What depends on
 * who asks - the names of the state - is never in here, and a key has the asker's scope (forward.c): pods of another identity never
 * get what one of them may have forged.
 *
 *   fresh   until its TTL is over
 *   stale   STALE_KEEP longer: served only while the upstreams fail (RFC 8767)
 *
 * One mutex for all workers; it is held for a hash lookup and a copy. */
#include "dns_impl.h"

#include <pthread.h>

#define STALE_KEEP_MS (24ull * 3600 * 1000)
#define RETRY_PAUSE_MS 30000 /* a stale answer serves that long before the upstreams are tried again (RFC 8767 §5) */

struct entry {
    UT_hash_handle hh;
    struct zt_link lru_link;
    uint64_t stored_ms, expires_ms, retry_ms;
    size_t len;
    uint8_t *wire; /* behind the key */
    size_t key_len;
    uint8_t key[];
};

struct dns_cache {
    pthread_mutex_t mutex;
    struct entry *entries;
    struct zt_link lru; /* the oldest first */
    struct dns_cache_stats stats;
};

struct dns_cache *dns_cache_new(void)
{
    struct dns_cache *c = zt_new(struct dns_cache);
    pthread_mutex_init(&c->mutex, NULL);
    zt_list_init(&c->lru);
    return c;
}

static void drop(struct dns_cache *c, struct entry *e)
{
    HASH_DEL(c->entries, e);
    zt_list_remove(&e->lru_link);
    c->stats.entries--;
    c->stats.bytes -= sizeof *e + e->key_len + e->len;
    zt_free(e);
}

void dns_cache_free(struct dns_cache *c)
{
    struct zt_link *link;
    while ((link = zt_list_first(&c->lru)))
        drop(c, zt_container_of(link, struct entry, lru_link));
    pthread_mutex_destroy(&c->mutex);
    zt_free(c);
}

static struct entry *find(struct dns_cache *c, const uint8_t *key, size_t key_len)
{
    struct entry *e;
    HASH_FIND(hh, c->entries, key, key_len, e);
    return e;
}

struct dns_cached dns_cache_get(struct dns_cache *c, const uint8_t *key, size_t key_len, uint8_t *out)
{
    struct dns_cached got = {DNS_MISS};
    uint64_t now = zt_clock_mono_ms();
    pthread_mutex_lock(&c->mutex);
    struct entry *e = find(c, key, key_len);
    if (e && now >= e->expires_ms + STALE_KEEP_MS) {
        drop(c, e);
        e = NULL;
    }
    if (e) {
        zt_list_remove(&e->lru_link);
        zt_list_push_back(&c->lru, &e->lru_link);
        memcpy(out, e->wire, e->len);
        got = (struct dns_cached){.freshness = now < e->expires_ms ? DNS_FRESH : DNS_STALE, .len = e->len,
                                  .age_s = (uint32_t)((now - e->stored_ms) / 1000), .retry_later = now < e->retry_ms};
    }
    c->stats.hits += got.freshness == DNS_FRESH;
    c->stats.misses += got.freshness != DNS_FRESH;
    pthread_mutex_unlock(&c->mutex);
    return got;
}

void dns_cache_put(struct dns_cache *c, const uint8_t *key, size_t key_len, const uint8_t *wire, size_t len, uint32_t ttl_s)
{
    if (ttl_s == 0)
        return;
    struct entry *e = zt_zalloc(sizeof *e + key_len + len);
    e->key_len = key_len;
    e->wire = e->key + key_len;
    e->len = len;
    memcpy(e->key, key, key_len);
    memcpy(e->wire, wire, len);
    e->stored_ms = zt_clock_mono_ms();
    e->expires_ms = e->stored_ms + ttl_s * 1000ull;
    pthread_mutex_lock(&c->mutex);
    struct entry *old = find(c, key, key_len);
    if (old)
        drop(c, old);
    HASH_ADD(hh, c->entries, key, key_len, e);
    zt_list_push_back(&c->lru, &e->lru_link);
    c->stats.entries++;
    c->stats.bytes += sizeof *e + key_len + len;
    while (c->stats.entries > ZT_DNS_CACHE_ENTRIES_MAX || c->stats.bytes > ZT_DNS_CACHE_BYTES_MAX)
        drop(c, zt_container_of(zt_list_first(&c->lru), struct entry, lru_link));
    pthread_mutex_unlock(&c->mutex);
}

void dns_cache_failed(struct dns_cache *c, const uint8_t *key, size_t key_len)
{
    pthread_mutex_lock(&c->mutex);
    struct entry *e = find(c, key, key_len);
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
