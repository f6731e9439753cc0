/* Resource name -> version: an open-addressing table of compact entries, for there may be a
 * million.
 *
 * Invariants: n <= 3/4 n_slots; an entry sits at the first free slot after the place its hash
 * names, with no gap between (removal closes gaps). wire_bytes is the length zt_xds_held_write
 * would give. */
#include "xds_impl.h"

#include "zt/base/map.h"
#include <string.h>

#define SLOTS_MIN 64
#define TAG_INITIAL_VERSIONS 0x2a /* field 5, bytes */
#define TAG_KEY 0x0a
#define TAG_VALUE 0x12

struct zt_xds_held_entry {
    uint32_t hash, mark;
    uint16_t name_len, version_len;
    char text[]; /* name NUL version NUL */
};

static const char *version_of(const struct zt_xds_held_entry *e)
{
    return e->text + e->name_len + 1;
}

static size_t varint_bytes(size_t v)
{
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

static size_t inner_bytes(const struct zt_xds_held_entry *e)
{
    return 2 + varint_bytes(e->name_len) + e->name_len + varint_bytes(e->version_len) +
           e->version_len;
}

static size_t entry_wire_bytes(const struct zt_xds_held_entry *e)
{
    size_t inner = inner_bytes(e);
    return 1 + varint_bytes(inner) + inner;
}

void zt_xds_held_fini(struct zt_xds_held *h)
{
    for (size_t i = 0; i < h->n_slots; i++)
        zt_free(h->slots[i]);
    zt_free(h->slots);
    *h = (struct zt_xds_held){0};
}

/* The slot of name, or the free one where it belongs. n_slots > 0. */
static size_t find_slot(const struct zt_xds_held *h, const char *name, size_t len, uint32_t hash)
{
    size_t i = hash & (h->n_slots - 1);
    for (; h->slots[i]; i = (i + 1) & (h->n_slots - 1)) {
        const struct zt_xds_held_entry *e = h->slots[i];
        if (e->hash == hash && e->name_len == len && memcmp(e->text, name, len) == 0)
            break;
    }
    return i;
}

static void grow(struct zt_xds_held *h)
{
    struct zt_xds_held_entry **old = h->slots;
    size_t n_old = h->n_slots;
    h->n_slots = n_old ? n_old * 2 : SLOTS_MIN;
    h->slots = zt_new_n(struct zt_xds_held_entry *, h->n_slots);
    for (size_t i = 0; i < n_old; i++) {
        if (!old[i])
            continue;
        size_t k = old[i]->hash & (h->n_slots - 1);
        while (h->slots[k])
            k = (k + 1) & (h->n_slots - 1);
        h->slots[k] = old[i];
    }
    zt_free(old);
}

static struct zt_xds_held_entry *entry_new(const char *name, size_t name_len, const char *version,
                                           uint32_t hash)
{
    size_t version_len = strlen(version);
    ZT_ASSERT(name_len <= ZT_XDS_NAME_BYTES_MAX && version_len <= ZT_XDS_NAME_BYTES_MAX);
    struct zt_xds_held_entry *e = zt_zalloc(sizeof *e + name_len + version_len + 2);
    e->hash = hash;
    e->name_len = (uint16_t)name_len;
    e->version_len = (uint16_t)version_len;
    memcpy(e->text, name, name_len);
    memcpy(e->text + name_len + 1, version, version_len);
    return e;
}

void zt_xds_held_put(struct zt_xds_held *h, const char *name, const char *version, uint32_t mark)
{
    size_t len = strlen(name);
    uint32_t hash = zt_map_hash(name, len);
    if (version && h->n + 1 > h->n_slots / 4 * 3)
        grow(h);
    if (h->n_slots == 0)
        return;
    size_t i = find_slot(h, name, len, hash);
    struct zt_xds_held_entry *e = h->slots[i];
    if (version && (!e || strcmp(version_of(e), version) != 0)) {
        if (e)
            h->wire_bytes -= entry_wire_bytes(e);
        else
            h->n++;
        zt_free(e);
        e = h->slots[i] = entry_new(name, len, version, hash);
        h->wire_bytes += entry_wire_bytes(e);
    }
    if (e)
        e->mark = mark;
}

bool zt_xds_held_has(const struct zt_xds_held *h, const char *name)
{
    size_t len = strlen(name);
    return h->n_slots > 0 && h->slots[find_slot(h, name, len, zt_map_hash(name, len))];
}

/* Moves later entries of the run into the gap at i. */
static void close_gap(struct zt_xds_held *h, size_t i)
{
    size_t mask = h->n_slots - 1;
    for (size_t k = (i + 1) & mask; h->slots[k]; k = (k + 1) & mask) {
        size_t home = h->slots[k]->hash & mask;
        if (((k - home) & mask) < ((k - i) & mask))
            continue; /* its home lies behind the gap */
        h->slots[i] = h->slots[k];
        h->slots[k] = NULL;
        i = k;
    }
}

bool zt_xds_held_remove(struct zt_xds_held *h, const char *name)
{
    size_t len = strlen(name);
    if (h->n_slots == 0)
        return false;
    size_t i = find_slot(h, name, len, zt_map_hash(name, len));
    struct zt_xds_held_entry *e = h->slots[i];
    if (!e)
        return false;
    h->wire_bytes -= entry_wire_bytes(e);
    h->n--;
    h->slots[i] = NULL;
    close_gap(h, i);
    zt_free(e);
    return true;
}

const char **zt_xds_held_unmarked(const struct zt_xds_held *h, uint32_t mark, size_t *n)
{
    const char **names = zt_new_n(const char *, h->n + 1);
    *n = 0;
    for (size_t i = 0; i < h->n_slots; i++)
        if (h->slots[i] && h->slots[i]->mark != mark)
            names[(*n)++] = h->slots[i]->text;
    return names;
}

static void add_varint(struct zt_str *out, size_t v)
{
    for (; v >= 0x80; v >>= 7)
        zt_str_add_char(out, (char)(uint8_t)(v | 0x80));
    zt_str_add_char(out, (char)v);
}

void zt_xds_held_write(const struct zt_xds_held *h, struct zt_str *out)
{
    for (size_t i = 0; i < h->n_slots; i++) {
        const struct zt_xds_held_entry *e = h->slots[i];
        if (!e)
            continue;
        zt_str_add_char(out, TAG_INITIAL_VERSIONS);
        add_varint(out, inner_bytes(e));
        zt_str_add_char(out, TAG_KEY);
        add_varint(out, e->name_len);
        zt_str_add_n(out, e->text, e->name_len);
        zt_str_add_char(out, TAG_VALUE);
        add_varint(out, e->version_len);
        zt_str_add_n(out, version_of(e), e->version_len);
    }
}
