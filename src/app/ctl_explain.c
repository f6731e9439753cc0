/* GET /v1/explain?src=NS/NAME&dst=ADDRESS:PORT: what would happen to a connection, by the very functions that the data path calls, with a
 * trace recorder. Nothing is dialled.
 *
 * Two daemons decide about a connection: the source's routes it, the destination's (or the waypoint) authorizes it. We have the policies
 * of both, so both verdicts are shown, and whose each one is. */
#include "app/ctl_impl.h"
#include "zt/base/mem.h"
#include <stdlib.h>
#include <string.h>

#define TRACE_BYTES_MAX (256 * 1024)

struct explain {
    struct zt_msg msg; /* to the helper and back, when all workloads must be searched */
    struct zt_http1_request *request;
    struct zt_loop *control;
    const struct zt_ctl_sources *sources;
    struct zt_store *store;
    char *ns, *name; /* of the source */
    struct zt_workload *src;
    char *host; /* the destination as given, without its port */
    struct zt_addr dst;
    struct zt_service *service; /* that the host named, or NULL */
};

/* ---- what was asked ---- */

struct pod_search {
    const char *ns, *name;
    char *service_account;
};

static void on_pod(void *arg, const char *uid, const struct zt_pod_info *info, const char *pending)
{
    struct pod_search *p = arg;
    if (!p->service_account && strcmp(info->ns, p->ns) == 0 && strcmp(info->name, p->name) == 0)
        p->service_account = zt_strdup(info->service_account);
}

/* A pod of this node, as the data path finds it: by what the CNI said. */
struct zt_workload *zt_ctl_local_workload(const struct zt_ctl_sources *sources, const char *ns, const char *name)
{
    struct pod_search search = {.ns = ns, .name = name};
    struct zt_workload *w = NULL;
    if (sources->state.pods)
        zt_pods_each(sources->state.pods, on_pod, &search);
    if (search.service_account)
        w = zt_store_find_local(sources->state.store, ns, name, search.service_account);
    zt_free(search.service_account);
    return w;
}

/* Any workload of that name, on whatever node: a walk over all, too long for control. Thread: helper. */
static struct zt_workload *search_all(struct zt_store *store, const char *ns, const char *name)
{
    size_t n;
    struct zt_workload *found = NULL, **list = zt_store_snapshot_workloads(store, &n);
    for (size_t i = 0; i < n && !found; i++)
        if (strcmp(list[i]->ns, ns) == 0 && strcmp(list[i]->name, name) == 0)
            found = zt_workload_ref(list[i]);
    zt_store_snapshot_workloads_free(list, n);
    return found;
}

static enum zt_err parse_source(struct explain *e, const char *text, struct zt_error *err)
{
    const char *slash = text ? strchr(text, '/') : NULL;
    if (!slash || slash == text || !slash[1])
        return zt_error_set(err, ZT_INVALID, "the source is written NAMESPACE/POD");
    e->ns = zt_strndup(text, (size_t)(slash - text));
    e->name = zt_strdup(slash + 1);
    e->src = zt_ctl_local_workload(e->sources, e->ns, e->name);
    return ZT_OK;
}

static enum zt_err check_source(const struct explain *e, struct zt_error *err)
{
    if (!e->src)
        return zt_error_set(err, ZT_NOT_FOUND, "no workload %s/%s is known here; the configuration does not name it", e->ns, e->name);
    if (e->src->n_ips == 0)
        return zt_error_set(err, ZT_INVALID, "workload %s/%s has no address", e->ns, e->name);
    return ZT_OK;
}

/* The address a client would get for the service's name: of the source's family and network where there is a choice. */
static bool pick_vip(const struct zt_service *s, const struct zt_workload *src, struct zt_ip *out)
{
    int best = -1;
    for (unsigned i = 0; i < s->n_vips; i++) {
        const struct zt_vip *v = &s->vips[i];
        int rank = (strcmp(v->network, src->network) == 0 ? 2 : 0) + (v->cidr.ip.family == src->ips[0].family ? 1 : 0);
        if (!v->exact || rank <= best)
            continue;
        best = rank;
        *out = v->cidr.ip;
    }
    return best >= 0;
}

static enum zt_err resolve_host(struct explain *e, struct zt_error *err)
{
    e->service = zt_store_service_by_hostname(e->store, e->host, e->src->ns);
    if (!e->service)
        return zt_error_set(err, ZT_NOT_FOUND, "%s is neither an address nor the full hostname of a known service", e->host);
    if (!pick_vip(e->service, e->src, &e->dst.ip))
        return zt_error_set(err, ZT_INVALID, "service %s has no address of its own; name an endpoint's address", e->host);
    return ZT_OK;
}

static enum zt_err parse_destination(struct explain *e, const char *text, struct zt_error *err)
{
    const char *colon = text ? strrchr(text, ':') : NULL;
    char *end;
    if (!colon || colon == text || !colon[1])
        return zt_error_set(err, ZT_INVALID, "the destination is written ADDRESS:PORT or HOSTNAME:PORT");
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (*end || port == 0 || port > 65535 || colon[1] < '0' || colon[1] > '9')
        return zt_error_set(err, ZT_INVALID, "%s is not a port", colon + 1);
    e->host = zt_strndup(text, (size_t)(colon - text));
    if (zt_addr_parse(text, &e->dst))
        return ZT_OK;
    e->dst.port = (uint16_t)port;
    return resolve_host(e, err);
}

/* ---- the answer ---- */

static void write_texts(struct zt_json *j, const char *key, char *const *list, unsigned n)
{
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < n; i++)
        zt_json_str(j, list[i]);
    zt_json_array_end(j);
}

static void write_name(struct zt_json *j, const char *key, const char *ns, const char *name)
{
    struct zt_str s;
    zt_str_init(&s, 1024);
    zt_str_addf(&s, "%s/%s", ns, name);
    zt_json_key_str(j, key, zt_str_cstr(&s));
    zt_str_fini(&s);
}

static void write_route(struct zt_json *j, const struct zt_route *r)
{
    static const char *const kinds[] = {"TCP", "HBONE", "DOUBLEHBONE"};
    char text[ZT_ADDR_TEXT_MAX];
    zt_json_key(j, "route");
    zt_json_object(j);
    if (r->kind != ZT_ROUTE_TCP)
        zt_json_key_str(j, "authority", r->authority);
    if (r->dst_workload)
        write_name(j, "endpoint", r->dst_workload->ns, r->dst_workload->name);
    write_texts(j, "expectedIdentities", r->sans, r->n_sans);
    if (r->n_inner_sans)
        write_texts(j, "innerExpectedIdentities", r->inner_sans, r->n_inner_sans);
    if (!r->needs_dns)
        zt_json_key_str(j, "nextHop", zt_addr_format(&r->next_hop, text));
    zt_json_key_str(j, "protocol", kinds[r->kind]);
    if (r->dst_service)
        write_name(j, "service", r->dst_service->ns, r->dst_service->hostname);
    zt_json_key_bool(j, "viaWaypoint", r->via_waypoint);
    zt_json_object_end(j);
}

/* What the destination's proxy will look at: for a tunnel the address in the authority, else what is dialled. */
static bool authz_request(const struct explain *e, const struct zt_route *r, char identity[static ZT_IDENTITY_MAX],
                          struct zt_authz_request *out)
{
    *out = (struct zt_authz_request){.src = {.ip = e->src->ips[0]}, .dst = r->next_hop};
    if (r->kind == ZT_ROUTE_TCP)
        return true;
    out->identity = zt_workload_identity(e->src, identity) ? identity : NULL;
    return r->kind == ZT_ROUTE_HBONE && !r->via_waypoint && zt_addr_parse(r->authority, &out->dst);
}

static void write_verdict(struct zt_json *j, struct explain *e, const struct zt_workload *dst,
                          const struct zt_authz_request *request)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_str trace;
    zt_str_init(&trace, TRACE_BYTES_MAX);
    bool allowed = zt_authz_decide(e->store, dst, request, &trace, &err) == ZT_OK;
    if (!allowed)
        zt_json_key_str(j, "reason", err.text);
    if (request->identity)
        zt_json_key_str(j, "sourceIdentity", request->identity);
    zt_ctl_write_steps(j, &trace);
    zt_json_key_str(j, "verdict", allowed ? "allow" : "deny");
    zt_str_fini(&trace);
}

/* "decidedBy" names the daemon whose verdict counts; ours about another node's workload is what that one would say too, as long as both
 * have the same policies. */
static void write_authorization(struct zt_json *j, struct explain *e, const struct zt_route *r)
{
    char identity[ZT_IDENTITY_MAX];
    struct zt_authz_request request;
    const struct zt_workload *dst = r->dst_workload;
    const char *node = e->sources->state.config->node_name;
    bool known = authz_request(e, r, identity, &request);
    zt_json_key(j, "authorization");
    zt_json_object(j);
    if (!dst) {
        zt_json_key_str(j, "decidedBy", "nobody");
        zt_json_key_str(j, "reason", "the destination is not a workload of the mesh");
        zt_json_key_str(j, "verdict", "none");
    } else if (!known) {
        zt_json_key_str(j, "decidedBy", r->via_waypoint ? "the waypoint" : "the network gateway and the cluster behind it");
        zt_json_key_str(j, "reason", "its policies are not this daemon's to judge");
        zt_json_key_str(j, "verdict", "unknown");
    } else {
        bool here = !node || !*dst->node || strcmp(node, dst->node) == 0;
        zt_json_key_str(j, "decidedBy", here ? "this node" : "the other node");
        if (*dst->node)
            zt_json_key_str(j, "node", dst->node);
        write_verdict(j, e, dst, &request);
    }
    zt_json_object_end(j);
}

static void write_answer(struct zt_json *j, struct explain *e)
{
    char text[ZT_ADDR_TEXT_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_route route = {0};
    struct zt_str trace;
    struct zt_route_query query = {
        .src = e->src, .client = {.ip = e->src->ips[0]}, .dst = e->dst, .trace = &trace};
    zt_str_init(&trace, TRACE_BYTES_MAX);
    enum zt_err rc = zt_route_resolve(e->store, &query, &route, &err);
    zt_json_object(j);
    if (rc == ZT_OK)
        write_authorization(j, e, &route);
    zt_json_key_str(j, "destination", zt_addr_format(&e->dst, text));
    if (e->service)
        zt_json_key_str(j, "hostname", e->service->hostname);
    if (rc == ZT_OK) {
        write_route(j, &route);
    } else {
        struct zt_str error;
        zt_str_init(&error, 1024);
        zt_str_addf(&error, "%s%s", zt_err_prefix(rc), err.text);
        zt_json_key_str(j, "routeError", zt_str_cstr(&error));
        zt_str_fini(&error);
    }
    write_name(j, "source", e->src->ns, e->src->name);
    zt_ctl_write_steps(j, &trace);
    zt_json_object_end(j);
    zt_str_fini(&trace);
    zt_route_fini(&route);
}

static void explain_free(struct explain *e)
{
    zt_workload_unref(e->src);
    zt_service_unref(e->service);
    zt_free(e->ns);
    zt_free(e->name);
    zt_free(e->host);
    zt_free(e);
}

static void refuse(struct explain *e, const struct zt_error *err)
{
    zt_ctl_reply_error(e->request, err->code == ZT_NOT_FOUND ? 404 : 400, "%s", err->text);
    explain_free(e);
}

/* The source is found, or nowhere. */
static void finish(struct explain *e)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_str body;
    struct zt_json j;
    if (check_source(e, &err) != ZT_OK || parse_destination(e, zt_http1_request_query(e->request, "dst"), &err) != ZT_OK) {
        refuse(e, &err);
        return;
    }
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, true);
    write_answer(&j, e);
    zt_ctl_reply_json(e->request, &body);
    explain_free(e);
}

/* Thread: control. */
static void on_searched(struct zt_msg *m)
{
    finish(zt_container_of(m, struct explain, msg));
}

/* Thread: helper. */
static void on_search(struct zt_msg *m)
{
    struct explain *e = zt_container_of(m, struct explain, msg);
    e->src = search_all(e->store, e->ns, e->name);
    e->msg.run = on_searched;
    zt_loop_post(e->control, &e->msg);
}

void zt_ctl_on_explain(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    struct explain *e = zt_new(struct explain);
    struct zt_error err = ZT_ERROR_INIT;
    e->request = r;
    e->control = zt_http1_request_loop(r);
    e->sources = sources;
    e->store = sources->state.store;
    if (parse_source(e, zt_http1_request_query(r, "src"), &err) != ZT_OK) {
        refuse(e, &err);
    } else if (e->src) {
        finish(e);
    } else {
        e->msg.run = on_search;
        zt_loop_post(sources->state.helper, &e->msg);
    }
}
