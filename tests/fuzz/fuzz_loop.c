// Does the whole loop keep its promises, whatever peers, callers and the kernel do to it?
// links: fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c frame.c mask.c utf8.c timers.c
// links: endpoint.c errors.c
// options: -max_len=1024
//
// An input is a script: settings, then operations of peers, callers, the clock and the kernel. For each connection the
// harness keeps what it was told and what it asked for, and an endpoint that decodes the same bytes undisturbed. Events
// and wire are compared with these after each turn; whenever the loop falls asleep nothing may be left to do.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "core.h"
#include "fake_kernel.h"
#include "sys.h"

enum { COMMANDS_MAX = 1500, COMMANDS_LAST = 4 * FAKE_PEERS, OPERATIONS_MAX = 500, BYTES_MAX = 4 << 20 };
enum { SPIN_MAX = 500, NEVER = INT32_MAX };
enum { MANY_SIZE = 6 }; /* of a short frame, so that a window can end where one does */
enum { KEPT_MAX = 64 << 10, LISTEN_PAUSE_NS = 120000000 };

static void fail(const char *function, int line, const char *what)
{
    fprintf(stderr, "broken in %s, line %d: %s\n", function, line, what);
    abort();
}

#define require(condition) ((condition) ? (void)0 : fail(__func__, __LINE__, #condition))

/* ---- what is known of each connection ---- */

enum state {
    WAITING,  /* its head is not complete, or no head since the last answer */
    DECIDING, /* its head was reported */
    ANSWERED, /* over HTTP, without keep-alive */
    ACCEPTED,
    GONE /* CLOSED was reported */
};

/* What must come out at the other end, in this order. */
typedef struct {
    uint8_t *bytes;
    size_t length;
    enum kind { RESPONSE, OPENING, MESSAGE, BROADCAST, REFUSAL } kind;
    int is_marked;
} item;

typedef struct {
    enum state state;
    uint64_t handle;
    size_t position; /* in the peer's stream: behind the last head */
    int heads;
    int is_bad, is_due; /* the head; its answer was not asked for yet */
    int opened;
    int awaits_finish, is_finished;                           /* ENDING was reported, FINISH was applied */
    int owes_drained;                                         /* it was full, so somebody may wait for room */
    int paused_from, aborted_from, refused_from, failed_from; /* turns */
    int fail_code;                                            /* of the first FAIL */
    uint32_t credit;
    int close_count; /* CLOSE commands that were applied */
    uint8_t close_payload[125];
    size_t close_length;
    uint64_t sent; /* of SENT events */
    uint32_t pinged;
    int got_close; /* a CLOSE event */
    int error;     /* of its CLOSED event */
    size_t out_length_at_end;
    /* the wire */
    item *items;
    uint32_t item_count, item_next;
    size_t checked;
    int wire_opened, wire_closed, broadcasts_end;
    uint64_t wire_marks;
    uint32_t wire_pings;
    /* the reference */
    wspy_endpoint *reference;
    size_t fed;
    uint32_t event_next, pong_next;
} guest;

typedef struct {
    uint64_t key;
    uint8_t *payload; /* exactly as long as it is said to be */
    uint32_t length;
    uint32_t
        far_from; /* the header of a frame whose payload is sent from where it lies; 0: everything is copied */
} command;

static struct {
    const uint8_t *at, *end; /* of the input */
    wspy_settings settings;
    wspy_loop *loop;
    uint8_t *packed;
    guest guests[FAKE_PEERS];
    command commands[COMMANDS_MAX + COMMANDS_LAST];
    uint32_t command_count, applied;
    uint32_t overlap;
    uint32_t for_wait; /* commands that another thread submits during the next wait */
    int listeners[FAKE_LISTENERS], is_listening[FAKE_LISTENERS];
    int pipe;
    int turn;
    size_t bytes;    /* made up in this run */
    uint32_t number; /* of the last payload */
    uint64_t messages;
    int is_ending; /* the script is over */
} run;

static uint8_t take(void)
{
    return run.at < run.end ? *run.at++ : 0;
}

static void *copy(const void *data, size_t length)
{
    uint8_t *made = malloc(length ? length : 1);
    require(made != NULL);
    if (length)
        memcpy(made, data, length);
    return made;
}

static guest *guest_of(const fake_peer *peer)
{
    return &run.guests[peer - fake.peers];
}

static fake_peer *peer_of(const guest *g)
{
    return &fake.peers[g - run.guests];
}

static guest *any_guest(void)
{
    uint8_t choice = take();
    return fake.peer_count ? &run.guests[choice % fake.peer_count] : NULL;
}

static guest *guest_by_handle(uint64_t handle)
{
    for (int i = 0; i < fake.peer_count; i++)
        if (run.guests[i].handle == handle)
            return &run.guests[i];
    return NULL;
}

/* ---- frames and payloads ---- */

static size_t put_header(uint8_t *output, uint8_t first, uint64_t length, uint8_t mask_bit)
{
    int extended = length < 126 ? 0 : length < 65536 ? 2 : 8;
    output[0] = first;
    output[1] = (uint8_t)(mask_bit | (extended == 0 ? length : extended == 2 ? 126 : 127));
    for (int i = 0; i < extended; i++)
        output[2 + i] = (uint8_t)(length >> (8 * (extended - 1 - i)));
    return 2 + (size_t)extended;
}

/* Begins with a number of its own. */
static void fill_payload(uint8_t *output, size_t length)
{
    char number[9];
    snprintf(number, sizeof number, "%08x", ++run.number);
    for (size_t i = 0; i < length; i++)
        output[i] = (uint8_t)number[i % 8];
}

static size_t clip(size_t length)
{
    if (run.bytes + length > BYTES_MAX)
        length &= 63;
    run.bytes += length;
    return length;
}

static size_t any_length(void)
{
    static const size_t lengths[] = {0,    1,    5,    9,    125,   126,   1000,  4095,
                                     4096, 4097, 8192, 8193, 20000, 65535, 65536, 70000};
    return clip(lengths[take() % (sizeof lengths / sizeof *lengths)]);
}

/* ---- the wire ---- */

static void add_item(guest *g, enum kind kind, const uint8_t *bytes, size_t length, int is_marked)
{
    if ((g->item_count & (g->item_count - 1)) == 0) {
        g->items = realloc(g->items, sizeof *g->items * (g->item_count ? g->item_count * 2 : 1));
        require(g->items != NULL);
    }
    g->items[g->item_count++] =
        (item){.bytes = copy(bytes, length), .length = length, .kind = kind, .is_marked = is_marked};
}

static int may_be_skipped(const item *i)
{
    return i->kind == BROADCAST || i->kind == REFUSAL;
}

/* The wire goes on with an item: returns its size, 0 if not all of it is there yet, -1 if with none. */
static ssize_t match_item(guest *g, const uint8_t *data, size_t length)
{
    int skips = 0;
    for (uint32_t i = g->item_next; i < g->item_count; i++) {
        const item *next = &g->items[i];
        int fits = !(next->kind == BROADCAST && g->broadcasts_end);
        if (fits && memcmp(next->bytes, data, length < next->length ? length : next->length) == 0) {
            if (length < next->length)
                return 0;
            g->item_next = i + 1;
            g->broadcasts_end |= skips;
            g->wire_marks += next->is_marked ? 1 : 0;
            g->wire_opened |= next->kind == OPENING;
            return (ssize_t)next->length;
        }
        if (!may_be_skipped(next))
            return -1;
        skips |= next->kind == BROADCAST; /* its end is decided: no other one follows */
    }
    return -1;
}

static void feed_reference(guest *g)
{
    const fake_peer *peer = peer_of(g);
    if (!g->reference || g->fed == peer->in_visible)
        return;
    fake.is_exempt = 1;
    wspy_endpoint_feed(g->reference, peer->in + g->fed, peer->in_visible - g->fed);
    fake.is_exempt = 0;
    g->fed = peer->in_visible;
}

static int reference_runs(const guest *g)
{
    return wspy_endpoint_error(g->reference) == 0 && !(wspy_endpoint_close_state(g->reference) & 2);
}

static const uint8_t *reference_payload(const guest *g, const wspy_event *event, uint64_t *length)
{
    *length = event->length;
    if (event->kind & WSPY_EVENT_DETACHED)
        return wspy_endpoint_detached(g->reference, event->start, length);
    return wspy_endpoint_arena(g->reference) + event->start;
}

static int reference_equals(const guest *g, const wspy_event *event, const uint8_t *payload, size_t length)
{
    uint64_t expected_length;
    const uint8_t *expected = reference_payload(g, event, &expected_length);
    return expected_length == length && (length == 0 || memcmp(expected, payload, length) == 0);
}

/* §5.5.3: the payload of a Ping, in order; older ones may have gone unanswered. */
static void check_pong(guest *g, const uint8_t *payload, size_t length)
{
    const wspy_event *events = wspy_endpoint_events(g->reference);
    uint32_t count = wspy_endpoint_event_count(g->reference);
    for (uint32_t i = g->pong_next; i < count; i++) {
        if (events[i].kind != WSPY_EVENT_PING || !reference_equals(g, &events[i], payload, length))
            continue;
        g->pong_next = i + 1;
        return;
    }
    fail(__func__, __LINE__, "a Pong that answers no Ping");
}

/* Whether the newest Ping is without a Pong. Of equal ones the first was taken for the one that was answered. */
static int owes_pong(const guest *g)
{
    const wspy_event *events = wspy_endpoint_events(g->reference);
    uint32_t newest = wspy_endpoint_event_count(g->reference);
    while (newest > g->pong_next && events[newest - 1].kind != WSPY_EVENT_PING)
        newest--;
    if (newest == g->pong_next)
        return 0;
    uint64_t length;
    const uint8_t *payload = reference_payload(g, &events[newest - 1], &length);
    return g->pong_next == 0 || !reference_equals(g, &events[g->pong_next - 1], payload, length);
}

/* Ours, the echo of the peer's, or what tells of its mistake. */
static void check_close(guest *g, const uint8_t *payload, size_t length)
{
    g->wire_closed = 1;
    if (g->close_count && length == g->close_length && memcmp(payload, g->close_payload, length) == 0)
        return;
    if (g->fail_code && length == 2 && payload[0] << 8 == (g->fail_code & 0xff00) &&
        payload[1] == (g->fail_code & 0xff))
        return;
    int error = wspy_endpoint_error(g->reference);
    uint8_t expected[2] = {0};
    if (error) {
        int code = wspy_error_close_code(error);
        expected[0] = (uint8_t)(code >> 8);
        expected[1] = (uint8_t)code;
        require(length == 2 && memcmp(payload, expected, 2) == 0);
        return;
    }
    require(wspy_endpoint_close_state(g->reference) & 2);
    uint32_t count = wspy_endpoint_event_count(g->reference);
    const wspy_event *last = wspy_endpoint_events(g->reference) + count - 1;
    require(count && last->kind == WSPY_EVENT_CLOSE && length == (last->length ? 2 : 0));
    require(length == 0 || memcmp(wspy_endpoint_arena(g->reference) + last->start, payload, length) == 0);
}

/* A control frame of the core's own. Returns its size. */
static size_t check_control(guest *g, const uint8_t *frame)
{
    size_t length = frame[1];
    feed_reference(g);
    switch (frame[0]) {
    case 0x8a:
        check_pong(g, frame + 2, length);
        break;
    case 0x89:
        require(length == 4 && run.settings.ping_interval_ms != WSPY_FOREVER);
        g->wire_pings++;
        break;
    default:
        check_close(g, frame + 2, length);
    }
    return 2 + length;
}

static void check_wire(guest *g)
{
    const fake_peer *peer = peer_of(g);
    while (g->checked < peer->out_length) {
        const uint8_t *data = peer->out + g->checked;
        size_t length = peer->out_length - g->checked;
        require(!g->wire_closed); /* §5.5.1 */
        int is_control = g->wire_opened && (data[0] & 0xf0) == 0x80 && data[0] & 0x08;
        if (is_control && (length < 2 || length < 2 + (size_t)(data[1] & 0x7f)))
            return;
        ssize_t size = match_item(g, data, length);
        if (size == 0)
            return;
        if (size < 0) {
            require(is_control && data[0] <= 0x8a && data[1] <= 125);
            size = (ssize_t)check_control(g, data);
        }
        g->checked += (size_t)size;
    }
}

static void check_wires(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        if (run.guests[i].checked < fake.peers[i].out_length)
            check_wire(&run.guests[i]);
}

/* ---- commands ---- */

static uint64_t handle_in(uint64_t key)
{
    return key & ((UINT64_C(1) << WSPY_COMMAND_SHIFT) - 1);
}

static void note_accept(guest *g, const command *c)
{
    wspy_accept accept;
    if (!g || g->state != DECIDING || c->length < sizeof accept)
        return;
    memcpy(&accept, c->payload, sizeof accept);
    g->state = ACCEPTED;
    g->credit = accept.credit;
    g->fed = g->position;
    fake.is_exempt = 1;
    g->reference =
        wspy_endpoint_new(WSPY_SERVER, accept.granularity, &run.settings.limits, accept.rsv, accept.opcodes);
    fake.is_exempt = 0;
    require(g->reference != NULL);
    add_item(g, OPENING, c->payload + sizeof accept, c->length - sizeof accept, 0);
}

static void note_respond(guest *g, const command *c)
{
    if (!g || g->state != DECIDING || c->length < 1)
        return;
    add_item(g, RESPONSE, c->payload + 1, c->length - 1, 0);
    g->state = c->payload[0] && !g->is_bad ? WAITING : ANSWERED;
}

static void note_close(guest *g, const command *c)
{
    if (!g || g->state != ACCEPTED || c->length > 125 || g->close_count++)
        return;
    g->paused_from = NEVER;
    g->close_length = c->length;
    if (c->length)
        memcpy(g->close_payload, c->payload, c->length);
}

static void note_fail(guest *g, const command *c, int first_turn)
{
    uint16_t code;
    if (!g || g->state != ACCEPTED || g->fail_code || c->length != sizeof code)
        return;
    memcpy(&code, c->payload, sizeof code);
    if (!wspy_close_code_valid(code))
        return;
    g->fail_code = code;
    g->failed_from = first_turn;
}

static void note_grant(guest *g, const command *c)
{
    uint32_t more;
    if (!g || g->state != ACCEPTED || c->length != sizeof more)
        return;
    memcpy(&more, c->payload, sizeof more);
    g->credit = more > WSPY_FOREVER - g->credit ? WSPY_FOREVER : g->credit + more;
}

static void note_broadcast_to(guest *g, const uint8_t *frame, size_t length, int is_marked)
{
    if (g && g->state == ACCEPTED)
        add_item(g, BROADCAST, frame, length, is_marked);
}

static void note_broadcast(const command *c)
{
    uint32_t count;
    int is_marked = handle_in(c->key) == WSPY_BROADCAST_MARK;
    if (c->length < sizeof count)
        return;
    memcpy(&count, c->payload, sizeof count);
    size_t start = sizeof count + (count == WSPY_FOREVER ? 0 : 8 * (size_t)count);
    if (c->length < start)
        return;
    for (int i = 0; count == WSPY_FOREVER && i < fake.peer_count; i++)
        note_broadcast_to(&run.guests[i], c->payload + start, c->length - start, is_marked);
    for (uint32_t i = 0; count != WSPY_FOREVER && i < count; i++) {
        uint64_t handle;
        memcpy(&handle, c->payload + sizeof count + 8 * (size_t)i, 8);
        note_broadcast_to(handle ? guest_by_handle(handle) : NULL, c->payload + start, c->length - start,
                          is_marked);
    }
}

static void note_refuse(const command *c, int first_turn)
{
    for (int i = 0; i < fake.peer_count; i++) {
        guest *g = &run.guests[i];
        if (g->state != WAITING || fake.peers[i].fd < 0)
            continue;
        add_item(g, REFUSAL, c->payload, c->length, 0);
        if (g->refused_from == NEVER)
            g->refused_from = first_turn;
    }
}

/* first_turn: the turn whose events know of the command. */
static void note(const command *c, int first_turn)
{
    int kind = (int)(c->key >> WSPY_COMMAND_SHIFT);
    trace(" command %d to %#llx, %u bytes\n", kind, (unsigned long long)handle_in(c->key), c->length);
    guest *g = handle_in(c->key) ? guest_by_handle(handle_in(c->key)) : NULL;
    int is_accepted = g && g->state == ACCEPTED;
    switch (kind) {
    case WSPY_COMMAND_SEND:
    case WSPY_COMMAND_SEND | WSPY_COMMAND_MARK:
        if (is_accepted)
            add_item(g, MESSAGE, c->payload, c->length, kind & WSPY_COMMAND_MARK);
        return;
    case WSPY_COMMAND_ACCEPT:
        note_accept(g, c);
        return;
    case WSPY_COMMAND_RESPOND:
        note_respond(g, c);
        return;
    case WSPY_COMMAND_CLOSE:
        note_close(g, c);
        return;
    case WSPY_COMMAND_ABORT:
        if (g && g->aborted_from == NEVER)
            g->aborted_from = first_turn;
        return;
    case WSPY_COMMAND_FAIL:
        note_fail(g, c, first_turn);
        return;
    case WSPY_COMMAND_PAUSE:
        if (g && g->paused_from == NEVER)
            g->paused_from = first_turn;
        return;
    case WSPY_COMMAND_RESUME:
        if (g)
            g->paused_from = NEVER;
        return;
    case WSPY_COMMAND_FINISH:
        if (g)
            g->is_finished = 1;
        return;
    case WSPY_COMMAND_GRANT:
        note_grant(g, c);
        return;
    case WSPY_COMMAND_BROADCAST:
        note_broadcast(c);
        return;
    case WSPY_COMMAND_REFUSE:
        note_refuse(c, first_turn);
        return;
    default:
        return;
    }
}

/* header: of the one frame in the payload, or 0. */
static void push_frame(uint64_t handle, int kind, const void *payload, size_t length, size_t header)
{
    if (run.command_count >= COMMANDS_MAX + (run.is_ending ? COMMANDS_LAST : 0))
        return;
    command *c = &run.commands[run.command_count++];
    int is_far = length > 8192 || run.command_count % 5 == 0;
    *c = (command){.key = (uint64_t)kind << WSPY_COMMAND_SHIFT | handle,
                   .payload = copy(payload, length),
                   .length = (uint32_t)length,
                   .far_from = is_far ? (uint32_t)header : 0};
}

static void push(uint64_t handle, int kind, const void *payload, size_t length)
{
    push_frame(handle, kind, payload, length, 0);
}

/* A batch as the boundary wants it: it ends where it says, and is not aligned. */
typedef struct {
    char *memory, *data;
    size_t size;
} batch;

static size_t put_record(char *data, uint64_t key, const void *payload, uint32_t length)
{
    memcpy(data, &key, 8);
    memcpy(data + 8, &length, 4);
    if (length)
        memcpy(data + 12, payload, length);
    return 12 + (size_t)length;
}

static size_t put_command(char *data, const command *c)
{
    if (c->far_from == 0)
        return put_record(data, c->key, c->payload, c->length);
    wspy_far far = {(uint64_t)(uintptr_t)(c->payload + c->far_from), c->length - c->far_from};
    uint8_t payload[sizeof far + 10];
    memcpy(payload, &far, sizeof far);
    memcpy(payload + sizeof far, c->payload, c->far_from);
    return put_record(data, c->key | (uint64_t)WSPY_COMMAND_FAR << WSPY_COMMAND_SHIFT, payload,
                      (uint32_t)sizeof far + c->far_from);
}

static batch pack(uint32_t first, uint32_t end)
{
    size_t most = 8;
    for (uint32_t i = first; i < end; i++)
        most += 12 + sizeof(wspy_far) + run.commands[i].length;
    char *scratch = malloc(most);
    require(scratch != NULL);
    uint64_t number = first;
    memcpy(scratch, &number, 8);
    batch b = {.size = 8};
    for (uint32_t i = first; i < end; i++)
        b.size += put_command(scratch + b.size, &run.commands[i]);
    b.memory = malloc(b.size + 1);
    require(b.memory != NULL);
    b.data = b.memory + 1;
    memcpy(b.data, scratch, b.size);
    free(scratch);
    return b;
}

static uint64_t applied(void)
{
    return *wspy_loop_applied(run.loop);
}

static batch next_batch(uint32_t end, int first_turn)
{
    uint32_t back = run.overlap < run.applied ? run.overlap : run.applied;
    batch b = pack(run.applied - back, end);
    for (; run.applied < end; run.applied++)
        note(&run.commands[run.applied], first_turn);
    return b;
}

static uint32_t backlog_of(const guest *g)
{
    return g->handle ? wspy_loop_backlogs(run.loop)[g->handle & WSPY_SLOT_MASK] : 0;
}

/* Who finds a connection full from here on waits for DRAINED. */
static void note_full(void)
{
    if (!(run.settings.wants & WSPY_WANT_DRAINED))
        return;
    for (int i = 0; i < fake.peer_count; i++) {
        guest *g = &run.guests[i];
        g->owes_drained |= g->state == ACCEPTED && g->opened && backlog_of(g) > run.settings.write_limit;
    }
}

static void submit(uint32_t most)
{
    uint32_t left = run.command_count - run.applied;
    batch b = next_batch(run.applied + (most < left ? most : left), run.turn + 1);
    if (b.size > 8 && run.command_count & 1) /* without its last byte it has no last command */
        require(wspy_loop_submit(run.loop, b.data, b.size - 1) == WSPY_ERROR_ARGUMENT);
    require(wspy_loop_submit(run.loop, b.data, b.size) == WSPY_OK && applied() == run.applied);
    free(b.memory);
    check_wires();
    note_full();
}

/* What other threads may do while the loop waits, and what they may not. */
static void on_wait(void)
{
    fake.on_wait = NULL;
    static const char none[8];
    require(wspy_loop_turn(run.loop, none, sizeof none, 0) == WSPY_ERROR_BUSY);
    require(wspy_loop_close(run.loop) == WSPY_ERROR_BUSY);
    submit(run.for_wait);
    run.for_wait = 0;
}

static void check_gap(void)
{
    uint64_t number = run.applied + 1;
    char gap[8 + 12] = {0};
    memcpy(gap, &number, 8);
    require(wspy_loop_submit(run.loop, gap, sizeof gap) == WSPY_ERROR_ARGUMENT);
    require(wspy_loop_submit(run.loop, gap, 7) == WSPY_ERROR_ARGUMENT);
    require(applied() == run.applied);
}

/* ---- events ---- */

static size_t head_bytes(const guest *g, const uint8_t **data)
{
    const fake_peer *peer = peer_of(g);
    *data = peer->in ? peer->in + g->position : NULL;
    return peer->in_visible - g->position;
}

static int scan_head(const guest *g, wspy_head_scanner *scanner, size_t length)
{
    const uint8_t *data;
    size_t available = head_bytes(g, &data);
    *scanner = (wspy_head_scanner){0};
    length = length < available ? length : available;
    return length ? wspy_head_feed(scanner, &run.settings.head, data, (uint32_t)length) : 0;
}

static int is_finite(uint32_t timeout_ms)
{
    return timeout_ms != WSPY_FOREVER;
}

static guest *guest_at_address(uint64_t handle)
{
    uint8_t address[16];
    uint32_t port, scope;
    require(wspy_loop_peer(run.loop, handle, address, &port, &scope) == 4);
    require(port >= 1 && port <= (uint32_t)fake.peer_count && memcmp(address, "\x7f\0\0\1", 4) == 0);
    return &run.guests[port - 1];
}

static guest *take_surfaced(uint64_t handle)
{
    guest *g = guest_at_address(handle);
    require(g->state == WAITING && (g->handle == 0 || g->handle == handle));
    require(g->aborted_from > run.turn && g->refused_from > run.turn);
    g->refused_from = NEVER; /* its head came up before the refusal, which was for others then */
    g->handle = handle;
    g->state = DECIDING;
    g->is_due = 1;
    return g;
}

static void take_head(uint64_t handle, const uint8_t *payload, size_t length)
{
    guest *g = take_surfaced(handle);
    wspy_head_scanner scanner;
    const uint8_t *data;
    require(scan_head(g, &scanner, SIZE_MAX) == (int)length);
    head_bytes(g, &data);
    require(memcmp(data, payload, length) == 0 && g->position + length <= peer_of(g)->in_read);
    g->position += length;
    g->heads++;
}

/* Python has the head, and did not answer. */
static void take_undecided(uint64_t handle)
{
    guest *g = guest_at_address(handle);
    require(g->state == DECIDING && !g->is_bad && g->handle == handle);
    require(g->aborted_from > run.turn && is_finite(run.settings.open_timeout_ms));
    g->is_bad = g->is_due = 1;
}

static void take_bad_head(uint64_t handle, int error)
{
    if (error == WSPY_ERROR_OPEN_TIMEOUT) {
        take_undecided(handle);
        return;
    }
    guest *g = take_surfaced(handle);
    wspy_head_scanner scanner;
    g->is_bad = 1;
    if (error != WSPY_ERROR_HEAD_TIMEOUT) {
        require(scan_head(g, &scanner, SIZE_MAX) == error);
        return;
    }
    require(scan_head(g, &scanner, peer_of(g)->in_read - g->position) == 0 && wspy_head_has_line(&scanner));
}

static int is_unwanted(const wspy_event *event)
{
    return (event->kind == WSPY_EVENT_PING && !(run.settings.wants & WSPY_WANT_PING)) ||
           (event->kind == WSPY_EVENT_PONG && !(run.settings.wants & WSPY_WANT_PONG));
}

/* What the peer's bytes lead to next; NULL: nothing more. */
static const wspy_event *next_expected(guest *g)
{
    feed_reference(g);
    const wspy_event *events = wspy_endpoint_events(g->reference);
    uint32_t count = wspy_endpoint_event_count(g->reference);
    while (g->event_next < count && is_unwanted(&events[g->event_next]))
        g->event_next++;
    return g->event_next < count ? &events[g->event_next] : NULL;
}

static void take_received(guest *g, uint32_t kind, const uint8_t *payload, size_t length)
{
    require(g->state == ACCEPTED && g->opened && !g->awaits_finish);
    require(run.turn < g->paused_from && run.turn < g->aborted_from && run.turn < g->failed_from);
    const wspy_event *expected = next_expected(g);
    require(expected && (expected->kind & ~(uint32_t)WSPY_EVENT_DETACHED) == kind);
    require(reference_equals(g, expected, payload, length));
    g->event_next++;
    g->got_close |= kind == WSPY_EVENT_CLOSE;
    if (kind == WSPY_EVENT_CLOSE)
        return;
    require(g->credit > 0);
    g->credit -= g->credit != WSPY_FOREVER;
    run.messages += (kind & 0x0f) < 8;
}

/* Ends that no answer would change. */
static int is_hard(int error)
{
    return error == WSPY_ERROR_NO_MEMORY || (error <= WSPY_ERROR_RESET && error >= WSPY_ERROR_ABORTED);
}

/* There was time to answer all that came before, unless the caller put an end to that, or no answer could be sent. */
static void check_end(const guest *g, int error)
{
    if (!g->opened || !(run.settings.wants & WSPY_WANT_ENDING) || g->close_count || is_hard(error))
        return;
    if (g->item_next < g->item_count || peer_of(g)->reset || fake.has_failed)
        return;
    require(g->awaits_finish);
    require(g->is_finished || g->aborted_from != NEVER || is_finite(run.settings.close_timeout_ms));
}

static void take_closed(guest *g, uint32_t code, uint32_t length)
{
    int error = -(int)(length & 0xff);
    require(g->state != GONE && (g->state != WAITING || g->heads)); /* what Python never saw ends in silence */
    int is_failed = error == WSPY_ERROR_EXTENSION;
    require(code == (uint32_t)(is_failed ? g->fail_code : error ? wspy_error_close_code(error) : 1005));
    require(!is_failed || g->fail_code);
    int is_violation = error <= WSPY_ERROR_RSV && error >= WSPY_ERROR_CLOSE_UTF8;
    require(error == 0 || error == WSPY_ERROR_NO_MEMORY || is_violation || is_failed ||
            (error <= WSPY_ERROR_EOF && error >= WSPY_ERROR_ABORTED));
    if (error == 0)
        require(g->got_close && g->wire_closed);
    feed_reference(g);
    if (is_violation)
        require(g->reference && wspy_endpoint_error(g->reference) == error);
    require(error != WSPY_ERROR_ABORTED || g->aborted_from != NEVER);
    check_end(g, error);
    g->state = GONE;
    g->error = error;
    g->out_length_at_end = peer_of(g)->out_length;
}

static void take_of_guest(guest *g, const wspy_event *event, uint32_t kind, const uint8_t *payload,
                          size_t length)
{
    require(g && g->state != GONE);
    switch (kind) {
    case WSPY_EVENT_OPENED:
        require(g->state == ACCEPTED && !g->opened && g->wire_opened);
        g->opened = 1;
        return;
    case WSPY_EVENT_SENT:
        require(g->opened && event->start > 0);
        g->sent += event->start;
        require(g->sent <= g->wire_marks);
        return;
    case WSPY_EVENT_PINGED:
        require(g->opened && run.settings.wants & WSPY_WANT_PINGED);
        g->pinged++;
        return;
    case WSPY_EVENT_ENDING:
        require(g->opened && run.settings.wants & WSPY_WANT_ENDING && !g->awaits_finish);
        g->awaits_finish = 1;
        if (run.turn & 3 || run.is_ending) /* sometimes it is forgotten */
            push(g->handle, WSPY_COMMAND_FINISH, "", 0);
        return;
    case WSPY_EVENT_DRAINED:
        require(g->opened && run.settings.wants & WSPY_WANT_DRAINED);
        g->owes_drained = 0;
        return;
    case WSPY_EVENT_CLOSED:
        take_closed(g, event->start, event->length);
        return;
    default:
        require((kind & ~(uint32_t)(0x0f | WSPY_EVENT_NOT_FINAL | WSPY_EVENT_RSV | WSPY_EVENT_CLAIMED)) == 0);
        take_received(g, kind, payload, length);
    }
}

static const uint8_t *payload_of(const wspy_event *event, size_t *packed, uint64_t *length)
{
    *length = event->length;
    if (event->kind & WSPY_EVENT_DETACHED)
        return wspy_loop_detached(run.loop, event->start, length);
    if (event->kind & WSPY_EVENT_APART) {
        require((size_t)event->start + event->length <= wspy_loop_arena_capacity(run.loop));
        return wspy_loop_arena(run.loop) + event->start;
    }
    require(event->start == *packed); /* one behind the other */
    *packed += event->length;
    return run.packed + event->start;
}

static void take_event(const wspy_event *event, size_t *packed)
{
    uint32_t kind = event->kind & ~(uint32_t)(WSPY_EVENT_APART | WSPY_EVENT_DETACHED);
    uint64_t handle = wspy_loop_handle(run.loop, event->slot);
    uint64_t length = 0;
    trace(" event %#x of %#llx, %u, %u\n", kind, (unsigned long long)handle, event->start, event->length);
    if (kind == WSPY_EVENT_ACCEPT_PAUSED) {
        require(event->start > 0);
        return;
    }
    if (kind == WSPY_EVENT_BAD_HEAD) {
        take_bad_head(handle, -(int)event->start);
        return;
    }
    int has_payload = (kind & 0x7f) <= WSPY_EVENT_HEAD;
    const uint8_t *payload = has_payload ? payload_of(event, packed, &length) : NULL;
    if (kind == WSPY_EVENT_HEAD)
        take_head(handle, payload, length);
    else
        take_of_guest(guest_by_handle(handle), event, kind, payload, length);
}

/* What holds between two turns. */
static void check_guests(void)
{
    for (int i = 0; i < fake.peer_count; i++) {
        const guest *g = &run.guests[i];
        if (g->state != ACCEPTED && g->state != GONE)
            continue;
        require(g->opened == g->wire_opened && g->sent <= g->wire_marks);
        /* without memory to queue the rest of a run it ends, if it doesn't already, whatever was sent of the run */
        require(g->sent == g->wire_marks || (g->state == GONE && fake.has_failed));
        require(g->state != GONE || g->out_length_at_end == fake.peers[i].out_length);
        if (run.settings.wants & WSPY_WANT_PINGED)
            require(g->wire_pings <= g->pinged);
    }
}

static void take_events(int count)
{
    size_t packed = 0;
    const wspy_event *events = wspy_loop_events(run.loop);
    require((size_t)count <= wspy_loop_event_capacity(run.loop));
    check_wires();
    for (int i = 0; i < count; i++)
        take_event(&events[i], &packed);
    check_guests();
    note_full();
}

static int turn(int timeout_ms)
{
    trace("turn %d, timeout %d\n", run.turn + 1, timeout_ms);
    run.turn++;
    uint32_t end = run.command_count - (run.for_wait < run.command_count - run.applied ? run.for_wait : 0);
    batch b = next_batch(end, run.turn);
    fake.on_wait = run.for_wait ? on_wait : NULL;
    int count = wspy_loop_turn(run.loop, b.data, b.size, timeout_ms);
    fake.on_wait = NULL;
    free(b.memory);
    require(count >= 0);
    take_events(count);
    require(applied() == run.applied);
    return count;
}

/* ---- asleep: nothing may be left to do ---- */

static int has_end(const fake_peer *peer)
{
    return peer->reset == RESET_PENDING || (peer->has_ended && !peer->end_was_read);
}

static int has_unread(const fake_peer *peer)
{
    return peer->in_visible > peer->in_read || has_end(peer);
}

static int saw_end(const fake_peer *peer)
{
    return peer->end_was_read || peer->reset == RESET_TOLD;
}

/* Nothing more is read: only the rest of the last answer keeps such a connection. */
static int is_leaving(const guest *g, const fake_peer *peer)
{
    return g->refused_from <= run.turn + 1 || saw_end(peer);
}

static void check_waiting(const guest *g, const fake_peer *peer, uint32_t backlog)
{
    wspy_head_scanner scanner;
    if (is_leaving(g, peer)) {
        require(backlog);
        return;
    }
    require(!has_unread(peer) && scan_head(g, &scanner, SIZE_MAX) == 0);
}

static void check_undecided(const guest *g, const fake_peer *peer)
{
    if (!saw_end(peer) && peer->in_read - g->position < KEPT_MAX)
        require(!has_unread(peer));
}

static void check_open(guest *g, const fake_peer *peer, uint32_t backlog)
{
    feed_reference(g);
    int runs = reference_runs(g);
    int is_quiet = runs && !backlog && !g->close_count;
    require(!g->owes_drained || backlog > run.settings.write_limit);
    if (is_quiet)
        require(g->item_next == g->item_count);
    if (g->failed_from <= run.turn + 1) {
        require(backlog || g->awaits_finish);
        return;
    }
    if (g->paused_from <= run.turn + 1 || g->credit == 0)
        return;
    require(!next_expected(g));
    require(runs || backlog || g->awaits_finish);
    if (!runs || g->awaits_finish)
        return;
    require(!has_unread(peer) && (!saw_end(peer) || backlog)); /* the other half may still take it */
    if (is_quiet)
        require(!owes_pong(g));
}

static void check_idle(guest *g, const fake_peer *peer)
{
    if (peer->fd < 0)
        return;
    if (peer->is_closed || peer->is_shut) {
        require(g->state != DECIDING && g->state != ACCEPTED);
        require(peer->is_closed || !has_unread(peer));
        return;
    }
    uint32_t backlog = backlog_of(g);
    require(!backlog || (!peer->window && !peer->reset));
    if (g->state == WAITING)
        check_waiting(g, peer, backlog);
    else if (g->state == DECIDING || (g->state == ACCEPTED && !g->opened))
        check_undecided(g, peer);
    else if (g->state == ACCEPTED)
        check_open(g, peer, backlog);
    require(g->state != ACCEPTED || g->opened || backlog);
    require(g->aborted_from > run.turn);
}

static void check_stats(void)
{
    wspy_stats stats;
    uint64_t open = 0;
    for (int i = 0; i < fake.peer_count; i++)
        open += fake.peers[i].fd >= 0 && !fake.peers[i].is_closed;
    require(wspy_loop_stats(run.loop, &stats) == WSPY_OK);
    require(stats.connections == open && stats.messages_received == run.messages);
    require(stats.accepted - stats.closed == open && stats.handshakes <= open);
}

static void check_asleep(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        check_idle(&run.guests[i], &fake.peers[i]);
    check_stats();
}

/* A listener with peers that the loop does not watch comes back by itself. */
static void check_listeners(void)
{
    uint64_t timer = fake_timer_at_ns();
    for (int i = 0; i < FAKE_LISTENERS; i++)
        if (run.is_listening[i] && fake_listener_waits(run.listeners[i]))
            require(timer && timer <= fake.now_ns + LISTEN_PAUSE_NS);
}

/* Turns until the loop sleeps, by itself or, in a foreign loop, by having nothing more to report. */
static void settle(int is_foreign)
{
    int idle = 0, count;
    for (int i = 0;; i++) {
        uint64_t progress = fake.progress;
        count = turn(is_foreign ? 0 : -1);
        if (is_foreign ? count == 0 && !fake_is_ready() : fake.has_slept)
            break;
        idle = count == 0 && fake.progress == progress ? idle + 1 : 0;
        require(idle < SPIN_MAX && i < 20 * SPIN_MAX);
    }
    require(count == 0);
    check_asleep();
    if (!is_foreign)
        check_listeners();
}

/* ---- operations: peers ---- */

static void connect_peer(int listener)
{
    static const size_t windows[] = {1 << 30, 1 << 30, 0, 1, 96, 5000, 70000, 1 << 30};
    size_t window = windows[take() % 8];
    if (listener >= 0 && !run.is_listening[listener])
        return;
    fake_peer *peer = fake_peer_new(listener < 0 ? -1 : run.listeners[listener], window);
    if (!peer)
        return;
    guest *g = guest_of(peer);
    *g = (guest){.paused_from = NEVER, .aborted_from = NEVER, .refused_from = NEVER, .failed_from = NEVER};
    if (listener >= 0)
        return;
    if (wspy_loop_adopt(run.loop, peer->fd, &g->handle) == WSPY_OK)
        return;
    g->handle = 0;
    fake_peer_drop(peer);
}

static void show(fake_peer *peer, size_t count)
{
    size_t hidden = peer->in_length - peer->in_visible;
    peer->in_visible += count < hidden ? count : hidden;
}

static void write_in(fake_peer *peer, const void *data, size_t length, int is_shown)
{
    if (peer->has_ended || peer->reset)
        return;
    fake_peer_write(peer, data, length);
    if (is_shown)
        show(peer, SIZE_MAX);
}

static void write_head(fake_peer *peer, int kind)
{
    static const char *const heads[] = {
        "GET /chat HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: here\r\n",
        "GET / HTTP/1.1\r\nHost : here\r\n\r\n",
        "\x16\x03\x01",
        "\r\nGET / HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3",
        "GET",
        " HTTP/1.1\r\nA: b\r\n\r\n",
    };
    const char *head = heads[kind & 7];
    write_in(peer, head, strlen(head), !(kind & 0x80));
}

static uint8_t first_byte(uint8_t choice)
{
    static const uint8_t usual[] = {0x81, 0x82, 0x89, 0x01, 0x80, 0x00, 0x02, 0x88, 0x8a, 0xc1, 0x83, 0xc2};
    return choice < 192 ? usual[choice % sizeof usual] : take();
}

static void fill_received(uint8_t *payload, size_t length, uint8_t first, uint8_t pattern)
{
    for (size_t i = 0; i < length; i++)
        payload[i] = pattern & 1 ? (i & 1 ? 0xa9 : 0xc3) : 'a';
    if (pattern & 2 && length)
        payload[length - 1] = take();
    if ((first & 0x0f) == 8 && length >= 2) {
        int code = pattern & 4 ? 1000 + take() : 1000;
        payload[0] = (uint8_t)(code >> 8);
        payload[1] = (uint8_t)code;
    } else if (length >= 8) {
        fill_payload(payload, 8);
    }
}

/* pattern: 8: not masked, 16: cut short, 32: not delivered yet */
static void write_frame(fake_peer *peer)
{
    uint8_t first = first_byte(take());
    size_t length = any_length();
    uint8_t pattern = take();
    uint8_t key[4] = {take(), 0x55, 0xaa, 0x0f};
    if (first & 0x08 && length > 125 && !(pattern & 64))
        length = 125;
    uint8_t *frame = malloc(length + 14);
    require(frame != NULL);
    size_t size = put_header(frame, first, length, pattern & 8 ? 0 : 0x80);
    fill_received(frame + size + 4, length, first, pattern);
    if (pattern & 8) {
        memmove(frame + size, frame + size + 4, length);
    } else {
        memcpy(frame + size, key, 4);
        size += 4;
        for (size_t i = 0; i < length; i++)
            frame[size + i] ^= key[i & 3];
    }
    size_t whole = size + length;
    write_in(peer, frame, pattern & 16 ? whole - length / 2 : whole, !(pattern & 32));
    free(frame);
}

static void write_raw(fake_peer *peer)
{
    uint8_t bytes[64];
    size_t length = take() % sizeof bytes;
    for (size_t i = 0; i < length; i++)
        bytes[i] = take();
    write_in(peer, bytes, length, 1);
}

/* So many at once that a turn has no room for them. */
static void write_burst(fake_peer *peer, uint8_t choice)
{
    size_t length = choice & 1 ? 4097 : choice >> 1 & 1;
    uint8_t frame[4097 + 14] = {0};
    size_t size = put_header(frame, choice & 4 ? 0x89 : 0x82, choice & 4 ? 4 : length, 0x80);
    size += 4 + (choice & 4 ? 4 : length);
    for (int i = 0; i < choice * 20 && run.bytes + size <= BYTES_MAX; i++) {
        run.bytes += size;
        write_in(peer, frame, size, 1);
    }
}

static void act_as_peer(uint8_t operation)
{
    guest *g = any_guest();
    if (!g)
        return;
    fake_peer *peer = peer_of(g);
    switch (operation % 8) {
    case 0:
        write_head(peer, take());
        return;
    case 1:
        write_raw(peer);
        return;
    case 2:
        show(peer, take() % 128u * 3);
        return;
    case 3:
        peer->has_ended |= peer->in_visible == peer->in_length;
        return;
    case 4:
        if (peer->reset == RESET_NONE)
            peer->reset = RESET_PENDING;
        return;
    case 5:
        peer->window += operation & 8 ? (size_t)1 << take() % 20 : take() * MANY_SIZE;
        return;
    case 6:
        if (operation >= 248) {
            write_burst(peer, take());
            return;
        }
        /* fall through */
    default:
        write_frame(peer);
    }
}

/* ---- operations: callers ---- */

static const char RESPONSE_101[] = "HTTP/1.1 101 Switching Protocols\r\n\r\n";

static void accept_guest(guest *g, uint8_t choice)
{
    static const uint32_t credits[] = {WSPY_FOREVER, WSPY_FOREVER, 0, 1, 2, 10, 100, WSPY_FOREVER - 1};
    uint8_t payload[sizeof(wspy_accept) + sizeof RESPONSE_101 - 1];
    wspy_accept accept = {.credit = credits[choice & 7],
                          .granularity = choice & 8 ? WSPY_FRAMES : WSPY_MESSAGES,
                          .rsv = choice & 16 ? WSPY_RSV1 : 0,
                          .opcodes = (choice & 32 ? 0x0808 : 0) | (choice & 64 ? 0x0007 : 0)};
    if (g->state == WAITING || (g->state == DECIDING && (!g->is_due || g->is_bad)))
        return;
    g->is_due = 0;
    memcpy(payload, &accept, sizeof accept);
    memcpy(payload + sizeof accept, RESPONSE_101, sizeof RESPONSE_101 - 1);
    push(g->handle, WSPY_COMMAND_ACCEPT, payload, sizeof payload);
}

static void respond_to(guest *g, uint8_t choice)
{
    char payload[80 + 20000];
    if (g->state == WAITING || (g->state == DECIDING && !g->is_due))
        return;
    g->is_due = 0;
    size_t body = choice & 64 ? clip(20000) : 8;
    int length = snprintf(payload, sizeof payload, "?HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", body);
    fill_payload((uint8_t *)payload + length, body);
    payload[0] = choice & 1 && !g->is_bad;
    push(g->handle, WSPY_COMMAND_RESPOND, payload, (size_t)length + body);
}

static void send_message(guest *g, int kind, uint8_t first)
{
    size_t length = any_length();
    uint8_t *frame = malloc(length + 10);
    require(frame != NULL);
    size_t size = put_header(frame, first, length, 0);
    fill_payload(frame + size, length);
    push_frame(g->handle, kind, frame, size + length, size);
    free(frame);
}

/* Frames as the caller made them: a message, a fragmented one, two, a Ping. */
static void send_frames(guest *g, int kind)
{
    static const uint8_t shapes[4][3] = {{0x82, 0, 0}, {0x02, 0x00, 0x80}, {0x81, 0x82, 0}, {0x89, 0, 0}};
    uint8_t choice = take();
    const uint8_t *shape = shapes[choice & 3];
    size_t length = (choice & 3) == 3 ? 9 : any_length() / 3;
    uint8_t *frames = malloc(3 * (length + 10));
    require(frames != NULL);
    size_t size = 0;
    for (int i = 0; i < 3; i++) {
        if (i > 0 && shape[i] == 0 && (choice & 3) != 1)
            break;
        size += put_header(frames + size, shape[i], length, 0);
        fill_payload(frames + size, length);
        size += length;
    }
    push(g->handle, kind, frames, size);
    free(frames);
}

static void close_guest(guest *g, uint8_t choice)
{
    uint8_t payload[130] = {0x03, 0xe8};
    static const size_t lengths[] = {0, 2, 9, 125, 126, 130, 2, 0};
    memset(payload + 2, 'x', sizeof payload - 2);
    push(g->handle, WSPY_COMMAND_CLOSE, payload, lengths[choice & 7]);
}

/* What an extension does, which has seen a message; sometimes with what is no close code. */
static void fail_guest(guest *g, uint8_t choice)
{
    static const uint16_t codes[] = {1002, 1007, 1009, 3000, 4999, 1006, 0, 5000};
    if (g->opened)
        push(g->handle, WSPY_COMMAND_FAIL, &codes[choice & 7], choice & 8 ? 1 : 2);
}

static void grant(guest *g, uint8_t choice)
{
    static const uint32_t amounts[] = {1, 2, 5, 0, WSPY_FOREVER, 100, 1, 3};
    uint8_t payload[5] = {0};
    memcpy(payload, &amounts[choice & 7], 4);
    push(g->handle, WSPY_COMMAND_GRANT, payload, choice < 250 ? 4 : choice - 250u);
}

static void broadcast(uint8_t choice)
{
    uint32_t count = choice & 1 ? WSPY_FOREVER : choice >> 1 & 7;
    size_t length = 9 + any_length();
    uint8_t *payload = malloc(4 + 8 * 8 + 10 + length);
    require(payload != NULL);
    memcpy(payload, &count, 4);
    size_t size = 4;
    for (uint32_t i = 0; count != WSPY_FOREVER && i < count; i++, size += 8) {
        guest *g = any_guest();
        uint64_t handle = g ? g->handle : take();
        memcpy(payload + size, &handle, 8);
    }
    size += put_header(payload + size, 0x82, length, 0);
    fill_payload(payload + size, length);
    push(choice & 16 ? WSPY_BROADCAST_MARK : 0, WSPY_COMMAND_BROADCAST, payload, size + length);
    free(payload);
}

/* What no caller should send, and nothing may come of. */
static void push_garbage(void)
{
    static const int harmless[] = {
        WSPY_COMMAND_ACCEPT, WSPY_COMMAND_RESPOND, WSPY_COMMAND_GRANT, WSPY_COMMAND_FAR, 7, 20, 4095,
        WSPY_COMMAND_NOTE};
    uint8_t payload[8] = {0};
    uint8_t choice = take();
    guest *g = any_guest();
    uint64_t handle = choice & 64 || !g ? (uint64_t)take() << 24 | take() : g->handle;
    if (choice & 128)
        handle = (handle + (UINT64_C(1) << 24)) & ((UINT64_C(1) << WSPY_COMMAND_SHIFT) - 1);
    size_t length = choice & 32 ? 7 : 0;
    int kind = harmless[choice & 7];
    if (kind == WSPY_COMMAND_RESPOND)
        length = 0;
    push(handle, kind, payload, length);
    if (choice & 16) {
        uint32_t count = 1000;
        memcpy(payload, &count, 4);
        push(0, WSPY_COMMAND_BROADCAST, payload, choice & 8 ? 8 : 3);
    }
}

static void refuse(void)
{
    static const char response[] = "HTTP/1.1 503 Service Unavailable\r\n\r\n";
    push(0, WSPY_COMMAND_REFUSE, response, sizeof response - 1);
}

static void command_guest(uint8_t operation)
{
    guest *g = any_guest();
    uint8_t choice = take();
    if (!g || !g->handle)
        return;
    switch (operation % 16) {
    case 0:
        accept_guest(g, choice);
        return;
    case 1:
        respond_to(g, choice);
        return;
    case 2:
        close_guest(g, choice);
        return;
    case 3:
        if (choice & 64)
            fail_guest(g, choice);
        else
            push(g->handle, WSPY_COMMAND_ABORT, "", 0);
        return;
    case 4:
        push(g->handle, WSPY_COMMAND_PAUSE, "", 0);
        return;
    case 5:
        push(g->handle, WSPY_COMMAND_RESUME, "", 0);
        return;
    case 6:
        grant(g, choice);
        return;
    case 7:
    case 8:
        send_frames(g, WSPY_COMMAND_SEND | (choice & 1));
        return;
    case 9:
        for (int i = 0; i < choice % 80; i++)
            push_frame(g->handle, WSPY_COMMAND_SEND | (i & 1), "\x81\4many", MANY_SIZE, 2);
        return;
    default:
        send_message(g, WSPY_COMMAND_SEND | (choice & 1), choice & 2 ? 0x81 : 0x82);
    }
}

/* ---- operations: kernel and clock ---- */

static void plan_fault(void)
{
    static const int errors[WSPY_SYS_CALL_COUNT][6] = {
        [WSPY_SYS_ALLOCATE] = {ENOMEM, ENOMEM, ENOMEM, ENOMEM, ENOMEM, ENOMEM},
        [WSPY_SYS_RECV] = {EAGAIN, ECONNRESET, ENOBUFS, ENOMEM, ETIMEDOUT, EAGAIN},
        [WSPY_SYS_SEND] = {EAGAIN, ECONNRESET, EPIPE, ENOBUFS, ENOMEM, EAGAIN},
        [WSPY_SYS_ACCEPT] = {EAGAIN, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM},
        [WSPY_SYS_EPOLL_CTL] = {ENOMEM, ENOSPC, ENOMEM, ENOSPC, ENOMEM, ENOSPC},
        [WSPY_SYS_EPOLL_WAIT] = {EINTR, EINTR, EINTR, EINTR, EINTR, EINTR},
        [WSPY_SYS_CREATE] = {EMFILE, ENFILE, ENOMEM, EMFILE, ENFILE, ENOMEM},
        [WSPY_SYS_TIMER] = {ENOMEM, ENOMEM, ENOMEM, ENOMEM, ENOMEM, ENOMEM},
    };
    uint8_t call = take() % WSPY_SYS_CALL_COUNT;
    uint8_t choice = take();
    fake_fail(call, take() % 32, 1 + (choice >> 4 & 7), errors[call][choice % 6]);
}

static void advance(uint8_t choice)
{
    static const uint32_t steps_ms[] = {1, 16, 17, 100, 500, 1100, 11000, 70000};
    fake.now_ns += (uint64_t)steps_ms[choice & 7] * 1000000u;
    fake.progress++;
}

static void poke(uint8_t choice)
{
    switch (choice & 7) {
    case 0:
        require(wspy_loop_wake(run.loop) == WSPY_OK);
        return;
    case 1:
        wspy_loop_alarm(run.loop, wspy_loop_now_ms(run.loop) + choice);
        return;
    case 2:
        wspy_loop_alarm(run.loop, choice & 8 ? UINT64_MAX : 0);
        return;
    case 3:
        wspy_loop_watch(run.loop, choice & 8 ? -1 : run.pipe);
        return;
    case 4:
        fake_pipe_write(run.pipe);
        return;
    case 5:
        fake.most_ready = choice >> 3 & 3;
        return;
    case 6:
        fake.rotation = choice;
        for (int i = 0; i < 70 && choice & 128; i++) /* a large arena shrinks */
            turn(0);
        return;
    default:
        check_gap();
    }
}

static void toggle_listener(uint8_t choice)
{
    int i = choice % FAKE_LISTENERS;
    int fd = run.listeners[i];
    int result = run.is_listening[i] ? wspy_loop_unlisten(run.loop, fd) : wspy_loop_listen(run.loop, fd);
    require(result == WSPY_OK || result == WSPY_ERROR_SYSTEM);
    run.is_listening[i] ^= result == WSPY_OK;
}

/* ---- the script ---- */

static void open_guests(uint8_t choice)
{
    int first = fake.peer_count;
    for (int i = 0; i <= (choice >> 6) * 25; i++)
        connect_peer(0);
    for (int i = first; i < fake.peer_count; i++)
        write_head(&fake.peers[i], 0);
    for (int i = 0; i < 3; i++)
        turn(0);
    for (int i = first; i < fake.peer_count; i++)
        if (run.guests[i].state == DECIDING)
            accept_guest(&run.guests[i], choice & 31);
}

static void operate(uint8_t operation)
{
    trace("operation %d, %d\n", operation, operation % 20);
    if (operation >= 192) {
        act_as_peer(operation);
        return;
    }
    if (operation >= 128) {
        command_guest(operation);
        return;
    }
    switch (operation % 20) {
    case 0:
        open_guests(take());
        return;
    case 1:
        connect_peer(operation % FAKE_LISTENERS);
        return;
    case 2:
        connect_peer(-1);
        return;
    case 3:
        turn(-1);
        return;
    case 4:
        turn(0);
        return;
    case 5:
        turn(take());
        return;
    case 6:
        submit(take());
        return;
    case 7:
        plan_fault();
        return;
    case 8:
        fake.short_size = 1 + take() % 200u;
        fake.short_calls = take();
        return;
    case 9:
        advance(take());
        return;
    case 10:
        poke(take());
        return;
    case 11:
        toggle_listener(take());
        return;
    case 12:
        run.for_wait = take() % 8;
        return;
    case 13:
        run.overlap = take() % 8;
        return;
    case 14:
        broadcast(take());
        return;
    case 15:
        push_garbage();
        return;
    case 16:
        if (take() < 32)
            refuse();
        return;
    default:
        settle(operation & 1);
    }
}

/* ---- ends ---- */

static void push_to_all(int kind, const void *payload, size_t length)
{
    for (int i = 0; i < fake.peer_count; i++)
        if (run.guests[i].handle)
            push(run.guests[i].handle, kind, payload, length);
}

static int is_surfaced(const guest *g)
{
    return g->state == DECIDING || g->state == ACCEPTED;
}

static void end_by_abort(void)
{
    push_to_all(WSPY_COMMAND_ABORT, "", 0);
    settle(0);
    for (int i = 0; i < fake.peer_count; i++)
        require(!is_surfaced(&run.guests[i]) || run.guests[i].aborted_from == NEVER);
}

/* Every peer resets: who reads learns of it. */
static void end_by_reset(void)
{
    static const uint8_t forever[4] = {0xff, 0xff, 0xff, 0xff};
    for (int i = 0; i < fake.peer_count; i++)
        if (fake.peers[i].reset == RESET_NONE)
            fake.peers[i].reset = RESET_PENDING;
    push_to_all(WSPY_COMMAND_RESUME, "", 0);
    push_to_all(WSPY_COMMAND_GRANT, forever, sizeof forever);
    push_to_all(WSPY_COMMAND_FINISH, "", 0);
    settle(0);
    for (int i = 0; i < fake.peer_count; i++)
        require(run.guests[i].state != ACCEPTED);
    end_by_abort();
}

/* After more time than all deadlines together. */
static void check_deadlines(const guest *g, const fake_peer *peer)
{
    const wspy_settings *s = &run.settings;
    if (peer->fd < 0 || peer->is_closed)
        return;
    require(!peer->is_shut);
    int is_opening = g->state == DECIDING || (g->state == ACCEPTED && !g->opened);
    if (is_opening && !g->close_count)
        require(!is_finite(s->open_timeout_ms));
    if (g->state == WAITING && is_leaving(g, peer))
        require(!is_finite(s->close_timeout_ms));
    else if (g->state == WAITING)
        require(!is_finite(g->heads ? s->idle_request_ms : s->open_timeout_ms) ||
                !is_finite(s->open_timeout_ms));
    if (g->state != ACCEPTED || !g->opened || !is_finite(s->close_timeout_ms))
        return;
    require(!g->close_count && !g->awaits_finish);
    require(g->paused_from != NEVER || g->credit == 0 || reference_runs(g));
}

static void end_by_time(void)
{
    static const uint32_t steps_ms[] = {17, 60, 1100, 1100, 21000, 21000, 1100, 70000, 1100, 70000};
    settle(0);
    for (size_t i = 0; i < sizeof steps_ms / sizeof *steps_ms; i++) {
        fake.now_ns += steps_ms[i] * UINT64_C(1000000);
        fake.progress++;
        settle(0);
    }
    for (int i = 0; i < fake.peer_count; i++)
        check_deadlines(&run.guests[i], &fake.peers[i]);
}

/* Every peer reads all, and answers our Close by ending TCP. */
static void end_by_close(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        fake.peers[i].window = 1 << 30;
    settle(1);
    push_to_all(WSPY_COMMAND_CLOSE, "\x03\xe9", 2);
    push_to_all(WSPY_COMMAND_RESUME, "", 0);
    push_to_all(WSPY_COMMAND_GRANT, "\xff\xff\xff\xff", 4);
    push_to_all(WSPY_COMMAND_FINISH, "", 0);
    settle(0);
    for (int i = 0; i < fake.peer_count; i++) {
        require(run.guests[i].state != ACCEPTED || run.guests[i].wire_closed);
        fake.peers[i].in_visible = fake.peers[i].in_length;
        fake.peers[i].has_ended = 1;
    }
    settle(0);
    for (int i = 0; i < fake.peer_count; i++)
        require(run.guests[i].state != ACCEPTED);
}

static void check_closed_loop(void)
{
    wspy_stats stats;
    uint64_t handle;
    static const char none[8];
    require(wspy_loop_turn(run.loop, none, sizeof none, -1) == WSPY_ERROR_CLOSED);
    require(wspy_loop_submit(run.loop, none, sizeof none) == WSPY_ERROR_CLOSED);
    require(wspy_loop_wake(run.loop) == WSPY_ERROR_CLOSED && wspy_loop_fd(run.loop) == WSPY_ERROR_CLOSED);
    require(wspy_loop_listen(run.loop, run.listeners[0]) == WSPY_ERROR_CLOSED);
    require(wspy_loop_adopt(run.loop, run.listeners[0], &handle) == WSPY_ERROR_CLOSED);
    require(wspy_loop_watch(run.loop, run.pipe) == WSPY_ERROR_CLOSED);
    require(wspy_loop_stats(run.loop, &stats) == WSPY_OK);
    require(wspy_loop_alarm(run.loop, 1) == WSPY_OK);
}

static void end(uint8_t choice)
{
    run.is_ending = 1;
    fake_forget_faults();
    fake.most_ready = 0;
    run.for_wait = 0;
    switch (choice % 6) {
    case 0:
        end_by_abort();
        break;
    case 1:
        end_by_reset();
        break;
    case 2:
        end_by_time();
        break;
    case 3:
        end_by_close();
        break;
    default:
        break;
    }
    if (choice % 6 == 5) {
        fake.is_abandoning = 1;
        wspy_loop_abandon(run.loop);
    } else {
        require(wspy_loop_close(run.loop) == WSPY_OK);
    }
    require(fake.open_count == 0);
    check_closed_loop();
}

/* ---- the target ---- */

static void read_settings(void)
{
    static const uint64_t sizes[] = {1 << 20, 1 << 20, UINT64_MAX, 100000, 5000, 126, 8, 0};
    static const uint64_t fragment_sizes[] = {UINT64_MAX, UINT64_MAX, 4999, 20};
    static const uint32_t fragments[] = {131072, UINT32_MAX, 3, 1};
    static const uint64_t backlogs[] = {1 << 20, 1 << 20, 20000, 0};
    static const uint32_t opens[] = {10000, 10000, 50, WSPY_FOREVER}, closes[] = {10000, 30, 0, WSPY_FOREVER};
    static const uint32_t intervals[] = {WSPY_FOREVER, 20000, 40, 20000};
    static const uint32_t timeouts[] = {20000, WSPY_FOREVER, 30, 20000}, idles[] = {5000, 20, 0, WSPY_FOREVER};
    uint8_t limits = take(), times = take(), pings = take();
    run.settings = (wspy_settings){
        .limits = {.max_size = sizes[limits & 7],
                   .max_fragment_size = fragment_sizes[limits >> 3 & 3],
                   .max_fragments = fragments[limits >> 5 & 3]},
        .head = {.max_line = 8192, .max_field = 8192, .max_size = 65536, .max_fields = 128},
        .max_backlog = backlogs[times & 3],
        .notsent_lowat = pings & 128 ? 16384 : 0,
        .open_timeout_ms = opens[times >> 2 & 3],
        .close_timeout_ms = closes[times >> 4 & 3],
        .idle_request_ms = idles[times >> 6],
        .ping_interval_ms = intervals[pings & 3],
        .ping_timeout_ms = timeouts[pings >> 2 & 3],
        .wants = (pings >> 4 & 7) | (pings & 128 ? WSPY_WANT_DRAINED : 0) |
                 ((limits & 7) == 1 ? WSPY_WANT_ENDING : 0),
        .write_limit = 5000,
    };
    if (limits & 128)
        run.settings.head =
            (wspy_head_limits){.max_line = 40, .max_field = 20, .max_size = 64, .max_fields = 2};
}

static void begin(void)
{
    run.loop = NULL;
    run.command_count = run.applied = run.overlap = run.for_wait = run.number = 0;
    run.turn = run.is_ending = 0;
    run.bytes = run.messages = 0;
    fake_reset();
    for (int i = 0; i < FAKE_LISTENERS; i++) {
        run.listeners[i] = fake_listener_new();
        run.is_listening[i] = 0;
    }
    run.pipe = fake_pipe_new();
}

static void forget_guest(guest *g)
{
    for (uint32_t i = 0; i < g->item_count; i++)
        free(g->items[i].bytes);
    free(g->items);
    wspy_endpoint_free(g->reference);
}

static void finish(uint8_t choice)
{
    for (int i = 0; i < fake.peer_count; i++)
        forget_guest(&run.guests[i]);
    for (uint32_t i = 0; i < run.command_count; i++)
        free(run.commands[i].payload);
    wspy_loop_free(run.loop);
    wspy_sys_unreserve(run.packed, wspy_loop_packed_size());
    require(fake.open_count == 0);
    require(fake.allocated == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    run.at = input;
    run.end = input + size;
    begin();
    uint8_t choice = take();
    read_settings();
    if (choice >= 240)
        plan_fault();
    fake.is_exempt = 1;
    run.packed = wspy_sys_reserve(wspy_loop_packed_size());
    fake.is_exempt = 0;
    run.loop = wspy_loop_new(&run.settings, run.packed);
    if (run.loop) {
        toggle_listener(0);
        for (int i = 0; i < OPERATIONS_MAX && run.at < run.end; i++)
            operate(take());
        end(choice);
    }
    finish(choice);
    return 0;
}
