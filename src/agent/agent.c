/* Start and stop of the node agent, and its two files.
 *
 * pods.yaml           what is wanted; edited by hand or by `ztcni add|remove`
 * pods.yaml.enrolled  every pod of the table: in whose namespaces rules may be. Written before a pod comes into the table is acted upon
 *                     and after it left; never read but at start
 * pods.yaml.lock      held (flock) for as long as the agent runs: one agent per file
 *
 * Invariant: a pod's namespace is touched only after both files were synced with that pod in them. */
#include "agent_impl.h"
#include "zt/base/log.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCOPE "agent"
#define SETTLE_MS 50    /* a change is read this long after it was seen: editors write in pieces */
#define LOCK_WAIT_MS 1000
#define LOCK_STEP_MS 10
#define STAT_MS 1000    /* for file systems that do not tell of changes */

static struct zt_agent_pod *pod_by_uid(struct zt_agent *a, const char *uid)
{
    struct zt_agent_pod *p;
    HASH_FIND(hh, a->pods, uid, strlen(uid), p);
    return p;
}

/* ---- what is recorded ---- */

static bool record(struct zt_agent *a)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_podlist *l = zt_podlist_new();
    for (const struct zt_agent_pod *p = a->pods; p; p = p->hh.next) {
        struct zt_podlist_pod copy;
        zt_podlist_pod_copy(&copy, &p->want);
        /* two pods may name one path for a moment, when one replaces the other; the second touches it only when the first left */
        if (zt_podlist_add(l, &copy, &err) != ZT_OK && err.code != ZT_EXISTS)
            zt_log_error(SCOPE, "%s: %s", a->enrolled_path, err.text);
        zt_podlist_pod_fini(&copy);
    }
    enum zt_err e = zt_podlist_save(a->enrolled_path, l, &err);
    zt_podlist_free(l);
    if (e != ZT_OK)
        zt_log_error(SCOPE, "%s", err.text);
    a->recorded = e == ZT_OK;
    return a->recorded;
}

/* ---- wanted against there ---- */

static bool list_has(const struct zt_podlist *list, const struct zt_podlist_pod *want)
{
    unsigned i = zt_podlist_find(list, want->uid);
    return i < list->n_pods && zt_podlist_pod_equal(&list->pods[i], want);
}

/* First out, then in: a namespace that changes hands is cleaned by the one that leaves. A pod of which anything changed goes out and
 * comes in again when it is out. */
static void reconcile(struct zt_agent *a)
{
    struct zt_agent_pod *p, *tmp;
    unsigned n_new = 0;
    HASH_ITER(hh, a->pods, p, tmp)
    {
        if (p->wanted && !list_has(a->list, &p->want))
            zt_enrol_unwant(p);
    }
    for (unsigned i = 0; i < a->list->n_pods; i++) {
        if (!pod_by_uid(a, a->list->pods[i].uid)) {
            zt_enrol_new(a, &a->list->pods[i]);
            n_new++;
        }
    }
    if (n_new && !record(a))
        return; /* a namespace must not be touched unrecorded; the tick tries again */
    HASH_ITER(hh, a->pods, p, tmp)
    {
        if (p->state == POD_GONE && p->wanted)
            zt_enrol_look(p);
    }
}

void zt_agent_want(struct zt_agent *a, struct zt_podlist *list)
{
    zt_podlist_free(a->list);
    a->list = list;
    reconcile(a);
}

static void on_record(struct zt_task *task)
{
    struct zt_agent *a = zt_container_of(task, struct zt_agent, record_task);
    record(a);
    reconcile(a);
}

void zt_agent_record_soon(struct zt_agent *a)
{
    zt_loop_soon(a->loop, &a->record_task);
}

/* ---- the watch ---- */

static void on_settled(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, settle_timer);
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_podlist *list = NULL;
    if (zt_podlist_load(a->o->pods_path, &list, &err) != ZT_OK) {
        zt_log_error(SCOPE, "%s; what was read before goes on", err.text);
        return;
    }
    zt_log_info(SCOPE, "%s: %u pods", a->o->pods_path, list->n_pods);
    zt_agent_want(a, list);
}

static void on_changed(struct ev_loop *ev, ev_stat *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, pods_stat);
    ev_timer_stop(ev, &a->settle_timer);
    ev_timer_set(&a->settle_timer, SETTLE_MS / 1000.0, 0);
    ev_timer_start(ev, &a->settle_timer);
}

static void on_tick(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, tick_timer);
    struct zt_agent_pod *p, *tmp;
    if (!a->recorded && !record(a))
        return;
    HASH_ITER(hh, a->pods, p, tmp) zt_enrol_look(p);
}

/* ---- start and stop ---- */

/* Each pod costs a descriptor; the usual soft limit of 1024 is for programs that use select. */
static void raise_descriptor_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return;
    r.rlim_cur = r.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &r) != 0)
        zt_log_warn(SCOPE, "the limit of descriptors stays as it is: %s", strerror(errno));
}

static enum zt_err make_directory_of(const char *path, mode_t mode, struct zt_error *err)
{
    char *dir = zt_strdup(path), *slash = strrchr(dir, '/');
    enum zt_err e = ZT_OK;
    if (slash && slash != dir) {
        *slash = '\0';
        if (mkdir(dir, mode) < 0 && errno != EEXIST)
            e = zt_error_set_errno(err, ZT_IO, errno, "%s: cannot be made; make its parent, or choose another path (ztcni help)", dir);
    }
    zt_free(dir);
    return e;
}

/* A rule job that a killed agent had just forked holds the lock, as its sockets, until it runs and ends itself: waited for. 0 or -errno. */
static int lock_patiently(int fd)
{
    for (unsigned ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; ms += LOCK_STEP_MS) {
        if (errno != EWOULDBLOCK || ms >= LOCK_WAIT_MS)
            return -errno;
        usleep(LOCK_STEP_MS * 1000);
    }
    return 0;
}

static enum zt_err take_lock(struct zt_agent *a, struct zt_error *err)
{
    size_t n = strlen(a->o->pods_path) + sizeof ".lock";
    char *path = zt_zalloc(n);
    enum zt_err e = ZT_OK;
    int rc;
    zt_fmt(path, n, "%s.lock", a->o->pods_path);
    a->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (a->lock_fd < 0)
        e = zt_error_set_errno(err, ZT_IO, errno, "%s", path);
    else if ((rc = lock_patiently(a->lock_fd)) < 0)
        e = rc == -EWOULDBLOCK ? zt_error_set(err, ZT_EXISTS, "%s: another ztcni runs with this file", a->o->pods_path)
                               : zt_error_set_errno(err, ZT_IO, -rc, "%s", path);
    zt_free(path);
    return e;
}

static enum zt_err load_or_empty(const char *path, struct zt_podlist **out, struct zt_error *err)
{
    enum zt_err e = zt_podlist_load(path, out, err);
    if (e != ZT_NOT_FOUND)
        return e;
    *out = zt_podlist_new();
    return ZT_OK;
}

/* Completes what a killed run left: pods that had rules and are not wanted as they were. */
static void leave_left_overs(struct zt_agent *a, const struct zt_podlist *enrolled)
{
    for (unsigned i = 0; i < enrolled->n_pods; i++)
        if (!list_has(a->list, &enrolled->pods[i]))
            zt_enrol_new(a, &enrolled->pods[i]); /* reconcile finds it unwanted */
}

static void on_signal(struct ev_loop *ev, ev_signal *w, int events)
{
    struct zt_agent *a = ev_userdata(ev);
    a->exit_signal = w->signum;
    zt_loop_stop(a->loop);
}

static void start_watchers(struct zt_agent *a)
{
    struct ev_loop *ev = zt_loop_ev(a->loop);
    ev_set_userdata(ev, a);
    ev_init(&a->settle_timer, on_settled);
    ev_stat_init(&a->pods_stat, on_changed, a->o->pods_path, STAT_MS / 1000.0);
    ev_stat_start(ev, &a->pods_stat);
    ev_timer_init(&a->tick_timer, on_tick, TICK_MS / 1000.0, TICK_MS / 1000.0);
    ev_timer_start(ev, &a->tick_timer);
    ev_signal_init(&a->on_term, on_signal, SIGTERM);
    ev_signal_init(&a->on_int, on_signal, SIGINT);
    ev_signal_start(ev, &a->on_term);
    ev_signal_start(ev, &a->on_int);
}

static void stop_watchers(struct zt_agent *a)
{
    struct ev_loop *ev = zt_loop_ev(a->loop);
    ev_stat_stop(ev, &a->pods_stat);
    ev_timer_stop(ev, &a->settle_timer);
    ev_timer_stop(ev, &a->tick_timer);
    ev_signal_stop(ev, &a->on_term);
    ev_signal_stop(ev, &a->on_int);
}

static enum zt_err start(struct zt_agent *a, struct zt_error *err)
{
    struct zt_podlist *enrolled = NULL;
    enum zt_err e = make_directory_of(a->o->pods_path, 0700, err);
    if (e == ZT_OK)
        e = take_lock(a, err);
    if (e == ZT_OK)
        e = load_or_empty(a->o->pods_path, &a->list, err);
    if (e == ZT_OK)
        e = load_or_empty(a->enrolled_path, &enrolled, err);
    if (e == ZT_OK)
        e = make_directory_of(a->o->socket_path, 0755, err);
    if (e == ZT_OK)
        e = make_directory_of(a->o->ctl_path, 0755, err);
    if (e == ZT_OK)
        e = zt_control_open(a, err);
    if (e == ZT_OK)
        e = zt_daemons_open(a, err);
    if (e == ZT_OK) {
        leave_left_overs(a, enrolled);
        zt_probes_open(a);
        reconcile(a); /* before the first daemon is heard: its snapshot must be whole */
        start_watchers(a);
    }
    zt_podlist_free(enrolled);
    return e;
}

static void stop(struct zt_agent *a)
{
    struct zt_agent_pod *p, *tmp;
    a->stopping = true;
    zt_control_close(a);
    zt_probes_close(a);
    if (a->zds)
        zt_daemons_close(a);
    HASH_ITER(hh, a->pods, p, tmp) zt_enrol_free(p);
    zt_task_cancel(&a->record_task);
    zt_podlist_free(a->list);
    if (a->lock_fd >= 0)
        close(a->lock_fd);
    zt_free(a->enrolled_path);
}

enum zt_err zt_agent_run(const struct zt_agent_options *o, struct zt_error *err)
{
    struct zt_agent a = {.o = o, .lock_fd = -1, .ctl_fd = -1};
    size_t n = strlen(o->pods_path) + sizeof ".enrolled";
    a.loop = zt_loop_new("ztcni");
    a.enrolled_path = zt_zalloc(n);
    a.record_task.run = on_record;
    zt_fmt(a.enrolled_path, n, "%s.enrolled", o->pods_path);
    zt_list_init(&a.job_queue);
    zt_list_init(&a.daemons);
    zt_list_init(&a.clients);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    enum zt_err e = start(&a, err);
    if (e == ZT_OK) {
        zt_log_info(SCOPE, "ztcni serves %s, %u pods in %s, redirection by %s", o->socket_path, a.list->n_pods, o->pods_path,
                    zt_redirect_backend_name(o->plan.backend));
        zt_loop_run(a.loop);
        stop_watchers(&a);
        zt_log_info(SCOPE, "ztcni stops on %s; pods stay enrolled", a.exit_signal == SIGINT ? "SIGINT" : "SIGTERM");
    }
    stop(&a);
    zt_loop_free(a.loop);
    return e;
}
