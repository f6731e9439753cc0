/* A verb in a child process: fork, enter the namespace (if it is for one), do it, report over a pipe.
 *
 * Invariants: the child is the leader of its own process group, so one kill ends it and its programs; it dies when its
 * parent does (a job of a killed agent must not change rules behind the next agent's back); it holds no descriptor of the parent's
 * but the two it needs, so no connection of the parent's outlives its close because of a job; a result fits the pipe, so
 * writing it never blocks. */
#include "redirect_impl.h"
#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_MS 2000 /* for a child that hangs in the kernel beyond its own limit */
#define NS_FD 3       /* where the child keeps the two it needs */
#define RESULT_FD 4

struct zt_redirect_job {
    pid_t pid;
    int pid_fd, result_fd;
    bool killed;
};

/* The host's namespace is told in two ways: it is that of process 1 (which may be unreadable: pid 1 may be more privileged than we
 * are), or it is the kernel's first one, which alone has this file (seen from inside; /proc/sys/net shows the reader's). */
#define FIRST_NAMESPACE_ONLY "/proc/sys/net/core/netdev_max_backlog"
static const char host_text[] = "refused: this is the network namespace of the host; capturing its inbound traffic would cut "
                                "off the node";

static bool is_namespace_of(const struct zt_netns *ns, const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_dev == zt_netns_dev(ns) && st.st_ino == zt_netns_ino(ns);
}

static enum zt_err refuse_host(const struct zt_netns *ns, struct zt_error *err)
{
    if (is_namespace_of(ns, "/proc/1/ns/net"))
        return zt_error_set(err, ZT_INVALID, "%s", host_text);
    if (is_namespace_of(ns, "/proc/thread-self/ns/net"))
        return zt_error_set(err, ZT_INVALID, "refused: this is the agent's own network namespace, not a pod's");
    return ZT_OK;
}

static void reset_signals(void)
{
    sigset_t none;
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL); /* refused for KILL and STOP; the C library keeps its two */
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Leaves 0, 1, 2 on /dev/null and the two of ours; everything else is closed. */
static bool keep_only(int ns_fd, int result_fd)
{
    int a = ns_fd < 0 ? -1 : fcntl(ns_fd, F_DUPFD, 16), b = fcntl(result_fd, F_DUPFD, 16);
    int null = open("/dev/null", O_RDWR);
    if ((a < 0 && ns_fd >= 0) || b < 0 || null < 0)
        return false;
    for (int i = 0; i <= 2; i++)
        if (null != i && dup2(null, i) < 0)
            return false;
    if ((a >= 0 && dup3(a, NS_FD, O_CLOEXEC) < 0) || dup3(b, RESULT_FD, O_CLOEXEC) < 0)
        return false;
    return close_range(RESULT_FD + 1, ~0u, 0) == 0;
}

_Noreturn static void child_main(int ns_fd, int result_fd, zt_job_fn fn, const void *arg, enum zt_redirect_verb verb, pid_t parent)
{
    struct zt_redirect_result result = {.outcome = ZT_REDIRECT_FAILED};
    uint64_t deadline_ms = zt_clock_mono_ms() + ZT_REDIRECT_JOB_LIMIT_MS;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    reset_signals();
    if (getppid() != parent || !keep_only(ns_fd, result_fd))
        _exit(1);
    if (ns_fd >= 0 && setns(NS_FD, CLONE_NEWNET) < 0) {
        char text[128];
        zt_fmt(result.text, sizeof result.text, "cannot enter the network namespace: %s",
               zt_errno_text(errno, text, sizeof text));
    } else if (ns_fd >= 0 && access(FIRST_NAMESPACE_ONLY, F_OK) == 0) {
        result.outcome = ZT_REDIRECT_REFUSED;
        zt_fmt(result.text, sizeof result.text, "%s", host_text);
    } else {
        result.outcome = ZT_REDIRECT_DONE;
        fn(arg, verb, deadline_ms, &result);
    }
    ssize_t n = write(RESULT_FD, &result, sizeof result);
    _exit(n == (ssize_t)sizeof result ? 0 : 1);
}

enum zt_err zt_redirect_start(struct zt_netns *ns, const struct zt_redirect_plan *plan, enum zt_redirect_verb verb,
                              struct zt_redirect_job **out, struct zt_error *err)
{
    if (zt_redirect_plan_check(plan, err) != ZT_OK || refuse_host(ns, err) != ZT_OK)
        return ZT_INVALID;
    return zt_job_start(zt_netns_fd(ns), zt_rules_do, plan, verb, out, err);
}

enum zt_err zt_job_start(int ns_fd, zt_job_fn fn, const void *arg, enum zt_redirect_verb verb, struct zt_redirect_job **out,
                         struct zt_error *err)
{
    int fds[2];
    pid_t self = getpid();
    if (pipe2(fds, O_CLOEXEC) < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "redirection: pipe");
    pid_t pid = fork();
    if (pid == 0)
        child_main(ns_fd, fds[1], fn, arg, verb, self);
    int saved = errno;
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return zt_error_set_errno(err, ZT_IO, saved, "redirection: fork");
    }
    setpgid(pid, pid); /* the child does the same: whoever is first */
    int pid_fd = pidfd_open(pid, 0);
    if (pid_fd < 0) {
        saved = errno;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        close(fds[0]);
        return zt_error_set_errno(err, ZT_IO, saved, "redirection: pidfd_open");
    }
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    struct zt_redirect_job *j = zt_new(struct zt_redirect_job);
    j->pid = pid;
    j->pid_fd = pid_fd;
    j->result_fd = fds[0];
    *out = j;
    return ZT_OK;
}

int zt_redirect_job_fd(const struct zt_redirect_job *j)
{
    return j->pid_fd;
}

void zt_redirect_job_kill(struct zt_redirect_job *j)
{
    j->killed = true;
    kill(-j->pid, SIGKILL);
}

static bool is_over(const struct zt_redirect_job *j)
{
    struct pollfd p = {.fd = j->pid_fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

void zt_redirect_job_finish(struct zt_redirect_job *j, struct zt_redirect_result *out)
{
    if (!is_over(j))
        zt_redirect_job_kill(j);
    while (waitpid(j->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (read(j->result_fd, out, sizeof *out) != (ssize_t)sizeof *out) {
        memset(out, 0, sizeof *out);
        out->outcome = j->killed ? ZT_REDIRECT_TIMEOUT : ZT_REDIRECT_FAILED;
        zt_fmt(out->text, sizeof out->text, "%s",
               j->killed ? "the rule programs did not end in time" : "the child ended without a result");
    }
    out->text[sizeof out->text - 1] = '\0';
    close(j->pid_fd);
    close(j->result_fd);
    zt_free(j);
}

void zt_redirect_run(struct zt_netns *ns, const struct zt_redirect_plan *plan, enum zt_redirect_verb verb,
                     struct zt_redirect_result *out)
{
    struct zt_redirect_job *j;
    struct zt_error err = ZT_ERROR_INIT;
    enum zt_err e = zt_redirect_start(ns, plan, verb, &j, &err);
    if (e != ZT_OK) {
        memset(out, 0, sizeof *out);
        out->outcome = e == ZT_INVALID ? ZT_REDIRECT_REFUSED : ZT_REDIRECT_FAILED;
        zt_fmt(out->text, sizeof out->text, "%s", err.text);
        return;
    }
    uint64_t until = zt_clock_mono_ms() + ZT_REDIRECT_JOB_LIMIT_MS + GRACE_MS, now;
    while (!is_over(j) && (now = zt_clock_mono_ms()) < until) {
        struct pollfd p = {.fd = j->pid_fd, .events = POLLIN};
        poll(&p, 1, (int)(until - now));
    }
    zt_redirect_job_finish(j, out);
}
