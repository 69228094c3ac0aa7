"""What one entry of the table of architectures says: names of tensors and settings, on both sides.

Hugging Face side: a `config.json` and the parameter names of transformers' model. GGUF side: metadata keys
under ``<architecture>.`` and the tensor names of llama.cpp. In patterns, ``{b}`` is the index of a block
and ``{e}`` that of an expert. Every rule knows both directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fewbits.architectures.transforms import SAME, Transform, join_rows, split_rows, stack
from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.views import Renamed, RowRange
from fewbits.errors import ArchitectureError

Config: TypeAlias = Mapping[str, Any]
Arrays: TypeAlias = dict[str, Floats]


class Source:
    """Tensors by name, which remembers those that were asked for."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()
        self.missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, *names: str, optional: bool = False) -> LazyTensor | None:
        """The tensor under the first of these names that there is; notes it as missing unless optional."""
        for name in names:
            if name in self._tensors:
                self._taken.add(name)
                return self._tensors[name]
        if not optional:
            self.missing.append(names[0])
        return None

    def surplus(self) -> list[str]:
        """Names that nobody has asked for."""
        return [name for name in self._tensors if name not in self._taken]


Pairs: TypeAlias = Iterator[tuple[str, LazyTensor]]


class Rule(ABC):
    """How some tensors of one side become some of the other. Yields new names with lazy tensors."""

    @abstractmethod
    def to_gguf(self, source: Source, config: Config) -> Pairs:
        """From Hugging Face names to GGUF names."""

    @abstractmethod
    def to_hugging_face(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to Hugging Face names."""

    def to_published(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to those of published checkpoints, which other runtimes than transformers read."""
        yield from self.to_hugging_face(source, config)

    @abstractmethod
    def in_block(self, block: int) -> Rule:
        """The rule with ``{b}`` filled in and both sides' prefixes of blocks put before its names."""


def _hf(name: str, block: int) -> str:
    return f"model.layers.{block}.{name}"


def _gguf(name: str, block: int) -> str:
    return f"blk.{block}.{name}"


@dataclass(frozen=True)
class Tensor(Rule):
    """One tensor for one.

    Attributes:
        hf: what transformers' model calls it, relative to the block for tensors of a block.
        gguf: what llama.cpp calls it, likewise.
        transform: what happens to its numbers.
        optional: not every model of the architecture has it (biases).
        older: other names that it has in checkpoints.
    """

    hf: str
    gguf: str
    transform: Transform = SAME
    optional: bool = False
    older: tuple[str, ...] = ()

    def to_gguf(self, source: Source, config: Config) -> Pairs:
        """From Hugging Face names to GGUF names."""
        tensor = source.take(self.hf, *self.older, optional=self.optional)
        if tensor is not None:
            yield self.gguf, self.transform.to_gguf(tensor, self.gguf, config)

    def to_hugging_face(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to Hugging Face names."""
        tensor = source.take(self.gguf, optional=self.optional)
        if tensor is not None:
            yield self.hf, self.transform.to_hugging_face(tensor, self.hf, config)

    def to_published(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to those of published checkpoints."""
        for _, tensor in self.to_hugging_face(source, config):
            name = self.older[0] if self.older else self.hf
            yield name, Renamed(tensor, name)

    def in_block(self, block: int) -> Tensor:
        """The rule of one block."""
        older = tuple(_hf(name, block) for name in self.older)
        return Tensor(_hf(self.hf, block), _gguf(self.gguf, block), self.transform, self.optional, older)


@dataclass(frozen=True)
class Experts(Rule):
    """The expert matrices of a block: gate and up [E, I, H], down [E, H, I] in GGUF.

    Checkpoints hold them expert by expert, or fused as in transformers' live model: gate and up as
    ``gate_up`` [E, 2 I, H], gate first.

    Attributes:
        gate_up: name of the fused gate and up in transformers' model.
        down: name of the stacked down in transformers' model.
        each: names of one expert's gate, up and down in checkpoints, with ``{e}``; or ().
        fused_older: names of the fused pair in checkpoints where they differ from the live model's; or ().
        count: config key of the number of experts.
    """

    gate_up: str
    down: str
    each: tuple[str, ...] = ()
    fused_older: tuple[str, ...] = ()
    count: str = "num_experts"
    gguf: tuple[str, str, str] = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")

    def to_gguf(self, source: Source, config: Config) -> Pairs:
        """From Hugging Face names to GGUF names."""
        gate_up_names = (self.gate_up, *self.fused_older[:1])
        if not self.each or any(name in source for name in gate_up_names):
            gate_up = source.take(*gate_up_names)
            down = source.take(self.down, *self.fused_older[1:])
            if gate_up is not None and down is not None:
                gate, up = split_rows(gate_up, self.gguf[:2])
                yield from ((self.gguf[0], gate), (self.gguf[1], up))
                yield self.gguf[2], SAME.to_gguf(down, self.gguf[2], config)
            return
        for pattern, name in zip(self.each, self.gguf, strict=True):
            found = [source.take(pattern.replace("{e}", str(e))) for e in range(config[self.count])]
            present = [t for t in found if t is not None]
            if len(present) == len(found):
                yield name, stack(present, name)

    def to_hugging_face(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to the names of transformers' model."""
        gate, up, down = (source.take(name) for name in self.gguf)
        if gate is not None and up is not None and down is not None:
            yield self.gate_up, join_rows([gate, up], self.gate_up)
            yield self.down, SAME.to_hugging_face(down, self.down, config)

    def to_published(self, source: Source, config: Config) -> Pairs:
        """From GGUF names to those of published checkpoints: expert by expert where those are."""
        if not self.each:
            names = self.fused_older or (self.gate_up, self.down)
            for name, (_, tensor) in zip(names, self.to_hugging_face(source, config), strict=False):
                yield name, Renamed(tensor, name)
            return
        for pattern, gguf in zip(self.each, self.gguf, strict=True):
            stack_of_all = source.take(gguf)
            if stack_of_all is not None:
                experts, rows, columns = stack_of_all.shape
                for e in range(experts):
                    name = pattern.replace("{e}", str(e))
                    yield name, RowRange(stack_of_all, e * rows, (e + 1) * rows, name, (rows, columns))

    def in_block(self, block: int) -> Experts:
        """The rule of one block."""
        gate, up, down = (_gguf(name, block) for name in self.gguf)
        return Experts(
            _hf(self.gate_up, block),
            _hf(self.down, block),
            tuple(_hf(name, block) for name in self.each),
            tuple(_hf(name, block) for name in self.fused_older),
            self.count,
            (gate, up, down),
        )


@dataclass(frozen=True)
class Field:
    """One setting for one.

    Attributes:
        gguf: metadata key, without the architecture's prefix.
        hf: config key.
        kind: Python type of the value: int, float or bool.
        older: other config keys for it.
        optional: left out when the config has no value; otherwise that is an error.
    """

    gguf: str
    hf: str
    kind: type[int] | type[float] = int
    older: tuple[str, ...] = ()
    optional: bool = False


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


def _embedding_multiplier(config: Config) -> float:
    return float(config.get("embedding_multiplier", 1.0))


def _accept(_: Config) -> None:
    return None


@dataclass(frozen=True)
class Feature:
    """Settings that need code: named functions that an entry refers to.

    Attributes:
        write: config -> metadata without the architecture's prefix.
        tensors: config -> tensors that the checkpoint doesn't hold, computed from the config.
        read: (metadata without prefix, GGUF tensors) -> config; the inverse of both.
        check: raises ArchitectureError for configs that llama.cpp's implementation can't express.
    """

    write: Callable[[Config], dict[str, Any]] = _nothing
    tensors: Callable[[Config], Arrays] = _nothing
    read: Callable[[Mapping[str, Any], Mapping[str, LazyTensor]], dict[str, Any]] = _nothing
    check: Callable[[Config], None] = _accept


@dataclass(frozen=True)
class Architecture:
    """One kind of model, as data.

    Attributes:
        model_type: `model_type` of config.json.
        gguf: name of the architecture in llama.cpp.
        before: rules of tensors before the blocks; after: of those behind them.
        blocks: rules of a block, names relative to ``model.layers.{b}.`` and ``blk.{b}.``.
        head: when ``output.weight`` is written: ``untied`` if the model isn't tied, ``always`` (a tied model
            gets a copy of the embedding) or ``never`` (llama.cpp has only tied models of this kind).
        fields: settings that carry over.
        features: settings that need code.
        constants: what llama.cpp fixes: config key -> values it stands for, the first being what the
            inverse writes. A config with another value is refused.
        defaults: what transformers assumes when config.json leaves a key out.
        sub_config: key under which a multimodal config keeps the text model's, if it does.
        prefixes: (as in the checkpoint, as in the rules) beginnings of names, for multimodal checkpoints.
        ignored: regular expressions of names that have no place in the text model's GGUF.
        owns: whether a GGUF file of this `gguf` name, by its metadata without prefix, is of this entry.
        embedding_factor: what the embedding is multiplied by, from the config.
        notes: what its runtime does otherwise than the model's authors, for the report.
    """

    model_type: str
    gguf: str
    before: tuple[Rule, ...]
    blocks: tuple[Rule, ...]
    after: tuple[Rule, ...]
    fields: tuple[Field, ...]
    features: tuple[Feature, ...]
    head: str = "untied"
    constants: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    sub_config: str | None = None
    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    owns: Callable[[Mapping[str, Any]], bool] = lambda _: True
    embedding_factor: Callable[[Config], float] = _embedding_multiplier
    notes: tuple[str, ...] = ()

    def rules(self, blocks: int) -> Iterator[Rule]:
        """All rules of a model with this many blocks, in the order of the file, the head's excepted."""
        yield from self.before
        for block in range(blocks):
            for rule in self.blocks:
                yield rule.in_block(block)
        yield from self.after


def refuse(what: str, found: object, allowed: object) -> ArchitectureError:
    """The error for a config that llama.cpp's implementation can't express."""
    return ArchitectureError(
        f"llama.cpp can't run this model: {what}",
        found=found,
        allowed=allowed,
        action="Choose another container, or a model of this kind that llama.cpp runs.",
    )
