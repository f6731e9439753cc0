/* DNS load, and what it is compared with. One thread; everything by UDP over loopback.
 *
 *   dnsload echo PORT                       sends back what comes
 *   dnsload sink PORT                       drops what comes
 *   dnsload ask PORT RATE SECONDS NAME      questions for A of NAME, RATE a second (0: 64 under way at any time); one JSON line:
 *                                           answers, seconds, p50_us, p99_us
 *   dnsload flood PORT RATE SECONDS NAME    sends only */
#include <arpa/inet.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WINDOW 64
#define SAMPLES_MAX 4000000

static uint8_t question[300];
static size_t question_len;
static uint64_t sent_ns[65536];
static uint32_t *samples_ns;
static size_t n_samples;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int open_socket(const char *port, bool listens)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10))};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    int rc = listens ? bind(fd, (struct sockaddr *)&a, sizeof a) : connect(fd, (struct sockaddr *)&a, sizeof a);
    if (rc != 0) {
        perror("dnsload");
        exit(1);
    }
    return fd;
}

static int serve(const char *port, bool echoes)
{
    int fd = open_socket(port, true);
    uint8_t b[4096];
    struct sockaddr_in from;
    puts("ready");
    fflush(stdout);
    for (;;) {
        socklen_t len = sizeof from;
        ssize_t n = recvfrom(fd, b, sizeof b, 0, (struct sockaddr *)&from, &len);
        if (n > 0 && echoes)
            sendto(fd, b, (size_t)n, 0, (struct sockaddr *)&from, len);
    }
}

static void make_question(const char *name)
{
    static const uint8_t header[12] = {0, 0, 1, 0, 0, 1};
    memcpy(question, header, sizeof header);
    question_len = sizeof header;
    while (*name) {
        size_t n = strcspn(name, ".");
        question[question_len++] = (uint8_t)n;
        memcpy(question + question_len, name, n);
        question_len += n;
        name += n + (name[n] == '.');
    }
    memcpy(question + question_len, "\0\0\1\0\1", 5);
    question_len += 5;
}

static void ask(int fd, uint16_t id)
{
    question[0] = (uint8_t)(id >> 8);
    question[1] = (uint8_t)id;
    sent_ns[id] = now_ns();
    if (send(fd, question, question_len, MSG_DONTWAIT) < 0)
        sent_ns[id] = 0;
}

/* Takes what is there. Returns how many. */
static unsigned take(int fd)
{
    uint8_t b[4096];
    unsigned n = 0;
    while (recv(fd, b, sizeof b, MSG_DONTWAIT) >= 12) {
        uint16_t id = (uint16_t)(b[0] << 8 | b[1]);
        if (sent_ns[id] && n_samples < SAMPLES_MAX)
            samples_ns[n_samples++] = (uint32_t)(now_ns() - sent_ns[id]);
        sent_ns[id] = 0;
        n++;
    }
    return n;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int run(int fd, double rate, double seconds, bool takes)
{
    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), sent = 0, answers = 0;
    samples_ns = malloc(SAMPLES_MAX * sizeof *samples_ns);
    for (uint64_t now = start; now < end; now = now_ns()) {
        uint64_t due = rate > 0 ? (uint64_t)((double)(now - start) / 1e9 * rate) : answers + WINDOW;
        while (sent < due)
            ask(fd, (uint16_t)sent++);
        struct pollfd p = {fd, POLLIN, 0};
        struct timespec wait = {0, rate > 0 ? 50000 : 100000000};
        unsigned got = ppoll(&p, 1, &wait, NULL) > 0 && takes ? take(fd) : 0;
        answers += got;
        if (rate == 0 && got == 0)
            sent = answers; /* lost ones are asked again */
    }
    double took = (double)(now_ns() - start) / 1e9;
    qsort(samples_ns, n_samples, sizeof *samples_ns, by_value);
    printf("{\"answers\": %llu, \"sent\": %llu, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", (unsigned long long)answers,
           (unsigned long long)sent, took, n_samples ? samples_ns[n_samples / 2] / 1e3 : 0,
           n_samples ? samples_ns[n_samples * 99 / 100] / 1e3 : 0);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && (!strcmp(argv[1], "echo") || !strcmp(argv[1], "sink")))
        return serve(argv[2], argv[1][0] == 'e');
    if (argc != 6 || (strcmp(argv[1], "ask") && strcmp(argv[1], "flood"))) {
        fputs("usage: dnsload echo|sink PORT, dnsload ask|flood PORT RATE SECONDS NAME\n", stderr);
        return 2;
    }
    make_question(argv[5]);
    return run(open_socket(argv[2], false), strtod(argv[3], NULL), strtod(argv[4], NULL), argv[1][0] == 'a');
}
