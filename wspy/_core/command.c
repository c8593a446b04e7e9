/* command.c: what Python asks of the loop, in order: a batch of numbered records.
 *
 * Commands for a connection that is gone are skipped: Python learns of its end by CLOSED, not by errors here. */
#include <string.h>

#include "connection.h"
#include "sys.h"

enum { RECORD_HEAD = 8 + 4 };

/* Walks a batch. */
typedef struct {
    const uint8_t *next, *end; /* of what was not looked at */
    uint64_t number, key;
    const uint8_t *payload;
    uint32_t length;
    int has_record;
} cursor;

static size_t left(const cursor *at)
{
    return (size_t)(at->end - at->next);
}

static void load(cursor *at)
{
    at->has_record = 0;
    if (left(at) < RECORD_HEAD)
        return;
    memcpy(&at->key, at->next, 8);
    memcpy(&at->length, at->next + 8, 4);
    if (left(at) - RECORD_HEAD < at->length)
        return;
    at->payload = at->next + RECORD_HEAD;
    at->next = at->payload + at->length;
    at->has_record = 1;
}

static void advance(cursor *at)
{
    at->number++;
    load(at);
}

static int command_of(uint64_t key)
{
    return (int)(key >> WSPY_COMMAND_SHIFT);
}

static uint64_t handle_of(uint64_t key)
{
    return key & ((UINT64_C(1) << WSPY_COMMAND_SHIFT) - 1);
}

/* ---- sends: consecutive ones for a connection leave in one system call ---- */

static void add_part(wspy_run *run, const uint8_t *payload, size_t length)
{
    run->length += length;
    struct iovec *last = run->count ? &run->parts[run->count - 1] : NULL;
    if (last && (const uint8_t *)last->iov_base + last->iov_len == payload) {
        last->iov_len += length;
        return;
    }
    run->parts[run->count++] = (struct iovec){.iov_base = (void *)(uintptr_t)payload, .iov_len = length};
}

/* Short frames are put together in the scratch; a long one is sent from where it lies. */
enum { SHORT_FRAME = 8192 + WSPY_HEADER_MAX, RUN_MAX = 256 << 10 };

static void add_near(wspy_run *run, uint8_t **scratch, const uint8_t *data, size_t length)
{
    if (length > SHORT_FRAME) {
        add_part(run, data, length);
        return;
    }
    memcpy(*scratch, data, length);
    add_part(run, *scratch, length);
    *scratch += length;
}

static void add_far(wspy_run *run, uint8_t **scratch, const uint8_t *data, size_t length)
{
    wspy_far far;
    if (length < sizeof far || length > sizeof far + WSPY_HEADER_MAX)
        return;
    memcpy(&far, data, sizeof far);
    add_near(run, scratch, data + sizeof far, length - sizeof far);
    add_part(run, (const uint8_t *)(uintptr_t)far.address, (size_t)far.length);
}

/* A run ends behind a frame, so that what is queued of it does too, and soon enough for max_backlog to be looked at as
 * if each message came alone. */
static int is_full(const wspy_loop *loop, const wspy_run *run, const uint8_t *scratch)
{
    enum { PARTS = sizeof run->parts / sizeof *run->parts };
    return run->count > PARTS - 2 || run->mark_count == PARTS || run->length > loop->settings.max_backlog ||
           run->length >= RUN_MAX || scratch > loop->scratch + SCRATCH_SIZE - SHORT_FRAME;
}

static void apply_sends(wspy_loop *loop, cursor *at)
{
    uint64_t handle = handle_of(at->key);
    connection *conn = wspy_loop_find(loop, handle);
    uint8_t *scratch = loop->scratch;
    wspy_run run;
    run.count = run.length = run.mark_count = 0;
    run.is_frames = 1;
    while (at->has_record && handle_of(at->key) == handle && command_of(at->key) <= WSPY_COMMAND_SEND_LAST &&
           !is_full(loop, &run, scratch)) {
        if (command_of(at->key) & WSPY_COMMAND_FAR)
            add_far(&run, &scratch, at->payload, at->length);
        else
            add_near(&run, &scratch, at->payload, at->length);
        if (command_of(at->key) & WSPY_COMMAND_MARK)
            run.mark_ends[run.mark_count++] = run.length;
        advance(at);
    }
    if (!conn || !run.length)
        return;
    conn->active = loop->tick; /* here, since Pings and Pongs of the core's own don't count */
    wspy_connection_send(loop, conn, &run);
}

/* ---- the handshake ---- */

static void push_marked(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length)
{
    wspy_run run = {.parts = {{.iov_base = (void *)(uintptr_t)data, .iov_len = length}},
                    .count = 1,
                    .length = length,
                    .mark_ends = {length},
                    .mark_count = 1};
    wspy_connection_send(loop, conn, &run);
}

static void apply_accept(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    wspy_accept accept;
    if (conn->phase != DECIDING || length < sizeof accept)
        return;
    memcpy(&accept, payload, sizeof accept);
    wspy_protocol_init(&conn->protocol, &loop->settings.limits, WSPY_SERVER, accept.granularity, accept.rsv,
                       accept.opcodes);
    conn->credit = accept.credit;
    conn->phase = OPENING;
    conn->flags |= SENDABLE | UPGRADED;
    /* the mark at its end is what makes the connection OPEN: nothing can be written before the 101 */
    push_marked(loop, conn, payload + sizeof accept, length - sizeof accept);
}

static void apply_respond(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    if (conn->phase != DECIDING || length < 1)
        return;
    int keep_alive = payload[0] && !(conn->flags & SAW_EOF) && conn->requests < REQUESTS_MAX;
    wspy_run run = {.parts = {{.iov_base = (void *)(uintptr_t)(payload + 1), .iov_len = length - 1}},
                    .count = 1,
                    .length = length - 1};
    conn->flags = (uint16_t)((conn->flags & ~SURFACED) | SENDABLE);
    wspy_connection_send(loop, conn, &run);
    conn->flags &= (uint16_t)~SENDABLE;
    if (conn->phase != DECIDING) /* the send failed */
        return;
    if (!keep_alive) {
        wspy_connection_end(loop, conn, WSPY_OK, 0);
        return;
    }
    conn->phase = HEAD;
    conn->scanner = (wspy_head_scanner){0};
    wspy_connection_arm(loop, conn, loop->settings.idle_request_ms);
    if (conn->input)
        wspy_loop_list_ready(loop, conn);
    wspy_connection_resume(loop, conn);
    wspy_connection_poll(loop, conn);
}

/* A browser opens connections to spare: what is said there unasked, it takes for the answer to its next request. */
static void refuse(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    int has_begun = conn->scanner.size > 0 || wspy_connection_peek(conn) > 0;
    int has_answer = wspy_connection_owes_answer(conn); /* to the request before */
    if (!has_begun && !has_answer) {
        wspy_connection_drop(loop, conn);
        return;
    }
    if (!has_answer) { /* the kernel takes it all, or nobody is listening */
        struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = length};
        (void)(conn->raw ? wspy_raw_send(loop, conn, &part, 1) : wspy_sys_send(conn->fd, &part, 1));
    }
    conn->phase = DECIDING;
    wspy_connection_end(loop, conn, WSPY_OK, 0);
}

static void apply_refuse(wspy_loop *loop, const uint8_t *payload, size_t length)
{
    for (uint32_t slot = 0; slot < loop->slot_count; slot++) {
        connection *conn = wspy_loop_slot(loop, slot);
        if (conn->phase == HEAD)
            refuse(loop, conn, payload, length);
    }
}

/* ---- flow of input ---- */

static void apply_grant(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    uint32_t more;
    if (length != sizeof more || (conn->phase != OPENING && conn->phase != OPEN))
        return;
    memcpy(&more, payload, sizeof more);
    uint32_t room = WSPY_FOREVER - conn->credit;
    conn->credit = more > room ? WSPY_FOREVER : conn->credit + more;
    wspy_connection_wake(loop, conn);
}

/* ---- extensions ---- */

static void apply_fail(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    uint16_t close_code;
    if (length != sizeof close_code)
        return;
    memcpy(&close_code, payload, sizeof close_code);
    if (wspy_close_code_valid(close_code))
        wspy_connection_fail(loop, conn, close_code);
}

/* ---- one payload for many ---- */

static void apply_broadcast(wspy_loop *loop, int is_marked, const uint8_t *payload, size_t length)
{
    uint32_t count;
    if (length < sizeof count)
        return;
    memcpy(&count, payload, sizeof count);
    const uint8_t *handles = payload + sizeof count;
    size_t handles_size = count == WSPY_FOREVER ? 0 : 8 * (size_t)count;
    if (length - sizeof count < handles_size)
        return;
    const uint8_t *frame = handles + handles_size;
    size_t frame_length = length - sizeof count - handles_size;
    uint32_t most = count == WSPY_FOREVER ? loop->slot_count : count;
    wspy_shared *shared = NULL;
    for (uint32_t i = 0; i < most; i++) {
        uint64_t handle;
        connection *conn;
        if (count == WSPY_FOREVER) {
            conn = wspy_loop_slot(loop, i);
        } else {
            memcpy(&handle, handles + 8 * (size_t)i, 8);
            conn = wspy_loop_find(loop, handle);
        }
        if (!conn || conn->phase < OPENING || conn->phase > ENDING)
            continue;
        /* one with a mark was noted already: who notes it has looked at the backlog */
        uint64_t limit = is_marked ? 0 : loop->settings.broadcast_limit;
        if (limit && conn->flags & SENDABLE && wspy_connection_unsent(conn) > limit)
            loop->stats.passed_over++;
        else
            wspy_connection_send_shared(loop, conn, frame, frame_length, &shared, is_marked);
    }
    wspy_shared_release(shared);
    loop->stats.broadcasts++;
}

static void apply_to_connection(wspy_loop *loop, const cursor *at, connection *conn)
{
    switch (command_of(at->key)) {
    case WSPY_COMMAND_ACCEPT:
        apply_accept(loop, conn, at->payload, at->length);
        return;
    case WSPY_COMMAND_RESPOND:
        apply_respond(loop, conn, at->payload, at->length);
        return;
    case WSPY_COMMAND_CLOSE:
        wspy_connection_close(loop, conn, at->payload, at->length);
        return;
    case WSPY_COMMAND_ABORT:
        wspy_connection_abort(loop, conn);
        return;
    case WSPY_COMMAND_PAUSE:
        conn->flags |= PAUSED;
        return;
    case WSPY_COMMAND_RESUME:
        conn->flags &= (uint16_t)~PAUSED;
        wspy_connection_wake(loop, conn);
        return;
    case WSPY_COMMAND_FINISH:
        wspy_connection_let_finish(loop, conn);
        return;
    case WSPY_COMMAND_FAIL:
        apply_fail(loop, conn, at->payload, at->length);
        return;
    case WSPY_COMMAND_FEED:
        wspy_raw_feed(loop, conn, at->payload, at->length);
        return;
    case WSPY_COMMAND_FEED_END:
        wspy_raw_feed_end(loop, conn, at->length && at->payload[0]);
        return;
    case WSPY_COMMAND_RAW_SEND:
        if (at->length)
            wspy_raw_send_ciphertext(loop, conn, at->payload[0], at->payload + 1, at->length - 1);
        return;
    case WSPY_COMMAND_GRANT:
        apply_grant(loop, conn, at->payload, at->length);
        return;
    default:
        return;
    }
}

static void apply_one(wspy_loop *loop, const cursor *at)
{
    int command = command_of(at->key);
    if (command == WSPY_COMMAND_BROADCAST) {
        apply_broadcast(loop, handle_of(at->key) == WSPY_BROADCAST_MARK, at->payload, at->length);
        return;
    }
    if (command == WSPY_COMMAND_REFUSE) {
        apply_refuse(loop, at->payload, at->length);
        return;
    }
    connection *conn = wspy_loop_find(loop, handle_of(at->key));
    if (conn)
        apply_to_connection(loop, at, conn);
}

int wspy_commands_apply(wspy_loop *loop, const char *batch, size_t size)
{
    if (size < 8)
        return WSPY_ERROR_ARGUMENT;
    cursor at = {.next = (const uint8_t *)batch + 8, .end = (const uint8_t *)batch + size};
    memcpy(&at.number, batch, 8);
    if (at.number > loop->applied) /* a gap: commands were lost on the way */
        return WSPY_ERROR_ARGUMENT;
    load(&at);
    /* another thread has applied these already */
    while (at.has_record && at.number < loop->applied)
        advance(&at);
    while (at.has_record) {
        if (command_of(at.key) <= WSPY_COMMAND_SEND_LAST) {
            apply_sends(loop, &at);
            continue;
        }
        apply_one(loop, &at);
        advance(&at);
    }
    if (at.number > loop->applied)
        __atomic_store_n(&loop->applied, at.number, __ATOMIC_RELEASE); /* it is read without the lock */
    return left(&at) == 0 ? WSPY_OK : WSPY_ERROR_ARGUMENT;
}
