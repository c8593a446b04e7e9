// Does the loop keep its promises when something stands between its connections and the kernel, whatever that does?
// links: fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c frame.c mask.c utf8.c timers.c addresses.c
// links: endpoint.c errors.c
// options: -max_len=512
//
// An input is a script, as that of fuzz_loop.c, which has the checks of all that lies above. Here ciphertext is
// plaintext with each bit the other way round; who seals it answers late, wrongly or not at all if the script says so.
// What is checked: every byte arrives once and in order, each connection is gone once, nothing is left undone; no deadline
// ends or tells what moves, and what is lost is counted. Who may come in is not: that is decided before there is a layer.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "fake_kernel.h"
#include "sys.h"

#define require(condition) ((condition) ? (void)0 : fail(__func__, __LINE__, #condition))

static void fail(const char *function, int line, const char *what)
{
    fprintf(stderr, "%s, line %d: %s does not hold\n", function, line, what);
    abort();
}

#define MS UINT64_C(1000000)
#define TICK_NS (16 * MS) /* deadlines are as exact as that */

enum { GUESTS = 24, HTTP_LENGTH_MIN = 17, OPERATIONS_MAX = 300, BATCH_MAX = 8 << 20, SPIN_MAX = 3000 };

typedef struct {
    uint64_t handle; /* 0: not adopted */
    int is_surfaced, is_closed, is_gone;
    int is_wronged;  /* an answer was not what it should have been */
    size_t reported; /* of what its peer sent, by RAW */
    uint8_t *sealed; /* what was said to go to the peer */
    size_t sealed_length;
    uint64_t empty_ns; /* when last nothing of it waited */
    uint64_t
        taken_ns; /* of its peer, before this turn: its end may be decided before what comes late is sent */
    uint64_t active_ns; /* no later than its last message; for IDLE */
    int is_sending;     /* in the batch */
    uint32_t messages;  /* that were sent to it ... */
    size_t passed;      /* of its wire, when last all ciphertext there was had come out */
    size_t walked;      /* in that: the frames before are counted, ... */
    uint32_t came_out;  /* and were so many of these */
    uint32_t controls;  /* what its peer sent may have so many control frames */
} guest;

static struct {
    const uint8_t *at, *end;
    wspy_settings settings;
    wspy_loop *loop;
    uint8_t *packed;
    guest guests[GUESTS];
    char *batch; /* commands for the next turn */
    size_t batch_size;
    uint64_t applied, count;
    char *late; /* answers that are held back */
    size_t late_size;
    uint64_t late_count;
    int is_late, is_wrong;
    uint64_t call_began_ns;
} run;

static uint8_t take(void)
{
    return run.at < run.end ? *run.at++ : 0;
}

/* ---- commands ---- */

static size_t put(char *at, int command, uint64_t handle, const void *first, size_t first_length,
                  const void *payload, size_t length)
{
    uint64_t key = (uint64_t)command << WSPY_COMMAND_SHIFT | handle;
    uint32_t whole = (uint32_t)(first_length + length);
    memcpy(at, &key, 8);
    memcpy(at + 8, &whole, 4);
    if (first_length)
        memcpy(at + 12, first, first_length);
    if (length)
        memcpy(at + 12 + first_length, payload, length);
    return 12 + (size_t)whole;
}

static void push(int command, uint64_t handle, const void *payload, size_t length)
{
    if (run.batch_size + length + 12 > BATCH_MAX)
        return;
    run.batch_size += put(run.batch + run.batch_size, command, handle, NULL, 0, payload, length);
    run.count++;
}

static void answer(int command, uint64_t handle, const void *first, size_t first_length, const void *payload,
                   size_t length)
{
    require(run.late_size + length + 16 <= BATCH_MAX);
    run.late_size += put(run.late + run.late_size, command, handle, first, first_length, payload, length);
    run.late_count++;
}

static void send_answers(void)
{
    if (run.batch_size + run.late_size > BATCH_MAX)
        return;
    memcpy(run.batch + run.batch_size, run.late, run.late_size);
    run.batch_size += run.late_size;
    run.count += run.late_count;
    run.late_size = run.late_count = 0;
}

/* ---- events ---- */

static guest *guest_of(uint64_t handle)
{
    for (int i = 0; i < fake.peer_count; i++)
        if (run.guests[i].handle == handle)
            return &run.guests[i];
    fail(__func__, __LINE__, "a known handle");
    return NULL;
}

static fake_peer *peer_of(const guest *g)
{
    return &fake.peers[g - run.guests];
}

static void seal(uint8_t *output, const uint8_t *input, size_t length)
{
    for (size_t i = 0; i < length; i++)
        output[i] = (uint8_t)~input[i];
}

static void take_raw(guest *g, const uint8_t *data, size_t length)
{
    const fake_peer *peer = peer_of(g);
    require(g->reported + length <= peer->in_read);
    require(!length || memcmp(peer->in + g->reported, data, length) == 0);
    g->reported += length;
    uint8_t wrong = run.is_wrong ? take() : 0;
    g->is_wronged |= wrong & 1;
    if (length == 0 || wrong & 1) {
        uint8_t how = wrong >> 1 & 1;
        answer(WSPY_COMMAND_FEED_END, g->handle, NULL, 0, &how, !(wrong & 4));
        return;
    }
    uint8_t *plain = malloc(length);
    require(plain != NULL);
    seal(plain, data, length);
    answer(WSPY_COMMAND_FEED, g->handle, NULL, 0, plain, length);
    free(plain);
}

static void take_out(guest *g, const uint8_t *data, size_t length, int is_last)
{
    static const uint8_t close_notify[3] = {'e', 'n', 'd'};
    uint8_t wrong = run.is_wrong ? take() : 0;
    uint8_t bits = WSPY_RAW_OUT | (is_last ? WSPY_RAW_LAST : 0);
    if (wrong & 1) { /* nothing is right about it, or it never comes */
        g->is_wronged = 1;
        if (wrong & 2)
            answer(WSPY_COMMAND_RAW_SEND, g->handle, &wrong, 1, close_notify, sizeof close_notify);
        return;
    }
    size_t end = is_last ? sizeof close_notify : 0;
    g->sealed = realloc(g->sealed, g->sealed_length + length + end + 1);
    require(g->sealed != NULL);
    uint8_t *added = g->sealed + g->sealed_length;
    seal(added, data, length);
    memcpy(added + length, close_notify, end);
    g->sealed_length += length + end;
    answer(WSPY_COMMAND_RAW_SEND, g->handle, &bits, 1, added, length + end);
}

/* Messages on the wire, behind the HTTP there, as far as all ciphertext had come out: within it no place means anything. */
static uint32_t messages_out(guest *g)
{
    const fake_peer *peer = peer_of(g);
    while (g->walked < g->passed) {
        uint8_t plain[WSPY_HEADER_MAX];
        size_t left = g->passed - g->walked;
        size_t length = left < sizeof plain ? left : sizeof plain;
        wspy_frame_header header;
        seal(plain, peer->out + g->walked, length);
        if (plain[0] == 'H') {
            if (left < HTTP_LENGTH_MIN)
                break;
            size_t end = HTTP_LENGTH_MIN;
            while (end < left && peer->out[g->walked + end - 1] != (uint8_t) ~'\n')
                end++;
            g->walked += end;
            continue;
        }
        int size = wspy_frame_decode(plain, length, &header);
        if (size <= 0 || header.length > left - (size_t)size)
            break;
        g->walked += (size_t)size + (size_t)header.length;
        g->came_out += header.opcode < 8;
    }
    return g->came_out;
}

/* What was lost did not come out. */
static void check_unsent(guest *g)
{
    wspy_ending ending;
    require(wspy_loop_ending(run.loop, g->handle, &ending) == WSPY_OK);
    require(ending.unsent || !ending.unsent_messages);
    if (!g->is_wronged)
        require(ending.unsent_messages + messages_out(g) <= g->messages);
}

static void check_closed(guest *g, int error)
{
    uint64_t since = g->taken_ns > g->empty_ns ? g->taken_ns : g->empty_ns;
    if (error == WSPY_ERROR_WRITE_TIMEOUT) {
        require(run.settings.write_timeout_ms != WSPY_FOREVER);
        require(fake.now_ns - since + TICK_NS > run.settings.write_timeout_ms * MS);
    }
    if (error == WSPY_ERROR_CONTROL_RATE && !g->is_wronged)
        require(run.settings.max_controls && g->controls > run.settings.max_controls);
    check_unsent(g);
}

static void take_event(const wspy_event *event)
{
    uint32_t kind = event->kind & 0xff;
    if (kind == WSPY_EVENT_ACCEPT_PAUSED)
        return;
    guest *g = guest_of(wspy_loop_handle(run.loop, event->slot));
    trace(" event %u of %d, %u, %u\n", kind, (int)(g - run.guests), event->start, event->length);
    require(!g->is_gone);
    const uint8_t *data = wspy_loop_arena(run.loop) + event->start;
    if (event->kind & WSPY_EVENT_APART)
        require((size_t)event->start + event->length <= wspy_loop_arena_capacity(run.loop));
    switch (kind) {
    case WSPY_EVENT_RAW:
        take_raw(g, data, event->length);
        return;
    case WSPY_EVENT_OUT:
    case WSPY_EVENT_OUT_LAST:
        take_out(g, data, event->length, kind == WSPY_EVENT_OUT_LAST);
        return;
    case WSPY_EVENT_GONE:
        require(peer_of(g)->is_closed);
        g->is_gone = 1;
        return;
    case WSPY_EVENT_HEAD:
    case WSPY_EVENT_BAD_HEAD:
        g->is_surfaced = 1;
        g->is_closed = 0;
        return;
    case WSPY_EVENT_CLOSED:
        require(g->is_surfaced && !g->is_closed);
        g->is_closed = 1;
        check_closed(g, -(int)(event->length & 0xff));
        return;
    case WSPY_EVENT_OPENED:
        g->active_ns = run.call_began_ns;
        return;
    case WSPY_EVENT_IDLE:
        require(g->is_surfaced && !g->is_closed && run.settings.idle_timeout_ms != WSPY_FOREVER);
        require(fake.now_ns - g->active_ns + TICK_NS > run.settings.idle_timeout_ms * MS);
        g->active_ns = fake.now_ns;
        return;
    default:
        require(g->is_surfaced && !g->is_closed);
        if ((kind & 0x7f) < 8)
            g->active_ns = run.call_began_ns;
    }
}

/* What left is what was sealed, as far as it came. */
static void check_wires(void)
{
    for (int i = 0; i < fake.peer_count; i++) {
        const guest *g = &run.guests[i];
        const fake_peer *peer = &fake.peers[i];
        if (g->is_wronged)
            continue;
        require(peer->out_length <= g->sealed_length);
        require(!peer->out_length || memcmp(peer->out, g->sealed, peer->out_length) == 0);
        require(!peer->is_shut || peer->was_reset || peer->out_length == g->sealed_length || fake.has_failed ||
                peer->reset);
    }
}

static void note_empty(void)
{
    for (int i = 0; i < fake.peer_count; i++) {
        guest *g = &run.guests[i];
        if (!g->handle || !wspy_loop_backlogs(run.loop)[g->handle & WSPY_SLOT_MASK])
            g->empty_ns = fake.now_ns;
        g->taken_ns = fake.peers[i].taken_ns;
        if (g->is_sending)
            g->active_ns = fake.now_ns;
        g->is_sending = 0;
    }
}

static void note_passed(void)
{
    for (int i = 0; i < fake.peer_count; i++)
        if (fake.peers[i].out_length == run.guests[i].sealed_length)
            run.guests[i].passed = fake.peers[i].out_length;
}

static int turn(int timeout_ms)
{
    run.call_began_ns = fake.now_ns;
    note_empty();
    if (!run.is_late)
        send_answers();
    memcpy(run.batch, &run.applied, 8);
    uint64_t next = run.applied + run.count;
    int count = wspy_loop_turn(run.loop, run.batch, run.batch_size, timeout_ms);
    require(count >= 0 && *wspy_loop_applied(run.loop) == next);
    run.applied = next;
    run.count = 0;
    run.batch_size = 8;
    note_passed();
    const wspy_event *events = wspy_loop_events(run.loop);
    for (int i = 0; i < count; i++)
        take_event(&events[i]);
    check_wires();
    note_empty();
    return count;
}

/* Until it sleeps: then nothing may be left that it could do. */
static void settle(void)
{
    run.is_late = 0;
    for (int i = 0; i == 0 || !fake.has_slept || run.late_size; i++) {
        require(i < SPIN_MAX);
        turn(-1);
    }
    for (int i = 0; i < fake.peer_count; i++) {
        const guest *g = &run.guests[i];
        const fake_peer *peer = &fake.peers[i];
        if (!g->handle || g->is_gone || g->is_wronged || peer->is_shut)
            continue;
        uint32_t backlog = wspy_loop_backlogs(run.loop)[g->handle & WSPY_SLOT_MASK];
        require(!backlog || peer->window == 0 || peer->reset);
    }
}

/* ---- the script ---- */

static void connect_peer(uint8_t choice)
{
    static const size_t windows[] = {1 << 30, 1 << 30, 0, 1, 96, 5000, 70000, 1 << 30};
    if (fake.peer_count >= GUESTS)
        return;
    fake_peer *peer = fake_peer_new(-1, windows[choice & 7]);
    require(peer != NULL);
    guest *g = &run.guests[peer - fake.peers];
    *g = (guest){0};
    if (wspy_loop_adopt(run.loop, peer->fd, &g->handle) == WSPY_OK)
        return;
    g->handle = 0;
    fake_peer_drop(peer);
}

static guest *any_guest(void)
{
    uint8_t choice = take();
    guest *g = fake.peer_count ? &run.guests[choice % fake.peer_count] : NULL;
    return g && g->handle ? g : NULL;
}

static size_t frame(uint8_t *output, uint8_t first, size_t length, int is_masked)
{
    output[0] = first;
    output[1] = (uint8_t)(126 | (is_masked ? 128 : 0));
    if (length > 125) {
        output[2] = (uint8_t)(length >> 8);
        output[3] = (uint8_t)length;
    } else {
        output[1] = (uint8_t)(length | (is_masked ? 128 : 0));
    }
    size_t size = length > 125 ? 4 : 2;
    memset(output + size, 0, length + 4);
    if (length >= 2 && (first & 15) == 8)
        output[size + (is_masked ? 4 : 0)] = 3, output[size + (is_masked ? 5 : 1)] = 0xe8;
    return size + (is_masked ? 4 : 0) + length;
}

static void act_as_peer(uint8_t choice)
{
    static const char head[] = "GET / HTTP/1.1\r\nHost: here\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
    static uint8_t plain[70000], sealed[70000];
    guest *g = any_guest();
    if (!g)
        return;
    fake_peer *peer = peer_of(g);
    size_t length = 0;
    switch (choice & 7) {
    case 0:
    case 1:
        length = choice & 8 ? 9 : choice & 16 ? sizeof head - 1 : 31;
        memcpy(plain, head, length);
        break;
    case 2:
    case 3:
        length = frame(plain, (uint8_t[]){0x82, 0x89, 0x88, 0x02}[choice >> 3 & 3],
                       (size_t)(choice & 0x60 ? choice : 4 * choice), 1);
        break;
    case 4:
        for (int i = 0; i < (choice >> 3) * 64; i++)
            length += frame(plain + length, 0x82, 3, 1);
        break;
    case 5:
        peer->window += choice & 8 ? 1 << 20 : choice;
        fake.progress++;
        return;
    case 6:
        if (choice & 8)
            peer->reset = peer->reset ? peer->reset : RESET_PENDING;
        else
            peer->has_ended = 1;
        return;
    default:
        length = 1;
        plain[0] = choice;
    }
    if (peer->has_ended || peer->reset)
        return;
    g->controls += (uint32_t)(choice & 7 ? 2 : 0); /* a frame, or parts of two */
    seal(sealed, plain, length);
    fake_peer_write(peer, sealed, length);
    peer->in_visible = peer->in_length;
}

static void command_guest(uint8_t choice)
{
    static uint8_t payload[70000];
    static const uint8_t accept[] = "\xff\xff\xff\xff\0\0\0\0"
                                    "HTTP/1.1 101 \r\n\r\n";
    static const uint8_t scarce[] = "\2\0\0\0\0\0\0\0"
                                    "HTTP/1.1 101 \r\n\r\n";
    guest *g = any_guest();
    if (!g)
        return;
    switch (choice % 14) {
    case 0:
    case 1:
        push(WSPY_COMMAND_ACCEPT, g->handle, choice & 64 ? scarce : accept, sizeof accept - 1);
        return;
    case 2:
    case 3:
        push(choice & 64 ? WSPY_COMMAND_MARK : WSPY_COMMAND_SEND, g->handle, payload,
             frame(payload, 0x82, choice & 32 ? 60000 : choice, 0));
        g->messages += g->is_sending = 1;
        return;
    case 4:
        for (int i = 0; i < 12; i++)
            push(WSPY_COMMAND_SEND, g->handle, payload, frame(payload, 0x82, 50000, 0));
        g->messages += 12;
        g->is_sending = 1;
        return;
    case 5:
        push(WSPY_COMMAND_RESPOND, g->handle,
             choice & 64 ? "\1HTTP/1.1 200 \r\n\r\n" : "\0HTTP/1.1 200 \r\n\r\n", 18);
        return;
    case 6:
        push(WSPY_COMMAND_CLOSE, g->handle, "\x03\xe8", 2);
        return;
    case 7:
        push(WSPY_COMMAND_ABORT, g->handle, NULL, 0);
        return;
    case 8:
        push(choice & 64 ? WSPY_COMMAND_PAUSE : WSPY_COMMAND_RESUME, g->handle, NULL, 0);
        return;
    case 9:
        push(WSPY_COMMAND_GRANT, g->handle, "\1\0\0\0", 4);
        return;
    case 10:
        push(WSPY_COMMAND_FINISH, g->handle, NULL, 0);
        return;
    case 11:
        push(WSPY_COMMAND_REFUSE, 0, "HTTP/1.1 503 \r\n\r\n", 17);
        return;
    case 12: /* nobody has asked for that */
        g->is_wronged = 1;
        payload[0] = choice >> 4;
        push(choice & 64 ? WSPY_COMMAND_RAW_SEND : WSPY_COMMAND_FEED_END, g->handle, payload, choice & 3);
        return;
    default:
        g->controls++;
        push(WSPY_COMMAND_FEED, g->handle, payload, frame(payload, 0x89, 4, 1));
    }
}

static void plan_fault(void)
{
    static const int calls[] = {WSPY_SYS_ALLOCATE, WSPY_SYS_RECV, WSPY_SYS_SEND, WSPY_SYS_EPOLL_CTL};
    static const int errors[][2] = {{ENOMEM, ENOMEM}, {EAGAIN, ECONNRESET}, {EAGAIN, EPIPE}, {ENOMEM, ENOSPC}};
    uint8_t choice = take();
    fake_fail(calls[choice & 3], choice >> 3, 1, errors[choice & 3][choice >> 2 & 1]);
}

static void operate(uint8_t operation)
{
    trace("operation %#x\n", operation);
    switch (operation & 7) {
    case 0:
        connect_peer(operation >> 3);
        return;
    case 1:
    case 2:
        act_as_peer(take());
        return;
    case 3:
    case 4:
        command_guest(take());
        return;
    case 5:
        turn(0);
        return;
    case 6:
        if (operation & 8)
            plan_fault();
        else if (operation & 16)
            fake.now_ns += (operation & 32 ? 11000 : 100) * UINT64_C(1000000);
        else
            settle();
        return;
    default:
        run.is_late ^= operation >> 3 & 1;
        run.is_wrong ^= operation >> 4 & 1;
        fake.short_size = operation & 32 ? 7 : 0;
        fake.short_calls = operation & 32 ? 50 : 0;
    }
}

static void end(void)
{
    fake_forget_faults();
    run.is_wrong = 0;
    fake.short_size = fake.short_calls = 0;
    for (int i = 0; i < fake.peer_count; i++)
        fake.peers[i].window = 1 << 30;
    fake.progress++;
    settle();
    for (int i = 0; i < fake.peer_count; i++)
        if (run.guests[i].handle && !run.guests[i].is_gone)
            push(WSPY_COMMAND_ABORT, run.guests[i].handle, NULL, 0);
    for (int i = 0; i < fake.peer_count; i++)
        fake.peers[i].has_ended = 1;
    settle();
    fake.now_ns += UINT64_C(60000000000);
    settle();
    for (int i = 0; i < fake.peer_count; i++)
        require(!run.guests[i].handle || run.guests[i].is_gone);
    wspy_stats stats;
    require(wspy_loop_stats(run.loop, &stats) == WSPY_OK && stats.connections == 0 && stats.backlog == 0);
}

static void read_settings(void)
{
    static const uint32_t writes[] = {WSPY_FOREVER, 30000, 300, 20},
                          silences[] = {WSPY_FOREVER, 60000, 500, 50};
    static const uint32_t controls[] = {0, 100, 5, 1};
    uint8_t choice = take(), stays = take();
    run.settings = (wspy_settings){
        .limits = {.max_size = 1 << 20, .max_fragment_size = UINT64_MAX, .max_fragments = 1000},
        .head = {.max_line = 8192, .max_field = 8192, .max_size = 65536, .max_fields = 128},
        .max_backlog = choice & 1 ? 1 << 30 : 20000,
        .open_timeout_ms = choice & 2 ? 10000 : WSPY_FOREVER,
        .close_timeout_ms = choice & 4 ? 10000 : 30,
        .idle_request_ms = 5000,
        .ping_interval_ms = choice & 8 ? 20000 : WSPY_FOREVER,
        .ping_timeout_ms = 20000,
        .write_timeout_ms = writes[stays & 3],
        .idle_timeout_ms = silences[stays >> 2 & 3],
        .max_controls = controls[stays >> 4 & 3],
        .wants = choice >> 4 & 15,
        .write_limit = 5000,
        .raw = 1,
    };
    if (choice & 128)
        run.settings.wants |= WSPY_WANT_ENDING;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    run.at = input;
    run.end = input + size;
    fake_reset();
    run.batch_size = 8;
    run.applied = run.count = run.late_size = run.late_count = 0;
    run.is_late = run.is_wrong = 0;
    if (!run.batch) {
        run.batch = malloc(BATCH_MAX);
        run.late = malloc(BATCH_MAX);
    }
    read_settings();
    fake.is_exempt = 1;
    run.packed = wspy_sys_reserve(wspy_loop_packed_size());
    fake.is_exempt = 0;
    run.loop = wspy_loop_new(&run.settings, run.packed);
    require(run.loop != NULL);
    for (int i = 0; i < OPERATIONS_MAX && run.at < run.end; i++)
        operate(take());
    end();
    for (int i = 0; i < fake.peer_count; i++)
        free(run.guests[i].sealed);
    memset(run.guests, 0, sizeof run.guests);
    wspy_loop_free(run.loop);
    wspy_sys_unreserve(run.packed, wspy_loop_packed_size());
    require(fake.open_count == 0 && fake.allocated == 0);
    return 0;
}
