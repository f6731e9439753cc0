/* GET /v1/connections and /v1/policies: lists for `ztctl connections`, `top` and `policies`, and for the home page. */
#include "app/ctl_impl.h"
#include "app/dump_records.h"
#include "zt/base/mem.h"
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS_DEFAULT 1000
#define CONNECTIONS_MAX 100000

/* ---- connections ---- */

enum order { BY_POD, BY_BYTES, BY_AGE };

struct connections {
    const struct zt_ctl_sources *sources;
    struct zt_http1_request *request;
    const char *pod, *peer; /* filters, or NULL; borrowed from the request */
    enum order order;
    unsigned long limit;
};

struct row {
    const struct zt_proxy_pod_info *pod;
    const struct zt_proxy_conn_info *conn;
};

static bool is_pod(const struct zt_proxy_pod_info *p, const char *wanted)
{
    size_t n = strlen(p->ns);
    if (!wanted || strcmp(p->name, wanted) == 0)
        return true;
    return strncmp(p->ns, wanted, n) == 0 && wanted[n] == '/' && strcmp(p->name, wanted + n + 1) == 0;
}

static bool has(const char *text, const char *part)
{
    return text && strstr(text, part);
}

/* The far end: the client of an inbound connection, the server of an outbound one. */
static bool is_peer(const struct zt_proxy_conn_info *c, const char *wanted)
{
    return !wanted || has(c->peer_identity, wanted) || has(c->original_dst, wanted) || has(c->inbound ? c->src : c->actual_dst, wanted);
}

static uint64_t bytes_of(const struct row *r)
{
    return r->conn->bytes_received + r->conn->bytes_sent;
}

static int more_bytes_first(const void *a, const void *b)
{
    uint64_t x = bytes_of(a), y = bytes_of(b);
    return (x < y) - (x > y);
}

static int older_first(const void *a, const void *b)
{
    uint64_t x = ((const struct row *)a)->conn->age_ms, y = ((const struct row *)b)->conn->age_ms;
    return (x < y) - (x > y);
}

static void write_row(struct zt_json *j, const struct row *r)
{
    const struct zt_proxy_conn_info *c = r->conn;
    zt_json_object(j);
    zt_json_key_str(j, "actualDst", c->actual_dst);
    zt_json_key_u64(j, "ageMs", c->age_ms);
    zt_json_key_u64(j, "bytesFromClient", c->bytes_received);
    zt_json_key_u64(j, "bytesToClient", c->bytes_sent);
    zt_json_key_str(j, "direction", c->inbound ? "inbound" : "outbound");
    zt_json_key_u64(j, "id", c->id);
    zt_json_key_str(j, "name", r->pod->name);
    zt_json_key_str(j, "namespace", r->pod->ns);
    zt_json_key_str(j, "originalDst", c->original_dst);
    zt_json_key_str(j, "peerIdentity", c->peer_identity);
    zt_json_key_str(j, "protocol", c->protocol);
    zt_json_key_str(j, "src", c->src);
    zt_json_object_end(j);
}

static size_t collect(const struct connections *q, const struct zt_proxy_snapshot *snap, struct row *rows)
{
    size_t n = 0;
    for (unsigned i = 0; i < snap->n_pods; i++) {
        const struct zt_proxy_pod_info *p = &snap->pods[i];
        for (unsigned k = 0; k < p->n_conns && is_pod(p, q->pod); k++)
            if (is_peer(&p->conns[k], q->peer))
                rows[n++] = (struct row){p, &p->conns[k]};
    }
    return n;
}

static void write_connections(const struct connections *q, const struct zt_proxy_snapshot *snap, struct zt_str *body)
{
    struct zt_json j;
    size_t all = 0;
    for (unsigned i = 0; i < snap->n_pods; i++)
        all += snap->pods[i].n_conns;
    struct row *rows = zt_new_n(struct row, all + 1);
    size_t n = collect(q, snap, rows);
    if (q->order != BY_POD)
        qsort(rows, n, sizeof *rows, q->order == BY_BYTES ? more_bytes_first : older_first);
    zt_json_init(&j, body, true);
    zt_json_object(&j);
    zt_json_key(&j, "connections");
    zt_json_array(&j);
    for (size_t i = 0; i < n && i < q->limit; i++)
        write_row(&j, &rows[i]);
    zt_json_array_end(&j);
    zt_json_key_u64(&j, "total", n);
    zt_json_object_end(&j);
    zt_free(rows);
}

static void on_snapshot(void *arg, const struct zt_proxy_snapshot *snap)
{
    struct connections *q = arg;
    struct zt_str body;
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    if (snap) {
        write_connections(q, snap, &body);
        zt_ctl_reply_json(q->request, &body);
    } else {
        zt_ctl_reply_error(q->request, 503, "shutting down");
    }
    zt_free(q);
}

void zt_ctl_on_connections(void *arg, struct zt_http1_request *r)
{
    const char *sort = zt_http1_request_query(r, "sort");
    unsigned long limit;
    if (sort && strcmp(sort, "bytes") != 0 && strcmp(sort, "age") != 0) {
        zt_ctl_reply_error(r, 400, "sort is bytes or age, not %s", sort);
        return;
    }
    if (!zt_ctl_number(r, "limit", CONNECTIONS_DEFAULT, CONNECTIONS_MAX, &limit))
        return;
    struct connections *q = zt_new(struct connections);
    *q = (struct connections){
        .sources = arg,
        .request = r,
        .pod = zt_http1_request_query(r, "pod"),
        .peer = zt_http1_request_query(r, "peer"),
        .order = !sort ? BY_POD : *sort == 'b' ? BY_BYTES : BY_AGE,
        .limit = limit,
    };
    zt_proxy_snapshot(q->sources->state.proxy, on_snapshot, q);
}

/* ---- policies ---- */

void zt_ctl_on_policies(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    struct zt_str body;
    struct zt_json j;
    size_t n;
    struct zt_policy **list = zt_store_snapshot_policies(sources->state.store, &n);
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, true);
    zt_json_array(&j);
    for (size_t i = 0; i < n; i++)
        zt_dump_policy(&j, list[i]);
    zt_json_array_end(&j);
    zt_store_snapshot_policies_free(list, n);
    zt_ctl_reply_json(r, &body);
}
