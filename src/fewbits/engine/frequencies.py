"""Frequencies of rotary position embeddings, from a config's rope settings.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import Any

import numpy as np

from fewbits.architectures.architecture import Config
from fewbits.architectures.rope import FULL, head_dim, rope_parameters
from fewbits.checkpoint.checkpoint import Floats
from fewbits.errors import ArchitectureError


@dataclass(frozen=True)
class Frequencies:
    """What a pair of a head's columns turns by.

    Attributes:
        radians: float32 [rotated columns / 2], per position.
        magnitude: that cosine and sine are multiplied by.
    """

    radians: Floats
    magnitude: float = 1.0


_SMALLEST, _LARGEST = 1e-9, 1e9
NONE = Frequencies(np.empty(0, np.float32))


def frequencies(config: Config, context: int, layers: str = FULL) -> Frequencies:
    """The frequencies of one kind of layer.

    Args:
        config: as `architectures.interpreter.to_hugging_face` gives it.
        context: longest sequence, in tokens, that will be run: longrope has two sets of factors.
        layers: ``full_attention`` or ``sliding_attention``.

    Raises:
        ArchitectureError: a type of rope that isn't known, or factors that don't fit the heads.
    """
    parameters = rope_parameters(config, layers)
    width = int(head_dim(config) * parameters["partial_rotary_factor"])
    plain = parameters["rope_theta"] ** -(np.arange(0, width, 2) / width)
    kind = parameters["rope_type"]
    if kind == "default":
        return Frequencies(plain.astype(np.float32))
    if kind == "linear":
        return Frequencies((plain / parameters["factor"]).astype(np.float32))
    if kind == "longrope":
        long = context > parameters["original_max_position_embeddings"]
        divisors = _checked(parameters["long_factor" if long else "short_factor"], len(plain))
        return Frequencies((plain / divisors).astype(np.float32), parameters["attention_factor"])
    if kind == "yarn":
        return _yarn(parameters, plain)
    raise ArchitectureError(
        "the engine doesn't know this kind of rope", found=kind, allowed="default, linear, longrope, yarn"
    )


def _checked(factors: list[float], pairs: int) -> Floats:
    """Divisors of the frequencies, float64 [pairs]."""
    divisors = np.asarray(factors)
    if len(divisors) != pairs or not np.all((divisors >= _SMALLEST) & (divisors <= _LARGEST)):
        raise ArchitectureError(
            "the file's factors of rope's frequencies don't fit its heads",
            found=f"{len(divisors)} of {divisors.min(initial=np.inf):g} to {divisors.max(initial=-np.inf):g}",
            allowed=f"{pairs} of {_SMALLEST:g} to {_LARGEST:g}",
        )
    return divisors


def _yarn(parameters: dict[str, Any], plain: Floats) -> Frequencies:
    """Frequencies that turn often within the original context stay, slow ones are divided (YaRN, section 3.2)."""
    width, base = 2 * len(plain), parameters["rope_theta"]
    original = parameters["original_max_position_embeddings"]

    def column(turns: float) -> float:
        """The pair that turns so often in the original context."""
        return width * log(original / (turns * 2 * pi)) / (2 * log(base))

    low = max(floor(column(parameters["beta_fast"])), 0)
    high = min(ceil(column(parameters["beta_slow"])), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)  # 1: divided
    scaled = plain * (1 - ramp) + plain / parameters["factor"] * ramp
    return Frequencies(scaled.astype(np.float32), parameters["attention_factor"])
