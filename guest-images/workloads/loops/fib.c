/* Calls and returns: Fibonacci numbers by recursion, not inlined. The count is the number whose value is wanted. */

#include "loops.h"

__attribute__((noinline, noclone, optimize("no-inline", "no-optimize-sibling-calls"))) uint64_t fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
