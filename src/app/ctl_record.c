/* /v1/denials and /v1/trace: what the workers remember (zt/proxy/record.h), as JSON. */
#include "app/ctl_impl.h"
#include "zt/base/clock.h"
#include "zt/proxy/record.h"

#define DENIALS_DEFAULT 20

static void key_time(struct zt_json *j, int64_t time_us)
{
    char text[ZT_TIME_TEXT_MAX];
    zt_json_key_str(j, "time", zt_clock_format_us(time_us, text));
}

/* ---- denials ---- */

static void write_denial(struct zt_json *j, const struct zt_denial *d)
{
    char text[ZT_ADDR_TEXT_MAX];
    const struct zt_authz_why *why = &d->why;
    zt_json_object(j);
    if (why->clause)
        zt_json_key_u64(j, "clause", (uint64_t)why->clause);
    zt_json_key_str(j, "direction", d->inbound ? "inbound" : "outbound");
    zt_json_key_str(j, "dst", zt_addr_format(&d->dst, text));
    if (why->field)
        zt_json_key_str(j, "field", why->field);
    if (*d->identity)
        zt_json_key_str(j, "identity", d->identity);
    zt_json_key_bool(j, "late", d->late);
    zt_json_key_str(j, "pod", d->pod);
    if (*why->policy) {
        zt_json_key_str(j, "policy", why->policy);
        zt_json_key_str(j, "policyAction", why->denies ? "Deny" : "Allow");
    }
    zt_json_key_str(j, "reason", d->reason);
    if (why->rule)
        zt_json_key_u64(j, "rule", (uint64_t)why->rule);
    zt_json_key_str(j, "src", zt_addr_format(&d->src, text));
    key_time(j, d->time_us);
    zt_json_object_end(j);
}

static void on_denials(void *arg, const struct zt_denial *const *list, unsigned n)
{
    struct zt_http1_request *r = arg;
    struct zt_str body;
    struct zt_json j;
    if (!list) {
        zt_ctl_reply_error(r, 503, "shutting down");
        return;
    }
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, true);
    zt_json_array(&j);
    for (unsigned i = 0; i < n; i++)
        write_denial(&j, list[i]);
    zt_json_array_end(&j);
    zt_ctl_reply_json(r, &body);
}

void zt_ctl_on_denials(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    unsigned long n;
    if (zt_ctl_number(r, "n", DENIALS_DEFAULT, ZT_DENIALS_MAX, &n))
        zt_proxy_denials(sources->state.proxy, (unsigned)n, on_denials, r);
}

/* ---- traces ---- */

static void on_trace(void *arg, const struct zt_trace *trace)
{
    struct zt_http1_request *r = arg;
    struct zt_str body;
    struct zt_json j;
    if (!trace) {
        zt_ctl_reply_error(r, 503, "shutting down");
        return;
    }
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, true);
    zt_json_object(&j);
    zt_json_key(&j, "events");
    zt_json_array(&j);
    for (unsigned i = 0; i < trace->n_events; i++) {
        zt_json_object(&j);
        zt_json_key_u64(&j, "connection", trace->events[i]->conn);
        zt_json_key_str(&j, "event", trace->events[i]->text);
        key_time(&j, trace->events[i]->time_us);
        zt_json_key_u64(&j, "timeUs", (uint64_t)trace->events[i]->time_us);
        zt_json_object_end(&j);
    }
    zt_json_array_end(&j);
    zt_json_key_u64(&j, "lost", trace->n_lost);
    zt_json_key_bool(&j, "on", trace->on);
    zt_json_object_end(&j);
    zt_ctl_reply_json(r, &body);
}

void zt_ctl_on_trace(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    const char *pod = zt_http1_request_query(r, "pod");
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_trace_op op = ZT_TRACE_READ;
    if (zt_http1_request_method(r) == ZT_HTTP1_POST)
        op = zt_http1_request_query(r, "stop") ? ZT_TRACE_STOP : ZT_TRACE_START;
    if (zt_proxy_trace(sources->state.proxy, pod ? pod : "", op, on_trace, r, &err) != ZT_OK)
        zt_ctl_reply_error(r, err.code == ZT_LIMIT ? 503 : 400, "%s", err.text);
}
