/* Records from a hostile peer after the handshake: the record layer, and the TLS stream above it.
 *
 * Input: byte 0: bit 0 the suite, bit 1 seal (the fuzzer knows the keys: contents are hostile, not only the outside) or raw,
 * bit 2 our role. Raw: the rest is the ciphertext. Seal: the rest is a list of {content type, length, bytes}; each is sealed
 * as one record; a KeyUpdate moves the keys on, as the peer would. */
#include "net/tls_impl.h"
#include "support/stream_mem.h"
#include "zt/base/mem.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send_bytes(struct zt_stream *s, const uint8_t *bytes, size_t n)
{
    size_t accepted;
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    if (n > 0)
        zt_stream_writev(s, &iov, 1, &accepted);
}

static void send_sealed(struct zt_stream *s, struct zt_tls_dir *keys, const uint8_t *data, size_t size)
{
    uint8_t rec[255 + ZT_TLS_RECORD_OVERHEAD_MAX];
    while (size >= 2) {
        size_t n = data[1] < size - 2 ? data[1] : size - 2;
        struct iovec iov = {(void *)(uintptr_t)(data + 2), n};
        send_bytes(s, rec, zt_tls_record_seal(keys, (enum zt_tls_content)data[0], &iov, 1, n, rec));
        if (data[0] == ZT_TLS_HANDSHAKE_MSG && n >= 1 && data[2] == 24)
            zt_tls_dir_update(keys, true);
        data += 2 + n;
        size -= 2 + n;
    }
}

static struct zt_tls_dir keys_of(uint16_t suite, uint8_t fill, bool seal)
{
    uint8_t secret[ZT_TLS_SECRET_BYTES_MAX];
    struct zt_tls_dir d;
    memset(secret, fill, sizeof(secret));
    ZT_ASSERT(!zt_tls_dir_init_secret(&d, suite, secret, suite == 0x1302 ? 48 : 32, seal, NULL));
    return d;
}

/* Reads to the end, keeping back every third record so that runs of several records are met too. */
static void drain(struct zt_stream *s)
{
    uint8_t *bytes;
    size_t len = 0, seen = 0;
    for (int i = 0; i < 1000; i++) {
        enum zt_err e = zt_stream_peek(s, seen, &bytes, &len);
        if (e && e != ZT_AGAIN)
            return;
        if (e && seen == 0)
            return;
        if (e || i % 3) {
            zt_stream_consume(s, e ? seen : len);
            seen = 0;
        } else {
            seen = len;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct zt_mem_opts opts = {.capacity_bytes = 1 << 20};
    struct zt_stream *lower, *peer;

    if (size < 1)
        return 0;
    struct zt_loop *loop = zt_loop_new("fuzz");
    uint16_t suite = data[0] & 1 ? 0x1301 : 0x1302;
    struct zt_tls_dir in = keys_of(suite, 1, false), out = keys_of(suite, 2, true), theirs = keys_of(suite, 1, true);
    zt_mem_pair(loop, &opts, &lower, &peer);
    struct zt_stream *s = zt_tls_stream_new(loop, lower, &in, &out, data[0] & 4);
    if (data[0] & 2)
        send_sealed(peer, &theirs, data + 1, size - 1);
    else
        send_bytes(peer, data + 1, size - 1);
    drain(s);
    zt_loop_run_once(loop, false);
    zt_stream_close(s, ZT_OK);
    zt_stream_close(peer, ZT_OK);
    zt_tls_dir_fini(&theirs);
    zt_loop_run_once(loop, false);
    zt_loop_free(loop);
    return 0;
}
