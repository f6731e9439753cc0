/* The pull reader over libyaml's events.
 * Invariants: at most one event is held; levels[0 .. depth) are the containers we are inside; once failed is set, err holds the first
 * failure and nothing more is fetched. */
#include "zt/config/yaml.h"

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PATH_TEXT_MAX 192 /* bytes of the path in an error text */
#define CORE_TAG "tag:yaml.org,2002:"

/* ---- scratch memory ---------------------------------------------------------------------------- */

#define SCRATCH_CHUNK_BYTES 16384

struct zt_scratch_chunk {
    struct zt_scratch_chunk *next;
    size_t used, cap; /* bytes of data */
    max_align_t data[];
};

static struct zt_scratch_chunk *chunk_new(size_t cap, struct zt_scratch_chunk *next)
{
    struct zt_scratch_chunk *c = zt_realloc(NULL, sizeof *c + cap);
    *c = (struct zt_scratch_chunk){.next = next, .cap = cap};
    return c;
}

void zt_scratch_fini(struct zt_scratch *s)
{
    while (s->chunks) {
        struct zt_scratch_chunk *next = s->chunks->next;
        zt_free(s->chunks);
        s->chunks = next;
    }
}

void zt_scratch_reset(struct zt_scratch *s)
{
    while (s->chunks && s->chunks->next) {
        struct zt_scratch_chunk *next = s->chunks->next;
        zt_free(s->chunks);
        s->chunks = next;
    }
    if (s->chunks)
        s->chunks->used = 0;
}

void *zt_scratch_alloc(struct zt_scratch *s, size_t bytes)
{
    size_t need = (bytes + sizeof(max_align_t) - 1) & ~(sizeof(max_align_t) - 1);
    if (!s->chunks || s->chunks->cap - s->chunks->used < need)
        s->chunks = chunk_new(need > SCRATCH_CHUNK_BYTES ? need : SCRATCH_CHUNK_BYTES, s->chunks);
    void *p = (char *)s->chunks->data + s->chunks->used;
    s->chunks->used += need;
    memset(p, 0, need);
    return p;
}

const char *zt_scratch_dup(struct zt_scratch *s, const char *text, size_t len)
{
    char *p = zt_scratch_alloc(s, len + 1);
    memcpy(p, text, len);
    return p;
}

void *zt_scratch_grow(struct zt_scratch *s, void *array, size_t n, size_t *cap, size_t element_bytes)
{
    if (n < *cap)
        return array;
    size_t more = *cap ? *cap * 2 : 4;
    void *bigger = zt_scratch_alloc(s, more * element_bytes);
    if (n)
        memcpy(bigger, array, n * element_bytes);
    *cap = more;
    return bigger;
}

/* ---- errors ------------------------------------------------------------------------------------ */

/* "workloads[2].services.default/x: " or nothing at the root. */
static void describe_path(const struct zt_yaml *r, struct zt_str *out)
{
    for (unsigned i = 0; i < r->depth; i++) {
        const struct zt_yaml_level *l = &r->levels[i];
        if (l->list && l->index)
            zt_str_addf(out, "[%u]", (unsigned)(l->index - 1));
        else if (!l->list && l->key[0])
            zt_str_addf(out, "%s%s", out->len ? "." : "", l->key);
    }
    if (out->len)
        zt_str_add(out, ": ");
}

static void fail_at(struct zt_yaml *r, yaml_mark_t at, const char *reason)
{
    if (r->failed)
        return;
    r->failed = true;
    struct zt_str path;
    zt_str_init(&path, PATH_TEXT_MAX);
    describe_path(r, &path);
    zt_error_set(r->err, ZT_INVALID, "%s:%zu:%zu: %s%s", r->name, at.line + 1, at.column + 1, zt_str_cstr(&path), reason);
    zt_str_fini(&path);
}

bool zt_yaml_fail(struct zt_yaml *r, const char *fmt, ...)
{
    char reason[ZT_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(reason, sizeof reason, fmt, args);
    va_end(args);
    fail_at(r, r->at, reason);
    return false;
}

/* libyaml's own complaint: syntax, encoding, or the input that ended early. */
static bool fail_syntax(struct zt_yaml *r)
{
    const yaml_parser_t *p = &r->parser;
    const char *problem = p->problem ? p->problem : "unreadable input";
    r->at = p->error == YAML_READER_ERROR ? p->mark : p->problem_mark;
    if (p->context)
        return zt_yaml_fail(r, "%s (%s that began in line %zu)", problem, p->context, p->context_mark.line + 1);
    return zt_yaml_fail(r, "%s", problem);
}

/* ---- events ------------------------------------------------------------------------------------ */

void zt_yaml_init(struct zt_yaml *r, const char *name, unsigned depth_max, size_t scalar_max, struct zt_error *err)
{
    memset(r, 0, offsetof(struct zt_yaml, levels));
    r->name = name;
    r->err = err;
    r->depth_max = depth_max < ZT_YAML_DEPTH_MAX ? depth_max : ZT_YAML_DEPTH_MAX;
    r->scalar_max = scalar_max;
    ZT_ASSERT(yaml_parser_initialize(&r->parser));
    yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
}

void zt_yaml_fini(struct zt_yaml *r)
{
    if (r->have_event || r->stale_event)
        yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
    zt_scratch_fini(&r->scratch);
}

static const yaml_char_t *event_anchor(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        return e->data.scalar.anchor;
    case YAML_SEQUENCE_START_EVENT:
        return e->data.sequence_start.anchor;
    case YAML_MAPPING_START_EVENT:
        return e->data.mapping_start.anchor;
    default:
        return NULL;
    }
}

static const char *event_tag(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        return (const char *)e->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT:
        return (const char *)e->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT:
        return (const char *)e->data.mapping_start.tag;
    default:
        return NULL;
    }
}

static bool check_event(struct zt_yaml *r)
{
    const yaml_event_t *e = &r->event;
    if (e->type == YAML_SCALAR_EVENT && e->data.scalar.length > r->scalar_max)
        return zt_yaml_fail(r, "a value of more than %zu bytes", r->scalar_max);
    if (r->skipping)
        return true;
    if (e->type == YAML_ALIAS_EVENT || event_anchor(e))
        return zt_yaml_fail(r, "anchors and aliases are not accepted");
    if (e->type == YAML_SCALAR_EVENT && memchr(e->data.scalar.value, '\0', e->data.scalar.length))
        return zt_yaml_fail(r, "a value with a NUL byte");
    return true;
}

/* Makes r->event the next event. */
static bool fetch(struct zt_yaml *r)
{
    if (r->failed)
        return false;
    if (r->have_event)
        return true;
    if (r->stale_event)
        yaml_event_delete(&r->event);
    r->stale_event = false;
    if (!yaml_parser_parse(&r->parser, &r->event))
        return fail_syntax(r);
    r->have_event = true;
    r->at = r->event.start_mark;
    return check_event(r);
}

static void consume(struct zt_yaml *r)
{
    r->have_event = false;
    r->stale_event = true;
}

static bool take(struct zt_yaml *r, yaml_event_type_t type)
{
    if (!fetch(r) || r->event.type != type)
        return false;
    consume(r);
    return true;
}

static bool is_null(const yaml_event_t *e)
{
    if (e->type != YAML_SCALAR_EVENT || e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE || e->data.scalar.tag)
        return false;
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp((const char *)e->data.scalar.value, words[i]) == 0)
            return true;
    return false;
}

static const char *kind_of(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_MAPPING_START_EVENT:
        return "a map";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    default:
        return is_null(e) ? "nothing" : "a single value";
    }
}

bool zt_yaml_begin(struct zt_yaml *r, bool *empty)
{
    *empty = true;
    if (!take(r, YAML_STREAM_START_EVENT) || !fetch(r))
        return false;
    if (r->event.type == YAML_STREAM_END_EVENT)
        return true;
    if (!take(r, YAML_DOCUMENT_START_EVENT) || !fetch(r))
        return false;
    *empty = zt_yaml_null(r);
    return !r->failed;
}

bool zt_yaml_end(struct zt_yaml *r)
{
    if (!fetch(r))
        return false;
    if (r->event.type == YAML_DOCUMENT_END_EVENT)
        consume(r);
    if (!fetch(r))
        return false;
    if (r->event.type != YAML_STREAM_END_EVENT)
        return zt_yaml_fail(r, "only one YAML document is accepted");
    consume(r);
    return true;
}

bool zt_yaml_null(struct zt_yaml *r)
{
    if (!fetch(r) || !is_null(&r->event))
        return false;
    consume(r);
    return true;
}

bool zt_yaml_at_map(struct zt_yaml *r)
{
    return fetch(r) && r->event.type == YAML_MAPPING_START_EVENT;
}

bool zt_yaml_at_scalar(struct zt_yaml *r)
{
    return fetch(r) && r->event.type == YAML_SCALAR_EVENT;
}

/* YAML's own tags (!!str, !!int, "!") say nothing that we want to know. */
static const char *foreign_tag(const char *tag)
{
    return tag && strncmp(tag, CORE_TAG, strlen(CORE_TAG)) != 0 && strcmp(tag, "!") != 0 ? tag : NULL;
}

const char *zt_yaml_tag(struct zt_yaml *r)
{
    return fetch(r) ? foreign_tag(event_tag(&r->event)) : NULL;
}

/* ---- containers -------------------------------------------------------------------------------- */

static bool enter(struct zt_yaml *r, yaml_event_type_t type, const char *what, const char *empty)
{
    if (!fetch(r))
        return false;
    if (r->event.type != type)
        return zt_yaml_fail(r, "expected %s, found %s (an empty one is %s)", what, kind_of(&r->event), empty);
    const char *tag = foreign_tag(event_tag(&r->event));
    if (tag)
        return zt_yaml_fail(r, "unexpected tag %.64s", tag);
    if (r->depth == r->depth_max)
        return zt_yaml_fail(r, "nested deeper than %u", r->depth_max);
    struct zt_yaml_level *l = &r->levels[r->depth++];
    l->start = r->at;
    l->list = type == YAML_SEQUENCE_START_EVENT;
    l->index = 0;
    l->key[0] = '\0';
    consume(r);
    return true;
}

bool zt_yaml_empty(struct zt_yaml *r)
{
    if (!fetch(r))
        return false;
    yaml_event_type_t type = r->event.type;
    if (type == YAML_SCALAR_EVENT && r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
        (r->event.data.scalar.length == 0 || is_null(&r->event))) {
        consume(r);
        return true;
    }
    if (type != YAML_SEQUENCE_START_EVENT && type != YAML_MAPPING_START_EVENT)
        return zt_yaml_fail(r, "expected an empty list");
    consume(r);
    bool closed = take(r, type == YAML_SEQUENCE_START_EVENT ? YAML_SEQUENCE_END_EVENT : YAML_MAPPING_END_EVENT);
    return closed ? true : zt_yaml_fail(r, "expected an empty list");
}

bool zt_yaml_map(struct zt_yaml *r)
{
    return enter(r, YAML_MAPPING_START_EVENT, "a map", "{}");
}

bool zt_yaml_list(struct zt_yaml *r)
{
    return enter(r, YAML_SEQUENCE_START_EVENT, "a list", "[]");
}

bool zt_yaml_key(struct zt_yaml *r, struct zt_yaml_text *key)
{
    r->levels[r->depth - 1].key[0] = '\0';
    if (take(r, YAML_MAPPING_END_EVENT)) {
        r->depth--;
        return false;
    }
    if (r->failed)
        return false;
    if (r->event.type != YAML_SCALAR_EVENT)
        return zt_yaml_fail(r, "a key must be a single value, found %s", kind_of(&r->event));
    if (!zt_yaml_text(r, key))
        return false;
    if (key->tag)
        return zt_yaml_fail(r, "unexpected tag %s on a key", key->tag);
    char *kept = r->levels[r->depth - 1].key;
    size_t n = key->len < ZT_YAML_PATH_KEY_BYTES - 1 ? key->len : ZT_YAML_PATH_KEY_BYTES - 1;
    memcpy(kept, key->value, n);
    kept[n] = '\0';
    return true;
}

bool zt_yaml_item(struct zt_yaml *r)
{
    if (take(r, YAML_SEQUENCE_END_EVENT)) {
        r->depth--;
        return false;
    }
    if (r->failed)
        return false;
    r->levels[r->depth - 1].index++;
    return true;
}

bool zt_yaml_text(struct zt_yaml *r, struct zt_yaml_text *out)
{
    if (!fetch(r))
        return false;
    if (r->event.type != YAML_SCALAR_EVENT)
        return zt_yaml_fail(r, "expected a single value, found %s", kind_of(&r->event));
    *out = (struct zt_yaml_text){
        .value = (const char *)r->event.data.scalar.value,
        .len = r->event.data.scalar.length,
        .tag = foreign_tag((const char *)r->event.data.scalar.tag),
        .plain = r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE,
    };
    consume(r);
    return true;
}

bool zt_yaml_skip(struct zt_yaml *r)
{
    unsigned depth = 0;
    r->skipping = true;
    do {
        if (!fetch(r))
            break;
        yaml_event_type_t type = r->event.type;
        if (type == YAML_MAPPING_START_EVENT || type == YAML_SEQUENCE_START_EVENT)
            depth++;
        else if (type == YAML_MAPPING_END_EVENT || type == YAML_SEQUENCE_END_EVENT)
            depth--;
        if (depth > r->depth_max) {
            zt_yaml_fail(r, "nested deeper than %u", r->depth_max);
            break;
        }
        consume(r);
    } while (depth);
    r->skipping = false;
    return !r->failed;
}

/* ---- objects and scalars ----------------------------------------------------------------------- */

int zt_yaml_field(struct zt_yaml *r, const char *const *names, uint64_t *seen)
{
    struct zt_yaml_text key;
    if (!zt_yaml_key(r, &key))
        return -1;
    for (int i = 0; names[i]; i++) {
        if (names[i][0] != key.value[0] || strcmp(names[i], key.value) != 0)
            continue;
        if (*seen & (UINT64_C(1) << i)) {
            zt_yaml_fail(r, "the key is given twice");
            return -1;
        }
        *seen |= UINT64_C(1) << i;
        return i;
    }
    zt_yaml_fail(r, "unknown key");
    return -1;
}

bool zt_yaml_require(struct zt_yaml *r, const char *const *names, uint64_t seen, uint64_t required)
{
    if (r->failed)
        return false;
    uint64_t missing = required & ~seen;
    if (!missing)
        return true;
    int i = 0;
    while (!(missing & (UINT64_C(1) << i)))
        i++;
    char reason[96];
    zt_fmt(reason, sizeof reason, "missing key `%s`", names[i]);
    fail_at(r, r->levels[r->depth].start, reason); /* the level just left */
    return false;
}

bool zt_yaml_string(struct zt_yaml *r, const char **out)
{
    if (zt_yaml_null(r)) {
        *out = "";
        return true;
    }
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    if (t.tag)
        return zt_yaml_fail(r, "unexpected tag %s", t.tag);
    *out = zt_scratch_dup(&r->scratch, t.value, t.len);
    return true;
}

bool zt_yaml_name(struct zt_yaml *r, const char **out)
{
    if (!zt_yaml_string(r, out))
        return false;
    return **out ? true : zt_yaml_fail(r, "must not be empty");
}

bool zt_yaml_bool(struct zt_yaml *r, bool *out)
{
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    static const char *const words[] = {"false", "true", "False", "True", "FALSE", "TRUE"};
    for (size_t i = 0; i < sizeof words / sizeof *words && t.plain && !t.tag; i++) {
        if (strcmp(t.value, words[i]) == 0) {
            *out = i % 2;
            return true;
        }
    }
    return zt_yaml_fail(r, "expected true or false, found `%.64s`", t.value);
}

bool zt_yaml_digits(const char *text, size_t len, uint32_t max, uint32_t *out)
{
    uint64_t value = 0;
    if (len == 0 || len > 10)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    if (value > max)
        return false;
    *out = (uint32_t)value;
    return true;
}

bool zt_yaml_u32(struct zt_yaml *r, uint32_t max, uint32_t *out)
{
    struct zt_yaml_text t = {0};
    if (!zt_yaml_text(r, &t))
        return false;
    if (!t.plain || t.tag || !zt_yaml_digits(t.value, t.len, max, out))
        return zt_yaml_fail(r, "expected a number from 0 to %u, found `%.64s`", max, t.value);
    return true;
}

bool zt_yaml_enum(struct zt_yaml *r, const char *const *names, unsigned *out)
{
    struct zt_yaml_text t;
    if (!zt_yaml_text(r, &t))
        return false;
    for (unsigned i = 0; names[i] && !t.tag; i++) {
        if (strcmp(names[i], t.value) == 0) {
            *out = i;
            return true;
        }
    }
    struct zt_str list;
    zt_str_init(&list, PATH_TEXT_MAX);
    for (unsigned i = 0; names[i]; i++)
        zt_str_addf(&list, "%s`%s`", i ? ", " : "", names[i]);
    zt_yaml_fail(r, "`%.64s` is not one of %s", t.value, zt_str_cstr(&list));
    zt_str_fini(&list);
    return false;
}
