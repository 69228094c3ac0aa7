r"""Recognising a pre-tokenizer by what it does: the steps in a tokenizer.json, never the model's name.

The table of names and steps is fewbits/checkpoint/pre_tokenizers.py; its docstring tells how to add one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.pre_tokenizers import (
    BYTES,
    CONTRACTIONS,
    GPT2,
    PRE_TOKENIZERS,
    PreTokenizer,
    Step,
    split,
)
from fewbits.errors import ArchitectureError

# Other spellings of parts of the patterns, with the one that the table uses. None of them changes a cut: the
# contractions are the same seven, and a possessive quantifier only forbids giving back what can't match next.
_SPELLINGS = (
    ("'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
    ("\r", r"\r"),
    ("\n", r"\n"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
    (r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    (r"\p{N}{1}|", r"\p{N}|"),
)
ADD_ENTRY = (
    "Add an entry to PRE_TOKENIZERS in fewbits/checkpoint/pre_tokenizers.py: the name that llama.cpp gives "
    "to this cut (tokenizer.ggml.pre) and these steps"
)


def canonical_steps(pre_tokenizer: Mapping[str, Any] | None) -> tuple[Step, ...]:
    """Flatten the `pre_tokenizer` of a tokenizer.json into the steps that the table is written in.

    Raises:
        ArchitectureError: a step that llama.cpp has no counterpart for.
    """
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        parts = [canonical_steps(part) for part in pre_tokenizer["pretokenizers"]]
        return tuple(step for part in parts for step in part)
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space", True):
        return (split(GPT2), BYTES) if pre_tokenizer.get("use_regex", True) else (BYTES,)
    if kind == "Digits":
        return (Step("digits", "single" if pre_tokenizer.get("individual_digits") else "runs"),)
    if kind == "Punctuation" and pre_tokenizer.get("behavior") == "Contiguous":
        return (Step("punctuation"),)
    if kind == "Split" and "Regex" in pre_tokenizer.get("pattern", {}) and _keeps_every_part(pre_tokenizer):
        return (split(_usual_spelling(pre_tokenizer["pattern"]["Regex"])),)
    raise ArchitectureError(
        "GGUF has no name for this pre-tokenizer step",
        found=json.dumps(pre_tokenizer, ensure_ascii=False),
        allowed="Sequence, Split by Regex (Isolated), Digits, Punctuation (Contiguous), ByteLevel without a "
        "prefix space",
    )


def _keeps_every_part(step: Mapping[str, Any]) -> bool:
    """Whether matches and what lies between them all become words: Isolated, or 'remove all but the matches'.

    The latter drops text between matches, but the patterns in use match everything.
    """
    behavior = step.get("behavior")
    return behavior == "Isolated" or (behavior == "Removed" and bool(step.get("invert")))


def _usual_spelling(pattern: str) -> str:
    for other, usual in _SPELLINGS:
        pattern = pattern.replace(other, usual)
    return pattern


def recognise(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool) -> PreTokenizer:
    """The entry that cuts text as this `pre_tokenizer` of a byte-level tokenizer.json does.

    Of several entries with the same cut, the one that treats whole words alike (`ignore_merges`) is taken; if
    there is none, the first: the caller checks whether that makes a difference.

    Raises:
        ArchitectureError: no entry cuts like this.
    """
    steps = canonical_steps(pre_tokenizer)
    matching = [entry for entry in PRE_TOKENIZERS if entry.recognised and steps in entry.variants]
    if not matching:
        raise ArchitectureError(
            "this tokenizer cuts text into words in a way that has no known name in GGUF",
            found=" → ".join(f"{step.kind} {step.argument}".strip() for step in steps) or "no pre-tokenizer",
            allowed="the cuts of " + ", ".join(entry.name for entry in PRE_TOKENIZERS if entry.recognised),
            action=ADD_ENTRY,
        )
    return next((entry for entry in matching if entry.ignore_merges == ignore_merges), matching[0])
