/* Runs one rule program: fixed arguments, no shell, text on its stdin, stdout and stderr caught within limits, a deadline.
 *
 * Invariants: the program dies with us (PR_SET_PDEATHSIG) and is always reaped before we return; its environment holds PATH and
 * what the iptables programs need, nothing from ours, so that no variable of the agent changes what it does. */
#include "redirect_impl.h"
#include "zt/base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define STDERR_MAX 384 /* bytes kept: the first lines say it */
#define SEARCH_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define EXIT_NO_PROGRAM 127
#define EXIT_NO_EXEC 126

enum { IN, OUT, ERR, N_PIPES };

struct pipes {
    int ours[N_PIPES], theirs[N_PIPES];
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void pipes_close(struct pipes *p)
{
    for (int i = 0; i < N_PIPES; i++) {
        close_fd(&p->ours[i]);
        close_fd(&p->theirs[i]);
    }
}

static int pipes_open(struct pipes *p)
{
    for (int i = 0; i < N_PIPES; i++)
        p->ours[i] = p->theirs[i] = -1;
    for (int i = 0; i < N_PIPES; i++) {
        int fds[2];
        if (pipe2(fds, O_CLOEXEC) < 0)
            return -errno;
        p->ours[i] = fds[i == IN ? 1 : 0];
        p->theirs[i] = fds[i == IN ? 0 : 1];
        fcntl(p->ours[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

_Noreturn static void exec_program(const char *const *argv, struct pipes *p, pid_t parent)
{
    /* A unix domain lock in /run may not be writable; each namespace is ours alone while the job runs, so the lock is private. */
    static const char *const env[] = {SEARCH_PATH, "LC_ALL=C", "XTABLES_LOCKFILE=/dev/null", NULL};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EXIT_NO_EXEC);
    for (int i = 0; i < N_PIPES; i++)
        if (dup2(p->theirs[i], i) < 0) /* IN, OUT, ERR are 0, 1, 2 */
            _exit(EXIT_NO_EXEC);
    execvpe(argv[0], (char *const *)(uintptr_t)argv, (char *const *)(uintptr_t)env);
    _exit(errno == ENOENT ? EXIT_NO_PROGRAM : EXIT_NO_EXEC);
}

/* Moves what can be moved. False: an output grew over its limit. */
static bool feed(struct pipes *p, const char **input, struct zt_str *out, struct zt_str *err)
{
    char chunk[4096];
    if (p->ours[IN] >= 0) {
        size_t left = strlen(*input);
        ssize_t n = left ? write(p->ours[IN], *input, left) : 0;
        if (n > 0)
            *input += n;
        /* EPIPE: it stopped reading; its exit status tells why */
        if (!**input || (n < 0 && errno != EAGAIN && errno != EINTR))
            close_fd(&p->ours[IN]);
    }
    for (int i = OUT; i <= ERR; i++) {
        if (p->ours[i] < 0)
            continue;
        ssize_t n = read(p->ours[i], chunk, sizeof chunk);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            close_fd(&p->ours[i]);
        else if (n > 0 && i == ERR)
            zt_str_add_n(err, chunk, (size_t)n);
        else if (n > 0 && out)
            zt_str_add_n(out, chunk, (size_t)n);
    }
    return !out || !out->overflow;
}

/* One line of what the program complained about: newlines and tabs become spaces. */
static const char *one_line(struct zt_str *s)
{
    (void)zt_str_cstr(s);
    for (size_t i = 0; i < s->len; i++)
        if (s->data[i] == '\n' || s->data[i] == '\t' || s->data[i] == '\r')
            s->data[i] = ' ';
    while (s->len && s->data[s->len - 1] == ' ')
        s->data[--s->len] = '\0';
    return zt_str_cstr(s);
}

static enum zt_err pump(struct pipes *p, const struct program *prog, struct zt_str *complaint, struct zt_error *err)
{
    const char *input = prog->input ? prog->input : "";
    while (p->ours[OUT] >= 0 || p->ours[ERR] >= 0) {
        uint64_t now = zt_clock_mono_ms();
        if (now >= prog->deadline_ms)
            return zt_error_set(err, ZT_TIMEOUT, "%s did not end in time", prog->argv[0]);
        struct pollfd fds[N_PIPES] = {
            {.fd = p->ours[IN], .events = POLLOUT},
            {.fd = p->ours[OUT], .events = POLLIN},
            {.fd = p->ours[ERR], .events = POLLIN},
        };
        if (poll(fds, N_PIPES, (int)(prog->deadline_ms - now)) < 0 && errno != EINTR)
            return zt_error_set_errno(err, ZT_IO, errno, "%s: poll", prog->argv[0]);
        if (!feed(p, &input, prog->output, complaint))
            return zt_error_set(err, ZT_IO, "%s: more than %zu bytes of output", prog->argv[0], prog->output->max);
    }
    return ZT_OK;
}

static enum zt_err judge_exit(const struct program *prog, int wait_status, struct zt_str *complaint, int *status,
                              struct zt_error *err)
{
    if (!WIFEXITED(wait_status))
        return zt_error_set(err, ZT_IO, "%s was ended by signal %d", prog->argv[0], WTERMSIG(wait_status));
    *status = WEXITSTATUS(wait_status);
    if (*status == EXIT_NO_PROGRAM && !complaint->len)
        return zt_error_set(err, ZT_NOT_FOUND, "program %s is not installed", prog->argv[0]);
    if (*status != 0)
        return zt_error_set(err, ZT_INVALID, "%s: %s", prog->argv[0],
                            complaint->len ? one_line(complaint) : "failed and said nothing");
    return ZT_OK;
}

enum zt_err zt_program_run(const struct program *prog, int *status, struct zt_error *err)
{
    struct pipes p;
    struct zt_str complaint;
    int wait_status = 0, ignored;
    pid_t self = getpid();
    int rc = pipes_open(&p);
    pid_t pid = rc == 0 ? fork() : -1;
    if (pid == 0)
        exec_program(prog->argv, &p, self);
    if (pid < 0) {
        if (rc == 0)
            rc = -errno;
        pipes_close(&p);
        return zt_error_set_errno(err, ZT_IO, -rc, "%s: cannot start", prog->argv[0]);
    }
    for (int i = 0; i < N_PIPES; i++)
        close_fd(&p.theirs[i]);
    zt_str_init(&complaint, STDERR_MAX);
    enum zt_err e = pump(&p, prog, &complaint, err);
    if (e != ZT_OK)
        kill(pid, SIGKILL);
    pipes_close(&p);
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR)
        ;
    if (e == ZT_OK)
        e = judge_exit(prog, wait_status, &complaint, status ? status : &ignored, err);
    zt_str_fini(&complaint);
    return e;
}
