/* Tables and steps. Nothing here decides anything. */
#include "ctl/show.h"
#include "ctl/term.h"

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static long long number_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

/* A number that is not always there. */
static void number_cell(struct zt_term_table *t, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_integer(value))
        zt_term_table_cellf(t, "%lld", (long long)json_integer_value(value));
    else
        zt_term_table_cell(t, NULL);
}

static void print_line(FILE *out, const char *before, const char *text, const char *after)
{
    fputs(before, out);
    zt_term_print(out, text);
    fputs(after, out);
}

/* ---- status ---- */

static void print_uptime(FILE *out, long long ms)
{
    long long s = ms / 1000;
    if (s >= 86400)
        fprintf(out, "%lldd%lldh", s / 86400, s % 86400 / 3600);
    else if (s >= 3600)
        fprintf(out, "%lldh%lldm", s / 3600, s % 3600 / 60);
    else
        fprintf(out, "%lldm%llds", s / 60, s % 60);
}

static void show_summary(const json_t *status, FILE *out)
{
    const json_t *state = json_object_get(status, "state");
    print_line(out, "ztunneld ", text_of(json_object_get(status, "version"), "version"), "");
    print_line(out, ", node ", text_of(status, "node"), "");
    print_line(out, ", ", text_of(status, "mode"), " mode, up ");
    print_uptime(out, number_of(status, "uptimeMs"));
    fprintf(out, ", %lld workers%s\n", number_of(status, "workers"),
            json_is_true(json_object_get(status, "draining")) ? ", DRAINING" : "");
    if (json_is_true(json_object_get(status, "ready")))
        fputs("ready: yes\n", out);
    else
        print_line(out, "ready: no, pending: ", text_of(status, "pending"), "\n");
    fprintf(out, "%lld workloads, %lld services, %lld policies\n", number_of(state, "workloads"),
            number_of(state, "services"), number_of(state, "policies"));
    fprintf(out, "%.1f MiB live memory, %lld open descriptors", (double)number_of(status, "memoryLiveBytes") / 1048576.,
            number_of(status, "openFds"));
    if (number_of(status, "logLinesDropped"))
        fprintf(out, ", %lld log lines dropped", number_of(status, "logLinesDropped"));
    fputc('\n', out);
}

static void pod_name_cell(struct zt_term_table *t, const json_t *pod)
{
    const char *ns = text_of(pod, "namespace"), *name = text_of(pod, "name");
    zt_term_table_cellf(t, "%s/%s", ns ? ns : "-", name ? name : "-");
}

void zt_ctl_show_pods(const json_t *pods, FILE *out)
{
    static const char *const heading[] = {"POD",        "STATE",       "WORKER", "CONNS IN", "CONNS OUT",
                                          "TUNNELS IN", "TUNNELS OUT", "UID",    "REASON"};
    struct zt_term_table t;
    size_t i;
    const json_t *pod;
    if (json_array_size(pods) == 0) {
        fputs("no pods\n", out);
        return;
    }
    zt_term_table_init(&t, 9);
    for (i = 0; i < 9; i++)
        zt_term_table_cell(&t, heading[i]);
    json_array_foreach(pods, i, pod)
    {
        pod_name_cell(&t, pod);
        zt_term_table_cell(&t, text_of(pod, "state"));
        number_cell(&t, pod, "worker");
        number_cell(&t, pod, "connectionsIn");
        number_cell(&t, pod, "connectionsOut");
        number_cell(&t, pod, "tunnelsIn");
        number_cell(&t, pod, "tunnelsOut");
        zt_term_table_cell(&t, text_of(pod, "uid"));
        zt_term_table_cell(&t, text_of(pod, "reason"));
    }
    zt_term_table_print(&t, out);
    zt_term_table_fini(&t);
}

void zt_ctl_show_status(const json_t *status, FILE *out)
{
    show_summary(status, out);
    fputc('\n', out);
    zt_ctl_show_pods(json_object_get(status, "pods"), out);
    if (json_array_size(json_object_get(status, "certificates")) > 0) {
        fputc('\n', out);
        zt_ctl_show_certificates(json_object_get(status, "certificates"), out);
    }
}

/* ---- explain ---- */

static void show_steps(const json_t *steps, FILE *out)
{
    size_t i;
    const json_t *step;
    json_array_foreach(steps, i, step)
    {
        fprintf(out, "  %zu. ", i + 1);
        print_line(out, "", json_string_value(step), "\n");
    }
}

static void show_identities(const json_t *route, const char *key, const char *heading, FILE *out)
{
    size_t i;
    const json_t *identity, *list = json_object_get(route, key);
    if (json_array_size(list) == 0)
        return;
    fprintf(out, "     %s", heading);
    json_array_foreach(list, i, identity)
        print_line(out, i ? ", " : " ", json_string_value(identity), "");
    fputc('\n', out);
}

static void show_route(const json_t *explain, FILE *out)
{
    const json_t *route = json_object_get(explain, "route");
    fputs("\nrouting: the source's node decides\n", out);
    show_steps(json_object_get(explain, "steps"), out);
    if (!route) {
        print_line(out, "  => fails: ", text_of(explain, "routeError"), "\n");
        return;
    }
    print_line(out, "  => ", text_of(route, "protocol"), "");
    print_line(out, " to ", text_of(route, "nextHop"), "");
    if (text_of(route, "authority"))
        print_line(out, ", CONNECT ", text_of(route, "authority"), "");
    if (json_is_true(json_object_get(route, "viaWaypoint")))
        fputs(" (a waypoint)", out);
    fputc('\n', out);
    show_identities(route, "expectedIdentities", "the server must be", out);
    show_identities(route, "innerExpectedIdentities", "the inner server must be", out);
}

static void show_authorization(const json_t *authorization, FILE *out)
{
    if (!authorization)
        return;
    print_line(out, "\nauthorization: ", text_of(authorization, "decidedBy"), " decides");
    if (text_of(authorization, "node"))
        print_line(out, " (", text_of(authorization, "node"), ")");
    fputc('\n', out);
    if (text_of(authorization, "sourceIdentity"))
        print_line(out, "  the client is ", text_of(authorization, "sourceIdentity"), "\n");
    show_steps(json_object_get(authorization, "steps"), out);
    print_line(out, "  => ", text_of(authorization, "verdict"), "");
    if (text_of(authorization, "reason"))
        print_line(out, ": ", text_of(authorization, "reason"), "");
    fputc('\n', out);
}

void zt_ctl_show_explain(const json_t *explain, FILE *out)
{
    print_line(out, "source:      ", text_of(explain, "source"), "\n");
    print_line(out, "destination: ", text_of(explain, "destination"), "");
    if (text_of(explain, "hostname"))
        print_line(out, " (", text_of(explain, "hostname"), ")");
    fputc('\n', out);
    show_route(explain, out);
    show_authorization(json_object_get(explain, "authorization"), out);
}
