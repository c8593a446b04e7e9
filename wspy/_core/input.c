/* input.c: what one connection of the loop reads in each phase, and what becomes of it.
 *
 * Reading stops lazily: a connection that may not read leaves the epoll set when an event arrives that it may not
 * consume, and not before. */
#include <errno.h>
#include <string.h>

#include "connection.h"
#include "sys.h"

void wspy_connection_read_later(wspy_loop *loop, connection *conn)
{
    conn->flags |= UNREAD;
    wspy_loop_list_ready(loop, conn);
}

void wspy_connection_resume(wspy_loop *loop, connection *conn)
{
    if (conn->raw && conn->phase < ENDING && wspy_raw_is_readable(conn->raw) && wspy_connection_may_read(conn))
        wspy_connection_read_later(loop, conn);
}

ssize_t wspy_connection_peek(const connection *conn)
{
    return conn->raw && wspy_raw_is_readable(conn->raw) ? wspy_raw_has_input(conn->raw)
                                                        : wspy_sys_peek(conn->fd);
}

static ssize_t receive(connection *conn, void *data, size_t length)
{
    return conn->raw ? wspy_raw_recv(conn->raw, data, length) : wspy_sys_recv(conn->fd, data, length);
}

int wspy_connection_may_read(const connection *conn)
{
    switch (conn->phase) {
    case HEAD:
    case LINGER:
        return 1;
    case DECIDING:
    case OPENING:
        return wspy_connection_kept(conn) < KEPT_MAX && !(conn->flags & SAW_EOF);
    case OPEN:
        return !(conn->flags & PAUSED) && conn->credit > 0;
    default:
        return 0;
    }
}

/* ---- input that can't be decoded yet ---- */

enum { INPUT_MIN = 192, INPUT_LARGE = 1024 };

void wspy_connection_forget_input(connection *conn)
{
    wspy_sys_free(conn->input);
    conn->input = NULL;
}

/* Adds to what is kept; data may lie anywhere but in conn->input. */
static int keep(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length)
{
    if (length == 0)
        return 1;
    uint32_t kept = wspy_connection_kept(conn);
    wspy_input *input = conn->input;
    if (!input || input->capacity - input->end < length) {
        size_t capacity = kept + length < INPUT_MIN ? INPUT_MIN : (kept + length) * 2;
        input = wspy_sys_allocate(sizeof *input + capacity);
        if (!input) {
            wspy_connection_end(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
            return 0;
        }
        *input = (wspy_input){.end = kept, .capacity = (uint32_t)capacity};
        if (kept)
            memcpy(input->data, conn->input->data + conn->input->start, kept);
        wspy_sys_free(conn->input);
        conn->input = input;
    }
    memcpy(input->data + input->end, data, length);
    input->end += (uint32_t)length;
    return 1;
}

/* ---- decoding ---- */

/* A remainder does not hold on to the memory of what it is the rest of. */
static void shrink_input(connection *conn)
{
    uint32_t kept = wspy_connection_kept(conn);
    if (kept == 0) {
        wspy_connection_forget_input(conn);
        return;
    }
    if (kept > INPUT_MIN || conn->input->capacity <= INPUT_LARGE)
        return;
    wspy_input *small = wspy_sys_allocate(sizeof *small + INPUT_MIN);
    if (!small) /* then it does */
        return;
    *small = (wspy_input){.end = kept, .capacity = INPUT_MIN};
    memcpy(small->data, conn->input->data + conn->input->start, kept);
    wspy_connection_forget_input(conn);
    conn->input = small;
}

static void begin_decoding(wspy_loop *loop, connection *conn)
{
    wspy_connection_report_opened(loop, conn);
    loop->sink.slot = conn->slot;
    loop->sink.credit = conn->credit;
    loop->sink.frames = loop->sink.controls = loop->sink.data_frames = 0;
    loop->sink.pong = 0;
    loop->before.frame_left = conn->protocol.frame_left;
    loop->before.messages = loop->sink.messages;
    loop->before.events = loop->sink.count;
}

/* A peer that makes us answer again and again makes no progress. */
static void count_controls(wspy_loop *loop, connection *conn, uint32_t count)
{
    uint32_t most = loop->settings.max_controls;
    if ((loop->tick - conn->counting) * WSPY_TICK_MS >= 1000) {
        conn->counting = loop->tick;
        conn->controls = 0;
    }
    conn->controls += count;
    if (most && conn->controls > most)
        wspy_protocol_fail(&conn->protocol, WSPY_ERROR_CONTROL_RATE);
}

/* Control frames are none, also within a message. */
static int has_data_progress(const wspy_loop *loop, const connection *conn)
{
    return loop->sink.messages != loop->before.messages || loop->sink.data_frames ||
           conn->protocol.frame_left != loop->before.frame_left;
}

static void note_what_was_found(wspy_loop *loop, connection *conn)
{
    if (has_data_progress(loop, conn))
        conn->active = loop->tick;
    conn->is_chatty = loop->sink.frames > loop->sink.count - loop->before.events + CHATTY_FRAMES;
    if (loop->sink.pong)
        wspy_connection_ponged(conn, loop->sink.pong);
    if (loop->sink.controls)
        count_controls(loop, conn, loop->sink.controls);
}

static void end_decoding(wspy_loop *loop, connection *conn)
{
    conn->credit = loop->sink.credit;
    note_what_was_found(loop, conn);
    wspy_connection_send_replies(loop, conn);
    if (wspy_protocol_running(&conn->protocol))
        return;
    if (conn->protocol.error)
        loop->stats.protocol_errors++;
    wspy_connection_forget_input(conn);
    wspy_connection_end(loop, conn, conn->protocol.error, 0);
}

/* Feeds bytes that lie at the arena's end. Payloads that are not short stay where they are, so the arena grows if
 * there were any. */
static size_t feed_arena(wspy_loop *loop, connection *conn, size_t length)
{
    uint8_t *data = loop->arena + loop->arena_used;
    uint32_t before = loop->sink.apart;
    size_t used = wspy_protocol_feed(&conn->protocol, data, length, &loop->sink);
    if (loop->sink.apart != before)
        loop->arena_used += length;
    return used;
}

static int can_go_on(const wspy_loop *loop, const connection *conn)
{
    return wspy_protocol_running(&conn->protocol) && loop->sink.credit > 0 && wspy_loop_has_room(loop);
}

static void decode_kept_frames(wspy_loop *loop, connection *conn)
{
    enum { SLICE = 16384 }; /* with a small credit, the same bytes are not copied again and again */
    if (conn->flags & PAUSED)
        return;
    begin_decoding(loop, conn);
    wspy_input *input = conn->input;
    size_t used = 1;
    while (used && input->start < input->end && can_go_on(loop, conn)) {
        size_t length = input->end - input->start < SLICE ? input->end - input->start : SLICE;
        memcpy(loop->arena + loop->arena_used, input->data + input->start, length);
        used = feed_arena(loop, conn, length);
        input->start += (uint32_t)used;
    }
    shrink_input(conn);
    if (conn->input && used && wspy_protocol_running(&conn->protocol) && loop->sink.credit > 0)
        wspy_loop_list_ready(loop, conn); /* the turn is full */
    end_decoding(loop, conn);
}

/* ---- reading ---- */

static void received(wspy_loop *loop, connection *conn, size_t length)
{
    conn->seen = loop->tick;
    loop->stats.bytes_received += length;
}

/* What recv says when it brings nothing: the end, or just not now. */
static void nothing_received(wspy_loop *loop, connection *conn, ssize_t got)
{
    if (got < 0 && wspy_sys_would_block(errno)) {
        if (conn->end_errno && !conn->raw) /* of a write that failed: now everything is read */
            wspy_connection_end(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
        return;
    }
    conn->flags |= SAW_EOF;
    if (got < 0) {
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, errno);
        return;
    }
    if (conn->phase == DECIDING) { /* a request, then half-close: the answer is still due (RFC 9112 §9.6) */
        wspy_connection_stop_reading(loop, conn);
        return;
    }
    if (conn->phase == HEAD && wspy_connection_owes_answer(conn)) { /* the same, and the answer is on its way */
        conn->phase = DECIDING;
        wspy_connection_end(loop, conn, WSPY_OK, 0);
        return;
    }
    if (conn->phase == OPENING) { /* nobody waits for the rest of the 101 */
        conn->flags &= (uint16_t)~SENDABLE;
        wspy_connection_drop_queue(conn);
    }
    /* a write that failed before has said why */
    wspy_connection_end(loop, conn, conn->end_errno ? WSPY_ERROR_RESET : WSPY_ERROR_EOF, conn->end_errno);
}

/* Large payloads go straight to where they are assembled. */
static ssize_t read_direct(wspy_loop *loop, connection *conn, uint8_t *at, size_t asked)
{
    ssize_t got = receive(conn, at, asked);
    if (got <= 0) {
        nothing_received(loop, conn, got);
        return got;
    }
    received(loop, conn, (size_t)got);
    begin_decoding(loop, conn);
    wspy_protocol_filled(&conn->protocol, (size_t)got, &loop->sink);
    end_decoding(loop, conn);
    return got;
}

static ssize_t read_to_arena(wspy_loop *loop, connection *conn, size_t asked)
{
    uint8_t *at = loop->arena + loop->arena_used;
    uint32_t kept = wspy_connection_kept(conn);
    ssize_t got = receive(conn, at + kept, asked);
    if (got <= 0) {
        nothing_received(loop, conn, got);
        return got;
    }
    received(loop, conn, (size_t)got);
    if (kept) {
        memcpy(at, conn->input->data + conn->input->start, kept);
        conn->input->start = conn->input->end = 0;
        if (conn->input->capacity > INPUT_LARGE)
            wspy_connection_forget_input(conn);
    }
    begin_decoding(loop, conn);
    size_t length = kept + (size_t)got;
    size_t used = feed_arena(loop, conn, length);
    if (used == length)
        wspy_connection_forget_input(conn);
    else if (keep(loop, conn, at + used, length - used) && loop->sink.credit > 0 && !wspy_loop_has_room(loop))
        wspy_loop_list_ready(loop, conn);
    end_decoding(loop, conn);
    return got;
}

static void read_frames(wspy_loop *loop, connection *conn)
{
    size_t budget = conn->is_chatty ? CHATTY_READ : READ_MAX;
    if (conn->flags & LISTED_READY) /* first what was read before */
        return;
    if (!wspy_loop_has_room(loop)) {
        wspy_connection_read_later(loop, conn);
        return;
    }
    while (budget && conn->phase == OPEN && wspy_connection_may_read(conn) && wspy_loop_has_room(loop)) {
        size_t asked;
        uint8_t *direct = wspy_protocol_room(&conn->protocol, &asked);
        if (!direct || asked > budget)
            asked = budget;
        if (conn->protocol.error) { /* no memory for the payload */
            wspy_connection_end(loop, conn, conn->protocol.error, 0);
            return;
        }
        ssize_t got = direct ? read_direct(loop, conn, direct, asked) : read_to_arena(loop, conn, asked);
        if (got <= 0 || (size_t)got < asked)
            return;
        budget -= (size_t)got;
    }
}

/* ---- request heads ---- */

static void surface(wspy_loop *loop, connection *conn)
{
    conn->phase = DECIDING;
    conn->flags |= SURFACED;
    loop->heads++;
    if (conn->timer.next && wspy_connection_is_late(loop, conn)) /* the decision can't be late already */
        wspy_connection_arm(loop, conn, GRACE_MS);
}

void wspy_connection_refuse_head(wspy_loop *loop, connection *conn, int error)
{
    surface(loop, conn);
    conn->requests = REQUESTS_MAX; /* where the next one begins is unknown: the answer is the last */
    conn->is_refused = 1;
    wspy_connection_forget_input(conn);
    loop->stats.refused++;
    wspy_connection_event(loop, conn, WSPY_EVENT_BAD_HEAD)->start = (uint32_t)-error;
}

/* The head is what was kept and data[:length]; `behind` more bytes follow it there. */
static void surface_head(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length, size_t behind)
{
    uint8_t *free_space = loop->arena + loop->arena_used;
    const uint8_t *head = data;
    uint32_t kept = wspy_connection_kept(conn);
    loop->arena_used += length + behind;
    if (kept) { /* make it one piece */
        head = free_space + length + behind;
        memcpy(free_space + length + behind, conn->input->data + conn->input->start, kept);
        memcpy(free_space + length + behind + kept, data, length);
        loop->arena_used += kept + length;
        wspy_connection_forget_input(conn);
    }
    surface(loop, conn);
    if (conn->requests < UINT16_MAX)
        conn->requests++;
    wspy_event *event = wspy_connection_event(loop, conn, WSPY_EVENT_HEAD | WSPY_EVENT_APART);
    event->start = (uint32_t)(head - loop->arena);
    event->length = kept + (uint32_t)length;
    keep(loop, conn, data + length, behind);
}

/* data lies at the arena's end. */
static void scan_head(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length)
{
    if (conn->requests && conn->scanner.size == 0) /* the next request of a kept-alive connection begins */
        wspy_connection_arm(loop, conn, loop->settings.open_timeout_ms);
    int end = wspy_head_feed(&conn->scanner, &loop->settings.head, data, (uint32_t)length);
    if (end < 0)
        wspy_connection_refuse_head(loop, conn, end);
    else if (end > 0)
        surface_head(loop, conn, data, (size_t)end, length - (size_t)end);
    else
        keep(loop, conn, data, length);
}

/* Whether ciphertext has to come first. */
static int lacks_plaintext(const connection *conn)
{
    return conn->raw && !wspy_raw_is_readable(conn->raw);
}

static void read_head(wspy_loop *loop, connection *conn)
{
    if (lacks_plaintext(conn)) {
        wspy_raw_fetch(loop, conn);
        return;
    }
    uint8_t *at = loop->arena + loop->arena_used;
    ssize_t got = receive(conn, at, HEAD_READ);
    if (got <= 0) {
        nothing_received(loop, conn, got);
        return;
    }
    received(loop, conn, (size_t)got);
    scan_head(loop, conn, at, (size_t)got);
}

/* Requests that were pipelined behind an answered one. */
static void scan_kept(wspy_loop *loop, connection *conn)
{
    wspy_input *input = conn->input;
    uint8_t *at = loop->arena + loop->arena_used;
    size_t length = wspy_connection_kept(conn);
    memcpy(at, input->data + input->start, length);
    wspy_connection_forget_input(conn);
    scan_head(loop, conn, at, length);
}

/* Bytes behind a head that waits for its decision. */
static void read_behind_head(wspy_loop *loop, connection *conn)
{
    if (!wspy_loop_has_room(loop))
        return;
    uint8_t *at = loop->arena + loop->arena_used;
    ssize_t got = receive(conn, at, KEPT_MAX - wspy_connection_kept(conn));
    if (got <= 0) {
        nothing_received(loop, conn, got);
        return;
    }
    received(loop, conn, (size_t)got);
    keep(loop, conn, at, (size_t)got);
}

static void discard(wspy_loop *loop, connection *conn)
{
    uint8_t *at = loop->arena + loop->arena_used;
    ssize_t got = wspy_sys_recv(conn->fd, at, HEAD_READ);
    if (got < 0 && wspy_sys_would_block(errno))
        return;
    if (got <= 0 || (uint32_t)got >= conn->credit) {
        wspy_connection_drop(loop, conn);
        return;
    }
    conn->credit -= (uint32_t)got;
}

void wspy_connection_readable(wspy_loop *loop, connection *conn)
{
    if (!wspy_connection_may_read(conn)) {
        wspy_connection_stop_reading(loop, conn);
        return;
    }
    if (conn->phase > HEAD && conn->phase < LINGER && lacks_plaintext(conn)) {
        wspy_raw_fetch(loop, conn);
        return;
    }
    switch (conn->phase) {
    case HEAD:
        wspy_connection_read_later(loop, conn); /* established connections come first */
        return;
    case DECIDING:
    case OPENING:
        read_behind_head(loop, conn);
        return;
    case OPEN:
        read_frames(loop, conn);
        return;
    default:
        discard(loop, conn);
    }
}

void wspy_connection_wake(wspy_loop *loop, connection *conn)
{
    if (conn->input && conn->phase == OPEN)
        wspy_loop_list_ready(loop, conn);
    wspy_connection_resume(loop, conn);
    wspy_connection_poll(loop, conn);
}

/* Reads until there is nothing, or until nobody wants more. */
static void go_on_to_the_end(wspy_loop *loop, connection *conn)
{
    if (wspy_connection_may_read(conn))
        wspy_connection_read_later(loop, conn);
    else
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
}

void wspy_connection_go_on(wspy_loop *loop, connection *conn)
{
    if (conn->flags & DONE)
        return;
    if (conn->input && conn->phase == OPEN)
        decode_kept_frames(loop, conn);
    else if (conn->input && conn->phase == HEAD && conn->scanner.size == 0) /* else it was scanned before */
        scan_kept(loop, conn);
    if (!(conn->flags & UNREAD) || conn->flags & (LISTED_READY | DONE))
        return;
    conn->flags &= (uint16_t)~UNREAD;
    if (conn->phase == HEAD)
        read_head(loop, conn);
    else
        wspy_connection_readable(loop, conn);
    if (conn->end_errno && conn->phase == OPEN) /* of a write that failed */
        go_on_to_the_end(loop, conn);
    else if (!(conn->flags & DONE))
        wspy_connection_resume(loop, conn);
}
