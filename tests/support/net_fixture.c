#include "support/net_fixture.h"
#include "zt/base/clock.h"
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT_MS 5000
#define TICK_S 0.005

/* A thread, so that the test's own namespace never changes. */
static void *make_netns(void *out)
{
    int *fd = out;
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    *fd = -1;
    if (unshare(CLONE_NEWNET) != 0)
        return NULL;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s >= 0 && ioctl(s, SIOCSIFFLAGS, &lo) == 0)
        *fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (s >= 0)
        close(s);
    return NULL;
}

static int netns_fd(void)
{
    pthread_t t;
    int fd = -1;
    if (pthread_create(&t, NULL, make_netns, &fd) == 0)
        pthread_join(t, NULL);
    return fd;
}

int zt_test_netns_fd(void)
{
    int fd = netns_fd();
    assert_true(fd >= 0);
    return fd;
}

void zt_test_need_root(void)
{
    int fd = netns_fd();
    if (fd >= 0) {
        close(fd);
        return;
    }
    const char *ci = getenv("CI");
    fprintf(stderr,
            "SKIPPED: making a network namespace needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)\n");
    if (ci && strcmp(ci, "true") == 0)
        fail_msg("privileges are missing under CI=true");
    skip();
}

void zt_test_tcp_pair(int *a, int *b)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(l >= 0);
    assert_int_equal(bind(l, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(l, 1), 0);
    assert_int_equal(getsockname(l, (struct sockaddr *)&sa, &len), 0);
    *a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(*a >= 0);
    assert_int_equal(connect(*a, (struct sockaddr *)&sa, sizeof sa), 0);
    *b = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(*b >= 0);
    assert_int_equal(fcntl(*a, F_SETFL, O_NONBLOCK), 0);
    close(l);
}

static void on_tick(struct ev_loop *ev, ev_timer *w, int revents)
{
}

bool zt_test_run_until(struct zt_loop *l, bool (*cond)(void *arg), void *arg)
{
    ev_timer tick;
    uint64_t start = zt_clock_mono_ms();
    bool held;
    ev_timer_init(&tick, on_tick, TICK_S, TICK_S);
    ev_timer_start(zt_loop_ev(l), &tick);
    while (!(held = cond(arg)) && zt_clock_mono_ms() - start < WAIT_MS)
        zt_loop_run_once(l, true);
    ev_timer_stop(zt_loop_ev(l), &tick);
    return held;
}

void zt_test_run_for_ms(struct zt_loop *l, unsigned ms)
{
    ev_timer tick;
    uint64_t start = zt_clock_mono_ms();
    ev_timer_init(&tick, on_tick, TICK_S, TICK_S);
    ev_timer_start(zt_loop_ev(l), &tick);
    do
        zt_loop_run_once(l, true);
    while (zt_clock_mono_ms() - start < ms);
    ev_timer_stop(zt_loop_ev(l), &tick);
}

void zt_test_sh_in(int fd, const char *command)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (setns(fd, CLONE_NEWNET) != 0)
            _exit(126);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("exit status %d: %s", WEXITSTATUS(status), command);
}

unsigned zt_test_open_fds(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

void zt_test_socket_path(char path[static ZT_TEST_PATH_MAX])
{
    snprintf(path, ZT_TEST_PATH_MAX, "%s/zt-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(path));
    strncat(path, "/s", ZT_TEST_PATH_MAX - strlen(path) - 1);
}

void zt_test_socket_path_remove(char path[static ZT_TEST_PATH_MAX])
{
    unlink(path);
    path[strlen(path) - 2] = '\0';
    rmdir(path);
}
