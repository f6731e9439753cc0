/* Listening sockets of the admin, stats and readiness servers. */
#include "app/listen.h"
#include "zt/net/sock.h"
#include <errno.h>
#include <unistd.h>

static bool kernel_has_ipv6(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno != EAFNOSUPPORT; /* another failure is the bind's to report */
    close(fd);
    return true;
}

enum zt_err zt_listen_wildcard(bool ipv6, uint16_t port, int *fd, char address[static ZT_ADDR_TEXT_MAX],
                               struct zt_error *err)
{
    struct zt_addr a = {.ip.family = ipv6 && kernel_has_ipv6() ? ZT_IPV6 : ZT_IPV4, .port = port};
    zt_addr_format(&a, address);
    return zt_sock_listen_addr(&a, fd, err);
}

static enum zt_err add_listener(struct zt_http1 *s, enum zt_family family, uint16_t port, struct zt_error *err)
{
    char text[ZT_ADDR_TEXT_MAX];
    struct zt_addr a = {.ip = zt_ip_loopback(family), .port = port};
    int fd;
    enum zt_err e = zt_sock_listen_addr(&a, &fd, err);
    if (e == ZT_OK)
        zt_http1_listen(s, fd, zt_addr_format(&a, text));
    return e;
}

enum zt_err zt_listen_loopback(struct zt_http1 *s, bool ipv6, uint16_t port, struct zt_error *err)
{
    enum zt_err e = add_listener(s, ZT_IPV4, port, err);
    if (e == ZT_OK && ipv6 && kernel_has_ipv6())
        e = add_listener(s, ZT_IPV6, port, err);
    return e;
}
