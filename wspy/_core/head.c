/* head.c: where does a request head end, and at which byte can it no longer be one? RFC 9112 §2 to §5.
 *
 * Only what decides where lines and field names end is judged here, so that two parsers can't disagree about it,
 * and bytes that belong nowhere; the finer grammar of a complete head is judged elsewhere. Each state takes as
 * many bytes as it can at once. No decision depends on how many bytes a call brings: a limit ends the run of a
 * state just as the end of the data does, and only then is the byte behind it looked at.
 *
 * Where one byte breaks several rules the order is: size of the head, length of the line, the rest.
 */
#include "core.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#define HAVE_SIMD
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define HAVE_SIMD
#endif

#define MAX_METHOD 32
#define MAX_EMPTY_LINES 5

enum {
    START,        /* before the request line */
    START_LF,     /* of an empty line */
    METHOD,       /* of the request line */
    REQUEST_LINE, /* the rest of it */
    REQUEST_LINE_LF,
    LINE_START, /* of a field line, or the empty line that ends the head; from here on the request line is complete */
    FIELD_NAME,
    FIELD_VALUE,
    FIELD_LF,
    END_LF,
    /* FAILED | what the error is below WSPY_ERROR_HEAD_SYNTAX | AFTER_LINE; WSPY_HEAD_COMPLETE has both bits too */
    AFTER_LINE = 0x40,
    FAILED = 0x80
};

/* ---- which bytes may stand where ---- */

enum {
    TOKEN = 1, /* tchar, RFC 9110 §5.6.2 */
    LINE = 2,  /* SP and VCHAR: the request line, RFC 9112 §3 */
    VALUE = 4, /* HTAB, SP, VCHAR and obs-text: a field value, RFC 9110 §5.5 */
    TEXT = LINE | VALUE
};

static const uint8_t classes[256] = {
    ['\t'] = VALUE,
    [' '] = TEXT,
    ['!'] = TEXT | TOKEN,
    ['"'] = TEXT,
    ['#' ... '\''] = TEXT | TOKEN,
    ['(' ... ')'] = TEXT,
    ['*' ... '+'] = TEXT | TOKEN,
    [','] = TEXT,
    ['-' ... '.'] = TEXT | TOKEN,
    ['/'] = TEXT,
    ['0' ... '9'] = TEXT | TOKEN,
    [':' ... '@'] = TEXT,
    ['A' ... 'Z'] = TEXT | TOKEN,
    ['[' ... ']'] = TEXT,
    ['^' ... 'z'] = TEXT | TOKEN,
    ['{'] = TEXT,
    ['|'] = TEXT | TOKEN,
    ['}'] = TEXT,
    ['~'] = TEXT | TOKEN,
    [0x80 ... 0xff] = VALUE,
};

static inline int is(uint8_t class, uint8_t byte)
{
    return (classes[byte] & class) != 0;
}

/* ---- to the first byte that is not of a class ---- */

static inline const uint8_t *skip_bytes(uint8_t class, const uint8_t *at, const uint8_t *end)
{
    while (at < end && is(class, *at))
        at++;
    return at;
}

#if defined(HAVE_SIMD)

#define WIDTH 16

#if defined(__x86_64__)

typedef __m128i vector;

static inline vector load(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

static inline vector fill(uint8_t byte)
{
    return _mm_set1_epi8((char)byte);
}

static inline vector equal(vector bytes, uint8_t byte)
{
    return _mm_cmpeq_epi8(bytes, fill(byte));
}

static inline vector at_most(vector bytes, uint8_t byte)
{
    return _mm_cmpeq_epi8(_mm_min_epu8(bytes, fill(byte)), bytes);
}

static inline vector minus(vector bytes, uint8_t amount)
{
    return _mm_sub_epi8(bytes, fill(amount));
}

/* BITS for each byte, which is all ones or all zeros */
#define BITS 1
static inline uint64_t to_bits(vector bytes)
{
    return (uint64_t)(unsigned)_mm_movemask_epi8(bytes);
}

#else

typedef uint8x16_t vector;

static inline vector load(const uint8_t *at)
{
    return vld1q_u8(at);
}

static inline vector fill(uint8_t byte)
{
    return vdupq_n_u8(byte);
}

static inline vector equal(vector bytes, uint8_t byte)
{
    return vceqq_u8(bytes, fill(byte));
}

static inline vector at_most(vector bytes, uint8_t byte)
{
    return vcleq_u8(bytes, fill(byte));
}

static inline vector minus(vector bytes, uint8_t amount)
{
    return vsubq_u8(bytes, fill(amount));
}

#define BITS 4
static inline uint64_t to_bits(vector bytes)
{
    return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(bytes), 4)), 0);
}

#endif

static inline vector not_line(vector bytes)
{
    return ~at_most(minus(bytes, ' '), '~' - ' ');
}

static inline vector not_value(vector bytes)
{
    return (at_most(bytes, 0x1f) & ~equal(bytes, '\t')) | equal(bytes, 0x7f);
}

/* Of the token bytes only those that names are made of as a rule. */
static inline vector not_usual_name(vector bytes)
{
    vector letters = at_most(minus(bytes | fill(0x20), 'a'), 'z' - 'a');
    vector digits = at_most(minus(bytes, '0'), '9' - '0');
    return ~(letters | digits | equal(bytes, '-'));
}

/* As far as whole vectors reach; what is left is for skip_bytes. */
static inline const uint8_t *skip_vectors(vector (*unfit)(vector), const uint8_t *at, const uint8_t *end)
{
    for (; end - at >= WIDTH; at += WIDTH) {
        uint64_t bits = to_bits(unfit(load(at)));
        if (bits != 0)
            return at + __builtin_ctzll(bits) / BITS;
    }
    return at;
}

#else

#define skip_vectors(unfit, at, end) (at)

#endif

static inline const uint8_t *skip_line(const uint8_t *at, const uint8_t *end)
{
    return skip_bytes(LINE, skip_vectors(not_line, at, end), end);
}

static inline const uint8_t *skip_value(const uint8_t *at, const uint8_t *end)
{
    return skip_bytes(VALUE, skip_vectors(not_value, at, end), end);
}

static inline const uint8_t *skip_name(const uint8_t *at, const uint8_t *end)
{
    return skip_bytes(TOKEN, skip_vectors(not_usual_name, at, end), end);
}

/* ---- the states ---- */

typedef struct {
    wspy_head_scanner *scanner;
    const wspy_head_limits *limits;
    const uint8_t *at;  /* the next byte to judge */
    const uint8_t *end; /* of the data, or of what max_size leaves of it */
} scan;

/* Where a run must end so that the line stays within its limit. */
static inline const uint8_t *line_end(const scan *s, uint32_t limit)
{
    uint32_t room = limit - s->scanner->line;
    return (size_t)(s->end - s->at) > room ? s->at + room : s->end;
}

static inline void take(scan *s, const uint8_t *to)
{
    s->scanner->line += (uint32_t)(to - s->at);
    s->at = to;
}

static inline int go(scan *s, uint8_t state)
{
    s->at++;
    s->scanner->state = state;
    return WSPY_OK;
}

/* RFC 9112 §2.2: a bare CR is no line end, and a bare LF is none here either (it may be refused). */
static inline int line_feed(scan *s, uint8_t next)
{
    if (*s->at != '\n')
        return WSPY_ERROR_HEAD_SYNTAX;
    s->scanner->line = 0;
    return go(s, next);
}

/* The byte at s->at does not fit. CR is no part of a line, so it can't make the line too long. */
static inline int misfit(const scan *s, uint32_t limit, int limit_error)
{
    return s->scanner->line >= limit && *s->at != '\r' ? limit_error : WSPY_ERROR_HEAD_SYNTAX;
}

static int method(scan *s)
{
    uint32_t max_line = s->limits->max_line;
    uint32_t max = max_line < MAX_METHOD ? max_line : MAX_METHOD;
    take(s, skip_bytes(TOKEN, s->at, line_end(s, max)));
    if (s->at == s->end)
        return WSPY_OK;
    uint32_t length = s->scanner->line;
    if (*s->at == ' ' && length > 0 && length < max_line) {
        s->scanner->line++;
        return go(s, REQUEST_LINE);
    }
    if (length == MAX_METHOD && length < max_line && is(TOKEN, *s->at))
        return WSPY_ERROR_HEAD_METHOD;
    return misfit(s, max_line, WSPY_ERROR_HEAD_LINE);
}

/* RFC 9112 §2.2: empty lines before the request line should be ignored. */
static int start(scan *s)
{
    if (*s->at != '\r') {
        s->scanner->state = METHOD;
        return method(s);
    }
    if (s->scanner->empty_lines == MAX_EMPTY_LINES)
        return WSPY_ERROR_HEAD_SYNTAX;
    s->scanner->empty_lines++;
    return go(s, START_LF);
}

static int request_line(scan *s)
{
    uint32_t max = s->limits->max_line;
    take(s, skip_line(s->at, line_end(s, max)));
    if (s->at == s->end)
        return WSPY_OK;
    if (*s->at == '\r')
        return go(s, REQUEST_LINE_LF);
    return misfit(s, max, WSPY_ERROR_HEAD_LINE);
}

/* RFC 9112 §5.1: no whitespace between the field name and the colon. */
static int field_name(scan *s)
{
    uint32_t max = s->limits->max_field;
    take(s, skip_name(s->at, line_end(s, max)));
    if (s->at == s->end)
        return WSPY_OK;
    if (*s->at == ':' && s->scanner->line < max) {
        s->scanner->line++;
        return go(s, FIELD_VALUE);
    }
    return misfit(s, max, WSPY_ERROR_HEAD_FIELD);
}

/* A line that starts with whitespace is neither a field nor, RFC 9112 §5.2 and §2.2, folded into the one before. */
static int line_start(scan *s)
{
    if (*s->at == '\r')
        return go(s, END_LF);
    if (!is(TOKEN, *s->at))
        return WSPY_ERROR_HEAD_SYNTAX;
    if (s->scanner->fields >= s->limits->max_fields || s->scanner->fields == UINT16_MAX)
        return WSPY_ERROR_HEAD_FIELD_COUNT;
    s->scanner->state = FIELD_NAME;
    return field_name(s);
}

static int field_value(scan *s)
{
    uint32_t max = s->limits->max_field;
    take(s, skip_value(s->at, line_end(s, max)));
    if (s->at == s->end)
        return WSPY_OK;
    if (*s->at == '\r')
        return go(s, FIELD_LF);
    return misfit(s, max, WSPY_ERROR_HEAD_FIELD);
}

static int field_line_feed(scan *s)
{
    int error = line_feed(s, LINE_START);
    if (error == WSPY_OK)
        s->scanner->fields++;
    return error;
}

static int advance(scan *s)
{
    switch (s->scanner->state) {
    case START:
        return start(s);
    case START_LF:
        return line_feed(s, START);
    case METHOD:
        return method(s);
    case REQUEST_LINE:
        return request_line(s);
    case REQUEST_LINE_LF:
        return line_feed(s, LINE_START);
    case LINE_START:
        return line_start(s);
    case FIELD_NAME:
        return field_name(s);
    case FIELD_VALUE:
        return field_value(s);
    case FIELD_LF:
        return field_line_feed(s);
    case END_LF:
        return line_feed(s, WSPY_HEAD_COMPLETE);
    default: /* no state of ours */
        return WSPY_ERROR_HEAD_SYNTAX;
    }
}

/* ---- the scanner ---- */

int wspy_head_has_line(const wspy_head_scanner *scanner)
{
    if (scanner->state & FAILED)
        return (scanner->state & AFTER_LINE) != 0;
    return scanner->state >= LINE_START;
}

/* Errors are sticky: the state keeps them. */
static int fail(wspy_head_scanner *scanner, int error)
{
    int after_line = wspy_head_has_line(scanner) ? AFTER_LINE : 0;
    scanner->state = (uint8_t)(FAILED | after_line | (WSPY_ERROR_HEAD_SYNTAX - error));
    return error;
}

static int ended(const wspy_head_scanner *scanner)
{
    if (scanner->state == WSPY_HEAD_COMPLETE)
        return 0;
    return WSPY_ERROR_HEAD_SYNTAX - (scanner->state & ~(FAILED | AFTER_LINE));
}

int wspy_head_feed(wspy_head_scanner *scanner, const wspy_head_limits *limits, const uint8_t *data,
                   uint32_t length)
{
    if (scanner->state & FAILED)
        return ended(scanner);
    if (length == 0)
        return 0;
    uint32_t max_size = limits->max_size < INT32_MAX ? limits->max_size : INT32_MAX;
    uint32_t room = max_size - scanner->size;
    scan s = {scanner, limits, data, data + (length < room ? length : room)};
    int error = WSPY_OK;
    while (s.at < s.end && error == WSPY_OK && scanner->state != WSPY_HEAD_COMPLETE)
        error = advance(&s);
    uint32_t taken = (uint32_t)(s.at - data);
    scanner->size += taken;
    if (scanner->state == WSPY_HEAD_COMPLETE)
        return (int)taken;
    if (error == WSPY_OK && taken < length)
        error = WSPY_ERROR_HEAD_SIZE;
    return error == WSPY_OK ? 0 : fail(scanner, error);
}
