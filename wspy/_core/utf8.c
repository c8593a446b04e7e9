/* utf8.c: where does a text stop being UTF-8? RFC 3629 §4, RFC 6455 §8.1.
 *
 * The judge is an automaton of nine states: it alone decides what is accepted and at which byte a text fails.
 * SIMD only finds stretches that the automaton need not see: it looks at WIDTH bytes at a time together with the
 * three before them, which is as far as a code point reaches back, so that every window of bytes 3 and up can be
 * judged alone and the last window may overlap its neighbour. When a window is bad, or at the end of the data,
 * the automaton goes over the last code point again and says which byte it was, or what is still missing.
 */
#include "core.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define HAVE_SIMD
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define HAVE_SIMD
#endif

/* ---- the automaton ---- */

/* What may come next. "Any" is a continuation byte 80..BF. */
enum {
    ACCEPT = WSPY_UTF8_ACCEPT,
    REJECT = WSPY_UTF8_REJECT,
    ONE,      /* any */
    TWO,      /* any, any */
    THREE,    /* any, any, any */
    AFTER_E0, /* A0..BF, any: below is overlong */
    AFTER_ED, /* 80..9F, any: above are surrogates */
    AFTER_F0, /* 90..BF, any, any: below is overlong */
    AFTER_F4, /* 80..8F, any, any: above is over U+10FFFF */
    STATE_COUNT
};

/* The successors of all states under one byte, six bits each: the successor of the state at bit 6 * s is the bit
 * position of the next state. So a step is one shift, and bytes are looked up ahead of it. */
#define BIT(state) (6 * (uint32_t)(state))
#define SUCCESSOR(state, next) ((uint64_t)BIT(next) << BIT(state))
#define ALL_REJECT                                                                                             \
    (SUCCESSOR(ACCEPT, REJECT) | SUCCESSOR(REJECT, REJECT) | SUCCESSOR(ONE, REJECT) | SUCCESSOR(TWO, REJECT) | \
     SUCCESSOR(THREE, REJECT) | SUCCESSOR(AFTER_E0, REJECT) | SUCCESSOR(AFTER_ED, REJECT) |                    \
     SUCCESSOR(AFTER_F0, REJECT) | SUCCESSOR(AFTER_F4, REJECT))
/* In a row that starts as ALL_REJECT: not REJECT but next. */
#define BUT(state, next) (SUCCESSOR(state, REJECT) ^ SUCCESSOR(state, next))
#define LEAD(next) (ALL_REJECT ^ BUT(ACCEPT, next))
#define CONTINUATION (ALL_REJECT ^ BUT(ONE, ACCEPT) ^ BUT(TWO, ONE) ^ BUT(THREE, TWO))

static const uint64_t successors[256] = {
    [0x00 ... 0x7f] = LEAD(ACCEPT),
    [0x80 ... 0x8f] = CONTINUATION ^ BUT(AFTER_ED, ONE) ^ BUT(AFTER_F4, TWO),
    [0x90 ... 0x9f] = CONTINUATION ^ BUT(AFTER_ED, ONE) ^ BUT(AFTER_F0, TWO),
    [0xa0 ... 0xbf] = CONTINUATION ^ BUT(AFTER_E0, ONE) ^ BUT(AFTER_F0, TWO),
    [0xc0 ... 0xc1] = ALL_REJECT,
    [0xc2 ... 0xdf] = LEAD(ONE),
    [0xe0] = LEAD(AFTER_E0),
    [0xe1 ... 0xec] = LEAD(TWO),
    [0xed] = LEAD(AFTER_ED),
    [0xee ... 0xef] = LEAD(TWO),
    [0xf0] = LEAD(AFTER_F0),
    [0xf1 ... 0xf3] = LEAD(THREE),
    [0xf4] = LEAD(AFTER_F4),
    [0xf5 ... 0xff] = ALL_REJECT,
};

static inline uint32_t step(uint32_t bit, uint8_t byte)
{
    return (uint32_t)(successors[byte] >> bit) & 63;
}

/* Step from data[i] to the end or to the first bad byte. */
static size_t run(uint32_t *state, const uint8_t *data, size_t i, size_t length)
{
    uint32_t bit = BIT(*state);
    for (; i < length; i++) {
        bit = step(bit, data[i]);
        if (bit == BIT(REJECT))
            break;
    }
    *state = bit / BIT(1);
    return i;
}

/* ---- eight bytes at a time ---- */

#define HIGH_BITS 0x8080808080808080

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline uint32_t load32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

#define SHORT_MAX 32

/* For up to SHORT_MAX bytes, by words that overlap; 0 also if there are too few bytes for a word. */
static inline int short_is_ascii(const uint8_t *data, size_t length)
{
    uint64_t bits = HIGH_BITS;
    if (length >= 16)
        bits = load64(data) | load64(data + 8) | load64(data + length - 16) | load64(data + length - 8);
    else if (length >= 8)
        bits = load64(data) | load64(data + length - 8);
    else if (length >= 4)
        bits = load32(data) | load32(data + length - 4);
    return (bits & HIGH_BITS) == 0;
}

static inline uint32_t step_eight(uint32_t bit, const uint8_t *data)
{
    for (size_t k = 0; k < 8; k++)
        bit = step(bit, data[k]);
    return bit;
}

static size_t feed_scalar(uint32_t *state, const uint8_t *data, size_t length)
{
    uint32_t bit = BIT(*state);
    size_t i = 0;
    for (; length - i >= 8; i += 8) {
        if (bit == BIT(ACCEPT) && (load64(data + i) & HIGH_BITS) == 0)
            continue;
        uint32_t next = step_eight(bit, data + i);
        if (next == BIT(REJECT))
            break;
        bit = next;
    }
    *state = bit / BIT(1);
    return run(state, data, i, length);
}

#if defined(HAVE_SIMD)

/* ---- WIDTH bytes at a time ----
 *
 * Which pairs of neighbours can't stand in any text: three tables, by the first byte's high and low half and by
 * the second byte's high half, name kinds of faults, and a pair has the faults that all three name. What a pair
 * can't tell, whether a second continuation byte in a row is due, the bytes two and three places before tell.
 * J. Keiser and D. Lemire, "Validating UTF-8 In Less Than One Instruction Per Byte", 2021. */
enum {
    SHORT = 1,         /* a lead byte and no continuation byte after it */
    LONG = 2,          /* a continuation byte after ASCII */
    OVERLONG_2 = 4,    /* C0, C1 */
    OVERLONG_3 = 8,    /* E0 80..9F */
    SURROGATE = 16,    /* ED A0..BF */
    BAD_F_8 = 32,      /* F0 80..8F is overlong, F5..FF 80..8F over U+10FFFF */
    BAD_F_9_TO_B = 64, /* F4..FF 90..BF is over U+10FFFF */
    SECOND = 128,      /* a second continuation byte: a fault exactly if none is due */
    ANY = SHORT | LONG | SECOND
};

static const uint8_t first_high[16] = {
    [0x0 ... 0x7] = LONG,
    [0x8 ... 0xb] = SECOND,
    [0xc] = SHORT | OVERLONG_2,
    [0xd] = SHORT,
    [0xe] = SHORT | OVERLONG_3 | SURROGATE,
    [0xf] = SHORT | BAD_F_8 | BAD_F_9_TO_B,
};

static const uint8_t first_low[16] = {
    [0x0] = ANY | OVERLONG_2 | OVERLONG_3 | BAD_F_8,
    [0x1] = ANY | OVERLONG_2,
    [0x2 ... 0x3] = ANY,
    [0x4] = ANY | BAD_F_9_TO_B,
    [0x5 ... 0xc] = ANY | BAD_F_8 | BAD_F_9_TO_B,
    [0xd] = ANY | BAD_F_8 | BAD_F_9_TO_B | SURROGATE,
    [0xe ... 0xf] = ANY | BAD_F_8 | BAD_F_9_TO_B,
};

static const uint8_t second_high[16] = {
    [0x0 ... 0x7] = SHORT,
    [0x8] = LONG | SECOND | OVERLONG_2 | OVERLONG_3 | BAD_F_8,
    [0x9] = LONG | SECOND | OVERLONG_2 | OVERLONG_3 | BAD_F_9_TO_B,
    [0xa ... 0xb] = LONG | SECOND | OVERLONG_2 | SURROGATE | BAD_F_9_TO_B,
    [0xc ... 0xf] = SHORT,
};

/* From a byte that is due a second (E0 and up) or third (F0 and up) continuation byte, subtracting this with
 * saturation leaves bit 7, SECOND, and from no other. */
#define DUE_SECOND (0xe0 - SECOND)
#define DUE_THIRD (0xf0 - SECOND)

#if defined(__x86_64__)

#define SIMD __attribute__((target("avx2")))
#define WIDTH 32
typedef __m256i vector;

SIMD static inline vector load(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

SIMD static inline vector fill(uint8_t byte)
{
    return _mm256_set1_epi8((char)byte);
}

SIMD static inline int is_ascii(vector bytes)
{
    return _mm256_movemask_epi8(bytes) == 0;
}

SIMD static inline int is_zero(vector bytes)
{
    return _mm256_testz_si256(bytes, bytes);
}

SIMD static inline vector high_halves(vector bytes)
{
    return _mm256_srli_epi16(bytes, 4) & fill(0x0f);
}

SIMD static inline vector subtract(vector bytes, uint8_t amount)
{
    return _mm256_subs_epu8(bytes, fill(amount));
}

SIMD static inline vector look_up(const uint8_t *table, vector halves)
{
    __m128i row = _mm_loadu_si128((const __m128i *)(const void *)table);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), halves);
}

static int has_simd(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

#else

#define SIMD
#define WIDTH 16
typedef uint8x16_t vector;

static inline vector load(const uint8_t *at)
{
    return vld1q_u8(at);
}

static inline vector fill(uint8_t byte)
{
    return vdupq_n_u8(byte);
}

static inline int is_ascii(vector bytes)
{
    return vmaxvq_u8(bytes) < 0x80;
}

static inline int is_zero(vector bytes)
{
    return vmaxvq_u8(bytes) == 0;
}

static inline vector high_halves(vector bytes)
{
    return vshrq_n_u8(bytes, 4);
}

static inline vector subtract(vector bytes, uint8_t amount)
{
    return vqsubq_u8(bytes, fill(amount));
}

static inline vector look_up(const uint8_t *table, vector halves)
{
    return vqtbl1q_u8(vld1q_u8(table), halves);
}

static int has_simd(void)
{
    return 1;
}

#endif

/* How many bytes come before the one a window may start at. */
#define BEFORE 3

/* Zero if no byte of the window at data is at fault; a fault that a byte shares with its predecessors counts in
 * the window of the last of them. */
SIMD static inline vector faults(const uint8_t *data)
{
    vector first = load(data - 1);
    vector pairs = look_up(first_high, high_halves(first)) & look_up(first_low, first & fill(0x0f)) &
                   look_up(second_high, high_halves(load(data)));
    vector due = subtract(load(data - 2), DUE_SECOND) | subtract(load(data - 3), DUE_THIRD);
    return pairs ^ (due & fill(SECOND));
}

/* How many bytes are known to be ASCII: all, or a multiple of WIDTH. For WIDTH bytes and more. */
SIMD static inline size_t ascii_run(const uint8_t *data, size_t length)
{
    size_t i = 0;
    for (; length - i >= 4 * WIDTH; i += 4 * WIDTH) {
        vector low = load(data + i) | load(data + i + WIDTH);
        vector high = load(data + i + 2 * WIDTH) | load(data + i + 3 * WIDTH);
        if (!is_ascii(low | high))
            break;
    }
    for (; length - i >= WIDTH; i += WIDTH) {
        if (!is_ascii(load(data + i)))
            return i;
    }
    return is_ascii(load(data + length - WIDTH)) ? length : i;
}

/* The windows from data[i], i >= BEFORE, up to the end or the first bad pair of windows: all before it is clean,
 * but for a code point that may still be open there. */
SIMD static inline size_t clean_run(const uint8_t *data, size_t i, size_t length)
{
    for (; length - i >= 2 * WIDTH; i += 2 * WIDTH) {
        if (data[i - 1] < 0x80 && is_ascii(load(data + i) | load(data + i + WIDTH)))
            continue;
        if (!is_zero(faults(data + i) | faults(data + i + WIDTH)))
            return i;
    }
    vector rest = faults(data + length - WIDTH);
    if (length - i > WIDTH)
        rest |= faults(data + i);
    return is_zero(rest) ? length : i;
}

/* Where the code point starts that may be open before data[i], i >= BEFORE; i if there is none. */
static inline size_t open_code_point(const uint8_t *data, size_t i)
{
    for (size_t back = 1; back <= BEFORE; back++) {
        if (data[i - back] < 0x80)
            break;
        if (data[i - back] >= 0xc0)
            return i - back;
    }
    return i;
}

SIMD static size_t feed_windows(uint32_t *state, const uint8_t *data, size_t length)
{
    size_t i = *state == ACCEPT ? ascii_run(data, length) : 0;
    if (i == length)
        return length;
    while (i < BEFORE || *state != ACCEPT) {
        i = run(state, data, i, i + 1);
        if (*state == REJECT)
            return i;
    }
    i = clean_run(data, i, length);
    return run(state, data, open_code_point(data, i), length);
}

/* Not itself SIMD: GCC 12 forgets to clean the vector registers before a function that it jumps to, and all SSE
 * code after that is slow. */
static size_t feed_simd(uint32_t *state, const uint8_t *data, size_t length)
{
    if (length < WIDTH + BEFORE)
        return feed_scalar(state, data, length);
    return feed_windows(state, data, length);
}

#endif

/* ---- the choice ---- */

static size_t (*feed)(uint32_t *state, const uint8_t *data, size_t length) = feed_scalar;

int wspy_utf8_select(int implementation)
{
#if defined(HAVE_SIMD)
    if (implementation != 0 && has_simd()) {
        feed = feed_simd;
        return 1;
    }
#endif
    (void)implementation;
    feed = feed_scalar;
    return 0;
}

/* While the library is loaded, before any thread can validate. */
__attribute__((constructor)) static void select_best(void)
{
    wspy_utf8_select(1);
}

size_t wspy_utf8_feed(uint32_t *state, const uint8_t *data, size_t length)
{
    if (*state == ACCEPT && length <= SHORT_MAX && short_is_ascii(data, length))
        return length;
    if (*state >= STATE_COUNT)
        *state = REJECT;
    return feed(state, data, length);
}
