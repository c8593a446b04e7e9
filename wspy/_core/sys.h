/* sys.h: the one seam through which the core allocates and asks the kernel.
 *
 * sys.c passes each call on and can make the n-th one fail; tests/fuzz/fake_kernel.c implements the same
 * functions without a kernel. Nothing else in the core calls malloc or a system call. */
#ifndef WSPY_SYS_H
#define WSPY_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The allocators return NULL without memory; what they return is the caller's until wspy_sys_free. */
void *wspy_sys_allocate(size_t size);
void *wspy_sys_allocate_zeroed(size_t count, size_t size);
void *wspy_sys_resize(void *memory, size_t size);
void wspy_sys_free(void *memory);
/* How much of the system's memory a block takes of which the first `written` bytes were ever written: about, since only
 * the system knows which pages it gave; 0 for NULL. */
size_t wspy_sys_resident(const void *memory, size_t written);
/* Zeroed address space whose pages cost memory only once they are written; NULL without. */
void *wspy_sys_reserve(size_t size);
void wspy_sys_unreserve(void *memory, size_t size);
/* Gives the pages of [memory, memory + size) back; they read as zero or as before. */
void wspy_sys_discard(void *memory, size_t size);

/* As the calls they are named after: -1 and errno on failure. EINTR is retried in recv, send and accept. */
ssize_t wspy_sys_recv(int fd, void *data, size_t length);
ssize_t wspy_sys_peek(int fd);
int wspy_sys_hung_up(int fd); /* reset, or closed for good */
ssize_t wspy_sys_send(int fd, const struct iovec *parts, size_t count);
/* Whether an errno of recv or send means: not now. */
int wspy_sys_would_block(int error);
int wspy_sys_accept(int listener, struct sockaddr_storage *address); /* non-blocking, close-on-exec */
int wspy_sys_epoll_create(void);
int wspy_sys_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int wspy_sys_epoll_wait(int epoll, struct epoll_event *events, int count, int timeout_ms);
int wspy_sys_event_create(void);
int wspy_sys_timer_create(void);
int wspy_sys_timer_set(int timer, uint64_t at_ns); /* absolute, CLOCK_MONOTONIC; 0 disarms */
/* Reads and forgets what a descriptor of ours holds (eventfd, timerfd, socketpair). */
void wspy_sys_drain(int fd);
int wspy_sys_event_signal(int event);
void wspy_sys_close(int fd);
void wspy_sys_shutdown_write(int fd);
void wspy_sys_reset_on_close(int fd); /* SO_LINGER with 0: close sends a RST */
int wspy_sys_set_notsent_lowat(int fd, uint32_t size);
int wspy_sys_set_nodelay(int fd);
int wspy_sys_peer(int fd, struct sockaddr_storage *address);
uint64_t wspy_sys_now_ns(void); /* CLOCK_MONOTONIC */
int wspy_sys_random(void *output, size_t length);

#endif
