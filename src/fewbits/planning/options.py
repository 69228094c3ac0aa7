"""From tensors and prices to the items of the knapsack: which formats a tensor may get, at how many bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fewbits.errors import PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.formats import get_format
from fewbits.planning.allocation import gaussian_error, tensor_nbytes
from fewbits.planning.knapsack import Option


def fits(name: str, extent: tuple[int, int], plain: Collection[str]) -> bool:
    """Whether a matrix of such an `OutputTensor.extent` can be held in this very format, without its fallback."""
    return name in plain or get_format(name).divides(*extent)


def holds(tensor: OutputTensor, name: str, exporter: Exporter) -> bool:
    """Whether a tensor can be stored in this very format or plain dtype in this container."""
    allowed = name in exporter.formats or name in exporter.plain_formats
    return tensor.quantizable and allowed and fits(name, tensor.extent, exporter.plain_formats)


def useful_formats(tensor: OutputTensor, exporter: Exporter) -> list[str]:
    """The container's formats worth a price for this tensor, by rising bytes.

    Left out are those that don't divide its rows, and those that another one beats: no more bytes and a smaller
    error on Gaussian numbers. A tensor that isn't quantizable has none.
    """
    able = [n for n in exporter.candidates if holds(tensor, n, exporter)]
    able.sort(key=lambda n: (tensor_nbytes(tensor, n), gaussian_error(n)))
    kept: list[str] = []
    for name in able:
        if not kept or gaussian_error(name) < gaussian_error(kept[-1]):
            kept.append(name)
    return kept


def aligned_nbytes(tensor: OutputTensor, name: str, exporter: Exporter) -> int:
    """Bytes of a tensor in a format or a plain dtype, with what the container adds so that the next one is aligned."""
    return -(-tensor_nbytes(tensor, name) // exporter.alignment) * exporter.alignment


def fixed_nbytes(tensors: Sequence[OutputTensor], exporter: Exporter) -> int:
    """Bytes of the tensors that stay in floating point whatever the plan says; they aren't items."""
    return sum(aligned_nbytes(t, t.plain, exporter) for t in tensors if not t.quantizable)


def options_for(
    tensors: Sequence[OutputTensor], exporter: Exporter, prices: Mapping[str, Mapping[str, float]]
) -> dict[str, list[Option]]:
    """The knapsack's items: quantizable tensors, each with its priced formats that the container holds.

    Args:
        tensors: what the file holds.
        exporter: its container.
        prices: tensor name -> format or plain dtype -> nats per token, as `prices.price_tensor` returns them.

    Raises:
        PlanError: a quantizable tensor has no price for any format that its rows and the container allow.
    """
    options = {}
    for tensor in tensors:
        if not tensor.quantizable:
            continue
        priced = prices.get(tensor.name, {})
        names = [n for n in priced if holds(tensor, n, exporter)]
        if not names:
            raise PlanError(
                f"{tensor.name} has no price for any format that can hold it",
                found=", ".join(priced) or "no prices at all", allowed=", ".join(exporter.formats),
            )  # fmt: skip
        options[tensor.name] = [Option(aligned_nbytes(tensor, n, exporter), priced[n], n) for n in names]
    return options
