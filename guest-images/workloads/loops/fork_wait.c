/* A child that only exits. A unit is one child. */

#include "loops.h"
#include "../runner.h"

#include <sys/wait.h>
#include <unistd.h>

uint64_t fork_wait(unsigned count)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++) {
        int status;
        pid_t child = fork();
        if (child == 0)
            _exit((int)(i & 0x7f));
        if (child < 0 || waitpid(child, &status, 0) != child)
            runner_fail("fork-wait");
        sum = sum * 31 + (uint64_t)WEXITSTATUS(status);
    }
    return sum;
}
