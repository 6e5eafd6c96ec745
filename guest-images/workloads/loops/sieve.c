/* The sieve of Eratosthenes: byte stores with growing strides. A unit is one sieve of a million numbers. */

#include "loops.h"

#include <string.h>

enum { LIMIT = 1 << 20 };

static uint8_t composite[LIMIT];

uint64_t sieve(unsigned count)
{
    uint64_t primes = 0;
    for (unsigned round = 0; round < count; round++) {
        memset(composite, 0, sizeof composite);
        for (unsigned i = 2; i * i < LIMIT; i++)
            if (!composite[i])
                for (unsigned j = i * i; j < LIMIT; j += i)
                    composite[j] = 1;
        for (unsigned i = 2; i < LIMIT; i++)
            primes += !composite[i];
    }
    return primes;
}
