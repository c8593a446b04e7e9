/* raw.h: what stands between a connection of the loop and the kernel if Python has TLS there. Private to the core.
 *
 * Every function is called with the loop's mutex held. */
#ifndef WSPY_RAW_H
#define WSPY_RAW_H

#include "core.h"
#include "queue.h"

typedef struct connection connection;

/* Owned by its connection, from its first moment to its last. */
typedef struct wspy_raw wspy_raw;

wspy_raw *wspy_raw_new(void); /* NULL without memory */
void wspy_raw_free(wspy_raw *raw);

/* ---- for the layer above: a socket of plaintext ---- */

/* As wspy_sys_recv: EAGAIN until FEED, 0 after FEED_END. */
ssize_t wspy_raw_recv(wspy_raw *raw, void *data, size_t length);
/* As wspy_sys_send: it takes what fits while no ciphertext waits for the kernel. An OUT event passes it on. */
ssize_t wspy_raw_send(wspy_loop *loop, connection *conn, const struct iovec *parts, size_t count);
/* What ends in what was taken so far: it is passed when its ciphertext was handed to the kernel. */
void wspy_raw_pass(wspy_raw *raw, wspy_ends ends);
uint32_t wspy_raw_messages(const wspy_raw *raw); /* of these, those that were not */
/* As shutdown for writing, once: OUT_LAST, then close_notify, then the end of our half of TCP. */
void wspy_raw_end(wspy_loop *loop, connection *conn);
int wspy_raw_has_ended(const wspy_raw *raw); /* all that is handed to the kernel */
/* Whether recv would say something else than EAGAIN. */
int wspy_raw_is_readable(const wspy_raw *raw);
int wspy_raw_has_input(const wspy_raw *raw); /* the same, but for the end */
/* Nothing more leaves: what waits is lost. */
void wspy_raw_drop_output(wspy_raw *raw);
uint64_t wspy_raw_unsent(const wspy_raw *raw); /* bytes that recv and send moved to here, or made of those */
/* Whether some of that is what the layer above has sent, and not what TLS says by itself. */
int wspy_raw_owes_plaintext(const wspy_raw *raw);
/* Whether TLS has failed: then its alert shall arrive, which a reset would overtake. */
int wspy_raw_has_failed(const wspy_raw *raw);

/* Adds the bytes of memory that it takes, each kind where it belongs. */
void wspy_raw_memory(const wspy_raw *raw, wspy_memory *memory);

/* ---- for the loop: the side of the kernel ---- */

/* Whether more of the peer can come. */
int wspy_raw_awaits_peer(const wspy_raw *raw);
/* Ciphertext that the kernel has refused; NULL: none. Valid until the next call. */
const wspy_queue *wspy_raw_refused(const wspy_raw *raw);
/* Reads ciphertext into the arena, and reports it. */
void wspy_raw_fetch(wspy_loop *loop, connection *conn);
/* epoll reported that the kernel takes more. */
void wspy_raw_writable(wspy_loop *loop, connection *conn);
/* Whether Python gets something of it in this turn, in either direction, and answers it before the next deadlines. */
int wspy_raw_is_underway(const wspy_loop *loop, const wspy_raw *raw);
/* If so, puts its deadline off until then: once for each, or a peer that never stops sending would have none. */
int wspy_raw_put_off(wspy_loop *loop, connection *conn);
/* Whether the arena has room for what wspy_raw_report adds. */
int wspy_raw_fits(const wspy_loop *loop, const connection *conn);
/* Reports OUT, unless there is nothing for it or the last one has no answer yet. */
void wspy_raw_report(wspy_loop *loop, connection *conn);

/* ---- commands ---- */

void wspy_raw_feed(wspy_loop *loop, connection *conn, const uint8_t *data, size_t length);
void wspy_raw_feed_end(wspy_loop *loop, connection *conn, int has_failed);
void wspy_raw_send_ciphertext(wspy_loop *loop, connection *conn, int bits, const uint8_t *data, size_t length);

#endif
