/* The node agent as a process of its own, a daemon played by the test over real ZDS, real network namespaces. Needs root; without it the
 * tests are skipped aloud, and fail under CI=true. */
#include "zt/agent/agent.h"
#include "zt/agent/podlist.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/cni/zds.h"
#include "zt/net/unix_sock.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT_MS 8000

/* One node: a directory with the files, pods' namespaces as processes that hold them. */
struct node {
    char dir[64], pods[96], socket[96], ctl[96];
    pid_t agent;
    pid_t pod[2]; /* each holds a network namespace */
    int daemon;   /* our connection to the agent, or -1 */
};

/* ---- pods ---- */

static pid_t pod_start(void)
{
    int ready[2];
    char c;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNET) < 0 || system("ip link set lo up") != 0 || write(ready[1], "x", 1) != 1)
            _exit(1);
        close(ready[0]);
        close(ready[1]);
        for (;;)
            pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    return pid;
}

static void pod_stop(pid_t *pid)
{
    if (*pid <= 0)
        return;
    kill(*pid, SIGKILL);
    waitpid(*pid, NULL, 0);
    *pid = 0;
}

static bool pod_has_rules(pid_t pid)
{
    char command[256];
    snprintf(command, sizeof command,
             "nsenter -t %d -n sh -c 'nft list tables | grep -q \"table inet ztunneld\" && ip rule | grep -q 32764'", pid);
    return system(command) == 0;
}

static bool pod_is_clean(pid_t pid)
{
    char command[256];
    snprintf(command, sizeof command, "nsenter -t %d -n sh -c '! nft list tables | grep -q ztunneld && ! ip rule | grep -q 32764'", pid);
    return system(command) == 0;
}

static bool becomes(bool (*is)(pid_t), pid_t pid)
{
    for (uint64_t until = zt_clock_mono_ms() + WAIT_MS; zt_clock_mono_ms() < until; poll(NULL, 0, 20))
        if (is(pid))
            return true;
    return false;
}

/* ---- the agent ---- */

static void agent_start(struct node *n)
{
    n->agent = fork();
    assert_true(n->agent >= 0);
    if (n->agent == 0) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_agent_options o = {.pods_path = n->pods, .socket_path = n->socket, .ctl_path = n->ctl, .plan = ZT_REDIRECT_PLAN_INIT, .add_wait_ms = 5000};
        zt_log_start(getenv("RUST_LOG") ? getenv("RUST_LOG") : "off", false, &err);
        enum zt_err e = zt_agent_run(&o, &err);
        zt_log_stop();
        _exit(e == ZT_OK ? 0 : e == ZT_EXISTS ? 17 : 1);
    }
    for (uint64_t until = zt_clock_mono_ms() + WAIT_MS; !zt_unix_is_served(n->socket, SOCK_SEQPACKET) && zt_clock_mono_ms() < until;)
        poll(NULL, 0, 5);
}

static int agent_stop(struct node *n, int sig)
{
    int status;
    kill(n->agent, sig);
    assert_int_equal(waitpid(n->agent, &status, 0), n->agent);
    n->agent = 0;
    if (n->daemon >= 0)
        close(n->daemon);
    n->daemon = -1;
    if (sig == SIGKILL)
        unlink(n->socket); /* so that agent_start sees the new one */
    return status;
}

/* Runs a command against the agent in the background; its output goes to answer_fd. */
struct command {
    pid_t pid;
    int out;
};

static struct command command_start(struct node *n, const char *const *words, unsigned n_words)
{
    struct command c;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    c.out = fds[0];
    c.pid = fork();
    if (c.pid == 0) {
        int code = 99;
        struct zt_error err = ZT_ERROR_INIT;
        dup2(fds[1], 1);
        dup2(fds[1], 2);
        if (n->daemon >= 0)
            close(n->daemon); /* or it would outlive the daemon's end */
        if (zt_agent_call(n->ctl, words, n_words, &code, &err) != ZT_OK)
            fprintf(stderr, "%s\n", err.text);
        fflush(stdout);
        _exit(code);
    }
    close(fds[1]);
    return c;
}

static int command_end(struct command *c, char *text, size_t size)
{
    int status;
    size_t len = 0;
    ssize_t got;
    while (len < size - 1 && (got = read(c->out, text + len, size - 1 - len)) > 0)
        len += (size_t)got;
    text[len] = '\0';
    close(c->out);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static struct command add(struct node *n, const char *uid, pid_t pod)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/net", pod);
    const char *const words[] = {"add", uid, "ns1", uid, "sa", path};
    return command_start(n, words, 6);
}

static int run(struct node *n, const char *verb, const char *arg, char *text, size_t size)
{
    const char *const words[] = {verb, arg};
    struct command c = command_start(n, words, arg ? 2 : 1);
    return command_end(&c, text, size);
}

/* ---- the daemon ---- */

static void daemon_connect(struct node *n)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    snprintf(at.sun_path, sizeof at.sun_path, "%s", n->socket);
    n->daemon = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(n->daemon, (struct sockaddr *)&at, sizeof at), 0);
    fcntl(n->daemon, F_SETFL, O_NONBLOCK);
    assert_int_equal(zt_zds_send(n->daemon, buf, zt_zds_encode_hello(ZT_ZDS_VERSION, buf), -1, &err), ZT_OK);
}

/* The next request; its namespace is closed. */
static enum zt_zds_kind daemon_receive(struct node *n, char uid[static 64])
{
    struct pollfd p = {.fd = n->daemon, .events = POLLIN};
    struct zt_zds_request r;
    struct zt_error err = ZT_ERROR_INIT;
    if (poll(&p, 1, WAIT_MS) != 1)
        fail_msg("no request came");
    if (zt_zds_recv_request(n->daemon, &r, &err) != ZT_OK)
        fail_msg("receiving: %s", err.text);
    if (r.netns_fd >= 0)
        close(r.netns_fd);
    snprintf(uid, 64, "%s", r.uid ? r.uid : "");
    return r.kind;
}

static void daemon_expect(struct node *n, enum zt_zds_kind kind, const char *uid)
{
    char got[64];
    enum zt_zds_kind k = daemon_receive(n, got);
    assert_int_equal(k, kind);
    assert_string_equal(got, uid);
}

static void daemon_ack(struct node *n, const char *error)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_zds_send(n->daemon, buf, zt_zds_encode_ack(error, buf), -1, &err), ZT_OK);
}

static bool daemon_hears_nothing(struct node *n, int ms)
{
    struct pollfd p = {.fd = n->daemon, .events = POLLIN};
    return poll(&p, 1, ms) == 0;
}

/* ---- set-up ---- */

static int setup(void **state)
{
    struct node *n = calloc(1, sizeof *n);
    snprintf(n->dir, sizeof n->dir, "/tmp/test-agent-XXXXXX");
    if (!mkdtemp(n->dir))
        return -1;
    snprintf(n->pods, sizeof n->pods, "%s/pods.yaml", n->dir);
    snprintf(n->socket, sizeof n->socket, "%s/zds.sock", n->dir);
    snprintf(n->ctl, sizeof n->ctl, "%s/ctl.sock", n->dir);
    n->daemon = -1;
    n->pod[0] = pod_start();
    n->pod[1] = pod_start();
    agent_start(n);
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct node *n = *state;
    char command[128];
    if (n->agent)
        agent_stop(n, SIGTERM);
    if (n->daemon >= 0)
        close(n->daemon);
    pod_stop(&n->pod[0]);
    pod_stop(&n->pod[1]);
    snprintf(command, sizeof command, "rm -rf %s", n->dir);
    int rc = system(command);
    free(n);
    return rc;
}

/* A daemon connected, and the first pod enrolled as "one". */
static void enrol_one(struct node *n)
{
    char text[512];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    struct command c = add(n, "one", n->pod[0]);
    daemon_expect(n, ZT_ZDS_ADD, "one");
    daemon_ack(n, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    assert_true(pod_has_rules(n->pod[0]));
}

static void write_pods(const struct node *n, const char *text)
{
    char beside[128];
    snprintf(beside, sizeof beside, "%s.mine", n->pods);
    FILE *f = fopen(beside, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(rename(beside, n->pods), 0);
}

static void pod_text(char *text, size_t size, const char *uid, pid_t pod)
{
    snprintf(text, size, "pods:\n- {uid: %s, namespace: ns1, name: %s, serviceAccount: sa, netns: /proc/%d/ns/net}\n", uid, uid, pod);
}

/* ---- claims ---- */

static void agent_add_waits_for_the_daemon_then_programs_the_rules(void **state)
{
    struct node *n = *state;
    char text[512];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    struct command c = add(n, "one", n->pod[0]);
    daemon_expect(n, ZT_ZDS_ADD, "one");
    poll(NULL, 0, 100);
    assert_true(pod_is_clean(n->pod[0])); /* listeners first */
    assert_int_equal(waitpid(c.pid, NULL, WNOHANG), 0);
    daemon_ack(n, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    assert_non_null(strstr(text, "ns1/one is enrolled"));
    assert_true(pod_has_rules(n->pod[0]));
    assert_int_equal(run(n, "check", NULL, text, sizeof text), 0);
    c = add(n, "one", n->pod[0]); /* again changes nothing */
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    assert_true(daemon_hears_nothing(n, 50));
}

static void agent_add_tells_what_the_daemon_could_not_do(void **state)
{
    struct node *n = *state;
    char text[512];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    struct command c = add(n, "one", n->pod[0]);
    daemon_expect(n, ZT_ZDS_ADD, "one");
    daemon_ack(n, "failure to start proxy : address in use");
    assert_int_equal(command_end(&c, text, sizeof text), 1);
    assert_non_null(strstr(text, "address in use"));
    assert_true(pod_is_clean(n->pod[0]));
}

static void agent_add_without_a_daemon_says_so(void **state)
{
    struct node *n = *state;
    char text[512];
    struct command c = add(n, "one", n->pod[0]);
    assert_int_equal(command_end(&c, text, sizeof text), 1);
    assert_non_null(strstr(text, "no daemon is connected"));
    daemon_connect(n); /* it was recorded, and is told now */
    daemon_expect(n, ZT_ZDS_ADD, "one");
    daemon_ack(n, "");
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    assert_true(becomes(pod_has_rules, n->pod[0]));
}

static void agent_add_refuses_a_path_that_is_not_there(void **state)
{
    struct node *n = *state;
    char text[512];
    const char *const words[] = {"add", "u", "ns1", "n", "sa", "/nonexistent/ns"};
    struct command c = command_start(n, words, 6);
    assert_int_equal(command_end(&c, text, sizeof text), 1);
    assert_non_null(strstr(text, "No such file"));
    assert_int_not_equal(access(n->pods, F_OK), 0);
}

static void agent_never_announces_the_namespace_it_runs_in(void **state)
{
    struct node *n = *state;
    char text[1024];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    struct command c = add(n, "host", getpid());
    assert_int_equal(command_end(&c, text, sizeof text), 1);
    assert_non_null(strstr(text, "refused: this is"));
    assert_true(daemon_hears_nothing(n, 100));
    assert_int_equal(run(n, "list", NULL, text, sizeof text), 0);
    assert_non_null(strstr(text, "refused"));
    const char *const words[] = {"remove", "host"};
    c = command_start(n, words, 2);
    daemon_expect(n, ZT_ZDS_DEL, "host"); /* it may know it from elsewhere */
    daemon_ack(n, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
}

static void agent_remove_takes_the_rules_away_before_the_daemon_is_told(void **state)
{
    struct node *n = *state;
    char text[512];
    enrol_one(n);
    const char *const words[] = {"remove", "ns1/one"};
    struct command c = command_start(n, words, 2);
    daemon_expect(n, ZT_ZDS_DEL, "one");
    assert_true(pod_is_clean(n->pod[0]));
    assert_int_equal(waitpid(c.pid, NULL, WNOHANG), 0);
    daemon_ack(n, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    assert_int_equal(run(n, "remove", "one", text, sizeof text), 1);
    assert_non_null(strstr(text, "no pod one"));
}

static void agent_follows_edits_of_the_file(void **state)
{
    struct node *n = *state;
    char text[512];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    pod_text(text, sizeof text, "one", n->pod[0]);
    write_pods(n, text);
    daemon_expect(n, ZT_ZDS_ADD, "one");
    daemon_ack(n, "");
    assert_true(becomes(pod_has_rules, n->pod[0]));
    pod_text(text, sizeof text, "two", n->pod[0]); /* the namespace changes hands */
    write_pods(n, text);
    daemon_expect(n, ZT_ZDS_DEL, "one");
    assert_true(pod_is_clean(n->pod[0]));
    daemon_ack(n, "");
    daemon_expect(n, ZT_ZDS_ADD, "two");
    daemon_ack(n, "");
    assert_true(becomes(pod_has_rules, n->pod[0]));
}

static void agent_keeps_what_worked_when_the_file_is_wrong(void **state)
{
    struct node *n = *state;
    char text[512];
    enrol_one(n);
    write_pods(n, "pods:\n- {uid: two\n");
    assert_true(daemon_hears_nothing(n, 300));
    write_pods(n, "");
    assert_true(daemon_hears_nothing(n, 300));
    assert_int_equal(run(n, "check", "one", text, sizeof text), 0);
    struct command c = add(n, "two", n->pod[1]);
    assert_int_equal(command_end(&c, text, sizeof text), 1); /* never overwrites what it cannot read */
    assert_non_null(strstr(text, "pods.yaml:1:1"));
}

static void agent_check_says_what_differs(void **state)
{
    struct node *n = *state;
    char text[2048], command[128];
    enrol_one(n);
    snprintf(command, sizeof command, "nsenter -t %d -n nft flush chain inet ztunneld nat_pre", n->pod[0]);
    assert_int_equal(system(command), 0);
    assert_int_equal(run(n, "check", NULL, text, sizeof text), 1);
    assert_non_null(strstr(text, "ns1/one"));
    assert_non_null(strstr(text, "differs: missing: "));
    assert_int_equal(run(n, "check", "nobody", text, sizeof text), 1);
}

static void agent_withdraws_a_pod_whose_namespace_vanished_and_keeps_it_in_the_list(void **state)
{
    struct node *n = *state;
    char text[1024];
    enrol_one(n);
    pod_stop(&n->pod[0]);
    daemon_expect(n, ZT_ZDS_DEL, "one");
    daemon_ack(n, "");
    for (int i = 0; i < 100; i++) {
        assert_int_equal(run(n, "list", NULL, text, sizeof text), 0);
        if (strstr(text, "gone "))
            break;
        poll(NULL, 0, 20);
    }
    assert_non_null(strstr(text, "gone "));
    assert_non_null(strstr(text, "one"));
}

static void agent_restart_announces_everything_again_and_rules_stay(void **state)
{
    struct node *n = *state;
    enrol_one(n);
    assert_int_equal(agent_stop(n, SIGTERM), 0);
    assert_true(pod_has_rules(n->pod[0])); /* traffic goes on without the agent */
    agent_start(n);
    daemon_connect(n);
    char uid[64];
    enum zt_zds_kind k = daemon_receive(n, uid); /* Keep while it is still being looked at: the daemon must not drop it */
    assert_string_equal(uid, "one");
    daemon_ack(n, "");
    if (k == ZT_ZDS_KEEP) {
        daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
        daemon_ack(n, "");
        daemon_expect(n, ZT_ZDS_ADD, "one");
    } else {
        assert_int_equal(k, ZT_ZDS_ADD);
        daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    }
    daemon_ack(n, "");
    assert_true(pod_has_rules(n->pod[0]));
}

static void agent_cleans_a_pod_that_was_taken_out_while_it_was_dead(void **state)
{
    struct node *n = *state;
    enrol_one(n);
    agent_stop(n, SIGKILL);
    write_pods(n, "pods: []\n");
    agent_start(n);
    assert_true(becomes(pod_is_clean, n->pod[0]));
}

/* Answers whatever comes for a while. */
static void daemon_serve(struct node *n, int ms)
{
    for (uint64_t until = zt_clock_mono_ms() + (unsigned)ms; zt_clock_mono_ms() < until;) {
        char uid[64];
        if (daemon_hears_nothing(n, 10))
            continue;
        daemon_receive(n, uid);
        daemon_ack(n, "");
    }
}

/* As becomes(), with a daemon that answers meanwhile: how long the agent's jobs take is the machine's business. */
static bool becomes_served(struct node *n, bool (*is)(pid_t), pid_t pid)
{
    for (uint64_t until = zt_clock_mono_ms() + WAIT_MS; zt_clock_mono_ms() < until; daemon_serve(n, 50))
        if (is(pid))
            return true;
    return false;
}

static void agent_killed_at_any_step_of_an_enrolment_completes_it(void **state)
{
    struct node *n = *state;
    char text[512];
    for (int ms = 0; ms <= 200; ms += 25) {
        pod_text(text, sizeof text, "one", n->pod[0]);
        daemon_connect(n);
        write_pods(n, text);
        daemon_serve(n, ms);
        agent_stop(n, SIGKILL);
        agent_start(n);
        daemon_connect(n);
        assert_true(becomes_served(n, pod_has_rules, n->pod[0]));
        write_pods(n, "pods: []\n"); /* and the same on the way out */
        daemon_serve(n, ms);
        agent_stop(n, SIGKILL);
        agent_start(n);
        assert_true(becomes(pod_is_clean, n->pod[0]));
    }
}

static void agent_tells_a_second_daemon_everything_and_both_of_a_removal(void **state)
{
    struct node *n = *state, other = *n;
    char text[512];
    enrol_one(n);
    daemon_connect(&other);
    daemon_expect(&other, ZT_ZDS_ADD, "one");
    daemon_ack(&other, "");
    daemon_expect(&other, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(&other, "");
    struct command c = add(n, "two", n->pod[1]);
    daemon_expect(&other, ZT_ZDS_ADD, "two"); /* the newest only */
    daemon_ack(&other, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    assert_true(daemon_hears_nothing(n, 50));
    const char *const words[] = {"remove", "one"};
    c = command_start(n, words, 2);
    daemon_expect(&other, ZT_ZDS_DEL, "one");
    daemon_ack(&other, "");
    daemon_expect(n, ZT_ZDS_DEL, "one");
    daemon_ack(n, "");
    assert_int_equal(command_end(&c, text, sizeof text), 0);
    close(other.daemon); /* the older one is the newest again: told of what it has not heard */
    daemon_expect(n, ZT_ZDS_ADD, "two");
    daemon_ack(n, "");
}

static void agent_remove_goes_on_when_the_daemon_dies_without_an_answer(void **state)
{
    struct node *n = *state;
    char text[512];
    enrol_one(n);
    const char *const words[] = {"remove", "one"};
    struct command c = command_start(n, words, 2);
    daemon_expect(n, ZT_ZDS_DEL, "one");
    close(n->daemon);
    n->daemon = -1;
    assert_int_equal(command_end(&c, text, sizeof text), 0);
}

static void agent_refuses_to_share_its_file(void **state)
{
    struct node *n = *state, other = *n;
    int status;
    snprintf(other.ctl, sizeof other.ctl, "%s/other.sock", n->dir);
    agent_start(&other);
    assert_int_equal(waitpid(other.agent, &status, 0), other.agent);
    assert_int_equal(WEXITSTATUS(status), 17);
}

static void agent_does_not_start_with_a_file_it_cannot_read(void **state)
{
    struct node *n = *state;
    int status;
    agent_stop(n, SIGTERM);
    write_pods(n, "pods: 7\n");
    pid_t pid = fork();
    if (pid == 0) {
        struct zt_error err = ZT_ERROR_INIT;
        struct zt_agent_options o = {.pods_path = n->pods, .socket_path = n->socket, .ctl_path = n->ctl, .plan = ZT_REDIRECT_PLAN_INIT};
        enum zt_err e = zt_agent_run(&o, &err);
        _exit(e == ZT_INVALID && strstr(err.text, "pods.yaml:1:7: pods: expected a list") ? 0 : 1);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static uint64_t cpu_ticks(pid_t pid)
{
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof text, f));
    fclose(f);
    assert_int_equal(sscanf(strrchr(text, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system), 2);
    return user + system;
}

static unsigned open_fds(pid_t pid)
{
    char path[64];
    unsigned n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void agent_out_of_descriptors_does_not_spin_and_answers_again(void **state)
{
    struct node *n = *state;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct rlimit none = {open_fds(n->agent), 4096}, plenty = {4096, 4096};
    char text[4096];
    snprintf(at.sun_path, sizeof at.sun_path, "%s", n->ctl);
    assert_int_equal(prlimit(n->agent, RLIMIT_NOFILE, &none, NULL), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    uint64_t before = cpu_ticks(n->agent);
    poll(NULL, 0, 500);
    assert_in_range(cpu_ticks(n->agent) - before, 0, (uint64_t)sysconf(_SC_CLK_TCK) / 10); /* a tenth of a second: not a loop */
    close(fd);
    assert_int_equal(prlimit(n->agent, RLIMIT_NOFILE, &plenty, NULL), 0);
    assert_int_equal(run(n, "list", NULL, text, sizeof text), 0);
}

/* Lines are the protocol of the control socket, and its reader is a terminal. */
static void agent_shows_a_daemons_words_on_one_line(void **state)
{
    struct node *n = *state;
    char text[4096];
    daemon_connect(n);
    daemon_expect(n, ZT_ZDS_SNAPSHOT_SENT, "");
    daemon_ack(n, "");
    struct command c = add(n, "one", n->pod[0]);
    daemon_expect(n, ZT_ZDS_ADD, "one");
    daemon_ack(n, "no\nx0\n\033[2J");
    assert_int_equal(command_end(&c, text, sizeof text), 1);
    assert_null(strchr(text, '\033'));
    assert_int_equal(strcspn(text, "\n"), strlen(text) - 1);
}

static bool may_run(void)
{
    const char *ci = getenv("CI");
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    bool ok = geteuid() == 0 && fd >= 0 && unshare(CLONE_NEWNET) == 0 && setns(fd, CLONE_NEWNET) == 0;
    close(fd);
    if (ok)
        return true;
    fprintf(stderr, "SKIPPED: agent/test_agent needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN\n");
    if (ci && strcmp(ci, "true") == 0)
        exit(1);
    return false;
}

#define AGENT_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        AGENT_TEST(agent_add_waits_for_the_daemon_then_programs_the_rules),
        AGENT_TEST(agent_add_tells_what_the_daemon_could_not_do),
        AGENT_TEST(agent_add_without_a_daemon_says_so),
        AGENT_TEST(agent_add_refuses_a_path_that_is_not_there),
        AGENT_TEST(agent_never_announces_the_namespace_it_runs_in),
        AGENT_TEST(agent_remove_takes_the_rules_away_before_the_daemon_is_told),
        AGENT_TEST(agent_follows_edits_of_the_file),
        AGENT_TEST(agent_keeps_what_worked_when_the_file_is_wrong),
        AGENT_TEST(agent_check_says_what_differs),
        AGENT_TEST(agent_withdraws_a_pod_whose_namespace_vanished_and_keeps_it_in_the_list),
        AGENT_TEST(agent_restart_announces_everything_again_and_rules_stay),
        AGENT_TEST(agent_cleans_a_pod_that_was_taken_out_while_it_was_dead),
        AGENT_TEST(agent_killed_at_any_step_of_an_enrolment_completes_it),
        AGENT_TEST(agent_tells_a_second_daemon_everything_and_both_of_a_removal),
        AGENT_TEST(agent_remove_goes_on_when_the_daemon_dies_without_an_answer),
        AGENT_TEST(agent_refuses_to_share_its_file),
        AGENT_TEST(agent_does_not_start_with_a_file_it_cannot_read),
        AGENT_TEST(agent_out_of_descriptors_does_not_spin_and_answers_again),
        AGENT_TEST(agent_shows_a_daemons_words_on_one_line),
    };
    if (!may_run())
        return 0;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
