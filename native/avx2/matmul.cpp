#define FEWBITS_ISA avx2
#include "dot.h"

#include "../kernels/matmul.inc"
