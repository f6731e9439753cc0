/* The node's table of probes (zt/redirect/host.h), kept in line with the pods that are enrolled.
 *
 * One job at a time. What changes while one runs makes it run again, so a hundred enrolments are a few jobs. Where no kubelet runs there is
 * no table; it is looked for as long as there is none. */
#include "agent_impl.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <string.h>

#define SCOPE "agent::probes"
#define FIND_MS 30000

static void retry_in(struct zt_agent *a, unsigned ms)
{
    ev_timer_stop(zt_loop_ev(a->loop), &a->probes.timer);
    ev_timer_set(&a->probes.timer, ms / 1000.0, 0);
    ev_timer_start(zt_loop_ev(a->loop), &a->probes.timer);
}

static bool find_prober(struct zt_agent *a)
{
    switch (a->o->probes) {
    case ZT_AGENT_PROBES_USER:
        a->probes.prober = a->o->prober;
        return true;
    case ZT_AGENT_PROBES_KUBELET:
        return zt_redirect_find_kubelet(&a->probes.prober);
    case ZT_AGENT_PROBES_OFF:
        break;
    }
    return false;
}

enum zt_err zt_probes_start_job(struct zt_agent *a, enum zt_redirect_verb verb, struct zt_redirect_job **out, struct zt_error *err)
{
    struct zt_redirect_host h = {.prober = a->probes.prober};
    unsigned n = 0;
    for (const struct zt_agent_pod *p = a->pods; p; p = p->hh.next)
        n += p->n_ips;
    struct zt_ip *ips = zt_new_n(struct zt_ip, n + 1);
    for (const struct zt_agent_pod *p = a->pods; p; p = p->hh.next) {
        memcpy(ips + h.n_ips, p->ips, p->n_ips * sizeof *ips);
        h.n_ips += p->n_ips;
    }
    h.ips = ips;
    enum zt_err e = zt_redirect_host_start(&h, verb, out, err);
    zt_free(ips);
    return e;
}

static void work(struct zt_task *task)
{
    struct zt_agent *a = zt_container_of(task, struct zt_agent, probes.task);
    struct zt_error err = ZT_ERROR_INIT;
    bool found = find_prober(a);
    if (found != a->probes.on)
        zt_log_info(SCOPE, found ? "the kubelet's probes of pods go past the mesh" : "there is no kubelet: nobody on the node goes past the mesh");
    a->probes.on = found;
    a->probes.changed = false;
    if (zt_probes_start_job(a, found ? ZT_REDIRECT_APPLY : ZT_REDIRECT_REMOVE, &a->probes.job, &err) != ZT_OK) {
        zt_log_error(SCOPE, "%s", err.text);
        a->probes.changed = true;
        retry_in(a, RETRY_MS);
        return;
    }
    ev_io_set(&a->probes.io, zt_redirect_job_fd(a->probes.job), EV_READ);
    ev_io_start(zt_loop_ev(a->loop), &a->probes.io);
    retry_in(a, ZT_REDIRECT_JOB_LIMIT_MS + REMOVE_RETRY_MS);
}

static void on_job_over(struct ev_loop *ev, ev_io *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, probes.io);
    struct zt_redirect_result r;
    ev_io_stop(ev, w);
    ev_timer_stop(ev, &a->probes.timer);
    zt_redirect_job_finish(a->probes.job, &r);
    a->probes.job = NULL;
    if (r.outcome != ZT_REDIRECT_DONE) {
        zt_log_error(SCOPE, "the node's rules for probes: %s", r.text);
        a->probes.changed = true; /* a table to be taken away is as much work as one to be made */
        retry_in(a, RETRY_MS);
    } else if (a->probes.changed) {
        zt_loop_soon(a->loop, &a->probes.task);
    } else if (!a->probes.on && a->o->probes == ZT_AGENT_PROBES_KUBELET) {
        retry_in(a, FIND_MS);
    }
}

/* A job that hangs, one that failed, or a kubelet that may have come. */
static void on_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, probes.timer);
    if (a->probes.job)
        zt_redirect_job_kill(a->probes.job); /* on_job_over follows */
    else if (a->probes.changed || a->probes.on || a->o->probes != ZT_AGENT_PROBES_KUBELET || zt_redirect_find_kubelet(&a->probes.prober))
        zt_loop_soon(a->loop, &a->probes.task);
    else
        retry_in(a, FIND_MS);
}

void zt_probes_changed(struct zt_agent *a)
{
    a->probes.changed = true;
    if (!a->probes.job && !a->stopping)
        zt_loop_soon(a->loop, &a->probes.task);
}

void zt_probes_open(struct zt_agent *a)
{
    a->probes.task.run = work;
    ev_init(&a->probes.io, on_job_over);
    ev_init(&a->probes.timer, on_timer);
    zt_probes_changed(a);
}

void zt_probes_close(struct zt_agent *a)
{
    struct zt_redirect_result ignored;
    zt_task_cancel(&a->probes.task);
    if (!a->probes.task.run)
        return; /* never opened */
    ev_timer_stop(zt_loop_ev(a->loop), &a->probes.timer);
    if (a->probes.job) {
        ev_io_stop(zt_loop_ev(a->loop), &a->probes.io);
        zt_redirect_job_finish(a->probes.job, &ignored);
        a->probes.job = NULL;
    }
}
