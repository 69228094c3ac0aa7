"""Conversations and texts to token ids, by what the model's file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.errors import EvaluationError, RequestError
from fewbits.language_model import text_tokenizer
from fewbits.serving.call_markup import CallMarkup, call_markup
from fewbits.serving.messages import Message


class PromptReader:
    """Reads prompts; may be used by several threads at a time."""

    def __init__(self, tokenizer: GgufTokenizer, metadata: Mapping[str, Any], vocabulary: int) -> None:
        """A reader for one model: its tokenizer, its file's metadata, and how many tokens there are."""
        self._tokenizer = tokenizer
        self._template = text_tokenizer.GgufTokenizer(metadata, tokenizer)
        self._vocabulary = vocabulary

    def conversation(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation in the model's chat markup, up to where the next answer begins.

        Args:
            messages: see `read_messages`.
            variables: what else the template is told.

        Raises:
            RequestError: the model has no chat template, or its template refuses these messages.
        """
        if not self._tokenizer.chat_template:
            raise RequestError(
                "the model has no chat template", action="Use /v1/completions", param="messages"
            )
        try:
            text = self._template.chat_prompt(messages, variables)
        except EvaluationError as error:
            raise RequestError(error.what, found=error.found, param="messages") from error
        return _not_empty(self._tokenizer.encode_prompt(text), "messages")

    @cached_property
    def call_markup(self) -> CallMarkup | None:
        """How the model writes calls of tools; None if its template doesn't tell."""
        if not self._tokenizer.chat_template:
            return None
        ends = [self._tokenizer.tokenizer.id_to_token(token) for token in self._tokenizer.eos_ids]
        added = self._tokenizer.added_tokens
        return call_markup(self._template.filled_in, [end for end in ends if end], added)

    def prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, in which names of control tokens count as those, or of ids taken as they are.

        Raises:
            RequestError: no tokens, or ids that the model doesn't have.
        """
        if isinstance(prompt, str):
            return _not_empty(self._tokenizer.encode_prompt(prompt), "prompt")
        outside = [token for token in prompt if not 0 <= token < self._vocabulary]
        if outside:
            raise RequestError(
                "the prompt has token ids that the model doesn't have",
                found=outside[0],
                allowed=f"0 to {self._vocabulary - 1}",
                param="prompt",
            )
        return _not_empty(list(prompt), "prompt")


def _not_empty(ids: list[int], param: str) -> list[int]:
    if not ids:
        raise RequestError(
            "the prompt has no tokens", found="an empty prompt", allowed="one or more", param=param
        )
    return ids
