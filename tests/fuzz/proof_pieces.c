// Does every byte arrive once and in order when each recv and send moves 1 to n of them? An echo of random messages.
// links: host.c fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c frame.c mask.c utf8.c
// links: timers.c addresses.c errors.c
// amount: 200
//
// The amount is that of megabytes that are echoed. Each round has an n, its peers and its messages, whole or in fragments, now
// plaintext and now with what takes the place of TLS; what each peer was sent is compared with what it should have been.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host.h"

enum { PEERS = 4, ROUND = 4 << 20, LENGTH_MAX = 300000, FRAGMENTS_MAX = 5 };

typedef struct {
    uint8_t *bytes;
    size_t length;
} stream;

static uint64_t state = 1;

/* splitmix64 */
static uint64_t chance(void)
{
    uint64_t value = state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static size_t below(size_t end)
{
    return (size_t)(chance() % end);
}

/* Short ones are the rule; a long one comes as often as it has to, so that half of all bytes are in long ones. */
static size_t any_length(void)
{
    static const size_t ends[] = {2, 130, 130, 1000, 1000, 5000, 9000, 70000};
    size_t kind = below(64);
    return kind == 0 ? below(LENGTH_MAX) : below(ends[kind % 8]);
}

static void write_fragments(fake_peer *peer, const uint8_t *payload, size_t length)
{
    static uint8_t frame[LENGTH_MAX + WSPY_HEADER_MAX];
    size_t count = below(3) ? 1 : 1 + below(FRAGMENTS_MAX);
    for (size_t i = 0, at = 0; i < count; i++) {
        int is_last = i + 1 == count;
        size_t piece = is_last ? length - at : below(length - at + 1);
        uint8_t first = (uint8_t)((i ? 0 : WSPY_EVENT_BINARY) | (is_last ? WSPY_FIN : 0));
        host_write(peer, frame, host_frame(frame, first, payload + at, piece, 1));
        at += piece;
    }
}

/* Returns the bytes of the payload. */
static size_t write_message(fake_peer *peer, stream *expected)
{
    static uint8_t payload[LENGTH_MAX];
    size_t length = any_length();
    for (size_t i = 0; i < length; i += 8) {
        uint64_t eight = chance();
        memcpy(payload + i, &eight, length - i < 8 ? length - i : 8);
    }
    write_fragments(peer, payload, length);
    uint8_t *end = expected->bytes + expected->length;
    expected->length += host_frame(end, WSPY_FIN | WSPY_EVENT_BINARY, payload, length, 0);
    return length;
}

static void compare(const stream *expected)
{
    for (int i = 0; i < fake.peer_count; i++) {
        const fake_peer *peer = &fake.peers[i];
        require(peer->out_length == expected[i].length && !peer->is_closed);
        for (size_t at = 0; at < peer->out_length; at++)
            require((uint8_t)(host.is_raw ? ~peer->out[at] : peer->out[at]) == expected[i].bytes[at]);
    }
}

static size_t run_round(uint64_t number)
{
    static const uint32_t most[] = {70000, 16384, 4096, 1000, 150, 20, 7, 2, 1, 70000, 30000, 5000};
    static stream expected[PEERS];
    static const char head[] = "GET / HTTP/1.1\r\nHost: here\r\n\r\n";
    const wspy_settings settings = {
        .limits = {.max_size = LENGTH_MAX, .max_fragment_size = UINT64_MAX, .max_fragments = 100},
        .head = {.max_line = 8192, .max_field = 8192, .max_size = 65536, .max_fields = 128},
        .max_backlog = UINT64_MAX,
        .write_limit = UINT64_MAX,
        .open_timeout_ms = WSPY_FOREVER,
        .close_timeout_ms = WSPY_FOREVER,
        .ping_interval_ms = WSPY_FOREVER,
        .ping_timeout_ms = WSPY_FOREVER,
        .write_timeout_ms = WSPY_FOREVER,
        .idle_timeout_ms = WSPY_FOREVER,
        .idle_request_ms = WSPY_FOREVER,
        .raw = number % 2 == 1,
    };
    size_t done = 0;
    fake_reset();
    fake.short_size = most[number / 2 % (sizeof most / sizeof *most)];
    fake.short_calls = UINT32_MAX;
    fake.chance = number + 1;
    require(host_begin(&settings));
    int listener = fake_listener_new();
    require(wspy_loop_listen(host.loop, listener) == WSPY_OK);
    for (int i = 0; i < PEERS; i++) {
        if (!expected[i].bytes)
            expected[i].bytes = malloc(2 * (size_t)ROUND);
        require(expected[i].bytes != NULL);
        host_write(fake_peer_new(listener, SIZE_MAX / 2), (const uint8_t *)head, sizeof head - 1);
        expected[i].length = strlen(host_101);
        memcpy(expected[i].bytes, host_101, strlen(host_101));
    }
    while (done < ROUND) {
        size_t to = below(PEERS);
        done += write_message(&fake.peers[to], &expected[to]);
        if (below(20) == 0)
            host_turn(0);
    }
    host_settle();
    compare(expected);
    host_end();
    return done;
}

int main(int argc, char **argv)
{
    uint64_t wanted = (argc > 1 ? strtoull(argv[1], NULL, 10) : 200) * 1000000, done = 0, rounds = 0;
    while (done < wanted)
        done += run_round(rounds++);
    double cpu = (double)clock() / CLOCKS_PER_SEC;
    printf("%llu MB in %llu rounds, %.0f MB in a second of CPU, %.0f s\n", (unsigned long long)(done / 1000000),
           (unsigned long long)rounds, (double)done / 1e6 / cpu, cpu);
    return 0;
}
