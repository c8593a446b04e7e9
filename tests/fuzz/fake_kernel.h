// What a fuzz target asks of the fake kernel: faults to come, peers that it plays, and the wire it reads back.
#ifndef FAKE_KERNEL_H
#define FAKE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "core.h"

// -DTRACE tells the story of an input.
#ifdef TRACE
#include <stdio.h>
#define trace(...) fprintf(stderr, __VA_ARGS__)
#else
#define trace(...) (void)0
#endif

enum { FAKE_PEERS = 160, FAKE_LISTENERS = 3 };

/* The other end of a connection: what it sent, what it was sent. */
typedef struct {
    int fd;        /* of our end; -1: not accepted yet, or refused for good */
    int is_closed; /* by us */
    int was_reset; /* ... with a RST */
    int home;      /* which address it has: see fake_address */
    int is_shut;   /* our half */
    uint8_t *in;   /* what the peer wrote: [0, in_read) was received, [in_read, in_visible) can be, the */
    size_t in_length, in_visible, in_read, in_capacity;   /* rest is still under way */
    int has_ended, end_was_read;                          /* the peer's half */
    enum { RESET_NONE, RESET_PENDING, RESET_TOLD } reset; /* by the peer */
    uint8_t *out;                                         /* what the peer was sent */
    size_t out_length, out_capacity;
    size_t window;              /* bytes it still takes */
    uint64_t read_ns, taken_ns; /* when we read something last, and when it took something */
} fake_peer;

typedef struct {
    uint64_t now_ns;
    uint64_t progress; /* counts bytes moved, descriptors made and closed, faults used up, time that passed */
    int has_slept;     /* a wait without end found nothing */
    int is_abandoning; /* nothing may reach what a fork's parent shares, not even EPOLL_CTL_DEL */
    int has_failed;    /* a call that is not just to be tried again */
    int is_exempt;     /* no faults: the harness itself allocates through the seam */
    int most_ready;    /* events of one wait; 0: all */
    uint32_t rotation; /* where a wait begins to look */
    uint32_t short_size, short_calls; /* recv and send move at most so much, so often; UINT32_MAX: always */
    uint64_t chance;                  /* ... or, if it isn't 0, any number from 1 to that */
    void (*on_wait)(void);            /* what other threads do during a wait */
    void (*on_accept)(int peer);      /* it is about to be accepted */
    fake_peer peers[FAKE_PEERS];
    int peer_count;
    size_t allocated;     /* pieces of memory */
    uint64_t allocations; /* ever */
    uint64_t failures;    /* calls that failed by the script; they count as progress, too */
    int open_count;       /* descriptors of the loop */
} fake_kernel;

extern fake_kernel fake;

void fake_reset(void); /* forgets everything, and gives what is left back */
/* From the call after `skip` others on, `times` calls of a kind fail. */
void fake_fail(int call, uint32_t skip, uint32_t times, int error);
void fake_forget_faults(void);

int fake_listener_new(void);
void fake_listener_close(int fd);
/* A peer that waits to be accepted by this listener; with -1 one whose fd is ready to be adopted. NULL: no more. */
fake_peer *fake_peer_new(int listener, size_t window);
void fake_peer_drop(fake_peer *peer); /* its fd was not adopted */
void fake_peer_write(fake_peer *peer, const uint8_t *data, size_t length);
/* Writes the address of a peer (16 bytes) by its home; returns the size. 0 to 3 are of one host each, two of IPv4 and two
 * networks of IPv6 in which each peer has an address of its own; at 4 and 5 each peer is a host of its own. */
enum { FAKE_HOMES = 6 };
int fake_address(int peer, uint8_t *address);
int fake_listener_waits(int listener); /* how many peers */
int fake_pipe_new(void);               /* for wspy_loop_watch */
void fake_pipe_write(int fd);
/* Whether epoll's own descriptor is readable. */
int fake_is_ready(void);
/* When the timer fires; 0: never. */
uint64_t fake_timer_at_ns(void);

#endif
