"""What Hugging Face's tensor names say: which weights are linear layers, and which of them runtimes fuse.

Rules by name, as data, so that they serve models that no table knows. Sources: the names of transformers' models;
vLLM's `packed_modules_mapping` of its models and its fused experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)\.weight")
# Parts of a model that aren't its decoder; runtimes keep them in floating point.
_OTHER_TOWERS = re.compile(
    r"(?:^|\.)(?:vision\w*|visual\w*|audio\w*|image\w*|speech\w*|encoder|multi_modal\w*|mtp)(?:\.|$)"
)
# Modules within a block whose weight is a matrix and no linear layer, or one that decides rather than computes.
_NOT_LINEAR = re.compile(
    r"(?:^|\.)(?:\w*norm\w*|\w*embed\w*|gate|wg|router|shared_expert_gate|conv\w*|rel_pos\w*"
    r"|relative_attention_bias|altup)(?:\.|$)"
)
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens\w*|wte|tok_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")

# Models whose weights lie transposed (transformers' Conv1D), which these runtimes don't read packed.
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

# Runtimes compute these as one matrix, or (experts) in one kernel, so they share a format: (pattern, what vLLM calls
# the module that it makes of them beside the pattern's group).
_EXPERTS = (re.compile(r"(.+\.experts)\.\d+\..+"), "")
# The parts stand in the order in which their rows follow each other there.
_PARTS = (
    ("q_proj|k_proj|v_proj", "qkv_proj"),
    ("gate_proj|up_proj", "gate_up_proj"),
    ("w1|w3", "gate_up_proj"),
    ("q_a_proj|kv_a_proj_with_mqa", "fused_qkv_a_proj"),
)
_FUSED = tuple((re.compile(rf"(.+)\.(?:{parts})\.weight"), whole) for parts, whole in _PARTS)
_PLACE = {part: place for parts, _ in _PARTS for place, part in enumerate(parts.split("|"))}


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the weight of a linear layer of a decoder block."""
    found = _BLOCK.search(name)
    if len(shape) != 2 or found is None or _OTHER_TOWERS.search(name):
        return False
    return not _NOT_LINEAR.search(found[2])


def role_of(name: str, shape: tuple[int, ...]) -> str:
    """``embedding``, ``head``, ``linear`` or ``other``."""
    if _EMBEDDINGS.search(name):
        return "embedding"
    if _HEAD.search(name):
        return "head"
    return "linear" if is_linear(name, shape) else "other"


def block_of(name: str) -> int | None:
    """Index of the decoder block in the name."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name)
    return None if found is None or _OTHER_TOWERS.search(name) else int(found[1])


def computed_together(names: Iterable[str]) -> list[list[str]]:
    """Groups of two or more of these tensors that a runtime computes in one kernel: the fused ones, and all experts."""
    return _grouped(names, (_EXPERTS, *_FUSED))


def fused(names: Iterable[str]) -> list[list[str]]:
    """Groups of two or more of these tensors that a runtime computes as one matrix, in the order of its rows."""
    return [sorted(group, key=lambda n: _PLACE[n.split(".")[-2]]) for group in _grouped(names, _FUSED)]


def runtime_pattern(module: str) -> str:
    """A regular expression for a module and for what runtimes make of it and others, which share its format."""
    name = f"{module}.weight"
    if match := _EXPERTS[0].fullmatch(name):
        return rf"{re.escape(match[1])}(?:{re.escape(module.removeprefix(match[1]))})?"
    for pattern, whole in _FUSED:
        if match := pattern.fullmatch(name):
            return rf"{re.escape(match[1])}\.(?:{module.rpartition('.')[2]}|{whole})"
    return re.escape(module)


def _grouped(names: Iterable[str], rules: Iterable[tuple[re.Pattern[str], str]]) -> list[list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for pattern, kind in rules:
            if match := pattern.fullmatch(name):
                groups.setdefault((match[1], kind), []).append(name)
                break
    return [members for members in groups.values() if len(members) > 1]
