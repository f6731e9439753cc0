#include "h2_pair.h"
#include "zt/base/str.h"

#include <string.h>

const struct zt_h2_config h2_pair_config = {
    .stream_window_bytes = 4 * 1024 * 1024,
    .connection_window_bytes = 16 * 1024 * 1024,
    .frame_bytes = 1024 * 1024,
    .header_table_bytes = 4096,
    .streams_max = 200,
    .ping_interval_ms = 0,
    .ping_timeout_ms = 20000,
};

#define CHUNK_BYTES (100 * 1000) /* not a multiple of anything on the way */

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 31 + (at >> 8) * 7 + (at >> 16));
}

/* ---- ends ---- */

void h2_end_write(struct h2_end *e)
{
    static uint8_t chunk[CHUNK_BYTES];
    while (e->st && e->written < e->to_write) {
        size_t n = e->to_write - e->written < CHUNK_BYTES ? (size_t)(e->to_write - e->written) : CHUNK_BYTES, accepted;
        for (size_t i = 0; i < n; i++)
            chunk[i] = pattern(e->written + i);
        struct iovec iov[3] = {{chunk, n / 3}, {chunk + n / 3, 0}, {chunk + n / 3, n - n / 3}};
        enum zt_err err = zt_stream_writev(zt_h2_stream_pipe(e->st), iov, 3, &accepted);
        e->written += accepted;
        if (err != ZT_OK) {
            if (err != ZT_AGAIN)
                e->write_error = err;
            break;
        }
    }
    if (e->st && e->end_after && !e->ended && e->written == e->to_write) {
        e->ended = true;
        zt_stream_shutdown_write(zt_h2_stream_pipe(e->st));
    }
    if (e->st)
        zt_stream_want(zt_h2_stream_pipe(e->st), (e->reading ? ZT_STREAM_READABLE : 0) |
                                                     (e->written < e->to_write && !e->write_error ? ZT_STREAM_WRITABLE : 0));
}

static void end_read(struct h2_end *e)
{
    struct zt_stream *pipe = zt_h2_stream_pipe(e->st);
    for (;;) {
        uint8_t *data;
        size_t len;
        enum zt_err err = zt_stream_peek(pipe, 0, &data, &len);
        if (err == ZT_AGAIN)
            return;
        if (err != ZT_OK) {
            e->read_end = err;
            return;
        }
        for (size_t i = 0; i < len; i++)
            e->corrupt |= data[i] != pattern(e->received + i);
        e->received += len;
        zt_stream_consume(pipe, len);
    }
}

static void on_ready(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
    struct h2_end *e = zt_container_of(o, struct h2_end, owner);
    if (events & ZT_STREAM_READABLE)
        end_read(e);
    if (events & ZT_STREAM_WRITABLE)
        h2_end_write(e);
}

static void on_abort(void *arg)
{
    ((struct h2_end *)arg)->aborted = true;
}

void h2_end_attach(struct h2_end *e, struct zt_h2_stream *st)
{
    e->st = st;
    e->owner.on_ready = on_ready;
    zt_stream_own(zt_h2_stream_pipe(st), &e->owner);
    h2_end_write(e);
}

void h2_end_close(struct h2_end *e, enum zt_err why)
{
    zt_stream_close(zt_h2_stream_pipe(e->st), why);
    e->st = NULL;
}

static void on_response(struct zt_h2_request *r, struct zt_h2_stream *st, unsigned status, const struct zt_h2_headers *h,
                        const struct zt_error *err)
{
    struct h2_end *e = zt_container_of(r, struct h2_end, request);
    e->answered = true;
    e->status = status;
    e->response_error = err->code;
    if (err->code == ZT_OK)
        h2_end_attach(e, st);
    else
        e->st = NULL;
}

/* ---- sides ---- */

static void on_request(struct zt_h2_owner *o, struct zt_h2_stream *st, const struct zt_h2_headers *h)
{
    struct h2_side *side = zt_container_of(o, struct h2_side, owner);
    const char *authority = zt_h2_headers_find(h, ":authority");
    side->n_requests++;
    side->last = st;
    zt_fmt(side->method, sizeof side->method, "%s", zt_h2_headers_find(h, ":method"));
    zt_fmt(side->authority, sizeof side->authority, "%s", authority ? authority : "");
    struct h2_end *e = side->next_end;
    side->next_end = NULL;
    if (!e)
        return;
    zt_h2_stream_on_abort(st, on_abort, e);
    if (side->answer)
        zt_h2_respond(st, 200, NULL, 0, false);
    h2_end_attach(e, st);
}

static void on_stream_closed(struct zt_h2_owner *o)
{
    zt_container_of(o, struct h2_side, owner)->n_closed++;
}

static void on_goaway(struct zt_h2_owner *o)
{
    zt_container_of(o, struct h2_side, owner)->n_goaway++;
}

static void on_settings(struct zt_h2_owner *o)
{
    zt_container_of(o, struct h2_side, owner)->n_settings++;
}

static void on_closed(struct zt_h2_owner *o, const struct zt_error *why)
{
    struct h2_side *side = zt_container_of(o, struct h2_side, owner);
    side->s = NULL;
    side->closed = true;
    side->why = *why;
}

void h2_side_init(struct h2_side *side)
{
    memset(side, 0, sizeof *side);
    side->answer = true;
    side->owner = (struct zt_h2_owner){on_request, on_stream_closed, on_settings, on_goaway, on_closed};
}

void h2_pair_start(struct h2_pair *p, const struct zt_mem_opts *mem, const struct zt_h2_config *client,
                   const struct zt_h2_config *server)
{
    memset(p, 0, sizeof *p);
    p->l = zt_loop_new("test");
    h2_side_init(&p->client);
    h2_side_init(&p->server);
    zt_mem_pair(p->l, mem, &p->client_lower, &p->server_lower);
    p->client.s = zt_h2_session_new(p->l, ZT_H2_CLIENT, client ? client : &h2_pair_config, p->client_lower, &p->client.owner);
    p->server.s = zt_h2_session_new(p->l, ZT_H2_SERVER, server ? server : &h2_pair_config, p->server_lower, &p->server.owner);
}

void h2_pair_stop(struct h2_pair *p)
{
    if (p->client.s)
        zt_h2_session_close(p->client.s, ZT_OK);
    if (p->server.s)
        zt_h2_session_close(p->server.s, ZT_OK);
    h2_settle(p->l);
    zt_loop_free(p->l);
}

void h2_pair_connect(struct h2_pair *p, struct h2_end *c, struct h2_end *sv)
{
    static const struct zt_h2_header headers[] = {{":method", "CONNECT"}, {":authority", "10.0.0.1:80"}, {"baggage", ""}};
    p->server.next_end = sv;
    c->request.on_response = on_response;
    c->st = zt_h2_request(p->client.s, headers, 3, &c->request);
    if (c->st && sv)
        h2_run_until(p->l, &c->answered);
}

static void on_alarm(struct ev_loop *ev, ev_timer *w, int revents)
{
}

bool h2_run_until(struct zt_loop *l, const bool *flag)
{
    ev_timer alarm; /* so that a blocking turn ends */
    uint64_t end = zt_loop_now_ms(l) + 20000;
    ev_timer_init(&alarm, on_alarm, 0.01, 0.01);
    ev_timer_start(zt_loop_ev(l), &alarm);
    while (!*flag && zt_loop_now_ms(l) < end)
        zt_loop_run_once(l, true);
    ev_timer_stop(zt_loop_ev(l), &alarm);
    return *flag;
}

void h2_settle(struct zt_loop *l)
{
    for (int i = 0; i < 50; i++)
        zt_loop_run_once(l, false);
}
