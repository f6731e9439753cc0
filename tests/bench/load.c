/* The load of the benchmark: one server that does what the first byte of a connection says, and clients that measure.
 *
 *   load server PORT                         serve until killed
 *   load bulk HOST PORT CONNS SECONDS        push bytes; prints bytes and seconds
 *   load rr HOST PORT CONNS RATE SECONDS     64-byte requests at RATE a second in all (0: as fast as it goes); prints latencies
 *   load churn HOST PORT CLIENTS SECONDS [N] connect, one byte each way, close, until the time or N is over; prints connections and failures
 *   load storm HOST PORT CLIENTS RATE SECONDS  the same, RATE connections a second in all
 *   load idle HOST PORT CONNS                open CONNS, say "ready", hold them until standard input ends
 *
 * Output is one JSON object. Blocking sockets, a thread per client connection where there are few, poll where there are many. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
#define MESSAGE 64
#define SAMPLES_MAX 4000000
#define CONNS_MAX 65536

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_until(double when)
{
    struct timespec t = {(time_t)when, (long)((when - (double)(time_t)when) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* ---- server: epoll, one thread a core ---- */

struct peer {
    int fd;
    char mode; /* 0: not told yet; 's' sink, 'r' answer each message, 'c' answer and close */
    unsigned have;
};

static int listener;

static void drop(int ep, struct peer *p)
{
    epoll_ctl(ep, EPOLL_CTL_DEL, p->fd, NULL);
    close(p->fd);
    free(p);
}

static void serve_one(int ep, struct peer *p, char *buf)
{
    ssize_t n = recv(p->fd, buf, CHUNK, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(ep, p);
        return;
    }
    char *at = buf;
    if (!p->mode) {
        p->mode = *at++;
        n--;
    }
    if (p->mode == 'c') {
        send(p->fd, "c", 1, MSG_NOSIGNAL);
        drop(ep, p);
    } else if (p->mode == 'r') {
        p->have += (unsigned)n;
        while (p->have >= MESSAGE) {
            p->have -= MESSAGE;
            send(p->fd, buf, MESSAGE, MSG_NOSIGNAL);
        }
    }
}

static void *serve(void *arg)
{
    char *buf = malloc(CHUNK);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event on_listen = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &on_listen);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(ep, events, 64, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) {
                serve_one(ep, events[i].data.ptr, buf);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd < 0)
                continue;
            int one = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
            struct peer *p = calloc(1, sizeof(*p));
            p->fd = fd;
            struct epoll_event e = {.events = EPOLLIN, .data.ptr = p};
            epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
        }
    }
    return arg;
}

static int run_server(int port)
{
    int one = 1, zero = 0;
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) || listen(listener, 4096))
        die("listen");
    puts("ready");
    fflush(stdout);
    pthread_t other;
    pthread_create(&other, NULL, serve, NULL);
    serve(NULL);
    return 0;
}

/* ---- clients ---- */

static struct addrinfo *target;
static double deadline;

static int try_connect(void)
{
    int one = 1, fd = socket(target->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(fd, target->ai_addr, target->ai_addrlen)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int must_connect(void)
{
    int fd = try_connect();
    if (fd < 0)
        die("connect");
    return fd;
}

static atomic_ullong bytes;

static void *push(void *arg)
{
    char *buf = calloc(1, CHUNK);
    int fd = must_connect();
    send(fd, "s", 1, 0);
    while (now_s() < deadline) {
        ssize_t n = send(fd, buf, CHUNK, MSG_NOSIGNAL);
        if (n < 0)
            die("send");
        atomic_fetch_add(&bytes, (unsigned long long)n);
    }
    close(fd);
    free(buf);
    return arg;
}

static void run_threads(unsigned n, void *(*fn)(void *))
{
    pthread_t *t = calloc(n, sizeof(*t));
    for (unsigned i = 0; i < n; i++)
        pthread_create(&t[i], NULL, fn, (void *)(uintptr_t)i);
    for (unsigned i = 0; i < n; i++)
        pthread_join(t[i], NULL);
    free(t);
}

static int run_bulk(unsigned conns, double seconds)
{
    double start = now_s();
    deadline = start + seconds;
    run_threads(conns, push);
    printf("{\"bytes\": %llu, \"seconds\": %.4f}\n", (unsigned long long)bytes, now_s() - start);
    return 0;
}

/* Latencies in microseconds. */
static float *samples;
static atomic_uint n_samples;
static double interval;

static bool exchange(int fd, char *buf)
{
    if (send(fd, buf, MESSAGE, MSG_NOSIGNAL) != MESSAGE)
        return false;
    for (ssize_t have = 0, n; have < MESSAGE; have += n) {
        n = recv(fd, buf, (size_t)(MESSAGE - have), 0);
        if (n <= 0)
            return false;
    }
    return true;
}

/* At a fixed rate a request that is late was still due when it was due: its wait counts (no coordinated omission). */
static void *ask(void *arg)
{
    char buf[MESSAGE] = {0};
    int fd = must_connect();
    send(fd, "r", 1, 0);
    double due = now_s() + interval * (double)(uintptr_t)arg / 16;
    while ((interval > 0 ? due : now_s()) < deadline) {
        double from = interval > 0 ? due : now_s();
        if (interval > 0 && now_s() < due)
            sleep_until(due);
        if (!exchange(fd, buf))
            die("exchange");
        unsigned i = atomic_fetch_add(&n_samples, 1);
        if (i < SAMPLES_MAX)
            samples[i] = (float)((now_s() - from) * 1e6);
        due += interval;
    }
    close(fd);
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int run_rr(unsigned conns, double rate, double seconds)
{
    samples = calloc(SAMPLES_MAX, sizeof(*samples));
    interval = rate > 0 ? conns / rate : 0;
    double start = now_s();
    deadline = start + seconds;
    run_threads(conns, ask);
    double took = now_s() - start;
    unsigned n = n_samples < SAMPLES_MAX ? n_samples : SAMPLES_MAX;
    qsort(samples, n, sizeof(*samples), by_value);
    printf("{\"requests\": %u, \"seconds\": %.4f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n", (unsigned)n_samples,
           took, n ? (double)samples[n / 2] : 0, n ? (double)samples[n * 99ull / 100] : 0, n ? (double)samples[n * 999ull / 1000] : 0);
    return 0;
}

static atomic_uint done, failed;
static unsigned churn_most = UINT32_MAX;

/* With an interval, at its own pace: a connection that takes long delays the next, but none is left out. */
static void *churn(void *arg)
{
    double due = now_s() + interval * (double)(uintptr_t)arg / 16;
    for (; now_s() < deadline && done + failed < churn_most; due += interval) {
        if (interval > 0 && now_s() < due)
            sleep_until(due);
        char c;
        int fd = try_connect();
        bool ok = fd >= 0 && send(fd, "c", 1, MSG_NOSIGNAL) == 1 && recv(fd, &c, 1, 0) == 1 && c == 'c';
        atomic_fetch_add(ok ? &done : &failed, 1);
        if (fd >= 0)
            close(fd);
    }
    return arg;
}

static int run_churn(unsigned clients, double seconds)
{
    double start = now_s();
    deadline = start + seconds;
    run_threads(clients, churn);
    printf("{\"connections\": %u, \"failed\": %u, \"seconds\": %.4f}\n", (unsigned)done, (unsigned)failed, now_s() - start);
    return 0;
}

static int run_idle(unsigned conns)
{
    char buf[MESSAGE] = {0};
    for (unsigned i = 0; i < conns; i++) {
        int fd = must_connect();
        if (send(fd, "r", 1, 0) != 1 || !exchange(fd, buf))
            die("exchange");
    }
    puts("{\"ready\": true}");
    fflush(stdout);
    while (getchar() != EOF)
        continue;
    return 0;
}

int main(int argc, char **argv)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    if (argc == 3 && !strcmp(argv[1], "server"))
        return run_server((int)strtol(argv[2], NULL, 10));
    if (argc < 5 || getaddrinfo(argv[2], argv[3], &(struct addrinfo){.ai_socktype = SOCK_STREAM}, &target)) {
        fprintf(stderr, "see the comment at the top of load.c\n");
        return 2;
    }
    unsigned n = (unsigned)strtoul(argv[4], NULL, 10);
    if (n == 0 || n > CONNS_MAX)
        return 2;
    if (!strcmp(argv[1], "bulk") && argc == 6)
        return run_bulk(n, strtod(argv[5], NULL));
    if (!strcmp(argv[1], "rr") && argc == 7)
        return run_rr(n, strtod(argv[5], NULL), strtod(argv[6], NULL));
    if (!strcmp(argv[1], "churn") && (argc == 6 || argc == 7)) {
        if (argc == 7)
            churn_most = (unsigned)strtoul(argv[6], NULL, 10);
        return run_churn(n, strtod(argv[5], NULL));
    }
    if (!strcmp(argv[1], "storm") && argc == 7) {
        interval = n / strtod(argv[5], NULL);
        return run_churn(n, strtod(argv[6], NULL));
    }
    if (!strcmp(argv[1], "idle") && argc == 5)
        return run_idle(n);
    return 2;
}
