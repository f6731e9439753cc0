/* POST /v1/ca/issue: a certificate of the local CA for a program that is not one of our pods. The key is made here, sent once to root or
 * our own user over the control socket, and wiped. */
#include "app/ctl_impl.h"
#include "zt/base/identity.h"
#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/secrets/csr.h"
#include <string.h>

struct issue {
    struct zt_ca_request ca_request;
    struct zt_http1_request *request;
    struct zt_csr csr;
    char identity[ZT_IDENTITY_MAX];
};

static void issue_free(struct issue *i)
{
    zt_csr_fini(&i->csr);
    zt_free(i);
}

/* Leaf and intermediates; the reply's last text is the bundle of roots. */
static void write_chain(struct zt_json *j, const struct zt_ca_reply *reply)
{
    struct zt_str chain;
    zt_str_init(&chain, ZT_CTL_REPLY_BYTES_MAX);
    for (unsigned n = 0; n + 1 < reply->n_chain; n++)
        zt_str_add(&chain, reply->chain_pem[n]);
    zt_json_key_str(j, "chain", zt_str_cstr(&chain));
    zt_str_fini(&chain);
}

static void on_signed(struct zt_ca_request *r, const struct zt_ca_reply *reply)
{
    struct issue *i = zt_container_of(r, struct issue, ca_request);
    struct zt_str body;
    struct zt_json j;
    if (reply->code != ZT_OK || reply->n_chain < 2) {
        zt_ctl_reply_error(i->request, 500, "the local CA did not sign: %s",
                           reply->code != ZT_OK ? reply->error : "its answer has no chain");
        issue_free(i);
        return;
    }
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    zt_json_init(&j, &body, false);
    zt_json_object(&j);
    write_chain(&j, reply);
    zt_json_key_str(&j, "key", i->csr.key_pem);
    zt_json_key_str(&j, "roots", reply->chain_pem[reply->n_chain - 1]);
    zt_json_object_end(&j);
    zt_log_info("ctl", "issued a certificate for %s", i->identity);
    zt_http1_reply_secret(i->request, 200, "application/json", &body);
    issue_free(i);
}

void zt_ctl_on_issue(void *arg, struct zt_http1_request *r)
{
    const struct zt_ctl_sources *sources = arg;
    const char *id = zt_http1_request_query(r, "id");
    struct zt_error err = ZT_ERROR_INIT;
    if (!sources->ca) {
        zt_ctl_reply_error(r, 503, "this daemon has no local CA; start it with LOCAL_CA_PATH");
        return;
    }
    if (!id || !zt_identity_parse(id, strlen(id), NULL)) {
        zt_ctl_reply_error(r, 400, "not a SPIFFE id: write spiffe://<trust domain>/ns/<namespace>/sa/<service account>");
        return;
    }
    struct issue *i = zt_new(struct issue);
    i->request = r;
    i->ca_request.done = on_signed;
    zt_fmt(i->identity, sizeof i->identity, "%s", id);
    if (zt_csr_init(&i->csr, id, &err) != ZT_OK) {
        zt_ctl_reply_error(r, 500, "%s", err.text);
        issue_free(i);
        return;
    }
    zt_ca_sign(sources->ca, &i->ca_request, i->identity, i->csr.pem, sources->state.config->secret_ttl_s);
}
