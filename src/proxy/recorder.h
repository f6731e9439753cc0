/* A worker's end of record.h. Private to src/proxy. Thread: worker. */
#ifndef ZT_PROXY_RECORDER_H
#define ZT_PROXY_RECORDER_H

#include "zt/base/err.h"
#include <stdarg.h>
#include <stdint.h>

struct zt_conn;
struct zt_pod;
struct zt_denial;
struct zt_trace_event;

struct zt_recorder {
    struct zt_denial *denials; /* ZT_DENIALS_MAX, from the first denial on */
    uint64_t n_denials;        /* since the beginning: the next goes to this, modulo the ring */
    char *traced[8];           /* ZT_TRACE_PODS_MAX; "namespace/name" or NULL, by slot */
    unsigned n_traced;
    struct zt_trace_event *events; /* ZT_TRACE_EVENTS_MAX, while a pod is traced */
    uint64_t n_events;
};

void zt_recorder_fini(struct zt_recorder *r);
/* A pod begins: is it traced? Sets pod->trace_slot. */
void zt_recorder_pod(struct zt_pod *pod);
void zt_record_denial(const struct zt_conn *c, enum zt_err code, const struct zt_error *err);
/* Call zt_trace, which costs one test when the pod is not traced. */
__attribute__((format(printf, 3, 4))) void zt_record_event(const struct zt_pod *pod, uint64_t conn, const char *fmt, ...);
#define zt_trace(c, ...)                                                                                                \
    do {                                                                                                                \
        if ((c)->pod->trace_slot)                                                                                       \
            zt_record_event((c)->pod, (c)->id, __VA_ARGS__);                                                            \
    } while (0)

#endif
