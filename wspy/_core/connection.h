/* connection.h: one connection of the loop, as connection.c, input.c and deadlines.c share it. */
#ifndef WSPY_CONNECTION_H
#define WSPY_CONNECTION_H

#include "loop.h"

/* ---- connection.c ---- */

void wspy_connection_stop_reading(wspy_loop *loop, connection *conn);
/* A control frame goes out, or into the queue. */
void wspy_connection_send_control(wspy_loop *loop, connection *conn, uint8_t *frame, size_t length);
/* Pongs that the protocol left in loop->replies. */
void wspy_connection_send_replies(wspy_loop *loop, connection *conn);
/* While it is ending, a write that fails, or takes too long, makes the end a hard one. */
void wspy_connection_write_failed(wspy_loop *loop, connection *conn, int error, int system_error);
void wspy_connection_drop_queue(connection *conn);
/* Ends it at once, with a reset. */
void wspy_connection_abandon(wspy_loop *loop, connection *conn);
/* The next event, to be filled in; there must be room. Valid until the next one. */
wspy_event *wspy_connection_event(wspy_loop *loop, const connection *conn, uint32_t kind);
/* Bytes that the kernel has not taken. */
uint64_t wspy_connection_unsent(const connection *conn);
/* Whether there is something of what was sent among them, and not only what TLS says by itself. */
int wspy_connection_owes_answer(const connection *conn);
/* Whether the kernel has refused something. */
int wspy_connection_is_blocked(const connection *conn);
/* Python reads them without a call. */
void wspy_connection_show_backlog(wspy_loop *loop, connection *conn);
/* Reports DRAINED if fewer than `before` are left now, and few enough. */
void wspy_connection_report_drained(wspy_loop *loop, connection *conn, uint64_t before);
/* Writes what is queued, as far as it goes, and ends what is ending. */
void wspy_connection_flush(wspy_loop *loop, connection *conn);
/* So many marks more were handed to the kernel. */
void wspy_connection_passed(wspy_loop *loop, connection *conn, uint32_t marks);
/* Nothing can be written any more. */
void wspy_connection_cut_off(wspy_loop *loop, connection *conn, int error, int system_error);
/* What the kernel has refused is tried again when it takes more. */
void wspy_connection_await_kernel(wspy_loop *loop, connection *conn);
/* onopen comes before anything else of a connection. */
void wspy_connection_report_opened(wspy_loop *loop, connection *conn);

/* ---- input.c ---- */

static inline uint32_t wspy_connection_kept(const connection *conn)
{
    return conn->input ? conn->input->end - conn->input->start : 0;
}

int wspy_connection_may_read(const connection *conn);
/* It comes first in the next turn. */
void wspy_connection_read_later(wspy_loop *loop, connection *conn);
/* The same, if it may read and there is plaintext for it. */
void wspy_connection_resume(wspy_loop *loop, connection *conn);
/* Whether bytes of the peer wait to be read: above 0. */
ssize_t wspy_connection_peek(const connection *conn);
void wspy_connection_forget_input(connection *conn);
/* No more requests are read; Python refuses this one, also if it has the head already. */
void wspy_connection_refuse_head(wspy_loop *loop, connection *conn, int error);

/* ---- deadlines.c ---- */

/* A Pong came that may answer a keepalive ping. */
void wspy_connection_ponged(connection *conn, uint32_t number);
/* The deadline of an open connection is this, unless it has an earlier one. */
void wspy_connection_hurry(wspy_loop *loop, connection *conn, uint32_t delay_ms);
/* The deadline of a connection that was just opened. */
void wspy_connection_arm_open(wspy_loop *loop, connection *conn);

/* The loop did not turn for a while: what was due then could not be looked at in time. */
int wspy_connection_is_late(const wspy_loop *loop, const connection *conn);

#endif
