/* Control's face of the data plane: the table of pods and their homes, drain, snapshots.
 * A pod's memory is the home worker's from its adoption to its removal; control keeps the pointer only as a name. */
#include "ask.h"
#include "proxy_impl.h"
#include "worker.h"

#include "zt/base/log.h"
#include "zt/base/map.h"
#include "zt/net/fd_guard.h"

struct zt_pod_handle { /* control's record of a pod */
    char *uid;
    struct zt_pod *pod; /* not to be looked into, but by zt_pod_refuse */
    unsigned home;
    bool adopted; /* the pod belongs to its worker */
    UT_hash_handle hh;
};

/* ---- pods ---- */

struct pod_msg {
    struct zt_msg msg;
    struct zt_pod *pod;
};

static void post_pod(struct zt_worker *w, struct zt_pod *pod, void (*run)(struct zt_msg *))
{
    struct pod_msg *m = zt_new(struct pod_msg);
    m->msg.run = run;
    m->pod = pod;
    zt_loop_post(w->loop, &m->msg);
}

static void on_adopt(struct zt_msg *msg)
{
    struct pod_msg *m = zt_container_of(msg, struct pod_msg, msg);
    zt_pod_start(m->pod);
    zt_free(m);
}

static void on_remove(struct zt_msg *msg)
{
    struct pod_msg *m = zt_container_of(msg, struct pod_msg, msg);
    struct zt_worker *w = m->pod->w;
    zt_pod_close(m->pod, ZT_DRAINED);
    zt_pod_free(m->pod);
    zt_worker_pod_idle(w);
    zt_free(m);
}

static unsigned least_loaded(const struct zt_proxy *p)
{
    unsigned best = 0;
    for (unsigned i = 1; i < p->config.n_workers; i++) {
        if (p->pods_per_worker[i] < p->pods_per_worker[best])
            best = i;
    }
    return best;
}

static struct zt_pod_handle *find_handle(struct zt_proxy *p, const char *uid)
{
    struct zt_pod_handle *h;
    HASH_FIND_STR(p->handles, uid, h);
    return h;
}

static void hand_over(struct zt_proxy *p, struct zt_pod_handle *h)
{
    h->adopted = true;
    post_pod(&p->workers[h->home], h->pod, on_adopt);
}

enum zt_err zt_proxy_add_pod(struct zt_proxy *p, enum zt_pod_kind kind, const struct zt_pod_id *id, struct zt_netns *netns,
                             struct zt_error *err)
{
    zt_loop_assert_owner(p->control);
    if (p->draining)
        return zt_error_set(err, ZT_DRAINED, "the daemon is shutting down");
    if (find_handle(p, id->uid))
        return zt_error_set(err, ZT_EXISTS, "pod %s is there already", id->uid);
    unsigned home = least_loaded(p);
    struct zt_pod *pod = zt_pod_new(p, &p->workers[home], kind, id, netns, err);
    if (!pod)
        return err ? err->code : ZT_IO;
    struct zt_pod_handle *h = zt_new(struct zt_pod_handle);
    h->uid = zt_strdup(id->uid);
    h->pod = pod;
    h->home = home;
    HASH_ADD_KEYPTR(hh, p->handles, h->uid, strlen(h->uid), h);
    p->pods_per_worker[home]++;
    if (p->serving)
        hand_over(p, h);
    return ZT_OK;
}

void zt_proxy_serve(struct zt_proxy *p)
{
    zt_loop_assert_owner(p->control);
    struct zt_pod_handle *h, *next;
    p->serving = true;
    HASH_ITER(hh, p->handles, h, next)
        hand_over(p, h);
}

static void remove_handle(struct zt_proxy *p, struct zt_pod_handle *h)
{
    HASH_DEL(p->handles, h);
    p->pods_per_worker[h->home]--;
    if (h->adopted && !p->draining)
        zt_pod_refuse(h->pod); /* who asked may bind the ports again at once, or tell others that they are closed */
    if (h->adopted)
        post_pod(&p->workers[h->home], h->pod, on_remove);
    else
        zt_pod_free(h->pod);
    zt_free(h->uid);
    zt_free(h);
}

void zt_proxy_remove_pod(struct zt_proxy *p, const char *uid)
{
    zt_loop_assert_owner(p->control);
    struct zt_pod_handle *h = find_handle(p, uid);
    if (h)
        remove_handle(p, h);
}

void zt_proxy_state_changed(struct zt_proxy *p, bool policies)
{
    for (unsigned i = 0; i < p->config.n_workers; i++)
        zt_worker_state_changed(&p->workers[i], policies);
}

void zt_proxy_crl_changed(struct zt_proxy *p)
{
    for (unsigned i = 0; i < p->config.n_workers; i++)
        zt_worker_crl_changed(&p->workers[i]);
}

/* ---- drain ---- */

/* What nobody has accepted cannot be served any more. */
static void remove_unserved(struct zt_proxy *p)
{
    struct zt_pod_handle *h, *next;
    HASH_ITER(hh, p->handles, h, next)
    {
        if (!h->adopted)
            remove_handle(p, h);
    }
}

static void on_worker_drained(struct zt_msg *m)
{
    struct zt_drain_request *d = zt_container_of(m, struct zt_drain_request, msg);
    struct zt_proxy *p = d->worker->proxy;
    zt_free(d);
    if (--p->n_drains_left)
        return;
    for (int k = 0; k < ZT_LISTEN_N; k++) {
        struct zt_log_line l;
        if (!zt_log_on(ZT_LOG_INFO, "proxy"))
            break;
        if (k == ZT_LISTEN_SOCKS5 && !p->config.socks5)
            continue;
        zt_log_begin(&l, ZT_LOG_INFO, "proxy", "shutdown complete");
        zt_log_str(&l, "component", zt_component_name((enum zt_listener_kind)k));
        zt_log_end(&l);
    }
    p->drained(p->drained_arg);
}

void zt_proxy_drain(struct zt_proxy *p, void (*done)(void *arg), void *arg)
{
    zt_loop_assert_owner(p->control);
    ZT_ASSERT(!p->draining);
    p->draining = true;
    remove_unserved(p);
    p->drained = done;
    p->drained_arg = arg;
    p->n_drains_left = p->config.n_workers;
    for (unsigned i = 0; i < p->config.n_workers; i++) {
        struct zt_drain_request *d = zt_new(struct zt_drain_request);
        d->deadline_ms = p->config.drain_deadline_ms;
        d->on_drained = on_worker_drained;
        zt_worker_drain(&p->workers[i], d);
    }
}

/* ---- metrics of open connections ---- */

static void count_worker(struct zt_ask_part *part)
{
    zt_list_each(pl, &part->w->pods) {
        struct zt_pod *pod = zt_container_of(pl, struct zt_pod, worker_link);
        zt_list_each(cl, &pod->conns) zt_conn_count(zt_container_of(cl, struct zt_conn, pod_link));
    }
}

static void counted(struct zt_ask *a)
{
    void (*done)(void *) = (void (*)(void *))a->result;
    done(a->arg);
}

void zt_proxy_count(struct zt_proxy *p, void (*done)(void *arg), void *arg)
{
    struct zt_ask *a = zt_ask_new(p, count_worker, counted, arg);
    a->result = (void (*)(void))done;
    zt_ask_send(a);
}

void zt_proxy_buffers(const struct zt_proxy *p, size_t *lent, size_t *kept)
{
    *lent = *kept = 0;
    for (unsigned i = 0; i < p->config.n_workers; i++) {
        size_t worker_lent, worker_kept;
        zt_loop_buf_bytes(p->workers[i].loop, &worker_lent, &worker_kept);
        *lent += worker_lent;
        *kept += worker_kept;
    }
}

/* ---- snapshot ---- */

static char *text_of_addr(const struct zt_addr *a)
{
    char text[ZT_ADDR_TEXT_MAX];
    return zt_strdup(zt_addr_format(a, text));
}

static void snapshot_conn(const struct zt_conn *c, struct zt_proxy_conn_info *out, uint64_t now_ms)
{
    static const char *const outbound_protocols[] = {"TCP", "HBONE", "DOUBLEHBONE"};
    out->inbound = c->flow != ZT_FLOW_OUTBOUND;
    out->src = text_of_addr(&c->src);
    out->actual_dst = text_of_addr(&c->dst);
    out->original_dst = out->inbound ? zt_strdup(c->forwarded_host) : text_of_addr(&c->original_dst);
    out->protocol = out->inbound ? (c->mtls ? "HBONE" : "TCP") : outbound_protocols[c->protocol];
    out->id = c->id;
    out->bytes_received = c->bytes_received;
    out->bytes_sent = c->bytes_sent;
    out->age_ms = now_ms - c->start_ms;
    out->peer_identity = zt_strdup(out->inbound ? c->src_identity : c->dst_identity);
}

static unsigned count_servers(struct zt_pod *pod)
{
    unsigned n = 0;
    zt_list_each(link, &pod->servers) n++;
    return n;
}

static void snapshot_pod(struct zt_pod *pod, struct zt_proxy_pod_info *out)
{
    out->uid = zt_strdup(pod->uid);
    out->ns = zt_strdup(pod->ns);
    out->name = zt_strdup(pod->name);
    out->service_account = zt_strdup(pod->service_account);
    out->worker = pod->w->index;
    out->n_tunnels_out = pod->pool ? zt_hbone_pool_tunnels(pod->pool) : 0;
    out->n_tunnels_in = count_servers(pod);
    struct zt_proxy_conn_info *conns = zt_new_n(struct zt_proxy_conn_info, pod->n_conns + 1);
    uint64_t now_ms = zt_loop_now_ms(pod->w->loop);
    unsigned n = 0;
    zt_list_each(link, &pod->conns) {
        struct zt_conn *c = zt_container_of(link, struct zt_conn, pod_link);
        if (c->opened)
            snapshot_conn(c, &conns[n++], now_ms);
    }
    out->conns = conns;
    out->n_conns = n;
}

static void snapshot_worker(struct zt_ask_part *part)
{
    struct zt_proxy_snapshot *s = zt_new(struct zt_proxy_snapshot);
    zt_list_each(link, &part->w->pods) s->n_pods++;
    struct zt_proxy_pod_info *pods = zt_new_n(struct zt_proxy_pod_info, s->n_pods + 1);
    unsigned n = 0;
    zt_list_each(link, &part->w->pods) snapshot_pod(zt_container_of(link, struct zt_pod, worker_link), &pods[n++]);
    s->pods = pods;
    part->result = s;
}

static void free_pod_info(const struct zt_proxy_pod_info *p)
{
    for (unsigned i = 0; i < p->n_conns; i++) {
        const struct zt_proxy_conn_info *c = &p->conns[i];
        zt_free_const(c->src);
        zt_free_const(c->original_dst);
        zt_free_const(c->actual_dst);
        zt_free_const(c->peer_identity);
    }
    zt_free_const(p->conns);
    zt_free_const(p->uid);
    zt_free_const(p->ns);
    zt_free_const(p->name);
    zt_free_const(p->service_account);
}

static int by_uid(const void *a, const void *b)
{
    return strcmp(((const struct zt_proxy_pod_info *)a)->uid, ((const struct zt_proxy_pod_info *)b)->uid);
}

static void snapshot_free(void *result)
{
    struct zt_proxy_snapshot *s = result;
    for (unsigned i = 0; i < s->n_pods; i++)
        free_pod_info(&s->pods[i]);
    zt_free_const(s->pods);
    zt_free(s);
}

static void snapshot_done(struct zt_ask *a)
{
    zt_proxy_dump_fn tell = (zt_proxy_dump_fn)a->result;
    if (a->given_up) {
        tell(a->arg, NULL);
        return;
    }
    struct zt_proxy_snapshot all = {.limits = &a->p->config.limits};
    for (unsigned i = 0; i < a->n; i++)
        all.n_pods += ((struct zt_proxy_snapshot *)a->parts[i].result)->n_pods;
    struct zt_proxy_pod_info *pods = zt_new_n(struct zt_proxy_pod_info, all.n_pods + 1); /* borrowing from the parts */
    unsigned n = 0;
    for (unsigned i = 0; i < a->n; i++) {
        const struct zt_proxy_snapshot *s = a->parts[i].result;
        for (unsigned k = 0; k < s->n_pods; k++)
            pods[n++] = s->pods[k];
    }
    qsort(pods, n, sizeof(pods[0]), by_uid);
    all.pods = pods;
    tell(a->arg, &all);
    zt_free(pods);
}

void zt_proxy_snapshot(struct zt_proxy *p, zt_proxy_dump_fn result, void *arg)
{
    struct zt_ask *a = zt_ask_new(p, snapshot_worker, snapshot_done, arg);
    a->result = (void (*)(void))result;
    a->free_result = snapshot_free;
    zt_ask_send(a);
}

/* ---- start and stop ---- */

struct zt_proxy *zt_proxy_new(const struct zt_proxy_config *c, struct zt_loop *control, struct zt_store *store,
                              struct zt_secrets *secrets, struct zt_metrics *metrics, struct zt_error *err)
{
    struct zt_proxy *p = zt_new(struct zt_proxy);
    p->config = *c;
    p->config.dns = (struct zt_dns_config){.proxy = c->dns.proxy}; /* the rest is p->dns's */
    p->config.keylog_pods = zt_strdup(c->keylog_pods ? c->keylog_pods : "");
    p->config.network = zt_strdup(c->network ? c->network : "");
    p->config.cluster_id = zt_strdup(c->cluster_id ? c->cluster_id : "");
    p->control = control;
    zt_list_init(&p->asks);
    p->store = store;
    p->secrets = secrets;
    p->metrics = metrics;
    p->dns = zt_dns_new(&c->dns, store);
    if (zt_netns_own(&p->own_netns, err) != ZT_OK) {
        p->config.n_workers = 0;
        zt_proxy_free(p);
        return NULL;
    }
    p->workers = zt_new_n(struct zt_worker, c->n_workers);
    p->pods_per_worker = zt_new_n(unsigned, c->n_workers);
    zt_fd_guard_set(c->descriptors_reserved);
    for (unsigned i = 0; i < c->n_workers; i++) {
        if (zt_worker_init(&p->workers[i], p, i, err) == ZT_OK)
            continue;
        zt_worker_fini(&p->workers[i]);
        p->config.n_workers = i;
        zt_proxy_free(p);
        return NULL;
    }
    return p;
}

void zt_proxy_dns_dump(struct zt_proxy *p, struct zt_json *j)
{
    zt_dns_dump(p->dns, j);
}

bool zt_proxy_dns_resolve(struct zt_proxy *p, const struct zt_workload *client, const char *name, enum zt_family family,
                          struct zt_str *trace, struct zt_name_answer *out)
{
    return zt_dns_resolve(p->dns, client, name, family, trace, out);
}

struct zt_loop *zt_proxy_worker_loop(struct zt_proxy *p, unsigned i)
{
    return p->workers[i].loop;
}

struct quit_msg {
    struct zt_msg msg;
    struct zt_worker *w;
};

static void on_quit(struct zt_msg *m)
{
    struct quit_msg *q = zt_container_of(m, struct quit_msg, msg);
    zt_worker_quit(q->w);
    zt_free(q);
}

void zt_proxy_stop(struct zt_proxy *p)
{
    if (!p || p->stopped)
        return;
    p->stopped = true;
    struct zt_pod_handle *h, *next;
    HASH_ITER(hh, p->handles, h, next)
        remove_handle(p, h);
    for (unsigned i = 0; i < p->config.n_workers; i++) {
        struct quit_msg *q = zt_new(struct quit_msg); /* behind the removals in the mailbox */
        q->w = &p->workers[i];
        q->msg.run = on_quit;
        zt_loop_post(p->workers[i].loop, &q->msg);
        zt_loop_join(p->workers[i].loop);
    }
    zt_asks_give_up(p);
}

void zt_proxy_free(struct zt_proxy *p)
{
    if (!p)
        return;
    zt_proxy_stop(p);
    for (unsigned i = 0; i < p->config.n_workers; i++)
        zt_worker_fini(&p->workers[i]);
    zt_free(p->workers);
    zt_dns_free(p->dns);
    zt_netns_unref(p->own_netns);
    zt_free(p->pods_per_worker);
    for (unsigned i = 0; i < sizeof(p->traced) / sizeof(p->traced[0]); i++)
        zt_free(p->traced[i]);
    zt_free_const(p->config.keylog_pods);
    zt_free_const(p->config.network);
    zt_free_const(p->config.cluster_id);
    zt_free(p);
}
