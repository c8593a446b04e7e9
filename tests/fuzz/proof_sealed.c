// Does it survive that with something between its connections and the kernel, too? fuzz_raw.c has the checks.
// links: sequences.c fuzz_raw.c fake_kernel.c loop.c connection.c input.c deadlines.c command.c queue.c raw.c protocol.c head.c
// links: frame.c mask.c utf8.c timers.c addresses.c endpoint.c errors.c
// corpus: raw
// amount: 20000
#include "sequences.h"

int main(int argc, char **argv)
{
    return run_sequences(argc, argv);
}
