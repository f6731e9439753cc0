/* GET /v1/dns: the DNS proxy's cache and upstreams; with src=NS/NAME and name=HOST what that pod would be told, by the very function that
 * the proxy calls, with the aliases it tried. Nothing is asked. */
#include "app/ctl_impl.h"
#include "zt/base/mem.h"
#include <string.h>

#define TRACE_BYTES_MAX (64 * 1024)

static void write_ips(struct zt_json *j, const char *key, const struct zt_name_answer *a)
{
    char text[ZT_IP_TEXT_MAX];
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < a->n_ips; i++)
        zt_json_str(j, zt_ip_format(&a->ips[i], text));
    zt_json_array_end(j);
}

static void write_answer(struct zt_json *j, struct zt_proxy *proxy, const struct zt_workload *client, const char *name)
{
    struct zt_name_answer v4 = {0}, v6 = {0};
    struct zt_str trace;
    zt_str_init(&trace, TRACE_BYTES_MAX);
    bool ours = zt_proxy_dns_resolve(proxy, client, name, ZT_IPV4, &trace, &v4);
    zt_proxy_dns_resolve(proxy, client, name, ZT_IPV6, NULL, &v6);
    zt_json_key(j, "answer");
    zt_json_object(j);
    zt_json_key_str(j, "source", client->uid);
    zt_json_key_str(j, "name", name);
    zt_json_key_bool(j, "fromState", ours);
    if (ours) {
        zt_json_key_str(j, "matched", v4.matched);
        if (v4.owner[0])
            zt_json_key_str(j, "alias", v4.owner);
        write_ips(j, "a", &v4);
        write_ips(j, "aaaa", &v6);
    }
    zt_ctl_write_steps(j, &trace);
    zt_json_object_end(j);
    zt_str_fini(&trace);
    zt_name_answer_fini(&v4);
    zt_name_answer_fini(&v6);
}

/* The pod, or NULL, and answered. */
static struct zt_workload *find_client(const struct zt_ctl_sources *sources, struct zt_http1_request *r, const char *src)
{
    const char *slash = strchr(src, '/');
    if (!slash || slash == src || !slash[1]) {
        zt_ctl_reply_error(r, 400, "the source is written NAMESPACE/POD");
        return NULL;
    }
    char *ns = zt_strndup(src, (size_t)(slash - src));
    struct zt_workload *w = zt_ctl_local_workload(sources, ns, slash + 1);
    zt_free(ns);
    if (!w)
        zt_ctl_reply_error(r, 404, "no pod %s of this node is known with its workload", src);
    return w;
}

void zt_ctl_on_dns(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    const char *src = zt_http1_request_query(r, "src"), *name = zt_http1_request_query(r, "name");
    struct zt_workload *client = NULL;
    struct zt_dns_query q;
    struct zt_str body;
    struct zt_json j;
    if (!src != !name) {
        zt_ctl_reply_error(r, 400, "give both, the pod that asks and the name, or neither");
        return;
    }
    if (name && (!zt_dns_query_from_text(name, ZT_DNS_A, &q) || !q.name[0])) {
        zt_ctl_reply_error(r, 400, "%.100s is no name", name);
        return;
    }
    if (src && !(client = find_client(sources, r, src)))
        return;
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, true);
    zt_json_object(&j);
    if (client)
        write_answer(&j, sources->state.proxy, client, q.name);
    zt_proxy_dns_dump(sources->state.proxy, &j);
    zt_json_object_end(&j);
    zt_workload_unref(client);
    zt_ctl_reply_json(r, &body);
}
