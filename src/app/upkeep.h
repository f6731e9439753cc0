/* The daemon about itself: families of the process as a whole, and the eviction of label sets that nobody uses. Private to app.
 * Thread: control. */
#ifndef ZT_APP_UPKEEP_H
#define ZT_APP_UPKEEP_H

#include "app/control_plane.h"
#include "zt/base/metrics.h"
#include "zt/loop/loop.h"
#include "zt/proxy/proxy.h"
#include "zt/secrets/secrets.h"

struct zt_upkeep {
    struct zt_loop *loop;
    struct zt_metrics *metrics;
    struct zt_secrets *secrets;
    struct zt_proxy *proxy;
    const struct zt_control_plane *control_plane;
    uint64_t retention_ms;           /* of label sets after their last use */
    ev_timer timer;
};

/* Registers the families; the fields but timer are filled in, pointers are borrowed until stop. */
void zt_upkeep_register(struct zt_upkeep *u);
void zt_upkeep_start(struct zt_upkeep *u);
void zt_upkeep_stop(struct zt_upkeep *u); /* legal before start */

#endif
