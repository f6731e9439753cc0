/* Where an inbound CONNECT goes (spec/dataplane §4.5, §4.6): is the request for us, and for which
 * port of the application?
 *
 * The address dialled is always the one the tunnel arrived on, never the one in the authority. */
#include "state_impl.h"

#include <string.h>

/* An authority taken apart: an address, or a hostname (else empty) with a port. */
struct authority {
    struct zt_addr addr;
    char host[ZT_HOSTNAME_MAX];
};

/* spec/dataplane §4.5. */
static enum zt_err check_for_us(struct zt_store *s, const struct zt_inbound_query *q,
                                const struct authority *a, struct zt_error *err)
{
    char local[ZT_IP_TEXT_MAX], asked[ZT_IP_TEXT_MAX];
    if (a->host[0] || zt_ip_equal(&a->addr.ip, &q->local_ip) || q->local->has_app_tunnel ||
        zt_store_is_waypoint_of(s, q->local, &q->local_ip, &a->addr.ip))
        return ZT_OK;
    return zt_error_set(err, ZT_IP_MISMATCH, "%s != %s", zt_ip_format(&q->local_ip, local),
                        zt_ip_format(&a->addr.ip, asked));
}

/* The port behind a service's name: the endpoint's mapping if we have one, else the service's own.
 */
static enum zt_err port_by_service(struct zt_store *s, const struct zt_inbound_query *q,
                                   const struct authority *a, struct zt_inbound_target *out,
                                   struct zt_error *err)
{
    out->service = zt_store_service_by_hostname(s, a->host, q->local->ns);
    if (!out->service)
        return zt_error_set(err, ZT_NO_HOSTNAME, "%s", a->host);
    int port = zt_store_endpoint_port(s, out->service, q->local->uid, a->addr.port);
    if (port == 0)
        port = zt_port_map_find(out->service->ports, out->service->n_ports, a->addr.port);
    if (port <= 0)
        return zt_error_set(err, ZT_NO_PORT, "%s:%u found, but cannot resolve port", a->host,
                            a->addr.port);
    out->upstream.port = (uint16_t)port;
    return ZT_OK;
}

/* The VIP a PROXY header names for a hostname: own network first, IPv4 before IPv6. */
static bool best_vip(const struct zt_service *v, const char *network, struct zt_ip *out)
{
    int best = -1;
    for (size_t i = 0; i < v->n_vips; i++) {
        const struct zt_vip *vip = &v->vips[i];
        int rank =
            (strcmp(vip->network, network) == 0 ? 2 : 0) + (vip->cidr.ip.family == ZT_IPV4 ? 1 : 0);
        if (!vip->exact || rank <= best)
            continue;
        best = rank;
        *out = vip->cidr.ip;
    }
    return best >= 0;
}

static enum zt_err apply_app_tunnel(struct zt_store *s, const struct zt_inbound_query *q,
                                    const struct authority *a, struct zt_inbound_target *out,
                                    struct zt_error *err)
{
    if (!q->local->has_app_tunnel)
        return ZT_OK;
    if (q->local->app_tunnel_port)
        out->upstream.port = q->local->app_tunnel_port;
    if (q->local->app_tunnel != ZT_APP_TUNNEL_PROXY)
        return ZT_OK;
    out->proxy_protocol = true;
    out->tunnel_target = a->addr;
    if (a->host[0]) {
        if (!best_vip(out->service, zt_store_network(s), &out->tunnel_target.ip))
            return zt_error_set(err, ZT_NO_PORT, "%s found, but has no IP addresses", a->host);
    }
    return ZT_OK;
}

static enum zt_err resolve(struct zt_store *s, const struct zt_inbound_query *q,
                           struct zt_inbound_target *out, struct zt_error *err)
{
    struct authority a;
    if (!q->authority || !zt_authority_parse(q->authority, &a.addr, a.host))
        return zt_error_set(err, ZT_AUTHORITY, "%.256s", q->authority ? q->authority : "");
    enum zt_err e = check_for_us(s, q, &a, err);
    if (e != ZT_OK)
        return e;
    out->upstream = (struct zt_addr){.ip = q->local_ip, .port = a.addr.port};
    if (a.host[0] && (e = port_by_service(s, q, &a, out, err)) != ZT_OK)
        return e;
    if ((e = apply_app_tunnel(s, q, &a, out, err)) != ZT_OK)
        return e;
    for (unsigned i = 0; i < q->n_illegal_ports; i++)
        if (out->upstream.port == q->illegal_ports[i])
            return zt_error_set(err, ZT_SELF_CALL, "%s", "");
    out->dial = out->upstream;
    if (out->proxy_protocol && q->localhost_app_tunnel)
        out->dial.ip = zt_ip_loopback(q->local_ip.family);
    return ZT_OK;
}

enum zt_err zt_inbound_resolve(struct zt_store *s, const struct zt_inbound_query *q,
                               struct zt_inbound_target *out, struct zt_error *err)
{
    *out = (struct zt_inbound_target){0};
    enum zt_err e = resolve(s, q, out, err);
    if (e != ZT_OK)
        zt_inbound_target_fini(out);
    return e;
}

void zt_inbound_target_fini(struct zt_inbound_target *t)
{
    zt_service_unref(t->service);
    *t = (struct zt_inbound_target){0};
}
