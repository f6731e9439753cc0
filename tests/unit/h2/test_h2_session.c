/* Two sessions back to back: requests, data, ends, flow control, GOAWAY, pings. */
#include "support/h2_pair.h"
#include <nghttp2/nghttp2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define MIB (1024 * 1024)

static bool done_reading(struct h2_pair *p, const struct h2_end *e, uint64_t bytes)
{
    uint64_t end = zt_loop_now_ms(p->l) + 20000;
    while (e->received < bytes && zt_loop_now_ms(p->l) < end && !e->read_end)
        zt_loop_run_once(p->l, false);
    return e->received == bytes;
}

/* ---- requests ---- */

static void connect_reaches_the_owner_and_its_answer_comes_back(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    assert_int_equal(c.status, 200);
    assert_string_equal(p.server.method, "CONNECT");
    assert_string_equal(p.server.authority, "10.0.0.1:80");
    assert_int_equal(zt_h2_session_streams(p.client.s), 1);
    assert_int_equal(zt_h2_session_streams(p.server.s), 1);
    assert_int_equal(zt_h2_session_peer_streams_max(p.client.s), 200);
    assert_int_equal(p.client.n_settings, 1);
    h2_end_close(&c, ZT_OK);
    h2_settle(p.l);
    assert_int_equal(sv.read_end, ZT_EOF); /* RST_STREAM(CANCEL) */
    h2_end_close(&sv, ZT_OK);
    h2_settle(p.l);
    assert_int_equal(zt_h2_session_streams(p.client.s), 0);
    assert_int_equal(zt_h2_session_streams(p.server.s), 0);
    assert_int_equal(p.client.n_closed, 1);
    assert_true(zt_h2_session_usable(p.client.s));
    h2_pair_stop(&p);
}

static void refusal_with_end_of_stream_tells_the_status_and_frees_the_stream(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, NULL);
    h2_settle(p.l);
    assert_int_equal(p.server.n_requests, 1);
    zt_h2_respond(p.server.last, 401, NULL, 0, true);
    h2_settle(p.l);
    assert_int_equal(c.status, 401);
    assert_int_equal(c.read_end, ZT_EOF);
    assert_int_equal(zt_h2_session_streams(p.server.s), 0);
    h2_end_close(&c, ZT_OK);
    h2_pair_stop(&p);
}

static void cancelled_request_tells_the_servers_owner(void **state)
{
    struct h2_pair p;
    struct h2_end c = {0}, sv = {0};
    h2_pair_start(&p, NULL, NULL, NULL);
    p.server.answer = false;
    h2_pair_connect(&p, &c, NULL);
    p.server.next_end = &sv;
    h2_settle(p.l);
    assert_non_null(sv.st);
    h2_end_close(&c, ZT_OK);
    h2_settle(p.l);
    assert_true(sv.aborted);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

/* ---- data and ends ---- */

static void transfer(const struct zt_mem_opts *mem, uint64_t up, uint64_t down)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true, .to_write = up, .end_after = true};
    struct h2_end sv = {.reading = true, .to_write = down, .end_after = true};
    h2_pair_start(&p, mem, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    assert_true(done_reading(&p, &sv, up));
    assert_true(done_reading(&p, &c, down));
    h2_settle(p.l);
    assert_false(c.corrupt);
    assert_false(sv.corrupt);
    assert_int_equal(c.read_end, ZT_EOF);
    assert_int_equal(sv.read_end, ZT_EOF);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_settle(p.l);
    assert_int_equal(zt_h2_session_queued_bytes(p.client.s) + zt_h2_session_queued_bytes(p.server.s), 0);
    h2_pair_stop(&p);
}

static void sixty_four_mebibytes_arrive_intact_both_ways(void **state)
{
    struct zt_mem_opts mem = {.capacity_bytes = 256 * 1024};
    transfer(&mem, 64 * MIB, 8 * MIB);
}

static void data_delivered_in_random_pieces_arrives_intact(void **state)
{
    struct zt_mem_opts mem = {.capacity_bytes = 20 * 1024, .delivery = ZT_MEM_RANDOM, .seed = 7};
    transfer(&mem, 3 * MIB, 2 * MIB);
}

static void data_delivered_one_byte_at_a_time_arrives_intact(void **state)
{
    struct zt_mem_opts mem = {.delivery = ZT_MEM_BYTE};
    transfer(&mem, 50000, 30000);
}

static void half_close_works_in_each_direction(void **state)
{
    for (int first = 0; first < 2; first++) {
        struct h2_pair p;
        struct h2_end c = {.reading = true}, sv = {.reading = true};
        h2_pair_start(&p, NULL, NULL, NULL);
        h2_pair_connect(&p, &c, &sv);
        struct h2_end *a = first ? &c : &sv, *b = first ? &sv : &c;
        a->to_write = 1000;
        a->end_after = true;
        h2_end_write(a);
        h2_settle(p.l);
        assert_int_equal(b->received, 1000);
        assert_int_equal(b->read_end, ZT_EOF);
        assert_int_equal(a->read_end, ZT_OK);
        b->to_write = 5000; /* the other direction still works */
        b->end_after = true;
        h2_end_write(b);
        h2_settle(p.l);
        assert_int_equal(a->received, 5000);
        assert_int_equal(a->read_end, ZT_EOF);
        h2_end_close(&c, ZT_OK);
        h2_end_close(&sv, ZT_OK);
        h2_pair_stop(&p);
    }
}

static void half_close_without_data_works(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true, .end_after = true}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_settle(p.l);
    assert_int_equal(sv.read_end, ZT_EOF);
    assert_int_equal(c.read_end, ZT_OK);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void end_of_stream_promised_before_close_still_goes_out(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true, .end_after = true}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    sv.end_after = true;
    h2_end_write(&sv);
    h2_end_close(&sv, ZT_OK); /* the same turn */
    h2_settle(p.l);
    assert_int_equal(c.read_end, ZT_EOF);
    assert_int_equal(zt_h2_session_streams(p.server.s), 0);
    h2_end_close(&c, ZT_OK);
    h2_pair_stop(&p);
}

static void cut_transfer_does_not_look_complete(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true}, sv = {.to_write = 100};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_end_close(&sv, ZT_POLICY_CHANGED);
    h2_settle(p.l);
    assert_int_equal(c.received, 100);
    assert_int_equal(c.read_end, ZT_H2);
    h2_end_close(&c, ZT_OK);
    h2_pair_stop(&p);
}

static void writing_to_a_stream_that_was_reset_fails(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_end_close(&sv, ZT_OK);
    h2_settle(p.l);
    assert_int_equal(c.read_end, ZT_EOF);
    c.to_write = 10;
    h2_end_write(&c);
    assert_int_equal(c.write_error, ZT_RESET);
    h2_end_close(&c, ZT_OK);
    h2_pair_stop(&p);
}

/* ---- flow control ---- */

static void stalled_readers_do_not_slow_their_siblings(void **state)
{
    struct h2_pair p;
    struct zt_mem_opts mem = {.capacity_bytes = 256 * 1024};
    struct zt_h2_config cfg = h2_pair_config;
    cfg.stream_window_bytes = 256 * 1024;
    cfg.connection_window_bytes = 1024 * 1024;
    enum { STALLED = 8 }; /* together more than the connection's window */
    struct h2_end c[STALLED], sv[STALLED];
    struct h2_end live_c = {.reading = true}, live_sv = {.to_write = 16 * MIB};
    h2_pair_start(&p, &mem, &cfg, &cfg);
    for (int i = 0; i < STALLED; i++) {
        c[i] = (struct h2_end){0};
        sv[i] = (struct h2_end){.to_write = 4 * MIB};
        h2_pair_connect(&p, &c[i], &sv[i]);
    }
    h2_settle(p.l);
    for (int i = 0; i < STALLED; i++)
        assert_int_equal(sv[i].written, cfg.stream_window_bytes); /* one window each, no more */
    h2_pair_connect(&p, &live_c, &live_sv);
    assert_true(done_reading(&p, &live_c, 16 * MIB));
    /* What the stalled ones hold is bounded by their windows, and theirs once they read. */
    assert_true(zt_h2_session_queued_bytes(p.client.s) <= STALLED * 2 * cfg.stream_window_bytes);
    c[0].reading = true;
    h2_end_write(&c[0]);
    assert_true(done_reading(&p, &c[0], 4 * MIB));
    assert_false(c[0].corrupt);
    for (int i = 0; i < STALLED; i++) {
        h2_end_close(&c[i], ZT_OK);
        h2_end_close(&sv[i], ZT_OK);
    }
    h2_end_close(&live_c, ZT_OK);
    h2_end_close(&live_sv, ZT_OK);
    h2_pair_stop(&p);
}

static void streams_that_die_with_unread_data_cost_no_connection_window(void **state)
{
    struct h2_pair p;
    struct zt_mem_opts mem = {.capacity_bytes = 256 * 1024};
    struct zt_h2_config cfg = h2_pair_config;
    cfg.stream_window_bytes = 128 * 1024;
    cfg.connection_window_bytes = 256 * 1024;
    h2_pair_start(&p, &mem, &cfg, &cfg);
    for (int i = 0; i < 50; i++) {
        struct h2_end c = {0}, sv = {.to_write = MIB};
        h2_pair_connect(&p, &c, &sv);
        h2_settle(p.l);
        assert_int_equal(sv.written, cfg.stream_window_bytes);
        h2_end_close(&c, ZT_OK);
        h2_end_close(&sv, ZT_OK);
    }
    assert_int_equal(zt_h2_session_queued_bytes(p.client.s), 0);
    h2_pair_stop(&p);
}

static void blocked_lower_stream_blocks_writers_and_lets_them_go_on(void **state)
{
    struct h2_pair p;
    struct h2_end c = {0}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_settle(p.l);
    zt_mem_block_writes(p.client_lower, true);
    c.to_write = MIB;
    h2_end_write(&c);
    assert_true(c.written <= 65536); /* at most one frame is held here */
    h2_settle(p.l);
    assert_true(c.written <= 65536);
    zt_mem_block_writes(p.client_lower, false);
    assert_true(done_reading(&p, &sv, MIB));
    assert_false(sv.corrupt);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void data_frames_fill_tls_records(void **state)
{
    struct zt_loop *l = zt_loop_new("test");
    struct zt_stream *raw, *lower;
    struct zt_mem_opts mem = {.capacity_bytes = 1 * MIB};
    struct h2_side side;
    struct h2_end c = {0};
    struct h2_pair p = {.l = l};
    zt_mem_pair(l, &mem, &raw, &lower);
    h2_side_init(&side);
    side.s = zt_h2_session_new(l, ZT_H2_CLIENT, &h2_pair_config, lower, &side.owner);
    p.client = side;
    h2_pair_connect(&p, &c, NULL);
    h2_settle(l);
    uint8_t *data;
    size_t len, accepted;
    assert_int_equal(zt_stream_peek(raw, 0, &data, &len), ZT_OK);
    zt_stream_consume(raw, len);
    static uint8_t payload[3 * ZT_H2_DATA_STEP_BYTES];
    struct iovec iov = {payload, sizeof payload};
    assert_int_equal(zt_stream_writev(zt_h2_stream_pipe(c.st), &iov, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, sizeof payload);
    assert_int_equal(zt_stream_peek(raw, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 3 * 16384); /* three frames for a peer of 16 KiB frames, each a record */
    for (int i = 0; i < 3; i++)
        assert_int_equal(data[i * 16384] << 16 | data[i * 16384 + 1] << 8 | data[i * 16384 + 2], ZT_H2_DATA_STEP_BYTES);
    h2_end_close(&c, ZT_OK);
    zt_h2_session_close(side.s, ZT_OK);
    zt_stream_close(raw, ZT_OK);
    h2_settle(l);
    zt_loop_free(l);
}

/* ---- the end of a session ---- */

static void server_drain_serves_until_the_second_goaway(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true}, sv = {.reading = true}, c2 = {.reading = true}, sv2 = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    /* A request that is on its way when the drain begins is served. */
    h2_pair_connect(&p, &c2, NULL);
    p.server.next_end = &sv2;
    zt_h2_session_drain(p.server.s);
    h2_settle(p.l);
    assert_int_equal(c2.status, 200);
    assert_int_equal(p.client.n_goaway, 1);
    assert_false(zt_h2_session_usable(p.client.s));
    c.to_write = sv.to_write = 1000;
    c.end_after = sv.end_after = true;
    h2_end_write(&c);
    h2_end_write(&sv);
    h2_settle(p.l);
    assert_int_equal(sv.received, 1000);
    assert_false(p.server.closed);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_end_close(&c2, ZT_OK);
    h2_settle(p.l);
    h2_end_close(&sv2, ZT_OK);
    h2_settle(p.l);
    assert_true(p.server.closed);
    assert_true(p.client.closed);
    assert_int_equal(p.server.why.code, ZT_OK);
    assert_int_equal(p.client.why.code, ZT_OK);
    h2_pair_stop(&p);
}

static void client_drain_closes_after_the_last_stream(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true}, sv = {.reading = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    zt_h2_session_drain(p.client.s);
    h2_settle(p.l);
    assert_false(p.client.closed);
    assert_false(zt_h2_session_usable(p.client.s));
    c.end_after = sv.end_after = true;
    h2_end_write(&c);
    h2_end_write(&sv);
    h2_settle(p.l);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_settle(p.l);
    assert_true(p.client.closed);
    assert_true(p.server.closed);
    assert_int_equal(p.server.why.code, ZT_OK);
    h2_pair_stop(&p);
}

/* A gateway between may drop what it has not passed on when the connection ends, so it stays until the PONG. */
static void client_drain_waits_until_the_peer_has_everything(void **state)
{
    struct h2_pair p;
    struct h2_end c = {.reading = true, .to_write = 1000, .end_after = true}, sv = {.reading = true, .end_after = true};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_end_write(&sv);
    h2_settle(p.l);
    zt_mem_block_writes(p.server_lower, true);
    h2_end_write(&c);
    h2_settle(p.l);
    h2_end_close(&c, ZT_OK);
    zt_h2_session_drain(p.client.s);
    h2_settle(p.l);
    assert_false(p.client.closed);
    assert_int_equal(sv.received, 1000);
    assert_int_equal(sv.read_end, ZT_EOF);
    h2_end_close(&sv, ZT_OK);
    zt_mem_block_writes(p.server_lower, false);
    assert_true(h2_run_until(p.l, &p.client.closed));
    h2_settle(p.l);
    assert_true(p.server.closed);
    assert_int_equal(p.server.why.code, ZT_OK);
    h2_pair_stop(&p);
}

static void lost_session_is_an_error_for_its_streams_after_their_data(void **state)
{
    struct h2_pair p;
    struct h2_end c = {0}, sv = {.to_write = 1000};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_settle(p.l);
    zt_mem_inject_read_end(p.client_lower, ZT_RESET);
    h2_settle(p.l);
    assert_true(p.client.closed);
    assert_int_equal(p.client.why.code, ZT_H2);
    c.reading = true;
    h2_end_write(&c);
    h2_settle(p.l);
    assert_int_equal(c.received, 1000);
    assert_int_equal(c.read_end, ZT_H2);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void read_buffering_closed_session_still_gives_what_was_received(void **state)
{
    struct h2_pair p;
    struct h2_end c = {0}, sv = {.to_write = 5000};
    h2_pair_start(&p, NULL, NULL, NULL);
    h2_pair_connect(&p, &c, &sv);
    h2_settle(p.l);
    zt_h2_session_close(p.client.s, ZT_POOL_DRAINING);
    p.client.s = NULL;
    h2_settle(p.l);
    assert_false(p.client.closed); /* on_closed does not run after close */
    uint8_t *data;
    size_t len;
    struct zt_stream *pipe = zt_h2_stream_pipe(c.st);
    assert_int_equal(zt_stream_peek(pipe, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 5000);
    zt_stream_consume(pipe, 100);
    assert_int_equal(zt_stream_peek(pipe, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 4900);
    zt_stream_consume(pipe, 4900);
    assert_int_equal(zt_stream_peek(pipe, 0, &data, &len), ZT_POOL_DRAINING);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void silent_peer_ends_a_client_by_ping_timeout(void **state)
{
    struct h2_pair p;
    struct zt_h2_config cfg = h2_pair_config;
    struct h2_end c = {.reading = true}, sv = {0};
    cfg.ping_interval_ms = 30;
    cfg.ping_timeout_ms = 60;
    h2_pair_start(&p, NULL, &cfg, NULL);
    h2_pair_connect(&p, &c, &sv);
    uint64_t begin = zt_loop_now_ms(p.l);
    while (zt_loop_now_ms(p.l) - begin < 200)
        zt_loop_run_once(p.l, true);
    assert_false(p.client.closed); /* pongs come */
    zt_mem_block_writes(p.server_lower, true);
    assert_true(h2_run_until(p.l, &p.client.closed));
    assert_int_equal(p.client.why.code, ZT_TIMEOUT);
    h2_settle(p.l);
    assert_int_equal(c.read_end, ZT_H2);
    assert_true(p.server.closed); /* dropped, not drained */
    assert_int_equal(p.server.why.code, ZT_H2);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void silent_peer_ends_a_server_with_goaway(void **state)
{
    struct h2_pair p;
    struct zt_h2_config cfg = h2_pair_config;
    struct h2_end c = {.reading = true}, sv = {.reading = true};
    cfg.ping_interval_ms = 30;
    cfg.ping_timeout_ms = 60;
    h2_pair_start(&p, NULL, NULL, &cfg);
    h2_pair_connect(&p, &c, &sv);
    zt_mem_block_writes(p.client_lower, true);
    assert_true(h2_run_until(p.l, &p.server.closed));
    h2_settle(p.l);
    assert_int_equal(sv.read_end, ZT_H2);
    assert_int_equal(p.client.n_goaway, 1);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

static void pings_go_on_under_a_stalled_transfer(void **state)
{
    struct h2_pair p;
    struct zt_h2_config cfg = h2_pair_config;
    struct h2_end c = {0}, sv = {.to_write = 64 * MIB};
    cfg.ping_interval_ms = 20;
    cfg.ping_timeout_ms = 200;
    h2_pair_start(&p, NULL, &cfg, &cfg);
    h2_pair_connect(&p, &c, &sv);
    uint64_t begin = zt_loop_now_ms(p.l);
    while (zt_loop_now_ms(p.l) - begin < 400)
        zt_loop_run_once(p.l, true);
    assert_false(p.client.closed);
    assert_false(p.server.closed);
    h2_end_close(&c, ZT_OK);
    h2_end_close(&sv, ZT_OK);
    h2_pair_stop(&p);
}

/* ---- the budget ---- */

static unsigned n_shed;

static void count_shed(struct zt_h2_budget *b)
{
    n_shed++;
}

static void budget_init(struct zt_h2_budget *b, struct zt_h2_config *cfg)
{
    *b = (struct zt_h2_budget){.max = 64 * 1024, .on_shed = count_shed};
    zt_list_init(&b->holders);
    *cfg = h2_pair_config;
    cfg->budget = b;
    n_shed = 0;
}

static void budget_resets_the_newest_holder_and_nobody_else(void **state)
{
    struct zt_h2_budget b;
    struct zt_h2_config cfg;
    struct h2_pair p;
    struct h2_end c[2], sv[2];
    budget_init(&b, &cfg);
    h2_pair_start(&p, NULL, &cfg, NULL);
    for (int i = 0; i < 2; i++) {
        c[i] = (struct h2_end){0};
        sv[i] = (struct h2_end){.to_write = 40 * 1024};
        h2_pair_connect(&p, &c[i], &sv[i]);
        h2_settle(p.l);
    }
    assert_int_equal(n_shed, 1);
    for (int i = 0; i < 2; i++) {
        c[i].reading = true;
        h2_end_write(&c[i]);
    }
    h2_settle(p.l);
    assert_int_equal(c[0].received, 40 * 1024);
    assert_int_equal(c[0].read_end, ZT_OK);
    assert_int_equal(c[1].received, 0);
    assert_int_equal(c[1].read_end, ZT_LIMIT);
    for (int i = 0; i < 2; i++) {
        h2_end_close(&c[i], ZT_OK);
        h2_end_close(&sv[i], ZT_OK);
    }
    assert_int_equal(b.used, 0);
    h2_pair_stop(&p);
}

/* What TLS has opened in a stream's memory must stay there. */
static void stream_that_carries_a_connection_keeps_its_bytes(void **state)
{
    for (int revoked = 0; revoked < 2; revoked++) {
        struct zt_h2_budget b;
        struct zt_h2_config cfg;
        struct h2_pair p;
        struct h2_end c = {0}, sv = {.to_write = 30 * 1024};
        budget_init(&b, &cfg);
        h2_pair_start(&p, NULL, &cfg, NULL);
        h2_pair_connect(&p, &c, &sv);
        h2_settle(p.l);
        assert_true(b.used > 0);
        zt_h2_stream_carry(c.st);
        assert_int_equal(b.used, 0);
        sv.to_write = 100 * 1024; /* beyond the budget, within the window */
        h2_end_write(&sv);
        h2_settle(p.l);
        if (revoked) {
            zt_h2_session_close(p.client.s, ZT_REVOKED);
            p.client.s = NULL;
        }
        c.reading = true;
        h2_end_write(&c);
        h2_settle(p.l);
        assert_int_equal(n_shed, 0);
        assert_int_equal(c.received, 100 * 1024);
        assert_int_equal(c.read_end, revoked ? ZT_REVOKED : ZT_OK);
        h2_end_close(&c, ZT_OK);
        h2_end_close(&sv, ZT_OK);
        h2_pair_stop(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(connect_reaches_the_owner_and_its_answer_comes_back),
        cmocka_unit_test(refusal_with_end_of_stream_tells_the_status_and_frees_the_stream),
        cmocka_unit_test(cancelled_request_tells_the_servers_owner),
        cmocka_unit_test(sixty_four_mebibytes_arrive_intact_both_ways),
        cmocka_unit_test(data_delivered_in_random_pieces_arrives_intact),
        cmocka_unit_test(data_delivered_one_byte_at_a_time_arrives_intact),
        cmocka_unit_test(half_close_works_in_each_direction),
        cmocka_unit_test(half_close_without_data_works),
        cmocka_unit_test(end_of_stream_promised_before_close_still_goes_out),
        cmocka_unit_test(cut_transfer_does_not_look_complete),
        cmocka_unit_test(writing_to_a_stream_that_was_reset_fails),
        cmocka_unit_test(stalled_readers_do_not_slow_their_siblings),
        cmocka_unit_test(streams_that_die_with_unread_data_cost_no_connection_window),
        cmocka_unit_test(blocked_lower_stream_blocks_writers_and_lets_them_go_on),
        cmocka_unit_test(data_frames_fill_tls_records),
        cmocka_unit_test(server_drain_serves_until_the_second_goaway),
        cmocka_unit_test(client_drain_closes_after_the_last_stream),
        cmocka_unit_test(client_drain_waits_until_the_peer_has_everything),
        cmocka_unit_test(lost_session_is_an_error_for_its_streams_after_their_data),
        cmocka_unit_test(read_buffering_closed_session_still_gives_what_was_received),
        cmocka_unit_test(silent_peer_ends_a_client_by_ping_timeout),
        cmocka_unit_test(silent_peer_ends_a_server_with_goaway),
        cmocka_unit_test(pings_go_on_under_a_stalled_transfer),
        cmocka_unit_test(budget_resets_the_newest_holder_and_nobody_else),
        cmocka_unit_test(stream_that_carries_a_connection_keeps_its_bytes),
    };
    return cmocka_run_group_tests_name("h2_session", tests, NULL, NULL);
}
