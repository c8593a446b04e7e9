// Is what one end may send what the other one accepts, frame by frame, and does it arrive as it was sent?
// links: mask.c utf8.c frame.c protocol.c endpoint.c errors.c sys.c
// options: -max_len=2048
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

/* An input begins with who sends with which claims, how it is cut, and which allocation fails; then one frame follows
 * the other: its first byte, how it is sent and how long it is, its payload. */
enum { SETUP_CLAIMS, SETUP_CUTS, SETUP_FAULT, SETUP_SIZE };
enum { LENGTH = 0x1f, WRONGLY_MASKED = 0x20, GIVEN_KEY = 0x40, NOT_CHECKED = 0x80 };
enum { MOST = 65536 };

typedef struct {
    uint8_t *data;
    size_t length;
} text;

typedef struct {
    int role, granularity, rsv, opcodes;
    uint32_t seed;
} setup;

typedef struct {
    int first, how;
    uint8_t *payload; /* in memory of its own */
    size_t length;
} frame;

/* Both ends, and what has gone from one to the other. */
typedef struct {
    const setup *setup;
    wspy_endpoint *speaker, *hearer;
    wspy_sending sending;
    text wire;
    text said, heard; /* events: kind, length, payload */
    text pings, pongs;
    text message; /* of an unfinished one, in message granularity */
    uint32_t message_kind;
    uint32_t seed;
} talk;

static void require(int condition)
{
    if (!condition)
        abort();
}

static void append(text *t, const void *data, size_t length)
{
    if (length == 0)
        return;
    t->data = realloc(t->data, t->length + length);
    require(t->data != NULL);
    memcpy(t->data + t->length, data, length);
    t->length += length;
}

static void append_event(text *t, uint32_t kind, const uint8_t *payload, uint64_t length)
{
    append(t, &kind, sizeof kind);
    append(t, &length, sizeof length);
    append(t, payload, (size_t)length);
}

static int equal(const text *a, const text *b)
{
    return a->length == b->length && (a->length == 0 || memcmp(a->data, b->data, a->length) == 0);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 16;
}

static wspy_endpoint *new_endpoint(const setup *s, int role)
{
    static const wspy_limits none = {UINT64_MAX, UINT64_MAX, UINT32_MAX};
    return wspy_endpoint_new(role, s->granularity, &none, s->rsv, s->opcodes);
}

static int other(int role)
{
    return role == WSPY_SERVER ? WSPY_CLIENT : WSPY_SERVER;
}

/* ---- what is sent ---- */

/* Reads the next frame of the input. Returns how much of it that took. */
static size_t read_input(const uint8_t *input, size_t size, frame *f)
{
    static const size_t lengths[] = {125, 126, 3000, MOST};
    enum { LITERAL = LENGTH + 1 - sizeof lengths / sizeof *lengths };
    size_t code = input[1] & LENGTH;
    size_t there = size - 2;
    f->first = input[0];
    f->how = input[1] & ~LENGTH;
    f->length = code < LITERAL ? code : lengths[code - LITERAL];
    if (code < LITERAL && f->length > there)
        f->length = there;
    f->payload = malloc(f->length ? f->length : 1);
    require(f->payload != NULL);
    if (code < LITERAL) {
        memcpy(f->payload, input + 2, f->length);
        return 2 + f->length;
    }
    memset(f->payload, there ? input[2] : 0, f->length);
    return 2 + (there > 0);
}

/* What the other end should deliver for a frame. */
static void expect(talk *t, const frame *f)
{
    uint32_t kind = (uint32_t)(f->first & 0x0f);
    uint32_t claimed = t->setup->opcodes >> kind & 1 ? WSPY_EVENT_CLAIMED : 0;
    uint32_t bits = (uint32_t)(f->first & 0x70) << 8 | claimed;
    int final = f->first & WSPY_FIN;
    if (kind == WSPY_EVENT_PING)
        append_event(&t->pings, kind, f->payload, f->length);
    if (kind & 0x08 || t->setup->granularity == WSPY_FRAMES) {
        append_event(&t->said, kind | bits | (final ? 0 : WSPY_EVENT_NOT_FINAL), f->payload, f->length);
        return;
    }
    if (kind != WSPY_EVENT_CONTINUATION) {
        t->message_kind = kind | bits;
        t->message.length = 0;
    }
    append(&t->message, f->payload, f->length);
    if (final)
        append_event(&t->said, t->message_kind, t->message.data, t->message.length);
}

/* A frame that may not be sent breaks the same rule where it arrives. */
static void require_refused(const talk *t, const frame *f, int error)
{
    int role = t->setup->role;
    wspy_endpoint *judge = new_endpoint(t->setup, other(role));
    wspy_endpoint *writer = new_endpoint(t->setup, role);
    wspy_sending unused = {0};
    uint8_t *output = malloc(f->length + WSPY_HEADER_MAX);
    require(judge && writer && output);
    int how = WSPY_SEND_UNCHECKED | (role == WSPY_CLIENT ? WSPY_SEND_MASKED : 0);
    int64_t size = wspy_endpoint_send(writer, &unused, f->first, how, NULL, f->payload, f->length, output);
    require(size > 0);
    require(wspy_endpoint_feed(judge, t->wire.data, t->wire.length) >= 0);
    require(wspy_endpoint_feed(judge, output, (size_t)size) == error);
    free(output);
    wspy_endpoint_free(judge);
    wspy_endpoint_free(writer);
}

/* ---- what arrives ---- */

static void take_events(const wspy_endpoint *endpoint, text *events)
{
    const wspy_event *event = wspy_endpoint_events(endpoint);
    for (uint32_t i = 0; i < wspy_endpoint_event_count(endpoint); i++, event++) {
        uint64_t length = event->length;
        int detached = event->kind & WSPY_EVENT_DETACHED;
        const uint8_t *payload = detached ? wspy_endpoint_detached(endpoint, event->start, &length)
                                          : wspy_endpoint_arena(endpoint) + event->start;
        append_event(events, event->kind & ~(uint32_t)WSPY_EVENT_DETACHED, payload, length);
    }
}

/* Whoever was told nothing else may look where events and arena were before. */
static void require_told(int count, const wspy_endpoint *endpoint, const void *places[2], size_t capacities[2])
{
    const void *now[] = {wspy_endpoint_events(endpoint), wspy_endpoint_arena(endpoint)};
    size_t sizes[] = {wspy_endpoint_event_capacity(endpoint), wspy_endpoint_arena_capacity(endpoint)};
    int same = memcmp(now, places, sizeof now) == 0 && memcmp(sizes, capacities, sizeof sizes) == 0;
    require(same == !(count & WSPY_ENDPOINT_MOVED));
    memcpy(places, now, sizeof now);
    memcpy(capacities, sizes, sizeof sizes);
}

/* Lets all arrive in pieces, and the Pongs for it on the way back. Returns the error of the end that hears. */
static int deliver(talk *t)
{
    const void *places[2] = {NULL, NULL};
    size_t capacities[2] = {0, 0};
    uint32_t most = (uint32_t[]){1, 2, 7, 130, 1000, 4096, MOST, MOST}[t->setup->seed & 7];
    for (size_t at = 0; at < t->wire.length;) {
        size_t piece = next_random(&t->seed) % most + 1;
        piece = piece < t->wire.length - at ? piece : t->wire.length - at;
        uint8_t *exact = malloc(piece); /* the sanitizer sees one byte too far */
        require(exact != NULL);
        memcpy(exact, t->wire.data + at, piece);
        int count = wspy_endpoint_step(t->hearer, exact, piece);
        free(exact);
        if (count > 0)
            require_told(count, t->hearer, places, capacities);
        take_events(t->hearer, &t->heard);
        if (count < 0)
            return count;
        size_t length;
        const uint8_t *replies = wspy_endpoint_replies(t->hearer, &length);
        if (wspy_endpoint_step(t->speaker, replies, length) < 0)
            return wspy_endpoint_error(t->speaker);
        take_events(t->speaker, &t->pongs);
        at += piece;
    }
    return wspy_endpoint_error(t->hearer);
}

/* ---- the target ---- */

/* Sends a frame, or sees that it can't be. */
static void say(talk *t, const frame *f)
{
    int masks = t->setup->role == WSPY_CLIENT;
    int masked = f->how & WRONGLY_MASKED ? !masks : masks;
    int how = masked ? WSPY_SEND_MASKED | (f->how & GIVEN_KEY ? WSPY_SEND_KEY : 0) : 0;
    wspy_sending checked = t->sending;
    wspy_sending before = t->sending;
    int error = wspy_endpoint_check(t->speaker, &checked, f->first, f->payload, f->length);
    require(error <= 0 && (!error || memcmp(&checked, &before, sizeof before) == 0));
    uint8_t *output = malloc(f->length + WSPY_HEADER_MAX);
    require(output != NULL);
    int unchecked = f->how & NOT_CHECKED && (error || masked != masks); /* else it would be heard */
    int64_t size =
        wspy_endpoint_send(t->speaker, &t->sending, f->first, how | (unchecked ? WSPY_SEND_UNCHECKED : 0),
                           (const uint8_t *)"keys", f->payload, f->length, output);
    if (unchecked)
        require(size > 0 && memcmp(&t->sending, &before, sizeof before) == 0);
    else if (masked != masks)
        require(size == (masks ? WSPY_ERROR_UNMASKED : WSPY_ERROR_MASKED));
    else if (error)
        require(size == error);
    if (unchecked || masked != masks || error) {
        require(memcmp(&t->sending, &before, sizeof before) == 0);
    } else {
        require(size > (int64_t)f->length && memcmp(&t->sending, &checked, sizeof checked) == 0);
        append(&t->wire, output, (size_t)size);
        expect(t, f);
    }
    free(output);
    if (error)
        require_refused(t, f, error);
}

static void finish(talk *t)
{
    wspy_endpoint_free(t->speaker);
    wspy_endpoint_free(t->hearer);
    text *texts[] = {&t->wire, &t->said, &t->heard, &t->pings, &t->pongs, &t->message};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free(texts[i]->data);
}

/* A Pong is what its Ping was. */
static void require_answered(talk *t)
{
    text answers = {0};
    for (size_t at = 0; at < t->pings.length;) {
        uint64_t length;
        memcpy(&length, t->pings.data + at + sizeof(uint32_t), sizeof length);
        at += sizeof(uint32_t) + sizeof length;
        append_event(&answers, WSPY_EVENT_PONG, t->pings.data + at, length);
        at += (size_t)length;
    }
    require(equal(&answers, &t->pongs));
    free(answers.data);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < SETUP_SIZE)
        return 0;
    uint8_t claims = input[SETUP_CLAIMS];
    setup s = {
        .role = claims & 1 ? WSPY_CLIENT : WSPY_SERVER,
        .granularity = claims & 2 ? WSPY_FRAMES : WSPY_MESSAGES,
        .rsv = (claims & 0x10 ? WSPY_RSV1 : 0) | (claims & 0x20 ? WSPY_RSV2 | WSPY_RSV3 : 0),
        .opcodes = (claims & 0x40 ? 0x0088 : 0) | (claims & 0x80 ? 0x8800 : 0),
        .seed = input[SETUP_CUTS],
    };
    talk t = {.setup = &s, .seed = s.seed};
    t.speaker = new_endpoint(&s, s.role);
    t.hearer = new_endpoint(&s, other(s.role));
    require(t.speaker && t.hearer);
    for (size_t at = SETUP_SIZE; at + 2 <= size && !t.sending.closed && t.wire.length < 4 * MOST;) {
        frame f;
        at += read_input(input + at, size - at, &f);
        say(&t, &f);
        free(f.payload);
    }
    require(wspy_endpoint_close_state(t.speaker) == t.sending.closed);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, input[SETUP_FAULT], 1, ENOMEM, 0);
    int error = deliver(&t);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 0, 0, 0, 0);
    require(error == 0 || (error == WSPY_ERROR_NO_MEMORY && input[SETUP_FAULT]));
    if (!error) {
        require(equal(&t.said, &t.heard));
        require_answered(&t);
    } else {
        require(t.heard.length <= t.said.length &&
                (!t.heard.length || memcmp(t.said.data, t.heard.data, t.heard.length) == 0));
    }
    finish(&t);
    return 0;
}
