"""Makes what the tests of runtimes load, in the environment that has fewbits.

    python tests_runtimes/artifacts.py OUT ROW… [--model DIR] [--text FILE] [--tokens N]

For every format named in tests_runtimes/ROW/formats.txt:

    OUT/ROW/FORMAT/model/           fewbits quantize MODEL … --to CONTAINER --format FORMAT
    OUT/ROW/FORMAT/expected.npz     tokens; float32 logits of the original, of the weights as fewbits dequantizes them
                                    (quantized), and with activations rounded where the container says so (runtime)

Each line of formats.txt is CONTAINER FORMAT [SETTING…], and FORMAT's folder is named by all but the container:

    pin=PATTERN=FORMAT     see `fewbits quantize --pin`
    model=NAME             one of tests/tiny_models.py instead
    refused                the runtime says that it doesn't take it
    unquantized            shows what the runtime's own arithmetic costs

Without a model, the small random one of the tests is made. The tests are run by the row's own Python with
FEWBITS_ARTIFACTS=OUT; they need NumPy and the runtime, not fewbits.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
os.environ["FEWBITS_EFFORT"] = "fast"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    model = options.model or small_model(options.out / "model")
    tokens = tokens_of(model, options.text, options.tokens)
    for row in options.rows:
        make_row(options.out, row, model, tokens)


def make_row(out: Path, row: str, model: Path, tokens: list[int]) -> list[Path]:
    """All artifacts of a row, as far as they aren't there; their folders."""
    original = cache(lambda: logits_of(model, tokens, "float"))
    made = []
    for line in (HERE / row / "formats.txt").read_text().splitlines():
        container, name, *settings = line.split()
        made.append(out / row / "_".join([name, *settings]))
        pins = [s.removeprefix("pin=") for s in settings if s.startswith("pin=")]
        kinds = [s.removeprefix("model=") for s in settings if s.startswith("model=")]
        if kinds:
            other = tiny_model(out / kinds[0], kinds[0])
            read = tokens_of(other, None, min(len(tokens), 48))
            make(
                made[-1], other, container, name, read, lambda m=other, t=read: logits_of(m, t, "float"), pins
            )
        else:
            make(made[-1], model, container, name, tokens, original, pins)
    return made


def small_model(folder: Path) -> Path:
    """The random llama of the tests."""
    if not (folder / "model.safetensors").exists():
        sys.path.insert(0, str(HERE.parent / "tests"))
        from conftest import write_llama

        write_llama(folder, hidden=256, ffn=512)
    return folder


def tiny_model(folder: Path, kind: str) -> Path:
    """A random model of some architecture, with a tokenizer."""
    if not (folder / "config.json").exists():
        sys.path.insert(0, str(HERE.parent / "tests"))
        from model_files import write_tokenizer
        from tiny_models import TINY_MODELS, VOCABULARY, save

        folder.mkdir(parents=True)
        save(TINY_MODELS[kind], folder)
        write_tokenizer(folder, VOCABULARY)
    return folder


def tokens_of(model: Path, text: Path | None, count: int) -> list[int]:
    """The first tokens of a text; without one, the numbers from 3 on."""
    if text is None:
        return list(range(3, 3 + count))
    from fewbits.checkpoint.source import open_checkpoint
    from fewbits.language_model.text_tokenizer import open_tokenizer

    with text.open(encoding="utf-8") as file:
        return list(open_tokenizer(open_checkpoint(model)).encode(file.read(20 * count), markup=False))[
            :count
        ]


def logits_of(model: Path, tokens: list[int], activations: str) -> np.ndarray:
    """float32 [T, V]."""
    from fewbits.checkpoint.source import open_checkpoint
    from fewbits.evaluation.language_model import load_language_model

    loaded = load_language_model(open_checkpoint(model), activations)
    return np.concatenate(list(loaded.logits(tokens, 0)))


def make(
    folder: Path,
    model: Path,
    container: str,
    name: str,
    tokens: list[int],
    original: Callable[[], np.ndarray],
    pins: list[str],
) -> None:
    """One artifact, unless it is there."""
    import fewbits

    if (folder / "expected.npz").exists():
        return
    if not (folder / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fewbits.quantize(model, folder / "model", to=container, format=name, pins=pins)
    computed = {
        "quantized": logits_of(folder / "model", tokens, "float"),
        "runtime": logits_of(folder / "model", tokens, "runtime"),
    }
    np.savez(folder / "expected.npz", tokens=np.array(tokens), original=original(), **computed)
    print(folder)


if __name__ == "__main__":
    main()
