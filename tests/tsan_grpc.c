/* Only in builds with ThreadSanitizer, which sees machine code that it did not compile where it calls libc, but not the
 * atomics by which gRPC core orders its threads. So gRPC core is not watched, by name, and nothing else: neither the
 * threads that it starts (libgpr does) nor ours while they are inside one of its functions, to which the linker leads
 * our calls by way of this file. Our side stays watched: what crosses is ordered by atomics of our own (src/rpc).
 *
 * Invariant: every function of gRPC core that may run its queues, its I/O or its credentials stands here. */
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);

static void enter(void)
{
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

static void leave(void)
{
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

/* ---- threads of gRPC core ---- */

struct birth {
    void *(*run)(void *arg);
    void *arg;
};

static void *run_unwatched(void *arg)
{
    struct birth b = *(struct birth *)arg;
    free(arg);
    enter();
    void *result = b.run(b.arg);
    leave();
    return result;
}

/* In front of everybody's; the next one is the sanitizer's. */
__attribute__((visibility("default"))) int pthread_create(pthread_t *t, const pthread_attr_t *a,
                                                          void *(*run)(void *), void *arg)
{
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    Dl_info caller;
    *(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
    if (!dladdr(__builtin_return_address(0), &caller) || !strstr(caller.dli_fname, "/libgpr.so"))
        return next(t, a, run, arg);
    struct birth *b = malloc(sizeof *b);
    *b = (struct birth){run, arg};
    int rc = next(t, a, run_unwatched, b);
    if (rc != 0)
        free(b);
    return rc;
}

/* ---- functions of gRPC core ---- */

/* clang-format off */
#define GRPC_RETURNS(type, name, parameters, arguments) \
    type __real_##name parameters; \
    type __wrap_##name parameters; \
    type __wrap_##name parameters { enter(); type result = __real_##name arguments; leave(); return result; }
#define GRPC_VOID(name, parameters, arguments) \
    void __real_##name parameters; \
    void __wrap_##name parameters; \
    void __wrap_##name parameters { enter(); __real_##name arguments; leave(); }

GRPC_VOID(grpc_init, (void), ())
GRPC_VOID(grpc_shutdown, (void), ())
GRPC_RETURNS(grpc_completion_queue *, grpc_completion_queue_create_for_next, (void *r), (r))
GRPC_RETURNS(grpc_event, grpc_completion_queue_next, (grpc_completion_queue *q, gpr_timespec t, void *r), (q, t, r))
GRPC_VOID(grpc_completion_queue_shutdown, (grpc_completion_queue *q), (q))
GRPC_VOID(grpc_completion_queue_destroy, (grpc_completion_queue *q), (q))
GRPC_RETURNS(grpc_channel *, grpc_channel_create, (const char *t, grpc_channel_credentials *c, const grpc_channel_args *a), (t, c, a))
GRPC_VOID(grpc_channel_destroy, (grpc_channel *c), (c))
GRPC_RETURNS(grpc_call *, grpc_channel_create_call, (grpc_channel *c, grpc_call *p, uint32_t m, grpc_completion_queue *q, grpc_slice n,
             const grpc_slice *h, gpr_timespec t, void *r), (c, p, m, q, n, h, t, r))
GRPC_RETURNS(grpc_call_error, grpc_call_start_batch, (grpc_call *c, const grpc_op *o, size_t n, void *t, void *r), (c, o, n, t, r))
GRPC_RETURNS(grpc_call_error, grpc_call_cancel, (grpc_call *c, void *r), (c, r))
GRPC_VOID(grpc_call_unref, (grpc_call *c), (c))
GRPC_RETURNS(char *, grpc_call_get_peer, (grpc_call *c), (c))
GRPC_VOID(grpc_byte_buffer_destroy, (grpc_byte_buffer *b), (b))
GRPC_VOID(grpc_slice_unref, (grpc_slice s), (s))
GRPC_VOID(grpc_metadata_array_destroy, (grpc_metadata_array *a), (a))
GRPC_VOID(grpc_channel_credentials_release, (grpc_channel_credentials *c), (c))
GRPC_RETURNS(grpc_channel_credentials *, grpc_tls_credentials_create, (grpc_tls_credentials_options *o), (o))
GRPC_RETURNS(grpc_tls_certificate_provider *, grpc_tls_certificate_provider_static_data_create,
             (const char *r, grpc_tls_identity_pairs *p), (r, p))
GRPC_VOID(grpc_tls_certificate_provider_release, (grpc_tls_certificate_provider *p), (p))
GRPC_VOID(grpc_tls_certificate_verifier_release, (grpc_tls_certificate_verifier *v), (v))
GRPC_RETURNS(grpc_server *, grpc_server_create, (const grpc_channel_args *a, void *r), (a, r))
GRPC_RETURNS(int, grpc_server_add_http2_port, (grpc_server *s, const char *a, grpc_server_credentials *c), (s, a, c))
GRPC_VOID(grpc_server_start, (grpc_server *s), (s))
GRPC_RETURNS(grpc_call_error, grpc_server_request_call, (grpc_server *s, grpc_call **c, grpc_call_details *d, grpc_metadata_array *m,
             grpc_completion_queue *b, grpc_completion_queue *n, void *t), (s, c, d, m, b, n, t))
GRPC_VOID(grpc_server_shutdown_and_notify, (grpc_server *s, grpc_completion_queue *q, void *t), (s, q, t))
GRPC_VOID(grpc_server_cancel_all_calls, (grpc_server *s), (s))
GRPC_VOID(grpc_server_destroy, (grpc_server *s), (s))
GRPC_VOID(grpc_server_credentials_release, (grpc_server_credentials *c), (c))
GRPC_RETURNS(grpc_server_credentials *, grpc_ssl_server_credentials_create_ex, (const char *r, grpc_ssl_pem_key_cert_pair *p, size_t n,
             grpc_ssl_client_certificate_request_type t, void *v), (r, p, n, t, v))
