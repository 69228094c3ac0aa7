#define FEWBITS_ISA portable
#include "../kernels/columns.inc"
