/* timers.c: a hashed timer wheel: lists of timers by the tick they are due at, modulo the wheel. */
#include "timers.h"

#include <stddef.h>
#include <string.h>

#define SLOT(tick) ((uint32_t)((tick) % WSPY_WHEEL_SLOTS))

void wspy_wheel_init(wspy_wheel *wheel)
{
    memset(wheel->occupied, 0, sizeof wheel->occupied);
    for (int i = 0; i < WSPY_WHEEL_SLOTS; i++)
        wheel->slots[i].previous = wheel->slots[i].next = &wheel->slots[i];
    wheel->now = 0;
    wheel->earliest = UINT64_MAX;
}

void wspy_wheel_cancel(wspy_wheel *wheel, wspy_timer *timer)
{
    if (!timer->next)
        return;
    timer->previous->next = timer->next;
    timer->next->previous = timer->previous;
    timer->next = timer->previous = NULL;
    uint32_t slot = SLOT(timer->at);
    if (wheel->slots[slot].next == &wheel->slots[slot])
        wheel->occupied[slot / 64] &= ~(UINT64_C(1) << slot % 64);
}

void wspy_wheel_set(wspy_wheel *wheel, wspy_timer *timer, uint64_t at)
{
    wspy_wheel_cancel(wheel, timer);
    if (at <= wheel->now)
        at = wheel->now + 1;
    timer->at = (uint32_t)at;
    uint32_t slot = SLOT(at);
    wspy_timer *head = &wheel->slots[slot];
    timer->previous = head->previous;
    timer->next = head;
    head->previous->next = timer;
    head->previous = timer;
    wheel->occupied[slot / 64] |= UINT64_C(1) << slot % 64;
    if (at < wheel->earliest)
        wheel->earliest = at;
}

static wspy_timer *due_in_slot(wspy_wheel *wheel, uint32_t slot, uint64_t now)
{
    wspy_timer *head = &wheel->slots[slot];
    for (wspy_timer *timer = head->next; timer != head; timer = timer->next)
        if ((uint32_t)now - timer->at <= INT32_MAX)
            return timer;
    return NULL;
}

wspy_timer *wspy_wheel_expire(wspy_wheel *wheel, uint64_t now)
{
    if (now < wheel->earliest)
        return NULL;
    uint64_t from = wheel->earliest > wheel->now ? wheel->earliest : wheel->now;
    /* after a pause of more than a lap one round over all slots finds everything */
    if (now - from >= WSPY_WHEEL_SLOTS)
        from = now - (WSPY_WHEEL_SLOTS - 1);
    for (uint64_t tick = from; tick <= now; tick++) {
        uint32_t slot = SLOT(tick);
        if (!(wheel->occupied[slot / 64] >> slot % 64 & 1))
            continue;
        wspy_timer *timer = due_in_slot(wheel, slot, now);
        if (!timer)
            continue;
        wspy_wheel_cancel(wheel, timer);
        wheel->earliest = tick;
        return timer;
    }
    wheel->now = now;
    wspy_wheel_next(wheel);
    return NULL;
}

uint64_t wspy_wheel_next(wspy_wheel *wheel)
{
    for (uint32_t ahead = 1; ahead <= WSPY_WHEEL_SLOTS; ahead++) {
        uint32_t slot = SLOT(wheel->now + ahead);
        if (slot % 64 == 0 && wheel->occupied[slot / 64] == 0) {
            ahead += 63;
            continue;
        }
        if (wheel->occupied[slot / 64] >> slot % 64 & 1) {
            wheel->earliest = wheel->now + ahead;
            return wheel->earliest;
        }
    }
    wheel->earliest = UINT64_MAX;
    return UINT64_MAX;
}
