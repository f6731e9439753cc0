/* Sessions against frames written by hand: malformed requests, floods, GOAWAY and resets of every kind. */
#include "support/h2_pair.h"
#include <nghttp2/nghttp2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define MIB (1024 * 1024)

/* ---- frames by hand ---- */

struct raw {
    struct zt_loop *l;
    struct zt_stream *end;
    struct zt_stream *lower; /* the session's, borrowed */
    struct h2_side side;
};

static void raw_write(struct raw *r, const void *data, size_t len)
{
    for (const uint8_t *p = data; len > 0;) {
        struct iovec iov = {(void *)(uintptr_t)p, len};
        size_t n;
        enum zt_err e = zt_stream_writev(r->end, &iov, 1, &n);
        if (e == ZT_AGAIN) {
            h2_settle(r->l);
            if (r->side.closed)
                return;
            continue;
        }
        if (e != ZT_OK)
            return;
        p += n, len -= n;
    }
}

static void raw_frame(struct raw *r, unsigned type, unsigned flags, uint32_t id, const void *body, size_t len)
{
    uint8_t head[9] = {(uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len, (uint8_t)type, (uint8_t)flags,
                       (uint8_t)(id >> 24),  (uint8_t)(id >> 16), (uint8_t)(id >> 8), (uint8_t)id};
    raw_write(r, head, sizeof head);
    raw_write(r, body, len);
}

/* Nothing is written on the raw end yet. */
static void raw_join(struct raw *r, enum zt_h2_role role)
{
    struct zt_mem_opts mem = {.capacity_bytes = MIB};
    r->l = zt_loop_new("test");
    zt_mem_pair(r->l, &mem, &r->end, &r->lower);
    h2_side_init(&r->side);
    r->side.s = zt_h2_session_new(r->l, role, &h2_pair_config, r->lower, &r->side.owner);
}

static void raw_start(struct raw *r, enum zt_h2_role role)
{
    raw_join(r, role);
    if (role == ZT_H2_SERVER)
        raw_write(r, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    raw_frame(r, NGHTTP2_SETTINGS, 0, 0, NULL, 0);
    h2_settle(r->l);
}

static void raw_stop(struct raw *r)
{
    if (r->side.s)
        zt_h2_session_close(r->side.s, ZT_OK);
    zt_stream_close(r->end, ZT_OK);
    h2_settle(r->l);
    zt_loop_free(r->l);
}

/* Finds a frame that the session wrote: of this type (and stream, unless 0), the last of them. Returns its error code field. */
static int64_t raw_code(struct raw *r, unsigned type, uint32_t id, unsigned *count)
{
    uint8_t *data;
    size_t len;
    int64_t code = -1;
    *count = 0;
    h2_settle(r->l);
    if (zt_stream_peek(r->end, 0, &data, &len) != ZT_OK)
        return -1;
    while (zt_stream_peek(r->end, len, &data, &len) == ZT_OK) {
    }
    for (size_t at = 0; at + 9 <= len;) {
        size_t n = (size_t)data[at] << 16 | (size_t)data[at + 1] << 8 | data[at + 2];
        uint32_t sid = (uint32_t)data[at + 5] << 24 | (uint32_t)data[at + 6] << 16 | (uint32_t)data[at + 7] << 8 | data[at + 8];
        const uint8_t *b = data + at + 9 + (type == NGHTTP2_GOAWAY ? 4 : 0);
        if (data[at + 3] == type && (id == 0 || id == sid)) {
            ++*count;
            if (n >= 4)
                code = (int64_t)b[0] << 24 | (int64_t)b[1] << 16 | (int64_t)b[2] << 8 | b[3];
        }
        at += 9 + n;
    }
    return code;
}

/* HPACK without indexing: 00, length, name, length, value. */
static size_t put_header(uint8_t *p, const char *name, const char *value)
{
    size_t n = strlen(name), v = strlen(value);
    p[0] = 0;
    p[1] = (uint8_t)n;
    memcpy(p + 2, name, n);
    p[2 + n] = (uint8_t)v;
    memcpy(p + 3 + n, value, v);
    return 3 + n + v;
}

static size_t connect_block(uint8_t *p)
{
    size_t n = put_header(p, ":method", "CONNECT");
    return n + put_header(p + n, ":authority", "10.0.0.1:80");
}

#define END_HEADERS NGHTTP2_FLAG_END_HEADERS

static void assert_calm(struct raw *r)
{
    unsigned n;
    assert_int_equal(raw_code(r, NGHTTP2_GOAWAY, 0, &n), NGHTTP2_ENHANCE_YOUR_CALM);
    assert_true(r->side.closed);
    assert_int_equal(r->side.why.code, ZT_H2);
}

static void malformed_requests_are_reset_with_protocol_error(void **state)
{
    static const char *const cases[][8] = {
        {":method", "CONNECT", ":authority", "10.0.0.1:80", ":scheme", "http", NULL},
        {":method", "CONNECT", ":authority", "10.0.0.1:80", ":path", "/", NULL},
        {":method", "CONNECT", NULL},
        {":authority", "10.0.0.1:80", NULL},
        {":method", "CONNECT", ":authority", "10.0.0.1:80 x", NULL},
        {":method", "CONNECT", ":protocol", "websocket", ":authority", "10.0.0.1:80", NULL},
    };
    struct raw r;
    raw_start(&r, ZT_H2_SERVER);
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t block[256];
        size_t len = 0;
        unsigned n;
        for (unsigned k = 0; cases[i][k]; k += 2)
            len += put_header(block + len, cases[i][k], cases[i][k + 1]);
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 2 * i + 1, block, len);
        assert_int_equal(raw_code(&r, NGHTTP2_RST_STREAM, 2 * i + 1, &n), NGHTTP2_PROTOCOL_ERROR);
    }
    assert_int_equal(r.side.n_requests, 0);
    assert_false(r.side.closed);
    raw_stop(&r);
}

static void too_many_headers_reset_the_stream_and_nothing_else(void **state)
{
    struct raw r;
    uint8_t block[4096];
    unsigned n;
    raw_start(&r, ZT_H2_SERVER);
    size_t len = connect_block(block);
    for (int i = 0; i < ZT_H2_HEADERS_MAX; i++)
        len += put_header(block + len, "x", "y");
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, len);
    assert_int_equal(raw_code(&r, NGHTTP2_RST_STREAM, 1, &n), NGHTTP2_ENHANCE_YOUR_CALM);
    assert_int_equal(r.side.n_requests, 0);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 3, block, connect_block(block));
    h2_settle(r.l);
    assert_int_equal(r.side.n_requests, 1);
    zt_h2_respond(r.side.last, 503, NULL, 0, true);
    raw_stop(&r);
}

static void oversized_header_list_resets_the_stream(void **state)
{
    struct raw r;
    static uint8_t block[80000];
    unsigned n;
    raw_start(&r, ZT_H2_SERVER);
    size_t len = connect_block(block);
    for (int i = 0; i < 5; i++) { /* 00, name, 14000 bytes of value */
        block[len++] = 0, block[len++] = 1, block[len++] = 'a';
        block[len++] = 0x7f, block[len++] = (14000 - 127) % 128 + 128, block[len++] = (14000 - 127) / 128;
        memset(block + len, 'v', 14000);
        len += 14000;
    }
    raw_frame(&r, NGHTTP2_HEADERS, 0, 1, block, 16384);
    for (size_t at = 16384; at < len; at += 16384) {
        size_t part = len - at < 16384 ? len - at : 16384;
        raw_frame(&r, NGHTTP2_CONTINUATION, at + part == len ? END_HEADERS : 0, 1, block + at, part);
    }
    assert_int_equal(raw_code(&r, NGHTTP2_RST_STREAM, 1, &n), NGHTTP2_ENHANCE_YOUR_CALM);
    assert_int_equal(r.side.n_requests, 0);
    assert_false(r.side.closed);
    raw_stop(&r);
}

static void continuation_flood_ends_the_session(void **state)
{
    struct raw r;
    uint8_t block[64];
    raw_start(&r, ZT_H2_SERVER);
    raw_frame(&r, NGHTTP2_HEADERS, 0, 1, block, connect_block(block));
    for (int i = 0; i < 20; i++)
        raw_frame(&r, NGHTTP2_CONTINUATION, 0, 1, NULL, 0);
    assert_calm(&r);
    raw_stop(&r);
}

static void rapid_reset_in_one_read_ends_the_session(void **state)
{
    struct raw r;
    uint8_t block[64], cancel[4] = {0, 0, 0, NGHTTP2_CANCEL};
    size_t len = connect_block(block);
    raw_start(&r, ZT_H2_SERVER);
    for (uint32_t i = 0; i < 21; i++) {
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 2 * i + 1, block, len);
        raw_frame(&r, NGHTTP2_RST_STREAM, 0, 2 * i + 1, cancel, 4);
    }
    assert_calm(&r);
    assert_int_equal(r.side.n_requests, 0);
    raw_stop(&r);
}

static void resets_after_the_answer_are_no_attack(void **state)
{
    struct raw r;
    uint8_t block[64], code[4] = {0, 0, 0, NGHTTP2_CONNECT_ERROR};
    size_t len = connect_block(block);
    raw_start(&r, ZT_H2_SERVER);
    for (uint32_t i = 0; i < 3000; i++) { /* what Envoy does at every end (spec/dataplane §15) */
        struct h2_end e = {.reading = true};
        uint8_t *data;
        r.side.next_end = &e;
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 2 * i + 1, block, len);
        while (!e.st)
            zt_loop_run_once(r.l, false);
        raw_frame(&r, NGHTTP2_DATA, 0, 2 * i + 1, "\0\x1f", 1);
        raw_frame(&r, NGHTTP2_RST_STREAM, 0, 2 * i + 1, code, 4);
        while (!e.read_end)
            zt_loop_run_once(r.l, false);
        assert_int_equal(e.received, 1);
        assert_int_equal(e.read_end, ZT_EOF);
        h2_end_close(&e, ZT_OK);
        if (zt_stream_peek(r.end, 0, &data, &len) == ZT_OK)
            zt_stream_consume(r.end, len);
        len = connect_block(block);
    }
    assert_false(r.side.closed);
    raw_stop(&r);
}

/* Each leaves an answer in the queue of a session whose peer does not read. */
static void resets_before_the_answer_has_left_are_an_attack(void **state)
{
    struct raw r;
    uint8_t block[64], cancel[4] = {0, 0, 0, NGHTTP2_CANCEL};
    size_t len = connect_block(block);
    raw_start(&r, ZT_H2_SERVER);
    zt_mem_block_writes(r.lower, true);
    for (uint32_t i = 0; i < 2000 && !r.side.closed; i++) {
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 2 * i + 1, block, len);
        h2_settle(r.l);
        zt_h2_respond(r.side.last, 401, NULL, 0, true);
        raw_frame(&r, NGHTTP2_RST_STREAM, 0, 2 * i + 1, cancel, 4);
        h2_settle(r.l);
    }
    assert_true(r.side.closed);
    raw_stop(&r);
}

static void protocol_errors_of_a_thousand_streams_end_the_session(void **state)
{
    struct raw r;
    uint8_t block[64];
    size_t len = put_header(block, ":method", "CONNECT"); /* no authority */
    raw_start(&r, ZT_H2_SERVER);
    for (uint32_t i = 0; i < 1100 && !r.side.closed; i++) {
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 2 * i + 1, block, len);
        if (i % 10 == 0)
            zt_loop_run_once(r.l, false);
    }
    assert_calm(&r);
    raw_stop(&r);
}

static void ping_and_settings_floods_end_the_session(void **state)
{
    static const unsigned types[] = {NGHTTP2_PING, NGHTTP2_SETTINGS};
    for (unsigned t = 0; t < 2; t++) {
        struct raw r;
        uint8_t body[8] = {0};
        raw_start(&r, ZT_H2_SERVER);
        for (int i = 0; i < 20000 && !r.side.closed; i++) {
            raw_frame(&r, types[t], 0, 0, body, types[t] == NGHTTP2_SETTINGS ? 0 : 8);
            if (i % 100 == 0)
                h2_settle(r.l);
        }
        assert_calm(&r);
        raw_stop(&r);
    }
}

static void empty_data_flood_ends_the_session(void **state)
{
    struct raw r;
    struct h2_end e = {.reading = true};
    uint8_t block[64];
    raw_start(&r, ZT_H2_SERVER);
    r.side.next_end = &e;
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, connect_block(block));
    h2_settle(r.l);
    for (int i = 0; i < 200; i++)
        raw_frame(&r, NGHTTP2_DATA, 0, 1, NULL, 0);
    assert_calm(&r);
    assert_int_equal(e.read_end, ZT_H2);
    h2_end_close(&e, ZT_OK);
    raw_stop(&r);
}

static void trailers_without_end_of_stream_reset_the_stream(void **state)
{
    struct raw r;
    struct h2_end e = {.reading = true};
    uint8_t block[64];
    unsigned n;
    raw_start(&r, ZT_H2_SERVER);
    r.side.next_end = &e;
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, connect_block(block));
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, put_header(block, "x", "y"));
    assert_int_equal(raw_code(&r, NGHTTP2_RST_STREAM, 1, &n), NGHTTP2_PROTOCOL_ERROR);
    assert_int_equal(e.read_end, ZT_H2);
    h2_end_close(&e, ZT_OK);
    raw_stop(&r);
}

static void stream_after_the_second_goaway_is_refused(void **state)
{
    struct raw r;
    uint8_t block[64], pong[8] = {'d', 'r', 'a', 'i', 'n', 'i', 'n', 'g'};
    unsigned n;
    raw_start(&r, ZT_H2_SERVER);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, connect_block(block)); /* keeps the session open */
    h2_settle(r.l);
    zt_h2_session_drain(r.side.s);
    h2_settle(r.l);
    raw_frame(&r, NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, pong, 8);
    assert_int_equal(raw_code(&r, NGHTTP2_GOAWAY, 0, &n), NGHTTP2_NO_ERROR);
    assert_int_equal(n, 2);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 3, block, connect_block(block));
    assert_int_equal(raw_code(&r, NGHTTP2_RST_STREAM, 3, &n), NGHTTP2_REFUSED_STREAM);
    assert_int_equal(r.side.n_requests, 1);
    zt_h2_respond(r.side.last, 503, NULL, 0, true);
    raw_stop(&r);
}

/* ---- client against frames by hand ---- */

static void raw_request(struct raw *r, struct h2_end *c)
{
    struct h2_pair p = {.l = r->l, .client = r->side};
    h2_pair_connect(&p, c, NULL);
    h2_settle(r->l);
}

static void request_beyond_goaways_last_stream_may_be_tried_again(void **state)
{
    struct raw r;
    struct h2_end c1 = {.reading = true}, c2 = {.reading = true};
    uint8_t block[64], goaway[8] = {0, 0, 0, 1, 0, 0, 0, 0};
    raw_start(&r, ZT_H2_CLIENT);
    raw_request(&r, &c1);
    raw_request(&r, &c2);
    raw_frame(&r, NGHTTP2_GOAWAY, 0, 0, goaway, 8);
    h2_settle(r.l);
    assert_true(c2.answered);
    assert_int_equal(c2.response_error, ZT_AGAIN);
    assert_false(c1.answered);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, put_header(block, ":status", "200"));
    h2_settle(r.l);
    assert_int_equal(c1.status, 200);
    assert_false(zt_h2_session_usable(r.side.s));
    h2_end_close(&c1, ZT_OK);
    raw_stop(&r);
}

static void refused_stream_may_be_tried_again(void **state)
{
    struct raw r;
    struct h2_end c = {.reading = true};
    uint8_t code[4] = {0, 0, 0, NGHTTP2_REFUSED_STREAM};
    raw_start(&r, ZT_H2_CLIENT);
    raw_request(&r, &c);
    raw_frame(&r, NGHTTP2_RST_STREAM, 0, 1, code, 4);
    h2_settle(r.l);
    assert_int_equal(c.response_error, ZT_AGAIN);
    raw_stop(&r);
}

static void lost_session_before_the_answer_is_not_tried_again(void **state)
{
    struct raw r;
    struct h2_end c = {.reading = true};
    raw_start(&r, ZT_H2_CLIENT);
    raw_request(&r, &c);
    zt_stream_close(r.end, ZT_RESET);
    h2_settle(r.l);
    assert_int_equal(c.response_error, ZT_H2);
    assert_true(r.side.closed);
    zt_loop_free(r.l);
}

static void resets_mean_what_the_half_close_table_says(void **state)
{
    static const struct {
        uint8_t code;
        enum zt_err read_end, write_error;
    } cases[] = {{NGHTTP2_NO_ERROR, ZT_EOF, ZT_RESET},
                 {NGHTTP2_CANCEL, ZT_EOF, ZT_RESET},
                 {NGHTTP2_CONNECT_ERROR, ZT_EOF, ZT_RESET},
                 {NGHTTP2_STREAM_CLOSED, ZT_RESET, ZT_RESET},
                 {NGHTTP2_INTERNAL_ERROR, ZT_H2, ZT_H2},
                 {NGHTTP2_ENHANCE_YOUR_CALM, ZT_H2, ZT_H2}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct raw r;
        struct h2_end c = {.reading = true};
        uint8_t block[64], code[4] = {0, 0, 0, cases[i].code};
        raw_start(&r, ZT_H2_CLIENT);
        raw_request(&r, &c);
        raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, put_header(block, ":status", "200"));
        raw_frame(&r, NGHTTP2_DATA, 0, 1, "\0\x1f\x3e", 3);
        raw_frame(&r, NGHTTP2_RST_STREAM, 0, 1, code, 4);
        h2_settle(r.l);
        assert_int_equal(c.received, 3);
        assert_int_equal(c.read_end, cases[i].read_end);
        c.to_write = 1;
        h2_end_write(&c);
        assert_int_equal(c.write_error, cases[i].write_error);
        h2_end_close(&c, ZT_OK);
        raw_stop(&r);
    }
}

static void answer_behind_an_interim_one_is_the_answer(void **state)
{
    struct raw r;
    struct h2_end c = {.reading = true};
    uint8_t block[64];
    raw_start(&r, ZT_H2_CLIENT);
    raw_request(&r, &c);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, put_header(block, ":status", "103"));
    h2_settle(r.l);
    assert_false(c.answered);
    raw_frame(&r, NGHTTP2_HEADERS, END_HEADERS, 1, block, put_header(block, ":status", "200"));
    h2_settle(r.l);
    assert_int_equal(c.status, 200);
    h2_end_close(&c, ZT_OK);
    raw_stop(&r);
}

static void peer_that_speaks_no_http2_is_a_failed_handshake(void **state)
{
    struct raw r;
    raw_join(&r, ZT_H2_CLIENT);
    h2_settle(r.l);
    zt_stream_close(r.end, ZT_RESET); /* what a refused certificate looks like */
    h2_settle(r.l);
    assert_true(r.side.closed);
    assert_int_equal(r.side.why.code, ZT_H2_HANDSHAKE);
    zt_loop_free(r.l);
}

static void plaintext_http_ends_a_server_session(void **state)
{
    struct raw r;
    raw_join(&r, ZT_H2_SERVER);
    raw_write(&r, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", 27);
    h2_settle(r.l);
    assert_true(r.side.closed);
    raw_stop(&r);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_requests_are_reset_with_protocol_error),
        cmocka_unit_test(too_many_headers_reset_the_stream_and_nothing_else),
        cmocka_unit_test(oversized_header_list_resets_the_stream),
        cmocka_unit_test(continuation_flood_ends_the_session),
        cmocka_unit_test(rapid_reset_in_one_read_ends_the_session),
        cmocka_unit_test(resets_after_the_answer_are_no_attack),
        cmocka_unit_test(resets_before_the_answer_has_left_are_an_attack),
        cmocka_unit_test(protocol_errors_of_a_thousand_streams_end_the_session),
        cmocka_unit_test(ping_and_settings_floods_end_the_session),
        cmocka_unit_test(empty_data_flood_ends_the_session),
        cmocka_unit_test(trailers_without_end_of_stream_reset_the_stream),
        cmocka_unit_test(stream_after_the_second_goaway_is_refused),
        cmocka_unit_test(request_beyond_goaways_last_stream_may_be_tried_again),
        cmocka_unit_test(refused_stream_may_be_tried_again),
        cmocka_unit_test(lost_session_before_the_answer_is_not_tried_again),
        cmocka_unit_test(resets_mean_what_the_half_close_table_says),
        cmocka_unit_test(answer_behind_an_interim_one_is_the_answer),
        cmocka_unit_test(peer_that_speaks_no_http2_is_a_failed_handshake),
        cmocka_unit_test(plaintext_http_ends_a_server_session),
    };
    return cmocka_run_group_tests_name("h2_frames", tests, NULL, NULL);
}
