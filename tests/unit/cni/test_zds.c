/* zt/cni/zds.h: encodings, packets and descriptors over real socket pairs, the client against a
 * hand-held listener, the server against a hand-held client. */
#include "support/net_fixture.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include "zt/cni/zds.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- reference encodings (spec/inpod §1.2) ---- */

static const struct zt_zds_request add_uid0 = {
    .kind = ZT_ZDS_ADD,
    .uid = "uid0",
    .has_info = true,
    .info = {.name = "name", .ns = "ns", .service_account = "sa"},
    .netns_fd = -1};
static const struct zt_zds_request del_uid0 = {.kind = ZT_ZDS_DEL, .uid = "uid0", .netns_fd = -1};
static const struct zt_zds_request keep_uid0 = {.kind = ZT_ZDS_KEEP, .uid = "uid0", .netns_fd = -1};
static const struct zt_zds_request snapshot_sent = {.kind = ZT_ZDS_SNAPSHOT_SENT, .netns_fd = -1};

#define HEX_ADD "0a160a0475696430120e0a046e616d6512026e731a027361"

static size_t unhex(const char *hex, uint8_t *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
    return n;
}

static void assert_hex(const uint8_t *bytes, size_t n, const char *hex)
{
    uint8_t want[ZT_ZDS_PACKET_BYTES_MAX];
    assert_int_equal(n, unhex(hex, want));
    assert_memory_equal(bytes, want, n);
}

static void zds_encodes_as_the_reference(void **state)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    assert_hex(buf, zt_zds_encode_hello(1, buf), "0801");
    assert_hex(buf, zt_zds_encode_ack("", buf), "0a00");
    assert_hex(buf, zt_zds_encode_ack("boom", buf), "0a060a04626f6f6d");
    assert_hex(buf, zt_zds_encode_request(&snapshot_sent, buf), "1a00");
    assert_hex(buf, zt_zds_encode_request(&del_uid0, buf), "1206120475696430");
    assert_hex(buf, zt_zds_encode_request(&keep_uid0, buf), "2a060a0475696430");
    assert_hex(buf, zt_zds_encode_request(&add_uid0, buf), HEX_ADD);
}

static enum zt_err decode_hex(const char *hex, struct zt_zds_request *r)
{
    uint8_t buf[2 * ZT_ZDS_PACKET_BYTES_MAX];
    return zt_zds_decode_request(buf, unhex(hex, buf), r, NULL);
}

static void zds_decodes_the_reference_encodings(void **state)
{
    struct zt_zds_request r;
    assert_int_equal(decode_hex(HEX_ADD, &r), ZT_OK);
    assert_int_equal(r.kind, ZT_ZDS_ADD);
    assert_string_equal(r.uid, "uid0");
    assert_string_equal(r.info.name, "name");
    assert_string_equal(r.info.ns, "ns");
    assert_string_equal(r.info.service_account, "sa");
    assert_int_equal(decode_hex("1206120475696430", &r), ZT_OK);
    assert_int_equal(r.kind, ZT_ZDS_DEL);
    assert_string_equal(r.uid, "uid0");
    assert_int_equal(decode_hex("2a060a0475696430", &r), ZT_OK);
    assert_int_equal(r.kind, ZT_ZDS_KEEP);
    assert_int_equal(decode_hex("1a00", &r), ZT_OK);
    assert_int_equal(r.kind, ZT_ZDS_SNAPSHOT_SENT);
}

static void zds_unset_or_unknown_payload_is_an_error(void **state)
{
    struct zt_zds_request r;
    struct zt_error err = ZT_ERROR_INIT;
    uint8_t buf[8];
    assert_int_equal(zt_zds_decode_request(buf, unhex("3200", buf), &r, &err),
                     ZT_INVALID); /* field 6 */
    assert_string_equal(err.text, "no payload");
    assert_int_equal(zt_zds_decode_request(buf, 0, &r, &err), ZT_INVALID);
    assert_int_equal(decode_hex("0aff", &r), ZT_INVALID);
}

static void zds_unknown_fields_are_skipped(void **state)
{
    struct zt_zds_request r;
    /* An Add whose info carries the reserved field 4 as well. */
    assert_int_equal(decode_hex("0a0f0a047569643012070a016e22026474", &r), ZT_OK);
    assert_string_equal(r.uid, "uid0");
    assert_string_equal(r.info.name, "n");
    assert_string_equal(r.info.service_account, "");
}

static void zds_cut_messages_never_decode_as_add(void **state)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    size_t n = unhex(HEX_ADD, buf);
    for (size_t len = 0; len < n; len++) {
        struct zt_zds_request r;
        assert_int_equal(zt_zds_decode_request(buf, len, &r, NULL), ZT_INVALID);
    }
}

static void zds_long_ack_text_is_cut_to_fit_a_packet(void **state)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    char text[5000], back[ZT_ZDS_ACK_TEXT_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    size_t n = zt_zds_encode_ack(text, buf);
    assert_true(n > 0 && n <= ZT_ZDS_PACKET_BYTES_MAX);
    assert_int_equal(zt_zds_decode_ack(buf, n, back, NULL), ZT_OK);
    assert_int_equal(strlen(back), ZT_ZDS_ACK_TEXT_MAX - 1);
}

static void zds_request_that_does_not_fit_is_not_encoded(void **state)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    char uid[ZT_ZDS_PACKET_BYTES_MAX + 1];
    memset(uid, 'u', sizeof uid - 1);
    uid[sizeof uid - 1] = '\0';
    struct zt_zds_request r = {.kind = ZT_ZDS_KEEP, .uid = uid};
    assert_int_equal(zt_zds_encode_request(&r, buf), 0);
    uid[ZT_ZDS_PACKET_BYTES_MAX - 6] = '\0'; /* two tags with two-byte lengths */
    assert_int_equal(zt_zds_encode_request(&r, buf), ZT_ZDS_PACKET_BYTES_MAX);
}

/* ---- packets and descriptors ---- */

struct sockets {
    int cni, ours;
    unsigned fds_before;
};

static int pair_setup(void **state)
{
    struct sockets *s = zt_new(struct sockets);
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    s->cni = fds[0];
    s->ours = fds[1];
    s->fds_before = zt_test_open_fds();
    *state = s;
    return 0;
}

/* Whatever a test sends, no descriptor is left over. */
static int pair_teardown(void **state)
{
    struct sockets *s = *state;
    assert_int_equal(zt_test_open_fds(), s->fds_before);
    close(s->cni);
    close(s->ours);
    zt_free(s);
    return 0;
}

static int dev_null(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void cni_sends(struct sockets *s, const struct zt_zds_request *r, int fd)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    size_t n = zt_zds_encode_request(r, buf);
    assert_int_equal(zt_zds_send(s->cni, buf, n, fd, NULL), ZT_OK);
    if (fd >= 0)
        close(fd);
}

static void cni_sends_with_fds(struct sockets *s, const void *bytes, size_t len, unsigned n_fds)
{
    char control[CMSG_SPACE(64 * sizeof(int))] = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
    int fds[64];
    for (unsigned i = 0; i < n_fds; i++)
        fds[i] = dev_null();
    msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    assert_int_equal(sendmsg(s->cni, &msg, 0), len);
    for (unsigned i = 0; i < n_fds; i++)
        close(fds[i]);
}

static void expect_refused(struct sockets *s, const char *text)
{
    struct zt_zds_request r;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_zds_recv_request(s->ours, &r, &err), ZT_INVALID);
    assert_string_equal(err.text, text);
}

/* The parser takes any descriptor: whether it is a namespace shows when it is entered. */
static void zds_test_parse_add_workload(void **state)
{
    struct sockets *s = *state;
    struct zt_zds_request r, bare = {.kind = ZT_ZDS_ADD, .uid = "uid0"};
    cni_sends(s, &bare, dev_null());
    assert_int_equal(zt_zds_recv_request(s->ours, &r, NULL), ZT_OK);
    assert_string_equal(r.uid, "uid0");
    assert_false(r.has_info);
    assert_true(r.netns_fd >= 0);
    assert_true(fcntl(r.netns_fd, F_GETFD) & FD_CLOEXEC);
    close(r.netns_fd);
}

static void zds_test_parse_add_workload_with_info(void **state)
{
    struct sockets *s = *state;
    struct zt_zds_request r;
    cni_sends(s, &add_uid0, dev_null());
    assert_int_equal(zt_zds_recv_request(s->ours, &r, NULL), ZT_OK);
    assert_true(r.has_info);
    assert_string_equal(r.info.name, "name");
    assert_string_equal(r.info.ns, "ns");
    assert_string_equal(r.info.service_account, "sa");
    close(r.netns_fd);
}

static void zds_test_parse_del_workload(void **state)
{
    struct sockets *s = *state;
    struct zt_zds_request r;
    cni_sends(s, &del_uid0, -1);
    assert_int_equal(zt_zds_recv_request(s->ours, &r, NULL), ZT_OK);
    assert_int_equal(r.kind, ZT_ZDS_DEL);
    assert_string_equal(r.uid, "uid0");
    assert_int_equal(r.netns_fd, -1);
}

static void zds_test_parse_del_workload_with_fds_fails(void **state)
{
    struct sockets *s = *state;
    cni_sends(s, &del_uid0, dev_null());
    expect_refused(s, "unexpected file descriptor");
}

static void zds_add_without_descriptor_fails(void **state)
{
    struct sockets *s = *state;
    cni_sends(s, &add_uid0, -1);
    expect_refused(s, "no file descriptor");
}

static void zds_add_with_several_descriptors_fails_and_closes_all(void **state)
{
    struct sockets *s = *state;
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    size_t n = zt_zds_encode_request(&add_uid0, buf);
    /* Beyond what the control buffer holds too. */
    static const unsigned counts[] = {2, 3, 16, 17, 64};
    for (unsigned i = 0; i < 5; i++) {
        cni_sends_with_fds(s, buf, n, counts[i]);
        expect_refused(s, "more than one file descriptor");
    }
}

static void zds_packet_over_1024_bytes_fails_and_its_descriptor_is_closed(void **state)
{
    struct sockets *s = *state;
    uint8_t big[ZT_ZDS_PACKET_BYTES_MAX + 1] = {0};
    cni_sends_with_fds(s, big, sizeof big, 1);
    expect_refused(s, "packet too long");
}

static void zds_garbage_with_a_descriptor_closes_it(void **state)
{
    struct sockets *s = *state;
    cni_sends_with_fds(s, "\xff\xff\xff", 3, 1);
    expect_refused(s, "invalid message");
}

static void zds_nothing_is_again_and_close_is_eof(void **state)
{
    struct sockets *s = *state;
    struct zt_zds_request r;
    assert_int_equal(zt_zds_recv_request(s->ours, &r, NULL), ZT_AGAIN);
    shutdown(s->cni, SHUT_WR);
    assert_int_equal(zt_zds_recv_request(s->ours, &r, NULL), ZT_EOF);
    shutdown(s->cni, SHUT_RD);
    assert_int_equal(zt_zds_send(s->ours, (const uint8_t *)"x", 1, -1, NULL), ZT_RESET);
}

/* ---- the client against a listener held by the test ---- */

struct client_case {
    struct zt_zds_client_owner owner;
    struct zt_loop *loop;
    struct zt_zds_client *client;
    char path[ZT_TEST_PATH_MAX];
    int listener, conn;
    unsigned n_connected, n_disconnected, n_requests, n_fatal;
    enum zt_zds_verdict verdict;
    const char *answer;
    char seen[256]; /* uids in order */
};

static struct client_case *client_of(struct zt_zds_client_owner *o)
{
    return zt_container_of(o, struct client_case, owner);
}

static void on_connected(struct zt_zds_client_owner *o)
{
    client_of(o)->n_connected++;
}

static void on_disconnected(struct zt_zds_client_owner *o)
{
    client_of(o)->n_disconnected++;
}

static void on_fatal(struct zt_zds_client_owner *o, const struct zt_error *why)
{
    client_of(o)->n_fatal++;
}

static enum zt_zds_verdict on_request(struct zt_zds_client_owner *o, struct zt_zds_request *r,
                                      char ack[static ZT_ZDS_ACK_TEXT_MAX])
{
    struct client_case *c = client_of(o);
    c->n_requests++;
    strncat(c->seen, r->uid ? r->uid : "-", sizeof c->seen - strlen(c->seen) - 1);
    if (r->netns_fd >= 0)
        close(r->netns_fd);
    if (c->answer)
        snprintf(ack, ZT_ZDS_ACK_TEXT_MAX, "%s", c->answer);
    return c->verdict;
}

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    assert_true(zt_fmt(sa.sun_path, sizeof sa.sun_path, "%s", path));
    return sa;
}

static void listen_at(struct client_case *c, int backlog)
{
    struct sockaddr_un sa = unix_address(c->path);
    c->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(c->listener, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(c->listener, backlog), 0);
}

static int client_setup(void **state)
{
    struct client_case *c = zt_new(struct client_case);
    c->owner = (struct zt_zds_client_owner){on_connected, on_disconnected, on_request, on_fatal};
    c->verdict = ZT_ZDS_ANSWER;
    c->loop = zt_loop_new("test");
    c->listener = c->conn = -1;
    zt_test_socket_path(c->path);
    *state = c;
    return 0;
}

static int client_teardown(void **state)
{
    struct client_case *c = *state;
    zt_zds_client_free(c->client);
    zt_loop_free(c->loop);
    if (c->conn >= 0)
        close(c->conn);
    if (c->listener >= 0)
        close(c->listener);
    zt_test_socket_path_remove(c->path);
    zt_free(c);
    return 0;
}

static bool accepted(void *arg)
{
    struct client_case *c = arg;
    if (c->conn < 0)
        c->conn = accept4(c->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return c->conn >= 0;
}

struct packet {
    struct client_case *c;
    uint8_t bytes[ZT_ZDS_PACKET_BYTES_MAX];
    size_t len;
    enum zt_err result;
};

static bool received(void *arg)
{
    struct packet *p = arg;
    int fd = -1;
    p->result = zt_zds_recv(p->c->conn, p->bytes, &p->len, &fd, NULL);
    assert_int_equal(fd, -1);
    return p->result != ZT_AGAIN;
}

static void expect_packet(struct client_case *c, const char *hex)
{
    struct packet p = {.c = c};
    assert_true(zt_test_run_until(c->loop, received, &p));
    assert_int_equal(p.result, ZT_OK);
    assert_hex(p.bytes, p.len, hex);
}

static void expect_ack_text(struct client_case *c, const char *text)
{
    struct packet p = {.c = c};
    char ack[ZT_ZDS_ACK_TEXT_MAX];
    assert_true(zt_test_run_until(c->loop, received, &p));
    assert_int_equal(zt_zds_decode_ack(p.bytes, p.len, ack, NULL), ZT_OK);
    assert_string_equal(ack, text);
}

static void expect_closed(struct client_case *c)
{
    struct packet p = {.c = c};
    assert_true(zt_test_run_until(c->loop, received, &p));
    assert_int_equal(p.result, ZT_EOF);
}

static void connect_client(struct client_case *c)
{
    listen_at(c, 4);
    c->client = zt_zds_client_new(c->loop, c->path, &c->owner);
    assert_true(zt_test_run_until(c->loop, accepted, c));
    expect_packet(c, "0801");
    assert_int_equal(c->n_connected, 1);
}

static void send_request(struct client_case *c, const struct zt_zds_request *r)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    assert_int_equal(zt_zds_send(c->conn, buf, zt_zds_encode_request(r, buf), -1, NULL), ZT_OK);
}

static void zds_client_says_hello_and_acknowledges_each_request_once(void **state)
{
    struct client_case *c = *state;
    connect_client(c);
    send_request(c, &del_uid0);
    send_request(c, &keep_uid0);
    send_request(c, &snapshot_sent);
    expect_packet(c, "0a00");
    expect_packet(c, "0a00");
    expect_packet(c, "0a00");
    zt_test_run_for_ms(c->loop, 30);
    struct packet p = {.c = c};
    assert_false(received(&p));
    assert_string_equal(c->seen, "uid0uid0-");
}

static void zds_client_keeps_trying_until_the_socket_is_there(void **state)
{
    struct client_case *c = *state;
    c->client = zt_zds_client_new(c->loop, c->path, &c->owner);
    zt_test_run_for_ms(c->loop, 50);
    assert_int_equal(c->n_connected, 0);
    listen_at(c, 4);
    assert_true(zt_test_run_until(c->loop, accepted, c));
    expect_packet(c, "0801");
}

/* AF_UNIX: EAGAIN means that nothing is in progress (spec/inpod §1.1). */
static void zds_client_connects_again_when_the_backlog_was_full(void **state)
{
    struct client_case *c = *state;
    struct sockaddr_un sa = unix_address(c->path);
    listen_at(c, 0);
    int fill[8], n = 0;
    do
        fill[n] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    while (connect(fill[n++], (struct sockaddr *)&sa, sizeof sa) == 0 && n < 8);
    assert_int_equal(errno, EAGAIN);
    c->client = zt_zds_client_new(c->loop, c->path, &c->owner);
    zt_test_run_for_ms(c->loop, 50);
    assert_int_equal(c->n_connected, 0);
    for (int i = 0; i < n - 1; i++)
        close(accept(c->listener, NULL, NULL));
    assert_true(zt_test_run_until(c->loop, accepted, c));
    expect_packet(c, "0801");
    while (n-- > 0)
        close(fill[n]);
}

static void zds_client_reconnects_after_eof_and_after_a_new_socket_file(void **state)
{
    struct client_case *c = *state;
    connect_client(c);
    send_request(c, &keep_uid0);
    expect_packet(c, "0a00");
    close(c->conn);
    close(c->listener);
    unlink(c->path);
    c->conn = -1;
    listen_at(c, 4);
    assert_true(zt_test_run_until(c->loop, accepted, c));
    expect_packet(c, "0801");
    assert_int_equal(c->n_connected, 2);
    assert_int_equal(c->n_disconnected, 1);
}

static void zds_client_does_not_spin_on_a_peer_that_only_closes(void **state)
{
    struct client_case *c = *state;
    unsigned n = 0;
    listen_at(c, 4);
    c->client = zt_zds_client_new(c->loop, c->path, &c->owner);
    for (int i = 0; i < 100; i++) {
        zt_test_run_for_ms(c->loop, 2);
        int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC);
        n += fd >= 0;
        if (fd >= 0)
            close(fd);
    }
    assert_true(n > 1);  /* it does try again */
    assert_true(n < 12); /* after 5, 10, 20, 40 ms, ... */
}

static void zds_client_answers_an_unreadable_packet_and_reconnects(void **state)
{
    struct client_case *c = *state;
    connect_client(c);
    assert_int_equal(send(c->conn, "\xff\xff", 2, 0), 2);
    expect_ack_text(c, "failure to read message : invalid message");
    expect_closed(c);
    close(c->conn);
    c->conn = -1;
    assert_true(zt_test_run_until(c->loop, accepted, c));
    assert_int_equal(c->n_fatal, 0);
}

static bool fatal_told(void *arg)
{
    return ((struct client_case *)arg)->n_fatal > 0;
}

static void zds_client_protocol_error_is_acknowledged_and_final(void **state)
{
    struct client_case *c = *state;
    connect_client(c);
    c->verdict = ZT_ZDS_FATAL;
    c->answer = "failure to process message : x";
    send_request(c, &keep_uid0);
    assert_true(zt_test_run_until(c->loop, fatal_told, c));
    expect_ack_text(c, "failure to process message : x");
    expect_closed(c);
    zt_test_run_for_ms(c->loop, 60);
    assert_int_equal(accept(c->listener, NULL, NULL), -1);
}

/* ---- the server against a client held by the test ---- */

struct server_case {
    struct zt_zds_server_owner server_owner;
    struct zt_zds_peer_owner peer_owner;
    struct zt_loop *loop;
    struct zt_zds_server *server;
    struct zt_zds_peer *peer;
    char path[ZT_TEST_PATH_MAX];
    int client;
    unsigned version, n_hello, n_ack, n_gone;
    char ack[ZT_ZDS_ACK_TEXT_MAX];
    struct zt_error why;
};

static void on_ack(struct zt_zds_peer_owner *o, struct zt_zds_peer *p, const char *error)
{
    struct server_case *c = zt_container_of(o, struct server_case, peer_owner);
    c->n_ack++;
    snprintf(c->ack, sizeof c->ack, "%s", error);
}

static void on_gone(struct zt_zds_peer_owner *o, struct zt_zds_peer *p, const struct zt_error *why)
{
    struct server_case *c = zt_container_of(o, struct server_case, peer_owner);
    c->n_gone++;
    c->why = *why;
    c->peer = NULL;
}

static struct zt_zds_peer_owner *on_hello(struct zt_zds_server_owner *o, struct zt_zds_peer *p,
                                          unsigned version)
{
    struct server_case *c = zt_container_of(o, struct server_case, server_owner);
    c->n_hello++;
    c->version = version;
    c->peer = p;
    return &c->peer_owner;
}

static int server_setup(void **state)
{
    struct server_case *c = zt_new(struct server_case);
    c->server_owner.on_hello = on_hello;
    c->peer_owner = (struct zt_zds_peer_owner){on_ack, on_gone};
    c->loop = zt_loop_new("test");
    c->client = -1;
    zt_test_socket_path(c->path);
    c->server = zt_zds_server_new(c->loop, c->path, &c->server_owner, NULL);
    assert_non_null(c->server);
    *state = c;
    return 0;
}

static int server_teardown(void **state)
{
    struct server_case *c = *state;
    if (c->client >= 0)
        close(c->client);
    zt_zds_server_free(c->server);
    zt_loop_free(c->loop);
    zt_test_socket_path_remove(c->path);
    zt_free(c);
    return 0;
}

static int connected_to(const char *path)
{
    struct sockaddr_un sa = unix_address(path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

static bool has_hello(void *arg)
{
    return ((struct server_case *)arg)->n_hello > 0;
}
static bool has_ack(void *arg)
{
    return ((struct server_case *)arg)->n_ack > 0;
}
static bool has_gone(void *arg)
{
    return ((struct server_case *)arg)->n_gone > 0;
}

static void say_hello(struct server_case *c)
{
    c->client = connected_to(c->path);
    assert_int_equal(send(c->client, "\x08\x01", 2, 0), 2);
    assert_true(zt_test_run_until(c->loop, has_hello, c));
    assert_int_equal(c->version, 1);
}

static void zds_server_sends_add_with_its_descriptor_and_gets_the_ack(void **state)
{
    struct server_case *c = *state;
    struct zt_zds_request r = add_uid0, got;
    say_hello(c);
    r.netns_fd = dev_null();
    assert_false(zt_zds_peer_busy(c->peer));
    assert_int_equal(zt_zds_peer_request(c->peer, &r), ZT_OK);
    close(r.netns_fd); /* borrowed during the call only */
    assert_true(zt_zds_peer_busy(c->peer));
    zt_test_run_for_ms(c->loop, 10);
    assert_int_equal(zt_zds_recv_request(c->client, &got, NULL), ZT_OK);
    assert_string_equal(got.uid, "uid0");
    assert_true(got.netns_fd >= 0);
    close(got.netns_fd);
    assert_int_equal(c->n_ack, 0);
    assert_int_equal(send(c->client,
                          "\x0a\x06\x0a\x04"
                          "boom",
                          8, 0),
                     8);
    assert_true(zt_test_run_until(c->loop, has_ack, c));
    assert_string_equal(c->ack, "boom");
    assert_false(zt_zds_peer_busy(c->peer));
}

static void zds_server_add_without_descriptor_is_refused_before_sending(void **state)
{
    struct server_case *c = *state;
    say_hello(c);
    assert_int_equal(zt_zds_peer_request(c->peer, &add_uid0), ZT_INVALID);
    assert_false(zt_zds_peer_busy(c->peer));
}

static void zds_server_late_ack_ends_the_connection(void **state)
{
    struct server_case *c = *state;
    zt_zds_server_set_timeout(c->server, 40);
    say_hello(c);
    zt_test_run_for_ms(c->loop, 80);
    assert_int_equal(c->n_gone, 0); /* no deadline while nothing is asked */
    assert_int_equal(zt_zds_peer_request(c->peer, &keep_uid0), ZT_OK);
    assert_true(zt_test_run_until(c->loop, has_gone, c));
    assert_int_equal(c->why.code, ZT_TIMEOUT);
    assert_string_equal(c->why.text, "no acknowledgement in time");
}

static void zds_server_packet_nobody_asked_for_ends_the_connection(void **state)
{
    struct server_case *c = *state;
    say_hello(c);
    assert_int_equal(send(c->client, "\x0a\x00", 2, 0), 2);
    assert_true(zt_test_run_until(c->loop, has_gone, c));
    assert_string_equal(c->why.text, "unexpected packet");
}

static void zds_server_tells_when_the_proxy_goes(void **state)
{
    struct server_case *c = *state;
    say_hello(c);
    assert_int_equal(zt_zds_peer_request(c->peer, &keep_uid0), ZT_OK);
    close(c->client);
    c->client = -1;
    assert_true(zt_test_run_until(c->loop, has_gone, c));
    assert_int_equal(c->n_ack, 0);
}

static void zds_server_closes_who_says_no_hello(void **state)
{
    struct server_case *c = *state;
    char byte;
    zt_zds_server_set_timeout(c->server, 30);
    c->client = connected_to(c->path);
    zt_test_run_for_ms(c->loop, 100);
    assert_int_equal(recv(c->client, &byte, 1, 0), 0);
    assert_int_equal(c->n_gone, 0);
}

static void zds_server_connections_are_limited(void **state)
{
    struct server_case *c = *state;
    int fds[ZT_ZDS_PEERS_MAX + 1];
    char byte;
    for (int i = 0; i <= ZT_ZDS_PEERS_MAX; i++) {
        fds[i] = connected_to(c->path);
        zt_test_run_for_ms(c->loop, 1);
    }
    assert_int_equal(recv(fds[ZT_ZDS_PEERS_MAX], &byte, 1, 0), 0);
    assert_int_equal(recv(fds[0], &byte, 1, 0), -1);
    assert_int_equal(errno, EAGAIN);
    for (int i = 0; i <= ZT_ZDS_PEERS_MAX; i++)
        close(fds[i]);
}

static void zds_server_socket_is_for_its_owner_only(void **state)
{
    struct server_case *c = *state;
    struct stat st;
    assert_int_equal(stat(c->path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void zds_server_leaves_a_socket_that_another_agent_serves(void **state)
{
    struct server_case *c = *state;
    struct zt_error err = ZT_ERROR_INIT;
    assert_null(zt_zds_server_new(c->loop, c->path, &c->server_owner, &err));
    assert_int_equal(err.code, ZT_EXISTS);
    assert_non_null(strstr(err.text, "is served by another process"));
    assert_int_equal(access(c->path, F_OK), 0);
}

static void zds_server_leaves_its_successors_socket(void **state)
{
    struct server_case *c = *state;
    unlink(c->path);
    struct zt_zds_server *second = zt_zds_server_new(c->loop, c->path, &c->server_owner, NULL);
    assert_non_null(second);
    zt_zds_server_free(c->server);
    c->server = second;
    assert_int_equal(access(c->path, F_OK), 0);
    zt_zds_server_free(second);
    c->server = NULL;
    assert_int_equal(access(c->path, F_OK), -1);
}

static void zds_server_leaves_a_file_that_is_no_socket(void **state)
{
    struct server_case *c = *state;
    struct zt_error err = ZT_ERROR_INIT;
    zt_zds_server_free(c->server);
    c->server = NULL;
    close(open(c->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_null(zt_zds_server_new(c->loop, c->path, &c->server_owner, &err));
    assert_int_equal(err.code, ZT_EXISTS);
    assert_int_equal(access(c->path, F_OK), 0);
}

#define PAIR_TEST(fn) cmocka_unit_test_setup_teardown(fn, pair_setup, pair_teardown)
#define CLIENT_TEST(fn) cmocka_unit_test_setup_teardown(fn, client_setup, client_teardown)
#define SERVER_TEST(fn) cmocka_unit_test_setup_teardown(fn, server_setup, server_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zds_encodes_as_the_reference),
        cmocka_unit_test(zds_decodes_the_reference_encodings),
        cmocka_unit_test(zds_unset_or_unknown_payload_is_an_error),
        cmocka_unit_test(zds_unknown_fields_are_skipped),
        cmocka_unit_test(zds_cut_messages_never_decode_as_add),
        cmocka_unit_test(zds_long_ack_text_is_cut_to_fit_a_packet),
        cmocka_unit_test(zds_request_that_does_not_fit_is_not_encoded),
        PAIR_TEST(zds_test_parse_add_workload),
        PAIR_TEST(zds_test_parse_add_workload_with_info),
        PAIR_TEST(zds_test_parse_del_workload),
        PAIR_TEST(zds_test_parse_del_workload_with_fds_fails),
        PAIR_TEST(zds_add_without_descriptor_fails),
        PAIR_TEST(zds_add_with_several_descriptors_fails_and_closes_all),
        PAIR_TEST(zds_packet_over_1024_bytes_fails_and_its_descriptor_is_closed),
        PAIR_TEST(zds_garbage_with_a_descriptor_closes_it),
        PAIR_TEST(zds_nothing_is_again_and_close_is_eof),
        CLIENT_TEST(zds_client_says_hello_and_acknowledges_each_request_once),
        CLIENT_TEST(zds_client_keeps_trying_until_the_socket_is_there),
        CLIENT_TEST(zds_client_connects_again_when_the_backlog_was_full),
        CLIENT_TEST(zds_client_reconnects_after_eof_and_after_a_new_socket_file),
        CLIENT_TEST(zds_client_does_not_spin_on_a_peer_that_only_closes),
        CLIENT_TEST(zds_client_answers_an_unreadable_packet_and_reconnects),
        CLIENT_TEST(zds_client_protocol_error_is_acknowledged_and_final),
        SERVER_TEST(zds_server_sends_add_with_its_descriptor_and_gets_the_ack),
        SERVER_TEST(zds_server_add_without_descriptor_is_refused_before_sending),
        SERVER_TEST(zds_server_late_ack_ends_the_connection),
        SERVER_TEST(zds_server_packet_nobody_asked_for_ends_the_connection),
        SERVER_TEST(zds_server_tells_when_the_proxy_goes),
        SERVER_TEST(zds_server_closes_who_says_no_hello),
        SERVER_TEST(zds_server_connections_are_limited),
        SERVER_TEST(zds_server_socket_is_for_its_owner_only),
        SERVER_TEST(zds_server_leaves_a_socket_that_another_agent_serves),
        SERVER_TEST(zds_server_leaves_its_successors_socket),
        SERVER_TEST(zds_server_leaves_a_file_that_is_no_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
