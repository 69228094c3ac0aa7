"""Text that a model writes itself: what it was trained on shows in what it says.

(LLM-QAT, arXiv 2305.17888, calibrates on such text alone.)

A chat model also answers questions in its own markup, so that calibration sees the tokens and the states that
its use is made of.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.content_hash import cache_directory, content_hash
from fewbits.errors import EvaluationError
from fewbits.language_model.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

# Parameters times tokens that are written, at most. SmolLM2-135M (6e11 of it) takes 25 s on two idle virtual cores
# of a Xeon. The bound isn't one of time, since the text must not depend on what else the machine does.
_MOST_WORK = 750_000_000_000
# Every so manieth beginning and question is taken, the fewest skipped that the bound allows.
_SHARES = (1, 2, 3, 4, 6, 8)
_NEW_TOKENS = 80
# Sequences that are written together take one pass over all weights for each token, and a cache of their past.
_TOGETHER = 64
_VERSION = 3

_BEGINNINGS = (
    "The history of", "In recent years, scientists have", "Question: What is", "Once upon a time,", "def ",
    "import ", "The most important", "According to the report,", "Chapter 1", "Dear", "1. ", "# ", "The city of",
    "He said that", "She looked at", "A new study", "To solve this problem, we", "Let x be", "The film was",
    "In the match", "The company announced", "How to", "<p>", '{"name": "', "public class", "SELECT", "Die",
    "La", "The recipe calls for", "Water is", "During the war,", "The law", "My favorite",
)  # fmt: skip

_QUESTIONS = (
    "What causes the seasons?", "Write a Python function that removes duplicates from a list.",
    "Give me three tips for sleeping better.", "Translate to French: The train leaves at nine.",
    "Who was Marie Curie?", "Solve 3x + 7 = 22 and show the steps.", "Write a short poem about rain.",
    "What is the difference between TCP and UDP?", "Summarize the plot of Romeo and Juliet in two sentences.",
    "List five European capitals as a JSON array.", "How do I make a simple tomato soup?",
    "Is a tomato a fruit or a vegetable? Explain briefly.", "Write an SQL query that counts orders per customer.",
    "Rewrite politely: Send me the report now.", "Why is the sky blue?",
    "A shirt costs 40 dollars and is reduced by 15 percent. What is the new price?",
    "Explain recursion to a child.", "What should I see in Rome in two days?", "Hi! How are you today?",
    "Correct the grammar: He don't has no time.", "Name some advantages and disadvantages of remote work.",
    "Was ist die Hauptstadt von Australien?", "Explain what this command does: grep -rn TODO src/",
    "Write an e-mail asking a neighbour to water my plants.",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        continued: after varied beginnings.
        answers: questions and its answers, in its chat markup; "" for a model without a chat template.
    """

    continued: str = ""
    answers: str = ""


def generated_text(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> Written:
    """What the model writes after varied beginnings and questions, sampled with a fixed seed.

    It is kept in the user's cache. A model too large to write quickly writes less, or nothing.

    Raises:
        EvaluationError: transformers can't build the model.
    """
    questions = _QUESTIONS if _has_chat_template(tokenizer) else ()
    parameters = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    work = parameters * _NEW_TOKENS * (len(_BEGINNINGS) + len(questions))
    share = next((share for share in _SHARES if work <= share * _MOST_WORK), None)
    if share is None:
        return Written()
    path = cache_directory() / "generated" / f"{content_hash(checkpoint)}-{_VERSION}.json"
    with suppress(OSError, ValueError, TypeError):
        return Written(**json.loads(path.read_bytes()))
    model = _whole_model(checkpoint)
    written = Written(
        _continued(model, tokenizer, _BEGINNINGS[::share]), _answers(model, tokenizer, questions[::share])
    )
    with suppress(OSError):  # without a cache it is written again next time
        _remember(path, json.dumps(asdict(written)))
    return written


def _has_chat_template(tokenizer: TextTokenizer) -> bool:
    """Whether a model has a chat template, and one that takes questions."""
    try:
        return bool(_chat(tokenizer, _QUESTIONS[0]) and _chat(tokenizer, _QUESTIONS[0], "So."))
    except EvaluationError:
        return False


def _chat(tokenizer: TextTokenizer, question: str, answer: str | None = None) -> str:
    """A question in the model's markup, with an answer or up to where it begins."""
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.conversation(messages, answer=answer is None)


def _continued(model: Any, tokenizer: TextTokenizer, beginnings: Sequence[str]) -> str:
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    starts = [first + tokenizer.encode(text, markup=False) for text in beginnings]
    return "\n\n".join(tokenizer.decode(row) for row in _continue(model, starts))


def _answers(model: Any, tokenizer: TextTokenizer, questions: Sequence[str]) -> str:
    prompts = [_chat(tokenizer, question) for question in questions]
    starts = [tokenizer.encode(prompt, markup=True) for prompt in prompts]
    chats = []
    for question, prompt, start, row in zip(
        questions, prompts, starts, _continue(model, starts), strict=True
    ):
        said = row[len(start) :]
        end = next((i for i, token in enumerate(said) if token in tokenizer.eos_ids), None)
        answer = tokenizer.decode(said[:end])
        # An answer that was cut off is left without the mark of its end.
        chats.append(f"{prompt}{answer}\n" if end is None else _chat(tokenizer, question, answer))
    return "".join(chats)


def _whole_model(checkpoint: Checkpoint) -> Any:
    """The model with its weights, in bfloat16."""
    from fewbits.language_model.skeleton import build_skeleton

    skeleton = build_skeleton(checkpoint)
    model = skeleton.model
    skeleton.fill(model.get_decoder(), model.base_model_prefix)
    if skeleton.head == skeleton.embedding:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    skeleton.fill(model, "")
    return model


def _continue(model: Any, starts: Sequence[list[int]]) -> list[list[int]]:
    """Each start and what the model samples after it, in batches."""
    return [
        row
        for begin in range(0, len(starts), _TOGETHER)
        for row in _continue_together(model, starts[begin : begin + _TOGETHER])
    ]


def _continue_together(model: Any, starts: Sequence[list[int]]) -> list[list[int]]:
    """Each start and at least `_NEW_TOKENS` more tokens, until all are as long.

    What all have as many tokens of is read at once; where some starts are longer, they are read on while others
    are continued. So there is no padding.
    """
    import torch

    from fewbits.calibration.sampling import draw

    generator = torch.Generator().manual_seed(0)
    known = min(map(len, starts))
    ids, cache = torch.tensor([start[:known] for start in starts]), None
    written = [ids]
    for position in range(known, max(map(len, starts)) + _NEW_TOKENS):
        logits, cache = _step(model, ids, cache)
        ids = draw(torch.softmax(logits, -1), generator)
        for row, start in enumerate(starts):
            if position < len(start):
                ids[row] = start[position]
        written.append(ids)
    rows: list[list[int]] = torch.cat(written, 1).tolist()
    return rows


def _step(model: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits after the last of some more tokens [B, S], bfloat16 [B, V], and the cache of their past."""
    import torch

    # Logits of all positions of a prompt would take much memory; a model that can't leave them out gives them.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
    return output.logits[:, -1], output.past_key_values


def _remember(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    Path(temporary).replace(path)
