/* Calls: a unary one is a single batch, a stream is five that come and go.
 *
 *   batch     when                                        comes back
 *   start     at the beginning                            with the response headers, or the end
 *   receive   at the beginning, then after each call_next with a message, or empty-handed at the
 * end send      when a message is queued and none is out    when it passed flow control, or the end
 *   finish    after call_finish, when nothing is queued   the same way
 *   status    at the beginning                            at the end
 *
 *   state      event                             next      and
 *   OPEN       a message                         OPEN      on_message
 *   OPEN       status is back                    ENDING    unsent messages are dropped
 *   ENDING     the last batch is back            ENDED     on_status
 *   any        call_free                         FREED     cancel; no callback runs any more
 *   FREED      the last batch is back            -         memory is released
 *
 * Invariants: at most one batch of a kind is out; each one out holds a reference, the owner one
 * more; the library writes into a call only while a batch is out, so memory goes with the last of
 * them. */
#include "rpc_impl.h"

#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <string.h>

enum state { OPEN, ENDING, ENDED, FREED };

struct queued {
    struct zt_link queue_link;
    grpc_byte_buffer *buffer;
    size_t bytes;
};

struct zt_rpc_call {
    struct zt_rpc *rpc;
    struct zt_rpc_channel *channel; /* NULL once freed */
    struct zt_rpc_link *link;       /* one reference */
    grpc_call *call;
    const struct zt_rpc_events *events;
    void *owner;
    enum state state;
    unsigned refs, n_busy;
    bool unary;
    bool answered;     /* a message came */
    bool asked;        /* the next message is wanted */
    bool finish_asked; /* half-close when the queue is empty */
    bool finished;

    struct zt_rpc_op start, receive, send, finish, status;
    grpc_metadata *metadata; /* n_metadata; sent */
    size_t n_metadata;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received; /* of the receive batch */
    grpc_byte_buffer *sending;  /* of the send batch */
    grpc_status_code code;
    grpc_slice text;

    struct zt_link queue; /* queued.queue_link */
    unsigned n_queued;
    size_t queued_bytes; /* the one being sent not included */
};

static void drop_queue(struct zt_rpc_call *c)
{
    struct zt_link *link;
    while ((link = zt_list_pop_front(&c->queue))) {
        struct queued *q = zt_container_of(link, struct queued, queue_link);
        grpc_byte_buffer_destroy(q->buffer);
        zt_free(q);
    }
    c->n_queued = 0;
    c->queued_bytes = 0;
}

static void unref(struct zt_rpc_call *c)
{
    if (--c->refs > 0)
        return;
    struct zt_rpc *r = c->rpc;
    drop_queue(c);
    grpc_byte_buffer_destroy(c->received); /* NULL is legal */
    grpc_byte_buffer_destroy(c->sending);
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    zt_rpc_metadata_free(c->metadata, c->n_metadata);
    grpc_slice_unref(c->text);
    grpc_call_unref(c->call);
    zt_rpc_link_unref(c->link);
    zt_free(c);
    r->n_calls--;
    zt_rpc_release(r);
}

/* ---- batches ---- */

/* A batch came home. Its reference keeps the call through the callbacks. */
static void on_batch(struct zt_msg *msg)
{
    struct zt_rpc_op *op = zt_container_of(msg, struct zt_rpc_op, msg);
    struct zt_rpc_call *c = op->call;
    op->busy = false;
    c->n_busy--;
    op->done(c, op->ok);
    unref(c);
}

/* The library refuses a batch only when we broke its rules. */
static void launch(struct zt_rpc_call *c, struct zt_rpc_op *op, const grpc_op *ops, size_t n)
{
    ZT_ASSERT(!op->busy);
    op->busy = true;
    c->n_busy++;
    c->refs++;
    atomic_fetch_add_explicit(&op->handed, 1, memory_order_release);
    ZT_ASSERT(grpc_call_start_batch(c->call, ops, n, op, NULL) == GRPC_CALL_OK);
}

static grpc_op op_send_headers(struct zt_rpc_call *c)
{
    return (grpc_op){
        .op = GRPC_OP_SEND_INITIAL_METADATA,
        .data.send_initial_metadata = {.count = c->n_metadata, .metadata = c->metadata}};
}

static grpc_op op_receive_headers(struct zt_rpc_call *c)
{
    return (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                     .data.recv_initial_metadata.recv_initial_metadata = &c->initial};
}

static grpc_op op_send(struct zt_rpc_call *c)
{
    return (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = c->sending};
}

static grpc_op op_receive(struct zt_rpc_call *c)
{
    return (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received};
}

static grpc_op op_finish(void)
{
    return (grpc_op){.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
}

static grpc_op op_status(struct zt_rpc_call *c)
{
    return (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                     .data.recv_status_on_client = {.trailing_metadata = &c->trailing,
                                                    .status = &c->code,
                                                    .status_details = &c->text}};
}

static void receive(struct zt_rpc_call *c)
{
    if (!c->asked || c->receive.busy || c->state != OPEN)
        return;
    c->asked = false;
    grpc_op op = op_receive(c);
    launch(c, &c->receive, &op, 1);
}

/* Sends the head of the queue, or the half-close behind the last message. */
static void send_next(struct zt_rpc_call *c)
{
    if (c->state != OPEN || c->send.busy || c->finished)
        return;
    struct zt_link *link = zt_list_pop_front(&c->queue);
    if (link) {
        struct queued *q = zt_container_of(link, struct queued, queue_link);
        c->sending = q->buffer;
        c->n_queued--;
        c->queued_bytes -= q->bytes;
        zt_free(q);
        grpc_op op = op_send(c);
        launch(c, &c->send, &op, 1);
    } else if (c->finish_asked) {
        c->finished = true;
        grpc_op op = op_finish();
        launch(c, &c->finish, &op, 1);
    }
}

/* ---- the end ---- */

static enum zt_rpc_code code_of(grpc_status_code code)
{
    bool known = (unsigned)code <= ZT_RPC_UNAUTHENTICATED;
    return known ? (enum zt_rpc_code)code : ZT_RPC_UNKNOWN;
}

static void fill_status(struct zt_rpc_call *c, struct zt_rpc_status *s)
{
    s->code = code_of(c->code);
    zt_fmt(s->text, sizeof s->text, "%.*s",
           (int)strnlen((const char *)GRPC_SLICE_START_PTR(c->text), GRPC_SLICE_LENGTH(c->text)),
           (const char *)GRPC_SLICE_START_PTR(c->text));
    if (c->unary && s->code == ZT_RPC_OK && !c->received && !c->answered) {
        s->code = ZT_RPC_INTERNAL;
        zt_fmt(s->text, sizeof s->text, "no message in the answer");
    }
}

/* The connection is not to be used again when it did not carry this call to an answer. */
static void judge_link(struct zt_rpc_call *c)
{
    if (!c->answered &&
        (c->code == GRPC_STATUS_UNAVAILABLE || c->code == GRPC_STATUS_DEADLINE_EXCEEDED))
        c->link->failed = true;
}

/* Tells the owner once all batches are home: a message that was on its way came first. */
static void try_end(struct zt_rpc_call *c)
{
    if (c->state != ENDING || c->n_busy > 0)
        return;
    struct zt_rpc_status status;
    c->state = ENDED;
    fill_status(c, &status);
    c->events->on_status(c->owner, &status);
}

static void on_started(struct zt_rpc_call *c, bool ok)
{
    (void)ok; /* the status says it */
    try_end(c);
}

/* Hands the received message over. False when there is none, or nobody to have it. */
static bool deliver(struct zt_rpc_call *c)
{
    grpc_byte_buffer *buffer = c->received;
    if (!buffer || c->state == FREED)
        return false;
    c->received = NULL;
    c->answered = true;
    c->events->on_message(c->owner, zt_rpc_message_new(c->rpc, buffer));
    return true;
}

static void on_received(struct zt_rpc_call *c, bool ok)
{
    (void)ok;
    deliver(c);
    receive(c); /* asked for meanwhile */
    try_end(c);
}

static void on_sent(struct zt_rpc_call *c, bool ok)
{
    (void)ok;
    grpc_byte_buffer_destroy(c->sending);
    c->sending = NULL;
    send_next(c);
    try_end(c);
}

static void on_finished(struct zt_rpc_call *c, bool ok)
{
    (void)ok;
    try_end(c);
}

static void on_ended(struct zt_rpc_call *c, bool ok)
{
    (void)ok; /* always */
    judge_link(c);
    if (c->state != OPEN)
        return;
    c->state = ENDING;
    drop_queue(c);
    try_end(c);
}

/* The one batch of a unary call. */
static void on_answered(struct zt_rpc_call *c, bool ok)
{
    (void)ok;
    c->answered = c->received;
    judge_link(c);
    if (c->state != OPEN)
        return;
    c->state = ENDING;
    if (c->code == GRPC_STATUS_OK)
        deliver(c);
    try_end(c);
}

/* ---- the owner's side ---- */

static void init_op(struct zt_rpc_call *c, struct zt_rpc_op *op,
                    void (*done)(struct zt_rpc_call *c, bool ok))
{
    op->msg.run = on_batch;
    op->call = c;
    op->done = done;
}

static struct zt_rpc_call *new_call(struct zt_rpc_channel *channel, const char *method,
                                    gpr_timespec deadline, const struct zt_rpc_events *events,
                                    void *owner, struct zt_error *err)
{
    grpc_metadata *metadata;
    size_t n_metadata;
    zt_loop_assert_owner(channel->rpc->loop);
    if (zt_rpc_metadata_new(&channel->headers, &metadata, &n_metadata, err) != ZT_OK)
        return NULL;
    struct zt_rpc_link *link = zt_rpc_channel_link(channel, err);
    if (!link) {
        zt_rpc_metadata_free(metadata, n_metadata);
        return NULL;
    }
    struct zt_rpc_call *c = zt_new(struct zt_rpc_call);
    c->rpc = channel->rpc;
    c->channel = channel;
    c->link = link;
    c->events = events;
    c->owner = owner;
    c->refs = 1;
    c->metadata = metadata;
    c->n_metadata = n_metadata;
    c->text = grpc_empty_slice();
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    zt_list_init(&c->queue);
    grpc_slice name = grpc_slice_from_copied_string(method);
    c->call =
        grpc_channel_create_call(link->channel, NULL, 0, c->rpc->queue, name, NULL, deadline, NULL);
    grpc_slice_unref(name);
    channel->n_calls++;
    c->rpc->n_owned++;
    c->rpc->n_calls++;
    return c;
}

static grpc_byte_buffer *copy(const void *bytes, size_t n)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

enum zt_err zt_rpc_stream_open(struct zt_rpc_channel *channel, const char *method,
                               const struct zt_rpc_events *events, void *owner,
                               struct zt_rpc_call **out, struct zt_error *err)
{
    struct zt_error local = ZT_ERROR_INIT;
    if (!err)
        err = &local;
    struct zt_rpc_call *c =
        new_call(channel, method, gpr_inf_future(GPR_CLOCK_MONOTONIC), events, owner, err);
    if (!c)
        return err->code;
    init_op(c, &c->start, on_started);
    init_op(c, &c->receive, on_received);
    init_op(c, &c->send, on_sent);
    init_op(c, &c->finish, on_finished);
    init_op(c, &c->status, on_ended);
    grpc_op headers[] = {op_send_headers(c), op_receive_headers(c)}, status = op_status(c);
    launch(c, &c->status, &status, 1);
    launch(c, &c->start, headers, 2);
    c->asked = true;
    receive(c);
    *out = c;
    return ZT_OK;
}

enum zt_err zt_rpc_unary_start(struct zt_rpc_channel *channel, const char *method,
                               const void *request, size_t n, uint64_t timeout_ms,
                               const struct zt_rpc_events *events, void *owner,
                               struct zt_rpc_call **out, struct zt_error *err)
{
    struct zt_error local = ZT_ERROR_INIT;
    ZT_ASSERT(timeout_ms > 0 && n <= ZT_RPC_SEND_BYTES_MAX);
    if (!err)
        err = &local;
    gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                         gpr_time_from_millis((int64_t)timeout_ms, GPR_TIMESPAN));
    struct zt_rpc_call *c = new_call(channel, method, deadline, events, owner, err);
    if (!c)
        return err->code;
    c->unary = true;
    c->sending = copy(request, n);
    init_op(c, &c->status, on_answered);
    grpc_op ops[] = {op_send_headers(c),    op_send(c),    op_finish(),
                     op_receive_headers(c), op_receive(c), op_status(c)};
    launch(c, &c->status, ops, sizeof ops / sizeof *ops);
    *out = c;
    return ZT_OK;
}

enum zt_err zt_rpc_call_send(struct zt_rpc_call *c, const void *bytes, size_t n)
{
    zt_loop_assert_owner(c->rpc->loop);
    ZT_ASSERT(!c->unary && !c->finish_asked);
    if (c->state != OPEN)
        return ZT_EOF;
    if (c->n_queued >= ZT_RPC_SEND_MESSAGES_MAX || n > ZT_RPC_SEND_BYTES_MAX - c->queued_bytes)
        return ZT_LIMIT;
    struct queued *q = zt_new(struct queued);
    q->buffer = copy(bytes, n);
    q->bytes = n;
    zt_list_push_back(&c->queue, &q->queue_link);
    c->n_queued++;
    c->queued_bytes += n;
    send_next(c);
    return ZT_OK;
}

void zt_rpc_call_next(struct zt_rpc_call *c)
{
    zt_loop_assert_owner(c->rpc->loop);
    if (c->unary || c->receive.busy)
        return;
    c->asked = true;
    receive(c);
}

void zt_rpc_call_finish(struct zt_rpc_call *c)
{
    zt_loop_assert_owner(c->rpc->loop);
    ZT_ASSERT(!c->unary);
    c->finish_asked = true;
    send_next(c);
}

void zt_rpc_call_free(struct zt_rpc_call *c)
{
    if (!c)
        return;
    zt_loop_assert_owner(c->rpc->loop);
    ZT_ASSERT(c->state != FREED);
    if (c->state == OPEN)
        grpc_call_cancel(c->call, NULL);
    c->state = FREED;
    drop_queue(c);
    c->channel->n_calls--;
    c->channel = NULL;
    c->rpc->n_owned--;
    unref(c);
}
