/* Free lists of I/O buffers.
 * Invariant: a buffer on a list belongs to nobody; under AddressSanitizer its bytes are poisoned,
 * so that a use after put is seen. */
#include "loop_impl.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

static const size_t class_bytes[ZT_BUF_CLASSES] = {
    [ZT_BUF_SMALL] = ZT_BUF_SMALL_BYTES,
    [ZT_BUF_MEDIUM] = ZT_BUF_MEDIUM_BYTES,
    [ZT_BUF_LARGE] = ZT_BUF_LARGE_BYTES,
};

size_t zt_buf_class_bytes(enum zt_buf_class c)
{
    ZT_ASSERT((unsigned)c < ZT_BUF_CLASSES);
    return class_bytes[c];
}

/* No other writer: a plain addition that readers may see at any time. */
static void change(_Atomic size_t *bytes, size_t by)
{
    atomic_store_explicit(bytes, atomic_load_explicit(bytes, memory_order_relaxed) + by, memory_order_relaxed);
}

uint8_t *zt_loop_bufs_get(struct zt_loop_bufs *b, enum zt_buf_class c)
{
    size_t size = zt_buf_class_bytes(c);
    struct zt_free_buf *head = b->free[c];
    change(&b->lent_bytes, size);
    if (!head)
        return zt_realloc(NULL, size);
    UNPOISON(head, size);
    b->free[c] = head->next;
    change(&b->free_bytes, -size);
    return (uint8_t *)head;
}

void zt_loop_bufs_put(struct zt_loop_bufs *b, uint8_t *buf, enum zt_buf_class c)
{
    if (!buf)
        return;
    size_t size = zt_buf_class_bytes(c);
    change(&b->lent_bytes, -size);
    if (b->free_bytes + size > ZT_BUF_FREE_MAX_BYTES) {
        zt_free(buf);
        return;
    }
    struct zt_free_buf *head = (struct zt_free_buf *)(void *)buf;
    head->next = b->free[c];
    b->free[c] = head;
    change(&b->free_bytes, size);
    POISON(buf, size);
}

void zt_loop_bufs_free(struct zt_loop_bufs *b)
{
    for (unsigned c = 0; c < ZT_BUF_CLASSES; c++) {
        struct zt_free_buf *at = b->free[c];
        while (at) {
            UNPOISON(at, class_bytes[c]);
            struct zt_free_buf *next = at->next;
            zt_free(at);
            at = next;
        }
        b->free[c] = NULL;
    }
    b->free_bytes = 0;
}
