/* First touches of anonymous memory. A unit is 1,024 pages, mapped, written and unmapped. */

#define _GNU_SOURCE
#include "loops.h"
#include "../runner.h"

#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 1024 };

uint64_t page_faults(unsigned count)
{
    uint64_t sum = 0;
    for (unsigned round = 0; round < count; round++) {
        uint8_t *memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            runner_fail("page-faults");
        /* 4 KiB each, wherever it runs. */
        madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
        for (unsigned page = 0; page < PAGES; page++)
            memory[page * PAGE] = (uint8_t)(page + round);
        for (unsigned page = 0; page < PAGES; page += 8)
            sum += memory[page * PAGE];
        munmap(memory, PAGES * PAGE);
    }
    return sum;
}
