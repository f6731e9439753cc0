/* The command line of ztctl: options, commands, exit codes. */
#include "zt/ctl/ctl.h"
#include "ctl/client.h"
#include "ctl/issue.h"
#include "ctl/show.h"
#include "ctl/term.h"
#include "zt/base/err.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 8

struct invocation {
    const char *socket_path;
    bool json;
    const char *words[WORDS_MAX]; /* command and arguments */
    unsigned n_words;
    FILE *out, *err_out;
};

static const char help_text[] =
    "ztctl - ask the ztunneld of this node\n"
    "\n"
    "usage:\n"
    "  ztctl [options] status                          readiness, pods, connections, certificates\n"
    "  ztctl [options] pods                            the node's pods, and why one has no proxy\n"
    "  ztctl [options] explain NAMESPACE/POD ADDR:PORT what would happen to this connection; ADDR: an address or a\n"
    "                                                  service's full hostname\n"
    "  ztctl [options] ca issue SPIFFE-ID DIR          a certificate of the local CA into DIR: cert-chain.pem,\n"
    "                                                  key.pem, root-cert.pem\n"
    "  ztctl version | help\n"
    "\n"
    "options:\n"
    "  --socket PATH    the daemon's control socket (else $ZTUNNELD_CTL_SOCKET, else " ZT_CTL_SOCKET_DEFAULT ")\n"
    "  -o table|json    for people (default) or for programs\n"
    "\n"
    "exit status: 0 done, 1 the daemon refused or a file could not be written, 2 wrong usage, 3 no daemon answers\n";

static int usage_error(const struct invocation *in, const char *what, const char *word)
{
    fprintf(in->err_out, "ztctl: %s", what);
    if (word) {
        fputs(": ", in->err_out);
        zt_term_print(in->err_out, word);
    }
    fputs("; see ztctl help\n", in->err_out);
    return ZT_CTL_USAGE;
}

static int failed(const struct invocation *in, int code, const char *text)
{
    fputs("ztctl: ", in->err_out);
    zt_term_print(in->err_out, text);
    fputc('\n', in->err_out);
    return code;
}

/* One request; the exit code, with the answer in reply when it is ZT_CTL_OK. */
static int ask(const struct invocation *in, bool post, const char *path, struct zt_ctl_reply *reply)
{
    zt_ctl_ask(in->socket_path, post, path, reply);
    if (!*reply->error)
        return ZT_CTL_OK;
    return failed(in, reply->status ? ZT_CTL_REFUSED : ZT_CTL_UNREACHABLE, reply->error);
}

static void print_json(const struct invocation *in, const json_t *json)
{
    json_dumpf(json, in->out, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    fputc('\n', in->out);
}

/* ---- commands ---- */

static int run_status(const struct invocation *in)
{
    struct zt_ctl_reply reply;
    int code = ask(in, false, "/v1/status", &reply);
    if (code == ZT_CTL_OK && in->json)
        print_json(in, reply.json);
    else if (code == ZT_CTL_OK)
        zt_ctl_show_status(reply.json, in->out);
    zt_ctl_reply_fini(&reply);
    return code;
}

static int run_pods(const struct invocation *in)
{
    struct zt_ctl_reply reply;
    int code = ask(in, false, "/v1/status", &reply);
    const json_t *pods = code == ZT_CTL_OK ? json_object_get(reply.json, "pods") : NULL;
    if (code == ZT_CTL_OK && in->json)
        print_json(in, pods);
    else if (code == ZT_CTL_OK)
        zt_ctl_show_pods(pods, in->out);
    zt_ctl_reply_fini(&reply);
    return code;
}

static int run_explain(const struct invocation *in)
{
    struct zt_ctl_reply reply;
    struct zt_str path;
    char *src = zt_ctl_escape(in->words[1]), *dst = zt_ctl_escape(in->words[2]);
    zt_str_init(&path, 65536);
    zt_str_addf(&path, "/v1/explain?src=%s&dst=%s", src, dst);
    int code = ask(in, false, zt_str_cstr(&path), &reply);
    if (code == ZT_CTL_OK && in->json)
        print_json(in, reply.json);
    else if (code == ZT_CTL_OK)
        zt_ctl_show_explain(reply.json, in->out);
    zt_ctl_reply_fini(&reply);
    zt_str_fini(&path);
    zt_free(src);
    zt_free(dst);
    return code;
}

static int run_issue(const struct invocation *in)
{
    struct zt_ctl_reply reply;
    struct zt_str path;
    struct zt_error err = ZT_ERROR_INIT;
    char *id = zt_ctl_escape(in->words[2]);
    zt_str_init(&path, 65536);
    zt_str_addf(&path, "/v1/ca/issue?id=%s", id);
    int code = ask(in, true, zt_str_cstr(&path), &reply);
    if (code == ZT_CTL_OK && zt_ctl_write_certificate(reply.json, in->words[3], &err) != ZT_OK)
        code = failed(in, ZT_CTL_REFUSED, err.text);
    zt_ctl_reply_fini(&reply);
    zt_str_fini(&path);
    zt_free(id);
    return code;
}

static int run_help(const struct invocation *in)
{
    fputs(help_text, in->out);
    return ZT_CTL_OK;
}

static int run_version(const struct invocation *in)
{
    fputs("ztctl " ZT_VERSION "\n", in->out);
    return ZT_CTL_OK;
}

static const struct command {
    const char *name, *subname; /* subname: the second word, or NULL */
    unsigned n_arguments;
    int (*run)(const struct invocation *in);
} commands[] = {
    {"status", NULL, 0, run_status}, {"pods", NULL, 0, run_pods}, {"explain", NULL, 2, run_explain}, {"ca", "issue", 2, run_issue},
    {"help", NULL, 0, run_help},     {"version", NULL, 0, run_version},
};

static int run_command(const struct invocation *in)
{
    if (in->n_words == 0)
        return usage_error(in, "a command is missing", NULL);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        const struct command *c = &commands[i];
        unsigned n_names = c->subname ? 2 : 1;
        if (strcmp(in->words[0], c->name) != 0)
            continue;
        if (c->subname && (in->n_words < 2 || strcmp(in->words[1], c->subname) != 0))
            return usage_error(in, "unknown command", in->n_words < 2 ? in->words[0] : in->words[1]);
        if (in->n_words != n_names + c->n_arguments)
            return usage_error(in, "wrong number of arguments for", c->name);
        return c->run(in);
    }
    return usage_error(in, "unknown command", in->words[0]);
}

/* ---- options ---- */

/* The value of an option at argv[*i]: after "=", or the next word. NULL: it is another option. */
static const char *option_value(const char *name, int argc, char **argv, int *i, bool *missing)
{
    size_t len = strlen(name);
    if (strncmp(argv[*i], name, len) != 0)
        return NULL;
    if (argv[*i][len] == '=')
        return argv[*i] + len + 1;
    if (argv[*i][len] != '\0')
        return NULL;
    *missing = *i + 1 >= argc;
    return *missing ? "" : argv[++*i];
}

static int parse_option(struct invocation *in, int argc, char **argv, int *i)
{
    bool missing = false;
    const char *word = argv[*i], *value;
    if ((value = option_value("--socket", argc, argv, i, &missing))) {
        in->socket_path = value;
    } else if ((value = option_value("-o", argc, argv, i, &missing)) ||
               (value = option_value("--output", argc, argv, i, &missing))) {
        in->json = strcmp(value, "json") == 0;
        if (!missing && !in->json && strcmp(value, "table") != 0)
            return usage_error(in, "unknown output format", value);
    } else if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
        in->words[0] = "help";
        in->n_words = 1;
        *i = argc;
    } else {
        return usage_error(in, "unknown option", word);
    }
    return missing ? usage_error(in, "a value is missing after", word) : ZT_CTL_OK;
}

int zt_ctl_main(int argc, char **argv, FILE *out, FILE *err_out)
{
    struct invocation in = {.out = out, .err_out = err_out};
    const char *from_env = getenv("ZTUNNELD_CTL_SOCKET");
    in.socket_path = from_env && *from_env ? from_env : ZT_CTL_SOCKET_DEFAULT;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1]) {
            int code = parse_option(&in, argc, argv, &i);
            if (code != ZT_CTL_OK)
                return code;
        } else if (in.n_words == WORDS_MAX) {
            return usage_error(&in, "too many arguments", argv[i]);
        } else {
            in.words[in.n_words++] = argv[i];
        }
    }
    int code = run_command(&in);
    if (fflush(out) != 0 && code == ZT_CTL_OK)
        code = failed(&in, ZT_CTL_REFUSED, "cannot write the answer");
    return code;
}
