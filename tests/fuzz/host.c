// How does a caller do everything right that the loop asks for? See host.h.
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys.h"

enum { BATCH_MAX = 32 << 20, SPIN_MAX = 1000, TURNS_MAX = 10000000, UNSEAL_MAX = 1 << 21 };

const char host_101[] = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
host_state host;

void host_fail(const char *function, int line, const char *what)
{
    fprintf(stderr, "broken in %s, line %d: %s\n", function, line, what);
    abort();
}

int host_begin(const wspy_settings *settings)
{
    uint8_t *batch = host.batch ? host.batch : malloc(BATCH_MAX);
    require(batch != NULL);
    host = (host_state){.is_raw = settings->raw != 0, .batch = batch, .batch_size = 8};
    fake.is_exempt = 1;
    host.packed = wspy_sys_reserve(wspy_loop_packed_size());
    fake.is_exempt = 0;
    host.loop = wspy_loop_new(settings, host.packed);
    return host.loop != NULL;
}

/* ---- commands ---- */

static void put(const void *data, size_t length)
{
    require(host.batch_size + length <= BATCH_MAX);
    if (length)
        memcpy(host.batch + host.batch_size, data, length);
    host.batch_size += length;
}

static void push_parts(int command, uint64_t handle, const void *first, size_t first_length,
                       const void *payload, size_t length)
{
    uint64_t key = (uint64_t)command << WSPY_COMMAND_SHIFT | handle;
    uint32_t whole = (uint32_t)(first_length + length);
    put(&key, 8);
    put(&whole, 4);
    put(first, first_length);
    put(payload, length);
    host.count++;
}

void host_push(int command, uint64_t handle, const void *payload, size_t length)
{
    push_parts(command, handle, NULL, 0, payload, length);
}

/* ---- TLS ---- */

static const uint8_t *sealed(const uint8_t *data, size_t length)
{
    static uint8_t output[UNSEAL_MAX];
    require(length <= sizeof output);
    for (size_t i = 0; i < length; i++)
        output[i] = (uint8_t)~data[i];
    return output;
}

void host_write(fake_peer *peer, const uint8_t *data, size_t length)
{
    for (size_t at = 0; at < length; at += UNSEAL_MAX) {
        size_t piece = length - at < UNSEAL_MAX ? length - at : UNSEAL_MAX;
        fake_peer_write(peer, host.is_raw ? sealed(data + at, piece) : data + at, piece);
    }
    peer->in_visible = peer->in_length;
}

static void answer_raw(uint64_t handle, uint32_t kind, const uint8_t *data, size_t length)
{
    uint8_t bits = WSPY_RAW_OUT | (kind == WSPY_EVENT_OUT_LAST ? WSPY_RAW_LAST : 0), none = 0;
    if (kind != WSPY_EVENT_RAW)
        push_parts(WSPY_COMMAND_RAW_SEND, handle, &bits, 1, sealed(data, length), length);
    else if (length)
        host_push(WSPY_COMMAND_FEED, handle, sealed(data, length), length);
    else
        host_push(WSPY_COMMAND_FEED_END, handle, &none, 1);
}

/* ---- frames ---- */

size_t host_frame(uint8_t *output, uint8_t first, const uint8_t *payload, size_t length, int is_masked)
{
    wspy_frame_header header = {.length = length,
                                .flags = first & 0xf0,
                                .opcode = first & 0x0f,
                                .masked = is_masked != 0,
                                .masking_key = {0x37, 0xfa, 0x21, 0x3d}};
    size_t size = (size_t)wspy_frame_encode(output, &header);
    if (length && is_masked)
        wspy_mask_into(output + size, payload, length, header.masking_key, 0);
    else if (length)
        memcpy(output + size, payload, length);
    return size + length;
}

static void echo(host_guest *guest, uint32_t kind, const uint8_t *data, size_t length)
{
    uint8_t header[WSPY_HEADER_MAX];
    wspy_frame_header said = {.length = length, .flags = WSPY_FIN, .opcode = kind & 0x0f};
    size_t size = (size_t)wspy_frame_encode(header, &said);
    guest->received += length;
    push_parts(WSPY_COMMAND_MARK, guest->handle, header, size, data, length);
}

/* ---- events ---- */

static host_guest *guest_of(uint64_t handle)
{
    uint8_t address[16];
    uint32_t port, scope;
    require(wspy_loop_peer(host.loop, handle, address, &port, &scope) > 0);
    require(port >= 1 && port <= (uint32_t)fake.peer_count);
    return &host.guests[port - 1];
}

/* GET / is a WebSocket, anything else is answered over HTTP and may be followed by another request. */
static void answer_head(host_guest *guest, const uint8_t *head, size_t length)
{
    static const char response[] = "\1HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const wspy_accept accept = {.credit = WSPY_FOREVER};
    require(length > 5);
    if (head[5] == ' ')
        push_parts(WSPY_COMMAND_ACCEPT, guest->handle, &accept, sizeof accept, host_101, strlen(host_101));
    else
        host_push(WSPY_COMMAND_RESPOND, guest->handle, response, sizeof response - 1);
}

static const uint8_t *payload_of(const wspy_event *event, uint64_t *length)
{
    *length = event->length;
    if (event->kind & WSPY_EVENT_DETACHED)
        return wspy_loop_detached(host.loop, event->start, length);
    return (event->kind & WSPY_EVENT_APART ? wspy_loop_arena(host.loop) : host.packed) + event->start;
}

static void take_event(const wspy_event *event)
{
    uint32_t kind = event->kind & 0xff;
    if (kind == WSPY_EVENT_ACCEPT_PAUSED)
        return;
    uint64_t handle = wspy_loop_handle(host.loop, event->slot), length;
    host_guest *guest = guest_of(handle);
    guest->handle = handle;
    const uint8_t *data = payload_of(event, &length);
    switch (kind) {
    case WSPY_EVENT_TEXT:
    case WSPY_EVENT_BINARY:
        echo(guest, kind, data, length);
        return;
    case WSPY_EVENT_HEAD:
        answer_head(guest, data, length);
        return;
    case WSPY_EVENT_BAD_HEAD:
        host_push(WSPY_COMMAND_RESPOND, handle, "\0HTTP/1.1 400 Bad Request\r\n\r\n", 29);
        return;
    case WSPY_EVENT_ENDING:
        host_push(WSPY_COMMAND_FINISH, handle, NULL, 0);
        return;
    case WSPY_EVENT_RAW:
    case WSPY_EVENT_OUT:
    case WSPY_EVENT_OUT_LAST:
        answer_raw(handle, kind, data, length);
        return;
    case WSPY_EVENT_OPENED:
        guest->is_opened = 1;
        return;
    case WSPY_EVENT_CLOSED:
        require(!guest->is_closed);
        guest->is_closed = 1;
        guest->error = -(int)(event->length & 0xff);
        host.no_memory += guest->error == WSPY_ERROR_NO_MEMORY;
        return;
    default:
        return;
    }
}

void host_turn(int timeout_ms)
{
    memcpy(host.batch, &host.applied, 8);
    host.applied += host.count;
    int count = wspy_loop_turn(host.loop, (const char *)host.batch, host.batch_size, timeout_ms);
    require(count >= 0 && *wspy_loop_applied(host.loop) == host.applied);
    host.count = 0;
    host.batch_size = 8;
    const wspy_event *events = wspy_loop_events(host.loop);
    for (int i = 0; i < count; i++)
        take_event(&events[i]);
}

void host_settle(void)
{
    int turns = 0, idle = 0;
    do {
        uint64_t progress = fake.progress - fake.failures, count = host.count;
        host_turn(-1);
        idle = fake.progress - fake.failures == progress && !count ? idle + 1 : 0;
        require(idle < SPIN_MAX && ++turns < TURNS_MAX);
    } while (!fake.has_slept || host.count);
}

void host_end(void)
{
    if (host.loop)
        require(wspy_loop_close(host.loop) == WSPY_OK);
    wspy_loop_free(host.loop);
    wspy_sys_unreserve(host.packed, wspy_loop_packed_size());
    require(fake.open_count == 0 && fake.allocated == 0);
}
