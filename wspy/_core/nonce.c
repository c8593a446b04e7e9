/* nonce.c: is this use of a nonce a new one? RFC 7616 §3.4, for all processes that share the memory.
 *
 * A use is a number that rises with each one that is to be let in. No lock guards it: a process that is killed, or
 * forks, at any place of this leaves nothing behind that others would wait for.
 */
#include "core.h"

/* Without that the compiler would fall back upon a lock, of which each process has its own. */
_Static_assert(__atomic_always_lock_free(sizeof(uint64_t), 0), "64 bits can't be exchanged at once");

int wspy_nonce_use(uint64_t *newest, uint64_t use)
{
    uint64_t seen = __atomic_load_n(newest, __ATOMIC_RELAXED);

    while (use > seen)
        if (__atomic_compare_exchange_n(newest, &seen, use, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return 1;
    return 0;
}
