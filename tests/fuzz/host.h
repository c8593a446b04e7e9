// What is a caller like that does everything right? It accepts, echoes, answers and, with TLS, encrypts at once.
#ifndef HOST_H
#define HOST_H

#include "core.h"
#include "fake_kernel.h"

#define require(condition) ((condition) ? (void)0 : host_fail(__func__, __LINE__, #condition))
_Noreturn void host_fail(const char *function, int line, const char *what);

typedef struct {
    uint64_t handle; /* 0: nobody knows it yet */
    int is_opened;
    int is_closed;     /* CLOSED was reported, ... */
    int error;         /* and said this */
    uint64_t received; /* bytes of messages */
} host_guest;

typedef struct {
    wspy_loop *loop;
    uint8_t *packed;
    int is_raw;
    host_guest guests[FAKE_PEERS]; /* as in fake.peers */
    uint64_t applied, count;
    uint8_t *batch;
    size_t batch_size;
    int no_memory; /* connections that ended for want of memory */
} host_state;

extern host_state host;

/* Returns 0 if there is no memory for a loop. Ciphertext is plaintext with each bit the other way round. */
int host_begin(const wspy_settings *settings);
void host_push(int command, uint64_t handle, const void *payload, size_t length);
void host_turn(int timeout_ms);
/* Turns until the loop sleeps. */
void host_settle(void);
/* Closes the loop, and looks for what it left behind. */
void host_end(void);

/* A peer writes: encrypted, if the host wants that. */
void host_write(fake_peer *peer, const uint8_t *data, size_t length);
/* Writes a frame into output; is_masked: with a key of its own. Returns its size. */
size_t host_frame(uint8_t *output, uint8_t first, const uint8_t *payload, size_t length, int is_masked);
extern const char host_101[];

#endif
