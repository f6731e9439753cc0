/* ZDS messages from a hostile CNI daemon: what decodes encodes again, and decodes to the same. */
#include "zt/cni/zds.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same(const char *a, const char *b)
{
    ZT_ASSERT(strcmp(a ? a : "", b ? b : "") == 0);
}

static void request(const uint8_t *data, size_t size)
{
    struct zt_zds_request r, again;
    struct zt_error err = ZT_ERROR_INIT;
    uint8_t buf[ZT_ZDS_PACKET_BYTES_MAX];
    if (zt_zds_decode_request(data, size, &r, &err) != ZT_OK)
        return;
    size_t n = zt_zds_encode_request(&r, buf);
    ZT_ASSERT(n > 0); /* never longer than what it came from */
    ZT_ASSERT(zt_zds_decode_request(buf, n, &again, &err) == ZT_OK);
    ZT_ASSERT(again.kind == r.kind && again.has_info == r.has_info);
    same(r.uid, again.uid);
    same(r.info.name, again.info.name);
    same(r.info.ns, again.info.ns);
    same(r.info.service_account, again.info.service_account);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[ZT_ZDS_ACK_TEXT_MAX];
    unsigned version;
    request(data, size);
    zt_zds_decode_hello(data, size, &version, NULL);
    if (zt_zds_decode_ack(data, size, text, NULL) == ZT_OK)
        ZT_ASSERT(strlen(text) < sizeof text);
    return 0;
}
