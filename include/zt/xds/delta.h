/* The delta xDS client (spec/controlplane §2): one ADS stream that brings workloads, services and
 * policies from istiod into the store.
 *
 * Control owns the stream: connecting, back-off, ACK and NACK, the gate. Responses are decoded and
 * applied on the apply thread, resource by resource, in batches of at most
 * ZT_BATCH_LOCK_RECORDS_MAX records; a resource that is refused is named in the NACK while the
 * others are in force. The names and versions held live on the apply thread too and are sent again
 * at each reconnect. State survives every loss of the stream. */
#ifndef ZT_XDS_DELTA_H
#define ZT_XDS_DELTA_H

#include "zt/base/metrics.h"
#include "zt/rpc/rpc.h"
#include "zt/state/store.h"

#define ZT_XDS_METHOD                                                                              \
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
#define ZT_XDS_TYPE_ADDRESS "type.googleapis.com/istio.workload.Address"
#define ZT_XDS_TYPE_AUTHORIZATION "type.googleapis.com/istio.security.Authorization"
#define ZT_XDS_BACKOFF_MIN_MS 10
#define ZT_XDS_BACKOFF_MAX_MS 15000

struct zt_xds;

struct zt_xds_pair {
    const char *key, *value;
};
/* Who we are (spec/controlplane §2.1). Everything is borrowed during zt_xds_new. Texts may be NULL
 * (= ""). */
struct zt_xds_config {
    const char *instance_ip, *pod_name, *pod_namespace, *node_name;
    const struct zt_xds_pair *metadata;      /* proxyMetadata, ISTIO_META_*: text values */
    const struct zt_xds_pair *metadata_json; /* ISTIO_METAJSON_*: value is JSON text */
    unsigned n_metadata, n_metadata_json;
};

/* The functions of zt/rpc/rpc.h that carry the stream. */
struct zt_xds_transport {
    enum zt_err (*open)(struct zt_rpc_channel *channel, const char *method,
                        const struct zt_rpc_events *events, void *owner, struct zt_rpc_call **out,
                        struct zt_error *err);
    enum zt_err (*send)(struct zt_rpc_call *call, const void *bytes, size_t n);
    void (*next)(struct zt_rpc_call *call);
    void (*free)(struct zt_rpc_call *call);
};
extern const struct zt_xds_transport zt_xds_over_rpc;

/* All on control, never from inside a function of this header. */
struct zt_xds_events {
    /* Part of a response is in the store. changes: borrowed during the call. */
    void (*on_applied)(void *arg, const struct zt_store_changes *changes);
    /* Once: both types were received and acknowledged, the whole state is here. Reconnects do not
     * undo it. */
    void (*on_synced)(void *arg);
};

/* channel: fresh connections, ZT_RPC_ADS_RECEIVE_BYTES. apply: the loop that decodes. All pointers
 * are borrowed: transport, channel, metrics and arg until free; the loops, the store and the
 * channel's library until both loops have run the messages they hold (zt_loop_free does). The
 * families of zt_xds_register_metrics are there. Nothing is dialled before start. Returns owned.
 * Thread: control. */
struct zt_xds *zt_xds_new(struct zt_loop *control, struct zt_loop *apply, struct zt_store *store,
                          const struct zt_xds_transport *transport, struct zt_rpc_channel *channel,
                          const struct zt_xds_config *config, struct zt_metrics *metrics,
                          const struct zt_xds_events *events, void *arg);
/* Dials, and dials again until free. Thread: control. */
void zt_xds_start(struct zt_xds *x);
bool zt_xds_is_connected(const struct zt_xds *x); /* a response came on the present stream */
uint64_t zt_xds_age_ms(const struct zt_xds *x); /* since the last response, or since we began */
/* Takes x; NULL is legal. Ends the stream; no event comes any more. A response being applied is
 * broken off after its piece and its message freed on the apply thread, at the latest when that
 * loop is freed. Thread: control. */
void zt_xds_free(struct zt_xds *x);

/* Registers the families istio_xds_* (spec/interfaces §6.2). Thread: control, before workers start.
 */
void zt_xds_register_metrics(struct zt_metrics *m);

#endif
