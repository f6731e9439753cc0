/* What the files of this folder share. All but starting a job runs in the job's child: inside the namespace, alone in its process,
 * free to block until the deadline. */
#ifndef ZT_REDIRECT_IMPL_H
#define ZT_REDIRECT_IMPL_H

#include "zt/base/str.h"
#include "zt/redirect/rules.h"

/* spec/inpod §0. The proxy's mark must be the daemon's PACKET_MARK. */
#define MARK_PROXY 0x539
#define MARK_RETURN 0x111
#define MARK_MASK 0xfff
#define ROUTE_TABLE 100
#define RULE_PRIORITY 32764
#define PROBE_V4 "169.254.7.127"
#define PROBE_V6 "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
#define PORT_OUTBOUND 15001
#define PORT_INBOUND_PLAIN 15006
#define PORT_HBONE 15008
#define PORT_DNS 15053
#define DNS_ZONE 1

#define DUMP_MAX (256 * 1024) /* bytes of a rule program's listing */

/* ---- programs: one at a time, no shell ---- */
struct program {
    const char *const *argv; /* argv[0] is looked up in PATH, NULL at the end */
    const char *input;       /* to its stdin; NULL = none */
    struct zt_str *output;   /* its stdout, bounded by the builder; NULL = thrown away */
    uint64_t deadline_ms;    /* zt_clock_mono_ms */
};
/* Runs it to its end. *status: its exit status. Errors: ZT_NOT_FOUND (no such program), ZT_TIMEOUT, ZT_IO (signal, no process,
 * output over its limit), and ZT_INVALID for an exit status but 0: err then holds "name: what it wrote to stderr". */
enum zt_err zt_program_run(const struct program *p, int *status, struct zt_error *err);

/* ---- back ends ---- */
struct backend {
    const char *name;
    /* Puts the plan's rules in force, replacing ours that are there. Atomic per family. */
    enum zt_err (*apply)(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err);
    /* Appends our rules as they stand, in a form that is equal for equal rules; nothing when there are none. */
    enum zt_err (*dump)(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err);
    /* Absence is no error. */
    enum zt_err (*remove)(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err);
};
extern const struct backend zt_backend_nft, zt_backend_iptables_nft, zt_backend_iptables_legacy;
const struct backend *zt_backend_get(enum zt_redirect_backend b);

/* ---- policy rule and local route (§4.2), by netlink. EEXIST and ENOENT are tolerated, per family ---- */
enum zt_err zt_policy_route_apply(bool ipv6, struct zt_error *err);
enum zt_err zt_policy_route_remove(struct zt_error *err);
/* Appends one line for each of ours that is there. */
enum zt_err zt_policy_route_dump(struct zt_str *out, struct zt_error *err);
/* The lines that dump gives after apply in this namespace. */
void zt_policy_route_wanted(bool ipv6, struct zt_str *out);

/* ---- whose rules are there? ours: by which of the back ends. ZT_EXISTS: istio-cni's, with what was found ---- */
#define N_BACKENDS 3
enum zt_err zt_rules_probe(uint64_t deadline_ms, bool ours[static N_BACKENDS], struct zt_error *err);

/* ---- nft: a script of one transaction; the listing of a table of family inet, nothing when there is none ---- */
enum zt_err zt_nft_run(const char *script, uint64_t deadline_ms, struct zt_error *err);
enum zt_err zt_nft_list(const char *table, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err);

/* ---- jobs: fn runs in a child, inside the namespace of ns_fd, or with -1 where the caller is; arg is the caller's memory as it was ---- */
typedef void (*zt_job_fn)(const void *arg, enum zt_redirect_verb verb, uint64_t deadline_ms, struct zt_redirect_result *out);
enum zt_err zt_job_start(int ns_fd, zt_job_fn fn, const void *arg, enum zt_redirect_verb verb, struct zt_redirect_job **out,
                         struct zt_error *err);

/* ---- the verbs: in the namespace that the calling process is in ---- */
void zt_rules_do(const void *plan, enum zt_redirect_verb verb, uint64_t deadline_ms, struct zt_redirect_result *out);
/* What became of a verb. */
void zt_rules_result(struct zt_redirect_result *out, enum zt_err e, const struct zt_error *err);
/* Compares what is there with what make_and_list gives in an empty namespace, which this process then is in, followed by more. */
typedef enum zt_err (*zt_rules_list_fn)(const void *arg, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err);
enum zt_err zt_rules_compare(zt_rules_list_fn make_and_list, const void *arg, const char *there, const char *more, uint64_t deadline_ms,
                             struct zt_redirect_result *out, struct zt_error *err);

#endif
