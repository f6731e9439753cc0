/* The authorization decision for a destination workload (spec/dataplane §6.5).
 *
 *   any enforced DENY matches            refused
 *   no enforced ALLOW                    accepted
 *   any enforced ALLOW matches           accepted
 *   else                                 refused
 *
 * Dry-run policies are judged and logged and decide nothing. The policies are retained under the
 * lock and judged outside it. */
#include "state_impl.h"

#include "zt/base/log.h"
#include <string.h>

#define SCOPE "state"
#define UNKNOWN_POLICY_BURST 5 /* warnings a second and thread; traffic causes them */

struct policy_list {
    struct zt_policy **list;
    size_t n, cap;
};

/* The policies that concern a workload, retained, by kind: action, dry run or not. */
struct policy_set {
    struct policy_list kinds[2][2];
    size_t n;
    size_t n_unknown;
    char unknown[ZT_IDENTITY_MAX]; /* one of the keys that name no policy */
};

static void set_add(struct policy_set *set, const struct zt_policy *p)
{
    struct policy_list *l = &set->kinds[p->action][p->dry_run];
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 8;
        l->list = zt_realloc(l->list, l->cap * sizeof *l->list);
    }
    l->list[l->n++] = zt_policy_ref(p);
    set->n++;
}

static void set_add_ns(struct policy_set *set, struct zt_store *s, const char *ns)
{
    struct zt_key k;
    zt_key_texts(&k, ns, "", NULL);
    const struct zt_multi *m = zt_multi_find(&s->policy_by_ns, &k);
    for (uint32_t i = 0; m && i < m->n; i++)
        set_add(set, zt_entry_policy(zt_multi_at(m, i)));
}

static void set_collect(struct policy_set *set, struct zt_store *s, const struct zt_workload *w)
{
    pthread_rwlock_rdlock(&s->lock);
    /* The record as it is now, not as it was when the connection came: a policy added to the list
     * since must count. */
    const struct zt_workload_entry *e = zt_find_uid(s, w->uid);
    if (e)
        w = zt_entry_workload(e);
    if (*w->ns)
        set_add_ns(set, s, w->ns);
    set_add_ns(set, s, "");
    for (size_t i = 0; i < w->n_policies; i++) {
        const struct zt_policy_entry *p;
        HASH_FIND(hh, s->policies, w->policies[i], strlen(w->policies[i]), p);
        if (p)
            set_add(set, zt_entry_policy(p));
        else if (set->n_unknown++ == 0)
            zt_fmt(set->unknown, sizeof set->unknown, "%s", w->policies[i]);
    }
    pthread_rwlock_unlock(&s->lock);
}

static void set_fini(struct policy_set *set)
{
    for (int k = 0; k < 4; k++) {
        struct policy_list *l = &set->kinds[k / 2][k % 2];
        for (size_t i = 0; i < l->n; i++)
            zt_policy_unref(l->list[i]);
        zt_free(l->list);
    }
}

/* One decision being made. */
struct authz {
    const struct policy_set *set;
    const struct zt_authz_request *request;
    struct zt_subject subject;
    struct zt_str *trace;
    enum zt_log_level level;
};

static void policy_name(const struct zt_policy *p, char *buf, size_t size)
{
    zt_fmt(buf, size, "%s/%s", p->ns, p->name);
}

static void log_decision(const struct authz *a, const char *message, const struct zt_policy *p)
{
    if (!zt_log_on(a->level, SCOPE))
        return;
    char name[ZT_IDENTITY_MAX];
    struct zt_log_line l;
    zt_log_begin(&l, a->level, SCOPE, message);
    if (p) {
        policy_name(p, name, sizeof name);
        zt_log_str(&l, "policy", name);
    }
    zt_log_end(&l);
}

static void trace_policy(const struct authz *a, const struct zt_policy *p, bool matched,
                         const struct zt_policy_miss *miss)
{
    if (!a->trace)
        return;
    zt_str_addf(a->trace, "policy %s/%s (%s%s): ", p->ns, p->name,
                p->action == ZT_POLICY_DENY ? "deny" : "allow", p->dry_run ? ", dry run" : "");
    if (matched)
        zt_str_addf(a->trace, "matches by rule %d\n", miss->rule + 1);
    else if (miss->rule < 0)
        zt_str_add(a->trace, "does not match, it has no rules\n");
    else
        zt_str_addf(a->trace, "does not match: rule %d, clause %d, %s\n", miss->rule + 1,
                    miss->clause + 1, miss->field ? miss->field : "no field is set");
}

/* With a trace the rules say how far they came; without, filters keep most of them from being looked at. */
static bool matches(const struct authz *a, const struct zt_policy *p)
{
    struct zt_policy_miss miss;
    if (!a->trace)
        return zt_policy_matches_subject(p, &a->subject);
    bool matched = zt_policy_explain(p, a->request, &miss);
    trace_policy(a, p, matched, &miss);
    return matched;
}

/* What judging the policies of one kind (action, dry run or not) gave. */
struct verdict {
    size_t n;                        /* policies of that kind */
    const struct zt_policy *matched; /* the first that matches, or NULL */
};

/* The records of many policies are spread over memory, and little is read of each: what is read is asked for in time. */
#define AHEAD 6
#define HEAD_BYTES 320 /* of a record: the struct, its names, the filters of some ten rules */
static inline void fetch_ahead(const struct zt_policy *p)
{
    for (size_t at = 0; at < HEAD_BYTES; at += 64)
        __builtin_prefetch((const char *)p + at);
}

/* Enforced policies stop at the first match, for it decides; a trace wants to see them all. */
static struct verdict judge(const struct authz *a, enum zt_policy_action action, bool dry_run)
{
    const struct policy_list *list = &a->set->kinds[action][dry_run];
    struct verdict v = {.n = list->n};
    for (size_t i = 0; i < list->n; i++) {
        const struct zt_policy *p = list->list[i];
        if (v.matched && !dry_run && !a->trace)
            break;
        if (i + AHEAD < list->n)
            fetch_ahead(list->list[i + AHEAD]);
        bool matched = matches(a, p);
        if (!matched)
            continue;
        if (dry_run)
            log_decision(a,
                         action == ZT_POLICY_DENY ? "dry-run: deny policy match"
                                                  : "dry-run: allow policy match",
                         p);
        if (!v.matched)
            v.matched = p;
    }
    return v;
}

static enum zt_err decide(const struct authz *a, struct zt_error *err)
{
    char name[ZT_IDENTITY_MAX];
    judge(a, ZT_POLICY_DENY, true);
    struct verdict deny = judge(a, ZT_POLICY_DENY, false);
    if (deny.matched) {
        log_decision(a, "deny policy match", deny.matched);
        policy_name(deny.matched, name, sizeof name);
        return zt_error_set(err, ZT_POLICY_REJECTED, "explicitly denied by: %s", name);
    }
    struct verdict trial = judge(a, ZT_POLICY_ALLOW, true);
    struct verdict allow = judge(a, ZT_POLICY_ALLOW, false);
    if (allow.n == 0 && trial.n > 0 && !trial.matched)
        log_decision(a, "dry-run: no allow policies matched", NULL);
    if (allow.n == 0) {
        log_decision(a, "no allow policies, allow", NULL);
        return ZT_OK;
    }
    if (allow.matched) {
        log_decision(a, "allow policy match", allow.matched);
        return ZT_OK;
    }
    log_decision(a, "no allow policies matched", NULL);
    return zt_error_set(err, ZT_POLICY_REJECTED, "allow policies exist, but none allowed");
}

static void warn_unknown(const struct policy_set *set)
{
    static _Thread_local struct zt_log_gate gate;
    uint32_t suppressed = 0;
    if (set->n_unknown == 0 || !zt_log_gate_pass(&gate, UNKNOWN_POLICY_BURST, &suppressed))
        return;
    struct zt_log_line l;
    zt_log_begin(&l, ZT_LOG_WARN, SCOPE, "skipping unknown policy");
    zt_log_str(&l, "policy", set->unknown);
    if (set->n_unknown > 1)
        zt_log_u64(&l, "more", set->n_unknown - 1);
    if (suppressed > 0)
        zt_log_u64(&l, "suppressed", suppressed);
    zt_log_end(&l);
}

enum zt_err zt_authz_decide(struct zt_store *s, const struct zt_workload *w,
                            const struct zt_authz_request *r, struct zt_str *trace,
                            struct zt_error *err)
{
    struct policy_set set = {0};
    set_collect(&set, s, w);
    if (trace) {
        if (set.n_unknown > 0)
            zt_str_addf(trace, "%zu listed policies are not known (%s)\n", set.n_unknown,
                        set.unknown);
        if (set.n == 0)
            zt_str_add(trace, "no policies apply\n");
    } else {
        warn_unknown(&set);
    }
    struct zt_error own = ZT_ERROR_INIT;
    struct authz a = {.set = &set,
                      .request = r,
                      .subject = zt_subject_of(r),
                      .trace = trace,
                      .level = s->authz_info_logging ? ZT_LOG_INFO : ZT_LOG_DEBUG};
    enum zt_err e = decide(&a, err ? err : &own);
    if (e == ZT_OK)
        ZT_TRACE(trace, "allowed\n");
    else
        ZT_TRACE(trace, "refused: %s\n", (err ? err : &own)->text);
    set_fini(&set);
    return e;
}

static void note_why(struct zt_authz_why *why, const struct zt_policy *p, const struct zt_policy_miss *miss)
{
    policy_name(p, why->policy, sizeof why->policy);
    why->rule = miss->rule + 1;
    why->clause = miss->clause + 1;
    why->field = miss->field;
}

void zt_authz_explain(struct zt_store *s, const struct zt_workload *w, const struct zt_authz_request *r,
                      struct zt_authz_why *why)
{
    struct policy_set set = {0};
    struct zt_policy_miss miss;
    *why = (struct zt_authz_why){0};
    set_collect(&set, s, w);
    const struct policy_list *deny = &set.kinds[ZT_POLICY_DENY][false], *allow = &set.kinds[ZT_POLICY_ALLOW][false];
    for (size_t i = 0; i < deny->n && !why->denies; i++) {
        why->denies = zt_policy_explain(deny->list[i], r, &miss);
        if (why->denies)
            note_why(why, deny->list[i], &miss);
    }
    for (size_t i = 0; i < allow->n && !why->denies; i++) {
        if (!zt_policy_explain(allow->list[i], r, &miss) && (!*why->policy || miss.clause + 1 > why->clause))
            note_why(why, allow->list[i], &miss); /* it came further than those before */
    }
    set_fini(&set);
}
