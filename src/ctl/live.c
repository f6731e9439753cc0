/* Commands that ask again and again: top, and trace --follow. They end when they are interrupted (the default action of SIGINT), or when
 * the daemon no longer answers. */
#include "ctl/invocation.h"
#include "ctl/show.h"
#include "ctl/term.h"
#include "zt/base/mem.h"
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TOP_PERIOD_MS 2000
#define ONCE_PERIOD_MS 1000 /* between the two looks of --once */
#define FOLLOW_PERIOD_MS 500

static void pause_ms(unsigned ms)
{
    const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* ---- top ---- */

static long long bytes_of(const json_t *connection)
{
    return (long long)(json_integer_value(json_object_get(connection, "bytesFromClient")) +
                       json_integer_value(json_object_get(connection, "bytesToClient")));
}

/* Connections of the look before, by id. */
static json_t *index_by_id(const json_t *connections)
{
    json_t *index = json_object();
    size_t i;
    json_t *c;
    char id[24];
    json_array_foreach(connections, i, c)
    {
        zt_fmt(id, sizeof id, "%lld", (long long)json_integer_value(json_object_get(c, "id")));
        json_object_set(index, id, c);
    }
    return index;
}

/* Gives each connection "bytesPerSecond": what it moved since the look before, or since it began. */
static void add_rates(const json_t *before, const json_t *now, double seconds)
{
    json_t *index = index_by_id(json_object_get(before, "connections"));
    size_t i;
    json_t *c;
    char id[24];
    json_array_foreach(json_object_get(now, "connections"), i, c)
    {
        zt_fmt(id, sizeof id, "%lld", (long long)json_integer_value(json_object_get(c, "id")));
        const json_t *old = json_object_get(index, id);
        double moved = (double)(bytes_of(c) - (old ? bytes_of(old) : 0));
        json_object_set_new(c, "bytesPerSecond", json_integer((json_int_t)(moved / seconds)));
    }
    json_decref(index);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int zt_ctl_run_top(const struct zt_ctl_invocation *in)
{
    struct zt_str path;
    struct zt_ctl_reply before = {0}, now;
    bool once = in->options[ZT_CTL_ONCE] || in->json || !isatty(fileno(in->out));
    zt_str_init(&path, 65536);
    zt_str_add(&path, "/v1/connections?sort=bytes");
    zt_ctl_add_query(&path, "pod", in->options[ZT_CTL_POD]);
    double before_s = now_s();
    int code = zt_ctl_get(in, false, zt_str_cstr(&path), &before);
    for (bool more = true; code == ZT_CTL_OK && more; more = !once) {
        pause_ms(once ? ONCE_PERIOD_MS : TOP_PERIOD_MS);
        double at_s = now_s();
        code = zt_ctl_get(in, false, zt_str_cstr(&path), &now);
        if (code != ZT_CTL_OK) {
            zt_ctl_reply_fini(&now);
            break;
        }
        add_rates(before.json, now.json, at_s - before_s);
        if (!once)
            fputs("\033[H\033[2J", in->out);
        if (in->json)
            zt_ctl_print_json(in, now.json);
        else
            zt_ctl_show_top(now.json, in->out);
        fflush(in->out);
        zt_ctl_reply_fini(&before);
        before = now;
        before_s = at_s;
    }
    zt_ctl_reply_fini(&before);
    zt_str_fini(&path);
    return code;
}

/* ---- trace ---- */

static void trace_path(const struct zt_ctl_invocation *in, struct zt_str *path)
{
    zt_str_init(path, 65536);
    zt_str_add(path, "/v1/trace");
    zt_ctl_add_query(path, "pod", in->words[1]);
    zt_ctl_add_query(path, "stop", in->options[ZT_CTL_OFF]);
}

/* Prints events later than *last, which becomes the latest. */
static void show_later(const json_t *events, json_int_t *last, FILE *out)
{
    json_int_t from = *last;
    size_t i;
    const json_t *event;
    json_array_foreach(events, i, event)
    {
        json_int_t at = json_integer_value(json_object_get(event, "timeUs"));
        if (at <= from)
            continue;
        zt_ctl_show_event(event, out);
        *last = at;
    }
    fflush(out);
}

static int follow(const struct zt_ctl_invocation *in, const char *path)
{
    json_int_t last = 0;
    for (;;) {
        struct zt_ctl_reply reply;
        int code = zt_ctl_get(in, false, path, &reply);
        if (code == ZT_CTL_OK)
            show_later(json_object_get(reply.json, "events"), &last, in->out);
        bool on = json_is_true(json_object_get(reply.json, "on"));
        zt_ctl_reply_fini(&reply);
        if (code != ZT_CTL_OK || !on) /* somebody ended it */
            return code;
        pause_ms(FOLLOW_PERIOD_MS);
    }
}

/* Recording begins with the first look, and goes on until --off. */
int zt_ctl_run_trace(const struct zt_ctl_invocation *in)
{
    struct zt_ctl_reply before, reply = {0};
    struct zt_str path;
    trace_path(in, &path);
    int code = zt_ctl_get(in, false, zt_str_cstr(&path), &before);
    bool was_on = json_is_true(json_object_get(before.json, "on"));
    zt_ctl_reply_fini(&before);
    if (code == ZT_CTL_OK)
        code = zt_ctl_get(in, true, zt_str_cstr(&path), &reply);
    if (code == ZT_CTL_OK && !in->json && (!was_on || in->options[ZT_CTL_OFF])) {
        fputs(in->options[ZT_CTL_OFF] ? "no longer recording " : "recording from now on: ", in->err_out);
        zt_term_print(in->err_out, in->words[1]);
        fputc('\n', in->err_out);
    }
    if (code == ZT_CTL_OK && in->options[ZT_CTL_FOLLOW] && !in->options[ZT_CTL_OFF])
        code = follow(in, zt_str_cstr(&path));
    else if (code == ZT_CTL_OK && in->json)
        zt_ctl_print_json(in, reply.json);
    else if (code == ZT_CTL_OK && !in->options[ZT_CTL_OFF])
        zt_ctl_show_trace(reply.json, in->out);
    zt_ctl_reply_fini(&reply);
    zt_str_fini(&path);
    return code;
}
