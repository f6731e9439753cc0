/* ztcni: the node agent, and the commands that talk to it. Everything is in zt/agent. */
#include "zt/agent/agent.h"

int main(int argc, char **argv)
{
    return zt_agent_main(argc, argv);
}
