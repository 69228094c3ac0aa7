"""Training towards the original's predictions: the KL divergence of the quantized model's from them, by Adam.

As in end-to-end training of scales (EfficientQAT, arXiv 2407.11062, second phase) and in MLX's distilled weight
quantization, but with the original's whole distributions, norms trained too, and steps in relation to each number.

Dimension letters: B sequences, S positions, T tokens, D width of the hidden state, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from fewbits.language_model.predictions import Predictor
from fewbits.tuning.student import Student

# Logits held at once: 2^21 are 8 MB, and a few such arrays live at a time.
LOGITS = 1 << 21
# Numbers from which on an activation is large.
LARGE = 1 << 15
Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        batch: sequences of a step.
        passes: times that each sequence is seen.
        most: steps, at most; what they don't reach of the text isn't used.
        checked: held-out sequences that are looked at, at most.
        rate: largest change of a scale's logarithm in a step.
        vector_rate: the same of norms and biases.
        warm_up: share of the steps in which rates rise; after it they fall to zero along a cosine.
        memory: Adam's decay of the mean and of the mean square of gradients.
    """

    batch: int = 4
    passes: int = 1
    most: int = 32
    checked: int = 16
    rate: float = 3e-3
    vector_rate: float = 1e-3
    warm_up: float = 0.1
    memory: tuple[float, float] = (0.9, 0.95)

    def steps(self, sequences: int) -> int:
        """Steps over so many sequences."""
        return min(self.most, self.passes * max(1, sequences // self.batch))

    def share(self, step: int, steps: int) -> float:
        """Of the rates, in step 0 … steps - 1."""
        rising = self.warm_up * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


class Teacher:
    """The original's predictions of some sequences: its hidden states, float16 [S, D] each, and its head.

    States beyond half precision's range stay float32.
    """

    def __init__(self, predictor: Predictor, ids: Tensor, advance: Advance) -> None:
        hidden = []
        with torch.inference_mode():
            for sequence in ids:
                hidden.append(_narrow(predictor.hidden(sequence[None])[0]))
                advance(len(sequence), "the original")
        predictor.forget_decoder()
        self.hidden = tuple(hidden)
        self._predictor = predictor

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Of the next token, float32 [T, V], for hidden states [T, D]."""
        with torch.no_grad():  # tensors of inference mode would have to be copied for the student's gradient
            return torch.log_softmax(self._predictor.logits(hidden.float()).float(), -1)


def _narrow(hidden: Tensor) -> Tensor:
    half = hidden.half()
    return half if bool(half.isfinite().all()) else hidden.float()


def train(student: Student, teacher: Teacher, ids: Tensor, schedule: Schedule, advance: Advance) -> None:
    """Train the student on sequences int64 [B, S], which are the teacher's first ones, in order.

    `advance` is told of tokens done, and of the mean KL divergence of the batch.
    """
    groups: dict[float, list[Tensor]] = {schedule.rate: [], schedule.vector_rate: []}
    for name, numbers in student.logarithms.items():
        vector = len(student.tuned[name].parameters.shape) == 1
        groups[schedule.vector_rate if vector else schedule.rate].extend(numbers)
    optimizer = torch.optim.Adam(
        [{"params": numbers, "peak": peak} for peak, numbers in groups.items() if numbers],
        betas=schedule.memory, eps=1e-12,
    )  # fmt: skip
    steps = schedule.steps(len(ids))
    size = min(schedule.batch, len(ids))
    for step in range(steps):
        first = step * size % (len(ids) // size * size)
        loss = 0.0
        for index in range(first, first + size):
            loss += _backward(student, teacher, ids[index], teacher.hidden[index]) / size
            advance(len(ids[index]), f"KL {loss * size / (index - first + 1):.4f}")
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.share(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        student.apply()


def _backward(student: Student, teacher: Teacher, ids: Tensor, target: Tensor) -> float:
    """Add the gradient of one sequence's mean KL divergence, which is returned."""
    with activations_in_16_bits(student.predictor.model):
        hidden = student.predictor.hidden(ids[None])[0]
    leaf = hidden.detach().requires_grad_()
    total = 0.0
    for piece in _pieces(leaf, student):
        logits = torch.log_softmax(student.predictor.logits(leaf[piece]).float(), -1)
        wanted = teacher.log_probabilities(target[piece])
        loss = functional.kl_div(logits, wanted, reduction="sum", log_target=True) / len(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total


def activations_in_16_bits(model: Any) -> saved_tensors_hooks:
    """What the way back needs of large activations is kept as bfloat16, in half the memory.

    Gradients get noise of 2^-9 of each number, less than other sequences give. Weights stay as they are, and so does
    what is small, such as the logarithms of attention's sums.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> tuple[Tensor, bool]:
        large = tensor.dtype == torch.float32 and tensor.numel() >= LARGE
        shorter = large and tensor.untyped_storage().data_ptr() not in weights
        return (tensor.bfloat16() if shorter else tensor), shorter

    def unpack(packed: tuple[Tensor, bool]) -> Tensor:
        tensor, shorter = packed
        return tensor.float() if shorter else tensor

    return saved_tensors_hooks(pack, unpack)


def divergence(student: Student, teacher: Teacher, ids: Tensor, first: int, advance: Advance) -> float:
    """Mean KL divergence on sequences int64 [B, S], which are the teacher's from its `first` on."""
    total = 0.0
    with torch.inference_mode():
        for sequence, target in zip(ids, teacher.hidden[first:], strict=True):
            hidden = student.predictor.hidden(sequence[None])[0]
            for piece in _pieces(hidden, student):
                logits = torch.log_softmax(student.predictor.logits(hidden[piece]).float(), -1)
                wanted = teacher.log_probabilities(target[piece])
                total += float(functional.kl_div(logits, wanted, reduction="sum", log_target=True))
            advance(len(sequence), "checking")
    return total / ids.numel()


def _pieces(hidden: Tensor, student: Student) -> list[slice]:
    step = max(1, LOGITS // int(student.predictor.model.config.get_text_config().vocab_size))
    return [slice(start, start + step) for start in range(0, len(hidden), step)]
