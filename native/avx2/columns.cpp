#define FEWBITS_ISA avx2
#include "../kernels/columns.inc"
