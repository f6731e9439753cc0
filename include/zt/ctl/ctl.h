/* ztctl: what an operator types on the node. It speaks HTTP to the running daemon over its control socket.
 *
 *   ztctl [--socket PATH] [-o table|json] COMMAND [arguments]; `ztctl help` lists the commands
 *
 * The socket: --socket, else ZTUNNELD_CTL_SOCKET, else ZT_CTL_SOCKET_DEFAULT. Tables are for people: texts from the daemon are made safe
 * for a terminal. JSON is for programs: the daemon's answer, ASCII only. Thread: main. */
#ifndef ZT_CTL_CTL_H
#define ZT_CTL_CTL_H

#include <stdio.h>

#define ZT_CTL_SOCKET_DEFAULT "/var/run/ztunnel/ztunneld.ctl"

enum zt_ctl_exit {
    ZT_CTL_OK = 0,
    ZT_CTL_REFUSED = 1,     /* the daemon answered with an error, or a file could not be written */
    ZT_CTL_USAGE = 2,       /* unknown command or option */
    ZT_CTL_UNREACHABLE = 3, /* no daemon at the socket, or it does not answer us */
};

/* Runs one command. Returns the exit code. out and err_out: usually stdout and stderr; borrowed. */
int zt_ctl_main(int argc, char **argv, FILE *out, FILE *err_out);

#endif
