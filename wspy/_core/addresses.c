/* addresses.c: a hash table of addresses and how often each is there, by open addressing with linear probing. */
#include "addresses.h"

#include <string.h>

#include "core.h"
#include "sys.h"

enum { CAPACITY_MIN = 64 };

/* RFC 4291 §2.5.5.2: what a socket for both families says of an IPv4 peer; the /64 is that of them all. */
static int is_mapped(const uint8_t *address)
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(address, prefix, sizeof prefix) == 0;
}

static wspy_address_count key_of(const uint8_t *address, size_t size)
{
    wspy_address_count key = {0};
    if (size == 4 || is_mapped(address)) {
        uint32_t number;
        memcpy(&number, size == 4 ? address : address + 12, 4);
        key.high = 4;
        key.low = number;
    } else {
        key.high = 6;
        memcpy(&key.low, address, 8);
    }
    return key;
}

/* The finalizer of MurmurHash3. */
static uint64_t mixed(uint64_t value)
{
    value = (value ^ value >> 33) * UINT64_C(0xff51afd7ed558ccd);
    value = (value ^ value >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return value ^ value >> 33;
}

static uint32_t home_of(const wspy_addresses *addresses, const wspy_address_count *key)
{
    return (uint32_t)(mixed(mixed(key->low ^ addresses->seed) + key->high) & (addresses->capacity - 1));
}

/* Returns where a key is, or where it would be put. */
static wspy_address_count *place_of(const wspy_addresses *addresses, const wspy_address_count *key)
{
    uint32_t at = home_of(addresses, key);
    while (addresses->places[at].count &&
           (addresses->places[at].low != key->low || addresses->places[at].high != key->high))
        at = (at + 1) & (addresses->capacity - 1);
    return &addresses->places[at];
}

static int grow(wspy_addresses *addresses)
{
    wspy_addresses grown = {.capacity = addresses->capacity ? addresses->capacity * 2 : CAPACITY_MIN,
                            .used = addresses->used,
                            .seed = addresses->seed};
    if (!grown.seed && wspy_sys_random(&grown.seed, sizeof grown.seed) < 0)
        return WSPY_ERROR_NO_MEMORY;
    grown.places = wspy_sys_allocate_zeroed(grown.capacity, sizeof *grown.places);
    if (!grown.places)
        return WSPY_ERROR_NO_MEMORY;
    for (uint32_t i = 0; i < addresses->capacity; i++)
        if (addresses->places[i].count)
            *place_of(&grown, &addresses->places[i]) = addresses->places[i];
    wspy_sys_free(addresses->places);
    *addresses = grown;
    return WSPY_OK;
}

int64_t wspy_addresses_add(wspy_addresses *addresses, const uint8_t *address, size_t size)
{
    if (addresses->used >= addresses->capacity / 4 * 3 && grow(addresses) < 0)
        return WSPY_ERROR_NO_MEMORY;
    wspy_address_count key = key_of(address, size);
    wspy_address_count *place = place_of(addresses, &key);
    if (!place->count) {
        *place = key;
        addresses->used++;
    }
    return ++place->count;
}

/* Those behind a hole are moved into it, unless their home lies behind it: else they would not be found. */
static void close_hole(wspy_addresses *addresses, uint32_t hole)
{
    uint32_t mask = addresses->capacity - 1;
    for (uint32_t at = (hole + 1) & mask; addresses->places[at].count; at = (at + 1) & mask) {
        uint32_t home = home_of(addresses, &addresses->places[at]);
        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        addresses->places[hole] = addresses->places[at];
        hole = at;
    }
    addresses->places[hole].count = 0;
}

void wspy_addresses_remove(wspy_addresses *addresses, const uint8_t *address, size_t size)
{
    if (!addresses->capacity)
        return;
    wspy_address_count key = key_of(address, size);
    wspy_address_count *place = place_of(addresses, &key);
    if (!place->count || --place->count)
        return;
    addresses->used--;
    close_hole(addresses, (uint32_t)(place - addresses->places));
}

uint32_t wspy_addresses_count(const wspy_addresses *addresses, const uint8_t *address, size_t size)
{
    if (!addresses->capacity)
        return 0;
    wspy_address_count key = key_of(address, size);
    return place_of(addresses, &key)->count;
}

void wspy_addresses_free(wspy_addresses *addresses)
{
    wspy_sys_free(addresses->places);
    *addresses = (wspy_addresses){0};
}
