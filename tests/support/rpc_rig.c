#include "support/rpc_rig.h"

#include "support/net_fixture.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void make_certs(struct rpc_rig *r, const struct zt_test_cert_opts *cert)
{
    static const struct zt_test_cert_opts usual = {.dns = "localhost", .ip = "127.0.0.1"};
    r->root = zt_test_root_named("mesh root");
    r->leaf = zt_test_issue(r->root, cert ? cert : &usual);
    r->root_pem = zt_test_certs_pem((const struct zt_test_cert *const[]){r->root}, 1);
    r->chain_pem = zt_test_certs_pem((const struct zt_test_cert *const[]){r->leaf}, 1);
    r->key_pem = zt_test_key_pem(r->leaf);
}

static void free_certs(struct rpc_rig *r)
{
    zt_test_cert_free(r->root);
    zt_test_cert_free(r->leaf);
    zt_free(r->root_pem);
    zt_free(r->chain_pem);
    zt_free(r->key_pem);
}

void rpc_rig_init(struct rpc_rig *r, const struct grpc_server_opts *o,
                  const struct zt_test_cert_opts *cert)
{
    struct zt_error err = ZT_ERROR_INIT;
    *r = (struct rpc_rig){0};
    zt_fmt(r->dir, sizeof r->dir, "/tmp/zt-rpc-test-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    make_certs(r, cert);
    r->loop = zt_loop_new("zt-test");
    if (zt_rpc_new(r->loop, false, &r->rpc, &err) != ZT_OK)
        fail_msg("%s", err.text);
    if (o)
        r->opts = *o;
    rpc_rig_restart(r);
}

void rpc_rig_stop(struct rpc_rig *r)
{
    grpc_server_rig_free(r->server);
    r->server = NULL;
}

void rpc_rig_restart(struct rpc_rig *r)
{
    rpc_rig_stop(r);
    r->opts.chain_pem = r->chain_pem;
    r->opts.key_pem = r->key_pem;
    r->server = grpc_server_rig_new(&r->opts);
    r->opts.port = grpc_server_rig_port(r->server);
    zt_fmt(r->address, sizeof r->address, "https://localhost:%u", r->opts.port);
}

void rpc_rig_renew_certs(struct rpc_rig *r)
{
    free_certs(r);
    make_certs(r, NULL);
}

static void remove_dir(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    char file[400];
    while (d && (e = readdir(d)))
        if (e->d_name[0] != '.' && zt_fmt(file, sizeof file, "%s/%s", path, e->d_name))
            unlink(file);
    if (d)
        closedir(d);
    rmdir(path);
}

void rpc_rig_fini(struct rpc_rig *r)
{
    zt_rpc_free(r->rpc);
    zt_loop_free(r->loop);
    rpc_rig_stop(r);
    free_certs(r);
    remove_dir(r->dir);
}

struct zt_rpc_channel_config rpc_rig_config(const struct rpc_rig *r)
{
    return (struct zt_rpc_channel_config){
        .address = r->address,
        .root_ca = r->root_pem,
        .cluster_id = "Kubernetes",
        .receive_bytes_max = ZT_RPC_ADS_RECEIVE_BYTES,
        .fresh = true,
    };
}

const char *rpc_rig_write(struct rpc_rig *r, const char *name, const char *text)
{
    static char path[2][200];
    static unsigned turn;
    char *p = path[turn++ % 2];
    zt_fmt(p, sizeof path[0], "%s/%s", r->dir, name);
    FILE *f = fopen(p, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    return p;
}

/* ---- recorder ---- */

static void on_message(void *owner, struct zt_rpc_message *m)
{
    struct rpc_log *l = owner;
    assert_true(l->n_messages < RPC_LOG_MAX || l->drop);
    assert_int_equal(l->n_status, 0);
    if (l->drop)
        zt_rpc_message_free(m);
    else
        l->messages[l->n_messages] = m;
    l->n_messages++;
    if (l->free_on_message) {
        zt_rpc_call_free(l->call);
        l->call = NULL;
    } else if (!l->hold) {
        zt_rpc_call_next(l->call);
    }
}

static void on_status(void *owner, const struct zt_rpc_status *status)
{
    struct rpc_log *l = owner;
    l->status = *status;
    l->n_status++;
    zt_rpc_call_free(l->call);
    l->call = NULL;
}

const struct zt_rpc_events rpc_log_events = {.on_message = on_message, .on_status = on_status};

void rpc_log_open(struct rpc_log *l, struct rpc_rig *r, struct zt_rpc_channel *c)
{
    struct zt_error err = ZT_ERROR_INIT;
    l->rig = r;
    if (zt_rpc_stream_open(c, "/test.Service/Stream", &rpc_log_events, l, &l->call, &err) != ZT_OK)
        fail_msg("%s", err.text);
}

void rpc_log_unary(struct rpc_log *l, struct rpc_rig *r, struct zt_rpc_channel *c,
                   uint64_t timeout_ms)
{
    struct zt_error err = ZT_ERROR_INIT;
    l->rig = r;
    if (zt_rpc_unary_start(c, "/test.Service/Ask", "ask", 3, timeout_ms, &rpc_log_events, l,
                           &l->call, &err) != ZT_OK)
        fail_msg("%s", err.text);
}

void rpc_log_fini(struct rpc_log *l)
{
    zt_rpc_call_free(l->call);
    for (unsigned i = 0; i < l->n_messages && !l->drop; i++)
        zt_rpc_message_free(l->messages[i]);
    *l = (struct rpc_log){0};
}

/* ---- waiting ---- */

struct wait {
    struct rpc_log *log;
    struct rpc_rig *rig;
    struct grpc_server_call *call;
    unsigned n;
};

static bool has_messages(void *arg)
{
    struct wait *w = arg;
    return w->log->n_messages >= w->n;
}

static bool has_status(void *arg)
{
    struct wait *w = arg;
    return w->log->n_status > 0;
}

static bool has_calls(void *arg)
{
    struct wait *w = arg;
    return grpc_server_rig_calls(w->rig->server) >= w->n;
}

static bool has_received(void *arg)
{
    struct wait *w = arg;
    return grpc_server_call_messages(w->call) >= w->n;
}

static bool is_closed(void *arg)
{
    struct wait *w = arg;
    return grpc_server_call_closed(w->call);
}

/* Several times the usual patience: large messages, sanitizers, a busy machine. */
static bool wait_long(struct rpc_rig *r, bool (*cond)(void *arg), struct wait *w)
{
    for (unsigned i = 0; i < 5; i++)
        if (zt_test_run_until(r->loop, cond, w))
            return true;
    return false;
}

void rpc_log_wait_messages(struct rpc_log *l, unsigned n)
{
    if (!wait_long(l->rig, has_messages, &(struct wait){.log = l, .n = n}))
        fail_msg("%u messages of %u; status %s %s", l->n_messages, n,
                 l->n_status ? zt_rpc_code_name(l->status.code) : "none", l->status.text);
}

void rpc_log_wait_status(struct rpc_log *l)
{
    assert_true(wait_long(l->rig, has_status, &(struct wait){.log = l}));
}

struct grpc_server_call *rpc_rig_wait_call(struct rpc_rig *r, unsigned n)
{
    assert_true(wait_long(r, has_calls, &(struct wait){.rig = r, .n = n}));
    return grpc_server_rig_call(r->server, n - 1);
}

void rpc_rig_wait_received(struct rpc_rig *r, struct grpc_server_call *c, unsigned n)
{
    assert_true(wait_long(r, has_received, &(struct wait){.call = c, .n = n}));
}

void rpc_rig_wait_closed(struct rpc_rig *r, struct grpc_server_call *c)
{
    assert_true(wait_long(r, is_closed, &(struct wait){.call = c}));
}
