#define FEWBITS_ISA portable
#include "../kernels/search.inc"
