"""The version of fewbits; written into every artifact it makes."""

__version__ = "0.1.0"
