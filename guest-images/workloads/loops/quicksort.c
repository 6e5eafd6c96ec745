/* Indirect calls: quicksort that compares through a function pointer. A unit is one sort of 50,000 elements. */

#include "loops.h"

enum { ELEMENTS = 50000 };

typedef int (*comparison)(const void *, const void *);

static uint32_t elements[ELEMENTS];

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int descending(const void *a, const void *b)
{
    return -ascending(a, b);
}

/* Hoare's partition; the larger part is left to the loop. */
__attribute__((noipa)) static void sort(uint32_t *low, uint32_t *high, comparison compare)
{
    while (low < high) {
        uint32_t pivot = low[(high - low) / 2], *left = low, *right = high;
        while (left <= right) {
            while (compare(left, &pivot) < 0)
                left++;
            while (compare(&pivot, right) < 0)
                right--;
            if (left <= right) {
                uint32_t taken = *left;
                *left++ = *right;
                *right-- = taken;
            }
        }
        if (right - low < high - left) {
            sort(low, right, compare);
            low = left;
        } else {
            sort(left, high, compare);
            high = right;
        }
    }
}

uint64_t quicksort(unsigned count)
{
    uint64_t random = 1, result = 0;
    for (unsigned round = 0; round < count; round++) {
        for (int i = 0; i < ELEMENTS; i++)
            elements[i] = (uint32_t)next_random(&random);
        sort(elements, elements + ELEMENTS - 1, round % 2 ? descending : ascending);
        for (int i = 0; i < ELEMENTS; i += 97)
            result = result * 31 + elements[i];
    }
    return result;
}
