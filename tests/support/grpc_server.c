/* The scripted server. One lock guards everything; the thread takes completions and, under the
 * lock, starts what comes next: one read, one write and the status of each call at a time. The lock
 * is recursive, because scripts run under it. */
#include "support/grpc_server.h"

#include "zt/base/err.h"
#include "zt/base/list.h"
#include "zt/base/mem.h"
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct op {
    void (*done)(struct grpc_server_call *c, bool ok);
    struct grpc_server_call *call;
    bool busy;
};

struct out {
    struct zt_link link;
    grpc_byte_buffer *buffer; /* NULL: the status */
    int code;
    char *text;
};

struct bytes {
    uint8_t *data;
    size_t n;
};

struct grpc_server_call {
    struct grpc_server_rig *rig;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array headers, sent;
    struct op accept, read, write, close;
    grpc_byte_buffer *received, *sending;
    struct zt_link out; /* out.link */
    unsigned n_out;
    struct bytes *messages;
    unsigned n_messages;
    char *method, *host, *peer;
    char **names, **values;
    unsigned n_headers;
    int cancelled;
    bool begun, closed, ended, refused;
};

struct grpc_server_rig {
    pthread_mutex_t lock;
    pthread_t thread;
    grpc_server *server;
    grpc_completion_queue *queue;
    struct grpc_server_opts opts;
    char *token;
    int port;
    struct op shutdown;
    struct grpc_server_call *calls[GRPC_SERVER_CALLS_MAX];
    struct grpc_server_call *next; /* waits for a client */
    unsigned n_calls, n_refused;
    struct grpc_server_call *refused[GRPC_SERVER_CALLS_MAX];
    bool stopping;
};

static void start(struct grpc_server_call *c, struct op *op, const grpc_op *ops, size_t n,
                  void (*done)(struct grpc_server_call *c, bool ok))
{
    ZT_ASSERT(!op->busy);
    op->busy = true;
    op->done = done;
    op->call = c;
    ZT_ASSERT(grpc_call_start_batch(c->call, ops, n, op, NULL) == GRPC_CALL_OK);
}

static char *slice_text(grpc_slice s)
{
    return zt_strndup((const char *)GRPC_SLICE_START_PTR(s), GRPC_SLICE_LENGTH(s));
}

/* ---- reading ---- */

static void on_read(struct grpc_server_call *c, bool ok);

static void read_next(struct grpc_server_call *c)
{
    if (c->read.busy || c->closed || c->rig->stopping)
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received};
    start(c, &c->read, &op, 1, on_read);
}

static void on_read(struct grpc_server_call *c, bool ok)
{
    if (!c->received)
        return; /* half-closed, or gone */
    grpc_byte_buffer_reader reader;
    ZT_ASSERT(grpc_byte_buffer_reader_init(&reader, c->received));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    size_t n = GRPC_SLICE_LENGTH(all);
    uint8_t *data = zt_zalloc(n + 1);
    memcpy(data, GRPC_SLICE_START_PTR(all), n);
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    c->messages = zt_realloc(c->messages, (c->n_messages + 1) * sizeof *c->messages);
    c->messages[c->n_messages++] = (struct bytes){data, n};
    if (c->rig->opts.script.on_message)
        c->rig->opts.script.on_message(c->rig->opts.script.arg, c, data, n);
    if (!c->rig->opts.lazy_read)
        read_next(c);
}

/* ---- writing ---- */

static void write_next(struct grpc_server_call *c);

static void on_written(struct grpc_server_call *c, bool ok)
{
    grpc_byte_buffer_destroy(c->sending);
    c->sending = NULL;
    write_next(c);
}

static void write_next(struct grpc_server_call *c)
{
    struct zt_link *link = zt_list_first(&c->out);
    if (!link || c->write.busy || c->closed || c->ended || c->rig->stopping)
        return;
    struct out *o = zt_container_of(link, struct out, link);
    zt_list_remove(link);
    c->n_out--;
    /* Response headers go out with the first message, or with the status alone, as istiod does it.
     */
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}}, *op = &ops[!c->begun];
    c->begun = true;
    if (o->buffer) {
        c->sending = o->buffer;
        *op = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = c->sending};
        start(c, &c->write, ops, (size_t)(op - ops) + 1, on_written);
    } else {
        grpc_slice text = grpc_slice_from_copied_string(o->text ? o->text : "");
        *op = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
                        .data.send_status_from_server = {.status = (grpc_status_code)o->code,
                                                         .status_details = &text}};
        c->ended = true;
        start(c, &c->write, ops, (size_t)(op - ops) + 1, on_written);
        grpc_slice_unref(text);
        zt_free(o->text);
    }
    zt_free(o);
}

static void push(struct grpc_server_call *c, grpc_byte_buffer *buffer, int code, const char *text)
{
    struct out *o = zt_new(struct out);
    o->buffer = buffer;
    o->code = code;
    o->text = zt_strdup(text);
    zt_list_push_back(&c->out, &o->link);
    c->n_out++;
    write_next(c);
}

/* ---- accepting ---- */

static void on_accept(struct grpc_server_call *c, bool ok);

static void accept_next(struct grpc_server_rig *s)
{
    struct grpc_server_call *c = zt_new(struct grpc_server_call);
    c->rig = s;
    zt_list_init(&c->out);
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->headers);
    grpc_metadata_array_init(&c->sent);
    c->accept = (struct op){.done = on_accept, .call = c, .busy = true};
    s->next = c;
    ZT_ASSERT(grpc_server_request_call(s->server, &c->call, &c->details, &c->headers, s->queue,
                                       s->queue, &c->accept) == GRPC_CALL_OK);
}

static void on_close(struct grpc_server_call *c, bool ok)
{
    c->closed = true;
}

static void copy_headers(struct grpc_server_call *c)
{
    c->method = slice_text(c->details.method);
    c->host = slice_text(c->details.host);
    char *peer = grpc_call_get_peer(c->call);
    c->peer = zt_strdup(peer);
    gpr_free(peer);
    c->n_headers = (unsigned)c->headers.count;
    c->names = zt_new_n(char *, c->n_headers + 1);
    c->values = zt_new_n(char *, c->n_headers + 1);
    for (unsigned i = 0; i < c->n_headers; i++) {
        c->names[i] = slice_text(c->headers.metadata[i].key);
        c->values[i] = slice_text(c->headers.metadata[i].value);
    }
}

static bool is_let_in(struct grpc_server_call *c)
{
    char expected[4096];
    const char *got = grpc_server_call_header(c, "authorization", NULL);
    if (!c->rig->token)
        return true;
    snprintf(expected, sizeof expected, "Bearer %s", c->rig->token);
    return got && strcmp(got, expected) == 0;
}

static void on_accept(struct grpc_server_call *c, bool ok)
{
    struct grpc_server_rig *s = c->rig;
    if (!ok)
        return; /* shutting down; s->next is freed there */
    ZT_ASSERT(s->n_calls < GRPC_SERVER_CALLS_MAX && s->n_refused < GRPC_SERVER_CALLS_MAX);
    copy_headers(c);
    if (!s->stopping)
        accept_next(s);
    else
        s->next = NULL;
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                     .data.recv_close_on_server.cancelled = &c->cancelled};
    start(c, &c->close, &close, 1, on_close);
    c->refused = !is_let_in(c);
    if (c->refused)
        s->refused[s->n_refused++] = c;
    else
        s->calls[s->n_calls++] = c;
    if (c->refused) {
        push(c, NULL, GRPC_STATUS_UNAUTHENTICATED, "authentication failure");
        return;
    }
    if (!s->opts.lazy_read)
        read_next(c);
    if (s->opts.script.on_call)
        s->opts.script.on_call(s->opts.script.arg, c);
}

/* ---- the rig ---- */

static void *thread_main(void *arg)
{
    struct grpc_server_rig *s = arg;
    for (;;) {
        grpc_event e =
            grpc_completion_queue_next(s->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        struct op *op = e.tag;
        pthread_mutex_lock(&s->lock); /* orders us with whoever started it, too */
        op->busy = false;
        if (op == &s->shutdown)
            grpc_completion_queue_shutdown(s->queue);
        else
            op->done(op->call, e.success);
        pthread_mutex_unlock(&s->lock);
    }
}

static char *mutable(const char *text)
{
    return (char *)(uintptr_t)text;
}

static grpc_server *make_server(const struct grpc_server_opts *o)
{
    grpc_arg args[4];
    size_t n = 0;
#define ADD(name, number)                                                                          \
    args[n++] = (grpc_arg)                                                                         \
    {                                                                                              \
        .type = GRPC_ARG_INTEGER, .key = mutable(name), .value = {.integer = (int)(number) }       \
    }
    ADD(GRPC_ARG_ALLOW_REUSEPORT, 0);
    if (o->age_max_ms) {
        ADD(GRPC_ARG_MAX_CONNECTION_AGE_MS, o->age_max_ms);
        ADD(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, o->age_max_grace_ms);
    }
    if (o->receive_bytes_max)
        ADD(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, o->receive_bytes_max);
#undef ADD
    grpc_channel_args list = {.num_args = n, .args = args};
    return grpc_server_create(&list, NULL);
}

struct grpc_server_rig *grpc_server_rig_new(const struct grpc_server_opts *o)
{
    struct grpc_server_rig *s = zt_new(struct grpc_server_rig);
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&s->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    s->opts = *o;
    s->token = zt_strdup(o->token);
    grpc_init();
    s->queue = grpc_completion_queue_create_for_next(NULL);
    s->server = make_server(o);
    grpc_server_register_completion_queue(s->server, s->queue, NULL);
    grpc_ssl_pem_key_cert_pair pair = {.private_key = o->key_pem, .cert_chain = o->chain_pem};
    grpc_server_credentials *creds = grpc_ssl_server_credentials_create_ex(
        NULL, &pair, 1, GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY, NULL);
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", o->port);
    s->port = grpc_server_add_http2_port(s->server, address, creds);
    grpc_server_credentials_release(creds);
    ZT_ASSERT(s->port > 0);
    grpc_server_start(s->server);
    pthread_mutex_lock(&s->lock);
    accept_next(s);
    pthread_mutex_unlock(&s->lock);
    ZT_ASSERT(pthread_create(&s->thread, NULL, thread_main, s) == 0);
    return s;
}

static void free_call(struct grpc_server_call *c)
{
    struct zt_link *link;
    if (!c)
        return;
    while ((link = zt_list_pop_front(&c->out))) {
        struct out *o = zt_container_of(link, struct out, link);
        if (o->buffer)
            grpc_byte_buffer_destroy(o->buffer);
        zt_free(o->text);
        zt_free(o);
    }
    for (unsigned i = 0; i < c->n_messages; i++)
        zt_free(c->messages[i].data);
    for (unsigned i = 0; i < c->n_headers; i++) {
        zt_free(c->names[i]);
        zt_free(c->values[i]);
    }
    zt_free(c->messages);
    zt_free(c->names);
    zt_free(c->values);
    zt_free(c->method);
    zt_free(c->host);
    zt_free(c->peer);
    if (c->received)
        grpc_byte_buffer_destroy(c->received);
    if (c->sending)
        grpc_byte_buffer_destroy(c->sending);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->headers);
    grpc_metadata_array_destroy(&c->sent);
    if (c->call)
        grpc_call_unref(c->call);
    zt_free(c);
}

void grpc_server_rig_free(struct grpc_server_rig *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    grpc_server_shutdown_and_notify(s->server, s->queue, &s->shutdown);
    grpc_server_cancel_all_calls(s->server);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    for (unsigned i = 0; i < s->n_calls; i++)
        free_call(s->calls[i]);
    for (unsigned i = 0; i < s->n_refused; i++)
        free_call(s->refused[i]);
    free_call(s->next);
    grpc_server_destroy(s->server);
    grpc_completion_queue_destroy(s->queue);
    grpc_shutdown();
    pthread_mutex_destroy(&s->lock);
    zt_free(s->token);
    zt_free(s);
}

unsigned grpc_server_rig_port(const struct grpc_server_rig *s)
{
    return (unsigned)s->port;
}

void grpc_server_rig_set_token(struct grpc_server_rig *s, const char *token)
{
    pthread_mutex_lock(&s->lock);
    zt_free(s->token);
    s->token = zt_strdup(token);
    pthread_mutex_unlock(&s->lock);
}

#define LOCKED(rig_, type, expression)                                                             \
    pthread_mutex_lock(&(rig_)->lock);                                                             \
    type value_ = (expression);                                                                    \
    pthread_mutex_unlock(&(rig_)->lock);                                                           \
    return value_

unsigned grpc_server_rig_calls(struct grpc_server_rig *s)
{
    LOCKED(s, unsigned, s->n_calls);
}

unsigned grpc_server_rig_refused(struct grpc_server_rig *s)
{
    LOCKED(s, unsigned, s->n_refused);
}

struct grpc_server_call *grpc_server_rig_call(struct grpc_server_rig *s, unsigned i)
{
    LOCKED(s, struct grpc_server_call *, i < s->n_calls ? s->calls[i] : NULL);
}

const char *grpc_server_call_method(struct grpc_server_call *c)
{
    return c->method;
}

const char *grpc_server_call_host(struct grpc_server_call *c)
{
    return c->host;
}

const char *grpc_server_call_peer(struct grpc_server_call *c)
{
    return c->peer;
}

const char *grpc_server_call_header(struct grpc_server_call *c, const char *name, unsigned *n)
{
    const char *found = NULL;
    unsigned count = 0;
    for (unsigned i = 0; i < c->n_headers; i++)
        if (strcmp(c->names[i], name) == 0) {
            found = c->values[i];
            count++;
        }
    if (n)
        *n = count;
    return found;
}

unsigned grpc_server_call_messages(struct grpc_server_call *c)
{
    LOCKED(c->rig, unsigned, c->n_messages);
}

const void *grpc_server_call_message(struct grpc_server_call *c, unsigned i, size_t *n)
{
    pthread_mutex_lock(&c->rig->lock);
    ZT_ASSERT(i < c->n_messages);
    const void *data = c->messages[i].data;
    *n = c->messages[i].n;
    pthread_mutex_unlock(&c->rig->lock);
    return data;
}

bool grpc_server_call_closed(struct grpc_server_call *c)
{
    LOCKED(c->rig, bool, c->closed);
}

void grpc_server_call_send(struct grpc_server_call *c, const void *bytes, size_t n)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    pthread_mutex_lock(&c->rig->lock);
    push(c, buffer, 0, NULL);
    pthread_mutex_unlock(&c->rig->lock);
}

void grpc_server_call_end(struct grpc_server_call *c, int code, const char *text)
{
    pthread_mutex_lock(&c->rig->lock);
    push(c, NULL, code, text);
    pthread_mutex_unlock(&c->rig->lock);
}

unsigned grpc_server_call_unsent(struct grpc_server_call *c)
{
    LOCKED(c->rig, unsigned, c->n_out + (c->sending != NULL));
}

void grpc_server_call_read(struct grpc_server_call *c)
{
    pthread_mutex_lock(&c->rig->lock);
    read_next(c);
    pthread_mutex_unlock(&c->rig->lock);
}
