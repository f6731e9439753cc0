/* The command line of ztctl: options, commands, exit codes. */
#include "zt/ctl/ctl.h"
#include "ctl/invocation.h"
#include "ctl/term.h"
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "ztctl - ask the ztunneld of this node\n"
    "\n"
    "usage:\n"
    "  ztctl [options] status                          readiness, pods, connections, certificates\n"
    "  ztctl [options] pods                            the node's pods, and why one has no proxy\n"
    "  ztctl [options] connections [--pod [NAMESPACE/]POD] [--peer TEXT] [--sort bytes|age] [--limit N]\n"
    "                                                  open connections; TEXT: part of an address or identity\n"
    "  ztctl [options] top [--pod [NAMESPACE/]POD] [--once]\n"
    "                                                  the connections that move most, every two seconds\n"
    "  ztctl [options] policies                        authorization policies\n"
    "  ztctl [options] certs                           certificates and the time they have left\n"
    "  ztctl [options] explain NAMESPACE/POD ADDR:PORT what would happen to this connection; ADDR: an address or a\n"
    "                                                  service's full hostname\n"
    "  ztctl [options] dns [NAMESPACE/POD NAME]        the DNS proxy's cache and upstreams; what a pod gets for a name\n"
    "  ztctl [options] why-denied [-n N]               the last refused connections: policy, rule, clause, field\n"
    "  ztctl [options] trace NAMESPACE/POD [--follow] [--off]\n"
    "                                                  record a pod's connections and show what was recorded\n"
    "  ztctl [options] log [FILTER] [--reset]          show or change what is logged: info,access=debug\n"
    "  ztctl [options] dump                            the whole configuration and state, JSON\n"
    "  ztctl [options] ca issue SPIFFE-ID DIR          a certificate of the local CA into DIR: cert-chain.pem,\n"
    "                                                  key.pem, root-cert.pem\n"
    "  ztctl version | help\n"
    "\n"
    "options:\n"
    "  --socket PATH    the daemon's control socket (else $ZTUNNELD_CTL_SOCKET, else " ZT_CTL_SOCKET_DEFAULT ")\n"
    "  -o table|json    for people (default) or for programs\n"
    "\n"
    "exit status: 0 done, 1 the daemon refused or a file could not be written, 2 wrong usage, 3 no daemon answers\n";

static int usage_error(const struct zt_ctl_invocation *in, const char *what, const char *word)
{
    fprintf(in->err_out, "ztctl: %s", what);
    if (word) {
        fputs(": ", in->err_out);
        zt_term_print(in->err_out, word);
    }
    fputs("; see ztctl help\n", in->err_out);
    return ZT_CTL_USAGE;
}

static int run_help(const struct zt_ctl_invocation *in)
{
    fputs(help_text, in->out);
    return ZT_CTL_OK;
}

static int run_version(const struct zt_ctl_invocation *in)
{
    fputs("ztctl " ZT_VERSION "\n", in->out);
    return ZT_CTL_OK;
}

/* ---- commands ---- */

#define BIT(option) (1u << (option))

static const struct command {
    const char *name, *subname; /* subname: the second word, or NULL */
    unsigned n_arguments_min, n_arguments_max;
    unsigned options; /* those that it takes */
    int (*run)(const struct zt_ctl_invocation *in);
} commands[] = {
    {"status", NULL, 0, 0, 0, zt_ctl_run_status},
    {"pods", NULL, 0, 0, 0, zt_ctl_run_pods},
    {"connections", NULL, 0, 0, BIT(ZT_CTL_POD) | BIT(ZT_CTL_PEER) | BIT(ZT_CTL_SORT) | BIT(ZT_CTL_LIMIT), zt_ctl_run_connections},
    {"top", NULL, 0, 0, BIT(ZT_CTL_POD) | BIT(ZT_CTL_ONCE), zt_ctl_run_top},
    {"policies", NULL, 0, 0, 0, zt_ctl_run_policies},
    {"certs", NULL, 0, 0, 0, zt_ctl_run_certs},
    {"explain", NULL, 2, 2, 0, zt_ctl_run_explain},
    {"dns", NULL, 0, 2, 0, zt_ctl_run_dns},
    {"why-denied", NULL, 0, 0, BIT(ZT_CTL_LAST), zt_ctl_run_why_denied},
    {"trace", NULL, 1, 1, BIT(ZT_CTL_OFF) | BIT(ZT_CTL_FOLLOW), zt_ctl_run_trace},
    {"log", NULL, 0, 1, BIT(ZT_CTL_RESET), zt_ctl_run_log},
    {"dump", NULL, 0, 0, 0, zt_ctl_run_dump},
    {"ca", "issue", 2, 2, 0, zt_ctl_run_issue},
    {"help", NULL, 0, 0, 0, run_help},
    {"version", NULL, 0, 0, 0, run_version},
};

static const struct option {
    const char *name;
    bool has_value;
} options[ZT_CTL_OPTIONS_N] = {
    [ZT_CTL_POD] = {"--pod", true},      [ZT_CTL_PEER] = {"--peer", true},      [ZT_CTL_SORT] = {"--sort", true},
    [ZT_CTL_LIMIT] = {"--limit", true},  [ZT_CTL_LAST] = {"-n", true},          [ZT_CTL_OFF] = {"--off", false},
    [ZT_CTL_FOLLOW] = {"--follow", false}, [ZT_CTL_ONCE] = {"--once", false},   [ZT_CTL_RESET] = {"--reset", false},
};

static int run_this(const struct zt_ctl_invocation *in, const struct command *c)
{
    unsigned n_names = c->subname ? 2 : 1;
    if (c->subname && (in->n_words < 2 || strcmp(in->words[1], c->subname) != 0))
        return usage_error(in, "unknown command", in->n_words < 2 ? in->words[0] : in->words[1]);
    if (in->n_words < n_names + c->n_arguments_min || in->n_words > n_names + c->n_arguments_max)
        return usage_error(in, "wrong number of arguments for", c->name);
    for (unsigned i = 0; i < ZT_CTL_OPTIONS_N; i++) {
        if (in->options[i] && !(c->options & BIT(i)))
            return usage_error(in, "this command does not take the option", options[i].name);
    }
    return c->run(in);
}

static int run_command(const struct zt_ctl_invocation *in)
{
    if (in->n_words == 0)
        return usage_error(in, "a command is missing", NULL);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(in->words[0], commands[i].name) == 0)
            return run_this(in, &commands[i]);
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

/* One that single commands take. */
static bool parse_own_option(struct zt_ctl_invocation *in, int argc, char **argv, int *i, bool *missing)
{
    for (unsigned k = 0; k < ZT_CTL_OPTIONS_N; k++) {
        const char *value = "";
        if (options[k].has_value)
            value = option_value(options[k].name, argc, argv, i, missing);
        else if (strcmp(argv[*i], options[k].name) != 0)
            value = NULL;
        if (!value)
            continue;
        in->options[k] = value;
        return true;
    }
    return false;
}

static int parse_option(struct zt_ctl_invocation *in, int argc, char **argv, int *i)
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
    } else if (!parse_own_option(in, argc, argv, i, &missing)) {
        return usage_error(in, "unknown option", word);
    }
    return missing ? usage_error(in, "a value is missing after", word) : ZT_CTL_OK;
}

int zt_ctl_main(int argc, char **argv, FILE *out, FILE *err_out)
{
    struct zt_ctl_invocation in = {.out = out, .err_out = err_out};
    const char *from_env = getenv("ZTUNNELD_CTL_SOCKET");
    in.socket_path = from_env && *from_env ? from_env : ZT_CTL_SOCKET_DEFAULT;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1]) {
            int code = parse_option(&in, argc, argv, &i);
            if (code != ZT_CTL_OK)
                return code;
        } else if (in.n_words == ZT_CTL_WORDS_MAX) {
            return usage_error(&in, "too many arguments", argv[i]);
        } else {
            in.words[in.n_words++] = argv[i];
        }
    }
    int code = run_command(&in);
    if (fflush(out) != 0 && code == ZT_CTL_OK)
        code = zt_ctl_failed(&in, ZT_CTL_REFUSED, "cannot write the answer");
    return code;
}
