#define FEWBITS_ISA avxvnni
#include "../avx2/dot.h"

#include "../kernels/matmul.inc"
