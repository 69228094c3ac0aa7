"""Text that a model writes itself: what it was trained on shows in what it says.

(LLM-QAT, arXiv 2305.17888, calibrates on such text alone.)
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from math import prod
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.content_hash import cache_directory, content_hash
from fewbits.language_model.text_tokenizer import TextTokenizer

# Writing takes a pass over all weights for each token; beyond this it would take minutes.
_MOST_PARAMETERS = 2_000_000_000
_NEW_TOKENS = 96
_VERSION = 1

_BEGINNINGS = (
    "The history of", "In recent years, scientists have", "Question: What is", "Once upon a time,", "def ",
    "import ", "The most important", "According to the report,", "Chapter 1", "Dear", "1. ", "# ", "The city of",
    "He said that", "She looked at", "A new study", "To solve this problem, we", "Let x be", "The film was",
    "In the match", "The company announced", "How to", "<p>", '{"name": "', "public class", "SELECT", "Die",
    "La", "The recipe calls for", "Water is", "During the war,", "The law", "My favorite",
)  # fmt: skip


def generated_text(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> str:
    """What the model writes after varied beginnings, sampled with a fixed seed; kept in the user's cache.

    "" for a model too large to write quickly.

    Raises:
        EvaluationError: transformers can't build the model.
    """
    if sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()) > _MOST_PARAMETERS:
        return ""
    path = cache_directory() / "generated" / f"{content_hash(checkpoint)}-{_VERSION}.txt"
    with suppress(OSError, UnicodeDecodeError):
        return path.read_bytes().decode()
    text = _write(checkpoint, tokenizer)
    with suppress(OSError):  # without a cache it is written again next time
        _remember(path, text)
    return text


def _write(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> str:
    import torch

    from fewbits.calibration.head import draw
    from fewbits.language_model.skeleton import build_skeleton

    skeleton = build_skeleton(checkpoint)
    model = skeleton.model
    skeleton.fill(model.get_decoder(), model.base_model_prefix)
    if skeleton.head == skeleton.embedding:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    skeleton.fill(model, "")
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    generator = torch.Generator().manual_seed(0)
    starts = [first + tokenizer.encode(text, markup=False) for text in _BEGINNINGS]
    ids, cache = torch.tensor([start[:1] for start in starts]), None
    written = [ids]
    for position in range(1, _NEW_TOKENS):
        with torch.inference_mode():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        ids = draw(torch.softmax(output.logits[:, -1], -1), generator)
        for row, start in enumerate(starts):  # longer beginnings are still read while others are continued
            if position < len(start):
                ids[row] = start[position]
        written.append(ids)
    texts = [tokenizer.decode(row) for row in torch.cat(written, 1).tolist()]
    return "\n\n".join(texts)


def _remember(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    Path(temporary).replace(path)
