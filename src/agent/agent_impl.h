/* What the files of this folder share. One struct zt_agent, everything on one loop.
 *
 * agent.c    start and stop, the two files, the watch, reconciling the list with the table
 * enrol.c    one pod: its states, its jobs
 * daemons.c  the daemons connected over ZDS, and what each has still to be told
 * probes.c   the node's rules for probes
 * control.c  the control socket
 * call.c     its other end
 * command.c  the command line */
#ifndef ZT_AGENT_IMPL_H
#define ZT_AGENT_IMPL_H

#include "zt/agent/agent.h"
#include "zt/agent/podlist.h"
#include "zt/base/list.h"
#include "zt/base/map.h"
#include "zt/base/str.h"
#include "zt/cni/zds.h"
#include "zt/loop/loop.h"
#include "zt/net/netns.h"
#include "zt/net/unix_sock.h"
#include "zt/redirect/host.h"

#define JOBS_MAX 4           /* rule jobs at a time */
#define RETRY_MS 5000        /* after a refusal of the daemon's or a failure of the rules */
#define REMOVE_RETRY_MS 1000
#define TICK_MS 1000         /* how often namespaces' paths are looked at */
#define CLIENTS_MAX 16       /* on the control socket */

/* The transition table is in enrol.c. */
enum pod_state {
    POD_GONE = 0,    /* its path is no network namespace of its own now */
    POD_PROBING,     /* namespace open; may it be touched at all? (job: check) */
    POD_REFUSED,     /* it may not; looked at again by timer */
    POD_WAITING,     /* for the daemon's acknowledgement: its listeners come before the rules */
    POD_APPLYING,    /* job: apply */
    POD_ENROLLED,
    POD_FAILED,      /* the rules could not be programmed; again by timer */
    POD_REMOVING,    /* job: remove */
    POD_WITHDRAWING, /* every daemon is being told; then freed, or GONE */
};

struct zt_agent_pod {
    UT_hash_handle hh; /* by want.uid */
    struct zt_agent *agent;
    struct zt_podlist_pod want;
    enum pod_state state;
    bool wanted;   /* it is in the file, as it stands in want */
    bool leaving;  /* to go through REMOVING as soon as no job runs */
    bool acked;    /* the newest daemon serves it */
    bool told;     /* an Add has been queued for the newest daemon since it connected */
    unsigned n_dels; /* daemons that have not answered the Del yet */
    struct zt_netns *ns; /* owned; NULL in GONE */
    struct zt_redirect_job *job;
    enum zt_redirect_verb verb; /* of job, or of the one that waits in the agent's queue */
    struct zt_link queue_link;
    struct zt_task step_task;   /* advance soon, never from inside a callback's caller */
    ev_io job_io;
    ev_timer job_timer, retry_timer;
    struct zt_ip ips[ZT_REDIRECT_IPS_MAX]; /* while its rules are in place; told to the node's */
    unsigned n_ips;
    char text[ZT_REDIRECT_TEXT_MAX]; /* why it is not enrolled; "" when it is */
};

struct zt_agent {
    struct zt_loop *loop;
    const struct zt_agent_options *o;
    struct zt_agent_pod *pods; /* uthash */
    unsigned n_jobs;
    struct zt_link job_queue;
    bool stopping;
    int exit_signal;
    /* files */
    struct zt_podlist *list; /* the last one that read without a mistake; owned */
    char *enrolled_path;
    bool recorded; /* enrolled_path holds every pod of the table */
    int lock_fd;
    ev_stat pods_stat;
    ev_timer settle_timer, tick_timer;
    struct zt_task record_task;
    ev_signal on_term, on_int;
    /* daemons */
    struct zt_zds_server *zds;
    struct zt_zds_server_owner zds_owner;
    struct zt_link daemons; /* oldest first */
    /* probes */
    struct {
        uid_t prober;
        bool on;      /* the table is wanted */
        bool changed; /* since the last job was started */
        struct zt_redirect_job *job;
        struct zt_task task;
        ev_io io;
        ev_timer timer;
    } probes;
    /* control */
    int ctl_fd;
    struct zt_unix_file ctl_file;
    ev_io ctl_io;
    ev_timer ctl_pause; /* running while out of descriptors */
    struct zt_link clients;
    unsigned n_clients;
};

/* ---- agent.c ---- */
/* Takes list, makes it the one that is wanted and brings the table in line. */
void zt_agent_want(struct zt_agent *a, struct zt_podlist *list);
/* A pod left the table: "<file>.enrolled" is written at the end of this iteration, and who waits for its place may have it. */
void zt_agent_record_soon(struct zt_agent *a);

/* ---- enrol.c ---- */
struct zt_agent_pod *zt_enrol_new(struct zt_agent *a, const struct zt_podlist_pod *want); /* into the table, GONE */
void zt_enrol_free(struct zt_agent_pod *p);                                               /* out of the table */
void zt_enrol_step_soon(struct zt_agent_pod *p);
void zt_enrol_unwant(struct zt_agent_pod *p); /* rules, then listeners, then freed */
/* Its path: has it appeared, vanished, been replaced? */
void zt_enrol_look(struct zt_agent_pod *p);
void zt_enrol_on_ack(struct zt_agent_pod *p, const char *error); /* of an Add, from the newest daemon */
void zt_enrol_on_del_done(struct zt_agent_pod *p);               /* by one daemon */
void zt_enrol_on_newest_changed(struct zt_agent_pod *p);
const char *zt_enrol_state_name(const struct zt_agent_pod *p);
struct zt_redirect_plan zt_enrol_plan(const struct zt_agent_pod *p); /* what is wanted in its namespace */
/* The namespace is open and the daemon should serve it. */
bool zt_enrol_is_announced(const struct zt_agent_pod *p);

/* ---- daemons.c ---- */
enum zt_err zt_daemons_open(struct zt_agent *a, struct zt_error *err);
void zt_daemons_close(struct zt_agent *a);
unsigned zt_daemons_count(const struct zt_agent *a);
void zt_daemons_add(struct zt_agent_pod *p); /* to the newest; nothing without one */
void zt_daemons_del(struct zt_agent_pod *p); /* to each; sets n_dels */

/* ---- probes.c ---- */
void zt_probes_open(struct zt_agent *a);
void zt_probes_close(struct zt_agent *a);
void zt_probes_changed(struct zt_agent *a); /* a pod's n_ips did */
/* A job about the node's table as the pods are now; probes.on says whether one is wanted. */
enum zt_err zt_probes_start_job(struct zt_agent *a, enum zt_redirect_verb verb, struct zt_redirect_job **out, struct zt_error *err);

/* ---- control.c ---- */
enum zt_err zt_control_open(struct zt_agent *a, struct zt_error *err);
void zt_control_close(struct zt_agent *a);
/* Somebody may be waiting for this pod. failed: what it waits for did not come about, p->text says why. */
void zt_control_on_pod(struct zt_agent_pod *p, bool failed);
void zt_control_on_pod_freed(struct zt_agent_pod *p);
/* The words of a request on the wire: each ends in NUL. At most CONTROL_REQUEST_MAX bytes, CONTROL_WORDS_MAX words. */
#define CONTROL_REQUEST_MAX 8192
#define CONTROL_WORDS_MAX 9
/* The answer: lines, the first byte telling what each is. */
#define CONTROL_OUT 'o'  /* for stdout */
#define CONTROL_ERR 'e'  /* for stderr */
#define CONTROL_EXIT 'x' /* the exit status, last */

#endif
