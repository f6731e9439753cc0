/* What the files of this folder share: the arena, the wire walker, the conversions, the table of
 * held names, the mirror of the server's state, and the requests. None of it knows a loop or a
 * thread; delta.c and courier.c do. */
#ifndef ZT_XDS_XDS_IMPL_H
#define ZT_XDS_XDS_IMPL_H

#include "authorization.pb-c.h"
#include "workload.pb-c.h"
#include "zt/base/str.h"
#include "zt/rpc/rpc.h"
#include "zt/state/store.h"
#include "zt/xds/delta.h"

#define ZT_XDS_RESOURCE_BYTES_MAX (16u << 20) /* of one resource; longer ones are rejected */
#define ZT_XDS_ARENA_BYTES_MAX (128u << 20)   /* what unpacking and converting one may take */
#define ZT_XDS_NAME_BYTES_MAX 2048            /* of a resource's name or version; also of a nonce */
#define ZT_XDS_REQUEST_BYTES_MAX (7u << 19)   /* 3.5 MiB: istiod refuses 4 MiB */
#define ZT_XDS_NACK_BYTES_MAX 65536           /* of the text of a NACK */
#define ZT_XDS_LIST_MAX 65535                 /* entries of any list of a record */

/* ---- arena.c: memory for one resource, given back whole ---- */

struct zt_arena_chunk;
struct zt_arena {
    struct zt_arena_chunk *chunks;
    size_t used;           /* bytes handed out since reset */
    bool exhausted;        /* the limit was reached */
    ProtobufCAllocator pb; /* the same memory as protobuf-c asks for it */
};
void zt_arena_init(struct zt_arena *a);
void zt_arena_fini(struct zt_arena *a);
/* Everything handed out is gone; one chunk is kept. */
void zt_arena_reset(struct zt_arena *a);
/* Not zeroed. Returns borrowed (until reset); NULL beyond ZT_XDS_ARENA_BYTES_MAX. */
void *zt_arena_take(struct zt_arena *a, size_t n, size_t size);
/* NUL-terminated copy; NULL when the arena is exhausted. */
char *zt_arena_text(struct zt_arena *a, const uint8_t *bytes, size_t n);

/* ---- wire.c: protobuf's wire form ---- */

struct zt_wire { /* bytes in one piece; borrowed */
    const uint8_t *at, *end;
};
struct zt_wire_field {
    uint32_t number;
    uint8_t type;        /* wire type: 0 varint, 1 eight bytes, 2 bytes, 5 four bytes */
    uint64_t value;      /* of a varint; of bytes: their number */
    const uint8_t *data; /* of bytes, in one piece only; borrowed */
};
/* The next field. False at the end and on malformed bytes: *bad tells. */
bool zt_wire_next(struct zt_wire *w, struct zt_wire_field *f, bool *bad);
/* The same over a message in slices; bytes are left unread (take or skip f->value of them). */
bool zt_wire_next_of_message(struct zt_rpc_reader *r, struct zt_wire_field *f, bool *bad);
/* Valid UTF-8 without NUL. */
bool zt_wire_is_text(const uint8_t *p, size_t n);
/* Are all string fields of an encoded message text? protobuf-c ends strings at NUL and does not
 * look at UTF-8. Errors: ZT_INVALID naming the field. */
enum zt_err zt_wire_check(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                          struct zt_error *err);

/* ---- workload.c, service.c, policy.c: conversions (spec/controlplane §4.2 to §4.4) ----
 * Lists and texts lie in the arena; the record is a copy. Errors: ZT_INVALID with the text of the
 * reject. */
enum zt_err zt_xds_workload(struct zt_arena *a, const Istio__Workload__Workload *in,
                            struct zt_workload **out, struct zt_error *err);
enum zt_err zt_xds_service(struct zt_arena *a, const Istio__Workload__Service *in,
                           struct zt_service **out, struct zt_error *err);
/* key: the resource's name. */
enum zt_err zt_xds_policy(struct zt_arena *a, const char *key,
                          const Istio__Security__Authorization *in, struct zt_policy **out,
                          struct zt_error *err);

/* fields.c: what several kinds share. All return false with err set. */
bool zt_xds_ip(const ProtobufCBinaryData *bytes, struct zt_ip *out, struct zt_error *err);
/* An address with a prefix length; an IPv4-mapped one becomes IPv4 with its prefix. */
bool zt_xds_cidr(const ProtobufCBinaryData *bytes, bool has_length, uint32_t length,
                 struct zt_cidr *out, struct zt_error *err);
/* ports: in the order of the message, the last of equal service ports wins. */
bool zt_xds_ports(struct zt_arena *a, Istio__Workload__Port *const *in, size_t n,
                  const struct zt_port_map **out, unsigned *n_out, struct zt_error *err);
bool zt_xds_gateway(const Istio__Workload__GatewayAddress *in, struct zt_gateway_ref *out,
                    struct zt_error *err);
/* NULL stays NULL. */
bool zt_xds_optional_gateway(struct zt_arena *a, const Istio__Workload__GatewayAddress *in,
                             const struct zt_gateway_ref **out, struct zt_error *err);
bool zt_xds_port_fits(uint32_t port, struct zt_error *err);
bool zt_xds_list_fits(size_t n, const char *what, struct zt_error *err);
bool zt_xds_unknown_enum(int value, struct zt_error *err); /* always false */
bool zt_xds_no_memory(struct zt_error *err);               /* always false */

/* ---- decode.c: a DeltaDiscoveryResponse, resource by resource ---- */

enum zt_xds_type {
    ZT_XDS_ADDRESS,
    ZT_XDS_AUTHORIZATION,
    ZT_XDS_TYPES,
    ZT_XDS_UNKNOWN = ZT_XDS_TYPES
};
const char *zt_xds_type_url(enum zt_xds_type t);

struct zt_xds_header { /* texts are owned */
    enum zt_xds_type type;
    char *type_url, *nonce;
    size_t n_resources, n_removed, bytes; /* bytes: of the message */
};
/* Walks the whole outer message once without looking into resources. Errors: ZT_INVALID: the
 * message cannot be walked, *out is empty. */
enum zt_err zt_xds_header_read(const struct zt_rpc_message *m, struct zt_xds_header *out,
                               struct zt_error *err);
void zt_xds_header_fini(struct zt_xds_header *h);

struct zt_xds_resource {
    const char *name, *version; /* in the arena; name never NULL, for messages at least */
    const uint8_t *value;       /* the Any's value; NULL: there is none */
    size_t n_value;
};
/* Takes a Resource apart. Errors: ZT_INVALID; out->name is set even then. */
enum zt_err zt_xds_resource_read(struct zt_arena *a, const uint8_t *p, size_t n,
                                 struct zt_xds_resource *out, struct zt_error *err);

/* A resource as records: one of them is set on success, owned. */
struct zt_xds_record {
    struct zt_workload *workload;
    struct zt_service *service;
    struct zt_policy *policy;
};
/* decoding tells a payload that does not decode from one that is refused. */
enum zt_err zt_xds_convert(struct zt_arena *a, enum zt_xds_type type,
                           const struct zt_xds_resource *r, struct zt_xds_record *out,
                           bool *decoding, struct zt_error *err);

/* ---- held.c: resource name -> version last accepted ---- */

struct zt_xds_held_entry;
struct zt_xds_held {
    struct zt_xds_held_entry **slots; /* open addressing, a power of two */
    size_t n, n_slots;
    size_t wire_bytes; /* of all entries as initial_resource_versions */
};
void zt_xds_held_fini(struct zt_xds_held *h);
/* version NULL: only marks a name that is there, and leaves others out. */
void zt_xds_held_put(struct zt_xds_held *h, const char *name, const char *version, uint32_t mark);
bool zt_xds_held_has(const struct zt_xds_held *h, const char *name);
bool zt_xds_held_remove(struct zt_xds_held *h, const char *name);
/* Names whose mark is another one. Returns owned (zt_free the array; names are borrowed until they
 * are removed). */
const char **zt_xds_held_unmarked(const struct zt_xds_held *h, uint32_t mark, size_t *n);
/* Appends every entry as field initial_resource_versions of a request. */
void zt_xds_held_write(const struct zt_xds_held *h, struct zt_str *out);

/* ---- request.c: what goes to the server ---- */

/* The node message, packed: field `node` of a request. Returns owned bytes in *n. */
uint8_t *zt_xds_node_pack(const struct zt_xds_config *c, size_t *n);
/* An initial wildcard request; held NULL: no versions. Returns owned, *n bytes. */
uint8_t *zt_xds_initial_pack(const uint8_t *node, size_t n_node, enum zt_xds_type type,
                             const struct zt_xds_held *held, size_t *n);
/* ACK (nack NULL) or NACK. Returns owned. */
uint8_t *zt_xds_answer_pack(const char *type_url, const char *nonce, const char *nack, size_t *n);

/* ---- mirror.c: the server's state in the store, and what we hold of it ---- */

struct zt_xds_mirror;
struct zt_xds_outcome { /* of one response; texts are owned */
    enum zt_xds_type type;
    char *type_url, *nonce;
    char *nack;                /* NULL = everything accepted */
    uint64_t n_bytes;          /* of the payloads */
    struct zt_error malformed; /* code not ZT_OK: not even a response */
};
void zt_xds_outcome_fini(struct zt_xds_outcome *o);
/* store: borrowed until free. */
struct zt_xds_mirror *zt_xds_mirror_new(struct zt_store *store);
void zt_xds_mirror_free(struct zt_xds_mirror *m);
/* The initial request of a type; the stream that sends it is the current one from here on.
 * without_versions: what the first response does not contain is removed when it has been applied.
 * That is also chosen when the request would be too long. Returns owned. *n_held: versions listed.
 */
uint8_t *zt_xds_mirror_initial(struct zt_xds_mirror *m, enum zt_xds_type type, const uint8_t *node,
                               size_t n_node, bool without_versions, size_t *n, size_t *n_held);
/* Begins a response; takes message. False: it was malformed and is over. */
bool zt_xds_mirror_begin(struct zt_xds_mirror *m, struct zt_rpc_message *message);
/* Does a piece of the work: at most ZT_BATCH_LOCK_RECORDS_MAX resources. *changes: what was applied
 * (fini it). False: the response is done. */
bool zt_xds_mirror_step(struct zt_xds_mirror *m, struct zt_store_changes *changes);
/* After the last step or a failed begin. */
void zt_xds_mirror_end(struct zt_xds_mirror *m, struct zt_xds_outcome *out);
/* Breaks off a response, if any. */
void zt_xds_mirror_drop(struct zt_xds_mirror *m);

/* ---- courier.c: between the control loop and the apply thread ---- */

struct zt_xds_courier;
struct zt_xds_initial { /* owned by the courier during the call */
    uint8_t *bytes[ZT_XDS_TYPES];
    size_t n[ZT_XDS_TYPES], n_held[ZT_XDS_TYPES];
};
/* All on control; arguments are borrowed during the call. */
struct zt_xds_courier_events {
    void (*on_initial)(void *arg, uint64_t stream, const struct zt_xds_initial *requests);
    void (*on_applied)(void *arg, const struct zt_store_changes *changes);
    void (*on_outcome)(void *arg, uint64_t stream, const struct zt_xds_outcome *outcome);
};
/* Takes node (n_node bytes). events, arg: borrowed until free. Returns owned. Thread: control, as
 * all of them. */
struct zt_xds_courier *zt_xds_courier_new(struct zt_loop *control, struct zt_loop *apply,
                                          struct zt_store *store, uint8_t *node, size_t n_node,
                                          const struct zt_xds_courier_events *events, void *arg);
/* Wants the initial requests of a stream, when what was given before is applied. */
void zt_xds_courier_ask(struct zt_xds_courier *c, uint64_t stream, bool without_versions);
/* Takes message. */
void zt_xds_courier_give(struct zt_xds_courier *c, uint64_t stream, struct zt_rpc_message *message);
/* Takes c. No event comes any more; the memory goes when both loops have run their messages. */
void zt_xds_courier_free(struct zt_xds_courier *c);

#endif
