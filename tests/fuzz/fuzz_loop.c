// Does the whole loop keep its promises, whatever peers, callers and the kernel do to it?
//
// links: fake_kernel.c loop.c connection.c command.c queue.c protocol.c head.c frame.c mask.c utf8.c timers.c endpoint.c errors.c
// options: -max_len=4096
