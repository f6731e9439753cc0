/* zt/net/tcp.h over real loopback sockets: one end is the stream, the other a plain descriptor. */
#include "support/net_fixture.h"
#include "zt/net/fd_guard.h"
#include "zt/net/tcp.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    struct zt_stream_owner owner;
    struct zt_loop *loop;
    struct zt_stream *s;
    int peer; /* the other end */
    unsigned n_readable, n_writable;
    bool close_in_callback;
};

static struct fixture *fixture_of(void **state)
{
    return *state;
}

static void on_ready(struct zt_stream_owner *o, struct zt_stream *s, unsigned events)
{
    struct fixture *f = zt_container_of(o, struct fixture, owner);
    f->n_readable += (events & ZT_STREAM_READABLE) != 0;
    f->n_writable += (events & ZT_STREAM_WRITABLE) != 0;
    if (f->close_in_callback) {
        zt_stream_close(s, ZT_OK);
        f->s = NULL;
    }
}

static int setup(void **state)
{
    struct fixture *f = zt_new(struct fixture);
    int fd;
    f->owner.on_ready = on_ready;
    f->loop = zt_loop_new("test");
    zt_test_tcp_pair(&fd, &f->peer);
    f->s = zt_tcp_stream_new(f->loop, fd, &f->owner);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    zt_stream_close(f->s, ZT_OK);
    if (f->peer >= 0)
        close(f->peer);
    zt_loop_free(f->loop);
    zt_free(f);
    return 0;
}

static void reset_by_peer(struct fixture *f)
{
    struct linger l = {1, 0};
    assert_int_equal(setsockopt(f->peer, SOL_SOCKET, SO_LINGER, &l, sizeof l), 0);
    close(f->peer);
    f->peer = -1;
}

static void peer_sends(struct fixture *f, const void *bytes, size_t n)
{
    assert_int_equal(send(f->peer, bytes, n, 0), n);
}

/* Fills the peer's send buffer and ours; returns how many bytes went. */
static size_t peer_floods(struct fixture *f)
{
    static char block[65536];
    size_t total = 0;
    ssize_t n;
    while ((n = send(f->peer, block, sizeof block, MSG_DONTWAIT)) > 0)
        total += (size_t)n;
    return total;
}

static enum zt_err peek(struct fixture *f, size_t seen, size_t *len)
{
    uint8_t *data;
    *len = 0;
    return zt_stream_peek(f->s, seen, &data, len);
}

static enum zt_err write_text(struct fixture *f, const char *text, size_t *accepted)
{
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
    return zt_stream_writev(f->s, &iov, 1, accepted);
}

static void turns(struct fixture *f, int n)
{
    while (n-- > 0)
        zt_loop_run_once(f->loop, false);
}

static void tcp_peek_shows_what_came_and_again_when_nothing_did(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t *data;
    size_t len;
    assert_int_equal(zt_stream_peek(f->s, 0, &data, &len), ZT_AGAIN);
    peer_sends(f, "hello", 5);
    assert_int_equal(zt_stream_peek(f->s, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 5);
    assert_memory_equal(data, "hello", 5);
    assert_int_equal(zt_stream_peek(f->s, 5, &data, &len), ZT_AGAIN);
    peer_sends(f, " world", 6);
    assert_int_equal(zt_stream_peek(f->s, 5, &data, &len), ZT_OK);
    assert_int_equal(len, 11);
    assert_memory_equal(data, "hello world", 11);
    zt_stream_consume(f->s, 6);
    assert_int_equal(zt_stream_peek(f->s, 0, &data, &len), ZT_OK);
    assert_memory_equal(data, "world", 5);
}

static void tcp_idle_stream_holds_no_buffer(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t *data;
    size_t len;
    peer_sends(f, "hello", 5);
    assert_int_equal(zt_stream_peek(f->s, 0, &data, &len), ZT_OK);
    zt_stream_consume(f->s, 5);
    /* The free list hands out the newest first. */
    uint8_t *buf = zt_loop_buf_get(f->loop, ZT_BUF_SMALL);
    assert_ptr_equal(buf, data);
    zt_loop_buf_put(f->loop, buf, ZT_BUF_SMALL);
    assert_int_equal(peek(f, 0, &len), ZT_AGAIN); /* nor one that only looked */
    buf = zt_loop_buf_get(f->loop, ZT_BUF_SMALL);
    assert_ptr_equal(buf, data);
    zt_loop_buf_put(f->loop, buf, ZT_BUF_SMALL);
}

static void tcp_receive_size_follows_the_traffic(void **state)
{
    struct fixture *f = fixture_of(state);
    int size = 4 << 20;
    size_t len, largest = 0;
    setsockopt(zt_tcp_stream_fd(f->s), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(f->peer, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    assert_true(peer_floods(f) > ZT_BUF_SMALL_BYTES + ZT_BUF_MEDIUM_BYTES + ZT_BUF_LARGE_BYTES);
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    assert_int_equal(len, ZT_BUF_SMALL_BYTES);
    zt_stream_consume(f->s, len);
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    assert_int_equal(len, ZT_BUF_MEDIUM_BYTES);
    zt_stream_consume(f->s, len);
    while (peek(f, 0, &len) == ZT_OK) {
        largest = len > largest ? len : largest;
        zt_stream_consume(f->s, len);
    }
    assert_int_equal(largest, ZT_BUF_LARGE_BYTES);
    for (int i = 0; i < 3; i++) { /* a few small ones, and it is small again */
        peer_sends(f, "x", 1);
        assert_int_equal(peek(f, 0, &len), ZT_OK);
        zt_stream_consume(f->s, len);
    }
    uint8_t *data, *buf;
    peer_sends(f, "x", 1);
    assert_int_equal(zt_stream_peek(f->s, 0, &data, &len), ZT_OK);
    zt_stream_consume(f->s, len);
    buf = zt_loop_buf_get(f->loop, ZT_BUF_SMALL);
    assert_ptr_equal(buf, data);
    zt_loop_buf_put(f->loop, buf, ZT_BUF_SMALL);
}

/* A reader that takes odd pieces, so that the unread tail is moved and the buffer grows under it.
 */
static void tcp_unread_tail_stays_contiguous_and_intact(void **state)
{
    struct fixture *f = fixture_of(state);
    uint32_t next_in = 0, next_out = 0, block[1000];
    uint8_t *data;
    size_t len = 0;
    for (int round = 0; round < 300; round++) {
        for (size_t i = 0; i < 1000; i++)
            block[i] = next_out++;
        peer_sends(f, block, sizeof block);
        enum zt_err e;
        do
            e = zt_stream_peek(f->s, len, &data, &len);
        while (e == ZT_OK && len < sizeof block);
        size_t take = len / 4 * 4 > 12 ? len / 4 * 4 - 12 : 0;
        for (size_t i = 0; i < take; i += 4) {
            uint32_t v;
            memcpy(&v, data + i, 4);
            assert_int_equal(v, next_in++);
        }
        zt_stream_consume(f->s, take);
        len -= take;
    }
    assert_true(next_in > 290000);
}

static void tcp_full_buffer_stops_reading_until_something_is_consumed(void **state)
{
    struct fixture *f = fixture_of(state);
    int size = 4 << 20;
    size_t len = 0, before;
    setsockopt(zt_tcp_stream_fd(f->s), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(f->peer, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    peer_floods(f);
    zt_stream_want(f->s, ZT_STREAM_READABLE);
    do
        before = len;
    while (peek(f, before, &len) == ZT_OK);
    assert_int_equal(before, ZT_BUF_LARGE_BYTES);
    turns(f, 3);
    f->n_readable = 0;
    turns(f, 5);
    assert_int_equal(f->n_readable, 0); /* it would spin: the kernel has more, we have no room */
    zt_stream_consume(f->s, 1000);
    turns(f, 3);
    assert_true(f->n_readable > 0);
}

static bool seen_readable(void *arg)
{
    return ((struct fixture *)arg)->n_readable > 0;
}

static void tcp_fin_is_eof_after_the_bytes(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t len;
    peer_sends(f, "bye", 3);
    shutdown(f->peer, SHUT_WR);
    zt_stream_want(f->s, ZT_STREAM_READABLE);
    assert_true(zt_test_run_until(f->loop, seen_readable, f));
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    assert_int_equal(len, 3);
    zt_stream_consume(f->s, 3);
    f->n_readable = 0;
    /* The end counts as something not seen yet. */
    assert_true(zt_test_run_until(f->loop, seen_readable, f));
    assert_int_equal(peek(f, 0, &len), ZT_EOF);
    assert_int_equal(peek(f, 0, &len), ZT_EOF);
    turns(f, 2);
    f->n_readable = 0;
    turns(f, 5);
    assert_int_equal(f->n_readable, 0); /* and not any more once it has been */
}

static void tcp_end_behind_unconsumed_bytes_is_shown_to_who_asks_for_more(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t len;
    peer_sends(f, "half a record", 13);
    shutdown(f->peer, SHUT_WR);
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    assert_int_equal(peek(f, 13, &len), ZT_EOF);
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    assert_int_equal(len, 13);
}

static void tcp_rst_is_reset(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t len;
    reset_by_peer(f);
    assert_int_equal(peek(f, 0, &len), ZT_RESET);
}

/* The kernel tells a reset once: after the write has eaten it, recv says 0. */
static void tcp_reset_met_by_a_write_is_no_eof_for_the_reader(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t len;
    reset_by_peer(f);
    assert_int_equal(write_text(f, "x", &len), ZT_RESET);
    assert_int_equal(peek(f, 0, &len), ZT_RESET);
    assert_int_equal(write_text(f, "x", &len), ZT_RESET);
}

static void tcp_write_after_the_peers_close_fails_without_a_signal(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t n;
    close(f->peer);
    f->peer = -1;
    assert_int_equal(write_text(f, "x", &n), ZT_OK); /* answered with RST */
    assert_int_equal(write_text(f, "x", &n), ZT_RESET);
}

static bool seen_writable(void *arg)
{
    return ((struct fixture *)arg)->n_writable > 0;
}

static void tcp_full_socket_is_again_and_writable_follows(void **state)
{
    struct fixture *f = fixture_of(state);
    static char block[1 << 20];
    struct iovec iov = {block, sizeof block};
    size_t n, total = 0, got = 0;
    enum zt_err e;
    while ((e = zt_stream_writev(f->s, &iov, 1, &n)) == ZT_OK)
        total += n;
    assert_int_equal(e, ZT_AGAIN);
    zt_stream_want(f->s, ZT_STREAM_WRITABLE);
    turns(f, 5);
    assert_int_equal(f->n_writable, 0);
    ssize_t r;
    while ((r = recv(f->peer, block, sizeof block, 0)) > 0)
        got += (size_t)r;
    assert_true(zt_test_run_until(f->loop, seen_writable, f));
    turns(f, 5);
    assert_int_equal(f->n_writable, 1);
    assert_int_equal(zt_stream_writev(f->s, &iov, 1, &n), ZT_OK);
    assert_true(got > 0 && total >= got);
}

static void tcp_writable_is_told_at_once_when_nothing_blocks(void **state)
{
    struct fixture *f = fixture_of(state);
    zt_stream_want(f->s, ZT_STREAM_WRITABLE);
    assert_int_equal(f->n_writable, 0); /* never from inside */
    turns(f, 1);
    assert_int_equal(f->n_writable, 1);
}

static void tcp_writev_gathers(void **state)
{
    struct fixture *f = fixture_of(state);
    struct iovec iov[3] = {{(char[]){"one "}, 4}, {NULL, 0}, {(char[]){"two"}, 3}};
    char buf[16];
    size_t n;
    assert_int_equal(zt_stream_writev(f->s, iov, 3, &n), ZT_OK);
    assert_int_equal(n, 7);
    assert_true(zt_stream_flushed(f->s));
    assert_int_equal(recv(f->peer, buf, sizeof buf, 0), 7);
    assert_memory_equal(buf, "one two", 7);
}

static void tcp_shutdown_write_is_idempotent_and_leaves_reading(void **state)
{
    struct fixture *f = fixture_of(state);
    char buf[4];
    size_t len;
    assert_int_equal(zt_stream_shutdown_write(f->s), ZT_OK);
    assert_int_equal(zt_stream_shutdown_write(f->s), ZT_OK);
    assert_int_equal(recv(f->peer, buf, sizeof buf, 0), 0);
    peer_sends(f, "late", 4);
    assert_int_equal(peek(f, 0, &len), ZT_OK);
}

static void tcp_bytes_left_by_one_owner_are_told_to_the_next(void **state)
{
    struct fixture *f = fixture_of(state);
    size_t len;
    peer_sends(f, "early data", 10);
    zt_stream_want(f->s, ZT_STREAM_READABLE);
    assert_true(zt_test_run_until(f->loop, seen_readable, f));
    assert_int_equal(peek(f, 0, &len), ZT_OK);
    turns(f, 2);
    f->n_readable = 0;
    turns(f, 3);
    assert_int_equal(f->n_readable, 0);
    zt_stream_own(f->s, &f->owner);
    zt_stream_want(f->s, ZT_STREAM_READABLE);
    turns(f, 1);
    assert_true(f->n_readable > 0);
}

static void tcp_close_from_the_callback_is_legal(void **state)
{
    struct fixture *f = fixture_of(state);
    f->close_in_callback = true;
    peer_sends(f, "x", 1);
    zt_stream_want(f->s, ZT_STREAM_READABLE | ZT_STREAM_WRITABLE);
    assert_true(zt_test_run_until(f->loop, seen_writable, f));
    turns(f, 3);
    assert_null(f->s);
}

static void tcp_close_in_order_is_fin_and_with_an_error_rst(void **state)
{
    struct fixture *f = fixture_of(state);
    char buf[8];
    size_t n;
    assert_int_equal(write_text(f, "last", &n), ZT_OK);
    zt_stream_close(f->s, ZT_OK);
    assert_int_equal(recv(f->peer, buf, sizeof buf, 0), 4);
    assert_int_equal(recv(f->peer, buf, sizeof buf, 0), 0);
    close(f->peer);

    int fd;
    zt_test_tcp_pair(&fd, &f->peer);
    f->s = zt_tcp_stream_new(f->loop, fd, &f->owner);
    zt_stream_close(f->s, ZT_POLICY_CHANGED);
    f->s = NULL;
    assert_int_equal(recv(f->peer, buf, sizeof buf, 0), -1);
    assert_int_equal(errno, ECONNRESET);
}

/* ---- dialling ---- */

struct dial_case {
    struct zt_dial dial;
    struct zt_loop *loop;
    struct zt_netns *ns;
    int fd, errnum;
    unsigned n_done;
};

static void on_dialled(struct zt_dial *d, int fd, int errnum)
{
    struct dial_case *c = zt_container_of(d, struct dial_case, dial);
    c->fd = fd;
    c->errnum = errnum;
    c->n_done++;
}

static bool dialled(void *arg)
{
    return ((struct dial_case *)arg)->n_done > 0;
}

static int dial_setup(void **state)
{
    struct dial_case *c = zt_new(struct dial_case);
    c->loop = zt_loop_new("test");
    c->fd = -1;
    assert_int_equal(zt_netns_own(&c->ns, NULL), ZT_OK);
    *state = c;
    return 0;
}

static int dial_teardown(void **state)
{
    struct dial_case *c = *state;
    if (c->fd >= 0)
        close(c->fd);
    zt_netns_unref(c->ns);
    zt_loop_free(c->loop);
    zt_free(c);
    return 0;
}

static const struct zt_sock_opts plain = {0};

static int loopback_listener(int backlog, struct zt_addr *a)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(l, backlog), 0);
    *a = zt_sock_local(l);
    return l;
}

static void dial_connects_and_tells_later(void **state)
{
    struct dial_case *c = *state;
    struct zt_addr a;
    int l = loopback_listener(4, &a);
    zt_dial_start(&c->dial, c->loop, c->ns, &a, NULL, &plain, 5000, on_dialled);
    assert_int_equal(c->n_done, 0);
    assert_true(zt_test_run_until(c->loop, dialled, c));
    assert_int_equal(c->errnum, 0);
    assert_true(c->fd >= 0);
    struct zt_addr peer = zt_sock_peer(c->fd);
    assert_true(zt_addr_equal(&peer, &a));
    zt_dial_cancel(&c->dial); /* legal when idle */
    assert_int_equal(c->n_done, 1);
    close(l);
}

static void dial_tells_a_refusal(void **state)
{
    struct dial_case *c = *state;
    struct zt_addr a;
    close(loopback_listener(1, &a));
    zt_dial_start(&c->dial, c->loop, c->ns, &a, NULL, &plain, 5000, on_dialled);
    assert_true(zt_test_run_until(c->loop, dialled, c));
    assert_int_equal(c->errnum, ECONNREFUSED);
    assert_int_equal(c->fd, -1);
}

static void dial_failing_at_once_tells_later_too(void **state)
{
    zt_test_need_root();
    struct dial_case *c = *state;
    struct zt_netns *bare = zt_netns_new(zt_test_netns_fd());
    struct zt_addr a;
    assert_true(zt_addr_parse("192.0.2.1:80", &a));
    zt_dial_start(&c->dial, c->loop, bare, &a, NULL, &plain, 5000, on_dialled);
    assert_int_equal(c->n_done, 0);
    assert_true(zt_test_run_until(c->loop, dialled, c));
    assert_int_equal(c->errnum, ENETUNREACH);
    zt_netns_unref(bare);
}

/* A full accept queue: the SYN is dropped. */
static void dial_gives_up_after_its_time(void **state)
{
    struct dial_case *c = *state;
    struct zt_addr a;
    int l = loopback_listener(0, &a), fill[2];
    for (int i = 0; i < 2; i++)
        fill[i] = zt_sock_connect(c->ns, &a, NULL, &plain);
    zt_dial_start(&c->dial, c->loop, c->ns, &a, NULL, &plain, 50, on_dialled);
    assert_true(zt_test_run_until(c->loop, dialled, c));
    assert_int_equal(c->errnum, ETIMEDOUT);
    assert_int_equal(c->fd, -1);
    close(fill[0]), close(fill[1]), close(l);
}

static void dial_cancelled_never_tells_and_closes(void **state)
{
    struct dial_case *c = *state;
    struct zt_addr a;
    int l = loopback_listener(4, &a);
    unsigned before = zt_test_open_fds();
    zt_dial_start(&c->dial, c->loop, c->ns, &a, NULL, &plain, 5000, on_dialled);
    zt_dial_cancel(&c->dial);
    zt_test_run_for_ms(c->loop, 20);
    assert_int_equal(c->n_done, 0);
    assert_int_equal(zt_test_open_fds(), before);
    close(l);
}

/* One tunnel can ask for any number of dials, so holding accepts back does not keep the reserve. */
static void dial_leaves_the_descriptor_reserve_alone(void **state)
{
    struct dial_case *c = *state;
    struct zt_addr a;
    struct rlimit all, few;
    int l = loopback_listener(4, &a);
    unsigned before = zt_test_open_fds();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &all), 0);
    few = (struct rlimit){256, all.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    zt_fd_guard_set(128);
    int low = dup2(l, 127), filler[128], n = 0;
    assert_int_equal(low, 127);
    while ((filler[n] = dup(l)) < 127)
        n++;
    zt_dial_start(&c->dial, c->loop, c->ns, &a, NULL, &plain, 5000, on_dialled);
    assert_true(zt_test_run_until(c->loop, dialled, c));
    assert_int_equal(c->errnum, EMFILE);
    assert_int_equal(c->fd, -1);
    for (int i = 0; i <= n; i++)
        close(filler[i]);
    close(low);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &all), 0);
    zt_fd_guard_set(0);
    assert_int_equal(zt_test_open_fds(), before);
    close(l);
}

#define STREAM_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define DIAL_TEST(fn) cmocka_unit_test_setup_teardown(fn, dial_setup, dial_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STREAM_TEST(tcp_peek_shows_what_came_and_again_when_nothing_did),
        STREAM_TEST(tcp_idle_stream_holds_no_buffer),
        STREAM_TEST(tcp_receive_size_follows_the_traffic),
        STREAM_TEST(tcp_unread_tail_stays_contiguous_and_intact),
        STREAM_TEST(tcp_full_buffer_stops_reading_until_something_is_consumed),
        STREAM_TEST(tcp_fin_is_eof_after_the_bytes),
        STREAM_TEST(tcp_end_behind_unconsumed_bytes_is_shown_to_who_asks_for_more),
        STREAM_TEST(tcp_rst_is_reset),
        STREAM_TEST(tcp_reset_met_by_a_write_is_no_eof_for_the_reader),
        STREAM_TEST(tcp_write_after_the_peers_close_fails_without_a_signal),
        STREAM_TEST(tcp_full_socket_is_again_and_writable_follows),
        STREAM_TEST(tcp_writable_is_told_at_once_when_nothing_blocks),
        STREAM_TEST(tcp_writev_gathers),
        STREAM_TEST(tcp_shutdown_write_is_idempotent_and_leaves_reading),
        STREAM_TEST(tcp_bytes_left_by_one_owner_are_told_to_the_next),
        STREAM_TEST(tcp_close_from_the_callback_is_legal),
        STREAM_TEST(tcp_close_in_order_is_fin_and_with_an_error_rst),
        DIAL_TEST(dial_connects_and_tells_later),
        DIAL_TEST(dial_tells_a_refusal),
        DIAL_TEST(dial_failing_at_once_tells_later_too),
        DIAL_TEST(dial_gives_up_after_its_time),
        DIAL_TEST(dial_cancelled_never_tells_and_closes),
        DIAL_TEST(dial_leaves_the_descriptor_reserve_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
