/* Allocation that never fails: the only file that calls the C allocator.
 * Invariant: no function here returns NULL, except zt_strdup(NULL). */
#include "zt/base/mem.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Present only in builds with AddressSanitizer, which replaces the allocator that mallinfo2 looks
 * at. */
extern size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static _Noreturn void out_of_memory(size_t size)
{
    fprintf(stderr, "out of memory: allocation of %zu bytes failed\n", size);
    abort();
}

void *zt_zalloc(size_t size)
{
    return zt_calloc(1, size);
}

void *zt_calloc(size_t n, size_t size)
{
    if (n == 0 || size == 0)
        n = size = 1;
    void *p = calloc(n, size); /* checks the product */
    if (!p)
        out_of_memory(size);
    return p;
}

void *zt_realloc(void *p, size_t size)
{
    void *q = realloc(p, size ? size : 1);
    if (!q)
        out_of_memory(size);
    return q;
}

char *zt_strdup(const char *s)
{
    return s ? zt_strndup(s, strlen(s)) : NULL;
}

char *zt_strndup(const char *s, size_t n)
{
    n = n ? strnlen(s, n) : 0;
    char *copy = zt_realloc(NULL, n + 1);
    if (n)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

void zt_free(void *p)
{
    free(p);
}

void zt_free_const(const void *p)
{
    union {
        const void *in;
        void *out;
    } u = {p};
    free(u.out);
}

void zt_wipe_free(void *p, size_t size)
{
    if (p)
        explicit_bzero(p, size);
    free(p);
}

void zt_mem_trim(void)
{
    malloc_trim(0);
}

size_t zt_mem_live_bytes(void)
{
    if (__sanitizer_get_current_allocated_bytes)
        return __sanitizer_get_current_allocated_bytes();
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}
