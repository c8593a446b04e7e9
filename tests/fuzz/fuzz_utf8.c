// Is a text judged as by decoding it code point by code point, and the same however it is cut?
// links: utf8.c
// options: -max_len=1024
#include "core.h"

#include <stdlib.h>
#include <string.h>

#define HEADER 4 /* what the cuts follow from */

/* RFC 3629 §3: whether some code point starts with these bits, of which so many bytes are still to come. */
static int is_possible(uint32_t bits, unsigned missing, uint32_t least)
{
    uint32_t low = bits << (6 * missing);
    uint32_t high = low | ((1U << (6 * missing)) - 1);
    return high >= least && low <= 0x10ffff && !(low >= 0xd800 && high <= 0xdfff);
}

/* Reads one code point at data[*i], and leaves *i behind it, or at the first byte that is bad, or at the end. */
static uint32_t read_code_point(const uint8_t *data, size_t length, size_t *i)
{
    static const struct {
        uint8_t mask, prefix;
        uint32_t least;
    } forms[] = {{0x80, 0, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    uint8_t lead = data[*i];
    unsigned form = 0;
    while (form < 4 && (lead & forms[form].mask) != forms[form].prefix)
        form++;
    if (form == 4)
        return WSPY_UTF8_REJECT;
    uint32_t bits = lead & (uint8_t)~forms[form].mask;
    for (unsigned missing = form; is_possible(bits, missing, forms[form].least); missing--) {
        ++*i;
        if (missing == 0)
            return WSPY_UTF8_ACCEPT;
        if (*i == length)
            return WSPY_UTF8_REJECT + 1;
        if ((data[*i] & 0xc0) != 0x80)
            return WSPY_UTF8_REJECT;
        bits = bits << 6 | (data[*i] & 0x3f);
    }
    return WSPY_UTF8_REJECT;
}

/* Returns how many bytes are accepted; *state is ACCEPT, REJECT, or more if the end is inside a code point. */
static size_t naive(uint32_t *state, const uint8_t *data, size_t length)
{
    size_t i = 0;
    *state = WSPY_UTF8_ACCEPT;
    while (i < length && *state == WSPY_UTF8_ACCEPT)
        *state = read_code_point(data, length, &i);
    return i;
}

static void require(int condition)
{
    if (!condition)
        abort();
}

/* Feeds data in memory that ends where the data ends, so that the sanitizer sees one byte too far. */
static size_t feed(uint32_t *state, const uint8_t *data, size_t length)
{
    uint8_t *memory = malloc(length == 0 ? 1 : length);
    require(memory != NULL);
    if (length > 0)
        memcpy(memory, data, length);
    size_t accepted = wspy_utf8_feed(state, memory, length);
    free(memory);
    require(accepted <= length && (accepted == length || *state == WSPY_UTF8_REJECT));
    return accepted;
}

static size_t feed_parts(uint32_t *state, const uint8_t *data, size_t length, uint32_t seed)
{
    size_t at = 0;
    while (at < length && *state != WSPY_UTF8_REJECT) {
        seed = seed * 1664525 + 1013904223;
        size_t part = (seed >> 16) % (seed >> 31 ? 5 : 150);
        at += feed(state, data + at, part < length - at ? part : length - at);
    }
    return at;
}

static void compare(const uint8_t *data, size_t length, uint32_t seed)
{
    uint32_t expected, whole = WSPY_UTF8_ACCEPT, parts = WSPY_UTF8_ACCEPT;
    size_t accepted = naive(&expected, data, length);
    require(feed(&whole, data, length) == accepted && feed_parts(&parts, data, length, seed) == accepted);
    require(whole == parts && (whole > WSPY_UTF8_REJECT ? WSPY_UTF8_REJECT + 1 : whole) == expected);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < HEADER)
        return 0;
    uint32_t seed;
    memcpy(&seed, input, sizeof seed);
    for (int implementation = 0; implementation < 2; implementation++) {
        wspy_utf8_select(implementation);
        compare(input + HEADER, size - HEADER, seed);
    }
    return 0;
}
