/* zt/net/netns.h with real namespaces. */
#include "support/net_fixture.h"
#include "zt/net/netns.h"
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int own_ino(void *arg)
{
    struct stat st;
    if (stat("/proc/thread-self/ns/net", &st) != 0)
        return -errno;
    *(ino_t *)arg = st.st_ino;
    return 7;
}

static void netns_test_run_works(void **state)
{
    zt_test_need_root();
    ino_t before, inside = 0, after;
    struct zt_netns *ns = zt_netns_new(zt_test_netns_fd());
    own_ino(&before);
    assert_int_equal(zt_netns_run(ns, own_ino, &inside), 7);
    own_ino(&after);
    assert_int_equal(inside, zt_netns_ino(ns));
    assert_true(inside != before);
    assert_int_equal(after, before);
    zt_netns_unref(ns);
}

/* The interface table of a fresh namespace has lo and nothing with another index than 1. */
static void netns_socket_belongs_to_the_namespace_and_the_thread_returns(void **state)
{
    zt_test_need_root();
    ino_t before, after;
    struct zt_netns *ns = zt_netns_new(zt_test_netns_fd());
    own_ino(&before);
    int fd = zt_netns_socket(ns, AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    own_ino(&after);
    assert_int_equal(after, before);
    int of_socket = ioctl(fd, 0x894c /* SIOCGSKNS */);
    struct stat st;
    assert_true(of_socket >= 0);
    assert_int_equal(fstat(of_socket, &st), 0);
    assert_int_equal(st.st_ino, zt_netns_ino(ns));
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(of_socket);
    close(fd);
    zt_netns_unref(ns);
}

#define ENTRIES 200

static void *enter_often(void *arg)
{
    struct zt_netns *ns = arg;
    uintptr_t wrong = 0;
    ino_t home = 0, now = 0;
    own_ino(&home);
    for (int i = 0; i < ENTRIES; i++) {
        wrong += zt_netns_run(ns, own_ino, &now) != 7 || now != zt_netns_ino(ns);
        own_ino(&now);
        wrong += now != home;
    }
    return (void *)wrong;
}

static void netns_threads_are_in_different_namespaces_at_once(void **state)
{
    zt_test_need_root();
    struct zt_netns *ns[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        ns[i] = zt_netns_new(zt_test_netns_fd());
        assert_int_equal(pthread_create(&threads[i], NULL, enter_often, ns[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *wrong = NULL;
        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
        zt_netns_unref(ns[i]);
    }
}

static void netns_wrong_descriptor_fails_when_entered_and_not_before(void **state)
{
    ino_t before, after;
    struct zt_netns *ns = zt_netns_new(open("/dev/null", O_RDONLY | O_CLOEXEC));
    own_ino(&before);
    assert_int_equal(zt_netns_socket(ns, AF_INET, SOCK_STREAM, 0), -EINVAL);
    own_ino(&after);
    assert_int_equal(after, before);
    zt_netns_unref(ns);
}

static void netns_same_compares_device_and_inode_not_descriptors(void **state)
{
    zt_test_need_root();
    int fd = zt_test_netns_fd();
    struct zt_netns *a = zt_netns_new(fd);
    struct zt_netns *b = zt_netns_new(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    struct zt_netns *c = zt_netns_new(zt_test_netns_fd());
    assert_true(zt_netns_same(a, b));
    assert_false(zt_netns_same(a, c));
    zt_netns_unref(a);
    zt_netns_unref(b);
    zt_netns_unref(c);
}

static void netns_last_reference_closes_the_descriptor(void **state)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct zt_netns *ns = zt_netns_new(fd);
    zt_netns_ref(ns);
    zt_netns_unref(ns);
    assert_true(fcntl(fd, F_GETFD) >= 0);
    zt_netns_unref(ns);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void netns_own_is_the_callers_namespace(void **state)
{
    struct zt_netns *ns = NULL;
    ino_t own, inside = 0;
    own_ino(&own);
    assert_int_equal(zt_netns_own(&ns, NULL), ZT_OK);
    assert_int_equal(zt_netns_ino(ns), own);
    assert_int_equal(zt_netns_run(ns, own_ino, &inside), 7);
    assert_int_equal(inside, own);
    zt_netns_unref(ns);
}

static void netns_probe_passes_with_the_privileges(void **state)
{
    zt_test_need_root();
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_netns_probe(1337, &err), ZT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(netns_test_run_works),
        cmocka_unit_test(netns_socket_belongs_to_the_namespace_and_the_thread_returns),
        cmocka_unit_test(netns_threads_are_in_different_namespaces_at_once),
        cmocka_unit_test(netns_wrong_descriptor_fails_when_entered_and_not_before),
        cmocka_unit_test(netns_same_compares_device_and_inode_not_descriptors),
        cmocka_unit_test(netns_last_reference_closes_the_descriptor),
        cmocka_unit_test(netns_own_is_the_callers_namespace),
        cmocka_unit_test(netns_probe_passes_with_the_privileges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
