// Does the whole loop keep its promises, whatever peers, callers and the kernel do to it?
// links: fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c frame.c mask.c utf8.c timers.c addresses.c
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

enum { COMMANDS_MAX = 1500, COMMANDS_LAST = 4 * FAKE_PEERS, OPERATIONS_MAX = 500, BYTES_MAX = 2 << 20 };
enum { BURSTS_MAX = 6000 }; /* frames: more than a turn has room for */
enum { SPIN_MAX = 500, NEVER = INT32_MAX };
enum { MANY_SIZE = 6 }; /* of a short frame, so that a window can end where one does */
enum { KEPT_MAX = 64 << 10, LISTEN_PAUSE_NS = 120000000 };
#define MS UINT64_C(1000000)
#define TICK_NS (16 * MS) /* deadlines are as exact as that */

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
    int owes_marks;                                           /* there was no memory for the rest of a run */
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
    /* its times */
    uint64_t opened_ns;
    uint64_t empty_ns;  /* when last nothing waited for the kernel */
    uint64_t active_ns; /* no later than what is known of its messages; for IDLE */
    uint64_t late_ns;   /* no earlier than any sign of it, or of a message */
    uint64_t taken_ns;  /* of the peer, when that was looked at last */
    /* its control frames */
    size_t walked;         /* in the peer's stream: the frames before are counted */
    uint32_t controls;     /* in them, ... */
    uint32_t counted;      /* until the last turn, ... */
    uint32_t in_second;    /* and since the second began that the core counts in */
    uint64_t second_tick;  /* when that was */
    int is_exact, is_over; /* all is decoded in the turn in which it is read; and it was too much */
    int was_ponged;        /* some keepalive ping was answered */
    uint8_t ping[4];       /* the newest one */
    int is_adopted;
    int is_one_too_many; /* of its address */
    int is_latecomer;    /* it had to wait until others were gone */
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
    int burst;       /* frames of bursts */
    uint32_t number; /* of the last payload */
    uint64_t messages;
    int is_ending; /* the script is over */
    uint64_t began_ns, call_began_ns;
    /* admission */
    int last_accepted;          /* -1: it is accounted for */
    uint64_t tokens, earned_ms; /* thousandths of an accept, and until when they were earned */
    uint32_t most_handshakes;
    uint64_t full_addresses; /* expected */
    uint64_t passed_over;    /* broadcasts that others of the same connection came behind of, at least */
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
    uint32_t skips = 0;
    for (uint32_t i = g->item_next; i < g->item_count; i++) {
        const item *next = &g->items[i];
        int fits = !(next->kind == BROADCAST && g->broadcasts_end);
        if (fits && memcmp(next->bytes, data, length < next->length ? length : next->length) == 0) {
            if (length < next->length)
                return 0;
            g->item_next = i + 1;
            run.passed_over += run.settings.broadcast_limit ? skips : 0;
            g->broadcasts_end |= skips && !run.settings.broadcast_limit;
            g->wire_marks += next->is_marked ? 1 : 0;
            if (next->kind == OPENING) {
                g->wire_opened = 1;
                g->opened_ns = g->active_ns = run.call_began_ns;
                g->late_ns = fake.now_ns;
            }
            return (ssize_t)next->length;
        }
        if (!may_be_skipped(next))
            return -1;
        skips += next->kind == BROADCAST; /* without a limit its end is decided, and no other one follows */
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

/* Counts the control frames in what we have read, by their headers alone. */
static uint32_t count_controls(guest *g)
{
    const fake_peer *peer = peer_of(g);
    while (g->walked + 2 <= peer->in_read) {
        const uint8_t *at = peer->in + g->walked;
        size_t left = peer->in_read - g->walked, size = 2 + (at[1] & 0x80 ? 4u : 0u);
        uint64_t length = at[1] & 0x7f;
        size_t extended = length == 126 ? 2 : length == 127 ? 8 : 0;
        if (left < size + extended)
            break;
        length = extended ? 0 : length;
        for (size_t i = 0; i < extended; i++)
            length = length << 8 | at[2 + i];
        int is_control = at[0] & 0x08;
        if (is_control && (length > 125 || left < size + length))
            break;
        g->controls += is_control != 0;
        if (length > SIZE_MAX / 2) /* the last there is */
            length = SIZE_MAX / 2;
        g->walked += size + extended + (size_t)length;
    }
    return g->controls;
}

/* Whether it may have sent more control frames in a second than it should. */
static int may_be_over(guest *g)
{
    uint32_t count = count_controls(g);
    int is_counted = g->is_exact && count == g->counted; /* else it is within the turn */
    return run.settings.max_controls && count > run.settings.max_controls && (g->is_over || !is_counted);
}

/* Ours, the echo of the peer's, or what tells of its mistake. */
static void check_close(guest *g, const uint8_t *payload, size_t length)
{
    g->wire_closed = 1;
    if (length == 2 && payload[0] << 8 == (1008 & 0xff00) && payload[1] == (1008 & 0xff) && may_be_over(g))
        return;
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
        memcpy(g->ping, frame + 2, 4);
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

/* A message is sent now. */
static void note_message(guest *g)
{
    g->active_ns = g->late_ns = fake.now_ns;
}

static void note_accept(guest *g, const command *c)
{
    wspy_accept accept;
    if (!g || g->state != DECIDING || c->length < sizeof accept)
        return;
    memcpy(&accept, c->payload, sizeof accept);
    g->state = ACCEPTED;
    g->credit = accept.credit;
    g->fed = g->walked = g->position;
    g->is_exact = accept.credit == WSPY_FOREVER;
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
    if (!g || g->state != ACCEPTED)
        return;
    add_item(g, BROADCAST, frame, length, is_marked);
    if (!run.settings.broadcast_limit) /* else it may be passed over */
        note_message(g);
    g->late_ns = fake.now_ns;
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
        if (is_accepted) {
            add_item(g, MESSAGE, c->payload, c->length, kind & WSPY_COMMAND_MARK);
            note_message(g);
        }
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
        if (g)
            g->is_exact = 0;
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

/* Where nothing waits for the kernel now, no write deadline runs. */
static void note_empty(void)
{
    for (int i = 0; i < fake.peer_count; i++) {
        guest *g = &run.guests[i];
        const fake_peer *peer = &fake.peers[i];
        if (peer->taken_ns > g->taken_ns && g->empty_ns < peer->taken_ns)
            g->late_ns = fake.now_ns; /* some of what waited was taken */
        g->taken_ns = peer->taken_ns;
        if (!backlog_of(g))
            g->empty_ns = fake.now_ns;
    }
}

static void submit(uint32_t most)
{
    run.call_began_ns = fake.now_ns;
    note_empty();
    uint32_t left = run.command_count - run.applied;
    batch b = next_batch(run.applied + (most < left ? most : left), run.turn + 1);
    if (b.size > 8 && run.command_count & 1) /* without its last byte it has no last command */
        require(wspy_loop_submit(run.loop, b.data, b.size - 1) == WSPY_ERROR_ARGUMENT);
    require(wspy_loop_submit(run.loop, b.data, b.size) == WSPY_OK && applied() == run.applied);
    free(b.memory);
    check_wires();
    note_full();
    note_empty();
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
    uint8_t address[16], expected[16];
    uint32_t port, scope;
    int size = wspy_loop_peer(run.loop, handle, address, &port, &scope);
    require(port >= 1 && port <= (uint32_t)fake.peer_count);
    require(size == fake_address((int)port - 1, expected) && memcmp(address, expected, (size_t)size) == 0);
    return &run.guests[port - 1];
}

static guest *take_surfaced(uint64_t handle)
{
    guest *g = guest_at_address(handle);
    require(g->state == WAITING && (g->handle == 0 || g->handle == handle) && !g->is_one_too_many);
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
    if ((kind & 0x0f) < 8)
        g->active_ns = run.call_began_ns;
    run.messages += (kind & 0x0f) < 8;
}

/* Ends that no answer would change. */
static int is_hard(int error)
{
    return error == WSPY_ERROR_NO_MEMORY || (error <= WSPY_ERROR_RESET && error >= WSPY_ERROR_WRITE_TIMEOUT);
}

/* Nothing was taken for so long, all of which something waited. */
static void check_write_timeout(const guest *g)
{
    uint64_t since = peer_of(g)->taken_ns > g->empty_ns ? peer_of(g)->taken_ns : g->empty_ns;
    require(is_finite(run.settings.write_timeout_ms));
    require(fake.now_ns - since + TICK_NS > run.settings.write_timeout_ms * MS);
}

/* Messages whose end lies behind so many bytes. */
static uint32_t messages_behind(const item *frames, size_t written)
{
    uint32_t count = 0;
    for (size_t at = 0; at < frames->length;) {
        wspy_frame_header header;
        int size = wspy_frame_decode(frames->bytes + at, frames->length - at, &header);
        require(size > 0);
        at += (size_t)size + (size_t)header.length;
        count += header.flags & WSPY_FIN && header.opcode < 8 && at > written;
    }
    return count;
}

/* What was lost is what did not come out: of what was sent behind its end nothing counts, and controls are no messages. */
static void check_unsent(guest *g, int error)
{
    wspy_ending ending;
    require(wspy_loop_ending(run.loop, g->handle, &ending) == WSPY_OK);
    require(ending.unsent == backlog_of(g));
    uint64_t bytes = 0;
    uint32_t messages = 0;
    size_t written = peer_of(g)->out_length - g->checked; /* of the one that is under way */
    const uint8_t *begun = written ? peer_of(g)->out + g->checked : NULL;
    for (uint32_t i = g->item_next; i < g->item_count; i++) {
        const item *next = &g->items[i];
        int is_begun = written && written < next->length && memcmp(next->bytes, begun, written) == 0;
        size_t out = is_begun ? written : 0;
        written -= out;
        bytes += next->length - out;
        if (next->kind == MESSAGE || next->kind == BROADCAST)
            messages += messages_behind(next, out);
    }
    require(ending.unsent_messages <= messages);
    require(ending.unsent || !ending.unsent_messages);
    int has_controls = g->close_count || count_controls(g) || is_finite(run.settings.ping_interval_ms);
    if (is_hard(error) && error != WSPY_ERROR_NO_MEMORY && !has_controls && ending.unsent == bytes)
        require(ending.unsent_messages == messages);
    if (g->opened)
        require(ending.age_ms * MS <= fake.now_ns - g->opened_ns + TICK_NS);
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
            (error <= WSPY_ERROR_EOF && error >= WSPY_ERROR_CONTROL_RATE));
    require(error != WSPY_ERROR_CONTROL_RATE || (code == 1008 && may_be_over(g)));
    if (error == WSPY_ERROR_WRITE_TIMEOUT)
        check_write_timeout(g);
    check_unsent(g, error);
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
    case WSPY_EVENT_IDLE:
        require(g->opened && is_finite(run.settings.idle_timeout_ms) && !g->close_count);
        require(fake.now_ns - g->active_ns + TICK_NS > run.settings.idle_timeout_ms * MS);
        g->active_ns = g->late_ns = fake.now_ns;
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
        require(event->start > 0 && (fake.has_failed || run.settings.max_connections));
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
        guest *g = &run.guests[i];
        if (g->state != ACCEPTED && g->state != GONE)
            continue;
        require(g->opened == g->wire_opened && g->sent <= g->wire_marks);
        /* without memory to queue the rest of a run it ends, if it doesn't already, whatever was sent of the run */
        g->owes_marks = g->sent != g->wire_marks;
        require(!g->owes_marks || fake.has_failed);
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
    for (int i = 0; i < count; i++)
        take_event(&events[i], &packed);
    check_guests();
    note_full();
}

/* ---- admission ---- */

static int is_here(int peer)
{
    return fake.peers[peer].fd >= 0 && !fake.peers[peer].is_closed;
}

/* From accept to the last byte of the 101. */
static uint32_t handshakes(void)
{
    uint32_t count = 0;
    for (int i = 0; i < fake.peer_count; i++)
        count += is_here(i) && !run.guests[i].wire_opened;
    return count;
}

static uint32_t connections(void)
{
    uint32_t count = 0;
    for (int i = 0; i < fake.peer_count; i++)
        count += is_here(i) != 0;
    return count;
}

/* Of IPv6 a subscriber has a /64. */
static int is_same_place(int a, int b)
{
    uint8_t one[16], other[16];
    int size = fake_address(a, one);
    return size == fake_address(b, other) && memcmp(one, other, size == 4 ? 4 : 8) == 0;
}

static uint32_t handshakes_at(int peer)
{
    uint32_t count = 0;
    for (int i = 0; i < fake.peer_count; i++)
        count += i != peer && is_here(i) && !run.guests[i].is_adopted && !run.guests[i].wire_opened &&
                 is_same_place(i, peer);
    return count;
}

static void note_handshakes(uint32_t count)
{
    run.most_handshakes = count > run.most_handshakes ? count : run.most_handshakes;
}

/* What became of the last one that was accepted. One that there was no memory for took nobody's place. */
static void account_for_accept(void)
{
    if (run.last_accepted < 0)
        return;
    const fake_peer *peer = &fake.peers[run.last_accepted];
    guest *g = &run.guests[run.last_accepted];
    run.last_accepted = -1;
    if (peer->is_closed && !peer->was_reset) {
        require(fake.has_failed);
        return;
    }
    run.tokens -= run.settings.max_accepts ? 1000 : 0;
    require(peer->was_reset == g->is_one_too_many ||
            fake.has_failed); /* of whom there is no memory to count, too */
    require(peer->was_reset == peer->is_closed);
    run.full_addresses += peer->was_reset != 0;
}

static void earn_tokens(void)
{
    uint64_t now_ms = (fake.now_ns - run.began_ns) / MS, rate = run.settings.max_accepts;
    run.tokens += (now_ms - run.earned_ms) * rate;
    run.tokens = run.tokens < 1000 * rate ? run.tokens : 1000 * rate;
    run.earned_ms = now_ms;
}

/* Nobody is accepted who is one too many, but for one of an address: it is reset then. */
static void on_accept(int peer)
{
    const wspy_settings *s = &run.settings;
    check_wires();
    account_for_accept();
    require(!s->max_handshakes || handshakes() < s->max_handshakes);
    note_handshakes(handshakes() + 1);
    require(!s->max_connections || connections() < s->max_connections);
    earn_tokens();
    require(!s->max_accepts || run.tokens >= 1000);
    run.guests[peer].is_one_too_many = s->max_per_address && handshakes_at(peer) >= s->max_per_address;
    run.last_accepted = peer;
}

static void check_admission_stats(const wspy_stats *stats)
{
    const wspy_settings *s = &run.settings;
    require(stats->full_addresses == run.full_addresses);
    require(!stats->full_handshakes || (s->max_handshakes && run.most_handshakes >= s->max_handshakes));
    require(!stats->fast_accepts || s->max_accepts);
    require(stats->passed_over >= run.passed_over && (!stats->passed_over || s->broadcast_limit));
}

/* ---- control frames ---- */

/* As the core counts: in seconds one behind the other, by its ticks. */
static void count_second(guest *g, uint64_t tick)
{
    uint32_t count = count_controls(g) - g->counted;
    if (!count)
        return;
    g->counted += count;
    if ((tick - g->second_tick) * TICK_NS >= 1000 * MS) {
        g->second_tick = tick;
        g->in_second = 0;
    }
    g->in_second += count;
    g->is_over |= g->in_second > run.settings.max_controls;
}

static void count_seconds(void)
{
    uint64_t tick = (fake.now_ns - run.began_ns) / TICK_NS;
    int is_much = run.burst || run.bytes > 1 << 19; /* a turn may be full: some of it is decoded later */
    for (int i = 0; i < fake.peer_count; i++) {
        guest *g = &run.guests[i];
        g->is_exact &= !is_much;
        if (run.settings.max_controls && g->state == ACCEPTED && g->wire_opened)
            count_second(g, tick);
    }
}

/* ---- turns ---- */

static int turn(int timeout_ms)
{
    trace("turn %d, timeout %d\n", run.turn + 1, timeout_ms);
    run.turn++;
    note_empty();
    run.call_began_ns = fake.now_ns;
    uint32_t end = run.command_count - (run.for_wait < run.command_count - run.applied ? run.for_wait : 0);
    batch b = next_batch(end, run.turn);
    fake.on_wait = run.for_wait ? on_wait : NULL;
    int count = wspy_loop_turn(run.loop, b.data, b.size, timeout_ms);
    fake.on_wait = NULL;
    free(b.memory);
    require(count >= 0);
    check_wires();
    account_for_accept();
    count_seconds();
    take_events(count);
    note_empty();
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

/* Where the wire ends if it passes over the last broadcasts. */
static uint32_t first_unskippable(const guest *g)
{
    uint32_t end = g->item_count;
    while (run.settings.broadcast_limit && end > g->item_next && g->items[end - 1].kind == BROADCAST)
        end--;
    return end;
}

/* Whether the deadlines of an open connection are those that hold. */
static int is_sendable(const guest *g, const fake_peer *peer)
{
    return !g->close_count && !g->fail_code && !g->awaits_finish && reference_runs(g) && !saw_end(peer) &&
           !peer->reset && !fake.has_failed;
}

/* No deadline is forgotten. Pings and pongs are no sign of life; and who is not read while there may be something to read
 * is not idle, which is looked at again after a second. */
static void check_times(const guest *g, const fake_peer *peer, uint32_t backlog)
{
    const wspy_settings *s = &run.settings;
    uint64_t slack = 4 * TICK_NS + 256 * MS; /* a turn may have waited so long */
    if (!is_sendable(g, peer))
        return;
    uint64_t written = peer->taken_ns > g->empty_ns ? peer->taken_ns : g->empty_ns;
    if (backlog && is_finite(s->write_timeout_ms))
        require(fake.now_ns - written < s->write_timeout_ms * MS + slack);
    uint64_t heard = peer->read_ns > g->late_ns ? peer->read_ns : g->late_ns;
    int is_not_read = g->paused_from <= run.turn + 1 || g->credit == 0;
    if (is_finite(s->idle_timeout_ms) && !is_not_read)
        require(fake.now_ns - heard < (s->idle_timeout_ms + 1000) * MS + slack);
}

static void check_open(guest *g, const fake_peer *peer, uint32_t backlog)
{
    feed_reference(g);
    int runs = reference_runs(g);
    int is_quiet = runs && !backlog && !g->close_count;
    require(g->was_ponged || wspy_loop_latency(run.loop, g->handle) < 0);
    require(!g->owes_marks || g->awaits_finish); /* its end was decided */
    require(!g->owes_drained || backlog > run.settings.write_limit);
    if (is_quiet)
        require(g->item_next == first_unskippable(g));
    if (may_be_over(g)) {
        require(!g->is_exact || backlog || g->awaits_finish);
        return;
    }
    check_times(g, peer, backlog);
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
    check_admission_stats(&stats);
}

static void check_asleep(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        check_idle(&run.guests[i], &fake.peers[i]);
    check_stats();
}

/* A listener with peers that the loop does not watch comes back by itself, and not before it may accept again. */
static void check_listeners(void)
{
    uint64_t timer = fake_timer_at_ns();
    uint64_t pause =
        run.settings.max_accepts ? LISTEN_PAUSE_NS + 1000 * MS / run.settings.max_accepts : LISTEN_PAUSE_NS;
    for (int i = 0; i < FAKE_LISTENERS; i++)
        if (run.is_listening[i] && fake_listener_waits(run.listeners[i]))
            require(timer && timer <= fake.now_ns + pause);
}

static int is_full(void)
{
    const wspy_settings *s = &run.settings;
    return (s->max_handshakes && handshakes() >= s->max_handshakes) ||
           (s->max_connections && connections() >= s->max_connections);
}

static int somebody_waits(void)
{
    for (int i = 0; i < FAKE_LISTENERS; i++)
        if (run.is_listening[i] && fake_listener_waits(run.listeners[i]))
            return 1;
    return 0;
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
    uint8_t choice = take();
    size_t window = windows[choice % 8];
    if (listener >= 0 && !run.is_listening[listener])
        return;
    fake_peer *peer = fake_peer_new(listener < 0 ? -1 : run.listeners[listener], window);
    if (!peer)
        return;
    peer->home = (choice >> 3) % FAKE_HOMES;
    guest *g = guest_of(peer);
    *g = (guest){.is_adopted = listener < 0,
                 .paused_from = NEVER,
                 .aborted_from = NEVER,
                 .refused_from = NEVER,
                 .failed_from = NEVER};
    if (listener >= 0)
        return;
    if (wspy_loop_adopt(run.loop, peer->fd, &g->handle) == WSPY_OK) {
        note_handshakes(handshakes());
        return;
    }
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

/* The answer to the newest keepalive ping, if there was one. */
static void write_pong(fake_peer *peer)
{
    guest *g = guest_of(peer);
    uint8_t frame[10] = {0x8a, 0x84};
    memcpy(frame + 6, g->ping, 4);
    g->was_ponged |= g->wire_pings > 0;
    write_in(peer, frame, sizeof frame, 1);
}

static void write_raw(fake_peer *peer)
{
    uint8_t bytes[64];
    size_t length = take() % sizeof bytes;
    if (length == 0)
        write_pong(peer);
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
    for (int i = 0; i < choice * 20 && run.bytes + size <= BYTES_MAX && run.burst < BURSTS_MAX;
         i++, run.burst++) {
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
    if (peer->fd < 0 || peer->is_closed || g->is_latecomer)
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

/* Once there is time and room, nobody waits for long. */
static void let_in(void)
{
    for (int i = 0; i < 2 * FAKE_PEERS && somebody_waits() && !is_full(); i++) {
        fake.now_ns += 11000 * MS;
        fake.progress++;
        settle(0);
    }
    require(!somebody_waits() || is_full());
}

static void end_by_time(void)
{
    static const uint32_t steps_ms[] = {17, 60, 1100, 1100, 21000, 21000, 1100, 70000, 1100, 70000};
    settle(0);
    for (int i = 0; i < fake.peer_count; i++)
        run.guests[i].is_latecomer = !is_here(i);
    for (size_t i = 0; i < sizeof steps_ms / sizeof *steps_ms; i++) {
        fake.now_ns += steps_ms[i] * UINT64_C(1000000);
        fake.progress++;
        settle(0);
    }
    for (int i = 0; i < fake.peer_count; i++)
        check_deadlines(&run.guests[i], &fake.peers[i]);
    let_in();
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
    static const uint32_t writes[] = {WSPY_FOREVER, 30000, 300, 20},
                          silences[] = {WSPY_FOREVER, 60000, 500, 50};
    static const uint32_t controls[] = {0, 100, 5, 1}, broadcasts[] = {0, 20000, 1000, 1};
    static const uint32_t most_of_all[] = {0, 0, 30, 4}, most_shaking[] = {0, 40, 5, 1};
    static const uint32_t most_at_once[] = {0, 10, 2, 1}, rates[] = {0, 50, 5, 1};
    uint8_t limits = take(), times = take(), pings = take(), stays = take(), admits = take();
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
        .write_timeout_ms = writes[stays & 3],
        .idle_timeout_ms = silences[stays >> 2 & 3],
        .max_controls = controls[stays >> 4 & 3],
        .broadcast_limit = broadcasts[stays >> 6],
        .max_connections = most_of_all[admits & 3],
        .max_handshakes = most_shaking[admits >> 2 & 3],
        .max_per_address = most_at_once[admits >> 4 & 3],
        .max_accepts = rates[admits >> 6],
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
    run.burst = 0;
    run.last_accepted = -1;
    run.earned_ms = run.most_handshakes = 0;
    run.full_addresses = run.passed_over = 0;
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

static void finish(void)
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
    run.began_ns = fake.now_ns;
    run.tokens = (uint64_t)run.settings.max_accepts * 1000;
    fake.on_accept = on_accept;
    run.loop = wspy_loop_new(&run.settings, run.packed);
    if (run.loop) {
        toggle_listener(0);
        for (int i = 0; i < OPERATIONS_MAX && run.at < run.end; i++)
            operate(take());
        end(choice);
    }
    finish();
    return 0;
}
