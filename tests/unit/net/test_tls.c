/* The TLS stream: bytes, ends, back-pressure, KeyUpdates, and what a hostile or foreign peer may send after the handshake. */
#include "net/tls_impl.h"
#include "support/net_fixture.h"
#include "support/stream_mem.h"
#include "support/tls_rig.h"
#include "zt/base/mem.h"
#include "zt/net/tcp.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define CLIENT_ID "spiffe://cluster.local/ns/ns1/sa/client"
#define SERVER_ID "spiffe://cluster.local/ns/ns2/sa/server"

struct rig {
    struct zt_loop *loop;
    struct zt_test_cert *root, *leaf;
    struct zt_tls_cred *client_cred, *server_cred;
    struct zt_stream *lower[2]; /* borrowed once the handshake has them */
    struct zt_tls_end client, server;
};

static bool both_done(void *arg)
{
    struct rig *r = arg;
    return r->client.n_done && r->server.n_done;
}

/* tcp: over sockets instead of memory. */
static void rig_open(struct rig *r, const struct zt_mem_opts *opts, bool tcp)
{
    memset(r, 0, sizeof(*r));
    r->loop = zt_loop_new("test");
    r->root = zt_test_root_named("root");
    r->leaf = zt_test_leaf(r->root, CLIENT_ID);
    r->client_cred = zt_test_cred_of(r->root, CLIENT_ID);
    r->server_cred = zt_test_cred_of(r->root, SERVER_ID);
    zt_tls_end_init(&r->client);
    zt_tls_end_init(&r->server);
    if (tcp) {
        int a, b;
        zt_test_tcp_pair(&a, &b);
        r->lower[0] = zt_tcp_stream_new(r->loop, a, NULL);
        r->lower[1] = zt_tcp_stream_new(r->loop, b, NULL);
    } else {
        zt_mem_pair(r->loop, opts, &r->lower[0], &r->lower[1]);
    }
}

static void rig_shake(struct rig *r)
{
    zt_tls_end_accept(&r->server, r->loop, r->lower[1], r->server_cred);
    zt_tls_end_connect(&r->client, r->loop, r->lower[0], r->client_cred, SERVER_ID);
    assert_true(zt_test_run_until(r->loop, both_done, r));
    assert_non_null(r->client.s);
    assert_non_null(r->server.s);
}

static void rig_free(struct rig *r)
{
    zt_tls_end_close(&r->client);
    zt_tls_end_close(&r->server);
    zt_tls_cred_unref(r->client_cred);
    zt_tls_cred_unref(r->server_cred);
    zt_test_cert_free(r->root);
    zt_test_cert_free(r->leaf);
    zt_test_run_for_ms(r->loop, 5);
    zt_loop_free(r->loop);
}

static void rig_new(struct rig *r)
{
    rig_open(r, NULL, false);
    rig_shake(r);
}

static bool both_received(void *arg)
{
    struct rig *r = arg;
    return r->client.received >= r->server.to_send && r->server.received >= r->client.to_send;
}

static bool both_ended(void *arg)
{
    struct rig *r = arg;
    return r->client.read_end && r->server.read_end;
}

static bool client_ended(void *arg)
{
    return ((struct rig *)arg)->client.read_end;
}

static bool server_ended(void *arg)
{
    return ((struct rig *)arg)->server.read_end;
}

/* More than 5 s are allowed: sanitizers. */
static bool run_long(struct rig *r, bool (*cond)(void *))
{
    for (int i = 0; i < 12; i++)
        if (zt_test_run_until(r->loop, cond, r))
            return true;
    return false;
}

static void write_text(struct zt_stream *s, const char *text)
{
    size_t accepted;
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
    assert_int_equal(zt_stream_writev(s, &iov, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, strlen(text));
}

/* ---- bytes ---- */

static void transfer(const struct zt_mem_opts *opts, bool tcp, uint64_t up, uint64_t down, size_t chunk_max)
{
    struct rig r;
    rig_open(&r, opts, tcp);
    rig_shake(&r);
    r.client.chunk_max = r.server.chunk_max = chunk_max;
    zt_tls_end_go(&r.client, up, true);
    zt_tls_end_go(&r.server, down, true);
    assert_true(run_long(&r, both_ended));
    assert_int_equal(r.client.received, down);
    assert_int_equal(r.server.received, up);
    assert_false(r.client.mismatch || r.server.mismatch);
    assert_int_equal(r.client.read_end, ZT_EOF);
    assert_int_equal(r.server.read_end, ZT_EOF);
    rig_free(&r);
}

static void tls_carries_64_mib_over_tcp(void **state)
{
    transfer(NULL, true, 64 << 20, 1 << 20, 0);
}

static void tls_carries_bulk_both_ways_in_random_chunks(void **state)
{
    transfer(NULL, true, 8 << 20, 8 << 20, 50000);
    transfer(NULL, true, 1 << 20, 1 << 20, 300);
}

static void tls_carries_bytes_over_random_pieces(void **state)
{
    for (uint32_t seed = 1; seed <= 5; seed++)
        transfer(&(struct zt_mem_opts){.delivery = ZT_MEM_RANDOM, .seed = seed}, false, 300000, 200000, 20000);
}

static void tls_carries_bytes_one_by_one(void **state)
{
    transfer(&(struct zt_mem_opts){.delivery = ZT_MEM_BYTE}, false, 20000, 20000, 0);
}

static void tls_works_with_the_smallest_lower_stream(void **state)
{
    transfer(&(struct zt_mem_opts){.capacity_bytes = ZT_STREAM_PEEK_BYTES_MIN}, false, 500000, 500000, 0);
}

static void tls_inside_tls_carries_bytes(void **state)
{
    struct rig outer, inner;
    rig_new(&outer);
    rig_open(&inner, NULL, false);
    zt_stream_close(inner.lower[0], ZT_OK);
    zt_stream_close(inner.lower[1], ZT_OK);
    struct zt_loop *unused = inner.loop;
    inner.loop = outer.loop;
    inner.lower[0] = outer.client.s;
    inner.lower[1] = outer.server.s;
    outer.client.s = outer.server.s = NULL;
    rig_shake(&inner);
    zt_tls_end_go(&inner.client, 1000000, true);
    zt_tls_end_go(&inner.server, 1000000, true);
    assert_true(run_long(&inner, both_ended));
    assert_int_equal(inner.client.received, 1000000);
    assert_int_equal(inner.server.received, 1000000);
    assert_false(inner.client.mismatch || inner.server.mismatch);
    assert_int_equal(inner.client.read_end, ZT_EOF);
    zt_tls_end_close(&inner.client);
    zt_tls_end_close(&inner.server);
    rig_free(&outer);
    inner.loop = unused;
    rig_free(&inner);
}

static void tls_writes_of_a_turn_are_gathered(void **state)
{
    struct rig r;
    rig_new(&r);
    for (int i = 0; i < 10; i++)
        write_text(r.client.s, "piece");
    assert_int_equal(zt_mem_unread_by_other(r.lower[0]), 0); /* nothing before the end of the turn */
    assert_false(zt_stream_flushed(r.client.s));
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_mem_unread_by_other(r.lower[0]), 10 * (5 + 5 + 1 + 16));
    assert_true(zt_stream_flushed(r.client.s));
    rig_free(&r);
}

static void tls_bulk_fills_records(void **state)
{
    struct rig r;
    const uint8_t *bytes;
    size_t accepted;
    rig_new(&r);
    zt_tls_pattern(0, &bytes);
    struct iovec iov = {(void *)(uintptr_t)bytes, 3 * 16384};
    assert_int_equal(zt_stream_writev(r.client.s, &iov, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, 3 * 16384);
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_mem_unread_by_other(r.lower[0]), 3 * (5 + 16384 + 1 + 16));
    rig_free(&r);
}

/* ---- peek ---- */

static void tls_peek_beyond_what_was_seen_joins_records(void **state)
{
    struct rig r;
    uint8_t *data;
    size_t len;
    rig_new(&r);
    write_text(r.client.s, "one ");
    write_text(r.client.s, "two ");
    write_text(r.client.s, "three");
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    assert_int_equal(len, 4);
    assert_memory_equal(data, "one ", 4);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK); /* nothing is lost by looking again */
    assert_int_equal(len, 4);
    assert_int_equal(zt_stream_peek(r.server.s, 4, &data, &len), ZT_OK);
    assert_memory_equal(data, "one two ", 8);
    zt_stream_consume(r.server.s, 2);
    assert_int_equal(zt_stream_peek(r.server.s, 6, &data, &len), ZT_OK);
    assert_int_equal(len, 11);
    assert_memory_equal(data, "e two three", 11);
    assert_int_equal(zt_stream_peek(r.server.s, 11, &data, &len), ZT_AGAIN);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    assert_memory_equal(data, "e two three", 11);
    write_text(r.client.s, " four");
    zt_stream_shutdown_write(r.client.s);
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_stream_peek(r.server.s, 11, &data, &len), ZT_OK);
    assert_memory_equal(data, "e two three four", 16);
    assert_int_equal(zt_stream_peek(r.server.s, 16, &data, &len), ZT_EOF);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    zt_stream_consume(r.server.s, 16);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_EOF);
    rig_free(&r);
}

static void tls_borrowed_bytes_may_be_changed_in_place(void **state)
{
    struct rig r;
    uint8_t *data;
    size_t len;
    rig_new(&r);
    write_text(r.client.s, "abc");
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    data[1] = 'X';
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    assert_memory_equal(data, "aXc", 3);
    rig_free(&r);
}

/* One record per callback: what is left unopened is announced again. */
struct slow_owner {
    struct zt_stream_owner owner;
    unsigned n_ready, n_records;
    enum zt_err end;
};

static void on_slow_ready(struct zt_stream_owner *owner, struct zt_stream *s, unsigned events)
{
    struct slow_owner *o = zt_container_of(owner, struct slow_owner, owner);
    uint8_t *data;
    size_t len;
    o->n_ready++;
    enum zt_err e = zt_stream_peek(s, 0, &data, &len);
    if (!e) {
        o->n_records++;
        zt_stream_consume(s, len);
    } else if (e != ZT_AGAIN) {
        o->end = e;
        zt_stream_want(s, 0);
    }
}

static void tls_readiness_lasts_until_all_was_shown(void **state)
{
    struct rig r;
    struct slow_owner slow = {.owner.on_ready = on_slow_ready};
    rig_new(&r);
    for (int i = 0; i < 5; i++)
        write_text(r.client.s, "record");
    zt_stream_shutdown_write(r.client.s);
    zt_test_run_for_ms(r.loop, 2);
    zt_stream_own(r.server.s, &slow.owner);
    zt_stream_want(r.server.s, ZT_STREAM_READABLE);
    zt_test_run_for_ms(r.loop, 10);
    assert_int_equal(slow.n_records, 5);
    assert_int_equal(slow.end, ZT_EOF);
    rig_free(&r);
}

static void tls_idle_stream_wakes_nobody(void **state)
{
    struct rig r;
    rig_new(&r);
    zt_tls_end_go(&r.client, 100, false);
    zt_tls_end_go(&r.server, 100, false);
    assert_true(run_long(&r, both_received));
    zt_test_run_for_ms(r.loop, 10);
    unsigned readable = r.client.n_readable, writable = r.client.n_writable;
    zt_test_run_for_ms(r.loop, 50);
    assert_int_equal(r.client.n_readable, readable);
    assert_int_equal(r.client.n_writable, writable);
    assert_true(zt_stream_flushed(r.client.s));
    rig_free(&r);
}

/* ---- ends ---- */

static void tls_half_close_leaves_the_other_direction_open(void **state)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        struct rig r;
        rig_open(&r, NULL, tcp);
        rig_shake(&r);
        zt_tls_end_go(&r.client, 1000, true);
        zt_tls_end_go(&r.server, 0, false);
        assert_true(zt_test_run_until(r.loop, server_ended, &r));
        assert_int_equal(r.server.read_end, ZT_EOF);
        assert_int_equal(r.server.received, 1000);
        zt_tls_end_go(&r.server, 500000, true);
        assert_true(zt_test_run_until(r.loop, client_ended, &r));
        assert_int_equal(r.client.read_end, ZT_EOF);
        assert_int_equal(r.client.received, 500000);
        assert_false(r.client.mismatch);
        rig_free(&r);
    }
}

static void tls_end_without_close_notify_is_a_reset(void **state)
{
    struct rig r;
    rig_new(&r);
    write_text(r.client.s, "last words");
    zt_test_run_for_ms(r.loop, 2);
    zt_mem_inject_read_end(r.lower[1], ZT_EOF);
    zt_tls_end_go(&r.server, 0, false);
    assert_true(zt_test_run_until(r.loop, server_ended, &r));
    assert_int_equal(r.server.received, 10); /* what came before is shown first */
    assert_int_equal(r.server.read_end, ZT_RESET);
    rig_free(&r);
}

static void tls_abortive_close_resets(void **state)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        struct rig r;
        rig_open(&r, NULL, tcp);
        rig_shake(&r);
        zt_tls_end_go(&r.server, 0, false);
        write_text(r.client.s, "never sent");
        zt_stream_close(r.client.s, ZT_RESET);
        r.client.s = NULL;
        assert_true(zt_test_run_until(r.loop, server_ended, &r));
        assert_int_equal(r.server.read_end, ZT_RESET);
        assert_int_equal(r.server.received, 0);
        rig_free(&r);
    }
}

static void tls_orderly_close_flushes_first(void **state)
{
    struct rig r;
    rig_new(&r);
    const uint8_t *bytes;
    size_t accepted;
    zt_tls_pattern(0, &bytes);
    struct iovec iov = {(void *)(uintptr_t)bytes, 200000}; /* more than the lower stream takes at once */
    assert_int_equal(zt_stream_writev(r.client.s, &iov, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, 200000);
    zt_stream_close(r.client.s, ZT_OK);
    r.client.s = NULL;
    zt_tls_end_go(&r.server, 0, false);
    assert_true(zt_test_run_until(r.loop, server_ended, &r));
    assert_int_equal(r.server.received, 200000);
    assert_int_equal(r.server.read_end, ZT_EOF);
    assert_false(r.server.mismatch);
    rig_free(&r);
}

static void tls_orderly_close_leaks_nothing_when_the_loop_ends_first(void **state)
{
    size_t before = zt_mem_live_bytes(), accepted;
    struct rig r;
    rig_open(&r, NULL, true);
    rig_shake(&r);
    const uint8_t *bytes;
    zt_tls_pattern(0, &bytes);
    struct iovec iov = {(void *)(uintptr_t)bytes, 60000};
    enum zt_err e;
    do /* until the socket takes no more */
        e = zt_stream_writev(r.client.s, &iov, 1, &accepted);
    while (e == ZT_OK && accepted == iov.iov_len);
    zt_stream_close(r.client.s, ZT_OK);
    r.client.s = NULL;
    zt_tls_end_close(&r.client);
    zt_tls_end_close(&r.server);
    zt_tls_cred_unref(r.client_cred);
    zt_tls_cred_unref(r.server_cred);
    zt_test_cert_free(r.root);
    zt_test_cert_free(r.leaf);
    zt_loop_free(r.loop);
    assert_in_range(zt_mem_live_bytes(), 0, before + 4096); /* a session stays in its table */
}

static void tls_shutdown_twice_is_once(void **state)
{
    struct rig r;
    rig_new(&r);
    assert_int_equal(zt_stream_shutdown_write(r.client.s), ZT_OK);
    assert_int_equal(zt_stream_shutdown_write(r.client.s), ZT_OK);
    zt_test_run_for_ms(r.loop, 2);
    assert_true(zt_mem_other_shut(r.lower[1]));
    size_t accepted;
    assert_int_equal(zt_stream_writev(r.client.s, &(struct iovec){"x", 1}, 1, &accepted), ZT_RESET);
    zt_tls_end_go(&r.server, 0, false);
    assert_true(zt_test_run_until(r.loop, server_ended, &r));
    assert_int_equal(r.server.read_end, ZT_EOF);
    rig_free(&r);
}

static void tls_write_error_is_final(void **state)
{
    struct rig r;
    size_t accepted;
    rig_new(&r);
    zt_mem_inject_write_error(r.lower[0], ZT_RESET);
    write_text(r.client.s, "into the void");
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_stream_writev(r.client.s, &(struct iovec){"x", 1}, 1, &accepted), ZT_RESET);
    assert_true(zt_stream_flushed(r.client.s));
    rig_free(&r);
}

/* ---- back-pressure ---- */

static void tls_stalled_reader_bounds_the_writer(void **state)
{
    struct rig r;
    rig_new(&r);
    r.server.stop_reading = true;
    zt_tls_end_go(&r.client, 10 << 20, false);
    zt_tls_end_go(&r.server, 0, false);
    zt_test_run_for_ms(r.loop, 30);
    assert_in_range(r.client.sent, 100000, ZT_BUF_LARGE_BYTES + 65536);
    unsigned turns = r.client.n_writable;
    zt_test_run_for_ms(r.loop, 30);
    assert_int_equal(r.client.n_writable, turns); /* and it does not spin */
    r.server.stop_reading = false;
    zt_stream_want(r.server.s, ZT_STREAM_READABLE);
    assert_true(run_long(&r, both_received));
    assert_false(r.server.mismatch);
    rig_free(&r);
}

/* ---- keys ---- */

static void tls_changes_keys_before_the_limit(void **state)
{
    struct rig r;
    struct zt_tls_dir *client[2], *server[2];
    rig_new(&r);
    zt_tls_stream_dirs(r.client.s, &client[0], &client[1]);
    zt_tls_stream_dirs(r.server.s, &server[0], &server[1]);
    client[1]->k.seq = server[0]->k.seq = ZT_TLS_SEQ_UPDATE - 2;
    zt_tls_end_go(&r.client, 200000, true);
    zt_tls_end_go(&r.server, 10, true);
    assert_true(zt_test_run_until(r.loop, both_ended, &r));
    assert_int_equal(r.server.received, 200000);
    assert_false(r.server.mismatch);
    assert_true(client[1]->k.seq < 100 && client[1]->k.seq == server[0]->k.seq);
    rig_free(&r);
}

static void tls_stream_is_rebuilt_from_exported_state(void **state)
{
    struct rig r;
    struct zt_tls_keys in_keys, out_keys;
    struct zt_tls_dir in, out;
    struct zt_stream *lower;
    bool client;
    rig_new(&r);
    zt_tls_end_go(&r.client, 100000, false);
    zt_tls_end_go(&r.server, 100000, false);
    assert_true(run_long(&r, both_received));
    for (int round = 0; round < 3; round++) {
        assert_int_equal(zt_tls_stream_export(r.client.s, &lower, &in_keys, &out_keys, &client), ZT_OK);
        assert_ptr_equal(lower, r.lower[0]);
        assert_true(client);
        assert_int_equal(zt_tls_dir_init_keys(&in, &in_keys, false, NULL), ZT_OK);
        assert_int_equal(zt_tls_dir_init_keys(&out, &out_keys, true, NULL), ZT_OK);
        r.client.s = zt_tls_stream_new(r.loop, lower, &in, &out, client);
        zt_stream_own(r.client.s, &r.client.owner);
        zt_tls_end_go(&r.client, r.client.to_send + 50000, false);
        zt_tls_end_go(&r.server, r.server.to_send + 50000, false);
        assert_true(run_long(&r, both_received));
        assert_false(r.client.mismatch || r.server.mismatch);
    }
    rig_free(&r);
}

static void tls_stream_with_bytes_in_hand_is_not_exported(void **state)
{
    struct rig r;
    struct zt_tls_keys in_keys, out_keys;
    struct zt_stream *lower;
    uint8_t *data;
    size_t len;
    bool client;
    rig_new(&r);
    write_text(r.client.s, "on its way");
    assert_int_equal(zt_tls_stream_export(r.client.s, &lower, &in_keys, &out_keys, &client), ZT_AGAIN);
    zt_test_run_for_ms(r.loop, 2);
    assert_int_equal(zt_stream_peek(r.server.s, 0, &data, &len), ZT_OK);
    assert_int_equal(zt_tls_stream_export(r.server.s, &lower, &in_keys, &out_keys, &client), ZT_AGAIN);
    zt_stream_consume(r.server.s, len);
    assert_int_equal(zt_tls_stream_export(r.server.s, &lower, &in_keys, &out_keys, &client), ZT_OK);
    r.server.s = NULL;
    zt_stream_close(lower, ZT_OK);
    rig_free(&r);
}

/* ---- a hostile or foreign peer ---- */

static void expect_broken(struct rig *r, enum zt_err server_end)
{
    zt_tls_end_go(&r->server, 0, false);
    assert_true(zt_test_run_until(r->loop, server_ended, r));
    assert_int_equal(r->server.read_end, server_end);
}

static void tls_bad_record_ends_both_directions_with_an_alert(void **state)
{
    struct rig r;
    struct zt_tls_dir *in, *out;
    size_t accepted;
    rig_new(&r);
    zt_tls_stream_dirs(r.client.s, &in, &out);
    out->k.seq++; /* the next record will not authenticate */
    write_text(r.client.s, "forged");
    zt_tls_end_go(&r.client, 0, false);
    expect_broken(&r, ZT_TLS);
    assert_int_equal(r.server.received, 0);
    assert_int_equal(zt_stream_writev(r.server.s, &(struct iovec){"x", 1}, 1, &accepted), ZT_TLS);
    assert_true(zt_test_run_until(r.loop, client_ended, &r));
    assert_int_equal(r.client.read_end, ZT_TLS); /* the alert */
    rig_free(&r);
}

/* Writes one record of any kind from the client, behind its stream's back. */
static void inject(struct rig *r, enum zt_tls_content type, const void *bytes, size_t n)
{
    struct zt_tls_dir *in, *out;
    uint8_t rec[512];
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    size_t accepted;
    zt_tls_stream_dirs(r->client.s, &in, &out);
    size_t len = zt_tls_record_seal(out, type, &iov, 1, n, rec);
    assert_int_equal(zt_stream_writev(r->lower[0], &(struct iovec){rec, len}, 1, &accepted), ZT_OK);
    assert_int_equal(accepted, len);
}

static void tls_flood_of_empty_records_is_bounded(void **state)
{
    struct rig r;
    rig_new(&r);
    for (int i = 0; i < 100; i++)
        inject(&r, ZT_TLS_APPDATA, "", 0);
    expect_broken(&r, ZT_TLS);
    rig_free(&r);
}

static void tls_some_empty_records_are_harmless(void **state)
{
    struct rig r;
    rig_new(&r);
    for (int i = 0; i < 200; i++) {
        inject(&r, ZT_TLS_APPDATA, "", 0);
        if (i % 20 == 0) {
            const uint8_t *bytes;
            zt_tls_pattern((uint64_t)(i / 20), &bytes);
            inject(&r, ZT_TLS_APPDATA, bytes, 1);
        }
    }
    zt_tls_end_go(&r.server, 0, false);
    zt_test_run_for_ms(r.loop, 10);
    assert_int_equal(r.server.received, 10);
    assert_int_equal(r.server.read_end, ZT_OK);
    rig_free(&r);
}

static void tls_flood_of_key_updates_is_bounded(void **state)
{
    static const uint8_t update[] = {24, 0, 0, 1, 1};
    struct rig r;
    struct zt_tls_dir *in, *out;
    rig_new(&r);
    for (int i = 0; i < 100; i++) {
        inject(&r, ZT_TLS_HANDSHAKE_MSG, update, sizeof(update));
        zt_tls_stream_dirs(r.client.s, &in, &out);
        zt_tls_dir_update(out, true);
    }
    expect_broken(&r, ZT_TLS);
    rig_free(&r);
}

static void tls_key_update_requests_are_answered_once_per_turn(void **state)
{
    static const uint8_t update[] = {24, 0, 0, 1, 1};
    struct rig r;
    struct zt_tls_dir *in, *out;
    rig_new(&r);
    for (int i = 0; i < 20; i++) {
        inject(&r, ZT_TLS_HANDSHAKE_MSG, update, sizeof(update));
        zt_tls_stream_dirs(r.client.s, &in, &out);
        zt_tls_dir_update(out, true);
    }
    size_t before = zt_mem_unread_by_other(r.lower[1]); /* the session ticket */
    zt_tls_end_go(&r.server, 0, false);
    zt_test_run_for_ms(r.loop, 5);
    assert_int_equal(zt_mem_unread_by_other(r.lower[1]), before + 5 + 5 + 1 + 16);
    zt_tls_end_go(&r.client, 1000, true);
    zt_tls_end_go(&r.server, 1000, true);
    assert_true(zt_test_run_until(r.loop, both_ended, &r));
    assert_false(r.client.mismatch || r.server.mismatch);
    assert_int_equal(r.client.received, 1000);
    rig_free(&r);
}

static void expect_injected_refused(enum zt_tls_content type, const void *bytes, size_t n)
{
    struct rig r;
    rig_new(&r);
    inject(&r, type, bytes, n);
    expect_broken(&r, ZT_TLS);
    rig_free(&r);
}

static void tls_unexpected_messages_are_refused(void **state)
{
    static const uint8_t client_hello[] = {1, 0, 0, 2, 3, 3}, ticket[] = {4, 0, 0, 2, 0, 0}, long_update[] = {24, 0, 0, 2, 0, 0},
                         bad_update[] = {24, 0, 0, 1, 2}, trailing[] = {24, 0, 0, 1, 0, 24};
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, client_hello, sizeof(client_hello));
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, ticket, sizeof(ticket)); /* from a client */
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, long_update, sizeof(long_update));
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, bad_update, sizeof(bad_update));
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, trailing, sizeof(trailing));
    expect_injected_refused(ZT_TLS_HANDSHAKE_MSG, "", 0);
    expect_injected_refused(ZT_TLS_CCS, "\1", 1);
    expect_injected_refused(ZT_TLS_ALERT, "\2", 1);
    expect_injected_refused(ZT_TLS_ALERT, "\2\50", 2); /* handshake_failure */
}

static void tls_application_data_inside_a_message_is_refused(void **state)
{
    struct rig r;
    rig_new(&r);
    inject(&r, ZT_TLS_HANDSHAKE_MSG, "\30\0", 2);
    inject(&r, ZT_TLS_APPDATA, "x", 1);
    expect_broken(&r, ZT_TLS);
    assert_int_equal(r.server.received, 0);
    rig_free(&r);
}

static void tls_user_canceled_is_not_an_error(void **state)
{
    struct rig r;
    rig_new(&r);
    inject(&r, ZT_TLS_ALERT, "\1\132", 2);
    inject(&r, ZT_TLS_ALERT, "\1\0", 2);
    expect_broken(&r, ZT_EOF);
    rig_free(&r);
}

static bool client_is_done(void *arg)
{
    return ((struct rig *)arg)->client.n_done;
}

/* A libssl server sends two tickets after the handshake, and may change keys; both are its right. */
static void tls_tickets_and_key_updates_of_a_foreign_server_are_taken(void **state)
{
    struct rig r;
    struct zt_tls_foreign f;
    const uint8_t *pattern;
    uint8_t got[4000];
    rig_open(&r, NULL, false);
    zt_tls_foreign_init(&f, false, r.leaf);
    SSL_CTX_set_num_tickets(f.ctx, 5);
    SSL_CTX_set_session_id_context(f.ctx, (const unsigned char *)"t", 1);
    zt_tls_end_connect(&r.client, r.loop, r.lower[1], r.client_cred, CLIENT_ID);
    zt_tls_foreign_start(&f, r.lower[0]);
    assert_true(zt_test_run_until(r.loop, client_is_done, &r));
    assert_non_null(r.client.s);
    zt_tls_end_go(&r.client, 2000, false);
    zt_test_run_for_ms(r.loop, 5);
    for (int i = 0; i < 5; i++) {
        zt_tls_pattern(r.client.received, &pattern);
        assert_int_equal(SSL_write(f.ssl, pattern, 100), 100);
        SSL_key_update(f.ssl, i % 2 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
        SSL_do_handshake(f.ssl);
        zt_tls_foreign_pump(&f);
        zt_test_run_for_ms(r.loop, 5);
    }
    assert_int_equal(r.client.received, 500);
    assert_false(r.client.mismatch);
    assert_int_equal(r.client.read_end, ZT_OK);
    zt_tls_end_go(&r.client, 4000, false);
    zt_test_run_for_ms(r.loop, 5);
    assert_int_equal(SSL_read(f.ssl, got, sizeof(got)) + SSL_read(f.ssl, got + 2000, 2000), 4000);
    zt_tls_pattern(0, &pattern);
    assert_memory_equal(got, pattern, 4000);
    assert_int_equal(SSL_shutdown(f.ssl), 0);
    zt_tls_foreign_pump(&f);
    assert_true(zt_test_run_until(r.loop, client_ended, &r));
    assert_int_equal(r.client.read_end, ZT_EOF);
    zt_stream_shutdown_write(r.client.s);
    zt_test_run_for_ms(r.loop, 5);
    assert_int_equal(SSL_shutdown(f.ssl), 1); /* our close_notify arrived */
    zt_tls_foreign_fini(&f);
    rig_free(&r);
}

static void tls_renegotiation_of_tls12_is_refused(void **state)
{
    struct rig r;
    struct zt_tls_foreign f;
    rig_open(&r, NULL, false);
    struct zt_test_cert *own = zt_test_leaf(r.root, SERVER_ID);
    struct zt_tls_cred *cred =
        zt_test_cred((const struct zt_test_cert *const[]){own}, 1, (const struct zt_test_cert *const[]){r.root}, 1, true);
    zt_tls_foreign_init(&f, false, r.leaf);
    SSL_CTX_set_max_proto_version(f.ctx, TLS1_2_VERSION);
    zt_tls_end_connect(&r.client, r.loop, r.lower[1], cred, CLIENT_ID);
    zt_tls_foreign_start(&f, r.lower[0]);
    assert_true(zt_test_run_until(r.loop, client_is_done, &r));
    assert_non_null(r.client.s);
    zt_tls_end_go(&r.client, 0, false);
    SSL_renegotiate(f.ssl);
    SSL_do_handshake(f.ssl);
    zt_tls_foreign_pump(&f);
    assert_true(zt_test_run_until(r.loop, client_ended, &r));
    assert_int_equal(r.client.read_end, ZT_TLS);
    zt_tls_foreign_fini(&f);
    zt_tls_cred_unref(cred);
    zt_test_cert_free(own);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tls_carries_64_mib_over_tcp),
        cmocka_unit_test(tls_carries_bulk_both_ways_in_random_chunks),
        cmocka_unit_test(tls_carries_bytes_over_random_pieces),
        cmocka_unit_test(tls_carries_bytes_one_by_one),
        cmocka_unit_test(tls_works_with_the_smallest_lower_stream),
        cmocka_unit_test(tls_inside_tls_carries_bytes),
        cmocka_unit_test(tls_writes_of_a_turn_are_gathered),
        cmocka_unit_test(tls_bulk_fills_records),
        cmocka_unit_test(tls_peek_beyond_what_was_seen_joins_records),
        cmocka_unit_test(tls_borrowed_bytes_may_be_changed_in_place),
        cmocka_unit_test(tls_readiness_lasts_until_all_was_shown),
        cmocka_unit_test(tls_idle_stream_wakes_nobody),
        cmocka_unit_test(tls_half_close_leaves_the_other_direction_open),
        cmocka_unit_test(tls_end_without_close_notify_is_a_reset),
        cmocka_unit_test(tls_abortive_close_resets),
        cmocka_unit_test(tls_orderly_close_flushes_first),
        cmocka_unit_test(tls_orderly_close_leaks_nothing_when_the_loop_ends_first),
        cmocka_unit_test(tls_shutdown_twice_is_once),
        cmocka_unit_test(tls_write_error_is_final),
        cmocka_unit_test(tls_stalled_reader_bounds_the_writer),
        cmocka_unit_test(tls_changes_keys_before_the_limit),
        cmocka_unit_test(tls_stream_is_rebuilt_from_exported_state),
        cmocka_unit_test(tls_stream_with_bytes_in_hand_is_not_exported),
        cmocka_unit_test(tls_bad_record_ends_both_directions_with_an_alert),
        cmocka_unit_test(tls_flood_of_empty_records_is_bounded),
        cmocka_unit_test(tls_some_empty_records_are_harmless),
        cmocka_unit_test(tls_flood_of_key_updates_is_bounded),
        cmocka_unit_test(tls_key_update_requests_are_answered_once_per_turn),
        cmocka_unit_test(tls_unexpected_messages_are_refused),
        cmocka_unit_test(tls_application_data_inside_a_message_is_refused),
        cmocka_unit_test(tls_user_canceled_is_not_an_error),
        cmocka_unit_test(tls_tickets_and_key_updates_of_a_foreign_server_are_taken),
        cmocka_unit_test(tls_renegotiation_of_tls12_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
