#define FEWBITS_ISA portable
#include "../kernels/matmul.inc"
