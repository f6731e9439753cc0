/* The local xDS document: whatever the bytes, a batch or an error that names the place. */
#include "zt/config/local.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct zt_batch *batch = NULL;
    struct zt_local_info info;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_local_parse("input", (const char *)data, size, &batch, &info, &err) == ZT_OK) {
        ZT_ASSERT(zt_batch_size(batch) == info.n_workloads + info.n_services + info.n_policies);
        zt_batch_free(batch);
    } else {
        ZT_ASSERT(strncmp(err.text, "input:", 6) == 0);
    }
    return 0;
}
