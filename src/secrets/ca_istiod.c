/* istiod as the CA: one unary gRPC call for each certificate.
 *
 *   ASKED     the call is on its way (rpc)          -> answered, or cancelled
 *   FAILED    it could not be sent: a task answers  -> answered, or cancelled
 *
 * Invariants: every call is on `calls` until its answer begins; done runs as the last thing, when
 * the call is off the list and the request belongs to its owner again. What comes back is text of a
 * peer: it is bounded here and judged by the secret manager. */
#include "zt/secrets/ca_istiod.h"

#include "ca.pb-c.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <string.h>

#define METHOD "/istio.v1.auth.IstioCertificateService/CreateCertificate"
#define IMPERSONATED "ImpersonatedIdentity"

struct ca_istiod {
    struct zt_ca ca;
    struct zt_ca_istiod_config config;
    struct zt_link calls;
};

struct call {
    struct zt_link calls_link;
    struct ca_istiod *ca;
    struct zt_ca_request *request;
    struct zt_rpc_call *rpc;        /* NULL: it could not be sent */
    struct zt_rpc_message *message; /* the answer, until its status is known */
    struct zt_task task;
    struct zt_error error; /* FAILED */
};

static void free_call(struct call *c)
{
    zt_list_remove(&c->calls_link);
    zt_task_cancel(&c->task);
    zt_rpc_call_free(c->rpc);
    zt_rpc_message_free(c->message);
    zt_free(c);
}

/* Hands reply, borrowed from c, to the one who asked; c is gone afterwards. */
static void answer(struct call *c, const struct zt_ca_reply *reply)
{
    struct zt_ca_request *request = c->request;
    request->pending = NULL;
    zt_list_remove(&c->calls_link);
    zt_rpc_call_free(c->rpc); /* done may free the CA, and so the channel */
    c->rpc = NULL;
    request->done(request, reply);
    free_call(c);
}

static void on_failed(struct zt_task *task)
{
    struct call *c = zt_container_of(task, struct call, task);
    answer(c, &(struct zt_ca_reply){.code = c->error.code, .error = c->error.text});
}

/* ---- the answer ---- */

static void answer_text(struct call *c, enum zt_err code, const char *text)
{
    answer(c, &(struct zt_ca_reply){.code = code, .error = text});
}

/* Borrowed from the message, one piece. */
static void answer_chain(struct call *c)
{
    struct zt_rpc_reader reader;
    size_t n = zt_rpc_message_bytes(c->message); /* bounded by the channel */
    zt_rpc_reader_init(&reader, c->message);
    const uint8_t *bytes = zt_rpc_reader_take(&reader, n);
    Istio__V1__Auth__IstioCertificateResponse *response =
        istio__v1__auth__istio_certificate_response__unpack(NULL, n, bytes);
    if (!response) {
        answer_text(c, ZT_INVALID, "signing error: the CA's answer does not decode");
    } else if (response->n_cert_chain > ZT_CA_ISTIOD_CHAIN_MAX) {
        answer_text(c, ZT_LIMIT, "signing error: the CA's answer has too many certificates");
    } else {
        const char *chain[ZT_CA_ISTIOD_CHAIN_MAX];
        for (size_t i = 0; i < response->n_cert_chain; i++)
            chain[i] = response->cert_chain[i];
        answer(c, &(struct zt_ca_reply){.code = ZT_OK,
                                        .chain_pem = chain,
                                        .n_chain = (unsigned)response->n_cert_chain});
    }
    if (response)
        istio__v1__auth__istio_certificate_response__free_unpacked(response, NULL);
    zt_rpc_reader_fini(&reader);
}

static void on_message(void *owner, struct zt_rpc_message *m)
{
    struct call *c = owner;
    zt_rpc_message_free(c->message);
    c->message = m;
}

static void on_status(void *owner, const struct zt_rpc_status *status)
{
    struct call *c = owner;
    if (status->code == ZT_RPC_OK && c->message) {
        answer_chain(c);
        return;
    }
    char text[ZT_RPC_STATUS_TEXT_MAX + 128];
    zt_fmt(text, sizeof text, "signing gRPC error (%s): %s", zt_rpc_code_sentence(status->code),
           status->text);
    answer_text(c, status->code == ZT_RPC_DEADLINE_EXCEEDED ? ZT_TIMEOUT : ZT_IO, text);
}

static const struct zt_rpc_events events = {.on_message = on_message, .on_status = on_status};

/* ---- the request ---- */

/* protobuf-c takes texts without const and does not change them. */
static char *mutable(const char *text)
{
    return (char *)(uintptr_t)text;
}

static void send_request(struct call *c, const char *identity, const char *csr_pem, uint64_t ttl_s)
{
    const struct zt_ca_istiod_config *config = &c->ca->config;
    Google__Protobuf__Value value = GOOGLE__PROTOBUF__VALUE__INIT;
    Google__Protobuf__Struct__FieldsEntry entry = GOOGLE__PROTOBUF__STRUCT__FIELDS_ENTRY__INIT;
    Google__Protobuf__Struct metadata = GOOGLE__PROTOBUF__STRUCT__INIT;
    Google__Protobuf__Struct__FieldsEntry *entries[] = {&entry};
    Istio__V1__Auth__IstioCertificateRequest request =
        ISTIO__V1__AUTH__ISTIO_CERTIFICATE_REQUEST__INIT;

    value.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
    value.string_value = mutable(identity);
    entry.key = mutable(IMPERSONATED);
    entry.value = &value;
    metadata.n_fields = 1;
    metadata.fields = entries;
    request.csr = mutable(csr_pem);
    request.validity_duration = ttl_s > INT64_MAX ? INT64_MAX : (int64_t)ttl_s;
    if (config->impersonate)
        request.metadata = &metadata;

    size_t n = istio__v1__auth__istio_certificate_request__get_packed_size(&request);
    uint8_t *bytes = zt_zalloc(n);
    istio__v1__auth__istio_certificate_request__pack(&request, bytes);
    zt_rpc_unary_start(config->channel, METHOD, bytes, n, config->timeout_ms, &events, c, &c->rpc,
                       &c->error);
    zt_free(bytes);
}

static void sign(struct zt_ca *base, struct zt_ca_request *r, const char *identity,
                 const char *csr_pem, uint64_t ttl_s)
{
    struct ca_istiod *ca = zt_container_of(base, struct ca_istiod, ca);
    zt_loop_assert_owner(ca->config.loop);
    struct call *c = zt_new(struct call);
    c->ca = ca;
    c->request = r;
    c->task.run = on_failed;
    r->pending = c;
    zt_list_push_back(&ca->calls, &c->calls_link);
    send_request(c, identity, csr_pem, ttl_s);
    if (!c->rpc) {
        /* The library's words for what never left this node (spec/controlplane §1.3). */
        zt_error_wrap(&c->error, "signing gRPC error (%s)", zt_rpc_code_sentence(ZT_RPC_UNKNOWN));
        zt_loop_soon(ca->config.loop, &c->task);
    }
}

static void cancel(struct zt_ca *base, struct zt_ca_request *r)
{
    (void)base;
    ZT_ASSERT(r->pending);
    free_call(r->pending);
    r->pending = NULL;
}

static void free_ca(struct zt_ca *base)
{
    struct ca_istiod *ca = zt_container_of(base, struct ca_istiod, ca);
    ZT_ASSERT(zt_list_empty(&ca->calls));
    zt_rpc_channel_free(ca->config.channel);
    zt_free(ca);
}

static const struct zt_ca_ops ops = {.sign = sign, .cancel = cancel, .free = free_ca};

struct zt_ca *zt_ca_istiod_new(const struct zt_ca_istiod_config *config)
{
    struct ca_istiod *ca = zt_new(struct ca_istiod);
    ca->ca.ops = &ops;
    ca->config = *config;
    if (ca->config.timeout_ms == 0)
        ca->config.timeout_ms = ZT_CA_ISTIOD_TIMEOUT_MS;
    zt_list_init(&ca->calls);
    return &ca->ca;
}
