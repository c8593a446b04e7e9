/* connection.c: the life of one connection of the loop: what is read, written and decided in each phase.
 *
 * Reading stops lazily: a connection that may not read leaves the epoll set when an event arrives that it may not
 * consume, and not before. An end is decided at once and carried out after the next commands
 * (wspy_connection_finish), so that replies to everything delivered before still leave. */
#include <errno.h>
#include <string.h>

#include "loop.h"
#include "sys.h"

/* ---- deadlines ---- */

void wspy_connection_arm(wspy_loop *loop, connection *conn, uint32_t delay_ms)
{
    if (delay_ms == WSPY_FOREVER) {
        wspy_wheel_cancel(&loop->wheel, &conn->timer);
        return;
    }
    uint64_t now = loop->now_ms / WSPY_TICK_MS;
    uint64_t at = (loop->now_ms + delay_ms + WSPY_TICK_MS - 1) / WSPY_TICK_MS;
    wspy_wheel_set(&loop->wheel, &conn->timer, at > now ? at : now + 1);
}

/* The loop did not turn for a while: what was due then could not be looked at in time. */
static int is_late(const wspy_loop *loop, const connection *conn)
{
    uint32_t behind = loop->tick - conn->timer.at;
    return behind >= LATE_TICKS && behind <= INT32_MAX;
}

/* ---- the epoll set ---- */

static void set_interest(wspy_loop *loop, connection *conn, int reads, int writes)
{
    uint16_t wanted = (uint16_t)((reads ? READS : 0) | (writes ? WRITES : 0));
    if ((conn->flags & (READS | WRITES)) == wanted)
        return;
    struct epoll_event event = {.events = (reads ? EPOLLIN | EPOLLRDHUP : 0u) | (writes ? EPOLLOUT : 0u),
                                .data.u64 = wspy_connection_handle(conn)};
    int operation = !wanted ? EPOLL_CTL_DEL : conn->flags & IN_EPOLL ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int failed = wspy_sys_epoll_ctl(loop->epoll, operation, conn->fd, &event) < 0;
    if (failed && wanted) { /* the set is as it was */
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, errno);
        return;
    }
    conn->flags = (uint16_t)((conn->flags & ~(READS | WRITES | IN_EPOLL)) | wanted | (wanted ? IN_EPOLL : 0));
}

static uint32_t kept_size(const connection *conn)
{
    return conn->input ? conn->input->end - conn->input->start : 0;
}

static int may_read(const connection *conn)
{
    switch (conn->phase) {
    case HEAD:
    case LINGER:
        return 1;
    case DECIDING:
    case OPENING:
        return kept_size(conn) < KEPT_MAX && !(conn->flags & SAW_EOF);
    case OPEN:
        return !(conn->flags & PAUSED) && conn->credit > 0;
    default:
        return 0;
    }
}

void wspy_connection_poll(wspy_loop *loop, connection *conn)
{
    if (conn->flags & DONE)
        return;
    set_interest(loop, conn, may_read(conn) || conn->flags & READS, conn->queue != NULL);
}

int wspy_connection_begin(wspy_loop *loop, connection *conn)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = wspy_connection_handle(conn)};
    if (wspy_sys_epoll_ctl(loop->epoll, EPOLL_CTL_ADD, conn->fd, &event) < 0)
        return 0;
    conn->flags = READS | IN_EPOLL;
    conn->phase = HEAD;
    return 1;
}

static void stop_reading(wspy_loop *loop, connection *conn)
{
    set_interest(loop, conn, 0, conn->queue != NULL);
}

/* It comes first in the next turn. */
static void read_later(wspy_loop *loop, connection *conn)
{
    conn->flags |= UNREAD;
    wspy_loop_list_ready(loop, conn);
}

/* ---- input that can't be decoded yet ---- */

enum { INPUT_MIN = 192, INPUT_LARGE = 1024 };

static void forget_input(connection *conn)
{
    wspy_sys_free(conn->input);
    conn->input = NULL;
}

/* Adds to what is kept; data may lie anywhere but in conn->input. */
static int keep(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length)
{
    if (length == 0)
        return 1;
    uint32_t kept = kept_size(conn);
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

/* ---- ending ---- */

/* Ends that leave nothing to be written. */
static int is_hard(int error)
{
    switch (error) {
    case WSPY_ERROR_RESET:
    case WSPY_ERROR_NO_MEMORY:
    case WSPY_ERROR_ABORTED:
    case WSPY_ERROR_BACKLOG:
    case WSPY_ERROR_OPEN_TIMEOUT:
    case WSPY_ERROR_CLOSE_TIMEOUT:
    case WSPY_ERROR_PING_TIMEOUT:
        return 1;
    default:
        return 0;
    }
}

void wspy_connection_end(wspy_loop *loop, connection *conn, int error, int system_error)
{
    if (conn->phase >= ENDING || conn->phase == FREE) /* the first cause is the one reported */
        return;
    if (conn->phase == HEAD) { /* nobody knows it */
        loop->stats.refused++;
        wspy_connection_drop(loop, conn);
        return;
    }
    conn->end_error = (int8_t)error;
    if (!conn->end_errno) /* else a write has failed before */
        conn->end_errno = system_error;
    conn->phase = ENDING;
    if (is_hard(error))
        conn->flags &= (uint16_t)~SENDABLE;
    wspy_wheel_cancel(&loop->wheel, &conn->timer);
    wspy_loop_list_ending(loop, conn);
}

static void write_failed(wspy_loop *loop, connection *conn, int error, int system_error);
static void abandon(wspy_loop *loop, connection *conn);

void wspy_connection_abort(wspy_loop *loop, connection *conn)
{
    if (conn->phase != ENDING) {
        wspy_connection_end(loop, conn, WSPY_ERROR_ABORTED, 0);
        return;
    }
    write_failed(loop, conn, WSPY_ERROR_ABORTED, 0); /* the rest is not waited for */
    abandon(loop, conn);
}

static void set_backlog(wspy_loop *loop, connection *conn)
{
    uint64_t size = wspy_queue_size(conn->queue);
    uint32_t shown = size > UINT32_MAX ? UINT32_MAX : (uint32_t)size;
    __atomic_store_n(&loop->backlogs[conn->slot], shown, __ATOMIC_RELAXED);
}

/* The backlog goes on telling what is lost. */
static void drop_queue(connection *conn)
{
    wspy_queue_free(conn->queue);
    conn->queue = NULL;
}

void wspy_connection_free(connection *conn)
{
    drop_queue(conn);
    forget_input(conn);
    if (conn->flags & UPGRADED)
        wspy_protocol_dispose(&conn->protocol);
}

void wspy_connection_drop(wspy_loop *loop, connection *conn)
{
    if (conn->flags & DONE)
        return;
    /* before close: a copy of the descriptor elsewhere would keep it in the set */
    set_interest(loop, conn, 0, 0);
    wspy_sys_close(conn->fd);
    conn->fd = -1;
    wspy_wheel_cancel(&loop->wheel, &conn->timer);
    wspy_connection_free(conn);
    conn->flags |= DONE;
    conn->phase = LINGER;
    loop->stats.connections--;
    wspy_loop_release(loop, conn);
}

static void report_closed(wspy_loop *loop, connection *conn)
{
    if (!(conn->flags & SURFACED))
        return;
    conn->flags = (uint16_t)((conn->flags & ~SURFACED) | REPORT_CLOSED);
    wspy_loop_list_report(loop, conn);
}

/* Everything is written: report, and let the peer read it before TCP goes (RFC 6455 §7.1.1, RFC 9112 §9.6). */
static void complete(wspy_loop *loop, connection *conn)
{
    report_closed(loop, conn);
    if (conn->flags & SAW_EOF) {
        wspy_connection_drop(loop, conn);
        return;
    }
    wspy_sys_shutdown_write(conn->fd);
    conn->phase = LINGER;
    conn->credit = LINGER_BYTES;
    forget_input(conn);
    wspy_connection_arm(loop, conn, LINGER_MS);
    wspy_connection_poll(loop, conn);
    if ((conn->flags & (READS | WRITES)) != READS) /* it can't be waited for */
        wspy_connection_drop(loop, conn);
}

static void abandon(wspy_loop *loop, connection *conn)
{
    report_closed(loop, conn);
    wspy_sys_reset_on_close(conn->fd);
    wspy_connection_drop(loop, conn);
}

static void push_control(wspy_loop *loop, connection *conn, uint8_t *frame, size_t length)
{
    wspy_run run;
    run.parts[0] = (struct iovec){.iov_base = frame, .iov_len = length};
    run.count = 1;
    run.length = length;
    run.mark_count = 0;
    wspy_connection_send(loop, conn, &run);
}

/* A Close goes behind everything that waits, also if that is more than max_backlog. */
static void push_close(wspy_loop *loop, connection *conn, uint8_t *frame, size_t length)
{
    if (!conn->queue || !(conn->flags & SENDABLE)) {
        push_control(loop, conn, frame, length);
        return;
    }
    if (wspy_queue_close(conn->queue, frame, length) < 0) {
        write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
        return;
    }
    set_backlog(loop, conn);
    wspy_connection_poll(loop, conn);
}

void wspy_connection_finish(wspy_loop *loop, connection *conn)
{
    if (conn->phase != ENDING || conn->flags & DONE)
        return;
    if (is_hard(conn->end_error)) {
        abandon(loop, conn);
        return;
    }
    int length = 0;
    if (conn->flags & UPGRADED && conn->end_error != WSPY_ERROR_EOF) {
        uint8_t frame[WSPY_CONTROL_FRAME_MAX];
        length = wspy_protocol_owed_close(&conn->protocol, frame);
        if (length > 0)
            push_close(loop, conn, frame, (size_t)length);
    }
    if (length > 0 && !(conn->flags & SENDABLE)) { /* a frame before it, or the Close itself, was lost */
        write_failed(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
        abandon(loop, conn);
        return;
    }
    conn->flags &= (uint16_t)~SENDABLE; /* §5.5.1: nothing follows a Close frame */
    if (!conn->queue) {
        complete(loop, conn);
        return;
    }
    wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
    wspy_connection_poll(loop, conn);
    if (!(conn->flags & WRITES)) { /* it can't be waited for */
        write_failed(loop, conn, WSPY_ERROR_RESET, errno);
        abandon(loop, conn);
    }
}

/* ---- writing ---- */

/* The peer takes nothing any more, but what it sent before may lie in the kernel: that is read, then the end. */
static void give_up_writing(wspy_loop *loop, connection *conn, int system_error)
{
    conn->flags &= (uint16_t)~SENDABLE;
    conn->end_errno = system_error;
    drop_queue(conn);
    read_later(loop, conn);
    wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
}

/* While it is ending, a write that fails, or takes too long, makes the end a hard one. */
static void write_failed(wspy_loop *loop, connection *conn, int error, int system_error)
{
    if (conn->phase == ENDING) {
        if (!is_hard(conn->end_error)) {
            conn->end_error = (int8_t)(conn->end_error == WSPY_OK ? error : conn->end_error);
            if (!conn->end_errno)
                conn->end_errno = system_error;
        }
        conn->flags &= (uint16_t)~SENDABLE;
        drop_queue(conn);
        return;
    }
    if (error == WSPY_ERROR_RESET && conn->phase == OPEN && may_read(conn))
        give_up_writing(loop, conn, system_error);
    else
        wspy_connection_end(loop, conn, error, system_error);
}

static void opened(wspy_loop *loop, connection *conn)
{
    conn->phase = OPEN;
    conn->flags |= REPORT_OPENED;
    conn->seen = loop->tick;
    loop->stats.opened++;
    wspy_loop_list_report(loop, conn);
    /* a Close that is queued behind the response has its deadline already */
    if (conn->flags & SENDABLE)
        wspy_connection_arm(loop, conn, loop->settings.ping_interval_ms);
    if (conn->input)
        wspy_loop_list_ready(loop, conn);
    wspy_connection_poll(loop, conn);
}

static void pass_marks(wspy_loop *loop, connection *conn, uint32_t marks)
{
    if (marks && conn->phase == OPENING) { /* the first mark of a connection ends its 101 */
        opened(loop, conn);
        marks--;
    }
    if (!marks)
        return;
    conn->sent_marks += marks;
    wspy_loop_list_report(loop, conn);
}

static void count_sent(wspy_loop *loop, size_t length)
{
    loop->stats.bytes_sent += length;
}

/* The time the peer has to let something through begins now. */
static wspy_queue *new_queue(const wspy_loop *loop)
{
    wspy_queue *queue = wspy_queue_new();
    if (queue)
        wspy_queue_set_time(queue, loop->tick);
    return queue;
}

/* Queues a run from byte `sent` on. */
static int enqueue(wspy_loop *loop, connection *conn, const wspy_run *run, size_t sent)
{
    if (!conn->queue)
        conn->queue = new_queue(loop);
    if (!conn->queue || wspy_queue_push(conn->queue, run->parts, run->count, sent) < 0)
        return WSPY_ERROR_NO_MEMORY;
    uint32_t passed = 0;
    for (uint32_t i = 0; i < run->mark_count; i++) {
        if (run->mark_ends[i] <= sent)
            passed++;
        else if (wspy_queue_mark(conn->queue, run->length - run->mark_ends[i]) < 0)
            return WSPY_ERROR_NO_MEMORY;
    }
    set_backlog(loop, conn);
    pass_marks(loop, conn, passed);
    wspy_connection_poll(loop, conn);
    return WSPY_OK;
}

/* Offers parts to the kernel if nothing waits before them. Returns how much it took, or -1 if the connection failed
 * or may not be sent to. */
static ssize_t offer(wspy_loop *loop, connection *conn, const struct iovec *parts, size_t count)
{
    if (!(conn->flags & SENDABLE))
        return -1;
    if (conn->queue) {
        if (wspy_queue_size(conn->queue) <= loop->settings.max_backlog)
            return 0;
        write_failed(loop, conn, WSPY_ERROR_BACKLOG, 0);
        return -1;
    }
    ssize_t sent = wspy_sys_send(conn->fd, parts, count);
    if (sent >= 0) {
        count_sent(loop, (size_t)sent);
        return sent;
    }
    if (wspy_sys_would_block(errno))
        return 0;
    write_failed(loop, conn, WSPY_ERROR_RESET, errno);
    return -1;
}

void wspy_connection_send(wspy_loop *loop, connection *conn, const wspy_run *run)
{
    ssize_t sent = offer(loop, conn, run->parts, run->count);
    if (sent < 0)
        return;
    if ((size_t)sent == run->length) {
        pass_marks(loop, conn, run->mark_count);
        return;
    }
    if (enqueue(loop, conn, run, (size_t)sent) < 0)
        write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
}

/* Sharing a payload costs each queue a block of its own: for less it is copied. */
enum { SHARED_MIN = 512 };

void wspy_connection_send_shared(wspy_loop *loop, connection *conn, const uint8_t *frame, size_t length,
                                 wspy_shared **shared, int is_marked)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)frame, .iov_len = length};
    ssize_t sent = offer(loop, conn, &part, 1);
    if (sent < 0)
        return;
    if ((size_t)sent == length) {
        pass_marks(loop, conn, is_marked ? 1 : 0);
        return;
    }
    if (length <= SHARED_MIN) {
        wspy_run run = {.parts = {part}, .count = 1, .length = length, .mark_ends = {length}};
        run.mark_count = is_marked ? 1 : 0;
        if (enqueue(loop, conn, &run, (size_t)sent) < 0)
            write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
        return;
    }
    if (!*shared)
        *shared = wspy_shared_new(frame, length);
    if (!conn->queue)
        conn->queue = new_queue(loop);
    if (!*shared || !conn->queue || wspy_queue_push_shared(conn->queue, *shared, (size_t)sent) < 0 ||
        (is_marked && wspy_queue_mark(conn->queue, 0) < 0)) {
        write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
        return;
    }
    set_backlog(loop, conn);
    wspy_connection_poll(loop, conn);
}

void wspy_connection_writable(wspy_loop *loop, connection *conn)
{
    if (!conn->queue || conn->flags & LISTED_ENDING) /* first its end is carried out */
        return;
    uint32_t marks = 0;
    uint64_t bytes = 0;
    int left = wspy_queue_flush(conn->queue, conn->fd, &marks, &bytes);
    int system_error = errno;
    loop->stats.bytes_sent += bytes;
    if (bytes) {
        conn->seen = loop->tick;
        wspy_queue_set_time(conn->queue, loop->tick);
    }
    if (left == 0) {
        wspy_queue_free(conn->queue);
        conn->queue = NULL;
    }
    set_backlog(loop, conn);
    pass_marks(loop, conn, marks);
    if (left < 0)
        write_failed(loop, conn, WSPY_ERROR_RESET, system_error);
    if (conn->phase == ENDING && !conn->queue && !(conn->flags & (LISTED_ENDING | DONE))) {
        if (left < 0)
            abandon(loop, conn);
        else
            complete(loop, conn);
        return;
    }
    wspy_connection_poll(loop, conn);
}

void wspy_connection_close(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length)
{
    if (!(conn->flags & SENDABLE) || !(conn->flags & UPGRADED))
        return;
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    int size = wspy_protocol_close(&conn->protocol, payload, length, frame);
    if (size <= 0)
        return;
    push_close(loop, conn, frame, (size_t)size);
    conn->flags &= (uint16_t)~SENDABLE;
    if (conn->phase == OPEN || conn->phase == OPENING)
        wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
    conn->flags &= (uint16_t)~PAUSED; /* the peer's Close has to be read */
    wspy_connection_wake(loop, conn);
}

/* ---- replies ---- */

static const uint8_t *last_frame(const wspy_bytes *replies, size_t *length)
{
    size_t at = 0, size = 0;
    while (at + size < replies->length) {
        at += size;
        wspy_frame_header header;
        int header_size = wspy_frame_decode(replies->data + at, replies->length - at, &header);
        size = (size_t)header_size + (size_t)header.length;
    }
    *length = size;
    return replies->data + at;
}

static void send_replies(wspy_loop *loop, connection *conn)
{
    wspy_bytes *replies = &loop->replies;
    if (replies->length == 0)
        return;
    if (conn->queue) { /* §5.5.2: "MAY elect to send a Pong frame for only the most recently processed Ping" */
        size_t length;
        const uint8_t *frame = last_frame(replies, &length);
        if (conn->flags & SENDABLE)
            wspy_queue_pong(conn->queue, frame, length);
        set_backlog(loop, conn);
    } else {
        push_control(loop, conn, replies->data, replies->length);
    }
    replies->length = 0;
    if (replies->capacity > 65536)
        wspy_bytes_free(replies);
}

/* ---- decoding ---- */

/* A remainder does not hold on to the memory of what it is the rest of. */
static void shrink_input(connection *conn)
{
    uint32_t kept = kept_size(conn);
    if (kept == 0) {
        forget_input(conn);
        return;
    }
    if (kept > INPUT_MIN || conn->input->capacity <= INPUT_LARGE)
        return;
    wspy_input *small = wspy_sys_allocate(sizeof *small + INPUT_MIN);
    if (!small) /* then it does */
        return;
    *small = (wspy_input){.end = kept, .capacity = INPUT_MIN};
    memcpy(small->data, conn->input->data + conn->input->start, kept);
    forget_input(conn);
    conn->input = small;
}

static wspy_event *add_event(wspy_loop *loop, const connection *conn, uint32_t kind)
{
    wspy_event *event = &loop->events[loop->sink.count++];
    *event = (wspy_event){.slot = conn->slot, .kind = kind};
    return event;
}

/* onopen comes before anything else of a connection. */
static void report_opened(wspy_loop *loop, connection *conn)
{
    if (!(conn->flags & REPORT_OPENED))
        return;
    conn->flags &= (uint16_t)~REPORT_OPENED;
    add_event(loop, conn, WSPY_EVENT_OPENED);
}

static void begin_decoding(wspy_loop *loop, connection *conn)
{
    report_opened(loop, conn);
    loop->sink.slot = conn->slot;
    loop->sink.credit = conn->credit;
}

static void end_decoding(wspy_loop *loop, connection *conn)
{
    conn->credit = loop->sink.credit;
    send_replies(loop, conn);
    if (wspy_protocol_running(&conn->protocol))
        return;
    if (conn->protocol.error)
        loop->stats.protocol_errors++;
    forget_input(conn);
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
        if (conn->end_errno) /* of a write that failed: now everything is read */
            wspy_connection_end(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
        return;
    }
    conn->flags |= SAW_EOF;
    if (got < 0) {
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, errno);
        return;
    }
    if (conn->phase == DECIDING) { /* a request, then half-close: the answer is still due (RFC 9112 §9.6) */
        stop_reading(loop, conn);
        return;
    }
    if (conn->phase == HEAD && conn->queue) { /* the same, and the answer is on its way */
        conn->phase = DECIDING;
        wspy_connection_end(loop, conn, WSPY_OK, 0);
        return;
    }
    if (conn->phase == OPENING) { /* nobody waits for the rest of the 101 */
        conn->flags &= (uint16_t)~SENDABLE;
        drop_queue(conn);
    }
    /* a write that failed before has said why */
    wspy_connection_end(loop, conn, conn->end_errno ? WSPY_ERROR_RESET : WSPY_ERROR_EOF, conn->end_errno);
}

/* Large payloads go straight to where they are assembled. */
static ssize_t read_direct(wspy_loop *loop, connection *conn, uint8_t *at, size_t asked)
{
    ssize_t got = wspy_sys_recv(conn->fd, at, asked);
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
    uint32_t kept = kept_size(conn);
    ssize_t got = wspy_sys_recv(conn->fd, at + kept, asked);
    if (got <= 0) {
        nothing_received(loop, conn, got);
        return got;
    }
    received(loop, conn, (size_t)got);
    if (kept) {
        memcpy(at, conn->input->data + conn->input->start, kept);
        conn->input->start = conn->input->end = 0;
        if (conn->input->capacity > INPUT_LARGE)
            forget_input(conn);
    }
    begin_decoding(loop, conn);
    size_t length = kept + (size_t)got;
    size_t used = feed_arena(loop, conn, length);
    if (used == length)
        forget_input(conn);
    else if (keep(loop, conn, at + used, length - used) && loop->sink.credit > 0 && !wspy_loop_has_room(loop))
        wspy_loop_list_ready(loop, conn);
    end_decoding(loop, conn);
    return got;
}

static void read_frames(wspy_loop *loop, connection *conn)
{
    size_t budget = READ_MAX;
    if (conn->flags & LISTED_READY) /* first what was read before */
        return;
    if (!wspy_loop_has_room(loop)) {
        read_later(loop, conn);
        return;
    }
    while (budget && conn->phase == OPEN && may_read(conn) && wspy_loop_has_room(loop)) {
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
    if (conn->timer.next && is_late(loop, conn)) /* the decision can't be late already */
        wspy_connection_arm(loop, conn, GRACE_MS);
}

static void surface_bad_head(wspy_loop *loop, connection *conn, int error)
{
    surface(loop, conn);
    conn->requests = REQUESTS_MAX; /* where the next one begins is unknown: the answer is the last */
    forget_input(conn);
    loop->stats.refused++;
    add_event(loop, conn, WSPY_EVENT_BAD_HEAD)->start = (uint32_t)-error;
}

/* The head is what was kept and data[:length]; `behind` more bytes follow it there. */
static void surface_head(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length, size_t behind)
{
    uint8_t *free_space = loop->arena + loop->arena_used;
    const uint8_t *head = data;
    uint32_t kept = kept_size(conn);
    loop->arena_used += length + behind;
    if (kept) { /* make it one piece */
        head = free_space + length + behind;
        memcpy(free_space + length + behind, conn->input->data + conn->input->start, kept);
        memcpy(free_space + length + behind + kept, data, length);
        loop->arena_used += kept + length;
        forget_input(conn);
    }
    surface(loop, conn);
    if (conn->requests < UINT16_MAX)
        conn->requests++;
    wspy_event *event = add_event(loop, conn, WSPY_EVENT_HEAD | WSPY_EVENT_APART);
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
        surface_bad_head(loop, conn, end);
    else if (end > 0)
        surface_head(loop, conn, data, (size_t)end, length - (size_t)end);
    else
        keep(loop, conn, data, length);
}

static void read_head(wspy_loop *loop, connection *conn)
{
    uint8_t *at = loop->arena + loop->arena_used;
    ssize_t got = wspy_sys_recv(conn->fd, at, HEAD_READ);
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
    size_t length = kept_size(conn);
    memcpy(at, input->data + input->start, length);
    forget_input(conn);
    scan_head(loop, conn, at, length);
}

/* Bytes behind a head that waits for its decision. */
static void read_behind_head(wspy_loop *loop, connection *conn)
{
    if (!wspy_loop_has_room(loop))
        return;
    uint8_t *at = loop->arena + loop->arena_used;
    ssize_t got = wspy_sys_recv(conn->fd, at, KEPT_MAX - kept_size(conn));
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
    if (!may_read(conn)) {
        stop_reading(loop, conn);
        return;
    }
    switch (conn->phase) {
    case HEAD:
        read_later(loop, conn); /* established connections come first */
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
    wspy_connection_poll(loop, conn);
}

void wspy_connection_go_on(wspy_loop *loop, connection *conn)
{
    int is_unread = conn->flags & UNREAD;
    conn->flags &= (uint16_t)~UNREAD;
    if (conn->flags & DONE)
        return;
    if (conn->input && conn->phase == OPEN)
        decode_kept_frames(loop, conn);
    else if (conn->input && conn->phase == HEAD && conn->scanner.size == 0) /* else it was scanned before */
        scan_kept(loop, conn);
    if (!is_unread || conn->flags & (LISTED_READY | DONE))
        return;
    if (conn->phase == HEAD)
        read_head(loop, conn);
    else
        wspy_connection_readable(loop, conn);
    if (conn->end_errno && conn->phase == OPEN && may_read(conn))
        read_later(loop, conn);
}

/* ---- deadlines that passed ---- */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t ms_since(const wspy_loop *loop, uint32_t tick)
{
    uint64_t passed = (uint64_t)(loop->tick - tick) * WSPY_TICK_MS;
    return passed < WSPY_FOREVER ? (uint32_t)passed : WSPY_FOREVER - 1;
}

static void head_expired(wspy_loop *loop, connection *conn)
{
    uint32_t idle = ms_since(loop, conn->seen), allowed = loop->settings.idle_request_ms;
    if (conn->queue && conn->scanner.size == 0 && idle < allowed) { /* it is still taking the last answer */
        wspy_connection_arm(loop, conn, allowed - idle);
        return;
    }
    loop->stats.timeouts++;
    if (!wspy_head_has_line(&conn->scanner)) {
        wspy_connection_end(loop, conn, WSPY_ERROR_OPEN_TIMEOUT, 0);
        return;
    }
    surface_bad_head(loop, conn, WSPY_ERROR_HEAD_TIMEOUT);
    wspy_connection_arm(loop, conn, LINGER_MS);
}

static void send_keepalive(wspy_loop *loop, connection *conn)
{
    uint8_t frame[WSPY_CONTROL_FRAME_MAX];
    uint32_t tick = loop->tick;
    uint8_t payload[4] = {(uint8_t)(tick >> 24), (uint8_t)(tick >> 16), (uint8_t)(tick >> 8), (uint8_t)tick};
    int size = wspy_protocol_control(&conn->protocol, WSPY_EVENT_PING, payload, sizeof payload, frame);
    if (size < 0)
        return;
    conn->ping_at = tick;
    conn->flags |= AWAITS_PONG;
    wspy_connection_arm(loop, conn, least(loop->settings.ping_interval_ms, loop->settings.ping_timeout_ms));
    push_control(loop, conn, frame, (size_t)size);
    if (!(loop->settings.wants & WSPY_WANT_PINGED))
        return;
    report_opened(loop, conn);
    add_event(loop, conn, WSPY_EVENT_PINGED)->start = tick;
}

/* Whether a ping is without an answer. Any byte since then is one; ticks wrap. */
static int awaits_pong(const wspy_loop *loop, const connection *conn)
{
    return conn->flags & AWAITS_PONG && loop->settings.ping_timeout_ms != WSPY_FOREVER &&
           conn->seen - conn->ping_at > INT32_MAX;
}

/* Milliseconds that the peer still has for its answer; 0: it owes none, or is late. */
static uint32_t pong_due_ms(const wspy_loop *loop, const connection *conn)
{
    uint32_t waited = ms_since(loop, conn->ping_at);
    uint32_t timeout = loop->settings.ping_timeout_ms;
    return awaits_pong(loop, conn) && waited < timeout ? timeout - waited : 0;
}

static int pong_is_overdue(const wspy_loop *loop, connection *conn)
{
    int is_late = awaits_pong(loop, conn);
    conn->flags &= (uint16_t)~AWAITS_PONG;
    /* what we did not read ourselves can't count against the peer */
    return is_late && may_read(conn) && !(conn->flags & LISTED_READY) && wspy_sys_peek(conn->fd) <= 0;
}

/* A full pipe needs no probe: that the kernel takes something is the answer, and it has as long. */
static int is_stalled(const wspy_loop *loop, const connection *conn)
{
    uint64_t allowed = (uint64_t)loop->settings.ping_interval_ms + loop->settings.ping_timeout_ms;
    return conn->queue && ms_since(loop, wspy_queue_time(conn->queue)) >= allowed;
}

static void keepalive_expired(wspy_loop *loop, connection *conn)
{
    uint32_t interval = loop->settings.ping_interval_ms;
    uint32_t due = pong_due_ms(loop, conn);
    if (due) {
        wspy_connection_arm(loop, conn, least(interval, due));
        return;
    }
    /* a paused one is not in the epoll set; what it has sent is waited for */
    if (!may_read(conn) && wspy_sys_hung_up(conn->fd) && wspy_sys_peek(conn->fd) <= 0) {
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, 0);
        return;
    }
    if (is_stalled(loop, conn)) { /* or this turn did not come to it yet */
        wspy_connection_writable(loop, conn);
        if (conn->phase != OPEN)
            return;
    }
    if (pong_is_overdue(loop, conn) || is_stalled(loop, conn)) {
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, WSPY_ERROR_PING_TIMEOUT, 0);
        return;
    }
    uint32_t idle = ms_since(loop, conn->seen);
    if (idle < interval)
        wspy_connection_arm(loop, conn, interval - idle);
    else if (conn->queue)
        wspy_connection_arm(loop, conn, least(interval, loop->settings.ping_timeout_ms));
    else if (!may_read(conn)) /* no pong could be read */
        wspy_connection_arm(loop, conn, interval);
    else
        send_keepalive(loop, conn);
}

/* What the peer sent in time may still lie in the kernel. */
static int was_not_read(const wspy_loop *loop, const connection *conn)
{
    return is_late(loop, conn) && (conn->flags & LISTED_READY || wspy_sys_peek(conn->fd) > 0);
}

void wspy_connection_expired(wspy_loop *loop, connection *conn)
{
    if (loop->sink.count >= EVENTS_TURN + EVENTS_EXPIRED) { /* no room to report it */
        wspy_connection_arm(loop, conn, WSPY_TICK_MS);
        return;
    }
    switch (conn->phase) {
    case HEAD:
        if (was_not_read(loop, conn))
            wspy_connection_arm(loop, conn, GRACE_MS);
        else
            head_expired(loop, conn);
        return;
    case DECIDING:
    case OPENING:
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, WSPY_ERROR_OPEN_TIMEOUT, 0);
        return;
    case OPEN:
        if (conn->flags & SENDABLE) {
            keepalive_expired(loop, conn);
            return;
        }
        if (was_not_read(loop, conn)) {
            wspy_connection_arm(loop, conn, GRACE_MS);
            return;
        }
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, conn->end_errno ? WSPY_ERROR_RESET : WSPY_ERROR_CLOSE_TIMEOUT,
                            conn->end_errno);
        return;
    case ENDING:
        loop->stats.timeouts++;
        write_failed(loop, conn, WSPY_ERROR_CLOSE_TIMEOUT, 0);
        abandon(loop, conn);
        return;
    default:
        wspy_connection_drop(loop, conn);
    }
}
