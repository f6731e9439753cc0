/* The mesh config file and PROXY_CONFIG (spec/interfaces §2.1): the same object twice, the second overlays the first.
 * Unknown keys are skipped. Departs from the reference where allowed (§10 Q3): proxyMetadata may be left out. */
#include "config/config_impl.h"
#include "zt/config/yaml.h"

#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static bool read_port(struct zt_yaml *r, bool *has, uint16_t *out)
{
    uint32_t value = 0;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_u32(r, UINT16_MAX, &value))
        return false;
    *has = true;
    *out = (uint16_t)value;
    return true;
}

static bool read_metadata(struct zt_yaml *r, struct mesh *m)
{
    struct zt_yaml_text key, value;
    if (zt_yaml_null(r))
        return true;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        const char *name = zt_scratch_dup(&r->scratch, key.value, key.len);
        if (!zt_yaml_text(r, &value)) /* whatever the scalar is, its literal text counts */
            return false;
        if (m->n_metadata >= ZT_PAIRS_MAX)
            return zt_yaml_fail(r, "more than %d entries", ZT_PAIRS_MAX);
        zt_pairs_put(&m->metadata, &m->n_metadata, name, value.value);
    }
    return !r->failed;
}

static bool read_proxy_config(struct zt_yaml *r, struct mesh *m)
{
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        bool ok;
        if (strcmp(key.value, "discoveryAddress") == 0) {
            const char *text = NULL;
            bool unset = zt_yaml_null(r);
            ok = unset || zt_yaml_string(r, &text);
            if (ok && !unset) {
                zt_free(m->discovery_address);
                m->discovery_address = zt_strdup(text);
            }
        } else if (strcmp(key.value, "proxyAdminPort") == 0) {
            ok = read_port(r, &m->has_admin_port, &m->admin_port);
        } else if (strcmp(key.value, "statsPort") == 0) {
            ok = read_port(r, &m->has_stats_port, &m->stats_port);
        } else if (strcmp(key.value, "concurrency") == 0) {
            ok = read_port(r, &m->has_concurrency, &m->concurrency);
        } else if (strcmp(key.value, "proxyMetadata") == 0) {
            ok = read_metadata(r, m);
        } else {
            ok = zt_yaml_skip(r);
        }
        if (!ok)
            return false;
    }
    return !r->failed;
}

/* The file's root: only defaultConfig counts. */
static bool read_mesh_config(struct zt_yaml *r, struct mesh *m)
{
    struct zt_yaml_text key;
    if (!zt_yaml_map(r))
        return false;
    while (zt_yaml_key(r, &key)) {
        bool ours = strcmp(key.value, "defaultConfig") == 0;
        if (!(ours ? zt_yaml_null(r) || read_proxy_config(r, m) : zt_yaml_skip(r)))
            return false;
    }
    return !r->failed;
}

/* Errors begin with name; the caller says which text it was. */
static bool read_text(struct mesh *m, const char *name, const char *text, size_t len, bool whole_mesh, struct zt_error *err)
{
    bool empty = false;
    struct zt_yaml *r = zt_new(struct zt_yaml);
    zt_yaml_init(r, name, ZT_YAML_DEPTH_MAX, ZT_CONFIG_MESH_BYTES_MAX, err);
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, len);
    bool ok = zt_yaml_begin(r, &empty) &&
              (empty || (whole_mesh ? read_mesh_config(r, m) : read_proxy_config(r, m))) && zt_yaml_end(r);
    zt_yaml_fini(r);
    zt_free(r);
    return ok;
}

/* The whole file as text; *out NULL when there is none. */
static bool read_file(const char *path, char **out, size_t *len, struct zt_error *err)
{
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return true;
    if (fd < 0) {
        zt_error_set_errno(err, ZT_IO, errno, "open");
        return false;
    }
    size_t cap = 65536, n = 0;
    char *text = zt_zalloc(cap);
    ssize_t got;
    while ((got = read(fd, text + n, cap - n)) > 0 || (got < 0 && errno == EINTR)) {
        n += got > 0 ? (size_t)got : 0;
        if (n == cap && cap < ZT_CONFIG_MESH_BYTES_MAX)
            text = zt_realloc(text, cap *= 2);
        else if (n == cap)
            break;
    }
    int errnum = got < 0 ? errno : 0;
    close(fd);
    if (errnum)
        zt_error_set_errno(err, ZT_IO, errnum, "read");
    else if (n == cap)
        zt_error_set(err, ZT_INVALID, "more than %u bytes", ZT_CONFIG_MESH_BYTES_MAX - 1);
    if (errnum || n == cap) {
        zt_free(text);
        return false;
    }
    *out = text;
    *len = n;
    return true;
}

bool zt_mesh_read(struct mesh *m, const struct env *e, const char *path)
{
    char *text = NULL;
    size_t len = 0;
    bool ok = read_file(path, &text, &len, e->err);
    if (ok && text)
        ok = read_text(m, "line", text, len, true, e->err);
    zt_free(text);
    if (!ok) {
        zt_error_wrap(e->err, "error parsing proxy config: failed parsing mesh config file %s", path);
        return false;
    }
    const char *env = zt_env_get(e, "PROXY_CONFIG");
    if (!env || read_text(m, "line", env, strlen(env), false, e->err))
        return true;
    zt_error_wrap(e->err, "error parsing proxy config: failed parsing proxy config env");
    return false;
}

void zt_mesh_free(struct mesh *m)
{
    zt_free(m->discovery_address);
    zt_pairs_free(m->metadata, m->n_metadata);
}
