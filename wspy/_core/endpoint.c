/* endpoint.c: a protocol with buffers of its own, for those who bring bytes by themselves. */
#include <stddef.h>
#include <string.h>

#include "protocol.h"
#include "sys.h"

enum {
    SLICE = 64,         /* events are taken so many at a time, so that the array can grow in between */
    KEPT_BYTES = 16384, /* what a burst made larger shrinks to this again: */
    KEPT_EVENTS = 512,  /* an idle endpoint must not hold the memory of its largest read */
};

struct wspy_endpoint {
    wspy_protocol protocol;
    wspy_limits limits;
    wspy_bytes arena; /* payloads of the waiting events, then the incomplete remainder */
    size_t remainder; /* where that begins */
    wspy_event *events;
    uint32_t event_count, event_capacity;
    wspy_detached detached;
    wspy_bytes replies;
    /* where they were after the last step, and how large; never followed */
    const void *seen_arena, *seen_events;
    size_t seen_arena_capacity;
    uint32_t seen_event_capacity;
    uint32_t keys_drawn_after; /* so many forks */
    uint8_t keys_left;         /* bytes of: */
    uint8_t keys[128];
};

wspy_endpoint *wspy_endpoint_new(int role, int granularity, const wspy_limits *limits, int rsv, int opcodes)
{
    wspy_endpoint *endpoint = wspy_sys_allocate_zeroed(1, sizeof *endpoint);
    if (!endpoint)
        return NULL;
    endpoint->limits = *limits;
    wspy_protocol_init(&endpoint->protocol, &endpoint->limits, role, granularity, rsv, opcodes);
    return endpoint;
}

void wspy_endpoint_free(wspy_endpoint *endpoint)
{
    if (!endpoint)
        return;
    wspy_protocol_dispose(&endpoint->protocol);
    wspy_detached_free(&endpoint->detached);
    wspy_bytes_free(&endpoint->arena);
    wspy_bytes_free(&endpoint->replies);
    wspy_sys_free(endpoint->events);
    wspy_sys_free(endpoint);
}

static int reserve_events(wspy_endpoint *endpoint)
{
    if (endpoint->event_capacity - endpoint->event_count >= SLICE)
        return WSPY_OK;
    uint32_t capacity = endpoint->event_capacity ? endpoint->event_capacity * 2 : SLICE;
    wspy_event *grown = wspy_sys_resize(endpoint->events, capacity * sizeof *grown);
    if (!grown)
        return WSPY_ERROR_NO_MEMORY;
    endpoint->events = grown;
    endpoint->event_capacity = capacity;
    return WSPY_OK;
}

/* Decodes a slice of what lies behind the remainder mark. Returns whether there may be more. */
static int decode(wspy_endpoint *endpoint)
{
    wspy_sink sink = {
        .events = endpoint->events,
        .count = endpoint->event_count,
        .capacity = endpoint->event_capacity,
        .arena = endpoint->arena.data,
        .detached = &endpoint->detached,
        .replies = &endpoint->replies,
        .credit = WSPY_FOREVER,
        .wants = WSPY_WANT_PING | WSPY_WANT_PONG,
    };
    size_t waiting = endpoint->arena.length - endpoint->remainder;
    size_t used =
        wspy_protocol_feed(&endpoint->protocol, endpoint->arena.data + endpoint->remainder, waiting, &sink);
    endpoint->event_count = sink.count;
    endpoint->remainder += used;
    return used < waiting && sink.count == sink.capacity;
}

int wspy_endpoint_feed(wspy_endpoint *endpoint, const uint8_t *data, size_t length)
{
    wspy_protocol *protocol = &endpoint->protocol;
    if (!wspy_protocol_running(protocol) || length == 0)
        return protocol->error ? protocol->error : (int)endpoint->event_count;
    if (endpoint->arena.length + length > UINT32_MAX)
        return WSPY_ERROR_ARGUMENT; /* take and clear events more often */
    if (wspy_bytes_append(&endpoint->arena, data, length) < 0)
        wspy_protocol_fail(protocol, WSPY_ERROR_NO_MEMORY);
    do
        if (reserve_events(endpoint) < 0)
            wspy_protocol_fail(protocol, WSPY_ERROR_NO_MEMORY);
    while (wspy_protocol_running(protocol) && decode(endpoint));
    return protocol->error ? protocol->error : (int)endpoint->event_count;
}

int wspy_endpoint_step(wspy_endpoint *endpoint, const uint8_t *data, size_t length)
{
    wspy_endpoint_clear(endpoint);
    int count = wspy_endpoint_feed(endpoint, data, length);
    if (count <= 0)
        return count;
    if (endpoint->seen_arena == endpoint->arena.data && endpoint->seen_events == endpoint->events &&
        endpoint->seen_arena_capacity == endpoint->arena.capacity &&
        endpoint->seen_event_capacity == endpoint->event_capacity)
        return count;
    endpoint->seen_arena = endpoint->arena.data;
    endpoint->seen_events = endpoint->events;
    endpoint->seen_arena_capacity = endpoint->arena.capacity;
    endpoint->seen_event_capacity = endpoint->event_capacity;
    return count | WSPY_ENDPOINT_MOVED;
}

size_t wspy_endpoint_arena_capacity(const wspy_endpoint *endpoint)
{
    return endpoint->arena.capacity;
}

uint32_t wspy_endpoint_event_capacity(const wspy_endpoint *endpoint)
{
    return endpoint->event_capacity;
}

const wspy_event *wspy_endpoint_events(const wspy_endpoint *endpoint)
{
    return endpoint->events;
}

const uint8_t *wspy_endpoint_arena(const wspy_endpoint *endpoint)
{
    return endpoint->arena.data;
}

const uint8_t *wspy_endpoint_detached(const wspy_endpoint *endpoint, uint32_t index, uint64_t *length)
{
    if (index >= endpoint->detached.count)
        return NULL;
    *length = endpoint->detached.items[index].length;
    return endpoint->detached.items[index].data;
}

const uint8_t *wspy_endpoint_replies(const wspy_endpoint *endpoint, size_t *length)
{
    *length = endpoint->replies.length;
    return endpoint->replies.data;
}

uint32_t wspy_endpoint_event_count(const wspy_endpoint *endpoint)
{
    return endpoint->event_count;
}

static void shrink(wspy_bytes *bytes)
{
    if (bytes->capacity <= KEPT_BYTES || bytes->length > KEPT_BYTES)
        return;
    uint8_t *smaller = wspy_sys_resize(bytes->data, KEPT_BYTES);
    if (!smaller) /* it is tried again at the next clear */
        return;
    bytes->data = smaller;
    bytes->capacity = KEPT_BYTES;
}

static void shrink_tables(wspy_endpoint *endpoint)
{
    if (endpoint->event_capacity > KEPT_EVENTS) {
        wspy_sys_free(endpoint->events);
        endpoint->events = NULL;
        endpoint->event_capacity = 0;
    }
    if (endpoint->detached.capacity > KEPT_EVENTS)
        wspy_detached_free(&endpoint->detached);
}

void wspy_endpoint_clear(wspy_endpoint *endpoint)
{
    size_t rest = endpoint->arena.length - endpoint->remainder;
    if (rest)
        memmove(endpoint->arena.data, endpoint->arena.data + endpoint->remainder, rest);
    endpoint->arena.length = rest;
    endpoint->remainder = 0;
    endpoint->event_count = 0;
    endpoint->replies.length = 0;
    wspy_detached_release(&endpoint->detached);
    shrink(&endpoint->arena);
    shrink(&endpoint->replies);
    shrink_tables(endpoint);
}

int wspy_endpoint_owed_close(wspy_endpoint *endpoint, uint8_t *output)
{
    return wspy_protocol_owed_close(&endpoint->protocol, output);
}

int wspy_endpoint_close(wspy_endpoint *endpoint, const uint8_t *payload, size_t length, uint8_t *output)
{
    return wspy_protocol_close(&endpoint->protocol, payload, length, output);
}

void wspy_endpoint_fail(wspy_endpoint *endpoint, int close_code)
{
    wspy_protocol_fail_extension(&endpoint->protocol, close_code);
}

int wspy_endpoint_check(const wspy_endpoint *endpoint, wspy_sending *sending, int first, const uint8_t *payload,
                        size_t length)
{
    return wspy_protocol_check(&endpoint->protocol, sending, first, payload, length);
}

/* Counts forks that this process has come out of. Written by the only thread of a new child. */
static uint32_t forks;

void wspy_endpoint_forked(void)
{
    forks++;
}

/* §5.3: a fresh key from a strong source for each frame. A system call would be half the price of a frame, so keys are
 * drawn some at a time, and thrown away in the child of a fork. */
static int draw_key(wspy_endpoint *endpoint, uint8_t *masking_key)
{
    if (endpoint->keys_left == 0 || endpoint->keys_drawn_after != forks) {
        if (wspy_sys_random(endpoint->keys, sizeof endpoint->keys) < 0)
            return WSPY_ERROR_SYSTEM;
        endpoint->keys_left = sizeof endpoint->keys;
        endpoint->keys_drawn_after = forks;
    }
    endpoint->keys_left -= 4;
    uint8_t *key = endpoint->keys + endpoint->keys_left;
    memcpy(masking_key, key, 4);
    memset(key, 0, 4); /* used once */
    return WSPY_OK;
}

static int note_sent(wspy_endpoint *endpoint, wspy_sending *sending, int first, int is_masked,
                     const uint8_t *payload, size_t length)
{
    int masks = endpoint->protocol.role == WSPY_CLIENT;
    if (is_masked != masks) /* §5.1 */
        return masks ? WSPY_ERROR_UNMASKED : WSPY_ERROR_MASKED;
    int error = wspy_protocol_check(&endpoint->protocol, sending, first, payload, length);
    if (!error && sending->closed)
        wspy_protocol_close_sent(&endpoint->protocol);
    return error;
}

int64_t wspy_endpoint_send(wspy_endpoint *endpoint, wspy_sending *sending, int first, int how,
                           const uint8_t *masking_key, const uint8_t *payload, size_t length, uint8_t *output)
{
    wspy_frame_header header = {
        .flags = (uint8_t)(first & 0xf0),
        .opcode = (uint8_t)(first & 0x0f),
        .length = length,
        .masked = how & WSPY_SEND_MASKED,
    };
    if (how & WSPY_SEND_KEY)
        memcpy(header.masking_key, masking_key, 4);
    else if (header.masked && draw_key(endpoint, header.masking_key) < 0)
        return WSPY_ERROR_SYSTEM;
    if (!(how & WSPY_SEND_UNCHECKED)) {
        int error = note_sent(endpoint, sending, first, header.masked, payload, length);
        if (error)
            return error;
    }
    int size = wspy_frame_encode(output, &header);
    if (header.masked)
        wspy_mask_into(output + size, payload, length, header.masking_key, 0);
    else if (length)
        memcpy(output + size, payload, length);
    return size + (int64_t)length;
}

int wspy_endpoint_error(const wspy_endpoint *endpoint)
{
    return endpoint->protocol.error;
}

int wspy_endpoint_close_state(const wspy_endpoint *endpoint)
{
    return endpoint->protocol.close_state & (WSPY_CLOSE_SENT | WSPY_CLOSE_RECEIVED);
}
