/* SIGTERM and SIGINT.
 *
 *   state            SIGTERM      SIGINT
 *   running          shutdown     shutdown, by interrupt
 *   shutting down    swallowed    abort when it was by interrupt, else swallowed */
#include "zt/app/signals.h"
#include "zt/base/log.h"
#include <signal.h>

static void shut_down(struct zt_signals *s, const char *name)
{
    s->shutting_down = true;
    zt_log_info("app", "received signal %s, starting shutdown", name);
    s->on_shutdown(s->arg);
}

static void on_term(struct ev_loop *ev, ev_signal *w, int events)
{
    struct zt_signals *s = zt_container_of(w, struct zt_signals, term);
    if (!s->shutting_down)
        shut_down(s, "SIGTERM");
}

static void on_interrupt(struct ev_loop *ev, ev_signal *w, int events)
{
    struct zt_signals *s = zt_container_of(w, struct zt_signals, interrupt);
    if (!s->shutting_down) {
        s->by_interrupt = true;
        shut_down(s, "SIGINT");
    } else if (s->by_interrupt) {
        zt_log_info("app", "Double Ctrl+C, exit immediately");
        s->on_abort(s->arg);
    }
}

void zt_signals_ignore_pipe(void)
{
    signal(SIGPIPE, SIG_IGN);
}

void zt_signals_start(struct zt_signals *s, struct zt_loop *l)
{
    s->loop = l;
    ev_signal_init(&s->term, on_term, SIGTERM);
    ev_signal_init(&s->interrupt, on_interrupt, SIGINT);
    ev_signal_start(zt_loop_ev(l), &s->term);
    ev_signal_start(zt_loop_ev(l), &s->interrupt);
    s->started = true;
}

void zt_signals_stop(struct zt_signals *s)
{
    if (!s->started)
        return;
    ev_signal_stop(zt_loop_ev(s->loop), &s->term);
    ev_signal_stop(zt_loop_ev(s->loop), &s->interrupt);
    s->started = false;
}

void zt_signals_note_shutdown(struct zt_signals *s)
{
    s->shutting_down = true;
}
