#define FEWBITS_ISA portable
#include "../kernels/transformer.inc"
