/* protocol.h: the protocol as the loop and the endpoint drive it. Private to the core. */
#ifndef WSPY_PROTOCOL_H
#define WSPY_PROTOCOL_H

#include "core.h"

/* A buffer that grows. Owned by the struct that embeds it; released by wspy_bytes_free. */
typedef struct {
    uint8_t *data;
    size_t length, capacity;
} wspy_bytes;

int wspy_bytes_append(wspy_bytes *bytes, const void *data, size_t length);
void wspy_bytes_free(wspy_bytes *bytes);

/* Payloads that did not fit the arena: owned by this table until it is released. */
typedef struct {
    struct {
        uint8_t *data;
        uint64_t length;
    } * items;
    uint32_t count, capacity;
} wspy_detached;

int wspy_detached_reserve(wspy_detached *detached);  /* makes room for one more */
void wspy_detached_release(wspy_detached *detached); /* frees the payloads, keeps the table */
void wspy_detached_free(wspy_detached *detached);

/* Where a protocol puts what it finds. Everything is borrowed from the driver. */
typedef struct {
    wspy_event *events;
    uint32_t count, capacity;
    const uint8_t *arena; /* input given to wspy_protocol_feed must lie within 4 GiB behind it */
    uint8_t *packed; /* short payloads are moved here, one behind the other; NULL: they stay in the arena */
    size_t packed_length; /* always less than the memory there by the length of the input */
    wspy_detached *detached;
    wspy_bytes *replies; /* pongs owed to the peer */
    uint32_t slot;
    uint32_t apart;    /* counts events whose payload stayed in the arena */
    uint32_t credit;   /* messages, Pings and Pongs that may be delivered; WSPY_FOREVER: no flow control */
    uint32_t wants;    /* WSPY_WANT_PING, WSPY_WANT_PONG */
    uint32_t frames;   /* their headers, counted on, ... */
    uint32_t controls; /* and those of control frames, when they are complete */
    uint32_t data_frames;
    uint32_t pong;     /* the first four bytes of the newest Pong, if it has four; else 0 */
    uint64_t messages; /* delivered, counted on */
} wspy_sink;

enum { WSPY_CLOSE_SENT = 1, WSPY_CLOSE_RECEIVED = 2, WSPY_CLOSE_OWED = 4 };

typedef struct {
    const wspy_limits *limits; /* borrowed; outlives the protocol */
    uint8_t *message;          /* owned: the part of an unfinished message that was not delivered yet */
    uint64_t length, capacity; /* of that part */
    uint64_t frame_left;       /* payload bytes of the current data frame that have not arrived */
    uint64_t size;             /* of the message, with the announced length of its newest frame */
    uint32_t fragments;
    uint32_t utf8;
    uint16_t claimed_opcodes; /* by extensions: bit n for opcode n */
    uint16_t close_code;      /* of the Close frame we owe; 0: an empty one */
    int8_t error;             /* sticky */
    uint8_t claimed_rsv;
    uint8_t role;
    uint8_t granularity;
    uint8_t close_state;
    uint8_t state;  /* enum message_state */
    uint8_t opcode; /* of the unfinished message */
    uint8_t rsv;    /* of its frames so far */
    uint8_t first;  /* first byte of the current data frame: flags and opcode */
    uint8_t key_offset;
    uint8_t masking_key[4];
} wspy_protocol;

void wspy_protocol_init(wspy_protocol *protocol, const wspy_limits *limits, int role, int granularity, int rsv,
                        int opcodes);
void wspy_protocol_dispose(wspy_protocol *protocol);

/* Decode data, in place. Returns how much was consumed: less than length if a frame header or control frame is
 * incomplete (keep the rest and pass it again in front of what comes), or if events or credit ran out. */
size_t wspy_protocol_feed(wspy_protocol *protocol, uint8_t *data, size_t length, wspy_sink *sink);

/* Where the rest of a large payload can be received without a copy, or NULL. After receiving count bytes there,
 * call wspy_protocol_filled; it adds at most one event, for which the sink must have room. */
uint8_t *wspy_protocol_room(wspy_protocol *protocol, size_t *room);
void wspy_protocol_filled(wspy_protocol *protocol, size_t count, wspy_sink *sink);

/* Whether input is still decoded: no error, and no Close received. */
static inline int wspy_protocol_running(const wspy_protocol *protocol)
{
    return protocol->error == 0 && !(protocol->close_state & WSPY_CLOSE_RECEIVED);
}

#define WSPY_CONTROL_FRAME_MAX (WSPY_HEADER_MAX + 125)
/* Each writes a Close frame into output (WSPY_CONTROL_FRAME_MAX bytes) and returns its size; 0: none is due;
 * or WSPY_ERROR_SYSTEM without randomness for a masking key. */
int wspy_protocol_owed_close(wspy_protocol *protocol, uint8_t *output);
int wspy_protocol_close(wspy_protocol *protocol, const uint8_t *payload, size_t length, uint8_t *output);
/* Writes a control frame, masked if we are the client (§5.1). */
int wspy_protocol_control(const wspy_protocol *protocol, int opcode, const uint8_t *payload, size_t length,
                          uint8_t *output);
/* Notes that a Close frame of the driver's own making was sent. */
void wspy_protocol_close_sent(wspy_protocol *protocol);
/* wspy_endpoint_check, with the protocol of the endpoint. */
int wspy_protocol_check(const wspy_protocol *protocol, wspy_sending *sending, int first, const uint8_t *payload,
                        size_t length);
/* The same as if the peer had broken a rule: nothing more is decoded, a Close frame is owed. */
void wspy_protocol_fail(wspy_protocol *protocol, int error);
/* The same for a rule of an extension, in what came before a Close that may have been received since. */
void wspy_protocol_fail_extension(wspy_protocol *protocol, int close_code);

#endif
