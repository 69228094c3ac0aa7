"""Text to calibrate on, as blocks of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewbits.calibration.dataset import HUB, DatasetName, Record, parse_dataset, read_dataset
from fewbits.calibration.default_text import default_text
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import CalibrationError
from fewbits.language_model.text_tokenizer import TextTokenizer, open_tokenizer

# One block in so many is held out, for checking.
_HELD_OUT = 8
# So many characters of a dataset are read for each token asked for: a token has about 4 in English, and there
# should be several times as many blocks as are chosen.
_CHARACTERS = 24


@dataclass(frozen=True)
class CalibrationTokens:
    """Blocks of tokens [B, S], in random order; the last eighth is held out for checking.

    Attributes:
        blocks: int64 [B, S].
        name: of the text.
        sha256: of the text's bytes, in hexadecimal.
        seed: that chose the blocks, and draws labels.
        asked: how many tokens were asked for; there are fewer in a shorter text.
    """

    blocks: npt.NDArray[np.int64]
    name: str
    sha256: str
    seed: int
    asked: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Says when the text was shorter than the tokens asked for."""
        if self.blocks.size + self.blocks.shape[1] > self.asked:
            return ()
        return (
            f"the calibration text {self.name} has {self.blocks.size:,} tokens in whole blocks where "
            f"{self.asked:,} were asked for: a longer one would say more about the model",
        )

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
            model's chat template; or a dataset, see `dataset`. None for a text that comes with Python and the
            model's own writing.
        tokens: how many; of a shorter text there are as many as it has.
        length: S, tokens of a block.
        seed: chooses the blocks.

    Raises:
        CalibrationError: the text can't be read, or is too short to be split into training and checking.
        EvaluationError: the model has no usable tokenizer or chat template.
        MissingExtraError: a package that reads it isn't installed.
    """
    if length < 2 or tokens < 2 * length:
        raise CalibrationError(
            "too few tokens to calibrate on",
            found=f"{tokens} in blocks of {length}",
            allowed=f"2 blocks or more, {2 * length} tokens",
        )
    tokenizer = open_tokenizer(checkpoint)
    name, data, ids = _read(checkpoint, tokenizer, text, tokens)
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
    return CalibrationTokens(blocks, name, hashlib.sha256(data).hexdigest(), seed, tokens)


def _read(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, text: str | Path | None, tokens: int
) -> tuple[str, bytes, list[int]]:
    """Name, what the hash is of, and token ids."""
    if text is None:
        name, passages = default_text(checkpoint, tokenizer, tokens)
        data = "\0".join(passage.text for passage in passages).encode()
        return name, data, [token for passage in passages for token in passage.tokens(tokenizer)]
    named = isinstance(text, str) and text.startswith(HUB)
    if named or Path(text).is_dir():
        asked = parse_dataset(str(text)) if named else DatasetName(str(text))
        found, records = read_dataset(asked, _CHARACTERS * tokens)
        data = "\n".join(json.dumps(record, sort_keys=True, default=str) for record in records).encode()
        return str(found), data, _encode_records(tokenizer, records)
    data = _bytes(Path(text))
    return Path(text).name, data, _encode(tokenizer, Path(text), data)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"can't read the text {path}", found=error.strerror or str(error),
            action="Give a text file, or a dataset as hub:OWNER/NAME",
        ) from error  # fmt: skip


def _encode_records(tokenizer: TextTokenizer, records: Sequence[Record]) -> list[int]:
    """Token ids of a dataset's rows: texts one after another, since they may be lines as well as documents."""
    if "text" in records[0]:
        return tokenizer.encode("\n\n".join(str(r["text"]).strip() for r in records), markup=False)
    chats = (tokenizer.conversation(record["messages"]) for record in records)
    return [token for chat in chats for token in tokenizer.encode(chat, markup=True)]


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
