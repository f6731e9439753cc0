/* The hash of all tables: XXH3 with a secret drawn once per process. */
#include "zt/base/map.h"

#include "zt/base/err.h"
#include <pthread.h>
#include <sys/random.h>
#include <xxhash.h>

static uint8_t secret[XXH3_SECRET_SIZE_MIN];
static pthread_once_t secret_once = PTHREAD_ONCE_INIT;

static void draw_secret(void)
{
    /* Up to 256 bytes come whole once the kernel's pool is ready, so a short read is a bug. */
    ZT_ASSERT(getrandom(secret, sizeof secret, 0) == (ssize_t)sizeof secret);
}

uint32_t zt_map_hash(const void *key, size_t len)
{
    pthread_once(&secret_once, draw_secret);
    return (uint32_t)XXH3_64bits_withSecret(key, len, secret, sizeof secret);
}
