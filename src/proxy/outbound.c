/* Outbound: a connection that the pod's application made, redirected to 15001 (spec/dataplane §2).
 * Accept, original destination, own workload, route, then a plain dial or a CONNECT through the pool, then the relay.
 *
 * Departing from §2.4, an endpoint that cannot be dialled (TCP, TLS or HTTP/2 set-up; never a refusal, an identity or a revocation) is
 * not the end where there is another one: the route is asked again without it, OUTBOUND_DIALS_MAX endpoints in all within one budget.
 * Nothing was read from the client by then, so nobody notices. Each dial but the last may take its share of the budget. */
#include "proxy_impl.h"

#include "zt/base/log.h"

/* ---- the record ---- */

/* What the record says of this dial: next hop, authority, whom. */
static void describe(struct zt_conn *c, const struct zt_route *r)
{
    c->routed = true;
    c->dst = r->next_hop;
    c->dst_workload = r->dst_workload ? zt_workload_ref(r->dst_workload) : NULL;
    c->dst_service = r->dst_service ? zt_service_ref(r->dst_service) : NULL;
    c->protocol = r->kind == ZT_ROUTE_TCP ? ZT_CONN_TCP : r->kind == ZT_ROUTE_HBONE ? ZT_CONN_HBONE : ZT_CONN_DOUBLE_HBONE;
    c->mtls = r->kind != ZT_ROUTE_TCP;
    if (c->dst_workload)
        zt_store_endpoint_opened(c->pod->w->proxy->store, c->dst_workload->uid);
    if (!c->mtls)
        return;
    char dst_identity[ZT_IDENTITY_MAX];
    c->hbone_addr = zt_strdup(r->authority);
    if (c->dst_workload && zt_workload_identity(c->dst_workload, dst_identity))
        c->dst_identity = zt_strdup(dst_identity);
}

/* The far end of two tunnels is known only now: the gateway chose it. What it says of itself replaces the gateway in the record. */
static void describe_far_end(struct zt_conn *c, const struct zt_h2_headers *h, const char *identity)
{
    struct zt_baggage_parsed said;
    zt_free(c->dst_identity);
    c->dst_identity = zt_strdup(identity);
    if (!zt_baggage_parse(h, &said))
        return;
    c->baggage = zt_new(struct zt_baggage_parsed);
    *c->baggage = said;
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

/* ---- dialling ---- */

/* How long this dial may take: all that is left, or a share of it when there are others to try. */
static unsigned share_ms(const struct zt_tcp_flow *f)
{
    const struct zt_flow_setup *s = f->setup;
    unsigned budget = f->conn.pod->w->proxy->config.connect_timeout_ms;
    uint64_t passed = zt_loop_now_ms(f->conn.pod->w->loop) - s->dial_started_ms;
    unsigned left = passed < budget ? (unsigned)(budget - passed) : 1;
    return s->route.alternatives ? left / (OUTBOUND_DIALS_MAX - s->n_tried) : left;
}

static void dial_hbone(struct zt_tcp_flow *f)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_conn *c = &f->conn;
    const struct zt_proxy_config *config = &c->pod->w->proxy->config;
    bool double_hbone = s->route.kind == ZT_ROUTE_DOUBLE_HBONE;
    if (s->baggage.len == 0) {
        const struct zt_baggage baggage = zt_workload_baggage(c->src_workload);
        zt_baggage_format(&baggage, &s->baggage);
    }
    s->forwarded.len = 0;
    zt_forwarded_format(&c->src, s->route.dst_service ? s->route.dst_service->hostname : NULL, &s->forwarded);
    const struct zt_h2_header headers[] = {
        {":method", "CONNECT"},
        {":authority", s->route.authority},
        {"baggage", zt_str_cstr(&s->baggage)},
        {"forwarded", zt_str_cstr(&s->forwarded)},
        {"traceparent", s->traceparent},
        {"x-forwarded-network", config->network}, /* for the inner one of two only */
    };
    const unsigned n_headers = sizeof(headers) / sizeof(headers[0]);
    _Static_assert(sizeof(headers) == sizeof(s->headers), "the setup holds the whole block");
    memcpy(s->headers, headers, sizeof(headers));
    const struct zt_hbone_inner inner = {
        .authority = s->route.authority, .sans = s->route.inner_sans, .n_sans = s->route.n_inner_sans};
    const struct zt_hbone_key key = {
        .src_identity = c->src_identity,
        .sans = s->route.sans,
        .n_sans = s->route.n_sans,
        .next_hop = s->route.next_hop,
        .src_ip = c->src.ip,
        .inner = double_hbone ? &inner : NULL,
    };
    s->request.patience_ms = s->route.alternatives || s->n_tried > 0 ? share_ms(f) : 0;
    zt_trace(c, "asks the pool for a tunnel, then CONNECT %s", s->route.authority);
    zt_hbone_pool_connect(c->pod->pool, &key, s->headers, double_hbone ? n_headers : n_headers - 1, &s->request);
}

static void dial(struct zt_tcp_flow *f);

/* Puts the address where the route left room for it: in front of the authority's port. */
static void complete_route(struct zt_route *r, const struct zt_ip *ip)
{
    struct zt_addr target = {.ip = *ip};
    r->next_hop.ip = *ip;
    r->needs_dns = false;
    if (r->authority[0] != ':')
        return;
    for (const char *digit = r->authority + 1; *digit; digit++)
        target.port = (uint16_t)(10 * target.port + *digit - '0');
    zt_addr_format(&target, r->authority);
}

static void on_address(struct zt_dns_host *h)
{
    struct zt_flow_setup *s = zt_container_of(h, struct zt_flow_setup, host);
    const char *uid = s->route.dst_workload->uid;
    struct zt_error err = ZT_ERROR_INIT;
    if (h->found) {
        complete_route(&s->route, &h->ip);
        dial(s->flow);
        return;
    }
    if (h->answered)
        zt_error_set(&err, ZT_NO_IP_IN_DNS, "%s, but valid dns response had no A/AAAA records", uid);
    else
        zt_error_set(&err, ZT_NO_IP, "%s", uid);
    zt_tcp_flow_fail(s->flow, err.code, &err);
}

/* The workload has only a hostname (spec/dataplane §2.6). */
static void ask_for_address(struct zt_tcp_flow *f)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_pod *pod = f->conn.pod;
    const char *hostname = s->route.dst_workload->hostname;
    zt_trace(&f->conn, "asks DNS for %s", hostname);
    zt_telemetry_resolved(pod, f->conn.src_workload, hostname);
    s->host.done = on_address;
    zt_dns_host_start(&s->host, pod->w->own_dns, hostname, (enum zt_family)f->conn.src.ip.family);
}

/* The setup's route is the one to take. */
static void dial(struct zt_tcp_flow *f)
{
    struct zt_flow_setup *s = f->setup;
    if (s->route.needs_dns) {
        ask_for_address(f);
        return;
    }
    describe(&f->conn, &s->route);
    trace_route(&f->conn, &s->route);
    /* Where the destination may still change the record is opened once it is known. */
    if (!s->route.alternatives && s->route.kind != ZT_ROUTE_DOUBLE_HBONE && !f->conn.opened)
        zt_conn_open(&f->conn);
    if (s->route.kind == ZT_ROUTE_TCP)
        zt_tcp_flow_dial(f, &s->route.next_hop, NULL, share_ms(f));
    else
        dial_hbone(f);
}

static enum zt_err resolve(const struct zt_tcp_flow *f, struct zt_route *out, struct zt_error *err)
{
    const struct zt_conn *c = &f->conn;
    const struct zt_route_query q = {
        .src = c->src_workload,
        .client = c->src,
        .dst = c->original_dst,
        .tried = (const char *const *)f->setup->tried,
        .n_tried = f->setup->n_tried,
    };
    return zt_route_resolve(c->pod->w->proxy->store, &q, out, err);
}

/* ---- another endpoint ---- */

static void report_failover(struct zt_tcp_flow *f, const struct zt_error *err, const struct zt_addr *next)
{
    struct zt_worker *w = f->conn.pod->w;
    struct zt_log_line l;
    char addr[ZT_ADDR_TEXT_MAX];
    uint32_t suppressed;
    zt_telemetry_failover(w);
    if (!zt_log_on(ZT_LOG_WARN, "proxy") || !zt_log_gate_pass(&w->failover_gate, 1, &suppressed))
        return;
    zt_log_begin(&l, ZT_LOG_WARN, "proxy", "an endpoint cannot be reached, the connection goes to another one");
    zt_log_u64(&l, "conn", f->conn.id);
    zt_log_str(&l, "endpoint", f->conn.dst_workload->uid);
    zt_log_raw(&l, "addr", zt_addr_format(&f->conn.dst, addr));
    zt_log_raw(&l, "next", zt_addr_format(next, addr));
    struct zt_str text;
    zt_str_init(&text, 2 * ZT_ERROR_TEXT_MAX);
    zt_str_addf(&text, "%s%s", zt_err_prefix(err->code), err->text);
    zt_log_str(&l, "error", zt_str_cstr(&text));
    zt_str_fini(&text);
    if (suppressed)
        zt_log_u64(&l, "suppressed", suppressed);
    zt_log_end(&l);
}

/* False: there is no other way, and the error stands. */
static bool go_elsewhere(struct zt_tcp_flow *f, const struct zt_error *err)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_conn *c = &f->conn;
    struct zt_route next;
    struct zt_error ignored = ZT_ERROR_INIT;
    uint64_t passed = zt_loop_now_ms(c->pod->w->loop) - s->dial_started_ms;
    if (!s->route.alternatives || s->n_tried == OUTBOUND_DIALS_MAX - 1 || passed >= c->pod->w->proxy->config.connect_timeout_ms)
        return false;
    s->tried[s->n_tried++] = zt_strdup(c->dst_workload->uid);
    if (resolve(f, &next, &ignored) != ZT_OK)
        return false;
    if (zt_addr_equal(&next.next_hop, &s->route.next_hop)) { /* another endpoint behind the same door */
        zt_route_fini(&next);
        return false;
    }
    report_failover(f, err, &next.next_hop);
    zt_trace(c, "cannot reach it, tries another endpoint: %s%s", zt_err_prefix(err->code), err->text);
    zt_conn_forget_destination(c);
    zt_route_fini(&s->route);
    s->route = next;
    dial(f);
    return true;
}

/* TCP, TLS or HTTP/2 could not be set up. */
static void on_dial_failed(struct zt_tcp_flow *f, const struct zt_error *err)
{
    if (f->conn.dst_workload)
        zt_store_endpoint_failed(f->conn.pod->w->proxy->store, f->conn.dst_workload->uid);
    if (!go_elsewhere(f, err))
        zt_tcp_flow_fail(f, err->code, err);
}

static void on_tunnelled(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h,
                         const struct zt_error *err)
{
    struct zt_tcp_flow *f = zt_container_of(r, struct zt_flow_setup, request)->flow;
    if (err->code == ZT_OK) {
        zt_trace(&f->conn, "the server answered 200");
        if (f->conn.protocol == ZT_CONN_DOUBLE_HBONE)
            describe_far_end(&f->conn, h, r->peer_identity);
        zt_tcp_flow_relay(f, zt_h2_stream_pipe(st));
    } else if (r->set_up_failed) {
        on_dial_failed(f, err);
    } else {
        zt_tcp_flow_fail(f, err->code, err);
    }
}

/* ---- the beginning ---- */

static void begin(struct zt_tcp_flow *f, struct zt_workload *local)
{
    struct zt_flow_setup *s = f->setup;
    struct zt_conn *c = &f->conn;
    struct zt_error err = ZT_ERROR_INIT;
    char identity[ZT_IDENTITY_MAX];
    c->src_workload = zt_workload_ref(local);
    enum zt_err e = resolve(f, &s->route, &err);
    if (e == ZT_OK && !zt_pod_identity(c->pod, local, identity))
        e = zt_error_set(&err, ZT_IDENTITY, "the identity of %s/%s is too long", c->pod->ns, c->pod->name);
    if (e != ZT_OK) {
        zt_tcp_flow_fail(f, e, &err);
        return;
    }
    c->src_identity = zt_strdup(identity);
    zt_traceparent_new(s->traceparent);
    s->dial_started_ms = zt_loop_now_ms(c->pod->w->loop);
    dial(f);
}

void zt_outbound_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent)
{
    struct zt_addr dst = zt_sock_original_dst(fd, transparent);
    zt_outbound_begin(pod, fd, client, &dst);
}

void zt_outbound_begin(struct zt_pod *pod, int fd, const struct zt_addr *client, const struct zt_addr *dst)
{
    if (!zt_pod_admits(pod, NULL)) {
        zt_client_reset(fd);
        return;
    }
    struct zt_tcp_flow *f = zt_tcp_flow_new(pod, ZT_FLOW_OUTBOUND, fd, client, dst);
    f->setup->request.done = on_tunnelled;
    f->dial_failed = on_dial_failed;
    if (zt_ip_is_loopback(&dst->ip) && zt_port_is_illegal(pod->w->proxy, dst->port))
        zt_tcp_flow_fail(f, ZT_SELF_CALL, NULL);
    else
        zt_tcp_flow_start(f, begin);
}
