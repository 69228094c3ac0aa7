#define FEWBITS_ISA avx2
#include "../kernels/transformer.inc"
