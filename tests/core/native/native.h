/* native.h: what a native test needs: tests by name, a check that says where it failed, repeatable randomness.
 *
 * TEST(name) { ... } is a test. The program runs those that its arguments name, or all; include this in one file. */
#ifndef NATIVE_H
#define NATIVE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

typedef struct native_test {
    const char *name;
    void (*run)(void);
    struct native_test *next;
} native_test;

static native_test *native_tests;

#define TEST(name)                                                                                             \
    static void name(void);                                                                                    \
    __attribute__((constructor)) static void register_##name(void)                                             \
    {                                                                                                          \
        static native_test test = {#name, name, NULL};                                                         \
        test.next = native_tests;                                                                              \
        native_tests = &test;                                                                                  \
    }                                                                                                          \
    static void name(void)

/* xorshift64*: the same numbers in each run */
static inline uint32_t random_number(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * UINT64_C(2685821657736338717)) >> 32);
}

static inline uint32_t random_below(uint64_t *state, uint32_t end)
{
    return random_number(state) % end;
}

static int is_wanted(const char *name, int argc, char **argv)
{
    if (argc < 2)
        return 1;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    int ran = 0;
    for (const native_test *test = native_tests; test; test = test->next) {
        if (!is_wanted(test->name, argc, argv))
            continue;
        test->run();
        ran++;
    }
    return ran ? 0 : 2;
}

#endif
