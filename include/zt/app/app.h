/* The daemon as a program: arguments, start order, drain, exit code (spec/interfaces §1). The one function that ztunneld's main calls. */
#ifndef ZT_APP_APP_H
#define ZT_APP_APP_H

#include "zt/config/config.h"
#include <stdio.h>

/* Runs the command in argv[1] (none, "proxy", "version", "help") and returns the exit code. argv and env are borrowed. */
int zt_app_main(int argc, char **argv, char **env);

/* Runs the daemon until it is told to end; returns the exit code: 0 after a drain, 1 after a failed start (its text is on stderr) or when
 * the CNI daemon broke its protocol. config is borrowed. start_ms: where readiness durations count from. Thread: main. */
int zt_app_run(const struct zt_config *config, uint64_t start_ms);

/* What help prints. */
void zt_app_write_help(FILE *out);

#endif
