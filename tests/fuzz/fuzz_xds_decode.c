/* Discovery responses from a hostile server: any bytes, in slices of any size, as either type. The first byte says how they are cut;
 * whatever they are, the mirror takes them, and takes a good response afterwards. */
#include "support/xds_fixture.h"
#include "xds/xds_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void apply(struct zt_xds_mirror *m, const void *bytes, size_t n, size_t slice_bytes)
{
    struct zt_store_changes changes;
    struct zt_xds_outcome outcome;
    if (zt_xds_mirror_begin(m, xds_message(bytes, n, slice_bytes))) {
        bool more = true;
        while (more) {
            more = zt_xds_mirror_step(m, &changes);
            zt_store_changes_fini(&changes);
        }
    }
    zt_xds_mirror_end(m, &outcome);
    if (outcome.nack)
        ZT_ASSERT(zt_wire_is_text((const uint8_t *)outcome.nack, __builtin_strlen(outcome.nack)));
    zt_xds_outcome_fini(&outcome);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t ip[] = {10, 0, 0, 1};
    struct zt_store *store = zt_store_new(&(struct zt_store_config){.network = ""});
    struct zt_xds_mirror *m = zt_xds_mirror_new(store);
    struct zt_str good;
    if (size > 0)
        apply(m, data + 1, size - 1, data[0]);
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES && size > 0; t++) { /* the bytes as one payload */
        struct zt_str s;
        xds_response_init(&s, zt_xds_type_url(t), "n");
        xds_response_raw(&s, "fuzz/name", "v", data + 1, size - 1);
        apply(m, s.data, s.len, data[0]);
        zt_str_fini(&s);
    }
    xds_response_init(&good, ZT_XDS_TYPE_ADDRESS, "n");
    xds_response_pod(&good, "c//Pod/ns1/good", "v1", ip, "ns1/svc");
    apply(m, good.data, good.len, 0);
    zt_str_fini(&good);
    struct zt_workload *w = zt_store_find_workload(store, "c//Pod/ns1/good");
    ZT_ASSERT(w);
    zt_workload_unref(w);
    zt_xds_mirror_free(m);
    zt_store_free(store);
    return 0;
}
