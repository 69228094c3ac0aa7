// What must hold whatever the input is.
#pragma once

#include <cstdio>
#include <cstdlib>

#define FEWBITS_EXPECT(holds)                                                                     \
    do {                                                                                          \
        if (!(holds)) {                                                                           \
            std::fprintf(stderr, "%s:%d: this doesn't hold: %s\n", __FILE__, __LINE__, #holds);   \
            __builtin_trap();                                                                     \
        }                                                                                         \
    } while (false)
