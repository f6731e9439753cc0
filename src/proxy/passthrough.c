/* Inbound passthrough: plaintext from outside the mesh, redirected to 15006 (spec/dataplane §5). There is no peer identity; policy decides
 * with what there is, and the application sees the client's address. */
#include "proxy_impl.h"

/* Below the range from which the client's own connections take their ports. The client connects to the very address that we dial with its
 * address: with the same port, connection tracking would take its packets for ours and let them pass uncaptured, or lose them. */
#define SOURCE_PORT_FIRST 1024
#define SOURCE_PORT_LAST 32767

static uint16_t next_source_port(struct zt_pod *pod)
{
    if (pod->next_source_port < SOURCE_PORT_FIRST || pod->next_source_port > SOURCE_PORT_LAST)
        pod->next_source_port = SOURCE_PORT_FIRST;
    return pod->next_source_port++;
}

static void begin(struct zt_tcp_flow *f, struct zt_workload *local)
{
    struct zt_conn *c = &f->conn;
    struct zt_proxy *p = c->pod->w->proxy;
    struct zt_error err = ZT_ERROR_INIT;
    c->dst_workload = zt_workload_ref(local);
    c->src_workload = zt_store_workload_at(p->store, p->config.network, &c->src.ip);
    c->dst_service = zt_store_guess_service(p->store, local, NULL, NULL, c->dst.port);
    zt_conn_open(c);
    const struct zt_authz_request r = {.src = c->src, .dst = c->dst};
    enum zt_err e = zt_authz_decide(p->store, local, &r, NULL, &err);
    if (e != ZT_OK) {
        zt_tcp_flow_fail(f, e, &err);
        return;
    }
    zt_trace(c, "policy: allowed, the client has no identity");
    c->judged = true;
    const struct zt_addr source = {.ip = c->src.ip, .port = next_source_port(c->pod)};
    zt_tcp_flow_dial(f, &c->dst, f->preserve_source ? &source : NULL, p->config.connect_timeout_ms);
}

void zt_passthrough_accept(struct zt_pod *pod, int fd, const struct zt_addr *client, bool transparent, bool preserve_source)
{
    if (!zt_pod_admits(pod, &client->ip)) {
        zt_client_reset(fd);
        return;
    }
    struct zt_addr dst = zt_sock_original_dst(fd, transparent);
    struct zt_tcp_flow *f = zt_tcp_flow_new(pod, ZT_FLOW_PASSTHROUGH, fd, client, &dst);
    f->preserve_source = preserve_source;
    f->conn.dst = dst;
    if (zt_port_is_illegal(pod->w->proxy, dst.port))
        zt_tcp_flow_fail(f, ZT_SELF_CALL, NULL);
    else
        zt_tcp_flow_start(f, begin);
}
