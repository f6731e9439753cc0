/* The daemon's configuration: built-in defaults, mesh config file, PROXY_CONFIG, environment, in that order
 * (spec/interfaces §2), as one immutable struct. Thread: any after load. */
#ifndef ZT_CONFIG_CONFIG_H
#define ZT_CONFIG_CONFIG_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/base/str.h"

struct zt_config_pair {
    char *key, *value;
};
enum zt_proxy_mode { ZT_MODE_SHARED, ZT_MODE_DEDICATED };
enum zt_tristate { ZT_UNSET = -1, ZT_FALSE = 0, ZT_TRUE = 1 };

struct zt_config {
    /* process */
    char *proxy_args;               /* all arguments joined with single spaces */
    bool enable_proxy;
    enum zt_proxy_mode mode;
    char *workload_ns, *workload_name, *workload_sa; /* PROXY_WORKLOAD_INFO, dedicated mode */
    char *network, *node_name, *cluster_id, *cluster_domain; /* node_name may be NULL */
    char *pod_name, *pod_namespace, *service_account, *trust_domain, *instance_ip; /* may be NULL, but trust_domain and instance_ip */
    unsigned worker_threads, cpu_count;
    uint64_t termination_deadline_ms;
    /* control plane */
    char *xds_address;              /* NULL = disabled */
    char *ca_address;               /* NULL = set to "" or replaced by the local CA */
    bool xds_address_explicit, ca_address_explicit;
    char *xds_root_ca, *ca_root_ca, *alt_xds_hostname, *alt_ca_hostname, *auth_token;
    uint64_t secret_ttl_s;
    bool fake_ca, xds_on_demand;
    char *local_ca_path;            /* LOCAL_CA_PATH, or /tmp/ztunneld-ca with FAKE_CA=true; NULL = none */
    char *local_xds_path, *local_xds; /* at most one */
    char *preferred_service_namespace;
    struct zt_config_pair *metadata; /* proxyMetadata, prefix removed; sorted by key */
    struct zt_config_pair *xds_headers, *ca_headers;
    unsigned n_metadata, n_xds_headers, n_ca_headers;
    /* ports */
    uint16_t admin_port, stats_port;
    char *inpod_uds;
    bool inpod_port_reuse;
    char *ctl_socket;               /* ZTUNNELD_CTL_SOCKET: ztctl's socket; default beside the ZDS socket */
    /* HBONE */
    unsigned pool_max_streams;
    uint64_t pool_unused_timeout_ms;
    uint32_t stream_window_bytes, connection_window_bytes, frame_bytes;
    /* sockets */
    bool keepalive;
    uint64_t keepalive_time_ms, keepalive_interval_ms;
    uint32_t keepalive_retries;
    bool user_timeout;
    bool packet_mark_set;
    uint32_t packet_mark;           /* 0 = none */
    enum zt_tristate orig_src;
    bool localhost_app_tunnel, ipv6;
    /* DNS, SOCKS5 */
    bool dns_proxy;
    char *dns_proxy_addr;           /* "localhost:15053" or "ip:port" */
    bool socks5;
    struct zt_ip nameservers[8];    /* /etc/resolv.conf */
    unsigned n_nameservers;
    char **search_domains;
    unsigned n_search_domains;
    unsigned resolv_ndots, resolv_timeout_s, resolv_attempts;
    /* policy and TLS */
    char *crl_path;
    bool response_baggage, authz_info_logging, tls12, pqc;
    /* logs */
    char *log_filter;               /* RUST_LOG, NULL = unset */
    bool log_json;
    char *istio_version;            /* ISTIO_META_ISTIO_VERSION or "unknown" */
};

/* Reads everything. environ-style env is borrowed (during the call); mesh_path and resolv_path NULL = the real ones. The first error in evaluation
 * order wins; texts of spec/interfaces §2.4. */
enum zt_err zt_config_load(int argc, char **argv, char **env, const char *mesh_path, const char *resolv_path,
                           struct zt_config **out, struct zt_error *err);
void zt_config_free(struct zt_config *c);
/* Does the configuration ask for something that this build does not serve and whose silence would weaken security? ZT_UNSUPPORTED with
 * what and the remedy: xDS or CA address set or defaulted, CRL_PATH, COMPLIANCE_POLICY. */
enum zt_err zt_config_check_served(const struct zt_config *c, struct zt_error *err);
/* One text per harmless key that is set and not served yet ("UNSTABLE_ENABLE_SOCKS5 is set, but ..."), up to max. Returns how many;
 * the texts are owned by the caller. */
unsigned zt_config_unserved(const struct zt_config *c, char **texts, unsigned max);

/* Duration syntax of spec/interfaces §2.5. */
bool zt_duration_parse(const char *text, uint64_t *ms, const char **reason);

#endif
