/* The HTTP/1 server over real sockets: limits, deadlines, routing, late answers, streams, drain, descriptors used up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/http_fixture.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include "zt/net/sock.h"
#include <cmocka.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REPLY_MAX (256 * 1024)

static struct http_fixture f;
static struct zt_http1_request *held; /* a request whose handler answers later */
static char *reply;

static void on_hello(void *arg, struct zt_http1_request *r)
{
    zt_http1_reply_text(r, 200, "text/plain", "hello\n");
}

static void on_echo(void *arg, struct zt_http1_request *r)
{
    const char *value = zt_http1_request_query(r, "x");
    zt_http1_reply_text(r, 200, "text/plain", value ? value : "(none)");
}

static void on_held(void *arg, struct zt_http1_request *r)
{
    held = r;
}

struct count {
    int n, max;
    bool *ended;
};

static bool next_number(void *arg, struct zt_str *piece)
{
    struct count *c = arg;
    zt_str_addf(piece, "%d\n", c->n);
    return ++c->n < c->max;
}

static atomic_bool numbers_ended; /* set on the loop's thread */

static void numbers_done(void *arg)
{
    numbers_ended = true;
    zt_free(arg);
}

static void on_numbers(void *arg, struct zt_http1_request *r)
{
    struct count *c = zt_new(struct count);
    c->max = 10000;
    zt_http1_reply_stream(r, 200, "text/plain", next_number, numbers_done, c);
}

static bool next_zeros(void *arg, struct zt_str *piece)
{
    static const char zeros[4096];
    zt_str_add_n(piece, zeros, sizeof zeros);
    return true;
}

static void on_endless(void *arg, struct zt_http1_request *r)
{
    zt_http1_reply_stream(r, 200, "application/octet-stream", next_zeros, numbers_done, zt_new(struct count));
}

static void routes(struct zt_http1 *s, void *arg)
{
    zt_http1_route(s, "/hello", ZT_HTTP1_ANY, on_hello, NULL);
    zt_http1_route(s, "/get", ZT_HTTP1_GET, on_hello, NULL);
    zt_http1_route(s, "/echo", ZT_HTTP1_ANY, on_echo, NULL);
    zt_http1_route(s, "/held", ZT_HTTP1_ANY, on_held, NULL);
    zt_http1_route(s, "/numbers", ZT_HTTP1_ANY, on_numbers, NULL);
    zt_http1_route(s, "/endless", ZT_HTTP1_ANY, on_endless, NULL);
}

static int setup(void **state)
{
    held = NULL;
    numbers_ended = false;
    reply = zt_calloc(1, REPLY_MAX);
    http_fixture_start(&f, routes, NULL);
    return 0;
}

static int teardown(void **state)
{
    http_fixture_stop(&f);
    zt_free(reply);
    return 0;
}

static void nap_ms(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static void read_n_conns(void *arg)
{
    *(unsigned *)arg = zt_http1_n_conns(f.server);
}

static bool wait_for_conns(unsigned wanted)
{
    unsigned n = 0;
    for (int i = 0; i < 400; i++, nap_ms(10)) {
        http_on_loop(f.loop, read_n_conns, &n);
        if (n == wanted)
            return true;
    }
    return false;
}

/* ---- routing ---- */

static void http1_answers_a_route(void **state)
{
    assert_int_equal(http_ask(f.port, "GET", "/hello", NULL, reply, REPLY_MAX), 200);
    assert_string_equal(http_body(reply), "hello\n");
    assert_non_null(strcasestr(reply, "content-type: text/plain"));
    assert_non_null(strcasestr(reply, "content-length: 6"));
    assert_non_null(strcasestr(reply, "\r\ndate: "));
    assert_null(strcasestr(reply, "\r\nserver:"));
}

static void http1_unknown_path_is_404_with_empty_body(void **state)
{
    static const char *const targets[] = {"/", "/hello/", "/Hello", "/%68ello", "/hellox"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        assert_int_equal(http_ask(f.port, "GET", targets[i], NULL, reply, REPLY_MAX), 404);
        assert_string_equal(http_body(reply), "");
    }
}

static void http1_query_does_not_count_for_matching(void **state)
{
    assert_int_equal(http_ask(f.port, "GET", "/hello?a=b", NULL, reply, REPLY_MAX), 200);
    assert_int_equal(http_ask(f.port, "GET", "http://elsewhere/hello?a", NULL, reply, REPLY_MAX), 200);
}

static void http1_query_is_form_decoded_and_the_last_one_wins(void **state)
{
    http_ask(f.port, "GET", "/echo?x=1&y=3&x=a%3Db+c%2", NULL, reply, REPLY_MAX);
    assert_string_equal(http_body(reply), "a=b c%2");
    http_ask(f.port, "GET", "/echo?x", NULL, reply, REPLY_MAX);
    assert_string_equal(http_body(reply), "");
    http_ask(f.port, "GET", "/echo?", NULL, reply, REPLY_MAX);
    assert_string_equal(http_body(reply), "(none)");
}

static void http1_method_not_allowed_is_405_with_empty_body(void **state)
{
    assert_int_equal(http_ask(f.port, "POST", "/get", NULL, reply, REPLY_MAX), 405);
    assert_string_equal(http_body(reply), "");
    assert_int_equal(http_ask(f.port, "HEAD", "/get", NULL, reply, REPLY_MAX), 405);
    assert_int_equal(http_ask(f.port, "BREW", "/get", NULL, reply, REPLY_MAX), 405);
}

static void http1_head_has_no_body(void **state)
{
    assert_int_equal(http_ask(f.port, "HEAD", "/hello", NULL, reply, REPLY_MAX), 200);
    assert_string_equal(http_body(reply), "");
    assert_non_null(strcasestr(reply, "content-length: 6"));
}

/* ---- limits and deadlines ---- */

/* C44, second half. */
static void http1_head_over_8_kib_is_431(void **state)
{
    char header[9300] = "X-Long: ";
    memset(header + 8, 'x', 9 * 1024);
    memcpy(header + 8 + 9 * 1024, "\r\n", 3);
    int fd = http_connect(f.port);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n");
    http_send(fd, header);
    http_send(fd, "\r\n");
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 431);
    close(fd);
}

static void http1_head_of_many_small_headers_over_8_kib_is_431(void **state)
{
    char header[64];
    int fd = http_connect(f.port);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n");
    for (int i = 0; i < 3000; i++) {
        snprintf(header, sizeof header, "X%d: y\r\n", i);
        http_send(fd, header);
    }
    http_send(fd, "\r\n");
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 431);
    close(fd);
}

static void http1_head_of_7_kib_is_served(void **state)
{
    char header[7200] = "X-Long: ";
    memset(header + 8, 'x', 7000);
    memcpy(header + 7008, "\r\n", 3);
    int fd = http_connect(f.port);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n");
    http_send(fd, header);
    http_send(fd, "\r\n");
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    close(fd);
}

/* C44, first half. */
static void http1_silent_client_is_closed_after_2_s_without_an_answer(void **state)
{
    bool closed;
    uint64_t start = zt_clock_mono_ms();
    int fd = http_connect(f.port);
    assert_int_equal(http_read_all(fd, reply, REPLY_MAX, 4000, &closed), 0);
    uint64_t took = zt_clock_mono_ms() - start;
    assert_true(closed);
    assert_in_range(took, 1900, 3000);
    close(fd);
}

static void http1_trickling_client_is_closed_after_2_s_without_an_answer(void **state)
{
    static const char head[] = "GET /hello HTTP/1.1\r\nHost: some.name\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy";
    bool closed = false;
    int fd = http_connect(f.port);
    for (size_t i = 0; i < sizeof head - 1 && !closed; i++) {
        char byte[2] = {head[i]};
        http_send(fd, byte);
        assert_int_equal(http_read_all(fd, reply, REPLY_MAX, 50, &closed), 0);
    }
    assert_true(closed);
    close(fd);
}

static void http1_idle_keep_alive_connection_is_closed_after_2_s(void **state)
{
    bool closed;
    int fd = http_connect(f.port);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    nap_ms(1000);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n"); /* a second one on the same connection renews the limit */
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    uint64_t start = zt_clock_mono_ms();
    assert_int_equal(http_read_all(fd, reply, REPLY_MAX, 4000, &closed), 0);
    assert_true(closed);
    assert_in_range(zt_clock_mono_ms() - start, 1900, 3000);
    close(fd);
}

static void http1_body_is_ignored(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "POST /hello HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nabcde");
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    close(fd);
}

static void http1_endless_body_ends_the_connection(void **state)
{
    char *piece = zt_calloc(1, 65537);
    bool closed;
    memset(piece, 'x', 65536);
    int fd = http_connect(f.port);
    http_send(fd, "POST /hello HTTP/1.1\r\nHost: t\r\nContent-Length: 999999999\r\n\r\n");
    for (int i = 0; i < 4; i++)
        http_send(fd, piece);
    http_read_all(fd, reply, REPLY_MAX, 4000, &closed);
    assert_true(closed);
    assert_null(strstr(reply, "200"));
    close(fd);
    zt_free(piece);
}

static void http1_half_closed_client_gets_its_answer(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    shutdown(fd, SHUT_WR);
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    assert_string_equal(http_body(reply), "hello\n");
    close(fd);
}

static void http1_garbage_ends_the_connection_and_nothing_else(void **state)
{
    static const char *const garbage[] = {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                                          "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /hello HTTP/9.9\r\n\r\n",
                                          "GET\r\n\r\n", "\r\n\r\n\r\n \r\n\r\n"};
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        bool closed;
        int fd = http_connect(f.port);
        http_send(fd, garbage[i]);
        shutdown(fd, SHUT_WR);
        http_read_all(fd, reply, REPLY_MAX, 4000, &closed);
        assert_true(closed);
        assert_null(strstr(reply, " 200 "));
        close(fd);
    }
    http1_answers_a_route(state);
}

static void http1_connections_beyond_the_limit_are_closed(void **state)
{
    int fds[ZT_HTTP1_CONNS_MAX + 1];
    bool closed;
    for (int i = 0; i < ZT_HTTP1_CONNS_MAX; i++) {
        fds[i] = http_connect(f.port);
        assert_true(fds[i] >= 0);
    }
    assert_true(wait_for_conns(ZT_HTTP1_CONNS_MAX));
    fds[ZT_HTTP1_CONNS_MAX] = http_connect(f.port);
    assert_int_equal(http_read_all(fds[ZT_HTTP1_CONNS_MAX], reply, REPLY_MAX, 1000, &closed), 0);
    assert_true(closed);
    for (int i = 0; i <= ZT_HTTP1_CONNS_MAX; i++)
        close(fds[i]);
    assert_true(wait_for_conns(0));
    http1_answers_a_route(state);
}

static double loop_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void http1_out_of_descriptors_pauses_and_recovers(void **state)
{
    struct rlimit old, low;
    int spare[128], n = 0;
    int fd = http_connect(f.port); /* accepted before the table is full */
    assert_true(wait_for_conns(1));
    getrlimit(RLIMIT_NOFILE, &old);
    low = old;
    low.rlim_cur = 128;
    int waiting = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in sa = {
        .sin_family = AF_INET, .sin_port = htons(f.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setrlimit(RLIMIT_NOFILE, &low);
    while (n < 128 && (spare[n] = dup(fd)) >= 0)
        n++;
    assert_int_equal(connect(waiting, (struct sockaddr *)&sa, sizeof sa), 0); /* the kernel's queue takes it */
    http_send(waiting, "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    double before = loop_cpu_s();
    nap_ms(1000);
    double spent = loop_cpu_s() - before;
    while (n > 0)
        close(spare[--n]);
    setrlimit(RLIMIT_NOFILE, &old);
    assert_int_equal(http_read_reply(waiting, reply, REPLY_MAX), 200);
    assert_true(spent < 0.3);
    close(waiting);
    close(fd);
}

static void read_sleeps(void *arg)
{
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    *(long *)arg = u.ru_nvcsw;
}

static void http1_idle_server_does_not_wake_up(void **state)
{
    long before, after;
    http1_answers_a_route(state);
    assert_true(wait_for_conns(0));
    nap_ms(50);
    http_on_loop(f.loop, read_sleeps, &before);
    nap_ms(3000);
    http_on_loop(f.loop, read_sleeps, &after);
    assert_true(after - before <= 2); /* this question wakes it */
}

/* ---- late answers and streams ---- */

static void answer_held(void *arg)
{
    if (held)
        zt_http1_reply_text(held, 200, "text/plain", "late\n");
}

static void read_held(void *arg)
{
    *(bool *)arg = held;
}

static bool wait_for_held(void)
{
    bool arrived = false;
    for (int i = 0; i < 400 && !arrived; i++, nap_ms(5))
        http_on_loop(f.loop, read_held, &arrived);
    return arrived;
}

static void http1_handler_may_answer_later(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /held HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_true(wait_for_held());
    nap_ms(2300); /* the head's deadline does not apply any more */
    http_on_loop(f.loop, answer_held, NULL);
    assert_int_equal(http_read_reply(fd, reply, REPLY_MAX), 200);
    assert_string_equal(http_body(reply), "late\n");
    close(fd);
}

static void http1_late_answer_to_a_client_that_left_is_harmless(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /held HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_true(wait_for_held());
    struct linger reset = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
    nap_ms(50);
    http_on_loop(f.loop, answer_held, NULL);
    assert_true(wait_for_conns(0));
}

static void http1_late_answer_after_the_server_is_freed_is_harmless(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /held HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_true(wait_for_held());
    http_fixture_stop(&f);
    answer_held(NULL);
    close(fd);
    http_fixture_start(&f, routes, NULL); /* for teardown */
}

static void http1_stream_arrives_whole(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /numbers HTTP/1.0\r\n\r\n"); /* no chunks in HTTP/1.0: the end of the connection is the end */
    bool closed;
    http_read_all(fd, reply, REPLY_MAX, 5000, &closed);
    assert_true(closed);
    const char *body = http_body(reply);
    char *end;
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(strtol(body, &end, 10), i);
        body = end + 1;
    }
    assert_string_equal(body, "");
    assert_true(numbers_ended);
    close(fd);
    assert_int_equal(http_ask(f.port, "GET", "/numbers", NULL, reply, REPLY_MAX), 200);
    assert_non_null(strcasestr(reply, "transfer-encoding: chunked"));
}

static void http1_stream_ends_when_the_client_leaves(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /endless HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_true(recv(fd, reply, 4096, 0) > 0);
    close(fd);
    assert_true(wait_for_conns(0));
    assert_true(numbers_ended);
}

static void http1_stalled_reader_of_a_stream_costs_no_cpu(void **state)
{
    int fd = http_connect(f.port);
    http_send(fd, "GET /endless HTTP/1.1\r\nHost: t\r\n\r\n");
    nap_ms(500);
    double start = loop_cpu_s();
    nap_ms(1000);
    assert_true(loop_cpu_s() - start < 0.1);
    close(fd);
}

/* ---- drain ---- */

static bool drained;

static void on_drained(void *arg)
{
    drained = true;
}

static void drain(void *arg)
{
    zt_http1_drain(f.server, on_drained, NULL);
}

static void read_drained(void *arg)
{
    *(bool *)arg = drained;
}

static void http1_drain_refuses_new_closes_idle_and_finishes_running(void **state)
{
    bool closed, now;
    drained = false;
    int idle = http_connect(f.port), running = http_connect(f.port);
    http_send(idle, "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_int_equal(http_read_reply(idle, reply, REPLY_MAX), 200);
    http_send(running, "GET /held HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_true(wait_for_held());
    http_on_loop(f.loop, drain, NULL);
    assert_int_equal(http_connect(f.port), -1);
    assert_int_equal(http_read_all(idle, reply, REPLY_MAX, 1000, &closed), 0);
    assert_true(closed);
    http_on_loop(f.loop, read_drained, &now);
    assert_false(now);
    http_on_loop(f.loop, answer_held, NULL);
    http_read_all(running, reply, REPLY_MAX, 1000, &closed);
    assert_string_equal(http_body(reply), "late\n");
    assert_true(closed);
    for (int i = 0; i < 200 && !now; i++, nap_ms(10))
        http_on_loop(f.loop, read_drained, &now);
    assert_true(now);
    close(idle);
    close(running);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(http1_answers_a_route),
        TEST(http1_unknown_path_is_404_with_empty_body),
        TEST(http1_query_does_not_count_for_matching),
        TEST(http1_query_is_form_decoded_and_the_last_one_wins),
        TEST(http1_method_not_allowed_is_405_with_empty_body),
        TEST(http1_head_has_no_body),
        TEST(http1_head_over_8_kib_is_431),
        TEST(http1_head_of_many_small_headers_over_8_kib_is_431),
        TEST(http1_head_of_7_kib_is_served),
        TEST(http1_silent_client_is_closed_after_2_s_without_an_answer),
        TEST(http1_trickling_client_is_closed_after_2_s_without_an_answer),
        TEST(http1_idle_keep_alive_connection_is_closed_after_2_s),
        TEST(http1_body_is_ignored),
        TEST(http1_endless_body_ends_the_connection),
        TEST(http1_half_closed_client_gets_its_answer),
        TEST(http1_garbage_ends_the_connection_and_nothing_else),
        TEST(http1_connections_beyond_the_limit_are_closed),
        TEST(http1_out_of_descriptors_pauses_and_recovers),
        TEST(http1_idle_server_does_not_wake_up),
        TEST(http1_handler_may_answer_later),
        TEST(http1_late_answer_to_a_client_that_left_is_harmless),
        TEST(http1_late_answer_after_the_server_is_freed_is_harmless),
        TEST(http1_stream_arrives_whole),
        TEST(http1_stream_ends_when_the_client_leaves),
        TEST(http1_stalled_reader_of_a_stream_costs_no_cpu),
        TEST(http1_drain_refuses_new_closes_idle_and_finishes_running),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
