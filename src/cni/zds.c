/* ZDS messages and packets (spec/inpod §1.1, §1.2).
 *
 * Invariants: a packet has at most ZT_ZDS_PACKET_BYTES_MAX bytes, both ways. Every descriptor that
 * the kernel hands over is either given to the caller or closed here, once, whatever else is wrong
 * with the packet. Decoding never looks at the descriptor. */
#include "zt/cni/zds.h"
#include "zds.pb-c.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The generated names, shortened. */
typedef Istio__Workload__Zds__WorkloadRequest pb_request;
typedef Istio__Workload__Zds__WorkloadResponse pb_response;
typedef Istio__Workload__Zds__ZdsHello pb_hello;
#define PB_CASE(x) ISTIO__WORKLOAD__ZDS__WORKLOAD_REQUEST__PAYLOAD_##x

/* Room for more descriptors than are legal, so that they arrive and can be counted and closed; the
 * kernel drops further ones itself (MSG_CTRUNC). */
#define CONTROL_FDS 16

/* ---- encoding ---- */

static size_t pack(const ProtobufCMessage *m, uint8_t *buf)
{
    return protobuf_c_message_get_packed_size(m) <= ZT_ZDS_PACKET_BYTES_MAX
               ? protobuf_c_message_pack(m, buf)
               : 0;
}

/* protobuf-c has no const strings; it only reads them. */
static char *text_of(const char *s)
{
    return (char *)(uintptr_t)(s ? s : "");
}

size_t zt_zds_encode_request(const struct zt_zds_request *r,
                             uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX])
{
    pb_request m = ISTIO__WORKLOAD__ZDS__WORKLOAD_REQUEST__INIT;
    Istio__Workload__Zds__WorkloadInfo info = ISTIO__WORKLOAD__ZDS__WORKLOAD_INFO__INIT;
    Istio__Workload__Zds__AddWorkload add = ISTIO__WORKLOAD__ZDS__ADD_WORKLOAD__INIT;
    Istio__Workload__Zds__DelWorkload del = ISTIO__WORKLOAD__ZDS__DEL_WORKLOAD__INIT;
    Istio__Workload__Zds__KeepWorkload keep = ISTIO__WORKLOAD__ZDS__KEEP_WORKLOAD__INIT;
    Istio__Workload__Zds__SnapshotSent sent = ISTIO__WORKLOAD__ZDS__SNAPSHOT_SENT__INIT;
    switch (r->kind) {
    case ZT_ZDS_ADD:
        info.name = text_of(r->info.name);
        info.namespace_ = text_of(r->info.ns);
        info.service_account = text_of(r->info.service_account);
        add.uid = text_of(r->uid);
        add.workload_info = r->has_info ? &info : NULL;
        m.add = &add;
        m.payload_case = PB_CASE(ADD);
        break;
    case ZT_ZDS_DEL:
        del.uid = text_of(r->uid);
        m.del = &del;
        m.payload_case = PB_CASE(DEL);
        break;
    case ZT_ZDS_KEEP:
        keep.uid = text_of(r->uid);
        m.keep = &keep;
        m.payload_case = PB_CASE(KEEP);
        break;
    case ZT_ZDS_SNAPSHOT_SENT:
        m.snapshot_sent = &sent;
        m.payload_case = PB_CASE(SNAPSHOT_SENT);
        break;
    }
    return pack(&m.base, buf);
}

size_t zt_zds_encode_hello(unsigned version, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX])
{
    pb_hello m = ISTIO__WORKLOAD__ZDS__ZDS_HELLO__INIT;
    m.version = (Istio__Workload__Zds__Version)version;
    return pack(&m.base, buf);
}

size_t zt_zds_encode_ack(const char *error, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX])
{
    pb_response m = ISTIO__WORKLOAD__ZDS__WORKLOAD_RESPONSE__INIT;
    Istio__Workload__Zds__Ack ack = ISTIO__WORKLOAD__ZDS__ACK__INIT;
    char text[ZT_ZDS_ACK_TEXT_MAX];
    size_t n = strnlen(error, sizeof text - 1);
    memcpy(text, error, n);
    text[n] = '\0';
    ack.error = text;
    m.ack = &ack;
    m.payload_case = ISTIO__WORKLOAD__ZDS__WORKLOAD_RESPONSE__PAYLOAD_ACK;
    return pack(&m.base, buf);
}

/* ---- decoding ---- */

/* Copies s behind what is in out->text already. The sum of all strings of a packet is below its
 * size, so it fits. */
static const char *keep_text(struct zt_zds_request *out, size_t *used, const char *s)
{
    size_t n = strlen(s) + 1;
    ZT_ASSERT(*used + n <= sizeof out->text);
    char *copy = memcpy(out->text + *used, s, n);
    *used += n;
    return copy;
}

static enum zt_err take_request(const pb_request *m, struct zt_zds_request *out,
                                struct zt_error *err)
{
    size_t used = 0;
    switch (m->payload_case) {
    case PB_CASE(ADD):
        out->kind = ZT_ZDS_ADD;
        out->uid = keep_text(out, &used, m->add->uid);
        out->has_info = m->add->workload_info;
        if (out->has_info) {
            out->info.name = keep_text(out, &used, m->add->workload_info->name);
            out->info.ns = keep_text(out, &used, m->add->workload_info->namespace_);
            out->info.service_account =
                keep_text(out, &used, m->add->workload_info->service_account);
        }
        return ZT_OK;
    case PB_CASE(DEL):
        out->kind = ZT_ZDS_DEL;
        out->uid = keep_text(out, &used, m->del->uid);
        return ZT_OK;
    case PB_CASE(KEEP):
        out->kind = ZT_ZDS_KEEP;
        out->uid = keep_text(out, &used, m->keep->uid);
        return ZT_OK;
    case PB_CASE(SNAPSHOT_SENT):
        out->kind = ZT_ZDS_SNAPSHOT_SENT;
        return ZT_OK;
    default:
        return zt_error_set(err, ZT_INVALID, "no payload");
    }
}

enum zt_err zt_zds_decode_request(const uint8_t *bytes, size_t len, struct zt_zds_request *out,
                                  struct zt_error *err)
{
    memset(out, 0, sizeof *out);
    out->netns_fd = -1;
    if (len > ZT_ZDS_PACKET_BYTES_MAX)
        return zt_error_set(err, ZT_INVALID, "packet too long");
    pb_request *m = istio__workload__zds__workload_request__unpack(NULL, len, bytes);
    if (!m)
        return zt_error_set(err, ZT_INVALID, "invalid message");
    enum zt_err e = take_request(m, out, err);
    istio__workload__zds__workload_request__free_unpacked(m, NULL);
    return e;
}

enum zt_err zt_zds_decode_hello(const uint8_t *bytes, size_t len, unsigned *version,
                                struct zt_error *err)
{
    pb_hello *m = istio__workload__zds__zds_hello__unpack(NULL, len, bytes);
    if (!m)
        return zt_error_set(err, ZT_INVALID, "invalid hello");
    *version = (unsigned)m->version;
    istio__workload__zds__zds_hello__free_unpacked(m, NULL);
    return ZT_OK;
}

enum zt_err zt_zds_decode_ack(const uint8_t *bytes, size_t len,
                              char error[static ZT_ZDS_ACK_TEXT_MAX], struct zt_error *err)
{
    pb_response *m = istio__workload__zds__workload_response__unpack(NULL, len, bytes);
    if (!m)
        return zt_error_set(err, ZT_INVALID, "invalid acknowledgement");
    bool ack = m->payload_case == ISTIO__WORKLOAD__ZDS__WORKLOAD_RESPONSE__PAYLOAD_ACK;
    if (ack)
        zt_fmt(error, ZT_ZDS_ACK_TEXT_MAX, "%s", m->ack->error);
    istio__workload__zds__workload_response__free_unpacked(m, NULL);
    return ack ? ZT_OK : zt_error_set(err, ZT_INVALID, "no payload");
}

/* ---- packets ---- */

static enum zt_err from_errno(struct zt_error *err, const char *what)
{
    int errnum = errno;
    if (errnum == EAGAIN || errnum == EWOULDBLOCK)
        return ZT_AGAIN;
    bool gone = errnum == EPIPE || errnum == ECONNRESET || errnum == ENOTCONN;
    return zt_error_set_errno(err, gone ? ZT_RESET : ZT_IO, errnum, "%s", what);
}

enum zt_err zt_zds_send(int sock, const uint8_t *bytes, size_t len, int fd, struct zt_error *err)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;
    if (fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    do
        n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n < 0 ? from_errno(err, "send") : ZT_OK;
}

/* Keeps the first descriptor of the packet, closes all others. Returns how many there were. */
static unsigned collect_fds(struct msghdr *msg, int *first)
{
    unsigned n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
            if (n++ == 0)
                *first = fd;
            else
                close(fd);
        }
    }
    return n;
}

enum zt_err zt_zds_recv(int sock, uint8_t buf[static ZT_ZDS_PACKET_BYTES_MAX], size_t *len, int *fd,
                        struct zt_error *err)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = buf, .iov_len = ZT_ZDS_PACKET_BYTES_MAX};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control.bytes};
    ssize_t n;
    *fd = -1;
    do
        n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return from_errno(err, "recv");
    unsigned fds = collect_fds(&msg, fd);
    bool cut = msg.msg_flags & MSG_CTRUNC;
    const char *wrong = NULL;
    if (msg.msg_flags & MSG_TRUNC)
        wrong = "packet too long";
    else if (cut && fds == 0)
        wrong = "file descriptor lost (too many open files?)";
    else if (cut || fds > 1)
        wrong = "more than one file descriptor";
    if (!wrong && (n > 0 || fds > 0)) {
        *len = (size_t)n;
        return ZT_OK;
    }
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return wrong ? zt_error_set(err, ZT_INVALID, "%s", wrong) : ZT_EOF;
}

enum zt_err zt_zds_recv_request(int sock, struct zt_zds_request *out, struct zt_error *err)
{
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    size_t len = 0;
    int fd = -1;
    enum zt_err e = zt_zds_recv(sock, buf, &len, &fd, err);
    if (e != ZT_OK)
        return e;
    e = zt_zds_decode_request(buf, len, out, err);
    if (e == ZT_OK && out->kind == ZT_ZDS_ADD && fd < 0)
        e = zt_error_set(err, ZT_INVALID, "no file descriptor");
    if (e == ZT_OK && out->kind != ZT_ZDS_ADD && fd >= 0)
        e = zt_error_set(err, ZT_INVALID, "unexpected file descriptor");
    if (e == ZT_OK)
        out->netns_fd = fd;
    else if (fd >= 0)
        close(fd);
    return e;
}
