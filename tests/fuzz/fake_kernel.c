// How the loop's system calls behave without a kernel: every call of sys.h over a table of made-up descriptors.
// It fails, shortens and delays as its script says, and aborts where the loop uses a descriptor as no kernel allows.
