#define FEWBITS_ISA avx512
#include "../kernels/columns.inc"
