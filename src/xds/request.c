/* Requests: the node message, initial requests, ACK and NACK (spec/controlplane §2.1, §2.2, §2.4).
 * An initial request is written by hand: its versions may be forty thousand, and they lie in the
 * table of held names already. */
#include "xds_impl.h"

#include "xds.pb-c.h"
#include "zt/base/log.h"
#include "zt/base/map.h"
#include <jansson.h>
#include <string.h>

#define JSON_DEPTH_MAX 32
/* Versions have a limit of their own; the node comes from the mesh file and the environment. */
#define REQUEST_TEXT_MAX (64u << 20)
#define NACK_CODE 3 /* INVALID_ARGUMENT; istiod shows it */

typedef Google__Protobuf__Value pb_value;
typedef Google__Protobuf__Struct pb_struct;
typedef Google__Protobuf__Struct__FieldsEntry pb_entry;

/* protobuf-c has no const texts; it only reads them. */
static char *text_of(const char *s)
{
    return (char *)(uintptr_t)(s ? s : "");
}

/* ---- JSON to Value ---- */

static pb_value *value_of_json(struct zt_arena *a, const json_t *j, unsigned depth);

static pb_value *value_new(struct zt_arena *a)
{
    pb_value *v = zt_arena_take(a, 1, sizeof *v);
    if (v)
        google__protobuf__value__init(v);
    return v;
}

static bool fill_struct(struct zt_arena *a, const json_t *j, pb_struct *s, unsigned depth)
{
    json_t *object = (json_t *)(uintptr_t)j; /* iterating changes nothing */
    google__protobuf__struct__init(s);
    s->fields = zt_arena_take(a, json_object_size(j), sizeof *s->fields);
    if (!s->fields)
        return false;
    for (void *i = json_object_iter(object); i; i = json_object_iter_next(object, i)) {
        const char *key = json_object_iter_key(i);
        pb_entry *e = zt_arena_take(a, 1, sizeof *e);
        if (!e)
            return false;
        google__protobuf__struct__fields_entry__init(e);
        e->key = zt_arena_text(a, (const uint8_t *)key, strlen(key));
        e->value = value_of_json(a, json_object_iter_value(i), depth + 1);
        if (!e->key || !e->value)
            return false;
        s->fields[s->n_fields++] = e;
    }
    return true;
}

static bool fill_list(struct zt_arena *a, const json_t *j, Google__Protobuf__ListValue *l,
                      unsigned depth)
{
    google__protobuf__list_value__init(l);
    l->values = zt_arena_take(a, json_array_size(j), sizeof *l->values);
    if (!l->values)
        return false;
    for (size_t i = 0; i < json_array_size(j); i++) {
        pb_value *v = value_of_json(a, json_array_get(j, i), depth + 1);
        if (!v)
            return false;
        l->values[l->n_values++] = v;
    }
    return true;
}

/* NULL: too deep or too large. */
static pb_value *value_of_json(struct zt_arena *a, const json_t *j, unsigned depth)
{
    pb_value *v = depth < JSON_DEPTH_MAX ? value_new(a) : NULL;
    if (!v)
        return NULL;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE;
        v->struct_value = zt_arena_take(a, 1, sizeof *v->struct_value);
        return v->struct_value && fill_struct(a, j, v->struct_value, depth) ? v : NULL;
    case JSON_ARRAY:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE;
        v->list_value = zt_arena_take(a, 1, sizeof *v->list_value);
        return v->list_value && fill_list(a, j, v->list_value, depth) ? v : NULL;
    case JSON_STRING:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
        v->string_value =
            zt_arena_text(a, (const uint8_t *)json_string_value(j), json_string_length(j));
        return v->string_value ? v : NULL;
    case JSON_INTEGER:
    case JSON_REAL:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE;
        v->number_value = json_number_value(j);
        return v;
    case JSON_TRUE:
    case JSON_FALSE:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE;
        v->bool_value = json_is_true(j);
        return v;
    case JSON_NULL:
    default:
        v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE;
        return v;
    }
}

/* ---- node ---- */

/* Sets a key of the metadata; a later value replaces an earlier one. */
static void set_metadata(struct zt_arena *a, pb_struct *s, const char *key, pb_value *value)
{
    for (size_t i = 0; i < s->n_fields; i++) {
        if (strcmp(s->fields[i]->key, key) == 0) {
            s->fields[i]->value = value;
            return;
        }
    }
    pb_entry *e = zt_arena_take(a, 1, sizeof *e);
    google__protobuf__struct__fields_entry__init(e);
    e->key = text_of(key);
    e->value = value;
    s->fields[s->n_fields++] = e;
}

static void set_text(struct zt_arena *a, pb_struct *s, const char *key, const char *text)
{
    pb_value *v = value_new(a);
    v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
    v->string_value = text_of(text);
    set_metadata(a, s, key, v);
}

static void set_json(struct zt_arena *a, pb_struct *s, const char *key, const char *text)
{
    json_error_t why;
    json_t *j = json_loads(text, JSON_DECODE_ANY, &why);
    pb_value *v = j ? value_of_json(a, j, 0) : NULL;
    if (v)
        set_metadata(a, s, key, v);
    else
        zt_log_error("xds::client", "failed to parse %s=%s", key, text);
    json_decref(j);
}

/* The arena's limit is far above what an environment can hold. */
static void fill_metadata(struct zt_arena *a, const struct zt_xds_config *c, pb_struct *s)
{
    google__protobuf__struct__init(s);
    s->fields = zt_arena_take(a, 4u + c->n_metadata + c->n_metadata_json, sizeof *s->fields);
    set_text(a, s, "NAME", c->pod_name);
    set_text(a, s, "NAMESPACE", c->pod_namespace);
    set_text(a, s, "INSTANCE_IPS", c->instance_ip);
    set_text(a, s, "NODE_NAME", c->node_name);
    for (unsigned i = 0; i < c->n_metadata; i++)
        set_text(a, s, c->metadata[i].key, c->metadata[i].value);
    for (unsigned i = 0; i < c->n_metadata_json; i++)
        set_json(a, s, c->metadata_json[i].key, c->metadata_json[i].value);
}

uint8_t *zt_xds_node_pack(const struct zt_xds_config *c, size_t *n)
{
    struct zt_arena a;
    struct zt_str id;
    pb_struct metadata;
    Envoy__Service__Discovery__V3__Node node = ENVOY__SERVICE__DISCOVERY__V3__NODE__INIT;
    zt_arena_init(&a);
    zt_str_init(&id, 4096);
    fill_metadata(&a, c, &metadata);
    const char *ns = text_of(c->pod_namespace);
    /* The domain is part of the form of the id, not the cluster's. */
    zt_str_addf(&id, "ztunnel~%s~%s.%s~%s.svc.cluster.local", text_of(c->instance_ip),
                text_of(c->pod_name), ns, ns);
    node.id = text_of(zt_str_cstr(&id));
    node.metadata = &metadata;
    *n = envoy__service__discovery__v3__node__get_packed_size(&node);
    uint8_t *bytes = zt_zalloc(*n + 1);
    envoy__service__discovery__v3__node__pack(&node, bytes);
    zt_str_fini(&id);
    zt_arena_fini(&a);
    return bytes;
}

/* ---- requests ---- */

static void add_bytes_field(struct zt_str *s, unsigned number, const void *bytes, size_t n)
{
    zt_str_add_char(s, (char)(number << 3 | 2));
    size_t v = n;
    for (; v >= 0x80; v >>= 7)
        zt_str_add_char(s, (char)(uint8_t)(v | 0x80));
    zt_str_add_char(s, (char)v);
    zt_str_add_n(s, bytes, n);
}

uint8_t *zt_xds_initial_pack(const uint8_t *node, size_t n_node, enum zt_xds_type type,
                             const struct zt_xds_held *held, size_t *n)
{
    struct zt_str s;
    const char *url = zt_xds_type_url(type);
    zt_str_init(&s, REQUEST_TEXT_MAX);
    add_bytes_field(&s, 1, node, n_node);
    add_bytes_field(&s, 2, url, strlen(url));
    if (held)
        zt_xds_held_write(held, &s);
    ZT_ASSERT(!s.overflow);
    *n = s.len;
    return (uint8_t *)zt_str_take(&s);
}

uint8_t *zt_xds_answer_pack(const char *type_url, const char *nonce, const char *nack, size_t *n)
{
    Envoy__Service__Discovery__V3__DeltaDiscoveryRequest r =
        ENVOY__SERVICE__DISCOVERY__V3__DELTA_DISCOVERY_REQUEST__INIT;
    Envoy__Service__Discovery__V3__Status status = ENVOY__SERVICE__DISCOVERY__V3__STATUS__INIT;
    r.type_url = text_of(type_url);
    r.response_nonce = text_of(nonce);
    if (nack) {
        status.code = NACK_CODE;
        status.message = text_of(nack);
        r.error_detail = &status;
    }
    *n = envoy__service__discovery__v3__delta_discovery_request__get_packed_size(&r);
    uint8_t *bytes = zt_zalloc(*n + 1);
    envoy__service__discovery__v3__delta_discovery_request__pack(&r, bytes);
    return bytes;
}
