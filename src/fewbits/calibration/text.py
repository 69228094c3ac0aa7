"""Text to calibrate on, as blocks of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewbits.calibration.default_text import default_text
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import CalibrationError
from fewbits.language_model.text_tokenizer import TextTokenizer, open_tokenizer

# One block in so many is held out, for checking.
_HELD_OUT = 8


@dataclass(frozen=True)
class CalibrationTokens:
    """Blocks of tokens [B, S], in random order; the last eighth is held out for checking.

    Attributes:
        blocks: int64 [B, S].
        name: of the text.
        sha256: of the text's bytes, in hexadecimal.
        seed: that chose the blocks, and draws labels.
    """

    blocks: npt.NDArray[np.int64]
    name: str
    sha256: str
    seed: int

    @property
    def held_out(self) -> int:
        """Number of blocks that are held out, at least 1."""
        return max(1, len(self.blocks) // _HELD_OUT)

    @property
    def training(self) -> npt.NDArray[np.int64]:
        """The blocks that aren't held out."""
        return self.blocks[: len(self.blocks) - self.held_out]

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens in blocks that aren't held out, and in those that are."""
        return self.training.size, self.blocks.size - self.training.size


def calibration_tokens(
    checkpoint: Checkpoint, text: str | Path | None, tokens: int, length: int = 512, seed: int = 0
) -> CalibrationTokens:
    """Tokens of a text, cut into blocks of `length` of which as many as asked are chosen at random.

    Args:
        checkpoint: the model, for its tokenizer.
        text: UTF-8 file; JSON lines if it ends in ``.jsonl``, each with ``text``, or ``messages`` for the
            model's chat template. None for a text that comes with Python and the model's own writing.
        tokens: how many; of a shorter text there are as many as it has.
        length: S, tokens of a block.
        seed: chooses the blocks.

    Raises:
        CalibrationError: the text can't be read, or is too short to be split into training and checking.
        EvaluationError: the model has no usable tokenizer or chat template.
    """
    if length < 2 or tokens < 2 * length:
        raise CalibrationError(
            "too few tokens to calibrate on",
            found=f"{tokens} in blocks of {length}",
            allowed="2 blocks or more",
        )
    tokenizer = open_tokenizer(checkpoint)
    if text is None:
        name, data = default_text(checkpoint, tokenizer, tokens)
        ids = tokenizer.encode(data.decode(), markup=False)
    else:
        name, data = Path(text).name, _read(Path(text))
        ids = _encode(tokenizer, Path(text), data)
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = length - len(first)
    count = len(ids) // step
    if count < 2:
        raise CalibrationError(
            f"the text {name} is too short to calibrate on",
            found=f"{len(ids)} tokens",
            allowed=f"{2 * step} or more, better {tokens}",
            action="Give a longer text",
        )
    chosen = np.random.default_rng(seed).permutation(count)[: tokens // length]
    blocks = np.array([first + ids[i * step : (i + 1) * step] for i in chosen.tolist()], dtype=np.int64)
    return CalibrationTokens(blocks, name, hashlib.sha256(data).hexdigest(), seed)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"can't read the text {path}", found=error.strerror or str(error), action="Give a text file"
        ) from error


def _encode(tokenizer: TextTokenizer, path: Path, data: bytes) -> list[int]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} isn't UTF-8 text",
            found=f"byte {data[error.start]:#04x} at offset {error.start}",
            action="Give a plain text file, or convert it with iconv",
        ) from error
    if path.suffix != ".jsonl":
        return tokenizer.encode(text, markup=False)
    return [token for document in _documents(tokenizer, path, text) for token in document]


def _documents(tokenizer: TextTokenizer, path: Path, text: str) -> Iterable[Sequence[int]]:
    """Token ids of each line of JSON."""
    end = sorted(tokenizer.eos_ids)[:1]
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise _refused(path, number, f"no JSON: {error}") from error
        if isinstance(record, dict) and isinstance(record.get("messages"), list):
            yield tokenizer.encode(tokenizer.conversation(record["messages"]), markup=True)
        elif isinstance(record, dict) and isinstance(record.get("text"), str):
            yield tokenizer.encode(record["text"], markup=False) + end
        else:
            raise _refused(path, number, line[:60])


def _refused(path: Path, number: int, found: str) -> CalibrationError:
    return CalibrationError(
        f"{path}, line {number} is no text to calibrate on",
        found=found,
        allowed='{"text": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}',
    )
