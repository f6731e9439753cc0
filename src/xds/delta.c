/* The ADS stream from control's side (spec/controlplane §1.5, §2.2 to §2.4, §2.8).
 *
 *   IDLE --start--> PREPARING --requests are written--> OPEN --first response--> ESTABLISHED
 *                      ^  |                               |                          |
 *                      |  +---- cannot be opened ---------+---- status, bad bytes ---+
 *                      +------------- timer -------- WAITING <-----------------------+
 *
 * Invariants: there is a call in OPEN and ESTABLISHED only; at most one response is being applied,
 * and the next one is asked for when it is done; what comes back for an older stream is not
 * answered. A type leaves `missing` with its first ACK and never comes back. */
#include "xds_impl.h"

#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include <string.h>

#define SCOPE "xds::client"

enum state { IDLE, PREPARING, OPEN, ESTABLISHED, WAITING };

/* Why a stream ended, as the metric says it (spec/interfaces §6.2). */
enum end { END_CONNECTION_ERROR, END_ERROR, END_RECONNECT, END_COMPLETE, ENDS };
static const char *const end_names[ENDS] = {"ConnectionError", "Error", "Reconnect", "Complete"};

struct zt_xds {
    struct zt_loop *control;
    const struct zt_xds_transport *transport;
    struct zt_rpc_channel *channel;
    const struct zt_xds_events *events;
    void *arg;
    struct zt_xds_courier *courier;
    enum state state;
    uint64_t stream; /* of the attempt; also in the log */
    struct zt_rpc_call *call;
    uint64_t backoff_ms;
    uint64_t heard_ms; /* when the last response came; before the first: when we began */
    bool without_versions; /* the server found the last initial request too long */
    unsigned missing;      /* bit per type without an ACK */
    ev_timer timer;
    struct zt_metric_series *terminations[ENDS];
    struct zt_metric_series *messages[ZT_XDS_TYPES + 1], *bytes[ZT_XDS_TYPES + 1];
    struct zt_metrics_shard *shard;
};

const struct zt_xds_transport zt_xds_over_rpc = {
    .open = zt_rpc_stream_open,
    .send = zt_rpc_call_send,
    .next = zt_rpc_call_next,
    .free = zt_rpc_call_free,
};

static void prepare(struct zt_xds *x);

/* ---- metrics ---- */

static const char *const reason_label[] = {"reason"};
static const char *const url_label[] = {"url"};
static const struct zt_metric_family family_terminations = {
    .name = "istio_xds_connection_terminations",
    .help = "The total number of completed connections to xds server (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = reason_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_messages = {
    .name = "istio_xds_message",
    .help = "The total number of messages received (unstable).",
    .type = ZT_METRIC_COUNTER,
    .labels = url_label,
    .n_labels = 1,
};
static const struct zt_metric_family family_bytes = {
    .name = "istio_xds_message_bytes",
    .help = "The total number of bytes received (unstable).",
    .unit = "bytes",
    .type = ZT_METRIC_COUNTER,
    .labels = url_label,
    .n_labels = 1,
};

void zt_xds_register_metrics(struct zt_metrics *m)
{
    zt_metrics_register(m, &family_terminations);
    zt_metrics_register(m, &family_messages);
    zt_metrics_register(m, &family_bytes);
}

/* A series appears with its first event. */
static void count(struct zt_xds *x, struct zt_metric_series **series,
                  const struct zt_metric_family *family, const char *label, uint64_t n)
{
    if (!*series)
        *series = zt_metric_series_get(x->shard, family, &label, 1);
    zt_metric_add(*series, n);
}

static void count_end(struct zt_xds *x, enum end end)
{
    count(x, &x->terminations[end], &family_terminations, end_names[end], 1);
}

/* The types that we know; others share one label: it is the server's text. */
static void count_message(struct zt_xds *x, const struct zt_xds_outcome *o)
{
    const char *url = zt_xds_type_url(o->type);
    count(x, &x->messages[o->type], &family_messages, url, 1);
    count(x, &x->bytes[o->type], &family_bytes, url, o->n_bytes);
}

/* ---- log ---- */

static void begin_line(const struct zt_xds *x, struct zt_log_line *l, enum zt_log_level level,
                       const char *message)
{
    char id[24];
    zt_fmt(id, sizeof id, "%llu", (unsigned long long)x->stream);
    zt_log_begin(l, level, SCOPE, message);
    zt_log_span(l, "xds", "id", id);
}

static void log_plain(const struct zt_xds *x, enum zt_log_level level, const char *message)
{
    struct zt_log_line l;
    if (!zt_log_on(level, SCOPE))
        return;
    begin_line(x, &l, level, message);
    zt_log_end(&l);
}

static void log_initial(const struct zt_xds *x, enum zt_xds_type type, size_t n_held)
{
    struct zt_log_line l;
    if (!zt_log_on(ZT_LOG_DEBUG, SCOPE))
        return;
    begin_line(x, &l, ZT_LOG_DEBUG, "sending initial request");
    zt_log_u64(&l, "resources", n_held);
    zt_log_str(&l, "type_url", zt_xds_type_url(type));
    zt_log_end(&l);
}

static void log_answer(const struct zt_xds *x, const struct zt_xds_outcome *o)
{
    struct zt_log_line l;
    enum zt_log_level level = o->nack ? ZT_LOG_ERROR : ZT_LOG_DEBUG;
    if (!zt_log_on(level, SCOPE))
        return;
    begin_line(x, &l, level, "sending response");
    zt_log_str(&l, "type_url", o->type_url);
    zt_log_str(&l, "nonce", o->nonce);
    zt_log_raw(&l, "type", o->nack ? "Nack" : "Ack");
    zt_log_str(&l, "error", o->nack);
    zt_log_end(&l);
}

static void log_end_of_stream(const struct zt_xds *x, enum end end, const char *why)
{
    char delay[24];
    struct zt_str s;
    zt_str_init(&s, 2048);
    if (x->backoff_ms % 1000 == 0)
        zt_fmt(delay, sizeof delay, "%llus", (unsigned long long)x->backoff_ms / 1000);
    else
        zt_fmt(delay, sizeof delay, "%llums", (unsigned long long)x->backoff_ms);
    switch (end) {
    case END_CONNECTION_ERROR:
        zt_str_addf(&s, "XDS client connection error: %s, retrying in %s", why, delay);
        break;
    case END_ERROR:
        zt_str_addf(&s, "XDS client error: %s, retrying in %s", why, delay);
        break;
    case END_RECONNECT:
        zt_str_addf(&s, "XDS client terminated: %s, retrying in %s", why, delay);
        break;
    case END_COMPLETE:
    default:
        zt_str_add(&s, "XDS client complete");
        break;
    }
    log_plain(x, end == END_RECONNECT ? ZT_LOG_DEBUG : ZT_LOG_WARN, zt_str_cstr(&s));
    zt_str_fini(&s);
}

/* ---- the end of an attempt ---- */

static void on_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    prepare(zt_container_of(w, struct zt_xds, timer));
}

/* spec/controlplane §1.5: doubling precedes the sleep; an end in good order starts again at 10 ms.
 */
static void end_stream(struct zt_xds *x, enum end end, const char *why)
{
    x->transport->free(x->call);
    x->call = NULL;
    x->state = WAITING;
    if (end == END_RECONNECT || end == END_COMPLETE)
        x->backoff_ms = ZT_XDS_BACKOFF_MIN_MS;
    else
        x->backoff_ms =
            x->backoff_ms * 2 < ZT_XDS_BACKOFF_MAX_MS ? x->backoff_ms * 2 : ZT_XDS_BACKOFF_MAX_MS;
    count_end(x, end);
    log_end_of_stream(x, end, why);
    ev_timer_stop(zt_loop_ev(x->control), &x->timer);
    ev_timer_set(&x->timer, (double)x->backoff_ms / 1000., 0.);
    ev_timer_start(zt_loop_ev(x->control), &x->timer);
}

/* "The service is currently unavailable: "text"" and what helps. */
static void describe(const struct zt_rpc_status *s, struct zt_str *out)
{
    zt_str_addf(out, "status: %s (%s), message: \"%s\"", zt_rpc_code_name(s->code),
                zt_rpc_code_sentence(s->code), s->text);
    if (strstr(s->text, "authentication failure"))
        zt_str_add(out, " (hint: check the control plane logs for more information)");
    if (strstr(s->text, "Temporary failure in name resolution") ||
        strstr(s->text, "DNS resolution failed"))
        zt_str_add(out, " (hint: is the DNS server reachable?)");
}

/* By what the stream had delivered, not by the text: that differs between gRPC libraries. */
static enum end classify(bool established, enum zt_rpc_code code)
{
    if (code == ZT_RPC_OK)
        return END_COMPLETE;
    if (!established)
        return END_CONNECTION_ERROR;
    switch (code) {
    case ZT_RPC_UNAVAILABLE:
    case ZT_RPC_UNKNOWN:
    case ZT_RPC_CANCELLED:
    case ZT_RPC_DEADLINE_EXCEEDED:
        return END_RECONNECT;
    default:
        return END_ERROR;
    }
}

static void on_status(void *owner, const struct zt_rpc_status *status)
{
    struct zt_xds *x = owner;
    struct zt_str why;
    bool established = x->state == ESTABLISHED;
    if (!established && status->code == ZT_RPC_RESOURCE_EXHAUSTED)
        x->without_versions = true; /* perhaps because we named too much */
    zt_str_init(&why, 2048);
    describe(status, &why);
    end_stream(x, classify(established, status->code), zt_str_cstr(&why));
    zt_str_fini(&why);
}

/* ---- an attempt ---- */

static void on_message(void *owner, struct zt_rpc_message *m)
{
    struct zt_xds *x = owner;
    x->heard_ms = zt_clock_mono_ms();
    if (x->state == OPEN) {
        x->state = ESTABLISHED;
        x->without_versions = false;
        log_plain(x, ZT_LOG_INFO, "Stream established");
    }
    zt_xds_courier_give(x->courier, x->stream, m);
}

static const struct zt_rpc_events call_events = {.on_message = on_message, .on_status = on_status};

static void prepare(struct zt_xds *x)
{
    x->state = PREPARING;
    x->stream++;
    zt_xds_courier_ask(x->courier, x->stream, x->without_versions);
}

static void on_initial(void *arg, uint64_t stream, const struct zt_xds_initial *requests)
{
    struct zt_xds *x = arg;
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_err e = x->transport->open(x->channel, ZT_XDS_METHOD, &call_events, x, &x->call, &err);
    if (e != ZT_OK) {
        x->call = NULL;
        end_stream(x, e == ZT_IDENTITY ? END_CONNECTION_ERROR : END_ERROR, err.text);
        return;
    }
    x->state = OPEN;
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES && e == ZT_OK; t++) {
        log_initial(x, t, requests->n_held[t]);
        e = x->transport->send(x->call, requests->bytes[t], requests->n[t]);
    }
    if (e == ZT_LIMIT)
        end_stream(x, END_ERROR, "the initial requests do not fit the queue");
}

static void on_applied(void *arg, const struct zt_store_changes *changes)
{
    struct zt_xds *x = arg;
    x->events->on_applied(x->arg, changes);
}

/* An ACK that left is what counts for readiness. */
static void note_ack(struct zt_xds *x, enum zt_xds_type type)
{
    if (x->missing == 0 || type >= ZT_XDS_TYPES)
        return;
    x->missing &= ~(1u << type);
    if (x->missing == 0)
        x->events->on_synced(x->arg);
}

static void on_outcome(void *arg, uint64_t stream, const struct zt_xds_outcome *o)
{
    struct zt_xds *x = arg;
    bool current = stream == x->stream && x->state == ESTABLISHED;
    if (o->malformed.code != ZT_OK) {
        if (current)
            end_stream(x, END_ERROR, o->malformed.text);
        return;
    }
    count_message(x, o);
    if (!current)
        return;
    size_t n;
    uint8_t *bytes = zt_xds_answer_pack(o->type_url, o->nonce, o->nack, &n);
    log_answer(x, o);
    enum zt_err e = x->transport->send(x->call, bytes, n);
    zt_free(bytes);
    if (e == ZT_LIMIT) {
        end_stream(x, END_ERROR, "the server does not read what we send");
        return;
    }
    if (e != ZT_OK)
        return; /* the stream is over, its status is under way */
    x->transport->next(x->call);
    if (!o->nack)
        note_ack(x, o->type);
}

static const struct zt_xds_courier_events courier_events = {
    .on_initial = on_initial,
    .on_applied = on_applied,
    .on_outcome = on_outcome,
};

/* ---- the face ---- */

struct zt_xds *zt_xds_new(struct zt_loop *control, struct zt_loop *apply, struct zt_store *store,
                          const struct zt_xds_transport *transport, struct zt_rpc_channel *channel,
                          const struct zt_xds_config *config, struct zt_metrics *metrics,
                          const struct zt_xds_events *events, void *arg)
{
    struct zt_xds *x = zt_new(struct zt_xds);
    x->heard_ms = zt_clock_mono_ms();
    size_t n_node;
    uint8_t *node = zt_xds_node_pack(config, &n_node);
    x->control = control;
    x->transport = transport;
    x->channel = channel;
    x->events = events;
    x->arg = arg;
    x->backoff_ms = ZT_XDS_BACKOFF_MIN_MS;
    x->missing = (1u << ZT_XDS_TYPES) - 1;
    x->shard = zt_metrics_shard_new(metrics);
    ev_timer_init(&x->timer, on_timer, 0., 0.);
    x->courier = zt_xds_courier_new(control, apply, store, node, n_node, &courier_events, x);
    return x;
}

void zt_xds_start(struct zt_xds *x)
{
    zt_loop_assert_owner(x->control);
    ZT_ASSERT(x->state == IDLE);
    prepare(x);
}

bool zt_xds_is_connected(const struct zt_xds *x)
{
    return x->state == ESTABLISHED;
}

uint64_t zt_xds_age_ms(const struct zt_xds *x)
{
    return zt_clock_mono_ms() - x->heard_ms;
}

void zt_xds_free(struct zt_xds *x)
{
    if (!x)
        return;
    ev_timer_stop(zt_loop_ev(x->control), &x->timer);
    x->transport->free(x->call);
    zt_xds_courier_free(x->courier);
    for (unsigned i = 0; i < ENDS; i++)
        zt_metric_series_put(x->terminations[i]);
    for (unsigned i = 0; i <= ZT_XDS_TYPES; i++) {
        zt_metric_series_put(x->messages[i]);
        zt_metric_series_put(x->bytes[i]);
    }
    zt_free(x);
}
