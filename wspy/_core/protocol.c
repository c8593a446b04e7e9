/* protocol.c: the rules of RFC 6455 §5 to §7 for both roles and both granularities.
 *
 * No I/O and no clock: bytes in; events, owed pongs and one owed Close frame out. Everything judged is judged at
 * the first byte that decides it; after the first violation, and after the peer's Close, nothing more is read. */
#include "protocol.h"

#include <string.h>

#include "sys.h"

/* ---- growing buffers ---- */

int wspy_bytes_append(wspy_bytes *bytes, const void *data, size_t length)
{
    if (length > bytes->capacity - bytes->length) {
        size_t capacity = bytes->capacity ? bytes->capacity : 256;
        while (capacity - bytes->length < length)
            capacity *= 2;
        uint8_t *grown = wspy_sys_resize(bytes->data, capacity);
        if (!grown)
            return WSPY_ERROR_NO_MEMORY;
        bytes->data = grown;
        bytes->capacity = capacity;
    }
    if (length)
        memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
    return WSPY_OK;
}

void wspy_bytes_free(wspy_bytes *bytes)
{
    wspy_sys_free(bytes->data);
    *bytes = (wspy_bytes){0};
}

int wspy_detached_reserve(wspy_detached *detached)
{
    if (detached->count < detached->capacity)
        return WSPY_OK;
    uint32_t capacity = detached->capacity ? detached->capacity * 2 : 16;
    void *grown = wspy_sys_resize(detached->items, capacity * sizeof *detached->items);
    if (!grown)
        return WSPY_ERROR_NO_MEMORY;
    detached->items = grown;
    detached->capacity = capacity;
    return WSPY_OK;
}

void wspy_detached_release(wspy_detached *detached)
{
    for (uint32_t i = 0; i < detached->count; i++)
        wspy_sys_free(detached->items[i].data);
    detached->count = 0;
}

void wspy_detached_free(wspy_detached *detached)
{
    wspy_detached_release(detached);
    wspy_sys_free(detached->items);
    *detached = (wspy_detached){0};
}

/* ---- the state table ---- */

enum message_state { IDLE, IN_TEXT, IN_BINARY, MESSAGE_STATES };
enum frame_class { CLASS_CONTINUATION, CLASS_TEXT, CLASS_BINARY, FRAME_CLASSES };

/* §5.4: which data frame may come in which state, and what a frame that is not final leads to. A final frame
 * leads to IDLE from wherever it is allowed. */
static const int8_t transitions[MESSAGE_STATES][FRAME_CLASSES] = {
    [IDLE] = {WSPY_ERROR_CONTINUATION, IN_TEXT, IN_BINARY},
    [IN_TEXT] = {IN_TEXT, WSPY_ERROR_INTERLEAVED, WSPY_ERROR_INTERLEAVED},
    [IN_BINARY] = {IN_BINARY, WSPY_ERROR_INTERLEAVED, WSPY_ERROR_INTERLEAVED},
};

static enum frame_class classify(int opcode)
{
    /* a data opcode that an extension has claimed (§5.8) is opaque, like binary */
    return opcode == WSPY_EVENT_CONTINUATION ? CLASS_CONTINUATION
           : opcode == WSPY_EVENT_TEXT       ? CLASS_TEXT
                                             : CLASS_BINARY;
}

/* Opcodes that RFC 6455 §5.2 defines. */
#define DEFINED_OPCODES 0x0707
#define RESERVED_OPCODES 0xf8f8

void wspy_protocol_init(wspy_protocol *protocol, const wspy_limits *limits, int role, int granularity, int rsv,
                        int opcodes)
{
    *protocol = (wspy_protocol){
        .limits = limits,
        .claimed_opcodes = (uint16_t)opcodes,
        .claimed_rsv = (uint8_t)rsv,
        .role = (uint8_t)role,
        .granularity = (uint8_t)granularity,
    };
}

static void drop_message(wspy_protocol *protocol)
{
    wspy_sys_free(protocol->message);
    protocol->message = NULL;
    protocol->length = protocol->capacity = 0;
}

void wspy_protocol_dispose(wspy_protocol *protocol)
{
    drop_message(protocol);
}

void wspy_protocol_fail(wspy_protocol *protocol, int error)
{
    if (protocol->error)
        return;
    protocol->error = (int8_t)error;
    drop_message(protocol);
    if (protocol->close_state == 0) {
        protocol->close_state = WSPY_CLOSE_OWED;
        protocol->close_code = (uint16_t)wspy_error_close_code(error);
    }
}

void wspy_protocol_fail_extension(wspy_protocol *protocol, int close_code)
{
    protocol->error = WSPY_ERROR_EXTENSION;
    protocol->close_code = (uint16_t)close_code;
    drop_message(protocol);
    if (!(protocol->close_state & WSPY_CLOSE_SENT))
        protocol->close_state |= WSPY_CLOSE_OWED;
}

/* ---- delivering ---- */

static int is_claimed(const wspy_protocol *protocol, int opcode)
{
    return protocol->claimed_opcodes >> opcode & 1;
}

static uint32_t event_kind(const wspy_protocol *protocol, int first)
{
    int opcode = first & 0x0f;
    return (uint32_t)opcode | (first & WSPY_FIN ? 0 : WSPY_EVENT_NOT_FINAL) | (uint32_t)(first & 0x70) << 8 |
           (is_claimed(protocol, opcode) ? WSPY_EVENT_CLAIMED : 0);
}

static wspy_event *add_event(wspy_sink *sink, uint32_t kind)
{
    wspy_event *event = &sink->events[sink->count++];
    *event = (wspy_event){.slot = sink->slot, .kind = kind};
    return event;
}

/* Short payloads move together while they are unmasked: Python reads them off one by one then, at half the cost of
 * slices, and the memory they were received in is free again. */
enum { SHORT_PAYLOAD = 4096 };

static int is_packed(const wspy_sink *sink, size_t length)
{
    return sink->packed && length <= SHORT_PAYLOAD;
}

/* Unmasks a whole payload to where its event will find it. */
static uint8_t *unmask(wspy_sink *sink, uint8_t *payload, size_t length, int is_masked,
                       const uint8_t *masking_key)
{
    uint8_t *output = is_packed(sink, length) ? sink->packed + sink->packed_length : payload;
    if (is_masked)
        wspy_mask_into(output, payload, length, masking_key, 0);
    else if (output != payload && length)
        memcpy(output, payload, length);
    return output;
}

/* payload: what unmask returned last. */
static void add_payload(wspy_sink *sink, uint32_t kind, const uint8_t *payload, size_t length)
{
    int packed = is_packed(sink, length);
    wspy_event *event = add_event(sink, kind | (packed || !sink->packed ? 0 : WSPY_EVENT_APART));
    event->start = (uint32_t)(payload - (packed ? sink->packed : sink->arena));
    event->length = (uint32_t)length;
    sink->packed_length += packed ? length : 0;
    sink->apart += !packed;
}

static void spend_credit(wspy_sink *sink)
{
    if (sink->credit != WSPY_FOREVER)
        sink->credit--;
}

static void count_delivery(wspy_sink *sink)
{
    sink->messages++;
    spend_credit(sink);
}

/* Whoever can't handle more messages now has no use for more of these either, and a peer may send any number. */
static void report_control(wspy_sink *sink, uint32_t kind, const uint8_t *payload, size_t length)
{
    add_payload(sink, kind, payload, length);
    spend_credit(sink);
}

/* Hands the assembled payload over to the sink. */
static void add_detached(wspy_protocol *protocol, wspy_sink *sink, uint32_t kind)
{
    if (wspy_detached_reserve(sink->detached) != WSPY_OK) {
        wspy_protocol_fail(protocol, WSPY_ERROR_NO_MEMORY);
        return;
    }
    wspy_event *event = add_event(sink, kind | WSPY_EVENT_DETACHED);
    event->start = sink->detached->count;
    sink->detached->items[event->start].data = protocol->message;
    sink->detached->items[event->start].length = protocol->length;
    sink->detached->count++;
    protocol->message = NULL;
    protocol->length = protocol->capacity = 0;
    count_delivery(sink);
}

/* ---- payloads of data frames ---- */

static int ends_delivery(const wspy_protocol *protocol)
{
    return protocol->granularity == WSPY_FRAMES || protocol->first & WSPY_FIN;
}

/* Makes room for count more bytes. Memory follows what has arrived, not what was announced: capacity at most
 * doubles, and never passes the announced end of what is delivered. A fragment that others follow has no such end:
 * if its own were one, each of many short ones would move the whole message. */
static int reserve(wspy_protocol *protocol, uint64_t count)
{
    uint64_t needed = protocol->length + count;
    if (needed <= protocol->capacity)
        return 1;
    uint64_t announced = protocol->length + protocol->frame_left;
    uint64_t capacity = protocol->capacity > needed / 2 ? protocol->capacity * 2 : needed;
    if (capacity < 1024)
        capacity = 1024;
    if (ends_delivery(protocol) && capacity > announced)
        capacity = announced;
    uint8_t *grown = capacity > SIZE_MAX ? NULL : wspy_sys_resize(protocol->message, (size_t)capacity);
    if (!grown) {
        wspy_protocol_fail(protocol, WSPY_ERROR_NO_MEMORY);
        return 0;
    }
    protocol->message = grown;
    protocol->capacity = capacity;
    return 1;
}

/* Whether an extension must transform a message first. */
static int is_opaque(const wspy_protocol *protocol, int opcode, int rsv)
{
    return rsv || is_claimed(protocol, opcode);
}

/* §8.1, at once for each part of a text. */
static int accept_text(wspy_protocol *protocol, const uint8_t *data, size_t length)
{
    if (protocol->opcode != WSPY_EVENT_TEXT || is_opaque(protocol, WSPY_EVENT_TEXT, protocol->rsv))
        return 1;
    if (wspy_utf8_feed(&protocol->utf8, data, length) == length)
        return 1;
    wspy_protocol_fail(protocol, WSPY_ERROR_UTF8);
    return 0;
}

/* At the end of a frame: may it be delivered? */
static int text_is_whole(wspy_protocol *protocol)
{
    if (!(protocol->first & WSPY_FIN) || protocol->utf8 == WSPY_UTF8_ACCEPT || protocol->rsv)
        return 1;
    wspy_protocol_fail(protocol, WSPY_ERROR_UTF8);
    return 0;
}

/* The kind of the event for what is delivered now: the current frame, or the whole message. */
static uint32_t delivery_kind(const wspy_protocol *protocol)
{
    if (protocol->granularity == WSPY_FRAMES)
        return event_kind(protocol, protocol->first);
    return event_kind(protocol, WSPY_FIN | protocol->rsv | protocol->opcode);
}

static void end_frame(wspy_protocol *protocol)
{
    if (protocol->first & WSPY_FIN)
        protocol->state = IDLE;
}

/* The newest count bytes, at the end of the message buffer, have arrived and are still masked. */
static void take(wspy_protocol *protocol, size_t count, wspy_sink *sink)
{
    uint8_t *data =
        count ? protocol->message + protocol->length : protocol->message; /* NULL + 0 is undefined */
    if (protocol->role == WSPY_SERVER)
        wspy_mask(data, count, protocol->masking_key, protocol->key_offset);
    protocol->key_offset = (uint8_t)((protocol->key_offset + count) & 3);
    protocol->length += count;
    protocol->frame_left -= count;
    if (!accept_text(protocol, data, count) || protocol->frame_left)
        return;
    if (!text_is_whole(protocol))
        return;
    if (ends_delivery(protocol))
        add_detached(protocol, sink, delivery_kind(protocol));
    end_frame(protocol);
}

static size_t append_payload(wspy_protocol *protocol, const uint8_t *data, size_t available, wspy_sink *sink)
{
    size_t count = available < protocol->frame_left ? available : (size_t)protocol->frame_left;
    if (!reserve(protocol, count))
        return count;
    if (count)
        memcpy(protocol->message + protocol->length, data, count);
    take(protocol, count, sink);
    return count;
}

/* The payload of a whole frame that is all of a delivery stays where it is. */
static void deliver_in_place(wspy_protocol *protocol, uint8_t *payload, size_t length, wspy_sink *sink)
{
    protocol->frame_left = 0;
    payload = unmask(sink, payload, length, protocol->role == WSPY_SERVER, protocol->masking_key);
    if (!accept_text(protocol, payload, length) || !text_is_whole(protocol))
        return;
    add_payload(sink, delivery_kind(protocol), payload, length);
    count_delivery(sink);
    end_frame(protocol);
}

uint8_t *wspy_protocol_room(wspy_protocol *protocol, size_t *room)
{
    enum { WORTHWHILE = 4096 };
    if (protocol->frame_left < WORTHWHILE || !wspy_protocol_running(protocol))
        return NULL;
    /* at most as much ahead as has arrived, so that an announced length alone costs nothing */
    uint64_t ahead = protocol->length > WORTHWHILE ? protocol->length : WORTHWHILE;
    if (!reserve(protocol, ahead < protocol->frame_left ? ahead : protocol->frame_left))
        return NULL;
    uint64_t free_bytes = protocol->capacity - protocol->length;
    *room = (size_t)(free_bytes < protocol->frame_left ? free_bytes : protocol->frame_left);
    return protocol->message + protocol->length;
}

void wspy_protocol_filled(wspy_protocol *protocol, size_t count, wspy_sink *sink)
{
    take(protocol, count, sink);
}

/* ---- headers ---- */

/* Which opcodes and reserved bits there may be, whoever sends them. */
static int check_first(const wspy_protocol *protocol, int first)
{
    int opcode = first & 0x0f;
    if (!((DEFINED_OPCODES | protocol->claimed_opcodes) >> opcode & 1)) /* §5.2 */
        return WSPY_ERROR_OPCODE;
    /* §5.2; a claimed bit marks the first frame of a message (RFC 7692 §6.1), unless extensions see frames */
    int allowed = protocol->claimed_rsv;
    if (opcode & 0x08 || (opcode == WSPY_EVENT_CONTINUATION && protocol->granularity == WSPY_MESSAGES))
        allowed = 0;
    return first & 0x70 & ~allowed ? WSPY_ERROR_RSV : WSPY_OK;
}

/* Whether a frame may stand where it does. */
static int check_place(int state, int first, uint64_t length)
{
    if (first & 0x08)
        return length > 125          ? WSPY_ERROR_CONTROL_LENGTH /* §5.5 */
               : !(first & WSPY_FIN) ? WSPY_ERROR_CONTROL_FRAGMENT
                                     : WSPY_OK;
    int next = transitions[state][classify(first & 0x0f)];
    return next < 0 ? next : WSPY_OK;
}

/* What the first two bytes decide. */
static int check_start(const wspy_protocol *protocol, const uint8_t *data)
{
    int error = check_first(protocol, data[0]);
    if (error)
        return error;
    int masked = data[1] & WSPY_MASK_BIT;
    if (protocol->role == WSPY_SERVER && !masked) /* §5.1 */
        return WSPY_ERROR_UNMASKED;
    if (protocol->role == WSPY_CLIENT && masked)
        return WSPY_ERROR_MASKED;
    return check_place(protocol->state, data[0], data[1] & 0x7f);
}

/* What can't be compressed grows: by 5 bytes for each block and a few more, and a zlib with little memory makes blocks
 * of 100 bytes. Whether that is why a message is over its limit; a size never is by more, so that nothing wraps. */
static int is_just_opaque(const wspy_protocol *protocol, int first, uint64_t size, uint64_t length)
{
    int is_first = (first & 0x0f) != WSPY_EVENT_CONTINUATION;
    int rsv = (first & 0x70) | (is_first ? 0 : protocol->rsv);
    uint64_t max_size = protocol->limits->max_size;
    uint64_t more = max_size / 16 + 64;
    uint64_t most = max_size > UINT64_MAX - more ? UINT64_MAX : max_size + more;
    return is_opaque(protocol, is_first ? first & 0x0f : protocol->opcode, rsv) && length <= most - size;
}

/* Limits that the header alone decides, before anything is allocated. */
static int check_size(const wspy_protocol *protocol, int first, uint64_t length)
{
    const wspy_limits *limits = protocol->limits;
    int is_first = (first & 0x0f) != WSPY_EVENT_CONTINUATION;
    uint64_t size = is_first ? 0 : protocol->size;
    int fits = size <= limits->max_size && length <= limits->max_size - size;
    if (!fits && !is_just_opaque(protocol, first, size, length))
        return WSPY_ERROR_MESSAGE_SIZE;
    if (length > limits->max_fragment_size)
        return WSPY_ERROR_FRAGMENT_SIZE;
    if (!is_first && protocol->fragments >= limits->max_fragments)
        return WSPY_ERROR_FRAGMENT_COUNT;
    return WSPY_OK;
}

static void begin_data(wspy_protocol *protocol, int first, const wspy_frame_header *header)
{
    protocol->state = (uint8_t)transitions[protocol->state][classify(header->opcode)];
    if (header->opcode != WSPY_EVENT_CONTINUATION) {
        protocol->opcode = header->opcode;
        protocol->rsv = first & 0x70;
        protocol->size = 0;
        protocol->fragments = 0;
        protocol->utf8 = WSPY_UTF8_ACCEPT;
    } else {
        /* a frame-level extension transforms single frames: from there on the text can't be checked */
        protocol->rsv |= first & 0x70;
    }
    protocol->first = (uint8_t)first;
    protocol->size += header->length;
    protocol->fragments++;
    protocol->frame_left = header->length;
    protocol->key_offset = 0;
    memcpy(protocol->masking_key, header->masking_key, 4);
}

static size_t read_data(wspy_protocol *protocol, const wspy_frame_header *header, uint8_t *payload,
                        size_t available, wspy_sink *sink)
{
    int first = header->flags | header->opcode;
    int error = check_size(protocol, first, header->length);
    if (error) {
        wspy_protocol_fail(protocol, error);
        return 0;
    }
    begin_data(protocol, first, header);
    if (header->length <= available && protocol->length == 0 && ends_delivery(protocol)) {
        deliver_in_place(protocol, payload, (size_t)header->length, sink);
        return (size_t)header->length;
    }
    return append_payload(protocol, payload, available, sink);
}

/* ---- control frames, §5.5 ---- */

int wspy_close_code_valid(int code)
{
    if (code < 1000 || code > 4999)
        return 0;
    if (code >= 3000)
        return 1;
    return code <= 1014 && code != 1004 && code != 1005 && code != 1006;
}

int wspy_protocol_control(const wspy_protocol *protocol, int opcode, const uint8_t *payload, size_t length,
                          uint8_t *output)
{
    wspy_frame_header header = {
        .flags = WSPY_FIN,
        .opcode = (uint8_t)opcode,
        .length = length,
        .masked = protocol->role == WSPY_CLIENT,
    };
    /* §10.3: unpredictable; so rare for a client that a system call each is fine, and a fork can't repeat it */
    if (header.masked && wspy_sys_random(header.masking_key, 4) < 0)
        return WSPY_ERROR_SYSTEM;
    int size = wspy_frame_encode(output, &header);
    if (header.masked)
        wspy_mask_into(output + size, payload, length, header.masking_key, 0);
    else if (length)
        memcpy(output + size, payload, length);
    return size + (int)length;
}

static int check_close(const uint8_t *payload, size_t length)
{
    if (length == 0)
        return WSPY_OK;
    if (length == 1) /* §5.5.1 */
        return WSPY_ERROR_CLOSE_LENGTH;
    if (!wspy_close_code_valid(payload[0] << 8 | payload[1]))
        return WSPY_ERROR_CLOSE_CODE;
    uint32_t state = WSPY_UTF8_ACCEPT;
    size_t accepted = wspy_utf8_feed(&state, payload + 2, length - 2);
    return accepted == length - 2 && state == WSPY_UTF8_ACCEPT ? WSPY_OK : WSPY_ERROR_CLOSE_UTF8;
}

static void receive_close(wspy_protocol *protocol, const uint8_t *payload, size_t length, wspy_sink *sink)
{
    int error = check_close(payload, length);
    if (error) {
        wspy_protocol_fail(protocol, error);
        return;
    }
    drop_message(protocol); /* a message that the Close cut off is never delivered */
    if (!(protocol->close_state & WSPY_CLOSE_SENT)) {
        protocol->close_state |= WSPY_CLOSE_OWED;
        protocol->close_code = length ? (uint16_t)(payload[0] << 8 | payload[1]) : 0;
    }
    protocol->close_state |= WSPY_CLOSE_RECEIVED;
    add_payload(sink, WSPY_EVENT_CLOSE, payload, length);
}

static void receive_ping(wspy_protocol *protocol, const uint8_t *payload, size_t length, wspy_sink *sink)
{
    /* §5.5.2: a Pong is due unless a Close was received; §5.5.1: nothing may follow our own Close */
    if (!(protocol->close_state & WSPY_CLOSE_SENT)) {
        uint8_t frame[WSPY_CONTROL_FRAME_MAX];
        int size = wspy_protocol_control(protocol, WSPY_EVENT_PONG, payload, length, frame);
        if (size < 0 || wspy_bytes_append(sink->replies, frame, (size_t)size) < 0) {
            wspy_protocol_fail(protocol, WSPY_ERROR_NO_MEMORY);
            return;
        }
    }
    if (sink->wants & WSPY_WANT_PING)
        report_control(sink, WSPY_EVENT_PING, payload, length);
}

static uint32_t number_of(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void read_control(wspy_protocol *protocol, const wspy_frame_header *header, uint8_t *payload,
                         wspy_sink *sink)
{
    size_t length = (size_t)header->length;
    payload = unmask(sink, payload, length, header->masked, header->masking_key);
    sink->controls++;
    switch (header->opcode) {
    case WSPY_EVENT_CLOSE:
        receive_close(protocol, payload, length, sink);
        return;
    case WSPY_EVENT_PING:
        receive_ping(protocol, payload, length, sink);
        return;
    case WSPY_EVENT_PONG: /* §5.5.3: an unsolicited Pong is legal */
        sink->pong = length == 4 ? number_of(payload) : 0;
        if (sink->wants & WSPY_WANT_PONG)
            report_control(sink, WSPY_EVENT_PONG, payload, length);
        return;
    default:
        report_control(sink, event_kind(protocol, header->flags | header->opcode), payload, length);
    }
}

/* Reads one header and as much of its payload as is there. Returns what it consumed; 0: incomplete, or failed. */
static size_t read_frame(wspy_protocol *protocol, uint8_t *data, size_t length, wspy_sink *sink)
{
    if (length < 2)
        return 0;
    int error = check_start(protocol, data);
    wspy_frame_header header;
    int size = error ? error : wspy_frame_decode(data, length, &header);
    if (size < 0) {
        wspy_protocol_fail(protocol, size);
        return 0;
    }
    if (size == 0)
        return 0;
    sink->frames++;
    size_t available = length - (size_t)size;
    if (!(header.opcode & 0x08)) {
        sink->data_frames++;
        return (size_t)size + read_data(protocol, &header, data + size, available, sink);
    }
    if (available < header.length)
        return 0;
    read_control(protocol, &header, data + size, sink);
    return (size_t)size + (size_t)header.length;
}

size_t wspy_protocol_feed(wspy_protocol *protocol, uint8_t *data, size_t length, wspy_sink *sink)
{
    size_t used = 0;
    while (used < length && wspy_protocol_running(protocol) && sink->count < sink->capacity && sink->credit) {
        size_t step = protocol->frame_left ? append_payload(protocol, data + used, length - used, sink)
                                           : read_frame(protocol, data + used, length - used, sink);
        if (step == 0)
            break;
        used += step;
    }
    return wspy_protocol_running(protocol) ? used : length;
}

/* ---- frames of ours, which the same rules hold for ---- */

static int check_sent_text(const wspy_protocol *protocol, wspy_sending *sending, int first,
                           const uint8_t *payload, size_t length)
{
    if (sending->opcode != WSPY_EVENT_TEXT || is_opaque(protocol, WSPY_EVENT_TEXT, sending->rsv))
        return WSPY_OK;
    if (wspy_utf8_feed(&sending->utf8, payload, length) < length)
        return WSPY_ERROR_UTF8;
    return first & WSPY_FIN && sending->utf8 != WSPY_UTF8_ACCEPT ? WSPY_ERROR_UTF8 : WSPY_OK;
}

int wspy_protocol_check(const wspy_protocol *protocol, wspy_sending *sending, int first, const uint8_t *payload,
                        size_t length)
{
    int error = check_first(protocol, first);
    if (!error)
        error = check_place(sending->state, first, length);
    if (error)
        return error;
    int opcode = first & 0x0f;
    wspy_sending next = *sending;
    if (opcode & 0x08) {
        next.closed = opcode == WSPY_EVENT_CLOSE;
        error = next.closed ? check_close(payload, length) : WSPY_OK;
    } else {
        next.state = first & WSPY_FIN ? IDLE : (uint8_t)transitions[sending->state][classify(opcode)];
        if (opcode != WSPY_EVENT_CONTINUATION)
            next = (wspy_sending){.state = next.state, .opcode = (uint8_t)opcode};
        next.rsv |= first & 0x70;
        error = check_sent_text(protocol, &next, first, payload, length);
    }
    if (!error)
        *sending = next;
    return error;
}

int wspy_frame_check(int first, const uint8_t *payload, size_t length)
{
    const wspy_protocol any = {
        .claimed_opcodes = RESERVED_OPCODES,
        .claimed_rsv = WSPY_RSV1 | WSPY_RSV2 | WSPY_RSV3,
        .granularity = WSPY_FRAMES,
    };
    wspy_sending alone = {.state = (first & 0x0f) == WSPY_EVENT_CONTINUATION ? IN_BINARY : IDLE};
    return wspy_protocol_check(&any, &alone, first, payload, length);
}

/* ---- the closing handshake, §7.1 ---- */

void wspy_protocol_close_sent(wspy_protocol *protocol)
{
    protocol->close_state = (uint8_t)((protocol->close_state & ~WSPY_CLOSE_OWED) | WSPY_CLOSE_SENT);
}

int wspy_protocol_owed_close(wspy_protocol *protocol, uint8_t *output)
{
    if (!(protocol->close_state & WSPY_CLOSE_OWED))
        return 0;
    wspy_protocol_close_sent(protocol);
    uint8_t payload[2] = {(uint8_t)(protocol->close_code >> 8), (uint8_t)protocol->close_code};
    return wspy_protocol_control(protocol, WSPY_EVENT_CLOSE, payload, protocol->close_code ? 2 : 0, output);
}

int wspy_protocol_close(wspy_protocol *protocol, const uint8_t *payload, size_t length, uint8_t *output)
{
    if (protocol->error || protocol->close_state) /* §5.5.1: one Close only; an owed one follows by itself */
        return 0;
    if (length > 125)
        return WSPY_ERROR_ARGUMENT;
    protocol->close_state = WSPY_CLOSE_SENT;
    return wspy_protocol_control(protocol, WSPY_EVENT_CLOSE, payload, length, output);
}
