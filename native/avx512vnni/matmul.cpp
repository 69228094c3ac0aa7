#define FEWBITS_ISA avx512vnni
#include "../kernels/matmul.inc"
