/* Socket files: whose they are, and which of them may be replaced. */
#include "zt/net/unix_sock.h"
#include "zt/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[32], path[64];

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/zt-unix-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/sock", dir);
    return 0;
}

static int teardown(void **state)
{
    unlink(path);
    return rmdir(dir);
}

static int listen_here(int type, struct zt_unix_file *file)
{
    struct zt_error err = ZT_ERROR_INIT;
    int fd = -1;
    assert_int_equal(zt_unix_listen(path, type, 1, &fd, file, &err), ZT_OK);
    return fd;
}

static void unix_socket_file_is_0600_and_goes_when_it_is_ours(void **state)
{
    struct zt_unix_file file;
    struct stat st;
    int fd = listen_here(SOCK_STREAM, &file);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode, S_IFSOCK | 0600);
    zt_unix_unlink(path, &file);
    assert_int_equal(access(path, F_OK), -1);
    close(fd);
}

static void unix_socket_that_nobody_serves_is_replaced(void **state)
{
    struct zt_unix_file file, second;
    close(listen_here(SOCK_STREAM, &file));
    int fd = listen_here(SOCK_SEQPACKET, &second);
    zt_unix_unlink(path, &file); /* a new file may have an old number: only what is there now counts */
    assert_true(access(path, F_OK) == 0 || file.ino == second.ino);
    close(fd);
}

static void unix_socket_that_is_served_is_left_alone_whatever_its_type(void **state)
{
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};
    for (int i = 0; i < 2; i++) {
        struct zt_unix_file file, other = {0};
        int fd = listen_here(types[i], &file), none = -1;
        for (int j = 0; j < 2; j++) {
            struct zt_error err = ZT_ERROR_INIT;
            assert_int_equal(zt_unix_listen(path, types[j], 1, &none, &other, &err), ZT_EXISTS);
            assert_non_null(strstr(err.text, path));
            assert_non_null(strstr(err.text, "stop that one"));
        }
        zt_unix_unlink(path, &other); /* none */
        assert_int_equal(access(path, F_OK), 0);
        zt_unix_unlink(path, &file);
        close(fd);
    }
}

/* connect() would wait for room in the backlog. */
static void unix_socket_with_a_full_backlog_is_served_and_nobody_waits(void **state)
{
    struct zt_unix_file file;
    int fd = listen_here(SOCK_STREAM, &file);
    for (int i = 0; i < 8; i++)
        assert_true(zt_unix_is_served(path, SOCK_STREAM)); /* each leaves its connection in the backlog of one */
    close(fd);
    assert_false(zt_unix_is_served(path, SOCK_STREAM));
}

static void unix_socket_path_says_what_is_wrong_with_it(void **state)
{
    struct zt_unix_file file;
    struct zt_error err = ZT_ERROR_INIT;
    char longer[ZT_UNIX_PATH_MAX + 1];
    int fd = -1;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(zt_unix_listen(longer, SOCK_STREAM, 1, &fd, &file, &err), ZT_INVALID);
    assert_non_null(strstr(err.text, "at most 107 bytes"));
    err = (struct zt_error)ZT_ERROR_INIT;
    assert_int_equal(zt_unix_listen("/nonexistent/sock", SOCK_STREAM, 1, &fd, &file, &err), ZT_IO);
    assert_int_equal(errno, ENOENT);
    err = (struct zt_error)ZT_ERROR_INIT;
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(zt_unix_listen(path, SOCK_STREAM, 1, &fd, &file, &err), ZT_EXISTS);
    assert_non_null(strstr(err.text, "is not a socket"));
    assert_int_equal(access(path, F_OK), 0);
}

#define UNIX_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIX_TEST(unix_socket_file_is_0600_and_goes_when_it_is_ours),
        UNIX_TEST(unix_socket_that_nobody_serves_is_replaced),
        UNIX_TEST(unix_socket_that_is_served_is_left_alone_whatever_its_type),
        UNIX_TEST(unix_socket_with_a_full_backlog_is_served_and_nobody_waits),
        UNIX_TEST(unix_socket_path_says_what_is_wrong_with_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
