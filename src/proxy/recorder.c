/* The rings of a worker, and how control reads them.
 *
 * Invariants: a traced pod has the same slot on every worker, because control is the only one to give slots and its questions arrive in
 * order; an event whose slot was given up is skipped, because stopping wipes the slot's events. */
#include "recorder.h"
#include "ask.h"

#include "zt/base/clock.h"
#include "zt/proxy/record.h"
#include <stdio.h>
#include <stdlib.h>

_Static_assert(sizeof(((struct zt_recorder *)0)->traced) / sizeof(char *) == ZT_TRACE_PODS_MAX, "a slot per traced pod");

static void free_slot(struct zt_recorder *r, unsigned slot)
{
    zt_free(r->traced[slot]);
    r->traced[slot] = NULL;
    if (--r->n_traced)
        return;
    zt_free(r->events);
    r->events = NULL;
    r->n_events = 0;
}

void zt_recorder_fini(struct zt_recorder *r)
{
    for (unsigned i = 0; i < ZT_TRACE_PODS_MAX; i++) {
        if (r->traced[i])
            free_slot(r, i);
    }
    zt_free(r->denials);
}

static bool is_pod(const struct zt_pod *pod, const char *name)
{
    size_t n = strlen(pod->ns);
    return strncmp(pod->ns, name, n) == 0 && name[n] == '/' && strcmp(pod->name, name + n + 1) == 0;
}

void zt_recorder_pod(struct zt_pod *pod)
{
    const struct zt_recorder *r = &pod->w->recorder;
    pod->trace_slot = 0;
    for (unsigned i = 0; i < ZT_TRACE_PODS_MAX; i++) {
        if (r->traced[i] && is_pod(pod, r->traced[i]))
            pod->trace_slot = (uint8_t)(i + 1);
    }
}

/* ---- recording ---- */

void zt_record_event(const struct zt_pod *pod, uint64_t conn, const char *fmt, ...)
{
    struct zt_recorder *r = &pod->w->recorder;
    struct zt_trace_event *e = &r->events[r->n_events % ZT_TRACE_EVENTS_MAX];
    va_list args;
    e->serial = r->n_events++;
    e->time_us = zt_clock_wall_us();
    e->conn = conn;
    e->slot = pod->trace_slot;
    va_start(args, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, args);
    va_end(args);
}

void zt_record_denial(const struct zt_conn *c, enum zt_err code, const struct zt_error *err)
{
    struct zt_recorder *r = &c->pod->w->recorder;
    if (!r->denials)
        r->denials = zt_new_n(struct zt_denial, ZT_DENIALS_MAX);
    struct zt_denial *d = &r->denials[r->n_denials++ % ZT_DENIALS_MAX];
    *d = (struct zt_denial){
        .time_us = zt_clock_wall_us(),
        .inbound = c->flow != ZT_FLOW_OUTBOUND,
        .mtls = c->mtls,
        .late = code == ZT_POLICY_CHANGED,
        .src = c->src,
        .dst = c->dst,
    };
    zt_fmt(d->pod, sizeof d->pod, "%s/%s", c->pod->ns, c->pod->name);
    zt_fmt(d->identity, sizeof d->identity, "%s", c->mtls && c->src_identity ? c->src_identity : "");
    zt_fmt(d->reason, sizeof d->reason, "%s%s", zt_err_prefix(code), err ? err->text : "");
    const struct zt_authz_request q = {.src = c->src, .dst = c->dst, .identity = c->mtls ? c->src_identity : NULL};
    if (c->dst_workload)
        zt_authz_explain(c->pod->w->proxy->store, c->dst_workload, &q, &d->why);
}

/* ---- denials, read ---- */

struct denials {
    struct zt_denial *list; /* newest first */
    unsigned n;
};

static void take_denials(struct zt_ask_part *part)
{
    const struct zt_recorder *r = &part->w->recorder;
    struct denials *d = zt_new(struct denials);
    unsigned most = *(const unsigned *)part->ask->question;
    d->n = r->n_denials < ZT_DENIALS_MAX ? (unsigned)r->n_denials : ZT_DENIALS_MAX;
    if (d->n > most)
        d->n = most;
    d->list = zt_new_n(struct zt_denial, d->n + 1);
    for (unsigned i = 0; i < d->n; i++)
        d->list[i] = r->denials[(r->n_denials - 1 - i) % ZT_DENIALS_MAX];
    part->result = d;
}

static void free_denials(void *result)
{
    struct denials *d = result;
    zt_free(d->list);
    zt_free(d);
}

static int newer_first(const void *a, const void *b)
{
    const struct zt_denial *const *x = a, *const *y = b;
    return ((*x)->time_us < (*y)->time_us) - ((*x)->time_us > (*y)->time_us);
}

static void denials_taken(struct zt_ask *a)
{
    zt_denials_fn tell = (zt_denials_fn)a->result;
    if (a->given_up) {
        tell(a->arg, NULL, 0);
        return;
    }
    unsigned n = 0, most = *(const unsigned *)a->question;
    const struct zt_denial **all = zt_new_n(const struct zt_denial *, a->n * ZT_DENIALS_MAX + 1);
    for (unsigned i = 0; i < a->n; i++) {
        const struct denials *d = a->parts[i].result;
        for (unsigned k = 0; k < d->n; k++)
            all[n++] = &d->list[k];
    }
    qsort(all, n, sizeof(all[0]), newer_first);
    tell(a->arg, all, n < most ? n : most);
    zt_free(all);
}

void zt_proxy_denials(struct zt_proxy *p, unsigned most, zt_denials_fn result, void *arg)
{
    struct zt_ask *a = zt_ask_new(p, take_denials, denials_taken, arg);
    unsigned *question = zt_new(unsigned);
    *question = most;
    a->question = question;
    a->result = (void (*)(void))result;
    a->free_result = free_denials;
    zt_ask_send(a);
}

/* ---- traces: started, stopped, read ---- */

struct trace_question {
    enum zt_trace_op op;
    unsigned slot; /* ZT_TRACE_PODS_MAX: the pod is not traced */
    char pod[ZT_POD_NAME_MAX];
};
struct trace_part {
    struct zt_trace_event *events;
    unsigned n;
    uint64_t n_lost;
};

static void look_at_pods(struct zt_worker *w)
{
    zt_list_each(link, &w->pods) zt_recorder_pod(zt_container_of(link, struct zt_pod, worker_link));
}

static void start_slot(struct zt_worker *w, const struct trace_question *q)
{
    struct zt_recorder *r = &w->recorder;
    if (r->traced[q->slot])
        return;
    if (!r->events)
        r->events = zt_new_n(struct zt_trace_event, ZT_TRACE_EVENTS_MAX);
    r->traced[q->slot] = zt_strdup(q->pod);
    r->n_traced++;
    look_at_pods(w);
}

static void stop_slot(struct zt_worker *w, const struct trace_question *q)
{
    struct zt_recorder *r = &w->recorder;
    if (!r->traced[q->slot])
        return;
    for (unsigned i = 0; i < ZT_TRACE_EVENTS_MAX; i++) {
        if (r->events[i].slot == q->slot + 1)
            r->events[i].slot = 0;
    }
    free_slot(r, q->slot);
    look_at_pods(w);
}

static void take_trace(struct zt_ask_part *part)
{
    const struct trace_question *q = part->ask->question;
    struct zt_recorder *r = &part->w->recorder;
    struct trace_part *t = zt_new(struct trace_part);
    part->result = t;
    if (q->slot == ZT_TRACE_PODS_MAX)
        return;
    if (q->op == ZT_TRACE_START)
        start_slot(part->w, q);
    if (q->op == ZT_TRACE_STOP)
        stop_slot(part->w, q);
    if (!r->traced[q->slot])
        return;
    t->events = zt_new_n(struct zt_trace_event, ZT_TRACE_EVENTS_MAX);
    for (unsigned i = 0; i < ZT_TRACE_EVENTS_MAX; i++) {
        if (r->events[i].slot == q->slot + 1)
            t->events[t->n++] = r->events[i];
    }
    t->n_lost = r->n_events > ZT_TRACE_EVENTS_MAX ? r->n_events - ZT_TRACE_EVENTS_MAX : 0;
}

static void free_trace(void *result)
{
    struct trace_part *t = result;
    zt_free(t->events);
    zt_free(t);
}

static int older_first(const void *a, const void *b)
{
    const struct zt_trace_event *x = *(const struct zt_trace_event *const *)a, *y = *(const struct zt_trace_event *const *)b;
    if (x->time_us != y->time_us)
        return x->time_us < y->time_us ? -1 : 1;
    return (x->serial > y->serial) - (x->serial < y->serial);
}

static void trace_taken(struct zt_ask *a)
{
    zt_trace_fn tell = (zt_trace_fn)a->result;
    const struct trace_question *q = a->question;
    struct zt_trace trace = {.on = q->op != ZT_TRACE_STOP && q->slot < ZT_TRACE_PODS_MAX};
    if (a->given_up) {
        tell(a->arg, NULL);
        return;
    }
    unsigned n = 0;
    for (unsigned i = 0; i < a->n; i++)
        n += ((const struct trace_part *)a->parts[i].result)->n;
    const struct zt_trace_event **all = zt_new_n(const struct zt_trace_event *, n + 1);
    for (unsigned i = 0; i < a->n; i++) {
        const struct trace_part *t = a->parts[i].result;
        for (unsigned k = 0; k < t->n; k++)
            all[trace.n_events++] = &t->events[k];
        trace.n_lost += t->n_lost;
    }
    qsort(all, n, sizeof(all[0]), older_first);
    trace.events = all;
    tell(a->arg, &trace);
    zt_free(all);
}

/* The pod's slot; starting gives it one. ZT_TRACE_PODS_MAX: it has none. */
static unsigned slot_of(struct zt_proxy *p, const char *pod, enum zt_trace_op op)
{
    unsigned vacant = ZT_TRACE_PODS_MAX;
    for (unsigned i = ZT_TRACE_PODS_MAX; i-- > 0;) {
        if (!p->traced[i])
            vacant = i;
        else if (strcmp(p->traced[i], pod) == 0)
            return i;
    }
    if (op != ZT_TRACE_START || vacant == ZT_TRACE_PODS_MAX)
        return ZT_TRACE_PODS_MAX;
    p->traced[vacant] = zt_strdup(pod);
    zt_log_info("proxy", "tracing connections of %s", pod);
    return vacant;
}

enum zt_err zt_proxy_trace(struct zt_proxy *p, const char *pod, enum zt_trace_op op, zt_trace_fn result, void *arg,
                           struct zt_error *err)
{
    struct trace_question q = {.op = op};
    const char *slash = strchr(pod, '/');
    if (!slash || slash == pod || !slash[1] || !zt_fmt(q.pod, sizeof q.pod, "%s", pod))
        return zt_error_set(err, ZT_INVALID, "a pod is written NAMESPACE/POD");
    q.slot = slot_of(p, pod, op);
    if (op == ZT_TRACE_START && q.slot == ZT_TRACE_PODS_MAX)
        return zt_error_set(err, ZT_LIMIT, "%u pods are traced already; end one with --off", ZT_TRACE_PODS_MAX);
    if (op == ZT_TRACE_STOP && q.slot < ZT_TRACE_PODS_MAX) {
        zt_log_info("proxy", "no longer tracing connections of %s", pod);
        zt_free(p->traced[q.slot]);
        p->traced[q.slot] = NULL;
    }
    struct zt_ask *a = zt_ask_new(p, take_trace, trace_taken, arg);
    struct trace_question *question = zt_new(struct trace_question);
    *question = q;
    a->question = question;
    a->result = (void (*)(void))result;
    a->free_result = free_trace;
    zt_ask_send(a);
    return ZT_OK;
}
