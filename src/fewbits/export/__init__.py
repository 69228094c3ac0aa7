"""Containers that fewbits writes, one file or folder each."""
