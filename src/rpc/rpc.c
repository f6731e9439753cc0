/* The library's start and end, and the pump.
 *
 * The pump is one thread that blocks in grpc_completion_queue_next - which is also where the
 * library does its I/O - and posts each completion to the control loop. It decides nothing.
 *
 * The end: zt_rpc_free closes the queue; every batch comes back to the pump, then the pump ends.
 * What it posted last may still be in the loop's mailbox, so the last call that comes home there
 * releases the library.
 *
 * Invariant: the library's own threads start inside zt_rpc_new with all signals blocked and in the
 * namespace the process started in. A thread inherits its creator's namespace, so nothing here may
 * run inside a pod's (zt_rpc_assert_netns). */
#include "rpc_impl.h"

#include "zt/base/log.h"
#include "zt/base/mem.h"
#include "zt/base/str.h"
#include <dirent.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define ENGINE_THREADS_END_MS 200

/* The library offers TLS 1.2 and 1.3 and has no switch for it; it has one for the TLS 1.2 suites.
 * One that needs a pre-shared key is never offered without a key: what remains is TLS 1.3. */
#define TLS12_SUITES                                                                               \
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"                                   \
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
#define NO_TLS12_SUITES "PSK-AES256-GCM-SHA384"

static bool stat_netns(struct stat *st)
{
    return stat("/proc/thread-self/ns/net", st) == 0;
}

void zt_rpc_assert_netns(const struct zt_rpc *r)
{
    struct stat st;
    ZT_ASSERT(stat_netns(&st) && st.st_dev == r->netns_dev && st.st_ino == r->netns_ino);
}

/* Thread: any of the library's. What it has to say is in the status of the call too. */
static void on_library_log(gpr_log_func_args *args)
{
    zt_log_debug(ZT_RPC_SCOPE, "%s", args->message);
}

static void *pump_main(void *arg)
{
    struct zt_rpc *r = arg;
    pthread_setname_np(pthread_self(), "grpc-pump");
    for (;;) {
        grpc_event e =
            grpc_completion_queue_next(r->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        struct zt_rpc_op *op = e.tag;
        atomic_load_explicit(&op->handed, memory_order_acquire);
        op->ok = e.success;
        zt_loop_post(r->loop, &op->msg);
    }
}

/* Settings that the library takes from the environment only. */
static void set_library_environment(bool tls12)
{
    setenv("GRPC_SSL_CIPHER_SUITES", tls12 ? TLS12_SUITES : NO_TLS12_SUITES, 1);
    setenv("GRPC_DNS_RESOLVER", "native", 1); /* getaddrinfo, on a thread of the library */
}

static enum zt_err start(struct zt_rpc *r, struct zt_error *err)
{
    grpc_init();
    gpr_set_log_function(on_library_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    r->queue = grpc_completion_queue_create_for_next(NULL);
    int rc = pthread_create(&r->pump, NULL, pump_main, r);
    if (rc == 0)
        return ZT_OK;
    grpc_completion_queue_shutdown(r->queue);
    grpc_completion_queue_destroy(r->queue);
    grpc_shutdown();
    return zt_error_set_errno(err, ZT_IO, rc, "cannot start the gRPC thread");
}

enum zt_err zt_rpc_new(struct zt_loop *loop, bool tls12, struct zt_rpc **out, struct zt_error *err)
{
    struct stat st;
    if (!stat_netns(&st))
        return zt_error_set(err, ZT_IO, "cannot look at /proc/thread-self/ns/net");
    struct zt_rpc *r = zt_new(struct zt_rpc);
    r->loop = loop;
    r->netns_dev = st.st_dev;
    r->netns_ino = st.st_ino;
    set_library_environment(tls12);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    enum zt_err e = start(r, err);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != ZT_OK) {
        zt_free(r);
        return e;
    }
    *out = r;
    return ZT_OK;
}

/* The library ends the threads of its event engine without joining them. One that is still on its way out when the process ends
 * cannot give back what OpenSSL keeps for it, so they are given a moment. */
static bool has_engine_threads(void)
{
    bool found = false;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *e; tasks && !found && (e = readdir(tasks));) {
        char path[64], name[16] = "";
        zt_fmt(path, sizeof path, "/proc/self/task/%.20s/comm", e->d_name);
        FILE *f = fopen(path, "re");
        if (f && fgets(name, sizeof name, f))
            found = strncmp(name, "event_engine", 12) == 0;
        if (f)
            fclose(f);
    }
    if (tasks)
        closedir(tasks);
    return found;
}

static void wait_for_engine_threads(void)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (unsigned ms = 0; ms < ENGINE_THREADS_END_MS && has_engine_threads(); ms++)
        nanosleep(&pause, NULL);
}

void zt_rpc_release(struct zt_rpc *r)
{
    if (!r->closing || r->n_calls > 0)
        return;
    grpc_completion_queue_destroy(r->queue);
    grpc_shutdown();
    if (!grpc_is_initialized())
        wait_for_engine_threads();
    zt_free(r);
}

void zt_rpc_free(struct zt_rpc *r)
{
    if (!r)
        return;
    zt_loop_assert_owner(r->loop);
    ZT_ASSERT(r->n_channels == 0 && r->n_owned == 0 && atomic_load(&r->n_messages) == 0);
    grpc_completion_queue_shutdown(r->queue);
    pthread_join(r->pump, NULL);
    r->closing = true;
    zt_rpc_release(r);
}

/* ---- status codes ---- */

static const struct {
    const char *name, *sentence;
} codes[] = {
    [ZT_RPC_OK] = {"OK", "The operation completed successfully"},
    [ZT_RPC_CANCELLED] = {"CANCELLED", "The operation was cancelled"},
    [ZT_RPC_UNKNOWN] = {"UNKNOWN", "Unknown error"},
    [ZT_RPC_INVALID_ARGUMENT] = {"INVALID_ARGUMENT", "Client specified an invalid argument"},
    [ZT_RPC_DEADLINE_EXCEEDED] = {"DEADLINE_EXCEEDED",
                                  "Deadline expired before operation could complete"},
    [ZT_RPC_NOT_FOUND] = {"NOT_FOUND", "Some requested entity was not found"},
    [ZT_RPC_ALREADY_EXISTS] = {"ALREADY_EXISTS",
                               "Some entity that we attempted to create already exists"},
    [ZT_RPC_PERMISSION_DENIED] =
        {"PERMISSION_DENIED",
         "The caller does not have permission to execute the specified operation"},
    [ZT_RPC_RESOURCE_EXHAUSTED] = {"RESOURCE_EXHAUSTED", "Some resource has been exhausted"},
    [ZT_RPC_FAILED_PRECONDITION] =
        {"FAILED_PRECONDITION",
         "The system is not in a state required for the operation's execution"},
    [ZT_RPC_ABORTED] = {"ABORTED", "The operation was aborted"},
    [ZT_RPC_OUT_OF_RANGE] = {"OUT_OF_RANGE", "Operation was attempted past the valid range"},
    [ZT_RPC_UNIMPLEMENTED] = {"UNIMPLEMENTED", "Operation is not implemented or not supported"},
    [ZT_RPC_INTERNAL] = {"INTERNAL", "Internal error"},
    [ZT_RPC_UNAVAILABLE] = {"UNAVAILABLE", "The service is currently unavailable"},
    [ZT_RPC_DATA_LOSS] = {"DATA_LOSS", "Unrecoverable data loss or corruption"},
    [ZT_RPC_UNAUTHENTICATED] = {"UNAUTHENTICATED",
                                "The request does not have valid authentication credentials"},
};

const char *zt_rpc_code_name(enum zt_rpc_code code)
{
    return codes[(unsigned)code <= ZT_RPC_UNAUTHENTICATED ? code : ZT_RPC_UNKNOWN].name;
}

const char *zt_rpc_code_sentence(enum zt_rpc_code code)
{
    return codes[(unsigned)code <= ZT_RPC_UNAUTHENTICATED ? code : ZT_RPC_UNKNOWN].sentence;
}
