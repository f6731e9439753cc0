/* Build information. Names and order of the fields are those that istioctl and log pipelines know from the reference; the field
 * named after a compiler of another language holds ours. */
#include "zt/app/version.h"
#include <stdlib.h>
#include <string.h>

struct zt_version zt_version_get(void)
{
    const char *istio = getenv("ISTIO_META_ISTIO_VERSION");
    bool modified = strcmp(ZT_BUILD_STATUS, "Clean") != 0;
    return (struct zt_version){
        .version = ZT_VERSION,
        .git_revision = modified ? ZT_GIT_REVISION "-dirty" : ZT_GIT_REVISION,
        .rust_version = "cc-" __VERSION__,
        .build_profile = ZT_BUILD_PROFILE,
        .build_status = ZT_BUILD_STATUS,
        .istio_version = istio ? istio : "unknown",
        .crypto_provider = "tls-openssl",
    };
}

void zt_version_write(struct zt_str *out)
{
    struct zt_version v = zt_version_get();
    zt_str_addf(out,
                "version.BuildInfo{Version:\"%s\", GitRevision:\"%s\", RustVersion:\"%s\", BuildProfile:\"%s\", "
                "BuildStatus:\"%s\", IstioVersion:\"%s\", CryptoProvider:\"%s\"}",
                v.version, v.git_revision, v.rust_version, v.build_profile, v.build_status, v.istio_version,
                v.crypto_provider);
}

void zt_version_write_json(struct zt_json *j)
{
    struct zt_version v = zt_version_get();
    zt_json_object(j);
    zt_json_key_str(j, "buildProfile", v.build_profile);
    zt_json_key_str(j, "buildStatus", v.build_status);
    zt_json_key_str(j, "cryptoProvider", v.crypto_provider);
    zt_json_key_str(j, "gitRevision", v.git_revision);
    zt_json_key_str(j, "istioVersion", v.istio_version);
    zt_json_key_str(j, "rustVersion", v.rust_version);
    zt_json_key_str(j, "version", v.version);
    zt_json_object_end(j);
}
