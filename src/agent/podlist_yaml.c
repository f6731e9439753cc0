/* Reads the list of pods by libyaml events, never as a document tree.
 *
 * Invariants: every value is checked against its limit before it is kept; the first mistake refuses the whole file and names its line
 * and column; anchors, aliases and a second document are mistakes. */
#include "zt/agent/podlist.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#define FIELD_MAX 1023 /* bytes of any scalar */

struct reader {
    const char *name;
    yaml_parser_t parser;
    yaml_event_t event; /* the current one */
    bool has_event;
    struct zt_error *err;
};

__attribute__((format(printf, 3, 4))) static enum zt_err mistake(struct reader *r, yaml_mark_t at, const char *fmt, ...)
{
    char reason[ZT_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(reason, sizeof reason, fmt, args);
    va_end(args);
    return zt_error_set(r->err, ZT_INVALID, "%s:%zu:%zu: %s", r->name, at.line + 1, at.column + 1, reason);
}

static enum zt_err next(struct reader *r)
{
    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (!r->has_event)
        return mistake(r, r->parser.problem_mark, "%s", r->parser.problem ? r->parser.problem : "not YAML");
    switch (r->event.type) {
    case YAML_ALIAS_EVENT:
        return mistake(r, r->event.start_mark, "aliases are not allowed");
    case YAML_SCALAR_EVENT:
        if (r->event.data.scalar.length > FIELD_MAX)
            return mistake(r, r->event.start_mark, "a value is longer than %d bytes", FIELD_MAX);
        if (strlen((const char *)r->event.data.scalar.value) != r->event.data.scalar.length)
            return mistake(r, r->event.start_mark, "a value holds a NUL byte");
        return ZT_OK;
    default:
        return ZT_OK;
    }
}

/* Steps on and wants that. */
static enum zt_err next_is(struct reader *r, yaml_event_type_t type, const char *wanted)
{
    enum zt_err e = next(r);
    if (e == ZT_OK && r->event.type != type)
        return mistake(r, r->event.start_mark, "expected %s", wanted);
    return e;
}

static const char *scalar(const struct reader *r)
{
    return (const char *)r->event.data.scalar.value;
}

/* Which field a key means; NULL = none. */
static char **field_of(struct zt_podlist_pod *p, const char *key)
{
    struct {
        const char *key;
        char **field;
    } keys[] = {{"uid", &p->uid}, {"namespace", &p->ns}, {"name", &p->name}, {"serviceAccount", &p->service_account}, {"netns", &p->netns}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i].key, key) == 0)
            return keys[i].field;
    return NULL;
}

/* One pod; the current event is the start of its mapping. p owns what was read, on errors too. */
static enum zt_err read_pod(struct reader *r, struct zt_podlist_pod *p)
{
    for (;;) {
        enum zt_err e = next(r);
        if (e != ZT_OK || r->event.type == YAML_MAPPING_END_EVENT)
            return e;
        if (r->event.type != YAML_SCALAR_EVENT)
            return mistake(r, r->event.start_mark, "expected a key");
        char **field = field_of(p, scalar(r));
        if (!field)
            return mistake(r, r->event.start_mark, "unknown key \"%.60s\"", scalar(r));
        if (*field)
            return mistake(r, r->event.start_mark, "key \"%s\" is there twice", scalar(r));
        e = next_is(r, YAML_SCALAR_EVENT, "text");
        if (e != ZT_OK)
            return e;
        *field = zt_strdup(scalar(r));
    }
}

static enum zt_err read_pods(struct reader *r, struct zt_podlist *list)
{
    enum zt_err e = next_is(r, YAML_SEQUENCE_START_EVENT, "a list of pods (\"pods: []\" for none)");
    while (e == ZT_OK && (e = next(r)) == ZT_OK && r->event.type != YAML_SEQUENCE_END_EVENT) {
        struct zt_podlist_pod p = {.line = (unsigned)r->event.start_mark.line + 1};
        struct zt_error reason = ZT_ERROR_INIT;
        yaml_mark_t at = r->event.start_mark;
        if (r->event.type != YAML_MAPPING_START_EVENT)
            return mistake(r, at, "expected a pod (uid, namespace, name, serviceAccount, netns)");
        e = read_pod(r, &p);
        if (e == ZT_OK && zt_podlist_add(list, &p, &reason) != ZT_OK)
            e = mistake(r, at, "%s", reason.text);
        zt_podlist_pod_fini(&p);
    }
    return e;
}

static enum zt_err read_document(struct reader *r, struct zt_podlist *list)
{
    bool seen = false;
    enum zt_err e = next_is(r, YAML_STREAM_START_EVENT, "a YAML file");
    if (e == ZT_OK)
        e = next_is(r, YAML_DOCUMENT_START_EVENT, "a document: the file is empty (\"pods: []\" for no pods)");
    if (e == ZT_OK)
        e = next_is(r, YAML_MAPPING_START_EVENT, "a mapping with the key \"pods\"");
    while (e == ZT_OK && (e = next(r)) == ZT_OK && r->event.type != YAML_MAPPING_END_EVENT) {
        if (r->event.type != YAML_SCALAR_EVENT || strcmp(scalar(r), "pods") != 0)
            return mistake(r, r->event.start_mark, "unknown key, expected \"pods\"");
        if (seen)
            return mistake(r, r->event.start_mark, "key \"pods\" is there twice");
        seen = true;
        e = read_pods(r, list);
    }
    if (e == ZT_OK && !seen)
        return mistake(r, r->event.start_mark, "key \"pods\" is missing");
    if (e == ZT_OK)
        e = next_is(r, YAML_DOCUMENT_END_EVENT, "the end of the document");
    return e == ZT_OK ? next_is(r, YAML_STREAM_END_EVENT, "the end of the file, not a second document") : e;
}

enum zt_err zt_podlist_parse(const char *name, const char *text, size_t len, struct zt_podlist **out, struct zt_error *err)
{
    struct reader r = {.name = name, .err = err};
    if (!yaml_parser_initialize(&r.parser))
        return zt_error_set(err, ZT_INVALID, "%s: no YAML reader", name);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    struct zt_podlist *list = zt_podlist_new();
    enum zt_err e = read_document(&r, list);
    if (r.has_event)
        yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    if (e == ZT_OK)
        *out = list;
    else
        zt_podlist_free(list);
    return e;
}

/* The whole file, or a negative errno. A file that grows while it is read is cut at the limit and then refused. */
static int read_file(const char *path, struct zt_str *text)
{
    char chunk[16384];
    struct stat st;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode))
        rc = -EINVAL;
    while (rc == 0 && !text->overflow) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            rc = -errno;
        if (n > 0)
            zt_str_add_n(text, chunk, (size_t)n);
    }
    close(fd);
    return text->overflow ? -EFBIG : rc;
}

enum zt_err zt_podlist_load(const char *path, struct zt_podlist **out, struct zt_error *err)
{
    struct zt_str text;
    zt_str_init(&text, ZT_PODLIST_BYTES_MAX);
    int rc = read_file(path, &text);
    enum zt_err e;
    if (rc < 0)
        e = zt_error_set_errno(err, rc == -ENOENT ? ZT_NOT_FOUND : ZT_IO, -rc, "%s: cannot be read", path);
    else
        e = zt_podlist_parse(path, zt_str_cstr(&text), text.len, out, err);
    zt_str_fini(&text);
    return e;
}
