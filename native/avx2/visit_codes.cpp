#define FEWBITS_ISA avx2
#include "../kernels/visit_codes.inc"
