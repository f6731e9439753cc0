/* Pipes for splice(2), lent to connections that move much at once.
 * Invariants: n_pipes counts those lent and those on the free list; a pipe on the list is empty. What has become free is closed
 * a second later: a busy loop makes one anew now and then, a quiet one holds no descriptor for it. */
#include "loop_impl.h"

#include "zt/base/mem.h"
#include <fcntl.h>
#include <unistd.h>

#define FREE_S 1.

static void pipe_free(struct zt_loop *l, struct zt_pipe *p)
{
    l->n_pipes--;
    close(p->read_fd);
    close(p->write_fd);
    zt_free(p);
}

struct zt_pipe *zt_loop_pipe_get(struct zt_loop *l)
{
    zt_loop_assert_owner(l);
    struct zt_link *link = zt_list_pop_front(&l->pipes);
    if (link)
        return zt_container_of(link, struct zt_pipe, link);
    int fds[2];
    if (l->n_pipes == ZT_PIPES_MAX || pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0)
        return NULL;
    fcntl(fds[1], F_SETPIPE_SZ, ZT_PIPE_BYTES); /* best effort: a smaller one carries less at a time */
    struct zt_pipe *p = zt_new(struct zt_pipe);
    p->read_fd = fds[0];
    p->write_fd = fds[1];
    l->n_pipes++;
    return p;
}

void zt_loop_pipe_put(struct zt_loop *l, struct zt_pipe *p)
{
    zt_loop_assert_owner(l);
    if (p->held > 0)
        pipe_free(l, p);
    else
        zt_list_push_front(&l->pipes, &p->link);
    if (!zt_list_empty(&l->pipes) && !ev_is_active(&l->pipe_timer))
        ev_timer_start(l->ev, &l->pipe_timer);
}

void zt_loop_pipes_free(struct zt_loop *l)
{
    ev_timer_stop(l->ev, &l->pipe_timer);
    struct zt_link *link;
    while ((link = zt_list_pop_front(&l->pipes)))
        pipe_free(l, zt_container_of(link, struct zt_pipe, link));
}

static void on_free_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    (void)ev, (void)revents;
    zt_loop_pipes_free(zt_container_of(t, struct zt_loop, pipe_timer));
}

void zt_loop_pipes_init(struct zt_loop *l)
{
    zt_list_init(&l->pipes);
    ev_timer_init(&l->pipe_timer, on_free_over, FREE_S, 0.);
}
