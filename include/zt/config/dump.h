/* The configuration as people and istioctl see it: the `config` object of /config_dump (spec/interfaces §4.4) and the YAML of the
 * `running with config:` line. Both come from one walk, keys in ascending byte order. Tokens are never written; the value of an
 * `authorization` header is replaced. Thread: any. */
#ifndef ZT_CONFIG_DUMP_H
#define ZT_CONFIG_DUMP_H

#include "zt/base/json.h"
#include "zt/config/config.h"

/* Writes one object value. */
void zt_config_write_json(const struct zt_config *c, struct zt_json *j);
/* Appends YAML lines; the last one ends with a newline. Enum variants with data are tags ("!File path"). */
void zt_config_write_yaml(const struct zt_config *c, struct zt_str *out);

#endif
