/* The loops. Each does `count` units of its work and returns a value that depends on all of it. */

#ifndef LOOPS_H
#define LOOPS_H

#include <stdint.h>

/* Compute. */
uint64_t sieve(unsigned count);
uint64_t crc32(unsigned count);
uint64_t scalar_double(unsigned count);
uint64_t matrix_multiply(unsigned count);
uint64_t fib(unsigned count);
uint64_t pointer_chase(unsigned count);
uint64_t quicksort(unsigned count);

/* The kernel. */
uint64_t getppid_calls(unsigned count);
uint64_t page_faults(unsigned count);
uint64_t memory_copy(unsigned count);
uint64_t fork_wait(unsigned count);
uint64_t pipe_ping_pong(unsigned count);

/* A generator of pseudo-random numbers (xorshift64, Marsaglia 2003); the state must not be zero. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

#endif
