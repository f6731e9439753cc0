/* The command line of ztcni: options, commands, exit codes. */
#include "zt/agent/agent.h"
#include "zt/agent/podlist.h"
#include "zt/base/log.h"
#include "zt/config/yaml.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2
#define DNS_CAPTURE_DEFAULT "true"

static const char help[] =
    "ztcni - node agent of ztunneld for hosts without istio-cni\n"
    "\n"
    "usage: ztcni [run] [--pods FILE] [--socket PATH] [--ctl PATH] [--backend NAME] [--dns-capture BOOL]\n"
    "                   [--keep-established BOOL] [--probes kubelet|off|UID]\n"
    "       ztcni add --uid UID --namespace NS --name NAME --service-account SA --netns PATH [--ctl PATH]\n"
    "                 [--bypass-inbound-capture BOOL] [--dns-capture BOOL] [--reroute-virtual-interfaces NAME,...]\n"
    "       ztcni remove UID|NS/NAME [--ctl PATH]\n"
    "       ztcni list [--ctl PATH]\n"
    "       ztcni check [UID|NS/NAME] [--ctl PATH]\n"
    "       ztcni version | help\n"
    "\n"
    "run      serves ZDS for the daemon and programs redirection in the pods' network namespaces;\n"
    "         SIGTERM ends it, pods stay enrolled\n"
    "add      enrols a pod: returns when the daemon listens in its namespace and its rules are in place;\n"
    "         the last three options are for this pod, as the annotations of the same names\n"
    "remove   takes a pod out: its rules first, then the daemon's listeners\n"
    "list     the pods and their states\n"
    "check    compares the rules in the pods' namespaces with what they should be\n"
    "\n"
    "option               variable                default\n"
    "--pods               ZTCNI_PODS              " ZT_AGENT_PODS_PATH "\n"
    "--socket             INPOD_UDS               " ZT_AGENT_SOCKET_PATH "\n"
    "--ctl                ZTCNI_CTL               " ZT_AGENT_CTL_PATH "\n"
    "--backend            ZTCNI_BACKEND           nft (or iptables-nft, iptables-legacy)\n"
    "--dns-capture        AMBIENT_DNS_CAPTURE     " DNS_CAPTURE_DEFAULT "\n"
    "--keep-established   ZTCNI_KEEP_ESTABLISHED  false: connections that a pod has when it is enrolled are reset\n"
    "--probes             ZTCNI_PROBES            kubelet: its probes reach applications past the mesh (or off, or a user's number)\n"
    "                     IPV6_ENABLED            true\n"
    "                     RUST_LOG                info\n"
    "                     LOG_FORMAT              plain (or json)\n"
    "\n"
    "exit status: 0 done, 1 failed or (check) differs, 2 wrong usage\n";

struct options {
    const char *pods, *socket, *ctl, *backend;
    const char *uid, *ns, *name, *service_account, *netns;
    const char *bypass_inbound, *dns_capture, *interfaces, *keep_established, *probes;
    char **args; /* what is left, and how many */
    int n_args;
};

static const char *from_env(const char *key, const char *otherwise)
{
    const char *v = getenv(key);
    return v && *v ? v : otherwise;
}

static int usage(const char *what)
{
    fprintf(stderr, "ztcni: %s; see \"ztcni help\"\n", what);
    return EXIT_USAGE;
}

static int usage_word(const char *what, const char *word)
{
    fprintf(stderr, "ztcni: %s: %s; see \"ztcni help\"\n", what, word);
    return EXIT_USAGE;
}

/* Returns 0 or EXIT_USAGE. */
static int parse(int argc, char **argv, struct options *o)
{
    static const struct option table[] = {
        {"pods", required_argument, NULL, 'p'},
        {"socket", required_argument, NULL, 's'},
        {"ctl", required_argument, NULL, 'c'},
        {"backend", required_argument, NULL, 'b'},
        {"uid", required_argument, NULL, 'u'},
        {"namespace", required_argument, NULL, 'N'},
        {"name", required_argument, NULL, 'n'},
        {"service-account", required_argument, NULL, 'a'},
        {"netns", required_argument, NULL, 't'},
        {"bypass-inbound-capture", required_argument, NULL, 'i'},
        {"dns-capture", required_argument, NULL, 'd'},
        {"reroute-virtual-interfaces", required_argument, NULL, 'v'},
        {"keep-established", required_argument, NULL, 'k'},
        {"probes", required_argument, NULL, 'P'},
        {NULL, 0, NULL, 0},
    };
    const char **const fields[] = {
        ['p'] = &o->pods, ['s'] = &o->socket, ['c'] = &o->ctl, ['b'] = &o->backend, ['u'] = &o->uid, ['N'] = &o->ns, ['n'] = &o->name,
        ['a'] = &o->service_account, ['t'] = &o->netns, ['i'] = &o->bypass_inbound, ['d'] = &o->dns_capture, ['v'] = &o->interfaces,
        ['k'] = &o->keep_established, ['P'] = &o->probes};
    int c;
    opterr = 0; /* one line of ours instead */
    while ((c = getopt_long(argc, argv, ":", table, NULL)) != -1) {
        if (c == ':')
            return usage_word("a value is missing after", argv[optind - 1]);
        if (c == '?' && optopt > 0 && optopt < 0x7f && strncmp(argv[optind - 1], "--", 2) != 0)
            return usage("there are no options of one letter");
        if (c == '?')
            return usage_word("unknown option", argv[optind - 1]);
        *fields[c] = optarg;
    }
    o->args = argv + optind;
    o->n_args = argc - optind;
    return 0;
}

static bool parse_probes(const char *text, struct zt_agent_options *a)
{
    uint32_t uid = 0;
    a->probes = ZT_AGENT_PROBES_USER;
    if (strcmp(text, "kubelet") == 0)
        a->probes = ZT_AGENT_PROBES_KUBELET;
    else if (strcmp(text, "off") == 0)
        a->probes = ZT_AGENT_PROBES_OFF;
    else if (!zt_yaml_digits(text, strlen(text), UINT32_MAX - 1, &uid))
        return false;
    a->prober = uid;
    return true;
}

static int run(const struct options *o)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_agent_options a = {.pods_path = o->pods, .socket_path = o->socket, .ctl_path = o->ctl, .plan = ZT_REDIRECT_PLAN_INIT};
    const char *ipv6 = from_env("IPV6_ENABLED", "true");
    const char *dns = o->dns_capture ? o->dns_capture : from_env("AMBIENT_DNS_CAPTURE", DNS_CAPTURE_DEFAULT);
    const char *keep = o->keep_established ? o->keep_established : from_env("ZTCNI_KEEP_ESTABLISHED", "false");
    if (!zt_redirect_backend_parse(o->backend, &a.plan.backend))
        return usage("--backend must be nft, iptables-nft or iptables-legacy");
    if (!zt_podlist_bool(ipv6, &a.plan.ipv6))
        return usage("IPV6_ENABLED must be true or false");
    if (!zt_podlist_bool(dns, &a.plan.dns_capture))
        return usage("--dns-capture (AMBIENT_DNS_CAPTURE) must be true or false");
    if (!zt_podlist_bool(keep, &a.plan.keep_established))
        return usage("--keep-established (ZTCNI_KEEP_ESTABLISHED) must be true or false");
    if (!parse_probes(o->probes ? o->probes : from_env("ZTCNI_PROBES", "kubelet"), &a))
        return usage("--probes (ZTCNI_PROBES) must be kubelet, off or the number of a user");
    if (zt_log_start(getenv("RUST_LOG"), strcmp(from_env("LOG_FORMAT", ""), "json") == 0, &err) != ZT_OK) {
        fprintf(stderr, "ztcni: %s\n", err.text);
        return EXIT_FAILURE;
    }
    enum zt_err e = zt_agent_run(&a, &err);
    zt_log_stop();
    if (e != ZT_OK)
        fprintf(stderr, "ztcni: %s\n", err.text);
    return e == ZT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int call(const struct options *o, const char *const *words, unsigned n_words)
{
    struct zt_error err = ZT_ERROR_INIT;
    int exit_code = EXIT_FAILURE;
    if (zt_agent_call(o->ctl, words, n_words, &exit_code, &err) == ZT_OK)
        return exit_code;
    fprintf(stderr, "ztcni: %s\n", err.text);
    return EXIT_FAILURE;
}

static int command(const char *verb, const struct options *o)
{
    if (strcmp(verb, "add") == 0) {
        const char *const words[] = {verb,
                                     o->uid,
                                     o->ns,
                                     o->name,
                                     o->service_account,
                                     o->netns,
                                     o->bypass_inbound ? o->bypass_inbound : "",
                                     o->dns_capture ? o->dns_capture : "",
                                     o->interfaces ? o->interfaces : ""};
        for (unsigned i = 0; i < 9; i++)
            if (!words[i])
                return usage("add needs --uid, --namespace, --name, --service-account and --netns");
        return o->n_args ? usage("add takes options only") : call(o, words, 9);
    }
    const char *const words[] = {verb, o->n_args ? o->args[0] : NULL};
    if (strcmp(verb, "remove") == 0)
        return o->n_args == 1 ? call(o, words, 2) : usage("remove takes one pod, UID or NS/NAME");
    if (strcmp(verb, "list") == 0)
        return o->n_args == 0 ? call(o, words, 1) : usage("list takes no arguments");
    if (strcmp(verb, "check") == 0)
        return o->n_args <= 1 ? call(o, words, 1 + (unsigned)o->n_args) : usage("check takes at most one pod");
    return usage_word("unknown command", verb);
}

int zt_agent_main(int argc, char **argv)
{
    struct options o = {.pods = from_env("ZTCNI_PODS", ZT_AGENT_PODS_PATH),
                        .socket = from_env("INPOD_UDS", ZT_AGENT_SOCKET_PATH),
                        .ctl = from_env("ZTCNI_CTL", ZT_AGENT_CTL_PATH),
                        .backend = from_env("ZTCNI_BACKEND", "nft")};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0 || (i == 1 && strcmp(argv[i], "help") == 0)) {
            fputs(help, stdout);
            return EXIT_SUCCESS;
        }
    }
    if (argc == 2 && (strcmp(argv[1], "version") == 0 || strcmp(argv[1], "--version") == 0)) {
        puts("ztcni " ZT_VERSION);
        return EXIT_SUCCESS;
    }
    if (parse(argc, argv, &o) != 0)
        return EXIT_USAGE;
    if (o.n_args == 0)
        return run(&o);
    const char *verb = o.args[0];
    o.args++;
    o.n_args--;
    if (strcmp(verb, "run") == 0)
        return o.n_args ? usage("run takes options only") : run(&o);
    return command(verb, &o);
}
