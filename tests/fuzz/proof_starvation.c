// Does the loop survive that any one allocation fails, or every one from there on, and leave nothing behind?
// links: host.c fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c frame.c mask.c utf8.c
// links: timers.c addresses.c errors.c
// sanitizers: address,undefined
// amount: 500
//
// The amount is the last n. The scenario is made long enough, up to all peers that there are, and runs for each n: that
// allocation fails, and for every eighth n all behind it fail, too; with TLS and without. One costs one connection at most.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host.h"
#include "sys.h"

enum { LASTING = 8, PEERS = 12, MESSAGE_MAX = 150000, PATIENCE_MS = 30000 };

typedef struct {
    uint32_t nth; /* allocation that fails; 0: none */
    uint32_t times;
    int is_raw;
    uint32_t rounds; /* of the scenario */
} trial;

static int listener;
static fake_peer *peers[PEERS];
static uint8_t payload[MESSAGE_MAX], frame[MESSAGE_MAX + WSPY_HEADER_MAX];

static void write_text(fake_peer *peer, const char *text)
{
    host_write(peer, (const uint8_t *)text, strlen(text));
}

static void write_frame(fake_peer *peer, uint8_t first, size_t length)
{
    host_write(peer, frame, host_frame(frame, first, payload, length, 1));
}

static void open_window(fake_peer *peer, size_t size)
{
    peer->window = size;
    fake.progress++;
}

static uint64_t handle_of(const fake_peer *peer)
{
    return host.guests[peer - fake.peers].handle;
}

static void push_frame(const fake_peer *peer, int command, uint8_t first, size_t length)
{
    host_push(command, handle_of(peer), frame, host_frame(frame, first, payload, length, 0));
}

static void broadcast(size_t length)
{
    static uint8_t command[4 + sizeof frame];
    const uint32_t everybody = WSPY_FOREVER;
    memcpy(command, &everybody, 4);
    host_push(WSPY_COMMAND_BROADCAST, 0, command, 4 + host_frame(command + 4, 0x82, payload, length, 0));
}

/* ---- the scenario ---- */

static void connect_all(void)
{
    for (int i = 0; i < PEERS; i++) {
        peers[i] = fake_peer_new(listener, SIZE_MAX / 2);
        require(peers[i] != NULL);
        peers[i]->home = i % FAKE_HOMES;
    }
    host_settle();
}

/* At once, in pieces, behind each other, and what is none. */
static void send_heads(void)
{
    static const char long_head[] = "GET / HTTP/1.1\r\nHost: here\r\nCookie: ";
    for (int i = 0; i < PEERS - 4; i++)
        write_text(peers[i], "GET / HTTP/1.1\r\nHost: here\r\n\r\n");
    write_text(peers[PEERS - 4], "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    write_text(peers[PEERS - 3], long_head);
    write_text(peers[PEERS - 2], "GET / HTTP/1.1\r\n\r\n\x82\x84");
    write_text(peers[PEERS - 1], "GET  /\r\n\r\n");
    host_settle();
    for (int i = 0; i < 3000; i++)
        write_text(peers[PEERS - 3], "x");
    host_settle();
    write_text(peers[PEERS - 3], "\r\n\r\n");
    write_text(peers[PEERS - 2], "\x01\x02\x03\x04good");
    host_settle();
}

/* Whole, in fragments, with a Ping between, cut off anywhere, longer than a turn has room for. */
static void send_messages(void)
{
    write_frame(peers[0], 0x81, 5);
    write_frame(peers[1], 0x02, 300);
    write_frame(peers[1], 0x89, 4);
    write_frame(peers[1], 0x80, 3000);
    size_t size = host_frame(frame, 0x82, payload, MESSAGE_MAX, 1);
    host_write(peers[2], frame, 1000);
    write_frame(peers[3], 0x82, 100000);
    host_settle();
    size = host_frame(frame, 0x82, payload, MESSAGE_MAX, 1);
    host_write(peers[2], frame + 1000, size - 1000);
    for (int i = 0; i < 100; i++)
        write_frame(peers[4], 0x89, 125);
    host_settle();
}

/* The kernel takes nothing, or little: everything waits, Pings, marks, broadcasts. */
static void fill_queues(void)
{
    for (int i = 0; i < 6; i++)
        open_window(peers[i], (size_t)i * 50);
    for (int i = 0; i < 40; i++)
        push_frame(peers[0], i & 1 ? WSPY_COMMAND_MARK : WSPY_COMMAND_SEND, 0x81, 300);
    push_frame(peers[1], WSPY_COMMAND_SEND, 0x82, 70000);
    broadcast(100);
    broadcast(5000);
    for (int i = 0; i < 6; i++)
        write_frame(peers[i], 0x89, 100);
    host_settle();
    write_frame(peers[5], 0x82, 20);
    host_settle();
    for (int i = 0; i < 5; i++)
        open_window(peers[i], 3000);
    host_settle();
    for (int i = 0; i < 5; i++)
        open_window(peers[i], SIZE_MAX / 2);
    host_settle();
}

/* A pause, its end, and every way to go. */
static void end_all(void)
{
    host_push(WSPY_COMMAND_PAUSE, handle_of(peers[0]), NULL, 0);
    write_frame(peers[0], 0x82, 2000);
    host_settle();
    host_push(WSPY_COMMAND_RESUME, handle_of(peers[0]), NULL, 0);
    payload[0] = 0x03, payload[1] = 0xe8;
    write_frame(peers[0], 0x88, 2);
    host_push(WSPY_COMMAND_CLOSE, handle_of(peers[1]), payload, 2);
    write_frame(peers[2], 0xc1, 3); /* §5.2: a reserved bit */
    host_push(WSPY_COMMAND_ABORT, handle_of(peers[3]), NULL, 0);
    peers[4]->has_ended = 1;
    host_push(WSPY_COMMAND_FAIL, handle_of(peers[6]), (uint16_t[]){1007}, 2);
    peers[7]->reset = RESET_PENDING;
    host_push(WSPY_COMMAND_REFUSE, 0, "HTTP/1.1 503 \r\n\r\n", 17);
    host_settle();
}

/* After it nobody is there, so that the next one finds peers' places free. */
static void let_time_pass(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        fake.peers[i].has_ended = 1;
    for (int i = 0; i < 4; i++) {
        host_settle();
        fake.now_ns += UINT64_C(1000000) * PATIENCE_MS;
        fake.progress++;
    }
    host_settle();
}

/* Who was let in is gone, and that was said of who was accepted; HTTP ends without a word. */
static void check_end(const fake_peer *peer)
{
    const host_guest *guest = &host.guests[peer - fake.peers];
    require(peer->is_closed || peer->fd < 0);
    require(guest->is_closed || !guest->is_opened);
}

static void run_scenario(void)
{
    connect_all();
    send_heads();
    send_messages();
    fill_queues();
    end_all();
    let_time_pass();
    for (int i = 0; i < PEERS; i++)
        check_end(peers[i]);
}

/* ---- trials ---- */

static wspy_settings settings_of(const trial *t)
{
    return (wspy_settings){
        .limits = {.max_size = MESSAGE_MAX, .max_fragment_size = UINT64_MAX, .max_fragments = 100},
        .head = {.max_line = 8192, .max_field = 8192, .max_size = 65536, .max_fields = 128},
        .max_backlog = 1 << 24,
        .write_limit = 1000,
        .max_handshakes = 1000,
        .max_per_address = 1000,
        .max_controls = 100000,
        .open_timeout_ms = 10000,
        .close_timeout_ms = 10000,
        .ping_interval_ms = 20000,
        .ping_timeout_ms = 20000,
        .write_timeout_ms = 30000,
        .idle_timeout_ms = 60000,
        .idle_request_ms = 5000,
        .wants = WSPY_WANT_PING | WSPY_WANT_PONG | WSPY_WANT_PINGED | WSPY_WANT_DRAINED | WSPY_WANT_ENDING,
        .raw = (uint32_t)t->is_raw,
    };
}

/* Returns how many allocations there were. */
static uint64_t run_trial(const trial *t)
{
    const wspy_settings settings = settings_of(t);
    fake_reset();
    listener = fake_listener_new();
    uint64_t before = fake.allocations;
    if (t->nth)
        fake_fail(WSPY_SYS_ALLOCATE, t->nth - 1, t->times, ENOMEM);
    if (host_begin(&settings)) {
        require(wspy_loop_listen(host.loop, listener) == WSPY_OK);
        for (uint32_t i = 0; i < t->rounds && fake.peer_count + PEERS <= FAKE_PEERS; i++)
            run_scenario();
        require(t->times > 1 || host.no_memory <= 1);
    }
    host_end();
    return fake.allocations - before;
}

/* What is freed is watched for a while; less of it is quicker. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "quarantine_size_mb=4";
}

int main(int argc, char **argv)
{
    uint32_t last = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 500;
    uint64_t trials = 0, reached = 0;
    for (int is_raw = 0; is_raw <= 1; is_raw++) {
        trial t = {.is_raw = is_raw, .rounds = 1, .times = 1};
        uint64_t all = run_trial(&t);
        for (t.rounds = 1; all < last && t.rounds < FAKE_PEERS / PEERS; t.rounds++)
            all = run_trial(&(trial){.is_raw = is_raw, .rounds = t.rounds + 1});
        uint64_t end = all < last ? all : last;
        for (t.nth = 1; t.nth <= end; t.nth++) {
            t.times = 1;
            run_trial(&t);
            t.times = UINT32_MAX;
            if (t.nth % LASTING == 0)
                run_trial(&t);
        }
        trials += end + end / LASTING;
        reached = end > reached ? end : reached;
    }
    double cpu = (double)clock() / CLOCKS_PER_SEC;
    printf("n from 1 to %llu, %llu trials, %.0f s of CPU\n", (unsigned long long)reached,
           (unsigned long long)trials, cpu);
    return 0;
}
