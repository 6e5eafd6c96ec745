/* memcpy of the C library, as it chooses it for the processor. A unit is 64 KiB, within 1 MiB. */

#include "loops.h"

#include <string.h>

enum { SIZE = 1 << 20, PIECE = 64 << 10 };

static uint8_t from[SIZE], to[SIZE];

/* Out of the compiler's sight, so that it is a call with a size that it does not know. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

uint64_t memory_copy(unsigned count)
{
    uint64_t random = 1, result = 0;
    for (unsigned i = 0; i < SIZE; i++)
        from[i] = (uint8_t)next_random(&random);
    for (unsigned i = 0; i < count; i++) {
        /* Neither end is aligned. */
        unsigned offset = i * 4099 % (SIZE - PIECE);
        copy(to + offset, from + (SIZE - PIECE) - offset, PIECE);
        result = result * 31 + to[offset + i % PIECE];
    }
    return result;
}
