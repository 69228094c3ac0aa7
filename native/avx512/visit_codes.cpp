#define FEWBITS_ISA avx512
#include "../kernels/visit_codes.inc"
