/* The daemon's configuration: built-in defaults, mesh config file, PROXY_CONFIG, environment, in that order
 * (spec/interfaces §2), as one immutable struct. docs/configuration.md lists every key. Thread: any after load. */
#ifndef ZT_CONFIG_CONFIG_H
#define ZT_CONFIG_CONFIG_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/base/str.h"

#define ZT_CONFIG_MESH_PATH "./etc/istio/config/mesh" /* relative, as in the reference */
#define ZT_CONFIG_MESH_BYTES_MAX (4u * 1024 * 1024)   /* the mesh file, PROXY_CONFIG */
#define ZT_CONFIG_RESOLV_PATH "/etc/resolv.conf"
#define ZT_CONFIG_FAKE_CA_PATH "/tmp/ztunneld-ca" /* what FAKE_CA=true means */
#define ZT_CONFIG_NAMESERVERS_MAX 8               /* further ones are ignored */
#define ZT_CONFIG_SEARCH_MAX 32                   /* further search domains are ignored */
#define ZT_CONFIG_UNSERVED_MAX 32                 /* texts of zt_config_unserved */
#define ZT_HTTP2_WINDOW_MAX 2147483647u
#define ZT_HTTP2_FRAME_MIN 16384u
#define ZT_HTTP2_FRAME_MAX 16777215u

struct zt_config_pair {
    char *key, *value;
};
enum zt_proxy_mode { ZT_MODE_SHARED, ZT_MODE_DEDICATED };
enum zt_tristate { ZT_UNSET = -1, ZT_FALSE = 0, ZT_TRUE = 1 };

/* Strings are owned and may be NULL only where it says so. */
struct zt_config {
    /* process */
    char *proxy_args; /* all arguments joined with single spaces */
    bool enable_proxy;
    enum zt_proxy_mode mode;
    char *workload_ns, *workload_name, *workload_sa; /* PROXY_WORKLOAD_INFO; NULL in shared mode */
    char *network, *cluster_id, *cluster_domain, *trust_domain, *instance_ip;
    char *node_name, *pod_name, *pod_namespace, *service_account; /* NULL = unset */
    unsigned worker_threads, cpu_count;
    uint64_t termination_deadline_ms;
    /* control plane */
    char *xds_address; /* NULL = disabled */
    char *ca_address;  /* NULL = the local CA issues */
    bool xds_address_explicit, ca_address_explicit;
    char *xds_root_ca, *ca_root_ca; /* path, "SYSTEM" or PEM, as given */
    char *alt_xds_hostname, *alt_ca_hostname; /* NULL = unset */
    char *auth_token; /* path or token, as given; NULL = none. Never in a log or a dump */
    uint64_t secret_ttl_s;
    bool fake_ca, xds_on_demand;
    char *local_ca_path;              /* LOCAL_CA_PATH, or ZT_CONFIG_FAKE_CA_PATH with FAKE_CA=true; NULL = none */
    char *local_xds_path, *local_xds; /* at most one is not NULL */
    char *preferred_service_namespace; /* NULL = unset */
    struct zt_config_pair *metadata;   /* proxyMetadata and ISTIO_META_*, prefix removed; sorted by key */
    struct zt_config_pair *metadata_json; /* ISTIO_METAJSON_*: value is JSON text that parses; sorted by key */
    struct zt_config_pair *xds_headers, *ca_headers; /* sorted by key */
    unsigned n_metadata, n_metadata_json, n_xds_headers, n_ca_headers;
    /* ports */
    uint16_t admin_port, stats_port;
    char *inpod_uds;
    bool inpod_port_reuse;
    char *keylog_path, *keylog_pods; /* SSLKEYLOGFILE, ZTUNNELD_KEYLOG_PODS: both or neither is in force; NULL: unset */
    char *ctl_socket; /* ZTUNNELD_CTL_SOCKET: ztctl's socket; default beside the ZDS socket */
    /* HBONE */
    unsigned pool_max_streams; /* 1..65535 */
    uint64_t pool_unused_timeout_ms;
    uint32_t stream_window_bytes, connection_window_bytes; /* 1..ZT_HTTP2_WINDOW_MAX */
    uint32_t frame_bytes;                                  /* ZT_HTTP2_FRAME_MIN..ZT_HTTP2_FRAME_MAX */
    /* time limits of our own */
    uint64_t connect_timeout_ms;     /* ZTUNNELD_CONNECT_TIMEOUT: each stage of setting up a connection */
    uint64_t local_workload_wait_ms; /* ZTUNNELD_LOCAL_WORKLOAD_WAIT: for a pod's record to arrive */
    uint64_t metrics_retention_ms;   /* ZTUNNELD_METRICS_RETENTION: of series that nobody uses */
    uint64_t zds_retry_ms;           /* ZTUNNELD_ZDS_RETRY: a pending pod's, and the connection's */
    /* limits of our own: ZTUNNELD_POD_* and ZTUNNELD_PEER_*, each at least 1 */
    uint64_t pod_connections_max, pod_tunnels_max, pod_dials_max, pod_handshakes_per_s, pod_queued_bytes_max;
    uint64_t peer_connections_max, peer_tunnels_max, peer_handshakes_per_s;
    /* sockets */
    bool keepalive;
    uint64_t keepalive_time_ms, keepalive_interval_ms;
    uint32_t keepalive_retries;
    bool user_timeout;
    bool packet_mark_set; /* false: none (dedicated mode's default) */
    uint32_t packet_mark; /* 0 = no mark */
    enum zt_tristate orig_src;
    bool localhost_app_tunnel, ipv6;
    bool ipv6_localhost; /* ipv6, and the loopback interface has it: "localhost" means ::1 too */
    /* DNS, SOCKS5 */
    bool dns_proxy;
    char *dns_proxy_addr;   /* as given: "localhost:15053" or "ip:port" */
    struct zt_addr dns_addr; /* the same, parsed; ip.family ZT_IP_NONE = localhost */
    bool socks5;
    struct zt_ip nameservers[ZT_CONFIG_NAMESERVERS_MAX]; /* /etc/resolv.conf */
    unsigned n_nameservers;
    char *resolv_domain; /* `domain` line, NULL = none */
    char **search_domains;
    unsigned n_search_domains;
    unsigned resolv_ndots, resolv_timeout_s, resolv_attempts;
    /* policy and TLS */
    char *crl_path;          /* NULL = none */
    char *compliance_policy; /* COMPLIANCE_POLICY as given, NULL = unset or empty */
    bool response_baggage, authz_info_logging, tls12;
    bool pqc; /* compliance_policy is exactly "pqc" */
    /* logs */
    char *log_filter; /* RUST_LOG, NULL = unset; parsed by zt_log_start */
    bool log_json;
    char *istio_version; /* ISTIO_META_ISTIO_VERSION or "unknown" */
    /* keys that were given and are not served yet: texts of zt_config_unserved */
    char *unserved[ZT_CONFIG_UNSERVED_MAX];
    unsigned n_unserved;
};

/* Where configuration comes from. Everything is borrowed (during the call). */
struct zt_config_source {
    int argc;                /* arguments after the program's name */
    char *const *argv;
    char *const *env;        /* "NAME=value", NULL-terminated; entries that are not UTF-8 are skipped */
    const char *mesh_path;   /* NULL = ZT_CONFIG_MESH_PATH */
    const char *resolv_path; /* NULL = ZT_CONFIG_RESOLV_PATH */
};
/* Reads everything. The first error in evaluation order wins; texts of spec/interfaces §2.4. Returns owned in *out.
 * Errors: ZT_INVALID, ZT_IO (an unreadable file). Thread: any. */
enum zt_err zt_config_read(const struct zt_config_source *src, struct zt_config **out, struct zt_error *err);
/* The same, with main's argc and argv (argv[0] is skipped). */
enum zt_err zt_config_load(int argc, char **argv, char **env, const char *mesh_path, const char *resolv_path,
                           struct zt_config **out, struct zt_error *err);
void zt_config_free(struct zt_config *c); /* NULL is legal; the token is wiped */

/* Does the configuration ask for something that this build does not serve and whose silence would weaken security or lose traffic? ZT_UNSUPPORTED with
 * what and the remedy: XDS_ON_DEMAND with xDS, COMPLIANCE_POLICY other than pqc. Thread: any. */
enum zt_err zt_config_check_served(const struct zt_config *c, struct zt_error *err);
/* One text per harmless key that is set (or on by default) and not served yet, up to max. Returns how many;
 * the texts are owned by the caller (zt_free each). Thread: any. */
unsigned zt_config_unserved(const struct zt_config *c, char **texts, unsigned max);

/* Duration syntax of spec/interfaces §2.5 (without multiplication). Less than a millisecond counts as one. On failure *reason
 * is a static text. Thread: any. */
bool zt_duration_parse(const char *text, uint64_t *ms, const char **reason);

#endif
