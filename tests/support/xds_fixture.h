/* Discovery responses for tests: written field by field, so that they can be wrong at any level,
 * and turned into messages as the gRPC library would hold them. Thread: the test's. */
#ifndef ZT_TESTS_XDS_FIXTURE_H
#define ZT_TESTS_XDS_FIXTURE_H

#include "authorization.pb-c.h"
#include "workload.pb-c.h"
#include "xds.pb-c.h"
#include "zt/base/str.h"
#include "zt/rpc/rpc.h"

/* s is initialised; zt_str_fini it. */
void xds_response_init(struct zt_str *s, const char *type_url, const char *nonce);
/* Appends a field of bytes. */
void xds_put_bytes(struct zt_str *s, unsigned number, const void *bytes, size_t n);
/* A resource around n payload bytes; payload NULL: without an Any. */
void xds_response_raw(struct zt_str *s, const char *name, const char *version, const void *payload,
                      size_t n);
/* A resource around a message of proto/workload.proto or proto/authorization.proto. */
void xds_response_add(struct zt_str *s, const char *name, const char *version,
                      const ProtobufCMessage *payload);
void xds_response_address(struct zt_str *s, const char *version, Istio__Workload__Workload *w);
void xds_response_service(struct zt_str *s, const char *version, Istio__Workload__Service *v);
void xds_response_policy(struct zt_str *s, Istio__Security__Authorization *p);
void xds_response_remove(struct zt_str *s, const char *name);
/* A workload uid at ip (four numbers), endpoint of service ("ns/host", NULL = none) at 80 -> 8080.
 */
void xds_response_pod(struct zt_str *s, const char *uid, const char *version, const uint8_t ip[4],
                      const char *service);
/* A service with a VIP and port 80. */
void xds_response_vip(struct zt_str *s, const char *ns, const char *host, const char *version,
                      const uint8_t ip[4]);
/* A policy "ns/name" that denies this port. */
void xds_response_deny_port(struct zt_str *s, const char *ns, const char *name, uint32_t port);

/* The bytes as a message of slices of slice_bytes each (0 = one slice). Returns owned. */
struct zt_rpc_message *xds_message(const void *bytes, size_t n, size_t slice_bytes);
/* Messages of xds_message not freed yet. */
unsigned xds_messages_alive(void);

#endif
