/* deadlines.c: what happens to a connection when its time is up: keepalive, and everything that takes too long. */
#include "connection.h"
#include "sys.h"

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

int wspy_connection_is_late(const wspy_loop *loop, const connection *conn)
{
    uint32_t behind = loop->tick - conn->timer.at;
    return behind >= LATE_TICKS && behind <= INT32_MAX;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t ms_since(const wspy_loop *loop, uint32_t tick)
{
    uint64_t passed = (uint64_t)(loop->tick - tick) * WSPY_TICK_MS;
    return passed < WSPY_FOREVER ? (uint32_t)passed : WSPY_FOREVER - 1;
}

/* The answer has a deadline of its own. */
static void refuse(wspy_loop *loop, connection *conn, int error)
{
    wspy_connection_refuse_head(loop, conn, error);
    wspy_connection_arm(loop, conn, LINGER_MS);
}

static void head_expired(wspy_loop *loop, connection *conn)
{
    uint32_t idle = ms_since(loop, conn->seen), allowed = loop->settings.idle_request_ms;
    if (wspy_connection_owes_answer(conn) && conn->scanner.size == 0 &&
        idle < allowed) { /* it is still taking the last answer */
        wspy_connection_arm(loop, conn, allowed - idle);
        return;
    }
    loop->stats.timeouts++;
    if (!wspy_head_has_line(&conn->scanner)) {
        /* between two requests it is another deadline, idle_request_ms */
        loop->stats.silent_handshakes += !conn->requests || conn->scanner.size;
        wspy_connection_end(loop, conn, WSPY_ERROR_OPEN_TIMEOUT, 0);
        return;
    }
    refuse(loop, conn, WSPY_ERROR_HEAD_TIMEOUT);
}

static void decision_expired(wspy_loop *loop, connection *conn)
{
    loop->stats.timeouts++;
    if (conn->is_refused)
        wspy_connection_end(loop, conn, WSPY_ERROR_OPEN_TIMEOUT, 0);
    else
        refuse(loop, conn, WSPY_ERROR_OPEN_TIMEOUT);
}

static uint32_t now_us(void)
{
    return (uint32_t)(wspy_sys_now_ns() / 1000);
}

void wspy_connection_ponged(connection *conn, uint32_t number)
{
    if (number == conn->ping_at) /* that is not 0 once there was a ping */
        conn->latency_us = now_us() - conn->ping_us;
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
    conn->ping_us = now_us();
    conn->flags |= AWAITS_PONG;
    wspy_connection_send_control(loop, conn, frame, (size_t)size);
    if (!(loop->settings.wants & WSPY_WANT_PINGED))
        return;
    wspy_connection_report_opened(loop, conn);
    wspy_connection_event(loop, conn, WSPY_EVENT_PINGED)->start = tick;
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
    return is_late && wspy_connection_may_read(conn) && !(conn->flags & LISTED_READY) &&
           wspy_connection_peek(conn) <= 0;
}

/* What waits for the kernel to take something; NULL: nothing does. */
static const wspy_queue *waiting(const connection *conn)
{
    return conn->raw && wspy_raw_refused(conn->raw) ? wspy_raw_refused(conn->raw) : conn->queue;
}

/* Milliseconds until a deadline that counts from a tick; 0: it is over. */
static uint32_t left_of(const wspy_loop *loop, uint32_t allowed_ms, uint32_t since)
{
    uint32_t passed = ms_since(loop, since);
    return allowed_ms == WSPY_FOREVER ? WSPY_FOREVER : passed < allowed_ms ? allowed_ms - passed : 0;
}

static uint32_t left_to_write(const wspy_loop *loop, const connection *conn)
{
    const wspy_queue *queue = waiting(conn);
    return queue ? left_of(loop, loop->settings.write_timeout_ms, wspy_queue_time(queue)) : WSPY_FOREVER;
}

/* Returns 0 if the connection has ended. */
static int check_writing(wspy_loop *loop, connection *conn)
{
    if (left_to_write(loop, conn))
        return 1;
    wspy_connection_writable(loop, conn); /* this turn did not come to it yet */
    if (conn->phase != OPEN)
        return 0;
    if (left_to_write(loop, conn))
        return 1;
    loop->stats.timeouts++;
    wspy_connection_end(loop, conn, WSPY_ERROR_WRITE_TIMEOUT, 0);
    return 0;
}

/* What the peer sent in time may still lie in the kernel, or Python has to decrypt it. */
static int was_not_read(const wspy_loop *loop, const connection *conn)
{
    return wspy_connection_is_late(loop, conn) &&
           (conn->flags & LISTED_READY || wspy_connection_peek(conn) > 0 ||
            (conn->raw && wspy_raw_is_underway(loop, conn->raw)));
}

/* What waits because this side does not read may be a message, so it says nothing against the peer. */
static int is_kept_waiting(const connection *conn)
{
    return !wspy_connection_may_read(conn) && (wspy_connection_kept(conn) || wspy_connection_peek(conn) > 0);
}

static uint32_t check_idleness(wspy_loop *loop, connection *conn)
{
    uint32_t left = left_of(loop, loop->settings.idle_timeout_ms, conn->active);
    if (left)
        return left;
    if (was_not_read(loop, conn) || is_kept_waiting(conn))
        return GRACE_MS;
    conn->active = loop->tick; /* it is told again if nobody does anything about it */
    wspy_connection_report_opened(loop, conn);
    wspy_connection_event(loop, conn, WSPY_EVENT_IDLE);
    return loop->settings.idle_timeout_ms;
}

/* Returns in how many milliseconds there is something to do again; 0: the connection has ended. */
static uint32_t keep_alive(wspy_loop *loop, connection *conn)
{
    uint32_t interval = loop->settings.ping_interval_ms;
    if (interval == WSPY_FOREVER)
        return WSPY_FOREVER;
    uint32_t due = pong_due_ms(loop, conn);
    if (due)
        return least(interval, due);
    /* a paused one is not in the epoll set; what it has sent is waited for */
    if (!wspy_connection_may_read(conn) && wspy_sys_hung_up(conn->fd) && wspy_connection_peek(conn) <= 0) {
        wspy_connection_end(loop, conn, WSPY_ERROR_RESET, 0);
        return 0;
    }
    if (pong_is_overdue(loop, conn)) {
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, WSPY_ERROR_PING_TIMEOUT, 0);
        return 0;
    }
    uint32_t idle = ms_since(loop, conn->seen);
    if (idle < interval)
        return interval - idle;
    if (wspy_connection_is_blocked(
            conn)) /* a full pipe needs no probe: that the kernel takes something is the answer */
        return least(interval, loop->settings.ping_timeout_ms);
    if (!wspy_connection_may_read(conn)) /* no pong could be read */
        return interval;
    send_keepalive(loop, conn);
    return least(interval, loop->settings.ping_timeout_ms);
}

static void open_expired(wspy_loop *loop, connection *conn)
{
    if (!check_writing(loop, conn))
        return;
    uint32_t next = keep_alive(loop, conn);
    if (!next || conn->phase != OPEN || !(conn->flags & SENDABLE))
        return;
    next = least(next, check_idleness(loop, conn));
    wspy_connection_arm(loop, conn, least(next, left_to_write(loop, conn)));
}

void wspy_connection_arm_open(wspy_loop *loop, connection *conn)
{
    uint32_t first = least(loop->settings.ping_interval_ms, loop->settings.idle_timeout_ms);
    wspy_connection_arm(loop, conn, least(first, left_to_write(loop, conn)));
}

void wspy_connection_hurry(wspy_loop *loop, connection *conn, uint32_t delay_ms)
{
    if (delay_ms == WSPY_FOREVER || conn->phase != OPEN || !(conn->flags & SENDABLE))
        return;
    uint64_t at = (loop->now_ms + delay_ms + WSPY_TICK_MS - 1) / WSPY_TICK_MS;
    if (!conn->timer.next || (int32_t)(conn->timer.at - (uint32_t)at) > 0)
        wspy_connection_arm(loop, conn, delay_ms);
}

/* Returns 1 if it is not to be judged yet: with TLS, what is done in a turn without may take two. */
static int put_off(wspy_loop *loop, connection *conn)
{
    if ((conn->phase == HEAD || conn->phase == OPEN) && was_not_read(loop, conn)) {
        wspy_connection_arm(loop, conn, GRACE_MS);
        return 1;
    }
    return conn->raw && wspy_raw_put_off(loop, conn);
}

void wspy_connection_expired(wspy_loop *loop, connection *conn)
{
    if (loop->sink.count >= EVENTS_TURN + EVENTS_EXPIRED) { /* no room to report it */
        wspy_connection_arm(loop, conn, WSPY_TICK_MS);
        return;
    }
    switch (conn->phase) {
    case HEAD:
        if (!put_off(loop, conn))
            head_expired(loop, conn);
        return;
    case DECIDING:
        decision_expired(loop, conn);
        return;
    case OPENING:
        if (put_off(loop, conn))
            return;
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, WSPY_ERROR_OPEN_TIMEOUT, 0);
        return;
    case OPEN:
        if (conn->flags & SENDABLE) {
            open_expired(loop, conn);
            return;
        }
        if (put_off(loop, conn))
            return;
        loop->stats.timeouts++;
        wspy_connection_end(loop, conn, conn->end_errno ? WSPY_ERROR_RESET : WSPY_ERROR_CLOSE_TIMEOUT,
                            conn->end_errno);
        return;
    case ENDING:
        if (conn->awaits_finish) {
            wspy_connection_let_finish(loop, conn);
            return;
        }
        if (put_off(loop, conn))
            return;
        loop->stats.timeouts++;
        wspy_connection_write_failed(loop, conn, WSPY_ERROR_CLOSE_TIMEOUT, 0);
        wspy_connection_abandon(loop, conn);
        return;
    default:
        wspy_connection_drop(loop, conn);
    }
}
