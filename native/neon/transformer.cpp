#define FEWBITS_ISA neon
#define FEWBITS_LANES 4
#define FEWBITS_NEON
#include "../kernels/transformer.inc"
