/* zt/net/sock.h on real sockets, inside fresh namespaces where privileges or ports matter. */
#include "support/net_fixture.h"
#include "zt/net/sock.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MARK 1337

static const struct zt_sock_opts inpod = {
    .keepalive = true,
    .keepalive_idle_s = 180,
    .keepalive_interval_s = 60,
    .keepalive_retries = 9,
    .mark = MARK,
    .mark_listeners = true,
    .reuse_port = true,
    .ipv6 = true,
};

static int opt_int(int fd, int level, int option)
{
    int value = -1;
    socklen_t len = sizeof value;
    assert_int_equal(getsockopt(fd, level, option, &value, &len), 0);
    return value;
}

static struct zt_netns *fresh_netns(void)
{
    zt_test_need_root();
    return zt_netns_new(zt_test_netns_fd());
}

static int listener(struct zt_netns *ns, uint16_t port, const struct zt_sock_opts *o)
{
    struct zt_error err = ZT_ERROR_INIT;
    int fd = -1;
    bool transparent;
    if (zt_sock_listen(ns, port, o, &fd, &transparent, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return fd;
}

static struct zt_addr address(const char *text)
{
    struct zt_addr a;
    assert_true(zt_addr_parse(text, &a));
    return a;
}

/* Waits until fd is ready for `events`. */
static void await(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    assert_int_equal(poll(&p, 1, 5000), 1);
}

static int connected(struct zt_netns *ns, const char *dst, const struct zt_ip *source)
{
    struct zt_addr a = address(dst);
    struct zt_addr from = {.ip = source ? *source : (struct zt_ip){0}};
    int fd = zt_sock_connect(ns, &a, source ? &from : NULL, &inpod);
    assert_true(fd >= 0);
    await(fd, POLLOUT);
    assert_int_equal(opt_int(fd, SOL_SOCKET, SO_ERROR), 0);
    return fd;
}

static int accepted(int l)
{
    await(l, POLLIN);
    int fd = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void sock_inpod_config_port_reuse(void **state)
{
    struct zt_netns *ns = fresh_netns();
    int a = listener(ns, 15008, &inpod);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_MARK), MARK);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_REUSEPORT), 1);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_REUSEADDR), 0);
    int b = listener(ns, 15008, &inpod); /* a rolling upgrade */
    close(a);
    close(b);
    zt_netns_unref(ns);
}

static void sock_inpod_config_no_port_reuse(void **state)
{
    struct zt_netns *ns = fresh_netns();
    struct zt_sock_opts o = inpod;
    struct zt_error err = ZT_ERROR_INIT;
    bool transparent;
    int b = -1;
    o.reuse_port = false;
    int a = listener(ns, 15008, &o);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_MARK), MARK);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_REUSEPORT), 0);
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_REUSEADDR), 1);
    assert_int_equal(zt_sock_listen(ns, 15008, &o, &b, &transparent, &err), ZT_IO);
    assert_string_equal(
        err.text, "failed to bind to address [::]:15008: Address already in use (os error 98)");
    assert_int_equal(b, -1);
    close(a);
    zt_netns_unref(ns);
}

static void sock_inpod_config_outbound_sockets(void **state)
{
    struct zt_netns *ns = fresh_netns();
    int l = listener(ns, 8080, &inpod);
    int fd = connected(ns, "127.0.0.1:8080", NULL);
    assert_int_equal(opt_int(fd, SOL_SOCKET, SO_MARK), MARK);
    assert_int_equal(opt_int(fd, SOL_SOCKET, SO_REUSEPORT), 0);
    assert_int_equal(opt_int(fd, IPPROTO_TCP, TCP_NODELAY), 1);
    assert_int_equal(opt_int(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
    assert_int_equal(opt_int(fd, IPPROTO_TCP, TCP_KEEPINTVL), 60);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
    close(l);
    zt_netns_unref(ns);
}

static void sock_accepted_sockets_inherit_the_mark(void **state)
{
    struct zt_netns *ns = fresh_netns();
    int l = listener(ns, 15001, &inpod);
    int fd = connected(ns, "127.0.0.1:15001", NULL), in = accepted(l);
    assert_int_equal(opt_int(in, SOL_SOCKET, SO_MARK), MARK);
    close(in);
    close(fd);
    close(l);
    zt_netns_unref(ns);
}

static void sock_keep_alive_options(void **state)
{
    struct zt_sock_opts o = inpod;
    int a, b;
    o.user_timeout = true;
    zt_test_tcp_pair(&a, &b);
    assert_int_equal(zt_sock_setup_accepted(b, &o, true), 0);
    assert_int_equal(opt_int(b, SOL_SOCKET, SO_KEEPALIVE), 1);
    assert_int_equal(opt_int(b, IPPROTO_TCP, TCP_NODELAY), 1);
    assert_int_equal(opt_int(b, IPPROTO_TCP, TCP_KEEPIDLE), 180);
    assert_int_equal(opt_int(b, IPPROTO_TCP, TCP_KEEPINTVL), 60);
    assert_int_equal(opt_int(b, IPPROTO_TCP, TCP_KEEPCNT), 9);
    assert_int_equal(opt_int(b, IPPROTO_TCP, TCP_USER_TIMEOUT), (180 + 9 * 60) * 1000);
    assert_int_equal(zt_sock_setup_accepted(a, &o, false), 0); /* HBONE: its PING is the probe */
    assert_int_equal(opt_int(a, SOL_SOCKET, SO_KEEPALIVE), 0);
    close(a);
    close(b);
}

static void sock_wildcard_listener_serves_both_families(void **state)
{
    struct zt_netns *ns = fresh_netns();
    zt_test_sh_in(zt_netns_fd(ns), "echo 1 > /proc/sys/net/ipv6/bindv6only");
    int l = listener(ns, 15001, &inpod);
    int v4 = connected(ns, "127.0.0.1:15001", NULL), in4 = accepted(l);
    int v6 = connected(ns, "[::1]:15001", NULL), in6 = accepted(l);
    assert_int_equal(zt_sock_peer(in4).ip.family, ZT_IPV4); /* canonical, not v4-mapped */
    assert_int_equal(zt_sock_peer(in6).ip.family, ZT_IPV6);
    assert_int_equal(zt_sock_local(in4).port, 15001);
    struct zt_addr peer = zt_sock_peer(in4), local = zt_sock_local(v4);
    assert_true(zt_addr_equal(&peer, &local));
    close(in4), close(in6), close(v4), close(v6), close(l);
    zt_netns_unref(ns);
}

static void sock_ipv6_disabled_listens_on_ipv4_only(void **state)
{
    struct zt_netns *ns = fresh_netns();
    struct zt_sock_opts o = inpod;
    o.ipv6 = false;
    int l = listener(ns, 15001, &o);
    assert_int_equal(opt_int(l, SOL_SOCKET, SO_DOMAIN), AF_INET);
    close(l);
    zt_netns_unref(ns);
}

static void sock_transparent_follows_the_wish(void **state)
{
    struct zt_netns *ns = fresh_netns();
    struct zt_sock_opts o = inpod;
    bool transparent = false;
    int fd;
    assert_int_equal(zt_sock_listen(ns, 15008, &o, &fd, &transparent, NULL), ZT_OK);
    assert_true(transparent);
    assert_int_equal(opt_int(fd, SOL_IP, IP_TRANSPARENT), 1);
    close(fd);
    o.orig_src = ZT_ORIG_SRC_NEVER;
    assert_int_equal(zt_sock_listen(ns, 15008, &o, &fd, &transparent, NULL), ZT_OK);
    assert_false(transparent);
    assert_int_equal(opt_int(fd, SOL_IP, IP_TRANSPARENT), 0);
    close(fd);
    zt_netns_unref(ns);
}

/* 10.9.9.9 is not an address of the namespace; a route to lo brings the answers back, as the pod's
 * policy routing does. */
static void sock_connect_preserves_a_foreign_source(void **state)
{
    struct zt_netns *ns = fresh_netns();
    zt_test_sh_in(zt_netns_fd(ns), "ip route add local 10.9.9.0/24 dev lo");
    struct zt_ip source;
    assert_true(zt_ip_parse("10.9.9.9", &source));
    int l = listener(ns, 8080, &inpod);
    int fd = connected(ns, "127.0.0.1:8080", &source), in = accepted(l);
    struct zt_addr peer = zt_sock_peer(in);
    assert_true(zt_ip_equal(&peer.ip, &source));
    assert_int_equal(opt_int(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT), 1);
    close(in), close(fd), close(l);
    zt_netns_unref(ns);
}

static void sock_connect_takes_the_source_port_asked_for_or_another(void **state)
{
    struct zt_netns *ns = fresh_netns();
    zt_test_sh_in(zt_netns_fd(ns), "ip route add local 10.9.9.0/24 dev lo");
    int l = listener(ns, 8080, &inpod);
    struct zt_addr dst = address("127.0.0.1:8080"), source = address("10.9.9.9:2000");
    int first = zt_sock_connect(ns, &dst, &source, &inpod), in = accepted(l);
    assert_true(first >= 0);
    struct zt_addr seen = zt_sock_peer(in);
    assert_true(zt_addr_equal(&seen, &source));
    close(in);
    int second = zt_sock_connect(ns, &dst, &source, &inpod); /* the port is in use for this destination */
    in = accepted(l);
    assert_true(second >= 0);
    seen = zt_sock_peer(in);
    assert_true(zt_ip_equal(&seen.ip, &source.ip));
    assert_int_not_equal(seen.port, 2000);
    close(in);
    close(first);
    close(second);
    close(l);
    zt_netns_unref(ns);
}

static void sock_connect_preserves_a_foreign_ipv6_source(void **state)
{
    struct zt_netns *ns = fresh_netns();
    zt_test_sh_in(zt_netns_fd(ns), "ip -6 route add local fd99::/64 dev lo");
    struct zt_ip source;
    assert_true(zt_ip_parse("fd99::9", &source));
    int l = listener(ns, 8080, &inpod);
    int fd = connected(ns, "[::1]:8080", &source), in = accepted(l);
    struct zt_addr peer = zt_sock_peer(in);
    assert_true(zt_ip_equal(&peer.ip, &source));
    close(in), close(fd), close(l);
    zt_netns_unref(ns);
}

static void sock_connect_to_the_source_itself_is_plain(void **state)
{
    struct zt_netns *ns = fresh_netns();
    struct zt_ip source;
    assert_true(zt_ip_parse("127.0.0.1", &source));
    int l = listener(ns, 8080, &inpod);
    int fd = connected(ns, "127.0.0.1:8080", &source);
    assert_int_equal(opt_int(fd, SOL_IP, IP_TRANSPARENT), 0);
    close(fd), close(l);
    zt_netns_unref(ns);
}

/* Never a silent dial with our own address instead: an IPv6 destination cannot be reached from an
 * IPv4 source. */
static void sock_connect_fails_when_the_source_cannot_be_kept(void **state)
{
    struct zt_netns *ns = fresh_netns();
    struct zt_addr dst = address("[::1]:8080");
    struct zt_addr source = {.port = 0};
    unsigned before = zt_test_open_fds();
    assert_true(zt_ip_parse("10.9.9.9", &source.ip));
    assert_true(zt_sock_connect(ns, &dst, &source, &inpod) < 0);
    assert_int_equal(zt_test_open_fds(), before);
    zt_netns_unref(ns);
}

static void sock_original_destination_of_a_redirected_connection(void **state)
{
    struct zt_netns *ns = fresh_netns();
    zt_test_sh_in(
        zt_netns_fd(ns),
        "nft 'add table inet t; add chain inet t o { type nat hook output priority -100; }; "
        "add rule inet t o meta mark != 1337 tcp dport 80 redirect to :15001' && "
        "ip route add local 10.0.0.0/8 dev lo && ip -6 route add local fd10::/16 dev lo");
    struct zt_sock_opts unmarked = inpod;
    unmarked.mark = 0;
    int l = listener(ns, 15001, &inpod);
    static const char *const dsts[] = {"10.1.2.3:80", "[fd10::3]:80"};
    for (int i = 0; i < 2; i++) {
        struct zt_addr dst = address(dsts[i]);
        int fd = zt_sock_connect(ns, &dst, NULL, &unmarked);
        assert_true(fd >= 0);
        int in = accepted(l);
        struct zt_addr got = zt_sock_original_dst(in, true);
        assert_true(zt_addr_equal(&got, &dst));
        close(in), close(fd);
    }
    close(l);
    zt_netns_unref(ns);
}

static void sock_original_destination_falls_back_to_the_local_address(void **state)
{
    int a, b;
    zt_test_tcp_pair(&a, &b);
    struct zt_addr got = zt_sock_original_dst(b, true), local = zt_sock_local(b);
    assert_true(zt_addr_equal(&got, &local));
    assert_int_equal(got.ip.family, ZT_IPV4);
    close(a);
    close(b);
}

static void sock_listen_addr_names_the_address_in_use(void **state)
{
    struct zt_addr any = address("127.0.0.1:0");
    struct zt_error err = ZT_ERROR_INIT;
    int a, b = -1;
    assert_int_equal(zt_sock_listen_addr(&any, &a, &err), ZT_OK);
    struct zt_addr taken = zt_sock_local(a);
    assert_int_equal(zt_sock_listen_addr(&taken, &b, &err), ZT_IO);
    assert_non_null(strstr(err.text, "failed to bind to address 127.0.0.1:"));
    assert_non_null(strstr(err.text, "Address already in use (os error 98)"));
    close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sock_inpod_config_port_reuse),
        cmocka_unit_test(sock_inpod_config_no_port_reuse),
        cmocka_unit_test(sock_inpod_config_outbound_sockets),
        cmocka_unit_test(sock_accepted_sockets_inherit_the_mark),
        cmocka_unit_test(sock_keep_alive_options),
        cmocka_unit_test(sock_wildcard_listener_serves_both_families),
        cmocka_unit_test(sock_ipv6_disabled_listens_on_ipv4_only),
        cmocka_unit_test(sock_transparent_follows_the_wish),
        cmocka_unit_test(sock_connect_preserves_a_foreign_source),
        cmocka_unit_test(sock_connect_takes_the_source_port_asked_for_or_another),
        cmocka_unit_test(sock_connect_preserves_a_foreign_ipv6_source),
        cmocka_unit_test(sock_connect_to_the_source_itself_is_plain),
        cmocka_unit_test(sock_connect_fails_when_the_source_cannot_be_kept),
        cmocka_unit_test(sock_original_destination_of_a_redirected_connection),
        cmocka_unit_test(sock_original_destination_falls_back_to_the_local_address),
        cmocka_unit_test(sock_listen_addr_names_the_address_in_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
