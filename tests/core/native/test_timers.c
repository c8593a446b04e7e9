/* test_timers.c: does the wheel give each timer exactly when it is due, as a list that is searched through would? */
#include "native.h"
#include "timers.h"

enum { COUNT = 64, LAP = WSPY_WHEEL_SLOTS };

/* The reference: a time for each timer. */
typedef struct {
    wspy_wheel wheel;
    wspy_timer timers[COUNT];
    uint64_t due[COUNT]; /* UINT64_MAX: not set */
    uint64_t now;
} clockwork;

static void begin(clockwork *work, uint64_t now)
{
    memset(work, 0, sizeof *work);
    wspy_wheel_init(&work->wheel);
    work->wheel.now = work->now = now;
    for (int i = 0; i < COUNT; i++)
        work->due[i] = UINT64_MAX;
}

static void set(clockwork *work, uint32_t index, uint64_t at)
{
    wspy_wheel_set(&work->wheel, &work->timers[index], at);
    /* one that is due already comes at the next tick; the wheel knows the time of the last collection only */
    work->due[index] = at;
}

static void cancel(clockwork *work, uint32_t index)
{
    wspy_wheel_cancel(&work->wheel, &work->timers[index]);
    work->due[index] = UINT64_MAX;
}

static uint64_t earliest(const clockwork *work)
{
    uint64_t found = UINT64_MAX;
    for (int i = 0; i < COUNT; i++)
        if (work->due[i] < found)
            found = work->due[i];
    return found;
}

/* Takes everything that is due off the wheel and compares. */
static void expire(clockwork *work, uint64_t now)
{
    wspy_timer *timer;
    int guard = 0;
    work->now = now;
    while ((timer = wspy_wheel_expire(&work->wheel, now)) != NULL) {
        size_t index = (size_t)(timer - work->timers);
        CHECK(index < COUNT);
        CHECK(work->due[index] <= now);
        CHECK(!timer->next && !timer->previous);
        work->due[index] = UINT64_MAX;
        CHECK(++guard <= COUNT);
    }
    CHECK(earliest(work) > now);
    CHECK(work->wheel.earliest > now);
    CHECK(work->wheel.earliest <= earliest(work));
    if (earliest(work) == UINT64_MAX)
        CHECK(wspy_wheel_next(&work->wheel) == UINT64_MAX || work->wheel.now < now);
}

TEST(a_timer_comes_at_its_tick_and_not_before)
{
    clockwork work;
    for (uint64_t ahead = 1; ahead <= 3 * LAP; ahead += ahead < 130 ? 1 : 61) {
        begin(&work, 1000);
        set(&work, 0, 1000 + ahead);
        CHECK(work.wheel.earliest == 1000 + ahead);
        for (uint64_t at = 1000; at < 1000 + ahead; at += 1 + ahead / 7)
            CHECK(wspy_wheel_expire(&work.wheel, at) == NULL);
        CHECK(wspy_wheel_expire(&work.wheel, 1000 + ahead - 1) == NULL);
        CHECK(wspy_wheel_expire(&work.wheel, 1000 + ahead) == &work.timers[0]);
        CHECK(wspy_wheel_expire(&work.wheel, 1000 + ahead) == NULL);
        CHECK(work.wheel.earliest == UINT64_MAX);
    }
}

TEST(a_timer_in_the_past_comes_at_the_next_tick)
{
    clockwork work;
    begin(&work, 500);
    wspy_wheel_set(&work.wheel, &work.timers[0], 3);
    CHECK(wspy_wheel_expire(&work.wheel, 500) == NULL);
    CHECK(wspy_wheel_expire(&work.wheel, 501) == &work.timers[0]);
}

TEST(a_cancelled_timer_never_comes)
{
    clockwork work;
    begin(&work, 0);
    for (uint32_t i = 0; i < COUNT; i++)
        set(&work, i, 1 + i / 2);
    for (uint32_t i = 0; i < COUNT; i += 2)
        cancel(&work, i);
    cancel(&work, 0); /* twice is fine */
    for (uint64_t now = 1; now <= COUNT; now++)
        expire(&work, now);
}

TEST(a_moved_timer_comes_once)
{
    clockwork work;
    begin(&work, 0);
    set(&work, 0, 10);
    set(&work, 0, 5000);
    set(&work, 0, 20);
    expire(&work, 19);
    CHECK(work.due[0] == 20);
    expire(&work, 20);
    CHECK(work.due[0] == UINT64_MAX);
    expire(&work, 20000);
}

TEST(a_timer_may_be_set_again_while_others_expire)
{
    clockwork work;
    begin(&work, 0);
    for (uint32_t i = 0; i < COUNT; i++)
        set(&work, i, 10 + i % 3);
    wspy_timer *timer;
    int count = 0;
    while ((timer = wspy_wheel_expire(&work.wheel, 12)) != NULL) {
        count++;
        wspy_wheel_set(&work.wheel, timer, 13);
        CHECK(count <= COUNT);
    }
    CHECK(count == COUNT);
    for (count = 0; wspy_wheel_expire(&work.wheel, 13); count++)
        CHECK(count < COUNT);
    CHECK(count == COUNT);
}

TEST(an_idle_wheel_has_no_next_tick)
{
    clockwork work;
    begin(&work, 7);
    CHECK(wspy_wheel_next(&work.wheel) == UINT64_MAX);
    set(&work, 0, 7 + LAP);
    CHECK(wspy_wheel_next(&work.wheel) == 7 + LAP);
    cancel(&work, 0);
    CHECK(wspy_wheel_next(&work.wheel) == UINT64_MAX);
}

TEST(the_next_tick_is_found_from_every_position)
{
    clockwork work;
    for (uint64_t now = 0; now < 2 * LAP; now += 17) {
        begin(&work, now);
        for (uint64_t ahead = 1; ahead <= LAP; ahead += 1 + ahead / 3) {
            set(&work, 0, now + ahead);
            CHECK(wspy_wheel_next(&work.wheel) == now + ahead);
        }
    }
}

/* Steps of every size: none, a few ticks, laps; timers near, far and in the past. */
static void compare_with_the_reference(uint64_t seed, uint64_t start)
{
    static const uint32_t steps[] = {1, 2, 5, 64, 1000, LAP - 1, LAP, LAP + 1, 5 * LAP};
    clockwork work;
    begin(&work, start);
    for (int round = 0; round < 4000; round++) {
        uint32_t index = random_below(&seed, COUNT);
        uint32_t span = steps[random_below(&seed, sizeof steps / sizeof *steps)];
        switch (random_below(&seed, 4)) {
        case 0:
        case 1:
            set(&work, index, work.now + 1 + random_below(&seed, span));
            break;
        case 2:
            cancel(&work, index);
            break;
        default:
            expire(&work, work.now + random_below(&seed, span));
        }
    }
    expire(&work, work.now + 100 * LAP);
    CHECK(earliest(&work) == UINT64_MAX);
}

TEST(the_wheel_agrees_with_the_reference)
{
    for (uint64_t seed = 1; seed <= 40; seed++)
        compare_with_the_reference(seed, 0);
}

TEST(the_wheel_agrees_where_the_low_half_of_a_tick_wraps)
{
    for (uint64_t seed = 1; seed <= 40; seed++)
        compare_with_the_reference(seed, UINT32_MAX - 1000 * seed);
}
