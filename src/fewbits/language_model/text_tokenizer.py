"""Text to token ids and back, for Hugging Face directories and GGUF files alike."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import EvaluationError

if TYPE_CHECKING:
    from fewbits.checkpoint import gguf_tokenizer


class TextTokenizer(Protocol):
    """What evaluating and generating need of a tokenizer.

    Attributes:
        bos_id: the token that begins a text, or None.
        add_bos: whether the model expects it in front of every text.
        eos_ids: the tokens that end the model's answer.
    """

    @property
    def bos_id(self) -> int | None:
        """See the class."""

    @property
    def add_bos(self) -> bool:
        """See the class."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """See the class."""

    def encode(self, text: str, *, markup: bool) -> list[int]:
        """Token ids without beginning and end; with `markup`, names of special tokens become those tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""

    def pieces(self) -> Sequence[str | None]:
        """The vocabulary's strings by token id; None where an id has none."""

    def chat_prompt(
        self, message: str | Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """A user's message, or a conversation, in the model's chat markup, up to where the model's answer begins.

        Args:
            message: the message, or those of the conversation.
            variables: what else the template is told, such as ``tools``.

        Raises:
            EvaluationError: the model has no chat template, or its template refuses the message.
        """

    def conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = False) -> str:
        """A conversation (``role`` and ``content`` of each message) in the model's chat markup.

        With `answer` it goes up to where the model's next answer begins. Templates that say which day it is
        are told the same one always.

        Raises:
            EvaluationError: as above.
        """


class _ChatMarkup(ABC):
    """The part of a tokenizer that fills in the model's chat template."""

    _tokenizer: Any  # its chat_template: Jinja source, several of them by name, or None

    def chat_prompt(
        self, message: str | Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """See `TextTokenizer`."""
        messages = [{"role": "user", "content": message}] if isinstance(message, str) else message
        return self.filled_in(messages, variables or {}, answer=True)

    def conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = False) -> str:
        """See `TextTokenizer`."""
        return self.filled_in(messages, {}, answer, same_day=True)

    def filled_in(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        answer: bool,
        *,
        same_day: bool = False,
    ) -> str:
        """The chat template, filled in.

        Args:
            messages: of the conversation.
            variables: what else the template is told.
            answer: whether it goes up to where the model's next answer begins.
            same_day: whether a template that asks for the date is told the same one always.

        Raises:
            EvaluationError: as for `TextTokenizer.chat_prompt`.
        """
        template = self._tokenizer.chat_template
        if not template:
            raise EvaluationError(
                "the model has no chat template", action="Leave out --chat to continue raw text"
            )
        if same_day and isinstance(template, str):
            template = _on_the_same_day(template)
        return self._render(template, messages, variables, answer)

    @abstractmethod
    def _render(
        self,
        template: Any,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        answer: bool,
    ) -> str:
        """The template with these messages; with `answer` up to where the model's next answer begins."""


class HuggingFaceTokenizer(_ChatMarkup):
    """The tokenizer of a Hugging Face directory."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise EvaluationError(
                f"{directory} has no tokenizer that transformers can load",
                found=_first_line(error),
                action="Put the model's tokenizer.json and tokenizer_config.json beside its weights",
            ) from error
        self.bos_id: int | None = self._tokenizer.bos_token_id
        begun = self._tokenizer.encode("a", add_special_tokens=True)
        self.add_bos = self.bos_id is not None and begun[:1] == [self.bos_id]
        self.eos_ids = frozenset(self._end_tokens(directory))

    def _end_tokens(self, directory: Path) -> list[int]:
        from transformers import GenerationConfig

        ends = [self._tokenizer.eos_token_id]
        if (directory / "generation_config.json").is_file():
            stated = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
            ends += stated if isinstance(stated, list) else [stated]
        return [end for end in ends if end is not None]

    def encode(self, text: str, *, markup: bool) -> list[int]:
        """See `TextTokenizer`."""
        # verbose=False: no warning of texts longer than the model's context; they are cut into chunks later.
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not markup, verbose=False
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def pieces(self) -> Sequence[str | None]:
        """See `TextTokenizer`."""
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        strings: list[str | None] = [None] * (max(vocabulary.values()) + 1)
        for string, token in vocabulary.items():
            strings[token] = string
        return strings

    def _render(
        self,
        template: Any,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        answer: bool,
    ) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer,
                chat_template=template if isinstance(template, str) else None, **variables,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused_by_template(error) from error
        return text


class GgufTokenizer(_ChatMarkup):
    """The tokenizer that a GGUF file carries in its metadata."""

    def __init__(
        self, metadata: Mapping[str, Any], tokenizer: gguf_tokenizer.GgufTokenizer | None = None
    ) -> None:
        """The tokenizer of a file's metadata; `tokenizer`: if it has been built already."""
        from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata

        self._tokenizer = tokenizer_from_metadata(metadata) if tokenizer is None else tokenizer
        self._pieces: Sequence[str] = metadata["tokenizer.ggml.tokens"]
        self.bos_id: int | None = self._tokenizer.bos_id
        self.add_bos = bool(self._tokenizer.add_bos and self.bos_id is not None)
        self.eos_ids = frozenset(self._tokenizer.eos_ids)

    def encode(self, text: str, *, markup: bool) -> list[int]:
        """See `TextTokenizer`."""
        return list(self._tokenizer.encode(text, add_special=False, parse_special=markup))

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return str(self._tokenizer.decode(list(ids)))

    def pieces(self) -> Sequence[str | None]:
        """See `TextTokenizer`."""
        return self._pieces

    def _render(
        self,
        template: Any,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        answer: bool,
    ) -> str:
        end = self._tokenizer.eos_id
        if variables.get("tools"):  # transformers' name of a second template for them
            template = self._tokenizer.chat_templates.get("tool_use", template)
        return render_conversation(
            template,
            messages,
            answer,
            variables,
            bos_token="" if self.bos_id is None else self._pieces[self.bos_id],
            eos_token="" if end is None else self._pieces[end],
        )


def render_chat_template(template: str, message: str, **tokens: str) -> str:
    """A user's message in a chat template's markup, up to the model's answer; see `render_conversation`."""
    return render_conversation(template, [{"role": "user", "content": message}], True, {}, **tokens)


def render_conversation(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    **tokens: str,
) -> str:
    """Fill in a chat template from a model file, which may come from anyone: in Jinja's sandbox.

    Args:
        template: Jinja source.
        messages: ``role``, ``content`` and what else the template reads of each.
        add_generation_prompt: go on to where the next answer begins.
        variables: what else it is told, such as ``tools``; never instead of the rest.
        tokens: texts of special tokens, by the names that templates have for them.

    Raises:
        EvaluationError: the template is not valid, or refuses the message.
    """
    from jinja2 import TemplateError

    try:
        told = {**variables, **tokens, "add_generation_prompt": add_generation_prompt}
        return str(_compiled(template).render({**told, "messages": list(messages)}))
    except (TemplateError, TypeError) as error:
        raise _refused_by_template(error) from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A chat template, ready to be filled in: its parsing takes longer than that, and every request of a server asks.

    Raises:
        jinja2.TemplateError: not valid.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> str:
        raise TemplateError(reason)

    # trim_blocks, lstrip_blocks and the names below are what chat templates are written for (transformers).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """What templates mean by tojson (transformers): JSON in the given order, without Jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _on_the_same_day(template: str) -> str:
    """The template with its questions for the date answered."""
    day = datetime(2025, 1, 1, tzinfo=UTC)
    return re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda match: repr(day.strftime(match[2])), template
    )


def _refused_by_template(error: Exception) -> EvaluationError:
    return EvaluationError(
        "the model's chat template can't be filled in",
        found=_first_line(error),
        action="Leave out --chat to continue raw text",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """The tokenizer that belongs to a model.

    Raises:
        EvaluationError: the model comes without a tokenizer that can be loaded.
    """
    if checkpoint.container == "gguf":
        return GgufTokenizer(checkpoint.metadata)
    return HuggingFaceTokenizer(checkpoint.path)
