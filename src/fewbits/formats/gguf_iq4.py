"""GGUF's four-bit formats with uneven levels: IQ4_NL (32 columns, a scale) and IQ4_XS (256, sub-scales).

The levels are closer together near zero, as weights are. Layouts are drawn in docs/formats.md.
"""

from __future__ import annotations

from fewbits.formats.block_layout import BlockLayout, fold
from fewbits.formats.gguf_k import ALL, INT6_PLACES, NEAR, SuperScaleFormat
from fewbits.formats.gguf_legacy import ScaleFormat
from fewbits.formats.gguf_search import LookupGrid, fan
from fewbits.formats.registry import register

# Source: kvalues_iq4nl in ggml-common.h.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# Where the search puts the weight of largest magnitude: about every fifth of the distance of outer levels.
# A candidate costs about 3 ns per weight because of the look-up.
PLACES = fan((-127, -127, 1), (-136, -90, 10), (80, 121, 8))
WEIGHTED = fan((-127, -127, 1), (-136, -55, 18), (50, 121, 14))


class IQ4XS(SuperScaleFormat):
    """Byte 0 d, 2 scales_h[2], 4 scales_l[4], 8 qs[128]; s[i] = sub[i] + 32.

    scales_h: bits 2i and 2i+1 of the little-endian uint16 = s[i] >> 4
    scales_l[i]:  | s[2i + 1] & 15 : 4 | s[2i] & 15 : 4 |
    For each group (32 codes c, 16 bytes of qs):  qs[l]:  | c[l + 16] : 4 | c[l] : 4 |
    """

    grid = LookupGrid(LEVELS)
    limits = (-32, 31)
    places = (PLACES, PLACES)
    super_places = INT6_PLACES
    windows = (NEAR, ALL)

    layout = BlockLayout(
        136,
        [
            *fold(8, 2, 1, byte=2, shift=4, of_scales=True),
            *fold(8, 4, 1, byte=4, of_scales=True),
            *fold(256, 4, 16, byte=8),
        ],
        halves=(0,),
        scales=8,
        raised=32,
    )


# IQ4_NL: byte 0 d, 2 qs[16] as in Q4_0.
IQ4_NL = register(ScaleFormat("IQ4_NL", LookupGrid(LEVELS), -127, (PLACES, WEIGHTED)))
IQ4_XS = register(IQ4XS("IQ4_XS"))
