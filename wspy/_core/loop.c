/* loop.c: the epoll loop: what one turn does, and in which order.
 *
 *   commands -> ends decided before -> kept input -> wait -> reads and writes -> deadlines -> accepts -> reports
 *
 * Reads come before deadlines, so that a long handler never makes a healthy peer late; established connections come
 * before new ones. The mutex is held all the time but during the wait, so that other threads can submit commands
 * then. Only a turn writes events and arena. */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "connection.h"
#include "sys.h"

/* What epoll reports for descriptors of the loop's own; a handle is below. */
enum { SOURCE_EVENT, SOURCE_TIMER, SOURCE_WATCHED, SOURCE_LISTENER };
#define SOURCE_BIT (UINT64_C(1) << 63)

static void lock(wspy_loop *loop)
{
    pthread_mutex_lock(&loop->mutex);
}

static void unlock(wspy_loop *loop)
{
    pthread_mutex_unlock(&loop->mutex);
}

static void read_clock(wspy_loop *loop)
{
    loop->now_ms = (wspy_sys_now_ns() - loop->began_ns) / 1000000u;
    loop->tick = (uint32_t)(loop->now_ms / WSPY_TICK_MS);
}

/* ---- slots and handles ---- */

#define GENERATION_SHIFT 24
#define GENERATION_MASK 0xfffffff

uint64_t wspy_connection_handle(const connection *conn)
{
    return (uint64_t)conn->generation << GENERATION_SHIFT | conn->slot;
}

connection *wspy_loop_find(wspy_loop *loop, uint64_t handle)
{
    uint32_t slot = (uint32_t)(handle & WSPY_SLOT_MASK);
    if (slot >= loop->slot_count)
        return NULL;
    connection *conn = wspy_loop_slot(loop, slot);
    if (conn->phase == FREE || conn->flags & DONE || conn->generation != handle >> GENERATION_SHIFT)
        return NULL;
    return conn;
}

static connection *new_slot(wspy_loop *loop)
{
    uint32_t slot = loop->free_slots;
    if (slot != NO_SLOT) {
        connection *conn = wspy_loop_slot(loop, slot);
        loop->free_slots = conn->next_ready;
        return conn;
    }
    slot = loop->slot_count;
    if (slot / CHUNK_CONNECTIONS >= CHUNKS_MAX)
        return NULL;
    connection **chunk = &loop->chunks[slot / CHUNK_CONNECTIONS];
    if (!*chunk)
        *chunk = wspy_sys_allocate_zeroed(CHUNK_CONNECTIONS, sizeof(connection));
    if (!*chunk)
        return NULL;
    loop->slot_count++;
    connection *conn = wspy_loop_slot(loop, slot);
    conn->slot = slot;
    conn->generation = 1;
    return conn;
}

static void keep_address(connection *conn, const struct sockaddr_storage *address)
{
    conn->address_size = 0;
    conn->port = 0;
    conn->scope = 0;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        conn->address_size = 4;
        memcpy(conn->address, &v4->sin_addr, 4);
        conn->port = ntohs(v4->sin_port);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
        conn->address_size = 16;
        memcpy(conn->address, &v6->sin6_addr, 16);
        conn->port = ntohs(v6->sin6_port);
        conn->scope = v6->sin6_scope_id;
    }
}

void wspy_loop_shook(wspy_loop *loop, connection *conn)
{
    if (!conn->shakes)
        return;
    if (conn->counts_at_address)
        wspy_addresses_remove(&loop->addresses, conn->address, conn->address_size);
    conn->shakes = conn->counts_at_address = 0;
    loop->handshakes--;
    for (uint32_t i = 0; i < loop->listener_count; i++)
        if (loop->listeners[i].waits_for_room)
            loop->listeners[i].resume_ms = 1; /* at once: 0 would be never */
}

connection *wspy_loop_add(wspy_loop *loop, int fd, const struct sockaddr_storage *address)
{
    connection *conn = new_slot(loop);
    if (!conn)
        return NULL;
    uint32_t slot = conn->slot, generation = conn->generation;
    memset(conn, 0, sizeof *conn);
    conn->slot = slot;
    conn->generation = generation;
    conn->fd = fd;
    conn->seen = loop->tick;
    conn->latency_us = UINT32_MAX;
    keep_address(conn, address);
    if (!wspy_connection_begin(loop, conn)) {
        conn->next_ready = loop->free_slots;
        loop->free_slots = slot;
        return NULL;
    }
    __atomic_store_n(&loop->backlogs[slot], 0, __ATOMIC_RELAXED);
    conn->shakes = 1;
    loop->handshakes++;
    loop->stats.connections++;
    loop->stats.accepted++;
    wspy_connection_arm(loop, conn, loop->settings.open_timeout_ms);
    return conn;
}

void wspy_loop_release(wspy_loop *loop, connection *conn)
{
    const int busy = LISTED_ENDING | LISTED_READY | LISTED_REPORT | REPORT_OPENED | REPORT_CLOSED;
    if (!(conn->flags & DONE) || conn->flags & busy || conn->phase == FREE)
        return;
    conn->phase = FREE;
    conn->generation = (conn->generation + 1) & GENERATION_MASK;
    conn->next_ready = loop->freed_slots;
    loop->freed_slots = conn->slot;
    loop->stats.closed++;
}

/* Slots freed in a turn are reused from the next on, when no event can name their old handle any more. */
static void recycle_slots(wspy_loop *loop)
{
    while (loop->freed_slots != NO_SLOT) {
        connection *conn = wspy_loop_slot(loop, loop->freed_slots);
        loop->freed_slots = conn->next_ready;
        conn->next_ready = loop->free_slots;
        loop->free_slots = conn->slot;
    }
}

/* ---- lists of work ---- */

void wspy_loop_list_ending(wspy_loop *loop, connection *conn)
{
    if (conn->flags & LISTED_ENDING)
        return;
    conn->flags |= LISTED_ENDING;
    conn->next_ending = loop->ending;
    loop->ending = conn->slot;
}

void wspy_loop_list_ready(wspy_loop *loop, connection *conn)
{
    if (conn->flags & LISTED_READY)
        return;
    conn->flags |= LISTED_READY;
    conn->next_ready = NO_SLOT;
    slot_list *list = conn->phase == HEAD ? &loop->heads_ready : &loop->ready;
    if (list->first == NO_SLOT)
        list->first = conn->slot;
    else
        wspy_loop_slot(loop, list->last)->next_ready = conn->slot;
    list->last = conn->slot;
}

/* Reports leave in the order in which they came up. */
void wspy_loop_list_report(wspy_loop *loop, connection *conn)
{
    if (conn->flags & LISTED_REPORT)
        return;
    conn->flags |= LISTED_REPORT;
    conn->next_report = NO_SLOT;
    if (loop->report.first == NO_SLOT)
        loop->report.first = conn->slot;
    else
        wspy_loop_slot(loop, loop->report.last)->next_report = conn->slot;
    loop->report.last = conn->slot;
}

static void finish_endings(wspy_loop *loop)
{
    uint32_t slot = loop->ending;
    loop->ending = NO_SLOT;
    while (slot != NO_SLOT) {
        connection *conn = wspy_loop_slot(loop, slot);
        slot = conn->next_ending;
        conn->flags &= (uint16_t)~LISTED_ENDING;
        wspy_connection_finish(loop, conn);
        wspy_loop_release(loop, conn);
    }
}

/* First come, first served: who had no room in a turn comes first in the next. */
static void go_on_with(wspy_loop *loop, slot_list *list)
{
    uint32_t slot = list->first, last = list->last;
    while (slot != NO_SLOT && wspy_loop_has_room(loop) && loop->heads < HEADS_TURN) {
        connection *conn = wspy_loop_slot(loop, slot);
        list->first = conn->next_ready;
        conn->flags &= (uint16_t)~LISTED_READY;
        wspy_connection_go_on(loop, conn);
        wspy_loop_release(loop, conn);
        slot = slot == last ? NO_SLOT : list->first; /* what is listed again comes behind the last */
    }
}

static void report(wspy_loop *loop, connection *conn, uint32_t kind, uint32_t start, uint32_t length)
{
    wspy_event *event = &loop->events[loop->sink.count++];
    *event = (wspy_event){.slot = conn->slot, .kind = kind, .start = start, .length = length};
}

static uint32_t closed_code(const connection *conn)
{
    if (conn->end_error == WSPY_ERROR_EXTENSION)
        return conn->protocol.close_code;
    if (conn->end_error != WSPY_OK)
        return (uint32_t)wspy_error_close_code(conn->end_error);
    return 1005; /* Python knows the code of the peer's Close */
}

static void publish_one(wspy_loop *loop, connection *conn)
{
    if (conn->flags & REPORT_OPENED)
        report(loop, conn, WSPY_EVENT_OPENED, 0, 0);
    if (conn->sent_marks)
        report(loop, conn, WSPY_EVENT_SENT, conn->sent_marks, 0);
    if (conn->has_drained)
        report(loop, conn, WSPY_EVENT_DRAINED, 0, 0);
    if (conn->raw)
        wspy_raw_report(loop, conn);
    if (conn->has_ending)
        report(loop, conn, WSPY_EVENT_ENDING, 0, 0);
    if (conn->flags & REPORT_CLOSED)
        report(loop, conn, WSPY_EVENT_CLOSED, closed_code(conn),
               (uint32_t)-conn->end_error |
                   (conn->end_error == WSPY_ERROR_RESET ? (uint32_t)conn->end_errno << 8 : 0));
    if (conn->has_gone)
        report(loop, conn, WSPY_EVENT_GONE, 0, 0);
    conn->sent_marks = 0;
    conn->has_drained = conn->has_ending = conn->has_gone = 0;
    conn->flags &= (uint16_t) ~(REPORT_OPENED | REPORT_CLOSED | LISTED_REPORT);
    wspy_loop_release(loop, conn);
}

static void publish(wspy_loop *loop)
{
    while (loop->report.first != NO_SLOT && loop->sink.count + 7 <= EVENTS_SIZE) {
        connection *conn = wspy_loop_slot(loop, loop->report.first);
        if (!wspy_raw_fits(loop, conn))
            return;
        loop->report.first = conn->next_report;
        publish_one(loop, conn);
    }
}

/* ---- time ---- */

static uint64_t earliest_deadline(const wspy_loop *loop)
{
    uint64_t at = loop->alarm_ms;
    if (loop->wheel.earliest != UINT64_MAX && loop->wheel.earliest * WSPY_TICK_MS < at)
        at = loop->wheel.earliest * WSPY_TICK_MS;
    for (uint32_t i = 0; i < loop->listener_count; i++)
        if (loop->listeners[i].resume_ms && loop->listeners[i].resume_ms < at)
            at = loop->listeners[i].resume_ms;
    return at;
}

/* Set only when the earliest deadline moves forward; a timer that fires too early is set again. Returns 0 if the
 * kernel refuses. */
static int arm_timer(wspy_loop *loop)
{
    uint64_t at = earliest_deadline(loop);
    if (at >= loop->armed_ms)
        return 1;
    if (wspy_sys_timer_set(loop->timer, loop->began_ns + (at ? at : 1) * 1000000u) < 0)
        return 0;
    loop->armed_ms = at;
    return 1;
}

/* After a pause very many are due: the others wait for the next turn, which comes at once. */
static void expire(wspy_loop *loop)
{
    for (int i = 0; i < EXPIRE_TURN; i++) {
        wspy_timer *timer = wspy_wheel_expire(&loop->wheel, loop->now_ms / WSPY_TICK_MS);
        if (!timer)
            return;
        connection *conn = (connection *)((char *)timer - offsetof(connection, timer));
        wspy_connection_expired(loop, conn);
    }
}

/* ---- accepting ---- */

static int watch(wspy_loop *loop, int fd, uint64_t source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u64 = SOURCE_BIT | source};
    return wspy_sys_epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event);
}

static void unwatch(wspy_loop *loop, int fd)
{
    struct epoll_event none = {0};
    wspy_sys_epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, &none);
}

static void rest(wspy_loop *loop, listener *from, uint64_t until_ms)
{
    if (from->is_watched)
        unwatch(loop, from->fd);
    from->is_watched = 0;
    from->resume_ms = until_ms;
}

/* Out of descriptors or memory, or no listener any more: polling on would spin. */
static void pause_listener(wspy_loop *loop, listener *from, int error)
{
    loop->stats.accept_errors++;
    rest(loop, from, loop->now_ms + LISTEN_PAUSE_MS);
    if (loop->sink.count >= EVENTS_SIZE)
        return;
    wspy_event *event = &loop->events[loop->sink.count++];
    *event = (wspy_event){.kind = WSPY_EVENT_ACCEPT_PAUSED, .start = (uint32_t)error};
}

static void resume_listeners(wspy_loop *loop)
{
    for (uint64_t i = 0; i < loop->listener_count; i++) {
        listener *to = &loop->listeners[i];
        if (to->fd < 0 || !to->resume_ms || to->resume_ms > loop->now_ms)
            continue;
        to->resume_ms = 0;
        to->waits_for_room = 0;
        to->is_watched = watch(loop, to->fd, SOURCE_LISTENER + i, EPOLLIN) == 0;
        if (!to->is_watched)
            to->resume_ms = loop->now_ms + LISTEN_PAUSE_MS;
    }
}

/* Errors of the connection that was to be accepted, not of the listener: accept(2) and the firewall's. */
static int was_lost(int error)
{
    switch (error) {
    case ECONNABORTED:
    case EPROTO:
    case EPERM:
    case EOPNOTSUPP:
    case ENOPROTOOPT:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENONET:
    case ETIMEDOUT:
        return 1;
    default:
        return 0;
    }
}

static int is_crowded(const wspy_loop *loop)
{
    return loop->settings.max_connections && loop->stats.connections >= loop->settings.max_connections;
}

/* ---- limits of handshakes ---- */

/* A second's worth may come at once, and then one after the other. */
static void earn_accepts(wspy_loop *loop)
{
    uint64_t most = (uint64_t)loop->settings.max_accepts * 1000;
    loop->accepts_ms += (loop->now_ms - loop->accepts_at_ms) * loop->settings.max_accepts;
    if (loop->accepts_ms > most)
        loop->accepts_ms = most;
    loop->accepts_at_ms = loop->now_ms;
}

/* Whether the kernel shall keep those who come for a while: they lose nothing but time. */
static int lets_wait(wspy_loop *loop, listener *from)
{
    const wspy_settings *settings = &loop->settings;
    if (settings->max_handshakes && loop->handshakes >= settings->max_handshakes) {
        loop->stats.full_handshakes++;
        from->waits_for_room = 1;
        rest(loop, from, loop->now_ms + LISTEN_PAUSE_MS);
        return 1;
    }
    if (!settings->max_accepts)
        return 0;
    earn_accepts(loop);
    if (loop->accepts_ms >= 1000)
        return 0;
    loop->stats.fast_accepts++;
    rest(loop, from, loop->now_ms + (1000 - loop->accepts_ms) / settings->max_accepts + 1);
    return 1;
}

/* Counts it at its address, or ends it: if it is one too many, or there is no memory to count. Who comes by a Unix
 * socket has none. */
static void admit(wspy_loop *loop, connection *conn)
{
    loop->accepts_ms -= loop->settings.max_accepts ? 1000 : 0;
    uint32_t most = loop->settings.max_per_address;
    if (!most || !conn->address_size)
        return;
    int64_t count = wspy_addresses_add(&loop->addresses, conn->address, conn->address_size);
    conn->counts_at_address = count > 0;
    if (count > 0 && count <= most)
        return;
    loop->stats.full_addresses++;
    wspy_sys_reset_on_close(conn->fd);
    wspy_connection_drop(loop, conn);
}

/* Returns how many of `most` are left. */
static int accept_from(wspy_loop *loop, listener *from, int most)
{
    for (; most > 0; most--) {
        if (is_crowded(loop)) {
            pause_listener(loop, from, EMFILE);
            return most;
        }
        if (lets_wait(loop, from))
            return most;
        struct sockaddr_storage address;
        memset(&address, 0, sizeof address);
        int fd = wspy_sys_accept(from->fd, &address);
        if (fd >= 0) {
            connection *conn = wspy_loop_add(loop, fd, &address);
            if (conn) {
                admit(loop, conn);
                continue;
            }
            wspy_sys_close(fd);
            errno = ENOMEM;
        }
        if (errno == EAGAIN)
            return most;
        if (!was_lost(errno)) {
            pause_listener(loop, from, errno);
            return most;
        }
        loop->stats.accept_errors++;
    }
    return 0;
}

static void accept_ready(wspy_loop *loop)
{
    int left = ACCEPT_TURN;
    for (uint32_t i = 0; i < loop->listener_count; i++) {
        listener *from = &loop->listeners[(loop->stats.turns + i) % loop->listener_count];
        if (from->is_ready && from->fd >= 0)
            left = accept_from(loop, from, left);
        from->is_ready = 0;
    }
}

/* ---- the turn ---- */

int wspy_loop_has_room(const wspy_loop *loop)
{
    return loop->sink.count < EVENTS_TURN && loop->arena_used <= ARENA_FULL &&
           loop->sink.packed_length <= ARENA_FULL;
}

/* Gives pages back when the arena has been much larger than it needs to be. */
static void shrink_arena(wspy_loop *loop)
{
    const size_t kept = 256 << 10;
    size_t used = loop->arena_used > loop->sink.packed_length ? loop->arena_used : loop->sink.packed_length;
    if (used > loop->arena_touched)
        loop->arena_touched = used;
    if (loop->arena_touched <= kept || used > kept / 4) {
        loop->small_turns = 0;
        return;
    }
    if (++loop->small_turns < 64)
        return;
    loop->small_turns = 0;
    wspy_sys_discard(loop->arena + kept, ARENA_SIZE - kept);
    wspy_sys_discard(loop->packed + kept, ARENA_SIZE - kept);
    loop->arena_touched = kept;
}

static void begin_turn(wspy_loop *loop)
{
    shrink_arena(loop);
    wspy_detached_release(&loop->detached);
    recycle_slots(loop);
    loop->arena_used = 0;
    loop->heads = 0;
    loop->sink.count = 0;
    loop->sink.packed_length = 0;
    loop->stats.turns++;
    read_clock(loop);
}

static void handle_source(wspy_loop *loop, uint64_t source)
{
    switch (source) {
    case SOURCE_EVENT:
        wspy_sys_drain(loop->event);
        loop->woken = 0;
        return;
    case SOURCE_TIMER:
        wspy_sys_drain(loop->timer);
        loop->armed_ms = UINT64_MAX;
        return;
    case SOURCE_WATCHED:
        if (loop->watched >= 0)
            wspy_sys_drain(loop->watched);
        return;
    default:
        if (source - SOURCE_LISTENER < LISTENERS_MAX)
            loop->listeners[source - SOURCE_LISTENER].is_ready = 1;
    }
}

static void handle_ready(wspy_loop *loop, const struct epoll_event *ready)
{
    if (ready->data.u64 & SOURCE_BIT) {
        handle_source(loop, ready->data.u64 & ~SOURCE_BIT);
        return;
    }
    connection *conn = wspy_loop_find(loop, ready->data.u64);
    if (!conn)
        return;
    if (ready->events & EPOLLOUT || !(conn->flags & READS))
        wspy_connection_writable(loop, conn);
    if (!(ready->events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) || conn->flags & DONE)
        return;
    /* data first: EPOLLERR and EPOLLHUP show up as what recv returns when everything is read */
    wspy_connection_readable(loop, conn);
}

static int has_listed(const wspy_loop *loop)
{
    return loop->ready.first != NO_SLOT || loop->heads_ready.first != NO_SLOT ||
           loop->report.first != NO_SLOT || loop->ending != NO_SLOT;
}

/* Work that needs no waiting for. */
static int has_work(const wspy_loop *loop)
{
    return loop->sink.count > 0 || has_listed(loop);
}

static int wait_for_events(wspy_loop *loop, struct epoll_event *ready, int timeout_ms)
{
    if (!arm_timer(loop) && (timeout_ms < 0 || timeout_ms > WSPY_TICK_MS))
        timeout_ms = WSPY_TICK_MS; /* the deadline is looked for instead */
    if (has_work(loop))
        timeout_ms = 0;
    loop->waiting = 1;
    unlock(loop);
    int count = wspy_sys_epoll_wait(loop->epoll, ready, POLL_MAX, timeout_ms);
    lock(loop);
    loop->waiting = 0;
    return count; /* EINTR: the turn ends, so that Python sees the signal */
}

static void signal_event(wspy_loop *loop)
{
    if (!loop->woken)
        loop->woken = wspy_sys_event_signal(loop->event) == 0;
}

static void react(wspy_loop *loop, const struct epoll_event *ready, int count)
{
    read_clock(loop);
    for (int i = 0; i < count; i++)
        handle_ready(loop, &ready[i]);
    go_on_with(loop, &loop->heads_ready);
    loop->heads_first = loop->heads_ready.first != NO_SLOT && loop->heads == 0; /* the turn was full */
    expire(loop);
    resume_listeners(loop);
    accept_ready(loop);
    /* no event waits for an answer, so nothing more can be owed before an end; a foreign loop sleeps after this */
    if (loop->sink.count == 0 && loop->report.first == NO_SLOT)
        finish_endings(loop);
    publish(loop);
    if (loop->sink.count == 0 && has_listed(loop)) /* the caller may go to sleep now */
        signal_event(loop);
    if (loop->alarm_ms <= loop->now_ms)
        loop->alarm_ms = UINT64_MAX;
    arm_timer(loop);
}

int wspy_loop_turn(wspy_loop *loop, const char *batch, size_t size, int timeout_ms)
{
    lock(loop);
    if (loop->closed || loop->in_turn) {
        int error = loop->closed ? WSPY_ERROR_CLOSED : WSPY_ERROR_BUSY;
        unlock(loop);
        return error;
    }
    loop->in_turn = 1;
    begin_turn(loop);
    int result = wspy_commands_apply(loop, batch, size);
    if (result == WSPY_OK) {
        finish_endings(loop);
        if (loop->heads_first)
            go_on_with(loop, &loop->heads_ready);
        go_on_with(loop, &loop->ready);
        struct epoll_event ready[POLL_MAX];
        int polled = wait_for_events(loop, ready, timeout_ms);
        int system_error = errno;
        if (loop->closed)
            result = WSPY_ERROR_CLOSED;
        else
            react(loop, ready, polled > 0 ? polled : 0);
        if (polled < 0 && system_error != EINTR && loop->sink.count == 0)
            result = WSPY_ERROR_SYSTEM;
        errno = system_error;
    }
    loop->in_turn = 0;
    if (result == WSPY_OK)
        result = (int)loop->sink.count;
    unlock(loop);
    return result;
}

int wspy_loop_submit(wspy_loop *loop, const char *batch, size_t size)
{
    lock(loop);
    int result = loop->closed ? WSPY_ERROR_CLOSED : WSPY_OK;
    if (result == WSPY_OK) {
        read_clock(loop);
        result = wspy_commands_apply(loop, batch, size);
        arm_timer(loop);
        /* what came up is for the thread that turns: it may be asleep */
        if (has_listed(loop) && (loop->waiting || !loop->in_turn))
            signal_event(loop);
    }
    unlock(loop);
    return result;
}

const uint64_t *wspy_loop_applied(const wspy_loop *loop)
{
    return &loop->applied;
}

/* ---- making and ending ---- */

static int make_descriptors(wspy_loop *loop)
{
    loop->epoll = wspy_sys_epoll_create();
    loop->event = wspy_sys_event_create();
    loop->timer = wspy_sys_timer_create();
    if (loop->epoll < 0 || loop->event < 0 || loop->timer < 0)
        return 0;
    return watch(loop, loop->event, SOURCE_EVENT, EPOLLIN) == 0 &&
           watch(loop, loop->timer, SOURCE_TIMER, EPOLLIN) == 0;
}

static int make_memory(wspy_loop *loop)
{
    loop->chunks = wspy_sys_reserve(CHUNKS_MAX * sizeof *loop->chunks);
    loop->backlogs = wspy_sys_reserve((size_t)CHUNKS_MAX * CHUNK_CONNECTIONS * sizeof *loop->backlogs);
    loop->arena = wspy_sys_reserve(ARENA_SIZE);
    loop->scratch = wspy_sys_reserve(SCRATCH_SIZE);
    loop->events = wspy_sys_reserve(EVENTS_SIZE * sizeof *loop->events);
    return loop->chunks && loop->backlogs && loop->arena && loop->scratch && loop->events;
}

static void close_descriptors(wspy_loop *loop)
{
    wspy_sys_close(loop->epoll);
    wspy_sys_close(loop->event);
    wspy_sys_close(loop->timer);
    loop->epoll = loop->event = loop->timer = -1;
}

size_t wspy_loop_packed_size(void)
{
    return ARENA_SIZE;
}

wspy_loop *wspy_loop_new(const wspy_settings *settings, uint8_t *packed)
{
    if (settings->head.max_size > HEAD_MAX) {
        errno = EINVAL;
        return NULL;
    }
    wspy_loop *loop = wspy_sys_allocate_zeroed(1, sizeof *loop);
    if (!loop)
        return NULL;
    loop->settings = *settings;
    loop->accepts_ms = (uint64_t)settings->max_accepts * 1000;
    loop->packed = packed;
    loop->epoll = loop->event = loop->timer = loop->watched = -1;
    for (int i = 0; i < LISTENERS_MAX; i++)
        loop->listeners[i].fd = -1;
    loop->armed_ms = loop->alarm_ms = UINT64_MAX;
    loop->free_slots = loop->freed_slots = loop->ending = NO_SLOT;
    loop->ready.first = loop->heads_ready.first = loop->report.first = NO_SLOT;
    loop->began_ns = wspy_sys_now_ns();
    wspy_wheel_init(&loop->wheel);
    pthread_mutex_init(&loop->mutex, NULL);
    if (!make_memory(loop) || !make_descriptors(loop)) {
        wspy_loop_free(loop);
        return NULL;
    }
    loop->sink = (wspy_sink){.events = loop->events,
                             .capacity = EVENTS_TURN,
                             .arena = loop->arena,
                             .packed = loop->packed,
                             .detached = &loop->detached,
                             .replies = &loop->replies,
                             .wants = settings->wants};
    return loop;
}

static void close_everything(wspy_loop *loop)
{
    if (loop->closed)
        return;
    for (uint32_t slot = 0; slot < loop->slot_count; slot++) {
        connection *conn = wspy_loop_slot(loop, slot);
        if (conn->phase != FREE)
            wspy_connection_drop(loop, conn);
    }
    __atomic_store_n(&loop->closed, 1, __ATOMIC_RELAXED); /* wspy_loop_fd takes no lock */
    close_descriptors(loop);
}

int wspy_loop_close(wspy_loop *loop)
{
    lock(loop);
    int result = loop->in_turn ? WSPY_ERROR_BUSY : WSPY_OK;
    if (result == WSPY_OK)
        close_everything(loop);
    unlock(loop);
    return result;
}

void wspy_loop_free(wspy_loop *loop)
{
    if (!loop)
        return;
    close_everything(loop);
    for (uint32_t slot = 0; slot < loop->slot_count; slot += CHUNK_CONNECTIONS)
        wspy_sys_free(loop->chunks[slot / CHUNK_CONNECTIONS]);
    wspy_detached_free(&loop->detached);
    wspy_bytes_free(&loop->replies);
    wspy_addresses_free(&loop->addresses);
    wspy_sys_unreserve(loop->chunks, CHUNKS_MAX * sizeof *loop->chunks);
    wspy_sys_unreserve(loop->backlogs, (size_t)CHUNKS_MAX * CHUNK_CONNECTIONS * sizeof *loop->backlogs);
    wspy_sys_unreserve(loop->arena, ARENA_SIZE);
    wspy_sys_unreserve(loop->scratch, SCRATCH_SIZE);
    wspy_sys_unreserve(loop->events, EVENTS_SIZE * sizeof *loop->events);
    pthread_mutex_destroy(&loop->mutex);
    wspy_sys_free(loop);
}

void wspy_loop_abandon(wspy_loop *loop)
{
    /* a thread of the parent may have held the mutex: in the child it can't be taken, only made anew */
    pthread_mutex_init(&loop->mutex, NULL);
    loop->closed = 1;
    for (uint32_t slot = 0; slot < loop->slot_count; slot++) {
        connection *conn = wspy_loop_slot(loop, slot);
        if (conn->phase == FREE || conn->flags & DONE)
            continue;
        wspy_sys_close(conn->fd); /* no shutdown, no epoll_ctl: both would reach the parent's connection */
        conn->fd = -1;
        wspy_connection_free(conn);
        conn->flags |= DONE;
    }
    close_descriptors(loop);
}

int wspy_loop_fd(const wspy_loop *loop)
{
    return __atomic_load_n(&loop->closed, __ATOMIC_RELAXED) ? WSPY_ERROR_CLOSED : loop->epoll;
}

/* ---- what the loop watches ---- */

/* Connections inherit both from the socket that accepts them. */
static void prepare(const wspy_loop *loop, int fd)
{
    wspy_sys_set_nodelay(fd);
    if (loop->settings.notsent_lowat)
        wspy_sys_set_notsent_lowat(fd, loop->settings.notsent_lowat);
}

static int add_listener(wspy_loop *loop, int fd)
{
    if (loop->closed)
        return WSPY_ERROR_CLOSED;
    for (uint64_t i = 0; i < LISTENERS_MAX; i++) {
        listener *entry = &loop->listeners[i];
        if (entry->fd >= 0)
            continue;
        prepare(loop, fd);
        if (watch(loop, fd, SOURCE_LISTENER + i, EPOLLIN) < 0)
            return WSPY_ERROR_SYSTEM;
        *entry = (listener){.fd = fd, .is_watched = 1};
        if (i >= loop->listener_count)
            loop->listener_count = (uint32_t)i + 1;
        return WSPY_OK;
    }
    return WSPY_ERROR_ARGUMENT;
}

static int remove_listener(wspy_loop *loop, int fd)
{
    for (int i = 0; i < LISTENERS_MAX; i++) {
        listener *entry = &loop->listeners[i];
        if (entry->fd != fd)
            continue;
        if (entry->is_watched)
            unwatch(loop, fd);
        *entry = (listener){.fd = -1};
        return WSPY_OK;
    }
    return WSPY_ERROR_ARGUMENT;
}

int wspy_loop_listen(wspy_loop *loop, int fd)
{
    lock(loop);
    int result = fd < 0 ? WSPY_ERROR_ARGUMENT : add_listener(loop, fd);
    unlock(loop);
    return result;
}

int wspy_loop_unlisten(wspy_loop *loop, int fd)
{
    lock(loop);
    int result = fd < 0 ? WSPY_ERROR_ARGUMENT : remove_listener(loop, fd);
    unlock(loop);
    return result;
}

int wspy_loop_adopt(wspy_loop *loop, int fd, uint64_t *handle)
{
    lock(loop);
    int result = loop->closed ? WSPY_ERROR_CLOSED : WSPY_OK;
    if (result == WSPY_OK) {
        struct sockaddr_storage address;
        memset(&address, 0, sizeof address);
        wspy_sys_peer(fd, &address); /* without an address it is as good */
        prepare(loop, fd);
        read_clock(loop);
        errno = ENOMEM;
        connection *conn = wspy_loop_add(loop, fd, &address);
        result = conn ? WSPY_OK : errno == ENOMEM ? WSPY_ERROR_NO_MEMORY : WSPY_ERROR_SYSTEM;
        if (conn)
            *handle = wspy_connection_handle(conn);
        arm_timer(loop);
    }
    unlock(loop);
    return result;
}

int wspy_loop_watch(wspy_loop *loop, int fd)
{
    lock(loop);
    int result = loop->closed ? WSPY_ERROR_CLOSED : WSPY_OK;
    if (result == WSPY_OK && loop->watched >= 0)
        unwatch(loop, loop->watched);
    loop->watched = -1;
    if (result == WSPY_OK && fd >= 0) {
        result = watch(loop, fd, SOURCE_WATCHED, EPOLLIN) < 0 ? WSPY_ERROR_SYSTEM : WSPY_OK;
        loop->watched = result == WSPY_OK ? fd : -1;
    }
    unlock(loop);
    return result;
}

/* ---- views ---- */

const wspy_event *wspy_loop_events(const wspy_loop *loop)
{
    return loop->events;
}

size_t wspy_loop_event_capacity(const wspy_loop *loop)
{
    (void)loop;
    return EVENTS_SIZE;
}

const uint8_t *wspy_loop_arena(const wspy_loop *loop)
{
    return loop->arena;
}

size_t wspy_loop_arena_capacity(const wspy_loop *loop)
{
    (void)loop;
    return ARENA_SIZE;
}

const uint8_t *wspy_loop_detached(const wspy_loop *loop, uint32_t index, uint64_t *length)
{
    if (index >= loop->detached.count)
        return NULL;
    *length = loop->detached.items[index].length;
    return loop->detached.items[index].data;
}

const uint32_t *wspy_loop_backlogs(const wspy_loop *loop)
{
    return loop->backlogs;
}

size_t wspy_loop_slot_capacity(const wspy_loop *loop)
{
    (void)loop;
    return (size_t)CHUNKS_MAX * CHUNK_CONNECTIONS;
}

int wspy_loop_wake(wspy_loop *loop)
{
    lock(loop);
    int result = loop->closed ? WSPY_ERROR_CLOSED : wspy_sys_event_signal(loop->event);
    unlock(loop);
    return result;
}

int wspy_loop_alarm(wspy_loop *loop, uint64_t at_ms)
{
    lock(loop);
    loop->alarm_ms = at_ms && at_ms < ALARM_MAX ? at_ms : UINT64_MAX;
    if (!loop->closed)
        arm_timer(loop);
    unlock(loop);
    return WSPY_OK;
}

uint64_t wspy_loop_now_ms(const wspy_loop *loop)
{
    return (wspy_sys_now_ns() - loop->began_ns) / 1000000u;
}

/* The generation a slot had when its last event came up: it may have been given back in the same turn. */
static uint32_t last_generation(const connection *conn)
{
    return (conn->generation - (conn->phase == FREE)) & GENERATION_MASK;
}

uint64_t wspy_loop_handle(wspy_loop *loop, uint32_t slot)
{
    lock(loop);
    uint64_t handle = 0;
    if (slot < loop->slot_count)
        handle = (uint64_t)last_generation(wspy_loop_slot(loop, slot)) << GENERATION_SHIFT | slot;
    unlock(loop);
    return handle;
}

/* Also after its end, until the slot is used again; NULL: it is. */
static const connection *find_past(const wspy_loop *loop, uint64_t handle)
{
    uint32_t slot = (uint32_t)(handle & WSPY_SLOT_MASK);
    if (slot >= loop->slot_count)
        return NULL;
    const connection *conn = wspy_loop_slot(loop, slot);
    uint32_t age = (conn->generation - (uint32_t)(handle >> GENERATION_SHIFT)) & GENERATION_MASK;
    return age == (conn->phase == FREE) ? conn : NULL;
}

int wspy_loop_peer(wspy_loop *loop, uint64_t handle, uint8_t *address, uint32_t *port, uint32_t *scope)
{
    lock(loop);
    const connection *conn = find_past(loop, handle);
    int result = conn ? conn->address_size : WSPY_ERROR_HANDLE;
    if (conn) {
        memcpy(address, conn->address, sizeof conn->address);
        *port = conn->port;
        *scope = conn->scope;
    }
    unlock(loop);
    return result;
}

int wspy_loop_ending(wspy_loop *loop, uint64_t handle, wspy_ending *ending)
{
    lock(loop);
    const connection *conn = find_past(loop, handle);
    if (conn)
        *ending = (wspy_ending){
            .age_ms = (uint64_t)(conn->closed - conn->opened) * WSPY_TICK_MS,
            .unsent = __atomic_load_n(&loop->backlogs[conn->slot], __ATOMIC_RELAXED),
            .unsent_messages = conn->lost,
        };
    unlock(loop);
    return conn ? WSPY_OK : WSPY_ERROR_HANDLE;
}

int64_t wspy_loop_latency(wspy_loop *loop, uint64_t handle)
{
    lock(loop);
    const connection *conn = find_past(loop, handle);
    int64_t latency = conn && conn->latency_us != UINT32_MAX ? (int64_t)conn->latency_us : -1;
    unlock(loop);
    return latency;
}

int wspy_loop_stats(wspy_loop *loop, wspy_stats *stats)
{
    lock(loop);
    *stats = loop->stats;
    stats->messages_received = loop->sink.messages;
    for (uint32_t slot = 0; slot < loop->slot_count; slot++) {
        const connection *conn = wspy_loop_slot(loop, slot);
        if (conn->phase == HEAD || conn->phase == DECIDING || conn->phase == OPENING)
            stats->handshakes++;
        stats->backlog += wspy_connection_unsent(conn);
    }
    unlock(loop);
    return WSPY_OK;
}
