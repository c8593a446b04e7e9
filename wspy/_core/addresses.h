/* addresses.h: how many connections of an address are there now? Private to the core. */
#ifndef WSPY_ADDRESSES_H
#define WSPY_ADDRESSES_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t high, low;
    uint32_t count; /* 0: the place is free */
} wspy_address_count;

/* A hash table without holes; zeroed, it is empty. `places` is owned, and as large as four thirds of the most that were
 * there at a time, or more. */
typedef struct {
    wspy_address_count *places;
    uint32_t capacity, used;
    uint64_t seed; /* so that nobody can choose addresses that get into each other's way */
} wspy_addresses;

/* Counts one more; IPv6 addresses count by their /64, which is what one subscriber has, and those that stand for IPv4 by
 * that. Returns how many there are now, or WSPY_ERROR_NO_MEMORY. size: 4 or 16. */
int64_t wspy_addresses_add(wspy_addresses *addresses, const uint8_t *address, size_t size);
/* Counts one less of those that were added. */
void wspy_addresses_remove(wspy_addresses *addresses, const uint8_t *address, size_t size);
uint32_t wspy_addresses_count(const wspy_addresses *addresses, const uint8_t *address, size_t size);
void wspy_addresses_free(wspy_addresses *addresses);

#endif
