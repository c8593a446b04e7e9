/* live.c: how long do clients that do nothing wrong wait for a server, and does every byte come back?
 *
 *     live --port PORT --request FILE [--clients N] [--rate MESSAGES_PER_SECOND]
 *
 * Opens --clients WebSockets with the request head in FILE, and prints {"open": N}. From then on each client sends --rate
 * binary messages of 1 to 1,000 bytes per second at fixed times, whether those before came back or not: a server that
 * hesitates is not asked less. No two messages are the same, and every byte that comes back is compared.
 *
 * On the standard input, "b" begins a measurement and "e" ends it; the end of the input ends the program. Of each
 * measurement a line of JSON tells the milliseconds between send and recv of the messages that were sent in it, once
 * all of them are back. "own" is the part of it for which the answer was in the kernel already, by the time at which
 * the kernel received it, and "late" is how long after its time a message was sent: neither is the server's.
 *
 * Exit status: 0 if all was well, 1 if a byte was wrong or a connection was lost, 2 if nothing could be measured.
 */
#define _GNU_SOURCE

#include "peer.h"

#include <getopt.h>
#include <inttypes.h>
#include <sys/timerfd.h>

#define KEY_ACCEPTED                                                                                           \
    "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" /* what RFC 6455 §1.3 answers to its sample, which is in FILE */
#define MESSAGE_LIMIT 1000         /* bytes */
#define FRAME_LIMIT (MESSAGE_LIMIT + 8)
#define BUFFER_SIZE 8192
#define IN_FLIGHT 1024 /* messages of a client */
#define EVENTS 256
#define OPENING_SECONDS 60.0
#define MISSING_SECONDS 30.0 /* after the end of a measurement, for answers that are missing */
#define FAULTS_TOLD 5

typedef enum { OPENING, OPEN, LOST } phase;

typedef struct {
    double sent; /* by the clock that the kernel stamps packets with */
    bool measured;
} message;

typedef struct {
    int fd;
    phase phase;
    uint64_t asked, answered; /* messages */
    message in_flight[IN_FLIGHT];
    uint8_t buffer[BUFFER_SIZE];
    size_t length;
} client;

typedef struct {
    float *values; /* ms */
    size_t count, room;
} series;

typedef struct {
    uint16_t port;
    uint32_t clients;
    double rate;
    bytes request;
} options;

typedef struct {
    options options;
    client *clients;
    int epoll, timer;
    double begun, pace; /* when sending began, by CLOCK_MONOTONIC, and seconds between two messages */
    uint64_t asked;
    uint32_t open, next;
    bool measuring, ended;
    uint64_t missing; /* measured messages that are not back */
    series latency, own, late;
    uint64_t wrong, lost;
} live;

static void tell(const live *l, const client *c, const char *what)
{
    if (l->wrong + l->lost <= FAULTS_TOLD)
        fprintf(stderr, "live: client %td: %s\n", c - l->clients, what);
}

static void lose(live *l, client *c, const char *why)
{
    l->lost++;
    tell(l, c, why);
    for (; c->answered < c->asked; c->answered++)
        l->missing -= c->in_flight[c->answered % IN_FLIGHT].measured;
    if (c->phase == OPEN)
        l->open--;
    c->phase = LOST;
    close(c->fd);
}

/* ---- figures ---- */

static void add(series *s, double seconds)
{
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 65536;
        s->values = realloc(s->values, s->room * sizeof *s->values);
        if (!s->values)
            give_up("live: out of memory");
    }
    s->values[s->count++] = (float)(seconds > 0 ? seconds * 1000 : 0);
}

static int by_size(const void *one, const void *other)
{
    float a = *(const float *)one, b = *(const float *)other;
    return (a > b) - (a < b);
}

/* The least value that so many of a thousand don't exceed. */
static double per_mille(const series *s, size_t share)
{
    size_t rank = (s->count * share + 999) / 1000;
    return s->count ? (double)s->values[rank ? rank - 1 : 0] : 0;
}

static void print_series(const char *name, series *s)
{
    qsort(s->values, s->count, sizeof *s->values, by_size);
    printf(", \"%s\": {\"p50\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}", name, per_mille(s, 500),
           per_mille(s, 990), per_mille(s, 999), per_mille(s, 1000));
    s->count = 0;
}

static void print_measurement(live *l)
{
    printf("{\"open\": %" PRIu32 ", \"lost\": %" PRIu64 ", \"wrong\": %" PRIu64 ", \"count\": %zu", l->open,
           l->lost, l->wrong, l->latency.count);
    print_series("latency_ms", &l->latency);
    print_series("own_ms", &l->own);
    print_series("late_ms", &l->late);
    puts("}");
    fflush(stdout);
}

/* ---- messages ---- */

/* SplitMix64. */
static uint64_t random_number(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Writes the message of a client that has this number, of which there is no other, and returns its length. */
static size_t write_message(uint8_t *out, uint64_t whose, uint64_t which)
{
    uint64_t seed = whose << 40 ^ which;
    size_t length = 1 + random_number(&seed) % MESSAGE_LIMIT;
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = random_number(&seed);
        memcpy(out + i, &word, length - i < 8 ? length - i : 8);
    }
    return length;
}

/* Returns the length of a masked frame, RFC 6455 §5.2. */
static size_t put_frame(uint8_t *out, uint8_t opcode, const uint8_t *payload, size_t length)
{
    static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t header = 2;
    out[0] = FIN | opcode;
    out[1] = MASKED | (uint8_t)(length <= CONTROL_LIMIT ? length : 126);
    if (length > CONTROL_LIMIT) {
        out[2] = (uint8_t)(length >> 8);
        out[3] = (uint8_t)length;
        header = 4;
    }
    memcpy(out + header, key, 4);
    for (size_t i = 0; i < length; i++)
        out[header + 4 + i] = payload[i] ^ key[i % 4];
    return header + 4 + length;
}

static bool send_all(live *l, client *c, const uint8_t *data, size_t length)
{
    if (send(c->fd, data, length, MSG_NOSIGNAL) == (ssize_t)length)
        return true;
    lose(l, c, "can't be written to");
    return false;
}

static void ask(live *l, client *c, double late)
{
    uint8_t payload[MESSAGE_LIMIT], frame[FRAME_LIMIT];
    if (c->asked - c->answered == IN_FLIGHT) {
        lose(l, c, "the server does not answer");
        return;
    }
    size_t length = write_message(payload, (uint64_t)(c - l->clients), c->asked);
    length = put_frame(frame, BINARY, payload, length);
    double sent = seconds_of(CLOCK_REALTIME);
    if (!send_all(l, c, frame, length))
        return;
    c->in_flight[c->asked++ % IN_FLIGHT] = (message){.sent = sent, .measured = l->measuring};
    if (l->measuring) {
        l->missing++;
        add(&l->late, late);
    }
}

/* Each interval of the timer is one client's turn. */
static void ask_whose_turn_it_is(live *l)
{
    uint64_t expired;
    if (read(l->timer, &expired, sizeof expired) != sizeof expired)
        return;
    double at = seconds_of(CLOCK_MONOTONIC) - l->begun;
    for (; expired > 0; expired--) {
        client *c = &l->clients[l->next];
        l->next = (l->next + 1) % l->options.clients;
        double late = at - (double)++l->asked * l->pace;
        if (c->phase == OPEN)
            ask(l, c, late);
    }
}

/* ---- answers ---- */

static void take_answer(live *l, client *c, const uint8_t *payload, size_t length, double arrived)
{
    uint8_t expected[MESSAGE_LIMIT];
    if (c->answered == c->asked) {
        lose(l, c, "a message that nobody asked for");
        return;
    }
    message m = c->in_flight[c->answered % IN_FLIGHT];
    size_t expected_length = write_message(expected, (uint64_t)(c - l->clients), c->answered++);
    if (length != expected_length || memcmp(payload, expected, length) != 0) {
        l->wrong++;
        tell(l, c, "what came back differs from what was sent");
    }
    if (!m.measured)
        return;
    double now = seconds_of(CLOCK_REALTIME);
    add(&l->latency, now - m.sent);
    add(&l->own, now - arrived);
    l->missing--;
}

static void take_control(live *l, client *c, uint8_t opcode, const uint8_t *payload, size_t length)
{
    uint8_t pong[CONTROL_LIMIT + 6];
    if (opcode == CLOSE)
        lose(l, c, "the server has sent a Close frame");
    else if (opcode == PING)
        send_all(l, c, pong, put_frame(pong, PONG, payload, length));
}

/* Returns the length of the frame, or 0 if it is not whole. */
static size_t read_frame(live *l, client *c, const uint8_t *data, size_t have, double arrived)
{
    size_t header = have >= 2 && data[1] == 126 ? 4 : 2;
    if (have < header)
        return 0;
    uint8_t opcode = data[0] & 0x0f;
    size_t length = header == 4 ? (size_t)data[2] << 8 | data[3] : data[1];
    if ((data[0] & 0xf0) != FIN || data[1] > 126 || length > MESSAGE_LIMIT ||
        (opcode != BINARY && (opcode < CLOSE || opcode > PONG || length > CONTROL_LIMIT))) {
        lose(l, c, "a frame that no echo has");
        return 0;
    }
    if (have < header + length)
        return 0;
    if (opcode == BINARY)
        take_answer(l, c, data + header, length, arrived);
    else
        take_control(l, c, opcode, data + header, length);
    return header + length;
}

static void read_frames(live *l, client *c, double arrived)
{
    size_t done = 0, length;
    while (c->phase == OPEN && (length = read_frame(l, c, c->buffer + done, c->length - done, arrived)) > 0)
        done += length;
    c->length -= done;
    memmove(c->buffer, c->buffer + done, c->length);
}

static void read_response(live *l, client *c)
{
    char head[BUFFER_SIZE + 1];
    memcpy(head, c->buffer, c->length);
    head[c->length] = 0;
    const char *end = strstr(head, "\r\n\r\n");
    if (!end)
        return;
    if (strncmp(head, "HTTP/1.1 101 ", 13) != 0 || !strstr(head, KEY_ACCEPTED)) {
        lose(l, c, "the response does not upgrade");
        return;
    }
    size_t length = (size_t)(end + 4 - head);
    c->length -= length;
    memmove(c->buffer, c->buffer + length, c->length);
    c->phase = OPEN;
    l->open++;
}

/* The time at which the kernel received the last of it; now if it does not say. */
static double arrival(struct msghdr *what)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(what); part; part = CMSG_NXTHDR(what, part))
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec at;
            memcpy(&at, CMSG_DATA(part), sizeof at);
            return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
        }
    return seconds_of(CLOCK_REALTIME);
}

static void read_some(live *l, client *c)
{
    _Alignas(struct cmsghdr) char extra[128];
    struct iovec room = {.iov_base = c->buffer + c->length, .iov_len = BUFFER_SIZE - c->length};
    struct msghdr what = {
        .msg_iov = &room, .msg_iovlen = 1, .msg_control = extra, .msg_controllen = sizeof extra};
    ssize_t length = recvmsg(c->fd, &what, 0);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0) {
        lose(l, c, length == 0 ? "the server has ended the connection" : strerror(errno));
        return;
    }
    c->length += (size_t)length;
    if (c->phase == OPENING)
        read_response(l, c);
    if (c->phase == OPEN)
        read_frames(l, c, arrival(&what));
}

/* ---- the loop ---- */

static void open_client(live *l, client *c)
{
    int on = 1, wait = 1000;
    struct epoll_event event;
    c->fd = start_connecting(l->options.port);
    if (c->fd < 0)
        give_up("live: can't connect: %s", strerror(errno));
    setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    watch(l->epoll, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
    if (epoll_wait(l->epoll, &event, 1, wait) == 1)
        send_all(l, c, l->options.request.data, l->options.request.length);
    else
        lose(l, c, "can't connect");
    if (c->phase == OPENING)
        watch(l->epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    while (c->phase == OPENING && epoll_wait(l->epoll, &event, 1, (int)OPENING_SECONDS * 1000) == 1)
        read_some(l, c);
}

/* One after the other: nobody is measured yet. */
static bool open_clients(live *l)
{
    for (uint32_t i = 0; i < l->options.clients; i++) {
        client *c = &l->clients[i];
        open_client(l, c);
        if (c->phase != OPEN)
            return false;
        watch(l->epoll, EPOLL_CTL_DEL, c->fd, 0, NULL);
    }
    for (uint32_t i = 0; i < l->options.clients; i++)
        watch(l->epoll, EPOLL_CTL_ADD, l->clients[i].fd, EPOLLIN, &l->clients[i]);
    printf("{\"open\": %" PRIu32 "}\n", l->open);
    fflush(stdout);
    return true;
}

static void start_timer(live *l)
{
    long pace = (long)(1e9 / (l->options.rate * l->options.clients));
    struct timespec each = {.tv_sec = pace / 1000000000, .tv_nsec = pace % 1000000000};
    struct itimerspec setting = {.it_value = each, .it_interval = each};
    l->begun = seconds_of(CLOCK_MONOTONIC);
    l->pace = (double)pace * 1e-9;
    l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (l->timer < 0 || timerfd_settime(l->timer, 0, &setting, NULL) != 0)
        give_up("live: timerfd: %s", strerror(errno));
    watch(l->epoll, EPOLL_CTL_ADD, l->timer, EPOLLIN, &l->timer);
}

static void turn(live *l)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(l->epoll, events, EVENTS, 100);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &l->timer) {
            ask_whose_turn_it_is(l);
            continue;
        }
        if (events[i].data.ptr == l) {
            char word;
            ssize_t length = read(STDIN_FILENO, &word, 1);
            l->ended = length <= 0;
            l->measuring = length > 0 ? word == 'b' || (word != 'e' && l->measuring) : l->measuring;
            continue;
        }
        client *c = events[i].data.ptr;
        if (c->phase != LOST)
            read_some(l, c);
    }
}

static void run(live *l)
{
    start_timer(l);
    watch(l->epoll, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, l);
    while (!l->ended) {
        while (!l->ended && !l->measuring)
            turn(l);
        while (!l->ended && l->measuring)
            turn(l);
        double end = seconds_of(CLOCK_MONOTONIC) + MISSING_SECONDS;
        while (!l->ended && l->missing > 0 && seconds_of(CLOCK_MONOTONIC) < end)
            turn(l);
        if (l->missing > 0)
            give_up("live: %" PRIu64 " messages did not come back", l->missing);
        if (!l->ended)
            print_measurement(l);
    }
}

/* ---- the command line ---- */

static options parse_options(int count, char **arguments)
{
    static const struct option names[] = {
        {"port", required_argument, NULL, 'p'},
        {"request", required_argument, NULL, 'q'},
        {"clients", required_argument, NULL, 'c'},
        {"rate", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    options o = {.clients = 200, .rate = 20};
    for (int name; (name = getopt_long(count, arguments, "", names, NULL)) != -1;)
        if (name == 'p')
            o.port = (uint16_t)number(optarg, 1, UINT16_MAX);
        else if (name == 'q')
            o.request = read_file(optarg);
        else if (name == 'c')
            o.clients = (uint32_t)number(optarg, 1, 100000);
        else if (name == 'r')
            o.rate = number(optarg, 0.01, 10000);
        else
            exit(2);
    if (optind < count || !o.port || !o.request.length)
        give_up("live: --port and --request are needed, and nothing but options");
    return o;
}

static void clean_up(live *l)
{
    for (uint32_t i = 0; i < l->options.clients; i++)
        if (l->clients[i].phase == OPEN)
            close(l->clients[i].fd);
    free(l->latency.values);
    free(l->own.values);
    free(l->late.values);
    free(l->options.request.data);
    free(l->clients);
    close(l->timer);
    close(l->epoll);
}

int main(int count, char **arguments)
{
    live l = {.options = parse_options(count, arguments), .timer = -1};
    allow_descriptors();
    l.clients = allocate(l.options.clients, sizeof *l.clients);
    l.epoll = make_epoll();
    if (open_clients(&l))
        run(&l);
    bool well = l.wrong == 0 && l.lost == 0;
    clean_up(&l);
    return well ? 0 : 1;
}
