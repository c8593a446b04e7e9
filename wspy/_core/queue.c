/* queue.c: bytes that the kernel did not take yet, in order, and where its sends end. */
#include "queue.h"

#include <errno.h>
#include <string.h>

#include "core.h"
#include "sys.h"

enum {
    CHUNK_MIN = 4096,
    CHUNK_ROOM = 65536,
    PONG_MAX = WSPY_HEADER_MAX + 125,
    PARTS_MAX = 16,
    FLUSH_MAX = 256 << 10
};
enum { IS_MARK = 1, IS_MESSAGE = 2, POSITION_SHIFT = 2 };

/* Owned by the queue. Its bytes are data[start:end], or those of shared. */
typedef struct chunk {
    struct chunk *next;
    wspy_shared *shared; /* one reference, or NULL */
    size_t start, end, capacity;
    uint8_t is_control; /* not counted in `written` */
    uint8_t is_touched; /* partly written: nothing may be put in front */
    uint8_t data[];
} chunk;

struct wspy_queue {
    chunk *head, *tail;
    uint64_t size;
    uint64_t pushed, written; /* bytes of data since the queue began */
    uint64_t *ends;           /* a ring of positions in `pushed`, above IS_MARK and IS_MESSAGE */
    uint32_t end_start, end_count, end_capacity;
    uint32_t messages;
    uint32_t time;
    uint8_t pong_length;
    uint8_t pong[PONG_MAX];
};

wspy_shared *wspy_shared_new(const uint8_t *data, size_t length)
{
    wspy_shared *shared = wspy_sys_allocate(sizeof *shared + length);
    if (!shared)
        return NULL;
    shared->references = 1;
    shared->length = length;
    memcpy(shared->data, data, length);
    return shared;
}

void wspy_shared_release(wspy_shared *shared)
{
    if (shared && --shared->references == 0)
        wspy_sys_free(shared);
}

wspy_queue *wspy_queue_new(void)
{
    return wspy_sys_allocate_zeroed(1, sizeof(wspy_queue));
}

static void free_chunk(chunk *gone)
{
    wspy_shared_release(gone->shared);
    wspy_sys_free(gone);
}

void wspy_queue_free(wspy_queue *queue)
{
    if (!queue)
        return;
    while (queue->head) {
        chunk *gone = queue->head;
        queue->head = gone->next;
        free_chunk(gone);
    }
    wspy_sys_free(queue->ends);
    wspy_sys_free(queue);
}

uint64_t wspy_queue_size(const wspy_queue *queue)
{
    return queue ? queue->size + queue->pong_length : 0;
}

/* Each of those that share a payload counts its part. */
static uint64_t chunk_memory(const chunk *counted)
{
    const wspy_shared *shared = counted->shared;
    size_t own = shared ? 0 : counted->end;
    uint64_t size = wspy_sys_resident(counted, sizeof *counted + own);
    if (shared)
        size += wspy_sys_resident(shared, sizeof *shared + shared->length) / shared->references;
    return size;
}

uint64_t wspy_queue_memory(const wspy_queue *queue)
{
    if (!queue)
        return 0;
    uint64_t size = wspy_sys_resident(queue, sizeof *queue);
    size += wspy_sys_resident(queue->ends, queue->end_capacity * sizeof *queue->ends);
    for (const chunk *counted = queue->head; counted; counted = counted->next)
        size += chunk_memory(counted);
    return size;
}

void wspy_queue_set_time(wspy_queue *queue, uint32_t tick)
{
    queue->time = tick;
}

uint32_t wspy_queue_time(const wspy_queue *queue)
{
    return queue->time;
}

static chunk *new_chunk(size_t capacity)
{
    chunk *added = wspy_sys_allocate(sizeof *added + capacity);
    if (!added)
        return NULL;
    memset(added, 0, sizeof *added);
    added->capacity = capacity;
    return added;
}

static void link_chunk(wspy_queue *queue, chunk *added)
{
    if (queue->tail)
        queue->tail->next = added;
    else
        queue->head = added;
    queue->tail = added;
}

static void copy_parts(uint8_t *output, const struct iovec *parts, size_t count, size_t skip)
{
    for (size_t i = 0; i < count; i++) {
        if (skip >= parts[i].iov_len) {
            skip -= parts[i].iov_len;
            continue;
        }
        size_t length = parts[i].iov_len - skip;
        memcpy(output, (const uint8_t *)parts[i].iov_base + skip, length);
        output += length;
        skip = 0;
    }
}

int wspy_queue_push(wspy_queue *queue, const struct iovec *parts, size_t count, size_t skip)
{
    size_t length = 0;
    for (size_t i = 0; i < count; i++)
        length += parts[i].iov_len;
    length -= skip;
    chunk *tail = queue->tail;
    if (!tail || tail->is_control || tail->shared || tail->capacity - tail->end < length) {
        size_t room = queue->size > CHUNK_ROOM ? CHUNK_ROOM : CHUNK_MIN;
        tail = new_chunk(length > room ? length : room);
        if (!tail)
            return WSPY_ERROR_NO_MEMORY;
        link_chunk(queue, tail);
    }
    tail->is_touched |= skip > 0; /* its frame began with what is skipped */
    copy_parts(tail->data + tail->end, parts, count, skip);
    tail->end += length;
    queue->size += length;
    queue->pushed += length;
    return WSPY_OK;
}

int wspy_queue_push_shared(wspy_queue *queue, wspy_shared *shared, size_t skip)
{
    chunk *added = new_chunk(0);
    if (!added)
        return WSPY_ERROR_NO_MEMORY;
    shared->references++;
    added->shared = shared;
    added->start = skip;
    added->end = shared->length;
    added->is_touched = skip > 0;
    link_chunk(queue, added);
    queue->size += added->end - added->start;
    queue->pushed += added->end - added->start;
    return WSPY_OK;
}

static int grow_ends(wspy_queue *queue)
{
    uint32_t capacity = queue->end_capacity ? queue->end_capacity * 2 : 16;
    uint64_t *grown = wspy_sys_allocate(capacity * sizeof *grown);
    if (!grown)
        return WSPY_ERROR_NO_MEMORY;
    for (uint32_t i = 0; i < queue->end_count; i++)
        grown[i] = queue->ends[(queue->end_start + i) % queue->end_capacity];
    wspy_sys_free(queue->ends);
    queue->ends = grown;
    queue->end_start = 0;
    queue->end_capacity = capacity;
    return WSPY_OK;
}

int wspy_queue_end(wspy_queue *queue, size_t behind, int is_mark, int is_message)
{
    if (queue->end_count == queue->end_capacity && grow_ends(queue) < 0)
        return WSPY_ERROR_NO_MEMORY;
    uint64_t kind = (is_mark ? IS_MARK : 0) | (is_message ? IS_MESSAGE : 0);
    uint32_t place = (queue->end_start + queue->end_count++) % queue->end_capacity;
    queue->ends[place] = (queue->pushed - behind) << POSITION_SHIFT | kind;
    queue->messages += is_message != 0;
    return WSPY_OK;
}

uint32_t wspy_queue_messages(const wspy_queue *queue)
{
    return queue ? queue->messages : 0;
}

void wspy_queue_pong(wspy_queue *queue, const uint8_t *frame, size_t length)
{
    queue->pong_length = (uint8_t)length;
    memcpy(queue->pong, frame, length);
}

void wspy_queue_keep_first(wspy_queue *queue)
{
    if (queue->head)
        queue->head->is_touched = 1;
}

int wspy_queue_close(wspy_queue *queue, const uint8_t *frame, size_t length)
{
    const struct iovec parts[2] = {{.iov_base = queue->pong, .iov_len = queue->pong_length},
                                   {.iov_base = (void *)(uintptr_t)frame, .iov_len = length}};
    int result = wspy_queue_push(queue, parts, 2, 0);
    if (result == WSPY_OK)
        queue->pong_length = 0;
    return result;
}

/* Puts the waiting Pong first, unless a frame is half written. It takes the place of one that the kernel refused. */
static void place_pong(wspy_queue *queue)
{
    chunk *first = queue->head;
    if (!queue->pong_length || (first && first->is_touched))
        return;
    if (!first || !first->is_control) {
        first = new_chunk(PONG_MAX);
        if (!first) /* it is tried again at the next flush, behind what else there is */
            return;
        first->is_control = 1;
        first->next = queue->head;
        queue->head = first;
        if (!queue->tail)
            queue->tail = first;
    }
    memcpy(first->data, queue->pong, queue->pong_length);
    queue->size += queue->pong_length - first->end;
    first->end = queue->pong_length;
    queue->pong_length = 0;
}

static uint8_t *chunk_bytes(chunk *source)
{
    return (source->shared ? source->shared->data : source->data) + source->start;
}

/* Returns how many parts there are; *offered: their bytes, at most so many as it says. */
static size_t gather(wspy_queue *queue, struct iovec *parts, size_t *offered)
{
    size_t count = 0, left = *offered;
    size_t most = queue->pong_length ? 1 : PARTS_MAX; /* a Pong goes behind the frame that is half written */
    for (chunk *source = queue->head; source && count < most && left; source = source->next) {
        size_t length = source->end - source->start;
        length = length < left ? length : left;
        parts[count++] = (struct iovec){.iov_base = chunk_bytes(source), .iov_len = length};
        left -= length;
    }
    *offered -= left;
    return count;
}

static void consume(wspy_queue *queue, size_t length)
{
    queue->size -= length;
    while (length) {
        chunk *source = queue->head;
        size_t available = source->end - source->start;
        size_t used = length < available ? length : available;
        queue->written += source->is_control ? 0 : used;
        source->start += used;
        source->is_touched = 1;
        length -= used;
        if (used < available)
            return;
        queue->head = source->next;
        if (!queue->head)
            queue->tail = NULL;
        free_chunk(source);
    }
}

static wspy_ends pass_ends(wspy_queue *queue)
{
    wspy_ends passed = {0};
    while (queue->end_count && queue->ends[queue->end_start] >> POSITION_SHIFT <= queue->written) {
        uint64_t end = queue->ends[queue->end_start];
        queue->end_start = (queue->end_start + 1) % queue->end_capacity;
        queue->end_count--;
        passed.marks += (end & IS_MARK) != 0;
        passed.messages += (end & IS_MESSAGE) != 0;
    }
    queue->messages -= passed.messages;
    return passed;
}

int wspy_queue_flush_to(wspy_queue *queue, wspy_give *give, void *to, wspy_ends *ends, uint64_t *bytes)
{
    for (uint64_t most = *bytes + FLUSH_MAX; *bytes < most;) {
        place_pong(queue);
        struct iovec parts[PARTS_MAX];
        size_t offered = (size_t)(most - *bytes);
        size_t count = gather(queue, parts, &offered);
        if (count == 0 && queue->pong_length) { /* the kernel has room: nobody would say when there is memory */
            errno = EIO;
            return -1;
        }
        if (count == 0)
            return 0;
        ssize_t sent = give(to, parts, count);
        if (sent < 0)
            return wspy_sys_would_block(errno) ? 1 : -1;
        consume(queue, (size_t)sent);
        wspy_ends_add(ends, pass_ends(queue));
        *bytes += (uint64_t)sent;
        if ((size_t)sent < offered)
            return 1;
    }
    return wspy_queue_size(queue) > 0;
}

static ssize_t give_to_descriptor(void *to, const struct iovec *parts, size_t count)
{
    return wspy_sys_send(*(const int *)to, parts, count);
}

int wspy_queue_flush(wspy_queue *queue, int fd, wspy_ends *ends, uint64_t *bytes)
{
    return wspy_queue_flush_to(queue, give_to_descriptor, &fd, ends, bytes);
}
