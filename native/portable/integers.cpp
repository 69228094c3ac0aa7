#define FEWBITS_ISA portable
#define FEWBITS_LANES 4
#include "../kernels/integers.inc"
