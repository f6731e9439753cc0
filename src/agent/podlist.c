/* The list of pods: rules for its fields, finding, copying, and writing it whole or not at all. Reading is podlist_yaml.c. */
#include "agent/podlist_impl.h"
#include "zt/base/json.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RENDERED_MAX (2u * ZT_PODLIST_BYTES_MAX)

struct zt_podlist *zt_podlist_new(void)
{
    return zt_new(struct zt_podlist);
}

const struct zt_podlist_field zt_podlist_fields[ZT_PODLIST_N_FIELDS] = {
    {"uid", offsetof(struct zt_podlist_pod, uid)},
    {"namespace", offsetof(struct zt_podlist_pod, ns)},
    {"name", offsetof(struct zt_podlist_pod, name)},
    {"serviceAccount", offsetof(struct zt_podlist_pod, service_account)},
    {"netns", offsetof(struct zt_podlist_pod, netns)},
    {"bypassInboundCapture", offsetof(struct zt_podlist_pod, bypass_inbound_capture)},
    {"dnsCapture", offsetof(struct zt_podlist_pod, dns_capture)},
    {"rerouteVirtualInterfaces", offsetof(struct zt_podlist_pod, reroute_virtual_interfaces)},
};

static const char *field_of(const struct zt_podlist_pod *p, int i)
{
    return *(char *const *)((const char *)p + zt_podlist_fields[i].at);
}

void zt_podlist_pod_fini(struct zt_podlist_pod *p)
{
    for (int i = 0; i < ZT_PODLIST_N_FIELDS; i++)
        zt_free(*zt_podlist_field(p, i));
    memset(p, 0, sizeof *p);
}

void zt_podlist_free(struct zt_podlist *l)
{
    if (!l)
        return;
    for (unsigned i = 0; i < l->n_pods; i++)
        zt_podlist_pod_fini(&l->pods[i]);
    zt_free(l->pods);
    zt_free(l);
}

void zt_podlist_pod_copy(struct zt_podlist_pod *to, const struct zt_podlist_pod *from)
{
    for (int i = 0; i < ZT_PODLIST_N_FIELDS; i++)
        *zt_podlist_field(to, i) = field_of(from, i) ? zt_strdup(field_of(from, i)) : NULL;
    to->line = from->line;
}

bool zt_podlist_pod_equal(const struct zt_podlist_pod *a, const struct zt_podlist_pod *b)
{
    for (int i = 0; i < ZT_PODLIST_N_FIELDS; i++) {
        const char *x = field_of(a, i), *y = field_of(b, i);
        if (x != y && (!x || !y || strcmp(x, y) != 0))
            return false;
    }
    return true;
}

/* Kubernetes names: they become part of a SPIFFE identity, so nothing else may get in. */
static enum zt_err check_name(const char *what, const char *text, size_t max, struct zt_error *err)
{
    if (!text || !*text)
        return zt_error_set(err, ZT_INVALID, "%s is missing", what);
    size_t n = strlen(text);
    if (n > max)
        return zt_error_set(err, ZT_INVALID, "%s is longer than %zu bytes", what, max);
    if (strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-") != n || text[0] == '-' || text[0] == '.')
        return zt_error_set(err, ZT_INVALID, "%s \"%s\": only a-z, 0-9, '.' and '-' are allowed", what, text);
    return ZT_OK;
}

static enum zt_err check_uid(const char *uid, struct zt_error *err)
{
    if (!uid || !*uid)
        return zt_error_set(err, ZT_INVALID, "uid is missing");
    if (strlen(uid) > ZT_PODLIST_UID_MAX)
        return zt_error_set(err, ZT_INVALID, "uid is longer than %d bytes", ZT_PODLIST_UID_MAX);
    for (const char *c = uid; *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '/')
            return zt_error_set(err, ZT_INVALID, "uid holds a character that is not printable, a space or '/'");
    return ZT_OK;
}

static enum zt_err check_path(const char *path, struct zt_error *err)
{
    if (!path || !*path)
        return zt_error_set(err, ZT_INVALID, "netns is missing");
    if (path[0] != '/')
        return zt_error_set(err, ZT_INVALID, "netns \"%.100s\" is not an absolute path", path);
    if (strlen(path) > ZT_PODLIST_PATH_MAX)
        return zt_error_set(err, ZT_INVALID, "netns is longer than %d bytes", ZT_PODLIST_PATH_MAX);
    for (const char *c = path; *c; c++)
        if (*c < ' ')
            return zt_error_set(err, ZT_INVALID, "netns holds a control character");
    return ZT_OK;
}

bool zt_podlist_bool(const char *text, bool *out)
{
    static const char *const words[] = {"0", "1", "f", "t", "F", "T", "false", "true", "False", "True", "FALSE", "TRUE"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i % 2;
            return true;
        }
    }
    return false;
}

static enum zt_err override(const char *key, const char *text, bool *out, struct zt_error *err)
{
    if (!text || zt_podlist_bool(text, out))
        return ZT_OK;
    return zt_error_set(err, ZT_INVALID, "%s \"%.64s\" is neither true nor false", key, text);
}

/* "eth1, docker0": names that are too long are cut to one that plan_check refuses. */
static void take_interfaces(const char *list, struct zt_redirect_plan *plan)
{
    plan->n_interfaces = 0;
    while (list && *list) {
        size_t n = strcspn(list, ","), lead = strspn(list, " ");
        size_t len = lead < n ? n - lead : 0;
        while (len && list[lead + len - 1] == ' ')
            len--;
        if (len && plan->n_interfaces++ < ZT_REDIRECT_INTERFACES_MAX) {
            char *to = plan->interfaces[plan->n_interfaces - 1];
            memset(to, 0, IFNAMSIZ);
            memcpy(to, list + lead, len < IFNAMSIZ ? len : IFNAMSIZ);
        }
        list += n + (list[n] == ',');
    }
}

enum zt_err zt_podlist_pod_plan(const struct zt_podlist_pod *p, struct zt_redirect_plan *plan, struct zt_error *err)
{
    enum zt_err e = override("bypassInboundCapture", p->bypass_inbound_capture, &plan->ingress_mode, err);
    if (e == ZT_OK)
        e = override("dnsCapture", p->dns_capture, &plan->dns_capture, err);
    take_interfaces(p->reroute_virtual_interfaces, plan);
    return e == ZT_OK ? zt_redirect_plan_check(plan, err) : e;
}

static enum zt_err check_pod(const struct zt_podlist_pod *p, struct zt_error *err)
{
    enum zt_err e = check_uid(p->uid, err);
    if (e == ZT_OK)
        e = check_name("namespace", p->ns, ZT_PODLIST_NAMESPACE_MAX, err);
    if (e == ZT_OK)
        e = check_name("name", p->name, ZT_PODLIST_NAME_MAX, err);
    if (e == ZT_OK)
        e = check_name("serviceAccount", p->service_account, ZT_PODLIST_NAME_MAX, err);
    if (e == ZT_OK)
        e = check_path(p->netns, err);
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    return e == ZT_OK ? zt_podlist_pod_plan(p, &plan, err) : e;
}

enum zt_err zt_podlist_add(struct zt_podlist *l, const struct zt_podlist_pod *p, struct zt_error *err)
{
    enum zt_err e = check_pod(p, err);
    if (e != ZT_OK)
        return e;
    if (l->n_pods == ZT_PODLIST_MAX)
        return zt_error_set(err, ZT_LIMIT, "more than %d pods", ZT_PODLIST_MAX);
    for (unsigned i = 0; i < l->n_pods; i++) {
        if (strcmp(l->pods[i].uid, p->uid) == 0)
            return zt_error_set(err, ZT_EXISTS, "uid \"%s\" is there already, for %s/%s", p->uid, l->pods[i].ns, l->pods[i].name);
        if (strcmp(l->pods[i].netns, p->netns) == 0)
            return zt_error_set(err, ZT_EXISTS, "netns %.200s is there already, for %s/%s", p->netns, l->pods[i].ns,
                                l->pods[i].name);
    }
    l->pods = zt_realloc(l->pods, (l->n_pods + 1) * sizeof *l->pods);
    zt_podlist_pod_copy(&l->pods[l->n_pods++], p);
    return ZT_OK;
}

void zt_podlist_remove(struct zt_podlist *l, unsigned index)
{
    ZT_ASSERT(index < l->n_pods);
    zt_podlist_pod_fini(&l->pods[index]);
    l->n_pods--;
    memmove(&l->pods[index], &l->pods[index + 1], (l->n_pods - index) * sizeof *l->pods);
}

unsigned zt_podlist_find(const struct zt_podlist *l, const char *key)
{
    const char *slash = strchr(key, '/');
    for (unsigned i = 0; i < l->n_pods; i++) {
        const struct zt_podlist_pod *p = &l->pods[i];
        if (!slash ? strcmp(p->uid, key) == 0
                   : strlen(p->ns) == (size_t)(slash - key) && memcmp(p->ns, key, (size_t)(slash - key)) == 0 &&
                         strcmp(p->name, slash + 1) == 0)
            return i;
    }
    return l->n_pods;
}

/* ---- writing ---- */

/* A JSON string is a YAML double-quoted scalar. */
static void render_field(struct zt_str *s, const char *lead, const char *key, const char *value)
{
    zt_str_addf(s, "%s%s: \"", lead, key);
    zt_json_escape(s, value, strlen(value));
    zt_str_add(s, "\"\n");
}

static void render(const struct zt_podlist *l, struct zt_str *s)
{
    zt_str_add(s, "# Pods of this node. Written by ztcni: edit it while ztcni runs, or use ztcni add and ztcni remove.\n");
    zt_str_add(s, l->n_pods ? "pods:\n" : "pods: []\n");
    for (unsigned i = 0; i < l->n_pods; i++) {
        for (int f = 0; f < ZT_PODLIST_N_FIELDS; f++)
            if (field_of(&l->pods[i], f))
                render_field(s, f ? "  " : "- ", zt_podlist_fields[f].key, field_of(&l->pods[i], f));
    }
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

/* The rename must reach the disk too. */
static int sync_directory_of(const char *path)
{
    char *dir = zt_strdup(path), *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 ? -errno : 0;
    if (fd >= 0 && fsync(fd) < 0 && errno != EINVAL) /* EINVAL: a file system that has nothing to sync */
        rc = -errno;
    if (fd >= 0)
        close(fd);
    zt_free(dir);
    return rc;
}

enum zt_err zt_podlist_save(const char *path, const struct zt_podlist *list, struct zt_error *err)
{
    struct zt_str text;
    struct stat st;
    size_t n = strlen(path) + sizeof ".new";
    char *beside = zt_zalloc(n);
    zt_fmt(beside, n, "%s.new", path);
    zt_str_init(&text, RENDERED_MAX);
    render(list, &text);
    mode_t mode = stat(path, &st) == 0 ? st.st_mode & 0777 : 0600;
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    int rc = fd < 0 ? -errno : write_all(fd, zt_str_cstr(&text), text.len);
    if (fd >= 0 && close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && rename(beside, path) < 0)
        rc = -errno;
    if (rc == 0)
        rc = sync_directory_of(path);
    else if (fd >= 0)
        unlink(beside);
    zt_str_fini(&text);
    zt_free(beside);
    return rc < 0 ? zt_error_set_errno(err, ZT_IO, -rc, "%s: cannot be written", path) : ZT_OK;
}
