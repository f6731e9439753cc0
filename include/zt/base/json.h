/* A streaming JSON writer: no tree, bounded memory. Output goes to a zt_str or is handed to a sink in pieces.
 * Reading JSON is jansson's job. Thread: owner.
 * pretty: two-space indent, "key": value, empty containers [] and {} (spec/interfaces §4.4). The caller writes keys in order. */
#ifndef ZT_BASE_JSON_H
#define ZT_BASE_JSON_H

#include "zt/base/str.h"

#define ZT_JSON_DEPTH_MAX 32

struct zt_json {
    struct zt_str *out; /* borrowed (until the writer is done) */
    bool pretty;
    uint8_t depth;
    bool used[ZT_JSON_DEPTH_MAX]; /* the container at this depth has a member */
    bool after_key;
};

void zt_json_init(struct zt_json *j, struct zt_str *out, bool pretty);
void zt_json_object(struct zt_json *j);
void zt_json_object_end(struct zt_json *j);
void zt_json_array(struct zt_json *j);
void zt_json_array_end(struct zt_json *j);
void zt_json_key(struct zt_json *j, const char *key);
void zt_json_str(struct zt_json *j, const char *value); /* NULL writes null; invalid UTF-8 becomes U+FFFD */
void zt_json_strn(struct zt_json *j, const char *value, size_t len);
void zt_json_u64(struct zt_json *j, uint64_t value);
void zt_json_bool(struct zt_json *j, bool value);
void zt_json_null(struct zt_json *j);
/* A member in one call. */
void zt_json_key_str(struct zt_json *j, const char *key, const char *value);
void zt_json_key_u64(struct zt_json *j, const char *key, uint64_t value);
void zt_json_key_bool(struct zt_json *j, const char *key, bool value);
/* Appends value with JSON escapes and without quotes. For log lines. */
void zt_json_escape(struct zt_str *out, const char *value, size_t len);

/* The JSON form of value's first character into out; not NUL-terminated. *used is how many bytes of value it stands for.
 * Returns the bytes written. len > 0. */
#define ZT_JSON_ESCAPE_MAX 8 /* bytes */
size_t zt_json_escape_next(const char *value, size_t len, char out[static ZT_JSON_ESCAPE_MAX],
                           size_t *used);

#endif
