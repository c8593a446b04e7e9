/* micro.c: what does a call cost without Python around it? micro.py compiles it and passes the functions.
 *
 * Each function returns the nanoseconds of count calls; the best of several is the caller's to choose.
 */
#define _POSIX_C_SOURCE 200809L

#include "core.h"

#include <string.h>
#include <time.h>

typedef void mask_function(uint8_t *data, size_t length, const uint8_t *masking_key, size_t offset);
/* picows: all whole vectors of data; returns how many bytes that is. */
typedef size_t mask_kernel(uint8_t *input, size_t length, size_t start, uint32_t masking_key, uint8_t *output);
typedef size_t utf8_function(uint32_t *state, const uint8_t *data, size_t length);
typedef int head_function(wspy_head_scanner *scanner, const wspy_head_limits *limits, const uint8_t *data,
                          uint32_t length);

double micro_mask(mask_function *mask, uint8_t *data, size_t length, size_t count);
double micro_mask_kernel(mask_kernel *mask, uint8_t *data, size_t length, size_t count);
double micro_utf8(utf8_function *feed, const uint8_t *data, size_t length, size_t count);
double micro_head(head_function *feed, const uint8_t *data, uint32_t length, size_t count);

static double now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

double micro_mask(mask_function *mask, uint8_t *data, size_t length, size_t count)
{
    const uint8_t masking_key[4] = {0x37, 0xfa, 0x21, 0x3d};
    double start = now_ns();
    for (size_t i = 0; i < count; i++)
        mask(data, length, masking_key, 0);
    return now_ns() - start;
}

double micro_mask_kernel(mask_kernel *mask, uint8_t *data, size_t length, size_t count)
{
    double start = now_ns();
    for (size_t i = 0; i < count; i++)
        mask(data, length, 0, 0x3d21fa37, data);
    return now_ns() - start;
}

double micro_utf8(utf8_function *feed, const uint8_t *data, size_t length, size_t count)
{
    double start = now_ns();
    for (size_t i = 0; i < count; i++) {
        uint32_t state = WSPY_UTF8_ACCEPT;
        feed(&state, data, length);
    }
    return now_ns() - start;
}

double micro_head(head_function *feed, const uint8_t *data, uint32_t length, size_t count)
{
    const wspy_head_limits limits = {8192, 8192, 65536, 100};
    double start = now_ns();
    for (size_t i = 0; i < count; i++) {
        wspy_head_scanner scanner;
        memset(&scanner, 0, sizeof scanner);
        feed(&scanner, &limits, data, length);
    }
    return now_ns() - start;
}
