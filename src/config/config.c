/* The configuration: every key of the table in spec/interfaces §2.2, in groups; what excludes each other comes last.
 * A group reader returns false with the error set; the first one wins. The struct is not changed after zt_config_read. */
#include "config/config_impl.h"

#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_ROOT "./var/run/secrets/istio/root-cert.pem"
#define DEFAULT_TOKEN "./var/run/secrets/tokens/istio-token"
#define DEFAULT_UDS "/var/run/ztunnel/ztunnel.sock"
#define CTL_SOCKET_NAME "ztunneld.ctl"
#define DEFAULT_DNS_ADDR "localhost:15053"
#define DEFAULT_PACKET_MARK 1337
#define ARGS_MAX (1024 * 1024) /* bytes of proxy_args */

struct build {
    struct zt_config *c;
    struct env env;
    struct mesh mesh;
};

static bool fail(struct build *b, const char *text)
{
    zt_error_set(b->env.err, ZT_INVALID, "%s", text);
    return false;
}

/* ---- groups --------------------------------------------------------------------------------------- */

static char *join_args(int argc, char *const *argv)
{
    struct zt_str s;
    zt_str_init(&s, ARGS_MAX);
    for (int i = 0; i < argc; i++) {
        if (i > 0)
            zt_str_add_char(&s, ' ');
        zt_str_add(&s, argv[i]);
    }
    char *text = zt_strdup(zt_str_cstr(&s));
    zt_str_fini(&s);
    return text;
}

/* `ISTIO_META_` is cut off, here and from the environment; ISTIO_METAJSON_ is another prefix. */
static void read_metadata(struct build *b)
{
    static const char text_prefix[] = "ISTIO_META_", json_prefix[] = "ISTIO_METAJSON_";
    struct zt_config *c = b->c;
    for (unsigned i = 0; i < b->mesh.n_metadata; i++) {
        const char *key = b->mesh.metadata[i].key;
        bool prefixed = strncmp(key, text_prefix, strlen(text_prefix)) == 0;
        zt_pairs_put(&c->metadata, &c->n_metadata, prefixed ? key + strlen(text_prefix) : key, b->mesh.metadata[i].value);
    }
    for (char *const *v = b->env.vars; v && *v; v++) {
        const char *equals = strchr(*v, '=');
        bool is_text = strncmp(*v, text_prefix, strlen(text_prefix)) == 0;
        bool is_json = strncmp(*v, json_prefix, strlen(json_prefix)) == 0;
        if (!equals || (!is_text && !is_json) || !zt_env_is_utf8(*v))
            continue;
        size_t skip = strlen(is_text ? text_prefix : json_prefix);
        char *key = zt_strndup(*v + skip, (size_t)(equals - *v) - skip);
        json_t *value = is_json ? json_loads(equals + 1, JSON_DECODE_ANY, NULL) : NULL;
        if (is_text)
            zt_pairs_put(&c->metadata, &c->n_metadata, key, equals + 1);
        else if (value)
            zt_pairs_put(&c->metadata_json, &c->n_metadata_json, key, equals + 1);
        else
            zt_log_error("config", "failed to parse %s%s as JSON: skipped", json_prefix, key);
        json_decref(value);
        zt_free(key);
    }
}

/* `<namespace>/<name>/<service-account>`; a third slash stays in the account. */
static bool read_workload_info(struct build *b)
{
    struct zt_config *c = b->c;
    const char *info = zt_env_get(&b->env, "PROXY_WORKLOAD_INFO");
    if (!info)
        return fail(b, "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set");
    const char *first = strchr(info, '/'), *second = first ? strchr(first + 1, '/') : NULL;
    if (!second) {
        struct zt_error *err = b->env.err;
        const char *text = "invalid configuration: PROXY_WORKLOAD_INFO must match the format "
                           "'namespace/name/service-account' (got [";
        if (first)
            zt_error_set(err, ZT_INVALID, "%s\"%.*s\", \"%.64s\"])", text, (int)(first - info), info, first + 1);
        else
            zt_error_set(err, ZT_INVALID, "%s\"%.128s\"])", text, info);
        return false;
    }
    c->workload_ns = zt_strndup(info, (size_t)(first - info));
    c->workload_name = zt_strndup(first + 1, (size_t)(second - first - 1));
    c->workload_sa = zt_strdup(second + 1);
    return true;
}

static bool read_process(struct build *b)
{
    struct zt_config *c = b->c;
    const struct env *e = &b->env;
    const char *mode = zt_env_get(e, "PROXY_MODE");
    if (mode && strcmp(mode, "shared") != 0 && strcmp(mode, "dedicated") != 0)
        return zt_env_fail(e, "PROXY_MODE", mode, "PROXY_MODE must be one of dedicated, shared");
    c->mode = mode && strcmp(mode, "dedicated") == 0 ? ZT_MODE_DEDICATED : ZT_MODE_SHARED;
    c->enable_proxy = true;
    if (!zt_env_bool(e, "ENABLE_PROXY", &c->enable_proxy) || (c->mode == ZT_MODE_DEDICATED && !read_workload_info(b)))
        return false;
    zt_env_str(e, "NETWORK", "", &c->network);
    zt_env_str(e, "NODE_NAME", NULL, &c->node_name);
    zt_env_str(e, "CLUSTER_ID", "Kubernetes", &c->cluster_id);
    const char *cluster = zt_env_get(e, "ISTIO_META_CLUSTER_ID");
    if (cluster) {
        zt_free(c->cluster_id);
        c->cluster_id = zt_strdup(cluster);
    }
    zt_env_str(e, "CLUSTER_DOMAIN", "cluster.local", &c->cluster_domain);
    zt_env_str(e, "TRUST_DOMAIN", "cluster.local", &c->trust_domain);
    zt_env_str(e, "INSTANCE_IP", "1.1.1.1", &c->instance_ip);
    zt_env_str(e, "POD_NAME", NULL, &c->pod_name);
    zt_env_str(e, "POD_NAMESPACE", NULL, &c->pod_namespace);
    zt_env_str(e, "SERVICE_ACCOUNT", NULL, &c->service_account);
    zt_env_str(e, "ISTIO_META_ISTIO_VERSION", "unknown", &c->istio_version);
    zt_env_str(e, "RUST_LOG", NULL, &c->log_filter);
    const char *format = zt_env_get(e, "LOG_FORMAT");
    c->log_json = format && strcmp(format, "json") == 0;
    return true;
}

/* CONNECTION_TERMINATION_DEADLINE, or what the grace period leaves; at least a second of it (§10 Q9). */
static bool read_deadline(struct build *b)
{
    struct zt_config *c = b->c;
    uint64_t grace_s = 0;
    c->termination_deadline_ms = 5000;
    if (!zt_env_u64(&b->env, "TERMINATION_GRACE_PERIOD_SECONDS", 0, UINT64_MAX, &grace_s))
        return false;
    if (zt_env_get(&b->env, "TERMINATION_GRACE_PERIOD_SECONDS")) {
        uint64_t left_s = grace_s > 10 ? grace_s - 5 : grace_s > 2 ? grace_s - 1 : 1;
        c->termination_deadline_ms = left_s < UINT64_MAX / 1000 ? left_s * 1000 : UINT64_MAX / 1000 * 1000;
    }
    return zt_env_duration(&b->env, "CONNECTION_TERMINATION_DEADLINE", &c->termination_deadline_ms);
}

static bool is_uri_char(char ch)
{
    return ch > ' ' && ch < 0x7f && !strchr("\"<>\\^`{|}", ch);
}

/* host or host:port, what an URI calls the authority. */
static const char *check_authority(const char *text, size_t len)
{
    const char *colon = NULL;
    bool bracket = len && text[0] == '[';
    for (size_t i = 0; i < len; i++)
        if (text[i] == ':' && (!bracket || (i && text[i - 1] == ']')))
            colon = text + i;
    if (len == 0 || colon == text || (bracket && !memchr(text, ']', len)))
        return "empty or malformed host";
    if (!colon)
        return NULL;
    char port[8];
    uint64_t number = 0;
    size_t n = (size_t)(text + len - colon - 1);
    if (n == 0 || n >= sizeof port)
        return "invalid port";
    memcpy(port, colon + 1, n);
    port[n] = '\0';
    return zt_number_parse(port, UINT16_MAX, &number) ? "invalid port" : NULL;
}

/* An URI, or host:port that gets https. Empty text gives NULL. */
static bool normalize_address(struct build *b, const char *text, char **out)
{
    const char *reason = NULL;
    *out = NULL;
    if (!*text)
        return true;
    for (const char *p = text; *p && !reason; p++)
        if (!is_uri_char(*p))
            reason = "invalid uri character";
    const char *scheme = strstr(text, "://");
    const char *authority = scheme ? scheme + 3 : text;
    size_t len = strcspn(authority, "/?#");
    if (!reason && scheme == text)
        reason = "empty scheme";
    if (!reason && !scheme && authority[len])
        reason = "a path needs a scheme";
    if (!reason)
        reason = check_authority(authority, len);
    if (reason) {
        zt_error_set(b->env.err, ZT_INVALID, "invalid uri: %s: %.128s", reason, text);
        return false;
    }
    size_t size = strlen(text) + sizeof "https://";
    *out = zt_zalloc(size);
    zt_fmt(*out, size, "%s%s", scheme ? "" : "https://", text);
    return true;
}

static bool read_addresses(struct build *b)
{
    struct zt_config *c = b->c;
    const struct env *e = &b->env;
    const char *fallback = zt_env_get(e, "KUBERNETES_SERVICE_HOST") ? "https://istiod.istio-system.svc:15012"
                                                                     : "https://localhost:15012";
    const char *xds = zt_env_get(e, "XDS_ADDRESS"), *ca = zt_env_get(e, "CA_ADDRESS");
    c->xds_address_explicit = xds != NULL;
    c->ca_address_explicit = ca != NULL;
    if (!xds)
        xds = b->mesh.discovery_address ? b->mesh.discovery_address : fallback;
    if (!normalize_address(b, xds, &c->xds_address) || !zt_env_bool(e, "FAKE_CA", &c->fake_ca))
        return false;
    const char *local = zt_env_get(e, "LOCAL_CA_PATH");
    if (local && *local)
        c->local_ca_path = zt_strdup(local);
    else if (c->fake_ca)
        c->local_ca_path = zt_strdup(ZT_CONFIG_FAKE_CA_PATH);
    if (c->local_ca_path && ca && *ca)
        return fail(b, "invalid configuration: CA_ADDRESS and the local certificate authority (LOCAL_CA_PATH, FAKE_CA=true) "
                       "exclude each other: unset one of them");
    if (c->local_ca_path)
        return true;
    if (ca && !*ca)
        return fail(b, "invalid configuration: CA_ADDRESS is empty, so nobody issues certificates: set CA_ADDRESS, or "
                       "LOCAL_CA_PATH for a local certificate authority");
    return normalize_address(b, ca ? ca : fallback, &c->ca_address);
}

/* Names that belong to HTTP/2 or gRPC themselves. */
static bool is_protocol_header(const char *name)
{
    static const char *const names[] = {"te",      "host",              "connection",     "keep-alive",   "proxy-connection",
                                        "upgrade", "transfer-encoding", "content-length", "content-type", "user-agent"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return strncmp(name, "grpc-", 5) == 0;
}

/* XDS_HEADER_<NAME>: lower-cased name, underscores kept. */
static bool read_headers(struct build *b, const char *prefix, struct zt_config_pair **list, unsigned *n)
{
    for (char *const *v = b->env.vars; v && *v; v++) {
        const char *equals = strchr(*v, '=');
        if (strncmp(*v, prefix, strlen(prefix)) != 0 || !equals || !zt_env_is_utf8(*v))
            continue;
        size_t len = (size_t)(equals - *v) - strlen(prefix);
        char *key = zt_strndup(*v + strlen(prefix), len);
        bool ok = len > 0 && !(len >= 4 && strcasecmp(key + len - 4, "-bin") == 0);
        for (char *p = key; *p; p++) {
            if (*p >= 'A' && *p <= 'Z')
                *p = (char)(*p - 'A' + 'a');
            ok = ok && ((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || strchr("_-.", *p));
        }
        const char *value = equals + 1;
        for (const char *p = value; *p && ok; p++) {
            if (*p >= ' ' && *p < 0x7f)
                continue;
            zt_error_set(b->env.err, ZT_INVALID, "failed to parse header value: %.200s", value);
            zt_free(key);
            return false;
        }
        if (ok && is_protocol_header(key)) {
            zt_error_set(b->env.err, ZT_INVALID, "header key of the protocol itself, not to be set: %.*s", (int)(equals - *v), *v);
            zt_free(key);
            return false;
        }
        if (ok)
            zt_pairs_put(list, n, key, value);
        zt_free(key);
        if (!ok) {
            zt_error_set(b->env.err, ZT_INVALID, "failed to parse header key: %.*s", (int)(equals - *v), *v);
            return false;
        }
    }
    return true;
}

static bool read_hostname(struct build *b, const char *name, char **out)
{
    zt_env_str(&b->env, name, NULL, out);
    return !*out || zt_is_dns_name(*out) ? true : zt_env_fail(&b->env, name, *out, "must be a DNS name");
}

static bool read_control_plane(struct build *b)
{
    struct zt_config *c = b->c;
    const struct env *e = &b->env;
    uint64_t ttl_ms = UINT64_C(24) * 3600 * 1000;
    if (!read_addresses(b))
        return false;
    zt_env_str(e, "XDS_ROOT_CA", DEFAULT_ROOT, &c->xds_root_ca);
    zt_env_str(e, "CA_ROOT_CA", DEFAULT_ROOT, &c->ca_root_ca);
    zt_env_str(e, "AUTH_TOKEN", access(DEFAULT_TOKEN, F_OK) == 0 ? DEFAULT_TOKEN : NULL, &c->auth_token);
    zt_env_str(e, "PREFERED_SERVICE_NAMESPACE", NULL, &c->preferred_service_namespace);
    zt_env_str(e, "LOCAL_XDS_PATH", NULL, &c->local_xds_path);
    zt_env_str(e, "LOCAL_XDS", NULL, &c->local_xds);
    if (c->local_xds_path && c->local_xds)
        return fail(b, "invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set");
    if (!read_hostname(b, "ALT_XDS_HOSTNAME", &c->alt_xds_hostname) ||
        !read_hostname(b, "ALT_CA_HOSTNAME", &c->alt_ca_hostname) || !zt_env_duration(e, "SECRET_TTL", &ttl_ms) ||
        !zt_env_bool(e, "XDS_ON_DEMAND", &c->xds_on_demand) ||
        !read_headers(b, "XDS_HEADER_", &c->xds_headers, &c->n_xds_headers) ||
        !read_headers(b, "CA_HEADER_", &c->ca_headers, &c->n_ca_headers))
        return false;
    if (ttl_ms < 1000)
        return zt_env_fail(e, "SECRET_TTL", zt_env_get(e, "SECRET_TTL"), "must be at least one second");
    c->secret_ttl_s = ttl_ms / 1000;
    return true;
}

static bool read_listeners(struct build *b)
{
    struct zt_config *c = b->c;
    c->admin_port = b->mesh.has_admin_port ? b->mesh.admin_port : 15000;
    c->stats_port = b->mesh.has_stats_port ? b->mesh.stats_port : 15020;
    zt_env_str(&b->env, "INPOD_UDS", DEFAULT_UDS, &c->inpod_uds);
    const char *ctl = zt_env_get(&b->env, "ZTUNNELD_CTL_SOCKET"), *slash = strrchr(c->inpod_uds, '/');
    size_t dir_len = slash ? (size_t)(slash + 1 - c->inpod_uds) : 0;
    size_t size = dir_len + sizeof CTL_SOCKET_NAME;
    if (ctl) {
        c->ctl_socket = zt_strdup(ctl);
    } else {
        c->ctl_socket = zt_zalloc(size);
        zt_fmt(c->ctl_socket, size, "%.*s%s", (int)dir_len, c->inpod_uds, CTL_SOCKET_NAME);
    }
    c->inpod_port_reuse = true;
    c->ipv6 = true;
    c->localhost_app_tunnel = true;
    if (!zt_env_bool(&b->env, "INPOD_PORT_REUSE", &c->inpod_port_reuse) ||
        !zt_env_bool(&b->env, "IPV6_ENABLED", &c->ipv6) ||
        !zt_env_bool(&b->env, "LOCALHOST_APP_TUNNEL", &c->localhost_app_tunnel) ||
        !zt_env_bool(&b->env, "UNSTABLE_ENABLE_SOCKS5", &c->socks5))
        return false;
    c->ipv6_localhost = c->ipv6 && zt_host_has_ipv6_loopback();
    return true;
}

static bool read_hbone(struct build *b)
{
    struct zt_config *c = b->c;
    const struct env *e = &b->env;
    uint32_t streams = 100;
    c->pool_unused_timeout_ms = 300000;
    c->stream_window_bytes = 4u << 20;
    c->connection_window_bytes = 16u << 20;
    c->frame_bytes = 1u << 20;
    if (!zt_env_u32(e, "POOL_MAX_STREAMS_PER_CONNECTION", 1, UINT16_MAX, &streams))
        return false;
    c->pool_max_streams = streams;
    return zt_env_duration(e, "POOL_UNUSED_RELEASE_TIMEOUT", &c->pool_unused_timeout_ms) &&
           zt_env_u32(e, "HTTP2_STREAM_WINDOW_SIZE", 1, ZT_HTTP2_WINDOW_MAX, &c->stream_window_bytes) &&
           zt_env_u32(e, "HTTP2_CONNECTION_WINDOW_SIZE", 1, ZT_HTTP2_WINDOW_MAX, &c->connection_window_bytes) &&
           zt_env_u32(e, "HTTP2_FRAME_SIZE", ZT_HTTP2_FRAME_MIN, ZT_HTTP2_FRAME_MAX, &c->frame_bytes);
}

/* A time limit of our own: zero would fail everything at once. */
static bool read_limit(struct build *b, const char *name, uint64_t fallback_ms, uint64_t *ms)
{
    *ms = fallback_ms;
    if (!zt_env_duration(&b->env, name, ms))
        return false;
    return *ms > 0 ? true : zt_env_fail(&b->env, name, zt_env_get(&b->env, name), "must not be zero");
}

/* How much of something one pod, or one of its peers, may have. */
static bool read_quotas(struct build *b)
{
    struct zt_config *c = b->c;
    const struct {
        const char *name;
        uint64_t fallback, *out;
    } quotas[] = {
        {"ZTUNNELD_POD_CONNECTIONS_MAX", 131072, &c->pod_connections_max},
        {"ZTUNNELD_POD_TUNNELS_MAX", 16384, &c->pod_tunnels_max},
        {"ZTUNNELD_POD_DIALS_MAX", 8192, &c->pod_dials_max},
        {"ZTUNNELD_POD_HANDSHAKES_PER_S", 4000, &c->pod_handshakes_per_s},
        {"ZTUNNELD_POD_QUEUED_BYTES_MAX", 128u << 20, &c->pod_queued_bytes_max},
        {"ZTUNNELD_PEER_CONNECTIONS_MAX", 65536, &c->peer_connections_max},
        {"ZTUNNELD_PEER_TUNNELS_MAX", 4096, &c->peer_tunnels_max},
        {"ZTUNNELD_PEER_HANDSHAKES_PER_S", 2000, &c->peer_handshakes_per_s},
    };
    for (size_t i = 0; i < sizeof quotas / sizeof *quotas; i++) {
        *quotas[i].out = quotas[i].fallback;
        if (!zt_env_u64(&b->env, quotas[i].name, 1, UINT32_MAX, quotas[i].out))
            return false;
    }
    return true;
}

static bool read_limits(struct build *b)
{
    struct zt_config *c = b->c;
    return read_quotas(b) && read_limit(b, "ZTUNNELD_CONNECT_TIMEOUT", 10000, &c->connect_timeout_ms) &&
           read_limit(b, "ZTUNNELD_LOCAL_WORKLOAD_WAIT", 5000, &c->local_workload_wait_ms) &&
           read_limit(b, "ZTUNNELD_METRICS_RETENTION", 900000, &c->metrics_retention_ms) &&
           read_limit(b, "ZTUNNELD_ZDS_RETRY", 5000, &c->zds_retry_ms);
}

/* The file alone changes nothing: that variable may be there for other programs. Names without a file are a mistake. */
static bool read_keylog(struct build *b)
{
    static const char name[] = "ZTUNNELD_KEYLOG_PODS";
    const char *pods = zt_env_get(&b->env, name), *path = zt_env_get(&b->env, "SSLKEYLOGFILE");
    if (path && *path)
        b->c->keylog_path = zt_strdup(path);
    if (!pods || !*pods)
        return true;
    if (!b->c->keylog_path)
        return zt_env_fail(&b->env, name, pods, "SSLKEYLOGFILE is not set");
    for (const char *at = pods; at; at = strchr(at, ',')) {
        at += *at == ',';
        size_t len = strcspn(at, ","), ns_len = strcspn(at, "/,");
        if (ns_len == 0 || ns_len + 1 >= len)
            return zt_env_fail(&b->env, name, pods, "write namespace/pod,namespace/pod");
    }
    b->c->keylog_pods = zt_strdup(pods);
    return true;
}

static bool read_sockets(struct build *b)
{
    struct zt_config *c = b->c;
    const struct env *e = &b->env;
    bool orig_src = false;
    c->keepalive = true;
    c->keepalive_time_ms = c->keepalive_interval_ms = 180000;
    c->keepalive_retries = 9;
    c->packet_mark = c->mode == ZT_MODE_SHARED ? DEFAULT_PACKET_MARK : 0;
    if (!zt_env_bool(e, "KEEPALIVE_ENABLED", &c->keepalive) || !zt_env_duration(e, "KEEPALIVE_TIME", &c->keepalive_time_ms) ||
        !zt_env_duration(e, "KEEPALIVE_INTERVAL", &c->keepalive_interval_ms) ||
        !zt_env_u32(e, "KEEPALIVE_RETRIES", 0, UINT32_MAX, &c->keepalive_retries) ||
        !zt_env_bool(e, "USER_TIMEOUT_ENABLED", &c->user_timeout) ||
        !zt_env_u32(e, "PACKET_MARK", 0, UINT32_MAX, &c->packet_mark) || !zt_env_bool(e, "ENABLE_ORIG_SRC", &orig_src))
        return false;
    c->packet_mark_set = c->mode == ZT_MODE_SHARED || zt_env_get(e, "PACKET_MARK");
    c->orig_src = !zt_env_get(e, "ENABLE_ORIG_SRC") ? ZT_UNSET : orig_src ? ZT_TRUE : ZT_FALSE;
    return true;
}

static bool read_dns(struct build *b, const char *resolv_path)
{
    struct zt_config *c = b->c;
    const char *capture = zt_pairs_get(c->metadata, c->n_metadata, "DNS_CAPTURE");
    const char *addr = zt_pairs_get(c->metadata, c->n_metadata, "DNS_PROXY_ADDR");
    c->dns_proxy = !capture || strcasecmp(capture, "true") == 0;
    c->dns_proxy_addr = zt_strdup(addr ? addr : DEFAULT_DNS_ADDR);
    static const char localhost[] = "localhost:";
    const char *reason = NULL;
    if (strncmp(c->dns_proxy_addr, localhost, strlen(localhost)) == 0) {
        uint64_t port = 0;
        reason = zt_number_parse(c->dns_proxy_addr + strlen(localhost), UINT16_MAX, &port);
        c->dns_addr.port = (uint16_t)port;
    } else if (!zt_addr_parse(c->dns_proxy_addr, &c->dns_addr)) {
        reason = "invalid socket address syntax";
    }
    if (reason) {
        zt_error_set(b->env.err, ZT_INVALID, "invalid configuration: failed to parse DNS_PROXY_ADDR: %.128s (%s)",
                     c->dns_proxy_addr, reason);
        return false;
    }
    if (c->dns_proxy && !zt_is_dns_name(c->cluster_domain))
        return zt_env_fail(&b->env, "CLUSTER_DOMAIN", c->cluster_domain, "must be a DNS name");
    c->resolv_ndots = 1;
    c->resolv_timeout_s = 5;
    c->resolv_attempts = 2;
    struct zt_error own = ZT_ERROR_INIT;
    enum zt_err e = zt_host_resolv(c, resolv_path, &own);
    if (e == ZT_OK || !c->dns_proxy)
        return true;
    zt_error_set(b->env.err, own.code,
                 "%s: the DNS proxy needs a nameserver to forward to: mend the file, or turn the proxy off with "
                 "ISTIO_META_DNS_CAPTURE=false",
                 own.text);
    return false;
}

static bool is_exactly(const struct env *e, const char *name, const char *value)
{
    const char *given = zt_env_get(e, name);
    return given && strcmp(given, value) == 0;
}

static bool read_security(struct build *b)
{
    struct zt_config *c = b->c;
    const char *crl = zt_env_get(&b->env, "CRL_PATH"), *compliance = zt_env_get(&b->env, "COMPLIANCE_POLICY");
    c->crl_path = zt_strdup(crl && *crl ? crl : NULL);
    c->compliance_policy = zt_strdup(compliance && *compliance ? compliance : NULL);
    c->pqc = is_exactly(&b->env, "COMPLIANCE_POLICY", "pqc");
    c->tls12 = is_exactly(&b->env, "TLS12_ENABLED", "true");
    c->authz_info_logging = is_exactly(&b->env, "AUTHZ_POLICY_INFO_LOGGING", "true");
    c->response_baggage = true;
    return zt_env_bool(&b->env, "ENABLE_RESPONSE_BAGGAGE", &c->response_baggage);
}

static bool check_whole(struct build *b)
{
    const struct zt_config *c = b->c;
    if (c->xds_on_demand && c->dns_proxy)
        return fail(b, "error parsing proxy config: DNS proxy does not currently support on-demand mode");
    if (!c->enable_proxy && !c->dns_proxy)
        return fail(b, "error parsing proxy config: ztunnel run without any servers enabled");
    return true;
}

/* ---- what this build does not serve ---------------------------------------------------------------- */

static void add_unserved(struct zt_config *c, const char *key, const char *rest)
{
    char text[ZT_ERROR_TEXT_MAX];
    ZT_ASSERT(c->n_unserved < ZT_CONFIG_UNSERVED_MAX);
    zt_fmt(text, sizeof text, "%s %s", key, rest);
    c->unserved[c->n_unserved++] = zt_strdup(text);
}

static void note_unserved(struct build *b)
{
    struct zt_config *c = b->c;
    if (c->pod_namespace && c->service_account && c->pod_name)
        add_unserved(c, "POD_NAMESPACE, SERVICE_ACCOUNT and POD_NAME",
                     "are set, but this version does not serve connections to the daemon's own identity yet");
}

unsigned zt_config_unserved(const struct zt_config *c, char **texts, unsigned max)
{
    unsigned n = c->n_unserved < max ? c->n_unserved : max;
    for (unsigned i = 0; i < n; i++)
        texts[i] = zt_strdup(c->unserved[i]);
    return n;
}

enum zt_err zt_config_check_served(const struct zt_config *c, struct zt_error *err)
{
    if (c->xds_address && c->xds_on_demand)
        return zt_error_set(err, ZT_UNSUPPORTED,
                            "XDS_ON_DEMAND=true is set, but this version always takes the whole mesh from istiod: unset "
                            "XDS_ON_DEMAND");
    if (c->compliance_policy && !c->pqc)
        return zt_error_set(err, ZT_UNSUPPORTED,
                            "COMPLIANCE_POLICY=%.64s is set, but only `pqc` is known, and the rest would not be enforced: unset "
                            "COMPLIANCE_POLICY to run without it",
                            c->compliance_policy);
    return ZT_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------ */

enum zt_err zt_config_read(const struct zt_config_source *src, struct zt_config **out, struct zt_error *err)
{
    struct zt_error own = ZT_ERROR_INIT;
    struct build b = {.c = zt_new(struct zt_config), .env = {.vars = src->env, .err = &own}};
    b.c->proxy_args = join_args(src->argc, src->argv);
    bool ok = zt_mesh_read(&b.mesh, &b.env, src->mesh_path ? src->mesh_path : ZT_CONFIG_MESH_PATH);
    if (ok)
        read_metadata(&b);
    ok = ok && read_process(&b) && zt_host_threads(b.c, &b.env, &b.mesh) && read_deadline(&b) && read_control_plane(&b) &&
         read_listeners(&b) && read_hbone(&b) && read_limits(&b) && read_keylog(&b) && read_sockets(&b) && read_security(&b) &&
         read_dns(&b, src->resolv_path ? src->resolv_path : ZT_CONFIG_RESOLV_PATH) && check_whole(&b);
    zt_mesh_free(&b.mesh);
    if (!ok) {
        zt_config_free(b.c);
        return zt_error_set(err, own.code, "%s", own.text);
    }
    note_unserved(&b);
    *out = b.c;
    return ZT_OK;
}

enum zt_err zt_config_load(int argc, char **argv, char **env, const char *mesh_path, const char *resolv_path,
                           struct zt_config **out, struct zt_error *err)
{
    struct zt_config_source src = {
        .argc = argc > 0 ? argc - 1 : 0,
        .argv = argc > 0 ? argv + 1 : argv,
        .env = env,
        .mesh_path = mesh_path,
        .resolv_path = resolv_path,
    };
    return zt_config_read(&src, out, err);
}

void zt_config_free(struct zt_config *c)
{
    if (!c)
        return;
    char *texts[] = {
        c->proxy_args,     c->workload_ns,      c->workload_name,    c->workload_sa,     c->network,
        c->cluster_id,     c->cluster_domain,   c->trust_domain,     c->instance_ip,     c->node_name,
        c->pod_name,       c->pod_namespace,    c->service_account,  c->xds_address,     c->ca_address,
        c->xds_root_ca,    c->ca_root_ca,       c->alt_xds_hostname, c->alt_ca_hostname, c->local_ca_path,
        c->local_xds_path, c->local_xds,        c->preferred_service_namespace,          c->inpod_uds,
        c->keylog_path,    c->keylog_pods,
        c->ctl_socket,     c->dns_proxy_addr,   c->resolv_domain,    c->crl_path,        c->compliance_policy,
        c->log_filter,     c->istio_version,
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        zt_free(texts[i]);
    if (c->auth_token)
        zt_wipe_free(c->auth_token, strlen(c->auth_token));
    zt_pairs_free(c->metadata, c->n_metadata);
    zt_pairs_free(c->metadata_json, c->n_metadata_json);
    zt_pairs_free(c->xds_headers, c->n_xds_headers);
    zt_pairs_free(c->ca_headers, c->n_ca_headers);
    for (unsigned i = 0; i < c->n_search_domains; i++)
        zt_free(c->search_domains[i]);
    zt_free(c->search_domains);
    for (unsigned i = 0; i < c->n_unserved; i++)
        zt_free(c->unserved[i]);
    zt_free(c);
}
