/* test_queue.c: does the queue write every byte once and in order, count marks when they were passed and put a Pong
 * only between two frames?
 *
 * What is pushed are real frames (RFC 6455 §5.2), each with its number in the payload, so that the reader of the
 * other end can tell what it reads. Data frames are pushed in the order of their numbers; Pongs too. */
#define _GNU_SOURCE /* SOCK_NONBLOCK */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"
#include "native.h"
#include "queue.h"
#include "sys.h"

enum { FRAMES = 4096, FRAME_MAX = 70000, DATA = 0x82, PONG = 0x8a };

/* The reference: what was pushed, and what of it came out at the other end. */
typedef struct {
    wspy_queue *queue;
    int ours, peer;
    uint64_t seed;
    uint32_t pushed_frames, next_frame; /* numbers of data frames */
    uint64_t pushed, written;           /* bytes of data */
    uint64_t marks[FRAMES];             /* positions in pushed */
    uint8_t is_message[FRAMES];
    uint32_t mark_count, next_mark;
    uint32_t messages;                          /* that were not passed */
    uint32_t pongs_given, last_pong;            /* numbers; 0: none */
    uint8_t frame[FRAME_MAX + WSPY_HEADER_MAX]; /* that is being read */
    size_t have;
} scene;

static void begin(scene *play, uint64_t seed)
{
    memset(play, 0, sizeof *play);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    play->ours = pair[0];
    play->peer = pair[1];
    play->seed = seed;
}

static void end(scene *play)
{
    wspy_queue_free(play->queue);
    close(play->ours);
    close(play->peer);
}

/* ---- frames ---- */

static size_t make_frame(uint8_t *output, uint8_t first, uint32_t number, size_t length)
{
    CHECK(length >= 4 && length <= FRAME_MAX);
    wspy_frame_header header = {.flags = first & 0xf0, .opcode = first & 0x0f, .length = length};
    size_t size = (size_t)wspy_frame_encode(output, &header);
    for (size_t i = 0; i < length; i++)
        output[size + i] = (uint8_t)(number >> (8 * (i % 4)));
    return size + length;
}

/* A whole frame was read: is it the next one of its kind? */
static void check_frame(scene *play, const wspy_frame_header *header, const uint8_t *payload)
{
    uint32_t number;
    memcpy(&number, payload, 4);
    for (size_t i = 0; i < header->length; i++)
        CHECK(payload[i] == (uint8_t)(number >> (8 * (i % 4))));
    if ((header->flags | header->opcode) == PONG) {
        CHECK(number > play->last_pong && number <= play->pongs_given);
        play->last_pong = number;
        return;
    }
    CHECK((header->flags | header->opcode) == DATA);
    CHECK(number == play->next_frame && number < play->pushed_frames);
    play->next_frame++;
}

static int is_pong_begun(const scene *play)
{
    return play->have > 0 && play->frame[0] == PONG;
}

/* Reads up to `most` bytes at the other end and counts those of data frames. */
static void receive(scene *play, size_t most)
{
    while (most) {
        uint8_t bytes[4096];
        ssize_t got = recv(play->peer, bytes, most < sizeof bytes ? most : sizeof bytes, 0);
        if (got <= 0)
            return;
        most -= (size_t)got;
        for (ssize_t i = 0; i < got; i++) {
            CHECK(play->have < sizeof play->frame);
            play->frame[play->have++] = bytes[i];
            play->written += !is_pong_begun(play);
            wspy_frame_header header;
            int size = wspy_frame_decode(play->frame, play->have, &header);
            if (play->have >= 2)
                CHECK(size >= 0 && !header.masked);
            if (size <= 0 || play->have < (size_t)size + header.length)
                continue;
            check_frame(play, &header, play->frame + size);
            play->have = 0;
        }
    }
}

/* ---- what the queue is asked ---- */

/* Pushes `count` frames, cut into parts at random, as if the kernel had taken the first `skip` bytes of them. */
static int push(scene *play, uint32_t count, size_t length, size_t skip)
{
    static uint8_t bytes[FRAME_MAX * 2];
    size_t size = 0;
    for (uint32_t i = 0; i < count; i++)
        size += make_frame(bytes + size, DATA, play->pushed_frames + i, length);
    CHECK(skip < size && size <= sizeof bytes);
    struct iovec parts[8];
    size_t part_count = 0;
    for (size_t at = 0; at < size;) {
        size_t left = size - at;
        size_t part = part_count == 7 ? left : 1 + random_below(&play->seed, (uint32_t)left);
        parts[part_count++] = (struct iovec){.iov_base = bytes + at, .iov_len = part};
        at += part;
    }
    if (!play->queue)
        play->queue = wspy_queue_new();
    if (!play->queue)
        return WSPY_ERROR_NO_MEMORY;
    int result = wspy_queue_push(play->queue, parts, part_count, skip);
    if (result < 0)
        return result;
    CHECK(send(play->ours, bytes, skip, 0) == (ssize_t)skip);
    play->pushed_frames += count;
    play->pushed += size;
    return result;
}

static int push_shared(scene *play, wspy_queue **queues, size_t queue_count, size_t length, size_t skip)
{
    static uint8_t bytes[FRAME_MAX + WSPY_HEADER_MAX];
    size_t size = make_frame(bytes, DATA, play->pushed_frames, length);
    wspy_shared *shared = wspy_shared_new(bytes, size);
    if (!shared)
        return WSPY_ERROR_NO_MEMORY;
    int result = WSPY_OK;
    for (size_t i = 0; i < queue_count && result == WSPY_OK; i++)
        result = wspy_queue_push_shared(queues[i], shared, skip);
    wspy_shared_release(shared);
    if (result < 0)
        return result;
    CHECK(send(play->ours, bytes, skip, 0) == (ssize_t)skip);
    play->pushed_frames++;
    play->pushed += size;
    return result;
}

static void mark(scene *play, size_t behind)
{
    uint64_t position = play->pushed - behind;
    if (play->mark_count > 0 && position < play->marks[play->mark_count - 1])
        return;
    int is_message = (int)random_below(&play->seed, 2);
    if (wspy_queue_end(play->queue, behind, 1, is_message) < 0)
        return;
    CHECK(play->mark_count < FRAMES);
    play->is_message[play->mark_count] = (uint8_t)is_message;
    play->messages += (uint32_t)is_message;
    play->marks[play->mark_count++] = position;
}

static void pong(scene *play, size_t length)
{
    uint8_t bytes[WSPY_HEADER_MAX + 125];
    size_t size = make_frame(bytes, PONG, ++play->pongs_given, length);
    wspy_queue_pong(play->queue, bytes, size);
}

/* Flushes, reads all of it, and compares what the queue says with what came out. Returns what flush returned. */
static int flush(scene *play)
{
    wspy_ends ends = {0};
    uint64_t bytes = 0;
    int left = wspy_queue_flush(play->queue, play->ours, &ends, &bytes);
    CHECK(left == 0 || left == 1);
    receive(play, SIZE_MAX);
    wspy_ends passed = {0};
    while (play->next_mark < play->mark_count && play->marks[play->next_mark] <= play->written) {
        passed.messages += play->is_message[play->next_mark];
        play->next_mark++;
        passed.marks++;
    }
    play->messages -= passed.messages;
    CHECK(ends.marks == passed.marks && ends.messages == passed.messages);
    CHECK(wspy_queue_messages(play->queue) == play->messages);
    uint64_t data_left = play->pushed - play->written;
    CHECK(wspy_queue_size(play->queue) >= data_left);
    CHECK(wspy_queue_size(play->queue) <= data_left + 2 * (WSPY_HEADER_MAX + 125));
    if (left)
        return 1;
    CHECK(wspy_queue_size(play->queue) == 0 && data_left == 0 && play->have == 0);
    CHECK(play->next_mark == play->mark_count && play->next_frame == play->pushed_frames);
    CHECK(play->last_pong == play->pongs_given);
    wspy_queue_free(play->queue);
    play->queue = NULL;
    return 0;
}

static void flush_all(scene *play)
{
    for (int guard = 0; flush(play); guard++)
        CHECK(guard < 1000000);
}

/* ---- tests ---- */

TEST(nothing_is_nothing)
{
    CHECK(wspy_queue_size(NULL) == 0);
    wspy_queue_free(NULL);
    wspy_shared_release(NULL);
    scene play;
    begin(&play, 1);
    play.queue = wspy_queue_new();
    flush_all(&play);
    end(&play);
}

TEST(everything_leaves_in_order_with_writes_of_every_size)
{
    for (uint32_t size = 1; size <= 300; size += size < 40 ? 1 : 13) {
        scene play;
        begin(&play, size);
        CHECK(wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, size) >= 0);
        push(&play, 1, 200, size % 150);
        for (uint32_t i = 0; i < 12; i++) {
            push(&play, 1 + i % 3, 4 + 31 * i, 0);
            mark(&play, 0);
            if (i % 4 == 2)
                push_shared(&play, &play.queue, 1, 100 + i, 0);
            flush(&play);
        }
        if (play.queue)
            flush_all(&play);
        end(&play);
    }
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
}

TEST(everything_leaves_in_order_through_a_small_socket_buffer)
{
    scene play;
    begin(&play, 5);
    int size = 4096;
    CHECK(setsockopt(play.ours, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    for (uint32_t i = 0; i < 60; i++) {
        push(&play, 1, 4 + 1000 * i, 0);
        mark(&play, 0);
    }
    flush_all(&play);
    end(&play);
}

TEST(a_mark_counts_when_its_last_byte_was_taken)
{
    for (size_t behind = 0; behind <= 20; behind++) {
        scene play;
        begin(&play, 3);
        wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 1);
        push(&play, 1, 40, 11);
        mark(&play, behind);
        mark(&play, behind);
        mark(&play, 0);
        flush_all(&play);
        end(&play);
    }
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
}

TEST(more_marks_than_the_ring_has_room_for)
{
    scene play;
    begin(&play, 4);
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 10);
    push(&play, 1, 1000, 0);
    for (uint32_t i = 0; i < 500; i++) {
        push(&play, 1, 4 + i % 20, 0);
        mark(&play, 0);
        if (i % 5 == 0)
            CHECK(flush(&play)); /* so that the ring has wrapped when it grows */
    }
    flush_all(&play);
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
    end(&play);
}

/* A frame of which the kernel took any part before the rest was queued, and a Pong that comes then. */
TEST(a_pong_never_goes_into_a_frame_that_the_kernel_took_a_part_of)
{
    for (size_t skip = 0; skip < 60; skip++) {
        scene play;
        begin(&play, skip + 1);
        push(&play, 1, 58, skip);
        pong(&play, 4);
        flush_all(&play);
        CHECK(play.last_pong == 1);
        end(&play);
        begin(&play, skip + 1);
        play.queue = wspy_queue_new();
        push_shared(&play, &play.queue, 1, 58, skip);
        pong(&play, 4);
        flush_all(&play);
        end(&play);
    }
}

TEST(a_pong_never_goes_into_a_frame_that_the_queue_wrote_a_part_of)
{
    for (uint32_t size = 1; size < 140; size++) {
        scene play;
        begin(&play, size);
        wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, size);
        push(&play, 1, 58, 0);
        push(&play, 1, 58, 0);
        if (flush(&play))
            pong(&play, 4);
        if (play.queue && flush(&play))
            pong(&play, 125);
        if (play.queue)
            flush_all(&play);
        end(&play);
    }
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
}

TEST(a_pong_goes_before_frames_that_were_not_begun)
{
    scene play;
    begin(&play, 1);
    push(&play, 3, 100, 0);
    pong(&play, 30);
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 32);
    flush(&play);
    CHECK(play.last_pong == 1 && play.written == 0);
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
    flush_all(&play);
    end(&play);
}

TEST(of_pongs_that_wait_the_newest_wins)
{
    scene play;
    begin(&play, 1);
    push(&play, 1, 100, 0);
    for (size_t i = 0; i < 50; i++)
        pong(&play, 4 + i);
    flush_all(&play);
    CHECK(play.last_pong == 50);
    CHECK(play.next_frame == 1);
    end(&play);
}

/* The kernel refuses everything: a Pong that was put first already is not sent behind a newer one. */
TEST(of_pongs_that_the_kernel_refused_the_newest_wins)
{
    static const int refusals[] = {EAGAIN, ENOBUFS, ENOMEM};
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        scene play;
        begin(&play, 1);
        push(&play, 1, 100, 0);
        wspy_sys_fail(WSPY_SYS_SEND, 1, UINT32_MAX - 1, refusals[i], 0);
        for (uint32_t j = 0; j < 20; j++) {
            pong(&play, 125 - j);
            CHECK(flush(&play) == 1);
            CHECK(wspy_queue_size(play.queue) <= 104 + WSPY_HEADER_MAX + 125);
        }
        wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
        flush_all(&play);
        CHECK(play.last_pong == 20);
        end(&play);
    }
}

TEST(a_pong_alone_is_written)
{
    scene play;
    begin(&play, 1);
    play.queue = wspy_queue_new();
    pong(&play, 4);
    flush_all(&play);
    CHECK(play.last_pong == 1);
    end(&play);
}

/* Nothing may follow a Close (RFC 6455 §5.5.1): a Pong that waits behind a frame goes before it. */
TEST(a_close_goes_behind_everything)
{
    const uint8_t close_frame[4] = {0x88, 2, 0x03, 0xe8};
    for (size_t skip = 0; skip < 60; skip += 7) {
        for (int with_pong = 0; with_pong <= 1; with_pong++) {
            scene play;
            begin(&play, skip + 1);
            push(&play, 1, 58, skip);
            if (with_pong)
                pong(&play, 50);
            CHECK(wspy_queue_close(play.queue, close_frame, sizeof close_frame) == WSPY_OK);
            uint8_t bytes[256];
            wspy_ends ends = {0};
            uint64_t written = 0;
            wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 3);
            while (wspy_queue_flush(play.queue, play.ours, &ends, &written) == 1)
                continue;
            wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
            CHECK(wspy_queue_size(play.queue) == 0);
            ssize_t got = recv(play.peer, bytes, sizeof bytes, 0);
            CHECK(got == 60 + (with_pong ? 52 : 0) + 4);
            CHECK(memcmp(bytes + got - 4, close_frame, 4) == 0);
            CHECK(!with_pong || bytes[60] == PONG);
            end(&play);
        }
    }
}

TEST(a_connection_that_failed_says_why)
{
    scene play;
    begin(&play, 1);
    push(&play, 1, 100, 0);
    wspy_ends ends = {0};
    uint64_t bytes = 0;
    close(play.peer);
    play.peer = -1;
    CHECK(wspy_queue_flush(play.queue, play.ours, &ends, &bytes) == -1);
    CHECK(errno == EPIPE && ends.marks == 0 && bytes == 0);
    end(&play);
}

TEST(a_shared_payload_lives_until_the_last_queue_has_written_it)
{
    enum { QUEUES = 20 };
    scene plays[QUEUES];
    wspy_queue *queues[QUEUES];
    for (size_t i = 0; i < QUEUES; i++) {
        begin(&plays[i], i + 1);
        push(&plays[i], 1, 50, 0);
        queues[i] = plays[i].queue;
    }
    CHECK(push_shared(&plays[0], queues, QUEUES, 5000, 0) == WSPY_OK);
    for (size_t i = 1; i < QUEUES; i++) {
        plays[i].pushed = plays[0].pushed;
        plays[i].pushed_frames = plays[0].pushed_frames;
    }
    for (size_t i = 0; i < QUEUES; i += 2)
        flush_all(&plays[i]);
    for (size_t i = 0; i < QUEUES; i++)
        if (plays[i].queue && i % 3)
            flush_all(&plays[i]);
    for (size_t i = 0; i < QUEUES; i++)
        end(&plays[i]); /* some are never written */
}

/* One of everything, in an order that the seed decides. */
static void play_at_random(scene *play, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        if (play->queue && wspy_queue_size(play->queue) == 0)
            flush_all(play); /* made, and then no memory to push */
        uint32_t choice = random_below(&play->seed, 16);
        size_t length = 4 + random_below(&play->seed, choice < 2 ? 6000 : 300);
        if (!play->queue) {
            push(play, 1, length, random_below(&play->seed, (uint32_t)length));
            continue;
        }
        if (choice < 5)
            push(play, length < 400 ? 1 + choice % 3 : 1, length, 0);
        else if (choice < 7)
            push_shared(play, &play->queue, 1, length, 0);
        else if (choice < 9 && play->pushed_frames)
            mark(play, 0);
        else if (choice < 11)
            pong(play, 4 + length % 122);
        else if (choice < 15)
            flush(play);
        else
            flush_all(play);
        wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, choice == 3 ? 0 : 1 + random_below(&play->seed, 5000));
    }
}

TEST(whatever_happens_frames_stay_whole_and_in_order)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        scene play;
        begin(&play, seed);
        play_at_random(&play, 400);
        if (play.queue)
            flush_all(&play);
        end(&play);
    }
    wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
}

TEST(without_memory_a_push_queues_nothing)
{
    int calls;
    for (uint32_t nth = 1;; nth++) {
        scene play;
        begin(&play, 7);
        wspy_sys_fail(WSPY_SYS_ALLOCATE, nth, 1, ENOMEM, 0);
        play_at_random(&play, 100);
        wspy_sys_fail(WSPY_SYS_SEND, 0, 0, 0, 0);
        calls = wspy_sys_fail(WSPY_SYS_ALLOCATE, 0, 0, 0, 0);
        if (play.queue)
            flush_all(&play);
        end(&play);
        if ((uint32_t)calls < nth)
            break;
    }
    CHECK(calls > 20);
}
