/* What talks to istiod, made from the configuration: the gRPC library, the channels, the CA client, the xDS client. Private to app.
 * Thread: control. */
#ifndef ZT_APP_CONTROL_PLANE_H
#define ZT_APP_CONTROL_PLANE_H

#include "zt/config/config.h"
#include "zt/secrets/ca.h"
#include "zt/xds/delta.h"

struct zt_control_plane;

/* Starts the gRPC library when an address needs it: before any thread of the data plane and before any setns. control and config are
 * borrowed until free. Returns owned in *out. Errors: ZT_IO. */
enum zt_err zt_control_plane_new(struct zt_loop *control, const struct zt_config *config, struct zt_control_plane **out,
                                 struct zt_error *err);
/* The client of CA_ADDRESS. Returns owned in *ca; zt_ca_free it before zt_control_plane_free. Errors: ZT_INVALID. */
enum zt_err zt_control_plane_ca(struct zt_control_plane *p, struct zt_ca **ca, struct zt_error *err);
/* Connects to XDS_ADDRESS; see zt_xds_new for the arguments, all borrowed until stop_xds, and what lasts longer. Errors: ZT_INVALID. */
enum zt_err zt_control_plane_start_xds(struct zt_control_plane *p, struct zt_loop *apply, struct zt_store *store,
                                       struct zt_metrics *metrics, const struct zt_xds_events *events, void *arg,
                                       struct zt_error *err);
/* Returns borrowed (until stop_xds); NULL: there is none. */
const struct zt_xds *zt_control_plane_xds(const struct zt_control_plane *p);
/* No event comes any more. p may be NULL. */
void zt_control_plane_stop_xds(struct zt_control_plane *p);
/* The apply loop has been freed. NULL is legal. */
void zt_control_plane_free(struct zt_control_plane *p);

#endif
