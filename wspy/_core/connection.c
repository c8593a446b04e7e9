/* connection.c: what one connection of the loop writes, and how it ends.
 *
 * An end is decided at once and carried out after the next commands (wspy_connection_finish), so that replies to
 * everything delivered before still leave. */
#include "connection.h"

#include <errno.h>
#include <string.h>

#include "sys.h"

/* ---- the epoll set ---- */

/* Returns 0 if the set stays as it was. */
static int set_interest(wspy_loop *loop, connection *conn, int reads, int writes)
{
    uint16_t wanted = (uint16_t)((reads ? READS : 0) | (writes ? WRITES : 0));
    if ((conn->flags & (READS | WRITES)) == wanted)
        return 1;
    struct epoll_event event = {.events = (reads ? EPOLLIN | EPOLLRDHUP : 0u) | (writes ? EPOLLOUT : 0u),
                                .data.u64 = wspy_connection_handle(conn)};
    int operation = !wanted ? EPOLL_CTL_DEL : conn->flags & IN_EPOLL ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (wspy_sys_epoll_ctl(loop->epoll, operation, conn->fd, &event) < 0 && wanted)
        return 0;
    conn->flags = (uint16_t)((conn->flags & ~(READS | WRITES | IN_EPOLL)) | wanted | (wanted ? IN_EPOLL : 0));
    return 1;
}

static void watch(wspy_loop *loop, connection *conn, int reads, int writes)
{
    if (set_interest(loop, conn, reads, writes))
        return;
    if (conn->awaits_finish) /* its end is decided already: it would be woken for ever, or never */
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_RESET, errno);
    else
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, errno);
}

static int awaits_peer(const connection *conn)
{
    return wspy_connection_may_read(conn) && (!conn->raw || wspy_raw_awaits_peer(conn->raw));
}

int wspy_connection_is_blocked(const connection *conn)
{
    return conn->raw ? wspy_raw_refused(conn->raw) != NULL : conn->queue != NULL;
}

void wspy_connection_poll(wspy_loop *loop, connection *conn)
{
    if (conn->flags & DONE)
        return;
    watch(loop, conn, awaits_peer(conn) || conn->flags & READS, wspy_connection_is_blocked(conn));
}

int wspy_connection_begin(wspy_loop *loop, connection *conn)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = wspy_connection_handle(conn)};
    if (loop->settings.raw && !(conn->raw = wspy_raw_new()))
        return 0;
    if (wspy_sys_epoll_ctl(loop->epoll, EPOLL_CTL_ADD, conn->fd, &event) < 0) {
        wspy_raw_free(conn->raw);
        conn->raw = NULL;
        return 0;
    }
    conn->flags = READS | IN_EPOLL;
    conn->phase = HEAD;
    return 1;
}

void wspy_connection_stop_reading(wspy_loop *loop, connection *conn)
{
    watch(loop, conn, 0, wspy_connection_is_blocked(conn));
}

/* ---- events ---- */

wspy_event *wspy_connection_event(wspy_loop *loop, const connection *conn, uint32_t kind)
{
    wspy_event *event = &loop->events[loop->sink.count++];
    *event = (wspy_event){.slot = conn->slot, .kind = kind};
    return event;
}

void wspy_connection_report_opened(wspy_loop *loop, connection *conn)
{
    if (!(conn->flags & REPORT_OPENED))
        return;
    conn->flags &= (uint16_t)~REPORT_OPENED;
    wspy_connection_event(loop, conn, WSPY_EVENT_OPENED);
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
    case WSPY_ERROR_WRITE_TIMEOUT:
    case WSPY_ERROR_CLOSE_TIMEOUT:
    case WSPY_ERROR_PING_TIMEOUT:
        return 1;
    default:
        return 0;
    }
}

/* What came before the end may be answered by a thread that takes its time. */
static void await_finish(wspy_loop *loop, connection *conn)
{
    conn->awaits_finish = conn->has_ending = 1;
    wspy_loop_list_report(loop, conn);
    wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
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
    if (!conn->end_errno) /* else a write has failed before */
        conn->end_errno = system_error;
    else if (error == WSPY_OK) /* and with it our Close was lost: it was no closing handshake */
        error = WSPY_ERROR_RESET;
    conn->end_error = (int8_t)error;
    int is_open = conn->phase == OPEN;
    conn->phase = ENDING;
    if (is_hard(error))
        conn->flags &= (uint16_t)~SENDABLE;
    wspy_wheel_cancel(&loop->wheel, &conn->timer);
    if (is_open && conn->flags & SENDABLE && loop->settings.wants & WSPY_WANT_ENDING)
        await_finish(loop, conn);
    else
        wspy_loop_list_ending(loop, conn);
}

void wspy_connection_fail(wspy_loop *loop, connection *conn, int close_code)
{
    int is_ending = conn->phase == ENDING && !is_hard(conn->end_error) && conn->flags & SENDABLE;
    if ((conn->phase != OPEN && !is_ending) || conn->end_error == WSPY_ERROR_EXTENSION)
        return;
    loop->stats.protocol_errors++;
    wspy_protocol_fail_extension(&conn->protocol, close_code);
    wspy_connection_forget_input(conn);
    if (is_ending)
        conn->end_error = WSPY_ERROR_EXTENSION;
    else
        wspy_connection_end(loop, conn, WSPY_ERROR_EXTENSION, 0);
}

void wspy_connection_let_finish(wspy_loop *loop, connection *conn)
{
    if (!conn->awaits_finish)
        return;
    conn->awaits_finish = 0;
    wspy_wheel_cancel(&loop->wheel, &conn->timer); /* that of the wait: what is written has a time of its own */
    wspy_loop_list_ending(loop, conn);
}

void wspy_connection_abort(wspy_loop *loop, connection *conn)
{
    if (conn->phase != ENDING) {
        wspy_connection_end(loop, conn, WSPY_ERROR_ABORTED, 0);
        return;
    }
    wspy_connection_write_failed(loop, conn, WSPY_ERROR_ABORTED, 0); /* the rest is not waited for */
    wspy_connection_abandon(loop, conn);
}

uint64_t wspy_connection_unsent(const connection *conn)
{
    return wspy_queue_size(conn->queue) + (conn->raw ? wspy_raw_unsent(conn->raw) : 0);
}

/* What TLS says by itself is no answer: its peer could let it say something again and again. */
int wspy_connection_owes_answer(const connection *conn)
{
    return conn->queue || (conn->raw && wspy_raw_owes_plaintext(conn->raw));
}

void wspy_connection_show_backlog(wspy_loop *loop, connection *conn)
{
    uint64_t size = wspy_connection_unsent(conn);
    uint32_t shown = size > UINT32_MAX ? UINT32_MAX : (uint32_t)size;
    __atomic_store_n(&loop->backlogs[conn->slot], shown, __ATOMIC_RELAXED);
}

/* The backlog goes on telling what is lost. */
void wspy_connection_drop_queue(connection *conn)
{
    conn->lost += wspy_queue_messages(conn->queue);
    wspy_queue_free(conn->queue);
    conn->queue = NULL;
    if (!conn->raw)
        return;
    conn->lost += wspy_raw_messages(conn->raw);
    wspy_raw_drop_output(conn->raw);
}

void wspy_connection_free(connection *conn)
{
    wspy_connection_drop_queue(conn);
    wspy_raw_free(conn->raw);
    conn->raw = NULL;
    wspy_connection_forget_input(conn);
    if (conn->flags & UPGRADED)
        wspy_protocol_dispose(&conn->protocol);
}

void wspy_connection_drop(wspy_loop *loop, connection *conn)
{
    if (conn->flags & DONE)
        return;
    wspy_loop_shook(loop, conn);
    /* before close: a copy of the descriptor elsewhere would keep it in the set */
    (void)set_interest(loop, conn, 0, 0);
    wspy_sys_close(conn->fd);
    conn->fd = -1;
    wspy_wheel_cancel(&loop->wheel, &conn->timer);
    if (conn->raw) {
        conn->has_gone = 1;
        wspy_loop_list_report(loop, conn);
    }
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
    conn->closed = loop->tick;
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
    wspy_connection_forget_input(conn);
    wspy_connection_arm(loop, conn, LINGER_MS);
    wspy_connection_poll(loop, conn);
    if ((conn->flags & (READS | WRITES)) != READS) /* it can't be waited for */
        wspy_connection_drop(loop, conn);
}

/* Everything is written: by a connection with TLS, once its close_notify is, too (RFC 8446 §6.1). */
static void all_written(wspy_loop *loop, connection *conn)
{
    if (conn->raw && !wspy_raw_has_ended(conn->raw))
        wspy_raw_end(loop, conn);
    else
        complete(loop, conn);
}

void wspy_connection_abandon(wspy_loop *loop, connection *conn)
{
    report_closed(loop, conn);
    if (!conn->raw || !wspy_raw_has_failed(conn->raw))
        wspy_sys_reset_on_close(conn->fd);
    wspy_connection_drop(loop, conn);
}

void wspy_connection_send_control(wspy_loop *loop, connection *conn, uint8_t *frame, size_t length)
{
    wspy_run run;
    run.parts[0] = (struct iovec){.iov_base = frame, .iov_len = length};
    run.count = 1;
    run.length = length;
    run.mark_count = 0;
    run.is_frames = 0; /* of messages */
    wspy_connection_send(loop, conn, &run);
}

/* A Close goes behind everything that waits, also if that is more than max_backlog. */
static void push_close(wspy_loop *loop, connection *conn, uint8_t *frame, size_t length)
{
    if (!conn->queue || !(conn->flags & SENDABLE)) {
        wspy_connection_send_control(loop, conn, frame, length);
        return;
    }
    if (wspy_queue_close(conn->queue, frame, length) < 0) {
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
        return;
    }
    wspy_connection_show_backlog(loop, conn);
    wspy_connection_poll(loop, conn);
}

void wspy_connection_finish(wspy_loop *loop, connection *conn)
{
    if (conn->phase != ENDING || conn->flags & DONE)
        return;
    if (is_hard(conn->end_error)) {
        wspy_connection_abandon(loop, conn);
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
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
        wspy_connection_abandon(loop, conn);
        return;
    }
    conn->flags &= (uint16_t)~SENDABLE; /* §5.5.1: nothing follows a Close frame */
    if (!conn->queue && !conn->raw) {
        complete(loop, conn);
        return;
    }
    wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
    if (conn->raw) {
        wspy_connection_flush(loop, conn);
        return;
    }
    wspy_connection_await_kernel(loop, conn);
}

/* ---- writing ---- */

/* The peer takes nothing any more, but what it sent before may lie in the kernel: that is read, then the end. */
static void give_up_writing(wspy_loop *loop, connection *conn, int system_error)
{
    conn->flags &= (uint16_t)~SENDABLE;
    conn->end_errno = system_error;
    wspy_connection_drop_queue(conn);
    wspy_connection_read_later(loop, conn);
    wspy_connection_arm(loop, conn, loop->settings.close_timeout_ms);
}

void wspy_connection_write_failed(wspy_loop *loop, connection *conn, int error, int system_error)
{
    if (conn->phase == ENDING) {
        if (!is_hard(conn->end_error)) {
            conn->end_error = (int8_t)(conn->end_error == WSPY_OK ? error : conn->end_error);
            if (!conn->end_errno)
                conn->end_errno = system_error;
        }
        conn->flags &= (uint16_t)~SENDABLE;
        wspy_connection_drop_queue(conn);
        wspy_connection_let_finish(loop, conn); /* no answer would reach the peer */
        return;
    }
    if (error == WSPY_ERROR_RESET && conn->phase == OPEN && wspy_connection_may_read(conn))
        give_up_writing(loop, conn, system_error);
    else
        wspy_connection_end(loop, conn, error, system_error);
}

static void opened(wspy_loop *loop, connection *conn)
{
    wspy_loop_shook(loop, conn);
    conn->phase = OPEN;
    conn->flags |= REPORT_OPENED;
    conn->seen = conn->opened = conn->active = loop->tick;
    loop->stats.opened++;
    wspy_loop_list_report(loop, conn);
    /* a Close that is queued behind the response has its deadline already */
    if (conn->flags & SENDABLE)
        wspy_connection_arm_open(loop, conn);
    if (conn->input)
        wspy_loop_list_ready(loop, conn);
    wspy_connection_resume(loop, conn);
    wspy_connection_poll(loop, conn);
}

void wspy_connection_passed(wspy_loop *loop, connection *conn, uint32_t marks)
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

/* What was written to its end: with TLS, its ciphertext still has to be. */
static void pass_ends(wspy_loop *loop, connection *conn, wspy_ends ends)
{
    if (conn->raw)
        wspy_raw_pass(conn->raw, ends);
    else
        wspy_connection_passed(loop, conn, ends.marks);
}

/* ---- where the sends of a run end ---- */

static size_t copy_from(const wspy_run *run, size_t at, uint8_t *output, size_t length)
{
    size_t copied = 0;
    for (uint32_t i = 0; i < run->count && copied < length; i++) {
        size_t size = run->parts[i].iov_len;
        if (at >= size) {
            at -= size;
            continue;
        }
        size_t more = size - at < length - copied ? size - at : length - copied;
        memcpy(output + copied, (const uint8_t *)run->parts[i].iov_base + at, more);
        copied += more;
        at = 0;
    }
    return copied;
}

/* Returns where the message ends of which a frame begins there; SIZE_MAX if no message ends behind it. */
static size_t end_of_message(const wspy_run *run, size_t at)
{
    while (run->is_frames && at < run->length) {
        uint8_t bytes[WSPY_HEADER_MAX];
        wspy_frame_header header;
        int size = wspy_frame_decode(bytes, copy_from(run, at, bytes, sizeof bytes), &header);
        if (size <= 0 || header.length > run->length - at - (size_t)size)
            return SIZE_MAX;
        at += (size_t)size + (size_t)header.length;
        if (header.flags & WSPY_FIN && header.opcode < WSPY_EVENT_CLOSE)
            return at;
    }
    return SIZE_MAX;
}

typedef struct {
    const wspy_run *run;
    size_t message_end;
    uint32_t mark;
    int is_mark, is_message; /* what the last one was of */
} walk;

/* Returns where the next mark, or message, or both, end; SIZE_MAX: there is none. */
static size_t next_end(walk *at)
{
    size_t mark_end = at->mark < at->run->mark_count ? at->run->mark_ends[at->mark] : SIZE_MAX;
    size_t end = mark_end < at->message_end ? mark_end : at->message_end;
    at->is_mark = mark_end == end;
    at->is_message = at->message_end == end;
    at->mark += at->is_mark != 0;
    if (at->is_message && end != SIZE_MAX)
        at->message_end = end_of_message(at->run, end);
    return end;
}

static wspy_ends ends_of(const wspy_run *run)
{
    wspy_ends ends = {.marks = run->mark_count};
    for (size_t at = end_of_message(run, 0); at != SIZE_MAX; at = end_of_message(run, at))
        ends.messages++;
    return ends;
}

/* ---- sending ---- */

static void count_sent(wspy_loop *loop, size_t length)
{
    loop->stats.bytes_sent += length;
}

/* The time the peer has to let something through begins now. */
static wspy_queue *new_queue(wspy_loop *loop, connection *conn)
{
    wspy_queue *queue = wspy_queue_new();
    if (queue)
        wspy_queue_set_time(queue, loop->tick);
    wspy_connection_hurry(loop, conn, loop->settings.write_timeout_ms);
    return queue;
}

/* Queues a run from byte `sent` on. */
static int enqueue(wspy_loop *loop, connection *conn, const wspy_run *run, size_t sent)
{
    if (!conn->queue)
        conn->queue = new_queue(loop, conn);
    if (!conn->queue || wspy_queue_push(conn->queue, run->parts, run->count, sent) < 0)
        return WSPY_ERROR_NO_MEMORY;
    wspy_connection_show_backlog(loop, conn); /* whether or not there is memory for the rest */
    wspy_ends passed = {0};
    walk at = {.run = run, .message_end = end_of_message(run, 0)};
    for (size_t end = next_end(&at); end != SIZE_MAX; end = next_end(&at)) {
        if (end <= sent)
            wspy_ends_add(&passed, (wspy_ends){.marks = at.is_mark != 0, .messages = at.is_message != 0});
        else if (wspy_queue_end(conn->queue, run->length - end, at.is_mark, at.is_message) < 0)
            return WSPY_ERROR_NO_MEMORY;
    }
    pass_ends(loop, conn, passed);
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
        if (wspy_connection_unsent(conn) <= loop->settings.max_backlog)
            return 0;
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_BACKLOG, 0);
        return -1;
    }
    ssize_t sent = conn->raw ? wspy_raw_send(loop, conn, parts, count) : wspy_sys_send(conn->fd, parts, count);
    if (sent >= 0) {
        count_sent(loop, (size_t)sent);
        return sent;
    }
    if (wspy_sys_would_block(errno))
        return 0;
    wspy_connection_write_failed(loop, conn, WSPY_ERROR_RESET, errno);
    return -1;
}

void wspy_connection_send(wspy_loop *loop, connection *conn, const wspy_run *run)
{
    ssize_t sent = offer(loop, conn, run->parts, run->count);
    if (sent < 0)
        return;
    if ((size_t)sent == run->length) {
        pass_ends(loop, conn, conn->raw ? ends_of(run) : (wspy_ends){.marks = run->mark_count});
        return;
    }
    if (enqueue(loop, conn, run, (size_t)sent) < 0)
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
}

/* Sharing a payload costs each queue a block of its own: for less it is copied. */
enum { SHARED_MIN = 512 };

void wspy_connection_send_shared(wspy_loop *loop, connection *conn, const uint8_t *frame, size_t length,
                                 wspy_shared **shared, int is_marked)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)frame, .iov_len = length};
    conn->active = loop->tick;
    ssize_t sent = offer(loop, conn, &part, 1);
    if (sent < 0)
        return;
    wspy_ends ends = {.marks = is_marked != 0,
                      .messages = length && frame[0] & WSPY_FIN && (frame[0] & 0x0f) < WSPY_EVENT_CLOSE};
    if ((size_t)sent == length) {
        pass_ends(loop, conn, ends);
        return;
    }
    if (length <= SHARED_MIN) {
        wspy_run run = {.parts = {part}, .count = 1, .length = length, .mark_ends = {length}, .is_frames = 1};
        run.mark_count = ends.marks;
        if (enqueue(loop, conn, &run, (size_t)sent) < 0)
            wspy_connection_write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
        return;
    }
    if (!*shared)
        *shared = wspy_shared_new(frame, length);
    if (!conn->queue)
        conn->queue = new_queue(loop, conn);
    int is_queued =
        *shared && conn->queue && wspy_queue_push_shared(conn->queue, *shared, (size_t)sent) == WSPY_OK;
    if (is_queued)
        wspy_connection_show_backlog(loop, conn);
    if (!is_queued || wspy_queue_end(conn->queue, 0, is_marked, ends.messages != 0) < 0)
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
    else
        wspy_connection_poll(loop, conn);
}

/* Who waits to send more is told once, when there is room again. */
void wspy_connection_report_drained(wspy_loop *loop, connection *conn, uint64_t before)
{
    uint64_t limit = loop->settings.write_limit;
    if (!(loop->settings.wants & WSPY_WANT_DRAINED) || conn->phase < OPEN || !(conn->flags & SURFACED) ||
        before <= limit || wspy_connection_unsent(conn) > limit)
        return;
    conn->has_drained = 1;
    wspy_loop_list_report(loop, conn);
}

static int is_ending_now(const connection *conn)
{
    return conn->phase == ENDING && !conn->awaits_finish && !(conn->flags & (LISTED_ENDING | DONE));
}

void wspy_connection_cut_off(wspy_loop *loop, connection *conn, int error, int system_error)
{
    wspy_connection_write_failed(loop, conn, error, system_error);
    if (is_ending_now(conn))
        wspy_connection_abandon(loop, conn);
}

void wspy_connection_await_kernel(wspy_loop *loop, connection *conn)
{
    wspy_connection_poll(loop, conn);
    if (is_ending_now(conn) && !(conn->flags & WRITES)) /* it can't be waited for */
        wspy_connection_cut_off(loop, conn, WSPY_ERROR_RESET, errno);
}

struct above {
    wspy_loop *loop;
    connection *conn;
};

static ssize_t give_to_raw(void *to, const struct iovec *parts, size_t count)
{
    const struct above *above = to;
    return wspy_raw_send(above->loop, above->conn, parts, count);
}

static int flush_queue(wspy_loop *loop, connection *conn, wspy_ends *ends, uint64_t *bytes)
{
    if (!conn->raw)
        return wspy_queue_flush(conn->queue, conn->fd, ends, bytes);
    struct above above = {.loop = loop, .conn = conn};
    return wspy_queue_flush_to(conn->queue, give_to_raw, &above, ends, bytes);
}

void wspy_connection_writable(wspy_loop *loop, connection *conn)
{
    if (conn->raw)
        wspy_raw_writable(loop, conn);
    else if (conn->queue)
        wspy_connection_flush(loop, conn);
}

void wspy_connection_flush(wspy_loop *loop, connection *conn)
{
    if (conn->flags & LISTED_ENDING) /* first its end is carried out */
        return;
    if (!conn->queue) {
        if (is_ending_now(conn))
            all_written(loop, conn);
        return;
    }
    uint64_t size_before = wspy_connection_unsent(conn);
    wspy_ends ends = {0};
    uint64_t bytes = 0;
    int left = flush_queue(loop, conn, &ends, &bytes);
    int system_error = errno;
    loop->stats.bytes_sent += bytes;
    if (bytes) {
        conn->seen = conn->active = loop->tick;
        wspy_queue_set_time(conn->queue, loop->tick);
    }
    if (left == 0) {
        wspy_queue_free(conn->queue);
        conn->queue = NULL;
    }
    wspy_connection_show_backlog(loop, conn);
    pass_ends(loop, conn, ends);
    wspy_connection_report_drained(loop, conn, size_before);
    if (left < 0)
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_RESET, system_error);
    if (is_ending_now(conn) && !conn->queue) {
        if (left < 0)
            wspy_connection_abandon(loop, conn);
        else
            all_written(loop, conn);
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

void wspy_connection_send_replies(wspy_loop *loop, connection *conn)
{
    wspy_bytes *replies = &loop->replies;
    if (replies->length == 0)
        return;
    if (conn->queue) { /* §5.5.2: "MAY elect to send a Pong frame for only the most recently processed Ping" */
        size_t length;
        const uint8_t *frame = last_frame(replies, &length);
        uint64_t size_before = wspy_connection_unsent(conn);
        if (conn->flags & SENDABLE)
            wspy_queue_pong(conn->queue, frame, length);
        wspy_connection_show_backlog(loop, conn);
        wspy_connection_report_drained(loop, conn, size_before); /* it may take the place of a longer one */
    } else {
        wspy_connection_send_control(loop, conn, replies->data, replies->length);
        if (conn->queue) /* none of it may have been written: a later Pong must not overtake these */
            wspy_queue_keep_first(conn->queue);
    }
    replies->length = 0;
    if (replies->capacity > 65536)
        wspy_bytes_free(replies);
}
