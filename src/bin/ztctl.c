/* ztctl: the operator's command. Everything is in zt/ctl. */
#include "zt/ctl/ctl.h"

int main(int argc, char **argv)
{
    return zt_ctl_main(argc, argv, stdout, stderr);
}
