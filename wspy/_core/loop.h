/* loop.h: the loop and its connections, as loop.c, command.c and the files of connection.h share them. Private to the core.
 *
 * Every function here is called with the loop's mutex held. A connection lives in a slot; its handle (slot and
 * generation) is what epoll and Python know. Phases only go forward, but for HTTP requests on one connection:
 *
 *   HEAD -> DECIDING -> OPENING -> OPEN -> ENDING -> LINGER -> FREE
 *     ^________|
 */
#ifndef WSPY_LOOP_H
#define WSPY_LOOP_H

#include <pthread.h>
#include <sys/socket.h>

#include "addresses.h"
#include "core.h"
#include "protocol.h"
#include "queue.h"
#include "raw.h"
#include "timers.h"

enum phase {
    FREE,
    HEAD,     /* reads a request head */
    DECIDING, /* Python has the head */
    OPENING,  /* the 101 waits for the kernel */
    OPEN,
    ENDING, /* decided: the rest is written, then CLOSED is reported */
    LINGER  /* our half of TCP is closed; what comes is thrown away */
};

/* connection.flags */
enum {
    READS = 1,     /* the epoll set has it for reading */
    WRITES = 2,    /* ... for writing */
    IN_EPOLL = 4,  /* the epoll set has it at all */
    PAUSED = 8,    /* by the application */
    SENDABLE = 16, /* no Close was sent, and its end was not carried out */
    AWAITS_PONG = 32,
    SURFACED = 64, /* Python knows it: CLOSED is due */
    REPORT_OPENED = 128,
    REPORT_CLOSED = 256,
    LISTED_ENDING = 512,  /* in loop->ending */
    LISTED_READY = 1024,  /* in loop->ready or heads_ready: has input that can be decoded, or read, now */
    LISTED_REPORT = 2048, /* in loop->report */
    SAW_EOF = 4096,
    DONE = 8192,      /* the descriptor is closed; the slot waits for its reports */
    UPGRADED = 16384, /* the protocol is set up */
    UNREAD = 32768    /* there was no room in the turn to read it */
};

/* Bytes that were read and not decoded yet. Owned by the connection. */
typedef struct {
    uint32_t start, end, capacity;
    uint8_t data[];
} wspy_input;

#define NO_SLOT UINT32_MAX
#define ALARM_MAX (UINT64_C(1) << 42) /* 139 years: in nanoseconds, more would wrap */

struct connection {
    union {
        wspy_protocol protocol;    /* from OPENING on */
        wspy_head_scanner scanner; /* in HEAD */
    };
    wspy_timer timer;
    wspy_queue *queue; /* owned; NULL: all is written */
    wspy_input *input; /* owned; NULL: all is decoded */
    wspy_raw *raw;     /* owned; NULL: nothing is between it and the kernel */
    int fd;
    uint32_t slot;
    uint32_t generation;
    uint32_t next_ending, next_ready, next_report; /* slots */
    uint32_t credit;
    uint32_t seen; /* tick of the last byte received */
    uint32_t ping_at;
    uint32_t sent_marks; /* not reported yet */
    int32_t end_errno;
    int8_t end_error;
    uint8_t phase;
    uint16_t flags;
    uint16_t requests;
    uint16_t port;
    uint8_t address_size;
    uint8_t address[16];
    uint8_t has_drained, has_ending; /* not reported yet */
    uint8_t awaits_finish;
    uint8_t shakes;            /* before its 101: it counts in loop->handshakes, ... */
    uint8_t counts_at_address; /* ... and in loop->addresses */
    uint8_t is_chatty;         /* it brought many frames that Python hears nothing of */
    uint8_t has_gone;          /* not reported yet */
    uint8_t is_refused;        /* BAD_HEAD was reported */
    uint32_t scope;
    uint32_t opened, closed; /* ticks */
    uint32_t active;         /* tick of the last message, or part of one, either way */
    uint32_t counting;       /* tick since which control frames are counted, ... */
    uint32_t controls;       /* and how many there were */
    uint32_t ping_us;        /* when a keepalive ping was sent, by a clock that wraps */
    uint32_t latency_us;     /* UINT32_MAX: not measured yet */
    uint32_t lost;           /* messages that were never written to their end */
};

enum {
    CHUNK_CONNECTIONS = 256,
    CHUNKS_MAX = 1 << 16,
    LISTENERS_MAX = 16,
    ARENA_FULL = 1 << 20, /* a turn ends here ... */
    READ_MAX = 256 << 10, /* ... or after so much of one connection */
    HEAD_MAX = 256 << 10, /* the most that max_head may allow */
    HEAD_READ = 16 << 10,
    CHATTY_READ = 16 << 10, /* of who makes much work with each byte */
    CHATTY_FRAMES = 1024,
    SCRATCH_SIZE = 64 << 10,
    OUT_ROOM = 1 << 20, /* behind all that, so that reading never keeps plaintext from being encrypted */
    ARENA_SIZE = ARENA_FULL + READ_MAX + HEAD_MAX + HEAD_READ + OUT_ROOM,
    EVENTS_TURN = 4096,
    EVENTS_EXPIRED = 512,             /* deadlines find room behind a full turn ... */
    EVENTS_SIZE = EVENTS_TURN + 1024, /* ... and reports behind both */
    POLL_MAX = 1024,
    ACCEPT_TURN = 64,
    HEADS_TURN = 64, /* what they cost Python shall not keep established connections waiting */
    HANDSHAKE_HEADS =
        4, /* so many heads a step of a TLS handshake counts for: it may take Python a millisecond */
    EXPIRE_TURN = 512,
    KEPT_MAX = 64 << 10, /* behind a head that waits for its decision */
    LINGER_MS = 1000,
    LINGER_BYTES = 1 << 20,
    LISTEN_PAUSE_MS = 100,
    LATE_TICKS = 8,     /* a deadline that passed so long ago says more about us than about the peer ... */
    GRACE_MS = 1000,    /* ... who has so long again, if it did what was due */
    REQUESTS_MAX = 1000 /* of plain HTTP on one connection */
};

typedef struct {
    int fd; /* borrowed; -1: none */
    int is_ready, is_watched;
    int waits_for_room; /* paused because of max_handshakes */
    uint64_t resume_ms; /* 0: not paused */
} listener;

typedef struct {
    uint32_t first, last; /* slots; NO_SLOT: empty */
} slot_list;

struct wspy_loop {
    pthread_mutex_t mutex;
    wspy_settings settings;
    int epoll, event, timer, watched;
    int closed;
    int in_turn;
    int waiting; /* a thread is inside epoll_wait */
    int woken;   /* the eventfd was signalled and not drained */
    uint64_t began_ns;
    uint64_t now_ms;
    uint32_t tick;     /* of now_ms, modulo 2^32 */
    uint64_t armed_ms; /* what the timerfd is set to; UINT64_MAX: nothing */
    uint64_t alarm_ms; /* UINT64_MAX: none */
    uint64_t applied;
    listener listeners[LISTENERS_MAX];
    uint32_t listener_count;              /* entries that were ever used */
    connection **chunks;                  /* reserved; chunk i holds slots 256 i to 256 i + 255 */
    uint32_t slot_count;                  /* ever used */
    uint32_t free_slots;                  /* list through next_ready */
    uint32_t freed_slots;                 /* in this turn: reusable from the next on */
    uint32_t ending;                      /* a list of slots, in any order */
    slot_list ready, heads_ready, report; /* first come, first served */
    uint32_t *backlogs;                   /* reserved; by slot */
    uint8_t *arena;                       /* reserved */
    uint8_t *packed;                      /* the caller's: see wspy_loop_new */
    uint8_t *scratch;                     /* reserved: frames of the run that is being sent */
    size_t arena_used, arena_touched;
    uint32_t small_turns;     /* in a row, since the arena was large */
    wspy_event *events;       /* reserved */
    uint32_t heads;           /* surfaced in this turn */
    int heads_first;          /* in the next turn */
    wspy_addresses addresses; /* of connections in their handshake, if there is a limit */
    uint32_t handshakes;      /* connections before their 101 */
    uint64_t accepts_ms;      /* how many milliseconds' worth of accepting is left, times max_accepts, ... */
    uint64_t accepts_at_ms;   /* at that time */
    wspy_sink sink;
    struct {
        uint64_t messages, frame_left;
        uint32_t events;
    } before; /* what the sink had counted, before the connection that is decoded */
    wspy_detached detached;
    wspy_bytes replies;
    wspy_stats stats;
    wspy_wheel wheel;
};

/* ---- loop.c ---- */

static inline connection *wspy_loop_slot(const wspy_loop *loop, uint32_t slot)
{
    return &loop->chunks[slot / CHUNK_CONNECTIONS][slot % CHUNK_CONNECTIONS];
}

connection *wspy_loop_find(wspy_loop *loop, uint64_t handle); /* NULL: gone */
uint64_t wspy_connection_handle(const connection *conn);
/* A new connection in HEAD, or NULL; takes fd. */
connection *wspy_loop_add(wspy_loop *loop, int fd, const struct sockaddr_storage *address);
/* The handshake is over, one way or the other. */
void wspy_loop_shook(wspy_loop *loop, connection *conn);
/* Gives the slot back, once the descriptor is closed and everything is reported. */
void wspy_loop_release(wspy_loop *loop, connection *conn);
void wspy_loop_list_report(wspy_loop *loop, connection *conn);
void wspy_loop_list_ending(wspy_loop *loop, connection *conn);
void wspy_loop_list_ready(wspy_loop *loop, connection *conn);
/* Room for one more read into the arena; else the turn is full. */
int wspy_loop_has_room(const wspy_loop *loop);

/* ---- connection.c, input.c, deadlines.c ---- */

void wspy_connection_arm(wspy_loop *loop, connection *conn, uint32_t delay_ms);
/* epoll reported something: reads, or finds out that it may not. */
void wspy_connection_readable(wspy_loop *loop, connection *conn);
void wspy_connection_writable(wspy_loop *loop, connection *conn);
void wspy_connection_expired(wspy_loop *loop, connection *conn);
/* Decodes kept input, as far as credit and the turn allow, and reads what there was no room for. */
void wspy_connection_go_on(wspy_loop *loop, connection *conn);
/* Adds a new connection to the epoll set and begins HEAD; 0: it does not fit. */
int wspy_connection_begin(wspy_loop *loop, connection *conn);
/* The epoll set follows what the connection may do now. */
void wspy_connection_poll(wspy_loop *loop, connection *conn);

/* consecutive sends to one connection */
typedef struct {
    struct iovec parts[64];
    size_t count;
    size_t length;
    size_t mark_ends[64]; /* where marked frames end in these parts */
    uint32_t mark_count;
    int is_frames; /* or HTTP */
} wspy_run;
void wspy_connection_send(wspy_loop *loop, connection *conn, const wspy_run *run);
/* *shared is made when it is first needed; the caller releases it. */
void wspy_connection_send_shared(wspy_loop *loop, connection *conn, const uint8_t *frame, size_t length,
                                 wspy_shared **shared, int is_marked);
void wspy_connection_close(wspy_loop *loop, connection *conn, const uint8_t *payload, size_t length);
/* Decides that the connection ends; carried out after the next commands, so that replies to what was delivered
 * still leave. error 0: after a closing handshake, or an HTTP response. */
void wspy_connection_end(wspy_loop *loop, connection *conn, int error, int system_error);
void wspy_connection_finish(wspy_loop *loop, connection *conn);
/* An extension has found what came before the end, if one is decided, to break a rule. */
void wspy_connection_fail(wspy_loop *loop, connection *conn, int close_code);
/* It need not wait for FINISH any longer. */
void wspy_connection_let_finish(wspy_loop *loop, connection *conn);
/* Ends it with a reset; one that is ending already isn't waited for any more. */
void wspy_connection_abort(wspy_loop *loop, connection *conn);
/* It may read again: what was kept comes first. */
void wspy_connection_wake(wspy_loop *loop, connection *conn);
/* Frees what the connection owns, but for the descriptor. */
void wspy_connection_free(connection *conn);
/* Closes the descriptor and frees what the connection owns. */
void wspy_connection_drop(wspy_loop *loop, connection *conn);

/* ---- command.c ---- */

/* The batch: see wspy_loop_turn. */
int wspy_commands_apply(wspy_loop *loop, const char *batch, size_t size);

#endif
