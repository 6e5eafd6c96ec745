/* Packed double precision: the product of two matrices, two elements at a time. A unit is one product. */

#include "loops.h"

#include <emmintrin.h>
#include <string.h>

enum { SIZE = 160 };

static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];

static void multiply(void)
{
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j += 8) {
            __m128d sum[4] = {_mm_setzero_pd(), _mm_setzero_pd(), _mm_setzero_pd(), _mm_setzero_pd()};
            for (int k = 0; k < SIZE; k++) {
                __m128d factor = _mm_set1_pd(a[i][k]);
                for (int part = 0; part < 4; part++) {
                    __m128d row = _mm_loadu_pd(&b[k][j + 2 * part]);
                    sum[part] = _mm_add_pd(sum[part], _mm_mul_pd(factor, row));
                }
            }
            for (int part = 0; part < 4; part++)
                _mm_storeu_pd(&c[i][j + 2 * part], sum[part]);
        }
}

uint64_t matrix_multiply(unsigned count)
{
    uint64_t random = 1;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            a[i][j] = (double)(next_random(&random) >> 40) / (1 << 24);
            b[i][j] = (double)(next_random(&random) >> 40) / (1 << 28);
        }
    /* The product becomes a factor of the next one; its elements stay near 1. */
    for (unsigned round = 0; round < count; round++) {
        multiply();
        memcpy(a, c, sizeof a);
        for (int i = 0; i < SIZE; i++)
            a[i][i] += 1.0;
    }
    uint64_t result = 0, bits;
    for (int i = 0; i < SIZE; i++) {
        memcpy(&bits, &c[i][i], sizeof bits);
        result = result * 31 + bits;
    }
    return result;
}
