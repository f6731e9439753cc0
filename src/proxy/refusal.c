/* Refusing a client: it always gets a reset, and gets it on a connection that it knows to be open. A refusal over a warm tunnel
 * takes less time than the client needs to look at its connect; a reset that is there before reads as "cannot connect" and
 * starts the retries of another cause. So the reset waits for the client's first byte (or its end), for a moment at most.
 * Nothing is read. A worker holds a bounded number of them; past that, as when it ends, the reset comes at once. */
#include "proxy_impl.h"

#include <unistd.h>

#define REFUSAL_HOLD_MS 50
#define REFUSALS_MAX 1024 /* held by one worker */

struct refusal {
    struct zt_worker *w;
    struct zt_link link; /* zt_worker.refusals */
    int fd;
    ev_io io;
    ev_timer timer;
};

void zt_client_reset(int fd)
{
    struct linger hard = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close(fd);
}

static void refusal_end(struct refusal *r)
{
    struct ev_loop *ev = zt_loop_ev(r->w->loop);
    ev_io_stop(ev, &r->io);
    ev_timer_stop(ev, &r->timer);
    zt_list_remove(&r->link);
    r->w->n_refusals--;
    zt_client_reset(r->fd);
    zt_free(r);
}

static void on_first_byte(struct ev_loop *ev, ev_io *io, int revents)
{
    refusal_end(zt_container_of(io, struct refusal, io));
}

static void on_hold_over(struct ev_loop *ev, ev_timer *t, int revents)
{
    refusal_end(zt_container_of(t, struct refusal, timer));
}

void zt_client_refuse(struct zt_worker *w, int fd)
{
    if (w->n_refusals == REFUSALS_MAX) {
        zt_client_reset(fd);
        return;
    }
    struct refusal *r = zt_new(struct refusal);
    r->w = w;
    r->fd = fd;
    zt_list_push_back(&w->refusals, &r->link);
    w->n_refusals++;
    ev_io_init(&r->io, on_first_byte, fd, EV_READ);
    ev_io_start(zt_loop_ev(w->loop), &r->io);
    ev_timer_init(&r->timer, on_hold_over, REFUSAL_HOLD_MS / 1000.0, 0.);
    ev_timer_start(zt_loop_ev(w->loop), &r->timer);
}

void zt_client_refusals_end(struct zt_worker *w)
{
    zt_list_each_safe(link, &w->refusals)
        refusal_end(zt_container_of(link, struct refusal, link));
}
