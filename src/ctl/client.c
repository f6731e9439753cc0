/* HTTP over the unix socket, by libcurl. The daemon is trusted to be ours only as far as the path is; its answer is bounded and parsed
 * strictly all the same. What was received is wiped: it may have been a private key. */
#include "ctl/client.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <curl/curl.h>
#include <errno.h>
#include <string.h>
#include <sys/un.h>

#define SOCKET_PATH_MAX sizeof(((struct sockaddr_un *)0)->sun_path)

static size_t on_body(char *bytes, size_t size, size_t n, void *arg)
{
    struct zt_str *body = arg;
    zt_str_add_n(body, bytes, size * n);
    return body->overflow ? 0 : size * n;
}

static CURL *make_request(const char *socket_path, bool post, const char *path, struct zt_str *body)
{
    struct zt_str url;
    CURL *c = curl_easy_init();
    if (!c)
        return NULL;
    zt_str_init(&url, 65536);
    zt_str_addf(&url, "http://localhost%s", path);
    curl_easy_setopt(c, CURLOPT_URL, zt_str_cstr(&url));
    curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, socket_path);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(c, CURLOPT_PROXY, ""); /* whatever the environment says */
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)ZT_CTL_CONNECT_TIMEOUT_S);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)ZT_CTL_TIMEOUT_S);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, body);
    if (post)
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, "");
    zt_str_fini(&url);
    return c;
}

/* No answer: what a person can do about it. */
static void explain_failure(CURL *c, CURLcode code, const char *socket_path, struct zt_ctl_reply *out)
{
    long os_error = 0;
    char text[128];
    curl_easy_getinfo(c, CURLINFO_OS_ERRNO, &os_error);
    const char *why = os_error ? strerror_r((int)os_error, text, sizeof text) : curl_easy_strerror(code);
    const char *advice = "is ztunneld running here? Name its socket with --socket PATH or ZTUNNELD_CTL_SOCKET";
    if (strlen(socket_path) >= SOCKET_PATH_MAX) { /* libcurl says "could not resolve host" */
        zt_fmt(out->error, sizeof out->error, "the path of a socket has at most %zu bytes, that of --socket or ZTUNNELD_CTL_SOCKET has %zu",
               SOCKET_PATH_MAX - 1, strlen(socket_path));
        return;
    }
    if (os_error == EACCES || os_error == EPERM || code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR)
        advice = "only root and the daemon's own user may ask";
    else if (os_error == ECONNREFUSED)
        advice = "the daemon that made this socket has gone; start ztunneld, or name another socket with --socket PATH";
    else if (code == CURLE_OPERATION_TIMEDOUT)
        advice = "the daemon is there and does not answer; its log may say why";
    zt_fmt(out->error, sizeof out->error, "no answer from the daemon at %s (%s): %s", socket_path, why, advice);
}

static void read_error(struct zt_ctl_reply *out)
{
    const char *text = json_string_value(json_object_get(out->json, "error"));
    if (out->status == 200 && out->json)
        return;
    if (text)
        zt_fmt(out->error, sizeof out->error, "%s", text);
    else if (out->status == 200)
        zt_fmt(out->error, sizeof out->error, "the daemon's answer is not JSON");
    else
        zt_fmt(out->error, sizeof out->error, "the daemon answered with HTTP status %ld; does its version fit ztctl's?",
               out->status);
}

static void wipe(struct zt_str *s)
{
    size_t len = s->len;
    zt_wipe_free(zt_str_take(s), len);
    zt_str_fini(s);
}

void zt_ctl_ask(const char *socket_path, bool post, const char *path, struct zt_ctl_reply *out)
{
    struct zt_str body;
    *out = (struct zt_ctl_reply){0};
    zt_str_init(&body, ZT_CTL_REPLY_BYTES_MAX);
    CURL *c = make_request(socket_path, post, path, &body);
    if (!c) {
        zt_fmt(out->error, sizeof out->error, "libcurl does not start");
        return;
    }
    CURLcode code = curl_easy_perform(c);
    if (code == CURLE_OK) {
        curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &out->status);
        out->json = json_loadb(body.data ? body.data : "", body.len, JSON_REJECT_DUPLICATES, NULL);
        read_error(out);
    } else if (body.overflow) {
        zt_fmt(out->error, sizeof out->error, "the daemon's answer is larger than %u bytes", ZT_CTL_REPLY_BYTES_MAX);
    } else {
        explain_failure(c, code, socket_path, out);
    }
    curl_easy_cleanup(c);
    wipe(&body);
}

struct copy {
    CURL *curl;
    FILE *to;
    struct zt_str *error; /* of an answer that is none */
};

static size_t on_copy(char *bytes, size_t size, size_t n, void *arg)
{
    struct copy *c = arg;
    long status = 0;
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status == 200)
        return fwrite(bytes, 1, size * n, c->to);
    zt_str_add_n(c->error, bytes, size * n);
    return size * n;
}

void zt_ctl_copy(const char *socket_path, bool post, const char *path, FILE *to, struct zt_ctl_reply *out)
{
    struct zt_str error;
    *out = (struct zt_ctl_reply){0};
    zt_str_init(&error, sizeof out->error);
    CURL *curl = make_request(socket_path, post, path, &error);
    if (!curl) {
        zt_fmt(out->error, sizeof out->error, "libcurl does not start");
        return;
    }
    struct copy c = {curl, to, &error};
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_copy);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &c);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &out->status);
    if (code == CURLE_WRITE_ERROR)
        zt_fmt(out->error, sizeof out->error, "cannot write the answer");
    else if (code != CURLE_OK)
        explain_failure(curl, code, socket_path, out);
    else if (out->status != 200)
        zt_fmt(out->error, sizeof out->error, "%.*s", (int)strcspn(zt_str_cstr(&error), "\n"), zt_str_cstr(&error));
    curl_easy_cleanup(curl);
    zt_str_fini(&error);
}

void zt_ctl_reply_fini(struct zt_ctl_reply *r)
{
    json_decref(r->json);
    r->json = NULL;
}

char *zt_ctl_escape(const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    struct zt_str s;
    zt_str_init(&s, 3 * strlen(text) + 1);
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~/:", c)) {
            zt_str_add_char(&s, *p);
        } else {
            zt_str_add_char(&s, '%');
            zt_str_add_char(&s, digits[c >> 4]);
            zt_str_add_char(&s, digits[c & 15]);
        }
    }
    if (!s.len)
        zt_str_cstr(&s);
    char *escaped = zt_str_take(&s);
    return escaped ? escaped : zt_strdup("");
}
