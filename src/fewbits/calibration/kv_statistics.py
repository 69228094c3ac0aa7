"""Keys and values of one layer as calibration saw them, and the scales of a cache of 8 bits that follow.

Dimension letters: H heads of keys, D width of a head, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ChannelSource:
    """The parameter whose rows (or elements) the channels of keys or values are made of, one each.

    Attributes:
        parameter: of the live model.
        rows: int [H * D].
    """

    parameter: str
    rows: npt.NDArray[np.intp]


@dataclass(frozen=True)
class CacheStatistics:
    """Of the keys and values of one layer, where they enter the cache.

    Attributes:
        key_peaks: largest magnitudes, float32 [H, D].
        value_peaks: likewise; D may be another.
        keys: some tokens as they are, float16 [T, H, D].
        values: likewise.
        key_source: what a rescaling of channels moves their scale by; None if nothing does.
        value_source: likewise.
    """

    key_peaks: Floats
    value_peaks: Floats
    keys: npt.NDArray[np.float16]
    values: npt.NDArray[np.float16]
    key_source: ChannelSource | None = None
    value_source: ChannelSource | None = None

    def rescaled(self, keys: Floats | None, values: Floats | None) -> CacheStatistics:
        """Of a model whose channels are larger by these factors, float32 [H * D] each; None for ones."""
        found = self
        if keys is not None:
            factors = keys.reshape(self.key_peaks.shape)
            found = replace(
                found,
                key_peaks=self.key_peaks * np.abs(factors),
                keys=(self.keys * factors).astype(np.float16),
            )
        if values is not None:
            factors = values.reshape(self.value_peaks.shape)
            found = replace(
                found,
                value_peaks=self.value_peaks * np.abs(factors),
                values=(self.values * factors).astype(np.float16),
            )
        return found
