/* Names asked by DNS (spec/dataplane §10.3). A client's resolver appends search domains on its own, and people write short names: the
 * proxy undoes the first by stripping and the second by expanding. Every alias is tried as it is, then as ever shorter wildcards;
 * the first service found is the answer.
 *
 * All of it happens under one read lock; text lives on the stack, and a name is at most ZT_NAME_TEXT_MAX bytes with at most 127
 * labels, which bounds the number of lookups whatever a client asks. */
#include "zt/state/names.h"
#include "state_impl.h"

#include <stdlib.h>
#include <string.h>

#define POD_SEARCH 3 /* N.svc.D, svc.D, D */
#define ALIASES_MAX ((1 + ZT_NAME_EXPANSIONS_MAX) * (1 + 8))
#define SEARCH_MAX 8

struct alias {
    char name[ZT_NAME_TEXT_MAX];
    const char *stripped; /* NULL, or the name as it was before a search domain was appended */
};

struct search {
    struct zt_store *store;
    const struct zt_name_query *q;
    char kube_suffix[ZT_NAME_TEXT_MAX]; /* ".svc.D" */
    char stripped[SEARCH_MAX][ZT_NAME_TEXT_MAX];
    struct alias aliases[ALIASES_MAX];
    unsigned n_aliases, n_stripped;
};

/* ---- text ---- */

bool zt_names_has_domain(const char *name, const char *domain, size_t *rest)
{
    size_t n = strlen(name), d = strlen(domain);
    if (d == 0 || n < d + 2 || name[n - d - 1] != '.' || memcmp(name + n - d, domain, d) != 0)
        return false;
    *rest = n - d - 1;
    return true;
}

bool zt_names_wildcard(const char *name, unsigned n, char out[static ZT_NAME_TEXT_MAX])
{
    const char *dot = strchr(name, '.');
    for (; dot && n > 0; n--)
        dot = strchr(dot + 1, '.');
    return dot && zt_fmt(out, ZT_NAME_TEXT_MAX, "*%s", dot);
}

unsigned zt_names_expand(const char *name, const char *ns, const char *domain,
                         char out[static ZT_NAME_EXPANSIONS_MAX][ZT_NAME_TEXT_MAX])
{
    unsigned labels = 1, n = 0;
    for (const char *c = name; *c; c++)
        labels += *c == '.';
    const char *last = strrchr(name, '.');
    bool ends_in_svc = last && strcmp(last, ".svc") == 0;
    if ((labels == 3 || labels == 4) && ends_in_svc)
        n += zt_fmt(out[n], ZT_NAME_TEXT_MAX, "%s.%s", name, domain);
    if (labels == 2 || labels == 3)
        n += zt_fmt(out[n], ZT_NAME_TEXT_MAX, "%s.svc.%s", name, domain);
    if (labels == 1 || labels == 2)
        n += zt_fmt(out[n], ZT_NAME_TEXT_MAX, "%s.%s.svc.%s", name, ns, domain);
    return n;
}

static void add_alias(struct search *f, const char *name, const char *stripped)
{
    for (unsigned i = 0; i < f->n_aliases; i++)
        if (strcmp(f->aliases[i].name, name) == 0)
            return;
    struct alias *a = &f->aliases[f->n_aliases++];
    zt_fmt(a->name, sizeof a->name, "%s", name);
    a->stripped = stripped;
}

static void add_with_expansions(struct search *f, const char *name, const char *stripped)
{
    char expanded[ZT_NAME_EXPANSIONS_MAX][ZT_NAME_TEXT_MAX];
    add_alias(f, name, stripped);
    unsigned n = zt_names_expand(name, f->q->client->ns, f->q->domain, expanded);
    for (unsigned i = 0; i < n; i++)
        add_alias(f, expanded[i], stripped);
}

static void add_stripped(struct search *f, const char *search_domain)
{
    size_t rest;
    if (f->n_stripped == SEARCH_MAX || !zt_names_has_domain(f->q->name, search_domain, &rest))
        return;
    char *stripped = f->stripped[f->n_stripped++];
    zt_fmt(stripped, ZT_NAME_TEXT_MAX, "%.*s", (int)rest, f->q->name);
    add_with_expansions(f, stripped, stripped);
}

static void collect_aliases(struct search *f)
{
    const struct zt_name_query *q = f->q;
    char own[ZT_NAME_TEXT_MAX];
    zt_fmt(f->kube_suffix, sizeof f->kube_suffix, ".svc.%s", q->domain);
    add_with_expansions(f, q->name, NULL);
    for (unsigned i = 0; q->search && i < q->n_search; i++)
        add_stripped(f, q->search[i]);
    if (q->search)
        return;
    if (zt_fmt(own, sizeof own, "%s%s", q->client->ns, f->kube_suffix))
        add_stripped(f, own);
    add_stripped(f, f->kube_suffix + 1);
    add_stripped(f, q->domain);
}

/* ---- under the lock ---- */

static struct zt_service_entry *find_at(const struct search *f, const char *name)
{
    return zt_find_service_by_dns_name(f->store, name, f->q->client->ns, f->kube_suffix);
}

static struct zt_service_entry *find_alias(const struct search *f, const struct alias *a)
{
    char wildcard[ZT_NAME_TEXT_MAX];
    struct zt_service_entry *e = find_at(f, a->name);
    for (unsigned i = 0; !e && zt_names_wildcard(a->name, i, wildcard); i++)
        e = find_at(f, wildcard);
    return e;
}

static void add_ip(struct zt_name_answer *out, const struct zt_ip *ip)
{
    if (out->n_ips == ZT_NAME_IPS_MAX)
        return;
    if (out->n_ips == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 8;
        out->ips = zt_realloc(out->ips, out->cap * sizeof *out->ips);
    }
    out->ips[out->n_ips++] = *ip;
}

static void add_first_of(struct zt_name_answer *out, const struct zt_workload *w, enum zt_family family)
{
    for (unsigned i = 0; i < w->n_ips; i++) {
        if (w->ips[i].family == family) {
            add_ip(out, &w->ips[i]);
            return;
        }
    }
}

/* Endpoints that no client would be sent to are no answer either. */
static void add_endpoints(struct zt_store *s, const struct zt_service_entry *e, enum zt_family family, struct zt_name_answer *out)
{
    const struct zt_service *v = zt_entry_service(e);
    for (uint32_t i = 0; i < e->n_endpoints; i++) {
        const struct zt_workload *w = zt_entry_workload(e->endpoints[i]->owner);
        if (w->healthy || v->lb_allow_all)
            add_first_of(out, w, family);
    }
    for (uint32_t i = 0; i < v->n_endpoints; i++) {
        struct zt_workload_entry *w = zt_find_uid(s, v->endpoints[i].workload_uid);
        if (w && !zt_find_endpoint(w, e) && (v->endpoints[i].healthy || v->lb_allow_all))
            add_first_of(out, zt_entry_workload(w), family);
    }
}

static bool family_excluded(const struct zt_service *v, enum zt_family family)
{
    return (v->ip_families == ZT_FAMILIES_IPV4 && family == ZT_IPV6) || (v->ip_families == ZT_FAMILIES_IPV6 && family == ZT_IPV4);
}

static void collect_ips(const struct search *f, const struct zt_service_entry *e, struct zt_name_answer *out)
{
    const struct zt_service *v = zt_entry_service(e);
    enum zt_family family = f->q->family;
    if (family_excluded(v, family))
        return;
    for (unsigned i = 0; i < v->n_vips; i++)
        if (v->vips[i].exact && v->vips[i].cidr.ip.family == family && strcmp(v->vips[i].network, f->q->client->network) == 0)
            add_ip(out, &v->vips[i].cidr.ip);
    if (v->n_vips == 0)
        add_endpoints(f->store, e, family, out);
}

static bool resolve_locked(const struct search *f, struct zt_name_answer *out)
{
    for (unsigned i = 0; i < f->n_aliases; i++) {
        const struct alias *a = &f->aliases[i];
        const struct zt_service_entry *e = find_alias(f, a);
        ZT_TRACE(f->q->trace, "%s%s: %s\n", a->name, a->stripped ? " (search domain stripped)" : "", e ? e->hostname : "no");
        if (!e)
            continue;
        zt_fmt(out->matched, sizeof out->matched, "%s", e->hostname);
        if (a->stripped && e->hostname[0] != '*')
            zt_fmt(out->owner, sizeof out->owner, "%s", a->stripped);
        collect_ips(f, e, out);
        return true;
    }
    return false;
}

/* A workload that goes by a name of its own, in the client's namespace; one without addresses is an alias of a name elsewhere. */
static bool resolve_workload(const struct search *f, struct zt_name_answer *out)
{
    const struct zt_workload *w = zt_find_workload_by_host(f->store, f->q->client->ns, f->q->name);
    if (!w || w->n_ips == 0 || strcmp(w->network, f->q->client->network) != 0)
        return false;
    ZT_TRACE(f->q->trace, "%s: workload %s\n", f->q->name, w->uid);
    zt_fmt(out->matched, sizeof out->matched, "%s", w->hostname);
    for (unsigned i = 0; i < w->n_ips; i++)
        if (w->ips[i].family == f->q->family)
            add_ip(out, &w->ips[i]);
    return true;
}

static void shuffle(struct zt_ip *ips, unsigned n)
{
    for (unsigned i = n; i > 1; i--) {
        unsigned j = (unsigned)(zt_lb_random() % i);
        struct zt_ip t = ips[j];
        ips[j] = ips[i - 1];
        ips[i - 1] = t;
    }
}

bool zt_names_resolve(struct zt_store *s, const struct zt_name_query *q, struct zt_name_answer *out)
{
    struct search f;
    f.store = s;
    f.q = q;
    f.n_aliases = f.n_stripped = 0;
    out->n_ips = 0;
    out->owner[0] = out->matched[0] = '\0';
    collect_aliases(&f);
    pthread_rwlock_rdlock(&s->lock);
    bool found = resolve_locked(&f, out) || resolve_workload(&f, out);
    pthread_rwlock_unlock(&s->lock);
    shuffle(out->ips, out->n_ips);
    return found;
}

void zt_name_answer_fini(struct zt_name_answer *a)
{
    zt_free(a->ips);
    *a = (struct zt_name_answer){0};
}
