#define FEWBITS_ISA avx512
#include "../kernels/integers.inc"
