/* The control socket: `ztcni add|remove|list|check` on the other end.
 *
 * A request is words, each ending in NUL, then the writing side is shut; the answer is lines, each with a first byte that says what
 * it is, the last one the exit status. One request per connection. Invariants: peers that are not root or our own user are closed
 * unheard; an answer is queued within ANSWER_MAX and written when the peer takes it; a peer that says nothing for REQUEST_MS, or waits
 * longer than its wait allows, is told so and closed. */
#include "agent_impl.h"
#include "zt/base/log.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCOPE "agent::control"
#define ANSWER_LINE_MAX (ZT_REDIRECT_TEXT_MAX + 2048)        /* bytes: a pod's text and its names */
#define ANSWER_MAX ((ZT_PODLIST_MAX + 16) * ANSWER_LINE_MAX) /* bytes: a line for each pod, then the exit status */
#define REQUEST_MS 5000
#define CHECK_WAIT_MS 60000
#define ACCEPT_PAUSE_MS 1000

enum waiting { WAIT_REQUEST = 0, WAIT_ADD, WAIT_REMOVE, WAIT_CHECK, WAIT_NOTHING };

/* The states: REQUEST until EOF; then one of the waits, or NOTHING at once; NOTHING = only the answer is left to write. */
struct client {
    struct zt_link client_link;
    struct zt_agent *agent;
    int fd;
    ev_io io;
    ev_timer timer;
    enum waiting waiting;
    char uid[ZT_PODLIST_UID_MAX + 1]; /* ADD, REMOVE: whom it waits for */
    char request[CONTROL_REQUEST_MAX];
    size_t request_len;
    struct zt_str answer;
    size_t written;
    struct check *checks; /* CHECK: one per pod under way */
    unsigned n_checks;
    bool differs;
    struct zt_deferred deferred;
};

/* One pod's rules being compared. Not a step of the pod's own machine: it changes nothing. */
struct check {
    struct client *client;
    struct zt_redirect_plan plan;
    struct zt_redirect_job *job; /* NULL: not started, or over */
    bool over;
    char title[ZT_PODLIST_NAMESPACE_MAX + ZT_PODLIST_NAME_MAX + 2];
    struct zt_netns *ns; /* owned; NULL: the node's own */
    ev_io io;
};

/* One line. Texts of the daemon's and of rule programs are in it: what would end the line, or steer a terminal, becomes a space. */
static void say(struct client *c, char kind, const char *text)
{
    zt_str_add_char(&c->answer, kind);
    for (; *text; text++)
        zt_str_add_char(&c->answer, (unsigned char)*text < ' ' || *text == 0x7f ? ' ' : *text);
    zt_str_add_char(&c->answer, '\n');
}

/* ---- ending ---- */

static void deferred_free(struct zt_deferred *d)
{
    zt_free(zt_container_of(d, struct client, deferred));
}

static void check_end(struct check *k)
{
    struct zt_redirect_result ignored;
    if (k->job) {
        ev_io_stop(zt_loop_ev(k->client->agent->loop), &k->io);
        zt_redirect_job_finish(k->job, &ignored);
        k->job = NULL;
    }
    zt_netns_unref(k->ns);
    k->ns = NULL;
    k->over = true;
}

static void client_close(struct client *c)
{
    struct ev_loop *ev = zt_loop_ev(c->agent->loop);
    for (unsigned i = 0; i < c->n_checks; i++)
        check_end(&c->checks[i]);
    zt_free(c->checks);
    c->checks = NULL;
    c->n_checks = 0;
    ev_io_stop(ev, &c->io);
    ev_timer_stop(ev, &c->timer);
    close(c->fd);
    zt_str_fini(&c->answer);
    zt_list_remove(&c->client_link);
    c->agent->n_clients--;
    zt_loop_defer_free(c->agent->loop, &c->deferred);
}

static void finish(struct client *c, int exit_code)
{
    struct ev_loop *ev = zt_loop_ev(c->agent->loop);
    c->waiting = WAIT_NOTHING;
    zt_str_addf(&c->answer, "%c%d\n", CONTROL_EXIT, exit_code);
    ev_timer_stop(ev, &c->timer);
    ev_timer_set(&c->timer, REQUEST_MS / 1000.0, 0); /* to take its answer */
    ev_timer_start(ev, &c->timer);
    ev_io_stop(ev, &c->io);
    ev_io_set(&c->io, c->fd, EV_WRITE); /* from the loop: whoever called this may hold c */
    ev_io_start(ev, &c->io);
}

static void refuse(struct client *c, const char *text)
{
    say(c, CONTROL_ERR, text);
    finish(c, 1);
}

static void wait_for(struct client *c, enum waiting w, const char *uid, unsigned ms)
{
    struct ev_loop *ev = zt_loop_ev(c->agent->loop);
    c->waiting = w;
    zt_fmt(c->uid, sizeof c->uid, "%s", uid);
    ev_io_stop(ev, &c->io);
    ev_timer_stop(ev, &c->timer);
    ev_timer_set(&c->timer, ms / 1000.0, 0);
    ev_timer_start(ev, &c->timer);
}

/* ---- add and remove ---- */

static struct zt_agent_pod *pod_by_uid(struct zt_agent *a, const char *uid)
{
    struct zt_agent_pod *p;
    HASH_FIND(hh, a->pods, uid, strlen(uid), p);
    return p;
}

/* The file as it is now: edits of a moment ago are in it. A mistake in it is the caller's answer. */
static struct zt_podlist *current_list(struct client *c)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_podlist *list = NULL;
    enum zt_err e = zt_podlist_load(c->agent->o->pods_path, &list, &err);
    if (e == ZT_NOT_FOUND)
        return zt_podlist_new();
    if (e != ZT_OK)
        refuse(c, err.text);
    return list;
}

/* Takes list: saves it and wants it. False: c was told why not. */
static bool commit(struct client *c, struct zt_podlist *list)
{
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_podlist_save(c->agent->o->pods_path, list, &err) != ZT_OK) {
        zt_podlist_free(list);
        refuse(c, err.text);
        return false;
    }
    zt_agent_want(c->agent, list);
    return true;
}

static void add_is_done(struct client *c, const struct zt_agent_pod *p)
{
    char line[512];
    zt_fmt(line, sizeof line, "%s/%s is enrolled: the daemon listens in its namespace, its rules are in place", p->want.ns, p->want.name);
    say(c, CONTROL_OUT, line);
    finish(c, 0);
}

static void add_failed(struct client *c, const struct zt_agent_pod *p)
{
    char line[ZT_REDIRECT_TEXT_MAX + 256];
    zt_fmt(line, sizeof line, "%s: it stays in the list and is tried again (\"ztcni remove %s\" takes it out)", p->text, p->want.uid);
    refuse(c, line);
}

static char *given(char *word)
{
    return word && *word ? word : NULL;
}

static void do_add(struct client *c, char **w)
{
    struct zt_podlist_pod want = {.uid = w[1], .ns = w[2], .name = w[3], .service_account = w[4], .netns = w[5],
                                  .bypass_inbound_capture = given(w[6]), .dns_capture = given(w[7]),
                                  .reroute_virtual_interfaces = given(w[8])};
    struct zt_error err = ZT_ERROR_INIT;
    struct stat st;
    struct zt_podlist *list = current_list(c);
    if (!list)
        return;
    unsigned i = zt_podlist_find(list, want.uid);
    bool there = i < list->n_pods && zt_podlist_pod_equal(&list->pods[i], &want);
    if (!there && zt_podlist_add(list, &want, &err) != ZT_OK) {
        zt_podlist_free(list);
        refuse(c, err.text);
        return;
    }
    if (stat(want.netns, &st) < 0) {
        zt_podlist_free(list);
        zt_error_set_errno(&err, ZT_NOT_FOUND, errno, "netns %s", want.netns);
        refuse(c, err.text);
        return;
    }
    wait_for(c, WAIT_ADD, want.uid, c->agent->o->add_wait_ms ? c->agent->o->add_wait_ms : ZT_AGENT_ADD_WAIT_MS);
    if (!commit(c, list))
        return;
    struct zt_agent_pod *p = pod_by_uid(c->agent, want.uid);
    if (c->waiting == WAIT_ADD && p && p->wanted && p->state == POD_ENROLLED && p->acked)
        add_is_done(c, p);
}

static void do_remove(struct client *c, const char *key)
{
    char line[512];
    struct zt_podlist *list = current_list(c);
    if (!list)
        return;
    unsigned i = zt_podlist_find(list, key);
    if (i == list->n_pods) {
        zt_podlist_free(list);
        zt_fmt(line, sizeof line, "no pod %.300s in %.100s", key, c->agent->o->pods_path);
        refuse(c, line);
        return;
    }
    wait_for(c, WAIT_REMOVE, list->pods[i].uid, c->agent->o->add_wait_ms ? c->agent->o->add_wait_ms : ZT_AGENT_ADD_WAIT_MS);
    zt_podlist_remove(list, i);
    if (commit(c, list) && c->waiting == WAIT_REMOVE && !pod_by_uid(c->agent, c->uid)) {
        zt_fmt(line, sizeof line, "%s was not enrolled and is out of the list", c->uid);
        say(c, CONTROL_OUT, line);
        finish(c, 0);
    }
}

void zt_control_on_pod(struct zt_agent_pod *p, bool failed)
{
    zt_list_each_safe(l, &p->agent->clients)
    {
        struct client *c = zt_container_of(l, struct client, client_link);
        if (strcmp(c->uid, p->want.uid) != 0)
            continue;
        if (c->waiting == WAIT_ADD && failed && p->wanted)
            add_failed(c, p);
        else if (c->waiting == WAIT_ADD && p->wanted && p->state == POD_ENROLLED && p->acked)
            add_is_done(c, p);
    }
}

void zt_control_on_pod_freed(struct zt_agent_pod *p)
{
    zt_list_each_safe(l, &p->agent->clients)
    {
        struct client *c = zt_container_of(l, struct client, client_link);
        char line[512];
        if (c->waiting != WAIT_REMOVE || strcmp(c->uid, p->want.uid) != 0)
            continue;
        zt_fmt(line, sizeof line, "%s/%s has left: its rules are gone, the daemon was told", p->want.ns, p->want.name);
        say(c, CONTROL_OUT, line);
        finish(c, 0);
    }
}

/* ---- list and check ---- */

static void do_list(struct client *c)
{
    char line[ANSWER_LINE_MAX];
    zt_fmt(line, sizeof line, "%-12s %-36s %-32s %s", "STATE", "UID", "POD", "NETNS");
    say(c, CONTROL_OUT, line);
    for (const struct zt_agent_pod *p = c->agent->pods; p; p = p->hh.next) {
        char name[ZT_PODLIST_NAMESPACE_MAX + ZT_PODLIST_NAME_MAX + 2];
        zt_fmt(name, sizeof name, "%s/%s", p->want.ns, p->want.name);
        zt_fmt(line, sizeof line, "%-12s %-36s %-32s %s%s%s", zt_enrol_state_name(p), p->want.uid, name, p->want.netns,
               p->text[0] ? "  " : "", p->text);
        say(c, CONTROL_OUT, line);
    }
    finish(c, 0);
}

static void check_say(struct check *k, const struct zt_redirect_result *r)
{
    char line[ZT_REDIRECT_TEXT_MAX + 512];
    bool fine = r->outcome == ZT_REDIRECT_DONE;
    zt_fmt(line, sizeof line, "%-32s %s%s%s", k->title, fine ? "ok" : zt_redirect_outcome_name(r->outcome), fine ? "" : ": ", r->text);
    say(k->client, CONTROL_OUT, line);
    if (!fine)
        k->client->differs = true;
}

static void checks_go_on(struct client *c);

static void on_check_over(struct ev_loop *ev, ev_io *w, int events)
{
    struct check *k = zt_container_of(w, struct check, io);
    struct client *c = k->client;
    struct zt_redirect_result r;
    ev_io_stop(ev, &k->io);
    zt_redirect_job_finish(k->job, &r);
    k->job = NULL;
    check_say(k, &r);
    check_end(k);
    checks_go_on(c);
}

static void check_start(struct check *k)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_redirect_result r = {.outcome = ZT_REDIRECT_REFUSED};
    enum zt_err e = k->ns ? zt_redirect_start(k->ns, &k->plan, ZT_REDIRECT_CHECK, &k->job, &err)
                          : zt_probes_start_job(k->client->agent, ZT_REDIRECT_CHECK, &k->job, &err);
    if (e == ZT_OK) {
        ev_io_init(&k->io, on_check_over, zt_redirect_job_fd(k->job), EV_READ);
        ev_io_start(zt_loop_ev(k->client->agent->loop), &k->io);
        return;
    }
    zt_fmt(r.text, sizeof r.text, "%s", err.text);
    check_say(k, &r);
    check_end(k);
}

/* Keeps JOBS_MAX going; answers when none is left. */
static void checks_go_on(struct client *c)
{
    unsigned n_running = 0, n_left = 0;
    for (unsigned i = 0; i < c->n_checks; i++)
        n_running += c->checks[i].job != NULL;
    for (unsigned i = 0; i < c->n_checks && n_running < JOBS_MAX; i++) {
        if (c->checks[i].over || c->checks[i].job)
            continue;
        check_start(&c->checks[i]);
        n_running += c->checks[i].job != NULL;
    }
    for (unsigned i = 0; i < c->n_checks; i++)
        n_left += !c->checks[i].over;
    if (!n_left)
        finish(c, c->differs ? 1 : 0);
}

static bool matches(const struct zt_agent_pod *p, const char *key)
{
    char name[ZT_PODLIST_NAMESPACE_MAX + ZT_PODLIST_NAME_MAX + 2];
    zt_fmt(name, sizeof name, "%s/%s", p->want.ns, p->want.name);
    return !key || strcmp(key, p->want.uid) == 0 || strcmp(key, name) == 0;
}

static void do_check(struct client *c, const char *key)
{
    unsigned n_matched = 0;
    c->checks = zt_new_n(struct check, HASH_COUNT(c->agent->pods) + 1);
    if (!key && c->agent->probes.on) {
        struct check *k = &c->checks[c->n_checks++];
        k->client = c;
        zt_fmt(k->title, sizeof k->title, "(the node's rules for probes)");
    }
    for (const struct zt_agent_pod *p = c->agent->pods; p; p = p->hh.next) {
        char line[ZT_REDIRECT_TEXT_MAX + 512];
        if (!matches(p, key))
            continue;
        n_matched++;
        if (p->state == POD_ENROLLED && p->acked) {
            struct check *k = &c->checks[c->n_checks++];
            k->client = c;
            k->ns = zt_netns_ref(p->ns);
            k->plan = zt_enrol_plan(p);
            zt_fmt(k->title, sizeof k->title, "%s/%s", p->want.ns, p->want.name);
            continue;
        }
        zt_fmt(line, sizeof line, "%s/%s  %s: %s", p->want.ns, p->want.name, zt_enrol_state_name(p), p->text);
        say(c, CONTROL_OUT, line);
        c->differs = true;
    }
    if (key && !n_matched) {
        refuse(c, "no such pod");
        return;
    }
    wait_for(c, WAIT_CHECK, "", CHECK_WAIT_MS);
    checks_go_on(c);
}

/* ---- requests ---- */

static void dispatch(struct client *c)
{
    char *words[CONTROL_WORDS_MAX + 1] = {NULL};
    unsigned n = 0;
    char *end = c->request + c->request_len;
    for (char *w = c->request; w < end && n < CONTROL_WORDS_MAX; w += strlen(w) + 1)
        words[n++] = w; /* the last byte is NUL: checked by the caller */
    if (n >= 6 && strcmp(words[0], "add") == 0)
        do_add(c, words);
    else if (n == 2 && strcmp(words[0], "remove") == 0)
        do_remove(c, words[1]);
    else if (n == 1 && strcmp(words[0], "list") == 0)
        do_list(c);
    else if (n >= 1 && n <= 2 && strcmp(words[0], "check") == 0)
        do_check(c, words[1]);
    else
        refuse(c, "a request that this ztcni does not know; is the running agent of another version?");
}

static void read_request(struct client *c)
{
    ssize_t n = read(c->fd, c->request + c->request_len, sizeof c->request - c->request_len);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0 || (size_t)n == sizeof c->request - c->request_len) {
        client_close(c); /* a request that fills the buffer is none of ours */
        return;
    }
    c->request_len += (size_t)n;
    if (n > 0)
        return;
    if (!c->request_len || c->request[c->request_len - 1] != '\0') {
        client_close(c);
        return;
    }
    dispatch(c);
}

static void flush(struct client *c)
{
    while (c->written < c->answer.len) {
        ssize_t n = send(c->fd, c->answer.data + c->written, c->answer.len - c->written, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0)
            break;
        c->written += (size_t)n;
    }
    client_close(c);
}

static void on_io(struct ev_loop *ev, ev_io *w, int events)
{
    struct client *c = zt_container_of(w, struct client, io);
    if (c->waiting == WAIT_REQUEST)
        read_request(c);
    else
        flush(c);
}

static void on_late(struct ev_loop *ev, ev_timer *w, int events)
{
    struct client *c = zt_container_of(w, struct client, timer);
    const struct zt_agent_pod *p = pod_by_uid(c->agent, c->uid);
    char line[ZT_REDIRECT_TEXT_MAX + 256];
    if (c->waiting == WAIT_ADD && p) {
        add_failed(c, p);
    } else if (c->waiting == WAIT_REMOVE || c->waiting == WAIT_CHECK) {
        for (unsigned i = 0; i < c->n_checks; i++)
            check_end(&c->checks[i]); /* none of them adds to an answer that is complete */
        zt_fmt(line, sizeof line, "not done in time%s%s", p && p->text[0] ? ": " : "", p ? p->text : "");
        refuse(c, line);
    } else {
        client_close(c);
    }
}

static bool may_speak(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

/* Out of descriptors: the connection stays in the backlog, and its event would come again at once. */
static void pause_accepting(struct zt_agent *a)
{
    struct ev_loop *ev = zt_loop_ev(a->loop);
    zt_log_warn(SCOPE, "cannot accept a control connection: out of descriptors; raise the limit (RLIMIT_NOFILE)");
    ev_io_stop(ev, &a->ctl_io);
    ev_timer_set(&a->ctl_pause, ACCEPT_PAUSE_MS / 1000.0, 0);
    ev_timer_start(ev, &a->ctl_pause);
}

static void on_pause_over(struct ev_loop *ev, ev_timer *w, int events)
{
    ev_io_start(ev, &zt_container_of(w, struct zt_agent, ctl_pause)->ctl_io);
}

static void on_connection(struct ev_loop *ev, ev_io *w, int events)
{
    struct zt_agent *a = zt_container_of(w, struct zt_agent, ctl_io);
    int fd = accept4(a->ctl_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            pause_accepting(a);
        return;
    }
    if (a->n_clients == CLIENTS_MAX || !may_speak(fd)) {
        zt_log_warn(SCOPE, "a control connection was refused");
        close(fd);
        return;
    }
    struct client *c = zt_new(struct client);
    c->agent = a;
    c->fd = fd;
    c->deferred.free = deferred_free;
    zt_str_init(&c->answer, ANSWER_MAX);
    zt_list_push_back(&a->clients, &c->client_link);
    a->n_clients++;
    ev_io_init(&c->io, on_io, fd, EV_READ);
    ev_io_start(ev, &c->io);
    ev_timer_init(&c->timer, on_late, REQUEST_MS / 1000.0, 0);
    ev_timer_start(ev, &c->timer);
}

enum zt_err zt_control_open(struct zt_agent *a, struct zt_error *err)
{
    enum zt_err e = zt_unix_listen(a->o->ctl_path, SOCK_STREAM, CLIENTS_MAX, &a->ctl_fd, &a->ctl_file, err);
    if (e != ZT_OK)
        return e;
    ev_io_init(&a->ctl_io, on_connection, a->ctl_fd, EV_READ);
    ev_io_start(zt_loop_ev(a->loop), &a->ctl_io);
    ev_init(&a->ctl_pause, on_pause_over);
    return ZT_OK;
}

void zt_control_close(struct zt_agent *a)
{
    zt_list_each_safe(l, &a->clients) client_close(zt_container_of(l, struct client, client_link));
    if (a->ctl_fd < 0)
        return;
    ev_io_stop(zt_loop_ev(a->loop), &a->ctl_io);
    ev_timer_stop(zt_loop_ev(a->loop), &a->ctl_pause);
    close(a->ctl_fd);
    zt_unix_unlink(a->o->ctl_path, &a->ctl_file);
    a->ctl_fd = -1;
}
