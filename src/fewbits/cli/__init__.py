"""cli."""

import os

# OpenBLAS's threads, which numpy starts, would wait busily for a tenth of a second each time they have nothing to do,
# beside imports and the native core's threads. By this they sleep at once (its exponent of two, in cycles).
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
