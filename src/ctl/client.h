/* One request to the daemon's control socket. Private to ctl. */
#ifndef ZT_CTL_CLIENT_H
#define ZT_CTL_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#define ZT_CTL_REPLY_BYTES_MAX (64u * 1024 * 1024)
#define ZT_CTL_CONNECT_TIMEOUT_S 5
#define ZT_CTL_TIMEOUT_S 60

struct zt_ctl_reply {
    long status;     /* HTTP status; 0: there was no answer */
    json_t *json;    /* the body, or NULL; owned */
    char error[512]; /* no answer, or an error status: what, where and what to do */
};

/* path: with its query, values already escaped by zt_ctl_escape. All texts are borrowed. */
void zt_ctl_ask(const char *socket_path, bool post, const char *path, struct zt_ctl_reply *out);
/* The same for an answer that is text, or large: it is copied to `to` while it comes; json stays NULL. */
void zt_ctl_copy(const char *socket_path, bool post, const char *path, FILE *to, struct zt_ctl_reply *out);
void zt_ctl_reply_fini(struct zt_ctl_reply *r);
/* Percent-encodes text for a query. Returns owned (zt_free). */
char *zt_ctl_escape(const char *text);

#endif
