/* Programs of a distribution, each with a fixed amount of work: the lines of /workloads/plan. */

#define _GNU_SOURCE
#include "../runner.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char PLAN[] = "/workloads/plan", OUTPUT[] = "/tmp/output", ERRORS[] = "/tmp/errors";

/* Standard input, output and error of a command. */
static void redirect(int descriptor, const char *path, int flags)
{
    int file = open(path, flags, 0644);
    if (file < 0 || dup2(file, descriptor) < 0)
        _exit(126);
}

/* Shows what the command wrote to standard error; a line of it must not look like one of ours. */
static void show_errors(void)
{
    char line[256];
    FILE *file = fopen(ERRORS, "r");
    while (file && fgets(line, sizeof line, file))
        printf("| %s", line);
}

/* Runs a line of shell; its standard output is in OUTPUT afterwards. */
static void run(const char *name, const char *command)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        redirect(STDIN_FILENO, PLAN, O_RDONLY);
        redirect(STDOUT_FILENO, OUTPUT, O_WRONLY | O_CREAT | O_TRUNC);
        redirect(STDERR_FILENO, ERRORS, O_WRONLY | O_CREAT | O_TRUNC);
        execl("/bin/sh", "sh", "-c", command, (char *)0);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        runner_fail(name);
    if (status != 0) {
        show_errors();
        printf("wait status %#x: %s\n", status, command);
        runner_fail(name);
    }
}

/* FNV-1a (Fowler, Noll, Vo) of a file. */
static uint64_t checksum(const char *path)
{
    static unsigned char buffer[1 << 16];
    uint64_t hash = 0xcbf29ce484222325;
    ssize_t count;
    int file = open(path, O_RDONLY);
    if (file < 0)
        runner_fail(path);
    while ((count = read(file, buffer, sizeof buffer)) > 0)
        for (ssize_t i = 0; i < count; i++)
            hash = (hash ^ buffer[i]) * 0x100000001b3;
    close(file);
    return hash;
}

int main(void)
{
    char line[4096];
    runner_start();
    setenv("PATH", "/usr/bin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("LC_ALL", "C", 1);
    setenv("PYTHONHASHSEED", "0", 1);
    mkdir("/tmp", 0777);
    /* A guest's root has half of the memory that was free when its files had not been unpacked: too little for more. */
    if (getpid() == 1 && mount("tmpfs", "/tmp", "tmpfs", 0, "size=50%") < 0)
        runner_fail("/tmp");
    FILE *plan = fopen(PLAN, "r");
    if (!plan)
        runner_fail(PLAN);
    while (fgets(line, sizeof line, plan)) {
        line[strcspn(line, "\n")] = 0;
        char *command = strchr(line, ':');
        if (line[0] == '#' || !command)
            continue;
        *command++ = 0;
        if (strcmp(line, "prepare") == 0) {
            run(line, command);
        } else if (runner_wants(line)) {
            run(line, command);
            runner_done(line);
            runner_result(line, checksum(OUTPUT));
        }
    }
    runner_end();
}
