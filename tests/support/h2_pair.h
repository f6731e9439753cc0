/* Two HTTP/2 sessions back to back over memory streams, and one stream between them whose ends record what they see.
 * A raw end stands in for one of the sessions where a test writes frames by hand. */
#ifndef ZT_TESTS_H2_PAIR_H
#define ZT_TESTS_H2_PAIR_H

#include "stream_mem.h"
#include "zt/base/mem.h"
#include "zt/h2/h2_session.h"

/* One end of a stream: reads all it is shown when `reading`, writes `to_write` bytes of a pattern, then ends if `end_after`. */
struct h2_end {
    struct zt_stream_owner owner;
    struct zt_h2_request request;
    struct zt_h2_stream *st;
    bool reading, end_after, ended; /* ended: shutdown_write was called */
    uint64_t to_write, written, received;
    bool corrupt;         /* a received byte did not fit the pattern */
    enum zt_err read_end; /* ZT_OK: not yet */
    enum zt_err write_error;
    enum zt_err response_error;
    unsigned status;
    bool answered, aborted;
};

struct h2_side {
    struct zt_h2_owner owner;
    struct zt_h2_session *s; /* NULL after on_closed */
    struct zt_error why;
    unsigned n_requests, n_closed, n_goaway, n_settings;
    bool closed;
    bool answer;              /* answer requests with 200 at once */
    struct h2_end *next_end;  /* server: who gets the next stream; NULL: a request is left alone in `last` */
    struct zt_h2_stream *last;
    char method[16], authority[128];
};

struct h2_pair {
    struct zt_loop *l;
    struct zt_stream *client_lower, *server_lower; /* the sessions', borrowed, for injecting */
    struct h2_side client, server;
};

extern const struct zt_h2_config h2_pair_config;

void h2_pair_start(struct h2_pair *p, const struct zt_mem_opts *mem, const struct zt_h2_config *client,
                   const struct zt_h2_config *server);
void h2_pair_stop(struct h2_pair *p);
/* Opens a CONNECT whose client end is c; the server gives its end to sv and answers 200 (sv NULL: left in server.last). */
void h2_pair_connect(struct h2_pair *p, struct h2_end *c, struct h2_end *sv);
/* Runs the loop until *flag or 5 s. */
bool h2_run_until(struct zt_loop *l, const bool *flag);
/* Runs the loop a few turns without waiting. */
void h2_settle(struct zt_loop *l);
void h2_end_attach(struct h2_end *e, struct zt_h2_stream *st);
void h2_end_write(struct h2_end *e);
void h2_end_close(struct h2_end *e, enum zt_err why);
void h2_side_init(struct h2_side *side);

#endif
