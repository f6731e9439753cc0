/* Outbound: a connection that the pod's application made, redirected to 15001 (spec/dataplane §2).
 * Accept, original destination, own workload, route, then a plain dial or a CONNECT through the pool, then the relay. */
#include "proxy_impl.h"

#include "zt/base/log.h"

static void begin_hbone(struct zt_tcp_flow *f, const struct zt_workload *local, const char *identity)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_conn *c = &f->conn;
    const struct zt_baggage baggage = zt_workload_baggage(local);
    zt_baggage_format(&baggage, &s->baggage);
    zt_forwarded_format(&c->src, s->route.dst_service ? s->route.dst_service->hostname : NULL, &s->forwarded);
    zt_traceparent_new(s->traceparent);
    const struct zt_h2_header headers[] = {
        {":method", "CONNECT"},
        {":authority", s->route.authority},
        {"baggage", zt_str_cstr(&s->baggage)},
        {"forwarded", zt_str_cstr(&s->forwarded)},
        {"traceparent", s->traceparent},
    };
    _Static_assert(sizeof(headers) == sizeof(s->headers), "the setup holds the whole block");
    memcpy(s->headers, headers, sizeof(headers));
    const struct zt_hbone_key key = {
        .src_identity = identity,
        .sans = s->route.sans,
        .n_sans = s->route.n_sans,
        .next_hop = s->route.next_hop,
        .src_ip = c->src.ip,
    };
    zt_trace(c, "asks the pool for a tunnel, then CONNECT %s", s->route.authority);
    zt_hbone_pool_connect(c->pod->pool, &key, s->headers, sizeof(headers) / sizeof(headers[0]), &s->request);
}

static void on_tunnelled(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h,
                         const struct zt_error *err)
{
    struct zt_flow_setup *s = zt_container_of(r, struct zt_flow_setup, request);
    if (err->code != ZT_OK) {
        zt_tcp_flow_fail(s->flow, err->code, err);
        return;
    }
    zt_trace(&s->flow->conn, "the server answered 200");
    zt_tcp_flow_relay(s->flow, zt_h2_stream_pipe(st));
}

/* What the record says from here on: next hop, authority, both ends. */
static void describe(struct zt_conn *c, struct zt_route *r, const struct zt_workload *local, const char *identity)
{
    c->dst = r->next_hop;
    c->src_workload = zt_workload_ref(local);
    c->dst_workload = r->dst_workload ? zt_workload_ref(r->dst_workload) : NULL;
    c->dst_service = r->dst_service ? zt_service_ref(r->dst_service) : NULL;
    if (r->kind == ZT_ROUTE_TCP)
        return;
    c->protocol = r->kind == ZT_ROUTE_HBONE ? ZT_CONN_HBONE : ZT_CONN_DOUBLE_HBONE;
    c->mtls = true;
    c->hbone_addr = zt_strdup(r->authority);
    c->src_identity = zt_strdup(identity);
    char dst_identity[ZT_IDENTITY_MAX];
    if (c->dst_workload && zt_workload_identity(c->dst_workload, dst_identity))
        c->dst_identity = zt_strdup(dst_identity);
}

/* Routes that the tree can name but that this data path does not serve yet. */
static enum zt_err check_served(const struct zt_route *r, struct zt_error *err)
{
    if (r->kind == ZT_ROUTE_DOUBLE_HBONE)
        return zt_error_set(err, ZT_UNSUPPORTED, "a tunnel through a network gateway to %s", r->authority);
    if (r->needs_dns)
        return zt_error_set(err, ZT_NO_IP, "%s", r->dst_workload->uid);
    return ZT_OK;
}

static void trace_route(const struct zt_conn *c, const struct zt_route *r)
{
    static const char *const kinds[] = {"plain TCP", "a tunnel", "a tunnel in a tunnel"};
    char hop[ZT_ADDR_TEXT_MAX];
    zt_trace(c, "route: %s to %s%s%s%s%s%s%s", kinds[r->kind], zt_addr_format(&r->next_hop, hop), r->via_waypoint ? ", a waypoint" : "",
             r->dst_service ? ", service " : "", r->dst_service ? r->dst_service->hostname : "",
             r->dst_workload ? ", workload " : ", no known workload", r->dst_workload ? r->dst_workload->uid : "",
             r->kind == ZT_ROUTE_TCP ? "" : ", by CONNECT");
}

static void begin(struct zt_tcp_flow *f, struct zt_workload *local)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_conn *c = &f->conn;
    struct zt_error err = ZT_ERROR_INIT;
    char identity[ZT_IDENTITY_MAX];
    const struct zt_route_query q = {.src = local, .client = c->src, .dst = c->original_dst};
    enum zt_err e = zt_route_resolve(c->pod->w->proxy->store, &q, &s->route, &err);
    if (e == ZT_OK)
        e = check_served(&s->route, &err);
    if (e == ZT_OK && !zt_pod_identity(c->pod, local, identity))
        e = zt_error_set(&err, ZT_IDENTITY, "the identity of %s/%s is too long", c->pod->ns, c->pod->name);
    if (e != ZT_OK) {
        zt_tcp_flow_fail(f, e, &err);
        return;
    }
    describe(c, &s->route, local, identity);
    trace_route(c, &s->route);
    zt_conn_open(c);
    if (s->route.kind == ZT_ROUTE_TCP)
        zt_tcp_flow_dial(f, &s->route.next_hop, NULL);
    else
        begin_hbone(f, local, identity);
}

void zt_outbound_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent)
{
    if (!zt_pod_admits(pod, NULL)) {
        zt_client_reset(fd);
        return;
    }
    struct zt_addr dst = zt_sock_original_dst(fd, transparent);
    struct zt_tcp_flow *f = zt_tcp_flow_new(pod, ZT_FLOW_OUTBOUND, fd, client, &dst);
    f->setup->request.done = on_tunnelled;
    if (zt_ip_is_loopback(&dst.ip) && zt_port_is_illegal(pod->w->proxy, dst.port))
        zt_tcp_flow_fail(f, ZT_SELF_CALL, NULL);
    else
        zt_tcp_flow_start(f, begin);
}
