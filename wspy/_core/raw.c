/* raw.c: how does a connection of the loop get through TLS, which Python has? Above it there is plaintext, below it
 * ciphertext, and each change of one into the other is an event and the command that answers it.
 *
 *   kernel -> RAW event -> FEED command -> `in`  -> what input.c reads
 *   kernel <- `refused` <- RAW_SEND command <- OUT event <- `out` <- what connection.c writes
 *
 * To the layer above it is a socket: it has nothing, or an end, or an error; and it takes no more while ciphertext waits
 * for the kernel. So backlog, credit, deadlines and endings are the same with TLS and without. */
#include "raw.h"

#include <errno.h>
#include <string.h>

#include "connection.h"
#include "sys.h"

/* Plaintext that may wait for its encryption: as much as one flush of a queue writes. */
enum { WINDOW = 256 << 10 };
/* Of what TLS answers by itself, such as a KeyUpdate (RFC 8446 §4.6.3): more is owed to nobody who doesn't read. */
enum { ANSWERS_MAX = 64 << 10 };

struct wspy_raw {
    wspy_bytes in; /* plaintext that was not read yet, from in_start on */
    size_t in_start;
    wspy_bytes out;       /* plaintext that was not reported yet */
    uint64_t taken;       /* bytes that were reported, and not answered */
    wspy_queue *refused;  /* owned; NULL: the kernel has all ciphertext */
    wspy_ends out_passed; /* in `out`, ... */
    wspy_ends taken_ends, refused_ends;
    uint32_t answers;    /* bytes of TLS's own that were added since there is something refused */
    uint32_t fetched;    /* bytes of the last read, ... */
    uint32_t fed;        /* and of the plaintext since then */
    uint32_t fetched_in; /* turn */
    uint32_t put_off;    /* the deadline that is one only since the one before came too early; tick */
    int32_t error;       /* errno of a read */
    uint8_t saw_end;     /* the kernel brings nothing more */
    uint8_t in_ends;     /* behind `in` nothing follows */
    uint8_t has_failed;
    uint8_t is_taken;    /* an OUT was reported, and not answered */
    uint8_t out_ends;    /* behind `out` nothing follows */
    uint8_t told_end;    /* OUT_LAST was reported */
    uint8_t refused_out; /* some of what was refused is plaintext, encrypted */
    uint8_t seals_end;   /* the last ciphertext is there */
    uint8_t is_broken;   /* ciphertext was lost: no more may leave */
};

wspy_raw *wspy_raw_new(void)
{
    return wspy_sys_allocate_zeroed(1, sizeof(wspy_raw));
}

void wspy_raw_free(wspy_raw *raw)
{
    if (!raw)
        return;
    wspy_bytes_free(&raw->in);
    wspy_bytes_free(&raw->out);
    wspy_queue_free(raw->refused);
    wspy_sys_free(raw);
}

void wspy_raw_memory(const wspy_raw *raw, wspy_memory *memory)
{
    if (!raw)
        return;
    memory->raw += wspy_sys_resident(raw, sizeof *raw);
    memory->remainders += wspy_sys_resident(raw->in.data, raw->in.length);
    memory->queues += wspy_sys_resident(raw->out.data, raw->out.length) + wspy_queue_memory(raw->refused);
}

/* ---- the layer above reads ---- */

int wspy_raw_has_input(const wspy_raw *raw)
{
    return raw->in.length > 0;
}

int wspy_raw_is_readable(const wspy_raw *raw)
{
    return wspy_raw_has_input(raw) || raw->in_ends;
}

static ssize_t fails(int error)
{
    errno = error;
    return -1;
}

ssize_t wspy_raw_recv(wspy_raw *raw, void *data, size_t length)
{
    size_t left = raw->in.length - raw->in_start;
    if (left == 0 && !raw->in_ends)
        return fails(EAGAIN);
    if (left == 0)
        return raw->error ? fails(raw->error) : 0;
    if (length > left)
        length = left;
    memcpy(data, raw->in.data + raw->in_start, length);
    raw->in_start += length;
    if (length == left) { /* an idle connection has no buffer */
        wspy_bytes_free(&raw->in);
        raw->in_start = 0;
    }
    return (ssize_t)length;
}

void wspy_raw_feed(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length)
{
    wspy_raw *raw = conn->raw;
    if (!raw || raw->in_ends || conn->phase >= ENDING) /* nobody reads it any more */
        return;
    raw->fed += length < READ_MAX ? (uint32_t)length : READ_MAX;
    if (wspy_bytes_append(&raw->in, data, length) < 0)
        wspy_connection_end(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
    else
        wspy_connection_resume(loop, conn);
}

/* An end without close_notify (RFC 8446 §6.1) is an end like any other: WebSocket has an end of its own, and whoever cuts
 * TLS off can't forge that. */
void wspy_raw_feed_end(wspy_loop *loop, connection *conn, int has_failed)
{
    wspy_raw *raw = conn->raw;
    if (!raw || raw->in_ends)
        return;
    raw->in_ends = 1;
    raw->has_failed = has_failed != 0;
    if (has_failed && !raw->error)
        raw->error = EPROTO;
    if (has_failed && conn->phase == HEAD) { /* else its alert would be lost with the connection */
        loop->stats.refused++;
        conn->phase = DECIDING;
        wspy_connection_end(loop, conn, WSPY_OK, 0);
        return;
    }
    wspy_connection_resume(loop, conn);
}

int wspy_raw_has_failed(const wspy_raw *raw)
{
    return raw->has_failed;
}

/* ---- the kernel is read ---- */

int wspy_raw_awaits_peer(const wspy_raw *raw)
{
    return !raw->saw_end;
}

static void report_ciphertext(wspy_loop *loop, connection *conn, size_t length)
{
    wspy_event *event = wspy_connection_event(loop, conn, WSPY_EVENT_RAW | WSPY_EVENT_APART);
    event->start = (uint32_t)loop->arena_used;
    event->length = (uint32_t)length;
    loop->arena_used += length;
}

/* Whether the last read brought much, and that was plaintext: a megabyte of key updates (RFC 8446 §4.6.3) takes Python a
 * second, which other connections have to wait for. */
static int is_worth_more(const wspy_raw *raw)
{
    return raw->fetched >= HEAD_READ && raw->fed >= raw->fetched / 2;
}

void wspy_raw_fetch(wspy_loop *loop, connection *conn)
{
    wspy_raw *raw = conn->raw;
    if (raw->saw_end)
        return;
    if (!wspy_loop_has_room(loop)) {
        wspy_connection_read_later(loop, conn);
        return;
    }
    size_t most = conn->phase == OPEN && is_worth_more(raw) && !conn->is_chatty ? READ_MAX : HEAD_READ;
    ssize_t got = wspy_sys_recv(conn->fd, loop->arena + loop->arena_used, most);
    if (got < 0 && wspy_sys_would_block(errno)) {
        if (conn->end_errno) /* of a write that failed: now everything is read */
            wspy_connection_end(loop, conn, WSPY_ERROR_RESET, conn->end_errno);
        return;
    }
    if (conn->phase == HEAD)
        loop->heads += HANDSHAKE_HEADS;
    else /* a record without a byte of a request is no sign that an answer is being read */
        conn->seen = loop->tick;
    if (got <= 0) { /* its place is behind what was read before, and that may not be decrypted yet */
        raw->saw_end = 1;
        raw->error = got < 0 ? errno : 0;
        got = 0;
    }
    raw->fetched = (uint32_t)got;
    raw->fetched_in = (uint32_t)loop->stats.turns;
    raw->fed = 0;
    report_ciphertext(loop, conn, (size_t)got);
    if (raw->saw_end)
        wspy_connection_stop_reading(loop, conn);
}

/* ---- the layer above writes ---- */

uint64_t wspy_raw_unsent(const wspy_raw *raw)
{
    return raw->out.length + raw->taken + wspy_queue_size(raw->refused);
}

uint32_t wspy_raw_messages(const wspy_raw *raw)
{
    return raw->out_passed.messages + raw->taken_ends.messages + raw->refused_ends.messages;
}

int wspy_raw_owes_plaintext(const wspy_raw *raw)
{
    return raw->out.length > 0 || raw->taken > 0 || (raw->refused && raw->refused_out);
}

static size_t append(wspy_bytes *out, const struct iovec *parts, size_t count)
{
    size_t before = out->length;
    for (size_t i = 0; i < count && out->length < WINDOW; i++) {
        size_t room = WINDOW - out->length;
        size_t length = parts[i].iov_len < room ? parts[i].iov_len : room;
        if (wspy_bytes_append(out, parts[i].iov_base, length) < 0)
            break;
    }
    return out->length - before;
}

ssize_t wspy_raw_send(wspy_loop *loop, connection *conn, const struct iovec *parts, size_t count)
{
    wspy_raw *raw = conn->raw;
    if (raw->is_broken || raw->out_ends)
        return fails(EPIPE);
    if (raw->refused || raw->out.length >= WINDOW)
        return fails(EAGAIN);
    size_t added = append(&raw->out, parts, count);
    if (added == 0)
        return fails(raw->out.length ? EAGAIN : EIO); /* no memory, which nobody is going to tell the end of */
    wspy_connection_show_backlog(loop, conn);
    wspy_loop_list_report(loop, conn);
    return (ssize_t)added;
}

void wspy_raw_pass(wspy_raw *raw, wspy_ends ends)
{
    wspy_ends_add(&raw->out_passed, ends);
}

void wspy_raw_end(wspy_loop *loop, connection *conn)
{
    conn->raw->out_ends = 1;
    wspy_loop_list_report(loop, conn);
}

int wspy_raw_has_ended(const wspy_raw *raw)
{
    return raw->is_broken || (raw->seals_end && !raw->refused);
}

void wspy_raw_drop_output(wspy_raw *raw)
{
    raw->is_broken = 1;
    raw->out_passed = raw->taken_ends = raw->refused_ends = (wspy_ends){0};
    wspy_bytes_free(&raw->out);
    wspy_queue_free(raw->refused);
    raw->refused = NULL;
}

/* ---- plaintext goes to Python ---- */

static int has_report(const wspy_raw *raw)
{
    return !raw->is_taken && !raw->told_end && (raw->out.length || raw->out_ends);
}

int wspy_raw_is_underway(const wspy_loop *loop, const wspy_raw *raw)
{
    return raw->fetched_in == (uint32_t)loop->stats.turns || has_report(raw);
}

int wspy_raw_put_off(wspy_loop *loop, connection *conn)
{
    wspy_raw *raw = conn->raw;
    if (!wspy_raw_is_underway(loop, raw) || raw->put_off == conn->timer.at)
        return 0;
    wspy_connection_arm(loop, conn, WSPY_TICK_MS);
    raw->put_off = conn->timer.at;
    return 1;
}

int wspy_raw_fits(const wspy_loop *loop, const connection *conn)
{
    return !conn->raw || !has_report(conn->raw) || loop->arena_used + conn->raw->out.length <= ARENA_SIZE;
}

void wspy_raw_report(wspy_loop *loop, connection *conn)
{
    wspy_raw *raw = conn->raw;
    if (!has_report(raw))
        return;
    uint32_t kind = raw->out_ends ? WSPY_EVENT_OUT_LAST : WSPY_EVENT_OUT;
    wspy_event *event = wspy_connection_event(loop, conn, kind | WSPY_EVENT_APART);
    size_t length = raw->out.length;
    event->start = (uint32_t)loop->arena_used;
    event->length = (uint32_t)length;
    if (length)
        memcpy(loop->arena + loop->arena_used, raw->out.data, length);
    loop->arena_used += length;
    raw->is_taken = 1;
    raw->told_end = raw->out_ends;
    raw->taken = length;
    raw->taken_ends = raw->out_passed;
    raw->out_passed = (wspy_ends){0};
    wspy_bytes_free(&raw->out);
}

/* ---- ciphertext goes to the kernel ---- */

static void note_refused(wspy_raw *raw, int bits, size_t length)
{
    if (bits & WSPY_RAW_OUT)
        raw->refused_out = 1;
    else
        raw->answers += length < ANSWERS_MAX ? (uint32_t)length : ANSWERS_MAX + 1;
}

static void none_refused(wspy_raw *raw)
{
    wspy_queue_free(raw->refused);
    raw->refused = NULL;
    raw->refused_out = 0;
    raw->answers = 0;
}

/* Returns 0 if the connection failed. */
static int write_ciphertext(wspy_loop *loop, connection *conn, int bits, const uint8_t *data, size_t length)
{
    wspy_raw *raw = conn->raw;
    if (raw->answers > ANSWERS_MAX && !(bits & WSPY_RAW_OUT)) {
        wspy_connection_cut_off(loop, conn, WSPY_ERROR_BACKLOG, 0);
        return 0;
    }
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    ssize_t sent = raw->refused ? 0 : wspy_sys_send(conn->fd, &part, 1);
    if (sent < 0 && !wspy_sys_would_block(errno)) {
        wspy_connection_cut_off(loop, conn, WSPY_ERROR_RESET, errno);
        return 0;
    }
    if (sent < 0)
        sent = 0;
    if ((size_t)sent == length)
        return 1;
    if (!raw->refused && (raw->refused = wspy_queue_new())) {
        wspy_queue_set_time(raw->refused, loop->tick);
        wspy_connection_hurry(loop, conn, loop->settings.write_timeout_ms);
    }
    if (raw->refused && wspy_queue_push(raw->refused, &part, 1, (size_t)sent) == WSPY_OK) {
        note_refused(raw, bits, length - (size_t)sent);
        return 1;
    }
    wspy_connection_cut_off(loop, conn, WSPY_ERROR_NO_MEMORY, 0);
    return 0;
}

/* The kernel has all ciphertext: what it is of was sent, and there is room for more. */
static void all_sent(wspy_loop *loop, connection *conn)
{
    uint32_t marks = conn->raw->refused_ends.marks;
    conn->raw->refused_ends = (wspy_ends){0};
    wspy_connection_passed(loop, conn, marks);
    if (!(conn->flags & DONE))
        wspy_connection_flush(loop, conn);
}

void wspy_raw_send_ciphertext(wspy_loop *loop, connection *conn, int bits, const uint8_t *data, size_t length)
{
    wspy_raw *raw = conn->raw;
    if (!raw)
        return;
    uint64_t before = wspy_connection_unsent(conn);
    if (bits & WSPY_RAW_OUT) {
        raw->is_taken = 0;
        raw->taken = 0;
        wspy_ends_add(&raw->refused_ends, raw->taken_ends);
        raw->taken_ends = (wspy_ends){0};
        if (has_report(raw))
            wspy_loop_list_report(loop, conn);
    }
    if (bits & WSPY_RAW_LAST)
        raw->seals_end = 1;
    if (raw->is_broken || conn->phase == LINGER)
        return;
    if (length && !write_ciphertext(loop, conn, bits, data, length))
        return;
    wspy_connection_show_backlog(loop, conn);
    wspy_connection_report_drained(loop, conn, before);
    if (raw->refused)
        wspy_connection_await_kernel(loop, conn);
    else
        all_sent(loop, conn);
}

void wspy_raw_writable(wspy_loop *loop, connection *conn)
{
    wspy_raw *raw = conn->raw;
    if (!raw->refused)
        return;
    uint64_t before = wspy_connection_unsent(conn);
    wspy_ends none = {0}; /* they are counted here: a position in ciphertext means nothing */
    uint64_t bytes = 0;
    int left = wspy_queue_flush(raw->refused, conn->fd, &none, &bytes);
    int system_error = errno;
    if (bytes) {
        conn->seen = conn->active = loop->tick;
        wspy_queue_set_time(raw->refused, loop->tick);
    }
    if (left < 0) {
        wspy_connection_cut_off(loop, conn, WSPY_ERROR_RESET, system_error);
        return;
    }
    if (left == 0)
        none_refused(raw);
    wspy_connection_show_backlog(loop, conn);
    wspy_connection_report_drained(loop, conn, before);
    if (left == 0)
        all_sent(loop, conn);
    if (!(conn->flags & DONE))
        wspy_connection_poll(loop, conn);
}

const wspy_queue *wspy_raw_refused(const wspy_raw *raw)
{
    return raw->refused;
}
