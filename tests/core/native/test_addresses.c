/* test_addresses.c: does the table count as a list that is searched through would, whoever comes and goes? */
#include "addresses.h"

#include <errno.h>

#include "core.h"
#include "native.h"
#include "sys.h"

enum { KINDS = 600 };

static void make_address(uint8_t *address, uint32_t number)
{
    memset(address, 0, 16);
    memcpy(address + 4, &number, 4);
}

TEST(it_counts_as_a_list_would)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        wspy_addresses addresses = {0};
        uint32_t counts[KINDS] = {0};
        uint64_t state = seed;
        uint32_t kinds = seed % 4 == 0 ? KINDS : (uint32_t)seed * 7;
        for (int step = 0; step < 20000; step++) {
            uint8_t address[16];
            uint32_t number = random_below(&state, kinds);
            make_address(address, number);
            /* it fills up, and empties again */
            if (random_below(&state, 100) < (step / 5000 % 2 ? 35 : 65)) {
                CHECK(wspy_addresses_add(&addresses, address, 16) == ++counts[number]);
            } else if (counts[number]) {
                wspy_addresses_remove(&addresses, address, 16);
                counts[number]--;
            }
            CHECK(wspy_addresses_count(&addresses, address, 16) == counts[number]);
        }
        uint32_t used = 0;
        for (uint32_t number = 0; number < kinds; number++) {
            uint8_t address[16];
            make_address(address, number);
            CHECK(wspy_addresses_count(&addresses, address, 16) == counts[number]);
            used += counts[number] > 0;
            for (; counts[number]; counts[number]--)
                wspy_addresses_remove(&addresses, address, 16);
        }
        CHECK(addresses.used <= used && addresses.used == 0);
        wspy_addresses_free(&addresses);
    }
}

TEST(who_was_not_added_is_not_there)
{
    wspy_addresses addresses = {0};
    uint8_t address[16] = {127, 0, 0, 1};
    CHECK(wspy_addresses_count(&addresses, address, 4) == 0);
    wspy_addresses_remove(&addresses, address, 4);
    CHECK(wspy_addresses_add(&addresses, address, 4) == 1);
    CHECK(wspy_addresses_count(&addresses, address, 16) == 0);
    CHECK(wspy_addresses_count(&addresses, address, 0) == 0);
    wspy_addresses_free(&addresses);
}

TEST(a_subscriber_of_ipv6_has_a_whole_network)
{
    wspy_addresses addresses = {0};
    uint8_t one[16] = {0x20, 1, 0xd, 0xb8, 0, 0, 0, 1}, other[16], neighbour[16];
    memcpy(other, one, 16);
    memcpy(neighbour, one, 16);
    other[15] = 99;
    neighbour[7] = 2;
    CHECK(wspy_addresses_add(&addresses, one, 16) == 1);
    CHECK(wspy_addresses_add(&addresses, other, 16) == 2);
    CHECK(wspy_addresses_add(&addresses, neighbour, 16) == 1);
    wspy_addresses_free(&addresses);
}

TEST(who_comes_by_ipv4_to_a_socket_for_both_counts_by_ipv4)
{
    wspy_addresses addresses = {0};
    uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff, [12] = 192, [14] = 2, [15] = 1}, other[16];
    const uint8_t plain[4] = {192, 0, 2, 1};
    memcpy(other, mapped, 16);
    other[15] = 2;
    CHECK(wspy_addresses_add(&addresses, mapped, 16) == 1);
    CHECK(wspy_addresses_add(&addresses, other, 16) == 1);
    CHECK(wspy_addresses_add(&addresses, plain, 4) == 2);
    wspy_addresses_remove(&addresses, mapped, 16);
    CHECK(wspy_addresses_count(&addresses, plain, 4) == 1);
    CHECK(wspy_addresses_count(&addresses, other, 16) == 1);
    wspy_addresses_free(&addresses);
}

TEST(without_memory_nothing_is_counted)
{
    uint8_t address[16] = {0};
    for (uint32_t before = 0; before < 200; before++) {
        wspy_addresses addresses = {0};
        for (uint32_t number = 0; number < before; number++) {
            make_address(address, number);
            CHECK(wspy_addresses_add(&addresses, address, 16) == 1);
        }
        make_address(address, before);
        wspy_sys_fail(WSPY_SYS_ALLOCATE, 1, 1, ENOMEM, 0);
        int64_t count = wspy_addresses_add(&addresses, address, 16);
        wspy_sys_fail(WSPY_SYS_ALLOCATE, 0, 0, 0, 0);
        CHECK(count == 1 || (count == WSPY_ERROR_NO_MEMORY && addresses.used == before));
        for (uint32_t number = 0; number < before; number++) {
            make_address(address, number);
            CHECK(wspy_addresses_count(&addresses, address, 16) == 1);
        }
        wspy_addresses_free(&addresses);
    }
}
