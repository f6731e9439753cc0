/* Watching the local xDS file on a thread of its own.
 *
 * What counts as a change: a writer closes the file, something is renamed to its name, or its path leads to another inode (a
 * ConfigMap swaps a link). Bytes that are still being written do not count: the writer's close does.
 *
 *   IDLE --event--> SETTLING (ZT_LOCAL_SETTLE_MS without events) --> CHECK: hash; same content as last time --> IDLE
 *                                                                     | changed while read --> SETTLING
 *                                                                     | unreadable --> MISSING: look again every second, report once
 *                                                                     | new content: parse, post the result --> IDLE
 *
 * Invariants: at most one result is under way to the loop; the thread touches nothing of the loop's but its mailbox; the watch is
 * freed when its owner and the result under way have both let go. */
#include "config/local_impl.h"

#include "zt/base/clock.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define SETTLE_MAX_MS 40   /* a stream of events does not put a check off for longer */
#define MISSING_MS 1000    /* an editor may take the file away for a moment */
#define EVENTS_BYTES 16384 /* of one read */
#define DIR_MASK (IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF)

struct zt_local_watch {
    struct zt_loop *loop; /* borrowed */
    zt_local_result_fn result;
    void *arg;
    char *path;
    atomic_uint refs; /* the owner, the result under way */
    bool stopped;     /* the loop's */
    pthread_t thread;
    int stop_fd; /* an eventfd */
    atomic_bool stop, result_under_way;
    /* the thread's */
    int inotify_fd;
    int dir_wd, real_dir_wd, file_wd; /* -1 = none */
    char *name, *real_name;           /* last parts of the path and of where it leads */
    struct zt_local_info last;        /* the content seen last */
    bool has_last, missing, missing_reported;
    dev_t dev; /* of the file checked last */
    ino_t ino;
    uint64_t first_event_ms, due_ms; /* due: of the next check; 0 = none */
};

struct result {
    struct zt_msg msg;
    struct zt_local_watch *watch;
    struct zt_batch *batch; /* owned, or NULL with err */
    struct zt_local_info info;
    struct zt_error err;
};

static void watch_unref(struct zt_local_watch *w)
{
    if (atomic_fetch_sub(&w->refs, 1) != 1)
        return;
    close(w->inotify_fd);
    close(w->stop_fd);
    zt_free(w->name);
    zt_free(w->real_name);
    zt_free(w->path);
    zt_free(w);
}

/* ---- results -------------------------------------------------------------------------------------- */

static void on_result(struct zt_msg *msg)
{
    struct result *r = zt_container_of(msg, struct result, msg);
    struct zt_local_watch *w = r->watch;
    atomic_store(&w->result_under_way, false);
    if (!w->stopped)
        w->result(w->arg, r->batch, r->batch ? &r->info : NULL, r->batch ? NULL : &r->err);
    else if (r->batch)
        zt_batch_free(r->batch);
    zt_free(r);
    watch_unref(w);
}

static void post_result(struct zt_local_watch *w, struct zt_batch *batch, const struct zt_error *err)
{
    struct result *r = zt_new(struct result);
    *r = (struct result){.msg.run = on_result, .watch = w, .batch = batch, .info = w->last, .err = *err};
    atomic_fetch_add(&w->refs, 1);
    atomic_store(&w->result_under_way, true);
    zt_loop_post(w->loop, &r->msg);
}

/* ---- watches -------------------------------------------------------------------------------------- */

static void move_watch(struct zt_local_watch *w, int *slot, int wd)
{
    int old = *slot;
    *slot = wd;
    if (old >= 0 && old != w->dir_wd && old != w->real_dir_wd && old != w->file_wd)
        inotify_rm_watch(w->inotify_fd, old); /* EINVAL when the kernel dropped it before us: fine */
}

static int watch_dir_of(struct zt_local_watch *w, const char *path)
{
    char *copy = zt_strdup(path);
    int wd = inotify_add_watch(w->inotify_fd, dirname(copy), DIR_MASK | IN_ONLYDIR);
    zt_free(copy);
    return wd;
}

static void set_name(char **slot, const char *path)
{
    const char *slash = strrchr(path, '/');
    zt_free(*slot);
    *slot = zt_strdup(slash ? slash + 1 : path);
}

/* Puts the watches where the path leads now. Adding one that is there changes nothing. */
static void arm(struct zt_local_watch *w)
{
    char real[PATH_MAX];
    move_watch(w, &w->dir_wd, watch_dir_of(w, w->path));
    bool known = realpath(w->path, real) != NULL;
    move_watch(w, &w->real_dir_wd, known ? watch_dir_of(w, real) : -1);
    move_watch(w, &w->file_wd, inotify_add_watch(w->inotify_fd, w->path, IN_CLOSE_WRITE));
    if (known)
        set_name(&w->real_name, real);
}

/* ---- checks --------------------------------------------------------------------------------------- */

static void check_later(struct zt_local_watch *w, uint64_t ms)
{
    w->due_ms = zt_clock_mono_ms() + ms;
}

static void on_missing(struct zt_local_watch *w, const struct zt_error *err)
{
    bool again = w->missing;
    w->missing = true;
    if (again && !w->missing_reported && !atomic_load(&w->stop)) {
        w->missing_reported = true;
        post_result(w, NULL, err);
    }
    check_later(w, MISSING_MS);
}

static void check(struct zt_local_watch *w)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_local_info now;
    struct zt_batch *batch = NULL;
    struct stat st;
    if (atomic_load(&w->result_under_way)) {
        check_later(w, ZT_LOCAL_SETTLE_MS);
        return;
    }
    arm(w); /* first, so that what changes from here on gives an event */
    if (stat(w->path, &st) == 0) {
        w->dev = st.st_dev;
        w->ino = st.st_ino;
    }
    enum zt_err e = zt_local_hash(w->path, &w->stop, &now, &err);
    if (e == ZT_OK) {
        w->missing = w->missing_reported = false;
        if (w->has_last && w->last.hash == now.hash && w->last.bytes == now.bytes)
            return;
        e = zt_local_load_once(w->path, &w->stop, &batch, &now, &err);
    } else if (e != ZT_AGAIN) {
        on_missing(w, &err);
        return;
    }
    if (e == ZT_AGAIN) {
        check_later(w, ZT_LOCAL_SETTLE_MS);
    } else if (!atomic_load(&w->stop)) {
        w->last = now;
        w->has_last = true;
        post_result(w, batch, &err);
    } else if (batch) {
        zt_batch_free(batch);
    }
}

/* ---- events --------------------------------------------------------------------------------------- */

static bool is_our_name(const struct zt_local_watch *w, const struct inotify_event *ev)
{
    return ev->len && ((ev->wd == w->dir_wd && strcmp(ev->name, w->name) == 0) ||
                       (ev->wd == w->real_dir_wd && w->real_name && strcmp(ev->name, w->real_name) == 0));
}

static bool leads_elsewhere(const struct zt_local_watch *w)
{
    struct stat st;
    return stat(w->path, &st) == 0 && (st.st_dev != w->dev || st.st_ino != w->ino);
}

/* A regular file that was just created is empty: its writer's close follows. A link is complete at once. */
static bool is_link(const struct zt_local_watch *w)
{
    struct stat st;
    return lstat(w->path, &st) == 0 && (S_ISLNK(st.st_mode) || st.st_nlink > 1);
}

static bool is_change(const struct zt_local_watch *w, const struct inotify_event *ev)
{
    if (ev->mask & IN_Q_OVERFLOW)
        return true;
    if (ev->mask & IN_CLOSE_WRITE)
        return ev->wd == w->file_wd || is_our_name(w, ev);
    if (ev->mask & IN_MOVED_TO)
        return is_our_name(w, ev) || leads_elsewhere(w);
    if (ev->mask & IN_CREATE)
        return is_our_name(w, ev) ? is_link(w) : leads_elsewhere(w);
    return false;
}

static void read_events(struct zt_local_watch *w)
{
    char buf[EVENTS_BYTES] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n = read(w->inotify_fd, buf, sizeof buf);
    uint64_t now = zt_clock_mono_ms();
    const struct inotify_event *ev;
    for (ssize_t at = 0; at < n; at += (ssize_t)(sizeof *ev + ev->len)) {
        ev = (const void *)(buf + at);
        bool gone = ev->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT) ||
                    (ev->mask & (IN_DELETE | IN_MOVED_FROM) && is_our_name(w, ev));
        if (gone && !w->due_ms)
            w->due_ms = now + MISSING_MS;
        if (!is_change(w, ev))
            continue;
        if (!w->first_event_ms)
            w->first_event_ms = now;
        uint64_t latest = w->first_event_ms + SETTLE_MAX_MS;
        w->due_ms = now + ZT_LOCAL_SETTLE_MS < latest ? now + ZT_LOCAL_SETTLE_MS : latest;
    }
}

static void *watch_main(void *arg)
{
    struct zt_local_watch *w = arg;
    pthread_setname_np(pthread_self(), "zt-local");
    check(w);
    while (!atomic_load(&w->stop)) {
        uint64_t now = zt_clock_mono_ms();
        struct pollfd fds[] = {{.fd = w->inotify_fd, .events = POLLIN}, {.fd = w->stop_fd, .events = POLLIN}};
        int timeout = !w->due_ms ? -1 : w->due_ms <= now ? 0 : (int)(w->due_ms - now);
        if (poll(fds, 2, timeout) > 0 && fds[0].revents)
            read_events(w);
        if (w->due_ms && zt_clock_mono_ms() >= w->due_ms) {
            w->due_ms = w->first_event_ms = 0;
            check(w);
        }
    }
    return NULL;
}

/* ---- start and stop ------------------------------------------------------------------------------- */

/* Signals are the control loop's: the thread must not take them. */
static int start_thread(struct zt_local_watch *w)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int errnum = pthread_create(&w->thread, NULL, watch_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return errnum;
}

enum zt_err zt_local_watch_start(struct zt_loop *l, const char *path, const struct zt_local_info *loaded,
                                 zt_local_result_fn result, void *arg, struct zt_local_watch **out, struct zt_error *err)
{
    struct zt_local_watch *w = zt_new(struct zt_local_watch);
    *w = (struct zt_local_watch){
        .loop = l,
        .result = result,
        .arg = arg,
        .path = zt_strdup(path),
        .dir_wd = -1,
        .real_dir_wd = -1,
        .file_wd = -1,
        .has_last = loaded != NULL,
        .inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK),
        .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
    };
    atomic_init(&w->refs, 1);
    if (loaded)
        w->last = *loaded;
    set_name(&w->name, path);
    int errnum = w->inotify_fd < 0 || w->stop_fd < 0 ? errno : start_thread(w);
    if (errnum) {
        watch_unref(w);
        return zt_error_set_errno(err, ZT_IO, errnum, "watching %s", path);
    }
    *out = w;
    return ZT_OK;
}

void zt_local_watch_stop(struct zt_local_watch *w)
{
    if (!w)
        return;
    zt_loop_assert_owner(w->loop);
    uint64_t one = 1;
    w->stopped = true;
    atomic_store(&w->stop, true);
    while (write(w->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
    pthread_join(w->thread, NULL);
    watch_unref(w);
}
