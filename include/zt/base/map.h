/* Hash tables: uthash with our hash (xxhash with a per-process random key, so that no peer can choose collisions) and our
 * out-of-memory rule. Include this, never <uthash.h>. Thread: the owner of the table. */
#ifndef ZT_BASE_MAP_H
#define ZT_BASE_MAP_H

#include "zt/base/mem.h"
#include <stddef.h>
#include <stdint.h>

/* The hash of all tables; differs from process to process. Thread: any. */
uint32_t zt_map_hash(const void *key, size_t len);

#define HASH_FUNCTION(keyptr, keylen, hashv)                                                       \
    do {                                                                                           \
        (hashv) = zt_map_hash((keyptr), (keylen));                                                 \
    } while (0)
#define uthash_malloc(size) zt_zalloc(size)
#define uthash_free(ptr, size) zt_free(ptr)
#include <uthash.h>

#endif
