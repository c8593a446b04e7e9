/* frame.c: the header of a frame, to and from bytes (RFC 6455 §5.2). Pure; knows no rules beyond the header. */
#include <string.h>

#include "core.h"

static uint64_t read_big_endian(const uint8_t *data, int size)
{
    uint64_t value = 0;
    for (int i = 0; i < size; i++)
        value = value << 8 | data[i];
    return value;
}

int wspy_frame_decode(const uint8_t *data, size_t length, wspy_frame_header *header)
{
    if (length < 2)
        return 0;
    header->flags = data[0] & 0xf0;
    header->opcode = data[0] & 0x0f;
    header->masked = data[1] >> 7;
    header->length = data[1] & 0x7f;
    int extended = header->length < 126 ? 0 : header->length == 126 ? 2 : 8;
    int key_at = 2 + extended;
    int size = key_at + 4 * header->masked;
    if (length < (size_t)key_at)
        return 0;
    int result = length < (size_t)size ? 0 : size;
    if (header->masked && result)
        memcpy(header->masking_key, data + key_at, 4);
    if (!extended)
        return result;
    header->length = read_big_endian(data + 2, extended);
    if (header->length >> 63) /* §5.2: "the most significant bit MUST be 0" */
        return WSPY_ERROR_LENGTH_RANGE;
    if (header->length < 126 || (extended == 8 && header->length <= UINT16_MAX))
        return WSPY_ERROR_LENGTH_FORM; /* §5.2: "the minimal number of bytes MUST be used" */
    return result;
}

int wspy_frame_encode(uint8_t *output, const wspy_frame_header *header)
{
    int extended = header->length < 126 ? 0 : header->length <= UINT16_MAX ? 2 : 8;
    uint8_t field = extended == 0 ? (uint8_t)header->length : extended == 2 ? 126 : 127;
    output[0] = (uint8_t)(header->flags | header->opcode);
    output[1] = (uint8_t)((header->masked ? WSPY_MASK_BIT : 0) | field);
    for (int i = 0; i < extended; i++)
        output[2 + i] = (uint8_t)(header->length >> (8 * (extended - 1 - i)));
    if (!header->masked)
        return 2 + extended;
    memcpy(output + 2 + extended, header->masking_key, 4);
    return 6 + extended;
}
