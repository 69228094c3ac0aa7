"""What a block of quantized numbers is. One file per family; imports nothing of the project but errors."""

from fewbits.formats.format import Format, Params, QTensor
from fewbits.formats.registry import format_names, get_format

__all__ = ["Format", "Params", "QTensor", "format_names", "get_format"]
