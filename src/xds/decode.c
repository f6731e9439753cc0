/* A DeltaDiscoveryResponse over its bytes (spec/controlplane §3.2): the outer message is walked in
 * its slices, a Resource is looked at in one piece, its payload is unpacked by protobuf-c into the
 * arena. So the memory beyond the message itself is that of one resource. */
#include "xds_impl.h"

#include "zt/base/mem.h"
#include <string.h>

enum { RESPONSE_RESOURCES = 2, RESPONSE_TYPE_URL = 4, RESPONSE_NONCE = 5, RESPONSE_REMOVED = 6 };
enum { RESOURCE_VERSION = 1, RESOURCE_ANY = 2, RESOURCE_NAME = 3 };
enum { ANY_VALUE = 2 };
enum { WIRE_BYTES = 2 };

const char *zt_xds_type_url(enum zt_xds_type t)
{
    static const char *const urls[] = {ZT_XDS_TYPE_ADDRESS, ZT_XDS_TYPE_AUTHORIZATION};
    return t < ZT_XDS_TYPES ? urls[t] : "unknown";
}

/* ---- the outer message ---- */

/* Replaces *text by the field's; it is sent back, so it must be text. */
static bool read_text(struct zt_rpc_reader *r, size_t n, char **text)
{
    if (n > ZT_XDS_NAME_BYTES_MAX)
        return false;
    const uint8_t *p = zt_rpc_reader_take(r, n);
    if (!p || !zt_wire_is_text(p, n))
        return false;
    zt_free(*text);
    *text = zt_strndup((const char *)p, n);
    return true;
}

static bool read_header_field(struct zt_rpc_reader *r, const struct zt_wire_field *f,
                              struct zt_xds_header *h)
{
    if (f->type != WIRE_BYTES)
        return f->number > RESPONSE_REMOVED || f->number == 3; /* ours are all bytes */
    switch (f->number) {
    case RESPONSE_TYPE_URL:
        return read_text(r, f->value, &h->type_url);
    case RESPONSE_NONCE:
        return read_text(r, f->value, &h->nonce);
    case RESPONSE_RESOURCES:
        h->n_resources++;
        break;
    case RESPONSE_REMOVED:
        h->n_removed++;
        break;
    default:
        break;
    }
    return zt_rpc_reader_skip(r, f->value);
}

enum zt_err zt_xds_header_read(const struct zt_rpc_message *m, struct zt_xds_header *out,
                               struct zt_error *err)
{
    struct zt_rpc_reader r;
    struct zt_wire_field f;
    bool bad, ok = true;
    *out = (struct zt_xds_header){.type = ZT_XDS_UNKNOWN, .bytes = zt_rpc_message_bytes(m)};
    zt_rpc_reader_init(&r, m);
    while (ok && zt_wire_next_of_message(&r, &f, &bad))
        ok = read_header_field(&r, &f, out);
    zt_rpc_reader_fini(&r);
    if (!ok || bad) {
        zt_xds_header_fini(out);
        return zt_error_set(err, ZT_INVALID, "failed to decode DeltaDiscoveryResponse");
    }
    if (!out->type_url)
        out->type_url = zt_strdup("");
    if (!out->nonce)
        out->nonce = zt_strdup("");
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES; t++)
        if (strcmp(out->type_url, zt_xds_type_url(t)) == 0)
            out->type = t;
    return ZT_OK;
}

void zt_xds_header_fini(struct zt_xds_header *h)
{
    zt_free(h->type_url);
    zt_free(h->nonce);
    *h = (struct zt_xds_header){.type = ZT_XDS_UNKNOWN};
}

/* ---- a resource ---- */

static enum zt_err read_any(struct zt_xds_resource *out, const uint8_t *p, size_t n,
                            struct zt_error *err)
{
    struct zt_wire w = {p, p + n};
    struct zt_wire_field f;
    bool bad;
    out->value = p; /* an Any without a value holds an empty message */
    out->n_value = 0;
    while (zt_wire_next(&w, &f, &bad)) {
        if (f.number == ANY_VALUE && f.type == WIRE_BYTES) {
            out->value = f.data;
            out->n_value = f.value;
        }
    }
    return bad ? zt_error_set(err, ZT_INVALID, "decode: malformed bytes in Any") : ZT_OK;
}

static const char *text_of(struct zt_arena *a, const struct zt_wire_field *f)
{
    if (f->type != WIRE_BYTES || f->value > ZT_XDS_NAME_BYTES_MAX ||
        !zt_wire_is_text(f->data, f->value))
        return NULL;
    return zt_arena_text(a, f->data, f->value);
}

enum zt_err zt_xds_resource_read(struct zt_arena *a, const uint8_t *p, size_t n,
                                 struct zt_xds_resource *out, struct zt_error *err)
{
    struct zt_wire w = {p, p + n};
    struct zt_wire_field f;
    bool bad, has_name = true, has_version = true;
    enum zt_err e = ZT_OK;
    *out = (struct zt_xds_resource){.name = "", .version = ""};
    while (zt_wire_next(&w, &f, &bad)) {
        const char *text;
        if (f.number == RESOURCE_NAME) {
            text = text_of(a, &f);
            has_name = text;
            out->name = text ? text : "";
        } else if (f.number == RESOURCE_VERSION) {
            text = text_of(a, &f);
            has_version = text;
            out->version = text ? text : "";
        } else if (f.number == RESOURCE_ANY && f.type == WIRE_BYTES && e == ZT_OK) {
            e = read_any(out, f.data, f.value, err);
        }
    }
    if (e != ZT_OK)
        return e;
    if (bad)
        return zt_error_set(err, ZT_INVALID, "decode: malformed bytes in Resource");
    if (!has_name || !*out->name)
        return zt_error_set(err, ZT_INVALID, "resource without a usable name");
    if (!has_version)
        return zt_error_set(err, ZT_INVALID, "resource without a usable version");
    if (!out->value)
        return zt_error_set(err, ZT_INVALID, "XDS payload without resource");
    return ZT_OK;
}

/* ---- its payload ---- */

/* NULL with err set. */
static void *unpack(struct zt_arena *a, const ProtobufCMessageDescriptor *d,
                    const struct zt_xds_resource *r, struct zt_error *err)
{
    if (zt_wire_check(d, r->value, r->n_value, err) != ZT_OK) {
        zt_error_wrap(err, "decode");
        return NULL;
    }
    void *m = protobuf_c_message_unpack(d, &a->pb, r->n_value, r->value);
    if (!m && a->exhausted)
        zt_error_set(err, ZT_INVALID, "decode: resource too large");
    else if (!m)
        zt_error_set(err, ZT_INVALID, "decode: malformed %s", d->short_name);
    return m;
}

static enum zt_err convert_address(struct zt_arena *a, const Istio__Workload__Address *in,
                                   struct zt_xds_record *out, struct zt_error *err)
{
    switch (in->type_case) {
    case ISTIO__WORKLOAD__ADDRESS__TYPE_WORKLOAD:
        return zt_xds_workload(a, in->workload, &out->workload, err);
    case ISTIO__WORKLOAD__ADDRESS__TYPE_SERVICE:
        return zt_xds_service(a, in->service, &out->service, err);
    default:
        return zt_error_set(err, ZT_INVALID, "unknown address type");
    }
}

enum zt_err zt_xds_convert(struct zt_arena *a, enum zt_xds_type type,
                           const struct zt_xds_resource *r, struct zt_xds_record *out,
                           bool *decoding, struct zt_error *err)
{
    const ProtobufCMessageDescriptor *d = type == ZT_XDS_ADDRESS
                                              ? &istio__workload__address__descriptor
                                              : &istio__security__authorization__descriptor;
    *out = (struct zt_xds_record){0};
    *decoding = true;
    void *m = unpack(a, d, r, err);
    if (!m)
        return ZT_INVALID;
    *decoding = false;
    return type == ZT_XDS_ADDRESS ? convert_address(a, m, out, err)
                                  : zt_xds_policy(a, r->name, m, &out->policy, err);
}
