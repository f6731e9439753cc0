/* The list of pods in a YAML file: what the node agent is told, and the form in which it keeps what it did.
 *
 *     pods:
 *     - uid: 6f1c...
 *       namespace: ns1
 *       name: sleep
 *       serviceAccount: sleep
 *       netns: /run/netns/ns1-sleep
 *
 * These five keys are needed. Three more say how this pod's traffic is captured, as the annotations of istio-cni do (spec/inpod §4.3):
 * bypassInboundCapture and dnsCapture (booleans in Go's spellings), rerouteVirtualInterfaces (names with commas between). Others are
 * errors; a uid and a netns path occur once. An empty file is an error ("pods: []" is the empty
 * list): a truncated file must never mean "no pods". Read by libyaml events, within the limits below. Thread: any. */
#ifndef ZT_AGENT_PODLIST_H
#define ZT_AGENT_PODLIST_H

#include "zt/base/err.h"
#include "zt/redirect/rules.h"
#include <stdbool.h>
#include <stddef.h>

#define ZT_PODLIST_MAX 4096             /* pods */
#define ZT_PODLIST_BYTES_MAX (8u << 20) /* of the file */
#define ZT_PODLIST_UID_MAX 128          /* bytes; with the names below a ZDS message fits its packet */
#define ZT_PODLIST_NAMESPACE_MAX 63
#define ZT_PODLIST_NAME_MAX 253
#define ZT_PODLIST_PATH_MAX 1023

struct zt_podlist_pod {
    char *uid, *ns, *name, *service_account, *netns; /* owned */
    char *bypass_inbound_capture, *dns_capture, *reroute_virtual_interfaces; /* owned; NULL = as all pods */
    unsigned line; /* where it stands in the file; 0 = not from a file */
};

struct zt_podlist {
    struct zt_podlist_pod *pods; /* owned */
    unsigned n_pods;
};

/* text is borrowed; name stands in errors: "name:line:column: reason". Errors: ZT_INVALID. Returns owned in *out. */
enum zt_err zt_podlist_parse(const char *name, const char *text, size_t len, struct zt_podlist **out, struct zt_error *err);
/* ZT_NOT_FOUND: no such file; ZT_IO; ZT_INVALID. Returns owned in *out. */
enum zt_err zt_podlist_load(const char *path, struct zt_podlist **out, struct zt_error *err);
/* Whole or not at all, also across a crash: written beside it, synced, renamed. Keeps the file's mode; new files get 0600. Errors: ZT_IO. */
enum zt_err zt_podlist_save(const char *path, const struct zt_podlist *list, struct zt_error *err);

struct zt_podlist *zt_podlist_new(void); /* empty; returns owned */
void zt_podlist_free(struct zt_podlist *l);
/* Copies p into the list. ZT_INVALID: a field is not as it must be; ZT_EXISTS: the uid or the netns is there; ZT_LIMIT. */
enum zt_err zt_podlist_add(struct zt_podlist *l, const struct zt_podlist_pod *p, struct zt_error *err);
void zt_podlist_remove(struct zt_podlist *l, unsigned index);
/* key: a uid, or "namespace/name" (the first such). Returns the index, or n_pods. */
unsigned zt_podlist_find(const struct zt_podlist *l, const char *key);

/* Puts what the pod says of itself into plan, which holds what all pods have. Errors: ZT_INVALID (never for a pod of a list). */
enum zt_err zt_podlist_pod_plan(const struct zt_podlist_pod *p, struct zt_redirect_plan *plan, struct zt_error *err);
/* Go's spellings: 1, t, T, TRUE, true, True, and those of false. False: none of them. */
bool zt_podlist_bool(const char *text, bool *out);

void zt_podlist_pod_copy(struct zt_podlist_pod *to, const struct zt_podlist_pod *from); /* to is owned */
void zt_podlist_pod_fini(struct zt_podlist_pod *p);
bool zt_podlist_pod_equal(const struct zt_podlist_pod *a, const struct zt_podlist_pod *b); /* the line does not count */

#endif
