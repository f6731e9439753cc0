/* ztunneld: the node daemon. Everything is in zt/app. */
#include "zt/app/app.h"

extern char **environ;

int main(int argc, char **argv)
{
    return zt_app_main(argc, argv, environ);
}
