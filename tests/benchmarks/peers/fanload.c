// fanload: N WebSocket subscribers in one epoll loop; counts frames, rows and latency, and reads the server's CPU
// time over exactly the seconds that it counts. Prints "counting" when these begin, and a JSON object at their end.
//
// Counting begins WARMUP seconds after every connection has had its first data frame (one with "type":"update").
// A data frame carries its time of origin as "ts":<wall ns> or as "timestamp":"<RFC 3339, 6 decimals>Z".
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_MESSAGES = 16, OUTSTANDING = 50, READ = 65536, BUCKET_NS = 10000, BUCKETS = 2000000 };
static const char UPDATE[] = "\"type\":\"update\"";
static const double CONNECT_DEADLINE_S = 60;

typedef struct {
    int fd, open, live;  // the handshake is done; the first data frame has come
    uint8_t *buf;
    size_t len, cap;
    uint64_t frames;
} conn;

static int port, count = 1, latencies;
static double secs = 6, warmup = 1;
static const char *messages[MAX_MESSAGES];
static int n_messages;
static long server_pid;

static conn *conns;
static int opened, ready, live, closed, counting;
static uint32_t *histogram;
static uint64_t frames, bytes, rows, latency_n, latency_max;

static double mono(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

// utime + stime of the server in seconds, fields 14 and 15 of /proc/PID/stat; 0 without a server.
static double server_cpu(void) {
    char path[64], text[1024];
    unsigned long utime = 0, stime = 0;
    if (!server_pid) return 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", server_pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    fclose(file);
    char *after_name = strrchr(text, ')');
    if (after_name) sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &utime, &stime);
    return (double)(utime + stime) / sysconf(_SC_CLK_TCK);
}

static uint64_t number(const uint8_t *p, int digits) {
    uint64_t v = 0;
    for (int i = 0; i < digits; i++) v = v * 10 + p[i] - '0';
    return v;
}

// Age of a frame in ns by the time inside it, or -1. A timestamp is compared within its day.
static int64_t age(const uint8_t *p, size_t n) {
    const uint64_t day = 86400ull * 1000000000;
    uint8_t *q = memmem(p, n, "\"ts\":", 5);
    if (q) return (int64_t)(wall() - number(q + 5, 19));
    q = memmem(p, n, "\"timestamp\":\"", 13);
    if (!q || q + 13 + 26 > p + n) return -1;
    q += 13 + 11;
    uint64_t sent = (number(q, 2) * 3600 + number(q + 3, 2) * 60 + number(q + 6, 2)) * 1000000000;
    sent += number(q + 9, 6) * 1000;
    return (int64_t)((wall() % day + day - sent) % day);
}

static void on_frame(conn *c, const uint8_t *p, size_t n) {
    if (!memmem(p, n < 64 ? n : 64, UPDATE, sizeof UPDATE - 1)) return;
    if (memmem(p, n < 64 ? n : 64, "\"status\"", 8)) return;
    if (!c->live) c->live = 1, live++;
    if (!counting) return;
    frames++, c->frames++, bytes += n;
    const uint8_t *q = p;
    for (size_t left = n; (q = memmem(q, left, "\"symbol\":", 9)); left = p + n - q) rows++, q += 9;
    if (!latencies) return;
    int64_t d = age(p, n);
    if (d < 0) return;
    if ((uint64_t)d > latency_max) latency_max = d;
    uint64_t b = d / BUCKET_NS;
    histogram[b < BUCKETS ? b : BUCKETS - 1]++, latency_n++;
}

// Send one masked frame; the mask is zero, so the payload goes out as it is.
static void send_frame(int fd, int first_byte, const void *payload, size_t n) {
    uint8_t *b = malloc(n + 8);
    int k = 0;
    b[k++] = first_byte;
    if (n < 126) b[k++] = 0x80 | n;
    else b[k++] = 0x80 | 126, b[k++] = n >> 8, b[k++] = n & 255;
    memset(b + k, 0, 4);
    memcpy(b + k + 4, payload, n);
    if (write(fd, b, n + k + 4) != (ssize_t)(n + k + 4)) perror("write");
    free(b);
}

// Take the server's answer to the handshake; returns its length, 0 while it is incomplete.
static size_t shake(conn *c) {
    uint8_t *end = memmem(c->buf, c->len, "\r\n\r\n", 4);
    if (!end) return 0;
    if (memcmp(c->buf, "HTTP/1.1 101", 12)) {
        fprintf(stderr, "handshake refused: %.100s\n", c->buf);
        exit(1);
    }
    c->open = 1, ready++;
    for (int i = 0; i < n_messages; i++) send_frame(c->fd, 0x81, messages[i], strlen(messages[i]));
    return end + 4 - c->buf;
}

// Take every complete frame of the buffer from offset o; returns the offset of the rest.
static size_t take_frames(conn *c, size_t o) {
    while (c->len - o >= 2) {
        uint8_t *p = c->buf + o;
        uint64_t n = p[1] & 127;
        int head = n == 126 ? 4 : n == 127 ? 10 : 2;
        if (c->len - o < (size_t)head) break;
        if (head > 2) {
            n = 0;
            for (int i = 2; i < head; i++) n = n << 8 | p[i];
        }
        if (c->len - o < head + n) break;
        int op = p[0] & 15;
        if (op < 3) on_frame(c, p + head, n);
        else if (op == 9) send_frame(c->fd, 0x8A, p + head, n);
        o += head + n;
    }
    return o;
}

static void on_readable(conn *c) {
    if (c->cap - c->len < READ) c->buf = realloc(c->buf, c->cap *= 2);
    ssize_t r = read(c->fd, c->buf + c->len, c->cap - c->len);
    if (r < 0 && errno == EAGAIN) return;
    if (r <= 0) {
        close(c->fd), closed++;
        return;
    }
    c->len += r;
    size_t o = c->open ? 0 : shake(c);
    if (!c->open) return;
    o = take_frames(c, o);
    memmove(c->buf, c->buf + o, c->len - o);
    c->len -= o;
}

static void connect_one(int epoll) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    conn *c = &conns[opened++];
    int one = 1;
    char request[512];
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address)) perror("connect"), exit(1);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    int n = snprintf(request, sizeof request,
                     "GET /v2 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", port);
    if (write(c->fd, request, n) != n) perror("write");
    c->buf = malloc(c->cap = READ);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

// Latency in ms below which a share of the frames arrived; -1 without any.
static double quantile(double share) {
    uint64_t want = latency_n * share, seen = 0;
    for (int i = 0; i < BUCKETS && latency_n; i++)
        if ((seen += histogram[i]) > want) return i * (BUCKET_NS / 1e6);
    return -1;
}

static void print_result(double elapsed, double cpu) {
    uint64_t least = ~0ull, most = 0;
    for (int i = 0; i < count; i++) {
        if (conns[i].frames < least) least = conns[i].frames;
        if (conns[i].frames > most) most = conns[i].frames;
    }
    printf("{\"secs\":%.4f,\"frames\":%lu,\"rows\":%lu,\"bytes\":%lu,\"server_cpu_s\":%.2f,\"p50_ms\":%.2f,"
           "\"p99_ms\":%.2f,\"max_ms\":%.2f,\"least\":%lu,\"most\":%lu,\"closed\":%d}\n",
           elapsed, frames, rows, bytes, cpu, quantile(0.5), quantile(0.99), latency_max / 1e6, least, most, closed);
}

static void parse(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:n:s:w:m:P:l")) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'n': count = atoi(optarg); break;
        case 's': secs = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'P': server_pid = atol(optarg); break;
        case 'l': latencies = 1; break;
        case 'm': if (n_messages < MAX_MESSAGES) messages[n_messages++] = optarg; break;
        default:
            fprintf(stderr, "fanload -p PORT [-n SUBSCRIBERS] [-s SECONDS] [-w WARMUP_SECONDS] [-m MESSAGE]... "
                            "[-P SERVER_PID] [-l(atencies)]\n");
            exit(2);
    }
}

int main(int argc, char **argv) {
    parse(argc, argv);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    histogram = calloc(BUCKETS, sizeof *histogram);
    conns = calloc(count, sizeof *conns);
    int epoll = epoll_create1(0);
    double began = mono(), start = 0, end = 0, cpu = 0;
    struct epoll_event events[1024];
    while (!end || mono() < end) {
        while (opened < count && opened - ready - closed < OUTSTANDING) connect_one(epoll);
        int n = epoll_wait(epoll, events, 1024, 20);
        for (int i = 0; i < n; i++) on_readable(events[i].data.ptr);
        double t = mono();
        if (!start && live + closed >= count) start = t + warmup;
        if (start && !end && t >= start) {
            counting = 1, start = t, end = t + secs, cpu = server_cpu();
            puts("counting"), fflush(stdout);
        }
        if (!start && t - began > CONNECT_DEADLINE_S) {
            fprintf(stderr, "only %d of %d connected and %d had data after %.0f s\n", ready, count, live, t - began);
            return 1;
        }
    }
    cpu = server_cpu() - cpu;
    print_result(mono() - start, cpu);
    return closed == count;
}
