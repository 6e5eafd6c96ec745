/* The program's side of the conversation in runner.h. */

#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static uint64_t cpu_begun, wall_begun;

static uint64_t microseconds(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

/* Of this process and of its children that have ended. */
static uint64_t cpu_time(void)
{
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    return microseconds(own.ru_utime) + microseconds(own.ru_stime) + microseconds(children.ru_utime) +
           microseconds(children.ru_stime);
}

static uint64_t wall_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void runner_start(void)
{
    struct termios terminal;
    cpu_set_t one;
    int processor = sched_getcpu();
    CPU_ZERO(&one);
    CPU_SET(processor < 0 ? 0 : processor, &one);
    sched_setaffinity(0, sizeof one, &one);
    if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
        terminal.c_lflag &= ~(tcflag_t)ECHO;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}

int runner_wants(const char *name)
{
    char answer[64];
    printf("@ready %s\n", name);
    for (;;) {
        if (!fgets(answer, sizeof answer, stdin))
            runner_fail("there is nobody at the console");
        answer[strcspn(answer, "\r\n")] = 0;
        if (strcmp(answer, "skip") == 0)
            return 0;
        if (strcmp(answer, "go") == 0)
            break;
    }
    cpu_begun = cpu_time();
    wall_begun = wall_time();
    return 1;
}

void runner_done(const char *name)
{
    unsigned long long cpu = cpu_time() - cpu_begun, wall = wall_time() - wall_begun;
    printf("@done %s %llu %llu\n", name, cpu, wall);
}

void runner_result(const char *name, uint64_t result)
{
    printf("@result %s %016llx\n", name, (unsigned long long)result);
}

static _Noreturn void leave(int status)
{
    fflush(stdout);
    if (getpid() == 1) {
        tcdrain(STDOUT_FILENO);
        reboot(RB_POWER_OFF);
    }
    exit(status);
}

void runner_end(void)
{
    printf("@end\n");
    leave(0);
}

void runner_fail(const char *what)
{
    printf("@failed %s: %s\n", what, strerror(errno));
    leave(1);
}
