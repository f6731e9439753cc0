/* The commands that ask once and print. */
#include "ctl/invocation.h"
#include "ctl/issue.h"
#include "ctl/show.h"
#include "ctl/term.h"
#include "zt/base/err.h"
#include "zt/base/mem.h"
#include <string.h>

#define PATH_BYTES_MAX 65536

int zt_ctl_failed(const struct zt_ctl_invocation *in, int code, const char *text)
{
    fputs("ztctl: ", in->err_out);
    zt_term_print(in->err_out, text);
    fputc('\n', in->err_out);
    return code;
}

int zt_ctl_get(const struct zt_ctl_invocation *in, bool post, const char *path, struct zt_ctl_reply *reply)
{
    zt_ctl_ask(in->socket_path, post, path, reply);
    if (!*reply->error)
        return ZT_CTL_OK;
    return zt_ctl_failed(in, reply->status ? ZT_CTL_REFUSED : ZT_CTL_UNREACHABLE, reply->error);
}

void zt_ctl_print_json(const struct zt_ctl_invocation *in, const json_t *json)
{
    json_dumpf(json, in->out, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    fputc('\n', in->out);
}

void zt_ctl_add_query(struct zt_str *path, const char *key, const char *value)
{
    if (!value)
        return;
    char *escaped = zt_ctl_escape(value);
    zt_str_addf(path, "%c%s=%s", strchr(zt_str_cstr(path), '?') ? '&' : '?', key, escaped);
    zt_free(escaped);
}

/* Asks and prints: member of the answer (NULL: all of it), by show or as JSON. */
static int ask_and_show(const struct zt_ctl_invocation *in, bool post, const char *path, const char *member,
                        void (*show)(const json_t *json, FILE *out))
{
    struct zt_ctl_reply reply;
    int code = zt_ctl_get(in, post, path, &reply);
    const json_t *json = code == ZT_CTL_OK && member ? json_object_get(reply.json, member) : reply.json;
    if (code == ZT_CTL_OK && in->json)
        zt_ctl_print_json(in, json);
    else if (code == ZT_CTL_OK)
        show(json, in->out);
    zt_ctl_reply_fini(&reply);
    return code;
}

int zt_ctl_run_status(const struct zt_ctl_invocation *in)
{
    return ask_and_show(in, false, "/v1/status", NULL, zt_ctl_show_status);
}

int zt_ctl_run_pods(const struct zt_ctl_invocation *in)
{
    return ask_and_show(in, false, "/v1/status", "pods", zt_ctl_show_pods);
}

int zt_ctl_run_certs(const struct zt_ctl_invocation *in)
{
    return ask_and_show(in, false, "/v1/status", "certificates", zt_ctl_show_certificates);
}

int zt_ctl_run_policies(const struct zt_ctl_invocation *in)
{
    return ask_and_show(in, false, "/v1/policies", NULL, zt_ctl_show_policies);
}

int zt_ctl_run_connections(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/v1/connections");
    zt_ctl_add_query(&path, "pod", in->options[ZT_CTL_POD]);
    zt_ctl_add_query(&path, "peer", in->options[ZT_CTL_PEER]);
    zt_ctl_add_query(&path, "sort", in->options[ZT_CTL_SORT]);
    zt_ctl_add_query(&path, "limit", in->options[ZT_CTL_LIMIT]);
    int code = ask_and_show(in, false, zt_str_cstr(&path), NULL, zt_ctl_show_connections);
    zt_str_fini(&path);
    return code;
}

int zt_ctl_run_explain(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/v1/explain");
    zt_ctl_add_query(&path, "src", in->words[1]);
    zt_ctl_add_query(&path, "dst", in->words[2]);
    int code = ask_and_show(in, false, zt_str_cstr(&path), NULL, zt_ctl_show_explain);
    zt_str_fini(&path);
    return code;
}

int zt_ctl_run_dns(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/v1/dns");
    zt_ctl_add_query(&path, "src", in->n_words > 1 ? in->words[1] : NULL);
    zt_ctl_add_query(&path, "name", in->n_words > 2 ? in->words[2] : NULL);
    int code = ask_and_show(in, false, zt_str_cstr(&path), NULL, zt_ctl_show_dns);
    zt_str_fini(&path);
    return code;
}

int zt_ctl_run_why_denied(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/v1/denials");
    zt_ctl_add_query(&path, "n", in->options[ZT_CTL_LAST]);
    int code = ask_and_show(in, false, zt_str_cstr(&path), NULL, zt_ctl_show_denials);
    zt_str_fini(&path);
    return code;
}

/* A text answer, as it comes. */
static int copy_text(const struct zt_ctl_invocation *in, bool post, const char *path)
{
    struct zt_ctl_reply reply;
    zt_ctl_copy(in->socket_path, post, path, in->out, &reply);
    if (!*reply.error)
        return ZT_CTL_OK;
    return zt_ctl_failed(in, reply.status ? ZT_CTL_REFUSED : ZT_CTL_UNREACHABLE, reply.error);
}

int zt_ctl_run_dump(const struct zt_ctl_invocation *in)
{
    return copy_text(in, false, "/config_dump");
}

int zt_ctl_run_log(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/logging");
    zt_ctl_add_query(&path, "level", in->n_words > 1 ? in->words[1] : NULL);
    zt_ctl_add_query(&path, "reset", in->options[ZT_CTL_RESET]);
    int code = copy_text(in, true, zt_str_cstr(&path));
    zt_str_fini(&path);
    return code;
}

int zt_ctl_run_issue(const struct zt_ctl_invocation *in)
{
    struct zt_ctl_reply reply;
    struct zt_str path;
    struct zt_error err = ZT_ERROR_INIT;
    zt_str_init(&path, PATH_BYTES_MAX);
    zt_str_add(&path, "/v1/ca/issue");
    zt_ctl_add_query(&path, "id", in->words[2]);
    int code = zt_ctl_get(in, true, zt_str_cstr(&path), &reply);
    if (code == ZT_CTL_OK && zt_ctl_write_certificate(reply.json, in->words[3], &err) != ZT_OK)
        code = zt_ctl_failed(in, ZT_CTL_REFUSED, err.text);
    zt_ctl_reply_fini(&reply);
    zt_str_fini(&path);
    return code;
}
