/* Memory for nghttp2. Of all that a session takes, half is one frame buffer for the longest frame, of which ours use only the
 * first bytes: DATA goes out from the caller's memory, and headers are short. It is mapped by itself, so that its untouched pages
 * cost nothing; in recycled heap memory all of them would be resident. Everything else is the heap's.
 * Invariant: s->frame_buf is that mapping while nghttp2 holds it; a second one of that size comes from the heap. */
#include "h2_impl.h"

#include <string.h>
#include <sys/mman.h>

/* A frame of the default SETTINGS_MAX_FRAME_SIZE, and room for what else nghttp2 puts in front of it. */
#define FRAME_BUF_MIN (16 * 1024)
#define FRAME_BUF_BYTES (20 * 1024)

static void *mem_malloc(size_t size, void *user)
{
    struct zt_h2_session *s = user;
    if (size >= FRAME_BUF_MIN && size <= FRAME_BUF_BYTES && !s->frame_buf) {
        void *p = mmap(NULL, FRAME_BUF_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED)
            return s->frame_buf = p;
    }
    return zt_realloc(NULL, size);
}

static void mem_free(void *p, void *user)
{
    struct zt_h2_session *s = user;
    if (!p || p != s->frame_buf) {
        zt_free(p);
        return;
    }
    munmap(p, FRAME_BUF_BYTES);
    s->frame_buf = NULL;
}

static void *mem_calloc(size_t n, size_t size, void *user)
{
    return zt_calloc(n, size);
}

static void *mem_realloc(void *p, size_t size, void *user)
{
    struct zt_h2_session *s = user;
    if (!p)
        return mem_malloc(size, s); /* how nghttp2 takes its buffers */
    if (p != s->frame_buf)
        return zt_realloc(p, size);
    void *moved = zt_realloc(NULL, size);
    memcpy(moved, p, size < FRAME_BUF_BYTES ? size : FRAME_BUF_BYTES);
    mem_free(p, s);
    return moved;
}

nghttp2_mem h2_mem(struct zt_h2_session *s)
{
    return (nghttp2_mem){.mem_user_data = s, .malloc = mem_malloc, .free = mem_free, .calloc = mem_calloc, .realloc = mem_realloc};
}
