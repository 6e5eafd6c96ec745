/* What the kernel of entry.S does: known work on known lines. */

static volatile unsigned numbers[64];

__attribute__((noinline)) static unsigned add(unsigned sum, unsigned number)
{
    return (sum << 3 ^ number) + VARIANT; /* add */
}

__attribute__((noinline)) static unsigned work(unsigned rounds)
{
    unsigned sum = 0;
    for (unsigned round = 0; round < rounds; round++) {
        numbers[round % 64] += round; /* loop */
        sum = add(sum, numbers[round / 2 % 64]);
    }
    return sum;
}

int main(void)
{
    return work(200000) ? 0x10 : 0x11;
}
