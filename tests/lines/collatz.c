/* A program of which a profile knows how often its function is called. */

#include <stdio.h>

__attribute__((noinline)) static unsigned steps(unsigned long number)
{
    unsigned count = 0;
    while (number != 1) {
        number = number % 2 ? 3 * number + 1 : number / 2;
        count++;
    }
    return count;
}

int main(void)
{
    unsigned sum = 0;
    for (unsigned long number = 1; number <= 3000; number++)
        sum += steps(number);
    printf("%u\n", sum);
    return 0;
}
