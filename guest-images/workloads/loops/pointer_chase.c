/* Dependent loads: through all lines of 4 MiB in random order. A unit is one round. */

#include "loops.h"

enum { LINES = (4 << 20) / 64 };

static struct line {
    struct line *next;
    uint64_t number;
    uint8_t rest[48];
} lines[LINES] __attribute__((aligned(4096)));

uint64_t pointer_chase(unsigned count)
{
    static uint32_t order[LINES];
    uint64_t random = 1, result = 0;
    for (uint32_t i = 0; i < LINES; i++)
        order[i] = i;
    for (uint32_t i = LINES - 1; i > 0; i--) {
        uint32_t other = (uint32_t)(next_random(&random) % (i + 1)), taken = order[i];
        order[i] = order[other];
        order[other] = taken;
    }
    for (uint32_t i = 0; i < LINES; i++) {
        lines[order[i]].next = &lines[order[(i + 1) % LINES]];
        lines[order[i]].number = i;
    }
    struct line *at = &lines[order[0]];
    for (unsigned step = 0; step < count * LINES; step++)
        at = at->next;
    result = at->number;
    return result + count;
}
