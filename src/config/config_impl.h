/* Inside the configuration: typed look-ups in the environment, the mesh settings, facts of the host. Private to config.
 * A failing look-up returns false with the error set in the environment's err. Thread: owner. */
#ifndef ZT_CONFIG_CONFIG_IMPL_H
#define ZT_CONFIG_CONFIG_IMPL_H

#include "zt/config/config.h"

/* The environment of one zt_config_read. */
struct env {
    char *const *vars;    /* borrowed */
    struct zt_error *err; /* borrowed */
};
bool zt_env_is_utf8(const char *text);
/* The value, or NULL when unset or not UTF-8. Returns borrowed (from the environment). */
const char *zt_env_get(const struct env *e, const char *name);
/* `invalid env var <name>=<value> (<reason>)`. Always false. */
bool zt_env_fail(const struct env *e, const char *name, const char *value, const char *reason);
/* Typed: unset leaves *out as it is. */
bool zt_env_bool(const struct env *e, const char *name, bool *out);
bool zt_env_u64(const struct env *e, const char *name, uint64_t min, uint64_t max, uint64_t *out);
bool zt_env_u32(const struct env *e, const char *name, uint32_t min, uint32_t max, uint32_t *out);
bool zt_env_duration(const struct env *e, const char *name, uint64_t *ms);
/* A copy of the value or of fallback (may be NULL). */
void zt_env_str(const struct env *e, const char *name, const char *fallback, char **out);
/* Decimal with an optional plus; NULL, or the reason why it is none. */
const char *zt_number_parse(const char *text, uint64_t max, uint64_t *out);

/* A map of strings kept sorted by key. */
void zt_pairs_put(struct zt_config_pair **list, unsigned *n, const char *key, const char *value); /* replaces */
const char *zt_pairs_get(const struct zt_config_pair *list, unsigned n, const char *key);         /* returns borrowed */
void zt_pairs_free(struct zt_config_pair *list, unsigned n);
#define ZT_PAIRS_MAX 4096 /* further ones are refused by whoever reads them from a file */

/* defaultConfig of the mesh file, overlaid by PROXY_CONFIG. */
struct mesh {
    char *discovery_address; /* NULL = unset */
    bool has_admin_port, has_stats_port, has_concurrency;
    uint16_t admin_port, stats_port, concurrency;
    struct zt_config_pair *metadata; /* prefix not removed yet */
    unsigned n_metadata;
};
bool zt_mesh_read(struct mesh *m, const struct env *e, const char *path);
void zt_mesh_free(struct mesh *m);

/* Worker threads and CPU count (spec/interfaces §2.3). */
bool zt_host_threads(struct zt_config *c, const struct env *e, const struct mesh *m);
/* /etc/resolv.conf. Errors: ZT_IO, ZT_INVALID (a bad address, or no nameserver). */
enum zt_err zt_host_resolv(struct zt_config *c, const char *path, struct zt_error *err);
bool zt_host_has_ipv6_loopback(void);

bool zt_is_dns_name(const char *text);

#endif
