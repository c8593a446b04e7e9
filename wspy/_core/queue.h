/* queue.h: what a connection still has to write. Private to the core. */
#ifndef WSPY_QUEUE_H
#define WSPY_QUEUE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* One payload for many queues. Each reference is one share; the last release frees it. */
typedef struct {
    uint32_t references;
    size_t length;
    uint8_t data[];
} wspy_shared;

wspy_shared *wspy_shared_new(const uint8_t *data, size_t length); /* with one reference, the caller's */
void wspy_shared_release(wspy_shared *shared);

/* Bytes in order. Only a connection whose peer does not keep up has a queue: wspy_queue_new when the kernel
 * refuses the first byte, wspy_queue_free when it has taken the last. Each push ends at the end of a frame, so that
 * a Pong can go between two. */
typedef struct wspy_queue wspy_queue;

wspy_queue *wspy_queue_new(void);
void wspy_queue_free(wspy_queue *queue);
/* Copies the parts but for their first `skip` bytes. WSPY_OK or WSPY_ERROR_NO_MEMORY (then nothing is queued). */
int wspy_queue_push(wspy_queue *queue, const struct iovec *parts, size_t count, size_t skip);
/* Queues shared->data from `skip` on, with a reference of its own. */
int wspy_queue_push_shared(wspy_queue *queue, wspy_shared *shared, size_t skip);
/* Where sends end: how many that Python wants to be told of, and how many messages. */
typedef struct {
    uint32_t marks, messages;
} wspy_ends;

static inline void wspy_ends_add(wspy_ends *to, wspy_ends more)
{
    to->marks += more.marks;
    to->messages += more.messages;
}

/* An end that is passed when all but the last `behind` bytes pushed so far were written. Ends come in order. */
int wspy_queue_end(wspy_queue *queue, size_t behind, int is_mark, int is_message);
uint32_t wspy_queue_messages(const wspy_queue *queue); /* that were not written to their end */
/* The one Pong that waits; a newer one replaces it (RFC 6455 §5.5.2). length: at most 139. */
void wspy_queue_pong(wspy_queue *queue, const uint8_t *frame, size_t length);
/* Lets the waiting Pong go behind the first chunk, even if nothing of that was written. */
void wspy_queue_keep_first(wspy_queue *queue);
/* Queues a Close frame behind everything else, a waiting Pong included: nothing may follow it (RFC 6455 §5.5.1). */
int wspy_queue_close(wspy_queue *queue, const uint8_t *frame, size_t length);
/* Writes, 256 KiB at a time however fast the peer is. Returns 1 if bytes are left, 0 if none are, -1 and errno if the connection failed. Adds the ends that were
 * passed to *ends, the bytes to *bytes. */
int wspy_queue_flush(wspy_queue *queue, int fd, wspy_ends *ends, uint64_t *bytes);
/* The same to what is not a descriptor: give behaves as wspy_sys_send, and gets `to`. */
typedef ssize_t wspy_give(void *to, const struct iovec *parts, size_t count);
int wspy_queue_flush_to(wspy_queue *queue, wspy_give *give, void *to, wspy_ends *ends, uint64_t *bytes);
uint64_t wspy_queue_size(const wspy_queue *queue);
/* Bytes of memory that it takes: see wspy_memory. */
uint64_t wspy_queue_memory(const wspy_queue *queue);
/* A tick that its owner notes: when the kernel last took something. */
void wspy_queue_set_time(wspy_queue *queue, uint32_t tick);
uint32_t wspy_queue_time(const wspy_queue *queue);

#endif
