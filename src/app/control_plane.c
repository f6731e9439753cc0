/* See control_plane.h. Two channels of one library: a fresh connection for each ADS stream, one connection kept for the CA. */
#include "app/control_plane.h"
#include "zt/base/mem.h"
#include "zt/secrets/ca_istiod.h"

struct zt_control_plane {
    struct zt_loop *control;
    const struct zt_config *config;
    struct zt_rpc *rpc; /* NULL: neither address is set */
    struct zt_rpc_channel *xds_channel;
    struct zt_xds *xds;
};

enum zt_err zt_control_plane_new(struct zt_loop *control, const struct zt_config *config, struct zt_control_plane **out,
                                 struct zt_error *err)
{
    struct zt_control_plane *p = zt_new(struct zt_control_plane);
    *p = (struct zt_control_plane){.control = control, .config = config};
    *out = p;
    if (!config->xds_address && !config->ca_address)
        return ZT_OK;
    return zt_rpc_new(control, config->tls12, &p->rpc, err);
}

static enum zt_err open_channel(struct zt_control_plane *p, struct zt_rpc_channel_config *c,
                                const struct zt_config_pair *headers, unsigned n_headers, struct zt_rpc_channel **out,
                                struct zt_error *err)
{
    struct zt_rpc_header *list = zt_new_n(struct zt_rpc_header, n_headers + 1);
    for (unsigned i = 0; i < n_headers; i++)
        list[i] = (struct zt_rpc_header){headers[i].key, headers[i].value};
    c->token = p->config->auth_token;
    c->cluster_id = p->config->cluster_id;
    c->headers = list;
    c->n_headers = n_headers;
    enum zt_err e = zt_rpc_channel_new(p->rpc, c, out, err);
    zt_free(list);
    return e;
}

enum zt_err zt_control_plane_ca(struct zt_control_plane *p, struct zt_ca **ca, struct zt_error *err)
{
    const struct zt_config *c = p->config;
    struct zt_rpc_channel *channel;
    struct zt_rpc_channel_config config = {
        .address = c->ca_address,
        .root_ca = c->ca_root_ca,
        .alt_hostname = c->alt_ca_hostname,
        .receive_bytes_max = ZT_RPC_UNARY_RECEIVE_BYTES,
    };
    enum zt_err e = open_channel(p, &config, c->ca_headers, c->n_ca_headers, &channel, err);
    if (e != ZT_OK)
        return zt_error_wrap(err, "CA_ADDRESS");
    *ca = zt_ca_istiod_new(&(struct zt_ca_istiod_config){
        .loop = p->control,
        .channel = channel,
        .impersonate = c->mode == ZT_MODE_SHARED,
    });
    return ZT_OK;
}

static struct zt_xds_pair *copy_pairs(const struct zt_config_pair *in, unsigned n)
{
    struct zt_xds_pair *out = zt_new_n(struct zt_xds_pair, n + 1);
    for (unsigned i = 0; i < n; i++)
        out[i] = (struct zt_xds_pair){in[i].key, in[i].value};
    return out;
}

enum zt_err zt_control_plane_start_xds(struct zt_control_plane *p, struct zt_loop *apply, struct zt_store *store,
                                       struct zt_metrics *metrics, const struct zt_xds_events *events, void *arg,
                                       struct zt_error *err)
{
    const struct zt_config *c = p->config;
    struct zt_rpc_channel_config config = {
        .address = c->xds_address,
        .root_ca = c->xds_root_ca,
        .alt_hostname = c->alt_xds_hostname,
        .receive_bytes_max = ZT_RPC_ADS_RECEIVE_BYTES,
        .fresh = true,
    };
    enum zt_err e = open_channel(p, &config, c->xds_headers, c->n_xds_headers, &p->xds_channel, err);
    if (e != ZT_OK)
        return zt_error_wrap(err, "XDS_ADDRESS");
    struct zt_xds_pair *metadata = copy_pairs(c->metadata, c->n_metadata);
    struct zt_xds_pair *metadata_json = copy_pairs(c->metadata_json, c->n_metadata_json);
    struct zt_xds_config node = {
        .instance_ip = c->instance_ip,
        .pod_name = c->pod_name,
        .pod_namespace = c->pod_namespace,
        .node_name = c->node_name,
        .metadata = metadata,
        .metadata_json = metadata_json,
        .n_metadata = c->n_metadata,
        .n_metadata_json = c->n_metadata_json,
    };
    p->xds = zt_xds_new(p->control, apply, store, &zt_xds_over_rpc, p->xds_channel, &node, metrics, events, arg);
    zt_free(metadata);
    zt_free(metadata_json);
    zt_xds_start(p->xds);
    return ZT_OK;
}

const struct zt_xds *zt_control_plane_xds(const struct zt_control_plane *p)
{
    return p ? p->xds : NULL;
}

void zt_control_plane_stop_xds(struct zt_control_plane *p)
{
    if (!p)
        return;
    zt_xds_free(p->xds);
    p->xds = NULL;
    zt_rpc_channel_free(p->xds_channel);
    p->xds_channel = NULL;
}

void zt_control_plane_free(struct zt_control_plane *p)
{
    if (!p)
        return;
    zt_control_plane_stop_xds(p);
    zt_rpc_free(p->rpc);
    zt_free(p);
}
