/* The three verbs in real network namespaces. Needs root; without it the tests are skipped aloud, and fail under CI=true. */
#include "zt/redirect/rules.h"
#include "zt/base/clock.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const enum zt_redirect_backend backends[] = {ZT_REDIRECT_NFT, ZT_REDIRECT_IPTABLES_NFT, ZT_REDIRECT_IPTABLES_LEGACY};

/* ---- namespaces ---- */

static int in_namespace(struct zt_netns *ns, const char *command)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (setns(zt_netns_fd(ns), CLONE_NEWNET) < 0)
            _exit(99);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(98);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A pod: lo, and a dummy interface as its way out. */
static struct zt_netns *pod_new(void)
{
    int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_true(home >= 0);
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_int_equal(setns(home, CLONE_NEWNET), 0);
    close(home);
    struct zt_netns *ns = zt_netns_new(fd);
    assert_int_equal(in_namespace(ns, "ip link set lo up && ip link add eth0 type veth peer name peer0 && ip link set peer0 up && ip addr add 10.9.0.2/24 dev eth0 &&"
                                      "ip -6 addr add fd09::2/64 dev eth0 nodad && ip link set eth0 up &&"
                                      "ip route add default via 10.9.0.1 && ip -6 route add default via fd09::1"),
                     0);
    return ns;
}

static struct zt_redirect_result run(struct zt_netns *ns, enum zt_redirect_backend b, enum zt_redirect_verb verb)
{
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    struct zt_redirect_result r;
    plan.backend = b;
    zt_redirect_run(ns, &plan, verb, &r);
    return r;
}

static void expect(struct zt_netns *ns, enum zt_redirect_backend b, enum zt_redirect_verb verb, enum zt_redirect_outcome o)
{
    struct zt_redirect_result r = run(ns, b, verb);
    if (r.outcome != o)
        fail_msg("%s: verb %d: outcome %s, not %s: %s", zt_redirect_backend_name(b), verb,
                 zt_redirect_outcome_name(r.outcome), zt_redirect_outcome_name(o), r.text);
}

/* ---- what a verb leaves ---- */

static void rules_check_of_a_fresh_namespace_is_absent(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_ABSENT);
    zt_netns_unref(ns);
}

static void rules_apply_makes_check_content_with_every_backend(void **state)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        struct zt_netns *ns = pod_new();
        expect(ns, backends[i], ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, backends[i], ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
        zt_netns_unref(ns);
    }
}

static void rules_apply_twice_leaves_one_copy_with_every_backend(void **state)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        struct zt_netns *ns = pod_new();
        expect(ns, backends[i], ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, backends[i], ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, backends[i], ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE); /* compares number and order too */
        assert_int_equal(in_namespace(ns, "test $(ip rule show pref 32764 | wc -l) = 1 &&"
                                          "test $(ip -6 rule show pref 32764 | wc -l) = 1"),
                         0);
        zt_netns_unref(ns);
    }
}

static void rules_remove_leaves_nothing_with_every_backend(void **state)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        struct zt_netns *ns = pod_new();
        expect(ns, backends[i], ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, backends[i], ZT_REDIRECT_REMOVE, ZT_REDIRECT_DONE);
        expect(ns, backends[i], ZT_REDIRECT_CHECK, ZT_REDIRECT_ABSENT);
        assert_int_equal(in_namespace(ns, "! nft list ruleset | grep -q -e ztunneld -e ZT_ && ! iptables-legacy-save | grep ZT_ &&"
                                          "! ip rule | grep -q 32764 && ! ip -6 rule | grep -q 32764 &&"
                                          "test -z \"$(ip route show table 100; ip -6 route show table 100)\""),
                         0);
        expect(ns, backends[i], ZT_REDIRECT_REMOVE, ZT_REDIRECT_DONE); /* of nothing */
        zt_netns_unref(ns);
    }
}

static void rules_check_names_a_missing_rule(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "nft flush chain inet ztunneld mangle_pre"), 0);
    struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK);
    assert_int_equal(r.outcome, ZT_REDIRECT_DIFFERS);
    assert_non_null(strstr(r.text, "missing: meta mark"));
    assert_null(strstr(r.text, "unexpected"));
    zt_netns_unref(ns);
}

static void rules_check_names_an_unexpected_rule(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "nft add rule inet ztunneld nat_out tcp dport 4242 accept"), 0);
    struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK);
    assert_int_equal(r.outcome, ZT_REDIRECT_DIFFERS);
    assert_non_null(strstr(r.text, "unexpected: tcp dport 4242 accept"));
    zt_netns_unref(ns);
}

static void rules_check_sees_another_order_of_the_same_rules(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "h=$(nft -a list chain inet ztunneld nat_out | sed -n 's/.*0x00000111 accept # handle //p') &&"
                                      "nft delete rule inet ztunneld nat_out handle $h &&"
                                      "nft add rule inet ztunneld nat_out meta l4proto tcp meta mark and 0xfff == 0x111 accept"),
                     0);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_DIFFERS);
    zt_netns_unref(ns);
}

static void rules_check_names_a_missing_policy_rule_of_one_family(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "ip -6 rule del pref 32764"), 0);
    struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK);
    assert_int_equal(r.outcome, ZT_REDIRECT_DIFFERS);
    assert_string_equal(r.text, "missing: ipv6 rule: pref 32764 fwmark 0x111/0xfff lookup 100");
    zt_netns_unref(ns);
}

/* spec/inpod §4.2: the reference forgets the IPv6 rule when the IPv4 rule is there. */
static void rules_apply_adds_the_ipv6_rule_beside_an_ipv4_rule_that_is_there(void **state)
{
    struct zt_netns *ns = pod_new();
    assert_int_equal(in_namespace(ns, "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100"), 0);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
    zt_netns_unref(ns);
}

static void rules_apply_leaves_out_the_ipv6_route_where_lo_has_no_ipv6(void **state)
{
    struct zt_netns *ns = pod_new();
    assert_int_equal(in_namespace(ns, "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"), 0);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "test -z \"$(ip -6 route show table 100)\""), 0);
    zt_netns_unref(ns);
}

static void rules_port_53_is_left_alone_unless_asked_for(void **state)
{
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    struct zt_redirect_result r;
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "! nft list table inet ztunneld | grep -q 15053"), 0);
    plan.dns_capture = true;
    zt_redirect_run(ns, &plan, ZT_REDIRECT_CHECK, &r);
    assert_int_equal(r.outcome, ZT_REDIRECT_DIFFERS);
    zt_redirect_run(ns, &plan, ZT_REDIRECT_APPLY, &r);
    assert_int_equal(r.outcome, ZT_REDIRECT_DONE);
    zt_redirect_run(ns, &plan, ZT_REDIRECT_CHECK, &r);
    assert_int_equal(r.outcome, ZT_REDIRECT_DONE);
    assert_int_equal(in_namespace(ns, "nft list table inet ztunneld | grep -q 15053"), 0);
    zt_netns_unref(ns);
}

static void rules_plan_with_an_odd_interface_name_is_refused(void **state)
{
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    struct zt_error err = ZT_ERROR_INIT;
    plan.n_interfaces = 1;
    snprintf(plan.interfaces[0], IFNAMSIZ, "x\"; flush");
    assert_int_equal(zt_redirect_plan_check(&plan, &err), ZT_INVALID);
    snprintf(plan.interfaces[0], IFNAMSIZ, "tap0");
    assert_int_equal(zt_redirect_plan_check(&plan, &err), ZT_OK);
    plan.n_interfaces = ZT_REDIRECT_INTERFACES_MAX + 1;
    assert_int_equal(zt_redirect_plan_check(&plan, &err), ZT_INVALID);
}

/* ---- killed on the way ---- */

static void rules_apply_repairs_what_a_killed_run_left(void **state)
{
    static const char *const left[] = {
        "ip route replace local 0.0.0.0/0 dev lo table 100",
        "ip route replace local 0.0.0.0/0 dev lo table 100; ip rule add fwmark 0x111/0xfff pref 32764 lookup 100",
        "nft add table inet ztunneld",
        "nft 'table inet ztunneld { chain nat_out { type nat hook output priority -100; }; chain old { }; }'",
        "iptables-nft -t nat -N ZT_OUT; iptables-nft -t nat -A ZT_OUT -p tcp -j RETURN",
    };
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        struct zt_netns *ns = pod_new();
        enum zt_redirect_backend b = i == 4 ? ZT_REDIRECT_IPTABLES_NFT : ZT_REDIRECT_NFT;
        assert_int_equal(in_namespace(ns, left[i]), 0);
        expect(ns, b, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, b, ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
        expect(ns, b, ZT_REDIRECT_REMOVE, ZT_REDIRECT_DONE);
        expect(ns, b, ZT_REDIRECT_CHECK, ZT_REDIRECT_ABSENT);
        zt_netns_unref(ns);
    }
}

static void rules_job_killed_at_any_time_is_repaired_by_the_next(void **state)
{
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_netns *ns = pod_new();
    for (int ms = 0; ms < 40; ms += 3) {
        struct zt_redirect_job *j;
        struct zt_redirect_result r;
        enum zt_redirect_verb verb = ms % 2 ? ZT_REDIRECT_REMOVE : ZT_REDIRECT_APPLY;
        assert_int_equal(zt_redirect_start(ns, &plan, verb, &j, &err), ZT_OK);
        poll(NULL, 0, ms);
        zt_redirect_job_kill(j);
        zt_redirect_job_finish(j, &r);
        assert_true(r.outcome == ZT_REDIRECT_TIMEOUT || r.outcome == ZT_REDIRECT_DONE);
        expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
    }
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_REMOVE, ZT_REDIRECT_DONE);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_ABSENT);
    zt_netns_unref(ns);
}

static int n_descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void rules_jobs_leave_no_descriptor_and_no_process(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    int before = n_descriptors();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_CHECK, ZT_REDIRECT_DONE);
    assert_int_equal(n_descriptors(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    zt_netns_unref(ns);
}

/* ---- refusals ---- */

static void refused(struct zt_netns *ns, const char *because)
{
    for (enum zt_redirect_verb v = ZT_REDIRECT_APPLY; v <= ZT_REDIRECT_REMOVE; v++) {
        struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, v);
        assert_int_equal(r.outcome, ZT_REDIRECT_REFUSED);
        assert_non_null(strstr(r.text, because));
    }
}

static void rules_refuse_the_namespace_of_the_host(void **state)
{
    int status, fd = open("/proc/1/ns/net", O_RDONLY | O_CLOEXEC);
    if (fd < 0) /* pid 1 is out of reach; the first namespace of the kernel is then where this test must have started */
        fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    struct zt_netns *ns = zt_netns_new(fd);
    pid_t pid = fork();
    if (pid == 0) { /* from elsewhere, so that it is not our own */
        if (unshare(CLONE_NEWNET) < 0)
            _exit(2);
        refused(ns, "network namespace of the host");
        _exit(0);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    zt_netns_unref(ns);
}

static void rules_refuse_the_own_namespace(void **state)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) { /* somewhere that is ours and not the host's */
        struct zt_redirect_result r;
        struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
        if (unshare(CLONE_NEWNET) < 0)
            _exit(2);
        struct zt_netns *ns = zt_netns_new(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
        zt_redirect_run(ns, &plan, ZT_REDIRECT_APPLY, &r);
        _exit(r.outcome == ZT_REDIRECT_REFUSED && strstr(r.text, "agent's own") ? 0 : 1);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static void rules_refuse_a_namespace_that_istio_cni_programmed(void **state)
{
    static const char *const theirs[] = {
        "iptables-nft -t nat -N ISTIO_OUTPUT",
        "ip6tables-nft -t mangle -N ISTIO_PRERT",
        "iptables-legacy -t nat -N ISTIO_OUTPUT",
        "nft add table inet istio-ambient-nat && nft add chain inet istio-ambient-nat istio-output",
        "nft add table inet istio-ambient-mangle", /* no chain yet */
    };
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++) {
        struct zt_netns *ns = pod_new();
        assert_int_equal(in_namespace(ns, theirs[i]), 0);
        struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY);
        if (r.outcome != ZT_REDIRECT_REFUSED)
            fail_msg("%s: %s %s", theirs[i], zt_redirect_outcome_name(r.outcome), r.text);
        assert_non_null(strstr(r.text, "istio-cni manages this namespace"));
        assert_int_equal(in_namespace(ns, "! nft list tables | grep -q ztunneld && ! ip rule | grep -q 32764"), 0);
        /* nothing of ours there: removal has nothing to do, and leaves the policy rule of theirs alone */
        assert_int_equal(in_namespace(ns, "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100"), 0);
        expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_REMOVE, ZT_REDIRECT_DONE);
        assert_int_equal(in_namespace(ns, "ip rule | grep -q 32764"), 0);
        zt_netns_unref(ns);
    }
}

static void rules_of_something_that_is_no_namespace_fail_with_a_reason(void **state)
{
    struct zt_netns *ns = zt_netns_new(open("/dev/null", O_RDONLY | O_CLOEXEC));
    struct zt_redirect_result r = run(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY);
    assert_int_equal(r.outcome, ZT_REDIRECT_FAILED);
    assert_non_null(strstr(r.text, "cannot enter the network namespace"));
    zt_netns_unref(ns);
}

/* ---- what the rules do ---- */

static int listener(struct zt_netns *ns, uint16_t port)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int off = 0, fd = zt_netns_socket(ns, AF_INET6, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

static int dial(struct zt_netns *ns, const char *ip, uint16_t port, unsigned mark)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = zt_netns_socket(ns, AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    if (mark)
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    inet_pton(AF_INET, ip, &a.sin_addr);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        assert_int_equal(errno, EINPROGRESS);
    return fd;
}

/* A connection within ms, or -1. */
static int accept_within(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) == 1 ? accept4(fd, NULL, NULL, SOCK_CLOEXEC) : -1;
}

static void rules_lead_outgoing_connections_to_15001_with_their_original_destination(void **state)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        struct sockaddr_in dst;
        socklen_t len = sizeof dst;
        struct zt_netns *ns = pod_new();
        expect(ns, backends[i], ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
        int l = listener(ns, 15001), c = dial(ns, "198.51.100.7", 4321, 0);
        int a = accept_within(l, 2000);
        assert_true(a >= 0);
        assert_int_equal(getsockopt(a, SOL_IP, SO_ORIGINAL_DST, &dst, &len), 0);
        assert_int_equal(dst.sin_addr.s_addr, inet_addr("198.51.100.7"));
        assert_int_equal(ntohs(dst.sin_port), 4321);
        close(a);
        close(c);
        close(l);
        zt_netns_unref(ns);
    }
}

static void rules_leave_the_proxys_own_connections_alone(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    int l = listener(ns, 15001), c = dial(ns, "198.51.100.7", 4321, 0x539);
    assert_int_equal(accept_within(l, 200), -1);
    close(c);
    close(l);
    zt_netns_unref(ns);
}

static void rules_leave_the_pods_calls_to_itself_alone(void **state)
{
    struct zt_netns *ns = pod_new();
    expect(ns, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    int app = listener(ns, 8080), c1 = dial(ns, "10.9.0.2", 8080, 0), c2 = dial(ns, "127.0.0.1", 8080, 0);
    int a1 = accept_within(app, 2000), a2 = accept_within(app, 2000);
    assert_true(a1 >= 0 && a2 >= 0);
    close(a1);
    close(a2);
    close(c1);
    close(c2);
    close(app);
    zt_netns_unref(ns);
}

static void rules_lead_incoming_connections_to_15006_but_not_15008_nor_probes(void **state)
{
    struct zt_netns *pod = pod_new(), *node = pod_new();
    char command[256];
    snprintf(command, sizeof command,
             "ip link del eth0 && ip link add eth0 type veth peer name veth0 netns /proc/%d/fd/%d &&"
             "ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ip route add default via 10.9.0.1",
             getpid(), zt_netns_fd(node));
    assert_int_equal(in_namespace(pod, command), 0);
    assert_int_equal(in_namespace(node, "ip link del eth0; ip addr flush dev veth0; ip addr add 10.9.0.1/24 dev veth0 && ip link set veth0 up &&"
                                        "ip addr add 169.254.7.127/32 dev lo"),
                     0);
    expect(pod, ZT_REDIRECT_NFT, ZT_REDIRECT_APPLY, ZT_REDIRECT_DONE);
    int plain = listener(pod, 15006), hbone = listener(pod, 15008), app = listener(pod, 8080);
    int c = dial(node, "10.9.0.2", 8080, 0), a = accept_within(plain, 2000);
    struct sockaddr_in dst;
    socklen_t len = sizeof dst;
    assert_true(a >= 0);
    assert_int_equal(getsockopt(a, SOL_IP, SO_ORIGINAL_DST, &dst, &len), 0);
    assert_int_equal(ntohs(dst.sin_port), 8080);
    close(a);
    close(c);
    c = dial(node, "10.9.0.2", 15008, 0);
    a = accept_within(hbone, 2000);
    assert_true(a >= 0);
    close(a);
    close(c);
    assert_int_equal(in_namespace(node, "timeout 2 curl -s --interface 169.254.7.127 --max-time 1 http://10.9.0.2:8080/; true"), 0);
    a = accept_within(app, 2000); /* the probe reached the application */
    assert_true(a >= 0);
    close(a);
    close(plain);
    close(hbone);
    close(app);
    zt_netns_unref(pod);
    zt_netns_unref(node);
}

/* ---- */

static bool may_run(void)
{
    const char *ci = getenv("CI");
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    bool ok = geteuid() == 0 && fd >= 0 && unshare(CLONE_NEWNET) == 0 && setns(fd, CLONE_NEWNET) == 0;
    close(fd);
    if (ok)
        return true;
    fprintf(stderr, "SKIPPED: redirect/test_rules needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN\n");
    if (ci && strcmp(ci, "true") == 0)
        exit(1);
    return false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_check_of_a_fresh_namespace_is_absent),
        cmocka_unit_test(rules_apply_makes_check_content_with_every_backend),
        cmocka_unit_test(rules_apply_twice_leaves_one_copy_with_every_backend),
        cmocka_unit_test(rules_remove_leaves_nothing_with_every_backend),
        cmocka_unit_test(rules_check_names_a_missing_rule),
        cmocka_unit_test(rules_check_names_an_unexpected_rule),
        cmocka_unit_test(rules_check_sees_another_order_of_the_same_rules),
        cmocka_unit_test(rules_check_names_a_missing_policy_rule_of_one_family),
        cmocka_unit_test(rules_apply_adds_the_ipv6_rule_beside_an_ipv4_rule_that_is_there),
        cmocka_unit_test(rules_apply_leaves_out_the_ipv6_route_where_lo_has_no_ipv6),
        cmocka_unit_test(rules_port_53_is_left_alone_unless_asked_for),
        cmocka_unit_test(rules_plan_with_an_odd_interface_name_is_refused),
        cmocka_unit_test(rules_apply_repairs_what_a_killed_run_left),
        cmocka_unit_test(rules_job_killed_at_any_time_is_repaired_by_the_next),
        cmocka_unit_test(rules_jobs_leave_no_descriptor_and_no_process),
        cmocka_unit_test(rules_refuse_the_namespace_of_the_host),
        cmocka_unit_test(rules_refuse_the_own_namespace),
        cmocka_unit_test(rules_refuse_a_namespace_that_istio_cni_programmed),
        cmocka_unit_test(rules_of_something_that_is_no_namespace_fail_with_a_reason),
        cmocka_unit_test(rules_lead_outgoing_connections_to_15001_with_their_original_destination),
        cmocka_unit_test(rules_leave_the_proxys_own_connections_alone),
        cmocka_unit_test(rules_leave_the_pods_calls_to_itself_alone),
        cmocka_unit_test(rules_lead_incoming_connections_to_15006_but_not_15008_nor_probes),
    };
    if (!may_run())
        return 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
