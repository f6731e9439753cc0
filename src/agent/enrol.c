/* One pod on its way in and out.
 *
 *   state        event                                    next
 *   GONE         the path is a network namespace          PROBING (job: check)
 *   PROBING      refused (host, own, istio-cni)           REFUSED
 *                anything else                            WAITING (Add to the newest daemon)
 *   REFUSED      timer                                    PROBING
 *   WAITING      acknowledged                             APPLYING (job: apply)
 *                refused by the daemon                    WAITING, Add again by timer
 *   APPLYING     done                                     ENROLLED
 *                failed                                   FAILED
 *   FAILED       timer                                    APPLYING if acknowledged, else WAITING
 *   ENROLLED     another daemon is the newest             ENROLLED, Add to it
 *   all above    not wanted any more, or path vanished    REMOVING (job: remove), once no job runs;
 *                or replaced                              from GONE and REFUSED at once WITHDRAWING
 *   REMOVING     done, or refused                         WITHDRAWING (Del to every daemon)
 *                failed                                   REMOVING again by timer
 *   WITHDRAWING  every daemon answered or is gone         freed if not wanted, else GONE
 *
 * Invariants: a namespace that may not be touched is never announced either, so that the daemon opens no listener there. At most
 * JOBS_MAX jobs run; a job that has started is never taken back, its outcome decides the next step. Nothing here blocks: jobs report by a
 * descriptor on the loop. */
#include "agent_impl.h"
#include "zt/base/log.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SCOPE "agent"
#define JOB_GRACE_MS 2000 /* beyond the limit that a job keeps itself */

static const char *const state_names[] = {"gone",     "probing", "refused",  "waiting",    "applying",
                                          "enrolled", "failed",  "removing", "withdrawing"};

static void on_retry(struct ev_loop *ev, ev_timer *w, int events);
static void on_job_over(struct ev_loop *ev, ev_io *w, int events);
static void on_job_late(struct ev_loop *ev, ev_timer *w, int events);
static void on_step(struct zt_task *task);
static void jobs_start_next(struct zt_agent *a);

__attribute__((format(printf, 4, 5))) static void log_pod(const struct zt_agent_pod *p, enum zt_log_level level,
                                                          const char *message, const char *fmt, ...)
{
    struct zt_log_line l;
    char reason[ZT_REDIRECT_TEXT_MAX];
    va_list args;
    if (!zt_log_on(level, SCOPE))
        return;
    va_start(args, fmt);
    vsnprintf(reason, sizeof reason, fmt, args);
    va_end(args);
    zt_log_begin(&l, level, SCOPE, message);
    zt_log_str(&l, "uid", p->want.uid);
    zt_log_str(&l, "namespace", p->want.ns);
    zt_log_str(&l, "name", p->want.name);
    if (*reason)
        zt_log_str(&l, "reason", reason);
    zt_log_end(&l);
}

static void set_text(struct zt_agent_pod *p, const char *text)
{
    zt_fmt(p->text, sizeof p->text, "%s", text);
}

static void set_state(struct zt_agent_pod *p, enum pod_state s)
{
    static const uint16_t allowed[] = {
        [POD_GONE] = 1 << POD_PROBING | 1 << POD_WITHDRAWING,
        [POD_PROBING] = 1 << POD_REFUSED | 1 << POD_WAITING | 1 << POD_REMOVING | 1 << POD_WITHDRAWING,
        [POD_REFUSED] = 1 << POD_PROBING | 1 << POD_WITHDRAWING,
        [POD_WAITING] = 1 << POD_APPLYING | 1 << POD_REMOVING,
        [POD_APPLYING] = 1 << POD_ENROLLED | 1 << POD_FAILED | 1 << POD_REMOVING,
        [POD_ENROLLED] = 1 << POD_REMOVING,
        [POD_FAILED] = 1 << POD_APPLYING | 1 << POD_WAITING | 1 << POD_REMOVING,
        [POD_REMOVING] = 1 << POD_WITHDRAWING,
        [POD_WITHDRAWING] = 1 << POD_GONE,
    };
    ZT_ASSERT(allowed[p->state] & 1 << s);
    p->state = s;
    ev_timer_stop(zt_loop_ev(p->agent->loop), &p->retry_timer);
    log_pod(p, ZT_LOG_TRACE, "pod state", "%s", state_names[s]);
}

static void retry_in(struct zt_agent_pod *p, unsigned ms)
{
    ev_timer_stop(zt_loop_ev(p->agent->loop), &p->retry_timer);
    ev_timer_set(&p->retry_timer, ms / 1000.0, 0);
    ev_timer_start(zt_loop_ev(p->agent->loop), &p->retry_timer);
}

/* ---- the object ---- */

struct zt_agent_pod *zt_enrol_new(struct zt_agent *a, const struct zt_podlist_pod *want)
{
    struct zt_agent_pod *p = zt_new(struct zt_agent_pod);
    p->agent = a;
    p->wanted = true;
    p->step_task.run = on_step;
    zt_podlist_pod_copy(&p->want, want);
    ev_init(&p->job_io, on_job_over);
    ev_init(&p->job_timer, on_job_late);
    ev_init(&p->retry_timer, on_retry);
    HASH_ADD_KEYPTR(hh, a->pods, p->want.uid, strlen(p->want.uid), p);
    return p;
}

void zt_enrol_free(struct zt_agent_pod *p)
{
    struct zt_agent *a = p->agent;
    struct ev_loop *ev = zt_loop_ev(a->loop);
    if (p->job) { /* the agent stops; the next start repairs what this leaves */
        struct zt_redirect_result ignored;
        ev_io_stop(ev, &p->job_io);
        zt_redirect_job_finish(p->job, &ignored);
        a->n_jobs--;
    }
    ev_timer_stop(ev, &p->job_timer);
    ev_timer_stop(ev, &p->retry_timer);
    zt_list_remove(&p->queue_link);
    zt_task_cancel(&p->step_task);
    HASH_DEL(a->pods, p);
    zt_netns_unref(p->ns);
    zt_podlist_pod_fini(&p->want);
    zt_free(p);
}

const char *zt_enrol_state_name(const struct zt_agent_pod *p)
{
    if (p->state == POD_ENROLLED && !p->acked)
        return "waiting"; /* rules in place, no daemon behind them: traffic fails closed */
    return state_names[p->state];
}

bool zt_enrol_is_announced(const struct zt_agent_pod *p)
{
    return p->state >= POD_WAITING && p->state <= POD_REMOVING;
}

/* ---- jobs ---- */

static void job_failed_to_start(struct zt_agent_pod *p, const struct zt_error *err);

static void job_want(struct zt_agent_pod *p, enum zt_redirect_verb verb)
{
    ZT_ASSERT(!p->job);
    p->verb = verb;
    if (!zt_link_linked(&p->queue_link))
        zt_list_push_back(&p->agent->job_queue, &p->queue_link);
    jobs_start_next(p->agent);
}

static bool job_pending(const struct zt_agent_pod *p)
{
    return p->job || zt_link_linked(&p->queue_link);
}

struct zt_redirect_plan zt_enrol_plan(const struct zt_agent_pod *p)
{
    struct zt_redirect_plan plan = p->agent->o->plan;
    struct zt_error err = ZT_ERROR_INIT;
    ZT_ASSERT(zt_podlist_pod_plan(&p->want, &plan, &err) == ZT_OK); /* no pod gets into a list otherwise */
    return plan;
}

static void job_start(struct zt_agent_pod *p)
{
    struct ev_loop *ev = zt_loop_ev(p->agent->loop);
    struct zt_redirect_plan plan = zt_enrol_plan(p);
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_redirect_start(p->ns, &plan, p->verb, &p->job, &err) != ZT_OK) {
        job_failed_to_start(p, &err);
        return;
    }
    p->agent->n_jobs++;
    ev_io_set(&p->job_io, zt_redirect_job_fd(p->job), EV_READ);
    ev_io_start(ev, &p->job_io);
    ev_timer_set(&p->job_timer, (ZT_REDIRECT_JOB_LIMIT_MS + JOB_GRACE_MS) / 1000.0, 0);
    ev_timer_start(ev, &p->job_timer);
}

static void jobs_start_next(struct zt_agent *a)
{
    while (a->n_jobs < JOBS_MAX && !zt_list_empty(&a->job_queue))
        job_start(zt_container_of(zt_list_pop_front(&a->job_queue), struct zt_agent_pod, queue_link));
}

static void on_job_late(struct ev_loop *ev, ev_timer *w, int events)
{
    zt_redirect_job_kill(zt_container_of(w, struct zt_agent_pod, job_timer)->job); /* on_job_over follows */
}

static void set_ips(struct zt_agent_pod *p, const struct zt_ip *ips, unsigned n)
{
    if (n == p->n_ips && (n == 0 || memcmp(ips, p->ips, n * sizeof *ips) == 0))
        return;
    if (n)
        memcpy(p->ips, ips, n * sizeof *ips);
    p->n_ips = n;
    zt_probes_changed(p->agent);
}

static void withdraw(struct zt_agent_pod *p)
{
    set_state(p, POD_WITHDRAWING);
    zt_daemons_del(p);
    if (p->n_dels == 0)
        zt_enrol_step_soon(p);
}

static void start_removing(struct zt_agent_pod *p)
{
    p->leaving = false;
    set_ips(p, NULL, 0);
    set_state(p, POD_REMOVING);
    job_want(p, ZT_REDIRECT_REMOVE);
}

static void failed(struct zt_agent_pod *p, enum pod_state s, const char *what, const char *text)
{
    bool news = strcmp(p->text, text) != 0; /* a retry that fails alike is no new line */
    set_text(p, text);
    set_state(p, s);
    retry_in(p, RETRY_MS);
    log_pod(p, news ? ZT_LOG_ERROR : ZT_LOG_DEBUG, what, "%s", text);
    zt_control_on_pod(p, true);
}

static void probed(struct zt_agent_pod *p, const struct zt_redirect_result *r)
{
    if (r->outcome == ZT_REDIRECT_REFUSED) {
        failed(p, POD_REFUSED, "pod refused", r->text);
        return;
    }
    /* a check that failed tells nothing about whether apply will */
    set_state(p, POD_WAITING);
    set_text(p, zt_daemons_count(p->agent) ? "waits for the daemon" : "no daemon is connected");
    zt_daemons_add(p);
}

static void applied(struct zt_agent_pod *p, const struct zt_redirect_result *r)
{
    if (r->outcome != ZT_REDIRECT_DONE) {
        failed(p, POD_FAILED, "redirection failed", r->text);
        return;
    }
    set_state(p, POD_ENROLLED);
    set_ips(p, r->ips, r->n_ips);
    if (p->acked)
        set_text(p, "");
    else
        retry_in(p, RETRY_MS); /* the daemon went, or refused it, while the rules were made */
    log_pod(p, ZT_LOG_INFO, "pod enrolled", "%s", "");
    zt_control_on_pod(p, false);
}

static void removed(struct zt_agent_pod *p, const struct zt_redirect_result *r)
{
    if (r->outcome == ZT_REDIRECT_FAILED || r->outcome == ZT_REDIRECT_TIMEOUT) {
        set_text(p, r->text);
        log_pod(p, ZT_LOG_ERROR, "redirection could not be removed", "%s", r->text);
        retry_in(p, REMOVE_RETRY_MS);
        zt_control_on_pod(p, true);
        return;
    }
    if (r->outcome == ZT_REDIRECT_REFUSED)
        log_pod(p, ZT_LOG_WARN, "redirection was not touched", "%s", r->text);
    withdraw(p);
}

static void job_done(struct zt_agent_pod *p, const struct zt_redirect_result *r)
{
    if (p->state == POD_REMOVING)
        removed(p, r);
    else if (p->leaving && p->state == POD_PROBING && r->outcome == ZT_REDIRECT_REFUSED)
        withdraw(p);
    else if (p->leaving)
        start_removing(p);
    else if (p->state == POD_PROBING)
        probed(p, r);
    else
        applied(p, r);
}

static void on_job_over(struct ev_loop *ev, ev_io *w, int events)
{
    struct zt_agent_pod *p = zt_container_of(w, struct zt_agent_pod, job_io);
    struct zt_agent *a = p->agent;
    struct zt_redirect_result r;
    ev_io_stop(ev, &p->job_io);
    ev_timer_stop(ev, &p->job_timer);
    zt_redirect_job_finish(p->job, &r);
    p->job = NULL;
    a->n_jobs--;
    job_done(p, &r);
    jobs_start_next(a);
}

static void job_failed_to_start(struct zt_agent_pod *p, const struct zt_error *err)
{
    struct zt_redirect_result r = {.outcome = err->code == ZT_INVALID ? ZT_REDIRECT_REFUSED : ZT_REDIRECT_FAILED};
    zt_fmt(r.text, sizeof r.text, "%s", err->text);
    job_done(p, &r);
}

/* ---- the namespace ---- */

/* A descriptor of the namespace at path, or -1 with a reason. */
static int open_namespace(const char *path, struct zt_error *err)
{
    struct statfs fs;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        zt_error_set_errno(err, ZT_NOT_FOUND, errno, "netns %.200s", path);
        return -1;
    }
    /* only now: an ioctl on any other kind of file could mean anything */
    if (fstatfs(fd, &fs) < 0 || (fs.f_type != NSFS_MAGIC && fs.f_type != PROC_SUPER_MAGIC) ||
        ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET) {
        zt_error_set(err, ZT_INVALID, "netns %.200s is not a network namespace", path);
        close(fd);
        return -1;
    }
    return fd;
}

static const struct zt_agent_pod *pod_in(const struct zt_agent *a, const struct zt_netns *ns)
{
    for (const struct zt_agent_pod *p = a->pods; p; p = p->hh.next)
        if (p->ns && zt_netns_same(p->ns, ns))
            return p;
    return NULL;
}

static void try_open(struct zt_agent_pod *p)
{
    struct zt_error err = ZT_ERROR_INIT;
    int fd = open_namespace(p->want.netns, &err);
    if (fd >= 0) {
        struct zt_netns *ns = zt_netns_new(fd);
        const struct zt_agent_pod *other = pod_in(p->agent, ns);
        if (!other) {
            p->ns = ns;
            set_state(p, POD_PROBING);
            job_want(p, ZT_REDIRECT_CHECK);
            return;
        }
        zt_error_set(&err, ZT_EXISTS, "netns %.200s is the namespace of pod %s/%s", p->want.netns, other->want.ns, other->want.name);
        zt_netns_unref(ns);
    }
    if (strcmp(p->text, err.text) != 0) {
        set_text(p, err.text);
        log_pod(p, ZT_LOG_WARN, "pod is not served", "%s", err.text);
    }
    zt_control_on_pod(p, true);
}

static bool path_still_leads_to(const char *path, const struct zt_netns *ns)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_dev == zt_netns_dev(ns) && st.st_ino == zt_netns_ino(ns);
}

static void leave(struct zt_agent_pod *p)
{
    switch (p->state) {
    case POD_REMOVING:
    case POD_WITHDRAWING:
        return; /* on its way */
    case POD_GONE:
    case POD_REFUSED:
        withdraw(p);
        return;
    case POD_PROBING:
    case POD_WAITING:
    case POD_APPLYING:
    case POD_ENROLLED:
    case POD_FAILED:
        break;
    }
    if (p->job) { /* its outcome comes first */
        p->leaving = true;
        return;
    }
    if (zt_link_linked(&p->queue_link))
        zt_list_remove(&p->queue_link);
    start_removing(p);
}

void zt_enrol_look(struct zt_agent_pod *p)
{
    if (!p->wanted || p->leaving || p->state == POD_REMOVING || p->state == POD_WITHDRAWING)
        return;
    if (p->state == POD_GONE) {
        try_open(p);
    } else if (!path_still_leads_to(p->want.netns, p->ns)) {
        log_pod(p, ZT_LOG_WARN, "the pod's network namespace is gone", "%s vanished or was replaced; it is not served until it is back",
                p->want.netns);
        set_text(p, "its network namespace vanished or was replaced");
        leave(p);
    }
}

void zt_enrol_unwant(struct zt_agent_pod *p)
{
    p->wanted = false;
    /* left over from an earlier run: rules may be there though nothing was opened yet */
    if (p->state == POD_GONE) {
        struct zt_error err = ZT_ERROR_INIT;
        int fd = open_namespace(p->want.netns, &err);
        struct zt_netns *ns = fd < 0 ? NULL : zt_netns_new(fd);
        if (ns && !pod_in(p->agent, ns)) {
            p->ns = ns;
            set_state(p, POD_PROBING);
            start_removing(p);
            return;
        }
        zt_netns_unref(ns);
    }
    leave(p);
}

/* ---- steps ---- */

void zt_enrol_step_soon(struct zt_agent_pod *p)
{
    zt_loop_soon(p->agent->loop, &p->step_task);
}

static void withdrawn(struct zt_agent_pod *p)
{
    zt_netns_unref(p->ns);
    p->ns = NULL;
    p->acked = p->told = false;
    log_pod(p, ZT_LOG_INFO, "pod un-enrolled", "%s", "");
    if (p->wanted) {
        set_state(p, POD_GONE);
        zt_control_on_pod(p, true);
        return;
    }
    struct zt_agent *a = p->agent;
    zt_agent_record_soon(a);
    zt_control_on_pod_freed(p);
    zt_enrol_free(p);
}

static void on_step(struct zt_task *task)
{
    struct zt_agent_pod *p = zt_container_of(task, struct zt_agent_pod, step_task);
    if (p->state == POD_WITHDRAWING && p->n_dels == 0)
        withdrawn(p);
    else if (p->state == POD_GONE)
        zt_enrol_look(p);
}

static void on_retry(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_agent_pod *p = zt_container_of(w, struct zt_agent_pod, retry_timer);
    switch (p->state) {
    case POD_REFUSED:
        set_state(p, POD_PROBING);
        job_want(p, ZT_REDIRECT_CHECK);
        return;
    case POD_FAILED:
        if (!p->acked) {
            set_state(p, POD_WAITING);
            p->told = false;
            zt_daemons_add(p);
            return;
        }
        set_state(p, POD_APPLYING);
        job_want(p, ZT_REDIRECT_APPLY);
        return;
    case POD_REMOVING:
        if (!job_pending(p))
            job_want(p, ZT_REDIRECT_REMOVE);
        return;
    case POD_WAITING:
    case POD_ENROLLED:
        p->told = false;
        zt_daemons_add(p);
        return;
    case POD_GONE:
    case POD_PROBING:
    case POD_APPLYING:
    case POD_WITHDRAWING:
        return;
    }
}

void zt_enrol_on_ack(struct zt_agent_pod *p, const char *error)
{
    if (*error) {
        char text[ZT_REDIRECT_TEXT_MAX];
        zt_fmt(text, sizeof text, "the daemon does not serve it: %.1000s", error);
        bool news = strcmp(p->text, text) != 0;
        set_text(p, text);
        log_pod(p, news ? ZT_LOG_WARN : ZT_LOG_DEBUG, "pod was not accepted", "%s", error);
        p->acked = false;
        if (p->state == POD_WAITING || p->state == POD_ENROLLED)
            retry_in(p, RETRY_MS);
        zt_control_on_pod(p, true);
        return;
    }
    p->acked = true;
    if (p->state == POD_WAITING) {
        set_text(p, "");
        set_state(p, POD_APPLYING);
        job_want(p, ZT_REDIRECT_APPLY);
    } else if (p->state == POD_ENROLLED) {
        set_text(p, "");
        zt_control_on_pod(p, false);
    }
}

void zt_enrol_on_del_done(struct zt_agent_pod *p)
{
    if (p->n_dels > 0 && --p->n_dels == 0)
        zt_enrol_step_soon(p);
}

void zt_enrol_on_newest_changed(struct zt_agent_pod *p)
{
    p->acked = p->told = false;
    if (p->state == POD_ENROLLED || p->state == POD_WAITING)
        set_text(p, zt_daemons_count(p->agent) ? "waits for the daemon" : "no daemon is connected");
}
