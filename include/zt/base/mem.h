/* Allocation. A daemon has no better plan on exhaustion than to stop, so these never return NULL.
 * Sizes that come from a peer are checked against a named limit *before* they get here. Thread: any. */
#ifndef ZT_BASE_MEM_H
#define ZT_BASE_MEM_H

#include <stddef.h>

#define zt_new(T) ((T *)zt_zalloc(sizeof(T)))
#define zt_new_n(T, n) ((T *)zt_calloc((n), sizeof(T)))

void *zt_zalloc(size_t size);                  /* zeroed; returns owned */
void *zt_calloc(size_t n, size_t size);        /* zeroed, overflow checked; returns owned */
void *zt_realloc(void *p, size_t size);        /* takes p; returns owned */
char *zt_strdup(const char *s);                /* NULL gives NULL; returns owned */
char *zt_strndup(const char *s, size_t n);     /* returns owned, NUL-terminated */
void zt_free(void *p);                         /* takes p; NULL is legal */
void zt_free_const(const void *p);             /* takes p: for owned text behind const fields */
void zt_wipe_free(void *p, size_t size);       /* takes p; overwrites size bytes first (keys, tokens) */

/* Gives free pages back to the system. Takes every arena's lock in turn and milliseconds after a large fall: after load, not under it. */
void zt_mem_trim(void);

/* Bytes of live allocations in the whole process, libraries included, as the allocator counts them.
 * Slow (walks arenas): for dumps and tests only. */
size_t zt_mem_live_bytes(void);

#define zt_container_of(ptr, type, member)                                                         \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member) +                                     \
                      0 * sizeof((ptr) == &((type *)0)->member)))

#endif
