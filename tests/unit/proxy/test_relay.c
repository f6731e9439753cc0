/* zt/proxy/relay.h: client <-> down [relay] up <-> server, over memory streams (whole, byte by
 * byte, in random pieces) and over real TCP. The application's ends are streams too, so most tests
 * run unchanged over every kind. */
#include "support/net_fixture.h"
#include "support/stream_mem.h"
#include "zt/base/clock.h"
#include "zt/net/tcp.h"
#include "zt/proxy/relay.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#define WAIT_MS 10000

/* SPLICED: TCP where every turn moves its bytes through a pipe, however few they are. */
enum kind { MEM_ALL, MEM_BYTE, MEM_RANDOM, TCP, SPLICED };

struct fixture {
    enum kind kind;
    struct zt_loop *loop;
    struct zt_stream_owner nobody;
    struct zt_stream *client, *down, *up, *server;
    struct zt_relay relay;
    uint64_t received, sent;
    unsigned n_done;
    struct zt_error err;
};

static void on_ready_ignored(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
}

static void on_done(struct zt_relay *r, const struct zt_error *err)
{
    struct fixture *f = zt_container_of(r, struct fixture, relay);
    f->n_done++;
    f->err = *err;
    memset(r, 0xa5, sizeof *r); /* the memory is the owner's again */
}

static void make_pair(struct fixture *f, enum kind kind, size_t capacity, uint32_t seed,
                      struct zt_stream **a, struct zt_stream **b)
{
    struct zt_mem_opts o = {.capacity_bytes = capacity, .seed = seed};
    if (kind >= TCP) {
        int fds[2];
        zt_test_tcp_pair(&fds[0], &fds[1]);
        *a = zt_tcp_stream_new(f->loop, fds[0], &f->nobody);
        *b = zt_tcp_stream_new(f->loop, fds[1], &f->nobody);
        return;
    }
    o.delivery = kind == MEM_ALL ? ZT_MEM_ALL : kind == MEM_BYTE ? ZT_MEM_BYTE : ZT_MEM_RANDOM;
    zt_mem_pair(f->loop, &o, a, b);
    (*a)->owner = (*b)->owner = &f->nobody;
}

static struct fixture *fixture_with(enum kind down, enum kind up, size_t capacity, uint32_t seed)
{
    struct fixture *f = zt_new(struct fixture);
    f->kind = down;
    f->nobody.on_ready = on_ready_ignored;
    f->loop = zt_loop_new("test");
    make_pair(f, down, capacity, seed, &f->client, &f->down);
    make_pair(f, up, capacity, seed + 1, &f->up, &f->server);
    return f;
}

static void start(struct fixture *f, bool down_tunnel, bool up_tunnel)
{
    zt_relay_start(&f->relay,
                   &(struct zt_relay_ends){.down = f->down,
                                           .up = f->up,
                                           .down_tunnel = down_tunnel,
                                           .up_tunnel = up_tunnel,
                                           .received = &f->received,
                                           .sent = &f->sent},
                   on_done);
}

static void finish(struct fixture *f)
{
    zt_stream_close(f->client, ZT_OK);
    zt_stream_close(f->server, ZT_OK);
    if (f->n_done == 0)
        zt_relay_abort(&f->relay, ZT_DRAINED);
    zt_loop_free(f->loop);
    zt_free(f);
}

static int setup(void **state)
{
    struct fixture *f = fixture_with(*(enum kind *)*state, *(enum kind *)*state, 0, 7);
    start(f, false, false);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    finish(*state);
    return 0;
}

static void turn(struct fixture *f)
{
    if (f->kind == SPLICED && f->n_done == 0)
        f->relay.down.bulk = f->relay.up.bulk = true;
    zt_loop_run_once(f->loop, false);
}

static void turns(struct fixture *f, int n)
{
    while (n-- > 0)
        turn(f);
}

/* Writes everything, turning the loop while the stream takes nothing. */
static void put(struct fixture *f, struct zt_stream *s, const void *bytes, size_t n)
{
    uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;
    const uint8_t *p = bytes;
    while (n > 0) {
        struct iovec iov = {(void *)(uintptr_t)p, n};
        size_t taken = 0;
        enum zt_err e = zt_stream_writev(s, &iov, 1, &taken);
        assert_true(e == ZT_OK || e == ZT_AGAIN);
        p += taken;
        n -= taken;
        turn(f);
        assert_true(zt_clock_mono_ms() < deadline);
    }
}

static void put_text(struct fixture *f, struct zt_stream *s, const char *text)
{
    put(f, s, text, strlen(text));
}

/* What the stream shows beyond nothing: bytes (ZT_OK) or the end. */
static enum zt_err await(struct fixture *f, struct zt_stream *s, uint8_t **data, size_t *len)
{
    uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;
    enum zt_err e;
    while ((e = zt_stream_peek(s, 0, data, len)) == ZT_AGAIN) {
        turn(f);
        assert_true(zt_clock_mono_ms() < deadline);
    }
    return e;
}

static void expect_text(struct fixture *f, struct zt_stream *s, const char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        uint8_t *data;
        size_t len;
        assert_int_equal(await(f, s, &data, &len), ZT_OK);
        size_t n = len < left ? len : left;
        assert_memory_equal(data, text, n);
        zt_stream_consume(s, n);
        text += n;
        left -= n;
    }
}

static void expect_end(struct fixture *f, struct zt_stream *s, enum zt_err end)
{
    uint8_t *data;
    size_t len;
    assert_int_equal(await(f, s, &data, &len), end);
}

static void expect_done(struct fixture *f, enum zt_err code, const char *text)
{
    uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;
    while (f->n_done == 0 && zt_clock_mono_ms() < deadline)
        turn(f);
    turns(f, 5);
    assert_int_equal(f->n_done, 1);
    assert_int_equal(f->err.code, code);
    assert_string_equal(f->err.text, text);
}

/* ---- ends in order, over every kind ---- */

static void relay_half_close_upstream_first(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->client, "request");
    expect_text(f, f->server, "request");
    put_text(f, f->server, "response");
    zt_stream_shutdown_write(f->server);
    expect_text(f, f->client, "response");
    expect_end(f, f->client, ZT_EOF);
    put_text(f, f->client, "more after your end");
    expect_text(f, f->server, "more after your end");
    assert_int_equal(f->n_done, 0);
    zt_stream_shutdown_write(f->client);
    expect_end(f, f->server, ZT_EOF);
    expect_done(f, ZT_OK, "");
}

static void relay_half_close_downstream_first(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->client, "request");
    zt_stream_shutdown_write(f->client);
    expect_text(f, f->server, "request");
    expect_end(f, f->server, ZT_EOF);
    put_text(f, f->server, "a response that comes after the request's end");
    expect_text(f, f->client, "a response that comes after the request's end");
    assert_int_equal(f->n_done, 0);
    zt_stream_shutdown_write(f->server);
    expect_end(f, f->client, ZT_EOF);
    expect_done(f, ZT_OK, "");
}

static void relay_half_close_both_at_once_delivers_both(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->client, "to the server");
    zt_stream_shutdown_write(f->client);
    put_text(f, f->server, "to the client");
    zt_stream_shutdown_write(f->server);
    expect_text(f, f->server, "to the server");
    expect_end(f, f->server, ZT_EOF);
    expect_text(f, f->client, "to the client");
    expect_end(f, f->client, ZT_EOF);
    expect_done(f, ZT_OK, "");
}

static void relay_half_close_without_a_byte(void **state)
{
    struct fixture *f = *state;
    zt_stream_shutdown_write(f->server);
    expect_end(f, f->client, ZT_EOF);
    assert_int_equal(f->n_done, 0);
    zt_stream_shutdown_write(f->client);
    expect_end(f, f->server, ZT_EOF);
    expect_done(f, ZT_OK, "");
    assert_int_equal(f->received + f->sent, 0);
}

static void relay_server_first_speaks_before_the_client(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->server, "220 ready");
    expect_text(f, f->client, "220 ready");
    assert_int_equal(f->received, 0);
    assert_int_equal(f->sent, 9);
}

static void relay_accounting_counts_payload_by_direction(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->client, "12345");
    expect_text(f, f->server, "12345");
    put_text(f, f->server, "1234567");
    expect_text(f, f->client, "1234567");
    assert_int_equal(f->received, 5);
    assert_int_equal(f->sent, 7);
}

static void relay_client_that_closes_ends_everything(void **state)
{
    struct fixture *f = *state;
    put_text(f, f->client, "bye");
    zt_stream_close(f->client, ZT_OK);
    f->client = NULL;
    expect_text(f, f->server, "bye");
    expect_end(f, f->server, ZT_EOF);
    zt_stream_shutdown_write(f->server);
    expect_done(f, ZT_OK, "");
}

static void relay_stalled_reader_stops_the_writer_and_nobody_else(void **state)
{
    struct fixture *f = *state;
    static uint8_t block[16384];
    struct iovec iov = {block, sizeof block};
    size_t total = 0, taken;
    for (int idle = 0; idle < 50; turn(f)) {
        enum zt_err e = zt_stream_writev(f->client, &iov, 1, &taken);
        total += taken;
        idle = e == ZT_AGAIN ? idle + 1 : 0;
        assert_true(total < 64u << 20);
    }
    assert_true(f->received <
                total); /* the rest is unread on the client's side, not queued in the relay */
    if (f->kind < TCP)
        assert_true(total <= 2 * 64 * 1024);
    put_text(f, f->server, "the other direction flows");
    expect_text(f, f->client, "the other direction flows");
    zt_stream_shutdown_write(f->client);
    for (size_t left = total; left > 0;) {
        uint8_t *data;
        size_t len;
        assert_int_equal(await(f, f->server, &data, &len), ZT_OK);
        zt_stream_consume(f->server, len);
        left -= len;
    }
    expect_end(f, f->server, ZT_EOF);
    assert_int_equal(f->received, total);
}

/* ---- bulk ---- */

static uint8_t pattern(uint64_t i)
{
    return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 16));
}

/* n bytes each way at once, every byte checked. */
static void exchange(struct fixture *f, size_t n, size_t chunk)
{
    struct zt_stream *from[2] = {f->client, f->server}, *to[2] = {f->server, f->client};
    uint64_t written[2] = {0}, read[2] = {0}, deadline = zt_clock_mono_ms() + 60000;
    uint8_t *block = zt_new_n(uint8_t, chunk);
    while (read[0] < n || read[1] < n) {
        for (int d = 0; d < 2; d++) {
            size_t len = n - written[d] < chunk ? n - written[d] : chunk, taken = 0;
            for (size_t i = 0; i < len; i++)
                block[i] = pattern(written[d] + i);
            struct iovec iov = {block, len};
            if (len > 0)
                zt_stream_writev(from[d], &iov, 1, &taken);
            written[d] += taken;
            uint8_t *data;
            if (zt_stream_peek(to[d], 0, &data, &len) != ZT_OK)
                continue;
            for (size_t i = 0; i < len; i++)
                if (data[i] != pattern(read[d] + i))
                    fail_msg("byte %llu of direction %d differs", (unsigned long long)(read[d] + i),
                             d);
            zt_stream_consume(to[d], len);
            read[d] += len;
        }
        turn(f);
        assert_true(zt_clock_mono_ms() < deadline);
    }
    zt_free(block);
    assert_int_equal(f->received, n);
    assert_int_equal(f->sent, n);
}

static void relay_copy(void **state)
{
    enum kind kinds[] = {TCP, MEM_ALL};
    for (int i = 0; i < 2; i++) {
        struct fixture *f = fixture_with(kinds[i], kinds[i], 0, 1);
        start(f, false, false);
        exchange(f, 1000 * 32000, 32000);
        finish(f);
    }
}

static void relay_copystress(void **state)
{
    for (uint32_t seed = 1; seed <= 20; seed++) {
        struct fixture *f = fixture_with(MEM_RANDOM, MEM_RANDOM, 1 + seed * 397 % 5000, seed);
        start(f, false, seed % 2);
        exchange(f, 100000, 1 + seed * 131 % 3000);
        zt_stream_shutdown_write(f->client);
        zt_stream_shutdown_write(f->server);
        expect_done(f, ZT_OK, "");
        finish(f);
    }
}

static void relay_turn_is_bounded(void **state)
{
    enum { TOTAL = 16 << 20 };
    struct fixture *f = fixture_with(MEM_RANDOM, MEM_RANDOM, TOTAL, 3);
    uint8_t *block = zt_new_n(uint8_t, TOTAL);
    put(f, f->client, block, TOTAL);
    zt_free(block);
    start(f, false, false);
    turn(f);
    assert_true(f->received > 0);
    assert_true(f->received <= 5 * ZT_RELAY_TURN_BYTES &&
                f->received < TOTAL); /* a loop's turn has a few passes */
    uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;
    while (f->received < TOTAL && zt_clock_mono_ms() < deadline)
        turn(f);
    assert_int_equal(f->received, TOTAL);
    finish(f);
}

/* ---- ends that are not in order ---- */

/* "RST is never propagated as RST" (spec/dataplane §7.2). */
static void relay_rst_of_the_application_is_a_half_close(void **state)
{
    struct fixture *f = fixture_with(TCP, TCP, 0, 0);
    start(f, false, false);
    put_text(f, f->server, "partial");
    expect_text(f, f->client, "partial");
    zt_stream_close(f->server, ZT_IO); /* RST */
    f->server = NULL;
    expect_end(f, f->client, ZT_EOF);
    zt_stream_shutdown_write(f->client);
    expect_done(f, ZT_OK, "");
    finish(f);
}

/* Envoy: DATA, then RST_STREAM(CONNECT_ERROR), no END_STREAM (spec/dataplane §15). */
static void relay_reset_tunnel_delivers_everything_then_fin(void **state)
{
    struct fixture *f = fixture_with(TCP, MEM_ALL, 0, 0);
    put_text(f, f->server, "HTTP/1.1 200 OK\r\n\r\n");
    zt_mem_inject_read_end(f->up, ZT_RESET);
    start(f, false, true);
    expect_text(f, f->client, "HTTP/1.1 200 OK\r\n\r\n");
    expect_end(f, f->client, ZT_EOF);
    zt_stream_shutdown_write(f->client);
    expect_done(f, ZT_OK, "");
    finish(f);
}

static void relay_upload_into_a_reset_tunnel_is_an_error_and_the_response_arrives(void **state)
{
    struct fixture *f = fixture_with(TCP, MEM_ALL, 0, 0);
    put_text(f, f->server, "413 too large");
    zt_mem_block_writes(f->up, true);
    start(f, false, true);
    put_text(f, f->client, "an upload");
    turns(f, 20);
    assert_int_equal(f->received, 0);
    zt_mem_inject_write_error(f->up, ZT_RESET);
    turns(f, 5);
    assert_int_equal(f->n_done, 0);
    zt_mem_inject_read_end(f->up, ZT_RESET);
    expect_text(f, f->client, "413 too large");
    expect_done(f, ZT_SEND, "destination disconnected before all data was written");
    finish(f);
}

static void relay_response_into_a_reset_tunnel_is_an_error(void **state)
{
    struct fixture *f = fixture_with(MEM_ALL, TCP, 0, 0);
    zt_mem_inject_write_error(f->down, ZT_RESET);
    zt_mem_inject_read_end(f->down, ZT_RESET);
    start(f, true, false);
    put_text(f, f->server, "too late");
    expect_done(f, ZT_RECEIVE, "client disconnected before all data was written");
    finish(f);
}

static void relay_write_to_a_reset_socket_ends_silently(void **state)
{
    struct fixture *f = fixture_with(MEM_ALL, TCP, 0, 0);
    start(f, true, false);
    turns(f, 2);
    zt_stream_close(f->server, ZT_IO);
    f->server = NULL;
    put_text(f, f->client, "nobody reads this");
    expect_end(f, f->client, ZT_EOF);
    expect_done(f, ZT_OK, "");
    finish(f);
}

static void relay_closing_a_reset_tunnel_is_an_error_and_a_reset_socket_is_not(void **state)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct fixture *f = fixture_with(MEM_ALL, MEM_ALL, 0, 0);
        zt_mem_inject_write_error(f->up, ZT_RESET);
        start(f, false, tunnel);
        zt_stream_shutdown_write(f->client);
        turns(f, 3);
        assert_int_equal(f->n_done, 0); /* the other direction goes on */
        put_text(f, f->server, "still here");
        expect_text(f, f->client, "still here");
        zt_stream_shutdown_write(f->server);
        expect_done(f, tunnel ? ZT_CLOSING : ZT_OK, tunnel ? "stream no longer needed" : "");
        finish(f);
    }
}

/* Bytes may be missing: a FIN would make a truncated transfer look complete (spec/dataplane §16).
 */
static void relay_lost_tunnel_resets_the_application(void **state)
{
    static const enum zt_err lost[] = {ZT_H2, ZT_TIMEOUT, ZT_IO};
    static const char *const texts[] = {"h2 failed: stream lost",
                                        "io error: Connection timed out (os error 110)",
                                        "io error: connection failed"};
    for (int i = 0; i < 3; i++) {
        struct fixture *f = fixture_with(TCP, MEM_ALL, 0, 0);
        start(f, false, true);
        put_text(f, f->server, "first half");
        expect_text(f, f->client, "first half");
        zt_mem_inject_read_end(f->up, lost[i]);
        expect_end(f, f->client, ZT_RESET);
        expect_done(f, ZT_RECEIVE, texts[i]);
        enum zt_err why = ZT_OK;
        assert_true(zt_mem_other_closed(f->server, &why));
        assert_int_equal(why, lost[i]);
        finish(f);
    }
}

static void relay_lost_while_writing_is_the_send_directions_error(void **state)
{
    struct fixture *f = fixture_with(TCP, MEM_ALL, 0, 0);
    start(f, false, true);
    zt_mem_inject_write_error(f->up, ZT_TIMEOUT);
    put_text(f, f->client, "x");
    expect_end(f, f->client, ZT_RESET);
    expect_done(f, ZT_SEND, "io error: Connection timed out (os error 110)");
    finish(f);
}

static void relay_send_error_goes_before_receive_error(void **state)
{
    struct fixture *f = fixture_with(MEM_ALL, MEM_ALL, 0, 0);
    start(f, true, true);
    zt_mem_inject_write_error(f->up, ZT_RESET);
    zt_mem_inject_write_error(f->down, ZT_RESET);
    put_text(f, f->server, "down");
    put_text(f, f->client, "up");
    expect_done(f, ZT_SEND, "destination disconnected before all data was written");
    finish(f);
}

static void relay_abort_resets_both_and_tells_nobody(void **state)
{
    struct fixture *f = fixture_with(TCP, TCP, 0, 0);
    start(f, false, false);
    put_text(f, f->client, "in the middle of");
    expect_text(f, f->server, "in the middle of");
    zt_relay_abort(&f->relay, ZT_POLICY_CHANGED);
    zt_relay_abort(&f->relay, ZT_DRAINED); /* legal again */
    expect_end(f, f->client, ZT_RESET);
    expect_end(f, f->server, ZT_RESET);
    turns(f, 5);
    assert_int_equal(f->n_done, 0);
    finish(f);
}

static void relay_abort_closes_streams_with_the_reason(void **state)
{
    struct fixture *f = fixture_with(MEM_ALL, MEM_ALL, 0, 0);
    enum zt_err why[2] = {ZT_OK, ZT_OK};
    start(f, false, true);
    zt_relay_abort(&f->relay, ZT_POLICY_CHANGED);
    assert_true(zt_mem_other_closed(f->client, &why[0]));
    assert_true(zt_mem_other_closed(f->server, &why[1]));
    assert_int_equal(why[0], ZT_POLICY_CHANGED);
    assert_int_equal(why[1], ZT_POLICY_CHANGED);
    finish(f);
}

/* ---- pipes ---- */

/* Fills the way from the client until nothing is taken any more; returns how much went in. */
static size_t fill(struct fixture *f)
{
    static uint8_t block[65536];
    struct iovec iov = {block, sizeof block};
    size_t total = 0, taken;
    for (int idle = 0; idle < 50; turn(f)) {
        enum zt_err e = zt_stream_writev(f->client, &iov, 1, &taken);
        total += taken;
        idle = e == ZT_AGAIN ? idle + 1 : 0;
    }
    return total;
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void relay_much_goes_through_a_pipe_and_little_does_not(void **state)
{
    struct fixture *f = fixture_with(TCP, TCP, 0, 0);
    start(f, false, false);
    put_text(f, f->client, "little");
    expect_text(f, f->server, "little");
    assert_false(f->relay.down.bulk);
    size_t total = fill(f);
    assert_true(f->relay.down.bulk && f->relay.down.waiting);
    assert_non_null(f->relay.down.pipe);
    assert_true(f->relay.down.pipe->held > 0);
    for (size_t left = total; left > 0;) {
        uint8_t *data;
        size_t len;
        assert_int_equal(await(f, f->server, &data, &len), ZT_OK);
        zt_stream_consume(f->server, len);
        left -= len;
    }
    turns(f, 5);
    assert_null(f->relay.down.pipe); /* an idle connection holds none */
    unsigned with_pipe = open_fds();
    uint64_t deadline = zt_clock_mono_ms() + WAIT_MS;
    while (open_fds() == with_pipe && zt_clock_mono_ms() < deadline)
        zt_loop_run_once(f->loop, true);
    assert_int_equal(open_fds(), with_pipe - 2); /* nor does a quiet loop */
    put_text(f, f->client, "little again");
    expect_text(f, f->server, "little again");
    turns(f, 5);
    assert_false(f->relay.down.bulk);
    assert_int_equal(f->received, total + 18);
    finish(f);
}

static void relay_abort_with_bytes_in_the_pipe_resets_both(void **state)
{
    struct fixture *f = fixture_with(TCP, TCP, 0, 0);
    start(f, false, false);
    fill(f);
    assert_true(f->relay.down.pipe && f->relay.down.pipe->held > 0);
    zt_relay_abort(&f->relay, ZT_POLICY_CHANGED);
    assert_null(f->relay.down.pipe);
    uint8_t *data;
    size_t len;
    while (await(f, f->server, &data, &len) == ZT_OK)
        zt_stream_consume(f->server, len);
    expect_end(f, f->server, ZT_RESET);
    finish(f);
}

static void relay_without_a_pipe_to_be_had_copies(void **state)
{
    struct fixture *f = fixture_with(SPLICED, SPLICED, 0, 0);
    struct zt_pipe *taken[ZT_PIPES_MAX];
    for (int i = 0; i < ZT_PIPES_MAX; i++)
        assert_non_null(taken[i] = zt_loop_pipe_get(f->loop));
    assert_null(zt_loop_pipe_get(f->loop));
    start(f, false, false);
    exchange(f, 4 << 20, 65536);
    assert_null(f->relay.down.pipe);
    for (int i = 0; i < ZT_PIPES_MAX; i++)
        zt_loop_pipe_put(f->loop, taken[i]);
    f->received = f->sent = 0;
    exchange(f, 4 << 20, 65536);
    finish(f);
}

static void relay_start_never_tells_the_end_itself(void **state)
{
    struct fixture *f = fixture_with(MEM_ALL, MEM_ALL, 0, 0);
    zt_stream_close(f->client, ZT_OK);
    zt_stream_close(f->server, ZT_OK);
    f->client = f->server = NULL;
    start(f, false, false);
    assert_int_equal(f->n_done, 0);
    expect_done(f, ZT_OK, "");
    finish(f);
}

static enum kind kinds[] = {MEM_ALL, MEM_BYTE, MEM_RANDOM, TCP, SPLICED};

#define KIND_TEST(fn, k, label)                                                                    \
    {                                                                                              \
#fn " over " label, fn, setup, teardown, &kinds[k]                                         \
    }
#define EVERY_KIND(fn)                                                                             \
    KIND_TEST(fn, 0, "memory"), KIND_TEST(fn, 1, "single bytes"),                                  \
        KIND_TEST(fn, 2, "random pieces"), KIND_TEST(fn, 3, "TCP"), KIND_TEST(fn, 4, "a pipe")

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVERY_KIND(relay_half_close_upstream_first),
        EVERY_KIND(relay_half_close_downstream_first),
        EVERY_KIND(relay_half_close_both_at_once_delivers_both),
        EVERY_KIND(relay_half_close_without_a_byte),
        EVERY_KIND(relay_server_first_speaks_before_the_client),
        EVERY_KIND(relay_accounting_counts_payload_by_direction),
        EVERY_KIND(relay_client_that_closes_ends_everything),
        EVERY_KIND(relay_stalled_reader_stops_the_writer_and_nobody_else),
        cmocka_unit_test(relay_copy),
        cmocka_unit_test(relay_copystress),
        cmocka_unit_test(relay_turn_is_bounded),
        cmocka_unit_test(relay_rst_of_the_application_is_a_half_close),
        cmocka_unit_test(relay_reset_tunnel_delivers_everything_then_fin),
        cmocka_unit_test(relay_upload_into_a_reset_tunnel_is_an_error_and_the_response_arrives),
        cmocka_unit_test(relay_response_into_a_reset_tunnel_is_an_error),
        cmocka_unit_test(relay_write_to_a_reset_socket_ends_silently),
        cmocka_unit_test(relay_closing_a_reset_tunnel_is_an_error_and_a_reset_socket_is_not),
        cmocka_unit_test(relay_lost_tunnel_resets_the_application),
        cmocka_unit_test(relay_lost_while_writing_is_the_send_directions_error),
        cmocka_unit_test(relay_send_error_goes_before_receive_error),
        cmocka_unit_test(relay_abort_resets_both_and_tells_nobody),
        cmocka_unit_test(relay_abort_closes_streams_with_the_reason),
        cmocka_unit_test(relay_much_goes_through_a_pipe_and_little_does_not),
        cmocka_unit_test(relay_abort_with_bytes_in_the_pipe_resets_both),
        cmocka_unit_test(relay_without_a_pipe_to_be_had_copies),
        cmocka_unit_test(relay_start_never_tells_the_end_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
