/* Something to compile, not to run: the same data structures for several types, as generated code or templates have it. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONTAINERS(name, type, hash_of)                                                                                 \
    struct name##_map {                                                                                                 \
        type *keys;                                                                                                     \
        double *values;                                                                                                 \
        uint8_t *used;                                                                                                  \
        size_t capacity, count;                                                                                         \
    };                                                                                                                  \
    static size_t name##_slot(const struct name##_map *map, type key)                                                   \
    {                                                                                                                   \
        size_t slot = (size_t)(hash_of(key)) & (map->capacity - 1);                                                     \
        while (map->used[slot] && map->keys[slot] != key)                                                               \
            slot = (slot + 1) & (map->capacity - 1);                                                                    \
        return slot;                                                                                                    \
    }                                                                                                                   \
    static int name##_grow(struct name##_map *map)                                                                      \
    {                                                                                                                   \
        struct name##_map larger = {0};                                                                                 \
        larger.capacity = map->capacity ? 2 * map->capacity : 16;                                                       \
        larger.keys = calloc(larger.capacity, sizeof *larger.keys);                                                     \
        larger.values = calloc(larger.capacity, sizeof *larger.values);                                                 \
        larger.used = calloc(larger.capacity, 1);                                                                       \
        if (!larger.keys || !larger.values || !larger.used)                                                             \
            return -1;                                                                                                  \
        for (size_t i = 0; i < map->capacity; i++)                                                                      \
            if (map->used[i]) {                                                                                         \
                size_t slot = name##_slot(&larger, map->keys[i]);                                                       \
                larger.used[slot] = 1;                                                                                  \
                larger.keys[slot] = map->keys[i];                                                                       \
                larger.values[slot] = map->values[i];                                                                   \
                larger.count++;                                                                                         \
            }                                                                                                           \
        free(map->keys);                                                                                                \
        free(map->values);                                                                                              \
        free(map->used);                                                                                                \
        *map = larger;                                                                                                  \
        return 0;                                                                                                       \
    }                                                                                                                   \
    int name##_put(struct name##_map *map, type key, double value)                                                      \
    {                                                                                                                   \
        if (4 * map->count >= 3 * map->capacity && name##_grow(map) < 0)                                                \
            return -1;                                                                                                  \
        size_t slot = name##_slot(map, key);                                                                            \
        map->count += !map->used[slot];                                                                                 \
        map->used[slot] = 1;                                                                                            \
        map->keys[slot] = key;                                                                                          \
        map->values[slot] = value;                                                                                      \
        return 0;                                                                                                       \
    }                                                                                                                   \
    double name##_sum(const struct name##_map *map, const type *keys, size_t count)                                     \
    {                                                                                                                   \
        double sum = 0;                                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                                            \
            size_t slot = name##_slot(map, keys[i]);                                                                    \
            sum += map->used[slot] ? map->values[slot] : 0;                                                             \
        }                                                                                                               \
        return sum;                                                                                                     \
    }                                                                                                                   \
    static void name##_sift(type *heap, size_t at, size_t count)                                                        \
    {                                                                                                                   \
        for (size_t child; (child = 2 * at + 1) < count; at = child) {                                                  \
            if (child + 1 < count && heap[child] < heap[child + 1])                                                     \
                child++;                                                                                                \
            if (heap[at] >= heap[child])                                                                                \
                return;                                                                                                 \
            type taken = heap[at];                                                                                      \
            heap[at] = heap[child];                                                                                     \
            heap[child] = taken;                                                                                        \
        }                                                                                                               \
    }                                                                                                                   \
    void name##_sort(type *elements, size_t count)                                                                      \
    {                                                                                                                   \
        for (size_t i = count / 2; i-- > 0;)                                                                            \
            name##_sift(elements, i, count);                                                                            \
        for (size_t last = count; last-- > 1;) {                                                                        \
            type taken = elements[0];                                                                                   \
            elements[0] = elements[last];                                                                               \
            elements[last] = taken;                                                                                     \
            name##_sift(elements, 0, last);                                                                             \
        }                                                                                                               \
    }                                                                                                                   \
    void name##_multiply(type (*c)[8], const type (*a)[8], const type (*b)[8])                                          \
    {                                                                                                                   \
        for (int i = 0; i < 8; i++)                                                                                     \
            for (int j = 0; j < 8; j++) {                                                                               \
                c[i][j] = 0;                                                                                            \
                for (int k = 0; k < 8; k++)                                                                             \
                    c[i][j] += a[i][k] * b[k][j];                                                                       \
            }                                                                                                           \
    }                                                                                                                   \
    int name##_describe(char *text, size_t size, const type *elements, size_t count)                                    \
    {                                                                                                                   \
        size_t at = 0;                                                                                                  \
        for (size_t i = 0; i < count && at < size; i++) {                                                               \
            switch ((int)elements[i] & 7) {                                                                             \
            case 0: at += (size_t)snprintf(text + at, size - at, "zero "); break;                                       \
            case 1: at += (size_t)snprintf(text + at, size - at, "%g ", (double)elements[i]); break;                    \
            case 2: at += (size_t)snprintf(text + at, size - at, "%#x ", (unsigned)elements[i]); break;                 \
            case 3: memset(text + at, '-', at + 4 < size ? 4 : 0); at += 4; break;                                      \
            case 5: text[at++] = (char)('a' + (int)elements[i] % 26); break;                                            \
            default: text[at++] = ' ';                                                                                  \
            }                                                                                                           \
        }                                                                                                               \
        return (int)at;                                                                                                 \
    }

#define PLAIN(key) ((key) * 0x9e3779b1u)
#define FOLDED(key) (((uint64_t)(key) ^ (uint64_t)(key) >> 29) * 0xbf58476d1ce4e5b9u)

CONTAINERS(word, int16_t, PLAIN)
CONTAINERS(dword, int32_t, PLAIN)
CONTAINERS(qword, int64_t, FOLDED)
CONTAINERS(twice, double, FOLDED)
