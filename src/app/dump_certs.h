/* The certificates of the node as they were when asked for: for the dump and for status. Private to app. Thread: control. */
#ifndef ZT_APP_DUMP_CERTS_H
#define ZT_APP_DUMP_CERTS_H

#include "zt/base/json.h"
#include "zt/secrets/secrets.h"

struct zt_dump_certs;

/* secrets NULL: none. Returns owned. */
struct zt_dump_certs *zt_dump_certs_new(struct zt_secrets *secrets);
void zt_dump_certs_free(struct zt_dump_certs *c); /* NULL is legal */
/* Writes the i-th entry in the form of spec/interfaces §4.4; false beyond the last. */
bool zt_dump_certs_write(const struct zt_dump_certs *c, size_t i, struct zt_json *j);
/* The short form of status: identity, state, validity. */
bool zt_dump_certs_write_short(const struct zt_dump_certs *c, size_t i, struct zt_json *j);

#endif
