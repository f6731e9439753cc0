/* The arena of one resource: chunks that double, one of them kept over a reset.
 * Invariant: nothing is given out beyond ZT_XDS_ARENA_BYTES_MAX; who asks for more gets NULL, and
 * so protobuf-c gives up on a resource that would blow up (two bytes on the wire can become a
 * hundred in memory). */
#include "xds_impl.h"

#include "zt/base/mem.h"
#include <string.h>

#define FIRST_CHUNK_BYTES 16384
#define KEEP_BYTES_MAX (1u << 20) /* a larger chunk is not kept */
#define ALIGN 16

struct zt_arena_chunk {
    struct zt_arena_chunk *next; /* older, full */
    size_t size, used;
    _Alignas(ALIGN) uint8_t bytes[];
};

static void *pb_alloc(void *arena, size_t size)
{
    return zt_arena_take(arena, 1, size);
}

static void pb_free(void *arena, void *p)
{
    /* all at once, in reset */
}

void zt_arena_init(struct zt_arena *a)
{
    *a = (struct zt_arena){.pb = {.alloc = pb_alloc, .free = pb_free, .allocator_data = a}};
}

static void free_chunks(struct zt_arena_chunk *c)
{
    while (c) {
        struct zt_arena_chunk *next = c->next;
        zt_free(c);
        c = next;
    }
}

void zt_arena_fini(struct zt_arena *a)
{
    free_chunks(a->chunks);
    a->chunks = NULL;
}

void zt_arena_reset(struct zt_arena *a)
{
    struct zt_arena_chunk *c = a->chunks;
    a->used = 0;
    a->exhausted = false;
    if (!c)
        return;
    free_chunks(c->next);
    c->next = NULL;
    c->used = 0;
    if (c->size <= KEEP_BYTES_MAX)
        return;
    zt_free(c);
    a->chunks = NULL;
}

static struct zt_arena_chunk *add_chunk(struct zt_arena *a, size_t need)
{
    size_t size = a->chunks ? a->chunks->size * 2 : FIRST_CHUNK_BYTES;
    if (size > KEEP_BYTES_MAX)
        size = KEEP_BYTES_MAX;
    if (size < need)
        size = need;
    struct zt_arena_chunk *c = zt_zalloc(sizeof *c + size);
    c->size = size;
    c->next = a->chunks;
    a->chunks = c;
    return c;
}

void *zt_arena_take(struct zt_arena *a, size_t n, size_t size)
{
    if (size && n > ZT_XDS_ARENA_BYTES_MAX / size) {
        a->exhausted = true;
        return NULL;
    }
    size_t bytes = (n * size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (bytes == 0)
        bytes = ALIGN; /* a pointer of its own: NULL means exhausted */
    if (bytes > ZT_XDS_ARENA_BYTES_MAX - a->used) {
        a->exhausted = true;
        return NULL;
    }
    struct zt_arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < bytes)
        c = add_chunk(a, bytes);
    void *p = c->bytes + c->used;
    c->used += bytes;
    a->used += bytes;
    return p;
}

char *zt_arena_text(struct zt_arena *a, const uint8_t *bytes, size_t n)
{
    char *text = zt_arena_take(a, 1, n + 1);
    if (!text)
        return NULL;
    memcpy(text, bytes, n);
    text[n] = '\0';
    return text;
}
