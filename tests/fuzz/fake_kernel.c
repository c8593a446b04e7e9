// How the loop's system calls behave without a kernel: every call of sys.h over a table of made-up descriptors.
// It fails, shortens and delays as its script says, and aborts where the loop uses a descriptor as no kernel allows.
#define _GNU_SOURCE
#include "fake_kernel.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sys.h"

enum { DESCRIPTORS = 1024, FIRST = 10 };

enum kind { FREE, EPOLL, EVENT, TIMER, LISTENER, SOCKET, PIPE, CLOSED };

typedef struct {
    enum kind kind;
    int peer;   /* SOCKET */
    int in_set; /* of the one epoll */
    uint32_t interest;
    epoll_data_t data;
    uint64_t count;          /* EVENT, PIPE; TIMER: when it fires, in nanoseconds */
    int waiting[FAKE_PEERS]; /* LISTENER */
    int waiting_count;
} descriptor;

/* A number is used once in a run, so that a stale one always shows. */
static descriptor table[DESCRIPTORS];
static int next_fd = FIRST;

fake_kernel fake;

static void fail(const char *function, int line, const char *what)
{
    fprintf(stderr, "fake kernel: %s, line %d: %s\n", function, line, what);
    abort();
}

#define require(condition) ((condition) ? (void)0 : fail(__func__, __LINE__, #condition))

static descriptor *open_descriptor(int fd)
{
    require(fd >= FIRST && fd < next_fd && table[fd].kind != FREE && table[fd].kind != CLOSED);
    return &table[fd];
}

static descriptor *descriptor_of(int fd, enum kind kind)
{
    descriptor *found = open_descriptor(fd);
    require(found->kind == kind);
    return found;
}

static fake_peer *peer_of(int fd)
{
    return &fake.peers[descriptor_of(fd, SOCKET)->peer];
}

static int new_descriptor(enum kind kind)
{
    if (next_fd == DESCRIPTORS) {
        errno = EMFILE;
        return -1;
    }
    fake.progress++;
    table[next_fd] = (descriptor){.kind = kind};
    return next_fd++;
}

/* ---- faults ---- */

static struct {
    uint32_t skip, times;
    int error;
} faults[WSPY_SYS_CALL_COUNT];

void fake_fail(int call, uint32_t skip, uint32_t times, int error)
{
    faults[call].skip = skip;
    faults[call].times = times;
    faults[call].error = error;
}

void fake_forget_faults(void)
{
    memset(faults, 0, sizeof faults);
    fake.short_calls = 0;
}

static int fails(int call)
{
    fake.allocations += call == WSPY_SYS_ALLOCATE;
    if (fake.is_exempt || !faults[call].times)
        return 0;
    if (faults[call].skip) {
        faults[call].skip--;
        return 0;
    }
    faults[call].times -= faults[call].times != UINT32_MAX;
    fake.progress++;
    fake.failures++;
    fake.has_failed |= faults[call].error != EAGAIN && faults[call].error != EINTR;
    trace("  call %d fails with %d\n", call, faults[call].error);
    errno = faults[call].error;
    return 1;
}

/* xorshift64 */
static uint64_t next_chance(void)
{
    fake.chance ^= fake.chance << 13;
    fake.chance ^= fake.chance >> 7;
    fake.chance ^= fake.chance << 17;
    return fake.chance;
}

static size_t shortened(size_t length)
{
    if (!fake.short_calls)
        return length;
    fake.short_calls -= fake.short_calls != UINT32_MAX;
    size_t most = fake.chance ? 1 + (size_t)(next_chance() % fake.short_size) : fake.short_size;
    return length > most ? most : length;
}

/* ---- memory ---- */

typedef struct block {
    struct block *previous, *next;
    size_t size;
    uint64_t guard;
} block;

#define GUARD UINT64_C(0x5a17b10c5a17b10c)

static block blocks = {.previous = &blocks, .next = &blocks};

static void *link_block(block *added, size_t size)
{
    require(added != NULL);
    *added = (block){.previous = blocks.previous, .next = &blocks, .size = size, .guard = GUARD};
    added->previous->next = added;
    blocks.previous = added;
    fake.allocated++;
    return added + 1;
}

void *wspy_sys_allocate(size_t size)
{
    if (fails(WSPY_SYS_ALLOCATE))
        return NULL;
    void *memory = link_block(malloc(sizeof(block) + size), size);
    memset(memory, 0xa5, size < 4096 ? size : 4096); /* nobody may count on zeros */
    return memory;
}

void *wspy_sys_allocate_zeroed(size_t count, size_t size)
{
    if (fails(WSPY_SYS_ALLOCATE))
        return NULL;
    return link_block(calloc(1, sizeof(block) + count * size), count * size);
}

/* It always moves, so that nobody may keep the old address. */
void *wspy_sys_resize(void *memory, size_t size)
{
    if (fails(WSPY_SYS_ALLOCATE))
        return NULL;
    void *moved = link_block(malloc(sizeof(block) + size), size);
    if (memory) {
        size_t kept = ((block *)memory - 1)->size;
        memcpy(moved, memory, kept < size ? kept : size);
        wspy_sys_free(memory);
    }
    return moved;
}

void wspy_sys_free(void *memory)
{
    if (!memory)
        return;
    block *gone = (block *)memory - 1;
    require(gone->guard == GUARD);
    gone->previous->next = gone->next;
    gone->next->previous = gone->previous;
    gone->guard = 0;
    fake.allocated--;
    free(gone);
}

size_t wspy_sys_resident(const void *memory, size_t written)
{
    (void)written;
    return memory ? ((const block *)memory - 1)->size : 0;
}

/* Reserved memory ends where a page that nobody may touch begins. It is kept for the next run: mapping is slow. */
enum { RESERVATIONS = 8, PAGE = 4096 };

static struct {
    uint8_t *base;
    size_t pages;
    size_t size;
    int is_used;
} reservations[RESERVATIONS];

static void *use_reservation(int i, size_t size)
{
    reservations[i].size = size;
    reservations[i].is_used = 1;
    fake.allocated++;
    return reservations[i].base + reservations[i].pages - size;
}

void *wspy_sys_reserve(size_t size)
{
    if (fails(WSPY_SYS_CREATE))
        return NULL;
    size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    for (int i = 0; i < RESERVATIONS; i++) {
        if (reservations[i].base && (reservations[i].is_used || reservations[i].pages != pages))
            continue;
        if (!reservations[i].base) {
            void *base = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            require(base != MAP_FAILED && mprotect((uint8_t *)base + pages, PAGE, PROT_NONE) == 0);
            reservations[i].base = base;
            reservations[i].pages = pages;
        }
        return use_reservation(i, size);
    }
    fail(__func__, __LINE__, "more reservations than the fake kernel knows");
    return NULL;
}

void wspy_sys_unreserve(void *memory, size_t size)
{
    if (!memory)
        return;
    for (int i = 0; i < RESERVATIONS; i++) {
        if (!reservations[i].is_used || reservations[i].base + reservations[i].pages - size != memory)
            continue;
        require(reservations[i].size == size);
        madvise(reservations[i].base, reservations[i].pages, MADV_DONTNEED);
        reservations[i].is_used = 0;
        fake.allocated--;
        return;
    }
    fail(__func__, __LINE__, "a reservation that is none");
}

static int is_reserved(const uint8_t *memory, size_t size)
{
    for (int i = 0; i < RESERVATIONS; i++)
        if (reservations[i].is_used && memory >= reservations[i].base &&
            memory + size <= reservations[i].base + reservations[i].pages)
            return 1;
    return 0;
}

/* What was given back may read as before or as zero; it is made a third thing, to catch who counts on either. */
void wspy_sys_discard(void *memory, size_t size)
{
    require(is_reserved(memory, size));
    memset(memory, 0x5a, size < PAGE ? size : PAGE);
}

/* ---- sockets ---- */

static int is_dead(const fake_peer *peer)
{
    return peer->reset != RESET_NONE;
}

/* What recv and MSG_PEEK find when there are no bytes. */
static ssize_t nothing_to_receive(fake_peer *peer)
{
    if (peer->reset == RESET_PENDING) {
        peer->reset = RESET_TOLD;
        fake.progress++;
        errno = ECONNRESET;
        return -1;
    }
    if (is_dead(peer) || peer->has_ended) {
        fake.progress += !peer->end_was_read;
        peer->end_was_read = 1;
        return 0;
    }
    errno = EAGAIN;
    return -1;
}

ssize_t wspy_sys_recv(int fd, void *data, size_t length)
{
    fake_peer *peer = peer_of(fd);
    require(length > 0);
    if (fails(WSPY_SYS_RECV))
        return -1;
    size_t available = peer->in_visible - peer->in_read;
    if (!available)
        return nothing_to_receive(peer);
    size_t count = shortened(length);
    count = count < available ? count : available;
    memcpy(data, peer->in + peer->in_read, count);
    peer->in_read += count;
    peer->read_ns = fake.now_ns;
    fake.progress++;
    trace("  fd %d: %zu received of %zu\n", fd, count, available);
    return (ssize_t)count;
}

ssize_t wspy_sys_peek(int fd)
{
    fake_peer *peer = peer_of(fd);
    return peer->in_visible > peer->in_read ? 1 : nothing_to_receive(peer);
}

int wspy_sys_hung_up(int fd)
{
    const fake_peer *peer = peer_of(fd);
    return peer->reset != 0;
}

int wspy_sys_would_block(int error)
{
    return error == EAGAIN || error == ENOBUFS || error == ENOMEM;
}

static void grow(uint8_t **bytes, size_t *capacity, size_t needed)
{
    if (needed <= *capacity)
        return;
    *capacity = needed * 2 > 256 ? needed * 2 : 256;
    *bytes = realloc(*bytes, *capacity);
    require(*bytes != NULL);
}

static void write_out(fake_peer *peer, const void *data, size_t length)
{
    grow(&peer->out, &peer->out_capacity, peer->out_length + length);
    memcpy(peer->out + peer->out_length, data, length);
    peer->out_length += length;
    peer->window -= length;
    peer->taken_ns = fake.now_ns;
}

ssize_t wspy_sys_send(int fd, const struct iovec *parts, size_t count)
{
    fake_peer *peer = peer_of(fd);
    size_t length = 0;
    require(count > 0 && count <= 1024 && !peer->is_shut);
    for (size_t i = 0; i < count; i++)
        length += parts[i].iov_len;
    require(length > 0);
    if (fails(WSPY_SYS_SEND))
        return -1;
    if (is_dead(peer)) {
        errno = peer->reset == RESET_PENDING ? ECONNRESET : EPIPE;
        peer->reset = RESET_TOLD;
        return -1;
    }
    size_t room = shortened(peer->window);
    if (room == 0) {
        errno = EAGAIN;
        return -1;
    }
    length = length < room ? length : room;
    fake.progress++;
    trace("  fd %d: %zu sent, room %zu\n", fd, length, room);
    for (size_t i = 0, left = length; left; i++) {
        size_t piece = parts[i].iov_len < left ? parts[i].iov_len : left;
        if (piece)
            write_out(peer, parts[i].iov_base, piece);
        left -= piece;
    }
    return (ssize_t)length;
}

int fake_address(int peer, uint8_t *address)
{
    static const uint8_t hosts[2][4] = {{127, 0, 0, 1}, {127, 0, 0, 2}};
    static const uint8_t networks[2][8] = {{0x20, 1, 0x0d, 0xb8, 0, 0, 0, 1},
                                           {0x20, 1, 0x0d, 0xb8, 0, 0, 0, 2}};
    int home = fake.peers[peer].home;
    memset(address, 0, 16);
    switch (home) {
    case 0:
    case 1:
        memcpy(address, hosts[home], 4);
        return 4;
    case 2:
    case 3:
        memcpy(address, networks[home - 2], 8);
        address[15] = (uint8_t)peer;
        return 16;
    case 4:
        memcpy(address, (uint8_t[]){10, 0, 0, (uint8_t)peer}, 4);
        return 4;
    default:
        memcpy(address, networks[0], 8);
        address[6] = 1;
        address[7] = (uint8_t)peer;
        return 16;
    }
}

static void fill_address(int peer, struct sockaddr_storage *address)
{
    uint8_t bytes[16];
    in_port_t port = htons((uint16_t)(peer + 1));
    if (fake_address(peer, bytes) == 4) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port};
        memcpy(&v4.sin_addr, bytes, 4);
        memcpy(address, &v4, sizeof v4);
        return;
    }
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port};
    memcpy(&v6.sin6_addr, bytes, 16);
    memcpy(address, &v6, sizeof v6);
}

static int socket_for(int peer)
{
    int fd = new_descriptor(SOCKET);
    if (fd < 0)
        return -1;
    table[fd].peer = peer;
    fake.peers[peer].fd = fd;
    fake.open_count++;
    return fd;
}

int wspy_sys_accept(int listener, struct sockaddr_storage *address)
{
    descriptor *from = descriptor_of(listener, LISTENER);
    if (fails(WSPY_SYS_ACCEPT))
        return -1;
    if (!from->waiting_count) {
        errno = EAGAIN;
        return -1;
    }
    int peer = from->waiting[0];
    if (fake.on_accept)
        fake.on_accept(peer);
    int fd = socket_for(peer);
    if (fd < 0)
        return -1;
    memmove(from->waiting, from->waiting + 1, sizeof *from->waiting * (size_t)--from->waiting_count);
    fill_address(peer, address);
    return fd;
}

void wspy_sys_shutdown_write(int fd)
{
    require(!fake.is_abandoning);
    peer_of(fd)->is_shut = 1;
}

void wspy_sys_reset_on_close(int fd)
{
    require(!fake.is_abandoning);
    peer_of(fd)->was_reset = 1;
}

int wspy_sys_set_notsent_lowat(int fd, uint32_t size)
{
    open_descriptor(fd);
    require(size > 0);
    return 0;
}

int wspy_sys_set_nodelay(int fd)
{
    open_descriptor(fd);
    return 0;
}

int wspy_sys_peer(int fd, struct sockaddr_storage *address)
{
    fill_address(descriptor_of(fd, SOCKET)->peer, address);
    return 0;
}

/* ---- epoll, eventfd, timerfd ---- */

static int create(enum kind kind)
{
    if (fails(WSPY_SYS_CREATE))
        return -1;
    int fd = new_descriptor(kind);
    fake.open_count += fd >= 0;
    return fd;
}

int wspy_sys_epoll_create(void)
{
    return create(EPOLL);
}

int wspy_sys_event_create(void)
{
    return create(EVENT);
}

int wspy_sys_timer_create(void)
{
    return create(TIMER);
}

int wspy_sys_timer_set(int timer, uint64_t at_ns)
{
    descriptor *set = descriptor_of(timer, TIMER);
    if (fails(WSPY_SYS_TIMER))
        return -1;
    set->count = at_ns;
    return 0;
}

int wspy_sys_event_signal(int event)
{
    descriptor_of(event, EVENT)->count++;
    return 0;
}

void wspy_sys_drain(int fd)
{
    descriptor *drained = open_descriptor(fd);
    require(drained->kind == EVENT || drained->kind == TIMER || drained->kind == PIPE);
    if (drained->kind == TIMER && drained->count > fake.now_ns)
        return;
    drained->count = 0;
}

int wspy_sys_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    descriptor_of(epoll, EPOLL);
    descriptor *target = open_descriptor(fd);
    require(!fake.is_abandoning);
    require(operation == EPOLL_CTL_ADD ? !target->in_set : target->in_set);
    if (operation == EPOLL_CTL_DEL) {
        target->in_set = 0;
        return 0;
    }
    require(event->events != 0);
    if (fails(WSPY_SYS_EPOLL_CTL))
        return -1;
    target->in_set = 1;
    target->interest = event->events;
    target->data = event->data;
    return 0;
}

static uint32_t socket_state(const fake_peer *peer)
{
    uint32_t state = 0;
    if (peer->in_visible > peer->in_read)
        state |= EPOLLIN;
    if (peer->has_ended)
        state |= EPOLLIN | EPOLLRDHUP | (peer->is_shut ? EPOLLHUP : 0u);
    if (is_dead(peer))
        state |= EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLOUT | (peer->reset == RESET_PENDING ? EPOLLERR : 0u);
    if (peer->window || peer->is_shut)
        state |= EPOLLOUT;
    return state;
}

static uint32_t state_of(const descriptor *watched)
{
    switch (watched->kind) {
    case EVENT:
    case PIPE:
        return watched->count ? EPOLLIN : 0u;
    case TIMER:
        return watched->count && watched->count <= fake.now_ns ? EPOLLIN : 0u;
    case LISTENER:
        return watched->waiting_count ? EPOLLIN : 0u;
    case SOCKET:
        return socket_state(&fake.peers[watched->peer]);
    default:
        return 0;
    }
}

static int collect(struct epoll_event *events, int most)
{
    int count = 0;
    int used = next_fd - FIRST;
    for (int i = 0; i < used && count < most; i++) {
        const descriptor *watched = &table[FIRST + (int)((fake.rotation + (uint32_t)i) % (uint32_t)used)];
        uint32_t ready = state_of(watched) & (watched->interest | EPOLLERR | EPOLLHUP);
        if (watched->in_set && ready)
            events[count++] = (struct epoll_event){.events = ready, .data = watched->data};
    }
    return count;
}

int fake_is_ready(void)
{
    struct epoll_event event;
    return collect(&event, 1);
}

uint64_t fake_timer_at_ns(void)
{
    for (int fd = FIRST; fd < next_fd; fd++)
        if (table[fd].kind == TIMER)
            return table[fd].count;
    return 0;
}

/* Time passes until the timer fires or the timeout is over. */
static void let_time_pass(int timeout_ms)
{
    uint64_t until = fake.now_ns + (uint64_t)timeout_ms * 1000000u;
    uint64_t timer = fake_timer_at_ns();
    if (timer > fake.now_ns && timer < until)
        until = timer;
    fake.now_ns = until;
    fake.progress++;
}

int wspy_sys_epoll_wait(int epoll, struct epoll_event *events, int count, int timeout_ms)
{
    descriptor_of(epoll, EPOLL);
    require(count > 0);
    fake.has_slept = 0;
    if (fake.on_wait)
        fake.on_wait();
    if (fails(WSPY_SYS_EPOLL_WAIT))
        return -1;
    int most = fake.most_ready && fake.most_ready < count ? fake.most_ready : count;
    if (fake.most_ready)
        fake.rotation++; /* who waits comes first some time */
    int ready = collect(events, most);
    if (ready || timeout_ms == 0)
        return ready;
    if (timeout_ms < 0) {
        trace("  asleep\n");
        fake.has_slept = 1;
        return 0;
    }
    let_time_pass(timeout_ms);
    return collect(events, most);
}

void wspy_sys_close(int fd)
{
    if (fd < 0)
        return;
    descriptor *gone = open_descriptor(fd);
    require(gone->kind != LISTENER && gone->kind != PIPE); /* they are the caller's */
    require(gone->kind != SOCKET || !gone->in_set || fake.is_abandoning);
    if (gone->kind == SOCKET)
        fake.peers[gone->peer].is_closed = 1;
    trace("  fd %d: closed\n", fd);
    *gone = (descriptor){.kind = CLOSED};
    fake.open_count--;
    fake.progress++;
}

/* ---- clock and chance ---- */

uint64_t wspy_sys_now_ns(void)
{
    return fake.now_ns;
}

int wspy_sys_random(void *output, size_t length)
{
    memset(output, 0x33, length);
    return 0;
}

/* ---- for the harness ---- */

void fake_reset(void)
{
    for (int i = 0; i < fake.peer_count; i++) {
        free(fake.peers[i].in);
        free(fake.peers[i].out);
    }
    while (blocks.next != &blocks)
        wspy_sys_free(blocks.next + 1);
    fake = (fake_kernel){.now_ns = 5000000000u};
    fake_forget_faults();
    memset(table, 0, sizeof *table * (size_t)next_fd);
    next_fd = FIRST;
}

int fake_listener_new(void)
{
    return new_descriptor(LISTENER);
}

void fake_listener_close(int fd)
{
    descriptor *gone = descriptor_of(fd, LISTENER);
    require(!gone->in_set);
    *gone = (descriptor){.kind = CLOSED};
}

fake_peer *fake_peer_new(int listener, size_t window)
{
    if (fake.peer_count == FAKE_PEERS)
        return NULL;
    int number = fake.peer_count++;
    fake_peer *peer = &fake.peers[number];
    *peer = (fake_peer){.fd = -1, .window = window};
    if (listener < 0) {
        socket_for(number);
        return peer;
    }
    descriptor *to = descriptor_of(listener, LISTENER);
    to->waiting[to->waiting_count++] = number;
    return peer;
}

void fake_peer_drop(fake_peer *peer)
{
    wspy_sys_close(peer->fd);
}

void fake_peer_write(fake_peer *peer, const uint8_t *data, size_t length)
{
    if (length == 0)
        return;
    grow(&peer->in, &peer->in_capacity, peer->in_length + length);
    memcpy(peer->in + peer->in_length, data, length);
    peer->in_length += length;
}

int fake_listener_waits(int listener)
{
    return descriptor_of(listener, LISTENER)->waiting_count;
}

int fake_pipe_new(void)
{
    return new_descriptor(PIPE);
}

void fake_pipe_write(int fd)
{
    descriptor_of(fd, PIPE)->count++;
}
