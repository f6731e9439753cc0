/* One bounded ring of bytes between all threads and the one that writes to stdout.
 *
 * Invariants, all under the lock: head <= tail, tail - head <= size; the bytes between them are
 * whole lines. The writer writes straight out of the ring: producers touch only what lies behind
 * tail, so those bytes stay put until head moves. The writer is signalled only when it sleeps; a
 * busy writer finds new lines by itself, and waits 2 ms for more before it writes few.
 *
 * An empty ring begins again at its front: what is resident is the largest backlog of late, not
 * everything that was ever written, and what a burst took is given back. */
#include "log_impl.h"

#include "zt/base/clock.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LINGER_NS 2000000   /* what a line may wait for others */
#define LINGER_BYTES 32768  /* enough company */
#define KEPT_BYTES (256 * 1024) /* of an empty ring */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    pthread_t writer;
    char *ring; /* ZT_LOG_QUEUE_BYTES, mapped */
    uint64_t head, tail;
    bool running, stopping, asleep;
    _Atomic uint64_t dropped;
} q = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

/* Writes all of it. Bytes that stdout will never take (closed, no reader) are given up. */
static void write_all(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(STDOUT_FILENO, bytes, n);
        if (done >= 0) {
            bytes += done;
            n -= (size_t)done;
        } else if (errno == EAGAIN) { /* somebody made the shared file description non-blocking */
            struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&p, 1, 1000);
        } else if (errno != EINTR) {
            return;
        }
    }
}

/* Under the lock, with nothing in the ring. */
static void start_over(void)
{
    if (q.tail > KEPT_BYTES)
        madvise(q.ring + KEPT_BYTES, ZT_LOG_QUEUE_BYTES - KEPT_BYTES, MADV_DONTNEED);
    q.head = q.tail = 0;
}

/* Lines come in company: a wake-up and a write for each would cost more than making them. Under the lock, which is let go meanwhile. */
static void linger(void)
{
    const struct timespec pause = {.tv_nsec = LINGER_NS};
    if (q.stopping || q.tail - q.head >= LINGER_BYTES)
        return;
    pthread_mutex_unlock(&q.lock);
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&q.lock);
}

static void *writer_main(void *arg)
{
    (void)arg;
    pthread_setname_np(pthread_self(), "zt-log");
    pthread_mutex_lock(&q.lock);
    for (;;) {
        while (q.head == q.tail && !q.stopping) {
            q.asleep = true;
            pthread_cond_wait(&q.more, &q.lock);
            q.asleep = false;
        }
        if (q.head == q.tail)
            break;
        linger();
        size_t start = q.head % ZT_LOG_QUEUE_BYTES, n = q.tail - q.head;
        if (n > ZT_LOG_QUEUE_BYTES - start)
            n = ZT_LOG_QUEUE_BYTES - start;
        pthread_mutex_unlock(&q.lock);
        write_all(q.ring + start, n);
        pthread_mutex_lock(&q.lock);
        q.head += n;
        if (q.head == q.tail)
            start_over();
    }
    pthread_mutex_unlock(&q.lock);
    return NULL;
}

enum zt_err zt_log_queue_start(struct zt_error *err)
{
    ZT_ASSERT(!q.running);
    if (!q.ring) {
        void *ring = mmap(NULL, ZT_LOG_QUEUE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (ring == MAP_FAILED)
            return zt_error_set_errno(err, ZT_IO, errno, "log: no memory for the queue");
        q.ring = ring;
    }
    q.stopping = false;
    /* The writer takes no signals, SIGPIPE included: a log without a reader is no reason to die. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&q.writer, NULL, writer_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return zt_error_set_errno(err, ZT_IO, rc, "log: cannot start the writer thread");
    pthread_mutex_lock(&q.lock);
    q.running = true;
    pthread_mutex_unlock(&q.lock);
    return ZT_OK;
}

void zt_log_queue_push(const char *line, size_t len)
{
    pthread_mutex_lock(&q.lock);
    if (!q.running) {
        pthread_mutex_unlock(&q.lock);
        return;
    }
    if (len > ZT_LOG_QUEUE_BYTES - (q.tail - q.head)) {
        atomic_fetch_add_explicit(&q.dropped, 1, memory_order_relaxed);
    } else {
        size_t start = q.tail % ZT_LOG_QUEUE_BYTES, first = ZT_LOG_QUEUE_BYTES - start;
        if (first > len)
            first = len;
        memcpy(q.ring + start, line, first);
        memcpy(q.ring, line + first, len - first);
        q.tail += len;
        if (q.asleep)
            pthread_cond_signal(&q.more);
    }
    pthread_mutex_unlock(&q.lock);
}

void zt_log_queue_stop(unsigned wait_ms)
{
    pthread_mutex_lock(&q.lock);
    bool was_running = q.running;
    q.running = false;
    q.stopping = true;
    pthread_cond_signal(&q.more);
    pthread_mutex_unlock(&q.lock);
    if (!was_running)
        return;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += wait_ms / 1000;
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    /* A reader that does not read may hold the writer in write(2) for ever: leave it there, with
     * its ring. */
    if (pthread_timedjoin_np(q.writer, NULL, &until) != 0) {
        pthread_detach(q.writer);
        return;
    }
    munmap(q.ring, ZT_LOG_QUEUE_BYTES);
    q.ring = NULL;
}

size_t zt_log_queued_bytes(void)
{
    pthread_mutex_lock(&q.lock);
    size_t n = q.tail - q.head;
    pthread_mutex_unlock(&q.lock);
    return n;
}

uint64_t zt_log_dropped(void)
{
    return atomic_load_explicit(&q.dropped, memory_order_relaxed);
}
