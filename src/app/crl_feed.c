/* The file of revocation lists and its changes.
 *
 *   IDLE --event in the directory--> SETTLING (SETTLE_S from the first event) --> LOADING (on the helper's loop) --> IDLE
 *
 * The directory is watched, not the file: a ConfigMap swaps a link in it. A load that fails keeps the lists that were there. An
 * event while loading starts over. A directory that cannot be watched is tried again.
 *
 * Invariant: at most one load is under way; it owns itself, and finds the feed gone if that was freed meanwhile. */
#include "app/crl_feed.h"

#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/net/tls_crl.h"
#include <errno.h>
#include <libgen.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define SETTLE_S 2.0
#define WATCH_AGAIN_S 10.0
#define EVENTS_BYTES 4096
#define DIR_MASK (IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR)

struct load {
    struct zt_msg msg;
    struct zt_crl_feed *feed; /* NULL: nobody waits for it any more. Control's */
    struct zt_loop *control;
    char *path;
    unsigned n_lists;
    struct zt_error err;
};

struct zt_crl_feed {
    struct zt_loop *control, *helper;
    struct zt_proxy *proxy;
    char *path;
    int inotify_fd;
    bool watched, again; /* again: something changed while loading */
    ev_io io;
    ev_timer timer; /* SETTLING, or the next try to watch */
    struct load *load;
};

static void log_loaded(const char *path, unsigned n_lists, const struct zt_error *err)
{
    if (err->code == ZT_OK)
        zt_log_info("tls::crl", "%u certificate revocation lists in force from %s", n_lists, path);
    else if (err->code == ZT_NOT_FOUND)
        zt_log_warn("tls::crl", "no certificate revocation lists: %s", err->text);
    else
        zt_log_error("tls::crl", "certificate revocation lists refused, those before stay in force: %s", err->text);
}

/* ---- loading ---- */

static void start_load(struct zt_crl_feed *f);

static void on_loaded(struct zt_msg *m)
{
    struct load *l = zt_container_of(m, struct load, msg);
    struct zt_crl_feed *f = l->feed;
    if (f) {
        f->load = NULL;
        log_loaded(l->path, l->n_lists, &l->err);
        if (l->err.code == ZT_OK)
            zt_proxy_crl_changed(f->proxy);
        if (f->again)
            start_load(f);
    }
    zt_free(l->path);
    zt_free(l);
}

static void on_load(struct zt_msg *m)
{
    struct load *l = zt_container_of(m, struct load, msg);
    zt_tls_crl_load(l->path, &l->n_lists, &l->err);
    l->msg.run = on_loaded;
    zt_loop_post(l->control, &l->msg);
}

static void start_load(struct zt_crl_feed *f)
{
    f->again = f->load != NULL;
    if (f->load)
        return;
    f->load = zt_new(struct load);
    f->load->msg.run = on_load;
    f->load->feed = f;
    f->load->control = f->control;
    f->load->path = zt_strdup(f->path);
    zt_loop_post(f->helper, &f->load->msg);
}

/* ---- watching ---- */

static void arm(struct zt_crl_feed *f, double seconds)
{
    ev_timer_set(&f->timer, seconds, 0.);
    ev_timer_start(zt_loop_ev(f->control), &f->timer);
}

static bool watch(struct zt_crl_feed *f)
{
    char *copy = zt_strdup(f->path);
    f->watched = inotify_add_watch(f->inotify_fd, dirname(copy), DIR_MASK) >= 0;
    if (!f->watched)
        arm(f, WATCH_AGAIN_S);
    zt_free(copy);
    return f->watched;
}

static void on_timer(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_crl_feed *f = zt_container_of(t, struct zt_crl_feed, timer);
    if (f->watched || watch(f))
        start_load(f);
}

static void on_events(struct ev_loop *ev, ev_io *io, int revents)
{
    struct zt_crl_feed *f = zt_container_of(io, struct zt_crl_feed, io);
    char buf[EVENTS_BYTES] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n;
    while ((n = read(f->inotify_fd, buf, sizeof buf)) > 0) {
        for (ssize_t at = 0; at < n;) {
            const struct inotify_event *e = (const void *)(buf + at);
            if (e->mask & IN_IGNORED) /* the directory itself is gone */
                f->watched = false;
            at += (ssize_t)(sizeof *e + e->len);
        }
    }
    if (!ev_is_active(&f->timer))
        arm(f, SETTLE_S);
}

struct zt_crl_feed *zt_crl_feed_new(struct zt_loop *control, struct zt_loop *helper, struct zt_proxy *proxy, const char *path)
{
    struct zt_crl_feed *f = zt_new(struct zt_crl_feed);
    struct zt_error err = ZT_ERROR_INIT;
    unsigned n_lists = 0;
    f->control = control;
    f->helper = helper;
    f->proxy = proxy;
    f->path = zt_strdup(path);
    f->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    ev_io_init(&f->io, on_events, f->inotify_fd, EV_READ);
    ev_timer_init(&f->timer, on_timer, 0., 0.);
    if (f->inotify_fd < 0) {
        zt_log_warn("tls::crl", "%s is not watched: %s", path, strerror(errno));
    } else {
        ev_io_start(zt_loop_ev(control), &f->io);
        if (!watch(f)) /* before the load, so that no change falls between the two */
            zt_log_warn("tls::crl", "the directory of %s cannot be watched yet: %s", path, strerror(errno));
    }
    zt_tls_crl_load(path, &n_lists, &err);
    log_loaded(path, n_lists, &err);
    return f;
}

void zt_crl_feed_free(struct zt_crl_feed *f)
{
    if (!f)
        return;
    if (f->load)
        f->load->feed = NULL;
    ev_io_stop(zt_loop_ev(f->control), &f->io);
    ev_timer_stop(zt_loop_ev(f->control), &f->timer);
    if (f->inotify_fd >= 0)
        close(f->inotify_fd);
    zt_free(f->path);
    zt_free(f);
    zt_tls_crl_clear();
}
