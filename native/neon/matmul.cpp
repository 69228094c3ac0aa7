#define FEWBITS_ISA neon
#include "dot.h"

#include "../kernels/matmul.inc"
