/* load.c: what does a WebSocket server cost per message, per connection and per opening handshake?
 *
 *     load --port PORT --pid PID [--mode MODE] [--connections N] [--size BYTES] [--depth N] [--fragments N] [--text]
 *          [--deflate] [--tls] [--base N] [--settle SECONDS] [--seconds SECONDS] [--host ADDRESS]
 *
 * echo     keeps --depth messages in flight on each connection, and compares every byte that comes back
 * connect  does opening handshakes, --connections at a time, and resets each connection as soon as it is open
 * hold     opens --base connections, then the others: how much of the server's memory does each of the others take?
 * receive  counts the messages that a server pushes, each a text of --size letters x, and answers its pings
 *
 * --deflate offers permessage-deflate without context takeover, and sends messages that were compressed beforehand, each
 * for itself. What comes back is inflated and compared. It needs zlib: -DWITH_ZLIB and -lz for the compiler.
 *
 * --tls speaks TLS, and takes any certificate. It needs OpenSSL: -DWITH_TLS, -lssl and -lcrypto for the compiler.
 *
 * What the server spent is read from /proc: the CPU time of the process PID, and its resident memory. Measuring starts
 * when all connections are open and --settle seconds have passed, and takes --seconds. The result is a line of JSON;
 * the first few faults are told on the standard error. Exit status: 0 if all was well, 1 if a byte was wrong or a
 * connection failed, 2 if nothing could be measured.
 *
 * One thread and one epoll. Connections are reset at the end, so that no port waits in TIME_WAIT.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
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

#ifdef WITH_ZLIB
#define ZLIB_CONST
#include <zlib.h>
#endif
#ifdef WITH_TLS
#include <openssl/ssl.h>
#endif

/* The sample of RFC 6455 §1.3; the same key each time leaves SHA-1 out of what the client costs. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

#define HEAD_LIMIT 8192          /* bytes of a response head */
#define BUFFER_SIZE (256 * 1024) /* bytes of one recv */
#define BURST_SIZE (64 * 1024)   /* bytes of one send, unless a message is larger */
#define VARIETY_SIZE (256 * 1024)
#define VARIETY 64 /* different messages, as long as they fit into VARIETY_SIZE bytes */
#define EVENTS 1024
#define OPENING_AT_ONCE 64 /* below the backlog of 100 that servers on asyncio listen with */
#define OPENING_SECONDS 120.0
#define FAULTS_TOLD 5

#define DEFLATE_LEVEL 6
#define DEFLATE_BITS (-15)        /* the largest window; negative: without zlib's own header */
#define INFLATED_SIZE (64 * 1024) /* bytes that are inflated at once */
#define OFFER "permessage-deflate; client_no_context_takeover; server_no_context_takeover"

#define FIN 0x80
#define RESERVED 0x70
#define RSV1 0x40 /* of the first frame of a compressed message, RFC 7692 §6 */
#define MASKED 0x80
#define CONTROL_LIMIT 125 /* bytes, RFC 6455 §5.5 */
enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

typedef enum { MODE_ECHO, MODE_CONNECT, MODE_HOLD, MODE_RECEIVE } run_mode;
static const char *const MODE_NAMES[] = {"echo", "connect", "hold", "receive"};

typedef struct {
    run_mode mode;
    const char *host;
    uint16_t port;
    int pid;
    uint32_t connections, base, depth, fragments;
    size_t size;
    bool text, deflate, tls;
    double settle, seconds;
} options;

/* All payloads have one length; a connection sends one after the other, round and round. */
typedef struct {
    uint8_t *payloads; /* count of them */
    uint8_t *wire;     /* the same as masked frames, then the first burst again: a burst never has to wrap */
    size_t *starts;    /* where each of these messages starts in wire, and where the last one ends */
    size_t size;       /* of a payload */
    uint32_t count;
    uint32_t burst; /* messages that are sent at once */
    uint8_t opcode;
} messages;

typedef enum { CLOSED, CONNECTING, SHAKING, OPEN } phase;

typedef struct {
    int fd;
    phase phase;
    uint32_t watched;   /* what epoll was asked for */
    struct ssl_st *tls; /* NULL without --tls */
    char *head;         /* of the response; NULL once the connection is open */
    size_t head_length;

    uint8_t header[10]; /* of the frame that is being read; header_length of it is there */
    uint8_t header_length;
    uint8_t control[CONTROL_LIMIT];
    uint64_t frame_length, frame_read;

    bool in_message, right; /* right: all that has been read of the message */
    bool compressed;        /* the message */
    bool takeover;          /* whether the server's messages may refer to those before them */
    bool answered;
    struct z_stream_s *inflater; /* NULL before the first compressed message */
    size_t message_read;
    uint32_t expected;   /* the message that has to come back next */
    uint32_t unanswered; /* messages in flight */
    uint32_t again;      /* messages that came back and are to be replaced */

    uint32_t next; /* the message to send next, of which sent bytes have left */
    uint32_t unsent;
    size_t sent;
    bool refused; /* the last write: TLS wants the same again */
    uint8_t pong[6 + CONTROL_LIMIT];
    size_t pong_length, pong_sent;
} connection;

typedef struct {
    options options;
    messages messages;
    struct sockaddr_in address;
    char request[512];
    size_t request_length;
    uint8_t *buffer, *inflated;
    struct ssl_ctx_st *context; /* NULL without --tls */
    connection *connections;
    int epoll;
    uint32_t started, opening, open;
    uint64_t count;  /* messages that came back or were pushed, or handshakes */
    uint64_t output; /* bytes of these messages with their headers */
    uint64_t pings, wrong, failed;
    int told;
} load;

/* ---- faults ---- */

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory)
        give_up("out of memory");
    return memory;
}

static void tell(load *l, const connection *c, const char *what)
{
    if (l->told++ < FAULTS_TOLD)
        fprintf(stderr, "load: connection %td: %s\n", c - l->connections, what);
}

/* ---- compression ---- */

static void compare(const messages *m, connection *c, const uint8_t *data, size_t length);

#ifdef WITH_ZLIB

#define CAN_DEFLATE true

static size_t deflated_bound(size_t length)
{
    return compressBound((uLong)length) + 16; /* 16: more than the end of a block and its tail take */
}

/* What ends a message for zlib, and is not sent: RFC 7692 §7.2.1. */
static const uint8_t TAIL[4] = {0, 0, 0xff, 0xff};

/* Returns the length of a message that refers to none before it; there is room for deflated_bound. */
static size_t deflate_payload(uint8_t *out, const uint8_t *payload, size_t length)
{
    size_t room = deflated_bound(length);
    z_stream z = {.next_in = payload, .avail_in = (uInt)length, .next_out = out, .avail_out = (uInt)room};
    if (deflateInit2(&z, DEFLATE_LEVEL, Z_DEFLATED, DEFLATE_BITS, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        give_up("out of memory");
    if (deflate(&z, Z_SYNC_FLUSH) != Z_OK || z.avail_in > 0 || z.avail_out == 0)
        give_up("zlib does not compress");
    deflateEnd(&z);
    return z.total_out - sizeof TAIL;
}

/* Each connection has a stream of its own: the pieces of several messages may come in turns. */
static void begin_inflating(connection *c)
{
    if (c->inflater) {
        if (!c->takeover)
            inflateReset(c->inflater);
        return;
    }
    c->inflater = allocate(1, sizeof *c->inflater);
    if (inflateInit2(c->inflater, DEFLATE_BITS) != Z_OK)
        give_up("out of memory");
}

static void compare_inflated(load *l, connection *c, const uint8_t *data, size_t length)
{
    z_stream *z = c->inflater;
    int result;
    z->next_in = data;
    z->avail_in = (uInt)length;
    do {
        z->next_out = l->inflated;
        z->avail_out = INFLATED_SIZE;
        result = inflate(z, Z_SYNC_FLUSH);
        compare(&l->messages, c, l->inflated, INFLATED_SIZE - z->avail_out);
        if (result == Z_STREAM_END) /* the last block is marked as that, and another may follow, §7.2.3.4 */
            result = inflateReset(z);
    } while (result == Z_OK && (z->avail_in > 0 || z->avail_out == 0));
}

/* A message that is corrupt does not end between two blocks, nor does one that is cut off, which zlib takes for whole. */
static void end_inflating(load *l, connection *c)
{
    const int between_blocks = 128; /* in data_type after inflate, as zlib.h says */
    compare_inflated(l, c, TAIL, sizeof TAIL);
    if (!(c->inflater->data_type & between_blocks))
        c->right = false;
}

static void free_inflater(connection *c)
{
    if (c->inflater)
        inflateEnd(c->inflater);
    free(c->inflater);
    c->inflater = NULL;
}

#else /* parse_options refuses --deflate, so that nobody compresses */

#define CAN_DEFLATE false

static size_t deflated_bound(size_t length)
{
    return length;
}

static size_t deflate_payload(uint8_t *out, const uint8_t *payload, size_t length)
{
    memcpy(out, payload, length);
    return length;
}

static void begin_inflating(connection *c)
{
    c->right = false;
}

static void compare_inflated(load *l, connection *c, const uint8_t *data, size_t length)
{
    (void)l, (void)data, (void)length;
    c->right = false;
}

static void end_inflating(load *l, connection *c)
{
    (void)l;
    c->right = false;
}

static void free_inflater(connection *c)
{
    c->inflater = NULL;
}

#endif

/* ---- TLS, or none: as send and recv ---- */

#ifdef WITH_TLS

#define CAN_TLS true

static void prepare_tls(load *l)
{
    l->context = SSL_CTX_new(TLS_client_method());
    if (!l->context)
        give_up("SSL_CTX_new");
    /* what is sent again after EAGAIN is the same, but may have moved */
    SSL_CTX_set_mode(l->context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_verify(l->context, SSL_VERIFY_NONE, NULL);
}

static void begin_tls(const load *l, connection *c)
{
    if (!l->context)
        return;
    c->tls = SSL_new(l->context);
    if (!c->tls || !SSL_set_fd(c->tls, c->fd))
        give_up("SSL_new");
    SSL_set_connect_state(c->tls);
}

static ssize_t result_of_tls(const connection *c, int result)
{
    if (result > 0)
        return result;
    int error = SSL_get_error(c->tls, result);
    if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        errno = EAGAIN;
    else if (error != SSL_ERROR_SYSCALL || errno == 0)
        errno = EPROTO;
    return -1;
}

static ssize_t transmit(const connection *c, const void *data, size_t length)
{
    if (!c->tls)
        return send(c->fd, data, length, MSG_NOSIGNAL);
    errno = 0;
    return result_of_tls(c, SSL_write(c->tls, data, (int)length));
}

static ssize_t receive(const connection *c, void *data, size_t length)
{
    if (!c->tls)
        return recv(c->fd, data, length, 0);
    errno = 0;
    return result_of_tls(c, SSL_read(c->tls, data, (int)length));
}

/* Whether there is plaintext of which epoll knows nothing. */
static bool has_more(const connection *c)
{
    return c->tls && SSL_pending(c->tls) > 0;
}

static void end_tls(connection *c)
{
    SSL_free(c->tls);
    c->tls = NULL;
}

static void clean_up_tls(load *l)
{
    SSL_CTX_free(l->context);
}

#else

#define CAN_TLS false

static void prepare_tls(load *l)
{
    (void)l;
}

static void begin_tls(const load *l, connection *c)
{
    (void)l;
    (void)c;
}

static ssize_t transmit(const connection *c, const void *data, size_t length)
{
    return send(c->fd, data, length, MSG_NOSIGNAL);
}

static ssize_t receive(const connection *c, void *data, size_t length)
{
    return recv(c->fd, data, length, 0);
}

static bool has_more(const connection *c)
{
    (void)c;
    return false;
}

static void end_tls(connection *c)
{
    (void)c;
}

static void clean_up_tls(load *l)
{
    (void)l;
}

#endif

/* ---- ends ---- */

static void hang_up(load *l, connection *c)
{
    if (c->phase == OPEN)
        l->open--;
    else
        l->opening--;
    c->phase = CLOSED;
    free(c->head);
    c->head = NULL;
    free_inflater(c);
    end_tls(c);
    close(c->fd);
}

/* Returns false, for callers that pass it on. */
static bool fail(load *l, connection *c, const char *why)
{
    tell(l, c, why);
    l->failed++;
    hang_up(l, c);
    return false;
}

/* ---- clocks ---- */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double client_cpu_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static FILE *open_proc(int pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    FILE *file = fopen(path, "re");
    if (!file)
        give_up("the server, process %d, is not there: %s", pid, strerror(errno));
    return file;
}

/* All threads of the process, in user and system mode: fields 14 and 15 of proc(5)'s stat. */
static double server_cpu_seconds(int pid)
{
    char line[1024];
    FILE *file = open_proc(pid, "stat");
    size_t length = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[length] = 0;
    const char *field = strrchr(line, ')'); /* the name, field 2, may have spaces and parentheses in it */
    for (int number = 2; field && number < 14; number++)
        field = strchr(field + 1, ' ');
    if (!field)
        give_up("/proc/%d/stat is not understood", pid);
    char *end;
    unsigned long user = strtoul(field, &end, 10);
    unsigned long system = strtoul(end, &end, 10);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static long server_memory_kb(int pid)
{
    char line[256];
    long resident = -1;
    FILE *file = open_proc(pid, "status");
    while (resident < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, "VmRSS:", 6) == 0)
            resident = strtol(line + 6, NULL, 10);
    fclose(file);
    if (resident < 0)
        give_up("process %d has no memory: it has ended", pid);
    return resident;
}

/* ---- messages ---- */

/* The same numbers in each run: SplitMix64. */
static uint64_t random_number(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static const char *random_word(uint64_t *seed)
{
    static const char *const words[] = {
        "after",  "again",  "answer", "because", "before",  "better", "between", "bring",  "change", "could",
        "day",    "either", "end",    "every",   "far",     "find",   "first",   "friend", "great",  "hand",
        "house",  "keep",   "know",   "last",    "late",    "learn",  "leave",   "letter", "light",  "little",
        "long",   "made",   "might",  "money",   "must",    "name",   "never",   "night",  "number", "often",
        "open",   "other",  "page",   "people",  "place",   "point",  "read",    "right",  "room",   "seem",
        "should", "small",  "sound",  "still",   "take",    "thing",  "think",   "time",   "today",  "under",
        "voice",  "water",  "week",   "which",   "without", "world",
    };
    return words[random_number(seed) % (sizeof words / sizeof *words)];
}

/* Writes a record, and returns its length; there is room for any. */
static size_t put_record(char *out, size_t room, uint64_t *seed)
{
    uint64_t random = random_number(seed);
    int length = snprintf(out, room, "{\"id\": %u, \"at\": %u.%03u, \"text\": \"", (unsigned)(random % 1000000),
                          (unsigned)(1700000000 + random % 99999989), (unsigned)(random % 997));
    for (int i = 0; i < 6; i++)
        length += snprintf(out + length, room - (size_t)length, "%s ", random_word(seed));
    return (size_t)(length + snprintf(out + length, room - (size_t)length, "\"}, "));
}

/* About as compressible as JSON is. ASCII may be fragmented anywhere. */
static void fill_text(uint8_t *payload, size_t size, uint64_t *seed)
{
    char record[256];
    for (size_t done = 0; done < size;) {
        size_t length = put_record(record, sizeof record, seed);
        if (length > size - done)
            length = size - done;
        memcpy(payload + done, record, length);
        done += length;
    }
}

static void fill_payloads(messages *m, const options *o, uint64_t *seed)
{
    for (size_t i = 0; i < m->count; i++) {
        uint8_t *payload = m->payloads + i * m->size;
        if (o->mode == MODE_RECEIVE)
            memset(payload, 'x', m->size);
        else if (o->text)
            fill_text(payload, m->size, seed);
        else
            for (size_t k = 0; k < m->size; k++)
                payload[k] = (uint8_t)random_number(seed);
    }
}

/* Writes a masked frame, RFC 6455 §5.2, and returns where it ends. */
static uint8_t *put_frame(uint8_t *out, uint8_t first, const uint8_t *payload, size_t length, uint32_t key)
{
    size_t extended = length <= CONTROL_LIMIT ? 0 : length <= UINT16_MAX ? 2 : 8;
    *out++ = first;
    *out++ = (uint8_t)(MASKED | (extended == 0 ? length : extended == 2 ? 126 : 127));
    for (size_t i = extended; i-- > 0;)
        *out++ = (uint8_t)((uint64_t)length >> 8 * i);
    uint8_t masking_key[4];
    memcpy(masking_key, &key, 4);
    memcpy(out, masking_key, 4);
    out += 4;
    for (size_t i = 0; i < length; i++)
        *out++ = payload[i] ^ masking_key[i % 4];
    return out;
}

static uint8_t *put_message(uint8_t *out, uint8_t first, const uint8_t *payload, size_t length,
                            size_t fragments, uint64_t *seed)
{
    for (size_t i = 0; i < fragments; i++) {
        size_t start = length * i / fragments;
        size_t end = length * (i + 1) / fragments;
        uint8_t byte = (uint8_t)((i == 0 ? first : CONTINUATION) | (i == fragments - 1 ? FIN : 0));
        out = put_frame(out, byte, payload + start, end - start, (uint32_t)random_number(seed));
    }
    return out;
}

static uint8_t *put_payload(uint8_t *out, const messages *m, const options *o, size_t number, uint64_t *seed)
{
    const uint8_t *payload = m->payloads + number * m->size;
    if (!o->deflate)
        return put_message(out, m->opcode, payload, m->size, o->fragments, seed);
    uint8_t *deflated = allocate(1, deflated_bound(m->size));
    size_t length = deflate_payload(deflated, payload, m->size);
    out = put_message(out, m->opcode | RSV1, deflated, length, o->fragments, seed);
    free(deflated);
    return out;
}

static void fill_wire(messages *m, const options *o, uint64_t *seed)
{
    uint8_t *end = m->wire;
    for (size_t i = 0; i < m->count; i++) {
        m->starts[i] = (size_t)(end - m->wire);
        end = put_payload(end, m, o, i, seed);
    }
    m->starts[m->count] = (size_t)(end - m->wire);
    for (size_t i = 0; i < m->burst; i++) {
        size_t length = m->starts[i + 1] - m->starts[i];
        memcpy(m->wire + m->starts[m->count + i], m->wire + m->starts[i], length);
        m->starts[m->count + i + 1] = m->starts[m->count + i] + length;
    }
}

static messages make_messages(const options *o)
{
    uint64_t seed = 6455;
    messages m = {.size = o->size, .count = 1, .burst = 1, .opcode = o->text ? TEXT : BINARY};
    if (o->mode == MODE_RECEIVE)
        m.opcode = TEXT;
    else
        while (m.count < VARIETY && (m.count + 1) * m.size <= VARIETY_SIZE)
            m.count++;
    m.payloads = allocate(m.count, m.size);
    fill_payloads(&m, o, &seed);

    /* 14: the longest header with its key */
    size_t longest = (o->deflate ? deflated_bound(m.size) : m.size) + 14 * (size_t)o->fragments;
    while (m.burst < o->depth && (m.burst + 1) * longest <= BURST_SIZE)
        m.burst++;
    m.wire = allocate(m.count + m.burst, longest);
    m.starts = allocate(m.count + m.burst + 1, sizeof *m.starts);
    fill_wire(&m, o, &seed);
    return m;
}

/* ---- writing ---- */

static void watch(load *l, connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    int operation = c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (c->watched == events)
        return;
    if (epoll_ctl(l->epoll, operation, c->fd, &event) != 0)
        give_up("epoll_ctl: %s", strerror(errno));
    c->watched = events;
}

/* Returns how many bytes the kernel took, 0 if it has no room now, or -1 after a failure. */
static ssize_t write_some(load *l, connection *c, const uint8_t *data, size_t length)
{
    ssize_t taken = transmit(c, data, length);
    if (taken > 0)
        return taken;
    if (taken < 0 && errno == EAGAIN)
        return 0;
    fail(l, c, "can't be written to");
    return -1;
}

static ssize_t write_pong(load *l, connection *c)
{
    ssize_t taken = write_some(l, c, c->pong + c->pong_sent, c->pong_length - c->pong_sent);
    if (taken <= 0)
        return taken;
    c->pong_sent += (size_t)taken;
    if (c->pong_sent == c->pong_length)
        c->pong_sent = c->pong_length = 0;
    return taken;
}

static ssize_t write_messages(load *l, connection *c)
{
    const messages *m = &l->messages;
    uint32_t burst = c->unsent < m->burst ? c->unsent : m->burst;
    const size_t *starts = m->starts + c->next;
    size_t start = starts[0] + c->sent;
    ssize_t taken = write_some(l, c, m->wire + start, starts[burst] - start);
    c->refused = taken == 0;
    if (taken <= 0)
        return taken;
    size_t end = start + (size_t)taken;
    uint32_t whole = 0;
    while (whole < burst && starts[whole + 1] <= end)
        whole++;
    c->sent = end - starts[whole];
    c->unsent -= whole;
    c->next = (c->next + whole) % m->count;
    return taken;
}

/* Writes what the kernel takes; a Pong goes between two messages. */
static void flush(load *l, connection *c)
{
    while (c->pong_length > 0 || c->unsent > 0) {
        ssize_t taken =
            c->pong_length > 0 && c->sent == 0 && !c->refused ? write_pong(l, c) : write_messages(l, c);
        if (taken < 0)
            return;
        if (taken == 0) {
            watch(l, c, EPOLLIN | EPOLLOUT);
            return;
        }
    }
    watch(l, c, EPOLLIN);
}

static void ask(load *l, connection *c, uint32_t count)
{
    c->unanswered += count;
    c->unsent += count;
    flush(l, c);
}

/* The answer to the latest ping is enough, RFC 6455 §5.5.3. */
static bool answer_ping(load *l, connection *c)
{
    if (c->pong_sent > 0)
        return fail(l, c, "another ping, although the server does not read the pong");
    uint8_t *end = put_frame(c->pong, FIN | PONG, c->control, c->frame_length, UINT32_C(0x5f3a9c27));
    c->pong_length = (size_t)(end - c->pong);
    l->pings++;
    return true;
}

/* ---- reading frames ---- */

static size_t header_size(const connection *c)
{
    if (c->header_length < 2)
        return 2;
    uint8_t length = c->header[1] & 0x7f;
    return length < 126 ? 2 : length == 126 ? 4 : 10;
}

static bool header_is_complete(const connection *c)
{
    return c->header_length >= 2 && c->header_length == header_size(c);
}

static size_t take_header(connection *c, const uint8_t *data, size_t length)
{
    size_t used = 0;
    while (used < length && !header_is_complete(c))
        c->header[c->header_length++] = data[used++];
    return used;
}

static uint64_t announced_length(const connection *c)
{
    uint64_t length = 0;
    if (c->header_length == 2)
        return c->header[1];
    for (size_t i = 2; i < c->header_length; i++)
        length = length << 8 | c->header[i];
    return length;
}

static const char *what_is_wrong_with_header(const load *l, const connection *c)
{
    uint8_t opcode = c->header[0] & 0x0f;
    uint64_t shortest = c->header_length == 2 ? 0 : c->header_length == 4 ? 126 : UINT64_C(65536);
    bool may_be_compressed = l->options.deflate && (opcode == TEXT || opcode == BINARY);
    if (c->header[0] & (may_be_compressed ? RESERVED & ~RSV1 : RESERVED))
        return "a reserved bit is set that nothing was negotiated for, RFC 6455 §5.2 and RFC 7692 §6";
    if (c->header[1] & MASKED)
        return "the server masks, RFC 6455 §5.1";
    if (c->frame_length < shortest)
        return "the length of a frame is not in its shortest form, RFC 6455 §5.2";
    if (opcode >= CLOSE) {
        if (opcode > PONG)
            return "unknown opcode, RFC 6455 §5.2";
        if (!(c->header[0] & FIN) || c->frame_length > CONTROL_LIMIT)
            return "a control frame is fragmented or too long, RFC 6455 §5.5";
        return NULL;
    }
    if (opcode > BINARY)
        return "unknown opcode, RFC 6455 §5.2";
    if ((opcode == CONTINUATION) != c->in_message)
        return "a fragment is out of order, RFC 6455 §5.4";
    return NULL;
}

static bool awaits_message(const load *l, const connection *c)
{
    return l->options.mode == MODE_RECEIVE || c->unanswered > 0;
}

static bool begin_frame(load *l, connection *c)
{
    uint8_t opcode = c->header[0] & 0x0f;
    c->frame_length = announced_length(c);
    c->frame_read = 0;
    const char *wrong = what_is_wrong_with_header(l, c);
    if (wrong)
        return fail(l, c, wrong);
    if (opcode == TEXT || opcode == BINARY) {
        if (!awaits_message(l, c))
            return fail(l, c, "a message that nobody asked for");
        c->in_message = true;
        c->message_read = 0;
        c->right = opcode == l->messages.opcode;
        c->compressed = c->header[0] & RSV1;
        if (c->compressed)
            begin_inflating(c);
    }
    return true;
}

static void compare(const messages *m, connection *c, const uint8_t *data, size_t length)
{
    const uint8_t *payload = m->payloads + c->expected * m->size;
    if (length > m->size - c->message_read) {
        c->right = false;
        return;
    }
    if (memcmp(data, payload + c->message_read, length) != 0)
        c->right = false;
    c->message_read += length;
}

static size_t take_payload(load *l, connection *c, const uint8_t *data, size_t length)
{
    uint64_t rest = c->frame_length - c->frame_read;
    if (length > rest)
        length = (size_t)rest;
    if ((c->header[0] & 0x0f) >= CLOSE)
        memcpy(c->control + c->frame_read, data, length);
    else if (c->compressed)
        compare_inflated(l, c, data, length);
    else
        compare(&l->messages, c, data, length);
    c->frame_read += length;
    return length;
}

static void end_message(load *l, connection *c)
{
    c->in_message = false;
    c->answered = true;
    l->count++;
    if (c->compressed)
        end_inflating(l, c);
    if (!c->right || c->message_read != l->messages.size) {
        l->wrong++;
        tell(l, c, "a message differs from what was sent");
    }
    if (l->options.mode != MODE_ECHO)
        return;
    c->expected = (c->expected + 1) % l->messages.count;
    c->unanswered--;
    c->again++;
}

static bool end_frame(load *l, connection *c)
{
    uint8_t opcode = c->header[0] & 0x0f;
    size_t header_length = c->header_length;
    c->header_length = 0;
    if (opcode == CLOSE)
        return fail(l, c, "the server has sent a Close frame");
    if (opcode == PING)
        return answer_ping(l, c);
    if (opcode == PONG)
        return true;
    l->output += header_length + c->frame_length;
    if (c->header[0] & FIN)
        end_message(l, c);
    return true;
}

static void read_frames(load *l, connection *c, const uint8_t *data, size_t length)
{
    while (length > 0) {
        size_t used;
        if (header_is_complete(c)) {
            used = take_payload(l, c, data, length);
        } else {
            used = take_header(c, data, length);
            if (header_is_complete(c) && !begin_frame(l, c))
                return;
        }
        data += used;
        length -= used;
        if (header_is_complete(c) && c->frame_read == c->frame_length && !end_frame(l, c))
            return;
    }
    if (c->again > 0 || c->pong_length > 0) {
        uint32_t again = c->again;
        c->again = 0;
        ask(l, c, again);
    }
}

/* ---- opening handshakes ---- */

static void start(load *l, connection *c)
{
    static const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    static const int on = 1;
    memset(c, 0, sizeof *c);
    l->opening++;
    c->phase = CONNECTING;
    c->expected = c->next = (uint32_t)((size_t)(c - l->connections) % l->messages.count);
    c->head = allocate(1, HEAD_LIMIT + 1);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        give_up("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    begin_tls(l, c);
    if (connect(c->fd, (const struct sockaddr *)&l->address, sizeof l->address) != 0 && errno != EINPROGRESS) {
        fail(l, c, strerror(errno));
        return;
    }
    watch(l, c, EPOLLOUT);
}

static void send_request(load *l, connection *c)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        fail(l, c, strerror(error));
        return;
    }
    ssize_t taken = transmit(c, l->request, l->request_length);
    if (taken < 0 && errno == EAGAIN) { /* the handshake of TLS goes on when the server has answered */
        watch(l, c, EPOLLIN);
        return;
    }
    if (taken != (ssize_t)l->request_length) {
        fail(l, c, "can't be written to");
        return;
    }
    c->phase = SHAKING;
    watch(l, c, EPOLLIN);
}

/* Returns where the value of a field begins, NULL if the head has no such field. */
static const char *find_field(const char *head, const char *name)
{
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\r\n%s:", name);
    const char *field = strcasestr(head, pattern);
    if (!field)
        return NULL;
    field += strlen(pattern);
    return field + strspn(field, " \t");
}

/* In any case. */
static bool field_is(const char *head, const char *name, const char *value)
{
    const char *field = find_field(head, name);
    if (!field)
        return false;
    size_t length = strcspn(field, " \t\r");
    return length == strlen(value) && strncasecmp(field, value, length) == 0;
}

/* RFC 7692 §7.1.2.1: a server may bring it up. Its size is no matter here, since the largest window reads all. */
static bool is_server_window(const char *parameter)
{
    static const char name[] = "server_max_window_bits=";
    if (strncmp(parameter, name, strlen(name)) != 0)
        return false;
    const char *value = parameter + strlen(name);
    return strlen(value) <= 2 && strspn(value, "0123456789") == strlen(value) && atoi(value) >= 8 &&
           atoi(value) <= 15;
}

/* Reads what a server answers to OFFER. One that leaves server_no_context_takeover out breaks RFC 7692 §7.1.1.1, but
 * some do, and can be compared all the same. */
static const char *what_is_wrong_with_extensions(connection *c)
{
    static const char *const wrong =
        "the response has extensions or parameters that were not offered, RFC 7692 §7.1";
    char value[256], *rest;
    const char *field = find_field(c->head, "Sec-WebSocket-Extensions");
    if (!field)
        return "the server does not compress";
    snprintf(value, sizeof value, "%.*s", (int)strcspn(field, "\r"), field);
    const char *word = strtok_r(value, "; \t", &rest);
    if (!word || strcmp(word, "permessage-deflate") != 0 || find_field(field, "Sec-WebSocket-Extensions"))
        return wrong;
    c->takeover = true;
    while ((word = strtok_r(NULL, "; \t", &rest)))
        if (strcmp(word, "server_no_context_takeover") == 0)
            c->takeover = false;
        else if (strcmp(word, "client_no_context_takeover") != 0 && !is_server_window(word))
            return wrong;
    return NULL;
}

/* RFC 6455 §4.1, the client's list of what a response must have. */
static const char *what_is_wrong_with_response(const load *l, connection *c)
{
    const char *head = c->head;
    if (strncmp(head, "HTTP/1.1 101 ", 13) != 0)
        return "the status of the response is not 101";
    if (!field_is(head, "Upgrade", "websocket") || !field_is(head, "Connection", "Upgrade"))
        return "the response upgrades to something else";
    if (!field_is(head, "Sec-WebSocket-Accept", ACCEPT) || !strstr(head, ACCEPT))
        return "the response accepts another key";
    if (find_field(head, "Sec-WebSocket-Protocol"))
        return "the response has what was not offered";
    if (l->options.deflate)
        return what_is_wrong_with_extensions(c);
    return find_field(head, "Sec-WebSocket-Extensions") ? "the response has what was not offered" : NULL;
}

static void opened(load *l, connection *c, const char *rest, size_t length)
{
    if (l->options.mode == MODE_CONNECT) {
        l->count++;
        hang_up(l, c);
        start(l, c);
        return;
    }
    char *head = c->head;
    c->head = NULL;
    c->phase = OPEN;
    l->opening--;
    l->open++;
    read_frames(l, c, (const uint8_t *)rest, length);
    free(head);
}

static void read_response(load *l, connection *c, const uint8_t *data, size_t length)
{
    if (length > HEAD_LIMIT - c->head_length) {
        fail(l, c, "the response head is too long");
        return;
    }
    memcpy(c->head + c->head_length, data, length);
    c->head_length += length;
    c->head[c->head_length] = 0;
    const char *end = memmem(c->head, c->head_length, "\r\n\r\n", 4);
    if (!end)
        return;
    const char *wrong = what_is_wrong_with_response(l, c);
    if (wrong) {
        fail(l, c, wrong);
        return;
    }
    end += 4;
    opened(l, c, end, (size_t)(c->head + c->head_length - end));
}

/* ---- the loop ---- */

static void read_some(load *l, connection *c)
{
    do {
        ssize_t length = receive(c, l->buffer, BUFFER_SIZE);
        if (length < 0 && errno == EAGAIN)
            return;
        if (length <= 0)
            fail(l, c, length == 0 ? "the server has ended the connection" : strerror(errno));
        else if (c->phase == OPEN)
            read_frames(l, c, l->buffer, (size_t)length);
        else
            read_response(l, c, l->buffer, (size_t)length);
    } while (c->phase != CLOSED && has_more(c));
}

static void handle(load *l, connection *c, uint32_t events)
{
    if (c->phase == CONNECTING) {
        send_request(l, c);
        return;
    }
    if (events & EPOLLOUT)
        flush(l, c);
    if (events & ~(uint32_t)EPOLLOUT && c->phase != CLOSED)
        read_some(l, c);
}

static void turn(load *l, double seconds)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(l->epoll, events, EVENTS, (int)(seconds * 1000) + 1);
    if (count < 0 && errno != EINTR)
        give_up("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        handle(l, events[i].data.ptr, events[i].events);
}

/* Ends early when nobody is there any more. */
static void run_for(load *l, double seconds)
{
    double end = now() + seconds;
    for (double rest = seconds; rest > 0 && l->open + l->opening > 0; rest = end - now())
        turn(l, rest);
}

static void open_until(load *l, uint32_t target)
{
    double end = now() + OPENING_SECONDS;
    while (l->started < target || l->opening > 0) {
        while (l->started < target && l->opening < OPENING_AT_ONCE)
            start(l, &l->connections[l->started++]);
        turn(l, 0.1);
        if (now() > end)
            give_up("only %" PRIu32 " connections were opened in %.0f s", l->open, OPENING_SECONDS);
    }
}

/* ---- measuring ---- */

typedef struct {
    double at, server_cpu, client_cpu; /* seconds */
    uint64_t count, output, pings;
} sample;

static sample take_sample(const load *l)
{
    return (sample){
        .at = now(),
        .server_cpu = server_cpu_seconds(l->options.pid),
        .client_cpu = client_cpu_seconds(),
        .count = l->count,
        .output = l->output,
        .pings = l->pings,
    };
}

static void print_start(const load *l)
{
    printf("{\"mode\": \"%s\", \"connections\": %" PRIu32 ", \"failed\": %" PRIu64 ", \"wrong\": %" PRIu64,
           MODE_NAMES[l->options.mode], l->options.connections, l->failed, l->wrong);
}

static void print_rates(const load *l, sample from, sample to)
{
    double seconds = to.at - from.at, server = to.server_cpu - from.server_cpu;
    uint64_t count = to.count - from.count;
    print_start(l);
    printf(", \"seconds\": %.3f, \"count\": %" PRIu64 ", \"per_second\": %.1f", seconds, count,
           (double)count / seconds);
    if (count > 0)
        printf(", \"server_cpu_us\": %.4f", server * 1e6 / (double)count);
    if (count > 0 && l->options.mode != MODE_CONNECT)
        printf(", \"output_bytes\": %.1f", (double)(to.output - from.output) / (double)count);
    printf(", \"server_cpu_percent\": %.2f, \"client_cpu_percent\": %.2f", server / seconds * 100,
           (to.client_cpu - from.client_cpu) / seconds * 100);
    printf(", \"pings\": %" PRIu64 ", \"memory_kb\": %ld}\n", to.pings - from.pings,
           server_memory_kb(l->options.pid));
}

static void measure_rates(load *l)
{
    run_for(l, l->options.settle);
    sample from = take_sample(l);
    run_for(l, l->options.seconds);
    sample to = take_sample(l);
    for (uint32_t i = 0; l->options.mode == MODE_ECHO && i < l->options.connections; i++)
        if (l->connections[i].phase == OPEN && !l->connections[i].answered)
            fail(l, &l->connections[i], "not one message came back");
    print_rates(l, from, to);
}

static void measure_echo(load *l)
{
    open_until(l, l->options.connections);
    for (uint32_t i = 0; i < l->options.connections; i++)
        if (l->connections[i].phase == OPEN)
            ask(l, &l->connections[i], l->options.depth);
    measure_rates(l);
}

static void measure_receiving(load *l)
{
    open_until(l, l->options.connections);
    measure_rates(l);
}

static void measure_handshakes(load *l)
{
    while (l->started < l->options.connections)
        start(l, &l->connections[l->started++]);
    measure_rates(l);
}

static void measure_memory(load *l)
{
    const options *o = &l->options;
    open_until(l, o->base);
    run_for(l, o->settle);
    long before = server_memory_kb(o->pid);
    open_until(l, o->connections);
    run_for(l, o->settle);
    long after = server_memory_kb(o->pid);
    print_start(l);
    printf(", \"base\": %" PRIu32 ", \"base_memory_kb\": %ld, \"memory_kb\": %ld", o->base, before, after);
    printf(", \"bytes_per_connection\": %.1f}\n", (double)(after - before) * 1024 / (o->connections - o->base));
}

static void measure(load *l)
{
    static void (*const modes[])(load *) = {measure_echo, measure_handshakes, measure_memory,
                                            measure_receiving};
    modes[l->options.mode](l);
}

/* ---- the command line ---- */

static double number(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        give_up("%s is not a number from %g to %g", text, least, most);
    return value;
}

static uint32_t whole_number(const char *text, double least, double most)
{
    return (uint32_t)number(text, least, most);
}

static run_mode mode_by_name(const char *name)
{
    for (run_mode mode = MODE_ECHO; mode <= MODE_RECEIVE; mode++)
        if (strcmp(MODE_NAMES[mode], name) == 0)
            return mode;
    give_up("no such mode: %s", name);
}

static void set_option(options *o, int name, const char *value)
{
    switch (name) {
    case 'm':
        o->mode = mode_by_name(value);
        break;
    case 'h':
        o->host = value;
        break;
    case 'p':
        o->port = (uint16_t)whole_number(value, 1, UINT16_MAX);
        break;
    case 'P':
        o->pid = (int)whole_number(value, 1, 1 << 30);
        break;
    case 'c':
        o->connections = whole_number(value, 1, 1000000);
        break;
    case 'b':
        o->base = whole_number(value, 0, 1000000);
        break;
    case 's':
        o->size = whole_number(value, 0, 1 << 30);
        break;
    case 'd':
        o->depth = whole_number(value, 1, 65536);
        break;
    case 'f':
        o->fragments = whole_number(value, 1, 65536);
        break;
    case 'x':
        o->text = true;
        break;
    case 'z':
        o->deflate = true;
        break;
    case 'S':
        o->tls = true;
        break;
    case 'w':
        o->settle = number(value, 0, 3600);
        break;
    case 't':
        o->seconds = number(value, 0.01, 3600);
        break;
    default:
        exit(2);
    }
}

static options parse_options(int count, char **arguments)
{
    static const struct option names[] = {
        {"mode", required_argument, NULL, 'm'},
        {"host", required_argument, NULL, 'h'},
        {"port", required_argument, NULL, 'p'},
        {"pid", required_argument, NULL, 'P'},
        {"base", required_argument, NULL, 'b'},
        {"connections", required_argument, NULL, 'c'},
        {"size", required_argument, NULL, 's'},
        {"depth", required_argument, NULL, 'd'},
        {"text", no_argument, NULL, 'x'},
        {"deflate", no_argument, NULL, 'z'},
        {"tls", no_argument, NULL, 'S'},
        {"fragments", required_argument, NULL, 'f'},
        {"settle", required_argument, NULL, 'w'},
        {"seconds", required_argument, NULL, 't'},
        {NULL, 0, NULL, 0},
    };
    options o = {.host = "127.0.0.1",
                 .connections = 100,
                 .size = 32,
                 .depth = 1,
                 .fragments = 1,
                 .settle = 1,
                 .seconds = 3};
    for (int name; (name = getopt_long(count, arguments, "", names, NULL)) != -1;)
        set_option(&o, name, optarg);
    if (optind < count || !o.port || !o.pid)
        give_up("--port and --pid are needed, and nothing but options");
    if (o.base >= o.connections)
        give_up("--base must be less than --connections");
    if (o.deflate && !CAN_DEFLATE)
        give_up("--deflate needs zlib: compile with -DWITH_ZLIB and -lz");
    if (o.tls && !CAN_TLS)
        give_up("--tls needs OpenSSL: compile with -DWITH_TLS, -lssl and -lcrypto");
    return o;
}

static void allow_descriptors(uint32_t connections)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < (rlim_t)connections + 16)
        give_up("%" PRIu32 " connections are more than the limit on descriptors, %ju, allows", connections,
                (uintmax_t)limit.rlim_cur);
}

static void prepare(load *l)
{
    const options *o = &l->options;
    allow_descriptors(o->connections);
    l->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(o->port)};
    if (inet_pton(AF_INET, o->host, &l->address.sin_addr) != 1)
        give_up("%s is not an IPv4 address", o->host);
    int length =
        snprintf(l->request, sizeof l->request,
                 "GET / HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                 o->host, (unsigned)o->port, o->deflate ? "Sec-WebSocket-Extensions: " OFFER "\r\n" : "");
    l->request_length = (size_t)length;
    if (o->tls)
        prepare_tls(l);
    l->messages = make_messages(o);
    l->buffer = allocate(1, BUFFER_SIZE);
    l->inflated = allocate(1, INFLATED_SIZE);
    l->connections = allocate(o->connections, sizeof *l->connections);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll < 0)
        give_up("epoll_create1: %s", strerror(errno));
}

static void clean_up(load *l)
{
    for (uint32_t i = 0; i < l->started; i++)
        if (l->connections[i].phase != CLOSED)
            hang_up(l, &l->connections[i]);
    close(l->epoll);
    clean_up_tls(l);
    free(l->connections);
    free(l->buffer);
    free(l->inflated);
    free(l->messages.payloads);
    free(l->messages.wire);
    free(l->messages.starts);
}

int main(int count, char **arguments)
{
    load l = {.options = parse_options(count, arguments)};
    prepare(&l);
    measure(&l);
    bool well = l.failed == 0 && l.wrong == 0;
    clean_up(&l);
    return well ? 0 : 1;
}
