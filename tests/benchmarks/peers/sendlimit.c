// sendlimit SIZE RATE SECONDS: the limit of a fan-out. One thread, one prebuilt frame of SIZE bytes, send() to every
// connection, RATE times a second. Prints its port, and ends by itself after SECONDS.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char REPLY[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static int fds[65536], n;

static uint64_t wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void accept_one(int listener) {
    char request[4096];
    int one = 1, fd = accept(listener, 0, 0);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (read(fd, request, sizeof request) <= 0 || write(fd, REPLY, strlen(REPLY)) < 0) {
        close(fd);
        return;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fds[n++] = fd;
}

// A frame of exactly `size` bytes, the same text as peers/tick.py.
static void build(char *frame, int size, uint64_t seq) {
    int head = size < 128 ? 2 : 4, payload = size - head;
    int k = snprintf(frame + head, payload + 1,
                     "{\"channel\":\"ticker\",\"type\":\"update\",\"data\":[{\"symbol\":\"BTC/USD\",\"bid\":67123.45,"
                     "\"seq\":%lu,\"ts\":%lu,\"pad\":\"", seq, wall());
    memset(frame + head + k, '.', payload - k - 4);
    memcpy(frame + head + payload - 4, "\"}]}", 4);
    frame[0] = (char)0x81;
    if (head == 2) frame[1] = payload;
    else frame[1] = 126, frame[2] = payload >> 8, frame[3] = payload & 255;
}

static void send_all(const char *frame, int size) {
    for (int i = 0; i < n; i++)
        if (send(fds[i], frame, size, MSG_NOSIGNAL) < 0 && errno != EAGAIN) close(fds[i]), fds[i--] = fds[--n];
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int size = atoi(argv[1]);
    uint64_t period = 1e9 / atof(argv[2]), next = wall(), seq = 0;
    alarm(atoi(argv[3]));
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (size < 150 || bind(listener, (void *)&address, length) || listen(listener, 1024)) return 1;
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port)), fflush(stdout);
    char *frame = malloc(size + 1);
    while (1) {
        int64_t wait = (int64_t)(next - wall());
        // ppoll, not poll: a timeout in whole milliseconds would spin through the rest and spoil the limit.
        struct timespec timeout = {.tv_nsec = wait < 0 ? 0 : wait};
        struct pollfd p = {listener, POLLIN, 0};
        if (ppoll(&p, 1, &timeout, 0) > 0) accept_one(listener);
        if (wall() < next) continue;
        next += period;
        build(frame, size, ++seq);
        send_all(frame, size);
    }
}
