#define FEWBITS_ISA avx2
#define FEWBITS_LANES 8
#include "../kernels/integers.inc"
