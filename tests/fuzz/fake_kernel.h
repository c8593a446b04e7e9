// What a fuzz target asks of the fake kernel: a script of faults, peers that it plays, and the wire it reads back.
