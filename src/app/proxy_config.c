/* See proxy_config.h. Numbers that no key of the environment moves are those of spec/dataplane §3 and §4. */
#include "app/proxy_config.h"

#include "zt/net/fd_guard.h"
#include <string.h>

static struct zt_sock_opts sock_opts(const struct zt_config *c)
{
    static const enum zt_orig_src orig_src[] = {ZT_ORIG_SRC_AUTO, ZT_ORIG_SRC_NEVER, ZT_ORIG_SRC_ALWAYS};
    return (struct zt_sock_opts){
        .keepalive = c->keepalive,
        .keepalive_idle_s = (unsigned)(c->keepalive_time_ms / 1000),
        .keepalive_interval_s = (unsigned)(c->keepalive_interval_ms / 1000),
        .keepalive_retries = c->keepalive_retries,
        .user_timeout = c->user_timeout,
        .mark = c->packet_mark,
        .mark_listeners = c->mode == ZT_MODE_SHARED,
        .reuse_port = c->mode == ZT_MODE_SHARED && c->inpod_port_reuse,
        .ipv6 = c->ipv6,
        .orig_src = orig_src[c->orig_src - ZT_UNSET],
    };
}

static struct zt_h2_config h2_config(const struct zt_config *c, uint32_t streams_max)
{
    return (struct zt_h2_config){
        .stream_window_bytes = c->stream_window_bytes,
        .connection_window_bytes = c->connection_window_bytes,
        .frame_bytes = c->frame_bytes,
        .header_table_bytes = 4096,
        .streams_max = streams_max,
        .ping_interval_ms = 10000,
        .ping_timeout_ms = 20000,
    };
}

static struct zt_limits_config limits(const struct zt_config *c)
{
    return (struct zt_limits_config){.max = {
                                         [ZT_LIMIT_POD_CONNECTIONS] = c->pod_connections_max,
                                         [ZT_LIMIT_POD_TUNNELS] = c->pod_tunnels_max,
                                         [ZT_LIMIT_POD_HANDSHAKES] = c->pod_handshakes_per_s,
                                         [ZT_LIMIT_POD_DIALS] = c->pod_dials_max,
                                         [ZT_LIMIT_POD_QUEUED_BYTES] = c->pod_queued_bytes_max,
                                         [ZT_LIMIT_PEER_CONNECTIONS] = c->peer_connections_max,
                                         [ZT_LIMIT_PEER_TUNNELS] = c->peer_tunnels_max,
                                         [ZT_LIMIT_PEER_HANDSHAKES] = c->peer_handshakes_per_s,
                                     }};
}

static struct zt_dns_config dns_config(const struct zt_config *c)
{
    struct zt_dns_config d = {
        .proxy = c->dns_proxy,
        .listen = c->dns_addr,
        .domain = c->cluster_domain,
        .ipv6 = c->ipv6,
        .ipv6_loopback = c->ipv6_localhost,
        .n_upstreams = c->n_nameservers,
        .timeout_s = c->resolv_timeout_s,
        .attempts = c->resolv_attempts,
        .ndots = c->resolv_ndots,
        .search = (const char *const *)c->search_domains,
        .n_search = c->n_search_domains,
        .own_search = c->mode != ZT_MODE_SHARED,
        .local_workload_wait_ms = (unsigned)c->local_workload_wait_ms,
        .hosts_path = "/etc/hosts",
    };
    _Static_assert(ZT_DNS_UPSTREAMS_MAX == ZT_CONFIG_NAMESERVERS_MAX, "every nameserver of the file is asked");
    memcpy(d.upstreams, c->nameservers, sizeof d.upstreams);
    return d;
}

struct zt_proxy_config zt_proxy_config_of(const struct zt_config *c)
{
    return (struct zt_proxy_config){
        .enabled = c->enable_proxy,
        .dns = dns_config(c),
        .n_workers = c->worker_threads,
        .sock = sock_opts(c),
        .h2_client = h2_config(c, 100),
        .h2_server = h2_config(c, 200),
        .pool_max_streams = c->pool_max_streams,
        .pool_unused_timeout_ms = (unsigned)c->pool_unused_timeout_ms,
        .drain_deadline_ms = (unsigned)c->termination_deadline_ms,
        .local_workload_wait_ms = (unsigned)c->local_workload_wait_ms,
        .connect_timeout_ms = (unsigned)c->connect_timeout_ms,
        .network = c->network,
        .cluster_id = c->cluster_id,
        .response_baggage = c->response_baggage,
        .localhost_app_tunnel = c->localhost_app_tunnel,
        .socks5 = c->socks5,
        .descriptors_reserved = ZT_FD_RESERVED,
        .crl = c->crl_path != NULL,
        .limits = limits(c),
    };
}
