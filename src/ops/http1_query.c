/* Targets of requests: application/x-www-form-urlencoded, decoded in place. Decoding only shrinks, so the copy of the target
 * holds everything. A percent sign without two hexadecimal digits stands for itself; %00 ends its value (texts are C strings). */
#include "ops/http1_query.h"
#include "zt/base/mem.h"
#include <string.h>

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void decode(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (*from == '%' && hex(from[1]) >= 0 && hex(from[2]) >= 0) {
            *to++ = (char)(hex(from[1]) * 16 + hex(from[2]));
            from += 2;
        } else {
            *to++ = *from == '+' ? ' ' : *from;
        }
    }
    *to = '\0';
}

static void add_param(struct zt_http1_query *q, char *pair)
{
    if (!*pair || q->n_params == ZT_HTTP1_PARAMS_MAX)
        return;
    char *value = strchr(pair, '=');
    if (value)
        *value++ = '\0';
    else
        value = pair + strlen(pair);
    decode(value);
    decode(pair);
    q->params[q->n_params].key = pair;
    q->params[q->n_params++].value = value;
}

void zt_http1_query_init(struct zt_http1_query *q, const char *target)
{
    if (strncmp(target, "http://", 7) == 0) {
        target += 7 + strcspn(target + 7, "/?");
        if (*target != '/') /* an authority alone means the root */
            target = *target ? target : "/";
    }
    *q = (struct zt_http1_query){.path = zt_strdup(target)};
    char *rest = strchr(q->path, '?');
    if (rest)
        *rest++ = '\0';
    while (rest) {
        char *pair = rest;
        rest = strchr(rest, '&');
        if (rest)
            *rest++ = '\0';
        add_param(q, pair);
    }
}

void zt_http1_query_fini(struct zt_http1_query *q)
{
    zt_free(q->path);
    *q = (struct zt_http1_query){0};
}

const char *zt_http1_query_find(const struct zt_http1_query *q, const char *key)
{
    for (unsigned i = q->n_params; i-- > 0;)
        if (strcmp(q->params[i].key, key) == 0)
            return q->params[i].value;
    return NULL;
}
