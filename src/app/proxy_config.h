/* What the configuration means for the proxy. Private to app. */
#ifndef ZT_APP_PROXY_CONFIG_H
#define ZT_APP_PROXY_CONFIG_H

#include "zt/config/config.h"
#include "zt/proxy/proxy.h"

/* All but the key log, which is opened first. Borrows c's text. Thread: any. */
struct zt_proxy_config zt_proxy_config_of(const struct zt_config *c);

#endif
