/* The small HTTP/1 server: accepting, limits and routing here, parsing and writing in libmicrohttpd.
 *
 * The library runs without a thread and without a listening socket. Its epoll descriptor sits in one ev_io of ours, its next
 * timeout in one ev_timer that is armed only while it has one. We accept and hand descriptors over, which gives us what the
 * library's own accept loop lacks: a pause on EMFILE, a refusal beyond the limit, peer credentials.
 *
 * The library's timeout counts silence, so a client sending a byte a second would hold a connection for ever. Hence a deadline of
 * our own for heads: connections without a complete request are in `waiting`, oldest deadline first (all deadlines are equally
 * long, so the list is sorted by itself); one that is late gets shutdown(2), which the library sees as the client's end.
 *
 *   request: NEW --head--> BODY --all of it--> RUNNING --reply--> ANSWERED --sent or cut--> freed
 *            any state but ANSWERED, server freed --> ORPHAN --reply--> freed
 * A handler that does not answer at once leaves the connection suspended; a suspended connection is watched by nobody, so a
 * RUNNING request cannot vanish under its handler. */
#include "zt/ops/http1.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "ops/http1_query.h"
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_PER_TURN 16
#define ACCEPT_PAUSE_S 0.1
#define POOL_BYTES 32768 /* the library's memory per connection: head, parsed headers, one chunk of the answer */
#define HEADERS_MAX 4
#define LOG_SCOPE "hyper_util"

struct listener {
    struct zt_http1 *server;
    ev_io io;
    char address[128];
};

struct route {
    const char *path;
    unsigned methods;
    zt_http1_fn fn;
    void *arg;
};

struct zt_http1 {
    struct zt_loop *loop;
    const char *component;
    zt_http1_admit_fn admit;
    void *admit_arg;
    zt_http1_guard_fn guard;
    struct MHD_Daemon *daemon;
    ev_io daemon_io;
    ev_timer daemon_timer, accept_timer, waiting_timer;
    struct zt_task turn_task, drained_task;
    struct listener listeners[ZT_HTTP1_LISTENERS_MAX];
    struct route routes[ZT_HTTP1_ROUTES_MAX];
    unsigned n_listeners, n_routes, n_conns;
    struct zt_link waiting; /* of conn */
    struct zt_link running; /* of zt_http1_request */
    struct zt_log_gate gate;
    void (*drained)(void *arg);
    void *drained_arg;
    bool draining, started;
};

/* One accepted connection; the library's socket context. */
struct conn {
    struct zt_link waiting_link;
    int fd; /* the library's: only shutdown(2) is ours */
    uint64_t deadline_ms;
};

enum request_state { REQUEST_NEW, REQUEST_BODY, REQUEST_RUNNING, REQUEST_ANSWERED, REQUEST_ORPHAN };

struct zt_http1_request {
    struct zt_link running_link;
    struct zt_http1 *server;
    struct MHD_Connection *mhd;
    struct conn *conn;
    struct zt_http1_query query; /* the target: path and parameters */
    enum request_state state;
    unsigned method, status;
    size_t body_bytes;
    bool suspended;
    struct MHD_Response *response;
    struct {
        char *name, *value;
    } headers[HEADERS_MAX];
    unsigned n_headers;
};

/* ---- the library's turn ---- */

static void arm_daemon_timer(struct zt_http1 *s)
{
    MHD_UNSIGNED_LONG_LONG ms;
    struct ev_loop *ev = zt_loop_ev(s->loop);
    ev_timer_stop(ev, &s->daemon_timer);
    if (MHD_get_timeout(s->daemon, &ms) == MHD_YES) {
        ev_timer_set(&s->daemon_timer, (double)ms / 1000., 0.);
        ev_timer_start(ev, &s->daemon_timer);
    }
}

static void turn(struct zt_http1 *s)
{
    MHD_run(s->daemon);
    arm_daemon_timer(s);
    if (s->draining && s->n_conns == 0 && s->drained)
        zt_loop_soon(s->loop, &s->drained_task);
}

static void on_daemon_ready(struct ev_loop *ev, ev_io *w, int events)
{
    turn(zt_container_of(w, struct zt_http1, daemon_io));
}

static void on_daemon_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    turn(zt_container_of(w, struct zt_http1, daemon_timer));
}

static void on_turn_task(struct zt_task *t)
{
    turn(zt_container_of(t, struct zt_http1, turn_task));
}

static void on_drained_task(struct zt_task *t)
{
    struct zt_http1 *s = zt_container_of(t, struct zt_http1, drained_task);
    void (*drained)(void *) = s->drained;
    s->drained = NULL;
    if (drained)
        drained(s->drained_arg);
}

/* ---- connections waiting for a request ---- */

static void arm_waiting_timer(struct zt_http1 *s)
{
    struct ev_loop *ev = zt_loop_ev(s->loop);
    struct zt_link *first = zt_list_first(&s->waiting);
    ev_timer_stop(ev, &s->waiting_timer);
    if (!first)
        return;
    struct conn *c = zt_container_of(first, struct conn, waiting_link);
    uint64_t now = zt_clock_mono_ms();
    double delay_ms = c->deadline_ms > now ? (double)(c->deadline_ms - now) : 0.;
    ev_timer_set(&s->waiting_timer, delay_ms / 1000., 0.);
    ev_timer_start(ev, &s->waiting_timer);
}

static void wait_for_request(struct zt_http1 *s, struct conn *c)
{
    zt_list_remove(&c->waiting_link);
    c->deadline_ms = zt_clock_mono_ms() + ZT_HTTP1_HEAD_TIMEOUT_MS;
    zt_list_push_back(&s->waiting, &c->waiting_link);
    if (!ev_is_active(&s->waiting_timer)) /* an active one is due earlier and looks again */
        arm_waiting_timer(s);
}

static void cut(struct conn *c)
{
    zt_list_remove(&c->waiting_link);
    shutdown(c->fd, SHUT_RDWR);
}

static void on_waiting_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_http1 *s = zt_container_of(w, struct zt_http1, waiting_timer);
    uint64_t now = zt_clock_mono_ms();
    zt_list_each_safe(l, &s->waiting)
    {
        struct conn *c = zt_container_of(l, struct conn, waiting_link);
        if (c->deadline_ms > now)
            break;
        cut(c);
    }
    arm_waiting_timer(s);
}

/* The library tells of a connection's begin (from MHD_add_connection) and end. */
static void on_connection(void *arg, struct MHD_Connection *mhd, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct zt_http1 *s = arg;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        struct conn *c = zt_new(struct conn);
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        *context = c;
        s->n_conns++;
        wait_for_request(s, c);
        return;
    }
    struct conn *c = *context;
    if (!c)
        return;
    zt_list_remove(&c->waiting_link);
    zt_free(c);
    *context = NULL;
    s->n_conns--;
}

/* ---- requests ---- */

static void request_free(struct zt_http1_request *r)
{
    zt_list_remove(&r->running_link);
    zt_http1_query_fini(&r->query);
    for (unsigned i = 0; i < r->n_headers; i++) {
        zt_free(r->headers[i].name);
        zt_free(r->headers[i].value);
    }
    if (r->response)
        MHD_destroy_response(r->response);
    zt_free(r);
}

/* The request line is complete. The library would unescape the path; we match it as sent. */
static void *on_target(void *arg, const char *target, struct MHD_Connection *mhd)
{
    struct zt_http1_request *r = zt_new(struct zt_http1_request);
    r->server = arg;
    r->mhd = mhd;
    r->conn = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    zt_http1_query_init(&r->query, target);
    return r;
}

static void on_completed(void *arg, struct MHD_Connection *mhd, void **request,
                         enum MHD_RequestTerminationCode code)
{
    struct zt_http1 *s = arg;
    struct zt_http1_request *r = *request;
    *request = NULL;
    if (!r)
        return;
    struct conn *c = r->conn;
    if (r->state == REQUEST_RUNNING) { /* only when the server is freed; the handler still holds r */
        r->state = REQUEST_ORPHAN;
        r->mhd = NULL;
        r->conn = NULL;
        zt_list_remove(&r->running_link);
    } else {
        request_free(r);
    }
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK)
        return; /* the connection's end follows */
    if (s->draining)
        cut(c);
    else
        wait_for_request(s, c);
}

static unsigned method_bit(const char *method)
{
    if (strcmp(method, MHD_HTTP_METHOD_GET) == 0)
        return ZT_HTTP1_GET;
    if (strcmp(method, MHD_HTTP_METHOD_HEAD) == 0)
        return ZT_HTTP1_HEAD;
    return strcmp(method, MHD_HTTP_METHOD_POST) == 0 ? ZT_HTTP1_POST : ZT_HTTP1_OTHER;
}

static void run_handler(struct zt_http1 *s, struct zt_http1_request *r)
{
    const char *refused = s->guard ? s->guard(r) : NULL;
    if (refused) {
        zt_http1_reply_text(r, MHD_HTTP_FORBIDDEN, "text/plain", refused);
        return;
    }
    for (unsigned i = 0; i < s->n_routes; i++) {
        const struct route *route = &s->routes[i];
        if (strcmp(route->path, r->query.path) != 0)
            continue;
        if (route->methods & r->method)
            route->fn(route->arg, r);
        else
            zt_http1_reply_text(r, MHD_HTTP_METHOD_NOT_ALLOWED, NULL, "");
        return;
    }
    zt_http1_reply_text(r, MHD_HTTP_NOT_FOUND, NULL, "");
}

static enum MHD_Result send_answer(struct zt_http1_request *r)
{
    enum MHD_Result rc = MHD_queue_response(r->mhd, r->status, r->response);
    MHD_destroy_response(r->response);
    r->response = NULL;
    return rc;
}

static enum MHD_Result on_head(struct zt_http1 *s, struct zt_http1_request *r, const char *method)
{
    r->state = REQUEST_BODY;
    r->method = method_bit(method);
    size_t head_bytes = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)->header_size;
    if (head_bytes > ZT_HTTP1_HEAD_BYTES_MAX) {
        zt_http1_reply_text(r, MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE, NULL, "");
        return send_answer(r);
    }
    wait_for_request(s, r->conn); /* the body, if any, gets as long again */
    return MHD_YES;
}

/* Called with the head, for every piece of the body, at its end, and again after a suspended connection is resumed. */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *body, size_t *body_bytes, void **request)
{
    struct zt_http1 *s = arg;
    struct zt_http1_request *r = *request;
    if (r->state == REQUEST_NEW)
        return on_head(s, r, method);
    if (r->state == REQUEST_BODY && *body_bytes > 0) {
        r->body_bytes += *body_bytes;
        *body_bytes = 0;
        return r->body_bytes > ZT_HTTP1_BODY_BYTES_MAX ? MHD_NO : MHD_YES;
    }
    if (r->state == REQUEST_BODY) {
        r->state = REQUEST_RUNNING;
        zt_list_remove(&r->conn->waiting_link);
        zt_list_push_back(&s->running, &r->running_link);
        run_handler(s, r);
        if (r->state == REQUEST_RUNNING) {
            r->suspended = true;
            MHD_suspend_connection(mhd);
            return MHD_YES;
        }
    }
    return r->response ? send_answer(r) : MHD_NO;
}

unsigned zt_http1_request_method(const struct zt_http1_request *r)
{
    return r->method;
}

struct zt_loop *zt_http1_request_loop(const struct zt_http1_request *r)
{
    return r->server->loop;
}

const char *zt_http1_request_query(const struct zt_http1_request *r, const char *key)
{
    return zt_http1_query_find(&r->query, key);
}

struct header_search {
    const char *name;
    struct zt_str *out;
    bool found;
};

static enum MHD_Result on_header(void *arg, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct header_search *h = arg;
    if (strcasecmp(key, h->name) == 0 && value) {
        if (h->found)
            zt_str_add_char(h->out, ',');
        zt_str_add(h->out, value);
        h->found = true;
    }
    return MHD_YES;
}

bool zt_http1_request_header(const struct zt_http1_request *r, const char *name, struct zt_str *out)
{
    struct header_search h = {.name = name, .out = out};
    if (r->mhd)
        MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, on_header, &h);
    return h.found;
}

/* ---- answers ---- */

void zt_http1_reply_header(struct zt_http1_request *r, const char *name, const char *value)
{
    ZT_ASSERT(r->n_headers < HEADERS_MAX);
    r->headers[r->n_headers].name = zt_strdup(name);
    r->headers[r->n_headers++].value = zt_strdup(value);
}

/* Takes response. */
static void answer(struct zt_http1_request *r, unsigned status, const char *content_type,
                   struct MHD_Response *response)
{
    ZT_ASSERT(response); /* only memory can have failed */
    if (r->state == REQUEST_ORPHAN) {
        MHD_destroy_response(response);
        request_free(r);
        return;
    }
    ZT_ASSERT(!r->response && r->state != REQUEST_ANSWERED);
    if (content_type)
        MHD_add_response_header(response, "content-type", content_type);
    for (unsigned i = 0; i < r->n_headers; i++)
        MHD_add_response_header(response, r->headers[i].name, r->headers[i].value);
    if (r->server->draining)
        MHD_add_response_header(response, "connection", "close");
    r->response = response;
    r->status = status;
    r->state = REQUEST_ANSWERED;
    zt_list_remove(&r->running_link);
    if (r->suspended) {
        r->suspended = false;
        MHD_resume_connection(r->mhd);
        zt_loop_soon(r->server->loop, &r->server->turn_task);
    }
}

struct secret {
    char *bytes;
    size_t len;
};

static void on_free_secret(void *arg)
{
    struct secret *secret = arg;
    zt_wipe_free(secret->bytes, secret->len);
    zt_free(secret);
}

void zt_http1_reply_secret(struct zt_http1_request *r, unsigned status, const char *content_type, struct zt_str *body)
{
    struct secret *secret = zt_new(struct secret);
    secret->len = body->len;
    secret->bytes = zt_str_take(body);
    answer(r, status, content_type,
           MHD_create_response_from_buffer_with_free_callback_cls(secret->len, secret->bytes, on_free_secret, secret));
}

void zt_http1_reply(struct zt_http1_request *r, unsigned status, const char *content_type, struct zt_str *body)
{
    size_t len = body->len;
    char *bytes = zt_str_take(body);
    struct MHD_Response *response =
        bytes ? MHD_create_response_from_buffer_with_free_callback(len, bytes, zt_free)
              : MHD_create_response_from_buffer(0, (void *)(uintptr_t)"", MHD_RESPMEM_PERSISTENT);
    answer(r, status, content_type, response);
}

void zt_http1_reply_text(struct zt_http1_request *r, unsigned status, const char *content_type, const char *body)
{
    struct zt_str s;
    zt_str_init(&s, strlen(body));
    zt_str_add(&s, body);
    zt_http1_reply(r, status, content_type, &s);
    zt_str_fini(&s);
}

struct stream {
    zt_http1_next_fn next;
    void (*done)(void *arg);
    void *arg;
    struct zt_str piece;
    size_t taken; /* bytes of piece that went out */
    bool more;
};

static ssize_t on_read_stream(void *arg, uint64_t pos, char *buf, size_t max)
{
    struct stream *st = arg;
    while (st->taken == st->piece.len) {
        if (!st->more)
            return MHD_CONTENT_READER_END_OF_STREAM;
        zt_str_clear(&st->piece);
        st->taken = 0;
        st->more = st->next(st->arg, &st->piece);
        if (st->piece.overflow) /* a cut document must not look whole: no final chunk */
            return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = st->piece.len - st->taken;
    if (n > max)
        n = max;
    memcpy(buf, st->piece.data + st->taken, n);
    st->taken += n;
    return (ssize_t)n;
}

static void on_free_stream(void *arg)
{
    struct stream *st = arg;
    zt_str_fini(&st->piece);
    if (st->done)
        st->done(st->arg);
    zt_free(st);
}

void zt_http1_reply_stream(struct zt_http1_request *r, unsigned status, const char *content_type,
                           zt_http1_next_fn next, void (*done)(void *arg), void *arg)
{
    struct stream *st = zt_new(struct stream);
    *st = (struct stream){.next = next, .done = done, .arg = arg, .more = true};
    zt_str_init(&st->piece, ZT_HTTP1_PIECE_BYTES_MAX);
    answer(r, status, content_type,
           MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, POOL_BYTES / 2, on_read_stream, st, on_free_stream));
}

/* ---- accepting ---- */

static void pause_accepting(struct zt_http1 *s, int errnum)
{
    uint32_t suppressed;
    char text[128];
    for (unsigned i = 0; i < s->n_listeners; i++)
        ev_io_stop(zt_loop_ev(s->loop), &s->listeners[i].io);
    ev_timer_set(&s->accept_timer, ACCEPT_PAUSE_S, 0.);
    ev_timer_start(zt_loop_ev(s->loop), &s->accept_timer);
    if (zt_log_gate_pass(&s->gate, 1, &suppressed)) {
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_WARN, LOG_SCOPE, "cannot accept, trying again shortly");
        zt_log_str(&l, "component", s->component);
        zt_log_str(&l, "error", zt_errno_text(errnum, text, sizeof text));
        zt_log_u64(&l, "suppressed", suppressed);
        zt_log_end(&l);
    }
}

static void on_accept_timer(struct ev_loop *ev, ev_timer *w, int events)
{
    struct zt_http1 *s = zt_container_of(w, struct zt_http1, accept_timer);
    for (unsigned i = 0; i < s->n_listeners; i++)
        ev_io_start(ev, &s->listeners[i].io);
}

static void adopt(struct zt_http1 *s, int fd, const struct sockaddr *sa, socklen_t len)
{
    int one = 1;
    if (s->n_conns >= ZT_HTTP1_CONNS_MAX || (s->admit && !s->admit(s->admit_arg, fd))) {
        zt_log_debug(LOG_SCOPE, "%s: connection refused", s->component);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on a unix socket: no harm */
    MHD_add_connection(s->daemon, fd, sa, len);                 /* takes fd, on failure too */
}

static void on_acceptable(struct ev_loop *ev, ev_io *w, int events)
{
    struct zt_http1 *s = zt_container_of(w, struct listener, io)->server;
    bool any = false;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct sockaddr_storage ss = {0};
        socklen_t len = sizeof ss;
        int fd = accept4(w->fd, (struct sockaddr *)&ss, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
                pause_accepting(s, errno);
            break; /* nothing more, or a connection that ended before we looked */
        }
        adopt(s, fd, (struct sockaddr *)&ss, len);
        any = true;
    }
    if (any)
        turn(s);
}

/* ---- life ---- */

enum zt_err zt_http1_new(struct zt_loop *l, const char *component, zt_http1_admit_fn admit, void *admit_arg,
                         struct zt_http1 **out, struct zt_error *err)
{
    struct zt_http1 *s = zt_new(struct zt_http1);
    s->loop = l;
    s->component = component;
    s->admit = admit;
    s->admit_arg = admit_arg;
    zt_list_init(&s->waiting);
    zt_list_init(&s->running);
    s->turn_task.run = on_turn_task;
    s->drained_task.run = on_drained_task;
    ev_timer_init(&s->daemon_timer, on_daemon_timer, 0., 0.);
    ev_timer_init(&s->accept_timer, on_accept_timer, 0., 0.);
    ev_timer_init(&s->waiting_timer, on_waiting_timer, 0., 0.);
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, s,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)ZT_HTTP1_CONNS_MAX, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)POOL_BYTES, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)ZT_HTTP1_STALL_TIMEOUT_MS / 1000,
        MHD_OPTION_URI_LOG_CALLBACK, on_target, s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_END);
    if (!s->daemon) {
        zt_free(s);
        return zt_error_set(err, ZT_IO, "the HTTP library does not start (out of descriptors?)");
    }
    int fd = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    ev_io_init(&s->daemon_io, on_daemon_ready, fd, EV_READ);
    *out = s;
    return ZT_OK;
}

void zt_http1_route(struct zt_http1 *s, const char *path, unsigned methods, zt_http1_fn fn, void *arg)
{
    ZT_ASSERT(s->n_routes < ZT_HTTP1_ROUTES_MAX);
    s->routes[s->n_routes++] = (struct route){path, methods, fn, arg};
}

void zt_http1_guard(struct zt_http1 *s, zt_http1_guard_fn guard)
{
    s->guard = guard;
}

void zt_http1_listen(struct zt_http1 *s, int fd, const char *address)
{
    ZT_ASSERT(s->n_listeners < ZT_HTTP1_LISTENERS_MAX && !s->started);
    struct listener *l = &s->listeners[s->n_listeners++];
    l->server = s;
    zt_fmt(l->address, sizeof l->address, "%s", address);
    ev_io_init(&l->io, on_acceptable, fd, EV_READ);
}

void zt_http1_start(struct zt_http1 *s)
{
    zt_loop_assert_owner(s->loop);
    s->started = true;
    ev_io_start(zt_loop_ev(s->loop), &s->daemon_io);
    for (unsigned i = 0; i < s->n_listeners; i++) {
        struct zt_log_line l;
        ev_io_start(zt_loop_ev(s->loop), &s->listeners[i].io);
        if (!zt_log_on(ZT_LOG_INFO, LOG_SCOPE))
            continue;
        zt_log_begin(&l, ZT_LOG_INFO, LOG_SCOPE, "listener established");
        zt_log_raw(&l, "address", s->listeners[i].address);
        zt_log_str(&l, "component", s->component);
        zt_log_end(&l);
    }
}

static void close_listeners(struct zt_http1 *s)
{
    ev_timer_stop(zt_loop_ev(s->loop), &s->accept_timer);
    for (unsigned i = 0; i < s->n_listeners; i++) {
        ev_io_stop(zt_loop_ev(s->loop), &s->listeners[i].io);
        close(s->listeners[i].io.fd);
    }
    s->n_listeners = 0;
}

void zt_http1_drain(struct zt_http1 *s, void (*done)(void *arg), void *arg)
{
    zt_loop_assert_owner(s->loop);
    if (s->draining)
        return;
    s->draining = true;
    s->drained = done;
    s->drained_arg = arg;
    for (unsigned i = 0; i < s->n_listeners; i++) {
        struct zt_log_line l;
        zt_log_begin(&l, ZT_LOG_INFO, LOG_SCOPE, "listener drained");
        zt_log_raw(&l, "address", s->listeners[i].address);
        zt_log_str(&l, "component", s->component);
        zt_log_end(&l);
    }
    close_listeners(s);
    for (struct zt_link *l; (l = zt_list_first(&s->waiting));)
        cut(zt_container_of(l, struct conn, waiting_link));
    zt_loop_soon(s->loop, &s->turn_task);
}

void zt_http1_free(struct zt_http1 *s)
{
    if (!s)
        return;
    struct ev_loop *ev = zt_loop_ev(s->loop);
    close_listeners(s);
    ev_io_stop(ev, &s->daemon_io);
    ev_timer_stop(ev, &s->daemon_timer);
    /* The library insists that nothing is suspended when it stops; those requests become orphans in on_completed. */
    zt_list_each(l, &s->running)
    {
        struct zt_http1_request *r = zt_container_of(l, struct zt_http1_request, running_link);
        if (r->suspended)
            MHD_resume_connection(r->mhd);
    }
    MHD_stop_daemon(s->daemon);
    ev_timer_stop(ev, &s->waiting_timer);
    zt_task_cancel(&s->turn_task);
    zt_task_cancel(&s->drained_task);
    zt_free(s);
}

unsigned zt_http1_n_conns(const struct zt_http1 *s)
{
    return s->n_conns;
}
