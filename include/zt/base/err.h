/* Error codes and error texts.
 *
 * One table gives each run-time outcome its name, its response flag (spec/interfaces §7.6), the status an HBONE server answers
 * with, and the fixed prefix of the access log's `error` field. Adding a failure is adding a row.
 * Thread: any. */
#ifndef ZT_BASE_ERR_H
#define ZT_BASE_ERR_H

#include <stdarg.h>

/*  name              flag                     status prefix of the text */
#define ZT_ERR_TABLE(X)                                                                             \
    X(OK, "-", 200, "")                                                                             \
    X(AGAIN, "-", 0, "")      /* nothing now; a readiness callback or a message follows */           \
    X(EOF, "-", 0, "")        /* the peer ended its direction in good order */                       \
    X(RESET, "-", 0, "")      /* RST, EPIPE, TLS EOF without close_notify: an end, not in order */   \
    X(LIMIT, "CONNECT", 503, "limit reached: ")                                                     \
    X(INVALID, "CONNECT", 400, "")                                                                  \
    X(NOT_FOUND, "CONNECT", 503, "")                                                                \
    X(EXISTS, "CONNECT", 503, "")                                                                   \
    X(IO, "CONNECT", 503, "io error: ")                                                             \
    X(TIMEOUT, "CONNECT", 503, "io error: ")                                                        \
    X(CONNECT, "CONNECT", 503, "connection failed: ")                                               \
    X(NETWORK_POLICY, "NETWORK_POLICY", 503,                                                        \
      "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: ")                 \
    X(TLS, "TLS_FAILURE", 503, "tls error: ")                                                       \
    X(IDENTITY, "IDENTITY_ERROR", 503, "identity error: ")                                          \
    X(H2_HANDSHAKE, "H2_HANDSHAKE_FAILURE", 503, "http2 handshake failed: ")                        \
    X(H2, "H2_HANDSHAKE_FAILURE", 503, "h2 failed: ")                                               \
    X(HTTP_STATUS, "CONNECT", 503, "http status: ")                                                 \
    X(SEND, "CONNECT", 503, "send: ")                                                               \
    X(RECEIVE, "CONNECT", 503, "receive: ")                                                         \
    X(CLOSING, "CONNECT", 503, "while closing connection: ")                                        \
    X(POLICY_REJECTED, "DENY", 401, "connection closed due to policy rejection: ")                  \
    X(POLICY_CHANGED, "DENY", 401, "connection closed due to policy change")                        \
    X(REVOKED, "CERT_REVOKED", 401, "connection closed: peer certificate revoked by CRL")           \
    X(DRAINED, "-", 503, "connection closed due to connection drain")                               \
    X(POOL_DRAINING, "CONNECT", 503, "pool draining")                                               \
    X(SELF_CALL, "CONNECT", 503, "attempted recursive call to ourselves")                           \
    X(NO_WORKLOAD, "CONNECT", 503, "failed to fetch information about local workload: ")            \
    X(METHOD, "CONNECT", 400, "expected method CONNECT, got ")                                      \
    X(AUTHORITY, "CONNECT", 400, "no valid authority pseudo header: ")                              \
    X(IP_MISMATCH, "CONNECT", 400, "ip mismatch: ")                                                 \
    X(NO_HOSTNAME, "CONNECT", 503, "no service or workload for hostname: ")                         \
    X(NO_PORT, "CONNECT", 503, "requested service ")                                                \
    X(UNKNOWN_WAYPOINT, "CONNECT", 503, "unknown waypoint: ")                                       \
    X(UNKNOWN_GATEWAY, "CONNECT", 503, "unknown network gateway: ")                                 \
    X(NO_DESTINATION, "CONNECT", 503, "no valid routing destination for workload: ")                \
    X(NO_UPSTREAM, "CONNECT", 503, "no healthy upstream: ")                                         \
    X(NO_SERVICE, "CONNECT", 503, "no service for target address: ")                                \
    X(NO_IP, "CONNECT", 503, "no ip addresses were resolved for workload: ")                        \
    X(NO_IP_IN_DNS, "CONNECT", 503, "ip addresses were resolved for workload ")                     \
    X(TLS_HANDSHAKE, "CONNECT", 0, "tls handshake error: ")                                         \
    X(UNSUPPORTED, "CONNECT", 503, "unsupported feature: ")

enum zt_err {
#define X(name, flag, status, prefix) ZT_##name,
    ZT_ERR_TABLE(X)
#undef X
        ZT_ERR_N,
};

#define ZT_ERROR_TEXT_MAX 512 /* bytes, NUL included */

/* A code with a bounded text. Wrapped outward: "config: LOCAL_XDS_PATH: ..." */
struct zt_error {
    enum zt_err code;
    char text[ZT_ERROR_TEXT_MAX];
};

#define ZT_ERROR_INIT                                                                              \
    {                                                                                              \
        ZT_OK, ""                                                                                  \
    }

/* The code's name in lower case ("policy_rejected"). Returns borrowed (forever). */
const char *zt_err_name(enum zt_err e);
/* The value of the response_flags label. Returns borrowed (forever). */
const char *zt_err_flag(enum zt_err e);
/* The HTTP status an HBONE server answers with; 0 where no answer is possible. */
unsigned zt_err_status(enum zt_err e);
/* The fixed prefix of the access log text. Returns borrowed (forever). */
const char *zt_err_prefix(enum zt_err e);

/* Sets *err (may be NULL) and returns code, so that a failing function ends in one line. The text is cut at its limit. */
__attribute__((format(printf, 3, 4))) enum zt_err zt_error_set(struct zt_error *err, enum zt_err code,
                                                               const char *fmt, ...);
/* The same with errno's text appended: "what: No such file or directory (os error 2)". */
__attribute__((format(printf, 4, 5))) enum zt_err
zt_error_set_errno(struct zt_error *err, enum zt_err code, int errnum, const char *fmt, ...);
/* Puts "fmt: " before the text that is there already; keeps the code. */
__attribute__((format(printf, 2, 3))) enum zt_err zt_error_wrap(struct zt_error *err,
                                                                const char *fmt, ...);
/* "Connection refused (os error 111)" into buf. Returns buf. */
const char *zt_errno_text(int errnum, char *buf, unsigned long size);

/* A broken invariant: stop rather than tunnel another pod's bytes. On in release builds. */
#define ZT_ASSERT(cond)                                                                            \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0))                                                          \
            zt_bug(__FILE__, __LINE__, #cond);                                                     \
    } while (0)
_Noreturn void zt_bug(const char *file, int line, const char *what);

#endif
