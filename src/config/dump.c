/* The configuration for readers: one walk in ascending order of keys, two writers.
 * Invariant: auth_token never gets here. Values that a YAML reader would take for something else are quoted. */
#include "zt/config/dump.h"

#include "zt/base/identity.h"
#include <string.h>
#include <strings.h>

#define PORT_INBOUND 15008
#define PORT_INBOUND_PLAINTEXT 15006
#define PORT_OUTBOUND 15001
#define PORT_READINESS 15021
#define PORT_SOCKS5 15080

/* Where the walk writes: JSON, or YAML when json is NULL. */
struct writer {
    struct zt_json *json;
    struct zt_str *yaml;
    unsigned indent;  /* YAML: containers open around the next key */
    bool after_key;   /* YAML: "key:" is on the line, its value is not */
    bool after_dash;  /* YAML: "- " is on the line */
    bool empty;       /* YAML: the container just opened has nothing in it yet */
};

/* ---- YAML ----------------------------------------------------------------------------------------- */

static void yaml_indent(struct writer *w)
{
    for (unsigned i = 0; i < w->indent; i++)
        zt_str_add(w->yaml, "  ");
}

/* Could the bare text be read as something else than a string? */
static bool needs_quotes(const char *text)
{
    static const char *const words[] = {"", "~", "null", "true", "false", "yes", "no", "on", "off"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    if (strspn(text, "0123456789+-.eExXoO_:") == strlen(text) || strchr(" -?:,[]{}#&*!|>'\"%@`", *text))
        return true;
    for (const char *p = text; *p; p++)
        if (*p < ' ' || *p == 0x7f || (*p == ':' && (p[1] == ' ' || !p[1])) || (*p == '#' && p[-1] == ' ') ||
            (*p == ' ' && !p[1]))
            return true;
    return false;
}

static void yaml_scalar(struct writer *w, const char *text)
{
    if (w->after_key)
        zt_str_add_char(w->yaml, ' ');
    zt_str_add(w->yaml, text);
    zt_str_add_char(w->yaml, '\n');
    w->after_key = w->after_dash = w->empty = false;
}

/* Ends the line of a key or dash whose value is a container. */
static void yaml_open(struct writer *w)
{
    if (w->after_key)
        zt_str_add_char(w->yaml, '\n');
    w->after_key = false;
    w->empty = true;
}

/* An empty container goes where its key's line ended. */
static void yaml_close(struct writer *w, const char *empty)
{
    if (w->empty && w->yaml->len && !w->yaml->overflow) {
        if (!w->after_dash)
            w->yaml->data[w->yaml->len - 1] = ' ';
        zt_str_add(w->yaml, empty);
        zt_str_add_char(w->yaml, '\n');
    }
    w->empty = w->after_dash = false;
}

/* ---- both ----------------------------------------------------------------------------------------- */

static void put_key(struct writer *w, const char *key)
{
    if (w->json) {
        zt_json_key(w->json, key);
        return;
    }
    if (!w->after_dash)
        yaml_indent(w);
    w->after_dash = w->empty = false;
    struct zt_str quoted;
    zt_str_init(&quoted, w->yaml->max);
    zt_json_escape(&quoted, key, strlen(key));
    bool bare = !needs_quotes(key);
    zt_str_addf(w->yaml, bare ? "%s:" : "\"%s\":", zt_str_cstr(&quoted));
    zt_str_fini(&quoted);
    w->after_key = true;
}

static void put_str(struct writer *w, const char *value)
{
    if (w->json) {
        zt_json_str(w->json, value);
    } else if (!value) {
        yaml_scalar(w, "null");
    } else if (!needs_quotes(value)) {
        yaml_scalar(w, value);
    } else {
        struct zt_str quoted;
        zt_str_init(&quoted, w->yaml->max);
        zt_str_add_char(&quoted, '"');
        zt_json_escape(&quoted, value, strlen(value));
        zt_str_add_char(&quoted, '"');
        yaml_scalar(w, zt_str_cstr(&quoted));
        zt_str_fini(&quoted);
    }
}

static void put_u64(struct writer *w, uint64_t value)
{
    char text[24];
    if (w->json) {
        zt_json_u64(w->json, value);
        return;
    }
    zt_fmt(text, sizeof text, "%llu", (unsigned long long)value);
    yaml_scalar(w, text);
}

static void put_bool(struct writer *w, bool value)
{
    if (w->json)
        zt_json_bool(w->json, value);
    else
        yaml_scalar(w, value ? "true" : "false");
}

static void put_null(struct writer *w)
{
    if (w->json)
        zt_json_null(w->json);
    else
        yaml_scalar(w, "null");
}

static void open_object(struct writer *w)
{
    if (w->json) {
        zt_json_object(w->json);
    } else {
        yaml_open(w);
        w->indent++;
    }
}

static void close_object(struct writer *w)
{
    if (w->json) {
        zt_json_object_end(w->json);
    } else {
        w->indent--;
        yaml_close(w, "{}");
    }
}

static void open_array(struct writer *w)
{
    if (w->json)
        zt_json_array(w->json);
    else
        yaml_open(w);
}

static void close_array(struct writer *w)
{
    if (w->json)
        zt_json_array_end(w->json);
    else
        yaml_close(w, "[]");
}

/* Before every element of an array. */
static void put_item(struct writer *w)
{
    if (w->json)
        return;
    if (!w->after_dash)
        yaml_indent(w);
    zt_str_add(w->yaml, "- ");
    w->after_dash = true;
    w->after_key = w->empty = false;
}

/* An enum variant with data: {"File": x} in JSON, !File x in YAML. */
static void open_variant(struct writer *w, const char *name)
{
    if (w->json) {
        zt_json_object(w->json);
        zt_json_key(w->json, name);
    } else {
        zt_str_addf(w->yaml, " !%s", name);
    }
}

static void close_variant(struct writer *w)
{
    if (w->json)
        zt_json_object_end(w->json);
}

static void key_str(struct writer *w, const char *key, const char *value)
{
    put_key(w, key);
    put_str(w, value);
}

static void key_u64(struct writer *w, const char *key, uint64_t value)
{
    put_key(w, key);
    put_u64(w, value);
}

static void key_bool(struct writer *w, const char *key, bool value)
{
    put_key(w, key);
    put_bool(w, value);
}

static void key_null(struct writer *w, const char *key)
{
    put_key(w, key);
    put_null(w);
}

static void key_empty_array(struct writer *w, const char *key)
{
    put_key(w, key);
    open_array(w);
    close_array(w);
}

/* ---- pieces of the configuration ------------------------------------------------------------------ */

static void key_duration(struct writer *w, const char *key, uint64_t ms)
{
    put_key(w, key);
    open_object(w);
    key_u64(w, "nanos", ms % 1000 * 1000000);
    key_u64(w, "secs", ms / 1000);
    close_object(w);
}

static void key_wildcard(struct writer *w, const struct zt_config *c, const char *key, uint16_t port, bool variant)
{
    char text[32];
    zt_fmt(text, sizeof text, "%s:%u", c->ipv6 ? "[::]" : "0.0.0.0", (unsigned)port);
    put_key(w, key);
    if (variant)
        open_variant(w, "SocketAddr");
    put_str(w, text);
    if (variant)
        close_variant(w);
}

static void key_localhost(struct writer *w, const struct zt_config *c, const char *key, uint16_t port)
{
    put_key(w, key);
    open_variant(w, "Localhost");
    open_array(w);
    put_item(w);
    put_bool(w, c->ipv6_localhost);
    put_item(w);
    put_u64(w, port);
    close_array(w);
    close_variant(w);
}

static void key_dns_addr(struct writer *w, const struct zt_config *c)
{
    char text[ZT_ADDR_TEXT_MAX];
    if (c->dns_addr.ip.family == ZT_IP_NONE) {
        key_localhost(w, c, "dnsProxyAddr", c->dns_addr.port);
        return;
    }
    put_key(w, "dnsProxyAddr");
    open_variant(w, "SocketAddr");
    put_str(w, zt_addr_format(&c->dns_addr, text));
    close_variant(w);
}

static void key_root(struct writer *w, const char *key, const char *value)
{
    put_key(w, key);
    if (strcmp(value, "SYSTEM") == 0) {
        put_str(w, "System");
        return;
    }
    open_variant(w, strstr(value, "-----BEGIN") ? "Static" : "File");
    put_str(w, value);
    close_variant(w);
}

static void key_headers(struct writer *w, const char *key, const struct zt_config_pair *list, unsigned n)
{
    put_key(w, key);
    open_array(w);
    for (unsigned i = 0; i < n; i++) {
        put_item(w);
        open_array(w);
        if (!w->json)
            w->indent++;
        put_item(w);
        put_str(w, list[i].key);
        put_item(w);
        put_str(w, strcmp(list[i].key, "authorization") == 0 ? "<redacted>" : list[i].value);
        if (!w->json)
            w->indent--;
        close_array(w);
    }
    close_array(w);
}

static void put_protocol(struct writer *w, const char *protocol)
{
    put_item(w);
    open_object(w);
    key_null(w, "bind_addr");
    key_u64(w, "port", 53);
    put_key(w, "protocol");
    open_object(w);
    key_str(w, "type", protocol);
    close_object(w);
    close_object(w);
}

static void key_resolver(struct writer *w, const struct zt_config *c)
{
    char ip[ZT_IP_TEXT_MAX];
    put_key(w, "dnsResolverCfg");
    open_object(w);
    key_str(w, "domain", c->resolv_domain);
    put_key(w, "name_servers");
    open_array(w);
    for (unsigned i = 0; i < c->n_nameservers; i++) {
        put_item(w);
        open_object(w);
        put_key(w, "connections");
        open_array(w);
        put_protocol(w, "udp");
        put_protocol(w, "tcp");
        close_array(w);
        key_str(w, "ip", zt_ip_format(&c->nameservers[i], ip));
        key_bool(w, "trust_negative_responses", true);
        close_object(w);
    }
    close_array(w);
    put_key(w, "search");
    open_array(w);
    for (unsigned i = 0; i < c->n_search_domains; i++) {
        put_item(w);
        put_str(w, c->search_domains[i]);
    }
    close_array(w);
    close_object(w);
}

/* Mostly the constants of the reference's resolver; tools show them. */
static void key_resolver_options(struct writer *w, const struct zt_config *c)
{
    put_key(w, "dnsResolverOpts");
    open_object(w);
    key_empty_array(w, "allow_answers");
    key_u64(w, "attempts", c->resolv_attempts);
    key_empty_array(w, "avoid_local_udp_ports");
    key_u64(w, "cache_size", 4096);
    key_bool(w, "case_randomization", false);
    key_empty_array(w, "deny_answers");
    key_bool(w, "edns0", false);
    key_u64(w, "edns_payload_len", 1232);
    key_str(w, "ip_strategy", c->ipv6 ? "Ipv4AndIpv6" : "Ipv4Only");
    key_u64(w, "max_active_requests", 32);
    key_u64(w, "ndots", c->resolv_ndots);
    key_null(w, "negative_max_ttl");
    key_null(w, "negative_min_ttl");
    key_u64(w, "num_concurrent_reqs", 2);
    key_bool(w, "os_port_selection", false);
    key_null(w, "positive_max_ttl");
    key_null(w, "positive_min_ttl");
    key_bool(w, "preserve_intermediates", true);
    key_bool(w, "recursion_desired", true);
    key_str(w, "server_ordering_strategy", "QueryStatistics");
    key_u64(w, "timeout", c->resolv_timeout_s);
    key_null(w, "trust_anchor");
    key_bool(w, "try_tcp_on_error", false);
    key_str(w, "use_hosts_file", "Auto");
    close_object(w);
}

static void key_sockets(struct writer *w, const struct zt_config *c)
{
    put_key(w, "socketConfig");
    open_object(w);
    key_bool(w, "keepaliveEnabled", c->keepalive);
    key_duration(w, "keepaliveInterval", c->keepalive_interval_ms);
    key_u64(w, "keepaliveRetries", c->keepalive_retries);
    key_duration(w, "keepaliveTime", c->keepalive_time_ms);
    key_bool(w, "userTimeoutEnabled", c->user_timeout);
    close_object(w);
}

/* name, namespace, serviceAccount; null when name is NULL. */
static void key_workload(struct writer *w, const char *key, const char *name, const char *ns, const char *account)
{
    put_key(w, key);
    if (!name) {
        put_null(w);
        return;
    }
    open_object(w);
    key_str(w, "name", name);
    key_str(w, "namespace", ns);
    key_str(w, "serviceAccount", account);
    close_object(w);
}

static void key_own_identity(struct writer *w, const struct zt_config *c)
{
    char id[ZT_IDENTITY_MAX];
    bool known = c->pod_namespace && c->service_account && c->pod_name;
    bool fits = known && zt_identity_format(id, c->trust_domain, c->pod_namespace, c->service_account);
    key_str(w, "ztunnelIdentity", fits ? id : NULL);
    key_workload(w, "ztunnelWorkload", known ? c->pod_name : NULL, c->pod_namespace, c->service_account);
}

static void key_illegal_ports(struct writer *w)
{
    static const uint16_t ports[] = {PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_INBOUND};
    put_key(w, "illegalPorts");
    open_array(w);
    for (size_t i = 0; i < sizeof ports / sizeof *ports; i++) {
        put_item(w);
        put_u64(w, ports[i]);
    }
    close_array(w);
}

static void key_metadata(struct writer *w, const struct zt_config *c)
{
    put_key(w, "proxyMetadata");
    open_object(w);
    for (unsigned i = 0; i < c->n_metadata; i++)
        key_str(w, c->metadata[i].key, c->metadata[i].value);
    close_object(w);
}

static void key_optional_u64(struct writer *w, const char *key, bool set, uint64_t value)
{
    put_key(w, key);
    if (set)
        put_u64(w, value);
    else
        put_null(w);
}

/* ---- the walk: ascending byte order of keys -------------------------------------------------------- */

static void walk_a_to_h(struct writer *w, const struct zt_config *c)
{
    key_localhost(w, c, "adminAddr", c->admin_port);
    key_str(w, "altCaHostname", c->alt_ca_hostname);
    key_str(w, "altXdsHostname", c->alt_xds_hostname);
    key_str(w, "caAddress", c->ca_address);
    key_headers(w, "caHeaders", c->ca_headers, c->n_ca_headers);
    key_root(w, "caRootCert", c->ca_root_ca);
    key_str(w, "clusterDomain", c->cluster_domain);
    key_str(w, "clusterId", c->cluster_id);
    key_duration(w, "connectTimeout", c->connect_timeout_ms);
    key_u64(w, "connectionWindowSize", c->connection_window_bytes);
    key_str(w, "crlPath", c->crl_path);
    key_str(w, "ctlSocket", c->ctl_socket);
    key_bool(w, "dnsProxy", c->dns_proxy);
    key_dns_addr(w, c);
    key_resolver(w, c);
    key_resolver_options(w, c);
    key_bool(w, "enableEnhancedBaggage", c->response_baggage);
    key_bool(w, "fakeCa", c->fake_ca);
    key_bool(w, "fakeSelfInbound", false);
    key_u64(w, "frameSize", c->frame_bytes);
}

static void walk_i_to_o(struct writer *w, const struct zt_config *c)
{
    key_illegal_ports(w);
    key_wildcard(w, c, "inboundAddr", PORT_INBOUND, false);
    key_wildcard(w, c, "inboundPlaintextAddr", PORT_INBOUND_PLAINTEXT, false);
    key_bool(w, "inpodPortReuse", c->inpod_port_reuse);
    key_str(w, "inpodUds", c->inpod_uds);
    key_bool(w, "ipv6Enabled", c->ipv6);
    key_str(w, "keylogFile", c->keylog_pods ? c->keylog_path : NULL);
    key_str(w, "keylogPods", c->keylog_pods);
    key_str(w, "localCaPath", c->local_ca_path);
    key_str(w, "localNode", c->node_name);
    key_duration(w, "localWorkloadWait", c->local_workload_wait_ms);
    key_str(w, "localXdsPath", c->local_xds_path);
    key_bool(w, "localhostAppTunnel", c->localhost_app_tunnel);
    key_duration(w, "metricsRetention", c->metrics_retention_ms);
    key_str(w, "network", c->network);
    key_u64(w, "numWorkerThreads", c->worker_threads);
    key_wildcard(w, c, "outboundAddr", PORT_OUTBOUND, false);
}

static void walk_p_to_s(struct writer *w, const struct zt_config *c)
{
    key_optional_u64(w, "packetMark", c->packet_mark_set, c->packet_mark);
    key_u64(w, "poolMaxStreamsPerConn", c->pool_max_streams);
    key_duration(w, "poolUnusedReleaseTimeout", c->pool_unused_timeout_ms);
    key_str(w, "preferedServiceNamespace", c->preferred_service_namespace);
    key_bool(w, "proxy", c->enable_proxy);
    key_str(w, "proxyArgs", c->proxy_args);
    key_metadata(w, c);
    key_str(w, "proxyMode", c->mode == ZT_MODE_SHARED ? "Shared" : "Dedicated");
    key_workload(w, "proxyWorkloadInformation", c->workload_name, c->workload_ns, c->workload_sa);
    key_wildcard(w, c, "readinessAddr", PORT_READINESS, true);
    put_key(w, "requireOriginalSource");
    if (c->orig_src == ZT_UNSET)
        put_null(w);
    else
        put_bool(w, c->orig_src == ZT_TRUE);
    key_duration(w, "secretTtl", c->secret_ttl_s * 1000);
    key_duration(w, "selfTerminationDeadline", c->termination_deadline_ms);
    key_sockets(w, c);
    if (c->socks5)
        key_localhost(w, c, "socks5Addr", PORT_SOCKS5);
    else
        key_null(w, "socks5Addr");
    key_wildcard(w, c, "statsAddr", c->stats_port, true);
}

static void walk(struct writer *w, const struct zt_config *c)
{
    walk_a_to_h(w, c);
    walk_i_to_o(w, c);
    walk_p_to_s(w, c);
    key_u64(w, "windowSize", c->stream_window_bytes);
    key_str(w, "xdsAddress", c->xds_address);
    key_headers(w, "xdsHeaders", c->xds_headers, c->n_xds_headers);
    key_bool(w, "xdsOnDemand", c->xds_on_demand);
    key_root(w, "xdsRootCert", c->xds_root_ca);
    key_duration(w, "zdsRetry", c->zds_retry_ms);
    key_own_identity(w, c);
}

void zt_config_write_json(const struct zt_config *c, struct zt_json *j)
{
    struct writer w = {.json = j};
    zt_json_object(j);
    walk(&w, c);
    zt_json_object_end(j);
}

void zt_config_write_yaml(const struct zt_config *c, struct zt_str *out)
{
    struct writer w = {.yaml = out};
    walk(&w, c);
}
