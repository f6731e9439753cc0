/* The policy rule and the local route of spec/inpod §4.2, over one rtnetlink socket per call:
 *
 *     rule   pref 32764 fwmark 0x111/0xfff lookup 100
 *     route  local default dev lo table 100
 *
 * for IPv4 and, where the namespace has it, IPv6. They send the replies of the application, addressed to a client that is far
 * away, back to the daemon's socket. Without them every inbound dial hangs.
 *
 * Each family stands alone: what is there already for one (EEXIST) or gone (ENOENT, ESRCH) never hides the other. */
#include "redirect_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REPLY_MAX 32768      /* bytes of one datagram of the kernel's */
#define DUPLICATES_MAX 16    /* equal rules removed in one go */
#define DATAGRAMS_MAX 1024   /* of one dump: more is not a pod's namespace */

#define REQUEST_MAX 256

union request {
    char bytes[REQUEST_MAX]; /* first: initialisation and copies mean all of it */
    struct nlmsghdr h;
};

static const int families[] = {AF_INET, AF_INET6};
#define N_FAMILIES 2

static char family_digit(int family)
{
    return family == AF_INET ? '4' : '6';
}

static void *request_init(union request *r, int type, int flags, size_t body)
{
    memset(r, 0, sizeof *r);
    r->h.nlmsg_len = (uint32_t)NLMSG_LENGTH(body);
    r->h.nlmsg_type = (uint16_t)type;
    r->h.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    r->h.nlmsg_seq = 1;
    return NLMSG_DATA(&r->h);
}

static void request_add_u32(union request *r, int attribute, uint32_t value)
{
    size_t at = NLMSG_ALIGN(r->h.nlmsg_len);
    struct {
        struct rtattr head;
        uint32_t value;
    } a = {{.rta_len = sizeof a, .rta_type = (uint16_t)attribute}, value};
    ZT_ASSERT(at + sizeof a <= REQUEST_MAX);
    memcpy((char *)r + at, &a, sizeof a);
    r->h.nlmsg_len = (uint32_t)(at + sizeof a);
}

static void rule_request(union request *r, int type, int flags, int family)
{
    struct fib_rule_hdr *h = request_init(r, type, flags, sizeof *h);
    h->family = (uint8_t)family;
    h->action = FR_ACT_TO_TBL;
    h->table = ROUTE_TABLE;
    request_add_u32(r, FRA_PRIORITY, RULE_PRIORITY);
    request_add_u32(r, FRA_FWMARK, MARK_RETURN);
    request_add_u32(r, FRA_FWMASK, MARK_MASK);
}

static void route_request(union request *r, int type, int flags, int family)
{
    struct rtmsg *m = request_init(r, type, flags, sizeof *m);
    m->rtm_family = (uint8_t)family;
    m->rtm_table = ROUTE_TABLE;
    m->rtm_protocol = RTPROT_BOOT;
    m->rtm_scope = family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE;
    m->rtm_type = RTN_LOCAL;
    request_add_u32(r, RTA_OIF, if_nametoindex("lo"));
}

static int netlink_open(void)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct timeval limit = {.tv_sec = 2};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
        connect(fd, (struct sockaddr *)&kernel, sizeof kernel) < 0) {
        int e = -errno;
        close(fd);
        return e;
    }
    return fd;
}

/* Sends r and takes the kernel's verdict: 0 or -errno. */
static int netlink_change(int fd, union request *r)
{
    union {
        struct nlmsghdr h;
        char bytes[1024];
    } reply;
    r->h.nlmsg_flags |= NLM_F_ACK;
    if (send(fd, r, r->h.nlmsg_len, 0) < 0)
        return -errno;
    ssize_t n = recv(fd, &reply, sizeof reply, 0);
    if (n < 0)
        return -errno;
    if (!NLMSG_OK(&reply.h, (size_t)n) || reply.h.nlmsg_type != NLMSG_ERROR ||
        reply.h.nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr)))
        return -EBADMSG;
    return ((const struct nlmsgerr *)NLMSG_DATA(&reply.h))->error;
}

/* A kernel or a namespace without IPv6 has nothing to capture there. */
static bool family_is_missing(int family, int rc)
{
    return family == AF_INET6 && (rc == -EAFNOSUPPORT || rc == -EOPNOTSUPP);
}

/* /proc/sys resolves against the reading process's namespace: this child's, which is the pod's. */
static bool lo_has_ipv6(void)
{
    char c = '1';
    int fd = open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool got = read(fd, &c, 1) == 1;
    close(fd);
    return got && c == '0';
}

static int apply_family(int fd, int family, const char **what)
{
    union request r;
    int rc = 0;
    *what = "local route";
    if (family == AF_INET || lo_has_ipv6()) {
        route_request(&r, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, family);
        rc = netlink_change(fd, &r);
        if (rc < 0 && !family_is_missing(family, rc))
            return rc;
    }
    *what = "policy rule";
    rule_request(&r, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family);
    rc = netlink_change(fd, &r);
    return rc == -EEXIST || family_is_missing(family, rc) ? 0 : rc;
}

enum zt_err zt_policy_route_apply(bool ipv6, struct zt_error *err)
{
    const char *what = "rtnetlink";
    int rc = 0, fd = netlink_open();
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, -fd, "rtnetlink");
    for (int i = 0; i < (ipv6 ? N_FAMILIES : 1) && rc == 0; i++) {
        rc = apply_family(fd, families[i], &what);
        if (rc < 0)
            zt_error_set_errno(err, ZT_IO, -rc, "%s for IPv%c, table %d", what, family_digit(families[i]), ROUTE_TABLE);
    }
    close(fd);
    return rc < 0 ? ZT_IO : ZT_OK;
}

static int remove_family(int fd, int family)
{
    union request r;
    int rc = 0;
    for (int i = 0; i < DUPLICATES_MAX && rc == 0; i++) {
        rule_request(&r, RTM_DELRULE, 0, family);
        rc = netlink_change(fd, &r);
    }
    if (rc == -ENOENT || family_is_missing(family, rc)) {
        route_request(&r, RTM_DELROUTE, 0, family);
        rc = netlink_change(fd, &r);
    }
    return rc == -ESRCH || rc == -ENOENT || family_is_missing(family, rc) ? 0 : rc;
}

enum zt_err zt_policy_route_remove(struct zt_error *err)
{
    int first = 0, fd = netlink_open();
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, -fd, "rtnetlink");
    for (int i = 0; i < N_FAMILIES; i++) { /* the second even if the first failed */
        int rc = remove_family(fd, families[i]);
        if (rc < 0 && first == 0) {
            first = rc;
            zt_error_set_errno(err, ZT_IO, -rc, "removing policy rule and route for IPv%c", family_digit(families[i]));
        }
    }
    close(fd);
    return first < 0 ? ZT_IO : ZT_OK;
}

/* The attribute's 32 bits, or otherwise when it is not there. */
static uint32_t attribute_u32(const struct rtattr *a, size_t len, int attribute, uint32_t otherwise)
{
    for (; RTA_OK(a, len); a = RTA_NEXT(a, len))
        if (a->rta_type == attribute && RTA_PAYLOAD(a) >= sizeof(uint32_t))
            memcpy(&otherwise, RTA_DATA(a), sizeof otherwise);
    return otherwise;
}

static void rule_line(struct zt_str *out, int family, uint32_t mark, uint32_t mask, unsigned action)
{
    zt_str_addf(out, "ipv%c rule: pref %d fwmark 0x%x/0x%x lookup %d%s\n", family_digit(family), RULE_PRIORITY, mark, mask,
                ROUTE_TABLE, action == FR_ACT_TO_TBL ? "" : " (not a lookup)");
}

static void route_line(struct zt_str *out, int family, unsigned type, unsigned dst_bits, uint32_t oif)
{
    char name[IF_NAMESIZE];
    zt_str_addf(out, "ipv%c route: %s %s dev %s table %d\n", family_digit(family), type == RTN_LOCAL ? "local" : "not local",
                dst_bits == 0 ? "default" : "part of it", if_indextoname(oif, name) ? name : "?", ROUTE_TABLE);
}

static void dump_message(const struct nlmsghdr *h, int family, struct zt_str *out)
{
    if (h->nlmsg_type == RTM_NEWRULE && h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct fib_rule_hdr))) {
        const struct fib_rule_hdr *f = NLMSG_DATA(h);
        const struct rtattr *a = (const void *)((const char *)f + NLMSG_ALIGN(sizeof *f));
        size_t len = NLMSG_PAYLOAD(h, sizeof *f);
        if (f->family == family && attribute_u32(a, len, FRA_TABLE, f->table) == ROUTE_TABLE &&
            attribute_u32(a, len, FRA_PRIORITY, 0) == RULE_PRIORITY)
            rule_line(out, family, attribute_u32(a, len, FRA_FWMARK, 0), attribute_u32(a, len, FRA_FWMASK, 0), f->action);
    } else if (h->nlmsg_type == RTM_NEWROUTE && h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct rtmsg))) {
        const struct rtmsg *m = NLMSG_DATA(h);
        const struct rtattr *a = RTM_RTA(m);
        size_t len = RTM_PAYLOAD(h);
        if (m->rtm_family == family && attribute_u32(a, len, RTA_TABLE, m->rtm_table) == ROUTE_TABLE)
            route_line(out, family, m->rtm_type, m->rtm_dst_len, attribute_u32(a, len, RTA_OIF, 0));
    }
}

/* One dump request, to its end. Returns 0 or -errno. */
static int dump_kind(int fd, int type, int family, struct zt_str *out)
{
    static _Thread_local union {
        struct nlmsghdr h;
        char bytes[REPLY_MAX];
    } reply;
    union request r;
    struct rtmsg *m = request_init(&r, type, NLM_F_DUMP, sizeof *m);
    m->rtm_family = (uint8_t)family;
    if (send(fd, &r, r.h.nlmsg_len, 0) < 0)
        return -errno;
    for (int turns = 0; turns < DATAGRAMS_MAX; turns++) {
        ssize_t got = recv(fd, &reply, sizeof reply, MSG_TRUNC);
        if (got < 0)
            return -errno;
        if ((size_t)got > sizeof reply)
            return -EMSGSIZE;
        size_t n = (size_t)got;
        for (const struct nlmsghdr *h = &reply.h; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
            if (h->nlmsg_type == NLMSG_DONE)
                return 0;
            if (h->nlmsg_type == NLMSG_ERROR)
                return ((const struct nlmsgerr *)NLMSG_DATA(h))->error;
            dump_message(h, family, out);
        }
    }
    return -E2BIG;
}

enum zt_err zt_policy_route_dump(struct zt_str *out, struct zt_error *err)
{
    int rc = 0, fd = netlink_open();
    if (fd < 0)
        return zt_error_set_errno(err, ZT_IO, -fd, "rtnetlink");
    for (int i = 0; i < N_FAMILIES && rc == 0; i++) {
        rc = dump_kind(fd, RTM_GETRULE, families[i], out);
        if (rc == 0)
            rc = dump_kind(fd, RTM_GETROUTE, families[i], out);
        if (family_is_missing(families[i], rc))
            rc = 0;
    }
    close(fd);
    return rc < 0 ? zt_error_set_errno(err, ZT_IO, -rc, "rtnetlink: listing rules and routes") : ZT_OK;
}

void zt_policy_route_wanted(bool ipv6, struct zt_str *out)
{
    bool ipv6_here = ipv6 && access("/proc/sys/net/ipv6", F_OK) == 0;
    for (int i = 0; i < (ipv6_here ? N_FAMILIES : 1); i++) {
        rule_line(out, families[i], MARK_RETURN, MARK_MASK, FR_ACT_TO_TBL);
        if (families[i] == AF_INET || lo_has_ipv6())
            route_line(out, families[i], RTN_LOCAL, 0, if_nametoindex("lo"));
    }
}
