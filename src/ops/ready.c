/* The readiness set and its server.
 *
 * Invariant: the set is reached under its lock only; names are unique in it. The server lives on worker 0: control sends it there as a
 * message, and fetches it back with another one that it waits for (only at exit). */
#include "zt/ops/ready.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/ops/http1.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct zt_ready {
    pthread_mutex_t lock;
    uint64_t start_ms;
    struct task {
        const char *name;
        char why[ZT_READY_WHY_MAX];
    } pending[ZT_READY_TASKS_MAX];
    unsigned n_pending;
};

struct zt_ready *zt_ready_new(uint64_t start_ms)
{
    struct zt_ready *r = zt_new(struct zt_ready);
    pthread_mutex_init(&r->lock, NULL);
    r->start_ms = start_ms;
    return r;
}

void zt_ready_free(struct zt_ready *r)
{
    if (!r)
        return;
    pthread_mutex_destroy(&r->lock);
    zt_free(r);
}

static int find(const struct zt_ready *r, const char *name)
{
    for (unsigned i = 0; i < r->n_pending; i++)
        if (strcmp(r->pending[i].name, name) == 0)
            return (int)i;
    return -1;
}

void zt_ready_pend(struct zt_ready *r, const char *name)
{
    pthread_mutex_lock(&r->lock);
    if (find(r, name) < 0) {
        ZT_ASSERT(r->n_pending < ZT_READY_TASKS_MAX);
        r->pending[r->n_pending++] = (struct task){.name = name};
    }
    pthread_mutex_unlock(&r->lock);
}

void zt_ready_explain(struct zt_ready *r, const char *name, const char *why)
{
    pthread_mutex_lock(&r->lock);
    int i = find(r, name);
    if (i >= 0)
        zt_fmt(r->pending[i].why, sizeof r->pending[i].why, "%s", why);
    pthread_mutex_unlock(&r->lock);
}

/* "12.3ms", "1.2s" */
static void format_elapsed(uint64_t ms, char *buf, size_t size)
{
    if (ms < 1000)
        zt_fmt(buf, size, "%ums", (unsigned)ms);
    else
        zt_fmt(buf, size, "%.1fs", (double)ms / 1000.);
}

void zt_ready_complete(struct zt_ready *r, const char *name)
{
    char elapsed[32];
    pthread_mutex_lock(&r->lock);
    int i = find(r, name);
    if (i >= 0)
        r->pending[i] = r->pending[--r->n_pending];
    unsigned n = r->n_pending;
    pthread_mutex_unlock(&r->lock);
    if (i < 0)
        return;
    format_elapsed(zt_clock_mono_ms() - r->start_ms, elapsed, sizeof elapsed);
    if (n)
        zt_log_info("readiness", "Task '%s' complete (%s), still awaiting %u tasks", name, elapsed, n);
    else
        zt_log_info("readiness", "Task '%s' complete (%s), marking server ready", name, elapsed);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

bool zt_ready_check(struct zt_ready *r, struct zt_str *pending)
{
    const char *names[ZT_READY_TASKS_MAX];
    pthread_mutex_lock(&r->lock);
    unsigned n = r->n_pending;
    for (unsigned i = 0; i < n; i++)
        names[i] = r->pending[i].name;
    pthread_mutex_unlock(&r->lock);
    qsort(names, n, sizeof *names, compare_names);
    for (unsigned i = 0; pending && i < n; i++) {
        zt_str_add(pending, i ? ", " : "");
        zt_str_add(pending, names[i]);
    }
    return n == 0;
}

void zt_ready_why(struct zt_ready *r, struct zt_str *lines)
{
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_pending; i++)
        if (*r->pending[i].why)
            zt_str_addf(lines, "%s: %s\n", r->pending[i].name, r->pending[i].why);
    pthread_mutex_unlock(&r->lock);
}

/* ---- the server ---- */

struct zt_ready_server {
    struct zt_loop *worker;
    struct zt_http1 *http;
    struct zt_msg start_msg, drain_msg, free_msg;
    sem_t freed;
    bool drain_posted;
};

static void on_ready_request(void *arg, struct zt_http1_request *r)
{
    struct zt_str body;
    zt_str_init(&body, 16384);
    zt_str_add(&body, "not ready, pending: ");
    if (zt_ready_check(arg, &body)) {
        zt_http1_reply_text(r, 200, "text/plain", "ready\n");
    } else {
        zt_str_add_char(&body, '\n');
        zt_ready_why(arg, &body);
        zt_http1_reply(r, 500, "text/plain", &body);
    }
    zt_str_fini(&body);
}

static void on_start(struct zt_msg *m)
{
    zt_http1_start(zt_container_of(m, struct zt_ready_server, start_msg)->http);
}

static void on_drain(struct zt_msg *m)
{
    zt_http1_drain(zt_container_of(m, struct zt_ready_server, drain_msg)->http, NULL, NULL);
}

static void on_free(struct zt_msg *m)
{
    struct zt_ready_server *s = zt_container_of(m, struct zt_ready_server, free_msg);
    zt_http1_free(s->http);
    sem_post(&s->freed); /* s belongs to control again */
}

enum zt_err zt_ready_serve(struct zt_ready *r, struct zt_loop *worker, int fd, const char *address,
                           struct zt_ready_server **out, struct zt_error *err)
{
    struct zt_http1 *http;
    enum zt_err rc = zt_http1_new(worker, "readiness", NULL, NULL, &http, err);
    if (rc != ZT_OK)
        return rc;
    struct zt_ready_server *s = zt_new(struct zt_ready_server);
    s->worker = worker;
    s->http = http;
    s->start_msg.run = on_start;
    s->drain_msg.run = on_drain;
    s->free_msg.run = on_free;
    sem_init(&s->freed, 0, 0);
    zt_http1_route(http, "/healthz/ready", ZT_HTTP1_GET, on_ready_request, r);
    zt_http1_listen(http, fd, address);
    zt_loop_post(worker, &s->start_msg);
    *out = s;
    return ZT_OK;
}

void zt_ready_server_drain(struct zt_ready_server *s)
{
    if (s->drain_posted) /* a message may be in a mailbox once */
        return;
    s->drain_posted = true;
    zt_loop_post(s->worker, &s->drain_msg);
}

void zt_ready_server_free(struct zt_ready_server *s)
{
    if (!s)
        return;
    zt_loop_post(s->worker, &s->free_msg);
    while (sem_wait(&s->freed) != 0)
        ; /* a signal */
    sem_destroy(&s->freed);
    zt_free(s);
}
