/* Bytes of a hostile HTTP client to the admin and stats pages, over a real socket: whatever comes, the connection ends, its memory is
 * released, and the next client is served. */
#include "zt/base/log.h"
#include "zt/ops/admin.h"
#include "zt/ops/stats.h"
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TURNS_MAX 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct zt_loop *loop;
static struct zt_http1 *server;
static struct sockaddr_un address = {.sun_family = AF_UNIX}; /* autobind: an abstract name of the kernel's choice */
static socklen_t address_len = sizeof(sa_family_t);
static struct zt_metrics *metrics;
static struct zt_stats stats;
static struct zt_admin_quit quit;

static void on_quit(void *arg)
{
}

static void start(void)
{
    struct zt_error err = ZT_ERROR_INIT;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ZT_ASSERT(zt_log_start("off", false, &err) == ZT_OK);
    ZT_ASSERT(bind(fd, (struct sockaddr *)&address, address_len) == 0 && listen(fd, 8) == 0);
    address_len = sizeof address;
    ZT_ASSERT(getsockname(fd, (struct sockaddr *)&address, &address_len) == 0);
    loop = zt_loop_new("fuzz");
    metrics = zt_metrics_new();
    stats = (struct zt_stats){.metrics = metrics};
    quit.fn = on_quit;
    ZT_ASSERT(zt_http1_new(loop, "fuzz", NULL, NULL, &server, &err) == ZT_OK);
    zt_admin_routes(server, &quit);
    zt_stats_routes(server, &stats);
    zt_http1_listen(server, fd, "fuzz");
    zt_http1_start(server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char sink[65536];
    if (!server)
        start();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ZT_ASSERT(connect(fd, (struct sockaddr *)&address, address_len) == 0);
    bool shut = false;
    for (int i = 0; i < TURNS_MAX; i++) {
        ssize_t n = size ? send(fd, data, size, MSG_NOSIGNAL) : 0;
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        } else if (!shut) {
            shut = true;
            size = 0;
            shutdown(fd, SHUT_WR);
        }
        zt_loop_run_once(loop, false);
        if (recv(fd, sink, sizeof sink, 0) == 0)
            break; /* the server has ended it */
    }
    close(fd);
    for (int i = 0; i < TURNS_MAX && zt_http1_n_conns(server) > 0; i++)
        zt_loop_run_once(loop, false);
    ZT_ASSERT(zt_http1_n_conns(server) == 0);
    return 0;
}
