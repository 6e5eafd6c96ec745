/* What every workload program has in common: it offers its workloads one by one on standard output, runs those that the
 * harness on the other end of the console wants, and says what came out.
 *
 *   program                                    harness
 *   @ready NAME                          ->
 *                                        <-    go | skip
 *   @done NAME CPU WALL                  ->    (only after go; the times are microseconds)
 *   @result NAME RESULT                  ->    (hexadecimal; computing it is no part of the workload)
 *   ...
 *   @end                                 ->
 *
 * The program waits for the answer without using the processor, so the harness can read its clocks before it answers.
 * The times are the program's own: right when it runs on the host, for information only when it runs in a guest. */

#ifndef RUNNER_H
#define RUNNER_H

#include <stdint.h>

/* Binds the process to one processor, as in a guest with one, and makes a terminal on standard input quiet. */
void runner_start(void);

/* Offers `name`; returns whether it is wanted, and starts the clocks if so. */
int runner_wants(const char *name);

/* Stops the clocks of the workload that was wanted last. */
void runner_done(const char *name);

/* Reports its result. */
void runner_result(const char *name, uint64_t result);

/* Says that there are no more. The machine's first process powers it off; any other exits. */
_Noreturn void runner_end(void);

/* Says why it can't go on, then does what runner_end does. */
_Noreturn void runner_fail(const char *what);

#endif
