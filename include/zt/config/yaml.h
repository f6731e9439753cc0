/* Reading YAML by events: one value after another, straight into fields, never a document tree.
 *
 * The first failure sticks: it sets the error ("name:line:column: path.of[1].keys: reason"), and from then on every function
 * returns false or "no more", so that a reader may check once per record. One document; anchors, aliases and foreign tags are
 * refused (except inside a skipped value); depth and scalar sizes are bounded. Thread: owner. */
#ifndef ZT_CONFIG_YAML_H
#define ZT_CONFIG_YAML_H

#include "zt/base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <yaml.h>

#define ZT_YAML_DEPTH_MAX 64
#define ZT_YAML_PATH_KEY_BYTES 48 /* of a key kept for error texts; longer ones are cut */

/* Memory that lives until the record under construction has been copied. Grows by chunks; reset keeps the first. */
struct zt_scratch_chunk;
struct zt_scratch {
    struct zt_scratch_chunk *chunks; /* newest first */
};
void zt_scratch_fini(struct zt_scratch *s);
void zt_scratch_reset(struct zt_scratch *s);
void *zt_scratch_alloc(struct zt_scratch *s, size_t bytes);                         /* zeroed */
const char *zt_scratch_dup(struct zt_scratch *s, const char *text, size_t len);     /* NUL-terminated */
/* Room for one more element after n; *cap counts elements. Returns the array, perhaps moved. */
void *zt_scratch_grow(struct zt_scratch *s, void *array, size_t n, size_t *cap, size_t element_bytes);

struct zt_yaml_level {
    yaml_mark_t start;
    bool list;
    uint32_t index; /* list: of the current item, counted from 1; 0 = none yet */
    char key[ZT_YAML_PATH_KEY_BYTES];
};

struct zt_yaml {
    yaml_parser_t parser;
    yaml_event_t event;
    bool have_event;  /* event is the next one and has not been consumed */
    bool stale_event; /* event has been consumed; its memory is freed by the next fetch */
    bool failed, skipping;
    unsigned depth, depth_max;
    size_t scalar_max;   /* bytes */
    yaml_mark_t at;      /* where the last event began */
    const char *name;    /* in error texts; borrowed */
    struct zt_error *err; /* borrowed */
    struct zt_scratch scratch;
    struct zt_yaml_level levels[ZT_YAML_DEPTH_MAX];
};

/* A scalar as read. value is borrowed (until the next call on the reader) and holds no NUL byte before its end. */
struct zt_yaml_text {
    const char *value;
    size_t len;
    const char *tag; /* "!Exact", or NULL */
    bool plain;      /* neither quoted nor a block */
};

/* name and err are borrowed (until fini). Set the input on r->parser after this. */
void zt_yaml_init(struct zt_yaml *r, const char *name, unsigned depth_max, size_t scalar_max, struct zt_error *err);
void zt_yaml_fini(struct zt_yaml *r);
/* Always false, so that a failing function ends in one line. */
__attribute__((format(printf, 2, 3))) bool zt_yaml_fail(struct zt_yaml *r, const char *fmt, ...);

/* To the root value. *empty: there is no document, or it holds nothing but null. */
bool zt_yaml_begin(struct zt_yaml *r, bool *empty);
/* After the root value: nothing may follow. */
bool zt_yaml_end(struct zt_yaml *r);

/* The next value is a null scalar: consumes it. */
bool zt_yaml_null(struct zt_yaml *r);
/* The next value's kind, without consuming it. */
bool zt_yaml_at_map(struct zt_yaml *r);
bool zt_yaml_at_scalar(struct zt_yaml *r);
/* The tag of the next value ("!Presence"), or NULL. Borrowed (until it is consumed). */
const char *zt_yaml_tag(struct zt_yaml *r);

/* An empty list or map, or null, whatever its tag: consumes it; fails on anything else. */
bool zt_yaml_empty(struct zt_yaml *r);
bool zt_yaml_map(struct zt_yaml *r); /* enters; a tag is refused, here and in a list */
/* The next key; false at the end of the map (which is left) or after a failure. */
bool zt_yaml_key(struct zt_yaml *r, struct zt_yaml_text *key);
bool zt_yaml_list(struct zt_yaml *r); /* enters */
/* Is there a next item? False at the end of the list (which is left) or after a failure. */
bool zt_yaml_item(struct zt_yaml *r);
bool zt_yaml_text(struct zt_yaml *r, struct zt_yaml_text *out);
bool zt_yaml_skip(struct zt_yaml *r); /* one value, however deep */

/* Keys of an object with a fixed set of them. names ends with NULL; at most 64. Returns the index of the next key's name, or -1 at
 * the end or after a failure (an unknown or repeated key is one). seen starts as 0. */
int zt_yaml_field(struct zt_yaml *r, const char *const *names, uint64_t *seen);
/* Fails, naming the first key of the mask required that is not in seen. Call right after the last zt_yaml_field: the position is
 * where the object began. */
bool zt_yaml_require(struct zt_yaml *r, const char *const *names, uint64_t seen, uint64_t required);

/* A string into scratch memory; null is "". */
bool zt_yaml_string(struct zt_yaml *r, const char **out);
/* A string that says something: neither null nor empty. */
bool zt_yaml_name(struct zt_yaml *r, const char **out);
bool zt_yaml_bool(struct zt_yaml *r, bool *out);
/* A plain decimal. */
bool zt_yaml_u32(struct zt_yaml *r, uint32_t max, uint32_t *out);
/* Decimal digits only, at most max. */
bool zt_yaml_digits(const char *text, size_t len, uint32_t max, uint32_t *out);
/* One of names (ends with NULL). */
bool zt_yaml_enum(struct zt_yaml *r, const char *const *names, unsigned *out);

#endif
