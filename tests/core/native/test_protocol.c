/* test_protocol.c: what only the loop asks of the protocol: packed payloads, credit, events that do not fit, receiving
 * in place. The rules of RFC 6455 are tested through the endpoint. */
#include "native.h"
#include "protocol.h"
#include "sys.h"

#include <errno.h>

enum { ROOM = 1 << 20, EVENTS = 32 };

/* A protocol with all that it writes to. */
typedef struct {
    wspy_protocol protocol;
    wspy_limits limits;
    wspy_event events[EVENTS];
    wspy_detached detached;
    wspy_bytes replies;
    uint8_t *arena, *packed;
    wspy_sink sink;
} bench;

static bench *begin(int role, int granularity)
{
    bench *b = calloc(1, sizeof *b);
    CHECK(b);
    b->limits = (wspy_limits){UINT64_MAX, UINT64_MAX, UINT32_MAX};
    b->arena = malloc(ROOM);
    b->packed = malloc(ROOM);
    CHECK(b->arena && b->packed);
    wspy_protocol_init(&b->protocol, &b->limits, role, granularity, 0, 0);
    b->sink = (wspy_sink){
        .events = b->events,
        .capacity = EVENTS,
        .arena = b->arena,
        .packed = b->packed,
        .detached = &b->detached,
        .replies = &b->replies,
        .slot = 7,
        .credit = WSPY_FOREVER,
        .wants = WSPY_WANT_PING | WSPY_WANT_PONG,
    };
    return b;
}

static void end(bench *b)
{
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 0, 0, 0, 0);
    wspy_protocol_dispose(&b->protocol);
    wspy_detached_free(&b->detached);
    wspy_bytes_free(&b->replies);
    free(b->arena);
    free(b->packed);
    free(b);
}

static const uint8_t KEY[4] = {0x37, 0xfa, 0x21, 0x3d};

/* Byte number i of every payload here. */
static uint8_t payload_byte(size_t i)
{
    return (uint8_t)('a' + i % 23);
}

/* Writes a frame from the peer to output, with announced bytes of payload, of which only length are written. */
static size_t write_frame(const bench *b, uint8_t *output, int first, uint64_t announced, size_t length)
{
    wspy_frame_header header = {.flags = (uint8_t)(first & 0xf0), .opcode = first & 0x0f, .length = announced};
    header.masked = b->protocol.role == WSPY_SERVER;
    memcpy(header.masking_key, KEY, 4);
    size_t size = (size_t)wspy_frame_encode(output, &header);
    for (size_t i = 0; i < length; i++)
        output[size + i] = (uint8_t)(payload_byte(i) ^ (header.masked ? KEY[i % 4] : 0));
    return size + length;
}

static size_t feed_frame(bench *b, int first, size_t length)
{
    return wspy_protocol_feed(&b->protocol, b->arena, write_frame(b, b->arena, first, length, length),
                              &b->sink);
}

static int is_payload(const uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (data[i] != payload_byte(i))
            return 0;
    return 1;
}

static void each_role(void (*run)(int role))
{
    run(WSPY_SERVER);
    run(WSPY_CLIENT);
}

/* ---- packed payloads ---- */

static void pack(int role)
{
    static const size_t lengths[] = {3, 0, 125, 4096, 4097, 1, 5000, 2};
    enum { COUNT = sizeof lengths / sizeof *lengths };
    bench *b = begin(role, WSPY_MESSAGES);
    size_t size = 0;
    for (int i = 0; i < COUNT; i++)
        size += write_frame(b, b->arena + size, WSPY_FIN | WSPY_EVENT_BINARY, lengths[i], lengths[i]);
    CHECK(wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink) == size);
    CHECK(b->sink.count == COUNT && b->sink.messages == COUNT && b->sink.apart == 2);
    size_t packed = 0;
    for (int i = 0; i < COUNT; i++) {
        const wspy_event *event = &b->events[i];
        int is_short = lengths[i] <= 4096;
        CHECK(event->slot == 7 && event->length == lengths[i]);
        CHECK(event->kind == (WSPY_EVENT_BINARY | (is_short ? 0 : (uint32_t)WSPY_EVENT_APART)));
        CHECK(is_payload((is_short ? b->packed : b->arena) + event->start, lengths[i]));
        CHECK(!is_short || event->start == packed);
        packed += is_short ? lengths[i] : 0;
    }
    CHECK(b->sink.packed_length == packed);
    end(b);
}

TEST(short_payloads_are_packed_one_behind_the_other)
{
    each_role(pack);
}

static void leave(int role)
{
    bench *b = begin(role, WSPY_MESSAGES);
    b->sink.packed = NULL;
    size_t size = write_frame(b, b->arena, WSPY_FIN | WSPY_EVENT_BINARY, 3, 3);
    size += write_frame(b, b->arena + size, WSPY_FIN | WSPY_EVENT_PING, 4, 4);
    CHECK(wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink) == size);
    CHECK(b->sink.count == 2);
    CHECK(b->events[0].kind == WSPY_EVENT_BINARY && is_payload(b->arena + b->events[0].start, 3));
    CHECK(b->events[1].kind == WSPY_EVENT_PING && is_payload(b->arena + b->events[1].start, 4));
    end(b);
}

TEST(without_a_place_to_pack_payloads_stay_in_the_arena)
{
    each_role(leave);
}

static void refuse(int role)
{
    bench *b = begin(role, WSPY_MESSAGES);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_BINARY, 3);
    CHECK(feed_frame(b, WSPY_FIN | WSPY_EVENT_CLOSE, 1) > 0);
    CHECK(b->protocol.error == WSPY_ERROR_CLOSE_LENGTH);
    CHECK(b->sink.count == 1 && b->sink.packed_length == 3);
    end(b);
}

TEST(a_payload_that_is_refused_is_not_packed)
{
    each_role(refuse);
}

/* ---- credit and room for events ---- */

/* What two messages and a third one cost, with Pings between them. */
static void spend(int role, uint32_t wants, uint32_t two, uint32_t one)
{
    bench *b = begin(role, WSPY_MESSAGES);
    uint32_t pings = wants ? 1 : 0;
    size_t ends[5];
    b->sink.wants = wants;
    static const int firsts[5] = {WSPY_EVENT_TEXT, WSPY_EVENT_PING, WSPY_EVENT_BINARY, WSPY_EVENT_PING,
                                  WSPY_EVENT_TEXT};
    size_t size = 0;
    for (int i = 0; i < 5; i++)
        ends[i] = size += write_frame(b, b->arena + size, WSPY_FIN | firsts[i], 3, 3);
    b->sink.credit = 0;
    CHECK(wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink) == 0);
    b->sink.credit = two;
    size_t used = wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink);
    CHECK(used == ends[2] && b->sink.count == 2 + pings && b->sink.credit == 0 && b->sink.messages == 2);
    b->sink.credit = one;
    CHECK(wspy_protocol_feed(&b->protocol, b->arena + used, size - used, &b->sink) == size - used);
    CHECK(b->sink.count == 3 + 2 * pings && b->sink.credit == 0);
    end(b);
}

static void spend_on_messages(int role)
{
    spend(role, 0, 2, 1);
}

static void spend_on_pings_too(int role)
{
    spend(role, WSPY_WANT_PING, 3, 2);
}

TEST(a_message_costs_credit_and_a_ping_none)
{
    each_role(spend_on_messages);
}

TEST(a_ping_that_is_reported_costs_credit)
{
    each_role(spend_on_pings_too);
}

TEST(a_fragmented_message_costs_credit_once)
{
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    b->sink.credit = 1;
    feed_frame(b, WSPY_EVENT_TEXT, 3);
    feed_frame(b, WSPY_EVENT_CONTINUATION, 3);
    CHECK(b->sink.credit == 1);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_CONTINUATION, 3);
    CHECK(b->sink.credit == 0 && b->sink.count == 1);
    CHECK(b->events[0].kind == (WSPY_EVENT_TEXT | WSPY_EVENT_DETACHED) && b->events[0].start == 0);
    CHECK(b->detached.items[0].length == 9);
    end(b);
}

TEST(credit_without_end_is_not_spent)
{
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_TEXT, 3);
    CHECK(b->sink.credit == WSPY_FOREVER && b->sink.messages == 1);
    end(b);
}

TEST(decoding_stops_when_no_event_fits)
{
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    size_t size = 0;
    for (int i = 0; i < 10; i++)
        size += write_frame(b, b->arena + size, WSPY_FIN | WSPY_EVENT_TEXT, 3, 3);
    uint32_t seen = 0;
    for (size_t used = 0; used < size; seen += b->sink.count) {
        b->sink.count = 0;
        b->sink.capacity = 3;
        used += wspy_protocol_feed(&b->protocol, b->arena + used, size - used, &b->sink);
        CHECK(b->sink.count == (used < size ? 3 : 1));
    }
    CHECK(seen == 10);
    end(b);
}

static void ignore_controls(int role)
{
    bench *b = begin(role, WSPY_MESSAGES);
    b->sink.wants = 0;
    feed_frame(b, WSPY_FIN | WSPY_EVENT_PING, 3);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_PONG, 3);
    CHECK(b->sink.count == 0 && b->sink.packed_length == 0);
    CHECK(b->replies.length == (role == WSPY_SERVER ? 5 : 9)); /* answered all the same */
    feed_frame(b, WSPY_FIN | WSPY_EVENT_CLOSE, 0);
    CHECK(b->sink.count == 1 && b->events[0].kind == WSPY_EVENT_CLOSE);
    end(b);
}

TEST(pings_and_pongs_are_reported_only_if_wanted)
{
    each_role(ignore_controls);
}

/* ---- receiving in place ---- */

static void receive_in_place(int role, int granularity)
{
    enum { LENGTH = 300000 };
    bench *b = begin(role, granularity);
    uint8_t *stream = malloc(LENGTH + WSPY_HEADER_MAX);
    CHECK(stream);
    size_t size = write_frame(b, stream, WSPY_FIN | WSPY_EVENT_TEXT, LENGTH, LENGTH);
    size_t header = size - LENGTH;
    memcpy(b->arena, stream, header + 1); /* and one byte of payload, so that the key is out of phase */
    CHECK(wspy_protocol_feed(&b->protocol, b->arena, header + 1, &b->sink) == header + 1);
    size_t at = header + 1, rooms = 0;
    for (size_t room; at < size; rooms++) {
        uint8_t *place = wspy_protocol_room(&b->protocol, &room);
        if (!place)
            break;
        size_t arrived = at - header;
        CHECK(room > 0 && room <= size - at && arrived + room <= 2 * arrived + 4096);
        size_t got = room > 777 && rooms % 3 ? room - 777 : room;
        memcpy(place, stream + at, got);
        wspy_protocol_filled(&b->protocol, got, &b->sink);
        at += got;
    }
    CHECK(size - at < 4096 && rooms > 4 && rooms < 40);
    memcpy(b->arena, stream + at, size - at);
    wspy_protocol_feed(&b->protocol, b->arena, size - at, &b->sink);
    CHECK(b->sink.count == 1 && b->sink.messages == 1);
    CHECK(b->events[0].kind == (WSPY_EVENT_TEXT | WSPY_EVENT_DETACHED));
    CHECK(b->detached.items[0].length == LENGTH && is_payload(b->detached.items[0].data, LENGTH));
    free(stream);
    end(b);
}

TEST(a_large_payload_is_received_in_place)
{
    for (int granularity = WSPY_MESSAGES; granularity <= WSPY_FRAMES; granularity++) {
        receive_in_place(WSPY_SERVER, granularity);
        receive_in_place(WSPY_CLIENT, granularity);
    }
}

TEST(the_last_bytes_in_place_end_the_frame)
{
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    size_t size = write_frame(b, b->arena, WSPY_FIN | WSPY_EVENT_BINARY, 4096, 0);
    CHECK(wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink) == size);
    size_t room;
    uint8_t *place = wspy_protocol_room(&b->protocol, &room);
    CHECK(place && room == 4096);
    memset(place, 0xff, room);
    wspy_protocol_filled(&b->protocol, room, &b->sink);
    CHECK(b->sink.count == 1 && b->detached.items[0].length == 4096);
    CHECK(!wspy_protocol_room(&b->protocol, &room));
    end(b);
}

TEST(there_is_no_room_where_none_is_worth_it)
{
    size_t room;
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    CHECK(!wspy_protocol_room(&b->protocol, &room));
    wspy_protocol_feed(&b->protocol, b->arena, write_frame(b, b->arena, WSPY_EVENT_TEXT, 4095, 0), &b->sink);
    CHECK(!wspy_protocol_room(&b->protocol, &room));
    end(b);
}

TEST(there_is_no_room_after_an_error)
{
    size_t room;
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    wspy_protocol_feed(&b->protocol, b->arena, write_frame(b, b->arena, WSPY_EVENT_TEXT, 100000, 10), &b->sink);
    CHECK(wspy_protocol_room(&b->protocol, &room));
    wspy_protocol_fail(&b->protocol, WSPY_ERROR_ABORTED);
    CHECK(!wspy_protocol_room(&b->protocol, &room));
    end(b);
}

TEST(an_announced_length_reserves_one_page)
{
    size_t room;
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    size_t size = write_frame(b, b->arena, WSPY_FIN | WSPY_EVENT_TEXT, (uint64_t)1 << 62, 0);
    wspy_protocol_feed(&b->protocol, b->arena, size, &b->sink);
    CHECK(wspy_protocol_room(&b->protocol, &room) && room == 4096);
    CHECK(wspy_protocol_room(&b->protocol, &room) && room == 4096); /* asking again takes no more */
    end(b);
}

TEST(a_bad_byte_in_place_is_found_before_the_end)
{
    size_t room;
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    wspy_protocol_feed(&b->protocol, b->arena, write_frame(b, b->arena, WSPY_FIN | WSPY_EVENT_TEXT, 100000, 5),
                       &b->sink);
    uint8_t *place = wspy_protocol_room(&b->protocol, &room);
    place[0] = 0xff;
    wspy_protocol_filled(&b->protocol, 1, &b->sink);
    CHECK(b->protocol.error == WSPY_ERROR_UTF8 && b->sink.count == 0 && !b->protocol.message);
    end(b);
}

/* ---- without memory ---- */

TEST(no_memory_for_room_is_an_error)
{
    size_t room;
    bench *b = begin(WSPY_CLIENT, WSPY_MESSAGES);
    wspy_protocol_feed(&b->protocol, b->arena, write_frame(b, b->arena, WSPY_FIN | WSPY_EVENT_TEXT, 100000, 0),
                       &b->sink);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 1, 1, ENOMEM, 0);
    CHECK(!wspy_protocol_room(&b->protocol, &room));
    CHECK(b->protocol.error == WSPY_ERROR_NO_MEMORY);
    end(b);
}

TEST(no_memory_for_a_fragment_is_an_error)
{
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 1, 1, ENOMEM, 0);
    feed_frame(b, WSPY_EVENT_TEXT, 10);
    CHECK(b->protocol.error == WSPY_ERROR_NO_MEMORY && b->sink.count == 0);
    end(b);
}

TEST(no_memory_for_the_table_of_detached_payloads_is_an_error)
{
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    feed_frame(b, WSPY_EVENT_TEXT, 10);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 1, 1, ENOMEM, 0);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_CONTINUATION, 0);
    CHECK(b->protocol.error == WSPY_ERROR_NO_MEMORY && b->sink.count == 0 && !b->protocol.message);
    end(b);
}

TEST(no_memory_for_a_pong_is_an_error)
{
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 1, 1, ENOMEM, 0);
    feed_frame(b, WSPY_FIN | WSPY_EVENT_PING, 10);
    CHECK(b->protocol.error == WSPY_ERROR_NO_MEMORY && b->sink.count == 0 && b->replies.length == 0);
    end(b);
}

/* ---- failing from outside ---- */

TEST(the_first_error_stays_and_owes_one_close)
{
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    wspy_protocol_fail(&b->protocol, WSPY_ERROR_BACKLOG);
    wspy_protocol_fail(&b->protocol, WSPY_ERROR_UTF8);
    CHECK(b->protocol.error == WSPY_ERROR_BACKLOG && !wspy_protocol_running(&b->protocol));
    CHECK(wspy_protocol_close(&b->protocol, (const uint8_t *)"\x03\xe8", 2, frame) == 0);
    CHECK(wspy_protocol_owed_close(&b->protocol, frame) == 4 && memcmp(frame, "\x88\x02\x03\xf0", 4) == 0);
    CHECK(wspy_protocol_owed_close(&b->protocol, frame) == 0);
    end(b);
}

TEST(after_our_close_an_error_owes_none)
{
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    bench *b = begin(WSPY_SERVER, WSPY_MESSAGES);
    CHECK(wspy_protocol_close(&b->protocol, NULL, 0, frame) == 2);
    wspy_protocol_fail(&b->protocol, WSPY_ERROR_UTF8);
    CHECK(wspy_protocol_owed_close(&b->protocol, frame) == 0);
    end(b);
}
