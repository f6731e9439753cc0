/* Inbound HBONE: one CONNECT on a tunnel to a pod (spec/dataplane §4.4-4.8). The 200 goes out only when the application has accepted;
 * nothing of the stream's body is read before.
 *
 *   state       on                                    to
 *   WAITING     own workload known                    judged: DIALLING, or answered 4xx/5xx: ENDED
 *   DIALLING    application accepted                  200, RELAYING
 *               refused, timed out                    503, ENDED
 *   RELAYING    both directions have ended            ENDED
 *   any         client resets, policy, drain          ENDED
 */
#include "proxy_impl.h"

#include "zt/proxy/proxy_protocol.h"
#include <strings.h>

struct inbound {
    struct zt_conn conn;
    struct zt_h2_stream *st; /* NULL once answered with an end, or given to the relay */
    uint8_t state;           /* enum zt_flow_state */
    struct inbound_setup *setup; /* NULL once the relay runs */
    struct zt_relay relay;
};
/* What is needed only until the 200. */
struct inbound_setup {
    struct inbound *in;
    ev_timer wait;
    struct zt_dial dial;
    struct zt_inbound_target target;
    struct zt_baggage_parsed baggage;
    bool has_baggage, foreign_network;
};

static void drop_setup(struct inbound *in)
{
    struct inbound_setup *s = in->setup;
    if (!s)
        return;
    in->setup = NULL;
    ev_timer_stop(zt_loop_ev(in->conn.pod->w->loop), &s->wait);
    zt_dial_cancel(&s->dial);
    zt_inbound_target_fini(&s->target);
    if (s->has_baggage)
        zt_baggage_parsed_fini(&s->baggage);
    zt_loop_defer_zt_free(in->conn.pod->w->loop, s);
}

static void end_inbound(struct inbound *in)
{
    struct zt_loop *loop = in->conn.pod->w->loop;
    drop_setup(in);
    in->state = ZT_FLOW_ENDED;
    zt_conn_end(&in->conn);
    zt_loop_defer_zt_free(loop, in);
}

/* Answers with the status that belongs to the error and ends. */
static void refuse(struct inbound *in, enum zt_err code, const struct zt_error *err)
{
    zt_conn_fail(&in->conn, code, err);
    zt_trace(&in->conn, "answered %u", zt_err_status(code));
    zt_h2_respond(in->st, zt_err_status(code), NULL, 0, true);
    in->st = NULL;
    end_inbound(in);
}

static void inbound_abort(struct zt_conn *c, enum zt_err why)
{
    struct inbound *in = zt_container_of(c, struct inbound, conn);
    zt_conn_fail(c, why, NULL);
    if (in->state == ZT_FLOW_RELAYING)
        zt_relay_abort(&in->relay, why);
    else if (in->st)
        zt_stream_close(zt_h2_stream_pipe(in->st), why);
    end_inbound(in);
}

static void on_client_gone(void *arg)
{
    struct inbound *in = arg;
    struct zt_error err = ZT_ERROR_INIT;
    uint8_t *data;
    size_t len;
    enum zt_err how = zt_stream_peek(zt_h2_stream_pipe(in->st), 0, &data, &len);
    if (how == ZT_REVOKED || how == ZT_LIMIT)
        zt_error_set(&err, how, "%s", how == ZT_LIMIT ? "bytes queued for the pod" : "");
    else
        zt_error_set(&err, ZT_H2, "the client reset the stream before it was answered");
    zt_conn_fail(&in->conn, err.code, &err);
    zt_stream_close(zt_h2_stream_pipe(in->st), ZT_H2);
    end_inbound(in);
}

/* ---- the application ---- */

static void on_relay_done(struct zt_relay *r, const struct zt_error *err)
{
    struct inbound *in = zt_container_of(r, struct inbound, relay);
    zt_conn_fail(&in->conn, err->code, err);
    end_inbound(in);
}

/* The header is smaller than any fresh socket's buffer, so it is taken whole or the socket is dead. */
static enum zt_err send_proxy_header(struct inbound *in, struct zt_stream *up)
{
    uint8_t header[ZT_PROXY_HEADER_MAX];
    size_t accepted = 0;
    struct iovec iov = {header, zt_proxy_header_write(header, &in->conn.src, &in->setup->target.tunnel_target,
                                                      in->conn.src_identity)};
    enum zt_err e = zt_stream_writev(up, &iov, 1, &accepted);
    return e == ZT_OK && accepted == iov.iov_len ? ZT_OK : ZT_IO;
}

static void answer_ok(struct inbound *in)
{
    struct zt_str baggage;
    zt_str_init(&baggage, ZT_BAGGAGE_BYTES_MAX);
    struct zt_h2_header h = {"baggage", NULL};
    unsigned n = 0;
    if (in->conn.pod->w->proxy->config.response_baggage) {
        const struct zt_baggage b = zt_workload_baggage(in->conn.dst_workload);
        zt_baggage_format(&b, &baggage);
        h.value = zt_str_cstr(&baggage);
        n = 1;
    }
    zt_h2_respond(in->st, 200, &h, n, false);
    zt_str_fini(&baggage);
}

static void on_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct inbound_setup *s = zt_container_of(d, struct inbound_setup, dial);
    struct inbound *in = s->in;
    struct zt_worker *w = in->conn.pod->w;
    struct zt_error err = ZT_ERROR_INIT;
    if (fd < 0) {
        enum zt_err code = zt_pod_dial_error(in->conn.pod, errnum, ZT_CONNECT, &err);
        refuse(in, code, &err);
        return;
    }
    w->newest_fd = fd;
    struct zt_stream *up = zt_tcp_stream_new(w->loop, fd, NULL);
    if (s->target.proxy_protocol && send_proxy_header(in, up) != ZT_OK) {
        zt_stream_close(up, ZT_IO);
        zt_error_set(&err, ZT_CONNECT, "the application closed before the PROXY header");
        refuse(in, ZT_CONNECT, &err);
        return;
    }
    answer_ok(in);
    zt_trace(&in->conn, "the application accepted, answered 200, relaying");
    zt_h2_stream_on_abort(in->st, NULL, NULL);
    const struct zt_relay_ends ends = {
        .down = zt_h2_stream_pipe(in->st),
        .up = up,
        .down_tunnel = true,
        .received = &in->conn.bytes_received,
        .sent = &in->conn.bytes_sent,
    };
    in->st = NULL;
    drop_setup(in);
    in->state = ZT_FLOW_RELAYING;
    zt_relay_start(&in->relay, &ends, on_relay_done);
}

static void dial_application(struct inbound *in)
{
    struct zt_pod *pod = in->conn.pod;
    const struct zt_inbound_target *t = &in->setup->target;
    /* Towards loopback the client's address cannot be the source. */
    bool preserve = pod->listeners[ZT_LISTEN_HBONE].transparent && zt_addr_equal(&t->dial, &t->upstream);
    in->state = ZT_FLOW_SETTING_UP;
    const struct zt_addr source = {.ip = in->conn.src.ip};
    char text[ZT_ADDR_TEXT_MAX];
    zt_trace(&in->conn, "dials the application at %s%s", zt_addr_format(&t->dial, text), preserve ? " with the client's address" : "");
    zt_dial_start(&in->setup->dial, pod->w->loop, pod->netns, &t->dial, preserve ? &source : NULL, &pod->sock,
                  pod->w->proxy->config.connect_timeout_ms, on_dialled);
}

/* ---- who, where, whether ---- */

/* The record at the peer's address describes the source, unless the request crossed networks; then, and without a record, its
 * baggage does (spec/dataplane §11.2). */
static void describe_source(struct inbound *in)
{
    struct zt_conn *c = &in->conn;
    struct zt_proxy *p = c->pod->w->proxy;
    if (!in->setup->foreign_network)
        c->src_workload = zt_store_workload_at(p->store, p->config.network, &c->src.ip);
    if (!c->src_workload && in->setup->has_baggage) {
        c->baggage = zt_new(struct zt_baggage_parsed);
        *c->baggage = in->setup->baggage;
        in->setup->has_baggage = false;
    }
}

static void judge(struct inbound *in, struct zt_workload *local)
{
    struct zt_conn *c = &in->conn;
    struct zt_proxy *p = c->pod->w->proxy;
    struct zt_inbound_target *t = &in->setup->target;
    struct zt_error err = ZT_ERROR_INIT;
    uint16_t illegal[4];
    const struct zt_inbound_query q = {
        .local = local,
        .local_ip = c->original_dst.ip,
        .authority = c->hbone_addr,
        .illegal_ports = illegal,
        .n_illegal_ports = zt_illegal_ports(p, illegal),
        .localhost_app_tunnel = p->config.localhost_app_tunnel,
    };
    enum zt_err e = zt_inbound_resolve(p->store, &q, t, &err);
    if (e != ZT_OK) {
        refuse(in, e, &err);
        return;
    }
    c->dst = t->upstream;
    c->dst_workload = zt_workload_ref(local);
    char identity[ZT_IDENTITY_MAX];
    if (zt_pod_identity(c->pod, local, identity))
        c->dst_identity = zt_strdup(identity);
    describe_source(in);
    c->dst_service = zt_store_guess_service(p->store, local, t->service, c->forwarded_host, c->dst.port);
    zt_conn_open(c);
    const struct zt_authz_request r = {.src = c->src, .dst = c->dst, .identity = c->src_identity};
    e = zt_authz_decide(p->store, local, &r, NULL, &err);
    if (e != ZT_OK) {
        refuse(in, e, &err);
        return;
    }
    zt_trace(c, "policy: allowed as %s", c->src_identity);
    c->judged = true;
    dial_application(in);
}

static void on_wait_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct inbound *in = zt_container_of(t, struct inbound_setup, wait)->in;
    struct zt_error err = ZT_ERROR_INIT;
    zt_pod_unknown_error(in->conn.pod, &err);
    refuse(in, ZT_NO_WORKLOAD, &err);
}

static void try_judge(struct inbound *in)
{
    struct zt_workload *local = zt_pod_workload(in->conn.pod);
    struct ev_loop *ev = zt_loop_ev(in->conn.pod->w->loop);
    if (local) {
        ev_timer_stop(ev, &in->setup->wait);
        judge(in, local);
        zt_workload_unref(local);
    } else if (!ev_is_active(&in->setup->wait)) {
        ev_timer_start(ev, &in->setup->wait);
    }
}

static void inbound_state_changed(struct zt_conn *c)
{
    struct inbound *in = zt_container_of(c, struct inbound, conn);
    if (in->state == ZT_FLOW_WAITING)
        try_judge(in);
}

static const struct zt_conn_ops inbound_conn_ops = {.abort = inbound_abort, .state_changed = inbound_state_changed};

/* ---- the request ---- */

static void note_headers(struct inbound *in, const struct zt_h2_headers *h)
{
    const struct zt_proxy_config *cfg = &in->conn.pod->w->proxy->config;
    char host[ZT_HOSTNAME_MAX];
    const char *forwarded = zt_h2_headers_find(h, "forwarded");
    if (forwarded && zt_forwarded_parse_host(forwarded, host))
        in->conn.forwarded_host = zt_strdup(host);
    const char *network = zt_h2_headers_find(h, "x-forwarded-network");
    in->setup->foreign_network = network && strcasecmp(network, cfg->network) != 0;
    if (cfg->response_baggage)
        in->setup->has_baggage = zt_baggage_parse(h, &in->setup->baggage);
}

static void on_connect(struct zt_hbone_server *s, struct zt_h2_stream *st, const struct zt_h2_headers *h)
{
    struct zt_pod *pod = zt_hbone_server_owner(s);
    if (!zt_pod_admits(pod, &zt_hbone_server_peer(s)->ip)) {
        zt_h2_respond(st, zt_err_status(ZT_LIMIT), NULL, 0, true);
        return;
    }
    struct inbound *in = zt_new(struct inbound);
    struct zt_conn *c = &in->conn;
    zt_conn_init(c, pod, ZT_FLOW_INBOUND, &inbound_conn_ops);
    in->st = st;
    in->setup = zt_new(struct inbound_setup);
    in->setup->in = in;
    ev_timer_init(&in->setup->wait, on_wait_over, pod->w->proxy->config.local_workload_wait_ms / 1000.0, 0.);
    c->src = *zt_hbone_server_peer(s);
    c->original_dst = *zt_hbone_server_local(s);
    c->protocol = ZT_CONN_HBONE;
    c->mtls = true;
    c->src_identity = zt_strdup(zt_hbone_server_identity(s));

    struct zt_error err = ZT_ERROR_INIT;
    const char *method = zt_h2_headers_find(h, ":method");
    const char *authority = zt_h2_headers_find(h, ":authority");
    struct zt_addr addr;
    char host[ZT_HOSTNAME_MAX];
    if (!method || strcmp(method, "CONNECT")) {
        zt_error_set(&err, ZT_METHOD, "%s", method ? method : "");
        refuse(in, ZT_METHOD, &err);
        return;
    }
    if (!authority || !zt_authority_parse(authority, &addr, host)) {
        zt_error_set(&err, ZT_AUTHORITY, "%s", authority ? authority : "");
        refuse(in, ZT_AUTHORITY, &err);
        return;
    }
    c->hbone_addr = zt_strdup(authority);
    char from[ZT_ADDR_TEXT_MAX];
    zt_trace(c, "CONNECT %s from %s as %s", authority, zt_addr_format(&c->src, from), c->src_identity);
    note_headers(in, h);
    zt_h2_stream_on_abort(st, on_client_gone, in);
    try_judge(in);
}

static void on_tunnel_gone(struct zt_hbone_server *s)
{
    struct zt_pod *pod = zt_hbone_server_owner(s);
    zt_pod_tunnel_gone(pod, s);
    zt_worker_pod_idle(pod->w);
}

/* A connection that never became a tunnel: no credential, a failed handshake (spec/dataplane §4.1). */
static void on_failed(struct zt_hbone_server *s, const struct zt_error *err)
{
    struct zt_str text;
    struct zt_pod *pod = zt_hbone_server_owner(s);
    zt_str_init(&text, 2 * ZT_ERROR_TEXT_MAX);
    if (err->code == ZT_REVOKED)
        zt_telemetry_revoked(pod->w->shard, false, 1);
    /* Without our own certificate there is no handshake; spec/interfaces §7.6 words that in its own way. */
    zt_str_add(&text, err->code == ZT_IDENTITY ? "signing error: " : zt_err_prefix(ZT_TLS_HANDSHAKE));
    zt_str_add(&text, err->text);
    zt_conn_log_denied(zt_hbone_server_peer(s), zt_hbone_server_local(s), false, zt_str_cstr(&text));
    zt_str_fini(&text);
    on_tunnel_gone(s);
}

const struct zt_hbone_server_ops zt_inbound_ops = {
    .on_connect = on_connect,
    .on_failed = on_failed,
    .on_closed = on_tunnel_gone,
};
