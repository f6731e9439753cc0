/* The pod's credential for its pool and its tunnels in: over zt_secrets, with the pod's own workload record in front of it, because
 * the trust domain comes from there (spec/controlplane §6.4: a pod can only ask for its own identity).
 *
 * A request is in one of two places: in pod->creds while the workload record is unknown (at most 5 s), or with the secret manager. */
#include "proxy_impl.h"

struct cred_wait {
    struct zt_link link;          /* pod->creds, while the record is unknown */
    struct zt_pod *pod;
    struct zt_cred_request *asked;
    struct zt_secret_request *fetch; /* NULL before */
    ev_timer timer;
};

static struct zt_pod *pod_of(struct zt_cred_source *s)
{
    return zt_container_of(s, struct zt_pod, cred_source);
}

/* Lets go of the wait and answers. */
static void answer(struct cred_wait *cw, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct zt_cred_request *asked = cw->asked;
    ev_timer_stop(zt_loop_ev(cw->pod->w->loop), &cw->timer);
    zt_list_remove(&cw->link);
    zt_free(cw);
    asked->pending = NULL;
    asked->done(asked, cred, err);
}

static void on_fetched(void *owner, struct zt_tls_cred *cred, const struct zt_error *err)
{
    struct cred_wait *cw = owner;
    cw->fetch = NULL;
    answer(cw, cred, err);
}

/* The identity in text, or an error. */
static enum zt_err own_identity(struct zt_pod *pod, struct zt_workload *w, char out[static ZT_IDENTITY_MAX], struct zt_error *err)
{
    if (zt_pod_identity(pod, w, out))
        return ZT_OK;
    return zt_error_set(err, ZT_IDENTITY, "the identity of %s/%s is too long", pod->ns, pod->name);
}

static enum zt_err fetch(struct cred_wait *cw, struct zt_workload *w, struct zt_tls_cred **cred, struct zt_error *err)
{
    char identity[ZT_IDENTITY_MAX];
    enum zt_err e = own_identity(cw->pod, w, identity, err);
    if (e != ZT_OK)
        return e;
    struct zt_worker *worker = cw->pod->w;
    return zt_secrets_get(worker->proxy->secrets, identity, ZT_SECRET_REALTIME, worker->loop, on_fetched, cw, &cw->fetch, cred,
                          err);
}

/* The record has arrived: on to the manager. */
static void go_on(struct cred_wait *cw, struct zt_workload *w)
{
    struct zt_tls_cred *cred = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    ev_timer_stop(zt_loop_ev(cw->pod->w->loop), &cw->timer);
    zt_list_remove(&cw->link);
    enum zt_err e = fetch(cw, w, &cred, &err);
    if (e != ZT_AGAIN)
        answer(cw, cred, &err);
}

static void on_timeout(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct cred_wait *cw = zt_container_of(t, struct cred_wait, timer);
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_IDENTITY, "workload is unknown: %s.%s (%s)", cw->pod->service_account, cw->pod->ns, cw->pod->name);
    answer(cw, NULL, &err);
}

static enum zt_err creds_get(struct zt_cred_source *s, const char *identity, struct zt_cred_request *r, struct zt_tls_cred **cred,
                             struct zt_error *err)
{
    struct zt_pod *pod = pod_of(s);
    struct cred_wait *cw = zt_new(struct cred_wait);
    cw->pod = pod;
    cw->asked = r;
    struct zt_workload *w = zt_pod_workload(pod);
    enum zt_err e = ZT_AGAIN;
    if (w) {
        e = fetch(cw, w, cred, err);
        zt_workload_unref(w);
    } else {
        zt_list_push_back(&pod->creds, &cw->link);
        ev_timer_init(&cw->timer, on_timeout, pod->w->proxy->config.local_workload_wait_ms / 1000.0, 0.);
        ev_timer_start(zt_loop_ev(pod->w->loop), &cw->timer);
    }
    if (e == ZT_AGAIN)
        r->pending = cw;
    else
        zt_free(cw);
    return e;
}

static void creds_cancel(struct zt_cred_source *s, struct zt_cred_request *r)
{
    struct cred_wait *cw = r->pending;
    if (!cw)
        return;
    r->pending = NULL;
    ev_timer_stop(zt_loop_ev(cw->pod->w->loop), &cw->timer);
    zt_list_remove(&cw->link);
    if (cw->fetch)
        zt_secret_request_cancel(cw->fetch);
    zt_free(cw);
}

void zt_pod_creds_init(struct zt_pod *pod)
{
    pod->cred_source.get = creds_get;
    pod->cred_source.cancel = creds_cancel;
}

void zt_pod_creds_state_changed(struct zt_pod *pod)
{
    struct zt_workload *w = zt_list_empty(&pod->creds) ? NULL : zt_pod_workload(pod);
    struct zt_link *link;
    while (w && (link = zt_list_first(&pod->creds)))
        go_on(zt_container_of(link, struct cred_wait, link), w);
    zt_workload_unref(w);
}

/* The pool and the tunnels have cancelled what they asked for. */
void zt_pod_creds_fini(struct zt_pod *pod)
{
    ZT_ASSERT(zt_list_empty(&pod->creds));
}
