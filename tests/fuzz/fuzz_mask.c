// Is masked what a loop over single bytes masks, and nothing else? In place and into, in one piece and in two.
// links: mask.c
// options: -max_len=1024
#include "core.h"

#include <stdlib.h>
#include <string.h>

#define HEADER 8 /* implementation, key, alignment, offset, cut */

static void naive(uint8_t *data, size_t length, const uint8_t *masking_key, size_t offset)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(data[i] ^ masking_key[(offset + i) % 4]);
}

static void require(int condition)
{
    if (!condition)
        abort();
}

/* Memory that ends where the data ends, so that the sanitizer sees one byte too far; data is at *start. */
static uint8_t *copy(const uint8_t *data, size_t length, size_t alignment, uint8_t **start)
{
    uint8_t *memory = malloc(length + alignment + 1);
    require(memory != NULL);
    memset(memory, 0xa5, alignment + 1);
    *start = memory + alignment + 1;
    if (length > 0)
        memcpy(*start, data, length);
    return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < HEADER)
        return 0;
    const uint8_t *key = input + 1;
    size_t alignment = input[5] % 64;
    size_t offset = input[6];
    const uint8_t *data = input + HEADER;
    size_t length = size - HEADER;
    size_t cut = input[7] < length ? input[7] : length;
    wspy_mask_select(input[0] % 4);

    uint8_t *expected, *pieces, *output;
    uint8_t *memories[] = {copy(data, length, 0, &expected), copy(data, length, alignment, &pieces),
                           copy(data, length, 63 - alignment, &output)};
    naive(expected, length, key, offset);
    wspy_mask(pieces, cut, key, offset);
    wspy_mask(pieces + cut, length - cut, key, offset + cut);
    wspy_mask_into(output, data, length, key, offset);
    require(memcmp(pieces, expected, length) == 0 && pieces[-1] == 0xa5);
    require(memcmp(output, expected, length) == 0 && output[-1] == 0xa5);
    wspy_mask_into(output, output, length, key, offset);
    require(memcmp(output, data, length) == 0);
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
        free(memories[i]);
    return 0;
}
