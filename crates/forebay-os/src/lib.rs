//! The system calls that forebay needs, as safe types: shared memory, futexes, liveness locks, descriptor passing.
