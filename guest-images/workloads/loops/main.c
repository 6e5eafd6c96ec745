/* Twelve loops, each with a fixed amount of work: 50 to 100 ms on a processor of 2020, up to a minute interpreted. */

#include "loops.h"
#include "../runner.h"

#include <stddef.h>

static const struct {
    const char *name;
    uint64_t (*run)(unsigned count);
    unsigned count;
} LOOPS[] = {
    {"sieve", sieve, 36},
    {"crc32", crc32, 400},
    {"scalar-double", scalar_double, 600000},
    {"matrix-multiply", matrix_multiply, 36},
    {"fib", fib, 36},
    {"pointer-chase", pointer_chase, 24},
    {"quicksort", quicksort, 12},
    {"getppid", getppid_calls, 800000},
    {"page-faults", page_faults, 40},
    {"memcpy", memory_copy, 18000},
    {"fork-wait", fork_wait, 300},
    {"pipe-ping-pong", pipe_ping_pong, 24000},
};

int main(void)
{
    runner_start();
    for (size_t i = 0; i < sizeof LOOPS / sizeof LOOPS[0]; i++)
        if (runner_wants(LOOPS[i].name)) {
            uint64_t result = LOOPS[i].run(LOOPS[i].count);
            runner_done(LOOPS[i].name);
            runner_result(LOOPS[i].name, result);
        }
    runner_end();
}
