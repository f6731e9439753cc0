/* The command line: argv[1] and nothing else (spec/interfaces §1.1). The log comes first, so that a RUST_LOG that does not parse ends
 * every command; it is flushed before a fatal error goes to stderr, so that what led to it can be read in order. */
#include "zt/app/app.h"
#include "zt/app/signals.h"
#include "zt/app/version.h"
#include "zt/base/clock.h"
#include "zt/base/log.h"
#include <stdlib.h>
#include <string.h>

void zt_app_write_help(FILE *out)
{
    struct zt_str v;
    zt_str_init(&v, 4096);
    zt_version_write(&v);
    fprintf(out,
            "\nIstio Ztunnel (%s)\n\nCommands:\n"
            "proxy (default) - Start the ztunnel proxy\n"
            "version         - Print the version of ztunnel\n"
            "help            - Print commands and version of ztunnel\n",
            zt_str_cstr(&v));
    zt_str_fini(&v);
}

static int print_version(void)
{
    struct zt_str v;
    zt_str_init(&v, 4096);
    zt_version_write(&v);
    puts(zt_str_cstr(&v));
    zt_str_fini(&v);
    return 0;
}

static int fail(const struct zt_error *err)
{
    zt_log_stop();
    fprintf(stderr, "Error: %s\n", err->text);
    return 1;
}

static int run_daemon(int argc, char **argv, char **env, uint64_t start_ms)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_config *config;
    if (zt_config_load(argc, argv, env, NULL, NULL, &config, &err) != ZT_OK)
        return fail(&err);
    int code = zt_config_check_served(config, &err) == ZT_OK ? zt_app_run(config, start_ms) : fail(&err);
    zt_config_free(config);
    return code;
}

int zt_app_main(int argc, char **argv, char **env)
{
    const char *command = argc > 1 ? argv[1] : "proxy";
    const char *format = getenv("LOG_FORMAT");
    uint64_t start_ms = zt_clock_mono_ms();
    struct zt_error err = ZT_ERROR_INIT;
    int code = 0;
    zt_signals_ignore_pipe();
    if (zt_log_start(getenv("RUST_LOG"), format && strcmp(format, "json") == 0, &err) != ZT_OK) {
        fprintf(stderr, "Error: invalid env var RUST_LOG (%s)\n", err.text);
        return 1;
    }
    if (strcmp(command, "proxy") == 0) {
        code = run_daemon(argc, argv, env, start_ms);
    } else if (strcmp(command, "version") == 0) {
        code = print_version();
    } else if (strcmp(command, "help") == 0) {
        zt_app_write_help(stdout);
    } else {
        fprintf(stderr, "unknown command: %s\n", command);
        zt_app_write_help(stdout);
        code = 1;
    }
    fflush(stdout);
    zt_log_stop();
    return code;
}
