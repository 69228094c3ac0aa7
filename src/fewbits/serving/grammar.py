"""What an answer may look like, token by token: JSON by a schema, and calls of tools.

The grammars are llguidance's, whose masks of tokens cost tens of microseconds. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.errors import MissingExtraError, RequestError, ServingError
from fewbits.serving.call_grammar import call_grammar, json_rule
from fewbits.serving.call_markup import CallMarkup
from fewbits.serving.tools import Tools

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class GrammarConstraint:
    """One answer that follows a grammar (`fewbits.serving.token_choice.Constraint`)."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: bool [V].

        Raises:
            ServingError: none may, or the grammar is too complex to tell.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary].view(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            raise ServingError(
                "the answer can't follow its schema any further",
                found=_first_line(self._matcher.get_error()) or "no token that may come next",
                action="Simplify the schema",
            )
        return allowed

    def wrote(self, token: int) -> None:
        """Go on after this token."""
        self._matcher.consume_token(token)


class Grammar:
    """A grammar for one model's tokens."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def constraint(self) -> GrammarConstraint:
        """For one more answer."""
        return GrammarConstraint(self._matcher.deep_copy(), self._vocabulary)


class Grammars:
    """Makes grammars for one model; may be used by several threads at a time."""

    def __init__(self, tokenizer: GgufTokenizer, vocabulary: int) -> None:
        """Nothing is built before it is needed.

        Args:
            tokenizer: the model's.
            vocabulary: V.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = Lock()

    def json(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """A value that follows a JSON schema.

        Args:
            schema: the schema.
            param: the part of the request that it stands in.

        Raises:
            MissingExtraError: llguidance isn't installed.
            RequestError: the schema is wrong, or has what can't be followed.
        """
        return self._made(f"start: {json_rule(schema)}\n", param)

    def calls(self, markup: CallMarkup, tools: Tools, schema: Mapping[str, Any] | None) -> Grammar:
        """Calls of tools, and unless they are required any text, or a value that follows a schema, instead.

        Raises:
            MissingExtraError: llguidance isn't installed.
            RequestError: a schema is wrong, or has what can't be followed.
        """
        for tool in tools.callable:  # each for itself, for the name of the wrong one
            self.json(tool.parameters, f"tools.{tool.name}.parameters")
        if schema is not None:
            self.json(schema, "response_format")
        return self._made(call_grammar(markup, tools, schema, self._tokenizer.control_tokens), "tools")

    def _made(self, text: str, param: str) -> Grammar:
        tokens = self._tokens
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(text), log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(
                "the JSON schema can't be followed", found=_first_line(matcher.get_error()), param=param
            )
        return Grammar(matcher, self._vocabulary)

    @property
    def _tokens(self) -> LLTokenizer:
        with self._lock:
            return self._ll_tokenizer

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            missing = MissingExtraError("llguidance", "serve", "Answers in JSON and calls of tools")
            raise RequestError(str(missing)) from None

        ends = sorted(self._tokenizer.eos_ids)
        if not ends:
            raise RequestError("the model has no token that ends an answer, which JSON and calls need")
        wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocabulary, ends[0]))
        return LLTokenizer(wrapper, n_vocab=self._vocabulary, eos_token=ends)


class _Vocabulary:
    """The model's tokens as llguidance wants them: an array of bytes by token, and a way to make tokens of text."""

    bos_token_id = None

    def __init__(self, tokenizer: GgufTokenizer, vocabulary: int, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.special_token_ids = sorted(tokenizer.control_tokens.values())
        for name, token in tokenizer.control_tokens.items():
            self.tokens[token] = name.encode("utf-8", "replace")
        self._tokenizer = tokenizer
        special = frozenset(self.special_token_ids)
        self._by_bytes = {
            text: token for token, text in enumerate(self.tokens) if text and token not in special
        }
        self._longest = max(map(len, self._by_bytes))

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text that must follow: as the model knows it, if that is the very text."""
        with suppress(UnicodeDecodeError):
            ids = self._tokenizer.encode(text.decode(), add_special=False, parse_special=False)
            if b"".join(self.tokens[token] for token in ids) == text:
                return ids
        # SentencePiece puts a space before a text.
        ids = []
        while text:
            lengths = range(min(self._longest, len(text)), 0, -1)
            length = next((length for length in lengths if text[:length] in self._by_bytes), 0)
            if not length:
                return []
            ids.append(self._by_bytes[text[:length]])
            text = text[length:]
        return ids


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
