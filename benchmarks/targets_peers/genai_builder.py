"""onnxruntime-genai's model builder: int4 in blocks on every product, or its k_quant.

Its defaults: symmetric, and the head in the same format. The embedding stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from peer_options import peer_options


def main() -> None:
    options = peer_options(__doc__, "default", "k_quant")
    extra = [f"block_size={options.group}", "accuracy_level=4", f"algo_config={options.recipe}"]
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", options.model, "-o", options.output,
             "-p", "int4", "-e", "cpu", "-c", cache, "--extra_options", *extra],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
