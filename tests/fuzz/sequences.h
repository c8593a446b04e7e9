// Runs a fuzz target without libFuzzer: inputs follow from a number, so that any of them can be run again by itself.
#ifndef SEQUENCES_H
#define SEQUENCES_H

// Arguments: how many inputs, a directory with a corpus, and for a repetition the first number; prints how many there
// were, and in a second. An input that breaks the target, or takes 10 seconds, is named before the program dies.
int run_sequences(int argc, char **argv);

#endif
