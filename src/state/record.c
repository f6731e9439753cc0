/* How records are stored: one allocation each, strings that many records repeat shared in one
 * table, and a graveyard.
 *
 * Invariants:
 *  - a record is laid out by one function run twice, so its size can not disagree with its content;
 *  - dropping the last reference never frees: it pushes the record on a list (one atomic exchange),
 * so a worker pays a few nanoseconds; control empties the list. The list is the only lock-free
 * thing here, and it is push-all-pop only, so no ABA;
 *  - a shared string lives as long as some record, buried ones included, points to it. */
#include "state_impl.h"

#include <string.h>

struct shared_text {
    UT_hash_handle hh;
    uint32_t refs;
    char text[];
};

/* In front of every record. */
struct grave {
    struct grave *next;
    void (*fini)(void *record);
};
_Static_assert(sizeof(struct grave) % _Alignof(max_align_t) == 0, "records stay aligned");

static pthread_mutex_t texts_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct shared_text *texts;
static size_t n_texts;
static _Atomic(struct grave *) graveyard;

static const char *text_share(const char *s, size_t len)
{
    struct shared_text *t;
    pthread_mutex_lock(&texts_mutex);
    HASH_FIND(hh, texts, s, len, t);
    if (!t) {
        t = zt_zalloc(sizeof *t + len + 1);
        memcpy(t->text, s, len);
        HASH_ADD_KEYPTR(hh, texts, t->text, len, t);
        n_texts++;
    }
    t->refs++;
    pthread_mutex_unlock(&texts_mutex);
    return t->text;
}

void zt_text_release(const char *shared)
{
    if (!shared || !*shared)
        return;
    struct shared_text *t =
        (struct shared_text *)((uintptr_t)shared - offsetof(struct shared_text, text));
    pthread_mutex_lock(&texts_mutex);
    ZT_ASSERT(t->refs > 0);
    if (--t->refs == 0) {
        HASH_DELETE(hh, texts, t);
        n_texts--;
        zt_free(t);
    }
    pthread_mutex_unlock(&texts_mutex);
}

size_t zt_text_count(void)
{
    pthread_mutex_lock(&texts_mutex);
    size_t n = n_texts;
    pthread_mutex_unlock(&texts_mutex);
    return n;
}

void *zt_builder_take(struct zt_builder *b, size_t n, size_t size, size_t align)
{
    if (n == 0)
        return NULL;
    b->used = (b->used + align - 1) / align * align;
    void *at = b->base ? b->base + b->used : NULL;
    b->used += n * size;
    return at;
}

void *zt_builder_copy(struct zt_builder *b, const void *src, size_t n, size_t size, size_t align)
{
    void *at = zt_builder_take(b, n, size, align);
    if (at)
        memcpy(at, src, n * size);
    return at;
}

/* Length of a text that is to be stored; 0 for NULL and for one that is too long. */
static size_t text_len(struct zt_builder *b, const char *s)
{
    if (!s)
        return 0;
    size_t len = strnlen(s, ZT_RECORD_TEXT_MAX + 1);
    if (len > ZT_RECORD_TEXT_MAX) {
        b->too_long = true;
        return 0;
    }
    return len;
}

const char *zt_builder_text(struct zt_builder *b, const char *s)
{
    size_t len = text_len(b, s);
    if (len == 0)
        return "";
    const char *at = zt_builder_copy(b, s, len + 1, 1, 1);
    return at ? at : "";
}

const char *zt_builder_shared(struct zt_builder *b, const char *s)
{
    size_t len = text_len(b, s);
    if (len == 0 || !b->base)
        return "";
    return text_share(s, len);
}

void *zt_record_new(size_t size, void (*fini)(void *record))
{
    struct grave *g = zt_zalloc(sizeof *g + size);
    g->fini = fini;
    return g + 1;
}

void zt_record_bury(void *record)
{
    struct grave *g = (struct grave *)record - 1;
    struct grave *head = atomic_load_explicit(&graveyard, memory_order_relaxed);
    do
        g->next = head;
    while (!atomic_compare_exchange_weak_explicit(&graveyard, &head, g, memory_order_release,
                                                  memory_order_relaxed));
}

void zt_record_collect(void)
{
    struct grave *g = atomic_exchange_explicit(&graveyard, NULL, memory_order_acquire);
    while (g) {
        struct grave *next = g->next;
        if (g->fini)
            g->fini(g + 1);
        zt_free(g);
        g = next;
    }
}
