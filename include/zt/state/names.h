/* What a name asked by DNS means to a client: spec/dataplane §10.2 and §10.3 as one function over the store. The DNS proxy, SOCKS5
 * and `ztctl dns` call the very same function. Pure. Thread: any. */
#ifndef ZT_STATE_NAMES_H
#define ZT_STATE_NAMES_H

#include "zt/base/str.h"
#include "zt/state/store.h"

#define ZT_NAME_TEXT_MAX 256 /* bytes of a name as text without its final dot, NUL included (RFC 1035 §2.3.4) */
#define ZT_NAME_IPS_MAX 4000 /* addresses of one answer: what fits into a message of 65535 bytes */

struct zt_name_query { /* all text is borrowed during the call */
    const char *name;   /* lower case, no final dot */
    enum zt_family family;
    const struct zt_workload *client;
    const char *domain; /* CLUSTER_DOMAIN */
    const char *const *search; /* search domains that the client's resolver may have appended; NULL: the three of a pod (N.svc.D, svc.D, D) */
    unsigned n_search;
    struct zt_str *trace; /* NULL, or one line per step for people */
};

/* Reusable: the array stays for the next question. Zeroed: empty. */
struct zt_name_answer {
    struct zt_ip *ips; /* owned; shuffled */
    unsigned n_ips, cap;
    char owner[ZT_NAME_TEXT_MAX];   /* "" or, when a search domain was stripped: the name the addresses belong to, behind a CNAME */
    char matched[ZT_NAME_TEXT_MAX]; /* the hostname in the state, wildcards as such */
};

/* True: the state answers (with no address too). False: the name is not ours, the question is forwarded. */
bool zt_names_resolve(struct zt_store *s, const struct zt_name_query *q, struct zt_name_answer *out);
void zt_name_answer_fini(struct zt_name_answer *a);

/* The expansions of §10.3 for a client's namespace; at most two, written to out. Returns how many. */
#define ZT_NAME_EXPANSIONS_MAX 2
unsigned zt_names_expand(const char *name, const char *ns, const char *domain,
                         char out[static ZT_NAME_EXPANSIONS_MAX][ZT_NAME_TEXT_MAX]);
/* Is name inside domain, label by label? An equal name is not. *rest: length of what is in front, without the dot. */
bool zt_names_has_domain(const char *name, const char *domain, size_t *rest);
/* The n-th wildcard of a name ("a.b.c": *.b.c, *.c). False when there are no more. */
bool zt_names_wildcard(const char *name, unsigned n, char out[static ZT_NAME_TEXT_MAX]);

#endif
