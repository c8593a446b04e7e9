// Is a request head judged the same however it is cut, and never beyond its limits?
// links: head.c
// options: -max_len=2048
#include "core.h"

#include <stdlib.h>
#include <string.h>

#define HEADER 8 /* what the cuts follow from, then the limits */
#define WHOLE 0

typedef struct {
    wspy_head_scanner scanner;
    int result; /* 1: complete, 0: more bytes are needed, or an error */
} outcome;

static void require(int condition)
{
    if (!condition)
        abort();
}

/* Feeds one part, which ends where the memory ends, so that the sanitizer sees one byte too far. */
static void feed(outcome *o, const wspy_head_limits *limits, const uint8_t *part, uint32_t length)
{
    uint32_t before = o->scanner.size;
    int result = wspy_head_feed(&o->scanner, limits, part, length);
    uint32_t taken = o->scanner.size - before;
    require((result > 0) == (o->scanner.state == WSPY_HEAD_COMPLETE));
    require(result > 0 ? (uint32_t)result == taken : result < 0 ? taken < length : taken == length);
    require(o->scanner.size <= limits->max_size && o->scanner.fields <= limits->max_fields);
    o->result = result > 0 ? 1 : result;
}

/* An end is for ever. */
static void check_end(const outcome *o, const wspy_head_limits *limits)
{
    wspy_head_scanner scanner = o->scanner;
    int result = wspy_head_feed(&scanner, limits, (const uint8_t *)"\r\n", 2);
    require(o->result == 0 || result == (o->result < 0 ? o->result : 0));
    require(o->result == 0 || memcmp(&scanner, &o->scanner, sizeof scanner) == 0);
    require(o->result != 1 || wspy_head_has_line(&scanner));
}

static outcome scan(const wspy_head_limits *limits, const uint8_t *data, uint32_t length, uint32_t seed,
                    uint32_t most)
{
    outcome o;
    memset(&o, 0, sizeof o);
    uint8_t *memory = malloc(length + 1);
    require(memory != NULL);
    uint8_t *end = memory + length + 1;
    for (uint32_t at = 0; at < length && o.result == 0;) {
        seed = seed * 1664525 + 1013904223;
        uint32_t part = most == WHOLE ? length : (seed >> 16) % most + 1;
        part = part < length - at ? part : length - at;
        memcpy(end - part, data + at, part);
        feed(&o, limits, end - part, part);
        at += part;
    }
    free(memory);
    check_end(&o, limits);
    return o;
}

/* A complete head is lines that end with CRLF and have no other CR or LF, of which the last one is empty. */
static void check_lines(const uint8_t *data, uint32_t size)
{
    require(size >= 4 && memcmp(data + size - 4, "\r\n\r\n", 4) == 0);
    for (uint32_t i = 0; i < size; i++) {
        require(data[i] != '\r' || data[i + 1] == '\n');
        require(data[i] != '\n' || data[i - 1] == '\r');
        require(data[i] != '\0' && data[i] != 0x7f);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < HEADER)
        return 0;
    uint32_t seed;
    memcpy(&seed, input, sizeof seed);
    wspy_head_limits limits = {input[4] * 4U, input[5] * 4U, input[6] * 8U, input[7] % 16U};
    const uint8_t *data = input + HEADER;
    uint32_t length = (uint32_t)(size - HEADER);
    outcome whole = scan(&limits, data, length, seed, WHOLE);
    outcome bytes = scan(&limits, data, length, seed, 1);
    outcome parts = scan(&limits, data, length, seed, 40);
    require(memcmp(&whole, &bytes, sizeof whole) == 0 && memcmp(&whole, &parts, sizeof whole) == 0);
    if (whole.result == 1)
        check_lines(data, whole.scanner.size);
    return 0;
}
