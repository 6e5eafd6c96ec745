/* Two processes that hand a byte back and forth: system calls and context switches. A unit is one round trip. */

#include "loops.h"
#include "../runner.h"

#include <sys/wait.h>
#include <unistd.h>

uint64_t pipe_ping_pong(unsigned count)
{
    int there[2], back[2];
    uint64_t sum = 0;
    if (pipe(there) < 0 || pipe(back) < 0)
        runner_fail("pipe-ping-pong");
    pid_t child = fork();
    if (child < 0)
        runner_fail("pipe-ping-pong");
    if (child == 0) {
        uint8_t byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte = (uint8_t)(byte * 5 + 1);
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(there[0]);
    for (unsigned i = 0; i < count; i++) {
        uint8_t byte = (uint8_t)i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            runner_fail("pipe-ping-pong");
        sum = sum * 31 + byte;
    }
    close(there[1]);
    close(back[0]);
    close(back[1]);
    waitpid(child, NULL, 0);
    return sum;
}
