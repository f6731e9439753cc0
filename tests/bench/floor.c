/* The floor under a tunnel's cost: a relay pair that does nothing but recv, AES-256-GCM on full TLS records with a 9-byte frame header inside,
 * and send (and the reverse), in blocking processes. What a daemon needs beyond it is its own.
 *
 *   floor seal PORT HOST PORT     plaintext in, records out
 *   floor open PORT HOST PORT     records in, plaintext out
 *
 * One direction per connection, a thread each; ends with its connections. */
#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define PLAIN 16384
#define FRAME 9
#define PAYLOAD (PLAIN - FRAME)
#define RECORD (5 + PLAIN + 1 + 16)
#define RECORDS 16 /* per system call */

static bool sealing;
static struct addrinfo *target;

static EVP_CIPHER_CTX *cipher(void)
{
    static const uint8_t key[32] = {1};
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, key, NULL, sealing);
    return c;
}

static void nonce(EVP_CIPHER_CTX *c, uint64_t seq)
{
    uint8_t iv[12] = {0};
    memcpy(iv + 4, &seq, sizeof(seq));
    EVP_CipherInit_ex(c, NULL, NULL, NULL, iv, sealing);
}

static bool send_all(int fd, const uint8_t *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static size_t seal_record(EVP_CIPHER_CTX *c, uint64_t seq, const uint8_t *in, size_t n, uint8_t *out)
{
    static const uint8_t frame[FRAME], type = 23;
    int len, at = 5;
    size_t body = FRAME + n + 1 + 16;
    uint8_t header[5] = {23, 3, 3, (uint8_t)(body >> 8), (uint8_t)body};
    memcpy(out, header, 5);
    nonce(c, seq);
    EVP_CipherUpdate(c, NULL, &len, header, 5);
    EVP_CipherUpdate(c, out + at, &len, frame, FRAME);
    at += len;
    EVP_CipherUpdate(c, out + at, &len, in, (int)n);
    at += len;
    EVP_CipherUpdate(c, out + at, &len, &type, 1);
    at += len;
    EVP_CipherFinal_ex(c, out + at, &len);
    EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, out + at);
    return (size_t)at + 16;
}

static void seal_loop(int in, int out)
{
    EVP_CIPHER_CTX *c = cipher();
    uint8_t *plain = malloc(RECORDS * PAYLOAD), *sealed = malloc(RECORDS * RECORD);
    uint64_t seq = 0;
    ssize_t n;
    while ((n = recv(in, plain, RECORDS * PAYLOAD, 0)) > 0) {
        size_t filled = 0;
        for (size_t at = 0; at < (size_t)n; at += PAYLOAD) {
            size_t k = (size_t)n - at < PAYLOAD ? (size_t)n - at : PAYLOAD;
            filled += seal_record(c, seq++, plain + at, k, sealed + filled);
        }
        if (!send_all(out, sealed, filled))
            break;
    }
    EVP_CIPHER_CTX_free(c);
    free(plain);
    free(sealed);
}

/* Opens whole records in place and points at their payloads. Returns the bytes used. */
static size_t open_records(EVP_CIPHER_CTX *c, uint64_t *seq, uint8_t *in, size_t have, struct iovec *out, int *n_out)
{
    size_t used = 0;
    while (have - used >= 5) {
        uint8_t *r = in + used;
        size_t body = (size_t)r[3] << 8 | r[4];
        if (have - used < 5 + body)
            break;
        int len, n = (int)body - 16;
        nonce(c, (*seq)++);
        EVP_CipherUpdate(c, NULL, &len, r, 5);
        EVP_CipherUpdate(c, r + 5, &len, r + 5, n);
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, r + 5 + n);
        if (EVP_CipherFinal_ex(c, r + 5 + n, &len) != 1)
            abort();
        out[(*n_out)++] = (struct iovec){r + 5 + FRAME, (size_t)n - FRAME - 1};
        used += 5 + body;
    }
    return used;
}

static bool send_vector(int fd, struct iovec *iov, int n)
{
    while (n) {
        ssize_t k = writev(fd, iov, n);
        if (k <= 0)
            return false;
        for (; n && (size_t)k >= iov->iov_len; iov++, n--)
            k -= (ssize_t)iov->iov_len;
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + k;
            iov->iov_len -= (size_t)k;
        }
    }
    return true;
}

static void open_loop(int in, int out)
{
    EVP_CIPHER_CTX *c = cipher();
    uint8_t *sealed = malloc(RECORDS * RECORD);
    uint64_t seq = 0;
    size_t have = 0;
    ssize_t n;
    while ((n = recv(in, sealed + have, RECORDS * RECORD - have, 0)) > 0) {
        struct iovec iov[RECORDS * RECORD / 32]; /* however small the records are */
        int n_iov = 0;
        have += (size_t)n;
        size_t used = open_records(c, &seq, sealed, have, iov, &n_iov);
        if (n_iov && !send_vector(out, iov, n_iov < 1024 ? n_iov : 1024))
            break;
        memmove(sealed, sealed + used, have - used);
        have -= used;
    }
    EVP_CIPHER_CTX_free(c);
    free(sealed);
}

static void *relay(void *arg)
{
    int in = (int)(intptr_t)arg, out = socket(target->ai_family, SOCK_STREAM, 0);
    if (!connect(out, target->ai_addr, target->ai_addrlen))
        (sealing ? seal_loop : open_loop)(in, out);
    close(in);
    close(out);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 5 || getaddrinfo(argv[3], argv[4], &(struct addrinfo){.ai_socktype = SOCK_STREAM}, &target))
        return 2;
    sealing = !strcmp(argv[1], "seal");
    int one = 1, l = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtol(argv[2], NULL, 10))};
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(l, (struct sockaddr *)&a, sizeof(a)) || listen(l, 128)) {
        perror("listen");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(l, NULL, NULL);
        pthread_t t;
        if (fd >= 0 && !pthread_create(&t, NULL, relay, (void *)(intptr_t)fd))
            pthread_detach(t);
    }
}
