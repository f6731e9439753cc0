/* The configuration (spec/interfaces §2, checks C4 to C16 of §11): environments in, structs or error texts out. */
#include "zt/base/mem.h"
#include "zt/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define VARS_MAX 16
#define RESOLV "nameserver 10.96.0.10\nsearch a.local b.local\noptions ndots:5\n"

static char dir[] = "/tmp/zt-config-XXXXXX";
static char mesh_path[128], resolv_path[128];

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int make_files(void **state)
{
    if (!mkdtemp(dir))
        return -1;
    snprintf(mesh_path, sizeof mesh_path, "%s/mesh", dir);
    snprintf(resolv_path, sizeof resolv_path, "%s/resolv.conf", dir);
    return 0;
}

static int reset_files(void **state)
{
    unlink(mesh_path);
    write_file(resolv_path, RESOLV);
    return 0;
}

static int remove_files(void **state)
{
    unlink(mesh_path);
    unlink(resolv_path);
    return rmdir(dir);
}

/* Reads with up to VARS_MAX "NAME=value". */
static enum zt_err read_with(struct zt_config **c, struct zt_error *err, const char *const *vars)
{
    char *env[VARS_MAX + 1] = {0}, *argv[] = {(char[]){"proxy"}, (char[]){"ztunnel"}, (char[]){"--whatever"}};
    for (int i = 0; vars[i]; i++)
        env[i] = strdup(vars[i]);
    struct zt_config_source src = {.argc = 3, .argv = argv, .env = env, .mesh_path = mesh_path, .resolv_path = resolv_path};
    *c = NULL;
    *err = (struct zt_error)ZT_ERROR_INIT;
    enum zt_err e = zt_config_read(&src, c, err);
    for (int i = 0; env[i]; i++)
        free(env[i]);
    return e;
}

static struct zt_config *good(const char *const *vars)
{
    struct zt_config *c;
    struct zt_error err;
    if (read_with(&c, &err, vars) != ZT_OK)
        fail_msg("%s: %s", vars[0] ? vars[0] : "defaults", err.text);
    return c;
}
#define GOOD(...) good((const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

static void bad(const char *text, const char *const *vars)
{
    struct zt_config *c;
    struct zt_error err;
    if (read_with(&c, &err, vars) == ZT_OK)
        fail_msg("%s was accepted", vars[0]);
    if (!strstr(err.text, text))
        fail_msg("expected \"%s\" in \"%s\"", text, err.text);
}
#define BAD(text, ...) bad(text, (const char *const[]){__VA_ARGS__, NULL})

static void config_defaults_are_the_reference_s(void **state)
{
    struct zt_config *c = GOOD();
    assert_true(c->enable_proxy);
    assert_int_equal(c->mode, ZT_MODE_SHARED);
    assert_string_equal(c->cluster_id, "Kubernetes");
    assert_string_equal(c->cluster_domain, "cluster.local");
    assert_string_equal(c->xds_address, "https://localhost:15012");
    assert_string_equal(c->ca_address, "https://localhost:15012");
    assert_int_equal(c->secret_ttl_s, 86400);
    assert_int_equal(c->termination_deadline_ms, 5000);
    assert_int_equal(c->admin_port, 15000);
    assert_int_equal(c->stats_port, 15020);
    assert_int_equal(c->pool_max_streams, 100);
    assert_int_equal(c->pool_unused_timeout_ms, 300000);
    assert_int_equal(c->stream_window_bytes, 4194304);
    assert_int_equal(c->connection_window_bytes, 16777216);
    assert_int_equal(c->frame_bytes, 1048576);
    assert_int_equal(c->keepalive_retries, 9);
    assert_true(c->packet_mark_set);
    assert_int_equal(c->packet_mark, 1337);
    assert_int_equal(c->orig_src, ZT_UNSET);
    assert_true(c->dns_proxy && c->response_baggage && c->ipv6 && c->localhost_app_tunnel && c->inpod_port_reuse);
    assert_false(c->socks5 || c->tls12 || c->pqc || c->authz_info_logging || c->fake_ca || c->xds_on_demand);
    assert_string_equal(c->inpod_uds, "/var/run/ztunnel/ztunnel.sock");
    assert_string_equal(c->ctl_socket, "/var/run/ztunnel/ztunneld.ctl");
    assert_int_equal(c->connect_timeout_ms, 10000);
    assert_null(c->node_name);
    assert_string_equal(c->instance_ip, "1.1.1.1");
    assert_string_equal(c->istio_version, "unknown");
    zt_config_free(c);
}

static void c4_arguments_are_joined(void **state)
{
    struct zt_config *c = GOOD();
    assert_string_equal(c->proxy_args, "proxy ztunnel --whatever");
    zt_config_free(c);
}

static void c5_proxy_mode_is_lower_case(void **state)
{
    BAD("invalid env var PROXY_MODE=Shared (PROXY_MODE must be one of dedicated, shared)", "PROXY_MODE=Shared");
}

static void c6_dedicated_mode_needs_workload_info(void **state)
{
    BAD("invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set", "PROXY_MODE=dedicated");
    BAD("must match the format 'namespace/name/service-account' (got [\"a\", \"b\"])", "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b");
    BAD("(got [\"a\"])", "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a");
    struct zt_config *c = GOOD("PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/pod/sa/x");
    assert_string_equal(c->workload_ns, "ns");
    assert_string_equal(c->workload_name, "pod");
    assert_string_equal(c->workload_sa, "sa/x");
    assert_false(c->packet_mark_set);
    zt_config_free(c);
    zt_config_free(GOOD("PROXY_WORKLOAD_INFO=nonsense")); /* ignored in shared mode */
}

static void c7_bad_values_name_variable_value_and_reason(void **state)
{
    BAD("invalid env var ENABLE_PROXY=yes (provided string was not `true` or `false`)", "ENABLE_PROXY=yes");
    BAD("invalid env var PACKET_MARK=0x539 (invalid digit found in string)", "PACKET_MARK=0x539");
    BAD("invalid env var KEEPALIVE_TIME=1.5s (", "KEEPALIVE_TIME=1.5s");
    BAD("invalid env var PACKET_MARK= (cannot parse integer from empty string)", "PACKET_MARK=");
    BAD("invalid env var PACKET_MARK=4294967296 (number too large to fit in target type)", "PACKET_MARK=4294967296");
    BAD("invalid env var POOL_MAX_STREAMS_PER_CONNECTION=65536 (number too large to fit", "POOL_MAX_STREAMS_PER_CONNECTION=65536");
    BAD("invalid env var FAKE_CA= (provided string was", "FAKE_CA=");
    BAD("invalid env var SECRET_TTL= (", "SECRET_TTL=");
}

/* Every typed key refuses what it cannot read. */
static void every_typed_key_refuses_a_bad_value(void **state)
{
    static const char *const keys[] = {
        "ENABLE_PROXY", "FAKE_CA", "XDS_ON_DEMAND", "INPOD_PORT_REUSE", "KEEPALIVE_ENABLED", "USER_TIMEOUT_ENABLED",
        "ENABLE_ORIG_SRC", "LOCALHOST_APP_TUNNEL", "IPV6_ENABLED", "UNSTABLE_ENABLE_SOCKS5", "ENABLE_RESPONSE_BAGGAGE",
        "SECRET_TTL", "CONNECTION_TERMINATION_DEADLINE", "POOL_UNUSED_RELEASE_TIMEOUT", "KEEPALIVE_TIME", "KEEPALIVE_INTERVAL",
        "TERMINATION_GRACE_PERIOD_SECONDS", "POOL_MAX_STREAMS_PER_CONNECTION", "HTTP2_STREAM_WINDOW_SIZE",
        "HTTP2_CONNECTION_WINDOW_SIZE", "HTTP2_FRAME_SIZE", "KEEPALIVE_RETRIES", "PACKET_MARK", "PROXY_MODE",
        "ZTUNNEL_WORKER_THREADS", "ZTUNNEL_CPU_LIMIT", "ZTUNNEL_RESOURCE_CPU_LIMIT", "ZTUNNEL_RESOURCE_CPU_REQUEST",
        "ZTUNNELD_CONNECT_TIMEOUT", "ZTUNNELD_LOCAL_WORKLOAD_WAIT", "ZTUNNELD_ZDS_RETRY",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char var[64], text[80];
        snprintf(var, sizeof var, "%s=nonsense", keys[i]);
        snprintf(text, sizeof text, "invalid env var %s=nonsense (", keys[i]);
        BAD(text, var);
    }
}

static void http2_settings_out_of_bounds_are_refused_at_start(void **state)
{
    BAD("invalid env var HTTP2_FRAME_SIZE=16383 (must be between 16384 and 16777215)", "HTTP2_FRAME_SIZE=16383");
    BAD("invalid env var HTTP2_FRAME_SIZE=16777216 (must be between", "HTTP2_FRAME_SIZE=16777216");
    BAD("invalid env var HTTP2_STREAM_WINDOW_SIZE=2147483648 (must be between", "HTTP2_STREAM_WINDOW_SIZE=2147483648");
    BAD("invalid env var HTTP2_CONNECTION_WINDOW_SIZE=0 (must be between", "HTTP2_CONNECTION_WINDOW_SIZE=0");
    struct zt_config *c = GOOD("HTTP2_FRAME_SIZE=16384", "HTTP2_STREAM_WINDOW_SIZE=2147483647", "PACKET_MARK=+7");
    assert_int_equal(c->frame_bytes, 16384);
    assert_int_equal(c->packet_mark, 7);
    zt_config_free(c);
}

static void c8_on_demand_excludes_the_dns_proxy(void **state)
{
    BAD("error parsing proxy config: DNS proxy does not currently support on-demand mode", "XDS_ON_DEMAND=true");
    zt_config_free(GOOD("XDS_ON_DEMAND=true", "ISTIO_META_DNS_CAPTURE=false"));
}

static void c9_something_must_be_enabled(void **state)
{
    BAD("error parsing proxy config: ztunnel run without any servers enabled", "ENABLE_PROXY=false", "ISTIO_META_DNS_CAPTURE=no");
    zt_config_free(GOOD("ENABLE_PROXY=false", "ISTIO_META_DNS_CAPTURE=TRUE"));
}

static void c10_only_one_local_source(void **state)
{
    BAD("invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set", "LOCAL_XDS={}", "LOCAL_XDS_PATH=/x");
}

static const char *metadata(const struct zt_config *c, const char *key)
{
    for (unsigned i = 0; i < c->n_metadata; i++)
        if (strcmp(c->metadata[i].key, key) == 0)
            return c->metadata[i].value;
    return NULL;
}

static void c11_mesh_file_proxy_config_and_environment_are_merged(void **state)
{
    write_file(mesh_path, "extensionProviders: [{name: x, deep: {er: [1, 2]}}]\n"
                          "defaultConfig:\n  proxyAdminPort: 15099\n  statsPort: 15888\n  discoveryAddress: istiod.x:15012\n"
                          "  proxyMetadata:\n    ISTIO_META_FOO: foo\n    ISTIO_META_BAR: old\n    OTHER: 1\n");
    struct zt_config *c = GOOD("PROXY_CONFIG={proxyAdminPort: 15999, proxyMetadata: {ISTIO_META_BAR: bar}}", "ISTIO_META_CLUSTER_ID=c1",
                               "CLUSTER_ID=ignored");
    assert_int_equal(c->admin_port, 15999);
    assert_int_equal(c->stats_port, 15888);
    assert_string_equal(metadata(c, "FOO"), "foo");
    assert_string_equal(metadata(c, "BAR"), "bar");
    assert_string_equal(metadata(c, "OTHER"), "1");
    assert_string_equal(metadata(c, "CLUSTER_ID"), "c1");
    assert_string_equal(c->cluster_id, "c1");
    assert_string_equal(c->xds_address, "https://istiod.x:15012");
    zt_config_free(c);
}

static void c12_proxy_metadata_may_be_left_out(void **state)
{
    struct zt_config *c = GOOD("PROXY_CONFIG={\"statsPort\":1}");
    assert_int_equal(c->stats_port, 1);
    assert_int_equal(c->n_metadata, 0);
    zt_config_free(c);
    c = GOOD("PROXY_CONFIG={proxyMetadata: }");
    assert_int_equal(c->n_metadata, 0);
    zt_config_free(c);
}

static void mesh_mistakes_are_fatal_and_say_where(void **state)
{
    write_file(mesh_path, "defaultConfig: {statsPort: 70000}\n");
    BAD("error parsing proxy config: failed parsing mesh config file ", "A=b");
    BAD("defaultConfig.statsPort: expected a number from 0 to 65535", "A=b");
    write_file(mesh_path, "a: 1\n---\nb: 2\n");
    BAD("only one YAML document", "A=b");
    write_file(mesh_path, "defaultConfig: {\n");
    BAD("line:2:1: ", "A=b");
    write_file(mesh_path, "# nothing\n");
    zt_config_free(GOOD());
    write_file(mesh_path, "defaultConfig:\n");
    zt_config_free(GOOD("PROXY_CONFIG=null"));
    zt_config_free(GOOD("PROXY_CONFIG="));
    BAD("error parsing proxy config: failed parsing proxy config env: ", "PROXY_CONFIG=[]");
}

static void c13_worker_threads_follow_the_table(void **state)
{
    static const struct {
        const char *vars[4];
        unsigned threads;
    } cases[] = {
        {{"ZTUNNEL_RESOURCE_CPU_LIMIT=500m"}, 1},
        {{"ZTUNNEL_RESOURCE_CPU_LIMIT=2500m"}, 3},
        {{"ZTUNNEL_RESOURCE_CPU_LIMIT=1.5"}, 2},
        {{"ZTUNNEL_CPU_LIMIT=32"}, 8},
        {{"ZTUNNEL_CPU_LIMIT=2"}, 2},
        {{"ZTUNNEL_CPU_LIMIT=2", "ZTUNNEL_RESOURCE_CPU_REQUEST=8"}, 8},
        {{"ZTUNNEL_RESOURCE_CPU_LIMIT=4", "ZTUNNEL_RESOURCE_CPU_REQUEST=8"}, 8},
        {{"ZTUNNEL_WORKER_THREADS=50%", "ZTUNNEL_CPU_LIMIT=8"}, 4},
        {{"ZTUNNEL_WORKER_THREADS=0.1%", "ZTUNNEL_CPU_LIMIT=8"}, 1},
        {{"ZTUNNEL_WORKER_THREADS=0", "ZTUNNEL_CPU_LIMIT=7"}, 7},
        {{"ZTUNNEL_WORKER_THREADS=3", "ZTUNNEL_CPU_LIMIT=7"}, 3},
        {{"PROXY_CONFIG={concurrency: 0}", "ZTUNNEL_CPU_LIMIT=7"}, 7},
        {{"PROXY_CONFIG={concurrency: 5}", "ZTUNNEL_CPU_LIMIT=7"}, 5},
        {{"PROXY_CONFIG={concurrency: 5}", "ZTUNNEL_WORKER_THREADS=6"}, 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_config *c = good(cases[i].vars);
        if (c->worker_threads != cases[i].threads)
            fail_msg("%s: %u threads", cases[i].vars[0], c->worker_threads);
        zt_config_free(c);
    }
    BAD("(percentage must be between 0 and 100)", "ZTUNNEL_WORKER_THREADS=101%");
    BAD("(percentage must be between 0 and 100)", "ZTUNNEL_WORKER_THREADS=0%");
    BAD("(invalid percentage: ", "ZTUNNEL_WORKER_THREADS=x%");
    BAD("(invalid number: invalid digit found in string)", "ZTUNNEL_WORKER_THREADS=x");
    BAD("(must be a positive CPU quantity)", "ZTUNNEL_RESOURCE_CPU_LIMIT=0");
    BAD("(must be a positive CPU quantity)", "ZTUNNEL_RESOURCE_CPU_REQUEST=inf");
    BAD("ZTUNNEL_CPU_LIMIT=x", "ZTUNNEL_CPU_LIMIT=x", "ZTUNNEL_WORKER_THREADS=3"); /* validated although it does not count */
}

static void c14_termination_deadline_follows_the_grace_period(void **state)
{
    static const struct {
        const char *vars[3];
        unsigned seconds;
    } cases[] = {
        {{"TERMINATION_GRACE_PERIOD_SECONDS=30"}, 25}, {{"TERMINATION_GRACE_PERIOD_SECONDS=11"}, 6},
        {{"TERMINATION_GRACE_PERIOD_SECONDS=10"}, 9},  {{"TERMINATION_GRACE_PERIOD_SECONDS=5"}, 4},
        {{"TERMINATION_GRACE_PERIOD_SECONDS=2"}, 1},   {{"TERMINATION_GRACE_PERIOD_SECONDS=1"}, 1},
        {{"TERMINATION_GRACE_PERIOD_SECONDS=0"}, 1},   {{"CONNECTION_TERMINATION_DEADLINE=2m"}, 120},
        {{"CONNECTION_TERMINATION_DEADLINE=2m", "TERMINATION_GRACE_PERIOD_SECONDS=30"}, 120},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zt_config *c = good(cases[i].vars);
        if (c->termination_deadline_ms != cases[i].seconds * 1000)
            fail_msg("%s: %llu ms", cases[i].vars[0], (unsigned long long)c->termination_deadline_ms);
        zt_config_free(c);
    }
}

static void c15_addresses_get_a_scheme(void **state)
{
    struct zt_config *c = GOOD("XDS_ADDRESS=istiod.x.svc:15012", "CA_ADDRESS=http://ca:1", "KUBERNETES_SERVICE_HOST=");
    assert_string_equal(c->xds_address, "https://istiod.x.svc:15012");
    assert_string_equal(c->ca_address, "http://ca:1");
    assert_true(c->xds_address_explicit && c->ca_address_explicit);
    zt_config_free(c);
    c = GOOD("KUBERNETES_SERVICE_HOST=");
    assert_string_equal(c->xds_address, "https://istiod.istio-system.svc:15012");
    assert_false(c->xds_address_explicit);
    zt_config_free(c);
    c = GOOD("XDS_ADDRESS=", "PROXY_CONFIG={discoveryAddress: 'x:1'}", "CA_ADDRESS=[::1]:15012");
    assert_null(c->xds_address); /* empty: no fallback */
    assert_string_equal(c->ca_address, "https://[::1]:15012");
    zt_config_free(c);
    BAD("invalid uri: ", "XDS_ADDRESS=a b");
    BAD("invalid uri: ", "XDS_ADDRESS=host:70000");
    BAD("invalid uri: ", "CA_ADDRESS=://x");
    BAD("invalid uri: ", "CA_ADDRESS=host:1/path");
    BAD("CA_ADDRESS is empty", "CA_ADDRESS=");
}

static void c16_headers_come_from_the_environment(void **state)
{
    struct zt_config *c = GOOD("XDS_HEADER_HEADER_FOO=foo", "CA_HEADER_X=y z", "XDS_HEADER_A=1");
    assert_int_equal(c->n_xds_headers, 2);
    assert_string_equal(c->xds_headers[1].key, "header_foo");
    assert_string_equal(c->xds_headers[1].value, "foo");
    assert_string_equal(c->ca_headers[0].value, "y z");
    zt_config_free(c);
    BAD("failed to parse header key: XDS_HEADER_A B", "XDS_HEADER_A B=1");
    BAD("failed to parse header key: CA_HEADER_", "CA_HEADER_=1");
    BAD("failed to parse header value: a\nb", "XDS_HEADER_A=a\nb");
    BAD("header key of the protocol itself, not to be set: XDS_HEADER_TE", "XDS_HEADER_TE=trailers");
    BAD("header key of the protocol itself, not to be set: CA_HEADER_GRPC-TIMEOUT", "CA_HEADER_GRPC-TIMEOUT=1S");
}

static void values_that_are_not_utf8_count_as_unset(void **state)
{
    struct zt_config *c = GOOD("PROXY_MODE=\xff", "XDS_HEADER_\xc3=1", "ISTIO_META_X=\xfe", "NODE_NAME=\xc3\xa4");
    assert_int_equal(c->mode, ZT_MODE_SHARED);
    assert_int_equal(c->n_xds_headers, 0);
    assert_int_equal(c->n_metadata, 0);
    assert_string_equal(c->node_name, "\xc3\xa4");
    zt_config_free(c);
}

static void structured_metadata_that_does_not_parse_is_skipped(void **state)
{
    struct zt_config *c = GOOD("ISTIO_METAJSON_LABELS={\"a\":1}", "ISTIO_METAJSON_BAD={", "ISTIO_METAJSON_N=5");
    assert_int_equal(c->n_metadata_json, 2);
    assert_string_equal(c->metadata_json[0].key, "LABELS");
    assert_int_equal(c->n_metadata, 0);
    zt_config_free(c);
}

static void dns_address_is_checked(void **state)
{
    struct zt_config *c = GOOD("ISTIO_META_DNS_PROXY_ADDR=10.0.0.1:53");
    assert_int_equal(c->dns_addr.port, 53);
    assert_int_equal(c->dns_addr.ip.family, ZT_IPV4);
    zt_config_free(c);
    c = GOOD();
    assert_int_equal(c->dns_addr.port, 15053);
    assert_int_equal(c->dns_addr.ip.family, ZT_IP_NONE);
    zt_config_free(c);
    BAD("invalid configuration: failed to parse DNS_PROXY_ADDR: localhost:x (", "ISTIO_META_DNS_PROXY_ADDR=localhost:x");
    BAD("invalid configuration: failed to parse DNS_PROXY_ADDR: nowhere (", "ISTIO_META_DNS_PROXY_ADDR=nowhere");
    BAD("invalid env var CLUSTER_DOMAIN=a..b (must be a DNS name)", "CLUSTER_DOMAIN=a..b");
    zt_config_free(GOOD("CLUSTER_DOMAIN=a..b", "ISTIO_META_DNS_CAPTURE=1"));
    BAD("invalid env var ALT_CA_HOSTNAME=a b (must be a DNS name)", "ALT_CA_HOSTNAME=a b");
}

static void a_resolver_file_without_nameserver_matters_only_to_dns(void **state)
{
    struct zt_config *c = GOOD();
    assert_int_equal(c->n_nameservers, 1);
    assert_int_equal(c->n_search_domains, 2);
    assert_string_equal(c->search_domains[1], "b.local");
    assert_int_equal(c->resolv_ndots, 5);
    assert_int_equal(c->resolv_attempts, 2);
    zt_config_free(c);
    write_file(resolv_path, "# none\nsearch x\n");
    BAD("no nameserver: the DNS proxy needs a nameserver", "A=b");
    zt_config_free(GOOD("ISTIO_META_DNS_CAPTURE=false"));
    write_file(resolv_path, "nameserver nonsense\n");
    BAD("resolv.conf:1: a nameserver needs an IP address", "A=b");
    unlink(resolv_path);
    BAD("No such file or directory", "A=b");
    zt_config_free(GOOD("ISTIO_META_DNS_CAPTURE=false"));
}

static void fake_ca_means_the_local_ca_and_excludes_a_ca_address(void **state)
{
    struct zt_config *c = GOOD("FAKE_CA=true");
    assert_string_equal(c->local_ca_path, "/tmp/ztunneld-ca");
    assert_null(c->ca_address);
    zt_config_free(c);
    c = GOOD("FAKE_CA=true", "LOCAL_CA_PATH=/x", "CA_ADDRESS=");
    assert_string_equal(c->local_ca_path, "/x");
    zt_config_free(c);
    c = GOOD("LOCAL_CA_PATH=");
    assert_null(c->local_ca_path);
    assert_non_null(c->ca_address);
    zt_config_free(c);
    BAD("exclude each other", "FAKE_CA=true", "CA_ADDRESS=ca:1");
    BAD("exclude each other", "LOCAL_CA_PATH=/x", "CA_ADDRESS=ca:1");
}

static void control_socket_lives_beside_the_zds_socket(void **state)
{
    struct zt_config *c = GOOD("INPOD_UDS=/run/a/z.sock");
    assert_string_equal(c->ctl_socket, "/run/a/ztunneld.ctl");
    zt_config_free(c);
    c = GOOD("INPOD_UDS=z.sock");
    assert_string_equal(c->ctl_socket, "ztunneld.ctl");
    zt_config_free(c);
    c = GOOD("ZTUNNELD_CTL_SOCKET=/c");
    assert_string_equal(c->ctl_socket, "/c");
    zt_config_free(c);
}

static void own_time_limits_are_durations_above_zero(void **state)
{
    struct zt_config *c = GOOD("ZTUNNELD_CONNECT_TIMEOUT=250ms", "ZTUNNELD_ZDS_RETRY=1", "ZTUNNELD_LOCAL_WORKLOAD_WAIT=2s");
    assert_int_equal(c->connect_timeout_ms, 250);
    assert_int_equal(c->zds_retry_ms, 1000);
    assert_int_equal(c->local_workload_wait_ms, 2000);
    zt_config_free(c);
    BAD("invalid env var ZTUNNELD_CONNECT_TIMEOUT=0 (must not be zero)", "ZTUNNELD_CONNECT_TIMEOUT=0");
}

/* Whether check_served refuses, and a word of the remedy. */
static void check_refused(const char *word, const char *const *vars)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_config *c = good(vars);
    assert_int_equal(zt_config_check_served(c, &err), word ? ZT_UNSUPPORTED : ZT_OK);
    if (word && !strstr(err.text, word))
        fail_msg("expected \"%s\" in \"%s\"", word, err.text);
    zt_config_free(c);
}
#define REFUSED(word, ...) check_refused(word, (const char *const[]){__VA_ARGS__, NULL})

static void silence_that_would_weaken_security_is_refused(void **state)
{
    REFUSED(NULL, "LOCAL_CA_PATH=/x");
    REFUSED(NULL, "XDS_ADDRESS=", "CA_ADDRESS=x:1");
    REFUSED("unset XDS_ON_DEMAND", "XDS_ADDRESS=a:1", "XDS_ON_DEMAND=true", "ISTIO_META_DNS_CAPTURE=false");
    REFUSED(NULL, "XDS_ADDRESS=", "LOCAL_CA_PATH=/x", "CRL_PATH=/crl");
    REFUSED(NULL, "XDS_ADDRESS=", "LOCAL_CA_PATH=/x", "COMPLIANCE_POLICY=pqc"); /* the library may: secrets say so */
    REFUSED("COMPLIANCE_POLICY=fips", "XDS_ADDRESS=", "LOCAL_CA_PATH=/x", "COMPLIANCE_POLICY=fips");
    REFUSED(NULL, "XDS_ADDRESS=", "LOCAL_CA_PATH=/x", "CRL_PATH=", "COMPLIANCE_POLICY=");
    REFUSED(NULL, "XDS_ADDRESS=", "FAKE_CA=true");
}

static void keys_not_served_say_so_once_each(void **state)
{
    char *texts[ZT_CONFIG_UNSERVED_MAX];
    struct zt_config *c = GOOD("ISTIO_META_DNS_CAPTURE=false");
    assert_int_equal(zt_config_unserved(c, texts, ZT_CONFIG_UNSERVED_MAX), 0);
    zt_config_free(c);
    c = GOOD("UNSTABLE_ENABLE_SOCKS5=true", "CLUSTER_DOMAIN=d", "AUTH_TOKEN=hush", "POD_NAMESPACE=a", "SERVICE_ACCOUNT=b", "POD_NAME=c");
    assert_int_equal(zt_config_unserved(c, texts, ZT_CONFIG_UNSERVED_MAX), 1);
    assert_non_null(strstr(texts[0], "POD_NAMESPACE, SERVICE_ACCOUNT and POD_NAME"));
    assert_null(strstr(texts[0], "hush"));
    zt_free(texts[0]);
    assert_int_equal(zt_config_unserved(c, texts, 0), 0);
    zt_config_free(c);
}

static void main_s_arguments_skip_the_program_name(void **state)
{
    char *argv[] = {(char[]){"/bin/ztunneld"}, (char[]){"proxy"}, NULL}, *env[] = {NULL};
    struct zt_config *c = NULL;
    assert_int_equal(zt_config_load(2, argv, env, mesh_path, resolv_path, &c, NULL), ZT_OK);
    assert_string_equal(c->proxy_args, "proxy");
    zt_config_free(c);
}

#define T(f) cmocka_unit_test_setup(f, reset_files)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(config_defaults_are_the_reference_s),
        T(c4_arguments_are_joined),
        T(c5_proxy_mode_is_lower_case),
        T(c6_dedicated_mode_needs_workload_info),
        T(c7_bad_values_name_variable_value_and_reason),
        T(every_typed_key_refuses_a_bad_value),
        T(http2_settings_out_of_bounds_are_refused_at_start),
        T(c8_on_demand_excludes_the_dns_proxy),
        T(c9_something_must_be_enabled),
        T(c10_only_one_local_source),
        T(c11_mesh_file_proxy_config_and_environment_are_merged),
        T(c12_proxy_metadata_may_be_left_out),
        T(mesh_mistakes_are_fatal_and_say_where),
        T(c13_worker_threads_follow_the_table),
        T(c14_termination_deadline_follows_the_grace_period),
        T(c15_addresses_get_a_scheme),
        T(c16_headers_come_from_the_environment),
        T(values_that_are_not_utf8_count_as_unset),
        T(structured_metadata_that_does_not_parse_is_skipped),
        T(dns_address_is_checked),
        T(a_resolver_file_without_nameserver_matters_only_to_dns),
        T(fake_ca_means_the_local_ca_and_excludes_a_ca_address),
        T(control_socket_lives_beside_the_zds_socket),
        T(own_time_limits_are_durations_above_zero),
        T(silence_that_would_weaken_security_is_refused),
        T(keys_not_served_say_so_once_each),
        T(main_s_arguments_skip_the_program_name),
    };
    return cmocka_run_group_tests_name("config", tests, make_files, remove_files);
}
