/* Scalar double precision: five bodies under gravity. A unit is one step in time. */

#include "loops.h"

#include <string.h>

enum { BODIES = 5 };

struct body {
    double x, y, z, vx, vy, vz, mass;
};

static void step(struct body *bodies, double dt)
{
    for (int i = 0; i < BODIES; i++) {
        struct body *a = &bodies[i];
        for (int j = i + 1; j < BODIES; j++) {
            struct body *b = &bodies[j];
            double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
            double square = dx * dx + dy * dy + dz * dz + 0.01;
            double magnitude = dt / (square * __builtin_sqrt(square));
            a->vx -= dx * b->mass * magnitude;
            a->vy -= dy * b->mass * magnitude;
            a->vz -= dz * b->mass * magnitude;
            b->vx += dx * a->mass * magnitude;
            b->vy += dy * a->mass * magnitude;
            b->vz += dz * a->mass * magnitude;
        }
    }
    for (int i = 0; i < BODIES; i++) {
        bodies[i].x += dt * bodies[i].vx;
        bodies[i].y += dt * bodies[i].vy;
        bodies[i].z += dt * bodies[i].vz;
    }
}

uint64_t scalar_double(unsigned count)
{
    struct body bodies[BODIES];
    uint64_t random = 1;
    for (int i = 0; i < BODIES; i++) {
        double *fields = &bodies[i].x;
        for (int field = 0; field < 7; field++)
            fields[field] = (double)(next_random(&random) >> 40) / (1 << 24) + 0.5;
    }
    for (unsigned i = 0; i < count; i++)
        step(bodies, 0.0001);
    uint64_t result = 0, bits;
    for (int i = 0; i < BODIES; i++) {
        memcpy(&bits, &bodies[i].x, sizeof bits);
        result = result * 31 + bits;
    }
    return result;
}
