/* Build information (spec/interfaces §8): the `version` command, the help's title, the start-up log, the dump. Thread: any. */
#ifndef ZT_APP_VERSION_H
#define ZT_APP_VERSION_H

#include "zt/base/json.h"

struct zt_version { /* static text; istio_version: borrowed from the environment */
    const char *version, *git_revision, *rust_version, *build_profile, *build_status, *istio_version, *crypto_provider;
};
struct zt_version zt_version_get(void);
/* version.BuildInfo{Version:"...", ...} */
void zt_version_write(struct zt_str *out);
/* The same as a JSON object, keys sorted. */
void zt_version_write_json(struct zt_json *j);

#endif
