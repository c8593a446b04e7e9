// Does the loop survive whatever peers, callers and the kernel do, 100,000 times over? fuzz_loop.c has the checks.
// links: sequences.c fuzz_loop.c fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c
// links: frame.c mask.c utf8.c timers.c addresses.c endpoint.c errors.c
// corpus: loop
// amount: 100000
#include "sequences.h"

int main(int argc, char **argv)
{
    return run_sequences(argc, argv);
}
