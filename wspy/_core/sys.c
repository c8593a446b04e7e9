/* sys.c: the real kernel and allocator behind the seam, with faults on demand for the tests. */
#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

typedef struct {
    _Atomic uint32_t count, first, last;
    _Atomic int error;
} fault;

static fault faults[WSPY_SYS_CALL_COUNT];
static _Atomic uint32_t short_limit;
static _Atomic int counts; /* once a test has asked for it: the counters are shared by every loop */

int wspy_sys_fail(int call, uint32_t nth, uint32_t times, int error, uint32_t short_io)
{
    if (call < 0 || call >= WSPY_SYS_CALL_COUNT)
        return WSPY_ERROR_ARGUMENT;
    atomic_store(&counts, 1);
    fault *entry = &faults[call];
    uint32_t made = atomic_exchange(&entry->count, 0);
    atomic_store(&entry->first, nth);
    atomic_store(&entry->last, nth ? nth + (times - 1) : 0);
    atomic_store(&entry->error, error);
    atomic_store(&short_limit, short_io);
    return made > INT32_MAX ? INT32_MAX : (int)made;
}

/* Whether this call must fail. */
static int fails(int call)
{
    if (!atomic_load_explicit(&counts, memory_order_relaxed))
        return 0;
    fault *entry = &faults[call];
    uint32_t number = atomic_fetch_add_explicit(&entry->count, 1, memory_order_relaxed) + 1;
    uint32_t first = atomic_load_explicit(&entry->first, memory_order_relaxed);
    if (first == 0 || number < first || number > atomic_load_explicit(&entry->last, memory_order_relaxed))
        return 0;
    errno = atomic_load_explicit(&entry->error, memory_order_relaxed);
    return 1;
}

static size_t shortened(size_t length)
{
    uint32_t limit = atomic_load_explicit(&short_limit, memory_order_relaxed);
    return limit && length > limit ? limit : length;
}

void *wspy_sys_allocate(size_t size)
{
    return fails(WSPY_SYS_ALLOCATE) ? NULL : malloc(size);
}

void *wspy_sys_allocate_zeroed(size_t count, size_t size)
{
    return fails(WSPY_SYS_ALLOCATE) ? NULL : calloc(count, size);
}

void *wspy_sys_resize(void *memory, size_t size)
{
    return fails(WSPY_SYS_ALLOCATE) ? NULL : realloc(memory, size);
}

void wspy_sys_free(void *memory)
{
    free(memory);
}

size_t wspy_sys_resident(const void *memory, size_t written)
{
    enum { PAGE = 4096, HEADER = sizeof(size_t) };
    if (!memory)
        return 0;
    size_t size = malloc_usable_size((void *)(uintptr_t)memory) + HEADER;
    size_t touched = written + PAGE; /* the ends lie anywhere in their pages */
    return size < touched ? size : touched;
}

void *wspy_sys_reserve(size_t size)
{
    if (fails(WSPY_SYS_CREATE))
        return NULL;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void wspy_sys_unreserve(void *memory, size_t size)
{
    if (memory)
        munmap(memory, size);
}

void wspy_sys_discard(void *memory, size_t size)
{
    madvise(memory, size, MADV_DONTNEED);
}

ssize_t wspy_sys_recv(int fd, void *data, size_t length)
{
    if (fails(WSPY_SYS_RECV))
        return -1;
    ssize_t got;
    do
        got = recv(fd, data, shortened(length), MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    return got;
}

ssize_t wspy_sys_peek(int fd)
{
    char byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
}

int wspy_sys_hung_up(int fd)
{
    struct pollfd state = {.fd = fd};
    return poll(&state, 1, 0) > 0 && state.revents & (POLLHUP | POLLERR);
}

ssize_t wspy_sys_send(int fd, const struct iovec *parts, size_t count)
{
    if (fails(WSPY_SYS_SEND))
        return -1;
    struct iovec one = {.iov_base = parts[0].iov_base, .iov_len = shortened(parts[0].iov_len)};
    int cut = one.iov_len < parts[0].iov_len || (count > 1 && shortened(SIZE_MAX) < SIZE_MAX);
    ssize_t sent;
    if (count == 1 || cut) {
        do
            sent = send(fd, one.iov_base, one.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (sent < 0 && errno == EINTR);
        return sent;
    }
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent;
}

int wspy_sys_would_block(int error)
{
    return error == EAGAIN || error == ENOBUFS || error == ENOMEM;
}

int wspy_sys_accept(int listener, struct sockaddr_storage *address)
{
    if (fails(WSPY_SYS_ACCEPT))
        return -1;
    int fd;
    socklen_t size = sizeof *address;
    do
        fd = accept4(listener, (struct sockaddr *)address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int wspy_sys_epoll_create(void)
{
    return fails(WSPY_SYS_CREATE) ? -1 : epoll_create1(EPOLL_CLOEXEC);
}

int wspy_sys_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    return fails(WSPY_SYS_EPOLL_CTL) ? -1 : epoll_ctl(epoll, operation, fd, event);
}

int wspy_sys_epoll_wait(int epoll, struct epoll_event *events, int count, int timeout_ms)
{
    return fails(WSPY_SYS_EPOLL_WAIT) ? -1 : epoll_wait(epoll, events, count, timeout_ms);
}

int wspy_sys_event_create(void)
{
    return fails(WSPY_SYS_CREATE) ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

int wspy_sys_timer_create(void)
{
    return fails(WSPY_SYS_CREATE) ? -1 : timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
}

int wspy_sys_timer_set(int timer, uint64_t at_ns)
{
    if (fails(WSPY_SYS_TIMER))
        return -1;
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at_ns / 1000000000u), .tv_nsec = (long)(at_ns % 1000000000u)}};
    return timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

void wspy_sys_drain(int fd)
{
    char bytes[256];
    while (read(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes)
        continue;
}

int wspy_sys_event_signal(int event)
{
    uint64_t one = 1;
    ssize_t written = write(event, &one, sizeof one);
    /* EAGAIN: the counter is full, so the loop is awake already */
    return written < 0 && errno != EAGAIN ? -1 : 0;
}

void wspy_sys_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

void wspy_sys_shutdown_write(int fd)
{
    shutdown(fd, SHUT_WR);
}

void wspy_sys_reset_on_close(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

int wspy_sys_set_notsent_lowat(int fd, uint32_t size)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &size, sizeof size);
}

int wspy_sys_set_nodelay(int fd)
{
    int one = 1;
    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

int wspy_sys_peer(int fd, struct sockaddr_storage *address)
{
    socklen_t size = sizeof *address;
    return getpeername(fd, (struct sockaddr *)address, &size);
}

uint64_t wspy_sys_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int wspy_sys_random(void *output, size_t length)
{
    ssize_t got;
    do
        got = getrandom(output, length, 0);
    while (got < 0 && errno == EINTR);
    return got == (ssize_t)length ? 0 : -1;
}
