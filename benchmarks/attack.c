/* attack.c: what clients do that mean no good, at a rate that is kept.
 *
 *     attack --port PORT [--seconds SECONDS] [--patience SECONDS] --name NAME [of a load, as options behind it say] ...
 *
 * --seconds S      how long; with --patience up to so many more, until each load has done what it is for
 *
 * --rate N         begin so many connections per second, or
 * --connections N  keep so many open: one that has ended is replaced
 * --hold SECONDS   after which a connection is reset, whatever has become of it; never without it
 * --first FILE     what is sent as soon as there is a connection; nothing without it
 * --drip SECONDS   send that a byte at a time, with so many seconds between two
 * --then FILE      what is sent after a 101
 * --again OFFSET   where in it to go on when all of it was sent, as fast as the kernel takes it
 * --deaf           read nothing after the 101
 * --reset          reset the connection as soon as all was sent
 * --answer CODE    what the server has to answer: a status of HTTP or the code of a Close frame
 *
 * The result is a line of JSON: of each load how many connections there were, and how many had that answer, had another
 * one, or were ended without any. Exit status: 0, or 2 if nothing could be done.
 *
 * One thread and one epoll. Connections are reset at the end, so that no port waits in TIME_WAIT.
 */
#define _GNU_SOURCE

#include "peer.h"

#include <getopt.h>
#include <inttypes.h>

#define LOADS 16
#define HEAD_LIMIT 4096
#define BUFFER_SIZE (64 * 1024)
#define BURST_SIZE ((size_t)64 * 1024) /* bytes of one send of what is endless */
#define EVENTS 512

typedef enum { CONNECTING, FIRST, WAITING, OPEN, ANSWERED, FREE } phase;

typedef struct connection {
    struct load *load;
    struct connection *before, *after; /* in the queue of its load, by what is due; free ones are a stack */
    struct connection *older;          /* all that were ever made */
    int fd;
    phase phase;
    uint32_t watched;
    double due;
    size_t sent;
    char head[HEAD_LIMIT + 1]; /* of the response */
    size_t head_length;
    uint8_t frame[4]; /* the first bytes of the frame that is being read: frame_have of them are there */
    size_t frame_have, frame_rest;
} connection;

typedef struct load {
    const char *name;
    double rate, hold, drip;
    uint32_t connections;
    bytes first, then;
    long again; /* -1: never */
    bool deaf, reset;
    int answer;

    connection *head, *tail; /* those for which something is due */
    uint32_t open;
    uint64_t tried, connected, failed, right, other, ended, sent;
    int other_answer;
} load;

typedef struct {
    uint16_t port;
    double seconds, patience, began;
    load loads[LOADS];
    size_t count;
    connection *unused, *newest;
    int epoll;
    uint8_t *buffer;
} attack;

/* ---- what is due, in the order of time since all of a load wait equally long ---- */

static double now(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

static void queue(connection *c, double due)
{
    load *l = c->load;
    c->due = due;
    c->before = l->tail;
    c->after = NULL;
    *(l->tail ? &l->tail->after : &l->head) = c;
    l->tail = c;
}

static void unqueue(connection *c)
{
    load *l = c->load;
    if (c->due == 0)
        return;
    *(c->before ? &c->before->after : &l->head) = c->after;
    *(c->after ? &c->after->before : &l->tail) = c->before;
    c->due = 0;
}

/* ---- begin and end ---- */

static void watch_for(attack *a, connection *c, uint32_t events)
{
    if (c->watched == events)
        return;
    watch(a->epoll, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, events, c);
    c->watched = events;
}

static connection *take_unused(attack *a)
{
    connection *c = a->unused;
    if (c) {
        a->unused = c->after;
        return c;
    }
    c = allocate(1, sizeof *c);
    c->older = a->newest;
    return a->newest = c;
}

static void begin(attack *a, load *l)
{
    l->tried++;
    int fd = start_connecting(a->port);
    if (fd < 0) {
        l->failed++;
        return;
    }
    connection *c = take_unused(a);
    *c = (connection){.load = l, .fd = fd, .phase = CONNECTING, .older = c->older};
    l->open++;
    watch_for(a, c, EPOLLOUT);
    if (l->hold > 0)
        queue(c, now() + l->hold);
}

static void end(attack *a, connection *c)
{
    unqueue(c);
    close(c->fd);
    c->load->open--;
    c->phase = FREE;
    c->after = a->unused;
    a->unused = c;
}

static void answered(connection *c, int code)
{
    load *l = c->load;
    c->phase = ANSWERED;
    if (code == l->answer) {
        l->right++;
        return;
    }
    l->other++;
    l->other_answer = code;
}

/* ---- writing ---- */

/* Returns whether all has left; after a failure the connection has ended, too. */
static bool send_some(attack *a, connection *c, const bytes *what, size_t most)
{
    load *l = c->load;
    size_t rest = what->length - c->sent;
    ssize_t taken = rest ? send(c->fd, what->data + c->sent, rest < most ? rest : most, MSG_NOSIGNAL) : 0;
    if (taken < 0 && errno != EAGAIN) {
        l->ended += c->phase != ANSWERED;
        end(a, c);
        return false;
    }
    c->sent += taken > 0 ? (size_t)taken : 0;
    l->sent += taken > 0 && c->phase == OPEN ? (uint64_t)taken : 0;
    return c->sent == what->length;
}

static void all_was_sent(attack *a, connection *c)
{
    if (c->load->reset)
        end(a, c);
    else
        watch_for(a, c, c->load->deaf ? EPOLLRDHUP : EPOLLIN);
}

static void send_then(attack *a, connection *c)
{
    load *l = c->load;
    bool done = send_some(a, c, &l->then, l->again < 0 ? SIZE_MAX : BURST_SIZE);
    if (c->phase == FREE)
        return;
    if (done && l->again >= 0)
        c->sent = (size_t)l->again;
    else if (done)
        all_was_sent(a, c);
}

static void send_first(attack *a, connection *c)
{
    load *l = c->load;
    if (c->phase == CONNECTING)
        l->connected++;
    c->phase = FIRST;
    if (l->drip > 0) {
        watch_for(a, c, EPOLLIN);
        queue(c, now() + l->drip);
        return;
    }
    if (!send_some(a, c, &l->first, SIZE_MAX))
        return;
    c->phase = WAITING;
    watch_for(a, c, EPOLLIN);
}

static void do_what_is_due(attack *a, connection *c)
{
    load *l = c->load;
    unqueue(c);
    if (l->drip == 0) {
        end(a, c);
        return;
    }
    if (c->phase != ANSWERED && !send_some(a, c, &l->first, 1) && c->phase != FREE)
        queue(c, now() + l->drip);
}

/* ---- reading ---- */

static void opened(attack *a, connection *c)
{
    load *l = c->load;
    c->phase = OPEN;
    c->sent = 0;
    watch_for(a, c, l->deaf ? EPOLLOUT : EPOLLIN | EPOLLOUT);
    send_then(a, c);
}

/* Looks for a Close frame among those that the server sends, which have no masks. */
static void read_frames(connection *c, const uint8_t *data, size_t length)
{
    const uint8_t *stop = data + length;
    while (data < stop && c->phase == OPEN) {
        if (c->frame_have >= 2 && c->frame_rest > 0) {
            size_t some = (size_t)(stop - data) < c->frame_rest ? (size_t)(stop - data) : c->frame_rest;
            for (size_t i = 0; i < some && c->frame_have < sizeof c->frame; i++)
                c->frame[c->frame_have++] = data[i];
            c->frame_rest -= some;
            data += some;
        } else {
            c->frame[c->frame_have++] = *data++;
            c->frame_rest = c->frame_have == 2 ? c->frame[1] : 0;
        }
        if (c->frame_have < 2 || c->frame_rest > 0)
            continue;
        if ((c->frame[0] & 0x0f) == CLOSE)
            answered(c, c->frame_have == 4 ? c->frame[2] << 8 | c->frame[3] : 1005);
        c->frame_have = 0;
    }
}

static void read_head(attack *a, connection *c, const uint8_t *data, size_t length)
{
    size_t some = length < HEAD_LIMIT - c->head_length ? length : HEAD_LIMIT - c->head_length;
    memcpy(c->head + c->head_length, data, some);
    c->head_length += some;
    c->head[c->head_length] = 0;
    if (!strstr(c->head, "\r\n\r\n"))
        return;
    int status = strncmp(c->head, "HTTP/1.1 ", 9) == 0 ? atoi(c->head + 9) : 0;
    if (status == 101 && (c->load->then.length || !c->load->answer))
        opened(a, c);
    else
        answered(c, status);
}

static void read_some(attack *a, connection *c)
{
    ssize_t length = recv(c->fd, a->buffer, BUFFER_SIZE, 0);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0) {
        c->load->ended += c->phase != ANSWERED;
        end(a, c);
        return;
    }
    if (c->phase == OPEN)
        read_frames(c, a->buffer, (size_t)length);
    else if (c->phase != ANSWERED)
        read_head(a, c, a->buffer, (size_t)length);
    if (c->phase != ANSWERED)
        return;
    if (c->load->connections) /* the next one takes its place */
        end(a, c);
    else
        watch_for(a, c, EPOLLIN);
}

static void handle(attack *a, connection *c, uint32_t events)
{
    if (c->phase == FREE)
        return;
    if (events & ~(uint32_t)EPOLLOUT && (c->phase != OPEN || !c->load->deaf)) {
        read_some(a, c);
    } else if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) {
        c->load->ended++;
        end(a, c);
    }
    if (!(events & EPOLLOUT) || c->phase == FREE)
        return;
    if (c->phase == OPEN)
        send_then(a, c);
    else if (c->phase <= FIRST)
        send_first(a, c);
}

/* ---- the loop ---- */

/* Returns the seconds until there is something to do again. */
static double keep_up(attack *a, load *l)
{
    double at = now(), wait = 1;
    while (l->head && l->head->due <= at)
        do_what_is_due(a, l->head);
    if (l->head)
        wait = l->head->due - at;
    if (l->rate > 0) {
        while ((double)l->tried < (at - a->began) * l->rate)
            begin(a, l);
        double next = a->began + (double)(l->tried + 1) / l->rate - at;
        return next < wait ? next : wait;
    }
    /* as many as the backlog of a server takes */
    for (int i = 0; i < 64 && l->open < l->connections; i++)
        begin(a, l);
    return l->open < l->connections ? 0.001 : wait;
}

/* Whether a load has been answered and has sent what it has: a machine that is busy may leave no time for that. */
static bool has_taken_place(const load *l)
{
    bool answerless = !l->answer || l->drip > 0;
    return l->connected > 0 && (answerless || l->right + l->other + l->ended > 0) &&
           (!l->then.length || l->sent > 0);
}

static bool goes_on(const attack *a)
{
    double passed = now() - a->began;
    bool done = true;
    for (size_t i = 0; i < a->count; i++)
        done = done && has_taken_place(&a->loads[i]);
    return passed < a->seconds + (done ? 0 : a->patience);
}

static void run(attack *a)
{
    struct epoll_event events[EVENTS];
    a->began = now();
    while (goes_on(a)) {
        double wait = 0.1;
        for (size_t i = 0; i < a->count; i++) {
            double its = keep_up(a, &a->loads[i]);
            wait = its < wait ? its : wait;
        }
        int count = epoll_wait(a->epoll, events, EVENTS, wait > 0 ? (int)(wait * 1000) + 1 : 0);
        for (int i = 0; i < count; i++)
            handle(a, events[i].data.ptr, events[i].events);
    }
}

static void print_result(const attack *a)
{
    double seconds = now() - a->began;
    printf("{\"seconds\": %.3f, \"cpu_percent\": %.1f, \"loads\": {", seconds,
           seconds_of(CLOCK_PROCESS_CPUTIME_ID) / seconds * 100);
    for (size_t i = 0; i < a->count; i++) {
        const load *l = &a->loads[i];
        printf("%s\"%s\": {\"connections\": %" PRIu64 ", \"per_second\": %.1f, \"open\": %" PRIu32
               ", \"failed\": %" PRIu64 ", \"answered\": %" PRIu64 ", \"answered_otherwise\": %" PRIu64
               ", \"other_answer\": %d, \"ended\": %" PRIu64 ", \"sent_bytes\": %" PRIu64 "}",
               i ? ", " : "", l->name, l->connected, (double)l->connected / seconds, l->open, l->failed,
               l->right, l->other, l->other_answer, l->ended, l->sent);
    }
    puts("}}");
}

/* ---- the command line ---- */

static void set_option(load *l, int name, const char *value)
{
    switch (name) {
    case 'r':
        l->rate = number(value, 0.001, 1e6);
        break;
    case 'c':
        l->connections = (uint32_t)number(value, 1, 1e6);
        break;
    case 'h':
        l->hold = number(value, 0.001, 3600);
        break;
    case 'f':
        l->first = read_file(value);
        break;
    case 'd':
        l->drip = number(value, 0.001, 3600);
        break;
    case 't':
        l->then = read_file(value);
        break;
    case 'a':
        l->again = (long)number(value, 0, (double)l->then.length - 1);
        break;
    case 'D':
        l->deaf = true;
        break;
    case 'R':
        l->reset = true;
        break;
    case 'w':
        l->answer = (int)number(value, 100, 4999);
        break;
    default:
        exit(2);
    }
}

static void check(const attack *a)
{
    if (!a->port || !a->count)
        give_up("attack: --port and a --name are needed");
    for (size_t i = 0; i < a->count; i++) {
        const load *l = &a->loads[i];
        if ((l->rate > 0) == (l->connections > 0) || (l->hold > 0 && l->drip > 0))
            give_up("attack: %s needs --rate or --connections, and has either --hold or --drip", l->name);
    }
}

static void parse_options(attack *a, int count, char **arguments)
{
    static const struct option names[] = {
        {"port", required_argument, NULL, 'p'},
        {"seconds", required_argument, NULL, 's'},
        {"patience", required_argument, NULL, 'P'},
        {"name", required_argument, NULL, 'n'},
        {"rate", required_argument, NULL, 'r'},
        {"hold", required_argument, NULL, 'h'},
        {"connections", required_argument, NULL, 'c'},
        {"first", required_argument, NULL, 'f'},
        {"drip", required_argument, NULL, 'd'},
        {"then", required_argument, NULL, 't'},
        {"again", required_argument, NULL, 'a'},
        {"deaf", no_argument, NULL, 'D'},
        {"reset", no_argument, NULL, 'R'},
        {"answer", required_argument, NULL, 'w'},
        {NULL, 0, NULL, 0},
    };
    for (int name; (name = getopt_long(count, arguments, "", names, NULL)) != -1;)
        if (name == 'p')
            a->port = (uint16_t)number(optarg, 1, UINT16_MAX);
        else if (name == 's')
            a->seconds = number(optarg, 0.01, 86400);
        else if (name == 'P')
            a->patience = number(optarg, 0, 86400);
        else if (name == 'n' && a->count < LOADS)
            a->loads[a->count++] = (load){.name = optarg, .again = -1};
        else if (a->count > 0)
            set_option(&a->loads[a->count - 1], name, optarg);
        else
            exit(2);
    check(a);
}

static void clean_up(attack *a)
{
    for (connection *c = a->newest, *older; c; c = older) {
        older = c->older;
        if (c->phase != FREE)
            close(c->fd);
        free(c);
    }
    for (size_t i = 0; i < a->count; i++) {
        free(a->loads[i].first.data);
        free(a->loads[i].then.data);
    }
    close(a->epoll);
    free(a->buffer);
}

int main(int count, char **arguments)
{
    attack a = {.seconds = 5};
    parse_options(&a, count, arguments);
    allow_descriptors();
    a.buffer = allocate(1, BUFFER_SIZE);
    a.epoll = make_epoll();
    run(&a);
    print_result(&a);
    clean_up(&a);
    return 0;
}
