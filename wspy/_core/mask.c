/* mask.c: how is a payload masked? RFC 6455 §5.3.
 *
 * Masking is its own inverse, and the key repeats every four bytes: any part of a payload may be masked alone if
 * its key is rotated to the position where it starts. So nothing here has a byte-wise tail. Both ends of a run
 * are read before anything is stored, everything between is masked in whole vectors, and the ends are stored
 * last; where the pieces overlap they agree. No byte outside the run is read or written, and the output may be
 * the input.
 *
 * Most payloads are short: up to SHORT_MAX bytes no choice of implementation is made, and no loop runs.
 */
#include "core.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define HAVE_NEON
#endif

enum { SCALAR, SSE2, AVX2, NEON, IMPLEMENTATION_COUNT };

#define SHORT_MAX 16

/* Masks length > SHORT_MAX bytes; key is the masking key as it lies in memory, rotated to input[0]. */
typedef void masker(uint8_t *output, const uint8_t *input, size_t length, uint32_t key);

static inline uint32_t load32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline void store32(uint8_t *at, uint32_t word)
{
    memcpy(at, &word, sizeof word);
}

static inline void store64(uint8_t *at, uint64_t word)
{
    memcpy(at, &word, sizeof word);
}

/* The key for data that starts position bytes further on. Neither shift ever reaches 32. */
static inline uint32_t rotate(uint32_t key, size_t position)
{
    unsigned bits = 8 * (unsigned)(position & 3);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bits = (32 - bits) & 31;
#endif
    return key >> bits | key << ((32 - bits) & 31);
}

static inline uint64_t twice(uint32_t key)
{
    return (uint64_t)key << 32 | key;
}

/* 8 to 16 bytes */
static inline void mask_two_words(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint64_t first = load64(input) ^ twice(key);
    uint64_t last = load64(input + length - 8) ^ twice(rotate(key, length));
    store64(output, first);
    store64(output + length - 8, last);
}

/* 4 to 7 bytes */
static inline void mask_two_halves(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint32_t first = load32(input) ^ key;
    uint32_t last = load32(input + length - 4) ^ rotate(key, length);
    store32(output, first);
    store32(output + length - 4, last);
}

/* 0 to 3 bytes */
static inline void mask_bytes(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint8_t bytes[4];
    store32(bytes, key);
    for (size_t i = 0; i < length; i++)
        output[i] = input[i] ^ bytes[i];
}

static inline void mask_short(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    if (length >= 8)
        mask_two_words(output, input, length, key);
    else if (length >= 4)
        mask_two_halves(output, input, length, key);
    else
        mask_bytes(output, input, length, key);
}

static void mask_scalar(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint64_t last = load64(input + length - 8) ^ twice(rotate(key, length));
    for (size_t i = 0; i < length - 8; i += 8)
        store64(output + i, load64(input + i) ^ twice(key));
    store64(output + length - 8, last);
}

#if defined(__x86_64__)

static inline __m128i load128(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

static inline void store128(uint8_t *at, __m128i vector)
{
    _mm_storeu_si128((__m128i *)(void *)at, vector);
}

static void mask_sse2(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    __m128i keys = _mm_set1_epi32((int)key);
    __m128i last = _mm_xor_si128(load128(input + length - 16), _mm_set1_epi32((int)rotate(key, length)));
    size_t i = 0;
    for (; i + 64 < length; i += 64) {
        store128(output + i, _mm_xor_si128(load128(input + i), keys));
        store128(output + i + 16, _mm_xor_si128(load128(input + i + 16), keys));
        store128(output + i + 32, _mm_xor_si128(load128(input + i + 32), keys));
        store128(output + i + 48, _mm_xor_si128(load128(input + i + 48), keys));
    }
    for (; i + 16 < length; i += 16)
        store128(output + i, _mm_xor_si128(load128(input + i), keys));
    store128(output + length - 16, last);
}

#define TARGET_AVX2 __attribute__((target("avx2")))

TARGET_AVX2 static inline __m256i load256(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

TARGET_AVX2 static inline void store256(uint8_t *at, __m256i vector)
{
    _mm256_storeu_si256((__m256i *)(void *)at, vector);
}

/* 17 to 32 bytes */
static inline void mask_two_128(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    __m128i first = _mm_xor_si128(load128(input), _mm_set1_epi32((int)key));
    __m128i last = _mm_xor_si128(load128(input + length - 16), _mm_set1_epi32((int)rotate(key, length)));
    store128(output, first);
    store128(output + length - 16, last);
}

/* 33 to 64 bytes */
TARGET_AVX2 static inline void mask_two_256(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint32_t last_key = rotate(key, length);
    __m256i first = _mm256_xor_si256(load256(input), _mm256_set1_epi32((int)key));
    __m256i last = _mm256_xor_si256(load256(input + length - 32), _mm256_set1_epi32((int)last_key));
    store256(output, first);
    store256(output + length - 32, last);
}

/* 65 to 128 bytes */
TARGET_AVX2 static inline void mask_four_256(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    __m256i keys = _mm256_set1_epi32((int)key);
    __m256i last_keys = _mm256_set1_epi32((int)rotate(key, length));
    __m256i first = _mm256_xor_si256(load256(input), keys);
    __m256i second = _mm256_xor_si256(load256(input + 32), keys);
    __m256i third = _mm256_xor_si256(load256(input + length - 64), last_keys);
    __m256i last = _mm256_xor_si256(load256(input + length - 32), last_keys);
    store256(output, first);
    store256(output + 32, second);
    store256(output + length - 64, third);
    store256(output + length - 32, last);
}

/* 129 bytes and more: the stores between the ends are aligned, which no cache line split slows down. */
TARGET_AVX2 static inline void mask_many_256(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint32_t last_key = rotate(key, length);
    __m256i first = _mm256_xor_si256(load256(input), _mm256_set1_epi32((int)key));
    __m256i last = _mm256_xor_si256(load256(input + length - 32), _mm256_set1_epi32((int)last_key));
    size_t i = 32 - ((uintptr_t)output & 31);
    __m256i keys = _mm256_set1_epi32((int)rotate(key, i));
    for (; i + 128 <= length; i += 128) {
        store256(output + i, _mm256_xor_si256(load256(input + i), keys));
        store256(output + i + 32, _mm256_xor_si256(load256(input + i + 32), keys));
        store256(output + i + 64, _mm256_xor_si256(load256(input + i + 64), keys));
        store256(output + i + 96, _mm256_xor_si256(load256(input + i + 96), keys));
    }
    for (; i + 32 < length; i += 32)
        store256(output + i, _mm256_xor_si256(load256(input + i), keys));
    store256(output, first);
    store256(output + length - 32, last);
}

TARGET_AVX2 static void mask_avx2(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    if (length <= 32)
        mask_two_128(output, input, length, key);
    else if (length <= 64)
        mask_two_256(output, input, length, key);
    else if (length <= 128)
        mask_four_256(output, input, length, key);
    else
        mask_many_256(output, input, length, key);
}

#endif

#if defined(HAVE_NEON)

static void mask_neon(uint8_t *output, const uint8_t *input, size_t length, uint32_t key)
{
    uint8x16_t keys = vreinterpretq_u8_u32(vdupq_n_u32(key));
    uint8x16_t last_keys = vreinterpretq_u8_u32(vdupq_n_u32(rotate(key, length)));
    uint8x16_t last = veorq_u8(vld1q_u8(input + length - 16), last_keys);
    size_t i = 0;
    for (; i + 64 < length; i += 64) {
        vst1q_u8(output + i, veorq_u8(vld1q_u8(input + i), keys));
        vst1q_u8(output + i + 16, veorq_u8(vld1q_u8(input + i + 16), keys));
        vst1q_u8(output + i + 32, veorq_u8(vld1q_u8(input + i + 32), keys));
        vst1q_u8(output + i + 48, veorq_u8(vld1q_u8(input + i + 48), keys));
    }
    for (; i + 16 < length; i += 16)
        vst1q_u8(output + i, veorq_u8(vld1q_u8(input + i), keys));
    vst1q_u8(output + length - 16, last);
}

#endif

/* What this machine has; NULL for the rest. */
static masker *find(int implementation)
{
    switch (implementation) {
    case SCALAR:
        return mask_scalar;
#if defined(__x86_64__)
    case SSE2:
        return mask_sse2;
    case AVX2:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") ? mask_avx2 : NULL;
#elif defined(HAVE_NEON)
    case NEON:
        return mask_neon;
#endif
    default:
        return NULL;
    }
}

static masker *mask_long = mask_scalar;

int wspy_mask_select(int implementation)
{
    if (implementation < 0 || implementation >= IMPLEMENTATION_COUNT)
        implementation = IMPLEMENTATION_COUNT - 1;
    while (find(implementation) == NULL)
        implementation--;
    mask_long = find(implementation);
    return implementation;
}

/* While the library is loaded, before any thread can mask. */
__attribute__((constructor)) static void select_best(void)
{
    wspy_mask_select(-1);
}

static inline void mask(uint8_t *output, const uint8_t *input, size_t length, const uint8_t *masking_key,
                        size_t offset)
{
    uint32_t key = rotate(load32(masking_key), offset);
    if (length <= SHORT_MAX)
        mask_short(output, input, length, key);
    else
        mask_long(output, input, length, key);
}

void wspy_mask(uint8_t *data, size_t length, const uint8_t *masking_key, size_t offset)
{
    mask(data, data, length, masking_key, offset);
}

void wspy_mask_into(uint8_t *output, const uint8_t *input, size_t length, const uint8_t *masking_key,
                    size_t offset)
{
    mask(output, input, length, masking_key, offset);
}
