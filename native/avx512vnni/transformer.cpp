#define FEWBITS_ISA avx512vnni
#include "../kernels/transformer.inc"
