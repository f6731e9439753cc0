/* The pool against our own server: real TLS over loopback sockets, everything on one loop. */
#include "support/net_fixture.h"
#include "support/tls_test.h"
#include "zt/base/mem.h"
#include "zt/proxy/hbone_pool.h"
#include "zt/base/clock.h"
#include "zt/net/tcp.h"
#include "zt/proxy/hbone_server.h"
#include "zt/proxy/relay.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CLIENT_ID "spiffe://cluster.local/ns/ns1/sa/sleep"
#define SERVER_ID "spiffe://cluster.local/ns/ns2/sa/echo"
#define REQUESTS_MAX 320

struct creds {
    struct zt_cred_source source;
    struct zt_tls_cred *cred;
    struct zt_cred_request *pending;
    bool fail, hold;
    unsigned asked;
};

struct request {
    struct zt_hbone_request r;
    struct zt_stream_owner owner;
    struct zt_h2_stream *st;
    struct zt_error err;
    bool done;
    enum zt_err read_end;
    size_t received;
};

struct fixture {
    struct zt_loop *l;
    struct zt_netns *netns;
    struct zt_test_cert *root;
    struct creds client, server;
    struct zt_hbone_pool *pool;
    int listener;
    struct zt_addr addr;
    ev_io accept_io;
    struct zt_link servers;
    struct zt_h2_config h2;
    struct zt_hbone_server_config config;
    unsigned n_accepted, n_closed, n_failed, n_connects, status;
    bool leave_alone; /* do not answer */
    unsigned n_outer; /* CONNECTs that were answered as a gateway does */
    bool outer_refused;
    struct zt_h2_stream *streams[REQUESTS_MAX * 2];
    unsigned n_streams;
    struct zt_error failure;
    char identity[256];
    struct request rq[REQUESTS_MAX];
};

/* ---- credentials ---- */

static enum zt_err get_cred(struct zt_cred_source *s, const char *identity, struct zt_cred_request *r, struct zt_tls_cred **cred,
                            struct zt_error *err)
{
    struct creds *c = zt_container_of(s, struct creds, source);
    c->asked++;
    if (c->fail)
        return zt_error_set(err, ZT_IDENTITY, "no certificate today");
    if (c->hold) {
        c->pending = r;
        return ZT_AGAIN;
    }
    *cred = zt_tls_cred_ref(c->cred);
    return ZT_OK;
}

static void cancel_cred(struct zt_cred_source *s, struct zt_cred_request *r)
{
    struct creds *c = zt_container_of(s, struct creds, source);
    if (c->pending == r)
        c->pending = NULL;
}

static void creds_init(struct creds *c, struct zt_test_cert *root, const char *identity)
{
    memset(c, 0, sizeof *c);
    c->source = (struct zt_cred_source){get_cred, cancel_cred};
    c->cred = zt_test_cred_of(root, identity);
}

/* ---- the server ---- */

/* The gateway of double HBONE: leads a stream's bytes to our own listener, where the inner tunnel ends. */
struct passage {
    struct zt_dial dial;
    struct zt_loop *l;
    struct zt_h2_stream *st;
    struct zt_relay relay;
    uint64_t bytes[2];
};

static void on_passage_over(struct zt_relay *r, const struct zt_error *err)
{
    zt_free(zt_container_of(r, struct passage, relay));
}

static void on_passage_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct passage *p = zt_container_of(d, struct passage, dial);
    assert_true(fd >= 0);
    zt_h2_respond(p->st, 200, NULL, 0, false);
    const struct zt_relay_ends ends = {.down = zt_h2_stream_pipe(p->st),
                                       .up = zt_tcp_stream_new(p->l, fd, NULL),
                                       .down_tunnel = true,
                                       .received = &p->bytes[0],
                                       .sent = &p->bytes[1]};
    zt_relay_start(&p->relay, &ends, on_passage_over);
}

static void lead_on(struct fixture *f, struct zt_h2_stream *st)
{
    struct zt_sock_opts opts = {0};
    struct passage *p = zt_new(struct passage);
    f->n_outer++;
    p->l = f->l;
    p->st = st;
    zt_dial_start(&p->dial, f->l, f->netns, &f->addr, NULL, &opts, 1000, on_passage_dialled);
}

static void on_connect(struct zt_hbone_server *s, struct zt_h2_stream *st, const struct zt_h2_headers *h)
{
    struct fixture *f = zt_hbone_server_owner(s);
    if (strcmp(zt_h2_headers_find(h, ":authority"), "svc:80") == 0 && !zt_h2_headers_find(h, "x-forwarded-network")) {
        if (f->outer_refused)
            zt_h2_respond(st, 401, NULL, 0, true);
        else
            lead_on(f, st);
        return;
    }
    f->n_connects++;
    snprintf(f->identity, sizeof f->identity, "%s", zt_hbone_server_identity(s));
    if (f->leave_alone || f->status == 200)
        f->streams[f->n_streams++] = st;
    if (!f->leave_alone)
        zt_h2_respond(st, f->status, NULL, 0, f->status != 200);
}

static void on_failed(struct zt_hbone_server *s, const struct zt_error *err)
{
    struct fixture *f = zt_hbone_server_owner(s);
    f->n_failed++;
    f->failure = *err;
}

static void on_server_closed(struct zt_hbone_server *s)
{
    ((struct fixture *)zt_hbone_server_owner(s))->n_closed++;
}

static const struct zt_hbone_server_ops server_ops = {on_connect, on_failed, on_server_closed};

static void on_accept(struct ev_loop *ev, ev_io *w, int revents)
{
    struct fixture *f = zt_container_of(w, struct fixture, accept_io);
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct zt_addr peer = zt_sock_peer(fd), local = zt_sock_local(fd);
    f->n_accepted++;
    zt_hbone_server_accept(&f->config, fd, &peer, &local);
}

/* ---- set up ---- */

static void setup_with(struct fixture *f, unsigned streams_max, unsigned unused_timeout_ms, unsigned connect_timeout_ms)
{
    struct zt_error err;
    memset(f, 0, sizeof *f);
    f->status = 200;
    f->l = zt_loop_new("test");
    assert_int_equal(zt_netns_own(&f->netns, &err), ZT_OK);
    f->root = zt_test_root_named("root");
    creds_init(&f->client, f->root, CLIENT_ID);
    creds_init(&f->server, f->root, SERVER_ID);
    f->h2 = (struct zt_h2_config){.stream_window_bytes = 4 << 20,
                                  .connection_window_bytes = 16 << 20,
                                  .frame_bytes = 1 << 20,
                                  .header_table_bytes = 4096,
                                  .streams_max = 200,
                                  .ping_interval_ms = 10000,
                                  .ping_timeout_ms = 20000};
    zt_list_init(&f->servers);
    f->config = (struct zt_hbone_server_config){.loop = f->l,
                                                .h2 = f->h2,
                                                .creds = &f->server.source,
                                                .handshake_timeout_ms = 5000,
                                                .ops = &server_ops,
                                                .list = &f->servers,
                                                .owner = f};
    assert_true(zt_addr_parse("127.0.0.1:0", &f->addr));
    assert_int_equal(zt_sock_listen_addr(&f->addr, &f->listener, &err), ZT_OK);
    f->addr = zt_sock_local(f->listener);
    ev_io_init(&f->accept_io, on_accept, f->listener, EV_READ);
    ev_io_start(zt_loop_ev(f->l), &f->accept_io);
    struct zt_hbone_pool_config pc = {.loop = f->l,
                                      .h2 = f->h2,
                                      .netns = f->netns,
                                      .creds = &f->client.source,
                                      .streams_max = streams_max,
                                      .unused_timeout_ms = unused_timeout_ms,
                                      .connect_timeout_ms = connect_timeout_ms};
    f->pool = zt_hbone_pool_new(&pc);
}

static void setup(struct fixture *f, unsigned streams_max)
{
    setup_with(f, streams_max, 300000, 5000);
}

static void on_ready(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
    struct request *q = zt_container_of(o, struct request, owner);
    uint8_t *data;
    size_t len;
    enum zt_err e;
    while ((e = zt_stream_peek(s, 0, &data, &len)) == ZT_OK) {
        q->received += len;
        zt_stream_consume(s, len);
    }
    if (e != ZT_AGAIN)
        q->read_end = e;
}

static void on_done(struct zt_hbone_request *r, struct zt_h2_stream *st, const struct zt_h2_headers *h, const struct zt_error *err)
{
    struct request *q = zt_container_of(r, struct request, r);
    assert_false(q->done); /* exactly once */
    q->done = true;
    q->err = *err;
    q->st = st;
    q->owner.on_ready = on_ready;
    if (st)
        zt_stream_own(zt_h2_stream_pipe(st), &q->owner);
}

static const struct zt_h2_header headers[] = {
    {":method", "CONNECT"}, {":authority", "10.0.0.1:8080"}, {"baggage", ""}, {"forwarded", "for=\"10.0.0.2:1\""}};

static void ask_from(struct fixture *f, unsigned i, unsigned source)
{
    char *sans[] = {(char *)(uintptr_t) "spiffe://cluster.local/ns/other/sa/x", (char *)(uintptr_t)SERVER_ID};
    uint8_t ip[4] = {10, 1, (uint8_t)(source >> 8), (uint8_t)source};
    struct zt_hbone_key key = {.src_identity = CLIENT_ID, .sans = sans, .n_sans = 2, .next_hop = f->addr, .src_ip = zt_ip_from_bytes(ip, 4)};
    memset(&f->rq[i], 0, sizeof f->rq[i]);
    f->rq[i].r.done = on_done;
    zt_hbone_pool_connect(f->pool, &key, headers, 4, &f->rq[i].r);
    assert_false(f->rq[i].done); /* never from inside */
}

static void ask(struct fixture *f, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++)
        ask_from(f, i, 1);
}

/* Waits for a condition on the fixture's counters. */
#define WAIT(f, cond)                                                                                                             \
    do {                                                                                                                          \
        for (unsigned turn_ = 0; turn_ < 4000 && !(cond); turn_++)                                                                \
            zt_test_run_for_ms((f)->l, 2);                                                                                        \
        assert_true(cond);                                                                                                        \
    } while (0)

static bool all_done(const struct fixture *f, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        if (!f->rq[i].done)
            return false;
    }
    return true;
}

static void get(struct fixture *f, unsigned first, unsigned n)
{
    ask(f, first, n);
    WAIT(f, all_done(f, first, n));
    for (unsigned i = first; i < first + n; i++) {
        if (f->rq[i].err.code != ZT_OK)
            print_error("request %u: %s %s\n", i, zt_err_name(f->rq[i].err.code), f->rq[i].err.text);
        assert_int_equal(f->rq[i].err.code, ZT_OK);
    }
}

static void release(struct fixture *f, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        if (f->rq[i].st)
            zt_stream_close(zt_h2_stream_pipe(f->rq[i].st), ZT_OK);
        f->rq[i].st = NULL;
    }
    zt_test_run_for_ms(f->l, 20);
}

/* The server lets go of its ends. */
static void release_server(struct fixture *f)
{
    for (unsigned i = 0; i < f->n_streams; i++)
        zt_stream_close(zt_h2_stream_pipe(f->streams[i]), ZT_OK);
    f->n_streams = 0;
    zt_test_run_for_ms(f->l, 20);
}

static unsigned open_servers(const struct fixture *f)
{
    unsigned n = 0;
    zt_list_each(link, &f->servers) n++;
    return n;
}

static void teardown(struct fixture *f)
{
    struct zt_link *link;
    release(f, 0, REQUESTS_MAX);
    release_server(f);
    zt_hbone_pool_free(f->pool);
    while ((link = zt_list_first(&f->servers)))
        zt_hbone_server_close(zt_hbone_server_from_link(link), ZT_DRAINED);
    zt_test_run_for_ms(f->l, 20);
    ev_io_stop(zt_loop_ev(f->l), &f->accept_io);
    close(f->listener);
    zt_tls_cred_unref(f->client.cred);
    zt_tls_cred_unref(f->server.cred);
    zt_test_cert_free(f->root);
    zt_netns_unref(f->netns);
    zt_loop_free(f->l);
}

static struct fixture fx; /* large */

/* ---- double HBONE ---- */

static const struct zt_h2_header inner_headers[] = {
    {":method", "CONNECT"}, {":authority", "svc:80"}, {"baggage", ""}, {"forwarded", ""}, {"x-forwarded-network", "here"}};

static void ask_inner(struct fixture *f, unsigned first, unsigned n, const char *inner_san)
{
    char *sans[] = {(char *)(uintptr_t)SERVER_ID}, *inner_sans[] = {(char *)(uintptr_t)inner_san};
    const struct zt_hbone_inner inner = {.authority = "svc:80", .sans = inner_sans, .n_sans = 1};
    uint8_t ip[4] = {10, 1, 0, 1};
    const struct zt_hbone_key key = {.src_identity = CLIENT_ID,
                                     .sans = sans,
                                     .n_sans = 1,
                                     .next_hop = f->addr,
                                     .src_ip = zt_ip_from_bytes(ip, 4),
                                     .inner = &inner};
    for (unsigned i = first; i < first + n; i++) {
        memset(&f->rq[i], 0, sizeof f->rq[i]);
        f->rq[i].r.done = on_done;
        zt_hbone_pool_connect(f->pool, &key, inner_headers, 5, &f->rq[i].r);
    }
}

static void get_inner(struct fixture *f, unsigned first, unsigned n)
{
    ask_inner(f, first, n, SERVER_ID);
    WAIT(f, all_done(f, first, n));
    for (unsigned i = first; i < first + n; i++)
        assert_int_equal(f->rq[i].err.code, ZT_OK);
}

static void inner_tunnels_share_one_outer_and_are_at_most_eight(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    for (unsigned i = 0; i < 100; i++) {
        get_inner(f, i, 1);
        release(f, i, 1);
    }
    release_server(f);
    assert_int_equal(f->n_connects, 100);
    assert_int_equal(f->n_outer, ZT_POOL_INNER_TUNNELS_MAX); /* all were drawn, and each was made once */
    assert_int_equal(f->n_accepted, 1 + ZT_POOL_INNER_TUNNELS_MAX);
    assert_int_equal(zt_hbone_pool_tunnels(f->pool), 1 + ZT_POOL_INNER_TUNNELS_MAX);
    /* Many at once change nothing about that. */
    get_inner(f, 0, 200);
    assert_int_equal(f->n_outer, ZT_POOL_INNER_TUNNELS_MAX);
    teardown(f);
}

static void inner_tunnel_retires_after_its_streams(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    unsigned total = 0;
    while (f->n_outer <= ZT_POOL_INNER_TUNNELS_MAX && total < ZT_POOL_INNER_TUNNELS_MAX * ZT_POOL_INNER_STREAMS_MAX) {
        get_inner(f, 0, 50);
        release(f, 0, 50);
        release_server(f);
        total += 50;
    }
    assert_in_range(total, ZT_POOL_INNER_STREAMS_MAX, ZT_POOL_INNER_TUNNELS_MAX * ZT_POOL_INNER_STREAMS_MAX);
    WAIT(f, f->n_closed >= 1); /* it ended with its last stream */
    teardown(f);
}

static void inner_tunnel_retires_at_its_age_however_busy(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    get_inner(f, 0, 100);
    unsigned before = f->n_outer;
    zt_clock_test_advance_ms(ZT_POOL_INNER_AGE_MAX_MS / 2);
    zt_test_run_for_ms(f->l, 20);
    get_inner(f, 100, 20);
    assert_int_equal(f->n_outer, before);
    zt_clock_test_advance_ms(ZT_POOL_INNER_AGE_MAX_MS / 2 + 1);
    zt_test_run_for_ms(f->l, 20);
    get_inner(f, 120, 50);
    assert_true(f->n_outer > before);
    release(f, 0, 120); /* what is open on the old ones goes on until here */
    release_server(f);
    WAIT(f, zt_hbone_pool_tunnels(f->pool) <= 1 + ZT_POOL_INNER_TUNNELS_MAX);
    teardown(f);
}

static void inner_peer_is_verified_and_named(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    ask_inner(f, 0, 1, "spiffe://cluster.local/ns/other/sa/x");
    WAIT(f, f->rq[0].done);
    assert_int_equal(f->rq[0].err.code, ZT_IO);
    assert_non_null(strstr(f->rq[0].err.text, "identity verification error"));
    assert_false(f->rq[0].r.set_up_failed); /* whoever answers, it is final */
    f->outer_refused = true;
    ask_inner(f, 0, 3, SERVER_ID);
    WAIT(f, all_done(f, 0, 3));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(f->rq[i].err.code, ZT_HTTP_STATUS);
        assert_string_equal(f->rq[i].err.text, "401 Unauthorized");
        assert_false(f->rq[i].r.set_up_failed);
    }
    f->outer_refused = false;
    get_inner(f, 0, 1);
    teardown(f);
}

static void pool_that_ends_takes_inner_tunnels_under_way_with_it(void **state)
{
    struct fixture *f = &fx;
    for (unsigned turns = 0; turns < 12; turns++) {
        setup(f, 100);
        ask_inner(f, 0, 20, SERVER_ID);
        zt_test_run_for_ms(f->l, turns);
        zt_hbone_request_cancel(&f->rq[3].r);
        zt_hbone_pool_free(f->pool);
        f->pool = NULL;
        zt_test_run_for_ms(f->l, 20);
        for (unsigned i = 0; i < 20; i++)
            assert_true(f->rq[i].done || i == 3);
        release_server(f);
        teardown(f);
    }
}

/* ---- spec/dataplane §13.3 ---- */

static void connections_reused(void **state)
{
    struct fixture *f = &fx;
    setup(f, 3);
    for (int round = 0; round < 2; round++) {
        get(f, 0, 2);
        release(f, 0, 2);
        release_server(f);
    }
    assert_int_equal(f->n_accepted, 1);
    assert_int_equal(f->n_connects, 4);
    assert_string_equal(f->identity, CLIENT_ID);
    assert_int_equal(zt_hbone_pool_tunnels(f->pool), 1);
    zt_hbone_pool_free(f->pool);
    f->pool = NULL;
    WAIT(f, f->n_closed == 1);
    teardown(f);
}

static void unique_keys_have_unique_connections(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    get(f, 0, 1);
    ask_from(f, 1, 2);
    WAIT(f, f->rq[1].done);
    assert_int_equal(f->rq[1].err.code, ZT_OK);
    assert_int_equal(f->n_accepted, 2);
    teardown(f);
}

static void connection_limits(void **state)
{
    struct fixture *f = &fx;
    setup(f, 2);
    get(f, 0, 4);
    assert_int_equal(f->n_accepted, 2);
    release(f, 0, 4);
    release_server(f);
    WAIT(f, f->n_closed == 2); /* both were full and left for good */
    get(f, 0, 5);
    assert_int_equal(f->n_accepted, 5);
    teardown(f);
}

static void server_goaway(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    get(f, 0, 1);
    release(f, 0, 1);
    release_server(f);
    zt_hbone_server_drain(zt_hbone_server_from_link(zt_list_first(&f->servers)));
    WAIT(f, f->n_closed == 1);
    WAIT(f, zt_hbone_pool_tunnels(f->pool) == 0);
    get(f, 0, 1);
    assert_int_equal(f->n_accepted, 2);
    teardown(f);
}

static void single_pool(void **state)
{
    struct fixture *f = &fx;
    setup(f, 1);
    get(f, 0, 2);
    get(f, 2, 2);
    assert_int_equal(f->n_accepted, 4);
    release(f, 0, 4);
    release_server(f);
    WAIT(f, f->n_closed == 4);
    assert_int_equal(zt_hbone_pool_tunnels(f->pool), 0);
    teardown(f);
}

static void stress_test_single_source(void **state)
{
    struct fixture *f = &fx;
    setup(f, 101);
    get(f, 0, 100);
    assert_int_equal(f->n_accepted, 1);
    assert_int_equal(f->n_connects, 100);
    teardown(f);
}

static void stress_test_multiple_source(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    for (unsigned i = 0; i < 100; i++)
        ask_from(f, i, i);
    WAIT(f, all_done(f, 0, 100));
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(f->rq[i].err.code, ZT_OK);
    assert_int_equal(f->n_accepted, 100);
    teardown(f);
}

static void stress_test_many_client_many_sources(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    for (unsigned i = 0; i < 300; i++)
        ask_from(f, i, i % 3);
    WAIT(f, all_done(f, 0, 300));
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(f->rq[i].err.code, ZT_OK);
    assert_int_equal(f->n_accepted, 3);
    teardown(f);
}

static void idle_eviction(void **state)
{
    struct fixture *f = &fx;
    setup_with(f, 100, 100, 5000);
    get(f, 0, 1);
    release(f, 0, 1);
    release_server(f);
    assert_int_equal(f->n_closed, 0);
    WAIT(f, f->n_closed == 1);
    assert_int_equal(zt_hbone_pool_tunnels(f->pool), 0);
    teardown(f);
}

static void idle_eviction_with_persistent(void **state)
{
    struct fixture *f = &fx;
    setup_with(f, 3, 100, 5000);
    get(f, 0, 1); /* held open */
    get(f, 1, 3); /* two fit beside it, one overflows */
    assert_int_equal(f->n_accepted, 2);
    release(f, 1, 3);
    WAIT(f, f->n_closed == 1); /* the one that carried the overflow only */
    zt_test_run_for_ms(f->l, 250);
    assert_int_equal(f->n_closed, 1);
    assert_int_equal(f->rq[0].read_end, ZT_OK);
    release(f, 0, 1);
    release_server(f);
    WAIT(f, f->n_closed == 2);
    teardown(f);
}

static void read_buffering(void **state)
{
    struct fixture *f = &fx;
    setup(f, 10);
    get(f, 0, 1);
    struct iovec iov = {(void *)(uintptr_t) "0123456789", 10};
    size_t accepted;
    assert_int_equal(zt_stream_writev(zt_h2_stream_pipe(f->streams[0]), &iov, 1, &accepted), ZT_OK);
    zt_test_run_for_ms(f->l, 30);
    struct zt_stream *pipe = zt_h2_stream_pipe(f->rq[0].st);
    uint8_t *data;
    size_t len;
    assert_int_equal(zt_stream_peek(pipe, 0, &data, &len), ZT_OK);
    zt_stream_consume(pipe, 3);
    zt_hbone_pool_free(f->pool);
    f->pool = NULL;
    zt_test_run_for_ms(f->l, 30);
    assert_int_equal(zt_stream_peek(pipe, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 7);
    assert_memory_equal(data, "3456789", 7);
    zt_stream_consume(pipe, 7);
    enum zt_err e = zt_stream_peek(pipe, 0, &data, &len);
    assert_true(e != ZT_OK && e != ZT_AGAIN && e != ZT_EOF);
    teardown(f);
}

/* ---- failures are shared ---- */

static void waiters_of_one_flight_share_its_failure_at_once(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->client.hold = true;
    ask(f, 0, 50);
    WAIT(f, f->client.pending != NULL);
    assert_int_equal(f->client.asked, 1); /* single flight */
    struct zt_error err = ZT_ERROR_INIT;
    zt_error_set(&err, ZT_IDENTITY, "the CA said no");
    f->client.pending->done(f->client.pending, NULL, &err);
    assert_true(all_done(f, 0, 50));
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(f->rq[i].err.code, ZT_IDENTITY);
        assert_string_equal(f->rq[i].err.text, "the CA said no");
    }
    f->client.hold = false;
    get(f, 0, 1); /* the next one tries anew */
    teardown(f);
}

static void refused_dial_is_an_io_error_for_all(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    ev_io_stop(zt_loop_ev(f->l), &f->accept_io);
    close(f->listener);
    ask(f, 0, 10);
    WAIT(f, all_done(f, 0, 10));
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(f->rq[i].err.code, ZT_IO);
        assert_string_equal(f->rq[i].err.text, "Connection refused (os error 111)");
    }
    f->listener = dup(0);
    teardown(f);
}

static void server_of_another_identity_is_an_io_error(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    zt_tls_cred_unref(f->server.cred);
    f->server.cred = zt_test_cred_of(f->root, "spiffe://cluster.local/ns/ns2/sa/impostor");
    ask(f, 0, 2);
    WAIT(f, all_done(f, 0, 2));
    assert_int_equal(f->rq[0].err.code, ZT_IO);
    assert_int_equal(f->rq[1].err.code, ZT_IO);
    assert_int_equal(f->n_accepted, 1);
    teardown(f);
}

static void client_that_the_server_refuses_fails_in_the_http2_handshake(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    zt_tls_cred_unref(f->client.cred); /* same root, another trust domain: refused after the client believes it is through */
    f->client.cred = zt_test_cred_of(f->root, "spiffe://other.domain/ns/ns1/sa/sleep");
    ask(f, 0, 3);
    WAIT(f, all_done(f, 0, 3));
    for (unsigned i = 0; i < 3; i++)
        assert_string_equal(zt_err_flag(f->rq[i].err.code), "H2_HANDSHAKE_FAILURE");
    WAIT(f, f->n_failed == 1);
    assert_int_equal(f->n_accepted, 1);
    teardown(f);
}

static void flight_that_never_lands_is_bounded(void **state)
{
    struct fixture *f = &fx;
    setup_with(f, 100, 300000, 200);
    ev_io_stop(zt_loop_ev(f->l), &f->accept_io); /* TCP connects, TLS never answers */
    ask(f, 0, 3);
    WAIT(f, all_done(f, 0, 3));
    for (unsigned i = 0; i < 3; i++)
        assert_string_equal(zt_err_flag(f->rq[i].err.code), "CONNECT");
    f->client.hold = true;
    ask(f, 0, 1);
    WAIT(f, all_done(f, 0, 1));
    assert_int_equal(f->rq[0].err.code, ZT_IDENTITY);
    assert_int_equal(zt_hbone_pool_tunnels(f->pool), 0);
    teardown(f);
}

static void unanswered_connect_is_bounded_and_hurts_nobody_else(void **state)
{
    struct fixture *f = &fx;
    setup_with(f, 100, 300000, 300);
    get(f, 0, 1);
    f->leave_alone = true;
    ask(f, 1, 1);
    WAIT(f, f->rq[1].done);
    assert_int_equal(f->rq[1].err.code, ZT_TIMEOUT);
    f->leave_alone = false;
    get(f, 2, 1);
    assert_int_equal(f->n_accepted, 1);
    assert_int_equal(f->rq[0].read_end, ZT_OK);
    teardown(f);
}

static void refusal_names_the_status(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->status = 401;
    ask(f, 0, 1);
    WAIT(f, f->rq[0].done);
    assert_int_equal(f->rq[0].err.code, ZT_HTTP_STATUS);
    assert_string_equal(f->rq[0].err.text, "401 Unauthorized");
    f->status = 200;
    get(f, 0, 1);
    assert_int_equal(f->n_accepted, 1);
    teardown(f);
}

/* ---- what the peer allows ---- */

static void peers_limit_of_streams_below_ours_is_honoured(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->config.h2.streams_max = 4;
    get(f, 0, 12);
    assert_int_equal(f->n_connects, 12);
    assert_int_equal(f->n_accepted, 3);
    teardown(f);
}

static void tunnel_that_the_server_closed_is_not_handed_out(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    for (unsigned i = 0; i < 20; i++) {
        get(f, 0, 1);
        release(f, 0, 1);
        release_server(f);
        zt_hbone_server_close(zt_hbone_server_from_link(zt_list_first(&f->servers)), ZT_OK);
        if (i % 2)
            zt_loop_run_once(f->l, false); /* the end may or may not have arrived when the next one asks */
    }
    assert_int_equal(f->n_accepted, 20);
    teardown(f);
}

static void cancelled_requests_are_never_told(void **state)
{
    struct fixture *f = &fx;
    setup(f, 2);
    for (unsigned turns = 0; turns < 30; turns++) {
        ask(f, 0, 3);
        zt_test_run_for_ms(f->l, turns % 8);
        for (unsigned i = 0; i < 3; i++) {
            bool done = f->rq[i].done;
            zt_hbone_request_cancel(&f->rq[i].r);
            f->rq[i].done = true; /* on_done asserts that it does not run again */
            if (!done)
                f->rq[i].st = NULL;
        }
        release(f, 0, 3);
    }
    get(f, 0, 1);
    teardown(f);
}

static void pool_that_goes_away_tells_its_requests(void **state)
{
    struct fixture *f = &fx;
    setup(f, 2);
    f->leave_alone = true;
    ask(f, 0, 1);
    WAIT(f, f->n_connects == 1);
    ask(f, 1, 3);
    zt_hbone_pool_free(f->pool);
    f->pool = NULL;
    WAIT(f, all_done(f, 0, 4));
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(f->rq[i].err.code, ZT_POOL_DRAINING);
    teardown(f);
}

static void drained_pool_closes_idle_tunnels_and_still_serves(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    get(f, 0, 1);
    ask_from(f, 1, 2);
    WAIT(f, f->rq[1].done);
    release(f, 1, 1); /* that tunnel is idle now */
    zt_hbone_pool_drain(f->pool);
    WAIT(f, f->n_closed == 1);
    assert_int_equal(f->rq[0].read_end, ZT_OK);
    get(f, 2, 1);
    release(f, 0, 3);
    WAIT(f, f->n_closed == f->n_accepted);
    teardown(f);
}

/* ---- the server ---- */

static void server_without_a_credential_fails_with_its_reason(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->server.fail = true;
    ask(f, 0, 1);
    WAIT(f, f->n_failed == 1 && f->rq[0].done);
    assert_int_equal(f->failure.code, ZT_IDENTITY);
    assert_string_equal(f->failure.text, "no certificate today");
    assert_int_equal(open_servers(f), 0);
    teardown(f);
}

static void slow_handshake_is_bounded(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->config.handshake_timeout_ms = 100;
    int fd = zt_sock_connect(f->netns, &f->addr, NULL, &(struct zt_sock_opts){0});
    assert_true(fd >= 0);
    WAIT(f, f->n_failed == 1); /* in TLS */
    f->server.hold = true;
    int fd2 = zt_sock_connect(f->netns, &f->addr, NULL, &(struct zt_sock_opts){0});
    WAIT(f, f->n_failed == 2); /* waiting for the credential */
    assert_int_equal(f->failure.code, ZT_IDENTITY);
    assert_int_equal(open_servers(f), 0);
    close(fd);
    close(fd2);
    teardown(f);
}

static void garbage_fails_the_handshake_and_nothing_else(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    get(f, 0, 1);
    int fd = zt_sock_connect(f->netns, &f->addr, NULL, &(struct zt_sock_opts){0});
    zt_test_run_for_ms(f->l, 20);
    assert_int_equal(write(fd, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", 27), 27);
    WAIT(f, f->n_failed == 1);
    assert_int_equal(f->failure.code, ZT_TLS_HANDSHAKE);
    assert_int_equal(f->rq[0].read_end, ZT_OK);
    close(fd);
    teardown(f);
}

static void drain_during_the_handshake_is_remembered(void **state)
{
    struct fixture *f = &fx;
    setup(f, 100);
    f->server.hold = true;
    ask(f, 0, 1);
    WAIT(f, f->server.pending != NULL);
    zt_hbone_server_drain(zt_hbone_server_from_link(zt_list_first(&f->servers)));
    f->server.pending->done(f->server.pending, zt_tls_cred_ref(f->server.cred), NULL);
    f->server.hold = false;
    WAIT(f, f->rq[0].done);
    assert_int_equal(f->rq[0].err.code, ZT_OK); /* served before the second GOAWAY */
    release(f, 0, 1);
    release_server(f);
    WAIT(f, f->n_closed == f->n_accepted);
    teardown(f);
}

static void nothing_leaks_over_many_tunnels(void **state)
{
    struct fixture *f = &fx;
    setup(f, 1);
    unsigned fds = 0;
    for (unsigned i = 0; i < 20; i++) {
        get(f, 0, 4);
        release(f, 0, 4);
        release_server(f);
        WAIT(f, f->n_closed == f->n_accepted && zt_hbone_pool_tunnels(f->pool) == 0);
        zt_test_run_for_ms(f->l, 20);
        if (i == 0)
            fds = zt_test_open_fds();
    }
    assert_int_equal(zt_test_open_fds(), fds);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(connections_reused),
        cmocka_unit_test(unique_keys_have_unique_connections),
        cmocka_unit_test(connection_limits),
        cmocka_unit_test(server_goaway),
        cmocka_unit_test(single_pool),
        cmocka_unit_test(stress_test_single_source),
        cmocka_unit_test(stress_test_multiple_source),
        cmocka_unit_test(stress_test_many_client_many_sources),
        cmocka_unit_test(idle_eviction),
        cmocka_unit_test(idle_eviction_with_persistent),
        cmocka_unit_test(read_buffering),
        cmocka_unit_test(waiters_of_one_flight_share_its_failure_at_once),
        cmocka_unit_test(refused_dial_is_an_io_error_for_all),
        cmocka_unit_test(server_of_another_identity_is_an_io_error),
        cmocka_unit_test(client_that_the_server_refuses_fails_in_the_http2_handshake),
        cmocka_unit_test(flight_that_never_lands_is_bounded),
        cmocka_unit_test(unanswered_connect_is_bounded_and_hurts_nobody_else),
        cmocka_unit_test(refusal_names_the_status),
        cmocka_unit_test(peers_limit_of_streams_below_ours_is_honoured),
        cmocka_unit_test(tunnel_that_the_server_closed_is_not_handed_out),
        cmocka_unit_test(cancelled_requests_are_never_told),
        cmocka_unit_test(pool_that_goes_away_tells_its_requests),
        cmocka_unit_test(drained_pool_closes_idle_tunnels_and_still_serves),
        cmocka_unit_test(server_without_a_credential_fails_with_its_reason),
        cmocka_unit_test(slow_handshake_is_bounded),
        cmocka_unit_test(garbage_fails_the_handshake_and_nothing_else),
        cmocka_unit_test(drain_during_the_handshake_is_remembered),
        cmocka_unit_test(nothing_leaks_over_many_tunnels),
        cmocka_unit_test(inner_tunnels_share_one_outer_and_are_at_most_eight),
        cmocka_unit_test(inner_tunnel_retires_after_its_streams),
        cmocka_unit_test(inner_tunnel_retires_at_its_age_however_busy),
        cmocka_unit_test(inner_peer_is_verified_and_named),
        cmocka_unit_test(pool_that_ends_takes_inner_tunnels_under_way_with_it),
    };
    return cmocka_run_group_tests_name("hbone_pool", tests, NULL, NULL);
}
