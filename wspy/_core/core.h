/* core.h: the boundary between Python and the C core, written once.
 *
 * The part between the two cdef markers is read by ffi_build.py and is all that Python sees; the C files
 * include this header too, so a prototype exists in one place only. Conventions:
 *   - a function returns a value >= 0, or a negative enum wspy_error;
 *   - object first, verb last; sizes are bytes unless the name says otherwise (_ms, _count);
 *   - C never calls Python; every pointer argument is borrowed for the duration of the call only,
 *     unless the comment at the declaration says who owns it from then on.
 */
#ifndef WSPY_CORE_H
#define WSPY_CORE_H

#include <stddef.h>
#include <stdint.h>

/* cdef begins */

/* ---- errors (errors.c): one table maps each to close code, RFC section and text ---- */

enum wspy_error {
    WSPY_OK = 0,
    /* the caller or the system */
    WSPY_ERROR_NO_MEMORY = -1,
    WSPY_ERROR_SYSTEM = -2, /* errno tells */
    WSPY_ERROR_BUSY = -3,   /* a turn is already running, here or in another thread */
    WSPY_ERROR_ARGUMENT = -4,
    WSPY_ERROR_CLOSED = -5, /* the loop was closed or belongs to the parent of a fork */
    WSPY_ERROR_HANDLE = -6, /* no such connection, or not any more */
    /* the peer broke RFC 6455 */
    WSPY_ERROR_RSV = -16,
    WSPY_ERROR_OPCODE = -17,
    WSPY_ERROR_UNMASKED = -18,
    WSPY_ERROR_MASKED = -19,
    WSPY_ERROR_LENGTH_FORM = -20,
    WSPY_ERROR_LENGTH_RANGE = -21,
    WSPY_ERROR_CONTROL_LENGTH = -22,
    WSPY_ERROR_CONTROL_FRAGMENT = -23,
    WSPY_ERROR_CONTINUATION = -24,
    WSPY_ERROR_INTERLEAVED = -25,
    WSPY_ERROR_MESSAGE_SIZE = -26,
    WSPY_ERROR_FRAGMENT_SIZE = -27,
    WSPY_ERROR_FRAGMENT_COUNT = -28,
    WSPY_ERROR_UTF8 = -29,
    WSPY_ERROR_CLOSE_LENGTH = -30,
    WSPY_ERROR_CLOSE_CODE = -31,
    WSPY_ERROR_CLOSE_UTF8 = -32,
    WSPY_ERROR_EXTENSION = -33, /* FAIL says with which close code */
    /* the peer broke HTTP/1.1, or a limit on its request head */
    WSPY_ERROR_HEAD_SYNTAX = -48,
    WSPY_ERROR_HEAD_METHOD = -49,      /* over 32 bytes */
    WSPY_ERROR_HEAD_LINE = -50,        /* the request line is too long */
    WSPY_ERROR_HEAD_FIELD = -51,       /* a field line is too long */
    WSPY_ERROR_HEAD_FIELD_COUNT = -52, /* too many field lines */
    WSPY_ERROR_HEAD_SIZE = -53,
    WSPY_ERROR_HEAD_TIMEOUT = -54, /* the request line is complete, the head is not */
    /* why a connection ended, beside the above */
    WSPY_ERROR_EOF = -64,   /* the peer ended TCP without a Close frame */
    WSPY_ERROR_RESET = -65, /* a system call on the connection failed */
    WSPY_ERROR_OPEN_TIMEOUT = -66,
    WSPY_ERROR_CLOSE_TIMEOUT = -67,
    WSPY_ERROR_PING_TIMEOUT = -68,
    WSPY_ERROR_BACKLOG = -69, /* more unsent bytes than max_backlog */
    WSPY_ERROR_ABORTED = -70, /* abort() was called */
    WSPY_ERROR_WRITE_TIMEOUT = -71,
    WSPY_ERROR_CONTROL_RATE = -72 /* more control frames in a second than max_controls */
};

int wspy_error_close_code(int error);      /* the code a Close frame for it carries, or 1006 */
const char *wspy_error_section(int error); /* "RFC 6455 §5.2" or "" (static) */
const char *wspy_error_text(int error);    /* a sentence without a full stop (static) */

/* ---- masking (mask.c), RFC 6455 §5.3 ---- */

/* Mask or unmask in place. offset: position of data[0] in the frame's payload. */
void wspy_mask(uint8_t *data, size_t length, const uint8_t *masking_key, size_t offset);
/* The same from input to output; the two must be equal or must not overlap. */
void wspy_mask_into(uint8_t *output, const uint8_t *input, size_t length, const uint8_t *masking_key,
                    size_t offset);
/* Tests: 0 scalar, 1 SSE2, 2 AVX2, 3 NEON; -1 the best this CPU has. Returns the one in force (for an absent one,
 * the next lower). Not thread-safe. */
int wspy_mask_select(int implementation);

/* ---- UTF-8 (utf8.c), RFC 3629 ---- */

#define WSPY_UTF8_ACCEPT 0
#define WSPY_UTF8_REJECT 1
/* Validate the next part of a text. *state starts as WSPY_UTF8_ACCEPT and holds what an unfinished code point
 * needs; the text is complete when it is WSPY_UTF8_ACCEPT again. Returns how many bytes were accepted: less than
 * length exactly if the byte at that index can't continue any valid text; *state is then WSPY_UTF8_REJECT and
 * stays so. */
size_t wspy_utf8_feed(uint32_t *state, const uint8_t *data, size_t length);
/* Tests: 0 scalar, 1 the best this CPU has. Returns the one in force. Not thread-safe. */
int wspy_utf8_select(int implementation);

/* ---- nonces (nonce.c), RFC 7616 §3.4 ---- */

/* Raise *newest, which any number of threads and processes may share, to a use. Returns 1, or 0 if it isn't below it:
 * the use is an old one. Thread-safe, and never waits. newest: aligned to 8 bytes. */
int wspy_nonce_use(uint64_t *newest, uint64_t use);

/* ---- frame headers (frame.c), RFC 6455 §5.2 ---- */

#define WSPY_FIN 0x80
#define WSPY_RSV1 0x40
#define WSPY_RSV2 0x20
#define WSPY_RSV3 0x10
#define WSPY_MASK_BIT 0x80
#define WSPY_HEADER_MAX 14

typedef struct {
    uint64_t length; /* of the payload */
    uint8_t flags;   /* WSPY_FIN and RSV bits */
    uint8_t opcode;
    uint8_t masked;
    uint8_t masking_key[4];
} wspy_frame_header;

/* Decode the header at data. Returns its size, 0 if more bytes are needed, or WSPY_ERROR_LENGTH_FORM or
 * WSPY_ERROR_LENGTH_RANGE. flags, opcode and masked are set as soon as two bytes are there, the length with its last
 * byte, the key with its last one: whatever is returned then. */
int wspy_frame_decode(const uint8_t *data, size_t length, wspy_frame_header *header);
/* Encode into output (WSPY_HEADER_MAX bytes). Returns the size. */
int wspy_frame_encode(uint8_t *output, const wspy_frame_header *header);

/* ---- events: what the protocol and the loop report ---- */

enum wspy_event_kind {
    /* below 16: a frame, or a complete message, of that opcode; NOT_FINAL, CLAIMED and RSV bits are added */
    WSPY_EVENT_CONTINUATION = 0,
    WSPY_EVENT_TEXT = 1,
    WSPY_EVENT_BINARY = 2,
    WSPY_EVENT_CLOSE = 8, /* payload: as on the wire, checked */
    WSPY_EVENT_PING = 9,
    WSPY_EVENT_PONG = 10,
    WSPY_EVENT_NOT_FINAL = 0x80,
    WSPY_EVENT_RSV = 0x7000,       /* mask: RSV1 0x4000, RSV2 0x2000, RSV3 0x1000 */
    WSPY_EVENT_CLAIMED = 0x8000,   /* extensions have claimed the opcode */
    WSPY_EVENT_APART = 0x10000,    /* payload: in the arena, not packed */
    WSPY_EVENT_DETACHED = 0x20000, /* payload: wspy_loop_detached(loop, start), in neither */
    /* the loop's own */
    WSPY_EVENT_HEAD = 16,     /* payload: a complete request head */
    WSPY_EVENT_BAD_HEAD = 17, /* start: the error, as a positive number; an answer is due. Behind HEAD, with
                                 OPEN_TIMEOUT: that took too long to be answered */
    WSPY_EVENT_OPENED = 18,   /* the 101 was handed to the kernel */
    WSPY_EVENT_SENT = 19,     /* start: how many more marked sends were handed to the kernel */
    WSPY_EVENT_CLOSED = 20,   /* the last event of a connection; start: close code, length: error as a positive
                                 number, 0 after a closing handshake, and errno << 8 */
    WSPY_EVENT_PINGED = 21,   /* a keepalive ping was sent; payload in start (4 bytes, big endian) */
    WSPY_EVENT_ACCEPT_PAUSED = 22, /* start: errno; accepting goes on by itself later */
    WSPY_EVENT_DRAINED = 23,       /* of more unsent bytes than write_limit, the kernel has taken enough */
    WSPY_EVENT_ENDING = 24,        /* nothing more follows of what the peer sent: FINISH is due */
    /* with settings.raw, for Python to decrypt and encrypt in between; each is answered in its turn */
    WSPY_EVENT_RAW = 25,      /* payload: ciphertext from the peer, for FEED; none at its end, for FEED_END */
    WSPY_EVENT_OUT = 26,      /* payload: plaintext to the peer, for RAW_SEND with WSPY_RAW_OUT */
    WSPY_EVENT_OUT_LAST = 27, /* the same, and nothing follows it: close_notify and WSPY_RAW_LAST, too */
    WSPY_EVENT_GONE = 28,     /* the connection is gone, whatever was known of it */
    WSPY_EVENT_IDLE = 29      /* no message came or went for idle_timeout_ms */
};

typedef struct {
    uint32_t slot; /* of the connection; wspy_loop_handle tells its handle. No slot is used again in a turn */
    uint32_t kind;
    uint32_t start; /* of the payload */
    uint32_t length;
} wspy_event;

/* ---- the protocol (protocol.c): RFC 6455 §5 to §7 without I/O and without a clock ---- */

enum wspy_role { WSPY_SERVER = 0, WSPY_CLIENT = 1 };
enum wspy_granularity { WSPY_MESSAGES = 0, WSPY_FRAMES = 1 };

typedef struct {
    uint64_t max_size;          /* of a reassembled message; UINT64_MAX: no limit */
    uint64_t max_fragment_size; /* of one data frame; UINT64_MAX: no limit */
    uint32_t max_fragments;     /* data frames per message; UINT32_MAX: no limit */
} wspy_limits;

/* A protocol with buffers of its own, for use without the loop. Owned by the caller, until _free. Not
 * thread-safe. */
typedef struct wspy_endpoint wspy_endpoint;
/* rsv: the WSPY_RSV bits, opcodes: bit n for opcode n, that extensions have claimed. A payload with such a bit, and a
 * text if they have claimed that opcode, is for them to read: it need not be UTF-8, and in a message it may be a little
 * longer than max_size. NULL without memory. */
wspy_endpoint *wspy_endpoint_new(int role, int granularity, const wspy_limits *limits, int rsv, int opcodes);
void wspy_endpoint_free(wspy_endpoint *endpoint);
/* Feed bytes from the peer. Events and owed replies are added to those not taken yet. Returns the number of
 * waiting events, or the error: sticky, and after it (as after the peer's Close) input is ignored. */
int wspy_endpoint_feed(wspy_endpoint *endpoint, const uint8_t *data, size_t length);
/* The waiting events and the arena their payloads lie in: valid until the next _feed or _clear. DETACHED
 * payloads: wspy_endpoint_detached. */
const wspy_event *wspy_endpoint_events(const wspy_endpoint *endpoint);
uint32_t wspy_endpoint_event_count(const wspy_endpoint *endpoint); /* also after an error */
const uint8_t *wspy_endpoint_arena(const wspy_endpoint *endpoint);
const uint8_t *wspy_endpoint_detached(const wspy_endpoint *endpoint, uint32_t index, uint64_t *length);
/* _clear and _feed in one call, for few events in short input: adds WSPY_ENDPOINT_MOVED to a number of events if they or
 * the arena are not where they were after the last step, or have another capacity. */
int wspy_endpoint_step(wspy_endpoint *endpoint, const uint8_t *data, size_t length);
#define WSPY_ENDPOINT_MOVED 0x40000000
size_t wspy_endpoint_arena_capacity(const wspy_endpoint *endpoint);
uint32_t wspy_endpoint_event_capacity(const wspy_endpoint *endpoint);
/* Pongs owed to the peer, in order; *length: how many bytes. Valid until the next _feed or _clear. */
const uint8_t *wspy_endpoint_replies(const wspy_endpoint *endpoint, size_t *length);
/* Drop events and replies that were taken. */
void wspy_endpoint_clear(wspy_endpoint *endpoint);
/* Write the Close frame that is owed (the echo, or the failure's code) into output (139 bytes). Returns its
 * size, 0 if none is owed, or WSPY_ERROR_SYSTEM (a client without random numbers). Call it after everything
 * received before was handled and answered. */
int wspy_endpoint_owed_close(wspy_endpoint *endpoint, uint8_t *output);
/* Where what is sent frame by frame stands. Owned by the caller; all zero before the first frame. */
typedef struct {
    uint32_t utf8;  /* of the unfinished text */
    uint8_t state;  /* whether there is an unfinished message, and which */
    uint8_t opcode; /* of that message */
    uint8_t rsv;    /* of its frames so far */
    uint8_t closed; /* a Close frame is among them */
} wspy_sending;

/* Check a frame before it is sent, by the rules for what arrives: first is its first byte. Returns WSPY_OK, or the error
 * and leaves sending as it was. Masking and limits are not looked at. */
int wspy_endpoint_check(const wspy_endpoint *endpoint, wspy_sending *sending, int first, const uint8_t *payload,
                        size_t length);
/* Write such a frame into output (length + WSPY_HEADER_MAX bytes) and note it in sending; a Close frame counts as sent
 * then, and no other is owed. how: WSPY_SEND bits; masking_key: 4 bytes, if one says so, else a random one is used. Returns the size, or the
 * error: besides those of _check, WSPY_ERROR_MASKED, WSPY_ERROR_UNMASKED or WSPY_ERROR_SYSTEM (no random numbers). */
#define WSPY_SEND_MASKED 1
#define WSPY_SEND_UNCHECKED 2 /* only write; note nothing */
#define WSPY_SEND_KEY 4       /* masked with masking_key */
int64_t wspy_endpoint_send(wspy_endpoint *endpoint, wspy_sending *sending, int first, int how,
                           const uint8_t *masking_key, const uint8_t *payload, size_t length, uint8_t *output);
/* To be called in the child of a fork: no endpoint goes on with masking keys that its parent uses, too. */
void wspy_endpoint_forked(void);
/* The same check of a frame by itself: whatever an extension could have claimed, and wherever it may stand. */
int wspy_frame_check(int first, const uint8_t *payload, size_t length);
/* Start the closing handshake: write a Close frame with this checked payload (0 or 2 to 125 bytes) into output
 * (139 bytes). Returns its size, 0 if a Close was sent or is owed or the endpoint has failed,
 * WSPY_ERROR_ARGUMENT for a longer payload, or WSPY_ERROR_SYSTEM (as above). */
int wspy_endpoint_close(wspy_endpoint *endpoint, const uint8_t *payload, size_t length, uint8_t *output);
/* Fail for a fault that an extension has found: unless a Close was sent, one with this code is owed (wspy_close_code_valid).
 */
void wspy_endpoint_fail(wspy_endpoint *endpoint, int close_code);
int wspy_endpoint_error(const wspy_endpoint *endpoint); /* 0, or the sticky error */
/* Bit 0: our Close was sent; bit 1: the peer's was received. */
int wspy_endpoint_close_state(const wspy_endpoint *endpoint);

/* 1 if a Close frame may carry this code, RFC 6455 §7.4 and the IANA registry; else 0. */
int wspy_close_code_valid(int code);

/* ---- the end of a request head (head.c), RFC 9112 §2 to §5 ---- */

typedef struct {
    uint32_t max_line;   /* the request line, without CRLF */
    uint32_t max_field;  /* one field line */
    uint32_t max_size;   /* the head in total */
    uint32_t max_fields; /* field lines */
} wspy_head_limits;

/* zero it before the first byte of a head */
typedef struct {
    uint32_t size;   /* bytes of this head so far */
    uint32_t line;   /* bytes of the current line so far */
    uint16_t fields; /* complete field lines */
    uint8_t state;
    uint8_t empty_lines; /* before the request line */
} wspy_head_scanner;

/* Scan the next bytes of a head. Returns how many belong to it once it is complete (scanner->state is then
 * WSPY_HEAD_COMPLETE), 0 if more are needed, or an error at the first byte that can't belong to any request, and
 * at every call after that. scanner->size counts what was looked at, with that byte. */
#define WSPY_HEAD_COMPLETE 255
int wspy_head_feed(wspy_head_scanner *scanner, const wspy_head_limits *limits, const uint8_t *data,
                   uint32_t length);
/* 1 once the request line is complete. */
int wspy_head_has_line(const wspy_head_scanner *scanner);

/* ---- the loop (loop.c): epoll, accept, timers, queues; one native call per turn ---- */

#define WSPY_FOREVER 0xffffffff

typedef struct {
    wspy_limits limits;
    wspy_head_limits head;
    uint64_t max_backlog; /* unsent bytes of a connection, checked before a send */
    uint64_t write_limit; /* unsent bytes of a connection: see DRAINED */
    uint64_t
        broadcast_limit; /* unsent bytes of a connection above which BROADCAST, not BROADCAST_MARK, passes over it;
                                 0: never */
    uint32_t max_connections; /* in every phase: with so many, none is accepted; 0: no limit */
    uint32_t max_handshakes;  /* connections before their 101: with so many, none is accepted; 0: no limit */
    uint32_t max_per_address; /* of these, of one address: one more is reset; 0: no limit */
    uint32_t max_accepts;     /* connections that are accepted in a second; 0: no limit */
    uint32_t notsent_lowat;   /* TCP_NOTSENT_LOWAT; 0: leave it */
    uint32_t open_timeout_ms; /* accept to 101; deadlines: WSPY_FOREVER for none */
    uint32_t close_timeout_ms;
    uint32_t ping_interval_ms;
    uint32_t ping_timeout_ms;
    uint32_t write_timeout_ms; /* without the kernel taking a byte of what waits */
    uint32_t idle_timeout_ms;  /* without a message either way: see IDLE */
    uint32_t max_controls;     /* control frames of a connection in a second; 0: no limit */
    uint32_t idle_request_ms;  /* between two requests of plain HTTP */
    uint32_t wants;            /* events below are reported only if wanted */
    uint32_t raw;              /* 1: Python has TLS between the connections and the kernel, see RAW and OUT */
} wspy_settings;

#define WSPY_WANT_PING 1
#define WSPY_WANT_PONG 2
#define WSPY_WANT_PINGED 4
#define WSPY_WANT_DRAINED 8
/* A connection that can still be sent to doesn't end before FINISH, or close_timeout: so there is time for answers to
 * what came before the peer's Close, its violation, or its end of TCP. */
#define WSPY_WANT_ENDING 16

/* A command is a handle with one of these added, and a payload. */
#define WSPY_COMMAND_SHIFT 52
enum wspy_command {
    /* the sends; with WSPY_COMMAND_MARK, its last byte handed to the kernel counts in a SENT event */
    WSPY_COMMAND_SEND = 0, /* complete frames, as on the wire */
    WSPY_COMMAND_MARK = 1,
    WSPY_COMMAND_FAR = 2, /* wspy_far, then the header of the one frame whose payload lies there */
    WSPY_COMMAND_SEND_LAST = 3,
    /* the others */
    WSPY_COMMAND_ACCEPT = 8,  /* wspy_accept, then the 101 response */
    WSPY_COMMAND_RESPOND = 9, /* one byte (1: keep alive, 0: close), then the HTTP response */
    WSPY_COMMAND_CLOSE = 10,  /* payload of the Close frame */
    WSPY_COMMAND_ABORT = 11,  /* RST, nothing more is delivered but CLOSED */
    WSPY_COMMAND_PAUSE = 12,
    WSPY_COMMAND_RESUME = 13,
    WSPY_COMMAND_GRANT = 14,     /* uint32_t: so much more credit */
    WSPY_COMMAND_BROADCAST = 15, /* handle 0 or WSPY_BROADCAST_MARK; uint32_t count, count handles, one frame;
                                    count WSPY_FOREVER: no handles, every open connection */
    WSPY_COMMAND_NOTE = 16,      /* nothing: a place in the order that only Python gives a meaning */
    WSPY_COMMAND_REFUSE =
        17, /* handle 0; an HTTP response for every connection that is in the middle of a request head;
                                those without one are closed */
    WSPY_COMMAND_FINISH = 18,   /* what came before ENDING is answered */
    WSPY_COMMAND_FAIL = 19,     /* uint16_t close code: an extension has found the peer to break a rule */
    WSPY_COMMAND_FEED = 20,     /* plaintext from the peer */
    WSPY_COMMAND_FEED_END = 21, /* no more of it follows; one byte: 0, or 1 if TLS has failed */
    WSPY_COMMAND_RAW_SEND = 22  /* one byte of WSPY_RAW bits, then ciphertext to the peer */
};
#define WSPY_RAW_OUT 1  /* the answer to OUT or OUT_LAST: those bytes, encrypted */
#define WSPY_RAW_LAST 2 /* nothing follows: our half of TCP is closed behind it */
#define WSPY_BROADCAST_MARK 1

/* Where a payload lies that is too long to be copied; the caller keeps it there until the call returns. */
typedef struct {
    uint64_t address;
    uint64_t length;
} wspy_far;

/* payload of ACCEPT, before the response */
typedef struct {
    uint32_t credit; /* messages, and reported Pings and Pongs, that may be delivered; at 0 nothing is read.
                        WSPY_FOREVER: no flow control */
    uint16_t opcodes;
    uint8_t rsv;
    uint8_t granularity;
} wspy_accept;

typedef struct {
    uint64_t accepted, opened, closed, refused;
    uint64_t messages_received, bytes_received, bytes_sent, broadcasts; /* bytes: with raw, plaintext */
    uint64_t protocol_errors, timeouts, accept_errors, turns;
    uint64_t full_addresses;    /* connections that were one too many of an address */
    uint64_t full_handshakes;   /* pauses of accepting, since max_handshakes were there, ... */
    uint64_t fast_accepts;      /* or max_accepts had come in a second */
    uint64_t silent_handshakes; /* of open_timeout, without an answer: there was no request line */
    uint64_t passed_over;       /* connections, by broadcasts because of broadcast_limit */
    uint64_t connections;       /* now, in every phase */
    uint64_t handshakes;        /* of these, before the 101 */
    uint64_t backlog;           /* unsent bytes of all */
} wspy_stats;

/* Bytes of memory that a loop has for its connections, with what malloc adds. Of large blocks only as much as was written
 * counts, since the system gives pages when they are written. */
typedef struct {
    uint64_t records;    /* also of those that are gone: their places are kept */
    uint64_t heads;      /* beginnings of request heads */
    uint64_t remainders; /* what was read, and not reported yet */
    uint64_t queues;     /* what the kernel has not taken yet; a payload that several share counts once */
    uint64_t raw;        /* what stands between these and TLS */
} wspy_memory;

typedef struct wspy_loop wspy_loop;

/* Owned by the caller until _free. NULL with errno set. packed: where short payloads go, one behind the other in the
 * order of the events, to be read off like a file: wspy_loop_packed_size() zeroed bytes of whole pages, which stay
 * the caller's, who keeps them until _free and reads them between two turns. */
wspy_loop *wspy_loop_new(const wspy_settings *settings, uint8_t *packed);
size_t wspy_loop_packed_size(void);
/* Closes every descriptor of the loop but the listeners; later calls return WSPY_ERROR_CLOSED. WSPY_ERROR_BUSY
 * while a turn is running. */
int wspy_loop_close(wspy_loop *loop);
/* Closes and gives the memory back. No other call may be running. */
void wspy_loop_free(wspy_loop *loop);
/* In the child of a fork: closes the copies of the descriptors without touching the parent's epoll set. Every
 * later call returns WSPY_ERROR_CLOSED. */
void wspy_loop_abandon(wspy_loop *loop);
/* Readable when a turn has work, if turns were made until one brought no event. */
int wspy_loop_fd(const wspy_loop *loop);

/* Watch a listening socket; fd stays the caller's, who keeps it open until _unlisten. At most 16. */
int wspy_loop_listen(wspy_loop *loop, int fd);
int wspy_loop_unlisten(wspy_loop *loop, int fd);
/* Turn a connected, non-blocking socket into a connection that awaits its request head. On success the loop
 * owns fd. */
int wspy_loop_adopt(wspy_loop *loop, int fd, uint64_t *handle);
/* End a turn when fd becomes readable, and drain it. At most one; fd stays the caller's; -1 unwatches. */
int wspy_loop_watch(wspy_loop *loop, int fd);

/* Apply commands, wait up to timeout_ms (-1: for ever), read, decode, run timers, accept. The batch, without any
 * alignment: uint64_t number of its first command since the loop began; then for each command uint64_t key (handle
 * and command), uint32_t length, and so many bytes of payload. The core applies every number once and in order, so
 * that overlapping batches of several threads are harmless; at a record that is cut off it stops. Returns the number
 * of events: their payloads stay valid until the next turn. */
int wspy_loop_turn(wspy_loop *loop, const char *batch, size_t size, int timeout_ms);
/* Only apply commands; from any thread, also while another one waits in a turn. */
int wspy_loop_submit(wspy_loop *loop, const char *batch, size_t size);
/* Where the number of the next command to apply is kept; may be read at any time. */
const uint64_t *wspy_loop_applied(const wspy_loop *loop);

/* Fixed for the life of the loop; contents valid between two turns. */
const wspy_event *wspy_loop_events(const wspy_loop *loop);
size_t wspy_loop_event_capacity(const wspy_loop *loop);
const uint8_t *wspy_loop_arena(const wspy_loop *loop);
size_t wspy_loop_arena_capacity(const wspy_loop *loop);
const uint8_t *wspy_loop_detached(const wspy_loop *loop, uint32_t index, uint64_t *length);
/* The handle of the connection that an event of the last turn is about. */
uint64_t wspy_loop_handle(wspy_loop *loop, uint32_t slot);
/* Unsent bytes of each slot (handle & WSPY_SLOT_MASK), saturating; fixed for the life of the loop. With CLOSED: what was
 * lost, until the slot is used again. */
#define WSPY_SLOT_MASK 0xffffff
const uint32_t *wspy_loop_backlogs(const wspy_loop *loop);
size_t wspy_loop_slot_capacity(const wspy_loop *loop);

/* End the running or next wait; from any thread. */
int wspy_loop_wake(wspy_loop *loop);
/* End a wait at this time at the latest (milliseconds of wspy_loop_now_ms; 0: no alarm). Loop thread only. */
int wspy_loop_alarm(wspy_loop *loop, uint64_t at_ms);
uint64_t wspy_loop_now_ms(const wspy_loop *loop); /* CLOCK_MONOTONIC since the loop began */
/* The peer's address: 4 or 16 bytes (0 for a Unix socket); returns the size. */
int wspy_loop_peer(wspy_loop *loop, uint64_t handle, uint8_t *address, uint32_t *port, uint32_t *scope);
/* How a connection has ended: from its CLOSED event on, until its slot is used again. */
typedef struct {
    uint64_t age_ms;          /* from its 101 on */
    uint64_t unsent;          /* bytes that the kernel never took, at most UINT32_MAX, ... */
    uint32_t unsent_messages; /* ... and messages, with one that was written in part */
} wspy_ending;
int wspy_loop_ending(wspy_loop *loop, uint64_t handle, wspy_ending *ending); /* or WSPY_ERROR_HANDLE */
/* Microseconds from the last keepalive ping that was answered to its pong; -1: none was yet, or there is no such
 * connection. */
int64_t wspy_loop_latency(wspy_loop *loop, uint64_t handle);
int wspy_loop_stats(wspy_loop *loop, wspy_stats *stats);
/* Looks at every connection and every block that waits to be written. */
int wspy_loop_memory(wspy_loop *loop, wspy_memory *memory);

/* ---- tests: make the n-th system call or allocation from now on fail (sys.c) ---- */

enum wspy_sys_call {
    WSPY_SYS_ALLOCATE = 0,
    WSPY_SYS_RECV = 1,
    WSPY_SYS_SEND = 2,
    WSPY_SYS_ACCEPT = 3,
    WSPY_SYS_EPOLL_CTL = 4,
    WSPY_SYS_EPOLL_WAIT = 5,
    WSPY_SYS_CREATE = 6, /* epoll_create1, eventfd, timerfd_create, mmap */
    WSPY_SYS_TIMER = 7,
    WSPY_SYS_CALL_COUNT = 8
};
/* nth >= 1: calls nth to nth + times - 1 of this kind fail with error; 0: none. short_io > 0: recv and send
 * move at most so many bytes a call. Returns how many calls of the kind were made since the last time. Not
 * thread-safe. */
int wspy_sys_fail(int call, uint32_t nth, uint32_t times, int error, uint32_t short_io);

/* cdef ends */

#endif
