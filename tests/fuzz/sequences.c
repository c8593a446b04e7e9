// Which inputs does a proof give to a fuzz target? Every third is made up, the others are mutations of a corpus.
#define _GNU_SOURCE
#include "sequences.h"

#include <dirent.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

enum { LENGTH_MAX = 1024, FILES_MAX = 4096, HANG_SECONDS = 10, TELL_EVERY = 1 << 16 };

typedef struct {
    uint8_t bytes[LENGTH_MAX];
    size_t length;
} script;

static script *corpus;
static size_t corpus_count;
static uint64_t number; /* of the input that runs */

/* ---- what goes wrong ---- */

/* Only what a signal handler may do. */
static void name_input(int signal_number)
{
    char text[80];
    int length = snprintf(text, sizeof text, "broken by input %llu\n", (unsigned long long)number);
    if (write(STDERR_FILENO, text, (size_t)length) < 0)
        _exit(2);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* A sanitizer that has found something aborts, and so says which input it was. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "abort_on_error=1:handle_abort=0:handle_segv=0";
}

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "abort_on_error=1:print_stacktrace=1";
}

/* ---- chance ---- */

static uint64_t state;

/* splitmix64 */
static uint64_t chance(void)
{
    uint64_t value = state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static size_t below(size_t end)
{
    return (size_t)(chance() % end);
}

/* ---- inputs ---- */

static void read_corpus(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort); /* in the same order everywhere */
    corpus = calloc(FILES_MAX, sizeof *corpus);
    for (int i = 0; i < count; i++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, names[i]->d_name);
        FILE *file = names[i]->d_name[0] == '.' || corpus_count == FILES_MAX ? NULL : fopen(name, "rb");
        free(names[i]);
        if (!file)
            continue;
        script *next = &corpus[corpus_count];
        next->length = fread(next->bytes, 1, LENGTH_MAX, file);
        corpus_count += next->length > 0;
        fclose(file);
    }
    if (count >= 0)
        free(names);
}

static void make_up(script *made)
{
    made->length = 1 + below(below(4) ? 64 : LENGTH_MAX);
    for (size_t i = 0; i < made->length; i++)
        made->bytes[i] = (uint8_t)chance();
}

static void remove_part(script *made)
{
    size_t at = below(made->length), length = below(made->length - at < 16 ? made->length - at : 16);
    memmove(made->bytes + at, made->bytes + at + length, made->length - at - length);
    made->length -= length;
}

/* Of another script, or of itself. */
static void insert_part(script *made, const script *other)
{
    size_t from = below(other->length), at = below(made->length + 1);
    size_t length = 1 + below(other->length - from < 64 ? other->length - from : 64);
    if (length > LENGTH_MAX - made->length)
        return;
    uint8_t part[64];
    memcpy(part, other->bytes + from, length);
    memmove(made->bytes + at + length, made->bytes + at, made->length - at);
    memcpy(made->bytes + at, part, length);
    made->length += length;
}

static void mutate(script *made)
{
    switch (below(8)) {
    case 0:
    case 1:
    case 2:
        made->bytes[below(made->length)] = (uint8_t)chance();
        return;
    case 3:
        made->bytes[below(made->length)] ^= (uint8_t)(1u << below(8));
        return;
    case 4:
        remove_part(made);
        return;
    case 5:
        insert_part(made, made);
        return;
    default:
        insert_part(made, &corpus[below(corpus_count)]);
    }
}

static void make_input(script *made)
{
    state = number * UINT64_C(0x2545f4914f6cdd1d);
    if (!corpus_count || number % 3 == 0) {
        make_up(made);
        return;
    }
    *made = corpus[below(corpus_count)];
    for (size_t i = 0, times = 1 + below(8); i < times && made->length; i++)
        mutate(made);
}

/* ---- the run ---- */

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void tell(uint64_t done)
{
    double cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    printf("%llu sequences, %.0f in a second of CPU, %.0f s\n", (unsigned long long)done, (double)done / cpu,
           cpu);
    fflush(stdout);
}

int run_sequences(int argc, char **argv)
{
    uint64_t most = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], name_input);
    mallopt(M_MMAP_THRESHOLD, 1 << 26); /* memory is kept for the next input: the kernel takes its time */
    mallopt(M_TRIM_THRESHOLD, 1 << 28);
    if (argc > 2)
        read_corpus(argv[2]);
    for (uint64_t done = 0; done < most; done++) {
        script made;
        number = first + done;
        make_input(&made);
        uint8_t *exact = malloc(made.length ? made.length : 1); /* a byte behind its end is not there */
        memcpy(exact, made.bytes, made.length);
        alarm(HANG_SECONDS);
        LLVMFuzzerTestOneInput(exact, made.length);
        free(exact);
        if (done % TELL_EVERY == TELL_EVERY - 1)
            tell(done + 1);
    }
    alarm(0);
    tell(most);
    free(corpus);
    return 0;
}
