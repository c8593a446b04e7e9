/* timers.h: one deadline per connection, each operation O(1). Private to the core. */
#ifndef WSPY_TIMERS_H
#define WSPY_TIMERS_H

#include <stdint.h>

/* Time is counted in ticks of 16 ms since the loop began: coarse enough to batch, fine enough for any deadline. A timer
 * keeps the low 32 bits, which repeat every 795 days, and so is never set further ahead than half of that. */
#define WSPY_TICK_MS 16

typedef struct wspy_timer {
    struct wspy_timer *previous, *next; /* both NULL: not set */
    uint32_t at;                        /* tick, modulo 2^32 */
} wspy_timer;

enum { WSPY_WHEEL_SLOTS = 4096 };

/* A wheel of 4,096 slots (65 s a lap): a timer further ahead is looked at once per lap. Timers are borrowed: their
 * owner cancels them before it goes. */
typedef struct {
    wspy_timer slots[WSPY_WHEEL_SLOTS]; /* heads of circular lists */
    uint64_t occupied[WSPY_WHEEL_SLOTS / 64];
    uint64_t now;      /* the last tick that was collected */
    uint64_t earliest; /* no timer is due before; UINT64_MAX: none is set */
} wspy_wheel;

void wspy_wheel_init(wspy_wheel *wheel);
/* Sets or moves a timer; one that is due already comes at the next tick. */
void wspy_wheel_set(wspy_wheel *wheel, wspy_timer *timer, uint64_t at);
void wspy_wheel_cancel(wspy_wheel *wheel, wspy_timer *timer);
/* Takes one timer that is due at `now` off the wheel, or returns NULL when there is none any more. Ticks must not
 * go back. */
wspy_timer *wspy_wheel_expire(wspy_wheel *wheel, uint64_t now);
/* Recomputes and returns the tick before which nothing is due. */
uint64_t wspy_wheel_next(wspy_wheel *wheel);

#endif
