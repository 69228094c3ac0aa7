#define FEWBITS_ISA portable
#include "dot.h"

#include "../kernels/matmul.inc"
