/* zt/net/handover.h: what waits in a listener's queue outlives the listener (spec/inpod §2.8). */
#include "support/net_fixture.h"
#include "zt/net/handover.h"
#include "zt/net/netns.h"
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define PORT 15008
#define CLIENTS 64

static struct sockaddr_in loopback(void)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int listener_in(struct zt_netns *ns)
{
    struct sockaddr_in sa = loopback();
    int fd = zt_netns_socket(ns, AF_INET, SOCK_STREAM, 0), on = 1;
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(fd, 2 * CLIENTS), 0);
    return fd;
}

/* Waits for an event of the socket: loopback may deliver a little later on a busy machine. */
static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 300) > 0;
}

/* Connections that survive when one of two listeners closes with its queue unread. */
static unsigned survivors(bool handover)
{
    struct zt_netns *ns = zt_netns_new(zt_test_netns_fd());
    zt_test_sh_in(zt_netns_fd(ns), "echo 0 >/proc/sys/net/ipv4/tcp_migrate_req");
    int leaving = listener_in(ns), staying = listener_in(ns), clients[CLIENTS], fd;
    unsigned n_alive = 0, n_accepted = 0;
    if (handover) {
        zt_handover_enable(leaving);
        zt_handover_enable(staying); /* both daemons do */
    }
    for (int i = 0; i < CLIENTS; i++) {
        struct sockaddr_in sa = loopback();
        clients[i] = zt_netns_socket(ns, AF_INET, SOCK_STREAM, 0);
        assert_true(connect(clients[i], (struct sockaddr *)&sa, sizeof sa) == 0 || errno == EINPROGRESS);
    }
    close(leaving);
    while (readable(staying) && (fd = accept(staying, NULL, NULL)) >= 0) {
        n_accepted++;
        close(fd);
    }
    for (int i = 0; i < CLIENTS; i++) {
        char byte;
        n_alive += readable(clients[i]) && recv(clients[i], &byte, 1, 0) == 0; /* the end in good order that its server made */
        close(clients[i]);
    }
    assert_int_equal(n_alive, n_accepted);
    close(staying);
    zt_netns_unref(ns);
    return n_alive;
}

static void handover_loses_no_connection_that_waits_in_the_closed_listener(void **state)
{
    zt_test_need_root();
    assert_int_equal(survivors(true), CLIENTS);
}

/* What it is for: if the kernel did this by itself the test above would show nothing. */
static void without_handover_connections_are_lost(void **state)
{
    zt_test_need_root();
    assert_true(survivors(false) < CLIENTS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handover_loses_no_connection_that_waits_in_the_closed_listener),
        cmocka_unit_test(without_handover_connections_are_lost),
    };
    return cmocka_run_group_tests_name("handover", tests, NULL, NULL);
}
