/* Asks the C library for a name and prints its addresses, one a line: to be linked statically with musl, whose resolver is its own. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    int rc = argc == 2 ? getaddrinfo(argv[1], NULL, &hints, &list) : EAI_FAIL;
    if (rc != 0) {
        fprintf(stderr, "%s\n", gai_strerror(rc));
        return 1;
    }
    for (struct addrinfo *a = list; a; a = a->ai_next) {
        char text[NI_MAXHOST];
        if (getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) == 0)
            puts(text);
    }
    freeaddrinfo(list);
    return 0;
}
