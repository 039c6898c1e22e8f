// fanload: N WebSocket subscribers in one epoll loop; counts frames, rows and latency, and reads the server's CPU
// time over exactly the seconds that it counts. Prints "counting" when these begin, and a JSON object at their end.
//
// Counting begins WARMUP seconds after every connection has had its first data frame (one with "type":"update").
// A data frame carries its time of origin as "ts":<wall ns> or as "timestamp":"<RFC 3339, 6 decimals>Z". A binary one
// (-r) is an array of records of one size, whose second byte is 1 in an update.
//
// With -b it never sleeps while it counts. A reader that sleeps has to be woken by whoever sends to it, and how often
// depends on which of the two is faster: on a virtual machine it is up to a fifth of what a frame costs the sender.
//
// With -e N only every Nth subscriber examines what it gets. The others go from frame to frame by their headers, count
// bytes, and have the kernel throw away the rest of a frame of which they have only a part (MSG_TRUNC, no copy); frames
// and rows are scaled up by the share of bytes that was examined. That is what one core can read of 2 GB/s.
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

enum { MAX_MESSAGES = 16, MAX_PIDS = 64, OUTSTANDING = 50, READ = 65536, BUCKET_NS = 10000, BUCKETS = 2000000 };
static const char UPDATE[] = "\"type\":\"update\"";
static const double CONNECT_DEADLINE_S = 120;

typedef struct {
    int fd, open, live;  // the handshake is done; the first data frame has come
    uint8_t *buf;
    size_t len, cap;
    int examined;
    uint64_t frames, skip, skipped;  // bytes still to be thrown away of a frame, and its length
} conn;

static int port, count = 1, latencies, record_bytes, examine = 1, busy;
static double secs = 6, warmup = 1;
static const char *messages[MAX_MESSAGES];
static int n_messages;
static char **lines;  // of -f: subscriber i sends line i, from the beginning again when there are no more
static int n_lines;
static const char *subprotocol;
static long server_pids[MAX_PIDS];
static int n_pids;

static conn *conns;
static int opened, ready, live, closed, counting;
static uint32_t *histogram;
static uint64_t frames, bytes, rows, latency_n, latency_max, latency_min = ~0ull, examined_bytes;

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

// utime + stime of a process in seconds, fields 14 and 15 of /proc/PID/stat.
static double process_cpu(long pid) {
    char path[64], text[1024];
    unsigned long utime = 0, stime = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    fclose(file);
    char *after_name = strrchr(text, ')');
    if (after_name) sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &utime, &stime);
    return (double)(utime + stime) / sysconf(_SC_CLK_TCK);
}

// The same of all processes of the server.
static double server_cpu(void) {
    double sum = 0;
    for (int i = 0; i < n_pids; i++) sum += process_cpu(server_pids[i]);
    return sum;
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

static int is_update(int opcode, const uint8_t *p, size_t n) {
    if (opcode == 2) return record_bytes && n > 1 && p[1] == 1;
    if (n > 64) n = 64;
    return memmem(p, n, UPDATE, sizeof UPDATE - 1) && !memmem(p, n, "\"status\"", 8);
}

static uint64_t rows_of(int opcode, const uint8_t *p, size_t n) {
    if (opcode == 2) return n / record_bytes;
    uint64_t found = 0;
    const uint8_t *q = p;
    for (size_t left = n; (q = memmem(q, left, "\"symbol\":", 9)); left = p + n - q) found++, q += 9;
    return found;
}

static void on_frame(conn *c, int opcode, const uint8_t *p, size_t n) {
    if (c->live && !c->examined) {
        if (counting) bytes += n;
        return;
    }
    if (!is_update(opcode, p, n)) return;
    if (!c->live) c->live = 1, live++;
    if (!counting) return;
    frames++, c->frames++, bytes += n, examined_bytes += n, rows += rows_of(opcode, p, n);
    if (!latencies) return;
    int64_t d = age(p, n);
    if (d < 0) return;
    if ((uint64_t)d > latency_max) latency_max = d;
    if ((uint64_t)d < latency_min) latency_min = d;
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
    if (n_lines) {
        const char *line = lines[(c - conns) % n_lines];
        send_frame(c->fd, 0x81, line, strlen(line));
    }
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
        int op = p[0] & 15;
        if (c->len - o < head + n) {
            if (!c->live || c->examined || op >= 3) break;
            c->skip = head + n - (c->len - o), c->skipped = n;
            return c->len;
        }
        if (op < 3) on_frame(c, op, p + head, n);
        else if (op == 9) send_frame(c->fd, 0x8A, p + head, n);
        o += head + n;
    }
    return o;
}

static void ended(conn *c) {
    close(c->fd), closed++;
}

static void on_readable(conn *c) {
    if (c->cap - c->len < READ) c->buf = realloc(c->buf, c->cap *= 2);
    ssize_t r = c->skip ? recv(c->fd, NULL, c->skip, MSG_TRUNC) : read(c->fd, c->buf + c->len, c->cap - c->len);
    if (r < 0 && errno == EAGAIN) return;
    if (r <= 0) {
        ended(c);
        return;
    }
    if (c->skip) {
        c->skip -= r;
        if (!c->skip && counting) bytes += c->skipped;
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
    conn *c = &conns[opened];
    c->examined = opened++ % examine == 0;
    int one = 1;
    char request[512], offer[128] = "";
    if (subprotocol) snprintf(offer, sizeof offer, "Sec-WebSocket-Protocol: %s\r\n", subprotocol);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address)) perror("connect"), exit(1);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    int n = snprintf(request, sizeof request,
                     "GET /v2 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                     port, offer);
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
    double scale = examined_bytes ? (double)bytes / examined_bytes : 1;
    frames *= scale, rows *= scale;
    for (int i = 0; i < count; i += examine) {
        if (conns[i].frames < least) least = conns[i].frames;
        if (conns[i].frames > most) most = conns[i].frames;
    }
    printf("{\"secs\":%.4f,\"frames\":%lu,\"rows\":%lu,\"bytes\":%lu,\"server_cpu_s\":%.2f,\"min_ms\":%.2f,"
           "\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f,\"least\":%lu,\"most\":%lu,\"closed\":%d}\n",
           elapsed, frames, rows, bytes, cpu, latency_n ? latency_min / 1e6 : -1, quantile(0.5), quantile(0.99), latency_max / 1e6, least, most, closed);
}

static void read_lines(const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    if (!file) perror(path), exit(1);
    while ((n = getline(&line, &room, file)) > 0) {
        if (line[n - 1] == '\n') line[n - 1] = 0;
        lines = realloc(lines, (n_lines + 1) * sizeof *lines);
        lines[n_lines++] = strdup(line);
    }
    free(line), fclose(file);
}

static void parse(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:n:s:w:m:f:o:r:e:P:lb")) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'n': count = atoi(optarg); break;
        case 's': secs = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'f': read_lines(optarg); break;
        case 'o': subprotocol = optarg; break;
        case 'r': record_bytes = atoi(optarg); break;
        case 'e': examine = atoi(optarg); break;
        case 'P':
            if (n_pids == MAX_PIDS) fputs("too many processes\n", stderr), exit(2);
            server_pids[n_pids++] = atol(optarg);
            break;
        case 'l': latencies = 1; break;
        case 'b': busy = 1; break;
        case 'm': if (n_messages < MAX_MESSAGES) messages[n_messages++] = optarg; break;
        default:
            fprintf(stderr, "fanload -p PORT [-n SUBSCRIBERS] [-s SECONDS] [-w WARMUP_SECONDS] [-m MESSAGE]... "
                            "[-f FILE_OF_MESSAGES] [-o SUBPROTOCOL] [-r RECORD_BYTES] [-e EXAMINE_EVERY_NTH] "
                            "[-P SERVER_PID]... [-l(atencies)] [-b(usy)]\n");
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
        int n = epoll_wait(epoll, events, 1024, busy && counting ? 0 : 20);
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
