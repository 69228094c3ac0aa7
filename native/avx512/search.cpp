#define FEWBITS_ISA avx512
#include "../kernels/search.inc"
