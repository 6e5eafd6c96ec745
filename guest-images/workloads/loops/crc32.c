/* CRC-32 (ISO 3309) a byte at a time: one table lookup each. A unit is 64 KiB. */

#include "loops.h"

enum { SIZE = 64 << 10 };

static uint32_t table[256];
static uint8_t data[SIZE];

uint64_t crc32(unsigned count)
{
    uint64_t random = 1;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
        table[i] = value;
    }
    for (unsigned i = 0; i < SIZE; i++)
        data[i] = (uint8_t)next_random(&random);
    uint32_t crc = 0xffffffff;
    for (unsigned round = 0; round < count; round++)
        for (unsigned i = 0; i < SIZE; i++)
            crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
    return ~crc;
}
