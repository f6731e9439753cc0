/* The apply thread. A job is one message that travels control -> apply thread -> control and belongs to whom it is with.
 *
 * Invariant: the feed's memory outlives its jobs. free joins the thread; what has been applied by then but not reported lies in control's
 * mailbox, and the last such job frees the feed. */
#include "app/state_feed.h"
#include "zt/base/mem.h"

struct zt_state_feed {
    struct zt_loop *control, *thread;
    struct zt_store *store;
    zt_state_applied_fn applied;
    void *arg;
    unsigned n_jobs; /* not come back yet */
    bool freed;
};

struct job {
    struct zt_msg msg;
    struct zt_state_feed *feed;
    struct zt_batch *batch;
    struct zt_store_changes changes;
};

static void release(struct zt_state_feed *f)
{
    if (f->freed && f->n_jobs == 0)
        zt_free(f);
}

/* Thread: control. */
static void on_applied(struct zt_msg *m)
{
    struct job *j = zt_container_of(m, struct job, msg);
    struct zt_state_feed *f = j->feed;
    if (!f->freed) {
        zt_store_collect(f->store);
        f->applied(f->arg, &j->changes);
    }
    zt_store_changes_fini(&j->changes);
    zt_free(j);
    f->n_jobs--;
    release(f);
}

/* Thread: apply. */
static void on_job(struct zt_msg *m)
{
    struct job *j = zt_container_of(m, struct job, msg);
    zt_store_apply(j->feed->store, j->batch, &j->changes);
    j->batch = NULL;
    j->msg.run = on_applied;
    zt_loop_post(j->feed->control, &j->msg);
}

struct zt_state_feed *zt_state_feed_new(struct zt_loop *control, struct zt_store *store, zt_state_applied_fn applied,
                                        void *arg, struct zt_error *err)
{
    struct zt_state_feed *f = zt_new(struct zt_state_feed);
    *f = (struct zt_state_feed){.control = control, .store = store, .applied = applied, .arg = arg};
    f->thread = zt_loop_new("apply");
    if (zt_loop_start(f->thread, err) == ZT_OK)
        return f;
    zt_loop_free(f->thread);
    zt_free(f);
    return NULL;
}

void zt_state_feed_put(struct zt_state_feed *f, struct zt_batch *batch)
{
    struct job *j = zt_new(struct job);
    j->feed = f;
    j->batch = batch;
    j->msg.run = on_job;
    f->n_jobs++;
    zt_loop_post(f->thread, &j->msg);
}

void zt_state_feed_put_now(struct zt_state_feed *f, struct zt_batch *batch)
{
    struct zt_store_changes changes = {0};
    zt_store_apply(f->store, batch, &changes);
    f->applied(f->arg, &changes);
    zt_store_changes_fini(&changes);
}

struct zt_loop *zt_state_feed_loop(struct zt_state_feed *f)
{
    return f->thread;
}

void zt_state_feed_free(struct zt_state_feed *f)
{
    if (!f)
        return;
    zt_loop_stop(f->thread);
    zt_loop_join(f->thread);
    zt_loop_free(f->thread); /* runs jobs that it had not begun */
    f->freed = true;
    release(f);
}
