/* The admin server's own pages: the home page, /logging, /quitquitquit, /debug/pprof.
 *
 * There is no profiler inside: the pprof endpoints check their parameters as the reference does and then say so with the status
 * that clients expect of a build without one (spec/interfaces §4.1). */
#include "zt/ops/admin.h"
#include "zt/base/log.h"
#include "ops/home_page.h"
#include "zt/base/mem.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FILTER_TEXT_MAX 4096
#define TEXT "text/plain"

/* ---- / ---- */

static const struct {
    const char *path, *text;
} pages[] = {
    {"config_dump", "dump the current ztunnel configuration"},
    {"debug/pprof/heap", "collect heap profiling data (not available in this build)"},
    {"debug/pprof/heap/profiling", "switch heap profiling (not available in this build)"},
    {"debug/pprof/profile", "build profile using the pprof profiler (not available in this build)"},
    {"logging", "query/changing logging levels (POST: level=..., reset)"},
    {"quitquitquit", "shut down the server (POST)"},
};

static void on_index(void *arg, struct zt_http1_request *r)
{
    struct zt_str s;
    zt_str_init(&s, 65536);
    zt_str_add(&s, zt_home_page_head);
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        zt_str_addf(&s, "<tr><td><a href=\"%s\">%s</a></td><td>%s</td></tr>\n", pages[i].path, pages[i].path,
                    pages[i].text);
    zt_str_add(&s, zt_home_page_tail);
    zt_http1_reply_header(r, "content-security-policy",
                          "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    zt_http1_reply(r, 200, "text/html; charset=utf-8", &s);
    zt_str_fini(&s);
}

/* ---- /logging ---- */

static const char logging_usage[] =
    "usage: POST /logging\t\t\t\t(To list current level)\n"
    "usage: POST /logging?level=<level>\t\t(To change global levels)\n"
    "usage: POST /logging?level={mod1}={level1},{mod2}={level2}\t(To change specific mods' logging level)\n"
    "\n"
    "hint: loglevel:\toff|error|warn|info|debug|trace\n"
    "hint: mod_name:\tthe module name, i.e. ztunnel::proxy::outbound, access, dns; reset sets all back to the start-up filter\n";

static bool is_level(const char *text, size_t len)
{
    static const char *const levels[] = {"off", "error", "warn", "info", "debug", "trace"};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (strlen(levels[i]) == len && memcmp(levels[i], text, len) == 0)
            return true;
    return false;
}

/* One clause: a level or target=level as it is; target:level, as istioctl's help writes it, becomes target=level. A module path
 * alone ("ztunnel::xds") is none of these: its last colon has another before it. */
static bool accept_clause(const char *clause, size_t len, struct zt_str *directives)
{
    if (is_level(clause, len) || memchr(clause, '=', len)) {
        zt_str_add_n(directives, clause, len);
        return true;
    }
    const char *colon = memrchr(clause, ':', len);
    if (!colon || colon == clause || colon[-1] == ':')
        return false;
    size_t target_len = (size_t)(colon - clause);
    if (!is_level(colon + 1, len - target_len - 1))
        return false;
    zt_str_add_n(directives, clause, target_len);
    zt_str_add_char(directives, '=');
    zt_str_add_n(directives, colon + 1, len - target_len - 1);
    return true;
}

static bool accept_spec(const char *spec, struct zt_str *directives)
{
    for (const char *p = spec;; p++) {
        size_t len = strcspn(p, ",");
        if (p != spec)
            zt_str_add_char(directives, ',');
        if (!accept_clause(p, len, directives))
            return false;
        p += len;
        if (!*p)
            return true;
    }
}

static void reply_filter(struct zt_http1_request *r)
{
    char filter[FILTER_TEXT_MAX];
    struct zt_str s;
    zt_log_filter_render(filter, sizeof filter);
    zt_str_init(&s, sizeof filter + 64);
    zt_str_addf(&s, "current log level is %s\n", filter);
    zt_http1_reply(r, 200, TEXT, &s);
    zt_str_fini(&s);
}

static void reply_usage(struct zt_http1_request *r, unsigned status, const char *what, const char *detail)
{
    struct zt_str s;
    zt_str_init(&s, 2 * ZT_HTTP1_HEAD_BYTES_MAX);
    zt_str_addf(&s, "%s%s\n%s%s", what, detail, status == 405 ? " " : "", logging_usage);
    zt_http1_reply(r, status, TEXT, &s);
    zt_str_fini(&s);
}

static void change_filter(struct zt_http1_request *r, bool from_startup, const char *spec)
{
    char filter[FILTER_TEXT_MAX];
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_str directives;
    zt_str_init(&directives, FILTER_TEXT_MAX);
    bool accepted = !*spec || accept_spec(spec, &directives);
    if (!accepted) {
        reply_usage(r, 400, "Invalid level provided: ", spec);
    } else if (directives.overflow ||
               zt_log_filter_change(from_startup, *spec ? zt_str_cstr(&directives) : NULL, &err) != ZT_OK) {
        reply_usage(r, 400, "Failed to set new level: ", directives.overflow ? "too long" : err.text);
    } else {
        zt_log_filter_render(filter, sizeof filter);
        zt_log_info("admin", "new log filter is %s", filter);
        reply_filter(r);
    }
    zt_str_fini(&directives);
}

static void on_logging(void *arg, struct zt_http1_request *r)
{
    const char *level = zt_http1_request_query(r, "level");
    bool reset = zt_http1_request_query(r, "reset");
    if (zt_http1_request_method(r) != ZT_HTTP1_POST)
        reply_usage(r, 405, "Invalid HTTP method", "");
    else if (reset || (level && *level))
        change_filter(r, reset, level ? level : "");
    else
        reply_filter(r);
}

/* ---- /quitquitquit ---- */

static void on_quit(void *arg, struct zt_http1_request *r)
{
    struct zt_admin_quit *q = arg;
    q->fn(q->arg);
    zt_http1_reply_text(r, 200, TEXT, "shutdown now\n");
}

/* ---- /debug/pprof ---- */

static bool parameter_in_range(struct zt_http1_request *r, const char *key, long max)
{
    const char *text = zt_http1_request_query(r, key);
    char *end;
    if (!text)
        return true;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno == 0 && !*end && value >= 1 && value <= max;
}

static void on_profile(void *arg, struct zt_http1_request *r)
{
    if (!parameter_in_range(r, "seconds", 300))
        zt_http1_reply_text(r, 400, TEXT, "invalid seconds value; expected 1-300\n");
    else if (!parameter_in_range(r, "frequency", 1000))
        zt_http1_reply_text(r, 400, TEXT, "invalid frequency value; expected 1-1000\n");
    else
        zt_http1_reply_text(r, 500, NULL, "cpu profiling is not enabled; use perf(1) on the node");
}

static void on_heap(void *arg, struct zt_http1_request *r)
{
    zt_http1_reply_text(r, 500, NULL, "jemalloc not enabled");
}

static void on_heap_profiling(void *arg, struct zt_http1_request *r)
{
    const char *activate = zt_http1_request_query(r, "activate");
    if (!activate || strcmp(activate, "true") == 0 || strcmp(activate, "false") == 0) {
        zt_http1_reply_text(r, 500, NULL, "jemalloc not enabled");
        return;
    }
    struct zt_str s;
    zt_str_init(&s, 2 * ZT_HTTP1_HEAD_BYTES_MAX);
    zt_str_addf(&s, "invalid activate value \"%s\"; expected true or false\n", activate);
    zt_http1_reply(r, 400, TEXT, &s);
    zt_str_fini(&s);
}

void zt_admin_logging_route(struct zt_http1 *s)
{
    zt_http1_route(s, "/logging", ZT_HTTP1_ANY, on_logging, NULL);
}

/* ---- who may ask ---- */

/* A browser on this machine can be told to ask us by any page that it shows. Such a request names that page's host (a name that was made
 * to resolve to loopback) or its origin; programs name neither. */
static bool is_loopback_host(const char *host)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t len = strlen(names[i]);
        if (strncasecmp(host, names[i], len) == 0 && (!host[len] || host[len] == ':'))
            return true;
    }
    return false;
}

static const char *check(const struct zt_http1_request *r)
{
    struct zt_str host, origin;
    const char *why = NULL;
    zt_str_init(&host, ZT_HTTP1_HEAD_BYTES_MAX);
    zt_str_init(&origin, ZT_HTTP1_HEAD_BYTES_MAX);
    bool has_host = zt_http1_request_header(r, "host", &host);
    if (has_host && !is_loopback_host(zt_str_cstr(&host)))
        why = "the Host is not localhost, 127.0.0.1 or [::1]\n";
    else if (zt_http1_request_method(r) != ZT_HTTP1_GET && zt_http1_request_method(r) != ZT_HTTP1_HEAD &&
             zt_http1_request_header(r, "origin", &origin) &&
             (strncasecmp(zt_str_cstr(&origin), "http://", 7) != 0 || strcasecmp(zt_str_cstr(&origin) + 7, zt_str_cstr(&host)) != 0))
        why = "the Origin is another site\n";
    zt_str_fini(&host);
    zt_str_fini(&origin);
    return why;
}

void zt_admin_routes(struct zt_http1 *s, struct zt_admin_quit *quit)
{
    zt_http1_guard(s, check);
    zt_http1_route(s, "/", ZT_HTTP1_ANY, on_index, NULL);
    zt_admin_logging_route(s);
    zt_http1_route(s, "/quitquitquit", ZT_HTTP1_POST, on_quit, quit);
    zt_http1_route(s, "/debug/pprof/profile", ZT_HTTP1_ANY, on_profile, NULL);
    zt_http1_route(s, "/debug/pprof/heap", ZT_HTTP1_ANY, on_heap, NULL);
    zt_http1_route(s, "/debug/pprof/heap/profiling", ZT_HTTP1_ANY, on_heap_profiling, NULL);
}
