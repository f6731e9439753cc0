/* Real sockets and namespaces for tests: a connected TCP pair on loopback, a fresh network
 * namespace, loud skips. */
#ifndef ZT_TESTS_NET_FIXTURE_H
#define ZT_TESTS_NET_FIXTURE_H

#include "zt/loop/loop.h"
#include <stdbool.h>

/* Skips the running test, loudly, without the privilege to make namespaces; with CI=true that is a
 * failure. */
void zt_test_need_root(void);
/* A new network namespace with lo up; nothing else refers to it. Returns its descriptor (owned);
 * fails the test on error. */
int zt_test_netns_fd(void);
/* Two connected, non-blocking TCP sockets over 127.0.0.1. */
void zt_test_tcp_pair(int *a, int *b);
/* Runs the loop until cond(arg) or 5 s; returns whether cond held. */
bool zt_test_run_until(struct zt_loop *l, bool (*cond)(void *arg), void *arg);
/* Runs the loop for that long. */
void zt_test_run_for_ms(struct zt_loop *l, unsigned ms);
/* Runs a shell command inside the namespace; fails the test unless it exits with 0. */
void zt_test_sh_in(int netns_fd, const char *command);
/* A path for a unix socket in a fresh private directory; and the end of both. */
#define ZT_TEST_PATH_MAX 108
void zt_test_socket_path(char path[static ZT_TEST_PATH_MAX]);
void zt_test_socket_path_remove(char path[static ZT_TEST_PATH_MAX]);
/* Open descriptors of this process. */
unsigned zt_test_open_fds(void);

#endif
