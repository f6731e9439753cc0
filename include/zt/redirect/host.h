/* The node's side of probes (spec/inpod §4.4): what the kubelet's own sockets send to an enrolled pod gets a source address that no
 * other can have, by which the pod's rules let it through to the application. All else that comes from the node's address stays captured.
 *
 * One table, `inet ztunneld-host`, in the network namespace that the agent runs in, replaced whole when the pods change. nftables makes it
 * whatever back end the pods have: that only needs what ztcni needs anyhow. Jobs are those of zt/redirect/rules.h. */
#ifndef ZT_REDIRECT_HOST_H
#define ZT_REDIRECT_HOST_H

#include "zt/base/addr.h"
#include "zt/redirect/rules.h"
#include <sys/types.h>

/* What is wanted on the node. */
struct zt_redirect_host {
    uid_t prober;            /* whose connections are probes: the user that the kubelet runs as */
    const struct zt_ip *ips; /* of enrolled pods; borrowed until start returns */
    unsigned n_ips;
};

/* The user of the first process that is a kubelet: named kubelet or kubelite and saying so in its arguments, or named k3s; not in a
 * PID namespace below ours, where pods may name themselves as they like. False: there is none. Reads /proc. Thread: any. */
bool zt_redirect_find_kubelet(uid_t *out);

/* Starts verb on the node; REMOVE takes no notice of h. Errors: ZT_IO. Returns owned. Thread: any. */
enum zt_err zt_redirect_host_start(const struct zt_redirect_host *h, enum zt_redirect_verb verb, struct zt_redirect_job **out,
                                   struct zt_error *err);

#endif
