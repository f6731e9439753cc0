/* In-pod redirection (spec/inpod §4): the packet rules and the policy route that lead a pod's TCP to the daemon's listeners in the
 * pod's own network namespace. Three verbs on one namespace: apply, check, remove.
 *
 * Names are our own (table `inet ztunneld`; chains ZT_PRE and ZT_OUT with iptables), never istio-cni's: where state of istio-cni is
 * found nothing is programmed. apply is idempotent and one atomic transaction per family, so whatever a killed run left is
 * repaired by running it again. check compares with what the same rule program makes of the same plan in an empty namespace,
 * so it is exact and does not depend on how a version of that program prints its rules.
 *
 * Nothing here blocks the caller: a verb runs in a forked child, which enters the namespace, starts the rule programs (fixed
 * arguments, no shell) and reports over a pipe. The child dies with its parent.
 * Order, for callers: listeners first, then apply; remove first, then the listeners (§4.10). */
#ifndef ZT_REDIRECT_RULES_H
#define ZT_REDIRECT_RULES_H

#include "zt/base/addr.h"
#include "zt/base/err.h"
#include "zt/net/netns.h"
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#define ZT_REDIRECT_JOB_LIMIT_MS 10000 /* the programs of one job, together; then they are killed */
#define ZT_REDIRECT_TEXT_MAX 2048      /* bytes of a result's text, NUL included */
#define ZT_REDIRECT_INTERFACES_MAX 8
#define ZT_REDIRECT_IPS_MAX 8 /* of a pod; more are not told */

enum zt_redirect_backend { ZT_REDIRECT_NFT = 0, ZT_REDIRECT_IPTABLES_NFT, ZT_REDIRECT_IPTABLES_LEGACY };

/* What is wanted in one namespace. A plain value. */
struct zt_redirect_plan {
    enum zt_redirect_backend backend;
    bool ipv6;         /* rules and route for IPv6 too (left out where the namespace has none) */
    bool dns_capture;  /* port 53 to 15053: only when something listens there */
    bool ingress_mode; /* inbound TCP goes to the application directly (§4.3) */
    bool keep_established; /* what is open when the rules come stays as it is, unseen (§4.9, case 2); else it is reset */
    char interfaces[ZT_REDIRECT_INTERFACES_MAX][IFNAMSIZ]; /* TCP arriving on these counts as egress */
    unsigned n_interfaces;
};
#define ZT_REDIRECT_PLAN_INIT                                                                      \
    {                                                                                              \
        .backend = ZT_REDIRECT_NFT, .ipv6 = true                                                   \
    }

enum zt_redirect_verb { ZT_REDIRECT_APPLY = 0, ZT_REDIRECT_CHECK, ZT_REDIRECT_REMOVE };

enum zt_redirect_outcome {
    ZT_REDIRECT_DONE = 0, /* apply, remove: done; check: all is as wanted */
    ZT_REDIRECT_ABSENT,   /* check: nothing of ours is there */
    ZT_REDIRECT_DIFFERS,  /* check: text says what */
    ZT_REDIRECT_REFUSED,  /* a namespace we do not touch: the host's, our own, or one that istio-cni programmed */
    ZT_REDIRECT_FAILED,   /* text says which program and what it said */
    ZT_REDIRECT_TIMEOUT,
};
struct zt_redirect_result {
    enum zt_redirect_outcome outcome;
    char text[ZT_REDIRECT_TEXT_MAX]; /* "" when done */
    struct zt_ip ips[ZT_REDIRECT_IPS_MAX]; /* apply: the addresses that the namespace has, loopback's and link-local ones left out */
    unsigned n_ips;
};

/* "nft", "iptables-nft", "iptables-legacy". False: unknown. */
bool zt_redirect_backend_parse(const char *text, enum zt_redirect_backend *out);
const char *zt_redirect_backend_name(enum zt_redirect_backend b); /* returns borrowed (forever) */
/* "done", "absent", ... Returns borrowed (forever). */
const char *zt_redirect_outcome_name(enum zt_redirect_outcome o);
/* Interface names must be such. Errors: ZT_INVALID. Thread: any. */
enum zt_err zt_redirect_plan_check(const struct zt_redirect_plan *plan, struct zt_error *err);

/* One verb under way. */
struct zt_redirect_job;

/* Starts verb in ns (borrowed until return: the child has its own). A namespace that is known here to be the
 * host's or our own is ZT_INVALID, as is a plan that does not pass its check; ZT_IO: no process to be had. Returns owned.
 * Thread: any; fork copies only the calling thread, and the child takes no lock of the others. */
enum zt_err zt_redirect_start(struct zt_netns *ns, const struct zt_redirect_plan *plan, enum zt_redirect_verb verb,
                              struct zt_redirect_job **out, struct zt_error *err);
/* Becomes readable when the job is over. Borrowed (until finish): put it on a loop. */
int zt_redirect_job_fd(const struct zt_redirect_job *j);
/* Kills what still runs; the job's descriptor becomes readable and the outcome is TIMEOUT. The child keeps the limit itself;
 * this is for one that hangs in the kernel. */
void zt_redirect_job_kill(struct zt_redirect_job *j);
/* Takes j: reaps the child and frees the job. Kills it first when it is not over yet. */
void zt_redirect_job_finish(struct zt_redirect_job *j, struct zt_redirect_result *out);

/* start, wait, finish in one call. Blocks for up to the limit. For tools and tests; start's errors become REFUSED or FAILED. */
void zt_redirect_run(struct zt_netns *ns, const struct zt_redirect_plan *plan, enum zt_redirect_verb verb,
                     struct zt_redirect_result *out);

#endif
