#define FEWBITS_ISA avx512vnni
#include "dot.h"

#include "../kernels/matmul.inc"
