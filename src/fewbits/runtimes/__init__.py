"""Runtimes that load what fewbits writes, each run in a Python of its own by one driver file."""
