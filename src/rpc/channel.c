/* Channels: what a connection needs, and when a new one is made (spec/controlplane §1.4, §1.6,
 * §1.7).
 *
 *   fresh   every call gets a connection of its own, with roots read for it
 *   shared  one connection for all calls, made anew by the next call when
 *             - the root setting gives other certificates than the connection trusts, or
 *             - a call could not be served over it (no waiting for the library's back-off: the
 *               caller has its own)
 *           Calls in flight keep the connection they began with.
 *
 * Roots that cannot be read end the attempt where nothing was read before; else the last good ones
 * stay in force, and so does the connection.
 *
 * Not set, because the packaged library has no door for it: TCP keepalive (its HTTP/2 PING every 30
 * s finds a dead peer sooner), TLS 1.3 suites and groups, ALPN ("grpc-exp" is offered beside h2),
 * leaving out SNI for an IP address. */
#include "rpc_impl.h"

#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <grpc/compression.h>
#include <limits.h>
#include <string.h>

#define KEEPALIVE_TIME_MS 30000
#define KEEPALIVE_TIMEOUT_MS 10000
#define STREAM_WINDOW_BYTES (2 * 1024 * 1024)
#define RECONNECT_BACKOFF_MS                                                                       \
    100 /* the smallest the library takes; it is hardly ever waited for                            \
         */

enum zt_err zt_rpc_channel_new(struct zt_rpc *r, const struct zt_rpc_channel_config *config,
                               struct zt_rpc_channel **out, struct zt_error *err)
{
    zt_loop_assert_owner(r->loop);
    ZT_ASSERT(config->receive_bytes_max > 0 && config->receive_bytes_max <= INT_MAX);
    struct zt_rpc_target target;
    struct zt_rpc_headers headers;
    if (config->alt_hostname && !zt_rpc_host_is_valid(config->alt_hostname))
        return zt_error_set(err, ZT_INVALID,
                            "alternative name %.200s: neither a DNS name nor an IP address",
                            config->alt_hostname);
    enum zt_err e = zt_rpc_target_parse(&target, config->address, err);
    if (e != ZT_OK)
        return e;
    e = zt_rpc_headers_init(&headers, config, err);
    if (e != ZT_OK) {
        zt_rpc_target_fini(&target);
        return e;
    }
    struct zt_rpc_channel *c = zt_new(struct zt_rpc_channel);
    c->rpc = r;
    c->target = target;
    c->headers = headers;
    c->root_ca = zt_strdup(config->root_ca);
    c->alt_hostname = zt_strdup(config->alt_hostname);
    c->receive_bytes_max = config->receive_bytes_max;
    c->fresh = config->fresh;
    r->n_channels++;
    *out = c;
    return ZT_OK;
}

void zt_rpc_channel_free(struct zt_rpc_channel *c)
{
    if (!c)
        return;
    zt_loop_assert_owner(c->rpc->loop);
    ZT_ASSERT(c->n_calls == 0);
    zt_rpc_link_unref(c->shared);
    zt_rpc_target_fini(&c->target);
    zt_rpc_headers_fini(&c->headers);
    zt_free(c->root_ca);
    zt_free(c->alt_hostname);
    zt_free(c->roots_pem);
    c->rpc->n_channels--;
    zt_free(c);
}

void zt_rpc_link_unref(struct zt_rpc_link *l)
{
    if (!l || --l->refs > 0)
        return;
    grpc_channel_destroy(l->channel);
    zt_free(l);
}

/* The library takes names and texts without const and does not change them. */
static char *mutable(const char *text)
{
    return (char *)(uintptr_t)text;
}

static grpc_arg integer(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = mutable(key), .value = {.integer = value}};
}

/* One connection that trusts roots_pem; the library dials when the first call starts. */
static struct zt_rpc_link *make_link(const struct zt_rpc_channel *c, const char *roots_pem)
{
    grpc_arg args[] = {
        {.type = GRPC_ARG_STRING,
         .key = mutable(GRPC_ARG_DEFAULT_AUTHORITY),
         .value = {.string = c->target.authority}},
        integer(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_TIME_MS),
        integer(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
        integer(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
        integer(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0), /* no limit: an idle stream is watched */
        integer(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, STREAM_WINDOW_BYTES),
        integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)c->receive_bytes_max),
        integer(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
        integer(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        integer(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1), /* never another channel's connection */
        integer(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, ZT_RPC_CONNECT_TIMEOUT_MS), /* sic: connect */
        integer(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RECONNECT_BACKOFF_MS),
        integer(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RECONNECT_BACKOFF_MS),
        integer(GRPC_ARG_CLIENT_IDLE_TIMEOUT_MS, c->fresh ? INT_MAX : ZT_RPC_IDLE_TIMEOUT_MS),
        integer(GRPC_ARG_ENABLE_RETRIES, 0),
        integer(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        integer(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        integer(GRPC_ARG_ENABLE_CHANNELZ, 0),
    };
    grpc_channel_args list = {.num_args = sizeof args / sizeof *args, .args = args};
    grpc_channel_credentials *creds = zt_rpc_creds_new(roots_pem, c->target.host, c->alt_hostname);
    struct zt_rpc_link *l = zt_new(struct zt_rpc_link);
    l->refs = 1;
    l->channel = grpc_channel_create(c->target.uri, creds, &list);
    grpc_channel_credentials_release(creds);
    return l;
}

static struct zt_rpc_link *fresh_link(struct zt_rpc_channel *c, struct zt_error *err)
{
    char *pem = zt_rpc_roots_read(c->root_ca, err);
    struct zt_rpc_link *l = pem ? make_link(c, pem) : NULL;
    zt_free(pem);
    return l;
}

/* Says once per row of failures that the old roots stay. */
static void note_roots(struct zt_rpc_channel *c, bool ok, const struct zt_error *err)
{
    if (!ok && !c->roots_failing)
        zt_log_warn(ZT_RPC_SCOPE, "%s: the roots read before stay in force", err->text);
    c->roots_failing = !ok;
}

/* The shared connection, made new where the rules above say so. Returns borrowed. */
static struct zt_rpc_link *shared_link(struct zt_rpc_channel *c, struct zt_error *err)
{
    struct zt_error local = ZT_ERROR_INIT;
    char *pem = zt_rpc_roots_read(c->root_ca, &local);
    if (!pem && !c->roots_pem) {
        zt_error_set(err, local.code, "%s", local.text);
        return NULL;
    }
    note_roots(c, pem, &local);
    bool changed = pem && (!c->roots_pem || strcmp(pem, c->roots_pem) != 0);
    if (changed) {
        zt_free(c->roots_pem);
        c->roots_pem = pem;
    } else {
        zt_free(pem);
    }
    if (changed || !c->shared || c->shared->failed) {
        zt_rpc_link_unref(c->shared);
        c->shared = make_link(c, c->roots_pem);
    }
    return c->shared;
}

struct zt_rpc_link *zt_rpc_channel_link(struct zt_rpc_channel *c, struct zt_error *err)
{
    zt_rpc_assert_netns(c->rpc);
    if (c->fresh)
        return fresh_link(c, err);
    struct zt_rpc_link *l = shared_link(c, err);
    if (l)
        l->refs++;
    return l;
}
