/* The node agent: for hosts without istio-cni. It reads a YAML list of pods (zt/agent/podlist.h), announces them over ZDS to the daemon
 * (zt/cni/zds.h), and programs redirection in their network namespaces (zt/redirect/rules.h). `ztcni add` and `remove` edit that
 * list through the agent's control socket; editing the file by hand while the agent runs does the same.
 *
 * Killed at any step it loses nothing: the file says what is wanted, and the list beside it, "<file>.enrolled", says where rules may be
 * in place. It is written before a namespace is touched and after it was left; the next start completes whatever was under way.
 * Order: listeners, then rules; on the way out rules, then listeners (spec/inpod §4.10). When the agent stops, pods stay
 * enrolled. Thread: control (the one that calls). */
#ifndef ZT_AGENT_AGENT_H
#define ZT_AGENT_AGENT_H

#include "zt/base/err.h"
#include "zt/redirect/rules.h"
#include <sys/types.h>

#define ZT_AGENT_PODS_PATH "/var/lib/ztcni/pods.yaml"
#define ZT_AGENT_CTL_PATH "/run/ztcni/ctl.sock"
#define ZT_AGENT_SOCKET_PATH "/var/run/ztunnel/ztunnel.sock" /* where the daemon connects (its INPOD_UDS) */

/* Whose connections from the node to pods are let through to the application (zt/redirect/host.h). */
enum zt_agent_probes { ZT_AGENT_PROBES_OFF = 0, ZT_AGENT_PROBES_KUBELET, ZT_AGENT_PROBES_USER };

struct zt_agent_options {
    const char *pods_path;   /* the YAML file; absent = no pods yet */
    const char *socket_path; /* ZDS */
    const char *ctl_path;    /* control socket, mode 0600; its peers must be root or our own user */
    struct zt_redirect_plan plan;
    enum zt_agent_probes probes;
    uid_t prober;            /* PROBES_USER: who */
    unsigned add_wait_ms;    /* how long add waits for the daemon and the rules; 0 = ZT_AGENT_ADD_WAIT_MS */
};
#define ZT_AGENT_ADD_WAIT_MS 15000

/* Runs until SIGTERM or SIGINT on the calling thread. Errors at start: a pods file that does not read, sockets, another agent on the
 * same file (ZT_EXISTS). */
enum zt_err zt_agent_run(const struct zt_agent_options *o, struct zt_error *err);

/* The other end of the control socket: sends words ("add" and the fields of zt/agent/podlist.h, of which the last three may be "" or
 * missing; "remove", KEY; "list"; "check" [, KEY]), copies the answer to stdout and stderr. *exit_code is the agent's verdict.
 * Blocks. Errors: no agent there, connection lost. */
enum zt_err zt_agent_call(const char *ctl_path, const char *const *words, unsigned n_words, int *exit_code, struct zt_error *err);

/* The whole of ztcni: the agent, or a command to the one that runs. argv is borrowed (during the call; getopt reorders it). Returns the exit
 * status: 0 done, 1 failed or (check) differs, 2 wrong usage. */
int zt_agent_main(int argc, char **argv);

#endif
