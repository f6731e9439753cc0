/* Protobuf's wire form, walked without unpacking.
 *
 * Invariants: nothing is read behind the end; a length is compared with what is left before it is
 * used; groups (deprecated before this protocol existed) are malformed. */
#include "xds_impl.h"

#include "zt/base/str.h"

#define VARINT_BYTES_MAX 10
#define DEPTH_MAX 16 /* nested messages; ours have eight */

enum { WIRE_VARINT = 0, WIRE_EIGHT = 1, WIRE_BYTES = 2, WIRE_FOUR = 5 };

/* Where the bytes come from: a piece, or a message in slices. */
static int next_byte(struct zt_wire *w)
{
    return w->at < w->end ? *w->at++ : -1;
}

#define READ_VARINT(name, source_t, byte_fn)                                                       \
    static bool name(source_t *source, uint64_t *out)                                              \
    {                                                                                              \
        uint64_t v = 0;                                                                            \
        for (unsigned i = 0; i < VARINT_BYTES_MAX; i++) {                                          \
            int byte = byte_fn(source);                                                            \
            if (byte < 0)                                                                          \
                return false;                                                                      \
            v |= (uint64_t)(byte & 0x7f) << (7 * i);                                               \
            if (!(byte & 0x80)) {                                                                  \
                *out = v;                                                                          \
                return true;                                                                       \
            }                                                                                      \
        }                                                                                          \
        return false;                                                                              \
    }
READ_VARINT(piece_varint, struct zt_wire, next_byte)
READ_VARINT(message_varint, struct zt_rpc_reader, zt_rpc_reader_byte)

/* Splits the key; false for what no field can have. */
static bool set_key(struct zt_wire_field *f, uint64_t key)
{
    if (key > UINT32_MAX || key >> 3 == 0)
        return false;
    *f = (struct zt_wire_field){.number = (uint32_t)(key >> 3), .type = (uint8_t)(key & 7)};
    return true;
}

bool zt_wire_next(struct zt_wire *w, struct zt_wire_field *f, bool *bad)
{
    uint64_t key;
    *bad = false;
    if (w->at == w->end)
        return false;
    *bad = true;
    if (!piece_varint(w, &key) || !set_key(f, key))
        return false;
    size_t left = (size_t)(w->end - w->at), n = 0;
    switch (f->type) {
    case WIRE_VARINT:
        if (!piece_varint(w, &f->value))
            return false;
        break;
    case WIRE_BYTES:
        if (!piece_varint(w, &f->value) || f->value > (uint64_t)(w->end - w->at))
            return false;
        f->data = w->at;
        w->at += f->value;
        break;
    case WIRE_EIGHT:
    case WIRE_FOUR:
        n = f->type == WIRE_EIGHT ? 8 : 4;
        if (left < n)
            return false;
        w->at += n;
        break;
    default:
        return false;
    }
    *bad = false;
    return true;
}

bool zt_wire_next_of_message(struct zt_rpc_reader *r, struct zt_wire_field *f, bool *bad)
{
    uint64_t key;
    *bad = false;
    if (r->left == 0)
        return false;
    *bad = true;
    if (!message_varint(r, &key) || !set_key(f, key))
        return false;
    switch (f->type) {
    case WIRE_VARINT:
        if (!message_varint(r, &f->value))
            return false;
        break;
    case WIRE_BYTES:
        if (!message_varint(r, &f->value) || f->value > r->left)
            return false;
        break;
    case WIRE_EIGHT:
    case WIRE_FOUR:
        if (!zt_rpc_reader_skip(r, f->type == WIRE_EIGHT ? 8 : 4))
            return false;
        break;
    default:
        return false;
    }
    *bad = false;
    return true;
}

bool zt_wire_is_text(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (p[i] >= 0x01 && p[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t code;
        size_t len = zt_utf8_next((const char *)p + i, n - i, &code);
        if (len == 0 || code == 0)
            return false;
        i += len;
    }
    return true;
}

static enum zt_err check(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                         unsigned depth, struct zt_error *err)
{
    struct zt_wire w = {p, p + n};
    struct zt_wire_field f;
    bool bad;
    if (depth == DEPTH_MAX)
        return zt_error_set(err, ZT_INVALID, "messages are nested too deeply");
    while (zt_wire_next(&w, &f, &bad)) {
        if (f.type != WIRE_BYTES)
            continue;
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(d, f.number);
        if (!field)
            continue;
        if (field->type == PROTOBUF_C_TYPE_STRING && !zt_wire_is_text(f.data, f.value))
            return zt_error_set(err, ZT_INVALID, "%s.%s: not UTF-8 text without NUL", d->short_name,
                                field->name);
        if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
            enum zt_err e = check(field->descriptor, f.data, f.value, depth + 1, err);
            if (e != ZT_OK)
                return e;
        }
    }
    return bad ? zt_error_set(err, ZT_INVALID, "malformed bytes in %s", d->short_name) : ZT_OK;
}

enum zt_err zt_wire_check(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                          struct zt_error *err)
{
    return check(d, p, n, 0, err);
}
