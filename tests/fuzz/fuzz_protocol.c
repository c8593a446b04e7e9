// Does a stream of frames lead to the same however it is cut, whoever drives the protocol, and within the rules?
// links: mask.c utf8.c frame.c protocol.c endpoint.c errors.c sys.c
// options: -max_len=6144
#include "protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sys.h"

/* An input begins with who decodes what under which limits, how it is cut, and which allocation fails. */
enum { SETUP_ROLE, SETUP_LIMITS, SETUP_CUTS, SETUP_FAULT, SETUP_SIZE };

typedef struct {
    int role, granularity, close_sent, rsv, opcodes;
    wspy_limits limits;
    uint32_t seed;
    uint32_t most; /* bytes of a piece; 0: all in one */
} setup;

typedef struct {
    uint8_t *data;
    size_t length;
} text;

/* All that a stream led to; two of them can be compared byte by byte. */
typedef struct {
    text events; /* kind, length, payload */
    text pings;  /* their payloads as they came, and as they were answered: length, payload */
    text pongs;
    int error;
    int ended;      /* by a Close of the peer */
    int close_code; /* of the Close that is owed; -1: none */
} result;

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

static void append_sized(text *t, const uint8_t *data, uint64_t length)
{
    append(t, &length, sizeof length);
    append(t, data, (size_t)length);
}

static int equal(const text *a, const text *b)
{
    return a->length == b->length && (a->length == 0 || memcmp(a->data, b->data, a->length) == 0);
}

static int begins_with(const text *t, const text *start)
{
    return start->length <= t->length &&
           (start->length == 0 || memcmp(t->data, start->data, start->length) == 0);
}

static void release(result *r)
{
    free(r->events.data);
    free(r->pings.data);
    free(r->pongs.data);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 16;
}

/* ---- what holds for every event ---- */

typedef struct {
    int in_message, opcode, rsv;
    uint64_t size;
    uint32_t count;
    text text;
} watch;

/* RFC 3629 §4, row by row. */
static int is_utf8(const uint8_t *s, size_t length)
{
    for (size_t i = 0; i < length;) {
        uint8_t lead = s[i++];
        int more = lead < 0x80 ? 0 : lead >= 0xc2 && lead < 0xe0 ? 1 : lead >= 0xe0 && lead < 0xf0 ? 2 : 3;
        if (lead >= 0x80 && (lead < 0xc2 || lead > 0xf4))
            return 0;
        if (length - i < (size_t)more)
            return 0;
        uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        for (int k = 0; k < more; k++, low = 0x80, high = 0xbf)
            if (s[i + (size_t)k] < low || s[i + (size_t)k] > high)
                return 0;
        i += (size_t)more;
    }
    return 1;
}

static void check_end_of_message(const setup *s, const watch *w)
{
    if (w->opcode == WSPY_EVENT_TEXT && !w->rsv && !(s->opcodes >> WSPY_EVENT_TEXT & 1))
        require(is_utf8(w->text.data, w->text.length));
}

/* RFC 6455 §5.5.1 */
static void check_close(const uint8_t *payload, uint64_t length)
{
    if (length == 0)
        return;
    require(length >= 2 && wspy_close_code_valid(payload[0] << 8 | payload[1]));
    require(is_utf8(payload + 2, (size_t)length - 2));
}

static void check_frame(const setup *s, watch *w, int opcode, int rsv, uint64_t length)
{
    require((opcode == WSPY_EVENT_CONTINUATION) == w->in_message);
    if (!w->in_message) {
        w->opcode = opcode;
        w->rsv = 0;
        w->size = w->count = 0;
        w->text.length = 0;
    }
    require(length <= s->limits.max_fragment_size);
    w->rsv |= rsv;
    w->size += length;
    w->count++;
    require(w->count == 1 || w->count <= s->limits.max_fragments);
}

static void check_event(const setup *s, watch *w, uint32_t kind, const uint8_t *payload, uint64_t length)
{
    int opcode = kind & 0x0f;
    int rsv = (int)(kind & WSPY_EVENT_RSV) >> 8;
    int final = !(kind & WSPY_EVENT_NOT_FINAL);
    require((kind & ~(uint32_t)(0x0f | WSPY_EVENT_RSV | WSPY_EVENT_NOT_FINAL | WSPY_EVENT_CLAIMED)) == 0);
    require(!(kind & WSPY_EVENT_CLAIMED) == !(s->opcodes >> opcode & 1));
    require((0x0707 | s->opcodes) >> opcode & 1);
    require((rsv & ~s->rsv) == 0);
    if (opcode & 0x08) {
        require(final && !rsv && length <= 125);
        if (opcode == WSPY_EVENT_CLOSE)
            check_close(payload, length);
        return;
    }
    if (s->granularity == WSPY_MESSAGES) {
        require(final && opcode != WSPY_EVENT_CONTINUATION && !w->in_message);
        w->opcode = opcode;
        w->rsv = rsv;
        w->size = length;
        w->text.length = 0;
    } else {
        check_frame(s, w, opcode, rsv, length);
        w->in_message = !final;
    }
    uint64_t more = w->rsv || s->opcodes >> w->opcode & 1 ? s->limits.max_size / 1024 + 64 : 0;
    require(more > UINT64_MAX - s->limits.max_size || w->size <= s->limits.max_size + more);
    append(&w->text, payload, (size_t)length);
    if (final)
        check_end_of_message(s, w);
}

static void take_event(const setup *s, result *r, watch *w, uint32_t kind, const uint8_t *payload,
                       uint64_t length)
{
    require(!r->ended); /* nothing follows a Close */
    check_event(s, w, kind, payload, length);
    append(&r->events, &kind, sizeof kind);
    append_sized(&r->events, payload, length);
    if ((kind & 0x0f) == WSPY_EVENT_PING)
        append_sized(&r->pings, payload, length);
    r->ended = (kind & 0x0f) == WSPY_EVENT_CLOSE;
}

/* Where the payloads of events are. packed and detached belong to those who drive the protocol by themselves. */
typedef struct {
    const uint8_t *arena;
    const uint8_t *packed;
    const wspy_detached *detached;
    const wspy_endpoint *endpoint;
} places;

static const uint8_t *find_payload(const places *p, const wspy_event *event, uint64_t *length)
{
    *length = event->length;
    if (!(event->kind & WSPY_EVENT_DETACHED)) {
        int is_packed = p->packed && !(event->kind & WSPY_EVENT_APART);
        return (is_packed ? p->packed : p->arena) + event->start;
    }
    if (p->endpoint)
        return wspy_endpoint_detached(p->endpoint, event->start, length);
    require(event->start < p->detached->count);
    *length = p->detached->items[event->start].length;
    return p->detached->items[event->start].data;
}

static void take_events(const setup *s, result *r, watch *w, const wspy_event *events, uint32_t count,
                        const places *p)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t length;
        const uint8_t *payload = find_payload(p, &events[i], &length);
        uint32_t kind = events[i].kind & ~(uint32_t)(WSPY_EVENT_APART | WSPY_EVENT_DETACHED);
        take_event(s, r, w, kind, payload, length);
    }
}

/* ---- what we would write ---- */

/* Reads one frame of ours. Returns its size. */
static size_t read_own(const setup *s, const uint8_t *data, size_t length, int opcode, uint8_t payload[125],
                       size_t *payload_length)
{
    wspy_frame_header header;
    int size = wspy_frame_decode(data, length, &header);
    require(size > 0 && header.flags == WSPY_FIN && header.opcode == opcode && header.length <= 125);
    require(header.masked == (s->role == WSPY_CLIENT) && length - (size_t)size >= header.length);
    *payload_length = (size_t)header.length;
    for (size_t i = 0; i < *payload_length; i++)
        payload[i] = data[(size_t)size + i] ^ (header.masked ? header.masking_key[i % 4] : 0);
    return (size_t)size + *payload_length;
}

static void take_replies(const setup *s, result *r, const uint8_t *data, size_t length)
{
    uint8_t payload[125];
    size_t payload_length;
    for (size_t at = 0; at < length;) {
        at += read_own(s, data + at, length - at, WSPY_EVENT_PONG, payload, &payload_length);
        append_sized(&r->pongs, payload, payload_length);
    }
}

static void take_close(const setup *s, result *r, const uint8_t *frame, int length)
{
    r->close_code = -1;
    if (length == 0)
        return;
    uint8_t payload[125];
    size_t payload_length;
    require(length > 0 && length <= WSPY_CONTROL_FRAME_MAX);
    require(read_own(s, frame, (size_t)length, WSPY_EVENT_CLOSE, payload, &payload_length) == (size_t)length);
    require(payload_length == 0 || payload_length == 2);
    r->close_code = payload_length ? payload[0] << 8 | payload[1] : 0;
    require(payload_length == 0 || wspy_close_code_valid(r->close_code));
}

/* What the events and the error say about the rest. */
static void check_result(const setup *s, const result *r)
{
    require(!r->error || !r->ended);
    require(r->close_code < 0 || r->error || r->ended);
    if (s->close_sent) {
        require(r->close_code < 0 && r->pongs.length == 0);
        return;
    }
    require((r->close_code >= 0) == (r->error || r->ended));
    if (r->error)
        require(r->close_code == wspy_error_close_code(r->error));
    if (r->error != WSPY_ERROR_NO_MEMORY) /* then a Pong may be lacking, or have no event yet */
        require(equal(&r->pings, &r->pongs));
}

/* ---- one way to drive the protocol: the endpoint ---- */

static void take_endpoint(const setup *s, result *r, watch *w, wspy_endpoint *endpoint)
{
    size_t length;
    const uint8_t *replies = wspy_endpoint_replies(endpoint, &length);
    places p = {.arena = wspy_endpoint_arena(endpoint), .endpoint = endpoint};
    take_replies(s, r, replies, length);
    take_events(s, r, w, wspy_endpoint_events(endpoint), wspy_endpoint_event_count(endpoint), &p);
    wspy_endpoint_clear(endpoint);
    require(wspy_endpoint_event_count(endpoint) == 0);
}

/* An end is for ever. */
static void check_end(wspy_endpoint *endpoint, int role)
{
    static const uint8_t masked[] = {0x89, 0x80, 0, 0, 0, 0, 0x81, 0x80, 0, 0, 0, 0};
    static const uint8_t plain[] = {0x89, 0, 0x81, 0};
    int error = wspy_endpoint_error(endpoint);
    size_t size = role == WSPY_SERVER ? sizeof masked : sizeof plain;
    size_t length;
    require(wspy_endpoint_feed(endpoint, role == WSPY_SERVER ? masked : plain, size) == error);
    wspy_endpoint_replies(endpoint, &length);
    require(length == 0 && wspy_endpoint_event_count(endpoint) == 0 && wspy_endpoint_error(endpoint) == error);
}

static void finish_endpoint(const setup *s, result *r, wspy_endpoint *endpoint)
{
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    r->error = wspy_endpoint_error(endpoint);
    require((wspy_endpoint_close_state(endpoint) & WSPY_CLOSE_SENT) == (s->close_sent ? WSPY_CLOSE_SENT : 0));
    require(!(wspy_endpoint_close_state(endpoint) & WSPY_CLOSE_RECEIVED) == !r->ended);
    if (r->error || r->ended) {
        check_end(endpoint, s->role);
        require(wspy_endpoint_close(endpoint, NULL, 0, frame) == 0);
    }
    take_close(s, r, frame, wspy_endpoint_owed_close(endpoint, frame));
    require(wspy_endpoint_owed_close(endpoint, frame) == 0);
    check_result(s, r);
}

static result run_endpoint(const setup *s, const uint8_t *stream, size_t length)
{
    result r = {.close_code = -1};
    watch w = {0};
    uint32_t seed = s->seed;
    wspy_endpoint *endpoint = wspy_endpoint_new(s->role, s->granularity, &s->limits, s->rsv, s->opcodes);
    if (!endpoint) {
        r.error = WSPY_ERROR_NO_MEMORY;
        return r;
    }
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    if (s->close_sent)
        require(wspy_endpoint_close(endpoint, (const uint8_t *)"\x03\xe8", 2, frame) > 0);
    for (size_t at = 0; at < length;) {
        size_t piece = s->most ? next_random(&seed) % s->most + 1 : length;
        piece = piece < length - at ? piece : length - at;
        uint8_t *exact = malloc(piece); /* the sanitizer sees one byte too far */
        require(exact != NULL);
        memcpy(exact, stream + at, piece);
        int count = wspy_endpoint_feed(endpoint, exact, piece);
        free(exact);
        require(count < 0 ? count == wspy_endpoint_error(endpoint)
                          : (uint32_t)count == wspy_endpoint_event_count(endpoint));
        at += piece;
        if (!s->most || next_random(&seed) % 2)
            take_endpoint(s, &r, &w, endpoint);
    }
    take_endpoint(s, &r, &w, endpoint);
    finish_endpoint(s, &r, endpoint);
    wspy_endpoint_free(endpoint);
    free(w.text.data);
    return r;
}

/* ---- another way: as the loop does, few events and little credit at a time, payloads packed or received in place --- */

typedef struct {
    wspy_protocol protocol;
    wspy_event events[4];
    wspy_detached detached;
    wspy_bytes replies;
    uint8_t *arena;  /* room for the whole stream */
    uint8_t *packed; /* the same, or NULL */
    size_t waiting;  /* bytes in the arena that were not consumed yet */
} receiver;

static wspy_sink open_sink(receiver *v, uint32_t *seed)
{
    return (wspy_sink){
        .events = v->events,
        .capacity = 1 + next_random(seed) % 4,
        .arena = v->arena,
        .packed = v->packed,
        .detached = &v->detached,
        .replies = &v->replies,
        .credit = 1 + next_random(seed) % 3,
        .wants = WSPY_WANT_PING | WSPY_WANT_PONG,
    };
}

static void take_sink(const setup *s, result *r, watch *w, receiver *v, const wspy_sink *sink)
{
    places p = {.arena = v->arena, .packed = v->packed, .detached = &v->detached};
    require(sink->count <= sink->capacity);
    require(sink->packed_length <= v->waiting);
    take_replies(s, r, v->replies.data, v->replies.length);
    take_events(s, r, w, v->events, sink->count, &p);
    v->replies.length = 0;
    wspy_detached_release(&v->detached);
}

/* Receives up to piece bytes where the protocol wants them. Returns how many. */
static size_t receive_in_place(const setup *s, result *r, watch *w, receiver *v, const uint8_t *data,
                               size_t piece, uint32_t *seed)
{
    size_t room;
    uint8_t *place = v->waiting ? NULL : wspy_protocol_room(&v->protocol, &room);
    if (!place)
        return 0;
    size_t count = piece < room ? piece : room;
    memcpy(place, data, count);
    wspy_sink sink = open_sink(v, seed);
    wspy_protocol_filled(&v->protocol, count, &sink);
    take_sink(s, r, w, v, &sink);
    return count;
}

static void decode_waiting(const setup *s, result *r, watch *w, receiver *v, uint32_t *seed)
{
    for (int is_full = 1; is_full && v->waiting;) {
        wspy_sink sink = open_sink(v, seed);
        size_t used = wspy_protocol_feed(&v->protocol, v->arena, v->waiting, &sink);
        require(used <= v->waiting);
        take_sink(s, r, w, v, &sink);
        is_full = sink.count == sink.capacity || sink.credit == 0;
        v->waiting -= used;
        memmove(v->arena, v->arena + used, v->waiting);
    }
    require(!v->waiting || v->waiting < WSPY_CONTROL_FRAME_MAX); /* nothing longer has to wait */
}

static result run_receiver(const setup *s, const uint8_t *stream, size_t length)
{
    result r = {.close_code = -1};
    watch w = {0};
    receiver v = {.arena = malloc(length + 1), .packed = s->seed & 8 ? malloc(length + 1) : NULL};
    uint32_t seed = s->seed + 1;
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    require(v.arena != NULL);
    wspy_protocol_init(&v.protocol, &s->limits, s->role, s->granularity, s->rsv, s->opcodes);
    if (s->close_sent)
        require(wspy_protocol_close(&v.protocol, (const uint8_t *)"\x03\xe8", 2, frame) > 0);
    for (size_t at = 0; at < length;) {
        size_t piece = s->most ? next_random(&seed) % s->most + 1 : length;
        piece = piece < length - at ? piece : length - at;
        size_t direct = receive_in_place(s, &r, &w, &v, stream + at, piece, &seed);
        if (!direct) {
            memcpy(v.arena + v.waiting, stream + at, piece);
            v.waiting += piece;
            decode_waiting(s, &r, &w, &v, &seed);
        }
        at += direct ? direct : piece;
    }
    r.error = v.protocol.error;
    take_close(s, &r, frame, wspy_protocol_owed_close(&v.protocol, frame));
    check_result(s, &r);
    wspy_protocol_dispose(&v.protocol);
    wspy_detached_free(&v.detached);
    wspy_bytes_free(&v.replies);
    free(v.arena);
    free(v.packed);
    free(w.text.data);
    return r;
}

/* ---- the target ---- */

static setup read_setup(const uint8_t *input)
{
    static const uint64_t sizes[] = {1 << 20, UINT64_MAX, 5000, 126, 16, 3, 1, 0};
    static const uint64_t fragment_sizes[] = {UINT64_MAX, 4999, 5, 0};
    static const uint32_t counts[] = {131072, UINT32_MAX, 10, 4, 3, 2, 1, 0};
    static const uint32_t most[] = {1, 2, 3, 7, 20, 150, 3000, 9000};
    uint8_t role = input[SETUP_ROLE];
    uint8_t limits = input[SETUP_LIMITS];
    uint8_t cuts = input[SETUP_CUTS];
    return (setup){
        .role = role & 1 ? WSPY_CLIENT : WSPY_SERVER,
        .granularity = role & 2 ? WSPY_FRAMES : WSPY_MESSAGES,
        .close_sent = (role & 0x0c) == 0x0c,
        .rsv = (role & 0x10 ? WSPY_RSV1 : 0) | (role & 0x20 ? WSPY_RSV2 | WSPY_RSV3 : 0),
        .opcodes = (role & 0x40 ? 0x0088 : 0) | (role & 0x80 ? 0x8800 : 0) | (role & 0x20 ? 0x0007 : 0),
        .limits =
            {
                .max_size = sizes[limits & 7],
                .max_fragment_size = fragment_sizes[limits >> 3 & 3],
                .max_fragments = counts[limits >> 5],
            },
        .seed = cuts,
        .most = most[cuts & 7],
    };
}

static void require_same(const result *a, const result *b)
{
    require(equal(&a->events, &b->events) && equal(&a->pongs, &b->pongs));
    require(a->error == b->error && a->ended == b->ended && a->close_code == b->close_code);
}

/* With one allocation that fails, either nothing changes, or it ends early and says why. */
static void run_with_fault(const setup *s, uint32_t nth, const result *whole, const uint8_t *stream,
                           size_t length)
{
    wspy_sys_fail(WSPY_SYS_ALLOCATE, nth, 1, ENOMEM, 0);
    result r = run_endpoint(s, stream, length);
    wspy_sys_fail(WSPY_SYS_ALLOCATE, 0, 0, 0, 0);
    if (r.error == WSPY_ERROR_NO_MEMORY)
        require(begins_with(&whole->events, &r.events) && begins_with(&whole->pongs, &r.pongs));
    else
        require_same(whole, &r);
    release(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < SETUP_SIZE)
        return 0;
    setup in_pieces = read_setup(input);
    setup at_once = in_pieces;
    at_once.most = 0;
    const uint8_t *stream = input + SETUP_SIZE;
    size_t length = size - SETUP_SIZE;
    result whole = run_endpoint(&at_once, stream, length);
    result cut = run_endpoint(&in_pieces, stream, length);
    result received = run_receiver(&in_pieces, stream, length);
    require(whole.error == 0 || whole.error <= WSPY_ERROR_RSV);
    require_same(&whole, &cut);
    require_same(&whole, &received);
    if (input[SETUP_FAULT])
        run_with_fault(&in_pieces, input[SETUP_FAULT], &whole, stream, length);
    release(&whole);
    release(&cut);
    release(&received);
    return 0;
}
