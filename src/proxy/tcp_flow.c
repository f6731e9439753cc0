/* A flow that begins with an accepted socket: outbound and inbound passthrough. The client's socket is not read before the upstream
 * is there, and a refused client gets a reset.
 *
 *   state       on                                   to
 *   WAITING     the pod's workload is known          SETTING_UP (begin)
 *               it is not known in time              ENDED (denied)
 *   SETTING_UP  the upstream stream is there         RELAYING
 *               dial or tunnel failed                ENDED
 *   RELAYING    both directions have ended           ENDED
 *   any         abort (pod gone, policy, drain)      ENDED
 */
#include "proxy_impl.h"

static struct ev_loop *flow_ev(struct zt_tcp_flow *f)
{
    return zt_loop_ev(f->conn.pod->w->loop);
}

static void drop_setup(struct zt_tcp_flow *f)
{
    struct zt_flow_setup *s = f->setup;
    if (!s)
        return;
    f->setup = NULL;
    ev_timer_stop(flow_ev(f), &s->wait);
    zt_dial_cancel(&s->dial);
    zt_hbone_request_cancel(&s->request);
    zt_dns_host_cancel(&s->host);
    zt_route_fini(&s->route);
    zt_str_fini(&s->baggage);
    zt_str_fini(&s->forwarded);
    for (unsigned i = 0; i < s->n_tried; i++)
        zt_free(s->tried[i]);
    zt_loop_defer_zt_free(f->conn.pod->w->loop, s); /* we may be inside one of its callbacks */
}

/* Ends the flow; the relay, if any, has let go of its streams. */
static void end_flow(struct zt_tcp_flow *f)
{
    struct zt_worker *w = f->conn.pod->w;
    drop_setup(f);
    f->state = ZT_FLOW_ENDED;
    if (f->client_fd >= 0)
        zt_client_reset(f->client_fd);
    f->client_fd = -1;
    zt_worker_count_socket(w, f->conn.flow == ZT_FLOW_OUTBOUND, -1);
    zt_conn_end(&f->conn);
    zt_loop_defer_zt_free(w->loop, f);
}

void zt_tcp_flow_fail(struct zt_tcp_flow *f, enum zt_err code, const struct zt_error *err)
{
    zt_conn_fail(&f->conn, code, err);
    if (f->client_fd >= 0)
        zt_client_refuse(f->conn.pod->w, f->client_fd);
    f->client_fd = -1;
    end_flow(f);
}

static void flow_abort(struct zt_conn *c, enum zt_err why)
{
    struct zt_tcp_flow *f = zt_container_of(c, struct zt_tcp_flow, conn);
    zt_conn_fail(c, why, NULL);
    if (f->state == ZT_FLOW_RELAYING)
        zt_relay_abort(&f->relay, why);
    end_flow(f);
}

/* ---- waiting for the pod's own workload record (at most 5 s) ---- */

static void begin(struct zt_tcp_flow *f, struct zt_workload *local)
{
    ev_timer_stop(flow_ev(f), &f->setup->wait);
    f->state = ZT_FLOW_SETTING_UP;
    f->begin(f, local);
    zt_workload_unref(local);
}

static void flow_state_changed(struct zt_conn *c)
{
    struct zt_tcp_flow *f = zt_container_of(c, struct zt_tcp_flow, conn);
    if (f->state != ZT_FLOW_WAITING)
        return;
    struct zt_workload *local = zt_pod_workload(c->pod);
    if (local)
        begin(f, local);
}

static void on_wait_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_flow_setup *s = zt_container_of(t, struct zt_flow_setup, wait);
    struct zt_tcp_flow *f = s->flow;
    struct zt_error err = ZT_ERROR_INIT;
    zt_pod_unknown_error(f->conn.pod, &err);
    zt_tcp_flow_fail(f, ZT_NO_WORKLOAD, &err);
}

static const struct zt_conn_ops tcp_flow_ops = {.abort = flow_abort, .state_changed = flow_state_changed};

struct zt_tcp_flow *zt_tcp_flow_new(struct zt_pod *pod, enum zt_conn_flow kind, int fd, const struct zt_addr *client,
                                    const struct zt_addr *dst)
{
    struct zt_tcp_flow *f = zt_new(struct zt_tcp_flow);
    zt_conn_init(&f->conn, pod, kind, &tcp_flow_ops);
    f->client_fd = fd;
    f->conn.src = *client;
    f->conn.original_dst = *dst;
    f->setup = zt_new(struct zt_flow_setup);
    f->setup->flow = f;
    zt_str_init(&f->setup->baggage, ZT_BAGGAGE_BYTES_MAX);
    zt_str_init(&f->setup->forwarded, ZT_BAGGAGE_BYTES_MAX);
    zt_worker_count_socket(pod->w, kind == ZT_FLOW_OUTBOUND, 1);
    char from[ZT_ADDR_TEXT_MAX], to[ZT_ADDR_TEXT_MAX];
    zt_trace(&f->conn, "accepted %s: %s asks for %s", kind == ZT_FLOW_OUTBOUND ? "outbound" : "inbound plaintext",
             zt_addr_format(client, from), zt_addr_format(dst, to));
    return f;
}

void zt_tcp_flow_start(struct zt_tcp_flow *f, void (*begin_fn)(struct zt_tcp_flow *f, struct zt_workload *local))
{
    f->begin = begin_fn;
    f->state = ZT_FLOW_WAITING;
    ev_timer_init(&f->setup->wait, on_wait_over, f->conn.pod->w->proxy->config.local_workload_wait_ms / 1000.0, 0.);
    struct zt_workload *local = zt_pod_workload(f->conn.pod);
    if (local)
        begin(f, local);
    else {
        zt_trace(&f->conn, "waits for the pod's workload record");
        ev_timer_start(flow_ev(f), &f->setup->wait);
    }
}

/* ---- the upstream ---- */

static void on_relay_done(struct zt_relay *r, const struct zt_error *err)
{
    struct zt_tcp_flow *f = zt_container_of(r, struct zt_tcp_flow, relay);
    zt_tcp_flow_fail(f, err->code, err); /* ZT_OK: a plain end */
}

void zt_tcp_flow_relay(struct zt_tcp_flow *f, struct zt_stream *up)
{
    struct zt_loop *loop = f->conn.pod->w->loop;
    struct zt_stream *down = zt_tcp_stream_new(loop, f->client_fd, NULL);
    f->client_fd = -1;
    drop_setup(f);
    if (!f->conn.opened)
        zt_conn_open(&f->conn);
    f->state = ZT_FLOW_RELAYING;
    const struct zt_relay_ends ends = {
        .down = down,
        .up = up,
        .up_tunnel = f->conn.protocol != ZT_CONN_TCP,
        .received = &f->conn.bytes_received,
        .sent = &f->conn.bytes_sent,
    };
    zt_trace(&f->conn, "connected, relaying");
    zt_relay_start(&f->relay, &ends, on_relay_done);
}

static void on_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct zt_flow_setup *s = zt_container_of(d, struct zt_flow_setup, dial);
    struct zt_tcp_flow *f = s->flow;
    struct zt_worker *w = f->conn.pod->w;
    if (fd < 0) {
        struct zt_error err = ZT_ERROR_INIT;
        enum zt_err code = zt_pod_dial_error(f->conn.pod, errnum, f->conn.flow == ZT_FLOW_OUTBOUND ? ZT_IO : ZT_CONNECT, &err);
        if (f->dial_failed && !zt_dial_errno_is_ours(errnum))
            f->dial_failed(f, &err);
        else
            zt_tcp_flow_fail(f, code, &err);
        return;
    }
    w->newest_fd = fd;
    zt_tcp_flow_relay(f, zt_tcp_stream_new(w->loop, fd, NULL));
}

void zt_tcp_flow_dial(struct zt_tcp_flow *f, const struct zt_addr *to, const struct zt_addr *source, unsigned timeout_ms)
{
    struct zt_pod *pod = f->conn.pod;
    char text[ZT_ADDR_TEXT_MAX];
    zt_trace(&f->conn, "dials %s%s", zt_addr_format(to, text), source ? " with the client's address" : "");
    zt_dial_start(&f->setup->dial, pod->w->loop, pod->netns, to, source, &pod->sock, timeout_ms, on_dialled);
}
