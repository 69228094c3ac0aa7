#define FEWBITS_ISA portable
#include "../kernels/visit_codes.inc"
