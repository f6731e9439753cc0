/* Reads the list of pods: a schema over the reader of zt/config/yaml.h. The first mistake refuses the whole file. */
#include "agent/podlist_impl.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/config/yaml.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 4
#define SCALAR_MAX 1023 /* bytes */

/* One pod; p owns what was read, on errors too. */
static bool read_pod(struct zt_yaml *r, struct zt_podlist_pod *p)
{
    const char *names[ZT_PODLIST_N_FIELDS + 1] = {NULL};
    uint64_t seen = 0;
    int f;
    for (int i = 0; i < ZT_PODLIST_N_FIELDS; i++)
        names[i] = zt_podlist_fields[i].key;
    if (!zt_yaml_map(r))
        return false;
    while ((f = zt_yaml_field(r, names, &seen)) >= 0) {
        const char *value;
        if (!zt_yaml_name(r, &value))
            return false;
        *zt_podlist_field(p, f) = zt_strdup(value);
        zt_scratch_reset(&r->scratch);
    }
    return zt_yaml_require(r, names, seen, (UINT64_C(1) << ZT_PODLIST_N_NEEDED) - 1);
}

static bool read_pods(struct zt_yaml *r, struct zt_podlist *list)
{
    if (!zt_yaml_list(r))
        return false;
    while (zt_yaml_item(r)) {
        struct zt_podlist_pod p = {.line = zt_yaml_at_map(r) ? (unsigned)r->at.line + 1 : 0};
        struct zt_error reason = ZT_ERROR_INIT;
        bool ok = read_pod(r, &p);
        if (ok && zt_podlist_add(list, &p, &reason) != ZT_OK)
            ok = zt_yaml_fail(r, "the pod of line %u: %s", p.line, reason.text);
        zt_podlist_pod_fini(&p);
        if (!ok)
            return false;
    }
    return !r->failed;
}

static bool read_document(struct zt_yaml *r, struct zt_podlist *list)
{
    static const char *const names[] = {"pods", NULL};
    uint64_t seen = 0;
    bool empty;
    if (!zt_yaml_begin(r, &empty))
        return false;
    if (empty)
        return zt_yaml_fail(r, "the file is empty (\"pods: []\" for no pods)");
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_field(r, names, &seen) == 0)
        if (!read_pods(r, list))
            return false;
    return zt_yaml_require(r, names, seen, 1) && zt_yaml_end(r);
}

enum zt_err zt_podlist_parse(const char *name, const char *text, size_t len, struct zt_podlist **out, struct zt_error *err)
{
    struct zt_yaml *r = zt_new(struct zt_yaml);
    struct zt_podlist *list = zt_podlist_new();
    zt_yaml_init(r, name, DEPTH_MAX, SCALAR_MAX, err);
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, len);
    bool ok = read_document(r, list);
    zt_yaml_fini(r);
    zt_free(r);
    if (ok)
        *out = list;
    else
        zt_podlist_free(list);
    return ok ? ZT_OK : ZT_INVALID;
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
