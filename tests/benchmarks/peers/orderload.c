// orderload: N WebSocket connections in one epoll loop, each a closed loop: it sends a request, waits for the reply,
// and sends the next. Prints a JSON object: replies per second, how many said "success":true, round trips.
//
// usage: orderload HOST PORT PATH N SECS TEMPLATE MARK
// TEMPLATE is a request with one %llu, which becomes a number that no other request has; MARK is what a reply contains.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ = 65536, EVENTS = 512, LONGEST = 2000, MOST_REPLIES = 1 << 22 };

typedef struct {
    int fd, open;  // the handshake is done
    uint8_t *buf;
    size_t len, cap;
    double sent_at;
} conn;

static const char *template, *mark;
static unsigned long long number, ok, refused;
static float *round_trips_ms;
static size_t replies;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

// The next request as one frame, masked with zeros; it is short enough that the kernel takes it whole.
static void ask(conn *c) {
    uint8_t frame[LONGEST + 8] = {0};
    int size = snprintf((char *)frame + 8, LONGEST, template, ++number);
    int head = size < 126 ? 6 : 8;  // two bytes, perhaps two more of length, and the mask
    uint8_t *start = frame + 8 - head;
    start[0] = 0x81;
    start[1] = 0x80 | (size < 126 ? size : 126);
    if (head == 8) {
        start[2] = size >> 8;
        start[3] = size & 255;
    }
    c->sent_at = now();
    if (write(c->fd, start, head + size) != head + size)
        die("write");
}

static void reply(conn *c, const uint8_t *text, size_t size) {
    if (memmem(text, size, "\"success\":true", 14)) {
        ok++;
    } else if (!refused++) {
        fprintf(stderr, "first refusal: %.*s\n", (int)(size < 300 ? size : 300), text);
    }
    if (replies < MOST_REPLIES)
        round_trips_ms[replies++] = (now() - c->sent_at) * 1e3;
    ask(c);
}

// How much of the buffer the next whole frame takes; 0 if it is not whole.
static size_t next_frame(conn *c, const uint8_t *p, size_t left) {
    if (left < 2)
        return 0;
    uint64_t size = p[1] & 127;
    int head = size == 126 ? 4 : size == 127 ? 10 : 2;
    if (left < (size_t)head)
        return 0;
    if (head > 2) {
        size = 0;
        for (int i = 2; i < head; i++)
            size = size << 8 | p[i];
    }
    if (left < head + size)
        return 0;
    if ((p[0] & 15) == 1 && memmem(p + head, size, mark, strlen(mark)))
        reply(c, p + head, size);
    return head + size;
}

// Take in what has come; 0 if the connection has ended.
static int receive(conn *c) {
    if (c->cap - c->len < READ)
        c->buf = realloc(c->buf, c->cap += READ);
    ssize_t got = read(c->fd, c->buf + c->len, c->cap - c->len);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    c->len += got;
    size_t used = 0, taken;
    if (!c->open) {
        uint8_t *end = memmem(c->buf, c->len, "\r\n\r\n", 4);
        if (!end)
            return 1;
        if (memcmp(c->buf, "HTTP/1.1 101", 12))
            die("no WebSocket there");
        c->open = 1;
        used = end + 4 - c->buf;
        ask(c);
    }
    while ((taken = next_frame(c, c->buf + used, c->len - used)))
        used += taken;
    memmove(c->buf, c->buf + used, c->len -= used);
    return 1;
}

static void dial(conn *c, struct sockaddr_in *address, const char *path) {
    char request[512];
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)address, sizeof *address))
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                        path, ntohs(address->sin_port));
    if (write(c->fd, request, size) != size)
        die("write");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double quantile(double q) { return replies ? round_trips_ms[(size_t)((replies - 1) * q)] : -1; }

int main(int argc, char **argv) {
    if (argc != 8 || strlen(argv[6]) > LONGEST - 32) {
        fprintf(stderr, "usage: orderload HOST PORT PATH N SECS TEMPLATE MARK\n");
        return 2;
    }
    int count = atoi(argv[4]), left = count;
    double secs = atof(argv[5]);
    template = argv[6], mark = argv[7];
    number = (unsigned long long)time(NULL) * 1000000;
    round_trips_ms = malloc(MOST_REPLIES * sizeof *round_trips_ms);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    conn *conns = calloc(count, sizeof *conns);
    int poll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        dial(&conns[i], &address, argv[3]);
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &conns[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, conns[i].fd, &wanted);
    }
    struct epoll_event events[EVENTS];
    double began = now();
    while (now() < began + secs && left) {
        int n = epoll_wait(poll, events, EVENTS, 100);
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (!receive(c)) {
                close(c->fd);
                left--;
            }
        }
    }
    double took = now() - began;
    qsort(round_trips_ms, replies, sizeof *round_trips_ms, ascending);
    printf("{\"per_s\":%.0f,\"ok\":%llu,\"refused\":%llu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"closed\":%d}\n",
           (ok + refused) / took, ok, refused, quantile(.5), quantile(.99), count - left);
    return 0;
}
