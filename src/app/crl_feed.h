/* CRL_PATH: loads the revocation lists at start, watches the file's directory, loads them again after a change and has open tunnels
 * held against them (spec/dataplane §12.1). Private to app. Thread: control. */
#ifndef ZT_APP_CRL_FEED_H
#define ZT_APP_CRL_FEED_H

#include "zt/loop/loop.h"
#include "zt/proxy/proxy.h"

struct zt_crl_feed;

/* The first load is done when this returns. helper: the loop where files are read and parsed later; it outlives the feed. Borrows all until
 * free. Never fails: a file that is missing or broken is a line in the log, and the next change of its directory another chance.
 * Returns owned. */
struct zt_crl_feed *zt_crl_feed_new(struct zt_loop *control, struct zt_loop *helper, struct zt_proxy *proxy, const char *path);
/* A load under way ends by itself. NULL is legal. */
void zt_crl_feed_free(struct zt_crl_feed *f);

#endif
