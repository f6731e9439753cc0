/* One call of ztctl: what was typed, and what every command does with it. Private to ctl. */
#ifndef ZT_CTL_INVOCATION_H
#define ZT_CTL_INVOCATION_H

#include "ctl/client.h"
#include "zt/base/str.h"
#include "zt/ctl/ctl.h"

#define ZT_CTL_WORDS_MAX 8

enum zt_ctl_option { /* of single commands; a value, or "" for one that has none */
    ZT_CTL_POD,
    ZT_CTL_PEER,
    ZT_CTL_SORT,
    ZT_CTL_LIMIT,
    ZT_CTL_LAST,
    ZT_CTL_OFF,
    ZT_CTL_FOLLOW,
    ZT_CTL_ONCE,
    ZT_CTL_RESET,
    ZT_CTL_OPTIONS_N,
};

struct zt_ctl_invocation {
    const char *socket_path;
    bool json;
    const char *words[ZT_CTL_WORDS_MAX]; /* command and arguments */
    unsigned n_words;
    const char *options[ZT_CTL_OPTIONS_N]; /* NULL: not given */
    FILE *out, *err_out;
};

/* One line on err_out; returns code. */
int zt_ctl_failed(const struct zt_ctl_invocation *in, int code, const char *text);
/* One request; the exit code, with the answer in reply when it is ZT_CTL_OK. zt_ctl_reply_fini in any case. */
int zt_ctl_get(const struct zt_ctl_invocation *in, bool post, const char *path, struct zt_ctl_reply *reply);
void zt_ctl_print_json(const struct zt_ctl_invocation *in, const json_t *json);
/* Appends key=value, escaped, after ? or &; value NULL: nothing. */
void zt_ctl_add_query(struct zt_str *path, const char *key, const char *value);

/* commands.c */
int zt_ctl_run_status(const struct zt_ctl_invocation *in);
int zt_ctl_run_pods(const struct zt_ctl_invocation *in);
int zt_ctl_run_connections(const struct zt_ctl_invocation *in);
int zt_ctl_run_policies(const struct zt_ctl_invocation *in);
int zt_ctl_run_certs(const struct zt_ctl_invocation *in);
int zt_ctl_run_explain(const struct zt_ctl_invocation *in);
int zt_ctl_run_dns(const struct zt_ctl_invocation *in);
int zt_ctl_run_why_denied(const struct zt_ctl_invocation *in);
int zt_ctl_run_log(const struct zt_ctl_invocation *in);
int zt_ctl_run_dump(const struct zt_ctl_invocation *in);
int zt_ctl_run_issue(const struct zt_ctl_invocation *in);
/* live.c: commands that go on until they are interrupted */
int zt_ctl_run_top(const struct zt_ctl_invocation *in);
int zt_ctl_run_trace(const struct zt_ctl_invocation *in);

#endif
