/* Inside the local xDS source: one reader per kind of record, and the value forms that they share. Private to config.
 * Every function returns false after a failure, which is in the reader. Thread: owner. */
#ifndef ZT_CONFIG_LOCAL_IMPL_H
#define ZT_CONFIG_LOCAL_IMPL_H

#include "zt/config/yaml.h"
#include "zt/config/local.h"
#include <stdatomic.h>

#define LOCAL_PORTS_MAX 4096    /* of one port map */
#define LOCAL_SERVICES_MAX 4096 /* of one workload */

/* The record under the reader; returns owned in *out. */
bool zt_local_workload(struct zt_yaml *r, struct zt_workload **out);
bool zt_local_service(struct zt_yaml *r, struct zt_service **out);
bool zt_local_policy(struct zt_yaml *r, struct zt_policy **out);

/* Reads one entry of a list into *element, which is zeroed. */
typedef bool zt_local_element_fn(struct zt_yaml *r, void *element);
/* The list under the reader, at most ZT_LOCAL_LIST_MAX entries. NULL when empty or failed. Memory is the reader's scratch. */
void *zt_local_list(struct zt_yaml *r, size_t size, zt_local_element_fn *read, uint16_t *n);
#define ZT_LOCAL_LIST(r, T, read, n) ((T *)zt_local_list((r), sizeof(T), (read), (n)))
/* Fails at max entries: the list under the reader has no room for one after n. */
bool zt_local_room(struct zt_yaml *r, size_t n, size_t max);
/* {80: 8080}; keys may be quoted. Memory is the reader's scratch. */
bool zt_local_ports(struct zt_yaml *r, const struct zt_port_map **out, unsigned *n);
/* A list of non-empty strings. */
bool zt_local_strings(struct zt_yaml *r, const char *const **out, uint16_t *n);
bool zt_local_gateway(struct zt_yaml *r, struct zt_gateway_ref *out);
/* The same, or null: *out stays as it is. */
bool zt_local_optional_gateway(struct zt_yaml *r, const struct zt_gateway_ref **out);
bool zt_local_ip(struct zt_yaml *r, struct zt_ip *out);
bool zt_local_cidr(struct zt_yaml *r, struct zt_cidr *out);
bool zt_local_u16(struct zt_yaml *r, uint16_t *out);
bool zt_local_healthy(struct zt_yaml *r, bool *out); /* Healthy | Unhealthy */
/* "ns/host" cut at the first slash; neither part is empty. Memory is the reader's scratch. */
bool zt_local_host_key(struct zt_yaml *r, const char *text, const char **ns, const char **hostname);

/* One attempt, without waiting for a writer to finish. cancel may be NULL. */
enum zt_err zt_local_load_once(const char *path, atomic_bool *cancel, struct zt_batch **out,
                               struct zt_local_info *info, struct zt_error *err);
/* Only hash and bytes of info. */
enum zt_err zt_local_hash(const char *path, atomic_bool *cancel, struct zt_local_info *info, struct zt_error *err);

#endif
