#define FEWBITS_ISA neon_dotprod
#include "../neon/dot.h"

#include "../kernels/matmul.inc"
