/* The process's signals (spec/interfaces §1.4) on the control loop. SIGTERM and SIGINT keep their default action until start; SIGPIPE is
 * ignored from zt_signals_ignore_pipe on. Thread: control. */
#ifndef ZT_APP_SIGNALS_H
#define ZT_APP_SIGNALS_H

#include "zt/loop/loop.h"

struct zt_signals {
    ev_signal term, interrupt;
    struct zt_loop *loop;
    /* The first SIGTERM or SIGINT, once. */
    void (*on_shutdown)(void *arg);
    /* A SIGINT after a SIGINT: exit at once. */
    void (*on_abort)(void *arg);
    void *arg;
    bool started, shutting_down, by_interrupt;
};

void zt_signals_ignore_pipe(void);
/* The callbacks and arg are set by the caller before. */
void zt_signals_start(struct zt_signals *s, struct zt_loop *l);
/* Legal when never started. */
void zt_signals_stop(struct zt_signals *s);
/* Somebody else (/quitquitquit) began the shutdown: signals are swallowed from now on. */
void zt_signals_note_shutdown(struct zt_signals *s);

#endif
