/* The loop: libev plus mailbox, tasks, deferred free and owner check.
 *
 * One iteration:
 *   prepare (lowest priority, so last) - run tasks, release deferred memory; tasks that are still
 * queued keep the loop from sleeping poll check (highest priority, so first) - refresh the cached
 * time watchers of the program; the wake watcher empties the mailbox
 *
 * Invariants: the mailbox is the only thing here that other threads touch, under its lock; a post
 * wakes the loop only when the mailbox was empty. What a callback frees by defer_free stays valid
 * until all callbacks of the turn have run. */
#include "zt/loop/loop.h"

#include "loop_impl.h"
#include "zt/base/clock.h"
#include <signal.h>

#define TASK_PASSES 4 /* a task may queue the next one this often before I/O gets its turn */

static void on_wake(struct ev_loop *ev, ev_async *w, int revents)
{
    (void)ev, (void)revents;
    zt_loop_mailbox_run(zt_container_of(w, struct zt_loop, wake));
}

/* Runs what is queued now; what a task queues waits for the next pass. */
static void run_task_pass(struct zt_loop *l)
{
    struct zt_link batch, *link;
    zt_list_init(&batch);
    zt_list_splice(&batch, &l->tasks);
    while ((link = zt_list_pop_front(&batch))) {
        struct zt_task *task = zt_container_of(link, struct zt_task, task_link);
        task->run(task);
    }
}

static void free_deferred(struct zt_loop *l)
{
    struct zt_link *link;
    while ((link = zt_list_pop_front(&l->deferred))) {
        struct zt_deferred *d = zt_container_of(link, struct zt_deferred, deferred_link);
        d->free(d);
    }
}

static void end_turn(struct zt_loop *l)
{
    for (unsigned i = 0; i < TASK_PASSES && !zt_list_empty(&l->tasks); i++)
        run_task_pass(l);
    free_deferred(l);
}

static void on_prepare(struct ev_loop *ev, ev_prepare *w, int revents)
{
    (void)revents;
    struct zt_loop *l = zt_container_of(w, struct zt_loop, prepare);
    end_turn(l);
    /* An active idle watcher makes the poll return at once. */
    if (zt_list_empty(&l->tasks))
        ev_idle_stop(ev, &l->busy);
    else
        ev_idle_start(ev, &l->busy);
    if (atomic_load(&l->stop))
        ev_break(ev, EVBREAK_ALL);
}

static void on_check(struct ev_loop *ev, ev_check *w, int revents)
{
    (void)ev, (void)revents;
    zt_container_of(w, struct zt_loop, check)->now_ms = zt_clock_mono_ms();
}

static void on_busy(struct ev_loop *ev, ev_idle *w, int revents)
{
    (void)ev, (void)w, (void)revents; /* its being active is its work */
}

struct zt_loop *zt_loop_new(const char *name)
{
    struct zt_loop *l = zt_new(struct zt_loop);
    l->name = name;
    l->ev = ev_loop_new(EVBACKEND_EPOLL | EVFLAG_NOENV);
    ZT_ASSERT(l->ev);
    l->now_ms = zt_clock_mono_ms();
    atomic_store(&l->owner, pthread_self());
    pthread_mutex_init(&l->mailbox_lock, NULL);
    zt_list_init(&l->mailbox);
    zt_list_init(&l->tasks);
    zt_list_init(&l->deferred);
    zt_loop_pipes_init(l);
    ev_async_init(&l->wake, on_wake);
    ev_async_start(l->ev, &l->wake);
    ev_prepare_init(&l->prepare, on_prepare);
    ev_set_priority(&l->prepare, EV_MINPRI);
    ev_prepare_start(l->ev, &l->prepare);
    ev_check_init(&l->check, on_check);
    ev_set_priority(&l->check, EV_MAXPRI);
    ev_check_start(l->ev, &l->check);
    ev_idle_init(&l->busy, on_busy);
    ev_set_priority(&l->busy, EV_MINPRI);
    return l;
}

void zt_loop_free(struct zt_loop *l)
{
    if (!l)
        return;
    atomic_store(&l->owner, pthread_self());
    while (zt_loop_mailbox_run(l) || !zt_list_empty(&l->tasks) || !zt_list_empty(&l->deferred))
        end_turn(l);
    ev_async_stop(l->ev, &l->wake);
    ev_prepare_stop(l->ev, &l->prepare);
    ev_check_stop(l->ev, &l->check);
    ev_idle_stop(l->ev, &l->busy);
    zt_loop_pipes_free(l);
    ev_loop_destroy(l->ev); /* calls whoever has an ev_cleanup */
    free_deferred(l);
    zt_loop_bufs_free(&l->bufs);
    pthread_mutex_destroy(&l->mailbox_lock);
    zt_free(l);
}

struct ev_loop *zt_loop_ev(struct zt_loop *l)
{
    return l->ev;
}

void zt_loop_run(struct zt_loop *l)
{
    atomic_store(&l->owner, pthread_self());
    l->now_ms = zt_clock_mono_ms();
    while (!atomic_exchange(&l->stop, false))
        ev_run(l->ev, 0);
    end_turn(l);
}

void zt_loop_run_once(struct zt_loop *l, bool block)
{
    atomic_store(&l->owner, pthread_self());
    bool wait = block && zt_list_empty(&l->tasks); /* a waiting task is something ready */
    ev_run(l->ev, wait ? EVRUN_ONCE : EVRUN_NOWAIT);
    end_turn(l);
}

static void *thread_main(void *arg)
{
    struct zt_loop *l = arg;
    pthread_setname_np(pthread_self(), l->name);
    zt_loop_run(l);
    return NULL;
}

enum zt_err zt_loop_start(struct zt_loop *l, struct zt_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&l->thread, NULL, thread_main, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return zt_error_set_errno(err, ZT_IO, rc, "cannot start thread %s", l->name);
    return ZT_OK;
}

void zt_loop_stop(struct zt_loop *l)
{
    atomic_store(&l->stop, true);
    ev_async_send(l->ev, &l->wake);
}

void zt_loop_join(struct zt_loop *l)
{
    pthread_join(l->thread, NULL);
    atomic_store(&l->owner, pthread_self());
}

void zt_loop_post(struct zt_loop *l, struct zt_msg *msg)
{
    pthread_mutex_lock(&l->mailbox_lock);
    bool wake = zt_list_empty(&l->mailbox);
    zt_list_push_back(&l->mailbox, &msg->mailbox_link);
    pthread_mutex_unlock(&l->mailbox_lock);
    if (wake)
        ev_async_send(l->ev, &l->wake);
}

bool zt_loop_mailbox_run(struct zt_loop *l)
{
    struct zt_link batch, *link;
    zt_list_init(&batch);
    pthread_mutex_lock(&l->mailbox_lock);
    zt_list_splice(&batch, &l->mailbox);
    pthread_mutex_unlock(&l->mailbox_lock);
    bool any = !zt_list_empty(&batch);
    while ((link = zt_list_pop_front(&batch))) {
        struct zt_msg *msg = zt_container_of(link, struct zt_msg, mailbox_link);
        msg->run(msg);
    }
    return any;
}

void zt_loop_soon(struct zt_loop *l, struct zt_task *task)
{
    zt_loop_assert_owner(l);
    if (!zt_link_linked(&task->task_link))
        zt_list_push_back(&l->tasks, &task->task_link);
}

void zt_task_cancel(struct zt_task *task)
{
    zt_list_remove(&task->task_link);
}

void zt_loop_defer_free(struct zt_loop *l, struct zt_deferred *d)
{
    zt_loop_assert_owner(l);
    ZT_ASSERT(!zt_link_linked(&d->deferred_link)); /* twice would be a double free */
    zt_list_push_back(&l->deferred, &d->deferred_link);
}

struct deferred_block {
    struct zt_deferred deferred;
    void *p;
};

static void free_block(struct zt_deferred *d)
{
    struct deferred_block *block = zt_container_of(d, struct deferred_block, deferred);
    zt_free(block->p);
    zt_free(block);
}

void zt_loop_defer_zt_free(struct zt_loop *l, void *p)
{
    if (!p)
        return;
    struct deferred_block *block = zt_new(struct deferred_block);
    block->deferred.free = free_block;
    block->p = p;
    zt_loop_defer_free(l, &block->deferred);
}

bool zt_loop_is_owner(const struct zt_loop *l)
{
    return pthread_equal(atomic_load_explicit(&l->owner, memory_order_relaxed), pthread_self());
}

uint64_t zt_loop_now_ms(const struct zt_loop *l)
{
    return l->now_ms;
}

void zt_loop_buf_trim(struct zt_loop *l)
{
    zt_loop_assert_owner(l);
    zt_loop_bufs_free(&l->bufs);
    zt_loop_pipes_free(l);
}

uint8_t *zt_loop_buf_get(struct zt_loop *l, enum zt_buf_class c)
{
    zt_loop_assert_owner(l);
    return zt_loop_bufs_get(&l->bufs, c);
}

void zt_loop_buf_bytes(const struct zt_loop *l, size_t *lent, size_t *kept)
{
    *lent = atomic_load_explicit(&l->bufs.lent_bytes, memory_order_relaxed);
    *kept = atomic_load_explicit(&l->bufs.free_bytes, memory_order_relaxed);
}

void zt_loop_buf_put(struct zt_loop *l, uint8_t *buf, enum zt_buf_class c)
{
    zt_loop_assert_owner(l);
    zt_loop_bufs_put(&l->bufs, buf, c);
}
