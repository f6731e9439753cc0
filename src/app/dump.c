/* The config dump.
 *
 * A request travels: control asks the workers for their connections (one message to each and back); the helper thread takes retained,
 * sorted snapshots of the records, which takes tens of milliseconds for 100,000; control then writes the document section by section, a
 * bounded number of records per piece, while the client reads: never more than a piece of the text is held.
 *
 *   sections, in order of their keys: certificates config policies services stagedServices staticConfig version workloadState workloads */
#include "zt/app/dump.h"
#include "app/dump_records.h"
#include "app/dump_certs.h"
#include "zt/app/version.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/config/dump.h"
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES 65536 /* a piece ends with the record that reaches this */

struct dump;
/* Writes a section's next record, or its whole value. False: the section is complete. */
typedef bool (*section_fn)(struct dump *d);

struct section {
    const char *key; /* NULL: goes on inside the section before */
    section_fn write;
};

struct dump {
    struct zt_msg msg; /* to the helper and back */
    const struct zt_dump_sources *sources;
    struct zt_loop *control;
    struct zt_http1_request *request;
    struct zt_json json;
    unsigned section;
    bool opened, in_section;
    size_t at; /* the next record of the section */
    struct zt_str connections; /* workloadState, written when the workers answered */
    struct zt_dump_certs *certs;
    struct zt_workload **workloads;
    struct zt_service **services;
    struct zt_policy **policies;
    size_t n_workloads, n_services, n_policies;
};

/* ---- sections ---- */

static bool write_certificates(struct dump *d)
{
    if (d->at == 0)
        zt_json_array(&d->json);
    if (zt_dump_certs_write(d->certs, d->at, &d->json)) {
        d->at++;
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static bool write_config(struct dump *d)
{
    zt_config_write_json(d->sources->config, &d->json);
    return false;
}

static bool write_policies(struct dump *d)
{
    if (d->at == 0)
        zt_json_array(&d->json);
    if (d->at < d->n_policies) {
        zt_dump_policy(&d->json, d->policies[d->at++]);
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static bool write_services(struct dump *d)
{
    if (d->at == 0)
        zt_json_array(&d->json);
    if (d->at < d->n_services) {
        zt_dump_service(&d->json, d->sources->store, d->services[d->at++]);
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static bool write_staged(struct dump *d)
{
    zt_dump_staged(&d->json, d->sources->store);
    return false;
}

/* What the local file delivered last and the store still holds: policies, services, workloads. */
static bool write_static_policies(struct dump *d)
{
    if (d->at == 0) {
        zt_json_object(&d->json);
        zt_json_key(&d->json, "policies");
        zt_json_array(&d->json);
    }
    for (; d->at < d->n_policies; d->at++) {
        if (d->policies[d->at]->origin != ZT_ORIGIN_FILE)
            continue;
        zt_dump_policy(&d->json, d->policies[d->at++]);
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static bool write_static_services(struct dump *d)
{
    if (d->at == 0) {
        zt_json_key(&d->json, "services");
        zt_json_array(&d->json);
    }
    for (; d->at < d->n_services; d->at++) {
        if (d->services[d->at]->origin != ZT_ORIGIN_FILE)
            continue;
        zt_dump_service(&d->json, d->sources->store, d->services[d->at++]);
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static bool write_static_workloads(struct dump *d)
{
    if (d->at == 0) {
        zt_json_key(&d->json, "workloads");
        zt_json_array(&d->json);
    }
    for (; d->at < d->n_workloads; d->at++) {
        if (d->workloads[d->at]->origin != ZT_ORIGIN_FILE)
            continue;
        zt_dump_workload(&d->json, d->workloads[d->at++], true);
        return true;
    }
    zt_json_array_end(&d->json);
    zt_json_object_end(&d->json);
    return false;
}

static bool write_version(struct dump *d)
{
    zt_version_write_json(&d->json);
    return false;
}

/* The text was written with the right indentation; it goes out as it is. */
static bool write_connections(struct dump *d)
{
    d->json.after_key = false;
    zt_str_add_n(d->json.out, d->connections.data, d->connections.len);
    zt_str_fini(&d->connections);
    return false;
}

static bool write_workloads(struct dump *d)
{
    if (d->at == 0)
        zt_json_array(&d->json);
    if (d->at < d->n_workloads) {
        zt_dump_workload(&d->json, d->workloads[d->at++], false);
        return true;
    }
    zt_json_array_end(&d->json);
    return false;
}

static const struct section sections[] = {
    {"certificates", write_certificates},
    {"config", write_config},
    {"policies", write_policies},
    {"services", write_services},
    {"stagedServices", write_staged},
    {"staticConfig", write_static_policies},
    {NULL, write_static_services},
    {NULL, write_static_workloads},
    {"version", write_version},
    {"workloadState", write_connections},
    {"workloads", write_workloads},
};
#define N_SECTIONS (sizeof sections / sizeof *sections)

static bool is_skipped(const struct dump *d)
{
    return sections[d->section].write == write_connections && !d->sources->pods;
}

static void write_some(struct dump *d)
{
    const struct section *s = &sections[d->section];
    if (!d->in_section) {
        d->in_section = true;
        d->at = 0;
        if (s->key && !is_skipped(d))
            zt_json_key(&d->json, s->key);
    }
    if (!is_skipped(d) && s->write(d))
        return;
    d->in_section = false;
    d->section++;
}

static bool next_piece(void *arg, struct zt_str *piece)
{
    struct dump *d = arg;
    d->json.out = piece;
    if (!d->opened) {
        d->opened = true;
        zt_json_object(&d->json);
    }
    while (d->section < N_SECTIONS && piece->len < PIECE_BYTES)
        write_some(d);
    if (d->section < N_SECTIONS)
        return true;
    zt_json_object_end(&d->json);
    return false;
}

static void dump_free(void *arg)
{
    struct dump *d = arg;
    zt_str_fini(&d->connections);
    zt_dump_certs_free(d->certs);
    zt_store_snapshot_workloads_free(d->workloads, d->n_workloads);
    zt_store_snapshot_services_free(d->services, d->n_services);
    zt_store_snapshot_policies_free(d->policies, d->n_policies);
    zt_free(d);
}

/* ---- workloadState ---- */

struct state_writer {
    struct zt_json json;
    const struct zt_proxy_snapshot *snap;
};

static void write_connection(struct zt_json *j, const struct zt_proxy_conn_info *c)
{
    zt_json_object(j);
    zt_json_key_str(j, "actualDst", c->actual_dst);
    zt_json_key_str(j, "originalDst", c->original_dst);
    zt_json_key_str(j, "protocol", c->protocol);
    zt_json_key_str(j, "src", c->src);
    zt_json_object_end(j);
}

static void write_direction(struct zt_json *j, const char *key, const struct zt_proxy_pod_info *pod, bool inbound)
{
    zt_json_key(j, key);
    zt_json_array(j);
    for (unsigned i = 0; i < pod->n_conns; i++)
        if (pod->conns[i].inbound == inbound)
            write_connection(j, &pod->conns[i]);
    zt_json_array_end(j);
}

static int compare_pods(const void *key, const void *element)
{
    return strcmp(key, ((const struct zt_proxy_pod_info *)element)->uid);
}

static void on_pod(void *arg, const char *uid, const struct zt_pod_info *info, const char *pending)
{
    struct state_writer *w = arg;
    struct zt_json *j = &w->json;
    const struct zt_proxy_pod_info *pod = NULL;
    if (!pending && w->snap->n_pods)
        pod = bsearch(uid, w->snap->pods, w->snap->n_pods, sizeof *pod, compare_pods);
    zt_json_key(j, uid);
    zt_json_object(j);
    if (pod) {
        zt_json_key(j, "connections");
        zt_json_object(j);
        write_direction(j, "inbound", pod, true);
        write_direction(j, "outbound", pod, false);
        zt_json_object_end(j);
    }
    zt_json_key(j, "info");
    zt_json_object(j);
    zt_json_key_str(j, "name", info->name);
    zt_json_key_str(j, "namespace", info->ns);
    zt_json_key_str(j, "serviceAccount", info->service_account);
    zt_json_object_end(j);
    if (pending)
        zt_json_key_str(j, "reason", pending);
    zt_json_key_str(j, "state", pending ? "Pending" : "Up");
    zt_json_object_end(j);
}

/* One object value at depth 1 of the document. */
static void write_workload_state(struct dump *d, const struct zt_proxy_snapshot *snap)
{
    struct state_writer w = {.snap = snap};
    zt_json_init(&w.json, &d->connections, true);
    w.json.depth = 1;
    w.json.after_key = true;
    zt_json_object(&w.json);
    zt_pods_each(d->sources->pods, on_pod, &w);
    zt_json_object_end(&w.json);
}

/* ---- the request ---- */

/* Thread: control. */
static void on_taken(struct zt_msg *m)
{
    struct dump *d = zt_container_of(m, struct dump, msg);
    zt_http1_reply_stream(d->request, 200, "application/json", next_piece, dump_free, d);
}

/* Thread: helper. */
static void on_take(struct zt_msg *m)
{
    struct dump *d = zt_container_of(m, struct dump, msg);
    struct zt_store *store = d->sources->store;
    d->workloads = zt_store_snapshot_workloads(store, &d->n_workloads);
    d->services = zt_store_snapshot_services(store, &d->n_services);
    d->policies = zt_store_snapshot_policies(store, &d->n_policies);
    d->msg.run = on_taken;
    zt_loop_post(d->control, &d->msg);
}

static void on_snapshot(void *arg, const struct zt_proxy_snapshot *snap)
{
    struct dump *d = arg;
    if (!snap) {
        zt_http1_reply_text(d->request, 503, NULL, "shutting down");
        dump_free(d);
        return;
    }
    if (d->sources->pods)
        write_workload_state(d, snap);
    if (d->connections.overflow) {
        zt_http1_reply_text(d->request, 500, NULL, "too many connections for a dump");
        dump_free(d);
        return;
    }
    d->certs = zt_dump_certs_new(d->sources->secrets);
    d->msg.run = on_take;
    zt_loop_post(d->sources->helper, &d->msg);
}

static void on_config_dump(void *arg, struct zt_http1_request *r)
{
    struct dump *d = zt_new(struct dump);
    d->sources = arg;
    d->request = r;
    d->control = zt_http1_request_loop(r);
    zt_json_init(&d->json, NULL, true);
    zt_str_init(&d->connections, ZT_DUMP_CONNECTIONS_BYTES_MAX);
    zt_proxy_snapshot(d->sources->proxy, on_snapshot, d);
}

void zt_dump_route(struct zt_http1 *s, const struct zt_dump_sources *sources)
{
    zt_http1_route(s, "/config_dump", ZT_HTTP1_ANY, on_config_dump, (void *)(uintptr_t)sources);
}
